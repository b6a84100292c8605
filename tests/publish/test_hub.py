"""Pushing to a loopback Hub with the real clients, running a published recipe again, and comparing two runs."""

from __future__ import annotations

import hashlib
import json
import logging
import os
import re
import shutil
import subprocess
import sys
import traceback
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import NamedTuple

import endpoint
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import yaml
from conftest import write_files
from hub_server import LARGE, Fault, Hub, answering_here, close_session, serving
from huggingface_hub import constants

from seamcurate import (
    CausalLM,
    FakeModel,
    Models,
    Perplexity,
    Recipe,
    RewardEnsemble,
    RewardServer,
    SequenceClassifier,
    Source,
    Store,
    run_local,
)
from seamcurate.errors import BusyError, ExportError, HubError, SeamcurateError, SourceError, StaleError, StoreError
from seamcurate.publish import card, hub, measures
from seamcurate.publish import diff as comparison
from seamcurate.publish import reproduce as reproduction
from seamcurate.publish.export import Exported
from seamcurate.publish.shape import Shape
from seamcurate.publish.snippet import Configuration
from seamcurate.score import measured

pytestmark = pytest.mark.slow

RECIPE = """\
# How do I sort a list? A test's recipe.
rows: {parquet: rows.parquet, shard_rows: 15}
corpus: {parquet: corpus.parquet, shard_rows: 64}
models: {policy: {fake: policy}, reward: {fake: reward}, encoder: {fake: encoder}}
steps: [retrieve: {k: 5, band: [0.5, 0.9]}, seam: {k: 5}, rer: {fit: quantiles}]
splits:
  train: {filter: keep_above_lowest.sql, by: seam_contrast, rate: 0.2}
  pairs: {filter: filters/some.sql, format: preferences}
"""
SOME = "-- only some of them\nSELECT row_id FROM rows WHERE row_id < $below\n-- default below = 10\n"
DRAW = measures.draw
CANARY = "hf_canaryCANARYcanaryCANARYcanary"


class Work(NamedTuple):
    recipe: Path
    store: Store


def made(folder: Path, recipe: str = RECIPE) -> Work:
    write_files(folder)
    (folder / "filters").mkdir(exist_ok=True)
    (folder / "filters" / "some.sql").write_text(SOME)
    (folder / "recipe.yaml").write_text(recipe)
    run_local(Recipe.load(folder / "recipe.yaml"), folder / "store")
    return Work(folder / "recipe.yaml", Store(folder / "store"))


@pytest.fixture(scope="session")
def finished_work(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("work")
    made(folder)
    return folder


@pytest.fixture
def work(finished_work: Path, tmp_path: Path) -> Work:
    """A recipe's folder with its finished store, to be changed freely."""
    shutil.copytree(finished_work, tmp_path / "work")
    return Work(tmp_path / "work" / "recipe.yaml", Store(tmp_path / "work" / "store"))


@pytest.fixture
def hub_server(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Hub]:
    """A Hub of this test's own, to which the clients in this process speak by LFS, with a token that may write."""
    with answering_here(tmp_path, monkeypatch) as server:
        server.tokens[CANARY] = "write"
        monkeypatch.setattr(hub, "_WAITS", (0.01, 0.02, 0.03))
        # As where matplotlib is not installed: drawing takes longer than all the rest, and one test has it back.
        monkeypatch.setattr(measures, "draw", lambda *anything: False)
        monkeypatch.setenv("HF_TOKEN", CANARY)
        yield server


def details(prepared: hub.Prepared) -> str:
    """Return what stands beside the card."""
    return (prepared.folder / card.DETAILS).read_text()


def text(server: Hub, path: str) -> str:
    return server.content("me/curated", path).decode()


def test_a_store_that_a_run_works_on_is_not_published(work):
    with work.store.hold(), pytest.raises(BusyError, match="another run works on"):
        hub.prepare(work.recipe, work.store, "me/curated")
    assert not (work.store.path / "publish").exists()


# What is pushed.


def test_a_push_makes_a_private_data_set_with_everything_in_it_by_one_commit(work, hub_server):
    pushed = hub.push(work.recipe, work.store, "me/curated")
    (created,) = hub_server.created
    assert [created[key] for key in ("organization", "name", "type")] == ["me", "curated", "dataset"]
    assert hub_server.repos["me/curated"].private
    assert len(hub_server.repos["me/curated"].commits) == 2
    assert (pushed.commit, pushed.unchanged, pushed.removed) == (hub_server.repos["me/curated"].commits[-1][0], 0, [])
    assert set(pushed.sent) == set(hub_server.files("me/curated")) - {".gitattributes"}
    assert set(pushed.sent) >= {
        "README.md",
        "DETAILS.md",
        "recipe.yaml",
        "seamcurate.json",
        "keep_above_lowest.sql",
        "filters/some.sql",
        "data/train/train-00000-of-00001.parquet",
        "data/train/seamcurate_reward.py",
        "data/pairs/train-00000-of-00001.parquet",
        "ledger/train.parquet",
        "ledger/pairs.parquet",
    }
    assert text(hub_server, "recipe.yaml") == work.recipe.read_text()
    assert text(hub_server, "filters/some.sql") == SOME
    assert pushed.url == f"{hub_server.address}/datasets/me/curated"


def test_the_facts_hold_revisions_meanings_and_fingerprints_but_no_folder_of_this_machine(work, hub_server):
    hub.push(work.recipe, work.store, "me/curated")
    facts = json.loads(text(hub_server, "seamcurate.json"))
    assert facts["rows"] == 40 and facts["source"] == work.store.about["source"]
    assert facts["models"]["reward"] == {"fake": "reward", "dimensions": 64}
    record = work.store.records()["seam_contrast"]
    assert facts["columns"]["seam_contrast"] == {
        "type": "double",
        "meaning": "minus the discrepancy, at most 0; low = bad; NULL when there is no candidate",
        "made_by": "seam_contrast",
        "fingerprint": record["fingerprint"],
    }
    assert facts["steps"]["corpus embedding"]["identity"]["encoder"] == {"fake": "encoder", "dimensions": 64}
    assert facts["splits"]["train"]["kept"] == 32
    assert str(work.recipe.parent) not in json.dumps(facts) + text(hub_server, "README.md")


def test_the_card_says_what_was_dropped_and_what_the_baselines_say(work, hub_server, monkeypatch):
    pytest.importorskip("matplotlib")
    monkeypatch.setattr(measures, "draw", DRAW)
    hub.push(work.recipe, work.store, "me/curated", licences=["cc-by-4.0"])
    card_text = text(hub_server, "README.md")
    front = yaml.safe_load(card_text.split("---")[1])
    assert front["license"] == "cc-by-4.0" and front["size_categories"] == ["n<1K"] and "seamcurate" in front["tags"]
    assert front["configs"] == [
        {
            "config_name": "train",
            "default": True,
            "data_files": [{"split": "train", "path": "data/train/train-*.parquet"}],
        },
        {"config_name": "pairs", "data_files": [{"split": "train", "path": "data/pairs/train-*.parquet"}]},
    ]
    assert "| drop the lowest 20 % by seam_contrast | 32 | 8 |" in card_text
    assert f"no candidate. {measured.sentence('seam_contrast', 'seam_contrast')}\n" in card_text
    split = measures.measure(work.store, "train")
    words = {one.name: one for one in split.baselines}["words of the response"]
    assert f"from {words.all:.4g} to {words.kept:.4g}" in card_text
    for baseline in ("words of the prompt", "distinct trigrams of the response", "a random number"):
        assert f"| {baseline} | " in card_text
    assert "figures/train.png" in card_text and hub_server.content("me/curated", "figures/train.png")[:4] == b"\x89PNG"
    assert "GRPOTrainer" in card_text and "[DETAILS.md](DETAILS.md)" in card_text
    details = text(hub_server, "DETAILS.md")
    for trainer in ("GRPOTrainer", "DPOTrainer", "openrlhf.cli.train_ppo_ray", "verl.trainer.main_ppo"):
        assert trainer in details
    assert "seamcurate reproduce me/curated" in card_text and "`rows.parquet`, `corpus.parquet`" in card_text


@pytest.mark.parametrize(
    ("trainer", "told"),
    [("trl", "shuffle_dataset=False"), ("verl", "data.shuffle=False"), ("openrlhf", "OpenRLHF shuffles them")],
)
def test_the_card_says_in_which_order_rows_are_and_how_a_trainer_keeps_it(work, trainer, told):
    ordered = "by: seam_contrast, rate: 0.2, order: {by: reward, descending: true}"
    recipe = RECIPE.replace("  pairs: {filter: filters/some.sql, format: preferences}\n", "")
    work.recipe.write_text(recipe.replace("by: seam_contrast, rate: 0.2", ordered))
    run_local(Recipe.load(work.recipe), work.store.path)
    prepared = hub.prepare(work.recipe, work.store, "me/curated", trainer)
    assert (
        "The rows are in order by 'reward', the highest first; rows without a value come last. A curriculum is an order, so "
        f"turn shuffling off in the trainer: {trainer if trainer == 'verl' else ''}"
    ) in prepared.card
    assert f"{prepared.card}{details(prepared)}".count(told) == {"trl": 3, "verl": 3, "openrlhf": 1}[trainer]
    assert "**The reward prefers a worse answer on " in prepared.card and len(prepared.card.splitlines()) < 150
    facts = json.loads((prepared.folder / "seamcurate.json").read_text())
    assert facts["splits"]["train"]["order"] == {"by": "reward", "descending": True}


@pytest.mark.parametrize("splits", [2, 6])
def test_a_card_of_many_splits_is_read_in_a_minute_and_the_rest_stands_beside_it(work, splits):
    asked = "".join(f"  part-{i}: {{filter: filters/some.sql}}\n" for i in range(splits))
    work.recipe.write_text(RECIPE.partition("splits:")[0] + f"splits:\n{asked}")
    run_local(Recipe.load(work.recipe), work.store.path)
    prepared = hub.prepare(work.recipe, work.store, "me/curated")
    assert len(prepared.card.splitlines()) < 150
    told = re.findall(r"^### `(.+?)`: 10 of 40", f"{prepared.card}{details(prepared)}", re.MULTILINE)
    assert told == [f"part-{i}" for i in range(splits)]
    assert ("The same of `part-2` (10 of 40 rows kept), " in prepared.card) == (splits == 6)


def test_the_card_names_the_controls_of_a_split_and_what_they_are_not(work):
    recipe = RECIPE.replace("  pairs: {filter: filters/some.sql, format: preferences}\n", "")
    work.recipe.write_text(recipe.replace("rate: 0.2", "rate: 0.2, controls: [random, shuffled]"))
    run_local(Recipe.load(work.recipe), work.store.path)
    prepared = hub.prepare(work.recipe, work.store, "me/curated")
    told = f"{prepared.card}{details(prepared)}"
    for name in ("train", "train-random", "train-shuffled"):
        assert f"### `{name}`: 32 of 40 rows kept" in told
        assert {f"data/{name}/train-00000-of-00001.parquet", f"ledger/{name}.parquet"} <= set(prepared.files)
    assert (
        "Controls of the same size, to hold it against: `train-random`, as many rows, at random; `train-shuf"
        in prepared.card
    )
    assert "A control of `train`: as many rows, at random.\n" in prepared.card
    (said,) = re.findall(r"A control of `train`: the split's decisions.*", told)
    assert said.endswith("where only the rewards of SEAM are shuffled, the likelihoods alone still rank prompts.")


def test_the_card_names_every_file_that_verl_is_to_read(work, monkeypatch):
    monkeypatch.setattr("seamcurate.publish.files._ROWS_PER_FILE", 10)
    work.recipe.write_text(RECIPE.replace("  pairs: {filter: filters/some.sql, format: preferences}\n", ""))
    prepared = hub.prepare(work.recipe, work.store, "me/curated", trainer="verl")
    (named,) = re.findall(r"'data\.train_files=\[(\S+)\]' ", prepared.card)
    there = [f"rows/{name}" for name in prepared.files if name.startswith("data/") and name.endswith(".parquet")]
    assert named.split(",") == there and len(there) > 1


def test_duckdb_finds_every_score_in_what_is_pushed_as_a_plain_column(work):
    import duckdb

    prepared = hub.prepare(work.recipe, work.store, "me/curated")
    asked = re.findall(r"```sql\n(-- What each score.*?)\n```", details(prepared), re.DOTALL)
    assert [re.search(r"data/(\w+)/", one)[1] for one in asked] == ["train", "pairs"]
    for one in asked:
        # There is no way to the Hub here: the same files, where they were prepared.
        local = one.replace("hf://datasets/me/curated", str(prepared.folder))
        with duckdb.connect() as connection:
            found = {name: kind for name, kind, *_ in connection.execute(local).fetchall()}
        scores = {"seam_contrast", "discrepancy_contrast", "misjudged_contrast", "reward", "rer", "rer_length"}
        assert {found.get(name) for name in scores} == {"DOUBLE"} and found["candidates_contrast"] == "INTEGER"
        assert not [name for name, kind in found.items() if "[]" in kind or "STRUCT" in kind]


def test_baselines_are_measured_over_the_rows_themselves(work):
    measured = measures.measure(work.store, "train")
    (ledger,) = [pq.read_table(work.store.path / "splits/train/ledger.parquet")]
    answers = pq.read_table(work.recipe.parent / "rows.parquet")["response"].to_pylist()
    lengths = [len(answer.split()) for answer in answers]
    kept = [n for n, keep in zip(lengths, ledger["kept"].to_pylist(), strict=True) if keep]
    baseline = {one.name: one for one in measured.baselines}["words of the response"]
    assert (baseline.all, baseline.kept) == (pytest.approx(sum(lengths) / 40), pytest.approx(sum(kept) / 32))
    assert measured.score == "seam_contrast" and measured.kept == 32


def test_a_split_written_in_two_formats_is_two_configurations(work, tmp_path):
    folder = tmp_path / "data" / "train" / "sft"
    folder.mkdir(parents=True)
    file, rows = folder / "train-00000-of-00001.parquet", pa.table({"prompt": ["a"], "completion": ["b"]})
    pq.write_table(rows, file)
    part = hub._configuration(Exported(folder, 7, [], shape=Shape("sft")), Recipe.load(work.recipe), tmp_path / "data")
    assert part == Configuration(
        "train-sft", "train", "sft", "train/sft", 7, file.stat().st_size, rows.schema, Shape("sft")
    )
    told = "\n".join(card.loading("me/curated", [part], "trl"))
    assert 'load_dataset("me/curated", "train-sft", split="train")' in told and "SFTTrainer" in told
    command = "openrlhf.cli.train_sft --model.model_name_or_path POLICY --data.dataset rows/data/train/sft"
    assert f"{command} --data.input_key prompt --data.output_key completion --data.input_template '{{}}'" in told


@pytest.mark.parametrize("trainer", ["trl", "openrlhf", "verl"])
def test_the_card_loads_each_format_in_its_form(trainer):
    shapes = [
        Shape(name, form, arguments, "<s>", reward)
        for name, reward in (("prompts", True), ("sft", False), ("preferences", False))
        for form, arguments in (("chat", {"enable_thinking": False}), ("plain", {}))
        if trainer != "verl" or name == "prompts"
    ]
    for shape in shapes:
        part = Configuration("p", "p", shape.format, "p", 7, 7, pa.schema([]), shape)
        told = "\n".join(card.loading("me/curated", [part], trainer))
        if trainer == "verl":
            assert ("custom_chat_template" in told) == (not shape.chat)
            assert ("+data.apply_chat_template_kwargs.enable_thinking=false" in told) == shape.chat
            assert "reward.custom_reward_function.path=rows/data/p/seamcurate_reward.py" in told
        else:
            assert ("--data.apply_chat_template" in told) == shape.chat
        if trainer == "trl":
            assert ("chat_template_kwargs" in told) == shape.chat
            assert ("PYTHONPATH=rows/data/p trl grpo" in told) == (shape.format == "prompts")
        if trainer == "openrlhf" and shape.format == "prompts":
            assert "--reward.remote_url rows/data/p/seamcurate_reward.py --data.label_key reward_label" in told


def test_the_reward_file_is_published_and_names_no_folder_of_this_machine(work, tmp_path):
    from datasets import load_dataset

    prepared = hub.prepare(work.recipe, work.store, "me/curated")
    names = [name for name in prepared.files if name.endswith(".py")]
    assert names == ["data/train/seamcurate_reward.py"] and not hub.compared(names[0])
    assert "`seamcurate_reward.py`" in details(prepared) and "trl grpo --model_name_or_path POLICY" in details(prepared)
    rows = load_dataset(str(prepared.folder), "train", split="train", cache_dir=str(tmp_path / "cache"))
    assert len(rows) == 32
    assert hub._without_folders("{'sentence_encoder': '/home/me/minilm',\n 'stop': ['/a/b']}") == (
        "{'sentence_encoder': 'minilm',\n 'stop': ['/a/b']}"
    )


@pytest.mark.parametrize(
    ("trainer", "splits"),
    [
        ("trl", "{train: {filter: filters/some.sql}, pairs: {filter: filters/some.sql, format: preferences}}"),
        ("trl", "{train: {filter: filters/some.sql, format: unpaired}}"),
        ("openrlhf", "{train: {filter: filters/some.sql}, tuned: {filter: filters/some.sql, format: sft}}"),
        ("verl", "{train: {filter: filters/some.sql}}"),
        ("openrlhf", "{train: {filter: filters/some.sql}, more: {filter: filters/some.sql, augment: {samples: 2}}}"),
    ],
)
def test_the_card_describes_each_field_of_the_files_and_no_other(trainer, splits, work):
    work.recipe.write_text(RECIPE.partition("splits:")[0] + f"splits: {splits}\n")
    run_local(Recipe.load(work.recipe), work.store.path)
    prepared = hub.prepare(work.recipe, work.store, "me/curated", trainer=trainer)
    told = details(prepared).partition("## Columns\n")[2]
    lines = [line.strip("| ").split(" | ") for line in told.splitlines() if line.startswith("| `")]
    there: dict[str, set[str]] = {}
    for name in prepared.files:
        if name.startswith("data/") and name.endswith(".parquet"):
            part = "-".join(name.split("/")[1:-1])
            for field in pq.read_schema(prepared.folder / name):
                inside = [f".{one.name}" for one in field.type] if pa.types.is_struct(field.type) else [""]
                for one in inside:
                    there.setdefault(f"`{field.name}{one}`", set()).add(f"`{part}`")
    parts = set.union(*there.values())
    several = {line[0]: parts if line[2] == "all" else set(line[2].split(", ")) for line in lines}
    assert (
        len(lines) == len(there)
        and {line[0]: several[line[0]] if parts - {"`train`"} else parts for line in lines} == there
    )
    # A column of the source says of itself nothing but its name.
    assert {line[0] for line in lines if not line[-1]} <= {"`id`", "`extra_info.id`"}
    left = set(re.findall(r"`\w+`", told.partition("Not in the files")[2]))
    assert "`worse_contrast`" in left and not left & there.keys()


def test_spearman_by_hand():
    # Ranks 1, 2.5, 2.5, 4 against 1, 2, 3, 4: covariance 4.5, variances 4.5 and 5.
    a, b = np.array([1.0, 2, 2, 9, np.nan]), np.array([10.0, 20, 30, 40, 50])
    assert measures.spearman(a, b) == pytest.approx(4.5 / (4.5 * 5) ** 0.5)
    assert np.isnan(measures.spearman(a, np.ones(5)))


def test_a_dry_run_asks_nothing_and_gives_card_and_sizes(work, monkeypatch):
    monkeypatch.delenv("HF_TOKEN", raising=False)
    monkeypatch.setattr("socket.socket.connect", lambda *_: pytest.fail("the network was asked"))
    prepared = hub.prepare(work.recipe, work.store, "me/curated")
    assert prepared.card.startswith("---\nlicense: unknown\n")
    assert prepared.files["README.md"] == len(prepared.card.encode())
    assert prepared.files["data/train/train-00000-of-00001.parquet"] > 1000
    assert [line for line in prepared.notes if "license: unknown" in line]
    assert "Every score is a column here" in prepared.card
    with pytest.raises(HubError, match="'curated' is no repository's id; write owner/name"):
        hub.prepare(work.recipe, work.store, "curated")


def test_another_trainer_s_format_is_written_when_asked(work, hub_server):
    work.recipe.write_text(RECIPE.replace("  pairs: {filter: filters/some.sql, format: preferences}\n", ""))
    hub.push(work.recipe, work.store, "me/curated", trainer="verl")
    reward, name = sorted(name for name in hub_server.files("me/curated") if name.startswith("data/"))
    assert reward == "data/train/seamcurate_reward.py"
    assert "Every score is a field of `extra_info` here" in text(hub_server, "README.md")
    assert "SUMMARIZE SELECT unnest(extra_info) FROM 'hf://" in text(hub_server, "DETAILS.md")
    assert "reward_model" in pq.read_schema(pa.BufferReader(hub_server.content("me/curated", name))).names
    assert "verl.trainer.main_ppo data.train_files=rows/data/train/" in text(hub_server, "README.md")


def test_the_licence_is_carried_from_the_hub_data_set_the_rows_come_from(work, hub_server):
    hub_server.add("me/rows", {"README.md": b"---\nlicense: cc-by-sa-4.0\n---\n"})
    loaded = Recipe.load(work.recipe)
    from_hub = loaded.model_copy(update={"rows": Source(hub="me/rows")})
    assert hub._licences(hub._api("me/rows"), from_hub) == ["cc-by-sa-4.0"]
    assert hub._licences(hub._api("me/rows"), loaded) == []


@pytest.mark.parametrize(
    ("split", "licences"),
    [
        ({}, ["cc-by-sa-4.0"]),
        ({"format": "preferences"}, ["cc-by-sa-4.0", "mit"]),
        ({"format": "unpaired"}, ["cc-by-sa-4.0", "mit"]),
        ({"augment": {}}, ["cc-by-sa-4.0", "mit"]),
    ],
    ids=["prompts", "preferences", "unpaired", "augment"],
)
def test_the_corpuss_licence_is_carried_where_its_texts_are_published(work, hub_server, split, licences):
    hub_server.add("me/rows", {"README.md": b"---\nlicense: cc-by-sa-4.0\n---\n"})
    hub_server.add("me/corpus", {"README.md": b"---\nlicense: mit\n---\n"})
    recipe = Recipe(
        rows=Source(hub="me/rows"),
        corpus=Source(hub="me/corpus"),
        splits={"train": {"filter": "SELECT row_id FROM rows", **split}},
    )
    assert hub._licences(hub._api("me/rows"), recipe) == licences


# Pushing again.


def test_an_identical_push_makes_no_commit_and_sends_nothing(work, hub_server):
    first = hub.push(work.recipe, work.store, "me/curated")
    hub_server.asked.clear()
    again = hub.push(work.recipe, work.store, "me/curated")
    assert (again.sent, again.removed, again.commit) == ([], [], first.commit)
    assert again.unchanged == len(first.sent)
    assert hub_server.count("PUT|preupload|commit") == 0
    # What is there is looked at, and nothing more is asked.
    assert [line.split("/")[0] for line in hub_server.asked] == ["GET ", "GET "]


def test_only_what_changed_travels_and_a_split_that_is_gone_is_removed(work, hub_server):
    hub_server.add("me/curated", {"notes.txt": b"mine"}, private=True)
    hub.push(work.recipe, work.store, "me/curated")
    work.recipe.write_text(RECIPE.replace("  pairs: {filter: filters/some.sql, format: preferences}\n", ""))
    pushed = hub.push(work.recipe, work.store, "me/curated")
    assert sorted(pushed.sent) == ["DETAILS.md", "README.md", "recipe.yaml", "seamcurate.json"]
    assert sorted(pushed.removed) == [
        "data/pairs/train-00000-of-00001.parquet",
        "ledger/pairs.parquet",
    ]
    assert text(hub_server, "notes.txt") == "mine"


def test_a_push_that_stopped_sends_only_what_is_missing(work, hub_server, monkeypatch):
    monkeypatch.setattr("seamcurate.publish.files._ROWS_PER_FILE", 7)
    work.recipe.write_text(RECIPE.replace("  pairs: {filter: filters/some.sql, format: preferences}\n", ""))
    hub_server.faults.append(Fault("PUT /lfs", 400, after=2))
    with pytest.raises(HubError, match="the Hub refuses"):
        hub.push(work.recipe, work.store, "me/curated")
    assert hub_server.count("PUT /lfs") == 3 and len(hub_server.repos["me/curated"].commits) == 1
    hub_server.asked.clear()
    hub.push(work.recipe, work.store, "me/curated")
    large = [name for name in hub_server.files("me/curated") if name.endswith((".parquet", ".png"))]
    assert sum(name.startswith("data/train/") for name in large) == 5
    assert hub_server.count("PUT /lfs") == len(large) - 2


# Faults.


@pytest.mark.parametrize(
    ("fault", "message", "commits"),
    [
        (Fault("commit", 412), "somebody else committed meanwhile", 1),
        (Fault("commit", 429, 9, headers={"retry_after": "3600"}), "the Hub's rate limit is reached", 1),
        (
            Fault("commit", 429, 9, headers={"retry_after": "Fri, 01 Jan 2100 00:00:00 GMT"}),
            "the Hub's rate limit is",
            1,
        ),
        (Fault("commit", 429, 9), "the Hub's rate limit is reached.*what has arrived is not sent again$", 4),
        (Fault("commit", 503, 9), r"the Hub fails \(status 503\).*what has arrived is not sent again$", 4),
        (Fault("commit", 0, 9), "the connection to the Hub broke.*what has arrived is not sent again$", 4),
        (Fault("commit", 403), "the token may not write there", 1),
        (Fault("repos/create", 503, 9), r"the Hub fails \(status 503\)", 0),
        (Fault("validate-yaml", 400, body={"errors": [{"message": f"echo {CANARY}"}]}), "echo …", 0),
    ],
)
def test_what_the_hub_answers_becomes_one_line(work, hub_server, caplog, capfd, monkeypatch, fault, message, commits):
    slept = []
    monkeypatch.setattr(hub, "time", SimpleNamespace(sleep=slept.append))
    caplog.set_level(logging.DEBUG)
    hub_server.faults.append(fault)
    with pytest.raises(HubError, match=message) as caught:
        hub.push(work.recipe, work.store, "me/curated")
    assert hub_server.count("POST .*/commit/") == commits and sum(slept) < 1
    assert "\n" not in str(caught.value) and str(caught.value).startswith("me/curated: ")
    shown = "".join(traceback.format_exception(caught.value)) + caplog.text + "".join(capfd.readouterr())
    assert CANARY not in shown
    for name, blob in hub_server.files("me/curated").items() if "me/curated" in hub_server.repos else ():
        assert CANARY.encode() not in hub_server.bytes(blob), name


@pytest.mark.parametrize("status", [503, 429, 0])
def test_a_commit_that_fails_at_first_is_tried_again(work, hub_server, status, capfd):
    hub_server.faults.append(Fault("commit", status, 2))
    pushed = hub.push(work.recipe, work.store, "me/curated")
    told = f"the Hub {f'answered {status}' if status else 'hung up'}; trying again in 0 s"
    assert capfd.readouterr().err.splitlines().count(told) == 2
    assert hub_server.repos["me/curated"].commits[-1][0] == pushed.commit and hub_server.count("POST .*/commit/") == 3


def test_a_commit_whose_answer_was_lost_is_not_made_twice(work, hub_server):
    hub_server.faults.append(Fault("commit", 503, done=True))
    pushed = hub.push(work.recipe, work.store, "me/curated")
    assert len(hub_server.repos["me/curated"].commits) == 2
    assert pushed.commit == hub_server.repos["me/curated"].commits[-1][0]


def test_a_commit_in_between_is_not_overwritten(work, hub_server, monkeypatch):
    real = hub._send

    def late(api, repo_id, *rest):
        hub_server.add(repo_id, {"README.md": b"somebody else's"})
        return real(api, repo_id, *rest)

    monkeypatch.setattr(hub, "_send", late)
    with pytest.raises(HubError, match="somebody else committed meanwhile"):
        hub.push(work.recipe, work.store, "me/curated")
    assert text(hub_server, "README.md") == "somebody else's"


@pytest.mark.parametrize(
    ("token", "repo_id", "message"),
    [
        (None, "me/curated", "no token to push to me/curated with; log in with `hf auth login`, or set HF_TOKEN"),
        ("hf_wrong", "me/curated", "me/curated: the Hub does not accept the token"),
        ("hf_read", "me/private", "me/private: the token may not write there"),
        ("hf_read", "me/curated", "me/curated: the token may not write there"),
        (CANARY, "foreign/curated", "foreign/curated: the token may not write there"),
        (CANARY, "me/public", "me/public is public already; give --public"),
        (CANARY, "curated", "'curated' is no repository's id; write owner/name"),
        (f"{CANARY} {CANARY}", "me/curated", "the token holds characters that no token has"),
    ],
)
def test_who_may_not_push_is_told_why(work, hub_server, monkeypatch, token, repo_id, message):
    hub_server.add("me/private", {}, private=True)
    hub_server.add("me/public", {})
    monkeypatch.delenv("HF_TOKEN")
    if token is not None:
        monkeypatch.setenv("HF_TOKEN", token)
    with pytest.raises(HubError) as caught:
        hub.push(work.recipe, work.store, repo_id)
    assert str(caught.value).startswith(message) and CANARY not in str(caught.value)


def test_a_public_data_set_is_made_when_asked(work, hub_server):
    hub.push(work.recipe, work.store, "me/curated", public=True)
    assert not hub_server.repos["me/curated"].private
    assert hub.push(work.recipe, work.store, "me/curated", public=True).sent == []


def test_an_unreachable_hub_and_an_offline_client_are_told(hub_server, monkeypatch):
    monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:9")
    # Nothing was sent, so that nothing is said of what has arrived.
    with pytest.raises(HubError, match=r"me/curated: the connection to the Hub broke.*run the same command again$"):
        hub.repository("me/curated")
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    close_session()
    with pytest.raises(HubError, match="HF_HUB_OFFLINE forbids asking"):
        hub.repository("me/curated")


@pytest.mark.parametrize(
    ("before", "after", "message"),
    [
        (
            "rer: {fit: quantiles}",
            "rer: {fit: quantiles}, perplexity: {}",
            "it lacks columns of step baseline_perplexity; run",
        ),
        (
            "retrieve: {k: 5, band: [0.5, 0.9]}",
            "retrieve: {k: 5, band: [0.5, 0.8]}",
            r"step worse_contrast was made by another configuration: worse_contrast.band: \[0.5, 0.9\] → \[0.5, 0.8\]",
        ),
    ],
)
def test_a_store_of_another_recipe_is_not_published(work, before, after, message):
    work.recipe.write_text(RECIPE.replace(before, after).replace("reward: {fake", "base: {fake: b}, reward: {fake"))
    with pytest.raises(StaleError, match=message):
        hub.prepare(work.recipe, work.store, "me/curated")


def test_a_recipe_without_splits_is_refused(work):
    work.recipe.write_text(RECIPE.split("splits:")[0])
    with pytest.raises(ExportError, match="names no `splits`"):
        hub.prepare(work.recipe, work.store, "me/curated")


# Running it again.


def test_a_published_recipe_gives_the_published_files(work, hub_server, tmp_path):
    pushed = hub.push(work.recipe, work.store, "me/curated")
    files = tmp_path / "files"
    files.mkdir()
    for name in ("rows.parquet", "corpus.parquet"):
        shutil.copy(work.recipe.parent / name, files)
    # What was published stays as it was, whatever lies there under its name.
    (files / "recipe.yaml").write_text("rows: {jsonl: another.jsonl}")
    hub_server.asked.clear()
    done = reproduction.reproduce("me/curated", tmp_path / "again", files=files)
    assert done.identical and done.commit == pushed.commit
    assert [one.path for one in done.files] == [
        "data/pairs/train-00000-of-00001.parquet",
        "data/train/train-00000-of-00001.parquet",
        "ledger/pairs.parquet",
        "ledger/train.parquet",
    ]
    assert {one.verdict for one in done.files} == {"identical"}
    assert list(done.lines())[-1] == f"4 of 4 files came out as published at {pushed.commit}"
    # A moving name is only ever asked once, for the commit it stands for.
    assert hub_server.count("/main") == 0 and hub_server.count("GET /api/datasets/me/curated$") == 1


def test_other_rows_make_other_files_and_are_told(work, hub_server, tmp_path):
    hub.push(work.recipe, work.store, "me/curated")
    files = tmp_path / "files"
    files.mkdir()
    shutil.copy(work.recipe.parent / "corpus.parquet", files)
    rows = pq.read_table(work.recipe.parent / "rows.parquet").to_pylist()
    rows[3]["response"] = "something else altogether"
    pq.write_table(pa.Table.from_pylist(rows), files / "rows.parquet")
    done = reproduction.reproduce("me/curated", tmp_path / "again", files=files)
    found = {one.path: one for one in done.files}
    assert not done.identical and found["data/train/train-00000-of-00001.parquet"].verdict == "differs"
    assert found["ledger/pairs.parquet"].verdict == "same rows"


def test_what_only_the_author_has_is_named(work, hub_server, tmp_path):
    hub.push(work.recipe, work.store, "me/curated")
    with pytest.raises(SourceError, match=r"recipe/(corpus|rows)\.parquet: no such file.*--files names the folder"):
        reproduction.reproduce("me/curated", tmp_path / "again")


def test_a_served_model_that_only_the_author_has_is_named(tmp_path):
    (tmp_path / "rm").mkdir()
    served = (
        "models: {reward: {reward_server: 'http://127.0.0.1:1', api: vllm, model: %s, same_as: itself, tokenizer: %s}}"
    )
    assert hub._only_here(served % ("org/rm", "org/rm"), tmp_path) == ([], [])
    local, (note,) = hub._only_here(served % ("/models/rm", "rm"), tmp_path)
    assert local == ["/models/rm", "rm"] and note.startswith("the recipe names /models/rm, outside its folder")


def test_tables_that_differ_are_told_apart():
    one = pa.table({"a": [1.0, 2.0, None], "b": ["x", "y", "z"]})
    assert reproduction.difference(one, one) == ""
    assert reproduction.difference(one, one.slice(1)) == "2 rows where 3 were published"
    assert reproduction.difference(one, one.drop_columns("b")) == "other columns: b"
    other = pa.table({"a": [1.0, 2.25, None], "b": ["x", "y", "w"]})
    assert reproduction.difference(one, other) == "other values in a by up to 0.25, b"


def test_a_second_run_stands_at_the_commits_of_the_first():
    loaded = Recipe(
        rows=Source(hub="me/rows", revision="main"),
        corpus=Source(hub="me/corpus"),
        models=Models(policy=CausalLM(path="me/policy"), reward=FakeModel(path="reward")),
        steps=(Perplexity(base=CausalLM(path="me/base", revision="v1")),),
    )
    a, b, c, d = ("a" * 40, "b" * 40, "c" * 40, "d" * 40)
    models = {
        "policy": {"causal_lm": f"me/policy@{c}", "date": "2026-01-31"},
        "base": {"causal_lm": f"me/base@{d} on me/whole@{a}"},
        "reward": {"date": "yesterday"},
    }
    steps = {"x": {"identity": models}, "y": {"identity": None}}
    known = {"source": {"hub": "me/rows", "commit": a}, "corpus": {"hub": "me/corpus", "commit": b}, "steps": steps}
    found = reproduction.pinned(loaded, known)
    assert (found.rows.revision, found.corpus.revision, found.models.policy.revision) == (a, b, c)
    assert found.steps[0].base.revision == d and found.models.reward == loaded.models.reward
    gguf = loaded.model_copy(update={"models": Models(policy=CausalLM(path="me/gguf/x.gguf", tokenizer_of="me/x"))})
    known["steps"] = {"x": {"identity": {"policy": {"causal_lm": f"me/gguf/x.gguf@{c} with me/x@{d}"}}}}
    policy = reproduction.pinned(gguf, known).models.policy
    assert (policy.revision, policy.tokenizer_of, policy.base) == (c, f"me/x@{d}", None)
    heads = [SequenceClassifier(path="me/rm", output=output) for output in ("kind", "right")]
    ensemble = RewardEnsemble(ensemble=[*heads, SequenceClassifier(path="me/other")], normalise="standardise")
    of_heads = [{"sequence_classifier": f"me/rm@{a}", "date": "2026-02-01"}, {"sequence_classifier": f"me/rm@{a}"}]
    members = [*of_heads, {"sequence_classifier": f"me/other@{b}"}]
    known["steps"] = {"x": {"identity": {"reward": {"ensemble": members, "combine": "mean"}}}}
    pinned = reproduction.pinned(loaded.model_copy(update={"models": Models(reward=ensemble)}), known).models.reward
    assert [(member.revision, member.date and str(member.date)) for member in pinned.ensemble] == [
        (a, "2026-02-01"),
        (a, None),
        (b, None),
    ]
    # A served model is held against the weights of the first run again.
    known["steps"] = {
        "x": {"identity": {"reward": {"same_as": {"sequence_classifier": f"me/rm@{a}", "date": "2026-02-01"}}}}
    }
    for same_as in (None, SequenceClassifier(path="me/rm")):
        served = RewardServer(path="http://127.0.0.1:1", api="vllm", model="me/rm", same_as=same_as)
        again = reproduction.pinned(
            loaded.model_copy(update={"models": Models(reward=served)}), known
        ).models.reward.same_as
        assert (again.path, again.revision, str(again.date)) == ("me/rm", a, "2026-02-01")
    # An adapter is put onto the commit of its base.
    assert (found.steps[0].base.base, found.models.policy.base) == (f"me/whole@{a}", None)
    # A date that the author's prompts held is held again, whatever the day.
    assert (str(found.models.policy.date), found.steps[0].base.date) == ("2026-01-31", None)


@pytest.mark.parametrize(
    ("recipe", "message"),
    [
        ("rows: {parquet: /etc/passwd}", "names '/etc/passwd', outside its own folder"),
        ("rows: {parquet: [a.parquet, ../../b.parquet]}", "names '../../b.parquet', outside"),
        ("rows: {jsonl: ~/.ssh/id}", "names '~/.ssh/id', outside"),
        ("rows: {csv: 'data/../../x'}", "outside"),
        ("splits: {a: {filter: /x.sql}}", "outside"),
        ("splits: {a: {filter: ' ../x.sql'}}", "outside"),
        ("steps: [attack: {vectors: ../v.txt}]", "outside"),
        ("models: {policy: {causal_lm: /models/mine}}", "outside"),
        ("rows: {parquet: 'file:///etc/passwd'}", "outside"),
        ("rows: {jsonl: 's3://bucket/x.jsonl'}", "outside"),
        ("rows: {jsonl: 'simplecache::https://thief/x.jsonl'}", "outside"),
        ("rows: {csv: 'C:\\Users\\me\\x.csv'}", "outside"),
        ("rows: {csv: '\\\\thief\\share\\x.csv'}", "outside"),
        ("rows: {csv: '..\\..\\x.csv'}", "outside"),
        ("models: {policy: {causal_lm: a/b, trust_remote_code: true}}", "asks to run a model's own code"),
        ("models: {policy: {causal_lm: a/b, trust_remote_code: 'yes'}}", "asks to run a model's own code"),
        ("models: {policy: {causal_lm: a/b, !!null trust_remote_code: true}}", "asks to run a model's own code"),
        ("rows: {!!null jsonl: /etc/passwd}", "names '/etc/passwd', outside"),
        ("splits: {a: {filter: x.sql, augment: {evaluation: {jsonl: ../q.jsonl}}}}", "names '../q.jsonl', outside"),
        ("steps: [nearest: {to: {jsonl: ../q.jsonl}, name: a}]", "names '../q.jsonl', outside"),
        ("steps: [judge: {template: /home/me/notes.txt}]", "outside"),
        ("steps: [judge: {template: ../notes.txt}]", "outside"),
        ("models: {reward: {rubric: /home/me/rubric.yaml, judge: {fake: j}}}", "outside"),
        ("models: {reward: {judge: {fake: j}, template: ../notes.txt}}", "outside"),
        ("a: &a [x, x]\nb: &b [*a, *a]\nc: [*b, *b]", "uses YAML aliases"),
        ("[" * 5000, "nests too deeply"),
        ("rows: {parquet: [", "not readable as YAML"),
    ],
)
def test_a_stranger_s_recipe_that_would_do_more_than_compute_is_refused(recipe, message):
    with pytest.raises(HubError, match="^them/it: .*" + re.escape(message)) as caught:
        reproduction.check(recipe, "them/it")
    assert "\n" not in str(caught.value)


def test_a_link_that_an_earlier_call_left_is_not_written_through(hub_server, tmp_path):
    (tmp_path / "mine.yaml").write_text("mine")
    (tmp_path / "again/recipe").mkdir(parents=True)
    (tmp_path / "again/recipe/recipe.yaml").symlink_to(tmp_path / "mine.yaml")
    recipe = b"rows: {parquet: absent.parquet}\nsteps: [random]\n"
    hub_server.add("them/it", {"recipe.yaml": recipe, "seamcurate.json": b'{"format": 1, "trainer": "trl"}'})
    with pytest.raises(SeamcurateError):
        reproduction.reproduce("them/it", tmp_path / "again")
    assert (tmp_path / "mine.yaml").read_text() == "mine"


def test_a_folder_that_an_earlier_call_linked_is_not_written_into(hub_server, tmp_path):
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine/keep.sql").write_text("mine")
    (tmp_path / "again/recipe").mkdir(parents=True)
    (tmp_path / "again/recipe/filters").symlink_to(tmp_path / "mine")
    recipe = b"rows: {parquet: absent.parquet}\nsplits: {a: {filter: filters/keep.sql}}\n"
    facts = b'{"format": 1, "trainer": "trl"}'
    hub_server.add("them/it", {"recipe.yaml": recipe, "seamcurate.json": facts, "filters/keep.sql": b"theirs"})
    with pytest.raises(SeamcurateError):
        reproduction.reproduce("them/it", tmp_path / "again")
    assert (tmp_path / "mine/keep.sql").read_text() == "mine"
    assert (tmp_path / "again/recipe/filters/keep.sql").read_text() == "theirs"


@pytest.mark.parametrize("asks", [True, False])
def test_a_recipe_that_runs_a_model_s_code_is_told_of_when_it_is_pushed(asks):
    text = f"models: {{policy: {{causal_lm: a/b, trust_remote_code: {str(asks).lower()}}}}}"
    assert any("trust_remote_code" in note for note in hub._only_here(text, Path())[1]) == asks


@pytest.mark.parametrize(
    "place",
    [
        "models: {reward: {%s}}\nsteps: [reward: {}]",
        "steps: [reward: {reward: {%s}}]",
        "models: {reward: {ensemble: [{fake: r}, {%s}], normalise: standardise}}\nsteps: [reward: {}]",
    ],
)
@pytest.mark.parametrize("function", ["verifier.py:score", "/tmp/verifier.py:score", "../verifier.py:score"])
def test_a_stranger_s_reward_function_is_not_run(place, function, stranger, tmp_path):
    mark = tmp_path / "ran"
    code = f"open({str(mark)!r}, 'w')\ndef score(completions): return [1]\n".encode()
    for folder in ("mine", "files"):
        (tmp_path / folder / "verifier.py").write_bytes(code)
    recipe = "rows: {jsonl: q.jsonl, response: response}\n" + place % f"function: '{function}'"
    with pytest.raises(
        HubError, match=r"^them/it: its recipe (asks to run the reward function|names .*outside)"
    ) as refused:
        stranger(recipe, {"verifier.py": code})
    assert str(refused.value).endswith("it is not run") and "\n" not in str(refused.value)
    assert not mark.exists()
    assert any("`reproduce` will refuse it" in note for note in hub._only_here(recipe, Path())[1])


def test_a_bundled_reward_function_is_seamcurate_s_own_code(stranger):
    recipe = "rows: {jsonl: q.jsonl, response: response}\nmodels: {reward: {function: regex_match, arguments: {pattern: c}}}\n"
    recipe += "steps: [reward: {}]\nsplits: {a: {filter: 'SELECT row_id FROM rows WHERE reward = 1'}}"
    assert stranger(recipe).report.rows == 2


def test_a_plain_recipe_is_not_refused():
    reproduction.check(RECIPE, "them/it")
    reproduction.check("steps: [length_incentive: {stop: ['Answer:', 'and so on ..']}]", "them/it")
    reproduction.check("splits: {a: {filter: '/* all */ SELECT row_id FROM rows'}}", "them/it")
    reproduction.check("splits: {a: {filter: x.sql, by: reward, note: '~ about /all'}}", "them/it")
    reproduction.check("models: {reward: {rubric: [{name: a, text: '/etc is named'}], judge: {fake: j}}}", "them/it")
    reproduction.check("steps: [judge: {template: '/think\\n{question}'}, length_incentive: {stop: [/end]}]", "them/it")


FACTS = b'{"format": 1, "trainer": "trl"}'
ROWS = b'{"prompt": "a b", "response": "c d"}\n{"prompt": "e f", "response": "g h"}\n'


@pytest.fixture
def stranger(hub_server, tmp_path, monkeypatch):
    """Publish a recipe as a stranger does, and reproduce it in a working folder with files of the user's own."""
    for name in ("files", "mine"):
        (tmp_path / name).mkdir()
    (tmp_path / "files/q.jsonl").write_bytes(ROWS)
    monkeypatch.chdir(tmp_path / "mine")

    def reproduce(recipe: str, more: dict[str, bytes] | None = None, **options):
        hub_server.add("them/it", {"recipe.yaml": recipe.encode(), "seamcurate.json": FACTS, **(more or {})})
        return reproduction.reproduce("them/it", tmp_path / "again", files=tmp_path / "files", **options)

    return reproduce


OUTSIDE = {
    "a filter": ("splits: {a: {filter: mine.sql}}", "names the filter 'mine.sql' and does not bring it"),
    "a filter below": ("splits: {a: {filter: sub/lowest.sql}}", "names the filter 'sub/lowest.sql' and does not"),
    "a template": (
        "models: {judge: {fake: j}}\nsteps: [judge: {template: mine.txt}]",
        "names the template 'mine.txt' and does not bring it",
    ),
    "a rubric": (
        "models: {reward: {rubric: mine.yaml, judge: {fake: j}}}\nsteps: [reward: {}]",
        "names the rubric 'mine.yaml' and does not bring it",
    ),
    "a policy": ("models: {base: {causal_lm: mine}}\nsteps: [perplexity: {}]", "mine lies outside"),
    "a policy by its field": ("models: {base: {path: mine}}\nsteps: [perplexity: {}]", "mine lies outside"),
    "a step's own policy": ("steps: [perplexity: {base: {causal_lm: mine}}]", "mine lies outside"),
    "a reward model": ("models: {reward: {sequence_classifier: mine}}\nsteps: [reward: {}]", "mine lies outside"),
    "an encoder": ("models: {encoder: {sentence_encoder: mine}}\nsteps: [project: {}]", "mine lies outside"),
    "a masked model": (
        "models: {reward: {fake: r}, encoder: {fake: e}}\nsteps: [attack: {method: bert_attack, masked_model: mine}]",
        "mine lies outside",
    ),
    "a lexicon": (
        "models: {reward: {fake: r}, encoder: {fake: e}}\nsteps: [attack: {method: pwws, wordnet: mine}]",
        "mine lies outside",
    ),
    "antonyms": (
        "models: {reward: {fake: r}, encoder: {fake: e}}\n"
        "steps: [attack: {method: pwws, wordnet: q.jsonl, antonyms: mine.parquet}]",
        "mine.parquet lies outside",
    ),
    "word vectors": (
        "models: {reward: {fake: r}, encoder: {fake: e}}\nsteps: [attack: {method: ga, vectors: mine.txt}]",
        "mine.txt lies outside",
    ),
}


@pytest.mark.parametrize(("recipe", "message"), OUTSIDE.values(), ids=OUTSIDE)
def test_nothing_of_the_working_folder_is_read_for_a_stranger(recipe, message, stranger, tmp_path):
    mine = tmp_path / "mine"
    (mine / "mine").mkdir()
    for name in ("mine.sql", "mine.txt", "mine.yaml", "mine.parquet", "sub/lowest.sql"):
        (mine / name).parent.mkdir(exist_ok=True)
        (mine / name).write_text("SELECT row_id FROM rows")
    with pytest.raises(HubError, match=f"^them/it: .*{re.escape(message)}") as caught:
        stranger("rows: {jsonl: q.jsonl}\n" + recipe)
    assert "\n" not in str(caught.value)


LINKED = {
    "rows": "rows: {jsonl: out.jsonl}",
    "a glob of rows": "rows: {jsonl: 'o*.jsonl'}",
    "a corpus": "rows: {jsonl: q.jsonl}\ncorpus: {jsonl: out.jsonl}",
    "rows of a linked folder": "rows: {jsonl: folder/q.jsonl}",
    "a saved data set that lists files": "rows: {arrow: saved}",
    "a set to compare with": "rows: {jsonl: q.jsonl}\n"
    "models: {encoder: {fake: e}}\nsteps: [nearest: {to: {jsonl: out.jsonl}, name: a}]",
    "an evaluation set": "rows: {jsonl: q.jsonl}\n"
    "splits: {a: {filter: lowest.sql, by: x, augment: {evaluation: {jsonl: out.jsonl}}}}",
    "a filter": "rows: {jsonl: q.jsonl}\nsplits: {a: {filter: out.sql}}",
    "a template": "rows: {jsonl: q.jsonl}\nsteps: [judge: {template: out.txt}]",
    "a rubric": "rows: {jsonl: q.jsonl}\nsteps: [reward: {reward: {rubric: out.yaml, judge: {fake: j}}}]",
    "a model": "rows: {jsonl: q.jsonl}\nsteps: [perplexity: {base: {causal_lm: model}}]",
    "an adapter's base": "rows: {jsonl: q.jsonl}\nsteps: [perplexity: {base: {causal_lm: adapter}}]",
    "a base that is named": "rows: {jsonl: q.jsonl}\nsteps: [perplexity: {base: {causal_lm: a/b, base: model}}]",
    "a base at a revision": "rows: {jsonl: q.jsonl}\nsteps: [perplexity: {base: {causal_lm: a/b, base: model@1}}]",
}


@pytest.mark.parametrize("recipe", LINKED.values(), ids=LINKED)
def test_a_link_or_a_list_that_leads_out_of_the_author_s_files_is_not_followed(recipe, stranger, tmp_path):
    files, outside = tmp_path / "files", tmp_path / "outside"
    outside.mkdir()
    for name in ("q.jsonl", "secret.arrow", "weights.safetensors"):
        (outside / name).write_bytes(ROWS)
    for name in ("out.jsonl", "out.sql", "out.txt", "out.yaml"):
        (files / name).symlink_to(outside / "q.jsonl")
    (files / "folder").symlink_to(outside)
    for name in ("saved", "model", "model@1", "adapter"):
        (files / name).mkdir()
    (files / "saved/state.json").write_text(json.dumps({"_data_files": [{"filename": str(outside / "secret.arrow")}]}))
    (files / "model/model.safetensors").symlink_to(outside / "weights.safetensors")
    (files / "model@1/model.safetensors").symlink_to(outside / "weights.safetensors")
    (files / "adapter/adapter_config.json").write_text(json.dumps({"base_model_name_or_path": str(outside)}))
    with pytest.raises(HubError, match=r"^them/it: .*outside the recipe's folder.* not read"):
        stranger(recipe)


def test_what_the_author_gave_and_what_comes_with_seamcurate_are_read(stranger, tmp_path):
    (tmp_path / "mine/lowest.sql").write_text("SELECT row_id, 'taken from here' AS rule FROM rows")
    (tmp_path / "files/sub").mkdir()
    (tmp_path / "files/sub/q.jsonl").write_bytes(ROWS)
    recipe = "rows: {jsonl: sub/*.jsonl}\nsteps: [random: {}]\n"
    recipe += "splits: {a: {filter: lowest.sql, rate: 0.5, by: baseline_random}}\n"
    stranger(recipe)
    ledger = pq.read_table(tmp_path / "again/splits/a/ledger.parquet")
    assert set(ledger["rule"].to_pylist()) == {"keep the lowest 50 % by baseline_random"}


ASKS = (
    "rows: {jsonl: q.jsonl}\nmodels: {generator: {openai_server: m, base_url: 'URL', api_key: KEY, retries: 0}}\n"
    "steps: [generate: {k: 1}]\nsplits: {a: {filter: SELECT row_id FROM rows, format: preferences}}\n"
)


@pytest.mark.parametrize(
    "key",
    [
        *("HF_TOKEN", "HUGGING_FACE_HUB_TOKEN", "HUGGINGFACE_TOKEN", "AWS_SECRET_ACCESS_KEY", "AWS_SESSION_TOKEN"),
        *("GITHUB_TOKEN", "GH_TOKEN", "SSH_AUTH_SOCK", "NPM_TOKEN", "DATABASE_URL", "PGPASSWORD", "MY_SECRET_KEY"),
    ],
)
def test_a_key_that_is_no_language_model_s_is_never_sent(key, stranger, capsys, monkeypatch):
    monkeypatch.setenv(key, CANARY)
    with endpoint.serving() as server:
        with pytest.raises(HubError, match=f"^them/it: its recipe wants {key} sent to {server.url}; that is no"):
            stranger(
                ASKS.replace("URL", server.url).replace("KEY", key), endpoints=True, keys=[key], ask=lambda shown: True
            )
        assert server.requests == []
    assert CANARY not in capsys.readouterr().err


def test_every_endpoint_and_the_name_of_its_key_are_shown_before_anybody_is_asked(stranger, capsys, monkeypatch):
    monkeypatch.setenv("MY_MODEL_KEY", "sk-canary")
    recipe = (
        "rows: {jsonl: q.jsonl}\nmodels:\n"
        "  generator: {openai_server: m, base_url: 'http://169.254.169.254/latest/v1', api_key: MY_MODEL_KEY}\n"
        "  judge: {path: gpt}\n"
        "  reward: {judge: {openai_server: r, base_url: 'http://there.example:8000/x/v1'}}\n"
        "steps: [generate: {k: 1}, ask_query_type: {judge: {openai_server: n, base_url: 'http://there.example:8000/x/v1'}}]\n"
    )
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
    shown = []
    with pytest.raises(HubError, match=r"^them/it: its endpoints were not allowed; nothing was sent$"):
        stranger(recipe, ask=lambda endpoints: shown.extend(map(str, endpoints)))
    assert shown == [
        "r at http://there.example:8000/x/v1, without a key (OPENAI_API_KEY is not set)",
        "m at http://169.254.169.254/latest/v1 (a private or link-local address), with the key in MY_MODEL_KEY",
        "gpt at https://api.openai.com/v1, without a key (OPENAI_API_KEY is not set)",
        "n at http://there.example:8000/x/v1, without a key (OPENAI_API_KEY is not set)",
    ]
    assert capsys.readouterr().err.splitlines() == [f"them/it asks {line}" for line in shown]
    with pytest.raises(HubError, match="give --endpoints --key MY_MODEL_KEY to allow it") as refused:
        stranger(recipe)
    assert all(line in str(refused.value) for line in shown)


def test_a_server_of_rewards_is_an_endpoint_too(stranger, monkeypatch):
    monkeypatch.setenv("RM_KEY", "sk-canary")
    with endpoint.serving() as server:
        recipe = (
            "rows: {jsonl: q.jsonl}\nmodels:\n"
            f"  reward: {{reward_server: '{server.url}', api: vllm, model: rm, same_as: itself, api_key: RM_KEY}}\n"
            "steps: [reward: {}]\n"
        )
        shown = f"rm at {server.url} \\(this machine\\), with the key in RM_KEY"
        with pytest.raises(HubError, match=f"its recipe asks an endpoint \\({shown}\\)"):
            stranger(recipe)
        assert server.requests == [] and server.headers == []
        with pytest.raises(HubError, match="outside its own folder"):
            stranger(recipe.replace("model: rm", "model: rm, tokenizer: ../other"), endpoints=True)


def test_a_key_goes_only_where_it_was_allowed_to(stranger, monkeypatch):
    monkeypatch.setenv("MY_MODEL_KEY", "sk-canary")
    monkeypatch.setenv("OPENAI_API_KEY", "sk-another")
    with endpoint.serving() as server:
        recipe = ASKS.replace("URL", server.url).replace("KEY", "MY_MODEL_KEY")
        with pytest.raises(HubError, match=r"; look at its recipe\.yaml, and give --key MY_MODEL_KEY to allow it"):
            stranger(recipe, endpoints=True)
        with pytest.raises(HubError, match="give --key OPENAI_API_KEY to allow it"):
            stranger(recipe.replace("MY_MODEL_KEY", "OPENAI_API_KEY"), endpoints=True, keys=["MY_MODEL_KEY"])
        assert server.requests == []
        stranger(recipe, endpoints=True, keys=["MY_MODEL_KEY"])
        assert len(server.requests) == 2


@pytest.mark.parametrize(
    ("url", "message"),
    [
        ("http://me:sk-canary@there/v1", "base_url is http"),
        ("file:///etc/passwd", "base_url is http"),
        ("x", "base_url"),
    ],
)
def test_an_address_with_a_key_in_it_is_refused_and_not_repeated(url, message, stranger):
    with pytest.raises(SeamcurateError, match=message) as refused:
        stranger(ASKS.replace("URL", url).replace("KEY", "MY_MODEL_KEY"), endpoints=True)
    assert "canary" not in str(refused.value)


def test_a_refused_recipe_leaves_nothing_behind(hub_server, tmp_path):
    hub_server.add("them/it", {"recipe.yaml": b"rows: {parquet: /etc/passwd}", "seamcurate.json": b"{}"})
    with pytest.raises(HubError, match="outside its own folder"):
        reproduction.reproduce("them/it", tmp_path / "again")
    assert not (tmp_path / "again").exists()


def test_a_file_larger_than_any_that_is_pushed_is_not_read(hub_server, tmp_path):
    hub_server.add("them/it", {"recipe.yaml": b"# " + b"x" * 2**20, "seamcurate.json": b"{}"})
    with pytest.raises(HubError, match=r"recipe\.yaml is larger than any of seamcurate's; it is not read"):
        reproduction.reproduce("them/it", tmp_path / "again")
    assert hub_server.count("resolve") == 0 and not (tmp_path / "again").exists()


@pytest.mark.parametrize("name", ["../outside.sql", "sub/../../outside.sql"])
def test_a_filter_outside_the_recipes_folder_is_not_published(tmp_path, name):
    (tmp_path / "recipe").mkdir()
    (tmp_path / "outside.sql").write_text("SELECT row_id FROM rows")
    (tmp_path / "recipe/sub").mkdir()
    text = f"rows: {{parquet: rows.parquet}}\nsplits: {{a: {{filter: {name}}}}}\n"
    with pytest.raises(HubError, match=f"the recipe names '{re.escape(name)}', which cannot be published beside it"):
        hub._named_files(text, tmp_path / "recipe")


@pytest.mark.parametrize("name", ["recipe.yaml", "seamcurate.json", "README.md", "DETAILS.md"])
def test_a_template_takes_no_place_of_what_a_push_writes_itself(tmp_path, name):
    (tmp_path / name).write_text("mine")
    with pytest.raises(HubError, match="which cannot be published beside it"):
        hub._named_files(f"steps: [generate: {{template: {name}}}]", tmp_path)


def test_a_rubric_is_published_beside_the_recipe_and_taken_from_there(stranger, tmp_path):
    rubric = b"- {name: correct, text: It is correct.}\n"
    text = (
        "rows: {jsonl: q.jsonl, response: response}\nsteps: [reward: {reward: {rubric: r.yaml, judge: {fake: j}}}]\n"
        "splits: {a: {filter: SELECT row_id FROM rows}}\n"
    )
    (tmp_path / "mine/r.yaml").write_bytes(rubric)
    assert hub._named_files(text, tmp_path / "mine") == {"r.yaml": rubric.decode()}
    stranger(text, {"r.yaml": rubric})
    rewards = Store(tmp_path / "again").open().rows(["reward"])
    assert {value for table in rewards for value in table["reward"].to_pylist()} <= {0, 1}


def test_what_seamcurate_did_not_push_is_not_run(hub_server, tmp_path):
    hub_server.add("them/it", {"README.md": b"hello"})
    with pytest.raises(HubError, match=r"them/it has no recipe\.yaml"):
        reproduction.reproduce("them/it", tmp_path / "again")
    with pytest.raises(HubError, match="them/absent: no such data set, or no access to it"):
        reproduction.reproduce("them/absent", tmp_path / "again")
    with pytest.raises(HubError, match="it has no such revision"):
        reproduction.reproduce("them/it", tmp_path / "again", revision="v9")
    hub_server.add("them/it", {"recipe.yaml": RECIPE.encode(), "seamcurate.json": b'{"format": 99}'})
    with pytest.raises(HubError, match="written by a newer seamcurate"):
        reproduction.reproduce("them/it", tmp_path / "again")


# Comparing.


def test_a_store_and_what_was_pushed_from_it_are_the_same(work, hub_server):
    hub.push(work.recipe, work.store, "me/curated")
    assert list(comparison.diff(work.store.path, "me/curated").lines()) == [
        "no input differs",
        "split pairs: 10 of 40 rows kept, then 10 of 40; 0 rows moved",
        "split train: 32 of 40 rows kept, then 32 of 40; 0 rows moved",
    ]


def test_another_reward_model_explains_the_rows_that_moved(work, tmp_path):
    (tmp_path / "other").mkdir()
    other = made(tmp_path / "other", RECIPE.replace("reward: {fake: reward}", "reward: {fake: harsher}"))
    found = comparison.diff(work.store.path, other.store.path)
    (reward,) = found.inputs
    assert (reward.what, reward.before, reward.after) == ("reward.fake", "reward", "harsher")
    assert set(reward.steps) >= {"reward", "rewards_contrast"}
    moves = {one.split: one for one in found.splits}
    assert moves["pairs"].rows.num_rows == 0
    rows = moves["train"].rows.to_pylist()
    kept = [dict(zip(t["row_id"].to_pylist(), t["kept"].to_pylist(), strict=True)) for t in ledgers(work, other)]
    assert [r["row_id"] for r in rows] == [i for i in kept[0] if kept[0][i] != kept[1][i]] != []
    assert all("own seam_contrast changed (reward.fake: reward → harsher)" in row["why"] for row in rows)
    assert [line for line in found.lines() if line.startswith("  kept → dropped: ")]


def test_another_rate_explains_the_rows_that_moved_by_the_threshold(work, tmp_path):
    (tmp_path / "other").mkdir()
    other = made(tmp_path / "other", RECIPE.replace("rate: 0.2", "rate: 0.5").replace("  pairs", "  twins"))
    found = comparison.diff(work.store.path, other.store.path)
    assert [one.line() for one in found.inputs] == ["split train, parameters.rate: 0.2 → 0.5"]
    moves = {one.split: one for one in found.splits}
    assert [list(moves[name].lines()) for name in ("pairs", "twins")] == [
        ["split pairs: only on the first side"],
        ["split twins: only on the second side"],
    ]
    why = set(moves["train"].rows["why"].to_pylist())
    assert why == {"by rule “drop the lowest 50 % by seam_contrast” instead of “drop the lowest 20 % by seam_contrast”"}
    assert set(moves["train"].rows["kept_after"].to_pylist()) == {False}


def ledgers(*works: Work) -> list[pa.Table]:
    return [pq.read_table(work.store.path / "splits/train/ledger.parquet") for work in works]


def test_what_is_neither_a_store_nor_a_data_set_is_told(hub_server, tmp_path):
    with pytest.raises(StoreError, match="is no store"):
        comparison.diff(tmp_path, tmp_path)
    with pytest.raises(HubError, match="no such data set"):
        comparison.diff("me/absent", "me/absent")


# As a user would, in processes of their own.

PUSH = """
import os, signal, sys
from pathlib import Path
from huggingface_hub import HfApi
from seamcurate import Store
from seamcurate.publish import files
from seamcurate.publish import hub

files._ROWS_PER_FILE = 7
real, calls = HfApi.preupload_lfs_files, []

def dying(self, *args, **options):
    calls.append(1)
    if len(calls) == int(sys.argv[3]):
        os.kill(os.getpid(), signal.SIGKILL)
    return real(self, *args, **options)

HfApi.preupload_lfs_files = dying
done = hub.push(sys.argv[1], Store(sys.argv[2]), "me/curated")
print(len(done.sent), done.commit)
"""

LOAD = """
import json
from datasets import load_dataset
import re
from huggingface_hub import hf_hub_download
from seamcurate import Source
card = Path(hf_hub_download("me/curated", "DETAILS.md", repo_type="dataset")).read_text()
found = {name or "default": load_dataset("me/curated", name, split="train") for name in (None, "train", "pairs")}
source = Source(hub="me/curated", name="train", rename={"row_id": "place"})
print(json.dumps({
    "rows": {name: data.num_rows for name, data in found.items()},
    "scores": list(found["train"]["seam_contrast"]),
    "pairs": found["pairs"].column_names[:3],
    "commit": source.identity()["commit"],
    "read": sum(chunk.rows.num_rows for chunk in source.chunks()),
}))
rows = found["train"]
exec(re.search(r"def to_verl.*?\\.to_parquet\\(.*?\\)\\n", card, re.DOTALL)[0])
print(json.dumps(load_dataset("parquet", data_files="rows.parquet", split="train")[0]))
"""


def process(server: Hub, home: Path, code: str, *arguments: str, **settings: str) -> subprocess.CompletedProcess[str]:
    environment = {name: value for name, value in os.environ.items() if "proxy" not in name.lower()}
    environment |= {"HF_ENDPOINT": server.address, "HF_HOME": str(home), "HF_TOKEN": CANARY, "HF_HUB_OFFLINE": "0"}
    environment |= {"HF_DATASETS_OFFLINE": "0", "HF_HUB_DISABLE_XET": "1", "PYTHONPATH": str(Path.cwd())} | settings
    home.mkdir(exist_ok=True)
    command = [sys.executable, "-c", code, *arguments]
    return subprocess.run(command, env=environment, cwd=home, capture_output=True, text=True, timeout=300, check=False)


def test_a_killed_push_is_gone_on_with_and_datasets_reads_what_arrived(work, tmp_path):
    with serving() as server:
        server.tokens[CANARY] = "write"
        killed = process(server, tmp_path / "home", PUSH, str(work.recipe), str(work.store.path), "5")
        assert killed.returncode == -9
        sent = set(server.large)
        assert len(sent) > 0 and len(server.repos["me/curated"].commits) == 1
        done = process(server, tmp_path / "home", PUSH + LOAD, str(work.recipe), str(work.store.path), "99")
        assert done.returncode == 0, done.stderr[-3000:]
        puts = [line for line in server.asked if line.startswith("PUT")]
        assert len(puts) == len(set(puts)) == len(server.large) and len(server.repos["me/curated"].commits) == 2
        files = server.files("me/curated")
        assert sum(name.startswith("data/train/") and name.endswith(".parquet") for name in files) == 5
        assert CANARY not in killed.stderr + done.stderr + done.stdout
        found, first = map(json.loads, done.stdout.splitlines()[1:])
        assert found["rows"] == {"default": 32, "train": 32, "pairs": 50} and found["read"] == 32
        assert found["pairs"] == ["prompt", "chosen", "rejected"] and all(isinstance(s, float) for s in found["scores"])
        assert found["commit"] == server.repos["me/curated"].commits[-1][0]
        assert set(first) == {"data_source", "prompt", "ability", "reward_model", "extra_info"}
        assert first["prompt"][0]["role"] == "user" and first["data_source"] == "seamcurate/train"
        for name, blob in files.items():
            assert CANARY.encode() not in server.bytes(blob), name


XET = """
import sys
from seamcurate import Store
from seamcurate.publish import hub

print(hub.push(sys.argv[1], Store(sys.argv[2]), "me/curated").commit)
print(len(hub.push(sys.argv[1], Store(sys.argv[2]), "me/curated").sent))
"""


XET_READ = """
from datasets import load_dataset

print(load_dataset("me/curated", "train", split="train").num_rows)
"""


def test_a_push_by_xet_stores_the_shards_and_commits_their_hashes(work, tmp_path):
    pytest.importorskip("hf_xet")
    pytest.importorskip("huggingface_hub", "1.0")
    (tmp_path / "cas").mkdir()
    with serving(tmp_path / "cas") as server:
        server.tokens[CANARY] = "write"
        settings = {"HF_HUB_DISABLE_XET": "0"}
        done = process(server, tmp_path / "home", XET, str(work.recipe), str(work.store.path), **settings)
        assert done.returncode == 0, done.stderr[-3000:]
        assert server.count("PUT|objects/batch") == 0 and server.count("xet-write-token") > 0
        assert done.stdout.splitlines() == [server.repos["me/curated"].commits[-1][0], "0"]
        shard = work.store.path / "publish/data/train/train-00000-of-00001.parquet"
        blob = server.files("me/curated")["data/train/train-00000-of-00001.parquet"]
        assert blob.sha256 == hashlib.sha256(shard.read_bytes()).hexdigest()
        assert sum(file.stat().st_size for file in (tmp_path / "cas").rglob("*") if file.is_file()) > blob.size
        assert CANARY not in done.stderr + done.stdout

        # Reading it back, in a process that has nothing of it, goes by Xet alone.
        import hf_xet

        large = [file for file in (work.store.path / "publish").rglob("*") if file.name.endswith(LARGE)]
        hashes = hf_xet.hash_files([str(file) for file in large])
        server.xet = {
            hashlib.sha256(file.read_bytes()).hexdigest(): one.hash for file, one in zip(large, hashes, strict=True)
        }
        read = process(server, tmp_path / "elsewhere", XET_READ, **settings)
        assert read.returncode == 0, read.stderr[-3000:]
        assert read.stdout.split() == ["32"] and server.count("xet-read-token") > 0
        assert server.large == {} and CANARY not in read.stderr + read.stdout


@pytest.mark.parametrize(
    ("rows", "category"),
    [
        (0, "n<1K"),
        (999, "n<1K"),
        (1_000, "1K<n<10K"),
        (999_999, "100K<n<1M"),
        (1_000_000, "1M<n<10M"),
        (5 * 10**8, "100M<n<1B"),
        (10**12 - 1, "100B<n<1T"),
        (10**12, "n>1T"),
    ],
)
def test_the_size_category_is_the_hubs(rows, category):
    assert card.size_category(rows) == category
