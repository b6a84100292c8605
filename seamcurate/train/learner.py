"""One PPO update after another: sample, score, estimate advantages, take optimizer steps. What stays between them is small.

Each update draws from a seed of its own, so that training that was stopped goes on exactly as it would have: weights,
moments and a few numbers are all there is to keep.
"""

from __future__ import annotations

import contextlib
import hashlib
import math
import time
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from pydantic import JsonValue

from seamcurate.errors import TrainError
from seamcurate.train import advantage
from seamcurate.train.advantage import ScoreScale
from seamcurate.train.kl import KLController
from seamcurate.train.rollout import CheckedReward, ResponseBatch, TokenizedPrompt, respond
from seamcurate.words import repetition

if TYPE_CHECKING:
    from accelerate import Accelerator
    from torch import Tensor
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

    from seamcurate.models.template import Form
    from seamcurate.train.actor import Actor
    from seamcurate.train.options import PPOTraining


class Experience(NamedTuple):
    """A batch of responses and what an update learns from it; tensors are responses × tokens."""

    responses: ResponseBatch
    mask: Tensor
    """1 on tokens to learn from: all that were written, less the responses that have no score."""
    logprobs: Tensor
    values: Tensor
    advantages: Tensor
    returns: Tensor


class Learner:
    """What PPO trains, and the numbers that move with it."""

    def __init__(
        self,
        actor: Actor,
        reference: PreTrainedModel | None,
        tokenizer: PreTrainedTokenizerBase,
        form: Form,
        reward: CheckedReward,
        config: PPOTraining,
        accelerator: Accelerator,
        gold: CheckedReward | None = None,
    ) -> None:
        import torch

        self.tokenizer, self.form, self.reward, self.gold = tokenizer, form, reward, gold
        self.config, self.accelerator = config, accelerator
        self.actor = actor.to(accelerator.device)
        # With adapters the reference is the policy with its adapters switched off: no second copy of the weights.
        self.reference: PreTrainedModel = actor.policy if reference is None else reference.to(accelerator.device)
        trained = [p for p in actor.parameters() if p.requires_grad]
        self.optimizer: Any = torch.optim.AdamW(trained, lr=config.learning_rate, weight_decay=0.0)
        self.kl = KLController(config.kl_coef, config.kl_target, config.kl_horizon)
        self.kl_now: float | None = None
        self.scale = ScoreScale()
        self.not_scored = 0
        self.started, self.answered = time.monotonic(), 0
        self.model: Any = None

    def resume(self, folder: Path, state: dict[str, Any]) -> None:
        """Take up a checkpoint."""
        from seamcurate.train import checkpoint

        checkpoint.restore(folder, self.actor, self.optimizer)
        self.kl.coefficient, self.not_scored = state["kl_coef"], state["responses_not_scored"]
        self.scale = ScoreScale(*state["score_scale"])

    def save(self, folder: Path) -> None:
        """Write weights and moments."""
        from seamcurate.train import checkpoint

        checkpoint.write(folder, self.actor, self.optimizer)

    def state(self) -> dict[str, JsonValue]:
        """Return what `resume` needs beside weights and moments."""
        return {
            "kl_coef": self.kl.coefficient,
            "score_scale": [self.scale.count, self.scale.mean, self.scale.squares],
            "responses_not_scored": self.not_scored,
        }

    def update(self, step: int, prompts: Sequence[TokenizedPrompt]) -> dict[str, float | None]:
        """Sample a response to each prompt and learn from them; returns the update's metrics, named as TRL's.

        Raises:
            TrainError: The reward fails, or the loss is no finite number.
        """
        if self.model is None:
            self.model, self.optimizer = self.accelerator.prepare(self.actor, self.optimizer)
        self._seed(str(step))
        # A function of the step alone, so that a checkpoint needs no scheduler's state.
        rate = self.config.learning_rate * min(1.0, step / max(1, self.config.warmup_steps))
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        means = Means()
        coefficient = self.kl.coefficient
        self.actor.eval()
        with self._precision():
            experience = self._experience(step, prompts, means)
            # transformers checkpoints in training mode only; nothing else depends on the mode, for there is no dropout.
            self.actor.train(self.config.gradient_checkpointing)
            self._learn(step, experience, means)
        metrics = means.gathered()
        responses = len(prompts) * self.accelerator.num_processes
        self.answered += responses
        self.kl_now = metrics["objective/kl"]
        assert self.kl_now is not None
        self.kl.update(self.kl_now, responses)
        return metrics | {
            "kl_coef": coefficient,
            "lr": rate,
            "episode": step * responses,
            "eps": self.answered / (time.monotonic() - self.started),
        }

    def measure(
        self, prompts: Sequence[TokenizedPrompt], moment: str, name_of_set: str = "eval"
    ) -> dict[str, float | None]:
        """Return means over responses to a fixed set of prompts, sampled from the same seed each time.

        Args:
            prompts: The prompts.
            moment: When it is measured, for errors.
            name_of_set: What stands before the names of the means: `eval` for held-out prompts, `trained` for others.
        """
        self._seed("measure")
        self.actor.eval()
        means = Means()
        # Each process measures its share; `gathered` brings the sums together.
        own_prompts = prompts[self.accelerator.process_index :: self.accelerator.num_processes]
        size = self.config.per_device_train_batch_size * self.config.gradient_accumulation_steps
        for start in range(0, len(own_prompts), size):
            batch = own_prompts[start : start + size]
            with self._precision():
                responses = self._respond(batch)
            scores = {"scores": self.reward.score(batch, responses.texts, moment)}
            if self.gold is not None:
                scores["gold"] = self.gold.score(batch, responses.texts, moment)
            for name, values in scores.items():
                means.add(name, values)
                means.add(f"{name}_deviation", [None if value is None else value**2 for value in values])
            self._describe(responses, means)
            for name, value in self.reward.features().items():
                means.add(f"reward/{name}", [value], len(batch))
        gathered = means.gathered()
        for name in ("scores", "gold"):
            mean, squares = gathered.get(name), gathered.get(f"{name}_deviation")
            if mean is not None and squares is not None:
                gathered[f"{name}_deviation"] = math.sqrt(max(0.0, squares - mean**2))
        return {f"{name_of_set}/{name.removeprefix('val/')}": value for name, value in gathered.items()}

    def merged(self) -> PreTrainedModel:
        """Return the policy, its adapters merged into the weights."""
        from peft import PeftModel

        policy = self.actor.policy
        merged: PreTrainedModel = policy.merge_and_unload() if isinstance(policy, PeftModel) else policy
        return merged

    def _experience(self, step: int, prompts: Sequence[TokenizedPrompt], means: Means) -> Experience:
        import torch

        config = self.config
        responses = self._respond(prompts)
        scores_given = self.reward.score(prompts, responses.texts, f"at update {step}")
        raw = torch.tensor(
            [float("nan") if score is None else score for score in scores_given], device=self.accelerator.device
        )
        scored = ~raw.isnan()
        # From here: scores, raw and scored are (batch,); all else is (batch, longest response).
        scores = self._scaled(raw, responses)
        logprobs, reference, values = self._read(responses)
        written = responses.written
        # A response without a score is read for its KL, and not learnt from.
        mask = written * scored[:, None]
        kl = advantage.kl_estimate(logprobs, reference, written, config.kl_estimator)
        rewards = advantage.token_rewards(kl, scores, written, self.kl.coefficient)
        if config.whiten_rewards:
            rewards = advantage.whiten(rewards, mask, shift=False, summed=self._summed)
        advantages, returns = advantage.gae(rewards, values, mask, config.gamma, config.lam)
        advantages = advantage.whiten(advantages, mask, summed=self._summed)

        # Sums over a response's tokens: (batch,).
        penalty = (-self.kl.coefficient * kl).sum(1)
        means.add("objective/kl", kl.sum(1).tolist())
        means.add("objective/entropy", (-logprobs * written).sum(1).tolist())
        means.add("objective/non_score_reward", penalty.tolist())
        means.add("objective/scores", scores_given)
        means.add("objective/rlhf_reward", (penalty + scores)[scored].tolist())
        self._describe(responses, means)
        for name, value in self.reward.features().items():
            means.add(f"reward/{name}", [value])
        left_out = self._summed((~scored).sum())
        self.not_scored += int(left_out)
        return Experience(responses, mask, logprobs, values, advantages, returns)

    def _learn(self, step: int, experience: Experience, means: Means) -> None:
        import torch

        config = self.config
        count = len(experience.mask)
        for epoch in range(config.num_ppo_epochs):
            for number, indices in enumerate(torch.randperm(count).chunk(config.num_mini_batches)):
                mini_batch = indices.to(experience.mask.device)
                # Every token of the mini batch weighs the same, however it is cut and spread over processes.
                total = self._summed(experience.mask[mini_batch].sum()) / self.accelerator.num_processes
                if not total:
                    continue
                sums: list[Tensor] = []
                forward_batches = torch.split(mini_batch, config.per_device_train_batch_size)
                for position, forward_batch in enumerate(forward_batches):
                    is_last = position == len(forward_batches) - 1
                    # Gradients are exchanged between processes once for each optimizer step, with the last part.
                    with contextlib.nullcontext() if is_last else self.accelerator.no_sync(self.model):
                        loss, statistics = self._loss(experience, forward_batch)
                        self.accelerator.backward(loss / total)
                    sums.append(statistics)
                    # Before the first step the policy is the one that sampled: each ratio is 1, but for rounding.
                    if epoch == number == position == 0:
                        means.add("val/first_ratio_error", [statistics[-1].item()])
                batch_means = torch.stack(sums)[:, :-1].sum(0) / total
                if not batch_means.isfinite().all():
                    raise TrainError(f"the loss at update {step} is no finite number; lower learning_rate")
                self.optimizer.step()
                self.optimizer.zero_grad()
                names = ("loss/policy_avg", "loss/value_avg", "policy/approxkl_avg", "policy/clipfrac_avg")
                for name, value in zip((*names, "val/clipfrac_avg", "val/ratio"), batch_means.tolist(), strict=True):
                    means.add(name, [value])

    def _loss(self, experience: Experience, indices: Tensor) -> tuple[Tensor, Tensor]:
        """Return the summed loss of some responses, and the sums of what is logged about them, detached."""
        import torch

        config, responses, mask = self.config, experience.responses, experience.mask[indices]
        logprobs, values = self.model(responses.ids[indices], responses.mask[indices], responses.context)
        policy, log_ratio = advantage.policy_loss(
            logprobs, experience.logprobs[indices], experience.advantages[indices], mask, config.cliprange
        )
        value = advantage.value_loss(
            values, experience.values[indices], experience.returns[indices], mask, config.cliprange_value
        )
        loss = policy.loss.sum() + config.vf_coef * value.loss.sum()
        with torch.no_grad():
            ratio = log_ratio.exp()
            statistics = [
                policy.loss.sum(),
                value.loss.sum(),
                0.5 * (log_ratio**2).sum(),
                policy.clipped.sum(),
                value.clipped.sum(),
                (ratio * mask).sum(),
                (ratio - 1).abs().max(),
            ]
            return loss, torch.stack(statistics)

    def _respond(self, prompts: Sequence[TokenizedPrompt]) -> ResponseBatch:
        config = self.config
        try:
            return respond(
                self.actor.policy,
                self.tokenizer,
                [q.ids for q in prompts],
                config.response_length,
                config.temperature,
                config.stop_strings,
                self.form,
            )
        except RuntimeError as error:
            if "probability tensor" not in str(error):
                raise
            raise TrainError(
                "the policy's probabilities are no finite numbers any more; lower learning_rate"
            ) from error

    def _scaled(self, raw: Tensor, responses: ResponseBatch) -> Tensor:
        """Return the scores as they are learnt from; 0 stands for none."""
        config = self.config
        scores = raw
        if config.score_normalise:
            # All processes' scores, so that all scale alike; NaN marks a response without a score.
            all_scores = self.accelerator.gather(raw).double().cpu()
            all_scores = all_scores[~all_scores.isnan()]
            if len(all_scores):
                mean = float(all_scores.mean())
                self.scale.update(len(all_scores), mean, float(((all_scores - mean) ** 2).sum()))
            scores = self.scale.scale(scores)
        if config.score_clip is not None:
            scores = scores.clamp(-config.score_clip, config.score_clip)
        if config.missing_eos_penalty is not None:
            was_cut = scores.new_tensor([not ended for ended in responses.ended])
            scores = scores - config.missing_eos_penalty * was_cut
        # 0 in place of NaN: even times a mask of 0, NaN would spread.
        return scores.nan_to_num()

    def _read(self, responses: ResponseBatch) -> tuple[Tensor, Tensor, Tensor]:
        """Return log-probabilities, the reference's, and values, in parts that fit as training's do."""
        import torch

        from seamcurate.train.actor import reference_logprobs

        context, size = responses.context, self.config.per_device_train_batch_size
        outputs: list[tuple[Tensor, ...]] = []
        with torch.no_grad():
            for start in range(0, len(responses.ids), size):
                ids, mask = responses.ids[start : start + size], responses.mask[start : start + size]
                logprobs, values = self.actor(ids, mask, context)
                reference = reference_logprobs(self.reference, ids, mask, context, self.config.temperature)
                outputs.append((logprobs, reference, values))
        logprobs, reference, values = (torch.cat(column) for column in zip(*outputs, strict=True))
        return logprobs, reference, values

    def _describe(self, responses: ResponseBatch, means: Means) -> None:
        means.add("val/response_length", responses.written.sum(1).tolist())
        means.add("val/ended", [float(ended) for ended in responses.ended])
        means.add("val/repetition", [repetition(text) for text in responses.texts])

    def _precision(self) -> contextlib.AbstractContextManager[object]:
        """Compute in bfloat16 on a GPU that can; weights that are trained stay float32."""
        import torch

        kind = self.accelerator.device.type
        return torch.autocast(kind, torch.bfloat16, enabled=kind == "cuda" and torch.cuda.is_bf16_supported())

    def _summed(self, value: Tensor) -> Tensor:
        total: Tensor = self.accelerator.reduce(value, "sum")
        return total

    def _seed(self, purpose: str) -> None:
        from transformers import set_seed

        seed_text = f"{self.config.seed} {purpose} {self.accelerator.process_index}"
        set_seed(int.from_bytes(hashlib.sha256(seed_text.encode()).digest()[:4]))


class Means:
    """Means by name, over all values that all processes added; what is None is left out."""

    def __init__(self) -> None:
        self.sums: dict[str, tuple[float, float]] = {}

    def add(self, name: str, values: Iterable[float | None], weight: float = 1.0) -> None:
        """Add values, each as much as `weight` of others."""
        numbers = [value for value in values if value is not None]
        total, count = self.sums.get(name, (0.0, 0.0))
        self.sums[name] = total + weight * sum(numbers), count + weight * len(numbers)

    def gathered(self) -> dict[str, float | None]:
        """Return each name's mean, None where there was no value; a process need not know the names of the others."""
        from accelerate.utils import gather_object

        all_sums: list[dict[str, tuple[float, float]]] = gather_object([self.sums])
        means: dict[str, float | None] = {}
        for name in sorted({name for sums in all_sums for name in sums}):
            total, count = (sum(values) for values in zip(*(sums.get(name, (0, 0)) for sums in all_sums), strict=True))
            means[name] = total / count if count else None
        return means
