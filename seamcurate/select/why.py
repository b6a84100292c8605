"""One row as lines for a person: its scores, its candidates and every split's verdict."""

from __future__ import annotations

import math
from collections.abc import Collection, Iterator
from typing import cast

import pyarrow as pa

from seamcurate import tables
from seamcurate.errors import QueryError
from seamcurate.models.protocols import Prompt
from seamcurate.models.template import prompt_text
from seamcurate.select import split, views
from seamcurate.sql.connection import Connection
from seamcurate.store.store import Store
from seamcurate.text import brief

_SHOWN = 5


def why(store: Store, row_id: int) -> Iterator[str]:
    """Yield lines about a row: its prompt, verdicts, scores and the candidates that the reward model prefers.

    Raises:
        QueryError: There is no such row, neither read nor rejected.
    """
    with views.connect(store) as connection:
        rows = _rows(connection, "SELECT * FROM rows WHERE row_id = $id", row_id)
        if not rows:
            rejected = _rows(connection, "SELECT reason, row FROM rejected WHERE row_id = $id", row_id)
            if not rejected:
                raise QueryError(f"{store.path} has no row {row_id}; row ids are positions in the source, from 0")
            yield f"row {row_id} was set aside when it was read: {rejected[0]['reason']}"
            yield f"  {brief(rejected[0]['row'], 150)}"
            return
        row = rows[0]
        yield f"row {row_id}: {brief(prompt_text(cast(Prompt, row['prompt'])), 150)}"
        if row.get("response") is not None:
            yield f"  golden response: {brief(row['response'], 130)}"
        stale = split.stale(store)
        for line in verdicts(connection, row_id):
            yield f"  {line}"
        for name, changed in stale.items():
            yield f"  split {name} is out of date: {changed}; run its recipe again"
        kinds = {
            column.name: column.kind for column in store.columns() if column.made_by != "source" and not column.stale
        }
        for name, kind in kinds.items():
            if not pa.types.is_nested(kind):
                yield f"  {name:<28} {_number(row[name])}"
        for line in _matches(connection, row, kinds):
            yield f"  {line}"
        preferred = _rows(
            connection,
            "SELECT * FROM candidates WHERE row_id = $id AND misjudgement > 0 "
            f"ORDER BY misjudgement * coalesce(weight, 0) DESC, variant, rank LIMIT {_SHOWN}",
            row_id,
        )
        if preferred:
            yield "  answers that the reward model prefers to the golden one, worst first:"
        for candidate in preferred:
            yield (
                f"    {candidate['variant']} {candidate['rank']}: reward {_number(candidate['reward'])}, weight {_number(candidate['weight'])}: "
                f"{brief(candidate['response'], 100)}"
            )


def _matches(connection: Connection, row: dict[str, object], kinds: Collection[str]) -> Iterator[str]:
    """Yield a line for the row that this one repeats, and for the nearest row of each other data set, with its text."""
    if row.get("duplicate_of") is not None:
        original = int(str(row["duplicate_of"]))
        (repeated,) = _rows(connection, "SELECT prompt FROM rows WHERE row_id = $id", original)
        cosine = _number(row["duplicate_similarity"])
        prompt = prompt_text(cast(Prompt, repeated["prompt"]))
        yield f"it repeats row {original} (cosine {cosine}): {brief(prompt, 150)}"
    for column in kinds:
        name = column.removeprefix("nearest_").removesuffix("_text")
        if column != f"nearest_{name}_text" or f"overlap_{name}" not in kinds or row[column] is None:
            continue
        shared = row[f"overlap_{name}"]
        overlap = "too short for a shared run of words" if shared is None else f"overlap {_number(shared)}"
        cosine = _number(row[f"nearest_{name}_similarity"])
        yield f"nearest of {name} is its row {row[f'nearest_{name}']} (cosine {cosine}, {overlap}): {brief(row[column], 150)}"


def verdicts(connection: Connection, row_id: int) -> Iterator[str]:
    """Yield a line for each split: whether it kept a row, by which rule, and the value that decided it."""
    ledger = _rows(connection, "SELECT * FROM ledger WHERE row_id = $id ORDER BY split", row_id)
    for verdict in ledger:
        value, threshold = verdict["value"], verdict["threshold"]
        decided = ""
        if isinstance(value, float) and isinstance(threshold, float):
            relation = "above" if value > threshold else "below" if value < threshold else "at"
            decided = f"; its value {brief(value, 20)} is {relation} the threshold {brief(threshold, 20)}"
        yield f"split {verdict['split']}: {'kept' if verdict['kept'] else 'dropped'} by rule “{brief(verdict['rule'], 200)}”{decided}"
    if not ledger:
        yield "no split has been made yet"


def _rows(connection: Connection, sql: str, row_id: int) -> list[dict[str, object]]:
    return tables.python_rows(views.run(connection, sql, {"id": row_id}).read_all())


def _number(value: object) -> str:
    if isinstance(value, float) and math.isfinite(value):
        return f"{value:.4g}"
    return brief(value, 60)
