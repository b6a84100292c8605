"""SEAM by adapters and a GGUF file, from a recipe to a split: planned, killed, resumed, and equal to the merged models."""

from __future__ import annotations

import json
import os
import shutil
import signal

import pytest
import yaml
from conftest import questions
from forked import forker
from models.test_adapters import adapted
from models.test_gguf import write
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification

from seamcurate import Recipe, Store, plan, query
from seamcurate.errors import ModelError, StaleError
from seamcurate.run.local import run_local

pytestmark = pytest.mark.slow

RECIPE = {
    "rows": {"jsonl": "rows.jsonl", "shard_rows": 6},
    "corpus": {"jsonl": "corpus.jsonl"},
    "models": {
        "policy": {"causal_lm": "sft", "dtype": "float32"},
        "reward": {"sequence_classifier": "rm", "dtype": "float32", "base": "moved"},
        "encoder": {"fake": "e"},
        "base": {"causal_lm": "base.gguf", "dtype": "float32"},
    },
    "steps": [{"retrieve": {"k": 3, "band": [0.5, 0.9]}}, {"seam": {"k": 3}}, {"perplexity": {}}],
    "splits": {"train": {"filter": "keep_above_lowest.sql", "by": "seam_contrast"}},
}
VALUES = ("reward", "rewards_contrast", "logprobs_contrast", "seam_contrast", "baseline_perplexity")


@pytest.fixture(scope="module")
def folder(policy_folder, tokenizer, tmp_path_factory):
    """A recipe with all its files beside it, and one of the same models merged."""
    folder = tmp_path_factory.mktemp("formats")
    for name, rows in {"rows": questions(18), "corpus": questions(60, start=1000)}.items():
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    shutil.copytree(policy_folder, folder / "base")
    adapted(AutoModelForCausalLM, folder / "base", folder / "sft", tokenizer)
    heads = {"task": "SEQ_CLS", "heads": ["score"], "num_labels": 1}
    adapted(AutoModelForSequenceClassification, policy_folder, folder / "rm", tokenizer, **heads)
    # The author's path is no other machine's.
    settings = json.loads((folder / "rm" / "adapter_config.json").read_text())
    settings["base_model_name_or_path"] = "/home/author/moved"
    (folder / "rm" / "adapter_config.json").write_text(json.dumps(settings))
    shutil.copytree(policy_folder, folder / "moved")
    write(policy_folder, folder / "base.gguf", tokenizer)
    (folder / "recipe.yaml").write_text(yaml.safe_dump(RECIPE))
    merged = {
        "policy": {"causal_lm": "sft-merged", "dtype": "float32"},
        "reward": {"sequence_classifier": "rm-merged", "dtype": "float32"},
        "base": {"causal_lm": "base", "dtype": "float32"},
    }
    (folder / "merged.yaml").write_text(yaml.safe_dump(RECIPE | {"models": RECIPE["models"] | merged}))
    return folder


def rows(store):
    return query(Store(store), f"SELECT row_id, {', '.join(VALUES)} FROM rows ORDER BY row_id").to_pylist()


def shards(store):
    return {file: file.stat().st_mtime_ns for file in store.glob("columns/*/[0-9]*.parquet")}


def test_a_run_with_adapters_and_a_gguf_file_is_planned_killed_and_resumed(folder, monkeypatch):
    recipe = folder / "recipe.yaml"
    lines = {line.step: line for line in plan(Recipe.load(recipe), folder / "store").lines}
    assert (lines["reward"].model, lines["reward"].calls) == (f"sequence_classifier {folder}/rm", 18)
    assert (lines["baseline_perplexity"].model, lines["baseline_perplexity"].calls) == (
        f"causal_lm {folder}/base.gguf",
        18,
    )
    assert (
        lines["reward"].tokens
        == {line.step: line for line in plan(Recipe.load(folder / "merged.yaml"), folder / "s").lines}["reward"].tokens
    )
    renamed = []
    with monkeypatch.context() as patch:
        for name, real in (("replace", os.replace), ("rename", os.rename)):
            patch.setattr(os, name, lambda *given, real=real: (renamed.append(given), real(*given)))
        run_local(Recipe.load(folder / "merged.yaml"), folder / "merged")
    with forker(folder) as children:
        # Among the reward model's and the policy's shards.
        assert children.run(["run", recipe, folder / "store"], at=2 * len(renamed) // 3) == -signal.SIGKILL, (
            children.said.read_text()
        )
    before = shards(folder / "store")
    assert before and {file.parent.name for file in before} < {file.parent.name for file in shards(folder / "merged")}
    run_local(Recipe.load(recipe), folder / "store")
    after = shards(folder / "store")
    assert {file: after[file] for file in before} == before and len(after) > len(before)
    for row, expected in zip(rows(folder / "store"), rows(folder / "merged"), strict=True):
        for name in VALUES:
            assert row[name] == pytest.approx(expected[name], abs=1e-4), name
    store = Store(folder / "store")
    assert 0 <= store.noise("logprobs_contrast")["logprobs_contrast"] < 1e-3
    assert {line.step: line.rows for line in plan(Recipe.load(recipe), folder / "store").lines}["reward"] == 0
    record = json.loads((folder / "store" / "columns" / "reward" / "_step.json").read_text())
    assert " on sha256:" in record["identity"]["reward"]["sequence_classifier"]


def test_another_base_is_another_model_and_one_that_is_not_there_stops_the_run(folder, tmp_path):
    copy = tmp_path / "copy"
    shutil.copytree(folder, copy, ignore=shutil.ignore_patterns("store", "merged", "*-merged"))
    recipe = yaml.safe_load((copy / "recipe.yaml").read_text())
    recipe |= {"steps": [{"reward": {}}], "splits": {}}
    recipe.pop("corpus")
    (copy / "reward.yaml").write_text(yaml.safe_dump(recipe))
    run_local(Recipe.load(copy / "reward.yaml"), copy / "made")
    assert run_local(Recipe.load(copy / "reward.yaml"), copy / "made").computed == 0
    config = json.loads((copy / "moved" / "config.json").read_text())
    (copy / "moved" / "config.json").write_text(json.dumps(config | {"rms_norm_eps": 0.5}))
    with pytest.raises(StaleError, match="reward"):
        run_local(Recipe.load(copy / "reward.yaml"), copy / "made")
    shutil.rmtree(copy / "moved")
    with pytest.raises(ModelError, match="moved, which is neither a folder here nor reached on the Hub"):
        run_local(Recipe.load(copy / "reward.yaml"), copy / "made")
