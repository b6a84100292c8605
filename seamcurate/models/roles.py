"""The roles that models play in a recipe: which kind of model fills each, and what a step without its model says."""

from __future__ import annotations

from typing import Annotated, Protocol, TypeAlias, TypeVar, runtime_checkable

from pydantic import Discriminator, Tag

from seamcurate.errors import ModelError
from seamcurate.models import tokens
from seamcurate.models.backend import Backend, kind_of
from seamcurate.models.causal_lm import CausalLM
from seamcurate.models.completion_server import CompletionServer
from seamcurate.models.embedding_server import EmbeddingServer
from seamcurate.models.ensemble import RewardEnsemble
from seamcurate.models.fake import FakeModel
from seamcurate.models.function import RewardFunction
from seamcurate.models.judge import JudgeModel
from seamcurate.models.language_model import LANGUAGE_MODELS
from seamcurate.models.protocols import Sampler
from seamcurate.models.reward_server import RewardServer
from seamcurate.models.rubric import RubricModel
from seamcurate.models.sentence_encoder import SentenceEncoder
from seamcurate.models.sequence_classifier import SequenceClassifier

Loaded_co = TypeVar("Loaded_co", covariant=True)

_POLICIES: tuple[type[Backend], ...] = (CausalLM, CompletionServer, FakeModel)
SINGLE_REWARDS: tuple[type[Backend], ...] = (
    SequenceClassifier,
    RewardServer,
    RewardFunction,
    RubricModel,
    JudgeModel,
    FakeModel,
)
"""The kinds of model that an ensemble may have as a member, and a step as a second opinion."""
_REWARDS: tuple[type[Backend], ...] = (*SINGLE_REWARDS, RewardEnsemble)
_ENCODERS: tuple[type[Backend], ...] = (SentenceEncoder, EmbeddingServer, FakeModel)

ROLES: dict[str, tuple[type[Backend], ...]] = {
    "policy": _POLICIES,
    "base": _POLICIES,
    "reward": _REWARDS,
    "encoder": _ENCODERS,
    "generator": LANGUAGE_MODELS,
    "judge": LANGUAGE_MODELS,
}
"""The keys of a recipe's `models`, and the kinds of model that each may name; messages show the first.

To add a kind, write its module, and name it here and in the role's type below. A mapping names the first kind of the list
whose key it has.
"""


@runtime_checkable
class _Answering(Protocol):
    title: str

    def load_sampler(self) -> Sampler: ...


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


def load_sampler(policy: PolicyModel | None, step: str) -> Sampler:
    """Load the policy that answers in a step, as `load` loads one that scores.

    Raises:
        ModelError: The step has none, it cannot be loaded, or nothing can be sampled from it.
    """
    if policy is None:
        raise ModelError(no_model("policy", step))
    if not isinstance(policy, _Answering):
        raise ModelError(f"step {step}: {policy.title} cannot be sampled from")
    return policy.load_sampler()


def check_chats(policy: PolicyModel | None, step: str) -> None:
    """Refuse a policy that is to answer chats without a chat template: what it says to another form tells little.

    Raises:
        ModelError: Its tokenizer has no chat template, and the recipe says no form.
    """
    texts = policy.texts() if isinstance(policy, CompletionServer) else policy
    if isinstance(texts, CausalLM) and tokens.lacks_template(texts.tokenizer(), texts):
        raise ModelError(
            f"step {step}: prompts are chats, and {texts.title} has no chat template to answer them by; save one with its "
            "tokenizer, or say `form: plain` to ask it “Question: … Answer:”"
        )


def no_model(role: str, step: str) -> str:
    """Say that a step lacks a model, and where the recipe names one.

    Example:
        >>> no_model("encoder", "worse_contrast")
        'step worse_contrast has no encoder model; give the recipe `models: {encoder: {sentence_encoder: …}}`'
    """
    return f"step {step} has no {role} model; give the recipe `models: {{{role}: {{{ROLES[role][0].key}: …}}}}`"


PolicyModel: TypeAlias = Annotated[
    Annotated[CausalLM, Tag(CausalLM.key)]
    | Annotated[CompletionServer, Tag(CompletionServer.key)]
    | Annotated[FakeModel, Tag(FakeModel.key)],
    Discriminator(kind_of(*_POLICIES)),
]
"""What a recipe may name as a policy."""
_Single: TypeAlias = (
    Annotated[SequenceClassifier, Tag(SequenceClassifier.key)]
    | Annotated[RewardFunction, Tag(RewardFunction.key)]
    | Annotated[RubricModel, Tag(RubricModel.key)]
    | Annotated[JudgeModel, Tag(JudgeModel.key)]
    | Annotated[RewardServer, Tag(RewardServer.key)]
    | Annotated[FakeModel, Tag(FakeModel.key)]
)
SingleReward: TypeAlias = Annotated[_Single, Discriminator(kind_of(*SINGLE_REWARDS))]
"""What an ensemble may have as a member, and a step as a second opinion."""
# An ensemble is made of the kinds above, and is listed with them.
RewardEnsemble.model_rebuild(_types_namespace={"SingleReward": SingleReward})
RewardingModel: TypeAlias = Annotated[
    _Single | Annotated[RewardEnsemble, Tag(RewardEnsemble.key)], Discriminator(kind_of(*_REWARDS))
]
"""What a recipe may name as a reward model."""
EncoderModel: TypeAlias = Annotated[
    Annotated[SentenceEncoder, Tag(SentenceEncoder.key)]
    | Annotated[EmbeddingServer, Tag(EmbeddingServer.key)]
    | Annotated[FakeModel, Tag(FakeModel.key)],
    Discriminator(kind_of(*_ENCODERS)),
]
"""What a recipe may name as an encoder."""
