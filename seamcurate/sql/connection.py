"""The client of an `engine`: it starts the engine's process, sends it queries, and kills it when it does not stop.

One rule: whatever a query does, the process that asked goes on. The engine is another process, which is killed when a
query does not end in time, when it is no longer needed, and when its owner ends.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
import weakref
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, NamedTuple, TypeAlias

import pyarrow as pa
from pydantic import JsonValue

from seamcurate import threads as limits
from seamcurate.errors import QueryError
from seamcurate.sql import frames
from seamcurate.storage import scratch
from seamcurate.tables import SQL_TYPE, python_values

_GRACE_SECONDS = 0.5
"""How long a query may take to stop by itself before its engine is killed."""


class EndedError(QueryError):
    """The engine ended before it had answered."""


class TooLargeError(EndedError):
    """The query exceeded its memory limit."""


def start(spill: Path | None = None, memory: str | None = None, threads: int | None = None) -> Connection:
    """Start an engine. It opens while its owner verifies the files that the views will read.

    Args:
        spill: A folder for intermediate results beyond the memory limit; by default a temporary one.
        memory: The limit of DuckDB's buffers, in DuckDB's spelling: "2GB".
        threads: The most threads DuckDB may use.
    """
    return Connection(_Lease(spill, memory, threads))


class Opened(NamedTuple):
    """What an engine opens; see `Connection.prepare`."""

    views: list[str]
    allowed: list[str]
    statistics: bool


Source: TypeAlias = Callable[[Sequence[str], Mapping[str, Sequence[str]] | None], Opened | None]
"""Given the views that a statement names and the columns that it reads of each (None: all of everything), verify their
files and return what to open; None where it is open."""


class Connection:
    """Query the views of a store; see `views.connect`."""

    def __init__(self, engine: _Lease) -> None:
        self._engine = engine
        self.deadline: float | None = None
        """The time of the monotonic clock at which queries are stopped."""
        self.late = ""
        """The message of the error that is raised then."""

    def prepare(self, views: Sequence[str], allowed: Sequence[str], statistics: bool) -> None:
        """Create views, and let queries read nothing but the allowed files.

        Args:
            views: The statements that create the views.
            allowed: The files.
            statistics: Whether the minimum and maximum in the files' statistics may decide which rows are read.

        Raises:
            QueryError: The views cannot be created.
        """
        self._tell(frames.OPEN, {"views": list(views), "allowed": list(allowed), "statistics": statistics})

    def outline(self, tables: Sequence[str], allowed: Sequence[str], source: Source) -> None:
        """Have views opened when a query reads them, and of them only the files with the columns that it reads.

        Args:
            tables: The statements that create, for each view, a table without rows that has the view's columns.
            allowed: The files that they read.
            source: What verifies files and writes views.
        """
        self._tell(frames.OUTLINE, {"tables": list(tables), "allowed": list(allowed)})
        self._engine.source = source

    def _bring(
        self,
        sql: str,
        parameters: Mapping[str, JsonValue] | None,
        guarded: bool,
        attached: pa.Table | None = None,
    ) -> None:
        """Open what a statement reads, where it is not open yet. The time that this takes does not count as the query's."""
        source = self._engine.source
        if source is None:
            return
        request = {"sql": sql, "parameters": dict(parameters or {}), "guarded": guarded}
        attached = None if attached is None else attached.schema.empty_table()
        with self._engine.opening:
            replies = [content for _, content in self._engine.question(frames.PLAN, request, self, attached)]
            planned = json.loads(replies[0])
            start = time.monotonic()
            opened = source(planned["views"], planned["columns"])
            if opened is not None:
                self._tell(frames.OPEN, opened._asdict(), limited=False)
            if planned["columns"] is None:
                # All of it is open, and stays so: a table that the statement creates must not be lost.
                self._engine.source = None
            if self.deadline is not None:
                self.deadline += time.monotonic() - start

    def _tell(self, kind: bytes, request: Mapping[str, object], limited: bool = True) -> None:
        for _ in self._engine.question(kind, request, self if limited else Connection(self._engine)):
            pass

    def ask(self, sql: str, parameters: Mapping[str, JsonValue] | None = None) -> QueryResult:
        """Answer one SELECT over the views.

        Raises:
            QueryError: The text is not one SELECT over the views, or it cannot be answered.
            DamagedError: A shard that it reads is not the file that was written.
        """
        self._bring(sql, parameters, True)
        return QueryResult(self._engine.question(frames.ASK, {"sql": sql, "parameters": dict(parameters or {})}, self))

    def execute(
        self, sql: str, parameters: Mapping[str, JsonValue] | None = None, attached: pa.Table | None = None
    ) -> QueryResult:
        """Execute a statement of this package, which may read the table `attached`.

        Raises:
            QueryError: The statement cannot be executed.
            DamagedError: A shard that it reads is not the file that was written.
        """
        self._bring(sql, parameters, False, attached)
        request = {"sql": sql, "parameters": dict(parameters or {})}
        return QueryResult(self._engine.question(frames.EXECUTE, request, self, attached))

    def check(self, sql: str) -> list[str]:
        """Refuse SQL that is not one SELECT over the views; return the views it reads. Nothing is run.

        Raises:
            QueryError: It is another statement, several, or reads something else.
        """
        # Not all views may be open, and a statement of this package may have made tables beside them.
        request = {"sql": sql, "parameters": {}, "outlined": self._engine.source is not None}
        answer = self._engine.question(frames.CHECK, request, self)
        return [str(view) for kind, content in answer if kind == frames.VIEWS for view in json.loads(content)["views"]]

    def cursor(self) -> Connection:
        """Return another connection to the same views, with a time limit of its own."""
        return Connection(self._engine)

    @property
    def ended(self) -> bool:
        """Tell whether the engine is gone."""
        return self._engine.ended

    def close(self) -> None:
        """End the engine."""
        self._engine.end()

    def __enter__(self) -> Connection:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()


class QueryResult:
    """Iterate over an answer's record batches as they arrive; the schema arrives first."""

    def __init__(self, messages: Generator[tuple[bytes, bytearray]]) -> None:
        self._messages = messages
        schema_message = next(messages, None)
        self.schema = pa.ipc.read_schema(pa.py_buffer(schema_message[1])) if schema_message else pa.schema([])

    def __iter__(self) -> Iterator[pa.RecordBatch]:
        for _, content in self._messages:
            # Each message is a stream of its own; the first schema has the metadata of the whole answer.
            for batch in pa.ipc.open_stream(pa.py_buffer(content)):
                yield pa.RecordBatch.from_arrays(batch.columns, schema=self.schema)

    def close(self) -> None:
        """Stop the query."""
        self._messages.close()

    def read_all(self, rows: int | None = None, size: int | None = None) -> pa.Table:
        """Return the whole answer as a table; SQL's wide whole numbers, such as sums, are int64 where all of them fit.

        Raises:
            QueryError: The answer has more than `rows` rows, or more than `size` bytes.
        """
        batches: list[pa.RecordBatch] = []
        count = held = 0
        for batch in self:
            batches.append(batch)
            count, held = count + batch.num_rows, held + batch.nbytes
            if (rows is not None and count > rows) or (size is not None and held > size):
                self.close()
                limit = f"{rows:,} rows" if rows is not None and count > rows else f"{size or 0:,} bytes"
                raise QueryError(f"the answer has more than {limit}; count or group the rows, or add a LIMIT")
        table = pa.Table.from_batches(batches, self.schema)
        for i, field in enumerate(table.schema):
            # SQL's sum of int64 is an int128, which Arrow has as a decimal only.
            if SQL_TYPE in (field.metadata or {}):
                with suppress(pa.ArrowInvalid):
                    table = table.set_column(i, field.name, table.column(i).cast(pa.int64()))
        return table.replace_schema_metadata(None)

    def fetchall(self) -> list[tuple[Any, ...]]:
        """Return the whole answer as a list of rows."""
        return list(zip(*map(python_values, self.read_all().columns), strict=True))


class _Lease:
    """An engine for one connection, in a process that goes back to `_spare` afterwards, or is killed."""

    def __init__(self, spill: Path | None, memory: str | None, threads: int | None) -> None:
        self.source: Source | None = None
        self.opening = threading.RLock()
        folder = None
        if spill is None:
            # Without a folder of ours DuckDB would spill into `.tmp` of the working folder.
            folder = scratch.make()
            spill = folder.path
        # Half of the free space: a query must not fill the disk on which a run writes. DuckDB takes 0 for no limit.
        room = shutil.disk_usage(spill if spill.is_dir() else spill.parent).free // 2
        self._process = _process()
        self.end = weakref.finalize(self, _end, os.getpid(), self._process, folder.remove if folder else None)
        spill_limit = f"{max(1, room // 10**6)}MB"
        settings = {
            "memory": memory,
            "spill": str(spill),
            "room": spill_limit,
            "threads": threads or limits.available(),
        }
        with self._process.socket(frames.BEGIN) as near_end, suppress(frames.Closed):
            frames.send(near_end, frames.OPEN, json.dumps(settings).encode())

    @property
    def ended(self) -> bool:
        """Tell whether the engine is gone."""
        return not self.end.alive or self._process.popen.poll() is not None

    def question(
        self, kind: bytes, request: Mapping[str, object], connection: Connection, attached: pa.Table | None = None
    ) -> Generator[tuple[bytes, bytearray]]:
        """Send a request, and iterate over the replies.

        Raises:
            QueryError: See `Connection`.
        """
        content = json.dumps(request).encode()
        if attached is not None:
            content += b"\n" + frames.stream(attached.schema, attached.to_batches()).to_pybytes()
        if not self.end.alive:
            raise self._death()
        with self._process.socket(frames.QUESTION) as near_end:
            try:
                frames.send(near_end, kind, content)
                while True:
                    reply, body = frames.receive(near_end, connection.deadline)
                    if reply == frames.ERROR:
                        raise QueryError(str(json.loads(body)["message"]))
                    if reply == frames.END:
                        return
                    yield reply, body
            except TimeoutError as error:
                self._stop(near_end)
                raise QueryError(connection.late) from error
            except GeneratorExit:
                self._stop(near_end)
                raise
            except frames.Closed as error:
                raise self._death() from error
            except KeyboardInterrupt:
                self.end()
                raise

    def _stop(self, near_end: socket.socket) -> None:
        """Stop a query, or end its process where it goes on: a single call of a function cannot be interrupted."""
        with suppress(OSError, TimeoutError, frames.Closed):
            near_end.shutdown(socket.SHUT_WR)
            end = time.monotonic() + _GRACE_SECONDS
            while frames.receive(near_end, end)[0] not in (frames.ERROR, frames.END):
                pass
            return
        self.end()

    def _death(self) -> QueryError:
        """Return an error that says why the engine ended."""
        if not self.end.alive:
            return EndedError("the query was stopped: its process was ended")
        try:
            # A closed socket is noticed before the process has an exit code.
            code = self._process.popen.wait(_GRACE_SECONDS)
        except subprocess.TimeoutExpired:
            code = 0
        last_line = self._process.last_line()
        self.end()
        if code == frames.TOO_LARGE:
            return TooLargeError(last_line or "the query needs more memory than it may take")
        if code == -signal.SIGKILL:
            return TooLargeError("the query needs more memory than this machine has left; ask for less at a time")
        cause = f"by signal {-code}" if code < 0 else f"with exit code {code}"
        return EndedError(
            f"the query ended its process {cause}{f': {last_line:.200}' if last_line else ''}; ask for it in another way"
        )


class _Process:
    """A process that opens engines, one after the other, and answers over sockets that are passed to it."""

    def __init__(self) -> None:
        self.owner, self.free_since = os.getpid(), time.monotonic()
        self._control, far_end = socket.socketpair()
        self._lock, self._open = threading.Lock(), 0
        self._errors = tempfile.TemporaryFile()  # noqa: SIM115 - open as long as the process lives
        # It imports modules from the same folders as this process, and nothing from the working folder.
        import_path = [str(Path(__file__).parents[2]), *filter(None, sys.path)]
        with far_end:
            self.popen = subprocess.Popen(
                [sys.executable, "-P", "-m", "seamcurate.sql.engine", str(far_end.fileno())],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=self._errors,
                pass_fds=[far_end.fileno()],
                env={**os.environ, "PYTHONPATH": os.pathsep.join(import_path)},
                # A Ctrl-C reaches this process only, which then ends the other.
                start_new_session=True,
            )
        self.kill = weakref.finalize(self, _kill, self.owner, self.popen, self._control)

    @contextmanager
    def socket(self, purpose: bytes) -> Iterator[socket.socket]:
        """Pass one end of a new socket to the process, and yield the other."""
        near_end, far_end = socket.socketpair()
        with self._lock:
            self._open += 1
            # A process that is gone is noticed when its reply is waited for.
            with far_end, suppress(OSError):
                socket.send_fds(self._control, [purpose], [far_end.fileno()])
        try:
            with near_end:
                yield near_end
        finally:
            with self._lock:
                self._open -= 1

    @property
    def free(self) -> bool:
        """Tell whether the process runs and has no open request."""
        return self.kill.alive and self._open == 0 and self.popen.poll() is None

    def finish(self) -> None:
        """Close the engine; the process waits for the next one."""
        with suppress(OSError):
            self._control.send(frames.FINISH)

    def last_line(self) -> str:
        """Return the last line that the process wrote to standard error."""
        self._errors.seek(0)
        lines = self._errors.read().decode("utf-8", "replace").strip().splitlines()
        return lines[-1] if lines else ""


_spare: list[_Process] = []
"""The process of the last connection, reused by the next one: starting another takes half a second."""
_taking = threading.RLock()
"""Reentrant: the garbage collector may end another connection, in the same thread, while the lock is held."""


def _process() -> _Process:
    with _taking:
        while _spare:
            spare = _spare.pop()
            # In a forked copy of this process, the spare process belongs to the parent.
            if spare.owner == os.getpid():
                if spare.free and time.monotonic() - spare.free_since < frames.IDLE_SECONDS / 2:
                    return spare
                spare.kill()
    return _Process()


def _end(owner: int, process: _Process, clear: Callable[[], None] | None) -> None:
    # A forked copy of the owner must not end its parent's processes.
    if os.getpid() != owner:
        return
    with _taking:
        if process.free and not _spare:
            process.finish()
            process.free_since = time.monotonic()
            _spare.append(process)
        else:
            process.kill()
    if clear is not None:
        clear()


def _kill(owner: int, popen: subprocess.Popen[bytes], control: socket.socket) -> None:
    if os.getpid() == owner:
        popen.kill()
        popen.wait()
    control.close()
