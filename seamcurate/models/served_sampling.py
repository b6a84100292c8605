"""Sample the answers of a policy behind vLLM or SGLang.

Token ids are sent, one request a draw, each with a seed of its own. Everything that a server may cut or punish by itself, from
the model's generation configuration or its own defaults, is said. A log-probability counts only where the server's numbers were
shown to be those of temperature 1: some give others, by how they were started.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, NamedTuple, Protocol

from pydantic import JsonValue

from seamcurate.models import draws, tokens
from seamcurate.models.protocols import Prompt, Sample, SampleRequest, Sampling
from seamcurate.models.scoring_client import Post, ScoringClient, UnreadError
from seamcurate.models.template import Form

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

_PROBE = "What is a set?"
_PROBED = 16
"""Tokens that are sampled to see at which temperature a server's log-probabilities are."""
_ALIKE = 0.05
"""By how much two log-probabilities of one token may differ, in nats: servers compute in 16 bit."""
_TELLING = 0.5
"""Nats that a token must have for its log-probability to tell temperatures apart: that of a certain token is 0 at all."""


class Drawn(NamedTuple):
    """What a server answered to one request."""

    ids: list[int]
    logprobs: list[float | None]
    """Of each token, by what the server calls that."""
    finish: str


class SamplingApi(NamedTuple):
    """How one kind of server is asked for an answer."""

    path: str
    body: Callable[[str, list[int], int, Sampling, int, list[int]], dict[str, JsonValue]]
    """(model, prompt, limit, sampling, seed, ends) → the request."""
    read: Callable[[Mapping[str, JsonValue]], Drawn]


def _vllm_body(
    model: str, prompt: list[int], limit: int, sampling: Sampling, seed: int, ends: list[int]
) -> dict[str, JsonValue]:
    return {
        "model": model,
        "prompt": list(prompt),
        "add_special_tokens": False,
        "max_tokens": limit,
        "temperature": sampling.temperature,
        "top_p": sampling.top_p,
        "seed": seed,
        "n": 1,
        # Without these, a server takes what the model's generation_config.json says.
        "top_k": -1,
        "min_p": 0.0,
        "repetition_penalty": 1.0,
        "presence_penalty": 0.0,
        "frequency_penalty": 0.0,
        "min_tokens": 0,
        "stop": [],
        "stop_token_ids": list(ends),
        "ignore_eos": False,
        # No further tokens beside the drawn one.
        "logprobs": 0,
        "return_tokens_as_token_ids": True,
    }


def _vllm_read(reply: Mapping[str, JsonValue]) -> Drawn:
    choices = reply.get("choices")
    choice = choices[0] if isinstance(choices, list) and len(choices) == 1 else None
    logprobs = choice.get("logprobs") if isinstance(choice, Mapping) else None
    names = logprobs.get("tokens") if isinstance(logprobs, Mapping) else None
    values = logprobs.get("token_logprobs") if isinstance(logprobs, Mapping) else None
    if not isinstance(choice, Mapping) or not isinstance(names, list) or not isinstance(values, list):
        raise UnreadError("no logprobs of the sampled tokens")
    ids = [str(name).removeprefix("token_id:") for name in names]
    if len(ids) != len(values) or not all(name.isdecimal() for name in ids):
        raise UnreadError("tokens that are no ids")
    return Drawn([int(name) for name in ids], [_number(value) for value in values], str(choice.get("finish_reason")))


def _sglang_body(
    model: str, prompt: list[int], limit: int, sampling: Sampling, seed: int, ends: list[int]
) -> dict[str, JsonValue]:
    return {
        "input_ids": list(prompt),
        "sampling_params": {
            "max_new_tokens": limit,
            "temperature": sampling.temperature,
            "top_p": sampling.top_p,
            "sampling_seed": seed,
            "n": 1,
            "top_k": -1,
            "min_p": 0.0,
            "repetition_penalty": 1.0,
            "presence_penalty": 0.0,
            "frequency_penalty": 0.0,
            "min_new_tokens": 0,
            "stop": [],
            "stop_token_ids": list(ends),
            "ignore_eos": False,
        },
        "return_logprob": True,
        "top_logprobs_num": 0,
        "return_text_in_logprobs": False,
        "stream": False,
    }


def _sglang_read(reply: Mapping[str, JsonValue]) -> Drawn:
    meta = reply.get("meta_info")
    entries = meta.get("output_token_logprobs") if isinstance(meta, Mapping) else None
    reason = meta.get("finish_reason") if isinstance(meta, Mapping) else None
    if not isinstance(entries, list) or not isinstance(reason, Mapping):
        raise UnreadError("no output_token_logprobs")
    pairs = [entry[:2] for entry in entries if isinstance(entry, list) and len(entry) >= 2]
    ids = [token for _, token in pairs if isinstance(token, int)]
    if len(ids) != len(entries):
        raise UnreadError("tokens that are no ids")
    return Drawn(ids, [_number(value) for value, _ in pairs], str(reason.get("type")))


def _number(value: object) -> float | None:
    known = isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
    return float(value) if known else None  # type: ignore[arg-type]


SAMPLING_APIS: dict[str, SamplingApi] = {
    "vllm": SamplingApi("/v1/completions", _vllm_body, _vllm_read),
    "sglang": SamplingApi("/generate", _sglang_body, _sglang_read),
}
"""The servers that can be sampled from, by `api`. To add one, add a row."""


class ServedPolicy(Protocol):
    """A policy behind a server, as it scores given answers."""

    client: ScoringClient
    tokenizer: PreTrainedTokenizerBase
    form: Form

    def token_logprobs(self, ids: list[int], start: int) -> list[float] | None:
        """Return the log-probabilities of the tokens from `start` on; None where the server gives none."""
        ...

    def check_reply(self, reply: Mapping[str, JsonValue]) -> None:
        """Refuse the reply of another model."""
        ...


class ServedSampler:
    """Samples from a policy behind a server; see `Sampler`.

    Args:
        policy: The policy, as it scores.
        api: What the server speaks.
        model: The name by which the server knows the model.
        ends: The ids that end an answer.
        window: Tokens that the server reads at once; infinite where it does not say.
        tokens_under_way: Tokens that are under way at once, at most.
    """

    def __init__(
        self,
        policy: ServedPolicy,
        api: SamplingApi,
        model: str,
        ends: Collection[int],
        window: float,
        tokens_under_way: int,
    ) -> None:
        self.policy, self.api, self.model, self.window = policy, api, model, window
        self.ends, self.tokens_under_way = sorted(ends), tokens_under_way
        self._at_one: dict[tuple[float, float], bool] = {}
        """Whether the server's log-probabilities are those of temperature 1, by the temperature and `top_p` of sampling."""

    def samples(self, requests: Sequence[SampleRequest], sampling: Sampling) -> Iterator[tuple[int, int, Sample | str]]:
        """Draw answers, many requests at a time, and yield each in the order of the requests; see `Sampler`.

        A seed gives the same answer again only as far as the server's numbers do not depend on its batches.
        """
        readable: list[tuple[int, list[int], int]] = []
        for position, (prompt, numbers) in enumerate(requests):
            ids = self._prompt_ids(prompt)
            if isinstance(ids, str):
                yield from ((position, draw, ids) for draw in numbers)
            else:
                readable += [(position, ids, draw) for draw in numbers]
        if not readable:
            return
        at_one = self._is_at_one(sampling)
        posts = (self._post(ids, draw, sampling) for _, ids, draw in readable)
        received = self.policy.client.post_all(self.api.path, posts, self.tokens_under_way)
        for (position, _, draw), result in zip(readable, received, strict=True):
            if result.value is None:
                yield position, draw, result.failure or "the server gave no answer"
            else:
                yield position, draw, self._sample(result.value, sampling, at_one)

    def _prompt_ids(self, prompt: Prompt) -> list[int] | str:
        """Return the ids that the model continues, or why there are none."""
        try:
            ids = tokens.prompt_ids(self.policy.tokenizer, prompt, self.policy.form)
        except tokens.refusals() as error:
            return f"the chat template cannot render the prompt: {error}".splitlines()[0]
        if not ids:
            return "the prompt has no tokens"
        if len(ids) >= self.window:
            return f"the prompt has {len(ids):,} tokens and fills the window of {self.window:,.0f}"
        return ids

    def _post(self, ids: list[int], draw: int, sampling: Sampling) -> Post[Drawn]:
        limit = int(min(sampling.max_tokens, self.window - len(ids)))
        # Of 31 bits, which every server takes.
        seed = int(draws.key(sampling.seed, ids, draw)[0]) >> 33
        body = self.api.body(self.model, ids, limit, sampling, seed, self.ends)
        return Post(body, self._read, len(ids) + limit)

    def _read(self, reply: JsonValue) -> Drawn:
        if not isinstance(reply, Mapping):
            raise UnreadError("no object")
        self.policy.check_reply(reply)
        drawn = self.api.read(reply)
        if drawn.finish not in ("stop", "length"):
            raise UnreadError(f"an answer that ends by {drawn.finish[:40]!r}")
        if not drawn.ids:
            raise UnreadError("no tokens")
        return drawn

    def _sample(self, drawn: Drawn, sampling: Sampling, at_one: bool) -> Sample:
        """Return the sample, with the log-probabilities that are known."""
        ended = drawn.finish == "stop"
        shown = ended and drawn.ids[-1] in self.ends
        text = self.policy.tokenizer.decode(
            drawn.ids[:-1] if shown else drawn.ids, skip_special_tokens=True, clean_up_tokenization_spaces=False
        )
        values = [value for value in drawn.logprobs if value is not None]
        # A server may leave out the token that ended the answer; its log-probability then is not known.
        whole = len(values) == len(drawn.ids) and (shown or not ended)
        logprob_1 = math.fsum(values) if whole and at_one else None
        logprob = 0.0 if not sampling.temperature else logprob_1 if sampling.temperature == 1 else None
        count = len(drawn.ids) + (ended and not shown)
        return Sample(self.policy.form.generated(str(text)), count, drawn.finish, logprob, logprob_1)

    def _is_at_one(self, sampling: Sampling) -> bool:
        """Tell whether the server gives log-probabilities of temperature 1, by those that it scores the same tokens with."""
        setting = (sampling.temperature, sampling.top_p)
        if setting not in self._at_one:
            self._at_one[setting] = self._compared(sampling)
        return self._at_one[setting]

    def _compared(self, sampling: Sampling) -> bool:
        ids = self._prompt_ids(_PROBE)
        if isinstance(ids, str):
            return False
        posts = [self._post(ids, draw, sampling._replace(max_tokens=_PROBED)) for draw in range(2)]
        pairs: list[tuple[float, float]] = []
        for result in self.policy.client.post_all(self.api.path, posts):
            if result.value is None:
                return False
            scored = self.policy.token_logprobs(ids + result.value.ids, len(ids))
            if scored is None:
                return False
            pairs += [
                (value, other)
                for value, other in zip(result.value.logprobs, scored, strict=True)
                if value is not None and value > _MINUS_INFINITY
            ]
        alike = all(abs(value - other) <= _ALIKE * max(1.0, -other) for value, other in pairs)
        return alike and any(other < -_TELLING for _, other in pairs)


_MINUS_INFINITY = -9999.0
"""What vLLM writes for the logarithm of 0."""
