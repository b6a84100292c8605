"""What a study reads: stores, or tables of results in Parquet, JSONL and CSV.

Each study documents its columns by name; several sources make one table, end to end. One rule: a row that cannot be
read stops the study and is named, because a measurement over the readable rows would look like one over all.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from decimal import Decimal
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
import pyarrow as pa
import pyarrow.csv as csv
import pyarrow.parquet as pq

from seamcurate import extras
from seamcurate.data import formats
from seamcurate.errors import StudyError
from seamcurate.models import Prompt
from seamcurate.models.chat import read_turns
from seamcurate.select import views
from seamcurate.step import finite
from seamcurate.storage.objects import place
from seamcurate.store.store import Store
from seamcurate.study.statistics import Doubles
from seamcurate.text import brief

StudySource: TypeAlias = str | Path | pa.Table | Store
"""A store or its folder, a Parquet, JSONL or CSV file, a folder of Parquet files, or a table in memory."""

_TEXTS = (
    *("prompt", "response", "context", "input", "references", "chosen", "rejected"),
    *("response_a", "response_b", "baseline_response"),
)
"""Columns of a CSV file that are read as text even where they look like numbers: the answer 007 is not the answer 7."""
_UNREADABLE = (pa.ArrowException, OSError, ValueError, TypeError, OverflowError)


def is_store(source: StudySource) -> bool:
    """Say whether a source is a store rather than a table of results."""
    return isinstance(source, Store) or (isinstance(source, str | Path) and (place(source) / "store.json").is_file())


def open_store(source: StudySource, study: str) -> Store:
    """Open a store.

    Raises:
        StudyError: The source is no store, or a library is not installed.
    """
    _check_libraries()
    if isinstance(source, Store):
        return source.open()
    if isinstance(source, pa.Table) or not is_store(source):
        raise StudyError(f"{study} reads stores, but {title(source)} is none; name the folder `seamcurate run` made")
    return Store(source).open()


def title(source: StudySource) -> str:
    """Name a source in messages and figures."""
    if isinstance(source, pa.Table):
        return "the table"
    path = source.path if isinstance(source, Store) else Path(source)
    return path.resolve().name


def read(study: str, sources: Sequence[StudySource], needed: Sequence[str], named: str | None = None) -> pa.Table:
    """Read sources end to end as one table; a store is read as its rows.

    Args:
        study: The study's name, for messages.
        sources: What to read.
        needed: Columns that each source must have.
        named: A column that holds the source's name where there are several sources and one lacks it.

    Raises:
        StudyError: There is no source, one is not there or unreadable, lacks a needed column, there are no rows, or a
            library is not installed.
    """
    _check_libraries()
    if not sources:
        raise StudyError(f"{study} got nothing to read; name a store or a Parquet, JSONL or CSV file")
    tables = []
    for source in sources:
        table = _table(source, study)
        _check_columns(study, title(source), table, needed)
        if named is not None and named not in table.column_names and len(sources) > 1:
            table = table.append_column(named, pa.array([title(source)] * len(table), pa.string()))
        tables.append(_plain(study, table))
    try:
        # A source without rows decides no column's type.
        whole_table = pa.concat_tables([t for t in tables if t.num_rows] or tables, promote_options="permissive")
    except _UNREADABLE as error:
        raise StudyError(
            f"{study}: a column is of one type in one source and of another in the next ({_reason(error)}); convert it"
        ) from error
    if not whole_table.num_rows:
        raise StudyError(f"{study}: {', '.join(map(title, sources))} holds no rows; check what wrote it")
    return whole_table


def column_or_all(study: str, table: pa.Table, name: str) -> list[str]:
    """Return a column of names; the word `all` for every row of a table that lacks the column."""
    return names(study, table, name) if name in table.column_names else ["all"] * len(table)


def names(study: str, table: pa.Table, name: str) -> list[str]:
    """Return a column of names or keys as text; numbers and truth values as they are written.

    Raises:
        StudyError: A value is missing, blank or NaN, or is a list, an object or bytes.
    """
    texts = []
    for i, value in enumerate(_values(study, table, name)):
        if value is None or value != value or (isinstance(value, str) and not value.strip()):
            raise StudyError(f"{study}: row {i} has no {name!r}; fill it in or leave the row out")
        if isinstance(value, list | dict | bytes):
            raise StudyError(
                f"{study}: row {i} has {name} = {brief(repr(value), 60)}, which is no name; write it as text"
            )
        # Whole numbers are doubles where another source has them so: its 7.0 is the 7 of this one.
        texts.append(str(int(value) if isinstance(value, float) and value.is_integer() else value))
    return texts


def texts(study: str, table: pa.Table, name: str, missing: str | None = None) -> list[str]:
    """Return a column of responses or references; of chat messages, the single assistant turn. Blank text is text.

    Args:
        study: The study's name, for messages.
        table: What was read.
        name: The column.
        missing: The text that replaces a missing value; without it, a missing value is an error.

    Raises:
        StudyError: A value is missing, or is neither text nor one assistant turn.
    """
    column = []
    for i, value in enumerate(_values(study, table, name)):
        value = missing if value is None else value
        turns = read_turns(value)
        if value is None:
            raise StudyError(f"{study}: row {i} has no {name!r}; fill it in or leave the row out")
        if isinstance(value, str):
            column.append(value)
        elif turns is not None and [turn["role"] for turn in turns] == ["assistant"]:
            column.append(turns[0]["content"])
        else:
            raise StudyError(
                f"{study}: row {i} has {name} = {brief(repr(value), 60)}, which is neither text nor one assistant turn; "
                "leave the row out"
            )
    return column


def prompts(study: str, table: pa.Table) -> list[Prompt]:
    """Return the column `prompt`.

    Raises:
        StudyError: A value is neither text nor chat messages.
    """
    values = _values(study, table, "prompt")
    for i, value in enumerate(values):
        if not isinstance(value, str) and not read_turns(value):
            raise StudyError(
                f"{study}: row {i} has prompt = {brief(repr(value), 60)}, which is neither text nor chat messages; "
                "leave the row out"
            )
    return values


def numbers(study: str, table: pa.Table, name: str) -> Doubles:
    """Return a column as doubles.

    Raises:
        StudyError: A value is missing, no number, not finite, so large that sums overflow, or a whole number that a
            double cannot hold exactly.
    """
    values = _values(study, table, name)
    for i, value in enumerate(values):
        # In Python True is a number, 1; in a table it is none.
        number = isinstance(value, int | float | Decimal) and not isinstance(value, bool)
        if not number or not math.isfinite(value):
            raise StudyError(
                f"{study}: row {i} has {name} = {brief(repr(value), 60)}, which is no finite number; leave the row out"
            )
        # A double holds whole numbers exactly up to 2^53 only: beyond it two ids could become one.
        if finite(float(value)) is None or (isinstance(value, int) and float(value) != value):
            raise StudyError(
                f"{study}: row {i} has {name} = {value!r:.60}, too large to reckon with; leave the row out"
            )
    return np.array([float(value) for value in values], np.float64)


def choices(study: str, name: str, values: Iterable[str], allowed: Sequence[str]) -> list[str]:
    """Return values in lower case, each of which is one of the allowed.

    Raises:
        StudyError: A value is not allowed.
    """
    lowered = [value.lower() for value in values]
    for i, value in enumerate(lowered):
        if value not in allowed:
            raise StudyError(
                f"{study}: row {i} has {name} = {brief(repr(value), 60)}; it is one of {', '.join(allowed)}"
            )
    return lowered


def by_seed(
    study: str, table: pa.Table, keys: Sequence[str], value: str = "quality"
) -> dict[tuple[str, ...], dict[float, float]]:
    """Return a value by seed for each combination of keys, combinations in the order in which they first occur.

    Raises:
        StudyError: A seed occurs twice, or a value cannot be read.
    """
    runs: dict[tuple[str, ...], dict[float, float]] = {}
    columns = [names(study, table, key) for key in keys]
    seeds, values = numbers(study, table, "seed"), numbers(study, table, value)
    for key, seed, number in zip(zip(*columns, strict=True), seeds.tolist(), values.tolist(), strict=True):
        # An interval over seeds takes each as one draw: the same run twice would narrow it.
        own_runs = runs.setdefault(key, {})
        if seed in own_runs:
            described = ", ".join(f"{name} {brief(label, 60)}" for name, label in zip(keys, key, strict=True))
            raise StudyError(
                f"{study}: two rows for {described}, seed {seed:g}; keep one, or give each run its own seed"
            )
        own_runs[seed] = number
    return runs


def seed_count(runs: Iterable[Mapping[float, object]]) -> str:
    """Say how many seeds runs have."""
    counts = sorted({len(by_seed) for by_seed in runs})
    count = f"{counts[0]}" if len(counts) == 1 else f"{counts[0]} to {counts[-1]}"
    return f"{count} seeds" if counts != [1] else "1 seed, which has no interval"


def _check_libraries() -> None:
    extras.require("study", "a study", StudyError)


def _check_columns(study: str, source: str, table: pa.Table, needed: Sequence[str]) -> None:
    repeated = [name for name in table.column_names if table.column_names.count(name) > 1]
    if repeated:
        raise StudyError(f"{study}: {source} has two columns called {brief(repeated[0], 60)!r}; rename one")
    missing = [name for name in needed if name not in table.column_names]
    if missing and table.num_rows:
        raise StudyError(
            f"{study}: {source} has no column {missing[0]!r}; it has {brief(', '.join(table.column_names), 200)}: "
            f"{study} reads {', '.join(needed)}"
        )


def _table(source: StudySource, study: str) -> pa.Table:
    if isinstance(source, pa.Table):
        return source
    if is_store(source):
        return views.query(open_store(source, study), "SELECT * FROM rows")
    assert not isinstance(source, Store)
    path = Path(source).expanduser()
    # A dot file is one that its writer has not finished.
    files = sorted(f for f in path.glob("*.parquet") if not f.name.startswith(".")) if path.is_dir() else [path]
    if not files or not all(file.is_file() for file in files):
        raise StudyError(f"{study}: {source} is no store, no file and no folder of Parquet files; check the path")
    try:
        table = _file_table(path, files)
        for name, column in zip(table.column_names, table.columns, strict=True):
            if wrong := formats.not_utf8(column, path.name):
                raise ValueError(f"row {wrong[0]}: invalid UTF-8 in {name}")
    except (*_UNREADABLE, formats.Reject) as error:
        raise StudyError(
            f"{study}: {path.name} is no readable Parquet, JSONL or CSV file ({_reason(error)}); write it anew"
        ) from error
    return table


def _file_table(path: Path, files: Sequence[Path]) -> pa.Table:
    """Read JSONL or CSV at `path`, or else Parquet files."""
    if path.suffix in {".jsonl", ".json"}:
        return _json(path)
    if path.suffix == ".csv":
        return csv.read_csv(
            path,
            read_options=csv.ReadOptions(block_size=formats.LONGEST_CSV_FIELD),
            parse_options=csv.ParseOptions(newlines_in_values=True),
            convert_options=csv.ConvertOptions(
                column_types=dict.fromkeys(_TEXTS, pa.string()),
                null_values=[""],
                strings_can_be_null=True,
                quoted_strings_can_be_null=False,
            ),
        )
    # A folder called x=1 would otherwise add a column x.
    return pa.concat_tables([pq.read_table(file, partitioning=None) for file in files], promote_options="permissive")


def _json(path: Path) -> pa.Table:
    """Read a file of JSON objects; a column may first occur in any of them."""
    rows: list[dict[str, object]] = []
    for line in formats.json_lines(path):
        assert isinstance(line, bytes)
        try:
            cells, doubt = formats.json_row(line)
        except formats.Reject as reject:
            raise formats.Reject(f"row {len(rows)}: {reject}") from None
        if doubt and formats.surrogate(cells):
            raise formats.Reject(f"row {len(rows)}: {doubt}")
        rows.append(cells)
    columns = {}
    # A dictionary keeps the order in which columns first occur; a set has none.
    for name in dict.fromkeys(name for row in rows for name in row):
        try:
            columns[name] = pa.array([row.get(name) for row in rows])
        except _UNREADABLE as error:
            raise formats.Reject(f"column {name!r:.60}: {error}") from error
    return pa.table(columns)


def _plain(study: str, table: pa.Table) -> pa.Table:
    """Convert a table to types that Arrow can filter and join; it cannot filter and join every type it has."""
    schema = pa.schema([(field.name, formats.plain(field.type, pa.string())) for field in table.schema])
    try:
        return formats.conform(table, schema)
    except _UNREADABLE as error:
        raise StudyError(f"{study}: a column cannot be read ({_reason(error)}); convert it, or leave it out") from error


def _values(study: str, table: pa.Table, name: str) -> list[Any]:
    try:
        values: list[Any] = table[name].to_pylist()
    except _UNREADABLE as error:
        raise StudyError(f"{study}: column {name!r} cannot be read ({_reason(error)}); convert it") from error
    return values


def _reason(error: Exception) -> str:
    """Return what a library says of a file, short enough for one line."""
    return brief(str(error), 120)
