"""Log-probabilities of tokens by a head over the whole vocabulary, whose logits are never in memory all at once.

A token's log-probability needs one logit, and the log of the sum of the exponentials of all. On a CPU, logits are computed for a
block of rows and a part of the vocabulary at a time, and summed up while they are in a core's cache.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, TypeGuard

from seamcurate.models.product import is_product, product

if TYPE_CHECKING:
    import torch

_ROWS, _COLUMNS = 384, 1024
"""The size of a block for each thread: 1.5 MiB of logits."""


def logprobs(hidden: torch.Tensor, head: torch.nn.Linear, tokens: torch.Tensor) -> torch.Tensor:
    """Return the log-probability of one token for each row of hidden states, in nats; none is above 0.

    A token that the head has no output for is NaN.

    Args:
        hidden: Hidden states, rows × width, float32.
        head: A layer that `is_blockwise` accepts, width → vocabulary.
        tokens: Ids, one for each row.

    Example:
        >>> import torch
        >>> head = torch.nn.Linear(4, 3, bias=False).requires_grad_(False)
        >>> hidden, tokens = torch.ones(2, 4), torch.tensor([0, 2])
        >>> expected = head(hidden).log_softmax(1)[[0, 1], tokens]
        >>> torch.allclose(logprobs(hidden, head, tokens), expected, atol=1e-6)
        True
    """
    import torch

    count = _ROWS * torch.get_num_threads()
    blocks = [slice(start, start + count) for start in range(0, len(tokens), count)]
    return torch.cat([_logprobs(hidden[block], head, tokens[block]) for block in blocks])


def is_blockwise(head: object) -> TypeGuard[torch.nn.Linear]:
    """Tell whether `logprobs` reads a head: a plain float32 layer on a CPU."""
    import torch

    return is_product(head) and head.weight.device.type == "cpu" and head.weight.dtype == torch.float32


def _logprobs(rows: torch.Tensor, head: torch.nn.Linear, tokens: torch.Tensor) -> torch.Tensor:
    import torch

    # Parts of like sizes: a last one of few columns would be a slow product.
    count = -(-head.out_features // _COLUMNS)
    weights = head.weight.tensor_split(count)
    biases = [None] * count if head.bias is None else head.bias.tensor_split(count)
    chosen = rows.new_full((len(rows), 1), torch.nan)
    column, lowest = tokens[:, None], torch.finfo(rows.dtype).min
    start, largest, sums = 0, [], []
    for weight, bias in zip(weights, biases, strict=True):
        logits = product(rows, weight, bias)
        inside = (column >= start) & (column < start + len(weight))
        chosen = torch.where(inside, logits.gather(1, (column - start).clamp_(0, len(weight) - 1)), chosen)
        # Where all logits of a part are −∞, the difference below would be no number.
        largest.append(logits.amax(1, keepdim=True).clamp_min_(lowest))
        sums.append(logits.sub_(largest[-1]).exp_().sum(1, keepdim=True))
        start += len(weight)
    tops = torch.cat(largest, 1)  # (rows, parts of the vocabulary)
    top = tops.amax(1, keepdim=True)
    total = (torch.cat(sums, 1) * (tops - top).exp_()).sum(1, keepdim=True)
    return (chosen - top - total.log_())[:, 0]
