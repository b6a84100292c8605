"""Policies against reward models: where better ones stop helping, and whether each keeps its quality on other data.

saturation   policy, reward, seed, quality      SEAM §2; `policy` and `reward` are steps or pairs trained on
sanity       model, data, seed, quality         SEAM App. C, Fig. 6
"""

from __future__ import annotations

import math

import numpy as np
import pyarrow as pa

from seamcurate.errors import StudyError
from seamcurate.step import finite
from seamcurate.study import figure, results
from seamcurate.study.results import Data, Finding
from seamcurate.study.statistics import BySeed, Interval, difference, mean, percent, shown

_SIGNED = "+.3f"
_LEVELS = 100
_HOME = {"policy": "sft", "reward": "preference"}


def saturation(*sources: Data) -> Finding:
    """Show quality over a grid of policies and reward models, and compare each axis' lower half's gain with the upper's.

    Columns: `policy` (SFT steps), `reward` (preference pairs), `seed`, `quality` of the policy after RL. An axis
    saturates when quality gains from its first level to the middle one, and not from there to the last; levels are
    averaged over the other axis within a seed, then compared by a t interval paired by seed: one seed has no verdict.

    Raises:
        StudyError: The sources cannot be read, or both axes have fewer than three levels.
    """
    study = "saturation"
    table = results.read(study, sources, ["policy", "reward", "seed", "quality"])
    for axis in ("policy", "reward"):
        results.numbers(study, table, axis)
    runs = {(float(p), float(r)): by for (p, r), by in results.by_seed(study, table, ["policy", "reward"]).items()}
    policies, rewards = sorted({p for p, _ in runs}), sorted({r for _, r in runs})
    if max(len(policies), len(rewards)) > _LEVELS:
        raise StudyError(
            f"{study}: an axis has more than {_LEVELS} levels; give each policy and reward model one of a few"
        )
    if len(policies) < 3 and len(rewards) < 3:
        raise StudyError(f"{study}: both axes have fewer than three levels; train more policies or reward models")
    cells = [(p, r, mean(list(by.values()))) for (p, r), by in sorted(runs.items())]
    out = results.tabulate(
        {"policy": [p for p, _, _ in cells], "reward": [r for _, r, _ in cells], "seeds": [c.n for _, _, c in cells]},
        {"quality": [c for _, _, c in cells]},
    )
    values = np.full((len(policies), len(rewards)), math.nan)
    for p, r, cell in cells:
        values[policies.index(p), rewards.index(r)] = cell.estimate
    names = [[f"{level:,g}" for level in levels] for levels in (policies, rewards)]
    by_reward = {r: _averaged([by for (_, other), by in runs.items() if other == r]) for r in rewards}
    by_policy = {p: _averaged([by for (other, _), by in runs.items() if other == p]) for p in policies}
    drawn = figure.heat(
        values,
        names[0],
        names[1],
        ("reward model (preference pairs)", "policy (SFT steps)", "quality after RL (gold measure)", "quality"),
        {
            "By reward model": ("preference pairs", [_marginal(by_reward)]),
            "By policy": ("SFT steps", [_marginal(by_policy)]),
        },
        f"Left: means of {results.seeds(runs.values())}. Right: averaged over the other "
        "axis; bands: 95 % Student intervals over seeds.",
    )
    lines = [
        _halves(title, levels)
        for title, levels in (("reward model", by_reward), ("policy", by_policy))
        if len(levels) > 2
    ]
    return Finding(study, out, drawn, "; ".join(lines))


def sanity(*sources: Data) -> Finding:
    """Compare how policies and reward models do on the data they were trained for with how they do on the other data.

    Columns: `model` (`policy` or `reward`), `data` (`sft`, `preference`, `rl`), `seed`, `quality` (a policy's
    rating or a reward model's accuracy, above 0). The home of a policy is `sft`, that of a reward model `preference`.

    Raises:
        StudyError: The sources cannot be read, or a model was not measured at home and elsewhere.
    """
    study = "sanity"
    table = results.read(study, sources, ["model", "data", "seed", "quality"])
    results.chosen(study, "model", results.names(study, table, "model"), list(_HOME))
    for key in ("model", "data"):
        folded = pa.array([name.lower() for name in results.names(study, table, key)], pa.string())
        table = table.set_column(table.column_names.index(key), key, folded)
    runs = {(model, data): by for (model, data), by in results.by_seed(study, table, ["model", "data"]).items()}
    rows, kept = [], []
    for (model, data), by in runs.items():
        home = runs.get((model, _HOME[model]))
        if home is None or min(home.values()) <= 0:
            raise StudyError(f"{study}: the {model} has no quality above 0 on {_HOME[model]!r}, its own data; add it")
        shared = sorted(set(by) & set(home))
        ratios = mean([by[s] / home[s] for s in shared]) if shared else _ratio(by, home)
        if finite(ratios.estimate) is None:
            raise StudyError(f"{study}: the {model}'s quality on {_HOME[model]!r} is too near 0 to divide by")
        rows.append((model, data, mean(list(by.values())), ratios))
        if data != _HOME[model]:
            kept.append((model, data, ratios))
    if not kept:
        raise StudyError(f"{study}: no model was measured on other data than its own; add `rl` rows")
    out = results.tabulate(
        {"model": [r[0] for r in rows], "data": [r[1] for r in rows], "seeds": [r[2].n for r in rows]},
        {"quality": [r[2] for r in rows], "of_home": [r[3] for r in rows]},
    )
    panels = {
        f"{model.capitalize()} model": [
            figure.Dot(data, ratio._replace(n=quality.n), data == _HOME[model])
            for m, data, quality, ratio in rows
            if m == model
        ]
        for model in dict.fromkeys(r[0] for r in rows)
    }
    drawn = figure.dots(
        panels,
        "quality relative to the model's own data (1 = as good)",
        "Dots: mean ratio within a seed; bars: 95 % Student intervals. Hollow: the model's own data.",
        (1.0, "own data"),
        "seeds",
    )
    parts = [f"the {model} model keeps {percent(ratio)} of its quality on {data}" for model, data, ratio in kept]
    worst = min(kept, key=lambda k: k[2].estimate)
    lost = worst[2]._replace(estimate=1 - worst[2].estimate, low=1 - worst[2].high, high=1 - worst[2].low)
    verdict = (
        f"most is lost by the {worst[0]} model on {worst[1]}" if lost.above_zero else "no loss is told apart from none"
    )
    return Finding(study, out, drawn, f"{', '.join(parts)}: {verdict}")


def _halves(axis: str, levels: dict[float, BySeed]) -> str:
    names = list(levels)
    first, middle, last = names[0], names[(len(names) - 1) // 2], names[-1]
    early = difference(levels[middle], levels[first]).interval
    late = difference(levels[last], levels[middle]).interval
    if math.isnan(early.low) or math.isnan(late.low):
        verdict = "one seed does not tell whether quality saturates"
    elif late.above_zero:
        verdict = "quality still rises"
    elif early.above_zero:
        verdict = "quality falls after its rise" if late.below_zero else "quality saturates"
    else:
        verdict = "quality does not rise"
    return (
        f"{axis}: {verdict}: {shown(early, _SIGNED)} from {first:,g} to {middle:,g}, "
        f"{shown(late, _SIGNED)} from there to {last:,g}"
    )


def _averaged(runs: list[BySeed]) -> BySeed:
    """Average over runs within each seed that all of them have; without one, over what there is."""
    shared = set.intersection(*(set(by) for by in runs)) or set.union(*(set(by) for by in runs))
    return {seed: float(np.mean([by[seed] for by in runs if seed in by])) for seed in sorted(shared)}


def _marginal(levels: dict[float, BySeed]) -> figure.Curve:
    return figure.Curve("", list(range(len(levels))), [mean(list(by.values())) for by in levels.values()])


def _ratio(by: BySeed, home: BySeed) -> Interval:
    return Interval(float(np.mean(list(by.values())) / np.mean(list(home.values()))), math.nan, math.nan, 0)
