"""Answers as text: tables for a terminal, and CSV, JSON lines and Parquet for programs.

For a person, text from data is shown as text: control characters, which a hostile row could use to rewrite a screen, are
named. For programs it is what it was. CSV follows RFC 4180 to the letter, with NULL as an empty field and empty text as
`""`: a cell that begins with `=` is not changed for the sake of spreadsheets, which would run it as a formula; import such
a file as text.
"""

from __future__ import annotations

import difflib
import json
import math
import re
import sys
from collections.abc import Iterable, Iterator, Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Literal, TextIO

import pyarrow as pa
import pyarrow.parquet as pq

from seamcurate import objects
from seamcurate.errors import QueryError

Form = Literal["table", "csv", "jsonl", "parquet"]

_CONTROL = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\u2028\u2029\u202a-\u202e\u2066-\u2069\ufffe\uffff]")
_QUOTED = re.compile(r'[",\r\n]|^\s|\s$')
_SHOWN_ROWS = 50


def clean(text: str) -> str:
    """Return text with control characters, but newline and tab, spelled out."""
    return _CONTROL.sub(lambda m: f"\\x{ord(m[0]):02x}", text)


def one_line(text: str) -> str:
    """Return text as one line without control characters, whatever it quotes."""
    return " ".join(clean(text).split())


def counted(count: int, one: str, more: str = "") -> str:
    """Write a count with its noun: "1 shard", "1,200 shards"; `more` is the plural that an s does not make."""
    return f"{count:,} {one if count == 1 else more or f'{one}s'}"


def suggestion(name: object, names: Iterable[str]) -> str:
    """Return "; did you mean `x`?" for the nearest of some names, to end a message with; empty where none is near.

    Example:
        >>> suggestion("retreive", ["retrieve", "generate"])
        '; did you mean `retrieve`?'
    """
    by_lower = {known.lower(): known for known in names}
    near = difflib.get_close_matches(str(name).lower(), by_lower, n=1, cutoff=0.6)
    return f"; did you mean `{by_lower[near[0]]}`?" if near else ""


def brief(value: object, width: int) -> str:
    """Return a value as one line of at most `width` characters."""
    if value is None:
        return "NULL"
    if isinstance(value, float):
        return f"{value:.6g}"
    text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False, default=str)
    line = one_line(text)
    return line if len(line) <= width else line[: width - 1] + "…"


def show(
    header: Sequence[str], rows: Sequence[Sequence[object]], right: Sequence[int] = (), width: int | None = None
) -> None:
    """Print a table to standard output, columns in `right` aligned to the right."""
    from rich import box
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    console = Console(width=width or (None if sys.stdout.isatty() else 160), highlight=False)
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    for i, name in enumerate(header):
        table.add_column(Text(brief(name, 80)), justify="right" if i in right else "left", overflow="fold")
    for row in rows:
        table.add_row(*(Text(clean(cell) if isinstance(cell, str) else brief(cell, 60)) for cell in row))
    console.print(table)


def write(reader: pa.RecordBatchReader, form: Form, out: Path | None) -> None:
    """Write an answer in a form, to a file or standard output.

    Raises:
        QueryError: It has two columns of one name, and the form has no place for that.
        StoreError: The file is on object storage, or cannot be written.
    """
    out = out and objects.folder(out, "sql")
    names = reader.schema.names
    if form in ("jsonl", "parquet") and (twice := [name for name in names if names.count(name) > 1]):
        raise QueryError(f"the answer has two columns called {brief(twice[0], 80)!r}; give one another name with AS")
    if form == "table" and out is None:
        _table(reader)
        return
    # A closed pipe is no file that cannot be written.
    with objects.writing(out) if out else nullcontext():
        if form == "parquet":
            sink = pa.PythonFile(sys.stdout.buffer, mode="w") if out is None else str(out)
            with pq.ParquetWriter(sink, reader.schema) as writer:
                for batch in reader:
                    writer.write_batch(batch)
        else:
            with out.open("w", encoding="utf-8", newline="") if out else nullcontext(sys.stdout) as handle:
                _lines(reader, "jsonl" if form == "jsonl" else "csv", handle)


def _table(reader: pa.RecordBatchReader) -> None:
    rows: list[list[object]] = []
    total = 0
    for batch in reader:
        total += batch.num_rows
        rows += map(list, _values(batch.slice(0, max(0, _SHOWN_ROWS - len(rows)))))
    cells = max(12, 150 // max(1, len(reader.schema)))
    numeric = [i for i, f in enumerate(reader.schema) if pa.types.is_integer(f.type) or pa.types.is_floating(f.type)]
    show(reader.schema.names, [[brief(value, cells) for value in row] for row in rows], numeric)
    print(counted(total, "row") + (f", the first {_SHOWN_ROWS} shown" if total > _SHOWN_ROWS else ""))


def _lines(reader: pa.RecordBatchReader, form: Literal["csv", "jsonl"], handle: TextIO) -> None:
    names = reader.schema.names
    if form == "jsonl":
        for batch in reader:
            for row in _values(batch):
                handle.write(_json(dict(zip(names, row, strict=True))) + "\n")
        return
    handle.write(",".join(map(_field, names)) + "\n")
    for batch in reader:
        for row in _values(batch):
            # A line of nothing is no record: alone, NULL is written as empty text is.
            handle.write((",".join(map(_field, row)) or '""') + "\n")


def _values(batch: pa.RecordBatch) -> Iterator[tuple[object, ...]]:
    """Iterate over rows by place: an answer may have two columns of one name."""
    return zip(*(column.to_pylist() for column in batch.columns), strict=True)


def _field(value: object) -> str:
    """Write a CSV field that is read back as it was; only NULL is empty without quotes."""
    if value is None:
        return ""
    text = value if isinstance(value, str) else _json(value) if isinstance(value, list | dict) else _spelled(value)
    # A lone carriage return ends a line for readers too, and some trim what is not quoted.
    return '"' + text.replace('"', '""') + '"' if not text or _QUOTED.search(text) else text


def _json(value: object) -> str:
    """Write JSON, which has no NaN and no infinity: null stands for them."""
    try:
        return json.dumps(value, ensure_ascii=False, default=_spelled, allow_nan=False)
    except ValueError:
        return json.dumps(_without_nan(value), ensure_ascii=False, default=_spelled)


def _without_nan(value: object) -> object:
    if isinstance(value, dict):
        return {key: _without_nan(one) for key, one in value.items()}
    if isinstance(value, list | tuple):
        return [_without_nan(one) for one in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _spelled(value: object) -> str:
    """Spell what neither CSV nor JSON has: dates, decimals, and bytes, those that are not UTF-8 by their numbers."""
    return value.decode("utf-8", "backslashreplace") if isinstance(value, bytes) else str(value)
