"""Run races: `python -m benchmarks NAME… | all [--quick]`; one line of JSON a peer on standard output, all of them in --out."""

from __future__ import annotations

import argparse
import datetime
import json
import os
import re
import time
import traceback
from importlib import import_module
from pathlib import Path
from typing import Any

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")

# Exports of made-up models are kept for the next run, and not among the user's own.
os.environ.setdefault("SEAMCURATE_CACHE", str(Path(__file__).parents[1] / ".benchmarks" / "cache"))

RESULTS = Path(__file__).with_name("results")
FORMAT = 1
ALL: dict[str, dict[str, Any]] = {
    "likelihood": {"scale": 0.3},
    "rewards": {"scale": 0.3},
    "embedding": {"scale": 0.1},
    "retrieval": {"scale": 1.0, "large": False},
    "split": {"scale": 0.1},
    "sql": {"scale": 0.1},
    "text": {"scale": 0.1},
    "rollouts": {"scale": 0.13},
    "seam": {"scale": 0.3},
    "contamination": {"scale": 0.05},
    "overhead": {"scale": 0.04},
}
"""The races of `all`, in its order, and how much of each `--quick` does."""
APART = {
    "servers": "the client of a server, not an engine; python -m benchmarks servers",
    "attack": 'needs an environment of its own; pip install -e ".[attack]"',
    "ppo": "needs an environment of its own; pip install -e . trl==1.12.0 accelerate peft tensorboard requests",
}
"""Races that `all` leaves out, and why."""
NAMES = (*ALL, *APART, "memory", "neighbour", "soak", "scaling")
QUICK_LIMIT_S = 10.0
"""CPU seconds after which a quick race begins no further turn."""
QUICK_ALL_S = 17 * 60.0
"""Seconds by the clock after which `all --quick` begins no further race."""


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    parser.add_argument("names", nargs="+", choices=("all", *NAMES), metavar="NAME", help=", ".join(("all", *NAMES)))
    parser.add_argument("--scale", type=float, default=1.0, help="a share of the full size, to try things out")
    parser.add_argument("--quick", action="store_true", help="small sizes and few turns: under 20 minutes for all")
    parser.add_argument("--threads", type=int, default=int(os.environ.get("OMP_NUM_THREADS", "1")), help="default: 1")
    parser.add_argument("--avx2", action="store_true", help="as on a processor that has AVX2 alone; see machine.py")
    parser.add_argument(
        "--out",
        type=Path,
        help="the file of results; it keeps the lines of other races. By default in benchmarks/results, for `all`",
    )
    asked = parser.parse_args()
    # Read by the libraries when they are imported.
    for name in (
        "OMP_NUM_THREADS",
        "MKL_NUM_THREADS",
        "OPENBLAS_NUM_THREADS",
        "POLARS_MAX_THREADS",
        "RAYON_NUM_THREADS",
    ):
        os.environ[name] = str(asked.threads)
    from benchmarks import machine

    if asked.avx2:
        machine.hold_to_avx2()
    import torch
    from transformers.utils import logging

    from benchmarks import processes, race

    torch.set_num_threads(asked.threads)
    logging.disable_progress_bar()
    if asked.quick:
        race.limit_s = QUICK_LIMIT_S
    whole = "all" in asked.names
    names = list(ALL) if whole else asked.names
    described = machine.describe()
    out = asked.out or (RESULTS / f"{_slug(described)}.json" if whole else None)
    earlier, runs = _earlier(out, described, names)
    start, cpu = time.monotonic(), time.process_time() + processes.children_s()
    if whole:
        for name, reason in APART.items():
            race.missing(name, "", reason)
    failed = False
    raced: list[str] = []
    for name in names:
        options = ALL.get(name, {"scale": 1.0}) if asked.quick else {"scale": asked.scale}
        if whole and asked.quick and time.monotonic() - start > QUICK_ALL_S:
            race.missing(name, "", f"the time of a quick run was over; python -m benchmarks {name} --quick")
        else:
            raced.append(name)
            try:
                import_module(f"benchmarks.{name}").main(**options)
            except (Exception, SystemExit) as error:
                if not whole:
                    raise
                # The other races still count; the table says that this one has no result.
                failed = True
                traceback.print_exc()
                race.record({"benchmark": name, "against": "", "failed": str(error).partition("\n")[0]})
        if out is not None:
            run = {
                "names": raced,
                "day": datetime.datetime.now(datetime.UTC).date().isoformat(),
                "quick": asked.quick,
                "scale": None if asked.quick else asked.scale,
                "seconds": round(time.monotonic() - start),
                "cpu_seconds": round(time.process_time() + processes.children_s() - cpu),
                "load": round(os.getloadavg()[0], 1),
            }
            found = {"format": FORMAT, "machine": described, "runs": [*runs, run], "results": earlier + race.lines}
            out.parent.mkdir(parents=True, exist_ok=True)
            out.write_text(json.dumps(found, indent=1, ensure_ascii=False) + "\n")
    raise SystemExit(1 if failed else 0)


def _earlier(
    out: Path | None, described: dict[str, Any], names: list[str]
) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """Return a file's lines of races that are not run now, and its runs.

    Raises:
        SystemExit: The file is another machine's.
    """
    if out is None or not out.exists():
        return [], []
    found = json.loads(out.read_text())
    for field in ("processor", "threads", "versions"):
        if found["machine"][field] != described[field]:
            raise SystemExit(f"{out}: its results are of other {field}; give another file to --out, or remove it")
    kept = [line for line in found["results"] if line["benchmark"] not in names]
    runs = [run for run in found["runs"] if not set(run["names"]) <= set(names)]
    return kept, runs


def _slug(described: dict[str, Any]) -> str:
    """Return a file's name for a machine, its processor and threads."""
    return re.sub(r"[^a-z0-9]+", "-", f"{described['processor']} {described['threads']} threads".lower()).strip("-")


if __name__ == "__main__":
    main()
