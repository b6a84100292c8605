"""The noise floor of a model's scores: how much the score of one text depends on the texts in its batch.

A few rows are scored all together, in reverse order, in small batches, and each row's first answer alone. The largest
difference between two scores of the same answer is stored beside the column, or the difference from float32 where the model
computes in another precision for speed and that is larger. A threshold finer than this difference
selects rows by chance.
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Callable, Sequence
from itertools import accumulate
from pathlib import Path
from typing import NamedTuple, TypeAlias
from uuid import uuid4

from pydantic import JsonValue

from seamcurate.models.backend import RewardConfig
from seamcurate.models.protocols import Columns, Prompt, Responses, RewardModel
from seamcurate.step import Data, finite


class SampleRow(NamedTuple):
    """A row that the noise is measured on."""

    prompt: Prompt
    answers: list[str]
    columns: dict[str, JsonValue]
    """Further columns that the model reads."""


PRECISION = "precision.json"
"""The file of what a precision changes, beside the sample; see `precision`."""
Texts: TypeAlias = list[SampleRow]
Scores: TypeAlias = tuple[float, ...]
Score: TypeAlias = Callable[[Sequence[Prompt], Responses, Columns], Sequence[Sequence[Scores | None]]]
"""Score the answers of each prompt; each answer gets one number a column, or None without a score."""


def sample(
    data: Data, shared: Path, answers: str, columns: Sequence[str] = (), count: int = RewardConfig.noise_rows
) -> None:
    """Store the first few rows that have answers; `measure` scores them when the model is loaded.

    Args:
        data: The rows.
        shared: The step's folder.
        answers: The column of golden responses, or of candidates.
        columns: Further columns that the model reads.
        count: How many rows.
    """
    store(shared / "sample.json", data, answers, columns, count, RewardConfig.noise_answers)


def store(file: Path, data: Data, answers: str, columns: Sequence[str], count: int, answer_count: int) -> None:
    """Write the first `count` rows that have answers to a file, each with at most `answer_count` of them; see `sample`."""
    rows: list[JsonValue] = []
    for table in data.rows(("prompt", answers, *columns)):
        for row in table.to_pylist():
            value = row[answers]
            texts = [value] if isinstance(value, str) else [candidate["response"] for candidate in value or []]
            if texts:
                further: list[JsonValue] = [{name: row[name] for name in columns}] if columns else []
                rows.append([row["prompt"], texts[:answer_count], *further])
            if len(rows) == count:
                break
        if len(rows) == count:
            break
    # Values of other types, such as dates, become text: the noise does not depend on them.
    file.write_text(json.dumps(rows, default=str))


def stored(file: Path) -> Texts:
    """Read the rows that `store` wrote."""
    return [
        SampleRow(prompt, answers, *(further or [{}])) for prompt, answers, *further in json.loads(file.read_text())
    ]


def rewards(model: RewardModel) -> Score:
    """Return a function that gives each answer its reward and further outputs."""
    return lambda prompts, answers, further: [
        [
            None if rating.reward is None else (rating.reward, *(_or_nan(value) for value in rating.outputs))
            for rating in row
        ]
        for row in model.ratings(prompts, answers, further)
    ]


def measure_rewards(shared: Path, columns: Sequence[str], model: RewardModel) -> None:
    """Measure the noise of a reward model: of its reward, and of each further output; see `measure`."""

    def own(texts: Texts) -> Sequence[float] | None:
        return model.noise([row.prompt for row in texts], [row.answers for row in texts], _columns(texts))

    measure(shared, columns, rewards(model), own)


def measure(
    shared: Path,
    columns: Sequence[str],
    score: Score,
    own: Callable[[Texts], Sequence[float] | None] = lambda texts: None,
) -> None:
    """Measure each column's largest difference over the sample and write it to the folder, unless the file exists.

    Args:
        shared: The step's folder, with the sample.
        columns: The columns that the scores go to.
        score: Scores answers.
        own: Returns the noise of each column as the model itself measures it; None where batches are to be compared.
    """
    noise_file, sample_file = shared / "noise.json", shared / "sample.json"
    if noise_file.exists() or not sample_file.exists():
        return
    texts = stored(sample_file)
    own_noise = own(texts)
    noise = _largest(texts, score, len(columns)) if own_noise is None else own_noise
    rounding = _rounding(shared)
    keep(noise_file, {c: max(value, rounding.get(c, 0.0)) for c, value in zip(columns, noise, strict=True)})


def keep(file: Path, value: JsonValue) -> None:
    """Write what a worker measured; if two workers measure at the same time, the first write wins."""
    temporary = file.with_name(f".{file.stem}.{uuid4().hex}.tmp")
    temporary.write_text(json.dumps(value))
    try:
        # A file that is listed as complete must not change.
        os.link(temporary, file)
    except FileExistsError:
        pass
    except OSError:
        # A file system without hard links.
        os.replace(temporary, file)
    finally:
        temporary.unlink(missing_ok=True)


def plain(score: Callable[[Sequence[Prompt], Responses], Sequence[Sequence[float | None]]]) -> Score:
    """Wrap a function that gives each answer a single number."""
    return lambda prompts, answers, further: [
        [None if value is None else (value,) for value in row] for row in score(prompts, answers)
    ]


def _rounding(shared: Path) -> dict[str, float]:
    """Return by how much each column differs from float32's, where the model computes in another precision for speed."""
    file = shared / PRECISION
    differences: dict[str, float] = json.loads(file.read_text())["differences"] if file.exists() else {}
    return differences


def facts(shared: Path) -> dict[str, JsonValue]:
    """Return the measured noise by column, as a step's facts hold it."""
    file = shared / "noise.json"
    measured: dict[str, JsonValue] = json.loads(file.read_text()) if file.exists() else {**_rounding(shared)}
    return {"noise": measured} if measured else {}


def _largest(texts: Texts, score: Score, width: int) -> Scores:
    """Return the largest difference between two scores of the same answer, one for each of `width` columns."""
    joint_scores = scored([texts], score)
    reversed_texts = [row._replace(answers=row.answers[::-1]) for row in texts[::-1]]
    batches = [texts[start : start + 3] for start in range(0, len(texts), 3)]
    # Where the first answer of each row lies in `joint_scores`.
    firsts = [0, *accumulate(len(row.answers) for row in texts)][:-1]
    single = scored([[row._replace(answers=row.answers[:1])] for row in texts], score)
    score_pairs = [
        *zip(joint_scores, scored([reversed_texts], score)[::-1], strict=True),
        *zip(joint_scores, scored(batches, score), strict=True),
        *zip([joint_scores[i] for i in firsts], single, strict=True),
    ]
    pairs = [(a, b) for a, b in score_pairs if a is not None and b is not None]
    # A score that is not finite becomes NULL in the column, so that it has no noise.
    finite_pairs = [[(a[i], b[i]) for a, b in pairs if None not in (finite(a[i]), finite(b[i]))] for i in range(width)]
    return tuple(max((abs(a - b) for a, b in column_pairs), default=0.0) for column_pairs in finite_pairs)


def scored(batches: Sequence[Texts], score: Score) -> list[Scores | None]:
    """Score batch by batch; return all scores in order."""
    rows = (
        row
        for batch in batches
        for row in score([row.prompt for row in batch], [row.answers for row in batch], _columns(batch))
    )
    return [scores for row in rows for scores in row]


def _columns(rows: Texts) -> dict[str, list[JsonValue]]:
    """Return the further columns of some rows, one value a row."""
    names = rows[0].columns if rows else ()
    return {name: [row.columns[name] for row in rows] for name in names}


def _or_nan(value: float | None) -> float:
    return math.nan if value is None else value
