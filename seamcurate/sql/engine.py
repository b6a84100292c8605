"""DuckDB in a separate process, started by `connection`: it opens views, answers queries, and ends with its owner.

One rule: no query takes more memory than the engine's limit, and none runs longer than its owner waits. DuckDB's own
limits do not hold inside a single call of a text function. So this process watches its memory and ends itself when it
exceeds the limit, and its owner can kill it.
"""

from __future__ import annotations

import json
import os
import re
import resource
import socket
import sys
import threading
import time
from collections.abc import Collection, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import duckdb
import pyarrow as pa

from seamcurate.errors import QueryError
from seamcurate.sql import frames, guard
from seamcurate.tables import SQL_TYPE
from seamcurate.text import brief

_UNITS = ("bytes", "KiB", "MiB", "GiB", "TiB", "PiB")
_THREAD = 2**30
"""Bytes for each thread. To merge a sort, a thread holds 122,880 whole rows (DuckDB 2.0), and half as much again; DuckDB's
guide recommends 1 to 4 GB a thread."""
_OUTSIDE = 2**29
"""Bytes that a query may hold in addition to DuckDB's buffers and half of these; DuckDB's limit counts only the buffers."""
_SHARE = 0.75
"""The default limit of the process, as a share of the machine's memory."""
_DUCKDB_SHARE = 0.8
"""DuckDB's own default for its buffers, as a share of the machine's memory."""
_LOOK_SECONDS = 0.01
"""How often the memory is measured."""
_FRAME_BYTES = 1 << 20
_BATCH_ROWS = 8_192
_TRUSTING = {
    "filter_pushdown",
    "join_filter_pushdown",
    "late_materialization",
    "partial_aggregate_pushdown",
    "row_group_pruner",
    "statistics_propagation",
    "top_n",
}
"""Optimizers that rely on the minimum and maximum in a Parquet file's statistics, which leave NaN out."""
_AS_TEXT = re.compile(r"\b(INTERVAL|BIT|BIGNUM|VARIANT|UNION|GEOMETRY|TIME WITH TIME ZONE)\b")
"""Types that Parquet or Arrow do not have: an answer holds their text in SQL."""
_TOO_LARGE = "ask for fewer rows or shorter texts, or give it more memory"
_UNSIGNED = re.compile(r"\bUHUGEINT\b")
"""A type whose values from 2^127 on Arrow would hold as negative numbers."""


class Engine:
    """Hold one in-memory DuckDB with its limits, and answer requests over sockets."""

    def __init__(self, memory: str | None, spill: str, room: str, threads: int | None) -> None:
        idle = _resident()
        config: dict[str, Any] = {"temp_directory": spill, "max_temp_directory_size": room}
        self._config = config if memory is None else config | {"memory_limit": memory}
        # GLOBAL: a setting of this session would not hold for the cursors that answer queries.
        self._settings = ["SET GLOBAL TimeZone = 'UTC'"]
        self._duckdb = self._connected()
        buffers = self._bytes("memory_limit")
        if memory is None:
            limit = int(buffers / _DUCKDB_SHARE * _SHARE)
            buffers = max(2**26, int((limit - _OUTSIDE) / 1.5))
            self._settings.append(f"SET memory_limit = '{buffers // 1000}KB'")
        self._limit = idle + buffers + buffers // 2 + _OUTSIDE
        ((most_threads,),) = self._duckdb.execute("SELECT current_setting('threads')").fetchall()
        fitting = min(int(most_threads), buffers // _THREAD, threads or int(most_threads))
        self._settings.append(f"SET threads = {max(1, fitting)}")
        for setting in self._settings:
            self._duckdb.execute(setting)
        self._outline: duckdb.DuckDBPyConnection | None = None
        self._locked = False
        self._asked = threading.Condition()
        self._open, self._closed = 0, False
        threading.Thread(target=self._watch_memory, daemon=True).start()

    def close(self) -> None:
        """Close DuckDB and free its memory."""
        with self._asked:
            self._closed = True
            self._asked.notify()
        self._duckdb.close()
        if self._outline is not None:
            self._outline.close()

    def _connected(self) -> duckdb.DuckDBPyConnection:
        """Open an in-memory DuckDB with this engine's limits."""
        connection = duckdb.connect(config=self._config)
        for setting in self._settings:
            connection.execute(setting)
        return connection

    def _open_views(self, views: list[str], allowed: list[str], statistics: bool) -> None:
        """Create the views. A locked DuckDB takes no more files: a new one takes its place, without the old one's tables."""
        opened = self._connected() if self._locked else self._duckdb
        self._lock(opened, views, allowed, [] if statistics else _TRUSTING)
        replaced, self._duckdb, self._locked = self._duckdb, opened, True
        if replaced is not opened:
            # Its memory is freed once its last query has ended.
            replaced.close()

    def _lock(
        self,
        connection: duckdb.DuckDBPyConnection,
        statements: list[str],
        allowed: list[str],
        disabled: Collection[str],
    ) -> None:
        """Create views or tables, and forbid a DuckDB to read anything but the allowed files."""
        if disabled:
            names = connection.execute("SELECT name FROM duckdb_optimizers()").fetchall()
            known = ", ".join(str(name) for (name,) in names if name in disabled)
            connection.execute(f"SET GLOBAL disabled_optimizers = '{known}'")
        connection.execute("SET allowed_paths = $1", [allowed])
        # The cache would keep everything that was read, up to most of the memory.
        connection.execute("SET enable_external_file_cache = false")
        connection.execute("SET python_enable_replacements = false")
        connection.execute("SET enable_external_access = false")
        for statement in statements:
            connection.execute(statement)
        connection.execute("SET lock_configuration = true")

    def _make_outline(self, tables: list[str], allowed: list[str]) -> None:
        """Make tables without rows that have the views' columns: what a statement reads of them, it reads of the views."""
        outline = self._connected()
        names = outline.execute("SELECT name FROM duckdb_optimizers()").fetchall()
        # The other optimizers would take tables without rows for what they are, and read nothing of them.
        self._lock(outline, tables, allowed, {str(name) for (name,) in names} - {"unused_columns"})
        self._outline = outline

    def _asked_of(self, kind: bytes, asked: dict[str, Any]) -> duckdb.DuckDBPyConnection:
        outlined = kind == frames.PLAN or (kind == frames.CHECK and asked["outlined"])
        return self._outline if outlined and self._outline is not None else self._duckdb

    def serve(self, asker: socket.socket) -> None:
        """Answer the one request that comes over a socket, and close the socket."""
        with asker, suppress(frames.Closed):
            kind, content = frames.receive(asker)
            # After the first line, which is JSON, comes a table for the statement to read, or nothing.
            line, _, attached = bytes(content).partition(b"\n")
            asked = json.loads(line)
            with self._asked_of(kind, asked).cursor() as cursor, self._watched(), _stopped_with(asker, cursor):
                try:
                    self._answer(asker, cursor, kind, asked, attached)
                    frames.send(asker, frames.END)
                except QueryError as error:
                    frames.send(asker, frames.ERROR, message=str(error))
                except (duckdb.Error, RuntimeError, pa.ArrowException, OSError, MemoryError) as error:
                    message = guard.explain(cursor, str(error) or type(error).__name__, asked.get("read", ()))
                    frames.send(asker, frames.ERROR, message=message)

    def _answer(
        self,
        asker: socket.socket,
        cursor: duckdb.DuckDBPyConnection,
        kind: bytes,
        asked: dict[str, Any],
        attached: bytes,
    ) -> None:
        if kind == frames.OPEN:
            self._open_views(**asked)
            return
        if kind == frames.OUTLINE:
            self._make_outline(**asked)
            return
        sql, parameters = asked["sql"], asked["parameters"]
        if kind == frames.PLAN:
            self._plan(asker, cursor, asked, attached)
            return
        if kind != frames.EXECUTE:
            asked["read"] = guard.check(cursor, sql)
        if kind == frames.CHECK:
            frames.send(asker, frames.VIEWS, views=asked["read"])
            return
        if attached:
            cursor.register(frames.ATTACHED, pa.ipc.open_stream(attached).read_all())
        if kind == frames.EXECUTE:
            (statement,) = duckdb.extract_statements(sql)
            if statement.type not in (duckdb.StatementType.SELECT, duckdb.StatementType.EXPLAIN):
                cursor.execute(sql, parameters or None)
                return
        schema, batches = _answered(cursor, sql, parameters)
        frames.send(asker, frames.SCHEMA, schema.serialize())
        gathered: list[pa.RecordBatch] = []
        for batch in batches:
            gathered.append(pa.RecordBatch.from_arrays(batch.columns, schema=schema))
            if sum(batch.nbytes for batch in gathered) >= _FRAME_BYTES:
                frames.send(asker, frames.BATCHES, frames.stream(schema, gathered))
                gathered = []
        if gathered:
            frames.send(asker, frames.BATCHES, frames.stream(schema, gathered))

    def _plan(
        self, asker: socket.socket, cursor: duckdb.DuckDBPyConnection, asked: dict[str, Any], attached: bytes
    ) -> None:
        """Tell which views a statement reads, and which columns of them; None for columns where that is not known."""
        sql, parameters = asked["sql"], asked["parameters"]
        try:
            asked["read"] = guard.check(cursor, sql)
        except QueryError:
            if asked["guarded"]:
                raise
            # A statement of this package, of another kind.
            frames.send(asker, frames.VIEWS, views=[], columns=None)
            return
        if attached:
            cursor.register(frames.ATTACHED, pa.ipc.open_stream(attached).read_all())
        ((_, plan),) = cursor.execute(f"EXPLAIN (FORMAT JSON) {sql}", parameters or None).fetchall()
        frames.send(asker, frames.VIEWS, views=asked["read"], columns=scanned(json.loads(str(plan))))

    def _bytes(self, setting: str) -> int:
        ((text,),) = self._duckdb.execute(f"SELECT current_setting('{setting}')").fetchall()
        number, unit = str(text).split()
        return int(float(number) * 1024 ** _UNITS.index(unit))

    @contextmanager
    def _watched(self) -> Iterator[None]:
        """Have the memory measured while a query is open."""
        with self._asked:
            self._open += 1
            self._asked.notify()
        try:
            yield
        finally:
            with self._asked:
                self._open -= 1

    def _watch_memory(self) -> None:
        """End the process when it exceeds its memory limit: nothing else can stop a single call of a function in time."""
        while True:
            with self._asked:
                self._asked.wait_for(lambda: self._open > 0 or self._closed)
            if self._closed:
                return
            while self._open:
                if _resident() > self._limit:
                    size = f"{self._limit / 10**9:.1f} GB"
                    print(f"the query needs more than {size} of memory; {_TOO_LARGE}", file=sys.stderr, flush=True)
                    os._exit(frames.TOO_LARGE)
                time.sleep(_LOOK_SECONDS)


@contextmanager
def _stopped_with(asker: socket.socket, cursor: duckdb.DuckDBPyConnection) -> Iterator[None]:
    """Interrupt a cursor when the other side closes the socket."""
    answered = threading.Event()

    def watch() -> None:
        with suppress(OSError):
            asker.settimeout(None)
            asker.recv(1)
        # Repeated, since an interrupt that comes between two queries is lost.
        while not answered.wait(0.02):
            cursor.interrupt()

    watching = threading.Thread(target=watch, daemon=True)
    watching.start()
    try:
        yield
    finally:
        answered.set()
        # The thread may still wait for the socket. Shut it down first: once closed, its file descriptor may be reused.
        with suppress(OSError):
            asker.shutdown(socket.SHUT_RDWR)
        watching.join()


def _answered(
    cursor: duckdb.DuckDBPyConnection, sql: str, parameters: dict[str, Any]
) -> tuple[pa.Schema, pa.RecordBatchReader]:
    """Answer a SELECT as Arrow batches, with a schema that marks the decimals which are SQL's whole numbers."""
    relation = cursor.sql(sql, params=parameters)
    names, kinds = relation.columns, [str(kind) for kind in relation.types]
    sent = ["VARCHAR" if _AS_TEXT.search(kind) else _UNSIGNED.sub("HUGEINT", kind) for kind in kinds]
    if sent != kinds:
        # Columns are renamed by position, since an answer may have two columns of one name.
        aliases = [f"c{i}" for i in range(len(kinds))]
        select = (
            name if kind == old else f"{name}::{kind}" for name, old, kind in zip(aliases, kinds, sent, strict=True)
        )
        wrapped = f"SELECT {', '.join(select)} FROM (\n{guard.unterminated(sql)}\n) AS answer({', '.join(aliases)})"
        relation = cursor.sql(wrapped, params=parameters)
    reader = relation.to_arrow_reader(_BATCH_ROWS)
    fields = [
        pa.field(name, field.type, metadata={SQL_TYPE: kind} if kind == "HUGEINT" else None)
        for name, field, kind in zip(names, reader.schema, sent, strict=True)
    ]
    return pa.schema(fields), reader


def scanned(plan: list[dict[str, Any]]) -> dict[str, list[str]]:
    """Return the columns that a plan reads of each table, by its name: `rows`, `other.rows`."""
    columns: dict[str, list[str]] = {}
    remaining = [*plan]
    while remaining:
        operator = remaining.pop()
        remaining += operator["children"]
        known = operator["extra_info"]
        if "Table" in known:
            name = str(known["Table"]).replace('"', "").removeprefix("memory.").removeprefix("main.")
            # DuckDB writes a list, one name, or nothing where only the rows are counted.
            projections = known.get("Projections") or []
            columns.setdefault(name, []).extend([projections] if isinstance(projections, str) else projections)
    return columns


def _resident() -> int:
    """Return the resident memory of this process in bytes."""
    with suppress(OSError):
        return int(Path("/proc/self/statm").read_bytes().split()[1]) * resource.getpagesize()
    # Without /proc, take the peak: in bytes on macOS, in kilobytes elsewhere.
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


def main() -> None:
    """Serve the process that started this one over an inherited socket, until that process closes it or ends."""
    control = socket.socket(fileno=int(sys.argv[1]))
    with suppress(OSError):
        # When the machine runs out of memory, Linux kills this process and not its owner.
        Path("/proc/self/oom_score_adj").write_text("800")
    engine: Engine | str | None = None
    while True:
        control.settimeout(frames.IDLE_SECONDS if engine is None else None)
        try:
            purpose, askers, _, _ = socket.recv_fds(control, 1, 1)
        except OSError:
            purpose, askers = b"", []
        if not purpose:
            # Skip the libraries' cleanup, which a running query would block.
            os._exit(0)
        if purpose == frames.FINISH:
            if isinstance(engine, Engine):
                engine.close()
            engine = None
            continue
        asker = socket.socket(fileno=askers[0])
        if purpose == frames.BEGIN:
            engine = _begun(asker)
        elif isinstance(engine, Engine):
            threading.Thread(target=engine.serve, args=(asker,), daemon=True).start()
        else:
            with asker, suppress(frames.Closed):
                frames.receive(asker)
                frames.send(asker, frames.ERROR, message=engine)


def _begun(asker: socket.socket) -> Engine | str:
    """Open an engine with its owner's settings; return the error message where it cannot be opened."""
    with asker:
        try:
            return Engine(**json.loads(frames.receive(asker)[1]))
        except (duckdb.Error, frames.Closed) as error:
            return brief(str(error), 200)


if __name__ == "__main__":
    main()
