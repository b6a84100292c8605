"""Policies behind a server: the log-probabilities of given answers, by vLLM's `/v1/completions` or SGLang's `/generate`.

One rule: token ids are sent, exactly those that a local policy reads, so that no server adds a second BOS or a template of its
own; and each value that comes back is checked to be of the token that was asked for.
"""

from __future__ import annotations

import math
import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import ClassVar, Literal, NamedTuple, TypeAlias

from pydantic import Field, JsonValue

from seamcurate.errors import ModelError
from seamcurate.models import probe, tokens, weights
from seamcurate.models.causal_lm import CausalLM
from seamcurate.models.distinct import distinct
from seamcurate.models.endpoint import Address
from seamcurate.models.local import model_errors
from seamcurate.models.protocols import Likelihood, Policy, Prompt, Responses, Sampler
from seamcurate.models.scoring_client import Post, RefusedError, ScoringClient, UnreadError
from seamcurate.models.served import ServedText, listed_models, listed_window
from seamcurate.models.served_sampling import SAMPLING_APIS, ServedSampler
from seamcurate.progress import note
from seamcurate.text import counted

_LOOKS = 2
"""How often a first look at a server is repeated."""
_PROBE = ("What is a set?", "A collection of distinct things.")
"""What a server is asked first: until a request was answered, any failure is the server's."""
_LACKS = "log-probabilities of given answers"
"""What llama.cpp's server does not give."""
_MINUS_INFINITY = -9999.0
"""What vLLM writes for the logarithm of 0, which JSON has no number for."""
_ABOVE_ZERO = 1e-3
"""By how much rounding may lift a log-probability above 0."""


class CompletionServer(ServedText[CausalLM]):
    """Name a policy behind a server: vLLM or SGLang.

    `path` is the server's address. The value is frozen and asks nothing until a step runs. Prompts and answers become tokens
    here, as those of `CausalLM` do, and token ids are sent. Before the server scores a column, some rows are scored by it and
    by the same weights here: see `same_as`. llama.cpp's server gives no log-probabilities of given answers.

    Raises:
        ModelError: By `load`, where the server is not there, speaks another API, or serves another model.

    Example:
        >>> from seamcurate import CompletionServer
        >>> policy = CompletionServer(path="http://127.0.0.1:8000", api="vllm", model="org/sft")
        >>> policy.title
        'completion_server org/sft'
        >>> policy.load().logprobs(["What is a set?"], [["A collection."]])  # doctest: +SKIP
        [[Likelihood(logprob=-9.1, tokens=4, boundary=False)]]
    """

    key: ClassVar[str] = "completion_server"
    local_kind: ClassVar[type[CausalLM]] = CausalLM
    of_local: ClassVar[tuple[str, ...]] = ("form", "template", "date", "max_response_tokens")

    path: Address
    """The server's address, such as `http://127.0.0.1:8000`, without the API's own path. Not part of a fingerprint."""
    api: Literal["vllm", "sglang"]
    """What the server speaks: `vllm` is /v1/completions with prompt_logprobs, `sglang` /generate with input_ids."""
    max_response_tokens: int = Field(default=512, ge=1)
    """Longer responses are cut to this length and scored without the end-of-sequence token."""
    concurrency: int = Field(default=32, ge=1)
    """Requests that are under way at once, one for each response."""
    tokens_under_way: int = Field(default=16_384, ge=1)
    """Tokens that are under way at once: a server holds the logits of all of them, and some run out of memory by that."""

    def identity(self) -> JsonValue:
        """Return what decides a likelihood: the API, the weights that the server was shown to have, and the texts."""
        identity: dict[str, JsonValue] = {self.key: self.api, **self.weights_identity()}
        if self.same_as == "itself":
            texts = self.texts()
            identity |= {"tokens": tokens.REVISION, "tokenizer": weights.small_identity(texts.origin)}
            settings = texts.model_dump(mode="json")
            identity |= {name: settings[name] for name in self.of_local if settings[name] is not None}
        return identity

    def check_server(self) -> None:
        """Refuse a server that is not there or serves another model; nothing is scored."""
        _window(self)

    def load(self) -> Policy:
        """Open the tokenizer, and ask the server for its model and for one likelihood."""
        return _Asked(self)

    def load_sampler(self) -> Sampler:
        """Return the policy asking the server for answers of its own: tokens of prompts are sent, one request a draw.

        A draw's log-probability is None where the server does not give it: at temperatures other than 0 and 1, and at any where
        the server's log-probabilities are others than those it scores with.

        Example:
            >>> from seamcurate.models import Sampling
            >>> policy = CompletionServer(path="http://127.0.0.1:8000", api="vllm", model="org/sft")
            >>> list(policy.load_sampler().samples([("What is a set?", [0])], Sampling(max_tokens=8)))  # doctest: +SKIP
            [(0, 0, Sample(text='A collection.', tokens=4, finish='stop', logprob=-9.1, logprob_1=-9.1))]

        Raises:
            ModelError: The server is not there, speaks another API, or serves another model.
        """
        asked = _Asked(self)
        ends = {*weights.answer_ends(self.texts().origin), asked.tokenizer.eos_token_id, asked.form.end} - {None}
        # One more than scoring has: the token that it lets the server generate.
        return ServedSampler(asked, SAMPLING_APIS[self.api], self.model, ends, asked.window + 1, self.tokens_under_way)

    def load_uncached(self) -> Policy | None:
        """Return the model asking without the server's prefix cache."""
        return _Asked(self, cached=False)


# ── what servers speak ──────────────────────────────────────────────────────────────────────────────────


class _Asks(NamedTuple):
    """One sequence on its way."""

    ids: list[int]
    """Of prompt and response."""
    start: int
    """Where the response starts."""


_Values: TypeAlias = list[tuple[object, object]]
"""The log-probability of each token of a response, with the id that the server gives for the token."""


class _Api(NamedTuple):
    """How one kind of server is asked."""

    path: str
    body: Callable[[str, _Asks, bool], dict[str, JsonValue]]
    """(model, sequence, cached) → the request."""
    values: Callable[[Mapping[str, JsonValue], _Asks], _Values]
    """(reply, sequence) → its values."""
    hint: str
    """How such a server is started."""


def _vllm_body(model: str, asks: _Asks, cached: bool) -> dict[str, JsonValue]:
    body: dict[str, JsonValue] = {
        "model": model,
        "prompt": list(asks.ids),
        # 0 further tokens at each position: those of the top k cost vLLM more than the rest of the work.
        "prompt_logprobs": 0,
        "max_tokens": 1,
        "temperature": 0,
        "add_special_tokens": False,
    }
    return body if cached else {**body, "cache_salt": uuid.uuid4().hex}


def _vllm_values(reply: Mapping[str, JsonValue], asks: _Asks) -> _Values:
    choices = reply.get("choices")
    choice = choices[0] if isinstance(choices, list) and len(choices) == 1 else None
    positions = choice.get("prompt_logprobs") if isinstance(choice, Mapping) else None
    if not isinstance(positions, list):
        raise UnreadError("no prompt_logprobs")
    if len(positions) != len(asks.ids):
        raise UnreadError(f"log-probabilities of {len(positions):,} tokens for {len(asks.ids):,}")
    values: _Values = []
    for position, token in zip(positions[asks.start :], asks.ids[asks.start :], strict=True):
        entries = position if isinstance(position, Mapping) else {}
        # A position may hold the likeliest token beside the one that was asked for.
        name = str(token) if str(token) in entries or not entries else next(iter(entries))
        entry = entries.get(name)
        values.append((entry.get("logprob") if isinstance(entry, Mapping) else None, int(name) if entries else token))
    return values


def _sglang_body(model: str, asks: _Asks, cached: bool) -> dict[str, JsonValue]:
    body: dict[str, JsonValue] = {
        "input_ids": list(asks.ids),
        "sampling_params": {"max_new_tokens": 1, "temperature": 0},
        "return_logprob": True,
        # The first position that is asked for comes without a value: it is the prompt's last token.
        "logprob_start_len": asks.start - 1,
        "top_logprobs_num": 0,
        "return_text_in_logprobs": False,
        "stream": False,
    }
    return body if cached else {**body, "extra_key": uuid.uuid4().hex}


def _sglang_values(reply: Mapping[str, JsonValue], asks: _Asks) -> _Values:
    meta = reply.get("meta_info")
    positions = meta.get("input_token_logprobs") if isinstance(meta, Mapping) else None
    if not isinstance(positions, list):
        raise UnreadError("no input_token_logprobs")
    expected = len(asks.ids) - asks.start + 1
    if len(positions) != expected:
        raise UnreadError(f"log-probabilities of {len(positions) - 1:,} tokens for {expected - 1:,}")
    pairs = [tuple(entry[:2]) if isinstance(entry, list) and len(entry) >= 2 else (None, None) for entry in positions]
    return [(value, token) for value, token in pairs[1:]]


_APIS: dict[str, _Api] = {
    "vllm": _Api(
        "/v1/completions", _vllm_body, _vllm_values, "start vLLM with `vllm serve MODEL` on a causal language model"
    ),
    "sglang": _Api(
        "/generate",
        _sglang_body,
        _sglang_values,
        "start SGLang with `python -m sglang.launch_server --model-path MODEL`",
    ),
}
"""The servers that are known, by `api`. To add one, add a row."""


def _window(config: CompletionServer) -> int | None:
    """Refuse a server that is not there or does not have the model; return the window it reads, where it says so."""
    # Nothing is lost yet: a server that does not answer at once is told of at once.
    settings = config.model_copy(update={"retries": min(config.retries, _LOOKS)})
    return listed_window(ScoringClient(config.title, config.path, settings), config.model, config.api, _LACKS)


def served_at(address: str) -> CompletionServer:
    """Return the policy that the server at an address serves, by what it lists; it is held against itself.

    Raises:
        ModelError: The server is not there, is neither vLLM nor SGLang, or serves no model or several.
    """
    anything = CompletionServer(path=address, api="vllm", model="?", same_as="itself", retries=_LOOKS)
    listed = listed_models(ScoringClient("policy", anything.path, anything)) or {}
    owners = {str(entry.get("owned_by")) for entry in listed.values()}
    if len(listed) != 1 or not owners <= {"vllm", "sglang"}:
        shown = ", ".join(sorted(listed))[:200] or "no model"
        raise ModelError(
            f"policy at {address}: it lists {shown}, so that its address alone does not say enough; name it in a YAML file, as "
            f"`{{completion_server: {address}, api: vllm, model: NAME}}`, and give that file"
        )
    [(model, entry)] = listed.items()
    # vLLM serves weights under another name, and says where they are from.
    root = entry.get("root")
    tokenizer = root if isinstance(root, str) and root != model else None
    return CompletionServer(
        path=address,
        api="sglang" if owners == {"sglang"} else "vllm",
        model=model,
        same_as="itself",
        tokenizer=tokenizer,
    )


# ── asking ──────────────────────────────────────────────────────────────────────────────────────────────


class _Asked:
    """The policy that `CompletionServer.load` returns."""

    def __init__(self, config: CompletionServer, cached: bool = True) -> None:
        self.config, self.cached, self.api = config, cached, _APIS[config.api]
        self.client = ScoringClient(config.title, config.path, config)
        window = _window(config)
        # One token is generated after each sequence, as servers refuse to generate none.
        self.window = math.inf if window is None else window - 1
        texts = config.texts()
        self.limit = texts.max_response_tokens
        self.tokenizer = texts.tokenizer()
        with model_errors(config.title):
            self.form = texts.prompt_form(self.tokenizer)
        self.version: object = None
        """What SGLang calls its present weights."""
        self.told: set[str] = set()
        self._ask_first()

    def _ask_first(self) -> None:
        """Ask for a likelihood that any server of the API gives.

        Raises:
            ModelError: It gives none.
        """
        try:
            prompt_ids, (ids,), _ = tokens.policy_group(self.tokenizer, _PROBE[0], [_PROBE[1]], 16, self.form)
        except tokens.refusals():
            return
        try:
            list(self.client.post_all(self.api.path, [self._post(_Asks(prompt_ids + ids, len(prompt_ids)))]))
        except RefusedError as error:
            if error.status in (404, 405, 501):
                raise ModelError(f"{error}; {self.api.hint}") from error
            raise

    def logprobs(self, prompts: Sequence[Prompt], responses: Responses) -> list[list[Likelihood | None]]:
        """Score by group; see `Policy`."""
        rows = distinct(prompts, responses)
        scored: list[list[Likelihood | None]] = []
        likelihoods: list[tuple[int, int, int, bool]] = []

        def posts() -> Iterator[Post[float]]:
            # The responses to a prompt follow each other, so that a server which keeps prefixes reads it once.
            for number, (prompt, answers) in enumerate(rows.groups):
                scored.append([None] * len(answers))
                try:
                    prompt_ids, response_ids, crossed = tokens.policy_group(
                        self.tokenizer, prompt, answers, self.limit, self.form
                    )
                except tokens.refusals():
                    continue
                if any(len(ids) >= self.limit for ids in response_ids):
                    probe.tell_cut(self.config.title, self.limit, "max_response_tokens")
                for i, (ids, crosses) in enumerate(zip(response_ids, crossed, strict=True)):
                    if prompt_ids and ids and len(prompt_ids) + len(ids) <= self.window:
                        likelihoods.append((number, i, len(ids), crosses))
                        yield self._post(_Asks(prompt_ids + ids, len(prompt_ids)))

        received = self.client.post_all(self.api.path, posts(), self.config.tokens_under_way)
        failures: list[str] = []
        for position, result in enumerate(received):
            number, i, count, crosses = likelihoods[position]
            if result.value is not None:
                scored[number][i] = Likelihood(result.value, count, crosses)
            else:
                failures.append(result.failure or "")
        self._tell(failures)
        return rows.regroup(scored)

    def _tell(self, failures: Sequence[str]) -> None:
        """Say why responses have no likelihood, each reason once."""
        for failure in dict.fromkeys(failures):
            if failure not in self.told and len(self.told) < 10:
                self.told.add(failure)
                count = counted(failures.count(failure), "response has", "responses have")
                note(f"warning: {self.config.title}: {count} no likelihood: {failure}")

    def token_logprobs(self, ids: list[int], start: int) -> list[float] | None:
        """Return the log-probabilities of the tokens from `start` on; None where the server gives none, or has no room."""
        if len(ids) > self.window:
            return None
        asks = _Asks(ids, start)
        body = self.api.body(self.config.model, asks, self.cached)
        post = Post(body, lambda reply: self._values(reply, asks), len(ids))
        return next(self.client.post_all(self.api.path, [post])).value

    def _post(self, asks: _Asks) -> Post[float]:
        body = self.api.body(self.config.model, asks, self.cached)
        return Post(body, lambda reply: math.fsum(self._values(reply, asks)), len(asks.ids))

    def check_reply(self, reply: Mapping[str, JsonValue]) -> None:
        """Refuse the reply of another model, or of weights that were exchanged in the middle.

        Raises:
            ModelError: It is.
        """
        where = f"{self.config.title} at {self.config.path}"
        if self.config.api == "vllm" and reply.get("model") != self.config.model:
            shown = self.client.shown(str(reply.get("model")), 60)
            raise ModelError(f"{where}: {shown} answered; was the server started anew?")
        self._check_version(reply, where)

    def _values(self, reply: JsonValue, asks: _Asks) -> list[float]:
        """Return the log-probability of each token of a response.

        Raises:
            UnreadError: A value is missing, or is no number.
            ModelError: Another model answered, or for other tokens.
        """
        where = f"{self.config.title} at {self.config.path}"
        if not isinstance(reply, Mapping):
            raise UnreadError("no object")
        self.check_reply(reply)
        summed = []
        for (value, token), asked in zip(self.api.values(reply, asks), asks.ids[asks.start :], strict=True):
            if token != asked and not (token == 0 and asked >= len(self.tokenizer) - 1):
                # SGLang writes 0 for the last id of a vocabulary.
                raise ModelError(f"{where}: it answered for token {token} where {asked} was sent; it reads other texts")
            if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
                raise UnreadError(
                    f"{value if isinstance(value, float) else 'no number'} as the log-probability of a token"
                )
            if value > _ABOVE_ZERO:
                raise ModelError(
                    f"{where}: {value:.3g} is no log-probability; start it without an option that gives logits, such as "
                    "`--logprobs-mode raw_logits`"
                )
            summed.append(-math.inf if value <= _MINUS_INFINITY else float(value))
        return summed

    def _check_version(self, reply: Mapping[str, JsonValue], where: str) -> None:
        """Refuse weights that were exchanged in the middle: SGLang names those that answered."""
        meta = reply.get("meta_info")
        version = meta.get("weight_version") if isinstance(meta, Mapping) else None
        if version is None:
            return
        self.version = version if self.version is None else self.version
        if version != self.version:
            shown = (self.client.shown(str(name), 60) for name in (self.version, version))
            raise ModelError(f"{where}: its weights changed from version {' to '.join(shown)} in the middle")
