"""What strangers' bytes reach, each as a function of bytes that raises where a promise is broken.

A promise: whatever the bytes are, an error is a `SeamcurateError` of one line, and what is read has the types it should have.
"""

from __future__ import annotations

import tempfile
import threading
from collections.abc import Callable
from pathlib import Path

import duckdb
from pydantic import ValidationError

from seamcurate import rewards
from seamcurate.data.source import Source
from seamcurate.errors import QueryError, SeamcurateError
from seamcurate.models import rating, reply
from seamcurate.models.protocols import Reply
from seamcurate.score import asked
from seamcurate.sql import guard

_KINDS = ("jsonl", "csv", "parquet", "arrow")
_CANARY = "canary-4f1c"


def sources(data: bytes) -> None:
    """Read a data file of the kind that the first byte picks."""
    if not data:
        return
    kind = _KINDS[data[0] % len(_KINDS)]
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder, f"rows.{kind}")
        file.write_bytes(data[1:])
        try:
            for chunk in Source(**{kind: str(file)}).chunks():
                for row in chunk.rows.to_pylist():
                    assert row["prompt"] is None or isinstance(row["prompt"], str | list), type(row["prompt"])
        except SeamcurateError as error:
            _one_line(error)


def sql(data: bytes) -> None:
    """Check a query, and run it where it is accepted: it changes nothing and reads no file."""
    text = data.decode(errors="replace")
    with (
        tempfile.TemporaryDirectory() as folder,
        duckdb.connect(config={"threads": 1, "memory_limit": "200MB"}) as connection,
    ):
        canary = Path(folder, "canary.csv")
        canary.write_text(_CANARY)
        connection.execute(
            "CREATE VIEW rows AS SELECT i AS row_id, 'text' AS prompt, i / 3 AS seam FROM range(5) AS t(i)"
        )
        connection.execute("CREATE VIEW candidates AS SELECT i AS row_id, 0.5 AS reward FROM range(9) AS t(i)")
        try:
            read = guard.check(connection, text)
        except QueryError as error:
            _one_line(error)
            return
        assert set(read) <= {"rows", "candidates"}, read
        connection.execute("SET enable_external_access = false")
        stop = threading.Timer(0.5, connection.interrupt)
        stop.start()
        answer = ""
        try:
            answer = str(connection.execute(text).fetchmany(100))
        except (duckdb.Error, ValueError, OverflowError):
            # A wrong query is the engine's to refuse, in a process of its own.
            pass
        finally:
            stop.cancel()
        assert _CANARY not in answer
        assert sorted(path.name for path in Path(folder).iterdir()) == ["canary.csv"]
        assert connection.execute("SELECT count(*) FROM rows").fetchone() == (5,)


def replies(data: bytes) -> None:
    """Read a reply of a language model in every way that a step reads one."""
    text = data.decode(errors="replace")
    answer = reply.read(Reply(text, "stop", "m"))
    assert isinstance(answer.text, str) and answer.reason and answer.whole
    for read in (text, answer.text):
        score = rating.rating(read)
        assert score is None or 1 <= score <= 10, score
        assert asked.query_type(read) in (None, "open", "closed")
        share = asked.relevant_share(read)
        assert share is None or 0 <= share <= 1, share
        assert all(0 <= start < len(read) for start, _ in reply.json_values(read))
        assert isinstance(reply.whole_elements(read), list)
        reply.field(read, "rating")
        reply.unfenced(read)


def reward_files(data: bytes) -> None:
    """Read a reward file, whose code must not run."""
    try:
        rewards._configuration_in(data.decode(errors="replace"))
    except (OSError, SeamcurateError, ValidationError) as error:
        _one_line(error)


def _one_line(error: Exception) -> None:
    if isinstance(error, SeamcurateError):
        message = str(error)
        assert message and "\n" not in message, message


TARGETS: dict[str, Callable[[bytes], None]] = {
    "sources": sources,
    "sql": sql,
    "replies": replies,
    "rewards": reward_files,
}
