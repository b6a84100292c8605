"""PPO: its arithmetic against numbers worked by hand, and whole trainings of a policy of 30,000 weights."""

from __future__ import annotations

import json
import math
import os
import statistics
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from pydantic import ValidationError
from training import THINGS, chat, parquet, plain, start, turns  # noqa: F401
from transformers import GenerationConfig

from seamcurate.errors import StudyError, TrainError
from seamcurate.models import CausalLM, tokens
from seamcurate.models.weights import Origin, identity
from seamcurate.train import advantage
from seamcurate.train.actor import Actor, reference_logprobs
from seamcurate.train.kl import KLController
from seamcurate.train.ppo import PPOTraining, ppo
from seamcurate.train.rollout import CheckedReward, respond, shuffled_rows
from seamcurate.words import repetition

pytestmark = pytest.mark.slow

FAST: dict[str, Any] = {
    "lora": False,
    "learning_rate": 3e-3,
    "max_length": 64,
    "response_length": 12,
    "per_device_train_batch_size": 8,
    "eval_rows": 0,
    "max_steps": 3,
}
PPO = PPOTraining(**FAST)
QUESTIONS: list[dict[str, object]] = [{"prompt": f"Where is the {t}?", "thing": t} for t in THINGS]


def share_of_e(prompts: list[str], completions: list[str], **columns: list[object]) -> list[float | None]:
    return [text.count("e") / max(1, len(text)) for text in completions]


def changed(**options: Any) -> PPOTraining:
    return PPOTraining(**{**FAST, **options})


def log(out: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (out / "log.jsonl").read_text().splitlines()]


def weights(folder: Path) -> bytes:
    return (folder / "model.safetensors").read_bytes()


def near(found: torch.Tensor, expected: Sequence[Sequence[float]]) -> None:
    torch.testing.assert_close(found, torch.tensor(expected, dtype=torch.float32), atol=1e-6, rtol=0)


def test_the_score_lands_on_the_last_token_written_and_never_on_padding() -> None:
    # Ended by EOS at the second token; never ended; ended at once.
    mask = torch.tensor([[1.0, 1, 0, 0], [1, 1, 1, 1], [1, 0, 0, 0]])
    logprobs = torch.tensor([[-1.0, -2, -9, -9], [-1, -1, -1, -1], [-3, -9, -9, -9]])
    reference = torch.tensor([[-1.5, -2, 0, 0], [-1, -1, -1, -3], [-2, 0, 0, 0]])
    kl = advantage.kl_estimate(logprobs, reference, mask, "k1")
    near(kl, [[0.5, 0, 0, 0], [0, 0, 0, 2], [-1, 0, 0, 0]])
    rewards = advantage.token_rewards(kl, torch.tensor([1.0, 2.0, 3.0]), mask, 0.2)
    near(rewards, [[-0.1, 1, 0, 0], [0, 0, 0, 1.6], [3.2, 0, 0, 0]])
    k3 = advantage.kl_estimate(logprobs, reference, mask, "k3")
    near(k3, [[math.exp(-0.5) - 0.5, 0, 0, 0], [0, 0, 0, math.exp(-2) + 1], [math.e - 2, 0, 0, 0]])


def test_advantages_are_those_worked_by_hand() -> None:
    mask = torch.tensor([[1.0, 1, 1], [1, 1, 0]])
    rewards = torch.tensor([[0.0, 0, 1], [0, 2, 77]])
    values = torch.tensor([[0.5, 0.25, 0.75], [1, 1, 99]])
    advantages, returns = advantage.gae(rewards, values, mask, gamma=0.9, lam=0.5)
    # δ = r + .9 V' - V: .25, .425, -.275 from the end; A = δ + .45 A'. What stands after the end counts nowhere.
    near(advantages, [[-0.275 + 0.45 * 0.5375, 0.425 + 0.45 * 0.25, 0.25], [-0.1 + 0.45, 1, 0]])
    near(returns, [[-0.275 + 0.45 * 0.5375 + 0.5, 0.7875, 1], [1.35, 2, 0]])


def test_whitening_reads_the_mask_alone() -> None:
    values, mask = torch.tensor([[1.0, 2, 3, 50]]), torch.tensor([[1.0, 1, 1, 0]])
    near(advantage.whiten(values, mask), [[-1, 0, 1, 0]])
    near(advantage.whiten(values, mask, shift=False), [[1, 2, 3, 0]])


def test_losses_are_clipped_where_the_papers_say() -> None:
    mask = torch.tensor([[1.0, 1, 1, 0]])
    ratio = torch.tensor([[1.5, 1.5, 0.9, 7.0]])
    loss, change = advantage.policy_loss(
        ratio.log(), torch.zeros(1, 4), torch.tensor([[1.0, -1, 2, 5]]), mask, cliprange=0.2
    )
    # A gain is held at 1.2, a loss is not; within the range nothing is.
    near(loss.loss, [[-1.2, 1.5, -1.8, 0]])
    near(loss.clipped, [[1, 0, 0, 0]])
    near(change.exp(), [[1.5, 1.5, 0.9, 1]])
    value = advantage.value_loss(
        torch.tensor([[1.0, 0.1, 0.5, 9]]), torch.zeros(1, 4), torch.tensor([[1.0, 1, 0, 0]]), mask, cliprange=0.2
    )
    near(value.loss, [[0.5 * 0.8**2, 0.5 * 0.9**2, 0.5 * 0.5**2, 0]])
    near(value.clipped, [[1, 0, 0, 0]])


def test_scores_are_scaled_by_all_so_far() -> None:
    scale, seen = advantage.ScoreScale(), []
    for batch in ([1.0, 2.0, 4.0], [8.0], [], [-3.0, 5.0]):
        seen += batch
        mean = statistics.fmean(batch) if batch else 0.0
        scale.update(len(batch), mean, sum((score - mean) ** 2 for score in batch))
    found = scale.scale(torch.tensor([6.0], dtype=torch.float64))
    assert float(found) == pytest.approx((6 - statistics.fmean(seen)) / statistics.stdev(seen))
    one = advantage.ScoreScale()
    one.update(1, 4.0, 0.0)
    assert float(one.scale(torch.tensor([4.5]))) == 0.5


def test_the_kl_coefficient_follows_its_target() -> None:
    kl = KLController(0.2, target=6.0, horizon=1000)
    assert kl.update(60.0, 100) == pytest.approx(0.2 * 1.02)
    assert kl.update(0.0, 100) == pytest.approx(0.2 * 1.02 * 0.98)
    assert KLController(0.2, target=None).update(60.0, 100) == 0.2


def test_an_endless_stream_holds_every_row_once_an_epoch_and_can_be_entered_anywhere() -> None:
    whole = list(shuffled_rows(7, 0, 28, seed=3))
    assert all(sorted(whole[i : i + 7]) == list(range(7)) for i in range(0, 28, 7))
    assert list(shuffled_rows(7, 5, 11, seed=3)) == whole[5:16]
    assert whole[:7] != whole[7:14]


def test_repetition_is_the_share_of_four_grams_seen_before() -> None:
    assert repetition("a b c d e") == 0
    assert repetition("a b c d a b c d") == pytest.approx(1 - 4 / 5)
    assert repetition("a b c") is None


@pytest.fixture(scope="module")
def opened(plain: Path) -> tuple[Any, Any]:  # noqa: F811
    from transformers import AutoModelForCausalLM, AutoTokenizer

    return AutoModelForCausalLM.from_pretrained(plain).eval(), AutoTokenizer.from_pretrained(plain)


@pytest.fixture(scope="module")
def counting(opened: tuple[Any, Any], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A GPT-2, which counts positions from the first token on and drops a tenth of everything while training."""
    from transformers import GPT2Config, GPT2LMHeadModel, set_seed

    folder = tmp_path_factory.mktemp("counting") / "model"
    ids = opened[1]
    sizes = {"vocab_size": len(ids), "n_positions": 128, "n_embd": 32, "n_layer": 2, "n_head": 2}
    set_seed(0)
    ends = {"bos_token_id": None, "eos_token_id": ids.eos_token_id, "pad_token_id": ids.pad_token_id}
    GPT2LMHeadModel(GPT2Config(**sizes, **ends, initializer_range=0.3)).save_pretrained(folder)
    ids.save_pretrained(folder)
    return folder


@pytest.mark.parametrize("model", ["plain", "counting"])
def test_a_responses_probability_is_what_scoring_finds_whatever_stands_beside_it(
    model: str, request: pytest.FixtureRequest
) -> None:
    from transformers import AutoModelForCausalLM, AutoTokenizer

    folder: Path = request.getfixturevalue(model)
    policy, ids = AutoModelForCausalLM.from_pretrained(folder), AutoTokenizer.from_pretrained(folder)
    rows = [("Where is the red cat?", "Here."), ("Where?", "The old hat is by the sea."), ("Is it wet?", "No")]
    pieces = [tokens.policy_ids(ids, prompt, answer, 64) for prompt, answer in rows]
    context, length = max(len(p) for p, _ in pieces), max(len(a) for _, a in pieces)
    table = [[7] * (context - len(p)) + p + a + [9] * (length - len(a)) for p, a in pieces]
    read = [[0] * (context - len(p)) + [1] * len(p + a) + [0] * (length - len(a)) for p, a in pieces]
    written = torch.tensor(read)[:, context:]
    with torch.no_grad():
        actor = Actor(policy.train(), None, 1.0).train()
        logprobs, values = actor(torch.tensor(table), torch.tensor(read), context)
        same = reference_logprobs(policy, torch.tensor(table), torch.tensor(read), context, 1.0)
    scored = CausalLM(path=str(folder), dtype="float32").load().logprobs([p for p, _ in rows], [[a] for _, a in rows])
    expected = [one.logprob for group in scored for one in group if one is not None]
    assert (logprobs * written).sum(1).tolist() == pytest.approx(expected, abs=1e-4)
    assert logprobs.equal(same) and values.shape == logprobs.shape and not values.any()


@pytest.mark.parametrize("lora", [True, False])
def test_another_architecture_is_trained_too(lora: bool, counting: Path, tmp_path: Path) -> None:
    config = changed(lora=lora, gradient_checkpointing=not lora)
    ppo(counting, share_of_e, parquet(tmp_path / "d.parquet", QUESTIONS), tmp_path / "out", config)
    lines = log(tmp_path / "out")
    assert all(line["val/first_ratio_error"] < 1e-5 for line in lines) and lines[-1]["objective/kl"] != 0
    assert weights(tmp_path / "out") != weights(counting)


class Scripted:
    """Answers as told, where a policy would sample: what follows is cut and masked by real code."""

    device = torch.device("cpu")

    def __init__(self, answers: list[list[int]], ends: list[int] | None = None) -> None:
        self.answers, self.generation_config = answers, GenerationConfig(eos_token_id=ends)

    def generate(self, input_ids: torch.Tensor, **options: object) -> torch.Tensor:
        return torch.cat([input_ids, torch.tensor(self.answers)], 1)


def test_what_follows_the_end_is_cut_and_masked(opened: tuple[Any, Any]) -> None:
    _, ids = opened
    end, pad = ids.eos_token_id, ids.pad_token_id
    hat, stop = ids(" The hat")["input_ids"], ids(" is\n\nQ: x")["input_ids"]
    width = len(hat + stop) + 1
    answers = [[*hat, end], hat + stop, hat, [end]]
    scripted: Any = Scripted(
        [answer + [end if i % 2 else pad] * (width - len(answer)) for i, answer in enumerate(answers)]
    )
    scripted.answers[2] = (hat * width)[:width]
    found = respond(scripted, ids, [[5, 6], [5], [5, 6, 7], [5]], width, 1.0, ["\n\nQ:"])
    upto = next(n for n in range(len(stop)) if "\n\nQ:" in ids.decode(stop[:n]))
    lengths = [len(hat) + 1, len(hat) + upto, width, 1]
    assert found.context == 3
    assert found.written.sum(1).tolist() == lengths
    assert found.mask.tolist() == [
        [0] * (3 - before) + [1] * (before + after) + [0] * (found.ids.shape[1] - 3 - after)
        for before, after in zip((2, 1, 3, 1), lengths, strict=True)
    ]
    assert found.ended == [True, True, False, True]
    assert found.texts == ["The hat", "The hat is", ids.decode(scripted.answers[2]).removeprefix(" "), ""]


def test_a_response_ends_where_the_models_own_turns_do(opened: tuple[Any, Any]) -> None:
    _, ids = opened
    hat, turn = ids(" The hat")["input_ids"], ids.convert_tokens_to_ids("<|user|>")
    scripted: Any = Scripted([[*hat, turn, *hat]], ends=[turn])
    found = respond(scripted, ids, [[5]], 9, 1.0, ())
    assert (found.texts, found.ended, found.written.sum(1).tolist()) == (["The hat"], [True], [len(hat) + 1])


def test_a_simple_reward_rises_and_the_first_ratio_is_one(plain: Path, tmp_path: Path) -> None:  # noqa: F811
    config = changed(max_steps=30, num_mini_batches=2, kl_coef=0.01, eval_rows=3, per_device_train_batch_size=16)
    record = ppo(plain, share_of_e, parquet(tmp_path / "d.parquet", QUESTIONS), tmp_path / "out", config)
    lines = log(tmp_path / "out")
    updates = [line for line in lines if "objective/scores" in line]
    assert [line["step"] for line in updates] == list(range(1, 31))
    scores = [line["objective/scores"] for line in updates]
    assert statistics.fmean(scores[-5:]) > 3 * statistics.fmean(scores[:5])
    assert all(line["val/first_ratio_error"] < 1e-5 for line in updates)
    assert updates[0]["objective/kl"] == 0 < updates[-1]["objective/kl"]
    assert [line["eval/scores"] for line in lines if "eval/scores" in line] == [
        record["reward_before"],
        record["reward_after"],
    ]
    told = [record[k] for k in ("rows", "rows_used", "rows_skipped", "rows_held_out", "updates", "episodes")]
    assert told == [33, 33, 0, 3, 30, 480]
    assert json.loads((tmp_path / "out/training.json").read_text()) == record
    assert sorted(f.name for f in tmp_path.iterdir()) == ["d.parquet", "out"]


def test_adapters_are_merged_and_the_reference_is_the_policy_without_them(plain: Path, tmp_path: Path) -> None:  # noqa: F811
    from transformers import AutoModelForCausalLM, AutoTokenizer

    data = parquet(tmp_path / "d.parquet", QUESTIONS)
    ppo(plain, share_of_e, data, tmp_path / "out", changed(lora=True, learning_rate=1e-2, tensorboard=True))
    before, after = (AutoModelForCausalLM.from_pretrained(f) for f in (plain, tmp_path / "out"))
    old, new = before.state_dict(), after.state_dict()
    assert old.keys() == new.keys()
    assert {name for name in old if not old[name].equal(new[name])} == {
        f"model.layers.{i}.self_attn.{p}_proj.weight" for i in (0, 1) for p in "qv"
    }
    assert after.generation_config.eos_token_id == before.generation_config.eos_token_id
    assert AutoTokenizer.from_pretrained(tmp_path / "out").eos_token == "<|end|>"
    kl = [line["objective/kl"] for line in log(tmp_path / "out")]
    assert kl[0] == 0 and all(kl[1:])
    assert list((tmp_path / "out/tensorboard").glob("events*"))


def test_a_models_sampling_habits_are_kept_but_not_trained_on(plain: Path, tmp_path: Path) -> None:  # noqa: F811
    import shutil

    shutil.copytree(plain, tmp_path / "habits")
    own = GenerationConfig.from_pretrained(plain)
    own.update(do_sample=True, repetition_penalty=3.0, min_new_tokens=12, typical_p=0.5)
    own.save_pretrained(tmp_path / "habits")
    data = parquet(tmp_path / "d.parquet", QUESTIONS)
    for model, out in ((plain, "one"), (tmp_path / "habits", "two")):
        ppo(model, share_of_e, data, tmp_path / out, changed(max_steps=1))
    assert weights(tmp_path / "one") == weights(tmp_path / "two")
    assert GenerationConfig.from_pretrained(tmp_path / "two").repetition_penalty == 3.0


@pytest.mark.parametrize("lora", [True, False])
def test_two_runs_give_identical_weights(lora: bool, plain: Path, tmp_path: Path) -> None:  # noqa: F811
    data = parquet(tmp_path / "d.parquet", QUESTIONS)
    for out in ("one", "two"):
        ppo(plain, share_of_e, data, tmp_path / out, changed(lora=lora, max_steps=2))
    assert weights(tmp_path / "one") == weights(tmp_path / "two") != weights(plain)
    assert identity(Origin(str(tmp_path / "one"))) == identity(Origin(str(tmp_path / "two")))


def test_small_parts_add_up_to_the_same_update(plain: Path, tmp_path: Path) -> None:  # noqa: F811
    from safetensors.torch import load_file

    data = parquet(tmp_path / "d.parquet", QUESTIONS)
    # By SGD-like small steps: Adam would blow rounding up where a gradient is almost 0.
    whole = changed(max_steps=1, num_ppo_epochs=1, learning_rate=1e-4)
    ppo(plain, share_of_e, data, tmp_path / "whole", whole)
    parts = whole.model_copy(update={"per_device_train_batch_size": 2, "gradient_accumulation_steps": 4})
    ppo(plain, share_of_e, data, tmp_path / "parts", parts)
    one, two = (log(tmp_path / out)[0] for out in ("whole", "parts"))
    for name in ("loss/policy_avg", "loss/value_avg", "objective/rlhf_reward"):
        assert one[name] == pytest.approx(two[name], abs=1e-5)
    a, b = (load_file(tmp_path / out / "model.safetensors") for out in ("whole", "parts"))
    moved = load_file(plain / "model.safetensors")
    apart = sum(float((a[k] - b[k]).abs().sum()) for k in a)
    assert apart < 0.02 * sum(float((a[k] - moved[k]).abs().sum()) for k in a)


def test_memory_can_be_saved_by_computing_twice(plain: Path, tmp_path: Path) -> None:  # noqa: F811
    data = parquet(tmp_path / "d.parquet", QUESTIONS)
    for out, twice in (("one", False), ("two", True)):
        ppo(plain, share_of_e, data, tmp_path / out, changed(max_steps=1, gradient_checkpointing=twice))
    one, two = (log(tmp_path / out)[0] for out in ("one", "two"))
    assert two["loss/policy_avg"] == pytest.approx(one["loss/policy_avg"], abs=1e-5)
    assert two["val/first_ratio_error"] < 1e-5


def test_a_stop_string_ends_responses_of_a_real_policy(plain: Path, tmp_path: Path) -> None:  # noqa: F811
    texts: list[str] = []

    def reward(completions: list[str], **rest: Any) -> list[float | None]:
        texts.extend(completions)
        return [1.0] * len(completions)

    data = parquet(tmp_path / "d.parquet", QUESTIONS)
    ppo(plain, reward, data, tmp_path / "free", changed(max_steps=1))
    free, texts = texts, []
    ppo(plain, reward, data, tmp_path / "cut", changed(max_steps=1, stop_strings=("e", "th")))
    assert texts == [text[: min((text + "e").index("e"), (text + "th").index("th"))] for text in free]
    one, two = (log(tmp_path / out)[0] for out in ("free", "cut"))
    assert two["val/ended"] > one["val/ended"] and two["val/response_length"] < one["val/response_length"]


class Interrupted(Exception):
    pass


def breaking(at: int) -> Callable[..., list[float | None]]:
    """A reward that looks like `share_of_e` and fails at a call."""
    calls = iter(range(1, 1000))

    def share_of_e_once(prompts: list[str], completions: list[str], **columns: Any) -> list[float | None]:
        if next(calls) == at:
            raise Interrupted("the power went")
        return share_of_e(prompts, completions)

    share_of_e_once.__name__ = "share_of_e"
    return share_of_e_once


@pytest.mark.parametrize("lora", [True, False])
def test_a_stopped_training_goes_on_to_the_same_weights(lora: bool, plain: Path, tmp_path: Path) -> None:  # noqa: F811
    data = parquet(tmp_path / "d.parquet", QUESTIONS)
    config = changed(lora=lora, max_steps=6, save_steps=2, eval_rows=3, kl_horizon=100)
    whole = ppo(plain, share_of_e, data, tmp_path / "whole", config)
    with pytest.raises(
        TrainError, match=r"reward share_of_e failed at update 6 on rows .*: Interrupted: the power went"
    ):
        ppo(plain, breaking(at=8), data, tmp_path / "out", config)
    work = tmp_path / "out.training"
    assert sorted(f.name for f in work.iterdir()) == ["checkpoint-2", "checkpoint-4", "log.jsonl"]
    assert {f.suffix for f in (work / "checkpoint-4").iterdir()} == {".safetensors", ".json"}
    # What a kill in the middle of writing leaves: no state yet, or not renamed yet.
    (work / "checkpoint-5").mkdir()
    (work / ".checkpoint-6.abc").mkdir()

    with pytest.raises(TrainError, match="checkpoint-4 is of a training with seed 0 instead of 1; give another folder"):
        ppo(plain, share_of_e, data, tmp_path / "out", config.model_copy(update={"seed": 1}))
    calls: list[int] = []

    def share_of_e_twice(completions: list[str], **rest: Any) -> list[float | None]:
        calls.append(len(completions))
        return share_of_e([], completions)

    share_of_e_twice.__name__ = "share_of_e"
    assert ppo(plain, share_of_e_twice, data, tmp_path / "out", config) == whole
    assert calls == [8, 8, 3, 3]
    assert weights(tmp_path / "out") == weights(tmp_path / "whole")
    timed = {"eps"}
    assert [{k: v for k, v in line.items() if k not in timed} for line in log(tmp_path / "out")] == [
        {k: v for k, v in line.items() if k not in timed} for line in log(tmp_path / "whole")
    ]
    assert not work.exists()


@pytest.mark.parametrize("name", ["weights.safetensors", "optimizer.safetensors", "checkpoint.json"])
def test_a_checkpoint_with_a_flipped_bit_is_dropped_for_the_one_before(
    name: str,
    plain: Path,  # noqa: F811
    tmp_path: Path,
    capfd: pytest.CaptureFixture[str],
) -> None:
    data = parquet(tmp_path / "d.parquet", QUESTIONS)
    config = changed(lora=True, max_steps=5, save_steps=2, eval_rows=0)
    whole = ppo(plain, share_of_e, data, tmp_path / "whole", config)
    with pytest.raises(TrainError, match="the power went"):
        ppo(plain, breaking(at=5), data, tmp_path / "out", config)
    file = tmp_path / "out.training" / "checkpoint-4" / name
    content = bytearray(file.read_bytes())
    # Of the JSON a digit that stays one: it is read without a word.
    place = content.rfind(b'"kl_coef": 0.') + 13 if name == "checkpoint.json" else len(content) - 1
    content[place] ^= 1
    file.write_bytes(content)
    assert ppo(plain, share_of_e, data, tmp_path / "out", config) == whole
    assert weights(tmp_path / "out") == weights(tmp_path / "whole")
    assert "checkpoint-4 is half-written or damaged; going on without it" in capfd.readouterr().err


def test_a_finished_training_is_returned_and_another_one_refused(plain: Path, tmp_path: Path) -> None:  # noqa: F811
    data = parquet(tmp_path / "d.parquet", QUESTIONS)
    record = ppo(plain, share_of_e, data, tmp_path / "out", PPO)
    assert ppo(plain, share_of_e, data, tmp_path / "out", PPO) == record
    with pytest.raises(TrainError, match=r"out holds a training with kl_coef 0.2 instead of 0.1; give another folder"):
        ppo(plain, share_of_e, data, tmp_path / "out", changed(kl_coef=0.1))
    with pytest.raises(TrainError, match="out holds a training with another reward"):
        ppo(plain, breaking_name, data, tmp_path / "out", PPO)
    other = parquet(tmp_path / "e.parquet", [row | {"thing": "x"} for row in QUESTIONS])
    with pytest.raises(TrainError, match="out holds a training with another tokens"):
        ppo(plain, share_of_e, other, tmp_path / "out", PPO)


def breaking_name(completions: list[str], **rest: Any) -> list[float | None]:
    raise AssertionError("never called")


def test_what_has_no_score_is_left_out_and_counted(plain: Path, tmp_path: Path) -> None:  # noqa: F811
    def nothing(completions: list[str], **rest: Any) -> list[float | None]:
        return [None] * len(completions)

    def half(completions: list[str], **rest: Any) -> list[float | None]:
        return [None if i % 2 else 2.0 for i in range(len(completions))]

    data = parquet(tmp_path / "d.parquet", QUESTIONS)
    record = ppo(plain, nothing, data, tmp_path / "nothing", PPO)
    assert record["responses_not_scored"] == record["episodes"] == 24
    assert weights(tmp_path / "nothing") == weights(plain)
    assert log(tmp_path / "nothing")[0]["objective/scores"] is None
    once = changed(num_ppo_epochs=1, score_normalise=False, lam=1.0, max_steps=1)
    record = ppo(plain, half, data, tmp_path / "half", once)
    assert record["responses_not_scored"] == 4
    (line,) = log(tmp_path / "half")
    assert line["objective/scores"] == 2.0
    # From values of 0 and without KL each token's return is its response's 2, or nothing at all.
    assert line["loss/value_avg"] == pytest.approx(0.5 * 2**2)


@pytest.mark.parametrize("shuffled", [True, False])
def test_prompts_are_taken_in_order_where_shuffling_is_off(shuffled: bool, plain: Path, tmp_path: Path) -> None:  # noqa: F811
    seen: list[Any] = []

    class Reward:
        columns = ("thing",)

        def __call__(self, prompts: list[Any], completions: list[Any], thing: list[Any]) -> list[float | None]:
            seen.extend(thing)
            return [float(len(text)) for text in completions]

        def features(self) -> dict[str, float]:
            return {}

    config = PPO.model_copy(update={"shuffle_dataset": shuffled})
    ppo(plain, Reward(), parquet(tmp_path / "d.parquet", QUESTIONS), tmp_path / "out", config)
    things = [row["thing"] for row in QUESTIONS]
    assert (seen == [things[i % len(things)] for i in range(len(seen))]) is not shuffled and len(seen) == 24


def test_a_reward_is_given_prompts_completions_and_columns(plain: Path, tmp_path: Path) -> None:  # noqa: F811
    seen: list[tuple[list[Any], list[Any], list[Any]]] = []

    class Reward:
        columns = ("thing",)

        def __call__(self, prompts: list[Any], completions: list[Any], thing: list[Any]) -> list[float | None]:
            seen.append((prompts, completions, thing))
            return [float(len(text)) for text in completions]

        def features(self) -> dict[str, float]:
            return {"length": float(len(seen))}

    ppo(plain, Reward(), parquet(tmp_path / "d.parquet", QUESTIONS), tmp_path / "out", PPO)
    assert len(seen) == 3
    prompts, completions, things = seen[0]
    assert prompts == [f"Where is the {t}?" for t in things]
    assert [type(text) for text in completions] == [str] * 8
    assert [line["reward/length"] for line in log(tmp_path / "out")] == [1, 2, 3]


def test_chat_rows_are_given_as_messages_and_asked_as_they_are_scored(chat: Path, tmp_path: Path) -> None:  # noqa: F811
    from transformers import AutoTokenizer

    seen: list[tuple[list[Any], list[Any]]] = []

    def reward(prompts: list[Any], completions: list[Any], **columns: Any) -> list[float | None]:
        seen.append((prompts, completions))
        return [1.0] * len(prompts)

    given = [{"prompt": turns("system", "Be brief.") + turns("user", f"Where is the {t}?")} for t in THINGS]
    ppo(chat, reward, parquet(tmp_path / "d.parquet", given), tmp_path / "out", changed(max_steps=1))
    prompts, completions = seen[0]
    assert all(prompt in [row["prompt"] for row in given] for prompt in prompts)
    assert all([turn["role"] for turn in completion] == ["assistant"] for completion in completions)
    assert all("<|" not in completion[0]["content"] for completion in completions)
    ids = AutoTokenizer.from_pretrained(chat)
    fits = len(tokens.policy_ids(ids, given[0]["prompt"], "", 1)[0]) + 12
    record = ppo(
        chat,
        reward,
        parquet(tmp_path / "one.parquet", given[:1]),
        tmp_path / "fits",
        changed(max_length=fits, max_steps=1),
    )
    assert record["rows_used"] == 1
    with pytest.raises(TrainError, match="none of 1 prompts leaves room for a response of 12 tokens"):
        ppo(chat, reward, tmp_path / "one.parquet", tmp_path / "not", changed(max_length=fits - 1, max_steps=1))


def test_a_value_model_starts_from_a_reward_model(plain: Path, tmp_path: Path) -> None:  # noqa: F811
    from transformers import AutoModelForSequenceClassification, AutoTokenizer

    critic = AutoModelForSequenceClassification.from_pretrained(plain, num_labels=1)
    critic.save_pretrained(tmp_path / "rm")
    AutoTokenizer.from_pretrained(plain).save_pretrained(tmp_path / "rm")
    data = parquet(tmp_path / "d.parquet", QUESTIONS)
    config = changed(lora=True, value_model=tmp_path / "rm", save_steps=1, learning_rate=1e-2)
    record = ppo(plain, share_of_e, data, tmp_path / "out", config)
    assert record["value_model"] == identity(Origin(str(tmp_path / "rm")))
    assert not (tmp_path / "out/value_model").exists()
    lines = log(tmp_path / "out")
    assert lines[0]["val/first_ratio_error"] < 1e-5 and lines[-1]["objective/kl"] != 0
    with pytest.raises(TrainError, match="failed at update 3"):
        ppo(plain, breaking(at=3), data, tmp_path / "stopped", config)
    ppo(plain, share_of_e, data, tmp_path / "stopped", config)
    assert weights(tmp_path / "stopped") == weights(tmp_path / "out")


def test_a_value_model_that_cannot_be_one_is_refused(
    plain: Path,  # noqa: F811
    decoder_reward_folder: Path,
    encoder_reward_folder: Path,
    tmp_path: Path,
) -> None:
    from transformers import AutoTokenizer, BertConfig, BertForSequenceClassification

    data = parquet(tmp_path / "d.parquet", QUESTIONS)
    with pytest.raises(TrainError, match="has another tokenizer than the policy, whose ids it would read"):
        ppo(plain, share_of_e, data, tmp_path / "out", changed(value_model=decoder_reward_folder))
    ids = AutoTokenizer.from_pretrained(plain)
    small = BertConfig(vocab_size=len(ids), hidden_size=8, num_hidden_layers=1, num_attention_heads=1, num_labels=1)
    BertForSequenceClassification(small).save_pretrained(tmp_path / "bert")
    ids.save_pretrained(tmp_path / "bert")
    with pytest.raises(TrainError, match="is a BertForSequenceClassification, which reads the whole text at once"):
        ppo(plain, share_of_e, data, tmp_path / "out", changed(value_model=tmp_path / "bert"))


def test_prompts_that_leave_no_room_are_skipped_counted_and_said(
    plain: Path,  # noqa: F811
    tmp_path: Path,
    capfd: pytest.CaptureFixture[str],
) -> None:
    given = [*QUESTIONS[:8], {"prompt": "Where is the cat? " * 40, "thing": "cat"}]
    record = ppo(plain, share_of_e, parquet(tmp_path / "d.parquet", given), tmp_path / "out", changed(max_steps=1))
    assert [record[k] for k in ("rows", "rows_used", "rows_skipped")] == [9, 8, 1]
    out, err = capfd.readouterr()
    assert out == ""
    assert err.splitlines(keepends=True)[0] == "ppo: 1 prompt skipped for leaving less than 12 of 64 tokens\n"


def test_a_tokenizer_without_padding_is_padded_with_what_nobody_reads(plain: Path, tmp_path: Path) -> None:  # noqa: F811
    from transformers import AutoModelForCausalLM, AutoTokenizer

    AutoModelForCausalLM.from_pretrained(plain).save_pretrained(tmp_path / "m")
    ids = AutoTokenizer.from_pretrained(plain)
    ids.pad_token = None
    ids.save_pretrained(tmp_path / "m")
    data = parquet(tmp_path / "d.parquet", QUESTIONS)
    for model, out in ((plain, "with"), (tmp_path / "m", "without")):
        ppo(model, share_of_e, data, tmp_path / out, changed(max_steps=2))
    assert weights(tmp_path / "with") == weights(tmp_path / "without")


def test_a_missing_end_costs_what_it_is_told_to(plain: Path, tmp_path: Path) -> None:  # noqa: F811
    data = parquet(tmp_path / "d.parquet", QUESTIONS)
    plainly = changed(max_steps=1, score_normalise=False)
    ppo(plain, share_of_e, data, tmp_path / "free", plainly)
    ppo(plain, share_of_e, data, tmp_path / "costs", plainly.model_copy(update={"missing_eos_penalty": 2.0}))
    free, costs = (log(tmp_path / out)[0] for out in ("free", "costs"))
    cut = 1 - free["val/ended"]
    assert cut > 0
    assert costs["objective/rlhf_reward"] == pytest.approx(free["objective/rlhf_reward"] - 2 * cut, abs=1e-6)
    assert costs["objective/scores"] == free["objective/scores"]


def test_normalised_scores_have_no_mean_and_are_clipped(plain: Path, tmp_path: Path) -> None:  # noqa: F811
    data = parquet(tmp_path / "d.parquet", QUESTIONS)

    def one_stands_out(completions: list[str], **rest: Any) -> list[float | None]:
        return [1000.0 if i == 0 else 0.0 for i in range(len(completions))]

    ppo(plain, one_stands_out, data, tmp_path / "free", changed(max_steps=1, score_clip=None))
    ppo(plain, one_stands_out, data, tmp_path / "held", changed(max_steps=1, score_clip=1.0))
    free, held = (log(tmp_path / out)[0]["objective/rlhf_reward"] for out in ("free", "held"))
    # Seven at -1/√8, one at 7/√8 ≈ 2.47, which is held at 1.
    assert free == pytest.approx(0, abs=1e-6)
    assert held == pytest.approx((1 - 7 / math.sqrt(8)) / 8, abs=1e-6)


Reward = Callable[..., Any]


@pytest.mark.parametrize(
    ("reward", "message"),
    [
        (
            lambda completions, **rest: [math.nan] * 8,
            r"reward <lambda> gave nan at update 1 for row \d+; return a finite",
        ),
        (
            lambda completions, **rest: ["high"] * 8,
            r"gave 'high' at update 1 for row \d+; return a finite number, or None",
        ),
        (lambda completions, **rest: [-math.inf] * 8, "gave -inf at update 1 for row"),
        (lambda completions, **rest: [1.0], "gave 1 scores for 8 responses at update 1 on rows"),
        (lambda completions, **rest: 1 / 0, r"failed at update 1 on rows (\d+, ){7}\d+: ZeroDivisionError: division"),
        (lambda completions: [1.0] * 8, "failed at update 1 on rows .*: TypeError: .*unexpected keyword argument"),
    ],
)
def test_a_reward_that_fails_is_named_before_anything_is_trained(
    reward: Reward,
    message: str,
    plain: Path,  # noqa: F811
    tmp_path: Path,
) -> None:
    with pytest.raises(TrainError, match=message) as raised:
        ppo(plain, reward, parquet(tmp_path / "d.parquet", QUESTIONS), tmp_path / "out", PPO)
    assert "\n" not in str(raised.value)
    assert not (tmp_path / "out").exists()
    assert not log(tmp_path / "out.training")


@pytest.mark.parametrize(
    ("epochs", "message"),
    [(1, "the policy's probabilities are no finite numbers any more"), (2, "the loss at update 1 is no finite number")],
)
def test_training_that_blows_up_stops(epochs: int, message: str, plain: Path, tmp_path: Path) -> None:  # noqa: F811
    data = parquet(tmp_path / "d.parquet", QUESTIONS)
    with pytest.raises(TrainError, match=f"{message}; lower learning_rate"):
        ppo(plain, share_of_e, data, tmp_path / "out", changed(learning_rate=1e30, num_ppo_epochs=epochs))


def test_a_failing_reward_names_the_row_as_the_data_count_it(plain: Path, tmp_path: Path) -> None:  # noqa: F811
    def one_fails(prompts: list[str], thing: list[str], **rest: Any) -> list[float | None]:
        return [math.nan if name == THINGS[20] else 1.0 for name in thing]

    data = parquet(tmp_path / "d.parquet", QUESTIONS)
    with pytest.raises(TrainError, match=r"for row 20;"):
        ppo(plain, one_fails, data, tmp_path / "out", changed(max_steps=5, eval_rows=3))


class NeedsReference:
    columns = ("reference",)

    def __call__(self, **given: Any) -> list[float | None]:
        raise AssertionError("never called")


@pytest.mark.parametrize(
    ("case", "message"),
    [
        (
            lambda m, t: (m, NeedsReference(), parquet(t / "d.parquet", QUESTIONS), t / "o"),
            "d.parquet has no column `reference`; it has prompt, thing",
        ),
        (
            lambda m, t: (m, share_of_e, parquet(t / "d.parquet", QUESTIONS[:0] or [{"text": "a"}]), t / "o"),
            "d.parquet has no column `prompt`",
        ),
        (
            lambda m, t: (m, share_of_e, parquet(t / "d.parquet", [{"prompt": "a", "completions": "b"}]), t / "o"),
            "d.parquet has a column `completions`, which rewards are given beside it; rename the column",
        ),
        (
            lambda m, t: (m, share_of_e, written(t / "d.jsonl", ""), t / "o"),
            "d.jsonl holds no rows; check the filter that made it",
        ),
        (
            lambda m, t: (m, share_of_e, parquet(t / "d.parquet", [{"prompt": "a" * 999}]), t / "o"),
            "none of 1 prompts leaves room for a response of 12 tokens in 64; ask for shorter responses, or raise max_length",
        ),
        (
            lambda m, t: (start(t / "m", eos=False), share_of_e, parquet(t / "d.parquet", QUESTIONS), t / "o"),
            "the tokenizer of .* has no end-of-sequence token",
        ),
        (
            lambda m, t: (t / "gone", share_of_e, parquet(t / "d.parquet", QUESTIONS), t / "o"),
            "model folder .*gone is not there",
        ),
        (
            lambda m, t: (m, share_of_e, parquet(t / "d.parquet", QUESTIONS), m),
            "model exists and is no finished training",
        ),
        (
            lambda m, t: (m, share_of_e, parquet(t / "d.parquet", QUESTIONS), taken(t)),
            "o.training is needed for checkpoints and holds thesis.txt; move it, or give another folder",
        ),
    ],
)
def test_what_cannot_be_trained_is_refused_in_one_line(
    case: Callable[[Path, Path], tuple[Any, Any, Any, Any]],
    message: str,
    plain: Path,  # noqa: F811
    tmp_path: Path,
) -> None:
    with pytest.raises(TrainError, match=message) as raised:
        ppo(*case(plain, tmp_path), PPO)
    assert "\n" not in str(raised.value)
    assert not (tmp_path / "o").exists()


def written(path: Path, text: str) -> Path:
    path.write_text(text)
    return path


def taken(folder: Path) -> Path:
    (folder / "o.training").mkdir()
    written(folder / "o.training/thesis.txt", "x")
    return folder / "o"


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"response_length": 64}, "response_length must be below max_length"),
        ({"num_mini_batches": 3}, "must divide by num_mini_batches"),
        ({"total_episodes": 9}, "give max_steps or total_episodes, not both"),
    ],
)
def test_options_that_contradict_each_other_are_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        changed(**options)


def test_how_long_it_trains_is_said_in_updates_responses_or_epochs(plain: Path, tmp_path: Path) -> None:  # noqa: F811
    data = parquet(tmp_path / "d.parquet", QUESTIONS[:20])
    once = {"num_ppo_epochs": 1, "response_length": 1}
    for i, (options, updates) in enumerate(
        [({"max_steps": 2}, 2), ({"max_steps": -1, "total_episodes": 9}, 2), ({"max_steps": -1}, 3)]
    ):
        assert ppo(plain, share_of_e, data, tmp_path / str(i), changed(**once, **options))["updates"] == updates


def test_a_reward_is_known_by_how_it_shows_itself() -> None:
    class Settings(tuple[int, ...]):
        def __call__(self, **given: Any) -> list[float | None]:
            return []

    assert CheckedReward(share_of_e).identity == "share_of_e"
    assert CheckedReward(Settings([1, 2])).identity == "(1, 2)"
    assert CheckedReward(NeedsReference()).identity == "NeedsReference"

    class Weights(NeedsReference):
        identity = "sha256:abc"

    assert CheckedReward(Weights()).identity == "sha256:abc"


TWO = """
import os, sys
sys.path[:0] = [sys.argv[1], os.path.dirname(sys.argv[1])]
from test_ppo import *
from seamcurate.train import learner
learner.respond = always_the_same
record = ppo(sys.argv[2], OfCats(), sys.argv[3], sys.argv[4], together.model_copy(update=FOUR))
written(Path(sys.argv[4] + ".said." + os.environ["RANK"]), json.dumps(record))
"""
FOUR = {"per_device_train_batch_size": 4}
# Of the held-out prompts there is one, so that one process has none to measure.
together = changed(max_steps=2, num_ppo_epochs=2, learning_rate=1e-3, save_steps=1, eval_rows=1)


class OfCats:
    """A reward with a feature of some rows only: a process whose batch has none of them does not know its name."""

    def __call__(self, prompts: list[str], completions: list[str], **columns: list[object]) -> list[float | None]:
        self.cats = [1.0 for prompt in prompts if "cat" in prompt]
        return share_of_e(prompts, completions)

    def __repr__(self) -> str:
        return "of cats"

    def features(self) -> dict[str, float]:
        return {"cats": 1.0} if self.cats else {}


def always_the_same(policy: Any, ids: Any, prompts: list[list[int]], length: int, *rest: Any) -> Any:
    """Answer a prompt with tokens that it alone decides, whoever is asked and beside whatever else."""
    answers = []
    for prompt in prompts:
        draw = torch.Generator().manual_seed(sum(prompt))
        answer = torch.randint(10, 300, (length,), generator=draw).tolist()
        answer[int(torch.randint(1, length, (1,), generator=draw))] = ids.eos_token_id
        answers.append(answer)
    scripted: Any = Scripted(answers)
    return respond(scripted, ids, prompts, length, *rest)


def test_two_processes_train_as_one_does(plain: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:  # noqa: F811
    from safetensors.torch import load_file

    data, out = parquet(tmp_path / "d.parquet", QUESTIONS), tmp_path / "two"
    script = written(tmp_path / "two.py", TWO)
    # What `accelerate launch` starts on GPUs; for processes on a CPU it wants MPI.
    launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
    own = {"PYTHONPATH": str(Path(__file__).parents[2]), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [*launch, str(script), str(Path(__file__).parent), str(plain), str(data), str(out)],
        capture_output=True,
        text=True,
        timeout=120,
        env={**os.environ, **own},
        check=False,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    record = json.loads((out / "training.json").read_text())
    assert [json.loads((tmp_path / f"two.said.{rank}").read_text()) for rank in (0, 1)] == [record] * 2
    assert not (tmp_path / "two.training").exists()

    monkeypatch.setattr("seamcurate.train.learner.respond", always_the_same)
    alone = ppo(plain, OfCats(), data, tmp_path / "one", together)
    for one, two in zip(log(tmp_path / "one"), log(out), strict=True):
        assert two == pytest.approx(one | {"eps": two.get("eps")}, abs=1e-5) if "eps" in two else one == two
    assert record["reward_after"] == alone["reward_after"]
    start, a, b = (load_file(f / "model.safetensors") for f in (plain, tmp_path / "one", out))
    assert max(float((a[k] - start[k]).abs().max()) for k in a) > 1e-3
    assert max(float((a[k] - b[k]).abs().max()) for k in a) < 2e-5


def test_gold_is_measured_beside_the_reward_and_never_learned_from(plain: Path, tmp_path: Path) -> None:  # noqa: F811
    from seamcurate import study

    class Length:
        columns = ("thing",)

        def __call__(self, completions: list[str], thing: list[str], **rest: Any) -> list[float | None]:
            return [float(len(text)) for text in completions]

    data = parquet(tmp_path / "d.parquet", QUESTIONS)
    config = changed(eval_rows=3, eval_steps=1, save_steps=2)
    without = ppo(plain, share_of_e, data, tmp_path / "without", config)
    with pytest.raises(TrainError, match="failed at update 3"):
        ppo(plain, breaking(at=9), data, tmp_path / "li", config, Length())
    record = ppo(plain, share_of_e, data, tmp_path / "li", config, Length())
    assert weights(tmp_path / "li") == weights(tmp_path / "without")
    assert [record[key] for key in ("reward_before", "reward_after")] == [
        without[key] for key in ("reward_before", "reward_after")
    ]
    lines = [line for line in log(tmp_path / "li") if "eval/gold" in line]
    assert [line["step"] for line in lines] == [0, 1, 2, 3]
    assert [lines[0]["eval/gold"], lines[-1]["eval/gold"]] == [record["gold_before"], record["gold_after"]]
    assert record["gold"] == "Length" and without["gold"] is without["gold_before"] is None
    (row,) = study.monotonicity(tmp_path / "li").table.to_pylist()
    assert (row["proxy"], row["checkpoints"], row["seeds"]) == ("li", 4, 1)
    with pytest.raises(StudyError, match="without measured no gold reward; train it with --gold and --eval-steps"):
        study.monotonicity(tmp_path / "without")
    lacking = parquet(tmp_path / "e.parquet", [{"prompt": "Where?"}])
    with pytest.raises(TrainError, match=r"e\.parquet has no column `thing`"):
        ppo(plain, share_of_e, lacking, tmp_path / "o", config, Length())
