"""Data sets on the Hugging Face Hub as streams of tables, each at one commit, with what went wrong in one line.

One rule: every chunk of a source comes from the commit that its fingerprint names.
"""

from __future__ import annotations

import csv
import re
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from functools import cache
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from seamcurate import extras
from seamcurate.data import formats
from seamcurate.errors import SourceError, typed_line

_MISFIT = re.compile("Cast|DatasetGeneration|Arrow|Couldn't cast")
"""Errors of `datasets` and Arrow that are about what the files hold."""


def _misfit(error: BaseException) -> str:
    """Tell in one line what does not fit: the columns that there are, and those that there should be."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return " ".join(line for line in lines if not line.startswith("-- schema metadata"))[:400]


@cache
def commit_of(hub: str, revision: str | None) -> str:
    """Pin a revision once per process, so that all chunks come from one commit."""
    if revision is not None and re.fullmatch("[0-9a-f]{40}", revision):
        return revision
    extras.require("hub", f"Hub data set {hub}", SourceError)
    from huggingface_hub import HfApi

    with _asking(hub):
        commit = HfApi().dataset_info(hub, revision=revision).sha
    if commit is None:
        raise SourceError(f"Hub data set {hub}: the Hub names no commit; give a revision")
    return commit


@contextmanager
def _asking(hub: str, difference: Callable[[], str | None] | None = None) -> Iterator[None]:
    """Say what went wrong when the Hub was asked; `difference` finds out which files differ, and in what."""
    try:
        yield
    except SourceError:
        raise
    # What is wrong with the files themselves: columns or types that differ between two of them, a damaged file.
    except (pa.ArrowException, UnicodeDecodeError, ValueError, TypeError) as error:
        is_misfit = isinstance(error, pa.ArrowException | UnicodeDecodeError)
        if not is_misfit and not _MISFIT.search(f"{type(error).__name__} {error}"):
            raise SourceError(
                f"Hub data set {hub}: {typed_line(error)}; check the name, the split and the files"
            ) from error
        what = (difference() if difference is not None else None) or _misfit(error)
        raise SourceError(
            f"Hub data set {hub}: its files do not fit each other: {what}; download them and name them by "
            "`jsonl`, `csv` or `parquet`, which keep a column of several types, or convert them"
        ) from error
    # The client and its transports share no root error.
    except Exception as error:
        reason = f"{typed_line(error)}; check the name, the network and your login"
        if type(error).__name__ == "RepositoryNotFoundError":
            reason = "no such data set, or no access to it; check the name, or log in with `hf auth login`"
        raise SourceError(f"Hub data set {hub}: {reason}") from error


def tables_of(
    hub: str, revision: str | None, name: str | None, data_dir: str | None, split: str, skip: int, size: int
) -> tuple[pa.Schema, Iterator[pa.Table]]:
    """Open a Hub data set as a stream of tables, at the commit its revision stands for."""
    extras.require("hub", f"Hub data set {hub}", SourceError)
    commit = commit_of(hub, revision)
    with _asking(hub):
        from datasets import load_dataset

        # Without hf:// a folder of the same name beside the caller would be read instead.
        rows = load_dataset(
            f"hf://datasets/{hub}",
            name,
            data_dir=data_dir,
            split=split,
            revision=commit,
            streaming=True,
        ).with_format("arrow")
        schema = rows.features.arrow_schema if rows.features else next(iter(rows.iter(1)), pa.table({})).schema
    fields = pa.schema([formats.column_field(field) for field in schema])

    def tables() -> Iterator[pa.Table]:
        with _asking(hub, lambda: _difference(hub, commit, name, data_dir, split)):
            for table in rows.skip(skip).iter(size):
                if new := set(table.column_names) - set(schema.names):
                    raise SourceError(f"Hub data set {hub}: columns {new} are not in its first file; convert it")
                yield table

    return fields, tables()


def _difference(hub: str, commit: str, name: str | None, data_dir: str | None, split: str) -> str | None:
    """Tell by the beginnings of a split's files which one differs from the first, in which column; None where none does."""
    # The message that this is for must not fail for want of it.
    with suppress(Exception):
        from datasets import load_dataset_builder
        from huggingface_hub import HfFileSystem

        builder = load_dataset_builder(f"hf://datasets/{hub}", name, data_dir=data_dir, revision=commit)
        paths = [str(path) for path in (builder.config.data_files or {})[split]]
        first: tuple[str, dict[str, pa.DataType | None]] | None = None
        for path in paths:
            with HfFileSystem().open(path, block_size=_LOOKED_AT) as file:
                types = _beginning(path, file)
            title = path.partition(f"@{commit}/")[2] or path
            first = first or (title, types)
            for column in dict.fromkeys([*first[1], *types]):
                here, there = _told(column, types), _told(column, first[1])
                if here != there:
                    return f"{title} has the column {column!r} {here}, {first[0]} has it {there}"
    return None


def _told(column: str, types: Mapping[str, pa.DataType | None]) -> str:
    if column not in types:
        return "not"
    return "without a value" if types[column] is None else f"as {types[column]}"


_LOOKED_AT = 1 << 20
"""Bytes of a file's beginning that tell its columns."""


def _beginning(path: str, file: Any) -> dict[str, pa.DataType | None]:
    """Return the types of a file's columns, of JSON and CSV by its first lines."""
    if path.endswith(".parquet"):
        return {field.name: field.type for field in pq.read_schema(file)}
    whole_lines = file.read(_LOOKED_AT).splitlines()[:1000]
    if path.endswith(".csv"):
        header, *records = csv.reader(line.decode() for line in whole_lines)
        rows = [formats.CsvLine(header, record, None) for record in records]
        kinds = formats.csv_types(rows, {}, (), path)
        return {column: kinds.get(column, pa.string()) for column in header}
    return {column: formats.solid(found.kind) for column, found in formats.json_types(whole_lines).items()}
