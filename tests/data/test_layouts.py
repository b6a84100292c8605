"""Each public layout gives the question, the golden response and the worse answers that its data set publishes."""

from __future__ import annotations

import itertools
import json
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from pydantic import ValidationError

from seamcurate import FakeModel, Models, Recipe, Rewards, Source, query, run_local, seam
from seamcurate.data.layouts import LAYOUTS, looks_like
from seamcurate.errors import SourceError

PREFERENCES = Path(__file__).parents[3] / "shared" / "data" / "preferences.parquet"


def user(*texts: str) -> list[dict[str, str]]:
    """Return a chat that alternates between user and assistant."""
    return [{"role": ("user", "assistant")[i % 2], "content": text} for i, text in enumerate(texts)]


def worse(*answers: tuple[str, float | None]) -> list[dict[str, object]]:
    return [{"response": text, "rating": rating} for text, rating in answers]


def rated(text: str, score: float | None, *ratings: str) -> dict[str, object]:
    annotations = {name: {"Rating": value, "Rationale": "…"} for name, value in zip("abcd", ratings, strict=False)}
    return {
        "model": "m",
        "response": text,
        "annotations": annotations,
        "fine-grained_score": score,
        "overall_score": 10.0,
    }


# The rows as they are published, shortened. Alpaca: Stanford's file and LLaMA-Factory's `data/README.md`. Others: their cards
# on the Hub; verl's `docs/preparation/prepare_data.rst`; open-instruct and FastChat read the same fields.
PUBLISHED: dict[str, tuple[list[dict[str, object]], list[dict[str, object]]]] = {
    "alpaca": (
        [
            {"instruction": "Put it into the past tense.", "input": "I walk home", "output": "I walked home"},
            {"instruction": "Name a sea.", "input": "", "output": "The Baltic."},
        ],
        [
            {"prompt": "Put it into the past tense.\nI walk home", "response": "I walked home"},
            {"prompt": "Name a sea.", "response": "The Baltic."},
        ],
    ),
    "sharegpt": (
        [
            {
                "id": "x1",
                "system": "Be kind",
                "conversations": [
                    {"from": "human", "value": "How warm?"},
                    {"from": "function_call", "value": '{"name": "w"}'},
                    {"from": "observation", "value": "3"},
                    {"from": "gpt", "value": "Three degrees."},
                    {"from": "human", "value": "Thanks"},
                ],
            },
            {"id": "x2", "conversations": [{"from": "user", "value": "Hi"}, {"from": "chatgpt", "value": "Hello"}]},
        ],
        [
            {
                "prompt": [
                    {"role": "system", "content": "Be kind"},
                    *user("How warm?", '{"name": "w"}'),
                    {"role": "tool", "content": "3"},
                ],
                "response": "Three degrees.",
                "id": "x1",
            },
            {"prompt": user("Hi"), "response": "Hello", "id": "x2"},
        ],
    ),
    "messages": (
        [
            {"prompt": "Hi", "prompt_id": "1", "messages": user("Hi", "Hello", "A sea?", "The Baltic.")},
            {"prompt": "Hi", "prompt_id": "2", "messages": user("Hi", "Hello", "Thanks")},
        ],
        [
            {"prompt": user("Hi", "Hello", "A sea?"), "response": "The Baltic.", "prompt_id": "1"},
            {"prompt": user("Hi"), "response": "Hello", "prompt_id": "2"},
        ],
    ),
    "hh": (
        [
            {
                "chosen": "\n\nHuman: A sea?\n\nAssistant: Which one?\n\nHuman: Any.\n\nAssistant: The Baltic.",
                "rejected": "\n\nHuman: A sea?\n\nAssistant: Which one?\n\nHuman: Any.\n\nAssistant: No.",
            },
            {
                "chosen": "\n\nHuman: A lake?\n\nAssistant: Ladoga.",
                "rejected": "\n\nHuman: A pond?\n\nAssistant: No.",
            },
        ],
        [
            {
                "prompt": user("A sea?", "Which one?", "Any."),
                "response": "The Baltic.",
                "worse_given": worse(("No.", None)),
            },
            {"prompt": user("A lake?"), "response": "Ladoga.", "worse_given": None},
        ],
    ),
    "ultrafeedback": (
        [
            {
                "source": "flan",
                "instruction": "A sea?",
                "models": ["m"] * 4,
                "completions": [
                    rated("Paris", 1.5),
                    rated("The Baltic", 4.75),
                    rated("North", 4.75),
                    rated("A lake", 3.0),
                ],
                "correct_answers": ["None"],
            },
            {
                "source": "flan",
                "instruction": "A lake?",
                "models": ["m"] * 2,
                "completions": [rated("Rome", None, "1", "N/A", "2"), rated("Ladoga", None, "5", "5", "4", "5")],
                "correct_answers": ["None"],
            },
        ],
        [
            {
                "prompt": "A sea?",
                "response": "The Baltic",
                "rating": 4.75,
                "worse_given": worse(("A lake", 3.0), ("Paris", 1.5)),
                "source": "flan",
                "models": ["m"] * 4,
                "correct_answers": ["None"],
            },
            {
                "prompt": "A lake?",
                "response": "Ladoga",
                "rating": 4.75,
                "worse_given": worse(("Rome", 1.5)),
                "source": "flan",
                "models": ["m"] * 2,
                "correct_answers": ["None"],
            },
        ],
    ),
    "nectar": (
        [
            {
                "prompt": "\n\nHuman: A sea?\n\nAssistant: ",
                "answers": [
                    {"answer": "Rome", "model": "gpt-4", "rank": 3.0},
                    {"answer": "The Baltic", "model": "gpt-4", "rank": 1.0},
                    {"answer": "Ladoga", "model": "gpt-4", "rank": 2.0},
                ],
                "turns": 1,
                "num_responses": 3,
            }
        ],
        [
            {
                "prompt": user("A sea?"),
                "response": "The Baltic",
                "rating": -1.0,
                "worse_given": worse(("Ladoga", -2.0), ("Rome", -3.0)),
                "turns": 1,
                "num_responses": 3,
            }
        ],
    ),
    "pku_saferlhf": (
        [
            {
                "prompt": "A poison?",
                "response_0": "Take …",
                "response_1": "I will not.",
                "is_response_0_safe": False,
                "is_response_1_safe": True,
                "better_response_id": 0,
                "safer_response_id": 1,
            }
        ],
        [
            {
                "prompt": "A poison?",
                "response": "I will not.",
                "worse_given": worse(("Take …", None)),
                "is_safe": True,
                "is_better": False,
                "is_response_0_safe": False,
                "is_response_1_safe": True,
                "better_response_id": 0,
                "safer_response_id": 1,
            }
        ],
    ),
    "helpsteer": (
        [
            {
                "prompt": "A sea?",
                "response": "Rome.",
                "helpfulness": 1,
                "correctness": 0,
                "coherence": 4,
                "verbosity": 1,
            },
            {
                "prompt": "A sea?",
                "response": "The Baltic.",
                "helpfulness": 4,
                "correctness": 4,
                "coherence": 4,
                "verbosity": 2,
            },
            {
                "prompt": "Hi\n<extra_id_1>Assistant\nHello\n<extra_id_1>User\nA lake?",
                "response": "Ladoga.",
                "helpfulness": 3,
                "correctness": 4,
                "coherence": 4,
                "verbosity": 1,
            },
        ],
        [
            {
                "prompt": user("A sea?"),
                "response": "The Baltic.",
                "helpfulness": 4,
                "correctness": 4,
                "coherence": 4,
                "verbosity": 2,
                "rating": 4.0,
                "worse_given": worse(("Rome.", 1.0)),
            },
            {
                "prompt": user("Hi", "Hello", "A lake?"),
                "response": "Ladoga.",
                "helpfulness": 3,
                "correctness": 4,
                "coherence": 4,
                "verbosity": 1,
                "rating": 3.0,
                "worse_given": [],
            },
        ],
    ),
    "verl": (
        [
            {
                "data_source": "openai/gsm8k",
                "prompt": user("2 + 2?"),
                "ability": "math",
                "reward_model": {"style": "rule", "ground_truth": "4"},
                "extra_info": {"split": "train", "index": 0, "answer": "2 + 2 = 4 #### 4"},
            }
        ],
        [
            {
                "prompt": user("2 + 2?"),
                "response": "2 + 2 = 4 #### 4",
                "reference": "4",
                "data_source": "openai/gsm8k",
                "ability": "math",
                "reward_model": {"style": "rule", "ground_truth": "4"},
                "extra_info": {"split": "train", "index": 0, "answer": "2 + 2 = 4 #### 4"},
            }
        ],
    ),
    "rewardbench": (
        [
            {
                "prompt": "A sea?",
                "chosen": "The Baltic",
                "chosen_model": "a",
                "rejected": "Rome",
                "rejected_model": "b",
                "subset": "alpacaeval-easy",
                "id": 7,
            }
        ],
        [
            {
                "prompt": "A sea?",
                "response": "The Baltic",
                "other_golden": [],
                "worse_given": worse(("Rome", None)),
                "chosen_model": "a",
                "rejected_model": "b",
                "subset": "alpacaeval-easy",
                "id": 7,
            }
        ],
    ),
    "dolly": (
        [
            {"instruction": "When?", "context": "It began in 2000.", "response": "In 2000.", "category": "closed_qa"},
            {"instruction": "A sea?", "context": "", "response": "The Baltic.", "category": "open_qa"},
        ],
        [
            {"prompt": "When?\n\nIt began in 2000.", "response": "In 2000.", "category": "closed_qa"},
            {"prompt": "A sea?", "response": "The Baltic.", "category": "open_qa"},
        ],
    ),
}


def message(
    id: str, parent: str | None, role: str, text: str, rank: int | None = None, **more: object
) -> dict[str, object]:
    about = {"message_tree_id": "t1", "lang": "en", "deleted": False, "tree_state": "ready_for_export"}
    return {"message_id": id, "parent_id": parent, "text": text, "role": role, "rank": rank, **about, **more}


TREE = [
    message("q", None, "prompter", "A sea?"),
    message("bad", "q", "assistant", "Rome", 1),
    message("under_bad", "bad", "prompter", "Rome?"),
    message("good", "q", "assistant", "The Baltic", 0),
    message("gone", "q", "assistant", "spam", 2, deleted=True),
    message("more", "good", "prompter", "How deep?"),
    message("deep", "more", "assistant", "459 m"),
    message("unanswered", "good", "prompter", "And the North Sea?"),
]
BEST_PATHS = [
    {
        "prompt": user("A sea?"),
        "response": "The Baltic",
        "rating": 0.0,
        "worse_given": worse(("Rome", -1.0)),
        "message_id": "good",
        "message_tree_id": "t1",
        "lang": "en",
    },
    {
        "prompt": user("A sea?", "The Baltic", "How deep?"),
        "response": "459 m",
        "rating": None,
        "worse_given": [],
        "message_id": "deep",
        "message_tree_id": "t1",
        "lang": "en",
    },
]
NESTED = {
    "message_tree_id": "t1",
    "tree_state": "ready_for_export",
    "prompt": {
        **{key: TREE[0][key] for key in ("message_id", "text", "role", "lang")},
        "replies": [
            {"message_id": "bad", "text": "Rome", "role": "assistant", "lang": "en", "rank": 1, "replies": []},
            {
                "message_id": "good",
                "text": "The Baltic",
                "role": "assistant",
                "lang": "en",
                "rank": 0,
                "replies": [
                    {
                        "message_id": "more",
                        "text": "How deep?",
                        "role": "prompter",
                        "lang": "en",
                        "replies": [
                            {"message_id": "deep", "text": "459 m", "role": "assistant", "lang": "en", "replies": []}
                        ],
                    }
                ],
            },
        ],
    },
}
PUBLISHED["oasst"] = (TREE, BEST_PATHS)


def written(folder: Path, *rows: object) -> str:
    (folder / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(folder / "rows.jsonl")


def read(source: Source) -> list[dict[str, object]]:
    table = pa.concat_tables([chunk.rows for chunk in source.chunks()], promote_options="default")
    return table.drop_columns(["row_id"]).to_pylist()


@pytest.mark.parametrize("name", LAYOUTS)
def test_a_published_row_is_read_alike_from_lines_and_from_columns(name: str, tmp_path: Path) -> None:
    published, expected = PUBLISHED[name]
    lines = Source(jsonl=written(tmp_path, *published), layout=name)
    assert read(lines) == expected
    assert [row for chunk in lines.chunks() for row in chunk.rejected.to_pylist()] == []
    pq.write_table(pa.Table.from_pylist(published), tmp_path / "rows.parquet")
    columns = Source(parquet=str(tmp_path / "rows.parquet"), layout=name)
    assert [{key: row[key] for key in first} for row, first in zip(read(columns), expected, strict=True)] == expected
    # Resuming after any chunk gives what is left, and a chunk's size changes no row.
    small = lines.model_copy(update={"shard_rows": 1})
    chunks = list(small.chunks())
    assert read(small) == expected
    for number, chunk in enumerate(chunks, 1):
        assert [later.rows for later in small.chunks(number, chunk.schema)] == [later.rows for later in chunks[number:]]


def spoiled(row: object, junk: object, place: int) -> object:
    """Replace one value of a row, at any depth, by another."""
    count = itertools.count()

    def copy(value: object) -> object:
        if next(count) == place:
            return junk
        if isinstance(value, dict):
            return {key: copy(cell) for key, cell in value.items()}
        return [copy(entry) for entry in value] if isinstance(value, list) else value

    return {key: copy(cell) for key, cell in row.items()} if isinstance(row, dict) else row


@pytest.mark.parametrize("name", LAYOUTS)
def test_whatever_a_row_holds_it_comes_out_or_is_set_aside(name: str) -> None:
    junk_ids: list[object] = [None, True, 1.0, -7, [], [None], [[]], {}, {"a": 1}, [{"role": "user"}], 10**400]
    junk: list[object] = [
        None,
        True,
        1.0,
        -7,
        "",
        "x",
        [],
        [None],
        [[]],
        {},
        {"a": 1},
        [{"role": "user"}],
        "\ud800",
        10**400,
    ]
    for form in (PUBLISHED[name][0], [NESTED] if name == "oasst" else []):
        for place in range(40):
            # The first row stays as it is, and with it the type of prompts.
            rows = [form[0], *(spoiled(row, value, place) for value in junk for row in form)] if form else []
            # An id of a tree that comes in between parts its messages, which is refused as a whole.
            parts_trees = name == "oasst" and any(row.get("message_tree_id") not in ("t1", *junk_ids) for row in rows)
            chunks = list(Source(data=rows, layout=name, shard_rows=50).chunks()) if rows and not parts_trees else []
            ids = [i for chunk in chunks for part in (chunk.rows, chunk.rejected) for i in part["row_id"].to_pylist()]
            assert sorted(ids) == list(range(len(ids)))
            if LAYOUTS[name].gather is None:
                assert len(ids) == len(rows)


@pytest.mark.parametrize("name", LAYOUTS)
def test_a_source_that_looks_like_a_layout_says_so(name: str, tmp_path: Path) -> None:
    published, _ = PUBLISHED[name]
    assert looks_like(published[0]) == name
    # What a layout reads tells it, without what comes beside it; answers without ranks are no layout's.
    bare = {key: cell for key, cell in published[0].items() if key != "num_responses"}
    assert looks_like(bare) == name
    assert looks_like({"prompt": "A sea?", "response": "The Baltic."}) is None
    assert looks_like({"prompt": "A sea?", "answers": [{"text": "The Baltic."}]}) is None
    if "prompt" not in published[0]:
        with pytest.raises(SourceError, match=f"no column 'prompt' for prompt; .*; it looks like `layout: {name}`"):
            read(Source(jsonl=written(tmp_path, *published)))


def test_the_trees_of_oasst_are_read_as_its_messages(tmp_path: Path) -> None:
    assert read(Source(jsonl=written(tmp_path, NESTED), layout="oasst")) == BEST_PATHS
    other = [{**row, "message_tree_id": "t2"} for row in TREE]
    with pytest.raises(SourceError, match="the messages of tree t1 do not follow each other; sort the rows"):
        read(Source(jsonl=written(tmp_path, *TREE, *other, *TREE), layout="oasst"))


def test_further_forms_of_preference_data_are_read(tmp_path: Path) -> None:
    binarized = {
        "prompt": "A sea?",
        "chosen": user("A sea?", "The Baltic"),
        "rejected": user("A sea?", "Rome"),
        "messages": user("A sea?", "The Baltic"),
        "score_chosen": 8.0,
        "score_rejected": 3.0,
    }
    (row,) = read(Source(jsonl=written(tmp_path, binarized), layout="ultrafeedback"))
    assert row == {
        "prompt": user("A sea?"),
        "response": "The Baltic",
        "rating": 8.0,
        "worse_given": worse(("Rome", 3.0)),
    }
    alpaca = {
        "instruction": "A",
        "input": "sea?",
        "history": [["Hi", "Hello"]],
        "chosen": "The Baltic",
        "rejected": "Rome",
    }
    (row,) = read(Source(jsonl=written(tmp_path, {**alpaca, "system": "Be brief."}), layout="alpaca"))
    turns = [{"role": "system", "content": "Be brief."}, *user("Hi", "Hello", "A\nsea?")]
    assert row == {"prompt": turns, "response": "The Baltic", "worse_given": worse(("Rome", None))}
    ties = {
        "id": "0",
        "prompt": "A sea?",
        "chosen": ["Baltic", "North"],
        "rejected": ["Rome", "Oslo"],
        "subset": "Ties",
    }
    (row,) = read(Source(jsonl=written(tmp_path, ties), layout="rewardbench"))
    assert (row["response"], row["other_golden"]) == ("Baltic", ["North"])
    assert row["worse_given"] == worse(("Rome", None), ("Oslo", None))
    pairs = [
        {"context": user("A sea?"), "response1": "Baltic", "response2": "Rome", "overall_preference": p, "domain": "d"}
        for p in (-2, 0, 3)
    ]
    source = Source(jsonl=written(tmp_path, *pairs), layout="helpsteer")
    assert [(row["response"], row["domain"]) for row in read(source)] == [("Baltic", "d"), ("Rome", "d")]
    assert [row for chunk in source.chunks() for row in chunk.rejected["reason"].to_pylist()] == [
        "overall_preference is for neither response"
    ]


def test_prompts_of_one_source_are_all_chats_where_one_needs_to_be(tmp_path: Path) -> None:
    plain = {"instruction": "A sea?", "output": "The Baltic"}
    path = written(tmp_path, plain, {**plain, "system": "Be brief."})
    for size in (1, 2):
        first, second = read(Source(jsonl=path, layout="alpaca", shard_rows=size))
        assert first["prompt"] == user("A sea?")
        assert second["prompt"] == [{"role": "system", "content": "Be brief."}, *user("A sea?")]


def test_rows_that_are_not_of_the_layout_are_set_aside_where_they_are(tmp_path: Path) -> None:
    good = PUBLISHED["hh"][0][0]
    (tmp_path / "rows.jsonl").write_bytes(
        b"\n".join(
            [b"{", json.dumps(good).encode(), b'{"chosen": "Hi", "rejected": "Ho"}', b'{"chosen": "\xff"}', b"7"]
        )
    )
    (chunk,) = Source(jsonl=str(tmp_path / "rows.jsonl"), layout="hh").chunks()
    assert chunk.rows["row_id"].to_pylist() == [1]
    assert [(row["row_id"], row["reason"]) for row in chunk.rejected.to_pylist()] == [
        (0, "line is not JSON: Expecting property name enclosed in double quotes at character 1"),
        (2, "chosen is no transcript: it does not start with 'Human:' or 'Assistant:'"),
        (3, "chosen is no transcript: it does not start with 'Human:' or 'Assistant:'"),
        (4, "line is not a JSON object but int64"),
    ]


def test_other_columns_are_kept_and_never_clash(tmp_path: Path) -> None:
    row = {
        "instruction": "A sea?",
        "output": "The Baltic",
        "prompt": "old",
        "Response": "old",
        "worse_given": 7,
        "n": 1,
    }
    (read_row,) = read(Source(jsonl=written(tmp_path, row), layout="alpaca", rename={"n": "count"}))
    assert read_row == {
        "prompt": "A sea?",
        "response": "The Baltic",
        "source_prompt": "old",
        "source_Response": "old",
        "source_worse_given": 7,
        "count": 1,
    }


def test_a_layout_that_does_not_fit_is_refused_in_one_line(tmp_path: Path) -> None:
    with pytest.raises(ValidationError, match=r"'alpaca', 'sharegpt', .* or 'dolly'"):
        Source(jsonl="a.jsonl", layout="alpacca")
    with pytest.raises(ValidationError, match="layout hh says which columns are what: leave response and prompt out"):
        Source(jsonl="a.jsonl", layout="hh", response="r", prompt="p")
    path = written(tmp_path, *PUBLISHED["dolly"][0])
    with pytest.raises(SourceError) as caught:
        read(Source(jsonl=path, layout="pku_saferlhf"))
    assert str(caught.value) == (
        f"{path}: layout pku_saferlhf needs the columns prompt, response_0, response_1, safer_response_id; it has "
        "instruction, context, response, category; it looks like `layout: dolly`"
    )


def test_columns_of_the_question_that_are_not_read_are_told(tmp_path: Path) -> None:
    path = written(tmp_path, *PUBLISHED["alpaca"][0])
    (chunk,) = Source(jsonl=path, prompt="instruction", response="output").chunks()
    assert chunk.notes == (
        f"{path}: input may belong to the question, and is not read",
        f"{path} looks like alpaca; `layout: alpaca` reads it as what it is",
    )
    (chunk,) = Source(jsonl=path, layout="alpaca").chunks()
    assert chunk.notes == ()
    (chunk,) = Source(data=[{"system": "s", "question": "q", "answer": "a"}], prompt="question").chunks()
    assert chunk.notes == ("data, a list of dicts: system may belong to the question, and is not read",)


def test_a_layout_is_part_of_the_fingerprint(tmp_path: Path) -> None:
    path = written(tmp_path, *PUBLISHED["messages"][0])
    without = Source(jsonl=path, messages="messages").identity()
    identity = Source(jsonl=path, layout="messages").identity()
    assert "layout" not in without
    assert isinstance(identity, dict) and identity["layout"] == "messages"


def test_the_worse_answers_of_preference_data_are_scored_by_seam(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    path = written(tmp_path, *PUBLISHED["nectar"][0])
    models = Models(policy=FakeModel(), reward=FakeModel())
    recipe = Recipe(rows=Source(jsonl=path, layout="nectar"), models=models, steps=[*seam("given")])
    assert any(isinstance(step, Rewards) for step in recipe.steps)
    run_local(recipe, tmp_path / "store")
    answers = query(tmp_path / "store", "SELECT response, reward IS NOT NULL AS scored FROM candidates ORDER BY rank")
    assert answers.to_pylist() == [{"response": "Ladoga", "scored": True}, {"response": "Rome", "scored": True}]
    assert query(tmp_path / "store", "SELECT candidates_given AS n FROM rows")["n"].to_pylist() == [2]


@pytest.mark.skipif(not PREFERENCES.exists(), reason="needs the real preferences beside the checkout")
def test_real_transcripts_are_split_into_turns() -> None:
    table = pq.read_table(PREFERENCES, columns=["prompt", "chosen", "rejected", "dataset", "n_human_turns"])
    rows = [row for row in table.to_pylist() if "hh" in row["dataset"].lower() and row["n_human_turns"] > 1][:200]
    transcripts = [
        {side: f"{row['prompt'].rstrip()} {row[side]}" for side in ("chosen", "rejected")}
        if row["prompt"].rstrip().endswith("Assistant:")
        else {side: f"{row['prompt'].rstrip()}\n\nAssistant: {row[side]}" for side in ("chosen", "rejected")}
        for row in rows
    ]
    assert transcripts
    (chunk,) = Source(data=transcripts, layout="hh").chunks()
    assert chunk.rejected.num_rows == 0
    for row, original in zip(chunk.rows.to_pylist(), rows, strict=True):
        assert row["response"] == original["chosen"].strip()
        assert sum(turn["role"] == "user" for turn in row["prompt"]) == original["n_human_turns"]
