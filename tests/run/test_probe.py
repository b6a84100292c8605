"""What a plan says a step will take is what the step's model takes for such rows, by a clock that the model moves."""

from __future__ import annotations

import json

import pytest

from seamcurate import FakeModel, OpenAIServer, PolicyLogprobs, Reward, Rewards, plan
from seamcurate.contrast import Embed, Generate
from seamcurate.run import probe, speed
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


def _probe() -> probe.Probe:
    return probe.Probe(probe.Texts(PROMPTS, ANSWERS, ANSWERS))


def test_a_step_takes_what_its_model_takes_for_rows_of_all_lengths(clock):
    read = EACH * sum(len(p) + len(a) for p, a in zip(PROMPTS, ANSWERS, strict=True))
    step = Reward(reward=FakeModel())
    assert _probe().seconds(step, 10_000, AVERAGES, first=False) == pytest.approx(3 + 100 * read, rel=0.02)


def test_likelihoods_are_taken_for_the_share_that_the_reward_model_misjudges(clock):
    timed, all_of_them = _probe(), 8 * EACH * (AVERAGES.prompt + AVERAGES.candidate) * 1000
    assert timed.seconds(Rewards(reward=FakeModel()), 1000, AVERAGES, False) == pytest.approx(3 + all_of_them, rel=0.05)
    share = (timed.seconds(PolicyLogprobs(policy=FakeModel()), 1000, AVERAGES, False) - 3) / all_of_them
    # The fake draws its rewards evenly: about half of the answers are above another.
    assert share == pytest.approx(timed._misjudged, rel=0.05) and 0.2 < share < 0.8
    everything = PolicyLogprobs(policy=FakeModel(), likelihoods="all")
    assert timed.seconds(everything, 1000, AVERAGES, False) == pytest.approx(3 + all_of_them, rel=0.05)


def test_what_is_not_computed_here_or_is_done_is_not_timed(clock):
    paid = OpenAIServer(openai_server="m", base_url="http://127.0.0.1:1/v1")
    assert _probe().seconds(Generate(generator=paid), 10, AVERAGES, True) is None
    assert _probe().seconds(Reward(reward=FakeModel()), 0, AVERAGES, True) is None
    assert _probe().seconds(Embed(encoder=FakeModel()), 10, AVERAGES, True) == pytest.approx(3)


def test_a_model_too_large_for_the_memory_is_not_loaded_and_that_is_said(clock, tmp_path, capsys):
    (tmp_path / "model").mkdir()
    with (tmp_path / "model" / "model.safetensors").open("wb") as file:
        file.truncate(2**50)
    large = FakeModel(path=str(tmp_path / "model"))
    assert _probe().seconds(Reward(reward=large), 10, AVERAGES, True) is None and not clock[0]
    assert "too much for this machine" in capsys.readouterr().err


def test_rows_of_a_probe_are_spread_over_the_lengths_from_its_beginning_on():
    taken = probe._spread(probe.Texts(PROMPTS, ANSWERS, ANSWERS))
    sizes = [len(p) + len(a) for p, a in zip(taken.prompts, taken.responses, strict=True)]
    whole = [len(p) + len(a) for p, a in zip(PROMPTS, ANSWERS, strict=True)]
    assert len(set(taken.prompts)) == 32
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
    assert "time" in repr(planned) and f"about {probe.duration(seconds['reward'])} for what has a time" in repr(planned)


@pytest.mark.parametrize(("seconds", "written"), [(0.2, "0 s"), (89, "89 s"), (700, "12 min"), (12_600, "3.5 h")])
def test_a_duration_is_in_the_unit_in_which_one_plans(seconds, written):
    assert probe.duration(seconds) == written


def test_a_run_tells_what_a_long_step_took_and_what_its_first_seconds_foretold(clock):
    watch = speed.Watch("reward", 100)
    clock[0] += 5  # To load the model.
    for _ in range(10):
        clock[0] += 4
        watch.done(10)
    # Of 9 s before the first rows and 4 s for each ten, it foretold what came.
    assert watch.told() == ["reward: took 45 s; its first seconds foretold 45 s"]
    assert speed.Watch("reward", 100).told() == []
