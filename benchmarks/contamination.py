"""Nearest row and shared 13-word runs of another data set: the step `nearest` against a script over datasets.

Both have the rows' embeddings as a column, as making these takes the same time for either.
"""

from __future__ import annotations

import re
import shutil
import tempfile
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from benchmarks import inputs
from benchmarks.race import Peer, race
from seamcurate import FakeModel, Nearest, Recipe, Source, query, run_local
from seamcurate.contrast import contamination
from seamcurate.models.vectors import embedded

WORDS, WIDTH = 13, 384
ENCODER = FakeModel(dimensions=WIDTH)


def main(scale: float) -> None:
    rows, tests = max(1000, round(100_000 * scale)), max(100, round(10_000 * scale))
    # ASCII alone: Python's `re` cuts some words of other scripts, where seamcurate and the module `regex` do not.
    texts = [text for question, answer in inputs.pairs() if (text := f"{question} {answer}"[:500]).isascii()]
    prompts = [f"{texts[(7 * i) % len(texts)]} row {i}" for i in range(rows)]
    # Every tenth of the other set is a row of this one with a few words before it; the others begin in mid-text.
    others = [
        f"Question {i}: {prompts[(11 * i) % rows]}" if i % 10 == 0 else f"{texts[(13 * i) % len(texts)][90:]} test {i}"
        for i in range(tests)
    ]
    with tempfile.TemporaryDirectory() as folder:
        _race(prompts, others, Path(folder))


def runs(text: str) -> list[tuple[str, ...]]:
    words = re.findall(r"\w+", text.lower())
    return [tuple(words[i : i + WORDS]) for i in range(len(words) - WORDS + 1)]


def _race(prompts: list[str], others: list[str], folder: Path) -> None:
    from datasets import Dataset, disable_progress_bars

    disable_progress_bars()
    model = ENCODER.load()
    place = {text: i for i, text in enumerate(others)}
    vectors, other_vectors = embedded(model, prompts)[0], embedded(model, others)[0]
    table = pa.table({"prompt": prompts, "embedding": pa.FixedSizeListArray.from_arrays(vectors.reshape(-1), WIDTH)})
    table = table.set_column(1, "embedding", table["embedding"].cast(pa.list_(pa.float32())))
    pq.write_table(table, folder / "rows.parquet")
    pq.write_table(pa.table({"prompt": others}), folder / "others.parquet")
    step = Nearest(to=Source(parquet=str(folder / "others.parquet")), set_name="test", encoder=ENCODER)
    rows = Source(parquet=str(folder / "rows.parquet"))
    run_local(Recipe(rows=rows), folder / "store")
    data: Any = Dataset.from_parquet(str(folder / "rows.parquet"), cache_dir=str(folder / "cache"))

    def embedded_before(embedder: Any, texts: list[str]) -> tuple[Any, Any]:
        return other_vectors[[place[text] for text in texts]], np.ones(len(texts), bool)

    def ours() -> tuple[list[float], list[float | None]]:
        shutil.rmtree(folder / "store" / "columns", ignore_errors=True)
        # Like the rows', the other set's embeddings are there already.
        with mock.patch.object(contamination, "embedded", embedded_before):
            run_local(Recipe(rows=rows, steps=(step,)), folder / "store")
        columns = query(
            folder / "store", "SELECT nearest_test_similarity AS s, overlap_test AS o FROM rows ORDER BY row_id"
        )
        return columns["s"].to_pylist(), columns["o"].to_pylist()

    def held() -> set[tuple[str, ...]]:
        return {run for text in others for run in runs(text)}

    def by_row() -> tuple[list[float], list[float | None]]:
        known = held()

        def compare(row: dict[str, Any]) -> dict[str, Any]:
            scores = other_vectors @ np.array(row["embedding"], np.float32)
            nearest, own = int(scores.argmax()), runs(row["prompt"])
            overlap = sum(run in known for run in own) / len(own) if own else None
            return {
                "nearest": nearest,
                "similarity": float(scores[nearest]),
                "text": others[nearest],
                "overlap": overlap,
            }

        made = data.map(compare, load_from_cache_file=False, cache_file_name=str(folder / "by_row.arrow"))
        return list(made["similarity"]), list(made["overlap"])

    def by_batch() -> tuple[list[float], list[float | None]]:
        known = held()

        def compare(batch: dict[str, Any]) -> dict[str, Any]:
            scores = np.stack(batch["embedding"]).astype(np.float32) @ other_vectors.T
            nearest = scores.argmax(1)
            owns = [runs(str(prompt)) for prompt in batch["prompt"]]
            return {
                "nearest": nearest,
                "similarity": scores[np.arange(len(nearest)), nearest],
                "text": [others[i] for i in nearest],
                "overlap": [sum(run in known for run in own) / len(own) if own else None for own in owns],
            }

        made = data.with_format("numpy").map(
            compare,
            batched=True,
            batch_size=1000,
            load_from_cache_file=False,
            cache_file_name=str(folder / "by_batch.arrow"),
        )
        columns = made.with_format(None)
        return list(columns["similarity"]), list(columns["overlap"])

    def same(a: tuple[list[float], list[float | None]], b: tuple[list[float], list[float | None]]) -> bool:
        # The script's products are in single precision.
        return bool(np.allclose(a[0], b[0], atol=1e-5)) and a[1] == b[1]

    setting = f"{len(prompts):,} rows × {len(others):,} prompts of another set, {WIDTH} dimensions, prompts of at most 500 characters"
    for against, theirs, repeats in (("datasets, in batches", by_batch, 3), ("datasets, row by row", by_row, 1)):
        race("contamination", setting, ours, {against: Peer(theirs)}, same, repeats)
