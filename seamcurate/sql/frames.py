"""Messages over a socket between `connection` and `engine`: a letter for the kind, a length, and so many bytes."""

from __future__ import annotations

import json
import socket
import struct
import time

import pyarrow as pa

ASK, EXECUTE, CHECK, OUTLINE, PLAN, OPEN = b"a", b"x", b"c", b"l", b"p", b"o"
"""Kinds of requests: answer a user's SELECT, execute a statement of this package, check a SELECT, make tables without rows
that have the views' columns, tell which of these columns a statement reads, open the views."""
BEGIN, QUESTION, FINISH = b"!", b"?", b"."
"""What a socket that the engine's process receives is for: to open an engine, to ask it. FINISH, without one, closes it."""
SCHEMA, BATCHES, VIEWS, ERROR, END = b"s", b"b", b"v", b"e", b"z"
"""Kinds of replies: an answer's schema, its batches, the views (and columns) that a SELECT reads, an error, the end."""
IDLE_SECONDS = 60.0
"""How long a process without an engine waits for the next one."""
ATTACHED = "attached"
"""The name of the table that is sent along with a statement."""
VIEW_NAMES = ("rows", "candidates", "corpus", "ledger", "rejected")
"""The views of every store."""
TOO_LARGE = 77
"""The engine's exit code when it exceeded its memory limit."""

_HEAD = struct.Struct("!cQ")


class Closed(Exception):
    """The other side closed the socket, or its process ended."""


def send(target: socket.socket, kind: bytes, content: bytes | pa.Buffer | None = None, **values: object) -> None:
    """Send one message: bytes, or values as JSON.

    Raises:
        Closed: The other side is gone.
    """
    body = memoryview(json.dumps(values).encode() if content is None else content)
    try:
        target.sendall(_HEAD.pack(kind, body.nbytes))
        target.sendall(body)
    except (BrokenPipeError, ConnectionResetError) as error:
        raise Closed from error


def receive(source: socket.socket, deadline: float | None = None) -> tuple[bytes, bytearray]:
    """Wait for one message; return its kind and its content.

    Args:
        source: The socket.
        deadline: The time of the monotonic clock until which to wait.

    Raises:
        Closed: The other side is gone.
        TimeoutError: No message came in time.
    """
    kind, size = _HEAD.unpack(_exactly(source, _HEAD.size, deadline))
    return kind, _exactly(source, size, deadline)


def _exactly(source: socket.socket, size: int, deadline: float | None) -> bytearray:
    content = bytearray(size)
    view = memoryview(content)
    while view:
        if deadline is not None:
            left = deadline - time.monotonic()
            if left <= 0:
                raise TimeoutError
            source.settimeout(left)
        try:
            count = source.recv_into(view)
        except ConnectionResetError as error:
            raise Closed from error
        if not count:
            raise Closed
        view = view[count:]
    return content


def stream(schema: pa.Schema, batches: list[pa.RecordBatch]) -> pa.Buffer:
    """Write batches as an Arrow IPC stream."""
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, schema) as writer:
        for batch in batches:
            writer.write_batch(batch)
    return sink.getvalue()
