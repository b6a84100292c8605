"""A store as a lazy Polars frame: only the columns, rows and shards that a query needs are read.

One rule: what Polars pushes down reaches the files. Of a column that a query does not name, no file is opened. A filter
reads its own columns first, and the others only for shards in which a row passes.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from typing import TYPE_CHECKING

import pyarrow as pa

from seamcurate import extras
from seamcurate.errors import StoreError
from seamcurate.store.store import Store, sample_sets

if TYPE_CHECKING:
    import polars as pl

_INDEX = "\0row"
"""A name that no column has, as SQL could not name it."""


def scan(store: Store) -> pl.LazyFrame:
    """Return a store's rows with all columns that are up to date; see `Store.scan` of `seamcurate`.

    Raises:
        StoreError: There is no store, or Polars is not installed.
    """
    try:
        import polars as pl
        from polars.io.plugins import register_io_source
    except ModuleNotFoundError as error:
        raise StoreError(f"a scan needs {error.name}; {extras.install('polars')}") from error
    store.open()
    schema = _schema(store)

    def read(
        names: list[str] | None, predicate: pl.Expr | None, n_rows: int | None, batch_size: int | None
    ) -> Iterator[pl.DataFrame]:
        wanted = schema.names if names is None else names
        # A filter without a column still needs the rows' number.
        filtered = [] if predicate is None else predicate.meta.root_names() or ["row_id"]
        tested = [name for name in schema.names if name in filtered]
        rest = [name for name in wanted if name not in tested]
        read_tested, read_rest = (store.reader(columns, partial=True) for columns in (tested, rest))
        # Polars counts the rows before it filters them.
        left = sys.maxsize if n_rows is None else n_rows
        for number in _shards(store):
            if left <= 0:
                return
            if predicate is None:
                frame = _frame(read_rest(number), schema, wanted).head(left)
                left -= frame.height
            else:
                rows = _frame(read_tested(number), schema, tested).head(left).with_row_index(_INDEX)
                left -= rows.height
                frame = rows.filter(predicate)
                if rest and frame.height:
                    frame = frame.hstack(_frame(read_rest(number), schema, rest)[frame[_INDEX]])
                elif rest:
                    continue
            yield frame.select(wanted)

    return register_io_source(read, schema=pl.DataFrame(schema.empty_table()).schema)


def _schema(store: Store) -> pa.Schema:
    """Return the types of the columns that are up to date; candidates have their texts, as `Store.reader` gives them."""
    fields = [pa.field("row_id", pa.int64())]
    kinds = {column.name: column.kind for column in store.columns() if column.stale is None and column.name != "row_id"}
    for name, kind in kinds.items():
        item = kind.value_type if sample_sets({name: kind}) else None
        if item is not None and "response" not in [field.name for field in item]:
            kind = pa.list_(pa.struct([*item, pa.field("response", pa.string())]))
        fields.append(pa.field(name, kind))
    return pa.schema(fields)


def _shards(store: Store) -> list[int]:
    """List the shards' numbers; a complete store knows how many it has, so that a lost one is an error."""
    count = store.about.get("shards")
    return list(range(count)) if isinstance(count, int) and store.about.get("complete") else store.shards


def _frame(table: pa.Table, schema: pa.Schema, names: list[str]) -> pl.DataFrame:
    """Return columns of a shard in the types of the scan's schema."""
    import polars as pl

    columns = {}
    for name in names:
        kind, column = schema.field(name).type, table[name]
        # A shard that is not computed, or was read before a column appeared, has NULL of another type.
        missing = column.type != kind and column.null_count == len(column)
        columns[name] = pa.nulls(len(column), kind) if missing else column.cast(kind)
    return pl.DataFrame(pa.table(columns, schema=pa.schema([schema.field(name) for name in names])))
