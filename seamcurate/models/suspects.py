"""The known ways in which a server scores the same weights otherwise, each tried here on the same texts.

A suspect is a model here that errs as such a server does. Where its scores are the server's, the cause is found.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any, Literal, NamedTuple

from seamcurate.models import prefix, tokens, weights
from seamcurate.models.causal_lm import CausalLM
from seamcurate.models.local import LocalModel, PromptedModel
from seamcurate.models.protocols import Prompt, Responses, RewardModel
from seamcurate.models.sentence_encoder import SentenceEncoder
from seamcurate.models.sequence_classifier import SequenceClassifier


class Suspect(NamedTuple):
    """One way in which a server may err."""

    cause: str
    """What it does, and what to do about it."""
    load: Callable[[], Any]
    """Loads a model that errs in the same way."""


def suspects(model: LocalModel) -> Iterator[Suspect]:
    """Yield the ways in which a server may read other texts, or read them otherwise, than a local model does."""
    if isinstance(model, CausalLM | SequenceClassifier):
        yield from _spelled(model)
    if isinstance(model, SentenceEncoder):
        yield from _pooled(model)
    base = weights.base(model.origin)
    if base is not None:
        named = {"base": None} if isinstance(model, PromptedModel) else {}
        plain = model.model_copy(update={"path": base.path, "revision": base.revision, **named})
        yield Suspect(f"the server runs {base.path} without the adapter", plain.load)


def precisions(model: LocalModel) -> Iterator[tuple[str, LocalModel]]:
    """Yield the precisions that a server may compute in other than the model's here, with the model in each."""
    own = model.precision()
    for name in ("bfloat16", "float16", "float32"):
        if name != own:
            yield name, model.model_copy(update={"dtype": name})


def _spelled(model: PromptedModel) -> Iterator[Suspect]:
    if isinstance(model, SequenceClassifier) and model.pair:
        return
    tokenizer = model.tokenizer()
    own = model.prompt_form(tokenizer)

    def altered(**changes: Any) -> Callable[[], Any]:
        def load() -> Any:
            loaded: Any = model.load()
            loaded.form = loaded.form._replace(**changes)
            return loaded

        return load

    if tokenizer.bos_token_id is not None:
        yield Suspect("the server reads a second BOS; send token ids, or text without BOS", altered(starts=1))
        yield Suspect("the server reads no BOS; let its tokenizer add one, or send token ids", altered(starts=-1))
    if isinstance(model, SequenceClassifier):
        cause = "the server reads the score at the answer's last token; let the text end in what closes the answer"
        yield Suspect(cause, altered(closes=False))
        yield Suspect("the server pools otherwise: the mean over all tokens", lambda: _Pooled(model, "mean"))
        yield Suspect("the server pools otherwise: the first token", lambda: _Pooled(model, "first"))
    for name in ("chat", "plain", "bare"):
        if name != own.name and (name != "chat" or tokenizer.chat_template):
            other = model.model_copy(update={"form": name, "template": None, "date": None})
            what = "its chat template" if name == "chat" else f"`form: {name}`"
            yield Suspect(f"the server's texts have another form: {what}", other.load)


class _Pooled(RewardModel):
    """A decoder whose score is not read at the last token; it has none where the classifier is no decoder."""

    def __init__(self, model: SequenceClassifier, pooling: Literal["mean", "first"]) -> None:
        loaded: Any = model.load()
        self.loaded = loaded
        self.mean = pooling == "mean"
        self.parts = prefix.output_head(self.loaded.model, getattr(self.loaded.model, "score", None))

    def rewards(self, prompts: Sequence[Prompt], responses: Responses) -> list[list[float | None]]:
        """Score pair by pair; the head is linear, so that the mean of its scores is its score of the mean."""
        return [
            [self._reward(prompt, answer) for answer in row] for prompt, row in zip(prompts, responses, strict=True)
        ]

    def _reward(self, prompt: Prompt, answer: str) -> float | None:
        import torch

        loaded = self.loaded
        ids = tokens.reward_ids(loaded.tokenizer, prompt, answer, loaded.limit, loaded.form)
        if self.parts is None or not ids:
            return None
        with torch.inference_mode():
            hidden = self.parts.body(input_ids=torch.tensor([ids], device=loaded.model.device)).last_hidden_state
            # (tokens,)
            scores = self.parts.head(hidden)[0, :, 0].float()
        return float(scores.mean() if self.mean else scores[0])


def _pooled(model: SentenceEncoder) -> Iterator[Suspect]:
    verb = "does not normalise embeddings, and `normalise: true` is set" if model.normalise else "normalises embeddings"
    yield Suspect(f"the server {verb}", model.model_copy(update={"normalise": not model.normalise}).load)
    for pooling in ("mean", "cls", "pooler"):
        if pooling != model.pooling:
            other = model.model_copy(update={"pooling": pooling})
            yield Suspect(f"the server pools otherwise: `pooling: {pooling}`", other.load)
