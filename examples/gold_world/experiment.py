"""The SEAM experiments in the gold world: what is run, in which order, and the tables it comes to.

    python -m examples.gold_world.experiment --preset quick --out DIR [--minutes 9] [--workers 2]

One rule: a cell is one JSON file, written whole; what is there is never computed again, so that running again resumes.
Several processes share a folder: each takes what no other has taken, by locks that a kill releases.
"""

from __future__ import annotations

import argparse
import csv
import fcntl
import itertools
import json
import multiprocessing
import os
import random
import statistics
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import pyarrow.parquet as pq

from examples.gold_world import models, scores, world
from seamcurate import Store, to_trl
from seamcurate.errors import BusyError
from seamcurate.storage.shard import replace

SELECTION = ("full", "random", "perplexity", "rip", "seam", "seam_written", "seam_adv", "seam_shuffled")
AUGMENTATION = ("full", "augment_random", "augment_all", "augment_seam")
RATE = 0.2
Found = TypeVar("Found")


class Preset(NamedTuple):
    """Sizes; ranks of policies and reward models go from the worst, 0, to the best."""

    sft_steps: tuple[int, ...]
    pairs: tuple[int, ...]
    seeds: int
    """Repetitions of selection: pairs, reward model, SEAM, random draws and PPO are new in each."""
    grid_seeds: int
    """Repetitions of what takes every rank: mismatch, overlap, saturation."""
    more_seeds: int
    """Repetitions of augmentation and of the filter rates."""
    rates: tuple[float, ...]
    ppo_steps: int
    hidden: int = 96
    sft_rows: int = 18_000
    corpus_rows: int = 3_000
    rl_rows: int = 500
    test_rows: int = 400


PRESETS = {
    "tiny": Preset((2, 4), (16, 32), 1, 1, 1, (0.2,), 2, 16, 200, 150, 24, 16),
    "quick": Preset((150, 400, 900), (250, 1000, 4000), 4, 1, 2, (0.2, 0.4, 0.8), 40),
    "full": Preset(
        (0, 50, 100, 250, 500, 800, 1200, 2000, 4000, 8000),
        (0, 50, 100, 250, 500, 1000, 2000, 4000, 8000, 16000),
        10,
        5,
        5,
        (0.1, 0.2, 0.3, 0.4, 0.6, 0.8),
        200,
        sft_rows=100_000,
        corpus_rows=10_000,
        rl_rows=2_000,
        test_rows=1_000,
    ),
}
"""`tiny` is for tests: nothing learns."""


class Cell(NamedTuple):
    """One thing to measure; PPO's are shared by the studies that name the same one."""

    measure: str
    """`mismatch`, `overlap`, `likelihood`, `sanity` or `ppo`."""
    seed: int
    policy: int
    reward: int
    method: str = ""
    rate: float = RATE

    @property
    def file(self) -> str:
        """Name its file."""
        return f"{self.measure}-s{self.seed}-p{self.policy}-r{self.reward}-{self.method}-{self.rate:g}.json"


def plan(preset: Preset) -> dict[str, list[Cell]]:
    """Return the cells of each study."""
    best, top = len(preset.sft_steps) - 1, len(preset.pairs) - 1
    grid = list(itertools.product(range(best + 1), range(top + 1)))

    def ppo(seed: int, method: str, rate: float = RATE) -> Cell:
        return Cell("ppo", seed, best, top, method, rate)

    return {
        "mismatch": [Cell("mismatch", s, best, r) for s in range(preset.grid_seeds) for r in range(top + 1)],
        "overlap": [Cell("overlap", s, p, r) for s in range(preset.grid_seeds) for p, r in _pairs(preset)],
        "selection": [ppo(s, method) for s in range(preset.seeds) for method in SELECTION],
        "augmentation": [ppo(s, method) for s in range(preset.more_seeds) for method in AUGMENTATION],
        "filter_rate": [
            cell
            for s in range(preset.more_seeds)
            for cell in [ppo(s, "full"), *(ppo(s, m, rate) for rate in preset.rates for m in ("random", "seam"))]
        ],
        "likelihood": [Cell("likelihood", 0, best, top)],
        "sanity": [Cell("sanity", s, best, top) for s in range(preset.seeds)],
        "saturation": [Cell("ppo", s, p, r, "full") for s in range(preset.grid_seeds) for p, r in grid],
    }


def _pairs(preset: Preset) -> list[tuple[int, int]]:
    """Return the model pairs of equal rank whose lowest rows are compared, as ranks of a first and a second pair."""
    return list(itertools.combinations(range(min(len(preset.sft_steps), len(preset.pairs))), 2))


def in_order(preset: Preset) -> list[Cell]:
    """Return all cells, each once: selection for every seed, then the other studies, whole seeds first."""
    studies = plan(preset)
    rest = sorted((cell for cells in studies.values() for cell in cells), key=lambda cell: cell.seed)
    return list(dict.fromkeys([*studies["selection"], *rest]))


class Experiment:
    """A folder of data, models, stores and cells, each made when it is first needed."""

    def __init__(self, out: Path, preset: Preset) -> None:
        self.out, self.preset = out, preset
        kept = out / "preset.json"
        sizes = json.loads(json.dumps(preset._asdict()))
        if kept.exists() and json.loads(kept.read_text()) != sizes:
            raise SystemExit(f"{out} holds an experiment of other sizes; give another --out, or delete it")
        out.mkdir(parents=True, exist_ok=True)
        replace(kept, json.dumps(sizes).encode())

    def run(self, until: float = float("inf")) -> int:
        """Measure what is missing until a time of `time.monotonic`, and write the tables; return how many cells are left."""
        self.measure(until)
        self.tables()
        return self.left()

    def measure(self, until: float = float("inf")) -> None:
        """Measure what is missing and no other process has begun, until a time of `time.monotonic`."""
        for name, make in self._tasks():
            if time.monotonic() > until:
                break
            with self._alone(f"task {name}", wait=False) as mine:
                if mine:
                    make()

    def left(self) -> int:
        """Return how many cells are not measured."""
        return sum(not self._file(cell).exists() for cell in in_order(self.preset))

    def _tasks(self) -> Iterator[tuple[str, Callable[[], object]]]:
        """Yield what two processes can do at a time, what most waits for first: models, stores, then the cells in order.

        What several cells share is a task of its own before them, so that no process waits while another makes it.
        """
        best, top = len(self.preset.sft_steps) - 1, len(self.preset.pairs) - 1
        if self.left():
            yield from ((f"policy-{rank}", partial(self.policy, rank)) for rank in range(best, -1, -1))
            yield "corpus", self.corpus
            yield from ((f"reward-{seed}", partial(self.reward, top, seed)) for seed in range(self.preset.seeds))
            yield from self._stores([(best, top, seed) for seed in range(self.preset.seeds)])
        for cell in in_order(self.preset):
            if cell.measure == "overlap" and not self._file(cell).exists():
                yield from self._stores([(rank, rank, cell.seed) for rank in (cell.policy, cell.reward)])
            yield cell.file, partial(self._finish, cell)

    def _stores(self, models: Iterable[tuple[int, int, int]]) -> Iterator[tuple[str, Callable[[], object]]]:
        return ((f"store-{'-'.join(map(str, each))}", partial(self.store, *each)) for each in models)

    def _finish(self, cell: Cell) -> None:
        """Measure a cell and write it down, unless it is there."""
        if self._file(cell).exists():
            return
        start = time.monotonic(), time.process_time()
        result = self._measure(cell)
        self._file(cell).parent.mkdir(exist_ok=True)
        result["seconds"], result["cpu"] = (
            round(now - then, 2) for now, then in zip((time.monotonic(), time.process_time()), start, strict=True)
        )
        replace(self._file(cell), json.dumps(result).encode())

    @contextmanager
    def _alone(self, name: str, wait: bool = True) -> Iterator[bool]:
        """Hold the lock of a thing that is made once; without waiting, say whether it was free."""
        (self.out / "locks").mkdir(exist_ok=True)
        with (self.out / "locks" / name).open("w") as lock:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
            except BlockingIOError:
                yield False
            else:
                yield True

    def tables(self) -> None:
        """Write what is measured so far: tables/<study>.csv, a line per repetition."""
        for study, cells in plan(self.preset).items():
            rows = [row for cell in cells for row in _rows(study, cell, self.result(cell))]
            if rows:
                file = self.out / "tables" / f"{study}.csv"
                file.parent.mkdir(exist_ok=True)
                with file.open("w", newline="", encoding="utf-8") as lines:
                    writer = csv.DictWriter(lines, list(rows[0]))
                    writer.writeheader()
                    writer.writerows(rows)

    def result(self, cell: Cell) -> dict[str, Any] | None:
        """Return what a cell came to, None before."""
        file = self._file(cell)
        found: dict[str, Any] | None = json.loads(file.read_text()) if file.exists() else None
        return found

    def _file(self, cell: Cell) -> Path:
        return self.out / "cells" / cell.file

    def _measure(self, cell: Cell) -> dict[str, Any]:
        if cell.measure == "mismatch":
            return self._mismatch(cell)
        if cell.measure == "overlap":
            a, b = (scores.lowest(self.store(rank, rank, cell.seed)) for rank in (cell.policy, cell.reward))
            counts = {
                "rows": self.preset.rl_rows,
                "lowest_first": len(a),
                "lowest_second": len(b),
                "shared": len(a & b),
            }
            fewer = min(len(a), len(b))
            return {**counts, "lowest": fewer, "overlap": len(a & b) / max(1, fewer)}
        policy, reward = self.policy(cell.policy), self.reward(cell.reward, cell.seed)
        if cell.measure == "likelihood":
            return {"scored": scores.likelihoods(self.store(cell.policy, cell.reward, cell.seed), policy)}
        if cell.measure == "sanity":
            return {"rated": self._sanity(policy, reward, cell.seed)}
        if cell.method.startswith("augment"):
            policy, reward = self._augmented(cell)
            split = "full"
        else:
            split = "full" if cell.method == "full" else f"{cell.method}_{round(cell.rate * 100)}"
        data = self.out / "prompts" / f"{cell.policy}-{cell.reward}-{cell.seed}-{split}"
        if split == "full":
            data = models.write(self.records("rl"), self.out / "data" / "rl.parquet")
        else:
            store = self.store(cell.policy, cell.reward, cell.seed)
            with self._alone(f"prompts {data.name}"):
                if not data.exists():
                    to_trl(store, split, data)
        values = models.aligned_quality(policy, reward, data, self.records("test"), self.preset.ppo_steps, cell.seed)
        return {"quality": statistics.fmean(values)}

    def _mismatch(self, cell: Cell) -> dict[str, Any]:
        """Compare the reward model with the truth on answers of the two best policies, where these are not as good."""
        judged = models.judge(self.reward(cell.reward, cell.seed))
        records = self.records("test")
        prompts = [record["prompt"] for record in records]
        answers = [models.respond(self.policy(cell.policy - i), prompts, sample=True, seed=i) for i in (0, 1)]
        rewards = [judged(prompts=prompts, completions=given) for given in answers]
        truth = [[world.quality(r, a) for r, a in zip(records, given, strict=True)] for given in answers]
        compared = [
            {"prompt_id": i, "human": int(t[0] > t[1]), "model": int(r[0] > r[1])}
            for i, (t, r) in enumerate(zip(zip(*truth, strict=True), zip(*rewards, strict=True), strict=True))
            if t[0] != t[1]
        ]
        return {"compared": compared}

    def _sanity(self, policy: Path, reward: Path, seed: int) -> list[dict[str, Any]]:
        """Rate the policy by its answers' quality, the reward model by how often it prefers golden to a worse answer.

        Each on instructions it has not seen: drawn as those of SFT, as those of the preferences, and those of RL.
        """
        parts = {
            "sft": self.records("test"),
            "preference": world.preferred(self.preset.test_rows, seed),
            "rl": self.records("rl"),
        }
        judged, rated = models.judge(reward), []
        for data, records in parts.items():
            prompts = [record["prompt"] for record in records]
            worse = [world.worse(record, 1, random.Random(record["prompt"]))[0] for record in records]
            golden, other = (
                judged(prompts=prompts, completions=some) for some in ([r["response"] for r in records], worse)
            )
            right = [float(a > b) for a, b in zip(golden, other, strict=True) if a is not None and b is not None]
            for model, values in (("policy", models.quality(policy, records)), ("reward", right)):
                rated.append({"model": model, "data": data, "quality": statistics.fmean(values)})
        return rated

    def _augmented(self, cell: Cell) -> tuple[Path, Path]:
        """Train policy and reward model on, or anew with, the pairs of App. G."""
        name = f"{cell.method}-{cell.seed}"
        pairs = scores.augmented(self.store(cell.policy, cell.reward, cell.seed), cell.method.removeprefix("augment_"))
        answers = [{"prompt": pair["other"], "response": pair["rejected"]} for pair in pairs]
        liked = [{key: pair[key] for key in ("prompt", "chosen", "rejected")} for pair in pairs]
        policy, reward = self.out / "models" / f"policy-{name}", self.out / "models" / f"reward-{name}"
        with self._alone(name):
            if not policy.exists():
                file = models.write(answers, self.out / "data" / f"{name}-sft.parquet")
                models.make_policy(self.policy(cell.policy), file, policy, len(answers) // models.BATCH + 1)
            if not reward.exists():
                known = world.preferences(self.preset.pairs[cell.reward], cell.seed)
                file = models.write([*known, *liked], self.out / "data" / f"{name}-pairs.parquet")
                best = self.policy(len(self.preset.sft_steps) - 1)
                models.make_reward(best, file, reward, self._test_pairs(), cell.seed)
        return policy, reward

    def records(self, part: str) -> list[world.Record]:
        """Return the instructions of one part: no two parts share one, but that the corpus is of the SFT data."""
        p = self.preset
        ends = {"test": (0, p.test_rows), "rl": (p.test_rows, p.test_rows + p.rl_rows)}
        start = p.test_rows + p.rl_rows
        ends |= {"sft": (start, start + p.sft_rows), "corpus": (start, start + p.corpus_rows)}
        file = self.out / "data" / "all.parquet"
        with self._alone("records"):
            if not file.exists():
                models.write(world.records(start + p.sft_rows, 0), file)
        first, last = ends[part]
        found: list[world.Record] = pq.read_table(file).slice(first, last - first).to_pylist()
        return found

    def policy(self, rank: int) -> Path:
        """Return the policy of one SFT budget."""
        start, steps = self.out / "models" / "start", self.preset.sft_steps[rank]
        with self._alone("start"):
            if not (start / "tokenizer_config.json").exists():
                world.untrained(start, self.preset.hidden, 2)
        folder = self.out / "models" / f"policy-{rank}"
        with self._alone(folder.name):
            if steps and not folder.exists():
                corpus = models.write(self.records("sft"), self.out / "data" / "sft.parquet")
                models.make_policy(start, corpus, folder, steps)
        return folder if steps else start

    def reward(self, rank: int, seed: int) -> Path:
        """Return the reward model of one number of pairs, trained from the best policy."""
        folder = self.out / "models" / f"reward-{rank}-{seed}"
        best = self.policy(len(self.preset.sft_steps) - 1)
        with self._alone(folder.name):
            if not folder.exists():
                count = self.preset.pairs[rank]
                pairs = models.write(
                    world.preferences(max(count, 2), seed), self.out / "data" / f"pairs-{rank}-{seed}.parquet"
                )
                models.make_reward(best, pairs, folder, self._test_pairs(), seed, untrained=not count)
        return folder

    def _test_pairs(self) -> Path:
        return models.write(world.preferences(500, -1), self.out / "data" / "pairs-test.parquet")

    def store(self, policy: int, reward: int, seed: int) -> Store:
        """Return the store of one pair of models, scored and split."""
        rows = models.write(self.records("rl"), self.out / "data" / "rl.parquet")
        words = models.write(world.synonyms(), self.out / "data" / "synonyms.parquet")
        answers, judges, base = self.policy(policy), self.reward(reward, seed), self.policy(0)
        folder, data = self.out / "stores" / f"{policy}-{reward}-{seed}", (rows, self.corpus(), words)
        with self._alone(folder.name):
            return _when_free(scores.score, folder, data, answers, judges, base, self.preset.rates, seed)

    def corpus(self) -> Path:
        """Return the store of what is retrieved from, embedded."""
        folder = self.out / "corpus"
        with self._alone(folder.name):
            corpus = models.write(self.records("corpus"), self.out / "data" / "corpus.parquet")
            _when_free(scores.embed_corpus, corpus, folder)
        return folder


def _when_free(work: Callable[..., Found], *given: object) -> Found:
    """Run a recipe once no other run holds the corpus' store, as each does while it looks whether all embeddings are there."""
    while True:
        try:
            return work(*given)
        except BusyError:
            time.sleep(0.1)


def _rows(study: str, cell: Cell, result: Mapping[str, Any] | None) -> Iterator[dict[str, object]]:
    """Yield a cell's lines in its study's table."""
    if result is None:
        return
    if study == "mismatch":
        yield from ({"reward": f"{cell.reward}-{cell.seed}", **pair} for pair in result["compared"])
    elif study == "likelihood":
        yield from result["scored"]
    elif study == "sanity":
        yield from ({"seed": cell.seed, **rated} for rated in result["rated"])
    elif study == "overlap":
        pairs = {"first": cell.policy, "second": cell.reward, "seed": cell.seed}
        yield {**pairs, **{name: value for name, value in result.items() if name not in ("seconds", "cpu")}}
    elif study == "augmentation" and cell.method == "full":
        yield {"method": "none", "seed": cell.seed, "quality": result["quality"]}
    elif study == "saturation":
        yield {"policy": cell.policy, "reward": cell.reward, "seed": cell.seed, "quality": result["quality"]}
    elif study == "filter_rate":
        both = ("random", "seam") if cell.method == "full" else (cell.method,)
        rate = 0.0 if cell.method == "full" else cell.rate
        yield from ({"method": m, "rate": rate, "seed": cell.seed, "quality": result["quality"]} for m in both)
    else:
        yield {"method": cell.method, "seed": cell.seed, "quality": result["quality"]}


def main() -> None:
    """Run a preset, for so many minutes at most, and say what is left."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--preset", choices=PRESETS, default="quick")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--minutes", type=float, default=float("inf"), help="begin no cell after so long")
    parser.add_argument("--workers", type=int, default=1, help="processes, a core each")
    given = parser.parse_args()
    preset, until = PRESETS[given.preset], time.monotonic() + 60 * given.minutes
    experiment = Experiment(given.out, preset)
    if given.workers > 1:
        # Read by the libraries of a new process when they are imported.
        os.environ["OMP_NUM_THREADS"] = "1"
    fresh = multiprocessing.get_context("spawn")
    others = [fresh.Process(target=_work, args=(given.out, preset, until)) for _ in range(given.workers - 1)]
    for other in others:
        other.start()
    _work(given.out, preset, until)
    for other in others:
        other.join()
    experiment.tables()
    if any(other.exitcode for other in others):
        raise SystemExit("a process failed, see above; run the same command again to go on")
    left, total = experiment.left(), len(in_order(preset))
    print(f"{total - left} of {total} cells measured; tables in {given.out / 'tables'}")
    if left:
        print("run the same command again to go on")


def _work(out: Path, preset: Preset, until: float) -> None:
    Experiment(out, preset).measure(until)


if __name__ == "__main__":
    main()
