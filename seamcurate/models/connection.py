"""Limits on requests to an endpoint: a deadline for the whole reply, a limit on its size, nothing sent to another host.

The `openai` client does the HTTP; this module sets its limits. A reply that meets a limit is handed on as far as it arrived,
and marked: it may have been paid for, and the client would repeat the request without counting it.
"""

from __future__ import annotations

import asyncio
import importlib
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from typing import TYPE_CHECKING, Any, TypeVar

from seamcurate import extras
from seamcurate.errors import ModelError

if TYPE_CHECKING:
    from openai import AsyncOpenAI

T = TypeVar("T")

REPLY_BYTES = 16 * 2**20
"""The most bytes of one reply: thousands of tokens with twenty log-probabilities each fit."""
BROKEN, ENDLESS = "seamcurate_broken", "seamcurate_endless"
"""Keys of a response's extensions: why it is incomplete, and whether another request would end the same way."""
_FILE_BYTES_PER_SECOND = 64 * 1024
"""The least speed of a file: its deadline grows with its size."""
_FILE_BYTES_PER_ANSWER = 2**20
_REDIRECTS = 5
_TURNS = 20
"""Turns of the event loop after a deadline, in which bytes that arrived in time are read."""
_ENCODINGS = ("", "identity", "gzip", "deflate")
"""Encodings that expand at most a thousandfold, so that a decoded chunk fits in memory."""
_OF_BODY = ("content-encoding", "content-length", "transfer-encoding")


class BrokenError(Exception):
    """A reply did not arrive completely; `endless` where another request would end the same way."""

    def __init__(self, reason: str, endless: bool = False) -> None:
        super().__init__(reason)
        self.endless = endless


def connect(seconds: float, **options: Any) -> AsyncOpenAI:
    """Return a client of the `openai` package that keeps the limits.

    Args:
        seconds: For a whole reply, from the request to its last byte.
        options: Options of `AsyncOpenAI`.
    """
    extras.require("servers", "a model behind a server", ModelError)
    import openai

    # The deadline replaces the client's own timeouts, which start again with each byte.
    # Only completions cost money; other requests may be repeated.
    http_client = limited(seconds, lambda path: path.endswith("/chat/completions"))
    return openai.AsyncOpenAI(timeout=None, http_client=http_client, **options)


def limited(seconds: float, marks: Callable[[str], bool], **options: Any) -> Any:
    """Return an HTTP client, of the library below the `openai` client, that keeps the limits.

    Args:
        seconds: For a whole reply, from the request to its last byte.
        marks: Tells, by a request's path, whether an incomplete reply is handed on with its marks; others raise `ReadError`.
        options: Options of the library's client.
    """
    extras.require("servers", "a model behind a server", ModelError)
    import openai

    http = library()

    class Client(openai.DefaultAsyncHttpxClient):
        async def send(self, request: Any, *, stream: bool = False, **options: Any) -> Any:
            request.headers["accept-encoding"] = "gzip, deflate"
            is_file = request.url.path.endswith("/files")
            deadline = _now() + seconds + (_sent(request) / _FILE_BYTES_PER_SECOND if is_file else 0)
            try:
                response = await _by(deadline, self._head(request, options))
            except TimeoutError:
                raise http.ReadTimeout(f"nothing came within {seconds:g} s", request=request) from None
            if stream and response.is_success:
                return response
            body, extensions = bytearray(), dict(response.extensions)
            try:
                async for chunk in _within(response, lambda received: deadline, seconds, REPLY_BYTES):
                    body += chunk
            except BrokenError as error:
                if response.is_success and not marks(request.url.path):
                    raise http.ReadError(str(error), request=request) from None
                extensions |= {BROKEN: str(error), ENDLESS: error.endless}
            finally:
                await response.aclose()
            headers = [(name, value) for name, value in response.headers.multi_items() if name.lower() not in _OF_BODY]
            return http.Response(
                response.status_code,
                headers=headers,
                content=bytes(body),
                request=response.request,
                extensions=extensions,
            )

        async def _head(self, request: Any, options: dict[str, Any]) -> Any:
            """Return a response before its body is read; only redirects within one origin are followed."""
            options["follow_redirects"] = False
            for redirects in range(_REDIRECTS + 1):
                response = await super().send(request, stream=True, **options)
                coming = response.next_request
                if coming is None or _origin(coming.url) != _origin(request.url) or redirects == _REDIRECTS:
                    break
                await response.aclose()
                request = coming
            return response

    return Client(timeout=None, **options)


def retry_after(headers: Mapping[str, str]) -> float | None:
    """Return the seconds that a server asks to wait, in seconds or by a date; None where it asks for nothing.

    A date is read by the server's own clock, where the answer says what it shows.

    Example:
        >>> retry_after({"retry-after": "Mon, 30 Nov 2026 09:00:30 GMT", "date": "Mon, 30 Nov 2026 09:00:00 GMT"})
        30.0
    """
    wait = headers.get("retry-after", "")
    try:
        seconds = float(wait)
    except ValueError:
        try:
            now = parsedate_to_datetime(headers["date"]) if "date" in headers else datetime.now(UTC)
            seconds = (parsedate_to_datetime(wait) - now).total_seconds()
        except (TypeError, ValueError):
            return None
    return seconds if seconds >= 0 else None


def without_key(text: str, key: str, limit: int = 300) -> str:
    r"""Return a server's words in one line, without the key, which some servers repeat.

    Example:
        >>> without_key("no access\nfor sk-1", "sk-1")
        'no access for …'
    """
    text = text.replace(key, "…") if key else text
    return "".join(letter if letter.isprintable() else " " for letter in text)[:limit]


async def lines(response: Any, seconds: float, answers: int) -> AsyncIterator[str]:
    """Yield the lines of a batch's file as it arrives, with one line in memory at a time.

    Args:
        response: The response that the `openai` client streams.
        seconds: For the file, and one more for each 64 KiB.
        answers: How many lines are expected.

    Raises:
        BrokenError: A line or the file is too long, it comes too slowly, or it broke off.
    """
    start, tail = _now(), b""
    limit = REPLY_BYTES + answers * _FILE_BYTES_PER_ANSWER
    async for chunk in _within(
        response, lambda received: start + seconds + received / _FILE_BYTES_PER_SECOND, seconds, limit
    ):
        # Not splitlines: JSON strings may contain other line separators.
        *complete_lines, tail = (tail + chunk).split(b"\n")
        for line in complete_lines:
            yield line.decode("utf-8", "replace")
        if len(tail) > REPLY_BYTES:
            raise BrokenError(f"a line longer than {REPLY_BYTES:,} bytes", endless=True)
    yield tail.decode("utf-8", "replace")


async def _within(response: Any, deadline: Callable[[int], float], seconds: float, limit: int) -> AsyncIterator[bytes]:
    """Yield a body's chunks, decompressed, until a limit; the deadline may depend on the bytes received."""
    encoding = response.headers.get("content-encoding", "").strip().lower()
    if encoding not in _ENCODINGS:
        raise BrokenError(f"a reply compressed as {encoding[:40]!r}, which was not asked for", endless=True)
    received = 0
    chunks = aiter(response.aiter_bytes())
    while True:
        try:
            chunk = await _by(deadline(received), anext(chunks, None))
        except TimeoutError:
            raise BrokenError(
                f"a reply that did not end within {seconds:g} s; raise `timeout` if answers take longer", endless=True
            ) from None
        except library().HTTPError as error:
            raise BrokenError(f"a reply that broke off after {received:,} bytes: {error}") from None
        if chunk is None:
            return
        received += len(chunk)
        if received > limit:
            raise BrokenError(f"a reply longer than {limit:,} bytes", endless=True)
        yield chunk


def library() -> Any:
    """Return the HTTP library below the `openai` client: `httpx` below its version 2, `httpx2` since 3."""
    import openai

    return importlib.import_module(openai.DefaultAsyncHttpxClient.__mro__[1].__module__.partition(".")[0])


async def _by(deadline: float, coming: Awaitable[T]) -> T:
    """Wait for an awaitable until a deadline.

    Raises:
        TimeoutError: It was not done by then.
    """
    task = asyncio.ensure_future(coming)
    try:
        await asyncio.wait([task], timeout=max(0, deadline - _now()))
        # Bytes that arrived while this process was busy came in time, though they are read late: they were paid for.
        for _ in range(_TURNS):
            if task.done():
                return await task
            await asyncio.sleep(0)
    finally:
        task.cancel()
        await asyncio.wait([task])
    raise TimeoutError


def _sent(request: Any) -> int:
    return int(request.headers.get("content-length") or 0)


def _now() -> float:
    return asyncio.get_running_loop().time()


def _origin(url: Any) -> tuple[str, str, int | None]:
    return url.scheme, url.host, url.port
