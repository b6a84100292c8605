"""What responses look like: their length, repetition, relevance and variety (RER Table 3, Fig. 5).

responses    response; optionally model, prompt, query_type, relevant_sentences
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from seamcurate import words
from seamcurate.errors import StudyError
from seamcurate.models.template import prompt_text
from seamcurate.study import figure, sources, texts
from seamcurate.study.results import Study, StudyResult, result, tabulate
from seamcurate.study.sources import StudySource
from seamcurate.study.statistics import NOTHING, Doubles, Interval, bootstrap_mean, shown

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_MEASURES = {
    "words": "words a response",
    "repetition": "4-gram repetition",
    "relevant": "relevant sentences (share)",
    "self_bleu": "Self-BLEU",
}
_COLUMNS = {
    "model": "the model measured",
    "query_type": "kind of the queries; all for all",
    "responses": "responses measured",
    "words": "words and punctuation marks a response",
    "repetition": "1 − distinct 4-grams / 4-grams of words",
    "relevant": "share of sentences relevant to the query",
    "self_bleu": "mean BLEU of a prompt's responses against each other; high = alike",
}


@dataclass(frozen=True)
class ResponseTable:
    """The responses of a table, row by row."""

    texts: Sequence[str]
    models: Sequence[str]
    query_types: Sequence[str]
    prompts: Sequence[str] | None
    relevant: Doubles | None
    """Share of relevant sentences, NaN where a row has none."""


class Measure(NamedTuple):
    """One measure of one group of responses."""

    values: Doubles
    """A value a response, of Self-BLEU a value a prompt; NaN where there is none."""
    mean: Interval


class AnswerGroup(NamedTuple):
    """The responses of one model to one kind of query."""

    model: str
    query_type: str
    responses: int
    measures: Mapping[str, Measure]

    def mean(self, measure: str) -> Interval:
        """Return a measure's mean; `NOTHING` where the table does not allow it."""
        return self.measures[measure].mean if measure in self.measures else NOTHING


def responses(*tables: StudySource) -> StudyResult:
    """Describe responses by model and query type: words, 4-gram repetition, share of relevant sentences, Self-BLEU.

    Columns: `response`; optionally `model` (without it each of several sources is one), `query_type`, `relevant_sentences`
    (a share, as the step of that name adds), and `prompt`: several responses of one model to a prompt are its samples,
    of which Self-BLEU is taken. A store is read as its rows. Words are runs of letters or of punctuation. Intervals are
    bootstraps over prompts. The figure of a single group shows how its responses are distributed.

    Raises:
        StudyError: The sources cannot be read, or no row has a response.
    """
    groups = measure(_read(tables))
    return result("responses", _table(groups), _figure(groups), _finding(groups))


def _read(tables: Sequence[StudySource]) -> ResponseTable:
    study = "responses"
    table = sources.read(study, tables, ["response"], named="model")
    table = table.filter(pc.is_valid(table["response"]))
    if not len(table):
        raise StudyError(f"{study}: no row has a response; name a table that holds some")
    answers = sources.texts(study, table, "response")
    models, kinds = (sources.column_or_all(study, table, name) for name in ("model", "query_type"))
    if len(set(kinds)) > 1 and "all" in kinds:
        raise StudyError(
            f"{study}: a row has the query_type 'all', which stands for all of them; call it something else"
        )
    has_prompts = "prompt" in table.column_names
    prompts = [prompt_text(prompt) for prompt in sources.prompts(study, table)] if has_prompts else None
    relevant = _shares(study, table, "relevant_sentences") if "relevant_sentences" in table.column_names else None
    return ResponseTable(answers, models, kinds, prompts, relevant)


def _shares(study: str, table: pa.Table, name: str) -> Doubles:
    """Return a column of shares, NaN where a row has none."""
    valid = pc.is_valid(table[name]).to_numpy()
    if pa.types.is_floating(table[name].type):
        # NaN is what pandas writes for a missing share; to Arrow it is a number.
        valid &= ~pc.is_nan(pc.fill_null(table[name], math.nan)).to_numpy()
    values = np.full(len(table), np.nan)
    values[valid] = sources.numbers(study, table.filter(pa.array(valid)), name)
    # Outside [0, 1] on either side.
    if (np.abs(values[valid] - 0.5) > 0.5).any():
        raise StudyError(f"{study}: {name} is a share, from 0 to 1; divide per cent by 100")
    return values


def measure(responses: ResponseTable) -> list[AnswerGroup]:
    """Average each measure over the responses of each model, by query type and over all of them."""
    values = {
        "words": words.counts(pa.array(responses.texts, pa.large_string())).astype(np.float64),
        "repetition": np.array([texts.repetition(text) for text in responses.texts]),
    }
    if responses.relevant is not None:
        values["relevant"] = responses.relevant
    rows: dict[tuple[str, str], list[int]] = {}
    for i, key in enumerate(zip(responses.models, responses.query_types, strict=True)):
        rows.setdefault(key, []).append(i)
    # With one query type, its group is all responses: the same group twice would say nothing.
    if len(set(responses.query_types)) > 1:
        for i, model in enumerate(responses.models):
            rows.setdefault((model, "all"), []).append(i)
    # Models in the order in which the table names them; of each, all of its responses first.
    first_row = {model: responses.models.index(model) for model in set(responses.models)}
    ordered = sorted(rows, key=lambda key: (first_row[key[0]], key[1] != "all", key[1]))
    return [AnswerGroup(*key, len(rows[key]), _measures(responses, values, rows[key])) for key in ordered]


def _measures(responses: ResponseTable, values: Mapping[str, Doubles], rows: Sequence[int]) -> dict[str, Measure]:
    prompts = None if responses.prompts is None else [responses.prompts[i] for i in rows]
    measures = {name: Measure(column[rows], _mean_by_prompt(column[rows], prompts)) for name, column in values.items()}
    if prompts is not None:
        samples: dict[str, list[str]] = {}
        for i, prompt in zip(rows, prompts, strict=True):
            samples.setdefault(prompt, []).append(responses.texts[i])
        # (prompts with several samples,): one sample has no other to be compared with.
        bleus = np.array([texts.self_bleu(answers) for answers in samples.values() if len(answers) > 1])
        measures["self_bleu"] = Measure(bleus, bootstrap_mean(bleus) if len(bleus) else NOTHING)
    return {name: column for name, column in measures.items() if not math.isnan(column.mean.estimate)}


def _mean_by_prompt(values: Doubles, prompts: Sequence[str] | None) -> Interval:
    """Return the mean of the values that are not NaN, resampled by prompt."""
    valid = np.isfinite(values)
    if not valid.any():
        return NOTHING
    groups = None if prompts is None else [prompt for prompt, is_valid in zip(prompts, valid, strict=True) if is_valid]
    return bootstrap_mean(values[valid], groups)


def _measured(groups: Sequence[AnswerGroup]) -> list[str]:
    """Return the measures that at least one group has."""
    return [name for name in _MEASURES if any(name in group.measures for group in groups)]


def _table(groups: Sequence[AnswerGroup]) -> pa.Table:
    columns: dict[str, Sequence[object]] = {
        "model": [group.model for group in groups],
        "query_type": [group.query_type for group in groups],
        "responses": [group.responses for group in groups],
    }
    return tabulate(_COLUMNS, columns, {name: [group.mean(name) for group in groups] for name in _measured(groups)})


def _figure(groups: Sequence[AnswerGroup]) -> Figure:
    if len(groups) == 1:
        [group] = groups
        panels = {_MEASURES[name]: figure.Histogram(*group.measures[name]) for name in _measured(groups)}
        unit = "of Self-BLEU prompts" if "self_bleu" in group.measures else ""
        note = f"n = {group.responses:,} responses. Line: mean; band: its 95 % bootstrap interval over prompts."
        return figure.histograms(panels, f"responses ({unit})" if unit else "responses", note)
    return figure.dots(
        {
            _MEASURES[name]: [
                figure.Dot(_label(group), group.mean(name)._replace(n=group.responses)) for group in groups
            ]
            for name in _measured(groups)
        },
        "",
        "Means; bars: 95 % bootstrap intervals over prompts.",
        unit="responses",
        own_axes=True,
    )


def _label(group: AnswerGroup) -> str:
    return ", ".join(name for name in (group.model, group.query_type) if name != "all") or "all"


def _finding(groups: Sequence[AnswerGroup]) -> str:
    by_model: dict[str, dict[str, AnswerGroup]] = {}
    for group in groups:
        by_model.setdefault(group.model, {})[group.query_type] = group
    return "; ".join(_description(model, by_type) for model, by_type in by_model.items())


def _description(model: str, by_type: Mapping[str, AnswerGroup]) -> str:
    overall = by_type.get("all") or next(iter(by_type.values()))
    name = "responses" if model == "all" else model
    line = f"{name}: {shown(overall.mean('words'), '.0f')} words, 4-gram repetition {shown(overall.mean('repetition'), '.3f')}"
    if "relevant" in overall.measures:
        line += f", {shown(overall.mean('relevant'), '.1f', 100, ' %')} of sentences relevant"
    kinds = [by_type[kind] for kind in ("closed", "open") if kind in by_type and "self_bleu" in by_type[kind].measures]
    if len(kinds) == 2:
        closed, open_ended = (group.mean("self_bleu") for group in kinds)
        verb = "not told apart from"
        if closed.low > open_ended.high:
            verb = "above"
        elif closed.high < open_ended.low:
            verb = "below"
        line += (
            f", Self-BLEU of closed queries {shown(closed, '.2f')} {verb} that of open ones {shown(open_ended, '.2f')}"
        )
    elif "self_bleu" in overall.measures:
        line += f", Self-BLEU {shown(overall.mean('self_bleu'), '.2f')}"
    return line


RESPONSES = Study(
    "responses",
    "what responses look like by model and query type: length, repetition, relevance, variety",
    "response; optionally model, prompt, query_type, relevant_sentences",
    _COLUMNS,
    responses,
)
