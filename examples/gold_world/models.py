"""The gold world's small models: how a policy and a reward model are trained, how a policy answers and is aligned."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from examples.gold_world import world
from seamcurate import SequenceClassifier
from seamcurate.models.template import plain_prompt
from seamcurate.train import RewardTraining, SFTTraining, reward, sft

ANSWER_TOKENS = 12
BATCH = 64


def make_policy(start: Path, corpus: Path, out: Path, steps: int) -> None:
    """Train a policy by so many steps of 64 golden responses."""
    rate = 3e-3 if steps > 100 else 1e-3
    config = SFTTraining(
        learning_rate=rate,
        warmup_steps=min(50, steps // 4),
        max_steps=steps,
        per_device_train_batch_size=BATCH,
        max_length=64,
        eval_rows=0,
        lora=False,
    )
    sft(start, corpus, out, config)


def make_reward(policy: Path, pairs: Path, out: Path, test: Path, seed: int, untrained: bool = False) -> None:
    """Train a reward model from a policy's weights by three passes over the pairs, and measure it on pairs of its own.

    An untrained one is the policy with a head drawn at random: one step too small to matter.
    """
    config = RewardTraining(
        learning_rate=1e-9 if untrained else 1e-3,
        max_steps=1 if untrained else -1,
        warmup_steps=0 if untrained else 5,
        num_train_epochs=3,
        per_device_train_batch_size=32,
        max_length=64,
        eval_data=test,
        seed=seed,
        lora=False,
    )
    reward(policy, pairs, out, config)


def respond(policy: Path, prompts: Sequence[str], sample: bool = False, seed: int = 0) -> list[str]:
    """Return a policy's answers: its likeliest, or one drawn at temperature 1."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    from seamcurate.models import weights
    from seamcurate.train.training import quiet

    with quiet():
        tokenizer = AutoTokenizer.from_pretrained(policy, padding_side="left")
        model = AutoModelForCausalLM.from_pretrained(policy, dtype=torch.float32).to(weights.device("auto")).eval()
    torch.manual_seed(seed)
    answers: list[str] = []
    for start in range(0, len(prompts), 512):
        texts = [plain_prompt(prompt) for prompt in prompts[start : start + 512]]
        asked = tokenizer(texts, return_tensors="pt", padding=True).to(model.device)
        drawn = {"do_sample": True, "top_k": 0} if sample else {"do_sample": False}
        ids = model.generate(**asked, max_new_tokens=ANSWER_TOKENS, **drawn)
        answers += tokenizer.batch_decode(ids[:, asked["input_ids"].shape[1] :], skip_special_tokens=True)
    return answers


def quality(policy: Path, records: Sequence[world.Record]) -> list[float]:
    """Return the true quality of a policy's likeliest answers."""
    answers = respond(policy, [record["prompt"] for record in records])
    return [world.quality(record, answer) for record, answer in zip(records, answers, strict=True)]


def judge(folder: Path) -> Callable[..., list[float | None]]:
    """Return a reward model as the trainers call one."""
    model = SequenceClassifier(path=str(folder)).load()

    def rewards(prompts: Sequence[str], completions: Sequence[str], **columns: object) -> list[float | None]:
        return [row[0] for row in model.rewards(prompts, [[completion] for completion in completions])]

    return rewards


def aligned_quality(
    policy: Path, reward_model: Path, data: Path, records: Sequence[world.Record], steps: int, seed: int
) -> list[float]:
    """Align a policy by PPO on the prompts in `data`; return the true quality of its answers, and keep nothing else."""
    from seamcurate.train.ppo import PPOTraining, ppo

    with tempfile.TemporaryDirectory() as scratch:
        out = Path(scratch) / "aligned"
        config = PPOTraining(
            learning_rate=1e-4,
            warmup_steps=5,
            max_steps=steps,
            per_device_train_batch_size=BATCH,
            max_length=64,
            response_length=ANSWER_TOKENS,
            vf_coef=0.1,
            value_model=reward_model,
            eval_rows=0,
            save_steps=0,
            lora=False,
            seed=seed,
        )
        ppo(policy, judge(reward_model), data, out, config)
        return quality(out, records)


def write(rows: Sequence[object], file: Path) -> Path:
    """Write rows as a Parquet file, whole or not at all; what is there stays."""
    if not file.exists():
        file.parent.mkdir(parents=True, exist_ok=True)
        beside = file.with_suffix(f".{os.getpid()}.tmp")
        pq.write_table(pa.Table.from_pylist(list(rows)), beside)
        beside.replace(file)
    return file
