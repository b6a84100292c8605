"""PPO held against TRL 1.12's own PPOTrainer, the last there was: fixed rollouts, put through both.

`pip install "trl==1.12.0"` in an environment of its own. TRL puts the score of a response that ended on the padding after
its EOS, and learns a value there (trl#3750); ours puts it on the EOS. So losses are compared on responses that fill their
length, where both put it on the last token; KL, entropy and penalties, which do not depend on it, also on ended ones.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Iterator, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from training import start

from seamcurate.models import tokens
from seamcurate.train import learner as learning
from seamcurate.train.actor import Actor
from seamcurate.train.data import PromptRow
from seamcurate.train.ppo import PPOTraining
from seamcurate.train.rollout import CheckedReward, ResponseBatch, TokenizedPrompt


def _installed() -> bool:
    try:
        return importlib.util.find_spec("trl.experimental.ppo") is not None
    except ModuleNotFoundError:
        return False


pytestmark = pytest.mark.skipif(not _installed(), reason="TRL has no PPOTrainer here; 1.12.0 is the last that has one")

ROWS, LENGTH, RATE, COEFFICIENT = 8, 10, 1e-3, 0.2
SHARED = (
    "objective/kl",
    "objective/entropy",
    "objective/non_score_reward",
    "policy/approxkl_avg",
    "policy/clipfrac_avg",
    "loss/policy_avg",
    "loss/value_avg",
    "val/clipfrac_avg",
    "val/ratio",
    "lr",
    "episode",
)
"""What both log, by one name and of one meaning."""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return start(tmp_path_factory.mktemp("oracle") / "model")


class Rollout:
    """Prompts of several lengths, with random responses and scores."""

    def __init__(self, tokenizer: Any, ended: bool, answers: int = 8) -> None:
        draw = torch.Generator().manual_seed(7)

        def some(count: int) -> list[int]:
            return (torch.randint(10, 300, (count,), generator=draw)).tolist()

        self.pad, self.end = tokenizer.pad_token_id, tokenizer.eos_token_id
        self.prompts = [some(3 + i) for i in range(ROWS)]
        draw.manual_seed(answers)
        lengths = [2 + i if ended and i % 2 else LENGTH for i in range(ROWS)]
        self.responses = [some(n) if n == LENGTH else [*some(n - 1), self.end] for n in lengths]
        self.scores = torch.randn(ROWS, generator=draw).tolist()

    def number(self, ids: list[int]) -> int:
        """Find the row whose prompt these padded ids start with."""
        whole = [one for one in ids if one != self.pad]
        return next(i for i, prompt in enumerate(self.prompts) if whole[: len(prompt)] == prompt)

    def padded(self, row: int) -> list[int]:
        return self.responses[row] + [self.pad] * (LENGTH - len(self.responses[row]))


def models(folder: Path) -> tuple[Any, Any, Any]:
    """Return a policy, a reference that is another model, and a value model with a head that says something."""
    from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification

    policy, reference = (AutoModelForCausalLM.from_pretrained(folder) for _ in range(2))
    value = AutoModelForSequenceClassification.from_pretrained(folder, num_labels=1)
    draw = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for parameter in reference.parameters():
            parameter += 0.02 * torch.randn(parameter.shape, generator=draw)
        value.score.weight.copy_(0.1 * torch.randn(value.score.weight.shape, generator=draw))
    return policy, reference, value


class Fixed(torch.nn.Module):
    """A reward model in TRL's terms that knows the scores."""

    base_model_prefix = "known"

    def __init__(self, rollouts: Sequence[Rollout]) -> None:
        super().__init__()
        self.rollouts = iter(rollouts)
        self.score = torch.nn.Identity()

    def known(self, input_ids: torch.Tensor, attention_mask: torch.Tensor, **rest: object) -> Any:
        rollout = next(self.rollouts)
        scores = [
            rollout.scores[rollout.number(ids[read.bool()].tolist())]
            for ids, read in zip(input_ids, attention_mask, strict=True)
        ]
        hidden = torch.tensor(scores)[:, None, None].expand(-1, input_ids.shape[1], 1)
        return SimpleNamespace(hidden_states=(hidden,))


def theirs(folder: Path, rollouts: Sequence[Rollout], scratch: Path, patch: pytest.MonkeyPatch, whiten: bool) -> Any:
    """Run an update of TRL's trainer on each rollout; returns its logs, its weights and what it whitened last."""
    from datasets import Dataset
    from transformers import AutoTokenizer
    from trl.experimental.ppo import PPOConfig, PPOTrainer, ppo_trainer

    tokenizer = AutoTokenizer.from_pretrained(folder, padding_side="left")
    policy, reference, value = models(folder)
    order: list[int] = []
    whitened: dict[str, torch.Tensor] = {}
    coming = iter(rollouts)

    def replayed(model: Any, queries: torch.Tensor, size: int, pad: int, options: Any) -> Any:
        rollout = next(coming)
        order[:] = [rollout.number(ids) for ids in queries.tolist()]
        ids = torch.cat([queries, torch.tensor([rollout.padded(i) for i in order])], 1)
        logits = ppo_trainer.forward(model, ids, pad).logits[:, queries.shape[1] - 1 : -1]
        return ids, logits / options.temperature

    own = ppo_trainer.masked_whiten

    def seen(values: torch.Tensor, mask: torch.Tensor, shift_mean: bool = True) -> torch.Tensor:
        found: torch.Tensor = own(values, mask, shift_mean)
        whitened["advantages" if shift_mean else "rewards"] = values.clone()
        whitened["white advantages" if shift_mean else "white rewards"] = found
        return found

    patch.setattr(ppo_trainer, "batch_generation", replayed)
    patch.setattr(ppo_trainer, "masked_whiten", seen)
    trainer = PPOTrainer(
        args=PPOConfig(
            output_dir=str(scratch),
            per_device_train_batch_size=ROWS,
            total_episodes=ROWS * len(rollouts),
            num_ppo_epochs=4,
            response_length=LENGTH,
            stop_token="eos",
            kl_coef=COEFFICIENT,
            vf_coef=1.0,
            gamma=0.97,
            lam=0.95,
            learning_rate=RATE,
            lr_scheduler_type="constant",
            temperature=0.8,
            whiten_rewards=whiten,
            missing_eos_penalty=0.5,
            report_to=[],
            use_cpu=True,
            bf16=False,
            gradient_checkpointing=False,
            num_sample_generations=0,
            save_strategy="no",
            logging_steps=1,
            disable_tqdm=True,
        ),
        processing_class=tokenizer,
        model=policy,
        ref_model=reference,
        reward_model=Fixed(rollouts),
        value_model=value,
        train_dataset=Dataset.from_list([{"input_ids": ids} for ids in rollouts[0].prompts]),
    )
    trainer.train()
    logs = [line for line in trainer.state.log_history if "objective/kl" in line]
    back = [order.index(i) for i in range(ROWS)]
    return logs, (policy, value), {name: values[back] for name, values in whitened.items()}


def ours(folder: Path, rollouts: Sequence[Rollout], patch: pytest.MonkeyPatch, whiten: bool) -> Any:
    """Run an update of ours on each rollout; returns the same."""
    from accelerate import Accelerator
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(folder)
    policy, reference, value = models(folder)
    prompts, pad = rollouts[0].prompts, rollouts[0].pad
    context = max(len(ids) for ids in prompts)
    before = [[pad] * (context - len(ids)) + ids for ids in prompts]
    answered, scored = iter(rollouts), iter(rollouts)
    told: dict[str, torch.Tensor] = {}
    own = learning.advantage.whiten

    def replayed(*given: object) -> ResponseBatch:
        rollout = next(answered)
        lengths = [len(ids) for ids in rollout.responses]
        written = torch.tensor([[1] * n + [0] * (LENGTH - n) for n in lengths])
        return ResponseBatch(
            ids=torch.tensor([ids + rollout.padded(i) for i, ids in enumerate(before)]),
            mask=torch.cat([(torch.tensor(before) != pad).long(), written], 1),
            context=context,
            written=written.float(),
            ended=[ids[-1] == rollout.end for ids in rollout.responses],
            texts=["" for _ in rollout.responses],
        )

    def seen(values: torch.Tensor, mask: torch.Tensor, shift: bool = True, **rest: Any) -> torch.Tensor:
        found = own(values, mask, shift, **rest)
        told["advantages" if shift else "rewards"] = values.clone()
        told["white advantages" if shift else "white rewards"] = found
        return found

    patch.setattr(learning, "respond", replayed)
    patch.setattr(learning.advantage, "whiten", seen)
    config = PPOTraining(
        lora=False,
        per_device_train_batch_size=ROWS,
        learning_rate=RATE,
        kl_coef=COEFFICIENT,
        kl_target=None,
        gamma=0.97,
        temperature=0.8,
        whiten_rewards=whiten,
        missing_eos_penalty=0.5,
        score_normalise=False,
        score_clip=None,
        response_length=LENGTH,
    )
    judge = CheckedReward(lambda **given: next(scored).scores)
    questions = [TokenizedPrompt(i, PromptRow("", {}), ids) for i, ids in enumerate(prompts)]
    actor = Actor(policy, value, config.temperature)
    form = tokens.form_of(tokenizer)
    learner = learning.Learner(actor, reference, tokenizer, form, judge, config, Accelerator())
    logs = [learner.update(step, questions) for step in range(1, len(rollouts) + 1)]
    return logs, (policy, value), told


@pytest.fixture
def patch() -> Iterator[pytest.MonkeyPatch]:
    with pytest.MonkeyPatch.context() as patched:
        yield patched


@pytest.mark.parametrize("whiten", [False, True])
def test_one_update_is_trls_own(whiten: bool, folder: Path, tmp_path: Path, patch: pytest.MonkeyPatch) -> None:
    from transformers import AutoTokenizer

    rollout = Rollout(AutoTokenizer.from_pretrained(folder), ended=False)
    [their_log], their_models, their_steps = theirs(folder, [rollout], tmp_path, patch, whiten)
    [our_log], our_models, our_steps = ours(folder, [rollout], patch, whiten)

    assert their_steps.keys() == our_steps.keys()
    for name, values in their_steps.items():
        torch.testing.assert_close(our_steps[name], values, atol=1e-4, rtol=1e-4, msg=lambda m, n=name: f"{n}: {m}")
    assert {name: our_log[name] for name in SHARED} == pytest.approx(
        {name: their_log[name] for name in SHARED}, abs=1e-4, rel=1e-4
    )
    # Theirs are logged with the penalty taken off, ours as the reward gave them.
    assert our_log["objective/scores"] - 0.5 == pytest.approx(their_log["objective/scores"], abs=1e-5)
    assert our_log["objective/rlhf_reward"] == pytest.approx(their_log["objective/rlhf_reward"], abs=1e-4)
    assert their_log["objective/kl"] > 0.01 and their_log["policy/clipfrac_avg"] > 0
    for our_model, their_model in zip(our_models, their_models, strict=True):
        for (name, mine), other in zip(our_model.state_dict().items(), their_model.state_dict().values(), strict=True):
            torch.testing.assert_close(mine, other, atol=1e-4, rtol=0, msg=lambda m, n=name: f"{n}: {m}")


def test_updates_in_a_row_are_trls_own(folder: Path, tmp_path: Path, patch: pytest.MonkeyPatch) -> None:
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(folder)
    rollouts = [Rollout(tokenizer, ended=False, answers=answers) for answers in range(8)]
    their_logs, *_ = theirs(folder, rollouts, tmp_path, patch, False)
    our_logs, *_ = ours(folder, rollouts, patch, False)
    for step, (our_log, their_log) in enumerate(zip(our_logs, their_logs, strict=True), 1):
        # A token on the edge of clipping falls on either side by rounding.
        for name in [name for name in SHARED if "clipfrac" not in name]:
            assert our_log[name] == pytest.approx(their_log[name], abs=1e-4, rel=1e-3), f"{name} at update {step}"
    assert abs(their_logs[-1]["objective/kl"] - their_logs[0]["objective/kl"]) > 0.01


def test_ended_responses_have_trls_kl_and_penalty(folder: Path, tmp_path: Path, patch: pytest.MonkeyPatch) -> None:
    from transformers import AutoTokenizer

    rollout = Rollout(AutoTokenizer.from_pretrained(folder), ended=True)
    [their_log], _, their_steps = theirs(folder, [rollout], tmp_path, patch, True)
    [our_log], _, our_steps = ours(folder, [rollout], patch, True)
    for name in ("objective/kl", "objective/entropy", "objective/non_score_reward", "objective/rlhf_reward"):
        assert our_log[name] == pytest.approx(their_log[name], abs=1e-4), name
    # The one difference, as it should be: their score stands one token later wherever a response ended.
    theirs_at, ours_at = their_steps["rewards"], our_steps["rewards"]
    for row, response in enumerate(rollout.responses):
        last = len(response) - 1
        if len(response) < LENGTH:
            score = rollout.scores[row]
            assert float(theirs_at[row, last + 1]) == pytest.approx(score, abs=1e-4)
            assert float(ours_at[row, last] - theirs_at[row, last]) == pytest.approx(score, abs=1e-4)
            torch.testing.assert_close(ours_at[row, :last], theirs_at[row, :last], atol=1e-4, rtol=0)
        else:
            torch.testing.assert_close(ours_at[row], theirs_at[row], atol=1e-4, rtol=0)
