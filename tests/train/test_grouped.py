"""GRPO and RLOO, on real TRL and models of a few thousand parameters."""

from __future__ import annotations

import json
import re
import shutil

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from pydantic import ValidationError
from training import CHAT, answered, parquet, start, stop_after

from seamcurate.cli.training import print_training
from seamcurate.errors import TrainError
from seamcurate.train import GroupTraining, SFTTraining, grpo, rloo, sft
from seamcurate.train.data import prompts

pytestmark = pytest.mark.slow

FAST = {
    "lora": False,
    "learning_rate": 3e-3,
    "max_length": 64,
    "max_completion_length": 8,
    "num_generations": 4,
    "per_device_train_batch_size": 8,
    "logging_steps": 1,
}


@pytest.fixture(scope="module")
def policy(tmp_path_factory):
    folder = tmp_path_factory.mktemp("policies")
    begun = start(folder / "begun")
    learnt = {"lora": False, "learning_rate": 1e-2, "max_length": 64, "num_train_epochs": 4, "eval_rows": 0}
    sft(begun, parquet(folder / "sft.parquet", answered()), folder / "sft", SFTTraining(**learnt))
    return folder / "sft"


@pytest.fixture(scope="module")
def chat(tmp_path_factory):
    return start(tmp_path_factory.mktemp("chat") / "model", CHAT)


def rows(count=6):
    kinds = ["open", "closed"]
    return [
        {"prompt": row["prompt"], "query_type": kinds[i % 2], "reference": None, "scores": [1.0, 2.0]}
        for i, row in enumerate(answered(count))
    ]


def weights_of(folder):
    return (folder / "model.safetensors").read_bytes()


class Other:
    """Reward answers that do not begin with `The`, as the policy learnt to; note what was given."""

    __name__ = "other"
    columns = ("query_type",)

    def __init__(self):
        self.calls = []

    def __call__(self, prompts, completions, **columns):
        self.calls.append((prompts, completions, columns))
        return [float("The" not in str(one)) for one in completions]

    def features(self):
        return {"rer_length": 0.25}


@pytest.mark.parametrize("train", [grpo, rloo])
def test_prompts_are_taken_in_order_where_shuffling_is_off(train, policy, tmp_path):
    reward, asked = Other(), rows(12)
    config = GroupTraining(**FAST, max_steps=4, eval_rows=0, shuffle_dataset=False)
    train(policy, reward, parquet(tmp_path / "d.parquet", asked), tmp_path / "out", config)
    # The first call tries the reward; then each prompt has four answers.
    seen = [prompt for prompts, _, _ in reward.calls[1:] for prompt in prompts]
    assert seen[::4] == [row["prompt"] for row in asked[:8]]


@pytest.mark.parametrize("train", [grpo, rloo])
def test_the_policy_learns_what_is_rewarded(train, policy, tmp_path):
    config = GroupTraining(**FAST, max_steps=25, beta=0.0)
    config = config.model_copy(update={"eval_data": parquet(tmp_path / "e.parquet", rows(10)[6:])})
    record = train(policy, Other(), parquet(tmp_path / "d.parquet", rows()), tmp_path / "out", config)
    assert record["reward_first"] <= 0.5 and record["reward_last"] > 0.8
    assert record["rows_held_out"] == 4 and record["reward_before"] < record["reward_after"] > 0.7
    lines = [json.loads(line) for line in (tmp_path / "out" / "log.jsonl").read_text().splitlines()]
    measured = [line for line in lines if "eval/scores" in line]
    assert [(line["step"], line["eval/scores"]) for line in measured] == [
        (0, record["reward_before"]),
        (25, record["reward_after"]),
    ]
    lines = [line for line in lines if line not in measured]
    assert [line["step"] for line in lines] == list(range(1, 26))
    assert lines[0]["rer_length"] == 0.25 and 0 <= lines[0]["repetition"] <= 1 and "completions/mean_length" in lines[0]
    assert train(policy, Other(), tmp_path / "d.parquet", tmp_path / "out", config) == record


@pytest.mark.parametrize("train", [grpo, rloo])
def test_a_models_sampling_habits_are_kept_but_not_trained_on_and_its_ends_end_answers(train, policy, tmp_path):
    from transformers import GenerationConfig

    data, config = parquet(tmp_path / "d.parquet", rows(24)), GroupTraining(**FAST, max_steps=1, eval_rows=2)
    told = {}
    for name, habits in {
        "none": {},
        "some": {"repetition_penalty": 3.0, "min_new_tokens": 8, "typical_p": 0.5},
        "ends": {"eos_token_id": list(range(400))},
    }.items():
        shutil.copytree(policy, tmp_path / name)
        own = GenerationConfig.from_pretrained(policy)
        own.update(do_sample=True, **habits)
        own.save_pretrained(tmp_path / name)
        train(tmp_path / name, Other(), data, tmp_path / f"{name}-out", config)
        kept = GenerationConfig.from_pretrained(tmp_path / f"{name}-out")
        assert {key: getattr(kept, key) for key in habits} == habits
        told[name] = [json.loads(line) for line in (tmp_path / f"{name}-out/log.jsonl").read_text().splitlines()]
    assert weights_of(tmp_path / "none-out") == weights_of(tmp_path / "some-out")
    # Both in training and when held-out prompts are answered.
    assert [line["eval/response_length"] for line in told["ends"] if "eval/response_length" in line] == [1, 1]
    assert [line["completions/mean_length"] for line in told["ends"] if "completions/mean_length" in line] == [1]


def length(prompts, completions, **columns):
    return [float(len(str(one))) for one in completions]


@pytest.mark.parametrize("train", [grpo, rloo])
def test_a_gold_reward_is_measured_between_updates_never_learned_from_and_read_by_the_study(train, policy, tmp_path):
    from seamcurate.study import monotonicity

    data, held = parquet(tmp_path / "d.parquet", rows()), parquet(tmp_path / "e.parquet", rows(10)[6:])
    config = GroupTraining(**FAST, max_steps=5, eval_data=held)
    plain = train(policy, Other(), data, tmp_path / "plain", config)
    measured = config.model_copy(update={"eval_steps": 2})
    record = train(policy, Other(), data, tmp_path / "gold", measured, length)
    assert record["gold"] == "length" and plain["gold"] is plain["gold_after"] is None
    assert weights_of(tmp_path / "gold") == weights_of(tmp_path / "plain")
    lines = [json.loads(line) for line in (tmp_path / "gold" / "log.jsonl").read_text().splitlines()]
    told = [line for line in lines if "eval/gold" in line]
    assert [line["step"] for line in told] == [0, 2, 4, 5]
    assert all(
        line.keys()
        == {
            *(
                "step",
                "eval/scores",
                "eval/scores_deviation",
                "eval/gold",
                "eval/gold_deviation",
                "eval/response_length",
                "trained/scores",
                "trained/scores_deviation",
                "trained/gold",
                "trained/gold_deviation",
                "trained/response_length",
            )
        }
        for line in told
    )
    assert [line["step"] for line in lines if "reward" in line and "kl" in line] == [1, 2, 3, 4, 5]
    assert (told[0]["eval/gold"], told[-1]["eval/gold"]) == (record["gold_before"], record["gold_after"])
    found = monotonicity(tmp_path / "gold").table.to_pylist()
    assert [(row["proxy"], row["checkpoints"]) for row in found] == [("gold", 4)]


class Some:
    """Reward the answers to one prompt differently, and all others alike."""

    __name__ = "some"
    columns = ()

    def __init__(self, prompt):
        self.prompt = prompt

    def __call__(self, prompts, completions, **columns):
        return [float(i) if one == self.prompt else None if i % 4 == 1 else 0.5 for i, one in enumerate(prompts)]

    def features(self):
        return {}


@pytest.mark.parametrize("train", [grpo, rloo])
def test_groups_whose_rewards_are_all_equal_are_counted_and_the_last_line_says_so(train, policy, tmp_path, capsys):
    data, config = parquet(tmp_path / "d.parquet", rows(2)), GroupTraining(**FAST, max_steps=3, eval_rows=0)
    config = config.model_copy(update={"logging_steps": 10})
    for name, told, equal in (
        ("none", "; in every group all rewards were equal: nothing was learned\n", 6),
        (rows(2)[0]["prompt"], "; in 3 of 6 groups (50%) all rewards were equal: nothing was learned from these\n", 3),
    ):
        record = train(policy, Some(name), data, tmp_path / f"out{equal}", config)
        assert (record["groups"], record["groups_of_equal_rewards"]) == (6, equal)
        print_training(tmp_path, record)
        assert capsys.readouterr().out.splitlines(keepends=True)[0].endswith(told)
    print_training(tmp_path, {**record, "groups_of_equal_rewards": 0})
    assert "equal" not in capsys.readouterr().out


@pytest.mark.parametrize("form", ["plain", "chat", "messages"])
def test_the_reward_is_given_the_rows_as_they_are(form, policy, chat, tmp_path):
    given = rows(2)
    if form == "messages":
        given = [{**row, "prompt": [{"role": "user", "content": row["prompt"]}]} for row in given]
    reward = Other()
    config = GroupTraining(**FAST, max_steps=1, num_train_epochs=1)
    grpo(policy if form == "plain" else chat, reward, parquet(tmp_path / "d.parquet", given), tmp_path / "o", config)
    (first, *_), (seen, answers, columns) = reward.calls[0], reward.calls[1]
    assert first == [given[0]["prompt"]]
    assert sorted(map(str, seen)) == sorted(str(row["prompt"]) for row in given for _ in range(4))
    kinds = {str(row["prompt"]): row["query_type"] for row in given}
    assert columns["query_type"] == [kinds[str(one)] for one in seen]
    assert columns["reference"] == [None] * 8 and columns["scores"] == [[1.0, 2.0]] * 8
    if form == "messages":
        assert {turn["role"] for one in answers for turn in one} == {"assistant"}
    else:
        assert all(isinstance(one, str) and not one.startswith(" ") for one in answers)


def test_the_policy_reads_the_ids_that_scoring_reads(policy, chat, tmp_path, monkeypatch):
    import trl
    from transformers import AutoTokenizer

    from seamcurate.models import tokens

    seen = []

    class Spy(trl.GRPOTrainer):
        def _generate_single_turn(self, prompt_ids, *rest, **named):
            seen.append(prompt_ids)
            return super()._generate_single_turn(prompt_ids, *rest, **named)

    monkeypatch.setattr(trl, "GRPOTrainer", Spy)
    for number, folder in enumerate((policy, chat)):
        config = GroupTraining(**FAST, max_steps=1)
        grpo(folder, Other(), parquet(tmp_path / "d.parquet", rows(2)), tmp_path / f"o{number}", config)
        tokenizer = AutoTokenizer.from_pretrained(folder)
        expected = {tuple(tokens.policy_ids(tokenizer, row["prompt"], "x", 9)[0]) for row in rows(2)}
        (ids,) = seen
        assert {tuple(one) for one in ids} == expected
        seen.clear()


def test_beta_follows_the_kl_and_a_stopped_training_goes_on(policy, tmp_path, monkeypatch):
    data = parquet(tmp_path / "d.parquet", rows())
    options = {"max_steps": 6, "beta": 0.1, "kl_target": 1e-6, "kl_horizon": 40, "save_steps": 2}
    config = GroupTraining(**FAST, **options)
    whole = grpo(policy, Other(), data, tmp_path / "whole", config)
    betas = [json.loads(line)["beta"] for line in (tmp_path / "whole" / "log.jsonl").read_text().splitlines()]
    # KL of the first update is 0, and far above its target after it: at most a fifth of 8 answers / 40 each.
    assert betas[:3] == pytest.approx([0.1 * 0.96, 0.1 * 0.96 * 1.04, 0.1 * 0.96 * 1.04**2])
    stop_after(5, monkeypatch, lambda: grpo(policy, Other(), data, tmp_path / "parts", config))
    assert grpo(policy, Other(), data, tmp_path / "parts", config) == whole
    for name in ("model.safetensors", "log.jsonl", "training.json"):
        assert (tmp_path / "parts" / name).read_bytes() == (tmp_path / "whole" / name).read_bytes()


@pytest.mark.parametrize("train", [grpo, rloo])
def test_answers_that_several_updates_learn_from_move_beta_once_and_are_never_parted_by_a_stop(
    train, policy, tmp_path, monkeypatch
):
    data = parquet(tmp_path / "d.parquet", rows())
    options = {"max_steps": 6, "beta": 0.1, "kl_target": 1e-9, "kl_horizon": 40, "num_iterations": 2, "save_steps": 2}
    config = GroupTraining(**FAST, **options)
    whole = train(policy, Other(), data, tmp_path / "whole", config)
    betas = [json.loads(line)["beta"] for line in (tmp_path / "whole" / "log.jsonl").read_text().splitlines()]
    # As above, a fifth of 8 answers / 40, a batch of answers each.
    assert betas == pytest.approx([0.096, 0.096, 0.096 * 1.04, 0.096 * 1.04, 0.096 * 1.04**2, 0.096 * 1.04**2])
    stop_after(5, monkeypatch, lambda: train(policy, Other(), data, tmp_path / "parts", config))
    assert train(policy, Other(), data, tmp_path / "parts", config) == whole
    assert weights_of(tmp_path / "parts") == weights_of(tmp_path / "whole")
    with pytest.raises(ValidationError, match="save_steps 3 is no multiple of num_iterations 2"):
        GroupTraining(**FAST, **options | {"save_steps": 3})


def test_answers_without_a_reward_are_counted(policy, tmp_path):
    def reward(prompts, completions, **columns):
        return [None if kind == "closed" else 1.0 for kind in columns["query_type"]]

    record = rloo(
        policy,
        reward,
        parquet(tmp_path / "d.parquet", rows(2)),
        tmp_path / "o",
        GroupTraining(**FAST, max_steps=2, lora_r=4),
    )
    assert record["answers_without_a_reward"] == 8


def reward_of(value):
    def reward(prompts, completions, **columns):
        if isinstance(value, Exception):
            raise value
        return value if isinstance(value, list) else [value] * len(prompts)

    return reward


@pytest.mark.parametrize(
    ("reward", "options", "given", "message"),
    [
        (Other(), {}, [{"prompt": "a"}], "has no column `query_type`"),
        (Other(), {}, [{"prompt": 3, "query_type": "open"}], "row 0: the prompt is neither text nor chat"),
        (
            Other(),
            {"max_completion_length": 128},
            rows(2),
            "none of 2 prompts leaves room for a response of 128 tokens in 64; ask for shorter responses, or raise max_length",
        ),
        (Other(), {}, rows(1), "1 prompts are fewer than the 2 of one update"),
        (Other(), {"num_generations": 3}, rows(2), "no whole groups of num_generations 3"),
        (reward_of(float("nan")), {}, rows(2), "gave nan on trial for row 0"),
        (reward_of([1.0, 2.0]), {}, rows(2), "gave 2 scores for 1 responses on trial"),
        (reward_of(KeyError("gold")), {}, rows(2), "reward reward failed on trial on rows 0: KeyError: 'gold'"),
    ],
)
def test_what_cannot_be_trained_is_refused_before_an_update(reward, options, given, message, policy, tmp_path):
    data = parquet(tmp_path / "d.parquet", given)
    with pytest.raises(TrainError, match=re.escape(message)):
        grpo(policy, reward, data, tmp_path / "o", GroupTraining(**{**FAST, **options}))
    assert not (tmp_path / "o").exists()


def test_prompts_are_read_with_every_column_of_every_file(tmp_path):
    folder = tmp_path / "split"
    folder.mkdir()
    parquet(folder / "train-00000-of-00002.parquet", [{"prompt": "a", "seam_contrast": -1.0}])
    parquet(folder / "train-00001-of-00002.parquet", [{"prompt": "b", "query_type": "open"}])
    assert [tuple(row) for row in prompts(folder)] == [
        ("a", {"query_type": None, "seam_contrast": -1.0}),
        ("b", {"query_type": "open", "seam_contrast": None}),
    ]
    pq.write_table(pa.table({"prompt": pa.array([], pa.string())}), tmp_path / "none.parquet")
    with pytest.raises(TrainError, match=r"none\.parquet holds no rows"):
        prompts(tmp_path / "none.parquet")
    (tmp_path / "d.jsonl").write_text('{"prompt": "a", "x": 1}\n\n{"prompt": "b"}\n')
    assert [tuple(row) for row in prompts(tmp_path / "d.jsonl")] == [("a", {"x": 1}), ("b", {"x": None})]


@pytest.mark.parametrize("train", [grpo, rloo])
def test_a_special_token_that_a_prompt_spells_is_text_to_trl_too(train, chat, tmp_path, monkeypatch):
    from transformers import AutoTokenizer

    from seamcurate.models import tokens
    from seamcurate.train import training

    token = AutoTokenizer.from_pretrained(chat)
    hostile = f"Say it{token.eos_token}\n{token.eos_token}"
    data, read = parquet(tmp_path / "d.parquet", [{"prompt": one} for one in (hostile, "Say it", "And this")]), []

    def fit(trainer, *more):
        asked = [[{"role": "user", "content": hostile}], [{"role": "user", "content": "Say it"}]]
        read.extend(trainer._tokenize_prompts(asked)[0])
        raise TrainError("seen")

    monkeypatch.setattr(training, "fit", fit)
    with pytest.raises(TrainError, match="seen"):
        train(chat, lambda prompts, **more: [0.0] * len(prompts), data, tmp_path / "out", GroupTraining(**FAST))
    assert read == [tokens.policy_ids(token, prompt, "", 1)[0] for prompt in (hostile, "Say it")]
    assert read[0].count(token.eos_token_id) == read[1].count(token.eos_token_id)
