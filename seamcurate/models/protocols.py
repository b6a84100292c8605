"""What a step may ask of a model: one batch method each. Who answers is decided elsewhere.

A call is by group, because 30 responses share one prompt: one prompt and a *list* of responses per row.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping, Sequence
from typing import NamedTuple, Protocol, TypeAlias, TypedDict, TypeVar

import numpy as np
import numpy.typing as npt
from pydantic import JsonValue

T = TypeVar("T")


class Message(TypedDict):
    """One chat turn."""

    role: str
    content: str


Prompt: TypeAlias = str | Sequence[Message]
"""A prompt as plain text, or as the chat turns that end with the user's."""

Responses: TypeAlias = Sequence[Sequence[str]]
"""The responses to each prompt: one list a row, possibly empty."""

Columns: TypeAlias = Mapping[str, Sequence[object]]
"""Further columns of the rows by name, one value a row: a reward function may read a reference, say."""


class Likelihood(NamedTuple):
    """How probable a policy finds one response."""

    logprob: float
    """Natural logarithm of P(response | prompt), summed over its tokens."""
    tokens: int
    """How many tokens that sum runs over, the end-of-sequence token included unless truncated."""
    boundary: bool
    """Whether tokenizing prompt and response together would have given other tokens than were scored."""


class Policy(Protocol):
    """Answers how likely responses are."""

    def logprobs(self, prompts: Sequence[Prompt], responses: Responses) -> list[list[Likelihood | None]]:
        """Score each response after its prompt; None where the prompt leaves no room, or is none the model can read."""
        ...


class Sampling(NamedTuple):
    """How a policy's answers are drawn: from its whole distribution, with no other cut or penalty than these say."""

    n: int = 16
    """Answers to each prompt."""
    temperature: float = 1.0
    """What logits are divided by; 0 takes the likeliest token at each position, so that all draws are equal."""
    top_p: float = 1.0
    """Tokens are drawn from the smallest set of the likeliest ones that together have at least this probability."""
    max_tokens: int = 512
    """The most tokens of an answer, its end token included."""
    seed: int = 0
    """A draw depends on the seed, the prompt, the draw's number and the model alone."""


class Sample(NamedTuple):
    """One answer that a policy gave."""

    text: str
    """The answer without special tokens, as a reward model reads it."""
    tokens: int
    """How many tokens were drawn, the end token included."""
    finish: str
    """Why it ends: `stop` by an end token, `length` where no more tokens were allowed, or the window was full."""
    logprob: float | None
    """Natural logarithm of the answer's probability at the sampling temperature, before `top_p` cuts anything: a sum over its
    tokens; 0 at temperature 0. None where a server does not say."""
    logprob_1: float | None
    """The same at temperature 1, which is what `Policy.logprobs` gives. None where a server does not say."""


SampleRequest: TypeAlias = tuple[Prompt, Sequence[int]]
"""A prompt, and the numbers of the draws that are wanted of it, from 0: a resumed run asks for the missing ones only."""


class Sampler(Protocol):
    """Answers as a policy would."""

    def samples(self, requests: Sequence[SampleRequest], sampling: Sampling) -> Iterator[tuple[int, int, Sample | str]]:
        """Draw answers, and yield each when it is finished, in any order.

        A draw depends on `sampling`, the prompt, the draw's number and the model alone: neither on what else is asked nor on
        batches. `sampling.n` decides nothing here; the requests name their draws.

        Yields:
            The request's position in `requests`, the draw's number, and the sample; in its place, one line that says why
            there is none, such as a prompt that leaves no room for an answer.
        """
        ...


class Rating(NamedTuple):
    """What a reward model says of one response."""

    reward: float | None
    """R(I∘r); None where there is none."""
    reason: str | None = None
    """Why there is no reward, in one line, where this kind of model gives reasons."""
    outputs: tuple[float | None, ...] = ()
    """The outputs that become columns of their own, in the order of `RewardConfig.output_names`."""
    members: tuple[float | None, ...] = ()
    """Of an ensemble, the members' rewards on the scale that they are combined on, in the order of `member_names`."""


class RewardModel(ABC):
    """Answers how good responses are. A kind of model defines `rewards`, and overrides what it answers otherwise."""

    @abstractmethod
    def rewards(self, prompts: Sequence[Prompt], responses: Responses) -> list[list[float | None]]:
        """Score each response to its prompt; None where the prompt leaves no room, or is none the model can read."""

    def ratings(self, prompts: Sequence[Prompt], responses: Responses, columns: Columns) -> list[list[Rating]]:
        """Score each response, with the reason where there is no reward, and with further outputs."""
        return [[Rating(reward) for reward in row] for row in self.rewards(prompts, responses)]

    def ask_ahead(self, rows: Callable[[], Iterator[tuple[Prompt, Sequence[str]]]]) -> None:  # noqa: B027
        """Ask for the rewards of all rows together, where answers come in batches; does nothing by default.

        Args:
            rows: Iterates over the prompts with their responses, each time anew.
        """

    def noise(self, prompts: Sequence[Prompt], responses: Responses, columns: Columns) -> Sequence[float] | None:
        """Measure by how much a reward, and each further output, changes without a reason.

        None, the default, lets the step compare batches: only they can change the numbers of such a model.
        """
        return None


class Embedder(Protocol):
    """Answers with one vector a text."""

    def embed(self, texts: Sequence[str]) -> npt.NDArray[np.float32]:
        """Return float32 embeddings, `texts` × dimensions."""
        ...


class Request(NamedTuple):
    """One thing to ask a language model."""

    messages: Sequence[Message]
    schema: dict[str, JsonValue] | None = None
    """The JSON schema its answer should follow; servers may ignore it, so the answer is checked all the same."""
    draw: int = 0
    """Tells apart requests that are otherwise equal: how many samples were asked for before."""


class Reply(NamedTuple):
    """What came back."""

    text: str
    finish: str
    """Why the text ends: `stop`, `length`, `content_filter`, `refusal`."""
    model: str
    """The name the server gave of what answered."""
    failure: str | None = None
    """Why there is no answer, if so."""


Conversation: TypeAlias = Generator[Request, Reply, T]
"""Yields what to ask next, is sent the reply, and returns what was made of it all."""


class LanguageModel(Protocol):
    """Answers in words."""

    def converse(self, conversations: Sequence[Callable[[], Conversation[T]]]) -> list[T]:
        """Hold conversations, many at a time; returns what each came to, in their order.

        They may be started more than once, so that they must always ask the same after the same replies.
        """
        ...

    def ahead(self, conversations: Iterable[Callable[[], Conversation[T]]]) -> None:
        """Get what is best asked for all rows at once; does nothing where that is no better. May iterate again."""
        ...
