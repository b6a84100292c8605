"""What is trained on real text by the product's own trainers: reward models by adapters, and the policy on RER's proxies.

A stopped training of a reward model goes on from its last checkpoint, one on a proxy begins anew; nothing finished is trained twice.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq

from examples.real_text import data
from examples.real_text.data import SEED, Rows, Sizes
from seamcurate import RerReward
from seamcurate.models import SentenceEncoder
from seamcurate.train import PPOTraining, RewardTraining, ppo, reward

PROXIES = ("li", "li_rp", "li_rp_qr", "rer")
Gold = Callable[[list[str], list[list[str]]], Sequence[Sequence[float]]]
"""Returns a reward for each answer to each prompt."""


def adapters(start: Path, pairs: Rows, folder: Path, max_tokens: int) -> Path:
    """Train a reward model by adapters for one pass over pairs, as `seamcurate train reward` does."""
    rows = [{side: pair[side] for side in ("prompt", "chosen", "rejected")} for pair in pairs]
    file = data.write(rows, folder.with_suffix(".parquet"))
    config = RewardTraining(
        learning_rate=2e-4, warmup_steps=5, max_length=max_tokens, eval_rows=0, seed=SEED, save_steps=20
    )
    reward(start, file, folder, config)
    return folder


class Golds:
    """Rewards that stand for people, as a trainer calls one: it is given the first, and the others are kept beside it."""

    def __init__(self, golds: Mapping[str, Gold]) -> None:
        self.golds, self.identity = golds, "+".join(golds)
        self.calls: list[dict[str, list[float]]] = []

    def __call__(self, prompts: Sequence[str], completions: Sequence[str], **columns: object) -> list[float]:
        """Return the first gold's reward of each answer, and keep all of them."""
        answers = [[answer] for answer in completions]
        values = {name: [own[0] for own in gold(list(prompts), answers)] for name, gold in self.golds.items()}
        self.calls.append(values)
        return next(iter(values.values()))

    def means(self, calls: int) -> list[dict[str, float]]:
        """Return each gold's mean over every so many calls: those of one measurement."""
        groups = [self.calls[start : start + calls] for start in range(0, len(self.calls), calls)]
        return [
            {name: float(np.mean([v for call in group for v in call[name]])) for name in self.golds} for group in groups
        ]


def optimised(
    policy: Path,
    rows: Rows,
    proxy: str,
    seed: int,
    golds: Mapping[str, Gold],
    encoder: SentenceEncoder,
    out: Path,
    sizes: Sizes,
) -> Rows:
    """Train the policy on one of RER's proxies, and return what was measured on held-out prompts, a row a gold and checkpoint.

    Args:
        policy: The model to start from.
        rows: prompt, reference, query_type; the first `sizes.ppo_held_out` are measured on, the others trained on.
        proxy: The reward.
        seed: Of the training.
        golds: Rewards that are measured and never learned from.
        encoder: Of the relevances.
        out: The folder that keeps what was measured; the trained policy is not kept.
        sizes: How many updates, prompts and tokens.
    """
    kept = out / f"{proxy}-{seed}.parquet"
    if not kept.is_file():
        folder = out / f"{proxy}-{seed}"
        for stopped in (folder, folder.with_name(f"{folder.name}.training")):
            shutil.rmtree(stopped, ignore_errors=True)
        held_out = data.write(rows[: sizes.ppo_held_out], out / "held-out.parquet")
        trained = data.write(rows[sizes.ppo_held_out :], out / "trained.parquet")
        config = PPOTraining(
            learning_rate=5e-4,
            max_steps=sizes.ppo_updates,
            per_device_train_batch_size=sizes.ppo_batch,
            num_ppo_epochs=2,
            response_length=sizes.ppo_tokens,
            max_length=sizes.ppo_tokens + 160,
            kl_coef=0.02,
            kl_target=None,
            eval_data=held_out,
            eval_steps=sizes.ppo_updates // 4,
            trained_rows=0,
            save_steps=0,
            seed=seed,
        )
        measured_golds = Golds(golds)
        proxied = RerReward.model_validate({"reward": proxy, "encoder": encoder}).load()
        ppo(policy, proxied, trained, folder, config, measured_golds)
        log = [json.loads(line) for line in (folder / "log.jsonl").read_text(encoding="utf-8").splitlines()]
        measured = [entry for entry in log if entry.get("eval/gold") is not None]
        calls, left = divmod(len(measured_golds.calls), len(measured))
        assert not left, "each measurement asks the golds as often"
        table: Rows = []
        for entry, means in zip(measured, measured_golds.means(calls), strict=True):
            point = {"proxy": proxy, "checkpoint": entry["step"], "seed": seed, "proxy_mean": entry["eval/scores"]}
            point["length_mean"] = entry["eval/response_length"]
            table += [point | {"gold": name, "gold_mean": value} for name, value in means.items()]
        data.write(table, kept)
        shutil.rmtree(folder)
    stored: Rows = pq.read_table(kept).to_pylist()
    return stored


def moved(rows: Rows) -> list[dict[str, Any]]:
    """Return by proxy and gold how proxy, gold and length went from the first to the last measurement, a mean over seeds."""
    lines = []
    for proxy, gold in dict.fromkeys((row["proxy"], row["gold"]) for row in rows):
        runs = [row for row in rows if (row["proxy"], row["gold"]) == (proxy, gold)]
        steps = [row["checkpoint"] for row in runs]
        line: dict[str, Any] = {"proxy": proxy, "gold": gold, "seeds": len({row["seed"] for row in runs})}
        for end, step in (("first", min(steps)), ("last", max(steps))):
            for measure in ("proxy_mean", "gold_mean", "length_mean"):
                line[f"{measure}_{end}"] = float(np.mean([row[measure] for row in runs if row["checkpoint"] == step]))
        lines.append(line)
    return lines
