"""Peak memory of every model-free step and every split at 10,000, 100,000 and 1,000,000 rows, and the store's size."""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from benchmarks import inputs, processes
from seamcurate import (
    LengthIncentive,
    Random,
    Recipe,
    RepetitionPenalty,
    Rer,
    Seam,
    Source,
    Split,
    Step,
    column,
    run_local,
    to_trl,
)
from seamcurate.contrast.retrieve import CONTRAST
from seamcurate.step import Transform

CANDIDATES = 30
FILTERS = Path(__file__).parents[1] / "recipes"


class Drawn(Step):
    """Draw what a run with models would have computed: contrast sets of 30, rewards, likelihoods, RER's features."""

    @property
    def inputs(self) -> tuple[str, ...]:
        return ()

    @property
    def adds(self) -> pa.Schema:
        numbers = pa.list_(pa.float64())
        return pa.schema(
            [
                column("worse_contrast", CONTRAST, "drawn"),
                column("reward", pa.float64(), "drawn"),
                column("rewards_contrast", numbers, "drawn"),
                column("logprobs_contrast", numbers, "drawn"),
                column("tokens_contrast", pa.list_(pa.int32()), "drawn"),
                column("rer_query_relevance", pa.float64(), "drawn"),
                column("rer_reference_relevance", pa.float64(), "drawn"),
                column("query_type", pa.string(), "drawn"),
            ]
        )

    def load(self, shared: Path) -> Transform:
        def draw(rows: pa.Table) -> pa.Table:
            ids = rows["row_id"].to_numpy()
            of = np.random.default_rng(ids[0] if len(ids) else 0)
            count = len(ids) * CANDIDATES
            offsets = pa.array(np.arange(len(ids) + 1, dtype=np.int32) * CANDIDATES)
            near = -np.sort(-of.uniform(0.8, 0.9, (len(ids), CANDIDATES)), axis=1).astype(np.float32)
            pairs = [pa.array(of.integers(0, 1_000_000, count)), pa.array(near.ravel())]
            rewards = of.normal(size=count).astype(np.float32).astype(np.float64)
            golden = of.normal(0.4, size=len(ids)).astype(np.float32).astype(np.float64)
            skipped = rewards <= np.repeat(golden, CANDIDATES)
            sets = pa.StructArray.from_arrays(pairs, ["source_row_id", "similarity"])
            logprobs = pa.array(of.uniform(-90, -10, count).astype(np.float32).astype(np.float64), mask=skipped)
            tokens = pa.array(of.integers(5, 60, count), pa.int32(), mask=skipped)
            return pa.table(
                [
                    pa.ListArray.from_arrays(offsets, sets),
                    pa.array(golden),
                    pa.ListArray.from_arrays(offsets, pa.array(rewards)),
                    pa.ListArray.from_arrays(offsets, logprobs),
                    pa.ListArray.from_arrays(offsets, tokens),
                    pa.array(of.uniform(0, 1, len(ids))),
                    pa.array(of.uniform(0, 3, len(ids))),
                    pa.array(np.where(of.random(len(ids)) < 0.5, "open", "closed")),
                ],
                names=self.adds.names,
            )

        return draw


def child(folder: Path) -> None:
    """Run everything over the rows in a folder and print the peak of this process and the one that answers queries."""
    splits = {
        "kept": Split(filter=(FILTERS / "keep_above_lowest.sql").read_text(), by="seam_contrast", rate=0.2),
        "lowest": Split(filter=(FILTERS / "lowest.sql").read_text(), by="rer", rate=0.2, format="sft"),
        "between": Split(filter=(FILTERS / "keep_between.sql").read_text(), by="reward", low=-1.0, high=1.0),
    }
    steps = (Drawn(), Seam(), LengthIncentive(), RepetitionPenalty(), Rer(), Random())
    recipe = Recipe(rows=Source(parquet=str(folder / "rows.parquet")), steps=steps, splits=splits)
    run_local(recipe, folder / "store")
    from seamcurate import Store

    for name in splits:
        to_trl(Store(folder / "store"), name, folder / name)
    print(processes.peak_mb())


def main(scale: float) -> None:
    pairs = inputs.pairs()
    peaks: dict[int, int] = {}
    whole = True
    for rows in (max(1000, round(full * scale)) for full in (10_000, 100_000, 1_000_000)):
        with tempfile.TemporaryDirectory() as name:
            folder, plain = Path(name), 0
            schema = pa.schema([("prompt", pa.string()), ("response", pa.string())])
            with pq.ParquetWriter(folder / "rows.parquet", schema) as writer:
                for start in range(0, rows, 10_000):
                    some = range(start, min(start + 10_000, rows))
                    # A number makes each row a text of its own, so that files do not shrink by repetition.
                    texts = [(f"{pairs[i % len(pairs)][0]} {i}", f"{i} {pairs[(7 * i) % len(pairs)][1]}") for i in some]
                    plain += sum(len(p.encode()) + len(r.encode()) for p, r in texts)
                    writer.write_table(pa.table([list(part) for part in zip(*texts, strict=True)], schema=schema))
            # The package is imported before Arrow, as by its command: it chooses how Arrow allocates.
            code = "import seamcurate; from benchmarks import memory; memory.child(memory.Path(memory.sys.argv[1]))"
            command = [sys.executable, "-c", code, str(folder)]
            done = subprocess.run(command, stdout=subprocess.PIPE, check=True, text=True)
            peaks[rows] = int(done.stdout.split()[-1])
            store = folder / "store"
            ledgers = [pq.read_metadata(file).num_rows for file in store.glob("splits/*/ledger.parquet")]
            whole = whole and ledgers == [rows] * 3
            size = sum(file.stat().st_size for file in store.rglob("*") if file.is_file())
            texts_on_disk = sum(file.stat().st_size for file in (store / "rows").iterdir())
            print(
                json.dumps(
                    {
                        "benchmark": "memory",
                        "rows": rows,
                        "peak_mb": peaks[rows],
                        "store_mb": size >> 20,
                        "texts_mb": plain >> 20,
                        "store_to_texts": round(size / plain, 2),
                        "rows_folder_mb": texts_on_disk >> 20,
                    }
                ),
                flush=True,
            )
    _, middle, most = peaks.values()
    line = {
        "benchmark": "memory",
        "against": "a tenth of the rows",
        "ratio": round(most / middle, 3),
        "ours": most,
        "theirs": middle,
        "unit": "MB at the peak",
        # Nothing is compared here but that every split has a line for every row.
        "same": whole,
        "setting": f"{' and '.join(f'{rows:,}' for rows in list(peaks)[1:])} rows, 30 candidates each",
    }
    print(json.dumps(line), flush=True)
