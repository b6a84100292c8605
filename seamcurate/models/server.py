"""A language model behind any OpenAI-compatible endpoint: hosted, vLLM, SGLang, llama.cpp.

Servers differ, and some silently ignore parts of a request: replies are checked, and nothing is assumed. The `openai` client
repeats requests that fail, and waits as long as the server says. What still fails becomes the row's reason, unless the
endpoint itself is at fault: that stops the run, and every answer so far is stored. Every reply that arrived counts as paid,
readable or not; a reply that names no tokens counts at the most that it can have cost.
"""

from __future__ import annotations

import asyncio
import json
import os
import random
import re
import socket
import time
from collections.abc import Awaitable, Callable, Coroutine, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from typing import TYPE_CHECKING, Any, ClassVar, NamedTuple, NoReturn, TypeVar
from urllib.parse import urlsplit
from urllib.request import getproxies

from pydantic import Field, JsonValue

from seamcurate.errors import ModelError, SeamcurateError, first_line
from seamcurate.models import connection, wire
from seamcurate.models.backend import NamedModel
from seamcurate.models.calls import Spent, current
from seamcurate.models.endpoint import Address, KeyName, ServerSettings
from seamcurate.models.protocols import Conversation, LanguageModel, Reply, Request
from seamcurate.progress import note
from seamcurate.step import digest

if TYPE_CHECKING:
    from openai import APIStatusError, AsyncOpenAI, OpenAIError
    from openai.types import Batch

T = TypeVar("T")

OPENAI = "https://api.openai.com/v1"
_GARBLED = 5
"""How often a row may get something other than a completion before it is given up: each may have been paid for."""
_IN_A_ROW = 8
"""Failed requests in a row from which the endpoint is taken to be at fault."""
_CHARACTERS_PER_TOKEN = 4.0
"""The average of English text, for estimates."""
_BATCH_REQUESTS, _BATCH_BYTES = 50_000, 150_000_000
"""The most that one batch holds, within OpenAI's limits of 50,000 requests and 200 MB."""
_INTENDED = "intended-"
"""Prefix of the id of a batch that is about to be submitted: a run that is killed then may or may not have submitted it."""
_LIMITS = ("max_tokens", "max_completion_tokens")
"""The two names of the limit on an answer's length: OpenAI's newer models take only the second, most servers the first."""
_ABOUT_SCHEMA = re.compile(r"response_?format|json_?schema|schema|structured|grammar|guided", re.IGNORECASE)
_UNKNOWN = re.compile(
    r"unsupported|not supported|unrecogni[sz]ed|unknown|unexpected|not permitted|not allowed|extra|instead",
    re.IGNORECASE,
)
_OTHERS_PROMPT = 10_000_000
"""The most tokens that a request of an earlier run can have had; no model reads as many."""


class OpenAIServer(ServerSettings, NamedModel):
    """Name a language model behind an OpenAI-compatible endpoint: OpenAI's own, vLLM, SGLang or llama.cpp.

    `path` is the model's name there. The value is frozen and asks nothing until a step runs. Each answer is kept in the
    store when it arrives and never bought twice; a change of `base_url`, concurrency or prices keeps the answers. Costs are
    in US dollars, and known where both prices are given.

    Raises:
        ModelError: By `load`, where OpenAI's own endpoint is meant and no key is in the environment.

    Example:
        >>> from seamcurate import OpenAIServer
        >>> server = OpenAIServer(
        ...     path="Qwen/Qwen3-8B", base_url="http://localhost:8000/v1", temperature=0.7,
        ...     usd_per_million_input=0.25, usd_per_million_output=2.0,
        ... )
        >>> server.price(tokens_in=4_000_000, tokens_out=500_000)
        2.0
        >>> server.identity()["openai_server"]
        'Qwen/Qwen3-8B'
    """

    key: ClassVar[str] = "openai_server"

    base_url: Address = OPENAI
    """The endpoint's address. Not part of a fingerprint: an answer is stored by the model's name."""
    api_key: KeyName = "OPENAI_API_KEY"
    """The *name* of the environment variable that holds the key; where it is not set, no key is sent."""
    temperature: float | None = Field(default=None, ge=0)
    top_p: float | None = Field(default=None, gt=0, le=1)
    seed: int | None = None
    max_tokens: int = Field(default=4096, ge=1)
    """The most tokens of one answer."""
    max_completion_tokens: int | None = Field(default=None, ge=1)
    """The same limit under the name that endpoints want which refuse `max_tokens`; it takes precedence."""
    extra: dict[str, JsonValue] = Field(default_factory=dict)
    """Further keys of the request's body, such as `reasoning_effort`."""
    structured: bool = True
    """Send the JSON schema of the answer. False is for servers that refuse one; a refusal is also noticed."""
    requests_per_minute: float | None = Field(default=None, gt=0)
    tokens_per_minute: float | None = Field(default=None, gt=0)
    batch: bool = False
    """Use the Batch API: half the price, and answers within a day."""
    poll_seconds: float = Field(default=60, gt=0)
    """Seconds between two looks at a batch."""
    usd_per_million_input: float | None = Field(default=None, ge=0)
    usd_per_million_output: float | None = Field(default=None, ge=0)
    batch_discount: float = Field(default=0.5, ge=0, le=1)

    def identity(self) -> JsonValue:
        """Return the model's name and the parameters that decide its answers."""
        # Which of its two names the limit is sent by does not change an answer.
        return {
            self.key: self.path,
            **{name: getattr(self, name) for name in ("temperature", "top_p", "seed", "extra", "structured")},
            "max_tokens": self.max_completion_tokens or self.max_tokens,
        }

    def load(self) -> LanguageModel:
        """Read the key from the environment; nothing is asked yet.

        Raises:
            ModelError: The hosted endpoint is meant and no key is in the environment.
        """
        return _Endpoint(self)

    def check_server(self) -> None:
        """Refuse an address that names no machine, or one where no server listens; nothing is sent.

        Raises:
            ModelError: There is no server.
        """
        address = urlsplit(self.base_url)
        if getproxies() or address.hostname is None:
            # Only the proxy may know the machine.
            return
        try:
            port = address.port or (443 if address.scheme == "https" else 80)
            socket.create_connection((address.hostname, port), timeout=5).close()
        except OSError as error:
            # A slow network is for the requests to wait for.
            if isinstance(error, ConnectionRefusedError) or error.errno == socket.EAI_NONAME:
                raise ModelError(
                    f"openai_server {self.path} at {self.base_url}: {error.strerror}; check base_url and that the server runs"
                ) from error

    def count_tokens(self, texts: Sequence[str]) -> int:
        """Estimate tokens from characters: the server's tokenizer is not known here."""
        return round(sum(map(len, texts)) / _CHARACTERS_PER_TOKEN)

    def price(self, tokens_in: float, tokens_out: float) -> float | None:
        """Return dollars, or None where the recipe gives no prices."""
        if self.usd_per_million_input is None or self.usd_per_million_output is None:
            return None
        usd = (tokens_in * self.usd_per_million_input + tokens_out * self.usd_per_million_output) / 1e6
        return usd * (1 - self.batch_discount) if self.batch else usd


class _Ceiling(NamedTuple):
    """What one request can cost at most."""

    tokens_in: int
    tokens_out: int
    usd: float | None


class _UnreadError(Exception):
    """A reply is no answer, though it may have been paid for; `asks_again` where another request may bring one."""

    def __init__(self, reason: str, cost: Spent, asks_again: bool = True) -> None:
        super().__init__(reason)
        self.cost, self.asks_again = cost, asks_again


class _Pace:
    """Spread requests, or tokens, evenly over each minute."""

    def __init__(self, per_minute: float | None) -> None:
        self.per_minute, self.free = per_minute, 0.0

    async def take(self, count: float) -> None:
        if self.per_minute is not None:
            present = time.monotonic()
            start = max(present, self.free)
            self.free = start + 60 * count / self.per_minute
            await asyncio.sleep(start - present)

    def give_back(self, count: float) -> None:
        """Return what was reserved and not used."""
        if self.per_minute is not None:
            self.free -= 60 * count / self.per_minute


class _Endpoint:
    """The language model that `OpenAIServer.load` returns."""

    def __init__(self, config: OpenAIServer) -> None:
        self.config, self.calls = config, current()
        self.secret = os.environ.get(config.api_key, "")
        if not self.secret and config.base_url == OPENAI:
            raise ModelError(
                f"openai_server {config.path}: set the environment variable {config.api_key} to a key for {OPENAI}, "
                "or give base_url for another endpoint"
            )
        self.requests, self.tokens = _Pace(config.requests_per_minute), _Pace(config.tokens_per_minute)
        self.pending: dict[str, asyncio.Future[Reply]] = {}
        self.failures = 0
        """Requests in a row that failed, over all rows."""
        by_newer_name = config.base_url == OPENAI or config.max_completion_tokens is not None
        self.limit_name = _LIMITS[1 if by_newer_name else 0]
        self.structured = config.structured
        """Whether schemas are sent; false once the endpoint refuses one."""
        self.ceilings: dict[str, _Ceiling] = {}
        """The ceiling of each request in a batch, by its key."""

    def converse(self, conversations: Sequence[Callable[[], Conversation[T]]]) -> list[T]:
        """Hold conversations, `concurrency` at a time, or as batches; see `LanguageModel`.

        Raises:
            ModelError: The endpoint cannot be used at all.
            BudgetError: The next call might cost more than is left.
        """
        self.ahead(conversations)
        return _run(self._converse(conversations))

    async def _converse(self, conversations: Sequence[Callable[[], Conversation[T]]]) -> list[T]:
        results: dict[int, T] = {}
        stopped: list[SeamcurateError] = []
        source = enumerate(conversations)
        self.pending = {}

        async def hold(ask: Callable[[Request], Awaitable[Reply]]) -> None:
            for number, start in source:
                conversation = start()
                try:
                    request = next(conversation)
                    # A stop waits for calls that are under way: they are paid for.
                    while not stopped:
                        request = conversation.send(await ask(request))
                    return
                except StopIteration as ended:
                    results[number] = ended.value
                except SeamcurateError as error:
                    stopped.append(error)
                    return

        async with self._client() as client:
            await asyncio.gather(
                *(hold(lambda request: self._answer(client, request)) for _ in range(self.config.concurrency))
            )
        if stopped:
            raise stopped[0]
        return [results[number] for number in range(len(conversations))]

    def _client(self) -> AsyncOpenAI:
        # The client refuses an empty key, and local servers need none.
        return connection.connect(
            self.config.timeout,
            base_url=self.config.base_url,
            api_key=self.secret or "none",
            max_retries=self.config.retries,
        )

    # ── one request ──────────────────────────────────────────────────────────────────────────────────────

    def _body(self, request: Request) -> dict[str, Any]:
        config = self.config
        body: dict[str, Any] = {
            "model": config.path,
            "messages": [{"role": turn["role"], "content": turn["content"]} for turn in request.messages],
        }
        if not any(name in config.extra for name in _LIMITS):
            body[self.limit_name] = config.max_completion_tokens or config.max_tokens
        for name in ("temperature", "top_p"):
            if (value := getattr(config, name)) is not None:
                body[name] = value
        if config.seed is not None:
            body["seed"] = config.seed + request.draw
        if request.schema is not None and self.structured:
            schema: JsonValue = {"name": "answer", "strict": True, "schema": request.schema}
            body["response_format"] = {"type": "json_schema", "json_schema": schema}
        return body

    def _key(self, request: Request, without_schema: bool = False) -> str:
        identity: JsonValue = self.config.identity()
        messages: JsonValue = [[turn["role"], turn["content"]] for turn in request.messages]
        schema = None if without_schema else request.schema
        return digest({"model": identity, "messages": messages, "schema": schema, "draw": request.draw})

    def _bought(self, request: Request, failed: bool) -> Reply | None:
        """Return the stored answer to a request, or to the same messages without a schema."""
        reply = self.calls.get(self._key(request), failed)
        if reply is None and request.schema is not None:
            reply = self.calls.get(self._key(request, without_schema=True))
        return reply

    def _size(self, request: Request) -> int:
        return self.config.count_tokens([turn["content"] for turn in request.messages])

    def _ceiling(self, request: Request) -> _Ceiling:
        """Return the most that a request can cost: no tokenizer makes more tokens than a text has bytes."""
        texts = [turn["content"] for turn in request.messages]
        if request.schema is not None and self.config.structured:
            texts.append(json.dumps(request.schema))
        # A chat template adds a few tokens around each message.
        tokens_in = sum(len(text.encode("utf-8", "replace")) + 16 for text in texts)
        extra = self.config.extra
        limits = [value for name in _LIMITS if isinstance(value := extra.get(name), int)]
        choices = extra.get("n")
        tokens_out = max(limits or [self.config.max_completion_tokens or self.config.max_tokens])
        tokens_out *= max(1, choices) if isinstance(choices, int) else 1
        return _Ceiling(tokens_in, tokens_out, self.config.price(tokens_in, tokens_out))

    async def _answer(self, client: AsyncOpenAI, request: Request) -> Reply:
        """Return the stored answer, wait for the same request where it is under way, or buy the answer."""
        key = self._key(request)
        if (reply := self._bought(request, failed=self.config.batch)) is not None:
            return reply
        if key in self.pending:
            return await asyncio.shield(self.pending[key])
        pending = self.pending[key] = asyncio.get_running_loop().create_future()
        try:
            reply = await self._buy(client, request, key)
            pending.set_result(reply)
            return reply
        except asyncio.CancelledError:
            pending.cancel()
            raise
        except BaseException as error:
            pending.set_exception(error)
            # Others that wait raise it too; reading it here keeps asyncio from warning where no one waits.
            pending.exception()
            raise

    async def _buy(self, client: AsyncOpenAI, request: Request, key: str) -> Reply:
        import openai

        size, ceiling = self._size(request), self._ceiling(request)
        limit_names = {self.limit_name}
        unreadable_count = broken_count = 0
        # A row may be at fault by itself; twice as many rows as are asked at once are not.
        failures_allowed = max(_IN_A_ROW, 2 * self.config.concurrency)
        while True:
            await self.requests.take(1)
            await self.tokens.take(size + ceiling.tokens_out)
            # Most of what is reserved for calls under way is given back when they arrive.
            while self.calls.must_wait(ceiling.usd):
                await asyncio.sleep(0.02)
            body = self._body(request)
            try:
                with self.calls.reserve(ceiling.usd):
                    raw = await client.chat.completions.with_raw_response.create(**body, extra_body=self.config.extra)
                    try:
                        reply, cost = self._received(raw.http_response, size, ceiling)
                    except _UnreadError as error:
                        self.calls.count(error.cost)
                        raise
                    self.calls.put(key, reply, cost)
                self.tokens.give_back(size + ceiling.tokens_out - cost.tokens_in - cost.tokens_out)
                self.failures = 0
                return reply
            except connection.BrokenError as error:
                self.calls.count(self._cost(None, size, ceiling))
                failure, broken_count = f"the endpoint answered with {error}", broken_count + 1
                if error.endless:
                    # A reply without end is never the row's fault, and each was paid for.
                    failures_allowed = _IN_A_ROW
                    break
                if broken_count > self.config.retries:
                    break
                await asyncio.sleep(random.uniform(0.75, 1) * min(8, 2 ** (broken_count - 2)))
            except _UnreadError as error:
                failure, unreadable_count = f"the endpoint answered with {error}", unreadable_count + 1
                if not error.asks_again or unreadable_count == _GARBLED:
                    break
                await asyncio.sleep(random.uniform(0.5, 1) * 2 ** (unreadable_count - 1) / 8)
            except openai.APITimeoutError:
                failure = f"no answer within {self.config.timeout:g} s, {self.config.retries + 1} times"
                break
            except openai.APIStatusError as error:
                if error.code == "content_filter":
                    reply = Reply("", "content_filter", self.config.path)
                    self.calls.put(key, reply, Spent(usd=self.config.price(0, 0)))
                    return reply
                if self._adapts(error, body, limit_names):
                    continue
                if error.status_code in (401, 403, 404, 429) or error.status_code < 400:
                    self._refuse(error)
                failure = self._error_line(error)
                break
            except openai.OpenAIError as error:
                self._refuse(error)
        self.failures += 1
        if self.failures >= failures_allowed:
            raise ModelError(
                f"openai_server {self.config.path}: {self.failures} requests in a row failed, the last one: {failure}; "
                "every answer is kept, run again to go on"
            )
        return Reply("", "", self.config.path, failure)

    def _adapts(self, error: APIStatusError, body: Mapping[str, object], limit_names: set[str]) -> bool:
        """Change the parameter that the endpoint refuses by name; return whether there was one to change."""
        if error.status_code not in (400, 422):
            return False
        model, message = f"openai_server {self.config.path}", self._without_key(f"{error} {error.param or ''}", 2000)
        if "response_format" in body and _ABOUT_SCHEMA.search(message):
            if self.structured:
                self.structured = False
                note(
                    f"{model}: it refuses a JSON schema ({self._error_line(error)}), and is asked without one from here on; "
                    "`structured: false` sends none from the start"
                )
            return True
        name = next((name for name in _LIMITS if name in body), None)
        if name is None or name not in message:
            return False
        (other_name,) = {*_LIMITS} - {name}
        if other_name in limit_names or not (other_name in message or _UNKNOWN.search(message)):
            return False
        limit_names.add(other_name)
        if self.limit_name != other_name:
            self.limit_name = other_name
            note(f"{model}: it refuses {name} ({self._error_line(error)}), and is sent {other_name} from here on")
        return True

    def _received(self, response: Any, size: int, ceiling: _Ceiling) -> tuple[Reply, Spent]:
        """Read a response; return the reply and what it cost."""
        if (reason := response.extensions.get(connection.BROKEN)) is not None:
            raise connection.BrokenError(reason, response.extensions[connection.ENDLESS])
        try:
            value = json.loads(response.content)
        except (ValueError, RecursionError):
            shown = repr(self._without_key(response.content[:40].decode("utf-8", "replace")))
            reason = f"{shown} where JSON was due" if response.content.strip() else "an empty body"
            raise _UnreadError(reason, self._cost(None, size, ceiling)) from None
        return self._checked(value, size, ceiling)

    def _checked(self, body: object, size: int, ceiling: _Ceiling) -> tuple[Reply, Spent]:
        """Read a completion; return the reply and what it cost.

        Raises:
            _UnreadError: It is no completion, or an error in the place of one.
        """
        cost = self._cost(body, size, ceiling, wire.text_of(body))
        try:
            text, finish, name = wire.completion(body, self._without_key)
        except wire.NoCompletionError as error:
            raise _UnreadError(str(error), cost, error.asks_again) from None
        return Reply(text, finish, name or self.config.path), cost

    def _cost(self, body: object, size: int, ceiling: _Ceiling, text: str | None = None) -> Spent:
        """Return what a reply cost: the tokens that it names, within the ceiling; tokens it does not name cost the ceiling."""
        tokens_in, tokens_out = wire.token_counts(body, ceiling.tokens_in, ceiling.tokens_out)
        usd = self.config.price(
            ceiling.tokens_in if tokens_in is None else tokens_in,
            ceiling.tokens_out if tokens_out is None else tokens_out,
        )
        # Tokens that are not named are estimated for reports, while dollars count at the ceiling.
        written = min(self.config.count_tokens([text or ""]), ceiling.tokens_out)
        return Spent(1, size if tokens_in is None else tokens_in, written if tokens_out is None else tokens_out, usd)

    def _error_line(self, error: OpenAIError) -> str:
        """Return an error's first line, without the key."""
        line = first_line(error)
        status = getattr(error, "status_code", None)
        body = getattr(error, "body", None)
        message = body.get("message") if isinstance(body, Mapping) else None
        return self._without_key(f"{status} {message or line!s}" if status else line)

    def _refuse(self, error: OpenAIError) -> NoReturn:
        """Raise errors that are not specific to this row."""
        import openai

        model_at_url = f"openai_server {self.config.path} at {self.config.base_url}"
        if isinstance(error, openai.APIStatusError) and error.status_code < 400:
            target = self._without_key(error.response.headers.get("location", "nowhere"))
            raise ModelError(
                f"{model_at_url}: {error.status_code}, it redirects to {target}, where nothing is sent; "
                "if that is the endpoint, write it as base_url"
            ) from error

        hints = {
            openai.AuthenticationError: f"put a valid key into {self.config.api_key}",
            openai.PermissionDeniedError: "ask for access to the model",
            openai.NotFoundError: "check the model's name and base_url",
            openai.RateLimitError: "wait, or lower concurrency and requests_per_minute; every answer is kept",
            openai.APIConnectionError: "check base_url and that the server runs; every answer is kept",
        }
        hint = next((hint for kind, hint in hints.items() if isinstance(error, kind)), "see the server's log")
        raise ModelError(f"{model_at_url}: {self._error_line(error)}; {hint}") from error

    # ── batches ──────────────────────────────────────────────────────────────────────────────────────────

    def ahead(self, conversations: Iterable[Callable[[], Conversation[T]]]) -> None:
        """Get the answer to every request of the conversations, one round of batches after another."""
        if self.config.batch:
            _run(self._ahead(conversations))

    async def _ahead(self, conversations: Iterable[Callable[[], Conversation[T]]]) -> None:
        async with self._client() as client:
            with self._refusing():
                if self._pending():
                    # The ceilings of what an earlier run submitted are computed again.
                    for start in conversations:
                        if (request := self._missing(start)) is not None:
                            self.ceilings[self._key(request)] = self._ceiling(request)
                    await self._collect(client)
                while await self._submit_missing(client, conversations):
                    await self._collect(client)

    async def _submit_missing(
        self, client: AsyncOpenAI, conversations: Iterable[Callable[[], Conversation[T]]]
    ) -> bool:
        """Submit the next request of each conversation whose answer is not stored; return whether there was one."""
        keys: set[str] = set()
        lines: dict[str, str] = {}
        size, cost = 0, 0.0
        with ExitStack() as reserved:

            async def submit() -> None:
                nonlocal lines, size, cost
                priced = self.config.price(1, 1) is not None
                reserved.enter_context(self.calls.reserve(cost if priced else None))
                await self._submit(client, lines)
                lines, size, cost = {}, 0, 0.0

            for start in conversations:
                request = self._missing(start)
                if request is None or (key := self._key(request)) in keys:
                    continue
                keys.add(key)
                body = self._body(request) | self.config.extra
                line = {"custom_id": key, "method": "POST", "url": "/v1/chat/completions", "body": body}
                text = json.dumps(line, ensure_ascii=False)
                if lines and (len(lines) == _BATCH_REQUESTS or size + len(text) > _BATCH_BYTES):
                    await submit()
                lines[key] = text
                size += len(text.encode())
                self.ceilings[key] = self._ceiling(request)
                cost += self.ceilings[key].usd or 0.0
            if lines:
                await submit()
        return bool(keys)

    def _missing(self, start: Callable[[], Conversation[T]]) -> Request | None:
        """Follow a conversation to the first request without an answer."""
        conversation = start()
        try:
            request = next(conversation)
            while (reply := self._bought(request, failed=True)) is not None:
                request = conversation.send(reply)
            return request
        except StopIteration:
            return None

    async def _submit(self, client: AsyncOpenAI, lines: Mapping[str, str]) -> None:
        tag = digest([*sorted(lines)])
        intent = _INTENDED + tag
        batch: Batch | None = None
        if intent in self.calls.batches():
            # A run that was killed between the two lines below may have submitted the batch.
            async for listed in client.batches.list():
                if (listed.metadata or {}).get("seamcurate") == tag:
                    batch = listed
                    break
        if batch is None:
            self.calls.submitted(intent, [])
            content = "\n".join(lines.values()).encode()
            file = await client.files.create(file=("seamcurate.jsonl", content), purpose="batch")
            batch = await client.batches.create(
                input_file_id=file.id,
                endpoint="/v1/chat/completions",
                completion_window="24h",
                metadata={"seamcurate": tag},
            )
            note(f"batch {batch.id}: {len(lines):,} requests submitted")
        self.calls.submitted(batch.id, list(lines))
        self.calls.collected(intent)

    def _pending(self) -> dict[str, list[str]]:
        return {batch: keys for batch, keys in self.calls.batches().items() if not batch.startswith(_INTENDED)}

    async def _collect(self, client: AsyncOpenAI) -> None:
        """Wait for every batch that was submitted, and store its answers."""
        waiting = self._pending()
        while waiting:
            for batch_id, keys in list(waiting.items()):
                batch = await client.batches.retrieve(batch_id)
                if batch.status in ("completed", "failed", "expired", "cancelled"):
                    await self._keep(client, batch, keys)
                    self.calls.collected(batch_id)
                    del waiting[batch_id]
            if waiting:
                await asyncio.sleep(self.config.poll_seconds)

    async def _keep(self, client: AsyncOpenAI, batch: Batch, keys: Sequence[str]) -> None:
        missing = set(keys)
        for file in filter(None, (batch.output_file_id, batch.error_file_id)):
            await self._keep_file(client, batch, file, missing)
        errors = batch.errors.data if batch.errors and batch.errors.data else []
        if batch.status == "failed" and len(missing) == len(keys):
            self.calls.collected(batch.id)
            reason = self._without_key(errors[0].message or "") if errors else "no reason given"
            raise ModelError(
                f"openai_server {self.config.path}: batch {batch.id} was refused: {reason}; run again to retry"
            )
        for key in missing:
            failure = f"batch {batch.id} ended as {batch.status} without an answer to it"
            self.calls.put(key, Reply("", "", self.config.path, failure), Spent(usd=self.config.price(0, 0)))

    async def _keep_file(self, client: AsyncOpenAI, batch: Batch, file: str, missing: set[str]) -> None:
        """Store the answers of a batch's file as it arrives; start the download again where it breaks off."""
        for attempt in range(self.config.retries + 1):
            try:
                async with client.files.with_streaming_response.content(file) as response:
                    async for line in connection.lines(response.http_response, self.config.timeout, len(missing)):
                        if line.strip():
                            missing.discard(self._keep_line(line, missing))
                return
            except connection.BrokenError as error:
                if error.endless or attempt == self.config.retries:
                    raise ModelError(
                        f"openai_server {self.config.path}: batch {batch.id}: its file {file} came as {error}; "
                        "what arrived is kept, run again to go on"
                    ) from error

    def _keep_line(self, line: str, keys: set[str]) -> str:
        """Store one line's answer, or the reason why there is none; return the request's key."""
        try:
            value = json.loads(line)
            key, response, error = str(value["custom_id"]), value.get("response") or {}, value.get("error")
        except (ValueError, KeyError, TypeError, AttributeError):
            return ""
        if key not in keys:
            return ""
        ceiling = self.ceilings.get(
            key, _Ceiling(_OTHERS_PROMPT, self.config.max_completion_tokens or self.config.max_tokens, None)
        )
        try:
            if error or response.get("status_code") != 200:
                body = response.get("body")
                error_object = error or (body.get("error") if isinstance(body, Mapping) else None)
                words = error_object.get("message") if isinstance(error_object, Mapping) else error_object
                message = self._without_key(f"{response.get('status_code') or ''} {words}".strip())
                raise _UnreadError(message + self._option(message), Spent(usd=self.config.price(0, 0)))
            reply, cost = self._checked(response.get("body"), 0, ceiling)
        except _UnreadError as error_in_line:
            reply, cost = Reply("", "", self.config.path, str(error_in_line)), error_in_line.cost
        self.calls.put(key, reply, cost)
        return key

    def _option(self, message: str) -> str:
        """Name the option that avoids a refusal: in a batch, nothing can be tried out."""
        if self.config.structured and _ABOUT_SCHEMA.search(message):
            return "; set `structured: false`"
        if self.limit_name == _LIMITS[0] and _LIMITS[1] in message:
            return "; set `max_completion_tokens` in place of `max_tokens`"
        return ""

    def _without_key(self, text: str, limit: int = 300) -> str:
        """Return a server's words in one line, without the key, which some servers repeat."""
        return connection.without_key(text, self.secret, limit)

    @contextmanager
    def _refusing(self) -> Iterator[None]:
        import openai

        try:
            yield
        except openai.OpenAIError as error:
            self._refuse(error)


def _run(coroutine: Coroutine[Any, Any, T]) -> T:
    try:
        asyncio.get_running_loop()
    except RuntimeError:
        return asyncio.run(coroutine)
    # In a notebook a loop runs already, and a thread can have only one: the coroutine gets a thread of its own.
    with ThreadPoolExecutor(1) as thread:
        return thread.submit(asyncio.run, coroutine).result()
