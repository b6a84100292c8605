"""Models that answer here, through transformers and sentence-transformers.

A configuration (`CausalLM`, `SequenceClassifier`, `SentenceEncoder`) is a value and imports nothing heavy;
`load()` returns the thing with the weights. Scores do not depend on batch size or on neighbours. Decoders read
through `prefix`, each prompt once; encoders in batches of like lengths, cut by a token budget, padded and masked.
"""

from __future__ import annotations

import datetime
import inspect
import math
import shutil
import tempfile
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal, NamedTuple, Self, TypeVar

import numpy as np
import numpy.typing as npt
from pydantic import Field, JsonValue, model_validator

from seamcurate.errors import ModelError, first_line, typed_line
from seamcurate.models import checkpoint, prefix, probe, tokens, weights
from seamcurate.models.backend import Backend
from seamcurate.models.batching import Batches, accepted, automatic_budget, freed, moved, padded
from seamcurate.models.product import quicken
from seamcurate.models.protocols import Embedder, Likelihood, Policy, Prompt, Responses, RewardModel
from seamcurate.models.template import CLOCK, Form, FormSettings
from seamcurate.models.vectors import normalised
from seamcurate.progress import note

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

Precision = Literal["auto", "float32", "bfloat16", "float16"]
T = TypeVar("T")


class LocalModel(Backend):
    """What the three local kinds share: where the weights come from and where they run."""

    kind: ClassVar[str]
    """What its weights were trained as, in words."""
    texts: ClassVar[dict[str, JsonValue]] = {}
    """How texts become ids, where that is decided here and not by the model's library: part of the fingerprint."""

    revision: str | None = None
    """A Hub branch, tag or commit; it is pinned to the commit and recorded. Not for folders."""
    dtype: Precision = "auto"
    """bfloat16 on a GPU that has it, else float32."""
    device: str = "auto"
    """`cuda`, `cuda:1`, `mps`, `cpu`; by default the first of these that is there. Never part of a fingerprint."""
    batch_tokens: int | None = Field(default=None, ge=1)
    """Tokens a forward pass holds at most: memory and speed, never a score. Not part of a fingerprint. By default
    chosen by the device. Halved whenever a GPU's memory runs out."""
    trust_remote_code: bool = False
    """Whether Python code that comes with the weights may run; recorded."""

    def identity(self) -> JsonValue:
        """Return the weights' content hash or Hub commit, the resolved dtype and what else moves a score."""
        moves = self.model_dump(mode="json") | {
            self.key: weights.identity(self.path, self.revision),
            "dtype": weights.precision(self.dtype, self.device),
            **self.texts,
        }
        return {key: value for key, value in moves.items() if key not in {"revision", "device", "batch_tokens"}}

    def count_tokens(self, texts: Sequence[str]) -> int:
        """Count tokens by the model's own tokenizer; the weights are not loaded."""
        tokenizer = self.tokenizer()
        return sum(len(ids) for ids in tokenizer(list(texts), add_special_tokens=False, verbose=False)["input_ids"])

    def tokenizer(self) -> PreTrainedTokenizerBase:
        """Load the tokenizer alone."""
        from transformers import AutoTokenizer

        with told(f"{self.key} {self.path}"):
            where = weights.tokenizer_folder(self.path, self.revision)
            found: PreTrainedTokenizerBase = AutoTokenizer.from_pretrained(
                where, trust_remote_code=self.trust_remote_code
            )
        return found

    def check_device(self) -> None:
        """Refuse a device that is not on this machine."""
        with told(f"{self.key} {self.path}"):
            weights.check_device(self.device)

    def _folder(self) -> Path:
        self.check_device()
        if self.trust_remote_code:
            note(f"warning: {self.key} {self.path}: Python code that comes with the weights runs (trust_remote_code)")
        return weights.folder(self.path, self.revision)

    def _open(self, auto: type[Any], truncation: str | None = None, unread: tuple[str, ...] = ()) -> tuple[Any, Any]:
        """Load tokenizer and model; refuses weights that lack any, but for those whose names begin as `unread` say."""
        self._folder()
        device = weights.device(self.device)
        dtype = weights.torch_dtype(self.dtype, self.device)
        with told(f"{self.key} {self.path}"), _quietly():
            folder = weights.tokenizer_folder(self.path, self.revision)
            tokenizer = _tokenizer(folder, _state(folder), self.trust_remote_code, truncation)
            model, lacking = checkpoint.open_model(auto, self.path, self.revision, dtype, self.trust_remote_code)
        check_whole(f"{self.key} {self.path}", self.kind, lacking, unread)
        model = model.to(device).eval()
        quicken(model)
        return tokenizer, model


class PromptedModel(LocalModel, FormSettings):
    """What policies and reward models share: how prompts and responses become the text they read."""

    texts: ClassVar[dict[str, JsonValue]] = {"tokens": tokens.REVISION}

    def identity(self) -> JsonValue:
        """Return what `LocalModel.identity` does, with the form where one is set.

        Raises:
            ModelError: The form, its arguments or its date need a chat template that is not there.
        """
        moves = super().identity()
        assert isinstance(moves, dict)
        if self.form == "chat" or self.template or self.date:
            self._check_template()
        return {key: value for key, value in moves.items() if value or key not in ("form", "template", "date")}

    def prompt_form(self, tokenizer: PreTrainedTokenizerBase | None = None, ends: Sequence[int] | None = None) -> Form:
        r"""Return how prompts become the text that the model reads; what is not given is read from its files.

        Args:
            tokenizer: The model's own.
            ends: The ids that its generation configuration ends answers by.

        Example:
            >>> CausalLM(path="my-org/sft-7b", form="plain").prompt_form().prompt("What is a set?")  # doctest: +SKIP
            'Question: What is a set?\n\nAnswer:'

        Raises:
            ModelError: The form, or its arguments, need a chat template that the tokenizer does not have.
        """
        if ends is None:
            ends = weights.answer_ends(self.path, self.revision)
        return tokens.form_of(tokenizer or self.tokenizer(), self, ends)

    def dated(self, day: datetime.date) -> Self:
        """Return the model with `day` as the date that its chat template writes; itself where it has one or writes none."""
        if self.date is not None or not self._writes_date:
            return self
        return self.model_copy(update={"date": day})

    @property
    def _writes_date(self) -> bool:
        return self.form in (None, "chat") and CLOCK in weights.templates(self.path, self.revision)

    def _check_template(self) -> None:
        """Refuse settings of a chat template where there is none."""
        where, there = f"{self.key} {self.path}", weights.templates(self.path, self.revision)
        if self.form in (None, "chat") and not there:
            setting = "form: chat" if self.form else "template" if self.template else "date"
            raise ModelError(
                f"{where}: `{setting}` needs a chat template, and its tokenizer has none; "
                "leave it out, or save a template with the tokenizer"
            )
        if self.date and not self._writes_date:
            raise ModelError(f"{where}: its prompts hold no date; leave `date` out")


class CausalLM(PromptedModel):
    """A policy: any causal language model of transformers."""

    key: ClassVar[str] = "causal_lm"
    kind: ClassVar[str] = "a language model"
    max_response_tokens: int = 512
    """Longer responses are cut here and scored without the end-of-sequence token."""

    def load(self) -> Policy:
        """Load tokenizer and weights."""
        from transformers import AutoModelForCausalLM

        tokenizer, model = self._open(AutoModelForCausalLM)
        with told(f"{self.key} {self.path}"):
            return _LoadedCausalLM(self, tokenizer, model)


class SequenceClassifier(PromptedModel):
    """A reward model: any sequence classification model of transformers with one output."""

    key: ClassVar[str] = "sequence_classifier"
    kind: ClassVar[str] = "a reward model"
    max_tokens: int | None = None
    """Prompt and response together; the response's end is cut to fit. Default: the model's window, at most 2,048."""
    pair: bool = False
    """Give prompt and response as two segments, as encoder reward models such as OpenAssistant's expect."""

    @model_validator(mode="after")
    def _one_way(self) -> Self:
        if self.pair and (self.form is not None or self.template or self.date):
            raise ValueError("pair: true gives prompt and answer as two segments; leave form, template and date out")
        return self

    @property
    def _writes_date(self) -> bool:
        return not self.pair and super()._writes_date

    def load(self) -> RewardModel:
        """Load tokenizer and weights; refuses a model with more than one output."""
        from transformers import AutoModelForSequenceClassification

        tokenizer, model = self._open(AutoModelForSequenceClassification)
        if model.config.num_labels != 1:
            raise ModelError(
                f"sequence_classifier {self.path} has {model.config.num_labels} outputs; a reward model has one"
            )
        with told(f"{self.key} {self.path}"):
            return _LoadedClassifier(self, tokenizer, model)


class SentenceEncoder(LocalModel):
    """An encoder: any sentence-transformers model, or any transformers encoder with a pooling named here."""

    key: ClassVar[str] = "sentence_encoder"
    kind: ClassVar[str] = "an encoder"
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


@lru_cache(maxsize=4)
def _tokenizer(
    folder: Path, state: tuple[tuple[str, int, int], ...], trust_remote_code: bool, truncation: str | None
) -> Any:
    """Open a tokenizer once a process for each side that texts are cut at, as long as its files are as they are.

    One that was used leaves its cache of words behind when it is dropped, hundreds of kilobytes each (tokenizers 0.23).
    """
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(folder, trust_remote_code=trust_remote_code)


_KEPT: dict[tuple[object, ...], Any] = {}
"""What sentence-transformers opened first for the same files, side and length: all its models read by that one too."""


def _state(folder: Path) -> tuple[tuple[str, int, int], ...]:
    files = (file for file in folder.iterdir() if file.suffix != ".safetensors")
    return tuple(sorted((file.name, (state := file.stat()).st_size, state.st_mtime_ns) for file in files))


class _LoadedCausalLM:
    def __init__(self, config: CausalLM, tokenizer: PreTrainedTokenizerBase, model: PreTrainedModel) -> None:
        self.config, self.tokenizer, self.model = config, tokenizer, model
        self.form = config.prompt_form(tokenizer, weights.model_ends(model))
        self.window = weights.window(model, tokenizer)
        name = f"causal_lm {config.path}"
        probe.check_causal(model, name)
        parts = prefix.output_head(model, model.get_output_embeddings())
        self.reader = prefix.PrefixReader(model, parts, config.batch_tokens)
        if self.reader.together == 0:
            probe.tell_alone(name)
        else:
            probe.tell_longer(name, self.reader.together, self.window)

    def logprobs(self, prompts: Sequence[Prompt], responses: Responses) -> list[list[Likelihood | None]]:
        """Score by group; see `Policy`."""
        rows = _distinct(prompts, responses)
        fits: list[list[int]] = []
        about: list[list[tuple[int, bool]]] = []

        def groups() -> Iterator[prefix.Group]:
            for prompt, answers in rows.groups:
                try:
                    before, after, crossed = tokens.policy_group(
                        self.tokenizer, prompt, answers, self.config.max_response_tokens, self.form
                    )
                except _refusals():
                    before, after, crossed = [], [[] for _ in answers], [False] * len(answers)
                room = self.window - len(before)
                readable = before and _readable(self.model, before)
                fits.append(
                    [
                        i
                        for i, ids in enumerate(after)
                        if readable and 0 < len(ids) <= room and _readable(self.model, ids)
                    ]
                )
                about.append([(len(ids), crosses) for ids, crosses in zip(after, crossed, strict=True)])
                yield prefix.Group(before, [after[i] for i in fits[-1]])

        sums = self.reader.score(groups(), self._sums)
        scored: list[list[Likelihood | None]] = []
        for (_, answers), places, known, values in zip(rows.groups, fits, about, sums, strict=True):
            found: list[Likelihood | None] = [None] * len(answers)
            for i, value in zip(places, values, strict=True):
                found[i] = None if value is None else Likelihood(value, *known[i])
            scored.append(found)
        return rows.regroup(scored)

    def _sums(self, outputs: prefix.Outputs, pack: prefix.Pack) -> torch.Tensor:
        """Sum each response's log-probabilities; logits are made a slice at a time, their softmax in float32."""
        import torch

        device = self.model.device
        rows = [row for p in pack.places for row in (p.before, *range(p.start, p.end - 1))]
        target = moved([token for answer in pack.answers for token in answer], device)
        where = moved(rows, device)
        each = []
        for start in range(0, len(rows), self._slice):
            logits = outputs(where[start : start + self._slice]).float()
            each.append(
                -torch.nn.functional.cross_entropy(logits, target[start : start + self._slice], reduction="none")
            )
        lengths = moved([len(answer) for answer in pack.answers], device)
        owner = torch.repeat_interleave(torch.arange(len(lengths), device=device), lengths, output_size=len(rows))
        return torch.zeros(len(lengths), dtype=torch.float64, device=device).index_add_(
            0, owner, torch.cat(each).double()
        )

    @property
    def _slice(self) -> int:
        """Return how many positions have their logits at once: 16 MiB of them on a CPU, 512 MiB on a GPU."""
        room = 2**22 if self.model.device.type == "cpu" else 2**27
        return max(64, room // probe.vocabulary(self.model))


class _LoadedClassifier:
    def __init__(self, config: SequenceClassifier, tokenizer: PreTrainedTokenizerBase, model: PreTrainedModel) -> None:
        self.config, self.tokenizer, self.model = config, tokenizer, model
        self.form = None if config.pair else config.prompt_form(tokenizer, ())
        window = weights.window(model, tokenizer)
        self.limit = min(config.max_tokens or 2048, window)
        self.own_pad = _own_pad(model)
        self.batches = Batches(config.batch_tokens or automatic_budget(model), model.device)
        # A decoder's score is read at one token, so that its prompts can be shared; an encoder reads both ways.
        parts = prefix.output_head(model, getattr(model, "score", None))
        self.reader = None
        if parts is not None and not config.pair:
            reader = prefix.PrefixReader(model, parts, config.batch_tokens)
            self.reader = reader if reader.shared else None
        if self.reader is None:
            probe.forget_lengths(model)
        name = f"sequence_classifier {config.path}"
        self.batches.together = self._together(name)
        probe.tell_longer(name, self.batches.together, self.limit)

    def _together(self, name: str) -> float:
        """Return up to how many tokens texts may share a batch, measured on two of unlike lengths.

        Raises:
            ModelError: The model gives the same text another score each time.
        """
        import torch

        if self.reader is not None:
            return self.reader.together
        texts = [("A question that is longer than the other one", "an answer to it of some words"), ("Why", "no")]
        with suppress(*_refusals()), torch.inference_mode():
            ids = [self._ids(*text) for text in texts]
            sequences = [one for one in ids if one is not None]
            alone, again = (
                torch.tensor([self._score([one])[0] for one in sequences]),
                torch.tensor([self._score([one])[0] for one in sequences]),
            )
            if not probe.close(alone, again, self.model.dtype):
                raise ModelError(f"{name} gives the same text another score each time; it cannot be used to score")
            with suppress(RuntimeError, ValueError):
                if probe.close(torch.tensor(self._score(sequences)), alone, self.model.dtype):
                    return probe.longest_alike(self.model.config)
        probe.tell_alone(name)
        return 0

    def rewards(self, prompts: Sequence[Prompt], responses: Responses) -> list[list[float | None]]:
        """Score by group; see `RewardModel`."""
        rows = _distinct(prompts, responses)
        return rows.regroup(self._each(rows) if self.reader is None else self._shared(rows, self.reader))

    def _shared(self, rows: _Distinct, reader: prefix.PrefixReader) -> list[list[float | None]]:

        fits: list[list[int]] = []

        def groups() -> Iterator[prefix.Group]:
            for prompt, answers in rows.groups:
                try:
                    before, rest = tokens.reward_group(self.tokenizer, prompt, answers, self.limit, self.form)
                except _refusals():
                    before, rest = [], []
                readable = _readable(self.model, before)
                known = [(i, ids) for i, ids in enumerate(rest) if ids and readable and _readable(self.model, ids)]
                fits.append([i for i, _ in known])
                # The token that a score is read at must be a response's own: after an empty one there may be padding only.
                start = min([len(before), *(self._last(before + ids) for _, ids in known)])
                yield prefix.Group(before[:start], [before[start:] + ids for _, ids in known])

        def score(outputs: prefix.Outputs, pack: prefix.Pack) -> torch.Tensor:
            read = [p.start + self._last(ids) for p, ids in zip(pack.places, pack.answers, strict=True)]
            return outputs(moved(read, self.model.device))[:, 0].float()

        found = reader.score(groups(), score)
        scored: list[list[float | None]] = []
        for (_, answers), places, values in zip(rows.groups, fits, found, strict=True):
            row: list[float | None] = [None] * len(answers)
            for i, value in zip(places, values, strict=True):
                row[i] = value
            scored.append(row)
        return scored

    def _last(self, ids: list[int]) -> int:
        """Return the place transformers reads a decoder's score at: the last token that is not padding."""
        return next((i for i in reversed(range(len(ids))) if ids[i] != self.own_pad), len(ids) - 1)

    def _each(self, rows: _Distinct) -> list[list[float | None]]:
        import torch

        flat = [(p, r) for p, answers in rows.groups for r in answers]
        fits: list[tuple[int, list[int]]] = []
        for i, (p, r) in enumerate(flat):
            with suppress(*_refusals()):
                if (one := self._ids(p, r)) is not None and _readable(self.model, one):
                    fits.append((i, one))
        scores: list[float | None] = [None] * len(flat)
        with torch.inference_mode():
            for batch, found in self.batches.read(
                [len(one) for _, one in fits], lambda batch: self._score([fits[b][1] for b in batch])
            ):
                for b, value in zip(batch, found, strict=True):
                    scores[fits[b][0]] = value
        return regroup(scores, [answers for _, answers in rows.groups])

    def _ids(self, prompt: Prompt, response: str) -> list[int] | None:
        if self.config.pair:
            return tokens.pair_ids(self.tokenizer, prompt, response, self.limit)
        return tokens.reward_ids(self.tokenizer, prompt, response, self.limit, self.form)

    def _score(self, sequences: list[list[int]]) -> list[float]:
        """Read sequences as one batch."""
        inputs = padded(sequences, self._pad(sequences), self.model.device)
        if self.config.pair and _segment_kinds(self.model) > 1:
            inputs["token_type_ids"] = self._segments(sequences, inputs["input_ids"])
        found: list[float] = self.model(**accepted(self.model, **inputs)).logits[:, 0].float().tolist()
        return found

    def _pad(self, sequences: list[list[int]]) -> int:
        """Return an id to pad with; decoder heads read the last token that is not it, so it must not be in the batch."""
        if self.own_pad is not None:
            return self.own_pad
        used = {token for sequence in sequences for token in sequence}
        pad = next(i for i in range(len(used) + 1) if i not in used)
        # Which of the two a model of several parts reads differs.
        for config in (self.model.config, self.model.config.get_text_config()):
            config.pad_token_id = pad
        return pad

    def _segments(self, sequences: list[list[int]], like: torch.Tensor) -> torch.Tensor:
        import torch

        kinds = torch.zeros_like(like)
        separator = self.tokenizer.sep_token_id
        for row, sequence in enumerate(sequences):
            if separator in sequence:
                kinds[row, sequence.index(separator) + 1 : len(sequence)] = 1
        return kinds


def _own_pad(model: PreTrainedModel) -> int | None:
    """Return the padding id of a model or its part for text; None where there is none that it has an embedding for."""
    named = (getattr(config, "pad_token_id", None) for config in (model.config, model.config.get_text_config()))
    pad = next((pad for pad in named if pad is not None), None)
    return int(pad) if pad is not None and 0 <= pad < probe.vocabulary(model) else None


def _segment_kinds(model: PreTrainedModel) -> int:
    """Return how many kinds of segments a model tells apart; 1 for RoBERTa and its like, and where there are none."""
    if "token_type_ids" not in inspect.signature(model.forward).parameters:
        return 1
    return int(getattr(model.config, "type_vocab_size", 1) or 1)


def _readable(model: PreTrainedModel, ids: list[int]) -> bool:
    """Tell whether a model has an embedding for every token; a tokenizer may know more, and a GPU would be lost."""
    return max(ids, default=0) < probe.vocabulary(model)


def _refusals() -> tuple[type[Exception], ...]:
    """Return what a chat template raises for a chat it has no form for: two users in a row, a system's turn."""
    from jinja2 import TemplateError

    return (TemplateError,)


@contextmanager
def _whole(config: SentenceEncoder, folder: Path) -> Iterator[Path]:
    """Give sentence-transformers a folder with whole weights: for an adapter, one where it is merged into its base."""
    if weights.base(config.path, config.revision) is None:
        yield folder
        return
    from transformers import AutoModel

    dtype = weights.torch_dtype(config.dtype, config.device)
    model, lacking = checkpoint.open_model(AutoModel, config.path, config.revision, dtype, config.trust_remote_code)
    check_whole(f"sentence_encoder {config.path}", config.kind, lacking, ("pooler.",))
    with tempfile.TemporaryDirectory(prefix="seamcurate-merged-") as scratch:
        merged = Path(scratch) / "model"
        parts = shutil.ignore_patterns("adapter_*", "checkpoint-*")
        shutil.copytree(folder, merged, ignore=parts)
        tokenizer = weights.tokenizer_folder(config.path, config.revision)
        if tokenizer != folder:
            _tokenizer(tokenizer, _state(tokenizer), config.trust_remote_code, None).save_pretrained(merged)
        model.save_pretrained(merged)
        yield merged


class _LoadedEncoder:
    def __init__(self, config: SentenceEncoder) -> None:
        from sentence_transformers import SentenceTransformer

        self.config = config
        options = {"dtype": weights.torch_dtype(config.dtype, config.device), "use_safetensors": True}
        with told(f"sentence_encoder {config.path}"):
            if config.pooling == "default":
                folder = config._folder()
                with _quietly(), _whole(config, folder) as whole:
                    self.model: Any = SentenceTransformer(
                        str(whole),
                        device=weights.device(config.device),
                        trust_remote_code=config.trust_remote_code,
                        model_kwargs=options,
                    )
                quicken(self.model)
                own = self.model[0]
                # Its tokenizer was in `tokenizer` up to 5; in 6 that is what it finds in `processor`.
                where = "processor" if "processor" in vars(own) else "tokenizer"
                key = (folder, _state(folder), config.trust_remote_code, config.truncation, config.max_tokens)
                setattr(own, where, _KEPT.setdefault(key, getattr(own, where)))
                self.backbone, self.tokenizer = None, self.model.tokenizer
                self.limit = config.max_tokens or self.model.max_seq_length or 512
                self.model.max_seq_length = self.limit
            else:
                from transformers import AutoModel

                self.tokenizer, self.backbone = config._open(
                    AutoModel, config.truncation, unread=() if config.pooling == "pooler" else ("pooler.",)
                )
                self.limit = config.max_tokens or min(512, weights.window(self.backbone, self.tokenizer))
            device = self.model.device if self.backbone is None else self.backbone.device
            self.batches = Batches(config.batch_tokens or 8192, device)
            self.tokenizer.truncation_side = config.truncation
            self.batches.together = self._together(f"sentence_encoder {config.path}")

    def _together(self, name: str) -> float:
        """Return up to how many tokens texts may share a batch, measured on two of unlike lengths.

        Raises:
            ModelError: The model gives the same text another embedding each time.
        """
        import torch

        # sentence-transformers' models may begin with a table of words, which has no neighbours.
        reader = getattr(self.model[0], "auto_model", None) if self.backbone is None else self.backbone
        if reader is None:
            return math.inf
        probe.forget_lengths(reader)
        texts = ["A text that is longer than the other one, by some words", "Why"]
        read = self._encoded if self.backbone is None else self._pooled
        alone, again = (torch.from_numpy(np.concatenate([read([text]) for text in texts])) for _ in range(2))
        if not probe.close(alone, again, reader.dtype):
            raise ModelError(
                f"{name} gives the same text another embedding each time; it cannot be used to compare texts"
            )
        with suppress(RuntimeError, ValueError):
            if probe.close(torch.from_numpy(read(texts)), alone, reader.dtype):
                longest = probe.longest_alike(reader.config)
                probe.tell_longer(name, longest, self.limit)
                return longest
        probe.tell_alone(name)
        return 0

    def embed(self, texts: Sequence[str]) -> npt.NDArray[np.float32]:
        """Embed each text; see `Embedder`."""
        unique = list(dict.fromkeys(texts))
        if not unique:
            return np.zeros((0, 0), np.float32)
        vectors = self._pooled(unique) if self.backbone is not None else self._encoded(unique)
        if self.config.normalise:
            # The square of a large number overflows single precision.
            vectors = normalised(vectors.astype(np.float64)).astype(np.float32)
        place = {text: i for i, text in enumerate(unique)}
        result: npt.NDArray[np.float32] = vectors[[place[text] for text in texts]].astype(np.float32)
        return result

    def _encoded(self, texts: list[str]) -> npt.NDArray[np.float32]:
        import torch

        while True:
            # sentence-transformers sorts by length itself; the batch is sized for the longest text it may meet.
            size = max(1, self.batches.budget // self.limit) if self.limit <= self.batches.together else 1
            try:
                encoded: npt.NDArray[np.float32] = self.model.encode(
                    texts, batch_size=size, normalize_embeddings=False, convert_to_numpy=True, show_progress_bar=False
                )
                return encoded.astype(np.float32).reshape(len(texts), -1)
            except torch.OutOfMemoryError as error:
                if size == 1:
                    raise ModelError(
                        f"sentence_encoder {self.config.path}: a text does not fit in the memory of "
                        f"{self.batches.device}; free some, or lower the model's max_tokens"
                    ) from error
            self.batches.budget = size // 2 * self.limit
            freed(self.batches.device)

    def _pooled(self, texts: list[str]) -> npt.NDArray[np.float32]:
        import torch

        backbone = self.backbone
        assert backbone is not None
        ids = [self.tokenizer(t, truncation=True, max_length=self.limit)["input_ids"] for t in texts]

        def pool(batch: list[int]) -> npt.NDArray[np.float32]:
            inputs = padded([ids[b] for b in batch], self.tokenizer.pad_token_id or 0, backbone.device)
            output = backbone(**accepted(backbone, **inputs))
            if self.config.pooling == "pooler":
                pooled = output.pooler_output
            elif self.config.pooling == "cls":
                pooled = output.last_hidden_state[:, 0]
            else:
                mask = inputs["attention_mask"][:, :, None].to(output.last_hidden_state.dtype)
                pooled = (output.last_hidden_state * mask).sum(1) / mask.sum(1)
            found: npt.NDArray[np.float32] = pooled.float().cpu().numpy()
            return found

        rows: list[Any] = [None] * len(ids)
        with torch.inference_mode():
            for batch, found in self.batches.read([len(i) for i in ids], pool):
                for b, row in zip(batch, found, strict=True):
                    rows[b] = row
        if any(row is None for row in rows):
            raise ModelError(
                f"sentence_encoder {self.config.path}: a text does not fit in the memory of {self.batches.device}; "
                "free some, or lower the model's max_tokens"
            )
        return np.asarray(rows, np.float32).reshape(len(texts), -1)


class _Distinct(NamedTuple):
    """Rows' prompts and responses with each pair once: what is asked twice is scored once."""

    groups: list[tuple[Prompt, list[str]]]
    where: list[list[tuple[int, int]]]
    """For each row's responses, the group and the place in it."""

    def regroup(self, scored: Sequence[Sequence[T]]) -> list[list[T]]:
        """Give each row its scores back."""
        return [[scored[group][place] for group, place in row] for row in self.where]


def _distinct(prompts: Sequence[Prompt], responses: Responses) -> _Distinct:
    groups: list[tuple[Prompt, list[str]]] = []
    numbers: dict[object, int] = {}
    places: list[dict[str, int]] = []
    where = []
    for prompt, answers in zip(prompts, responses, strict=True):
        key = prompt if isinstance(prompt, str) else tuple((turn["role"], turn["content"]) for turn in prompt)
        number = numbers.setdefault(key, len(groups))
        if number == len(groups):
            groups.append((prompt, []))
            places.append({})
        row = []
        for answer in answers:
            place = places[number].setdefault(answer, len(groups[number][1]))
            if place == len(groups[number][1]):
                groups[number][1].append(answer)
            row.append((number, place))
        where.append(row)
    return _Distinct(groups, where)


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


def check_whole(model: str, kind: str, found: Iterable[str], unread: tuple[str, ...] = ()) -> None:
    """Refuse weights that lack some: transformers draws those by lot, and says so in a log.

    Args:
        model: What it is called.
        kind: What it should have been trained as.
        found: The weights that are not there.
        unread: How the names of weights begin that nothing is computed by.
    """
    if lacking := sorted(name for name in found if not name.startswith(unread)):
        raise ModelError(
            f"{model} has no {lacking[0]}, which would be drawn by lot; give a model that was trained as {kind}"
        )


@contextmanager
def told(model: str) -> Iterator[None]:
    """Say in one line why a model's files cannot be read: of damaged ones, libraries raise whatever they like."""
    try:
        yield
    except ModelError:
        raise
    except Exception as error:
        plain = isinstance(error, OSError | ValueError | RuntimeError)
        raise ModelError(f"{model}: {first_line(error) if plain else typed_line(error)}") from error
