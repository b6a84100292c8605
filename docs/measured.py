"""Write `seamcurate/score/measured.csv`, what each column was measured to find, from the files in docs/evidence/results.

`python docs/measured.py` says whether the file is what the results say; `--write` writes it.
"""

from __future__ import annotations

import csv
import io
import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

RESULTS = Path(__file__).parent / "evidence" / "results"
TABLE = Path(__file__).parents[1] / "seamcurate" / "score" / "measured.csv"
GOLD_WORLD = {
    "seam_policy": "seam_policy",
    "seam_gpt_geometric": "seam_gpt",
    "seam_contrast_geometric": "seam_contrast",
    "seam_adv_geometric": "seam_adv",
    **{f"misjudged_{variant}": f"misjudged_{variant}" for variant in ("policy", "gpt", "contrast")},
    **{f"margin_{variant}": f"baseline_reward_margin_{variant}" for variant in ("gpt", "contrast")},
    **{f"spread_{variant}": f"baseline_reward_spread_{variant}" for variant in ("gpt", "contrast")},
    **{
        f"rip_{measure}_{variant}": f"baseline_{name}_{variant}"
        for measure, name in (("reward", "rejected_reward"), ("length", "rejected_length"), ("gap", "reward_gap"))
        for variant in ("gpt", "contrast")
    },
    "golden_reward": "reward",
    "perplexity": "baseline_perplexity",
    "random": "baseline_random",
}
"""The columns of a store that those of the gold world stand for."""
PIECES = {"votes": "stackexchange", "verdicts": "human"}
"""The pieces of the measurement on real text, by the place."""
REWARD = "smol-800 uniform"
"""Its reward model that decides."""
VARIANTS = {"policy": "smol-800", "gpt": "smol-800 gpt", "adv": "smol-800 adv"}
"""Sample sets that were measured apart, on fewer rows, and the name of their table for the reward model that decides."""


def gold_world() -> Iterator[tuple[str, str, str, str, str]]:
    """Yield the rows of the largest preset of the gold world that has results."""
    files = [RESULTS / f"gold-world-{preset}-columns.csv" for preset in ("decisive", "quick")]
    with next(file for file in files if file.exists()).open(encoding="utf-8", newline="") as lines:
        for row in csv.DictReader(lines):
            if row["column"] in GOLD_WORLD and row["auc"]:
                yield GOLD_WORLD[row["column"]], "gold world", row["auc"], row["auc_low"], row["auc_high"]


def real_text() -> Iterator[tuple[str, str, str, str, str]]:
    """Yield the rows of the measurement on real text, as far as it was run."""
    for place, piece in PIECES.items():
        for row in _table(f"{piece}-all-smol", REWARD):
            if row["column"].startswith(("seam_", "misjudged_", "baseline_", "reward")) and row["auc"] is not None:
                yield row["column"], place, *(f"{row[name]:.4f}" for name in ("auc", "auc_low", "auc_high"))
        for variant, key in VARIANTS.items():
            for row in _table(f"{piece}-more-{variant}", key) or _table(f"{piece}-{variant}", key):
                if row["column"] in (f"seam_{variant}", f"misjudged_{variant}") and row["auc"] is not None:
                    yield row["column"], place, *(f"{row[name]:.4f}" for name in ("auc", "auc_low", "auc_high"))


def _table(piece: str, key: str) -> list[dict[str, Any]]:
    """Return a piece's table of one reward model; empty where the piece has not run."""
    file = RESULTS / "real-text" / f"{piece}.json"
    return json.loads(file.read_text(encoding="utf-8"))["validity"][key]["table"] if file.exists() else []


def made() -> str:
    """Return the file's text."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(["column", "place", "auc", "low", "high"])
    writer.writerows([*gold_world(), *real_text()])
    return text.getvalue()


if __name__ == "__main__":
    if "--write" in sys.argv[1:]:
        TABLE.write_text(made(), encoding="utf-8")
    elif TABLE.read_text(encoding="utf-8") != made():
        sys.exit(f"{TABLE.name} is not what the results say; run with --write")
