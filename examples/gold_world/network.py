"""Tier H: one network for all prompts, trained on the kept ones, measured on unseen ones.

The aligned policy is the frozen one reweighted by a small network over its features: an answer's probability is its share of
the samples times exp(f), normalised within the prompt. Expectations over a prompt's samples are exact, so that the only noise
is the prompts' order, which all arms of a repetition share.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from examples.gold_world.frozen import Frozen, Places
from examples.gold_world.prompts import Flags
from examples.gold_world.reward import Doubles, network

if TYPE_CHECKING:
    import torch

STEPS, BATCH, RATE, BETA = 150, 512, 3e-3, 0.05


class Outcome(NamedTuple):
    """What training came to."""

    test: float
    """Mean true quality on unseen prompts, sampled."""
    trained: float
    """The same on all RL prompts, dropped ones too."""
    kl: float
    """Nats from the frozen policy on unseen prompts, a prompt's mean."""


class _Answers:
    """Samples of prompts, equal ones once."""

    def __init__(self, places: Places) -> None:
        import torch

        rows, owners, counts = [], [], []
        for i, row in enumerate(places):
            distinct, times = np.unique(row, return_counts=True)
            rows.append(distinct)
            owners.append(np.full(len(distinct), i))
            counts.append(times)
        self.places = np.concatenate(rows)
        lengths = np.array([len(row) for row in rows])
        self.starts = np.concatenate([[0], np.cumsum(lengths)])
        self.width = int(lengths.max())
        share = np.concatenate(counts) / places.shape[1]
        column = np.concatenate([np.arange(length) for length in lengths])
        # (prompts, most distinct answers): −∞ where a prompt has no further answer.
        self.log_share = torch.full((len(places), self.width), -math.inf)
        self.owner, self.column = torch.from_numpy(np.concatenate(owners)), torch.from_numpy(column)
        self.log_share[self.owner, self.column] = torch.from_numpy(np.log(share)).float()

    def spread(self, values: Doubles) -> torch.Tensor:
        """Put the answers' values where their prompts are: (prompts, most distinct answers), 0 elsewhere."""
        import torch

        table = torch.zeros(self.log_share.shape)
        table[self.owner, self.column] = torch.from_numpy(values[self.places]).float()
        return table


class Shared:
    """The prompts and answers that every training of a world shares.

    Args:
        frozen: Answers with their features.
    """

    def __init__(self, frozen: Frozen) -> None:
        import torch

        self.rl, self.test = _Answers(frozen.samples("rl")), _Answers(frozen.samples("test"))
        quality = frozen.quality
        self.quality = self.rl.spread(quality), self.test.spread(quality)
        seen = np.asarray(frozen.hidden[self.rl.places])
        mean, scale = seen.mean(0), np.maximum(seen.std(0), 1e-6)
        self.features = torch.from_numpy((seen - mean) / scale)
        self.test_features = torch.from_numpy((np.asarray(frozen.hidden[self.test.places]) - mean) / scale)
        self.before = Outcome(
            *(self._mean(q, a.log_share) for q, a in zip(self.quality[::-1], (self.test, self.rl), strict=True)), 0.0
        )

    def train(self, rewards: Doubles, drop: Flags, seed: int) -> Outcome:
        """Train on the prompts that are not dropped; the number of steps and the prompts' order are those of every arm.

        Args:
            rewards: Of all answers of the world, or their true quality.
            drop: Prompts left out: (prompts,).
            seed: Of the weights and the order.
        """
        import torch

        answers = self.rl
        reward = answers.spread(rewards)
        share = answers.log_share.exp()
        # The unit is the spread within prompts: how prompts differ from each other teaches nothing.
        reward = reward - (share * reward).sum(1, keepdim=True)
        reward = reward / (share * reward**2).sum(1).mean().sqrt()
        net = network(self.features.shape[1], seed + 777, zero=True)
        optimizer = torch.optim.Adam(net.parameters(), lr=RATE)
        for batch in self._batches(drop, seed):
            log_share = answers.log_share[batch]
            log_p = (self._scores(net, batch) + log_share).log_softmax(1)
            p = log_p.exp()
            # An answer that a prompt does not have has probability 0; its logarithm is kept out of the sum.
            divergence = (p * torch.where(p > 0, log_p - log_share, 0.0)).sum(1)
            loss = -((p * reward[batch]).sum(1) - BETA * divergence).mean()
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        return self._outcome(net)

    def _batches(self, drop: Flags, seed: int) -> list[torch.Tensor]:
        """Cut one endless shuffle of all prompts into batches, and leave the dropped ones out of each."""
        import torch

        generator = torch.Generator().manual_seed(seed)
        count, size = len(drop), min(BATCH, len(drop))
        epochs = math.ceil(STEPS * size / count)
        order = torch.cat([torch.randperm(count, generator=generator) for _ in range(epochs)])
        keep = torch.from_numpy(~drop)
        batches = [order[step * size : (step + 1) * size] for step in range(STEPS)]
        return [batch[keep[batch]].sort().values for batch in batches]

    def _scores(self, net: torch.nn.Module, batch: torch.Tensor) -> torch.Tensor:
        """Return f of the batch's answers: (prompts, most distinct answers), 0 where there is none."""
        import torch

        starts, ends = (torch.from_numpy(self.rl.starts[i:])[batch] for i in (0, 1))
        lengths = ends - starts
        row = torch.repeat_interleave(torch.arange(len(batch)), lengths)
        column = torch.arange(len(row)) - torch.repeat_interleave(lengths.cumsum(0) - lengths, lengths)
        table = torch.zeros(len(batch), self.rl.width)
        return table.index_put((row, column), net(self.features[starts[row] + column])[:, 0])

    def _outcome(self, net: torch.nn.Module) -> Outcome:
        import torch

        found = []
        with torch.inference_mode():
            for answers, features, quality in (
                (self.test, self.test_features, self.quality[1]),
                (self.rl, self.features, self.quality[0]),
            ):
                table = torch.zeros(answers.log_share.shape)
                table[answers.owner, answers.column] = net(features)[:, 0]
                log_p = (table + answers.log_share).log_softmax(1)
                p = log_p.exp()
                divergence = (p * torch.where(p > 0, log_p - answers.log_share, 0.0)).sum(1)
                found.append((self._mean(quality, log_p), float(divergence.mean())))
        return Outcome(found[0][0], found[1][0], found[0][1])

    @staticmethod
    def _mean(quality: torch.Tensor, log_p: torch.Tensor) -> float:
        return float((log_p.exp() * quality).sum(1).double().mean())
