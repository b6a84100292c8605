"""Answers as text: tables for a terminal, and CSV, JSON lines and Parquet for programs.

Text from data is shown as text: control characters, which a hostile row could use to rewrite a screen, are named.
"""

from __future__ import annotations

import csv
import json
import re
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Literal, TextIO

import pyarrow as pa
import pyarrow.parquet as pq

Form = Literal["table", "csv", "jsonl", "parquet"]

_CONTROL = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\u2028\u2029\u202a-\u202e\u2066-\u2069]")
_SHOWN_ROWS = 50


def clean(text: str) -> str:
    """Return text with control characters, but newline and tab, spelled out."""
    return _CONTROL.sub(lambda m: f"\\x{ord(m[0]):02x}", text)


def brief(value: object, width: int) -> str:
    """Return a value as one line of at most `width` characters."""
    if value is None:
        return "NULL"
    if isinstance(value, float):
        return f"{value:.6g}"
    text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False, default=str)
    line = " ".join(clean(text).split())
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
        table.add_column(Text(name), justify="right" if i in right else "left", overflow="fold")
    for row in rows:
        table.add_row(*(Text(cell if isinstance(cell, str) else brief(cell, 60)) for cell in row))
    console.print(table)


def write(reader: pa.RecordBatchReader, form: Form, out: Path | None) -> None:
    """Write an answer in a form, to a file or standard output."""
    if form == "table" and out is None:
        _table(reader)
    elif form == "parquet":
        sink = pa.PythonFile(sys.stdout.buffer, mode="w") if out is None else str(out)
        with pq.ParquetWriter(sink, reader.schema) as writer:
            for batch in reader:
                writer.write_batch(batch)
    else:
        handle = sys.stdout if out is None else out.open("w", encoding="utf-8", newline="")
        try:
            _lines(reader, "jsonl" if form == "jsonl" else "csv", handle)
        finally:
            if out is not None:
                handle.close()


def _table(reader: pa.RecordBatchReader) -> None:
    rows: list[list[object]] = []
    total = 0
    for batch in reader:
        total += batch.num_rows
        for row in batch.slice(0, max(0, _SHOWN_ROWS - len(rows))).to_pylist():
            rows.append(list(row.values()))
    cells = max(12, 150 // max(1, len(reader.schema)))
    numeric = [i for i, f in enumerate(reader.schema) if pa.types.is_integer(f.type) or pa.types.is_floating(f.type)]
    show(reader.schema.names, [[brief(value, cells) for value in row] for row in rows], numeric)
    print(
        f"{total:,} row{'s' if total != 1 else ''}"
        + (f", the first {_SHOWN_ROWS} shown" if total > _SHOWN_ROWS else "")
    )


def _lines(reader: pa.RecordBatchReader, form: Literal["csv", "jsonl"], handle: TextIO) -> None:
    if form == "jsonl":
        for batch in reader:
            for row in batch.to_pylist():
                handle.write(json.dumps(row, ensure_ascii=False, default=str) + "\n")
        return
    writer = csv.writer(handle, lineterminator="\n")
    writer.writerow(reader.schema.names)
    for batch in reader:
        for row in batch.to_pylist():
            writer.writerow(
                json.dumps(v, ensure_ascii=False, default=str) if isinstance(v, list | dict) else v
                for v in row.values()
            )
