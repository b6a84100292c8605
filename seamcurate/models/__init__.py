"""Models: what a step may ask (`protocols`), and who answers (`local`, `fake`)."""

from __future__ import annotations

from collections.abc import Callable
from typing import Annotated, TypeAlias

from pydantic import Discriminator, Tag

from seamcurate.models.backend import Backend
from seamcurate.models.fake import FakeModel
from seamcurate.models.local import CausalLM, SentenceEncoder, SequenceClassifier
from seamcurate.models.protocols import (
    Conversation,
    Embedder,
    LanguageModel,
    Likelihood,
    Message,
    Policy,
    Prompt,
    Reply,
    Request,
    RewardModel,
)
from seamcurate.models.server import OpenAIServer

__all__ = [
    "CausalLM",
    "Conversation",
    "Embedder",
    "EncoderModel",
    "FakeModel",
    "LanguageModel",
    "LanguageModelConfig",
    "Likelihood",
    "Message",
    "OpenAIServer",
    "Policy",
    "PolicyModel",
    "Prompt",
    "Reply",
    "Request",
    "RewardModel",
    "RewardingModel",
    "SentenceEncoder",
    "SequenceClassifier",
]


def _kind(own: str) -> Callable[[object], str]:
    """Tell a fake from the real kind by its key; whatever else is given is checked as the real kind."""

    def kind(value: object) -> str:
        if isinstance(value, Backend):
            return value.key
        return "fake" if isinstance(value, dict) and "fake" in value else own

    return kind


PolicyModel: TypeAlias = Annotated[
    Annotated[CausalLM, Tag("causal_lm")] | Annotated[FakeModel, Tag("fake")],
    Discriminator(_kind("causal_lm")),
]
"""What a recipe may name as a policy."""
RewardingModel: TypeAlias = Annotated[
    Annotated[SequenceClassifier, Tag("sequence_classifier")] | Annotated[FakeModel, Tag("fake")],
    Discriminator(_kind("sequence_classifier")),
]
"""What a recipe may name as a reward model."""
EncoderModel: TypeAlias = Annotated[
    Annotated[SentenceEncoder, Tag("sentence_encoder")] | Annotated[FakeModel, Tag("fake")],
    Discriminator(_kind("sentence_encoder")),
]
"""What a recipe may name as an encoder."""
LanguageModelConfig: TypeAlias = Annotated[
    Annotated[OpenAIServer, Tag("openai_server")] | Annotated[FakeModel, Tag("fake")],
    Discriminator(_kind("openai_server")),
]
"""What a recipe may name to generate and to judge."""
