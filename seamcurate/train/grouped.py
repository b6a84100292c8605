"""GRPO and RLOO on TRL: several answers to each prompt, each held against the others of its group.

The reward is any callable of TRL's convention, `reward(prompts, completions, **columns)`; prompts and columns reach it
as the rows have them, whatever the policy's chat template makes of a prompt.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from pydantic import JsonValue

from seamcurate.errors import TrainError
from seamcurate.models import weights
from seamcurate.models.chat import as_turns
from seamcurate.models.template import Form
from seamcurate.train import rollout, training
from seamcurate.train.data import Asked, Data
from seamcurate.train.kl import KLController
from seamcurate.train.options import GroupTraining
from seamcurate.train.rollout import Judge, Question, Reward, respond
from seamcurate.train.workplace import Workplace
from seamcurate.words import repetition

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase


def grpo(
    model: str | Path,
    reward: Reward,
    data: Data,
    out: str | Path,
    config: GroupTraining = GroupTraining(),
    gold: Reward | None = None,
) -> dict[str, JsonValue]:
    """Train a policy by GRPO (Shao 2024): advantages are rewards normalised within a prompt's group of answers.

    Under group scaling a reward's scale cancels: of RER, the ratio of open-ended to closed-ended scales matters no more.
    See `rloo` for the rest.
    """
    return _train("grpo", model, reward, data, out, config, gold)


def rloo(
    model: str | Path,
    reward: Reward,
    data: Data,
    out: str | Path,
    config: GroupTraining = GroupTraining(),
    gold: Reward | None = None,
) -> dict[str, JsonValue]:
    """Train a policy by RLOO (Ahmadian 2024): the baseline of an answer is the mean reward of the others of its group.

    `data` has `prompt`, text or chat messages; every other column is handed to the reward by its name. `out` becomes a
    plain model folder, as `sft` leaves it, with `log.jsonl` (rewards, KL, lengths; the reward's own `features()`; and of
    held-out prompts, named as `ppo` names them, `eval/scores`, `eval/response_length` and `eval/gold`). `gold` is another
    reward, measured whenever `reward` is on the held-out prompts, and never learned from.

    Raises:
        TrainError: A column that the reward needs is missing, no prompt fits the window, the reward raises or returns
            NaN, the model has no EOS, or `out` holds something else.
    """
    return _train("rloo", model, reward, data, out, config, gold)


def _train(
    method: Literal["grpo", "rloo"],
    model: str | Path,
    reward: Reward,
    data: Data,
    out: str | Path,
    config: GroupTraining,
    gold: Reward | None,
) -> dict[str, JsonValue]:
    work = training.prepare(out)
    answers = config.per_device_train_batch_size * config.gradient_accumulation_steps
    if answers % config.num_generations:
        raise TrainError(
            f"per_device_train_batch_size {config.per_device_train_batch_size} × gradient_accumulation_steps "
            f"{config.gradient_accumulation_steps} answers are no whole groups of num_generations {config.num_generations}"
        )
    judge = Judge(reward)
    judged = None if gold is None else Judge(gold)
    asked = rollout.read(data, (*judge.columns, *(judged.columns if judged else ())), config)
    start = training.identity(model, config)
    if config.beta and not config.lora and weights.base(str(model), config.revision) is not None:
        # TRL would read the reference policy from the folder of the base.
        raise TrainError(
            f"model {model} is an adapter, and without LoRA the KL penalty needs its whole weights in one folder; "
            f"{weights.MERGE}, or train with LoRA"
        )
    with training.quiet():
        from datasets import Dataset
        from trl import GRPOConfig, GRPOTrainer, RLOOConfig, RLOOTrainer

        tokenizer, opened = training.open_policy(model, config)
        config = training.pinned(config, tokenizer, work.out)
        form = training.prompt_form(tokenizer, config, opened)
        window, length = weights.window(opened, tokenizer), config.max_completion_length
        kept, tested, counts = rollout.questions(method, tokenizer, form, asked, config, window, length)
        if len(kept) < answers * work.processes // config.num_generations:
            raise TrainError(
                f"{len(kept)} prompts are fewer than the {answers * work.processes // config.num_generations} of one "
                "update; lower per_device_train_batch_size, or raise num_generations"
            )
        inputs = training.inputs(
            method, start, data, config, [[(q.ids, q.asked.columns) for q in part] for part in (kept, tested)]
        )
        inputs |= {"reward": judge.identity, "gold": None if judged is None else judged.identity}
        if (done := training.finished(work, inputs)) is not None:
            return done
        # Before the first update: a reward that fails costs no time.
        judge.score(kept[:1], ["An answer."], "on trial")
        _, checkpoint = work.begin(inputs)
        told = _Told(judge, kept, form, work.state, config.num_generations)
        arguments = training.arguments(config, str(work.folder)) | {
            "num_generations": config.num_generations,
            "max_completion_length": config.max_completion_length,
            "temperature": config.temperature,
            "num_iterations": config.num_iterations,
            "epsilon": config.epsilon,
            "beta": config.beta,
            "log_completions": False,
        }
        shown = [{"prompt": _shown(one.asked, form), "row": i} for i, one in enumerate(kept)]
        generation, opened.generation_config = opened.generation_config, rollout.sampling(opened.generation_config)
        makers: Any = (GRPOTrainer, GRPOConfig) if method == "grpo" else (RLOOTrainer, RLOOConfig)
        trainer = makers[0](
            model=training.adapted(opened, "CAUSAL_LM", config),
            reward_funcs=told,
            args=makers[1](**arguments),
            train_dataset=Dataset.from_list(shown),
            processing_class=tokenizer,
        )
        _own_ids(trainer, {_key(row["prompt"]): one.ids for row, one in zip(shown, kept, strict=True)})
        drawn = trainer._get_train_sampler()
        trainer._get_train_sampler = lambda dataset=None: _Epochs(drawn, config.seed)
        if config.beta and config.kl_target is not None:
            trainer.add_callback(_moving(trainer, config, work.state))
        measure = _Measure(tokenizer, form, tested, judge, judged, config)
        before = measure(trainer.model, "before the first update")
        if tested and checkpoint is None:
            work.write(0, before)
        if tested and config.eval_steps is not None:
            trainer.add_callback(_measuring(measure, config.eval_steps, work))
        result = training.fit(trainer, method, config, work, checkpoint)
        trained = training.merged(trainer)
        after = measure(trained, "after the last update")
        if tested:
            work.write(trainer.state.global_step, after)
        record: dict[str, JsonValue] = {
            **inputs,
            **counts,
            **result,
            "answers_without_a_reward": work.state.get("without", 0),
            "groups": work.state.get("groups", 0),
            "groups_of_equal_rewards": work.state.get("groups_equal", 0),
            "reward_first": work.state.get("first"),
            "reward_last": work.state.get("last"),
            "reward_before": before["eval/scores"],
            "reward_after": after["eval/scores"],
            "gold_before": before.get("eval/gold"),
            "gold_after": after.get("eval/gold"),
        }
        trained.generation_config = generation
        training.save(trained, tokenizer, work, record)
    return record


class _Epochs:
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


class _Told:
    """The reward as TRL calls it: given the rows as they are, and held to its word."""

    def __init__(
        self, judge: Judge, asked: Sequence[Question], form: Form, state: dict[str, Any], generations: int
    ) -> None:
        self.judge, self.asked, self.form, self.state = judge, asked, form, state
        self.generations = generations
        self.__name__ = judge.name

    def __call__(
        self, completions: Sequence[Any], row: Sequence[int], trainer_state: Any, log_metric: Any, **other: object
    ) -> list[float | None]:
        from accelerate.utils import gather_object

        texts = [one if isinstance(one, str) else str(one[-1]["content"]) for one in completions]
        texts = [self.form.generated(text) for text in texts]
        found = self.judge.score([self.asked[i] for i in row], texts, f"after update {trainer_state.global_step}")
        # Of several processes each is asked about its own answers.
        every = gather_object(found)
        known = [value for value in every if value is not None]
        self.state["without"] = self.state.get("without", 0) + len(every) - len(known)
        # TRL's frac_reward_zero_std, but of RLOO's rewards before its KL penalty, and of every update, logged or not.
        groups = [every[i : i + self.generations] for i in range(0, len(every), self.generations)]
        self.state["groups"] = self.state.get("groups", 0) + len(groups)
        self.state["groups_equal"] = self.state.get("groups_equal", 0) + sum(map(_equal, groups))
        if known:
            self.state["last"] = sum(known) / len(known)
            self.state.setdefault("first", self.state["last"])
        repeated = [share for text in texts if (share := repetition(text)) is not None]
        means = self.judge.features() | ({"repetition": sum(repeated) / len(repeated)} if repeated else {})
        for name, value in means.items():
            log_metric(name, value)
        return found


def _equal(group: Sequence[float | None]) -> bool:
    """Tell whether no answer of a group is better than another, so that all advantages are 0."""
    known = [value for value in group if value is not None]
    return not known or max(known) - min(known) <= 1e-8


class _Measure:
    """What rewards give answers to held-out prompts, drawn from the same seed each time."""

    def __init__(
        self,
        tokenizer: PreTrainedTokenizerBase,
        form: Form,
        tested: Sequence[Question],
        judge: Judge,
        gold: Judge | None,
        config: GroupTraining,
    ) -> None:
        self.tokenizer, self.form, self.tested, self.config = tokenizer, form, tested, config
        self.judges = {"eval/scores": judge} | ({} if gold is None else {"eval/gold": gold})

    def __call__(self, policy: PreTrainedModel, when: str) -> dict[str, float | None]:
        """Return means by name, None without a prompt, or a reward that applies."""
        import torch

        # TRL logs what it knows of training while the model is training.
        training_now = policy.training
        policy.eval()
        found: dict[str, list[float]] = {name: [] for name in (*self.judges, "eval/response_length")}
        size, config = self.config.per_device_train_batch_size, self.config
        with torch.random.fork_rng():
            torch.manual_seed(config.seed)
            for start in range(0, len(self.tested), size):
                some = self.tested[start : start + size]
                ids = [one.ids for one in some]
                answers = respond(
                    policy, self.tokenizer, ids, config.max_completion_length, config.temperature, (), self.form
                )
                for name, judge in self.judges.items():
                    found[name] += [one for one in judge.score(some, answers.texts, when) if one is not None]
                found["eval/response_length"] += answers.written.sum(1).tolist()
        policy.train(training_now)
        return {name: sum(values) / len(values) if values else None for name, values in found.items()}


def _measuring(measure: _Measure, every: int, work: Workplace) -> Any:
    """Return what measures between updates, the last apart, which is measured of the finished policy."""
    from transformers import TrainerCallback

    class Measuring(TrainerCallback):
        def on_step_end(self, args: Any, state: Any, control: Any, model: Any = None, **rest: Any) -> None:
            if state.global_step % every == 0 and state.global_step < state.max_steps:
                work.write(state.global_step, measure(model, f"after update {state.global_step}"))

    return Measuring()


def _shown(row: Asked, form: Form) -> object:
    """Write a prompt as TRL wants it: messages for a chat template, else the text."""
    if not form.chat:
        return form.prompt(row.prompt)
    return as_turns(row.prompt)


def _own_ids(trainer: Any, known: dict[str, list[int]]) -> None:
    """Have TRL read prompts by the ids that scoring reads: by its own, a special token that a text spells is one."""
    theirs = trainer._tokenize_prompts

    def ours(prompts: list[object]) -> Any:
        ids, *more = theirs(prompts)
        return [known.get(_key(prompt), made) for prompt, made in zip(prompts, ids, strict=True)], *more

    trainer._tokenize_prompts = ours


def _key(prompt: object) -> str:
    return json.dumps(prompt, sort_keys=True)


def _moving(trainer: Any, config: GroupTraining, kept: dict[str, Any]) -> Any:
    """Return what moves a trainer's `beta` after each update, and notes where it is in each checkpoint."""
    from transformers import TrainerCallback

    controller = KLController(config.beta, config.kl_target, config.kl_horizon)

    class Moving(TrainerCallback):
        def on_train_begin(self, args: Any, state: Any, control: Any, **rest: Any) -> None:
            controller.coefficient = trainer.beta = kept.get("beta", config.beta)

        def on_step_end(self, args: Any, state: Any, control: Any, **rest: Any) -> None:
            seen = trainer._metrics["train"]
            # Once for each batch of answers, as it was drawn: later updates from the same ones are no news of the policy.
            if (state.global_step - 1) % config.num_iterations == 0:
                # TRL's KL is a token's mean; the papers' target is an answer's.
                kl = seen["kl"][-1] * seen["completions/mean_length"][-1]
                answers = args.train_batch_size * args.gradient_accumulation_steps * args.world_size
                trainer.beta = controller.update(kl, answers)
            seen["beta"].append(trainer.beta)
            kept["beta"] = trainer.beta

    return Moving()
