"""Options of trainings, named as TRL, transformers and PEFT name them.

Each field's docstring is its line in `seamcurate train … --help`, whose options are made from these classes.
"""

from __future__ import annotations

import datetime
from pathlib import Path
from typing import Literal, Self

from pydantic import ConfigDict, Field, JsonValue, model_validator

from seamcurate.models.template import FormSettings


class Prompting(FormSettings):
    """How prompts become text, in the words of a command line."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)

    form: str | None = None
    """Form in which prompts become text: chat (the chat template), plain, bare, or a text with {prompt} in it. Without it, the form that the model was trained in."""
    template: dict[str, JsonValue] | None = None
    """Arguments of the chat template, a JSON object such as {"enable_thinking": false}."""
    date: datetime.date | None = None
    """Date that a chat template writes as today's. Without it, the day on which this training or sampling began."""


class Training(Prompting):
    """Options that every trainer takes."""

    learning_rate: float = Field(gt=0)
    """Learning rate of AdamW."""
    num_train_epochs: float = Field(1, gt=0)
    """Passes over the training rows."""
    max_steps: int = -1
    """Optimizer updates after which training stops; -1 leaves it to `num_train_epochs`."""
    per_device_train_batch_size: int = Field(8, ge=1)
    """Rows in a forward pass on each device."""
    gradient_accumulation_steps: int = Field(1, ge=1)
    """Forward passes in one optimizer update."""
    warmup_steps: int = Field(0, ge=0)
    """Updates over which the learning rate rises from 0 to `learning_rate`."""
    max_length: int = Field(512, ge=2)
    """Most tokens of prompt and response together. A longer response is cut; a row whose prompt leaves no room is skipped."""
    seed: int = 0
    """Seed of everything that is random."""
    eval_data: Path | None = None
    """Rows to measure on before and after training: a file, or a folder such as an exported split. Without it, `eval_rows` of the training rows are held out."""
    eval_rows: int = Field(200, ge=0)
    """Rows to hold out and measure on without `eval_data`, at most a tenth of all; 0 measures nothing."""
    lora: bool = True
    """Train low-rank adapters (LoRA) and merge them into the saved weights; otherwise train all weights."""
    lora_r: int = Field(8, ge=1)
    """Rank of the LoRA adapters."""
    lora_alpha: int = Field(32, ge=1)
    """Scale of the LoRA adapters: their output is multiplied by alpha / rank."""
    lora_dropout: float = Field(0.1, ge=0, lt=1)
    """Dropout probability in the LoRA adapters."""
    gradient_checkpointing: bool = False
    """Compute activations twice, so that a larger model fits into memory."""
    revision: str | None = None
    """Branch, tag or commit of a model on the Hub. A folder has none."""
    save_steps: int = Field(0, ge=0)
    """Updates between checkpoints, from which a stopped training goes on; 0 writes none."""
    logging_steps: int = Field(10, ge=1)
    """Updates between two lines of `log.jsonl` in the model's folder, and on standard error; the first update has one in any case."""
    tensorboard: bool = False
    """Log for TensorBoard too, into `tensorboard/` in the model's folder."""


class SFTTraining(Training):
    """Options of `sft`; the defaults are the paper's: AdamW at 1e-4 with 10 warm-up steps."""

    learning_rate: float = Field(1e-4, gt=0)
    warmup_steps: int = Field(10, ge=0)


class RewardTraining(Training):
    """Options of `reward`; the defaults are the paper's: AdamW at 2e-5, LoRA of rank 8, alpha 32, dropout 0.1."""

    learning_rate: float = Field(2e-5, gt=0)


class GroupTraining(Training):
    """Options of `grpo` and `rloo`, named as in TRL."""

    learning_rate: float = Field(1e-5, gt=0)
    logging_steps: int = Field(1, ge=1)
    eval_rows: int = Field(64, ge=0)
    eval_steps: int | None = Field(None, ge=1)
    """Updates between measurements on the held-out rows. Without it, they are measured before and after training alone."""
    trained_rows: int | None = Field(None, ge=0)
    """Training prompts to measure on beside the held-out rows, the same ones each time. Without it, as many as are held out; 0 measures none."""
    lora_alpha: int = Field(16, ge=1)
    lora_dropout: float = Field(0.05, ge=0, lt=1)
    per_device_train_batch_size: int = Field(8, ge=1)
    """Answers in a forward pass on each device."""
    max_length: int = Field(1024, ge=2)
    """Most tokens of prompt and answer together. A row whose prompt leaves less than `max_completion_length` is skipped."""
    num_generations: int = Field(8, ge=2)
    """Answers sampled to each prompt. Divides `per_device_train_batch_size` × `gradient_accumulation_steps`."""
    max_completion_length: int = Field(512, ge=1)
    """Most tokens of an answer."""
    temperature: float = Field(1.0, gt=0)
    """Sampling temperature of the answers."""
    num_iterations: int = Field(1, ge=1)
    """Updates from the same answers. 4 of them with `epsilon` 0.2 are PPO's clipping without a critic."""
    epsilon: float = Field(0.2, gt=0)
    """Distance from 1 at which the probability ratio of new to old policy is clipped."""
    beta: float = Field(0.05, ge=0)
    """Weight of the KL penalty against the policy that training started from."""
    kl_target: float | None = Field(None, gt=0)
    """KL divergence in nats per answer that `beta` is moved to keep. Without it, `beta` stays fixed."""
    kl_horizon: int = Field(10_000, ge=1)
    """Answers over which `beta` changes by about a fifth at most."""
    shuffle_dataset: bool = True
    """Shuffle the prompts in each epoch. Off, they are taken in the order of the data: a curriculum."""

    @model_validator(mode="after")
    def _saves_between_batches(self) -> Self:
        # A resumed training samples answers anew: in the midst of an old batch's updates it would be another training.
        if self.save_steps % self.num_iterations:
            raise ValueError(
                f"save_steps {self.save_steps} is no multiple of num_iterations {self.num_iterations}; "
                "save between batches of answers"
            )
        return self


class PPOTraining(Training):
    """Options of `ppo`, named as TRL 1.12's PPOConfig; the defaults are those published with RER.

    A batch is `per_device_train_batch_size` × `gradient_accumulation_steps` prompts on each process, one response each.
    `lora_dropout` has no effect: PPO's passes run without dropout.
    """

    learning_rate: float = Field(1e-5, gt=0)
    """Learning rate of AdamW, constant after `warmup_steps` updates."""
    max_steps: int = -1
    """Updates, each of one batch of responses, after which training stops; -1 leaves it to `total_episodes` or `num_train_epochs`."""
    total_episodes: int | None = Field(None, ge=1)
    """Responses after which training stops, rounded up to whole batches."""
    per_device_train_batch_size: int = Field(16, ge=1)
    """Responses in a forward pass on each device."""
    max_length: int = Field(1024, ge=2)
    """Most tokens of prompt and response together. A row whose prompt leaves less than `response_length` is skipped."""
    response_length: int = Field(512, ge=1)
    """Most tokens of a response."""
    temperature: float = Field(1.0, gt=0)
    """Sampling temperature of the responses."""
    stop_strings: tuple[str, ...] = ()
    """Literal text that ends a response, which is cut before it for the reward."""
    num_ppo_epochs: int = Field(4, ge=1)
    """Passes over each batch of responses."""
    num_mini_batches: int = Field(1, ge=1)
    """Optimizer steps in one pass over a batch of responses."""
    kl_coef: float = Field(0.2, ge=0)
    """Weight of the KL penalty against the policy that training started from, at the start."""
    kl_target: float | None = Field(6.0, gt=0)
    """KL divergence in nats per response that `kl_coef` is moved to keep. Without it, `kl_coef` stays fixed."""
    kl_horizon: int = Field(10_000, ge=1)
    """Responses over which `kl_coef` changes by about a fifth at most."""
    kl_estimator: Literal["k1", "k3"] = "k1"
    """Estimator of a token's KL divergence: k1 is log p - log q, k3 is q/p - 1 - log q/p."""
    gamma: float = Field(1.0, ge=0, le=1)
    """Discount factor of a reward one token later."""
    lam: float = Field(0.95, ge=0, le=1)
    """Lambda of generalised advantage estimation (GAE)."""
    cliprange: float = Field(0.2, gt=0)
    """Distance from 1 at which the probability ratio of new to old policy is clipped."""
    cliprange_value: float = Field(0.2, gt=0)
    """Distance from the old value at which the new value is clipped."""
    vf_coef: float = Field(1.0, ge=0)
    """Weight of the value function's loss."""
    whiten_rewards: bool = False
    """Scale rewards to unit variance within a batch."""
    score_normalise: bool = True
    """Subtract the running mean from scores and divide them by their running standard deviation, both over all scores so far."""
    score_clip: float | None = Field(10.0, gt=0)
    """Largest absolute score, applied after `score_normalise`. Without it, scores are not clipped."""
    missing_eos_penalty: float | None = None
    """Amount taken off the score of a response that was cut at `response_length`, after `score_clip`."""
    value_model: Path | None = None
    """Reward model, of a decoder, that a separate value model starts from. Without it, the value is a linear head on the policy's last hidden state."""
    eval_rows: int = Field(64, ge=0)
    shuffle_dataset: bool = True
    """Shuffle the prompts in each epoch. Off, they are taken in the order of the data: a curriculum."""
    eval_steps: int | None = Field(None, ge=1)
    """Updates between measurements on the held-out rows. Without it, they are measured before and after training alone."""
    trained_rows: int | None = Field(None, ge=0)
    """Training prompts to measure on beside the held-out rows, the same ones each time. Without it, as many as are held out; 0 measures none."""
    save_steps: int = Field(100, ge=0)
    logging_steps: int = Field(1, ge=1)
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


class Answering(Prompting):
    """Options of `answer`."""

    max_new_tokens: int = Field(256, ge=1)
    """Most tokens of an answer."""
    temperature: float = Field(1.0, gt=0)
    """Sampling temperature of the answers."""
    samples: int = Field(1, ge=1)
    """Answers sampled to each prompt."""
    batch_size: int = Field(16, ge=1)
    """Answers sampled at a time."""
    revision: str | None = None
    """Branch, tag or commit of a model on the Hub. A folder has none."""
    seed: int = 0
    """Seed of the sampling."""
