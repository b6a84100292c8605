"""Messages over a socket between `connection` and `engine`: a letter for the kind, a length, and so many bytes."""

from __future__ import annotations

import json
import socket
import struct
import time

import pyarrow as pa

ASK, EXECUTE, CHECK, OPEN = b"a", b"x", b"c", b"o"
"""What is asked: a stranger's SELECT, a statement of this package, a look at a SELECT, the first message of all."""
BEGIN, QUESTION, FINISH = b"!", b"?", b"."
"""What the engine's process is handed a socket for; or that the engine is to be closed, without one."""
SCHEMA, BATCHES, VIEWS, ERROR, END = b"s", b"b", b"v", b"e", b"z"
"""What is answered: an answer's schema, batches of it, the views that a SELECT reads, why there is none, and its end."""
IDLE_SECONDS = 60.0
"""How long a process without an engine waits for the next one."""
ATTACHED = "attached"
"""The name under which a statement reads the table that came with it."""
VIEW_NAMES = ("rows", "candidates", "corpus", "ledger", "rejected")
"""What a query reads, in every store."""
TOO_LARGE = 77
"""The engine's exit code when it took more memory than it may."""

_HEAD = struct.Struct("!cQ")


class Closed(Exception):
    """The other side closed the socket, or its process ended."""


def send(to: socket.socket, kind: bytes, content: bytes | pa.Buffer | None = None, **values: object) -> None:
    """Send one message: bytes, or values as JSON.

    Raises:
        Closed: Nobody is there to receive it.
    """
    body = memoryview(json.dumps(values).encode() if content is None else content)
    try:
        to.sendall(_HEAD.pack(kind, body.nbytes))
        to.sendall(body)
    except (BrokenPipeError, ConnectionResetError) as error:
        raise Closed from error


def receive(source: socket.socket, deadline: float | None = None) -> tuple[bytes, bytearray]:
    """Wait for one message until a moment of the monotonic clock; returns its kind and its content.

    Raises:
        Closed: None will come.
        TimeoutError: None came in time.
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
