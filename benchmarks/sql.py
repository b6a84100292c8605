"""Questions to a scored data set: seamcurate's SQL over a store, against Polars and pandas over one Parquet file."""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from benchmarks import inputs
from benchmarks.race import Peer, race
from seamcurate import LengthIncentive, Random, Recipe, RepetitionPenalty, Source, Store, query, run_local

GROUPED = "SELECT round(rer_length, 1) AS length, count(*) AS rows, avg(rer_repetition) AS repetition FROM rows GROUP BY ALL ORDER BY 1"
WORST = "SELECT prompt, response, baseline_random FROM rows WHERE rer_length > 0.105 ORDER BY baseline_random LIMIT 20"
TIMES = 5
"""How often a question is asked in one turn, as it takes a part of a second."""
SCORES = ("rer_length", "rer_repetition", "baseline_random")


def _often(ask: Callable[[], pa.Table]) -> Callable[[], pa.Table]:
    return lambda: [ask() for _ in range(TIMES)][-1]


def main(scale: float) -> None:
    import pandas
    import polars

    count = max(10_000, round(1_000_000 * scale))
    pairs = inputs.pairs()
    prompts = [f"{pairs[i % len(pairs)][0][:100]} {i}" for i in range(count)]
    answers = [pairs[(7 * i) % len(pairs)][1][:300].strip() or "none" for i in range(count)]
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        pq.write_table(pa.table({"prompt": prompts, "response": answers}), folder / "rows.parquet")
        steps = (Random(), LengthIncentive(), RepetitionPenalty())
        run_local(Recipe(rows=Source(parquet=str(folder / "rows.parquet")), steps=steps), folder / "store")
        store, file = Store(folder / "store"), str(folder / "scored.parquet")
        pq.write_table(pa.concat_tables(store.rows(("prompt", "response", *SCORES))), file)

        def grouped_by_polars() -> pa.Table:
            length, repetition = polars.col("rer_length"), polars.col("rer_repetition")
            groups = polars.scan_parquet(file).group_by(length.round(1, mode="half_away_from_zero").alias("length"))
            return (
                groups.agg(polars.len().alias("rows"), repetition.mean().alias("repetition"))
                .sort("length")
                .collect()
                .to_arrow()
            )

        def grouped_by_pandas() -> pa.Table:
            frame = pandas.read_parquet(file, columns=["rer_length", "rer_repetition"])
            # pandas rounds halves to even, SQL away from zero.
            key = ((frame["rer_length"].astype("float64") * 10 + 0.5).floordiv(1) / 10).rename("length")
            found = frame.groupby(key)["rer_repetition"].agg(["size", "mean"]).reset_index()
            return pa.table({"length": found["length"], "rows": found["size"], "repetition": found["mean"]})

        def worst_by_polars() -> pa.Table:
            rows = polars.scan_parquet(file).filter(polars.col("rer_length") > 0.105)
            rows = rows.select("prompt", "response", "baseline_random").sort("baseline_random")
            return rows.head(20).collect().to_arrow()

        def worst_by_pandas() -> pa.Table:
            frame = pandas.read_parquet(file, columns=["prompt", "response", "baseline_random", "rer_length"])
            frame = frame[frame["rer_length"] > 0.105].nsmallest(20, "baseline_random")
            return pa.Table.from_pandas(frame.drop(columns="rer_length"), preserve_index=False)

        def same(a: pa.Table, b: pa.Table) -> bool:
            if a.num_rows != b.num_rows:
                return False
            return all(
                bool(np.allclose(one.to_numpy(), other.to_numpy(), atol=1e-6))
                if pa.types.is_floating(one.type) or pa.types.is_integer(one.type)
                else one.to_pylist() == other.to_pylist()
                for one, other in zip(a.columns, b.columns, strict=True)
            )

        for sql, what, by_polars, by_pandas in (
            (GROUPED, "averages by length", grouped_by_polars, grouped_by_pandas),
            (WORST, "the worst 20 rows with their texts", worst_by_polars, worst_by_pandas),
        ):
            peers = {
                "Polars over one Parquet file": Peer(_often(by_polars)),
                "pandas over one Parquet file": Peer(_often(by_pandas)),
            }
            # A first query starts the process that runs queries.
            query(store, sql)

            def ours(sql: str = sql) -> pa.Table:
                return [query(store, sql) for _ in range(TIMES)][-1]

            race("sql", f"{what} of {count:,} rows", ours, peers, same, units=lambda _: TIMES, unit="CPU s a question")
