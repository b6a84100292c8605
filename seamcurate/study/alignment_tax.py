"""What alignment costs on other tasks: ROUGE-L against references (RER §4.3, Table 4).

tax          references, response; optionally model, task, instance_id, input
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import TYPE_CHECKING

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from seamcurate.errors import StudyError
from seamcurate.study import baselines, figure, sources
from seamcurate.study.results import Study, StudyResult, result, tabulate
from seamcurate.study.sources import StudySource
from seamcurate.study.statistics import NOTHING, Doubles, Interval, bootstrap_mean, shown
from seamcurate.study.texts import rouge_l, stemmer
from seamcurate.text import brief

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_BASELINES = {"echo": "echoing the input", "other": "the answer to another instance"}
_COLUMNS = {
    "model": "the model measured",
    "kind": "response, or the simple baselines echo (of the input) and other (another instance's answer)",
    "instances": "instances answered",
    "tasks": "different tasks",
    "rouge_l": "ROUGE-L's F measure, 0 to 100, the best over references",
    "tax": "the baseline's ROUGE-L minus the model's, on the same instances",
}


@dataclass(frozen=True)
class Answers:
    """Answers to instances of tasks, row by row."""

    responses: Sequence[str]
    references: Sequence[Sequence[str]]
    models: Sequence[str]
    tasks: Sequence[str]
    inputs: Sequence[str] | None
    instances: Sequence[tuple[str, str]] | None
    """Task and id of each row's instance."""

    def rows(self, model: str) -> list[int]:
        """Return the rows of a model."""
        return [i for i, name in enumerate(self.models) if name == model]


@dataclass(frozen=True)
class ModelScore:
    """How one model does, beside simple baselines on the same instances."""

    model: str
    tasks: int
    rouge: Mapping[str, Interval]
    """ROUGE-L of the `response`, of the `echo` and of the `other` answer."""
    tax: Interval
    """The baseline model's ROUGE-L minus this one's; `NOTHING` without a baseline model."""
    margins: Mapping[str, baselines.Margin]
    """How far the response lies above each simple baseline."""


def tax(*tables: StudySource, baseline: str | None = None) -> StudyResult:
    """Measure zero-shot tasks by ROUGE-L against references, and what alignment cost: the tax against a baseline.

    Columns: `references` (a text or a list of texts) and `response`; optionally `model` (without it each of several
    sources is one), `task`, `instance_id` and `input`. ROUGE-L is the F measure of stemmed words, the best over
    references, × 100, as Super-NaturalInstructions' own evaluation has it. Simple baselines: the first words of the
    input, as many as the response has, and the response to another instance of the task.

    Args:
        tables: Tables of responses.
        baseline: The model before alignment, one of `model`.

    Raises:
        StudyError: The sources cannot be read, or there is no such baseline.
    """
    scores = measure(_read(tables, baseline), baseline)
    return result("tax", _table(scores), _figure(scores, baseline), _finding(scores, baseline))


def _read(tables: Sequence[StudySource], baseline: str | None) -> Answers:
    study = "tax"
    table = sources.read(study, tables, ["references", "response"], named="model")
    responses = sources.texts(study, table, "response", missing="")
    models, tasks = (sources.column_or_all(study, table, name) for name in ("model", "task"))
    references = _references(study, table)
    instances = _instances(study, table, models, tasks) if "instance_id" in table.column_names else None
    if baseline is not None and baseline not in models:
        raise StudyError(
            f"{study}: no row is of the baseline {baseline!r}; there are {', '.join(dict.fromkeys(models))}"
        )
    if set(models) == {baseline}:
        raise StudyError(f"{study}: all rows are of the baseline {baseline!r}; add the model that is held against it")
    inputs = sources.texts(study, table, "input", missing="") if "input" in table.column_names else None
    return Answers(responses, references, models, tasks, inputs, instances)


def _references(study: str, table: pa.Table) -> list[list[str]]:
    """Return the references of each row, of which it has at least one."""
    column = table["references"]
    if not pa.types.is_list(column.type) and not pa.types.is_large_list(column.type):
        return [[text] for text in sources.texts(study, table, "references")]
    # A missing list and an empty one are both no reference.
    counts = pc.fill_null(pc.list_value_length(column), 0).to_numpy()
    for i in np.flatnonzero(counts == 0).tolist():
        raise StudyError(f"{study}: row {i} has no reference; leave it out")
    # (references,): each flat reference with the number of its row, so that an error names that row.
    rows = pa.array(np.repeat(np.arange(len(table)), counts))
    flat = iter(sources.texts(study, pa.table({"row": rows, "references": pc.list_flatten(column)}), "references"))
    return [list(islice(flat, int(count))) for count in counts]


def _instances(study: str, table: pa.Table, models: list[str], tasks: list[str]) -> list[tuple[str, str]]:
    """Return each row's task and instance id, which a model has once."""
    instances = list(zip(tasks, sources.names(study, table, "instance_id"), strict=True))
    [((model, instance), count)] = Counter(zip(models, instances, strict=True)).most_common(1)
    if count > 1:
        raise StudyError(
            f"{study}: {brief(model, 60)} answered instance {brief(instance[1], 60)} {count} times; keep one answer"
        )
    return instances


def measure(answers: Answers, baseline: str | None) -> list[ModelScore]:
    """Score each model's responses and the simple baselines, and what each model loses against the baseline model."""
    rouge = _rouge(answers)
    scores = []
    for model in dict.fromkeys(answers.models):
        rows = answers.rows(model)
        means = {kind: _mean(values[rows]) for kind, values in rouge.items() if np.isfinite(values[rows]).any()}
        cost = NOTHING if baseline is None else _cost(answers, rouge["response"], answers.rows(baseline), rows)
        margins = {
            _BASELINES[kind]: baselines.Margin(shown(interval, ".1f"), _mean((rouge["response"] - rouge[kind])[rows]))
            for kind, interval in means.items()
            if kind != "response"
        }
        scores.append(ModelScore(model, len({answers.tasks[i] for i in rows}), means, cost, margins))
    return scores


def _rouge(answers: Answers) -> dict[str, Doubles]:
    """Return ROUGE-L of each row's response and of the simple baselines, NaN where there is none."""
    split = stemmer()
    references = [[split(text) for text in texts] for texts in answers.references]

    def score(texts: Sequence[str]) -> Doubles:
        pairs = zip(map(split, texts), references, strict=True)
        return 100 * np.array(
            [max(rouge_l(words, reference) for reference in row_references) for words, row_references in pairs]
        )

    rouge = {"response": score(answers.responses)}
    if answers.inputs is not None:
        pairs = zip(answers.inputs, answers.responses, strict=True)
        # As many words as the answer has: ROUGE-L's F depends on length, which must not decide here.
        rouge["echo"] = score([" ".join(given.split()[: len(answer.split())]) for given, answer in pairs])
    swapped = _swapped(answers)
    missing = np.array([answer is None for answer in swapped])
    # Scored as an empty text first, since `score` takes texts alone, then set to NaN: it is no answer of 0.
    rouge["other"] = np.where(missing, np.nan, score([answer or "" for answer in swapped]))
    return rouge


def _swapped(answers: Answers) -> list[str | None]:
    """Give each instance the answer to the next one of its task by the same model; None where it is the only one."""
    rows: dict[tuple[str, str], list[int]] = {}
    for i, key in enumerate(zip(answers.models, answers.tasks, strict=True)):
        rows.setdefault(key, []).append(i)
    swapped: list[str | None] = [None] * len(answers.responses)
    for task_rows in rows.values():
        # Each answer is moved on by one, so that each is used once; alone in its task, it would meet its own instance.
        for i, following in zip(task_rows, task_rows[1:] + task_rows[:1], strict=True):
            swapped[i] = answers.responses[following] if following != i else None
    return swapped


def _mean(values: Doubles) -> Interval:
    return bootstrap_mean(values[np.isfinite(values)])


def _cost(answers: Answers, scores: Doubles, baseline_rows: list[int], model_rows: list[int]) -> Interval:
    """Return baseline minus model, paired by instance if instances have ids, else in their order."""
    if answers.instances is None:
        if len(baseline_rows) != len(model_rows):
            raise StudyError(
                f"tax: models answered {len(baseline_rows)} and {len(model_rows)} instances; add `instance_id`"
            )
        return bootstrap_mean(scores[baseline_rows] - scores[model_rows])
    # Pairing by instance takes out how hard the instances are, which varies more than models do.
    row_of = {answers.instances[i]: i for i in model_rows}
    pairs = [(i, row_of[answers.instances[i]]) for i in baseline_rows if answers.instances[i] in row_of]
    if not pairs:
        raise StudyError("tax: the models share no instance_id; let them answer the same instances")
    return bootstrap_mean(np.array([scores[i] - scores[j] for i, j in pairs]))


def _table(scores: Sequence[ModelScore]) -> pa.Table:
    rows = [(score, kind, interval) for score in scores for kind, interval in score.rouge.items()]
    columns: dict[str, Sequence[object]] = {
        "model": [score.model for score, _, _ in rows],
        "kind": [kind for _, kind, _ in rows],
        "instances": [interval.n for _, _, interval in rows],
        "tasks": [score.tasks for score, _, _ in rows],
    }
    intervals = {
        "rouge_l": [interval for _, _, interval in rows],
        "tax": [score.tax if kind == "response" else NOTHING for score, kind, _ in rows],
    }
    return tabulate(_COLUMNS, columns, intervals)


def _figure(scores: Sequence[ModelScore], baseline: str | None) -> Figure:
    dots = [
        figure.Dot(
            score.model if kind == "response" else f"{score.model}: {_BASELINES[kind]}", interval, kind != "response"
        )
        for score in scores
        for kind, interval in score.rouge.items()
    ]
    line = next(((s.rouge["response"].estimate, s.model) for s in scores if s.model == baseline), None)
    return figure.dots(
        {"Following instructions on other tasks": dots},
        "ROUGE-L (0 to 100)",
        "Bars: 95 % bootstrap intervals over instances. Hollow: simple baselines.",
        line,
        "instances",
    )


def _finding(scores: Sequence[ModelScore], baseline: str | None) -> str:
    compared = [score for score in scores if score.model != baseline] or list(scores)
    line = f"ROUGE-L {', '.join(f'{s.model} {_response(s)}' for s in compared)}"
    if baseline is not None:
        reference = next(score for score in scores if score.model == baseline)
        taxes = ", ".join(f"{score.model} {shown(score.tax, '+.1f')}" for score in compared)
        verdicts = [f"{score.model} pays" for score in scores if score.tax.above_zero]
        verdicts += [f"{score.model} gains" for score in scores if score.tax.below_zero]
        line = f"against {baseline} at {_response(reference)} ROUGE-L the tax is {taxes}"
        line += f": {', '.join(verdicts)}" if verdicts else ": not told apart from none"
    # The caveat is of the best model: where it does not beat a simple baseline, none does.
    best = max(compared, key=lambda score: score.rouge["response"].estimate)
    return line + baselines.caveat(best.margins)


def _response(score: ModelScore) -> str:
    return shown(score.rouge["response"], ".1f")


TAX = Study(
    "tax",
    "what alignment costs on other tasks, by ROUGE-L",
    "references, response; optionally model, task, instance_id, input",
    _COLUMNS,
    tax,
)
