"""The questions of `examples/sql`, each asked of a finished store."""

from __future__ import annotations

import math
from pathlib import Path

import pytest

from seamcurate import FakeModel, Models, Store, query, run_local
from seamcurate.errors import QueryError
from seamcurate.select import views

FOLDER = Path(__file__).parents[2] / "examples" / "sql"
ALONE = sorted(file.name for file in FOLDER.glob("*.sql") if file.name != "where_reward_models_part.sql")


def asked(store, name, other=None):
    with views.connect(store, other=other) as connection:
        return views.run(connection, views.text(str(FOLDER / name))).read_all().to_pylist()


@pytest.fixture
def rows(finished):
    columns = ["row_id", "response", "seam_contrast", "misjudged_contrast", "candidates_contrast", "query_type"]
    return [row for table in finished.rows(columns) for row in table.to_pylist()]


@pytest.mark.parametrize("name", ALONE)
def test_every_question_opens_with_itself_and_is_answered(name, finished):
    assert (FOLDER / name).read_text().startswith("-- ")
    answer = asked(finished, name)
    assert answer or name == "set_aside.sql"


@pytest.mark.slow
def test_every_question_is_answered_on_a_store_of_the_readmes_steps(recipe, tmp_path):
    steps = tuple(step for step in recipe().steps if not step.name.startswith("baseline"))
    run_local(recipe(steps=steps), tmp_path / "store")
    assert "baseline_random" not in Store(tmp_path / "store").open().schema.names
    for name in ALONE:
        asked(Store(tmp_path / "store").open(), name)


def test_the_worst_prompts_are_those_of_the_lowest_score(finished, rows):
    worst = sorted((row for row in rows if row["seam_contrast"] < 0), key=lambda r: (r["seam_contrast"], r["row_id"]))
    assert [row["row_id"] for row in asked(finished, "worst_prompts.sql")] == [row["row_id"] for row in worst[:20]]


def test_forty_percent_drops_as_many_as_there_are_to_drop(finished, rows):
    dropped, kept = (
        sum(row["prompts"] for row in asked(finished, "what_forty_percent_drops.sql") if row["dropped"] is side)
        for side in (True, False)
    )
    bad = sum(row["seam_contrast"] is not None and row["seam_contrast"] < 0 for row in rows)
    scored = sum(row["seam_contrast"] is not None for row in rows)
    assert (dropped, dropped + kept) == (min(bad, math.ceil(0.4 * scored)), len(rows))


def test_the_fifths_hold_every_scored_row(finished, rows):
    fifths = asked(finished, "seam_and_length.sql")
    assert sum(row["prompts"] for row in fifths) == sum(row["seam_contrast"] is not None for row in rows)
    assert [row["characters"] for row in fifths] == sorted(row["characters"] for row in fifths)


def test_the_ledger_tells_of_every_row(finished, rows):
    assert sum(row["prompts"] for row in asked(finished, "what_dropped_them.sql")) == len(rows)


@pytest.mark.slow
def test_two_reward_models_part_where_another_store_says_so(finished, recipe, tmp_path):
    models = Models(
        policy=FakeModel(path="policy"), reward=FakeModel(path="another"), encoder=FakeModel(path="encoder")
    )
    run_local(recipe(models=models, splits={}), tmp_path / "store")
    other = Store(tmp_path / "store").open()
    parted = asked(finished, "where_reward_models_part.sql", other)
    column = "SELECT row_id, misjudged_contrast AS m FROM rows"
    here, there = ({row["row_id"]: row["m"] for row in query(s, column).to_pylist()} for s in (finished, other))
    gaps = [abs(row["misjudged_here"] - row["misjudged_there"]) for row in parted]
    assert gaps == sorted(gaps, reverse=True) and gaps[0] > 0
    assert all((here[r["row_id"]], there[r["row_id"]]) == (r["misjudged_here"], r["misjudged_there"]) for r in parted)
    with views.connect(finished, other=other) as connection:
        joined = "SELECT count(*) AS n, count(response) AS texts FROM other.candidates"
        ((n, texts),) = (tuple(row.values()) for row in views.run(connection, joined).read_all().to_pylist())
    assert (
        n == texts == sum(len(row["m"]) for row in query(other, "SELECT rewards_contrast AS m FROM rows").to_pylist())
    )


def test_a_missing_file_is_one_line():
    with pytest.raises(QueryError, match=r"nowhere\.sql cannot be read"):
        views.text("nowhere.sql")
