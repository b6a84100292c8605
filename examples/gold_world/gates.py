"""Gates: whether a setting of the world can say anything at all, looked at before any arm is.

G1, the truth as reward raises trained prompts, is a test of the trainers. G2 to G6 are below.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from examples.gold_world.prompts import Repetition
from examples.gold_world.reward import Dials
from seamcurate.study import statistics
from seamcurate.study.statistics import Interval

N = 4
"""Answers of which tier B takes the best, in the primary comparison."""
LIFT, RIGHT, NOISE = 0.03, (0.58, 0.80), 0.5
Gate = dict[str, Any]


class Look(NamedTuple):
    """What a repetition of the gates shows."""

    accuracy: float
    """The share of pairs of held samples of unlike quality that the reward orders rightly."""
    gain: float
    """Of the best of 4 over a mean answer."""
    base: float
    """Quality before."""
    full: float
    """Quality with all prompts."""
    quality: Mapping[str, float]
    """With arms `random`, `random2`, `oracle` and `anti`."""

    @classmethod
    def of(cls, found: Repetition) -> Look:
        """Read accuracy and gain off a repetition."""
        return cls(float(1 - np.nanmean(found.held.error)), float(found.gains[N].mean()), 0.0, 0.0, {})


def name(tier: str, dials: Dials) -> str:
    """Name a setting's gates."""
    return f"gates-{tier}-{dials.pairs}-{dials.blind}"


def truth_lifts(gains: Sequence[float]) -> Gate:
    """Return G2: the truth as reward raises unseen quality by .03 in every repetition."""
    return {
        "says": "truth as reward raises unseen quality by at least .03",
        "values": [round(gain, 5) for gain in gains],
        "passed": min(gains) >= LIFT,
    }


def of_setting(tier: str, looks: Sequence[Look]) -> dict[str, Gate]:
    """Return G3 to G6 of a setting; percentages are of `full`'s mean quality, intervals Student's over repetitions.

    Args:
        tier: `B` or `H`.
        looks: One a repetition.
    """
    full = float(np.mean([look.full for look in looks]))

    def above(a: str, b: str) -> Interval:
        return statistics.mean([100 * (look.quality[a] - look.quality[b]) / full for look in looks])

    accuracy = statistics.mean([look.accuracy for look in looks])
    gain = statistics.mean([look.gain for look in looks])
    gained = statistics.mean([100 * (look.full - look.base) / full for look in looks])
    oracle, anti, null = above("oracle", "random"), above("anti", "random"), above("random2", "random")
    where = "best of 4" if tier == "B" else "unseen prompts"
    return {
        "G3": {
            "says": "right on 58 to 80 % of the policy's pairs, and the best of 4 gains",
            "accuracy": _told(accuracy),
            "gain": _told(gain),
            "passed": RIGHT[0] <= accuracy.estimate <= RIGHT[1] and gain.estimate > 0,
        },
        "G4": {"says": f"full above SFT, {where}, %", "full": _told(gained), "passed": gained.above_zero},
        "G5": {
            "says": f"oracle above random, anti below, {where}, %",
            "oracle": _told(oracle),
            "anti": _told(anti),
            "passed": oracle.above_zero and anti.below_zero,
        },
        "G6": {
            "says": f"a second random drop within .5 % of the first, {where}, %",
            "null": _told(null),
            "passed": max(abs(null.low), abs(null.high)) <= NOISE,
        },
    }


def _told(interval: Interval) -> list[float]:
    """Return estimate, low and high."""
    return [round(value, 4) for value in interval[:3]]
