"""Controls of a split: splits of the same size that know nothing of its score, to hold it against.

One rule: a control is an ordinary split. Its filter is SQL over the ledger of the split that it controls, so that it is
made, checked, exported and published as any other.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal, TypeAlias

Control: TypeAlias = Literal["random", "shuffled"]

MEANINGS: Mapping[Control, str] = {
    "random": "as many rows, at random",
    "shuffled": "the split's decisions, dealt out at random among the rows with a score; rows without one keep theirs",
}
NO_MEASURE = (
    "Here the score itself is shuffled, so that nothing of it is left. It is no measure of what a part of the score does: "
    "where only the rewards of SEAM are shuffled, the likelihoods alone still rank prompts."
)
"""What `shuffled` is not."""


def name(split: str, control: Control) -> str:
    """Return the name of a split's control."""
    return f"{split}-{control}"


def sql(control: Control, strata: int) -> str:
    """Write the filter of a control.

    Its parameters are `of`, the split; `score`, the column of a `shuffled` one; `within_0` …, columns of whose values the
    control has as many rows as the split; and `seed`.

    Args:
        control: The control.
        strata: How many columns `within_…` there are.
    """
    keys = [f"within_{i}" for i in range(strata)]
    columns = "".join(f", r.{{{key}}} AS {key}" for key in keys)
    partition = f"PARTITION BY {', '.join(keys)} " if keys else ""
    same = "".join(f" AND a.{key} IS NOT DISTINCT FROM b.{key}" for key in keys)
    of_each = f", of each {' and '.join('$' + key for key in keys)}" if keys else ""
    # md5, as DuckDB's hash() may differ between its versions.
    drawn = f"md5('{control} ' || $seed || ' ' || row_id), row_id"
    if control == "random":
        return f"""\
-- As many rows as another split keeps, at random{of_each}.
-- default seed = 0
WITH a AS (
  SELECT count(*) AS n{columns} FROM ledger AS l JOIN rows AS r ON r.row_id = l.row_id
  WHERE l.split = $of AND l.kept GROUP BY ALL
), b AS (
  SELECT *, row_number() OVER ({partition}ORDER BY {drawn}) AS place FROM (SELECT r.row_id{columns} FROM rows AS r)
)
SELECT b.row_id, b.place <= coalesce(a.n, 0) AS keep, 'control of ' || $of || ': as many rows at random' AS rule
FROM b LEFT JOIN a ON true{same}"""
    return f"""\
-- The decisions of another split, dealt out at random among the rows with a score{of_each}.
-- default seed = 0
WITH decided AS (
  SELECT l.row_id, l.kept, l.value, l.threshold, coalesce(isfinite(TRY_CAST(r.{{score}} AS DOUBLE)), false) AS scored{columns}
  FROM ledger AS l JOIN rows AS r ON r.row_id = l.row_id WHERE l.split = $of
), placed AS (
  SELECT *, row_number() OVER (PARTITION BY {", ".join(["scored", *keys])} ORDER BY row_id) AS place,
         row_number() OVER (PARTITION BY {", ".join(["scored", *keys])} ORDER BY {drawn}) AS drawn
  FROM decided
)
SELECT a.row_id, b.kept AS keep, b.value, b.threshold,
       'control of ' || $of || CASE WHEN a.scored THEN ': decided by the ' || $score || ' of another row'
                                    ELSE ': without ' || $score || ', decided as there' END AS rule
FROM placed AS a JOIN placed AS b
  ON a.scored = b.scored{same} AND a.place = CASE WHEN b.scored THEN b.drawn ELSE b.place END"""
