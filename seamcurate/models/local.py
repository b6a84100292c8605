"""Models that answer here, through transformers and sentence-transformers.

A configuration (`CausalLM`, `SequenceClassifier`, `SentenceEncoder`) is a value and imports nothing heavy;
`load()` returns the thing with the weights. Scores do not depend on batch size or on neighbours: batches are
cut by a token budget, padded on the right and masked.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, ClassVar, Literal, TypeVar

import numpy as np
import numpy.typing as npt
from pydantic import JsonValue

from seamcurate.errors import ModelError
from seamcurate.models import tokens, weights
from seamcurate.models.backend import Backend
from seamcurate.models.protocols import Embedder, Likelihood, Policy, Prompt, Responses, RewardModel

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

Precision = Literal["auto", "float32", "bfloat16", "float16"]
T = TypeVar("T")


class LocalModel(Backend):
    """What the three local kinds share: where the weights come from and where they run."""

    revision: str | None = None
    """A Hub branch, tag or commit; it is pinned to the commit and recorded. Not for folders."""
    dtype: Precision = "auto"
    """bfloat16 on a GPU that has it, else float32."""
    device: str = "auto"
    """`cuda`, `cuda:1`, `mps`, `cpu`; by default the first of these that is there. Never part of a fingerprint."""
    batch_tokens: int = 8192
    """Padded tokens a forward pass holds at most: memory and speed, never a score. Not part of a fingerprint."""
    trust_remote_code: bool = False
    """Whether Python code that comes with the weights may run; recorded."""

    def identity(self) -> JsonValue:
        """Return the weights' content hash or Hub commit, the resolved dtype and what else moves a score."""
        moves = self.model_dump(mode="json") | {
            self.key: weights.identity(self.path, self.revision),
            "dtype": weights.precision(self.dtype, self.device),
        }
        return {key: value for key, value in moves.items() if key not in {"revision", "device", "batch_tokens"}}

    def count_tokens(self, texts: Sequence[str]) -> int:
        """Count tokens by the model's own tokenizer; the weights are not loaded."""
        from transformers import AutoTokenizer

        where = weights.folder(self.path, self.revision)
        tokenizer = AutoTokenizer.from_pretrained(where, trust_remote_code=self.trust_remote_code)
        return sum(len(ids) for ids in tokenizer(list(texts), add_special_tokens=False, verbose=False)["input_ids"])

    def _open(self, auto: type[Any]) -> tuple[Any, Any]:
        from transformers import AutoTokenizer

        folder = weights.folder(self.path, self.revision)
        device = weights.device(self.device)
        dtype = weights.torch_dtype(self.dtype, self.device)
        try:
            with _quietly():
                tokenizer = AutoTokenizer.from_pretrained(folder, trust_remote_code=self.trust_remote_code)
                model = auto.from_pretrained(
                    folder, dtype=dtype, use_safetensors=True, trust_remote_code=self.trust_remote_code
                )
        except (OSError, ValueError, RuntimeError) as error:
            raise ModelError(f"{self.key} {self.path}: {_first_line(error)}") from error
        return tokenizer, model.to(device).eval()


class CausalLM(LocalModel):
    """A policy: any causal language model of transformers."""

    key: ClassVar[str] = "causal_lm"
    max_response_tokens: int = 512
    """Longer responses are cut here and scored without the end-of-sequence token."""

    def load(self) -> Policy:
        """Load tokenizer and weights."""
        from transformers import AutoModelForCausalLM

        tokenizer, model = self._open(AutoModelForCausalLM)
        return _LoadedCausalLM(self, tokenizer, model)


class SequenceClassifier(LocalModel):
    """A reward model: any sequence classification model of transformers with one output."""

    key: ClassVar[str] = "sequence_classifier"
    max_tokens: int | None = None
    """Prompt and response together; the response's end is cut to fit. Default: the model's window, at most 2,048."""
    pair: bool = False
    """Give prompt and response as two segments, as encoder reward models such as OpenAssistant's expect."""

    def load(self) -> RewardModel:
        """Load tokenizer and weights; refuses a model with more than one output."""
        from transformers import AutoModelForSequenceClassification

        tokenizer, model = self._open(AutoModelForSequenceClassification)
        if model.config.num_labels != 1:
            raise ModelError(
                f"sequence_classifier {self.path} has {model.config.num_labels} outputs; a reward model has one"
            )
        return _LoadedClassifier(self, tokenizer, model)


class SentenceEncoder(LocalModel):
    """An encoder: any sentence-transformers model, or any transformers encoder with a pooling named here."""

    key: ClassVar[str] = "sentence_encoder"
    normalise: bool = True
    """Scale embeddings to length 1, so that a dot product is a cosine."""
    pooling: Literal["default", "mean", "cls", "pooler"] = "default"
    """`default` is what the model's own configuration says; SimCSE wants `pooler`, Contriever `mean`."""
    max_tokens: int | None = None
    """Longer texts are cut. Default: what the model's configuration says."""
    truncation: Literal["right", "left"] = "right"
    """Which end of a long text is cut."""

    def load(self) -> Embedder:
        """Load tokenizer and weights."""
        return _LoadedEncoder(self)


class _LoadedCausalLM:
    def __init__(self, config: CausalLM, tokenizer: PreTrainedTokenizerBase, model: PreTrainedModel) -> None:
        self.config, self.tokenizer, self.model = config, tokenizer, model
        self.window = weights.window(model, tokenizer)

    def logprobs(self, prompts: Sequence[Prompt], responses: Responses) -> list[list[Likelihood | None]]:
        """Score by group; see `Policy`."""
        flat = [(p, r) for p, group in zip(prompts, responses, strict=True) for r in group]
        ids = [tokens.policy_ids(self.tokenizer, p, r, self.config.max_response_tokens) for p, r in flat]
        fits = [
            i for i, (before, after) in enumerate(ids) if before and after and len(before) + len(after) <= self.window
        ]
        sums = dict(zip(fits, self._sums([ids[i] for i in fits]), strict=True))
        scored: list[Likelihood | None] = []
        for i, (prompt, response) in enumerate(flat):
            before, after = ids[i]
            crosses = tokens.crosses_boundary(self.tokenizer, prompt, response, before + after)
            scored.append(Likelihood(sums[i], len(after), crosses) if i in sums else None)
        return regroup(scored, responses)

    def _sums(self, ids: list[tuple[list[int], list[int]]]) -> list[float]:
        import torch

        sums = [0.0] * len(ids)
        pad = self.tokenizer.pad_token_id or 0
        joined = [before + after for before, after in ids]
        with torch.inference_mode():
            for batch in batches([len(j) for j in joined], self.config.batch_tokens):
                inputs = padded([joined[i] for i in batch], pad, self.model.device)
                logits = self.model(**inputs).logits
                for row, i in enumerate(batch):
                    start, end = len(ids[i][0]), len(joined[i])
                    picked = logits[row, start - 1 : end - 1].float()
                    target = torch.tensor(ids[i][1], device=picked.device)
                    sums[i] = -float(torch.nn.functional.cross_entropy(picked, target, reduction="sum"))
        return sums


class _LoadedClassifier:
    def __init__(self, config: SequenceClassifier, tokenizer: PreTrainedTokenizerBase, model: PreTrainedModel) -> None:
        self.config, self.tokenizer, self.model = config, tokenizer, model
        window = weights.window(model, tokenizer)
        self.limit = min(config.max_tokens or 2048, window)
        self.own_pad = model.config.pad_token_id

    def rewards(self, prompts: Sequence[Prompt], responses: Responses) -> list[list[float | None]]:
        """Score by group; see `RewardModel`."""
        import torch

        flat = [(p, r) for p, group in zip(prompts, responses, strict=True) for r in group]
        ids = [tokens.reward_ids(self.tokenizer, p, r, self.limit, self.config.pair) for p, r in flat]
        scores: list[float | None] = [None] * len(ids)
        fits = [(i, one) for i, one in enumerate(ids) if one is not None]
        with torch.inference_mode():
            for batch in batches([len(one) for _, one in fits], self.config.batch_tokens):
                sequences = [fits[b][1] for b in batch]
                pad = self._pad(sequences)
                inputs = padded(sequences, pad, self.model.device)
                if self.config.pair:
                    inputs["token_type_ids"] = self._segments(sequences, inputs["input_ids"])
                logits = self.model(**inputs).logits[:, 0].float().tolist()
                for b, score in zip(batch, logits, strict=True):
                    scores[fits[b][0]] = float(score)
        return regroup(scores, responses)

    def _pad(self, sequences: list[list[int]]) -> int:
        """Return an id to pad with; decoder heads read the last token that is not it, so it must not be in the batch."""
        if self.own_pad is not None:
            return int(self.own_pad)
        used = {token for sequence in sequences for token in sequence}
        pad = next(i for i in range(len(used) + 1) if i not in used)
        self.model.config.pad_token_id = pad
        return pad

    def _segments(self, sequences: list[list[int]], like: torch.Tensor) -> torch.Tensor:
        import torch

        kinds = torch.zeros_like(like)
        separator = self.tokenizer.sep_token_id
        for row, sequence in enumerate(sequences):
            if separator in sequence:
                kinds[row, sequence.index(separator) + 1 : len(sequence)] = 1
        return kinds


class _LoadedEncoder:
    def __init__(self, config: SentenceEncoder) -> None:
        from sentence_transformers import SentenceTransformer

        self.config = config
        folder = weights.folder(config.path, config.revision)
        options = {"dtype": weights.torch_dtype(config.dtype, config.device), "use_safetensors": True}
        try:
            if config.pooling == "default":
                with _quietly():
                    self.model: Any = SentenceTransformer(
                        str(folder),
                        device=weights.device(config.device),
                        trust_remote_code=config.trust_remote_code,
                        model_kwargs=options,
                    )
                self.backbone, self.tokenizer = None, self.model.tokenizer
                self.limit = config.max_tokens or self.model.max_seq_length or 512
                self.model.max_seq_length = self.limit
            else:
                from transformers import AutoModel

                self.tokenizer, self.backbone = config._open(AutoModel)
                self.limit = config.max_tokens or min(512, weights.window(self.backbone, self.tokenizer))
        except (OSError, ValueError, RuntimeError) as error:
            raise ModelError(f"sentence_encoder {config.path}: {_first_line(error)}") from error
        self.tokenizer.truncation_side = config.truncation

    def embed(self, texts: Sequence[str]) -> npt.NDArray[np.float32]:
        """Embed each text; see `Embedder`."""
        unique = list(dict.fromkeys(texts))
        if not unique:
            return np.zeros((0, 0), np.float32)
        vectors = self._pooled(unique) if self.backbone is not None else self._encoded(unique)
        if self.config.normalise:
            vectors = vectors / np.maximum(np.linalg.norm(vectors, axis=1, keepdims=True), 1e-12)
        place = {text: i for i, text in enumerate(unique)}
        result: npt.NDArray[np.float32] = vectors[[place[text] for text in texts]].astype(np.float32)
        return result

    def _encoded(self, texts: list[str]) -> npt.NDArray[np.float32]:
        size = max(1, self.config.batch_tokens // self.limit)
        # sentence-transformers sorts by length itself; the batch is sized for the longest text it may meet.
        encoded: npt.NDArray[np.float32] = self.model.encode(
            texts, batch_size=size, normalize_embeddings=False, convert_to_numpy=True, show_progress_bar=False
        )
        return encoded.astype(np.float32).reshape(len(texts), -1)

    def _pooled(self, texts: list[str]) -> npt.NDArray[np.float32]:
        import torch

        assert self.backbone is not None
        ids = [self.tokenizer(t, truncation=True, max_length=self.limit)["input_ids"] for t in texts]
        rows: list[Any] = [None] * len(ids)
        with torch.inference_mode():
            for batch in batches([len(i) for i in ids], self.config.batch_tokens):
                inputs = padded([ids[b] for b in batch], self.tokenizer.pad_token_id or 0, self.backbone.device)
                output = self.backbone(**inputs)
                if self.config.pooling == "pooler":
                    pooled = output.pooler_output
                elif self.config.pooling == "cls":
                    pooled = output.last_hidden_state[:, 0]
                else:
                    mask = inputs["attention_mask"][:, :, None].to(output.last_hidden_state.dtype)
                    pooled = (output.last_hidden_state * mask).sum(1) / mask.sum(1)
                for row, b in zip(pooled.float().cpu().numpy(), batch, strict=True):
                    rows[b] = row
        return np.asarray(rows, np.float32).reshape(len(texts), -1)


def batches(lengths: Sequence[int], budget: int) -> Iterator[list[int]]:
    """Cut indices into batches of like lengths, longest first, each at most `budget` padded tokens (or one row)."""
    batch: list[int] = []
    for i in sorted(range(len(lengths)), key=lambda i: -lengths[i]):
        if batch and lengths[batch[0]] * (len(batch) + 1) > budget:
            yield batch
            batch = []
        batch.append(i)
    if batch:
        yield batch


def padded(sequences: list[list[int]], pad: int, device: torch.device) -> dict[str, torch.Tensor]:
    """Pad on the right; returns `input_ids` and `attention_mask`, batch × longest."""
    import torch

    longest = max(len(s) for s in sequences)
    ids = torch.tensor([s + [pad] * (longest - len(s)) for s in sequences], device=device)
    mask = torch.tensor([[1] * len(s) + [0] * (longest - len(s)) for s in sequences], device=device)
    return {"input_ids": ids, "attention_mask": mask}


def regroup(flat: Sequence[T], like: Sequence[Sequence[object]]) -> list[list[T]]:
    """Cut a flat list into groups of the sizes of `like`."""
    groups, start = [], 0
    for group in like:
        groups.append(list(flat[start : start + len(group)]))
        start += len(group)
    return groups


@contextmanager
def _quietly() -> Iterator[None]:
    """Keep transformers' own bars off while weights are read: a step shows one bar, its own."""
    from transformers.utils import logging

    shown = logging.is_progress_bar_enabled()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        if shown:
            logging.enable_progress_bar()


def _first_line(error: Exception) -> str:
    return str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
