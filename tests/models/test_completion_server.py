"""A policy behind a server gives what the same weights give here, and every fault on the wire has one line."""

from __future__ import annotations

import datetime
import json
import math

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest
from completion_wire import completion_serving
from conftest import questions
from endpoint import body, serving, sleep, status

from seamcurate import (
    CausalLM,
    CompletionServer,
    FakeModel,
    Models,
    Recipe,
    Source,
    plan,
    query,
    run_local,
    seam,
)
from seamcurate.errors import ModelError
from seamcurate.models import tokens
from seamcurate.publish.export import form_model

ROWS = questions(6)
PROMPTS = [row["prompt"] for row in ROWS] + [[{"role": "user", "content": "Why?"}]]
ANSWERS = [[row["response"], "no", "no"] for row in ROWS] + [[]]


@pytest.fixture(autouse=True)
def quick(monkeypatch):
    monkeypatch.setattr("seamcurate.models.scoring_client.random.uniform", lambda low, high: 0.02)


@pytest.fixture(params=["vllm", "sglang"])
def at(request, policy_folder):
    with completion_serving(request.param, policy_folder) as endpoint:
        endpoint.api = request.param
        yield endpoint


@pytest.fixture
def vllm(policy_folder):
    with completion_serving("vllm", policy_folder) as endpoint:
        endpoint.api = "vllm"
        yield endpoint


@pytest.fixture(scope="module")
def here(policy_folder):
    return CausalLM(path=str(policy_folder), dtype="float32")


def served(at, here, **settings):
    settings = {"same_as": here, "timeout": 5, "retries": 2, "concurrency": 4, **settings}
    return CompletionServer(path=at.url, api=at.api, model="sft", **settings)


def test_likelihoods_are_those_of_the_weights_here(at, here):
    expected = here.load().logprobs(PROMPTS, ANSWERS)
    for load in (served(at, here).load, served(at, here).load_uncached):
        found = load().logprobs(PROMPTS, ANSWERS)
        assert [[(e.tokens, e.boundary) for e in row] for row in found] == [
            [(e.tokens, e.boundary) for e in row] for row in expected
        ]
        for row, expected_row in zip(found, expected, strict=True):
            assert [e.logprob for e in row] == pytest.approx([e.logprob for e in expected_row], abs=1e-3)
    # The first request of each model is a probe; an answer that a prompt has twice is asked for once.
    assert len(at.requests) == 2 * (1 + 12) and at.busiest <= 4
    salts = [asked.get("cache_salt", asked.get("extra_key")) for asked in at.requests]
    assert salts[:13] == [None] * 13 and len(set(salts[13:])) == 13


def test_token_ids_are_sent_as_a_local_policy_reads_them(vllm, here):
    served(vllm, here).load().logprobs(["What is a set?"], [["A collection."]])
    tokenizer = here.tokenizer()
    prompt_ids, response_ids = tokens.policy_ids(tokenizer, "What is a set?", "A collection.", 512)
    assert vllm.requests[-1]["prompt"] == prompt_ids + response_ids and vllm.requests[-1]["add_special_tokens"] is False


def test_tokens_under_way_are_bounded(vllm, here):
    vllm.chance = lambda: sleep(0.02)
    served(vllm, here, tokens_under_way=1).load().logprobs(PROMPTS, ANSWERS)
    assert vllm.busiest == 1


def test_answers_are_cut_and_texts_beyond_the_window_have_no_likelihood(at, here):
    at.pages["/v1/models"]["data"][0]["max_model_len"] = 40
    model = served(at, here.model_copy(update={"max_response_tokens": 3})).load()
    ((short, long),) = model.logprobs(["Why?"], [["because of it all and more", "no"]])
    assert short.tokens == 3 and long.tokens <= 3
    assert model.logprobs(["why " * 60], [["no"]]) == [[None]]


@pytest.mark.parametrize(
    ("value", "reason"),
    [
        (math.nan, "nan as the log-probability of a token"),
        (None, "no number as the log-probability of a token"),
        ("-1", "no number as the log-probability of a token"),
    ],
)
def test_a_value_that_is_no_number_costs_its_response_and_is_told(at, here, capsys, value, reason):
    model = served(at, here).load()
    at.change = lambda values: [*values[:-1], value]
    assert model.logprobs(["Why?"], [["no"]]) == [[None]]
    told = capsys.readouterr().err
    assert f"warning: completion_server sft: 1 response has no likelihood: {at.path} answered with {reason}" in told
    at.change = lambda values: values
    assert model.logprobs(["Why?"], [["no"]])[0][0].logprob < 0


def test_missing_positions_cost_the_response(at, here, capsys):
    model = served(at, here).load()
    at.change = lambda values: values[:-1]
    assert model.logprobs(["Why?"], [["no"]]) == [[None]]
    assert "log-probabilities of" in capsys.readouterr().err


def test_a_likelihood_of_zero_is_minus_infinity(vllm, here):
    model = served(vllm, here).load()
    vllm.change = lambda values: [*values[:-1], -9999.0]
    assert model.logprobs(["Why?"], [["no"]])[0][0].logprob == -math.inf


def test_a_failure_in_between_is_repeated(at, here):
    model = served(at, here).load()
    at.script = [status(500), status(503), sleep(0.2)]
    assert model.logprobs(["Why?"], [["no"]])[0][0] is not None


def test_values_of_other_tokens_stop_the_run(at, here):
    model = served(at, here).load()
    complete = at.complete

    def shifted(asked):
        text = json.dumps(complete(asked))
        ids = asked.get("prompt", asked.get("input_ids"))
        return json.loads(text.replace(f'"{ids[-1]}":', '"7":').replace(f", {ids[-1]}, null", ", 7, null"))

    at.complete = shifted
    with pytest.raises(ModelError, match=r"answered for token 7 where \d+ was sent; it reads other texts"):
        model.logprobs(["Why?"], [["no"]])


def test_logits_in_place_of_log_probabilities_stop_the_run(at, here):
    model = served(at, here).load()
    at.change = lambda values: [value + 30 for value in values]
    with pytest.raises(ModelError, match="is no log-probability; start it without"):
        model.logprobs(["Why?"], [["no"]])


def test_another_model_in_the_middle_stops_the_run(vllm, here):
    model = served(vllm, here).load()
    complete = vllm.complete
    vllm.complete = lambda asked: {**complete(asked), "model": "other"}
    with pytest.raises(
        ModelError, match=r"completion_server sft at http.*: other answered; was the server started anew\?"
    ):
        model.logprobs(["Why?"], [["no"]])


def test_weights_exchanged_in_the_middle_stop_the_run(policy_folder, here):
    with completion_serving("sglang", policy_folder) as at:
        at.api = "sglang"
        model = served(at, here).load()
        at.version = "v2"
        with pytest.raises(ModelError, match="its weights changed from version default to v2 in the middle"):
            model.logprobs(["Why?"], [["no"]])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            lambda at: at.pages.clear(),
            r"it lists no models under /v1/models, so that it is no server of `api: ",
        ),
        (
            lambda at: at.pages["/v1/models"].update(data=[{"id": "a"}, {"id": "b"}]),
            "it serves a, b, not sft; name that",
        ),
        (
            lambda at: at.pages["/v1/models"]["data"][0].update(owned_by="llamacpp"),
            "it is llama.cpp's server, which gives no",
        ),
        (lambda at: setattr(at, "path", "/x"), "answered 404: Not Found; .* start (vLLM|SGLang) with"),
        (
            lambda at: setattr(at, "complete", lambda asked: {"model": "sft"}),
            "answered with no (prompt|input_token)_logprobs",
        ),
        (
            lambda at: setattr(at, "chance", lambda: status(401, "who?")),
            "answered 401: who\\?; name its key by `api_key`",
        ),
        (lambda at: setattr(at, "chance", lambda: body(b"<html>")), "'<html>' where JSON was due"),
    ],
)
def test_a_server_that_is_no_such_server_is_refused_at_once(at, here, change, message):
    change(at)
    with pytest.raises(ModelError, match=message) as refused:
        served(at, here).load()
    assert "\n" not in str(refused.value) and at.url in str(refused.value)


def test_the_other_kind_of_server_is_named(at, here):
    other = "sglang" if at.api == "vllm" else "vllm"
    with pytest.raises(ModelError, match=f"it is no server of `api: {other}`; say `api: {at.api}`"):
        CompletionServer(path=at.url, api=other, model="sft", same_as=here).check_server()


def test_a_server_that_is_not_there_is_refused(here):
    with serving() as gone:
        url = gone.url.removesuffix("/v1")
    with pytest.raises(ModelError, match=r"no answer: .*; check the address and that the server runs"):
        CompletionServer(path=url, api="vllm", model="sft", same_as=here, retries=0).check_server()


def test_the_identity_is_the_weights_and_the_texts_and_neither_address_nor_limits(here, policy_folder):
    model = CompletionServer(path="http://a", api="vllm", model="sft", same_as=here)
    elsewhere = CompletionServer(
        path="http://b", api="vllm", model="x", same_as=here, concurrency=3, accept_difference=True
    )
    assert model.identity() == elsewhere.identity() and "http" not in json.dumps(model.identity())
    named = CompletionServer(path="http://a", api="vllm", model=str(policy_folder))
    assert named.identity() == model.identity()
    itself = CompletionServer(path="http://a", api="vllm", model="m", same_as="itself", tokenizer=str(policy_folder))
    assert itself.identity()["model"] == "m" and itself.identity()["tokenizer"].startswith("sha256:")
    assert itself.identity() != itself.model_copy(update={"form": "bare"}).identity()
    assert itself.dated(datetime.date(2026, 1, 2)) is itself and itself.count_tokens(["a b"]) > 0


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"api": "llamacpp"}, "vllm"),
        ({"form": "bare"}, "form: the tokens are those of `same_as`"),
        ({"tokenizer": "x"}, "tokenizer: the tokens are those of `same_as`"),
        ({"tokenizer": "x", "same_as": None}, "tokenizer: is for `same_as: itself`"),
        ({"path": "ftp://x"}, "the server's address is http"),
        ({"accept_difference": -1}, "accept_difference"),
    ],
)
def test_settings_that_cannot_be_are_refused(here, settings, message):
    with pytest.raises(ValueError, match=message):
        CompletionServer(**{"path": "http://a", "api": "vllm", "model": "m", "same_as": here, **settings})


# ── in a run ─────────────────────────────────────────────────────────────────────────────────────────────


@pytest.fixture
def seam_recipe(tmp_path):
    rows = [{**row, "worse_contrast": [{"response": other["response"]} for other in ROWS]} for row in questions(40)]
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "rows.parquet")

    def recipe(policy):
        source = Source(parquet=str(tmp_path / "rows.parquet"), shard_rows=10)
        return Recipe(rows=source, models=Models(policy=policy, reward=FakeModel()), steps=seam("contrast", k=6))

    return recipe


@pytest.mark.slow
def test_a_run_compares_first_gives_the_local_scores_and_resumes_without_comparing(vllm, here, seam_recipe, tmp_path):
    run_local(seam_recipe(here), tmp_path / "local")
    recipe = seam_recipe(served(vllm, here))
    planned = plan(recipe, tmp_path / "served")
    assert [(line.model, line.usd) for line in planned.lines if line.step == "logprobs_contrast"] == [
        ("completion_server sft", None)
    ]
    first = run_local(recipe, tmp_path / "served", limit=20)
    compared = json.loads((tmp_path / "served/columns/logprobs_contrast/_shared/compared.json").read_text())["compared"]
    assert compared["decision"] == "same" and compared["texts"] == 32 and first.computed
    asked = len(vllm.requests)
    report = run_local(recipe, tmp_path / "served")
    assert compared["line"] in report.lines
    # The probe, one text that was compared, the shards that were missing with one text after each.
    rows = query(tmp_path / "served", "SELECT * FROM rows ORDER BY row_id")
    missing = sum(value is not None for row in rows["logprobs_contrast"].to_pylist()[20:] for value in row)
    assert len(vllm.requests) - asked == 1 + 1 + missing + 2
    expected = query(tmp_path / "local", "SELECT * FROM rows ORDER BY row_id")
    for name in ("logprobs_contrast", "seam_contrast"):
        found, local = (
            np.array(pc.list_flatten(table[name]) if "logprobs" in name else table[name]) for table in (rows, expected)
        )
        np.testing.assert_allclose(found.astype(float), local.astype(float), atol=1e-3)
    # The same weights, wherever they are served.
    assert run_local(seam_recipe(served(vllm, here, concurrency=2)), tmp_path / "served").computed == 0


@pytest.mark.slow
def test_a_server_of_other_weights_is_refused_before_it_scores_anything(vllm, here, seam_recipe, tmp_path):
    vllm.change = lambda values: [1.5 * value for value in values]
    with pytest.raises(
        ModelError, match=r"gives other scores than causal_lm .* accept the difference by `accept_difference"
    ):
        run_local(seam_recipe(served(vllm, here)), tmp_path / "store")
    assert not list((tmp_path / "store/columns/logprobs_contrast").glob("0*.parquet"))
    report = run_local(seam_recipe(served(vllm, here, accept_difference=True)), tmp_path / "store")
    assert any("which the recipe accepts" in line for line in report.lines)


def test_a_server_that_is_not_there_is_told_before_any_step_runs(here, seam_recipe, tmp_path):
    with serving() as gone:
        gone.api, gone.url = "vllm", gone.url.removesuffix("/v1")
        recipe = seam_recipe(served(gone, here, retries=0))
    for refuse in (lambda: plan(recipe, tmp_path / "s"), lambda: run_local(recipe, tmp_path / "s")):
        with pytest.raises(ModelError, match="completion_server sft at http"):
            refuse()
    assert not list((tmp_path / "s/columns/reward").glob("0*.parquet"))


@pytest.mark.slow
def test_a_run_is_not_resumed_with_a_server_started_anew_with_other_weights(vllm, here, seam_recipe, tmp_path):
    recipe = seam_recipe(served(vllm, here))
    run_local(recipe, tmp_path / "store", limit=10)
    vllm.change = lambda values: [1.01 * value for value in values]
    with pytest.raises(ModelError, match=r"completion_server sft gives other scores than before: .* started anew"):
        run_local(recipe, tmp_path / "store")
    vllm.change = lambda values: values
    assert run_local(recipe, tmp_path / "store").rows == 40


@pytest.mark.slow
def test_stale_values_of_a_prefix_cache_are_found_out(vllm, here, seam_recipe, tmp_path):
    complete = vllm.complete
    vllm.change = lambda values: [value - vllm.stale for value in values]

    def cached(asked):
        vllm.stale = 0 if "cache_salt" in asked else 3
        return complete(asked)

    vllm.complete = cached
    with pytest.raises(
        ModelError, match=r"likely cause: its scores change by up to 3 when .* without its prefix cache"
    ):
        run_local(seam_recipe(served(vllm, here, concurrency=1)), tmp_path / "store")


def test_prompts_are_exported_in_the_form_that_a_served_policy_read(vllm, here, seam_recipe):
    bare = here.model_copy(update={"form": "bare"})
    assert form_model(seam_recipe(served(vllm, bare))) == bare
