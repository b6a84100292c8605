"""Which way of choosing or augmenting data trains the better policy: quality of runs, by method and seed.

    selection     method, seed, quality           SEAM §5, Fig. 2 and 3
    augmentation  method, seed, quality           SEAM App. G, Fig. 7
    query-type    method, seed, quality           RER Table 4, `random T(x)`

A row is one trained policy; `quality` is any gold measure of it, high = better. Methods called `random`, `length`,
`longest`, `shortest`, `repetition` or …`_shuffled` are baselines and controls: a finding names those that gain as much.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import pyarrow as pa

from seamcurate.errors import StudyError
from seamcurate.study import baselines, figure, sources
from seamcurate.study.results import Study, StudyResult, result, tabulate
from seamcurate.study.sources import StudySource
from seamcurate.study.statistics import (
    LEVEL,
    NOTHING,
    BySeed,
    Interval,
    MethodGap,
    difference,
    differences,
    mean,
    shown,
)
from seamcurate.text import brief

if TYPE_CHECKING:
    from matplotlib.figure import Figure

SIGNED = "+.3f"
_COLUMNS = {
    "method": "how the data were chosen",
    "seeds": "runs averaged",
    "seeds_compared": "seeds the difference to the baseline rests on",
    "p_holm": "two-sided p of the difference to the baseline, adjusted for all methods (Holm)",
    "test": "what the p-value is by",
    "quality": "mean over seeds",
    "above_baseline": "mean quality minus the baseline's, over the seeds compared (interval adjusted by Holm's factor, as p_holm is)",
}


@dataclass(frozen=True)
class Comparison:
    """Methods against a baseline method."""

    baseline: str
    runs: Mapping[str, BySeed]
    """Quality by seed of each method, the best mean first."""
    means: Mapping[str, Interval]
    gaps: Mapping[str, MethodGap]
    """Each other method's difference to the baseline; p-values and intervals are adjusted for how many there are."""
    best: str
    """The method that the finding is about."""
    margins: Mapping[str, baselines.Margin]
    """How far the best method lies above each simple baseline and control among the methods."""


def selection(*tables: StudySource, baseline: str = "full") -> StudyResult:
    """Compare policies trained on selections of the RL data with one trained on all of it.

    Columns: `method` (`full`, `random`, `perplexity`, `seam_gpt`, `rip`, `seam_shuffled` …), `seed`, `quality`.
    Differences to the baseline are paired by seed. Their p-values are adjusted for all methods (Holm), and their
    intervals by the same factor, so that an interval excludes 0 exactly where p is under .05.

    Args:
        tables: Tables of runs.
        baseline: The method the others are compared with.

    Raises:
        StudyError: The sources cannot be read, or there is no run of the baseline.
    """
    return _study("selection", tables, baseline, "Policy quality by selection of the RL data")


def augmentation(*tables: StudySource, baseline: str = "none") -> StudyResult:
    """Compare models augmented at the low-SEAM rows, at random rows, at all rows and not at all.

    Columns: `method` (`none`, `random`, `all`, `seam` …), `seed`, `quality`. See `selection`.
    """
    return _study("augmentation", tables, baseline, "Policy quality by augmentation")


def query_type(*tables: StudySource, baseline: str = "random") -> StudyResult:
    """Compare RER by the query's type with RER by a random one.

    Columns: `method` (`predicted`, `random` …), `seed`, `quality`: a win rate, a share of relevant sentences or a
    ROUGE-L. See `selection`.
    """
    return _study("query-type", tables, baseline, "Policy quality by where the query type comes from")


def _study(study: str, tables: Sequence[StudySource], baseline: str, title: str) -> StudyResult:
    comparison = measure(_read(study, tables, baseline), baseline)
    return result(study, _table(comparison), _figure(comparison, title), _finding(comparison))


def _read(study: str, tables: Sequence[StudySource], baseline: str) -> dict[str, BySeed]:
    table = sources.read(study, tables, ["method", "seed", "quality"])
    runs: dict[str, BySeed] = {method: by for (method,), by in sources.by_seed(study, table, ["method"]).items()}
    if baseline not in runs or len(runs) < 2:
        raise StudyError(
            f"{study}: the runs are of {brief(', '.join(runs), 200)}; two methods are compared, one of them the baseline "
            f"{baseline!r}: name another as baseline, or add its runs"
        )
    return runs


def measure(runs: Mapping[str, BySeed], baseline: str) -> Comparison:
    """Compare each method with the baseline, and the best one with the simple baselines too."""
    means = {method: mean(list(by_seed.values())) for method, by_seed in runs.items()}
    ordered = sorted(runs, key=lambda method: -means[method].estimate)
    others = {method: by_seed for method, by_seed in runs.items() if method != baseline}
    best = best_method(others)
    return Comparison(
        baseline,
        {method: runs[method] for method in ordered},
        {method: means[method] for method in ordered},
        differences(others, runs[baseline]),
        best,
        margins(others, best),
    )


def _table(comparison: Comparison) -> pa.Table:
    gaps = [comparison.gaps.get(method) for method in comparison.runs]
    columns: dict[str, Sequence[object]] = {
        "method": list(comparison.runs),
        "seeds": [len(by_seed) for by_seed in comparison.runs.values()],
        "seeds_compared": [None if gap is None else gap.interval.n for gap in gaps],
        "p_holm": [None if gap is None or math.isnan(gap.p) else gap.p for gap in gaps],
        "test": [None if gap is None else gap.test for gap in gaps],
    }
    above = [NOTHING if gap is None else gap.interval for gap in gaps]
    return tabulate(_COLUMNS, columns, {"quality": list(comparison.means.values()), "above_baseline": above})


def _figure(comparison: Comparison, title: str) -> Figure:
    baseline, means = comparison.baseline, comparison.means
    hollow = {method: method == baseline or baselines.of_method(method) is not None for method in means}
    # The baseline has no difference, but a number of seeds in the column of counts.
    above = {method: gap.interval for method, gap in comparison.gaps.items()}
    above[baseline] = NOTHING._replace(n=means[baseline].n)
    adjusted = f", adjusted for {len(comparison.gaps)} differences (Holm)" if len(comparison.gaps) > 1 else ""
    return figure.dots(
        {
            "quality (gold measure)": [figure.Dot(method, means[method], hollow[method]) for method in means],
            f"quality above {baseline}": [figure.Dot(method, above[method], hollow[method]) for method in means],
        },
        "",
        f"{title}. Left: means of {sources.seed_count(comparison.runs.values())}; right: differences, paired where seeds match"
        f"{adjusted}. Bars: 95 % Student intervals. Hollow: the baseline, simple baselines and controls.",
        (0.0, baseline),
        "seeds",
        own_axes=True,
    )


def _finding(comparison: Comparison) -> str:
    best, gap = comparison.best, comparison.gaps[comparison.best]
    verb = "not told apart from"
    if gap.p < 1 - LEVEL:
        verb = "above" if gap.interval.estimate > 0 else "below"
    holm = f", Holm over {len(comparison.gaps)}" if len(comparison.gaps) > 1 else ""
    return (
        f"{best} reaches {shown(comparison.means[best])}, {verb} {comparison.baseline} by {shown(gap.interval, SIGNED)} "
        f"({tested(gap)}{holm}){baselines.caveat(comparison.margins)}"
    )


def best_method(runs: Mapping[str, BySeed]) -> str:
    """Return the best of SEAM's own methods; without one, of those that are no baseline; without one, of all."""
    proper = [method for method in runs if baselines.of_method(method) is None] or list(runs)
    seam = [method for method in proper if method.lower().removeprefix("augment_").startswith("seam")] or proper
    return max(seam, key=lambda method: mean(list(runs[method].values())).estimate)


def margins(runs: Mapping[str, BySeed], best: str) -> dict[str, baselines.Margin]:
    """Return how far the best method lies above each simple baseline and control among the methods."""
    by_kind: dict[str, baselines.Margin] = {}
    for method in runs:
        kind = baselines.of_method(method)
        if kind is not None and method != best:
            quality = shown(mean(list(runs[method].values())))
            above = difference(runs[best], runs[method]).interval
            by_kind[kind if kind not in by_kind else method] = baselines.Margin(f"{method} {quality}", above)
    return by_kind


def tested(gap: MethodGap) -> str:
    """Say by what test a difference has which p, and over how many seeds."""
    if math.isnan(gap.p):
        return "too few seeds to test"
    # A p just below .05 keeps the digits that show on which side of it p lies.
    digits = 3 if gap.p >= 0.05 or gap.p < 0.0495 else 6
    p = "p < .001" if gap.p < 0.001 else f"p = {gap.p:.{digits}f}"
    return f"{gap.test}, {p}, {gap.interval.n} seeds"


_READS = "method, seed, quality"
SELECTION = Study(
    "selection",
    "whether selecting RL data trains a better policy than all of it",
    _READS,
    _COLUMNS,
    selection,
)
AUGMENTATION = Study(
    "augmentation",
    "whether augmenting low-SEAM rows trains better models than random rows, all rows or none",
    _READS,
    _COLUMNS,
    augmentation,
)
QUERY_TYPE = Study(
    "query-type",
    "whether RER by the predicted query type trains a better policy than by a random one",
    _READS,
    _COLUMNS,
    query_type,
)
