"""Models whose files hold less than a score needs, or what a model of that kind would leave out."""

from __future__ import annotations

import json
import shutil

import pytest
import torch
from safetensors.torch import load_file, save_file

from seamcurate import CausalLM, SequenceClassifier
from seamcurate.errors import ModelError


def _changed(folder, tmp_path, change):
    """Copy a model with other weights."""
    copied = tmp_path / "changed"
    shutil.copytree(folder, copied)
    tensors = load_file(copied / "model.safetensors")
    change(tensors)
    save_file(tensors, copied / "model.safetensors", metadata={"format": "pt"})
    return copied


@pytest.mark.parametrize("place", ["model.layers.0.self_attn.o_proj", "lm_head"])
def test_a_bias_that_the_model_has_no_place_for_is_refused_unless_it_is_zero(policy_folder, tmp_path, place):
    config = json.loads((policy_folder / "config.json").read_text())
    size = config["vocab_size"] if place == "lm_head" else config["hidden_size"]
    folder = _changed(policy_folder, tmp_path, lambda held: held.update({f"{place}.bias": torch.ones(size)}))
    with pytest.raises(ModelError, match=f"holds {place}.bias, which Qwen2ForCausalLM has no place for") as refused:
        CausalLM(path=str(folder)).load()
    assert "\n" not in str(refused.value)
    tensors = load_file(folder / "model.safetensors")
    save_file(tensors | {f"{place}.bias": torch.zeros(size)}, folder / "model.safetensors", metadata={"format": "pt"})
    zero, without = (
        CausalLM(path=str(path)).load().logprobs(["sort"], [["a list"]]) for path in (folder, policy_folder)
    )
    assert zero == without


def test_a_reward_model_of_tokens_is_refused_before_and_when_it_is_loaded(decoder_reward_folder, tmp_path):
    from transformers import Qwen2ForTokenClassification

    # As a trainer of process rewards saves it: a label a token, and a head with a bias.
    model = Qwen2ForTokenClassification.from_pretrained(decoder_reward_folder, num_labels=1)
    model.save_pretrained(tmp_path / "prm")
    for file in decoder_reward_folder.glob("tokenizer*"):
        shutil.copy(file, tmp_path / "prm")
    reward = SequenceClassifier(path=str(tmp_path / "prm"))
    for ask in (reward.identity, reward.load):
        with pytest.raises(ModelError, match="is a Qwen2ForTokenClassification, which scores each token or step"):
            ask()


def test_a_head_with_a_bias_that_is_left_out_is_refused(decoder_reward_folder, tmp_path):
    folder = _changed(decoder_reward_folder, tmp_path, lambda held: held.update({"score.bias": torch.tensor([3.0])}))
    with pytest.raises(ModelError, match=r"holds score\.bias, which Qwen2ForSequenceClassification has no place for"):
        SequenceClassifier(path=str(folder)).load()
