"""Reward models: sequence classification models of transformers, of which one output is the reward."""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import suppress
from typing import TYPE_CHECKING, ClassVar, Self

from pydantic import JsonValue, model_validator

from seamcurate.errors import ModelError
from seamcurate.models import checkpoint, eight_bit, labels, prefix, probe, runtime, tokens, weights
from seamcurate.models.backend import RewardConfig
from seamcurate.models.batching import Batches, accepted, automatic_budget, moved, padded
from seamcurate.models.labels import Output, Outputs
from seamcurate.models.protocols import Columns, Prompt, Rating, Responses, RewardModel

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

from seamcurate.models.distinct import Distinct, distinct, regroup
from seamcurate.models.local import EncodingModel, PromptedModel, model_errors
from seamcurate.models.unpadded import UnpaddedReader
from seamcurate.progress import note


class SequenceClassifier(EncodingModel, PromptedModel, RewardConfig):
    """Name a reward model: an output of any sequence classification model of transformers.

    The value is frozen and loads nothing until `load` is called. Weights are read from safetensors alone; a LoRA adapter is
    merged, in memory, into the base that it names. A reward is the model's logit R(I∘r), as it stands: no sigmoid, no
    normalisation. It depends neither on the batch nor on the rows beside it. Of a model with several outputs `output` names
    the one that is the reward; `outputs` get a column each. All of them come from one forward pass.

    Raises:
        ModelError: By `load` and `identity`, where an output does not exist, or the model has several and none is named. By
            `load`, where the files are damaged or lack weights.

    Example:
        >>> from seamcurate import FakeModel, SequenceClassifier
        >>> reward = SequenceClassifier(path="my-org/reward-7b", max_tokens=1024)
        >>> reward.load().rewards(["What is a set?"], [["A collection.", "A dog."]])  # doctest: +SKIP
        [[2.31, -0.87]]

        Without weights, and in the same form:

        >>> [[-2 <= value < 2 for value in row] for row in FakeModel().load().rewards(["p", "q"], [["a", "b"], ["c"]])]
        [[True, True], [True]]
    """

    key: ClassVar[str] = "sequence_classifier"
    kind: ClassVar[str] = "a reward model"
    max_tokens: int | None = None
    """Tokens of prompt and response together; the response's end is cut to fit. Default: the model's window, at most 2,048."""
    pair: bool = False
    """Read prompt and response as two segments, as encoder reward models such as OpenAssistant's expect."""
    output: Output | None = None
    """The output that is the reward, by its name (`id2label` of the model's configuration) or its number, from 0. A model with
    several outputs needs it."""
    outputs: Outputs = ()
    """Outputs that become columns beside the reward, `reward_{name}`: a list of names or numbers, or `all`."""

    @model_validator(mode="after")
    def _one_way(self) -> Self:
        if self.pair and (self.form is not None or self.template or self.date):
            raise ValueError("pair: true gives prompt and answer as two segments; leave form, template and date out")
        return self

    @property
    def _writes_date(self) -> bool:
        return not self.pair and super()._writes_date

    def identity(self) -> JsonValue:
        """Return everything that decides a score; outputs by their numbers, where any are named.

        Raises:
            ModelError: An output does not exist, or the model's files tell of several and none is named.
        """
        moves = super().identity()
        assert isinstance(moves, dict)
        self._check_kind()
        moves = {key: value for key, value in moves.items() if key not in ("output", "outputs")}
        if self.output is not None:
            moves["output"] = self._index(self.labels())
        else:
            settings = weights.configuration(self.origin)
            if labels.are_told(settings) and weights.base(self.origin) is None:
                self._index(labels.names_of(settings))
        if self.outputs:
            moves["outputs"] = list(self._indices(self.labels()))
        return moves

    def labels(self) -> tuple[str, ...]:
        """Return the names of all outputs in order, from the model's files; an unnamed one is its number.

        No weights are loaded.
        """
        names = labels.names_of(weights.configuration(self.origin))
        count = checkpoint.head_outputs(self.origin)
        return names if count in (None, len(names)) else labels.numbered(count or 0)

    def output_names(self) -> tuple[str, ...]:
        """Name the outputs that become columns of their own."""
        if not self.outputs:
            return ()
        names = self.labels()
        columns = labels.column_names(names)
        return tuple(columns[i] for i in self._indices(names))

    def _check_kind(self) -> None:
        """Refuse a model whose head scores each token: as a classifier of texts it would be read at the last token alone."""
        kinds = weights.configuration(self.origin).get("architectures")
        kind = (
            next((str(name) for name in kinds if str(name).endswith("ForTokenClassification")), None)
            if isinstance(kinds, list)
            else None
        )
        if kind is not None:
            raise ModelError(
                f"{self.title} is a {kind}, which scores each token or step (a process reward model), not an answer; call it "
                "from a function, `reward: {function: …}`, which says how its steps are put together"
            )

    def _index(self, names: Sequence[str]) -> int:
        """Return the number of the output that is the reward."""
        if self.output is not None:
            return labels.index_of(self.output, names, self.title)
        if len(names) != 1:
            raise ModelError(
                f"{self.title} has {len(names)} outputs; a reward model has one: name it by `output`, "
                f"one of: {labels.listed(names)}"
            )
        return 0

    def _indices(self, names: Sequence[str]) -> tuple[int, ...]:
        """Return the numbers of the outputs that become columns."""
        return labels.indices_of(self.outputs, names, self.title)

    def positions(self, names: Sequence[str]) -> list[int]:
        """Return the numbers of the outputs that are read: the reward, then those that become columns.

        Args:
            names: Of all outputs, in order.

        Raises:
            ModelError: There is no such output, or there are several and none is named.
        """
        return [self._index(names), *self._indices(names)]

    def load(self) -> RewardModel:
        """Load tokenizer and weights; refuse a model with several outputs of which none is named."""
        from transformers import AutoModelForSequenceClassification

        self._check_kind()
        tokenizer, model = self.open_weights(AutoModelForSequenceClassification)
        names, count = self.labels(), model.config.num_labels
        names = names if len(names) == count else labels.numbered(count)
        columns = self.positions(names)
        with model_errors(self.title):
            loaded = _LoadedClassifier(self, tokenizer, model, columns)
            if self.dtype == eight_bit.NAME and self.by_torch():
                # How it can be read was measured in single precision; the head stays in it.
                eight_bit.quantise(model.base_model)
            return loaded


class _LoadedClassifier(RewardModel):
    def __init__(
        self,
        config: SequenceClassifier,
        tokenizer: PreTrainedTokenizerBase,
        model: PreTrainedModel,
        columns: Sequence[int],
    ) -> None:
        self.config, self.tokenizer, self.model = config, tokenizer, model
        self.columns = columns
        """The outputs that are read: the reward, then those with a column of their own."""
        self.form = None if config.pair else config.prompt_form(tokenizer, ())
        window = weights.window(model, tokenizer)
        self.limit = min(config.max_tokens or 2048, window)
        self.own_pad = own_pad(model)
        self.batches = Batches(config.batch_tokens or automatic_budget(model), model.device)
        # A decoder's score is read at one token, so that prompts can be shared; in an encoder each token sees all others.
        parts = prefix.output_head(model, getattr(model, "score", None))
        self.reader = None
        if parts is not None and not config.by_torch():
            raise ModelError(
                f"{config.title} is a decoder, and `backend: {config.backend}` is for encoders; leave it out: torch reads "
                "each prompt once"
            )
        if parts is not None and not config.pair:
            reader = prefix.PrefixReader(model, parts, config.batch_tokens)
            self.reader = reader if reader.shared else None
        if self.reader is None:
            probe.forget_lengths(model)
        self.unpadded: tuple[UnpaddedReader, Callable[[torch.Tensor], torch.Tensor]] | None = None
        self.graph: runtime.Graph | None = None
        name = f"sequence_classifier {config.path}"
        if self.form is not None and tokens.lacks_template(tokenizer, config):
            text = self.form.prompt("…") + self.form.response("…")
            note(
                f"{name}: its files do not say how a prompt and an answer become its text; it reads {text!r}. Write `form` "
                "for another text, or `pair: true` where it was trained on two segments"
            )
        self.batches.longest_batched = self._longest_batched(name)
        if not config.by_torch():
            self._export(name)
        probe.tell_longer(name, self.batches.longest_batched, self.limit)

    def _longest_batched(self, name: str) -> float:
        """Return the longest text, in tokens, that may share a batch, measured on two texts of unlike lengths.

        Raises:
            ModelError: The model gives the same text another score each time, or reads too few tokens for any text.
        """
        import torch

        if self.reader is not None:
            return self.reader.longest_batched
        texts = [("A question that is longer than the other one", "an answer to it of some words"), ("Why", "no")]
        with suppress(*tokens.refusals()), torch.inference_mode():
            ids = [self._ids(*text) for text in texts]
            sequences = [sequence for sequence in ids if sequence is not None]
            if not sequences:
                raise ModelError(
                    f"{name} reads {self.limit} tokens, too few for a question with its answer; raise `max_tokens`"
                )
            one_by_one, repeated = (
                torch.tensor([self._score([sequence])[0] for sequence in sequences]),
                torch.tensor([self._score([sequence])[0] for sequence in sequences]),
            )
            if not probe.close(one_by_one, repeated, self.model.dtype):
                raise ModelError(f"{name} gives the same text another score each time; it cannot be used to score")
            if not self.config.by_torch():
                return math.inf
            if self._reads_unpadded(sequences, one_by_one):
                return math.inf
            with suppress(RuntimeError, ValueError):
                if probe.close(torch.tensor(self._score(sequences)), one_by_one, self.model.dtype):
                    return probe.longest_alike(self.model.config)
        probe.tell_alone(name)
        return 0

    def _export(self, name: str) -> None:
        """Leave the forward pass to the runtime from now on."""
        config = self.config
        pad = self.own_pad or 0
        self.graph = runtime.open_graph(
            config.backend,
            config.precision(),
            self.model,
            "logits",
            weights.identity(config.origin),
            self.limit,
            pad,
            name,
        )
        self.batches = Batches(config.batch_tokens or runtime.BUDGET, self.model.device)
        runtime.give_up_weights(self.model, kept=())

    def _reads_unpadded(self, sequences: list[list[int]], expected: torch.Tensor) -> bool:
        """Read texts end to end from now on, if that gives the scores of texts that were read alone."""
        import torch

        # Where the angles of positions follow the length of what is read, a text would depend on those beside it.
        if probe.longest_alike(self.model.config) < self.limit or self.model.base_model is self.model:
            return False
        reader = UnpaddedReader(self.model.base_model)
        if not reader.agrees:
            return False
        for head in _heads(self.model):
            self.unpadded = reader, head
            with suppress(AttributeError, IndexError, RuntimeError, TypeError, ValueError):
                if _same(torch.tensor(self._unpadded(sequences)), expected, self.model.dtype):
                    return True
        self.unpadded = None
        return False

    def _unpadded(self, sequences: list[list[int]]) -> list[list[float]]:
        """Return the scores of sequences that are read end to end; see `_score`."""
        import torch

        assert self.unpadded is not None
        reader, head = self.unpadded
        texts = [torch.tensor(sequence) for sequence in sequences]
        token_inputs: dict[str, list[torch.Tensor]] = {}
        if self.config.pair and segment_kinds(self.model) > 1:
            kinds = [self._segments([ids], text[None])[0] for ids, text in zip(sequences, texts, strict=True)]
            token_inputs = {"token_type_ids": kinds}

        def pool(hidden: torch.Tensor, _: list[int]) -> torch.Tensor:
            logits = head(hidden)
            if logits.dim() != 2:
                raise ValueError("scores of tokens, not of texts")
            return logits

        logits = reader.read(texts, pool, token_inputs)  # (sequences, outputs of the model)
        scores: list[list[float]] = logits[:, self.columns].float().tolist()
        return scores

    def rewards(self, prompts: Sequence[Prompt], responses: Responses) -> list[list[float | None]]:
        """Score by group; see `RewardModel`."""
        return [[rating.reward for rating in row] for row in self.ratings(prompts, responses, {})]

    def ratings(self, prompts: Sequence[Prompt], responses: Responses, columns: Columns) -> list[list[Rating]]:
        """Score by group, further outputs in the same forward pass; see `RewardModel`."""
        rows = distinct(prompts, responses)
        no_rating = Rating(None, None, (None,) * (len(self.columns) - 1))
        scores = self._each(rows) if self.reader is None else self._shared(rows, self.reader)
        return rows.regroup(
            [
                [no_rating if outputs is None else Rating(outputs[0], None, tuple(outputs[1:])) for outputs in group]
                for group in scores
            ]
        )

    def _shared(self, rows: Distinct, reader: prefix.PrefixReader) -> list[list[list[float] | None]]:
        fits: list[list[int]] = []

        def groups() -> Iterator[prefix.Group]:
            for prompt, answers in rows.groups:
                try:
                    shared_ids, rest = tokens.reward_group(self.tokenizer, prompt, answers, self.limit, self.form)
                except tokens.refusals():
                    shared_ids, rest = [], []
                self._tell_cut(len(shared_ids) + len(ids) for ids in rest if ids is not None)
                readable = probe.is_readable(self.model, shared_ids)
                readable_ids = [
                    (i, ids) for i, ids in enumerate(rest) if ids and readable and probe.is_readable(self.model, ids)
                ]
                fits.append([i for i, _ in readable_ids])
                # The score must be read at a token of the response itself: an empty response may be followed by padding only.
                start = min([len(shared_ids), *(self._last(shared_ids + ids) for _, ids in readable_ids)])
                yield prefix.Group(shared_ids[:start], [shared_ids[start:] + ids for _, ids in readable_ids])

        def score(outputs: prefix.Outputs, pack: prefix.Pack) -> torch.Tensor:
            read = [p.start + self._last(ids) for p, ids in zip(pack.targets, pack.answers, strict=True)]
            return outputs(moved(read, self.model.device))[:, self.columns].float()

        group_scores = reader.score_rows(groups(), score)
        scored: list[list[list[float] | None]] = []
        for (_, answers), positions, values in zip(rows.groups, fits, group_scores, strict=True):
            row: list[list[float] | None] = [None] * len(answers)
            for i, value in zip(positions, values, strict=True):
                row[i] = value
            scored.append(row)
        return scored

    def _last(self, ids: list[int]) -> int:
        """Return the token at which transformers reads a decoder's score: the last one that is not padding."""
        return next((i for i in reversed(range(len(ids))) if ids[i] != self.own_pad), len(ids) - 1)

    def _each(self, rows: Distinct) -> list[list[list[float] | None]]:
        import torch

        flat = [(p, r) for p, answers in rows.groups for r in answers]
        fits: list[tuple[int, list[int]]] = []
        for i, (p, r) in enumerate(flat):
            with suppress(*tokens.refusals()):
                if (sequence := self._ids(p, r)) is not None and probe.is_readable(self.model, sequence):
                    fits.append((i, sequence))
        self._tell_cut(len(sequence) for _, sequence in fits)
        scores: list[list[float] | None] = [None] * len(flat)
        if self.unpadded is not None and fits:
            for (i, _), value in zip(fits, self._unpadded([sequence for _, sequence in fits]), strict=True):
                scores[i] = value
            return regroup(scores, [answers for _, answers in rows.groups])
        with torch.inference_mode():
            for batch, rewards in self.batches.read(
                [len(sequence) for _, sequence in fits], lambda batch: self._score([fits[b][1] for b in batch])
            ):
                for b, value in zip(batch, rewards, strict=True):
                    scores[fits[b][0]] = value
        return regroup(scores, [answers for _, answers in rows.groups])

    def _tell_cut(self, lengths: Iterable[int]) -> None:
        """Say that answers lose their end, where a text fills the limit."""
        if any(length >= self.limit for length in lengths):
            probe.tell_cut(self.config.title, self.limit, "max_tokens")

    def _ids(self, prompt: Prompt, response: str) -> list[int] | None:
        if self.config.pair:
            return tokens.pair_ids(self.tokenizer, prompt, response, self.limit)
        return tokens.reward_ids(self.tokenizer, prompt, response, self.limit, self.form)

    def _score(self, sequences: list[list[int]]) -> list[list[float]]:
        """Return the scores of sequences that are read as one batch, a number for each output that is read."""
        if self.graph is not None:
            return self._computed(sequences, self.graph)
        inputs = padded(sequences, self._pad(sequences), self.model.device)
        if self.config.pair and segment_kinds(self.model) > 1:
            inputs["token_type_ids"] = self._segments(sequences, inputs["input_ids"])
        logits = self.model(**accepted(self.model, **inputs)).logits  # (sequences, outputs of the model)
        scores: list[list[float]] = logits[:, self.columns].float().tolist()
        return scores

    def _computed(self, sequences: list[list[int]], graph: runtime.Graph) -> list[list[float]]:
        """Return the scores that the runtime gives; see `_score`."""
        import torch

        kinds: list[list[int]] = []
        if self.config.pair and segment_kinds(self.model) > 1:
            kinds = [self._segments([ids], torch.tensor([ids]))[0].tolist() for ids in sequences]
        scores: list[list[float]] = graph(sequences, self.own_pad or 0, kinds)[:, self.columns].tolist()
        return scores

    def _pad(self, sequences: list[list[int]]) -> int:
        """Return the padding id; decoder heads read the last token that differs from it, so no sequence may contain it."""
        if self.own_pad is not None:
            return self.own_pad
        used = {token for sequence in sequences for token in sequence}
        pad = next(i for i in range(len(used) + 1) if i not in used)
        # Models of several parts differ in which of the two they read.
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


def _heads(model: PreTrainedModel) -> Iterator[Callable[[torch.Tensor], torch.Tensor]]:
    """Yield what may turn an encoder's hidden states (texts × tokens × width) into its scores (texts × outputs)."""
    classifier, pooler = getattr(model, "classifier", None), getattr(model.base_model, "pooler", None)
    if classifier is not None:
        yield classifier
        if pooler is not None:
            yield lambda hidden: classifier(pooler(hidden))


def _same(scores: torch.Tensor, expected: torch.Tensor, dtype: torch.dtype) -> bool:
    """Tell whether scores differ by rounding alone, also where those of all texts are nearly alike (a head's bias)."""
    import torch

    spread = float((expected.max(0).values - expected.min(0).values).max())
    alike = dtype != torch.float32 or bool(torch.allclose(scores, expected, rtol=1e-6, atol=1e-3 * spread + 1e-6))
    return alike and probe.close(scores, expected, dtype)


def own_pad(model: PreTrainedModel) -> int | None:
    """Return the padding id of a model or its text part; None where it has none, or no embedding for it."""
    named = (getattr(config, "pad_token_id", None) for config in (model.config, model.config.get_text_config()))
    pad = next((pad for pad in named if pad is not None), None)
    return int(pad) if pad is not None and 0 <= pad < probe.vocabulary(model) else None


def segment_kinds(model: PreTrainedModel) -> int:
    """Return how many segment types a model has; 1 for RoBERTa and its kind, and for models without segments."""
    if "token_type_ids" not in inspect.signature(model.forward).parameters:
        return 1
    return int(getattr(model.config, "type_vocab_size", 1) or 1)
