"""What a study is, one row of the table of studies, and what it returns: a table, a figure and a finding in words.

One rule: a study reads, measures, tabulates, draws and words in functions of their own; only measuring has arithmetic.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import pyarrow as pa
import pyarrow.parquet as pq

from seamcurate.step import column
from seamcurate.study.statistics import Interval
from seamcurate.text import one_line

if TYPE_CHECKING:
    from matplotlib.figure import Figure


class StudyResult(NamedTuple):
    """What a study found."""

    name: str
    """The study's name, which names its files."""
    table: pa.Table
    figure: Figure
    line: str
    """The finding: one sentence with its interval, and with the simple baselines that reach as much."""

    def save(self, out: Path) -> list[Path]:
        """Write NAME.parquet, NAME.png, NAME.svg and NAME.txt (the finding) into a folder; return their paths."""
        from seamcurate.study import figure

        out.mkdir(parents=True, exist_ok=True)
        paths = [out / f"{self.name}.{suffix}" for suffix in ("parquet", "png", "svg", "txt")]
        pq.write_table(self.table, paths[0])
        figure.save(self.figure, paths[1], paths[2])
        paths[3].write_text(one_line(self.line) + "\n", encoding="utf-8")
        return paths


class Study(NamedTuple):
    """A row of the table of studies; the command line, the docs and the tests read it."""

    name: str
    """What a user types."""
    meaning: str
    """What the study asks, in one line."""
    reads: str
    """Its sources: stores, or the columns of a table."""
    columns: Mapping[str, str]
    """Each column of its table and what it means; an interval adds NAME_low and NAME_high."""
    run: Callable[..., StudyResult]
    """Takes sources, and its options by name."""


def result(name: str, table: pa.Table, drawing: Figure, finding: str) -> StudyResult:
    """Return what a study found, its finding written into its figure too."""
    from seamcurate.study import figure

    return StudyResult(name, table, figure.captioned(drawing, finding), finding)


def tabulate(
    meanings: Mapping[str, str],
    columns: Mapping[str, Sequence[object]],
    intervals: Mapping[str, Sequence[Interval]] | None = None,
) -> pa.Table:
    """Make a study's table.

    Args:
        meanings: What each column means, which the Parquet file says of it.
        columns: Values by column.
        intervals: Intervals by name; each becomes NAME, NAME_low and NAME_high, NULL where there is none.
    """
    arrays = {name: (pa.array(values), meanings[name]) for name, values in columns.items()}
    # A column without any value keeps the type it has with some.
    arrays |= {
        name: (array.cast(pa.float64()), meaning)
        for name, (array, meaning) in arrays.items()
        if pa.types.is_null(array.type)
    }
    for name, values in (intervals or {}).items():
        arrays[name] = _doubles([i.estimate for i in values]), meanings[name]
        arrays[f"{name}_low"] = _doubles([i.low for i in values]), f"{meanings[name]}, the 95 % interval's low end"
        arrays[f"{name}_high"] = _doubles([i.high for i in values]), f"{meanings[name]}, the 95 % interval's high end"
    fields = [column(name, array.type, meaning) for name, (array, meaning) in arrays.items()]
    return pa.table([array for array, _ in arrays.values()], schema=pa.schema(fields))


def _doubles(values: Sequence[float]) -> pa.Array:
    return pa.array([None if math.isnan(value) else value for value in values], pa.float64())
