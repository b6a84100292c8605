"""Outputs of a classifier by name and number; heads equal plain transformers' own, in one forward pass."""

from __future__ import annotations

import json

import pytest
import torch
from pydantic import ValidationError

from seamcurate import FakeModel, Recipe, SequenceClassifier, Source, Store, run_local, seam
from seamcurate.contrast import Retrieve
from seamcurate.errors import ModelError
from seamcurate.models import labels
from seamcurate.models.protocols import Rating

PROMPTS = ["how do I sort the list and then merge all of it", "open a file", "x"]
RESPONSES = [["use sort on list", "no", "use merge on queue then parse it carefully step 3"], ["open it"], []]
NAMES = {0: "helpfulness", 1: "correctness", 2: "LABEL_2"}


@pytest.fixture(scope="module", params=["decoder", "encoder"])
def heads(request, tmp_path_factory):
    """A tiny classifier with three outputs, the last of them without a name."""
    from transformers import AutoModelForSequenceClassification, AutoTokenizer

    source = request.getfixturevalue(f"{request.param}_reward_folder")
    folder = tmp_path_factory.mktemp("heads")
    torch.manual_seed(3)
    AutoModelForSequenceClassification.from_pretrained(
        source, num_labels=3, id2label=NAMES, label2id={v: k for k, v in NAMES.items()}, ignore_mismatched_sizes=True
    ).save_pretrained(folder)
    AutoTokenizer.from_pretrained(source).save_pretrained(folder)
    return folder


def by_hand(folder, config):
    """Every output of every answer, one plain call each: rows × answers × outputs."""
    from transformers import AutoModelForSequenceClassification

    model, loaded = AutoModelForSequenceClassification.from_pretrained(folder).eval(), config.load()
    with torch.no_grad():
        return [
            [model(torch.tensor([loaded._ids(prompt, answer)])).logits[0].tolist() for answer in answers]
            for prompt, answers in zip(PROMPTS, RESPONSES, strict=True)
        ]


def test_outputs_equal_plain_transformers_in_one_forward_pass(heads):
    config = SequenceClassifier(path=str(heads), dtype="float32", output="correctness", outputs="all")
    expected = by_hand(heads, config)
    loaded, passes = config.load(), []
    body = loaded.reader.body if loaded.reader else loaded.unpadded[0].body if loaded.unpadded else loaded.model
    body.register_forward_pre_hook(lambda *_: passes.append(1))
    rated = loaded.ratings(PROMPTS, RESPONSES, {})
    assert len(passes) == 1
    for row, plain in zip(rated, expected, strict=True):
        assert [rating.reward for rating in row] == pytest.approx([values[1] for values in plain], abs=1e-4)
        for rating, values in zip(row, plain, strict=True):
            assert rating.outputs == pytest.approx(values, abs=1e-4)
    assert loaded.rewards(PROMPTS, RESPONSES) == [[rating.reward for rating in row] for row in rated]
    # By number, in another order, and without further outputs.
    numbered = SequenceClassifier(path=str(heads), dtype="float32", output=1, outputs=("2", "helpfulness"))
    assert numbered.output_names() == ("2", "helpfulness")
    for row, plain in zip(numbered.load().ratings(PROMPTS, RESPONSES, {}), expected, strict=True):
        for rating, values in zip(row, plain, strict=True):
            assert (rating.reward, *rating.outputs) == pytest.approx([values[1], values[2], values[0]], abs=1e-4)


def test_an_answer_without_a_reward_has_no_outputs_either(heads):
    config = SequenceClassifier(path=str(heads), output=0, outputs="all")
    ((rating,),) = config.load().ratings(["sort " * 400], [["a"]], {})
    assert rating == Rating(None, None, (None, None, None))


def test_what_names_an_output_does_not_change_the_fingerprint(heads):
    def identity(**settings):
        return SequenceClassifier(path=str(heads), **settings).identity()

    assert identity(output="correctness") == identity(output=1) == identity(output="LABEL_1")
    assert identity(output=0) != identity(output=1)
    assert identity(output=0, outputs="all") == identity(output=0, outputs=(0, 1, 2)) != identity(output=0)
    assert "outputs" not in identity(output=0)


def test_a_model_with_one_output_keeps_its_fingerprint(decoder_reward_folder):
    identity = SequenceClassifier(path=str(decoder_reward_folder)).identity()
    assert not {"output", "outputs"} & identity.keys()
    config = SequenceClassifier(path=str(decoder_reward_folder), outputs="all")
    ((rating,),) = config.load().ratings(["x"], [["no"]], {})
    assert config.output_names() == ("0",) and rating.outputs == (rating.reward,)


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({}, "has 3 outputs; a reward model has one: name it by `output`, one of: helpfulness, correctness, 2$"),
        ({"output": "helpfulnes"}, "has no output helpfulnes; it has: .*, 2; did you mean `helpfulness`?"),
        ({"output": 3}, "has no output 3; it has: helpfulness, correctness, 2$"),
        ({"output": 0, "outputs": (0, "helpfulness")}, "outputs names helpfulness twice; name each output once$"),
        ({"output": 0, "outputs": ("style",)}, "has no output style; it has: "),
        ({"outputs": "all"}, "has 3 outputs; a reward model has one"),
    ],
)
def test_an_output_that_does_not_exist_is_refused_before_weights_are_read(heads, settings, said, monkeypatch):
    config = SequenceClassifier(path=str(heads), **settings)
    monkeypatch.setattr(SequenceClassifier, "open_weights", lambda *_: pytest.fail("weights were read"))
    with pytest.raises(ModelError, match=said) as refused:
        config.identity()
    assert "\n" not in str(refused.value) and str(heads) in str(refused.value)


@pytest.mark.parametrize("settings", [{"output": True}, {"output": -1}, {"output": 1.0}, {"outputs": "helpfulness"}])
def test_what_is_neither_name_nor_number_is_refused(settings):
    with pytest.raises(ValidationError):
        SequenceClassifier(path="org/rm", **settings)


def test_two_labels_that_transformers_does_not_write_down_are_two_outputs(encoder_reward_folder, tmp_path):
    from transformers import AutoModelForSequenceClassification, AutoTokenizer

    AutoModelForSequenceClassification.from_pretrained(
        encoder_reward_folder, num_labels=2, ignore_mismatched_sizes=True
    ).save_pretrained(tmp_path)
    AutoTokenizer.from_pretrained(encoder_reward_folder).save_pretrained(tmp_path)
    assert not labels.are_told(json.loads((tmp_path / "config.json").read_text()))
    config = SequenceClassifier(path=str(tmp_path))
    assert config.labels() == ("0", "1")
    with pytest.raises(ModelError, match=r"has 2 outputs; a reward model has one: name it by `output`, one of: 0, 1$"):
        config.load()
    assert len(SequenceClassifier(path=str(tmp_path), output=1).load().rewards(["x"], [["no"]])[0]) == 1


def test_a_number_in_quotes_is_a_name_where_an_output_has_it():
    stars = labels.names_of({"id2label": {"0": "1", "1": "2", "2": "3"}})
    assert [labels.index_of(named, stars, "m") for named in (1, "1", "3", "LABEL_2")] == [1, 0, 2, 1]


@pytest.mark.parametrize(
    "configuration",
    [
        {"id2label": {"0": "a", "2": "b"}},
        {"id2label": {"0": "a", "1": "b"}, "num_labels": 5},
        {"label2id": {"a": 0, "b": 0}, "num_labels": 2},
        {"num_labels": 2},
        {"id2label": None},
    ],
)
def test_labels_that_do_not_count_up_are_numbers(configuration):
    expected = ("a", "b") if configuration.get("num_labels") == 5 else ("0", "1")
    assert labels.names_of(configuration) == expected


def test_many_names_are_listed_in_part():
    with pytest.raises(ModelError, match=r"it has: 0, 1, .*, 11, … \(988 more\)"):
        labels.index_of(1000, labels.numbered(1000), "m")


def test_a_seam_run_has_a_column_for_each_output(heads, tmp_path):
    rows = [{"prompt": f"sort the list {i}", "response": f"use sort {i}"} for i in range(12)]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    reward = SequenceClassifier(path=str(heads), dtype="float32", output="helpfulness", outputs=("correctness", 2))
    recipe = Recipe(
        rows=Source(jsonl=str(tmp_path / "rows.jsonl"), shard_rows=4),
        corpus=Source(jsonl=str(tmp_path / "rows.jsonl")),
        steps=(
            Retrieve(k=2, band=(-1, 1), encoder=FakeModel()),
            *seam("contrast", reward=reward, policy=FakeModel(), k=2),
        ),
    )
    run_local(recipe, tmp_path / "store")
    store = Store(tmp_path / "store").open()
    columns = ["reward_correctness", "reward_2", "rewards_correctness_contrast", "rewards_2_contrast"]
    values = store.table(0, ["prompt", "response", "reward", "rewards_contrast", *columns]).to_pylist()
    config = SequenceClassifier(path=str(heads), dtype="float32", output="correctness")
    expected = config.load().rewards([row["prompt"] for row in values], [[row["response"]] for row in values])
    assert [[row["reward_correctness"]] for row in values] == [pytest.approx(row, abs=1e-4) for row in expected]
    assert {len(row[name]) for row in values for name in columns[2:]} == {2}
    noise = store.facts("reward")["noise"] | store.facts("rewards_contrast")["noise"]
    assert noise.keys() == {"reward", "rewards_contrast", *columns}
