"""Proximal policy optimisation against any reward, in TRL's conventions: rewards as its GRPO calls them, options by its names.

TRL itself removed its PPOTrainer in 1.13. Prompt ids come from `models.tokens`, so that the policy is trained on exactly
what is scored elsewhere; the reward reads text, so that its tokenizer may be another.
"""

from __future__ import annotations

import math
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pydantic import JsonValue

from seamcurate.errors import TrainError
from seamcurate.models import weights
from seamcurate.models.template import Form
from seamcurate.progress import bar
from seamcurate.train import rollout, training, verdict
from seamcurate.train.data import TrainingData
from seamcurate.train.options import PPOTraining
from seamcurate.train.rollout import CheckedReward, RewardCallable, TokenizedPrompt, shuffled_rows
from seamcurate.train.workplace import BOARD, Workplace

if TYPE_CHECKING:
    from accelerate import Accelerator
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

    from seamcurate.train.learner import Learner


def ppo(
    model: str | Path,
    reward: RewardCallable,
    data: TrainingData,
    out: str | Path,
    config: PPOTraining = PPOTraining(),
    gold: RewardCallable | None = None,
) -> dict[str, JsonValue]:
    """Train a causal language model to answer prompts so that a reward rises, held near where it began by a KL penalty.

    Args:
        model: The policy to start from, also the reference: a folder or a Hub id.
        reward: Called as `reward(prompts=[…], completions=[…], **columns)`, where columns are all other columns of the
            data; returns one number a response, None where it does not apply. For chat prompts both are messages. Its
            `columns`, where it has them, must be in the data; what its `features()` returns after a call is logged; its
            `identity` tells it from another, else how it shows itself.
        data: Rows with a `prompt`, text or chat messages.
        out: Becomes a plain model folder, adapters merged, tokenizer included, with what is returned as
            `training.json`, and `log.jsonl`: a line an update. `out.training` beside it holds the log and checkpoints
            meanwhile: training that was stopped goes on from the last, with the same weights as if it had not been.
        config: Everything else.
        gold: Another reward, measured on those prompts whenever `reward` is, and never learned from: does what is
            optimised raise what is wanted? `seamcurate study monotonicity` reads the finished folder.

    Returns:
        The inputs; rows used and skipped (the prompt leaves too little room), updates, responses (`episodes`) and those
        that the reward did not apply to; `reward_before` and `reward_after`, the mean over the held-out prompts, None
        without any; `reward_trained_before` and `reward_trained_after`, the same of a fixed set of training prompts; with
        `gold` its `gold_before`, `gold_after`, `gold_trained_before` and `gold_trained_after`; and the last `kl` (nats a
        response) and `kl_coef`. A finished `out` of the same inputs is returned as
        it is; functions of one name count as the same reward.

    Raises:
        TrainError: A column, the model or EOS is missing, no row fits, the reward fails or gives no finite number, the
            loss is none, or `out` holds something else.
    """
    work = training.prepare(out)
    checked_reward = CheckedReward(reward)
    gold_reward = None if gold is None else CheckedReward(gold)
    rows = rollout.read(data, (*checked_reward.columns, *(gold_reward.columns if gold_reward else ())), config)
    model_identity = training.identity(model, config)
    value_model_config = config.model_copy(update={"revision": None})
    with training.quiet():
        from accelerate import Accelerator

        tokenizer, policy = training.open_policy(model, config)
        config = training.pinned(config, tokenizer, work.out)
        form = training.prompt_form(tokenizer, config, policy)
        window, response_length = weights.window(policy, tokenizer), config.response_length
        prompts, held_out, counts = rollout.prompt_sets("ppo", tokenizer, form, rows, config, window, response_length)
        inputs: dict[str, JsonValue] = {
            **training.inputs(
                "ppo",
                model_identity,
                data,
                config.model_copy(update={"value_model": None}),
                [[(q.ids, q.source.columns) for q in prompts_of_set] for prompts_of_set in (prompts, held_out)],
            ),
            "reward": checked_reward.identity,
            "gold": None if gold_reward is None else gold_reward.identity,
            "value_model": None
            if config.value_model is None
            else training.identity(config.value_model, value_model_config),
        }
        if (finished := training.finished(work, inputs)) is not None:
            return finished
        # Of itself, accelerate makes processes on a CPU one group only where its environment says so.
        accelerator = Accelerator(cpu=weights.device("auto") == "cpu")
        generation = policy.generation_config
        learner = _learner(policy, tokenizer, form, checked_reward, gold_reward, config, accelerator)
        result, measured_rows = _train(learner, prompts, held_out, work, inputs)
        record: dict[str, JsonValue] = {**inputs, **counts, **result}
        record["verdict"] = training.agreed(work, lambda: _verdict(work, len(held_out), measured_rows))
        if work.first:
            trained = learner.merged()
            trained.generation_config = generation
            training.save(trained, tokenizer, work, record)
        accelerator.wait_for_everyone()
    return record


def _verdict(work: Workplace, rows: int, trained_rows: int) -> str:
    lines = work.lines()
    scores = [line["objective/scores"] for line in lines if line.get("objective/scores") is not None]
    first, last = scores[:1] or [None], scores[-1:] or [None]
    trained = verdict.measures(lines, "trained")
    return verdict.of_rewards(verdict.measures(lines), rows, first[0], last[0], trained, trained_rows)


def _learner(
    policy: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    form: Form,
    reward: CheckedReward,
    gold: CheckedReward | None,
    config: PPOTraining,
    accelerator: Accelerator,
) -> Learner:
    """Put together what is trained: the policy with its adapters, its reference, its value function."""
    import copy

    from transformers import AutoModelForSequenceClassification

    from seamcurate.train.actor import Actor, check_critic
    from seamcurate.train.learner import Learner

    policy.generation_config = rollout.sampling(policy.generation_config)
    reference = None if config.lora else copy.deepcopy(policy).eval().requires_grad_(False)
    critic = None
    if config.value_model is not None:
        value_model_config = config.model_copy(update={"revision": None})
        if training.open_tokenizer(config.value_model, value_model_config).get_vocab() != tokenizer.get_vocab():
            raise TrainError(
                f"value_model {config.value_model} has another tokenizer than the policy, whose ids it would read; "
                "give one trained from the policy, or none"
            )
        value_model, _ = training.open_model(
            config.value_model, AutoModelForSequenceClassification, value_model_config, num_labels=1
        )
        check_critic(value_model, str(config.value_model))
        critic = training.adapted(value_model, "SEQ_CLS", value_model_config)
    policy = training.adapted(policy, "CAUSAL_LM", config)
    if config.gradient_checkpointing:
        for model in (policy, critic):
            if model is not None:
                model.gradient_checkpointing_enable({"use_reentrant": False})
    actor = Actor(policy, critic, config.temperature)
    return Learner(actor, reference, tokenizer, form, reward, config, accelerator, gold)


def _train(
    learner: Learner,
    prompts: list[TokenizedPrompt],
    held_out: list[TokenizedPrompt],
    work: Workplace,
    inputs: dict[str, JsonValue],
) -> tuple[dict[str, JsonValue], int]:
    """Run all updates that are left, with their logs and checkpoints.

    Returns:
        What they came to, and how many trained prompts were measured beside the held-out ones.
    """
    from contextlib import ExitStack

    config, accelerator = learner.config, learner.accelerator
    batch_per_process = config.per_device_train_batch_size * config.gradient_accumulation_steps
    batch = batch_per_process * accelerator.num_processes
    episodes = config.total_episodes or math.ceil(config.num_train_epochs * len(prompts))
    updates = config.max_steps if config.max_steps > 0 else math.ceil(episodes / batch)
    drawn = min(len(prompts), updates * batch)
    order = shuffled_rows(len(prompts), 0, drawn, config.seed) if config.shuffle_dataset else range(drawn)
    trained = rollout.first_trained(prompts, order, config.trained_rows, len(held_out))

    def measure(moment: str) -> dict[str, float | None]:
        means: dict[str, float | None] = {}
        for name_of_set, prompts_of_set in (("eval", held_out), ("trained", trained)):
            if prompts_of_set:
                means |= learner.measure(prompts_of_set, moment, name_of_set)
        return means

    updates_done, checkpoint = work.begin(inputs)
    if checkpoint is not None:
        learner.resume(checkpoint, work.state)
    accelerator.wait_for_everyone()
    board = None
    with ExitStack() as stack:
        if work.first:
            advance = stack.enter_context(bar("ppo", updates - updates_done, "updates"))
            if config.tensorboard:
                from torch.utils.tensorboard import SummaryWriter

                writer = SummaryWriter(str(work.folder / BOARD), purge_step=updates_done + 1)
                board = stack.enter_context(writer)

        def log(step: int, metrics: dict[str, float | None]) -> None:
            work.write(step, metrics)
            if board is not None:
                for name, value in metrics.items():
                    if value is not None:
                        board.add_scalar(name, value, step)

        means_before: Any = work.state.get("before", {})
        if (held_out or trained) and not updates_done:
            means_before = measure("before the first update")
            log(0, means_before)
        means_after = means_before
        for step in range(updates_done + 1, updates + 1):
            start = (step - 1) * batch
            row_numbers = [offset % len(prompts) for offset in range(start, start + batch)]
            if config.shuffle_dataset:
                row_numbers = list(shuffled_rows(len(prompts), start, batch, config.seed))
            own_row_numbers = row_numbers[accelerator.process_index * batch_per_process :][:batch_per_process]
            metrics = learner.update(step, [prompts[i] for i in own_row_numbers])
            if step % config.logging_steps == 0 or step == updates:
                log(step, metrics)
            is_measured = step == updates or (config.eval_steps and step % config.eval_steps == 0)
            if (held_out or trained) and is_measured:
                means_after = measure(f"after update {step}")
                log(step, means_after)
            if work.first:
                if config.save_steps and step % config.save_steps == 0 and step < updates:
                    work.state = {"before": means_before, **learner.state()}
                    work.save(step, learner.save)
                advance(1)
    return {
        "updates": updates,
        "episodes": updates * batch,
        "responses_not_scored": learner.not_scored,
        "reward_before": means_before.get("eval/scores"),
        "reward_after": means_after.get("eval/scores"),
        "gold_before": means_before.get("eval/gold"),
        "gold_after": means_after.get("eval/gold"),
        "reward_trained_before": means_before.get("trained/scores"),
        "reward_trained_after": means_after.get("trained/scores"),
        "gold_trained_before": means_before.get("trained/gold"),
        "gold_trained_after": means_after.get("trained/gold"),
        "kl": learner.kl_now,
        "kl_coef": learner.kl.coefficient,
    }, len(trained)
