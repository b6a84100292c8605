"""Files of an export: Parquet shards, and a folder that replaces an earlier one in one move."""

from __future__ import annotations

import os
import re
import shutil
import sys
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from seamcurate.errors import ExportError
from seamcurate.publish.formats import TRAINERS
from seamcurate.publish.reward_file import EARLIER_REWARD_FILE, HEAD
from seamcurate.publish.shape import LINES_FILE
from seamcurate.storage import atomic, objects
from seamcurate.tables import json_text, python_rows
from seamcurate.trainers import REWARD_FILE, REWARD_MODULE

_MARKS = (b"seamcurate export", b'{\n  "seamcurate": {')
"""What the first bytes of a file that an export wrote beside its rows hold."""
_ROWS_PER_FILE = 500_000
ROWS_PER_GROUP = 8_192
"""Rows of a row group, few enough that its text fits Arrow's 32-bit offsets."""


def _has_bounds(kind: pa.DataType) -> bool:
    # Statistics of floating-point columns leave NaN out: see `shard.with_statistics`.
    return bool(pa.types.is_primitive(kind)) and not pa.types.is_floating(kind)


def write_rows(tables: Iterable[pa.Table], folder: Path, lines: bool = False, one_file: bool = False) -> int:
    """Write tables as lines of JSON in one file, or as Parquet files, one or as many as keep each small; count rows."""
    return write_lines(tables, folder) if lines else write_shards(tables, folder, sys.maxsize if one_file else None)


def write_lines(tables: Iterable[pa.Table], folder: Path) -> int:
    """Write tables as lines of JSON; see `tables.json_text`."""
    written = 0
    with (folder / LINES_FILE).open("w", encoding="utf-8") as file:
        for table in tables:
            for row in python_rows(table):
                file.write(json_text(row) + "\n")
            written += table.num_rows
    return written


def write_shards(tables: Iterable[pa.Table], folder: Path, rows_per_file: int | None = None) -> int:
    """Write tables as `train-00000-of-00003.parquet` …, the names that `load_dataset` reads as split `train`; count rows."""
    rows_per_file = rows_per_file or _ROWS_PER_FILE
    files: list[Path] = []
    written = 0
    writer: pq.ParquetWriter | None = None
    try:
        for table in tables:
            while table.num_rows:
                if writer is None:
                    files.append(folder / f"{len(files)}.parquet")
                    # Texts rarely repeat, and zstd compresses repetitions; bounds of a text column help no query.
                    bounded = [field.name for field in table.schema if _has_bounds(field.type)]
                    writer = pq.ParquetWriter(
                        files[-1], table.schema, compression="zstd", use_dictionary=False, write_statistics=bounded
                    )
                head = table.slice(0, len(files) * rows_per_file - written)
                writer.write_table(head, row_group_size=4 * ROWS_PER_GROUP)
                table, written = table.slice(head.num_rows), written + head.num_rows
                if written == len(files) * rows_per_file:
                    writer.close()
                    writer = None
    finally:
        if writer is not None:
            writer.close()
    for number, file in enumerate(files):
        file.rename(folder / f"train-{number:05d}-of-{len(files):05d}.parquet")
    return written


def read_ahead(tables: Iterator[pa.Table]) -> Iterator[pa.Table]:
    """Read the next table while the caller writes the last one."""
    with ThreadPoolExecutor(1) as thread:
        next_table = thread.submit(next, tables, None)
        while (table := next_table.result()) is not None:
            next_table = thread.submit(next, tables, None)
            yield table


@contextmanager
def in_place(location: Path) -> Iterator[Path]:
    """Yield a temporary folder to write to, then move it to `location`; it replaces nothing but an earlier export."""
    folder = objects.folder(location, "export")
    if folder.name == REWARD_MODULE:
        # `datasets` and OpenRLHF run a file with the name of its folder as a script that loads the data.
        raise ExportError(f"{folder} is called as the reward file in it; name another folder, or another split")
    if folder.exists() and not all(map(_is_of_an_export, folder.iterdir())):
        raise ExportError(f"{folder} holds other files than an export; name another folder")
    # A user links a folder to another disk: the link stays, and the new files are built where it leads.
    target = folder.resolve()
    temporary = target.with_name(f".{target.name}.tmp")
    try:
        shutil.rmtree(temporary, ignore_errors=True)
        temporary.mkdir(parents=True)
        yield temporary
        for file in temporary.rglob("*"):
            with suppress(IsADirectoryError), file.open("rb") as handle:
                os.fsync(handle.fileno())
        atomic.replace_folder(target, temporary)
    except OSError as error:
        raise ExportError(
            f"{folder} cannot be written: {error.strerror or error}; fix that and export again"
        ) from error
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def _is_of_an_export(file: Path) -> bool:
    if file.is_dir() and file.name in ("sft", "preferences"):
        return all(map(_is_of_an_export, file.iterdir()))
    if file.name in (REWARD_FILE, EARLIER_REWARD_FILE):
        return file.read_bytes().startswith(HEAD.encode())
    if file.name in {name for trainer in TRAINERS.values() for name in trainer.beside}:
        return any(mark in file.read_bytes()[:200] for mark in _MARKS)
    if file.name == LINES_FILE:
        # Anybody's data may have this name, and no other's lines have a `row_id`.
        with file.open("rb") as lines:
            return b'"row_id": ' in lines.readline()
    # Python writes the compiled reward file into __pycache__.
    return (
        file.name in ("__pycache__", "dropped.parquet")
        or re.fullmatch(r"train-\d+-of-\d+\.parquet", file.name) is not None
    )


def shard_count(folder: Path) -> int:
    """Count an export's Parquet files."""
    return len(list(folder.glob("train-*.parquet")))
