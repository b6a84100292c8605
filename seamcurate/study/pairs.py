"""Pairs of responses and who prefers which: people, reward models; always beside the rulers.

    mismatch     prompt, response_a, response_b, label          SEAM §3.1, App. D, Table 1
    preference   prompt, chosen, rejected, subset               RER Table 5 (RewardBench)

A reward model is right where it gives the better response the higher reward; equal rewards count one half. Intervals
are Wilson's, or bootstrapped over prompts where a prompt has several pairs.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import pyarrow as pa

from seamcurate.errors import StudyError
from seamcurate.models import RewardModel
from seamcurate.models.template import prompt_text
from seamcurate.progress import bar
from seamcurate.step import finite
from seamcurate.study import figure, results, ruler
from seamcurate.study.results import Data, Finding
from seamcurate.study.statistics import Doubles, Interval, bootstrap_mean, in_percent, percent, share

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_VERDICTS = {"a": 1.0, "b": -1.0, "tie": 0.0}
_CALLS = 64
_OVERALL = "all"
_PANELS = 11
"""Subsets a figure shows beside all pairs."""


class _Pairs(NamedTuple):
    """Judged pairs: for each scorer 1 where it is right, ½ where undecided, 0 where wrong, NaN where it cannot say."""

    prompts: list[str]
    subsets: list[str]
    models: dict[str, Doubles]
    rulers: dict[str, Doubles]


def mismatch(
    *sources: Data, rewards: Mapping[str, RewardModel] | None = None, by: str | None = None, rows: int | None = None
) -> Finding:
    """Measure how often reward models disagree with people on two policies' responses.

    Columns: `prompt`, `response_a`, `response_b`, `label` (`a`, `b` or `tie`, people's), optionally `context`, put
    before the prompt; or, with verdicts at hand, `reward` (the reward model's name), `prompt_id`, `human`, `model`
    (each `a`, `b` or `tie`, or 1 and 0 for `a` and `b`, or by how much `a` is better) and optionally `response_a` and `response_b`. Pairs
    that people call a tie are left out.

    Args:
        sources: Tables of pairs.
        rewards: The reward models by name, smallest first, where the table holds no verdicts.
        by: A column to divide the pairs by.
        rows: Judge so many pairs, drawn by a fixed seed.

    Raises:
        StudyError: The sources cannot be read, there is no reward model, or no decided pair.
    """
    study = "mismatch"
    table = results.read(study, sources, [])
    if {"reward", "model"} <= set(table.column_names):
        table = results.read(study, sources, ["reward", "prompt_id", "human", "model"])
        human = _verdicts(study, table, "human")
        decided = human != 0
        ties = len(human) - int(decided.sum())
        table, human = table.filter(pa.array(decided)), human[decided]
        pairs = _from_verdicts(study, table, ("response_a", "response_b"), _verdicts(study, table, "model"), human, by)
    else:
        table = _sampled(study, results.read(study, sources, ["prompt", "response_a", "response_b", "label"]), rows)
        human = _verdicts(study, table, "label")
        ties = int((human == 0).sum())
        table, human = table.filter(pa.array(human != 0)), human[human != 0]
        pairs = _from_models(study, table, ("response_a", "response_b"), human, rewards or {}, by)
    out, overall = _tabulate(study, pairs, "mismatch", 1.0)
    gaps = {name: _gaps(pairs, name) for name in pairs.models}
    first, last = next(iter(pairs.models)), list(pairs.models)[-1]
    found = overall[last]
    line = f"{last} disagrees with people on {percent(found)} of {_counted(pairs, last, 'decided pairs', ties)}"
    both, prompts = _known(pairs.models[first] - pairs.models[last], pairs.prompts)
    if len(pairs.models) > 1 and len(both):
        change = bootstrap_mean(both, prompts)
        verb = "falls" if change.below_zero else "grows" if change.above_zero else "does not demonstrably change"
        line += (
            f"; from {first} to {last} the mismatch {verb} ({percent(change, True)}, from {percent(overall[first])})"
        )
    drawn = _draw(pairs, out, "mismatch", "pairs decided against people (%)", by)
    return Finding(study, out, drawn, line + ruler.caveat(gaps[last]))


def preference(
    *sources: Data,
    rewards: Mapping[str, RewardModel] | None = None,
    by: str = "subset",
    rows: int | None = None,
) -> Finding:
    """Measure how often reward models, RER among them, score the chosen response above the rejected one, by subset.

    Columns: `prompt`, `chosen`, `rejected`, and `by` where it is there; or, with scores at hand, `reward` (a name),
    `prompt_id`, `score_chosen`, `score_rejected`, optionally `chosen` and `rejected` for the rulers.

    Args:
        sources: Tables of preferences.
        rewards: The reward models by name, where the table holds no scores.
        by: The column to divide the pairs by.
        rows: Judge so many pairs, drawn by a fixed seed.

    Raises:
        StudyError: The sources cannot be read, or there is no reward model.
    """
    study = "preference"
    table = results.read(study, sources, [])
    within = by if by in table.column_names else None
    if {"reward", "score_chosen"} <= set(table.column_names):
        table = results.read(study, sources, ["reward", "prompt_id", "score_chosen", "score_rejected"])
        gap = results.numbers(study, table, "score_chosen") - results.numbers(study, table, "score_rejected")
        pairs = _from_verdicts(study, table, ("chosen", "rejected"), gap, np.ones(len(table)), within)
    else:
        table = _sampled(study, results.read(study, sources, ["prompt", "chosen", "rejected"]), rows)
        pairs = _from_models(study, table, ("chosen", "rejected"), np.ones(len(table)), rewards or {}, within)
    out, overall = _tabulate(study, pairs, "accuracy", 0.0)
    best = max(pairs.models, key=lambda name: overall[name].estimate)
    line = f"{best} prefers the chosen response on {percent(overall[best])} of {_counted(pairs, best, 'pairs')}"
    others = [f"{name} {percent(overall[name])}" for name in pairs.models if name != best]
    line += f"; {', '.join(others)}" if others else ""
    worst = _worst(pairs, best)
    line += f"; worst on {worst[0]}, {percent(worst[1])}" if worst is not None else ""
    drawn = _draw(pairs, out, "accuracy", "pairs on which the chosen response scores higher (%)", within)
    return Finding(study, out, drawn, line + ruler.caveat(_gaps(pairs, best)))


def _counted(pairs: _Pairs, name: str, what: str, ties: int = 0) -> str:
    """Say how many pairs a model's share is of, and how many were left out why."""
    right = pairs.models[name]
    known = int(np.isfinite(right).sum())
    without = {"ties": ties, "without a reward": len(right) - known}
    left = ", ".join(f"{count:,} {why}" for why, count in without.items() if count)
    return f"{known:,} {what}{f' ({left} left out)' if left else ''}"


def _verdicts(study: str, table: pa.Table, name: str) -> Doubles:
    """Return 1 for `a`, −1 for `b`, 0 for a tie.

    Of numbers, by how much `a` is better, the sign; where all are 0 or 1 they say whether it is.
    """
    kind = table[name].type
    if pa.types.is_integer(kind) or pa.types.is_floating(kind) or pa.types.is_decimal(kind):
        values = results.numbers(study, table, name)
        signs: Doubles = 2 * values - 1 if np.isin(values, (0, 1)).all() else np.sign(values)
        return signs
    found = results.chosen(study, name, results.names(study, table, name), list(_VERDICTS))
    return np.array([_VERDICTS[verdict] for verdict in found])


def _sampled(study: str, table: pa.Table, rows: int | None) -> pa.Table:
    if rows is None or rows >= len(table):
        return table
    if rows < 1:
        raise StudyError(f"{study}: {rows} pairs are to be judged; name a number from 1")
    return table.take(np.sort(np.random.default_rng(0).choice(len(table), rows, replace=False)))


def _subsets(study: str, table: pa.Table, by: str | None) -> list[str]:
    if by is None:
        return [_OVERALL] * len(table)
    if by not in table.column_names:
        raise StudyError(f"{study}: no column {by!r} to divide by; there are {', '.join(table.column_names)}")
    subsets = results.names(study, table, by)
    if _OVERALL in subsets:
        raise StudyError(
            f"{study}: {by} has the value {_OVERALL!r}, which stands for all pairs; call it something else"
        )
    return subsets


def _right(above: Doubles, human: Doubles) -> Doubles:
    """Turn how far the first response scores above the second, and people's verdict (±1), into 1, ½, 0 or NaN."""
    right: Doubles = (np.sign(above) * human + 1) / 2
    return right


def _from_models(
    study: str,
    table: pa.Table,
    names: tuple[str, str],
    human: Doubles,
    rewards: Mapping[str, RewardModel],
    by: str | None,
) -> _Pairs:
    if not len(table):
        raise StudyError(f"{study}: no pair is decided; there is nothing to compare a reward model with")
    if not rewards:
        raise StudyError(f"{study}: no reward model; name one, or give a table with its verdicts")
    first, second = (results.texts(study, table, name) for name in names)
    prompts = results.prompts(study, table)
    if "context" in table.column_names:
        before = results.texts(study, table, "context", missing="")
        prompts = [f"{c}\n\n{p}" if c and isinstance(p, str) else p for c, p in zip(before, prompts, strict=True)]
    models: dict[str, Doubles] = {}
    for name, model in rewards.items():
        above = np.full(len(table), math.nan)
        with bar(f"{study}: {name}", len(table), "pairs") as advance:
            for start in range(0, len(table), _CALLS):
                some = slice(start, start + _CALLS)
                both = [list(pair) for pair in zip(first[some], second[some], strict=True)]
                for i, (a, b) in enumerate((map(finite, two) for two in model.rewards(prompts[some], both)), start):
                    above[i] = math.nan if a is None or b is None else a - b
                advance(len(both))
        models[name] = _right(above, human)
    return _Pairs([prompt_text(p) for p in prompts], _subsets(study, table, by), models, _ruled(first, second, human))


def _from_verdicts(
    study: str, table: pa.Table, texts: tuple[str, str], above: Doubles, human: Doubles, by: str | None
) -> _Pairs:
    """Put one reward model's verdicts beside another's: the nth on a prompt is on the same pair for all."""
    if not len(table):
        raise StudyError(f"{study}: no pair is decided; there is nothing to compare a reward model with")
    names, prompts = results.names(study, table, "reward"), results.names(study, table, "prompt_id")
    right, subsets = _right(above, human), _subsets(study, table, by)
    places: dict[str, dict[tuple[str, int], int]] = {}
    times: Counter[tuple[str, str]] = Counter()
    for i, (name, prompt) in enumerate(zip(names, prompts, strict=True)):
        places.setdefault(name, {})[prompt, times[name, prompt]] = i
        times[name, prompt] += 1
    first = places[names[0]]
    for name, own in places.items():
        if own.keys() != first.keys():
            raise StudyError(f"{study}: {name} was asked about other pairs than {names[0]}; ask all about the same")
    models = {name: right[[own[key] for key in first]] for name, own in places.items()}
    rows = list(first.values())
    rulers = {"random": np.full(len(rows), 0.5)}
    if set(texts) <= set(table.column_names):
        some = table.take(rows)
        one, other = (results.texts(study, some, name) for name in texts)
        rulers = _ruled(one, other, human[rows])
    return _Pairs([prompts[i] for i in rows], [subsets[i] for i in rows], models, rulers)


def _ruled(first: list[str], second: list[str], human: Doubles) -> dict[str, Doubles]:
    one, other = ruler.scores(first), ruler.scores(second)
    return {name: _right(one[name] - other[name], human) for name in one}


def _known(values: Doubles, prompts: Sequence[str]) -> tuple[Doubles, list[str]]:
    known = np.isfinite(values)
    return values[known], [prompt for prompt, one in zip(prompts, known, strict=True) if one]


def _gaps(pairs: _Pairs, name: str) -> dict[str, ruler.Gap]:
    own = pairs.models[name]
    return {
        kind: ruler.Gap(
            percent(share(*_known(right, pairs.prompts))) + " right",
            bootstrap_mean(*_known(own - right, pairs.prompts)),
        )
        for kind, right in pairs.rulers.items()
    }


def _measured(right: Doubles, prompts: Sequence[str], against: float) -> Interval | None:
    """Return the share of right verdicts, or with `against` 1 of wrong ones; None where there is none at all."""
    values, groups = _known(right, prompts)
    if not len(values):
        return None
    return share(np.abs(against - values), groups)


def _tabulate(study: str, pairs: _Pairs, measure: str, against: float) -> tuple[pa.Table, dict[str, Interval]]:
    rows, found, overall = [], [], {}
    subsets = [_OVERALL, *sorted(set(pairs.subsets) - {_OVERALL})]
    for subset in subsets:
        inside = np.array([subset in (_OVERALL, other) for other in pairs.subsets])
        prompts = [prompt for prompt, one in zip(pairs.prompts, inside, strict=True) if one]
        for kind, scorers in (("model", pairs.models), ("ruler", pairs.rulers)):
            for name, right in scorers.items():
                interval = _measured(right[inside], prompts, against)
                if interval is None and kind == "model" and subset == _OVERALL:
                    raise StudyError(
                        f"{study}: {name} gave no pair a reward; its window may be too short for the prompts"
                    )
                if interval is None:
                    continue
                rows.append((name, kind, subset, int(np.isfinite(right[inside]).sum()), len(set(prompts))))
                found.append(interval)
                if subset == _OVERALL and kind == "model":
                    overall[name] = interval
    names = ("reward", "kind", "subset", "pairs", "prompts")
    return results.tabulate({n: [row[i] for row in rows] for i, n in enumerate(names)}, {measure: found}), overall


def _worst(pairs: _Pairs, name: str) -> tuple[str, Interval] | None:
    found = []
    for subset in sorted(set(pairs.subsets) - {_OVERALL}):
        inside = np.array([subset == other for other in pairs.subsets])
        prompts = [prompt for prompt, one in zip(pairs.prompts, inside, strict=True) if one]
        interval = _measured(pairs.models[name][inside], prompts, 0.0)
        if interval is not None:
            found.append((subset, interval))
    return min(found, key=lambda each: each[1].estimate) if len(found) > 1 else None


def _draw(pairs: _Pairs, table: pa.Table, measure: str, label: str, by: str | None) -> Figure:
    sizes = Counter(pairs.subsets)
    drawn = {_OVERALL, *(subset for subset, _ in sizes.most_common(_PANELS))}
    panels: dict[str, list[figure.Dot]] = {}
    for row in table.to_pylist():
        if row["subset"] in drawn:
            low, high = (
                math.nan if row[f"{measure}_{end}"] is None else row[f"{measure}_{end}"] for end in ("low", "high")
            )
            value = in_percent(Interval(row[measure], low, high, row["pairs"]))
            name = ruler.SAYS.get(row["reward"], row["reward"]) if row["kind"] == "ruler" else row["reward"]
            title = "All pairs" if row["subset"] == _OVERALL else row["subset"]
            panels.setdefault(title, []).append(figure.Dot(name, value, row["kind"] == "ruler"))
    several = len(set(pairs.prompts)) < len(pairs.prompts)
    note = f"Bars: 95 % intervals ({'bootstrap over prompts' if several else 'Wilson'}). Hollow: rulers."
    if len(sizes) > _PANELS:
        note += f" The largest {_PANELS} of {len(sizes)} values of {by}; the table has them all."
    return figure.dots(panels, label, note, (50.0, "coin"), "pairs")
