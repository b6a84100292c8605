"""Intervals and tests: what a study may say of a number, and how sure it is.

Intervals have 95 % confidence; those of several methods against one baseline are widened as Holm's p-values are.
One rule: values that belong together are resampled together (pairs of one prompt, runs of one seed).
"""

from __future__ import annotations

import math
from collections.abc import Hashable, Mapping, Sequence
from typing import NamedTuple, TypeAlias

import numpy as np
import numpy.typing as npt

from seamcurate.score import proportions

Doubles: TypeAlias = npt.NDArray[np.float64]
BySeed: TypeAlias = Mapping[float, float]
"""One value a seed."""

LEVEL = 0.95
_DRAWS = 2000
_FEWEST = 6
"""Values a resampling needs: five all lie on one side of no effect by chance alone with probability 2 · ½⁵ = .06."""
_ROUNDING = 1e-12
"""Relative size below which a difference is a rounding error."""
_BATCH = 2**22
"""Random indices that a bootstrap holds in memory at once."""


class Interval(NamedTuple):
    """An estimate, its 95 % confidence interval (NaN where there is none), and how many independent values it rests on."""

    estimate: float
    low: float
    high: float
    n: int

    @property
    def above_zero(self) -> bool:
        """Whether the whole interval lies above 0; never true of a single value, which has no interval."""
        return self.low > 0

    @property
    def below_zero(self) -> bool:
        """Whether the whole interval lies below 0; never true of a single value, which has no interval."""
        return self.high < 0


NOTHING = Interval(math.nan, math.nan, math.nan, 0)
"""The interval of a value that could not be estimated."""


class MethodGap(NamedTuple):
    """How far one method lies above another over seeds."""

    interval: Interval
    p: float
    """Two-sided; NaN where there are too few seeds to test."""
    test: str
    """`paired t` over the seeds both have, `sign test` where their gaps are all the same, `Welch t` where they share fewer
    than two seeds, `none` with a single run."""


def wilson(share: float, n: int) -> Interval:
    """Return Wilson's score interval of a share of `n` independent trials (Wilson 1927); `share` may count halves."""
    low, high = proportions.wilson(np.array([share]), np.array([n], np.float64))
    return Interval(share, float(low[0]), float(high[0]), n)


def mean(values: Sequence[float] | Doubles, level: float = LEVEL) -> Interval:
    """Return the mean with Student's interval at a confidence level; a single value has none (NaN)."""
    from scipy import stats

    sample = np.asarray(values, np.float64)
    n = len(sample)
    if n < 2:
        return Interval(float(sample.mean()), math.nan, math.nan, n)
    half = float(stats.t.ppf((1 + level) / 2, n - 1) * sample.std(ddof=1) / math.sqrt(n))
    centre = float(sample.mean())
    return Interval(centre, centre - half, centre + half, n)


def resampled(values: Doubles, groups: Sequence[Hashable] | None = None, seed: int = 0) -> Doubles:
    """Return 2,000 bootstrap means, draws × columns, of `values`, rows × columns (Efron 1979).

    Rows of one group are drawn together; without groups each row is a group of its own.
    """
    random = np.random.default_rng(seed)
    if groups is None:
        # Verdicts and shares take few values: kinds are (kinds, columns), counts (kinds,).
        kinds, counts = np.unique(values, axis=0, return_counts=True)
        if 4 * len(kinds) < len(values):
            # Equal rows are interchangeable, so it is enough to draw how often each kind occurs.
            by_kind: Doubles = random.multinomial(len(values), counts / len(values), _DRAWS) @ kinds / len(values)
            return by_kind
    codes = np.arange(len(values)) if groups is None else _codes(groups)
    size = int(codes.max()) + 1
    sums = np.zeros((size, values.shape[1]))  # (groups, columns)
    np.add.at(sums, codes, values)
    counts = np.bincount(codes, minlength=size)  # (groups,)
    means = []
    step = max(1, _BATCH // size)
    for start in range(0, _DRAWS, step):
        indices = random.integers(0, size, (min(step, _DRAWS - start), size))
        # How often each group is in each draw: (draws, groups).
        weights = np.stack([np.bincount(row, minlength=size) for row in indices]).astype(np.float64)
        # (draws, columns): groups differ in size, so that each draw is divided by its own number of rows.
        means.append((weights @ sums) / (weights @ counts)[:, None])
    return np.concatenate(means)


def percentiles(estimate: float, draws: Doubles, n: int) -> Interval:
    """Return the bootstrap's percentile interval around an estimate, none below six values; NaN draws do not count."""
    finite = draws[np.isfinite(draws)]
    if not len(finite) or n < _FEWEST:
        return Interval(estimate, math.nan, math.nan, n)
    low, high = np.quantile(finite, [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    return Interval(estimate, float(low), float(high), n)


def bootstrap_mean(values: Doubles, groups: Sequence[Hashable] | None = None) -> Interval:
    """Return the mean of values with its bootstrap interval; `n` counts the groups."""
    n = len(values) if groups is None else len(set(groups))
    return percentiles(float(values.mean()), resampled(values[:, None], groups)[:, 0], n)


def bootstrap_share(values: Doubles, groups: Sequence[Hashable] | None = None) -> Interval:
    """Return the mean of values in [0, 1] with its bootstrap interval over groups; `n` counts the groups.

    Where all values are 0, or all are 1, every resample equals the sample and the bootstrap interval would have no width;
    the interval is exact there (Clopper and Pearson 1934).
    """
    n = len(values) if groups is None else len(set(groups))
    # The share p of which n in a row have a probability of 2.5 %: pⁿ = .025.
    bound: float = ((1 - LEVEL) / 2) ** (1 / n)
    if (values == 1).all():
        return Interval(1.0, bound, 1.0, n)
    if (values == 0).all():
        return Interval(0.0, 0.0, 1 - bound, n)
    return bootstrap_mean(values, groups)


def share(right: Doubles, groups: Sequence[Hashable]) -> Interval:
    """Return the mean of shares in [0, 1]: by Wilson where each group has one row, else by a bootstrap over groups.

    A scorer that never decides has one half on every row, whatever the rows are: it has no interval.
    """
    if (right == 0.5).all():
        return Interval(0.5, math.nan, math.nan, len(set(groups)))
    if len(set(groups)) == len(groups):
        return wilson(float(right.mean()), len(right))
    return bootstrap_share(right, groups)


def difference(runs: BySeed, reference: BySeed, level: float = LEVEL) -> MethodGap:
    """Return runs minus reference runs with their interval and test: paired by seed where two or more seeds match.

    The interval excludes 0 exactly where p < 1 − level. Paired differences that are all equal have no variance for a t
    test; a sign test gives them p = 2 · ½ⁿ, and they have no interval where that is not below 1 − level. Differences
    within rounding error are 0.
    """
    shared = sorted(set(runs) & set(reference))
    if len(shared) >= 2:
        return _paired(np.array([[runs[seed], reference[seed]] for seed in shared]), level)
    return _welch(np.array(list(runs.values())), np.array(list(reference.values())), level)


def _paired(values: Doubles, level: float) -> MethodGap:
    """Test paired values, seeds × 2."""
    from scipy import stats

    gaps = values[:, 0] - values[:, 1]  # (seeds,)
    rounding = _ROUNDING * float(np.abs(values).max())
    gaps[np.abs(gaps) <= rounding] = 0.0
    interval = mean(gaps, level)
    if not gaps.any():
        return MethodGap(interval, 1.0, "paired t")
    if np.ptp(gaps) > rounding:
        return MethodGap(interval, float(stats.ttest_1samp(gaps, 0.0).pvalue), "paired t")
    # All gaps are one number: a t test divides by their variance, which is 0.
    p = 2.0 ** (1 - len(gaps))
    significant = p <= 1 - level
    return MethodGap(interval if significant else interval._replace(low=math.nan, high=math.nan), p, "sign test")


def _welch(sample: Doubles, reference: Doubles, level: float) -> MethodGap:
    """Test two samples of unequal variance (Welch 1947)."""
    from scipy import stats

    gap, n = float(sample.mean() - reference.mean()), min(len(sample), len(reference))
    if n < 2 or sample.std() + reference.std() <= _ROUNDING * float(np.abs([*sample, *reference]).max()):
        return MethodGap(Interval(gap, math.nan, math.nan, n), math.nan, "none")
    # Not scipy's own test: it warns where all runs of one side are equal.
    variances = sample.var(ddof=1) / len(sample), reference.var(ddof=1) / len(reference)
    # Welch and Satterthwaite's degrees of freedom.
    freedom = sum(variances) ** 2 / (variances[0] ** 2 / (len(sample) - 1) + variances[1] ** 2 / (len(reference) - 1))
    error = math.sqrt(sum(variances))
    half = float(stats.t.ppf((1 + level) / 2, freedom)) * error
    p = 2 * float(stats.t.sf(abs(gap) / error, freedom))
    return MethodGap(Interval(gap, gap - half, gap + half, n), p, "Welch t")


def differences(runs: Mapping[str, BySeed], reference: BySeed) -> dict[str, MethodGap]:
    """Return each method's difference to one baseline, p-values and intervals adjusted for how many there are.

    Holm's procedure multiplies a p-value by some factor k. The interval of the same difference has the confidence level
    1 − .05 / k, so that it excludes 0 exactly where the adjusted p is below .05; it is never narrower than one of 95 %.
    """
    single = {method: difference(by_seed, reference) for method, by_seed in runs.items()}
    adjusted = dict(zip(single, holm([gap.p for gap in single.values()]), strict=True))
    wide = {}
    for method, by_seed in runs.items():
        p = single[method].p
        # Holm's factor of this p; where p is 0, or rounded to it, the largest that it can have.
        factor = adjusted[method] / p if p > 0 else len(runs)
        level = LEVEL if math.isnan(factor) else 1 - (1 - LEVEL) / factor
        wide[method] = difference(by_seed, reference, level)._replace(p=adjusted[method])
    return wide


def holm(probabilities: Sequence[float]) -> list[float]:
    """Adjust p-values for how many there are (Holm 1979); NaN stays NaN and does not count."""
    ascending = sorted((p, i) for i, p in enumerate(probabilities) if not math.isnan(p))
    adjusted, largest = list(probabilities), 0.0
    for rank, (p, i) in enumerate(ascending):
        # Never below the one before: adjusted p-values keep the order of the raw ones.
        largest = max(largest, min(1.0, p * (len(ascending) - rank)))
        adjusted[i] = largest
    return adjusted


def pearson(x: Sequence[float], y: Sequence[float]) -> float:
    """Return Pearson's r; NaN where either does not vary."""
    from scipy import stats

    # Subtract the first value: a small variation around a large value would be lost to rounding.
    x, y = ([value - values[0] for value in values] for values in (x, y))
    return float(stats.pearsonr(x, y).statistic) if len(set(x)) > 1 and len(set(y)) > 1 else math.nan


def spearman(x: Sequence[float] | Doubles, y: Sequence[float] | Doubles) -> float:
    """Return Spearman's rank correlation over the rows where both are finite, ties by their mean rank.

    NaN with fewer than three such rows, or where either is constant.
    """
    from scipy.stats import rankdata

    x_values, y_values = np.asarray(x, np.float64), np.asarray(y, np.float64)
    complete = np.isfinite(x_values) & np.isfinite(y_values)
    x_values, y_values = x_values[complete], y_values[complete]
    if len(x_values) < 3 or np.ptp(x_values) == 0 or np.ptp(y_values) == 0:
        return math.nan
    return float(np.corrcoef(rankdata(x_values), rankdata(y_values))[0, 1])


def correlation(r: float, n: int, ranks: bool) -> Interval:
    """Return Fisher's interval of one correlation of `n` points; for ranks with Bonett and Wright's variance (2000)."""
    if n < 4 or math.isnan(r) or abs(r) >= 1 - 1e-12:
        return Interval(r, math.nan, math.nan, n)
    # atanh(r) is about normal with this standard error, whatever the true correlation.
    half = proportions.QUANTILE * math.sqrt((1 + (r * r / 2 if ranks else 0)) / (n - 3))
    return Interval(r, math.tanh(math.atanh(r) - half), math.tanh(math.atanh(r) + half), n)


def beyond_chance(shared: int, size_first: int, size_second: int, n: int) -> float:
    """Return the probability that two random sets of these sizes out of `n` share at least `shared` rows (hypergeometric)."""
    from scipy import stats

    # sf is P(X > x): one less, to count `shared` itself.
    return float(stats.hypergeom.sf(shared - 1, n, size_first, size_second))


def shown(interval: Interval, form: str = ".3f", times: float = 1.0, unit: str = "") -> str:
    """Write an interval as `estimate [low, high]`, or the estimate alone where there is none.

    It has more digits than the form asks for where all numbers would be rounded to 0, or where an end of an interval that
    excludes 0 would be.
    """
    numbers = [times * x for x in interval[:3] if not math.isnan(x)]
    excludes_zero = form[0] == "+" and (interval.above_zero or interval.below_zero)
    visible = [max(map(abs, numbers), default=0.0), *([min(map(abs, numbers))] if excludes_zero else [])]
    digits = int(form[-2])
    for size in visible:
        if size > _ROUNDING and float(format(size, f".{digits}f")) == 0:
            digits = math.ceil(-math.log10(size))
    form = f"{form[:-2]}{digits}f"
    estimate, low, high = (format(times * x, form) for x in interval[:3])
    return f"{estimate}{unit}" if math.isnan(interval.low) else f"{estimate}{unit} [{low}, {high}]"


def percent(interval: Interval, signed: bool = False) -> str:
    """Write a share as per cent, or the difference of two as signed percentage points."""
    return shown(interval, "+.1f" if signed else ".1f", 100, " points" if signed else " %")


def in_percent(interval: Interval) -> Interval:
    """Return a share's interval in per cent, for axes."""
    return Interval(100 * interval.estimate, 100 * interval.low, 100 * interval.high, interval.n)


def _codes(groups: Sequence[Hashable]) -> npt.NDArray[np.int64]:
    """Return each row's group as a number, in the order in which groups first occur."""
    codes: dict[Hashable, int] = {}
    return np.array([codes.setdefault(group, len(codes)) for group in groups], np.int64)
