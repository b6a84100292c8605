"""A store as the explorer queries it: the views of `seamcurate.select.views`, and a copy of its scalar columns in memory.

One rule: every query is one SELECT with a limit of time and memory, and never blocks a run that fills the same store.
Charts read the table `scores`: reading Parquet again for each brush would be a hundred times slower. The table is ready
as soon as the files of its columns are verified; all other files are verified before a view is read.
"""

from __future__ import annotations

import math
import threading
from collections.abc import Iterable, Iterator, Mapping
from contextlib import closing, contextmanager
from typing import Literal, NamedTuple

import pyarrow as pa
from pydantic import JsonValue

from seamcurate.explore import splits
from seamcurate.explore.splits import SplitCut
from seamcurate.select import views
from seamcurate.sql.connection import Connection, EndedError, QueryResult, TooLargeError
from seamcurate.storage.objects import find
from seamcurate.store.folder import numbers
from seamcurate.store.store import Column, Store, sample_sets

SECONDS = 10.0
MEMORY = "4GB"
_BINS = 60
_SAMPLE = 20_000
_VALUES = 2_000
_TEXTS = ("prompt", "response", "reference")
_OWN = ("row_id", "_candidates", "_misjudged", "_length")
"""Columns that `scores` computes itself: a source's column of one of these names has no chart."""
_ORDER = ("seam_", "misjudged_", "reward", "discrepancy_", "candidates_", "rer", "query_type")


class Chart(NamedTuple):
    """A numeric column with the bins of its histogram."""

    column: Column
    present: int
    low: float
    high: float
    first: float
    """The lower edge of the first bin; smaller values are counted in it."""
    step: float
    bins: int
    worst: Literal["low", "high"] | None
    """Which end of the values is bad, where the column's meaning says so."""


class LabelColumn(NamedTuple):
    """A column of labels, which are short and repeat, with its values, the most frequent first."""

    column: Column
    values: list[tuple[str | None, int]]


class Session:
    """Open a store for the explorer; `refresh` reads what a run has added since.

    Raises:
        StoreError: There is no store.
        DamagedError: A shard is not the file that was written.
    """

    def __init__(
        self, store: Store, other: Store | None = None, seconds: float = SECONDS, memory: str = MEMORY
    ) -> None:
        self.store, self.other = store.open(), other.open() if other else None
        self._seconds, self._memory = seconds, memory
        self._opening, self._completing = threading.Lock(), threading.Lock()
        self._opened: _Opened | None = None

    def refresh(self) -> None:
        """Read the store's scalar columns again; the views are opened by the first query that needs them, or by `complete`."""
        with self._opening:
            self._opened = _open(self.store, self._memory)

    def complete(self) -> None:
        """Verify the other files of the store, and open its views."""
        self._complete()

    def changed(self) -> bool:
        """Tell whether shards, columns or splits were added since the store was last read."""
        return self._current().state != _state(self.store)

    @property
    def columns(self) -> list[Column]:
        """List the store's columns as they were when it was last read."""
        return self._current().columns

    @property
    def charts(self) -> list[Chart]:
        """List every numeric column that has a finite value, scores first."""
        return self._current().charts

    @property
    def groups(self) -> list[LabelColumn]:
        """List every column of labels."""
        return self._current().groups

    @property
    def cuts(self) -> list[SplitCut]:
        """List the cuts by which splits of the store were made, of columns that have a chart."""
        charted = {chart.column.name for chart in self.charts}
        return [cut for cut in self._current().cuts if cut.column in charted]

    @property
    def rows(self) -> int:
        """Return how many rows there are."""
        return self._current().rows

    @property
    def others(self) -> list[Chart]:
        """List the numeric columns of the other store, named `other.…`; `scores` has them once it is complete."""
        return self._complete().others

    def ask(self, sql: str, parameters: Mapping[str, JsonValue] | None = None) -> pa.Table:
        """Answer one SELECT over the views and `scores` as a table.

        Raises:
            QueryError: The text is not one SELECT, DuckDB cannot answer it, or it takes too long or too much memory.
        """
        return self._retried(sql, parameters, complete=True)

    def chart(self, sql: str, rows: int | None = None, size: int | None = None) -> pa.Table:
        """Answer one SELECT over `scores`, with at most so many rows and bytes; see `ask`. It need not wait for the views."""
        return self._retried(sql, None, complete=False, rows=rows, size=size)

    def _retried(
        self,
        sql: str,
        parameters: Mapping[str, JsonValue] | None,
        complete: bool,
        rows: int | None = None,
        size: int | None = None,
    ) -> pa.Table:
        """Answer as a table; where another query ended the engine meanwhile, ask a new engine once more."""
        for is_retry in (False, True):
            try:
                with self.cursor(complete=complete) as cursor:
                    return views.run(cursor, sql, parameters).read_all(rows, size)
            except EndedError as error:
                if is_retry or isinstance(error, TooLargeError):
                    raise
        raise AssertionError

    @contextmanager
    def reading(
        self, sql: str, parameters: Mapping[str, JsonValue] | None = None, seconds: float | None = None
    ) -> Iterator[QueryResult]:
        """Answer one SELECT as a stream that ends with the context; see `ask`."""
        with self.cursor(seconds) as cursor, closing(views.run(cursor, sql, parameters)) as answer:
            yield answer

    @contextmanager
    def cursor(self, seconds: float | None = None, complete: bool = True) -> Iterator[Connection]:
        """Yield a cursor that is stopped after so many seconds; unless `complete`, it may have `scores` only.

        Where a query does not stop by itself, its engine is killed, and the next query starts a new one.
        """
        limit = self._seconds if seconds is None else seconds
        hint = "ask for fewer rows or columns, or use `seamcurate sql`"
        opened = self._complete() if complete else self._current()
        cursor = opened.connection.cursor()
        try:
            with views.limited(cursor, limit, hint):
                yield cursor
        finally:
            if cursor.ended:
                with self._opening:
                    if self._opened is opened:
                        self._opened = None

    def _current(self) -> _Opened:
        if self._opened is None:
            with self._opening:
                if self._opened is None:
                    self._opened = _open(self.store, self._memory)
        return self._opened

    def _complete(self) -> _Opened:
        if (current := self._current()).complete:
            return current
        with self._completing:
            if (current := self._current()).complete:
                return current
            completed = _completed(current, self.store, self.other, self._memory)
            with self._opening:
                # A refresh meanwhile has read the store again: its result is newer, and stays.
                if self._opened is current:
                    self._opened = completed
            return completed


class _Opened(NamedTuple):
    connection: Connection
    state: list[tuple[str, str, int]]
    columns: list[Column]
    charts: list[Chart]
    groups: list[LabelColumn]
    rows: int
    others: list[Chart]
    cuts: list[SplitCut]
    complete: bool
    """Whether the views are open, too; until then the connection has `scores` only."""


def _state(store: Store) -> list[tuple[str, str, int]]:
    folders = {name: str(record.get("fingerprint")) for name, record in store.records().items()}
    columns = [(name, mark, len(numbers(store.path / "columns" / name))) for name, mark in folders.items()]
    splits = [(str(file), "", file.stat().st_mtime_ns) for file in find(store.path, "splits/*/*split.json")]
    return [("", store.rows_fingerprint, len(store.shards)), *columns, *splits]


def _open(store: Store, memory: str) -> _Opened:
    state, columns = _state(store), store.columns()
    kinds = {c.name: c.kind for c in columns if c.stale is None}
    numeric = numeric_columns(columns)
    texts = [c for c in columns if c.stale is None and c.name.lower() not in {*_TEXTS, *_OWN} and _is_label(c.kind)]
    sizes = _sizes(kinds, [c.name for c in numeric])
    sized = [c for c in columns if c.name in [f"worse_{v}" for v, size in sizes.items() if size.startswith("len(")]]
    connection = views.opened(store, [c.made_by for c in (*numeric, *texts, *sized)], memory)
    grouped = [c for c in texts if _repeats(connection, c.name)]
    # A stale split would say of today's columns what held of others: `run` makes it anew.
    split_labels, cuts = splits.labels(store)
    split_names = splits.names(split_labels.column_names)
    connection.execute(
        _scores(kinds, sizes, [c.name for c in numeric], [c.name for c in grouped], split_names), attached=split_labels
    )
    connection.execute("DROP VIEW rows")
    ((rows,),) = connection.execute("SELECT count(*) FROM scores").fetchall()
    charts = [chart for c in numeric if (chart := _chart(connection, c, rows))]
    split_columns = [
        Column(
            name, pa.string(), name, len(store.shards), len(store.shards), "kept, or dropped and by which rule", None
        )
        for name in split_names
    ]
    groups = [LabelColumn(c, _values(connection, c.name)) for c in (*split_columns, *grouped)]
    return _Opened(connection, state, columns, charts, groups, rows, [], cuts, False)


def _completed(opened: _Opened, store: Store, second: Store | None, memory: str) -> _Opened:
    """Open the views and a copy of `scores`, to which response lengths and the other store's columns are added."""
    connection = views.connect(store, other=second, memory=memory)
    read = opened.connection.execute("SELECT * FROM scores").read_all()
    # A response of messages has the length of its text in SQL.
    kind = next(c.kind for c in opened.columns if c.name == "response")
    size = "length(r.response)" if pa.types.is_string(kind) else "length(r.response::VARCHAR)"
    names = {c.name.lower() for c in opened.columns}
    second_columns = [
        c for c in (numeric_columns(second.columns()) if second else []) if f"other.{c.name}".lower() not in names
    ]
    joined, added = "", [f"({size})::INTEGER AS _length"]
    if second is not None:
        # Rows of another source may have the same ids: then the prompt must be the same, too.
        same_rows = store.rows_fingerprint == second.rows_fingerprint
        joined = f"LEFT JOIN other.rows AS o ON o.row_id = s.row_id{'' if same_rows else ' AND o.prompt::VARCHAR = r.prompt::VARCHAR'}"
        added += [
            f"{_finite(f'o.{views.quoted(c.name)}', c.kind)} AS {views.quoted(f'other.{c.name}')}"
            for c in second_columns
        ]
    connection.execute(
        f"CREATE TABLE scores AS SELECT s.*, {', '.join(added)} FROM attached AS s LEFT JOIN rows AS r USING (row_id) {joined}",
        attached=read,
    )
    named = [c._replace(name=f"other.{c.name}") for c in second_columns]
    other_charts = [chart for c in named if (chart := _chart(connection, c, opened.rows))]
    return opened._replace(connection=connection, others=other_charts, complete=True)


def numeric_columns(columns: Iterable[Column]) -> list[Column]:
    """List the columns of numbers that are up to date, scores first."""
    numbers = [c for c in columns if c.stale is None and c.name.lower() not in _OWN and _is_number(c.kind)]
    return sorted(numbers, key=lambda c: (_place(c.name), c.name))


def _sizes(kinds: Mapping[str, pa.DataType], numeric: list[str]) -> dict[str, str]:
    """Return, for each variant, the SQL of a row's number of candidates."""
    return {
        v: views.quoted(f"candidates_{v}") if f"candidates_{v}" in numeric else f"len({views.quoted(f'worse_{v}')})"
        for v in sample_sets(kinds)
    }


def _scores(
    kinds: Mapping[str, pa.DataType],
    sizes: Mapping[str, str],
    numeric: list[str],
    grouped: list[str],
    split_names: list[str],
) -> str:
    """Write the statement that creates `scores`; numbers that are not finite are NULL in it, since no chart can show them."""
    shares = {v: f"misjudged_{v}" for v in sizes}
    wrong = [f"coalesce({views.quoted(q)} * {sizes[v]}, 0)" for v, q in shares.items() if q in numeric]
    select = [
        "row_id",
        *(f"{_finite(views.quoted(name), kinds[name])} AS {views.quoted(name)}" for name in numeric),
        *(f"{q}::VARCHAR AS {q}" for q in map(views.quoted, grouped)),
        *map(views.quoted, split_names),
        f"({' + '.join(f'coalesce({s}, 0)' for s in sizes.values()) or '0'})::INTEGER AS _candidates",
        f"({' + '.join(wrong) or 'NULL'})::DOUBLE AS _misjudged",
    ]
    return f"CREATE TABLE scores AS SELECT {', '.join(select)} FROM rows LEFT JOIN attached USING (row_id)"


def _finite(q: str, kind: pa.DataType) -> str:
    # As DOUBLE: JSON has no decimals.
    return f"CASE WHEN isfinite({q}::DOUBLE) THEN {q}{'::DOUBLE' if pa.types.is_decimal(kind) else ''} END"


def _chart(connection: Connection, column: Column, rows: int) -> Chart | None:
    q = f"{views.quoted(column.name)}::DOUBLE"
    ((present, low, high),) = connection.execute(f"SELECT count({q}), min({q}), max({q}) FROM scores").fetchall()
    if not present:
        return None
    # Quantiles are estimated from a sample: of all rows they would take most of the time to open a store.
    ((near_low, near_high),) = connection.execute(
        f"SELECT coalesce(quantile_cont({q}, .005), $low), coalesce(quantile_cont({q}, .995), $high) "
        f"FROM scores WHERE row_id % $every = 0",
        {"low": low, "high": high, "every": max(1, rows // _SAMPLE)},
    ).fetchall()
    # A few outliers must not press all other values into one bin: they are counted in the outermost bins.
    start, end = (low, high) if high - low <= 8 * (near_high - near_low) else (near_low, near_high)
    step = nice(end / _BINS - start / _BINS, integer=pa.types.is_integer(column.kind))
    # Round to twelve digits, unless the values are so close together and so far from 0 that this is too few.
    begin = math.floor(start / step) * step
    start = rounded if abs((rounded := float(f"{begin:.12g}")) - begin) < step / 2 else begin
    bins = min(2 * _BINS, max(1, math.floor(end / step - start / step) + 1))
    return Chart(column, present, low, high, start, step, bins, worst_end(column))


def worst_end(column: Column) -> Literal["low", "high"] | None:
    """Tell which end of a column's values is bad, where its meaning says so."""
    if "high = bad" in column.meaning or column.name.startswith("misjudged_"):
        return "high"
    return "low" if "low = bad" in column.meaning or column.name.startswith("seam_") else None


def nice(width: float, integer: bool) -> float:
    """Round a bin's width up to 1, 2 or 5 times a power of ten."""
    # The smallest doubles have no power of ten below them.
    if width < 1e-300:
        return 1.0
    power = 10.0 ** math.floor(math.log10(width))
    nice = next(float(f"{power * factor:.12g}") for factor in (1, 2, 5, 10) if power * factor >= width * 0.999)
    return max(1.0, nice) if integer else nice


def _repeats(connection: Connection, name: str) -> bool:
    """Tell whether a column holds labels: short texts that several rows share."""
    q = views.quoted(name)
    ((distinct, rows, length),) = connection.execute(
        f"SELECT count(DISTINCT q), count(q), avg(length(q)) FROM (SELECT {q}::VARCHAR AS q FROM rows LIMIT 20000)"
    ).fetchall()
    return bool(distinct and distinct <= max(2, min(_VALUES, rows / 2)) and length <= 60)


def _values(connection: Connection, name: str) -> list[tuple[str | None, int]]:
    q = views.quoted(name)
    return connection.execute(
        f"SELECT {q}, count(*) FROM scores GROUP BY 1 ORDER BY 2 DESC, 1 LIMIT {_VALUES}"
    ).fetchall()


def _is_number(kind: pa.DataType) -> bool:
    return bool(pa.types.is_floating(kind) or pa.types.is_integer(kind) or pa.types.is_decimal(kind))


def _is_label(kind: pa.DataType) -> bool:
    return bool(pa.types.is_string(kind) or pa.types.is_large_string(kind) or pa.types.is_boolean(kind))


def _place(name: str) -> int:
    return next((i for i, family in enumerate(_ORDER) if name.startswith(family)), len(_ORDER))
