"""SQL over a store: DuckDB views in memory, straight over the shards, for reading only.

    rows        a source row: all columns, NULL where not yet computed
    candidates  a candidate response, with its reward, likelihood, misjudgement and weight
    corpus      a row of the retrieval corpus
    ledger      a source row and a split: kept or dropped, by which rule, deciding value, threshold
    rejected    a source row that was set aside, with its reason

One rule: a query is a single SELECT over these views and nothing else on the machine, for so many seconds.
"""

from __future__ import annotations

import json
import os
import re
import select
import shutil
import signal
import socket
import threading
import time
import weakref
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence, Set
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from difflib import get_close_matches
from functools import cache
from pathlib import Path

import duckdb
import pyarrow as pa
from pydantic import JsonValue

from seamcurate import scratch, shard
from seamcurate.errors import QueryError
from seamcurate.objects import Place, local
from seamcurate.store import Store, filename, numbers, record_schema, sample_sets
from seamcurate.tables import brief

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

_ONE = "the SQL must be exactly one SELECT statement: a store is only read"
SECONDS = 600.0
"""How long a query may take where nobody says otherwise."""

VIEWS = ("rows", "candidates", "corpus", "ledger", "rejected")
_TABLE_FUNCTIONS = {"generate_series", "json_each", "json_tree", "range", "repeat", "repeat_row", "unnest"}
"""What may stand behind FROM beside the views: what reads neither files nor DuckDB's own state."""
_TELLING = {"current_setting", "getenv", "json_serialize_plan", "pg_get_viewdef", "write_log"}
"""Functions that tell of paths, settings or the environment, or write to a log."""
_READING = {"SELECT_NODE", "SET_OPERATION_NODE", "RECURSIVE_CTE_NODE", "CTE_NODE"}
"""Kinds of queries that read. DuckDB 2 takes DELETE, INSERT, UPDATE and COPY … TO as the body of a WITH too."""
_LISTINGS = {"tables", "databases", "__show_tables_expanded"}
_SYSTEM = ("duckdb_", "pg_", "pragma_", "sqlite_")

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
_LONGEST_MESSAGE = 500
_ABSENT = re.compile(r'(?:Referenced (?:column|table)|column named|Column) "(.*?)"(?: not found| does not exist|$)')
"""DuckDB's words for a name that is not there."""
_UNITS = ("bytes", "KiB", "MiB", "GiB", "TiB", "PiB")
_THREAD = 2**30
"""Memory for each thread. To merge a sort, every thread holds 122,880 rows whole (DuckDB 2.0), and half as much again;
1 to 4 GB a thread are what DuckDB's guide asks for."""


@contextmanager
def stoppable() -> Iterator[None]:
    """Let a Ctrl-C be one: DuckDB looks for it now and then itself, and calls it a RuntimeError."""
    try:
        yield
    except RuntimeError as error:
        if str(error) != "Query interrupted":
            raise
        raise KeyboardInterrupt from error


@stoppable()
def connect(
    store: Store,
    spill: Path | None = None,
    other: Store | None = None,
    memory: str | None = None,
    ledgers: Collection[str] | None = None,
) -> duckdb.DuckDBPyConnection:
    """Open the views of a store in a locked in-memory DuckDB; every file is verified first.

    Args:
        store: The store.
        other: A second one, to compare with: its views are `other.rows`, `other.candidates` and so on.
        spill: A folder for what outgrows little memory: 40 MB, or 12 bytes a row; without one, DuckDB takes the memory
            it needs, and then a temporary folder, which goes with the connection.
        memory: The most it may take before that, as DuckDB writes it: "2GB"; else most of what the machine has. A sort
            holds some 200,000 rows at a time: fewer than that many times a row's bytes do not sort what is larger.
        ledgers: The splits that `ledger` holds; by default all of the store's.

    Raises:
        DamagedError: A shard is not the file that was written.
    """
    # A sort holds something of every run it merges: of ten million rows 40 MB are too little, 100 MB enough.
    connection = _bounded(f"{max(40, 12 * len(store) // 10**6)}MB", spill) if spill else _bounded(memory)
    views, allowed = _views(store, "", ledgers)
    if other is not None:
        connection.execute("CREATE SCHEMA other")
        more, files = _views(other, "other.")
        views, allowed = views + more, allowed + files
    _lock(connection, views, allowed)
    return connection


@stoppable()
def opened(store: Store, folders: Sequence[str], memory: str | None = None) -> duckdb.DuckDBPyConnection:
    """Open one view, `rows`, with the columns of some folders alone: no other file is verified, or read; see `connect`.

    Raises:
        DamagedError: A shard is not the file that was written.
    """
    connection = _bounded(memory)
    records = {folder: record for folder, record in store.records().items() if folder in folders}
    files = _verified_files(store, records, {"rows"})
    _lock(connection, [_rows_view("rows", store, records, files)], _names(files))
    return connection


def _bounded(memory: str | None, spill: Path | None = None) -> duckdb.DuckDBPyConnection:
    """Open an in-memory DuckDB that spills into a folder, by default a temporary one, which goes with it."""
    made = None
    if spill is None:
        # Else DuckDB would spill into `.tmp` of the working folder.
        made = scratch.make()
        spill = made.path
    # Half of what is free: a query must not fill the disk on which a run writes. DuckDB takes 0 for no limit.
    room = shutil.disk_usage(spill if spill.is_dir() else spill.parent).free // 2
    config: dict[str, str | bool | int | float | list[str]] = {
        "temp_directory": str(spill),
        "max_temp_directory_size": f"{max(1, room // 10**6)}MB",
    }
    connection = duckdb.connect(config=config if memory is None else config | {"memory_limit": memory})
    if made is not None:
        weakref.finalize(connection, made.remove)
    ((limit, threads),) = connection.execute(
        "SELECT current_setting('memory_limit'), current_setting('threads')"
    ).fetchall()
    number, unit = str(limit).split()
    fitting = int(float(number) * 1024 ** _UNITS.index(unit) / _THREAD)
    connection.execute(f"SET threads = {max(1, min(int(threads), fitting))}")
    return connection


def _lock(connection: duckdb.DuckDBPyConnection, views: Iterable[str], allowed: Sequence[str]) -> None:
    """Create views, and leave them nothing on this machine to read but the allowed files."""
    connection.execute("SET allowed_paths = $1", [allowed])
    # Whatever was read would be kept, up to most of the memory there is.
    connection.execute("SET enable_external_file_cache = false")
    # Where Python has no script, as in `python -c` and notebooks, DuckDB draws a bar on standard output.
    connection.execute("SET enable_progress_bar = false")
    connection.execute("SET enable_external_access = false")
    for view in views:
        connection.execute(view)
    connection.execute("SET lock_configuration = true")


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


def run(
    connection: duckdb.DuckDBPyConnection, sql: str, parameters: Mapping[str, JsonValue] | None = None
) -> pa.RecordBatchReader:
    """Answer one SELECT as a stream of Arrow batches.

    Raises:
        QueryError: The text is not one SELECT over the views, or DuckDB cannot answer it.
    """
    read = check(connection, sql)
    try:
        return connection.sql(sql, params=dict(parameters or {})).to_arrow_reader(8_192)
    except duckdb.Error as error:
        raise QueryError(explain(connection, str(error), read)) from error


def check(connection: duckdb.DuckDBPyConnection, sql: str) -> list[str]:
    """Refuse what is not one SELECT over the views, as DuckDB itself parses it; return the views it reads. Nothing is run.

    The connection's locks keep other files from being read, but DuckDB writes to files it may read, and its own tables
    tell of every path and setting.

    Raises:
        QueryError: It is another statement, several, or reads something else.
    """
    try:
        # A half letter, as a terminal of another encoding gives it, DuckDB takes for no text.
        sql.encode()
        statements = duckdb.extract_statements(sql)
        if len(statements) != 1 or statements[0].type != duckdb.StatementType.SELECT:
            raise QueryError(_ONE)
        ((parsed,),) = connection.execute("SELECT json_serialize_sql($sql::VARCHAR)", {"sql": sql}).fetchall()
        tree = json.loads(parsed)
        listed = connection.execute(
            "SELECT schema_name, view_name FROM duckdb_views() WHERE NOT internal "
            "UNION ALL SELECT schema_name, table_name FROM duckdb_tables() WHERE NOT internal"
        ).fetchall()
    except duckdb.Error as error:
        raise QueryError(explain(connection, str(error))) from error
    except UnicodeEncodeError as error:
        raise QueryError("the SQL is no UTF-8 text") from error
    # A statement of a kind that DuckDB's Python does not know, and one nested too deeply.
    except (ValueError, RecursionError) as error:
        raise QueryError(_ONE) from error
    if tree["error"]:
        raise QueryError(_ONE)
    known = {(str(schema), str(name).lower()) for schema, name in listed}
    more = sorted(_full(str(schema), str(name)) for schema, name in listed)
    there = [*VIEWS, *(name for name in more if name not in VIEWS)]
    nodes = list(_nodes(tree))
    known |= {("main", name) for node in nodes for name in _named(node)}
    for node in nodes:
        kind = str(node.get("type"))
        if kind.endswith("_NODE") and kind not in _READING:
            raise QueryError(_ONE)
        if (what := _foreign(node, known)) is not None:
            near = get_close_matches(what.lower(), there, 1)
            meant = f"did you mean {near[0]}? " if near and kind == "BASE_TABLE" else ""
            raise QueryError(f"a query reads the views alone, not {what[:80]!r}; {meant}views: {', '.join(there)}")
    read = {_full(str(n.get("schema_name") or "main"), str(n.get("table_name"))).lower() for n in nodes}
    return [name for name in there if name.lower() in read]


def _full(schema: str, name: str) -> str:
    return name if schema == "main" else f"{schema}.{name}"


def _nodes(tree: object) -> Iterator[dict[str, object]]:
    left = [tree]
    while left:
        one = left.pop()
        if isinstance(one, dict):
            yield one
            left += one.values()
        elif isinstance(one, list):
            left += one


def _named(node: Mapping[str, object]) -> Iterator[str]:
    """Yield the names that WITH gives in a part of a query, but those that DuckDB's own tables have."""
    named = node.get("cte_map")
    entries = named.get("map") if isinstance(named, dict) else None
    for entry in entries if isinstance(entries, list) else []:
        name = str(entry["key"]).lower()
        if not name.startswith(_SYSTEM):
            yield name


def _foreign(node: Mapping[str, object], known: set[tuple[str, str]]) -> str | None:
    """Return what a part of a query reads beside the views, if so."""
    kind = node.get("type")
    if kind == "BASE_TABLE":
        name, schema = str(node["table_name"]), str(node.get("schema_name") or "main")
        if (schema.lower(), name.lower()) not in known:
            return _full(schema, name)
    elif kind == "SHOW_REF":
        listing = str(node.get("table_name") or "").strip('"')
        if node.get("query") is None and listing not in _LISTINGS:
            return listing or "SHOW"
    elif kind == "TABLE_FUNCTION":
        function = node.get("function")
        name = str(function.get("function_name")) if isinstance(function, dict) else ""
        if name.lower() not in _TABLE_FUNCTIONS:
            return name
    elif str(node.get("function_name", "")).lower() in _TELLING:
        return str(node["function_name"])
    return None


@contextmanager
def limited(connection: duckdb.DuckDBPyConnection, seconds: float, instead: str) -> Iterator[None]:
    """Interrupt what a connection is asked after so many seconds; what DuckDB says becomes one line.

    Raises:
        QueryError: It took too long, which `instead` says what to do about, or DuckDB cannot answer.
    """
    ended, late, by_hand = threading.Event(), threading.Event(), threading.Event()
    heard, spoken = socket.socketpair()
    spoken.setblocking(False)
    # While DuckDB works, Python does not see a Ctrl-C; its lowest handler writes a byte all the same.
    main = threading.current_thread() is threading.main_thread()
    before = signal.set_wakeup_fd(spoken.fileno(), warn_on_full_buffer=False) if main else -1

    def stop() -> None:
        end = time.monotonic() + seconds
        while select.select([heard], [], [], max(0.0, end - time.monotonic()))[0]:
            # The numbers of signals; nothing once the query is done.
            if not (said := heard.recv(64)):
                return
            if signal.SIGINT in said:
                by_hand.set()
                break
        else:
            late.set()
        # Again and again, since an interrupt that comes between two queries is lost.
        while not ended.wait(0.05):
            connection.interrupt()

    watching = threading.Thread(target=stop, daemon=True)
    try:
        # Within, as a Ctrl-C right after the start would leave it to wait for its time.
        watching.start()
        yield
    except (QueryError, duckdb.Error, pa.ArrowException, RuntimeError, OSError) as error:
        # See `stoppable`.
        if by_hand.is_set() or str(error) == "Query interrupted":
            raise KeyboardInterrupt from error
        if late.is_set():
            raise QueryError(f"stopped after {seconds:g} seconds; {instead}") from error
        # What DuckDB says while its answer is read comes as an OSError without a number.
        if isinstance(error, QueryError | RuntimeError) or (isinstance(error, OSError) and error.errno is not None):
            raise
        raise QueryError(explain(connection, str(error))) from error
    finally:
        ended.set()
        if main:
            signal.set_wakeup_fd(before)
        spoken.close()
        if watching.ident is not None:
            watching.join()
        heard.close()


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


def query(store: Store, sql: str) -> pa.Table:
    """Answer one SELECT over a store's views as a table, within `SECONDS`; see `run`."""
    with connect(store.open()) as connection, limited(connection, SECONDS, "ask for fewer rows or columns"):
        return run(connection, sql).read_all()


def explain(connection: duckdb.DuckDBPyConnection, message: str, read: Sequence[str] = ()) -> str:
    """Cut DuckDB's message to what is wrong, and list what the views that are read have when a name is not there."""
    lines = [line.strip() for line in message.splitlines() if line.strip() and not line.startswith("LINE")]
    # A value that could not be converted is quoted whole, whatever is in it.
    short = brief(lines[0] if lines else message, _LONGEST_MESSAGE)
    hints = [brief(line, _LONGEST_MESSAGE) for line in lines[1:] if "Did you mean" in line or "Candidate" in line]
    if "Out of Memory Error" in short:
        hints.append("sort fewer or shorter columns, row_id and the key alone, or take the first of them by LIMIT")
    elif "Catalog Error" in short:
        hints.append(f"views: {', '.join(VIEWS)}")
    elif "Binder Error" in short and (absent := _ABSENT.search(short)):
        there: dict[str, list[str]] = {}
        for view in read or ("rows",):
            columns = connection.execute(f"SELECT column_name FROM (DESCRIBE {view})").fetchall()
            there[view] = [brief(name, 80) for (name,) in columns]
        # Of a column that is asked for by its table's name, DuckDB names no other.
        near = get_close_matches(str(absent[1]).lower(), [one for names in there.values() for one in names], 1)
        hints += [f"did you mean {near[0]}?"] if near and not hints else []
        hints += [f"columns of {view}: {', '.join(names)}" for view, names in there.items()]
    return "; ".join([short, *hints])


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
    with duckdb.connect() as connection:
        empty = pa.table({"x": pa.array([], kind)})
        return str(connection.from_arrow(empty).types[0])
