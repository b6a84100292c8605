"""A model without weights. Its answers are hashes of the texts; an embedding is a hashed bag of words, so bands fill."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import lru_cache
from typing import Any, ClassVar, TypeVar

import numpy as np
import numpy.typing as npt
from pydantic import JsonValue

from seamcurate.models.backend import NamedModel, RewardConfig
from seamcurate.models.protocols import (
    Conversation,
    Likelihood,
    Prompt,
    Reply,
    Request,
    Responses,
    RewardModel,
    Sample,
    SampleRequest,
    Sampling,
)
from seamcurate.models.template import prompt_text
from seamcurate.models.vectors import normalised

T = TypeVar("T")

_LONGEST_ANSWER = 12
"""Words of a sampled answer, at most."""
_OWN_WORDS = ("a", "is", "not", "the")
"""Words of a sampled answer beside those of its prompt."""


class FakeModel(NamedModel, RewardConfig, RewardModel):
    """Answer as policy, reward model, encoder and language model at once, without weights.

    It serves tests, dry runs, and timing the pipeline itself. An answer depends on `path`, which is the seed, and on the
    texts alone: it is the same on every machine. Rewards lie in [-2, 2), log-probabilities per token in (-4, -1], words
    are tokens, and embeddings of texts that share words are near each other.

    Example:
        >>> from seamcurate import FakeModel
        >>> model = FakeModel(path="1").load()
        >>> ((reward, other_reward),) = model.rewards(["What is a set?"], [["A collection.", "A dog."]])
        >>> -2 <= reward < 2 and reward != other_reward
        True
        >>> vectors = model.embed(["sort the list", "sort the queue", "omega"])  # (texts, dimensions)
        >>> vectors.shape, bool(vectors[0] @ vectors[1] > vectors[0] @ vectors[2])
        ((3, 64), True)
    """

    key: ClassVar[str] = "fake"
    path: str = "0"
    dimensions: int = 64

    def identity(self) -> JsonValue:
        """Return the seed: nothing else decides an answer."""
        return {"fake": self.path, "dimensions": self.dimensions}

    def load(self) -> FakeModel:
        """Return the configuration itself: there are no weights to load."""
        return self

    def rewards(self, prompts: Sequence[Prompt], responses: Responses) -> list[list[float | None]]:
        """Draw a reward in [-2, 2) from each (prompt, response)."""
        return [
            [4 * self._unit("reward", prompt_text(prompt), answer) - 2 for answer in answers]
            for prompt, answers in zip(prompts, responses, strict=True)
        ]

    def scale_range(self) -> tuple[float, float] | None:
        """Return the range that rewards are drawn from."""
        return -2.0, 2.0

    def logprobs(self, prompts: Sequence[Prompt], responses: Responses) -> list[list[Likelihood | None]]:
        """Draw a per-token log-probability in (-4, -1] for each (prompt, response); words are tokens."""
        scored: list[list[Likelihood | None]] = []
        for prompt, answers in zip(prompts, responses, strict=True):
            row: list[Likelihood | None] = []
            for answer in answers:
                tokens = len(answer.split()) + 1
                row.append(Likelihood(tokens * self._token_logprob(prompt_text(prompt), answer), tokens, False))
            scored.append(row)
        return scored

    def _token_logprob(self, prompt: str, answer: str) -> float:
        return -1 - 3 * self._unit("logprob", prompt, answer)

    def load_sampler(self) -> FakeModel:
        """Return the configuration itself; see `samples`."""
        return self

    def samples(self, requests: Sequence[SampleRequest], sampling: Sampling) -> Iterator[tuple[int, int, Sample | str]]:
        """Draw an answer of up to 12 words, most of them the prompt's; see `Sampler`. Words are tokens, as in `logprobs`.

        A lower temperature, or top_p, favours short answers of the first words in alphabetical order. An empty prompt has no answer.
        """
        for position, (prompt, draws) in enumerate(requests):
            text = prompt_text(prompt)
            words = sorted({*text.split(), *_OWN_WORDS})
            for draw in draws:
                if not text.strip():
                    yield position, draw, "the prompt is empty"
                    continue
                length = 1 + self._choice(sampling, _LONGEST_ANSWER, text, draw, "length")
                answer = " ".join(
                    words[self._choice(sampling, len(words), text, draw, str(place))]
                    for place in range(min(length, sampling.max_tokens))
                )
                ended = length < sampling.max_tokens
                tokens = len(answer.split()) + ended
                logprob_1 = tokens * self._token_logprob(text, answer)
                logprob = logprob_1 / sampling.temperature if sampling.temperature else 0.0
                yield position, draw, Sample(answer, tokens, "stop" if ended else "length", logprob, logprob_1)

    def _choice(self, sampling: Sampling, choices: int, prompt: str, draw: int, what: str) -> int:
        """Draw a number below `choices`: evenly at temperature 1, rather a small one below, always 0 at temperature 0."""
        if not sampling.temperature:
            return 0
        unit = self._unit("sample", str(sampling.seed), prompt, str(draw), what)
        return int(choices * sampling.top_p * unit ** (1 / sampling.temperature))

    def embed(self, texts: Sequence[str]) -> npt.NDArray[np.float32]:
        """Sum a random direction per word and normalise: texts that share words are near."""
        vectors = np.zeros((len(texts), self.dimensions), np.float32)
        for row, text in enumerate(texts):
            for word in text.lower().split() or [""]:
                vectors[row] += _direction(self.path, word, self.dimensions)
        return normalised(vectors)

    def converse(self, conversations: Sequence[Callable[[], Conversation[T]]]) -> list[T]:
        """Hold each conversation with replies that every reader of replies can use: answers, verdicts and ratings."""
        results: list[T] = []
        for start in conversations:
            conversation = start()
            try:
                request = next(conversation)
                while True:
                    request = conversation.send(Reply(self._text(request), "stop", self.path))
            except StopIteration as ended:
                results.append(ended.value)
        return results

    def ahead(self, conversations: Iterable[Callable[[], Conversation[T]]]) -> None:
        """Do nothing: there is nothing to wait for."""

    def _text(self, request: Request) -> str:
        prompt = "\n".join(turn["content"] for turn in request.messages)
        fraction = self._unit("text", str(request.draw), prompt)
        properties = (request.schema or {}).get("properties")
        if isinstance(properties, dict) and "answers" in properties:
            words = prompt.split()
            answers = [
                " ".join(sorted(words, key=lambda word: self._unit(str(i), str(fraction), word))[:12])
                for i in range(64)
            ]
            return json.dumps({"answers": answers})
        if isinstance(properties, dict) and properties.keys() & {"rating", "criteria"}:
            return json.dumps(self._filled(request.schema or {}, fraction, str(request.draw), prompt))
        kind = "OPEN-ENDED" if fraction < 0.5 else "CLOSED-ENDED"
        marks = ["Relevant" if self._unit(str(i), prompt) < 0.8 else "Irrelevant" for i in range(5)]
        sentences = "\n".join(f'- "Sentence {i}" : {mark}' for i, mark in enumerate(marks, 1))
        return f"{sentences}\nRating: [[{1 + int(10 * fraction)}]]\n{kind}"

    def _filled(self, schema: dict[str, Any], fraction: float, *parts: str) -> JsonValue:
        """Draw a value that follows a JSON schema: a choice, a number of a range, or an object of such values."""
        if "properties" in schema:
            return {
                name: self._filled(inner, fraction if name == "rating" else self._unit(name, *parts), name, *parts)
                for name, inner in schema["properties"].items()
            }
        if "enum" in schema:
            choices: list[JsonValue] = schema["enum"]
            return choices[int(fraction * len(choices))]
        if schema["type"] == "string":
            return "a fake's reply"
        low, high = float(schema["minimum"]), float(schema["maximum"])
        value = low + fraction * (high - low)
        return round(value) if schema["type"] == "integer" else value

    def count_tokens(self, texts: Sequence[str]) -> int:
        """Count words: they are this model's tokens."""
        return sum(len(text.split()) for text in texts)

    def _unit(self, *parts: str) -> float:
        text = "\0".join((self.path, *parts)).encode("utf-8", "replace")
        return int.from_bytes(hashlib.sha256(text).digest()[:8]) / 2**64


@lru_cache(maxsize=65_536)
def _direction(seed: str, word: str, dimensions: int) -> npt.NDArray[np.float32]:
    bits = int.from_bytes(hashlib.sha256(f"{seed}\0{word}".encode("utf-8", "replace")).digest()[:8])
    return np.random.default_rng(bits).standard_normal(dimensions, np.float32)
