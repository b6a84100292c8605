"""A policy behind a real vLLM has the likelihoods of the same weights here; SEAM by it and by a served reward model."""

from __future__ import annotations

import json

import killed
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import vllm_server
from conftest import questions

from seamcurate import CausalLM, CompletionServer, plan, query, run_local
from seamcurate.errors import ModelError
from seamcurate.run import recipe as recipes

pytestmark = [pytest.mark.vllm, vllm_server.installed]

RECIPE = """
rows: {{parquet: rows.parquet, shard_rows: 8}}
models:
  reward: {reward}
  policy: {policy}
steps:
  - seam: {{variant: contrast, k: 6}}
"""


@pytest.fixture(scope="module")
def policy(tokenizer, tmp_path_factory):
    return vllm_server.write_policy(tmp_path_factory.mktemp("policy"), tokenizer)


@pytest.fixture(scope="module")
def servers(policy, tokenizer, tmp_path_factory):
    """A vLLM with the policy, and one with a reward model."""
    folder = tmp_path_factory.mktemp("vllm")
    reward = vllm_server.write_classifier(folder / "reward", tokenizer)
    # Chunks shorter than the texts: vLLM puts their log-probabilities together.
    options = ("--max-num-batched-tokens", "64", "--enable-chunked-prefill")
    running = [
        vllm_server.Server(policy, "tiny", folder / "policy.log", options),
        vllm_server.Server(reward, "rm", folder / "reward.log", ("--runner", "pooling")),
    ]
    for one in running:
        one.start()
    try:
        for one in running:
            one.wait()
        yield running
    finally:
        for one in running:
            one.stop()


@pytest.fixture(scope="module")
def server(servers):
    return servers[0]


@pytest.fixture
def folder(tmp_path):
    rows = questions(40)
    for i, row in enumerate(rows):
        row["worse_contrast"] = [{"response": rows[(i + j) % 40]["response"]} for j in range(1, 7)]
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "rows.parquet")
    return tmp_path


def write(folder, name, policy, reward='{"fake": "0"}'):
    (folder / name).write_text(RECIPE.format(policy=policy, reward=reward))
    return folder / name


def served(server, policy, **settings):
    values = {"completion_server": server.url, "api": "vllm", "model": "tiny", "same_as": {"causal_lm": str(policy)}}
    return json.dumps({**values, **settings})


def test_likelihoods_are_those_of_the_weights_here(server, policy):
    here = CausalLM(path=str(policy), dtype="float32")
    there = CompletionServer(path=server.url, api="vllm", model="tiny", same_as=here)
    prompts = [row["prompt"] for row in questions(12)]
    answers = [[row["response"], row["response"] * 8, "no", "", "<end> no"] for row in questions(12)]
    expected = here.load().logprobs(prompts, answers)
    for model in (there.load(), there.load_uncached()):
        for row, expected_row in zip(model.logprobs(prompts, answers), expected, strict=True):
            for found, likelihood in zip(row, expected_row, strict=True):
                assert found.tokens == likelihood.tokens
                assert found.logprob == pytest.approx(likelihood.logprob, rel=1e-5, abs=1e-3)


def test_seam_by_a_served_policy_and_reward_model_is_the_local_one_though_it_was_killed(servers, policy, folder):
    server, classifier = servers
    weights = {"sequence_classifier": str(classifier.model)}
    local = write(folder, "local.yaml", json.dumps({"causal_lm": str(policy)}), json.dumps(weights))
    run_local(recipes.load(local), folder / "local")
    reward = {"reward_server": classifier.url, "api": "vllm", "model": "rm", "same_as": weights}
    recipe = write(folder, "served.yaml", served(server, policy, concurrency=2), json.dumps(reward))
    planned = {
        line.step: (line.rows, line.calls, line.model) for line in plan(recipes.load(recipe), folder / "served").lines
    }
    assert planned["reward"] == (40, 40, "reward_server rm")
    assert planned["logprobs_contrast"] == (40, 240, "completion_server tiny")
    shards = folder / "served/columns/logprobs_contrast"
    written = killed.before_a_shard(shards, 2, ["run", recipe, folder / "served"])
    kept = {file.name: file.stat().st_mtime_ns for file in written}
    report = run_local(recipes.load(recipe), folder / "served")
    assert {name: (shards / name).stat().st_mtime_ns for name in kept} == kept
    for title in ("completion_server tiny", "reward_server rm"):
        assert any(f"{title} gives the same scores as" in line for line in report.lines)
    here, there = (
        query(folder / name, "SELECT seam_contrast FROM rows ORDER BY row_id") for name in ("local", "served")
    )
    values = [np.array(table["seam_contrast"].to_pylist(), float) for table in (here, there)]
    np.testing.assert_allclose(values[1], values[0], atol=1e-4)


def test_other_weights_behind_the_name_are_refused(server, tokenizer, folder, policy):
    import torch
    from transformers import AutoModelForCausalLM

    other = AutoModelForCausalLM.from_pretrained(policy)
    with torch.no_grad():
        other.model.layers[0].mlp.down_proj.weight.mul_(3)
    other.save_pretrained(folder / "other")
    tokenizer.save_pretrained(folder / "other")
    recipe = recipes.load(write(folder, "served.yaml", served(server, folder / "other")))
    with pytest.raises(ModelError, match=r"gives other scores than .* none of the known causes explains it"):
        run_local(recipe, folder / "store")


def test_another_name_and_another_api_are_refused_in_one_line(server, policy):
    here = CausalLM(path=str(policy), dtype="float32")
    with pytest.raises(ModelError, match="it serves tiny, not big; name that by `model`"):
        CompletionServer(path=server.url, api="vllm", model="big", same_as=here).check_server()
    with pytest.raises(ModelError, match="it is no server of `api: sglang`; say `api: vllm`"):
        CompletionServer(path=server.url, api="sglang", model="tiny", same_as=here).check_server()
