"""The sentence that says what a training came to: each verdict from a few measurements, and the figure of a log."""

from __future__ import annotations

import pytest

from seamcurate.train import curves, verdict
from seamcurate.train.verdict import Measure


def measured(*points: tuple[int, float, float | None]) -> list[Measure]:
    return [Measure(step, reward, 0.2, gold, 0.2) for step, reward, gold in points]


# With a deviation of .2 over 64 prompts, twice the standard error of a difference is .0707.
@pytest.mark.parametrize(
    ("points", "said"),
    [
        (
            [(0, 0.12, 0.44), (120, 0.4, 0.5), (200, 0.61, 0.39)],
            "hacked: reward rose 0.12 to 0.61 while gold fell 0.5 to 0.39: stop at update 120",
        ),
        (
            [(0, 0.12, 0.44), (200, 0.61, 0.3)],
            "hacked: reward rose 0.12 to 0.61 while gold fell 0.44 to 0.3: measure between by --eval-steps to see where to stop",
        ),
        (
            [(0, 0.12, 0.44), (100, 0.5, 0.4), (200, 0.61, 0.3)],
            "hacked: reward rose 0.12 to 0.61 while gold fell 0.44 to 0.3: gold was best before the first update",
        ),
        (
            [(0, 0.12, 0.44), (200, 0.61, 0.6)],
            "learned: reward rose 0.12 to 0.61, and gold rose 0.44 to 0.6 on 64 held-out prompts",
        ),
        (
            [(0, 0.12, 0.44), (200, 0.61, 0.4)],
            "learned: reward rose 0.12 to 0.61, and gold went 0.44 to 0.4 on 64 held-out prompts",
        ),
        ([(0, 0.12, None), (200, 0.61, None)], "learned: reward rose 0.12 to 0.61 on 64 held-out prompts"),
        (
            [(0, 0.12, None), (200, 0.19, None)],
            "learned nothing that shows: reward went 0.12 to 0.19 on 64 held-out prompts, where ± 0.0707 is chance",
        ),
        (
            [(0, 0.3, None), (200, 0.1, None)],
            "worse: reward fell 0.3 to 0.1 on 64 held-out prompts; lower learning_rate, or train longer",
        ),
        ([(0, 0.3, None)], "not measured: no prompts were held out; give --eval-rows or --eval-data"),
    ],
)
def test_a_difference_counts_where_it_is_larger_than_twice_its_standard_error(points, said):
    assert verdict.of_rewards(measured(*points), 64) == said


def test_a_reward_that_rose_in_training_alone_is_overfitted():
    points = measured((0, 0.12, None), (200, 0.13, None))
    said = "overfitted: reward rose 0.1 to 0.8 in training, and reward went 0.12 to 0.13 on 64 held-out prompts"
    assert verdict.of_rewards(points, 64, 0.1, 0.8) == said
    assert verdict.of_rewards(points, 64, 0.1, 0.12).startswith("learned nothing that shows")


def test_a_reward_that_rose_on_the_trained_prompts_alone_is_overfitted():
    points = measured((0, 0.12, None), (200, 0.13, None))
    risen, level = measured((0, 0.1, None), (200, 0.7, None)), measured((0, 0.1, None), (200, 0.11, None))
    said = (
        "overfitted: reward rose 0.1 to 0.7 on 64 trained prompts, and reward went 0.12 to 0.13 on 64 held-out prompts"
    )
    assert verdict.of_rewards(points, 64, 0.1, 0.1, risen, 64) == said
    # What the updates' own prompts got says less: these are others each time.
    assert verdict.of_rewards(points, 64, 0.1, 0.8, level, 64).startswith("learned nothing that shows")
    assert verdict.of_rewards(risen, 64, trained=risen, trained_rows=64).startswith("learned: reward rose")


@pytest.mark.parametrize(
    ("before", "after", "losses", "said"),
    [
        (2.1, 1.8, [2.3, 1.9], "learned: held-out loss fell 2.1 to 1.8 on 20 rows"),
        (
            2.1,
            2.6,
            [2.3, 1.0, 0.4],
            "overfitted: training loss fell 2.3 to 0.4 while held-out loss rose 2.1 to 2.6 on 20 rows; take fewer steps or more rows",
        ),
        (
            2.1,
            2.2,
            [2.3, 2.4],
            "learned nothing that shows: held-out loss rose 2.1 to 2.2 on 20 rows; raise learning_rate, or take more steps",
        ),
        (
            None,
            None,
            [2.3, 1.9],
            "not measured: no rows were held out; give --eval-rows or --eval-data; training loss fell 2.3 to 1.9",
        ),
    ],
)
def test_losses_are_told_by_the_held_out_one(before, after, losses, said):
    assert verdict.of_losses(before, after, 20, losses) == said


LINES = [
    {"step": 0, "eval/scores": 0.1, "eval/scores_deviation": 0.3, "eval/gold": 0.4, "eval/gold_deviation": 0.1},
    {"step": 1, "reward": 0.2, "kl": 0.01, "completions/mean_length": 12.0, "frac_reward_zero_std": 0.5, "loss": 0.1},
    {"step": 2, "reward": 0.3, "kl": None, "completions/mean_length": 14.0, "frac_reward_zero_std": 0.0, "loss": 0.2},
    {"step": 2, "eval/scores": 0.4, "eval/gold": None, "trained/scores": 0.6},
]


def test_measurements_are_read_from_a_log():
    assert verdict.measures(LINES) == [Measure(0, 0.1, 0.3, 0.4, 0.1), Measure(2, 0.4, 0.0)]
    assert verdict.measures(LINES, "trained") == [Measure(2, 0.6, 0.0)]


def test_a_figure_shows_what_the_log_has(tmp_path):
    pytest.importorskip("matplotlib")
    assert not curves.draw([{"step": 1, "epoch": 0.5}], tmp_path / "none.png", "") and not any(tmp_path.iterdir())
    assert curves.draw(LINES, tmp_path / "one.png", "learned: $reward$ rose")
    assert curves.draw(LINES, tmp_path / "two.png", "learned: $reward$ rose")
    assert (tmp_path / "one.png").read_bytes() == (tmp_path / "two.png").read_bytes()
    assert (tmp_path / "one.png").read_bytes().startswith(b"\x89PNG")
