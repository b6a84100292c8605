"""The policy's own samples: counted, kept when they are drawn, and asked for once."""

from __future__ import annotations

import json
import re
import signal
import sqlite3
import subprocess
import sys
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from pydantic import Field, ValidationError

from seamcurate import (
    Augment,
    CausalLM,
    CompletionServer,
    FakeModel,
    Generate,
    LengthCalibrated,
    Models,
    Recipe,
    RewardSpread,
    Rollouts,
    Source,
    Split,
    Store,
    check,
    difficulty,
    plan,
    query,
    run_local,
    seam,
)
from seamcurate.errors import ModelError, RecipeError
from seamcurate.explore import row as page
from seamcurate.explore.session import Session
from seamcurate.models import Sample, Sampling, calls
from seamcurate.publish.export import export
from seamcurate.run import local
from seamcurate.run.recipe import loads

PROMPTS = ["sort the list", "open a file", "sort the list", "close it"]
ROWS = pa.table({"prompt": PROMPTS})


class Scripted(FakeModel):
    """Give the samples that a test names by prompt, and tell a file which draws are asked for."""

    answers: dict[str, list[tuple]] = Field(default_factory=dict)
    log: str = ""
    dies_after: int = 10**9

    def load_sampler(self):
        return self

    def samples(self, requests, sampling):
        yielded = 0
        for position, (prompt, draws) in enumerate(requests):
            for draw in draws:
                if yielded == self.dies_after:
                    raise KeyboardInterrupt
                if self.log:
                    with Path(self.log).open("a") as log:
                        log.write(f"{prompt} {draw}\n")
                answer = self.answers[prompt][draw]
                yield position, draw, Sample(*answer) if len(answer) > 1 else answer[0]
                yielded += 1


def sampled(rows=ROWS, **settings):
    return Rollouts(**settings).load(None)(rows)


def test_a_row_gets_n_samples_of_the_policy_with_their_log_probabilities():
    fake = FakeModel(path="p")
    table = sampled(n=6, policy=fake, temperature=0.7)
    assert table.column_names == ["worse_policy", "logprobs_policy", "sampled_logprobs_policy", "reason_policy"]
    for i, row in enumerate(table.to_pylist()):
        draws = [sample for _, _, sample in fake.samples([(PROMPTS[i], range(6))], Sampling(6, temperature=0.7))]
        assert sum(sample["count"] for sample in row["worse_policy"]) == 6
        # In the order of their first draw.
        texts = list(dict.fromkeys(sample.text for sample in draws))
        assert [sample["response"] for sample in row["worse_policy"]] == texts
        by_text = {sample.text: sample for sample in draws}
        assert row["logprobs_policy"] == [by_text[text].logprob_1 for text in texts]
        assert row["sampled_logprobs_policy"] == [by_text[text].logprob for text in texts]
        assert row["reason_policy"] is None


def test_equal_samples_are_counted_and_those_that_end_otherwise_told_apart():
    draws = [
        ("yes", 2, "stop", -1.0, -2.0),
        ("", 1, "stop", None, None),
        ("yes", 2, "stop", -9.0, -9.0),
        ("yes", 2, "length", -3.0, -3.0),
        ("yes", 3, "stop", float("-inf"), -4.0),
    ]
    (row,) = sampled(pa.table({"prompt": ["q"]}), n=5, policy=Scripted(answers={"q": draws})).to_pylist()
    assert row["worse_policy"] == [
        {"response": "yes", "count": 2, "tokens": 2, "finish": "stop"},
        {"response": "", "count": 1, "tokens": 1, "finish": "stop"},
        {"response": "yes", "count": 1, "tokens": 2, "finish": "length"},
        {"response": "yes", "count": 1, "tokens": 3, "finish": "stop"},
    ]
    # Those of the first draw; NULL where the policy does not say, or it is no number.
    assert row["logprobs_policy"] == [-2.0, None, -3.0, -4.0]
    assert row["sampled_logprobs_policy"] == [-1.0, None, -3.0, None]


def test_a_row_says_why_it_has_fewer_samples_or_none():
    answers = {
        "a": [("x", 1, "stop", -1.0, -1.0), ("the server is gone",)],
        "b": [("the prompt has no room",), ("the prompt has no room",)],
    }
    step = Rollouts(n=2, policy=Scripted(answers=answers))
    table = step.load(None)(pa.table({"prompt": ["a", "b"]}))
    assert table["reason_policy"].to_pylist() == ["1 of 2: the server is gone", "the prompt has no room"]
    assert table["worse_policy"].to_pylist()[1] is None and table["logprobs_policy"].to_pylist()[1] is None
    facts = step.facts([table], None)
    assert (facts["samples"], facts["missing"], facts["short"]) == (1, 1, 2)
    assert facts["warnings"] == [
        "worse_policy: 2 rows have fewer than 2 samples, 1 of them none; 1 for this reason: 1 of 2: the server is gone"
    ]


def test_samples_that_were_cut_often_are_warned_of():
    cut = [("a b", 2, "length", -1.0, -1.0), ("c", 2, "stop", -1.0, -1.0)]
    step = Rollouts(n=2, max_tokens=2, policy=Scripted(answers={"q": cut}))
    facts = step.facts([step.load(None)(pa.table({"prompt": ["q"]}))], None)
    assert facts["cut"] == 1 and facts["summary"].endswith("50.0% cut at 2 tokens")
    assert facts["warnings"] == [
        "worse_policy: 50% of the samples were cut at 2 tokens, and are scored as they are; raise max_tokens"
    ]


def asked(log):
    return log.read_text().split("\n")[:-1] if log.exists() else []


def test_more_samples_begin_with_those_that_are_kept_and_equal_prompts_are_asked_once(tmp_path):
    log = tmp_path / "log"
    answers = {p: [(f"{p} {i}", 2, "stop", -1.0, -1.0) for i in range(4)] for p in PROMPTS}
    policy = Scripted(answers=answers, log=str(log))
    with calls.kept(tmp_path / "calls"):
        first = sampled(n=2, policy=policy)
        assert len(asked(log)) == 6
        assert sampled(n=2, policy=policy).equals(first)
        whole = sampled(n=4, policy=policy)
        sampled(n=2, policy=policy, seed=1)
    assert asked(log) == [
        *(f"{p} {i}" for p in dict.fromkeys(PROMPTS) for i in (0, 1)),
        *(f"{p} {i}" for p in dict.fromkeys(PROMPTS) for i in (2, 3)),
        # Of another seed nothing is kept.
        *(f"{p} {i}" for p in dict.fromkeys(PROMPTS) for i in (0, 1)),
    ]
    assert [row[:2] for row in whole["worse_policy"].to_pylist()] == first["worse_policy"].to_pylist()


def recipe(folder, steps, count=7, response=True):
    rows = [{"prompt": f"question {i}", **({"response": f"answer {i}"} if response else {})} for i in range(count)]
    (folder / "rows.jsonl").write_text("\n".join(map(json.dumps, rows)))
    source = Source(jsonl=str(folder / "rows.jsonl"), shard_rows=3)
    return Recipe(rows=source, models=Models(policy=FakeModel(path="p"), reward=FakeModel(path="r")), steps=steps)


def contents(folder):
    files = [file for file in sorted(folder.rglob("*")) if file.is_file() and file.name != ".lock"]
    return {str(file.relative_to(folder)): file.read_bytes() for file in files if "calls" not in file.parts}


def test_a_run_that_stopped_asks_only_for_what_was_under_way(tmp_path):
    log = tmp_path / "log"
    answers = {f"question {i}": [(f"answer {d}", 2, "stop", -1.0, -1.0) for d in range(4)] for i in range(7)}
    ready = recipe(tmp_path, [Rollouts(n=4)])

    def run(store, dies_after):
        policy = Scripted(answers=answers, log=str(log), dies_after=dies_after)
        return run_local(ready.model_copy(update={"models": Models(policy=policy)}), tmp_path / store)

    # What decides a draw is the fake's path alone, so that these are one policy.
    run("whole", 10**9)
    log.unlink()
    for dies_after in (5, 3, 9):
        with pytest.raises(KeyboardInterrupt):
            run("killed", dies_after)
        assert not check(Store(tmp_path / "killed")).findings
    run("killed", 10**9)
    assert len(asked(log)) == len(set(asked(log))) == 28
    assert contents(tmp_path / "killed") == contents(tmp_path / "whole")


SCRIPT = """
import os, signal, sys
from pathlib import Path
from seamcurate import FakeModel, Models, Recipe, Rollouts, Source, difficulty, run_local, seam

class Doomed(FakeModel):
    log: str
    dies_after: int

    def samples(self, requests, sampling):
        for drawn in super().samples(requests, sampling):
            with Path(self.log).open("a") as log:
                log.write(f"{requests[drawn[0]][0]} {drawn[1]}\\n")
            if len(Path(self.log).read_text().splitlines()) == self.dies_after:
                os.kill(os.getpid(), signal.SIGKILL)
            yield drawn

folder, log, dies_after = sys.argv[1:]
source = Source(jsonl=f"{folder}/rows.jsonl", shard_rows=3)
models = Models(policy=Doomed(path="p", log=log, dies_after=int(dies_after)), reward=FakeModel(path="r"))
steps = [Rollouts(n=4), *seam("policy"), *difficulty(0)]
run_local(Recipe(rows=source, models=models, steps=steps), f"{folder}/killed")
"""


@pytest.mark.slow
def test_a_run_killed_while_it_samples_gives_the_same_bytes_and_draws_at_most_one_again(tmp_path):
    whole = recipe(tmp_path, [Rollouts(n=4), *seam("policy"), *difficulty(0)])
    run_local(whole, tmp_path / "whole")
    log, deaths = tmp_path / "log", (13, 0)
    for dies_after in deaths:
        command = [sys.executable, "-c", SCRIPT, str(tmp_path), str(log), str(dies_after)]
        done = subprocess.run(command, capture_output=True, text=True, timeout=100)
        assert done.returncode == (-signal.SIGKILL if dies_after else 0), done.stderr
    # What was under way when it was killed is all that is drawn again.
    assert len(set(asked(log))) == 28 and len(asked(log)) <= 28 + 1
    assert contents(tmp_path / "killed") == contents(tmp_path / "whole")


def test_check_finds_a_sample_that_was_altered(tmp_path):
    run_local(recipe(tmp_path, [Rollouts(n=2)]), tmp_path / "store")
    with sqlite3.connect(tmp_path / "store" / "calls" / "samples" / "00001" / "calls.sqlite") as db:
        db.execute("UPDATE replies SET text = 'x' WHERE key = (SELECT min(key) FROM replies)")
    (finding,) = check(Store(tmp_path / "store")).findings
    assert "samples/00001" in str(finding) and "altered" in str(finding)


def test_the_candidates_view_shows_samples_as_it_shows_other_sets(tmp_path):
    run_local(recipe(tmp_path, [Rollouts(n=3, temperature=0.5), *seam("policy")]), tmp_path / "store")
    table = query(
        tmp_path / "store",
        "SELECT variant, sum(count)::INT AS n, bool_and(finish = 'stop' AND n_tokens > 0 AND reward IS NOT NULL) AS whole, "
        "bool_and(abs(sampled_logprob - logprob / 0.5) < 1e-9 AND weight = count AND misjudgement >= 0) AS parallel "
        "FROM candidates GROUP BY ALL",
    )
    assert table.to_pylist() == [{"variant": "policy", "n": 21, "whole": True, "parallel": True}]


def test_a_plan_tells_the_tokens_that_are_drawn(tmp_path):
    lines = plan(recipe(tmp_path, [Rollouts(n=3), *seam("policy")]), tmp_path / "store").lines
    assert [(line.step, line.calls) for line in lines] == [
        ("worse_policy", 21),
        ("reward", 7),
        ("rewards_policy", 21),
        ("seam_policy", 0),
    ]
    assert lines[0].written > 0


def test_bad_settings_are_refused_in_one_line(tmp_path):
    with pytest.raises(ValidationError, match="temperature 0 gives one answer 16 times; set n: 1"):
        Rollouts(temperature=0)
    assert Rollouts(temperature=0, n=1).n == 1
    for settings in ({"n": 0}, {"top_p": 0}, {"top_p": 1.1}, {"max_tokens": 0}, {"temperature": -1}):
        with pytest.raises(ValidationError):
            Rollouts(**settings)
    with pytest.raises(ModelError, match=re.escape("step worse_policy has no policy model; give the recipe")):
        Rollouts().load(None)
    text = "rows: {jsonl: r.jsonl}\nmodels: {policy: {fake: p}}\nsteps:\n  - rollouts: {n: 4, temperture: 1}"
    with pytest.raises(RecipeError, match="temperture: unknown key; there are: n, temperature"):
        loads(text)


def test_samples_are_no_worse_answers_to_learn_from_unless_a_split_asks_for_them(tmp_path):
    splits = {"pairs": Split(filter="SELECT row_id FROM rows", format="preferences")}
    alone = recipe(tmp_path, [Rollouts(n=3)]).model_copy(update={"splits": splits})
    with pytest.raises(RecipeError, match=re.escape("no step makes any (answers in worse_policy need not be worse)")):
        run_local(alone, tmp_path / "store")
    # Beside worse answers they are left out; a split that augments with them takes those that are not the golden one.
    both = alone.model_copy(
        update={
            "steps": (Rollouts(n=3), Generate(k=2, generator=FakeModel())),
            "splits": splits
            | {"own": Split(filter="SELECT row_id FROM rows", augment=Augment(variant="policy", samples=2))},
        }
    )
    run_local(both, tmp_path / "both")
    exports = export(both, Store(tmp_path / "both").open(), "trl", tmp_path / "out")
    tables = {one.folder: pa.concat_tables(map(pq.read_table, one.folder.glob("*.parquet"))) for one in exports}
    pairs, own = (table for folder, table in tables.items() for name in ("pairs", "own") if name in folder.parts)
    assert set(pairs["candidate_variant"].to_pylist()) == {"gpt"} and len(pairs) == 14
    assert set(own["variant"].to_pylist()) == {"policy"} and len(own) == 14


def test_a_row_s_page_shows_how_often_a_sample_was_drawn(tmp_path):
    run_local(recipe(tmp_path, [Rollouts(n=3), *seam("policy")]), tmp_path / "store")
    candidates = page.row(Session(Store(tmp_path / "store").open()), 1)["candidates"]
    assert sum(candidate["count"] for candidate in candidates) == 3
    assert all(candidate["n_tokens"] > 0 and candidate["finish"] == "stop" for candidate in candidates)
    assert all(candidate["weight"] == candidate["count"] for candidate in candidates)


def test_baselines_that_weigh_answers_once_refuse_counted_samples():
    for baseline in (RewardSpread, LengthCalibrated):
        with pytest.raises(ValidationError, match="the samples of policy are counted"):
            baseline(variant="policy")


def test_rows_without_a_golden_response_are_profiled_beside_those_with_one(tmp_path):
    rows = [{"prompt": "open a file", "answer": "open()"}, {"prompt": "close it", "answer": None}]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    source = Source(jsonl=str(tmp_path / "rows.jsonl"), response="answer", unanswered=True)
    steps = (Rollouts(n=4), *seam("policy"), *difficulty(threshold=0.0))
    run_local(
        Recipe(rows=source, models=Models(policy=FakeModel(), reward=FakeModel()), steps=steps), tmp_path / "store"
    )
    profile = (
        "SELECT seam_policy, seam_reason_policy AS reason, rollout_pass_rate AS rate, reward FROM rows ORDER BY row_id"
    )
    answered, unanswered = query(tmp_path / "store", profile).to_pylist()
    assert answered["seam_policy"] is not None and answered["reason"] is None
    assert unanswered["seam_policy"] is unanswered["reward"] is None
    assert unanswered["reason"] == "no golden response, or it has no reward"
    assert answered["rate"] is not None and unanswered["rate"] is not None


def test_chats_are_not_sampled_from_a_policy_without_a_chat_template(policy_folder, tmp_path):
    chat = {"prompt": [{"role": "user", "content": "open a file"}]}
    (tmp_path / "rows.jsonl").write_text(json.dumps(chat))
    rows = Source(jsonl=str(tmp_path / "rows.jsonl"))
    policy = CausalLM(path=str(policy_folder), dtype="float32")
    step = Rollouts(n=2, max_tokens=3)
    with pytest.raises(ModelError, match=r"prompts are chats, and .* has no chat template .* or say `form: plain`"):
        run_local(Recipe(rows=rows, models=Models(policy=policy), steps=[step]), tmp_path / "refused")
    plain = Models(policy=policy.model_copy(update={"form": "plain"}))
    run_local(Recipe(rows=rows, models=plain, steps=[step]), tmp_path / "store")
    (row,) = query(tmp_path / "store", "SELECT worse_policy, reason_policy FROM rows").to_pylist()
    assert row["worse_policy"] and row["reason_policy"] is None


@pytest.mark.parametrize("served", [False, True])
def test_samples_of_a_server_outlive_a_cut_of_power(tmp_path, served):
    """SQLite syncs each of them: 2 is FULL; those drawn here are drawn again."""
    here = CausalLM(path=str(tmp_path))
    policy = CompletionServer(path="http://127.0.0.1:9", api="vllm", model="m", same_as=here) if served else here
    with local._samples_kept(Rollouts(n=2, policy=policy), Store(tmp_path / "store"), 3):
        assert calls.current()._db.execute("PRAGMA synchronous").fetchone() == (2 if served else 1,)
