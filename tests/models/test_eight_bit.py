"""Weights of 8 bits on a CPU: no score depends on the batch, and what cannot be done is refused in a line."""

import numpy as np
import pytest
import torch

from seamcurate import CausalLM, SentenceEncoder, SequenceClassifier
from seamcurate.errors import ModelError
from seamcurate.models import eight_bit

PROMPTS = ["sort the list", "open a file"]
ANSWERS = [["use merge", "no", "parse it with care and then close it"], ["close it"]]


@pytest.fixture
def vnni(monkeypatch):
    """The integers are the same on every processor: only the speed is not."""
    monkeypatch.setattr(torch.cpu, "_is_vnni_supported", lambda: True, raising=False)


def test_a_row_is_rounded_by_its_own_largest_number():
    torch.manual_seed(0)
    layer = torch.nn.Linear(40, 300)
    rows = torch.randn(2, 130, 40) * torch.linspace(0.01, 100, 130)[:, None]
    with torch.inference_mode():
        expected = layer(rows)
        eight_bit.quantise(layer)
        read = layer(rows)
        assert torch.equal(layer(rows[:1, 3:4]), read[:1, 3:4])
    error = (read - expected).norm(dim=-1) / expected.norm(dim=-1)
    assert 1e-4 < float(error.max()) < 0.03
    assert not any(parameter.numel() for name, parameter in layer.named_parameters() if name == "weight")


@pytest.mark.parametrize("kind", [CausalLM, SequenceClassifier, SentenceEncoder])
def test_scores_are_near_those_of_single_precision_whatever_shares_the_batch(
    kind, policy_folder, decoder_reward_folder, encoder_reward_folder, vnni
):
    folder = {CausalLM: policy_folder, SequenceClassifier: decoder_reward_folder}.get(kind, encoder_reward_folder)
    options = {"pooling": "mean"} if kind is SentenceEncoder else {}
    config = kind(path=str(folder), dtype="int8", device="cpu", **options)

    def scores(model, prompts, answers):
        if kind is SentenceEncoder:
            return np.concatenate([model.embed(row).ravel() for row in answers])
        if kind is SequenceClassifier:
            return np.concatenate(model.rewards(prompts, answers))
        return np.array([one.logprob for row in model.logprobs(prompts, answers) for one in row])

    model, exact = config.load(), config.exact().load()
    together = scores(model, PROMPTS, ANSWERS)
    alone = np.concatenate(
        [scores(model, [p], [[answer]]) for p, row in zip(PROMPTS, ANSWERS, strict=True) for answer in row]
    )
    assert np.allclose(together, alone, rtol=2e-3, atol=2e-3)
    difference = np.abs(together - scores(exact, PROMPTS, ANSWERS)).max()
    assert 0 < difference < 0.2 * np.abs(together).max()


def test_int8_is_another_model_and_float32_is_not(policy_folder):
    config = CausalLM(path=str(policy_folder), device="cpu")
    assert config.model_copy(update={"dtype": "int8"}).identity() == {**config.identity(), "dtype": "int8"}
    assert config.exact() is None and config.model_copy(update={"dtype": "float32"}).exact() is None
    assert config.model_copy(update={"dtype": "bfloat16"}).exact() == config.model_copy(update={"dtype": "float32"})


def test_what_cannot_be_read_in_8_bits_is_refused(policy_folder, monkeypatch, vnni):
    config = CausalLM(path=str(policy_folder), dtype="int8", device="cpu")
    with pytest.raises(ModelError, match="`dtype: int8` is for scoring; sample in float32 or bfloat16"):
        config.load_sampler()
    with pytest.raises(ModelError, match="`dtype: int8` is for a CPU, and it would be read on meta"):
        eight_bit.check("meta", config.title)
    monkeypatch.setattr(torch.cpu, "_is_vnni_supported", lambda: False)
    for read in (config.load, config.check_here):
        with pytest.raises(
            ModelError, match="needs a processor with VNNI, and a torch that uses it; leave it out here"
        ):
            read()
