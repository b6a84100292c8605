"""The order in which a split is written: by a column, for a curriculum, or at random.

One rule: the order is the same on every machine. Rows without a value come last, and ties are in the order of row ids.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator, Mapping
from contextlib import ExitStack
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
from pydantic import BaseModel, ConfigDict, JsonValue, model_validator

from seamcurate.errors import RecipeError
from seamcurate.storage import scratch
from seamcurate.text import suggestion

RANDOM = "random"
_ROWS = 16_384
"""Rows in memory at once while they are put into order."""


class Order(BaseModel):
    """The order in which a split's rows are written, for `Split.order`.

    Raises:
        pydantic.ValidationError: `descending` is given for a random order, or `seed` for another.

    Example:
        >>> from seamcurate import Order, Split
        >>> split = Split(filter="SELECT row_id FROM rows", order=Order(by="reward", descending=True))
        >>> split.order.described
        'by `reward`, the highest first'
        >>> Order(by="random", seed=7).described
        'at random (seed 7)'
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    by: str
    """A column of plain values: the lowest come first, rows without a value last. `random` is a random order, not a column."""
    descending: bool = False
    """Whether the highest values come first; rows without a value stay last."""
    seed: int = 0
    """The seed of a random order."""

    @model_validator(mode="after")
    def _of_one_kind(self) -> Order:
        if self.by == RANDOM and "descending" in self.model_fields_set:
            raise ValueError("a random order has no `descending`; leave it out, or name a column")
        if self.by != RANDOM and "seed" in self.model_fields_set:
            raise ValueError(f"the order by {self.by} has no `seed`; leave it out, or write `by: {RANDOM}`")
        return self

    @property
    def column(self) -> str | None:
        """The column that decides; None for a random order."""
        return None if self.by == RANDOM else self.by

    @property
    def described(self) -> str:
        """The order in words."""
        if self.column is None:
            return f"at random (seed {self.seed})"
        return f"by `{self.by}`, the {'highest' if self.descending else 'lowest'} first"


def written(order: Order | None) -> JsonValue:
    """Return an order as a split's record has it; None for the source's order."""
    if order is None:
        return None
    if order.column is None:
        return {"by": order.by, "seed": order.seed}
    return {"by": order.by, "descending": order.descending}


def check(order: Order, kinds: Mapping[str, pa.DataType]) -> None:
    """Refuse an order by a column that is not there, or whose values have no order.

    Raises:
        RecipeError: See above.
    """
    if order.column is None:
        return
    if order.column not in kinds:
        raise RecipeError(
            f"order by: {order.column!r} is no column of this store; there are: {', '.join(kinds)}"
            f"{suggestion(order.column, kinds)}"
        )
    if pa.types.is_nested(kinds[order.column]):
        raise RecipeError(
            f"order by: {order.column} holds {kinds[order.column]!s:.60}, which has no order; name a column of plain values"
        )


def ranks(order: Order, row_ids: npt.NDArray[np.int64], values: pa.ChunkedArray | None) -> npt.NDArray[np.int64]:
    """Return the place of each row in the order, from 0: (rows,).

    Args:
        order: The order.
        row_ids: Ascending, (rows,).
        values: The column's values, (rows,); None for a random order.
    """
    if values is None:
        keys = [("key", "ascending")]
        table = pa.table({"key": draws(row_ids, order.seed)})
    else:
        if pa.types.is_floating(values.type):
            # NaN is no value, as in the bundled filters.
            values = pc.if_else(pc.is_nan(values), None, values)
        keys = [("key", "descending" if order.descending else "ascending")]
        table = pa.table({"key": values})
    table = table.append_column("row", pa.array(np.arange(len(row_ids))))
    # Arrow puts NULL last, whatever the direction.
    rows = pc.sort_indices(table, [*keys, ("row", "ascending")]).to_numpy()
    places = np.empty(len(rows), np.int64)
    places[rows] = np.arange(len(rows))
    return places


def draws(row_ids: npt.NDArray[np.int64], seed: int, purpose: str = "order") -> npt.NDArray[np.uint64]:
    """Return a random number for each row that only its id, the seed and the purpose decide: (rows,).

    Numbers of splitmix64 (Steele, Lea and Flood 2014): one row's does not depend on which other rows there are.
    """
    state = np.asarray(row_ids).astype(np.uint64) * np.uint64(0x9E3779B97F4A7C15)
    # Two purposes draw apart from each other also where their seeds are the same.
    purposes = int.from_bytes(hashlib.blake2b(purpose.encode(), digest_size=8).digest())
    state ^= _mixed(np.array([(seed ^ purposes) % 2**64], np.uint64))
    return _mixed(state)


def _mixed(state: npt.NDArray[np.uint64]) -> npt.NDArray[np.uint64]:
    state = state + np.uint64(0x9E3779B97F4A7C15)
    state = (state ^ (state >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    state = (state ^ (state >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return state ^ (state >> np.uint64(31))


def reordered(tables: Iterable[pa.Table], ranks: npt.NDArray[np.int64]) -> Iterator[pa.Table]:
    """Yield rows in another order, a part at a time; what does not fit in one part waits in a temporary folder.

    Args:
        tables: The rows, in order of row ids.
        ranks: The place of each row in the new order, (rows,).

    Raises:
        OSError: The temporary folder has no room for them.
    """
    if len(ranks) <= _ROWS:
        held = list(tables)
        if held:
            yield pa.concat_tables(held, promote_options="permissive").take(np.argsort(ranks))
        return
    folder = scratch.make()
    with ExitStack() as stack:
        stack.callback(folder.remove)
        pieces: list[pa.RecordBatchFileReader] = []
        # A file for each piece of the rows, in which batch n holds its rows of part n.
        start = 0
        for number, piece in enumerate(_pieces(tables)):
            places = ranks[start : start + piece.num_rows]
            start += piece.num_rows
            pieces.append(_parted(piece, places, len(ranks), folder.path / f"{number}.arrow"))
        for part in range(-(-len(ranks) // _ROWS)):
            batches = [pa.Table.from_batches([piece.get_batch(part)]) for piece in pieces]
            rows = pa.concat_tables(batches, promote_options="permissive")
            yield rows.take(pc.sort_indices(rows[_PLACE])).drop_columns([_PLACE])


_PLACE = "\0place"
"""A name that no column has."""


def _pieces(tables: Iterable[pa.Table]) -> Iterator[pa.Table]:
    """Join tables to larger ones: each becomes a file, of which a process may hold only about a thousand open."""
    held: list[pa.Table] = []
    for table in tables:
        held.append(table)
        if sum(one.num_rows for one in held) >= 4 * _ROWS:
            yield pa.concat_tables(held, promote_options="permissive")
            held = []
    if held:
        yield pa.concat_tables(held, promote_options="permissive")


def _parted(rows: pa.Table, places: npt.NDArray[np.int64], count: int, file: Path) -> pa.RecordBatchFileReader:
    """Write rows into a file, a batch for each part of `_ROWS` places; return its reader."""
    order = np.argsort(places)
    rows = rows.append_column(_PLACE, pa.array(places)).take(order)
    ends = np.searchsorted(places[order], np.arange(0, count + _ROWS, _ROWS))
    with pa.OSFile(str(file), "wb") as sink, pa.ipc.new_file(sink, rows.schema) as writer:
        for part in range(-(-count // _ROWS)):
            batches = rows.slice(ends[part], ends[part + 1] - ends[part]).combine_chunks().to_batches()
            (batch,) = batches or [pa.RecordBatch.from_pylist([], rows.schema)]
            writer.write_batch(batch)
    return pa.ipc.open_file(pa.memory_map(str(file)))
