"""Where better policies or reward models stop helping (SEAM §2).

saturation   policy, reward, seed, quality      `policy` and `reward` are steps or pairs trained on
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import pyarrow as pa

from seamcurate.errors import StudyError
from seamcurate.study import figure, sources
from seamcurate.study.results import Study, StudyResult, result, tabulate
from seamcurate.study.sources import StudySource
from seamcurate.study.statistics import NOTHING, BySeed, Doubles, Interval, MethodGap, difference, mean, shown

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_SIGNED = "+.3f"
_LEVELS = 100
_COLUMNS = {
    "policy": "SFT steps of the policy",
    "reward": "the reward model: its name, or the pairs it was trained on",
    "seeds": "runs averaged",
    "quality": "mean over seeds",
}


@dataclass(frozen=True)
class Halves:
    """What one axis gains from its first level to the middle one, and from there to the last."""

    first: float
    middle: float
    last: float
    early: Interval
    late: Interval
    slowdown: Interval
    """How much more quality gains in the first half than in the second, within a seed."""


@dataclass(frozen=True)
class Grid:
    """Quality over policies and reward models."""

    cells: Mapping[tuple[float, float], BySeed]
    """Quality by seed of each pair of a policy and a reward model."""
    by_policy: Mapping[float, BySeed]
    """Averages over the reward models that every policy was trained with; empty where there is none."""
    by_reward: Mapping[float, BySeed]
    policies: Sequence[float]
    rewards: Sequence[float]
    halves: Mapping[str, Halves | None]
    """By axis of three levels or more; None where no level of the other axis has runs with all of its levels."""

    @property
    def means(self) -> dict[tuple[float, float], Interval]:
        """Each cell's mean over seeds, by policy, then reward model."""
        return {cell: mean(list(by_seed.values())) for cell, by_seed in sorted(self.cells.items())}


def saturation(*tables: StudySource) -> StudyResult:
    """Show quality over a grid of policies and reward models, and compare the gain in each axis' two halves.

    Columns: `policy` (SFT steps), `reward` (preference pairs), `seed`, `quality` of the policy after RL. An axis
    saturates when quality gains from its first level to the middle one, is not shown to gain from there to the last, and
    the second gain is shown to be the smaller. Levels are averaged within a seed over the levels of the other axis that
    have runs with all of them, then compared by t intervals paired by seed: one seed has no verdict.

    Raises:
        StudyError: The sources cannot be read, or both axes have fewer than three levels.
    """
    grid = measure(_read(tables))
    return result("saturation", _table(grid), _figure(grid), _finding(grid))


def _read(tables: Sequence[StudySource]) -> dict[tuple[float, float], BySeed]:
    study = "saturation"
    table = sources.read(study, tables, ["policy", "reward", "seed", "quality"])
    for axis in ("policy", "reward"):
        sources.numbers(study, table, axis)
    runs = sources.by_seed(study, table, ["policy", "reward"])
    cells: dict[tuple[float, float], BySeed] = {(float(p), float(r)): by_seed for (p, r), by_seed in runs.items()}
    levels = [len({cell[axis] for cell in cells}) for axis in (0, 1)]
    if max(levels) > _LEVELS:
        raise StudyError(
            f"{study}: an axis has more than {_LEVELS} levels; give each policy and reward model one of a few"
        )
    if max(levels) < 3:
        raise StudyError(f"{study}: both axes have fewer than three levels; train more policies or reward models")
    return cells


def measure(cells: Mapping[tuple[float, float], BySeed]) -> Grid:
    """Average quality along both axes, and compare the gains of their halves."""
    policies, by_policy = _by_level(cells)
    # The same function averages over the first axis once the cells are turned.
    rewards, by_reward = _by_level({(reward, policy): by_seed for (policy, reward), by_seed in cells.items()})
    halves = {}
    if len(rewards) > 2:
        halves["reward model"] = _halves(by_reward) if by_reward else None
    if len(policies) > 2:
        halves["policy"] = _halves(by_policy) if by_policy else None
    return Grid(cells, by_policy, by_reward, policies, rewards, halves)


def _by_level(cells: Mapping[tuple[float, float], BySeed]) -> tuple[list[float], dict[float, BySeed]]:
    """Return the levels of a cell's first axis, and the average of each over the levels of the other axis.

    Only levels of the other axis that have runs with all levels count: a level without a run in the best cells would look
    worse than the others for that reason alone.
    """
    levels, others = sorted({level for level, _ in cells}), sorted({other for _, other in cells})
    complete = [other for other in others if all((level, other) in cells for level in levels)]
    return levels, {level: _averaged([cells[level, other] for other in complete]) for level in levels if complete}


def _averaged(runs: Sequence[BySeed]) -> BySeed:
    """Average over runs within each seed that all runs have; if none is in all, within each seed of any."""
    shared = set.intersection(*(set(by_seed) for by_seed in runs)) or set.union(*(set(by_seed) for by_seed in runs))
    return {seed: float(np.mean([by_seed[seed] for by_seed in runs if seed in by_seed])) for seed in sorted(shared)}


def _halves(levels: Mapping[float, BySeed]) -> Halves:
    axis = list(levels)
    # Of an even number of levels the lower middle one: the later half must not be the shorter.
    lowest, middle, highest = axis[0], axis[(len(axis) - 1) // 2], axis[-1]
    early, late = difference(levels[middle], levels[lowest]), difference(levels[highest], levels[middle])
    slowdown = _slowdown(levels[lowest], levels[middle], levels[highest])
    return Halves(lowest, middle, highest, early.interval, late.interval, slowdown.interval)


def _slowdown(lowest: BySeed, middle: BySeed, highest: BySeed) -> MethodGap:
    shared = sorted(set(lowest) & set(middle) & set(highest))
    if not shared:
        return MethodGap(NOTHING, math.nan, "none")
    # Positive where the first half gained more than the second.
    return difference(
        {seed: middle[seed] - lowest[seed] for seed in shared}, {seed: highest[seed] - middle[seed] for seed in shared}
    )


def _table(grid: Grid) -> pa.Table:
    means = grid.means
    columns: dict[str, Sequence[object]] = {
        "policy": [policy for policy, _ in means],
        "reward": [reward for _, reward in means],
        "seeds": [interval.n for interval in means.values()],
    }
    return tabulate(_COLUMNS, columns, {"quality": list(means.values())})


def _figure(grid: Grid) -> Figure:
    # (policies, reward models); NaN where there is no run, which is drawn blank.
    values: Doubles = np.full((len(grid.policies), len(grid.rewards)), math.nan)
    for (policy, reward), interval in grid.means.items():
        values[grid.policies.index(policy), grid.rewards.index(reward)] = interval.estimate
    return figure.heat(
        values,
        [_level(policy) for policy in grid.policies],
        [_level(reward) for reward in grid.rewards],
        ("reward model (preference pairs)", "policy (SFT steps)", "quality after RL (gold measure)", "quality"),
        {
            "By reward model": ("preference pairs", [_curve(grid.by_reward)]),
            "By policy": ("SFT steps", [_curve(grid.by_policy)]),
        },
        f"Left: means of {sources.seed_count(grid.cells.values())}. Right: averaged over what of the other axis has runs with all "
        "levels; bands: 95 % Student intervals over seeds.",
    )


def _curve(levels: Mapping[float, BySeed]) -> figure.Curve:
    # Levels at equal distances: they grow by factors, from 50 to 100,000.
    return figure.Curve("", list(range(len(levels))), [mean(list(by_seed.values())) for by_seed in levels.values()])


def _finding(grid: Grid) -> str:
    return "; ".join(f"{axis}: {_verdict(halves)}" for axis, halves in grid.halves.items())


def _verdict(halves: Halves | None) -> str:
    if halves is None:
        return "no level of the other axis has runs with all of its levels; fill the grid"
    early, late = halves.early, halves.late
    if math.isnan(early.low) or math.isnan(late.low):
        verdict = "one seed does not tell whether quality saturates"
    elif late.above_zero:
        verdict = "quality still rises"
    elif early.above_zero and late.below_zero:
        verdict = "quality falls after its rise"
    elif early.above_zero:
        # A gain that is not shown may exist all the same: to saturate, it has to be shown to be smaller than the first.
        verdict = "quality saturates" if halves.slowdown.above_zero else "quality rises, and is not shown to saturate"
    else:
        verdict = "quality falls" if early.below_zero else "quality is not shown to rise"
    return (
        f"{verdict}: {shown(early, _SIGNED)} from {_level(halves.first)} to {_level(halves.middle)}, "
        f"{shown(late, _SIGNED)} from there to {_level(halves.last)}"
    )


def _level(value: float) -> str:
    """Write a count of steps or pairs."""
    return f"{value:,.0f}" if value.is_integer() else f"{value:,g}"


SATURATION = Study(
    "saturation",
    "where better policies and reward models stop improving quality",
    "policy, reward, seed, quality",
    _COLUMNS,
    saturation,
)
