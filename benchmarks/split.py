"""A filtered split of a million rows: seamcurate from a store to Parquet, against the same through datasets."""

from __future__ import annotations

import shutil
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from benchmarks import inputs
from benchmarks.race import race
from seamcurate import LengthIncentive, Random, Recipe, RepetitionPenalty, Source, Split, Store, run_local, to_trl
from seamcurate import split as splits

FILTER = (Path(__file__).parents[1] / "recipes" / "keep_above_lowest.sql").read_text()
RATE = 0.2


def main(scale: float) -> None:
    from datasets import disable_progress_bars, load_dataset

    disable_progress_bars()
    rows = max(10_000, round(1_000_000 * scale))
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        pairs = inputs.pairs()
        table = pa.table(
            {
                "prompt": [f"{pairs[i % len(pairs)][0][:200]} {i}" for i in range(rows)],
                "response": [pairs[(7 * i) % len(pairs)][1][:300] for i in range(rows)],
            }
        )
        pq.write_table(table, folder / "rows.parquet")
        steps = (Random(), LengthIncentive(), RepetitionPenalty())
        run_local(Recipe(rows=Source(parquet=str(folder / "rows.parquet")), steps=steps), folder / "store")
        store = Store(folder / "store")
        names = ["baseline_random", "rer_length", "rer_repetition"]
        scores = {name: np.concatenate([t[name].to_numpy() for t in store.rows((name,))]) for name in names}
        split = Split(filter=FILTER, by="rer_length", rate=RATE)

        def mine() -> list[int]:
            shutil.rmtree(folder / "store" / "splits", ignore_errors=True)
            shutil.rmtree(folder / "ours", ignore_errors=True)
            splits.make(store, "train", split)
            to_trl(store, "train", folder / "ours")
            return []

        def theirs() -> list[int]:
            data: Any = load_dataset(
                "parquet", data_files=str(folder / "rows.parquet"), split="train", cache_dir=str(folder / "cache")
            )
            for name in names:
                data = data.add_column(name, scores[name])
            cut = np.quantile(scores["rer_length"], RATE)
            data = data.filter(lambda row: row["rer_length"] > cut, load_from_cache_file=False)
            data.to_parquet(str(folder / "theirs.parquet"))
            return []

        def same(_: object, __: object) -> bool:
            # Rows tied with the cut are dropped by one and drawn by lot in the other.
            kept = [
                set(pq.read_table(file, columns=["prompt"])["prompt"].to_pylist())
                for file in (folder / "ours", folder / "theirs.parquet")
            ]
            cut = np.quantile(scores["rer_length"], RATE)
            tied = int((scores["rer_length"] == cut).sum())
            return kept[1] <= kept[0] and len(kept[0]) - len(kept[1]) <= tied

        race(
            "split",
            "datasets",
            mine,
            theirs,
            same,
            f"{rows:,} rows, three score columns, lowest {RATE:.0%} dropped, to Parquet",
            3,
        )
