"""Studies of tables of runs: the right numbers, and another finding when the data say the opposite."""

from __future__ import annotations

import pyarrow as pa
import pytest

from seamcurate import study
from seamcurate.errors import StudyError

NOISE = (0.0, 0.01, -0.01, 0.005)


def runs(effects, **columns):
    """Four seeds a method: .5 + effect + the seed's own luck, + a little of each run's."""
    return pa.Table.from_pylist(
        [
            {"method": method, "seed": seed, "quality": 0.5 + effect + 0.1 * seed + NOISE[(seed + i) % 4], **columns}
            for i, (method, effect) in enumerate(effects.items())
            for seed in range(4)
        ]
    )


@pytest.mark.slow
def test_selection_holds_the_best_seam_against_full_data_paired_by_seed():
    outcome = study.selection(runs({"full": 0, "random": 0, "seam_gpt": 0.1, "rip": 0.2, "seam_contrast": 0.05}))
    rows = {row["method"]: row for row in outcome.table.to_pylist()}
    # gaps of seam_gpt to full by seed: .1 + (−.01, .005, 0.01, −.005) = mean .1
    assert rows["seam_gpt"]["above_baseline"] == pytest.approx(0.1)
    assert rows["seam_gpt"]["test"] == "paired t" and rows["full"]["above_baseline"] is None
    assert rows["seam_gpt"]["quality"] == pytest.approx(0.5 + 0.1 + 0.15 + 0.00125) and rows["rip"]["seeds"] == 4
    assert outcome.table["method"][0].as_py() == "rip"
    assert outcome.line.startswith("seam_gpt reaches 0.751") and "above full by +0.100 [" in outcome.line
    assert "paired t, p" in outcome.line and "Holm over 4" in outcome.line and "; but" not in outcome.line


def test_selection_says_below_when_the_data_flip():
    outcome = study.selection(runs({"full": 0.1, "random": 0, "seam_gpt": 0}))
    assert "below full by -0.100 [" in outcome.line


def test_one_seed_shows_nothing_whichever_way_it_came_out():
    def first(table):
        return table.filter(pa.compute.equal(table["seed"], 0))

    for gain in (0.2, -0.2):
        line = study.selection(first(runs({"full": 0, "seam_gpt": gain, "random": 0}))).line
        assert ", not told apart from full by " in line and "(too few seeds to test" in line
        assert "chance is not told apart from it (random 0." in line
    swept = study.filter_rate(first(sweep(0.4))).line
    assert "does not demonstrably rise from 0.1" in swept and "does not demonstrably fall to 0.8" in swept
    whole = study.saturation(first(grid([0, 0.2, 0.4], [0, 0.5, 1]))).line
    assert whole.count("one seed does not tell whether quality saturates") == 2


def test_a_gain_that_random_or_shuffled_selection_makes_too_is_said_to_be_one():
    outcome = study.selection(runs({"full": 0, "random": 0, "seam_gpt": 0.1, "seam_shuffled": 0.1}))
    assert "; but a shuffled score does as well (seam_shuffled 0.75" in outcome.line and "chance" not in outcome.line
    outcome = study.selection(runs({"full": 0, "random": 0.3, "seam_gpt": 0.1}))
    assert "chance does better (random" in outcome.line


def test_augmentation_and_query_types_are_compared_the_same_way():
    outcome = study.augmentation(runs({"none": 0, "random": 0.02, "all": 0.1, "seam": 0.1}))
    assert outcome.name == "augmentation" and "seam reaches" in outcome.line and "above none" in outcome.line
    outcome = study.query_type(runs({"random": 0, "predicted": 0.1}))
    assert "predicted reaches" in outcome.line and "above random by" in outcome.line and "; but" not in outcome.line
    assert "below random" in study.query_type(runs({"random": 0.1, "predicted": 0})).line


def sweep(best, **extra):
    rates = (0.1, 0.2, 0.4, 0.8)
    rows = [{"method": "full", "rate": 0.0, "seed": s, "quality": 0.5 + NOISE[s]} for s in range(4)]
    for name, gain in {"seam_gpt": 0.2, **extra}.items():
        rows += [
            {"method": name, "rate": r, "seed": s, "quality": 0.5 + gain * (1 - abs(r - best)) + NOISE[(s + i) % 4]}
            for i, r in enumerate(rates)
            for s in range(4)
        ]
    return pa.Table.from_pylist(rows)


def test_filter_rate_finds_the_peak_and_how_quality_falls_from_it():
    outcome = study.filter_rate(sweep(0.4))
    assert outcome.line.startswith("seam_gpt: quality peaks at rate 0.4, 0.701 [")
    assert "rises from 0.1 (+0.0" in outcome.line and "falls to 0.8 (-0.0" in outcome.line
    assert outcome.table.num_rows == 5 and outcome.table["rate"].to_pylist() == [0.0, 0.1, 0.2, 0.4, 0.8]
    assert outcome.table["above_full"].to_pylist()[3] == pytest.approx(0.2)
    early = study.filter_rate(sweep(0.1)).line
    assert "peaks at rate 0.1" in early and "rises" not in early and "falls to 0.8" in early
    assert "chance does as well (random" in study.filter_rate(sweep(0.4, random=0.2)).line


def test_a_filter_rate_needs_three_rates_that_are_shares():
    table = sweep(0.4)
    with pytest.raises(StudyError, match="three rates above 0"):
        study.filter_rate(table.filter(pa.compute.less(table["rate"], 0.3)))
    with pytest.raises(StudyError, match=r"rates lie in \[0, 1\)"):
        study.filter_rate(table.set_column(1, "rate", pa.compute.multiply(table["rate"], 100)))


def grid(by_policy, by_reward):
    return pa.Table.from_pylist(
        [
            {"policy": 10 * p, "reward": 100 * r, "seed": s, "quality": a + b + NOISE[(p + r + s) % 4] + 0.3 * s}
            for p, a in enumerate(by_policy)
            for r, b in enumerate(by_reward)
            for s in range(4)
        ]
    )


def test_saturation_tells_a_half_that_helps_from_one_that_does_not():
    outcome = study.saturation(grid([0, 0.2, 0.4, 0.6, 0.8], [0, 0.5, 1, 1, 1]))
    reward, policy = outcome.line.split("; ")
    assert reward.startswith("reward model: quality saturates: +1.00") and "from 0 to 200" in reward
    assert policy.startswith("policy: quality still rises: +0.400") and "from there to 40" in policy
    assert outcome.table.num_rows == 25
    cell = next(r for r in outcome.table.to_pylist() if (r["policy"], r["reward"]) == (20, 200))
    assert cell["quality"] == pytest.approx(0.4 + 1 + 0.45 + 0.00125) and cell["seeds"] == 4
    assert "reward model: quality falls after its rise" in study.saturation(grid([0, 0, 0], [0, 1, 0.5])).line
    assert "policy: quality is not shown to rise" in study.saturation(grid([0, 0, 0], [0, 1, 0.5])).line


def test_sanity_is_relative_to_the_models_own_data():
    def table(on_rl):
        kept = {
            ("policy", "sft"): 8.0,
            ("policy", "rl"): 8 * on_rl,
            ("reward", "preference"): 0.8,
            ("reward", "rl"): 0.8,
        }
        return pa.Table.from_pylist(
            [
                {"model": m, "data": d, "seed": s, "quality": q * (1 + NOISE[s] * (d == "rl"))}
                for (m, d), q in kept.items()
                for s in range(4)
            ]
        )

    outcome = study.sanity(table(0.75))
    assert "the policy model keeps 75.1 % [" in outcome.line and "the reward model keeps 100.1 % [" in outcome.line
    assert outcome.line.endswith("most is lost by the policy model on rl")
    assert study.sanity(table(1.0)).line.endswith("no loss is told apart from none")
    with pytest.raises(StudyError, match="policy has no quality above 0 on 'sft'"):
        study.sanity(table(0.75).slice(4))


def checkpoints(golds, **columns):
    return pa.Table.from_pylist(
        [
            {"proxy": name, "checkpoint": 500 * i, "seed": s, "proxy_mean": float(i), "gold_mean": g + 0.001 * s}
            | {key: values[i] for key, values in columns.items()}
            for name, gold in golds.items()
            for s in range(2)
            for i, g in enumerate(gold)
        ]
    )


def test_monotonicity_correlates_proxy_and_gold_over_checkpoints():
    # Ranks of 2 1 4 3 6 5 8 7 10 9 11 against 1 … 11: .954545
    swapped = [2.0, 1, 4, 3, 6, 5, 8, 7, 10, 9, 11]
    falling = [float(-i) for i in range(11)]
    outcome = study.monotonicity(checkpoints({"LI": falling, "RER": swapped}))
    rows = {row["proxy"]: row for row in outcome.table.to_pylist()}
    assert rows["RER"]["spearman"] == pytest.approx(0.954545, abs=1e-6) and rows["LI"]["pearson"] == pytest.approx(-1)
    assert outcome.line == "RER rises with the gold reward: Spearman 0.95 [0.78, 0.99] over 11 checkpoints; LI -1.00"
    flipped = study.monotonicity(checkpoints({"LI": swapped, "RER": falling}))
    assert flipped.line.startswith("LI rises with the gold reward") and "this proxy is length itself" in flipped.line


def test_a_correlation_of_few_checkpoints_is_not_said_to_show_a_rise():
    def alone(*gold):
        table = checkpoints({"RER": [float(g) for g in gold]})
        return study.monotonicity(table.filter(pa.compute.equal(table["seed"], 0))).line

    assert alone(1, 2, 3).startswith("RER is not shown to rise with the gold reward: Spearman 1.00 over 3")
    assert alone(1, 3, 2).startswith("RER is not shown to rise")
    assert alone(1, 2, 3, 4, 5, 6).startswith("RER rises with the gold reward in one run: Spearman 1.00 over 6")
    assert alone(1, 2, 3, 4, 6, 5, 7, 8).startswith("RER rises with the gold reward in one run: Spearman 0.98 [")


def test_monotonicity_says_when_length_alone_would_have_done():
    rising = [float(i) for i in range(11)]
    longer = [100.0 + i for i in range(11)]
    outcome = study.monotonicity(checkpoints({"RER": rising}, length_mean=longer))
    assert "; but picking the longest does as well (Spearman 1.00" in outcome.line
    assert outcome.table["length_spearman"].to_pylist() == [1.0]
    outcome = study.monotonicity(checkpoints({"RER": rising}, length_mean=longer[::-1]))
    assert "; but" not in outcome.line
    with pytest.raises(StudyError, match="has 2 checkpoints"):
        study.monotonicity(checkpoints({"RER": rising[:2]}))


def verdicts(first, second, **texts):
    return pa.Table.from_pylist(
        [
            {"model": "RER", "prompt_id": i, "position": place, "verdict": verdict, **texts}
            for i, pair in enumerate(zip(first, second, strict=True))
            for place, verdict in zip(("first", "second"), pair, strict=True)
        ]
    )


def test_winrate_counts_half_a_tie_in_both_positions():
    outcome = study.winrate(verdicts(["win"] * 8 + ["tie", "lose"], ["win"] * 7 + ["lose"] * 3))
    row = outcome.table.to_pylist()[0]
    # (15 wins + ½ tie) / 20
    assert row["win_rate"] == pytest.approx(0.775) and row["prompts"] == 10
    assert row["gain_of_first_position"] == pytest.approx(0.15) and row["same_in_both_positions"] == 0.8
    assert (
        outcome.line.startswith("RER beats the baseline: 77.5 % [") and "same in both positions on 80 %" in outcome.line
    )
    assert study.winrate(verdicts(["lose"] * 9 + ["win"], ["lose"] * 10)).line.startswith(
        "RER loses to the baseline: 5.0 %"
    )
    even = study.winrate(verdicts(["win", "lose"] * 5, ["win", "lose"] * 5))
    assert even.line.startswith("RER is not told apart from the baseline: 50.0 %")


def test_a_win_that_length_would_win_too_is_said_to_be_one():
    longer = {"response": "a longer answer", "baseline_response": "an answer"}
    won = (["win"] * 9 + ["lose"], ["win"] * 9 + ["lose"])
    assert "picking the longest does as well (100.0 %" in study.winrate(verdicts(*won, **longer)).line
    shorter = {"response": "an answer", "baseline_response": "a longer answer"}
    assert "longest" not in study.winrate(verdicts(*won, **shorter)).line


def test_a_verdict_in_one_position_is_none():
    table = verdicts(["win"], ["win"])
    with pytest.raises(StudyError, match="ask again with the two swapped"):
        study.winrate(table.slice(0, 1))
    with pytest.raises(StudyError, match="judged twice"):
        study.winrate(pa.concat_tables([table, table]))
    with pytest.raises(StudyError, match="verdict = 'won'; it is one of win, tie, lose"):
        study.winrate(verdicts(["won"], ["win"]))


def test_a_gain_that_holm_takes_back_is_not_claimed():
    # Alone the gain has p = .020, among seven p = .12.
    gaps = {"full": [0.0] * 5, "seam": [0.02, 0.03, 0.01, 0.05, 0.04]} | {
        f"m{i}": [-0.1, 0.1, 0, 0, 0] for i in range(6)
    }
    outcome = study.selection(
        pa.Table.from_pylist(
            [{"method": m, "seed": s, "quality": 0.5 + g} for m, some in gaps.items() for s, g in enumerate(some)]
        )
    )
    row = next(row for row in outcome.table.to_pylist() if row["method"] == "seam")
    # The interval is adjusted as p is: 95 % of one difference alone would exclude 0.
    assert row["above_baseline_low"] < 0 and row["p_holm"] > 0.05
    assert (
        outcome.line.startswith("seam reaches 0.530 [") and ", not told apart from full by +0.030 [-0.0" in outcome.line
    )
    assert "adjusted for 7 differences (Holm)" in " ".join(outcome.figure.texts[0].get_text().split())


def test_a_difference_says_how_many_seeds_it_rests_on():
    table = runs({"full": 0, "seam": 0.1}).filter(pa.array([True, False, True, True] + [True] * 4))
    outcome = study.selection(table)
    rows = {row["method"]: row for row in outcome.table.to_pylist()}
    assert (rows["seam"]["seeds"], rows["seam"]["seeds_compared"], rows["full"]["seeds_compared"]) == (4, 3, None)
    assert [text.get_text() for text in outcome.figure.axes[-1].texts if text.get_text() in "34"] == ["3", "3"]


def test_a_gain_that_is_only_uncertain_is_not_said_to_have_ended():
    rows = [
        {"policy": p, "reward": 0, "seed": s, "quality": [0, 0.1, 0.3][p] + 0.2 * (p == 2) * (s - 1) + 0.01 * s * p}
        for p in range(3)
        for s in range(3)
    ]
    line = study.saturation(pa.Table.from_pylist(rows)).line
    # The second gain is the larger, and too uncertain to be shown.
    assert line.startswith("policy: quality rises, and is not shown to saturate: +0.110 [") and "+0.210 [-0" in line
    falling = study.saturation(grid([0.5, 0.2, 0.2], [0, 0, 0])).line
    assert "policy: quality falls: -0.3" in falling and "reward model: quality is not shown to rise" in falling


def test_a_grid_with_gaps_is_compared_where_it_has_none():
    whole = grid([0, 0.2, 0.4], [0, 0.5, 1])
    best = pa.compute.and_(pa.compute.equal(whole["policy"], 20), pa.compute.equal(whole["reward"], 200))
    outcome = study.saturation(whole.filter(pa.compute.invert(best)))
    # Its best cell gone, the last level is no worse for that.
    assert "policy: quality still rises: +0.2" in outcome.line and outcome.line.count("still rises") == 2
    diagonal = whole.filter(pa.compute.equal(whole["reward"], pa.compute.multiply(whole["policy"], 10)))
    assert study.saturation(diagonal).line.count("no level of the other axis has runs with all of its levels") == 2


def test_large_levels_are_told_apart_by_name():
    rows = [{"policy": 10**6 + i, "reward": 0, "seed": s, "quality": i + 0.1 * s} for i in range(3) for s in range(2)]
    assert "from 1,000,000 to 1,000,001" in study.saturation(pa.Table.from_pylist(rows)).line


def test_a_loss_that_is_shown_is_told_beside_a_larger_one_that_is_not():
    kept = {"sft": [1.0] * 4, "rl": [0.2, 1.2, 0.5, 0.9], "preference": [0.89, 0.9, 0.91, 0.9]}
    rows = [{"model": "policy", "data": d, "seed": s, "quality": q} for d, qs in kept.items() for s, q in enumerate(qs)]
    assert study.sanity(pa.Table.from_pylist(rows)).line.endswith("a loss is shown by the policy model on preference")


def test_two_runs_whose_ranks_agree_are_no_surer_than_one():
    weak = [3.0, 1, 7, 5, 2, 11, 4, 8, 6, 9, 10][::-1]
    table = checkpoints({"RER": [-g for g in weak]})
    row = study.monotonicity(table).table.to_pylist()[0]
    assert row["seeds"] == 2 and row["spearman_high"] - row["spearman_low"] > 0.2


def test_few_prompts_beat_nobody():
    for count in (1, 2, 5):
        line = study.winrate(verdicts(["win"] * count, ["win"] * count)).line
        assert line.startswith("RER is not told apart from the baseline: 100.0 % [")
    assert study.winrate(verdicts(["win"] * 6, ["win"] * 6)).line.startswith(
        "RER beats the baseline: 100.0 % [54.1, 100.0]"
    )
    assert study.winrate(verdicts(["win"] * 2 + ["tie"], ["win"] * 3)).line.startswith("RER is not told apart")
