"""Answers of a policy behind a server: what is sent, which log-probabilities count, and what each fault costs."""

from __future__ import annotations

import json

import pytest
from completion_wire import completion_serving
from endpoint import status

from seamcurate import (
    CausalLM,
    CompletionServer,
    FakeModel,
    Models,
    Recipe,
    Rollouts,
    Source,
    difficulty,
    query,
    run_local,
)
from seamcurate.errors import ModelError
from seamcurate.models import Sample, Sampling, tokens

PROMPTS = ["how do I sort the list", "open a file", "use the queue"]
SHORT = Sampling(max_tokens=6, seed=2)


@pytest.fixture(autouse=True)
def quick(monkeypatch):
    monkeypatch.setattr("seamcurate.models.scoring_client.random.uniform", lambda low, high: 0.02)


@pytest.fixture(params=["vllm", "sglang"])
def at(request, policy_folder):
    with completion_serving(request.param, policy_folder) as endpoint:
        endpoint.api = request.param
        yield endpoint


@pytest.fixture
def served(at, policy_folder):
    here = CausalLM(path=str(policy_folder), dtype="float32")
    return CompletionServer(path=at.url, api=at.api, model="sft", same_as=here, timeout=5, retries=2, concurrency=4)


def answers(served, requests, sampling=SHORT):
    found = list(served.load_sampler().samples(requests, sampling))
    assert len({(request, draw) for request, draw, _ in found}) == len(found)
    return {(requests[request][0], draw): sample for request, draw, sample in found}


def test_an_answer_depends_on_seed_prompt_and_draw_alone(served):
    whole = answers(served, [(prompt, range(6)) for prompt in PROMPTS])
    assert len(whole) == 18 and len({sample.text for sample in whole.values()}) > 10
    assert answers(served, [(PROMPTS[2], [5, 1]), (PROMPTS[0], [3])]) == {
        (PROMPTS[2], 5): whole[PROMPTS[2], 5],
        (PROMPTS[2], 1): whole[PROMPTS[2], 1],
        (PROMPTS[0], 3): whole[PROMPTS[0], 3],
    }
    assert answers(served, [(PROMPTS[0], [3])], SHORT._replace(seed=9)) != {(PROMPTS[0], 3): whole[PROMPTS[0], 3]}


def test_token_ids_are_sent_and_nothing_is_left_to_the_servers_defaults(at, served):
    answers(served, [(PROMPTS[0], [0])], SHORT._replace(top_p=1.0, temperature=0.5))
    sent = at.requests[-1]
    tokenizer = served.same_as.tokenizer()
    assert sent.get("prompt", sent.get("input_ids")) == tokens.prompt_ids(tokenizer, PROMPTS[0])
    params = sent.get("sampling_params", sent)
    limit = params.get("max_tokens", params.get("max_new_tokens"))
    assert (params["temperature"], params["top_p"], limit) == (0.5, 1.0, 6)
    assert (params["top_k"], params["repetition_penalty"], params["min_p"]) == (-1, 1.0, 0.0)
    assert tokenizer.eos_token_id in params["stop_token_ids"]


def test_greedy_answers_are_those_of_the_weights_here(served):
    greedy = Sampling(temperature=0.0, max_tokens=6)
    expected = answers(served.same_as, [(prompt, [0]) for prompt in PROMPTS], greedy)
    found = answers(served, [(prompt, [0]) for prompt in PROMPTS], greedy)
    for key, sample in found.items():
        assert sample[:4] == expected[key][:4] and sample.logprob == 0
        assert sample.logprob_1 == pytest.approx(expected[key].logprob_1, abs=1e-3)


def test_log_probabilities_that_are_not_known_are_none(at, served):
    (plain,) = answers(served, [(PROMPTS[0], [0])]).values()
    assert plain.logprob == plain.logprob_1 < 0
    (cooler,) = answers(served, [(PROMPTS[0], [0])], SHORT._replace(temperature=0.5)).values()
    assert cooler.logprob is None and cooler.logprob_1 < 0
    at.processed = True
    (processed,) = answers(served, [(PROMPTS[0], [0])], SHORT._replace(temperature=0.5)).values()
    assert processed[:3] == cooler[:3] and (processed.logprob, processed.logprob_1) == (None, None)
    # At temperature 1 there is no difference.
    assert answers(served, [(PROMPTS[0], [0])]) == {(PROMPTS[0], 0): plain}


def test_an_end_token_that_is_left_out_is_counted_and_its_log_probability_is_not_known(at, served):
    # Every token ends an answer.
    sampler = served.load_sampler()
    sampler.ends = list(range(400))
    ((_, _, whole),) = sampler.samples([(PROMPTS[0], [0])], SHORT)
    assert (whole.text, whole.tokens, whole.finish) == ("", 1, "stop") and whole.logprob < 0
    sampler.ends = list(range(0, 400, 2))
    draws = range(12)
    cut = {draw: sample for _, draw, sample in sampler.samples([(PROMPTS[0], draws)], SHORT)}
    at.trimmed = True
    trimmed = {draw: sample for _, draw, sample in sampler.samples([(PROMPTS[0], draws)], SHORT)}
    compared = 0
    for draw, sample in trimmed.items():
        # An answer of the end token alone is answered with no token at all.
        if isinstance(sample, Sample) and sample.finish == "stop":
            compared += 1
            assert (sample.text, sample.tokens) == (cut[draw].text, cut[draw].tokens)
            assert sample.logprob is None and sample.logprob_1 is None and cut[draw].logprob < 0
    assert compared


def test_a_prompt_that_fills_the_window_has_no_answer_and_one_that_nearly_does_a_short_one(at, served):
    length = len(tokens.prompt_ids(served.same_as.tokenizer(), PROMPTS[0]))
    at.pages["/v1/models"]["data"][0]["max_model_len"] = length + 2
    found = answers(served, [(PROMPTS[0], [0]), ("why " * 60, [0, 1])])
    assert found[PROMPTS[0], 0].tokens <= 2
    assert found["why " * 60, 0] == found["why " * 60, 1] and "fills the window of" in found["why " * 60, 0]


def test_a_request_that_fails_costs_its_draw_and_a_failure_in_between_is_repeated(at, served):
    sampler = served.load_sampler()
    at.script = [status(503)]
    assert all(isinstance(sample, Sample) for _, _, sample in sampler.samples([(PROMPTS[0], range(3))], SHORT))
    complete = at.complete

    def some(asked):
        ids = asked.get("prompt", asked.get("input_ids"))
        return {"model": "sft"} if ids == tokens.prompt_ids(served.same_as.tokenizer(), PROMPTS[1]) else complete(asked)

    at.complete = some
    found = list(sampler.samples([(PROMPTS[1], [0]), (PROMPTS[0], [0])], SHORT))
    assert [position for position, _, _ in found] == [0, 1] and isinstance(found[1][2], Sample)
    assert found[0][2].startswith(f"{at.path} answered with no ")


def test_another_model_in_the_middle_stops_the_run(at, served):
    sampler = served.load_sampler()
    list(sampler.samples([(PROMPTS[0], [0])], SHORT))
    complete = at.complete
    at.complete = lambda asked: {**complete(asked), "model": "other"}
    at.version = "v2"
    with pytest.raises(ModelError, match=r"other answered|changed from version default to v2"):
        list(sampler.samples([(PROMPTS[0], [1])], SHORT))


def test_answers_that_end_in_another_way_are_refused(at, served):
    sampler = served.load_sampler()
    complete = at.complete

    def aborted(asked):
        reply = complete(asked)
        if "choices" in reply:
            reply["choices"][0]["finish_reason"] = "abort"
        else:
            reply["meta_info"]["finish_reason"] = {"type": "abort"}
        return reply

    list(sampler.samples([(PROMPTS[0], [0])], SHORT))
    at.complete = aborted
    ((_, _, reason),) = sampler.samples([(PROMPTS[0], [1])], SHORT)
    assert reason == f"{at.path} answered with an answer that ends by 'abort'"


def test_rollouts_by_a_server_give_profiles_and_ask_once(at, served, tmp_path):
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps({"prompt": prompt}) + "\n" for prompt in PROMPTS))
    steps = (Rollouts(n=4, max_tokens=6), *difficulty(threshold=0.0))
    recipe = Recipe(
        rows=Source(jsonl=str(tmp_path / "rows.jsonl"), shard_rows=2),
        models=Models(policy=served, reward=FakeModel()),
        steps=steps,
    )
    run_local(recipe, tmp_path / "store")
    rows = query(tmp_path / "store", "SELECT * FROM rows ORDER BY row_id").to_pylist()
    sampling = Sampling(n=4, max_tokens=6)
    expected = answers(served, [(prompt, range(4)) for prompt in PROMPTS], sampling)
    for prompt, row in zip(PROMPTS, rows, strict=True):
        texts = [expected[prompt, draw].text for draw in range(4)]
        counted = {sample["response"]: 0 for sample in row["worse_policy"]}
        for sample in row["worse_policy"]:
            counted[sample["response"]] += sample["count"]
        assert counted == {text: texts.count(text) for text in texts}
        assert row["rollout_samples"] == 4 and row["reason_policy"] is None
    asked = len(at.requests)
    run_local(recipe, tmp_path / "store")
    assert len(at.requests) == asked
