"""A fixed set of training prompts is measured beside the held-out ones: what is learned, and whether it carries over."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from training import parquet, start

from seamcurate.train import GroupTraining, PPOTraining, grpo, ppo, rloo

pytestmark = pytest.mark.slow

SHARED: dict[str, Any] = {
    "lora": False,
    "learning_rate": 1e-3,
    "max_length": 64,
    "per_device_train_batch_size": 8,
    "max_steps": 4,
    "eval_rows": 3,
    "eval_steps": 2,
    "save_steps": 0,
}
GROUPS = GroupTraining(max_completion_length=8, num_generations=4, **SHARED)
TRAINERS = [(ppo, PPOTraining(response_length=8, **SHARED)), (grpo, GROUPS), (rloo, GROUPS)]


class Gold:
    """Note which prompts were measured at a time."""

    def __init__(self) -> None:
        self.asked: list[list[str]] = []

    def __call__(self, prompts: list[str], completions: list[str], **columns: object) -> list[float]:
        self.asked.append(prompts)
        return [float(len(text)) for text in completions]


def count_of_e(completions: list[str], **columns: object) -> list[float]:
    return [float(text.count("e")) for text in completions]


@pytest.mark.parametrize(("train", "config"), TRAINERS)
def test_the_same_trained_prompts_are_measured_each_time_and_nothing_is_learned_from_them(
    train: Callable[..., dict[str, Any]], config: Any, tmp_path: Path
) -> None:
    model = start(tmp_path / "model")
    data = parquet(tmp_path / "d.parquet", [{"prompt": f"Where is number {i}?"} for i in range(40)])
    gold = Gold()
    record = train(model, count_of_e, data, tmp_path / "out", config, gold)
    # Held-out prompts and trained ones by turns, before training, after updates 2 and 4.
    held_out, trained = gold.asked[0], gold.asked[1]
    assert gold.asked == [held_out, trained] * 3
    assert len(set(held_out)) == len(set(trained)) == 3 and not set(held_out) & set(trained)
    lines = [json.loads(line) for line in (tmp_path / "out" / "log.jsonl").read_text().splitlines()]
    lines = [line for line in lines if "trained/scores" in line]
    assert [line["step"] for line in lines] == [0, 2, 4] and all("eval/scores" in line for line in lines)
    for name in ("scores", "gold"):
        key = {"scores": "reward"}.get(name, name)
        ends = record[f"{key}_trained_before"], record[f"{key}_trained_after"]
        assert ends == (lines[0][f"trained/{name}"], lines[-1][f"trained/{name}"])

    # A prompt that is measured as a trained one is trained on: with a single batch, no more are measured than it holds.
    one = config.model_copy(update={"max_steps": 1, "trained_rows": 30, "eval_rows": 0})
    first, learned = Gold(), Gold()
    record = train(model, learned, data, tmp_path / "one", one, first)
    (measured, _), (_, update, _) = first.asked, learned.asked[-3:]
    assert set(measured) == set(update) and len(measured) == (8 if train is ppo else 2)
    assert record["reward_before"] is None and record["reward_trained_before"] is not None
    assert record["verdict"].startswith("not measured")

    none = config.model_copy(update={"trained_rows": 0})
    record = train(model, count_of_e, data, tmp_path / "none", none)
    assert record["reward_trained_after"] is None and record["reward_after"] is not None
    weights = [(tmp_path / name / "model.safetensors").read_bytes() for name in ("out", "none")]
    assert weights[0] == weights[1]
