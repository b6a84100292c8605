"""Augmentation, held against the same pairs picked by hand from the store, and trained on by the real trainers."""

from __future__ import annotations

import json
from pathlib import Path

import pyarrow.parquet as pq
import pytest
from conftest import questions
from datasets import load_dataset

from seamcurate import FakeModel, Generate, Models, Recipe, Retrieve, Source, Split, Store, run_local, seam
from seamcurate import recipe as recipes
from seamcurate import split as splits
from seamcurate.errors import ExportError, RecipeError
from seamcurate.export import export, to_augmented
from seamcurate.split import Augment

ALL = Split(filter="SELECT row_id FROM rows")
PROVENANCE = ["row_id", "source_row_id", "variant", "rank", "similarity", "kind"]


@pytest.fixture
def store(recipe, tmp_path):
    """Forty rows, not all of which have neighbours."""
    steps = (Retrieve(k=5, band=(0.5, 0.9)), *seam("contrast", k=5))
    lowest = (Path(__file__).parents[1] / "recipes" / "lowest.sql").read_text()
    made = {"train": ALL, "lowest": Split(filter=lowest, by="seam_contrast", rate=0.2)}
    run_local(recipe(steps=steps, splits=made), tmp_path / "store")
    return Store(tmp_path / "store").open()


def table(folder):
    return [row for file in sorted(Path(folder).glob("*.parquet")) for row in pq.read_table(file).to_pylist()]


def source(store):
    """The rows with their candidates, and the corpus's prompts by id."""
    rows = [row for part in store.rows(["prompt", "response", "worse_contrast"]) for row in part.to_pylist()]
    corpus = {row["row_id"]: row["prompt"] for part in store.corpus(["prompt"]) for row in part.to_pylist()}
    return rows, corpus


def dropped(folder):
    return {
        (row["row_id"], row["data"]): row["reason"] for row in pq.read_table(folder / "dropped.parquet").to_pylist()
    }


def test_pairs_are_a_rows_nearest_neighbours_with_where_they_come_from(store, tmp_path):
    sft, preferences = to_augmented(store, "train", tmp_path / "out", Augment(samples=2))
    rows, corpus = source(store)
    taken, expected_sft, expected_preferences = set(), [], []
    for row in rows:
        named = [(rank, c) for rank, c in enumerate(row["worse_contrast"], 1)]
        fresh = [(rank, c) for rank, c in named if c["source_row_id"] not in taken][:2]
        taken |= {c["source_row_id"] for _, c in fresh}
        made = [
            (
                row["row_id"],
                c["source_row_id"],
                "contrast",
                rank,
                c["similarity"],
                corpus[c["source_row_id"]],
                c["response"],
            )
            for rank, c in fresh
        ]
        expected_sft += made
        expected_preferences += [
            (row["row_id"], c["source_row_id"], rank, row["prompt"], row["response"], c["response"])
            for rank, c in named[:2]
        ]
    got = table(sft.folder)
    names = [*PROVENANCE[:5], "prompt", "completion"]
    assert [tuple(line[n] for n in names) for line in got] == expected_sft and {line["kind"] for line in got} == {"sft"}
    got = table(preferences.folder)
    names = ["row_id", "source_row_id", "rank", "prompt", "chosen", "rejected"]
    assert [tuple(line[n] for n in names) for line in got] == expected_preferences
    assert {line["kind"] for line in got} == {"golden"}
    assert sft.columns == ["prompt", "completion", *PROVENANCE]
    assert preferences.columns == ["prompt", "chosen", "rejected", *PROVENANCE]
    assert (sft.rows, preferences.rows) == (len(expected_sft), len(expected_preferences)) and sft.rows > 10


def test_every_row_gives_pairs_or_is_told_of_with_its_reason(store, tmp_path):
    done = to_augmented(store, "train", tmp_path / "out")
    reasons, (rows, _) = dropped(tmp_path / "out"), source(store)
    for one in done:
        data = one.folder.name
        giving = {line["row_id"] for line in table(one.folder)}
        silent = {row_id for row_id, kind in reasons if kind == data}
        assert giving | silent == {row["row_id"] for row in rows} and not giving & silent
        counted = sum(int(part.split()[0]) for part in one.note.split("; ")[1:])
        assert one.note.startswith("of 40 rows") and counted == len(silent)
    none = {row["row_id"] for row in rows if not row["worse_contrast"]}
    assert {i for (i, kind), why in reasons.items() if kind == "preferences" and why == "it has no candidate"} == none


def test_only_the_rows_the_split_keeps_are_augmented(store, tmp_path):
    to_augmented(store, "lowest", tmp_path / "out")
    kept = {i for part in splits.kept(store, "lowest", []) for i in part["row_id"].to_pylist()}
    given = {line["row_id"] for line in table(tmp_path / "out" / "preferences")}
    assert 0 < len(kept) < 40 and given <= kept
    assert given | {i for i, _ in dropped(tmp_path / "out")} == kept


def test_both_kinds_of_preference_and_trainers_names(store, tmp_path):
    sft, preferences = to_augmented(store, "train", tmp_path / "out", Augment(samples=1, pairs="both"), "openrlhf")
    assert sft.columns[:2] == ["input", "output"] and preferences.columns[:3] == ["prompt", "chosen", "rejected"]
    lines, (_, corpus) = table(preferences.folder), source(store)
    golden, neighbour = lines[::2], lines[1::2]
    assert {line["kind"] for line in golden} == {"golden"} and {line["kind"] for line in neighbour} == {"neighbour"}
    for one, other in zip(golden, neighbour, strict=True):
        assert (other["chosen"], other["rejected"]) == (one["rejected"], one["chosen"])
        assert other["prompt"] == corpus[other["source_row_id"]]
    with pytest.raises(ExportError, match="verl trains from prompts"):
        to_augmented(store, "train", tmp_path / "verl", to="verl")


def test_no_evaluation_question_ever_comes_out(store, tmp_path):
    rows, corpus = source(store)
    row = next(row for row in rows if len(row["worse_contrast"]) > 1)
    first = row["worse_contrast"][0]["source_row_id"]
    other = next(one for one in rows if one["worse_contrast"] and one["row_id"] != row["row_id"])
    held = [corpus[first].upper() + " ", "  " + other["prompt"].replace(" ", "\n"), "never asked"]
    (tmp_path / "held.jsonl").write_text("".join(json.dumps({"question": text}) + "\n" for text in held))
    evaluation = Source(jsonl=str(tmp_path / "held.jsonl"), prompt="question")
    to_augmented(store, "train", tmp_path / "out", Augment(evaluation=evaluation, pairs="both"))
    lines = table(tmp_path / "out" / "sft") + table(tmp_path / "out" / "preferences")
    folded = {" ".join(text.casefold().split()) for text in held}
    assert not [line for line in lines if " ".join(line["prompt"].casefold().split()) in folded]
    assert first not in {line["source_row_id"] for line in lines}
    reasons = dropped(tmp_path / "out")
    for data in ("sft", "preferences"):
        assert reasons[other["row_id"], data] == "its question is an evaluation question"
    everything = [{"question": text} for text in corpus.values()]
    (tmp_path / "held.jsonl").write_text("".join(json.dumps(line) + "\n" for line in everything))
    with pytest.raises(ExportError, match="all its candidates answer evaluation questions"):
        to_augmented(store, "train", tmp_path / "none", Augment(evaluation=evaluation))
    assert not (tmp_path / "none").exists()


def test_the_last_turn_of_a_chat_is_held_against_the_evaluation_too(recipe, tmp_path):
    lines = [
        {
            "prompt": [
                {"role": "system", "content": "be brief"},
                {"role": "user", "content": one["prompt"]},
            ],
            "response": one["response"],
        }
        for one in questions(3)
    ]
    (tmp_path / "chat.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    rows = Source(jsonl=str(tmp_path / "chat.jsonl"), response="response")
    run_local(recipe(rows=rows, steps=(Retrieve(k=3, band=(0.3, 0.95)),), splits={"train": ALL}), tmp_path / "chat")
    store = Store(tmp_path / "chat").open()
    (tmp_path / "held.jsonl").write_text(json.dumps({"prompt": lines[0]["prompt"][1]["content"]}))
    to_augmented(store, "train", tmp_path / "out", Augment(evaluation=Source(jsonl=str(tmp_path / "held.jsonl"))))
    assert dropped(tmp_path / "out")[0, "sft"] == "its question is an evaluation question"
    sft, preferences = table(tmp_path / "out" / "sft"), table(tmp_path / "out" / "preferences")
    assert {line["row_id"] for line in sft} == {line["row_id"] for line in preferences} == {1, 2}
    assert [turn["role"] for turn in sft[0]["prompt"]] == ["user"]
    assert [turn["role"] for turn in preferences[0]["prompt"]] == ["system", "user"]
    assert preferences[0]["chosen"] == [{"role": "assistant", "content": lines[1]["response"]}]


def test_written_answers_make_preferences_and_nothing_to_fine_tune_on(files, tmp_path):
    made = Recipe(
        rows=Source(parquet=str(files[0]), response="response"),
        models=Models(generator=FakeModel(path="writer")),
        steps=(Generate(k=3),),
        splits={"train": Split(filter="SELECT row_id FROM rows", augment=Augment(samples=2, variant="gpt"))},
    )
    run_local(made, tmp_path / "store")
    [done] = export(made, Store(tmp_path / "store").open(), "trl", tmp_path / "out")
    assert (done.folder.name, done.rows) == ("preferences", 80)
    assert not (tmp_path / "out" / "train" / "sft").exists()
    assert {line["variant"] for line in table(done.folder)} == {"gpt"}
    with pytest.raises(ExportError, match="needs the column worse_adv"):
        to_augmented(Store(tmp_path / "store"), "train", tmp_path / "adv", Augment(variant="adv"))


def test_both_data_sets_go_straight_into_the_trainers(store, tmp_path, policy_folder, decoder_reward_folder):
    from seamcurate.train import RewardTraining, SFTTraining, reward, sft

    to_augmented(store, "train", tmp_path / "out")
    fast = {"max_steps": 2, "per_device_train_batch_size": 4, "max_length": 128, "eval_rows": 2}
    fast["learning_rate"] = 1e-3
    tuned = sft(policy_folder, tmp_path / "out" / "sft", tmp_path / "sft", SFTTraining(**fast))
    ranked = reward(decoder_reward_folder, tmp_path / "out" / "preferences", tmp_path / "rm", RewardTraining(**fast))
    assert tuned["steps"] == ranked["steps"] == 2
    assert tuned["loss_after"] < tuned["loss_before"]
    assert tuned["rows"] + tuned["rows_held_out"] == len(table(tmp_path / "out" / "sft"))
    assert ranked["rows"] + ranked["rows_held_out"] == len(table(tmp_path / "out" / "preferences"))
    loaded = load_dataset(str(tmp_path / "out" / "sft"), split="train", cache_dir=str(tmp_path / "cache"))
    assert loaded.num_rows == len(table(tmp_path / "out" / "sft"))


def test_only_an_earlier_augmentation_is_replaced(store, tmp_path):
    to_augmented(store, "train", tmp_path / "out")
    to_augmented(store, "lowest", tmp_path / "out", Augment(samples=1))
    assert len(table(tmp_path / "out" / "preferences")) < 9
    (tmp_path / "out" / "sft" / "notes.txt").write_text("mine")
    with pytest.raises(ExportError, match="holds other files than an export"):
        to_augmented(store, "train", tmp_path / "out")


def test_the_bundled_recipe_has_the_papers_split_and_its_baselines():
    loaded = recipes.load(Path(__file__).parents[1] / "recipes" / "augment.yaml")
    assert {name: split.augment for name, split in loaded.splits.items()} == dict.fromkeys(
        ("lowest", "random", "all"), Augment(samples=5)
    )


@pytest.mark.parametrize(
    ("augment", "message"),
    [
        ("{samples: 0}", "splits.a.augment.samples: input should be greater than or equal to 1, found '0'"),
        ("{seeds: 1}", "splits.a.augment.seeds: unknown key; there are: samples, variant, pairs, evaluation"),
        ("{variant: gpt, pairs: both}", "only variant contrast has, not gpt"),
    ],
)
def test_wrong_settings_name_their_key(augment, message):
    text = f"rows: {{jsonl: rows.jsonl}}\nsplits:\n  a: {{filter: SELECT row_id FROM rows, augment: {augment}}}\n"
    with pytest.raises(RecipeError, match=message):
        recipes.loads(text)
    with pytest.raises(RecipeError, match="leave `format` out"):
        recipes.loads(text.replace(augment, "{}, format: sft"))


def test_the_evaluation_set_lies_beside_the_recipe(tmp_path):
    text = "rows: {jsonl: r.jsonl}\nsplits: {a: {filter: SELECT 1 AS row_id, augment: {evaluation: {jsonl: e.jsonl}}}}"
    loaded = recipes.loads(text, tmp_path)
    assert loaded.splits["a"].augment.evaluation.jsonl == str(tmp_path / "e.jsonl")
