"""Decode many answers together, a token of each at a time. This is sampling's hot path.

How a model can be decoded is measured when it is loaded, against the whole text read alone without a cache:

- `PlainDecoder`, for models with plain attention: keys and values lie in one buffer, a row for each answer, so that answers of
  any length share a batch, and an answer that has ended makes room for the next at once.
- `CachedDecoder`, for all others that have a cache of transformers' (sliding windows, recurrent states, biased attention): the
  answers to one prompt share a batch, as they are always of one length.
- `LockstepDecoder`, in 16 bit, where rounding decides one token in thirty: the answers to one prompt share batches whose shape
  and order never change, whatever is asked, so that each number in them is the same to the last bit.
- `UncachedDecoder`, for the rest: each text is read anew for each token.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from functools import cache
from typing import TYPE_CHECKING, Any, Protocol

from seamcurate.models import prefix, probe
from seamcurate.models.batching import accepted, moved

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel

NAME = "seamcurate_decoding"
"""What the attention is called in transformers' table of attention functions."""
_FIRST = 4096
"""Tokens held at most until the size of a token's keys and values is known."""
_GROWTH = 256
"""Tokens by which the buffers grow; a quarter of it up to the first, as most of a short answer's buffer would only be cleared."""
_MOST_ROWS, _MOST_ROWS_GPU = 64, 256
"""Answers of a batch: beyond, a token of one more answer costs as much as it would in another batch."""
_LOCKSTEP = 16
"""Answers of a batch in 16 bit. A change gives other answers."""
_MARGIN, _TIMES_SEEN = 1e-4, 4
"""By how much a float32 logit of a batch may differ from that of the text read alone, as a share of the logits' standard
deviation, and how many times as much as was seen. Seen: 3e-5 with SmolLM2-135M."""


class Decoder(Protocol):
    """Reads a batch of unfinished answers. Rows are numbered from 0; a new one comes last."""

    most_rows: int
    """Answers of a batch, at most."""
    exact: bool
    """Whether the logits of a step do not depend on the rest of the batch, not even by rounding."""

    @property
    def rows(self) -> int:
        """Return how many answers are in the batch."""
        ...

    def admit(self, draws: Sequence[int], length: int) -> Sequence[int]:
        """Return those of some draws of one prompt that can begin now, the first ones; at least one where there is no answer.

        Args:
            draws: Their numbers.
            length: The most tokens of each, prompt included.
        """
        ...

    def alone(self, ids: list[int]) -> torch.Tensor:
        """Read one text by itself, without a cache; return the logits after its last token, 1 × vocabulary, float32."""
        ...

    def add(self, prompt: list[int], draws: Sequence[int], length: int) -> torch.Tensor:
        """Begin the draws of one prompt that `admit` returned; return what `alone` gives for the prompt, which is read once."""
        ...

    def step(self, tokens: Sequence[int]) -> torch.Tensor:
        """Append a token to each answer; return the logits after it, rows × vocabulary, float32."""
        ...

    def remove(self, row: int) -> None:
        """End an answer; the last row takes its number."""
        ...

    def clear(self) -> None:
        """End all answers, and give their memory back."""
        ...

    def halve(self) -> None:
        """Let half as many answers as there are share a batch from now on."""
        ...


class UncachedDecoder:
    """Reads each answer with its prompt anew for each token; serves any causal model."""

    exact = True

    def __init__(self, model: PreTrainedModel, most_rows: int = 1) -> None:
        self.model, self.most_rows = model, most_rows
        self.texts: list[list[int]] = []

    @property
    def rows(self) -> int:
        """Return how many answers are in the batch."""
        return len(self.texts)

    def admit(self, draws: Sequence[int], length: int) -> Sequence[int]:
        """Admit one answer: more would be no quicker."""
        return draws[: self.most_rows - self.rows]

    def alone(self, ids: list[int]) -> torch.Tensor:
        """Read one text; see `Decoder`."""
        inputs = accepted(self.model, input_ids=moved([ids], self.model.device), use_cache=False)
        last: torch.Tensor = self.model(**inputs).logits[:, -1].float()
        return last

    def add(self, prompt: list[int], draws: Sequence[int], length: int) -> torch.Tensor:
        """Begin some answers; see `Decoder`."""
        self.texts += [list(prompt) for _ in draws]
        return self.alone(prompt)

    def step(self, tokens: Sequence[int]) -> torch.Tensor:
        """Append a token to each answer; see `Decoder`."""
        import torch

        for text, token in zip(self.texts, tokens, strict=True):
            text.append(token)
        return torch.cat([self.alone(text) for text in self.texts])

    def remove(self, row: int) -> None:
        """End an answer; see `Decoder`."""
        self.texts[row] = self.texts[-1]
        self.texts.pop()

    def clear(self) -> None:
        """End all answers."""
        self.texts = []

    def halve(self) -> None:
        """Let fewer answers share a batch; see `Decoder`."""
        self.most_rows = max(1, self.rows // 2)


class CachedDecoder(UncachedDecoder):
    """Reads the answers to one prompt together, each token once, by the cache that the model makes for itself."""

    exact = False

    def __init__(self, model: PreTrainedModel, most_rows: int) -> None:
        super().__init__(model, most_rows)
        self.count = 0
        self.cache: Any = None
        self._name = ""
        """What the model calls its cache."""

    @property
    def rows(self) -> int:
        """Return how many answers are in the batch."""
        return self.count

    def admit(self, draws: Sequence[int], length: int) -> Sequence[int]:
        """Admit answers to one prompt at a time."""
        return () if self.count else draws[: self.most_rows]

    def add(self, prompt: list[int], draws: Sequence[int], length: int) -> torch.Tensor:
        """Begin some answers; see `Decoder`."""
        import torch

        logits = self._read([prompt], None)[:, -1].float()
        if len(draws) > 1:
            self.cache.reorder_cache(torch.zeros(len(draws), dtype=torch.long, device=self.model.device))
        self.count = len(draws)
        return logits

    def step(self, tokens: Sequence[int]) -> torch.Tensor:
        """Append a token to each answer; see `Decoder`."""
        return self._read([[token] for token in tokens], self.cache)[:, -1].float()

    def remove(self, row: int) -> None:
        """End an answer; see `Decoder`."""
        self.count -= 1
        if not self.count:
            self.cache = None
            return
        kept = list(range(self.count))
        if row < self.count:
            kept[row] = self.count
        self.cache.reorder_cache(moved(kept, self.model.device))

    def clear(self) -> None:
        """End all answers."""
        self.count, self.cache = 0, None

    def _read(self, ids: list[list[int]], past: Any) -> torch.Tensor:
        inputs = {"input_ids": moved(ids, self.model.device), "use_cache": True}
        if past is not None:
            inputs[self._name] = past
        outputs = self.model(**inputs)
        for self._name in ("past_key_values", "cache_params"):
            self.cache = getattr(outputs, self._name, None)
            if self.cache is not None:
                break
        self.cache.reorder_cache  # noqa: B018 - what is no cache of transformers' is refused here
        logits: torch.Tensor = outputs.logits
        return logits


class LockstepDecoder(CachedDecoder):
    """Reads 16 answers to one prompt together, always.

    Draw d is row d mod 16, and a row that is not asked for, or has ended, is filled with any token. The shapes of all products
    follow from the prompt and the position alone, and with them their rounding.
    """

    exact = True

    def __init__(self, model: PreTrainedModel, most_rows: int) -> None:
        super().__init__(model, most_rows)
        self.places: list[int] = []
        """The place in the batch of each row."""
        self._filler = 0

    def admit(self, draws: Sequence[int], length: int) -> Sequence[int]:
        """Admit the draws that share a batch with the first."""
        group = draws[0] // self.most_rows
        return () if self.places else [draw for draw in draws if draw // self.most_rows == group]

    @property
    def rows(self) -> int:
        """Return how many answers are in the batch."""
        return len(self.places)

    def add(self, prompt: list[int], draws: Sequence[int], length: int) -> torch.Tensor:
        """Begin some answers; see `Decoder`."""
        logits = super().add(prompt, range(self.most_rows), length)
        self.places, self._filler = [draw % self.most_rows for draw in draws], prompt[-1]
        return logits

    def step(self, tokens: Sequence[int]) -> torch.Tensor:
        """Append a token to each answer; see `Decoder`."""
        filled = [self._filler] * self.most_rows
        for place, token in zip(self.places, tokens, strict=True):
            filled[place] = token
        return super().step(filled)[self.places]

    def remove(self, row: int) -> None:
        """End an answer; see `Decoder`."""
        self.places[row] = self.places[-1]
        self.places.pop()
        if not self.places:
            self.clear()

    def clear(self) -> None:
        """End all answers."""
        super().clear()
        self.places = []

    def halve(self) -> None:
        """Do nothing: another batch would give other numbers."""


class PlainDecoder:
    """Reads answers of any lengths together, each token once, by keys and values in buffers of its own.

    Args:
        model: A decoder with plain attention.
        parts: Its body and head.
        most_rows: Answers of a batch, at most.
        budget: Tokens whose keys and values are held at most; None chooses by the device.
    """

    exact = False

    def __init__(self, model: PreTrainedModel, parts: prefix.Parts, most_rows: int, budget: int | None) -> None:
        self.model, self.parts, self.most_rows = model, parts, most_rows
        self._budget = budget
        self.attention = _BufferedAttention()
        self.lengths: list[int] = []
        """Tokens of each answer with its prompt, as far as they are read."""
        self._longest = 0
        """Tokens that the longest answer of the batch may have with its prompt."""
        self._prompt: tuple[list[int], torch.Tensor] | None = None
        """The prompt that was read last, whose keys and values are kept, with its logits."""

    @property
    def rows(self) -> int:
        """Return how many answers are in the batch."""
        return len(self.lengths)

    @property
    def budget(self) -> int:
        """Return how many tokens' keys and values are held at most; known when a first prompt was read."""
        if self._budget is None:
            if not self.attention.kept:
                return _FIRST
            self._budget = _cache_budget(self.model, self.attention.token_bytes())
        return self._budget

    def admit(self, draws: Sequence[int], length: int) -> Sequence[int]:
        """Admit answers while the buffers stay within the budget."""
        longest = max(self._longest, length) if self.rows else length
        room = min(self.budget // longest, self.most_rows) - self.rows
        return draws[: max(room, 0 if self.rows else 1)]

    def halve(self) -> None:
        """Let fewer answers share a batch; see `Decoder`."""
        self._budget = min(self.budget, self.rows * self._longest) // 2

    def alone(self, ids: list[int]) -> torch.Tensor:
        """Read one text; see `Decoder`."""
        with self._attending(reads=True):
            return self._logits([ids], [list(range(len(ids)))])

    def add(self, prompt: list[int], draws: Sequence[int], length: int) -> torch.Tensor:
        """Begin some answers; see `Decoder`."""
        if self._prompt is None or self._prompt[0] != prompt:
            with self._attending(reads=True, keeps=True):
                self._prompt = prompt, self._logits([prompt], [list(range(len(prompt)))])
        self._longest = max(self._longest, length) if self.rows else length
        self.attention.fill(self.rows, len(draws))
        self.lengths += [len(prompt)] * len(draws)
        return self._prompt[1]

    def step(self, tokens: Sequence[int]) -> torch.Tensor:
        """Append a token to each answer; see `Decoder`."""
        self.attention.begin(self.lengths, self.model.device)
        with self._attending(reads=False):
            logits = self._logits([[token] for token in tokens], [[length] for length in self.lengths])
        self.lengths = [length + 1 for length in self.lengths]
        return logits

    def remove(self, row: int) -> None:
        """End an answer; see `Decoder`."""
        last = self.rows - 1
        if row != last:
            self.attention.move(last, row, self.lengths[last])
        self.lengths[row] = self.lengths[last]
        self.lengths.pop()

    def clear(self) -> None:
        """End all answers."""
        self.lengths, self._prompt = [], None
        self.attention.forget()

    def _logits(self, ids: list[list[int]], positions: list[list[int]]) -> torch.Tensor:
        body, head = self.parts
        device = self.model.device
        inputs = accepted(body, input_ids=moved(ids, device), position_ids=moved(positions, device), use_cache=False)
        logits: torch.Tensor = head(body(**inputs).last_hidden_state[:, -1])
        return logits.float()

    @contextmanager
    def _attending(self, reads: bool, keeps: bool = False) -> Iterator[None]:
        self.attention.reads, self.attention.keeps = reads, keeps
        token = _ATTENDING.set(self.attention)
        try:
            yield
        finally:
            _ATTENDING.reset(token)


class _BufferedAttention:
    """Attend over buffers of keys and values; transformers calls this in place of its own attention."""

    def __init__(self) -> None:
        self.reads = self.keeps = False
        """Whether one text is read by itself, and whether its keys and values are kept."""
        self.kept: dict[int, tuple[torch.Tensor, torch.Tensor]] = {}
        """Keys and values of the prompt that was read last, by layer: (1, heads, tokens, width)."""
        self.buffers: dict[int, tuple[torch.Tensor, torch.Tensor]] = {}
        """Keys and values of all answers, by layer: (rows, heads, tokens, width)."""
        self.ends: torch.Tensor
        """The column that each answer's next token goes to."""
        self.mask: torch.Tensor
        """Which columns of the buffers each answer attends to: (rows, 1, 1, columns)."""

    def forget(self) -> None:
        """Drop everything."""
        self.kept, self.buffers = {}, {}

    def token_bytes(self) -> int:
        """Return the size of a token's keys and values in all layers."""
        return sum(x.nbytes // x.shape[2] for kept in self.kept.values() for x in kept)

    def begin(self, lengths: Sequence[int], device: torch.device) -> None:
        """Take up the lengths that answers have before the next token."""
        import torch

        self.ends = moved(lengths, device)
        columns = torch.arange(max(lengths) + 1, device=device)
        self.mask = (columns <= self.ends[:, None])[:, None, None]

    def fill(self, row: int, count: int) -> None:
        """Write the prompt that was read last into rows from `row` on."""
        for layer, kept in self.kept.items():
            columns = kept[0].shape[2]
            for buffer, states in zip(self._buffers(layer, kept, row + count, columns), kept, strict=True):
                buffer[row : row + count, :, :columns] = states

    def move(self, source: int, target: int, length: int) -> None:
        """Copy an answer into another row."""
        for buffers in self.buffers.values():
            for buffer in buffers:
                buffer[target, :, :length] = buffer[source, :, :length]

    def __call__(
        self,
        module: torch.nn.Module,
        query: torch.Tensor,
        key: torch.Tensor,
        value: torch.Tensor,
        scaling: float | None,
    ) -> torch.Tensor:
        """Return (rows, tokens, heads, width) for queries, keys and values of (rows, heads, tokens, width)."""
        import torch

        attend = torch.nn.functional.scaled_dot_product_attention
        if self.reads:
            if self.keeps:
                self.kept[id(module)] = key, value
            grouped = query.shape[1] != key.shape[1]
            return attend(query, key, value, is_causal=True, scale=scaling, enable_gqa=grouped).transpose(1, 2)
        rows, columns = len(self.ends), self.mask.shape[-1]
        numbers = torch.arange(rows, device=query.device)
        buffers = self._buffers(id(module), (key, value), rows, columns)
        for buffer, states in zip(buffers, (key, value), strict=True):
            buffer[numbers, :, self.ends] = states[:, :, 0]
        keys, values = (buffer[:rows, :, :columns] for buffer in buffers)
        # Heads of queries that share a head of keys become positions, so that no key is copied.
        grouped_query = query.reshape(rows, keys.shape[1], -1, query.shape[3])
        attended = attend(grouped_query, keys, values, attn_mask=self.mask, scale=scaling)
        return attended.reshape(rows, 1, query.shape[1], values.shape[3])

    def _buffers(
        self, layer: int, like: tuple[torch.Tensor, torch.Tensor], rows: int, columns: int
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Return a layer's buffers, made larger where they have too few rows or columns."""
        present = self.buffers.get(layer)
        old_rows, old_columns = (0, 0) if present is None else (present[0].shape[0], present[0].shape[2])
        if present is not None and rows <= old_rows and columns <= old_columns:
            return present
        step = _GROWTH if columns > _GROWTH else _GROWTH // 4
        width = max(old_columns, step * math.ceil(columns / step))
        # Zeros, as what is masked still takes part in products with 0.
        keys, values = (x.new_zeros(max(rows, old_rows), x.shape[1], width, x.shape[3]) for x in like)
        for buffer, old in zip((keys, values), present or (), strict=False):
            buffer[:old_rows, :, :old_columns] = old
        self.buffers[layer] = keys, values
        return keys, values


_ATTENDING: ContextVar[_BufferedAttention] = ContextVar("attending")


@cache
def _register() -> None:
    """Enter the attention into transformers' table of attention functions."""
    from transformers import AttentionInterface

    def attend(
        module: torch.nn.Module,
        query: torch.Tensor,
        key: torch.Tensor,
        value: torch.Tensor,
        attention_mask: torch.Tensor | None = None,
        scaling: float | None = None,
        **further_arguments: object,
    ) -> tuple[torch.Tensor, None]:
        return _ATTENDING.get()(module, query, key, value, scaling), None

    AttentionInterface.register(NAME, attend)


_REFUSALS = (
    AttributeError,
    ImportError,
    IndexError,
    KeyError,
    NotImplementedError,
    RuntimeError,
    TypeError,
    ValueError,
)
"""What a model may raise when it cannot be decoded in some way."""


class Decoders:
    """The ways in which a model can be decoded; they are measured when this is made.

    Args:
        model: A causal language model.
        budget: Tokens whose keys and values are held at most; None chooses by the device.

    Attributes:
        margin: By how much a logit of a batch may differ from that of the text read alone, as a share of the standard deviation
            of the logits. A multiple of what was seen, and raised where more is seen.
    """

    def __init__(self, model: PreTrainedModel, budget: int | None) -> None:
        import torch

        _register()
        self.model, self._own = model, prefix.attentions(model)
        self.margin = _MARGIN
        parts = prefix.output_head(model, model.get_output_embeddings())
        reader = prefix.PrefixReader(model, parts, None)
        # Beyond, positions count otherwise, so that no cached state holds.
        alike = probe.longest_alike(model.config)
        self.ways: list[tuple[Decoder, float]] = []
        """With the length, in tokens, of the longest text that each serves; the first that serves a text decodes it."""
        if model.dtype == torch.float32:
            most_rows = (_MOST_ROWS if model.device.type == "cpu" else _MOST_ROWS_GPU) if reader.longest_batched else 1
            plain = None if parts is None or not reader.shared else PlainDecoder(model, parts, most_rows, budget)
            if plain is not None and self._agrees(plain):
                self.ways.append((plain, min(reader.window, alike)))
            cached: CachedDecoder = CachedDecoder(model, most_rows)
        else:
            cached = LockstepDecoder(model, _LOCKSTEP)
            if not self._is_exact(cached):
                cached = LockstepDecoder(model, 1)
        if self._agrees(cached):
            self.ways.append((cached, alike))
        self.ways.append((UncachedDecoder(model), math.inf))

    @property
    def alone(self) -> bool:
        """Tell whether answers are decoded one at a time: their numbers move with what is beside them, or there is no cache."""
        return self.ways[0][0].most_rows == 1

    def saw(self, difference: float) -> None:
        """Take up by how much the logits of a batch differed, as a share of their standard deviation."""
        self.margin = max(self.margin, _TIMES_SEEN * difference)

    def shares(self, lengths: Sequence[int]) -> Iterator[tuple[Decoder, list[int]]]:
        """Yield each decoder with the numbers of the texts that it serves, in their order; it can be used until the next.

        Args:
            lengths: Tokens of each prompt and answer, at most.
        """
        remaining = list(range(len(lengths)))
        for decoder, longest in self.ways:
            served = [i for i in remaining if lengths[i] <= longest]
            remaining = [i for i in remaining if lengths[i] > longest]
            if served:
                with self._attention(decoder):
                    yield decoder, served

    @contextmanager
    def _attention(self, decoder: Decoder) -> Iterator[None]:
        """Let the model call the attention that a decoder needs."""
        if not isinstance(decoder, PlainDecoder):
            yield
            return
        try:
            self.model.set_attn_implementation(NAME)
            yield
        finally:
            self.model.set_attn_implementation(self._own)

    def _agrees(self, decoder: Decoder) -> bool:
        """Tell whether a decoder gives what the model gives for each text alone, on a few arbitrary tokens."""
        import torch

        ids, plain = probe.tokens(self.model, 24), UncachedDecoder(self.model)
        texts = [list(ids[:9]) for _ in decoder.admit([0, 1], 24)]
        read_texts, logits = [ids[:9]], []
        try:
            with torch.inference_mode():
                with self._attention(decoder):
                    logits.append(decoder.add(ids[:9], range(len(texts)), 24))
                    if decoder.admit([0], 24):
                        texts.append(ids[9:14])
                        decoder.add(ids[9:14], [0], 24)
                    for place in (14, 17, 20):
                        for text, token in zip(texts, ids[place:], strict=False):
                            text.append(token)
                        logits.append(decoder.step([text[-1] for text in texts]))
                        read_texts += [list(text) for text in texts]
                        if len(texts) > 1:
                            decoder.remove(0)
                            texts[0] = texts[-1]
                            texts.pop()
                expected = torch.cat([plain.alone(text) for text in read_texts])
        except _REFUSALS:
            return False
        finally:
            decoder.clear()
        seen = torch.cat(logits)
        if not probe.close(seen, expected, self.model.dtype):
            return False
        self.saw(float(((seen - expected).abs().amax(-1) / expected.std(-1)).max()))
        return True

    def _is_exact(self, decoder: Decoder) -> bool:
        """Tell whether an answer's logits are the same to the last bit beside other answers."""
        import torch

        ids, read = probe.tokens(self.model, 32), []
        try:
            for others in (ids[9:12], ids[12:15]):
                with torch.inference_mode():
                    decoder.add(ids[:9], range(3), 16)
                    read.append([decoder.step([ids[20 + place], *others[:2]])[0] for place in range(3)])
                    read[-1] += [decoder.step([ids[24], *others[1:]])[0]]
                decoder.clear()
        except _REFUSALS:
            return False
        finally:
            decoder.clear()
        return all(torch.equal(one, other) for one, other in zip(*read, strict=True))


def _cache_budget(model: PreTrainedModel, token_bytes: int) -> int:
    """Choose how many tokens' keys and values are held: 2 GiB on a CPU, half of a GPU's free memory."""
    import torch

    room = 2**31
    if model.device.type == "cuda":
        room = int(torch.cuda.mem_get_info(model.device)[0]) // 2
    return max(1, room // max(1, token_bytes))
