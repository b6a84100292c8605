"""Rows from the Hub, Parquet, JSONL, CSV, Arrow, another store or memory, as prompt, response and reference.

One rule: each row that is read comes out once, as a row or as a rejected row with its reason, and its `row_id`
is its position in the source, whether or not the rows before it were rejected.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from itertools import chain, count, islice
from pathlib import Path
from typing import TYPE_CHECKING, Literal, NamedTuple, TypeAlias

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from pydantic import BaseModel, ConfigDict, Field, JsonValue, field_serializer, field_validator, model_validator

from seamcurate.data import chats, formats, hub, layouts, lines
from seamcurate.data.frame import Frame
from seamcurate.errors import QueryError, SourceError, first_line
from seamcurate.sql.expressions import Expressions, opened
from seamcurate.step import MESSAGES
from seamcurate.storage import objects
from seamcurate.store.folder import shard_files
from seamcurate.tables import python_rows
from seamcurate.text import suggestion

REJECTED = pa.schema([("row_id", pa.int64()), ("reason", pa.string()), ("row", pa.string())])
"""The schema of rejected rows: the position in the source, the reason, and the row as JSON text."""

KINDS = ("hub", "parquet", "jsonl", "csv", "arrow", "store", "data")
_MEDIA = ("tools", "image", "images", "video", "videos", "audio", "audios")
QUESTION_COLUMNS = ("input", "context", "system", "system_prompt", "history", "passage", *_MEDIA)
"""Names of columns that belong to the question: where they are not read, a note says so."""


if TYPE_CHECKING:
    LayoutName: TypeAlias = str
else:
    # A type checker cannot read the table; pydantic can.
    LayoutName = Literal[tuple(layouts.LAYOUTS)]


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
    nulled: Mapping[str, int] = {}
    """How many values are NULL because they do not fit their column, by column; of columns that steps do not map."""
    notes: tuple[str, ...] = ()
    """Lines for a person about the source, in its first chunk: what it looks like, what is not read."""


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
        select: Columns computed from each row, by SQL expressions of DuckDB over the source's columns:
            `{prompt: "instruction || coalesce(chr(10) || input, '')"}`.
        where: An SQL condition over the source's columns; rows that do not meet it are not read, and have no `row_id`.
        drop: Columns to leave out.
        unanswered: Keep rows whose response is missing or blank, with `response` NULL; by default they are set aside.
        encoding: For `jsonl` and `csv`: the files' encoding, such as `cp1252`; by default what their bytes say.
        delimiter: For `csv`: the character between fields; by default the comma, semicolon, tab or bar that the header has.
        layout: The public layout that the source has, which says what is prompt, response and reference; see
            docs/how-to/prepare-data.md.
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
    layout: LayoutName | None = None
    select: dict[str, str] = {}
    where: str | None = None
    drop: list[str] = []
    unanswered: bool = False
    encoding: str | None = None
    delimiter: str | None = Field(default=None, min_length=1, max_length=1)
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
        if self.delimiter is not None and self.csv is None:
            raise ValueError("delimiter is for csv only: leave it out")
        if self.encoding is not None:
            if self.csv is None and self.jsonl is None:
                raise ValueError("encoding is for jsonl and csv only, as other files are no text: leave it out")
            try:
                "".encode(self.encoding)
            except LookupError as error:
                raise ValueError(
                    f"there is no encoding {self.encoding!r}; name one, such as utf-16 or cp1252"
                ) from error
        if self.messages is not None and (self.prompt != "prompt" or self.response is not None):
            raise ValueError("messages holds prompt and response: leave these two out, or messages")
        mapped = [name for name in ("response", "reference", "messages") if getattr(self, name) is not None]
        mapped += ["prompt"] if self.prompt != "prompt" else []
        if self.layout is not None and mapped:
            raise ValueError(
                f"layout {self.layout} says which columns are what: leave {' and '.join(mapped)} out, or layout"
            )
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
    def _computes(self) -> bool:
        return bool(self.select) or self.where is not None

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
        exclude = {*KINDS, "revision", *(name for name in _LATER_FIELDS if not getattr(self, name))}
        fields: dict[str, JsonValue] = self.model_dump(mode="json", exclude=exclude)
        if self.hub is not None:
            return {"hub": self.hub, "commit": hub.commit_of(self.hub, self.revision), **fields}
        if self.frame is not None:
            return {"data": [["rows in memory", self.frame.sha256]], **fields}
        paths = self._files()
        files: list[JsonValue] = [[path.name, formats.source_sha256(path)] for path in paths]
        if in_folders := self._partitions(paths):
            fields["in_folders"] = [_json_object(in_folders.get(path, {})) for path in paths]
        if self.csv is not None:
            fields["csv_types"] = formats.CSV_TYPES
            found = [lines.dialect(path, self.encoding, self.delimiter, is_csv=True) for path in paths]
            if any(dialect != lines.Dialect() for dialect in found):
                fields["csv_dialects"] = [list(dialect) for dialect in found]
        elif self.jsonl is None and formats.has_durations(paths, self._read_schema):
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

    def head(self, count: int) -> list[layouts.Row]:
        """Return the first rows as the source has them, before a layout or a mapping; those that cannot be parsed are left out.

        Raises:
            SourceError: A file is missing or unreadable.
        """
        rows: Iterator[_Row]
        if self._by_line:
            rows = self._with_all_folders(self._partitions(self.files()))
        else:
            rows = chain.from_iterable(formats.table_rows(table) for table in self._tables(0)[1])
        parsed = list[layouts.Row]()
        for row in islice(rows, count):
            with suppress(formats.Reject):
                parsed.append(self._parsed(row).cells)
        return parsed

    def chunks(self, first: int = 0, schema: pa.Schema | None = None, seen: Collection[str] = ()) -> Iterator[Chunk]:
        """Read chunks from number `first` on; `schema` and the ids `seen` are those of the chunks before it.

        Raises:
            SourceError: A file or column is missing, unreadable, or of a type that cannot be what it is mapped to.
        """
        ids, no_rows = set(seen), first == 0
        by_row = self._by_line or self.layout is not None or self._computes
        for read in self._line_reads(first, schema) if by_row else self._table_reads(first):
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
            table = formats.conform(rows, read.schema)
            yield Chunk(read.number, table, rejected, read.schema, read.nulled, read.notes)
        if no_rows and self.where is not None:
            raise SourceError(f"{self._where}: no rows, or none that `where` keeps; change the condition")
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

    def _plan(
        self, names: Sequence[str], schema: pa.Schema | None = None, row: Mapping[str, object] | None = None
    ) -> _Plan:
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
                    f"{self._where}: no column {column!r} for {target}; {available}"
                    f"{suggestion(column, names)}{self._hint(names, row)}"
                )
        # SQL ignores case: `Prompt` beside `prompt` could not be asked for.
        claimed = {"row_id", "prompt", "response", "reference", *(["id"] if self.id is not None else [])}
        spelled = {name.lower(): name for name in decided_names}
        for column in () if decided else self.drop:
            if column in mapped.values():
                raise SourceError(f"{self._where}: column {column!r} is mapped; take it out of drop")
            if column not in names and not self._by_line:
                raise SourceError(
                    f"{self._where}: no column {column!r} to drop; {available}{suggestion(column, names)}"
                )
        sides = {
            self.rename.get(name, name): name for name in names if name not in mapped.values() and name not in self.drop
        }
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

    def _values(self, row: Mapping[str, object], plan: _Plan, kind: pa.DataType | None) -> dict[str, object]:
        """Return the mapped values of one row as the store has them, or raise formats.Reject."""
        values: dict[str, object] = {}
        if self.messages is not None:
            turns = chats.turns(row.get(self.messages), "messages")
            if turns[-1]["role"] != "assistant":
                raise formats.Reject("no assistant turn at the end")
            values["prompt"] = chats.prompt(turns[:-1], MESSAGES)
            values["response"] = chats.text(turns[-1]["content"], "response")
            said = [row.get(self.messages)]
        else:
            prompt = row.get(self.prompt)
            if self.layout is not None and kind == MESSAGES and isinstance(prompt, str) and prompt.strip():
                prompt = [{"role": "user", "content": prompt}]
            values["prompt"] = chats.prompt(prompt, kind)
            answer = row.get(plan.mapped["response"]) if "response" in plan.mapped else None
            said = [value for value in (prompt, answer) if isinstance(value, list)]
        for target, column in plan.mapped.items():
            value = row.get(column)
            if target == "reference" or (target == "response" and not self._answered):
                blank = value is None or (isinstance(value, str) and not value.strip())
                values[target] = None if blank else chats.text(value, target, values["prompt"])
            elif target == "response":
                values[target] = chats.text(value, target, values["prompt"])
            elif target == "id":
                if isinstance(value, bool | float):
                    raise formats.Reject(f"{target} is not text but {formats.word(value)}")
                values[target] = chats.text(value, target)
        details = chats.details_text(*said)
        if details is not None and chats.DETAILS not in plan.sides:
            values[chats.DETAILS] = details
        return values

    @property
    def _answered(self) -> bool:
        """Whether each row has a response, where there is a column of them."""
        return not self.unanswered and (self.layout is None or layouts.LAYOUTS[self.layout].answered)

    def _tables(self, skip: int) -> tuple[pa.Schema, Iterator[pa.Table]]:
        """Open a source that declares its columns before its rows: Parquet, Arrow, another store, or the Hub."""
        if self.hub is not None:
            fields, tables = hub.tables_of(
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
            in_folders = self._partitions(files)
            fields = _with_partitions(fields, in_folders)
            tables = formats.file_tables(files, read, skip, self.shard_rows, in_folders)
        return fields, formats.conformed(tables, fields, self._where)

    def _table_reads(self, first_chunk: int) -> Iterator[_Read]:
        """Read sources that declare their columns before their rows, a chunk at a time: Parquet, Arrow and the Hub."""
        fields, tables = self._tables(first_chunk * self.shard_rows)
        if not fields.names:
            return
        fields, tables = formats.with_inner(fields, tables, self._inner(fields.names), self._where)
        head = next(tables, None)
        tables = chain([] if head is None else [head], tables)
        row = {} if head is None else _first(head)
        plan = self._plan(fields.names, row=row)
        for target, column in plan.mapped.items():
            formats.check_alike(fields.field(column), f"{self._where}: column {column!r}")
            _check_type(fields.field(column).type, target, f"{self._where}: column {column!r}")
        for column in plan.sides.values():
            if reason := formats.unstorable(fields.field(column).type):
                raise SourceError(f"{self._where}: column {column!r} {reason}; convert it, or leave it out of the file")
        mapped_types = {column: fields.field(column).type for column in plan.mapped.values()}
        chat_columns = {column for column, kind in mapped_types.items() if pa.types.is_list(kind)}
        # Python and Arrow spell fractions in two ways.
        by_row = any(pa.types.is_list(kind) or pa.types.is_floating(kind) for kind in mapped_types.values())
        chat = self.messages is not None or self.prompt in chat_columns
        types = {"row_id": pa.int64(), "prompt": MESSAGES if chat else pa.string()}
        for target in ("response", "reference", "id"):
            if target in plan.mapped or (target == "response" and self.messages is not None):
                types[target] = pa.string()
        if any(map(chats.has_details, mapped_types.values())) and chats.DETAILS not in plan.sides:
            types[chats.DETAILS] = pa.string()
        types.update(
            (column_name, formats.solid(fields.field(column).type)) for column_name, column in plan.sides.items()
        )
        metadata: dict[str, object] = {name: fields.field(column).metadata for name, column in plan.sides.items()}
        metadata.setdefault(chats.DETAILS, _DETAILS_MEANING)
        schema = pa.schema(
            [pa.field(name, kind, metadata=metadata.get(name)) for name, kind in types.items() if kind is not None]
        )
        for number, block in enumerate(formats.regrouped(tables, self.shard_rows), first_chunk):
            read = self._table_read(number, block, plan, schema, by_row)
            yield read._replace(notes=self._notes(fields.names, row)) if number == 0 else read

    def _table_read(self, number: int, block: pa.Table, plan: _Plan, schema: pa.Schema, by_row: bool) -> _Read:
        start, reasons = number * self.shard_rows, dict[int, str]()
        names = [name for name in block.column_names if name not in plan.mapped.values() or "." not in name]
        for output, column in plan.mapped.items():
            for index in formats.not_utf8(block[column], f"{self._where}: column {column!r}"):
                # Of several columns the first is named: one reason a row.
                reasons.setdefault(start + index, f"invalid UTF-8 in {output}")
        whole, nulled = block, dict[str, int]()
        for output, column in plan.sides.items():
            if bad := formats.not_utf8(block[column], f"{self._where}: column {column!r}"):
                kept = pa.array([None if index in set(bad) else index for index in range(len(block))], pa.int64())
                block = block.set_column(block.schema.get_field_index(column), column, block[column].take(kept))
                nulled[output] = len(bad)
        # (rows of the block,): Arrow fails as a whole on a column with a text that is not UTF-8.
        readable = pa.array([start + index not in reasons for index in range(len(block))], pa.bool_())
        rows = block.filter(readable) if reasons else block
        columns = {"row_id": pa.array(range(start, start + len(block)), pa.int64()).filter(readable)}
        # Speed: whole columns of text are taken at once, and only rows that may be rejected are looked at one by one.
        doubtful = pa.chunked_array([pa.repeat(by_row, len(rows))])
        for target, column in () if by_row else plan.mapped.items():
            text = rows[column].cast(pa.string())
            blank = pc.or_(pc.utf8_is_space(text), pc.equal(pc.binary_length(text), 0)).fill_null(True)
            if target == "reference" or (target == "response" and not self._answered):
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
        for target in ("prompt", "response", "reference", "id", chats.DETAILS):
            if by_row and target in schema.names and target not in plan.sides:
                columns[target] = pa.array([row_values.get(target) for row_values in values], schema.field(target).type)
        columns.update((column_name, rows[column]) for column_name, column in plan.sides.items())

        def show(position: int) -> str:
            row = whole.slice(position - start, 1)
            # These fields stand in the columns that they lie in already.
            row = row.drop_columns(self._inner(names))
            # Text that is not UTF-8 cannot become a Python string, and a rejected row may hold it.
            as_bytes = pa.schema([(field.name, formats.plain(field.type, pa.binary())) for field in row.schema])
            return formats.json_text(python_rows(row.cast(as_bytes))[0])

        return _Read(number, _without(pa.table(columns), reasons), reasons, show, schema, nulled)

    def _line_reads(self, first_chunk: int, schema: pa.Schema | None) -> Iterator[_Read]:
        """Read sources in which each row may have another mistake, a row at a time: JSONL, CSV and layouts."""
        rows, columns = self._rows()
        # Chunks before the first are parsed no further than into lines.
        rows = islice(rows, first_chunk * self.shard_rows, None)
        for number in count(first_chunk):
            block = list(islice(rows, self.shard_rows))
            if not block:
                return
            read = self._line_read(number, block, schema, columns)
            schema = read.schema
            yield read

    def _rows(self) -> tuple[Iterator[_Row], dict[str, pa.Field | formats.ColumnType]]:
        """Open the source's rows one by one, as its layout has them, and what is known of their columns."""
        columns: dict[str, pa.Field | formats.ColumnType]
        rows: Iterator[_Row]
        if self._by_line:
            # Rows in memory are no file, and have no folders.
            files = self.files() or [Path()]
            in_folders = self._partitions(self.files())
            rows = self._with_all_folders(in_folders)
            all_records = chain.from_iterable(map(self._records, files))
            if self.csv is not None:
                columns = {name: pa.field(name, kind) for name, kind in self._csv_types(all_records).items()}
                names: Collection[str] = formats.csv_names(map(self._records, files))
            else:
                columns = dict(formats.json_types(all_records))
                names = columns
            of_folders = _with_partitions(pa.schema([]), in_folders)
            columns = {**{field.name: field for field in of_folders}, **columns}
            names = list(dict.fromkeys([*names, *of_folders.names]))
        else:
            fields, tables = self._tables(0)
            columns, names = {field.name: field for field in fields}, fields.names
            read = {self.prompt, self.response or "response", self.reference or "reference", self.messages, self.id}
            read = read if self.layout is None else set(layouts.LAYOUTS[self.layout].takes)
            for name in names:
                if name in read and name not in self.select:
                    formats.check_alike(fields.field(name), f"{self._where}: column {name!r}")
            rows = chain.from_iterable(formats.table_rows(table) for table in tables)
        if self._computes:
            types = pa.schema([_field(name, columns.get(name)) for name in names])
            with self._expressions(types) as expressions:
                fields = expressions.fields
            rows = self._computed(rows, types)
            columns = {**columns, **{field.name: field for field in fields}}
            names = list(dict.fromkeys([*names, *self.select]))
        if self.layout is None:
            return rows, columns
        layout = layouts.LAYOUTS[self.layout]
        if names and layout.form(names) is None:
            forms = " or ".join(", ".join(form) for form in layout.needs)
            raise SourceError(
                f"{self._where}: layout {self.layout} needs the columns {forms}; it has {', '.join(names)}{self._hint(names)}"
            )
        kept = {layouts.kept_name(name): column for name, column in columns.items() if name not in layout.takes}
        kind = MESSAGES if layout.chats(names) else pa.string()
        known = {"prompt": pa.field("prompt", kind), **{name: layouts.ADDED[name] for name in layout.adds}}
        return self._laid_out(rows, layout), {**kept, **known}

    @contextmanager
    def _expressions(self, types: pa.Schema) -> Iterator[Expressions]:
        with opened() as connection:
            try:
                yield Expressions(connection, self.select, self.where, types)
            except QueryError as error:
                raise SourceError(f"{self._where}: {error}") from error

    def _computed(self, rows: Iterator[_Row], types: pa.Schema) -> Iterator[_Row]:
        """Add the columns of `select`, and leave out what `where` does not keep; a row that cannot be parsed stays."""
        with self._expressions(types) as expressions:
            while batch := list(islice(rows, _COMPUTED_ROWS)):
                yield from self._computed_batch(batch, types, expressions)

    def _computed_batch(self, batch: list[_Row], types: pa.Schema, expressions: Expressions) -> Iterator[_Row]:
        cells: dict[str, list[object]] = {name: [] for name in expressions.columns}
        items: list[_Row] = []
        good: list[bool] = []
        for row in batch:
            item, values = row, dict[str, object]()
            try:
                line = self._parsed(row)
                item = line
                values = {name: self._expressed(line, name, types.field(name).type) for name in expressions.columns}
                good.append(True)
            except formats.Reject as reject:
                # A line that cannot be parsed is shown as it is.
                item = layouts.Refused(str(reject), item.cells) if isinstance(item, formats.ParsedLine) else item
                good.append(False)
            items.append(item)
            for name, cell in values.items():
                cells[name].append(cell)
        read = [pa.array(cells[name], types.field(name).type) for name in expressions.columns]
        table = pa.table(read, names=expressions.columns) if read else pa.table({"none": pa.nulls(sum(good))})
        computed, kept = expressions.values(table)
        number = 0
        for item, is_good in zip(items, good, strict=True):
            if not is_good:
                yield item
                continue
            if kept[number] and isinstance(item, formats.ParsedLine):
                added = {name: column[number] for name, column in computed.items()}
                yield item._replace(cells={**item.cells, **added})
            number += 1

    def _expressed(self, line: formats.ParsedLine, name: str, kind: pa.DataType) -> object:
        """Return a value as expressions read it, or raise formats.Reject."""
        cell = line.cells.get(name)
        if self.csv is not None:
            cell = formats.csv_value(cell, kind)
        elif pa.types.is_string(kind) and self._by_line:
            cell = formats.spelled(cell, "text" if isinstance(cell, str) else "json")
        try:
            pa.array([cell], kind)
        except (pa.ArrowException, ValueError, TypeError, OverflowError) as error:
            raise formats.Reject(f"column {name} cannot be read by select or where: {first_line(error)}") from error
        return cell

    def _records(self, path: Path) -> Iterator[formats.SourceLine]:
        """Open a file's lines, or the rows in memory as lines."""
        if self.frame is not None:
            return iter(self.frame.lines)
        if self.csv is not None:
            return formats.csv_lines(path, self.encoding, self.delimiter)
        return formats.json_lines(path, self.encoding)

    def _with_all_folders(self, in_folders: Mapping[Path, Mapping[str, object]]) -> Iterator[_Row]:
        files = self.files() or [Path()]
        return chain.from_iterable(self._with_folders(self._records(path), in_folders.get(path)) for path in files)

    def _with_folders(
        self, records: Iterator[formats.SourceLine], in_folders: Mapping[str, object] | None
    ) -> Iterator[_Row]:
        """Add the columns that the names of a file's folders hold."""
        for record in records:
            try:
                row = self._parsed(record) if in_folders else record
            except formats.Reject:
                row = record
            yield (
                row._replace(cells={**(in_folders or {}), **row.cells}) if isinstance(row, formats.ParsedLine) else row
            )

    def _partitions(self, files: Sequence[Path]) -> dict[Path, dict[str, object]]:
        """Return the columns in the names of folders, by file."""
        if self.frame is not None or self.store is not None or self.hub is not None:
            return {}
        paths: str | list[str] = getattr(self, self._kind)
        return formats.partitions([paths] if isinstance(paths, str) else paths, files)

    def _laid_out(self, rows: Iterator[_Row], layout: layouts.Layout) -> Iterator[_Row]:
        """Pass rows through a layout; a row that cannot be parsed stays where it is."""
        broken: list[_Row] = []

        def parsed() -> Iterator[dict[str, object]]:
            for row in rows:
                try:
                    line = self._parsed(row)
                except formats.Reject:
                    broken.append(row)
                    continue
                yield line.cells

        for item in layout.rows(parsed()):
            yield from broken
            broken.clear()
            yield item if isinstance(item, layouts.Refused) else formats.ParsedLine(item, "invalid text")
        yield from broken

    def _parsed(self, row: _Row) -> formats.ParsedLine:
        """Return a row's values, or raise formats.Reject."""
        if isinstance(row, layouts.Refused):
            raise formats.Reject(row.reason)
        if isinstance(row, formats.ParsedLine):
            return row
        if not isinstance(row, bytes):
            return formats.csv_row(row)
        line = formats.json_row(row)
        return line._replace(cells=formats.with_inner_cells(line.cells, self._inner(line.cells)))

    def _csv_types(self, records: Iterator[formats.SourceLine]) -> dict[str, pa.DataType]:
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
        return formats.csv_types(records, self.types, texts, self._where)

    def _line_read(
        self,
        number: int,
        block: Sequence[_Row],
        schema: pa.Schema | None,
        known: Mapping[str, pa.Field | formats.ColumnType],
    ) -> _Read:
        start, reasons, rows = number * self.shard_rows, dict[int, str](), dict[int, formats.ParsedLine]()
        for position, line in enumerate(block, start):
            try:
                rows[position] = self._parsed(line)
            except formats.Reject as reject:
                reasons[position] = str(reject)
        fields = {field.name: field for field in schema or ()}
        types = {"row_id": pa.int64()}
        types.update((name, formats.plain(field.type, pa.string())) for name, field in fields.items())
        names = list(dict.fromkeys(chain.from_iterable(row.cells for row in rows.values())))
        first_row = next((row.cells for row in rows.values()), {})
        plan = self._plan(names, schema, first_row)
        prompt_field = known.get("prompt") if self.layout is not None else None
        kind = types.get("prompt") or (prompt_field.type if isinstance(prompt_field, pa.Field) else None)
        good = dict[int, dict[str, object]]()
        for position, row in rows.items():
            try:
                for output, column in plan.mapped.items() if row.doubt else ():
                    if formats.surrogate(row.cells.get(column)):
                        raise formats.Reject(f"{row.doubt} in {output}")
                good[position] = values = self._values(row.cells, plan, kind)
                # The first good row decides for the source whether prompts are text or messages.
                kind = kind or (pa.string() if isinstance(values["prompt"], str) else MESSAGES)
            except formats.Reject as reject:
                reasons[position] = str(reject)
        columns: dict[str, pa.Array] = {"row_id": pa.array(good, pa.int64())}
        for target in dict.fromkeys(chain.from_iterable(good.values())):
            cells = [values.get(target) for values in good.values()]
            columns[target] = pa.array(cells, kind if target == "prompt" else pa.string())
        nulled: dict[str, int] = {}
        for column_name, column in plan.sides.items() if good else ():
            cells = [rows[position].cells.get(column) for position in good]
            array, misfits = self._side(cells, types.get(column_name), known.get(column))
            if misfits:
                nulled[column_name] = misfits
            if array is not None:
                columns[column_name] = array
                field = known.get(column)
                if column_name not in fields and isinstance(field, pa.Field):
                    fields[column_name] = field
        if chats.DETAILS in columns and chats.DETAILS not in plan.sides:
            fields.setdefault(chats.DETAILS, pa.field(chats.DETAILS, pa.string(), metadata=_DETAILS_MEANING))
        types.update((name, array.type) for name, array in columns.items())

        def show(position: int) -> str:
            line = block[position - start]
            if isinstance(line, bytes):
                return formats.legible(line)
            if isinstance(line, formats.ParsedLine):
                return formats.json_text(line.cells)
            return formats.json_text(line.row if isinstance(line, layouts.Refused) else formats.csv_shown(line))

        out = pa.schema(
            [
                pa.field(name, kind, metadata=fields[name].metadata if name in fields else None)
                for name, kind in types.items()
            ]
        )
        notes = self._notes(names, first_row) if number == 0 else ()
        return _Read(number, _without(pa.table(columns), reasons), reasons, show, out, nulled, notes)

    def _side(
        self, cells: list[object], running: pa.DataType | None, known: pa.Field | formats.ColumnType | None
    ) -> tuple[pa.Array | None, int]:
        """Return the values of a column that no step reads, and how many of them fit no type and are NULL."""
        if isinstance(known, pa.Field):
            kind = running or formats.solid(known.type)
            if self.csv is not None:
                return formats.typed([formats.csv_value(cell, kind) for cell in cells], kind)
            try:
                return (None if kind is None else pa.array(cells, kind)), 0
            except (pa.ArrowException, ValueError, TypeError, OverflowError):
                return formats.typed(cells, kind)
        if known is None:
            return formats.typed(cells, running)
        text = running is not None and pa.types.is_string(running)
        if text or (running is None and known.spelling != "value"):
            spelling = known.spelling if known.spelling != "value" else "text"
            cells = [formats.spelled(cell, spelling) for cell in cells]
        return formats.typed(cells, running, known.kind)

    def _notes(self, names: Sequence[str], row: Mapping[str, object]) -> tuple[str, ...]:
        """Tell what a person should know who named no layout: what the source looks like, and what of a question is not read."""
        notes = list(self._dialect_notes())
        if self.layout is not None:
            taken = {*self.drop, *layouts.LAYOUTS[self.layout].takes}
            return (
                *notes,
                *self._unread_note([name for name in ("system", *_MEDIA) if name in names and name not in taken]),
            )
        mapped = {self.prompt, self.response, self.reference, self.messages, self.id, *self.rename}
        expressions = " ".join([*self.select.values(), self.where or ""])
        unread = [
            name
            for name in QUESTION_COLUMNS
            if name in names and name not in mapped and name not in self.drop and name not in expressions
        ]
        like = None if "prompt" in self.select else layouts.looks_like(dict(row))
        notes += self._unread_note(unread)
        if like is None and self.response == "chosen" and {"rejected", self.prompt} <= {*names} and not self.select:
            notes.append(
                f"{self._where}: rejected is not read; `layout: rewardbench, select: {{prompt: {self.prompt}}}` takes it for the "
                "worse answer"
            )
        if "prompt" not in self.select and (written := chats.written(row.get(self.prompt), self.prompt)) is not None:
            notes.append(f"{self._where}: {self.prompt} {written}")
        if like is not None and (unread or like not in ("messages", "sharegpt", "verl", "helpsteer")):
            notes.append(f"{self._where} looks like {like}; `layout: {like}` reads it as what it is")
        return tuple(notes)

    def _unread_note(self, unread: Sequence[str]) -> Iterator[str]:
        if unread:
            are = "are" if unread[1:] else "is"
            yield f"{self._where}: {' and '.join(unread)} may belong to the question, and {are} not read"

    def _dialect_notes(self) -> Iterator[str]:
        for path in self.files() if self.csv is not None or self.jsonl is not None else ():
            found = lines.dialect(path, self.encoding, self.delimiter, is_csv=self.csv is not None)
            if self.delimiter is None and found.delimiter != ",":
                yield f"{path}: its fields are divided by {found.delimiter!r}; `delimiter` overrules that"
            if self.encoding is None and found.encoding != "utf-8":
                yield f"{path} is read as {found.encoding}; `encoding` overrules that"

    def _hint(self, names: Collection[str], row: Mapping[str, object] | None = None) -> str:
        like = layouts.looks_like(dict(row) if row else dict.fromkeys(names))
        return f"; it looks like `layout: {like}`" if like is not None else ""


_LATER_FIELDS = ("types", "layout", "select", "where", "drop", "encoding", "delimiter", "unanswered")
"""Fields that are part of a fingerprint only where they are set: stores are older than they are."""
_COMPUTED_ROWS = 4096
"""Rows of a batch for which `select` and `where` are computed at once."""
_Row: TypeAlias = "formats.SourceLine | formats.ParsedLine | layouts.Refused"
_DETAILS_MEANING = {
    "meaning": "what turns hold beside role and text, as JSON: a list with an object or null for each turn"
}


def _json_object(values: Mapping[str, object]) -> dict[str, JsonValue]:
    return {name: value if isinstance(value, int) or value is None else str(value) for name, value in values.items()}


def _with_partitions(fields: pa.Schema, in_folders: Mapping[Path, Mapping[str, object]]) -> pa.Schema:
    """Add the columns in the names of folders to those of the files."""
    kinds: dict[str, pa.DataType] = {}
    for values in in_folders.values():
        for name, value in values.items():
            if value is not None or name not in kinds:
                kinds[name] = pa.int64() if isinstance(value, int) else pa.string()
    for name, kind in kinds.items():
        if name not in fields.names:
            fields = fields.append(pa.field(name, kind))
    return fields


def _field(name: str, column: pa.Field | formats.ColumnType | None) -> pa.Field:
    """Return a column as expressions read it: text where it has no value."""
    kind = column.type if isinstance(column, pa.Field) else None if column is None else column.kind
    return pa.field(name, formats.solid(kind) or pa.string())


def _first(block: pa.Table) -> dict[str, object]:
    """Return a table's first row; empty where it cannot be read."""
    try:
        return python_rows(block.slice(0, 1))[0]
    except (ValueError, pa.ArrowException, IndexError):
        return {}


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
    nulled: Mapping[str, int] = {}
    notes: tuple[str, ...] = ()


def _without(rows: pa.Table, reasons: Collection[int]) -> pa.Table:
    if not reasons:
        return rows
    accepted = [position not in reasons for position in rows["row_id"].to_pylist()]
    return rows.filter(pa.array(accepted, pa.bool_()))


def _check_type(kind: pa.DataType, target: str, column: str) -> None:
    """Refuse a column whose type no row of the mapped column could have."""
    item = kind.value_type if pa.types.is_list(kind) else None
    names = {field.name for field in item} if item is not None and pa.types.is_struct(item) else set()
    chat = any(names >= keys for keys in ({"role", "content"}, {"from", "value"}, {"role", "text"}))
    text = pa.types.is_string(kind) and target != "messages"
    is_number = pa.types.is_integer(kind) and target == "id"
    if target in ("response", "reference"):
        is_number = pa.types.is_integer(kind) or pa.types.is_floating(kind) or pa.types.is_boolean(kind)
    if not (chat and target != "id") and not text and not is_number and not pa.types.is_null(kind):
        raise SourceError(f"{column} is {kind}, which cannot be the {target}; map another column")
