"""Rows from the Hub, Parquet, JSONL, CSV, Arrow, another store or memory, as prompt, response and reference.

One rule: each row that is read comes out once, as a row or as a rejected row with its reason, and its `row_id`
is its position in the source, whether or not the rows before it were rejected.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from itertools import chain, count, islice
from pathlib import Path
from typing import Literal, NamedTuple

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from pydantic import BaseModel, ConfigDict, Field, JsonValue, field_serializer, field_validator, model_validator

from seamcurate.data import formats
from seamcurate.data.frame import Frame
from seamcurate.errors import SourceError
from seamcurate.step import MESSAGES
from seamcurate.storage import objects
from seamcurate.store.store import shard_files
from seamcurate.text import suggestion

REJECTED = pa.schema([("row_id", pa.int64()), ("reason", pa.string()), ("row", pa.string())])
"""The schema of rejected rows: the position in the source, the reason, and the row as JSON text."""

KINDS = ("hub", "parquet", "jsonl", "csv", "arrow", "store", "data")
ROLES = ("system", "user", "assistant", "tool")
SHAREGPT_ROLES = {"human": "user", "gpt": "assistant"}

_Turns = list[dict[str, str]]


class Chunk(NamedTuple):
    """One shard's worth of the source: `shard_rows` rows from `number * shard_rows` on."""

    number: int
    """The shard's number."""
    rows: pa.Table
    """row_id, prompt, then response, reference and id where there are any, then every other source column."""
    rejected: pa.Table
    """The rejected rows, with the schema REJECTED."""
    schema: pa.Schema
    """The schema of all rows so far; pass it to `Source.chunks`, with the ids so far, to go on after this chunk."""


class Source(BaseModel):
    """Name where rows come from, and which of their columns hold prompt, response and reference.

    Exactly one of `hub`, `parquet`, `jsonl`, `csv`, `arrow`, `store` and `data` says where the rows are. `prompt`, `response`,
    `reference`, `messages` and `id` each name a column, or a field inside one, with dots between. All other columns are
    kept under their own names, or those that `rename` gives them. A row that cannot be read is rejected with its reason,
    and does not stop the reading.

    Args:
        hub: A data set's id on the Hugging Face Hub.
        parquet: A Parquet file, a folder of them, a pattern such as `data/*.parquet`, or a list of these.
        jsonl: A file with one JSON object a line, which may end in `.gz`, a pattern, or a list of these.
        csv: A CSV file with a header, a pattern, or a list of these.
        arrow: An Arrow file, a pattern, or a folder written by `datasets` with `save_to_disk`.
        store: Another store: its rows, without its columns.
        data: Rows in memory, in Python only: a pandas or Polars frame, a pyarrow Table, a `datasets` Dataset or a list of
            dicts. The hash of their content identifies them. A record of them names the hash, and cannot make them again.
        data_dir: For `hub`: the folder in the repository.
        name: For `hub`: the configuration of the data set.
        split: For `hub` and `save_to_disk` folders: the split.
        revision: For `hub`: a branch, tag or commit; the commit is part of the rows' fingerprint.
        prompt: The column with the prompt: text, or a list of chat turns.
        response: The column with the golden response.
        reference: The column with the reference answer: what exact answers are compared with, and RER's y.
        messages: The column with a whole chat, whose last turn is the response; in place of `prompt` and `response`.
        id: The column with an id of text; of rows with the same id, the first is kept.
        rename: New names of columns, by their names in the source.
        types: For `csv`: text, number or boolean, for columns whose cells leave it open.
        shard_rows: Rows in one shard, the unit of work and of resuming.

    Raises:
        ValueError: The fields contradict each other (as pydantic's ValidationError).
        SourceError: `data` is of another kind. Or a method reads the source, and a file or a column is missing, or cannot
            hold what it should.

    Example:
        >>> import json, pathlib, tempfile
        >>> file = pathlib.Path(tempfile.mkdtemp()) / "math.jsonl"
        >>> lines = [{"question": "2 + 2?", "answer": {"value": "4"}}, {"question": "", "answer": {"value": "6"}}]
        >>> _ = file.write_text("".join(json.dumps(line) + chr(10) for line in lines))
        >>> source = Source(jsonl=str(file), prompt="question", reference="answer.value")
        >>> chunk = next(source.chunks())
        >>> chunk.rows.select(["row_id", "prompt", "reference"]).to_pylist()
        [{'row_id': 0, 'prompt': '2 + 2?', 'reference': '4'}]
        >>> chunk.rejected["reason"].to_pylist()
        ['prompt is blank']
        >>> rows = [{"prompt": "2 + 2?", "response": "4"}, {"prompt": "3 + 3?", "response": "6"}]
        >>> next(Source(data=rows, response="response").chunks()).rows["response"].to_pylist()
        ['4', '6']
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    hub: str | None = None
    parquet: str | list[str] | None = None
    jsonl: str | list[str] | None = None
    csv: str | list[str] | None = None
    arrow: str | None = None
    store: str | None = None
    data: object = None
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
    types: dict[str, Literal["text", "number", "boolean"]] = {}
    """For csv: the types of columns, where their cells alone would give another one."""
    shard_rows: int = Field(default=4096, ge=1, le=10**9)

    @model_validator(mode="after")
    def _unambiguous(self) -> Source:
        kinds = [kind for kind in KINDS if getattr(self, kind) is not None]
        if len(kinds) != 1:
            named = ", ".join(kind for kind in KINDS if kind != "data")
            raise ValueError(f"rows come from one of {named} (or data, in Python), not {' and '.join(kinds) or 'none'}")
        if self.hub is None and (self.data_dir or self.name or self.revision):
            raise ValueError("data_dir, name and revision are for hub only: leave them out")
        if self.csv is None and self.types:
            raise ValueError("types is for csv only, as other files name the types of their columns: leave it out")
        if self.messages is not None and (self.prompt != "prompt" or self.response is not None):
            raise ValueError("messages holds prompt and response: leave these two out, or messages")
        return self

    @field_validator("data", mode="before")
    @classmethod
    def _in_memory(cls, rows: object) -> Frame | None:
        if isinstance(rows, dict) and "in_memory" in rows:
            raise SourceError(f"data was {rows['in_memory']} in memory, which no record holds; give it again in Python")
        return rows if rows is None or isinstance(rows, Frame) else Frame(rows)

    @field_serializer("data")
    def _described(self, rows: object) -> JsonValue:
        return {**rows.described()} if isinstance(rows, Frame) else None

    @property
    def frame(self) -> Frame | None:
        """Return the rows in memory that the source was given, if it was."""
        return self.data if isinstance(self.data, Frame) else None

    @property
    def _by_line(self) -> bool:
        """Tell whether the rows come one by one, so that each may have another mistake."""
        return self.jsonl is not None or self.csv is not None or bool(self.frame and self.frame.table is None)

    @property
    def _kind(self) -> str:
        return next(kind for kind in KINDS if getattr(self, kind) is not None)

    @property
    def _read_schema(self) -> Callable[[Path], pa.Schema]:
        return formats.arrow_schema if self.arrow is not None else pq.read_schema

    @property
    def _where(self) -> str:
        if self.frame is not None:
            return f"data, {self.frame.title}"
        paths: str | list[str] = getattr(self, self._kind)
        if isinstance(paths, list):
            return ", ".join(paths)
        return f"Hub data set {paths}" if self.hub is not None else paths

    def identity(self) -> JsonValue:
        """Return what decides the rows: contents, mapping and shard size, but not the folder they lie in."""
        exclude = {*KINDS, "revision"} if self.types else {*KINDS, "revision", "types"}
        fields: dict[str, JsonValue] = self.model_dump(mode="json", exclude=exclude)
        if self.hub is not None:
            return {"hub": self.hub, "commit": formats.hub_commit(self.hub, self.revision), **fields}
        if self.frame is not None:
            return {"data": [["rows in memory", self.frame.sha256]], **fields}
        files: list[JsonValue] = [[path.name, formats.source_sha256(path)] for path in self._files()]
        if self.csv is not None:
            fields["csv_types"] = formats.CSV_TYPES
        elif self.jsonl is None and formats.has_durations(self._files(), self._read_schema):
            fields["durations"] = "seconds"
        return {self._kind: files, **fields}

    def resolved(self, base: Path) -> Source:
        """Return the same source with relative paths made absolute from `base`, such as the folder of a recipe."""
        if self.hub is not None or (self.store or "").startswith("s3://"):
            return self
        if self.frame is not None:
            raise SourceError(
                "data: rows in memory are for Python; a recipe file names them by `parquet` or `jsonl`, once they are written"
            )

        def absolute(path: str) -> str:
            if re.match(r"[a-z0-9]+://", path):
                raise SourceError(f"{path} is no file of this machine; copy it here, or name a `store` at s3://")
            return str(base.absolute() / Path(path).expanduser())

        paths: str | list[str] = getattr(self, self._kind)
        absolute_paths = absolute(paths) if isinstance(paths, str) else [absolute(path) for path in paths]
        return self.model_copy(update={self._kind: absolute_paths})

    def files(self) -> list[Path]:
        """List the files of this machine that hold the rows; none where they come from the Hub or from memory.

        Raises:
            SourceError: There are none.
        """
        return [] if self.hub is not None or self.frame is not None else self._files()

    def chunks(self, first: int = 0, schema: pa.Schema | None = None, seen: Collection[str] = ()) -> Iterator[Chunk]:
        """Read chunks from number `first` on; `schema` and the ids `seen` are those of the chunks before it.

        Raises:
            SourceError: A file or column is missing, unreadable, or of a type that cannot be what it is mapped to.
        """
        ids, no_rows = set(seen), first == 0
        for read in self._line_reads(first, schema) if self._by_line else self._table_reads(first):
            rows, reasons, no_rows = read.rows, read.reasons, False
            if self.id is not None and "id" in rows.column_names:
                for position, row_id_text in zip(rows["row_id"].to_pylist(), rows["id"].to_pylist(), strict=True):
                    if row_id_text in ids:
                        reasons[position] = f"duplicate id {row_id_text!r:.80}"
                    ids.add(row_id_text)
                rows = _without(rows, reasons)
            bad = sorted(reasons)
            columns = [
                bad,
                [reasons[position] for position in bad],
                [read.show(position) for position in bad],
            ]
            rejected = pa.table(columns, schema=REJECTED)
            yield Chunk(read.number, formats.conform(rows, read.schema), rejected, read.schema)
        if no_rows:
            raise SourceError(f"{self._where}: no rows; name a source that has some")

    def _files(self) -> list[Path]:
        if self.arrow is not None and Path(self.arrow).expanduser().is_dir():
            return formats.saved_files(Path(self.arrow).expanduser(), self.split)
        if self.store is not None:
            folder = objects.place(self.store)
            folder = folder.expanduser() if isinstance(folder, Path) else folder
            files = [objects.local(file) for file in shard_files(folder / "rows")]
            if not files:
                raise SourceError(f"{self.store}: no shards in its rows; name the folder of a store")
            return files
        paths: str | list[str] = getattr(self, self._kind)
        patterns = [paths] if isinstance(paths, str) else paths
        files_found = {path for pattern in patterns for path in formats.matches(pattern, self._kind)}
        return sorted(files_found, key=str)

    def _inner(self, names: Collection[str]) -> list[str]:
        """Return the mapped names that are fields inside a column, such as `reward_model.ground_truth`."""
        mapped = [self.prompt, self.response, self.reference, self.messages, self.id]
        return [
            name
            for name in mapped
            if name is not None and name not in names and "." in name and name.split(".")[0] in names
        ]

    def _plan(self, names: Sequence[str], schema: pa.Schema | None = None) -> _Plan:
        """Map source columns to columns of the store; for the columns of an earlier chunk's schema that is decided."""
        decided_names = [] if schema is None else schema.names
        # A chunk whose rows have no column at all decides nothing.
        decided = "prompt" in decided_names or not names
        available = f"it has {', '.join(names)}"
        requested = {"response": self.response, "reference": self.reference, "id": self.id}
        for target in ("reference",) if self.messages is not None else ("response", "reference"):
            if (
                requested[target] is None
                and target not in self.rename
                and target in (decided_names if decided else names)
            ):
                requested[target] = target
        mapped = {"prompt": self.prompt} if self.messages is None else {"messages": self.messages}
        mapped.update((target, column) for target, column in requested.items() if column is not None)
        for target, column in () if decided else mapped.items():
            if column not in names:
                raise SourceError(
                    f"{self._where}: no column {column!r} for {target}; {available}{suggestion(column, names)}"
                )
        # SQL ignores case: `Prompt` beside `prompt` could not be asked for.
        claimed = {"row_id", "prompt", "response", "reference", *(["id"] if self.id is not None else [])}
        spelled = {name.lower(): name for name in decided_names}
        sides = {self.rename.get(name, name): name for name in names if name not in mapped.values()}
        # In JSONL a column may first appear in a later line: a `rename` that keeps such a column from clashing is no error.
        later_names = {name.lower() for name in (*claimed, *names)} if self._by_line and self.csv is None else set()
        for column in [*self.rename, *(name for name in sides.values() if name not in self.rename)]:
            output = self.rename.get(column, column)
            if column in mapped.values():
                raise SourceError(f"{self._where}: {column!r} is mapped already; take it out of rename")
            if not decided and column not in names and column.lower() not in later_names:
                raise SourceError(
                    f"{self._where}: no column {column!r} to rename; {available}{suggestion(column, names)}"
                )
            if not output or "\0" in output:
                raise SourceError(
                    f"{self._where}: a column is called {output!r:.80}, which SQL cannot name; "
                    f"give it another name with rename: {{{json.dumps(column)}: source_column}}"
                )
            if output.lower() in claimed or spelled.get(output.lower(), output) != output:
                raise SourceError(
                    f"{self._where}: column {output!r} clashes with another (SQL ignores case); "
                    f"give it another name with rename: {{{column}: source_{column}}}"
                )
            claimed.add(output.lower())
        return _Plan(mapped, sides)

    def _values(self, row: dict[str, object], plan: _Plan, kind: pa.DataType | None) -> dict[str, object]:
        """Return the mapped values of one row as the store has them, or raise formats.Reject."""
        values: dict[str, object] = {}
        if self.messages is not None:
            turns = _turns(row.get(self.messages), "messages")
            if turns[-1]["role"] != "assistant":
                raise formats.Reject("no assistant turn at the end")
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
                # In Python True is the integer 1; as an id it is a mistake.
                is_integer = isinstance(value, int) and not isinstance(value, bool)
                values[target] = _text(str(value) if is_integer else value, target)
        return values

    def _table_reads(self, first_chunk: int) -> Iterator[_Read]:
        """Read sources that declare their columns before their rows, a chunk at a time: Parquet, Arrow and the Hub."""
        skip = first_chunk * self.shard_rows
        if self.hub is not None:
            fields, tables = formats.hub_tables(
                self.hub, self.revision, self.name, self.data_dir, self.split, skip, self.shard_rows
            )
        elif self.frame is not None and self.frame.table is not None:
            fields = pa.schema([formats.column_field(field) for field in self.frame.table.schema])
            tables = self.frame.tables(skip, self.shard_rows)
        else:
            files = self._files()
            read = formats.arrow_tables if self.arrow is not None else formats.parquet_tables
            fields = formats.unified(files, self._read_schema)
            if self.store is not None:
                # Positions in this source are counted anew: rows that the store rejected are not among its own.
                fields = pa.schema([field for field in fields if field.name != "row_id"])
            tables = formats.file_tables(files, read, skip, self.shard_rows)
        if not fields.names:
            return
        tables = formats.conformed(tables, fields, self._where)
        fields, tables = formats.with_inner(fields, tables, self._inner(fields.names), self._where)
        plan = self._plan(fields.names)
        for target, column in plan.mapped.items():
            _check_type(fields.field(column).type, target, f"{self._where}: column {column!r}")
        for column in plan.sides.values():
            if reason := formats.unstorable(fields.field(column).type):
                raise SourceError(f"{self._where}: column {column!r} {reason}; convert it, or leave it out of the file")
        chats = {column for column in plan.mapped.values() if pa.types.is_list(fields.field(column).type)}
        chat = self.messages is not None or self.prompt in chats
        types = {"row_id": pa.int64(), "prompt": MESSAGES if chat else pa.string()}
        for target in ("response", "reference", "id"):
            if target in plan.mapped or (target == "response" and self.messages is not None):
                types[target] = pa.string()
        types.update(
            (column_name, formats.solid(fields.field(column).type)) for column_name, column in plan.sides.items()
        )
        metadata = {column_name: fields.field(column).metadata for column_name, column in plan.sides.items()}
        schema = pa.schema(
            [pa.field(name, kind, metadata=metadata.get(name)) for name, kind in types.items() if kind is not None]
        )
        for number, block in enumerate(formats.regrouped(tables, self.shard_rows), first_chunk):
            yield self._table_read(number, block, plan, schema, by_row=bool(chats))

    def _table_read(self, number: int, block: pa.Table, plan: _Plan, schema: pa.Schema, by_row: bool) -> _Read:
        start, reasons = number * self.shard_rows, dict[int, str]()
        names = [name for name in block.column_names if name not in plan.mapped.values() or "." not in name]
        for output, column in {**plan.mapped, **plan.sides}.items():
            for index in formats.not_utf8(block[column], f"{self._where}: column {column!r}"):
                # Of several columns the first is named: one reason a row.
                reasons.setdefault(start + index, f"invalid UTF-8 in {output}")
        # (rows of the block,): Arrow fails as a whole on a column with a text that is not UTF-8.
        readable = pa.array([start + index not in reasons for index in range(len(block))], pa.bool_())
        rows = block.filter(readable) if reasons else block
        columns = {"row_id": pa.array(range(start, start + len(block)), pa.int64()).filter(readable)}
        # Speed: whole columns of text are taken at once, and only rows that may be rejected are looked at one by one.
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
        row_ids = columns["row_id"].filter(doubtful.combine_chunks()).to_pylist()
        for position, row in zip(row_ids, mapped, strict=True):
            try:
                values.append(self._values(row, plan, schema.field("prompt").type))
            except formats.Reject as reject:
                values.append({})
                reasons[position] = str(reject)
        for target in ("prompt", "response", "reference", "id"):
            if by_row and target in schema.names:
                columns[target] = pa.array([row_values.get(target) for row_values in values], schema.field(target).type)
        columns.update((column_name, rows[column]) for column_name, column in plan.sides.items())

        def show(position: int) -> str:
            row = block.slice(position - start, 1)
            # These fields stand in the columns that they lie in already.
            row = row.drop_columns(self._inner(names))
            # Text that is not UTF-8 cannot become a Python string, and a rejected row may hold it.
            as_bytes = pa.schema([(field.name, formats.plain(field.type, pa.binary())) for field in row.schema])
            return formats.json_text(row.cast(as_bytes).to_pylist()[0])

        return _Read(number, _without(pa.table(columns), reasons), reasons, show, schema)

    def _line_reads(self, first_chunk: int, schema: pa.Schema | None) -> Iterator[_Read]:
        """Read sources in which each line may have another mistake, a row at a time: JSONL and CSV."""
        open_lines = formats.json_lines if self.csv is None else formats.csv_lines
        files = self.files()
        kinds = self._csv_types(files) if self.csv is not None else {}
        # Chunks before the first are parsed no further than into lines.
        all_lines = self.frame.lines if self.frame is not None else chain.from_iterable(map(open_lines, files))
        lines = islice(all_lines, first_chunk * self.shard_rows, None)
        for number in count(first_chunk):
            block = list(islice(lines, self.shard_rows))
            if not block:
                return
            read = self._line_read(number, block, schema, kinds)
            schema = read.schema
            yield read

    def _csv_types(self, files: Sequence[Path]) -> dict[str, pa.DataType]:
        mapped = {
            **{column: "the messages" for column in [self.messages] if column},
            **{getattr(self, target): f"the {target}" for target in ("prompt", "response", "reference", "id")},
            **{name: f"the {name}" for name in ("response", "reference") if getattr(self, name) is None},
        }
        for name in self.types:
            if name in mapped and name not in self.rename:
                raise SourceError(
                    f"{self._where}: column {name!r} is {mapped[name]}, which is text; take it out of types"
                )
        texts = [name for name in mapped if name is not None and name not in self.rename]
        return formats.csv_types(files, self.types, texts)

    def _line_read(
        self, number: int, lines: list[formats.SourceLine], schema: pa.Schema | None, kinds: Mapping[str, pa.DataType]
    ) -> _Read:
        start, reasons, rows = number * self.shard_rows, dict[int, str](), dict[int, formats.ParsedLine]()
        for position, line in enumerate(lines, start):
            try:
                row = formats.json_row(line) if isinstance(line, bytes) else formats.csv_row(line)
                rows[position] = row._replace(cells=formats.with_inner_cells(row.cells, self._inner(row.cells)))
            except formats.Reject as reject:
                reasons[position] = str(reject)
        types = {"row_id": pa.int64()}
        types.update((field.name, formats.plain(field.type, pa.string())) for field in schema or ())
        names = list(dict.fromkeys(chain.from_iterable(row.cells for row in rows.values())))
        plan = self._plan(names, schema)
        kind, good = types.get("prompt"), dict[int, dict[str, object]]()
        for position, row in rows.items():
            try:
                for output, column in {**plan.mapped, **plan.sides}.items() if row.doubt else ():
                    if formats.surrogate(row.cells.get(column)):
                        raise formats.Reject(f"{row.doubt} in {output}")
                good[position] = values = self._values(row.cells, plan, kind)
                # The first good row decides for the source whether prompts are text or messages.
                kind = kind or (pa.string() if isinstance(values["prompt"], str) else MESSAGES)
            except formats.Reject as reject:
                reasons[position] = str(reject)
        columns: dict[str, pa.Array] = {"row_id": pa.array(good, pa.int64())}
        for target in next(iter(good.values()), ()):
            cells = [values[target] for values in good.values()]
            columns[target] = pa.array(cells, kind if target == "prompt" else pa.string())
        for column_name, column in plan.sides.items() if good else ():
            running = types.get(column_name) or kinds.get(column)
            cells = [rows[position].cells.get(column) for position in good]
            if self.csv is not None:
                cells = [formats.csv_value(cell, running) for cell in cells]
            array, misfits = formats.typed(cells, running)
            for position, misfit in zip(good, misfits, strict=True):
                if misfit is not None:
                    reasons.setdefault(position, f"wrong type in column {column_name}: {misfit}")
            if array is not None:
                columns[column_name] = array
        types.update((name, array.type) for name, array in columns.items())

        def show(position: int) -> str:
            line = lines[position - start]
            return formats.legible(line) if isinstance(line, bytes) else formats.json_text(formats.csv_shown(line))

        return _Read(number, _without(pa.table(columns), reasons), reasons, show, pa.schema(types.items()))


class _Plan(NamedTuple):
    mapped: dict[str, str]
    """prompt, response, reference, id or messages: the source column that holds it."""
    sides: dict[str, str]
    """Every other column under its new name: its name in the source."""


class _Read(NamedTuple):
    """A chunk before its ids were compared with those of other chunks."""

    number: int
    rows: pa.Table
    reasons: dict[int, str]
    show: Callable[[int], str]
    schema: pa.Schema


def _without(rows: pa.Table, reasons: Collection[int]) -> pa.Table:
    if not reasons:
        return rows
    accepted = [position not in reasons for position in rows["row_id"].to_pylist()]
    return rows.filter(pa.array(accepted, pa.bool_()))


# Values: what is text, what is a chat.


def _text(value: object, name: str) -> str:
    if isinstance(value, list):
        turns = _turns(value, name)
        # Preference data write an answer as a chat of its own turn.
        if len(turns) != 1 or turns[0]["role"] != "assistant":
            raise formats.Reject(f"{name} is not one assistant turn")
        value = turns[0]["content"]
    if value is None:
        raise formats.Reject(f"{name} is null")
    if not isinstance(value, str):
        raise formats.Reject(f"{name} is not text but {formats.word(value)}")
    if not value.strip():
        raise formats.Reject(f"{name} is blank")
    return value


def _prompt(value: object, kind: pa.DataType | None) -> str | _Turns:
    if value is not None and (kind == MESSAGES or (kind is None and isinstance(value, list))):
        turns = _turns(value, "prompt")
        if not any(turn["content"].strip() for turn in turns):
            raise formats.Reject("prompt is blank")
        return turns
    if isinstance(value, list):
        raise formats.Reject("prompt is not text but messages")
    return _text(value, "prompt")


def _turns(value: object, name: str) -> _Turns:
    """Return a chat's turns with the keys `role` and `content`, as trainers expect them; other keys are dropped."""
    if value is None:
        raise formats.Reject(f"{name} is null")
    if not isinstance(value, list):
        raise formats.Reject(f"{name} is not messages but {formats.word(value)}")
    if not value and name == "messages":
        raise formats.Reject("no assistant turn at the end")
    turns: _Turns = []
    for number, turn in enumerate(value, 1):
        if not isinstance(turn, dict):
            raise formats.Reject(f"turn {number} of {name} is not a message")
        role_name, content = turn.get("role"), turn.get("content")
        if role_name is None:
            # ShareGPT's names of the same two keys.
            role_name, content = turn.get("from"), turn.get("value")
        role = SHAREGPT_ROLES.get(role_name, role_name) if isinstance(role_name, str) else role_name
        if not isinstance(role, str) or role not in ROLES:
            raise formats.Reject(f"unknown role {role_name!r:.40}")
        if not isinstance(content, str):
            raise formats.Reject(f"turn {number} of {name} is not text but {formats.word(content)}")
        turns.append({"role": role, "content": content})
    return turns


def _check_type(kind: pa.DataType, target: str, column: str) -> None:
    """Refuse a column whose type no row of the mapped column could have."""
    item = kind.value_type if pa.types.is_list(kind) else None
    names = {field.name for field in item} if item is not None and pa.types.is_struct(item) else set()
    chat = names >= {"role", "content"} or names >= {"from", "value"}
    text = pa.types.is_string(kind) and target != "messages"
    is_integer = pa.types.is_integer(kind) and target == "id"
    if not (chat and target != "id") and not text and not is_integer and not pa.types.is_null(kind):
        raise SourceError(f"{column} is {kind}, which cannot be the {target}; map another column")
