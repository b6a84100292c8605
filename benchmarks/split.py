"""A filtered split of a million rows: seamcurate from a store to Parquet, against datasets, Polars and pandas.

A split of ours also leaves its ledger, one row for each row, with what was kept and why; the others leave the rows alone.
"""

from __future__ import annotations

import shutil
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from benchmarks import inputs
from benchmarks.race import Peer, race
from seamcurate import LengthIncentive, Random, Recipe, RepetitionPenalty, Source, Split, Store, run_local, to_trl
from seamcurate.select import split as splits

FILTER = (Path(__file__).parents[1] / "recipes" / "keep_above_lowest.sql").read_text()
SCORES = ("baseline_random", "rer_length", "rer_repetition")
RATE = 0.2


def main(scale: float) -> None:
    rows = max(10_000, round(1_000_000 * scale))
    pairs = inputs.pairs()
    prompts = [f"{pairs[i % len(pairs)][0][:100]} {i}" for i in range(rows)]
    for length in (20, 300):
        answers = [pairs[(7 * i) % len(pairs)][1][:length].strip() or "none" for i in range(rows)]
        table = pa.table({"prompt": prompts, "response": answers})
        setting = (
            f"{rows:,} rows of at most {100 + length} characters, three score columns, the lowest {RATE:.0%} dropped"
        )
        with tempfile.TemporaryDirectory() as folder:
            _race(table, Path(folder), setting)


def _race(table: pa.Table, folder: Path, setting: str) -> None:
    from datasets import disable_progress_bars, load_dataset

    disable_progress_bars()
    pq.write_table(table, folder / "rows.parquet")
    steps = (Random(), LengthIncentive(), RepetitionPenalty())
    run_local(Recipe(rows=Source(parquet=str(folder / "rows.parquet")), steps=steps), folder / "store")
    store = Store(folder / "store")
    scores = {name: np.concatenate([t[name].to_numpy() for t in store.rows((name,))]) for name in SCORES}
    split = Split(filter=FILTER, by=SCORES[0], rate=RATE)

    def mine() -> Path:
        shutil.rmtree(folder / "store" / "splits", ignore_errors=True)
        shutil.rmtree(folder / "ours", ignore_errors=True)
        splits.make(store, "train", split)
        return to_trl(store, "train", folder / "ours").folder

    def theirs() -> Path:
        file = str(folder / "rows.parquet")
        data: Any = load_dataset("parquet", data_files=file, split="train", cache_dir=str(folder / "cache"))
        for name in SCORES:
            data = data.add_column(name, scores[name])
        cut = np.quantile(scores[SCORES[0]], RATE)
        data = data.filter(lambda row: row[SCORES[0]] > cut, load_from_cache_file=False)
        data.to_parquet(str(folder / "theirs.parquet"))
        return folder / "theirs.parquet"

    def by_polars() -> Path:
        import polars

        rows = (
            polars.scan_parquet(folder / "rows.parquet")
            .collect()
            .with_columns(polars.Series(name, scores[name]) for name in SCORES)
        )
        cut = np.quantile(scores[SCORES[0]], RATE)
        rows.filter(polars.col(SCORES[0]) > cut).write_parquet(folder / "polars.parquet")
        return folder / "polars.parquet"

    def by_pandas() -> Path:
        import pandas

        rows = pandas.read_parquet(folder / "rows.parquet").assign(**scores)
        rows = rows[rows[SCORES[0]] > np.quantile(scores[SCORES[0]], RATE)]
        rows.to_parquet(folder / "pandas.parquet", index=False)
        return folder / "pandas.parquet"

    def same(a: Path, b: Path) -> bool:
        columns = ["prompt", "response", *SCORES]
        ours, other = (pq.read_table(file, columns=columns) for file in (a, b))
        return bool(ours.equals(other.cast(ours.schema)))

    mine()
    peers = {"datasets": Peer(theirs), "Polars": Peer(by_polars), "pandas": Peer(by_pandas)}
    race("split", setting, mine, peers, same)
