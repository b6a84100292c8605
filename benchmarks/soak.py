"""An hour of whole runs in two long-lived processes while things go wrong at random: nothing may grow or be left behind.

Each process makes store after store: rows and corpus, retrieval, rewards and likelihoods by small models, answers from
an endpoint on loopback that fails now and then, splits, SQL, exports. Before most of them goes on to its end, one fault: a second
process on the store is killed, Ctrl-C comes, the disk is full, a byte of a file flips. What is there at the end must be
what an undisturbed run gives. Not a race: it prints a line a run, and last what grew.
"""

from __future__ import annotations

import gc
import hashlib
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import threading
import time
import traceback
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

WORKERS = 2
ROWS, CORPUS = 48, 400
ALLOWED = 0.05
"""How much of its memory a process may gain after its warm-up."""
WARM_UP = 0.2
"""The share of the time that counts as warm-up."""
_JUDGED = 50
"""Samples after warm-up below which a line through them says nothing."""

Sample = dict[str, Any]


def recipe(folder: Path, url: str, index: str = "exact") -> Any:
    """Return a recipe of every kind of step over the inputs in a folder."""
    from seamcurate import (
        CausalLM,
        FakeModel,
        Generate,
        Models,
        OpenAIServer,
        Recipe,
        Retrieve,
        SequenceClassifier,
        Source,
        Split,
        rer,
        seam,
    )

    filters = Path(__file__).parents[1] / "recipes"
    server = OpenAIServer(path="soak", base_url=url, concurrency=4, timeout=10)
    return Recipe(
        rows=Source(parquet=str(folder / "rows.parquet"), shard_rows=16),
        corpus=Source(parquet=str(folder / "corpus.parquet"), shard_rows=200),
        models=Models(
            policy=CausalLM(path=str(folder / "policy"), dtype="float32", device="cpu"),
            reward=SequenceClassifier(path=str(folder / "reward"), dtype="float32", device="cpu"),
            encoder=FakeModel(),
        ),
        steps=(
            # So much effort finds all: both indices give the same columns.
            Retrieve(k=4, band=(0.3, 0.95), index=index, effort=10_000),
            *seam("contrast", k=4),
            Generate(k=3, generator=server),
            *rer(fit="quantiles"),
        ),
        splits={"train": Split(filter=(filters / "keep_above_lowest.sql").read_text(), by="seam_contrast", rate=0.2)},
    )


def once(folder: Path, store: Path, url: str, index: str) -> None:
    """Make a store whole; a process of its own does this when it is to be killed."""
    from seamcurate import run_local

    run_local(recipe(folder, url, index), store)


def answer(store: Path, out: Path) -> str:
    """Query and export a finished store; returns the hash of all its columns and of what was exported."""
    from seamcurate import Store, query, to_trl

    found = query(Store(store), "SELECT * FROM rows ORDER BY row_id").to_pylist()
    query(Store(store), "SELECT variant, count(*), avg(reward), max(response) FROM candidates GROUP BY ALL")
    query(Store(store), "SELECT split, rule, count(*) FROM ledger GROUP BY ALL")
    to_trl(Store(store), "train", out)
    exported = [pq.read_table(file).to_pylist() for file in sorted(out.glob("*.parquet"))]
    return hashlib.sha256(json.dumps([found, exported], default=str).encode()).hexdigest()[:16]


# What goes wrong. Each takes what makes the store, and leaves that to be done once more.


class Faults:
    """The faults of one process, and chance."""

    def __init__(self, folder: Path, worker: Path, url: str, seed: int) -> None:
        self.folder, self.worker, self.url, self.draw = folder, worker, url, random.Random(seed)
        self.usual = 1.0
        """Seconds that an undisturbed run takes."""

    def names(self) -> list[str]:
        """Name the faults; a disk of its own needs the right to mount one."""
        with suppress(OSError, subprocess.CalledProcessError), self._disk():
            return ["none", "interrupt", "kill", "corrupt", "disk"]
        return ["none", "interrupt", "kill", "corrupt"]

    def interrupt(self, store: Path, index: str) -> str:
        """Press Ctrl-C somewhere in a run."""
        signal.signal(signal.SIGALRM, lambda *_: signal.raise_signal(signal.SIGINT))
        try:
            signal.setitimer(signal.ITIMER_REAL, self.draw.uniform(0.01, self.usual))
            once(self.folder, store, self.url, index)
            signal.setitimer(signal.ITIMER_REAL, 0)
        except KeyboardInterrupt:
            return "interrupted"
        return "too late"

    def kill(self, store: Path, index: str) -> str:
        """Kill another process that works on the store."""
        code = "import seamcurate; from benchmarks import __main__, soak; soak.once(*map(soak.Path, soak.sys.argv[1:3]), *soak.sys.argv[3:])"
        command = [sys.executable, "-c", code, str(self.folder), str(store), self.url, index]
        with subprocess.Popen(command, stderr=subprocess.DEVNULL) as child:
            deadline = time.monotonic() + 60
            while not store.exists() and child.poll() is None and time.monotonic() < deadline:
                time.sleep(0.02)
            time.sleep(self.draw.uniform(0, self.usual))
            child.kill()
        return "killed" if child.returncode == -signal.SIGKILL else f"too late: {child.returncode}"

    def corrupt(self, store: Path, index: str) -> str:
        """Flip one byte of a finished file: reading must name it, and deleting it must be enough."""
        from seamcurate import Store, query
        from seamcurate.errors import DamagedError

        once(self.folder, store, self.url, index)
        file = self.draw.choice(sorted(store.glob("columns/*/[0-9]*.parquet")))
        content = bytearray(file.read_bytes())
        content[self.draw.randrange(len(content))] ^= 1 << self.draw.randrange(8)
        file.write_bytes(content)
        try:
            query(Store(store), "SELECT * FROM rows")
        except DamagedError as error:
            assert str(file) in str(error), error
            file.unlink()
            return "found"
        raise AssertionError(f"{file} was altered and nobody saw it")

    def disk(self, store: Path, index: str) -> str:
        """Fill the disk that the store lies on, then make room."""
        from seamcurate.errors import SeamcurateError

        with self._disk(self.draw.randrange(40, 700)) as small:
            try:
                once(self.folder, small / "store", self.url, index)
                return "room enough"
            except SeamcurateError as error:
                told = str(error)
            _run("mount", "-o", "remount,size=100m", str(small))
            once(self.folder, small / "store", self.url, index)
            shutil.copytree(small / "store", store)
        return f"full: {told}"

    @contextmanager
    def _disk(self, kilobytes: int = 64) -> Iterator[Path]:
        small = self.worker / "disk"
        small.mkdir()
        try:
            _run("mount", "-t", "tmpfs", "-o", f"size={kilobytes}k", "tmpfs", str(small))
            try:
                yield small
            finally:
                gc.collect()
                _run("umount", str(small))
        finally:
            small.rmdir()


def _run(*command: str) -> None:
    subprocess.run(command, check=True, capture_output=True)


def work(folder: Path, number: int, url: str, seconds: float) -> None:
    """Make stores until the time is over, a line of JSON each."""
    from seamcurate.storage import shard

    worker = folder / f"worker-{number}"
    temporary = worker / "tmp"
    temporary.mkdir(parents=True)
    # Whoever is started in the background is deaf to it.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    faults, start = Faults(folder, worker, url, number), time.monotonic()
    names, expected, run = faults.names(), "", 0
    while run == 0 or time.monotonic() - start < seconds:
        store, out = worker / f"store-{run}", worker / f"out-{run}"
        fault = "none" if run < 2 else faults.draw.choice(names)
        index = ("exact", "ivf")[run % 2]
        outcome, error = "", ""
        begun = time.monotonic()
        try:
            if fault != "none":
                outcome = getattr(faults, fault)(store, index)
            once(folder, store, url, index)
            got = answer(store, out)
            expected = expected or got
            assert got == expected, "the columns are not those of an undisturbed run"
            if fault == "none" and run:
                faults.usual = time.monotonic() - begun
        except BaseException:
            error = traceback.format_exc()[-3000:]
        left = [str(path.relative_to(worker)) for path in worker.rglob("*") if path.name.endswith(".tmp")]
        for made in (store, out):
            shutil.rmtree(made, ignore_errors=True)
        left += [path.name for path in [*worker.iterdir(), *temporary.iterdir()] if path != temporary]
        gc.collect()
        shard.give_back()
        at = round(time.monotonic() - start, 1) if run else 0.0
        line = {"benchmark": "soak", "worker": number, "run": run, "at": at}
        line |= {"fault": fault, "outcome": outcome[:200], "error": error, "left": left, **process()}
        print(json.dumps(line), flush=True)
        # The first run imports everything: time counts from its end.
        start = start if run else time.monotonic()
        run += 1


def process() -> Sample:
    """Return what this process holds: kilobytes of memory, descriptors, threads, children; and its CPU seconds."""
    memory = {
        words[0].rstrip(":").lower(): int(words[1])
        for words in map(str.split, Path("/proc/self/smaps_rollup").read_text().splitlines()[1:])
    }
    tasks = list(Path("/proc/self/task").iterdir())
    children = [pid for task in tasks for pid in (task / "children").read_text().split()]
    return {
        "rss_kb": memory["rss"],
        "pss_kb": memory["pss"],
        # Not the one that lists them.
        "fds": len(list(Path("/proc/self/fd").iterdir())) - 1,
        "threads": threading.active_count(),
        "native_threads": len(tasks),
        "children": len(children),
        "cpu_s": round(time.process_time(), 1),
    }


def growth(samples: Sequence[Sample], measure: str = "pss_kb") -> float:
    """Return what a line through a process's samples gains from the first to the last, as a share of where it starts."""
    at, held = (np.array([sample[name] for sample in samples], np.float64) for name in ("at", measure))
    slope, base = np.polyfit(at, held, 1)
    start = base + slope * at[0]
    return float(slope * (at[-1] - at[0]) / start)


def faulty(samples: Sequence[Sample], seconds: float) -> list[str]:
    """Say what is wrong in one process's samples: errors, what was left behind, what grew."""
    found = [f"run {s['run']}, fault {s['fault']}: {s['error'].splitlines()[-1]}" for s in samples if s["error"]]
    found += [f"run {s['run']}, fault {s['fault']} left {', '.join(s['left'])}" for s in samples if s["left"]]
    warm = [sample for sample in samples if sample["at"] > WARM_UP * seconds]
    before = [sample for sample in samples if sample["at"] <= WARM_UP * seconds]
    if not warm or not before:
        return [*found, "no run after the warm-up"]
    for name in ("fds", "threads", "native_threads", "children"):
        most, last = max(sample[name] for sample in before), warm[-1][name]
        # Arrow starts threads that read files when it needs one more, up to so many.
        most += pa.io_thread_count() if name == "native_threads" else 0
        if last > most:
            found.append(f"{last} {name} at the end, at most {most} were expected")
    if len(warm) >= _JUDGED and (gained := growth(warm)) > ALLOWED:
        found.append(f"{gained:.1%} more memory at the end than after the warm-up")
    return found


@contextmanager
def endpoint(chance: float) -> Iterator[tuple[str, Callable[[], Counter[str]]]]:
    """Serve answers that depend on the question alone, and faults to this share of requests; count them by kind."""
    from tests import endpoint as loopback

    draw = random.Random(0)
    told: Counter[str] = Counter()
    kinds = {
        "500": loopback.status(500, retry_after_ms="20"),
        "429": loopback.status(429, retry_after_ms="20"),
        "hang up": loopback.hang_up,
        "empty body": loopback.body(b""),
        "no completion": loopback.body({"choices": []}),
    }

    def fault() -> loopback.Fault | None:
        # What a server remembers is a test's, and an hour of it is much.
        at.requests.clear()
        at.headers.clear()
        at.paid.clear()
        told["answered"] += 1
        if draw.random() >= chance:
            return None
        kind = draw.choice(sorted(kinds))
        told[kind] += 1
        return kinds[kind]

    with loopback.serving() as at:
        at.chance = fault
        yield at.url, lambda: told


def write_inputs(folder: Path) -> None:
    """Write rows, a corpus and two small models."""
    from benchmarks import inputs

    some = [pair for pair in inputs.pairs() if len(pair[0]) < 300 and 10 < len(pair[1]) < 300][: ROWS + CORPUS]
    for name, part in (("rows", some[:ROWS]), ("corpus", some[ROWS:])):
        columns = [list(column) for column in zip(*part, strict=True)]
        halves = [response[: len(response) // 2] for response in columns[1]]
        pq.write_table(
            pa.table({"prompt": columns[0], "response": columns[1], "reference": halves}),
            folder / f"{name}.parquet",
        )
    inputs.decoder(folder / "policy", width=64, layers=2, tokens=2000)
    inputs.decoder(folder / "reward", labels=1, seed=1, width=64, layers=2, tokens=2000)


def main(scale: float) -> None:
    """Soak for `scale` hours; exits with an error when something grew, was left behind or came out otherwise."""
    seconds = 3600 * scale
    samples: list[list[Sample]] = [[] for _ in range(WORKERS)]
    with TemporaryDirectory() as name, endpoint(0.05) as (url, told):
        folder = Path(name)
        write_inputs(folder)
        code = (
            "import seamcurate; from benchmarks import __main__, soak; "
            "soak.work(soak.Path(soak.sys.argv[1]), int(soak.sys.argv[2]), soak.sys.argv[3], float(soak.sys.argv[4]))"
        )
        started = []
        for number in range(WORKERS):
            command = [sys.executable, "-c", code, str(folder), str(number), url, str(seconds)]
            own = os.environ | {"TMPDIR": str(folder / f"worker-{number}" / "tmp"), "OMP_NUM_THREADS": "1"}
            started.append(subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=own))
        try:
            readers = [
                threading.Thread(target=_collect, args=(one, into)) for one, into in zip(started, samples, strict=True)
            ]
            for reader in readers:
                reader.start()
            for reader in readers:
                reader.join()
        finally:
            for one in started:
                one.kill()
                one.wait()
        wrong = [f"worker {n}: {what}" for n, some in enumerate(samples) for what in faulty(some, seconds)]
        wrong += [f"worker {n} ended with {one.returncode}" for n, one in enumerate(started) if one.returncode]
    every = [sample for some in samples for sample in some]
    line = {
        "benchmark": "soak",
        "seconds": round(seconds),
        "runs": len(every),
        "faults": dict(Counter(f"{s['fault']}: {s['outcome'].split(':')[0]}".rstrip(": ") for s in every)),
        "endpoint": dict(told()),
        "processes": [_summary(some, seconds) for some in samples],
        "wrong": wrong,
    }
    print(json.dumps(line), flush=True)
    if wrong:
        raise SystemExit(f"soak: {len(wrong)} things are wrong, the first: {wrong[0]}")


def _summary(samples: Sequence[Sample], seconds: float) -> Sample:
    warm = [sample for sample in samples if sample["at"] > WARM_UP * seconds]
    if len(warm) < 2:
        return {}
    first, last = warm[0], warm[-1]
    held = {
        name: [first[name], last[name]] for name in ("rss_kb", "pss_kb", "fds", "threads", "native_threads", "children")
    }
    return {"runs": len(samples), "growth": round(growth(warm), 4), "cpu_s": last["cpu_s"], **held}


def _collect(process: subprocess.Popen[str], into: list[Sample]) -> None:
    assert process.stdout is not None
    for line in process.stdout:
        into.append(json.loads(line))
        print(line, end="", flush=True)
