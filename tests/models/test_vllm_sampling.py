"""Answers of a policy behind a real vLLM: those of its whole distribution, with the log-probabilities of the same weights here."""

from __future__ import annotations

import json

import pytest
import vllm_server

from seamcurate import CausalLM, CompletionServer
from seamcurate.models import Sampling

pytestmark = [pytest.mark.vllm, vllm_server.installed]

PROMPTS = ["how do I sort the list", "open a file", "use the queue"]


@pytest.fixture(scope="module")
def policy(tokenizer, tmp_path_factory):
    folder = vllm_server.write_policy(tmp_path_factory.mktemp("policy"), tokenizer)
    # Habits that vLLM takes over where a request does not say otherwise.
    file = folder / "generation_config.json"
    habits = {**(json.loads(file.read_text()) if file.exists() else {}), "top_k": 1, "repetition_penalty": 3.0}
    file.write_text(json.dumps(habits))
    return folder


@pytest.fixture(scope="module")
def served(policy, tmp_path_factory):
    with vllm_server.serving(policy, "tiny", log=tmp_path_factory.mktemp("vllm") / "log") as server:
        here = CausalLM(path=str(policy), dtype="float32", device="cpu")
        yield CompletionServer(path=server.url, api="vllm", model="tiny", same_as=here)


def answers(model, numbers, **settings):
    requests = [(prompt, numbers) for prompt in PROMPTS]
    samples = model.load_sampler().samples(requests, Sampling(**{"max_tokens": 8, **settings}))
    return {(request, draw): sample for request, draw, sample in samples}


def test_answers_are_those_of_the_whole_distribution_and_depend_on_the_seed(served):
    found = answers(served, range(8))
    assert len({sample.text for sample in found.values()}) > 12
    again = answers(served, [6, 2])
    assert {key: sample[:3] for key, sample in again.items()} == {key: found[key][:3] for key in again}
    assert {key: sample.text for key, sample in answers(served, [6, 2], seed=1).items()} != {
        key: sample.text for key, sample in again.items()
    }


def test_likeliest_answers_are_those_of_the_weights_here(served):
    found = answers(served, [0], temperature=0.0)
    expected = answers(served.same_as, [0], temperature=0.0)
    assert {key: sample[:4] for key, sample in found.items()} == {key: sample[:4] for key, sample in expected.items()}
    for key, sample in found.items():
        assert sample.logprob_1 == pytest.approx(expected[key].logprob_1, abs=1e-2)


@pytest.mark.parametrize("temperature", [1.0, 0.5])
def test_log_probabilities_are_those_of_temperature_1(served, temperature):
    found = answers(served, range(8), temperature=temperature)
    # vLLM's are: they were compared with those that it scores the same tokens with, and are None otherwise.
    assert all(sample.logprob_1 < 0 for sample in found.values())
    for sample in found.values():
        assert sample.logprob == (sample.logprob_1 if temperature == 1 else None)
