"""A whole curation in Python: rows, corpus, steps, a split, and a question in SQL.

FakeModel answers here, so that it runs in a second anywhere; put CausalLM, SequenceClassifier and SentenceEncoder
in its place for real scores. Run it with a folder for the store: python examples/quickstart.py my-store
"""

import json
import sys
from pathlib import Path

from seamcurate import FakeModel, Models, Recipe, Retrieve, Source, Split, Store, query, run_local, seam

store = Path(sys.argv[1] if len(sys.argv) > 1 else "quickstart-store")
store.mkdir(exist_ok=True)

verbs, things = ["sort", "merge", "reverse", "filter", "copy"], ["list", "tuple", "queue", "file", "table"]
asked = [
    {"prompt": f"How do I {v} a {t} in Python?", "response": f"To {v} a {t}, call {v}()."}
    for v in verbs
    for t in things
]
for name, rows in {"rl": asked[::2], "corpus": asked[1::2]}.items():
    (store / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))

recipe = Recipe(
    rows=Source(jsonl=str(store / "rl.jsonl")),
    corpus=Source(jsonl=str(store / "corpus.jsonl")),
    models=Models(policy=FakeModel(path="policy"), reward=FakeModel(path="reward"), encoder=FakeModel(path="encoder")),
    steps=(Retrieve(k=5, band=(0.6, 0.95)), *seam("contrast", k=5)),
    splits={"train": Split(filter="SELECT row_id, seam_contrast AS value FROM rows WHERE seam_contrast > -1")},
)
report = run_local(recipe, store)
print("\n".join(report.lines))

worst = query(Store(store), "SELECT prompt, seam_contrast, misjudged_contrast FROM rows ORDER BY seam_contrast LIMIT 3")
for row in worst.to_pylist():
    print(f"{row['seam_contrast']:.2f}  {row['misjudged_contrast']:.0%} misjudged  {row['prompt']}")
