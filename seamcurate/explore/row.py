"""One row whole: prompt, golden response, candidates, scores and verdicts, read from its own shard alone."""

from __future__ import annotations

import math
import os
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import cast

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from pydantic import JsonValue

from seamcurate.errors import QueryError
from seamcurate.explore.session import Session
from seamcurate.models.protocols import Prompt
from seamcurate.models.template import prompt_text
from seamcurate.select import why as explain
from seamcurate.storage import shard
from seamcurate.store.store import Store, filename, record_schema, sample_sets

_LISTS = {
    "reward": "rewards",
    "logprob": "logprobs",
    "n_tokens": "tokens",
    "misjudgement": "misjudgements",
    "weight": "weights",
}


def row(session: Session, row_id: int) -> dict[str, JsonValue]:
    """Return all that is known of a row; numbers that are not finite are NULL.

    Raises:
        QueryError: No such row.
    """
    store = session.store
    columns = [column for column in session.columns if column.stale is None]
    found = _read(store, row_id, [column.name for column in columns if column.done])
    if found is None:
        raise QueryError(f"{store.path} has no row {row_id}; row ids are positions in the source, from 0")
    with session.cursor() as cursor:
        verdicts: list[JsonValue] = list(explain.verdicts(cursor, row_id))
    scores: list[JsonValue] = [
        {
            "name": c.name,
            "value": _number(found.get(c.name)),
            "whole": bool(pa.types.is_integer(c.kind)),
            "meaning": c.meaning,
            "made_by": c.made_by,
        }
        for c in columns
        if not pa.types.is_nested(c.kind) and c.name not in ("row_id", "prompt", "response", "reference")
    ]
    candidates = [
        one for c in columns for variant in sample_sets({c.name: c.kind}) for one in _candidates(store, variant, found)
    ]
    candidates.sort(key=lambda one: (one["reward"] is None, -cast(float, one["reward"] or 0), one["rank"]))
    return {
        "row_id": row_id,
        "prompt": text(found["prompt"]),
        "response": text(found.get("response")),
        "reference": text(found.get("reference")),
        "reward": _number(found.get("reward")),
        "verdicts": verdicts,
        "scores": scores,
        "candidates": cast(JsonValue, candidates),
    }


def text(value: object) -> str | None:
    """Return a prompt or response as text: of messages, their contents."""
    return None if value is None else prompt_text(cast(Prompt, value))


def prompts(session: Session, row_ids: Sequence[int], width: int) -> dict[int, str]:
    """Return the beginnings of rows' prompts, read from the shards that hold them."""
    store = session.store
    size = int(str(store.about["shard_rows"]))

    def pick(number: int) -> pa.Table:
        return _pick(store, number, [i for i in row_ids if i // size == number], ["row_id", "prompt"])

    # Each row of a page may lie in another shard, and to read a shard is to decode its prompts.
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        found = [one for table in pool.map(pick, {i // size for i in row_ids}) for one in table.to_pylist()]
    return {one["row_id"]: str(text(one["prompt"]))[:width] for one in found}


def _read(store: Store, row_id: int, names: Sequence[str]) -> Mapping[str, object] | None:
    """Read one row's columns, where they are computed; texts of candidates are not joined."""
    number = row_id // int(str(store.about["shard_rows"]))
    if row_id < 0 or number not in store.shards:
        return None
    added = {name for record in store.records().values() for name in record_schema(record).names}
    direct = [name for name in names if name.startswith("worse_") and name in added]
    table = store.reader([name for name in names if name not in direct], partial=True)(number)
    place = pc.index(table["row_id"], row_id).as_py()
    if place < 0:
        return None
    found: dict[str, object] = table.slice(place, 1).to_pylist()[0]
    for folder, record in store.records().items():
        file = store.path / "columns" / folder / filename(number)
        wanted = [name for name in direct if name in cast(Mapping[str, object], record["columns"])]
        if wanted and file.exists():
            part = shard.read(file, str(record["fingerprint"]), number, wanted)
            found |= part.slice(place, 1).to_pylist()[0]
    return found


def _candidates(store: Store, variant: str, found: Mapping[str, object]) -> list[dict[str, JsonValue]]:
    """Line up a variant's lists, with the question that each answer was given to."""
    worse = cast(list[dict[str, object]], found.get(f"worse_{variant}") or [])
    ids = [cast(int, one["source_row_id"]) for one in worse if one.get("source_row_id") is not None]
    sources = _sources(store, ids)
    listed: list[dict[str, JsonValue]] = []
    for i, one in enumerate(worse):
        source = sources.get(cast(int, one.get("source_row_id")), {})
        lists = {name: found.get(f"{column}_{variant}") for name, column in _LISTS.items()}
        values = {name: cast(list[float], part) if isinstance(part, list) else [] for name, part in lists.items()}
        listed.append(
            {
                "variant": variant,
                "rank": i + 1,
                "response": text(one.get("response", source.get("response"))),
                "similarity": _number(one.get("similarity")),
                "source_row_id": cast(JsonValue, one.get("source_row_id")),
                "source_prompt": text(source.get("prompt")),
                **{name: _number(part[i]) if i < len(part) else None for name, part in values.items()},
            }
        )
    return listed


def _sources(store: Store, ids: Sequence[int]) -> dict[int, dict[str, object]]:
    corpus = store.corpus_store
    if corpus is None or not ids:
        return {}
    size = int(str(corpus.about["shard_rows"]))
    found: dict[int, dict[str, object]] = {}
    for number in sorted({i // size for i in ids}):
        for one in _pick(
            corpus, number, [i for i in ids if i // size == number], ["row_id", "prompt", "response"]
        ).to_pylist():
            found[one["row_id"]] = one
    return found


def _pick(store: Store, number: int, ids: Sequence[int], names: Sequence[str]) -> pa.Table:
    file = store.path / "rows" / filename(number)
    whole = shard.verify(file, store.rows_fingerprint, number)
    there = [name for name in names if name in pq.read_schema(whole).names]
    wanted = [("row_id", "in", list(ids))]
    return pq.read_table(whole, columns=there, filters=wanted, use_threads=False, partitioning=None)


def _number(value: object) -> JsonValue:
    if isinstance(value, float) and not math.isfinite(value):
        return None
    if isinstance(value, bytes):
        return value.decode("utf-8", "backslashreplace")
    # Dates and decimals: JSON has none.
    return value if value is None or isinstance(value, bool | int | float | str) else str(value)
