"""Ctrl-C in the middle of the work, whichever it is: the command ends within two seconds and says how to go on.

The work is the real one, begun again and again until the signal comes. `SEAMCURATE_ALL_STOPS=1` also stops what takes
long to start: real models, and training.
"""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path

import pytest
from conftest import CHAT_TEMPLATE, interrupt, questions, write_files
from lexicons import wordnet_files

GO_ON = "stopped; what was finished is kept: run the same command again to go on"
TRAINING = (
    "stopped; run the same command again: with --save-steps it goes on from the last checkpoint, else from the start"
)
slow = pytest.mark.skipif(
    not os.environ.get("SEAMCURATE_ALL_STOPS"), reason="takes long to start: SEAMCURATE_ALL_STOPS=1"
)

# Argument 1 is where the work is, the others are the command's.
AGAIN = """
import importlib, sys
module, _, name = sys.argv.pop(1).partition(":")
owner = importlib.import_module(module)
*path, name = name.split(".")
for part in path:
    owner = getattr(owner, part)
real = getattr(owner, name)
def again(*given, **named):
    # A query may have no end. Others are interrupted in their second round: a library that is being imported in the
    # first may take the signal for its own failure.
    rounds = 0
    while True:
        if rounds == (name != "run"):
            print("ready", flush=True)
        rounds += 1
        found = real(*given, **named)
        if hasattr(found, "__iter__") and not hasattr(found, "__len__"):
            for _ in found:
                pass
setattr(owner, name, again)
from seamcurate.cli import main
sys.argv[0] = "seamcurate"
main()
"""


def stopped(work: str, *arguments: object) -> tuple[list[str], float]:
    """Start a command, interrupt it in the middle of some work, and return what it said and how long it took to end."""
    command = [sys.executable, "-c", AGAIN, work, *map(str, arguments)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None and process.stdout.readline() == "ready\n", process.stderr.read()
        time.sleep(0.3)
        return interrupt(process)


RECIPE = """
rows: {{parquet: rows.parquet, shard_rows: 15}}
corpus: {{parquet: corpus.parquet, shard_rows: 64}}
models: {{policy: {policy}, reward: {reward}, encoder: {{fake: encoder}}}}
steps: [{steps}]
splits: {{train: {{filter: keep_above_lowest.sql, by: seam_contrast}}}}
"""
RETRIEVE = "retrieve: {k: 5, band: [0.5, 0.9]}"


@pytest.fixture
def recipe(tmp_path):
    """Write a recipe of FakeModels; steps and models may be others."""
    write_files(tmp_path)

    def make(steps: str = f"{RETRIEVE}, seam: {{k: 5}}", policy: str = "{fake: p}", reward: str = "{fake: r}") -> Path:
        file = tmp_path / "recipe.yaml"
        file.write_text(RECIPE.format(steps=steps, policy=policy, reward=reward))
        return file

    return make


def attack(folder: Path) -> str:
    wordnet = wordnet_files(folder / "wordnet")
    return f"attack: {{method: pwws, wordnet: '{wordnet}', min_similarity: 0}}, {RETRIEVE}, seam: {{k: 5}}"


@pytest.mark.parametrize(
    "work",
    [
        "seamcurate.data.source:Source.chunks",
        "seamcurate.contrast.nearest:Band.search",
        "seamcurate.models.fake:FakeModel.logprobs",
        "seamcurate.select.decision:_decided",
    ],
)
def test_a_run_stops_in_reading_retrieval_scoring_and_split(work, recipe, tmp_path):
    said, took = stopped(work, "run", recipe(), tmp_path / "store")
    assert (said, took < 2) == ([GO_ON], True), took
    if "decision" not in work:
        return
    command = [sys.executable, "-m", "seamcurate.cli", "run", str(recipe()), str(tmp_path / "store")]
    again = subprocess.run(command, check=True, timeout=120, capture_output=True, text=True)
    assert "everything was there" in again.stdout and "rows kept" in again.stdout
    assert not list((tmp_path / "store").rglob("*.tmp"))


def test_an_attack_stops(recipe, tmp_path):
    said, took = stopped(
        "seamcurate.models.fake:FakeModel.rewards", "run", recipe(attack(tmp_path)), tmp_path / "store"
    )
    assert (said, took < 2) == ([GO_ON], True), took


@pytest.mark.parametrize(
    "endless",
    [
        # While DuckDB looks for the first row of a stream, it does not look for a signal; within one call it never does.
        "SELECT a FROM range(10000000) AS x(a), range(10000000) AS y(b) WHERE a * b = -1",
        "SELECT levenshtein(repeat('a', 600000), repeat('b', 600000))",
    ],
)
def test_a_query_stops(endless, finished):
    said, took = stopped("seamcurate.select.views:run", "sql", finished.path, endless, "--seconds", "20")
    assert (said, took < 2) == ([GO_ON], True), took


@slow
@pytest.mark.parametrize(
    "work",
    [
        "seamcurate.models.sequence_classifier:_LoadedClassifier.rewards",
        "seamcurate.models.causal_lm:_LoadedCausalLM.logprobs",
    ],
)
def test_scoring_by_real_models_stops(work, recipe, tmp_path, policy_folder, encoder_reward_folder):
    models = {
        "policy": f"{{causal_lm: {policy_folder}}}",
        "reward": f"{{sequence_classifier: {encoder_reward_folder}}}",
    }
    said, took = stopped(work, "run", recipe(**models), tmp_path / "store")
    assert (said, took < 2) == ([GO_ON], True), took


@slow
@pytest.mark.parametrize("trainer", ["sft", "ppo", "grpo"])
def test_training_stops(trainer, tmp_path):
    from training import parquet, start

    model = start(tmp_path / "model", CHAT_TEMPLATE if trainer == "grpo" else None)
    data = parquet(tmp_path / "d.parquet", questions(24))
    arguments = ["train", trainer, "--model", model, "--data", data, "--out", tmp_path / "out"]
    work = "transformers:Trainer.training_step"
    if trainer == "ppo":
        work, arguments = "seamcurate.train.rollout:respond", [*arguments, "--reward", "li", "--response-length", 8]
    if trainer == "grpo":
        work, arguments = "trl:GRPOTrainer._generate", [*arguments, "--reward", "li", "--max-completion-length", 8]
    said, took = stopped(work, *arguments)
    assert (said[-1], took < 2) == (TRAINING, True), took
    assert "Traceback" not in "".join(said)
