"""Quantised folders: what can be had here is scored, and anything else is refused in one line before it is read."""

from __future__ import annotations

import json
import shutil

import pytest
import torch
from safetensors.torch import load_file, save_file

from seamcurate import CausalLM, SequenceClassifier
from seamcurate.errors import ModelError, TrainError
from seamcurate.models import quantised, weights

PROMPTS = ["how do I sort the list", "open a file"]
RESPONSES = [["use sort on list", "no"], ["open it"]]


def scores(config):
    return [one.logprob for row in config.load().logprobs(PROMPTS, RESPONSES) for one in row]


def state(folder, **settings):
    """Have a folder's configuration say that its weights are quantised."""
    file = folder / "config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"quantization_config": settings}))
    return folder


@pytest.fixture
def copied(policy_folder, tmp_path):
    return shutil.copytree(policy_folder, tmp_path / "model")


def blocks(folder, dequantised, width=8):
    """Write the linear layers' weights in float8, a scale for each block, and elsewhere the values that these mean."""
    tensors = load_file(folder / "model.safetensors")
    meant = dict(tensors)
    for name, weight in list(tensors.items()):
        if not name.endswith("_proj.weight"):
            continue
        tiles = weight.reshape(weight.shape[0] // width, width, weight.shape[1] // width, width)
        scale = tiles.abs().amax((1, 3)) / 448
        packed = (tiles / scale[:, None, :, None]).to(torch.float8_e4m3fn)
        tensors[name], tensors[f"{name}_scale_inv"] = packed.reshape(weight.shape), scale
        meant[name] = (packed.float() * scale[:, None, :, None]).reshape(weight.shape)
    save_file(tensors, folder / "model.safetensors", {"format": "pt"})
    save_file(meant, dequantised / "model.safetensors", {"format": "pt"})


def test_weights_in_float8_are_dequantised_to_the_values_that_they_mean(copied, policy_folder, tmp_path):
    meant = shutil.copytree(policy_folder, tmp_path / "meant")
    blocks(copied, meant)
    state(copied, quant_method="fp8", activation_scheme="dynamic", weight_block_size=[8, 8])
    config = CausalLM(path=str(copied), dtype="float32")
    ours, same, before = (scores(CausalLM(path=str(path), dtype="float32")) for path in (copied, meant, policy_folder))
    assert ours == pytest.approx(same, abs=1e-4) and ours != pytest.approx(before, abs=1e-2)
    assert config.identity()["dequantised"] is True
    assert "dequantised" not in CausalLM(path=str(meant)).identity()


def test_quantised_weights_without_a_word_of_it_are_refused(copied, policy_folder, tmp_path):
    """transformers would read them as weights, and leave the scales out."""
    blocks(copied, shutil.copytree(policy_folder, tmp_path / "meant"))
    with pytest.raises(
        ModelError, match=r"holds quantised weights \(.*_scale_inv\), and its config\.json does not say"
    ) as e:
        CausalLM(path=str(copied)).load()
    assert "\n" not in str(e.value)


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"quant_method": "quark"}, "is quantised by quark, which is not read; of awq, bitsandbytes, .* or GGUF"),
        ({"bits": 4}, "is quantised by None, which is not read"),
        ({"quant_method": ["gptq"]}, "which is not read"),
    ],
)
def test_a_way_to_quantise_that_is_not_read_is_refused_before_weights_are(copied, settings, said):
    """transformers leaves it out with a line in its log, and reads the weights as if they were whole."""
    state(copied, **settings)
    for attempt in (CausalLM(path=str(copied)).identity, CausalLM(path=str(copied)).load):
        with pytest.raises(ModelError, match=said) as error:
            attempt()
        assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("settings", "package"),
    [
        ({"quant_method": "bitsandbytes", "load_in_4bit": True}, "bitsandbytes"),
        ({"load_in_8bit": True}, "bitsandbytes"),
        ({"quant_method": "gptq", "bits": 4}, "gptqmodel and optimum"),
        ({"quant_method": "awq", "bits": 4}, "gptqmodel"),
        ({"quant_method": "compressed-tensors"}, "compressed-tensors"),
        ({"quant_method": "torchao"}, "torchao"),
    ],
)
def test_a_package_that_is_missing_is_named_before_the_run(copied, settings, package, monkeypatch):
    monkeypatch.setattr(quantised, "_is_installed", lambda name: name == "accelerate")
    state(copied, **settings)
    config = CausalLM(path=str(copied))
    # What a store holds of such a model can be looked at without the package.
    assert config.identity()["causal_lm"] == weights.identity(config.origin)
    for attempt in (config.check_here, config.load):
        with pytest.raises(ModelError, match=rf"needs {package}; pip install {package.replace(' and ', ' ')}, or give"):
            attempt()


def test_the_precision_that_quantised_weights_are_computed_in_is_theirs(copied, decoder_reward_folder, tmp_path):
    state(copied, quant_method="awq", bits=4)
    assert CausalLM(path=str(copied)).identity()["dtype"] == "float16"
    with pytest.raises(
        ModelError, match=r"quantised by awq, which is not computed in float32; give it `dtype: float16`"
    ):
        CausalLM(path=str(copied), dtype="float32").identity()
    reward = state(shutil.copytree(decoder_reward_folder, tmp_path / "reward"), quant_method="gptq", bits=4)
    assert SequenceClassifier(path=str(reward), dtype="bfloat16").identity()["dtype"] == "bfloat16"
    state(copied, load_in_4bit=True)
    assert CausalLM(path=str(copied)).identity()["dtype"] == weights.precision("auto", "auto")
    # The way to quantise is part of the files, and so of the fingerprint.
    four = CausalLM(path=str(copied)).identity()["causal_lm"]
    state(copied, load_in_8bit=True)
    assert CausalLM(path=str(copied)).identity()["causal_lm"] != four


def test_training_from_quantised_weights_is_refused(copied):
    from transformers import AutoModelForCausalLM

    from seamcurate.train import SFTTraining
    from seamcurate.train.training import open_model

    state(copied, quant_method="fp8")
    with pytest.raises(TrainError, match="is quantised by fp8, and trained are whole weights"):
        open_model(copied, AutoModelForCausalLM, SFTTraining())


def test_four_bits_of_bitsandbytes_are_scored_as_plain_transformers_scores_them(tokenizer, tmp_path):
    pytest.importorskip("bitsandbytes", reason="not in the tests' environment; it runs on a CPU, too")
    from transformers import AutoModelForCausalLM, BitsAndBytesConfig, Qwen2Config, Qwen2ForCausalLM

    four = BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_quant_type="nf4")
    sizes = {"hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2, "num_attention_heads": 4}
    sizes |= {"num_key_value_heads": 2}
    Qwen2ForCausalLM(Qwen2Config(vocab_size=len(tokenizer), **sizes)).save_pretrained(tmp_path / "whole")
    AutoModelForCausalLM.from_pretrained(tmp_path / "whole", quantization_config=four).save_pretrained(
        tmp_path / "four"
    )
    tokenizer.save_pretrained(tmp_path / "four")
    plain = AutoModelForCausalLM.from_pretrained(tmp_path / "four").eval()
    expected = []
    for prompt, answers in zip(PROMPTS, RESPONSES, strict=True):
        for answer in answers:
            before = tokenizer(f"Question: {prompt}\n\nAnswer:")["input_ids"]
            ids = tokenizer(f" {answer}")["input_ids"] + [tokenizer.eos_token_id]
            with torch.no_grad():
                logprobs = plain(torch.tensor([before + ids])).logits[0].double().log_softmax(-1)
            expected.append(sum(logprobs[len(before) - 1 + i, token].item() for i, token in enumerate(ids)))
    assert scores(CausalLM(path=str(tmp_path / "four"), dtype="float32")) == pytest.approx(expected, abs=1e-3)
