"""Simple baselines: what length, repetition or chance reach, so that no score gets credit for what they explain.

One rule: a finding that "pick the longest" reaches too says so in its own line.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np
import pyarrow as pa

from seamcurate import words
from seamcurate.study.statistics import Doubles, Interval

DESCRIPTIONS = {
    "length": "picking the longest",
    "repetition": "picking the least repetitive",
    "random": "chance",
    "shuffled": "a shuffled score",
}
_METHODS = {
    "random": "random",
    "length": "length",
    "longest": "length",
    "shortest": "length",
    "repetition": "repetition",
}


class Margin(NamedTuple):
    """What a baseline reaches, and how far the score lies above it."""

    reached: str
    above: Interval


def scores(texts: Sequence[str]) -> dict[str, Doubles]:
    """Score responses by each baseline, high = preferred: words, distinct trigrams / trigrams, and 0 for all.

    Wherever two scores are compared and are equal, they count one half, which is what a coin gets on average.
    """
    column = pa.array(texts, pa.large_string())
    return {
        "length": words.counts(column).astype(np.float64),
        "repetition": words.distinct_trigrams(column),
        "random": np.zeros(len(texts)),
    }


def of_method(method: str) -> str | None:
    """Return which baseline or negative control a method of a results table is; None where it is neither."""
    name = method.lower().removeprefix("augment_")
    return "shuffled" if "shuffled" in name else _METHODS.get(name)


def caveat(margins: Mapping[str, Margin]) -> str:
    """Return what a finding must add: the baselines that the score is not shown to exceed; else nothing."""
    reservations = [
        f"{DESCRIPTIONS.get(name, name)} {_verb(margin.above)} ({margin.reached})"
        for name, margin in margins.items()
        if not margin.above.above_zero
    ]
    return f"; but {', '.join(reservations)}" if reservations else ""


def _verb(above: Interval) -> str:
    if math.isnan(above.low):
        return "is not told apart from it"
    return "does better" if above.below_zero else "does as well"
