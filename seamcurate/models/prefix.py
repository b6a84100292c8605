"""Score many responses after one shared prompt. This is the hot path, and nothing else lives here.

The prompts and responses of several rows stand end to end in one sequence, a *pack*, without padding. A response attends to
its own prompt and to itself, and positions count as if each pair stood alone: every token is read once, and no score depends
on the rest of the pack. When a prompt's responses fill more than one pack, its keys and values are cached for the next.

Whether a model can be read this way is measured when it is loaded, against each pair read alone. A model that gives other
numbers (recurrent layers, biased or capped attention) is read in padded batches of whole pairs, and a model whose numbers
move with the other pairs of a batch is read pair by pair.
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
"""Its name while a model is tried out: transformers then also tells which masks the model asks for."""


class Parts(NamedTuple):
    """A model as two modules."""

    body: torch.nn.Module
    """Tokens → hidden states."""
    head: torch.nn.Module
    """Hidden states → logits or scores, of each token by itself."""


class Group(NamedTuple):
    """One prompt and the responses to score after it, as token ids; none is empty."""

    prompt: list[int]
    responses: list[list[int]]


class Span(NamedTuple):
    """A run of tokens that attends to itself, and to its prompt where the prompt is not part of the run."""

    start: int
    """Its first key; keys count from the first token of a cached prompt, where there is one."""
    end: int
    """The key after its last."""
    prompt: tuple[int, int] | None
    """Where the prompt starts and ends; None where the run is a prompt, or holds its own."""


class Target(NamedTuple):
    """A response to score, and where its tokens are among the rows of hidden states that a pack gives."""

    group: int
    """The number of its group."""
    response: int
    """Its number in the group."""
    before: int
    """The row that predicts its first token: the last one of the prompt."""
    start: int
    """The row of its first token."""
    end: int
    """The row after its last token."""


class Pack(NamedTuple):
    """What one forward pass reads: spans end to end in one sequence, or, without spans, padded pairs."""

    ids: list[list[int]]
    """Token ids, sequences × tokens; a pack of spans is one sequence."""
    positions: list[int]
    """The position of each token, as if its pair stood alone."""
    spans: list[Span]
    lengths: list[int]
    """How many tokens of each padded pair are no padding."""
    targets: list[Target]
    answers: list[list[int]]
    """The responses' ids, in the order of `targets`."""
    groups: list[Group]
    """The same prompts and responses, from which smaller packs are made when memory runs out."""
    cached: int
    """Tokens of a prompt that an earlier pack read: keys start with all of them, rows with the last of them."""
    continues: Span | None
    """The prompt whose other responses are in the next pack; its keys and values are cached."""


class Outputs(NamedTuple):
    """What a pack gives: called with indices of rows, it returns their logits (rows × vocabulary) or scores (rows × 1).

    The head runs only then, as logits are the larger tensor.
    """

    hidden: torch.Tensor
    """Hidden states, rows × width; the logits themselves where the model has no head by itself."""
    head: Callable[[torch.Tensor], torch.Tensor]

    def __call__(self, rows: torch.Tensor) -> torch.Tensor:
        """Return the head's outputs of some rows."""
        return self.head(self.hidden[rows])


Read: TypeAlias = "Callable[[Outputs, Pack], torch.Tensor]"
"""A pack → one value for each response, or one row of values, in the order of its targets."""


class PrefixReader:
    """Read groups with a decoder, each prompt once.

    Args:
        model: A decoder with whatever head it has.
        parts: See `output_head`; where that is None, the whole model's logits are read.
        budget: Tokens a forward pass holds at most; None chooses by the device.

    Attributes:
        shared: Whether responses share their prompt's tokens in a pack.
        longest_batched: Pairs of up to so many tokens share batches; longer ones are read alone.
    """

    def __init__(self, model: PreTrainedModel, parts: Parts | None, budget: int | None) -> None:
        self.model = model
        self.body: torch.nn.Module | None = None if parts is None else parts.body
        self.head: torch.nn.Module | None = None if parts is None else parts.head
        self.budget = budget or automatic_budget(model)
        self._own = attentions(model)
        self._is_set = False
        """Whether the model calls the attention over packs at present, in place of its own."""
        self._name = NAME
        self._attention = PrefixAttention()
        self._fitted = False
        self._unread: list[int] = []
        """Lengths, in tokens, of the pairs that did not fit in memory even alone."""
        self.shared = parts is not None and self._agrees()
        self.longest_batched = probe.longest_alike(model.config) if self._batches_agree() else 0
        probe.forget_lengths(model)

    @property
    def window(self) -> float:
        """Return the smallest sliding window of any layer, in tokens; infinite where all tokens are seen."""
        return self._attention.window

    def score(self, groups: Iterable[Group], read: Read) -> list[list[float | None]]:
        """Return the value that `read` gives each response; see `score_rows`."""

        def one_column(outputs: Outputs, pack: Pack) -> torch.Tensor:
            return read(outputs, pack)[:, None]

        return [[None if row is None else row[0] for row in group] for group in self.score_rows(groups, one_column)]

    def score_rows(self, groups: Iterable[Group], read: Read) -> list[list[list[float] | None]]:
        """Return the row of values that `read` gives each response, a list a group; None where the pair alone exceeds memory.

        `groups` is consumed a pack at a time, so that texts are tokenized while a GPU works on earlier ones.

        Raises:
            ModelError: No pair has fitted in the device's memory yet.
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
            self._reset()
        self._fitted = self._fitted or bool(results)
        if self._unread and not self._fitted:
            raise ModelError(
                f"a prompt and response of {min(self._unread):,} tokens do not fit in the memory of "
                f"{self.model.device}; free some, or lower the model's max_tokens or max_response_tokens"
            )
        left_out(len(self._unread), max(self._unread, default=0), self.model.device)
        scores: list[list[list[float] | None]] = [[None] * size for size in sizes]
        for target, value in zip((p for targets, _ in results for p in targets), values, strict=True):
            scores[target.group][target.response] = value
        return scores

    def _packs(self, groups: Iterable[Group]) -> Iterator[Pack]:
        numbered = ((i, group) for i, group in enumerate(groups) if group.responses)
        if not self.shared:
            yield from padded_packs(numbered, self.budget, self.longest_batched)
            return
        # A sliding window hides the start of a long prompt from its response, and packs know no windows: pairs longer than
        # the window are read by the model's own attention.
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
        """Pack groups end to end; responses that do not fit go into the next pack, after their cached prompt."""
        layout = _Layout(0)
        for number, group in groups:
            if layout.answers and layout.size + len(group.prompt) + len(group.responses[0]) > self.budget:
                yield layout.pack()
                layout = _Layout(0)
            layout.prompt(group)
            for j, response in enumerate(group.responses):
                if layout.answers and layout.size + len(response) > self.budget:
                    yield layout.pack(continues=True)
                    # The prompt is cached, unless memory ran out and the pack was read in smaller ones.
                    layout = _Layout(len(group.prompt) if self._attention.cache else 0)
                    layout.prompt(group)
                layout.response(number, j, response)
        if layout.answers:
            yield layout.pack()

    def _run(self, pack: Pack, read: Read) -> list[tuple[list[Target], torch.Tensor]]:
        """Read a pack; where memory runs out, read its groups again in smaller packs."""
        import torch

        try:
            return [(pack.targets, read(self._outputs(pack), pack))]
        except torch.OutOfMemoryError:
            size = sum(map(len, pack.ids)) + pack.cached
        # Outside the handler: the exception keeps the tensors alive that were too much.
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
        """Run the model's body on a pack."""
        import torch

        device = self.model.device
        ids = moved(pack.ids, device)
        if pack.spans:
            inputs = {"input_ids": ids, "position_ids": moved([pack.positions], device)}
        else:
            is_token = (
                torch.arange(ids.shape[1], device=device) < moved(pack.lengths, device)[:, None]
            )  # (pairs, longest)
            inputs = {"input_ids": ids, "attention_mask": is_token.long()}
        with self._using(pack):
            if self.body is None:
                logits = self.model(**accepted(self.model, use_cache=False, **inputs)).logits.flatten(0, 1)
                return Outputs(logits, torch.nn.Identity())
            hidden = self.body(**accepted(self.body, use_cache=False, **inputs)).last_hidden_state.flatten(0, 1)
        if pack.cached:
            hidden = torch.cat([self._attention.last, hidden])
        if pack.continues is not None:
            # Where a prompt is cached, row 0 is its last token, so that rows follow keys at a fixed distance.
            last_row = max(0, pack.continues.end - 1 - pack.cached + (pack.cached > 0))
            self._attention.last = hidden[last_row : last_row + 1].clone()
        assert self.head is not None
        return Outputs(hidden, self.head)

    @contextmanager
    def _using(self, pack: Pack) -> Iterator[None]:
        """Let transformers call the attention that this pack needs."""
        if not pack.spans:
            self._restore()
            yield
            return
        if not self._is_set:
            # Noted before the call: a model of several parts may have changed some when it refuses the next.
            self._is_set = True
            self.model.set_attn_implementation(self._name)
        self._attention.begin(pack)
        token = _READING.set(self._attention)
        try:
            yield
        finally:
            _READING.reset(token)

    def _agrees(self) -> bool:
        """Tell whether packs give the model's own hidden states, measured on a few short groups of arbitrary tokens."""
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
                    # The small budget makes a prompt continue in a second and a third pack.
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
            self._reset()
        return False

    def _batches_agree(self) -> bool:
        """Tell whether padded batches give what each pair gives alone, measured on two pairs of unlike lengths."""
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
        """Return the model's output at the last token of each response, (responses, width), sorted by group and response."""
        import torch

        def last_hidden(outputs: Outputs, pack: Pack) -> torch.Tensor:
            return outputs(moved([p.end - 1 for p in pack.targets], self.model.device)).float()

        results = [result for pack in packs for result in self._run(pack, last_hidden)]
        rows = {
            (p.group, p.response): row for targets, values in results for p, row in zip(targets, values, strict=True)
        }
        return torch.stack([rows[key] for key in sorted(rows)])

    def _reset(self) -> None:
        """Return the model to its own attention, and drop the cache."""
        self._attention.forget()
        self._restore()

    def _restore(self) -> None:
        if self._is_set:
            self.model.set_attn_implementation(self._own)
            self._is_set = False


def padded_packs(groups: Iterator[tuple[int, Group]], budget: int, longest_batched: float = math.inf) -> Iterator[Pack]:
    """Make packs of whole pairs: batches of similar lengths, padded on the right; longer than `longest_batched`, alone."""
    pairs = [(number, j, group.prompt, r) for number, group in groups for j, r in enumerate(group.responses)]
    for batch in batches([len(prompt) + len(response) for _, _, prompt, response in pairs], budget, longest_batched):
        longest = len(pairs[batch[0]][2]) + len(pairs[batch[0]][3])
        ids, targets = [], []
        for row, (number, j, prompt, response) in enumerate(pairs[i] for i in batch):
            # Rows count over the batch as one sequence: (pairs, longest) is flattened.
            start = row * longest + len(prompt)
            targets.append(Target(number, j, start - 1, start, start + len(response)))
            # Padding repeats the last token, which every model has an embedding for; nothing attends to it.
            ids.append(prompt + response + [response[-1]] * (longest - len(prompt) - len(response)))
        pairs_as_groups = [Group(pairs[i][2], [pairs[i][3]]) for i in batch]
        lengths = [len(prompt) + len(response) for prompt, (response,) in pairs_as_groups]
        yield Pack(
            ids, [], [], lengths, targets, [response for _, (response,) in pairs_as_groups], pairs_as_groups, 0, None
        )


class _Layout:
    """A pack under construction, after `cached` tokens of its first prompt that an earlier pack read."""

    def __init__(self, cached: int) -> None:
        self.cached = cached
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
        """Begin a group; append its prompt unless it is cached."""
        start = self.cached + self.size
        if self.cached and not self.groups:
            self.open = Span(0, self.cached, None)
        else:
            self.open = Span(start, start + len(group.prompt), None)
            self._append(group.prompt, 0)
            # A prompt with one response is part of the response's own span.
            if len(group.responses) > 1:
                self.spans.append(self.open)
        self.groups.append(Group(group.prompt, []))
        self._alone = len(group.responses) == 1

    def response(self, number: int, index: int, ids: list[int]) -> None:
        """Append one response of the group that was begun last."""
        assert self.open is not None
        start = self.cached + self.size
        self.spans.append(
            Span(self.open.start, start + len(ids), None)
            if self._alone
            else Span(start, start + len(ids), (self.open.start, self.open.end))
        )
        # From keys to rows: of a cached prompt, rows hold the last token alone.
        shift = (1 if self.cached else 0) - self.cached
        predicting_row = max(0, self.open.end - 1 + shift)
        self.targets.append(Target(number, index, predicting_row, start + shift, start + shift + len(ids)))
        self._append(ids, self.open.end - self.open.start)
        self.groups[-1].responses.append(ids)
        self.answers.append(ids)

    def pack(self, continues: bool = False) -> Pack:
        """Return the finished pack."""
        return Pack(
            [self.ids],
            self.positions,
            self.spans,
            [self.size],
            self.targets,
            self.answers,
            [group for group in self.groups if group.responses],
            self.cached,
            self.open if continues else None,
        )

    def _append(self, ids: list[int], position: int) -> None:
        self.ids += ids
        self.positions += range(position, position + len(ids))


class _Unsupported(Exception):
    """The model asks for a kind of attention that packs do not have."""


_REFUSALS = (_Unsupported, AttributeError, ImportError, KeyError, RuntimeError, TypeError, ValueError)
"""What a model may raise when it cannot be read in packs."""


class PrefixAttention:
    """Attend over a pack; transformers calls this in place of its own attention.

    On a CPU each span is one call of scaled dot product attention. On CUDA all spans are one call of FlexAttention, which
    skips every block of queries and keys in which no query attends to a key.
    """

    def __init__(self) -> None:
        self.flex = False
        self.window: float = math.inf
        """The smallest sliding window that any layer asked for, in tokens."""
        self.calls = 0
        self.cache: dict[int, tuple[torch.Tensor, torch.Tensor]] = {}
        """Cached keys and values of the prompt that continues in the next pack, by layer: (1, heads, tokens, width)."""
        self.last: torch.Tensor
        """That prompt's last hidden state, (1, width)."""
        self._pack: Pack
        self._masks: dict[tuple[int, int], torch.Tensor] = {}
        self._block_mask: BlockMask | None = None

    def begin(self, pack: Pack) -> None:
        """Get ready for a forward pass over a pack."""
        self._pack, self._masks, self._block_mask = pack, {}, None
        self.calls = 0
        if not pack.cached:
            self.cache = {}

    def forget(self) -> None:
        """Drop the cache and all masks."""
        self.cache, self._masks, self._block_mask = {}, {}, None

    def __call__(
        self,
        module: torch.nn.Module,
        query: torch.Tensor,
        key: torch.Tensor,
        value: torch.Tensor,
        scaling: float | None,
        window: int | None,
    ) -> torch.Tensor:
        """Return (1, tokens, heads, width) for queries, keys and values of (1, heads, tokens, width)."""
        import torch

        self.calls += 1
        if window is not None:
            self.window = min(self.window, window)
        if self._pack.cached:
            before_key, before_value = self.cache[id(module)]
            # (1, heads, cached + tokens, width)
            key, value = torch.cat([before_key, key], 2), torch.cat([before_value, value], 2)
        if self._pack.continues is not None:
            start, end, _ = self._pack.continues
            self.cache[id(module)] = key[:, :, start:end].clone(), value[:, :, start:end].clone()
        if self.flex:
            return self._flexed(query, key, value, scaling)
        attended = query.new_empty(1, query.shape[2], query.shape[1], value.shape[3])
        # Grouped-query attention: several heads of queries share one head of keys.
        grouped = query.shape[1] != key.shape[1]
        # Spans count over keys; queries start after the cached ones.
        shift = self._pack.cached
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
        """Return a mask (response, prompt + response), shared by all layers: 0 where a query attends, −∞ elsewhere.

        A response attends to its whole prompt, and to its own tokens up to the present one.
        """
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
            span, prompt_span, position = (
                moved(numbers, query.device) for numbers in self._spans_of_keys(key.shape[2])
            )
            shift = self._pack.cached

            def attends(b: torch.Tensor, h: torch.Tensor, q: torch.Tensor, k: torch.Tensor) -> torch.Tensor:
                query_key = q + shift
                return ((span[k] == span[query_key]) | (span[k] == prompt_span[query_key])) & (
                    position[k] <= position[query_key]
                )

            self._block_mask = create_block_mask(
                attends, None, None, query.shape[2], key.shape[2], device=str(query.device), _compile=on_gpu
            )
        attended = _flex(on_gpu)(
            query, key, value, block_mask=self._block_mask, scale=scaling, enable_gqa=query.shape[1] != key.shape[1]
        )
        assert isinstance(attended, torch.Tensor)
        return attended.transpose(1, 2).contiguous()

    def _spans_of_keys(self, count: int) -> tuple[list[int], list[int], list[int]]:
        """Return, for each key, the number of its span, the number of its prompt's span or −1, and its position."""
        cached = self._pack.cached
        span, prompt_span = [0] * count, [-1] * count
        position = [*range(cached), *self._pack.positions]
        number = {(0, cached): 0}
        for n, (start, end, prompt) in enumerate(self._pack.spans, 1):
            number[start, end] = n
            span[start:end] = [n] * (end - start)
            if prompt is not None:
                prompt_span[start:end] = [number[prompt]] * (end - start)
        return span, prompt_span, position


_READING: ContextVar[PrefixAttention] = ContextVar("reading")


@cache
def _register() -> None:
    """Enter the attention into transformers' tables of attention functions and masks."""
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
        # Some models give a window, or a chunk, to the mask and not to the attention.
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


def attentions(model: PreTrainedModel) -> dict[str, str]:
    """Return the name of the attention that a model and each of its parts calls, as transformers stores it."""
    parts = {"": model.config} | {key: getattr(model.config, key, None) for key in model.config.sub_configs}
    names = {key: getattr(config, "_attn_implementation", None) for key, config in parts.items()}
    return {key: name for key, name in names.items() if name is not None}


def output_head(model: PreTrainedModel, head: object) -> Parts | None:
    """Return a model as body and head, if `head` alone turns the body's hidden states into the model's outputs.

    Whether it does is measured on a few tokens: some models scale or cap their logits after the head. They give None, and so
    does a head that is no module.
    """
    import torch

    if not isinstance(head, torch.nn.Module):
        return None
    ids = torch.tensor([probe.tokens(model, 6)], device=model.device)
    with torch.inference_mode():
        # A classifier gives one row, the last token's; a language model gives a row for each token.
        expected = model(**accepted(model, input_ids=ids, use_cache=False)).logits[0].float()
        expected = expected if expected.dim() == 2 else expected[None]
        for body in _bodies(model):
            try:
                recomputed = head(body(**accepted(body, input_ids=ids, use_cache=False)).last_hidden_state)[0].float()
                if probe.close(recomputed[-len(expected) :], expected, model.dtype):
                    return Parts(body, head)
            except _REFUSALS:
                continue
    return None


def _bodies(model: PreTrainedModel) -> Iterator[torch.nn.Module]:
    """Yield the modules that may give a model's hidden states: its base, or the text part of a model of text and images."""
    import torch

    candidates = [model.base_model, getattr(model, "model", None)]
    with suppress(AttributeError, NotImplementedError, TypeError):
        candidates.append(model.get_decoder())
    for module in candidates:
        if isinstance(module, torch.nn.Module) and module is not model:
            yield module
