"""What a plan says a step will take is what the step's model takes for such rows, by a clock that the model moves."""

from __future__ import annotations

import json

import numpy as np
import pytest

from seamcurate import FakeModel, OpenAIServer, PolicyLogprobs, QueryType, Retrieve, Reward, Rewards, plan, run_local
from seamcurate.contrast import Duplicates, Embed, Generate, nearest
from seamcurate.run import probe, speed, times
from seamcurate.run.recipe import loads
from seamcurate.step import Averages

LENGTHS = [40 + 7 * (i * 37 % 100) for i in range(100)]
PROMPTS = [f"{i:04d} " + "word " * (length // 5) for i, length in enumerate(LENGTHS)]
ANSWERS = [f"{i:04d} " + "so " * (length // 3) for i, length in enumerate(reversed(LENGTHS))]
AVERAGES = Averages(sum(map(len, PROMPTS)) / 100, sum(map(len, ANSWERS)) / 100, 0.0, 8.0, sum(map(len, ANSWERS)) / 100)
EACH = 1e-5
"""Seconds that the model takes for a character."""


@pytest.fixture
def clock(monkeypatch):
    """A clock that only models move: by the characters they read, and by 3 seconds to load."""
    now = [0.0]
    monkeypatch.setattr("time.perf_counter", lambda: now[0])
    monkeypatch.setattr("time.monotonic", lambda: now[0])
    rewards, logprobs = FakeModel.rewards, FakeModel.logprobs

    def read(prompts, answers):
        now[0] += EACH * sum(len(p) + len(a) for p, row in zip(prompts, answers, strict=True) for a in row)

    def load(self):
        now[0] += 3
        return self

    monkeypatch.setattr(FakeModel, "load", load)
    monkeypatch.setattr(FakeModel, "rewards", lambda self, p, a: (read(p, a), rewards(self, p, a))[1])
    monkeypatch.setattr(FakeModel, "logprobs", lambda self, p, a: (read(p, a), logprobs(self, p, a))[1])
    return now


def _seconds(step, rows, first=False, timed=None):
    timed = timed or probe.Probe(probe.Texts(PROMPTS, ANSWERS, ANSWERS))
    return timed.duration(step, rows, AVERAGES, first).of(rows)


def test_a_step_takes_what_its_model_takes_for_rows_of_all_lengths(clock):
    read = EACH * sum(len(p) + len(a) for p, a in zip(PROMPTS, ANSWERS, strict=True))
    step = Reward(reward=FakeModel())
    assert _seconds(step, 10_000) == pytest.approx(3 + 100 * read, rel=0.02)


def test_likelihoods_are_taken_for_the_share_that_the_reward_model_misjudges(clock):
    timed = probe.Probe(probe.Texts(PROMPTS, ANSWERS, ANSWERS))
    all_of_them = 8 * EACH * (AVERAGES.prompt + AVERAGES.candidate) * 1000
    assert _seconds(Rewards(reward=FakeModel()), 1000, timed=timed) == pytest.approx(3 + all_of_them, rel=0.05)
    share = (_seconds(PolicyLogprobs(policy=FakeModel()), 1000, timed=timed) - 3) / all_of_them
    # The fake draws its rewards evenly: about half of the answers are above another.
    assert share == pytest.approx(timed._misjudged, rel=0.05) and 0.2 < share < 0.8
    everything = PolicyLogprobs(policy=FakeModel(), likelihoods="all")
    assert _seconds(everything, 1000, timed=timed) == pytest.approx(3 + all_of_them, rel=0.05)


def test_what_is_not_computed_here_or_is_done_is_not_timed(clock):
    paid = OpenAIServer(openai_server="m", base_url="http://127.0.0.1:1/v1")
    timed = probe.Probe(probe.Texts(PROMPTS, ANSWERS, ANSWERS))
    assert timed.duration(Generate(generator=paid), 10, AVERAGES, True) is None
    assert timed.duration(Reward(reward=FakeModel()), 0, AVERAGES, True) is None
    assert timed.duration(Embed(encoder=FakeModel()), 10, AVERAGES, True) == (3, 0)


def test_a_model_too_large_for_the_memory_is_not_loaded_and_that_is_said(clock, tmp_path, capsys):
    (tmp_path / "model").mkdir()
    with (tmp_path / "model" / "model.safetensors").open("wb") as file:
        file.truncate(2**50)
    large = FakeModel(path=str(tmp_path / "model"))
    assert (
        probe.Probe(probe.Texts(PROMPTS, ANSWERS, ANSWERS)).duration(Reward(reward=large), 10, AVERAGES, True) is None
    )
    assert not clock[0]
    assert "too much for this machine" in capsys.readouterr().err


def test_rows_of_a_probe_are_spread_over_the_lengths_from_its_beginning_on():
    taken = probe._spread(probe.Texts(PROMPTS, ANSWERS, ANSWERS))
    sizes = [len(p) + len(a) for p, a in zip(taken.prompts, taken.responses, strict=True)]
    whole = [len(p) + len(a) for p, a in zip(PROMPTS, ANSWERS, strict=True)]
    assert len(set(taken.prompts)) == 100
    for size, share in ((4, 0.3), (8, 0.2), (32, 0.05)):
        assert sum(sizes[:size]) / size == pytest.approx(sum(whole) / 100, rel=share)
    assert min(sizes[:8]) < sorted(whole)[20] and max(sizes[:8]) > sorted(whole)[80]


def test_a_plan_has_a_time_for_each_step_with_a_model_and_their_sum(tmp_path, clock):
    rows = [{"prompt": p, "response": a} for p, a in zip(PROMPTS, ANSWERS, strict=True)]
    (tmp_path / "rows.jsonl").write_text("\n".join(map(json.dumps, rows)))
    text = "rows: {jsonl: rows.jsonl}\nmodels: {reward: {fake: r}}\nsteps: [reward: {}, random: {}]"
    planned = plan(loads(text, tmp_path), tmp_path / "store")
    seconds = {line.step: line.seconds for line in planned.lines}
    assert seconds["baseline_random"] is None and seconds["reward"] > 3
    assert "time" in repr(planned) and f"about {times.written(seconds['reward'])} for what has a time" in repr(planned)


@pytest.mark.parametrize(
    ("seconds", "written"),
    [(0.21, "0 s"), (4.12, "4.1 s"), (9.96, "10 s"), (89, "89 s"), (700, "12 min"), (12_600, "3.5 h")],
)
def test_a_duration_is_in_the_unit_in_which_one_plans(seconds, written):
    assert times.written(seconds) == written


def test_what_is_embedded_once_is_in_the_time_of_a_step(clock, monkeypatch):
    embed = FakeModel.embed

    def embedded(self, texts):
        clock[0] += EACH * sum(map(len, texts))
        return embed(self, texts)

    monkeypatch.setattr(FakeModel, "embed", embedded)
    row = EACH * AVERAGES.prompt
    for step, once in ((Retrieve(encoder=FakeModel()), 256 * row), (QueryType(encoder=FakeModel()), None)):
        timed = probe.Probe(probe.Texts(PROMPTS, ANSWERS, ANSWERS))
        resumed, whole = (timed.duration(step, 10_000, AVERAGES, first) for first in (False, True))
        assert resumed == (pytest.approx(3), pytest.approx(row, rel=0.02))
        assert whole.once - 3 == pytest.approx(once, rel=0.1) if once else whole.once > 3.05


@pytest.fixture
def products(monkeypatch):
    """A clock that only products of vectors move: a microsecond each; what is multiplied is what a search asks for."""
    now = [0.0]
    monkeypatch.setattr("time.perf_counter", lambda: now[0])

    def search(self, queries, k, leave_out, end=None):
        now[0] += 1e-6 * len(queries) * (len(self.vectors) if end is None else end)
        return [nearest.Hits(np.zeros(0, np.int64), np.zeros(0))] * len(queries)

    monkeypatch.setattr(nearest.Band, "search", search)
    monkeypatch.setattr(
        nearest.Band, "nearest", lambda self, q: now.__setitem__(0, now[0] + 1e-6 * len(q) * len(self.vectors))
    )
    return now


def test_a_search_takes_its_time_for_each_row_and_each_vector_of_the_corpus(products):
    vectors = speed._unit(np.random.default_rng(0).standard_normal((500, 16)))
    found = speed.retrieval_time(Retrieve(encoder=FakeModel()), vectors[:100], vectors, 40.0, True)
    assert found == (0, pytest.approx(1e-6 * 500 * 40))
    assert speed.nearest_time(16, 100_000) == (0, pytest.approx(0.1))


def test_a_bound_is_chosen_once_however_large_the_corpus(products, monkeypatch):
    def rotation(*given):
        products[0] += 0.2

    monkeypatch.setattr(nearest, "rotation", rotation)
    vectors = speed._unit(np.random.default_rng(0).standard_normal((500, 16)))
    found = speed.retrieval_time(Retrieve(encoder=FakeModel()), vectors[:100], vectors, 40.0, True)
    assert found.once == pytest.approx(0.2)
    pairs = 1e-6 * 100_000 * (100_000 - 500) / 2
    assert speed.duplicates_time(Duplicates(), vectors, 100_000).once == pytest.approx(0.2 + pairs)


def test_duplicates_take_a_time_that_grows_with_the_square_of_the_rows(products):
    vectors = speed._unit(np.random.default_rng(0).standard_normal((2000, 16)))
    lasting = [speed.duplicates_time(Duplicates(), vectors, rows).of(rows) for rows in (100_000, 1_000_000)]
    assert lasting == [pytest.approx(1e-6 * rows * (rows - 1024) / 2) for rows in (100_000, 1_000_000)]


def test_a_run_tells_what_its_steps_took_beside_what_was_planned(tmp_path, clock):
    rows = [{"prompt": p, "response": a} for p, a in zip(PROMPTS, ANSWERS, strict=True)]
    (tmp_path / "rows.jsonl").write_text("\n".join(map(json.dumps, rows)))
    text = "rows: {jsonl: rows.jsonl, shard_rows: 10}\nmodels: {reward: {fake: r}}\nsteps: [reward: {}, random: {}]"
    recipe = loads(text, tmp_path)
    planned = {line.step: line.seconds for line in plan(recipe, tmp_path / "store").lines}
    report = run_local(recipe, tmp_path / "store", limit=50)
    reward, drawn = report.times
    assert (reward.step, reward.rows, drawn.step, drawn.planned) == ("reward", 50, "baseline_random", None)
    # The model takes 3 seconds to load, and half of the rest for half of the rows.
    assert reward.planned == pytest.approx(3 + (planned["reward"] - 3) / 2)
    assert reward.seconds == pytest.approx(reward.planned, rel=0.1)
    assert [line.split() for line in times.lines(report.times)][-1][0] == "all"
    # The rest is computed by another configuration of the step, of which the plan said nothing.
    other = loads(text.replace("fake: r", "fake: other"), tmp_path)
    assert [time.planned for time in run_local(other, tmp_path / "store", replace=True).times] == [None, None]
    assert run_local(other, tmp_path / "store").times == []


@pytest.mark.parametrize("content", ["", "{", "[1]", '{"reward": 3}', '{"reward": {"config": "x"}}'])
def test_a_plan_that_cannot_be_read_is_none(tmp_path, content):
    (tmp_path / "plan.json").write_text(content)
    assert times.foretold(tmp_path, {"reward": Reward(reward=FakeModel())}) == {}
