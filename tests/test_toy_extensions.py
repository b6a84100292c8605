"""A toy of each kind of extension is one row of one table: a fresh Python adds the rows, and everything else sees them."""

from __future__ import annotations

import json
import subprocess
import sys

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

SCRIPT = '''
import json, sys
from pathlib import Path

import seamcurate.step as step
step.SAMPLE_SETS += (step.SampleSet("toy", "toy_set", "one worse answer"),)

import seamcurate.score.rer as score
class ToyFeature(score.TextFeature):
    """Add `rer_toy`: 1, and 1 for each question mark."""
score.FEATURES += (
    score.RerFeature(
        column="rer_toy", recipe_name="toy_feature", step=ToyFeature, meaning="TOY: 1 + question marks ({words})",
        formula=lambda text, whole, words: 1.0 + text.count("?"), column_formula=None, relevance_to="",
        cut_at_stop=True, rescaled=False, branches=("open", "closed"), rewards=("rer", "li_toy", "toy"),
    ),
)
score.FEATURES = (score.FEATURES[0]._replace(rewards=(*score.FEATURES[0].rewards, "li_toy")), *score.FEATURES[1:])

import seamcurate.publish.formats as formats
from seamcurate.publish import snippet, trl
formats.TRAINERS["toy"] = formats.TRAINERS["trl"]._replace(
    title="Toy", reserved={"prompts": frozenset({"votes"})},
    columns=lambda view, reward: {"question": "b.prompt", **view.plain_columns(["question"])} | {"prompt": "b.prompt"},
    reward_function=lambda end: "\\n\\ndef toy(texts):\\n    return REWARD.load()(texts, texts, query_type=['open'] * len(texts))\\n",
    reward_use="`toy`", commands=lambda shape, folder, policy, reward, out: [["toy", folder, out]],
    snippets=lambda repo_id, configuration: [snippet.Snippet("Toy", "shell", f"toy {repo_id}")],
    meanings={"question": "what the toy asks"},
)
# The types of names are made of the tables when their modules are imported.
formats.Trainer = formats.Literal[tuple(formats.TRAINERS)]
step.Variant = step.Literal[tuple(row.name for row in step.SAMPLE_SETS)]

from typer.testing import CliRunner
from seamcurate import FakeModel, Models, Recipe, RewardSpread, Rewards, Source, Split, Store, query, rer, rewards, run_local
from seamcurate.cli.app import app
from seamcurate.publish import hub
from seamcurate.publish.export import export
from seamcurate.run.recipe import STEPS

folder, fake = Path(sys.argv[1]), FakeModel(path="model")
(folder / "recipe.yaml").write_text(
    """
rows: {parquet: rows.parquet, response: response, reference: reference}
models: {encoder: {fake: e}, reward: {fake: r}}
steps: [rer, reward, {rewards: {variant: toy}}, {reward_spread: {variant: toy}}]
splits: {train: {filter: "SELECT row_id FROM rows WHERE rer_toy > 1"}}
"""
)
recipe = Recipe.load(folder / "recipe.yaml")
run_local(recipe, folder / "store")
store = Store(folder / "store").open()
[exported] = export(recipe, store, "toy", folder / "out")
code = {}
exec((folder / "out" / "train" / "seamcurate_reward.py").read_text(), code)
prepared = hub.prepare(folder / "recipe.yaml", store, "me/mine", "toy")
print(json.dumps({
    "steps": "toy_feature" in STEPS,
    "rows": query(store, "SELECT rer_length, rer_repetition, rer_query_relevance, rer_reference_relevance, rer_toy, query_type, rer FROM rows").to_pylist(),
    "meaning": next(c.meaning for c in store.columns() if c.name == "rer_toy"),
    "candidates": query(store, "SELECT len(rewards_toy) AS rewards, baseline_reward_margin_toy IS NOT NULL AS margin FROM rows").to_pylist(),
    "columns": exported.columns, "commands": exported.commands, "note": exported.note,
    "ablation": rewards.RerReward(reward="li_toy").load()(["?"], ["Why? Why?"]),
    "by_file": code["toy"](["Why?"])[0] is not None,
    "card": prepared.card + (prepared.folder / "DETAILS.md").read_text(encoding="utf-8"),
    "help": CliRunner().invoke(app, ["export", "--help"]).output,
}))
'''


@pytest.fixture(scope="module")
def seen(tmp_path_factory) -> dict:
    folder = tmp_path_factory.mktemp("toys")
    rows = [
        {
            "prompt": "What is blue?",
            "response": "The sky? It is blue.",
            "reference": "The sky.",
            "votes": 3,
            "worse_toy": [{"response": "Grass."}],
        },
        {"prompt": "Say so.", "response": "So.", "reference": None, "votes": 1, "worse_toy": [{"response": "No."}]},
    ]
    pq.write_table(pa.Table.from_pylist(rows), folder / "rows.parquet")
    done = subprocess.run([sys.executable, "-c", SCRIPT, str(folder)], capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    result: dict = json.loads(done.stdout.splitlines()[-1])
    return result


def test_a_feature_of_rer_is_one_row(seen):
    assert seen["steps"]
    assert [row["rer_toy"] for row in seen["rows"]] == [2.0, 1.0]
    assert seen["meaning"] == "TOY: 1 + question marks (wordpunct)"
    row = seen["rows"][0]
    if row["query_type"] == "open":
        expected = row["rer_length"] * row["rer_repetition"] * row["rer_query_relevance"] * 2
    else:
        expected = row["rer_repetition"] * row["rer_reference_relevance"] / 3.5 * 5.12 * 2
    assert row["rer"] == pytest.approx(expected)
    # Four words and two question marks.
    assert seen["ablation"] == [pytest.approx(0.04 * 3)]


def test_a_sample_set_is_one_row(seen):
    assert seen["candidates"] == [{"rewards": 1, "margin": True}] * 2


def test_a_trainer_s_format_is_one_row(seen):
    assert seen["columns"][0] == "question"
    assert {"source_votes", "rer_toy"} <= set(seen["columns"])
    assert "Toy keeps names of columns for itself; exported are votes as source_votes" in seen["note"]
    [command] = seen["commands"]
    assert command.startswith("toy /") and command.endswith("/out/train trained")
    assert seen["by_file"]
    assert "toy me/mine" in seen["card"] and "what the toy asks" in seen["card"]
    assert "toy>" in seen["help"] or "toy]" in seen["help"]
