"""The noise floor of a model's scores: how far the same text's score moves with what it is scored beside.

A few rows are scored whole, in reverse, in small lots, and their first answers one by one; the largest difference is kept beside the
column. A threshold that cuts closer than that cuts by chance.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Sequence
from itertools import accumulate
from pathlib import Path
from typing import TypeAlias
from uuid import uuid4

from pydantic import JsonValue

from seamcurate.models.protocols import Prompt, Responses
from seamcurate.step import Data, finite

Texts: TypeAlias = list[tuple[Prompt, list[str]]]
"""Prompts, each with its answers."""
Scores: TypeAlias = tuple[float, ...]
Score: TypeAlias = Callable[[Sequence[Prompt], Responses], Sequence[Sequence[Scores | None]]]
"""What each prompt's answers are scored: one number a column."""

_ROWS = 4
_ANSWERS = 3


def sample(data: Data, shared: Path, answers: str) -> None:
    """Keep the first few rows that have answers, to be measured when the model is loaded.

    Args:
        data: Where the rows are.
        shared: The step's folder.
        answers: The column of golden responses, or of candidates.
    """
    found: Texts = []
    for table in data.rows(("prompt", answers)):
        for prompt, given in zip(table["prompt"].to_pylist(), table[answers].to_pylist(), strict=True):
            texts = [given] if isinstance(given, str) else [one["response"] for one in given or []]
            if texts:
                found.append((prompt, texts[:_ANSWERS]))
            if len(found) == _ROWS:
                break
        if len(found) == _ROWS:
            break
    (shared / "sample.json").write_text(json.dumps(found))


def measure(shared: Path, columns: Sequence[str], score: Score) -> None:
    """Measure each column's largest difference over the sample and leave it in the folder, unless it is there."""
    file, kept = shared / "noise.json", shared / "sample.json"
    if file.exists() or not kept.exists():
        return
    texts: Texts = [(prompt, answers) for prompt, answers in json.loads(kept.read_text())]
    found = dict(zip(columns, _largest(texts, score, len(columns)), strict=True))
    beside = file.with_name(f".noise.{uuid4().hex}.tmp")
    beside.write_text(json.dumps(found))
    try:
        # Of workers that measure at once the first is heard: what was listed as whole must not change.
        os.link(beside, file)
    except FileExistsError:
        pass
    except OSError:
        # A file system without hard links.
        os.replace(beside, file)
    finally:
        beside.unlink(missing_ok=True)


def plain(score: Callable[[Sequence[Prompt], Responses], Sequence[Sequence[float | None]]]) -> Score:
    """Wrap what scores each answer by a single number."""
    return lambda prompts, answers: [
        [None if one is None else (one,) for one in row] for row in score(prompts, answers)
    ]


def facts(shared: Path) -> dict[str, JsonValue]:
    """Return what was measured, by column, as a step's facts state it."""
    file = shared / "noise.json"
    return {"noise": json.loads(file.read_text())} if file.exists() else {}


def _largest(texts: Texts, score: Score, width: int) -> Scores:
    whole = _scored([texts], score)
    backwards = [(prompt, answers[::-1]) for prompt, answers in texts[::-1]]
    lots = [texts[start : start + 3] for start in range(0, len(texts), 3)]
    firsts = [0, *accumulate(len(answers) for _, answers in texts)][:-1]
    single = _scored([[(prompt, answers[:1])] for prompt, answers in texts], score)
    compared = [
        *zip(whole, _scored([backwards], score)[::-1], strict=True),
        *zip(whole, _scored(lots, score), strict=True),
        *zip([whole[i] for i in firsts], single, strict=True),
    ]
    pairs = [(a, b) for a, b in compared if a is not None and b is not None]
    # What is not finite becomes NULL in the column: it has no noise.
    sound = [[(a[i], b[i]) for a, b in pairs if None not in (finite(a[i]), finite(b[i]))] for i in range(width)]
    moved = [[abs(a - b) for a, b in each] for each in sound]
    return tuple(max(differences, default=0.0) for differences in moved)


def _scored(lots: Sequence[Texts], score: Score) -> list[Scores | None]:
    """Score lot by lot; returns all scores in order."""
    rows = (row for lot in lots for row in score([prompt for prompt, _ in lot], [answers for _, answers in lot]))
    return [one for row in rows for one in row]
