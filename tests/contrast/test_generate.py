"""Sets of worse answers written by a language model: reading them, and telling them apart."""

from __future__ import annotations

import json

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from seamcurate import FakeModel, Generate, Models, Recipe, Retrieve, Source, Store, query, run_local, seam
from seamcurate.contrast.generate import listed
from seamcurate.models import Reply


@pytest.mark.parametrize(
    ("text", "answers"),
    [
        ('{"answers": ["a", "b"]}', ["a", "b"]),
        ('```json\n{"answers": ["a", "b"]}\n```', ["a", "b"]),
        ('Here they are:\n["a", "b"]\nGood luck!', ["a", "b"]),
        ('{"answers": [{"answer": "a"}, {"answer": "b"}]}', ["a", "b"]),
        ('{"1": "a", "2": "b"}', ["a", "b"]),
        ('{"answers": ["a", 7, null, "b"]}', ["a", "b"]),
        ('{"answers": ["a", "b \\"quoted\\"", "cut of', ["a", 'b "quoted"']),
        ("Sure:\n1. a\nmore of a\n2. b\n", ["a\nmore of a", "b"]),
        ("**Answer 1:** a\n\n**Answer 2:** b", ["a", "b"]),
        ("1) a\n2) b", ["a", "b"]),
        ("first paragraph\n\nsecond paragraph", ["first paragraph", "second paragraph"]),
        ("one line that is no list", []),
        ("", []),
        ("[" * 100_000, []),
        ('{"answers": "only one"}', ["only one"]),
        ('{"answers": [{"type": "factual error", "text": "a"}, {"type": "grammar", "text": "b"}]}', ["a", "b"]),
        (
            '{"answers": [{"id": "1", "mistake": "x", "wrong": "a"}, {"id": "2", "mistake": "y", "wrong": "b"}]}',
            ["a", "b"],
        ),
        ('{"answers": [{"answer_type": "x", "AnswerText": "a"}, {"answer": {"text": "b"}}]}', ["a", "b"]),
        ('{"answers": [{"correct_answer": "x", "worse_answer": "a"}]}', ["a"]),
        ('{"answers": [{"type": "factual error", "id": "b"}]}', []),
        ('{"answers": [{"one": "a", "two": "b"}]}', []),
        ('{"types": ["x", "y"], "answers": ["a", "b"]}', ["a", "b"]),
        ('{"answers": {"1": "a", "2": "b"}}', ["a", "b"]),
        ('{"answer_1": "a", "answer_2": "b"}', ["a", "b"]),
        ('{"explanation": "x", "answer": "a"}', ["a"]),
        ('{"error": "I cannot"}', []),
        ('{"answers": ["a line\nand another", "b"]}', ["a line\nand another", "b"]),
        ('Sure:\n```json\n{"answers": ["a", "b"]}\n```\nGood luck!', ["a", "b"]),
        ('As {"answers": ["x"]} says: {"answers": ["a", "b"]}', ["a", "b"]),
        ('1. call f(["b", "a"])\n2. call g(["c"])', ['call f(["b", "a"])', 'call g(["c"])']),
        ("Here they are:\n\na b\n\nc d", ["a b", "c d"]),
        ('```json\n{"answers": ["a", "b"]}\n', ["a", "b"]),
    ],
)
def test_answers_are_found_in_whatever_form_they_come(text, answers):
    assert listed(text) == answers


@pytest.mark.parametrize(
    ("text", "answers"),
    [
        ('{"answers": ["a", "b", "cut of', ["a", "b"]),
        ('```json\n{"note": "see [1]", "answers": [{"type": "x", "text": "a"}, {"type": "y", "te', ["a"]),
        ("1. a\n2. b\n3. cut of", ["a", "b"]),
        ("I could:\n1. turn it round\n2. invent a name\n3. deny it", []),
        ('The format is {"answers": ["the first answer"]}.', []),
        ("a\n\nb", []),
        ('["a", 7', ["a"]),
    ],
)
def test_of_a_reply_that_was_cut_only_answers_before_the_cut_are_taken(text, answers):
    assert listed(text, complete=False) == answers


def test_a_single_answer_that_was_cut_is_none():
    (answers, reason), _ = made([Reply("a wrong thi", "length", "m"), "b is wrong", "c is wrong"], k=2, calls="each")
    assert answers == ["b is wrong", "c is wrong"] and reason is None


def made(replies, golden="the sorted list has three items", k=3, **options):
    """Hold one conversation, answering with these texts."""
    conversation = Generate(k=k, **options)._conversation("a question", golden)
    asked = [next(conversation)]
    for reply in replies:
        try:
            asked.append(conversation.send(reply if isinstance(reply, Reply) else Reply(reply, "stop", "m")))
        except StopIteration as ended:
            return ended.value, asked
    raise AssertionError("asked for more than was given")


def test_copies_and_repetitions_are_left_out_and_counted():
    near = "a long answer with many words that says the same thing over and over to anybody who may ask about it today"
    first = json.dumps(
        {"answers": ["The sorted list has three items.", near, near + "!", near.replace("today", "now")]}
    )
    (answers, reason), asked = made([first, first])
    assert answers == [near]
    assert reason == "1 of 3; 2 like the golden response, 5 near-identical"
    assert len(asked) == 2 and "Generate 2 more" in asked[1].messages[-1]["content"] and asked[1].draw == 1


def test_a_set_cut_short_is_filled_by_the_second_ask():
    cut = Reply('{"answers": ["one wrong thing", "two wr', "length", "m")
    (answers, reason), _ = made([cut, json.dumps({"answers": ["b is wrong", "c is wrong", "d is wrong"]})])
    assert answers == ["one wrong thing", "b is wrong", "c is wrong"] and reason is None


def test_text_that_looks_like_a_blank_is_not_filled_in():
    step = Generate(k=2)
    request = next(step._conversation("what is {answer} and {count}?", "it is {question}"))
    assert "what is {answer} and {count}?" in request.messages[1]["content"]
    assert (
        "it is {question}" in request.messages[1]["content"] and "generate 2 distinct" in request.messages[0]["content"]
    )


def test_single_answers_go_on_until_there_are_enough():
    (answers, reason), asked = made(["a x", "A x", "b y", "c z"], calls="each")
    assert answers == ["a x", "b y", "c z"] and reason is None
    assert [request.draw for request in asked] == [0, 1, 2, 3] and asked[0].schema is None


def test_a_template_of_ones_own_is_part_of_what_the_step_is(tmp_path):
    (tmp_path / "mine.txt").write_text("Worsen {answer} ({count} times).")
    mine = Generate(template=str(tmp_path / "mine.txt"))
    assert next(mine._conversation("q", "r")).messages == [{"role": "user", "content": "Worsen r (30 times)."}]
    assert mine.identity() != Generate().identity()
    with pytest.raises(ValueError, match="cannot be read"):
        Generate(template=str(tmp_path / "none.txt"))


@pytest.mark.slow
def test_both_sets_meet_the_same_contract_and_compare_in_one_query(tmp_path):
    rows = [
        {"prompt": f"how do I sort list {i}", "response": f"call sort on list {i} {'x' * (i % 3)}"} for i in range(60)
    ]
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "rows.parquet")
    source = Source(parquet=str(tmp_path / "rows.parquet"))
    fake = FakeModel(path="3")
    steps = (Retrieve(k=4, band=(0.2, 0.99)), Generate(k=4), *seam("contrast"), *seam("gpt"))
    models = Models(policy=fake, reward=fake, encoder=fake, generator=fake)
    run_local(Recipe(rows=source, corpus=source, models=models, steps=steps), tmp_path / "store")
    counts = query(
        Store(tmp_path / "store"),
        "SELECT variant, count(*) AS n, count(response) AS texts, count(reward) AS rewards, max(rank) AS most "
        "FROM candidates GROUP BY variant ORDER BY variant",
    ).to_pylist()
    assert [(c["variant"], c["most"]) for c in counts] == [("contrast", 4), ("gpt", 4)]
    assert all(c["n"] == c["texts"] == c["rewards"] > 0 for c in counts)
    both = query(Store(tmp_path / "store"), "SELECT count(*) AS n FROM rows WHERE seam_contrast <= 0 AND seam_gpt <= 0")
    assert both["n"][0].as_py() > 0


def test_a_row_whose_set_could_not_be_made_is_null_with_its_reason_all_the_way(tmp_path, monkeypatch):
    rows = [{"prompt": f"question {i}", "response": f"answer {i} to it"} for i in range(6)]
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "rows.parquet")
    fake = FakeModel(path="3")
    own = FakeModel._text
    monkeypatch.setattr(FakeModel, "_text", lambda self, r: "no" if "question 2" in str(r.messages) else own(self, r))
    models = Models(policy=fake, reward=fake, generator=fake)
    recipe = Recipe(
        rows=Source(parquet=str(tmp_path / "rows.parquet")), models=models, steps=(Generate(k=3), *seam("gpt"))
    )
    report = run_local(recipe, tmp_path / "store")
    (row,) = query(Store(tmp_path / "store"), "SELECT * FROM rows WHERE prompt = 'question 2'").to_pylist()
    assert (
        row["worse_gpt"] is None
        and row["seam_gpt"] is None
        and row["reason_gpt"] == "no list of answers came back but 'no'"
    )
    assert any("1 row has no worse_gpt" in line for line in report.lines)
    assert query(Store(tmp_path / "store"), "SELECT DISTINCT row_id FROM candidates").num_rows == 5
