"""Profiles of the gold world's prompts against their exact truth: pass rates, hacks, and what the ready filters give.

python -m examples.gold_world.rollouts --out gold [--prompts 1000] [--seeds 0 1 2]

Each prompt is sampled twice, 16 answers by one seed for the columns and 16 by another for the truth that they are held
against: no number is measured on the samples that chose it.
"""

from __future__ import annotations

import argparse
import json
import math
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from examples.gold_world import models, world
from examples.gold_world.experiment import PRESETS, Experiment
from seamcurate import (
    CausalLM,
    Difficulty,
    Hacked,
    Models,
    Recipe,
    Rollouts,
    SequenceClassifier,
    Source,
    Split,
    Step,
    column,
    query,
    run_local,
    seam,
)
from seamcurate.step import Transform

Doubles = npt.NDArray[np.float64]

FILTERS = {
    "pass_rate_between.sql": {"low": 0.2, "high": 0.8},
    "no_zero_advantage.sql": {},
    "hacked.sql": {"most": 0.1},
    "keep_above_lowest.sql": {"by": "seam_policy", "rate": 0.2},
}
SAMPLES, BEST_OF = 16, 4


class Exact(Step):
    """Add `truth_policy`: the true quality of each sample, which this world computes."""

    @property
    def inputs(self) -> tuple[str, ...]:
        """Read the whole record, and the samples."""
        return (*world.Record.__annotations__, "worse_policy")

    @property
    def adds(self) -> pa.Schema:
        """Add one list."""
        return pa.schema([column("truth_policy", pa.list_(pa.float64()), "true quality of each sample, 0 to 1")])

    def load(self, shared: Path) -> Transform:
        """Return the arithmetic."""

        def score(rows: pa.Table) -> pa.Table:
            qualities = [
                [world.quality(row, sample["response"]) for sample in row["worse_policy"]] for row in rows.to_pylist()
            ]
            return pa.table({"truth_policy": pa.array(qualities, pa.list_(pa.float64()))})

        return score


def profile(out: Path, records: Path, policy: Path, reward: Path, draw: int, threshold: float) -> Path:
    """Run the recipe of a profile over the prompts, sampled by the seed `draw`; return its store."""
    store = out / "stores" / f"rollouts-{reward.name}-{draw}"
    steps = (
        Rollouts(n=SAMPLES, max_tokens=models.ANSWER_TOKENS, seed=draw),
        *seam("policy"),
        Difficulty(threshold=threshold),
        Exact(),
        Hacked(threshold=threshold, truth_threshold=1.0),
    )
    splits = {name.removesuffix(".sql"): Split(filter=name, **settings) for name, settings in FILTERS.items()}
    recipe = Recipe(
        rows=Source(parquet=str(records), response="response"),
        models=Models(policy=CausalLM(path=str(policy)), reward=SequenceClassifier(path=str(reward))),
        steps=steps,
        splits=splits,
    )
    run_local(recipe, store, replace=True)
    return store


def answers(store: Path) -> tuple[Doubles, Doubles]:
    """Return the rewards and the true qualities of all samples, each drawn as often as it was: (prompts, samples)."""
    rows = query(store, "SELECT worse_policy, rewards_policy, truth_policy FROM rows ORDER BY row_id").to_pylist()
    repeated = [
        [np.repeat(row[name], [sample["count"] for sample in row["worse_policy"]]) for row in rows]
        for name in ("rewards_policy", "truth_policy")
    ]
    rewards, truths = (np.array(values, np.float64) for values in repeated)
    return rewards, truths


def best_of(rewards: Doubles, truths: Doubles, n: int) -> Doubles:
    """Return the expected quality of each prompt's best of n answers by reward, over all draws from its samples: (prompts,)."""
    order = np.argsort(rewards, axis=1, kind="stable")
    total = rewards.shape[1]
    # The k-th lowest of all samples is the best of n with this probability (draws without replacement).
    chance = np.array([math.comb(k, n - 1) / math.comb(total, n) for k in range(total)])
    return np.asarray(np.take_along_axis(truths, order, axis=1) @ chance)


def spearman(a: Doubles, b: Doubles) -> float:
    """Return the rank correlation."""
    from scipy.stats import spearmanr

    return float(spearmanr(a, b).statistic)


def interval(values: Doubles, seed: int = 0) -> tuple[float, float, float]:
    """Return the mean over prompts and its 95 % interval by bootstrap."""
    draws = np.random.default_rng(seed).integers(0, len(values), (2000, len(values)))
    low, high = np.quantile(values[draws].mean(axis=1), [0.025, 0.975])
    return float(values.mean()), float(low), float(high)


def measured(out: Path, prompts: int, seed: int, preset: str = "quick") -> dict[str, object]:
    """Return what the profile of one reward model comes to."""
    experiment = Experiment(out, PRESETS[preset])
    best = len(experiment.preset.sft_steps) - 1
    policy, reward = experiment.policy(best), experiment.reward(len(experiment.preset.pairs) - 1, seed)
    # Seed 7: instructions of their own, apart from those that the models were trained on but for chance.
    records = models.write(world.records(prompts, 7), out / "data" / f"rollouts-{prompts}.parquet")
    first = profile(out, records, policy, reward, 0, 0.0)
    rewards, truths = answers(first)
    # The reward passes as many answers as the truth does.
    threshold = float(np.quantile(rewards, 1 - (truths == 1).mean()))
    first = profile(out, records, policy, reward, 0, threshold)
    other_rewards, other_truths = answers(profile(out, records, policy, reward, 1, threshold))
    names = ["rollout_pass_rate", "hacked_policy", "seam_policy", "rollout_above_golden", "rollout_true_pass_rate"]
    table = query(first, f"SELECT {', '.join(names)} FROM rows ORDER BY row_id")
    columns = {name: table[name].to_numpy() for name in names}
    # Pass rates by the truth itself, as a verifier gives them, beside those of the other samples.
    exact_rate = by_truth(first)
    other_rate = (other_truths == 1).mean(axis=1)
    hacked = ((other_rewards >= threshold) & (other_truths < 1)).mean(axis=1)
    wrong = np.array([np.cov(r, t)[0, 1] < 0 for r, t in zip(other_rewards, other_truths, strict=True)])
    gain = best_of(other_rewards, other_truths, BEST_OF) - other_truths.mean(axis=1)
    ledger = query(first, "SELECT split, kept FROM ledger ORDER BY split, row_id").to_pylist()
    found: dict[str, object] = {
        "prompts": prompts,
        "seed": seed,
        "quality": float(other_truths.mean()),
        "threshold": threshold,
        "pass_rate": float(columns["rollout_pass_rate"].mean()),
        "exact_pass_rate_rank": spearman(exact_rate, other_rate),
        "exact_pass_rate_difference": float(np.abs(exact_rate - other_rate).mean()),
        "reward_pass_rate_rank": spearman(columns["rollout_pass_rate"], other_rate),
        "hacked": float(columns["hacked_policy"].mean()),
        "hacked_rank": spearman(columns["hacked_policy"], hacked),
        "seam_auc": auc(-columns["seam_policy"], wrong),
        "hacked_auc": auc(columns["hacked_policy"], wrong),
        "golden_below": float((columns["rollout_above_golden"] > 0.5).mean()),
        "gain_of_all": interval(gain),
    }
    for name in FILTERS:
        kept = np.array([row["kept"] for row in ledger if row["split"] == name.removesuffix(".sql")], bool)
        # What is dropped stays with the policy as it is. At random as many prompts gain their share of the whole.
        over_random = gain * kept - gain * kept.mean()
        found[name] = {"kept": float(kept.mean()), "gain": interval(gain * kept), "over_random": interval(over_random)}
    return found


def by_truth(store: Path) -> Doubles:
    """Return the pass rates of a store's samples by the truth, as a verifier would give them: (prompts,)."""
    rows = query(store, "SELECT worse_policy, truth_policy AS rewards_policy FROM rows ORDER BY row_id")
    return np.asarray(Difficulty(threshold=1.0).load(store)(rows)["rollout_pass_rate"].to_numpy())


def auc(score: Doubles, wrong: npt.NDArray[np.bool_]) -> float:
    """Return how often a prompt on which the reward points the wrong way has the higher score, ties counting half."""
    from scipy.stats import mannwhitneyu

    pairs = int(wrong.sum()) * int((~wrong).sum())
    return float(mannwhitneyu(score[wrong], score[~wrong]).statistic / pairs) if pairs else math.nan


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure each seed, and write a JSON line each."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--prompts", type=int, default=1000)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    options = parser.parse_args(arguments)
    for seed in options.seeds:
        print(json.dumps(measured(options.out, options.prompts, seed)), flush=True)


if __name__ == "__main__":
    main()
