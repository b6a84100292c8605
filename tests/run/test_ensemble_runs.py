"""SEAM by heads and ensembles, from a recipe to a split: killed, resumed, planned, and used by trainers."""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys

import pyarrow as pa
import pytest
import torch
import yaml

from seamcurate import Store, plan, run_local
from seamcurate.errors import ModelError, RecipeError, StepError, TrainError
from seamcurate.rewards import read
from seamcurate.run.recipe import load, loads

ROWS = 24


@pytest.fixture(scope="module")
def folder(decoder_reward_folder, tmp_path_factory):
    """Rows, a classifier with three heads, and one with a single output."""
    from transformers import AutoModelForSequenceClassification, AutoTokenizer

    folder = tmp_path_factory.mktemp("recipes")
    words = ("sort", "merge", "open", "parse", "queue", "list")
    rows = [
        {"prompt": f"how do I {words[i % 6]} the {words[(i + 2) % 6]} {i}", "response": f"use {words[i % 5]} step {i}"}
        for i in range(ROWS)
    ]
    (folder / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    torch.manual_seed(5)
    AutoModelForSequenceClassification.from_pretrained(
        decoder_reward_folder, num_labels=3, id2label={0: "kind", 1: "right", 2: "short"}, ignore_mismatched_sizes=True
    ).save_pretrained(folder / "heads")
    AutoTokenizer.from_pretrained(decoder_reward_folder).save_pretrained(folder / "heads")
    (folder / "single").symlink_to(decoder_reward_folder)
    return folder


HEADS = {"sequence_classifier": "heads", "dtype": "float32", "output": "kind", "outputs": ["right"]}
ENSEMBLE = {
    "ensemble": [
        {"sequence_classifier": "heads", "dtype": "float32", "output": "right"},
        {"sequence_classifier": "heads", "dtype": "float32", "output": "short"},
        {"sequence_classifier": "single", "dtype": "float32"},
    ],
    "normalise": "standardise",
    "outputs": ["single"],
}

ENSEMBLE_COLUMNS = ["reward_members", "reward_disagreement", "reward_single", "reward_reason"]
ENSEMBLE_COLUMNS += ["rewards_disagreement_contrast", "rewards_single_contrast", "disagreement_contrast"]


def recipe(folder, reward, name="recipe", **more):
    value = {
        "rows": {"jsonl": "rows.jsonl", "shard_rows": 8},
        "corpus": {"jsonl": "rows.jsonl"},
        "models": {"policy": {"fake": "0"}, "encoder": {"fake": "0"}, "reward": reward},
        "steps": [{"retrieve": {"k": 3, "band": [-1, 1]}}, {"seam": {"variant": "contrast", "k": 3}}],
        **more,
    }
    file = folder / f"{name}.yaml"
    file.write_text(yaml.safe_dump(value))
    return file


def table(store, names):
    return pa.concat_tables([store.table(number, names) for number in store.shards]).to_pylist()


DYING = """
import os, signal, sys
from pathlib import Path
import seamcurate.models.local, torch, transformers, transformers.models.qwen2.modeling_qwen2
from seamcurate import Recipe, run_local
from seamcurate.store.store import Store

real = Store.add

def add(self, output, number, rows, added):
    real(self, output, number, rows, added)
    if output.step.name == step and number == 1:
        os.kill(os.getpid(), signal.SIGKILL)

Store.add = add
for argument in sys.argv[1:]:
    recipe, store, step = argument.split(",")
    child = os.fork()
    if not child:
        run_local(Recipe.load(recipe), store)
        os._exit(1)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == -signal.SIGKILL
"""


KILLED_IN = {"heads": "reward", "ensemble": "rewards_contrast"}


@pytest.fixture(scope="module")
def stores(folder, tmp_path_factory):
    """Stores of runs that were not disturbed, and of runs that were killed after the second shard of a step."""
    stores = tmp_path_factory.mktemp("stores")
    arguments = []
    for name, reward in {"heads": HEADS, "ensemble": ENSEMBLE}.items():
        file = recipe(folder, reward, name)
        run_local(load(file), stores / name)
        arguments += [f"{file},{stores}/{name}-killed,{KILLED_IN[name]}"]
    subprocess.run([sys.executable, "-c", DYING, *arguments], check=True, env={**os.environ, "OMP_NUM_THREADS": "1"})
    return stores


@pytest.mark.parametrize(("name", "step"), KILLED_IN.items())
def test_a_killed_run_resumes_to_the_same_columns_and_scales(folder, stores, name, step):
    killed = stores / f"{name}-killed"
    scales = killed / "columns" / "reward" / "_shared" / "ensemble.json"
    measured = (scales.stat().st_ino, scales.read_bytes()) if name == "ensemble" else None
    assert not (killed / "columns" / step / "00002.parquet").exists()
    run_local(load(folder / f"{name}.yaml"), killed)
    columns = ["reward", "rewards_contrast", "seam_contrast", "misjudged_contrast"]
    columns += ["reward_right", "rewards_right_contrast"] if name == "heads" else ENSEMBLE_COLUMNS
    assert table(Store(killed).open(), columns) == table(Store(stores / name).open(), columns)
    if measured is not None:
        assert (scales.stat().st_ino, scales.read_bytes()) == measured


def test_the_columns_are_what_the_members_give(folder, stores):
    store = Store(stores / "ensemble").open()
    names = [
        "prompt",
        "response",
        "worse_contrast",
        "reward",
        "rewards_contrast",
        "misjudgements_contrast",
        *ENSEMBLE_COLUMNS,
    ]
    rows = table(store, names)
    members = load(folder / "ensemble.yaml").models.reward.ensemble
    prompts = [row["prompt"] for row in rows]
    worse = [[candidate["response"] for candidate in row["worse_contrast"]] for row in rows]
    golden = [[row[0] for row in m.load().rewards(prompts, [[row["response"]] for row in rows])] for m in members]
    scales = [(statistics.fmean(values), statistics.pstdev(values)) for values in golden]
    assert store.facts("reward")["scales"] == [pytest.approx(list(scale), abs=1e-4) for scale in scales]
    others = [member.load().rewards(prompts, worse) for member in members]
    for i, row in enumerate(rows):
        ours = [(values[i] - mean) / deviation for values, (mean, deviation) in zip(golden, scales, strict=True)]
        theirs = [[(r - mean) / sd for r in values[i]] for values, (mean, sd) in zip(others, scales, strict=True)]
        assert row["reward_members"] == pytest.approx(ours, abs=1e-3)
        assert row["reward"] == pytest.approx(statistics.fmean(ours), abs=1e-3)
        assert row["reward_disagreement"] == pytest.approx(statistics.pstdev(ours), abs=1e-3)
        assert row["rewards_contrast"] == pytest.approx(
            [statistics.fmean(v) for v in zip(*theirs, strict=True)], abs=1e-3
        )
        assert row["reward_single"] == pytest.approx(golden[2][i], abs=1e-4)
        assert row["rewards_single_contrast"] == pytest.approx(others[2][i], abs=1e-4)
        margins = [[value - mine for value in values] for values, mine in zip(theirs, ours, strict=True)]
        disputed = [len({margin > 0 for margin in column}) > 1 for column in zip(*margins, strict=True)]
        assert row["disagreement_contrast"] == pytest.approx(sum(disputed) / 3)
    # Neither always nor never: the test would not see a constant.
    assert len({row["disagreement_contrast"] for row in rows}) > 1
    noise = store.facts("reward")["noise"] | store.facts("rewards_contrast")["noise"]
    assert noise.keys() >= {"reward", "reward_disagreement", "rewards_contrast", "rewards_single_contrast"}
    assert all(0 <= value < 1e-3 for value in noise.values())


def test_the_worst_case_is_seam_by_the_worst_member(folder, stores, tmp_path):
    run_local(load(recipe(folder, ENSEMBLE | {"combine": "worst-case"}, "worst")), tmp_path / "worst")
    run_local(load(recipe(folder, ENSEMBLE | {"combine": "min"}, "min")), tmp_path / "min")
    names = ["misjudgements_contrast", "reward", "reward_members", "rewards_contrast"]
    worst, lowest, mean = (
        table(Store(place).open(), names) for place in (tmp_path / "worst", tmp_path / "min", stores / "ensemble")
    )
    assert [row["reward"] for row in worst] == [row["reward"] for row in mean]
    assert [row["reward"] for row in lowest] == [min(row["reward_members"]) for row in mean]
    pairs = [
        (w, m)
        for a, b in zip(worst, mean, strict=True)
        for w, m in zip(a["misjudgements_contrast"], b["misjudgements_contrast"], strict=True)
    ]
    assert all(w >= m - 1e-9 for w, m in pairs) and any(w > m + 0.01 for w, m in pairs)


@pytest.mark.parametrize("name", ["heads", "ensemble"])
def test_a_plan_counts_every_model_once_and_knows_the_columns(folder, name, tmp_path):
    reward = HEADS if name == "heads" else ENSEMBLE
    column = "reward_right" if name == "heads" else "disagreement_contrast"
    query = f"SELECT row_id FROM rows WHERE {column} > 0"
    file = recipe(folder, reward, f"plan-{name}", splits={"train": {"filter": query}})
    lines = {line.step: line for line in plan(load(file), tmp_path / "store").lines}
    models = 1 if name == "heads" else 2
    # An ensemble's scales are measured on all golden responses of so few.
    assert lines["reward"].calls == ROWS * models * (1 if name == "heads" else 2)
    assert lines["rewards_contrast"].calls == pytest.approx(3 * ROWS * models)
    assert lines["reward"].model.count("sequence_classifier") == models


def test_trainers_get_the_ensembles_reward_by_the_scales_of_a_run(folder, stores, tmp_path, monkeypatch):
    monkeypatch.chdir(folder)
    store = Store(stores / "ensemble").open()
    file = tmp_path / "reward.yaml"
    fixed = {key: value for key, value in ENSEMBLE.items() if key != "normalise"} | {
        "scales": store.facts("reward")["scales"]
    }
    rows = table(store, ["prompt", "response", "reward", "reward_members"])
    prompts, responses = ([row[name] for row in rows] for name in ("prompt", "response"))
    for combine in ("mean", "min"):
        file.write_text(yaml.safe_dump(fixed | {"combine": combine}))
        expected = [row["reward"] if combine == "mean" else min(row["reward_members"]) for row in rows]
        reward = read(str(file))
        assert reward(prompts, responses) == pytest.approx(expected, abs=1e-4) and reward.columns == ()
    file.write_text(yaml.safe_dump(fixed | {"combine": "worst-case"}))
    with pytest.raises(
        TrainError, match="worst-case is for SEAM alone, as it needs golden responses; take `combine: min`"
    ):
        read(str(file))
    unknown = {**fixed, "ensemble": [*ENSEMBLE["ensemble"][:2], {"fake": "a", "dimension": 3}]}
    file.write_text(yaml.safe_dump(unknown))
    with pytest.raises(
        TrainError, match=r": ensemble\[2\]\.dimension: Extra inputs are not permitted; it has dimensions$"
    ):
        read(str(file))
    file.write_text(yaml.safe_dump(ENSEMBLE))
    with pytest.raises(ModelError, match="its scales are not measured here; give `scales"):
        read(str(file))


def test_an_attack_has_no_worst_case(folder):
    attack = {"wordnet": "wordnet", "method": "pwws"}
    worst = ENSEMBLE | {"combine": "worst-case"}
    with pytest.raises(RecipeError, match="an ensemble's worst-case is for SEAM alone; attack its `combine: min`"):
        load(recipe(folder, worst, "attack", steps=[{"attack": attack}])).ready()


def test_golden_rewards_of_another_ensemble_are_refused(folder, tmp_path):
    other = {**ENSEMBLE, "ensemble": ENSEMBLE["ensemble"][:2], "outputs": []}
    steps = [{"retrieve": {"k": 3, "band": [-1, 1]}}, "reward", {"rewards": {"reward": other}}]
    with pytest.raises(
        StepError, match="rewards_contrast: the golden rewards in 'reward_members' are of another ensemble"
    ):
        run_local(load(recipe(folder, ENSEMBLE, "other", steps=steps)), tmp_path / "store")


def test_bad_ensembles_are_refused_with_their_line():
    for members, said in [
        ("[{fake: a}]", "recipe:3: models.reward: an ensemble has two members or more"),
        (
            "[{fake: a}, {fake: b, dimension: 3}]",
            "recipe:3: models.reward.ensemble[1].dimension: unknown key; there are: fake",
        ),
        (
            "[{fake: a}, {sequence_classifier: b, output: 1.5}]",
            "models.reward.ensemble[1].output: an output is a name, or",
        ),
    ]:
        with pytest.raises(RecipeError) as refused:
            loads(f"rows: {{jsonl: a}}\nmodels:\n  reward: {{ensemble: {members}, normalise: standardise}}\n")
        assert said in str(refused.value) and "\n" not in str(refused.value)


VERIFIER = """
def score(completions, reference, **kwargs):
    if any("queue" in completion for completion in completions):
        raise ValueError("no queues")
    return [float(len(completion) % 2) for completion in completions]
"""


def test_a_function_and_a_judge_are_members_like_any_other(tmp_path):
    (tmp_path / "verifier.py").write_text(VERIFIER)
    rows = [{"prompt": f"sort {i}", "response": f"use sort {i}", "reference": "x"} for i in range(12)]
    rows[3]["response"] = "use a queue"
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    members = [{"function": "verifier.py:score"}, {"judge": {"fake": "j"}, "draws": 2}]
    file = recipe(tmp_path, {"ensemble": members, "normalise": "standardise", "outputs": "all"})
    # For each answer a call and two draws; scales are measured by as many more, and the judge's noise on 8 and 24 answers.
    calls = {line.step: line.calls for line in plan(load(file), tmp_path / "planned").lines}
    judged = 4 * 8
    assert calls["reward"] == 2 * 3 * 12 + judged and calls["rewards_contrast"] == 3 * 3 * 12 + 3 * judged
    run_local(load(file), tmp_path / "store")
    store = Store(tmp_path / "store").open()
    first, *_ = (
        row for row in table(store, ["response", "reward", "reward_reason", "reward_j"]) if "queue" in row["response"]
    )
    assert first["reward"] is None and first["reward_j"] is not None
    assert first["reward_reason"].startswith("verifier_py_score gives none: ") and "no queues" in first["reward_reason"]
    others = table(store, ["reward", "reward_verifier_py_score", "reward_j", "reward_members"])
    scales = store.facts("reward")["scales"]
    for row in others:
        if row["reward"] is not None:
            own = (row["reward_verifier_py_score"], row["reward_j"])
            expected = [(value - mean) / deviation for value, (mean, deviation) in zip(own, scales, strict=True)]
            assert row["reward_members"] == pytest.approx(expected)
            assert row["reward"] == pytest.approx(statistics.fmean(expected))
    noise = store.facts("reward")["noise"]
    assert noise["reward_verifier_py_score"] == 0 < noise["reward_j"]
    assert noise["reward"] == pytest.approx(noise["reward_j"] / scales[1][1] / 2)
