"""Everything about one row: prompt, golden response, candidates, scores and verdicts. Only the row's own shards are read."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import cast

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from pydantic import JsonValue

from seamcurate import threads as limits
from seamcurate.errors import QueryError
from seamcurate.explore.session import Session
from seamcurate.models.protocols import Prompt
from seamcurate.models.template import prompt_text
from seamcurate.select import why as explain
from seamcurate.storage import shard
from seamcurate.store.folder import filename, record_schema
from seamcurate.store.store import Store, sample_sets
from seamcurate.tables import python_rows

_LISTS = {
    "reward": "rewards",
    "logprob": "logprobs",
    "n_tokens": "tokens",
    "misjudgement": "misjudgements",
    "weight": "weights",
    "sampled_logprob": "sampled_logprobs",
}


def row(session: Session, row_id: int) -> dict[str, JsonValue]:
    """Return everything that the store knows about a row; numbers that are not finite are NULL.

    Raises:
        QueryError: There is no such row.
    """
    store = session.store
    columns = [column for column in session.columns if column.stale is None]
    values = _read(store, row_id, [column.name for column in columns if column.done])
    if values is None:
        raise QueryError(f"{store.path} has no row {row_id}; row ids are positions in the source, from 0")
    with session.cursor() as cursor:
        verdicts: list[JsonValue] = list(explain.verdicts(cursor, row_id))
    scores: list[JsonValue] = [
        {
            "name": c.name,
            "value": _number(values.get(c.name)),
            "whole": bool(pa.types.is_integer(c.kind)),
            "meaning": c.meaning,
            "made_by": c.made_by,
        }
        for c in columns
        if not pa.types.is_nested(c.kind) and c.name not in ("row_id", "prompt", "response", "reference")
    ]
    candidates = [
        candidate
        for c in columns
        for variant in sample_sets({c.name: c.kind})
        for candidate in _candidates(store, variant, values)
    ]
    candidates.sort(key=lambda c: (c["reward"] is None, -cast(float, c["reward"] or 0), c["rank"]))
    return {
        "row_id": row_id,
        "prompt": text(values["prompt"]),
        "response": text(values.get("response")),
        "reference": text(values.get("reference")),
        "reward": _number(values.get("reward")),
        "verdicts": verdicts,
        "scores": scores,
        "candidates": cast(JsonValue, candidates),
    }


def text(value: object) -> str | None:
    """Return a prompt or response as text; of messages, their contents."""
    return None if value is None else prompt_text(cast(Prompt, value))


def prompts(session: Session, row_ids: Sequence[int], width: int) -> dict[int, str]:
    """Return the first `width` characters of rows' prompts, by row id."""
    store = session.store
    size = int(str(store.about["shard_rows"]))

    def pick(number: int) -> pa.Table:
        return _pick(store, number, [i for i in row_ids if i // size == number], ["row_id", "prompt"])

    # In parallel: each row of a page may lie in another shard, and reading a shard decodes all its prompts.
    with ThreadPoolExecutor(limits.available()) as pool:
        tables = list(pool.map(pick, {i // size for i in row_ids}))
    return {line["row_id"]: str(text(line["prompt"]))[:width] for table in tables for line in table.to_pylist()}


def _read(store: Store, row_id: int, names: Sequence[str]) -> Mapping[str, object] | None:
    """Read one row's computed columns; the texts of its candidates are not joined."""
    number = row_id // int(str(store.about["shard_rows"]))
    if row_id < 0 or number not in store.shards:
        return None
    added = {name for record in store.records().values() for name in record_schema(record).names}
    direct = [name for name in names if name.startswith("worse_") and name in added]
    table = store.reader([name for name in names if name not in direct], partial=True)(number)
    index = pc.index(table["row_id"], row_id).as_py()
    if index < 0:
        return None
    values: dict[str, object] = python_rows(table.slice(index, 1))[0]
    for folder, record in store.records().items():
        file = store.path / "columns" / folder / filename(number)
        columns = [name for name in direct if name in cast(Mapping[str, object], record["columns"])]
        if columns and (number < store.finished(folder) or file.exists()):
            sets = shard.read(file, str(record["fingerprint"]), number, columns)
            values |= python_rows(sets.slice(index, 1))[0]
    return values


def _candidates(store: Store, variant: str, row_values: Mapping[str, object]) -> list[dict[str, JsonValue]]:
    """Return a variant's candidates, each with its elements of the lists and with the prompt that it answers."""
    worse = cast(list[dict[str, object]], row_values.get(f"worse_{variant}") or [])
    ids = [cast(int, c["source_row_id"]) for c in worse if c.get("source_row_id") is not None]
    sources = _sources(store, ids)
    listed: list[dict[str, JsonValue]] = []
    for i, candidate in enumerate(worse):
        source = sources.get(cast(int, candidate.get("source_row_id")), {})
        lists = {name: row_values.get(f"{column}_{variant}") for name, column in _LISTS.items()}
        values = {
            name: cast(list[float], numbers) if isinstance(numbers, list) else [] for name, numbers in lists.items()
        }
        listed.append(
            {
                "variant": variant,
                "rank": i + 1,
                "response": text(candidate.get("response", source.get("response"))),
                "similarity": _number(candidate.get("similarity")),
                "source_row_id": cast(JsonValue, candidate.get("source_row_id")),
                "source_prompt": text(source.get("prompt")),
                **{name: _number(numbers[i]) if i < len(numbers) else None for name, numbers in values.items()},
                # A policy's own samples say how often one was drawn, its tokens, and how it ended.
                **({"n_tokens": _number(candidate["tokens"])} if "tokens" in candidate else {}),
                "count": _number(candidate.get("count", 1)),
                "finish": _number(candidate.get("finish")),
            }
        )
    return listed


def _sources(store: Store, ids: Sequence[int]) -> dict[int, dict[str, object]]:
    corpus = store.corpus_store
    if corpus is None or not ids:
        return {}
    size = int(str(corpus.about["shard_rows"]))
    sources: dict[int, dict[str, object]] = {}
    for number in sorted({i // size for i in ids}):
        shard_ids = [i for i in ids if i // size == number]
        for source in _pick(corpus, number, shard_ids, ["row_id", "prompt", "response"]).to_pylist():
            sources[source["row_id"]] = source
    return sources


def _pick(store: Store, number: int, ids: Sequence[int], names: Sequence[str]) -> pa.Table:
    file = store.path / "rows" / filename(number)
    verified = shard.verify(file, store.rows_fingerprint, number)
    columns = [name for name in names if name in pq.read_schema(verified).names]
    condition = [("row_id", "in", list(ids))]
    return pq.read_table(verified, columns=columns, filters=condition, use_threads=False, partitioning=None)


def _number(value: object) -> JsonValue:
    if isinstance(value, float) and not math.isfinite(value):
        return None
    if isinstance(value, bytes):
        return value.decode("utf-8", "backslashreplace")
    # JSON has no dates and no decimals.
    return value if value is None or isinstance(value, bool | int | float | str) else str(value)
