"""The scales of an ensemble's members, measured once a store on golden responses.

The step `Reward` measures them before its first shard and keeps them in its folder; steps that score further answers take
them from there. Every shard and every resumed run uses the same numbers.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import TypeVar

from pydantic import JsonValue

from seamcurate.errors import StepError
from seamcurate.models.backend import RewardConfig
from seamcurate.models.ensemble import MEMBERS, RewardEnsemble, Scale
from seamcurate.models.server import OpenAIServer
from seamcurate.progress import bar
from seamcurate.step import Data, Work, digest, evenly

RewardT = TypeVar("RewardT", bound=RewardConfig | None)

_ROWS = 512
"""Golden responses that scales are measured on, at most."""
_FILE = "ensemble.json"


def measure(reward: RewardConfig | None, data: Data, shared: Path) -> None:
    """Measure an ensemble's scales on golden responses, and write them to the step's folder; see `RewardEnsemble.measured`.

    Rows are taken at even distances over the whole store. Does nothing for a single model.
    """
    if not isinstance(reward, RewardEnsemble):
        return
    scales: list[Scale] = []
    if reward.needs_scales():
        names = ("prompt", "response", *reward.columns_read())
        rows = (row for table in data.rows(names) for row in table.select(list(dict.fromkeys(names))).to_pylist())
        sample = evenly((row for row in rows if row["response"] is not None), _ROWS)
        with bar("measuring the members' scales", None):
            columns = {name: [row[name] for row in sample] for name in reward.columns_read()}
            prompts, responses = ([row[name] for row in sample] for name in ("prompt", "response"))
            scales = reward.measured(prompts, responses, columns)
    record: JsonValue = {"members": _members(reward), "scales": [list(scale) for scale in scales]}
    (shared / _FILE).write_text(json.dumps(record))


def work(reward: RewardConfig | None, count: int, characters: float) -> list[Work]:
    """Estimate the work of measuring scales: what language models answer is kept, and not asked again for the column.

    Args:
        reward: The step's reward model.
        count: How many rows there are.
        characters: Of a golden response with its prompt.
    """
    if not isinstance(reward, RewardEnsemble) or not reward.needs_scales():
        return []
    answers = min(_ROWS, count)
    return [work for work in reward.work(answers, answers * characters) if not isinstance(work.model, OpenAIServer)]


def take(reward: RewardConfig | None, data: Data, shared: Path, step: str) -> None:
    """Copy the scales that the step of `reward_members` measured to another step's folder; does nothing for a single model.

    Args:
        reward: The step's reward model.
        data: The rows.
        shared: The step's folder.
        step: The step's name, for messages.

    Raises:
        StepError: The golden rewards are of another ensemble, or of no step.
    """
    if not isinstance(reward, RewardEnsemble):
        return
    record = data.prepared(MEMBERS, _FILE)
    if record.get("members") != _members(reward):
        whose = "another ensemble" if record else "no step"
        raise StepError(
            f"step {step}: the golden rewards in {MEMBERS!r} are of {whose}; list the step `reward` with the same model"
        )
    (shared / _FILE).write_text(json.dumps(record))


def applied(reward: RewardT, shared: Path) -> RewardT:
    """Return the reward model with the scales that were measured for it; itself where it needs none."""
    if isinstance(reward, RewardEnsemble) and reward.needs_scales():
        return reward.scaled(json.loads((shared / _FILE).read_text())["scales"])
    return reward


def facts(reward: RewardConfig | None, shared: Path) -> dict[str, JsonValue]:
    """Return the measured scales, as a step's facts hold them; the run's report has the line with the numbers."""
    if not isinstance(reward, RewardEnsemble) or not reward.needs_scales():
        return {}
    scales = json.loads((shared / _FILE).read_text())["scales"]
    shown = ", ".join(f"[{mean:.6g}, {deviation:.6g}]" for mean, deviation in scales)
    return {"scales": scales, "summary": f"reward: members are standardised by `scales: [{shown}]`"}


def _members(reward: RewardEnsemble) -> str:
    """Return what golden and worse answers must share to be compared: the members, on their scales."""
    same = reward.model_copy(update={"combine": "mean", "outputs": ()})
    return digest(same.identity())
