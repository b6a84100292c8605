"""A split's ledger as a Python user holds it: of every row of the source, whether it was kept and which rule decided."""

from __future__ import annotations

from typing import NamedTuple

import pyarrow as pa
import pyarrow.compute as pc

from seamcurate import markup, tables
from seamcurate.errors import StoreError
from seamcurate.select import views
from seamcurate.select.answer import Answer
from seamcurate.select.split import stale
from seamcurate.storage import shard
from seamcurate.store.store import Store
from seamcurate.text import counted

_DROPPED = 5
"""Dropped rows that a ledger shows of itself."""


class Rule(NamedTuple):
    """A rule of a split, the rows that it decided on, and the values that it decided by."""

    rule: str
    kept: int
    dropped: int
    threshold: float | None
    """None for a rule without a threshold."""
    low: float | None
    middle: float | None
    """The median."""
    high: float | None


class Ledger(Answer):
    """Hold what decided on each row of a split; `Store.ledger` makes it.

    Its columns are `row_id`, `split`, `kept`, `rule`, `value` and `threshold`, one row for each row of the source, in the
    source's order. It is also an answer: `.pl()`, `.df()`, `.arrow()`, `.to_dataset()`. In a notebook and in a terminal it
    shows what each rule kept and dropped, and some of the dropped rows.

    Example:
        >>> import pyarrow as pa
        >>> columns = {"row_id": [0, 1], "split": ["train"] * 2, "kept": [True, False], "rule": ["above", "below"]}
        >>> ledger = Ledger("train", pa.table({**columns, "value": [0.5, -1.0], "threshold": [0.0, 0.0]}))
        >>> ledger.kept, ledger.dropped, [rule.rule for rule in ledger.rules]
        (1, 1, ['below', 'above'])
    """

    def __init__(self, split: str, table: pa.Table, out_of_date: str = "") -> None:
        super().__init__(table)
        self.split, self.out_of_date = split, out_of_date
        self.kept = int(pc.sum(table["kept"]).as_py() or 0)
        self.dropped = len(self) - self.kept

    @property
    def rules(self) -> list[Rule]:
        """List what each rule did, those that dropped most first; rules that name a row are counted as one."""
        return rules(self._table)

    def __repr__(self) -> str:
        table = tables.shown(Rule._fields, self._cells(), right=range(1, len(Rule._fields)))
        return "\n".join([self._counts(), *self._warning(), *table.splitlines()])

    def _repr_html_(self) -> str:
        gone = self._table.filter(pc.invert(self._table["kept"])).slice(0, _DROPPED).drop_columns(["split", "kept"])
        shown = [list(row.values()) for row in gone.to_pylist()]
        return markup.block(
            self._counts(),
            markup.lines(self._warning()),
            markup.table(Rule._fields, self._cells(), "What each rule did, and the values it decided by"),
            markup.table(gone.column_names, shown, "The first dropped rows") if shown else "",
        )

    def _counts(self) -> str:
        return f"split {self.split}: {counted(len(self), 'row')}, {self.kept:,} kept, {self.dropped:,} dropped"

    def _warning(self) -> list[str]:
        return [f"warning: the split is out of date: {self.out_of_date}"] if self.out_of_date else []

    def _cells(self) -> list[list[object]]:
        return [[f"{cell:.4g}" if isinstance(cell, float) else cell for cell in rule] for rule in self.rules]


def read(store: Store, split: str) -> Ledger:
    """Read a split's ledger.

    Raises:
        StoreError: There is no store, or no such split in it.
        DamagedError: The ledger is not the file that was written.
    """
    records = store.open().split_records()
    if split not in records:
        raise StoreError(f"{store.path} has no split {split!r}; it has {', '.join(records) or 'none'}")
    table = shard.read(store.path / "splits" / split / "ledger.parquet", str(records[split]["fingerprint"]), 0)
    return Ledger(split, table, stale(store).get(split, ""))


def rules(ledger: pa.Table) -> list[Rule]:
    """Count the rows that each rule kept and dropped, with its threshold and the range of its values."""
    # Rules that name a row, as those of duplicates do, are counted as one.
    sql = (
        r"SELECT regexp_replace(rule, '\brow \d+', 'row …', 'g') AS rule, count(*) FILTER (kept) AS kept, "
        "count(*) FILTER (NOT kept) AS dropped, any_value(threshold) AS threshold, min(value) AS low, "
        "median(value) AS middle, max(value) AS high FROM ledger GROUP BY 1 ORDER BY dropped DESC, 1"
    )
    with views.in_memory() as connection:
        connection.register("ledger", ledger)
        return [Rule(**row) for row in connection.sql(sql).to_arrow_table().to_pylist()]
