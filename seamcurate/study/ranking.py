"""How well numbers rank rows by an outcome: AUC, Spearman and the share that the highest rows hold, each with bootstraps.

One rule: a bootstrap is a matrix of weights, draws × rows, how often each draw has each row. All columns are measured on the
same draws, so that two of them can be compared draw by draw.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Sequence
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from seamcurate.study.statistics import Doubles, Interval, percentiles

_DRAWS = 2000
_BATCH = 2**22
"""Weights that are held in memory at once."""


class Estimate(NamedTuple):
    """A measure with its bootstrap: `draws` are its values on resampled rows, NaN where a draw has none."""

    value: float
    draws: Doubles
    n: int
    """The independent values it rests on."""

    @property
    def interval(self) -> Interval:
        """The estimate with its 95 % percentile interval."""
        return percentiles(self.value, self.draws, self.n)

    def minus(self, other: Estimate) -> Interval:
        """Return the difference of two measures of the same draws, with its interval."""
        return percentiles(self.value - other.value, self.draws - other.draws, min(self.n, other.n))

    def p_value(self, none: float) -> float:
        """Return the two-sided p-value of no effect, by the bootstrap's standard error."""
        from scipy import stats

        error = float(np.nanstd(self.draws, ddof=1))
        return float(2 * stats.norm.sf(abs(self.value - none) / error)) if error > 0 else float("nan")


def estimate(measure: Callable[[Doubles], Doubles], groups: Sequence[Hashable], seed: int = 0) -> Estimate:
    """Measure rows as they are, and on 2,000 bootstrap draws of their groups.

    Args:
        measure: A function from weights, (draws, rows), to values, (draws,).
        groups: What each row belongs to: rows of one group are drawn together.
        seed: Of the draws.
    """
    codes = np.unique([str(group) for group in groups], return_inverse=True)[1]
    size = int(codes.max()) + 1
    random = np.random.default_rng(seed)
    draws = []
    step = max(1, _BATCH // max(1, len(codes)))
    with np.errstate(invalid="ignore", divide="ignore"):
        value = float(measure(np.ones((1, len(codes))))[0])
        for start in range(0, _DRAWS, step):
            counts = random.multinomial(size, np.full(size, 1 / size), min(step, _DRAWS - start))
            draws.append(measure(counts[:, codes].astype(np.float64)))
    return Estimate(value, np.concatenate(draws), size)


def auc(values: Doubles, positive: npt.NDArray[np.bool_]) -> Callable[[Doubles], Doubles]:
    """Return the measure: the probability that a positive row has the higher value than a negative one, ties one half."""
    order, starts, _ = _ties(values)

    def measure(weights: Doubles) -> Doubles:
        sorted_weights = weights[:, order]
        # (draws, different values): the weight of positive and of negative rows of each value.
        of_positive, of_negative = (
            np.add.reduceat(sorted_weights * chosen, starts, axis=1) for chosen in (positive[order], ~positive[order])
        )
        beaten = np.cumsum(of_negative, axis=1) - of_negative / 2
        wins: Doubles = (of_positive * beaten).sum(1) / (of_positive.sum(1) * of_negative.sum(1))
        return wins

    return measure


def spearman(values: Doubles, outcome: Doubles, within: Sequence[str] | None = None) -> Callable[[Doubles], Doubles]:
    """Return the measure: Spearman's rank correlation, ties by their mean rank.

    Args:
        values: (rows,).
        outcome: (rows,).
        within: Each row's source. Ranks are then taken over all rows, less the mean rank of the row's source, so that a
            difference between sources counts as none.
    """
    ranks = _ranks(values), _ranks(outcome)
    sources = None if within is None else np.unique(within, return_inverse=True)[1]

    def measure(weights: Doubles) -> Doubles:
        x, y = (_centred(rank(weights), weights, sources) for rank in ranks)
        covariance, *squares = ((weights * product).sum(1) for product in (x * y, x * x, y * y))
        correlation: Doubles = covariance / np.sqrt(squares[0] * squares[1])
        return correlation

    return measure


def top_share(values: Doubles, amounts: Doubles, rate: float) -> Callable[[Doubles], Doubles]:
    """Return the measure: the share of all amounts, such as errors, that the rows of the highest values hold.

    Args:
        values: (rows,). Ties are broken at random (seeded).
        amounts: (rows,), at least 0.
        rate: The share of rows that is taken.
    """
    most = taken(values, rate)

    def measure(weights: Doubles) -> Doubles:
        held: Doubles = (most(weights) * amounts).sum(1) / (weights * amounts).sum(1)
        return held

    return measure


def kept_mean(values: Doubles, amounts: Doubles, counts: Doubles, rate: float) -> Callable[[Doubles], Doubles]:
    """Return the measure: amounts / counts of the rows that remain without those of the highest values; see `top_share`."""
    most = taken(values, rate)

    def measure(weights: Doubles) -> Doubles:
        kept = weights - most(weights)
        mean: Doubles = (kept * amounts).sum(1) / (kept * counts).sum(1)
        return mean

    return measure


def taken(values: Doubles, rate: float) -> Callable[[Doubles], Doubles]:
    """Return a function from weights to the part of each row's weight that is among the highest `rate`; both (draws, rows)."""
    shuffled = np.random.default_rng(0).permutation(len(values))
    order = shuffled[np.argsort(-values[shuffled], kind="stable")]
    place = np.argsort(order)

    def most(weights: Doubles) -> Doubles:
        sorted_weights = weights[:, order]
        preceding = np.cumsum(sorted_weights, axis=1) - sorted_weights
        room = rate * weights.sum(1, keepdims=True) - preceding
        held: Doubles = np.clip(room, 0, sorted_weights)[:, place]
        return held

    return most


def _ties(values: Doubles) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64], npt.NDArray[np.int64]]:
    """Return the ascending order of rows, where each value starts in it, and each row's value as a number: (rows,)."""
    order = np.argsort(values, kind="stable")
    _, starts, codes = np.unique(values[order], return_index=True, return_inverse=True)
    return order, starts, codes[np.argsort(order)]


def _ranks(values: Doubles) -> Callable[[Doubles], Doubles]:
    """Return a function from weights, (draws, rows), to the rows' mean ranks in each draw, of the same shape."""
    order, starts, codes = _ties(values)

    def ranks(weights: Doubles) -> Doubles:
        by_value = np.add.reduceat(weights[:, order], starts, axis=1)
        of_value: Doubles = np.cumsum(by_value, axis=1) - by_value / 2
        return of_value[:, codes]

    return ranks


def _centred(ranks: Doubles, weights: Doubles, sources: npt.NDArray[np.int64] | None) -> Doubles:
    """Subtract the mean rank, of each source where there are sources."""
    if sources is None:
        centred: Doubles = ranks - ((weights * ranks).sum(1) / weights.sum(1))[:, None]
        return centred
    centred = ranks.copy()
    for source in range(int(sources.max()) + 1):
        inside = sources == source
        total = weights[:, inside].sum(1)
        mean = (weights[:, inside] * ranks[:, inside]).sum(1) / np.where(total > 0, total, 1)
        centred[:, inside] -= mean[:, None]
    return centred
