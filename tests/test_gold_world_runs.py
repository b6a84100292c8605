"""The gold world's tier R: its RLOO against the bundled trainer's, its shared noise, its gates and its rule."""

from __future__ import annotations

import json
import math
import random
import zlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from examples.gold_world import alignment, policy, runs, tables, world
from examples.gold_world.alignment import Aligner, Drawn
from examples.gold_world.experiment import PRESETS
from examples.gold_world.frozen import Frozen
from examples.gold_world.reward import Dials
from examples.gold_world.runs import Run, Runs
from examples.gold_world.verdicts import Results
from seamcurate.train import GroupTraining, rloo

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def frozen(tmp_path_factory: pytest.TempPathFactory) -> Frozen:
    found = Frozen(tmp_path_factory.mktemp("gold"), PRESETS["tiny"].world)
    for _, make in found.tasks():
        make()
    return found


def words(prompts: Sequence[str], answers: Sequence[str]) -> list[float]:
    return [float(len(answer.split())) for answer in answers]


def test_an_update_is_the_bundled_rloos_from_the_same_answers(
    frozen: Frozen, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from trl import RLOOTrainer

    batches: list[dict[str, Any]] = []
    compute_loss = RLOOTrainer.compute_loss

    def noted(self: Any, model: Any, inputs: dict[str, Any], *rest: Any, **named: Any) -> Any:
        batches.append(inputs)
        return compute_loss(self, model, inputs, *rest, **named)

    monkeypatch.setattr(RLOOTrainer, "compute_loss", noted)

    def by_text(completions: Sequence[str], **columns: object) -> list[float]:
        return [zlib.crc32(completion.encode()) / 2**32 for completion in completions]

    data = policy.write(frozen.parts.rl[:12], tmp_path / "rl.parquet")
    config = GroupTraining(
        learning_rate=1e-3,
        max_steps=2,
        num_iterations=2,
        per_device_train_batch_size=32,
        num_generations=8,
        max_completion_length=policy.ANSWER_TOKENS,
        max_length=64,
        beta=alignment.BETA,
        epsilon=alignment.CLIP,
        eval_rows=0,
        lora=False,
    )
    rloo(frozen.policy, by_text, data, tmp_path / "out", config)
    aligner = Aligner(frozen.policy, words)
    start = {name: value.clone() for name, value in aligner.model.state_dict().items()}
    # The bundled trainer mixes a batch's answers; those to one prompt belong together here.
    order = sorted(range(32), key=lambda i: batches[0]["prompt_ids"][i].tolist())
    batch = {name: value[order] for name, value in batches[0].items() if name.startswith(("prompt_", "completion_"))}
    ids, written = batch["completion_ids"], batch["completion_mask"]
    texts = aligner.tokenizer.batch_decode(ids * written, skip_special_tokens=True)
    answers = Drawn(
        torch.cat([batch["prompt_ids"], ids], 1), torch.cat([batch["prompt_mask"], written], 1), written.float(), texts
    )
    given = by_text(texts)
    # The bundled trainer's learning rate falls in a line to 0.
    assert aligner.learn(answers, given, 8, [1e-3, 5e-4]) == pytest.approx(0, abs=1e-5)
    other = Aligner(tmp_path / "out", words).model.state_dict()
    own, bundled = (
        torch.cat([(state[name] - start[name]).flatten() for name in start])
        for state in (aligner.model.state_dict(), other)
    )
    assert own.norm() > 0.01
    assert float(torch.cosine_similarity(own, bundled, 0)) > 0.9999
    assert float(((own - bundled).abs() > 1e-5).float().mean()) < 0.01


def test_an_arm_draws_for_a_prompt_it_keeps_what_the_others_draw(frozen: Frozen) -> None:
    prompts = [record["prompt"] for record in frozen.parts.rl]
    drawn: list[dict[str, list[str]]] = []

    def noted(asked: Sequence[str], answers: Sequence[str]) -> list[float]:
        found: dict[str, list[str]] = {}
        for prompt, answer in zip(asked, answers, strict=True):
            found.setdefault(prompt, []).append(answer)
        drawn.append(found)
        return words(asked, answers)

    drop = np.arange(len(prompts)) % 3 == 0
    updates = []
    for left_out in (np.zeros(len(prompts), bool), drop):
        updates.append([number for number, _ in Aligner(frozen.policy, noted).train(prompts, left_out, 5, 1.0)])
    assert updates[0] == updates[1] == list(range(1, len(prompts) // 32 + 1))
    every, arm = drawn[0], drawn[len(updates[0])]
    assert len(every) == 32 and all(len(answers) == 8 for answers in every.values())
    kept = {prompt for prompt, out in zip(prompts, drop, strict=True) if not out}
    assert arm.keys() == every.keys() & kept and 0 < len(arm) < 32
    assert all(every[prompt] == answers for prompt, answers in arm.items())


def test_answers_follow_the_policys_probabilities(frozen: Frozen) -> None:
    aligner = Aligner(frozen.policy, words)
    prompts = [record["prompt"] for record in frozen.parts.test[:20]]
    assert aligner.draw(prompts, None).texts == policy.greedy(frozen.policy, prompts)
    noise = np.stack([aligner._noise(2000, 1, 2, 3)])
    drawn = aligner.draw(prompts[:1], noise)
    first = drawn.ids[:, -drawn.written.shape[1]]
    share = torch.bincount(first, minlength=aligner.vocabulary) / len(first)
    ids = torch.tensor([aligner.tokenizer(policy.plain_prompt(prompts[0]))["input_ids"]])
    expected = aligner.model(ids).logits[0, -1].softmax(-1).detach()
    # Half the summed distance is .4 · Σ √(p / 2000) in the mean, and hardly varies.
    assert float((share - expected).abs().sum() / 2) < 0.6 * float((expected / 2000).sqrt().sum())


def test_truth_as_the_reward_raises_the_quality_of_trained_prompts(frozen: Frozen) -> None:
    records = frozen.parts.rl
    aligner = Aligner(frozen.policy, runs.truth_of(records))
    before = aligner.measure(frozen.parts.test, records)
    none = np.zeros(len(records), bool)
    scale = alignment.spread(frozen.quality[frozen.samples("rl")])
    for seed in range(12):
        for _ in aligner.train([record["prompt"] for record in records], none, seed, scale):
            pass
    assert aligner.measure(frozen.parts.test, records).trained > before.trained


def test_a_run_repeats_exactly_and_a_failed_gate_has_no_arms(frozen: Frozen, tmp_path: Path) -> None:
    measured = Runs(frozen.out, frozen, Dials(60, 2))
    (frozen.out / "cells").mkdir(exist_ok=True)
    (frozen.out / "gates").mkdir(exist_ok=True)
    first, second = (measured.measure(Run("seam_contrast", 3)) for _ in range(2))
    assert {**first, "cpu": 0} == {**second, "cpu": 0}
    assert first["updates"] == 1 and len(first["checkpoints"]) == 1 and first["dropped"] <= 12
    by_ppo = measured.measure(Run("ppo_seam_contrast", 3))
    assert by_ppo["updates"] == 1 and by_ppo["dropped"] == first["dropped"] and len(by_ppo["checkpoints"]) == 1
    # Nothing is learned in so small a world: the gates stop it.
    assert "a gate failed" in measured.run()
    gate = json.loads((frozen.out / "gates" / f"{runs.GATE}.json").read_text())
    assert not gate["passed"] and not gate["G2"]["passed"]
    assert sorted(file.name for file in (frozen.out / "cells").glob("rl-*")) == [
        *(f"rl-full-{9000 + i}.json" for i in range(3)),
        "rl-truth-9000.json",
    ]


def cells(count: int, gain: float) -> list[dict[str, Any]]:
    draw = random.Random(1)
    levels = {"full": 0.0, "random": 0.0, "seam_contrast": gain}
    return [
        {"arm": arm, "seed": seed, "checkpoints": [[0.7 + level + draw.gauss(0, 0.003), 0, 0]]}
        for seed in range(count)
        for arm, level in levels.items()
    ]


@pytest.mark.parametrize(
    ("count", "gain", "verdict"),
    [
        (16, 0.02, "shown"),
        (15, 0.02, "undecided: 15 repetitions"),
        (20, 0.0, "undecided: 20 repetitions"),
        (64, 0.0, "refuted"),
        (64, -0.05, "undecided: 64 repetitions"),
    ],
)
def test_p4_is_decided_at_its_looks_alone(count: int, gain: float, verdict: str) -> None:
    decided = runs.p4(cells(count, gain))
    assert decided.verdict == verdict
    assert all(number.n == count or number.n in runs.LOOKS for number in decided.numbers.values())
    assert math.isclose(sum(runs.LOOKS.values()), 0.05)


def test_p4s_runs_come_before_ppos_repetition_by_repetition() -> None:
    planned = runs.plan()[1]
    assert planned[:6] == [*(Run(arm, 0) for arm in runs.ARMS), Run("full", 1)]
    assert [run.arm.startswith("ppo_") for run in planned] == [False] * 5 * 64 + [True] * 3 * 64


def test_a_failed_gate_is_p4s_verdict_and_its_trainings_are_told() -> None:
    found = Results.read(tables.TRAININGS)
    assert runs.verdict(found).verdict == "stopped: gates failed in (4,000; b 2) by G2, G4"
    lines = "\n".join(runs.tables(found))
    assert "| G2 | truth as reward raises unseen quality by at least .03 | +0.026 | **no** |" in lines
    assert lines.count("| `full` |") == 3 and "| `truth` | 9000 | 0.553 → 0.579 |" in lines
    passed = Results({runs.GATE: {"passed": True}}, {f"{i}": cell for i, cell in enumerate(cells(16, 0.02))})
    assert runs.verdict(passed).verdict == "shown"


def test_updates_take_each_prompt_once_and_the_last_ones_are_measured() -> None:
    assert alignment.checkpoints(187) == [167, 177, 187] and alignment.checkpoints(1) == [1]
    assert world.quality(world.records(1, 1)[0], "") == 0


def test_a_gain_is_of_the_repetitions_that_have_every_arm() -> None:
    assert runs.gain(cells(1, 0.02), "seam_contrast", "random").n == 1
    found = runs.gain(
        [*cells(20, 0.02), {"arm": "random", "seed": 99, "checkpoints": [[0.0]]}], "seam_contrast", "random"
    )
    assert found.n == 20 and found.low < 100 * 0.02 / 0.7 < found.high and found.above_zero
