"""Log-probabilities by parts of the vocabulary are those of the whole, whatever the sizes of the parts."""

from __future__ import annotations

import math

import pytest
import torch

from seamcurate import CausalLM
from seamcurate.models import product, vocabulary


@pytest.fixture(autouse=True)
def small_blocks(monkeypatch):
    """Blocks that cut rows and vocabulary several times."""
    monkeypatch.setattr(vocabulary, "_ROWS", 3)
    monkeypatch.setattr(vocabulary, "_COLUMNS", 8)


def a_head(size, bias=False, width=12):
    torch.manual_seed(0)
    return torch.nn.Linear(width, size, bias=bias).requires_grad_(False)


def by_hand(hidden, head, tokens):
    logits = torch.nn.functional.linear(
        hidden.double(), head.weight.double(), None if head.bias is None else head.bias.double()
    )
    return logits.log_softmax(1).gather(1, tokens[:, None])[:, 0]


@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("size", [1, 7, 8, 9, 50])
def test_parts_give_the_log_probabilities_of_the_whole(size, bias):
    head = a_head(size, bias)
    # Logits of tens: sums of exponentials would overflow without their largest.
    hidden = 100 * torch.randn(40, 12)
    tokens = torch.arange(40) % size
    assert torch.allclose(
        vocabulary.logprobs(hidden, head, tokens).double(), by_hand(hidden, head, tokens), rtol=1e-5, atol=1e-4
    )


def test_a_part_that_is_impossible_adds_nothing():
    head = a_head(24, bias=True)
    head.bias[8:16] = -math.inf
    hidden, tokens = torch.randn(5, 12), torch.tensor([0, 7, 16, 23, 9])
    logprobs = vocabulary.logprobs(hidden, head, tokens)
    assert torch.allclose(logprobs[:4].double(), by_hand(hidden, head, tokens)[:4], atol=1e-5)
    assert float(logprobs[4]) == -math.inf


def test_a_sure_token_has_a_log_probability_of_0_and_not_more():
    head = a_head(50)
    hidden = 1000 * torch.randn(40, 12)
    assert vocabulary.logprobs(hidden, head, head(hidden).argmax(1)).max() == 0


def test_a_token_that_the_head_does_not_have_has_no_log_probability():
    logprobs = vocabulary.logprobs(torch.randn(3, 12), a_head(20), torch.tensor([19, 20, 300]))
    assert logprobs[0] < 0 and logprobs[1:].isnan().all()


def test_no_number_stays_no_number():
    hidden = torch.randn(2, 12)
    hidden[0, 0] = math.nan
    assert vocabulary.logprobs(hidden, a_head(50), torch.tensor([1, 2])).isnan().tolist() == [True, False]


def test_a_head_is_cut_only_if_it_is_a_plain_float32_layer():
    class Scaled(torch.nn.Linear):
        def forward(self, rows):
            return 2 * super().forward(rows)

    assert vocabulary.is_blockwise(a_head(5))
    quickened = a_head(5)
    product.quicken(quickened)
    assert vocabulary.is_blockwise(quickened)
    replaced = a_head(5)
    replaced.forward = lambda rows: 2 * rows
    for head in (replaced, a_head(5).bfloat16(), a_head(5).to("meta"), Scaled(12, 5), torch.nn.Identity()):
        assert not vocabulary.is_blockwise(head)


@pytest.mark.parametrize(("dtype", "by_parts"), [("float32", True), ("bfloat16", False)])
def test_a_policy_in_float32_is_read_by_parts_of_its_vocabulary(policy_folder, monkeypatch, dtype, by_parts):
    policy = CausalLM(path=str(policy_folder), dtype=dtype, device="cpu").load()
    calls = []
    monkeypatch.setattr(
        vocabulary, "logprobs", lambda *args, own=vocabulary.logprobs: (calls.append(len(args[2])), own(*args))[1]
    )
    prompts, answers = ["How do I sort a list?"], [["Call sort.", "A set holds distinct objects."]]
    likelihoods = policy.logprobs(prompts, answers)[0]
    assert (sum(calls) == sum(one.tokens for one in likelihoods)) is by_parts
    monkeypatch.setattr(vocabulary, "is_blockwise", lambda head: False)
    whole = policy.logprobs(prompts, answers)[0]
    assert [one.logprob for one in likelihoods] == pytest.approx([one.logprob for one in whole], rel=1e-5)
