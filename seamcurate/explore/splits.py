"""The splits of a store as the explorer shows them: a label for each row, and the cut that made it.

One rule: what the page says of a split comes from its ledger, which says why each row was kept or dropped.
"""

from __future__ import annotations

from collections.abc import Collection
from typing import Literal, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from seamcurate.step import comparable
from seamcurate.storage import shard
from seamcurate.store.store import Store

KEPT, DROPPED = "kept", "dropped: "


class SplitCut(NamedTuple):
    """The cut on one column by which a split was made."""

    name: str
    column: str
    cut: float
    """The outermost value that was kept."""
    keep: Literal["above", "below"]
    nulls: bool
    """Whether rows without a value are kept."""


def label(name: str) -> str:
    """Return what the column of a split's labels is called; no column of a recipe has a space in its name."""
    return f"split {name}"


def labels(store: Store) -> tuple[pa.Table, list[SplitCut]]:
    """Return row_id and, of each split, `kept` or `dropped: RULE`; and the cuts of those made by a cut of one column.

    Raises:
        DamagedError: A ledger is not the file that was written.
    """
    columns: dict[str, pa.Array] = {}
    cuts: list[SplitCut] = []
    row_ids = np.zeros(0, np.int64)
    for name, record in sorted(store.split_records().items()):
        ledger = shard.read(store.path / "splits" / name / "ledger.parquet", str(record["fingerprint"]), 0)
        row_ids = np.union1d(row_ids, ledger["row_id"].to_numpy())
        parameters = record.get("parameters")
        column = parameters.get("by") if isinstance(parameters, dict) else None
        if isinstance(column, str) and (found := _cut(name, column, ledger)):
            cuts.append(found)
        columns[name] = ledger
    table: dict[str, pa.Array] = {"row_id": pa.array(row_ids)}
    for name, ledger in columns.items():
        dropped = pc.binary_join_element_wise(DROPPED, ledger["rule"].cast(pa.string()), "")
        texts = pc.if_else(ledger["kept"], KEPT, dropped).combine_chunks()
        places = pc.index_in(table["row_id"], ledger["row_id"].combine_chunks())
        table[label(name)] = texts.take(places)
    return pa.table(table), cuts


def told(name: str, value: str | None) -> str:
    """Write the predicate over the view `rows` that a label of a split stands for."""
    split = name.removeprefix(label("")).replace("'", "''")
    inside = f"SELECT row_id FROM ledger WHERE split = '{split}'"
    if value is None:
        return f"row_id NOT IN ({inside})"
    if value == KEPT:
        return f"row_id IN ({inside} AND kept)"
    rule = value.removeprefix(DROPPED).replace("'", "''")
    return f"row_id IN ({inside} AND NOT kept AND rule = '{rule}')"


def _cut(name: str, column: str, ledger: pa.Table) -> SplitCut | None:
    """Return the cut that a ledger's values show; None where it is no cut, or drops no row that has a value."""
    values = comparable(ledger["value"].cast(pa.float64()).to_numpy(zero_copy_only=False))
    kept = ledger["kept"].to_numpy(zero_copy_only=False)
    has_value = np.isfinite(values)
    stayed, went = values[kept & has_value], values[~kept & has_value]
    if not len(stayed) or not len(went):
        return None
    without = kept[~has_value]
    nulls = bool(without.all()) if len(without) else False
    # A tie at the cut is broken by a draw, so that both sides may have the same value.
    if went.max() <= stayed.min():
        return SplitCut(name, column, float(stayed.min()), "above", nulls)
    if went.min() >= stayed.max():
        return SplitCut(name, column, float(stayed.max()), "below", nulls)
    return None


def names(columns: Collection[str]) -> list[str]:
    """Return the names of the columns of labels among others."""
    return [name for name in columns if name.startswith(label(""))]
