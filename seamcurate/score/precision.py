"""What a precision that was named for speed changes: some rows are scored in it and in float32 before a column is begun.

The largest difference counts as the column's noise, so that a split whose threshold cuts inside it says so. Beside it stands
the share of the sampled rows that would change sides at a cut.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Sequence
from itertools import islice
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt
from pydantic import JsonValue

from seamcurate.models import Embedder
from seamcurate.models.backend import Backend
from seamcurate.models.ensemble import RewardEnsemble
from seamcurate.models.equivalence import Scores, differences
from seamcurate.models.local import LocalModel
from seamcurate.models.template import prompt_text
from seamcurate.models.vectors import unit
from seamcurate.score import noise
from seamcurate.score.noise import Score
from seamcurate.step import Data

_ROWS, _ANSWERS = 50, 3
"""Rows that are scored in both, and answers of each, at most."""
_RATE = 0.2
"""The share of rows that the cut drops: SEAM's, see METHOD."""
_TEXTS = "texts_in_float32.json"

ScoreOf: TypeAlias = Callable[[Any], Score]
"""A loaded model → the function by which it scores answers."""
Values: TypeAlias = npt.NDArray[np.float64]


def sample(model: object, data: Data, shared: Path, answers: str, columns: Sequence[str] = ()) -> None:
    """Store the first rows that have answers, for `measure`; does nothing for a model in float32, or on a GPU."""
    if exact(model) is not None:
        noise.store(shared / _TEXTS, data, answers, columns, _ROWS, _ANSWERS)


def sample_prompts(model: object, data: Data, shared: Path) -> None:
    """Store the first prompts, for `measure_embeddings`; does nothing for an encoder in float32, or on a GPU."""
    if exact(model) is not None:
        prompts = (prompt for table in data.rows(("prompt",)) for prompt in table["prompt"].to_pylist())
        rows: list[JsonValue] = [["", [prompt_text(prompt)]] for prompt in islice(prompts, _ROWS * _ANSWERS)]
        (shared / _TEXTS).write_text(json.dumps(rows))


def exact(model: object) -> Any:
    """Return the model that computes in float32 throughout; None where it does already, or computes on a GPU."""
    if isinstance(model, LocalModel):
        return model.exact()
    if isinstance(model, RewardEnsemble):
        members = [exact(member) or member for member in model.ensemble]
        if members != list(model.ensemble):
            return model.model_copy(update={"ensemble": tuple(members)})
    return None


def measure(model: object, loaded: Any, shared: Path, columns: Sequence[str], score: ScoreOf, cut: int = 0) -> None:
    """Score the sampled rows in float32, too, and write what differs to the step's folder, unless it stands there.

    Args:
        model: The configuration of the model.
        loaded: The model.
        shared: The step's folder, with the rows that `sample` stored.
        columns: The columns that the numbers of a score go to.
        score: Returns how a loaded model scores.
        cut: The number of a score by which rows are cut.
    """
    single = exact(model)
    if single is None or not (shared / _TEXTS).exists() or (shared / noise.PRECISION).exists():
        return
    texts = noise.stored(shared / _TEXTS)
    scores, exact_scores = (noise.scored([texts], score(scorer)) for scorer in (loaded, single.load()))
    largest = differences(scores, exact_scores)
    sizes = [len(row.answers) for row in texts]
    moved = changed_sides(_means(scores, sizes, cut), _means(exact_scores, sizes, cut))
    _keep(model, shared, dict(zip(columns, largest, strict=False)), len(texts), moved)


def measure_embeddings(model: object, embedder: Embedder, shared: Path) -> None:
    """Embed the sampled prompts in float32, too; what differs is the cosine of two of them. See `measure`."""
    single = exact(model)
    if single is None or not (shared / _TEXTS).exists() or (shared / noise.PRECISION).exists():
        return
    texts = [answer for row in noise.stored(shared / _TEXTS) for answer in row.answers]
    if len(texts) < 2:
        return
    cosines = []
    for encoder in (embedder, single.load()):
        vectors = unit(encoder.embed(texts))
        cosines.append((vectors @ vectors.T).astype(np.float64))
        # No text is its own neighbour.
        np.fill_diagonal(cosines[-1], -2)
    moved = float((cosines[0].argmax(1) != cosines[1].argmax(1)).mean())
    _keep(model, shared, {"embedding": float(np.abs(cosines[0] - cosines[1]).max())}, len(texts), moved)


def changed_sides(scores: Values, exact_scores: Values, rate: float = _RATE) -> float | None:
    """Return the share of rows that only one of two scores puts among the lowest; None where fewer than two rows have both.

    Example:
        >>> changed_sides(np.array([1.0, 2, 3, 4, 5]), np.array([2.0, 1, 3, 4, 5]))
        0.4
    """
    finite = np.isfinite(scores) & np.isfinite(exact_scores)
    count = int(finite.sum())
    if count < 2:
        return None
    dropped = math.ceil(rate * count)
    lowest = [set(np.argsort(values[finite], kind="stable")[:dropped].tolist()) for values in (scores, exact_scores)]
    return len(lowest[0] ^ lowest[1]) / count


def facts(step_facts: dict[str, JsonValue], shared: Path) -> dict[str, JsonValue]:
    """Return a step's facts with those of the precision, and its line added to the summary."""
    file = shared / noise.PRECISION
    if not file.exists():
        return step_facts
    measured = json.loads(file.read_text())
    summary = "; ".join(str(line) for line in (step_facts.get("summary"), measured["line"]) if line)
    return {**step_facts, "precision": measured, "summary": summary}


def _means(scores: Sequence[Scores | None], sizes: Sequence[int], number: int) -> Values:
    """Return each row's mean of one number of its answers' scores; NaN without any."""
    flat = iter(scores)
    means = []
    for size in sizes:
        values = [score[number] for score in islice(flat, size) if score is not None]
        means.append(float(np.mean(values)) if values else math.nan)
    return np.array(means)


def _keep(model: object, shared: Path, largest: dict[str, float], rows: int, moved: float | None) -> None:
    assert isinstance(model, Backend)
    listed = ", ".join(f"{column} {value:.2g}" for column, value in largest.items())
    precisions = sorted({part.arithmetic() for part in model.parts() if isinstance(part, LocalModel) and part.exact()})
    named = f"{' and '.join(precisions)} ({model.title})"
    changed = "their nearest row" if "embedding" in largest else f"the side of a cut at {_RATE:.0%}"
    line = f"{named} against float32, {rows} rows: largest difference of {listed}"
    if moved is not None:
        line += f"; {moved:.1%} of rows change {changed}"
    differences_of: dict[str, JsonValue] = dict(largest)
    noise.keep(
        shared / noise.PRECISION,
        {"dtype": precisions[0], "differences": differences_of, "rows": rows, "moved": moved, "line": line},
    )
