"""The roles that models play in a recipe: which kind of model fills each, and what a step without its model says."""

from __future__ import annotations

from collections.abc import Callable
from typing import Annotated, Protocol, TypeAlias, TypeVar

from pydantic import Discriminator, Tag

from seamcurate.errors import ModelError
from seamcurate.models.backend import Backend
from seamcurate.models.causal_lm import CausalLM
from seamcurate.models.fake import FakeModel
from seamcurate.models.sentence_encoder import SentenceEncoder
from seamcurate.models.sequence_classifier import SequenceClassifier
from seamcurate.models.server import OpenAIServer

Loaded_co = TypeVar("Loaded_co", covariant=True)

ROLES: dict[str, type[Backend]] = {
    "policy": CausalLM,
    "base": CausalLM,
    "reward": SequenceClassifier,
    "encoder": SentenceEncoder,
    "generator": OpenAIServer,
    "judge": OpenAIServer,
}
"""The keys of a recipe's `models`, and the kind of model that each names."""


class _Loadable(Protocol[Loaded_co]):
    def load(self) -> Loaded_co: ...


def load(model: _Loadable[Loaded_co] | None, role: str, step: str) -> Loaded_co:
    """Load the model that a step needs.

    Args:
        model: What the step has for the role.
        role: A key of `ROLES`.
        step: The step's name.

    Raises:
        ModelError: The step has none, or it cannot be loaded.
    """
    if model is None:
        raise ModelError(no_model(role, step))
    return model.load()


def no_model(role: str, step: str) -> str:
    """Say that a step lacks a model, and where the recipe names one.

    Example:
        >>> no_model("encoder", "worse_contrast")
        'step worse_contrast has no encoder model; give the recipe `models: {encoder: {sentence_encoder: …}}`'
    """
    return f"step {step} has no {role} model; give the recipe `models: {{{role}: {{{ROLES[role].key}: …}}}}`"


def _kind(real: type[Backend]) -> Callable[[object], str]:
    """Tell a fake model from the real kind by its key; any other value is checked as the real kind."""

    def kind(value: object) -> str:
        if isinstance(value, Backend):
            return value.key
        return FakeModel.key if isinstance(value, dict) and FakeModel.key in value else real.key

    return kind


PolicyModel: TypeAlias = Annotated[
    Annotated[CausalLM, Tag("causal_lm")] | Annotated[FakeModel, Tag("fake")], Discriminator(_kind(CausalLM))
]
"""What a recipe may name as a policy."""
RewardingModel: TypeAlias = Annotated[
    Annotated[SequenceClassifier, Tag("sequence_classifier")] | Annotated[FakeModel, Tag("fake")],
    Discriminator(_kind(SequenceClassifier)),
]
"""What a recipe may name as a reward model."""
EncoderModel: TypeAlias = Annotated[
    Annotated[SentenceEncoder, Tag("sentence_encoder")] | Annotated[FakeModel, Tag("fake")],
    Discriminator(_kind(SentenceEncoder)),
]
"""What a recipe may name as an encoder."""
LanguageModelConfig: TypeAlias = Annotated[
    Annotated[OpenAIServer, Tag("openai_server")] | Annotated[FakeModel, Tag("fake")],
    Discriminator(_kind(OpenAIServer)),
]
"""What a recipe may name to generate and to judge."""
