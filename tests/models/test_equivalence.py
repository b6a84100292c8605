"""Deciding from numbers alone whether two models give the same scores, and why they may not."""

from __future__ import annotations

import math

import numpy as np
import pytest

from seamcurate.models import equivalence
from seamcurate.models.equivalence import activation, decide, differences, explains, floors, largest, line, unsteady

LOGITS = [(float(x),) for x in np.linspace(-3, 4, 12)]


def test_differences_are_of_texts_with_both_scores_and_infinite_where_one_is_no_number():
    assert differences([(1.0, 2.0), None], [(1.5, 2.0), (9.0, 9.0)]) == (0.5, 0.0)
    assert differences([(math.nan,), (1.0,)], [(math.nan,), (1.0,)]) == (0.0,)
    assert differences([(math.nan,)], [(1.0,)]) == (math.inf,) and differences([None], [(1.0,)]) == ()


def test_the_floor_is_the_largest_of_single_precision_noise_and_rounding():
    assert floors([(5.0, 0.1)], [(0.0, 0.2), (0.0, 0.3)]) == pytest.approx((5e-4, 0.6))
    assert floors([(0.5, 0.1), None], [()], (0.01, 0.0)) == pytest.approx((0.02, 1e-4))
    assert floors([None], []) == () and largest([]) == ()


@pytest.mark.parametrize(
    ("shift", "accepted", "decision"),
    [
        (0.0, False, "same"),
        (1e-5, False, "same"),
        (0.5, False, "differs"),
        (0.5, 0.4, "differs"),
        (0.5, 0.6, "accepted"),
        (0.5, True, "accepted"),
        (0.0, True, "same"),
    ],
)
def test_a_difference_beyond_the_floor_is_refused_unless_it_is_accepted(shift, accepted, decision):
    there = [(x + shift,) for (x,) in LOGITS]
    assert decide(LOGITS, there, (1e-4,), accepted).decision == decision


def test_texts_with_a_score_on_one_side_are_counted_and_none_at_all_is_no_comparison():
    compared = decide([(1.0,), (2.0,), None, None], [(1.0,), None, (3.0,), None], (1e-4,), False)
    assert compared[:4] == ("same", 1, 1, 1)
    assert decide([None], [(1.0,)], (), False).decision == "not compared"
    assert decide([None], [(1.0,)], (), True).decision == "accepted"


@pytest.mark.parametrize(
    ("function", "cause"),
    [
        (lambda x: 1 / (1 + math.exp(-x)), "sigmoid"),
        (math.tanh, "tanh"),
        (lambda x: -x, "opposite"),
        (lambda x: 0.5 * x - 2, "0.5 times those here plus -2"),
        (lambda x: x * x, None),
        (lambda x: 0.0, None),
    ],
)
def test_an_activation_is_recognised(function, cause):
    found = activation(LOGITS, [(function(x),) for (x,) in LOGITS], (1e-4,))
    assert found is None if cause is None else cause in found


def test_a_softmax_is_recognised_over_several_outputs():
    logits = [(x, 0.5 - x) for (x,) in LOGITS]
    there = [tuple(np.exp(pair) / np.exp(pair).sum()) for pair in logits]
    assert "softmax" in activation(logits, there, (1e-4, 1e-4))


def test_a_cause_must_leave_next_to_nothing_over():
    there = [(x + 1,) for (x,) in LOGITS]
    assert explains(LOGITS, there, there, (1e-4,))
    assert not explains(LOGITS, there, [(x + 0.5,) for (x,) in LOGITS], (1e-4,))
    assert not explains(LOGITS, there, [None] * len(there), (1e-4,))


def test_a_server_that_differs_from_itself_is_told_by_how_and_when():
    assert unsteady(LOGITS, {"one by one": (0.01,), "in another order": (0.02,)}) is None
    assert unsteady(LOGITS, {"one by one": (0.01,), "in another order": (2.0,)}) == (
        "its scores change by up to 2 when the same texts are asked in another order"
    )
    assert unsteady(LOGITS[:3], {"one by one": (2.0,)}) is None
    assert unsteady(LOGITS[:3], {"one by one": (math.inf,)}) is not None


def test_a_line_says_what_was_compared_by_how_much_it_differs_and_why():
    same = decide(LOGITS, LOGITS, (1e-4,), False)
    assert line(same, "reward_server m", "sequence_classifier m") == (
        "reward_server m gives the same scores as sequence_classifier m here: largest difference 0 over 12 texts, noise floor 0.0001"
    )
    differs = decide(LOGITS, [*((x + 1,) for (x,) in LOGITS[:-1]), None], (1e-4,), False)
    assert line(differs, "reward_server m", "sequence_classifier m") == (
        "reward_server m gives other scores than sequence_classifier m here: largest difference 1 over 11 texts, noise floor 0.0001; "
        "1 more have a score here only; none of the known causes explains it"
    )
    accepted = decide(LOGITS, [(x + 1,) for (x,) in LOGITS], (1e-4,), True)._replace(cause="why")
    assert "which the recipe accepts" in line(accepted, "a", "b") and line(accepted, "a", "b").endswith(
        "likely cause: why"
    )
    assert line(decide([None], [None], (), False), "a", None) == (
        "a could not be compared with itself, asked otherwise: no text has a score on both sides"
    )


def test_facts_are_json():
    assert decide(LOGITS, LOGITS, (1e-4,), False).facts() == {
        "decision": "same", "texts": 12, "only_here": 0, "only_there": 0, "differences": [0.0], "floors": [1e-4], "cause": None
    }  # fmt: skip
    assert equivalence.self_differences([(1.0,)], {"one by one": [(1.5,)]}) == {"one by one": (0.5,)}
