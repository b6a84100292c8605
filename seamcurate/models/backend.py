"""What every model configuration is: a frozen value, written the same way in YAML, JSON and Python.

`{causal_lm: my-org/sft-7b, dtype: bfloat16}` and `CausalLM(path="my-org/sft-7b", dtype="bfloat16")` are one value.
"""

from __future__ import annotations

import datetime
from abc import abstractmethod
from collections.abc import Sequence
from typing import Any, ClassVar, Self

from pydantic import BaseModel, ConfigDict, JsonValue, SerializerFunctionWrapHandler, model_serializer, model_validator


class Backend(BaseModel):
    """Name a model; nothing is loaded until a step asks for it."""

    # What was refused is not shown: it may be a key in the wrong place.
    model_config = ConfigDict(frozen=True, extra="forbid", hide_input_in_errors=True)

    key: ClassVar[str]
    """The recipe's word for this kind of model; its value there is the path."""

    path: str
    """A folder, or a Hugging Face Hub id."""

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

    @abstractmethod
    def identity(self) -> JsonValue:
        """Return what decides the model's answers."""

    def dated(self, day: datetime.date) -> Self:
        """Return the model with `day` as the date that its prompts hold; itself where they hold none."""
        return self

    def price(self, tokens_in: float, tokens_out: float) -> float | None:
        """Return what tokens cost in dollars; None where nobody asks for money, or the recipe gives no prices."""
        return None

    @abstractmethod
    def count_tokens(self, texts: Sequence[str]) -> int:
        """Count the tokens of texts, for estimates."""
