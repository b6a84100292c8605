"""The answer to a query as a Python user holds it: an Arrow table that becomes a frame of Polars or pandas, or a Dataset."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pyarrow as pa

from seamcurate import extras, markup, tables
from seamcurate.errors import QueryError
from seamcurate.text import brief, counted

if TYPE_CHECKING:
    import datasets
    import pandas as pd
    import polars as pl

_SHOWN = 20
"""Rows of an answer that are shown."""


class Answer:
    """Hold what a SELECT returned; `Store.sql` makes it.

    It shows its first rows by itself, in a notebook and in a terminal. What takes Arrow data by the PyCapsule interface
    takes an answer too: `polars.DataFrame(answer)`, `pyarrow.table(answer)`.

    Example:
        >>> import pyarrow as pa
        >>> answer = Answer(pa.table({"row_id": [0, 1], "reward": [0.5, None]}))
        >>> len(answer), answer.columns
        (2, ['row_id', 'reward'])
        >>> answer.df()["reward"].isna().tolist()
        [False, True]
        >>> answer.arrow().num_rows
        2
    """

    def __init__(self, table: pa.Table) -> None:
        self._table = table

    @property
    def columns(self) -> list[str]:
        """List the names of the columns."""
        return list(self._table.column_names)

    def arrow(self) -> pa.Table:
        """Return a pyarrow Table."""
        return self._table

    def pl(self) -> pl.DataFrame:
        """Return a Polars frame, which shares the answer's memory.

        Raises:
            QueryError: Polars is not installed, or two columns have one name.
        """
        try:
            import polars
        except ModuleNotFoundError as error:
            raise QueryError(f"a Polars frame needs {error.name}; {extras.install('polars')}") from error
        return polars.DataFrame(self._named("a Polars frame"))

    def df(self) -> pd.DataFrame:
        """Return a pandas frame: whole numbers with NULL among them are `Int64`, as pandas' floats would round them.

        Raises:
            QueryError: Two columns have one name.
        """
        table = self._named("a pandas frame")
        frame = table.to_pandas()
        for field, column in zip(table.schema, table.columns, strict=True):
            if pa.types.is_integer(field.type) and column.null_count:
                frame[field.name] = _nullable(column)
        return frame

    def to_dataset(self) -> datasets.Dataset:
        """Return a data set of the library `datasets`.

        Raises:
            QueryError: Two columns have one name.
        """
        extras.require("hub", "a data set", QueryError)
        import datasets

        return datasets.Dataset(self._named("a Dataset"))

    def _named(self, kind: str) -> pa.Table:
        names = self.columns
        if twice := [name for name in names if names.count(name) > 1]:
            raise QueryError(
                f"{kind} cannot have two columns called {brief(twice[0], 80)!r}; give one another name with AS"
            )
        return self._table

    def __len__(self) -> int:
        return int(self._table.num_rows)

    def __arrow_c_stream__(self, requested_schema: object = None) -> object:
        return self._table.__arrow_c_stream__(requested_schema)

    def __repr__(self) -> str:
        rows, rest = self._head()
        width = max(12, 110 // max(1, len(self.columns)))
        numbers = [i for i, kind in enumerate(self._table.schema.types) if tables.is_number(kind)]
        return tables.shown(self.columns, [[brief(cell, width) for cell in row] for row in rows], numbers) + rest

    def _repr_html_(self) -> str:
        rows, rest = self._head()
        return markup.block(rest, markup.table(self.columns, rows))

    def _head(self) -> tuple[list[list[object]], str]:
        head = self._table.slice(0, _SHOWN)
        rows = [list(cells) for cells in zip(*map(tables.python_values, head.columns), strict=True)]
        first = f", the first {_SHOWN}" if len(self) > _SHOWN else ""
        return rows, f"{counted(len(self), 'row')}{first}"


def _nullable(column: pa.ChunkedArray) -> object:
    import pandas

    sign = "UInt" if pa.types.is_unsigned_integer(column.type) else "Int"
    kind = pandas.api.types.pandas_dtype(f"{sign}{column.type.bit_width}")
    return column.to_pandas(types_mapper=lambda _: kind)
