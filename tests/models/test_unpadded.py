"""Texts read end to end, without padding, have the embeddings and rewards of each text alone."""

import importlib

import numpy as np
import pytest
import torch

from seamcurate import SentenceEncoder, SequenceClassifier
from seamcurate.models import probe
from seamcurate.models.unpadded import Run, UnpaddedReader, _packs, _runs

TEXTS = [
    "sort list",
    "use merge on queue then parse it carefully",
    "list queue",
    "",
    "sort list queue cache merge filter " * 40,
    *(" ".join(["sort", "merge", "queue", "parse"][: 1 + i % 4]) for i in range(20)),
]


def _st_modules():
    try:
        return importlib.import_module("sentence_transformers.sentence_transformer.modules")
    except ModuleNotFoundError:
        # Before version 6.
        return importlib.import_module("sentence_transformers.models")


def _folder(tmp_path, body, modules, prompts=None):
    """Save a sentence-transformers model: a tiny BERT, and the modules after it."""
    from sentence_transformers import SentenceTransformer

    first = _st_modules().Transformer(str(body), max_seq_length=32)
    options = {"prompts": prompts, "default_prompt_name": "query"} if prompts else {}
    SentenceTransformer(modules=[first, *modules], device="cpu", **options).save(str(tmp_path / "model"))
    return tmp_path / "model"


def _modules(pooling):
    st = _st_modules()
    torch.manual_seed(5)
    width = 48 * len(pooling) if isinstance(pooling, tuple) else 48
    return [st.Pooling(48, pooling_mode=pooling), st.Dense(width, 16), st.Normalize()]


def _expected(folder, texts):
    from sentence_transformers import SentenceTransformer

    return SentenceTransformer(str(folder), device="cpu").encode(texts)


@pytest.mark.parametrize("pooling", ["mean", "cls", "max", "lasttoken", "weightedmean", ("mean", "cls")])
def test_embeddings_are_those_of_sentence_transformers(encoder_reward_folder, tmp_path, pooling):
    folder = _folder(tmp_path, encoder_reward_folder, _modules(pooling))
    encoder = SentenceEncoder(path=str(folder), dtype="float32", device="cpu", normalise=False).load()
    assert encoder.reader is not None
    assert np.allclose(encoder.embed(TEXTS), _expected(folder, TEXTS), atol=2e-6)
    assert encoder.embed(TEXTS[:1]).shape == (1, 16)


@pytest.mark.parametrize("include_prompt", [True, False])
def test_a_default_prompt_is_read_before_each_text(encoder_reward_folder, tmp_path, include_prompt):
    pooling = _st_modules().Pooling(48, pooling_mode="mean", include_prompt=include_prompt)
    folder = _folder(tmp_path, encoder_reward_folder, [pooling], {"query": "parse filter "})
    encoder = SentenceEncoder(path=str(folder), dtype="float32", device="cpu", normalise=False).load()
    assert np.allclose(encoder.embed(TEXTS), _expected(folder, TEXTS), atol=2e-6)
    plain = SentenceEncoder(path=str(encoder_reward_folder), dtype="float32", pooling="mean", normalise=False).load()
    assert not np.allclose(encoder.embed(TEXTS[:1]), plain.embed(TEXTS[:1]), atol=1e-3)


def test_a_module_that_padding_changes_reads_each_text_as_if_alone(encoder_reward_folder, tmp_path):
    st = _st_modules()
    torch.manual_seed(6)
    modules = [st.CNN(48, 8, kernel_sizes=[1, 3]), st.Pooling(16, pooling_mode="mean")]
    folder = _folder(tmp_path, encoder_reward_folder, modules)
    encoder = SentenceEncoder(path=str(folder), dtype="float32", device="cpu", normalise=False).load()
    alone = np.concatenate([_expected(folder, [text]) for text in TEXTS])
    assert encoder.reader is not None and np.allclose(encoder.embed(TEXTS), alone, atol=2e-6)


def test_what_cannot_be_read_end_to_end_is_left_to_sentence_transformers(encoder_reward_folder, tmp_path):
    path = _saved(tmp_path / "body", encoder_reward_folder, _config("MPNet"))
    folder = _folder(tmp_path, path, [_st_modules().Pooling(32, pooling_mode="mean")])
    encoder = SentenceEncoder(path=str(folder), dtype="float32", device="cpu", normalise=False).load()
    assert encoder.reader is None
    assert np.allclose(encoder.embed(TEXTS), _expected(folder, TEXTS), atol=2e-6)


def _saved(tmp_path, encoder_reward_folder, config):
    from transformers import AutoModel, AutoTokenizer

    torch.manual_seed(3)
    AutoModel.from_config(config).save_pretrained(tmp_path)
    AutoTokenizer.from_pretrained(encoder_reward_folder).save_pretrained(tmp_path)
    return str(tmp_path)


SIZES = {
    "vocab_size": 400,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "max_position_embeddings": 130,
    "pad_token_id": 0,
}


def _config(kind):
    import transformers

    more = {"num_key_value_heads": 2} if kind == "Qwen3" else {}
    return getattr(transformers, f"{kind}Config")(**SIZES, **more)


@pytest.mark.parametrize(
    ("kind", "is_unpadded"),
    [("Bert", True), ("Roberta", True), ("XLMRoberta", True), ("Qwen3", True), ("ModernBert", False), ("MPNet", False)],
)
def test_what_cannot_be_read_end_to_end_is_read_in_batches(encoder_reward_folder, tmp_path, kind, is_unpadded):
    path = _saved(tmp_path, encoder_reward_folder, _config(kind))
    encoder = SentenceEncoder(path=path, dtype="float32", device="cpu", pooling="mean", normalise=False).load()
    assert (encoder.reader is not None) == is_unpadded
    own = encoder.backbone.config._attn_implementation
    together = encoder.embed(TEXTS)
    alone = np.concatenate([encoder._pooled([text]) for text in TEXTS])
    assert np.allclose(together, alone, atol=1e-5)
    assert encoder.backbone.config._attn_implementation == own


def test_texts_of_a_length_share_a_run_and_a_long_text_has_a_sequence_of_its_own():
    packs = list(_packs([5, 3000, 2, 5, 2000, 40]))
    assert packs == [[1], [4, 5, 0], [3, 2]] or packs == [[1], [4, 5, 0, 3], [2]] or packs == [[1], [4, 5], [0, 3, 2]]
    assert _runs([4, 4, 1]) == [Run(0, 2, 4), Run(8, 1, 1)]


def test_positions_count_from_where_the_model_counts(encoder_reward_folder, tmp_path):
    from transformers import AutoModel

    path = _saved(tmp_path, encoder_reward_folder, _config("Roberta"))
    model = AutoModel.from_pretrained(path).eval()
    reader = UnpaddedReader(model)
    assert reader.agrees and reader._first == 1
    text = torch.tensor(probe.tokens(model, 7))
    (row,) = reader.read([text], lambda hidden, numbers: hidden.mean(1))
    with torch.inference_mode():
        assert torch.allclose(row, model(text[None]).last_hidden_state[0].mean(0), atol=1e-5)


@pytest.mark.parametrize("pair", [False, True])
@pytest.mark.parametrize("kind", ["Bert", "Roberta", "Electra"])
def test_rewards_of_encoders_are_those_of_each_pair_alone(encoder_reward_folder, tmp_path, kind, pair):
    import transformers

    torch.manual_seed(4)
    config = getattr(transformers, f"{kind}Config")(**SIZES, num_labels=2, initializer_range=0.4)
    getattr(transformers, f"{kind}ForSequenceClassification")(config).save_pretrained(tmp_path)
    transformers.AutoTokenizer.from_pretrained(encoder_reward_folder).save_pretrained(tmp_path)
    model = SequenceClassifier(path=str(tmp_path), dtype="float32", device="cpu", pair=pair, output=1).load()
    prompts, answers = ["sort list", "merge"], [TEXTS, TEXTS[:2]]
    read = model.rewards(prompts, answers)
    assert model.unpadded is not None
    model.unpadded, model.batches.longest_batched = None, 0
    padded = model.rewards(prompts, answers)
    assert [len(row) for row in read] == [len(TEXTS), 2] and None not in read[0]
    assert np.allclose(np.concatenate(read), np.concatenate(padded), atol=1e-5)
    assert np.std(read[0]) > 1e-2
