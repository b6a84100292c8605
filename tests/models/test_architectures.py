"""Every family of transformers that has a small configuration: our scores equal plain calls, one text at a time.

Slow, so that `make test` leaves it out and `make test-architectures` runs it.
"""

from __future__ import annotations

import pytest
import torch
from architectures import bytewise_tokenizer, families, save, tiny_config

from seamcurate import CausalLM, SentenceEncoder, SequenceClassifier
from seamcurate.errors import ModelError
from seamcurate.models import Sampling, tokens

pytestmark = pytest.mark.architectures

PROMPTS = ["How do I sort a list?", "What is a set?"]
ANSWERS = [
    ["Call sort.", "Use sorted, which makes a copy of the list, and leaves it as it is.", "No."],
    ["A set.", "It holds distinct objects."],
]
TEXTS = [answer for answers in ANSWERS for answer in answers] + ["a"]
LIMIT = 200
CLASSIFIER = "AutoModelForSequenceClassification"

BIDIRECTIONAL = {
    *("bert", "bert-generation", "big_bird", "camembert", "cpmant", "data2vec-text", "electra", "ernie"),
    *("megatron-bert", "rembert", "roberta", "roberta-prelayernorm", "roc_bert", "roformer", "xlm", "xlm-roberta"),
    *("xlm-roberta-xl", "xlnet", "xmod"),
}
"""Families listed as language models whose tokens see the ones after them, unless their configuration says otherwise."""
NO_ENCODER = {"mt5", "t5", "umt5"}
"""Families whose plain model gives no hidden states to a text alone: it waits for the start of an answer."""
NOT_BUILT = {
    ("causal", "blt"): "reads bytes by a second model: 96 million weights at least",
    ("causal", "cohere_compass_text"): "its rotary embeddings name kinds of layers that its own configuration lacks",
    ("causal", "dots3_note"): "its layers have sizes of their own, which its configuration writes for all 42",
    ("causal", "dots3_note_text"): "its layers have sizes of their own: 18 million weights at least",
    ("causal", "emu3"): "AutoModelForCausalLM does not know the part for text that it hands on to",
    ("causal", "gemma3n"): "its part for images needs timm; the part for text is a family of its own here",
    ("causal", "gemma4_assistant"): "drafts for another model, whose states it reads",
    ("causal", "gemma4_unified_assistant"): "drafts for another model, whose states it reads",
    ("causal", "mllama"): "AutoModelForCausalLM does not know the part for text that it hands on to",
    ("causal", "musicgen"): "writes music: its tokens are no text",
    ("causal", "musicgen_melody"): "writes music: its tokens are no text",
    ("causal", "qwen4_exp"): "its plain model fails without sizes that its configuration leaves open",
    ("causal", "qwen4_exp_text"): "its plain model fails without sizes that its configuration leaves open",
    ("causal", "xlstm"): "its sizes follow from each other, and small ones do not fit",
    (
        "classification",
        "cohere_compass_text",
    ): "its rotary embeddings name kinds of layers that its configuration lacks",
    ("classification", "layoutlmv2"): "needs detectron2",
    ("classification", "mra"): "without its CUDA kernel all texts are alike to it",
    ("classification", "perceiver"): "a decoder of 260 million weights at least",
    ("classification", "t5gemma"): "its plain model fails where no start of an answer is set",
    ("classification", "t5gemma2"): "its two halves take their sizes from each other, and small ones do not fit",
    ("encoder", "emu3"): "its plain model fails without a map from tokens to images",
    ("encoder", "funnel"): "AutoModel makes another class of it, which reads no such configuration",
    ("encoder", "llama4"): "its plain model gives logits and no hidden states",
    ("encoder", "perceiver"): "a decoder of 260 million weights at least",
    ("encoder", "t5gemma"): "its plain model fails where no start of an answer is given",
}
"""Kinds and families that have no small model, and why."""
SETTINGS = {("causal", "reformer"): {"is_decoder": True}, ("classification", "funnel"): {"block_sizes": [1, 1]}}


@pytest.fixture(scope="module")
def characters():
    """A tokenizer with a token for each byte, so that any small vocabulary holds it."""
    return bytewise_tokenizer(LIMIT)


@pytest.fixture(autouse=True)
def quiet():
    """Keep transformers' advice on made-up configurations to itself."""
    from transformers.utils import logging

    logging.set_verbosity_error()
    logging.disable_progress_bar()


def built(kind, family, tokenizer, folder):
    """Write a tiny model and return it as plain transformers loads it, ready to answer."""
    import transformers

    if (kind, family) in NOT_BUILT:
        pytest.skip(f"{family}: {NOT_BUILT[kind, family]}")
    auto = getattr(transformers, {"causal": "AutoModelForCausalLM", "encoder": "AutoModel"}.get(kind, CLASSIFIER))
    more = {"num_labels": 1} if kind == "classification" else {}
    save(auto, tiny_config(family, **more, **SETTINGS.get((kind, family), {})), tokenizer, folder)
    return auto.from_pretrained(folder, dtype=torch.float32).eval()


def assert_equal(ours, plain):
    assert all(value is not None for value in ours)
    ours, plain = torch.tensor(ours, dtype=torch.float64), torch.tensor(plain, dtype=torch.float64)
    assert plain.isfinite().all() and plain.std() > 0
    assert float((ours - plain).abs().max()) <= 1e-4 * max(1.0, float(plain.abs().max()))


def log_probabilities(model, before, after):
    with torch.inference_mode():
        logits = model(input_ids=torch.tensor([before + after])).logits[0].float()
    return logits[len(before) - 1 : -1].log_softmax(-1)


@pytest.mark.parametrize("family", [name for name in families("causal") if name not in BIDIRECTIONAL])
def test_log_probabilities_equal_plain_calls(family, characters, tmp_path):
    model = built("causal", family, characters, tmp_path)
    plain = []
    for prompt, answers in zip(PROMPTS, ANSWERS, strict=True):
        before, after, _ = tokens.policy_group(characters, prompt, answers, LIMIT)
        for ids in after:
            logs = log_probabilities(model, before, ids)
            plain.append(float(logs.gather(1, torch.tensor(ids)[:, None]).double().sum()))
    ours = CausalLM(path=str(tmp_path), dtype="float32").load().logprobs(PROMPTS, ANSWERS)
    assert_equal([one and one.logprob for row in ours for one in row], plain)


@pytest.mark.parametrize("family", [name for name in families("causal") if name not in BIDIRECTIONAL])
def test_greedy_samples_equal_a_plain_loop(family, characters, tmp_path):
    model = built("causal", family, characters, tmp_path)
    sampler = CausalLM(path=str(tmp_path), dtype="float32").load_sampler()
    sampling = Sampling(temperature=0.0, max_tokens=24)
    samples = {request: sample for request, _, sample in sampler.samples([(p, [0]) for p in PROMPTS], sampling)}
    for request, prompt in enumerate(PROMPTS):
        before, after, logprob = tokens.prompt_ids(characters, prompt), [], 0.0
        while len(after) < 24 and after[-1:] != [characters.eos_token_id]:
            with torch.inference_mode():
                logs = model(input_ids=torch.tensor([before + after])).logits[0, -1].log_softmax(-1)
            after.append(int(logs.argmax()))
            logprob += float(logs.max())
        text = characters.decode(after, skip_special_tokens=True).removeprefix(" ")
        assert (samples[request].text, samples[request].tokens) == (text, len(after))
        assert samples[request].logprob_1 == pytest.approx(logprob, abs=1e-3)


@pytest.mark.parametrize("family", sorted(BIDIRECTIONAL))
def test_a_family_is_refused_as_a_policy_because_it_sees_later_tokens(family, characters, tmp_path):
    model = built("causal", family, characters, tmp_path)
    first, second, third = (characters(text)["input_ids"] for text in ("How do I ", "sort a list?", "copy a set!?"))
    early = [log_probabilities(model, first, last)[:1] for last in (second, third)]
    assert float((early[0] - early[1]).abs().max()) > 1e-3
    with pytest.raises(ModelError, match="is no policy: each token sees the ones after it"):
        CausalLM(path=str(tmp_path), dtype="float32").load()


@pytest.mark.parametrize("family", families("classification"))
def test_rewards_equal_plain_calls(family, characters, tmp_path):
    model = built("classification", family, characters, tmp_path)
    plain = []
    for prompt, answers in zip(PROMPTS, ANSWERS, strict=True):
        for answer in answers:
            ids = tokens.reward_ids(characters, prompt, answer, LIMIT)
            with torch.inference_mode():
                plain.append(float(model(input_ids=torch.tensor([ids])).logits[0, 0]))
    ours = SequenceClassifier(path=str(tmp_path), dtype="float32").load().rewards(PROMPTS, ANSWERS)
    assert_equal([one for row in ours for one in row], plain)


@pytest.mark.parametrize("family", [name for name in families("encoder") if name not in NO_ENCODER])
def test_embeddings_equal_plain_calls(family, characters, tmp_path):
    model = built("encoder", family, characters, tmp_path)
    with torch.inference_mode():
        hidden = [model(input_ids=torch.tensor([characters(text)["input_ids"]])).last_hidden_state for text in TEXTS]
    encoder = SentenceEncoder(path=str(tmp_path), dtype="float32", pooling="mean", normalise=False).load()
    assert_equal(encoder.embed(TEXTS).tolist(), [one[0].float().mean(0).tolist() for one in hidden])


@pytest.mark.parametrize("family", sorted(NO_ENCODER))
def test_a_family_is_refused_as_an_encoder_because_it_has_no_hidden_states_of_a_text(family, characters, tmp_path):
    model = built("encoder", family, characters, tmp_path)
    with pytest.raises(ValueError, match="must specify"):
        model(input_ids=torch.tensor([[5, 6, 7]]))
    with pytest.raises(ModelError, match=r"sentence_encoder .*must specify"):
        SentenceEncoder(path=str(tmp_path), pooling="mean").load()


def test_what_is_listed_here_is_listed_there():
    known = {(kind, name) for kind in ("causal", "classification", "encoder") for name in families(kind)}
    ours = {("causal", name) for name in BIDIRECTIONAL} | {("encoder", name) for name in NO_ENCODER}
    assert (ours | set(NOT_BUILT) | set(SETTINGS)) - known == set()
