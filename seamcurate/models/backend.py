"""What every model configuration is: a frozen value, written the same way in YAML, JSON and Python.

`{causal_lm: my-org/sft-7b, dtype: bfloat16}` and `CausalLM(path="my-org/sft-7b", dtype="bfloat16")` are one value.
"""

from __future__ import annotations

import datetime
from abc import abstractmethod
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, Any, ClassVar, Self

from pydantic import BaseModel, ConfigDict, JsonValue, SerializerFunctionWrapHandler, model_serializer, model_validator

if TYPE_CHECKING:
    from seamcurate.models.protocols import RewardModel
    from seamcurate.step import Work


class Backend(BaseModel):
    """Name a model; nothing is loaded until a step asks for it."""

    # What was refused is not shown: it may be a key in the wrong place.
    model_config = ConfigDict(frozen=True, extra="forbid", hide_input_in_errors=True)

    key: ClassVar[str]
    """The recipe's word for this kind of model."""

    @property
    @abstractmethod
    def title(self) -> str:
        """Name the model in messages."""

    @abstractmethod
    def identity(self) -> JsonValue:
        """Return what decides the model's answers."""

    def parts(self) -> Iterator[Backend]:
        """Yield the model, and the models that it is made of."""
        yield self

    def dated(self, day: datetime.date) -> Self:
        """Return the model with `day` as the date that its prompts hold; itself where they hold none."""
        return self

    def price(self, tokens_in: float, tokens_out: float) -> float | None:
        """Return what tokens cost in dollars; None where nobody asks for money, or the recipe gives no prices."""
        return None

    @abstractmethod
    def count_tokens(self, texts: Sequence[str]) -> int:
        """Count the tokens of texts, for estimates."""


class NamedModel(Backend):
    """Name a model by one text, `path`: in YAML it is the value of the model's own key."""

    path: str
    """A folder, or a Hugging Face Hub id."""

    @property
    def title(self) -> str:
        """Name the kind of model, and the model."""
        return f"{self.key} {self.path}"

    @model_validator(mode="before")
    @classmethod
    def _path_from_key(cls, value: Any) -> Any:
        if isinstance(value, dict) and cls.key in value:
            return {"path": value[cls.key], **{k: v for k, v in value.items() if k != cls.key}}
        return value

    @model_serializer(mode="wrap")
    def _key_for_path(self, handler: SerializerFunctionWrapHandler) -> dict[str, JsonValue]:
        fields = dict(handler(self))
        return {self.key: fields.pop("path"), **fields}


class RewardConfig(Backend):
    """Name a reward model of any kind, and say what its rewards are: the columns that steps add follow from it."""

    noise_rows: ClassVar[int] = 4
    """Rows that its noise is measured on."""
    noise_answers: ClassVar[int] = 3
    """Answers of such a row, at most."""

    @abstractmethod
    def load(self) -> RewardModel:
        """Load the reward model."""

    def work(self, answers: float, characters: float) -> list[Work]:
        """Estimate the work of scoring some answers of a row.

        Args:
            answers: How many.
            characters: Of all of them, each with its prompt.
        """
        from seamcurate.step import Work

        return [Work(self, answers, characters)]

    def noise_work(self, answers: float, characters: float) -> list[Work]:
        """Estimate what `RewardModel.noise` costs beyond the rewards themselves: nothing where it asks nobody.

        Args:
            answers: How many answers of the sample.
            characters: Of all of them, each with its prompt.
        """
        return []

    def columns_read(self) -> tuple[str, ...]:
        """Name the columns of a row that it reads beside prompt and response."""
        return ()

    def output_names(self) -> tuple[str, ...]:
        """Name the outputs that become columns of their own, `reward_<name>`."""
        return ()

    def member_names(self) -> tuple[str, ...]:
        """Name the reward models that an ensemble asks; none for a single model."""
        return ()

    def asks_ahead(self) -> bool:
        """Tell whether `RewardModel.ask_ahead` asks for anything."""
        return False

    def gives_reasons(self) -> bool:
        """Tell whether it says why an answer has no reward."""
        return False

    def summary(self) -> str | None:
        """Say in one line what a run should tell of the model; None where there is nothing to tell."""
        return None

    def is_binary(self) -> bool:
        """Tell whether every reward is 0 or 1."""
        return False

    def scale_range(self) -> tuple[float, float] | None:
        """Return the lowest and the highest reward; None where they are not known."""
        return None


def models_of(configuration: BaseModel) -> Iterator[Backend]:
    """Yield the models among the fields of a configuration, such as a step, and the models that they are made of."""
    for _, value in configuration:
        if isinstance(value, Backend):
            yield from value.parts()


def kind_of(*kinds: type[Backend]) -> Callable[[object], str]:
    """Return a function that tells kinds of models apart: by the first of their keys that a mapping has.

    A value with none of the keys is checked as the first kind, whose errors then name its keys.

    Example:
        >>> from seamcurate.models import CausalLM, FakeModel
        >>> kind_of(CausalLM, FakeModel)({"fake": "0"})
        'fake'
    """

    def kind(value: object) -> str:
        if isinstance(value, Backend):
            return value.key
        keys = [kind.key for kind in kinds if isinstance(value, dict) and kind.key in value]
        return keys[0] if keys else kinds[0].key

    return kind
