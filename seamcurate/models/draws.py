"""Draw the next token of an answer from a policy's logits, by random numbers that the draw alone decides.

A token is drawn by the Gumbel-max trick: the index of the largest of logit / temperature + Gumbel noise has the softmax's
distribution (Maddison et al. 2014, A* sampling). It is done in two steps, first among blocks of the vocabulary by their summed
probability and then among the tokens of one block, which needs some 500 random numbers a token in place of a whole vocabulary.

Logits differ by rounding between a batch and a text read alone. A choice is `sure` where no difference of up to a margin, in
any of the logits, gives another token.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, NamedTuple, TypeAlias

import numpy as np
import numpy.typing as npt

from seamcurate.models.protocols import Sampling

if TYPE_CHECKING:
    import torch

BLOCK = 256
"""Tokens of a block; a vocabulary of 65,536 has as many blocks as a block has tokens."""
_ROUNDING = 1e-6
"""By how much the sum of a vocabulary's probabilities may be wrong itself."""


Keys: TypeAlias = Sequence[npt.NDArray[np.uint64]]


class Choice(NamedTuple):
    """The next token of each row."""

    tokens: list[int]
    sure: list[bool]
    """Whether logits that differ by up to the margin give the same token."""
    logprobs: list[float]
    """At the sampling temperature, before `top_p` cuts; 0 at temperature 0, and NaN where the logits are no numbers."""
    logprobs_1: list[float]
    """At temperature 1."""


def key(seed: int, prompt_ids: Sequence[int], draw: int) -> npt.NDArray[np.uint64]:
    """Return what a draw's random numbers come from: two words of 64 bits."""
    text = f"{seed} {draw} {' '.join(map(str, prompt_ids))}"
    return np.frombuffer(hashlib.sha256(text.encode()).digest()[:16], "<u8").astype(np.uint64)


def noise(keys: Keys, positions: Sequence[int], attempt: int, vocabulary: int) -> npt.NDArray[np.float32]:
    """Return Gumbel noise for one token of each row: first for the blocks of its vocabulary, then for the tokens of one.

    Args:
        keys: Of each row's draw.
        positions: Tokens that each row's answer has already.
        attempt: How many tokens were drawn and rejected at this position.
        vocabulary: Tokens to choose from.
    """
    count = math.ceil(vocabulary / BLOCK) + BLOCK
    waits = np.empty((len(keys), count))
    for row, (words, position) in enumerate(zip(keys, positions, strict=True)):
        # The lowest word of the counter is what the generator itself counts.
        generator = np.random.Generator(np.random.Philox(key=words, counter=[0, position, attempt, 0]))
        waits[row] = generator.standard_exponential(count)
    return -np.log(np.maximum(waits, np.finfo(np.float64).tiny)).astype(np.float32)


def choose(
    logits: torch.Tensor, keys: Keys, positions: Sequence[int], sampling: Sampling, margins: torch.Tensor | None
) -> Choice:
    """Draw each row's next token.

    A token outside `top_p` is rejected and drawn anew, which needs no sorting: a token is inside where the tokens that are
    likelier together have a smaller probability than that.

    Args:
        logits: float32, rows × vocabulary.
        keys: What `key` gives, for each row.
        positions: Tokens that each row's answer has already.
        sampling: Says temperature and `top_p`.
        margins: By how much each row's logits may be wrong, rows × 1; None where they are as they have to be.
    """
    import torch

    at_one = logits.logsumexp(-1)
    slack = logits.new_zeros(len(logits), 1) if margins is None else 2 * margins / (sampling.temperature or 1)
    if not sampling.temperature:
        tokens = logits.argmax(-1)
        best = _at(logits, tokens)
        sure = best - logits.scatter(1, tokens[:, None], -math.inf).amax(-1) > slack[:, 0]
        return Choice(tokens.tolist(), sure.tolist(), [0.0] * len(tokens), (best - at_one).tolist())
    scaled = logits / sampling.temperature if sampling.temperature != 1 else logits
    total = scaled.logsumexp(-1) if sampling.temperature != 1 else at_one
    tokens = torch.zeros(len(logits), dtype=torch.long, device=logits.device)
    sure = torch.zeros(len(logits), dtype=torch.bool, device=logits.device)
    pending, attempt = list(range(len(logits))), 0
    while pending:
        gumbels = noise([keys[row] for row in pending], [positions[row] for row in pending], attempt, logits.shape[1])
        part, sums, wrong = scaled, total, slack
        if len(pending) < len(logits):
            part, sums, wrong = scaled[pending], total[pending], slack[pending]
        drawn, is_sure = _drawn(part, torch.from_numpy(gumbels).to(logits.device), wrong)
        rejected = torch.zeros_like(is_sure)
        if sampling.top_p < 1:
            rejected, is_known = _outside(part, sums, drawn, sampling.top_p, wrong)
            is_sure &= is_known
        tokens[pending], sure[pending] = drawn, is_sure
        again = (rejected if margins is None else rejected & is_sure).tolist()
        pending, attempt = [row for row, redraw in zip(pending, again, strict=True) if redraw], attempt + 1
    return Choice(
        tokens.tolist(), sure.tolist(), (_at(scaled, tokens) - total).tolist(), (_at(logits, tokens) - at_one).tolist()
    )


def _at(values: torch.Tensor, tokens: torch.Tensor) -> torch.Tensor:
    return values.gather(1, tokens[:, None])[:, 0]


def _drawn(logits: torch.Tensor, gumbels: torch.Tensor, slack: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Draw a token for each row, and tell whether it is ahead of all others by more than `slack`.

    Args:
        logits: Divided by the temperature, rows × vocabulary.
        gumbels: As `noise` gives them.
        slack: By how much the difference of two logits, or of two blocks' summed ones, may be wrong, rows × 1.
    """
    import torch

    vocabulary = logits.shape[1]
    missing = -vocabulary % BLOCK
    filled = torch.nn.functional.pad(logits, (0, missing), value=-math.inf) if missing else logits
    blocks = filled.reshape(len(filled), -1, BLOCK)
    count = blocks.shape[1]
    block, block_sure = _largest(blocks.logsumexp(-1) + gumbels[:, :count], slack)
    inside = blocks.gather(1, block[:, None, None].expand(-1, 1, BLOCK))[:, 0]
    place, sure = _largest(inside + gumbels[:, count:], slack)
    # Where no logit is a number, a place beyond the vocabulary may be the largest.
    return (block * BLOCK + place).clamp(max=vocabulary - 1), block_sure & sure


def _largest(scores: torch.Tensor, slack: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    largest = scores.argmax(-1, keepdim=True)
    ahead = scores.gather(1, largest) - scores.scatter(1, largest, -math.inf).amax(-1, keepdim=True) > slack
    return largest[:, 0], ahead[:, 0]


def _outside(
    scaled: torch.Tensor, total: torch.Tensor, tokens: torch.Tensor, top_p: float, slack: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """Tell of each token whether `top_p` leaves it out, and whether rounding cannot change that."""
    import torch

    probabilities = (scaled - total[:, None]).exp()
    own = scaled.gather(1, tokens[:, None])
    likelier = (probabilities * (scaled > own + slack)).sum(-1)
    # A logit that is wrong by slack / 2 changes a probability by a factor of up to exp(slack), its own sum included.
    wrong = torch.where(slack > 0, slack.expm1() + _ROUNDING, 0.0)[:, 0]
    others = (probabilities * (scaled > own - slack)).sum(-1) - _at(probabilities, tokens)
    outside = likelier >= top_p + wrong
    return outside, outside | (others < top_p - wrong)
