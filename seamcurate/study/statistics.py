"""Intervals and tests: what a study may say of a number, and how sure it is. All intervals are of 95 %.

Its one rule: what was drawn together is resampled together (pairs of one prompt, runs of one seed).
"""

from __future__ import annotations

import math
from collections.abc import Hashable, Mapping, Sequence
from typing import NamedTuple, TypeAlias

import numpy as np
import numpy.typing as npt

Doubles: TypeAlias = npt.NDArray[np.float64]
BySeed: TypeAlias = Mapping[float, float]
"""One value a seed."""

LEVEL = 0.95
_DRAWS = 2000
_FEWEST = 6
"""Values a resampling needs: five all lie on one side of no effect by chance alone with probability 2 · ½⁵ = .06."""
_ROUNDING = 1e-12
_SLICE = 2**22


class Interval(NamedTuple):
    """An estimate, where the truth lies with 95 % confidence, and how many independent values it rests on."""

    estimate: float
    low: float
    high: float
    n: int

    @property
    def above_zero(self) -> bool:
        """Whether the whole interval is; a single value, which has none, shows nothing."""
        return self.low > 0

    @property
    def below_zero(self) -> bool:
        """Whether the whole interval is; a single value, which has none, shows nothing."""
        return self.high < 0


NOTHING = Interval(math.nan, math.nan, math.nan, 0)
"""What stands where there is nothing to estimate."""


class Difference(NamedTuple):
    """How far one method lies above another over seeds."""

    interval: Interval
    p: float
    """Two-sided; NaN where there are too few seeds to test."""
    test: str
    """`paired t` over the seeds both have, `sign test` where their gaps are all the same, `Welch t` where they share fewer
    than two seeds, `none` with a single run."""


def wilson(share: float, n: int) -> Interval:
    """Return Wilson's score interval of a share of `n` independent trials (Wilson 1927); `share` may count halves."""
    z2 = _normal_quantile() ** 2
    centre = (share + z2 / (2 * n)) / (1 + z2 / n)
    half = math.sqrt(z2 * (share * (1 - share) / n + z2 / (4 * n * n))) / (1 + z2 / n)
    return Interval(share, max(centre - half, 0.0), min(centre + half, 1.0), n)


def mean(values: Sequence[float] | Doubles) -> Interval:
    """Return the mean with Student's interval; a single value has none (NaN)."""
    from scipy import stats

    known = np.asarray(values, np.float64)
    n = len(known)
    if n < 2:
        return Interval(float(known.mean()), math.nan, math.nan, n)
    half = float(stats.t.ppf((1 + LEVEL) / 2, n - 1) * known.std(ddof=1) / math.sqrt(n))
    centre = float(known.mean())
    return Interval(centre, centre - half, centre + half, n)


def resampled(values: Doubles, groups: Sequence[Hashable] | None = None, seed: int = 0) -> Doubles:
    """Return 2,000 bootstrap means, draws × columns, of `values`, rows × columns (Efron 1979).

    Rows of one group are drawn together; without groups each row stands alone.
    """
    random = np.random.default_rng(seed)
    if groups is None:
        kinds, counts = np.unique(values, axis=0, return_counts=True)
        if 4 * len(kinds) < len(values):
            # Rows that are alike need not be told apart: how often each kind is drawn is all there is.
            by_kind: Doubles = random.multinomial(len(values), counts / len(values), _DRAWS) @ kinds / len(values)
            return by_kind
    codes = np.arange(len(values)) if groups is None else _codes(groups)
    size = int(codes.max()) + 1
    sums = np.zeros((size, values.shape[1]))
    np.add.at(sums, codes, values)
    counts = np.bincount(codes, minlength=size)
    found = []
    step = max(1, _SLICE // size)
    for start in range(0, _DRAWS, step):
        drawn = random.integers(0, size, (min(step, _DRAWS - start), size))
        times = np.stack([np.bincount(row, minlength=size) for row in drawn]).astype(np.float64)
        found.append((times @ sums) / (times @ counts)[:, None])
    return np.concatenate(found)


def percentiles(estimate: float, draws: Doubles, n: int) -> Interval:
    """Return the bootstrap's percentile interval around an estimate, none below six values; NaN draws do not count."""
    known = draws[np.isfinite(draws)]
    if not len(known) or n < _FEWEST:
        return Interval(estimate, math.nan, math.nan, n)
    low, high = np.quantile(known, [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    return Interval(estimate, float(low), float(high), n)


def bootstrap_mean(values: Doubles, groups: Sequence[Hashable] | None = None) -> Interval:
    """Return the mean of values with its bootstrap interval; `n` counts the groups."""
    n = len(values) if groups is None else len(set(groups))
    return percentiles(float(values.mean()), resampled(values[:, None], groups)[:, 0], n)


def bootstrap_share(values: Doubles, groups: Sequence[Hashable] | None = None) -> Interval:
    """Return the mean of values in [0, 1] with its bootstrap interval over groups; `n` counts the groups.

    Where all are 0 or all are 1 a resampling would be sure of it: there it is the exact interval (Clopper and Pearson 1934).
    """
    n = len(values) if groups is None else len(set(groups))
    bound: float = ((1 - LEVEL) / 2) ** (1 / n)
    if (values == 1).all():
        return Interval(1.0, bound, 1.0, n)
    if (values == 0).all():
        return Interval(0.0, 0.0, 1 - bound, n)
    return bootstrap_mean(values, groups)


def share(right: Doubles, groups: Sequence[Hashable]) -> Interval:
    """Return the mean of shares in [0, 1]: by Wilson where each group has one row, else by a bootstrap over groups.

    What is undecided everywhere is one half whatever rows there are, and has no interval.
    """
    if (right == 0.5).all():
        return Interval(0.5, math.nan, math.nan, len(set(groups)))
    if len(set(groups)) == len(groups):
        return wilson(float(right.mean()), len(right))
    return bootstrap_share(right, groups)


def difference(of: BySeed, to: BySeed) -> Difference:
    """Return `of` minus `to` with its interval and test: paired by seed where two or more seeds match.

    Gaps that are all the same have no spread for a t test: they are as probable as all their signs are by chance, 2 · ½ⁿ,
    and have no interval where that is above .05. What is left of a subtraction by rounding is nothing.
    """
    from scipy import stats

    shared = sorted(set(of) & set(to))
    if len(shared) >= 2:
        gaps = np.array([of[seed] - to[seed] for seed in shared])
        rounding = _ROUNDING * max(max(abs(of[seed]), abs(to[seed])) for seed in shared)
        gaps[np.abs(gaps) <= rounding] = 0.0
        interval = mean(gaps)
        if not gaps.any():
            return Difference(interval, 1.0, "paired t")
        if np.ptp(gaps) <= rounding:
            p = 2.0 ** (1 - len(gaps))
            told = interval if p <= 1 - LEVEL else interval._replace(low=math.nan, high=math.nan)
            return Difference(told, p, "sign test")
        return Difference(interval, float(stats.ttest_1samp(gaps, 0.0).pvalue), "paired t")
    a, b = np.array(list(of.values())), np.array(list(to.values()))
    gap = float(a.mean() - b.mean())
    if len(a) < 2 or len(b) < 2 or a.std() + b.std() <= _ROUNDING * float(np.abs([*a, *b]).max()):
        return Difference(Interval(gap, math.nan, math.nan, min(len(a), len(b))), math.nan, "none")
    # By hand: scipy warns of runs that are all alike.
    one, other = a.var(ddof=1) / len(a), b.var(ddof=1) / len(b)
    freedom = (one + other) ** 2 / (one**2 / (len(a) - 1) + other**2 / (len(b) - 1))
    error = math.sqrt(one + other)
    half = float(stats.t.ppf((1 + LEVEL) / 2, freedom)) * error
    p = 2 * float(stats.t.sf(abs(gap) / error, freedom))
    return Difference(Interval(gap, gap - half, gap + half, min(len(a), len(b))), p, "Welch t")


def holm(probabilities: Sequence[float]) -> list[float]:
    """Adjust p-values for how many there are (Holm 1979); NaN stays NaN and does not count."""
    known = sorted((p, i) for i, p in enumerate(probabilities) if not math.isnan(p))
    adjusted, largest = list(probabilities), 0.0
    for rank, (p, i) in enumerate(known):
        largest = max(largest, min(1.0, p * (len(known) - rank)))
        adjusted[i] = largest
    return adjusted


def pearson(x: Sequence[float], y: Sequence[float]) -> float:
    """Return Pearson's r; NaN where either does not vary."""
    from scipy import stats

    # From the first value on, what varies little around a large value is told apart as well as any.
    x, y = ([value - values[0] for value in values] for values in (x, y))
    return float(stats.pearsonr(x, y).statistic) if len(set(x)) > 1 and len(set(y)) > 1 else math.nan


def spearman(x: Sequence[float], y: Sequence[float]) -> float:
    """Return Spearman's rank correlation; NaN where either does not vary."""
    from scipy import stats

    return float(stats.spearmanr(x, y).statistic) if len(set(x)) > 1 and len(set(y)) > 1 else math.nan


def correlation(r: float, n: int, ranks: bool) -> Interval:
    """Return Fisher's interval of one correlation of `n` points; for ranks with Bonett and Wright's variance (2000)."""
    if n < 4 or math.isnan(r) or abs(r) >= 1 - 1e-12:
        return Interval(r, math.nan, math.nan, n)
    half = _normal_quantile() * math.sqrt((1 + (r * r / 2 if ranks else 0)) / (n - 3))
    return Interval(r, math.tanh(math.atanh(r) - half), math.tanh(math.atanh(r) + half), n)


def beyond_chance(both: int, first: int, second: int, n: int) -> float:
    """Return the probability that sets of these sizes, drawn at random from `n`, share at least `both`."""
    from scipy import stats

    return float(stats.hypergeom.sf(both - 1, n, first, second))


def shown(interval: Interval, form: str = ".3f", times: float = 1.0, unit: str = "") -> str:
    """Write an interval as `estimate [low, high]`, or the estimate alone where there is none.

    There are more digits than the form asks for where it would round all to 0, or an end that lies beside 0 onto it.
    """
    ends = [times * x for x in interval[:3] if not math.isnan(x)]
    beside = [min(map(abs, ends))] if form[0] == "+" and (interval.above_zero or interval.below_zero) else []
    digits = int(form[-2])
    for seen in (max(map(abs, ends), default=0.0), *beside):
        if seen > _ROUNDING and float(format(seen, f".{digits}f")) == 0:
            digits = math.ceil(-math.log10(seen))
    form = f"{form[:-2]}{digits}f"
    estimate, low, high = (format(times * x, form) for x in interval[:3])
    return f"{estimate}{unit}" if math.isnan(interval.low) else f"{estimate}{unit} [{low}, {high}]"


def percent(interval: Interval, signed: bool = False) -> str:
    """Write a share as per cent, or the difference of two as signed percentage points."""
    return shown(interval, "+.1f" if signed else ".1f", 100, " points" if signed else " %")


def in_percent(interval: Interval) -> Interval:
    """Return a share's interval in per cent, for axes."""
    return Interval(100 * interval.estimate, 100 * interval.low, 100 * interval.high, interval.n)


def _normal_quantile() -> float:
    from scipy import stats

    return float(stats.norm.ppf((1 + LEVEL) / 2))


def _codes(groups: Sequence[Hashable]) -> npt.NDArray[np.int64]:
    known: dict[Hashable, int] = {}
    return np.array([known.setdefault(group, len(known)) for group in groups], np.int64)
