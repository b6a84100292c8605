"""The golden check: how many golden responses rank below most of the policy's own samples.

SEAM holds every answer against the golden response. Where that is wrong, or no better than what the policy says by itself,
SEAM finds misjudged prompts less often.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Literal, NamedTuple, TypeAlias

import numpy as np
import numpy.typing as npt
from pydantic import JsonValue

from seamcurate.text import counted

FACT = "golden_below"
"""The key of the check among a step's facts."""
MOST_BELOW = 0.2
"""The share of golden responses below the policy's samples above which SEAM is warned of."""
Judge: TypeAlias = Literal["reward", "truth"]


class Check(NamedTuple):
    """How many golden responses rank below most of their row's samples."""

    by: Judge
    """Who ranks: the reward model, or the second opinion."""
    column: str
    """The column with the share of a row's samples that score above the golden response."""
    rows: int
    below: int

    @property
    def share(self) -> float:
        """Return the share of rows whose golden response ranks below; 0 without rows."""
        return self.below / max(1, self.rows)


def facts(by: Judge, column: str, above: Iterable[npt.NDArray[np.float64]]) -> dict[str, JsonValue]:
    """Count the rows whose golden response scores below more than half of the samples, for a step's facts.

    Args:
        by: Who ranks.
        column: The column's name.
        above: Its values, the share of a row's samples above the golden response; NaN where there is nothing to compare.
    """
    rows = below = 0
    for shares in above:
        rows, below = rows + int((~np.isnan(shares)).sum()), below + int((shares > 0.5).sum())
    return {FACT: {"by": by, "column": column, "rows": rows, "below": below}} if rows else {}


def found(steps: Iterable[Mapping[str, JsonValue]]) -> Check | None:
    """Return the check of a store from its steps' facts: by the second opinion, where there is one, else by the reward.

    A reward that is wrong about samples ranks golden responses below them, too: it cannot tell which of the two is wrong.
    """
    checks = [Check(**value) for facts in steps if isinstance(value := facts.get(FACT), dict)]  # type: ignore[arg-type]
    return max(checks, key=lambda check: (check.by == "truth", check.rows), default=None)


def warning(check: Check | None) -> str | None:
    """Say that golden responses are doubtful, in one line; None where they are not."""
    if check is None or check.share <= MOST_BELOW:
        return None
    whose = "a second opinion" if check.by == "truth" else "the reward itself, which may be what is wrong"
    return (
        f"{check.share:.0%} of {counted(check.rows, 'golden response')} rank below most of the policy's own samples, by "
        f"{whose}. SEAM compares with golden responses: in the gold world the AUC of seam_contrast fell from .73 to .68 "
        f"with 20 % of them wrong and to .61 with half, that of seam_policy from .79 to .69 and .58; see SELECT row_id FROM rows WHERE {check.column} > 0.5"
    )
