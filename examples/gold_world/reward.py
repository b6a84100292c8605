"""The gold world's reward models: a small head on the frozen policy's features, learned from pairs that a judge ordered.

One rule: a reward model follows from its dials and its seed. It is right where the policy is, as far as its pairs go: nine of
ten are two of the policy's own answers to one prompt.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import numpy.typing as npt

from examples.gold_world import world
from examples.gold_world.policy import Floats, Reader

if TYPE_CHECKING:
    import torch

Doubles = npt.NDArray[np.float64]
PASSES, BATCH, RATE, DECAY, WIDTH = 4, 128, 3e-3, 0.05, 64
SPOILED = 0.1
"""The share of pairs that are two spoiled golden responses."""
_CHUNK = 65_536


class Dials(NamedTuple):
    """What a reward model is made from."""

    pairs: int
    """How many judged pairs it knows."""
    blind: int
    """In how many of the ten families the judge knows nothing but length."""


class Judged(NamedTuple):
    """Answers to one prompt that pairs may be drawn from."""

    family: str
    sampled: Sequence[int]
    """Places of the policy's own answers among all features."""
    spoiled: Sequence[int]
    """Places of spoiled golden responses."""


class Pairs(NamedTuple):
    """Judged pairs, as places among all features: (pairs,) each."""

    chosen: npt.NDArray[np.int64]
    rejected: npt.NDArray[np.int64]


def judged_pairs(prompts: Sequence[Judged], quality: Doubles, words: Doubles, dials: Dials, seed: int) -> Pairs:
    """Draw pairs of different answers to one prompt, each family as often, and order them as the judge does.

    Args:
        prompts: The preference part.
        quality: The true quality of every answer, by place.
        words: Its length.
        dials: How many pairs, and where the judge is blind.
        seed: Of the draws, and of the blind families.
    """
    draw = random.Random(f"pairs {seed}")
    blind = set(world.blind_families(dials.blind, seed))
    by_family: dict[str, list[Judged]] = {}
    for prompt in prompts:
        by_family.setdefault(prompt.family, []).append(prompt)
    families = sorted(by_family)
    chosen, rejected = [], []
    while len(chosen) < dials.pairs:
        prompt = draw.choice(by_family[draw.choice(families)])
        a, b = draw.sample(prompt.spoiled if draw.random() < SPOILED else prompt.sampled, 2)
        if a == b:
            continue
        odds = world.preference_odds(float(quality[a] - quality[b]), int(words[a] - words[b]), prompt.family in blind)
        if draw.random() > odds:
            a, b = b, a
        chosen.append(a)
        rejected.append(b)
    return Pairs(np.array(chosen), np.array(rejected))


class Head:
    """A reward model: two layers over standardised features.

    Args:
        hidden: Features that the scale is taken from, and the pairs' places are in: (answers, features).
        pairs: What is learned.
        seed: Of the weights and of the order.
    """

    def __init__(self, hidden: Floats, pairs: Pairs, seed: int) -> None:
        import torch

        seen = hidden[np.unique(np.concatenate(pairs))]
        self.mean, self.scale = seen.mean(0), np.maximum(seen.std(0), 1e-6)
        self.net = network(hidden.shape[1], seed)
        first, second = (self._scaled(hidden[places]) for places in pairs)
        optimizer = torch.optim.AdamW(self.net.parameters(), lr=RATE, weight_decay=DECAY)
        order = torch.Generator().manual_seed(seed)
        for _ in range(PASSES):
            for batch in torch.randperm(len(first), generator=order).split(BATCH):
                margin = self.net(first[batch]) - self.net(second[batch])
                loss = -torch.nn.functional.logsigmoid(margin).mean()
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()

    def _scaled(self, hidden: Floats) -> torch.Tensor:
        import torch

        return torch.from_numpy((hidden - self.mean) / self.scale)

    def rewards(self, hidden: Floats) -> Doubles:
        """Return the rewards of answers by their features: (answers,)."""
        import torch

        with torch.inference_mode():
            found = [
                self.net(self._scaled(hidden[start : start + _CHUNK]))[:, 0].numpy()
                for start in range(0, len(hidden), _CHUNK)
            ]
        return np.concatenate(found).astype(np.float64) if found else np.zeros(0)


class TextReward:
    """A head over a frozen policy as a reward of texts, as the trainers call one: `reward(prompts, completions)`."""

    def __init__(self, policy: Path, head: Head) -> None:
        self.reader, self.head = Reader(policy), head

    def __call__(self, prompts: Sequence[str], completions: Sequence[str], **columns: object) -> list[float]:
        """Return the reward of each completion."""
        features = self.reader.read(list(zip(prompts, completions, strict=True)))
        return self.head.rewards(features.hidden).tolist()


def network(features: int, seed: int, zero: bool = False) -> torch.nn.Sequential:
    """Return a network of one hidden layer with random weights; with `zero` it gives 0 for everything at first."""
    import torch

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        net = torch.nn.Sequential(torch.nn.Linear(features, WIDTH), torch.nn.GELU(), torch.nn.Linear(WIDTH, 1))
        if zero:
            torch.nn.init.zeros_(net[2].weight)
            torch.nn.init.zeros_(net[2].bias)
    return net
