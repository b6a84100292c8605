"""Many responses scored after one shared prompt: the hot path, and nothing else lives here.

The prompts and responses of several rows lie end to end in one sequence, a *pack*, without any padding. A response
sees its own prompt and itself, and positions count as if each pair stood alone: every token is read once, and no
score depends on what lies beside it. A prompt whose responses fill more than one pack is not read again, its keys
and values are kept.

Whether a model can be read this way is measured when it is loaded, against each pair alone. A model that gives other
numbers (recurrent layers, biased or capped attention) is read in padded batches of whole pairs, and one whose numbers
move with its neighbours there too, pair by pair.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from contextvars import ContextVar
from functools import cache
from typing import TYPE_CHECKING, Any, NamedTuple, TypeAlias

from seamcurate.errors import ModelError
from seamcurate.models import probe
from seamcurate.models.batching import accepted, automatic_budget, batches, freed, left_out, moved

if TYPE_CHECKING:
    import torch
    from torch.nn.attention.flex_attention import BlockMask
    from transformers import PreTrainedModel

NAME = "seamcurate_shared_prefix"
"""What the attention is called in transformers' table of attention functions."""
_TRIAL = f"{NAME}_trial"
"""The same, while a model is tried out: transformers then also says which masks the model asks for."""


class Parts(NamedTuple):
    """A model taken apart."""

    body: torch.nn.Module
    """Tokens → hidden states."""
    head: torch.nn.Module
    """Hidden states → logits or scores, of each token by itself."""


class Group(NamedTuple):
    """One prompt and the responses to score after it, as token ids; none is empty."""

    prompt: list[int]
    responses: list[list[int]]


class Span(NamedTuple):
    """A run of tokens that attends to itself and, where it does not hold it, to its prompt; counted over keys."""

    start: int
    end: int
    prompt: tuple[int, int] | None


class Target(NamedTuple):
    """Where one response lies among the rows of hidden states that a pack gives."""

    group: int
    response: int
    before: int
    """The row that predicts its first token."""
    start: int
    end: int


class Pack(NamedTuple):
    """What one forward pass reads: spans end to end, or, without spans, padded pairs."""

    ids: list[list[int]]
    positions: list[int]
    spans: list[Span]
    lengths: list[int]
    """How much of each padded pair is no padding."""
    targets: list[Target]
    answers: list[list[int]]
    """The responses' ids, in the order of `targets`."""
    groups: list[Group]
    """The same prompts and responses, to be laid out again when memory runs out."""
    kept: int
    """Tokens of a prompt that an earlier pack read; keys begin with them, and rows with its last one."""
    continues: Span | None
    """The prompt whose other responses are in the next pack."""


Outputs: TypeAlias = "Callable[[torch.Tensor], torch.Tensor]"
"""Rows of hidden states → logits or scores of these rows."""
Read: TypeAlias = "Callable[[Outputs, Pack], torch.Tensor]"
"""What to make of a pack: one value a response, in the order of its targets."""


class PrefixReader:
    """Read groups with a decoder, each prompt once.

    Args:
        model: A decoder with whatever head it has.
        parts: See `output_head`; where that is None, the whole model's logits are read.
        budget: Tokens a forward pass holds at most; None chooses by the device.

    Attributes:
        shared: Whether prompts are shared.
        longest_batched: Pairs of up to so many tokens share batches; longer ones are read alone.
    """

    def __init__(self, model: PreTrainedModel, parts: Parts | None, budget: int | None) -> None:
        self.model = model
        self.body: torch.nn.Module | None = None if parts is None else parts.body
        self.head: torch.nn.Module | None = None if parts is None else parts.head
        self.budget = budget or automatic_budget(model)
        self._own = _attentions(model)
        self._set = False
        """Whether the model calls the attention over packs now, in place of its own."""
        self._name = NAME
        self._attention = PrefixAttention()
        self._fitted = False
        self._unread: list[int] = []
        """Tokens of each prompt and response that alone did not fit in memory."""
        self.shared = parts is not None and self._agrees()
        self.longest_batched = probe.longest_alike(model.config) if self._batches_agree() else 0
        probe.forget_lengths(model)

    def score(self, groups: Iterable[Group], read: Read) -> list[list[float | None]]:
        """Return what `read` makes of each response, a list a group; None where it alone does not fit in memory.

        `groups` is consumed a pack at a time, so that texts are tokenized while a GPU works on those before.

        Raises:
            ModelError: No prompt and response has fitted in the device's memory yet.
        """
        import torch

        self._unread = []
        sizes: list[int] = []

        def counted() -> Iterator[Group]:
            for group in groups:
                sizes.append(len(group.responses))
                yield group

        results: list[tuple[list[Target], torch.Tensor]] = []
        try:
            with torch.inference_mode():
                for pack in self._packs(counted()):
                    results += self._run(pack, read)
                values = torch.cat([values.double() for _, values in results]).tolist() if results else []
        finally:
            self._leave()
        self._fitted = self._fitted or bool(results)
        if self._unread and not self._fitted:
            raise ModelError(
                f"a prompt and response of {min(self._unread):,} tokens do not fit in the memory of "
                f"{self.model.device}; free some, or lower the model's max_tokens or max_response_tokens"
            )
        left_out(len(self._unread), max(self._unread, default=0), self.model.device)
        scores: list[list[float | None]] = [[None] * size for size in sizes]
        for target, value in zip((p for targets, _ in results for p in targets), values, strict=True):
            scores[target.group][target.response] = value
        return scores

    def _packs(self, groups: Iterable[Group]) -> Iterator[Pack]:
        numbered = ((i, group) for i, group in enumerate(groups) if group.responses)
        if not self.shared:
            yield from padded_packs(numbered, self.budget, self.longest_batched)
            return
        # A sliding window would part a response from the start of its prompt: the model's own attention knows how.
        limit = min(self._attention.window, self.longest_batched)
        long: list[tuple[int, Group]] = []

        def short() -> Iterator[tuple[int, Group]]:
            for number, group in numbered:
                fits = len(group.prompt) + max(map(len, group.responses)) <= limit
                if fits:
                    yield number, group
                else:
                    long.append((number, group))

        yield from self._shared(short())
        yield from padded_packs(iter(long), self.budget, self.longest_batched)

    def _shared(self, groups: Iterator[tuple[int, Group]]) -> Iterator[Pack]:
        """Lay groups end to end; what a pack has no room for goes on in the next, with its prompt kept."""
        layout = _Layout(0)
        for number, group in groups:
            if layout.answers and layout.size + len(group.prompt) + len(group.responses[0]) > self.budget:
                yield layout.pack()
                layout = _Layout(0)
            layout.prompt(group)
            for j, response in enumerate(group.responses):
                if layout.answers and layout.size + len(response) > self.budget:
                    yield layout.pack(continues=True)
                    # Kept, unless memory ran out and the pack was read in smaller ones.
                    layout = _Layout(len(group.prompt) if self._attention.kept else 0)
                    layout.prompt(group)
                layout.response(number, j, response)
        if layout.answers:
            yield layout.pack()

    def _run(self, pack: Pack, read: Read) -> list[tuple[list[Target], torch.Tensor]]:
        """Read a pack; where memory runs out, read it again in smaller ones."""
        import torch

        try:
            return [(pack.targets, read(self._outputs(pack), pack))]
        except torch.OutOfMemoryError:
            size = sum(map(len, pack.ids)) + pack.kept
        # Outside the handler: the exception holds on to the tensors that were too much.
        self._attention.forget()
        freed(self.model.device)
        if len(pack.answers) == 1:
            self._unread.append(size)
            return []
        self.budget = min(self.budget, size) // 2
        targets = iter(pack.targets)
        origin = {(g, r): next(targets) for g, group in enumerate(pack.groups) for r in range(len(group.responses))}
        results = []
        for smaller in self._packs(pack.groups):
            relabelled = [
                p._replace(group=origin[p.group, p.response].group, response=origin[p.group, p.response].response)
                for p in smaller.targets
            ]
            results += self._run(smaller._replace(targets=relabelled), read)
        self._attention.forget()
        return results

    def _outputs(self, pack: Pack) -> Outputs:
        """Run the model on a pack."""
        import torch

        device = self.model.device
        ids = moved(pack.ids, device)
        if pack.spans:
            inputs = {"input_ids": ids, "position_ids": moved([pack.positions], device)}
        else:
            is_token = torch.arange(ids.shape[1], device=device) < moved(pack.lengths, device)[:, None]
            inputs = {"input_ids": ids, "attention_mask": is_token.long()}
        with self._using(pack):
            if self.body is None:
                logits = self.model(**accepted(self.model, use_cache=False, **inputs)).logits.flatten(0, 1)
                return lambda rows: logits[rows]
            hidden = self.body(**accepted(self.body, use_cache=False, **inputs)).last_hidden_state.flatten(0, 1)
        if pack.kept:
            hidden = torch.cat([self._attention.last, hidden])
        if pack.continues is not None:
            # Row 0 is the kept prompt's last token where there is one, so rows follow keys at a fixed distance.
            last_row = max(0, pack.continues.end - 1 - pack.kept + (pack.kept > 0))
            self._attention.last = hidden[last_row : last_row + 1].clone()
        head = self.head
        assert head is not None
        return lambda rows: head(hidden[rows])

    @contextmanager
    def _using(self, pack: Pack) -> Iterator[None]:
        """Have transformers call the attention this pack needs."""
        if not pack.spans:
            self._restore()
            yield
            return
        if not self._set:
            # Before: a model of several parts may have set some when it refuses one.
            self._set = True
            self.model.set_attn_implementation(self._name)
        self._attention.begin(pack)
        token = _READING.set(self._attention)
        try:
            yield
        finally:
            _READING.reset(token)

    def _agrees(self) -> bool:
        """Tell whether packs give this model's own hidden states, on a few short groups of made-up tokens."""
        import torch

        _register()
        count = probe.vocabulary(self.model)
        groups = [
            Group([7 * i % count for i in range(1, 7)], [[11 * i % count for i in range(n)] for n in (2, 3, 4, 5)]),
            Group([5 * i % count for i in range(1, 4)], [[13 * i % count for i in range(n)] for n in (3, 2)]),
        ]

        head, budget, self.head, self._name = self.head, self.budget, torch.nn.Identity(), _TRIAL
        try:
            with torch.inference_mode():
                plain = self._ends(padded_packs(enumerate(groups), 1))
                for flex in (True, False) if self.model.device.type == "cuda" else (False,):
                    self._attention.flex = flex
                    agree = []
                    # The small budget makes a prompt go on in a second and a third pack.
                    for self.budget in (9, 1000):
                        agree.append(
                            probe.close(self._ends(self._shared(iter(enumerate(groups)))), plain, self.model.dtype)
                        )
                    if all(agree) and self._attention.calls:
                        return True
        except _REFUSALS:
            return False
        finally:
            self.head, self.budget, self._name = head, budget, NAME
            self._leave()
        return False

    def _batches_agree(self) -> bool:
        """Tell whether padded batches give what each pair gives alone; made-up tokens of unlike lengths."""
        import torch

        ids = probe.tokens(self.model, 22)
        groups = [Group(ids[:8], [ids[8:17]]), Group(ids[17:19], [ids[19:]])]
        try:
            with torch.inference_mode():
                one_by_one = self._ends(padded_packs(enumerate(groups), 1))
                return probe.close(self._ends(padded_packs(enumerate(groups), 1000)), one_by_one, self.model.dtype)
        except _REFUSALS:
            return False

    def _ends(self, packs: Iterator[Pack]) -> torch.Tensor:
        """Return what the model gives at the last token of each response."""
        import torch

        def last_hidden(outputs: Outputs, pack: Pack) -> torch.Tensor:
            return outputs(moved([p.end - 1 for p in pack.targets], self.model.device)).float()

        results = [result for pack in packs for result in self._run(pack, last_hidden)]
        rows = {
            (p.group, p.response): row for targets, values in results for p, row in zip(targets, values, strict=True)
        }
        return torch.stack([rows[key] for key in sorted(rows)])

    def _leave(self) -> None:
        """Leave the model as it was found."""
        self._attention.forget()
        self._restore()

    def _restore(self) -> None:
        if self._set:
            self.model.set_attn_implementation(self._own)
            self._set = False


def padded_packs(groups: Iterator[tuple[int, Group]], budget: int, longest_batched: float = math.inf) -> Iterator[Pack]:
    """Lay each pair out on its own, in batches of like lengths padded on the right; longer than `longest_batched`, alone."""
    pairs = [(number, j, group.prompt, r) for number, group in groups for j, r in enumerate(group.responses)]
    for batch in batches([len(prompt) + len(response) for _, _, prompt, response in pairs], budget, longest_batched):
        longest = len(pairs[batch[0]][2]) + len(pairs[batch[0]][3])
        ids, targets = [], []
        for row, (number, j, prompt, response) in enumerate(pairs[i] for i in batch):
            start = row * longest + len(prompt)
            targets.append(Target(number, j, start - 1, start, start + len(response)))
            ids.append(prompt + response + [response[-1]] * (longest - len(prompt) - len(response)))
        pairs_as_groups = [Group(pairs[i][2], [pairs[i][3]]) for i in batch]
        lengths = [len(prompt) + len(response) for prompt, (response,) in pairs_as_groups]
        yield Pack(
            ids, [], [], lengths, targets, [response for _, (response,) in pairs_as_groups], pairs_as_groups, 0, None
        )


class _Layout:
    """A pack in the making; `kept` tokens of the first prompt were read before."""

    def __init__(self, cached: int) -> None:
        self.kept = cached
        self.ids: list[int] = []
        self.positions: list[int] = []
        self.spans: list[Span] = []
        self.targets: list[Target] = []
        self.answers: list[list[int]] = []
        self.groups: list[Group] = []
        self.open: Span | None = None

    @property
    def size(self) -> int:
        return len(self.ids)

    def prompt(self, group: Group) -> None:
        """Begin a group; its prompt is laid down unless it was kept."""
        start = self.kept + self.size
        if self.kept and not self.groups:
            self.open = Span(0, self.kept, None)
        else:
            self.open = Span(start, start + len(group.prompt), None)
            self._lay(group.prompt, 0)
            # One response to one prompt is a single run of tokens.
            if len(group.responses) > 1:
                self.spans.append(self.open)
        self.groups.append(Group(group.prompt, []))
        self._alone = len(group.responses) == 1

    def response(self, number: int, index: int, ids: list[int]) -> None:
        """Lay down one response of the group that was begun last."""
        assert self.open is not None
        start = self.kept + self.size
        self.spans.append(
            Span(self.open.start, start + len(ids), None)
            if self._alone
            else Span(start, start + len(ids), (self.open.start, self.open.end))
        )
        shift = (1 if self.kept else 0) - self.kept
        predicting_row = max(0, self.open.end - 1 + shift)
        self.targets.append(Target(number, index, predicting_row, start + shift, start + shift + len(ids)))
        self._lay(ids, self.open.end - self.open.start)
        self.groups[-1].responses.append(ids)
        self.answers.append(ids)

    def pack(self, continues: bool = False) -> Pack:
        """Return what was laid down."""
        return Pack(
            [self.ids],
            self.positions,
            self.spans,
            [self.size],
            self.targets,
            self.answers,
            [group for group in self.groups if group.responses],
            self.kept,
            self.open if continues else None,
        )

    def _lay(self, ids: list[int], position: int) -> None:
        self.ids += ids
        self.positions += range(position, position + len(ids))


class _Unsupported(Exception):
    """The model asks something of attention that packs do not give."""


_REFUSALS = (_Unsupported, AttributeError, ImportError, KeyError, RuntimeError, TypeError, ValueError)
"""What a model raises that cannot be read the way it is tried."""


class PrefixAttention:
    """Attention over a pack, called by transformers in place of its own.

    On a CPU each span is one call of scaled dot product attention; on CUDA all of them are one call of
    FlexAttention, which skips every block in which nobody sees anybody.
    """

    def __init__(self) -> None:
        self.flex = False
        self.window: float = math.inf
        """The smallest sliding window any layer asked for."""
        self.calls = 0
        self.kept: dict[int, tuple[torch.Tensor, torch.Tensor]] = {}
        """Keys and values, by layer, of the prompt that goes on in the next pack."""
        self.last: torch.Tensor
        """That prompt's last hidden state, 1 × width."""
        self._pack: Pack
        self._masks: dict[tuple[int, int], torch.Tensor] = {}
        self._block_mask: BlockMask | None = None

    def begin(self, pack: Pack) -> None:
        """Get ready for a forward pass over a pack."""
        self._pack, self._masks, self._block_mask = pack, {}, None
        self.calls = 0
        if not pack.kept:
            self.kept = {}

    def forget(self) -> None:
        """Let go of everything kept."""
        self.kept, self._masks, self._block_mask = {}, {}, None

    def __call__(
        self,
        module: torch.nn.Module,
        query: torch.Tensor,
        key: torch.Tensor,
        value: torch.Tensor,
        scaling: float | None,
        window: int | None,
    ) -> torch.Tensor:
        """Attend; tensors are 1 × heads × tokens × width, the result 1 × tokens × heads × width."""
        import torch

        self.calls += 1
        if window is not None:
            self.window = min(self.window, window)
        if self._pack.kept:
            before_key, before_value = self.kept[id(module)]
            key, value = torch.cat([before_key, key], 2), torch.cat([before_value, value], 2)
        if self._pack.continues is not None:
            start, end, _ = self._pack.continues
            self.kept[id(module)] = key[:, :, start:end].clone(), value[:, :, start:end].clone()
        if self.flex:
            return self._flexed(query, key, value, scaling)
        attended = query.new_empty(1, query.shape[2], query.shape[1], value.shape[3])
        grouped = query.shape[1] != key.shape[1]
        shift = self._pack.kept
        for start, end, prompt in self._pack.spans:
            keys, values, mask = key[:, :, start:end], value[:, :, start:end], None
            if prompt is not None:
                keys = torch.cat([key[:, :, prompt[0] : prompt[1]], keys], 2)
                values = torch.cat([value[:, :, prompt[0] : prompt[1]], values], 2)
                mask = self._mask(prompt[1] - prompt[0], end - start, query)
            attended[:, start - shift : end - shift] = torch.nn.functional.scaled_dot_product_attention(
                query[:, :, start - shift : end - shift],
                keys,
                values,
                attn_mask=mask,
                is_causal=mask is None,
                scale=scaling,
                enable_gqa=grouped,
            ).transpose(1, 2)
        return attended

    def _mask(self, prompt: int, length: int, like: torch.Tensor) -> torch.Tensor:
        """Let a response see its whole prompt, and of itself what came before; made once for all layers."""
        import torch

        if (prompt, length) not in self._masks:
            hidden = torch.ones(length, prompt + length, dtype=torch.bool, device=like.device).triu(prompt + 1)
            self._masks[prompt, length] = torch.zeros_like(hidden, dtype=like.dtype).masked_fill_(hidden, -math.inf)
        return self._masks[prompt, length]

    def _flexed(
        self, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, scaling: float | None
    ) -> torch.Tensor:
        import torch
        from torch.nn.attention.flex_attention import create_block_mask

        on_gpu = query.device.type == "cuda"
        if self._block_mask is None:
            run, sees, position = (moved(numbers, query.device) for numbers in self._runs(key.shape[2]))
            shift = self._pack.kept

            def seen(b: torch.Tensor, h: torch.Tensor, q: torch.Tensor, k: torch.Tensor) -> torch.Tensor:
                query_key = q + shift
                return ((run[k] == run[query_key]) | (run[k] == sees[query_key])) & (position[k] <= position[query_key])

            self._block_mask = create_block_mask(
                seen, None, None, query.shape[2], key.shape[2], device=str(query.device), _compile=on_gpu
            )
        attended = _flex(on_gpu)(
            query, key, value, block_mask=self._block_mask, scale=scaling, enable_gqa=query.shape[1] != key.shape[1]
        )
        assert isinstance(attended, torch.Tensor)
        return attended.transpose(1, 2).contiguous()

    def _runs(self, count: int) -> tuple[list[int], list[int], list[int]]:
        """Return, for each key, its run, the run of its prompt, and its place in the order of positions."""
        cached = self._pack.kept
        run, sees = [0] * count, [-1] * count
        position = [*range(cached), *self._pack.positions]
        number = {(0, cached): 0}
        for n, (start, end, prompt) in enumerate(self._pack.spans, 1):
            number[start, end] = n
            run[start:end] = [n] * (end - start)
            if prompt is not None:
                sees[start:end] = [number[prompt]] * (end - start)
        return run, sees, position


_READING: ContextVar[PrefixAttention] = ContextVar("reading")


@cache
def _register() -> None:
    """Put the attention into transformers' tables."""
    from transformers import AttentionInterface, AttentionMaskInterface

    def attend(
        module: torch.nn.Module,
        query: torch.Tensor,
        key: torch.Tensor,
        value: torch.Tensor,
        attention_mask: torch.Tensor | None = None,
        scaling: float | None = None,
        dropout: float = 0.0,
        sliding_window: int | None = None,
        is_causal: bool | None = None,
        **further_arguments: object,
    ) -> tuple[torch.Tensor, None]:
        unsupported = [
            name for name in ("softcap", "s_aux", "position_bias") if further_arguments.get(name) is not None
        ]
        if unsupported or is_causal is False or not getattr(module, "is_causal", True):
            raise _Unsupported(", ".join(unsupported) or "attention to later tokens")
        return _READING.get()(module, query, key, value, scaling, sliding_window), None

    def mask(*args: object, local_size: int | None = None, **further_arguments: object) -> None:
        # A window, or a chunk, that the model keeps in its mask and does not tell the attention.
        if local_size is not None:
            reading = _READING.get()
            reading.window = min(reading.window, local_size)

    for name in (NAME, _TRIAL):
        AttentionInterface.register(name, attend)
    AttentionMaskInterface.register(_TRIAL, mask)


@cache
def _flex(compiled: bool) -> Any:
    import torch
    from torch.nn.attention.flex_attention import flex_attention

    return torch.compile(flex_attention, dynamic=True) if compiled else flex_attention


def _attentions(model: PreTrainedModel) -> dict[str, str]:
    """Return what attention a model and each of its parts calls, as transformers sets it."""
    parts = {"": model.config} | {key: getattr(model.config, key, None) for key in model.config.sub_configs}
    names = {key: getattr(config, "_attn_implementation", None) for key, config in parts.items()}
    return {key: name for key, name in names.items() if name is not None}


def output_head(model: PreTrainedModel, head: object) -> Parts | None:
    """Take a model apart, if `head` alone turns its body's hidden states into its outputs, measured on a few tokens.

    Some models scale or cap their logits behind it; they, and heads that are no module, give None.
    """
    import torch

    if not isinstance(head, torch.nn.Module):
        return None
    ids = torch.tensor([probe.tokens(model, 6)], device=model.device)
    with torch.inference_mode():
        expected = model(**accepted(model, input_ids=ids, use_cache=False)).logits[0].float()
        for body in _bodies(model):
            try:
                recomputed = head(body(**accepted(body, input_ids=ids, use_cache=False)).last_hidden_state)[0].float()
                # A classifier gives one row, its last token's.
                if probe.close(recomputed[-len(expected) :], expected, model.dtype):
                    return Parts(body, head)
            except _REFUSALS:
                continue
    return None


def _bodies(model: PreTrainedModel) -> Iterator[torch.nn.Module]:
    """Yield what may give a model's hidden states: its base, or in a model of text and images the part for text."""
    import torch

    candidates = [model.base_model, getattr(model, "model", None)]
    with suppress(AttributeError, NotImplementedError, TypeError):
        candidates.append(model.get_decoder())
    for module in candidates:
        if isinstance(module, torch.nn.Module) and module is not model:
            yield module
