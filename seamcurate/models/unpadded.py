"""Read many texts with an encoder on a CPU, end to end in one sequence: no padding is read, and no mask is made.

Texts of equal length stand side by side, and attention is one call for each length: each text attends to itself alone.
Positions count as if each text stood alone, so that no number depends on the texts beside it.

Whether an encoder can be read this way is measured when it is loaded, against each text read alone. One that gives other
numbers (biased or windowed attention, positions that cannot be given) is read in padded batches. So is every encoder on
a GPU, where few large calls are faster than many small ones.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from functools import cache
from typing import TYPE_CHECKING, NamedTuple, TypeAlias

from seamcurate.models import probe
from seamcurate.models.batching import accepted
from seamcurate.models.prefix import attentions

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel

NAME = "seamcurate_unpadded"
"""What the attention is called in transformers' table of attention functions."""
_TRIAL = f"{NAME}_trial"
"""Its name while an encoder is tried out: transformers then also tells which masks the encoder asks for."""
_BUDGET = 2048
"""Tokens of a sequence, or one longer text: what fits a CPU's cache."""


class Run(NamedTuple):
    """Texts of equal length that stand side by side in a sequence."""

    start: int
    """The first token of the first of them."""
    texts: int
    """How many texts."""
    length: int
    """Tokens of each."""


Pool: TypeAlias = "Callable[[torch.Tensor, list[int]], torch.Tensor]"
"""Hidden states (texts × tokens × width) and the numbers of these texts → one row for each text."""


class UnpaddedReader:
    """Read texts with an encoder, end to end in one sequence.

    Args:
        body: A model whose output has the hidden states of all tokens.

    Attributes:
        agrees: Whether this gives the numbers of each text read alone; if not, `read` must not be called.
    """

    def __init__(self, body: PreTrainedModel) -> None:
        self.body = body
        self._own = attentions(body)
        self._name = NAME
        self._first = 0
        """The number of the first position: RoBERTa and its kind count from the padding id on."""
        self.agrees = self._agrees()

    def read(
        self,
        texts: Sequence[torch.Tensor],
        pool: Pool,
        token_inputs: Mapping[str, Sequence[torch.Tensor]] | None = None,
    ) -> torch.Tensor:
        """Return what `pool` makes of each text's hidden states, a row a text, in the order of `texts`.

        Args:
            texts: Token ids of each text; none is empty.
            pool: Takes the hidden states of several texts of equal length.
            token_inputs: Other inputs of the model that have a number for each token, such as segments.
        """
        import torch

        pooled: list[torch.Tensor] = []
        numbers: list[int] = []
        with torch.inference_mode(), self._attention():
            for pack in _packs([len(text) for text in texts]):
                runs = _runs([len(texts[i]) for i in pack])
                inputs = {
                    name: torch.cat([values[i] for i in pack])[None] for name, values in (token_inputs or {}).items()
                }
                hidden = self._hidden(torch.cat([texts[i] for i in pack]), runs, inputs)  # (tokens, width)
                read = iter(pack)
                for start, count, length in runs:
                    run = [next(read) for _ in range(count)]
                    numbers += run
                    pooled.append(pool(hidden[start : start + count * length].view(count, length, -1), run))
            order = torch.empty(len(numbers), dtype=torch.long)
            order[torch.tensor(numbers)] = torch.arange(len(numbers))
            return torch.cat(pooled)[order]

    def _hidden(self, ids: torch.Tensor, runs: list[Run], token_inputs: dict[str, torch.Tensor]) -> torch.Tensor:
        """Return the hidden states of a sequence, tokens × width."""
        import torch

        positions = torch.cat([torch.arange(length).repeat(count) for _, count, length in runs]) + self._first
        token = _RUNS.set(runs)
        try:
            output = self.body(
                **accepted(
                    self.body, input_ids=ids[None], position_ids=positions[None], use_cache=False, **token_inputs
                )
            )
        finally:
            _RUNS.reset(token)
        hidden: torch.Tensor = output.last_hidden_state[0]
        return hidden

    def _agrees(self) -> bool:
        """Tell whether texts end to end have the hidden states of each alone, measured on a few short texts."""
        import torch

        if self.body.device.type != "cpu":
            return False
        _register()
        ids = torch.tensor(probe.tokens(self.body, 21))
        # Two texts are of equal length, so that they share a run.
        texts = [ids[:9], ids[9:14], ids[14:16], ids[16:]]
        self._name = _TRIAL
        try:
            with torch.inference_mode():
                alone = [
                    self.body(**accepted(self.body, input_ids=text[None], use_cache=False)).last_hidden_state[0]
                    for text in texts
                ]
            expected = torch.stack([_sides(hidden) for hidden in alone])
            pad = getattr(self.body.config, "pad_token_id", None)
            for self._first in (0,) if pad is None else (0, int(pad) + 1):
                rows = self.read(texts, lambda hidden, _: torch.stack([_sides(text) for text in hidden]))
                if probe.close(rows.float(), expected.float(), self.body.dtype):
                    return True
        except _REFUSALS:
            return False
        finally:
            self._name = NAME
        return False

    @contextmanager
    def _attention(self) -> Iterator[None]:
        """Let the model call the attention over runs, then its own again."""
        try:
            self.body.set_attn_implementation(self._name)
            yield
        finally:
            self.body.set_attn_implementation(self._own)


def _sides(hidden: torch.Tensor) -> torch.Tensor:
    """Return a text's first and last hidden state and their mean over all tokens, 3 × width."""
    import torch

    return torch.stack([hidden[0], hidden[-1], hidden.mean(0)])


def _packs(lengths: Sequence[int]) -> Iterator[list[int]]:
    """Yield the numbers of the texts of each sequence, longest first; texts of equal length are neighbours."""
    pack, size = list[int](), 0
    for i in sorted(range(len(lengths)), key=lambda i: -lengths[i]):
        if pack and size + lengths[i] > _BUDGET:
            yield pack
            pack, size = [], 0
        pack.append(i)
        size += lengths[i]
    if pack:
        yield pack


def _runs(lengths: Sequence[int]) -> list[Run]:
    """Return the runs of a sequence of texts.

    Example:
        >>> _runs([3, 2, 2])
        [Run(start=0, texts=1, length=3), Run(start=3, texts=2, length=2)]
    """
    runs: list[Run] = []
    start = 0
    for length in lengths:
        if runs and runs[-1].length == length:
            runs[-1] = runs[-1]._replace(texts=runs[-1].texts + 1)
        else:
            runs.append(Run(start, 1, length))
        start += length
    return runs


class _Unsupported(Exception):
    """The encoder asks for a kind of attention that runs do not have."""


_REFUSALS = (_Unsupported, AttributeError, ImportError, IndexError, KeyError, RuntimeError, TypeError, ValueError)
"""What an encoder may raise when it cannot be read without padding."""
_RUNS: ContextVar[list[Run]] = ContextVar("runs")


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
        biased = any(further_arguments.get(name) is not None for name in ("softcap", "s_aux", "position_bias"))
        if biased or sliding_window is not None:
            raise _Unsupported("biased or windowed attention")
        causal = getattr(module, "is_causal", True) if is_causal is None else is_causal
        return _attended(query, key, value, scaling, bool(causal)), None

    def mask(*args: object, local_size: int | None = None, **further_arguments: object) -> None:
        # Some models give a window to the mask and not to the attention.
        if local_size is not None:
            raise _Unsupported("windowed attention")

    for name in (NAME, _TRIAL):
        AttentionInterface.register(name, attend)
    AttentionMaskInterface.register(_TRIAL, mask)


def _attended(
    query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, scaling: float | None, causal: bool
) -> torch.Tensor:
    """Return (1, tokens, heads, width) for queries, keys and values of (1, heads, tokens, width), run by run."""
    import torch

    attended = query.new_empty(1, query.shape[2], query.shape[1], value.shape[3])
    for start, count, length in _RUNS.get():
        end = start + count * length
        # (texts, heads, length, width)
        queries, keys, values = (
            states[0, :, start:end].view(states.shape[1], count, length, -1).transpose(0, 1)
            for states in (query, key, value)
        )
        attended[0, start:end].view(count, length, *attended.shape[2:]).copy_(
            torch.nn.functional.scaled_dot_product_attention(
                queries,
                keys,
                values,
                is_causal=causal,
                scale=scaling,
                enable_gqa=query.shape[1] != key.shape[1],
            ).transpose(1, 2)
        )
    return attended
