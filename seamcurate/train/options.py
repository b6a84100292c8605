"""Options of trainings, named as TRL names them."""

from __future__ import annotations

from pathlib import Path
from typing import Literal, Self

from pydantic import Field, model_validator

from seamcurate.train.training import Training


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
