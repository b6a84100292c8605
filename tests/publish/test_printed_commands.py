"""The commands that an export prints name the recipe's own models and functions, where the trainer takes them."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
from models.test_gguf import write
from publish.test_trainers import GROUPS, ON_CPU, ours, policy, recipe_of, run

from seamcurate import CausalLM, RewardFunction, SequenceClassifier, Store
from seamcurate.publish.export import export

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def policies(policy_folder) -> dict[str, Path]:
    return {"plain": policy_folder}


VERIFIERS = {
    "trl": "def score(completions, **columns):\n    return [float(len(text) % 3) for text in completions]\n",
    "named": "def score(completions, answer, **columns):\n    assert all(answer)\n    return [float(len(text) % 3) for text in completions]\n",
    "plain": "def score(prompt, response):\n    return float(len(response) % 3)\n",
}


@pytest.mark.parametrize("kind", VERIFIERS)
def test_the_printed_commands_name_the_recipes_own_function(kind, policies, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("rules").mkdir()
    Path("rules/verifier.py").write_text(VERIFIERS[kind])
    columns = {"columns": {"answer": "response"}} if kind == "named" else {}
    reward = RewardFunction(path="rules/verifier.py:score", **columns)
    recipe = recipe_of(tmp_path, policy("plain", policies), False, reward=reward)
    told = {one.folder.name: one.commands for one in export(recipe, Store("store").open(), "trl", Path("out"))}
    trl_own, own = told["prompts"]
    if kind != "plain":
        assert trl_own.startswith("PYTHONPATH=rules trl grpo ") and " --reward_funcs verifier.score " in trl_own
        if kind == "named":
            # Through the launcher, whose scripts stand before PYTHONPATH.
            run(trl_own, tmp_path, *ON_CPU, *GROUPS)
            shutil.rmtree("trained")
    else:
        # TRL calls no function of one prompt and one response.
        assert "--reward_model_name_or_path REWARD_MODEL" in trl_own
    assert " --reward rules/verifier.py:score " in own
    fast = ["--max-steps", "1", "--per-device-train-batch-size", "2", "--no-lora", "--eval-rows", "0"]
    assert "trained on 6 of 6 rows" in ours(own, *fast, "--num-generations", "2", "--max-completion-length", "4")


def test_the_printed_commands_name_the_recipes_own_models(policies, decoder_reward_folder, tokenizer, tmp_path):
    def told(model: CausalLM, **reward) -> tuple[str, list[str], str]:
        folder = tmp_path / str(len(list(tmp_path.iterdir())))
        folder.mkdir()
        recipe = recipe_of(folder, model, False, **reward)
        done = {one.folder.name: one for one in export(recipe, Store(folder / "store").open(), "trl", folder / "out")}
        return done["prompts"].commands[0], [*done["preferences"].commands], done["prompts"].note

    model, where = policy("plain", policies), str(decoder_reward_folder)
    prompts, _, _ = told(model, reward=SequenceClassifier(path=where))
    assert f"--model_name_or_path {model.path} " in prompts and f"--reward_model_name_or_path {where} " in prompts
    # A verifier that comes with seamcurate is importable; what a command cannot say has a placeholder.
    assert (
        " --reward_funcs seamcurate.verifiers.exact_match " in told(model, reward=RewardFunction(path="exact_match"))[0]
    )
    arguments = {"ignore_case": True}
    assert "REWARD_MODEL" in told(model, reward=RewardFunction(path="exact_match", arguments=arguments))[0]
    assert "REWARD_MODEL" in told(model, reward=SequenceClassifier(path=where, output=0))[0]
    write(model.path, tmp_path / "small.gguf", tokenizer)
    prompts, preferences, note = told(CausalLM(path=str(tmp_path / "small.gguf")))
    assert "small.gguf" not in prompts and not any("small.gguf" in line for line in preferences)
    assert "trl grpo --model_name_or_path POLICY" in prompts and "trainers load no GGUF file" in note
