"""Augmentation, held against the same pairs picked by hand from the store, and trained on by the real trainers."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pyarrow.parquet as pq
import pytest
from conftest import questions
from datasets import load_dataset

from seamcurate import FakeModel, Generate, Models, Recipe, Retrieve, Source, Split, Store, run_local, seam
from seamcurate.errors import ExportError, RecipeError, SourceError
from seamcurate.publish.export import export, to_augmented
from seamcurate.run import recipe as recipes
from seamcurate.select import split as splits
from seamcurate.select.split import Augment

ALL = Split(filter="SELECT row_id FROM rows")
PROVENANCE = ["row_id", "source_row_id", "variant", "rank", "similarity", "kind"]


@pytest.fixture
def store(recipe, tmp_path):
    """Forty rows, not all of which have neighbours."""
    steps = (Retrieve(k=5, band=(0.5, 0.9)), *seam("contrast", k=5))
    lowest = (Path(__file__).parents[2] / "recipes" / "lowest.sql").read_text()
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


@pytest.mark.slow
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


@pytest.mark.slow
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


@pytest.mark.slow
def test_only_the_rows_the_split_keeps_are_augmented(store, tmp_path):
    to_augmented(store, "lowest", tmp_path / "out")
    kept = {i for part in splits.kept(store, "lowest", []) for i in part["row_id"].to_pylist()}
    given = {line["row_id"] for line in table(tmp_path / "out" / "preferences")}
    assert 0 < len(kept) < 40 and given <= kept
    assert given | {i for i, _ in dropped(tmp_path / "out")} == kept


@pytest.mark.slow
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


@pytest.mark.slow
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


def small_store(folder, prompt=lambda text: text):
    """Four questions, each row the neighbour of the others."""
    asked = ["how do I sort a list", "how do I sort a file", "how do I copy a list", "how do I copy a file"]
    lines = [{"prompt": prompt(text), "response": f"try {i} with care"} for i, text in enumerate(asked)]
    (folder / "rows.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    rows = Source(jsonl=str(folder / "rows.jsonl"), response="response")
    encoder = Models(encoder=FakeModel(path="encoder"))
    steps = (Retrieve(k=3, band=(0.1, 0.95)),)
    run_local(Recipe(rows=rows, corpus=rows, models=encoder, steps=steps, splits={"train": ALL}), folder / "small")
    return Store(folder / "small").open()


@pytest.fixture(scope="module")
def four(tmp_path_factory):
    return small_store(tmp_path_factory.mktemp("four"))


def kept_out(store, folder, evaluation):
    """The rows whose question is one of the evaluation set."""
    to_augmented(store, "train", folder / "out", Augment(evaluation=evaluation))
    return {
        row_id
        for (row_id, _), why in dropped(folder / "out").items()
        if why == "its question is an evaluation question"
    }


USER = {"role": "user", "content": "How do I SORT a\u00a0list?"}
GUARDED = {
    "an answer that is null": {"prompt": "how do I sort a list", "response": None},
    "a blank answer": {"prompt": "how do I sort a list", "response": "  "},
    "an answer in a list": {"prompt": "how do I sort a list", "response": ["sort it"]},
    "a blank reference": {"prompt": "how do I sort a list", "reference": {"a": 1}},
    "closing punctuation": {"prompt": "How do I sort a list?!"},
    "full-width letters and marks": {"prompt": "Ｈｏｗ do I sort a list？\u201d"},
    "characters without a shape": {"prompt": "\ufeffhow do I sort\u200b a list\u2026"},
    "a chat": {"prompt": [USER]},
    "a chat whose first turn asks it": {"prompt": [USER, {"role": "assistant", "content": "So."}, {"role": "user", "content": "why"}]},
    "a chat of ShareGPT's": {"prompt": [{"from": "human", "value": USER["content"]}]},
}  # fmt: skip


@pytest.mark.parametrize("line", GUARDED.values(), ids=GUARDED)
@pytest.mark.parametrize("before", [{"prompt": "never asked", "side": 1}, None], ids=["after another", "alone"])
def test_a_row_that_is_set_aside_for_anything_but_its_question_still_guards_it(four, tmp_path, line, before):
    lines = [line] if before is None else [before, {**line, "side": {"another": "type"}}]
    (tmp_path / "held.jsonl").write_text("".join(json.dumps(one) + "\n" for one in lines))
    assert kept_out(four, tmp_path, Source(jsonl=str(tmp_path / "held.jsonl"))) == {0}


def test_every_user_turn_of_a_chat_is_a_question_on_both_sides(tmp_path):
    def chat(text):
        later = {"role": "user", "content": "Shorter, please."}
        return [{"role": "system", "content": "s"}, {"role": "user", "content": text}, {"role": "assistant", "content": "a"}, later]  # fmt: skip

    store = small_store(tmp_path, chat)
    (tmp_path / "held.jsonl").write_text(json.dumps({"messages": [USER]}))
    assert kept_out(store, tmp_path, Source(jsonl=str(tmp_path / "held.jsonl"), messages="messages")) == {0}
    lines = table(tmp_path / "out" / "sft") + table(tmp_path / "out" / "preferences")
    assert lines and not [line for line in lines if "how do I sort a list" in json.dumps(line["prompt"])]
    (tmp_path / "held.jsonl").write_text(json.dumps({"prompt": "shorter please"}))
    assert kept_out(store, tmp_path, Source(jsonl=str(tmp_path / "held.jsonl"))) == set()


def test_marks_that_are_part_of_a_name_tell_questions_apart():
    from seamcurate.publish.augment import _question_key

    alike = ["what is C", "What is  c?", "WHAT IS C ?!", "what is C)", "what is c\u061f", '"what is C"'[1:]]
    assert len(set(map(_question_key, alike))) == 1
    others = ["what is C", "what is C#", "what is C++", "what is C%", "what is C*", "?", "!"]
    assert len(set(map(_question_key, others))) == len(others)


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("held.jsonl", b'{"prompt": "never"}\n{"prompt": nu', r"1 of 2 rows cannot be read \(1 × line is not JSON"),
        ("held.jsonl", b'{"prompt": "never"}\n{"prompt": null}', r"1 of 2 rows cannot be read \(1 × prompt is null\)"),
        ("held.jsonl", b'{"prompt": "never"}\n{"prompt": "\xff?"}', r"\(1 × invalid UTF-8 in prompt\)"),
        ("held.jsonl", b'{"prompt": "never"}\n{"prompt": [{"role": "user", "content": ["x"]}]}', "1 of 2 rows"),
        ("held.jsonl", b'{"prompt": "never"}\n{"question": "how do I sort a list"}', r"\(1 × prompt is null\)"),
    ],
)
def test_an_evaluation_file_that_cannot_be_read_whole_stops_the_export(four, tmp_path, name, content, message):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(ExportError, match=message) as error:
        kept_out(four, tmp_path, Source(jsonl=str(tmp_path / name)))
    assert str(error.value).startswith(f"evaluation {tmp_path / name}: ") and "\n" not in str(error.value)
    assert not (tmp_path / "out").exists()


def test_an_evaluation_file_in_one_array_is_read_and_one_that_is_cut_short_stops_the_export(four, tmp_path):
    (tmp_path / "held.json").write_bytes(b'[\n {"prompt": "how do I sort a list"}\n]')
    assert kept_out(four, tmp_path, Source(jsonl=str(tmp_path / "held.json"))) == {0}
    shutil.rmtree(tmp_path / "out")
    (tmp_path / "held.jsonl.zst").write_bytes(b"\x28\xb5\x2f\xfd\x04\x00\x81\x00\x00how do I\n\x99\xe9")
    with pytest.raises(SourceError, match=r"held\.jsonl\.zst cannot be read"):
        kept_out(four, tmp_path, Source(jsonl=str(tmp_path / "held.jsonl.zst")))
    assert not (tmp_path / "out").exists()


def test_bytes_that_are_no_text_beside_a_question_leave_it_guarded(four, tmp_path):
    (tmp_path / "held.jsonl").write_bytes(b'{"prompt": "how do I sort a list", "response": "caf\xe9"}')
    assert kept_out(four, tmp_path, Source(jsonl=str(tmp_path / "held.jsonl"))) == {0}
    (tmp_path / "held.csv").write_bytes(b'prompt,response\nhow do I sort a list,\nnever,"yes"\n')
    assert kept_out(four, tmp_path, Source(csv=str(tmp_path / "held.csv"))) == {0}


@pytest.mark.slow
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


@pytest.mark.slow
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


@pytest.mark.slow
def test_only_an_earlier_augmentation_is_replaced(store, tmp_path):
    to_augmented(store, "train", tmp_path / "out")
    to_augmented(store, "lowest", tmp_path / "out", Augment(samples=1))
    assert len(table(tmp_path / "out" / "preferences")) < 9
    (tmp_path / "out" / "sft" / "notes.txt").write_text("mine")
    with pytest.raises(ExportError, match="holds other files than an export"):
        to_augmented(store, "train", tmp_path / "out")


def test_the_bundled_recipe_has_the_papers_split_and_its_baselines():
    loaded = recipes.load(Path(__file__).parents[2] / "recipes" / "augment.yaml")
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
