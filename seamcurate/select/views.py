"""SQL over a store: DuckDB views in memory, straight over the shards, for reading only.

    rows        a source row: all columns, NULL where not yet computed
    candidates  a candidate response, with its reward, likelihood, misjudgement and weight
    corpus      a row of the retrieval corpus
    ledger      a source row and a split: kept or dropped, by which rule, deciding value, threshold
    rejected    a source row that could not be read, with the reason

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
from seamcurate.sql import frames
from seamcurate.sql.connection import Connection, QueryResult, start
from seamcurate.step import SAMPLE_SETS
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
"""How long a query may take by default."""

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
    with duckdb.connect(config=config if threads is None else config | {"threads": threads}) as connection, stoppable():
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
    """Open the views of a store in a new query process; every file is verified first.

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
        DamagedError: A shard is not the file that was written.
    """
    if spill:
        # A merge sort holds a block of every run: for ten million rows 40 MB are too little, and 100 MB are enough.
        memory = f"{max(40, 12 * len(store) // 10**6)}MB"
    with _opening(start(spill, memory, threads)) as engine:
        views, allowed = _views(store, "", ledgers)
        if other is not None:
            other_views, files = _views(other, "other.")
            views, allowed = ["CREATE SCHEMA other", *views, *other_views], allowed + files
        engine.prepare(views, allowed, _trusted(allowed))
        return engine


def opened(store: Store, folders: Sequence[str], memory: str | None = None) -> Connection:
    """Open one view, `rows`, with the columns of these folders only; other files are neither verified nor read. See `connect`.

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
    """End a query process whose views cannot be opened."""
    try:
        yield engine
    except BaseException:
        engine.close()
        raise


def _views(store: Store, schema: str, ledgers: Collection[str] | None = None) -> tuple[list[str], list[str]]:
    """Return the statements that create a store's views in a schema, and the files that the views may read."""
    corpus, records = store.corpus_store, store.records()
    files = _verified_files(store, records, ledgers=ledgers)
    statements = [_rows_view(f"{schema}rows", store, records, files)]
    statements += [_rejected_view(files, schema), _ledger_view(files, schema)]
    allowed = _names(files)
    if corpus:
        corpus_records = corpus.records()
        files = _verified_files(corpus, corpus_records)
        statements.append(_rows_view(f"{schema}corpus", corpus, corpus_records, files))
        allowed += _names(files)
    else:
        statements.append(_empty(f"{schema}corpus", store.schema))
    statements.append(_candidates_view(store, records, schema))
    return statements, allowed


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
    nothing can be written. Every shard that the views read is verified first.

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


def _verified_files(
    store: Store,
    records: _Records,
    kinds: Set[str] = frozenset({"rows", "rejected", "splits"}),
    ledgers: Collection[str] | None = None,
) -> dict[str, list[Path]]:
    """Verify a store's files of these kinds and columns; return them by folder.

    The views read exactly these files. A later listing could be longer, while a run adds files.
    """
    jobs: dict[str, list[tuple[Place, str, int]]] = {}  # for each folder: file, fingerprint, number of the shard
    for kind, fingerprint in store.row_fingerprints.items():
        if kind in kinds:
            shard_numbers: Iterable[int] = numbers(store.path / kind)
            if kind == "rows" and isinstance(count := store.about.get("shards"), int) and store.about.get("complete"):
                # A complete store knows how many shards it has: a lost one, or a link in its place, is an error.
                shard_numbers = range(count)
            jobs[kind] = [(store.path / kind / filename(n), fingerprint, n) for n in shard_numbers]
    for folder, record in records.items():
        path = store.path / "columns" / folder
        jobs[f"columns/{folder}"] = [(path / filename(n), str(record["fingerprint"]), n) for n in numbers(path)]
    splits = store.split_records() if "splits" in kinds else {}
    jobs["splits"] = [
        (store.path / "splits" / name / "ledger.parquet", str(record["fingerprint"]), 0)
        for name, record in splits.items()
        if ledgers is None or name in ledgers
    ]
    unverified = [job for folder_jobs in jobs.values() for job in folder_jobs if not shard.verified(*job)]
    # Hashing releases Python's lock: shards are verified as fast as all cores can.
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        list(pool.map(lambda job: shard.verify(*job), unverified))
    return {folder: [local(file) for file, _, _ in folder_jobs] for folder, folder_jobs in jobs.items()}


def _trusted(files: Iterable[str]) -> bool:
    """Tell whether the statistics in these Parquet files may decide which rows DuckDB reads; see `shard.bounds_fractions`."""
    return not any(shard.bounds_fractions(Path(file)) for file in files)


def _names(files: Mapping[str, Sequence[Path]]) -> list[str]:
    return [str(file) for folder_files in files.values() for file in folder_files]


def parquet(files: Iterable[str | Path], options: str = "") -> str:
    """Write the table function that reads Parquet files; a folder's name such as `date=1` makes no column."""
    return f"read_parquet({sql_list(files)}, hive_partitioning = false{options})"


def sql_list(texts: Iterable[str | Path]) -> str:
    """Write texts as an SQL list of strings."""
    return "[" + ", ".join("'" + str(text).replace("'", "''") + "'" for text in texts) + "]"


def _rows_view(name: str, store: Store, records: _Records, files: Mapping[str, list[Path]]) -> str:
    """Write the view of a store's rows and the columns of these records, over these files of each folder."""
    shards = files.get("rows", [])
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
        column_files = files.get(f"columns/{folder}", [])
        if not column_files:
            select += [f"NULL::{_sql_type(field.type)} AS {quoted(field.name)}" for field in schema]
            continue
        select += [f"c{i}.{quoted(field.name)}" for field in schema]
        source = f"{parquet(column_files)} AS c{i}"
        # A finished folder has as many shards as the rows, with the rows in the same order: no key needs comparing.
        if [file.name for file in column_files] == [file.name for file in shards]:
            # Before the joins by key, which may change the order of rows.
            joins.insert(0, f"POSITIONAL JOIN {source}")
        else:
            joins.append(f"LEFT JOIN {source} ON c{i}.row_id = r.row_id")
    # Shards only ever gain columns. union_by_name is left out where it can be: with it DuckDB holds every shard's footer.
    grown = not shard.metadata(shards[0]).schema.to_arrow_schema().equals(store.stored_schema)
    return (
        f"CREATE VIEW {name} AS SELECT {', '.join(select)} "
        f"FROM {parquet(shards, ', union_by_name = true' if grown else '')} AS r {' '.join(joins)}"
    )


def _rejected_view(files: Mapping[str, list[Path]], schema: str) -> str:
    shards = files.get("rejected", [])
    if shards:
        return f"CREATE VIEW {schema}rejected AS SELECT * FROM {parquet(shards)} AS f"
    return _empty(
        f"{schema}rejected", pa.schema([("row_id", pa.int64()), ("reason", pa.string()), ("row", pa.string())])
    )


def _ledger_view(files: Mapping[str, list[Path]], schema: str) -> str:
    ledgers = files.get("splits", [])
    if ledgers:
        return f"CREATE VIEW {schema}ledger AS SELECT * FROM {parquet(ledgers)} AS f"
    return _empty(f"{schema}ledger", LEDGER)


def _candidates_view(store: Store, records: _Records, schema: str) -> str:
    stale = store.stale()
    own_sets = {f"worse_{kind.name}" for kind in SAMPLE_SETS}
    kinds = {field.name: field.type for field in store.schema if field.name in own_sets and _is_set(field.type)}
    kinds |= {
        field.name: field.type
        for folder, record in records.items()
        if folder not in stale
        for field in record_schema(record)
    }
    return f"CREATE VIEW {schema}candidates AS {candidates(kinds, f'{schema}rows', f'{schema}corpus')}"


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


def _empty(name: str, schema: pa.Schema) -> str:
    columns = ", ".join(f"NULL::{_sql_type(field.type)} AS {quoted(field.name)}" for field in schema)
    return f"CREATE VIEW {name} AS SELECT {columns or 'NULL::BIGINT AS row_id'} WHERE false"


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
