"""Verdicts of a language model between a model's answers and a baseline's, asked in both positions; `winrate` reads them.

The prompt is MT-Bench's for pairs (Zheng et al. 2023), which RER's authors ran too. A reply without a verdict leaves NULL
and what came back.
"""

from __future__ import annotations

import os
import re
from collections import Counter
from collections.abc import Sequence
from functools import partial
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import yaml
from pydantic import JsonValue, TypeAdapter, ValidationError

from seamcurate import prompts
from seamcurate.errors import StudyError, first_line
from seamcurate.models import Conversation, LanguageModelConfig, Request, calls
from seamcurate.models.reply import field, last_first, read
from seamcurate.models.template import prompt_text
from seamcurate.storage import objects
from seamcurate.study import results
from seamcurate.study.results import Data
from seamcurate.text import brief

_STUDY = "compare"
_VERDICT = re.compile(r"\[\[\s*([ABC])\s*\]\]")
_SCHEMA: dict[str, JsonValue] = {
    "type": "object",
    "properties": {"explanation": {"type": "string"}, "verdict": {"type": "string", "enum": ["A", "B", "C"]}},
    "required": ["explanation", "verdict"],
    "additionalProperties": False,
}
"""What servers that follow schemas answer in; what the published prompt asks for is read all the same."""
_SAID = {("A", "first"): "win", ("B", "first"): "lose", ("A", "second"): "lose", ("B", "second"): "win"}


def read_judge(file: str | Path) -> LanguageModelConfig:
    """Read which language model judges from YAML, as a recipe names it: `{openai_server: NAME, base_url: …}`.

    Raises:
        StudyError: The file cannot be read, or names none.
    """
    try:
        named = yaml.safe_load(Path(file).read_text(encoding="utf-8"))
        judge: LanguageModelConfig = TypeAdapter(LanguageModelConfig).validate_python(named)
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        raise StudyError(f"judge {file}: {first['msg']}; write it as {{openai_server: NAME, base_url: …}}") from error
    except (OSError, ValueError, RecursionError, yaml.YAMLError) as error:
        raise StudyError(f"judge {file} cannot be read: {first_line(error)}") from error
    return judge


def compare(
    answers: Sequence[Data],
    baseline: Data,
    judge: LanguageModelConfig,
    out: str | Path,
    template: str = "",
    rows: int | None = None,
    max_usd: float | None = None,
) -> int:
    """Ask a judge which answer to a prompt is better, with either first, and write its verdicts as Parquet.

    Args:
        answers: Tables with `prompt` and `response`, `model` and `sample` where there are, as `answer` writes them.
        baseline: One more, of the model that they are held against, with an answer to each of their prompts.
        judge: The language model; `read_judge` reads one from a file. Its answers are kept in `calls/` beside `out`, so
            that none is bought twice.
        out: The file: `model`, `prompt_id`, `position` (`first` or `second`: where the model's answer stood), `verdict`
            (`win`, `tie`, `lose`; NULL where there was none), `reason` (what came back then), `response`, `baseline_response`.
        template: A prompt with {question}, {answer} and {other} in place of the published one.
        rows: Of each table, the first so many answers only.
        max_usd: Stop before spending more.

    Returns:
        How many replies held no verdict.

    Raises:
        StudyError: A table cannot be read, the baseline lacks an answer, or `out` is a folder.
        ModelError: The endpoint cannot be used at all.
        BudgetError: The next call might cost more than is left.
    """
    place = objects.folder(out, "compare").expanduser()
    if place.is_dir():
        raise StudyError(f"{out} is a folder; name the Parquet file to write")
    found = _pairs(answers, baseline, rows)
    template = template or prompts.bundled("better_answer")
    with calls.kept(place.parent / "calls", max_usd):
        told = judge.load().converse([partial(_conversation, template, *pair[2:]) for pair in found])
    table = pa.table(
        {
            "model": [pair[0] for pair in found],
            "prompt_id": [pair[1] for pair in found],
            "position": [pair[5] for pair in found],
            "verdict": pa.array([verdict for verdict, _ in told], pa.string()),
            "reason": pa.array([reason for _, reason in told], pa.string()),
            "response": [pair[3] for pair in found],
            "baseline_response": [pair[4] for pair in found],
        }
    )
    beside = place.with_name(f".{place.name}.{os.getpid()}.tmp")
    pq.write_table(table, beside)
    os.replace(beside, place)
    return sum(verdict is None for verdict, _ in told)


def verdict(text: str) -> str | None:
    """Read `[[A]]`, `[[B]]` or `[[C]]` from a judge's answer, the last one, or its `verdict`; None where there is none."""
    named = field(text, "verdict")
    if isinstance(named, str) and (letter := named.strip(" []").upper()) in ("A", "B", "C"):
        return letter
    return next((match[1] for match in last_first(_VERDICT, text)), None)


def _conversation(
    template: str, question: str, own: str, other: str, position: str
) -> Conversation[tuple[str | None, str | None]]:
    one, two = (own, other) if position == "first" else (other, own)
    answer = read((yield Request(prompts.render(template, question, one, other=two), _SCHEMA)))
    said = verdict(answer.text) if answer.whole else None
    if said is None:
        return None, answer.reason
    return _SAID.get((said, position), "tie"), None


def _pairs(answers: Sequence[Data], baseline: Data, rows: int | None) -> list[tuple[str, str, str, str, str, str]]:
    """Return model, prompt's name, prompt, own answer, baseline's, position; each pair with both positions."""
    if rows is not None and rows < 1:
        raise StudyError(f"{_STUDY}: {rows} answers are to be compared; name a number from 1")
    others = {(asked, sample): text for _, asked, sample, text in _answers(baseline)}
    found = []
    for source in answers:
        for model, asked, sample, text in _answers(source)[:rows]:
            if (asked, sample) not in others:
                raise StudyError(
                    f"{_STUDY}: {results.title(baseline)} has no answer to {brief(asked, 60)!r} of {results.title(source)}; "
                    "let both models answer the same prompts"
                )
            name = f"{asked}\n{sample}" if sample else asked
            for position in ("first", "second"):
                found.append((model, name, asked, text, others[asked, sample], position))
    return found


def _answers(source: Data) -> list[tuple[str, str, str, str]]:
    """Return model, prompt, which of its samples, and text of each answer."""
    table = results.read(_STUDY, [source], ["prompt", "response"])
    there, count = table.column_names, len(table)
    models = results.names(_STUDY, table, "model") if "model" in there else [results.title(source)] * count
    samples = results.names(_STUDY, table, "sample") if "sample" in there else ["0"] * count
    texts = results.texts(_STUDY, table, "response")
    asked = [prompt_text(prompt) for prompt in results.prompts(_STUDY, table)]
    found, times = [], Counter[tuple[str, str, str]]()
    for model, prompt, sample, text in zip(models, asked, samples, texts, strict=True):
        # A prompt that the data hold twice was answered twice: the nth answer stands against the other side's nth.
        nth = times[model, prompt, sample]
        times[model, prompt, sample] += 1
        found.append((model, prompt, f"{sample}, {nth}" if nth else "" if sample == "0" else sample, text))
    return found
