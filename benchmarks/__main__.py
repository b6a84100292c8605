"""Run races: `python -m benchmarks NAME… [--scale S]`; one line of JSON a comparison on standard output."""

from __future__ import annotations

import argparse
import os
from importlib import import_module

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")

NAMES = (
    "likelihood",
    "seam",
    "rewards",
    "rollouts",
    "servers",
    "retrieval",
    "text",
    "split",
    "contamination",
    "overhead",
    "memory",
    "attack",
    "ppo",
    "soak",
    "scaling",
)


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    parser.add_argument("names", nargs="+", choices=NAMES, metavar="NAME", help=", ".join(NAMES))
    parser.add_argument("--scale", type=float, default=1.0, help="a share of the full size, to try things out")
    asked = parser.parse_args()
    from transformers.utils import logging

    logging.disable_progress_bar()
    for name in asked.names:
        import_module(f"benchmarks.{name}").main(asked.scale)


if __name__ == "__main__":
    main()
