"""Pairs that people decided, and what each reward model and each simple baseline says of them.

One rule: all scorers stand on the same pairs in the same order, so that any two can be compared pair by pair.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np
import pyarrow as pa

from seamcurate.errors import StudyError
from seamcurate.models import Prompt, RewardModel
from seamcurate.models.template import prompt_text
from seamcurate.progress import bar
from seamcurate.step import finite
from seamcurate.study import baselines, sources
from seamcurate.study.statistics import Doubles

OVERALL = "all"
"""The subset of all pairs."""
_VERDICTS = {"a": 1.0, "b": -1.0, "tie": 0.0}
_BATCH = 64
"""Pairs a call of the reward model."""


class Pairs(NamedTuple):
    """Judged pairs: for each scorer 1 where it is right, ½ where undecided, 0 where wrong, NaN where it gave no score."""

    prompts: list[str]
    subsets: list[str]
    models: dict[str, Doubles]
    baselines: dict[str, Doubles]


def verdicts(study: str, table: pa.Table, name: str) -> Doubles:
    """Return 1 for `a`, −1 for `b`, 0 for a tie.

    A column of 0 and 1 alone says whether `a` is better; of other numbers, which say by how much, the sign counts.

    Raises:
        StudyError: A word is none of the three, or the numbers may be read in two ways: 1 and 2 may name the better answer,
            and those between 0 and 1 may be probabilities, of which .5 is a tie.
    """
    kind = table[name].type
    if pa.types.is_integer(kind) or pa.types.is_floating(kind) or pa.types.is_decimal(kind):
        values = sources.numbers(study, table, name)
        if np.isin(values, (0, 1)).all() and values.any():
            return 2 * values - 1
        if (values >= 0).all() and ((values <= 1).all() or np.isin(values, (1, 1.5, 2)).all()):
            shown = ", ".join(f"{value:g}" for value in np.unique(values)[:3])
            raise StudyError(
                f"{study}: {name} holds {shown} and no number below 0, which may be ties, probabilities, or 1 and 2 for the "
                "first and the second; write a, b or tie"
            )
        signs: Doubles = np.sign(values)
        return signs
    words = sources.choices(study, name, sources.names(study, table, name), list(_VERDICTS))
    return np.array([_VERDICTS[word] for word in words])


def sampled(study: str, table: pa.Table, rows: int | None) -> pa.Table:
    """Return this many rows of a table, drawn at random (seeded); all of them without a number."""
    if rows is None or rows >= len(table):
        return table
    if rows < 1:
        raise StudyError(f"{study}: {rows} pairs are to be judged; name a number from 1")
    return table.take(np.sort(np.random.default_rng(0).choice(len(table), rows, replace=False)))


def of_models(
    study: str,
    table: pa.Table,
    names: tuple[str, str],
    human: Doubles,
    rewards: Mapping[str, RewardModel],
    subset_column: str | None,
) -> Pairs:
    """Let reward models judge the pairs of a table, whose two columns `names` hold the responses."""
    _check_rows(study, table)
    if not rewards:
        raise StudyError(f"{study}: no reward model; name one, or give a table with its verdicts")
    responses_a, responses_b = (sources.texts(study, table, name) for name in names)
    prompts = sources.prompts(study, table)
    if "context" in table.column_names:
        contexts = sources.texts(study, table, "context", missing="")
        prompts = [f"{c}\n\n{p}" if c and isinstance(p, str) else p for c, p in zip(contexts, prompts, strict=True)]
    models = {
        name: _right(_gaps(f"{study}: {name}", model, prompts, responses_a, responses_b), human)
        for name, model in rewards.items()
    }
    subsets = _subsets(study, table, subset_column)
    return Pairs(
        [prompt_text(prompt) for prompt in prompts], subsets, models, _baselines(responses_a, responses_b, human)
    )


def of_verdicts(
    study: str, table: pa.Table, texts: tuple[str, str], gaps: Doubles, human: Doubles, subset_column: str | None
) -> Pairs:
    """Align the verdicts of several reward models: the nth verdict on a prompt is on the same pair for each of them."""
    _check_rows(study, table)
    names, prompts = sources.names(study, table, "reward"), sources.names(study, table, "prompt_id")
    right, subsets = _right(gaps, human), _subsets(study, table, subset_column)
    rows_of: dict[str, dict[tuple[str, int], int]] = {}
    counts: Counter[tuple[str, str]] = Counter()
    for i, (name, prompt) in enumerate(zip(names, prompts, strict=True)):
        rows_of.setdefault(name, {})[prompt, counts[name, prompt]] = i
        counts[name, prompt] += 1
    first_rows = rows_of[names[0]]
    for name, own_rows in rows_of.items():
        if own_rows.keys() != first_rows.keys():
            raise StudyError(f"{study}: {name} was asked about other pairs than {names[0]}; ask all about the same")
    models = {name: right[[own_rows[key] for key in first_rows]] for name, own_rows in rows_of.items()}
    rows = list(first_rows.values())
    simple = {"random": np.full(len(rows), 0.5)}
    if set(texts) <= set(table.column_names):
        responses_a, responses_b = (sources.texts(study, table.take(rows), name) for name in texts)
        simple = _baselines(responses_a, responses_b, human[rows])
    return Pairs([prompts[i] for i in rows], [subsets[i] for i in rows], models, simple)


def decided(right: Doubles, prompts: Sequence[str]) -> tuple[Doubles, list[str]]:
    """Return the values that are not NaN, and their prompts."""
    finite_values = np.isfinite(right)
    return right[finite_values], [prompt for prompt, known in zip(prompts, finite_values, strict=True) if known]


def _check_rows(study: str, table: pa.Table) -> None:
    if not len(table):
        raise StudyError(f"{study}: no pair is decided; there is nothing to compare a reward model with")


def _gaps(
    label: str, model: RewardModel, prompts: Sequence[Prompt], responses_a: Sequence[str], responses_b: Sequence[str]
) -> Doubles:
    """Return by how much a model scores the first response above the second; NaN where it cannot score both."""
    gaps = np.full(len(prompts), np.nan)
    with bar(label, len(prompts), "pairs") as advance:
        for start in range(0, len(prompts), _BATCH):
            batch = slice(start, start + _BATCH)
            responses = [list(pair) for pair in zip(responses_a[batch], responses_b[batch], strict=True)]
            for i, rewards in enumerate(model.rewards(prompts[batch], responses), start):
                reward_a, reward_b = (finite(reward) for reward in rewards)
                gaps[i] = math.nan if reward_a is None or reward_b is None else reward_a - reward_b
            advance(len(responses))
    return gaps


def _subsets(study: str, table: pa.Table, subset_column: str | None) -> list[str]:
    if subset_column is None:
        return [OVERALL] * len(table)
    if subset_column not in table.column_names:
        raise StudyError(
            f"{study}: no column {subset_column!r} to divide by; there are {', '.join(table.column_names)}"
        )
    subsets = sources.names(study, table, subset_column)
    if OVERALL in subsets:
        raise StudyError(
            f"{study}: {subset_column} has the value {OVERALL!r}, which stands for all pairs; call it something else"
        )
    return subsets


def _right(gaps: Doubles, human: Doubles) -> Doubles:
    """Turn how far the first response scores above the second, and people's verdict (±1), into 1, ½, 0 or NaN."""
    right: Doubles = (np.sign(gaps) * human + 1) / 2
    return right


def _baselines(responses_a: list[str], responses_b: list[str], human: Doubles) -> dict[str, Doubles]:
    scores_a, scores_b = baselines.scores(responses_a), baselines.scores(responses_b)
    return {name: _right(scores_a[name] - scores_b[name], human) for name in scores_a}
