"""The sample set of an audit: each golden response as every probe changes it.

One rule: a probe reads its row and the answers of other rows, never a model, so that another reward scores the same answers.
"""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Iterable, Sequence
from functools import cache
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import numpy.typing as npt
import pyarrow as pa
from pydantic import JsonValue
from typing_extensions import override

from seamcurate.contrast import probes
from seamcurate.contrast.probes import PROBES, SHORT, Answered
from seamcurate.contrast.similar import Questions
from seamcurate.data.source import Source
from seamcurate.progress import bar
from seamcurate.step import Data, Step, Transform, column, digest
from seamcurate.text import counted

PROBED = pa.list_(pa.struct([("response", pa.string()), ("probe", pa.string())]))
_LOOKED_UP = pa.schema(
    [("row_id", pa.int64()), ("other", pa.string()), ("similar", pa.string()), ("references", pa.list_(pa.string()))]
)
_FILE = "answers.arrow"
_BLOCK = 512
"""Questions that are compared with all others at once."""
_NEAREST = 8
"""Most similar questions that are looked at until one has another answer."""
_LEAST, _REPEATED = 0.05, 0.95
"""Cosines of words: below the one, a question is no similar one; above the other, it may be the same one in other words."""
_DRAWS = 16
"""Rows that are drawn at random until one has another answer."""


class Probes(Step):
    """Add `worse_probe`: what each probe makes of the golden response, such as half of it, or the answer to another question.

    It is the sample set of `seamcurate audit`. Each candidate has the name of its `probe`; a probe that does not apply to a row
    makes no candidate. Some answers are worse than the golden response, the others no better, see `seamcurate.contrast.PROBES`.
    A row without a response is NULL. Answers to similar questions are those whose prompts share most words (cosine of TF-IDF),
    among the rows, or in `against`.

    Raises:
        SourceError: `against` cannot be read.

    Example:
        >>> import json, tempfile
        >>> from pathlib import Path
        >>> from seamcurate import Probes, Recipe, Source, query, run_local
        >>> scratch = tempfile.TemporaryDirectory()
        >>> rows = Path(scratch.name, "rows.jsonl")
        >>> _ = rows.write_text(json.dumps({"prompt": "6 times 7?", "response": "It is 42.", "reference": "42"}))
        >>> _ = run_local(Recipe(rows=Source(jsonl=str(rows)), steps=[Probes()]), Path(scratch.name, "store"))
        >>> worse = query(Path(scratch.name, "store"), "SELECT unnest(worse_probe) AS worse FROM rows")["worse"].to_pylist()
        >>> next(candidate for candidate in worse if candidate["probe"] == "number_changed")
        {'response': 'It is 39.', 'probe': 'number_changed'}
    """

    seed: int = 0
    against: Source | None = None
    """Where answers to similar questions come from, such as a corpus; by default from the other rows."""

    revision: ClassVar[int] = 1
    rows_per_call: ClassVar[int] = 1024

    @property
    @override
    def name(self) -> str:
        return "worse_probe"

    @property
    @override
    def inputs(self) -> tuple[str, ...]:
        return ("prompt", "response", "reference")

    @property
    @override
    def adds(self) -> pa.Schema:
        return pa.schema(
            [column("worse_probe", PROBED, "the golden response as each probe changes it; NULL without a response")]
        )

    @property
    @override
    def reads_all_rows(self) -> bool:
        """Take answers from other rows."""
        return True

    @override
    def identity(self) -> dict[str, JsonValue]:
        if self.against is not None:
            # Before any step runs: a file that is not there is refused first.
            _check_readable(self.against.model_dump_json())
        return {**super().identity(), "probes": [probe.name for probe in PROBES]}

    @override
    def prepare(self, data: Data, shared: Path) -> None:
        """Find for each row the answer to a similar question, the answer of a row at random, and two other references."""
        row_ids, rows = _read(data.rows(self.inputs))
        pool = rows if self.against is None else _read(chunk.rows for chunk in self.against.chunks())[1]
        random_rows = [self._random(row_id, row, rows) for row_id, row in zip(row_ids, rows, strict=True)]
        looked_up = pa.table(
            [
                pa.array(row_ids, pa.int64()),
                [drawn[0].response if drawn else None for drawn in random_rows],
                _similar(rows, pool),
                [_references(row, drawn) for row, drawn in zip(rows, random_rows, strict=True)],
            ],
            schema=_LOOKED_UP,
        )
        with pa.OSFile(str(shared / _FILE), "wb") as sink, pa.ipc.new_file(sink, looked_up.schema) as writer:
            writer.write_table(looked_up)

    def _random(self, row_id: int, row: Answered, rows: Sequence[Answered]) -> list[Answered]:
        """Draw rows that have another answer."""
        draw = random.Random(f"{self.seed} {row_id}")
        drawn = (rows[draw.randrange(len(rows))] for _ in range(_DRAWS))
        return [other for other in drawn if probes.differ(row, other)]

    @override
    def load(self, shared: Path) -> Transform:
        looked_up = pa.ipc.open_file(pa.memory_map(str(shared / _FILE))).read_all()
        row_ids = looked_up["row_id"].to_numpy()

        def change(rows: pa.Table) -> pa.Table:
            others = looked_up.take(pa.array(np.searchsorted(row_ids, rows["row_id"].to_numpy()))).to_pylist()
            sets = [
                None if row["response"] is None else self._probed(_with_others(row, other), other["row_id"])
                for row, other in zip(rows.to_pylist(), others, strict=True)
            ]
            return pa.table({"worse_probe": pa.array(sets, PROBED)})

        return change

    def _probed(self, row: Answered, row_id: int) -> list[dict[str, str]]:
        seed = int(digest([self.seed, row_id])[:8], 16)
        answers = ((probe.name, probe.make(row, seed)) for probe in PROBES)
        return [{"response": answer, "probe": name} for name, answer in answers if answer is not None]

    @override
    def facts(self, columns: Iterable[pa.Table], shared: Path) -> dict[str, JsonValue]:
        rows, counts = 0, Counter[str]()
        for table in columns:
            rows += table.num_rows
            counts.update(table["worse_probe"].combine_chunks().flatten().field("probe").to_pylist())
        total = sum(counts.values())
        summary = f"{self.name}: {counted(total, 'answer')} by {len(counts)} of {len(PROBES)} probes for {counted(rows, 'row')}"
        return {"rows": rows, "answers": {**counts}, "summary": summary}


@cache
def _check_readable(source: str) -> None:
    """Read the first rows of a source, once in each process.

    Raises:
        SourceError: It cannot be read, or lacks a column.
    """
    next(iter(Source.model_validate_json(source).chunks()), None)


def _with_others(row: dict[str, Any], other: dict[str, Any]) -> Answered:
    answers = {"other": other["other"], "similar": other["similar"], "references": tuple(other["references"])}
    return _answered(row)._replace(**answers)


def _answered(row: dict[str, Any]) -> Answered:
    return Answered(probes.question(row["prompt"]), row.get("response") or "", row.get("reference"))


def _read(tables: Iterable[pa.Table]) -> tuple[list[int], list[Answered]]:
    """Return the ids of rows, and what probes need of them."""
    row_ids: list[int] = []
    rows: list[Answered] = []
    for table in tables:
        names = [name for name in ("row_id", "prompt", "response", "reference") if name in table.column_names]
        for row in table.select(names).to_pylist():
            row_ids.append(row["row_id"])
            rows.append(_answered(row))
    return row_ids, rows


def _references(row: Answered, drawn: Sequence[Answered]) -> list[str]:
    """Return two short references of other rows that differ from this row's and from each other."""
    if row.reference is None:
        return []
    texts = [other.reference.strip() for other in drawn if other.reference]
    return list(dict.fromkeys(text for text in texts if 0 < len(text) <= SHORT))[:2]


def _similar(rows: Sequence[Answered], pool: Sequence[Answered]) -> list[str | None]:
    """Return for each row the answer to the question of the pool that shares most words with its own, and has another answer."""
    answered = [i for i, row in enumerate(pool) if row.response]
    answers: list[str | None] = [None] * len(rows)
    try:
        known = Questions([pool[i].prompt for i in answered])
    except ValueError:
        # No question has a word.
        return answers
    with bar("similar questions", len(rows)) as advance:
        for start in range(0, len(rows), _BLOCK):
            block = rows[start : start + _BLOCK]
            # (questions of the block, questions of the pool)
            cosines = known.cosines([row.prompt for row in block])
            for i, row in enumerate(block):
                nearest = ((pool[answered[place]], cosines[i, place]) for place in _best(cosines[i]))
                answers[start + i] = next(
                    (other.response for other, cosine in nearest if _is_wrong(row, other, cosine)), None
                )
            advance(len(block))
    return answers


def _best(cosines: npt.NDArray[np.float32]) -> list[int]:
    """Return the places of the most similar questions, the most similar first; of equal ones the first."""
    count = min(_NEAREST, len(cosines))
    least = max(np.partition(cosines, -count)[-count], _LEAST)
    places = np.flatnonzero(cosines >= least)
    return [int(place) for place in places[np.lexsort((places, -cosines[places]))][: 2 * count]]


def _is_wrong(row: Answered, other: Answered, cosine: float) -> bool:
    """Tell whether the answer to a similar question is wrong here: without references, near repetitions may have the same."""
    compared = row.reference is not None and other.reference is not None
    return probes.differ(row, other) and (compared or cosine <= _REPEATED)
