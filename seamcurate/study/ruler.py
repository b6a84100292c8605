"""Rulers: what length, repetition or chance would have found, so that no score is believed for what they explain.

A finding which "pick the longest" also makes is said to be one, in the finding's own line.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np
import pyarrow as pa

from seamcurate import words
from seamcurate.study.statistics import Doubles, Interval

SAYS = {
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


class Gap(NamedTuple):
    """What a ruler reaches, and how far the score lies above it."""

    reached: str
    above: Interval


def scores(texts: Sequence[str]) -> dict[str, Doubles]:
    """Score responses by each ruler, high = preferred: words, distinct trigrams / trigrams, and all the same.

    Equal scores count one half wherever they are compared, which is what a coin would get on average.
    """
    column = pa.array(texts, pa.large_string())
    return {
        "length": words.counts(column).astype(np.float64),
        "repetition": words.distinct_trigrams(column),
        "random": np.zeros(len(texts)),
    }


def of_method(method: str) -> str | None:
    """Return which ruler, or negative control, a method of a results table is; None for a method in earnest."""
    name = method.lower().removeprefix("augment_")
    return "shuffled" if "shuffled" in name else _METHODS.get(name)


def caveat(gaps: Mapping[str, Gap]) -> str:
    """Return what a finding must add: the rulers that the score is not shown to lie above; else nothing."""
    also = [
        f"{SAYS.get(name, name)} {_does(gap.above)} ({gap.reached})"
        for name, gap in gaps.items()
        if not gap.above.above_zero
    ]
    return f"; but {', '.join(also)}" if also else ""


def _does(above: Interval) -> str:
    if math.isnan(above.low):
        return "is not told apart from it"
    return "does better" if above.below_zero else "does as well"
