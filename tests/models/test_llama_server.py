"""The same against a real llama.cpp server with a tiny model."""

from __future__ import annotations

import sqlite3
import subprocess
import sys
from contextlib import closing
from pathlib import Path

import killed
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from seamcurate import (
    AskQueryType,
    CausalLM,
    CompletionServer,
    Generate,
    Models,
    OpenAIServer,
    Recipe,
    Source,
    Store,
    plan,
    query,
    run_local,
)
from seamcurate.errors import ModelError
from seamcurate.models import Request

pytest.importorskip("xllamacpp", reason="no llama.cpp server is installed")


@pytest.fixture(scope="module")
def url(tmp_path_factory):
    command = [sys.executable, str(Path(__file__).parents[1] / "llama_server.py"), str(tmp_path_factory.mktemp("gguf"))]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True) as server:
        assert server.stdout is not None
        lines = (line.strip() for line in server.stdout)
        yield next(line for line in lines if line.startswith("http://"))
        server.kill()


def test_structured_answers_and_query_types_come_from_a_real_server(url, tmp_path):
    rows = [{"prompt": f"How do I sort list {i}?", "response": f"Call sorted() on list {i}."} for i in range(6)]
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "rows.parquet")
    server = OpenAIServer(path="tiny", base_url=url, max_tokens=400, temperature=0.8, seed=1, concurrency=2, retries=1)
    recipe = Recipe(
        rows=Source(parquet=str(tmp_path / "rows.parquet")),
        models=Models(generator=server, judge=server.model_copy(update={"max_tokens": 64})),
        steps=(Generate(k=5), AskQueryType()),
    )
    report = run_local(recipe, tmp_path / "store")
    found = query(Store(tmp_path / "store"), "SELECT * FROM rows").to_pylist()
    answers = [one["response"] for row in found for one in row["worse_gpt"] or []]
    assert len(answers) >= 10 and all(answer.strip() for answer in answers)
    for row in found:
        short = row["worse_gpt"] is None or len(row["worse_gpt"]) < 5
        assert short == (row["reason_gpt"] is not None)
        assert (row["query_type_asked"] is None) == (row["query_type_asked_reason"] is not None)
    assert any(line.startswith("worse_gpt: ") and "planned were 6 calls" in line for line in report.lines)


def test_a_server_that_is_told_to_stop_early_says_so(url):
    def conversation():
        return (yield Request([{"role": "user", "content": "sort"}]))

    (reply,) = OpenAIServer(path="tiny", base_url=url, max_tokens=3).load().converse([conversation])
    assert reply.finish == "length" and reply.model == "tiny" and reply.failure is None


def test_answers_are_compared_by_the_command(url, tmp_path):
    for name in ("ppo", "sft"):
        rows = [{"prompt": f"How do I sort list {i}?", "response": f"As {name} says."} for i in range(2)]
        pq.write_table(pa.Table.from_pylist(rows), tmp_path / f"{name}.parquet")
    (tmp_path / "judge.yaml").write_text(f"{{openai_server: tiny, base_url: '{url}', max_tokens: 300}}")
    files = {"--baseline": "sft.parquet", "--judge": "judge.yaml", "--out": "verdicts.parquet"}
    options = [part for name, file in files.items() for part in (name, str(tmp_path / file))]
    command = [sys.executable, "-m", "seamcurate.cli", "compare", str(tmp_path / "ppo.parquet"), *options]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr
    # It follows the schema, so that even a model of a few thousand weights gives verdicts, or was cut.
    rows = pq.read_table(tmp_path / "verdicts.parquet").to_pylist()
    assert [row["position"] for row in rows] == ["first", "second"] * 2
    assert all((row["verdict"] in ("win", "tie", "lose")) == (row["reason"] is None) for row in rows)
    assert all(row["reason"] is None or row["reason"].startswith("length: ") for row in rows)
    assert any(row["verdict"] for row in rows)


def test_a_judge_is_the_reward_model_of_a_seam_run_that_is_killed_and_resumed(url, tmp_path):
    rows = [
        {
            "prompt": f"How do I sort list {i}?",
            "response": f"Call sorted() on list {i}.",
            "worse_contrast": [{"response": f"Lists sort {i}."}],
        }
        for i in range(3)
    ]
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "rows.parquet")
    (tmp_path / "recipe.yaml").write_text(
        "rows: {parquet: rows.parquet, response: response, shard_rows: 2}\n"
        "models:\n"
        f"  reward: {{judge: {{openai_server: tiny, base_url: '{url}', max_tokens: 200, temperature: 0.9, seed: 1, concurrency: 1}},\n"
        "           scale: [1, 5], draws: 2}\n"
        "  policy: {fake: p}\n"
        "steps: [seam: {k: 1}]\n"
    )
    recipe, store = Recipe.load(tmp_path / "recipe.yaml"), tmp_path / "store"
    planned = sum(line.calls for line in plan(recipe, store).lines if line.model == "openai_server tiny")
    # Two draws of 6 answers, and of each the same two in the other order and in other words.
    assert planned == 6 * 2 * 3

    def kept() -> int:
        with closing(sqlite3.connect(f"file:{store}/calls/calls.sqlite?mode=ro", uri=True)) as calls:
            return calls.execute("SELECT count(*) FROM replies").fetchone()[0]

    killed.after_replies(5, ["run", tmp_path / "recipe.yaml", store])
    before = kept()
    report = run_local(recipe, store)
    bought = [int(line.split(": ")[1].split(" call")[0]) for line in report.lines if "planned were" in line]
    assert before == 5 and before + sum(bought) == kept() == planned
    ratings = query(Store(store), "SELECT * FROM rows").to_pylist()
    for row in ratings:
        rewards = [row["reward"], *row["rewards_contrast"]]
        for reward, reason in zip(rewards, [row["reward_reason"], *row["rewards_reason_contrast"]], strict=True):
            assert (reward is None) == (reason is not None) and (reward is None or 1 <= reward <= 5)
    assert any(row["reward"] is not None for row in ratings)
    assert Store(store).noise("reward")["reward"] >= 0


@pytest.mark.parametrize("api", ["vllm", "sglang"])
def test_it_is_told_to_give_no_log_probabilities_of_given_answers(url, policy_folder, api):
    here = CausalLM(path=str(policy_folder))
    policy = CompletionServer(path=url.removesuffix("/v1"), api=api, model="tiny", same_as=here)
    with pytest.raises(
        ModelError, match=r"it is llama\.cpp's server, which gives no log-probabilities of given answers"
    ):
        policy.check_server()
