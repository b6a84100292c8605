"""How many rows each filter rate drops, where its cut lies, and what it does to the answers' length.

Reads a finished store and writes only splits beside it: python examples/sweep_filter_rate.py demo-store
The rates are those of SEAM App. H.1. A filter that only removes long answers shows in the last column.
"""

import sys

from seamcurate import Split, Store, query
from seamcurate.select import filters, split

store = Store(sys.argv[1] if len(sys.argv) > 1 else "demo-store").open()
keep = filters.read("keep_above_lowest.sql", store.path)

print("  rate  dropped  threshold  words of the kept  of the dropped")
for rate in (0.1, 0.2, 0.3, 0.4, 0.6, 0.8):
    name = f"sweep_{round(rate * 100)}"
    made = split.make(store, name, Split(filter=keep, by="seam_contrast", rate=rate))
    (row,) = query(
        store,
        "SELECT max(threshold) AS cut, avg(rer_length) FILTER (kept) * 100 AS kept, avg(rer_length) FILTER (NOT kept) * 100 AS "
        f"dropped FROM ledger JOIN rows USING (row_id) WHERE split = '{name}'",
    ).to_pylist()
    print(f"{rate:6.0%}  {made.dropped:7,}  {row['cut']:9.4f}  {row['kept']:17.1f}  {row['dropped']:14.1f}")
