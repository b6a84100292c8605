"""The verbs that train, and what they print."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from seamcurate.errors import TrainError

if TYPE_CHECKING:
    from pydantic import JsonValue

Base = Annotated[str, typer.Option(help="The model to start from: a folder or a Hub id.", show_default=False)]
Out = Annotated[Path, typer.Option(help="The folder to write.", show_default=False)]
Held = Annotated[Path | None, typer.Option(help="Rows to measure on; else some of the data are held out.")]
Lora = Annotated[bool, typer.Option("--lora/--no-lora", help="Train adapters, merged at the end, or all weights.")]
Rate = Annotated[float, typer.Option(help="AdamW's learning rate.")]
Epochs = Annotated[float, typer.Option(help="Passes over the data.")]
Steps = Annotated[int, typer.Option(help="Stop after so many updates; -1 for all.")]
Batch = Annotated[int, typer.Option(help="Rows a forward pass.")]
Accumulation = Annotated[int, typer.Option(help="Forward passes an update.")]
Warmup = Annotated[int, typer.Option(help="Updates until the full learning rate.")]
Length = Annotated[int, typer.Option(help="Tokens of prompt and answer together.")]
Seed = Annotated[int, typer.Option(help="One seed for everything.")]
Saving = Annotated[int, typer.Option(help="Updates between checkpoints; 0 for none.")]
Logging = Annotated[int, typer.Option(help="Updates between lines of log.jsonl.")]
Board = Annotated[bool, typer.Option("--tensorboard", help="Log for TensorBoard too.")]
HeldRows = Annotated[int, typer.Option(help="Rows to hold out without --eval-data, a tenth at most; 0 for none.")]
Rank = Annotated[int, typer.Option(help="Of the adapters.")]
Alpha = Annotated[int, typer.Option(help="Of the adapters, whose weight is alpha / r.")]
Dropout = Annotated[float, typer.Option(help="Of the adapters.")]
Recompute = Annotated[bool, typer.Option("--gradient-checkpointing", help="Compute twice to fit into memory.")]
Revision = Annotated[str | None, typer.Option(help="A branch, tag or commit of a Hub model.")]
Form = Annotated[
    str | None,
    typer.Option(
        help="How prompts become text: chat (the chat template), plain, bare, or a text with {prompt}; else as the model was trained.",
    ),
]
TemplateArguments = Annotated[
    str | None, typer.Option(help='Arguments of the chat template as JSON, such as {"enable_thinking": false}.')
]
Date = Annotated[
    str | None,
    typer.Option(
        metavar="YYYY-MM-DD",
        help="What a chat template that writes today's date writes; else the day on which this began.",
    ),
]


def train_sft(
    model: Base,
    data: Annotated[
        Path, typer.Option(help="prompt and completion (or response): a file or a split.", show_default=False)
    ],
    out: Out,
    eval_data: Held = None,
    eval_rows: HeldRows = 200,
    lora: Lora = True,
    lora_r: Rank = 8,
    lora_alpha: Alpha = 32,
    lora_dropout: Dropout = 0.1,
    learning_rate: Rate = 1e-4,
    num_train_epochs: Epochs = 1,
    max_steps: Steps = -1,
    per_device_train_batch_size: Batch = 8,
    gradient_accumulation_steps: Accumulation = 1,
    warmup_steps: Warmup = 10,
    max_length: Length = 512,
    save_steps: Saving = 0,
    logging_steps: Logging = 10,
    tensorboard: Board = False,
    seed: Seed = 0,
    gradient_checkpointing: Recompute = False,
    revision: Revision = None,
    form: Form = None,
    template: TemplateArguments = None,
    date: Date = None,
) -> None:
    """Fine-tune a causal language model on prompts and answers.

    Example: seamcurate train sft --model my-org/base-7b --data splits/train --out models/sft
    """
    options = {key: value for key, value in locals().items() if key not in ("model", "data", "out")}
    options["template"] = template_arguments(template)
    from seamcurate.train import SFTTraining, sft

    print_training(out, sft(model, data, out, SFTTraining(**options)))


def train_reward(
    model: Base,
    data: Annotated[Path, typer.Option(help="prompt, chosen and rejected: a file or a split.", show_default=False)],
    out: Out,
    eval_data: Held = None,
    eval_rows: HeldRows = 200,
    lora: Lora = True,
    lora_r: Rank = 8,
    lora_alpha: Alpha = 32,
    lora_dropout: Dropout = 0.1,
    learning_rate: Rate = 2e-5,
    num_train_epochs: Epochs = 1,
    max_steps: Steps = -1,
    per_device_train_batch_size: Batch = 8,
    gradient_accumulation_steps: Accumulation = 1,
    warmup_steps: Warmup = 0,
    max_length: Length = 512,
    save_steps: Saving = 0,
    logging_steps: Logging = 10,
    tensorboard: Board = False,
    seed: Seed = 0,
    gradient_checkpointing: Recompute = False,
    revision: Revision = None,
    form: Form = None,
    template: TemplateArguments = None,
    date: Date = None,
) -> None:
    """Train a reward model on preferences.

    Example: seamcurate train reward --model models/sft --data preferences.parquet --out models/reward
    """
    options = {key: value for key, value in locals().items() if key not in ("model", "data", "out")}
    options["template"] = template_arguments(template)
    from seamcurate.train import RewardTraining, reward

    print_training(out, reward(model, data, out, RewardTraining(**options)))


Prompts = Annotated[Path, typer.Option(help="prompt and what the reward reads: a file or a split.", show_default=False)]
Rewarding = Annotated[
    str,
    typer.Option(
        "--reward",
        help="A reward model's folder or Hub id; li, rp or li_rp; a YAML file that configures it, or RER; or an exported seamcurate_reward.py.",
        show_default=False,
    ),
]
Temperature = Annotated[float, typer.Option(help="Of sampling.")]
Gold = Annotated[
    str | None, typer.Option(help="Another reward, as --reward: measured on held-out prompts, never learned from.")
]
Measuring = Annotated[int | None, typer.Option(help="Updates between measurements; else before and after.")]
Target = Annotated[
    float, typer.Option(help="KL in nats an answer, kept by moving the coefficient; 0 leaves the coefficient fixed.")
]
Horizon = Annotated[int, typer.Option(help="Answers over which the coefficient moves by about a fifth at most.")]


def train_ppo(
    model: Base,
    data: Prompts,
    reward: Rewarding,
    out: Out,
    gold: Gold = None,
    eval_data: Held = None,
    eval_rows: HeldRows = 64,
    eval_steps: Measuring = None,
    lora: Lora = True,
    lora_r: Rank = 8,
    lora_alpha: Alpha = 16,
    learning_rate: Rate = 1e-5,
    num_train_epochs: Epochs = 1,
    max_steps: Steps = -1,
    total_episodes: Annotated[int | None, typer.Option(help="Stop after so many answers.")] = None,
    per_device_train_batch_size: Batch = 16,
    gradient_accumulation_steps: Accumulation = 1,
    warmup_steps: Warmup = 0,
    num_ppo_epochs: Annotated[int, typer.Option(help="Passes over each batch of answers.")] = 4,
    num_mini_batches: Annotated[int, typer.Option(help="Updates a pass.")] = 1,
    response_length: Annotated[int, typer.Option(help="Tokens of an answer at most.")] = 512,
    max_length: Length = 1024,
    temperature: Temperature = 1.0,
    stop_strings: Annotated[
        list[str] | None, typer.Option(help="What ends an answer, literally; again for more.")
    ] = None,
    kl_coef: Annotated[float, typer.Option(help="Weight of the KL penalty, at the start.")] = 0.2,
    kl_target: Target = 6.0,
    kl_horizon: Horizon = 10_000,
    kl_estimator: Annotated[Literal["k1", "k3"], typer.Option(help="Of the KL of a token.")] = "k1",
    gamma: Annotated[float, typer.Option(help="Discount of what comes later.")] = 1.0,
    lam: Annotated[float, typer.Option(help="GAE's lambda.")] = 0.95,
    cliprange: Annotated[float, typer.Option(help="Of the policy's ratio, around 1.")] = 0.2,
    cliprange_value: Annotated[float, typer.Option(help="Of the value, around what it was.")] = 0.2,
    vf_coef: Annotated[float, typer.Option(help="Weight of the value's loss.")] = 1.0,
    whiten_rewards: Annotated[bool, typer.Option("--whiten-rewards", help="Scale rewards within a batch.")] = False,
    score_normalise: Annotated[
        bool, typer.Option("--score-normalise/--no-score-normalise", help="Scale scores by all so far.")
    ] = True,
    score_clip: Annotated[float, typer.Option(help="Then hold scores between plus and minus this; 0: do not.")] = 10.0,
    missing_eos_penalty: Annotated[
        float | None, typer.Option(help="Then take this off the score of an answer that was cut.")
    ] = None,
    value_model: Annotated[
        Path | None, typer.Option(help="A reward model to start a value model from; else a head on the policy.")
    ] = None,
    save_steps: Saving = 100,
    logging_steps: Logging = 1,
    tensorboard: Board = False,
    seed: Seed = 0,
    gradient_checkpointing: Recompute = False,
    revision: Revision = None,
    form: Form = None,
    template: TemplateArguments = None,
    date: Date = None,
) -> None:
    """Train a policy by PPO against a reward model, or against RER.

    Example: seamcurate train ppo --model models/sft --data splits/train --reward models/reward --out models/ppo
    """
    options = {key: value for key, value in locals().items() if key not in ("model", "data", "reward", "gold", "out")}
    options |= {
        "kl_target": kl_target or None,
        "score_clip": score_clip or None,
        "stop_strings": tuple(stop_strings or ()),
        "template": template_arguments(template),
    }
    from seamcurate import rewards
    from seamcurate.train import PPOTraining, ppo
    from seamcurate.train.workplace import first_day

    config = PPOTraining(**options)
    day = config.date or first_day(out)
    other = None if gold is None else rewards.read(gold, day)
    print_training(out, ppo(model, rewards.read(reward, day), data, out, config, other))


def train_by_groups(
    context: typer.Context,
    model: Base,
    data: Prompts,
    reward: Rewarding,
    out: Out,
    gold: Gold = None,
    eval_data: Held = None,
    eval_rows: HeldRows = 64,
    eval_steps: Measuring = None,
    lora: Lora = True,
    lora_r: Rank = 8,
    lora_alpha: Alpha = 16,
    lora_dropout: Dropout = 0.05,
    learning_rate: Rate = 1e-5,
    num_train_epochs: Epochs = 1,
    max_steps: Steps = -1,
    per_device_train_batch_size: Annotated[int, typer.Option(help="Answers a forward pass.")] = 8,
    gradient_accumulation_steps: Accumulation = 1,
    warmup_steps: Warmup = 0,
    num_generations: Annotated[int, typer.Option(help="Answers a prompt.")] = 8,
    num_iterations: Annotated[int, typer.Option(help="Updates from the same answers.")] = 1,
    epsilon: Annotated[float, typer.Option(help="How far the policy's ratio may be from 1.")] = 0.2,
    max_completion_length: Annotated[int, typer.Option(help="Tokens of an answer at most.")] = 512,
    max_length: Length = 1024,
    temperature: Temperature = 1.0,
    beta: Annotated[float, typer.Option(help="Weight of the KL penalty.")] = 0.05,
    kl_target: Target = 0.0,
    kl_horizon: Horizon = 10_000,
    save_steps: Saving = 0,
    logging_steps: Logging = 10,
    tensorboard: Board = False,
    seed: Seed = 0,
    gradient_checkpointing: Recompute = False,
    revision: Revision = None,
    form: Form = None,
    template: TemplateArguments = None,
    date: Date = None,
) -> None:
    """Train by GRPO or RLOO, whose options are the same."""
    options = {
        key: value
        for key, value in locals().items()
        if key not in ("context", "model", "data", "reward", "gold", "out")
    }
    options |= {"kl_target": kl_target or None, "template": template_arguments(template)}
    from seamcurate import rewards
    from seamcurate.train import GroupTraining, grpo, rloo
    from seamcurate.train.workplace import first_day

    train = grpo if context.info_name == "grpo" else rloo
    config = GroupTraining(**options)
    day = config.date or first_day(out)
    other = None if gold is None else rewards.read(gold, day)
    print_training(out, train(model, rewards.read(reward, day), data, out, config, other))


def answer(
    model: Annotated[str, typer.Option(help="The policy: a folder or a Hub id.", show_default=False)],
    data: Annotated[Path, typer.Option(help="prompt, and what else to keep: a file or a split.", show_default=False)],
    out: Annotated[Path, typer.Option(help="The Parquet file to write.", show_default=False)],
    max_new_tokens: Annotated[int, typer.Option(help="Tokens of an answer at most.")] = 256,
    temperature: Temperature = 1.0,
    samples: Annotated[int, typer.Option(help="Answers a prompt.")] = 1,
    batch_size: Annotated[int, typer.Option(help="Answers at a time.")] = 16,
    revision: Revision = None,
    seed: Seed = 0,
    form: Form = None,
    template: TemplateArguments = None,
    date: Date = None,
) -> None:
    """Write what a policy answers to prompts, for the studies responses, tax and winrate.

    Example: seamcurate answer --model models/ppo --data splits/test --out answers/ppo.parquet
    """
    from seamcurate.text import counted
    from seamcurate.train import Answering
    from seamcurate.train import answer as write

    config = Answering.model_validate(
        {
            "max_new_tokens": max_new_tokens,
            "temperature": temperature,
            "samples": samples,
            "batch_size": batch_size,
            "revision": revision,
            "seed": seed,
            "form": form,
            "template": template_arguments(template),
            "date": date,
        }
    )
    print(f"{out}: {counted(write(model, data, out, config), 'answer')}")


def template_arguments(template: str | None) -> dict[str, JsonValue] | None:
    """Read `--template`."""
    if template is None:
        return None
    try:
        arguments = json.loads(template)
    except ValueError as error:
        raise TrainError(f"--template is no JSON ({error}); write it like '{{\"enable_thinking\": false}}'") from error
    if not isinstance(arguments, dict):
        raise TrainError("--template is a JSON object, like '{\"enable_thinking\": false}'")
    return arguments


_WITHOUT = ("responses_not_scored", "answers_without_a_reward")
"""What the trainers call them in their records."""


def print_training(out: Path, record: Mapping[str, JsonValue]) -> None:
    """Print what a training came to; of several processes, the first does."""
    if os.environ.get("RANK", "0") != "0":
        return
    measures = (
        *("loss_before", "loss_after", "accuracy_before", "accuracy"),
        *("reward_first", "reward_last", "reward_before", "reward_after", "gold_before", "gold_after", "kl"),
    )
    shown = [f"{key} {value:.4g}" for key in measures if isinstance(value := record.get(key), float)]
    without = next((n for key in _WITHOUT if isinstance(n := record.get(key), int) and n), 0)
    left_out = f"; {without:,} answers had no reward and were left out" if without else ""
    print(
        f"{out}: trained on {record['rows_used']:,} of {record['rows']:,} rows; {', '.join(shown) or 'not measured'}"
        f"{left_out}{_equal_groups(record)}"
    )


def _equal_groups(record: Mapping[str, JsonValue]) -> str:
    """Say in how many groups of GRPO's or RLOO's answers no answer was better than another."""
    groups, equal = record.get("groups"), record.get("groups_of_equal_rewards")
    if not isinstance(groups, int) or not isinstance(equal, int) or not equal:
        return ""
    if equal == groups:
        return "; in every group all rewards were equal: nothing was learned"
    return f"; in {equal:,} of {groups:,} groups ({equal / groups:.0%}) all rewards were equal: nothing was learned from these"
