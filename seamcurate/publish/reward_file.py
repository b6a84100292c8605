"""The reward file of an export: RER's configuration, and the function that the trainer calls."""

from __future__ import annotations

import pprint
from pathlib import Path

from seamcurate.publish.formats import TRAINERS, Trainer
from seamcurate.rewards import RerReward
from seamcurate.run.recipe import Recipe
from seamcurate.score.rer import F_ZERO, FEATURES, RelevanceFeature, Rer, TextFeature
from seamcurate.storage import shard
from seamcurate.store.store import Store, load_json, step_file

EARLIER_REWARD_FILE = "reward.py"
"""What the reward file was called before; an export still replaces one."""
HEAD = '"""RER as a reward, written by `seamcurate export`'
"""Only files that open so are ever replaced."""


def reward_file(trainer: Trainer, reward: RerReward, end: str) -> str:
    """Write a trainer's reward file; `end` is the policy's end-of-sequence token."""
    row = TRAINERS[trainer]
    configuration = pprint.pformat(reward.model_dump(mode="json"), width=100, sort_dicts=False)
    return (
        f'{HEAD}: {row.reward_use}."""\n\n'
        f"from seamcurate import rewards\n\nREWARD = rewards.RerReward.model_validate(\n{configuration}\n)\n"
        f"{row.reward_function(end)}"
    )


def rer_reward(recipe: Recipe, store: Store) -> tuple[RerReward | None, str]:
    """Return RER as the recipe's steps compute it, as a reward; or None and the reason."""
    steps = recipe.ready()
    whole = next((step for step in steps if isinstance(step, Rer)), None)
    if whole is None:
        return None, "the recipe computes no rer"
    shared = step_file(store.path / "columns" / whole.name, "shared")
    if isinstance(shared, Path) and shared.exists():
        shard.verify_folder(shared)
    record = load_json(shared / "range.json")
    measured = record.get("range")
    if not isinstance(measured, list):
        return None, "the store has no rer yet; run the recipe first"
    if whole.fit == "quantiles" and record.get("zero") != F_ZERO[whole.fit]:
        return None, "F was fitted by an earlier version, whose zero paid for repetition; run the recipe with --replace"
    # A column may come from the source instead of a step; then nothing tells how it was made.
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
    low, high = (float(str(end)) for end in measured)
    reward = RerReward(
        encoder=encoder,
        max_response_tokens=whole.max_response_tokens,
        combine=whole.combine,
        clip=whole.clip,
        source=(low, high),
        fallback=whole.fallback,
        min_tokens=whole.min_tokens,
        words=texts[0].words,
        stop=texts[0].stop,
    )
    return reward, ""
