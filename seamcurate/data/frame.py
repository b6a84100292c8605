"""Rows in memory as a source: a frame of pandas or Polars, an Arrow table, a data set of `datasets`, or a list of dicts.

One rule: what a source gives is decided when it is made. A frame that may change in place is copied, and the hash of the
content is the source's identity: the same rows from pandas, Polars and Arrow are the same source.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from functools import cached_property
from typing import Any, TypeAlias

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from seamcurate.data import formats
from seamcurate.errors import SourceError, first_line
from seamcurate.text import counted

_KINDS = "a pandas or Polars frame, a pyarrow Table, a `datasets` Dataset, or a list of dicts"


class Frame:
    """Rows in memory: an Arrow table, or JSON lines where the rows were dicts, which may each have another mistake.

    Args:
        rows: The rows, of any kind that `of` takes.

    Raises:
        SourceError: They are of another kind, or a column or a value is one that Arrow or JSON cannot hold.
    """

    def __init__(self, rows: object) -> None:
        self.table: pa.Table | None = None
        self.lines: tuple[bytes, ...] = ()
        if isinstance(rows, list | tuple):
            self.title, self.lines = "a list of dicts", tuple(_lines(rows))
            self.rows = len(self.lines)
        else:
            self.title, self.table = _converted(rows)
            formats.refuse_twins(self.table.column_names, f"data, {self.title},")
            self.rows = int(self.table.num_rows)

    @cached_property
    def sha256(self) -> str:
        """Return the hash of the content: types, names and values, but not how they are laid out in memory."""
        if self.table is None:
            return hashlib.sha256(b"\n".join(self.lines)).hexdigest()
        kinds = [formats.plain(kind, pa.string()) for kind in self.table.schema.types]
        names = self.table.column_names
        hashed = _Hashes([f"{name}: {kind}" for name, kind in zip(names, kinds, strict=True)])
        for name, column, kind in zip(names, self.table.columns, kinds, strict=True):
            for piece in formats.cast(column, kind).chunks:
                _hash(hashed, (name,), piece)
        return hashed.digest()

    def tables(self, skip: int, size: int) -> Iterator[pa.Table]:
        """Iterate over the table's rows after the first `skip`, so many at a time."""
        assert self.table is not None
        for start in range(skip, self.table.num_rows, size):
            yield self.table.slice(start, size)

    def described(self) -> dict[str, str | int]:
        """Return what a record says of rows that it does not hold."""
        return {"in_memory": self.title, "rows": self.rows, "sha256": self.sha256}

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Frame) and self.sha256 == other.sha256

    def __hash__(self) -> int:
        return hash(self.sha256)

    def __repr__(self) -> str:
        return f"<{self.title} of {counted(self.rows, 'row')}>"


def _converted(rows: object) -> tuple[str, pa.Table]:
    """Return what rows are called, and their Arrow table.

    The library of a frame is known by its module's name: none of them is imported here.
    """
    library, kind = type(rows).__module__.partition(".")[0], type(rows).__name__
    frame: Any = rows
    try:
        if isinstance(rows, pa.Table):
            return "a pyarrow Table", rows
        if library == "polars" and kind == "DataFrame":
            return "a Polars frame", frame.to_arrow()
        if library == "pandas" and kind == "DataFrame":
            return "a pandas frame", _from_pandas(frame)
        if library == "datasets" and kind == "Dataset":
            # `.data` would be the table without `select`, `filter` and `shuffle`, which are indices over it.
            return "a Dataset", frame.with_format("arrow")[:]
    except (pa.ArrowException, ValueError, TypeError) as error:
        raise SourceError(f"data: a {kind} that Arrow cannot hold: {first_line(error)}; convert that column") from error
    hint = {"LazyFrame": "; call its .collect()", "DatasetDict": "; name a split, such as data['train']"}.get(kind, "")
    raise SourceError(f"data is a {kind}; give {_KINDS}{hint}")


def _from_pandas(frame: Any) -> pa.Table:
    """Return a copy of a pandas frame: an index with a name becomes a column, others are left out."""
    named = any(name is not None for name in frame.index.names)
    table = pa.Table.from_pandas(frame.reset_index() if named else frame, preserve_index=False)
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, table.schema.remove_metadata()) as writer:
        writer.write_table(table)
    return pa.ipc.open_stream(sink.getvalue()).read_all()


def _lines(rows: Sequence[object]) -> Iterator[bytes]:
    for number, row in enumerate(rows):
        if not isinstance(row, Mapping):
            raise SourceError(f"data: item {number} of the list is a {type(row).__name__}; give {_KINDS}")
        try:
            yield json.dumps(dict(row), ensure_ascii=False).encode("utf-8", "surrogatepass")
        except (TypeError, ValueError, RecursionError) as error:
            raise SourceError(
                f"data: item {number} of the list cannot be JSON: {first_line(error)}; give a pyarrow Table, say"
            ) from error


_Path: TypeAlias = tuple[str, ...]


class _Hashes:
    """Hashes of streams of bytes, each by the path of a type's part, so that no cut into chunks changes them."""

    def __init__(self, columns: list[str]) -> None:
        self._columns, self._streams = columns, dict[_Path, Any]()

    def add(self, path: _Path, content: memoryview) -> None:
        """Add bytes to the stream of a path; a stream without any is as good as none."""
        if content.nbytes:
            self._streams.setdefault(path, hashlib.sha256()).update(content)

    def digest(self) -> str:
        """Return one hash of all streams."""
        streams = [[path, self._streams[path].hexdigest()] for path in sorted(self._streams)]
        return hashlib.sha256(json.dumps([self._columns, streams]).encode()).hexdigest()


def _hash(hashed: _Hashes, path: _Path, array: pa.Array) -> None:
    """Add an array's values: which are there, how long each is, and the values themselves.

    What lies under a NULL is undefined and is left out.
    """
    types, kind, present = pa.types, array.type, array.drop_null()
    hashed.add((*path, "valid"), _bytes(array.is_valid()))
    if types.is_struct(kind):
        for field, child in zip(kind, present.flatten(), strict=True):
            _hash(hashed, (*path, "field", field.name), child)
    elif types.is_map(kind):
        offsets = present.offsets.to_numpy()
        hashed.add((*path, "lengths"), _bytes(pa.array(np.diff(offsets))))
        for part, children in (("keys", present.keys), ("items", present.items)):
            _hash(hashed, (*path, part), children.slice(offsets[0], offsets[-1] - offsets[0]))
    elif types.is_list(kind) or types.is_fixed_size_list(kind):
        hashed.add((*path, "lengths"), _bytes(pc.list_value_length(present)))
        _hash(hashed, (*path, "items"), present.flatten())
    elif types.is_string(kind) or types.is_binary(kind):
        hashed.add((*path, "lengths"), _bytes(pc.binary_length(present)))
        first, last = np.frombuffer(present.buffers()[1], np.int32)[[present.offset, present.offset + len(present)]]
        hashed.add(path, memoryview(present.buffers()[2] or b"")[first:last])
    elif types.is_boolean(kind):
        hashed.add(path, _bytes(present))
    elif not types.is_null(kind) and len(present):
        width, start = kind.bit_width // 8, present.offset
        hashed.add(path, memoryview(present.buffers()[1])[start * width : (start + len(present)) * width])


def _bytes(values: pa.Array) -> memoryview:
    """Return the bytes of numbers or booleans, none of them NULL; a boolean is a byte."""
    return memoryview(np.ascontiguousarray(values.to_numpy(zero_copy_only=False)).view(np.uint8).data)
