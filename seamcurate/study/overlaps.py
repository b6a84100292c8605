"""Whether different models find the same rows low (SEAM App. H.2, Table 3).

overlap      two or more stores of the same rows, or first, second,
             seed, rows, lowest_first, lowest_second, shared
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import combinations
from typing import TYPE_CHECKING, TypeAlias

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from seamcurate.errors import StudyError
from seamcurate.select import views
from seamcurate.study import baselines, figure, sources
from seamcurate.study.results import Study, StudyResult, result, tabulate
from seamcurate.study.sources import StudySource
from seamcurate.study.statistics import (
    LEVEL,
    Doubles,
    Interval,
    beyond_chance,
    in_percent,
    mean,
    percent,
    percentiles,
    resampled,
    wilson,
)

if TYPE_CHECKING:
    from matplotlib.figure import Figure

Members: TypeAlias = npt.NDArray[np.bool_]
"""Whether each row is in a set."""
_BASELINES = {
    "longest": "picking the longest",
    "shortest": "picking the shortest",
    "repetitive": "picking the most repetitive",
}
_COUNTS = ("rows", "lowest_first", "lowest_second", "shared")
_COLUMNS = {
    "first": "one model of the pair",
    "second": "the other model of the pair",
    "seed": "the run's seed",
    "kind": "models for two models; ruler for a model and a simple baseline",
    "rows": "rows measured",
    "lowest_first": "rows of the first model's lowest set",
    "lowest_second": "rows of the second model's lowest set",
    "chance": "overlap of sets of these sizes drawn at random",
    "p_beyond_chance": "one-sided probability of sharing as many by chance (hypergeometric); like the interval of overlap, "
    "not adjusted for how many pairs there are",
    "overlap": "2 |A∩B| / (|A| + |B|) of the two lowest sets",
}


@dataclass(frozen=True)
class LowRows:
    """Sets of rows of several stores: each store's lowest, and those that simple baselines pick."""

    by: str
    rate: float
    models: Mapping[str, Members]
    """Each store's lowest rows, among those that every store scores."""
    baselines: Mapping[str, Members]


@dataclass(frozen=True)
class Overlap:
    """What two sets share."""

    first: str
    second: str
    size_first: int
    size_second: int
    share: Interval
    chance: float
    p: float

    @property
    def beyond_chance(self) -> bool:
        """Whether both the interval and p (2.5 % of one tail, as the interval leaves) exclude chance."""
        return self.share.low > self.chance and self.p <= (1 - LEVEL) / 2


@dataclass(frozen=True)
class Overlaps:
    """Overlaps of stores' lowest rows with each other, and with what simple baselines pick."""

    by: str
    rate: float
    rows: int
    stores: Sequence[str]
    between_models: Sequence[Overlap]
    with_baselines: Sequence[Overlap]
    mean: Interval
    """Mean over the pairs of models."""
    chance: float
    margins: Mapping[str, baselines.Margin]
    """How far the mean lies above that of the models with each baseline."""


def overlap(*stores: StudySource, by: str = "seam_contrast", rate: float = 0.2) -> StudyResult:
    """Compare the rows that stores of different models score lowest, pair by pair, with chance and with baselines.

    Only rows that every store scores are compared. A store's lowest set is its lowest ⌈rate · n⌉ rows; of a `seam_*`
    column only rows below 0. Ties are broken at random (seeded). Overlap is 2|A∩B| / (|A| + |B|), which is |A∩B| / |A|
    for sets of one size. Its interval is a bootstrap over rows, its p-value one-sided and hypergeometric; neither is
    adjusted for how many pairs there are, and a pair is said to share more than chance where both say so.
    A table of counts, as the gold world writes, is read too: its intervals are Wilson's, and it has no baselines.

    Args:
        stores: Stores of the same rows; or tables with a pair of models a row: `first`, `second`, `seed`, `rows`
            scored by both, `lowest_first` and `lowest_second` (rows in each lowest set), `shared` (rows in both).
        by: The column to rank rows by.
        rate: The share of rows that is low.

    Raises:
        StudyError: There are fewer than two stores, they lack the column or hold other rows, or nothing is scored.
    """
    if stores and not any(map(sources.is_store, stores)):
        counts = _read_counts(stores)
        counted = measure_counts(counts)
        return result("overlap", _counts_table(counts, counted), _counts_figure(counted), _counts_finding(counted))
    overlaps = measure(_read(stores, by, rate))
    return result("overlap", _table(overlaps), _figure(overlaps), _finding(overlaps))


def _read(stores: Sequence[StudySource], by: str, rate: float) -> LowRows:
    study = "overlap"
    if len(stores) < 2:
        raise StudyError(f"{study} compares two or more stores; it got {len(stores)}")
    if not 0 < rate < 1:
        raise StudyError(f"{study}: the rate is {rate:g}; it lies between 0 and 1")
    names = _names(stores)
    tables = [_scores(study, store, by) for store in stores]
    for name, table in zip(names, tables, strict=True):
        if not table.select(["row_id", "prompt"]).equals(tables[0].select(["row_id", "prompt"])):
            raise StudyError(f"{study}: {name} holds other rows than {names[0]}; compare stores made from one source")
    columns = [[math.nan if v is None else v for v in table["value"].to_pylist()] for table in tables]
    values = np.array(columns, np.float64)  # (stores, rows)
    # (rows,): a row that one store does not score is low in none.
    scored = np.isfinite(values).all(axis=0)
    n = int(scored.sum())
    if n < 2:
        raise StudyError(f"{study}: fewer than two rows have {by} in every store; run the recipes to their end")
    size = math.ceil(rate * n)
    models = {
        name: lowest(column, size, by.startswith("seam_"), i)
        for i, (name, column) in enumerate(zip(names, values[:, scored], strict=True))
    }
    empty_store = next((name for name, members in models.items() if not members.any()), None)
    if empty_store is not None:
        raise StudyError(f"{study}: no row of {empty_store} has {by} below 0: nothing was misjudged there")
    return LowRows(by, rate, models, _picked(tables[0].filter(pa.array(scored)), size))


def _names(stores: Sequence[StudySource]) -> list[str]:
    titles = [sources.title(store) for store in stores]
    return [title if titles.count(title) == 1 else f"{title} ({i})" for i, title in enumerate(titles, 1)]


def _scores(study: str, source: StudySource, by: str) -> pa.Table:
    store = sources.open_store(source, study)
    if by not in {column.name for column in store.columns() if column.stale is None}:
        scores = [c.name for c in store.columns() if c.name.startswith(("seam_", "baseline_")) or c.name == "rer"]
        raise StudyError(
            f"{study}: {sources.title(source)} has no column {by!r}; it has {', '.join(scores) or 'no scores'}"
        )
    return views.query(
        store, f"SELECT row_id, prompt, response, {views.quoted(by)}::DOUBLE AS value FROM rows ORDER BY row_id"
    )


def lowest(values: Doubles, size: int, below_zero: bool, seed: int) -> Members:
    """Mark the `size` lowest values, ties broken at random; with `below_zero` only those below 0.

    Each store has a seed of its own: broken alike, ties would overlap by themselves.
    """
    # SEAM is exactly 0 for many rows; in the order of rows these would be one set in every store.
    tie_break = np.random.default_rng(seed).random(len(values))
    members = np.zeros(len(values), bool)
    # np.lexsort sorts by its last key first.
    members[np.lexsort((tie_break, values))[:size]] = True
    marked: Members = members & (values < 0) if below_zero else members
    return marked


def _picked(table: pa.Table, size: int) -> dict[str, Members]:
    """Return the rows that simple baselines pick by their responses."""
    scores = baselines.scores([text or "" for text in table["response"].to_pylist()])
    return {
        "longest": lowest(-scores["length"], size, False, 101),
        "shortest": lowest(scores["length"], size, False, 102),
        "repetitive": lowest(scores["repetition"], size, False, 103),
    }


def measure(low: LowRows) -> Overlaps:
    """Measure what each pair of models, and each model and baseline, have in common."""
    pairs = list(combinations(low.models, 2))
    all_pairs = pairs + [(model, kind) for kind in low.baselines for model in low.models]
    shared = _Shared({**low.models, **low.baselines}, all_pairs)
    overlaps = [shared.overlap(i) for i in range(len(all_pairs))]
    model_pairs = list(range(len(pairs)))
    margins = {}
    for kind, description in _BASELINES.items():
        with_kind = [i for i, (_, second) in enumerate(all_pairs) if second == kind]
        gap = shared.difference(model_pairs, with_kind)
        margins[description] = baselines.Margin(percent(shared.mean(with_kind)), gap)
    return Overlaps(
        low.by,
        low.rate,
        shared.rows,
        list(low.models),
        overlaps[: len(pairs)],
        overlaps[len(pairs) :],
        shared.mean(model_pairs),
        float(np.mean([pair.chance for pair in overlaps[: len(pairs)]])),
        margins,
    )


class _Shared:
    """What pairs of sets have in common, 2|A∩B| / (|A| + |B|), resampled over the rows for all pairs at once."""

    def __init__(self, sets: Mapping[str, Members], pairs: Sequence[tuple[str, str]]) -> None:
        self._sets, self._pairs = sets, pairs
        self.rows = len(next(iter(sets.values())))
        # (rows, pairs): 1 where a row is in both sets, and half the number of sets that it is in.
        in_both = np.stack([sets[model] & sets[partner] for model, partner in pairs], axis=1).astype(np.float64)
        size = np.stack([(sets[model].astype(np.float64) + sets[partner]) / 2 for model, partner in pairs], axis=1)
        # (draws, 2 · pairs): means over the same drawn rows for all pairs, so that differences of pairs are paired.
        draws = resampled(np.concatenate([in_both, size], axis=1))
        with np.errstate(invalid="ignore"):
            # A draw may hold no row of two small sets, 0 / 0: it has no overlap, and is left out of the percentiles.
            self._draws = draws[:, : len(pairs)] / draws[:, len(pairs) :]  # (draws, pairs)
        self._shares = in_both.sum(axis=0) / size.sum(axis=0)  # (pairs,)

    @cached_property
    def _sizes(self) -> dict[str, int]:
        return {name: int(members.sum()) for name, members in self._sets.items()}

    def overlap(self, index: int) -> Overlap:
        """Return what one pair has in common."""
        model, partner = self._pairs[index]
        size_first, size_second = float(self._sizes[model]), float(self._sizes[partner])
        common = int((self._sets[model] & self._sets[partner]).sum())
        p = beyond_chance(common, int(size_first), int(size_second), self.rows)
        return Overlap(
            model,
            partner,
            int(size_first),
            int(size_second),
            self.mean([index]),
            2 * size_first * size_second / self.rows / (size_first + size_second),
            p,
        )

    def mean(self, pairs: Sequence[int]) -> Interval:
        """Return the mean overlap of some of the pairs."""
        return percentiles(float(self._shares[pairs].mean()), self._draws[:, pairs].mean(axis=1), self.rows)

    def difference(self, pairs: Sequence[int], reference_pairs: Sequence[int]) -> Interval:
        """Return how far the mean overlap of some pairs lies above that of others."""
        draws = self._draws[:, pairs].mean(axis=1) - self._draws[:, reference_pairs].mean(axis=1)
        return percentiles(float(self._shares[pairs].mean() - self._shares[reference_pairs].mean()), draws, self.rows)


def _table(overlaps: Overlaps) -> pa.Table:
    pairs = [*overlaps.between_models, *overlaps.with_baselines]
    columns: dict[str, Sequence[object]] = {
        "first": [pair.first for pair in pairs],
        "second": [pair.second for pair in pairs],
        "kind": ["models"] * len(overlaps.between_models) + ["ruler"] * len(overlaps.with_baselines),
        "rows": [overlaps.rows] * len(pairs),
        "lowest_first": [pair.size_first for pair in pairs],
        "lowest_second": [pair.size_second for pair in pairs],
        "chance": [pair.chance for pair in pairs],
        "p_beyond_chance": [pair.p for pair in pairs],
    }
    return tabulate(_COLUMNS, columns, {"overlap": [pair.share for pair in pairs]})


def _figure(overlaps: Overlaps) -> Figure:
    panels = {
        "Between models": [
            figure.Dot(f"{pair.first} – {pair.second}", in_percent(pair.share), False, 100 * pair.chance)
            for pair in overlaps.between_models
        ],
        "With simple baselines": [
            figure.Dot(f"{pair.first} – {_BASELINES[pair.second]}", in_percent(pair.share), True, 100 * pair.chance)
            for pair in overlaps.with_baselines
        ],
    }
    return figure.dots(
        panels,
        f"overlap of the lowest {100 * overlaps.rate:g} % by {overlaps.by} (%)",
        f"{overlaps.rows:,} rows scored by all. Bars: 95 % bootstrap intervals over rows; orange ticks: overlap by chance.",
        unit="rows",
    )


def _finding(overlaps: Overlaps) -> str:
    pairs = overlaps.between_models
    beyond_chance = pairs[0].beyond_chance if len(pairs) == 1 else overlaps.mean.low > overlaps.chance
    verb = "share" if beyond_chance else "are not shown to share more than chance:"
    names = " and ".join(overlaps.stores) if len(pairs) == 1 else f"{len(overlaps.stores)} stores"
    line = f"{names} {verb} {percent(overlaps.mean)} of their lowest {100 * overlaps.rate:g} % by {overlaps.by}"
    line += f" on average of {len(pairs)} pairs" if len(pairs) > 1 else ""
    line += f", {100 * overlaps.chance:.1f} % by chance ({overlaps.rows:,} rows)"
    return line + baselines.caveat(overlaps.margins)


@dataclass(frozen=True)
class Counts:
    """Overlaps that were counted elsewhere: a pair of models a row."""

    first: Sequence[str]
    second: Sequence[str]
    seeds: Sequence[str]
    columns: Mapping[str, Sequence[object]]
    """The columns of counts as they were read."""
    values: Mapping[str, Doubles]
    """The same as doubles."""


@dataclass(frozen=True)
class CountedOverlaps:
    """The overlaps of a table of counts."""

    pairs: Sequence[Overlap]
    labels: Sequence[str]
    mean: Interval
    chance: float


def _read_counts(tables: Sequence[StudySource]) -> Counts:
    study = "overlap"
    table = sources.read(study, tables, ["first", "second", "seed", *_COUNTS])
    first_models, second_models, seeds = (sources.names(study, table, name) for name in ("first", "second", "seed"))
    values = {name: sources.numbers(study, table, name) for name in _COUNTS}
    if any((column % 1 != 0).any() or (column > 2**53).any() for column in values.values()):
        raise StudyError(f"{study}: {', '.join(_COUNTS)} are counts of rows; check the table")
    rows, sizes_first, sizes_second, shared = values.values()
    # Both sets lie among the rows, and what they share in each of them.
    fits = (
        (shared >= 0)
        & (shared <= np.minimum(sizes_first, sizes_second))
        & (np.maximum(sizes_first, sizes_second) <= rows)
        & (sizes_first + sizes_second > 0)
    )
    if not fits.all():
        raise StudyError(f"{study}: a pair shares more rows than are low, or none are low; check the table")
    return Counts(first_models, second_models, seeds, {name: table[name].to_pylist() for name in _COUNTS[:3]}, values)


def measure_counts(counts: Counts) -> CountedOverlaps:
    """Return the overlap of each pair, with Wilson's interval, and their mean over seeds."""
    pairs = []
    for model, other_model, rows, size_first, size_second, shared in zip(
        counts.first, counts.second, *(column.tolist() for column in counts.values.values()), strict=True
    ):
        size = (size_first + size_second) / 2
        # A set of one row and an empty one have a mean size of half a row, which has no interval.
        share = wilson(shared / size, max(1, round(size)))
        p = beyond_chance(int(shared), int(size_first), int(size_second), int(rows))
        pairs.append(
            Overlap(
                model,
                other_model,
                int(size_first),
                int(size_second),
                share,
                2 * size_first * size_second / rows / (size_first + size_second),
                p,
            )
        )
    shares = np.array([pair.share.estimate for pair in pairs])
    by_seed = [float(shares[[s == seed for s in counts.seeds]].mean()) for seed in set(counts.seeds)]
    # Pairs of one seed share its models: the interval is over the means of seeds, the estimate over all pairs.
    average = pairs[0].share if len(pairs) == 1 else mean(sorted(by_seed))._replace(estimate=float(shares.mean()))
    many_seeds = len(set(counts.seeds)) > 1
    labels = [
        f"{pair.first} – {pair.second}" + (f", seed {seed}" if many_seeds else "")
        for pair, seed in zip(pairs, counts.seeds, strict=True)
    ]
    return CountedOverlaps(pairs, labels, average, float(np.mean([pair.chance for pair in pairs])))


def _counts_table(counts: Counts, counted: CountedOverlaps) -> pa.Table:
    columns: dict[str, Sequence[object]] = {
        **{"first": counts.first, "second": counts.second, "seed": counts.seeds},
        "kind": ["models"] * len(counted.pairs),
        **counts.columns,
        "chance": [pair.chance for pair in counted.pairs],
        "p_beyond_chance": [pair.p for pair in counted.pairs],
    }
    return tabulate(_COLUMNS, columns, {"overlap": [pair.share for pair in counted.pairs]})


def _counts_figure(counted: CountedOverlaps) -> Figure:
    dots = [
        figure.Dot(label, in_percent(pair.share), False, 100 * pair.chance)
        for label, pair in zip(counted.labels, counted.pairs, strict=True)
    ]
    return figure.dots(
        {"Between models": dots},
        "overlap of the lowest rows (%)",
        "Bars: 95 % Wilson intervals; orange ticks: overlap by chance.",
        unit="rows",
    )


def _counts_finding(counted: CountedOverlaps) -> str:
    beyond, count = sum(pair.beyond_chance for pair in counted.pairs), len(counted.pairs)
    return (
        f"models share {percent(counted.mean)} of their lowest rows on average of {count} pairs, "
        f"{100 * counted.chance:.1f} % by chance; {beyond} of {count} pairs share more than chance"
    )


OVERLAP = Study(
    "overlap",
    "whether different models find the same rows low, against chance and simple baselines",
    "two or more stores of the same rows, or first, second, seed, rows, lowest_first, lowest_second, shared",
    _COLUMNS,
    overlap,
)
