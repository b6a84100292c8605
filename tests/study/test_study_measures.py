"""What each study measures, against numbers worked by hand: values in, a frozen result out, no file and no figure."""

from __future__ import annotations

import math

import numpy as np
import pytest

from seamcurate.errors import StudyError
from seamcurate.study import (
    alignment_tax,
    answers,
    filter_rates,
    grid,
    likelihoods,
    methods,
    overlaps,
    pairs,
    proxies,
    transfer,
    winrates,
)
from seamcurate.study.judged_pairs import Pairs
from seamcurate.study.likelihoods import SetLikelihood
from seamcurate.study.proxies import Checkpoint


def seeds(*values):
    return dict(enumerate(values))


def test_a_grid_is_averaged_over_complete_levels_and_its_halves_are_compared():
    cells = {(p, r): seeds(1 + p + min(r, 1), 2 + p + min(r, 1)) for p in (0.0, 1.0) for r in (0.0, 1.0, 2.0)}
    measured = grid.measure(cells)
    assert (measured.policies, measured.rewards) == ([0, 1], [0, 1, 2])
    # Over policies 0 and 1, seed 0: (1 + 2) / 2 = 1.5 at reward 0, 2.5 above.
    assert measured.by_reward == {0: seeds(1.5, 2.5), 1: seeds(2.5, 3.5), 2: seeds(2.5, 3.5)}
    halves = measured.halves["reward model"]
    assert list(measured.halves) == ["reward model"] and (halves.first, halves.middle, halves.last) == (0, 1, 2)
    assert halves.early.estimate == 1 and halves.late.estimate == 0 and halves.slowdown.estimate == 1
    # Without the best cell, reward 2 has runs with policy 0 alone: only policy 0 compares all reward models.
    del cells[1.0, 2.0]
    assert grid.measure(cells).by_reward == {0: seeds(1, 2), 1: seeds(2, 3), 2: seeds(2, 3)}
    assert grid.measure({(0.0, 0.0): seeds(1), (1.0, 1.0): seeds(1), (2.0, 2.0): seeds(1)}).halves == {
        "reward model": None,
        "policy": None,
    }


def test_quality_elsewhere_is_a_multiple_of_that_at_home_within_a_seed():
    runs = {("policy", "sft"): seeds(2.0, 4.0), ("policy", "rl"): seeds(1.0, 1.0)}
    home, away = transfer.measure(runs)
    # (1/2 + 1/4) / 2, where the ratio of means would be 1/3.
    assert home.at_home and not away.at_home and away.ratio.estimate == 0.375 and away.quality.estimate == 1
    with pytest.raises(StudyError, match="no model was measured on other data"):
        transfer.measure({("policy", "sft"): seeds(1.0)})


def test_methods_are_compared_with_the_baseline_and_the_best_with_simple_ones():
    runs = {
        "full": seeds(0.0, 0.0, 0.0),
        "random": seeds(0.1, 0.3, 0.2),
        "seam": seeds(0.5, 0.6, 0.4),
        "rip": seeds(1.0),
    }
    comparison = methods.measure(runs, "full")
    assert list(comparison.runs) == ["rip", "seam", "random", "full"] and comparison.best == "seam"
    assert set(comparison.gaps) == {"random", "seam", "rip"}
    # Gaps .5, .6, .4: t = .5 / (.1 / √3) = 8.66, p = .0131, doubled because `rip` has no p.
    assert comparison.gaps["seam"].p == pytest.approx(2 * 0.01307, abs=1e-4)
    assert comparison.gaps["seam"].interval.estimate == pytest.approx(0.5)
    assert list(comparison.margins) == ["random"]
    assert comparison.margins["random"].above.estimate == pytest.approx(0.3)


def test_the_peak_of_a_sweep_is_held_against_its_ends_and_the_full_data():
    sweep = filter_rates.Sweep(
        "full",
        seeds(0.0, 0.1),
        {"seam": {0.1: seeds(0.2, 0.3), 0.2: seeds(0.5, 0.7), 0.4: seeds(0.4, 0.5)}, "random": {0.2: seeds(0.1, 0.1)}},
    )
    peak = filter_rates.measure(sweep)
    assert (peak.method, peak.rate, peak.rates) == ("seam", 0.2, [0.1, 0.2, 0.4])
    assert peak.quality.estimate == pytest.approx(0.6) and peak.rise.estimate == pytest.approx(0.35)
    assert peak.fall.estimate == pytest.approx(-0.15) and peak.above_full.interval.estimate == pytest.approx(0.55)
    # The baseline at the same rate: .6 − .1.
    assert peak.margins["random"].above.estimate == pytest.approx(0.5)
    assert next(iter(sweep.runs)) == ("full", 0.0)


def members(count, *rows):
    marked = np.zeros(count, bool)
    marked[list(rows)] = True
    return marked


def test_overlap_is_twice_the_shared_rows_over_both_sizes():
    low = overlaps.LowRows(
        "seam_x",
        0.2,
        {"a": members(20, 0, 1, 2, 3), "b": members(20, 2, 3, 4, 5)},
        {kind: members(20, 0, 1, 2, 3) for kind in ("longest", "shortest", "repetitive")},
    )
    measured = overlaps.measure(low)
    [pair] = measured.between_models
    # 2 · 2 / (4 + 4), by chance 2 · 4 · 4 / 20 / 8.
    assert pair.share.estimate == 0.5 and pair.chance == pytest.approx(0.2) and measured.mean.estimate == 0.5
    assert (pair.size_first, pair.size_second, measured.rows) == (4, 4, 20)
    # 1 − C(16, 4) / C(20, 4) − 4 · C(16, 3) / C(20, 4).
    assert pair.p == pytest.approx(1 - (1820 + 4 * 560) / 4845)
    # The longest are all of a's and half of b's.
    assert measured.margins["picking the longest"].above.estimate == pytest.approx(0.5 - 0.75)
    # Both the interval and p have to exclude chance.
    assert not pair.beyond_chance


@pytest.mark.parametrize(
    ("low", "p", "beyond"), [(0.3, 0.01, True), (0.3, 0.04, False), (0.1, 0.01, False)], ids=["both", "p", "interval"]
)
def test_a_pair_shares_more_than_chance_where_its_interval_and_p_agree(low, p, beyond):
    share = overlaps.Interval(0.5, low, 0.7, 100)
    assert overlaps.Overlap("a", "b", 20, 20, share, 0.2, p).beyond_chance == beyond


def test_counted_overlaps_are_averaged_within_a_seed_first():
    values = {"rows": [100, 100, 100], "lowest_first": [20] * 3, "lowest_second": [20] * 3, "shared": [10, 20, 5]}
    counts = overlaps.Counts(
        ["a"] * 3, ["b", "c", "b"], ["0", "0", "1"], {}, {k: np.array(v, np.float64) for k, v in values.items()}
    )
    measured = overlaps.measure_counts(counts)
    assert [pair.share.estimate for pair in measured.pairs] == [0.5, 1.0, 0.25]
    # Two seeds: .75 and .25; the estimate is over all pairs.
    assert measured.mean.n == 2 and measured.mean.estimate == pytest.approx(1.75 / 3)
    assert measured.labels[0] == "a – b, seed 0"


def test_likelihoods_are_ordered_and_compared_at_equal_lengths():
    rows = range(20)
    sets = {
        "attacked": {(0, str(i)): SetLikelihood(-3.0 - 0.1 * (i % 4), 10.0 + i % 4) for i in rows},
        "golden": {(0, str(i)): SetLikelihood(-3.0, 10.0) for i in rows},
    }
    measured = likelihoods.measure(sets)
    assert list(measured.means) == ["golden", "attacked"] and measured.tokens == {"golden": 10, "attacked": 11.5}
    contrast = measured.contrast
    assert contrast.shown and (contrast.tops, contrast.bottoms) == (["golden"], ["attacked"])
    # .1 a token longer, of which nothing is left at equal lengths.
    assert contrast.rows == 20 and contrast.difference.estimate == pytest.approx(0.15)
    assert contrast.at_equal_length.estimate == pytest.approx(0.0, abs=1e-9)
    assert likelihoods.measure({"golden": sets["golden"]}).contrast is None


def test_pairs_are_counted_by_subset_and_compared_with_baselines():
    judged = Pairs(
        ["p0", "p1", "p2", "p3"],
        ["x", "x", "y", "y"],
        {"small": np.array([1.0, 0.0, 0.0, 0.0]), "large": np.array([1.0, 1.0, 0.0, math.nan])},
        {"random": np.full(4, 0.5)},
    )
    shares = pairs.measure("mismatch", judged, wrong=True)
    rows = {(row.scorer, row.subset): (row.share.estimate, row.pairs) for row in shares.rows}
    assert rows["small", "all"] == (0.75, 4) and rows["large", "all"] == (pytest.approx(1 / 3), 3)
    assert rows["large", "y"] == (1.0, 1) and rows["random", "x"] == (0.5, 2)
    # Wrong on fewer of the three pairs that both have: (0 − 1 + 0) / 3.
    assert shares.change.estimate == pytest.approx(-1 / 3) and shares.counts == {"small": 4, "large": 3}
    assert shares.margins["small"]["random"].above.estimate == -0.25
    assert pairs.measure("preference", judged, wrong=False).overall["small"].estimate == 0.25
    with pytest.raises(StudyError, match="preference: r gave no pair a reward"):
        pairs.measure("preference", judged._replace(models={"r": np.full(4, math.nan)}), wrong=False)


def checkpoints(golds, lengths=None):
    return [Checkpoint(float(i), float(i), g, math.nan if lengths is None else lengths[i]) for i, g in enumerate(golds)]


def test_a_proxy_rises_with_gold_where_its_correlation_is_shown_to():
    falling, rising = [5.0, 4, 3, 2, 1, 0], [0.0, 1, 2, 4, 3, 5]
    measured = proxies.measure({"LI": {0.0: checkpoints(falling)}, "RER": {0.0: checkpoints(rising)}})
    # One swap of neighbours: 1 − 6 · 2 / (6 · 35).
    assert measured.best == "RER" and measured.proxies["RER"].spearman.estimate == pytest.approx(1 - 12 / 210)
    assert measured.proxies["RER"].rises and not measured.proxies["LI"].rises and not measured.by_length
    assert measured.proxies["LI"].ranks == {0.0: -1.0} and measured.margin.reached.startswith("LI -1.00")
    alone = proxies.measure({"RER": {0.0: checkpoints(rising, rising)}})
    assert alone.margin.reached == "Spearman 1.00" and alone.proxies["RER"].length_ranks == {0.0: 1.0}
    assert proxies.measure({"LI": {0.0: checkpoints(rising)}}).by_length
    # A reward that never changes is related to nothing.
    assert proxies.measure({"RER": {0.0: checkpoints([1.0] * 4)}}).proxies["RER"].spearman.estimate == 0


def test_a_win_rate_averages_both_positions():
    verdicts = winrates.Verdicts(
        {"m": np.array([[1.0, 1.0], [1.0, 0.0], [0.5, 0.5], [0.0, 0.0]])},
        {"m": {"length": np.array([1.0, 1.0, 0.0, 0.0])}},
        silent=0,
    )
    rate = winrates.measure(verdicts)["m"]
    assert rate.rate.estimate == 0.5 and rate.same == 0.75 and rate.gain_of_first.estimate == 0.25
    assert rate.baseline_rates["length"].estimate == 0.5 and rate.margins["length"].above.estimate == 0


def test_responses_are_measured_by_model_and_query_type_and_over_all():
    measured = answers.measure(
        answers.ResponseTable(
            ["a b", "a b c d", "a b", "e f g h i j"],
            ["m"] * 4,
            ["open", "closed", "open", "closed"],
            ["p", "q", "p", "r"],
            np.array([1.0, math.nan, 0.0, 1.0]),
        )
    )
    assert [(group.query_type, group.responses) for group in measured] == [("all", 4), ("closed", 2), ("open", 2)]
    overall, closed, open_ended = measured
    assert [group.mean("words").estimate for group in measured] == [3.5, 5, 2]
    assert [group.mean("relevant").estimate for group in measured] == [pytest.approx(2 / 3), 1, 0.5]
    # Only prompt p has two responses, which are alike but for the orders of n-grams they have none of.
    assert "self_bleu" not in closed.measures and open_ended.mean("self_bleu").n == overall.mean("self_bleu").n == 1


def test_the_tax_is_paired_by_instance():
    measured = alignment_tax.measure(
        alignment_tax.Answers(
            ["one two three", "four", "one two", "five"],
            [["one two three"], ["four"], ["four"], ["one two three"]],
            ["sft", "sft", "rl", "rl"],
            ["t"] * 4,
            ["one", "", "", "one two"],
            [("t", "0"), ("t", "1"), ("t", "1"), ("t", "0")],
        ),
        "sft",
    )
    before, after = measured
    assert before.rouge["response"].estimate == 100 and after.rouge["response"].estimate == 0
    assert before.tax.estimate == 0 and after.tax.estimate == 100
    # `one` of `one two three`: 2 · 1 / 4; the second input is empty.
    assert before.rouge["echo"].estimate == pytest.approx(25) and before.rouge["other"].estimate == 0
    # Swapped, its answers fit: `one two` of `one two three` is 2 · 2 / 5, `five` of `four` nothing.
    assert after.rouge["other"].estimate == pytest.approx(40)
    with pytest.raises(StudyError, match="share no instance_id"):
        alignment_tax.measure(
            alignment_tax.Answers(["a", "b"], [["a"], ["b"]], ["x", "y"], ["t"] * 2, None, [("t", "0"), ("t", "1")]),
            "x",
        )


def test_a_single_group_is_drawn_as_a_distribution():
    values = {"words": answers.Measure(np.array([1.0, 2, 3, 3]), answers.bootstrap_mean(np.array([1.0, 2, 3, 3])))}
    drawing = answers._figure([answers.AnswerGroup("all", "all", 4, values)])
    bars = [bar for bar in drawing.axes[0].patches if bar.get_height() >= 1]
    assert sum(bar.get_height() for bar in bars) == 4 and drawing.axes[0].get_xlabel() == "words a response"
    alone = likelihoods.measure({"golden": {(0, str(i)): SetLikelihood(-1.0 - i, 10.0) for i in range(8)}})
    drawing = likelihoods._figure(alone)
    assert len(drawing.axes[0].patches) > 2 and "n = 8" in " ".join(text.get_text() for text in drawing.texts)
