"""The verbs that train, and what they print; their other options are the fields of `train.options`."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from seamcurate.cli.arguments import MaxUsd, Threads
from seamcurate.progress import note

if TYPE_CHECKING:
    from pydantic import JsonValue

    from seamcurate.train.options import Training

BaseModelFolder = Annotated[str, typer.Option(help="Model to start from: a folder or a Hub id.", show_default=False)]
Prompts = Annotated[
    Path,
    typer.Option(
        help="Rows with a prompt and the columns that the reward reads: a Parquet or JSONL file, or an exported split.",
        show_default=False,
    ),
]
RewardName = Annotated[
    str,
    typer.Option(
        "--reward",
        help="Reward to train by: a reward model's folder or Hub id; li, rp or li_rp; a reward function, verifier.py:score or number_match; a YAML file that configures a reward model, function or judge, or RER; or an exported seamcurate_reward.py.",
        show_default=False,
    ),
]
GoldReward = Annotated[
    str | None,
    typer.Option(
        help="Second reward, named as --reward is. It is measured on held-out prompts and never learned from."
    ),
]
ModelFolder = Annotated[Path, typer.Option("--out", help="Folder to write the trained model to.", show_default=False)]


def train_sft(
    context: typer.Context,
    model: BaseModelFolder,
    data: Annotated[
        Path,
        typer.Option(
            help="Rows with prompt and completion (or response): a Parquet or JSONL file, or an exported split.",
            show_default=False,
        ),
    ],
    folder: ModelFolder,
    threads: Threads = None,
) -> None:
    """Fine-tune a causal language model on prompts and answers.

    Example: seamcurate train sft --model my-org/base-7b --data splits/train --out models/sft
    """
    from seamcurate.train import sft

    print_training(folder, sft(model, data, folder, context.obj))


def train_reward(
    context: typer.Context,
    model: BaseModelFolder,
    data: Annotated[
        Path,
        typer.Option(
            help="Rows with prompt, chosen and rejected: a Parquet or JSONL file, or an exported split.",
            show_default=False,
        ),
    ],
    folder: ModelFolder,
    threads: Threads = None,
) -> None:
    """Train a reward model on preferences.

    Example: seamcurate train reward --model models/sft --data preferences.parquet --out models/reward
    """
    from seamcurate.train import reward

    print_training(folder, reward(model, data, folder, context.obj))


def train_ppo(
    context: typer.Context,
    model: BaseModelFolder,
    data: Prompts,
    reward: RewardName,
    folder: ModelFolder,
    gold: GoldReward = None,
    max_usd: MaxUsd = None,
    threads: Threads = None,
) -> None:
    """Train a policy by PPO against a reward model, or against RER.

    Example: seamcurate train ppo --model models/sft --data splits/train --reward models/reward --out models/ppo
    """
    from seamcurate.train import ppo

    _train_by_reward(ppo, context.obj, model, data, reward, folder, gold, max_usd)


def train_grpo(
    context: typer.Context,
    model: BaseModelFolder,
    data: Prompts,
    reward: RewardName,
    folder: ModelFolder,
    gold: GoldReward = None,
    max_usd: MaxUsd = None,
    threads: Threads = None,
) -> None:
    """Train a policy by GRPO: each answer against the others to its prompt.

    Example: seamcurate train grpo --model models/sft --data splits/train --reward models/reward --out models/grpo
    """
    from seamcurate.train import grpo

    _train_by_reward(grpo, context.obj, model, data, reward, folder, gold, max_usd)


def train_rloo(
    context: typer.Context,
    model: BaseModelFolder,
    data: Prompts,
    reward: RewardName,
    folder: ModelFolder,
    gold: GoldReward = None,
    max_usd: MaxUsd = None,
    threads: Threads = None,
) -> None:
    """Train a policy by RLOO: the baseline of an answer is the mean reward of the others to its prompt.

    Example: seamcurate train rloo --model models/sft --data splits/train --reward li_rp --out models/rloo
    """
    from seamcurate.train import rloo

    _train_by_reward(rloo, context.obj, model, data, reward, folder, gold, max_usd)


def _train_by_reward(
    trainer: Callable[..., Mapping[str, JsonValue]],
    config: Training,
    model: str,
    data: Path,
    reward: str,
    folder: Path,
    gold: str | None,
    max_usd: float | None,
) -> None:
    """Train against a reward that is named; a reward model's chat template writes the training's date too.

    What a judge answers is kept beside the trained model: a training that is taken up again asks for no answer twice.
    """
    from seamcurate import rewards
    from seamcurate.models import calls
    from seamcurate.train.workplace import first_day

    day = config.date or first_day(folder)
    named = [rewards.configured(name, day) for name in (reward, gold) if name is not None]
    with ExitStack() as kept:
        if any(map(rewards.asks_endpoint, named)):
            folder_of_calls = folder.expanduser().with_name(f"{folder.name}.calls")
            limit = "no limit: give --max-usd" if max_usd is None else f"at most ${max_usd:g}"
            note(
                f"each answer of the policy is one request, or more, to the judge, with {limit}; replies: {folder_of_calls}"
            )
            kept.enter_context(calls.kept(folder_of_calls, max_usd))
        loaded = [configuration.load() for configuration in named]
        gold_reward = loaded[1] if gold is not None else None
        print_training(folder, trainer(model, loaded[0], data, folder, config, gold_reward))


def answer(
    context: typer.Context,
    model: Annotated[str, typer.Option(help="Policy that answers: a folder or a Hub id.", show_default=False)],
    data: Annotated[
        Path,
        typer.Option(
            help="Rows with a prompt, and columns to keep: a Parquet or JSONL file, or an exported split.",
            show_default=False,
        ),
    ],
    file: Annotated[Path, typer.Option("--out", help="Parquet file to write.", show_default=False)],
    threads: Threads = None,
) -> None:
    """Write what a policy answers to prompts, for the studies responses, tax and winrate.

    Example: seamcurate answer --model models/ppo --data splits/test --out answers/ppo.parquet
    """
    from seamcurate.text import counted
    from seamcurate.train import answer as write

    print(f"{file}: {counted(write(model, data, file, context.obj), 'answer')}")


_NOT_SCORED = ("responses_not_scored", "answers_without_a_reward")
"""The keys under which PPO, and GRPO and RLOO, record how many answers had no reward."""


def print_training(folder: Path, record: Mapping[str, JsonValue]) -> None:
    """Print what a training came to; of several processes, the first does."""
    if os.environ.get("RANK", "0") != "0":
        return
    measures = (
        *("loss_before", "loss_after", "accuracy_before", "accuracy"),
        *("reward_first", "reward_last", "reward_before", "reward_after", "gold_before", "gold_after"),
        *("reward_trained_before", "reward_trained_after", "gold_trained_before", "gold_trained_after", "kl"),
    )
    shown = [f"{key} {value:.4g}" for key in measures if isinstance(value := record.get(key), float)]
    not_scored = next((n for key in _NOT_SCORED if isinstance(n := record.get(key), int) and n), 0)
    left_out = f"; {not_scored:,} answers had no reward and were left out" if not_scored else ""
    print(
        f"{folder}: trained on {record['rows_used']:,} of {record['rows']:,} rows; {', '.join(shown) or 'not measured'}"
        f"{left_out}{_equal_groups(record)}"
    )
    if isinstance(verdict := record.get("verdict"), str):
        from seamcurate.train.curves import FILE

        print(f"  {verdict}")
        if (folder / FILE).is_file():
            print(f"  {folder / FILE}")
        else:
            from seamcurate import extras

            note(f"no {FILE}: {extras.install('study')} draws it")


def _equal_groups(record: Mapping[str, JsonValue]) -> str:
    """Say in how many groups of GRPO's or RLOO's answers no answer was better than another."""
    groups, equal = record.get("groups"), record.get("groups_of_equal_rewards")
    if not isinstance(groups, int) or not isinstance(equal, int) or not equal:
        return ""
    if equal == groups:
        return "; in every group all rewards were equal: nothing was learned"
    return f"; in {equal:,} of {groups:,} groups ({equal / groups:.0%}) all rewards were equal: nothing was learned from these"
