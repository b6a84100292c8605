"""How quality goes with the share of rows filtered out (SEAM App. H.1, Fig. 8).

filter-rate   method, rate, seed, quality
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import pyarrow as pa

from seamcurate.errors import StudyError
from seamcurate.study import baselines, figure, sources
from seamcurate.study.methods import SIGNED, best_method, margins, tested
from seamcurate.study.results import Study, StudyResult, result, tabulate
from seamcurate.study.sources import StudySource
from seamcurate.study.statistics import NOTHING, BySeed, Interval, MethodGap, difference, mean, shown

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_COLUMNS = {
    "method": "how the data were chosen",
    "rate": "share of the RL data filtered out",
    "seeds": "runs averaged",
    "quality": "mean over seeds",
    "above_full": "mean quality minus the full data's (not adjusted for how many rates there are)",
}


@dataclass(frozen=True)
class Sweep:
    """Quality by filter rate."""

    baseline: str
    full: BySeed
    """Quality by seed of the full data; empty without such runs."""
    methods: Mapping[str, Mapping[float, BySeed]]
    """Quality by seed of each method with three rates or more, rates ascending."""

    @property
    def runs(self) -> dict[tuple[str, float], BySeed]:
        """Each method's runs at each rate, those of the full data first."""
        full_data = {(self.baseline, 0.0): self.full} if self.full else {}
        return full_data | {
            (method, rate): run for method, rates in self.methods.items() for rate, run in rates.items()
        }


@dataclass(frozen=True)
class Peak:
    """The best method's best rate, and what its first and last rate and the full data reach in comparison."""

    method: str
    rate: float
    quality: Interval
    rates: Sequence[float]
    rise: Interval | None
    """The peak minus the first rate; None where that is the peak."""
    fall: Interval | None
    """The last rate minus the peak; None where that is the peak."""
    above_full: MethodGap | None
    margins: Mapping[str, baselines.Margin]


def filter_rate(*tables: StudySource, baseline: str = "full") -> StudyResult:
    """Show how quality goes with the share of rows filtered out, and where it peaks.

    Columns: `method`, `rate` (share of rows dropped; 0 is the full data), `seed`, `quality`. Intervals and p-values are
    of one difference each, not adjusted for how many rates there are.

    Args:
        tables: Tables of runs.
        baseline: The method whose runs are the full data's, whatever their rate.

    Raises:
        StudyError: The sources cannot be read, or no method was run at three rates above 0.
    """
    sweep = _read(tables, baseline)
    return result("filter-rate", _table(sweep), _figure(sweep), _finding(measure(sweep)))


def _read(tables: Sequence[StudySource], baseline: str) -> Sweep:
    study = "filter-rate"
    table = sources.read(study, tables, ["method", "rate", "seed", "quality"])
    rates = sources.numbers(study, table, "rate")
    if rates.min() < 0 or rates.max() >= 1:
        raise StudyError(f"{study}: rates lie in [0, 1), the share of rows dropped; divide per cent by 100")
    methods: dict[str, dict[float, BySeed]] = {}
    full_data: dict[float, float] = {}
    for (method, rate), by_seed in sources.by_seed(study, table, ["method", "rate"]).items():
        if method == baseline or float(rate) == 0:
            # A method's rate of 0 is the full data, too; of two runs of one seed the first stays.
            full_data = {**by_seed, **full_data}
        else:
            methods.setdefault(method, {})[float(rate)] = by_seed
    swept = {method: dict(sorted(by_rate.items())) for method, by_rate in methods.items() if len(by_rate) >= 3}
    if not swept:
        raise StudyError(f"{study}: no method has runs at three rates above 0; sweep .1, .2, .3, .4, .6, .8")
    return Sweep(baseline, full_data, swept)


def measure(sweep: Sweep) -> Peak:
    """Compare the peak of the best method with its ends, the full data and the simple baselines at the same rate."""
    # (method): the rate of its highest mean. Chosen after looking, its test is called the best of so many.
    peaks = {
        method: max(by_rate, key=lambda rate: mean(list(by_rate[rate].values())).estimate)
        for method, by_rate in sweep.methods.items()
    }
    best = best_method({method: by_rate[peaks[method]] for method, by_rate in sweep.methods.items()})
    by_rate, rate = sweep.methods[best], peaks[best]
    lowest, *_, highest = by_rate
    # At the peak's own rate: fewer rows alone change quality, whatever was dropped.
    at_rate = {method: runs[rate] for method, runs in sweep.methods.items() if rate in runs}
    return Peak(
        best,
        rate,
        mean(list(by_rate[rate].values())),
        list(by_rate),
        difference(by_rate[rate], by_rate[lowest]).interval if lowest != rate else None,
        difference(by_rate[highest], by_rate[rate]).interval if highest != rate else None,
        difference(by_rate[rate], sweep.full) if sweep.full else None,
        margins(at_rate, best),
    )


def _table(sweep: Sweep) -> pa.Table:
    runs = sweep.runs
    columns: dict[str, Sequence[object]] = {
        "method": [method for method, _ in runs],
        "rate": [rate for _, rate in runs],
        "seeds": [len(by_seed) for by_seed in runs.values()],
    }
    gains = [
        difference(by_seed, sweep.full).interval if sweep.full and rate else NOTHING
        for (_, rate), by_seed in runs.items()
    ]
    quality = [mean(list(by_seed.values())) for by_seed in runs.values()]
    return tabulate(_COLUMNS, columns, {"quality": quality, "above_full": gains})


def _figure(sweep: Sweep) -> Figure:
    full_data = {0.0: sweep.full} if sweep.full else {}
    curves = []
    for method, by_rate in sweep.methods.items():
        runs = {**full_data, **by_rate}
        means = [mean(list(by_seed.values())) for by_seed in runs.values()]
        curves.append(figure.Curve(method, list(runs), means, baselines.of_method(method) is not None))
    return figure.curves(
        {"Policy quality by filter rate": curves},
        "share of the RL data filtered out",
        "quality (gold reward)",
        f"Mean of {sources.seed_count(sweep.runs.values())}; bands: 95 % Student intervals. Dashed grey: simple baselines and controls.",
        marks=sorted({rate for curve in curves for rate in curve.x}),
    )


def _finding(peak: Peak) -> str:
    changes = []
    if peak.rise is not None:
        verb = "rises" if peak.rise.above_zero else "does not demonstrably rise"
        changes.append(f"{verb} from {peak.rates[0]:g} ({shown(peak.rise, SIGNED)})")
    if peak.fall is not None:
        verb = "falls" if peak.fall.below_zero else "does not demonstrably fall"
        changes.append(f"{verb} to {peak.rates[-1]:g} ({shown(peak.fall, SIGNED)})")
    line = f"{peak.method}: quality peaks at rate {peak.rate:g}, {shown(peak.quality)}"
    line += f"; it {' and '.join(changes)}" if changes else ""
    if peak.above_full is not None:
        gap, count = peak.above_full, len(peak.rates)
        line += f"; against the full data {shown(gap.interval, SIGNED)} ({tested(gap)}, the best of {count} rates, not adjusted)"
    return line + baselines.caveat(peak.margins)


FILTER_RATE = Study(
    "filter-rate",
    "how quality goes with the share of rows filtered out, and where it peaks",
    "method, rate, seed, quality",
    _COLUMNS,
    filter_rate,
)
