"""Rows from the Hub, Parquet, JSONL, CSV, Arrow or another store, as prompt, response and reference.

One rule: each row that is read comes out once, as a row or as a rejected row with its reason, and its `row_id`
is its place in the source whatever became of the rows before it.
"""

from __future__ import annotations

import codecs
import csv
import glob
import gzip
import hashlib
import json
import re
import zlib
from collections.abc import Callable, Collection, Generator, Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from functools import cache
from itertools import chain, count, islice
from pathlib import Path
from typing import Any, NamedTuple, TypeAlias

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from pydantic import BaseModel, ConfigDict, Field, JsonValue, model_validator

from seamcurate.errors import SourceError
from seamcurate.step import MESSAGES

REJECTED = pa.schema([("row_id", pa.int64()), ("reason", pa.string()), ("row", pa.string())])
"""A row that was read and not taken: where it was, why not, and the row as JSON text."""

KINDS = ("hub", "parquet", "jsonl", "csv", "arrow", "store")
ROLES = ("system", "user", "assistant", "tool")
SHAREGPT_ROLES = {"human": "user", "gpt": "assistant"}
LONGEST_ROW_SHOWN = 10_000
# An unclosed quote swallows what follows it: this bounds what one costs. It is far beyond any prompt.
LONGEST_CSV_FIELD = 1 << 24
# Parquet writers and SQL engines recurse over types.
DEEPEST = 32
_NO_FIT = (pa.ArrowException, ValueError, TypeError, OverflowError)

_Turns = list[dict[str, str]]
_Reader = Callable[[Path, int, int], Generator[pa.Table, None, int]]


class Chunk(NamedTuple):
    """One shard's worth of the source: `shard_rows` rows from `number * shard_rows` on."""

    number: int
    """The shard's number."""
    rows: pa.Table
    """row_id, prompt, then response, reference and id where there are any, then every other source column."""
    rejected: pa.Table
    """The rows not taken, as REJECTED."""
    schema: pa.Schema
    """The schema of all rows so far; hand it back, with the ids taken, to go on after this chunk."""


class Source(BaseModel):
    """Name where rows are, and which of their columns are what."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    hub: str | None = None
    parquet: str | list[str] | None = None
    jsonl: str | list[str] | None = None
    csv: str | list[str] | None = None
    arrow: str | None = None
    store: str | None = None
    data_dir: str | None = None
    name: str | None = None
    split: str = "train"
    revision: str | None = None
    prompt: str = "prompt"
    response: str | None = None
    reference: str | None = None
    messages: str | None = None
    id: str | None = None
    rename: dict[str, str] = {}
    shard_rows: int = Field(default=4096, ge=1)

    @model_validator(mode="after")
    def _unambiguous(self) -> Source:
        given = [kind for kind in KINDS if getattr(self, kind) is not None]
        if len(given) != 1:
            raise ValueError(f"rows come from one of {', '.join(KINDS)}, not {' and '.join(given) or 'none'}")
        if self.hub is None and (self.data_dir or self.name or self.revision):
            raise ValueError("data_dir, name and revision are for hub only: leave them out")
        if self.messages is not None and (self.prompt != "prompt" or self.response is not None):
            raise ValueError("messages holds prompt and response: leave these two out, or messages")
        return self

    @property
    def _kind(self) -> str:
        return next(kind for kind in KINDS if getattr(self, kind) is not None)

    @property
    def _where(self) -> str:
        place: str | list[str] = getattr(self, self._kind)
        if isinstance(place, list):
            return ", ".join(place)
        return f"Hub data set {place}" if self.hub is not None else place

    def identity(self) -> JsonValue:
        """Return what decides the rows: contents, mapping and shard size, but not the folder they lie in."""
        fields: dict[str, JsonValue] = self.model_dump(mode="json", exclude={*KINDS, "revision"})
        if self.hub is not None:
            return {"hub": self.hub, "commit": _commit(self.hub, self.revision), **fields}
        files: list[JsonValue] = [[path.name, _sha256(path)] for path in self._files()]
        return {self._kind: files, **fields}

    def resolved(self, base: Path) -> Source:
        """Return the same source with relative local paths taken from `base`, a recipe's folder say."""
        if self.hub is not None:
            return self

        def absolute(place: str) -> str:
            return str(base.absolute() / Path(place).expanduser())

        place: str | list[str] = getattr(self, self._kind)
        found = absolute(place) if isinstance(place, str) else [absolute(each) for each in place]
        return self.model_copy(update={self._kind: found})

    def chunks(self, first: int = 0, schema: pa.Schema | None = None, seen: Collection[str] = ()) -> Iterator[Chunk]:
        """Read from chunk `first` on; `schema` and the ids `seen` are those of the chunks before it.

        Raises SourceError where the source cannot be read as asked.
        """
        taken, empty = set(seen), first == 0
        by_line = self.jsonl is not None or self.csv is not None
        for read in self._line_reads(first, schema) if by_line else self._table_reads(first):
            rows, reasons, empty = read.rows, read.reasons, False
            if self.id is not None and "id" in rows.column_names:
                for position, own in zip(rows["row_id"].to_pylist(), rows["id"].to_pylist(), strict=True):
                    if own in taken:
                        reasons[position] = f"duplicate id {own!r:.80}"
                    taken.add(own)
                rows = _without(rows, reasons)
            bad = sorted(reasons)
            columns = [
                bad,
                [reasons[position] for position in bad],
                [read.show(position) for position in bad],
            ]
            rejected = pa.table(columns, schema=REJECTED)
            yield Chunk(read.number, _conform(rows, read.schema), rejected, read.schema)
        if empty:
            raise SourceError(f"{self._where}: no rows; name a source that has some")

    def _files(self) -> list[Path]:
        if self.arrow is not None and Path(self.arrow).expanduser().is_dir():
            return _saved_files(Path(self.arrow).expanduser(), self.split)
        if self.store is not None:
            files = sorted(Path(self.store).expanduser().glob("rows/*.parquet"))
            if not files:
                raise SourceError(f"{self.store}: no rows/*.parquet in it; name the folder of a store")
            return files
        place: str | list[str] = getattr(self, self._kind)
        patterns = [place] if isinstance(place, str) else place
        found = {path for pattern in patterns for path in _matches(pattern, self._kind)}
        return sorted(found, key=str)

    def _plan(self, names: Sequence[str], schema: pa.Schema | None = None) -> _Plan:
        """Decide which source column becomes which; a running schema has decided part of it already."""
        known = [] if schema is None else schema.names
        # Rows without any column decide nothing.
        decided = "prompt" in known or not names
        has = f"it has {', '.join(names)}"
        asked = {"response": self.response, "reference": self.reference, "id": self.id}
        for target in ("reference",) if self.messages is not None else ("response", "reference"):
            if asked[target] is None and target not in self.rename and target in (known if decided else names):
                asked[target] = target
        mapped = {"prompt": self.prompt} if self.messages is None else {"messages": self.messages}
        mapped.update((target, column) for target, column in asked.items() if column is not None)
        for target, column in () if decided else mapped.items():
            if column not in names:
                raise SourceError(f"{self._where}: no column {column!r} for {target}; {has}")
        claimed = {"row_id", "prompt", "response", "reference", *(["id"] if self.id is not None else [])}
        spelled = {name.lower(): name for name in known}
        sides = {self.rename.get(name, name): name for name in names if name not in mapped.values()}
        for column in [*self.rename, *(name for name in sides.values() if name not in self.rename)]:
            output = self.rename.get(column, column)
            if column in mapped.values():
                raise SourceError(f"{self._where}: {column!r} is mapped already; take it out of rename")
            if not decided and column not in names:
                raise SourceError(f"{self._where}: no column {column!r} to rename; {has}")
            if output.lower() in claimed or spelled.get(output.lower(), output) != output:
                raise SourceError(
                    f"{self._where}: column {output!r} clashes with another (SQL ignores case); "
                    f"give it another name with rename: {{{column}: source_{column}}}"
                )
            claimed.add(output.lower())
        return _Plan(mapped, sides)

    def _values(self, row: dict[str, object], plan: _Plan, kind: pa.DataType | None) -> dict[str, object]:
        """Return the mapped values of one row as they are kept, or raise _Reject."""
        values: dict[str, object] = {}
        if self.messages is not None:
            turns = _turns(row.get(self.messages), "messages")
            if turns[-1]["role"] != "assistant":
                raise _Reject("no assistant turn at the end")
            values["prompt"] = _prompt(turns[:-1], MESSAGES)
            values["response"] = _text(turns[-1]["content"], "response")
        else:
            values["prompt"] = _prompt(row.get(self.prompt), kind)
        for target, column in plan.mapped.items():
            value = row.get(column)
            if target == "response":
                values[target] = _text(value, target)
            elif target == "reference":
                blank = value is None or (isinstance(value, str) and not value.strip())
                values[target] = None if blank else _text(value, target)
            elif target == "id":
                whole = isinstance(value, int) and not isinstance(value, bool)
                values[target] = _text(str(value) if whole else value, target)
        return values

    def _table_reads(self, first: int) -> Iterator[_Read]:
        """Read what says its columns before its rows, a chunk's rows at once: Parquet, Arrow and the Hub."""
        skip = first * self.shard_rows
        if self.hub is not None:
            fields, tables = _hub_tables(self, self.hub, skip)
        else:
            files = self._files()
            read = _arrow_tables if self.arrow is not None else _parquet_tables
            fields = _unified(files, _arrow_schema if self.arrow is not None else pq.read_schema)
            if self.store is not None:
                fields = pa.schema([field for field in fields if field.name != "row_id"])
            tables = _file_tables(files, read, skip, self.shard_rows)
        if not fields.names:
            return
        plan = self._plan(fields.names)
        for target, column in plan.mapped.items():
            _check_type(fields.field(column).type, target, f"{self._where}: column {column!r}")
        chats = {column for column in plan.mapped.values() if pa.types.is_list(fields.field(column).type)}
        chat = self.messages is not None or self.prompt in chats
        types = {"row_id": pa.int64(), "prompt": MESSAGES if chat else pa.string()}
        for target in ("response", "reference", "id"):
            if target in plan.mapped or (target == "response" and self.messages is not None):
                types[target] = pa.string()
        types.update((side, _solid(fields.field(column).type)) for side, column in plan.sides.items())
        schema = pa.schema([(name, kind) for name, kind in types.items() if kind is not None])
        tables = _conformed(tables, fields, self._where)
        for number, block in enumerate(_regrouped(tables, self.shard_rows), first):
            yield self._table_read(number, block, plan, schema, by_row=bool(chats))

    def _table_read(self, number: int, block: pa.Table, plan: _Plan, schema: pa.Schema, by_row: bool) -> _Read:
        start, reasons = number * self.shard_rows, dict[int, str]()
        for output, column in {**plan.mapped, **plan.sides}.items():
            for index in _not_utf8(block[column], f"{self._where}: column {column!r}"):
                reasons.setdefault(start + index, f"invalid UTF-8 in {output}")
        readable = pa.array([start + index not in reasons for index in range(len(block))], pa.bool_())
        rows = block.filter(readable) if reasons else block
        columns = {"row_id": pa.array(range(start, start + len(block)), pa.int64()).filter(readable)}
        # Good text is taken by the column; only what may not be good is looked at by the row.
        doubtful = pa.chunked_array([pa.repeat(by_row, len(rows))])
        for target, column in () if by_row else plan.mapped.items():
            text = rows[column].cast(pa.string())
            blank = pc.or_(pc.utf8_is_space(text), pc.equal(pc.binary_length(text), 0)).fill_null(True)
            if target == "reference":
                text = pc.if_else(blank, pa.scalar(None, pa.string()), text)
            else:
                doubtful = pc.or_(doubtful, blank)
            columns[target] = text
        values: list[dict[str, object]] = []
        mapped = rows.select(list(set(plan.mapped.values()))).filter(doubtful).to_pylist()
        places = columns["row_id"].filter(doubtful.combine_chunks()).to_pylist()
        for position, row in zip(places, mapped, strict=True):
            try:
                values.append(self._values(row, plan, schema.field("prompt").type))
            except _Reject as reject:
                values.append({})
                reasons[position] = str(reject)
        for target in ("prompt", "response", "reference", "id"):
            if by_row and target in schema.names:
                columns[target] = pa.array([each.get(target) for each in values], schema.field(target).type)
        columns.update((side, rows[column]) for side, column in plan.sides.items())

        def show(position: int) -> str:
            row = block.slice(position - start, 1)
            as_bytes = pa.schema([(field.name, _plain(field.type, pa.binary())) for field in row.schema])
            return _json_text(row.cast(as_bytes).to_pylist()[0])

        return _Read(number, _without(pa.table(columns), reasons), reasons, show, schema)

    def _line_reads(self, first: int, schema: pa.Schema | None) -> Iterator[_Read]:
        """Read what may have another mistake in every line, a row at a time: JSONL and CSV."""
        open_lines = _json_lines if self.jsonl is not None else _csv_lines
        lines = islice(chain.from_iterable(map(open_lines, self._files())), first * self.shard_rows, None)
        for number in count(first):
            block = list(islice(lines, self.shard_rows))
            if not block:
                return
            read = self._line_read(number, block, schema)
            schema = read.schema
            yield read

    def _line_read(self, number: int, lines: list[_Line], schema: pa.Schema | None) -> _Read:
        start, reasons, rows = number * self.shard_rows, dict[int, str](), dict[int, _Row]()
        for position, line in enumerate(lines, start):
            try:
                rows[position] = _json_row(line) if isinstance(line, bytes) else _csv_row(line)
            except _Reject as reject:
                reasons[position] = str(reject)
        types = {"row_id": pa.int64()}
        types.update((field.name, _plain(field.type, pa.string())) for field in schema or ())
        names = list(dict.fromkeys(chain.from_iterable(row.cells for row in rows.values())))
        plan = self._plan(names, schema)
        kind, good = types.get("prompt"), dict[int, dict[str, object]]()
        for position, row in rows.items():
            try:
                for output, column in {**plan.mapped, **plan.sides}.items() if row.doubt else ():
                    if _surrogate(row.cells.get(column)):
                        raise _Reject(f"{row.doubt} in {output}")
                good[position] = values = self._values(row.cells, plan, kind)
                # The first good row decides for the source whether prompts are text or messages.
                kind = kind or (pa.string() if isinstance(values["prompt"], str) else MESSAGES)
            except _Reject as reject:
                reasons[position] = str(reject)
        columns: dict[str, pa.Array] = {"row_id": pa.array(good, pa.int64())}
        for target in next(iter(good.values()), ()):
            cells = [values[target] for values in good.values()]
            columns[target] = pa.array(cells, kind if target == "prompt" else pa.string())
        for side, column in plan.sides.items() if good else ():
            array, misfits = _typed([rows[position].cells.get(column) for position in good], types.get(side))
            for position, misfit in zip(good, misfits, strict=True):
                if misfit is not None:
                    reasons.setdefault(position, f"wrong type in column {side}: {misfit}")
            if array is not None:
                columns[side] = array
        types.update((name, array.type) for name, array in columns.items())

        def show(position: int) -> str:
            line = lines[position - start]
            return _legible(line) if isinstance(line, bytes) else _json_text(_csv_shown(line))

        return _Read(number, _without(pa.table(columns), reasons), reasons, show, pa.schema(types.items()))


class _Reject(Exception):
    """One row cannot be taken; the message is the reason kept with it."""


class _Plan(NamedTuple):
    mapped: dict[str, str]
    """prompt, response, reference, id or messages: the source column that holds it."""
    sides: dict[str, str]
    """Every other column under its new name: its name in the source."""


class _Read(NamedTuple):
    """A chunk before its ids were compared with those of others."""

    number: int
    rows: pa.Table
    reasons: dict[int, str]
    show: Callable[[int], str]
    schema: pa.Schema


class _Row(NamedTuple):
    cells: dict[str, object]
    doubt: str | None
    """What may be wrong with the text in it."""


class _CsvLine(NamedTuple):
    header: list[str]
    fields: list[str]
    error: str | None


_Line: TypeAlias = bytes | _CsvLine


def _without(rows: pa.Table, reasons: Collection[int]) -> pa.Table:
    if not reasons:
        return rows
    taken = [position not in reasons for position in rows["row_id"].to_pylist()]
    return rows.filter(pa.array(taken, pa.bool_()))


# Values: what is text, what is a chat.


def _text(value: object, name: str) -> str:
    if isinstance(value, list):
        turns = _turns(value, name)
        if len(turns) != 1 or turns[0]["role"] != "assistant":
            raise _Reject(f"{name} is not one assistant turn")
        value = turns[0]["content"]
    if value is None:
        raise _Reject(f"{name} is null")
    if not isinstance(value, str):
        raise _Reject(f"{name} is not text but {_word(value)}")
    if not value.strip():
        raise _Reject(f"{name} is blank")
    return value


def _prompt(value: object, kind: pa.DataType | None) -> str | _Turns:
    if value is not None and (kind == MESSAGES or (kind is None and isinstance(value, list))):
        turns = _turns(value, "prompt")
        if not any(turn["content"].strip() for turn in turns):
            raise _Reject("prompt is blank")
        return turns
    if isinstance(value, list):
        raise _Reject("prompt is not text but messages")
    return _text(value, "prompt")


def _turns(value: object, name: str) -> _Turns:
    """Spell a chat as every trainer does; keys besides role and content are dropped."""
    if value is None:
        raise _Reject(f"{name} is null")
    if not isinstance(value, list):
        raise _Reject(f"{name} is not messages but {_word(value)}")
    if not value and name == "messages":
        raise _Reject("no assistant turn at the end")
    turns: _Turns = []
    for number, turn in enumerate(value, 1):
        if not isinstance(turn, dict):
            raise _Reject(f"turn {number} of {name} is not a message")
        said, content = turn.get("role"), turn.get("content")
        if said is None:
            said, content = turn.get("from"), turn.get("value")
        role = SHAREGPT_ROLES.get(said, said) if isinstance(said, str) else said
        if not isinstance(role, str) or role not in ROLES:
            raise _Reject(f"unknown role {said!r:.40}")
        if not isinstance(content, str):
            raise _Reject(f"turn {number} of {name} is not text but {_word(content)}")
        turns.append({"role": role, "content": content})
    return turns


def _word(value: object) -> str:
    words = {bool: "bool", int: "int64", float: "double", str: "string", list: "list", dict: "struct"}
    return words.get(type(value), "null")


def _check_type(kind: pa.DataType, target: str, column: str) -> None:
    """Refuse a whole column that can never be what it is mapped to."""
    item = kind.value_type if pa.types.is_list(kind) else None
    names = {field.name for field in item} if item is not None and pa.types.is_struct(item) else set()
    chat = names >= {"role", "content"} or names >= {"from", "value"}
    text = pa.types.is_string(kind) and target != "messages"
    whole = pa.types.is_integer(kind) and target == "id"
    if not (chat and target != "id") and not text and not whole and not pa.types.is_null(kind):
        raise SourceError(f"{column} is {kind}, which cannot be the {target}; map another column")


def _not_utf8(column: pa.ChunkedArray, where: str) -> list[int]:
    """Find the rows whose text is not UTF-8, which Parquet readers do not look at."""
    try:
        column.validate(full=True)
        return []
    except pa.ArrowInvalid as error:
        if "UTF8" not in str(error):
            raise SourceError(f"{where} is damaged: {_said(error)}; write the file again") from error
    found = []
    for index in range(len(column)):
        try:
            column.take([index]).validate(full=True)
        except pa.ArrowInvalid:
            found.append(index)
    return found


def _json_text(value: object) -> str:
    def spell(cell: object) -> str:
        return _legible(cell) if isinstance(cell, bytes) else str(cell)

    return json.dumps(value, ensure_ascii=False, default=spell)[:LONGEST_ROW_SHOWN]


def _legible(text: bytes) -> str:
    return text.decode("utf-8", "backslashreplace")[:LONGEST_ROW_SHOWN]


# Types: one plain Arrow type for each of the several that mean the same.


def _plain(kind: pa.DataType, text: pa.DataType) -> pa.DataType:
    """Undo dictionaries, views, extensions and 64-bit offsets; `text` is what strings become."""
    is_ = pa.types
    if isinstance(kind, pa.BaseExtensionType):
        return _plain(kind.storage_type, text)
    if is_.is_dictionary(kind) or is_.is_run_end_encoded(kind):
        return _plain(kind.value_type, text)
    if is_.is_string(kind) or is_.is_large_string(kind) or is_.is_string_view(kind):
        return text
    if is_.is_large_binary(kind) or is_.is_binary_view(kind):
        return pa.binary()
    if is_.is_list(kind) or is_.is_large_list(kind) or is_.is_list_view(kind) or is_.is_large_list_view(kind):
        return pa.list_(_plain(kind.value_type, text))
    if is_.is_fixed_size_list(kind):
        return pa.list_(_plain(kind.value_type, text), kind.list_size)
    if is_.is_map(kind):
        return pa.map_(_plain(kind.key_type, text), _plain(kind.item_type, text))
    if is_.is_struct(kind):
        return pa.struct([(field.name, _plain(field.type, text)) for field in kind])
    return kind


def _cast(column: pa.ChunkedArray, kind: pa.DataType) -> pa.ChunkedArray:
    if pa.types.is_dictionary(column.type):
        # Arrow's own cast knows no dictionaries of string views, which Polars writes.
        pieces = [piece.dictionary.cast(kind).take(piece.indices) for piece in column.chunks]
        return pa.chunked_array(pieces, kind)
    try:
        return column.cast(kind)
    except pa.ArrowInvalid:
        # Offsets have 32 bits: text too long for one array fits in several.
        cells = (column.take([index]).cast(kind).chunks for index in range(len(column)))
        return pa.chunked_array(list(chain.from_iterable(cells)), kind)


def _conform(rows: pa.Table, schema: pa.Schema) -> pa.Table:
    """Return exactly the columns of `schema`, NULL where missing."""
    known = set(rows.column_names)
    columns = [
        _cast(rows[name], kind) if name in known else pa.nulls(len(rows), kind)
        for name, kind in zip(schema.names, schema.types, strict=True)
    ]
    return pa.table(columns, schema=schema)


def _typed(values: list[object], running: pa.DataType | None) -> tuple[pa.Array | None, list[str | None]]:
    """Convert JSON values to the running type, or find their own; say of each that does not fit why not."""

    def widened(kind: pa.DataType | None, cells: list[object]) -> pa.DataType:
        return _widened(kind, pa.array(cells).type, first=running is None)

    try:
        kind = _solid(widened(running, values))
        return (None if kind is None else pa.array(values, kind)), [None] * len(values)
    except _NO_FIT:
        widest, misfits = running, list[str | None]()
    for value in values:
        with suppress(*_NO_FIT):
            widest = widened(widest, [value])
    kind, fitting = _solid(widest), list[object]()
    for value in values:
        found = "mixed types or a number beyond 64 bits"
        try:
            found = f"{pa.array([value]).type!s:.80}"
            widened(widest, [value])
            fitting.append(None if kind is None else pa.array([value], kind)[0].as_py())
            misfits.append(None)
        except _NO_FIT:
            fitting.append(None)
            misfits.append(f"expected {'one type' if kind is None else kind!s:.80}, found {found}")
    return (None if kind is None else pa.array(fitting, kind)), misfits


def _widened(kind: pa.DataType | None, found: pa.DataType, first: bool) -> pa.DataType:
    """Return the type that holds both, or raise TypeError; only the first chunk may turn integers to doubles."""
    if kind is None or pa.types.is_null(kind) or kind == found:
        return found
    if pa.types.is_null(found):
        return kind
    if {kind, found} == {pa.int64(), pa.float64()} and (first or kind == pa.float64()):
        return pa.float64()
    if pa.types.is_list(kind) and pa.types.is_list(found):
        return pa.list_(_widened(kind.value_type, found.value_type, first))
    if pa.types.is_struct(kind) and pa.types.is_struct(found):
        types = {field.name: field.type for field in kind}
        types.update((field.name, _widened(types.get(field.name), field.type, first)) for field in found)
        return pa.struct(types.items())
    raise TypeError(f"{found} does not fit {kind}")


def _solid(kind: pa.DataType | None) -> pa.DataType | None:
    """Leave out what has shown no value yet: a later one decides its type, and Parquet has no empty struct."""
    if kind is None or pa.types.is_null(kind):
        return None
    if pa.types.is_list(kind):
        item = _solid(kind.value_type)
        return None if item is None else pa.list_(item)
    if pa.types.is_struct(kind):
        fields = [(field.name, _solid(field.type)) for field in kind]
        solid = [(name, type_) for name, type_ in fields if type_ is not None]
        return pa.struct(solid) if solid else None
    return kind


# JSONL and CSV, read as bytes, so that one bad line is one rejected row.


def _bytes_lines(path: Path) -> Iterator[bytes]:
    with _reading(path), gzip.open(path) if path.suffix == ".gz" else path.open("rb") as file:
        for number, line in enumerate(file):
            yield line.removeprefix(codecs.BOM_UTF8) if number == 0 else line


def _json_lines(path: Path) -> Iterator[_Line]:
    return filter(None, map(bytes.strip, _bytes_lines(path)))


def _json_row(line: bytes) -> _Row:
    doubt = "lone surrogate" if b"\\ud" in line or b"\\uD" in line else None
    try:
        text = line.decode()
    except UnicodeDecodeError:
        text, doubt = line.decode("utf-8", "surrogateescape"), "invalid UTF-8"
    try:
        cells = json.loads(text)
        if text.count("[") + text.count("{") > DEEPEST and _deep(cells):
            raise RecursionError
    except RecursionError:
        raise _Reject(f"nested deeper than {DEEPEST} levels") from None
    except json.JSONDecodeError as error:
        raise _Reject(f"line is not JSON: {error.msg} at character {error.pos}") from None
    except ValueError as error:
        raise _Reject(f"line is not JSON: {error}") from None
    if not isinstance(cells, dict):
        raise _Reject(f"line is not a JSON object but {_word(cells)}")
    if doubt and _surrogate("".join(cells)):
        raise _Reject(f"{doubt} in a column name")
    return _Row(cells, doubt)


def _surrogate(value: object) -> bool:
    try:
        (value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)).encode()
    except UnicodeEncodeError:
        return True
    return False


def _deep(value: object) -> bool:
    level: list[Any] = [value]
    for _ in range(DEEPEST):
        parts = chain.from_iterable(each.values() if isinstance(each, dict) else each for each in level)
        level = [part for part in parts if isinstance(part, dict | list)]
    return bool(level)


def _csv_lines(path: Path) -> Iterator[_Line]:
    csv.field_size_limit(LONGEST_CSV_FIELD)
    last, header = b"", list[str]()

    def text() -> Iterator[str]:
        nonlocal last
        for last in _bytes_lines(path):
            yield last.decode("utf-8", "surrogateescape")

    reader = csv.reader(text())
    while True:
        fields, error = [], None
        try:
            fields = next(reader)
        except StopIteration:
            return
        except csv.Error as broken:
            fields, error = [last.decode("utf-8", "surrogateescape")], str(broken)
        if header and fields:
            yield _CsvLine(header, fields, error)
        elif fields:
            header = fields
            _refuse_twins(header, path)
            if error is not None or any(map(_surrogate, header)):
                raise SourceError(f"{path} has no header in UTF-8; name the columns in its first line")


def _csv_row(line: _CsvLine) -> _Row:
    if line.error is not None:
        raise _Reject(f"line is not CSV: {line.error}")
    if len(line.fields) != len(line.header):
        raise _Reject(f"row has {len(line.fields)} fields, header has {len(line.header)}")
    doubt = "invalid UTF-8" if _surrogate("".join(line.fields)) else None
    return _Row({name: field or None for name, field in zip(line.header, line.fields, strict=True)}, doubt)


def _csv_shown(line: _CsvLine) -> object:
    fields = [_legible(field.encode("utf-8", "surrogateescape")) for field in line.fields]
    return dict(zip(line.header, fields, strict=True)) if len(fields) == len(line.header) else fields


# Parquet and Arrow files.


def _matches(pattern: str, kind: str) -> list[Path]:
    path = Path(pattern).expanduser()
    if path.is_dir() and kind != "parquet":
        raise SourceError(f"{pattern} is a folder; name the files in it, say {pattern.rstrip('/')}/*.{kind}")
    if path.exists() and not path.is_dir():
        return [path]
    places = path.glob("*.parquet") if path.is_dir() else map(Path, glob.glob(str(path), recursive=True))
    found = [place for place in places if place.is_file()]
    if not found:
        raise SourceError(f"{pattern}: no such file, and nothing that matches; check the path")
    return found


def _saved_files(folder: Path, split: str) -> list[Path]:
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


def _sha256(path: Path) -> str:
    with _reading(path):
        state = path.stat()
        return _sha256_of(path, state.st_size, state.st_mtime_ns)


@cache
def _sha256_of(path: Path, size: int, modified: int) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


@contextmanager
def _reading(path: Path | str) -> Iterator[None]:
    try:
        yield
    except (OSError, EOFError, zlib.error, pa.ArrowException) as error:
        raise SourceError(f"{path} cannot be read: {_said(error)}; check the file") from error


def _said(error: BaseException) -> str:
    lines = str(error).strip().splitlines()
    return f"{type(error).__name__}: {lines[0]}" if lines else type(error).__name__


def _refuse_twins(names: Sequence[str], path: Path) -> None:
    for name in names:
        if names.count(name) > 1:
            raise SourceError(f"{path} has two columns called {name!r}; write it again with one")


def _unified(files: list[Path], read_schema: Callable[[Path], pa.Schema]) -> pa.Schema:
    unified = pa.schema([])
    for path in files:
        with _reading(path):
            schema = read_schema(path)
        _refuse_twins(schema.names, path)
        plain = pa.schema([(field.name, _plain(field.type, pa.string())) for field in schema])
        try:
            unified = pa.unify_schemas([unified, plain], promote_options="permissive")
        except pa.ArrowException as error:
            raise SourceError(f"{path} does not fit the files before it: {_said(error)}; convert it") from error
    return unified


def _file_tables(files: list[Path], read: _Reader, skip: int, size: int) -> Iterator[pa.Table]:
    for path in files:
        with _reading(path):
            skip = yield from read(path, skip, size)


def _conformed(tables: Iterable[pa.Table], fields: pa.Schema, where: str) -> Iterator[pa.Table]:
    with _reading(where):
        for table in tables:
            yield _conform(table, fields)


def _regrouped(tables: Iterable[pa.Table], size: int) -> Iterator[pa.Table]:
    """Cut tables of any size into tables of `size` rows."""
    held: pa.Table | None = None
    for table in tables:
        held = table if held is None else pa.concat_tables([held, table])
        while held.num_rows >= size:
            yield held.slice(0, size)
            held = held.slice(size)
    if held is not None and held.num_rows:
        yield held


def _parquet_tables(path: Path, skip: int, size: int) -> Generator[pa.Table, None, int]:
    """Iterate over the rows after the first `skip`; return how many are still to skip."""
    with pq.ParquetFile(path) as file:
        groups = list(range(file.num_row_groups))
        while groups and skip >= file.metadata.row_group(groups[0]).num_rows:
            skip -= file.metadata.row_group(groups.pop(0)).num_rows
        for batch in file.iter_batches(batch_size=size, row_groups=groups):
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


def _arrow_schema(path: Path) -> pa.Schema:
    return _arrow_batches(path)[0]


def _arrow_tables(path: Path, skip: int, size: int) -> Generator[pa.Table, None, int]:
    for batch in _arrow_batches(path)[1]:
        for start in range(skip, len(batch), size):
            yield pa.Table.from_batches([batch.slice(start, size)])
        skip = max(0, skip - len(batch))
    return skip


# The Hub.


@cache
def _commit(hub: str, revision: str | None) -> str:
    """Pin a revision once per process, so that all chunks come from one commit."""
    if revision is not None and re.fullmatch("[0-9a-f]{40}", revision):
        return revision
    from huggingface_hub import HfApi

    with _asking(hub):
        commit = HfApi().dataset_info(hub, revision=revision).sha
    if commit is None:
        raise SourceError(f"Hub data set {hub}: the Hub names no commit; give a revision")
    return commit


@contextmanager
def _asking(hub: str) -> Iterator[None]:
    try:
        yield
    except SourceError:
        raise
    # The client and its transports share no root error.
    except Exception as error:
        what = f"{_said(error)}; check the name, the network and your login"
        if type(error).__name__ == "RepositoryNotFoundError":
            what = "no such data set, or no access to it; check the name, or log in with `hf auth login`"
        raise SourceError(f"Hub data set {hub}: {what}") from error


def _hub_tables(source: Source, hub: str, skip: int) -> tuple[pa.Schema, Iterator[pa.Table]]:
    commit = _commit(hub, source.revision)
    with _asking(hub):
        from datasets import load_dataset

        # Without hf:// a folder of the same name beside the caller would be read instead.
        rows = load_dataset(
            f"hf://datasets/{hub}",
            source.name,
            data_dir=source.data_dir,
            split=source.split,
            revision=commit,
            streaming=True,
        ).with_format("arrow")
        known = rows.features.arrow_schema if rows.features else next(iter(rows.iter(1)), pa.table({})).schema
    fields = pa.schema([(field.name, _plain(field.type, pa.string())) for field in known])

    def tables() -> Iterator[pa.Table]:
        with _asking(hub):
            for table in rows.skip(skip).iter(source.shard_rows):
                if new := set(table.column_names) - set(known.names):
                    raise SourceError(f"Hub data set {hub}: columns {new} are not in its first file; convert it")
                yield table

    return fields, tables()
