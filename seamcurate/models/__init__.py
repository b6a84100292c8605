"""Models: what a step may ask (`protocols`), and who answers (`local`, `fake`)."""

from __future__ import annotations

from seamcurate.models.causal_lm import CausalLM
from seamcurate.models.completion_server import CompletionServer
from seamcurate.models.embedding_server import EmbeddingServer
from seamcurate.models.ensemble import RewardEnsemble
from seamcurate.models.fake import FakeModel
from seamcurate.models.function import RewardFunction
from seamcurate.models.judge import JudgeModel
from seamcurate.models.language_model import LanguageModelConfig
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
    Sample,
    Sampler,
    SampleRequest,
    Sampling,
)
from seamcurate.models.reward_server import RewardServer
from seamcurate.models.roles import EncoderModel, PolicyModel, RewardingModel
from seamcurate.models.rubric import Criterion, RubricModel
from seamcurate.models.sentence_encoder import SentenceEncoder
from seamcurate.models.sequence_classifier import SequenceClassifier
from seamcurate.models.server import OpenAIServer

__all__ = [
    "CausalLM",
    "CompletionServer",
    "Conversation",
    "Criterion",
    "Embedder",
    "EmbeddingServer",
    "EncoderModel",
    "FakeModel",
    "JudgeModel",
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
    "RewardEnsemble",
    "RewardFunction",
    "RewardModel",
    "RewardServer",
    "RewardingModel",
    "RubricModel",
    "Sample",
    "SampleRequest",
    "Sampler",
    "Sampling",
    "SentenceEncoder",
    "SequenceClassifier",
]
