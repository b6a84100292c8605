"""A run beside a process that keeps every core busy, against the same run on half the cores: `python -m benchmarks neighbour`.

Half of a machine is the run's fair share then. What it takes more is lost to threads that wait for each other. Both are held to
the first two cores that there are, so that machines of any size do the same.
"""

from __future__ import annotations

import json
import multiprocessing
import os
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from benchmarks import inputs

_WAYS = ("half the cores", "beside a neighbour", "beside a neighbour, --threads half")
_SPINNING = "beside a neighbour, spinning"
"""Threads that wait by spinning take ten times as long: only beyond the full size, once."""
_TURNS = 3


def main(scale: float) -> None:
    """Print what each way takes: wall and CPU seconds of the run's process, the middle of three turns by the clock."""
    pinned = sorted(os.sched_getaffinity(0))[:2]
    os.sched_setaffinity(0, pinned)
    cores, half = len(pinned), max(1, len(pinned) // 2)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        _write(folder, max(4, round(12 * scale)))
        taken: dict[str, list[dict[str, float]]] = {way: [] for way in _WAYS}
        workers = {way: _start(folder, way, half) for way in _WAYS}
        try:
            for _ in range(_TURNS):
                for way, worker in workers.items():
                    taken[way].append(_turn(worker, way, cores))
        finally:
            for worker in workers.values():
                worker.kill()
                worker.communicate()
        if scale > 1:
            spinning = _start(folder, _SPINNING, half)
            try:
                taken[_SPINNING] = [_turn(spinning, _SPINNING, cores)]
            finally:
                spinning.kill()
                spinning.communicate()
    middle = {way: sorted(turns, key=lambda turn: turn["wall_s"])[len(turns) // 2] for way, turns in taken.items()}
    base = middle[_WAYS[0]]
    for way, turns in taken.items():
        ratios = {f"{key[:-2]}_ratio": round(middle[way][key] / base[key], 2) for key in base}
        # Of one turn, what was beside it is alike.
        each = [round(turn["wall_s"] / alone["wall_s"], 2) for turn, alone in zip(turns, taken[_WAYS[0]], strict=False)]
        told = {"cores": cores, "turns": len(turns), "load": round(os.getloadavg()[0], 1)}
        print(
            json.dumps({"benchmark": "neighbour", "way": way, **told, **middle[way], **ratios, "wall_ratios": each}),
            flush=True,
        )


def _write(folder: Path, rows: int) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    inputs.decoder(folder / "policy")
    inputs.decoder(folder / "reward", labels=1)
    prompts, answers = inputs.groups(rows, 9, 60, 60)
    sets = [[{"response": text} for text in some[1:]] for some in answers]
    table = pa.table({"prompt": prompts, "response": [some[0] for some in answers], "worse_contrast": sets})
    pq.write_table(table, folder / "rows.parquet")


def work(folder: str, threads: str) -> None:
    """Do a run for each line that is read, and print what it took; packages are imported before."""
    from seamcurate import CausalLM, Models, Recipe, SequenceClassifier, Source, run_local, seam
    from seamcurate import threads as limits

    if threads:
        limits.limit(int(threads))
    policy = CausalLM(path=f"{folder}/policy", dtype="float32", device="cpu")
    reward = SequenceClassifier(path=f"{folder}/reward", dtype="float32", device="cpu")
    policy.load()
    source = Source(parquet=f"{folder}/rows.parquet")
    recipe = Recipe(rows=source, models=Models(policy=policy, reward=reward), steps=seam("contrast"))
    print("ready", flush=True)
    for _ in sys.stdin:
        with tempfile.TemporaryDirectory() as store:
            wall, cpu = time.monotonic(), _cpu()
            run_local(recipe, store)
            print(
                json.dumps({"wall_s": round(time.monotonic() - wall, 2), "cpu_s": round(_cpu() - cpu, 2)}), flush=True
            )


def _cpu() -> float:
    used = resource.getrusage(resource.RUSAGE_SELF)
    return used.ru_utime + used.ru_stime


def _start(folder: Path, way: str, half: int) -> subprocess.Popen[str]:
    """Start a process that waits for its turns: to import packages takes twice as long as a run."""
    # The benchmarks' own limit of threads is taken away.
    environment = {name: value for name, value in os.environ.items() if not name.endswith("_THREADS")}
    environment["OMP_WAIT_POLICY"] = "ACTIVE" if "spinning" in way else "PASSIVE"
    code = "from benchmarks import neighbour; import sys; neighbour.work(*sys.argv[1:])"
    command = [sys.executable, "-c", code, str(folder), str(half) if "half" in way else ""]
    if way == _WAYS[0]:
        command = ["taskset", "--cpu-list", ",".join(map(str, sorted(os.sched_getaffinity(0))[:half])), *command]
    worker = subprocess.Popen(command, env=environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    _line(worker)
    return worker


def _turn(worker: subprocess.Popen[str], way: str, cores: int) -> dict[str, float]:
    neighbours = [multiprocessing.Process(target=_busy, daemon=True) for _ in range(cores if "neighbour" in way else 0)]
    for neighbour in neighbours:
        neighbour.start()
    try:
        assert worker.stdin is not None
        worker.stdin.write("\n")
        worker.stdin.flush()
        taken: dict[str, float] = json.loads(_line(worker))
    finally:
        for neighbour in neighbours:
            neighbour.kill()
    return taken


def _line(worker: subprocess.Popen[str]) -> str:
    """Return the next line of a worker that is a turn's; those that a run prints are passed over."""
    assert worker.stdout is not None
    for line in worker.stdout:
        if line.startswith(("ready", '{"wall_s"')):
            return line
    raise SystemExit("neighbour: a run failed; what it printed stands above")


def _busy() -> None:
    while True:
        pass
