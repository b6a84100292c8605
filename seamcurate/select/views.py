"""SQL over a store: DuckDB views in memory, straight over the shards, for reading only.

    rows        a source row: all columns, NULL where not yet computed
    candidates  a candidate response, with its reward, likelihood, misjudgement and weight
    corpus      a row of the retrieval corpus
    ledger      a source row and a split: kept or dropped, by which rule, deciding value, threshold
    rejected    a source row that could not be read, with the reason

One rule: a query is a single SELECT over these views and nothing else on the machine, for so many seconds.
"""

from __future__ import annotations

import time
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence, Set
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING

import pyarrow as pa
from pydantic import JsonValue

from seamcurate import threads as limits
from seamcurate.errors import QueryError
from seamcurate.sql import frames
from seamcurate.sql.connection import Connection, Opened, QueryResult, start
from seamcurate.step import SAMPLE_SETS
from seamcurate.storage import shard
from seamcurate.storage.objects import Place, local
from seamcurate.store.folder import filename, numbers, record_schema
from seamcurate.store.store import Store, sample_sets

if TYPE_CHECKING:
    import duckdb

VIEWS = frames.VIEW_NAMES

LEDGER = pa.schema(
    [
        ("row_id", pa.int64()),
        ("split", pa.string()),
        ("kept", pa.bool_()),
        ("rule", pa.string()),
        ("value", pa.float64()),
        ("threshold", pa.float64()),
    ]
)

SECONDS = 600.0
"""How long a query may take by default."""
_HANDED_OVER = 64
"""Shards that a thread is given to verify at once, at most."""

CANDIDATES = {
    "row_id": "BIGINT",
    "variant": "VARCHAR",
    "rank": "BIGINT",
    "response": "VARCHAR",
    "similarity": "FLOAT",
    "source_row_id": "BIGINT",
    "reward": "DOUBLE",
    "logprob": "DOUBLE",
    "n_tokens": "INTEGER",
    "misjudgement": "DOUBLE",
    "weight": "DOUBLE",
    "reason": "VARCHAR",
    "count": "INTEGER",
    "finish": "VARCHAR",
    "sampled_logprob": "DOUBLE",
}


_SQL_TYPES = {
    pa.string(): "VARCHAR",
    pa.bool_(): "BOOLEAN",
    pa.int32(): "INTEGER",
    pa.int64(): "BIGINT",
    pa.float32(): "FLOAT",
    pa.float64(): "DOUBLE",
}


@contextmanager
def in_memory(threads: int | None = None) -> Iterator[duckdb.DuckDBPyConnection]:
    """Open a DuckDB in this process, for statements of this package over Arrow tables; it cannot read files."""
    import duckdb

    config: dict[str, str | bool | int | float | list[str]] = {"enable_external_access": "false"}
    with duckdb.connect(config=config | {"threads": threads or limits.available()}) as connection, stoppable():
        connection.execute("SET GLOBAL TimeZone = 'UTC'")
        yield connection


@contextmanager
def stoppable() -> Iterator[None]:
    """Raise KeyboardInterrupt on a Ctrl-C, for which DuckDB raises a RuntimeError."""
    try:
        yield
    except RuntimeError as error:
        if str(error) != "Query interrupted":
            raise
        raise KeyboardInterrupt from error


def connect(
    store: Store,
    spill: Path | None = None,
    other: Store | None = None,
    memory: str | None = None,
    threads: int | None = None,
    ledgers: Collection[str] | None = None,
) -> Connection:
    """Open the views of a store in a new query process.

    A query opens the files that hold the columns it reads, and no others; each is verified first.

    Args:
        store: The store.
        other: A second store, to compare with: its views are `other.rows`, `other.candidates` and so on.
        spill: A folder for intermediate results; with one, DuckDB's buffers take only 40 MB, or 12 bytes a row. Without
            one, DuckDB takes the memory it needs, and then a temporary folder, which is removed with the connection.
        memory: The limit of DuckDB's buffers, in DuckDB's spelling: "2GB"; by default most of the machine's memory. In
            addition a query may hold other values, such as long texts, of half as much and 500 MB.
        threads: The most threads DuckDB may use; with one thread, sums of floats are the same each time.
        ledgers: The splits that `ledger` holds; by default all of the store's.

    Raises:
        DamagedError: The first or the last shard of the rows is not the file that was written; or, raised by a query, a
            shard that it reads.
    """
    if spill:
        # A merge sort holds a block of every run: for ten million rows 40 MB are too little, and 100 MB are enough.
        memory = f"{max(40, 12 * len(store) // 10**6)}MB"
    with _opening(start(spill, memory, threads)) as engine:
        stores = [_Stored(store, "", ledgers)]
        if other is not None:
            stores.append(_Stored(other, "other."))
        views = _Views(stores)
        engine.outline(*views.outline(), views.opened)
        return engine


def opened(store: Store, folders: Sequence[str], memory: str | None = None) -> Connection:
    """Open one view, `rows`, with the columns of these folders only; other files are neither verified nor read. See `connect`.

    Raises:
        DamagedError: A shard is not the file that was written.
    """
    with _opening(start(memory=memory)) as engine:
        relation = _Relation("rows", store)
        read = {"rows", *(f"columns/{folder}" for folder in folders if folder in relation.records)}
        relation.verify(read)
        allowed = [str(file) for files in relation.files.values() for file in files]
        select = _rows_select(relation, relation.files, read)
        engine.prepare([f"CREATE VIEW rows AS {select}"], allowed, _trusted(allowed))
        return engine


@contextmanager
def _opening(engine: Connection) -> Iterator[Connection]:
    """End a query process whose views cannot be opened."""
    try:
        yield engine
    except BaseException:
        engine.close()
        raise


class _Relation:
    """A view of a store's rows, or of its corpus's: which files hold its columns, and which of them are verified."""

    def __init__(self, name: str, store: Store) -> None:
        self.name, self.store, self.records = name, store, store.records()
        self.stale, self.schema, self.stored_schema = store.stale(), store.schema, store.stored_schema
        self.folders = {
            field.name: f"columns/{folder}"
            for folder, record in self.records.items()
            if folder not in self.stale
            for field in record_schema(record)
        }
        self.numbers = _row_numbers(store)
        self.files: dict[str, list[Path]] = {}
        """The verified files, by folder."""

    def outline(self) -> tuple[str, list[Path]]:
        """Return the SELECT of the view's columns over no rows, and the files it reads: two shards have every type."""
        ends = sorted({*self.numbers[:1], *self.numbers[-1:]})
        fingerprint = self.store.rows_fingerprint
        files = _verified({"rows": [(self.store.path / "rows" / filename(n), fingerprint, n) for n in ends]})
        return f"{_rows_select(self, files, None)} LIMIT 0", files["rows"]

    def needed(self, columns: Iterable[str] | None) -> set[str]:
        """Name the folders that hold these columns, one at least; every folder for None, or where a name is not known."""
        names = None if columns is None else set(columns)
        if names is None or not names <= {"row_id", *self.folders, *self.schema.names}:
            return {"rows", *self.folders.values()}
        folders = {self.folders.get(name, "rows") for name in names - {"row_id"}}
        # A finished folder has the rows' ids too; one that is not needs the rows to be joined to.
        if not any(self._finished(folder) for folder in folders):
            folders.add("rows")
        return folders

    def _finished(self, folder: str) -> bool:
        return folder == "rows" or numbers(self.store.path / folder) == [*self.numbers]

    def verify(self, folders: Iterable[str]) -> None:
        """Verify the files of these folders."""
        new = [folder for folder in folders if folder not in self.files]
        records = {name: record for name, record in self.records.items() if f"columns/{name}" in new}
        self.files |= _verified(_jobs(self.store, records, {"rows"} if "rows" in new else set()))


class _Stored:
    """The views of one store in a schema."""

    def __init__(self, store: Store, schema: str, ledgers: Collection[str] | None = None) -> None:
        self.store, self.schema, self.ledgers = store, schema, ledgers
        corpus = store.corpus_store
        self.relations = [_Relation(f"{schema}rows", store)]
        if corpus is not None:
            self.relations.append(_Relation(f"{schema}corpus", corpus))
        self.files: dict[str, list[Path]] = {}

    def verify(self, kind: str) -> None:
        """Verify the files of a view that is read whole: `rejected` or `ledger`."""
        folder = "splits" if kind == "ledger" else kind
        if folder not in self.files:
            self.files |= _verified(_jobs(self.store, {}, {folder}, self.ledgers))

    def rest(self) -> dict[str, str]:
        """Return the SELECT of each view that is none of rows, by the view's name, as far as their files are verified."""
        selects = {
            f"{self.schema}rejected": _rejected_select(self.files),
            f"{self.schema}ledger": _ledger_select(self.files),
        }
        if len(self.relations) == 1:
            selects[f"{self.schema}corpus"] = _empty(self.store.schema)
        return selects

    def candidates(self) -> str:
        """Return the SELECT of the view of candidates."""
        return _candidates_select(self.store, self.relations[0].records, self.schema)


class _Views:
    """The views of stores, opened as far as queries read them; a listing of files is taken once."""

    def __init__(self, stores: Sequence[_Stored]) -> None:
        self.stores = stores
        self._opened: set[tuple[str, str]] = set()
        """What is open: a view, and a folder of it."""

    def outline(self) -> tuple[list[str], list[str]]:
        """Return the statements that create a table without rows for each view, and the files that they read."""
        statements, allowed = [], []
        for stored in self.stores:
            statements += [f"CREATE SCHEMA {stored.schema.removesuffix('.')}"] if stored.schema else []
            for relation in stored.relations:
                select, files = relation.outline()
                statements.append(f"CREATE TABLE {relation.name} AS {select}")
                allowed += [str(file) for file in files]
            statements += [f"CREATE TABLE {name} AS {select} LIMIT 0" for name, select in stored.rest().items()]
            statements.append(f"CREATE VIEW {stored.schema}candidates AS {stored.candidates()}")
        return statements, allowed

    def opened(self, views: Sequence[str], columns: Mapping[str, Sequence[str]] | None) -> Opened | None:
        """Verify what a statement reads, and return all that is to be open then; None where it is open. See `Source`."""
        needed = {*self._opened}
        named = {name.lower() for name in views} | {*(columns or ())}
        for stored in self.stores:
            candidates = f"{stored.schema}candidates" in named
            for relation in stored.relations:
                if columns is None or relation.name in named or candidates:
                    read = None if columns is None else columns.get(relation.name, ())
                    needed |= {(relation.name, folder) for folder in relation.needed(read)}
            for name in stored.rest():
                if columns is None or name in named:
                    needed.add((name, ""))
            if columns is None or candidates:
                needed.add((f"{stored.schema}candidates", ""))
        if needed <= self._opened:
            return None
        statements: list[str] = []
        allowed: list[Path] = []
        for stored in self.stores:
            statements += [f"CREATE SCHEMA {stored.schema.removesuffix('.')}"] if stored.schema else []
            for relation in stored.relations:
                if folders := {folder for view, folder in needed if view == relation.name}:
                    relation.verify(folders)
                    statements.append(
                        f"CREATE VIEW {relation.name} AS {_rows_select(relation, relation.files, folders)}"
                    )
                    allowed += [file for folder in folders for file in relation.files.get(folder, ())]
            for name in [name for name in stored.rest() if (name, "") in needed]:
                kind = name.removeprefix(stored.schema)
                if kind != "corpus":
                    stored.verify(kind)
                statements.append(f"CREATE VIEW {name} AS {stored.rest()[name]}")
            if (f"{stored.schema}candidates", "") in needed:
                statements.append(f"CREATE VIEW {stored.schema}candidates AS {stored.candidates()}")
            allowed += [file for files in stored.files.values() for file in files]
        self._opened = needed
        names = [str(file) for file in allowed]
        return Opened(statements, names, _trusted(names))


def run(connection: Connection, sql: str, parameters: Mapping[str, JsonValue] | None = None) -> QueryResult:
    """Answer one SELECT as a stream of Arrow batches.

    Raises:
        QueryError: The text is not one SELECT over the views, or DuckDB cannot answer it.
    """
    return connection.ask(sql, parameters)


@contextmanager
def limited(connection: Connection, seconds: float, hint: str) -> Iterator[None]:
    """Stop the queries of a connection after so many seconds.

    Raises:
        QueryError: The time is over, and the message ends with `hint`; or DuckDB cannot answer.
    """
    connection.deadline, connection.late = time.monotonic() + seconds, f"stopped after {seconds:g} seconds; {hint}"
    try:
        yield
    finally:
        connection.deadline = None


def text(query: str) -> str:
    """Return a query's SQL: the text of a `.sql` file, or the query itself.

    Raises:
        QueryError: The file is not there.
    """
    if not query.strip().endswith(".sql"):
        return query
    try:
        return Path(query.strip()).read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise QueryError(f"{query} cannot be read; give a file with one SELECT, or the SELECT itself") from error


def query(store: Store | str | Path, sql: str, seconds: float | None = None, memory: str | None = None) -> pa.Table:
    """Answer one SELECT over a store's views as an Arrow table.

    The views are `rows`, `candidates`, `corpus`, `ledger` and `rejected`. Nothing else on the machine can be read, and
    nothing can be written. Every shard that the views read is verified first. As of any SQL, rows come in no certain
    order without ORDER BY.

    Args:
        store: The store, or its folder.
        sql: The SELECT, in DuckDB's dialect.
        seconds: The most seconds that the query may take; by default 600.
        memory: The most memory for DuckDB's buffers, such as "2GB"; by default most of the machine's memory.

    Returns:
        The answer; sums of whole numbers are int64 where they fit.

    Raises:
        StoreError: There is no store.
        DamagedError: A shard's content changed after it was written.
        QueryError: The text is not one SELECT over the views, DuckDB cannot answer it, or it takes too long.

    Example:
        >>> import tempfile
        >>> from pathlib import Path
        >>> from seamcurate import Recipe, Source, query, run_local
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     rows = Path(folder, "rows.jsonl")
        ...     _ = rows.write_text('{"prompt": "2 + 2?", "response": "4"}')
        ...     _ = run_local(Recipe(rows=Source(jsonl=str(rows))), Path(folder, "store"))
        ...     query(Path(folder, "store"), "SELECT row_id, prompt FROM rows").to_pylist()
        [{'row_id': 0, 'prompt': '2 + 2?'}]
    """
    opened = store if isinstance(store, Store) else Store(store)
    limit = SECONDS if seconds is None else seconds
    with (
        connect(opened.open(), memory=memory) as connection,
        limited(connection, limit, "ask for fewer rows or columns, or give more seconds"),
    ):
        return run(connection, sql).read_all()


def quoted(name: str) -> str:
    """Quote an identifier."""
    return '"' + name.replace('"', '""') + '"'


_Records = Mapping[str, Mapping[str, JsonValue]]


def _row_numbers(store: Store) -> Sequence[int]:
    """Return the numbers of the rows' shards. A complete store knows how many it has: a lost one, or a link in its place, is an error."""
    about = store.about
    count = about.get("shards")
    return range(count) if isinstance(count, int) and about.get("complete") else store.shards


def _jobs(
    store: Store, records: _Records, kinds: Set[str], ledgers: Collection[str] | None = None
) -> dict[str, list[tuple[Place, str, int]]]:
    """List a store's files of these kinds and columns by folder: file, fingerprint and number of the shard."""
    jobs: dict[str, list[tuple[Place, str, int]]] = {}
    for kind, fingerprint in store.row_fingerprints.items() if kinds else ():
        if kind in kinds:
            # Objects are listed in any case: by that it is known whether one has changed since it was copied.
            listed = numbers(store.path / kind)
            shard_numbers = _row_numbers(store) if kind == "rows" else listed
            jobs[kind] = [(store.path / kind / filename(n), fingerprint, n) for n in shard_numbers]
    for folder, record in records.items():
        path = store.path / "columns" / folder
        fingerprint = str(record["fingerprint"])
        jobs[f"columns/{folder}"] = [(path / filename(n), fingerprint, n) for n in store.shards_of(folder)]
    if "splits" in kinds:
        jobs["splits"] = [
            (store.path / "splits" / name / "ledger.parquet", str(record["fingerprint"]), 0)
            for name, record in store.split_records().items()
            if ledgers is None or name in ledgers
        ]
    return jobs


def _verified(jobs: Mapping[str, Sequence[tuple[Place, str, int]]]) -> dict[str, list[Path]]:
    """Verify files; return them by folder. The views read exactly these: a later listing could be longer, while a run adds some."""
    unverified = [job for folder_jobs in jobs.values() for job in folder_jobs if not shard.verified(*job)]
    # Hashing releases Python's lock: shards are verified as fast as all cores can. Handing one over costs as much as to
    # verify a small one, so that each thread gets some at a time.
    threads = limits.available()
    size = max(1, min(_HANDED_OVER, len(unverified) // (4 * threads)))
    parts = [unverified[start : start + size] for start in range(0, len(unverified), size)]
    with ThreadPoolExecutor(threads) as pool:
        list(pool.map(lambda part: [shard.verify(*job) for job in part], parts))
    # Absolute: the query process keeps the folder that it was started in, and a notebook may have gone to another.
    return {folder: [local(file).absolute() for file, _, _ in folder_jobs] for folder, folder_jobs in jobs.items()}


def _trusted(files: Iterable[str]) -> bool:
    """Tell whether the statistics in these Parquet files may decide which rows DuckDB reads; see `shard.bounds_fractions`."""
    return not any(shard.bounds_fractions(Path(file)) for file in files)


def parquet(files: Iterable[str | Path], options: str = "") -> str:
    """Write the table function that reads Parquet files; a folder's name such as `date=1` makes no column."""
    return f"read_parquet({sql_list(files)}, hive_partitioning = false{options})"


def sql_list(texts: Iterable[str | Path]) -> str:
    """Write texts as an SQL list of strings."""
    return "[" + ", ".join("'" + str(text).replace("'", "''") + "'" for text in texts) + "]"


def _rows_select(relation: _Relation, files: Mapping[str, list[Path]], folders: Set[str] | None) -> str:
    """Write the SELECT of a view of rows over verified files.

    Args:
        relation: The view.
        files: The verified files, by folder.
        folders: The folders that are read; a column of another one is an error where a query reads it all the same. None
            reads the rows' own shards alone, and has NULL for columns that steps added.
    """
    schema, stored = relation.schema, relation.stored_schema
    if not relation.numbers:
        return _empty(schema)
    read = {"rows"} if folders is None else folders
    names = [filename(number) for number in relation.numbers]
    complete = [folder for folder in sorted(read) if [file.name for file in files.get(folder, [])] == names]
    base = "rows" if "rows" in read else complete[0]
    select = ["r.*"] if base == "rows" else ["r.row_id", *(_unread(f) for f in stored if f.name != "row_id")]
    select += [f"NULL::VARCHAR AS {quoted(n)}" for n in schema.names if n not in stored.names]
    joins: list[str] = []
    for i, (name, record) in enumerate(relation.records.items()):
        folder = f"columns/{name}"
        if name in relation.stale:
            continue
        added = record_schema(record)
        if folders is not None and folder not in folders:
            select += map(_unread, added)
            continue
        column_files = files.get(folder, [])
        if not column_files:
            select += [f"NULL::{_sql_type(field.type)} AS {quoted(field.name)}" for field in added]
            continue
        alias = "r" if folder == base else f"c{i}"
        select += [f"{alias}.{quoted(field.name)}" for field in added]
        if folder == base:
            continue
        source = f"{parquet(column_files)} AS {alias}"
        # A finished folder has as many shards as the rows, with the rows in the same order: no key needs comparing.
        if folder in complete:
            # Before the joins by key, which may change the order of rows.
            joins.insert(0, f"POSITIONAL JOIN {source}")
        else:
            joins.append(f"LEFT JOIN {source} ON {alias}.row_id = r.row_id")
    shards, options = files[base], ""
    # Shards only ever gain columns. union_by_name is left out where it can be: with it DuckDB holds every shard's footer.
    if base == "rows" and not shard.metadata(shards[0]).schema.to_arrow_schema().equals(stored):
        options = ", union_by_name = true"
    return f"SELECT {', '.join(select)} FROM {parquet(shards, options)} AS r {' '.join(joins)}"


def _unread(field: pa.Field) -> str:
    """Write a column that a query was found not to read: were that wrong, the query must fail, not find NULL."""
    return f"error('a query reads a column that was not opened')::{_sql_type(field.type)} AS {quoted(field.name)}"


def _rejected_select(files: Mapping[str, list[Path]]) -> str:
    shards = files.get("rejected", [])
    if shards:
        return f"SELECT * FROM {parquet(shards)} AS f"
    return _empty(pa.schema([("row_id", pa.int64()), ("reason", pa.string()), ("row", pa.string())]))


def _ledger_select(files: Mapping[str, list[Path]]) -> str:
    ledgers = files.get("splits", [])
    return f"SELECT * FROM {parquet(ledgers)} AS f" if ledgers else _empty(LEDGER)


def _candidates_select(store: Store, records: _Records, schema: str) -> str:
    stale = store.stale()
    own_sets = {f"worse_{kind.name}" for kind in SAMPLE_SETS}
    kinds = {field.name: field.type for field in store.schema if field.name in own_sets and _is_set(field.type)}
    kinds |= {
        field.name: field.type
        for folder, record in records.items()
        if folder not in stale
        for field in record_schema(record)
    }
    return candidates(kinds, f"{schema}rows", f"{schema}corpus")


def _is_set(kind: pa.DataType) -> bool:
    """Tell whether a source's column can be a sample set: a list of answers with their texts."""
    item = kind.value_type if pa.types.is_list(kind) else None
    return item is not None and pa.types.is_struct(item) and "response" in {field.name for field in item}


def candidates(kinds: Mapping[str, pa.DataType], relation: str, corpus: str = "corpus") -> str:
    """Write the SELECT of a relation's candidates, given the types of its columns and the name of its corpus."""
    variants = sample_sets(kinds)
    if not variants:
        return f"SELECT {', '.join(f'NULL::{kind} AS {name}' for name, kind in CANDIDATES.items())} WHERE false"
    return " UNION ALL ".join(_variant_select(v, kinds, relation, corpus) for v in variants)


def _variant_select(variant: str, kinds: Mapping[str, pa.DataType], relation: str, corpus: str) -> str:
    """Write the SELECT of one variant: a row per element of its lists, with NULL for what is not computed."""
    item = kinds[f"worse_{variant}"].value_type
    fields = {item.field(i).name for i in range(item.num_fields)}
    lists = {
        "reward": f"rewards_{variant}",
        "logprob": f"logprobs_{variant}",
        "n_tokens": f"tokens_{variant}",
        "misjudgement": f"misjudgements_{variant}",
        "weight": f"weights_{variant}",
        "reason": f"rewards_reason_{variant}",
        "sampled_logprob": f"sampled_logprobs_{variant}",
    }

    computed = [name for name in lists.values() if name in kinds and pa.types.is_list(kinds[name])]

    def from_set(field: str) -> str:
        return f"(r.x).{field}" if field in fields else "NULL"

    def from_list(column: str) -> str:
        return f"r.{quoted(lists[column])}[r.i]" if lists[column] in computed else "NULL"

    values = {
        "row_id": "r.row_id",
        "variant": "'" + variant.replace("'", "''") + "'",
        "rank": "r.i",
        "response": from_set("response") if "response" in fields else "c.response",
        "similarity": from_set("similarity"),
        "source_row_id": from_set("source_row_id"),
        **{column: from_list(column) for column in lists},
        # An answer that was made or found is one.
        "count": from_set("count") if "count" in fields else "1",
        "finish": from_set("finish"),
    }
    if lists["n_tokens"] not in computed:
        values["n_tokens"] = from_set("tokens")
    select = ", ".join(f"({values[name]})::{kind} AS {name}" for name, kind in CANDIDATES.items())
    join = "" if "response" in fields else f"LEFT JOIN {corpus} AS c ON c.row_id = (r.x).source_row_id"
    worse = quoted(f"worse_{variant}")
    # Only these columns are selected: others, of the source, may be called i and x, too.
    columns = ", ".join(["row_id", *map(quoted, computed)])
    return (
        f"SELECT {select} FROM "
        f"(SELECT {columns}, unnest(range(1, len({worse}) + 1)) AS i, unnest({worse}) AS x FROM {relation}) AS r {join}"
    )


def _empty(schema: pa.Schema) -> str:
    columns = ", ".join(f"NULL::{_sql_type(field.type)} AS {quoted(field.name)}" for field in schema)
    return f"SELECT {columns or 'NULL::BIGINT AS row_id'} WHERE false"


@cache
def _sql_type(kind: pa.DataType) -> str:
    # Only rare types are looked up in DuckDB: importing it takes longer than most queries.
    if kind in _SQL_TYPES:
        return _SQL_TYPES[kind]
    if pa.types.is_list(kind):
        return f"{_sql_type(kind.value_type)}[]"
    if pa.types.is_struct(kind):
        return f"STRUCT({', '.join(f'{quoted(field.name)} {_sql_type(field.type)}' for field in kind)})"
    with in_memory() as connection:
        no_rows = pa.table({"x": pa.array([], kind)})
        return str(connection.from_arrow(no_rows).types[0])
