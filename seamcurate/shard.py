"""One shard: a Parquet file that is whole or not there, and that knows whose it is.

It is written beside its place, synced and renamed into it. Its footer names the maker's fingerprint and the
shard's number, and carries the SHA-256 of the whole file, computed with that one field zeroed; so a flipped bit,
a truncated file, a neighbour's shard or an older configuration's is found when it is read.
"""

from __future__ import annotations

import ctypes
import hashlib
import os
import re
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from uuid import uuid4

import pyarrow as pa
import pyarrow.parquet as pq

from seamcurate.errors import DamagedError, StoreError
from seamcurate.objects import ObjectPath, Place, local

_SEAL = b"seamcurate.sha256"
_SEALED = re.compile(re.escape(_SEAL) + rb".{1,8}?([0-9a-f]{64})", re.DOTALL)
_OPEN = b"0" * 64

_verified: dict[Path, tuple[int, int, int, str, int]] = {}
_FORGET_FROM = 4096
_forget_at = _FORGET_FROM


def give_back() -> None:
    """Give freed memory back to the machine: allocators keep what they were given, each for its own next use."""
    pa.default_memory_pool().release_unused()
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None) if os.name == "posix" else None
    if trim is not None:
        trim(0)


def write(path: Place, table: pa.Table, maker: str, number: int) -> None:
    """Write a table as shard `number` of the columns whose fingerprint is `maker`."""
    write_parts(path, table.schema, [table], maker, number)


def write_parts(path: Place, schema: pa.Schema, parts: Iterable[pa.Table], maker: str, number: int) -> None:
    """Write tables of one schema as one shard, a row group each."""
    sink = pa.BufferOutputStream()
    # Numbers are split by bytes or by differences: half the size of what zstd makes of them as they are.
    leaves = {path: kind for field in schema for path, kind in _leaves(field.name, field.type)}
    encodings = {path: encoding for path, kind in leaves.items() if (encoding := _encoding(kind))}
    texts = [path for path in leaves if path not in encodings]
    with pq.ParquetWriter(sink, schema, compression="zstd", use_dictionary=texts, column_encoding=encodings) as writer:
        for table in parts:
            writer.write_table(table, row_group_size=max(1, table.num_rows))
        writer.add_key_value_metadata(
            {"seamcurate.maker": maker, "seamcurate.shard": str(number), _SEAL.decode(): _OPEN.decode()}
        )
    content = bytearray(sink.getvalue())
    start, end = _seal_span(content, path)
    content[start:end] = hashlib.sha256(content).hexdigest().encode()
    replace(path, content)


def read(path: Place, maker: str, number: int, columns: Sequence[str] | None = None) -> pa.Table:
    """Read a shard's columns, those of the named that it has, after verifying the file.

    Raises:
        DamagedError: The file is missing, altered, another shard's or another configuration's.
    """
    with pq.ParquetFile(verify(path, maker, number)) as file:
        table = file.read(None if columns is None else list(columns), use_threads=False)
    # A name is also taken for the beginning of a dotted one.
    return table if columns is None else table.select([name for name in columns if name in table.column_names])


def metadata(path: Place) -> pq.FileMetaData:
    """Read what a shard's footer says."""
    return pq.read_metadata(path if isinstance(path, Path) else pa.BufferReader(path.footer()))


def verify(path: Place, maker: str, number: int) -> Path:
    """Check a shard's checksum, fingerprint and number; a file seen unchanged before is not hashed again.

    Returns the file, or the local copy of the object.

    Raises:
        DamagedError: See `read`.
    """
    try:
        if isinstance(path, ObjectPath) and (copy := path.kept()) is not None:
            try:
                return _verify(copy, path, maker, number)
            except DamagedError:
                # It may be the copy that was altered.
                path.forget()
        return _verify(local(path), path, maker, number)
    except FileNotFoundError as error:
        raise DamagedError(f"{path} is missing; run the recipe again to make it anew") from error


def _verify(file: Path, path: Place, maker: str, number: int) -> Path:
    key = _key(file, maker, number)
    if _verified.get(file) == key:
        return file
    content = file.read_bytes()
    start, end = _seal_span(content, path)
    whole = memoryview(content)
    computed = hashlib.sha256(whole[:start])
    computed.update(_OPEN)
    computed.update(whole[end:])
    if computed.hexdigest().encode() != content[start:end]:
        raise DamagedError(f"{path} was altered after it was written: its checksum does not match; {_CURE}")
    marks = pq.read_metadata(pa.BufferReader(pa.py_buffer(content))).metadata or {}
    if marks.get(b"seamcurate.maker") != maker.encode() or marks.get(b"seamcurate.shard") != str(number).encode():
        raise DamagedError(f"{path} belongs to another shard or another configuration; {_CURE}")
    _remember(file, key)
    return file


def _remember(path: Path, key: tuple[int, int, int, str, int]) -> None:
    """Note a verified file; whenever twice as many are noted, those that are gone are forgotten."""
    global _forget_at
    if len(_verified) >= _forget_at:
        for gone in [noted for noted in list(_verified) if not noted.exists()]:
            _verified.pop(gone, None)
        _forget_at = max(_FORGET_FROM, 2 * len(_verified))
    _verified[path] = key


def verified(path: Place, maker: str, number: int) -> bool:
    """Tell whether a shard was verified before and is unchanged since."""
    file = path if isinstance(path, Path) else path.kept()
    return file is not None and file.exists() and _verified.get(file) == _key(file, maker, number)


def _key(path: Path, maker: str, number: int) -> tuple[int, int, int, str, int]:
    state = path.stat()
    return state.st_size, state.st_mtime_ns, state.st_ino, maker, number


def replace(path: Place, content: bytes | bytearray) -> None:
    """Put a file in its place whole: written beside it, synced, renamed; an object by one request."""
    if isinstance(path, ObjectPath):
        return path.put(content)
    # Not by the process number: two machines that share the folder may have the same.
    beside = path.with_name(f".{path.name}.{uuid4().hex}.tmp")
    try:
        with beside.open("wb") as handle:
            handle.write(content)
            handle.flush()
            os.fsync(handle.fileno())
        os.replace(beside, path)
        folder = os.open(path.parent, os.O_RDONLY)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)
    except OSError as error:
        beside.unlink(missing_ok=True)
        raise StoreError(f"{path} cannot be written: {error.strerror}; what was there before is untouched") from error


def _leaves(path: str, kind: pa.DataType) -> Iterator[tuple[str, pa.DataType]]:
    """Name the Parquet columns that hold an Arrow column."""
    if pa.types.is_list(kind) or pa.types.is_large_list(kind):
        yield from _leaves(f"{path}.list.element", kind.value_type)
    elif pa.types.is_struct(kind):
        for child in kind:
            yield from _leaves(f"{path}.{child.name}", child.type)
    else:
        yield path, kind


def _encoding(kind: pa.DataType) -> str | None:
    if pa.types.is_float32(kind) or pa.types.is_float64(kind):
        return "BYTE_STREAM_SPLIT"
    return "DELTA_BINARY_PACKED" if pa.types.is_int32(kind) or pa.types.is_int64(kind) else None


_CURE = "delete it and run the recipe again to make it anew"


def _seal_span(content: bytes | bytearray, path: Place) -> tuple[int, int]:
    place = content.rfind(_SEAL)
    found = _SEALED.match(content, place) if place >= 0 else None
    if found is None:
        raise DamagedError(f"{path} is no sealed shard: it was cut short or not written by seamcurate; {_CURE}")
    return found.span(1)
