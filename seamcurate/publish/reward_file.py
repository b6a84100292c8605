"""The reward file of an export: RER's configuration, and the function that the trainer calls."""

from __future__ import annotations

import pprint
from pathlib import Path

from seamcurate.publish.formats import TRAINERS, Trainer
from seamcurate.rewards import RerReward
from seamcurate.run.recipe import Recipe
from seamcurate.score.rer import F_ZERO, FEATURES, RelevanceFeature, Rer, TextFeature
from seamcurate.storage import shard
from seamcurate.store.folder import load_json, step_file
from seamcurate.store.store import Store

EARLIER_REWARD_FILE = "reward.py"
"""The earlier name of the reward file; an export still replaces such a file."""
HEAD = '"""RER as a reward, written by `seamcurate export`'
"""The first characters of every reward file. An export replaces no file that begins otherwise."""


def reward_file(trainer: Trainer, reward: RerReward, end: str) -> str:
    """Write a trainer's reward file; `end` is the policy's end-of-sequence token."""
    row = TRAINERS[trainer]
    assert row.reward_function is not None
    configuration = pprint.pformat(reward.model_dump(mode="json"), width=100, sort_dicts=False)
    return (
        f'{HEAD}: {row.reward_use}."""\n\n'
        f"from seamcurate import rewards\n\nREWARD = rewards.RerReward.model_validate(\n{configuration}\n)\n"
        f"{row.reward_function(end)}"
    )


def rer_reward(recipe: Recipe, store: Store) -> tuple[RerReward | None, str]:
    """Return a reward with the settings of the recipe's step `rer`; or None, and the reason why there is none."""
    steps = recipe.ready()
    rer = next((step for step in steps if isinstance(step, Rer)), None)
    if rer is None:
        return None, "the recipe computes no rer"
    shared = step_file(store.path / "columns" / rer.name, "shared")
    if isinstance(shared, Path) and shared.exists():
        shard.verify_folder(shared)
    record = load_json(shared / "range.json")
    measured_range = record.get("range")
    if not isinstance(measured_range, list):
        return None, "the store has no rer yet; run the recipe first"
    if rer.fit == "quantiles" and record.get("zero") != F_ZERO[rer.fit]:
        return None, "F was fitted by an earlier version, whose zero paid for repetition; run the recipe with --replace"
    # A column may come from the source instead of a step; its settings are then unknown.
    steps_by_type = {type(step): step for step in steps}
    features = [steps_by_type.get(feature.step) for feature in FEATURES if "rer" in feature.rewards]
    if None in features:
        return None, "the recipe does not compute all features of rer"
    texts = [feature for feature in features if isinstance(feature, TextFeature)]
    relevances = [feature for feature in features if isinstance(feature, RelevanceFeature)]
    if any((text.stop, text.words) != (texts[0].stop, texts[0].words) for text in texts):
        return None, "its features are not made of the same text: give them the same `words` and `stop`"
    if any(relevance.encoder != relevances[0].encoder for relevance in relevances):
        return None, "its relevances have not the same encoder"
    encoder = relevances[0].encoder
    if encoder is not None and Path(encoder.path).is_dir():
        encoder = encoder.model_copy(update={"path": str(Path(encoder.path).resolve())})
    low, high = (float(str(bound)) for bound in measured_range)
    reward = RerReward(
        encoder=encoder,
        max_response_tokens=rer.max_response_tokens,
        combine=rer.combine,
        clip=rer.clip,
        source=(low, high),
        fallback=rer.fallback,
        min_tokens=rer.min_tokens,
        words=texts[0].words,
        stop=texts[0].stop,
    )
    return reward, ""
