"""SEAM in the gold world: the recipe of one pair of models, and two steps that only this world can have."""

from __future__ import annotations

import random
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa

from examples.gold_world import world
from seamcurate import (
    Attack,
    CausalLM,
    Models,
    Perplexity,
    Random,
    Recipe,
    Retrieve,
    Rip,
    SentenceEncoder,
    SequenceClassifier,
    Source,
    Split,
    Step,
    Store,
    column,
    query,
    run_local,
    seam,
)
from seamcurate.contrast.generate import GENERATED
from seamcurate.contrast.retrieve import Embed
from seamcurate.score.seam import discrepancy, misjudgement, weight
from seamcurate.select.split import read_filter
from seamcurate.step import Data, Transform

BY = {
    "random": "baseline_random",
    "perplexity": "baseline_perplexity",
    "rip": "baseline_rejected_reward_contrast",
    "seam": "seam_contrast",
    "seam_written": "seam_gpt",
    "seam_adv": "seam_adv",
    "seam_shuffled": "seam_shuffled",
}
"""What each method of selection drops by."""

_DROP_HIGHEST = """
-- Drop the `rate` of highest values (the paper's perplexity baseline, SEAM App. E.4).
SELECT row_id, percent_rank() OVER (ORDER BY {by}) <= 1 - $rate AS keep, {by} AS value FROM rows
"""
_AUGMENTED = """
SELECT r.prompt, r.response AS chosen, c.response AS rejected, s.prompt AS other
FROM ledger AS l JOIN rows AS r USING (row_id) JOIN candidates AS c USING (row_id)
JOIN corpus AS s ON s.row_id = c.source_row_id
WHERE l.split = '{split}' AND l.kept AND c.variant = 'contrast'
QUALIFY row_number() OVER (PARTITION BY r.row_id ORDER BY c.rank) <= 5
ORDER BY r.row_id, c.rank
"""


class Worse(Step):
    """Add `worse_gpt`: answers that truly are worse, written by the world where the paper has a language model write."""

    k: int = 30

    @property
    def inputs(self) -> tuple[str, ...]:
        """Read the whole record."""
        return tuple(world.Record.__annotations__)

    @property
    def adds(self) -> pa.Schema:
        """Add the set."""
        return pa.schema([column("worse_gpt", GENERATED, f"up to {self.k} answers of lower true quality")])

    def load(self, shared: Path) -> Transform:
        """Return the writer; a row's errors are drawn by its prompt."""

        def write(rows: pa.Table) -> pa.Table:
            sets = [world.worse(record, self.k, random.Random(record["prompt"])) for record in rows.to_pylist()]
            return pa.table({"worse_gpt": pa.array([[{"response": a} for a in s] for s in sets], GENERATED)})

        return write


class Shuffled(Step):
    """Add `seam_shuffled`: SEAM by rewards drawn from those of all rows' answers, golden ones too. It knows nothing."""

    seed: int = 0
    k: int = 30

    @property
    def inputs(self) -> tuple[str, ...]:
        """Read what SEAM reads."""
        return ("reward", "rewards_contrast", "logprobs_contrast", "tokens_contrast")

    @property
    def reads_all_rows(self) -> bool:
        """Rewards come from every row."""
        return True

    @property
    def adds(self) -> pa.Schema:
        """Add one score."""
        return pa.schema([column("seam_shuffled", pa.float64(), "SEAM by shuffled rewards: the negative control")])

    def prepare(self, data: Data, shared: Path) -> None:
        """Collect all rewards."""
        pool = [r for t in data.rows(self.inputs[:2]) for row in t.to_pylist() for r in _answers(row)]
        np.save(shared / "rewards.npy", np.array(pool))

    def load(self, shared: Path) -> Transform:
        """Return the arithmetic."""
        pool = np.load(shared / "rewards.npy")

        def score(rows: pa.Table) -> pa.Table:
            values: list[float | None] = []
            for row in rows.to_pylist():
                draw = np.random.default_rng([self.seed, row["row_id"]])
                golden, *others = draw.choice(pool, len(_answers(row)))
                logprobs, tokens = (np.array(row[name], float) for name in self.inputs[2:])
                weights = weight(logprobs, tokens, "geometric")
                errors = [misjudgement(golden, other) for other in others]
                values.append(-discrepancy(list(weights), errors, self.k) if errors else None)
            return pa.table({"seam_shuffled": pa.array(values, pa.float64())})

        return score


def _answers(row: dict[str, object]) -> list[float]:
    return [row["reward"], *row["rewards_contrast"]]  # type: ignore[list-item, misc]


def embed_corpus(corpus: Path, store: Path) -> None:
    """Make the corpus a store, embedded as all pairs' stores retrieve from it."""
    rows = Source(parquet=str(corpus), response="response")
    run_local(Recipe(rows=rows, steps=(Embed(encoder=_encoder()),)), store)


def _encoder() -> SentenceEncoder:
    from seamcurate.demo.corpus import encoder_folder

    return SentenceEncoder(path=str(encoder_folder()))


def recipe(rows: Path, corpus: Path, words: Path, models: Models, rates: Sequence[float], seed: int) -> Recipe:
    """Return the recipe of a pair of models: the three SEAMs, the baselines, the control, and a split per method and rate.

    `words` is the attack's lexicon.
    """
    keep = read_filter("keep_above_lowest.sql", Path())
    splits = {"full": Split(filter="SELECT row_id FROM rows")}
    for method, by in BY.items():
        for rate in rates:
            text = _DROP_HIGHEST if method == "perplexity" else keep
            splits[f"{method}_{round(rate * 100)}"] = Split(filter=text, by=by, rate=rate)
    for method in ("random", "seam"):
        splits[f"augment_{method}"] = Split(filter=read_filter("lowest.sql", Path()), by=BY[method], rate=0.2)
    splits["augment_all"] = splits["full"]
    return Recipe(
        rows=Source(parquet=str(rows), response="response"),
        corpus=Source(store=str(corpus)),
        models=models,
        steps=(
            Retrieve(k=30, band=(0.8, 0.9)),
            *seam("contrast", likelihoods="all"),
            Worse(),
            *seam("gpt", likelihoods="all"),
            Attack(method="pwws", start="worse_gpt", wordnet=str(words)),
            *seam("adv", likelihoods="all"),
            Perplexity(),
            Rip(),
            Random(seed=seed),
            Shuffled(seed=seed),
        ),
        splits=splits,
    )


def score(
    folder: Path,
    data: tuple[Path, Path, Path],
    policy: Path,
    reward: Path,
    base: Path,
    rates: Sequence[float],
    seed: int,
) -> Store:
    """Run that recipe on rows, corpus and lexicon; what is there is not made again."""
    models = Models(
        policy=CausalLM(path=str(policy), max_response_tokens=16),
        base=CausalLM(path=str(base), max_response_tokens=16),
        reward=SequenceClassifier(path=str(reward)),
        encoder=_encoder(),
    )
    run_local(recipe(*data, models, rates, seed), folder)
    return Store(folder)


def likelihoods(store: Store, policy: Path) -> list[dict[str, object]]:
    """Return set, row_id, logprob and n_tokens of every candidate, golden response and sample of the policy."""
    from examples.gold_world.models import respond

    found = query(
        store, "SELECT variant AS set, row_id, logprob, n_tokens FROM candidates WHERE logprob IS NOT NULL ORDER BY ALL"
    ).to_pylist()
    rows = query(store, "SELECT row_id, prompt, response FROM rows ORDER BY row_id").to_pylist()
    prompts = [row["prompt"] for row in rows]
    sampled = respond(policy, prompts, sample=True)
    model = CausalLM(path=str(policy), max_response_tokens=16).load()
    given = [[row["response"], sample] for row, sample in zip(rows, sampled, strict=True)]
    for row, scored in zip(rows, model.logprobs(prompts, given), strict=True):
        for name, one in zip(("golden", "sample"), scored, strict=True):
            if one is not None:
                found.append({"set": name, "row_id": row["row_id"], "logprob": one.logprob, "n_tokens": one.tokens})
    return found


def lowest(store: Store, rate: float = 0.2) -> set[int]:
    """Return the rows that selection by SEAM drops."""
    sql = f"SELECT row_id FROM ledger WHERE split = 'seam_{round(rate * 100)}' AND NOT kept"
    return {row["row_id"] for row in query(store, sql).to_pylist()}


def augmented(store: Store, method: str) -> list[dict[str, str]]:
    """Return the pairs of App. G, 5 a row at most: (I: r ≻ r*), and the instruction I* that r* answers."""
    found: list[dict[str, str]] = query(store, _AUGMENTED.format(split=f"augment_{method}")).to_pylist()
    return found
