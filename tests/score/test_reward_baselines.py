"""Baselines of later work: formulas by hand, and columns against the rewards they are made of."""

from __future__ import annotations

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from seamcurate import Retrieve, Source, Store, run_local, seam
from seamcurate.errors import StepError
from seamcurate.run.recipe import STEPS
from seamcurate.score.reward_baselines import (
    LengthCalibrated,
    RewardReliability,
    RewardSpread,
    Rip,
    determination,
    lowess,
    mean_misjudgement,
    reward_gap,
    reward_margin,
    reward_spread,
)
from seamcurate.words import split


def test_formulas_by_hand():
    worse = [0.2, 1.5, 2.0, 0.9]
    assert reward_gap(1.0, worse) == 1.8 and reward_gap(3.0, worse) == 2.8 and reward_gap(None, worse) == 1.8
    assert reward_spread([1.0, 3.0]) == 1.0 and reward_spread([1.0]) is None and reward_spread([]) is None
    assert reward_margin(1.0, worse) == pytest.approx(-0.15)
    assert mean_misjudgement(1.0, worse) == pytest.approx(0.375)
    assert determination(np.array([1.0, 2, 3]), np.array([1.0, 3, 2])) == pytest.approx(0.25)
    assert determination(np.array([1.0, 2]), np.array([1.0, 2])) is None
    assert determination(np.array([1.0, 2, 3]), np.array([5.0, 5, 5])) is None


def test_lowess_by_hand():
    x, y = np.arange(5.0), np.array([0.0, 10.0, 2.0, 30.0, 4.0])
    # Four of five points, around 1: distances 1, 0, 1, 2, so that the farthest weighs nothing and (1 - 1/8)^3 the others.
    side = (1 - 0.5**3) ** 3
    expected = (side * (y[0] + y[2]) + y[1]) / (2 * side + 1)
    assert lowess(x, y, np.array([1.0]), fraction=0.8, iterations=0) == pytest.approx([expected])
    # Of three points around an inner one, both sides are farthest.
    assert lowess(x, y, x[1:4], fraction=0.6, iterations=0) == pytest.approx(y[1:4])


@given(st.floats(-5, 5), st.floats(-5, 5), st.integers(20, 60), st.sampled_from([0.3, 2 / 3, 1.0]))
def test_lowess_gives_a_line_back(slope, start, count, fraction):
    x = np.linspace(0, 100, count)
    at = np.linspace(0, 100, 7)
    assert lowess(x, start + slope * x, at, fraction) == pytest.approx(start + slope * at, abs=1e-6)


def test_lowess_forgets_outliers_and_takes_equal_lengths():
    draw = np.random.default_rng(0)
    x = np.repeat(np.arange(40.0), 3)
    y = x / 10 + draw.normal(0, 0.05, len(x))
    y[60] += 50
    at = np.array([20.0])
    assert abs(lowess(x, y, at, 0.3)[0] - 2.0) < 0.05 < abs(lowess(x, y, at, 0.3, iterations=0)[0] - 2.0)
    assert lowess(np.ones(4), np.array([1.0, 2, 3, 6]), np.ones(1), iterations=0) == pytest.approx([3.0])


def column_of(step, shared, **columns):
    return step.load(shared)(pa.table(columns)).to_pylist()


LISTS = {
    "worse_gpt": [[{"response": "a b c"}, {"response": "d"}], [{"response": "e f"}], [], None],
    "rewards_gpt": pa.array([[1.0, -2.0], [None], [], None], pa.list_(pa.float64())),
}


def test_rip_takes_the_lowest_rewarded_candidate_and_null_where_there_is_none(tmp_path):
    rows = column_of(Rip(variant="gpt"), tmp_path, reward=[0.5, 0.5, 0.5, 0.5], **LISTS)
    assert [tuple(row.values()) for row in rows] == [(-2.0, 1, 3.0), *[(None, None, None)] * 3]


def test_spread_and_margin_are_null_where_not_computable(tmp_path):
    rewards = pa.array([[1.0, 3.0], [None, 2.0], [], None, [1.0, 3.0]], pa.list_(pa.float64()))
    golden = pa.array([2.5, 0.0, 1.0, 1.0, None], pa.float64())
    rows = column_of(RewardSpread(variant="gpt"), tmp_path, reward=golden, rewards_gpt=rewards)
    assert [tuple(row.values()) for row in rows] == [(1.0, 0.5), (None, -2.0), (None, None), (None, None), (1.0, None)]


class Rows:
    def __init__(self, **columns):
        self.table = pa.table(columns)

    def rows(self, columns):
        yield self.table.select(list(columns))


def test_a_misjudgement_that_length_alone_made_is_gone_after_calibration(tmp_path):
    """Rewards are a tenth of the length, but for one row whose candidate earns 5 beyond."""
    lengths = [(10 + i, 30 + 2 * i) for i in range(60)]
    data = {
        "response": ["x" * one for one, _ in lengths],
        "reward": [one / 10 for one, _ in lengths],
        "worse_gpt": [[{"response": "x" * other}] for _, other in lengths],
        "rewards_gpt": [[other / 10 + (5 if i == 30 else 0)] for i, (_, other) in enumerate(lengths)],
    }
    step = LengthCalibrated(variant="gpt")
    step.prepare(Rows(**data), tmp_path)
    rows = column_of(step, tmp_path, **data)
    values = [row["baseline_calibrated_misjudgement_gpt"] for row in rows]
    assert values[30] == pytest.approx(5.0, abs=1e-3) and max(values[:30] + values[31:]) < 1e-3
    assert rows[30]["baseline_calibrated_misjudged_gpt"] == 1.0
    assert step.facts([], tmp_path)["reward_of_length"] == pytest.approx(13.8, abs=0.2)
    empty = {**LISTS, "response": ["a", "b", "c", "d"], "reward": pa.array([None, 1.0, 1.0, 1.0], pa.float64())}
    assert [set(row.values()) for row in column_of(step, tmp_path, **empty)] == [{None}] * 4


@pytest.mark.parametrize("reward", [lambda length: 1.0, lambda length: 0.3 * length + 1e6])
def test_the_rounding_of_the_curve_is_no_misjudgement(reward, tmp_path):
    lengths = [(10 + i, [3, 30 + 2 * i, 7 + i]) for i in range(60)]
    data = {
        "response": ["x" * golden for golden, _ in lengths],
        "reward": [reward(golden) for golden, _ in lengths],
        "worse_gpt": [[{"response": "x" * other} for other in others] for _, others in lengths],
        "rewards_gpt": [[reward(other) for other in others] for _, others in lengths],
    }
    step = LengthCalibrated(variant="gpt", fraction=1.0)
    step.prepare(Rows(**data), tmp_path)
    assert {tuple(row.values()) for row in column_of(step, tmp_path, **data)} == {(0.0, 0.0)}


def test_nothing_to_calibrate_by_is_an_error(tmp_path):
    with pytest.raises(StepError, match="fewer than three rewards"):
        LengthCalibrated(variant="gpt").prepare(
            Rows(response=["a"] * 4, reward=pa.nulls(4, pa.float64()), **LISTS), tmp_path
        )


def test_a_sample_of_many_points_is_taken_from_all_over(tmp_path):
    class Many(Rows):
        def rows(self, columns):
            for start in range(0, 6000, 1000):
                sizes = range(start, start + 1000)
                yield pa.table(
                    {
                        "response": ["x" * (i % 997 + 1) for i in sizes],
                        "reward": [float(i >= 3000) for i in sizes],
                        "worse_gpt": pa.array([[]] * 1000, LISTS_TYPE),
                        "rewards_gpt": pa.array([[]] * 1000, pa.list_(pa.float64())),
                    }
                ).select(list(columns))

    step = LengthCalibrated(variant="gpt", fraction=1.0)
    step.prepare(Many(), tmp_path)
    curve = step.facts([], tmp_path)["curve"]
    assert np.mean(curve["reward"]) == pytest.approx(0.5, abs=0.1)


LISTS_TYPE = pa.list_(pa.struct([("response", pa.string())]))


def test_reliability_is_r2_within_bands_of_equally_many_rows(tmp_path):
    rewards = pa.array([1.0, 2.0, 3.0, 11.0, 12.0, 13.0, None], pa.float64())
    step = RewardReliability(truth="votes", bands=2)
    data = {"reward": rewards, "votes": [10, 30, 20, 1, 2, 3, 5]}
    step.prepare(Rows(**data), tmp_path)
    rows = column_of(step, tmp_path, **data)
    assert [row["baseline_reward_band"] for row in rows] == [1, 1, 1, 2, 2, 2, None]
    assert [row["baseline_reward_reliability"] for row in rows] == [
        *[pytest.approx(0.25)] * 3,
        *[pytest.approx(1.0)] * 3,
        None,
    ]
    assert step.facts([], tmp_path)["rows"] == [3, 3]
    with pytest.raises(StepError, match="holds string, not numbers"):
        step.prepare(Rows(reward=[1.0], votes=["many"]), tmp_path)


@pytest.mark.slow
def test_all_run_in_a_recipe_and_agree_with_the_candidates(recipe, files, tmp_path):
    table = pq.read_table(files[0])
    votes = pa.array([i % 7 for i in range(table.num_rows)])
    pq.write_table(table.append_column("votes", votes), files[0])
    baselines = (Rip(), RewardSpread(), LengthCalibrated(), RewardReliability(truth="votes", bands=4))
    assert [STEPS[key] for key in ("rip", "reward_spread", "length_calibrated", "reward_reliability")] == [
        type(step) for step in baselines
    ]
    steps = (Retrieve(k=5, band=(0.5, 0.9)), *seam("contrast", k=5), *baselines)
    run_local(recipe(rows=Source(parquet=str(files[0]), shard_rows=15), steps=steps, splits={}), tmp_path / "store")
    store = Store(tmp_path / "store").open()
    names = [name for step in baselines for name in step.adds.names]
    rows = [
        row for part in store.rows(["reward", "worse_contrast", "rewards_contrast", *names]) for row in part.to_pylist()
    ]
    some = 0
    for row in rows:
        rewards = row["rewards_contrast"] or []
        assert row["baseline_reward_band"] in (1, 2, 3, 4) and 0 <= row["baseline_reward_reliability"] <= 1
        if not rewards:
            assert row["baseline_rejected_reward_contrast"] is row["baseline_calibrated_misjudgement_contrast"] is None
            continue
        some += 1
        rejected = row["worse_contrast"][rewards.index(min(rewards))]["response"]
        assert row["baseline_rejected_reward_contrast"] == min(rewards)
        assert row["baseline_rejected_length_contrast"] == len(split(rejected))
        assert row["baseline_reward_gap_contrast"] == max([row["reward"], *rewards]) - min(rewards)
        assert row["baseline_reward_margin_contrast"] == pytest.approx(row["reward"] - np.mean(rewards))
        assert row["baseline_calibrated_misjudgement_contrast"] >= 0
        assert (row["baseline_calibrated_misjudgement_contrast"] > 0) == (
            row["baseline_calibrated_misjudged_contrast"] > 0
        )
    assert some > 10
