"""A judge's verdicts between a model's responses and a baseline's (RER §4.2, App. D).

    winrate      model, prompt_id, position, verdict

A judge that is asked once prefers a place, so each prompt counts only with both.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import pyarrow as pa

from seamcurate.errors import StudyError
from seamcurate.study import figure, results, ruler
from seamcurate.study.results import Data, Finding
from seamcurate.study.statistics import NOTHING, Doubles, Interval, bootstrap_mean, bootstrap_share, in_percent, percent
from seamcurate.text import brief

_SCORES = {"win": 1.0, "tie": 0.5, "lose": 0.0}


class _Model(NamedTuple):
    """What a judge said of one model, prompts × places, and what each ruler would have, per prompt."""

    verdicts: Doubles
    rulers: dict[str, Doubles]

    @property
    def rate(self) -> Interval:
        return bootstrap_share(self.verdicts.mean(axis=1))


def winrate(*sources: Data) -> Finding:
    """Measure how often a judge prefers a model's responses to the baseline's, asked in both positions.

    Columns: `model`, `prompt_id`, `position` (`first` or `second`: where the model's response stood), `verdict`
    (`win`, `tie`, `lose`, the model's); for the rulers `response` and `baseline_response`. The rate is
    (wins + ½ ties) / all over both positions, its interval a bootstrap over prompts. `seamcurate compare` asks a judge
    and writes such a table; a prompt on which it once gave no verdict (NULL) is left out, and counted.

    Raises:
        StudyError: The sources cannot be read, a prompt was not judged once in each position, or none has a verdict.
    """
    study = "winrate"
    table = results.read(study, sources, ["model", "prompt_id", "position", "verdict"])
    table, silent = _decided(study, table)
    models = _models(study, table)
    rows: list[tuple[str, str, float | None, Interval, Interval]] = []
    for name, model in models.items():
        both = model.verdicts
        same = float((both[:, 0] == both[:, 1]).mean())
        rows.append((name, "model", same, model.rate, bootstrap_mean(both[:, 0] - both[:, 1])))
        for kind, told in model.rulers.items():
            rows.append((f"{name}: {ruler.SAYS[kind]}", "ruler", None, bootstrap_share(told), NOTHING))
    out = results.tabulate(
        {
            "model": [row[0] for row in rows],
            "kind": [row[1] for row in rows],
            "prompts": [row[3].n for row in rows],
            "same_in_both_positions": [row[2] for row in rows],
        },
        {"win_rate": [row[3] for row in rows], "gain_of_first_position": [row[4] for row in rows]},
    )
    drawn = figure.dots(
        {"Win rate against the baseline": [figure.Dot(r[0], in_percent(r[3]), r[1] == "ruler") for r in rows]},
        "(wins + ½ ties) / all, both positions (%)",
        "Bars: 95 % bootstrap intervals over prompts. Hollow: what a ruler would prefer.",
        (50.0, "even"),
        "prompts",
    )
    best = max(models, key=lambda name: models[name].rate.estimate)
    rate = models[best].rate
    verb = "beats" if rate.low > 0.5 else "loses to" if rate.high < 0.5 else "is not told apart from"
    line = f"{best} {verb} the baseline: {percent(rate)} of {rate.n:,} prompts"
    line += "".join(f"; {name} {percent(model.rate)}" for name, model in models.items() if name != best)
    line += f"; {silent:,} prompts have no verdict" if silent else ""
    line += f"; the judge says the same in both positions on {100 * _steady(models[best]):.0f} %"
    gaps = {}
    if rate.low > 0.5:
        judged = models[best].verdicts.mean(axis=1)
        for kind, told in models[best].rulers.items():
            gaps[kind] = ruler.Gap(percent(bootstrap_share(told)), bootstrap_mean(judged - told))
    return Finding(study, out, drawn, line + ruler.caveat(gaps))


def _steady(model: _Model) -> float:
    return float((model.verdicts[:, 0] == model.verdicts[:, 1]).mean())


def _decided(study: str, table: pa.Table) -> tuple[pa.Table, int]:
    """Return the rows of prompts that have every verdict, and how many prompts of a model have not."""
    asked = list(zip(*(results.names(study, table, name) for name in ("model", "prompt_id")), strict=True))
    silent = {one for one, verdict in zip(asked, table["verdict"].to_pylist(), strict=True) if verdict is None}
    kept = table.filter(pa.array([one not in silent for one in asked]))
    if not len(kept):
        raise StudyError(f"{study}: the judge gave no verdict on any prompt; see the column `reason`, or ask another")
    return kept, len(silent)


def _models(study: str, table: pa.Table) -> dict[str, _Model]:
    names, prompts = results.names(study, table, "model"), results.names(study, table, "prompt_id")
    places = results.chosen(study, "position", results.names(study, table, "position"), ["first", "second"])
    verdicts = results.chosen(study, "verdict", results.names(study, table, "verdict"), list(_SCORES))
    judged: dict[str, dict[str, dict[str, int]]] = {}
    for i, (name, prompt, place) in enumerate(zip(names, prompts, places, strict=True)):
        rows = judged.setdefault(name, {}).setdefault(prompt, {})
        if place in rows:
            raise StudyError(
                f"{study}: {name} on prompt {brief(prompt, 60)} was judged twice with its response {place}; keep one"
            )
        rows[place] = i
    told = _told(study, table)
    found = {}
    for name, by_prompt in judged.items():
        for prompt, rows in by_prompt.items():
            if len(rows) < 2:
                raise StudyError(
                    f"{study}: {name} on prompt {brief(prompt, 60)} was judged with its response {next(iter(rows))} only; "
                    "a judge prefers a place: ask again with the two swapped"
                )
        order = [(rows["first"], rows["second"]) for rows in by_prompt.values()]
        both = np.array([[_SCORES[verdicts[i]] for i in pair] for pair in order])
        found[name] = _Model(both, {kind: values[[one for one, _ in order]] for kind, values in told.items()})
    return found


def _told(study: str, table: pa.Table) -> dict[str, Doubles]:
    """Return what each ruler would say of each row's two responses, where the texts are there."""
    if not {"response", "baseline_response"} <= set(table.column_names):
        return {}
    own, other = (results.texts(study, table, name) for name in ("response", "baseline_response"))
    one, two = ruler.scores(own), ruler.scores(other)
    return {kind: (np.sign(one[kind] - two[kind]) + 1) / 2 for kind in one}
