"""Batches of sequences that fit in memory: of similar lengths, padded on the right, smaller where memory runs out."""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, Any, TypeVar

from seamcurate.errors import ModelError
from seamcurate.progress import note

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel

T = TypeVar("T")


class Batches:
    """Read sequences in batches of at most `budget` padded tokens.

    Attributes:
        budget: Tokens of a batch, padding included; halved for good whenever a device's memory runs out.
        longest_batched: Sequences of up to so many tokens share batches; longer ones are read alone.
    """

    def __init__(self, budget: int, device: torch.device, longest_batched: float = math.inf) -> None:
        self.budget, self.device, self.longest_batched = budget, device, longest_batched
        self._fitted = False

    def read(self, lengths: Sequence[int], read: Callable[[list[int]], T]) -> Iterator[tuple[list[int], T]]:
        """Yield each batch of indices, longest sequences first, with the result of `read` for it.

        A sequence that exceeds the device's memory by itself is in no batch; a warning says how many there are.

        Raises:
            ModelError: No sequence has fitted yet.
        """
        import torch

        remaining, oversized = sorted(range(len(lengths)), key=lambda i: -lengths[i]), list[int]()
        while remaining:
            longest = lengths[remaining[0]]
            batch = remaining[: max(1, self.budget // max(1, longest)) if longest <= self.longest_batched else 1]
            try:
                answer = read(batch)
            except torch.OutOfMemoryError as error:
                if len(batch) == 1:
                    oversized.append(remaining.pop(0))
                    if not remaining and not self._fitted:
                        raise ModelError(
                            f"a text of {lengths[batch[0]]:,} tokens does not fit in the memory of {self.device}; "
                            "free some, or lower the model's max_tokens"
                        ) from error
                size = lengths[batch[0]] * len(batch)
            else:
                self._fitted = True
                yield batch, answer
                remaining = remaining[len(batch) :]
                continue
            # Outside the handler: the exception keeps the tensors alive that were too much.
            if len(batch) > 1:
                self.budget = min(self.budget, size) // 2
            freed(self.device)
        left_out(len(oversized), max((lengths[i] for i in oversized), default=0), self.device)


def left_out(count: int, longest: int, device: torch.device) -> None:
    """Warn of the number of texts that exceed a device's memory, each by itself."""
    if count:
        note(
            f"warning: {count:,} texts of up to {longest:,} tokens do not fit in the memory of {device}, each alone: NULL; "
            "to have them, free some and compute the column anew (--replace)"
        )


def batches(lengths: Sequence[int], budget: int, longest_batched: float = math.inf) -> Iterator[list[int]]:
    """Yield batches of indices, of similar lengths, longest first, each of at most `budget` padded tokens or one row.

    Rows of more than `longest_batched` tokens are each a batch.
    """
    batch: list[int] = []
    for i in sorted(range(len(lengths)), key=lambda i: -lengths[i]):
        if batch and (lengths[batch[0]] * (len(batch) + 1) > budget or lengths[batch[0]] > longest_batched):
            yield batch
            batch = []
        batch.append(i)
    if batch:
        yield batch


def padded(sequences: list[list[int]], pad: int, device: torch.device) -> dict[str, torch.Tensor]:
    """Pad on the right; return `input_ids` and `attention_mask`, batch × longest."""
    import torch

    longest = max(len(s) for s in sequences)
    ids = torch.tensor([s + [pad] * (longest - len(s)) for s in sequences], device=device)
    mask = torch.tensor([[1] * len(s) + [0] * (longest - len(s)) for s in sequences], device=device)
    return {"input_ids": ids, "attention_mask": mask}


def accepted(module: torch.nn.Module, **inputs: Any) -> dict[str, Any]:
    """Return those inputs that a module's forward pass takes: some models have no mask, or no cache to switch off."""
    taken = inspect.signature(module.forward).parameters
    if any(parameter.kind is parameter.VAR_KEYWORD for parameter in taken.values()):
        return inputs
    return {name: value for name, value in inputs.items() if name in taken}


def automatic_budget(model: PreTrainedModel) -> int:
    """Choose how many tokens a forward pass holds: what fits a CPU's cache, or a part of a GPU's free memory."""
    import torch

    if model.device.type != "cuda":
        return 2048
    config = model.config.get_text_config()
    hidden = int(getattr(config, "hidden_size", None) or model.get_input_embeddings().weight.shape[1])
    inner = getattr(config, "intermediate_size", None)
    # Some configurations have a size for each layer.
    inner = max(inner, default=0) if isinstance(inner, list | tuple) else inner
    # Numbers held for each token: about twelve hidden states and four inner ones. Two fifths of the free memory are used.
    width = 12 * hidden + 4 * int(inner or 4 * hidden)
    free = int(torch.cuda.mem_get_info(model.device)[0])
    return min(max(2 * free // (5 * width * int(model.dtype.itemsize)), 2048), 65_536)


def moved(values: Sequence[Any], device: torch.device) -> torch.Tensor:
    """Return values as a tensor on a device; to a GPU they go from pinned memory, without waiting for the copy."""
    import torch

    tensor = torch.tensor(values)
    return tensor.pin_memory().to(device, non_blocking=True) if device.type == "cuda" else tensor.to(device)


def freed(device: torch.device) -> None:
    """Return a GPU's cached memory, so that smaller tensors find room."""
    import torch

    if device.type == "cuda":
        torch.cuda.empty_cache()
