"""The arms: which prompts each leaves out, 20 % of them, in one repetition."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from examples.gold_world import columns, prompts
from examples.gold_world.frozen import Frozen
from examples.gold_world.prompts import Flags, Repetition
from examples.gold_world.reward import Dials, Doubles

RATE = 0.2
ARMS = {
    "random": "random",
    "random2": "random2",
    "seam_contrast": "seam_contrast_geometric",
    "seam_gpt": "seam_gpt_geometric",
    "seam_policy": "seam_policy",
    "misjudged_contrast": "misjudged_contrast",
    "rip": "rip_reward_contrast",
    "spread": "spread_contrast",
    "perplexity": "perplexity",
    "seam_shuffled": "seam_shuffled",
    "oracle": "oracle",
    "anti": "anti",
}
"""The column that each arm drops by; `seam_adv` has cells of its own, as its answers are made anew for each reward model."""


class Prepared(NamedTuple):
    """One repetition: a reward model on all answers, what columns say, what the truth says."""

    rewards: Doubles
    found: Repetition
    columns: dict[str, Doubles]
    """High is dropped; the controls too."""


def prepare(frozen: Frozen, dials: Dials, seed: int) -> Prepared:
    """Train the reward model of a repetition and compute every column."""
    rewards = frozen.head(dials, seed).rewards(frozen.hidden)
    found = prompts.repetition(frozen, rewards)
    said = columns.suspicion(frozen, rewards, seed)
    return Prepared(rewards, found, said | prompts.controls(found))


def drop(prepared: Prepared, column: str, seed: int, rate: float = RATE) -> Flags:
    """Return the prompts that one column leaves out: (prompts,)."""
    seam = column.startswith("seam_")
    return prompts.dropped(prepared.columns[column], rate, np.random.default_rng([seed, 11]), seam)


def drops(prepared: Prepared, seed: int) -> dict[str, Flags]:
    """Return the prompts that each arm leaves out; `full` leaves out none."""
    none = np.zeros(len(prepared.found.start), bool)
    return {"full": none} | {name: drop(prepared, column, seed) for name, column in ARMS.items()}


def random_drops(prepared: Prepared, seed: int, count: int) -> list[Flags]:
    """Draw further random drops, for a permutation test within a repetition."""
    draw = np.random.default_rng([seed, 13])
    size = len(prepared.found.start)
    return [prompts.dropped(draw.random(size), RATE, draw, False) for _ in range(count)]
