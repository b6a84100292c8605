"""JSON over HTTP to a server that computes scores: many requests under way at once, replies in the order of the requests.

One rule: a request at fault costs its row, an endpoint at fault stops the run. Requests that fail in a way that another may
not are repeated with growing pauses. This module knows no API: the caller says what is sent and reads what comes back.
"""

from __future__ import annotations

import asyncio
import ipaddress
import json
import os
import random
import threading
from collections import deque
from collections.abc import Callable, Coroutine, Iterable, Iterator, Mapping
from concurrent.futures import FIRST_COMPLETED, Future, wait
from contextlib import contextmanager
from functools import partial
from typing import Any, Generic, NamedTuple, NoReturn, TypeVar
from urllib.parse import urlsplit

from pydantic import JsonValue

from seamcurate.errors import ModelError, first_line
from seamcurate.models import connection
from seamcurate.models.endpoint import ServerSettings

T = TypeVar("T")

_IN_A_ROW = 8
"""Failed requests in a row from which the endpoint is taken to be at fault."""
_INTERNAL = 2
"""How often a request is repeated that the server failed at (500), or did not answer in time: its row may be the cause."""
_LONGEST_PAUSE = 60.0
"""The most seconds that a server may ask to wait by `Retry-After`."""
_AHEAD = 8
"""Replies that wait for an earlier one, for each request under way."""
_AT_FAULT = (401, 403, 404, 405, 407, 429)
"""Statuses that no other row would avoid."""
_TRANSIENT = (408, 409, 425, 429)


class Post(NamedTuple, Generic[T]):
    """One request."""

    body: Mapping[str, JsonValue]
    read: Callable[[JsonValue], T]
    """Takes the reply's JSON apart. Raises UnreadError where it holds no result, ModelError where no other reply will."""
    tokens: int = 1
    """Tokens that the server has to read for it, for the limit on tokens under way."""


class Received(NamedTuple, Generic[T]):
    """What came back for one request: the result, or the reason why there is none."""

    value: T | None
    failure: str | None = None


class UnreadError(Exception):
    """A reply is JSON, but holds no result; another one may."""


class Answer(NamedTuple):
    """What a server answered to one look at it, whatever its status."""

    status: int
    value: JsonValue


class RefusedError(ModelError):
    """The server refuses every request of a kind; `status` says how."""

    def __init__(self, message: str, status: int) -> None:
        super().__init__(message)
        self.status = status


class _FailedError(Exception):
    """A request failed for good."""

    def __init__(self, reason: str, hint: str, status: int = 0) -> None:
        super().__init__(reason)
        self.hint, self.status = hint, status

    @property
    def at_fault(self) -> bool:
        """Tell whether the endpoint is at fault, whatever the row."""
        return self.status in _AT_FAULT or 0 < self.status < 400 or self.status < 0


_NOT_REACHED = -1
"""Stands for the status of a request that reached no server."""


class ScoringClient:
    """Ask one server, many requests at a time.

    Args:
        title: How messages call the model, such as `reward_server org/rm`.
        address: The server's address; requests go to paths below it.
        settings: The key's name, the limits and how often to repeat.

    Raises:
        ModelError: The settings name a key that is not in the environment.

    Example:
        >>> client = ScoringClient("reward_server org/rm", "http://127.0.0.1:8000", ServerSettings())
        >>> client.look("/v1/models").status  # doctest: +SKIP
        200
    """

    def __init__(self, title: str, address: str, settings: ServerSettings) -> None:
        self.title, self.address, self.settings = title, address, settings
        self.secret = os.environ.get(settings.api_key, "") if settings.api_key else ""
        if settings.api_key and not self.secret:
            raise ModelError(f"{title}: set the environment variable {settings.api_key} to a key for {address}")
        self.answered = False
        """Whether any request was answered."""
        self.failures = 0
        """Requests in a row that failed."""

    def post_all(self, path: str, posts: Iterable[Post[T]], tokens: int | None = None) -> Iterator[Received[T]]:
        """Post requests and yield their results in the same order.

        The requests are taken from the iterable as the server answers, so that making the next ones overlaps with its work.
        Until a request was answered, any failure is the endpoint's: ask first for a row that is surely right.

        Args:
            path: Below the address, such as `/classify`.
            posts: The requests.
            tokens: The most tokens under way at once; one request is always under way, however long it is.

        Raises:
            RefusedError: The server refuses the key, the path, or the number of requests.
            ModelError: The server cannot be reached, or failed at every one of many requests.
        """
        waiting: deque[Future[Received[T]]] = deque()
        busy: dict[Future[Received[T]], int] = {}
        limit = self.settings.concurrency

        def full(coming: int) -> bool:
            if len(busy) >= limit or len(waiting) >= _AHEAD * limit:
                return True
            return bool(busy) and tokens is not None and sum(busy.values()) + coming > tokens

        with self._session() as submit:
            for post in posts:
                while full(post.tokens):
                    # With a full queue only its head matters: those behind it are done.
                    wait(busy if len(waiting) < _AHEAD * limit else [waiting[0]], return_when=FIRST_COMPLETED)
                    for future in [future for future in busy if future.done()]:
                        # An endpoint at fault stops the run before the replies ahead of this one are in.
                        future.result()
                        del busy[future]
                    while waiting and waiting[0].done():
                        yield waiting.popleft().result()
                future = submit(partial(self._received, path, post))
                waiting.append(future)
                busy[future] = post.tokens
            while waiting:
                yield waiting.popleft().result()

    def look(self, path: str, body: Mapping[str, JsonValue] | None = None) -> Answer:
        """Ask once, by GET or with a body by POST, and return the answer whatever its status; it counts for nothing.

        Raises:
            ModelError: The server cannot be reached.
        """
        with self._session() as submit:
            answer: Answer = submit(partial(self._looked, path, body)).result()
        return answer

    def shown(self, text: str, limit: int = 300) -> str:
        """Return a server's words in one line, without the key."""
        return connection.without_key(text, self.secret, limit)

    # ── one request ──────────────────────────────────────────────────────────────────────────────────────

    async def _received(self, path: str, post: Post[T], http: Any) -> Received[T]:
        try:
            value = await self._repeated(http, path, post)
        except _FailedError as error:
            return Received(None, self._count(error))
        self.answered, self.failures = True, 0
        return Received(value)

    def _count(self, error: _FailedError) -> str:
        """Count a failure and return its reason; raise where the endpoint is at fault."""
        self.failures += 1
        # A row may be at fault by itself; twice as many rows as are asked at once are not.
        if error.at_fault or not self.answered or self.failures >= max(_IN_A_ROW, 2 * self.settings.concurrency):
            self._refuse(error)
        return str(error)

    def _refuse(self, error: _FailedError) -> NoReturn:
        count = f"{self.failures} requests in a row failed, the last one: " if self.failures > 1 else ""
        message = f"{self.title} at {self.address}: {count}{error}; {error.hint}"
        raise RefusedError(message, error.status) if error.status > 0 else ModelError(message)

    async def _repeated(self, http: Any, path: str, post: Post[T]) -> T:
        """Send a request until it is answered; return what was read from the reply.

        Raises:
            _FailedError: It failed for good.
        """
        attempt = 0
        while True:
            repeats = self.settings.retries
            pause = random.uniform(0.75, 1) * min(8, 2 ** (attempt - 1))
            try:
                response = await self._sent(http, "POST", path, post.body)
            except connection.library().TimeoutException:
                repeats = min(repeats, _INTERNAL)
                failure = _FailedError(
                    f"no answer from {path} within {self.settings.timeout:g} s, {attempt + 1} times",
                    "see the server's log, or raise `timeout`",
                )
            except connection.library().TransportError as error:
                failure = self._not_reached(error)
            else:
                status = response.status_code
                broken = response.extensions.get(connection.BROKEN)
                if broken is None and 200 <= status < 300:
                    value, unreadable = self._json(response)
                    try:
                        if unreadable is None:
                            return post.read(value)
                    except UnreadError as error:
                        unreadable = self.shown(str(error))
                    repeats = min(repeats, _INTERNAL)
                    failure = _FailedError(
                        f"{path} answered with {unreadable}", "check the address, and that `api` is the one it speaks"
                    )
                elif broken is not None and 200 <= status < 300:
                    failure = _FailedError(f"{path} answered with {broken}", "see the server's log")
                    repeats = 0 if response.extensions[connection.ENDLESS] else repeats
                else:
                    failure = self._error(response, path)
                    if status == 500:
                        repeats = min(repeats, _INTERNAL)
                    elif not (status > 500 or status in _TRANSIENT):
                        repeats = 0
                    pause = min(connection.retry_after(response.headers) or pause, _LONGEST_PAUSE)
            if attempt >= repeats:
                raise failure
            attempt += 1
            await asyncio.sleep(pause)

    async def _sent(self, http: Any, method: str, path: str, body: Mapping[str, JsonValue] | None) -> Any:
        headers = {"authorization": f"Bearer {self.secret}"} if self.secret else {}
        return await http.request(method, self.address + path, json=body, headers=headers)

    async def _looked(self, path: str, body: Mapping[str, JsonValue] | None, http: Any) -> Answer:
        for attempt in range(self.settings.retries + 1):
            try:
                response = await self._sent(http, "GET" if body is None else "POST", path, body)
            except connection.library().TransportError as error:
                if attempt == self.settings.retries or isinstance(error, connection.library().TimeoutException):
                    self._refuse(self._not_reached(error))
                await asyncio.sleep(random.uniform(0.75, 1) * min(8, 2 ** (attempt - 1)))
            else:
                return Answer(response.status_code, self._json(response)[0])
        raise AssertionError

    def _json(self, response: Any) -> tuple[JsonValue, str | None]:
        """Return a response's JSON, or what came in its place."""
        try:
            value: JsonValue = json.loads(response.content)
            return value, None
        except (ValueError, RecursionError):
            start = self.shown(response.content[:40].decode("utf-8", "replace"))
            return None, f"{start!r} where JSON was due" if response.content.strip() else "an empty body"

    def _not_reached(self, error: Exception) -> _FailedError:
        reason = self.shown(first_line(error)) or type(error).__name__
        return _FailedError(
            f"no answer: {reason}", "check the address and that the server runs; finished shards are kept", _NOT_REACHED
        )

    def _error(self, response: Any, path: str) -> _FailedError:
        """Return a failure in the server's own words."""
        status = response.status_code
        if status < 400:
            target = self.shown(response.headers.get("location", "nowhere"))
            return _FailedError(
                f"{status}, {path} redirects to {target}, where nothing is sent",
                "if that is the server, write it",
                status,
            )
        hints = {
            401: f"put a valid key into {self.settings.api_key}" if self.secret else "name its key by `api_key`",
            403: "ask for access to the model",
            404: "check the model's name, the address and `api`",
            405: "check the address and `api`",
            429: "wait, or lower `concurrency`",
        }
        words = self.shown(_words(self._json(response)[0]))
        return _FailedError(
            f"{path} answered {status}{f': {words}' if words else ''}",
            hints.get(status, "see the server's log"),
            status,
        )

    # ── the event loop ───────────────────────────────────────────────────────────────────────────────────

    @contextmanager
    def _session(self) -> Iterator[Callable[[Callable[[Any], Coroutine[Any, Any, Any]]], Future[Any]]]:
        """Yield a function that starts a coroutine in a thread with an event loop; leaving cancels what is under way."""
        loop = asyncio.new_event_loop()
        thread = threading.Thread(target=loop.run_forever, daemon=True)
        thread.start()
        # Proxies are for the world outside: none can reach this machine's own loopback.
        options = {"trust_env": False} if _is_loopback(self.address) else {}
        if self.address.startswith("http:"):
            # Nothing is sent to another origin, so that no certificate is ever read: reading the authorities' takes 0.1 s.
            options["verify"] = False
        http = connection.limited(self.settings.timeout, lambda path: True, **options)

        async def close() -> None:
            others = asyncio.all_tasks() - {asyncio.current_task()}
            for task in others:
                task.cancel()
            await asyncio.gather(*others, return_exceptions=True)
            await http.aclose()

        try:
            yield lambda start: asyncio.run_coroutine_threadsafe(start(http), loop)
        finally:
            asyncio.run_coroutine_threadsafe(close(), loop).result()
            loop.call_soon_threadsafe(loop.stop)
            thread.join()
            loop.close()


def _is_loopback(address: str) -> bool:
    host = urlsplit(address).hostname or ""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost" or host.endswith(".localhost")


def _words(value: JsonValue) -> str:
    """Return the message of an error in JSON, as OpenAI, vLLM, SGLang and FastAPI write it."""
    for name in ("error", "message", "detail"):
        if isinstance(value, Mapping) and value.get(name):
            value = value[name]
    return value if isinstance(value, str) else "" if value is None else json.dumps(value, ensure_ascii=False)
