"""Which way of choosing or augmenting data trains the better policy: quality of runs, by method and seed.

    selection     method, seed, quality           SEAM §5, Fig. 2 and 3
    augmentation  method, seed, quality           SEAM App. G, Fig. 7
    filter-rate   method, rate, seed, quality     SEAM App. H.1, Fig. 8
    query-type    method, seed, quality           RER Table 4, `random T(x)`

A row is one trained policy; `quality` is whatever gold measure judged it, high = better. Methods called `random`,
`length`, `longest`, `shortest`, `repetition` or …`_shuffled` are rulers: a gain that they make too is said to be.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

from seamcurate.errors import StudyError
from seamcurate.study import figure, results, ruler
from seamcurate.study.results import Data, Finding
from seamcurate.study.statistics import LEVEL, NOTHING, BySeed, Difference, difference, holm, mean, shown
from seamcurate.text import brief

_SIGNED = "+.3f"


def selection(*sources: Data, baseline: str = "full") -> Finding:
    """Compare policies trained on selections of the RL data with one trained on all of it.

    Columns: `method` (`full`, `random`, `perplexity`, `seam_gpt`, `rip`, `seam_shuffled` …), `seed`, `quality`.
    Intervals are of one difference each; a method is said to lie above or below where its p is under .05 after Holm.

    Args:
        sources: Tables of runs.
        baseline: The method the others are held against.

    Raises:
        StudyError: The sources cannot be read, or there is no run of the baseline.
    """
    return _compare("selection", sources, baseline, "Policy quality by selection of the RL data")


def augmentation(*sources: Data, baseline: str = "none") -> Finding:
    """Compare models augmented at the low-SEAM rows, at random rows, at all rows and not at all.

    Columns: `method` (`none`, `random`, `all`, `seam` …), `seed`, `quality`. See `selection`.
    """
    return _compare("augmentation", sources, baseline, "Policy quality by augmentation")


def query_type(*sources: Data, baseline: str = "random") -> Finding:
    """Compare RER by the query's type with RER by a random one.

    Columns: `method` (`predicted`, `random` …), `seed`, `quality`: a win rate, a share of relevant sentences or a
    ROUGE-L. See `selection`.
    """
    return _compare("query-type", sources, baseline, "Policy quality by where the query type comes from")


def filter_rate(*sources: Data, baseline: str = "full") -> Finding:
    """Show how quality goes with the share of rows filtered out, and where it peaks.

    Columns: `method`, `rate` (share of rows dropped; 0 is the full data), `seed`, `quality`.

    Args:
        sources: Tables of runs.
        baseline: The method whose runs are the full data's, whatever their rate.

    Raises:
        StudyError: The sources cannot be read, or no method was run at three rates above 0.
    """
    study = "filter-rate"
    table = results.read(study, sources, ["method", "rate", "seed", "quality"])
    rates = results.numbers(study, table, "rate")
    if rates.min() < 0 or rates.max() >= 1:
        raise StudyError(f"{study}: rates lie in [0, 1), the share of rows dropped; divide per cent by 100")
    found: dict[str, dict[float, BySeed]] = {}
    full: dict[float, float] = {}
    for (method, rate), runs in results.by_seed(study, table, ["method", "rate"]).items():
        if method == baseline or float(rate) == 0:
            full = {**runs, **full}
        else:
            found.setdefault(method, {})[float(rate)] = runs
    swept = {method: dict(sorted(by.items())) for method, by in found.items() if len(by) >= 3}
    if not swept:
        raise StudyError(f"{study}: no method has runs at three rates above 0; sweep .1, .2, .3, .4, .6, .8")
    keys = [(method, rate, runs) for method, by in swept.items() for rate, runs in by.items()]
    if full:
        keys.insert(0, (baseline, 0.0, full))
    means = {(method, rate): mean(list(runs.values())) for method, rate, runs in keys}
    above = [difference(runs, full).interval if full and rate else NOTHING for _, rate, runs in keys]
    out = results.tabulate(
        {
            "method": [method for method, _, _ in keys],
            "rate": [rate for _, rate, _ in keys],
            "seeds": [len(runs) for _, _, runs in keys],
        },
        {"quality": list(means.values()), "above_full": above},
    )
    curves = [
        figure.Curve(
            method,
            [*([0.0] if full else []), *by],
            [*([means[baseline, 0.0]] if full else []), *(means[method, rate] for rate in by)],
            ruler.of_method(method) is not None,
        )
        for method, by in swept.items()
    ]
    drawn = figure.curves(
        {"Policy quality by filter rate": curves},
        "share of the RL data filtered out",
        "quality (gold reward)",
        f"Mean of {results.seeds([runs for _, _, runs in keys])}; bands: 95 % Student intervals. Dashed grey: rulers and controls.",
        marks=sorted({rate for by in swept.values() for rate in by} | ({0.0} if full else set())),
    )
    return Finding(study, out, drawn, _peak(swept, full))


def _peak(swept: Mapping[str, Mapping[float, BySeed]], full: BySeed) -> str:
    tops = {method: max(by, key=lambda rate: mean(list(by[rate].values())).estimate) for method, by in swept.items()}
    best = _best({method: by[tops[method]] for method, by in swept.items()})
    by, top = swept[best], tops[best]
    first, *_, last = by
    parts = []
    if first != top:
        rise = difference(by[top], by[first]).interval
        verb = "rises" if rise.above_zero else "does not demonstrably rise"
        parts.append(f"{verb} from {first:g} ({shown(rise, _SIGNED)})")
    if last != top:
        fall = difference(by[last], by[top]).interval
        verb = "falls" if fall.below_zero else "does not demonstrably fall"
        parts.append(f"{verb} to {last:g} ({shown(fall, _SIGNED)})")
    line = f"{best}: quality peaks at rate {top:g}, {shown(mean(list(by[top].values())))}"
    line += f"; it {' and '.join(parts)}" if parts else ""
    if full:
        gap = difference(by[top], full)
        line += f"; against the full data {shown(gap.interval, _SIGNED)} ({_tested(gap)}, the best of {len(by)} rates)"
    there = {method: rates[top] for method, rates in swept.items() if top in rates}
    return line + _beside(there, best)


def _compare(study: str, sources: Sequence[Data], baseline: str, title: str) -> Finding:
    table = results.read(study, sources, ["method", "seed", "quality"])
    runs = {method: by for (method,), by in results.by_seed(study, table, ["method"]).items()}
    if baseline not in runs or len(runs) < 2:
        raise StudyError(
            f"{study}: the runs are of {brief(', '.join(runs), 200)}; two methods are compared, one of them the baseline "
            f"{baseline!r}: name another as baseline, or add its runs"
        )
    others = [method for method in runs if method != baseline]
    gaps = {method: difference(runs[method], runs[baseline]) for method in others}
    adjusted = dict(zip(others, holm([gaps[method].p for method in others]), strict=True))
    ordered = sorted(runs, key=lambda method: -mean(list(runs[method].values())).estimate)
    means = {method: mean(list(runs[method].values())) for method in ordered}
    probabilities = [adjusted.get(method, math.nan) for method in ordered]
    compared = {method: gaps[method].interval.n for method in others}
    out = results.tabulate(
        {
            "method": ordered,
            "seeds": [len(runs[method]) for method in ordered],
            "seeds_compared": [compared.get(method) for method in ordered],
            "p_holm": [None if math.isnan(p) else p for p in probabilities],
            "test": [gaps[method].test if method in gaps else None for method in ordered],
        },
        {
            "quality": list(means.values()),
            "above_baseline": [gaps[m].interval if m in gaps else NOTHING for m in ordered],
        },
    )
    hollow = {m: m == baseline or ruler.of_method(m) is not None for m in ordered}
    # Beside the differences stands how many seeds each rests on.
    above = {m: gaps[m].interval if m in gaps else NOTHING._replace(n=means[m].n) for m in ordered}
    drawn = figure.dots(
        {
            "quality (gold measure)": [figure.Dot(m, means[m], hollow[m]) for m in ordered],
            f"quality above {baseline}": [figure.Dot(m, above[m], hollow[m]) for m in ordered],
        },
        "",
        f"{title}. Left: means of {results.seeds(runs.values())}; right: differences, paired where seeds match. Bars: "
        "95 % Student intervals. Hollow: baseline, rulers and controls.",
        (0.0, baseline),
        "seeds",
        own_axes=True,
    )
    best = _best({method: runs[method] for method in others})
    gap = gaps[best]._replace(p=adjusted[best])
    told = gap.p < 1 - LEVEL
    verb = "not told apart from" if not told else "above" if gap.interval.estimate > 0 else "below"
    line = (
        f"{best} reaches {shown(means[best])}, {verb} {baseline} by {shown(gap.interval, _SIGNED)} "
        f"({_tested(gap)}{', Holm over ' + str(len(others)) if len(others) > 1 else ''})"
    )
    return Finding(study, out, drawn, line + _beside({m: runs[m] for m in others if m != baseline}, best))


def _best(runs: Mapping[str, BySeed]) -> str:
    """Return the best of SEAM's own methods; without one, of those in earnest; without one, of all."""
    earnest = [method for method in runs if ruler.of_method(method) is None] or list(runs)
    seam = [method for method in earnest if method.lower().removeprefix("augment_").startswith("seam")] or earnest
    return max(seam, key=lambda method: mean(list(runs[method].values())).estimate)


def _beside(runs: Mapping[str, BySeed], best: str) -> str:
    """Hold the best method against the rulers among the methods."""
    gaps = {}
    for method in runs:
        kind = ruler.of_method(method)
        if kind is not None and method != best:
            reached = mean(list(runs[method].values()))
            gaps[kind if kind not in gaps else method] = ruler.Gap(
                f"{method} {shown(reached)}", difference(runs[best], runs[method]).interval
            )
    return ruler.caveat(gaps)


def _tested(gap: Difference) -> str:
    if math.isnan(gap.p):
        return "too few seeds to test"
    p = "p < .001" if gap.p < 0.001 else f"p = {gap.p:.3f}"
    return f"{gap.test}, {p}, {gap.interval.n} seeds"
