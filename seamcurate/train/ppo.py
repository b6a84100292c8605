"""Proximal policy optimisation against any reward, in TRL's conventions: rewards as its GRPO calls them, options by its names.

TRL itself removed its PPOTrainer in 1.13. Prompt ids come from `models.tokens`, so that the policy is trained on exactly
what is scored elsewhere; the reward reads text, so that its tokenizer may be another.
"""

from __future__ import annotations

import math
from pathlib import Path
from typing import TYPE_CHECKING, Literal, Self

from pydantic import Field, JsonValue, model_validator

from seamcurate.errors import TrainError
from seamcurate.models import tokens, weights
from seamcurate.progress import bar, note
from seamcurate.train import data as rows_of
from seamcurate.train import training
from seamcurate.train.checkpoint import BOARD, LOG, Workplace
from seamcurate.train.data import Asked, Data
from seamcurate.train.rollout import Judge, Question, Reward
from seamcurate.train.training import Training

if TYPE_CHECKING:
    from accelerate import Accelerator
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

    from seamcurate.train.learner import Learner

RESERVED = ("prompts", "completions")
"""What a reward is given beside the columns."""


class PPOTraining(Training):
    """Options of `ppo`, named as TRL 1.12's PPOConfig; the defaults are those published with RER.

    A batch is `per_device_train_batch_size` × `gradient_accumulation_steps` prompts on each process, one response each.
    `lora_dropout` has no effect: PPO's passes run without dropout.
    """

    learning_rate: float = Field(1e-5, gt=0)
    """Constant, after `warmup_steps` updates."""
    max_steps: int = -1
    """Stop after so many updates, that is batches; -1 leaves it to `total_episodes` or `num_train_epochs`."""
    total_episodes: int | None = Field(None, ge=1)
    """Stop after so many responses, rounded up to whole batches."""
    per_device_train_batch_size: int = Field(16, ge=1)
    max_length: int = Field(1024, ge=2)
    """Tokens of prompt and response together; a row whose prompt leaves less than `response_length` is skipped."""
    response_length: int = Field(512, ge=1)
    """Tokens of a response at most."""
    temperature: float = Field(1.0, gt=0)
    stop_strings: tuple[str, ...] = ()
    """Literal strings that end a response; it is cut before the first of them for the reward."""
    num_ppo_epochs: int = Field(4, ge=1)
    num_mini_batches: int = Field(1, ge=1)
    """Optimizer steps an epoch takes over a batch."""
    kl_coef: float = Field(0.2, ge=0)
    kl_target: float | None = Field(6.0, gt=0)
    """Nats a response that `kl_coef` is moved to keep; None: it stays."""
    kl_horizon: int = Field(10_000, ge=1)
    kl_estimator: Literal["k1", "k3"] = "k1"
    gamma: float = Field(1.0, ge=0, le=1)
    lam: float = Field(0.95, ge=0, le=1)
    cliprange: float = Field(0.2, gt=0)
    cliprange_value: float = Field(0.2, gt=0)
    vf_coef: float = Field(1.0, ge=0)
    whiten_rewards: bool = False
    score_normalise: bool = True
    """Take the running mean off scores and divide by their running deviation, both over all scores so far."""
    score_clip: float | None = Field(10.0, gt=0)
    """Then hold scores between ± this."""
    missing_eos_penalty: float | None = None
    """Then take this off the score of a response that was cut at `response_length`."""
    value_model: Path | None = None
    """A decoder's reward model to start a separate value model from; None: a linear head on the policy's last hidden state."""
    eval_rows: int = Field(64, ge=0)
    eval_steps: int | None = Field(None, ge=1)
    """Measure every so many updates too, not only before and after."""
    save_steps: int | None = Field(100, ge=1)
    """Write a checkpoint every so many updates; None: never."""
    logging_steps: int = Field(1, ge=1)
    """Log every so many updates."""
    tensorboard: bool = False
    """Write the log for TensorBoard too."""
    lora_alpha: int = Field(16, ge=1)
    lora_dropout: float = Field(0.05, ge=0, lt=1)

    @model_validator(mode="after")
    def _fits(self) -> Self:
        if self.response_length >= self.max_length:
            raise ValueError("response_length must be below max_length, or no prompt would fit")
        if self.per_device_train_batch_size * self.gradient_accumulation_steps % self.num_mini_batches:
            raise ValueError(
                "per_device_train_batch_size × gradient_accumulation_steps must divide by num_mini_batches"
            )
        if self.max_steps > 0 and self.total_episodes is not None:
            raise ValueError("give max_steps or total_episodes, not both")
        return self


def ppo(
    model: str | Path, reward: Reward, data: Data, out: str | Path, config: PPOTraining = PPOTraining()
) -> dict[str, JsonValue]:
    """Train a causal language model to answer prompts so that a reward rises, held near where it began by a KL penalty.

    Args:
        model: The policy to start from, also the reference: a folder or a Hub id.
        reward: Called as `reward(prompts=[…], completions=[…], **columns)`, where columns are all other columns of the
            data; returns one number a response, None where it does not apply. For chat prompts both are messages. Its
            `columns`, where it has them, must be in the data; what its `features()` returns after a call is logged.
        data: Rows with a `prompt`, text or chat messages.
        out: Becomes a plain model folder, adapters merged, tokenizer included, with what is returned as
            `training.json`, and `log.jsonl`: a line an update. `out.training` beside it holds the log and checkpoints
            meanwhile: training that was stopped goes on from the last, with the same weights as if it had not been.
        config: Everything else.

    Returns:
        The inputs; rows used and skipped (the prompt leaves too little room), updates, responses (`episodes`) and those
        that the reward did not apply to; `reward_before` and `reward_after`, the mean over the held-out prompts, None
        without any; and the last `kl` (nats a response) and `kl_coef`. A finished `out` of the same inputs is returned as
        it is; two rewards that show themselves alike, or functions of one name, count as the same.

    Raises:
        TrainError: A column, the model or EOS is missing, no row fits, the reward fails or gives no finite number, the
            loss is none, or `out` holds something else.
    """
    place = Path(out).expanduser()
    training.prepare(place)
    work = Workplace(place)
    judge = Judge(reward)
    asked, measured = _read(data, judge, config)
    start = training.identity(model, config)
    own = config.model_copy(update={"revision": None})
    with training.quiet():
        from accelerate import Accelerator
        from transformers import AutoModelForCausalLM

        tokenizer = training.open_tokenizer(model, config)
        if tokenizer.eos_token_id is None:
            raise TrainError(
                f"the tokenizer of {model} has no end-of-sequence token, so that no response would ever end; "
                "set tokenizer.eos_token and save it there"
            )
        opened = training.open_model(model, AutoModelForCausalLM, config)
        window = min(config.max_length, weights.window(opened, tokenizer))
        kept = _fitting(tokenizer, asked, window - config.response_length)
        tested = _fitting(tokenizer, measured, window - config.response_length)
        if not kept:
            raise TrainError(
                f"none of {len(asked)} prompts leaves room for a response of {config.response_length} tokens in {window}; "
                "lower response_length, or raise max_length"
            )
        inputs: dict[str, JsonValue] = {
            **training.inputs(
                "ppo",
                start,
                data,
                config.model_copy(update={"value_model": None}),
                [[(q.ids, q.asked.columns) for q in part] for part in (kept, tested)],
            ),
            "reward": judge.identity,
            "value_model": None if config.value_model is None else training.identity(config.value_model, own),
        }
        if (done := training.finished(place, inputs)) is not None:
            work.remove()
            return done
        accelerator = Accelerator()
        if accelerator.is_main_process and len(kept) + len(tested) < len(asked) + len(measured):
            skipped = len(asked) + len(measured) - len(kept) - len(tested)
            note(f"ppo: {skipped:,} prompts skipped: they leave less than {config.response_length} of {window} tokens")
        generation = opened.generation_config
        learner = _learner(opened, tokenizer, judge, config, accelerator)
        result = _train(learner, kept, tested, work, inputs)
        record: dict[str, JsonValue] = {
            **inputs,
            "rows": len(asked),
            "rows_used": len(kept),
            "rows_skipped": len(asked) - len(kept),
            "rows_held_out": len(tested),
            **result,
        }
        if accelerator.is_main_process:
            trained = learner.merged()
            trained.generation_config = generation
            beside = [f for f in (work.folder / LOG, work.folder / BOARD) if f.exists()]
            training.save(trained, tokenizer, place, record, beside)
            work.remove()
        accelerator.wait_for_everyone()
    return record


def _read(data: Data, judge: Judge, config: PPOTraining) -> tuple[list[Asked], list[Asked]]:
    """Return the rows to train on and those to measure on, with all that the reward needs."""
    asked = rows_of.prompts(data, judge.columns)
    if taken := [name for name in RESERVED if name in asked[0].columns]:
        raise TrainError(
            f"{rows_of.title(data)} has a column `{taken[0]}`, which rewards are given beside it; rename the column"
        )
    if config.eval_data is not None:
        return asked, rows_of.prompts(config.eval_data, judge.columns)
    return rows_of.held_out(asked, config.eval_rows, config.seed)


def _fitting(tokenizer: PreTrainedTokenizerBase, asked: list[Asked], room: int) -> list[Question]:
    """Return the rows whose prompts take at most so many tokens, each with its place among all."""
    kept: list[Question] = []
    for row, one in enumerate(asked):
        text = tokens.pieces(tokenizer, one.prompt, "")
        ids = tokens.prompt_ids(tokenizer, text.prompt, text.templated)
        if 0 < len(ids) <= room:
            kept.append(Question(row, one, ids))
    return kept


def _learner(
    opened: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    judge: Judge,
    config: PPOTraining,
    accelerator: Accelerator,
) -> Learner:
    """Put together what is trained: the policy with its adapters, its reference, its value function."""
    import copy

    from transformers import AutoModelForSequenceClassification, GenerationConfig

    from seamcurate.train.actor import Actor, check_critic
    from seamcurate.train.learner import Learner

    # A model's own sampling habits (top_p, repetition_penalty) would sample from another policy than the one that is trained.
    opened.generation_config = GenerationConfig()
    reference = None if config.lora else copy.deepcopy(opened).eval().requires_grad_(False)
    critic = None
    if config.value_model is not None:
        own = config.model_copy(update={"revision": None})
        if training.open_tokenizer(config.value_model, own).get_vocab() != tokenizer.get_vocab():
            raise TrainError(
                f"value_model {config.value_model} has another tokenizer than the policy, whose ids it would read; "
                "give one trained from the policy, or none"
            )
        head = training.open_model(config.value_model, AutoModelForSequenceClassification, own, num_labels=1)
        check_critic(head, str(config.value_model))
        critic = training.adapted(head, "SEQ_CLS", own)
    policy = training.adapted(opened, "CAUSAL_LM", config)
    if config.gradient_checkpointing:
        for part in (policy, critic):
            if part is not None:
                part.gradient_checkpointing_enable({"use_reentrant": False})
    actor = Actor(policy, critic, config.temperature)
    return Learner(actor, reference, tokenizer, judge, config, accelerator)


def _train(
    learner: Learner,
    kept: list[Question],
    tested: list[Question],
    work: Workplace,
    inputs: dict[str, JsonValue],
) -> dict[str, JsonValue]:
    """Run all updates that are left, with their logs and checkpoints; returns what they came to."""
    from contextlib import ExitStack

    from seamcurate.train.rollout import drawn

    config, accelerator = learner.config, learner.accelerator
    local = config.per_device_train_batch_size * config.gradient_accumulation_steps
    batch = local * accelerator.num_processes
    episodes = config.total_episodes or math.ceil(config.num_train_epochs * len(kept))
    updates = config.max_steps if config.max_steps > 0 else math.ceil(episodes / batch)
    asked: dict[str, JsonValue] = {**inputs, "number of processes": accelerator.num_processes}
    done, before = 0, None
    if (found := work.latest(asked)) is not None:
        done, before = learner.resume(*found)
    accelerator.wait_for_everyone()
    board = None
    with ExitStack() as stack:
        if accelerator.is_main_process:
            work.begin(done)
            advance = stack.enter_context(bar("ppo", updates - done, "updates"))
            if config.tensorboard:
                from torch.utils.tensorboard import SummaryWriter

                writer = SummaryWriter(str(work.folder / BOARD), purge_step=done + 1)
                board = stack.enter_context(writer)

        def log(step: int, metrics: dict[str, float | None]) -> None:
            if accelerator.is_main_process:
                work.log({"step": step, **metrics})
                if board is not None:
                    for name, value in metrics.items():
                        if value is not None:
                            board.add_scalar(name, value, step)

        if tested and not done:
            measured = learner.measure(tested, "before the first update")
            before = measured["eval/scores"]
            log(0, measured)
        after = before
        for step in range(done + 1, updates + 1):
            chosen = list(drawn(len(kept), (step - 1) * batch, batch, config.seed))
            mine = chosen[accelerator.process_index * local :][:local]
            metrics = learner.update(step, [kept[i] for i in mine])
            if step % config.logging_steps == 0 or step == updates:
                log(step, metrics)
            if tested and (step == updates or (config.eval_steps and step % config.eval_steps == 0)):
                measured = learner.measure(tested, f"after update {step}")
                after = measured["eval/scores"]
                log(step, measured)
            if accelerator.is_main_process:
                if config.save_steps and step % config.save_steps == 0 and step < updates:
                    state: dict[str, JsonValue] = {"inputs": asked, "reward_before": before, **learner.state(step)}
                    work.save(step, learner.actor, learner.optimizer, state)
                advance(1)
    return {
        "updates": updates,
        "episodes": updates * batch,
        "responses_not_scored": learner.not_scored,
        "reward_before": before,
        "reward_after": after,
        "kl": learner.kl_now,
        "kl_coef": learner.kl.coefficient,
    }
