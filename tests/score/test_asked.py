"""Query types, ratings and relevant sentences as a language model gives them."""

from __future__ import annotations

import json

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from seamcurate import (
    AskQueryType,
    FakeModel,
    Generate,
    Judge,
    Models,
    Recipe,
    RelevantSentences,
    Source,
    Store,
    query,
    rer,
    run_local,
)
from seamcurate.models.rating import rating
from seamcurate.score.asked import query_type, relevant_share


@pytest.mark.parametrize(
    ("text", "kind"),
    [
        ("OPEN-ENDED", "open"),
        ("“OPENENDED”", "open"),
        ("OE", "open"),
        ("The query is open-ended.", "open"),
        ("CLOSED-ENDED", "closed"),
        ("Constrained", "closed"),
        ("CE.", "closed"),
        ("It is not open ended: CLOSED ENDED", "closed"),
        ("I do not know", None),
        ("", None),
        ("Open", "open"),
        ("**CLOSED‑ENDED**", "closed"),
        ('{"query_type": "OPEN-ENDED"}', "open"),
        ('```json\n{"query_type": "CLOSED-ENDED"}\n```', "closed"),
        ("No, it is not open-ended.", "closed"),
        ("No.", None),
        ("It isn't an open-ended query.", "closed"),
        ("I don't think it's closed-ended", "open"),
        ("This cannot be considered open-ended", "closed"),
        ("It is open-ended, not closed-ended.", "open"),
        ("It is closed-ended rather than open-ended.", "closed"),
        ("A non-open-ended query", "closed"),
        ("OPEN-ENDED. It asks how to close a door that is open.", "open"),
        ("Is it open-ended? CLOSED-ENDED", "closed"),
        ("Is it OPEN-ENDED or CLOSED-ENDED?", None),
        ("It is neither open-ended nor closed-ended.", None),
        ("I am not sure whether it is open-ended.", None),
        ("It might be open-ended.", None),
        ("It is not necessarily open-ended.", None),
        ('Either "OPEN-ENDED" or "CLOSED-ENDED"', None),
    ],
)
def test_query_types_are_read_by_their_spellings(text, kind):
    assert query_type(text) == kind


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("Good. Rating: [[7]]", 7),
        ("[[ 6.5 ]]", 6.5),
        ("[[3]], no: [[4]]", 4),
        ("[[0]]", None),
        ("[[11]]", None),
        ("8", None),
        ("[[7/10]]", 7),
        ("I would not say [[9]]", None),
        ("It is [[4]], not [[9]].", 4),
        ('{"explanation": "As in [[5]].", "rating": 7}', 7),
        ('{"explanation": "good", "rating": 70}', None),
        ('```json\n{"explanation": "good", "rating": 3}\n```', 3),
    ],
)
def test_ratings_are_read_from_double_brackets(text, value):
    assert rating(text) == value


def test_relevant_sentences_are_counted_a_line_each():
    text = '- "It is so." : Relevant\n- "Buy now: today!" : (Irrelevant)\n3. "So it is": **Relevant**\nThat is all.'
    assert relevant_share(text) == pytest.approx(2 / 3)
    assert relevant_share("All of it is fine") is None
    assert relevant_share('- "It is so." : Not relevant\n- "So." : relevant') == 0.5
    marked = [{"sentence": "a", "relevancy": "Relevant"}, {"sentence": "b: Relevant", "relevancy": "Irrelevant"}]
    assert relevant_share(json.dumps({"sentences": marked})) == 0.5


def store(tmp_path, steps, monkeypatch=None, replies=None):
    rows = [{"prompt": f"question {i}", "response": f"answer {i} to it"} for i in range(200)]
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "rows.parquet")
    fake = FakeModel(path="3")
    if replies:
        own = FakeModel._text
        monkeypatch.setattr(
            FakeModel, "_text", lambda self, r: replies(r.messages) if "answers" not in str(r.schema) else own(self, r)
        )
    models = Models(policy=fake, reward=fake, encoder=fake, generator=fake, judge=fake)
    recipe = Recipe(rows=Source(parquet=str(tmp_path / "rows.parquet")), models=models, steps=steps)
    return Store(tmp_path / "store"), run_local(recipe, tmp_path / "store")


@pytest.mark.slow
def test_a_share_of_the_rows_is_asked_about_and_the_classifier_is_held_against_it(tmp_path, monkeypatch):
    def replies(messages):
        return "hm" if "question 7" in messages[0]["content"] else "OPEN-ENDED"

    made, report = store(tmp_path, (AskQueryType(share=0.5), *rer(asked=True)), monkeypatch, replies)
    found = query(made, "SELECT * FROM rows").to_pylist()
    asked = [row for row in found if row["query_type_asked"]]
    assert 70 < len(asked) < 130 and {row["query_type"] for row in asked} == {"open"}
    unread = [row for row in found if row["query_type_asked_reason"]]
    assert unread and all(
        row["query_type_asked_reason"] == "stop: hm" and row["query_type_asked"] is None for row in unread
    )
    assert {row["query_type_by"] for row in found} == {"language model", "classifier"}
    agreed = sum(row["query_type_open"] >= 0.5 for row in asked) / len(asked)
    facts = made.facts("query_type")
    assert facts["agreement_with_language_model"] == pytest.approx(agreed) and facts["asked"] == len(asked)
    assert any(f"agrees with the language model on {agreed:.0%} of {len(asked)} rows" in line for line in report.lines)
    assert any("replies could not be read" in line for line in report.lines)


@pytest.mark.slow
def test_the_share_of_answers_that_are_not_worse_stands_beside_the_column(tmp_path, monkeypatch):
    def replies(messages):
        golden = "answer 1" in messages[1]["content"]
        return "no idea" if "question 3\n" in messages[1]["content"] else f"[[{5 if golden else 6}]]"

    made, report = store(tmp_path, (Generate(k=4), Judge(variant="gpt", share=0.3, candidates=2)), monkeypatch, replies)
    rows = query(made, "SELECT * FROM rows WHERE judged_gpt IS NOT NULL").to_pylist()
    assert 30 < len(rows) < 90 and all(len(row["judged_gpt"]) == 2 for row in rows)
    pairs = [(row["judged_golden_gpt"], one) for row in rows for one in row["judged_gpt"] if one is not None]
    share = sum(one >= golden for golden, one in pairs) / len(pairs)
    assert made.facts("judged_gpt")["rated"] == len(pairs) and 0 < share <= 1
    assert any(f"of {len(pairs)} candidates {share:.0%} rated no worse" in line for line in report.lines)


def test_relevant_sentences_are_a_share_and_a_reason(tmp_path):
    made, _ = store(tmp_path, (RelevantSentences(share=0.2),))
    shares = query(made, "SELECT relevant_sentences AS s FROM rows WHERE relevant_sentences IS NOT NULL")[
        "s"
    ].to_pylist()
    assert 20 < len(shares) < 60 and all(0 <= share <= 1 for share in shares)
