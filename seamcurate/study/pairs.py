"""Pairs of responses and who prefers which: people and reward models, always beside simple baselines.

    mismatch     prompt, response_a, response_b, label          SEAM §3.1, App. D, Table 1
    preference   prompt, chosen, rejected, subset               RER Table 5 (RewardBench)

A reward model is right where it gives the better response the higher reward; equal rewards count one half. Intervals
are Wilson's, or bootstrapped over prompts where a prompt has several pairs.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import pyarrow as pa

from seamcurate.errors import StudyError
from seamcurate.models import RewardModel
from seamcurate.study import baselines, figure, judged_pairs, sources
from seamcurate.study.judged_pairs import OVERALL, Pairs
from seamcurate.study.results import Study, StudyResult, result, tabulate
from seamcurate.study.sources import StudySource
from seamcurate.study.statistics import Doubles, Interval, bootstrap_mean, in_percent, percent, share

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_PANELS = 11
"""Subsets a figure shows beside all pairs."""
_COLUMNS = {
    "reward": "the reward model: its name, or the pairs it was trained on",
    "kind": "model, or ruler for a simple baseline",
    "subset": "part of the pairs; all for all",
    "pairs": "pairs with a verdict",
    "prompts": "different prompts",
}
_MISMATCH_COLUMNS = {**_COLUMNS, "mismatch": "share of decided pairs judged against people, ties one half"}
_PREFERENCE_COLUMNS = {
    **_COLUMNS,
    "accuracy": "share of pairs whose chosen response scores higher, ties one half",
}


class Share(NamedTuple):
    """How often one scorer is right, or wrong, on one subset."""

    scorer: str
    kind: str
    """`model`, or `ruler` for a simple baseline."""
    subset: str
    pairs: int
    prompts: int
    share: Interval


@dataclass(frozen=True)
class Shares:
    """How often each reward model and each baseline is right, or wrong, overall and by subset."""

    rows: Sequence[Share]
    overall: dict[str, Interval]
    """Of each reward model on all pairs."""
    counts: Mapping[str, int]
    """Pairs that each reward model gave a reward."""
    margins: Mapping[str, Mapping[str, baselines.Margin]]
    """How much more often each reward model is right than each baseline."""
    total: int
    sizes: Mapping[str, int]
    """Pairs of each subset."""
    several: bool
    """Whether a prompt has several pairs."""
    change: Interval | None
    """How much more often the last reward model is wrong than the first; None where they share no pair."""


def mismatch(
    *tables: StudySource,
    rewards: Mapping[str, RewardModel] | None = None,
    by: str | None = None,
    rows: int | None = None,
) -> StudyResult:
    """Measure how often reward models disagree with people on two policies' responses.

    Columns: `prompt`, `response_a`, `response_b`, `label` (`a`, `b` or `tie`, people's), optionally `context`, put
    before the prompt; or, with verdicts at hand, `reward` (the reward model's name), `prompt_id`, `human`, `model`
    (each `a`, `b` or `tie`, or 1 and 0 for `a` and `b`, or by how much `a` is better) and optionally `response_a` and
    `response_b`. Pairs that people call a tie are left out.

    Args:
        tables: Tables of pairs.
        rewards: The reward models by name, smallest first, where the table holds no verdicts.
        by: A column to divide the pairs by.
        rows: Judge this many pairs, drawn at random (seeded).

    Raises:
        StudyError: The sources cannot be read, there is no reward model, or no decided pair.
    """
    study, texts = "mismatch", ("response_a", "response_b")
    table = sources.read(study, tables, [])
    judged = {"reward", "model"} <= set(table.column_names)
    if judged:
        table = sources.read(study, tables, ["reward", "prompt_id", "human", "model"])
    else:
        table = judged_pairs.sampled(study, sources.read(study, tables, ["prompt", *texts, "label"]), rows)
    human = judged_pairs.verdicts(study, table, "human" if judged else "label")
    # Read before ties are left out: what a number means shows in the whole column.
    model = judged_pairs.verdicts(study, table, "model") if judged else human
    decided = human != 0
    table, ties, human, model = table.filter(pa.array(decided)), int((~decided).sum()), human[decided], model[decided]
    if judged:
        pairs = judged_pairs.of_verdicts(study, table, texts, model, human, by)
    else:
        pairs = judged_pairs.of_models(study, table, texts, human, rewards or {}, by)
    shares = measure(study, pairs, wrong=True)
    drawing = _figure(shares, "pairs decided against people (%)", by)
    return result(study, _table(shares, "mismatch", _MISMATCH_COLUMNS), drawing, _mismatch_finding(shares, ties))


def preference(
    *tables: StudySource,
    rewards: Mapping[str, RewardModel] | None = None,
    by: str = "subset",
    rows: int | None = None,
) -> StudyResult:
    """Measure how often reward models, RER among them, score the chosen response above the rejected one, by subset.

    Columns: `prompt`, `chosen`, `rejected`, and the column that `by` names if it is present; or, with scores at hand,
    `reward` (a name), `prompt_id`, `score_chosen`, `score_rejected`, optionally `chosen` and `rejected` for the baselines.

    Args:
        tables: Tables of preferences.
        rewards: The reward models by name, where the table holds no scores.
        by: The column to divide the pairs by.
        rows: Judge this many pairs, drawn at random (seeded).

    Raises:
        StudyError: The sources cannot be read, or there is no reward model.
    """
    study = "preference"
    table = sources.read(study, tables, [])
    subset_column = by if by in table.column_names else None
    if {"reward", "score_chosen"} <= set(table.column_names):
        table = sources.read(study, tables, ["reward", "prompt_id", "score_chosen", "score_rejected"])
        gap = sources.numbers(study, table, "score_chosen") - sources.numbers(study, table, "score_rejected")
        pairs = judged_pairs.of_verdicts(study, table, ("chosen", "rejected"), gap, np.ones(len(table)), subset_column)
    else:
        table = judged_pairs.sampled(study, sources.read(study, tables, ["prompt", "chosen", "rejected"]), rows)
        names = ("chosen", "rejected")
        pairs = judged_pairs.of_models(study, table, names, np.ones(len(table)), rewards or {}, subset_column)
    shares = measure(study, pairs, wrong=False)
    drawing = _figure(shares, "pairs on which the chosen response scores higher (%)", subset_column)
    return result(study, _table(shares, "accuracy", _PREFERENCE_COLUMNS), drawing, _preference_finding(shares))


def measure(study: str, pairs: Pairs, wrong: bool) -> Shares:
    """Measure how often each scorer is right, or with `wrong` how often it is wrong, overall and by subset.

    Raises:
        StudyError: A reward model gave no pair a reward.
    """
    # A subset that is itself called like the overall one is counted there already.
    rows: list[Share] = []
    for subset in [OVERALL, *sorted(set(pairs.subsets) - {OVERALL})]:
        rows += _subset_shares(pairs, subset, wrong)
    overall = {row.scorer: row for row in rows if row.kind == "model" and row.subset == OVERALL}
    for scorer in pairs.models:
        if scorer not in overall:
            raise StudyError(f"{study}: {scorer} gave no pair a reward; its window may be too short for the prompts")
    return Shares(
        rows,
        {scorer: row.share for scorer, row in overall.items()},
        {scorer: row.pairs for scorer, row in overall.items()},
        {scorer: _margins(pairs, right) for scorer, right in pairs.models.items()},
        len(pairs.prompts),
        Counter(pairs.subsets),
        len(set(pairs.prompts)) < len(pairs.prompts),
        _change(pairs),
    )


def _subset_shares(pairs: Pairs, subset: str, wrong: bool) -> list[Share]:
    """Measure each scorer on one subset; a scorer that gave it no score has no row."""
    inside = np.array([subset in (OVERALL, pair_subset) for pair_subset in pairs.subsets])
    prompts = [prompt for prompt, member in zip(pairs.prompts, inside, strict=True) if member]
    rows = []
    for kind, scorers in (("model", pairs.models), ("ruler", pairs.baselines)):
        for scorer, right in scorers.items():
            values, groups = judged_pairs.decided(right[inside], prompts)
            if len(values):
                interval = share(1.0 - values if wrong else values, groups)
                rows.append(Share(scorer, kind, subset, len(values), len(set(prompts)), interval))
    return rows


def _margins(pairs: Pairs, model_right: Doubles) -> dict[str, baselines.Margin]:
    return {
        kind: baselines.Margin(
            percent(share(*judged_pairs.decided(right, pairs.prompts))) + " right",
            bootstrap_mean(*judged_pairs.decided(model_right - right, pairs.prompts)),
        )
        for kind, right in pairs.baselines.items()
    }


def _change(pairs: Pairs) -> Interval | None:
    models = list(pairs.models.values())
    values, prompts = judged_pairs.decided(models[0] - models[-1], pairs.prompts)
    # Pairs of one prompt share its difficulty: they are drawn together, or the interval would be too narrow.
    return bootstrap_mean(values, prompts) if len(models) > 1 and len(values) else None


def _table(shares: Shares, measure_name: str, meanings: Mapping[str, str]) -> pa.Table:
    columns: dict[str, Sequence[object]] = {
        "reward": [row.scorer for row in shares.rows],
        "kind": [row.kind for row in shares.rows],
        "subset": [row.subset for row in shares.rows],
        "pairs": [row.pairs for row in shares.rows],
        "prompts": [row.prompts for row in shares.rows],
    }
    return tabulate(meanings, columns, {measure_name: [row.share for row in shares.rows]})


def _figure(shares: Shares, label: str, subset_column: str | None) -> Figure:
    # More panels would not be legible on one page; the table has every subset.
    largest = {OVERALL, *(subset for subset, _ in Counter(shares.sizes).most_common(_PANELS))}
    panels: dict[str, list[figure.Dot]] = {}
    for row in shares.rows:
        if row.subset in largest:
            baseline = row.kind == "ruler"
            name = baselines.DESCRIPTIONS.get(row.scorer, row.scorer) if baseline else row.scorer
            title = "All pairs" if row.subset == OVERALL else row.subset
            dot = figure.Dot(name, in_percent(row.share)._replace(n=row.pairs), baseline)
            panels.setdefault(title, []).append(dot)
    note = (
        f"Bars: 95 % intervals ({'bootstrap over prompts' if shares.several else 'Wilson'}). Hollow: simple baselines."
    )
    if len(shares.sizes) > _PANELS:
        note += f" The largest {_PANELS} of {len(shares.sizes)} values of {subset_column}; the table has them all."
    return figure.dots(panels, label, note, (50.0, "coin"), "pairs")


def _mismatch_finding(shares: Shares, ties: int) -> str:
    smallest, largest = next(iter(shares.overall)), next(reversed(shares.overall))
    count = _pair_count(shares, largest, "decided pairs", ties)
    line = f"{largest} disagrees with people on {percent(shares.overall[largest])} of {count}"
    if shares.change is not None:
        change = shares.change
        verb = "falls" if change.below_zero else "grows" if change.above_zero else "does not demonstrably change"
        line += (
            f"; from {smallest} to {largest} the mismatch {verb} "
            f"({percent(change, True)}, from {percent(shares.overall[smallest])})"
        )
    return line + baselines.caveat(shares.margins[largest])


def _preference_finding(shares: Shares) -> str:
    best = max(shares.overall, key=lambda scorer: shares.overall[scorer].estimate)
    count = _pair_count(shares, best, "pairs")
    line = f"{best} prefers the chosen response on {percent(shares.overall[best])} of {count}"
    further = [f"{scorer} {percent(interval)}" for scorer, interval in shares.overall.items() if scorer != best]
    line += f"; {', '.join(further)}" if further else ""
    # A single subset is all pairs: it has no worst.
    subsets = [r for r in shares.rows if r.scorer == best and r.kind == "model" and r.subset != OVERALL]
    if len(subsets) > 1:
        worst = min(subsets, key=lambda row: row.share.estimate)
        line += f"; worst on {worst.subset}, {percent(worst.share)}"
    return line + baselines.caveat(shares.margins[best])


def _pair_count(shares: Shares, scorer: str, noun: str, ties: int = 0) -> str:
    """Say how many pairs a model's share is of, how many were left out, and why."""
    count = shares.counts[scorer]
    reasons = {"ties": ties, "without a reward": shares.total - count}
    left_out = ", ".join(f"{number:,} {reason}" for reason, number in reasons.items() if number)
    return f"{count:,} {noun}{f' ({left_out} left out)' if left_out else ''}"


MISMATCH = Study(
    "mismatch",
    "how often reward models disagree with people, by model size and subset",
    "prompt, response_a, response_b, label; or reward, prompt_id, human, model",
    _MISMATCH_COLUMNS,
    mismatch,
)
PREFERENCE = Study(
    "preference",
    "how often reward models, and RER, prefer the chosen response to the rejected one, by subset",
    "prompt, chosen, rejected; or reward, prompt_id, score_chosen, score_rejected",
    _PREFERENCE_COLUMNS,
    preference,
)
