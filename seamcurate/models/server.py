"""A language model behind any OpenAI-compatible endpoint: hosted, vLLM, SGLang, llama.cpp.

Servers differ, and some ignore what they are asked for without a word: what comes back is checked, never assumed.
Requests that fail are repeated by the `openai` client, which waits as long as the server says; what still fails is
the row's reason, unless it is the endpoint's own fault, which stops the run with everything answered kept.
"""

from __future__ import annotations

import asyncio
import json
import os
import random
import time
from collections.abc import Awaitable, Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from typing import TYPE_CHECKING, Any, ClassVar, NoReturn, TypeVar

from pydantic import BaseModel, ConfigDict, Field, JsonValue, ValidationError, field_validator

from seamcurate.errors import ModelError, SeamcurateError
from seamcurate.models.backend import Backend
from seamcurate.models.calls import Spent, current
from seamcurate.models.protocols import Conversation, LanguageModel, Reply, Request
from seamcurate.progress import note
from seamcurate.step import digest

if TYPE_CHECKING:
    from openai import AsyncOpenAI, OpenAI, OpenAIError
    from openai.types import Batch

T = TypeVar("T")

OPENAI = "https://api.openai.com/v1"
_LONGEST = 1_000_000
"""Characters of an answer that are kept; no model was asked for as many."""
_GARBLED = 5
"""Times that something other than a completion may come back before the row is set aside: it may have been paid for."""
_CHARACTERS_PER_TOKEN = 4.0
_BATCH_REQUESTS, _BATCH_BYTES = 50_000, 150_000_000
"""What one batch may hold, by OpenAI's limits of 50,000 requests and 200 MB."""
_INTENDED = "intended-"


class OpenAIServer(Backend):
    """A model as an endpoint serves it, by its name there."""

    key: ClassVar[str] = "openai_server"

    base_url: str = OPENAI
    """Where it answers. Not part of a fingerprint: an answer is kept by the model's name."""
    api_key: str = "OPENAI_API_KEY"
    """The *name* of the environment variable that holds the key; without one none is sent."""
    temperature: float | None = Field(default=None, ge=0)
    top_p: float | None = Field(default=None, gt=0, le=1)
    seed: int | None = None
    max_tokens: int = Field(default=4096, ge=1)
    """Tokens of one answer at most."""
    extra: dict[str, JsonValue] = Field(default_factory=dict)
    """Further keys of the request's body, such as `reasoning_effort`."""
    structured: bool = True
    """Send the JSON schema of the answer; for servers that refuse one, false."""
    concurrency: int = Field(default=16, ge=1)
    requests_per_minute: float | None = Field(default=None, gt=0)
    tokens_per_minute: float | None = Field(default=None, gt=0)
    timeout: float = Field(default=120, gt=0)
    """Seconds without a byte from the server after which a request is repeated."""
    retries: int = Field(default=8, ge=0)
    batch: bool = False
    """Ask through the Batch API: for half the price, within a day."""
    poll_seconds: float = Field(default=60, gt=0)
    """How often a batch is asked after."""
    usd_per_million_input: float | None = Field(default=None, ge=0)
    usd_per_million_output: float | None = Field(default=None, ge=0)
    batch_discount: float = Field(default=0.5, ge=0, le=1)

    @field_validator("base_url")
    @classmethod
    def _no_secret(cls, url: str) -> str:
        if not url.startswith(("http://", "https://")) or "@" in url or "?" in url:
            raise ValueError("base_url is http(s)://host/path; a key belongs into the environment, see `api_key`")
        return url.rstrip("/")

    @field_validator("api_key")
    @classmethod
    def _a_name(cls, name: str) -> str:
        # Not repeated in the message: it may be the key itself.
        if not name.replace("_", "a").isalnum() or len(name) > 64 or name != name.upper():
            raise ValueError("api_key is the NAME of an environment variable in capitals, never the key")
        return name

    def identity(self) -> JsonValue:
        """Return the model's name and the parameters that decide its answers."""
        return {
            self.key: self.path,
            **{
                name: getattr(self, name)
                for name in ("temperature", "top_p", "seed", "max_tokens", "extra", "structured")
            },
        }

    def load(self) -> LanguageModel:
        """Get ready to ask; nothing is asked yet.

        Raises:
            ModelError: The hosted endpoint is meant and no key is in the environment.
        """
        return _Endpoint(self)

    def count_tokens(self, texts: Sequence[str]) -> int:
        """Guess: nobody here has the server's tokenizer."""
        return round(sum(map(len, texts)) / _CHARACTERS_PER_TOKEN)

    def price(self, tokens_in: float, tokens_out: float) -> float | None:
        """Return dollars, or None where the recipe gives no prices."""
        if self.usd_per_million_input is None or self.usd_per_million_output is None:
            return None
        usd = (tokens_in * self.usd_per_million_input + tokens_out * self.usd_per_million_output) / 1e6
        return usd * (1 - self.batch_discount) if self.batch else usd


class _Message(BaseModel):
    content: str | None = None
    refusal: str | None = None


class _Choice(BaseModel):
    message: _Message
    finish_reason: str | None = None


class _Usage(BaseModel):
    prompt_tokens: int = 0
    completion_tokens: int = 0


class _Completion(BaseModel):
    """What of a completion is read; anything else may be there."""

    model_config = ConfigDict(extra="ignore")

    choices: list[_Choice] = Field(min_length=1)
    model: str | None = None
    usage: _Usage | None = None


class _Garbled(Exception):
    """What came back is no completion."""


class _Pace:
    """Let so much through a minute, evenly."""

    def __init__(self, per_minute: float | None) -> None:
        self.per_minute, self.free = per_minute, 0.0

    async def take(self, amount: float) -> None:
        if self.per_minute is not None:
            now = time.monotonic()
            start = max(now, self.free)
            self.free = start + 60 * amount / self.per_minute
            await asyncio.sleep(start - now)

    def give_back(self, amount: float) -> None:
        """Take less after all."""
        if self.per_minute is not None:
            self.free -= 60 * amount / self.per_minute


class _Endpoint:
    """What `OpenAIServer.load` returns."""

    def __init__(self, config: OpenAIServer) -> None:
        self.config, self.calls = config, current()
        self.secret = os.environ.get(config.api_key, "")
        if not self.secret and config.base_url == OPENAI:
            raise ModelError(
                f"openai_server {config.path}: set the environment variable {config.api_key} to a key for {OPENAI}, "
                "or give base_url for another endpoint"
            )
        self.requests, self.tokens = _Pace(config.requests_per_minute), _Pace(config.tokens_per_minute)
        self.in_the_air: dict[str, asyncio.Future[Reply]] = {}
        self.failures = 0
        """In a row, whatever the row."""

    def converse(self, conversations: Sequence[Callable[[], Conversation[T]]]) -> list[T]:
        """Hold conversations, `concurrency` at a time, or as batches; see `LanguageModel`.

        Raises:
            ModelError: The endpoint cannot be used at all.
            BudgetError: The next call might cost more than is left.
        """
        self.ahead(conversations)
        try:
            asyncio.get_running_loop()
        except RuntimeError:
            return asyncio.run(self._converse(conversations))
        # In a notebook a loop is running already, and there is one a thread.
        with ThreadPoolExecutor(1) as thread:
            return thread.submit(lambda: asyncio.run(self._converse(conversations))).result()

    async def _converse(self, conversations: Sequence[Callable[[], Conversation[T]]]) -> list[T]:
        from openai import AsyncOpenAI

        found: dict[int, T] = {}
        stopped: list[SeamcurateError] = []
        source = enumerate(conversations)
        self.in_the_air = {}

        async def hold(ask: Callable[[Request], Awaitable[Reply]]) -> None:
            for number, start in source:
                conversation = start()
                try:
                    request = next(conversation)
                    # A stop lets calls in the air arrive: they are paid for.
                    while not stopped:
                        request = conversation.send(await ask(request))
                    return
                except StopIteration as ended:
                    found[number] = ended.value
                except SeamcurateError as error:
                    stopped.append(error)
                    return

        async with AsyncOpenAI(**self._options()) as client:
            await asyncio.gather(
                *(hold(lambda request: self._answer(client, request)) for _ in range(self.config.concurrency))
            )
        if stopped:
            raise stopped[0]
        return [found[number] for number in range(len(conversations))]

    def _options(self) -> dict[str, Any]:
        # An empty key is refused by the client, and local servers want none.
        return {
            "base_url": self.config.base_url,
            "api_key": self.secret or "none",
            "timeout": self.config.timeout,
            "max_retries": self.config.retries,
        }

    # ── one request ──────────────────────────────────────────────────────────────────────────────────────

    def _body(self, request: Request) -> dict[str, Any]:
        config = self.config
        # OpenAI's newer models take the limit by this name alone, others know only the older one.
        limit = "max_completion_tokens" if config.base_url == OPENAI else "max_tokens"
        body: dict[str, Any] = {
            "model": config.path,
            "messages": [{"role": turn["role"], "content": turn["content"]} for turn in request.messages],
            limit: config.max_tokens,
        }
        for name in ("temperature", "top_p"):
            if (value := getattr(config, name)) is not None:
                body[name] = value
        if config.seed is not None:
            body["seed"] = config.seed + request.draw
        if request.schema is not None and config.structured:
            schema: JsonValue = {"name": "answer", "strict": True, "schema": request.schema}
            body["response_format"] = {"type": "json_schema", "json_schema": schema}
        return body

    def _key(self, request: Request) -> str:
        identity: JsonValue = self.config.identity()
        messages: JsonValue = [[turn["role"], turn["content"]] for turn in request.messages]
        return digest({"model": identity, "messages": messages, "schema": request.schema, "draw": request.draw})

    def _size(self, request: Request) -> int:
        return self.config.count_tokens([turn["content"] for turn in request.messages])

    async def _answer(self, client: AsyncOpenAI, request: Request) -> Reply:
        """Return a kept answer, wait for the same request already made, or buy it."""
        key = self._key(request)
        if (there := self.calls.get(key, failed=self.config.batch)) is not None:
            return there
        if key in self.in_the_air:
            return await asyncio.shield(self.in_the_air[key])
        coming = self.in_the_air[key] = asyncio.get_running_loop().create_future()
        try:
            reply = await self._buy(client, request, key)
            coming.set_result(reply)
            return reply
        except asyncio.CancelledError:
            coming.cancel()
            raise
        except BaseException as error:
            coming.set_exception(error)
            # Whoever waits raises it too; nobody need.
            coming.exception()
            raise

    async def _buy(self, client: AsyncOpenAI, request: Request, key: str) -> Reply:
        import openai

        size = self._size(request)
        failure = ""
        for attempt in range(_GARBLED):
            await self.requests.take(1)
            await self.tokens.take(size + self.config.max_tokens)
            most = self.config.price(size, self.config.max_tokens)
            # What is held back for calls in the air is mostly given back.
            while self.calls.must_wait(most):
                await asyncio.sleep(0.02)
            try:
                with self.calls.reserve(most):
                    raw = await client.chat.completions.with_raw_response.create(
                        **self._body(request), extra_body=self.config.extra
                    )
                    reply, cost = self._read(raw.http_response.content, size)
                    self.calls.put(key, reply, cost)
                self.tokens.give_back(size + self.config.max_tokens - cost.tokens_in - cost.tokens_out)
                self.failures = 0
                return reply
            except _Garbled as garbled:
                failure = f"the endpoint answered with {garbled}"
                await asyncio.sleep(random.uniform(0.5, 1) * 2**attempt / 8)
            except openai.APITimeoutError:
                failure = f"no answer within {self.config.timeout:g} s, {self.config.retries + 1} times"
                break
            except openai.APIStatusError as error:
                if error.code == "content_filter":
                    reply = Reply("", "content_filter", self.config.path)
                    self.calls.put(key, reply, Spent(usd=self.config.price(0, 0)))
                    return reply
                if error.status_code in (401, 403, 404, 429):
                    self._refuse(error)
                failure = self._said(error)
                break
            except openai.OpenAIError as error:
                self._refuse(error)
        self.failures += 1
        # One row may be at fault; as many in a row as are asked at once are not.
        if self.failures >= max(8, 2 * self.config.concurrency):
            raise ModelError(
                f"openai_server {self.config.path}: {self.failures} requests in a row failed, the last one: {failure}; "
                "every answer is kept, run again to go on"
            )
        return Reply("", "", self.config.path, failure)

    def _read(self, content: bytes, size: int) -> tuple[Reply, Spent]:
        """Take a completion apart, believing nothing of it."""
        try:
            value = json.loads(content)
        except (ValueError, RecursionError):
            shown = repr(content[:40].decode("utf-8", "replace"))
            raise _Garbled(f"{shown} where JSON was due" if content.strip() else "an empty body") from None
        return self._checked(value, size)

    def _checked(self, value: object, size: int) -> tuple[Reply, Spent]:
        try:
            completion = _Completion.model_validate(value)
        except ValidationError as error:
            place = ".".join(str(part) for part in error.errors()[0]["loc"])
            raise _Garbled(f"no completion: {place or 'it'} {error.errors()[0]['msg'].lower()}") from None
        choice = completion.choices[0]
        content = choice.message.content or ""
        finish = choice.finish_reason or "stop"
        if choice.message.refusal:
            content, finish = choice.message.refusal, "refusal"
        if len(content) > _LONGEST:
            content, finish = content[:_LONGEST], "length"
        # A lone half of a surrogate pair is no text, and no file would take it.
        content = content.encode("utf-8", "replace").decode()
        usage = completion.usage or _Usage(
            prompt_tokens=size, completion_tokens=self.config.count_tokens([choice.message.content or ""])
        )
        usd = self.config.price(usage.prompt_tokens, usage.completion_tokens)
        cost = Spent(1, usage.prompt_tokens, usage.completion_tokens, usd)
        return Reply(content, finish, completion.model or self.config.path), cost

    def _said(self, error: OpenAIError) -> str:
        """Return an error's first line without the key, which some servers repeat."""
        lines = str(error).strip().splitlines() or [type(error).__name__]
        status = getattr(error, "status_code", None)
        body = getattr(error, "body", None)
        told = body.get("message") if isinstance(body, Mapping) else None
        text = f"{status} {told or lines[0]!s}" if status else lines[0]
        return (text.replace(self.secret, "…") if self.secret else text)[:300]

    def _refuse(self, error: OpenAIError) -> NoReturn:
        """Raise what no other row would fare better with."""
        import openai

        cures = {
            openai.AuthenticationError: f"put a valid key into {self.config.api_key}",
            openai.PermissionDeniedError: "ask for access to the model",
            openai.NotFoundError: "check the model's name and base_url",
            openai.RateLimitError: "wait, or lower concurrency and requests_per_minute; every answer is kept",
            openai.APIConnectionError: "check base_url and that the server runs; every answer is kept",
        }
        cure = next((cure for kind, cure in cures.items() if isinstance(error, kind)), "see the server's log")
        where = f"openai_server {self.config.path} at {self.config.base_url}"
        raise ModelError(f"{where}: {self._said(error)}; {cure}") from error

    # ── batches ──────────────────────────────────────────────────────────────────────────────────────────

    def ahead(self, conversations: Iterable[Callable[[], Conversation[T]]]) -> None:
        """Have every request answered that the conversations come to, a round of batches after another."""
        if not self.config.batch:
            return
        from openai import OpenAI

        with OpenAI(**self._options()) as client, self._told():
            self._collect(client)
            while self._submit_missing(client, conversations):
                self._collect(client)

    def _submit_missing(self, client: OpenAI, conversations: Iterable[Callable[[], Conversation[T]]]) -> bool:
        """Submit what is not kept yet; tells whether there was anything."""
        asked: set[str] = set()
        part: dict[str, str] = {}
        size, cost = 0, 0.0
        with ExitStack() as reserved:

            def submit() -> None:
                nonlocal part, size, cost
                priced = self.config.price(1, 1) is not None
                reserved.enter_context(self.calls.reserve(cost if priced else None))
                self._submit(client, part)
                part, size, cost = {}, 0, 0.0

            for start in conversations:
                request = self._missing(start)
                if request is None or (key := self._key(request)) in asked:
                    continue
                asked.add(key)
                body = self._body(request) | self.config.extra
                line = {"custom_id": key, "method": "POST", "url": "/v1/chat/completions", "body": body}
                text = json.dumps(line, ensure_ascii=False)
                if part and (len(part) == _BATCH_REQUESTS or size + len(text) > _BATCH_BYTES):
                    submit()
                part[key] = text
                size += len(text.encode())
                cost += self.config.price(self._size(request), self.config.max_tokens) or 0.0
            if part:
                submit()
        return bool(asked)

    def _missing(self, start: Callable[[], Conversation[T]]) -> Request | None:
        """Follow a conversation to the first request without an answer."""
        conversation = start()
        try:
            request = next(conversation)
            while (reply := self.calls.get(self._key(request), failed=True)) is not None:
                request = conversation.send(reply)
            return request
        except StopIteration:
            return None

    def _submit(self, client: OpenAI, lines: Mapping[str, str]) -> None:
        tag = digest([*sorted(lines)])
        intent = _INTENDED + tag
        made: Batch | None = None
        if intent in self.calls.batches():
            # A run that was killed here may have submitted it.
            made = next((one for one in client.batches.list() if (one.metadata or {}).get("seamcurate") == tag), None)
        if made is None:
            self.calls.submitted(intent, [])
            content = "\n".join(lines.values()).encode()
            file = client.files.create(file=("seamcurate.jsonl", content), purpose="batch")
            made = client.batches.create(
                input_file_id=file.id,
                endpoint="/v1/chat/completions",
                completion_window="24h",
                metadata={"seamcurate": tag},
            )
            note(f"batch {made.id}: {len(lines):,} requests submitted")
        self.calls.submitted(made.id, list(lines))
        self.calls.collected(intent)

    def _collect(self, client: OpenAI) -> None:
        """Wait for every batch that was submitted and keep its answers."""
        waiting = {one: keys for one, keys in self.calls.batches().items() if not one.startswith(_INTENDED)}
        while waiting:
            for one, keys in list(waiting.items()):
                batch = client.batches.retrieve(one)
                if batch.status in ("completed", "failed", "expired", "cancelled"):
                    self._keep(client, batch, keys)
                    self.calls.collected(one)
                    del waiting[one]
            if waiting:
                time.sleep(self.config.poll_seconds)

    def _keep(self, client: OpenAI, batch: Batch, keys: Sequence[str]) -> None:
        left = set(keys)
        for file in (batch.output_file_id, batch.error_file_id):
            # Not splitlines: JSON may hold other ends of a line than this one.
            for line in client.files.content(file).text.split("\n") if file else ():
                if line.strip():
                    left.discard(self._keep_line(line, left))
        errors = batch.errors.data if batch.errors and batch.errors.data else []
        if batch.status == "failed" and len(left) == len(keys):
            self.calls.collected(batch.id)
            why = self._hidden(errors[0].message or "") if errors else "no reason given"
            raise ModelError(
                f"openai_server {self.config.path}: batch {batch.id} was refused: {why}; run again to retry"
            )
        for key in left:
            failure = f"batch {batch.id} ended as {batch.status} without an answer to it"
            self.calls.put(key, Reply("", "", self.config.path, failure), Spent(usd=self.config.price(0, 0)))

    def _keep_line(self, line: str, wanted: set[str]) -> str:
        """Keep one line's answer, or why there is none; returns whose it is."""
        try:
            value = json.loads(line)
            key, response, error = str(value["custom_id"]), value.get("response") or {}, value.get("error")
        except (ValueError, KeyError, TypeError, AttributeError):
            return ""
        if key not in wanted:
            return ""
        try:
            if error or response.get("status_code") != 200:
                body = response.get("body")
                told = error or (body.get("error") if isinstance(body, Mapping) else None)
                message = told.get("message") if isinstance(told, Mapping) else told
                raise _Garbled(self._hidden(f"{response.get('status_code') or ''} {message}".strip()))
            reply, cost = self._checked(response.get("body"), 0)
        except _Garbled as garbled:
            reply, cost = Reply("", "", self.config.path, str(garbled)), Spent(usd=self.config.price(0, 0))
        self.calls.put(key, reply, cost)
        return key

    def _hidden(self, text: str) -> str:
        return (text.replace(self.secret, "…") if self.secret else text)[:300]

    @contextmanager
    def _told(self) -> Iterator[None]:
        import openai

        try:
            yield
        except openai.OpenAIError as error:
            self._refuse(error)
