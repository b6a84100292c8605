"""One shard: a Parquet file that is whole or not there, and that knows whose it is.

It is written beside its place, synced and renamed into it. Its footer names the fingerprint's fingerprint and the
shard's number, and carries the SHA-256 of the whole file, computed with that one field zeroed; so a flipped bit,
a truncated file, a neighbour's shard or an older configuration's is found when it is read. It also names the seals
of the columns' shards it was made from, so that one made from others than are there now is found too. A folder of
other files has a list of their hashes, as `sha256sum -c` reads it.
"""

from __future__ import annotations

import ctypes
import errno
import hashlib
import json
import os
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import pyarrow as pa
import pyarrow.parquet as pq

from seamcurate.errors import DamagedError, StoreError
from seamcurate.storage import atomic, hashes
from seamcurate.storage.objects import LISTED, ObjectPath, Place, local

# Keys of a shard's Parquet metadata. They are bytes of the file format: stores made before have them.
_FINGERPRINT = b"seamcurate.maker"
"""The fingerprint of the columns that the shard belongs to."""
_NUMBER = b"seamcurate.shard"
_INPUT_CHECKSUMS = b"seamcurate.made_of"
"""As JSON, the checksums of the columns' shards that the values were computed from, by folder."""
_CHECKSUM = b"seamcurate.sha256"
"""The SHA-256 of the whole file, computed with these 64 hexadecimal digits as zeros."""
_CHECKSUM_FIELD = re.compile(re.escape(_CHECKSUM) + rb".{1,8}?([0-9a-f]{64})", re.DOTALL)
_ZEROS = b"0" * 64

_Key = tuple[int, int, int, str, int]
_verified: dict[Path, _Key] = {}
_bounding: set[Path] = set()
"""Verified files with statistics of fractions."""
_FORGET_FROM = 4096
_forget_at = _FORGET_FROM


def give_back() -> None:
    """Give freed memory back to the machine: allocators keep what they were given, each for its own next use."""
    pa.default_memory_pool().release_unused()
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None) if os.name == "posix" else None
    if trim is not None:
        trim(0)


def write(
    path: Place, table: pa.Table, fingerprint: str, number: int, input_checksums: Mapping[str, str] | None = None
) -> None:
    """Write a table as shard `number` of the columns whose fingerprint is `fingerprint`; see `encode`."""
    replace(path, encode(path, table.schema, [table], fingerprint, number, input_checksums))


def write_parts(path: Place, schema: pa.Schema, parts: Iterable[pa.Table], fingerprint: str, number: int) -> None:
    """Write tables of one schema as one shard, a row group each."""
    replace(path, encode(path, schema, parts, fingerprint, number))


def encode(
    path: Place,
    schema: pa.Schema,
    parts: Iterable[pa.Table],
    fingerprint: str,
    number: int,
    input_checksums: Mapping[str, str] | None = None,
) -> bytearray:
    """Return what `path` is to hold: tables of one schema as one sealed shard, a row group each.

    Args:
        path: Where it will lie, for messages.
        schema: The tables' schema.
        parts: The tables.
        fingerprint: Their columns' fingerprint.
        number: The shard's number.
        input_checksums: Seals of the shards its values were computed from, by their columns' folder.
    """
    sink = pa.BufferOutputStream()
    # Numbers are split by bytes or by differences: half the size of what zstd makes of them as they are.
    leaves = {path: kind for field in schema for path, kind in _leaves(field.name, field.type)}
    encodings = {path: encoding for path, kind in leaves.items() if (encoding := _encoding(kind))}
    texts = [path for path in leaves if path not in encodings]
    with pq.ParquetWriter(
        sink,
        schema,
        compression="zstd",
        use_dictionary=texts,
        column_encoding=encodings,
        write_statistics=with_statistics(schema),
    ) as writer:
        for table in parts:
            writer.write_table(table, row_group_size=max(1, table.num_rows))
        said = {_FINGERPRINT: fingerprint, _NUMBER: str(number)}
        if input_checksums:
            said[_INPUT_CHECKSUMS] = json.dumps(input_checksums, sort_keys=True)
        writer.add_key_value_metadata({**said, _CHECKSUM: _ZEROS.decode()})
    whole = bytearray(sink.getvalue())
    start, end = _checksum_span(whole, path)
    whole[start:end] = hashlib.sha256(whole).hexdigest().encode()
    return whole


def checksum(content: bytes | bytearray, path: Place) -> str:
    """Return the seal of a shard's content."""
    start, end = _checksum_span(content, path)
    return content[start:end].decode()


class Footer(NamedTuple):
    """What a shard's footer says of it."""

    fingerprint: str
    number: str
    checksum: str
    """The file's hash with this field zeroed."""
    input_checksums: dict[str, str]
    """Seals of the columns' shards it was made from, by their folder."""


def footer(path: Place) -> Footer:
    """Read what a shard says of itself, unverified.

    Raises:
        DamagedError: See `metadata`.
    """
    found = metadata(path).metadata or {}
    fingerprint, number, seal = (
        found.get(key, b"").decode("utf-8", "replace") for key in (_FINGERPRINT, _NUMBER, _CHECKSUM)
    )
    try:
        input_checksums = {
            str(folder): str(one) for folder, one in json.loads(found.get(_INPUT_CHECKSUMS, b"{}")).items()
        }
    except (ValueError, AttributeError) as error:
        raise DamagedError(f"{path} is no readable shard: it was altered; {hint(path)}") from error
    return Footer(fingerprint, number, seal, input_checksums)


def read(path: Place, fingerprint: str, number: int, columns: Sequence[str] | None = None) -> pa.Table:
    """Read a shard's columns, those of the named that it has, after verifying the file.

    Raises:
        DamagedError: The file is missing, altered, another shard's or another configuration's.
    """
    with pq.ParquetFile(verify(path, fingerprint, number)) as file:
        table = file.read(None if columns is None else list(columns), use_threads=False)
    # A name is also taken for the beginning of a dotted one.
    return table if columns is None else table.select([name for name in columns if name in table.column_names])


def metadata(path: Place) -> pq.FileMetaData:
    """Read what a shard's footer says, unverified.

    Raises:
        DamagedError: The file is missing, or no Parquet file any more.
    """
    try:
        return pq.read_metadata(path if isinstance(path, Path) else pa.BufferReader(path.footer()))
    except (OSError, pa.ArrowException) as error:
        raise _unreadable(path, error) from error


def verify(path: Place, fingerprint: str, number: int) -> Path:
    """Check a shard's checksum, fingerprint and number; a file seen unchanged before is not hashed again.

    Returns the file, or the local copy of the object.

    Raises:
        DamagedError: See `read`.
    """
    if isinstance(path, Path) and path.is_symlink():
        raise DamagedError(f"{path} is a link and no file of the store; put the file itself in its place")
    try:
        if isinstance(path, ObjectPath) and (copy := path.kept()) is not None:
            try:
                return _verify(copy, path, fingerprint, number)
            except DamagedError:
                # It may be the copy that was altered.
                path.forget()
        return _verify(local(path), path, fingerprint, number)
    except OSError as error:
        raise _unreadable(path, error) from error


def _verify(file: Path, path: Place, fingerprint: str, number: int) -> Path:
    key = _key(file, fingerprint, number)
    if _verified.get(file) == key:
        return file
    content = file.read_bytes()
    start, end = _checksum_span(content, path)
    whole = memoryview(content)
    computed = hashlib.sha256(whole[:start])
    computed.update(_ZEROS)
    computed.update(whole[end:])
    if computed.hexdigest().encode() != content[start:end]:
        raise DamagedError(f"{path} was altered after it was written: its checksum does not match; {hint(path)}")
    footer = pq.read_metadata(pa.BufferReader(pa.py_buffer(content)))
    found = footer.metadata or {}
    if found.get(_FINGERPRINT) != fingerprint.encode() or found.get(_NUMBER) != str(number).encode():
        raise DamagedError(f"{path} belongs to another shard or another configuration; {hint(path)}")
    _remember(file, key)
    (_bounding.add if _bounds_fractions(footer) else _bounding.discard)(file)
    return file


def _remember(path: Path, key: tuple[int, int, int, str, int]) -> None:
    """Note a verified file; whenever twice as many are noted, those that are gone are forgotten."""
    global _forget_at
    if len(_verified) >= _forget_at:
        for gone in [noted for noted in list(_verified) if not noted.exists()]:
            _verified.pop(gone, None)
            _bounding.discard(gone)
        _forget_at = max(_FORGET_FROM, 2 * len(_verified))
    _verified[path] = key


def verified(path: Place, fingerprint: str, number: int) -> bool:
    """Tell whether a shard was verified before and is unchanged since."""
    file = path if isinstance(path, Path) else path.kept()
    if file is None or not file.exists() or (file is path and file.is_symlink()):
        return False
    return _verified.get(file) == _key(file, fingerprint, number)


def _key(path: Path, fingerprint: str, number: int) -> _Key:
    state = path.stat()
    return state.st_size, state.st_mtime_ns, state.st_ino, fingerprint, number


def write_checksums(folder: Path) -> None:
    """List the hashes of a folder's files beside them, once all of them are on the disk; one listed stays as it is."""
    file = folder / LISTED
    listed = file.read_text(encoding="utf-8") if file.exists() else None
    known = {line.partition("  ")[2]: line for line in (listed or "").splitlines(keepends=True)}
    there = {f"{one.relative_to(folder)}\n": one for one in _files(folder)}
    for name in there.keys() - known.keys():
        with there[name].open("rb") as handle:
            os.fsync(handle.fileno())
        known[name] = f"{hashes.read_sha256(there[name])}  {name}"
    now = "".join(known[name] for name in sorted(known))
    if now != listed:
        replace(file, now.encode())


def verify_folder(folder: Path) -> None:
    """Check every file of a folder against the list beside them; one seen unchanged before is not hashed again.

    Raises:
        DamagedError: A file is altered, missing or not listed; or there is no list.
    """
    try:
        listed = (folder / LISTED).read_text(encoding="utf-8", errors="replace")
    except FileNotFoundError as error:
        raise DamagedError(f"{folder} has no list of its files' hashes; {hint(folder)}") from error
    files = {f"{file.relative_to(folder)}\n": file for file in _files(folder)}
    there = "".join(f"{hashes.read_sha256(files[name])}  {name}" for name in sorted(files))
    if there != listed:
        names = {line.partition("  ")[2] for line in {*there.splitlines()} ^ {*listed.splitlines()}}
        raise DamagedError(
            f"{folder} is not what was made: {', '.join(sorted(names)) or LISTED} altered, missing or not listed; "
            f"{hint(folder)}"
        )


def _files(folder: Path) -> list[Path]:
    # What is being written when somebody looks, or was when it was killed, is none of them.
    files = (file for file in folder.rglob("*") if file.is_file())
    # Nor is what a desktop lays into every folder: a step's files begin with no dot.
    return sorted(f for f in files if not any(part.startswith(".") for part in f.relative_to(folder).parts))


def replace(path: Place, content: bytes | bytearray) -> None:
    """Put a file in its place whole: written beside it, synced, renamed; an object by one request."""
    if isinstance(path, ObjectPath):
        return path.put(content)
    try:
        atomic.write(path, content)
    except OSError as error:
        raise StoreError(
            f"{path} cannot be written: {error.strerror}; what was there before is untouched: fix that and run the same again"
        ) from error


def with_statistics(schema: pa.Schema) -> list[str]:
    """Name the Parquet columns that may have their least and greatest value written beside them: all but fractions.

    These would leave NaN out, and a reader that trusts them (duckdb/duckdb#25521) loses rows with NaN or takes them for
    small ones, as the row groups happen to lie.
    """
    leaves = (leaf for field in schema for leaf in _leaves(field.name, field.type))
    return [path for path, kind in leaves if not pa.types.is_floating(kind)]


def bounds_fractions(path: Place) -> bool:
    """Tell whether a verified shard has the least and greatest value of a column of fractions beside it: one of before."""
    return (path if isinstance(path, Path) else path.kept()) in _bounding


def _bounds_fractions(footer: pq.FileMetaData) -> bool:
    groups = [footer.row_group(number) for number in range(min(1, footer.num_row_groups))]
    columns = [group.column(i) for group in groups for i in range(group.num_columns)]
    return any(column.physical_type in ("FLOAT", "DOUBLE") and column.is_stats_set for column in columns)


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


def hint(path: Place) -> str:
    """Say what to do about a damaged file of a store."""
    # A run looks for damage only where it need not download all to find it.
    return f"{'' if isinstance(path, Path) else 'delete it and '}run the recipe again to make it anew"


def _unreadable(path: Place, error: Exception) -> StoreError:
    """Tell a file that is gone or broken from one that this user, or this moment, cannot read."""
    if isinstance(error, FileNotFoundError):
        return DamagedError(f"{path} is missing; {hint(path)}")
    if isinstance(error, OSError) and error.errno not in (None, errno.EIO):
        return StoreError(f"{path} cannot be read: {error.strerror}; fix that and run the same again")
    return DamagedError(f"{path} cannot be read: it was altered or cut short, or the disk fails; {hint(path)}")


def _checksum_span(content: bytes | bytearray, path: Place) -> tuple[int, int]:
    place = content.rfind(_CHECKSUM)
    found = _CHECKSUM_FIELD.match(content, place) if place >= 0 else None
    if found is None:
        raise DamagedError(
            f"{path} is no shard with a checksum: it was cut short or not written by seamcurate; {hint(path)}"
        )
    return found.span(1)
