"""What each column says of the RL prompts: computed by the product's own steps, from rewards that are known already.

One rule: no column sees the samples that tell the truth of a prompt, nor any true quality; only the controls of the world do.
"""

from __future__ import annotations

from pathlib import Path
from typing import get_args

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from examples.gold_world.frozen import HALF, Frozen, Places, Sets
from examples.gold_world.reward import Doubles
from seamcurate import RewardSpread, Rip, Seam
from seamcurate.contrast.rollouts import SAMPLED
from seamcurate.score.baseline import perplexity
from seamcurate.score.discrepancy import Weighting
from seamcurate.step import Step
from seamcurate.study.judged_rows import suspect

K = 30
WEIGHTS: tuple[Weighting, ...] = get_args(Weighting)
CONTROLS = ("oracle", "anti", "ceiling")
"""What sees true quality, on samples that do not measure the outcome."""
MISJUDGEMENT = (
    *(f"seam_{variant}_{weight}" for variant in ("contrast", "gpt") for weight in WEIGHTS),
    "seam_policy",
    *(f"misjudged_{variant}" for variant in ("contrast", "gpt", "policy")),
    *(f"margin_{variant}" for variant in ("contrast", "gpt", "policy")),
)
"""Columns that compare answers with the golden response."""


def suspicion(frozen: Frozen, rewards: Doubles, seed: int) -> dict[str, Doubles]:
    """Return every column of the RL rows, (rows,) each, turned so that high is suspected; NaN where a row has none.

    Args:
        frozen: Answers and their places.
        rewards: Of all answers.
        seed: Of the columns that are drawn at random.
    """
    golden = rewards[frozen.golden]
    columns: dict[str, Doubles] = {}
    for variant in ("contrast", "gpt"):
        columns |= of_set(frozen, rewards, variant, golden, frozen.candidates(variant))
    columns |= _of_samples(frozen, rewards, golden)
    draw = np.random.default_rng([seed, 7])
    columns["seam_shuffled"] = _shuffled(frozen, rewards, draw)
    golden_tokens = frozen.tokens[frozen.golden]
    likelihoods = zip(frozen.logprob[frozen.golden].tolist(), golden_tokens.tolist(), strict=True)
    columns["perplexity"] = np.array([perplexity(logprob, tokens) for logprob, tokens in likelihoods])
    columns["golden_reward"] = -golden
    columns["golden_words"] = golden_tokens - 1.0
    columns["prompt_words"] = np.array([float(len(record["prompt"].split())) for record in frozen.parts.rl])
    columns["random"], columns["random2"] = draw.random(len(golden)), draw.random(len(golden))
    return columns


def of_set(
    frozen: Frozen, rewards: Doubles, variant: str, golden: Doubles, sets: Sets, simple: bool = False
) -> dict[str, Doubles]:
    """Return the columns of one sample set.

    Args:
        frozen: Likelihoods of answers.
        rewards: Of all answers.
        variant: The set's own name, `contrast` or `gpt`.
        golden: The golden responses' rewards, (rows,).
        sets: The candidates.
        simple: Only SEAM by its default weight.
    """
    places = sets.places
    scored = table(variant, golden, rewards[places], frozen.logprob[places], frozen.tokens[places], sets.lengths)
    return of_table(scored, variant, simple)


def of_table(scored: pa.Table, variant: str, simple: bool = False) -> dict[str, Doubles]:
    """Return the columns of one sample set that a table as `table` makes it holds."""
    columns: dict[str, Doubles] = {}
    for weight in WEIGHTS[:1] if simple else WEIGHTS:
        found = _added(Seam(variant=variant, likelihood=weight, k=K), scored)  # type: ignore[arg-type]
        columns[f"seam_{variant}_{weight}"] = _high(found, f"seam_{variant}")
        columns[f"misjudged_{variant}"] = _high(found, f"misjudged_{variant}")
    if simple:
        return columns
    rip = _added(Rip(variant=variant), scored)  # type: ignore[arg-type]
    # R.I.P. drops prompts whose rejected answer is bad or short, or whose gap is large.
    columns[f"rip_reward_{variant}"] = -_values(rip, f"baseline_rejected_reward_{variant}")
    columns[f"rip_length_{variant}"] = -_values(rip, f"baseline_rejected_length_{variant}")
    columns[f"rip_gap_{variant}"] = _values(rip, f"baseline_reward_gap_{variant}")
    if variant != "adv":
        spread = _added(RewardSpread(variant=variant), scored)  # type: ignore[arg-type]
        # Where rewards vary little there is little to learn.
        columns[f"spread_{variant}"] = -_values(spread, f"baseline_reward_spread_{variant}")
        columns[f"margin_{variant}"] = -_values(spread, f"baseline_reward_margin_{variant}")
    return columns


def table(
    variant: str, golden: Doubles, rewards: Doubles, logprob: Doubles, tokens: npt.NDArray[np.int32], lengths: Places
) -> pa.Table:
    """Return what a store holds of a sample set before SEAM, with words that stand for the answers' own.

    Args:
        variant: The set.
        golden: The golden responses' rewards: (rows,).
        rewards: The candidates', row after row: (candidates,).
        logprob: Theirs under the policy, summed: (candidates,).
        tokens: Theirs, end of sequence included: (candidates,).
        lengths: Candidates of each row: (rows,).
    """
    offsets = pa.array(np.concatenate([[0], np.cumsum(lengths)]), pa.int32())
    # Of the texts only the number of words is read: as many as there are tokens but the last.
    words = pa.array([" ".join(["w"] * (count - 1)) for count in tokens.tolist()], pa.string())
    flat = {
        f"worse_{variant}": pa.StructArray.from_arrays([words], ["response"]),
        f"rewards_{variant}": pa.array(rewards),
        f"logprobs_{variant}": pa.array(logprob),
        f"tokens_{variant}": pa.array(tokens),
    }
    return pa.table(
        {"reward": golden, **{name: pa.ListArray.from_arrays(offsets, values) for name, values in flat.items()}}
    )


def _of_samples(frozen: Frozen, rewards: Doubles, golden: Doubles) -> dict[str, Doubles]:
    """Return the columns of the policy's own samples, of the half that does not tell the truth."""
    places = frozen.samples("rl")[:, :HALF]
    own = rewards[places]
    # Each sample as one element: SEAM weighs equal ones by how often they were drawn.
    sample = {"response": "", "count": 1, "tokens": 1, "finish": "stop"}
    rows = pa.array([[sample] * HALF] * len(own), SAMPLED)
    found = _added(
        Seam(variant="policy", k=K), pa.table({"reward": golden, "worse_policy": rows, "rewards_policy": list(own)})
    )
    return {
        "seam_policy": _high(found, "seam_policy"),
        "misjudged_policy": _high(found, "misjudged_policy"),
        "margin_policy": own.mean(1) - golden,
        "spread_policy": -own.std(1),
        "rip_reward_policy": -own.min(1),
        "rip_gap_policy": np.maximum(own.max(1), golden) - own.min(1),
        "mean_reward_policy": -own.mean(1),
        "distinct_policy": np.array([float(len(set(row))) for row in places.tolist()]),
    }


def _shuffled(frozen: Frozen, rewards: Doubles, draw: np.random.Generator) -> Doubles:
    """Return SEAM_Contrast by rewards that are drawn from all of them: what its likelihoods alone say."""
    places, lengths = frozen.candidates("contrast")
    pool = np.concatenate([rewards[frozen.golden], rewards[places]])
    golden, others = draw.choice(pool, len(frozen.golden)), draw.choice(pool, len(places))
    scored = table("contrast", golden, others, frozen.logprob[places], frozen.tokens[places], lengths)
    return _high(_added(Seam(k=K), scored), "seam_contrast")


def _added(step: Step, table: pa.Table) -> pa.Table:
    """Return what a step of the product adds to rows."""
    return step.load(Path())(table)


def _values(table: pa.Table, name: str) -> Doubles:
    found: Doubles = table[name].cast(pa.float64()).to_numpy()
    return found


def _high(table: pa.Table, name: str) -> Doubles:
    """Return a column turned so that high is suspected, as the product's studies turn it."""
    return -_values(table, name) if suspect(name) == "low" else _values(table, name)
