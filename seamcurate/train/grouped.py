"""GRPO and RLOO on TRL: several answers to each prompt, each held against the others of its group.

The reward is any callable of TRL's convention, `reward(prompts, completions, **columns)`; prompts and columns reach it
as the rows have them, whatever the policy's chat template makes of a prompt.
"""

from __future__ import annotations

import itertools
import json
import statistics
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from pydantic import JsonValue

from seamcurate.errors import TrainError
from seamcurate.models import weights
from seamcurate.models.chat import as_turns
from seamcurate.models.template import Form
from seamcurate.train import rollout, training, verdict
from seamcurate.train.data import PromptRow, TrainingData
from seamcurate.train.kl import KLController
from seamcurate.train.options import GroupTraining
from seamcurate.train.rollout import CheckedReward, RewardCallable, TokenizedPrompt, respond
from seamcurate.train.workplace import Workplace
from seamcurate.words import repetition

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase


def grpo(
    model: str | Path,
    reward: RewardCallable,
    data: TrainingData,
    out: str | Path,
    config: GroupTraining = GroupTraining(),
    gold: RewardCallable | None = None,
) -> dict[str, JsonValue]:
    """Train a policy by GRPO (Shao 2024): advantages are rewards normalised within a prompt's group of answers.

    Under group scaling a reward's scale cancels: of RER, the ratio of open-ended to closed-ended scales matters no more.
    See `rloo` for the rest.
    """
    return _train("grpo", model, reward, data, out, config, gold)


def rloo(
    model: str | Path,
    reward: RewardCallable,
    data: TrainingData,
    out: str | Path,
    config: GroupTraining = GroupTraining(),
    gold: RewardCallable | None = None,
) -> dict[str, JsonValue]:
    """Train a policy by RLOO (Ahmadian 2024): the baseline of an answer is the mean reward of the others of its group.

    `data` has `prompt`, text or chat messages; every other column is handed to the reward by its name. `out` becomes a
    plain model folder, as `sft` leaves it, with `log.jsonl` (rewards, KL, lengths; the reward's own `features()`; and of
    held-out prompts, named as `ppo` names them, `eval/scores`, `eval/response_length` and `eval/gold`; of a fixed set of
    the training prompts the same with `trained/`). `gold` is another reward, measured whenever `reward` is on these
    prompts, and never learned from.

    Raises:
        TrainError: A column that the reward needs is missing, no prompt fits the window, the reward raises or returns
            NaN, the model has no EOS, or `out` holds something else.
    """
    return _train("rloo", model, reward, data, out, config, gold)


def _train(
    method: Literal["grpo", "rloo"],
    model: str | Path,
    reward: RewardCallable,
    data: TrainingData,
    folder: str | Path,
    config: GroupTraining,
    gold: RewardCallable | None,
) -> dict[str, JsonValue]:
    work = training.prepare(folder)
    answers = config.per_device_train_batch_size * config.gradient_accumulation_steps
    if answers % config.num_generations:
        raise TrainError(
            f"per_device_train_batch_size {config.per_device_train_batch_size} × gradient_accumulation_steps "
            f"{config.gradient_accumulation_steps} answers are no whole groups of num_generations {config.num_generations}"
        )
    checked_reward = CheckedReward(reward)
    gold_reward = None if gold is None else CheckedReward(gold)
    rows = rollout.read(data, (*checked_reward.columns, *(gold_reward.columns if gold_reward else ())), config)
    model_identity = training.identity(model, config)
    if config.beta and not config.lora and weights.base(weights.Origin(str(model), config.revision)) is not None:
        # TRL would read the reference policy from the folder of the base.
        raise TrainError(
            f"model {model} is an adapter, and without LoRA the KL penalty needs its whole weights in one folder; "
            f"{weights.MERGE}, or train with LoRA"
        )
    with training.quiet():
        from datasets import Dataset
        from trl import GRPOConfig, GRPOTrainer, RLOOConfig, RLOOTrainer

        tokenizer, policy = training.open_policy(model, config)
        config = training.pinned(config, tokenizer, work.out)
        form = training.prompt_form(tokenizer, config, policy)
        window, answer_length = weights.window(policy, tokenizer), config.max_completion_length
        prompts, held_out, counts = rollout.prompt_sets(method, tokenizer, form, rows, config, window, answer_length)
        if len(prompts) < answers * work.processes // config.num_generations:
            raise TrainError(
                f"{len(prompts)} prompts are fewer than the {answers * work.processes // config.num_generations} of one "
                "update; lower per_device_train_batch_size, or raise num_generations"
            )
        inputs = training.inputs(
            method,
            model_identity,
            data,
            config,
            [[(q.ids, q.source.columns) for q in prompts_of_set] for prompts_of_set in (prompts, held_out)],
        )
        inputs |= {"reward": checked_reward.identity, "gold": None if gold_reward is None else gold_reward.identity}
        if (finished := training.finished(work, inputs)) is not None:
            return finished
        # Before the first update: a reward that fails costs no time.
        checked_reward.score(prompts[:1], ["An answer."], "on trial")
        _, checkpoint = work.begin(inputs)
        logged_reward = _LoggedReward(checked_reward, prompts, form, work.state, config.num_generations)
        arguments = training.arguments(config, str(work.folder)) | {
            "num_generations": config.num_generations,
            "max_completion_length": config.max_completion_length,
            "temperature": config.temperature,
            "num_iterations": config.num_iterations,
            "epsilon": config.epsilon,
            "beta": config.beta,
            "log_completions": False,
            "shuffle_dataset": config.shuffle_dataset,
        }
        dataset_rows = [{"prompt": _trl_prompt(prompt.source, form), "row": i} for i, prompt in enumerate(prompts)]
        generation, policy.generation_config = policy.generation_config, rollout.sampling(policy.generation_config)
        classes: Any = (GRPOTrainer, GRPOConfig) if method == "grpo" else (RLOOTrainer, RLOOConfig)
        trainer = classes[0](
            model=training.adapted(policy, "CAUSAL_LM", config),
            reward_funcs=logged_reward,
            args=classes[1](**arguments),
            train_dataset=Dataset.from_list(dataset_rows),
            processing_class=tokenizer,
        )
        _use_prompt_ids(
            trainer, {_prompt_key(row["prompt"]): prompt.ids for row, prompt in zip(dataset_rows, prompts, strict=True)}
        )
        if config.shuffle_dataset:
            sampler = trainer._get_train_sampler()
            trainer._get_train_sampler = lambda dataset=None: _ShuffledEpochs(sampler, config.seed)
        if config.beta and config.kl_target is not None:
            trainer.add_callback(_kl_callback(trainer, config, work.state))
        updates = -(-config.max_steps // config.num_iterations) if config.max_steps > 0 else None
        answers_of_training = None if updates is None else updates * config.num_iterations * answers * work.processes
        order = itertools.islice(trainer._get_train_sampler(), answers_of_training)
        trained_prompts = rollout.first_trained(prompts, order, config.trained_rows, len(held_out))
        sets = {"eval": held_out} | ({"trained": trained_prompts} if trained_prompts else {})
        measure = _SetMeans(tokenizer, form, sets, checked_reward, gold_reward, config)
        means_before = measure(trainer.model, "before the first update")
        if any(sets.values()) and checkpoint is None:
            work.write(0, means_before)
        if any(sets.values()) and config.eval_steps is not None:
            trainer.add_callback(_measuring_callback(measure, config.eval_steps, work))
        result = training.fit(trainer, method, config, work, checkpoint)
        trained = training.merged(trainer)
        means_after = measure(trained, "after the last update")
        if any(sets.values()):
            work.write(trainer.state.global_step, means_after)
        record: dict[str, JsonValue] = {
            **inputs,
            **counts,
            **result,
            "answers_without_a_reward": work.state.get("without", 0),
            "groups": work.state.get("groups", 0),
            "groups_of_equal_rewards": work.state.get("groups_equal", 0),
            "reward_first": work.state.get("first"),
            "reward_last": work.state.get("last"),
            "reward_before": means_before["eval/scores"],
            "reward_after": means_after["eval/scores"],
            "gold_before": means_before.get("eval/gold"),
            "gold_after": means_after.get("eval/gold"),
            "reward_trained_before": means_before.get("trained/scores"),
            "reward_trained_after": means_after.get("trained/scores"),
            "gold_trained_before": means_before.get("trained/gold"),
            "gold_trained_after": means_after.get("trained/gold"),
        }
        first, last = (
            value if isinstance(value := work.state.get(name), float) else None for name in ("first", "last")
        )
        record["verdict"] = training.agreed(
            work,
            lambda: verdict.of_rewards(
                verdict.measures(work.lines()),
                len(held_out),
                first,
                last,
                verdict.measures(work.lines(), "trained"),
                len(trained_prompts),
            ),
        )
        trained.generation_config = generation
        training.save(trained, tokenizer, work, record)
    return record


class _ShuffledEpochs:
    """Draw an epoch's order by its number: TRL's sampler would begin with the first epoch's after a stop."""

    def __init__(self, sampler: Any, seed: int) -> None:
        self.sampler, self.seed, self.epoch = sampler, seed, 0

    def set_epoch(self, epoch: int) -> None:
        self.epoch = epoch

    def __len__(self) -> int:
        return len(self.sampler)

    def __iter__(self) -> Iterator[int]:
        self.sampler.generator.manual_seed(self.seed + self.epoch)
        return iter(self.sampler)


class _LoggedReward:
    """The reward as TRL calls it: given the rows as they are, and held to its word."""

    def __init__(
        self,
        reward: CheckedReward,
        prompts: Sequence[TokenizedPrompt],
        form: Form,
        state: dict[str, Any],
        generations: int,
    ) -> None:
        self.reward, self.prompts, self.form, self.state = reward, prompts, form, state
        self.generations = generations
        self.__name__ = reward.name

    def __call__(
        self, completions: Sequence[Any], row: Sequence[int], trainer_state: Any, log_metric: Any, **columns: object
    ) -> list[float | None]:
        from accelerate.utils import gather_object

        texts = [
            completion if isinstance(completion, str) else str(completion[-1]["content"]) for completion in completions
        ]
        texts = [self.form.generated(text) for text in texts]
        scores = self.reward.score([self.prompts[i] for i in row], texts, f"after update {trainer_state.global_step}")
        # Of several processes each is asked about its own answers.
        all_scores = gather_object(scores)
        numbers = [value for value in all_scores if value is not None]
        self.state["without"] = self.state.get("without", 0) + len(all_scores) - len(numbers)
        # TRL's frac_reward_zero_std, but of RLOO's rewards before its KL penalty, and of every update, logged or not.
        groups = [all_scores[i : i + self.generations] for i in range(0, len(all_scores), self.generations)]
        self.state["groups"] = self.state.get("groups", 0) + len(groups)
        self.state["groups_equal"] = self.state.get("groups_equal", 0) + sum(map(_are_equal, groups))
        if numbers:
            self.state["last"] = sum(numbers) / len(numbers)
            self.state.setdefault("first", self.state["last"])
        repetitions = [share for text in texts if (share := repetition(text)) is not None]
        means = self.reward.features() | ({"repetition": sum(repetitions) / len(repetitions)} if repetitions else {})
        for name, value in means.items():
            log_metric(name, value)
        return scores


def _are_equal(group: Sequence[float | None]) -> bool:
    """Tell whether no answer of a group is better than another, so that all advantages are 0."""
    numbers = [value for value in group if value is not None]
    return not numbers or max(numbers) - min(numbers) <= 1e-8


class _SetMeans:
    """What rewards give answers to fixed sets of prompts, drawn from the same seed each time."""

    def __init__(
        self,
        tokenizer: PreTrainedTokenizerBase,
        form: Form,
        sets: Mapping[str, Sequence[TokenizedPrompt]],
        reward: CheckedReward,
        gold: CheckedReward | None,
        config: GroupTraining,
    ) -> None:
        self.tokenizer, self.form, self.sets, self.config = tokenizer, form, sets, config
        self.rewards = {"scores": reward} | ({} if gold is None else {"gold": gold})

    def __call__(self, policy: PreTrainedModel, moment: str) -> dict[str, float | None]:
        """Return means by set and name, such as `eval/scores`; None without a prompt, or a reward that applies."""
        return {
            f"{name_of_set}/{name}": mean
            for name_of_set, prompts in self.sets.items()
            for name, mean in self._means(prompts, policy, moment).items()
        }

    def _means(
        self, prompts: Sequence[TokenizedPrompt], policy: PreTrainedModel, moment: str
    ) -> dict[str, float | None]:
        import torch

        # TRL logs what it knows of training while the model is training.
        was_training = policy.training
        policy.eval()
        values_by_name: dict[str, list[float]] = {name: [] for name in (*self.rewards, "response_length")}
        size, config = self.config.per_device_train_batch_size, self.config
        with torch.random.fork_rng():
            torch.manual_seed(config.seed)
            for start in range(0, len(prompts), size):
                batch = prompts[start : start + size]
                ids = [prompt.ids for prompt in batch]
                answers = respond(
                    policy, self.tokenizer, ids, config.max_completion_length, config.temperature, (), self.form
                )
                for name, reward in self.rewards.items():
                    values_by_name[name] += [
                        score for score in reward.score(batch, answers.texts, moment) if score is not None
                    ]
                values_by_name["response_length"] += answers.written.sum(1).tolist()
        policy.train(was_training)
        means: dict[str, float | None] = {}
        for name, values in values_by_name.items():
            means[name] = statistics.fmean(values) if values else None
            if name in self.rewards:
                means[f"{name}_deviation"] = statistics.pstdev(values) if values else None
        return means


def _measuring_callback(measure: _SetMeans, steps: int, work: Workplace) -> Any:
    """Return what measures between updates, the last apart, which is measured of the finished policy."""
    from transformers import TrainerCallback

    class Measuring(TrainerCallback):
        def on_step_end(self, args: Any, state: Any, control: Any, model: Any = None, **rest: Any) -> None:
            if state.global_step % steps == 0 and state.global_step < state.max_steps:
                work.write(state.global_step, measure(model, f"after update {state.global_step}"))

    return Measuring()


def _trl_prompt(row: PromptRow, form: Form) -> object:
    """Write a prompt as TRL wants it: messages for a chat template, else the text."""
    if not form.chat:
        return form.prompt(row.prompt)
    return as_turns(row.prompt)


def _use_prompt_ids(trainer: Any, ids_of_prompts: dict[str, list[int]]) -> None:
    """Have TRL read prompts by the ids that scoring reads: by its own, a special token that a text spells is one."""
    trl_tokenize = trainer._tokenize_prompts

    def tokenize(prompts: list[object]) -> Any:
        ids, *further_values = trl_tokenize(prompts)
        return [
            ids_of_prompts.get(_prompt_key(prompt), trl_ids) for prompt, trl_ids in zip(prompts, ids, strict=True)
        ], *further_values

    trainer._tokenize_prompts = tokenize


def _prompt_key(prompt: object) -> str:
    return json.dumps(prompt, sort_keys=True)


def _kl_callback(trainer: Any, config: GroupTraining, state_of_checkpoint: dict[str, Any]) -> Any:
    """Return what moves a trainer's `beta` after each update, and notes where it is in each checkpoint."""
    from transformers import TrainerCallback

    controller = KLController(config.beta, config.kl_target, config.kl_horizon)

    class Moving(TrainerCallback):
        def on_train_begin(self, args: Any, state: Any, control: Any, **rest: Any) -> None:
            controller.coefficient = trainer.beta = state_of_checkpoint.get("beta", config.beta)

        def on_step_end(self, args: Any, state: Any, control: Any, **rest: Any) -> None:
            metrics = trainer._metrics["train"]
            # Once for each batch of answers, as it was drawn: later updates from the same ones are no news of the policy.
            if (state.global_step - 1) % config.num_iterations == 0:
                # TRL's KL is a token's mean; the papers' target is an answer's.
                kl = metrics["kl"][-1] * metrics["completions/mean_length"][-1]
                answers = args.train_batch_size * args.gradient_accumulation_steps * args.world_size
                trainer.beta = controller.update(kl, answers)
            metrics["beta"].append(trainer.beta)
            state_of_checkpoint["beta"] = trainer.beta

    return Moving()
