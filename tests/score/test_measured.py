"""What the package says columns were measured to find is what the files of results say."""

from __future__ import annotations

import runpy
from pathlib import Path

import pytest

from seamcurate.score import measured

ROOT = Path(__file__).parents[2]


def test_every_figure_is_that_of_the_files_of_results():
    made = runpy.run_path(str(ROOT / "docs" / "measured.py"))
    assert (ROOT / "seamcurate/score/measured.csv").read_text() == made["made"](), "run python docs/measured.py --write"
    assert {one.place for one in measured.every()} <= set(measured.PLACES)
    assert all(one.low <= one.auc <= one.high for one in measured.every())


def test_a_sentence_says_the_figure_its_interval_and_its_place():
    found = [
        measured.Measured("seam_x", "gold world", 0.694, 0.66, 0.725),
        measured.Measured("seam_x", "votes", 0.51, 0.44, 0.57),
    ]
    assert measured.told(found) == (
        "Measured as a sign of misjudged prompts, AUC (.5 is chance): .69 (.66 to .72) where the truth is known (small models, "
        "made-up tasks); .51 (.44 to .57) by people's votes (Stack Exchange, a reward model right on 55 %), "
        "not told from chance."
    )


def test_a_discrepancy_is_its_seam_and_a_column_of_the_users_own_was_not_measured():
    assert measured.measured("discrepancy_contrast") == measured.measured("seam_contrast") != []
    assert measured.sentence("my_own_score", "own") == "" == measured.sentence("seam_mine", "own")


@pytest.mark.parametrize("column", ["seam_contrast", "seam_policy"])
def test_seam_found_misjudged_prompts_where_the_truth_is_known(column):
    (found,) = [one for one in measured.measured(column) if one.place == "gold world"]
    assert found.doubt == "" and f"{found.auc:.2f}"[1:] in measured.sentence(column, column)
