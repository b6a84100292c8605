"""A step of your own: declare what it reads and adds, return a function, and the store does the rest.

Run it with a folder for the store: python examples/own_step.py my-store
"""

import re
import sys
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from seamcurate import Recipe, Source, Step, Store, column, query, run_local


class Hedging(Step):
    """Add `hedging`: how many of the given words an answer hides behind."""

    words: tuple[str, ...] = ("perhaps", "maybe", "probably")

    @property
    def inputs(self) -> tuple[str, ...]:
        """Read the response."""
        return ("response",)

    @property
    def adds(self) -> pa.Schema:
        """Add one number."""
        return pa.schema([column("hedging", pa.int32(), "words the answer hides behind")])

    def load(self, shared: Path):
        """Return the function that is called with a few rows at a time."""

        def count(rows: pa.Table) -> pa.Table:
            answers = [re.findall(r"\w+", (answer or "").lower()) for answer in rows["response"].to_pylist()]
            return pa.table({"hedging": pa.array([sum(a.count(w) for w in self.words) for a in answers], pa.int32())})

        return count


store = Path(sys.argv[1] if len(sys.argv) > 1 else "own-step-store")
store.mkdir(exist_ok=True)
answers = ["It is 4.", "Perhaps 4, maybe 5, probably not 6.", "Maybe."]
pq.write_table(
    pa.table({"prompt": ["2 + 2?", "2 + 2, roughly?", "Is it?"], "response": answers}), store / "rows.parquet"
)

run_local(Recipe(rows=Source(parquet=str(store / "rows.parquet")), steps=(Hedging(),)), store)
for row in query(Store(store), "SELECT hedging, response FROM rows ORDER BY hedging DESC, row_id").to_pylist():
    print(f"{row['hedging']}  {row['response']}")
