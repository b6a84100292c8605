"""A run beside a process that keeps every core busy, against the same run on half the cores: `python -m benchmarks neighbour`.

Half of a machine is the run's fair share then. What it takes more is lost to threads that wait for each other.
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
from typing import Any

from benchmarks import inputs

_WAYS = ("half the cores", "beside a neighbour", "beside a neighbour, spinning", "beside a neighbour, --threads half")


def main(scale: float) -> None:
    """Print what each way takes: wall and CPU seconds of the run's process, the middle of three."""
    cores = len(os.sched_getaffinity(0))
    half = max(1, cores // 2)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        _write(folder, max(4, round(48 * scale)))
        taken: dict[str, list[dict[str, float]]] = {way: [] for way in _WAYS}
        for _ in range(3):
            for way in _WAYS:
                taken[way].append(_run(folder, way, half, cores))
    middle = {way: sorted(times, key=lambda one: one["wall_s"])[1] for way, times in taken.items()}
    base = middle[_WAYS[0]]
    for way, one in middle.items():
        ratios = {f"{key[:-2]}_ratio": round(one[key] / base[key], 2) for key in one}
        print(json.dumps({"benchmark": "neighbour", "way": way, "cores": cores, **one, **ratios}), flush=True)


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
    """Do the run, and print what it took; models are loaded before."""
    from seamcurate import CausalLM, Models, Recipe, SequenceClassifier, Source, run_local, seam
    from seamcurate import threads as limits

    if threads:
        limits.limit(int(threads))
    policy = CausalLM(path=f"{folder}/policy", dtype="float32", device="cpu")
    reward = SequenceClassifier(path=f"{folder}/reward", dtype="float32", device="cpu")
    policy.load()
    source = Source(parquet=f"{folder}/rows.parquet")
    recipe = Recipe(rows=source, models=Models(policy=policy, reward=reward), steps=seam("contrast"))
    with tempfile.TemporaryDirectory() as store:
        wall, cpu = time.monotonic(), _cpu()
        run_local(recipe, store)
        print(json.dumps({"wall_s": round(time.monotonic() - wall, 2), "cpu_s": round(_cpu() - cpu, 2)}))


def _cpu() -> float:
    used = resource.getrusage(resource.RUSAGE_SELF)
    return used.ru_utime + used.ru_stime


def _run(folder: Path, way: str, half: int, cores: int) -> dict[str, float]:
    # The benchmarks' own limit of threads is taken away.
    environment = {name: value for name, value in os.environ.items() if not name.endswith("_THREADS")}
    environment["OMP_WAIT_POLICY"] = "ACTIVE" if "spinning" in way else "PASSIVE"
    threads = str(half) if "half" in way else ""
    neighbours = [multiprocessing.Process(target=_busy, daemon=True) for _ in range(cores if "neighbour" in way else 0)]
    for neighbour in neighbours:
        neighbour.start()
    try:
        code = "from benchmarks import neighbour; import sys; neighbour.work(*sys.argv[1:])"
        command = [sys.executable, "-c", code, str(folder), threads]
        done = subprocess.run(command, env=environment, stdout=subprocess.PIPE, check=True, text=True)
    finally:
        for neighbour in neighbours:
            neighbour.kill()
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return found


def _busy() -> None:
    while True:
        pass
