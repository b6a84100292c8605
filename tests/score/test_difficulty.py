"""A prompt's profile against hand-worked numbers, and its steps against what they promise."""

from __future__ import annotations

import json
import math
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from typer.testing import CliRunner

from seamcurate import (
    Difficulty,
    FakeModel,
    Hacked,
    Models,
    Recipe,
    Reward,
    Rollouts,
    Source,
    Store,
    Truth,
    check,
    difficulty,
    plan,
    query,
    run_local,
    seam,
)
from seamcurate.cli.app import app
from seamcurate.errors import RecipeError, StepError
from seamcurate.publish import hub
from seamcurate.run.recipe import loads
from seamcurate.score import golden_check
from seamcurate.score.proportions import wilson
from seamcurate.study import statistics


def row(samples, golden=None, **lists):
    """A row of samples: (text, count, tokens, finish, reward)."""
    return {
        "worse_policy": None
        if samples is None
        else [{"response": t, "count": c, "tokens": n, "finish": f} for t, c, n, f, _ in samples],
        "rewards_policy": None if samples is None else [reward for *_, reward in samples],
        "reward": golden,
        **lists,
    }


SAMPLE = pa.struct([("response", pa.string()), ("count", pa.int32()), ("tokens", pa.int32()), ("finish", pa.string())])
KINDS = {
    "worse_policy": pa.list_(SAMPLE),
    "rewards_policy": pa.list_(pa.float64()),
    "truth_policy": pa.list_(pa.float64()),
    "reward": pa.float64(),
}


def table(*rows):
    names = [name for name in KINDS if name in rows[0]]
    return pa.Table.from_pylist(list(rows), pa.schema([(name, KINDS[name]) for name in names]))


def profiled(*rows, threshold=1.0):
    return Difficulty(threshold=threshold).load(Path())(table(*rows)).to_pylist()


def test_a_profile_weighs_samples_by_how_often_they_were_drawn():
    samples = [
        ("a", 3, 2, "stop", 2.0),
        ("b", 4, 5, "length", 0.0),
        ("a", 1, 3, "stop", 1.0),
        ("c", 2, 1, "stop", None),
    ]
    (profile,) = profiled(row(samples, golden=1.0))
    # Eight rewards: 2, 2, 2, 1, 0, 0, 0, 0.
    rewards = [2.0] * 3 + [1.0] + [0.0] * 4
    interval = statistics.wilson(0.5, 8)
    assert profile == {
        "rollout_pass_rate": 0.5,
        "rollout_pass_low": pytest.approx(interval.low),
        "rollout_pass_high": pytest.approx(interval.high),
        "rollout_reward_mean": pytest.approx(7 / 8),
        "rollout_reward_std": pytest.approx(float(np.std(rewards, ddof=1))),
        "rollout_reward_best": 2.0,
        "rollout_zero_advantage": False,
        "rollout_above_golden": 3 / 8,
        "rollout_samples": 8,
        "rollout_distinct": 3,
        # Ten samples were drawn, four of them cut; two have no reward.
        "rollout_truncated": 0.4,
        "rollout_tokens": pytest.approx((3 * 2 + 4 * 5 + 3 + 2) / 10),
    }


def test_equal_rewards_have_no_spread_and_a_single_sample_none_that_is_known():
    alike, single = profiled(row([("a", 2, 1, "stop", 0.1), ("b", 5, 1, "stop", 0.1)]), row([("a", 1, 1, "stop", 0.3)]))
    assert (alike["rollout_reward_std"], alike["rollout_zero_advantage"]) == (0.0, True)
    assert (single["rollout_reward_std"], single["rollout_zero_advantage"]) == (None, None)
    assert single["rollout_reward_mean"] == 0.3 and single["rollout_above_golden"] is None


def test_a_row_without_samples_is_null_and_one_without_rewards_still_has_lengths():
    nothing, empty, unscored = profiled(row(None), row([]), row([("a", 2, 4, "stop", None)]))
    assert set(nothing.values()) == set(empty.values()) == {None}
    assert unscored["rollout_pass_rate"] is None and unscored["rollout_reward_best"] is None
    assert (unscored["rollout_samples"], unscored["rollout_distinct"], unscored["rollout_tokens"]) == (0, 1, 4.0)


def test_samples_that_a_source_brings_have_no_lengths_and_count_once():
    rows = pa.table({"worse_policy": [[{"response": "a"}, {"response": "b"}]], "rewards_policy": [[1.0, 0.0]]})
    (profile,) = Difficulty(threshold=1).load(Path())(rows).to_pylist()
    assert (profile["rollout_pass_rate"], profile["rollout_samples"], profile["rollout_distinct"]) == (0.5, 2, 2)
    assert profile["rollout_tokens"] is None and profile["rollout_truncated"] is None
    assert profile["rollout_above_golden"] is None


@pytest.mark.parametrize("passed", range(9))
def test_the_interval_of_a_pass_rate_is_wilsons(passed):
    low, high = wilson(np.array([passed / 8, math.nan]), np.array([8.0, 0.0]))
    expected = statistics.wilson(passed / 8, 8)
    assert (low[0], high[0]) == (pytest.approx(expected.low), pytest.approx(expected.high))
    assert math.isnan(low[1]) and math.isnan(high[1])


def test_a_hack_passes_the_reward_and_fails_the_second_opinion():
    #          reward, truth: a hack drawn twice, a sound pass, a miss, a sound fail, and one without a second opinion
    rewards, truths = [0.9, 0.8, 0.1, 0.2, 0.9], [0.0, 1.0, 1.0, 0.0, None]
    samples = [
        (f"{i}", count, 1, "stop", reward)
        for i, (count, reward) in enumerate(zip((2, 1, 1, 4, 9), rewards, strict=True))
    ]
    scored = Hacked(threshold=0.5, truth_threshold=1).load(Path())(
        table(row(samples, truth_policy=truths), row([("a", 1, 1, "stop", 0.9)], truth_policy=[1.0]))
    )
    assert scored.to_pylist() == [
        {
            "hacked_policy": 2 / 8,
            "rollout_false_positive": 2 / 6,
            "rollout_false_negative": 1 / 2,
            "rollout_true_pass_rate": 2 / 8,
        },
        # No sample fails the second opinion, so that there is no rate of false positives.
        {
            "hacked_policy": 0.0,
            "rollout_false_positive": None,
            "rollout_false_negative": 0.0,
            "rollout_true_pass_rate": 1.0,
        },
    ]


def test_a_second_opinion_scores_samples_and_the_golden_response_where_there_is_one():
    model = FakeModel(path="truth")
    rows = pa.table(
        {
            "prompt": ["q", "q", "q"],
            "worse_policy": pa.array(
                [[{"response": "a", "count": 3}, {"response": "b", "count": 1}], None, []], KINDS["worse_policy"]
            ),
            "response": ["golden", "golden", None],
        }
    )
    first, missing, empty = Truth(truth=model).load(Path())(rows).to_pylist()
    ((a, b, golden),) = model.rewards(["q"], [["a", "b", "golden"]])
    assert (first["truth_policy"], first["truth_golden"]) == ([a, b], golden)
    assert first["truth_above_golden"] == (3 * (a > golden) + (b > golden)) / 4
    assert (missing["truth_policy"], missing["truth_golden"], missing["truth_above_golden"]) == (None, golden, None)
    assert (empty["truth_policy"], empty["truth_golden"]) == ([], None)
    (without,) = Truth(truth=model).load(Path())(rows.drop_columns("response").slice(0, 1)).to_pylist()
    assert (without["truth_policy"], without["truth_golden"]) == ([a, b], None)


def recipe(folder, steps, rows=None, **models):
    rows = rows or [{"prompt": f"question {i}", "response": f"answer {i}"} for i in range(7)]
    (folder / "rows.jsonl").write_text("\n".join(map(json.dumps, rows)))
    source = Source(jsonl=str(folder / "rows.jsonl"), shard_rows=3)
    return Recipe(
        rows=source, models=Models(policy=FakeModel(path="p"), reward=FakeModel(path="r"), **models), steps=steps
    )


def test_prompts_alone_have_a_profile_and_nothing_to_compare_with(tmp_path):
    prompts = [{"prompt": f"question {i}"} for i in range(7)]
    steps = [Rollouts(n=4), *seam("policy"), *difficulty(0, truth=FakeModel(path="t"), truth_threshold=0)]
    report = run_local(recipe(tmp_path, steps, prompts), tmp_path / "store")
    assert "seam_policy: 0 of 7 rows scored; see seam_reason_policy" in report.lines
    profiles = query(tmp_path / "store", "SELECT * FROM rows").to_pylist()
    assert all(0 <= profile["rollout_pass_rate"] <= 1 and profile["hacked_policy"] is not None for profile in profiles)
    assert {(p["rollout_above_golden"], p["truth_golden"], p["truth_above_golden"]) for p in profiles} == {(None,) * 3}
    assert {(p["seam_policy"], p["seam_reason_policy"]) for p in profiles} == {
        (None, "no golden response, or it has no reward")
    }
    assert not check(Store(tmp_path / "store")).findings


def test_a_profile_compares_with_golden_rewards_where_a_step_before_gave_them(tmp_path):
    steps = [Rollouts(n=4), *seam("policy"), *difficulty(0)]
    report = run_local(recipe(tmp_path, steps), tmp_path / "store")
    rows = query(tmp_path / "store", "SELECT rollout_above_golden, misjudged_policy FROM rows").to_pylist()
    assert [row["rollout_above_golden"] for row in rows] == [row["misjudged_policy"] for row in rows]
    # Nothing is scored a second time.
    assert run_local(recipe(tmp_path, steps), tmp_path / "store").computed == 0
    assert any(line.startswith("difficulty: pass rate 0.") for line in report.lines)
    # The same without golden rewards are other columns: they are not taken for these.
    with pytest.raises(Exception, match="was made by another configuration"):
        run_local(recipe(tmp_path, [Rollouts(n=4), *difficulty(0)]), tmp_path / "store")


def of_rewards(*best):
    samples = [[(f"{i}", 12, 1, "stop", reward) for i, reward in enumerate(rewards)] for rewards in best]
    step = Difficulty(threshold=1.0)
    return step.facts([step.load(Path())(table(*map(row, samples)))], Path())


def test_a_reward_or_a_threshold_that_tells_nothing_apart_is_warned_of():
    assert of_rewards([0.5, 0.5], [0.5])["warnings"] == [
        "difficulty: all 36 rewards are 0.5: such a reward tells no answers apart"
    ]
    assert of_rewards([0.5, 0.2], [0.1])["warnings"] == [
        "difficulty: no sample passes: the threshold, 1, is above all rewards, which end at 0.5"
    ]
    assert of_rewards([1.5, 1.2])["warnings"] == [
        "difficulty: every sample passes: the threshold, 1, is below all rewards"
    ]
    assert of_rewards([1.5, 0.2], [0.1])["warnings"] == []
    assert "no row has a sample" in of_rewards([None])["summary"]


BINARY = """
rows: {{jsonl: rows.jsonl}}
models: {{policy: {{fake: p}}, reward: {reward}}}
steps:
  - rollouts: {{n: 4}}
  - difficulty: {{{settings}}}
"""
VERIFIER = "{function: exact_match}"


def read(settings, reward="{fake: r}"):
    return loads(BINARY.format(reward=reward, settings=settings)).ready()


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ("", "step difficulty needs a threshold: only rewards of 0 and 1 say what passes; give difficulty a threshold"),
        ("threshold: 3", "threshold 3 lies outside the range of fake r, -2 to 2: no answer would pass"),
        ("threshold: -2", "threshold -2 lies outside the range of fake r, -2 to 2: every answer would pass"),
        ("threshold: 0, truth: {fake: t}", "step hacked_policy needs a truth_threshold: only scores of the truth"),
        ("threshold: 0, truth: {fake: t}, truth_threshold: 9", "truth_threshold 9 lies outside the range of fake t"),
        ("threshold: 0, truth_threshold: 1", "recipe:6: .* truth_threshold is of a second opinion; name one as truth"),
        ("threshold: 0, truth: {classifier: t}", "truth: name a model by one of: sequence_classifier, reward_server"),
        ("threshold: high", "difficulty.threshold: input should be a valid number"),
    ],
)
def test_a_threshold_that_cannot_be_is_refused_before_anything_runs(settings, message):
    with pytest.raises(RecipeError, match=message.replace("[", r"\[")) as refused:
        read(settings)
    assert "\n" not in str(refused.value)


def test_rewards_of_0_and_1_have_a_threshold_of_their_own():
    steps = {step.name: step for step in read(f"truth: {VERIFIER}", VERIFIER)}
    assert steps["difficulty"].threshold == 1
    assert (steps["hacked_policy"].threshold, steps["hacked_policy"].truth_threshold) == (1, 1)
    with pytest.raises(StepError, match="step difficulty needs a threshold"):
        Difficulty().load(Path())
    with pytest.raises(StepError, match="step hacked_policy needs a truth_threshold"):
        Hacked(threshold=1).load(Path())
    with pytest.raises(StepError, match="step truth_policy has no second opinion"):
        Truth().load(Path())


def test_doubtful_golden_responses_are_warned_of_beside_every_seam(tmp_path):
    # Golden responses of the fakes are as good as samples: half of them rank below.
    steps = [Rollouts(n=5), *seam("policy"), *difficulty(0)]
    rows = [{"prompt": f"question {i}", "response": f"answer {i}"} for i in range(40)]
    report = run_local(recipe(tmp_path, steps, rows), tmp_path / "store")
    ((share,),) = (
        query(tmp_path / "store", "SELECT avg((rollout_above_golden > 0.5)::INT) AS share FROM rows")
        .to_pydict()
        .values()
    )
    assert share > 0.2
    (warned,) = [line for line in report.lines if "rank below" in line]
    assert warned.startswith(
        f"warning: seam_policy: {share:.0%} of 40 golden responses rank below most of the policy's own samples"
    )
    assert "by the reward itself" in warned and ".73 to .68" in warned
    shown = CliRunner().invoke(app, ["columns", str(tmp_path / "store")]).output
    assert "golden responses rank below" in shown
    # A second opinion, where there is one, has the last word.
    good = {golden_check.FACT: {"by": "truth", "column": "truth_above_golden", "rows": 40, "below": 2}}
    assert golden_check.warning(golden_check.found([*Store(tmp_path / "store").all_facts(), good])) is None


def test_a_plan_tells_what_a_second_opinion_reads(tmp_path):
    steps = [Rollouts(n=3), *seam("policy"), *difficulty(0, truth=FakeModel(path="t"), truth_threshold=0)]
    lines = {line.step: line.calls for line in plan(recipe(tmp_path, steps), tmp_path / "store").lines}
    assert lines == {
        "worse_policy": 21,
        "reward": 7,
        "rewards_policy": 21,
        "seam_policy": 0,
        "difficulty": 0,
        "truth_policy": 28,
        "hacked_policy": 0,
    }
    assert Reward().name in lines


@pytest.mark.slow
def test_the_card_of_a_split_by_seam_tells_of_doubtful_golden_responses(tmp_path):
    rows = [{"prompt": f"question {i}", "response": f"answer {i}"} for i in range(30)]
    (tmp_path / "rows.jsonl").write_text("\n".join(map(json.dumps, rows)))
    (tmp_path / "recipe.yaml").write_text(
        """
rows: {jsonl: rows.jsonl}
models: {policy: {fake: p}, reward: {fake: r}}
steps: [{rollouts: {n: 5}}, {seam: {variant: policy}}, random]
splits:
  train: {filter: keep_above_lowest.sql, by: seam_policy}
  chance: {filter: keep_above_lowest.sql, by: baseline_random}
"""
    )
    run_local(Recipe.load(tmp_path / "recipe.yaml"), tmp_path / "store")
    card = hub.prepare(tmp_path / "recipe.yaml", Store(tmp_path / "store").open(), "me/mine", "trl").card
    (line,) = [line for line in card.splitlines() if line.startswith("**Golden check**")]
    assert "of 30 golden responses rank below most of the policy's own samples" in line
    # It belongs to the split by SEAM alone.
    assert card.index("### `train`") < card.index(line)
