"""What asks an `engine`: starts it, hands it questions, and ends it when it does not stop by itself.

One rule: whatever a query does, the process that asked goes on: the engine is another process, which is killed when its
time is over, when it is no longer needed, and when its owner ends.
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
from typing import Any

import pyarrow as pa
from pydantic import JsonValue

from seamcurate.errors import QueryError
from seamcurate.select import frames
from seamcurate.storage import scratch
from seamcurate.tables import SQL_TYPE

_GRACE_SECONDS = 0.5
"""How long a query may take to stop by itself before its engine is killed."""


class EndedError(QueryError):
    """The engine ended before it had answered."""


class TooLargeError(EndedError):
    """The query took more memory than it may."""


def start(spill: Path | None = None, memory: str | None = None, threads: int | None = None) -> Connection:
    """Start an engine; it opens while its owner prepares what it is to read.

    Args:
        spill: A folder for what outgrows its memory; by default a temporary one, which goes with the engine.
        memory: The most that DuckDB's buffers may take, as DuckDB writes it: "2GB".
        threads: The most threads it may take.
    """
    return Connection(_Lease(spill, memory, threads))


class Connection:
    """Ask the views of a store; made by `views.connect`."""

    def __init__(self, engine: _Lease) -> None:
        self._engine = engine
        self.deadline: float | None = None
        """The moment of the monotonic clock at which answers end."""
        self.late = ""
        """What to say then."""

    def prepare(self, views: Sequence[str], allowed: Sequence[str], statistics: bool) -> None:
        """Have views created, and nothing left on this machine to read but the allowed files.

        Args:
            views: Statements that create them.
            allowed: The files.
            statistics: Whether least and greatest values in the files may decide which rows are looked at.

        Raises:
            QueryError: They cannot be.
        """
        for _ in self._engine.question(
            frames.OPEN, {"views": list(views), "allowed": list(allowed), "statistics": statistics}, self
        ):
            pass

    def ask(self, sql: str, parameters: Mapping[str, JsonValue] | None = None) -> Answer:
        """Answer one SELECT over the views.

        Raises:
            QueryError: The text is not one SELECT over the views, or it cannot be answered.
        """
        return Answer(self._engine.question(frames.ASK, {"sql": sql, "parameters": dict(parameters or {})}, self))

    def execute(
        self, sql: str, parameters: Mapping[str, JsonValue] | None = None, attached: pa.Table | None = None
    ) -> Answer:
        """Execute a statement of this package's own, which may read a table that it is given as `attached`.

        Raises:
            QueryError: It cannot be executed.
        """
        asked = {"sql": sql, "parameters": dict(parameters or {})}
        return Answer(self._engine.question(frames.EXECUTE, asked, self, attached))

    def check(self, sql: str) -> list[str]:
        """Refuse what is not one SELECT over the views; return the views it reads. Nothing is run.

        Raises:
            QueryError: It is another statement, several, or reads something else.
        """
        answer = self._engine.question(frames.CHECK, {"sql": sql, "parameters": {}}, self)
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


class Answer:
    """Iterate over an answer's record batches as they come; its schema is there first."""

    def __init__(self, messages: Generator[tuple[bytes, bytearray]]) -> None:
        self._messages = messages
        first = next(messages, None)
        self.schema = pa.ipc.read_schema(pa.py_buffer(first[1])) if first else pa.schema([])

    def __iter__(self) -> Iterator[pa.RecordBatch]:
        for _, content in self._messages:
            for batch in pa.ipc.open_stream(pa.py_buffer(content)):
                yield pa.RecordBatch.from_arrays(batch.columns, schema=self.schema)

    def close(self) -> None:
        """Stop the query."""
        self._messages.close()

    def read_all(self, rows: int | None = None, size: int | None = None) -> pa.Table:
        """Return the whole answer as a table; SQL's wide whole numbers, such as sums, as int64 where all of them fit.

        Raises:
            QueryError: It has more rows, or more bytes, than are asked for.
        """
        batches: list[pa.RecordBatch] = []
        count = held = 0
        for batch in self:
            batches.append(batch)
            count, held = count + batch.num_rows, held + batch.nbytes
            if (rows is not None and count > rows) or (size is not None and held > size):
                self.close()
                most = f"{rows:,} rows" if rows is not None and count > rows else f"{size or 0:,} bytes"
                raise QueryError(f"the answer has more than {most}; count or group the rows, or add a LIMIT")
        table = pa.Table.from_batches(batches, self.schema)
        for i, field in enumerate(table.schema):
            if SQL_TYPE in (field.metadata or {}):
                with suppress(pa.ArrowInvalid):
                    table = table.set_column(i, field.name, table.column(i).cast(pa.int64()))
        return table.replace_schema_metadata(None)

    def fetchall(self) -> list[tuple[Any, ...]]:
        """Return the whole answer as rows of whatever SQL answers."""
        return list(zip(*(column.to_pylist() for column in self.read_all().columns), strict=True))


class _Lease:
    """A process's engine, for one connection: the process goes back when nothing is asked any more, or is ended."""

    def __init__(self, spill: Path | None, memory: str | None, threads: int | None) -> None:
        folder = None
        if spill is None:
            # Else DuckDB would spill into `.tmp` of the working folder.
            folder = scratch.make()
            spill = folder.path
        # Half of what is free: a query must not fill the disk on which a run writes. DuckDB takes 0 for no limit.
        room = shutil.disk_usage(spill if spill.is_dir() else spill.parent).free // 2
        self._process = _process()
        self.end = weakref.finalize(self, _end, os.getpid(), self._process, folder.remove if folder else None)
        most = f"{max(1, room // 10**6)}MB"
        settings = {"memory": memory, "spill": str(spill), "room": most, "threads": threads}
        with self._process.socket(frames.BEGIN) as ours, suppress(frames.Closed):
            frames.send(ours, frames.OPEN, json.dumps(settings).encode())

    @property
    def ended(self) -> bool:
        """Tell whether the engine is gone."""
        return not self.end.alive or self._process.popen.poll() is not None

    def question(
        self, kind: bytes, asked: Mapping[str, object], asking: Connection, attached: pa.Table | None = None
    ) -> Generator[tuple[bytes, bytearray]]:
        """Ask, and iterate over what is answered.

        Raises:
            QueryError: See `Connection`.
        """
        content = json.dumps(asked).encode()
        if attached is not None:
            content += b"\n" + frames.stream(attached.schema, attached.to_batches()).to_pybytes()
        if not self.end.alive:
            raise self._death()
        with self._process.socket(frames.QUESTION) as ours:
            try:
                frames.send(ours, kind, content)
                while True:
                    said, answered = frames.receive(ours, asking.deadline)
                    if said == frames.ERROR:
                        raise QueryError(str(json.loads(answered)["message"]))
                    if said == frames.END:
                        return
                    yield said, answered
            except TimeoutError as error:
                self._stop(ours)
                raise QueryError(asking.late) from error
            except GeneratorExit:
                self._stop(ours)
                raise
            except frames.Closed as error:
                raise self._death() from error
            except KeyboardInterrupt:
                self.end()
                raise

    def _stop(self, ours: socket.socket) -> None:
        """Have a query stopped, or else its process: a single call of a function cannot be interrupted."""
        with suppress(OSError, TimeoutError, frames.Closed):
            ours.shutdown(socket.SHUT_WR)
            end = time.monotonic() + _GRACE_SECONDS
            while frames.receive(ours, end)[0] not in (frames.ERROR, frames.END):
                pass
            return
        self.end()

    def _death(self) -> QueryError:
        """Say why the engine is gone."""
        if not self.end.alive:
            return EndedError("the query was stopped: its process was ended")
        try:
            code = self._process.popen.wait(_GRACE_SECONDS)
        except subprocess.TimeoutExpired:
            code = 0
        said = self._process.said()
        self.end()
        if code == frames.TOO_LARGE:
            return TooLargeError(said or "the query needs more memory than it may take")
        if code == -signal.SIGKILL:
            return TooLargeError("the query needs more memory than this machine has left; ask for less at a time")
        why = f"by signal {-code}" if code < 0 else f"with exit code {code}"
        return EndedError(
            f"the query ended its process {why}{f': {said:.200}' if said else ''}; ask for it in another way"
        )


class _Process:
    """A process that waits for engines to open, one after the other, over sockets that it is handed."""

    def __init__(self) -> None:
        self.owner, self.free_since = os.getpid(), time.monotonic()
        self._control, theirs = socket.socketpair()
        self._lock, self._open = threading.Lock(), 0
        self._errors = tempfile.TemporaryFile()  # noqa: SIM115 - it is open as long as the process lives
        # It imports what this process imports, from where this one does, and nothing from the working folder.
        found = [str(Path(__file__).parents[2]), *filter(None, sys.path)]
        with theirs:
            self.popen = subprocess.Popen(
                [sys.executable, "-P", "-m", "seamcurate.select.engine", str(theirs.fileno())],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=self._errors,
                pass_fds=[theirs.fileno()],
                env={**os.environ, "PYTHONPATH": os.pathsep.join(found)},
                # A Ctrl-C is for this process, which ends the other.
                start_new_session=True,
            )
        self.kill = weakref.finalize(self, _kill, self.owner, self.popen, self._control)

    @contextmanager
    def socket(self, purpose: bytes) -> Iterator[socket.socket]:
        """Give the process one end of a new socket, and have the other."""
        ours, theirs = socket.socketpair()
        with self._lock:
            self._open += 1
            # What is gone is met when its answer is waited for.
            with theirs, suppress(OSError):
                socket.send_fds(self._control, [purpose], [theirs.fileno()])
        try:
            with ours:
                yield ours
        finally:
            with self._lock:
                self._open -= 1

    @property
    def free(self) -> bool:
        """Tell whether it is there and nothing is asked of it."""
        return self.kill.alive and self._open == 0 and self.popen.poll() is None

    def finish(self) -> None:
        """Have the engine closed."""
        with suppress(OSError):
            self._control.send(frames.FINISH)

    def said(self) -> str:
        """Return the last line that the process wrote."""
        self._errors.seek(0)
        lines = self._errors.read().decode("utf-8", "replace").strip().splitlines()
        return lines[-1] if lines else ""


_spare: list[_Process] = []
"""The process of the last connection, for the next one: to start another takes half a second."""
_taking = threading.RLock()
"""Reentrant: a connection that is collected meanwhile gives its process back in the same thread."""


def _process() -> _Process:
    with _taking:
        while _spare:
            spare = _spare.pop()
            # A forked copy has a spare process that is its parent's.
            if spare.owner == os.getpid():
                if spare.free and time.monotonic() - spare.free_since < frames.IDLE_SECONDS / 2:
                    return spare
                spare.kill()
    return _Process()


def _end(owner: int, process: _Process, clear: Callable[[], None] | None) -> None:
    # A forked copy of the owner ends nothing.
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
