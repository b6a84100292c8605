"""PPO's arithmetic on one batch of responses: rewards, advantages, losses (Schulman 2017; Ziegler 2019, §2.1).

Tensors are responses × tokens. `mask` is 1 on what the policy wrote, the end of sequence included, and 0 after it; nothing
outside the mask counts anywhere.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Literal, NamedTuple

if TYPE_CHECKING:
    from torch import Tensor

Estimator = Literal["k1", "k3"]


def kl_estimate(logprobs: Tensor, reference: Tensor, mask: Tensor, estimator: Estimator) -> Tensor:
    """Estimate each token's KL to the reference in nats: k1 = log p - log q, k3 = q/p - 1 - log q/p (Schulman 2020)."""
    ratio = (reference - logprobs) * mask
    return -ratio if estimator == "k1" else ratio.exp() - 1 - ratio


def token_rewards(kl: Tensor, scores: Tensor, mask: Tensor, kl_coef: float) -> Tensor:
    """Return -kl_coef · KL per token, and the score on top of the last token that the policy wrote."""
    rewards = -kl_coef * kl
    last_token = mask.long().sum(1, keepdim=True) - 1
    return rewards.scatter_add(1, last_token, scores[:, None].to(rewards.dtype))


def gae(rewards: Tensor, values: Tensor, mask: Tensor, gamma: float, lam: float) -> tuple[Tensor, Tensor]:
    """Return (advantages, returns) by generalised advantage estimation (Schulman 2016, eq. 16).

    δ_t = r_t + γ V_{t+1} - V_t, A_t = δ_t + γ λ A_{t+1}; after the last token V and A are 0. Returns are A + V.
    """
    values = values * mask
    advantages = values.new_zeros(values.shape)
    next_advantage, next_value = values.new_zeros(len(values)), values.new_zeros(len(values))
    for t in range(values.shape[1] - 1, -1, -1):
        next_advantage = (rewards[:, t] + gamma * next_value - values[:, t] + gamma * lam * next_advantage) * mask[:, t]
        advantages[:, t], next_value = next_advantage, values[:, t]
    return advantages, advantages + values


def whiten(
    values: Tensor, mask: Tensor, shift: bool = True, summed: Callable[[Tensor], Tensor] = lambda total: total
) -> Tensor:
    """Scale to unit variance (unbiased), and with `shift` to mean 0; 0 outside the mask.

    Args:
        values: What to scale.
        mask: What counts.
        shift: Whether the mean goes too.
        summed: Adds up a tensor over all processes.
    """
    count = summed(mask.sum())
    mean = summed((values * mask).sum()) / count.clamp(min=1)
    variance = summed(((values - mean) ** 2 * mask).sum()) / (count - 1).clamp(min=1)
    scaled = (values - mean) * (variance + 1e-8).rsqrt()
    return (scaled if shift else scaled + mean) * mask


class Loss(NamedTuple):
    """A loss of each token, 0 outside the mask, and where clipping decided it."""

    loss: Tensor
    clipped: Tensor


def policy_loss(
    logprobs: Tensor, old_logprobs: Tensor, advantages: Tensor, mask: Tensor, cliprange: float
) -> tuple[Loss, Tensor]:
    """Return max(-A ρ, -A clip(ρ, 1 ± cliprange)) per token (Schulman 2017, eq. 7), and log ρ = new - old."""
    log_ratio = (logprobs - old_logprobs) * mask
    ratio = log_ratio.exp()
    unclipped, clipped = -advantages * ratio, -advantages * ratio.clamp(1 - cliprange, 1 + cliprange)
    return Loss(unclipped.maximum(clipped) * mask, (clipped > unclipped) * mask), log_ratio


def value_loss(values: Tensor, old_values: Tensor, returns: Tensor, mask: Tensor, cliprange: float) -> Loss:
    """Return ½ max((V - R)², (clip(V, V_old ± cliprange) - R)²) per token."""
    unclipped = (values - returns) ** 2
    clipped = (old_values + (values - old_values).clamp(-cliprange, cliprange) - returns) ** 2
    return Loss(0.5 * unclipped.maximum(clipped) * mask, (clipped > unclipped) * mask)


class ScoreScale:
    """Scores less their running mean, over their running standard deviation, both over all scores so far."""

    def __init__(self, count: float = 0.0, mean: float = 0.0, squares: float = 0.0) -> None:
        self.count, self.mean, self.squares = count, mean, squares
        """How many scores, their mean, and the sum of their squared distances to it."""

    def update(self, count: float, mean: float, squares: float) -> None:
        """Take in a batch's moments (Chan 1979)."""
        if not count:
            return
        total = self.count + count
        distance = mean - self.mean
        self.squares += squares + distance**2 * self.count * count / total
        self.mean += distance * count / total
        self.count = total

    def scale(self, scores: Tensor) -> Tensor:
        """Return the scores scaled; with a deviation of 0, or a single score so far, only less the mean."""
        deviation = (self.squares / (self.count - 1)) ** 0.5 if self.count > 1 else 0.0
        return (scores - self.mean) / (deviation or 1.0)
