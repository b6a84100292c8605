"""Files as Arrow tables or lines, with a reason for each row that cannot be read.

One rule: a mistake in one row is raised as `Reject`, and its text is kept with the row; a mistake in a whole file or
column is a `SourceError` that names it.
"""

from __future__ import annotations

import csv
import glob
import json
import lzma
import math
import re
import zlib
from collections.abc import Callable, Collection, Generator, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from itertools import chain, islice
from pathlib import Path
from typing import Any, Literal, NamedTuple, TypeAlias
from urllib.parse import unquote

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from seamcurate.data import lines
from seamcurate.errors import SourceError, first_line, typed_line
from seamcurate.storage import hashes
from seamcurate.tables import python_rows, python_values

LONGEST_ROW_SHOWN = 10_000
# An unclosed quote swallows the text after it: this bounds the memory that one takes. It is far longer than any prompt.
LONGEST_CSV_FIELD = 1 << 24
# Parquet writers and SQL engines recurse over types.
DEEPEST = 32
_AS_TEXT = "text, as the files have several types of it:"
_AS_JSON = "JSON text, as the files have several types of it:"
CSV_TYPES = 1
"""Raised when a cell of a CSV file is read as another type than before: part of such a source's fingerprint."""
_HIVE_NULL = "__HIVE_DEFAULT_PARTITION__"
"""How Hive and Spark name the folder of rows without a value."""
_WHOLE = re.compile(r"-?(?:0|[1-9][0-9]*)")
_FRACTION = re.compile(r"-?(?:(?:0|[1-9][0-9]*)(?:\.[0-9]*)?|\.[0-9]+)(?:[eE][+-]?[0-9]+)?")
_ANY_NUMBER = re.compile(r"[+-]?(?:[0-9]+(?:\.[0-9]*)?|\.[0-9]+)(?:[eE][+-]?[0-9]+)?")
"""What `types: {…: number}` takes beside: leading zeros and a plus."""
_HUGE = re.compile(r"\d[eE]\+?\d{3}")
"""What a number beyond doubles has."""
_NOT_FINITE = {"nan", "inf", "-inf", "infinity", "-infinity"}
_TRUTH = {"true": True, "false": False}
_EXACT = 2**53
"""Whole numbers beyond this have no double of their own."""
_PER_SECOND = {"s": 1, "ms": 10**3, "us": 10**6, "ns": 10**9}
_NO_FIT = (pa.ArrowException, ValueError, TypeError, OverflowError)
_Reader = Callable[[Path, int, int], Generator[pa.Table, None, int]]


class Reject(Exception):
    """One row cannot be read; the message is the reason that is kept with the row."""


class ParsedLine(NamedTuple):
    """One line's values by column."""

    cells: dict[str, object]
    doubt: str | None
    """A possible fault in the row's text, such as invalid UTF-8; None where there is none."""


class CsvLine(NamedTuple):
    """One record of a CSV file."""

    header: list[str]
    fields: list[str]
    error: str | None


SourceLine: TypeAlias = bytes | CsvLine


def word(value: object) -> str:
    """Name a value's type as Arrow would."""
    words = {bool: "bool", int: "int64", float: "double", str: "string", list: "list", dict: "struct"}
    return words.get(type(value), "null")


def not_utf8(column: pa.ChunkedArray, location: str) -> list[int]:
    """Return the indices of rows whose text is not UTF-8; Parquet readers do not check it."""
    try:
        column.validate(full=True)
        return []
    except pa.ArrowInvalid as error:
        if "UTF8" not in str(error):
            raise SourceError(f"{location} is damaged: {typed_line(error)}; write the file again") from error
    indices = []
    for index in range(len(column)):
        try:
            column.take([index]).validate(full=True)
        except pa.ArrowInvalid:
            indices.append(index)
    return indices


def json_text(value: object) -> str:
    """Write a rejected row as JSON text, at most LONGEST_ROW_SHOWN characters."""

    def spell(cell: object) -> str:
        return legible(cell) if isinstance(cell, bytes) else str(cell)

    text = json.dumps(value, ensure_ascii=False, default=spell)[:LONGEST_ROW_SHOWN]
    return text.encode("utf-8", "backslashreplace").decode()


def legible(text: bytes) -> str:
    """Decode bytes; bytes that are not UTF-8 become escaped."""
    return text.decode("utf-8", "backslashreplace")[:LONGEST_ROW_SHOWN]


# Types: one Arrow type for each group of types with the same meaning.


def plain(kind: pa.DataType, text: pa.DataType) -> pa.DataType:
    """Undo dictionaries, views, extensions and 64-bit offsets; `text` is what strings become."""
    types = pa.types
    if isinstance(kind, pa.BaseExtensionType):
        return plain(kind.storage_type, text)
    if types.is_dictionary(kind) or types.is_run_end_encoded(kind):
        return plain(kind.value_type, text)
    if types.is_string(kind) or types.is_large_string(kind) or types.is_string_view(kind):
        return text
    if types.is_large_binary(kind) or types.is_binary_view(kind):
        return pa.binary()
    if types.is_list(kind) or types.is_large_list(kind) or types.is_list_view(kind) or types.is_large_list_view(kind):
        return pa.list_(plain(kind.value_type, text))
    if types.is_fixed_size_list(kind):
        return pa.list_(plain(kind.value_type, text), kind.list_size)
    if types.is_map(kind):
        return pa.map_(plain(kind.key_type, text), plain(kind.item_type, text))
    if types.is_struct(kind):
        return pa.struct([(field.name, plain(field.type, text)) for field in kind])
    # SQL has no numbers of 16 bits.
    return pa.float32() if types.is_float16(kind) else kind


def column_field(field: pa.Field) -> pa.Field:
    """Return the field that a source's column is read as: a duration as seconds, which `columns` then says."""
    if pa.types.is_duration(field.type):
        return pa.field(field.name, pa.float64(), metadata={"meaning": "seconds"})
    return pa.field(field.name, plain(field.type, pa.string()))


def has_durations(files: Sequence[Path], read_schema: Callable[[Path], pa.Schema]) -> bool:
    """Tell whether a column of the files is a duration."""
    for path in files:
        with _reading(path):
            if any(map(pa.types.is_duration, read_schema(path).types)):
                return True
    return False


def unstorable(kind: pa.DataType) -> str:
    """Return why SQL or Parquet cannot hold a type; empty where they can."""
    if pa.types.is_duration(kind):
        return f"holds a {kind} inside, which SQL has no column for: make it a number of seconds"
    if pa.types.is_union(kind) or pa.types.is_interval(kind) or pa.types.is_decimal256(kind):
        return f"is {kind!s:.80}, which Parquet or SQL has no type for"
    names: dict[str, str] = {}
    for field in kind if pa.types.is_struct(kind) else ():
        if not field.name or "\0" in field.name:
            return f"has a field {field.name!r:.40}, which SQL cannot name"
        if twin := names.get(field.name.lower()):
            return f"has a field {field.name!r:.40}, which SQL cannot tell from {twin!r:.40}"
        names[field.name.lower()] = field.name
    children = (kind.field(i).type for i in range(kind.num_fields)) if pa.types.is_nested(kind) else ()
    return next(filter(None, map(unstorable, children)), "")


def cast(column: pa.ChunkedArray, kind: pa.DataType) -> pa.ChunkedArray:
    """Cast a column to the plain form of its type."""
    if pa.types.is_run_end_encoded(column.type):
        column = pa.chunked_array([pc.run_end_decode(piece) for piece in column.chunks], column.type.value_type)
    if pa.types.is_dictionary(column.type):
        # Arrow's own cast knows no dictionaries of string views, which Polars writes.
        pieces = [piece.dictionary.cast(kind).take(piece.indices) for piece in column.chunks]
        return pa.chunked_array(pieces, kind)
    if pa.types.is_duration(column.type) and not pa.types.is_duration(kind):
        # To seconds: the same count means other times in other units.
        counts = column.cast(pa.int64()).cast(pa.float64(), safe=False)
        return pc.divide(counts, float(_PER_SECOND[column.type.unit]))
    if pa.types.is_list_view(column.type) or pa.types.is_large_list_view(column.type):
        # Arrow's own cast makes offsets that are one short.
        return pa.chunked_array([pa.array(column.to_pylist(), kind)])
    try:
        return column.cast(kind)
    except pa.ArrowInvalid:
        # Offsets have 32 bits: text too long for one array fits in several.
        cells = (column.take([index]).cast(kind).chunks for index in range(len(column)))
        return pa.chunked_array(list(chain.from_iterable(cells)), kind)


def _as_text(column: pa.ChunkedArray, spelling: str) -> pa.ChunkedArray:
    return pa.chunked_array([pa.array([spelled(cell, spelling) for cell in python_values(column)], pa.string())])


def conform(rows: pa.Table, schema: pa.Schema, location: str = "rows") -> pa.Table:
    """Return exactly the columns of `schema`, NULL where missing; `location` names the source in an error."""
    names_present, columns = set(rows.column_names), list[pa.ChunkedArray | pa.Array]()
    for name, kind in zip(schema.names, schema.types, strict=True):
        try:
            columns.append(cast(rows[name], kind) if name in names_present else pa.nulls(len(rows), kind))
        except pa.ArrowInvalid as error:
            raise SourceError(
                f"{location}: column {name!r:.80} is {rows[name].type!s:.80} in one file and {kind!s:.80} with the others, which cannot hold it: "
                f"{first_line(error)}; write it as text in all of them"
            ) from error
    return pa.table(columns, schema=schema)


class ColumnType(NamedTuple):
    """What all values of a column are, as all lines of a source decide."""

    kind: pa.DataType | None
    """Their type; None while none of them has a value."""
    spelling: Literal["value", "text", "json"] = "value"
    """How values that have no type in common are kept: as text, or as JSON text where some are lists or objects."""


class _Values:
    """The type of the values of one column so far."""

    def __init__(self) -> None:
        self.kind: pa.DataType | None = None
        self.mixed = self.nested = False

    def add(self, cells: Sequence[object]) -> None:
        """Widen the type by further values."""
        if not self.mixed:
            try:
                self.kind = _storable(_widened(self.kind, pa.array(cells).type, first_chunk=True))
                return
            except _NO_FIT:
                self.nested = self.kind is not None and pa.types.is_nested(self.kind)
            for cell in cells:
                try:
                    self.kind = _storable(_widened(self.kind, pa.array([cell]).type, first_chunk=True))
                except UnicodeEncodeError:
                    # It cannot be written in any type.
                    continue
                except _NO_FIT:
                    self.mixed = True
                    break
        self.nested = self.nested or any(isinstance(cell, dict | list) for cell in cells)

    def type(self) -> ColumnType:
        """Return what all values are."""
        if self.mixed:
            return ColumnType(pa.string(), "json" if self.nested else "text")
        return ColumnType(self.kind)


def column_types(rows: Iterable[Mapping[str, object]], batch: int = 4096) -> dict[str, ColumnType]:
    """Find the type of every column from all rows, which are held a batch at a time."""
    columns: dict[str, _Values] = {}
    remaining = iter(rows)
    while group := list(islice(remaining, batch)):
        for name in dict.fromkeys(chain.from_iterable(group)):
            columns.setdefault(name, _Values()).add([row.get(name) for row in group])
    return {name: values.type() for name, values in columns.items()}


def spelled(cell: object, spelling: str) -> object:
    """Return a value of a column that has no one type as its text, or as JSON text."""
    if cell is None or (isinstance(cell, str) and spelling == "text"):
        return cell
    return json.dumps(cell, ensure_ascii=False, default=str)


def _storable(kind: pa.DataType) -> pa.DataType:
    if reason := unstorable(kind):
        raise TypeError(reason)
    return kind


def _doubled(kind: pa.DataType | None, final: pa.DataType | None) -> pa.DataType | None:
    """Return a type with doubles for integers where the type of all of a column's values has doubles."""
    if kind is None or final is None or kind == final:
        return kind
    if kind == pa.int64() and final == pa.float64():
        return final
    if pa.types.is_list(kind) and pa.types.is_list(final):
        return pa.list_(_doubled(kind.value_type, final.value_type))
    if pa.types.is_struct(kind) and pa.types.is_struct(final):
        finals = {field.name: field.type for field in final}
        return pa.struct([(field.name, _doubled(field.type, finals.get(field.name))) for field in kind])
    return kind


def typed(
    values: list[object], running: pa.DataType | None, final: pa.DataType | None = None
) -> tuple[pa.Array | None, int]:
    """Convert JSON values to the column's type so far, or find their type; return how many do not fit, which are NULL.

    Args:
        values: The values of some rows.
        running: The type that the rows before have; None where they have no value.
        final: The type that all of the source's values have; None where it is not known.
    """

    def widened(kind: pa.DataType | None, cells: list[object]) -> pa.DataType:
        return _storable(_widened(kind, pa.array(cells).type, first_chunk=running is None))

    try:
        kind = _doubled(solid(widened(running, values)), final)
        return (None if kind is None else pa.array(values, kind)), 0
    except _NO_FIT:
        widest, misfits = running, 0
    for value in values:
        with suppress(*_NO_FIT):
            widest = widened(widest, [value])
    kind, fitting = _doubled(solid(widest), final), list[object]()
    for value in values:
        try:
            widened(widest, [value])
            fitting.append(None if kind is None else pa.array([value], kind)[0].as_py())
        except _NO_FIT:
            fitting.append(None)
            misfits += 1
    return (None if kind is None else pa.array(fitting, kind)), misfits


def _widened(kind: pa.DataType | None, other_type: pa.DataType, first_chunk: bool) -> pa.DataType:
    """Return the type that holds both, or raise TypeError; only the first chunk may turn integers to doubles."""
    if kind is None or pa.types.is_null(kind) or kind == other_type:
        return other_type
    if pa.types.is_null(other_type):
        return kind
    if {kind, other_type} == {pa.int64(), pa.float64()} and (first_chunk or kind == pa.float64()):
        return pa.float64()
    if pa.types.is_list(kind) and pa.types.is_list(other_type):
        return pa.list_(_widened(kind.value_type, other_type.value_type, first_chunk))
    if pa.types.is_struct(kind) and pa.types.is_struct(other_type):
        types = {field.name: field.type for field in kind}
        types.update((field.name, _widened(types.get(field.name), field.type, first_chunk)) for field in other_type)
        return pa.struct(types.items())
    raise TypeError(f"{other_type} does not fit {kind}")


def solid(kind: pa.DataType | None) -> pa.DataType | None:
    """Return a type without fields that had no value yet: a later value decides their type, and Parquet has no empty struct."""
    if kind is None or pa.types.is_null(kind):
        return None
    if pa.types.is_list(kind):
        item = solid(kind.value_type)
        return None if item is None else pa.list_(item)
    if pa.types.is_struct(kind):
        fields = [(field.name, solid(field.type)) for field in kind]
        shown = [(name, type_) for name, type_ in fields if type_ is not None]
        return pa.struct(shown) if shown else None
    return kind


# JSONL and CSV, read as bytes, so that one bad line is one rejected row.


def json_lines(path: Path, encoding: str | None = None) -> Iterator[SourceLine]:
    """Iterate over the lines of a JSONL file that are not blank, or over the items of a file that is one JSON array."""
    with _reading(path):
        yield from lines.json_values(path, lines.dialect(path, encoding, None, is_csv=False).encoding)


def json_row(line: bytes) -> ParsedLine:
    """Parse one line as an object, or raise Reject."""
    if len(line) > lines.LONGEST_LINE:
        raise Reject(f"line is longer than {lines.LONGEST_LINE >> 20} MB")
    doubt = "lone surrogate" if b"\\ud" in line or b"\\uD" in line else None
    try:
        text = line.decode()
    except UnicodeDecodeError:
        text, doubt = line.decode("utf-8", "surrogateescape"), "invalid UTF-8"
    try:
        cells = json.loads(text, parse_float=_float_or_text if _HUGE.search(text) else None)
        if text.count("[") + text.count("{") > DEEPEST and _deep(cells):
            raise RecursionError
    except RecursionError:
        raise Reject(f"nested deeper than {DEEPEST} levels") from None
    except json.JSONDecodeError as error:
        raise Reject(f"line is not JSON: {error.msg} at character {error.pos}") from None
    except ValueError as error:
        raise Reject(f"line is not JSON: {error}") from None
    if not isinstance(cells, dict):
        raise Reject(f"line is not a JSON object but {word(cells)}")
    if doubt and surrogate("".join(cells)):
        raise Reject(f"{doubt} in a column name")
    return ParsedLine(cells, doubt)


def _float_or_text(written: str) -> float | str:
    """Return a number; one beyond doubles stays the text that it is, as in CSV, and is not infinite."""
    value = float(written)
    return value if math.isfinite(value) else written


def json_types(records: Iterable[SourceLine]) -> dict[str, ColumnType]:
    """Find the type of every column from all lines."""

    def rows() -> Iterator[dict[str, object]]:
        for line in records:
            with suppress(Reject):
                assert isinstance(line, bytes)
                yield json_row(line).cells

    return column_types(rows())


def surrogate(value: object) -> bool:
    """Tell whether text, or text inside a value, cannot be written as UTF-8."""
    try:
        (value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)).encode()
    except UnicodeEncodeError:
        return True
    return False


def _deep(value: object) -> bool:
    level: list[Any] = [value]
    for _ in range(DEEPEST):
        children = chain.from_iterable(
            container.values() if isinstance(container, dict) else container for container in level
        )
        level = [child for child in children if isinstance(child, dict | list)]
    return bool(level)


def csv_lines(path: Path, encoding: str | None = None, delimiter: str | None = None) -> Iterator[SourceLine]:
    """Iterate over the records of a CSV file, each with its header."""
    csv.field_size_limit(LONGEST_CSV_FIELD)
    first_line_text, header = "", list[str]()
    with _reading(path):
        found = lines.dialect(path, encoding, delimiter, is_csv=True)

    def text() -> Iterator[str]:
        nonlocal first_line_text
        with _reading(path):
            for line in lines.records(path, found):
                decoded = line.decode("utf-8", "surrogateescape")
                first_line_text = first_line_text or decoded
                yield decoded

    # Not strict, an unclosed quote would make one row of all that follows, and `"a"b` would be read as `ab`.
    reader = csv.reader(text(), strict=True, delimiter=found.delimiter)
    while True:
        fields, error, first_line_text = [], None, ""
        try:
            fields = next(reader)
        except StopIteration:
            return
        except csv.Error as broken:
            fields, error = [first_line_text], str(broken).replace("unexpected end of data", "a quote is never closed")
        if header and fields:
            yield CsvLine(header, fields, error)
        elif fields:
            header = fields
            refuse_twins(header, path)
            if error is not None:
                raise SourceError(f"{path} has no header: {error}; name the columns in its first line")
            if any(map(surrogate, header)):
                raise SourceError(f"{path} has no header in UTF-8; name the columns in its first line")


def csv_names(records: Iterable[Iterator[SourceLine]]) -> list[str]:
    """List the columns of CSV files, by the records of each."""
    firsts = (next(of_file, None) for of_file in records)
    return list(dict.fromkeys(chain.from_iterable(line.header for line in firsts if isinstance(line, CsvLine))))


def table_rows(table: pa.Table) -> Iterator[ParsedLine]:
    """Iterate over a table's rows; text that is not UTF-8 becomes surrogates, as in a line."""
    if not any(not_utf8(column, "a column") for column in table.columns):
        yield from (ParsedLine(row, None) for row in python_rows(table))
        return
    as_bytes = pa.schema([(field.name, plain(field.type, pa.binary())) for field in table.schema])
    for row in python_rows(table.cast(as_bytes)):
        yield ParsedLine({name: _decoded(cell) for name, cell in row.items()}, "invalid UTF-8")


def _decoded(value: object) -> object:
    if isinstance(value, bytes):
        return value.decode("utf-8", "surrogateescape")
    if isinstance(value, list):
        return [_decoded(entry) for entry in value]
    return {name: _decoded(cell) for name, cell in value.items()} if isinstance(value, dict) else value


def csv_row(line: CsvLine) -> ParsedLine:
    """Take one record as a row, empty fields as None, or raise Reject."""
    if line.error is not None:
        raise Reject(f"line is not CSV: {line.error}")
    if len(line.fields) != len(line.header):
        raise Reject(f"row has {len(line.fields)} fields, header has {len(line.header)}")
    doubt = "invalid UTF-8" if surrogate("".join(line.fields)) else None
    return ParsedLine({name: field or None for name, field in zip(line.header, line.fields, strict=True)}, doubt)


def csv_shown(line: CsvLine) -> object:
    """Return a record as it is shown among the rejected."""
    fields = [legible(field.encode("utf-8", "surrogateescape")) for field in line.fields]
    return dict(zip(line.header, fields, strict=True)) if len(fields) == len(line.header) else fields


class _Cells:
    """Counts of the kinds of cells in one CSV column."""

    def __init__(self) -> None:
        self.numbers = self.fractions = self.truths = self.texts = 0
        self.largest = 0

    def add(self, cell: str) -> None:
        """Count one cell that is not empty."""
        cell = cell.strip()
        if _WHOLE.fullmatch(cell):
            self.numbers += 1
            self.largest = max(self.largest, abs(int(cell)) if len(cell) < 40 else 10**40)
        elif _FRACTION.fullmatch(cell) and math.isfinite(float(cell)):
            self.numbers += 1
            self.fractions += 1
        elif cell.lower() in _NOT_FINITE:
            self.fractions += 1
        elif cell.lower() in _TRUTH:
            self.truths += 1
        else:
            self.texts += 1

    def kind(self, declared: str | None) -> pa.DataType | None:
        """Return the declared type, or the one that holds all cells without loss; None for text."""
        if declared == "boolean":
            return pa.bool_()
        if declared == "number":
            return pa.float64() if self.fractions or self.largest >= 2**63 else pa.int64()
        if self.texts or declared == "text" or bool(self.truths) == bool(self.numbers):
            return None
        if self.truths:
            return None if self.fractions else pa.bool_()
        if self.fractions:
            return pa.float64() if self.largest <= _EXACT else None
        return pa.int64() if self.largest < 2**63 else None


def csv_types(
    records: Iterable[SourceLine], declared: Mapping[str, str], texts: Collection[str], location: str
) -> dict[str, pa.DataType]:
    """Decide by all cells of all files which columns are numbers or booleans; every other column is text.

    Args:
        records: The records of all files.
        declared: The types that the user gave to columns: text, number or boolean.
        texts: Columns that are text whatever their cells hold.
        location: The source, for errors.

    Raises:
        SourceError: A declared column is in none of the files.
    """
    columns: dict[str, _Cells] = {}
    for line in records:
        if not isinstance(line, CsvLine) or line.error is not None or len(line.fields) != len(line.header):
            continue
        for name, cell in zip(line.header, line.fields, strict=True):
            cells = columns.get(name) or columns.setdefault(name, _Cells())
            # One cell of text settles a column: the others need no parsing. For most columns that is the first row.
            if cell and not (cells.texts and declared.get(name) != "number") and name not in texts:
                cells.add(cell)
    for name in declared:
        if columns and name not in columns:
            raise SourceError(f"{location}: no column {name!r} for types; it has {', '.join(columns)}")
    kinds = {name: cells.kind(declared.get(name)) for name, cells in columns.items() if name not in texts}
    return {name: kind for name, kind in kinds.items() if kind is not None}


def csv_value(cell: object, kind: pa.DataType | None) -> object:
    """Return a cell as a value of its column's type, or its text where it is no such value."""
    if kind is None or not isinstance(cell, str):
        return cell
    text = cell.strip()
    if pa.types.is_boolean(kind):
        return _TRUTH.get(text.lower(), cell)
    if pa.types.is_integer(kind) and _ANY_NUMBER.fullmatch(text) and text.lstrip("+-").isdigit():
        return int(text) if len(text) < 40 else cell
    if pa.types.is_floating(kind) and (_ANY_NUMBER.fullmatch(text) or text.lower() in _NOT_FINITE):
        return float(text)
    return cell


# Parquet and Arrow files.


def matches(pattern: str, kind: str) -> list[Path]:
    """List the files a path, a folder or a glob stands for."""
    path = Path(pattern).expanduser()
    if path.is_dir() and kind != "parquet":
        raise SourceError(f"{pattern} is a folder; name the files in it, say {pattern.rstrip('/')}/*.{kind}")
    if path.exists() and not path.is_dir():
        return [path]
    candidates = path.glob("*.parquet") if path.is_dir() else map(Path, glob.glob(str(path), recursive=True))
    files = [file for file in candidates if file.is_file()]
    if not files and path.is_dir():
        # Spark, DuckDB and pyarrow write a table into folders by the values of a column.
        files = [file for file in path.rglob("*.parquet") if file.is_file()]
    if not files:
        raise SourceError(f"{pattern}: no such file, and nothing that matches; check the path")
    return files


def partitions(patterns: Sequence[str], files: Sequence[Path]) -> dict[Path, dict[str, object]]:
    """Return the columns that are in the names of folders, `lang=en`, by file; only folders below a pattern's fixed part.

    A column is whole numbers where all of its values are, and text otherwise.
    """
    roots = [_fixed_part(pattern) for pattern in patterns]
    texts: dict[Path, dict[str, str | None]] = {}
    for path in files:
        root = max(
            (root for root in roots if path.is_relative_to(root)), key=lambda root: len(root.parts), default=None
        )
        folders = path.relative_to(root).parts[:-1] if root is not None else ()
        named = [folder.partition("=") for folder in folders if "=" in folder]
        values = {name: None if value == _HIVE_NULL else unquote(value) for name, _, value in named if name}
        if values:
            texts[path] = values
    found: dict[str, list[str]] = {}
    for values in texts.values():
        for name, value in values.items():
            found.setdefault(name, []).extend([] if value is None else [value])
    whole = {name for name, cells in found.items() if cells and all(len(c) < 19 and _WHOLE.fullmatch(c) for c in cells)}
    return {
        path: {name: int(value) if name in whole and value is not None else value for name, value in values.items()}
        for path, values in texts.items()
    }


def _fixed_part(pattern: str) -> Path:
    """Return the folder of a pattern before its first wildcard; of a folder, itself; of a file, its folder."""
    path = Path(pattern).expanduser()
    if path.is_dir():
        return path
    parts = list(path.parts)
    first = next((i for i, part in enumerate(parts) if glob.has_magic(part)), len(parts) - 1)
    return Path(*parts[:first]) if first else Path()


def saved_files(folder: Path, split: str) -> list[Path]:
    """List the Arrow files of a folder that `datasets` wrote with save_to_disk."""
    try:
        splits = folder / "dataset_dict.json"
        if splits.exists():
            names = json.loads(splits.read_text("utf-8"))["splits"]
            if split not in names:
                raise SourceError(f"{folder}: no split {split!r}; it has {', '.join(names)}")
            folder = folder / split
        files = json.loads((folder / "state.json").read_text("utf-8"))["_data_files"]
        return [folder / file["filename"] for file in files]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise SourceError(f"{folder} is no save_to_disk folder; name one, or .arrow files") from error


def source_sha256(path: Path) -> str:
    """Return the hash of a source's file; see `hashes.sha256`."""
    with _reading(path):
        return hashes.sha256(path)


@contextmanager
def _reading(path: Path | str) -> Iterator[None]:
    try:
        yield
    except (OSError, EOFError, zlib.error, lzma.LZMAError, pa.ArrowException) as error:
        raise SourceError(f"{path} cannot be read: {typed_line(error)}; check the file") from error


def refuse_twins(names: Sequence[str], path: Path | str) -> None:
    """Refuse columns of one name."""
    for name in names:
        if names.count(name) > 1:
            raise SourceError(f"{path} has two columns called {name!r}; write it again with one")


def unified(files: list[Path], read_schema: Callable[[Path], pa.Schema]) -> pa.Schema:
    """Unite the schemas of several files by column name; a column whose types have nothing in common becomes text."""
    united = pa.schema([])
    for path in files:
        with _reading(path):
            schema = read_schema(path)
        refuse_twins(schema.names, path)
        for field in map(column_field, schema):
            try:
                united = pa.unify_schemas([united, pa.schema([field])], promote_options="permissive")
            except pa.ArrowException:
                index = united.get_field_index(field.name)
                other = united.field(index)
                form = (
                    _AS_JSON if _is_json(other) or any(map(pa.types.is_nested, (other.type, field.type))) else _AS_TEXT
                )
                meaning = {"meaning": f"{form} {other.type!s:.80} and {field.type!s:.80}"}
                united = united.set(index, pa.field(field.name, pa.string(), metadata=meaning))
    return united


def _is_json(field: pa.Field) -> bool:
    """Tell whether the files disagree about a column, so that it is kept as JSON text."""
    return _meaning(field).startswith(_AS_JSON)


def _meaning(field: pa.Field) -> str:
    return str((field.metadata or {}).get(b"meaning", b"").decode())


def check_alike(field: pa.Field, location: str) -> None:
    """Refuse to map a column that is nested in some files and not in others: its JSON text is no prompt and no answer.

    Raises:
        SourceError: It is such a column.
    """
    if _is_json(field):
        types = _meaning(field).removeprefix(_AS_JSON).strip()
        raise SourceError(
            f"{location} is {types} in different files, and is read as one; name the files of one kind, or write all alike"
        )


def file_tables(
    files: list[Path], read: _Reader, skip: int, size: int, constants: Mapping[Path, Mapping[str, object]]
) -> Iterator[pa.Table]:
    """Iterate over the tables of several files, the first `skip` rows left out; add a file's constant columns."""
    for path in files:
        with _reading(path):
            skip = yield from _with_constants(read(path, skip, size), constants.get(path, {}))


def _with_constants(
    tables: Generator[pa.Table, None, int], constants: Mapping[str, object]
) -> Generator[pa.Table, None, int]:
    while True:
        try:
            table = next(tables)
        except StopIteration as stop:
            return int(stop.value)
        for name, value in constants.items():
            if name not in table.column_names:
                kind = pa.int64() if isinstance(value, int) else pa.string()
                table = table.append_column(name, pa.repeat(pa.scalar(value, kind), len(table)))
        yield table


def conformed(tables: Iterable[pa.Table], fields: pa.Schema, location: str) -> Iterator[pa.Table]:
    """Cast tables to one schema."""
    spellings = {field.name: "json" if _is_json(field) else "text" for field in fields if _meaning(field)}
    with _reading(location):
        for table in tables:
            for name, spelling in spellings.items() if table.num_rows else ():
                # Arrow spells 4.0 as 4, which JSON lines and a file of numbers alone do not.
                if name in table.column_names and (spelling == "json" or pa.types.is_floating(table[name].type)):
                    index = table.schema.get_field_index(name)
                    table = table.set_column(index, name, _as_text(table[name], spelling))
            yield conform(table, fields, location)


def with_inner(
    fields: pa.Schema, tables: Iterable[pa.Table], names: Sequence[str], location: str
) -> tuple[pa.Schema, Iterator[pa.Table]]:
    """Add fields inside columns, named with dots, as columns of their own; a null parent has null fields.

    Raises:
        SourceError: A column has no such field.
    """
    paths = {name: name.split(".") for name in names}
    for name, (column, *path) in paths.items():
        kind = fields.field(column).type
        for field_name in path:
            field_names = [field.name for field in kind] if pa.types.is_struct(kind) else []
            if field_name not in field_names:
                available = f"it has {', '.join(field_names)}" if field_names else f"{kind} has no fields"
                raise SourceError(f"{location}: no field {field_name!r} of {name!r}; {available}")
            kind = kind.field(field_name).type
        fields = fields.append(pa.field(name, kind))

    def widened() -> Iterator[pa.Table]:
        for table in tables:
            for name, (column, *path) in paths.items():
                table = table.append_column(name, pc.struct_field(table[column], path))
            yield table

    return fields, widened()


def with_inner_cells(cells: dict[str, object], names: Sequence[str]) -> dict[str, object]:
    """Add fields inside a line's objects, named with dots, as cells of their own, where they are there."""
    widened = dict(cells) if names else cells
    for name in names:
        value: object = cells
        for field_name in name.split("."):
            value = value.get(field_name, _ABSENT) if isinstance(value, dict) else _ABSENT
        if value is not _ABSENT:
            widened[name] = value
    return widened


_ABSENT = object()


def regrouped(tables: Iterable[pa.Table], size: int) -> Iterator[pa.Table]:
    """Cut tables of any size into tables of `size` rows."""
    pending: pa.Table | None = None
    for table in tables:
        pending = table if pending is None else pa.concat_tables([pending, table])
        while pending.num_rows >= size:
            yield pending.slice(0, size)
            pending = pending.slice(size)
    if pending is not None and pending.num_rows:
        yield pending


def parquet_tables(path: Path, skip: int, size: int) -> Generator[pa.Table, None, int]:
    """Iterate over the rows after the first `skip`; return how many are still to skip."""
    with pq.ParquetFile(path) as file:
        groups = list(range(file.num_row_groups))
        while groups and skip >= file.metadata.row_group(groups[0]).num_rows:
            skip -= file.metadata.row_group(groups.pop(0)).num_rows
        # One group after another: asked for several, the reader holds them all.
        for batch in (batch for group in groups for batch in file.iter_batches(batch_size=size, row_groups=[group])):
            yield pa.Table.from_batches([batch]).slice(min(skip, len(batch)))
            skip = max(0, skip - len(batch))
    return skip


def _arrow_batches(path: Path) -> tuple[pa.Schema, Iterator[pa.RecordBatch]]:
    """Open the file format or the stream format, which share the suffix."""
    file = pa.memory_map(str(path))
    if file.read(6) == b"ARROW1":
        reader = pa.ipc.open_file(file)
        return reader.schema, (reader.get_batch(number) for number in range(reader.num_record_batches))
    file.seek(0)
    stream = pa.ipc.open_stream(file)
    return stream.schema, iter(stream)


def arrow_schema(path: Path) -> pa.Schema:
    """Read the schema of an Arrow file or stream."""
    return _arrow_batches(path)[0]


def arrow_tables(path: Path, skip: int, size: int) -> Generator[pa.Table, None, int]:
    """Iterate over an Arrow file's tables; returns how many rows are still to be skipped."""
    for batch in _arrow_batches(path)[1]:
        for start in range(skip, len(batch), size):
            yield pa.Table.from_batches([batch.slice(start, size)])
        skip = max(0, skip - len(batch))
    return skip
