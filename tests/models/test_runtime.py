"""Encoders by ONNX Runtime and OpenVINO: torch's numbers, whatever shares a batch, and a line where that cannot be."""

from __future__ import annotations

import importlib.util
import re

import numpy as np
import pytest
import torch
from pydantic import ValidationError

from seamcurate import Embed, Models, Recipe, SentenceEncoder, SequenceClassifier, Source, Store, extras, run_local
from seamcurate.errors import ModelError, SeamcurateError
from seamcurate.models import runtime
from tests.conftest import questions

pytestmark = pytest.mark.slow

INSTALLED = {name: not extras.missing(name) for name in runtime.TITLES}
RUNTIMES = [
    pytest.param(
        name,
        marks=pytest.mark.skipif(
            not INSTALLED[name], reason=f"needs {title}, of the extra `{name}`; `make test-runtimes` has it"
        ),
    )
    for name, title in runtime.TITLES.items()
]
needs_openvino = pytest.mark.skipif(not INSTALLED["openvino"], reason="needs OpenVINO; `make test-runtimes` has it")
needs_any = pytest.mark.skipif(not any(INSTALLED.values()), reason="needs a runtime; `make test-runtimes` has both")
ANY = next((name for name, installed in INSTALLED.items() if installed), "onnx")
TEXTS = [row["response"] for row in questions(12)] + ["sort", "merge the list and the file and the set " * 9]
PROMPTS, ANSWERS = ["sort the list", "open a file"], [["use merge", "no", "parse it with care " * 9], ["close it"]]


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    """A cache of this test's own."""
    monkeypatch.setenv("SEAMCURATE_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache" / "exports"


@pytest.fixture(scope="session")
def sentence_folder(encoder_reward_folder, tmp_path_factory):
    """A sentence-transformers model with a dense layer of its own after the pooling, and a prompt."""
    from sentence_transformers import SentenceTransformer

    try:
        from sentence_transformers.sentence_transformer.modules import Dense, Pooling, Transformer
    except ImportError:
        from sentence_transformers.models import Dense, Pooling, Transformer

    folder = tmp_path_factory.mktemp("sentences")
    body = Transformer(str(encoder_reward_folder), max_seq_length=64)
    torch.manual_seed(3)
    modules = [body, Pooling(48, pooling_mode="mean"), Dense(48, 20)]
    SentenceTransformer(modules=modules, prompts={"ask": "question : "}, default_prompt_name="ask").save(str(folder))
    return folder


def classifier(folder, **options):
    return SequenceClassifier(path=str(folder), device="cpu", **options)


def encoder(folder, **options):
    return SentenceEncoder(path=str(folder), device="cpu", **options)


@pytest.mark.parametrize("name", RUNTIMES)
@pytest.mark.parametrize("pooling", ["default", "mean", "cls", "pooler"])
def test_embeddings_are_those_of_torch_whatever_shares_the_batch(name, pooling, encoder_reward_folder, sentence_folder):
    folder = sentence_folder if pooling == "default" else encoder_reward_folder
    config = encoder(folder, pooling=pooling, normalise=False)
    expected = config.load().embed(TEXTS)
    loaded = config.model_copy(update={"backend": name}).load()
    together = loaded.embed(TEXTS)
    assert np.abs(together - expected).max() < 1e-4 * max(1, np.abs(expected).max())
    alone = np.concatenate([loaded.embed([text]) for text in TEXTS])
    assert np.abs(together - alone).max() < 1e-5 * max(1, np.abs(expected).max())
    assert together.std(0).max() > 1e-3


@pytest.mark.parametrize("name", RUNTIMES)
@pytest.mark.parametrize("options", [{}, {"pair": True}, {"max_tokens": 12}], ids=["plain", "pair", "cut"])
def test_rewards_are_those_of_torch_whatever_shares_the_batch(name, options, encoder_reward_folder):
    config = classifier(encoder_reward_folder, **options)
    expected = config.load().rewards(PROMPTS, ANSWERS)
    loaded = config.model_copy(update={"backend": name}).load()
    together = loaded.rewards(PROMPTS, ANSWERS)
    alone = [[loaded.rewards([p], [[a]])[0][0] for a in row] for p, row in zip(PROMPTS, ANSWERS, strict=True)]
    assert np.allclose(np.concatenate(together), np.concatenate(expected), atol=1e-4)
    assert np.allclose(np.concatenate(together), np.concatenate(alone), atol=1e-5)
    assert np.std(np.concatenate(together)) > 1e-3


def other_classifier(kind, tokenizer, folder):
    """A tiny classifier of another family, with two outputs."""
    import transformers

    torch.manual_seed(5)
    sizes = {"vocab_size": len(tokenizer), "max_position_embeddings": 200, "pad_token_id": tokenizer.pad_token_id}
    small = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4}
    if kind == "DistilBert":
        small = {"dim": 32, "hidden_dim": 64, "n_layers": 2, "n_heads": 4}
    if kind == "DebertaV2":
        small |= {"relative_attention": True, "position_buckets": 16, "pos_att_type": ["p2c", "c2p"]}
    if kind == "ModernBert":
        small |= {"local_attention": 16, "reference_compile": False}
    config = getattr(transformers, f"{kind}Config")(**sizes, **small, num_labels=2, initializer_range=0.3)
    getattr(transformers, f"{kind}ForSequenceClassification")(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


@needs_any
@pytest.mark.parametrize("kind", ["Roberta", "DistilBert", "DebertaV2", "ModernBert"])
def test_encoders_of_other_families_give_torchs_rewards(kind, tokenizer, tmp_path):
    config = classifier(other_classifier(kind, tokenizer, tmp_path / kind), output=1, outputs=[0])
    expected = config.load().ratings(PROMPTS, ANSWERS, {})
    loaded = config.model_copy(update={"backend": ANY}).load()
    for row, expected_row in zip(loaded.ratings(PROMPTS, ANSWERS, {}), expected, strict=True):
        for rating, exact in zip(row, expected_row, strict=True):
            assert rating.reward == pytest.approx(exact.reward, abs=1e-4)
            assert rating.outputs == pytest.approx(exact.outputs, abs=1e-4)


@needs_any
def test_a_model_is_exported_once_for_its_weights(encoder_reward_folder, cache, tmp_path, monkeypatch, capsys):
    config = classifier(encoder_reward_folder, backend=ANY)
    rewards = config.load().rewards(PROMPTS, ANSWERS)
    assert "exported once" in capsys.readouterr().err
    (folder,) = cache.iterdir()
    assert [file.name for file in folder.iterdir()] == ["model.onnx"]
    with monkeypatch.context() as patch:
        patch.setattr(torch.onnx, "export", None)
        assert config.load().rewards(PROMPTS, ANSWERS) == rewards
    assert "exported" not in capsys.readouterr().err
    # Other weights of the same shape are another model.
    from transformers import AutoModelForSequenceClassification, AutoTokenizer

    model = AutoModelForSequenceClassification.from_pretrained(encoder_reward_folder)
    model.classifier.weight.data *= 2
    model.save_pretrained(tmp_path / "other")
    AutoTokenizer.from_pretrained(encoder_reward_folder).save_pretrained(tmp_path / "other")
    other = classifier(tmp_path / "other", backend=ANY).load().rewards(PROMPTS, ANSWERS)
    assert not np.allclose(np.concatenate(other), np.concatenate(rewards), atol=1e-3)
    assert len(list(cache.iterdir())) == 2


@needs_any
def test_an_export_that_gives_other_numbers_is_refused(encoder_reward_folder, cache, tmp_path):
    config = classifier(encoder_reward_folder, backend=ANY)
    config.load()
    (file,) = cache.glob("*/model.onnx")
    import onnx
    from onnx import numpy_helper

    exported = onnx.load(file)
    bias = next(weight for weight in exported.graph.initializer if weight.name.endswith("classifier.bias"))
    bias.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(bias) + np.float32(0.5), bias.name))
    onnx.save(exported, file)
    with pytest.raises(
        ModelError, match=r"cannot be computed by .*: its numbers differ from torch's by up to 0\.5; leave"
    ):
        config.load()
    file.write_bytes(file.read_bytes()[:1000])
    with pytest.raises(ModelError, match=r"cannot compute .*model\.onnx .*remove its folder to have it exported again"):
        config.load()


@needs_openvino
def test_int8_by_openvino_is_near_and_depends_on_no_other_text(encoder_reward_folder, monkeypatch):
    monkeypatch.setattr(torch.cpu, "_is_vnni_supported", lambda: True, raising=False)
    config = encoder(encoder_reward_folder, pooling="mean", backend="openvino", dtype="int8")
    exact, loaded = config.exact().load(), config.load()
    together = loaded.embed(TEXTS)
    cosines = (together * exact.embed(TEXTS)).sum(1)
    assert 1e-6 < 1 - cosines.min() < 0.05
    alone = np.concatenate([loaded.embed([text]) for text in TEXTS])
    assert np.abs(together - alone).max() < 1e-5


@needs_any
def test_the_difference_from_torch_stands_in_the_facts_and_a_run_goes_on_where_it_was(encoder_reward_folder, files):
    rows, _ = files
    source = Source(parquet=str(rows), prompt="prompt", response="response", shard_rows=8)
    model = encoder(encoder_reward_folder, pooling="mean", backend=ANY)
    recipe = Recipe(rows=source, models=Models(encoder=model), steps=(Embed(),))
    path = rows.parent / "store"
    run_local(recipe, path)
    facts = Store(path).facts("embedding")["precision"]
    assert facts["dtype"] == f"float32 by {runtime.TITLES[ANY]}"
    assert 0 <= facts["differences"]["embedding"] < 1e-5
    assert "against float32" in facts["line"]
    written = sorted((path / "columns" / "embedding").glob("*.parquet"))
    before = [file.read_bytes() for file in written]
    written[0].unlink()
    run_local(recipe, path)
    assert [file.read_bytes() for file in written] == before
    by_torch = recipe.model_copy(update={"models": Models(encoder=model.exact())})
    with pytest.raises(SeamcurateError, match="encoder"):
        run_local(by_torch, path)


def test_the_runtime_is_part_of_a_fingerprint_and_torch_is_not(encoder_reward_folder, monkeypatch):
    monkeypatch.setattr(extras, "missing", lambda extra: [])
    config = classifier(encoder_reward_folder, dtype="float32")
    identity = config.identity()
    assert "backend" not in identity
    for name in runtime.TITLES:
        by = config.model_copy(update={"backend": name})
        assert by.identity() == {**identity, "backend": name}
        assert by.exact() == config
    assert config.exact() is None
    assert config.model_copy(update={"backend": "openvino", "dtype": "int8"}).exact() == config


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"backend": "onnx", "dtype": "bfloat16"}, "backend: onnx computes in float32; leave `dtype: bfloat16` out"),
        ({"backend": "onnx", "dtype": "int8"}, "write `backend: openvino` with int8"),
        ({"backend": "openvino", "trust_remote_code": True}, "leave `trust_remote_code` out"),
        ({"backend": "tensorrt"}, "'torch', 'onnx' or 'openvino'"),
    ],
)
def test_settings_that_no_runtime_has_are_refused_before_anything_is_read(options, message):
    with pytest.raises(ValidationError, match=re.escape(message)):
        classifier("my-org/rm", **options)


@pytest.mark.parametrize("name", list(runtime.TITLES))
def test_a_runtime_that_is_not_installed_is_asked_for_by_its_extra(name, encoder_reward_folder, monkeypatch):
    present = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda module: None if "on" in module[:2] else present(module))
    config = classifier(encoder_reward_folder, backend=name)
    for ask in (config.identity, config.check_here, config.load):
        with pytest.raises(ModelError, match=rf"`backend: {name}`, needs \w+, .*{re.escape(extras.install(name))}$"):
            ask()


def test_what_a_runtime_cannot_compute_is_refused_in_a_line(
    decoder_reward_folder, encoder_reward_folder, cache, monkeypatch
):
    monkeypatch.setattr(extras, "missing", lambda extra: [])
    with pytest.raises(ModelError, match="is a decoder, and `backend: onnx` is for encoders; leave it out"):
        classifier(decoder_reward_folder, backend="onnx").load()
    with pytest.raises(
        ModelError, match="is for a CPU, and it would be read on cuda; leave it out, or set `device: cpu`"
    ):
        runtime.check("openvino", "cuda", "auto", "sentence_encoder m")

    def refuse(*values, **options):
        raise RuntimeError("no symbolic function for aten::newest\nmore")

    monkeypatch.setattr("importlib.metadata.version", lambda package: "1")
    monkeypatch.setattr(torch.onnx, "export", refuse)
    with pytest.raises(ModelError, match=r"it cannot be exported \(no symbolic function for aten::newest\); leave"):
        classifier(encoder_reward_folder, backend="onnx").load()
    assert not list(cache.iterdir())
    packed = {"quantization_config": {"quant_method": "bitsandbytes", "load_in_4bit": True}}
    monkeypatch.setattr("seamcurate.models.weights.configuration", lambda origin: packed)
    with pytest.raises(ModelError, match="quantised weights are not exported; leave `backend: openvino` out"):
        encoder(encoder_reward_folder, backend="openvino").check_device()
