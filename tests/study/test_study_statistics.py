"""Every statistic against numbers worked by hand, or against scipy's own where the hand would only copy it."""

from __future__ import annotations

import math
import warnings

import numpy as np
import pytest
from scipy import stats

from seamcurate.study import statistics
from seamcurate.study.statistics import Interval


def test_wilson_is_scipys_and_never_leaves_the_unit_interval():
    for right, n in ((7, 10), (0, 12), (20, 20), (605, 1000)):
        ours, theirs = statistics.wilson(right / n, n), stats.binomtest(right, n).proportion_ci(method="wilson")
        assert ours == pytest.approx((right / n, theirs.low, theirs.high, n))
    # (7 + 1.92) / (10 + 3.84) = .6445 in the middle
    assert sum(statistics.wilson(0.7, 10)[1:3]) / 2 == pytest.approx(0.6445, abs=1e-4)


def test_a_mean_has_students_interval_and_one_value_none():
    # t(.975, 2) = 4.302653, s = 1, so half = 4.302653 / sqrt(3)
    assert statistics.mean([1, 2, 3]) == pytest.approx((2, 2 - 2.484138, 2 + 2.484138, 3), abs=1e-5)
    one = statistics.mean([0.4])
    assert one.estimate == 0.4 and math.isnan(one.low) and statistics.shown(one) == "0.400"


def test_seeds_that_match_are_paired_and_others_are_not():
    paired = statistics.difference({1: 0.5, 2: 0.7, 3: 0.9}, {1: 0.4, 2: 0.5, 3: 0.6})
    # gaps .1, .2, .3: mean .2, s = .1, t = .2 / (.1 / sqrt 3) = 3.4641, p = .0742 at 2 degrees
    assert paired.test == "paired t" and paired.interval.estimate == pytest.approx(0.2)
    assert paired.p == pytest.approx(0.07418, abs=1e-5)
    assert paired.interval.low == pytest.approx(0.2 - 4.302653 * 0.1 / math.sqrt(3), abs=1e-6)
    apart = statistics.difference({1: 0.5, 2: 0.7, 3: 0.9}, {4: 0.4, 5: 0.5, 6: 0.6})
    expected = stats.ttest_ind([0.5, 0.7, 0.9], [0.4, 0.5, 0.6], equal_var=False)
    assert apart.test == "Welch t" and apart.p == pytest.approx(expected.pvalue)
    assert apart.interval[1:3] == pytest.approx(tuple(expected.confidence_interval()))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        # Runs that are all alike are so but for rounding.
        alike = statistics.difference({1: 0.1, 2: 0.1, 3: 0.1}, {4: 0.4, 5: 0.5, 6: 0.6})
    assert alike.interval.high == pytest.approx(-0.4 + 4.302653 * 0.1 / math.sqrt(3), abs=1e-6)
    single = statistics.difference({1: 0.5}, {1: 0.4})
    assert single.test == "none" and math.isnan(single.p) and single.interval.estimate == pytest.approx(0.1)
    # One seed shows nothing.
    assert not single.interval.above_zero and not single.interval.below_zero


def test_gaps_that_are_all_the_same_are_tested_by_their_signs():
    two = statistics.difference({1: 0.5, 2: 0.6}, {1: 0.4, 2: 0.5})
    # Two coins fall alike half of the time, six once in 32.
    assert (two.p, two.test) == (0.5, "sign test") and not two.interval.above_zero
    six = statistics.difference({s: 0.5 + s for s in range(6)}, {s: 0.4 + s for s in range(6)})
    assert six.p == 2**-5 and six.interval.above_zero
    assert statistics.difference({1: 0.5, 2: 0.6}, {1: 0.5, 2: 0.6}).p == 1.0


def test_what_rounding_leaves_of_equal_values_is_no_difference():
    same = statistics.difference({1: 0.1 + 0.2, 2: 0.1 + 0.2}, {1: 0.3, 2: 0.3})
    assert same == statistics.MethodGap(Interval(0.0, 0.0, 0.0, 2), 1.0, "paired t")
    # What is small as a whole is not rounding.
    small = statistics.difference({1: 1.1e-13, 2: 1.3e-13, 3: 1.2e-13}, dict.fromkeys((1, 2, 3), 1e-14))
    assert small.test == "paired t" and small.p == pytest.approx(
        stats.ttest_rel([1.1, 1.3, 1.2], [0.1] * 3).pvalue, rel=1e-6
    )


def test_fewer_than_six_values_are_not_resampled_to_an_interval():
    five, six = (statistics.bootstrap_mean(np.arange(1.0, n + 1)) for n in (5, 6))
    assert math.isnan(five.low) and not five.above_zero and six.above_zero
    # Several rows of few groups are few all the same.
    assert math.isnan(statistics.bootstrap_mean(np.arange(20.0), [i % 5 for i in range(20)]).low)


def test_shares_that_are_all_alike_have_the_exact_interval():
    for n in (1, 2, 6, 40):
        for value in (0.0, 1.0):
            ours = statistics.bootstrap_share(np.full(2 * n, value), [i // 2 for i in range(2 * n)])
            theirs = stats.binomtest(round(value * n), n).proportion_ci(method="exact")
            assert ours == pytest.approx((value, theirs.low, theirs.high, n))


def test_no_sign_is_rounded_away():
    assert statistics.shown(Interval(0.012, 0.0003, 0.024, 9), "+.3f") == "+0.0120 [+0.0003, +0.0240]"
    assert statistics.shown(Interval(-3e-6, -5e-6, -1e-6, 9), "+.3f") == "-0.000003 [-0.000005, -0.000001]"
    assert statistics.shown(Interval(7e-6, 6e-6, 8e-6, 9)) == "0.000007 [0.000006, 0.000008]"
    assert statistics.percent(Interval(0.0002, 0.0001, 0.0004, 9), signed=True) == "+0.02 points [+0.01, +0.04]"
    # What is not told from nothing keeps its form.
    assert statistics.shown(Interval(0.0002, -0.02, 0.03, 9), "+.3f") == "+0.000 [-0.020, +0.030]"
    assert statistics.shown(Interval(0.0, 0.0, 0.0, 9), "+.3f") == "+0.000 [+0.000, +0.000]"


def test_holm_multiplies_the_smallest_by_how_many_there_are():
    assert statistics.holm([0.01, 0.04, 0.03]) == pytest.approx([0.03, 0.06, 0.06])
    adjusted = statistics.holm([0.01, math.nan, 0.5])
    assert adjusted[0] == 0.02 and math.isnan(adjusted[1]) and adjusted[2] == 0.5


def test_an_interval_excludes_zero_exactly_where_holms_p_is_below_5_percent():
    rng = np.random.default_rng(1)
    disagreements, outcomes = [], set()
    for _ in range(60):
        luck = 0.4 * rng.normal(size=5)
        base = {seed: luck[seed] for seed in range(5)}
        runs = {
            m: {seed: luck[seed] + rng.normal(0.4 * m, 0.4) for seed in range(4 if m == 3 else 5)} for m in range(4)
        }
        # One method shares no seed with the baseline, and one differs by the same amount in every seed.
        runs[1] = {seed + 10: value for seed, value in runs[1].items()}
        runs[2] = {seed: value + 0.25 for seed, value in base.items()} if rng.random() < 0.2 else runs[2]
        for method, gap in statistics.differences(runs, base).items():
            excludes = gap.interval.above_zero or gap.interval.below_zero
            outcomes.add((method, excludes))
            if excludes != (gap.p < 0.05):
                disagreements.append((method, gap))
    assert disagreements == [] and len(outcomes) == 8


def test_holms_factor_widens_each_interval_and_a_single_difference_keeps_its_own():
    base = {0: 0.0, 1: 0.1, 2: 0.3, 3: 0.2}
    runs = {"a": {0: 1.0, 1: 1.2, 2: 1.1, 3: 1.3}, "b": {0: 0.1, 1: 0.4, 2: 0.2, 3: 0.5}}
    alone = {method: statistics.difference(by_seed, base) for method, by_seed in runs.items()}
    both = statistics.differences(runs, base)
    # The smallest of two is doubled: its interval is that of 97.5 %; the larger keeps its own 95 %.
    gaps = np.array([1.0, 1.1, 0.8, 1.1])
    half = stats.t.ppf(0.9875, 3) * gaps.std(ddof=1) / 2
    assert both["a"].p == pytest.approx(2 * alone["a"].p)
    assert both["a"].interval == pytest.approx((1.0, 1.0 - half, 1.0 + half, 4))
    assert both["b"] == alone["b"]
    assert statistics.differences({"b": runs["b"]}, base) == {"b": alone["b"]}
    single = statistics.differences({"a": {0: 1.0}}, base)["a"]
    assert math.isnan(single.p) and math.isnan(single.interval.low)


def test_a_bootstrap_over_groups_is_wider_than_over_their_rows():
    groups = [i // 10 for i in range(200)]
    values = np.array([float(group % 2) for group in groups])
    alone, together = statistics.bootstrap_mean(values), statistics.bootstrap_mean(values, groups)
    assert alone.estimate == together.estimate == 0.5 and (alone.n, together.n) == (200, 20)
    assert together.high - together.low > 2 * (alone.high - alone.low)
    # The mean of 200 fair coins lies within .5 ± 1.96 · .5 / sqrt(200) = .0693
    assert alone.high == pytest.approx(0.5693, abs=0.01)


def test_a_bootstrap_weighs_groups_by_their_rows():
    values, groups = np.array([[1.0], [1.0], [1.0], [0.0]]), ["a", "a", "a", "b"]
    assert set(np.round(statistics.resampled(values, groups)[:, 0], 6)) == {0.0, 0.75, 1.0}


def test_rows_that_are_alike_are_resampled_as_any_others():
    values = np.array([[1.0, 0.0]] * 30 + [[0.0, 1.0]] * 90 + [[1.0, 1.0]] * 80)
    quick, plain = statistics.resampled(values), statistics.resampled(values, list(range(200)))
    assert quick.shape == plain.shape == (2000, 2)
    assert quick.mean(axis=0) == pytest.approx([0.55, 0.85], abs=0.003)
    assert quick.std(axis=0) == pytest.approx(plain.std(axis=0), rel=0.08)
    assert np.corrcoef(quick.T)[0, 1] == pytest.approx(np.corrcoef(plain.T)[0, 1], abs=0.08)


def test_shares_of_single_pairs_are_wilsons_and_of_several_a_prompts_bootstrapped():
    right = np.array([1.0, 0.0, 1.0, 1.0])
    assert statistics.share(right, list("abcd")) == statistics.wilson(0.75, 4)
    assert statistics.share(right, list("aabb")).n == 2
    assert statistics.shown(statistics.share(np.full(4, 0.5), list("abcd")), ".1f") == "0.5"


def test_correlations_of_a_worked_example():
    # 11 points whose ranks differ by Σd² = 10: 1 − 6·10 / (11·120) = .954545
    x, y = list(range(1, 12)), [2, 1, 4, 3, 6, 5, 8, 7, 10, 9, 11]
    assert statistics.spearman(x, y) == pytest.approx(0.954545, abs=1e-6)
    assert statistics.pearson([1, 2, 3], [1, 2, 4]) == pytest.approx(0.981981, abs=1e-6)
    assert math.isnan(statistics.spearman([1, 2, 3], [5, 5, 5]))
    # Rows without both values do not count; two rows are too few.
    assert statistics.spearman([1, 2, math.nan, 3, 9], [2, 4, 0, 5, math.inf]) == 1.0
    assert math.isnan(statistics.spearman([1, 2, math.nan], [2, 4, 0]))
    rng = np.random.default_rng(0)
    x, y = rng.integers(0, 9, 50), rng.integers(0, 9, 50)
    assert statistics.spearman(x, y) == pytest.approx(stats.spearmanr(x, y).statistic, abs=1e-12)


def test_fishers_interval_is_scipys():
    rng = np.random.default_rng(0)
    x = rng.normal(size=30)
    y = x + rng.normal(size=30)
    found = stats.pearsonr(x, y)
    ours = statistics.correlation(float(found.statistic), 30, ranks=False)
    assert ours[1:3] == pytest.approx(tuple(found.confidence_interval()))
    ranks = statistics.correlation(float(found.statistic), 30, ranks=True)
    assert ranks.high - ranks.low > ours.high - ours.low


def test_chance_of_an_overlap_by_counting():
    # Two pairs out of four share both with probability 1/6, at least one with 1 − 1/6
    assert statistics.beyond_chance(2, 2, 2, 4) == pytest.approx(1 / 6)
    assert statistics.beyond_chance(1, 2, 2, 4) == pytest.approx(5 / 6)


def test_intervals_are_written_with_their_unit():
    value = Interval(0.381, 0.364, 0.399, 1000)
    assert statistics.percent(value) == "38.1 % [36.4, 39.9]"
    assert statistics.percent(value, signed=True) == "+38.1 points [+36.4, +39.9]"
