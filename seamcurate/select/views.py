"""SQL over a store: DuckDB views in memory, straight over the shards, for reading only.

    rows        a source row: all columns, NULL where not yet computed
    candidates  a candidate response, with its reward, likelihood, misjudgement and weight
    corpus      a row of the retrieval corpus
    ledger      a source row and a split: kept or dropped, by which rule, deciding value, threshold
    rejected    a source row that was set aside, with its reason

One rule: a query is a single SELECT over these views and nothing else on the machine, for so many seconds.
"""

from __future__ import annotations

import os
import time
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence, Set
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING

import pyarrow as pa
from pydantic import JsonValue

from seamcurate.errors import QueryError
from seamcurate.select import frames
from seamcurate.select.connection import Answer, Connection, start
from seamcurate.storage import shard
from seamcurate.storage.objects import Place, local
from seamcurate.store.store import Store, filename, numbers, record_schema, sample_sets

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
"""How long a query may take where nobody says otherwise."""

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
    """Open a DuckDB in this process for statements of this package over tables it is given; it reads no file."""
    import duckdb

    config: dict[str, str | bool | int | float | list[str]] = {"enable_external_access": "false"}
    with duckdb.connect(config=config if threads is None else config | {"threads": threads}) as connection, stoppable():
        connection.execute("SET GLOBAL TimeZone = 'UTC'")
        yield connection


@contextmanager
def stoppable() -> Iterator[None]:
    """Let a Ctrl-C be one: DuckDB looks for it now and then itself, and calls it a RuntimeError."""
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
    """Open the views of a store in an engine of its own; every file is verified first.

    Args:
        store: The store.
        other: A second one, to compare with: its views are `other.rows`, `other.candidates` and so on.
        spill: A folder for what outgrows little memory: 40 MB, or 12 bytes a row; without one, DuckDB takes the memory
            it needs, and then a temporary folder, which goes with the connection.
        memory: The most that DuckDB's buffers may take before that, as DuckDB writes it: "2GB"; else most of what the
            machine has. What a query holds beside them, such as a long text, may be half as much and 500 MB.
        threads: The most threads it may take; with one, sums of fractions come out the same each time.
        ledgers: The splits that `ledger` holds; by default all of the store's.

    Raises:
        DamagedError: A shard is not the file that was written.
    """
    if spill:
        # A sort holds something of every run it merges: of ten million rows 40 MB are too little, 100 MB enough.
        memory = f"{max(40, 12 * len(store) // 10**6)}MB"
    with _opening(start(spill, memory, threads)) as engine:
        views, allowed = _views(store, "", ledgers)
        if other is not None:
            more, files = _views(other, "other.")
            views, allowed = ["CREATE SCHEMA other", *views, *more], allowed + files
        engine.prepare(views, allowed, _trusted(allowed))
        return engine


def opened(store: Store, folders: Sequence[str], memory: str | None = None) -> Connection:
    """Open one view, `rows`, with the columns of some folders alone: no other file is verified, or read; see `connect`.

    Raises:
        DamagedError: A shard is not the file that was written.
    """
    with _opening(start(memory=memory)) as engine:
        records = {folder: record for folder, record in store.records().items() if folder in folders}
        files = _verified_files(store, records, {"rows"})
        allowed = _names(files)
        engine.prepare([_rows_view("rows", store, records, files)], allowed, _trusted(allowed))
        return engine


@contextmanager
def _opening(engine: Connection) -> Iterator[Connection]:
    """End an engine whose views cannot be opened."""
    try:
        yield engine
    except BaseException:
        engine.close()
        raise


def _views(store: Store, schema: str, ledgers: Collection[str] | None = None) -> tuple[list[str], list[str]]:
    """Return what creates a store's views in a schema, and the files they may read."""
    corpus, records = store.corpus_store, store.records()
    files = _verified_files(store, records, ledgers=ledgers)
    made = [_rows_view(f"{schema}rows", store, records, files)]
    made += [_rejected_view(files, schema), _ledger_view(files, schema)]
    allowed = _names(files)
    if corpus:
        theirs = corpus.records()
        files = _verified_files(corpus, theirs)
        made.append(_rows_view(f"{schema}corpus", corpus, theirs, files))
        allowed += _names(files)
    else:
        made.append(_empty(f"{schema}corpus", store.schema))
    made.append(_candidates_view(store, records, schema))
    return made, allowed


def run(connection: Connection, sql: str, parameters: Mapping[str, JsonValue] | None = None) -> Answer:
    """Answer one SELECT as a stream of Arrow batches.

    Raises:
        QueryError: The text is not one SELECT over the views, or DuckDB cannot answer it.
    """
    return connection.ask(sql, parameters)


@contextmanager
def limited(connection: Connection, seconds: float, instead: str) -> Iterator[None]:
    """Stop what a connection is asked after so many seconds.

    Raises:
        QueryError: It took too long, which `instead` says what to do about, or DuckDB cannot answer.
    """
    connection.deadline, connection.late = time.monotonic() + seconds, f"stopped after {seconds:g} seconds; {instead}"
    try:
        yield
    finally:
        connection.deadline = None


def text(query: str) -> str:
    """Return a query's SQL: the text of a `.sql` file, or what was given.

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
    """Answer one SELECT over a store's views as a table; see `run`.

    Args:
        store: The store, or its folder.
        sql: The SELECT.
        seconds: Stop it after so long; by default after `SECONDS`.
        memory: See `connect`.

    Raises:
        StoreError: There is no store.
        QueryError: The text is not one SELECT over the views, or DuckDB cannot answer it.

    Example:
        query("my-store", "SELECT count(*) AS n FROM rows")
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


def _verified_files(
    store: Store,
    records: _Records,
    kinds: Set[str] = frozenset({"rows", "rejected", "splits"}),
    ledgers: Collection[str] | None = None,
) -> dict[str, list[Path]]:
    """Verify what a store has of these kinds of files and columns; returns them by folder.

    Views are made of these and of no later listing: while a run goes on, there may be more files by then.
    """
    jobs: dict[str, list[tuple[Place, str, int]]] = {}
    for kind, made in store.row_makers.items():
        if kind in kinds:
            there: Iterable[int] = numbers(store.path / kind)
            if kind == "rows" and isinstance(whole := store.about.get("shards"), int) and store.about.get("complete"):
                # One that is lost, or for which a link stands, is not passed over.
                there = range(whole)
            jobs[kind] = [(store.path / kind / filename(n), made, n) for n in there]
    for folder, record in records.items():
        path = store.path / "columns" / folder
        jobs[f"columns/{folder}"] = [(path / filename(n), str(record["fingerprint"]), n) for n in numbers(path)]
    splits = store.split_records() if "splits" in kinds else {}
    jobs["splits"] = [
        (store.path / "splits" / name / "ledger.parquet", str(record["fingerprint"]), 0)
        for name, record in splits.items()
        if ledgers is None or name in ledgers
    ]
    new = [job for some in jobs.values() for job in some if not shard.verified(*job)]
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        list(pool.map(lambda job: shard.verify(*job), new))
    return {folder: [local(file) for file, _, _ in some] for folder, some in jobs.items()}


def _trusted(files: Iterable[str]) -> bool:
    """Tell whether what Parquet files say of their columns may decide which rows are looked at."""
    return not any(shard.bounds_fractions(Path(file)) for file in files)


def _names(files: Mapping[str, Sequence[Path]]) -> list[str]:
    return [str(file) for some in files.values() for file in some]


def parquet(files: Iterable[str | Path], options: str = "") -> str:
    """Write the table function that reads Parquet files, and no column out of the folders' names such as `date=1`."""
    return f"read_parquet({sql_list(files)}, hive_partitioning = false{options})"


def sql_list(texts: Iterable[str | Path]) -> str:
    """Write texts as an SQL list of strings."""
    return "[" + ", ".join("'" + str(text).replace("'", "''") + "'" for text in texts) + "]"


def _rows_view(name: str, store: Store, records: _Records, there: Mapping[str, list[Path]]) -> str:
    """Write the view of a store's rows in the files that are there, with these columns."""
    shards = there.get("rows", [])
    if not shards:
        return _empty(name, store.schema)
    joins: list[str] = []
    stale = store.stale()
    stored = store.stored_schema.names
    select = ["r.*", *(f"NULL::VARCHAR AS {quoted(n)}" for n in store.schema.names if n not in stored)]
    for i, (folder, record) in enumerate(records.items()):
        if folder in stale:
            continue
        schema = record_schema(record)
        files = there.get(f"columns/{folder}", [])
        if not files:
            select += [f"NULL::{_sql_type(field.type)} AS {quoted(field.name)}" for field in schema]
            continue
        select += [f"c{i}.{quoted(field.name)}" for field in schema]
        source = f"{parquet(files)} AS c{i}"
        # A finished folder has the rows' shards, and each shard its rows in their order: no key needs to be compared.
        if [file.name for file in files] == [file.name for file in shards]:
            joins.insert(0, f"POSITIONAL JOIN {source}")
        else:
            joins.append(f"LEFT JOIN {source} ON c{i}.row_id = r.row_id")
    # Shards only ever gain columns. To unite names, DuckDB would hold the footer of every one of them.
    grown = not shard.metadata(shards[0]).schema.to_arrow_schema().equals(store.stored_schema)
    return (
        f"CREATE VIEW {name} AS SELECT {', '.join(select)} "
        f"FROM {parquet(shards, ', union_by_name = true' if grown else '')} AS r {' '.join(joins)}"
    )


def _rejected_view(there: Mapping[str, list[Path]], schema: str) -> str:
    shards = there.get("rejected", [])
    if shards:
        return f"CREATE VIEW {schema}rejected AS SELECT * FROM {parquet(shards)} AS f"
    return _empty(
        f"{schema}rejected", pa.schema([("row_id", pa.int64()), ("reason", pa.string()), ("row", pa.string())])
    )


def _ledger_view(there: Mapping[str, list[Path]], schema: str) -> str:
    ledgers = there.get("splits", [])
    if ledgers:
        return f"CREATE VIEW {schema}ledger AS SELECT * FROM {parquet(ledgers)} AS f"
    return _empty(f"{schema}ledger", LEDGER)


def _candidates_view(store: Store, records: _Records, schema: str) -> str:
    stale = store.stale()
    kinds = {
        field.name: field.type
        for folder, record in records.items()
        if folder not in stale
        for field in record_schema(record)
    }
    return f"CREATE VIEW {schema}candidates AS {candidates(kinds, f'{schema}rows', f'{schema}corpus')}"


def candidates(kinds: Mapping[str, pa.DataType], relation: str, corpus: str = "corpus") -> str:
    """Write the SELECT of a relation's candidates, given what its columns are and where its corpus is."""
    variants = sample_sets(kinds)
    if not variants:
        return f"SELECT {', '.join(f'NULL::{kind} AS {name}' for name, kind in CANDIDATES.items())} WHERE false"
    return " UNION ALL ".join(_variant_select(v, kinds, relation, corpus) for v in variants)


def _variant_select(variant: str, kinds: Mapping[str, pa.DataType], relation: str, corpus: str) -> str:
    """One row per element of the variant's lists; what is not there, or not computed, is NULL."""
    item = kinds[f"worse_{variant}"].value_type
    fields = {item.field(i).name for i in range(item.num_fields)}
    lists = {
        "reward": f"rewards_{variant}",
        "logprob": f"logprobs_{variant}",
        "n_tokens": f"tokens_{variant}",
        "misjudgement": f"misjudgements_{variant}",
        "weight": f"weights_{variant}",
    }

    there = [name for name in lists.values() if name in kinds and pa.types.is_list(kinds[name])]

    def from_set(field: str) -> str:
        return f"(r.x).{field}" if field in fields else "NULL"

    def from_list(column: str) -> str:
        return f"r.{quoted(lists[column])}[r.i]" if lists[column] in there else "NULL"

    values = {
        "row_id": "r.row_id",
        "variant": "'" + variant.replace("'", "''") + "'",
        "rank": "r.i",
        "response": from_set("response") if "response" in fields else "c.response",
        "similarity": from_set("similarity"),
        "source_row_id": from_set("source_row_id"),
        **{column: from_list(column) for column in lists},
    }
    select = ", ".join(f"({value})::{CANDIDATES[name]} AS {name}" for name, value in values.items())
    join = "" if "response" in fields else f"LEFT JOIN {corpus} AS c ON c.row_id = (r.x).source_row_id"
    worse = quoted(f"worse_{variant}")
    # No column but these: the source's own, and the corpus', may be called i and x too.
    named = ", ".join(["row_id", *map(quoted, there)])
    return (
        f"SELECT {select} FROM "
        f"(SELECT {named}, unnest(range(1, len({worse}) + 1)) AS i, unnest({worse}) AS x FROM {relation}) AS r {join}"
    )


def _empty(name: str, schema: pa.Schema) -> str:
    columns = ", ".join(f"NULL::{_sql_type(field.type)} AS {quoted(field.name)}" for field in schema)
    return f"CREATE VIEW {name} AS SELECT {columns or 'NULL::BIGINT AS row_id'} WHERE false"


@cache
def _sql_type(kind: pa.DataType) -> str:
    # DuckDB itself is asked for the rare ones alone: to import it takes longer than most queries.
    if kind in _SQL_TYPES:
        return _SQL_TYPES[kind]
    if pa.types.is_list(kind):
        return f"{_sql_type(kind.value_type)}[]"
    if pa.types.is_struct(kind):
        return f"STRUCT({', '.join(f'{quoted(field.name)} {_sql_type(field.type)}' for field in kind)})"
    with in_memory() as connection:
        empty = pa.table({"x": pa.array([], kind)})
        return str(connection.from_arrow(empty).types[0])
