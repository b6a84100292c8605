"""What every trainer does with what cannot be trained on: one line before time is spent, or a row that is skipped and said."""

from __future__ import annotations

import json
import math
import shutil
import sys
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from training import CHAT, THINGS, parquet, start

from seamcurate.errors import StoreError, TrainError
from seamcurate.models import SequenceClassifier, weights
from seamcurate.models.weights import Origin, identity
from seamcurate.train import (
    GroupTraining,
    PPOTraining,
    RewardTraining,
    SFTTraining,
    grpo,
    ppo,
    reward,
    rloo,
    sft,
    training,
)
from seamcurate.train.learner import Learner

pytestmark = pytest.mark.slow

ALL = {
    "lora": False,
    "learning_rate": 1e-3,
    "max_length": 64,
    "max_steps": 2,
    "eval_rows": 0,
    "per_device_train_batch_size": 4,
}
GROUP = GroupTraining(**ALL, max_completion_length=4, num_generations=2)
CONFIGS: dict[str, Any] = {
    "sft": SFTTraining(**ALL, warmup_steps=0),
    "reward": RewardTraining(**ALL),
    "ppo": PPOTraining(**ALL, response_length=4, num_ppo_epochs=1),
    "grpo": GROUP,
    "rloo": GROUP,
}
NEEDS = {"sft": "response", "reward": "rejected", "ppo": "reference", "grpo": "reference", "rloo": "reference"}
BY_REWARD = ["ppo", "grpo", "rloo"]
POLICIES = ["sft", *BY_REWARD]


class Length:
    """Rewards answers by their letters, and cannot do without a reference."""

    columns = ("reference",)

    def __call__(self, completions: list[str], **columns: Any) -> list[float | None]:
        return [float(len(text)) for text in completions]


def train(name: str, model: Path, data: Path, out: Path, **options: object) -> dict[str, Any]:
    config = CONFIGS[name].model_copy(update=options)
    plain: dict[str, Any] = {"sft": sft, "reward": reward}
    by_reward: dict[str, Any] = {"ppo": ppo, "grpo": grpo, "rloo": rloo}
    made: dict[str, Any] = (
        plain[name](model, data, out, config) if name in plain else by_reward[name](model, Length(), data, out, config)
    )
    return made


def rows(*left_out: str) -> list[dict[str, object]]:
    found: list[dict[str, object]] = [
        {
            "prompt": f"Where is the {thing}?",
            "response": f"The {thing} is here.",
            "chosen": f"The {thing} is here.",
            "rejected": f"Who knows the {thing}",
            "reference": thing,
        }
        for thing in THINGS[:8]
    ]
    return [{key: value for key, value in row.items() if key not in left_out} for row in found]


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return start(tmp_path_factory.mktemp("inputs") / "model")


REFUSING = "{% if messages[0].role == 'system' %}{{ raise_exception('System role not supported') }}{% endif %}" + CHAT


def refused(message: str, name: str, model: Path, data: Path, folder: Path, **options: object) -> None:
    with pytest.raises(TrainError, match=message) as raised:
        train(name, model, data, folder / "out", **options)
    assert "\n" not in str(raised.value)
    assert not (folder / "out").exists()


@pytest.mark.parametrize("name", CONFIGS)
def test_a_split_without_a_column_it_needs_is_refused(name: str, model: Path, tmp_path: Path) -> None:
    data = parquet(tmp_path / "d.parquet", rows(NEEDS[name]))
    refused(rf"d.parquet has no column .*`{NEEDS[name]}`.*; it has prompt, ", name, tmp_path / "unread", data, tmp_path)


@pytest.mark.parametrize("name", CONFIGS)
def test_an_empty_split_is_refused(name: str, model: Path, tmp_path: Path) -> None:
    empty = pa.Table.from_pylist(rows()).slice(0, 0)
    pq.write_table(empty, tmp_path / "d.parquet")
    refused(
        "d.parquet holds no rows; check the filter that made it",
        name,
        tmp_path / "unread",
        tmp_path / "d.parquet",
        tmp_path,
    )


@pytest.mark.parametrize("name", CONFIGS)
def test_prompts_longer_than_the_window_are_skipped_and_said_or_refused_where_there_are_no_others(
    name: str, model: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    long = [{**row, "prompt": "Where is the cat? " * 60} for row in rows()[:1]]
    record = train(name, model, parquet(tmp_path / "some.parquet", [*rows(), *long]), tmp_path / "some")
    assert [record[key] for key in ("rows", "rows_used", "rows_skipped")] == [9, 8, 1]
    assert f"{name}: 1 prompt skipped for leaving " in capfd.readouterr().err
    # The model's own window is 128 tokens, whatever max_length says.
    data = parquet(tmp_path / "long.parquet", long)
    message = "none of 1 prompts leaves room .* 128" + ("; ask for shorter responses$" if name in BY_REWARD else "")
    refused(message, name, model, data, tmp_path, max_length=4096)


@pytest.mark.parametrize("name", POLICIES)
def test_a_tokenizer_without_an_end_is_refused_before_the_weights_are_read(name: str, tmp_path: Path) -> None:
    unended = start(tmp_path / "model", eos=False)
    shutil.copyfile(unended / "model.safetensors", tmp_path / "kept")
    (unended / "model.safetensors").write_bytes(b"no weights at all")
    data = parquet(tmp_path / "d.parquet", rows())
    refused("the tokenizer of .*model has no end-of-sequence token", name, unended, data, tmp_path)


def test_a_reward_models_tokenizer_without_end_and_padding_is_refused(tmp_path: Path) -> None:
    unended = unpadded(start(tmp_path / "model", eos=False))
    data = parquet(tmp_path / "d.parquet", rows())
    refused("has neither a padding nor an end-of-sequence token", "reward", unended, data, tmp_path)


def unpadded(folder: Path) -> Path:
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(folder)
    tokenizer.pad_token = None
    tokenizer.save_pretrained(folder)
    return folder


@pytest.mark.parametrize("name", ["sft", "grpo", "rloo"])
def test_a_tokenizer_without_padding_gives_the_weights_that_padding_would(
    name: str, model: Path, tmp_path: Path
) -> None:
    data = parquet(tmp_path / "d.parquet", rows())
    without = unpadded(Path(shutil.copytree(model, tmp_path / "without")))
    for place, out in ((model, "one"), (without, "two")):
        train(name, place, data, tmp_path / out)
    one, two = ((tmp_path / out / "model.safetensors").read_bytes() for out in ("one", "two"))
    assert one == two


def test_a_reward_models_tokenizer_without_padding_is_no_matter_of_what_stands_beside_it(
    model: Path, tmp_path: Path
) -> None:
    without = unpadded(Path(shutil.copytree(model, tmp_path / "without")))
    train("reward", without, parquet(tmp_path / "d.parquet", rows()), tmp_path / "out")
    scorer = SequenceClassifier(path=str(tmp_path / "out")).load()
    answers = ["It is here.", "Who knows? " * 8]
    alone, beside = scorer.rewards(["Where?"], [answers[:1]]), scorer.rewards(["Where?"], [answers])
    assert alone[0][0] == pytest.approx(beside[0][0], abs=1e-5)


@pytest.mark.parametrize(
    ("name", "damage"),
    [
        ("reward", "unsealed"),
        ("grpo", "unsealed"),
        ("rloo", "cut seal"),
        ("sft", "cut weights"),
        ("ppo", "cut weights"),
    ],
)
def test_a_checkpoint_half_written_is_none(
    name: str,
    damage: str,
    model: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    from seamcurate.train.workplace import Workplace

    data = parquet(tmp_path / "d.parquet", rows())
    options = {"max_steps": 4, "save_steps": 2, "logging_steps": 1}
    whole = train(name, model, data, tmp_path / "whole", **options)
    write = Workplace.write

    def stop(self: Workplace, step: int, values: Any) -> None:
        write(self, step, values)
        if step == 3:
            raise KeyboardInterrupt

    monkeypatch.setattr(Workplace, "write", stop)
    with pytest.raises(KeyboardInterrupt):
        train(name, model, data, tmp_path / "out", **options)
    monkeypatch.setattr(Workplace, "write", write)
    left = tmp_path / "out.training"
    shutil.copytree(left / "checkpoint-2", left / "checkpoint-3")
    seal = left / "checkpoint-3" / "checkpoint.json"
    if damage == "cut seal":
        seal.write_bytes(seal.read_bytes()[:10])
    else:
        weights = next((left / "checkpoint-3").glob("*.safetensors"))
        weights.write_bytes(weights.read_bytes()[:100])
    if damage == "unsealed":
        seal.unlink()
    capfd.readouterr()
    assert train(name, model, data, tmp_path / "out", **options) == whole
    one, two = ((tmp_path / out / "model.safetensors").read_bytes() for out in ("whole", "out"))
    assert one == two and not left.exists()
    assert f"{left / 'checkpoint-3'} is half-written or damaged" in capfd.readouterr().err
    steps = [json.loads(line)["step"] for line in (tmp_path / "out" / "log.jsonl").read_text().splitlines()]
    assert steps == [1, 2, 3, 4]


@pytest.mark.parametrize("name", ["sft", "ppo"])
def test_a_place_that_cannot_be_written_to_is_said_before_training(name: str, model: Path, tmp_path: Path) -> None:
    data = parquet(tmp_path / "d.parquet", rows())
    with pytest.raises(StoreError, match=r"out\.training cannot be written: Not a directory"):
        train(name, model, data, data / "out")


@pytest.mark.parametrize("record", ['{"trainer": "pp', "[]"])
def test_a_damaged_record_of_a_finished_training_is_named(record: str, model: Path, tmp_path: Path) -> None:
    data = parquet(tmp_path / "d.parquet", rows())
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "training.json").write_text(record)
    with pytest.raises(TrainError, match=r"training\.json is damaged .*; give another folder, or delete it"):
        train("ppo", model, data, tmp_path / "out")


@pytest.mark.parametrize("name", ["ppo", "grpo", "rloo"])
@pytest.mark.parametrize("given", [float("nan"), "raises"])
def test_a_reward_that_gives_no_number_stops_before_the_first_update(
    name: str, given: object, model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(self: Length, completions: list[str], **columns: Any) -> list[object]:
        if given == "raises":
            raise KeyError("gold")
        return [given] * len(completions)

    monkeypatch.setattr(Length, "__call__", broken)
    message = "reward Length (gave nan .* for row|failed .* on rows .*: KeyError: 'gold')"
    refused(message, name, model, parquet(tmp_path / "d.parquet", rows()), tmp_path)
    log = tmp_path / "out.training" / "log.jsonl"
    assert not log.exists() or not log.read_text()


@pytest.mark.parametrize("name", list(CONFIGS))
def test_a_chat_that_the_template_refuses_is_named(name: str, tmp_path: Path) -> None:
    asked = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Where is the cat?"}]
    data = parquet(tmp_path / "d.parquet", [{**row, "prompt": asked} for row in rows()])
    message = (
        "template refuses the prompt “Be brief. Where is the cat\\?”: System role not supported; leave such rows out"
    )
    refused(message, name, start(tmp_path / "model", REFUSING), data, tmp_path)


@pytest.mark.parametrize("name", POLICIES)
def test_a_reward_model_is_no_policy_to_start_from(name: str, model: Path, tmp_path: Path) -> None:
    data = parquet(tmp_path / "d.parquet", rows())
    train("reward", model, data, tmp_path / "rm")
    message = (
        "rm is no causal language model: it has no lm_head.weight, which would be initialised at random; give a policy"
    )
    refused(message, name, tmp_path / "rm", data, tmp_path)


@pytest.mark.parametrize("name", [*CONFIGS, "ppo with a value model"])
def test_adapters_train_on_a_backbone_in_bfloat16_as_they_do_on_a_gpu(
    name: str, model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    arguments = training.arguments
    monkeypatch.setattr(weights, "torch_dtype", lambda *given: torch.bfloat16)
    monkeypatch.setattr(training, "arguments", lambda *given: arguments(*given) | {"bf16": True})
    monkeypatch.setattr(Learner, "_precision", lambda self: torch.autocast("cpu", torch.bfloat16))
    data = parquet(tmp_path / "d.parquet", rows())
    options: dict[str, object] = {"lora": True, "eval_data": data}
    if name.endswith("value model"):
        train("reward", model, data, tmp_path / "rm", **options)
        name, options = "ppo", {**options, "value_model": tmp_path / "rm"}
    record = train(name, model, data, tmp_path / "out", **options)
    assert identity(Origin(str(tmp_path / "out"))) != identity(Origin(str(model)))
    assert all(math.isfinite(v) for v in record.values() if isinstance(v, float))


@pytest.mark.parametrize(
    ("trainer", "columns", "message"),
    [
        (
            "sft",
            ["prompt", "chosen", "rejected", "response", "candidate_variant"],
            "its format is preferences, which `train reward` reads; ",
        ),
        (
            "sft",
            ["prompt", "completion", "label", "candidate_variant"],
            "its format is unpaired; give the split `format: sft` in the recipe and export it again",
        ),
        (
            "sft",
            ["prompt", "row_id", "reward"],
            "its format is prompts, which `train ppo, grpo or rloo` reads; give the split `format: sft` in",
        ),
        (
            "reward",
            ["prompt", "row_id"],
            "its format is prompts, which `train ppo, grpo or rloo` reads; give the split ",
        ),
        (
            "reward",
            ["prompt", "completion"],
            "its format is sft, which `train sft` reads; give the split `format: preferences` in the recipe and",
        ),
        ("reward", ["prompt", "choosen", "rejected"], "rename one of these; did you mean `choosen`?"),
        ("sft", ["prompt", "completions"], "rename one of these; did you mean `completions`?"),
        ("sft", ["prompt", "reward"], "it has prompt, reward: rename one of these"),
        ("ppo", ["question", "answer"], "has no column `prompt`; it has question, answer: rename one of these"),
    ],
)
def test_a_split_of_another_format_names_the_way_out(trainer, columns, message, tmp_path):
    from seamcurate.train import data

    file = parquet(tmp_path / "rows.parquet", [dict.fromkeys(columns, "a b")] * 4)
    read = {
        "sft": lambda: data.rows(file, sys.modules["seamcurate.train.sft"].COLUMNS),
        "reward": lambda: data.rows(file, sys.modules["seamcurate.train.reward"].COLUMNS),
        "ppo": lambda: data.prompts(file),
    }
    with pytest.raises(TrainError) as refused:
        read[trainer]()
    assert message in str(refused.value) and "\n" not in str(refused.value)


def test_a_store_and_a_folder_of_splits_are_no_data(finished, tmp_path):
    from seamcurate.train import data

    with pytest.raises(TrainError, match=r"is a store; export its splits .* and give splits/NAME"):
        data.rows(finished.path, [("completion",)])
    for name in ("train", "test"):
        (tmp_path / "splits" / name).mkdir(parents=True)
        pq.write_table(pa.table({"prompt": ["a"]}), tmp_path / "splits" / name / "train-00000-of-00001.parquet")
    with pytest.raises(TrainError, match=r"and no \.parquet files itself; give one of them: test, train"):
        data.prompts(tmp_path / "splits")
