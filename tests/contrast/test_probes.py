"""Probes: what each makes of an answer, and where it does not apply; the sample set that they are."""

from __future__ import annotations

import json

import pytest

from seamcurate import FakeModel, Probes, Recipe, Reward, Rewards, Source, plan, query, run_local
from seamcurate.contrast import PROBES
from seamcurate.contrast.probes import Answered, differ
from seamcurate.errors import SourceError

CHOICE = Answered(
    "Which is a fruit? (A) a stone (B) an apple (C) a dog", "An apple grows on trees. The answer is (B).", "B",
    other="It is green.", similar="An apple.", references=("A", "C"),
)  # fmt: skip
NUMBER = Answered("What is 30 times 40?", "30 × 40 is 1200.\n#### 1,200", "1,200", other="2 and 2.\n#### 4")
TEXT = Answered("What is the capital of Italy?", "It is Rome.", "Rome", references=("Paris", "Lima"))
OPEN = Answered("Why is the sky blue?", "Air scatters blue light more than red light.")


def made(row: Answered, seed: int = 0) -> dict[str, str]:
    answers = {probe.name: probe.make(row, seed) for probe in PROBES}
    return {name: answer for name, answer in answers.items() if answer is not None}


def test_every_probe_changes_the_answer_and_says_what_it_is_for():
    assert len({probe.name for probe in PROBES}) == len(PROBES)
    for row in (CHOICE, NUMBER, TEXT, OPEN):
        for name, answer in made(row).items():
            assert answer != row.response, name
    assert set().union(*(made(row) for row in (CHOICE, NUMBER))) == {probe.name for probe in PROBES}
    for probe in PROBES:
        assert probe.kind in ("worse", "neutral") and probe.purpose and probe.finds
        assert probe.make.__doc__


def test_a_probe_that_does_not_apply_makes_no_answer():
    assert "option_changed" not in made(NUMBER) and "number_changed" not in made(CHOICE)
    assert not {"other_answer", "similar_answer", "option_changed", "number_changed", "all_answers"} & {*made(OPEN)}
    assert "cut_in_half" not in made(TEXT)
    assert "look_alike_letters" not in made(OPEN._replace(response="因为空气散射蓝光。"))
    assert "empty_thinking" not in made(OPEN._replace(response="<think>So</think> it is."))
    assert "question_only" not in made(OPEN._replace(response=OPEN.prompt))


def test_the_letter_of_another_option_takes_the_place_of_the_right_one():
    assert made(CHOICE)["option_changed"] == "An apple grows on trees. The answer is (A)."
    assert made(CHOICE, 1)["option_changed"] == "An apple grows on trees. The answer is (C)."
    assert made(CHOICE)["all_answers"] == "The answer is A, B or C."
    # Letters of words stay; without options in the question there are four.
    assert made(Answered("Which?", "B. A Boat", "B"))["option_changed"] == "A. A Boat"
    assert made(Answered("Which?", "A", None))["option_changed"] == "B"
    assert "option_changed" not in made(Answered("Which blood group?", "A man has it", "A"))


def test_the_number_that_is_the_answer_changes_wherever_it_is_written():
    assert made(NUMBER)["number_changed"] == "30 × 40 is 1,284.\n#### 1,284"
    assert made(NUMBER, 1)["number_changed"] == "30 × 40 is 1,116.\n#### 1,116"
    assert made(NUMBER)["all_answers"] == "#### 1,284\n#### 1,200\n#### 1,116"
    assert made(NUMBER)["wrong_reasoning"] == "2 and 2.\n\n#### 1,200"
    boxed = Answered("?", r"So \boxed{-0.5}, of 10.5", r"\boxed{-0.5}", other="No.")
    assert made(boxed)["number_changed"] == r"So \boxed{1.5}, of 10.5"
    assert made(boxed)["all_answers"] == r"The answer is one of these: \boxed{1.5}, \boxed{-0.5}, \boxed{-1.5}"
    # A number that nobody calls the answer is none, and one of too many digits is left alone.
    assert "number_changed" not in made(Answered("?", "There are 4 of them."))
    assert "number_changed" not in made(Answered("?", "9" * 5000, "9" * 5000))


def test_a_short_reference_stands_between_those_of_other_rows():
    assert made(TEXT)["all_answers"] == "The answer is Paris, Rome or Lima."
    assert "all_answers" not in made(TEXT._replace(references=("Paris",)))


def test_rows_of_one_answer_do_not_differ():
    assert differ(TEXT, NUMBER)
    assert not differ(TEXT, Answered("Where is the Colosseum?", "In the city of Rome", " rome"))
    assert not differ(OPEN, Answered("Why?", " air scatters BLUE light more than red light."))
    assert not differ(Answered("a", "x\n#### 4"), Answered("b", r"y \boxed{4}"))
    assert not differ(OPEN, Answered(OPEN.prompt, "Because."))


@pytest.fixture
def rows(tmp_path):
    """Questions, one of them a chat's, one without an answer."""
    lines = [
        {"prompt": f"What is {i} plus {i}?", "response": f"{i} + {i} = {i + i}", "reference": str(i + i)}
        for i in range(6)
    ]
    lines.append({"prompt": "Who painted Guernica?", "response": "Picasso.", "reference": None})
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    return tmp_path / "rows.jsonl"


def test_the_sample_set_is_scored_and_queried_as_any_other(rows, tmp_path):
    reward = FakeModel(path="reward")
    steps = [Probes(), Reward(reward=reward), Rewards(variant="probe", reward=reward)]
    recipe = Recipe(rows=Source(jsonl=str(rows)), steps=steps)
    lines = run_local(recipe, tmp_path / "store").lines
    probed = query(
        tmp_path / "store", "SELECT row_id, response, worse_probe, rewards_probe FROM rows ORDER BY row_id"
    ).to_pylist()
    for row in probed:
        names = [candidate["probe"] for candidate in row["worse_probe"]]
        assert names == [probe.name for probe in PROBES if probe.name in names]
        assert len(row["rewards_probe"]) == len(names)
    first = {candidate["probe"]: candidate["response"] for candidate in probed[1]["worse_probe"]}
    assert first["similar_answer"] in [row["response"] for row in probed if row["row_id"] != 1]
    assert first["other_answer"] in [row["response"] for row in probed if row["row_id"] != 1]
    total = sum(len(row["worse_probe"]) for row in probed)
    assert f"worse_probe: {total} answers by 21 of 22 probes for 7 rows" in lines
    candidates = query(
        tmp_path / "store",
        "SELECT count(*) AS n, count(candidates.reward) AS scored, count(*) FILTER (worse_probe[rank].probe = 'emptied') AS emptied "
        "FROM candidates JOIN rows USING (row_id) WHERE variant = 'probe'",
    ).to_pylist()
    assert candidates == [{"n": total, "scored": total, "emptied": 7}]
    assert plan(recipe, tmp_path / "new").lines[-1].calls == 7 * len(PROBES)


def test_chats_and_rows_without_an_answer(tmp_path):
    chat = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "What is a set?"}]
    lines = [{"messages": [*chat, {"role": "assistant", "content": "A collection of things."}]}]
    (tmp_path / "chats.jsonl").write_text(json.dumps(lines[0]))
    (tmp_path / "prompts.jsonl").write_text(json.dumps({"prompt": "What is a set?"}))
    run_local(
        Recipe(rows=Source(jsonl=str(tmp_path / "chats.jsonl"), messages="messages"), steps=[Probes()]),
        tmp_path / "chats",
    )
    ((worse,),) = query(tmp_path / "chats", "SELECT worse_probe FROM rows").to_pydict().values()
    by_name = {candidate["probe"]: candidate["response"] for candidate in worse}
    assert by_name["question_only"] == "What is a set?" and "other_answer" not in by_name
    run_local(Recipe(rows=Source(jsonl=str(tmp_path / "prompts.jsonl")), steps=[Probes()]), tmp_path / "prompts")
    assert query(tmp_path / "prompts", "SELECT worse_probe FROM rows").to_pylist() == [{"worse_probe": None}]


def test_answers_to_similar_questions_come_from_another_set_where_one_is_named(rows, tmp_path):
    corpus = [
        {"question": "Did Monet paint Guernica?", "answer": "No."},
        {"question": "What rhymes?", "answer": "Time."},
    ]
    (tmp_path / "corpus.jsonl").write_text("".join(json.dumps(line) + "\n" for line in corpus))
    against = Source(jsonl=str(tmp_path / "corpus.jsonl"), prompt="question", response="answer")
    recipe = Recipe(rows=Source(jsonl=str(rows)), steps=[Probes(against=against)])
    run_local(recipe, tmp_path / "store")
    worse = query(tmp_path / "store", "SELECT worse_probe FROM rows ORDER BY row_id")["worse_probe"].to_pylist()
    similar = [[c["response"] for c in row if c["probe"] == "similar_answer"] for row in worse]
    assert similar == [[]] * 6 + [["No."]]
    absent = Source(jsonl=str(tmp_path / "absent.jsonl"), prompt="question", response="answer")
    with pytest.raises(SourceError, match="absent"):
        run_local(Recipe(rows=Source(jsonl=str(rows)), steps=[Probes(against=absent)]), tmp_path / "new")
    assert not (tmp_path / "new" / "columns").exists()
