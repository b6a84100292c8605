"""Tiers V and B: what columns find, and what leaving prompts out does where every kept one is optimised exactly.

V asks whether a column ranks the prompts on which the reward misleads. B takes, on kept prompts, the best of n of the policy's
answers by the reward, and leaves dropped ones as they are. Neither trains anything.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from examples.gold_world.columns import CONTROLS
from examples.gold_world.frozen import HALF, Frozen
from examples.gold_world.reward import Doubles
from seamcurate.study import ranking

SIZES = (1, 2, 4, 8, 16)
"""Answers of which the best is taken."""
DRAWS = 200
"""Bootstrap draws of prompts in V."""
Flags = npt.NDArray[np.bool_]


class Truth(NamedTuple):
    """What the reward does to each prompt, on samples of the policy: (prompts,) each."""

    error: Doubles
    """The share of pairs of unlike quality that the reward orders wrongly, ties one half; NaN without such a pair."""
    covariance: Doubles
    """Of reward and quality: below 0, following the reward lowers quality."""


def truth(quality: Doubles, rewards: Doubles) -> Truth:
    """Compare rewards with true quality, within each prompt.

    Args:
        quality: (prompts, samples).
        rewards: (prompts, samples).
    """
    first, second = np.triu_indices(quality.shape[1], 1)
    better, liked = (np.sign(values[:, first] - values[:, second]) for values in (quality, rewards))
    unlike = better != 0
    wrong = np.where(liked == 0, 0.5, liked != better) * unlike
    with np.errstate(invalid="ignore"):
        error = wrong.sum(1) / unlike.sum(1)
    centred = (quality - quality.mean(1, keepdims=True)) * (rewards - rewards.mean(1, keepdims=True))
    return Truth(error, centred.mean(1))


def best_of(quality: Doubles, rewards: Doubles, n: int) -> Doubles:
    """Return each prompt's expected quality of the best by reward of n answers drawn with replacement: (prompts,).

    As `seamcurate.study.best_of_n.expected_best`, for all prompts at once. Equal rewards need no sharing here: they are of
    equal answers, whose quality is the same.
    """
    count = quality.shape[1]
    until = (np.arange(count + 1) / count) ** n
    ordered = np.take_along_axis(quality, np.argsort(rewards, axis=1, kind="stable"), axis=1)
    return np.asarray(ordered @ np.diff(until))


class Repetition(NamedTuple):
    """One reward model on the RL prompts; truths of the two halves of the samples."""

    shown: Truth
    """Of the samples that columns may see: what the controls know."""
    held: Truth
    """Of the others: what everything is measured against."""
    start: Doubles
    """Mean quality of the held samples: (prompts,)."""
    gains: Mapping[int, Doubles]
    """Of the best of n over that, by n: (prompts,)."""


def repetition(frozen: Frozen, rewards: Doubles) -> Repetition:
    """Compare one reward model with the truth on the RL prompts."""
    places = frozen.samples("rl")
    shown, held = places[:, :HALF], places[:, HALF:]
    quality = frozen.quality
    start = quality[held].mean(1)
    return Repetition(
        truth(quality[shown], rewards[shown]),
        truth(quality[held], rewards[held]),
        start,
        {n: best_of(quality[held], rewards[held], n) - start for n in SIZES},
    )


def controls(found: Repetition) -> dict[str, Doubles]:
    """Return the columns that know the truth, on samples that do not measure the outcome; high is dropped."""
    covariance = found.shown.covariance
    return dict(zip(CONTROLS, (-covariance, covariance, found.shown.error), strict=True))


def dropped(values: Doubles, rate: float, draw: np.random.Generator, seam: bool) -> Flags:
    """Return which prompts a column drops: the highest, ties at random; none without a value.

    A SEAM of 0 misjudges nothing and is never dropped, as in the product's filter `keep_above_lowest.sql`.
    """
    may = np.isfinite(values) & ((values > 0) | (not seam))
    order = np.lexsort((draw.random(len(values)), -np.where(may, values, -np.inf)))
    chosen = np.zeros(len(values), bool)
    chosen[order[: round(rate * len(values))]] = True
    return chosen & may


def arm(found: Repetition, out: Flags) -> dict[int, float]:
    """Return the mean quality over all prompts where some are left out, by n."""
    return {n: float((found.start + gains * ~out).mean()) for n, gains in found.gains.items()}


class Validity(NamedTuple):
    """How well one column finds misjudged prompts."""

    auc: float
    """Probability that a prompt on which the reward points the wrong way is the more suspected of two."""
    spearman: float
    """With the share of pairs ordered wrongly."""
    within: float
    """The same within task families."""
    harm: float
    """The share of all negative covariance that the most suspected 20 % hold."""


def validity(values: Doubles, held: Truth, families: npt.NDArray[np.str_]) -> Validity:
    """Measure one column against the truth, over the prompts where both are known."""
    known = np.isfinite(values) & np.isfinite(held.error)
    values, error, covariance = values[known], held.error[known], held.covariance[known]
    every = np.ones((1, len(values)))
    measures = (
        ranking.auc(values, covariance < 0),
        ranking.spearman(values, error),
        ranking.spearman(values, error, families[known].tolist()),
        ranking.top_share(values, np.maximum(-covariance, 0), 0.2),
    )
    with np.errstate(invalid="ignore", divide="ignore"):
        return Validity(*(float(measure(every)[0]) for measure in measures))


def auc_draws(columns: Mapping[str, Doubles], names: Sequence[str], held: Truth, seed: int = 0) -> dict[str, Doubles]:
    """Return each column's AUC on bootstrap draws of prompts, the same prompts for all: (draws,) each."""
    count = len(held.error)
    weights = np.random.default_rng(seed).multinomial(count, np.full(count, 1 / count), DRAWS).astype(np.float64)
    found = {}
    for name in names:
        known = np.isfinite(columns[name]) & np.isfinite(held.error)
        found[name] = ranking.auc(columns[name][known], held.covariance[known] < 0)(weights[:, known])
    return found
