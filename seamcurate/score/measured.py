"""What each column was measured to find: the prompts that a reward misjudges, where the truth is known and by people's votes.

One rule: no figure is typed. `measured.csv` is written by `python docs/measured.py` from the files of results in
`docs/evidence/results`, and a test holds them equal.
"""

from __future__ import annotations

import csv
import re
from collections.abc import Sequence
from functools import cache
from importlib.resources import files
from typing import NamedTuple

PLACES = {
    "gold world": "where the truth is known (small models, made-up tasks)",
    "votes": "by people's votes (Stack Exchange, a reward model right on 55 %)",
    "verdicts": "by people's verdicts (QA-Feedback and PandaLM, a reward model right on 54 %)",
}
"""Where columns were measured, and how a sentence says so."""


class Measured(NamedTuple):
    """One column's AUC for the prompts that a reward misjudges: .5 is chance."""

    column: str
    place: str
    """A key of PLACES."""
    auc: float
    low: float
    high: float
    """The interval at 95 %."""

    @property
    def doubt(self) -> str:
        """What must be said beside the figure; empty where the interval lies above .5."""
        return "" if self.low > 0.5 else "below chance" if self.high < 0.5 else "not told from chance"


def measured(column: str) -> list[Measured]:
    """Return what a column of a store was measured to find, nothing where it was not; `discrepancy_…` is `seam_…` turned.

    Example:
        >>> [found.place for found in measured("seam_contrast")][0]
        'gold world'
        >>> measured("my_own_score")
        []
    """
    return [figure for figure in every() if figure.column == re.sub("^discrepancy_", "seam_", column)]


def sentence(column: str, made_by: str) -> str:
    """Say what a column was measured to find; empty where it was not measured, or where the source has it.

    Args:
        column: Its name.
        made_by: The step that computed it; a source's `reward` is of another model than any that was measured.

    Example:
        >>> sentence("my_own_score", "own_step"), sentence("reward", "source")
        ('', '')
    """
    return "" if made_by == "source" else told(measured(column))


def told(figures: Sequence[Measured]) -> str:
    """Say what some measurements of one column come to."""
    if not figures:
        return ""
    parts = [
        f"{_decimal(figure.auc)} ({_decimal(figure.low)} to {_decimal(figure.high)}) {PLACES[figure.place]}"
        + (f", {figure.doubt}" if figure.doubt else "")
        for figure in figures
    ]
    return f"Measured as a sign of misjudged prompts, AUC (.5 is chance): {'; '.join(parts)}."


def _decimal(value: float) -> str:
    return f"{value:.2f}".removeprefix("0")


@cache
def every() -> list[Measured]:
    """Return every measurement."""
    lines = (files("seamcurate.score") / "measured.csv").read_text(encoding="utf-8").splitlines()
    return [
        Measured(row["column"], row["place"], *(float(row[name]) for name in ("auc", "low", "high")))
        for row in csv.DictReader(lines)
    ]
