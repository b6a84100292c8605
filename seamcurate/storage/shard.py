"""One shard: a Parquet file that is whole or absent, and whose footer says what it is.

It is written under a temporary name, synced and renamed. Its footer names the fingerprint of its columns and the shard's
number, and holds the SHA-256 of the whole file, computed with that one field as zeros. So a reader notices a flipped
bit, a truncated file, a neighbour's shard and a shard of an older configuration. The footer also names the checksums of
the shards that the values were computed from, so that a shard computed from other inputs than the present ones is
noticed. A folder of other files has a list of their hashes, as `sha256sum -c` reads it.
"""

from __future__ import annotations

import ctypes
import errno
import hashlib
import io
import json
import os
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import pyarrow as pa
import pyarrow.parquet as pq
from typing_extensions import Buffer, override

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
"""Verified files that hold statistics of floating-point columns; see `with_statistics`."""
_FORGET_FROM = 4096
"""Verified files from which on those that were deleted since are forgotten."""
_forget_at = _FORGET_FROM


def give_back() -> None:
    """Return freed memory to the system: allocators keep it for their own next use, which other allocators cannot take."""
    pa.default_memory_pool().release_unused()
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None) if os.name == "posix" else None
    if trim is not None:
        trim(0)


def write(
    path: Place, table: pa.Table, fingerprint: str, number: int, input_checksums: Mapping[str, str] | None = None
) -> None:
    """Write a table as shard `number` of the columns whose fingerprint is `fingerprint`; see `encode`."""
    replace(path, encode(path, table.schema, [table], fingerprint, number, input_checksums))


def write_parts(path: Place, schema: pa.Schema, tables: Iterable[pa.Table], fingerprint: str, number: int) -> None:
    """Write tables of one schema as one shard, a row group each."""
    replace(path, encode(path, schema, tables, fingerprint, number))


def encode(
    path: Place,
    schema: pa.Schema,
    tables: Iterable[pa.Table],
    fingerprint: str,
    number: int,
    input_checksums: Mapping[str, str] | None = None,
) -> bytearray:
    """Return the bytes of one shard with its checksum: tables of one schema, a row group each.

    Args:
        path: The shard's path, for messages.
        schema: The tables' schema.
        tables: The tables.
        fingerprint: The fingerprint of their columns.
        number: The shard's number.
        input_checksums: Checksums of the shards that the values were computed from, by column folder.
    """
    sink = _Bytes()
    # Floats are split into streams of bytes, integers into differences: zstd makes half the size of them so.
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
        for table in tables:
            writer.write_table(table, row_group_size=max(1, table.num_rows))
        metadata = {_FINGERPRINT: fingerprint, _NUMBER: str(number)}
        if input_checksums:
            metadata[_INPUT_CHECKSUMS] = json.dumps(input_checksums, sort_keys=True)
        writer.add_key_value_metadata({**metadata, _CHECKSUM: _ZEROS.decode()})
    content = sink.content
    # The field holds zeros while the hash is computed, and the hash afterwards; `_verify` computes it the same way.
    start, end = _checksum_span(content, path)
    content[start:end] = hashlib.sha256(content).hexdigest().encode()
    return content


class _Bytes(io.RawIOBase):
    """A file in memory that can be changed in place: a copy of a large ledger would be the most that its split holds."""

    def __init__(self) -> None:
        super().__init__()
        self.content = bytearray()

    @override
    def writable(self) -> bool:
        return True

    @override
    def write(self, part: Buffer) -> int:
        self.content += part
        return len(memoryview(part))


def checksum(content: bytes | bytearray, path: Place) -> str:
    """Return the checksum that a shard's bytes hold."""
    start, end = _checksum_span(content, path)
    return content[start:end].decode()


class Footer(NamedTuple):
    """What a shard's footer says about the shard."""

    fingerprint: str
    number: str
    checksum: str
    """SHA-256 of the file with this field as zeros."""
    input_checksums: dict[str, str]
    """Checksums of the shards that the values were computed from, by column folder."""


def footer(path: Place) -> Footer:
    """Read a shard's footer without verifying the file.

    Raises:
        DamagedError: See `metadata`.
    """
    metadata_bytes = metadata(path).metadata or {}
    fingerprint, number, own_checksum = (
        metadata_bytes.get(key, b"").decode("utf-8", "replace") for key in (_FINGERPRINT, _NUMBER, _CHECKSUM)
    )
    try:
        input_checksums = {
            str(folder): str(checksum)
            for folder, checksum in json.loads(metadata_bytes.get(_INPUT_CHECKSUMS, b"{}")).items()
        }
    except (ValueError, AttributeError) as error:
        raise DamagedError(f"{path} is no readable shard: it was altered; {hint(path)}") from error
    return Footer(fingerprint, number, own_checksum, input_checksums)


def read(path: Place, fingerprint: str, number: int, columns: Sequence[str] | None = None) -> pa.Table:
    """Verify a shard and read its columns; a named column that it lacks is left out.

    Raises:
        DamagedError: The file is missing, altered, another shard's or another configuration's.
    """
    with pq.ParquetFile(verify(path, fingerprint, number)) as file:
        table = file.read(None if columns is None else list(columns), use_threads=False)
    # The reader takes a name for the prefix of dotted names too, and so may return more columns than were named.
    return table if columns is None else table.select([name for name in columns if name in table.column_names])


def metadata(path: Place) -> pq.FileMetaData:
    """Read a shard's Parquet metadata without verifying the file.

    Raises:
        DamagedError: The file is missing or no Parquet file.
    """
    try:
        if isinstance(path, ObjectPath) and path.kept() is not None:
            try:
                return pq.read_metadata(pa.BufferReader(path.footer()))
            except (OSError, pa.ArrowException):
                # The damage may be in the local copy: download the object again.
                path.forget()
        return pq.read_metadata(path if isinstance(path, Path) else pa.BufferReader(path.footer()))
    except (OSError, pa.ArrowException) as error:
        raise _unreadable(path, error) from error


def verify(path: Place, fingerprint: str, number: int) -> Path:
    """Verify a shard's checksum, fingerprint and number; return the file, or the local copy of the object.

    A file that this process has verified and that has not changed since is not hashed again.

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
                # The damage may be in the local copy: download the object again.
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
    view = memoryview(content)
    computed = hashlib.sha256(view[:start])
    computed.update(_ZEROS)
    computed.update(view[end:])
    if computed.hexdigest().encode() != content[start:end]:
        raise DamagedError(f"{path} was altered after it was written: its checksum does not match; {hint(path)}")
    file_metadata = pq.read_metadata(pa.BufferReader(pa.py_buffer(content)))
    metadata_bytes = file_metadata.metadata or {}
    if metadata_bytes.get(_FINGERPRINT) != fingerprint.encode() or metadata_bytes.get(_NUMBER) != str(number).encode():
        raise DamagedError(f"{path} belongs to another shard or another configuration; {hint(path)}")
    _remember(file, key)
    (_bounding.add if _bounds_fractions(file_metadata) else _bounding.discard)(file)
    return file


def _remember(path: Path, key: tuple[int, int, int, str, int]) -> None:
    """Remember a verified file; forget deleted files each time the number of files has doubled."""
    global _forget_at
    if len(_verified) >= _forget_at:
        for deleted in [file for file in list(_verified) if not file.exists()]:
            _verified.pop(deleted, None)
            _bounding.discard(deleted)
        _forget_at = max(_FORGET_FROM, 2 * len(_verified))
    _verified[path] = key


def verified(path: Place, fingerprint: str, number: int) -> bool:
    """Tell whether this process has verified a shard and it is unchanged since."""
    file = path if isinstance(path, Path) else path.kept()
    # A first query looks up files by the hundred thousand, none of them known: the system is asked about none.
    known = None if file is None else _verified.get(file)
    if file is None or known is None or (file is path and file.is_symlink()):
        return False
    try:
        return known == _key(file, fingerprint, number)
    except FileNotFoundError:
        return False


def _key(path: Path, fingerprint: str, number: int) -> _Key:
    state = path.stat()
    return state.st_size, state.st_mtime_ns, state.st_ino, fingerprint, number


def write_checksums(folder: Path) -> None:
    """Sync a folder's files to the disk and list their hashes in the folder; a listed file keeps its listed hash."""
    file = folder / LISTED
    old_list = file.read_text(encoding="utf-8") if file.exists() else None
    lines = {line.partition("  ")[2]: line for line in (old_list or "").splitlines(keepends=True)}
    files = {f"{path.relative_to(folder)}\n": path for path in _files(folder)}
    for name in files.keys() - lines.keys():
        with files[name].open("rb") as handle:
            os.fsync(handle.fileno())
        lines[name] = f"{hashes.read_sha256(files[name])}  {name}"
    new_list = "".join(lines[name] for name in sorted(lines))
    if new_list != old_list:
        replace(file, new_list.encode())


def verify_folder(folder: Path) -> None:
    """Check every file of a folder against the folder's list; an unchanged file is hashed once in each process.

    Raises:
        DamagedError: A file is altered, missing or not listed; or there is no list.
    """
    try:
        expected = (folder / LISTED).read_text(encoding="utf-8", errors="replace")
    except FileNotFoundError as error:
        raise DamagedError(f"{folder} has no list of its files' hashes; {hint(folder)}") from error
    files = {f"{file.relative_to(folder)}\n": file for file in _files(folder)}
    current = "".join(f"{hashes.read_sha256(files[name])}  {name}" for name in sorted(files))
    if current != expected:
        names = {line.partition("  ")[2] for line in {*current.splitlines()} ^ {*expected.splitlines()}}
        raise DamagedError(
            f"{folder} is not what was made: {', '.join(sorted(names)) or LISTED} altered, missing or not listed; "
            f"{hint(folder)}"
        )


def _files(folder: Path) -> list[Path]:
    # A name that begins with a dot is a temporary file, or a desktop's; a step's own files begin with none.
    files = (file for file in folder.rglob("*") if file.is_file())
    return sorted(f for f in files if not any(n.startswith(".") for n in f.relative_to(folder).parts))


def replace(path: Place, content: bytes | bytearray) -> None:
    """Write a file whole and synced, see `atomic.write`; or put an object by one request.

    Raises:
        StoreError: It cannot be written; the earlier content is unchanged.
    """
    if isinstance(path, ObjectPath):
        return path.put(content)
    try:
        atomic.write(path, content)
    except OSError as error:
        raise StoreError(
            f"{path} cannot be written: {error.strerror}; what was there before is untouched: fix that and run the same again"
        ) from error


def with_statistics(schema: pa.Schema) -> list[str]:
    """Name the Parquet columns that get statistics (least and greatest value): all but those of floating-point numbers.

    Statistics leave NaN out. A reader that trusts them (duckdb/duckdb#25521) loses rows with NaN, or takes NaN for a
    small number, depending on the row groups.
    """
    leaves = (leaf for field in schema for leaf in _leaves(field.name, field.type))
    return [path for path, kind in leaves if not pa.types.is_floating(kind)]


def bounds_fractions(path: Place) -> bool:
    """Tell whether a verified shard has statistics of floating-point columns, as older versions wrote them."""
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
    """Return what to do about a damaged file of a store."""
    # A run looks for damage in a folder alone: on object storage it would have to download everything.
    return f"{'' if isinstance(path, Path) else 'delete it and '}run the recipe again to make it anew"


def _unreadable(path: Place, error: Exception) -> StoreError:
    """Return the error of an unreadable file: damage if it is missing or broken, else a problem such as permissions."""
    if isinstance(error, FileNotFoundError):
        return DamagedError(f"{path} is missing; {hint(path)}")
    if isinstance(error, OSError) and error.errno not in (None, errno.EIO):
        return StoreError(f"{path} cannot be read: {error.strerror}; fix that and run the same again")
    return DamagedError(f"{path} cannot be read: it was altered or cut short, or the disk fails; {hint(path)}")


def _checksum_span(content: bytes | bytearray, path: Place) -> tuple[int, int]:
    position = content.rfind(_CHECKSUM)
    match = _CHECKSUM_FIELD.match(content, position) if position >= 0 else None
    if match is None:
        raise DamagedError(
            f"{path} is no shard with a checksum: it was cut short or not written by seamcurate; {hint(path)}"
        )
    return match.span(1)
