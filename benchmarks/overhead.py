"""What the store and the steps cost: a recipe's run against the same model calls without either."""

from __future__ import annotations

import tempfile
from itertools import count
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from benchmarks import inputs
from benchmarks.race import Peer, race
from seamcurate import CausalLM, Models, Recipe, SequenceClassifier, Source, Store, run_local, seam


def main(scale: float) -> None:
    rows = max(2, round(256 * scale))
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        policy = CausalLM(path=str(inputs.decoder(folder / "policy")), dtype="float32", device="cpu")
        reward = SequenceClassifier(
            path=str(inputs.decoder(folder / "reward", labels=1)), dtype="float32", device="cpu"
        )
        prompts, answers = inputs.groups(rows, 31, 60, 60)
        sets = [[{"response": text} for text in some[1:]] for some in answers]
        table = pa.table({"prompt": prompts, "response": [some[0] for some in answers], "worse_contrast": sets})
        pq.write_table(table, folder / "rows.parquet")
        recipe = Recipe(
            rows=Source(parquet=str(folder / "rows.parquet")),
            models=Models(policy=policy, reward=reward),
            steps=seam("contrast"),
        )
        number = count()

        def mine() -> list[float | None]:
            store = folder / f"store-{next(number)}"
            run_local(recipe, store)
            tables = Store(store).rows(("logprobs_contrast",))
            return [value for one in tables for row in one["logprobs_contrast"].to_pylist() for value in row]

        def theirs() -> list[float | None]:
            judge = reward.load()
            golden = judge.rewards(prompts, [some[:1] for some in answers])
            # The recipe's two steps open the reward model each.
            worse = reward.load().rewards(prompts, [some[1:] for some in answers])
            wanted = [
                [i for i, score in enumerate(scores) if (score or 0) > (best[0] or 0)]
                for scores, best in zip(worse, golden, strict=True)
            ]
            asked = [[some[1 + i] for i in want] for some, want in zip(answers, wanted, strict=True)]
            found: list[float | None] = []
            for scored, want in zip(policy.load().logprobs(prompts, asked), wanted, strict=True):
                row: list[float | None] = [None] * 30
                for place, one in zip(want, scored, strict=True):
                    row[place] = None if one is None else one.logprob
                found += row
            return found

        def same(a: list[float | None], b: list[float | None]) -> bool:
            return a == b

        setting = f"{rows} × 30 {inputs.source()}, prompts and responses of 60 tokens"
        race("overhead", setting, mine, {"the model calls alone": Peer(theirs)}, same, 2)
