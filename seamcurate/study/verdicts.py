"""Verdicts of a language model between a model's answers and a baseline's, asked in both positions; `winrate` reads them.

The prompt is MT-Bench's for pairs (Zheng et al. 2023), which RER's authors used too. One rule: a reply without a verdict
becomes NULL, with the reply as its reason.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import NamedTuple

import pyarrow as pa
import pyarrow.parquet as pq
import yaml
from pydantic import JsonValue, TypeAdapter, ValidationError

from seamcurate import prompts
from seamcurate.errors import StudyError, first_line
from seamcurate.models import Conversation, LanguageModelConfig, Request, calls
from seamcurate.models.reply import field, last_first, read
from seamcurate.models.template import prompt_text
from seamcurate.storage import atomic, objects
from seamcurate.study import sources
from seamcurate.study.sources import StudySource
from seamcurate.text import brief

_STUDY = "compare"
_VERDICT = re.compile(r"\[\[\s*([ABC])\s*\]\]")
_SCHEMA: dict[str, JsonValue] = {
    "type": "object",
    "properties": {"explanation": {"type": "string"}, "verdict": {"type": "string", "enum": ["A", "B", "C"]}},
    "required": ["explanation", "verdict"],
    "additionalProperties": False,
}
"""For servers that follow schemas; the format that the published prompt asks for is read as well."""
_OUTCOMES = {("A", "first"): "win", ("B", "first"): "lose", ("A", "second"): "lose", ("B", "second"): "win"}


def read_judge(file: str | Path) -> LanguageModelConfig:
    """Read which language model judges from YAML, as a recipe names it: `{openai_server: NAME, base_url: …}`.

    Raises:
        StudyError: The file cannot be read, or names no language model.
    """
    try:
        config = yaml.safe_load(Path(file).read_text(encoding="utf-8"))
        judge: LanguageModelConfig = TypeAdapter(LanguageModelConfig).validate_python(config)
    except ValidationError as error:
        problem = error.errors(include_url=False)[0]
        raise StudyError(f"judge {file}: {problem['msg']}; write it as {{openai_server: NAME, base_url: …}}") from error
    except (OSError, ValueError, RecursionError, yaml.YAMLError) as error:
        raise StudyError(f"judge {file} cannot be read: {first_line(error)}") from error
    return judge


def compare(
    answers: Sequence[StudySource],
    baseline: StudySource,
    judge: LanguageModelConfig,
    out: str | Path,
    template: str = "",
    rows: int | None = None,
    max_usd: float | None = None,
) -> int:
    """Ask a judge which answer to a prompt is better, in both orders, and write its verdicts as Parquet.

    Args:
        answers: Tables with `prompt` and `response`, optionally `model` and `sample`, as `answer` writes them.
        baseline: A table of the model that they are compared with, with an answer to each of their prompts.
        judge: The language model; `read_judge` reads one from a file. Its replies are kept in `calls/` beside `out`, so
            that no reply is paid for twice.
        out: The file: `model`, `prompt_id`, `position` (`first` or `second`: where the model's answer was), `verdict`
            (`win`, `tie`, `lose`; NULL without one), `reason` (the reply without a verdict), `response`,
            `baseline_response`.
        template: A prompt with {question}, {answer} and {other} in place of the published one.
        rows: Compare only this many answers of each table, the first ones.
        max_usd: Stop before spending more.

    Returns:
        How many replies held no verdict.

    Raises:
        StudyError: A table cannot be read, the baseline lacks an answer, or `out` is a folder.
        ModelError: The endpoint cannot be used at all.
        BudgetError: The next call might cost more than is left.
    """
    file = objects.folder(out, "compare").expanduser()
    if file.is_dir():
        raise StudyError(f"{out} is a folder; name the Parquet file to write")
    questions = _questions(answers, baseline, rows)
    template = template or prompts.bundled("better_answer")
    with calls.kept(file.parent / "calls", max_usd):
        replies = judge.load().converse([partial(_conversation, template, question) for question in questions])
    table = pa.table(
        {
            "model": [question.model for question in questions],
            "prompt_id": [question.prompt_id for question in questions],
            "position": [question.position for question in questions],
            "verdict": pa.array([outcome for outcome, _ in replies], pa.string()),
            "reason": pa.array([reason for _, reason in replies], pa.string()),
            "response": [question.response for question in questions],
            "baseline_response": [question.baseline_response for question in questions],
        }
    )
    with atomic.replacing(file) as temporary:
        pq.write_table(table, temporary)
    return sum(outcome is None for outcome, _ in replies)


def verdict(text: str) -> str | None:
    """Read `[[A]]`, `[[B]]` or `[[C]]` from a judge's answer, the last one, or its `verdict`; None without either."""
    value = field(text, "verdict")
    if isinstance(value, str) and (letter := value.strip(" []").upper()) in ("A", "B", "C"):
        return letter
    return next((match[1] for match in last_first(_VERDICT, text)), None)


class _Question(NamedTuple):
    """Two answers that the judge compares, in one order."""

    model: str
    prompt_id: str
    prompt: str
    response: str
    baseline_response: str
    position: str
    """Where the model's response is: `first` or `second`."""


class _Answer(NamedTuple):
    """A model's answer to a prompt."""

    model: str
    prompt: str
    sample: str
    """Tells apart the answers to one prompt."""
    text: str


def _conversation(template: str, question: _Question) -> Conversation[tuple[str | None, str | None]]:
    """Ask for a verdict; return it, or the reason why there is none."""
    answer_a, answer_b = question.response, question.baseline_response
    if question.position == "second":
        answer_a, answer_b = answer_b, answer_a
    answer = read((yield Request(prompts.render(template, question.prompt, answer_a, other=answer_b), _SCHEMA)))
    letter = verdict(answer.text) if answer.whole else None
    if letter is None:
        return None, answer.reason
    return _OUTCOMES.get((letter, question.position), "tie"), None


def _questions(answers: Sequence[StudySource], baseline: StudySource, rows: int | None) -> list[_Question]:
    """Pair each answer with the baseline's to the same prompt, in both orders."""
    if rows is not None and rows < 1:
        raise StudyError(f"{_STUDY}: {rows} answers are to be compared; name a number from 1")
    baseline_texts = {(answer.prompt, answer.sample): answer.text for answer in _answers(baseline)}
    questions = []
    for source in answers:
        for model, prompt, sample, text in _answers(source)[:rows]:
            if (prompt, sample) not in baseline_texts:
                raise StudyError(
                    f"{_STUDY}: {sources.title(baseline)} has no answer to {brief(prompt, 60)!r} of {sources.title(source)}; "
                    "let both models answer the same prompts"
                )
            prompt_id = f"{prompt}\n{sample}" if sample else prompt
            questions += [
                _Question(model, prompt_id, prompt, text, baseline_texts[prompt, sample], position)
                for position in ("first", "second")
            ]
    return questions


def _answers(source: StudySource) -> list[_Answer]:
    """Read the answers of a table."""
    table = sources.read(_STUDY, [source], ["prompt", "response"])
    columns, count = table.column_names, len(table)
    models = sources.names(_STUDY, table, "model") if "model" in columns else [sources.title(source)] * count
    samples = sources.names(_STUDY, table, "sample") if "sample" in columns else ["0"] * count
    texts = sources.texts(_STUDY, table, "response")
    prompt_texts = [prompt_text(prompt) for prompt in sources.prompts(_STUDY, table)]
    answers, counts = [], Counter[tuple[str, str, str]]()
    for model, prompt, sample, text in zip(models, prompt_texts, samples, texts, strict=True):
        # A prompt that occurs twice in the data was answered twice: its nth answer is compared with the other side's nth.
        nth = counts[model, prompt, sample]
        counts[model, prompt, sample] += 1
        # The only sample of a prompt needs no name.
        label = f"{sample}, {nth}" if nth else "" if sample == "0" else sample
        answers.append(_Answer(model, prompt, label, text))
    return answers
