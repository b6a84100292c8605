"""The kinds of language models: what a recipe may name to generate, to answer questions about rows, and to rate answers."""

from __future__ import annotations

from typing import Annotated, TypeAlias

from pydantic import Discriminator, Tag

from seamcurate.models.backend import Backend, kind_of
from seamcurate.models.fake import FakeModel
from seamcurate.models.server import OpenAIServer

LANGUAGE_MODELS: tuple[type[Backend], ...] = (OpenAIServer, FakeModel)

LanguageModelConfig: TypeAlias = Annotated[
    Annotated[OpenAIServer, Tag(OpenAIServer.key)] | Annotated[FakeModel, Tag(FakeModel.key)],
    Discriminator(kind_of(*LANGUAGE_MODELS)),
]
"""What a recipe may name to generate and to judge."""
