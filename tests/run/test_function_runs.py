"""Runs with a reward function of 0 and 1: SEAM's columns, the plan, kills, noise, refusals before anything is computed."""

from __future__ import annotations

import json
import re
from pathlib import Path

import killed
import pytest
from conftest import write_files

from seamcurate import Recipe, Store, plan, query, run_local
from seamcurate.errors import ModelError, StaleError, StepError
from seamcurate.publish.export import export
from seamcurate.run.recipe import loads

VERIFIER = """
import json
import os
import re
from pathlib import Path

LOG = Path(__file__).with_name("calls.txt")

def score(prompts, completions, reference, **kwargs):
    with LOG.open("a") as log:
        for prompt, completion in zip(prompts, completions):
            log.write(f"{prompt}|{completion}\\n")
    first = [text.split()[0] for text in reference]
    return [None if "carefully carefully carefully" in text else float(word in text and "step 8" not in text)
            for text, word in zip(completions, first)]
"""
RECIPE = """
rows: {{parquet: rows.parquet, response: response, reference: reference, shard_rows: 10}}
corpus: {{parquet: corpus.parquet}}
models:
  policy: {{fake: p}}
  reward: {{{reward}}}
  encoder: {{fake: e}}
steps:
  - retrieve: {{k: 5, band: [0.5, 0.9]}}
  - seam: {{k: 5}}
splits:
  train: {{filter: "SELECT row_id FROM rows WHERE NOT golden_fails AND reward_reason IS NULL"}}
"""


@pytest.fixture
def folder(tmp_path):
    write_files(tmp_path)
    (tmp_path / "verifier.py").write_text(VERIFIER)
    return tmp_path


def written(folder, reward='function: "verifier.py:score", binary: true', name="recipe.yaml"):
    (folder / name).write_text(RECIPE.format(reward=reward))
    return Recipe.load(folder / name)


def test_seam_of_a_function_of_0_and_1_counts_false_positives(folder):
    recipe = written(folder)
    estimate = {line.step: (line.calls, line.tokens, line.usd) for line in plan(recipe, folder / "store").lines}
    assert estimate["reward"] == (40, 0, None) and estimate["rewards_contrast"] == (200, 0, None)
    assert not (folder / "calls.txt").exists()
    report = run_local(recipe, folder / "store")
    rows = query(
        Store(folder / "store"),
        "SELECT row_id, reward, golden_fails, reward_reason, rewards_contrast, seam_contrast, misjudged_contrast, "
        "candidates_contrast, response FROM rows",
    ).to_pylist()
    for row in rows:
        worse = [reward for reward in row["rewards_contrast"] if reward is not None]
        if "carefully carefully carefully" in row["response"]:
            expected = (None, None, "the function returned None")
        else:
            expected = (row["reward"], row["reward"] == 0, None)
        assert (row["reward"], row["golden_fails"], row["reward_reason"]) == expected
        if row["reward"] == 1 and worse:
            assert row["candidates_contrast"] == len(worse)
            assert row["misjudged_contrast"] == pytest.approx(sum(worse) / len(worse))
            assert (row["seam_contrast"] < 0) == any(worse)
        else:
            assert (row["seam_contrast"], row["misjudged_contrast"]) == (None, None)
    candidates = query(Store(folder / "store"), "SELECT response, reward, reason FROM candidates").to_pylist()
    for candidate in candidates:
        is_refused = "carefully carefully carefully" in candidate["response"]
        assert candidate["reason"] == ("the function returned None" if is_refused else None)
        assert (candidate["reward"] is None) == is_refused
    assert any(candidate["reason"] for candidate in candidates)
    (fails,) = [row for row in rows if row["golden_fails"]]
    assert "step 8" in fails["response"]
    assert any(
        "called as a function of TRL, by its parameter completions, and reads reference" in x for x in report.lines
    )
    assert "warning: 1 golden response fails the reward; such a row has no SEAM" in "\n".join(report.lines)
    assert "warning: reward: 10 of 40 scores are NULL: 10 for this reason: the function returned None" in report.lines
    assert Store(folder / "store").noise("reward") == {"reward": 0}
    [exported] = export(recipe, Store(folder / "store"), "trl", folder / "out")
    assert exported.note.endswith("; give the trainer the recipe's own reward itself: function verifier.py:score")
    assert {"reference", "golden_fails", "reward_reason"} <= set(exported.columns)


@pytest.mark.slow
def test_a_killed_run_goes_on_where_it_was(folder):
    written(folder)
    run_local(Recipe.load(folder / "recipe.yaml"), folder / "whole")
    calls = folder / "calls.txt"
    calls.unlink()
    command = ["run", folder / "recipe.yaml", folder / "store"]
    golden = {row["row_id"]: f"{row['prompt']}|{row['response']}" for row in rows_of(folder / "whole")}
    shards = folder / "store" / "columns" / "reward"
    kept = [int(file.stem) for file in killed.before_a_shard(shards, 2, command)]
    before = len(calls.read_text().splitlines())
    run_local(Recipe.load(folder / "recipe.yaml"), folder / "store")
    again = {*calls.read_text().splitlines()[before + 10 :]}
    paid = {golden[row_id] for number in kept for row_id in range(10 * number, 10 * number + 10)}
    assert not again & paid
    assert rows_of(folder / "store") == rows_of(folder / "whole")
    for file in (folder / "whole" / "columns").rglob("[0-9]*.parquet"):
        other = folder / "store" / "columns" / file.relative_to(folder / "whole" / "columns")
        assert other.read_bytes() == file.read_bytes()


def rows_of(store):
    return query(Store(store), "SELECT * FROM rows ORDER BY row_id").to_pylist()


def test_a_random_function_has_noise(folder):
    (folder / "verifier.py").write_text(
        "import random\ndef score(completions, **kwargs): return [random.random() for _ in completions]\n"
    )
    recipe = written(folder, 'function: "verifier.py:score"').model_copy(update={"splits": {}})
    run_local(recipe, folder / "store")
    assert 0.2 < Store(folder / "store").noise("reward")["reward"] <= 1


@pytest.mark.parametrize(
    ("reward", "error", "message"),
    [
        ('function: "verifier.py:scores"', ModelError, "the file has no function 'scores'"),
        ('function: "nowhere.py:score"', ModelError, "nowhere.py cannot be read: No such file"),
        ('function: "verifier.py:score", columns: {reference: gold}', StepError, "reads column 'gold', which neither"),
        ('function: "verifier.py:score", signature: verl', ModelError, "a function of verl takes"),
        ('function: regex_match, arguments: {pattern: "(?P<"}', ModelError, "function regex_match: arguments: "),
        ("function: regex_match", ModelError, "needs `arguments: {pattern: …}`"),
    ],
)
def test_what_is_wrong_is_said_before_anything_is_computed(reward, error, message, folder):
    recipe = written(folder, reward)
    with pytest.raises(error, match=message.replace("(", r"\(").replace("{", r"\{")) as refused:
        run_local(recipe, folder / "store")
    assert "\n" not in str(refused.value)
    assert not [*(folder / "store" / "columns").rglob("[0-9]*.parquet")]
    if "pattern" not in reward or "arguments" not in reward:
        with pytest.raises(error):
            plan(recipe, folder / "other")
    if "nowhere" in reward:
        # What was refused stands in nobody's way.
        assert run_local(written(folder), folder / "store").rows == 40


def test_a_changed_function_makes_its_columns_stale(folder):
    run_local(written(folder), folder / "store")
    (folder / "verifier.py").write_text(VERIFIER + "\n# another\n")
    with pytest.raises(
        StaleError, match=r'other configuration: reward\.reward\.code\.file: "\w+" → "\w+" .*; run with --replace'
    ):
        run_local(written(folder), folder / "store")


def test_the_function_lies_beside_its_recipe_and_not_in_the_working_folder(folder, tmp_path_factory, monkeypatch):
    elsewhere = tmp_path_factory.mktemp("elsewhere")
    (elsewhere / "verifier.py").write_text("raise SystemExit\n")
    monkeypatch.chdir(elsewhere)
    assert written(folder).models.reward.path == f"{folder}/verifier.py:score"


@pytest.mark.slow
def test_the_recipes_of_the_manual_run(tmp_path):
    page = (Path(__file__).parents[2] / "docs" / "how-to" / "score-with-a-function.md").read_text()
    for code in re.findall(r"^```python no-run\n(.*?)^```", page, re.DOTALL | re.MULTILINE):
        (tmp_path / code.splitlines()[0].removeprefix("# ")).write_text(code)
    rows = [{"question": "2 + 2?", "answer": "4", "solution": "4", "level": 2}]
    rows += [{"question": "3 + 3?", "answer": "7", "solution": "6", "level": 3}]
    (tmp_path / "questions.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    rewards = {}
    for i, text in enumerate(re.findall(r"^```yaml\n(rows:.*?)^```", page, re.DOTALL | re.MULTILINE)):
        recipe = loads(text, tmp_path)
        run_local(recipe, tmp_path / str(i))
        name = Path(recipe.models.reward.path).name
        rewards[name] = [row["reward"] for row in rows_of(tmp_path / str(i))]
    assert rewards == {
        "trl_verifier.py:score": [1, 0],
        "verl_verifier.py:compute_score": [1, 0],
        "openrlhf_verifier.py:reward_func": [1, 0],
        "verifiers_verifier.py:correct": [2, 0],
    }
