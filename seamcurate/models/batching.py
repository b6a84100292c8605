"""Sequences in batches that fit: of like lengths, padded on the right, smaller where memory runs out."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, Any, TypeVar

from seamcurate.errors import ModelError
from seamcurate.progress import note

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel

T = TypeVar("T")


class Batches:
    """Batches of at most so many padded tokens.

    Attributes:
        budget: The tokens; halved for good whenever a device's memory runs out.
    """

    def __init__(self, budget: int, device: torch.device) -> None:
        self.budget, self.device = budget, device
        self._fitted = False

    def read(self, lengths: Sequence[int], read: Callable[[list[int]], T]) -> Iterator[tuple[list[int], T]]:
        """Yield each batch of indices, longest sequences first, with what `read` makes of it.

        A sequence that alone does not fit in the device's memory, where others do, is in none; how many is told.

        Raises:
            ModelError: None has fitted yet.
        """
        import torch

        left, unread = sorted(range(len(lengths)), key=lambda i: -lengths[i]), list[int]()
        while left:
            batch = left[: max(1, self.budget // max(1, lengths[left[0]]))]
            try:
                answer = read(batch)
            except torch.OutOfMemoryError as error:
                if len(batch) == 1:
                    unread.append(left.pop(0))
                    if not left and not self._fitted:
                        raise ModelError(
                            f"a text of {lengths[batch[0]]:,} tokens does not fit in the memory of {self.device}; "
                            "free some, or lower the model's max_tokens"
                        ) from error
                size = lengths[batch[0]] * len(batch)
            else:
                self._fitted = True
                yield batch, answer
                left = left[len(batch) :]
                continue
            # Outside the handler: the exception holds on to the tensors that were too much.
            if len(batch) > 1:
                self.budget = min(self.budget, size) // 2
            freed(self.device)
        left_out(len(unread), max((lengths[i] for i in unread), default=0), self.device)


def left_out(count: int, longest: int, device: torch.device) -> None:
    """Tell how many texts a device's memory had no room for, each alone."""
    if count:
        note(
            f"warning: {count:,} texts of up to {longest:,} tokens do not fit in the memory of {device}, each alone: NULL; "
            "to have them, free some and compute the column anew (--replace)"
        )


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


def automatic_budget(model: PreTrainedModel) -> int:
    """Choose how many tokens a forward pass holds: what a cache holds on a CPU, part of what is free on a GPU."""
    import torch

    if model.device.type != "cuda":
        return 2048
    config = model.config.get_text_config()
    width = 12 * int(config.hidden_size) + 4 * int(getattr(config, "intermediate_size", None) or 4 * config.hidden_size)
    free = int(torch.cuda.mem_get_info(model.device)[0])
    return min(max(2 * free // (5 * width * int(model.dtype.itemsize)), 2048), 65_536)


def moved(values: Sequence[Any], device: torch.device) -> torch.Tensor:
    """Make a tensor on a device; for a GPU from pinned memory, without waiting for the copy."""
    import torch

    made = torch.tensor(values)
    return made.pin_memory().to(device, non_blocking=True) if device.type == "cuda" else made.to(device)


def freed(device: torch.device) -> None:
    """Give a GPU's unused memory back, so that smaller tensors find room."""
    import torch

    if device.type == "cuda":
        torch.cuda.empty_cache()
