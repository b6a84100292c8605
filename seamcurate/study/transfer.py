"""Whether policies and reward models keep their quality on data they were not trained for (SEAM App. C, Fig. 6).

sanity         model, data, seed, quality
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, TypeAlias

import numpy as np
import pyarrow as pa

from seamcurate.errors import StudyError
from seamcurate.step import finite
from seamcurate.study import figure, sources
from seamcurate.study.results import Study, StudyResult, result, tabulate
from seamcurate.study.sources import StudySource
from seamcurate.study.statistics import BySeed, Interval, mean, percent

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_HOME = {"policy": "sft", "reward": "preference"}
"""The data that each kind of model was trained for."""
_COLUMNS = {
    "model": "the model measured",
    "data": "the data the model was measured on",
    "seeds": "runs averaged",
    "quality": "mean over seeds",
    "of_home": "quality as a multiple of that on the model's own data, within a seed",
}
_Runs: TypeAlias = Mapping[tuple[str, str], BySeed]
"""Quality by seed, by model and data."""


@dataclass(frozen=True)
class Transfer:
    """One model's quality on one kind of data."""

    model: str
    data: str
    quality: Interval
    ratio: Interval
    """Quality as a multiple of the quality on the model's own data."""

    @property
    def at_home(self) -> bool:
        """Whether the data are those the model was trained for."""
        return self.data == _HOME[self.model]


def sanity(*tables: StudySource) -> StudyResult:
    """Compare how policies and reward models do on the data they were trained for with how they do on other data.

    Columns: `model` (`policy` or `reward`), `data` (`sft`, `preference`, `rl`), `seed`, `quality` (a policy's
    rating or a reward model's accuracy, above 0). A policy's own data are `sft`, a reward model's are `preference`.

    Raises:
        StudyError: The sources cannot be read, or a model was not measured on its own and on other data.
    """
    transfers = measure(_read(tables))
    return result("sanity", _table(transfers), _figure(transfers), _finding(transfers))


def _read(tables: Sequence[StudySource]) -> _Runs:
    study = "sanity"
    table = sources.read(study, tables, ["model", "data", "seed", "quality"])
    sources.choices(study, "model", sources.names(study, table, "model"), list(_HOME))
    for key in ("model", "data"):
        lowered = pa.array([name.lower() for name in sources.names(study, table, key)], pa.string())
        table = table.set_column(table.column_names.index(key), key, lowered)
    return {
        (model, data): by_seed for (model, data), by_seed in sources.by_seed(study, table, ["model", "data"]).items()
    }


def measure(runs: _Runs) -> list[Transfer]:
    """Divide each model's quality on any data by that on its own data, within a seed.

    Raises:
        StudyError: A model has no quality above 0 on its own data, or none was measured on other data.
    """
    transfers = []
    for (model, data), by_seed in runs.items():
        home = runs.get((model, _HOME[model]))
        if home is None or min(home.values()) <= 0:
            raise StudyError(f"sanity: the {model} has no quality above 0 on {_HOME[model]!r}, its own data; add it")
        ratio = _ratio(by_seed, home)
        if finite(ratio.estimate) is None:
            raise StudyError(f"sanity: the {model}'s quality on {_HOME[model]!r} is too near 0 to divide by")
        transfers.append(Transfer(model, data, mean(list(by_seed.values())), ratio))
    if all(transfer.at_home for transfer in transfers):
        raise StudyError("sanity: no model was measured on other data than its own; add `rl` rows")
    return transfers


def _ratio(by_seed: BySeed, home: BySeed) -> Interval:
    """Return the mean ratio within the seeds that both have; without one, the ratio of means, which has no interval."""
    shared = sorted(set(by_seed) & set(home))
    if shared:
        return mean([by_seed[seed] / home[seed] for seed in shared])
    return Interval(float(np.mean(list(by_seed.values())) / np.mean(list(home.values()))), math.nan, math.nan, 0)


def _table(transfers: Sequence[Transfer]) -> pa.Table:
    columns: dict[str, Sequence[object]] = {
        "model": [transfer.model for transfer in transfers],
        "data": [transfer.data for transfer in transfers],
        "seeds": [transfer.quality.n for transfer in transfers],
    }
    intervals = {"quality": [t.quality for t in transfers], "of_home": [t.ratio for t in transfers]}
    return tabulate(_COLUMNS, columns, intervals)


def _figure(transfers: Sequence[Transfer]) -> Figure:
    panels: dict[str, list[figure.Dot]] = {}
    for transfer in transfers:
        dot = figure.Dot(transfer.data, transfer.ratio._replace(n=transfer.quality.n), transfer.at_home)
        panels.setdefault(f"{transfer.model.capitalize()} model", []).append(dot)
    return figure.dots(
        panels,
        "quality relative to the model's own data (1 = as good)",
        "Dots: mean ratio within a seed; bars: 95 % Student intervals. Hollow: the model's own data.",
        (1.0, "own data"),
        "seeds",
    )


def _finding(transfers: Sequence[Transfer]) -> str:
    away = [transfer for transfer in transfers if not transfer.at_home]
    shares = [f"the {t.model} model keeps {percent(t.ratio)} of its quality on {t.data}" for t in away]
    ascending = sorted(away, key=lambda transfer: transfer.ratio.estimate)
    lost = [transfer for transfer in ascending if transfer.ratio.high < 1]
    if not lost:
        return f"{', '.join(shares)}: no loss is told apart from none"
    verb = "most is lost by" if lost[0] is ascending[0] else "a loss is shown by"
    return f"{', '.join(shares)}: {verb} the {lost[0].model} model on {lost[0].data}"


SANITY = Study(
    "sanity",
    "whether policies and reward models keep their quality on data they were not trained for",
    "model, data, seed, quality",
    _COLUMNS,
    sanity,
)
