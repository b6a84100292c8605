"""The trainers, on real TRL and models of a few thousand parameters made here."""

# ruff: noqa: F811  # fixtures are imported by name

from __future__ import annotations

import json
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from training import CHAT, THINGS, answered, chat, parquet, plain, preferred, start, stop_after, tokenizer, turns  # noqa: F401

from seamcurate.errors import TrainError
from seamcurate.models import CausalLM, SequenceClassifier, tokens
from seamcurate.models.weights import Origin, identity
from seamcurate.train import RewardTraining, SFTTraining, reward, sft
from seamcurate.train.data import TrainingRow, held_out, rows

pytestmark = pytest.mark.slow

FAST = {"lora": False, "learning_rate": 1e-2, "warmup_steps": 0, "max_length": 64}
SFT = SFTTraining(**FAST, num_train_epochs=8, eval_rows=3)
REWARD = RewardTraining(**FAST, num_train_epochs=2, eval_rows=3)


def number(record: dict[str, Any], key: str) -> float:
    value = record[key]
    assert isinstance(value, float)
    return value


def test_sft_lowers_the_loss_of_held_out_rows_and_scoring_reads_the_same(plain: Path, tmp_path: Path) -> None:
    given = answered()
    record = sft(plain, parquet(tmp_path / "d.parquet", given), tmp_path / "out", SFT)

    assert number(record, "loss_before") > 5.5
    assert number(record, "loss_after") < 2
    assert json.loads((tmp_path / "out/training.json").read_text()) == record
    assert [record[k] for k in ("rows", "rows_used", "rows_cut", "rows_skipped", "rows_held_out")] == [33, 33, 0, 0, 3]
    _, measured = held_out(rows(parquet(tmp_path / "d.parquet", given), [["response"]]), 3, 0)
    scored = (
        CausalLM(path=str(tmp_path / "out"))
        .load()
        .logprobs([row.prompt for row in measured], [list(row.answers) for row in measured])
    )
    likelihoods = [one for group in scored for one in group if one is not None]
    mean = -sum(one.logprob for one in likelihoods) / sum(one.tokens for one in likelihoods)
    assert mean == pytest.approx(number(record, "loss_after"), rel=1e-5)


def test_reward_learns_the_preference_and_scoring_agrees(plain: Path, tmp_path: Path) -> None:
    test = preferred()[:12]
    config = REWARD.model_copy(update={"eval_data": parquet(tmp_path / "t.parquet", test)})
    record = reward(plain, parquet(tmp_path / "d.parquet", preferred()[12:]), tmp_path / "out", config)

    assert number(record, "loss_before") == pytest.approx(0.69, abs=0.05)
    assert number(record, "loss_after") < 0.1
    assert record["accuracy"] == 1.0
    assert [record[k] for k in ("rows", "rows_held_out")] == [24, 12]
    model = SequenceClassifier(path=str(tmp_path / "out"), max_tokens=64).load()
    scores = model.rewards([str(r["prompt"]) for r in test], [[str(r["chosen"]), str(r["rejected"])] for r in test])
    assert all(a is not None and b is not None and a > b for a, b in scores)


def test_chat_messages_are_trained_on_as_they_are_scored(chat: Path, tmp_path: Path) -> None:
    given = [
        {
            "prompt": turns("system", "Be brief.") + turns("user", f"Where is the {t}?"),
            "completion": turns("assistant", f"The {t} is here."),
        }
        for t in THINGS
    ]
    record = sft(chat, parquet(tmp_path / "s.parquet", given), tmp_path / "sft", SFT)
    assert number(record, "loss_after") < number(record, "loss_before") / 2
    pairs = [
        {
            "prompt": turns("user", str(r["prompt"])),
            "chosen": turns("user", str(r["prompt"])) + turns("assistant", str(r["chosen"])),
            "rejected": turns("assistant", str(r["rejected"])),
        }
        for r in preferred()
    ]
    record = reward(chat, parquet(tmp_path / "r.parquet", pairs), tmp_path / "reward", REWARD)
    assert number(record, "loss_after") < 0.2


@pytest.mark.parametrize("model", ["plain", "chat"])
def test_trl_is_given_the_ids_that_scoring_reads(
    model: str, request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import trl
    from transformers import AutoTokenizer

    seen: dict[str, list[dict[str, Any]]] = {}
    for name in ("SFTTrainer", "RewardTrainer"):

        class Spy(getattr(trl, name)):  # type: ignore[misc]
            def train(self, resume_from_checkpoint=None) -> Any:
                seen[type(self).__mro__[1].__name__] = self.train_dataset.to_list()
                return super().train()

        monkeypatch.setattr(trl, name, Spy)
    folder: Path = request.getfixturevalue(model)
    ids = AutoTokenizer.from_pretrained(folder)
    once = {"max_steps": 1, "eval_rows": 0}

    sft(folder, parquet(tmp_path / "s.parquet", answered(4)), tmp_path / "a", SFT.model_copy(update=once))
    reward(folder, parquet(tmp_path / "r.parquet", preferred(4)), tmp_path / "b", REWARD.model_copy(update=once))

    policy = [tokens.policy_ids(ids, str(r["prompt"]), str(r["response"]), 64) for r in answered(4)]
    assert [(s["input_ids"], s["labels"]) for s in seen["SFTTrainer"]] == [
        (before + after, [-100] * len(before) + after) for before, after in policy
    ]
    assert [(r["chosen_ids"], r["rejected_ids"]) for r in seen["RewardTrainer"]] == [
        tuple(tokens.reward_ids(ids, str(r["prompt"]), str(r[k]), 64) for k in ("chosen", "rejected"))
        for r in preferred(4)
    ]


def test_adapters_are_merged_into_a_plain_model_folder(plain: Path, tmp_path: Path) -> None:
    from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification

    adapters = {"lora": True, "learning_rate": 1e-2, "max_steps": 3, "eval_rows": 3}
    sft(plain, parquet(tmp_path / "s.parquet", answered()), tmp_path / "policy", SFTTraining(**adapters))
    record = reward(plain, parquet(tmp_path / "r.parquet", preferred()), tmp_path / "rm", RewardTraining(**adapters))

    before, after = (AutoModelForCausalLM.from_pretrained(f).state_dict() for f in (plain, tmp_path / "policy"))
    assert before.keys() == after.keys()
    changed = {name for name in before if not before[name].equal(after[name])}
    assert changed == {f"model.layers.{i}.self_attn.{p}_proj.weight" for i in (0, 1) for p in "qv"}
    rm = AutoModelForSequenceClassification.from_pretrained(tmp_path / "rm")
    assert rm.config.num_labels == 1
    assert number(record, "loss_after") != number(record, "loss_before")
    assert not list((tmp_path / "rm").glob("adapter*"))


def test_the_reward_head_is_trained_and_saved_beside_adapters(plain: Path, tmp_path: Path) -> None:
    config = RewardTraining(learning_rate=1e-2, num_train_epochs=3, eval_rows=3)
    record = reward(plain, parquet(tmp_path / "r.parquet", preferred()), tmp_path / "rm", config)
    scorer = SequenceClassifier(path=str(tmp_path / "rm")).load()
    scores = scorer.rewards(
        [str(r["prompt"]) for r in preferred()], [[str(r["chosen"]), str(r["rejected"])] for r in preferred()]
    )
    assert record["accuracy"] == 1.0
    assert all(a is not None and b is not None and a > b for a, b in scores)


@pytest.mark.parametrize(
    ("train", "config", "rows_of"), [(sft, SFTTraining, answered), (reward, RewardTraining, preferred)]
)
def test_the_adapters_dropout_is_trained_with(
    train: Any, config: Any, rows_of: Any, plain: Path, tmp_path: Path
) -> None:
    data = parquet(tmp_path / "d.parquet", rows_of())
    for dropout in (0.0, 0.5):
        train(plain, data, tmp_path / str(dropout), config(lora_dropout=dropout, learning_rate=1e-2, max_steps=2))
    assert identity(Origin(str(tmp_path / "0.0"))) != identity(Origin(str(tmp_path / "0.5")))


@pytest.mark.parametrize("lora", [True, False])
def test_two_runs_give_identical_weights_and_folders(lora: bool, plain: Path, tmp_path: Path) -> None:
    data = parquet(tmp_path / "r.parquet", preferred())
    config = RewardTraining(lora=lora, learning_rate=1e-3, max_steps=3)
    for out in ("one", "two"):
        reward(plain, data, tmp_path / out, config)
    files = {f.name: f.read_bytes() for f in (tmp_path / "one").iterdir()}
    assert files == {f.name: f.read_bytes() for f in (tmp_path / "two").iterdir()}
    assert identity(Origin(str(tmp_path / "one"))) == identity(Origin(str(tmp_path / "two")))


def test_a_finished_training_is_returned_and_another_one_refused(plain: Path, tmp_path: Path) -> None:
    data = parquet(tmp_path / "s.parquet", answered())
    config = SFT.model_copy(update={"max_steps": 1})
    record = sft(plain, data, tmp_path / "out", config)
    written = (tmp_path / "out/model.safetensors").stat().st_mtime_ns

    assert sft(plain, data, tmp_path / "out", config) == record
    assert (tmp_path / "out/model.safetensors").stat().st_mtime_ns == written
    with pytest.raises(TrainError, match=r"out holds a training with seed 0 instead of 1; give another folder"):
        sft(plain, data, tmp_path / "out", config.model_copy(update={"seed": 1}))
    with pytest.raises(TrainError, match="out holds a training with another tokens"):
        sft(plain, parquet(tmp_path / "t.parquet", answered(30)), tmp_path / "out", config)


def test_rows_that_do_not_fit_are_counted(plain: Path, tmp_path: Path) -> None:
    long = "Where is the cat? " * 40
    given: list[dict[str, object]] = [
        *answered(10),
        {"prompt": long, "response": "Here."},
        {"prompt": "Where?", "response": long},
    ]
    config = SFT.model_copy(update={"max_steps": 1, "eval_rows": 0})
    record = sft(plain, parquet(tmp_path / "s.parquet", given), tmp_path / "s", config)
    counted = [record[k] for k in ("rows", "rows_used", "rows_cut", "rows_skipped", "rows_held_out")]
    assert counted == [12, 11, 1, 1, 0]
    assert record["loss_before"] is record["loss_after"] is None


def test_preference_rows_that_do_not_fit_are_counted(plain: Path, tmp_path: Path) -> None:
    long = "Where is the cat? " * 40
    given: list[dict[str, object]] = [
        *preferred(4),
        {"prompt": long, "chosen": "Here.", "rejected": "There."},
        {"prompt": "Where?", "chosen": "Here.", "rejected": long},
    ]
    record = reward(
        plain, parquet(tmp_path / "r.parquet", given), tmp_path / "r", REWARD.model_copy(update={"max_steps": 1})
    )
    assert [record[k] for k in ("rows", "rows_used", "rows_cut", "rows_skipped", "rows_held_out")] == [6, 5, 1, 1, 0]
    assert [record[k] for k in ("loss_before", "loss_after", "accuracy_before", "accuracy")] == [None] * 4


def test_nothing_is_printed_but_progress(plain: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    sft(plain, parquet(tmp_path / "s.parquet", answered()), tmp_path / "s", SFT.model_copy(update={"max_steps": 2}))
    reward(
        plain, parquet(tmp_path / "r.parquet", preferred()), tmp_path / "r", REWARD.model_copy(update={"max_steps": 2})
    )
    out, err = capfd.readouterr()
    assert out == ""
    assert all(
        line.startswith(("sft:", "reward:", "tokenize:", "s: update ", "r: update ")) for line in err.splitlines()
    )


def test_rows_come_from_files_folders_and_datasets_alike(tmp_path: Path) -> None:
    from datasets import Dataset

    given = answered(6)
    expected = [TrainingRow(str(r["prompt"]), (str(r["response"]),)) for r in given]
    lines = tmp_path / "d.jsonl"
    lines.write_text("".join(json.dumps(r) + "\n" for r in given))
    shards = tmp_path / "split"
    shards.mkdir()
    parquet(shards / "00000.parquet", given[:3])
    parquet(shards / "00001.parquet", given[3:])
    wanted = [["completion", "response"]]
    sources = [lines, str(shards), shards / "../split", Dataset.from_list(given)]
    assert [rows(source, wanted) for source in sources] == [expected] * 4
    assert rows(Dataset.from_list(given).select([4, 1]), wanted) == [expected[4], expected[1]]


def test_what_stands_before_a_chats_last_turn_is_its_prompt(tmp_path: Path) -> None:
    before = turns("user", "Hello.") + turns("assistant", "Hello!") + turns("user", "Where is the cat?")
    good, bad = turns("assistant", "Here."), turns("assistant", "Who knows")
    chats = [
        (["completion", "response", "messages"], {"messages": before + good}),
        # As in UltraChat, where `prompt` is the first turn.
        (["completion", "response", "messages"], {"messages": before + good, "prompt": "Hello."}),
        (["completion", "response", "messages"], {"completion": before + good}),
    ]
    for names, row in chats:
        assert rows(parquet(tmp_path / "d.parquet", [row]), [names]) == [TrainingRow(before, ("Here.",))]
        assert rows(_write(tmp_path / "d.jsonl", json.dumps(row)), [names]) == [TrainingRow(before, ("Here.",))]
    pairs = [["chosen"], ["rejected"]]
    implicit = {"chosen": before + good, "rejected": before + bad}
    assert rows(parquet(tmp_path / "p.parquet", [implicit]), pairs) == [TrainingRow(before, ("Here.", "Who knows"))]
    with pytest.raises(
        TrainError, match=r"d.parquet, row 0: an answer in messages is one assistant turn after the prompt"
    ):
        rows(parquet(tmp_path / "d.parquet", [{"chosen": before + good, "rejected": before[:1] + bad}]), pairs)
    for chosen in (turns("assistant", "Here."), "Human: Where? Assistant: Here.", None):
        row = {"chosen": chosen, "rejected": chosen}
        with pytest.raises(
            TrainError, match="row 0: there is no column `prompt`, and `chosen` is no chat that begins with"
        ):
            rows(parquet(tmp_path / "d.parquet", [row]), pairs)


def test_a_held_out_prompt_is_never_trained_on() -> None:
    given = [TrainingRow(f"q{i % 20}", (f"a{i}",)) for i in range(100)]
    kept, out = held_out(given, 7, seed=1)
    assert sorted(kept + out) == sorted(given)
    assert 7 <= len(out) <= 10
    assert not {r.prompt for r in kept} & {r.prompt for r in out}


Break = Callable[[Path, Path], tuple[Any, Any, Any]]


def _write(path: Path, text: str) -> Path:
    path.write_text(text)
    return path


@pytest.mark.parametrize(
    ("train", "case", "message"),
    [
        (sft, lambda m, t: (m, t / "no.parquet", t / "o"), "no.parquet is not there; give a Parquet or JSONL file"),
        (sft, lambda m, t: (m, t, t / "o"), "holds no .parquet files; give the folder of one split"),
        (
            sft,
            lambda m, t: (m, parquet(t / "d.parquet", [{"prompt": "a", "text": "b"}]), t / "o"),
            "d.parquet has no column `completion` or `response` or `messages`; it has prompt, text: rename one of these",
        ),
        (
            reward,
            lambda m, t: (m, _write(t / "d.jsonl", '{"prompt": "a", "chosen": "b"}\n'), t / "o"),
            "d.jsonl, line 1 has no column `rejected`; it has prompt, chosen",
        ),
        (sft, lambda m, t: (m, _write(t / "d.jsonl", "{"), t / "o"), "d.jsonl, line 1: no JSON"),
        (sft, lambda m, t: (m, _write(t / "d.parquet", "x"), t / "o"), "d.parquet is no readable Parquet file"),
        (
            sft,
            lambda m, t: (m, parquet(t / "d.parquet", answered(1)[:0] or [{}]), t / "o"),
            "no column `completion` or ",
        ),
        (
            sft,
            lambda m, t: (m, _write(t / "d.jsonl", ""), t / "o"),
            "d.jsonl holds no rows; check the filter that made it",
        ),
        (
            sft,
            lambda m, t: (m, parquet(t / "d.parquet", [*answered(1), {"prompt": "a", "response": None}]), t / "o"),
            "d.parquet, row 1: an answer is neither text nor chat messages but null",
        ),
        (
            reward,
            lambda m, t: (
                m,
                parquet(
                    t / "d.parquet",
                    [{"prompt": "a", "chosen": turns("user", "b") + turns("assistant", "c"), "rejected": "d"}],
                ),
                t / "o",
            ),
            r"d.parquet, row 0: an answer in messages is one assistant turn after the prompt, not \(user, assistant\)",
        ),
        (
            sft,
            lambda m, t: (t / "gone", parquet(t / "d.parquet", answered(2)), t / "o"),
            "model folder .*gone is not there; give a folder that save_pretrained",
        ),
        (
            sft,
            lambda m, t: (start(t / "m", eos=False), parquet(t / "d.parquet", answered(2)), t / "o"),
            "the tokenizer of .* has no end-of-sequence token",
        ),
        (sft, lambda m, t: (m, parquet(t / "d.parquet", answered(2)), m), "model exists and is no finished training"),
        (
            reward,
            lambda m, t: (
                m,
                parquet(t / "d.parquet", [{"prompt": "a" * 999, "chosen": "b", "rejected": "c"}]),
                t / "o",
            ),
            "none of 1 prompts leaves room for an answer in 64 tokens; raise max_length",
        ),
    ],
)
def test_what_cannot_be_trained_is_refused_in_one_line(
    train: Callable[..., object], case: Break, message: str, plain: Path, tmp_path: Path
) -> None:
    model, data, out = case(plain, tmp_path)
    with pytest.raises(TrainError, match=message) as raised:
        train(model, data, out, SFT if train is sft else REWARD)
    assert "\n" not in str(raised.value)
    assert not (tmp_path / "o").exists()


def test_a_stopped_training_goes_on_from_its_checkpoint_to_the_same_weights(policy_folder, tmp_path, monkeypatch):
    data = parquet(tmp_path / "d.parquet", answered(24))
    config = SFT.model_copy(update={"max_steps": 9, "save_steps": 2, "logging_steps": 1, "eval_rows": 0})
    whole = sft(policy_folder, data, tmp_path / "whole", config)
    stop_after(5, monkeypatch, lambda: sft(policy_folder, data, tmp_path / "parts", config))
    left = tmp_path / "parts.training"
    # What was cut short while it was written is no checkpoint, and no line of the log.
    (left / "checkpoint-6").mkdir()
    with (left / "log.jsonl").open("a") as log:
        log.write('{"step": 6, "lo')
    assert sft(policy_folder, data, tmp_path / "parts", config) == whole
    assert not left.exists()
    for name in ("model.safetensors", "log.jsonl", "training.json"):
        assert (tmp_path / "parts" / name).read_bytes() == (tmp_path / "whole" / name).read_bytes()
    steps = [json.loads(line)["step"] for line in (tmp_path / "parts" / "log.jsonl").read_text().splitlines()]
    assert steps == list(range(1, 10))


@pytest.mark.parametrize("name", ["model.safetensors", "optimizer.pt", "trainer_state.json"])
def test_a_checkpoint_with_a_flipped_bit_is_dropped_for_the_one_before(
    name, policy_folder, tmp_path, monkeypatch, capfd
):
    data = parquet(tmp_path / "d.parquet", answered(24))
    config = SFT.model_copy(update={"max_steps": 5, "save_steps": 2, "logging_steps": 1, "eval_rows": 0})
    whole = sft(policy_folder, data, tmp_path / "whole", config)
    stop_after(5, monkeypatch, lambda: sft(policy_folder, data, tmp_path / "parts", config))
    file = tmp_path / "parts.training" / "checkpoint-4" / name
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 1
    file.write_bytes(content)
    assert sft(policy_folder, data, tmp_path / "parts", config) == whole
    for kept in ("model.safetensors", "log.jsonl", "training.json"):
        assert (tmp_path / "parts" / kept).read_bytes() == (tmp_path / "whole" / kept).read_bytes()
    assert "checkpoint-4 is half-written or damaged; going on without it" in capfd.readouterr().err


KILLED = """
import os, signal, sys
from seamcurate.train import SFTTraining, sft
model, data, out, options = sys.argv[1:]
replace = os.replace
os.replace = lambda a, b: os.kill(os.getpid(), signal.SIGKILL) if str(b) == out else replace(a, b)
sft(model, data, out, SFTTraining.model_validate_json(options))
"""


def test_what_a_kill_while_the_model_is_saved_leaves_is_gone_after_the_same_training(policy_folder, tmp_path):
    data = parquet(tmp_path / "d.parquet", answered(8))
    config = SFT.model_copy(update={"max_steps": 1, "eval_rows": 0})
    asked = [policy_folder, data, tmp_path / "out", config.model_dump_json()]
    killed = subprocess.run([sys.executable, "-c", KILLED, *map(str, asked)], timeout=120, check=False)
    assert killed.returncode == -signal.SIGKILL
    assert list(tmp_path.rglob("model.safetensors")) and not (tmp_path / "out").exists()
    sft(policy_folder, data, tmp_path / "out", config)
    assert sorted(one.name for one in tmp_path.iterdir()) == ["d.parquet", "out"]


def test_how_it_is_watched_decides_no_weights(policy_folder, tmp_path):
    data = parquet(tmp_path / "d.parquet", answered(8))
    config = SFT.model_copy(update={"max_steps": 1, "eval_rows": 0})
    done = sft(policy_folder, data, tmp_path / "out", config)
    watched = config.model_copy(update={"save_steps": 1, "logging_steps": 3, "tensorboard": True})
    assert sft(policy_folder, data, tmp_path / "out", watched) == done


def test_another_training_does_not_go_on_from_a_checkpoint(policy_folder, tmp_path, monkeypatch):
    from seamcurate.train.workplace import Workplace

    data = parquet(tmp_path / "d.parquet", answered(8))
    config = SFT.model_copy(update={"max_steps": 4, "save_steps": 1, "logging_steps": 1, "eval_rows": 0})
    stop_after(3, monkeypatch, lambda: sft(policy_folder, data, tmp_path / "out", config))
    with pytest.raises(
        TrainError, match="checkpoint-2 is of a training with seed 0 instead of 1; give another folder, or"
    ):
        sft(policy_folder, data, tmp_path / "out", config.model_copy(update={"seed": 1}))
    monkeypatch.setenv("WORLD_SIZE", "2")
    work = Workplace(tmp_path / "out")
    asked = json.loads((work.folder / "checkpoint-2/checkpoint.json").read_text())["inputs"]
    with pytest.raises(TrainError, match="checkpoint-2 is of a training with another number of processes"):
        work.begin({key: value for key, value in asked.items() if key != "number of processes"})


def test_a_folder_that_holds_something_else_is_no_place_for_checkpoints(policy_folder, tmp_path):
    (tmp_path / "out.training").mkdir()
    (tmp_path / "out.training/thesis.txt").write_text("x")
    with pytest.raises(TrainError, match=r"out\.training is needed for checkpoints and holds thesis\.txt; move it"):
        sft(policy_folder, parquet(tmp_path / "d.parquet", answered(2)), tmp_path / "out", SFT)
