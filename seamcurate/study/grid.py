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
from seamcurate.study.statistics import NOTHING, BySeed, Interval, difference, mean, percent, shown

_SIGNED = "+.3f"
_LEVELS = 100
_HOME = {"policy": "sft", "reward": "preference"}


def saturation(*sources: Data) -> Finding:
    """Show quality over a grid of policies and reward models, and compare each axis' lower half's gain with the upper's.

    Columns: `policy` (SFT steps), `reward` (preference pairs), `seed`, `quality` of the policy after RL. An axis
    saturates when quality gains from its first level to the middle one, is not shown to gain from there to the last, and
    the second gain is shown to be the smaller. Levels are averaged within a seed over what of the other axis has runs with
    all of them, then compared by t intervals paired by seed: one seed has no verdict.

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
    names = [list(map(_level, levels)) for levels in (policies, rewards)]
    # A level that lacks the best cells would look worse than the others for that alone.
    whole_policies = [p for p in policies if all((p, r) in runs for r in rewards)]
    whole_rewards = [r for r in rewards if all((p, r) in runs for p in policies)]
    by_reward = {r: _averaged([runs[p, r] for p in whole_policies]) for r in rewards if whole_policies}
    by_policy = {p: _averaged([runs[p, r] for r in whole_rewards]) for p in policies if whole_rewards}
    drawn = figure.heat(
        values,
        names[0],
        names[1],
        ("reward model (preference pairs)", "policy (SFT steps)", "quality after RL (gold measure)", "quality"),
        {
            "By reward model": ("preference pairs", [_marginal(by_reward)]),
            "By policy": ("SFT steps", [_marginal(by_policy)]),
        },
        f"Left: means of {results.seeds(runs.values())}. Right: averaged over what of the other axis has runs with all "
        "levels; bands: 95 % Student intervals over seeds.",
    )
    lines = [
        _halves(title, levels)
        for title, levels, named in (("reward model", by_reward, rewards), ("policy", by_policy, policies))
        if len(named) > 2
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
    ordered = sorted(kept, key=lambda k: k[2].estimate)
    lost = [(model, data) for model, data, ratio in ordered if ratio.high < 1]
    verdict = "no loss is told apart from none"
    if lost:
        verb = "most is lost by" if lost[0] == ordered[0][:2] else "a loss is shown by"
        verdict = f"{verb} the {lost[0][0]} model on {lost[0][1]}"
    return Finding(study, out, drawn, f"{', '.join(parts)}: {verdict}")


def _halves(axis: str, levels: dict[float, BySeed]) -> str:
    if not levels:
        return f"{axis}: no level of the other axis has runs with all of its levels; fill the grid"
    names = list(levels)
    first, middle, last = names[0], names[(len(names) - 1) // 2], names[-1]
    early = difference(levels[middle], levels[first]).interval
    late = difference(levels[last], levels[middle]).interval
    if math.isnan(early.low) or math.isnan(late.low):
        verdict = "one seed does not tell whether quality saturates"
    elif late.above_zero:
        verdict = "quality still rises"
    elif early.above_zero and late.below_zero:
        verdict = "quality falls after its rise"
    elif early.above_zero:
        # That a gain is not shown does not show that there is none: it has to be smaller than the first.
        slower = _slower(levels[first], levels[middle], levels[last])
        verdict = "quality saturates" if slower.above_zero else "quality rises, and is not shown to saturate"
    else:
        verdict = "quality falls" if early.below_zero else "quality is not shown to rise"
    return (
        f"{axis}: {verdict}: {shown(early, _SIGNED)} from {_level(first)} to {_level(middle)}, "
        f"{shown(late, _SIGNED)} from there to {_level(last)}"
    )


def _slower(first: BySeed, middle: BySeed, last: BySeed) -> Interval:
    """Return how much more quality gains from first to middle than from middle to last, within a seed."""
    shared = sorted(set(first) & set(middle) & set(last))
    second = {seed: last[seed] - middle[seed] for seed in shared}
    return difference({seed: middle[seed] - first[seed] for seed in shared}, second).interval if shared else NOTHING


def _level(value: float) -> str:
    """Write a count of steps or pairs."""
    return f"{value:,.0f}" if value.is_integer() else f"{value:,g}"


def _averaged(runs: list[BySeed]) -> BySeed:
    """Average over runs within each seed that all of them have; without one, over what there is."""
    shared = set.intersection(*(set(by) for by in runs)) or set.union(*(set(by) for by in runs))
    return {seed: float(np.mean([by[seed] for by in runs if seed in by])) for seed in sorted(shared)}


def _marginal(levels: dict[float, BySeed]) -> figure.Curve:
    return figure.Curve("", list(range(len(levels))), [mean(list(by.values())) for by in levels.values()])


def _ratio(by: BySeed, home: BySeed) -> Interval:
    return Interval(float(np.mean(list(by.values())) / np.mean(list(home.values()))), math.nan, math.nan, 0)
