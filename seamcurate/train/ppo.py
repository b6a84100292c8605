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
from seamcurate.train import rollout, training
from seamcurate.train.data import Data
from seamcurate.train.options import PPOTraining
from seamcurate.train.rollout import Judge, Question, Reward, drawn
from seamcurate.train.workplace import BOARD, Workplace

if TYPE_CHECKING:
    from accelerate import Accelerator
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

    from seamcurate.train.learner import Learner


def ppo(
    model: str | Path,
    reward: Reward,
    data: Data,
    out: str | Path,
    config: PPOTraining = PPOTraining(),
    gold: Reward | None = None,
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
        gold: Another reward, measured on the held-out prompts whenever `reward` is, and never learned from: does what is
            optimised raise what is wanted? `seamcurate study monotonicity` reads the finished folder.

    Returns:
        The inputs; rows used and skipped (the prompt leaves too little room), updates, responses (`episodes`) and those
        that the reward did not apply to; `reward_before` and `reward_after`, the mean over the held-out prompts, None
        without any, and with `gold` its `gold_before` and `gold_after`; and the last `kl` (nats a response) and `kl_coef`. A finished `out` of the same inputs is returned as
        it is; functions of one name count as the same reward.

    Raises:
        TrainError: A column, the model or EOS is missing, no row fits, the reward fails or gives no finite number, the
            loss is none, or `out` holds something else.
    """
    work = training.prepare(out)
    judge = Judge(reward)
    judged = None if gold is None else Judge(gold)
    asked = rollout.read(data, (*judge.columns, *(judged.columns if judged else ())), config)
    start = training.identity(model, config)
    own = config.model_copy(update={"revision": None})
    with training.quiet():
        from accelerate import Accelerator

        tokenizer, opened = training.open_policy(model, config)
        config = training.pinned(config, tokenizer, work.out)
        form = training.prompt_form(tokenizer, config, opened)
        window, length = weights.window(opened, tokenizer), config.response_length
        kept, tested, counts = rollout.questions("ppo", tokenizer, form, asked, config, window, length)
        inputs: dict[str, JsonValue] = {
            **training.inputs(
                "ppo",
                start,
                data,
                config.model_copy(update={"value_model": None}),
                [[(q.ids, q.asked.columns) for q in part] for part in (kept, tested)],
            ),
            "reward": judge.identity,
            "gold": None if judged is None else judged.identity,
            "value_model": None if config.value_model is None else training.identity(config.value_model, own),
        }
        if (done := training.finished(work, inputs)) is not None:
            return done
        # Of itself, accelerate makes processes on a CPU one group only where its environment says so.
        accelerator = Accelerator(cpu=weights.device("auto") == "cpu")
        generation = opened.generation_config
        learner = _learner(opened, tokenizer, form, judge, judged, config, accelerator)
        result = _train(learner, kept, tested, work, inputs)
        record: dict[str, JsonValue] = {**inputs, **counts, **result}
        if work.first:
            trained = learner.merged()
            trained.generation_config = generation
            training.save(trained, tokenizer, work, record)
        accelerator.wait_for_everyone()
    return record


def _learner(
    opened: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    form: Form,
    judge: Judge,
    gold: Judge | None,
    config: PPOTraining,
    accelerator: Accelerator,
) -> Learner:
    """Put together what is trained: the policy with its adapters, its reference, its value function."""
    import copy

    from transformers import AutoModelForSequenceClassification

    from seamcurate.train.actor import Actor, check_critic
    from seamcurate.train.learner import Learner

    opened.generation_config = rollout.sampling(opened.generation_config)
    reference = None if config.lora else copy.deepcopy(opened).eval().requires_grad_(False)
    critic = None
    if config.value_model is not None:
        own = config.model_copy(update={"revision": None})
        if training.open_tokenizer(config.value_model, own).get_vocab() != tokenizer.get_vocab():
            raise TrainError(
                f"value_model {config.value_model} has another tokenizer than the policy, whose ids it would read; "
                "give one trained from the policy, or none"
            )
        head, _ = training.open_model(config.value_model, AutoModelForSequenceClassification, own, num_labels=1)
        check_critic(head, str(config.value_model))
        critic = training.adapted(head, "SEQ_CLS", own)
    policy = training.adapted(opened, "CAUSAL_LM", config)
    if config.gradient_checkpointing:
        for part in (policy, critic):
            if part is not None:
                part.gradient_checkpointing_enable({"use_reentrant": False})
    actor = Actor(policy, critic, config.temperature)
    return Learner(actor, reference, tokenizer, form, judge, config, accelerator, gold)


def _train(
    learner: Learner,
    kept: list[Question],
    tested: list[Question],
    work: Workplace,
    inputs: dict[str, JsonValue],
) -> dict[str, JsonValue]:
    """Run all updates that are left, with their logs and checkpoints; returns what they came to."""
    from contextlib import ExitStack

    config, accelerator = learner.config, learner.accelerator
    local = config.per_device_train_batch_size * config.gradient_accumulation_steps
    batch = local * accelerator.num_processes
    episodes = config.total_episodes or math.ceil(config.num_train_epochs * len(kept))
    updates = config.max_steps if config.max_steps > 0 else math.ceil(episodes / batch)
    done, checkpoint = work.begin(inputs)
    if checkpoint is not None:
        learner.resume(checkpoint, work.state)
    accelerator.wait_for_everyone()
    board = None
    with ExitStack() as stack:
        if work.first:
            advance = stack.enter_context(bar("ppo", updates - done, "updates"))
            if config.tensorboard:
                from torch.utils.tensorboard import SummaryWriter

                writer = SummaryWriter(str(work.folder / BOARD), purge_step=done + 1)
                board = stack.enter_context(writer)

        def log(step: int, metrics: dict[str, float | None]) -> None:
            work.write(step, metrics)
            if board is not None:
                for name, value in metrics.items():
                    if value is not None:
                        board.add_scalar(name, value, step)

        before: Any = work.state.get("before", {})
        if tested and not done:
            before = learner.measure(tested, "before the first update")
            log(0, before)
        after = before
        for step in range(done + 1, updates + 1):
            chosen = list(drawn(len(kept), (step - 1) * batch, batch, config.seed))
            mine = chosen[accelerator.process_index * local :][:local]
            metrics = learner.update(step, [kept[i] for i in mine])
            if step % config.logging_steps == 0 or step == updates:
                log(step, metrics)
            if tested and (step == updates or (config.eval_steps and step % config.eval_steps == 0)):
                after = learner.measure(tested, f"after update {step}")
                log(step, after)
            if work.first:
                if config.save_steps and step % config.save_steps == 0 and step < updates:
                    work.state = {"before": before, **learner.state()}
                    work.save(step, learner.save)
                advance(1)
    return {
        "updates": updates,
        "episodes": updates * batch,
        "responses_not_scored": learner.not_scored,
        "reward_before": before.get("eval/scores"),
        "reward_after": after.get("eval/scores"),
        "gold_before": before.get("eval/gold"),
        "gold_after": after.get("eval/gold"),
        "kl": learner.kl_now,
        "kl_coef": learner.kl.coefficient,
    }
