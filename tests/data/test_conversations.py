"""Conversations in preference data and parts: nothing of a question is dropped in silence."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest

from seamcurate import Source
from seamcurate.data.source import Chunk
from seamcurate.errors import SourceError

SYSTEM = {"role": "system", "content": "S"}


def user(text: Any) -> dict[str, Any]:
    return {"role": "user", "content": text}


def assistant(text: Any) -> dict[str, Any]:
    return {"role": "assistant", "content": text}


def read(folder: Path, row: dict[str, Any], **fields: Any) -> Chunk:
    file = folder / "rows.jsonl"
    file.write_text(json.dumps(row) + "\n")
    return next(Source(jsonl=str(file), **fields).chunks())


@pytest.mark.parametrize(
    ("prompt", "chosen", "rejected", "asked", "worse"),
    [
        ("q", [user("q"), assistant("a")], [user("q"), assistant("b")], [user("q")], ["b"]),
        # The rejected answer is to another question.
        ("q", [user("q"), assistant("a")], [user("q"), assistant("b"), user("r"), assistant("c")], [user("q")], None),
        # The system turn stands in the chats alone.
        ([user("q")], [SYSTEM, user("q"), assistant("a")], [SYSTEM, user("q"), assistant("b")], [SYSTEM, user("q")], ["b"]),
        # The prompt is the last question alone.
        ([user("q")], [user("p"), assistant("x"), user("q"), assistant("a")], [assistant("b")],
         [user("p"), assistant("x"), user("q")], None),
        ("q", [assistant("a"), user("r"), assistant("c")], "b", [user("q"), assistant("a"), user("r")], ["b"]),
        # TRL's form without a prompt.
        (None, [user("q"), assistant("a")], [user("q"), assistant("b")], [user("q")], ["b"]),
        # A completion of several turns continues the prompt.
        ([user("q")], [assistant("a"), user("r"), assistant("c")], [assistant("a"), user("r"), assistant("d")],
         [user("q"), assistant("a"), user("r")], ["d"]),
        # The system turn stands in the prompt alone.
        ([SYSTEM, user("q")], [user("q"), assistant("a")], [user("q"), assistant("b")], [SYSTEM, user("q")], ["b"]),
    ],
)  # fmt: skip
def test_a_preference_keeps_all_that_was_asked(prompt, chosen, rejected, asked, worse, tmp_path):
    columns = {"prompt": prompt, "chosen": chosen, "rejected": rejected}
    if prompt is None:
        del columns["prompt"]
        with pytest.raises(SourceError, match="it looks like `layout: ultrafeedback`"):
            read(tmp_path, columns)
    chunk = read(tmp_path, columns, layout="ultrafeedback")
    (row,) = chunk.rows.to_pylist()
    answers = row["worse_given"]
    assert row["prompt"] == asked
    assert (answers if answers is None else [answer["response"] for answer in answers]) == worse


def test_a_preference_whose_chat_is_of_another_prompt_is_set_aside(tmp_path):
    row = {"prompt": [user("x")], "chosen": [user("q"), assistant("a")], "rejected": [user("q"), assistant("b")]}
    chunk = read(tmp_path, row, layout="ultrafeedback")
    assert chunk.rejected["reason"].to_pylist() == ["chosen neither repeats prompt nor goes on from it"]


@pytest.mark.parametrize("part", [{"type": "image", "text": ""}, {"image": "a.png", "text": ""}, {"type": "thinking", "text": "hm"}])  # fmt: skip
def test_a_part_that_is_no_text_sets_the_row_aside_though_it_has_a_text(part, tmp_path):
    row = {"prompt": [user([part, {"type": "text", "text": "what?"}])], "response": "a cat"}
    assert "has a part that is no text" in read(tmp_path, row, response="response").rejected["reason"][0].as_py()


@pytest.mark.parametrize("column", ["tools", "images"])
@pytest.mark.parametrize("layout", [None, "messages"])
def test_a_run_says_that_tools_and_images_are_not_read(column, layout, tmp_path):
    row = {"messages": [user("w?"), assistant("sunny")], column: ["x"]}
    chunk = read(tmp_path, row, **({"messages": "messages"} if layout is None else {"layout": layout}))
    assert any(f"{column} may belong to the question" in note for note in chunk.notes)


@pytest.mark.parametrize(
    ("chat", "note"),
    [
        (json.dumps([user("q")]), "messages written as JSON"),
        (json.dumps([{"from": "human", "value": "q"}]), "messages written as JSON"),
        (str([user("q")]), "messages as Python shows them"),
        ("[{x: 1}] is what?", None),
    ],
)
def test_a_run_says_that_a_text_is_a_chat_and_how_it_is_read(chat, note, tmp_path):
    chunk = read(tmp_path, {"prompt": chat, "response": "a"}, response="response")
    assert [note for note in chunk.notes if "plain text" in note] == list(chunk.notes)
    if note is None:
        assert chunk.notes == ()
        return
    assert note in chunk.notes[0]
    if "JSON" in note:
        # What the note says to write is run.
        expression = re.search(r"`select: \{prompt: '(.*)'\}`", chunk.notes[0])[1]
        again = read(tmp_path, {"prompt": chat, "response": "a"}, response="response", select={"prompt": expression})
        assert again.rows["prompt"].to_pylist() == [[user("q")]] and again.notes == ()


def test_preferences_in_text_are_known_and_a_rejected_answer_is_not_left_out_in_silence(tmp_path):
    row = {"prompt": "q", "chosen": "a", "rejected": "b"}
    (note,) = read(tmp_path, row, response="chosen").notes
    assert note.endswith("looks like rewardbench; `layout: rewardbench` reads it as what it is")
    row = {"question": "q", "chosen": "a", "rejected": "b"}
    (note,) = read(tmp_path, row, prompt="question", response="chosen").notes
    assert "rejected is not read; `layout: rewardbench, select: {prompt: question}` takes it" in note
    (answer,) = read(tmp_path, row, layout="rewardbench", select={"prompt": "question"}).rows["worse_given"].to_pylist()
    assert answer == [{"response": "b", "rating": None}]
