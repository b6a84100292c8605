"""The client of language-model endpoints, against a server on loopback that does what real ones do on bad days."""

from __future__ import annotations

import asyncio
import gzip
import json
import os
import random
import signal
import subprocess
import sys
import time
import traceback

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from conftest import interrupt
from endpoint import body, completion, hang_up, redirect, serving, sleep, status, stream
from pydantic import ValidationError

from seamcurate import Generate, OpenAIServer, Recipe, Source, Store, plan, query, run_local
from seamcurate.errors import BudgetError, ModelError
from seamcurate.models import Request, calls

pytestmark = pytest.mark.slow

KEY = "sk-canary-0123456789"


@pytest.fixture
def at(monkeypatch):
    monkeypatch.setenv("OPENAI_API_KEY", KEY)
    with serving() as endpoint:
        yield endpoint


def server(at, **options):
    return OpenAIServer(path="worse-1", base_url=at.url, **{"timeout": 5, "concurrency": 4, **options})


def ask(model, *texts, schema=None, draws=1):
    """Ask each text on its own; returns the replies."""

    def conversation(text):
        replies = []
        for draw in range(draws):
            replies.append((yield Request([{"role": "user", "content": text}], schema, draw)))
        return replies[-1]

    return model.load().converse([lambda text=text: conversation(text) for text in texts])


def recipe(at, tmp_path, rows=6, k=4, generator=None, **options):
    table = {"prompt": [f"question {i}" for i in range(rows)], "response": [f"right answer {i}" for i in range(rows)]}
    pq.write_table(pa.table(table), tmp_path / "rows.parquet")
    source = Source(parquet=str(tmp_path / "rows.parquet"), shard_rows=16)
    return Recipe(rows=source, steps=(Generate(k=k, generator=generator or server(at), **options),))


def sets(store):
    return query(Store(store), "SELECT row_id, worse_gpt, reason_gpt FROM rows ORDER BY row_id").to_pylist()


def test_a_row_is_one_call_and_its_answers_are_kept(at, tmp_path):
    report = run_local(recipe(at, tmp_path), tmp_path / "store")
    rows = sets(tmp_path / "store")
    assert [len(row["worse_gpt"]) for row in rows] == [4] * 6 and {row["reason_gpt"] for row in rows} == {None}
    assert len(at.requests) == 6 == sum(at.paid.values())
    first = at.requests[0]
    assert first["model"] == "worse-1" and first["max_tokens"] == 4096 and "temperature" not in first
    assert first["response_format"]["json_schema"]["schema"]["properties"]["answers"]["minItems"] == 4
    assert [turn["role"] for turn in first["messages"]] == ["system", "user"] and "right answer" in str(
        first["messages"]
    )
    assert at.headers[0]["authorization"] == f"Bearer {KEY}"
    assert report.lines[-1].startswith("worse_gpt: 6 calls, 600 tokens in, 300 out; planned were 6 calls, ")
    run_local(recipe(at, tmp_path), tmp_path / "store", replace=True)
    assert len(at.requests) == 6
    for file in (tmp_path / "store").rglob("*"):
        assert file.is_dir() or KEY.encode() not in file.read_bytes()


def test_the_same_question_is_bought_once_however_often_it_is_asked(at):
    replies = ask(server(at), *["one text"] * 9)
    assert len(at.requests) == 1 and len({reply.text for reply in replies}) == 1


@pytest.mark.parametrize(
    "fault",
    [
        status(429, retry_after="0.05"),
        status(429),
        status(500),
        status(503, retry_after_ms="20"),
        status(408),
        hang_up,
        sleep(1.2),
        body(b'{"id": "c", "choices": [{"mess'),
        body(b"<html>busy</html>", "text/html"),
        body(b""),
        body({**completion("x"), "choices": []}),
        body({"error": {"message": "overloaded", "code": 529}}),
    ],
    ids=[
        "429-after",
        "429",
        "500",
        "503-ms",
        "408",
        "hang-up",
        "late",
        "truncated",
        "html",
        "empty",
        "no-choice",
        "error-in-200",
    ],
)
def test_a_fault_is_waited_out_and_the_answer_is_paid_for_once(at, fault):
    at.script = [fault]
    (reply,) = ask(server(at, timeout=0.6), "a question")
    assert reply.failure is None and reply.text.startswith("a wrong answer") and reply.model == "worse-1"
    assert sum(at.paid.values()) == 1


def test_the_servers_own_waiting_time_is_kept(at):
    at.script = [status(429, retry_after="1.1")]
    start = time.monotonic()
    ask(server(at), "a question")
    assert time.monotonic() - start >= 1.1


@pytest.mark.parametrize(
    ("fault", "times", "reason"),
    [
        (body(b"<html>"), 5, "the endpoint answered with '<html>' where JSON was due"),
        (body({**completion("x"), "choices": []}), 5, "no completion: it has no choices[0].message"),
        (body({"error": {"message": f"no credits for {KEY}", "code": 402}}), 1, "with an error: no credits for …"),
        (body({"object": "error", "message": "no such thing"}), 1, "with an error: no such thing"),
        (sleep(1.5), 2, "no answer within 0.2 s, 2 times"),
        (status(500, "out of order"), 2, "500 out of order"),
        (status(400, f"too long for {KEY}"), 1, "400 too long for …"),
    ],
)
def test_what_keeps_failing_is_the_rows_reason_and_the_others_are_answered(at, tmp_path, fault, times, reason):
    at.script = [fault] * times
    generator = server(at, timeout=0.2, retries=1, concurrency=1)
    run_local(recipe(at, tmp_path, generator=generator), tmp_path / "store")
    rows = sets(tmp_path / "store")
    assert rows[0]["worse_gpt"] is None and reason in rows[0]["reason_gpt"] and KEY not in rows[0]["reason_gpt"]
    assert [len(row["worse_gpt"]) for row in rows[1:]] == [4] * 5


@pytest.mark.parametrize(
    ("answer", "reason"),
    [
        (body(completion(None, refusal="I cannot help with that")), "refused: I cannot help with that"),
        (body(completion("", "content_filter")), "refused by the content filter"),
        (status(400, "filtered", {"code": "content_filter"}), "refused by the content filter"),
    ],
)
def test_a_refusal_is_set_aside_and_never_asked_for_again(at, tmp_path, answer, reason):
    at.script = [answer]
    one = recipe(at, tmp_path, rows=1)
    run_local(one, tmp_path / "store")
    run_local(one, tmp_path / "store", replace=True)
    assert sets(tmp_path / "store")[0] == {"row_id": 0, "worse_gpt": None, "reason_gpt": reason}
    assert len(at.requests) == 1


def test_too_few_answers_are_topped_up_once_and_too_many_are_cut(at, tmp_path):
    few = json.dumps({"answers": ["wrong one", "Wrong  one!", "right answer 0", "", "another"]})
    at.script = [body(completion(few)), body(completion(few))]
    run_local(recipe(at, tmp_path, rows=1), tmp_path / "store")
    (row,) = sets(tmp_path / "store")
    assert [one["response"] for one in row["worse_gpt"]] == ["wrong one", "another"]
    assert row["reason_gpt"] == "2 of 4; 2 like the golden response, 4 near-identical, 2 empty"
    second = at.requests[1]["messages"]
    assert [turn["role"] for turn in second] == ["system", "user", "assistant", "user"] and "Generate 2 more" in second[
        3
    ]["content"]
    many = json.dumps({"answers": [f"wrong in the way number {i} of {i * i}" for i in range(50)]})
    at.script = [body(completion(many))]
    (tmp_path / "more").mkdir()
    run_local(recipe(at, tmp_path / "more", rows=1), tmp_path / "other")
    assert len(sets(tmp_path / "other")[0]["worse_gpt"]) == 4 and len(at.requests) == 3


def test_an_answer_of_ten_megabytes_is_cut_and_does_no_harm(at, tmp_path):
    at.script = [body(completion('{"answers": ["' + "long " * 2_000_000)), body(completion("no"))]
    run_local(recipe(at, tmp_path, rows=2, generator=server(at, concurrency=1)), tmp_path / "store")
    first, second = sets(tmp_path / "store")
    assert first["worse_gpt"] is None and len(first["reason_gpt"]) < 300 and len(second["worse_gpt"]) == 4
    assert (tmp_path / "store" / "calls" / "calls.sqlite").stat().st_size < 3_000_000


def test_one_answer_a_call_draws_as_many_as_asked_for(at, tmp_path):
    run_local(recipe(at, tmp_path, rows=2, calls="each", generator=server(at, seed=7)), tmp_path / "store")
    assert [len(row["worse_gpt"]) for row in sets(tmp_path / "store")] == [4, 4]
    assert sorted(request["seed"] for request in at.requests) == [7, 7, 8, 8, 9, 9, 10, 10]
    assert not any("response_format" in request for request in at.requests)


@pytest.mark.parametrize(
    ("fault", "said"),
    [
        (status(401, f"Incorrect API key provided: {KEY}"), "put a valid key into OPENAI_API_KEY"),
        (status(403, "no"), "ask for access to the model"),
        (status(404, "The model does not exist"), "The model does not exist; check the model's name and base_url"),
        (status(429, "insufficient_quota", retry_after="0.01"), "every answer is kept"),
    ],
)
def test_an_endpoint_that_serves_nobody_stops_the_run_in_one_line(at, tmp_path, fault, said):
    at.script = [fault] * 50
    with pytest.raises(ModelError) as caught:
        run_local(recipe(at, tmp_path, generator=server(at, retries=2)), tmp_path / "store")
    assert said in str(caught.value) and KEY not in str(caught.value) and "\n" not in str(caught.value)
    at.script = []
    run_local(recipe(at, tmp_path, generator=server(at, retries=3)), tmp_path / "store")
    assert len(sets(tmp_path / "store")) == 6


def test_many_failures_in_a_row_stop_the_run_too(at, tmp_path):
    at.script = [status(400, "response_format is unknown here")] * 100
    with pytest.raises(ModelError, match=r"\d+ requests in a row failed, the last one: 400 response_format is unknown"):
        run_local(recipe(at, tmp_path, rows=40), tmp_path / "store")
    assert len(at.requests) < 20


def test_no_server_and_no_key_are_errors_that_say_what_to_do(tmp_path, monkeypatch):
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
    with pytest.raises(ModelError, match="set the environment variable OPENAI_API_KEY"):
        OpenAIServer(path="gpt").load()
    nobody = OpenAIServer(path="m", base_url="http://127.0.0.1:9/v1", retries=0)
    with pytest.raises(ModelError, match=r"at http://127\.0\.0\.1:9/v1: Connection error\.; check base_url"):
        ask(nobody, "a")


def test_a_key_in_a_recipe_is_refused_without_repeating_it():
    for options in (
        {"api_key": KEY},
        {"base_url": f"http://me:{KEY}@host/v1"},
        {"base_url": f"http://host/?key={KEY}"},
    ):
        with pytest.raises(ValidationError) as caught:
            OpenAIServer(path="m", **options)
        assert KEY not in caught.value.errors()[0]["msg"] and KEY not in str(caught.value)


def test_no_more_calls_are_in_the_air_than_allowed_and_not_faster(at):
    at.chance = lambda: sleep(0.05)
    start = time.monotonic()
    ask(server(at, concurrency=3, requests_per_minute=1200), *map(str, range(12)))
    assert 2 <= at.busiest <= 3 and time.monotonic() - start >= 11 * 60 / 1200
    start = time.monotonic()
    ask(server(at, tokens_per_minute=60_000, max_tokens=300), *map(str, range(3)))
    # Three times 300 tokens at 1,000 a second: the third may start after .6 seconds.
    assert 0.6 <= time.monotonic() - start < 2


def test_a_limit_in_dollars_stops_in_time_and_nothing_is_bought_again(at, tmp_path):
    priced = {"usd_per_million_input": 1000, "usd_per_million_output": 2000, "max_tokens": 60, "concurrency": 1}
    whole = recipe(at, tmp_path, generator=server(at, **priced))
    planned = plan(whole, tmp_path / "none")
    assert planned.lines[0].usd == pytest.approx(
        (planned.lines[0].tokens * 1000 + planned.lines[0].written * 2000) / 1e6
    )
    # A call costs $0.20; the next one is held to cost a dollar for a thousand bytes, and 12 cents for 60 tokens.
    said = r"stopped before the limit of \$1.2: 2 calls, 200 tokens in, 100 out, \$0.4000; what comes next may cost up to \$0.91"
    with pytest.raises(BudgetError, match=said):
        run_local(whole, tmp_path / "store", max_usd=1.2)
    assert len(at.requests) == 2
    report = run_local(whole, tmp_path / "store", max_usd=5)
    assert len(at.requests) == 6 and "4 calls, 400 tokens in, 200 out, $0.8000; planned were" in report.lines[-1]
    # Many at once hold back more than they cost: they wait for each other, and all the money is used.
    (tmp_path / "many").mkdir()
    many = recipe(at, tmp_path / "many", rows=20, generator=server(at, **{**priced, "concurrency": 8}))
    with pytest.raises(BudgetError, match=r"limit of \$3: 11 calls"):
        run_local(many, tmp_path / "fourth", max_usd=3)
    with pytest.raises(BudgetError, match="usd_per_million_input"):
        run_local(recipe(at, tmp_path), tmp_path / "third", max_usd=1)


def batch_server(at, **options):
    return server(at, batch=True, poll_seconds=0.02, usd_per_million_input=1.0, usd_per_million_output=1.0, **options)


def test_a_batch_costs_half_and_its_answers_come_in_any_order(at, tmp_path):
    report = run_local(recipe(at, tmp_path, rows=40, generator=batch_server(at)), tmp_path / "store")
    assert [len(row["worse_gpt"]) for row in sets(tmp_path / "store")] == [4] * 40
    assert len(at.batches) == 1 and not at.requests and set(at.paid.values()) == {1}
    assert "40 calls, 4,000 tokens in, 2,000 out, $0.0030" in report.lines[-1]
    answers = {row["worse_gpt"][0]["response"].split()[1] for row in sets(tmp_path / "store")}
    assert len(answers) > 30


def test_what_a_batch_could_not_answer_is_the_rows_reason(at, tmp_path):
    def lines(asked):
        failed = {
            "custom_id": asked[0]["custom_id"],
            "response": {"status_code": 400, "body": {"error": {"message": "bad"}}},
        }
        done = [
            {"custom_id": one["custom_id"], "response": {"status_code": 200, "body": completion("no list")}}
            for one in asked[2:]
        ]
        return [
            *done,
            {"custom_id": "a stranger's"},
        ], [failed]

    at.batch_lines = lines
    run_local(recipe(at, tmp_path, generator=batch_server(at)), tmp_path / "store")
    reasons = [row["reason_gpt"] for row in sets(tmp_path / "store")]
    assert reasons[0] == "400 bad" and "without an answer to it" in reasons[1] and "no list of answers" in reasons[4]


def test_what_a_batch_says_of_its_key_reaches_no_reason_no_file_and_no_error(at, tmp_path):
    said = {"message": f"Incorrect API key provided: {KEY}"}
    at.batch_lines = lambda asked: (
        [],
        [{"custom_id": one["custom_id"], "response": {"status_code": 401, "body": {"error": said}}} for one in asked],
    )
    run_local(recipe(at, tmp_path, rows=1, generator=batch_server(at)), tmp_path / "store")
    (row,) = sets(tmp_path / "store")
    assert row["reason_gpt"] == "401 Incorrect API key provided: …"
    at.batch_lines, at.batch_end = lambda asked: ([], []), {"status": "failed", "errors": {"data": [said]}}
    with pytest.raises(ModelError, match="was refused: Incorrect API key provided: …; run again to retry") as caught:
        run_local(recipe(at, tmp_path, rows=1, k=5, generator=batch_server(at)), tmp_path / "other")
    assert KEY not in "".join(traceback.format_exception(caught.value))
    assert not [file for file in tmp_path.rglob("*") if file.is_file() and KEY.encode() in file.read_bytes()]


def test_a_limit_in_dollars_holds_for_batches(at, tmp_path):
    with pytest.raises(BudgetError, match=r"stopped before the limit of \$0\.001: 0 calls"):
        run_local(recipe(at, tmp_path, generator=batch_server(at)), tmp_path / "store", max_usd=0.001)
    assert at.batches == {}


def test_an_answer_is_kept_by_all_that_decides_it_and_by_nothing_else(at, tmp_path):
    def asked(schema=None, draw=0, **options):
        one = OpenAIServer(path=options.pop("path", "worse-1"), base_url=at.url, **options)
        (key,) = {one.load()._key(Request([{"role": "user", "content": "a"}], schema, draw))}
        return key

    others = [{"schema": {"type": "object"}}, {"draw": 1}, {"path": "worse-2"}]
    others += [{"temperature": 0.5}, {"top_p": 0.5}, {"seed": 1}, {"max_tokens": 7}, {"extra": {"a": 1}}]
    assert len({asked(), *(asked(**one) for one in others)}) == 1 + len(others)
    same = [{"timeout": 5}, {"concurrency": 1}, {"retries": 1}, {"usd_per_million_input": 1}, {"api_key": "OTHER"}]
    assert {asked(**one) for one in same} == {asked()}


def test_a_batch_outlives_a_restart(at, tmp_path, monkeypatch):
    at.polls = 10**9
    one = recipe(at, tmp_path, generator=batch_server(at))
    monkeypatch.setattr(asyncio, "sleep", lambda seconds: (_ for _ in ()).throw(KeyboardInterrupt))
    with pytest.raises(KeyboardInterrupt):
        run_local(one, tmp_path / "store")
    monkeypatch.undo()
    monkeypatch.setenv("OPENAI_API_KEY", KEY)
    # As if killed between submitting and noting what the batch is called.
    kept = calls.Calls(tmp_path / "store" / "calls")
    ((name, _),) = kept.batches().items()
    kept.collected(name)
    kept.submitted("intended-" + at.batches[name]["metadata"]["seamcurate"], [])
    kept.close()
    at.polls = 1
    run_local(one, tmp_path / "store")
    assert len(at.batches) == 1 and [len(row["worse_gpt"]) for row in sets(tmp_path / "store")] == [4] * 6


def test_after_two_hundred_faults_and_a_kill_nothing_is_paid_for_twice(at, tmp_path):
    """Requests in the air at the kill are not answered, so that every paid answer had a second to be kept."""
    draw, left, dead = random.Random(0), [200], []
    lost = [status(429, retry_after="0.02"), status(500, retry_after_ms="10"), status(503, retry_after_ms="10")]
    # Five in a row that cannot be read would set a row aside.
    unread = [body(b'{"id": "c", "choi'), body(b"<html>", "text/html"), body(b"")]
    kinds = [*lost, hang_up] * 4 + [sleep(9.0)] + unread

    def chance():
        if sum(at.paid.values()) >= 100 and not dead:
            at.hold.set()
        if left[0] and draw.random() < 0.5:
            left[0] -= 1
            return draw.choice(kinds)
        return None

    at.chance = chance
    table = {"prompt": [f"question {i}" for i in range(240)], "response": [f"right answer {i}" for i in range(240)]}
    pq.write_table(pa.table(table), tmp_path / "rows.parquet")
    (tmp_path / "recipe.yaml").write_text(
        "rows: {parquet: rows.parquet, shard_rows: 80}\n"
        f"models: {{generator: {{openai_server: worse-1, base_url: '{at.url}', timeout: 8, retries: 40}}}}\n"
        "steps: [{generate: {k: 3}}]\n"
    )
    (tmp_path / "recipe.yaml").write_text(
        (tmp_path / "recipe.yaml").read_text().replace("rows.parquet", str(tmp_path / "rows.parquet"))
    )
    command = [sys.executable, "-m", "seamcurate.cli", "run", str(tmp_path / "recipe.yaml"), str(tmp_path / "store")]
    with subprocess.Popen(command, env={**os.environ, "OPENAI_API_KEY": KEY}) as running:
        assert at.hold.wait(120)
        time.sleep(1.0)
        running.send_signal(signal.SIGKILL)
    dead.append(running)
    at.hold.clear()
    paid = sum(at.paid.values())
    assert running.returncode == -signal.SIGKILL and 100 <= paid < 240
    subprocess.run(command, check=True, timeout=120)
    assert left == [0] and len(at.paid) == 240 and set(at.paid.values()) == {1}
    assert all(len(row["worse_gpt"]) == 3 for row in sets(tmp_path / "store"))


def test_ctrl_c_stops_at_once_whatever_is_in_the_air(at, tmp_path):
    at.hold.set()
    table = {"prompt": ["q 1", "q 2"], "response": ["a 1", "a 2"]}
    pq.write_table(pa.table(table), tmp_path / "rows.parquet")
    (tmp_path / "recipe.yaml").write_text(
        f"rows: {{parquet: {tmp_path}/rows.parquet}}\n"
        f"models: {{generator: {{openai_server: worse-1, base_url: '{at.url}'}}}}\nsteps: [generate]\n"
    )
    command = [sys.executable, "-m", "seamcurate.cli", "run", str(tmp_path / "recipe.yaml"), str(tmp_path / "store")]
    with subprocess.Popen(
        command, stderr=subprocess.PIPE, text=True, env={**os.environ, "OPENAI_API_KEY": KEY}
    ) as running:
        while at.busy < 2:
            time.sleep(0.01)
        said, took = interrupt(running)
    assert said == ["stopped; what was finished is kept: run the same command again to go on"]
    assert took < 2


SECRETS = {
    "OPENAI_API_KEY": KEY,
    "HF_TOKEN": "hf_canary0123456789",
    "AWS_SECRET_ACCESS_KEY": "aws-canary-0123456789",
    "AWS_ACCESS_KEY_ID": "AKIACANARY0123456789",
}


def test_no_key_reaches_a_file_a_line_or_a_page_in_a_run_a_crash_a_report_and_the_explorer(at, tmp_path):
    rows = {"prompt": [f"q {i}" for i in range(6)], "response": ["an answer"] * 6}
    pq.write_table(pa.table(rows), tmp_path / "rows.parquet")
    recipe, store = tmp_path / "recipe.yaml", tmp_path / "store"
    model = f"{{openai_server: worse-1, base_url: '{at.url}', retries: 0}}"
    models = f"models: {{generator: {model}, reward: {{fake: r}}, policy: {{fake: p}}}}"
    steps = "steps: [generate: {k: 2}, seam: {variant: gpt, k: 2}]"
    splits = "splits: {train: {filter: SELECT row_id FROM rows}}"
    recipe.write_text(f"rows: {{parquet: {tmp_path}/rows.parquet}}\n{models}\n{steps}\n{splits}\n")
    told = ""

    def command(*arguments: object, code: str = "") -> int:
        nonlocal told
        start = [sys.executable, "-c", code] if code else [sys.executable, "-m", "seamcurate.cli"]
        ended = subprocess.run(
            [*start, *map(str, arguments)],
            env={**os.environ, **SECRETS, "SEAMCURATE_TRACEBACK": "1"},
            capture_output=True,
            text=True,
            timeout=120,
            check=False,
        )
        told += ended.stdout + ended.stderr
        return ended.returncode

    crash = (
        "from seamcurate.models.server import _Endpoint\n"
        "def broken(self, *a): raise ZeroDivisionError('in the middle')\n"
        "_Endpoint._received = broken\n"
        "from seamcurate.cli import main\nmain()\n"
    )
    assert command("run", recipe, store, code=crash) == 1 and "ZeroDivisionError" in told
    at.script += [status(401, f"Incorrect API key provided: {KEY}")] * 8
    assert command("run", recipe, store) == 2
    at.script.clear()
    assert command("run", recipe, store) == 0 and "6 of 6 rows kept" in told
    assert command("report", store, "--out", tmp_path / "report.html") == 0
    assert command("push", recipe, store, "me/it", "--dry-run") == 0
    page = (
        "import sys, json\nfrom seamcurate import Store\nfrom seamcurate.explore import Session\n"
        "from seamcurate.explore.server import _overview\nfrom seamcurate.explore.row import row\n"
        "session = Session(Store(sys.argv[1]))\nprint(json.dumps(_overview(session)), json.dumps(row(session, 1)))\n"
    )
    assert command(store, code=page) == 0
    assert at.headers[-1]["authorization"] == f"Bearer {KEY}"
    written = b"".join(f.read_bytes() for f in tmp_path.rglob("*") if f.is_file()) + told.encode()
    assert b"worse-1" in written and not [name for name, secret in SECRETS.items() if secret.encode() in written]


@pytest.mark.parametrize(
    ("fault", "reason"),
    [
        (stream(b" ", 200, 0.05), "a reply that did not end within 0.6 s; raise `timeout`"),
        (stream(b" " * 2**20, 200), "a reply longer than 16,777,216 bytes"),
        (stream(gzip.compress(b" " * 2**28), 1, content_encoding="gzip"), "a reply longer than 16,777,216 bytes"),
        (stream(b"{}", 1, content_encoding="br"), "a reply compressed as 'br', which was not asked for"),
    ],
    ids=["drip", "endless", "bomb", "foreign"],
)
def test_a_reply_has_a_deadline_and_a_limit_and_is_given_up_and_counted_once(at, fault, reason):
    at.script = [fault]
    kept = calls.Calls()
    model = server(at, timeout=0.6, max_tokens=100, usd_per_million_input=1.0, usd_per_million_output=1e4)
    replies = []

    def conversation():
        replies.append((yield Request([{"role": "user", "content": "a question"}])))

    endpoint = model.load()
    endpoint.calls = kept
    endpoint.converse([conversation])
    assert replies[0].failure.startswith(f"the endpoint answered with {reason}") and len(at.requests) == 1
    assert kept.spent.calls == 1 and kept.spent.usd == pytest.approx(1.0, rel=1e-3)


@pytest.mark.parametrize("code", [301, 302, 307, 308])
def test_nothing_is_sent_to_another_host_and_where_it_would_have_gone_is_said(at, code):
    with serving() as other:
        at.script = [redirect(code, f"{other.url}/chat/completions")]
        with pytest.raises(
            ModelError, match=f"{code}, it redirects to {other.url}/chat/completions, where nothing is sent"
        ):
            ask(server(at), "a question")
        assert other.requests == [] and len(at.requests) == 1
    at.script = [redirect(307, "/v1/other/chat/completions")]
    assert ask(server(at), "a question")[0].failure is None and len(at.requests) == 3


@pytest.mark.parametrize(
    "usage",
    [
        None,
        [],
        {},
        {"prompt_tokens": -(10**9), "completion_tokens": -(10**9)},
        {"prompt_tokens": 10**30, "completion_tokens": 10**30},
        {"prompt_tokens": 1e400, "completion_tokens": "many"},
        {"prompt_tokens": None, "completion_tokens": True},
    ],
)
def test_usage_that_cannot_be_true_costs_what_the_call_can_have_cost(at, usage):
    at.complete = lambda asked: {**completion("an answer"), "usage": usage}
    endpoint = server(at, max_tokens=100, usd_per_million_input=1e4, usd_per_million_output=1e6).load()

    def conversation():
        return (yield Request([{"role": "user", "content": "a question"}]))

    (reply,) = endpoint.converse([conversation])
    # Ten bytes, sixteen tokens around them, a hundred tokens of answer.
    assert reply.text == "an answer" and endpoint.calls.spent.usd == pytest.approx(26e4 / 1e6 * 1 + 100)


def test_usage_in_fractions_and_in_words_is_read(at):
    at.complete = lambda asked: {**completion("an answer"), "usage": {"prompt_tokens": 10.5, "completion_tokens": "20"}}
    endpoint = server(at, usd_per_million_input=1.0, usd_per_million_output=1.0).load()

    def conversation():
        return (yield Request([{"role": "user", "content": "a question"}]))

    endpoint.converse([conversation])
    assert endpoint.calls.spent == calls.Spent(1, 11, 20, pytest.approx(31e-6))


@pytest.mark.parametrize(
    "reply",
    [
        body(b"<html>paid, but no JSON</html>", "text/html"),
        body({**completion("x"), "choices": []}),
        body({**completion("x"), "choices": [], "usage": {"prompt_tokens": -(10**9), "completion_tokens": -(10**9)}}),
        body({"error": {"message": "overloaded", "code": 503}}),
        hang_up,
    ],
    ids=["html", "no-choice", "refund", "error", "hang-up"],
)
def test_a_limit_in_dollars_holds_where_nothing_can_be_read(at, tmp_path, reply):
    at.script = [reply] * 200
    priced = {"usd_per_million_input": 0.0, "usd_per_million_output": 1e4, "max_tokens": 50, "concurrency": 8}
    with pytest.raises(BudgetError, match=r"limit of \$5: 10 calls, .*, \$5.00; what comes next may cost up to \$0.5;"):
        run_local(recipe(at, tmp_path, rows=40, generator=server(at, **priced)), tmp_path / "store", max_usd=5)
    assert len(at.requests) == 10


def test_the_name_of_the_limit_is_an_option_and_is_found_out_too(at, capsys):
    def picky(asked):
        if "max_tokens" in asked:
            return status(
                400,
                "Unsupported parameter: 'max_tokens'. Use 'max_completion_tokens' instead.",
                {"param": "max_tokens"},
            )
        return None

    def fault(handler, asked):
        refusal = picky(asked)
        return refusal is not None and refusal(handler, asked)

    at.chance = lambda: fault
    replies = ask(server(at, concurrency=1), "one", "two")
    assert [reply.failure for reply in replies] == [None, None] and len(at.requests) == 3
    assert at.requests[2]["max_completion_tokens"] == 4096
    assert capsys.readouterr().err.count("it refuses max_tokens (400 Unsupported parameter") == 1
    ask(server(at, max_completion_tokens=70), "three")
    assert at.requests[3]["max_completion_tokens"] == 70 and "max_tokens" not in at.requests[3]
    at.chance = lambda: None
    # Whoever asked by either name has bought the same answer.
    named = [OpenAIServer(path="m", max_tokens=70), OpenAIServer(path="m", max_completion_tokens=70)]
    assert named[0].identity() == named[1].identity()
    ask(server(at, extra={"max_completion_tokens": 7}), "four")
    assert at.requests[4]["max_completion_tokens"] == 7 and "max_tokens" not in at.requests[4]


def test_a_server_that_refuses_schemas_is_asked_without_and_that_is_said_once(at, tmp_path, capsys):
    def fault(handler, asked):
        if "response_format" in asked:
            handler.send(400, {"error": {"message": "'response_format.type' must be one of: text, json_object"}})
        return "response_format" in asked

    at.chance = lambda: fault
    at.answer = lambda asked: json.dumps({"answers": [f"wrong in way {i} of {len(str(asked))}" for i in range(4)]})
    run_local(recipe(at, tmp_path, generator=server(at, concurrency=1)), tmp_path / "store")
    assert [len(row["worse_gpt"]) for row in sets(tmp_path / "store")] == [4] * 6 and len(at.requests) == 7
    assert capsys.readouterr().err.count("`structured: false` sends none from the start") == 1


def test_a_batch_names_the_option_that_answers_its_refusal(at, tmp_path):
    said = {"error": {"message": "response_format of type json_schema is not supported"}}
    at.batch_lines = lambda asked: (
        [],
        [{"custom_id": one["custom_id"], "response": {"status_code": 400, "body": said}} for one in asked],
    )
    run_local(recipe(at, tmp_path, rows=1, generator=batch_server(at)), tmp_path / "store")
    (row,) = sets(tmp_path / "store")
    assert row["reason_gpt"] == "400 response_format of type json_schema is not supported; set `structured: false`"


@pytest.mark.parametrize(
    ("fault", "said"),
    [
        (stream(b" ", 200, 0.05), "a reply that did not end within 0.6 s"),
        (stream(b" " * 2**20, 200), "a reply longer than 23,068,672 bytes|a line longer than 16,777,216 bytes"),
    ],
    ids=["drip", "endless"],
)
def test_a_batchs_file_has_a_deadline_and_a_limit_and_its_batch_is_found_again(at, tmp_path, fault, said):
    at.file_fault = fault
    one = recipe(at, tmp_path, generator=batch_server(at, timeout=0.6))
    with pytest.raises(ModelError, match=rf"batch batch-0: its file output_file_id-batch-0 came as ({said})"):
        run_local(one, tmp_path / "store")
    at.file_fault = None
    run_local(one, tmp_path / "store")
    assert len(at.batches) == 1 and [len(row["worse_gpt"]) for row in sets(tmp_path / "store")] == [4] * 6


def test_what_was_bought_is_read_anew_and_an_answer_bought_without_a_schema_is_one(at, tmp_path):
    schema = {"type": "object", "properties": {"rating": {"type": "integer"}}}
    with calls.kept(tmp_path):
        ask(server(at), "a question")
        ask(server(at), "a question", schema=schema)
        ask(server(at, structured=False), "a question", schema=schema)
    assert len(at.requests) == 2


def test_questions_are_asked_from_a_notebook_too(at, tmp_path):
    async def cell():
        run_local(recipe(at, tmp_path, rows=2), tmp_path / "store")

    asyncio.run(cell())
    assert [len(row["worse_gpt"]) for row in sets(tmp_path / "store")] == [4, 4]
