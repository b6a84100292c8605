"""Simple baselines score texts by what they are called after, and a finding says which of them find it too."""

from __future__ import annotations

import math

from seamcurate.study import baselines
from seamcurate.study.baselines import Margin
from seamcurate.study.statistics import Interval


def test_baselines_prefer_the_longer_and_the_less_repetitive():
    scores = baselines.scores(["one two three", "one two three four", "a b c a b c a b c"])
    assert scores["length"].tolist() == [3, 4, 9]
    assert scores["repetition"].tolist() == [1, 1, 3 / 7]
    assert len(set(scores["random"].tolist())) == 1


def test_a_baseline_that_does_as_well_is_named_and_one_left_behind_is_not():
    gaps = {
        "length": Margin("72.0 %", Interval(0.01, -0.02, 0.04, 90)),
        "random": Margin("50.1 %", Interval(0.2, 0.15, 0.25, 90)),
        "repetition": Margin("80.0 %", Interval(-0.1, -0.15, -0.05, 90)),
    }
    assert baselines.caveat(gaps) == (
        "; but picking the longest does as well (72.0 %), picking the least repetitive does better (80.0 %)"
    )
    assert baselines.caveat({"random": gaps["random"]}) == ""


def test_without_an_interval_a_score_is_not_told_apart_from_a_baseline():
    alone = Interval(0.1, math.nan, math.nan, 1)
    for estimate in (0.1, -0.1):
        gap = Margin("x", alone._replace(estimate=estimate))
        assert baselines.caveat({"length": gap}) == "; but picking the longest is not told apart from it (x)"


def test_methods_that_are_baselines_are_known_by_name():
    assert [baselines.of_method(m) for m in ("random", "Longest", "seam_shuffled", "seam_gpt", "rip", "augment_random")] == [
        "random", "length", "shuffled", None, None, "random",
    ]  # fmt: skip
