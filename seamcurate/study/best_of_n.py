"""What leaving out rows does where every kept prompt is optimised exactly: best of n by the reward, before any training.

best-of-n    a store, and prompt, response, score
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import pyarrow as pa

from seamcurate.errors import StudyError
from seamcurate.models import RewardModel
from seamcurate.study import figure, judged_rows, ranking
from seamcurate.study.judged_rows import SIMPLE, Judged, JudgedRows
from seamcurate.study.ranking import Estimate
from seamcurate.study.results import Study, StudyResult, result, tabulate
from seamcurate.study.sources import StudySource
from seamcurate.study.statistics import NOTHING, Doubles, Interval, shown

if TYPE_CHECKING:
    from matplotlib.figure import Figure

FULL, RANDOM = "all rows", "rows at random"
_SIZES = (1, 2, 4, 8, 16, 32)
"""Answers of which the best is taken."""
_FEWEST = 20
"""Rows with rated answers that a column needs."""
_SHOWN = 6
"""Columns in the figure."""
_COLUMNS = {
    "column": "the column whose most suspected rows are left out, or all rows, or rows at random",
    "n": "answers of which the reward's best is taken on kept rows; 1 is the policy as it is",
    "rows": "rows with rated answers and a value",
    "kl": "nats that best of n lies from the policy on a kept row: log n − (n − 1)/n",
    "quality": "mean score over all rows: best of n on kept rows, a mean answer on those left out",
    "above_full": "quality above that of best of n on all rows",
    "above_random": "quality above that of as many rows left out at random, whose KL is the same",
}


class Arm(NamedTuple):
    """What leaving out the most suspected rows of one column gives, by n."""

    name: str
    rows: int
    quality: Mapping[int, Estimate]
    above_full: Mapping[int, Interval]
    above_random: Mapping[int, Interval]


@dataclass(frozen=True)
class BestOfN:
    """Quality by n for all rows, rows at random, and each column."""

    full: Arm
    random: Arm
    columns: Sequence[Arm]
    """The most above random first, at `best`."""
    best: int
    """The n above 1 at which all rows reach the highest quality."""
    rate: float
    left_out: Sequence[str]


def best_of_n(
    *tables: StudySource,
    rewards: Mapping[str, RewardModel] | None = None,
    columns: Sequence[str] = (),
    rate: float = 0.2,
) -> StudyResult:
    """Predict what leaving out a store's most suspected rows gains, from rated answers alone.

    Reads a scored store, and rated answers of the policy (`prompt`, `response`, `score`; optionally `reward`), four or more a
    prompt. On kept rows the policy becomes the best of n of its answers by the reward, whose expected score is exact; on rows
    left out it stays as it is. Best of n lies log n − (n − 1)/n nats from the policy. Compare with rows left out at random: that
    has the same KL, while all rows have more. No interference between prompts is assumed, so that a gain here is the most that
    selection can give, not what training will.

    Answers that are the row's golden response or one of its candidates are left out, as its columns know them. Intervals are
    bootstraps over prompts, on the same draws for all columns.

    Args:
        tables: The store, then tables of rated answers.
        rewards: The store's reward model, where the tables have no rewards.
        columns: The store's columns to leave rows out by; all numeric ones where none is named.
        rate: The share of rows that is left out.

    Raises:
        StudyError: The sources cannot be read or share no prompt, the reward model is not the store's, or too few rows have
            answers.
    """
    if not 0 < rate < 1:
        raise StudyError(f"best-of-n: rate is {rate:g}; it is a share of rows between 0 and 1")
    found = measure(judged_rows.read("best-of-n", tables, rewards or {}, columns, None, rated=True), rate)
    return result("best-of-n", _table(found), _figure(found), _finding(found))


def expected_best(scores: Doubles, rewards: Doubles, n: int) -> float:
    """Return the expected score of the best by reward of `n` answers drawn with replacement; equal rewards share a place.

    Args:
        scores: People's scores, (answers,).
        rewards: The reward model's, (answers,).
        n: How many are drawn.

    Example:
        >>> import numpy as np
        >>> expected_best(np.array([0.0, 1.0]), np.array([0.2, 0.9]), 2)
        0.75
    """
    order = np.argsort(rewards, kind="stable")
    _, starts, counts = np.unique(rewards[order], return_index=True, return_counts=True)
    # The best of n is at most the i-th smallest with probability (i / m)ⁿ.
    until = ((starts + counts) / len(rewards)) ** n
    probability = np.diff(np.concatenate([[0.0], until]))
    return float((probability * np.add.reduceat(scores[order], starts) / counts).sum())


def measure(judged: JudgedRows, rate: float) -> BestOfN:
    """Predict the quality of each column's rows left out, by n.

    Raises:
        StudyError: Too few rows have two rated answers, or no column has enough values.
    """
    rows = [i for i, row in enumerate(judged.rows) if len(row.answers) > 1]
    if len(rows) < _FEWEST:
        raise StudyError(
            f"best-of-n: {len(rows)} rows have two rated answers or more, fewer than {_FEWEST}; rate more answers"
        )
    answers = [judged.rows[i].answers for i in rows]
    prompts = [judged.rows[i].prompt for i in rows]
    # Of m answers the best of more than m is nearly always the same one.
    sizes = [n for n in _SIZES if n <= max(2, int(np.median([len(own) for own in answers])))]
    start = np.array([np.mean([answer.score for answer in own]) for own in answers])
    gains = {n: np.array([_expected(own, n) for own in answers]) - start for n in sizes}
    every = np.ones(len(rows), bool)
    full = _arm(FULL, None, every, start, gains, 0.0, prompts)
    best = max(sizes[1:], key=lambda n: full.quality[n].value)
    arms = []
    for name, values in judged.columns.items():
        has_value = np.isfinite(values[rows])
        if name != "random" and has_value.sum() >= _FEWEST and np.ptp(values[rows][has_value]) > 0:
            arms.append(_arm(name, values[rows], has_value, start, gains, rate, prompts))
    if not arms:
        raise StudyError(
            f"best-of-n: no numeric column has {_FEWEST} values on rows with rated answers; score the store first"
        )
    return BestOfN(
        full,
        _arm(RANDOM, None, every, start, gains, rate, prompts),
        sorted(arms, key=lambda arm: -arm.above_random[best].estimate),
        best,
        rate,
        judged.left_out_lines,
    )


def _expected(answers: Sequence[Judged], n: int) -> float:
    return expected_best(np.array([a.score for a in answers]), np.array([a.reward for a in answers]), n)


def _arm(
    name: str,
    values: Doubles | None,
    chosen: Doubles,
    start: Doubles,
    gains: Mapping[int, Doubles],
    rate: float,
    prompts: Sequence[str],
) -> Arm:
    """Measure the quality where the highest `values` are left out; without values, where rows are left out at random."""
    places = np.flatnonzero(chosen)
    groups = [prompts[i] for i in places.tolist()]
    quality, above_full, above_random = {}, {}, {}
    for n, all_gains in gains.items():
        own_start, own_gains = start[places], all_gains[places]
        full = ranking.estimate(_mean(own_start + own_gains), groups)
        # Rows left out at random lose the same share of the gain, on average over draws.
        at_random = ranking.estimate(_mean(own_start + (1 - rate) * own_gains), groups)
        quality[n] = at_random
        if values is not None:
            quality[n] = ranking.estimate(_left_out(values[places], own_start, own_gains, rate), groups)
        above_full[n], above_random[n] = quality[n].minus(full), quality[n].minus(at_random)
    return Arm(name, len(places), quality, above_full, above_random)


def _mean(values: Doubles) -> Callable[[Doubles], Doubles]:
    def measure_mean(weights: Doubles) -> Doubles:
        mean: Doubles = (weights * values).sum(1) / weights.sum(1)
        return mean

    return measure_mean


def _left_out(values: Doubles, start: Doubles, gains: Doubles, rate: float) -> Callable[[Doubles], Doubles]:
    """Return the measure: the mean quality where the highest `rate` of rows keep their start and others gain."""
    taken = ranking.taken(values, rate)

    def measure_quality(weights: Doubles) -> Doubles:
        quality: Doubles = (weights * start + (weights - taken(weights)) * gains).sum(1) / weights.sum(1)
        return quality

    return measure_quality


# ── what is told ────────────────────────────────────────────────────────────────────────────────────────


def _table(found: BestOfN) -> pa.Table:
    entries = [(arm, n) for arm in (found.full, found.random, *found.columns) for n in arm.quality]
    plain: dict[str, Sequence[object]] = {
        "column": [arm.name for arm, _ in entries],
        "n": [n for _, n in entries],
        "rows": [arm.rows for arm, _ in entries],
        "kl": [math.log(n) - (n - 1) / n for _, n in entries],
    }
    intervals = {
        "quality": [arm.quality[n].interval for arm, n in entries],
        "above_full": [NOTHING if arm is found.full else arm.above_full[n] for arm, n in entries],
        "above_random": [NOTHING if arm in (found.full, found.random) else arm.above_random[n] for arm, n in entries],
    }
    return tabulate(_COLUMNS, plain, intervals)


def _figure(found: BestOfN) -> Figure:
    chosen = [found.full, found.random, *[arm for arm in found.columns if arm.name not in SIMPLE][:_SHOWN]]
    sizes = list(found.full.quality)
    quality = [
        figure.Curve(arm.name, sizes, [arm.quality[n].interval for n in sizes], arm in (found.full, found.random))
        for arm in chosen
    ]
    return figure.curves(
        {f"Quality where {found.rate:.0%} of rows are left out": quality},
        "n: answers of which the reward's best is taken",
        "mean score",
        f"n = {found.full.rows:,} rows. Bands: 95 % bootstrap intervals over prompts. Dashed grey: all rows, and rows left out at "
        "random.",
        marks=sizes,
    )


def _finding(found: BestOfN) -> str:
    n = found.best
    measured = [arm for arm in found.columns if arm.name not in SIMPLE]
    start = found.full.quality[1].value
    gain = found.full.quality[n].minus(found.full.quality[1])
    verb = "helps" if gain.above_zero else "harms" if gain.below_zero else "does not demonstrably help"
    line = (
        f"best of n by this reward {verb}: {shown(gain, '+.3f')} at n = {n}, the best of {', '.join(map(str, found.full.quality))}, "
        f"from {start:.3f}"
    )
    seams = [arm for arm in measured if arm.name.startswith("seam_")]
    for arm in (seams or measured)[:1]:
        gap = arm.above_random[n]
        verb = "gains" if gap.above_zero else "loses" if gap.below_zero else "does not demonstrably gain"
        line += (
            f"; leaving out {found.rate:.0%} by {arm.name} {verb} {shown(gap, '+.3f')} over as many rows at random, and "
            f"{shown(arm.above_full[n], '+.3f')} over all rows ({len(measured)} columns, not adjusted)"
        )
    if found.left_out:
        line += "; left out: " + ", ".join(found.left_out)
    return line


BEST_OF_N = Study(
    "best-of-n",
    "what leaving out a store's most suspected rows would gain, from rated answers, before any training",
    "a store, and prompt, response, score",
    _COLUMNS,
    best_of_n,
)
