"""What reports and cards open with: how often a reward prefers a worse answer, and the plainest pairs."""

from __future__ import annotations

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from seamcurate import Recipe, Reward, RewardFunction, Rewards, Source, Split, Store, run_local
from seamcurate.explore import finding, report
from seamcurate.explore.finding import Pair
from seamcurate.explore.session import Session

# The reward is a text's number of words.
ROWS = [
    {"prompt": "a?", "response": "one", "worse_contrast": ["one two three", "x"]},
    {"prompt": "b?", "response": "one two", "worse_contrast": ["<b>one two three four five"]},
    {"prompt": "c?", "response": "one two three", "worse_contrast": ["one"]},
    {"prompt": "d?", "response": "one", "worse_contrast": []},
]


@pytest.fixture(scope="module")
def session(tmp_path_factory) -> Session:
    folder = tmp_path_factory.mktemp("finding")
    (folder / "words.py").write_text(
        "def words(prompts, completions, **columns):\n    return [float(len(text.split())) for text in completions]\n"
    )
    worse = pa.list_(
        pa.struct([("response", pa.string()), ("similarity", pa.float64()), ("source_row_id", pa.int64())])
    )
    schema = pa.schema([("prompt", pa.string()), ("response", pa.string()), ("worse_contrast", worse)])
    rows = [
        {
            **row,
            "worse_contrast": [
                {"response": text, "similarity": 0.5, "source_row_id": 0} for text in row["worse_contrast"]
            ],
        }
        for row in ROWS
    ]
    pq.write_table(pa.Table.from_pylist(rows, schema), folder / "rows.parquet")
    reward = RewardFunction(path=f"{folder / 'words.py'}:words")
    recipe = Recipe(
        rows=Source(parquet=str(folder / "rows.parquet")),
        steps=(Reward(reward=reward), Rewards(variant="contrast", reward=reward)),
        splits={"cut": Split(filter="SELECT row_id FROM rows WHERE row_id <> 0")},
    )
    run_local(recipe, folder / "store")
    return Session(Store(folder / "store").open())


def test_the_headline_counts_prompts_and_the_pairs_are_the_widest(session):
    found = finding.find(session)
    assert (found.variant, found.rows, found.wrong, found.candidates, found.misjudged) == ("contrast", 3, 2, 4, 2)
    assert found.headline == "The reward prefers a worse answer on 67% of the prompts"
    assert found.pairs == [
        Pair(1, "b?", "one two", 2.0, "<b>one two three four five", 5.0),
        Pair(0, "a?", "one", 1.0, "one two three", 3.0),
    ]
    assert [pair.row_id for pair in finding.find(session, limit=1).pairs] == [1]


def test_a_splits_pairs_are_of_the_rows_that_it_dropped(session):
    found = finding.find(session, "cut")
    assert found.wrong == 2 and [pair.row_id for pair in found.pairs] == [0]


def test_a_report_tells_the_finding_the_cut_and_the_models_and_escapes_texts(session, tmp_path):
    report(session.store, tmp_path / "report.html")
    page = (tmp_path / "report.html").read_text()
    assert '<p class="headline">The reward prefers a worse answer on 67% of the prompts.</p>' in page
    assert "&lt;b&gt;one two three four five" in page and "<b>one two" not in page
    assert "keeps 3 of 4 prompts; the reward prefers a worse answer on 1 of these, where it does on 2 of all" in page
    assert "words.py" in page and str(tmp_path.parent) not in page
    places = [
        page.index(title)
        for title in ("What the reward prefers", "What the splits leave out", "How it was made", "Scores")
    ]
    assert places == sorted(places)


def test_without_rewards_there_is_no_finding_and_the_report_says_so(tmp_path):
    pq.write_table(pa.table({"prompt": ["a"], "response": ["b"]}), tmp_path / "rows.parquet")
    run_local(Recipe(rows=Source(parquet=str(tmp_path / "rows.parquet"))), tmp_path / "store")
    session = Session(Store(tmp_path / "store").open())
    assert finding.find(session) is None
    report(session.store, tmp_path / "report.html")
    assert "No worse answer has a reward yet" in (tmp_path / "report.html").read_text()
