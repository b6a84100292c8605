"""The client of servers of scores, against a server on loopback that does what real ones do on bad days."""

from __future__ import annotations

import random
import time
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime

import pytest
from endpoint import body, hang_up, redirect, serving, sleep, status, stream

from seamcurate.errors import ModelError
from seamcurate.models import connection
from seamcurate.models.endpoint import ServerSettings
from seamcurate.models.scoring_client import Answer, Post, Received, RefusedError, ScoringClient, UnreadError

KEY = "sk-canary-0123456789"


@pytest.fixture
def at():
    with serving() as endpoint:
        endpoint.complete = lambda asked: {"double": 2 * asked["n"]}
        yield endpoint


@pytest.fixture(autouse=True)
def quick(monkeypatch):
    monkeypatch.setattr("seamcurate.models.scoring_client.random.uniform", lambda low, high: 0.02)


def client(at, **settings):
    return ScoringClient("reward_server m", at.url, ServerSettings(**{"timeout": 5, "concurrency": 4, **settings}))


def double(value):
    if not isinstance(value, dict) or "double" not in value:
        raise UnreadError("no double")
    return value["double"]


def posts(*numbers):
    return [Post({"messages": [], "n": n}, double) for n in numbers]


def results(at, *numbers, first=True, **settings):
    """Post numbers after one that goes well."""
    asked = client(at, **settings)
    if first:
        script, at.script = at.script, []
        list(asked.post_all("/x", posts(0)))
        at.script = script
    return list(asked.post_all("/x", posts(*numbers)))


def test_results_come_in_the_order_of_the_requests_and_few_are_under_way_at_once(at):
    draw = random.Random(0)
    at.chance = lambda: sleep(draw.random() / 100)
    assert results(at, *range(60)) == [Received(2 * n) for n in range(60)]
    assert at.busiest == 4


@pytest.mark.slow
def test_requests_are_made_while_the_server_works_and_not_long_before(at):
    at.script = [sleep(0.3)]
    made = []
    asked = client(at)
    for count, received in enumerate(
        asked.post_all("/x", (made.append(n) or post for n, post in enumerate(posts(*range(200)))))
    ):
        # While the first waits, the others go on, as far as the queue allows.
        assert len(made) <= count + 8 * 4 + 1 and received == Received(2 * count)
    assert len(made) == 200


def test_tokens_under_way_are_bounded_but_for_a_single_request(at):
    at.chance = lambda: sleep(0.02)
    sized = [Post(post.body, double, 60 if n else 1000) for n, post in enumerate(posts(*range(8)))]
    assert [r.value for r in client(at).post_all("/x", sized, tokens=130)] == [2 * n for n in range(8)]
    assert at.busiest == 2


@pytest.mark.parametrize("fault", [status(503), status(429, retry_after="0.05"), hang_up, status(500), body({"no": 1})])
def test_what_another_request_may_not_meet_is_repeated(at, fault):
    at.script = [fault, fault]
    assert results(at, 7) == [Received(14)] and len(at.requests) == 4


def test_a_server_says_how_long_to_wait(at):
    at.script = [status(429, retry_after="0.4")]
    start = time.monotonic()
    assert results(at, 7) == [Received(14)] and 0.4 <= time.monotonic() - start < 3


def test_a_server_names_the_moment_to_ask_again(at):
    # Imports take their time once.
    assert results(at, 7) == [Received(14)]
    start = datetime.now(UTC)
    moment = start + timedelta(seconds=2)
    at.script = [status(429, retry_after=format_datetime(moment, usegmt=True)), status(429, retry_after="soon")]
    assert results(at, 7) == [Received(14)]
    # Both dates have whole seconds.
    assert 0.9 <= (datetime.now(UTC) - start).total_seconds() < 6


@pytest.mark.parametrize(
    ("fault", "reason", "count"),
    [
        (status(400, "too long"), "/x answered 400: too long", 1),
        (status(500, "boom"), "/x answered 500: boom", 3),
        (status(502, "gateway"), "/x answered 502: gateway", 5),
        (body({"no": 1}), "/x answered with no double", 3),
        (body(b"<html>Welcome"), "/x answered with '<html>Welcome' where JSON was due", 3),
        (body(b""), "/x answered with an empty body", 3),
        (sleep(1), "no answer from /x within 0.3 s, 3 times", 3),
        (stream(b" " * 2**16, 400), "/x answered with a reply longer than 1,000,000 bytes", 1),
    ],
)
def test_a_request_at_fault_has_a_reason_and_others_go_on(at, monkeypatch, fault, reason, count):
    monkeypatch.setattr(connection, "REPLY_BYTES", 10**6)
    at.script = [fault] * count
    assert results(at, 7, retries=4, timeout=0.3, concurrency=1) == [Received(None, reason)]
    assert len(at.requests) == 1 + count
    assert results(at, 8, 9) == [Received(16), Received(18)]


@pytest.mark.parametrize(
    ("fault", "message"),
    [
        (status(401, f"wrong key {KEY}"), "/x answered 401: wrong key …; put a valid key into SCORES_KEY"),
        (status(403), "/x answered 403: not now; ask for access to the model"),
        (status(404), "/x answered 404: not now; check the model's name, the address and `api`"),
        (status(429), "/x answered 429: not now; wait, or lower `concurrency`"),
        (redirect(302, "http://127.0.0.2/x"), "302, /x redirects to http://127.0.0.2/x, where nothing is sent; if that is the server, write it"),
    ],
)  # fmt: skip
def test_an_endpoint_at_fault_stops_the_run_in_one_line_without_the_key(at, monkeypatch, fault, message):
    monkeypatch.setenv("SCORES_KEY", KEY)
    at.chance = lambda: fault
    with pytest.raises(RefusedError) as refused:
        results(at, 1, retries=1, api_key="SCORES_KEY", first=False)
    assert str(refused.value) == f"reward_server m at {at.url}: {message}"
    assert all(headers["authorization"] == f"Bearer {KEY}" for headers in at.headers)


def test_an_endpoint_that_fails_at_every_row_stops_the_run(at):
    at.script = [status(400, "no")] * 100
    with pytest.raises(
        ModelError, match=r"8 requests in a row failed, the last one: /x answered 400: no; see the server"
    ):
        results(at, *range(20))
    assert len(at.requests) <= 1 + 8 + 4


def test_before_a_request_was_answered_any_failure_is_the_endpoints(at):
    at.script = [status(400, "no such task")]
    with pytest.raises(ModelError, match="/x answered 400: no such task"):
        results(at, 1, 2, first=False)


def test_a_server_that_is_not_there_stops_the_run():
    asked = ScoringClient("reward_server m", "http://127.0.0.1:9", ServerSettings(retries=2))
    with pytest.raises(ModelError, match=r"^reward_server m at http://127.0.0.1:9: no answer: .*; check the address"):
        list(asked.post_all("/x", posts(1)))
    with pytest.raises(ModelError, match="no answer"):
        asked.look("/v1/models")


def test_a_result_that_no_reply_can_hold_stops_the_run(at):
    def other_model(value):
        raise ModelError("another model answers")

    with pytest.raises(ModelError, match="another model answers"):
        list(client(at).post_all("/x", [Post({"messages": [], "n": 1}, other_model)]))


def test_leaving_early_leaves_no_request_under_way(at):
    # By number: the second request may arrive before the first.
    at.chance = lambda: lambda handler, asked: asked["n"] > 0 and sleep(30)(handler, asked)
    asked = client(at, concurrency=2).post_all("/x", posts(*range(40)))
    start = time.monotonic()
    assert next(asked) == Received(0)
    asked.close()
    assert time.monotonic() - start < 5


def test_a_look_returns_any_status(at):
    at.script = [status(404, "no"), lambda *_: False]
    asked = client(at)
    assert asked.look("/x", {"messages": []}).status == 404
    assert asked.look("/x", {"messages": [], "n": 4}) == Answer(200, {"double": 8})


def test_a_key_that_is_named_must_be_set(at, monkeypatch):
    monkeypatch.delenv("SCORES_KEY", raising=False)
    with pytest.raises(ModelError, match="reward_server m: set the environment variable SCORES_KEY to a key for http"):
        client(at, api_key="SCORES_KEY")


def test_without_a_key_none_is_sent_and_no_proxy_comes_between_loopback(at, monkeypatch):
    monkeypatch.setenv("HTTP_PROXY", "http://127.0.0.1:9")
    assert results(at, 1) == [Received(2)]
    assert all("authorization" not in headers for headers in at.headers)
