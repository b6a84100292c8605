"""Models whose files hold less than a score needs, or what a model of that kind would leave out."""

from __future__ import annotations

import importlib
import json
import shutil

import pytest
import torch
from safetensors.torch import load_file, save_file

from seamcurate import CausalLM, SentenceEncoder, SequenceClassifier
from seamcurate.errors import ModelError


def _changed(folder, tmp_path, change):
    """Copy a model with other weights."""
    copied = tmp_path / "changed"
    shutil.copytree(folder, copied)
    tensors = load_file(copied / "model.safetensors")
    change(tensors)
    save_file(tensors, copied / "model.safetensors", metadata={"format": "pt"})
    return copied


def _st_modules():
    try:
        return importlib.import_module("sentence_transformers.sentence_transformer.modules")
    except ModuleNotFoundError:
        # Before version 6.
        return importlib.import_module("sentence_transformers.models")


def _sentence_model(body, folder, prompts=None):
    """Save a sentence-transformers model: a tiny BERT, its mean, and a dense layer."""
    from sentence_transformers import SentenceTransformer

    st = _st_modules()
    modules = [st.Transformer(str(body), max_seq_length=32), st.Pooling(48, pooling_mode="mean"), st.Dense(48, 16)]
    SentenceTransformer(modules=modules, device="cpu", prompts=prompts).save(str(folder))
    return folder


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


def test_a_sentence_transformers_model_without_some_of_its_weights_is_refused(encoder_reward_folder, tmp_path):
    folder = _sentence_model(encoder_reward_folder, tmp_path / "encoder")
    lacking = "encoder.layer.1.attention.self.key.weight"
    assert SentenceEncoder(path=str(folder)).load().embed(["sort"]).shape == (1, 16)
    # A pooler that nothing is computed by may be lacking.
    whole = _changed(
        folder, tmp_path / "pooler", lambda held: [held.pop(name) for name in list(held) if "pooler" in name]
    )
    assert SentenceEncoder(path=str(whole)).load().embed(["sort"]).shape == (1, 16)
    part = _changed(folder, tmp_path / "part", lambda held: held.pop(lacking))
    with pytest.raises(ModelError, match=f"has no {lacking}, which would be initialised at random"):
        SentenceEncoder(path=str(part)).load()


def test_a_module_with_pickled_weights_is_refused(encoder_reward_folder, tmp_path):
    folder = _sentence_model(encoder_reward_folder, tmp_path / "encoder")
    (safe,) = folder.glob("2_*/model.safetensors")
    torch.save(load_file(safe), safe.with_name("pytorch_model.bin"))
    assert SentenceEncoder(path=str(folder)).load().embed(["sort"]).shape == (1, 16)
    safe.unlink()
    with pytest.raises(ModelError, match=r"the weights of 2_Dense/pytorch_model\.bin are pickled"):
        SentenceEncoder(path=str(folder)).load()


def test_the_settings_of_a_module_in_a_folder_of_its_own_are_part_of_the_identity(encoder_reward_folder, tmp_path):
    whole = _sentence_model(encoder_reward_folder, tmp_path / "whole")
    folder = tmp_path / "parted"
    shutil.copytree(whole, folder / "0_Transformer", ignore=shutil.ignore_patterns("[0-9]_*", "modules.json"))
    for part in whole.glob("[0-9]_*"):
        shutil.copytree(part, folder / part.name)
    modules = json.loads((whole / "modules.json").read_text())
    modules[0]["path"] = "0_Transformer"
    (folder / "modules.json").write_text(json.dumps(modules))
    encoder = SentenceEncoder(path=str(folder))
    text = ["sort list queue cache merge filter"]
    assert encoder.load().embed(text) == pytest.approx(SentenceEncoder(path=str(whole)).load().embed(text), abs=1e-6)
    identity = encoder.identity()
    (folder / "0_Transformer" / "sentence_bert_config.json").write_text(json.dumps({"max_seq_length": 4}))
    assert encoder.identity() != identity


def test_what_a_model_leaves_open_is_told(encoder_reward_folder, tmp_path, capsys):
    """How tokens become a vector, and which of several prompts stands before a text."""
    SentenceEncoder(path=str(encoder_reward_folder)).load()
    assert (
        "no modules.json says how the vectors of a text's tokens become one; their mean is taken"
        in capsys.readouterr().err
    )
    SentenceEncoder(path=str(encoder_reward_folder), pooling="mean").load()
    plain = _sentence_model(encoder_reward_folder, tmp_path / "plain")
    SentenceEncoder(path=str(plain)).load()
    told = capsys.readouterr().err
    assert "modules.json" not in told and "prompt" not in told
    prompted = _sentence_model(encoder_reward_folder, tmp_path / "prompted", {"query": "query: "})
    SentenceEncoder(path=str(prompted)).load()
    assert (
        "texts are read as they are, though the model has prompts to put before them: query ("
        in capsys.readouterr().err
    )
    settings = prompted / "config_sentence_transformers.json"
    settings.write_text(json.dumps(json.loads(settings.read_text()) | {"default_prompt_name": "query"}))
    SentenceEncoder(path=str(prompted)).load()
    assert "texts are read as they are" not in capsys.readouterr().err


def test_answers_that_lose_their_end_are_told_once(policy_folder, decoder_reward_folder, encoder_reward_folder, capsys):
    long, short = "use sort on list " * 40, "use sort"
    models = (
        (CausalLM(path=str(policy_folder), max_response_tokens=16).load().logprobs, "(`max_response_tokens`"),
        (SequenceClassifier(path=str(decoder_reward_folder), max_tokens=32).load().rewards, "(`max_tokens`"),
        (
            SequenceClassifier(path=str(encoder_reward_folder), max_tokens=32, form="plain").load().rewards,
            "(`max_tokens`",
        ),
        (SequenceClassifier(path=str(encoder_reward_folder), max_tokens=33, pair=True).load().rewards, "(`max_tokens`"),
    )
    for score, setting in models:
        capsys.readouterr()
        score(["sort"], [[short]])
        assert "without their end" not in capsys.readouterr().err
        for _ in range(2):
            score(["sort", "merge"], [[short, long], [long]])
        (line,) = [line for line in capsys.readouterr().err.splitlines() if "without their end" in line]
        assert setting in line
