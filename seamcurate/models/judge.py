"""A language model's ratings as rewards, each the mean over `draws` replies.

An answer gets a reward only if all its replies could be read: two ratings out of three draws are no mean of three. Every
request goes through the kept answers, limits and prices of the language model; this module knows none of them.
"""

from __future__ import annotations

import math
from abc import abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from typing import Annotated, ClassVar, NamedTuple, Self, TypeAlias

from pydantic import AfterValidator, Field, JsonValue, model_validator
from typing_extensions import override

from seamcurate.models.backend import Backend, RewardConfig
from seamcurate.models.language_model import LanguageModelConfig
from seamcurate.models.prompt_template import Template, bundled, render, swapped
from seamcurate.models.protocols import Columns, Conversation, Prompt, Rating, Request, Responses, RewardModel
from seamcurate.models.rating import Scale, object_schema, rating, rating_schema, scale_words
from seamcurate.models.reply import Answer, read
from seamcurate.models.server import OpenAIServer
from seamcurate.models.template import prompt_text
from seamcurate.progress import note
from seamcurate.step import Work, digest
from seamcurate.text import brief, counted

Ask: TypeAlias = Callable[[str, str], Request]
"""Writes the request about a question and an answer to it."""

_ANY_NUMBER: Scale = (-1e12, 1e12)
_SHOWN = 300
"""Characters of a reason."""


def check_scale(scale: Scale) -> Scale:
    """Refuse a scale without at least two ratings."""
    low, high = scale
    if not (math.isfinite(low) and math.isfinite(high) and low < high):
        raise ValueError(f"a scale is the lowest and the highest rating, such as [1, 10], not [{low:g}, {high:g}]")
    return scale


class Ways(NamedTuple):
    """The ways to ask about an answer."""

    usual: Ask
    """How rewards are asked for."""
    others: Mapping[str, Ask]
    """By name, ways to ask the same otherwise: a good judge would give the same rewards."""


class AskedReward(RewardConfig):
    """Name a reward model that asks a language model; each kind says how it asks and how replies are read."""

    judge: LanguageModelConfig
    """The language model that is asked."""
    draws: int = Field(default=1, ge=1)
    """Replies for each answer; its reward is their mean."""
    template: Template = ""
    """Path of a `.txt` file that replaces the prompt; see `seamcurate.prompts`. The file's text is part of the fingerprint."""

    noise_rows: ClassVar[int] = 8

    @abstractmethod
    def ways(self) -> Ways:
        """Return the ways to ask about an answer."""

    @abstractmethod
    def read(self, answer: Answer) -> Rating:
        """Read one reply's rating."""

    @abstractmethod
    def reply_characters(self) -> int:
        """Estimate the length of a reply."""

    @model_validator(mode="after")
    def _draws_differ(self) -> Self:
        if self.draws > 1 and isinstance(self.judge, OpenAIServer):
            temperature = self.judge.extra.get("temperature", self.judge.temperature)
            if temperature == 0:
                raise ValueError(
                    f"{self.draws} draws at temperature 0 repeat one reply; leave draws out, or give the judge a temperature"
                )
        return self

    @property
    def title(self) -> str:
        """Name the kind of reward, and the language model."""
        return f"{self.key} by {self.judge.title}"

    def parts(self) -> Iterator[Backend]:
        """Yield the reward model, and the language model that it asks."""
        yield self
        yield from self.judge.parts()

    def price(self, tokens_in: float, tokens_out: float) -> float | None:
        """Return what the language model's tokens cost in dollars; None where the recipe gives no prices."""
        return self.judge.price(tokens_in, tokens_out)

    def count_tokens(self, texts: Sequence[str]) -> int:
        """Count tokens of the language model, for estimates."""
        return self.judge.count_tokens(texts)

    def load(self) -> RewardModel:
        """Prepare the requests; nothing is asked yet.

        Raises:
            ModelError: The language model's key is not in the environment.
        """
        return _Asked(self)

    @override
    def work(self, answers: float, characters: float) -> list[Work]:
        return self._work(self.draws, answers, characters)

    @override
    def noise_work(self, answers: float, characters: float) -> list[Work]:
        draws_more = max(self.draws, 2) - self.draws
        return self._work(draws_more + self.draws * len(self.ways().others), answers, characters)

    def _work(self, replies: int, answers: float, characters: float) -> list[Work]:
        """Estimate the work of some answers with a number of replies each."""
        prompt = self.ways().usual("", "").messages
        per_answer = sum(len(turn["content"]) for turn in prompt)
        return [
            Work(
                self.judge,
                replies * answers,
                replies * (characters + answers * per_answer),
                replies * answers * self.reply_characters(),
            )
        ]

    @override
    def asks_ahead(self) -> bool:
        return True

    @override
    def gives_reasons(self) -> bool:
        return True


class JudgeModel(AskedReward):
    """Name a reward model whose rewards are a language model's ratings.

    The prompt is SEAM's (App. E) unless `template` names another; its placeholders are `{question}`, `{answer}`, and
    `{low}`, `{high}` and `{example}` of the scale. A rating outside the scale, a reply without a rating, a refusal and a
    reply that was cut give no reward, and the column of reasons says which.

    Raises:
        ModelError: By `load`, where the language model's key is not in the environment.

    Example:
        >>> from seamcurate import FakeModel, JudgeModel
        >>> judge = JudgeModel(judge=FakeModel(), scale=(1, 5), draws=3)
        >>> ((reward,),) = judge.load().rewards(["What is a set?"], [["A collection."]])
        >>> 1 <= reward <= 5
        True
    """

    key: ClassVar[str] = "judge"

    scale: Annotated[Scale, AfterValidator(check_scale)] = (1, 10)
    """The lowest and the highest rating."""

    @model_validator(mode="after")
    def _shows_the_answer(self) -> Self:
        if self.template and "{answer}" not in self.template:
            raise ValueError("template has no {answer}: the judge would not see what it rates")
        return self

    def identity(self) -> JsonValue:
        """Return the language model's identity, the scale, the number of draws, and the hash of the prompt."""
        return {
            self.key: self.judge.identity(),
            "scale": [float(end) for end in self.scale],
            "draws": self.draws,
            # A hash: records, cards and messages show identities.
            "template": digest(self.template or bundled("judge")),
        }

    @override
    def scale_range(self) -> tuple[float, float]:
        return self.scale

    def ways(self) -> Ways:
        """Return the prompt, the prompt with the answer before the question, and the paraphrase of the bundled prompt."""
        template = self.template or bundled("judge")
        others = {
            "with the answer before the question": swapped(template),
            "in other words": None if self.template else bundled("judge_paraphrase"),
        }
        return Ways(
            partial(self._request, template),
            {name: partial(self._request, text) for name, text in others.items() if text is not None},
        )

    def _request(self, template: str, question: str, answer: str) -> Request:
        schema = object_schema(explanation={"type": "string"}, rating=rating_schema(self.scale))
        return Request(render(template, question, answer, further=scale_words(self.scale)), schema)

    def read(self, answer: Answer) -> Rating:
        """Read the rating; its reason says whether there was none, or one outside the scale."""
        if not answer.whole:
            return Rating(None, answer.reason)
        value = rating(answer.text, self.scale)
        if value is not None:
            return Rating(value)
        low, high = self.scale
        is_number = rating(answer.text, _ANY_NUMBER) is not None
        return Rating(None, f"{f'outside {low:g} to {high:g}' if is_number else 'no rating'}: {answer.reason}")

    def reply_characters(self) -> int:
        """Estimate a short explanation and a rating."""
        return 600


class _Asked(RewardModel):
    """The reward model that `AskedReward.load` returns."""

    def __init__(self, config: AskedReward) -> None:
        self._config, self._model, self._ways = config, config.judge.load(), config.ways()

    def rewards(self, prompts: Sequence[Prompt], responses: Responses) -> list[list[float | None]]:
        return [[rating.reward for rating in row] for row in self.ratings(prompts, responses, {})]

    @override
    def ratings(self, prompts: Sequence[Prompt], responses: Responses, columns: Columns) -> list[list[Rating]]:
        starts = [
            start
            for prompt, answers in zip(prompts, responses, strict=True)
            for answer in answers
            for start in self._usual(prompt, answer)
        ]
        replies = iter(self._model.converse(starts) if starts else [])
        return [[_mean([next(replies) for _ in range(self._config.draws)]) for _ in answers] for answers in responses]

    @override
    def ask_ahead(self, rows: Callable[[], Iterator[tuple[Prompt, Sequence[str]]]]) -> None:
        self._model.ahead(_Questions(self, rows))

    @override
    def noise(self, prompts: Sequence[Prompt], responses: Responses, columns: Columns) -> Sequence[float]:
        """Return the noise of the reward and of each output: the largest standard deviation of those measured.

        The deviation of a reward between draws follows from that of single replies. Between two ways to ask, it is that of
        two rewards of the same answer. Each is pooled over the sample's answers.
        """
        pairs = [(p, answer) for p, answers in zip(prompts, responses, strict=True) for answer in answers]
        starts = [start for pair in pairs for start in self._for_noise(*pair)]
        replies = iter(self._model.converse(starts) if starts else [])
        drawn: list[list[Rating]] = []
        unread = 0
        otherwise: dict[str, list[tuple[Rating, Rating]]] = {name: [] for name in self._ways.others}
        for _ in pairs:
            draws = [next(replies) for _ in range(max(self._config.draws, 2))]
            drawn.append(draws)
            reward = _mean(draws[: self._config.draws])
            for name in otherwise:
                otherwise[name].append((reward, _mean([next(replies) for _ in range(self._config.draws)])))
            unread += any(reply.reward is None for reply in (*draws, *(pair[-1][1] for pair in otherwise.values())))
        noise: list[float] = []
        for i in range(1 + len(self._config.output_names())):
            single = _deviation([[_number(reply, i) for reply in draws] for draws in drawn])
            measured = {"between draws": single / math.sqrt(self._config.draws)}
            for name, rewards in otherwise.items():
                measured[name] = _deviation([[_number(reward, i) for reward in two] for two in rewards])
            if i == 0:
                shown = ", ".join(f"±{value:.2g} {name}" for name, value in measured.items())
                incomplete = f"; {unread} of them had a reply that could not be read" if unread else ""
                note(f"{self._config.title}: rewards of {counted(len(pairs), 'answer')} differ by {shown}{incomplete}")
            noise.append(max(measured.values()))
        return noise

    def _usual(self, prompt: Prompt, answer: str) -> list[Callable[[], Conversation[Rating]]]:
        return [self._start(self._ways.usual, prompt, answer, draw) for draw in range(self._config.draws)]

    def _for_noise(self, prompt: Prompt, answer: str) -> list[Callable[[], Conversation[Rating]]]:
        """Start the conversations that the noise is measured by; those of the reward itself are among them."""
        draws = self._config.draws
        return [
            *(self._start(self._ways.usual, prompt, answer, draw) for draw in range(max(draws, 2))),
            *(self._start(ask, prompt, answer, draw) for ask in self._ways.others.values() for draw in range(draws)),
        ]

    def _start(self, ask: Ask, prompt: Prompt, answer: str, draw: int) -> Callable[[], Conversation[Rating]]:
        # Each draw is a conversation of its own, so that all are asked at once, and in one batch.
        return partial(self._conversation, ask, prompt, answer, draw)

    def _conversation(self, ask: Ask, prompt: Prompt, answer: str, draw: int) -> Conversation[Rating]:
        reply = yield ask(prompt_text(prompt), answer)._replace(draw=draw)
        rating = self._config.read(read(reply))
        return rating if rating.reason is None else rating._replace(reason=brief(rating.reason, _SHOWN))


class _Questions:
    """The conversations about all rows, and those of the noise; each iteration starts them again."""

    def __init__(self, model: _Asked, rows: Callable[[], Iterator[tuple[Prompt, Sequence[str]]]]) -> None:
        self._model, self._rows = model, rows

    def __iter__(self) -> Iterator[Callable[[], Conversation[Rating]]]:
        config, sampled = self._model._config, 0
        for prompt, answers in self._rows():
            for answer in answers:
                yield from self._model._usual(prompt, answer)
            if answers and sampled < config.noise_rows:
                sampled += 1
                for answer in answers[: config.noise_answers]:
                    yield from self._model._for_noise(prompt, answer)


def _mean(draws: Sequence[Rating]) -> Rating:
    """Return the mean of some draws; where one lacks a value, the mean has none, and the reason says which draw."""
    reason = None
    for i, draw in enumerate(draws, 1):
        if draw.reason is not None and reason is None:
            reason = draw.reason if len(draws) == 1 else f"draw {i} of {len(draws)}: {draw.reason}"
    columns = zip(*(draw.outputs for draw in draws), strict=True)
    return Rating(_mean_number([draw.reward for draw in draws]), reason, tuple(map(_mean_number, columns)))


def _mean_number(numbers: Sequence[float | None]) -> float | None:
    present = [number for number in numbers if number is not None]
    return math.fsum(present) / len(present) if len(present) == len(numbers) else None


def _number(rating: Rating, i: int) -> float | None:
    """Return the reward, at 0, or one of the outputs after it."""
    return rating.reward if i == 0 else rating.outputs[i - 1]


def _deviation(groups: Sequence[Sequence[float | None]]) -> float:
    """Return the standard deviation within groups of the same answer, pooled; a group that lacks a number is left out."""
    squares: list[float] = []
    for group in groups:
        numbers = [number for number in group if number is not None]
        if len(numbers) == len(group):
            center = math.fsum(numbers) / len(numbers)
            squares.append(math.fsum((number - center) ** 2 for number in numbers) / (len(numbers) - 1))
    return math.sqrt(math.fsum(squares) / len(squares)) if squares else 0.0
