"""Rewards and embeddings of a real vLLM, held against those of the same weights here."""

from __future__ import annotations

import json

import killed
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import vllm_server
import yaml
from conftest import CHAT_TEMPLATE, questions

from seamcurate import EmbeddingServer, RewardServer, SentenceEncoder, Store, query, run_local
from seamcurate.errors import ModelError
from seamcurate.models import reward_server
from seamcurate.run import recipe

pytestmark = [pytest.mark.vllm, vllm_server.installed]

LABELS = ("helpful", "correct", "short")
PROMPTS = [row["prompt"] for row in questions(12)]
ANSWERS = [[row["response"], "no", "", f"{row['reference']} " * 12] for row in questions(12)]


@pytest.fixture(scope="module")
def servers(tokenizer, tmp_path_factory):
    """A vLLM with a reward model, one with a classifier of three outputs, whose texts start with BOS, and one with an encoder."""
    from tokenizers.processors import TemplateProcessing

    folder = tmp_path_factory.mktemp("vllm")
    tokenizer.save_pretrained(folder / "tokenizer")
    own = type(tokenizer).from_pretrained(folder / "tokenizer")
    own.bos_token, own.chat_template = "<|im_start|>", CHAT_TEMPLATE
    own.backend_tokenizer.post_processor = TemplateProcessing(
        single="<|im_start|> $A", special_tokens=[("<|im_start|>", own.bos_token_id)]
    )
    running = [
        vllm_server.Server(
            vllm_server.write_classifier(folder / name, own, labels),
            "rm",
            folder / f"{name}.log",
            ("--runner", "pooling"),
        )
        for name, labels in (("one", ("reward",)), ("three", LABELS))
    ]
    encoder = vllm_server.write_encoder(folder)
    running.append(vllm_server.Server(encoder, "rm", folder / "encoder.log", ("--runner", "pooling")))
    for server in running:
        server.start()
    try:
        for server in running:
            server.wait()
        yield running
    finally:
        groups = [server.process.pid for server in running]
        for server in running:
            server.stop()
        assert not any(map(vllm_server.running, groups))


def served(server, **settings):
    texts = {name: settings.pop(name) for name in ("form", "max_tokens", "output", "outputs") if name in settings}
    local = {"sequence_classifier": str(server.model), "dtype": "float32", **texts}
    return RewardServer.model_validate(
        {"reward_server": server.url, "api": "vllm", "model": "rm", "same_as": local, **settings}
    )


@pytest.mark.parametrize("form", ["chat", "plain"])
def test_rewards_are_those_of_the_local_classifier(servers, form):
    reward = served(servers[0], form=form)
    rewards = reward.load().rewards(PROMPTS, ANSWERS)
    uncached = reward.load_uncached().rewards(PROMPTS, ANSWERS)
    local = reward.local().load().rewards(PROMPTS, ANSWERS)
    for row, fresh, expected in zip(rewards, uncached, local, strict=True):
        assert row == pytest.approx(expected, abs=1e-4) and fresh == pytest.approx(expected, abs=1e-4)


def test_each_output_is_that_of_the_local_classifier(servers):
    reward = served(servers[1], output="correct", outputs=["short", "helpful"])
    assert reward.output_names() == ("short", "helpful")
    ratings = reward.load().ratings(PROMPTS, ANSWERS, {})
    local = reward.local().load().ratings(PROMPTS, ANSWERS, {})
    for row, expected_row in zip(ratings, local, strict=True):
        for rating, expected in zip(row, expected_row, strict=True):
            assert (rating.reward, *rating.outputs) == pytest.approx((expected.reward, *expected.outputs), abs=1e-4)


def test_another_number_of_outputs_is_refused_before_anything_is_scored(servers):
    one, three, _ = servers
    reward = served(one).model_copy(update={"path": three.url})
    with pytest.raises(ModelError, match="it gives 3 numbers a text, and the model has 1 outputs"):
        reward.load()


@pytest.mark.parametrize("normalise", [True, False])
def test_embeddings_are_those_of_the_local_encoder(servers, normalise):
    server = servers[2]
    same = SentenceEncoder(path=str(server.model), dtype="float32", normalise=normalise)
    encoder = EmbeddingServer(path=server.url, model="rm", same_as=same)
    expected = same.load().embed(PROMPTS)
    assert np.abs(encoder.load().embed(PROMPTS) - expected).max() < 1e-4 * max(1, np.abs(expected).max())


def test_an_encoder_is_not_taken_for_a_reward_model(servers):
    reward = served(servers[0], max_tokens=100).model_copy(update={"path": servers[2].url})
    with pytest.raises(
        ModelError, match=r"/classify answered 404: .*; start vLLM with `--runner pooling` on a classifier"
    ):
        reward.load()


@pytest.fixture
def run(servers, tmp_path):
    """A function that runs the step `reward` on a few rows by the first server."""
    rows = tmp_path / "rows.parquet"
    pq.write_table(pa.Table.from_pylist(questions(16)), rows)

    def run(**settings):
        config = {
            "rows": {"parquet": str(rows), "prompt": "prompt", "response": "response"},
            "models": {"reward": json.loads(served(servers[0], **settings).model_dump_json())},
            "steps": [{"reward": {}}],
        }
        (tmp_path / "recipe.yaml").write_text(yaml.safe_dump(config))
        return run_local(recipe.load(tmp_path / "recipe.yaml"), tmp_path / "store")

    return run


def altered(monkeypatch, **changes):
    """Let vLLM be asked otherwise."""
    monkeypatch.setitem(reward_server._APIS, "vllm", reward_server._APIS["vllm"]._replace(**changes))


def test_an_activation_is_found_named_and_refused(run, monkeypatch):
    altered(monkeypatch, body=lambda model, inputs, cached: {"model": model, "input": inputs})
    with pytest.raises(
        ModelError, match="likely cause: the server applies a sigmoid to the logits; ask it for raw ones"
    ):
        run()


def test_a_second_bos_is_found_named_and_refused(run, monkeypatch):
    # Text that starts with BOS, to which vLLM adds another.
    body = {"use_activation": False, "add_special_tokens": True}
    altered(monkeypatch, takes_text=True, body=lambda model, inputs, cached: {"model": model, "input": inputs, **body})
    with pytest.raises(ModelError, match="likely cause: the server reads a second BOS"):
        run(form="plain")


def test_a_run_that_is_killed_goes_on_and_its_rewards_are_those_of_the_local_classifier(servers, tokenizer, tmp_path):
    rows, corpus, store = (tmp_path / name for name in ("rows.parquet", "corpus.parquet", "store"))
    pq.write_table(pa.Table.from_pylist(questions(48)), rows)
    pq.write_table(pa.Table.from_pylist(questions(200, start=1000)), corpus)
    policy = vllm_server.write_policy(tmp_path / "policy", tokenizer)
    names = {"prompt": "prompt", "response": "response"}
    config = {
        "rows": {"parquet": str(rows), "shard_rows": 4, **names},
        "corpus": {"parquet": str(corpus), **names},
        "models": {
            "policy": {"causal_lm": str(policy), "dtype": "float32"},
            "reward": {**json.loads(served(servers[0]).model_dump_json()), "concurrency": 1},
            "encoder": {"fake": "encoder"},
        },
        "steps": [{"retrieve": {"k": 5, "band": [0.5, 0.9]}}, {"seam": {"variant": "contrast", "k": 5}}],
    }
    (tmp_path / "recipe.yaml").write_text(yaml.safe_dump(config))
    shards = store / "columns" / "rewards_contrast"
    written = killed.before_a_shard(shards, 2, ["run", tmp_path / "recipe.yaml", store])
    finished = {file.name: file.stat().st_mtime_ns for file in written}

    report = run_local(recipe.load(tmp_path / "recipe.yaml"), store)
    assert {name: (shards / name).stat().st_mtime_ns for name in finished} == finished
    assert any("gives the same scores as sequence_classifier" in line for line in report.lines)
    config["models"]["reward"] = {"sequence_classifier": str(servers[0].model), "dtype": "float32"}
    (tmp_path / "local.yaml").write_text(yaml.safe_dump(config))
    run_local(recipe.load(tmp_path / "local.yaml"), tmp_path / "local")
    sql = "SELECT reward, rewards_contrast, seam_contrast, reward_reason FROM rows ORDER BY row_id"
    by_server = query(Store(store), sql).to_pylist()
    here = query(Store(tmp_path / "local"), sql.replace("reward_reason", "NULL AS reward_reason")).to_pylist()
    assert len(by_server) == 48 and any(row["seam_contrast"] for row in here)
    for row, expected in zip(by_server, here, strict=True):
        assert row.pop("reward_reason") is expected.pop("reward_reason") is None
        assert {name: pytest.approx(value, abs=1e-3) for name, value in expected.items()} == row
