"""Exports, read back by `datasets.load_dataset` as each trainer would, names and types checked."""

from __future__ import annotations

import json
import shutil
from decimal import Decimal

import duckdb
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from datasets import Features, List, Value, load_dataset
from pydantic import ValidationError

from seamcurate import (
    Augment,
    CausalLM,
    FakeModel,
    Models,
    Order,
    Probes,
    Recipe,
    Retrieve,
    Source,
    Split,
    Store,
    run_local,
    seam,
    to_openrlhf,
    to_trl,
    to_verl,
)
from seamcurate.errors import ExportError, RecipeError
from seamcurate.publish import split_view
from seamcurate.publish.export import export, to_augmented, write_split
from seamcurate.publish.formats import TRAINERS
from seamcurate.rewards import RerReward
from seamcurate.run.plan import plan
from seamcurate.select import order as orders
from seamcurate.select import split as splits

ALL = "SELECT row_id FROM rows WHERE row_id < 30"
SCORES = {
    "reward": Value("float64"),
    "seam_contrast": Value("float64"),
    "candidates_contrast": Value("int32"),
    "query_type": Value("string"),
    "rer": Value("float64"),
    "row_id": Value("int64"),
}
TURNS = List({"role": Value("string"), "content": Value("string")})


@pytest.fixture
def store(finished, tmp_path):
    shutil.copytree(finished.path, tmp_path / "store")
    return Store(tmp_path / "store")


@pytest.fixture
def chat(recipe, tmp_path):
    rows = tmp_path / "chat.jsonl"
    line = '{{"prompt": [{{"role": "user", "content": "how do I {} the list"}}], "response": "use it", "reference": "use"}}\n'
    rows.write_text("".join(line.format(word) for word in ("sort", "merge", "parse")))
    steps = (Retrieve(k=5, band=(0.3, 0.95)), *seam("contrast", k=5))
    run_local(recipe(rows=Source(jsonl=str(rows)), steps=steps, splits={}), tmp_path / "chat")
    return Store(tmp_path / "chat")


def loaded(folder, tmp_path) -> tuple[Features, list]:
    data = load_dataset(str(folder), split="train", cache_dir=str(tmp_path / "cache"))
    return data.features, data.to_list()


def test_trl_prompts_are_the_kept_rows_with_every_score_as_a_scalar(store, tmp_path):
    done = to_trl(store, "train", tmp_path / "out")
    features, rows = loaded(tmp_path / "out", tmp_path)
    assert features["prompt"] == Value("string") and {k: features[k] for k in SCORES} == SCORES
    assert done.rows == len(rows) == 32 and done.columns == list(features)
    assert [r["row_id"] for r in rows] == sorted(r["row_id"] for r in rows)
    assert not [name for name, kind in features.items() if not isinstance(kind, Value)]
    assert set(features) & TRAINERS["trl"].reserved["prompts"] == {"prompt"}


@pytest.mark.parametrize(
    ("form", "core"),
    [
        ("sft", {"prompt": Value("string"), "completion": Value("string")}),
        ("preferences", {"prompt": Value("string"), "chosen": Value("string"), "rejected": Value("string")}),
        ("unpaired", {"prompt": Value("string"), "completion": Value("string"), "label": Value("bool")}),
    ],
)
def test_trl_formats_have_their_columns(store, tmp_path, form, core):
    splits.make(store, form, Split(filter=ALL, format=form))
    to_trl(store, form, tmp_path / "out")
    features, rows = loaded(tmp_path / "out", tmp_path)
    assert {name: features[name] for name in core} == core
    assert list(features)[: len(core)] == list(core)
    golden = {row["row_id"]: row for table in store.rows(["response", "worse_contrast"]) for row in table.to_pylist()}
    if form == "sft":
        assert [r["completion"] for r in rows] == [golden[i]["response"] for i in range(30)]
        return
    worse = {i: [c["response"] for c in golden[i]["worse_contrast"]] for i in range(30)}
    assert sum(map(len, worse.values())) > 0
    if form == "preferences":
        assert all(r["chosen"] == golden[r["row_id"]]["response"] for r in rows)
        assert [(r["row_id"], r["rejected"]) for r in rows] == [(i, w) for i in range(30) for w in worse[i]]
    else:
        assert [(r["row_id"], r["completion"]) for r in rows if r["label"]] == [
            (i, golden[i]["response"]) for i in range(30)
        ]
        assert sum(not r["label"] for r in rows) == sum(map(len, worse.values()))


def test_another_format_of_the_same_rows_is_what_is_exported(store, tmp_path):
    splits.make(store, "same", Split(filter=ALL))
    splits.make(store, "same", Split(filter=ALL, format="sft"))
    assert to_trl(store, "same", tmp_path / "out").columns[:2] == ["prompt", "completion"]


@pytest.mark.slow
def test_chat_prompts_get_chat_answers(chat, tmp_path):
    for form in ("prompts", "sft", "preferences"):
        splits.make(chat, form, Split(filter="SELECT row_id FROM rows", format=form))
    to_trl(chat, "sft", tmp_path / "sft")
    features, rows = loaded(tmp_path / "sft", tmp_path)
    assert features["prompt"] == features["completion"] == TURNS
    assert rows[0]["completion"] == [{"role": "assistant", "content": "use it"}]
    to_trl(chat, "preferences", tmp_path / "preferences")
    features, rows = loaded(tmp_path / "preferences", tmp_path)
    assert features["chosen"] == features["rejected"] == TURNS and rows[0]["chosen"][0]["content"] == "use it"
    to_verl(chat, "prompts", tmp_path / "verl")
    assert loaded(tmp_path / "verl", tmp_path)[1][0]["prompt"] == [
        {"role": "user", "content": "how do I sort the list"}
    ]


def test_token_ids_for_trls_own_ppo_are_the_policys(store, tmp_path, policy_folder):
    from transformers import AutoTokenizer

    splits.make(store, "ids", Split(filter=ALL, format="prompt_ids"))
    to_trl(store, "ids", tmp_path / "out", CausalLM(path=str(policy_folder)))
    features, rows = loaded(tmp_path / "out", tmp_path)
    assert features == Features({"input_ids": List(Value("int64"))})
    first = store.table(0, ["prompt"])["prompt"][0].as_py()
    assert AutoTokenizer.from_pretrained(policy_folder).decode(rows[0]["input_ids"]) == f"Question: {first}\n\nAnswer:"
    with pytest.raises(ExportError, match="needs a tokenizer; give the recipe"):
        to_trl(store, "ids", tmp_path / "none")


@pytest.mark.slow
def test_openrlhf_reads_input_label_and_datasource(store, tmp_path):
    to_openrlhf(store, "train", tmp_path / "out")
    features, rows = loaded(tmp_path / "out", tmp_path)
    core = {"input": Value("string"), "label": Value("string"), "datasource": Value("string")}
    assert {k: features[k] for k in core} == core and {k: features[k] for k in SCORES} == SCORES
    assert (rows[0]["label"], rows[0]["datasource"]) == (rows[0]["reference"], "seamcurate/train")
    splits.make(store, "pairs", Split(filter=ALL, format="preferences"))
    to_openrlhf(store, "pairs", tmp_path / "pairs")
    assert list(loaded(tmp_path / "pairs", tmp_path)[0])[:3] == ["prompt", "chosen", "rejected"]


def test_verl_reads_its_five_columns(store, tmp_path):
    to_verl(store, "train", tmp_path / "out")
    features, rows = loaded(tmp_path / "out", tmp_path)
    assert list(features) == ["data_source", "prompt", "ability", "reward_model", "extra_info"]
    assert features["prompt"] == TURNS
    assert dict(features["reward_model"]) == {"style": Value("string"), "ground_truth": Value("string")}
    info = features["extra_info"]
    assert (info["split"], info["index"], info["seam_contrast"]) == (Value("string"), Value("int64"), Value("float64"))
    assert len({r["extra_info"]["index"] for r in rows}) == 32
    assert {r["reward_model"]["style"] for r in rows} == {"rule"} and all(
        r["reward_model"]["ground_truth"] for r in rows
    )
    assert {r["ability"] for r in rows} <= {"open", "closed"}


def rows_store(tmp_path, rows, split, **source):
    """A store of such rows, without any step, and a split of all of them."""
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "rows.parquet")
    recipe = Recipe(rows=Source(parquet=str(tmp_path / "rows.parquet"), **source), splits={"s": split})
    run_local(recipe, tmp_path / "store")
    return Store(tmp_path / "store").open()


EVERY = "SELECT row_id FROM rows"


def held(trainer: str, line: dict) -> dict:
    """Return what holds the scores of a line."""
    return line[TRAINERS[trainer].scores_in] if TRAINERS[trainer].scores_in else line


@pytest.mark.parametrize(("trainer", "form"), [(t, f) for t, row in TRAINERS.items() for f in row.reserved])
def test_columns_that_a_trainer_keeps_for_itself_are_renamed_and_that_is_said(tmp_path, trainer, form):
    # These two name a row's verifier or environment where the source has them.
    kept = TRAINERS[trainer].reserved[form] - {"prompt", "response", "dataset", "env_class"}
    row = {"prompt": "a", "response": "b", **{name: f"of {name}" for name in (*kept, "topic")}}
    row["worse_contrast"] = [{"response": "c", "similarity": 0.5, "source_row_id": 1}]
    store = rows_store(tmp_path, [row], Split(filter=EVERY, format=form))
    done = write_split(trainer, store, "s", tmp_path / "out")
    line = held(trainer, loaded(tmp_path / "out", tmp_path)[1][0])
    assert {name: value for name, value in line.items() if str(value).startswith("of ")} == {
        **{f"source_{name}": f"of {name}" for name in kept},
        "topic": "of topic",
    }
    assert all(f"{name} as source_{name}" in done.note for name in kept) and "topic" not in done.note


def test_lines_of_json_replace_those_of_an_export_and_no_other(tmp_path):
    store = rows_store(tmp_path, [{"prompt": "a", "response": "b", "score": float("nan")}], Split(filter=EVERY))
    for _ in range(2):
        done = write_split("nemo-rl", store, "s", tmp_path / "out")
    (line,) = (tmp_path / "out" / "train.jsonl").read_text().splitlines()
    assert list(json.loads(line)) == done.columns and json.loads(line)["score"] is None
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "train.jsonl").write_text('{"prompt": "mine"}\n')
    with pytest.raises(ExportError, match="mine holds other files than an export; name another folder"):
        write_split("nemo-rl", store, "s", tmp_path / "mine")
    assert (tmp_path / "mine" / "train.jsonl").read_text() == '{"prompt": "mine"}\n'


@pytest.mark.parametrize(
    ("trainer", "last", "message"),
    [
        ("trl", Split(filter="SELECT row_id FROM rows WHERE false"), "split z keeps no row, so that .* leave it out$"),
        ("verl", Split(filter=EVERY, format="sft"), "split z: verl trains from prompts"),
    ],
)
def test_a_split_that_cannot_be_exported_stops_all_of_them_before_one_is_written(tmp_path, trainer, last, message):
    recipe = Recipe(rows=Source(data=[{"prompt": "a", "response": "b"}]), splits={"a": Split(filter=EVERY), "z": last})
    run_local(recipe, tmp_path / "store")
    with pytest.raises(ExportError, match=message):
        list(export(recipe, Store(tmp_path / "store"), trainer, tmp_path / "out"))
    assert not (tmp_path / "out").exists()


def test_lines_of_json_hold_decimals_as_numbers_and_bytes_and_dates_as_text(tmp_path):
    columns = {
        "price": pa.array([Decimal("1.250")]),
        "raw": pa.array([b"caf\xc3\xa9 \xff"]),
        "day": pa.array([2**29], pa.date32()),
    }
    pq.write_table(pa.table({"prompt": ["a"], "response": ["b"], **columns}), tmp_path / "rows.parquet")
    source = Source(parquet=str(tmp_path / "rows.parquet"))
    run_local(Recipe(rows=source, splits={"s": Split(filter=EVERY)}), tmp_path / "store")
    write_split("nemo-rl", Store(tmp_path / "store"), "s", tmp_path / "out")
    (line,) = (tmp_path / "out" / "train.jsonl").read_text().splitlines()
    assert '"price": 1.250,' in line
    values = json.loads(line)
    assert (values["raw"], values["day"]) == ("café \\xff", "1471872-08-19")


def test_files_beside_the_rows_are_replaced_where_an_export_wrote_them(tmp_path):
    store = rows_store(tmp_path, [{"prompt": "a", "response": "b"}], Split(filter=EVERY))
    for trainer, name in (
        ("axolotl", "axolotl.yaml"),
        ("llamafactory", "dataset_info.json"),
        ("verifiers", "seamcurate_taskset.py"),
    ):
        for _ in range(2):
            write_split(trainer, store, "s", tmp_path / trainer)
        assert (tmp_path / trainer / name).is_file()
        (tmp_path / trainer / name).write_text("mine")
        with pytest.raises(ExportError, match="holds other files than an export"):
            write_split(trainer, store, "s", tmp_path / trainer)


def test_a_trainer_that_reads_one_file_gets_one(tmp_path, monkeypatch):
    monkeypatch.setattr("seamcurate.publish.files._ROWS_PER_FILE", 2)
    store = rows_store(tmp_path, [{"prompt": str(i), "response": "b"} for i in range(5)], Split(filter=EVERY))
    for trainer, files in (("trl", 3), ("slime", 1), ("llamafactory", 1), ("open-instruct", 1)):
        write_split(trainer, store, "s", tmp_path / trainer)
        assert len(list((tmp_path / trainer).glob("*.parquet"))) == files


def test_a_trainer_that_loads_no_such_format_says_which_it_loads(tmp_path):
    row = {"prompt": "a", "response": "b", "worse_contrast": [{"response": "c", "similarity": 0.5, "source_row_id": 1}]}
    store = rows_store(tmp_path, [row], Split(filter=EVERY, format="unpaired"))
    with pytest.raises(ExportError, match="split s: slime loads no 'unpaired' data; use format prompts, sft"):
        write_split("slime", store, "s", tmp_path / "out")


def test_turns_that_openrlhf_would_look_for_pictures_in_are_counted(tmp_path):
    rows = [{"prompt": [{"role": "user", "content": text}]} for text in ("see <image> here", "no picture")]
    store = rows_store(tmp_path, rows, Split(filter=EVERY))
    told = "1 turn holds <image>, which OpenRLHF takes for the place of a picture"
    assert told in to_openrlhf(store, "s", tmp_path / "openrlhf").note
    assert told not in to_verl(store, "s", tmp_path / "verl").note


def test_a_name_that_is_taken_too_is_passed_over(tmp_path):
    rows = [{"prompt": "a", "response": "b", "completion": "c", "source_completion": "d"}]
    store = rows_store(tmp_path, rows, Split(filter=EVERY, format="sft"))
    done = to_trl(store, "s", tmp_path / "out")
    [line] = loaded(tmp_path / "out", tmp_path)[1]
    assert (line["completion"], line["source_completion"], line["source_source_completion"]) == ("b", "d", "c")
    assert "TRL keeps names of columns for itself; exported are completion as source_source_completion" in done.note


@pytest.mark.parametrize("answered", ["response", "messages"])
def test_the_golden_response_is_the_truth_where_a_row_has_no_reference(tmp_path, answered):
    answers = [("4", None), ("7", "seven"), ("9", "")]
    rows = [{"prompt": f"{i} + {i}", "response": r, "reference": truth} for i, (r, truth) in enumerate(answers)]
    source = {}
    if answered == "messages":
        turns = [
            [{"role": "user", "content": r.pop("prompt")}, {"role": "assistant", "content": r.pop("response")}]
            for r in rows
        ]
        rows = [{"messages": chat, **row} for chat, row in zip(turns, rows, strict=True)]
        source = {"messages": "messages"}
    store = rows_store(tmp_path, rows, Split(filter=EVERY), **source)
    verl, openrlhf = to_verl(store, "s", tmp_path / "verl"), to_openrlhf(store, "s", tmp_path / "openrlhf")
    truths = [line["reward_model"]["ground_truth"] for line in loaded(tmp_path / "verl", tmp_path)[1]]
    assert truths == [line["label"] for line in loaded(tmp_path / "openrlhf", tmp_path)[1]] == ["4", "seven", "9"]
    assert "neither" not in verl.note + openrlhf.note


def test_rows_without_any_truth_are_counted(tmp_path):
    store = rows_store(
        tmp_path, [{"prompt": "a", "reference": "b"}, {"prompt": "c", "reference": None}], Split(filter=EVERY)
    )
    told = "1 row has neither a reference nor a golden response, so no "
    assert told + "ground truth" in to_verl(store, "s", tmp_path / "verl").note
    assert told + "label" in to_openrlhf(store, "s", tmp_path / "openrlhf").note
    assert told not in to_trl(store, "s", tmp_path / "trl").note


VERL = [
    {
        "data_source": "openai/gsm8k",
        "prompt": [{"role": "user", "content": f"{i} + {i}"}],
        "ability": "math",
        "reward_model": {"style": "rule", "ground_truth": str(2 * i)},
        "extra_info": {"split": "train", "index": 40 + i, "question": f"{i}", "need_tools_kwargs": False},
    }
    for i in range(3)
]


def test_what_verl_read_comes_back_as_it_was_with_the_scores_beside(tmp_path):
    store = rows_store(
        tmp_path, VERL, Split(filter="SELECT row_id FROM rows WHERE row_id > 0"), reference="reward_model.ground_truth"
    )
    to_verl(store, "s", tmp_path / "out")
    lines = loaded(tmp_path / "out", tmp_path)[1]
    assert [{key: line[key] for key in VERL[0] if key != "extra_info"} for line in lines] == [
        {key: row[key] for key in row if key != "extra_info"} for row in VERL[1:]
    ]
    assert [line["extra_info"] for line in lines] == [
        {**row["extra_info"], "row_id": i, "response": None, "reference": row["reward_model"]["ground_truth"]}
        for i, row in enumerate(VERL)
        if i > 0
    ]
    for to in (to_trl, to_openrlhf):
        done = to(store, "s", tmp_path / to.__name__)
        assert "left out, for only plain columns are exported: reward_model, extra_info" in done.note


def test_a_score_of_the_store_comes_before_a_field_of_the_same_name(tmp_path):
    row = {"prompt": "a", "topic": "ours", "extra_info": {"topic": "theirs", "tools_kwargs": "x"}, "tools_kwargs": "y"}
    store = rows_store(tmp_path, [row], Split(filter=EVERY))
    done = to_verl(store, "s", tmp_path / "out")
    [line] = loaded(tmp_path / "out", tmp_path)[1]
    info = line["extra_info"]
    assert (info["topic"], info["source_topic"], info["tools_kwargs"], info["source_tools_kwargs"]) == (
        "ours",
        "theirs",
        "x",
        "y",
    )
    assert (
        "extra_info.topic is extra_info.source_topic" in done.note
        and "tools_kwargs as source_tools_kwargs" in done.note
    )


def test_a_verl_answer_that_is_no_text_stays_as_it_is(tmp_path):
    row = {"prompt": "a", "reward_model": {"style": "rule", "ground_truth": {"target": ["x", "y"]}}}
    store = rows_store(tmp_path, [row], Split(filter=EVERY))
    to_verl(store, "s", tmp_path / "out")
    [line] = loaded(tmp_path / "out", tmp_path)[1]
    assert line["reward_model"] == row["reward_model"]


@pytest.mark.parametrize("name", ["train", "test", "validation", "data", "reward", "json", "parquet", "rewards"])
def test_a_split_of_any_name_is_loaded_from_its_folder(store, tmp_path, name):
    splits.make(store, name, Split(filter=ALL))
    done = to_trl(store, name, tmp_path / name, reward=RerReward(reward="li"))
    assert len(loaded(tmp_path / name, tmp_path)[1]) == done.rows == 30


def test_a_folder_called_as_the_reward_file_is_refused(store, recipe, tmp_path):
    with pytest.raises(ExportError, match="is called as the reward file in it; name another folder, or another split"):
        to_trl(store, "train", tmp_path / "seamcurate_reward")
    with pytest.raises(ValidationError, match="is the name of the reward file"):
        recipe(splits={"seamcurate_reward": Split(filter=ALL)})


@pytest.mark.parametrize(
    ("to", "form", "message"),
    [
        (to_verl, "sft", "verl trains from prompts, and the split's format is 'sft'"),
        (to_openrlhf, "unpaired", "OpenRLHF loads no 'unpaired' data; use format prompts, sft, preferences"),
    ],
)
def test_a_format_without_a_loader_is_refused(store, tmp_path, to, form, message):
    splits.make(store, "s", Split(filter=ALL, format=form))
    with pytest.raises(ExportError, match=message):
        to(store, "s", tmp_path / "out")


def test_the_sql_of_an_export_could_read_no_file_whatever_it_came_to(store, tmp_path, monkeypatch):
    (tmp_path / "secret.txt").write_text("a secret")
    stolen = f"SELECT content AS stolen FROM read_text('{tmp_path}/secret.txt')"
    monkeypatch.setattr(split_view.SplitView, "_sql", lambda self, asked, schema, place: stolen)
    with pytest.raises(duckdb.PermissionException, match="disabled by configuration"):
        to_verl(store, "train", tmp_path / "out")


def test_splits_that_are_not_there_or_empty_are_refused(store, tmp_path):
    with pytest.raises(ExportError, match=r"no split 'tran' in .*; there are: train"):
        to_trl(store, "tran", tmp_path / "out")
    splits.make(store, "none", Split(filter="SELECT row_id FROM rows WHERE false"))
    with pytest.raises(ExportError, match="split none keeps no row, so that there is nothing to export"):
        to_trl(store, "none", tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_an_earlier_export_is_replaced_and_nothing_else_is(store, tmp_path):
    out = tmp_path / "out"
    first = to_trl(store, "train", out)
    before = (out / "train-00000-of-00001.parquet").read_bytes()
    assert to_trl(store, "train", out) == first
    assert (out / "train-00000-of-00001.parquet").read_bytes() == before
    (out / "mine.txt").write_text("keep")
    with pytest.raises(ExportError, match="holds other files than an export; name another folder"):
        to_trl(store, "train", out)
    assert (out / "mine.txt").read_text() == "keep"


def test_what_a_killed_export_left_beside_its_place_goes_and_is_in_none(store, tmp_path):
    out, lefts = tmp_path / "out", [tmp_path / name for name in (".out.tmp", ".out.old.tmp")]
    whole = to_trl(store, "train", tmp_path / "whole")
    for left in lefts:
        left.mkdir()
        (left / "train-00000-of-00002.parquet").write_bytes(b"half of")
    to_trl(store, "train", out)
    to_trl(store, "train", out)
    assert [file.name for file in out.iterdir()] == [file.name for file in whole.folder.iterdir()]
    assert not any(left.exists() for left in lefts)


def test_a_recipes_splits_are_exported_a_folder_each(store, recipe, tmp_path):
    done = list(export(recipe(), store, "openrlhf", tmp_path / "all"))
    assert [(d.folder.name, d.rows) for d in done] == [("train", 32)]
    with pytest.raises(ExportError, match="names no `splits`"):
        list(export(recipe(splits={}), store, "trl", tmp_path / "none"))


@pytest.mark.slow
def test_shards_are_read_a_few_at_a_time_in_the_source_s_order_also_where_one_has_no_row(tmp_path, monkeypatch):
    from seamcurate import Random, query

    lines = (
        [f'{{"prompt": "p{i}"}}' for i in range(40)] + ["no json"] * 10 + [f'{{"prompt": "q{i}"}}' for i in range(30)]
    )
    (tmp_path / "rows.jsonl").write_text("\n".join(lines))
    keep = Split(filter="SELECT row_id FROM rows WHERE baseline_random > 0.3")
    recipe = Recipe(
        rows=Source(jsonl=str(tmp_path / "rows.jsonl"), shard_rows=7), steps=(Random(),), splits={"train": keep}
    )
    run_local(recipe, tmp_path / "store")
    store = Store(tmp_path / "store")
    kept = query(store, "SELECT row_id, prompt, baseline_random FROM rows WHERE baseline_random > 0.3 ORDER BY row_id")
    for shards in (1, 3, 100):
        monkeypatch.setattr(split_view, "_SHARDS", shards)
        to_trl(store, "train", tmp_path / f"out-{shards}")
        rows = loaded(tmp_path / f"out-{shards}", tmp_path / str(shards))[1]
        assert [(r["row_id"], r["prompt"], r["baseline_random"]) for r in rows] == [
            tuple(row.values()) for row in kept.to_pylist()
        ]


@pytest.mark.parametrize(
    ("split", "said"),
    [
        ({"format": "sft"}, "format sft needs golden responses, and the rows map no `response`"),
        ({"format": "unpaired"}, "format unpaired needs golden responses"),
        (
            {"augment": Augment(variant="adv")},
            "augmentation needs the sample set worse_adv, and it has worse_contrast; add",
        ),
    ],
)
def test_a_split_that_no_export_could_write_is_refused_before_any_model_runs(tmp_path, split, said):
    rows = tmp_path / "rows.jsonl"
    rows.write_text("".join(f'{{"prompt": "how do I sort list {i}", "answer": "so"}}\n' for i in range(4)))
    models = Models(policy=FakeModel(path="0"), reward=FakeModel(path="0"), encoder=FakeModel(path="0"))
    recipe = Recipe(
        rows=Source(jsonl=str(rows), response="answer" if "augment" in split else None),
        corpus=Source(jsonl=str(rows), response="answer"),
        models=models,
        steps=(Retrieve(k=2, band=(0.2, 0.95)),),
        splits={"s": Split(filter=EVERY, **split)},
    )
    for refuse in (plan, run_local):
        with pytest.raises(RecipeError, match=f"split s: {said}"):
            refuse(recipe, tmp_path / "store")
    assert not list((tmp_path / "store").rglob("columns/*/*.parquet"))
    pairs = recipe.model_copy(
        update={"corpus": None, "steps": (), "splits": {"s": Split(filter=EVERY, format="preferences")}}
    )
    pairs = pairs.model_copy(update={"rows": Source(jsonl=str(rows), response="answer")})
    with pytest.raises(
        RecipeError, match="needs worse answers, and no step makes any; add retrieve, generate or attack"
    ):
        run_local(pairs, tmp_path / "pairs")


@pytest.mark.parametrize(
    ("to", "form"),
    [(to, form) for to, trainer in TRAINERS.items() for form in trainer.reserved],
)
def test_every_format_keeps_the_order_of_its_split(store, tmp_path, to, form):
    order = Order(by="reward", descending=True)
    splits.make(store, "up", Split(filter=ALL, format=form, order=order))
    done = write_split(to, store, "up", tmp_path / "out")
    rows = [held(to, row) for row in loaded(tmp_path / "out", tmp_path)[1]]
    # A column `reward` is renamed where the trainer keeps its name.
    best = [row.get("reward", row.get("source_reward")) for row in rows]
    assert len(set(best)) > 10 and best == sorted(best, reverse=True)
    if "candidate_rank" in rows[0]:
        places = [(row["row_id"], row["candidate_variant"], row["candidate_rank"]) for row in rows]
        ids = list(dict.fromkeys(row_id for row_id, _, _ in places))
        assert places == sorted(places, key=lambda place: (ids.index(place[0]), *place[1:]))
    said = f"rows are in order by `reward`, the highest first; {TRAINERS[to].unshuffled(form)}"
    assert said in done.note.splitlines()
    own = [command for command in done.commands if command.startswith("seamcurate train")]
    assert len(own) == (to == "trl" and form == "prompts") and all("--no-shuffle-dataset" in line for line in own)


def test_pairs_of_an_augmentation_are_in_the_order_of_their_rows(store, tmp_path):
    splits.make(store, "up", Split(filter=ALL, augment=Augment(samples=2), order=Order(by="random", seed=4)))
    (fine, preferences) = to_augmented(store, "up", tmp_path / "out", Augment(samples=2))
    ids = [row["row_id"] for row in loaded(preferences.folder, tmp_path)[1]]
    order = orders.ranks(Order(by="random", seed=4), np.arange(30), None)
    assert [order[i] for i in ids] == sorted(order[i] for i in ids) and len(set(ids)) > 10
    assert "train_sampling_strategy='sequential'" in fine.note


@pytest.fixture
def dirty(tmp_path):
    """A store with answers as sources have them: a rejected one that is the chosen one, a row without a golden response."""
    sets = [["x", "x2"], ["Y ", "y"], ["w"], None]
    rows = {
        "prompt": ["p", "q", "r", "s"],
        "response": ["x", "y", None, "z"],
        "worse_given": [texts and [{"response": text} for text in texts] for texts in sets],
    }
    pq.write_table(pa.table(rows), tmp_path / "rows.parquet")
    source = Source(parquet=str(tmp_path / "rows.parquet"), response="response", unanswered=True)
    every = {
        form: Split(filter="SELECT row_id FROM rows", format=form)
        for form in ("prompts", "sft", "preferences", "unpaired")
    }
    run_local(Recipe(rows=source, splits=every), tmp_path / "store")
    return Store(tmp_path / "store")


EQUAL = "3 candidates equal the golden response, case and white space aside, and none is a rejected answer"
UNANSWERED = "1 row has no golden response, and no line here"


def test_no_answer_is_both_the_better_and_the_worse_one(dirty, tmp_path):
    lines = {}
    for form in ("prompts", "sft", "preferences", "unpaired"):
        done = to_trl(dirty, form, tmp_path / form)
        assert (EQUAL in done.note) == (form in ("preferences", "unpaired"))
        assert (UNANSWERED in done.note) == (form != "prompts")
        lines[form] = pq.read_table(tmp_path / form).to_pylist()
        assert done.rows == len(lines[form])
    assert [row["prompt"] for row in lines["prompts"]] == ["p", "q", "r", "s"]
    assert [(row["prompt"], row["completion"]) for row in lines["sft"]] == [("p", "x"), ("q", "y"), ("s", "z")]
    assert [(row["prompt"], row["chosen"], row["rejected"]) for row in lines["preferences"]] == [("p", "x", "x2")]
    assert [(row["prompt"], row["completion"], row["label"]) for row in lines["unpaired"]] == [
        ("p", "x2", False),
        ("p", "x", True),
        ("q", "y", True),
        ("s", "z", True),
    ]


def test_probes_that_are_no_worse_are_no_rejected_answers(dirty, tmp_path):
    recipe = Recipe(
        rows=Source(parquet=str(tmp_path / "rows.parquet"), drop=["worse_given"]),
        steps=(Probes(),),
        splits={"pairs": Split(filter="SELECT row_id FROM rows", format="preferences")},
    )
    with pytest.raises(RecipeError, match=r"no step makes any \(answers in worse_probe need not be worse\)"):
        run_local(recipe, tmp_path / "probed")
    beside = recipe.model_copy(update={"rows": Source(parquet=str(tmp_path / "rows.parquet"))})
    run_local(beside, tmp_path / "beside")
    to_trl(Store(tmp_path / "beside"), "pairs", tmp_path / "out")
    assert [row["candidate_variant"] for row in pq.read_table(tmp_path / "out").to_pylist()] == ["given"]
