"""Answers in four forms: a table for a terminal, and CSV, JSON lines or Parquet for programs.

A table spells out control characters, with which a hostile row could rewrite the screen. The other forms hold the values
unchanged. CSV follows RFC 4180: NULL is an empty field, and empty text is `""`. A cell that begins with `=` is not changed
either, though a spreadsheet would run it as a formula; import such a file as text.
"""

from __future__ import annotations

import io
import json
import re
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from decimal import Decimal
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Protocol, TextIO

import pyarrow as pa
import pyarrow.parquet as pq

from seamcurate.errors import QueryError
from seamcurate.storage import atomic, objects
from seamcurate.text import brief, clean, counted, one_line, spelled

if TYPE_CHECKING:
    from rich.table import Table

TableFormat = Literal["table", "csv", "jsonl", "parquet"]

SQL_TYPE = b"sql"
"""Metadata key of a field: its SQL type, where Arrow's type does not determine it."""
_QUOTED = re.compile(r'[",\r\n]|^\s|\s$')
_SHOWN_ROWS = 50


class BatchReader(Protocol):
    """An answer: its schema, and its rows in record batches."""

    schema: pa.Schema

    def __iter__(self) -> Iterator[pa.RecordBatch]:
        """Iterate over the record batches."""


def show(
    header: Sequence[str], rows: Sequence[Sequence[object]], right: Sequence[int] = (), width: int | None = None
) -> None:
    """Print a table to standard output, columns in `right` aligned to the right."""
    from rich.console import Console

    console = Console(width=width or (None if sys.stdout.isatty() else 160), highlight=False)
    console.print(_drawn(header, rows, right))


def shown(header: Sequence[str], rows: Sequence[Sequence[object]], right: Sequence[int] = (), width: int = 120) -> str:
    """Return a table as `show` prints it, without colours."""
    from rich.console import Console

    text = io.StringIO()
    # In a notebook, rich would display the table instead of writing it to the file.
    console = Console(file=text, width=width, highlight=False, color_system=None, force_jupyter=False)
    console.print(_drawn(header, rows, right))
    return "".join(line.rstrip() + "\n" for line in text.getvalue().strip("\n").splitlines())


def _drawn(header: Sequence[str], rows: Sequence[Sequence[object]], right: Sequence[int]) -> Table:
    from rich import box
    from rich.table import Table
    from rich.text import Text

    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    for i, name in enumerate(header):
        table.add_column(Text(brief(name, 80)), justify="right" if i in right else "left", overflow="fold")
    for row in rows:
        table.add_row(*(Text(clean(cell) if isinstance(cell, str) else brief(cell, 60)) for cell in row))
    return table


def write(reader: BatchReader, form: TableFormat, out: Path | None) -> None:
    """Write an answer in one of the forms, to a file or to standard output.

    Raises:
        QueryError: The form cannot hold the answer: two columns of one name, or a value.
        StoreError: The file is on object storage, or cannot be written.
    """
    out = out and objects.folder(out, "sql")
    names = reader.schema.names
    if form in ("jsonl", "parquet") and (twice := [name for name in names if names.count(name) > 1]):
        raise QueryError(f"the answer has two columns called {brief(twice[0], 80)!r}; give one another name with AS")
    if form == "table" and out is None:
        _table(reader)
        return
    # Without a file: the error of a closed pipe must not become one about a file.
    with objects.writing(out) if out else nullcontext(), _whole(out) as file:
        if form == "parquet":
            sink = pa.PythonFile(sys.stdout.buffer, mode="w") if file is None else str(file)
            _parquet(reader, sink)
        else:
            with file.open("w", encoding="utf-8", newline="") if file else nullcontext(sys.stdout) as handle:
                _lines(reader, "jsonl" if form == "jsonl" else "csv", handle)


@contextmanager
def _whole(out: Path | None) -> Iterator[Path | None]:
    """Yield the file to write to: one that replaces `out` at the end, so that an error leaves no part of an answer."""
    if out is None or (out.exists() and not out.is_file()):
        # A device or a pipe cannot be replaced.
        yield out
        return
    with atomic.replacing(out.resolve()) as temporary:
        yield temporary


def _table(reader: BatchReader) -> None:
    rows: list[list[object]] = []
    total = 0
    for batch in reader:
        total += batch.num_rows
        rows += map(list, _values(batch.slice(0, max(0, _SHOWN_ROWS - len(rows)))))
    cells = max(12, 150 // max(1, len(reader.schema)))
    numeric = [i for i, field in enumerate(reader.schema) if is_number(field.type)]
    show(reader.schema.names, [[brief(value, cells) for value in row] for row in rows], numeric)
    print(counted(total, "row") + (f", the first {_SHOWN_ROWS} shown" if total > _SHOWN_ROWS else ""))


def is_number(kind: pa.DataType) -> bool:
    """Tell whether a column's values are numbers."""
    return bool(pa.types.is_integer(kind) or pa.types.is_floating(kind) or pa.types.is_decimal(kind))


def _parquet(reader: BatchReader, sink: pa.PythonFile | str) -> None:
    """Write Parquet; SQL's wide whole numbers, such as sums, become int64, or an error where one does not fit."""
    wide = [i for i, field in enumerate(reader.schema) if SQL_TYPE in (field.metadata or {})]
    kinds = [pa.int64() if i in wide else field.type for i, field in enumerate(reader.schema)]
    schema = pa.schema(zip(reader.schema.names, kinds, strict=True))
    try:
        # No statistics: minimum and maximum would leave NaN out, and readers rely on them.
        with pq.ParquetWriter(sink, schema, write_statistics=False) as writer:
            for batch in reader:
                columns = list(batch.columns)
                for i in wide:
                    columns[i] = _narrow(columns[i], schema.names[i])
                writer.write_batch(pa.RecordBatch.from_arrays(columns, schema=schema))
    except pa.ArrowException as error:
        reason = one_line(str(error))[:200]
        raise QueryError(
            f"the answer cannot be written as parquet: {reason}; cast the column to text: name::VARCHAR"
        ) from error


def _narrow(column: pa.Array, name: str) -> pa.Array:
    try:
        return column.cast(pa.int64())
    except pa.ArrowInvalid as error:
        raise QueryError(
            f"column {brief(name, 80)!r} holds a whole number beyond 64 bits, which has no such column in Parquet; "
            "cast it: name::DOUBLE, or name::DECIMAL(38, 0)"
        ) from error


def _lines(reader: BatchReader, form: Literal["csv", "jsonl"], handle: TextIO) -> None:
    names = reader.schema.names
    if form == "jsonl":
        for batch in reader:
            for row in _values(batch):
                handle.write(json_text(dict(zip(names, row, strict=True))) + "\n")
        return
    handle.write(",".join(map(_field, names)) + "\n")
    for batch in reader:
        for row in _values(batch):
            # An empty line is no record: a single NULL is written as empty text.
            handle.write((",".join(map(_field, row)) or '""') + "\n")


def _values(batch: pa.RecordBatch) -> Iterator[tuple[object, ...]]:
    """Iterate over rows as tuples: an answer may have two columns of one name."""
    return zip(*map(python_values, batch.columns), strict=True)


def python_values(column: pa.Array | pa.ChunkedArray) -> list[Any]:
    """Return a column's values as Python has them. Dates and times that it does not have are text.

    Python has no infinite date, none before the year 1 or after 9999, and without pandas no nanoseconds.

    Example:
        >>> python_values(pa.array([0, 2**29, None], pa.date32()))
        [datetime.date(1970, 1, 1), '1471872-08-19', None]
    """
    try:
        return list(column.to_pylist())
    except (OverflowError, ValueError):
        return [_python_value(scalar) for scalar in column]


def python_rows(table: pa.Table | pa.RecordBatch) -> list[dict[str, Any]]:
    """Return a table's rows with values as `python_values` returns them."""
    if not table.num_columns:
        return [{} for _ in range(table.num_rows)]
    columns = map(python_values, table.columns)
    return [dict(zip(table.schema.names, row, strict=True)) for row in zip(*columns, strict=True)]


def _python_value(scalar: pa.Scalar) -> object:
    kind = scalar.type
    if not scalar.is_valid:
        return None
    if pa.types.is_dictionary(kind):
        return _python_value(scalar.value)
    if pa.types.is_struct(kind):
        return {field.name: _python_value(scalar[i]) for i, field in enumerate(kind)}
    if pa.types.is_map(kind):
        return [tuple(_python_value(entry[i]) for i in range(2)) for entry in scalar.values]
    if pa.types.is_nested(kind):
        return [_python_value(element) for element in scalar.values]
    try:
        return scalar.as_py()
    except (OverflowError, ValueError):
        if pa.types.is_temporal(kind):
            return _time_text(scalar)
        raise


def _time_text(scalar: pa.Scalar) -> str:
    import numpy as np

    kind, count = scalar.type, scalar.value
    largest = 2**31 - 1 if pa.types.is_date32(kind) else 2**63 - 1
    # DuckDB's infinities.
    if abs(count) == largest and not pa.types.is_duration(kind):
        return "infinity" if count > 0 else "-infinity"
    if pa.types.is_duration(kind):
        return str(np.timedelta64(count, kind.unit))
    if pa.types.is_date(kind):
        return str(np.datetime64(count, "D" if pa.types.is_date32(kind) else "ms").astype("M8[D]"))
    zone = "+00:00" if pa.types.is_timestamp(kind) and kind.tz else ""
    return str(np.datetime64(count, kind.unit)).replace("T", " ") + zone


def _field(value: object) -> str:
    """Write a CSV field that is read back unchanged; only NULL is empty without quotes."""
    if value is None:
        return ""
    text = value if isinstance(value, str) else json_text(value) if isinstance(value, list | dict) else spelled(value)
    # Quoted, too: a lone carriage return, which ends a line for some readers, and outer white space, which some trim.
    return '"' + text.replace('"', '""') + '"' if not text or _QUOTED.search(text) else text


def json_text(value: object) -> str:
    """Write JSON; NaN and infinity, which JSON does not have, become null. A decimal keeps all its digits."""

    def spell(cell: object) -> str:
        if isinstance(cell, Decimal):
            raise ValueError
        return spelled(cell)

    try:
        return json.dumps(value, ensure_ascii=False, default=spell, allow_nan=False)
    except ValueError:
        return _json_by_part(value)


def _json_by_part(value: object) -> str:
    if isinstance(value, dict):
        return (
            "{" + ", ".join(f"{json.dumps(str(k), ensure_ascii=False)}: {json_text(v)}" for k, v in value.items()) + "}"
        )
    if isinstance(value, list | tuple):
        return "[" + ", ".join(map(json_text, value)) + "]"
    return f"{value:f}" if isinstance(value, Decimal) else "null"
