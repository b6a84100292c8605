"""A judge's verdicts between a model's responses and a baseline's (RER §4.2, App. D).

    winrate      model, prompt_id, position, verdict

One rule: a prompt counts only with a verdict in both positions, because a judge prefers one of them.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from seamcurate.errors import StudyError
from seamcurate.study import baselines, figure, sources
from seamcurate.study.results import Study, StudyResult, result, tabulate
from seamcurate.study.sources import StudySource
from seamcurate.study.statistics import NOTHING, Doubles, Interval, bootstrap_mean, bootstrap_share, in_percent, percent
from seamcurate.text import brief

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_SCORES = {"win": 1.0, "tie": 0.5, "lose": 0.0}
_COLUMNS = {
    "model": "the model measured",
    "kind": "model, or ruler for a simple baseline",
    "prompts": "different prompts",
    "same_in_both_positions": "share of prompts with one verdict in both positions",
    "win_rate": "(wins + ½ ties) / all, over both positions",
    "gain_of_first_position": "win rate with the response first minus that with it second",
}


@dataclass(frozen=True)
class Verdicts:
    """What a judge, and each simple baseline, says of the models."""

    models: Mapping[str, Doubles]
    """1 for a win, ½ for a tie, 0 for a loss: prompts × positions."""
    baselines: Mapping[str, Mapping[str, Doubles]]
    """Of each model, what each baseline prefers, by prompt; empty without texts."""
    silent: int
    """Prompts of a model that lack a verdict."""


@dataclass(frozen=True)
class WinRate:
    """How often a judge prefers one model to the baseline."""

    rate: Interval
    same: float
    """Share of prompts with the same verdict in both positions."""
    gain_of_first: Interval
    baseline_rates: Mapping[str, Interval]
    """The win rate of each simple baseline's preferences."""
    margins: Mapping[str, baselines.Margin]
    """How far the judge's rate lies above each of them."""


def winrate(*tables: StudySource) -> StudyResult:
    """Measure how often a judge prefers a model's responses to the baseline's, asked in both positions.

    Columns: `model`, `prompt_id`, `position` (`first` or `second`: where the model's response was), `verdict`
    (`win`, `tie`, `lose`, the model's); for the simple baselines `response` and `baseline_response`. The rate is
    (wins + ½ ties) / all over both positions, its interval a bootstrap over prompts. `seamcurate compare` asks a judge
    and writes such a table; a prompt that lacks a verdict in a position (NULL) is left out, and counted.

    Raises:
        StudyError: The sources cannot be read, a prompt was not judged once in each position, or none has a verdict.
    """
    verdicts = _read(tables)
    rates = measure(verdicts)
    return result("winrate", _table(rates), _figure(rates), _finding(rates, verdicts.silent))


def _read(tables: Sequence[StudySource]) -> Verdicts:
    study = "winrate"
    table = sources.read(study, tables, ["model", "prompt_id", "position", "verdict"])
    keys = list(zip(*(sources.names(study, table, name) for name in ("model", "prompt_id")), strict=True))
    silent = {key for key, verdict in zip(keys, table["verdict"].to_pylist(), strict=True) if verdict is None}
    # Both positions go: with one verdict alone, the judge's preference for a place would count as the model's.
    table = table.filter(pa.array([key not in silent for key in keys]))
    if not len(table):
        raise StudyError(f"{study}: the judge gave no verdict on any prompt; see the column `reason`, or ask another")
    words = sources.choices(study, "verdict", sources.names(study, table, "verdict"), list(_SCORES))
    scores = np.array([_SCORES[word] for word in words])
    preferences = _preferences(study, table)
    models, simple = {}, {}
    for model, rows in _rows_by_model(study, table).items():
        # (prompts, positions)
        models[model] = scores[rows]
        simple[model] = {kind: values[rows[:, 0]] for kind, values in preferences.items()}
    return Verdicts(models, simple, len(silent))


def _rows_by_model(study: str, table: pa.Table) -> dict[str, npt.NDArray[np.int64]]:
    """Return, of each model, its prompts' rows in the table: prompts × positions.

    Raises:
        StudyError: A prompt was judged twice in a position, or in one position only.
    """
    models, prompts = sources.names(study, table, "model"), sources.names(study, table, "prompt_id")
    positions = sources.choices(study, "position", sources.names(study, table, "position"), ["first", "second"])
    rows: dict[str, dict[str, dict[str, int]]] = {}
    for i, (model, prompt, position) in enumerate(zip(models, prompts, positions, strict=True)):
        by_position = rows.setdefault(model, {}).setdefault(prompt, {})
        if position in by_position:
            raise StudyError(
                f"{study}: {model} on prompt {brief(prompt, 60)} was judged twice with its response {position}; keep one"
            )
        by_position[position] = i
    for model, by_prompt in rows.items():
        for prompt, by_position in by_prompt.items():
            if len(by_position) < 2:
                raise StudyError(
                    f"{study}: {model} on prompt {brief(prompt, 60)} was judged with its response "
                    f"{next(iter(by_position))} only; a judge prefers a place: ask again with the two swapped"
                )
    return {
        model: np.array([[by_position["first"], by_position["second"]] for by_position in by_prompt.values()])
        for model, by_prompt in rows.items()
    }


def _preferences(study: str, table: pa.Table) -> dict[str, Doubles]:
    """Return what each simple baseline would say of each row's two responses, if the table has their texts."""
    if not {"response", "baseline_response"} <= set(table.column_names):
        return {}
    model_scores, baseline_scores = (
        baselines.scores(sources.texts(study, table, name)) for name in ("response", "baseline_response")
    )
    return {kind: (np.sign(model_scores[kind] - baseline_scores[kind]) + 1) / 2 for kind in model_scores}


def measure(verdicts: Verdicts) -> dict[str, WinRate]:
    """Measure each model's win rate, and what the simple baselines' would be."""
    rates = {}
    for model, scores in verdicts.models.items():
        judged, simple = scores.mean(axis=1), verdicts.baselines[model]  # (prompts,)
        shares = {kind: bootstrap_share(values) for kind, values in simple.items()}
        rates[model] = WinRate(
            bootstrap_share(judged),
            float((scores[:, 0] == scores[:, 1]).mean()),
            # Above 0 where the judge prefers what it reads first.
            bootstrap_mean(scores[:, 0] - scores[:, 1]),
            shares,
            {
                kind: baselines.Margin(percent(shares[kind]), bootstrap_mean(judged - values))
                for kind, values in simple.items()
            },
        )
    return rates


def _table(rates: Mapping[str, WinRate]) -> pa.Table:
    rows: list[tuple[str, str, float | None, Interval, Interval]] = []
    for model, measured in rates.items():
        rows.append((model, "model", measured.same, measured.rate, measured.gain_of_first))
        rows += [(_label(model, kind), "ruler", None, rate, NOTHING) for kind, rate in measured.baseline_rates.items()]
    columns: dict[str, Sequence[object]] = {
        "model": [row[0] for row in rows],
        "kind": [row[1] for row in rows],
        "prompts": [row[3].n for row in rows],
        "same_in_both_positions": [row[2] for row in rows],
    }
    intervals = {"win_rate": [row[3] for row in rows], "gain_of_first_position": [row[4] for row in rows]}
    return tabulate(_COLUMNS, columns, intervals)


def _figure(rates: Mapping[str, WinRate]) -> Figure:
    dots = []
    for model, measured in rates.items():
        dots.append(figure.Dot(model, in_percent(measured.rate)))
        dots += [
            figure.Dot(_label(model, kind), in_percent(rate), True) for kind, rate in measured.baseline_rates.items()
        ]
    return figure.dots(
        {"Win rate against the baseline": dots},
        "(wins + ½ ties) / all, both positions (%)",
        "Bars: 95 % bootstrap intervals over prompts. Hollow: what a simple baseline would prefer.",
        (50.0, "even"),
        "prompts",
    )


def _label(model: str, kind: str) -> str:
    return f"{model}: {baselines.DESCRIPTIONS[kind]}"


def _finding(rates: Mapping[str, WinRate], silent: int) -> str:
    best = max(rates, key=lambda model: rates[model].rate.estimate)
    rate = rates[best].rate
    verb = "beats" if rate.low > 0.5 else "loses to" if rate.high < 0.5 else "is not told apart from"
    line = f"{best} {verb} the baseline: {percent(rate)} of {rate.n:,} prompts"
    line += "".join(f"; {model} {percent(rate_of.rate)}" for model, rate_of in rates.items() if model != best)
    line += f"; {silent:,} prompts have no verdict" if silent else ""
    line += f"; the judge says the same in both positions on {100 * rates[best].same:.0f} %"
    return line + (baselines.caveat(rates[best].margins) if rate.low > 0.5 else "")


WINRATE = Study(
    "winrate",
    "how often a judge prefers a model's answers to a baseline's, asked in both positions",
    "model, prompt_id, position, verdict: what `seamcurate compare` writes",
    _COLUMNS,
    winrate,
)
