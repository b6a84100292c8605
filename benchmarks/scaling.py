"""What each step costs a row at growing sizes: `--scale 1` is a million rows, so 0.01, 0.1, 1 and 10 are the four of docs/evidence/scaling.md.

Not a race. Each part runs in a process of its own, so that its CPU seconds and its peak are its own, with those of the process
that answers queries. It leaves a line in `scaling.jsonl` beside this file; a part that has its line is not run again, so a call
that was stopped is gone on with. `python -m benchmarks.scaling` writes the lines' tables into docs/evidence/scaling.md.
"""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any

from benchmarks import processes
from seamcurate.storage import shard

LINES = Path(__file__).with_name("scaling.jsonl")
STORES = Path(__file__).parents[1] / ".benchmarks"
REPORT = Path(__file__).parents[1] / "docs/evidence/scaling.md"
CORPUS, K = 20_000, 30
SAMPLES = 4
"""Rollouts a row."""
MODELS_UP_TO = 10_000_000
"""Rows beyond which retrieval and the steps of models are left out: a fake model's Python is most of their cost."""
DUPLICATES_UP_TO = 1_000_000
"""Rows beyond which duplicates are left out: each row is compared with all before it."""
SMALL = 200
"""Rows of the store whose time is what a part takes at any size."""
_BLOCK = 100_000
_PROMPT, _RESPONSE = 4, 16
"""Phrases a text is made of, about 22 characters each."""


def write_texts(file: Path, rows: int, seed: int) -> int:
    """Write rows of text drawn from real phrases, every one of them different; returns their plain bytes."""
    import numpy as np
    import pyarrow as pa
    import pyarrow.compute as pc
    import pyarrow.parquet as pq

    from benchmarks import inputs

    words = " ".join(f"{prompt} {response}" for prompt, response in inputs.pairs()[:20_000]).split()
    phrases = pa.array([" ".join(words[i : i + 4]) for i in range(0, min(len(words), 400_000), 4)])
    plain = 0
    schema = pa.schema([("prompt", pa.string()), ("response", pa.string())])
    with pq.ParquetWriter(file, schema, compression="zstd") as writer:
        for start in range(0, rows, _BLOCK):
            count = min(_BLOCK, rows - start)
            draw = np.random.default_rng([seed, start])
            numbers = pa.array(np.arange(start, start + count)).cast(pa.string())
            texts = []
            for length in (_PROMPT, _RESPONSE):
                # Half of them to twice as many phrases, so that lengths vary.
                most = draw.integers(length // 2, 2 * length, count)
                taken = [
                    pc.if_else(
                        pa.array(most > i), phrases.take(pa.array(draw.integers(0, len(phrases), count))), pa.scalar("")
                    )
                    for i in range(2 * length)
                ]
                texts.append(pc.utf8_trim_whitespace(pc.binary_join_element_wise(numbers, *taken, " ")))
            plain += sum(pc.sum(pc.binary_length(text)).as_py() for text in texts)
            writer.write_table(pa.table(texts, schema=schema))
    return plain


# The parts: what a run does, one thing each.


def read_rows(folder: Path) -> None:
    from seamcurate import Source, Store
    from seamcurate.run.local import ingest

    ingest(Source(parquet=str(folder / "rows.parquet")), Store(folder / "store"), None, False, "rows")


def add_columns(step: Any, folder: Path) -> None:
    from seamcurate import Store
    from seamcurate.run.local import compute, in_process

    store = Store(folder / "store")
    (output,) = store.plan([step()])
    store.claim([output])
    compute(output, store, store.shards, "", in_process)


def embed_corpus(folder: Path) -> None:
    from seamcurate import Embed, FakeModel, Source, Store
    from seamcurate.run.local import compute, in_process, ingest

    corpus = Store(folder / "store" / "corpus")
    ingest(Source(parquet=str(folder / "corpus.parquet")), corpus, None, False, "corpus")
    (output,) = corpus.plan([Embed(encoder=FakeModel())])
    corpus.claim([output])
    compute(output, corpus, corpus.shards, "", in_process)
    Store(folder / "store").update(corpus="corpus")


def nearest_rows(folder: Path) -> None:
    from seamcurate import Nearest, Source

    add_columns(
        lambda: Nearest(to=Source(parquet=str(folder / "corpus.parquet")), set_name="test", encoder=_fake()), folder
    )


def sample_policy(folder: Path) -> None:
    from seamcurate import Rollouts, Store
    from seamcurate.run.local import compute, in_process

    # The samples that are kept from an earlier time would not be drawn again.
    shutil.rmtree(folder / "store" / "calls", ignore_errors=True)
    store = Store(folder / "store")
    (output,) = store.plan([Rollouts(n=SAMPLES, policy=_fake())])
    store.claim([output])
    compute(output, store, store.shards, "", in_process)


def split_rows(folder: Path) -> None:
    from seamcurate import Split, Store
    from seamcurate.select import split

    text = (Path(__file__).parents[1] / "recipes" / "keep_above_lowest.sql").read_text()
    split.make(Store(folder / "store"), "kept", Split(filter=text, by="rer_length", rate=0.2))


def ask_sql(folder: Path) -> None:
    from seamcurate import Store, query

    sql = "SELECT round(rer_length, 1) AS words, count(*), avg(rer_repetition), avg(baseline_random) FROM rows GROUP BY ALL ORDER BY 1"
    query(Store(folder / "store"), sql)


def export_split(folder: Path) -> None:
    from seamcurate import Store, to_trl

    to_trl(Store(folder / "store"), "kept", folder / "export")


def _step(name: str, **fields: Any) -> Callable[[Path], None]:
    def made() -> Any:
        import seamcurate

        return getattr(seamcurate, name)(**{key: value() for key, value in fields.items()})

    return partial(add_columns, made)


def _fake() -> Any:
    from seamcurate import FakeModel

    return FakeModel()


FREE: dict[str, Callable[[Path], None]] = {
    "ingest": read_rows,
    "length": _step("LengthIncentive"),
    "repetition": _step("RepetitionPenalty"),
    "random": _step("Random"),
    "split": split_rows,
    "sql": ask_sql,
    "export": export_split,
}
MODELS: dict[str, Callable[[Path], None]] = {
    "embed corpus": embed_corpus,
    "retrieve": _step("Retrieve", k=lambda: K, band=lambda: (0.4, 0.9), encoder=_fake),
    "reward": _step("Reward", reward=_fake),
    "rewards": _step("Rewards", reward=_fake),
    "likelihoods": _step("PolicyLogprobs", policy=_fake),
    "seam": _step("Seam", k=lambda: K),
    "rollouts": sample_policy,
    "embed rows": _step("Embed", encoder=_fake),
    "nearest": nearest_rows,
    "duplicates": _step("Duplicates"),
}
PARTS = {**FREE, **MODELS}
WRITES = {
    "ingest": "store/rows",
    "length": "store/columns/rer_length",
    "repetition": "store/columns/rer_repetition",
    "random": "store/columns/baseline_random",
    "split": "store/splits",
    "sql": "",
    "export": "export",
    "embed corpus": "store/corpus",
    "retrieve": "store/columns/worse_contrast",
    "reward": "store/columns/reward",
    "rewards": "store/columns/rewards_contrast",
    "likelihoods": "store/columns/logprobs_contrast",
    "seam": "store/columns/seam_contrast",
    "rollouts": "store/columns/worse_policy",
    "embed rows": "store/columns/embedding",
    "nearest": "store/columns/nearest_test",
    "duplicates": "store/columns/duplicates",
}
"""Where each part leaves what it makes."""


def measure(part: str, folder: Path, times: int) -> None:
    """Run one part over a folder, from nothing each time, and print what it took.

    Small ones go before: the first so that imports are not counted, the others for what a part takes however few the rows.
    """
    models = _Clock()
    with tempfile.TemporaryDirectory() as name:
        small = Path(name)
        write_texts(small / "rows.parquet", SMALL, 1)
        if part in MODELS and part != "embed corpus":
            shutil.copy(folder / "corpus.parquet", small)
        else:
            write_texts(small / "corpus.parquet", SMALL, 1)
        for one, run in PARTS.items():
            run(small)
            if one == part:
                break
        once = [_timed(part, small, models)["cpu_s"] for _ in range(5)]
    taken = [_timed(part, folder, models) for _ in range(times)]
    middle = sorted(taken, key=lambda one: one["cpu_s"])[times // 2]
    print(json.dumps(middle | {"once_s": sorted(once)[2]}))


def _timed(part: str, folder: Path, models: _Clock) -> dict[str, float]:
    if WRITES[part]:
        shutil.rmtree(folder / "store" if part == "ingest" else folder / WRITES[part], ignore_errors=True)
    processes.forget_peaks()
    shard._verified.clear()
    models.seconds = 0.0
    read, cpu, wall = processes.read_bytes(), time.process_time() + processes.children_s(), time.monotonic()
    PARTS[part](folder)
    return {
        "cpu_s": round(time.process_time() + processes.children_s() - cpu, 4),
        "wall_s": round(time.monotonic() - wall, 2),
        "model_s": round(models.seconds, 4),
        "peak_mb": processes.peak_mb(),
        "bytes_in": processes.read_bytes() - read,
    }


class _Clock:
    """The CPU seconds spent inside the fake model: in a real run a GPU's time stands in their place."""

    def __init__(self) -> None:
        from seamcurate import FakeModel

        self.seconds = 0.0
        whole = dict.fromkeys(("embed", "rewards", "logprobs"), self._counted)
        for name, counted in {**whole, "samples": self._counted_as_they_come}.items():
            setattr(FakeModel, name, counted(getattr(FakeModel, name)))

    def _counted_as_they_come(self, method: Callable[..., Iterator[Any]]) -> Callable[..., Iterator[Any]]:
        def counted(*given: Any) -> Iterator[Any]:
            draw = self._counted(method(*given).__next__)
            with suppress(StopIteration):
                while True:
                    yield draw()

        return counted

    def _counted(self, method: Callable[..., Any]) -> Callable[..., Any]:
        def counted(*given: Any) -> Any:
            start = time.thread_time()
            try:
                return method(*given)
            finally:
                self.seconds += time.thread_time() - start

        return counted


def main(scale: float) -> None:
    """Measure a million rows times `scale`, part by part; what has its line is left alone."""
    rows = max(200, round(1_000_000 * scale))
    folder = STORES / f"scaling-{rows}"
    parts = list(PARTS) if rows <= MODELS_UP_TO else list(FREE)
    if rows > DUPLICATES_UP_TO and "duplicates" in parts:
        parts.remove("duplicates")
    done = {line["part"] for line in lines() if line["rows"] == rows}
    if not set(parts) - done:
        return
    folder.mkdir(parents=True, exist_ok=True)
    if not (folder / "plain.json").exists():
        plain = write_texts(folder / "rows.parquet", rows, 0)
        write_texts(folder / "corpus.parquet", CORPUS, 2)
        (folder / "plain.json").write_text(str(plain))
    plain = int((folder / "plain.json").read_text())
    for part in parts:
        if part in done:
            continue
        # What takes a moment is done again: a busy machine disturbs that most.
        times = max(1, min(9, 100_000 // rows)) if part in FREE else 3 if rows <= 10_000 else 1
        line = {"benchmark": "scaling", "rows": rows, "part": part, **_measured(part, folder, times)}
        per = CORPUS if part == "embed corpus" else rows
        line["us_per_row"] = round(1e6 * max(0.0, line["cpu_s"] - line["once_s"]) / (per - SMALL), 3)
        line["plain_bytes"] = plain
        print(json.dumps(line), flush=True)
        with LINES.open("a") as file:
            file.write(json.dumps(line) + "\n")
    shutil.rmtree(folder)


def _measured(part: str, folder: Path, times: int) -> dict[str, Any]:
    """Run a part in a process of its own."""
    code = "import seamcurate; from benchmarks import scaling; scaling.measure(scaling.sys.argv[1], scaling.Path(scaling.sys.argv[2]), int(scaling.sys.argv[3]))"
    command = [sys.executable, "-c", code, part, str(folder), str(times)]
    shown = subprocess.run(command, stdout=subprocess.PIPE, check=True, text=True).stdout
    found: dict[str, Any] = json.loads(shown.splitlines()[-1])
    return found | {"bytes_out": _size(folder / WRITES[part]) if WRITES[part] else 0}


def _size(folder: Path) -> int:
    return sum(file.stat().st_size for file in folder.rglob("*") if file.is_file())


def lines() -> list[dict[str, Any]]:
    """Return what was measured so far."""
    return [json.loads(line) for line in LINES.read_text().splitlines()] if LINES.exists() else []


# The tables of docs/evidence/scaling.md.

DOLLARS_PER_CORE_HOUR = 0.05
"""Assumed, about what a core of a rented machine costs on demand."""
_START, _END = "<!-- measured by benchmarks/scaling.py -->\n", "<!-- end -->"


def tables() -> str:
    """Return what was measured and what it comes to, as Markdown."""
    sizes = sorted({line["rows"] for line in lines()})
    by = {(line["part"], line["rows"]): line for line in lines()}
    head = ["part", "once, s", *(f"{rows:,}" for rows in sizes), "last to 100,000", "in the model", "bytes read"]
    shown = [[*head, "bytes kept", "peak MB, 100,000", "last"], ["---"] * (len(head) + 3)]
    projected = [["part", *(f"{what}, {n}" for n in ("10 M", "1 B") for what in ("core hours", "$", "GB"))]]
    projected.append(["---"] * len(projected[0]))
    sums = [0.0] * 6
    for part in PARTS:
        there = [by[part, rows] for rows in sizes if (part, rows) in by]
        if not there:
            continue
        last, middle = there[-1], by.get((part, 100_000), there[-1])
        per = CORPUS if part == "embed corpus" else last["rows"]
        ratio = f"{last['us_per_row'] / middle['us_per_row']:.2f}" if last is not middle else ""
        costs = [f"{by[part, rows]['us_per_row']:.1f}" if (part, rows) in by else "" for rows in sizes]
        inside, kept = f"{last['model_s'] / last['cpu_s']:.0%}" if part in MODELS else "", last["bytes_out"] / per
        read = f"{last['bytes_in'] / per:.0f}"
        shown.append(
            [
                *(part, f"{middle['once_s']:.2f}", *costs, ratio, inside, read, f"{kept:.0f}"),
                *(f"{line['peak_mb']}" for line in (middle, last)),
            ]
        )
        if part == "duplicates":
            # Its cost a row is in proportion to the rows.
            continue
        hours = [last["us_per_row"] * rows / 3.6e9 for rows in (1e7, 1e9)]
        numbers = [[h, h * DOLLARS_PER_CORE_HOUR, kept * n / 1e9] for h, n in zip(hours, (1e7, 1e9), strict=True)]
        values = [value for some in numbers for value in some]
        sums = [total + value for total, value in zip(sums, values, strict=True)]
        projected.append([part, *map(_short, values)])
    projected.append(["all of these", *map(_short, sums)])
    told = ". ".join(
        f"{kind}, CPU microseconds a row: {', '.join(_together(parts, by, sizes))}"
        for kind, parts in (("Model-free steps together", FREE), ("Retrieval and the steps of models", MODELS))
    )
    text = "\n\n".join("\n".join(f"| {' | '.join(row)} |" for row in some) for some in (shown, projected))
    return f"{told}.\n\n{text}\n"


def _together(
    parts: Iterable[str], by: Mapping[tuple[str, int], Mapping[str, Any]], sizes: Sequence[int]
) -> Iterator[str]:
    each = [
        part
        for part in parts
        if part not in ("embed corpus", "duplicates") and any((part, rows) in by for rows in sizes)
    ]
    for rows in sizes:
        if all((part, rows) in by for part in each):
            yield f"{sum(by[part, rows]['us_per_row'] for part in each):.1f} at {rows:,}"


def _short(value: float) -> str:
    return f"{value:,.0f}" if value >= 10 else f"{value:.2g}"


def write_report() -> None:
    """Put the tables into docs/evidence/scaling.md, between its marks."""
    before, rest = REPORT.read_text().split(_START)
    REPORT.write_text(before + _START + tables() + _END + rest.split(_END, 1)[1])


if __name__ == "__main__":
    write_report()
