"""Every row that is read comes out once: taken, or rejected with its reason, and always at its place."""

from __future__ import annotations

import csv
import gzip
import json
import os
import re
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hub_server import Hub, serving
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError
from strategies import cell, line

from seamcurate.data import formats
from seamcurate.data import lines as text_lines
from seamcurate.data.source import REJECTED, Chunk, Source
from seamcurate.errors import SourceError
from seamcurate.step import MESSAGES

REAL = Path(__file__).parents[3] / "shared" / "data" / "rl_prompts.parquet"


def rows(source: Source) -> list[dict[str, object]]:
    return [row for chunk in source.chunks() for row in chunk.rows.to_pylist()]


def rejected(source: Source) -> list[tuple[int, str, str]]:
    return [tuple(row.values()) for chunk in source.chunks() for row in chunk.rejected.to_pylist()]


def reasons(source: Source) -> list[tuple[int, str]]:
    return [(position, reason) for position, reason, _ in rejected(source)]


def jsonl(folder: Path, *lines: object, name: str = "a.jsonl") -> str:
    encoded = [line if isinstance(line, bytes) else json.dumps(line).encode() for line in lines]
    (folder / name).write_bytes(b"\n".join(encoded) + b"\n")
    return str(folder / name)


def parquet(folder: Path, name: str = "a.parquet", **columns: object) -> str:
    pq.write_table(pa.table(columns), folder / name)
    return str(folder / name)


def unchecked(*values: bytes) -> pa.Array:
    return pa.array(values, pa.binary()).view(pa.string())


def spelled(chunks: list[Chunk]) -> list[str]:
    """Spell chunks out, since NaN does not equal itself."""
    return [f"{c.number} {c.rows.to_pylist()} {c.rejected.to_pylist()} {c.schema}" for c in chunks]


def check_resume(source: Source, chunks: list[Chunk]) -> None:
    """Go on after each chunk as a run does that was stopped there."""
    seen: list[str] = []
    for stop, last in enumerate(chunks, 1):
        if source.id is not None and "id" in last.rows.column_names:
            seen += last.rows["id"].to_pylist()
        resumed = list(source.chunks(stop, last.schema, seen))
        assert spelled(resumed) == spelled(chunks[stop:])


def check_chunks(source: Source, total: int) -> list[Chunk]:
    """Hold the rules that every source keeps, and return its chunks."""
    chunks = list(source.chunks())
    assert [chunk.number for chunk in chunks] == list(range(len(chunks)))
    for chunk in chunks:
        first = chunk.number * source.shard_rows
        places = sorted(chunk.rows["row_id"].to_pylist() + chunk.rejected["row_id"].to_pylist())
        assert places == list(range(first, min(first + source.shard_rows, total)))
        assert chunk.rows.schema == chunk.schema
        assert chunk.rejected.schema == REJECTED
        chunk.rows.validate(full=True)
        chunk.rejected.validate(full=True)
    assert sum(len(chunk.rows) + len(chunk.rejected) for chunk in chunks) == total
    check_resume(source, chunks)
    return chunks


# Formats.


def test_parquet_maps_text_and_keeps_every_other_column(tmp_path: Path) -> None:
    path = parquet(
        tmp_path,
        question=pa.array(["a", "b"], pa.large_string()),
        kind=pa.array(["x", "y"]).dictionary_encode(),
        answer=["c", "d"],
        gold=pa.array(["e", None]),
        n=pa.array([1, 2], pa.int32()),
        tags=pa.array([["t"], []], pa.large_list(pa.large_string())),
    )
    source = Source(parquet=path, prompt="question", response="answer", reference="gold", rename={"n": "count"})
    (chunk,) = check_chunks(source, 2)
    assert chunk.rows.to_pylist() == [
        {
            "row_id": 0,
            "prompt": "a",
            "response": "c",
            "reference": "e",
            "kind": "x",
            "count": 1,
            "tags": ["t"],
        },
        {"row_id": 1, "prompt": "b", "response": "d", "reference": None, "kind": "y", "count": 2, "tags": []},
    ]
    assert chunk.schema == pa.schema(
        [
            ("row_id", pa.int64()),
            ("prompt", pa.string()),
            ("response", pa.string()),
            ("reference", pa.string()),
            ("kind", pa.string()),
            ("count", pa.int32()),
            ("tags", pa.list_(pa.string())),
        ]
    )


def test_response_and_reference_are_taken_by_their_names_and_id_is_not(tmp_path: Path) -> None:
    path = parquet(tmp_path, id=[7], reference=["c"], response=["b"], prompt=["a"])
    assert rows(Source(parquet=path)) == [{"row_id": 0, "prompt": "a", "response": "b", "reference": "c", "id": 7}]
    assert rows(Source(parquet=path, rename={"response": "old", "reference": "gold"})) == [
        {"row_id": 0, "prompt": "a", "id": 7, "gold": "c", "old": "b"}
    ]
    assert rows(Source(parquet=path, id="id")) == [
        {"row_id": 0, "prompt": "a", "response": "b", "reference": "c", "id": "7"}
    ]


def test_jsonl_types_other_columns_and_appends_late_ones(tmp_path: Path) -> None:
    path = jsonl(
        tmp_path,
        {"prompt": "a", "n": 1, "x": 1, "gap": None, "meta": {"k": None, "l": []}},
        b"  ",
        {"prompt": "b", "n": 2, "x": 0.5, "meta": {"k": None}},
        {"prompt": "c", "n": 3, "x": 2, "late": True, "gap": "g", "meta": {"k": "v"}},
    )
    source = Source(jsonl=path, shard_rows=2)
    first, second = check_chunks(source, 3)
    assert first.rows.to_pylist() == [
        {"row_id": 0, "prompt": "a", "n": 1, "x": 1.0},
        {"row_id": 1, "prompt": "b", "n": 2, "x": 0.5},
    ]
    assert second.rows.to_pylist() == [
        {"row_id": 2, "prompt": "c", "n": 3, "x": 2.0, "gap": "g", "meta": {"k": "v"}, "late": True}
    ]
    assert second.schema.field("meta").type == pa.struct([("k", pa.string())])


def test_jsonl_widens_structs_and_lists_by_what_comes_later(tmp_path: Path) -> None:
    values: list[object] = [{"a": 1}, {"b": [{}]}, {"b": [{"c": "x"}]}]
    path = jsonl(tmp_path, *({"prompt": "p", "m": value} for value in values))
    (*_, last) = check_chunks(Source(jsonl=path, shard_rows=1), 3)
    assert last.rows["m"].to_pylist() == [{"a": None, "b": [{"c": "x"}]}]


def test_csv_keeps_text_and_reads_quoted_newlines(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_bytes(b'\xef\xbb\xbfprompt,n,response\r\n"a\nb",01,c\r\n\r\n"d ""e""",,\xc3\xa9\r\n')
    assert rows(Source(csv=str(tmp_path / "a.csv"))) == [
        {"row_id": 0, "prompt": "a\nb", "response": "c", "n": "01"},
        {"row_id": 1, "prompt": 'd "e"', "response": "é", "n": None},
    ]
    check_chunks(Source(csv=str(tmp_path / "a.csv"), shard_rows=1), 2)


def test_gzipped_lines_are_read(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl.gz").write_bytes(gzip.compress(b'{"prompt": "a"}\n'))
    (tmp_path / "a.csv.gz").write_bytes(gzip.compress(b"prompt\na\n"))
    expected = [{"row_id": 0, "prompt": "a"}]
    assert rows(Source(jsonl=str(tmp_path / "a.jsonl.gz"))) == expected
    assert rows(Source(csv=str(tmp_path / "a.csv.gz"))) == expected


def test_saved_data_sets_and_arrow_files_are_read(tmp_path: Path) -> None:
    datasets = pytest.importorskip("datasets")
    kept = datasets.Dataset.from_dict({"prompt": ["a", "b", "c"], "score": [0.5, None, 1.0]}).select([2, 0])
    datasets.DatasetDict({"train": kept, "test": kept.select([0])}).save_to_disk(tmp_path / "all")
    kept.save_to_disk(tmp_path / "one")
    expected = [{"row_id": 0, "prompt": "c", "score": 1.0}, {"row_id": 1, "prompt": "a", "score": 0.5}]
    assert rows(Source(arrow=str(tmp_path / "one"))) == expected
    assert rows(Source(arrow=str(tmp_path / "all"))) == expected
    assert rows(Source(arrow=str(tmp_path / "all"), split="test")) == expected[:1]
    assert rows(Source(arrow=str(tmp_path / "one" / "*.arrow"))) == expected
    table = pa.table({"prompt": ["c", "a"], "score": [1.0, 0.5]})
    with pa.OSFile(str(tmp_path / "file.arrow"), "wb") as file, pa.ipc.new_file(file, table.schema) as writer:
        writer.write_table(table, max_chunksize=1)
    assert rows(Source(arrow=str(tmp_path / "file.arrow"))) == expected
    check_chunks(Source(arrow=str(tmp_path / "file.arrow"), shard_rows=1), 2)
    with pytest.raises(SourceError, match=r"all: no split 'dev'; it has train, test$"):
        rows(Source(arrow=str(tmp_path / "all"), split="dev"))


def test_shards_are_read_in_sorted_order_and_their_columns_united(tmp_path: Path) -> None:
    parquet(tmp_path, "b.parquet", prompt=["c"], n=pa.array([1.5]), more=["m"])
    parquet(tmp_path, "a.parquet", prompt=["a", "b"], n=pa.array([1, 2], pa.int32()), none=pa.nulls(2))
    expected = [
        {"row_id": 0, "prompt": "a", "n": 1.0, "more": None},
        {"row_id": 1, "prompt": "b", "n": 2.0, "more": None},
        {"row_id": 2, "prompt": "c", "n": 1.5, "more": "m"},
    ]
    a, b = str(tmp_path / "a.parquet"), str(tmp_path / "b.parquet")
    for place in (str(tmp_path / "*.parquet"), str(tmp_path), [b, a], [a, str(tmp_path)]):
        for size in (1, 2, 3, 4):
            source = Source(parquet=place, shard_rows=size)
            assert rows(source) == expected
            check_chunks(source, 3)


def test_row_groups_are_skipped_to_the_row(tmp_path: Path) -> None:
    table = pa.table({"prompt": [str(n) for n in range(20)]})
    pq.write_table(table, tmp_path / "a.parquet", row_group_size=3)
    source = Source(parquet=str(tmp_path / "a.parquet"), shard_rows=4)
    check_chunks(source, 20)
    assert next(source.chunks(3)).rows["prompt"].to_pylist() == ["12", "13", "14", "15"]


def test_another_store_is_read_without_its_row_ids(tmp_path: Path) -> None:
    (tmp_path / "rows").mkdir()
    parquet(tmp_path / "rows", "00000.parquet", row_id=[4], prompt=["a"], response=["b"], n=[1])
    parquet(tmp_path / "rows", "00001.parquet", row_id=[9], prompt=["c"], response=["d"], n=[2])
    assert rows(Source(store=str(tmp_path))) == [
        {"row_id": 0, "prompt": "a", "response": "b", "n": 1},
        {"row_id": 1, "prompt": "c", "response": "d", "n": 2},
    ]


# Chats.

CHAT = [{"role": "user", "content": "q"}, {"role": "assistant", "content": "r"}]


def test_chats_are_spelled_one_way_in_every_format(tmp_path: Path) -> None:
    said = [
        [
            {"from": "system", "value": "s"},
            {"from": "human", "value": "q", "extra": 1},
            {"from": "gpt", "value": "r"},
        ]
    ]
    expected = [
        {
            "row_id": 0,
            "prompt": [{"role": "system", "content": "s"}, {"role": "user", "content": "q"}],
            "response": "r",
            "turn_details": '[null, {"extra": 1}, null]',
        }
    ]
    for source in (
        Source(parquet=parquet(tmp_path, talk=said), messages="talk"),
        Source(jsonl=jsonl(tmp_path, {"talk": said[0]}), messages="talk"),
    ):
        (chunk,) = check_chunks(source, 1)
        assert chunk.rows.to_pylist() == expected
        assert chunk.schema.field("prompt").type == MESSAGES


def test_a_response_may_be_one_assistant_turn_alone_or_after_its_prompt(tmp_path: Path) -> None:
    turns = [CHAT[1:], CHAT[1:] * 2, [], None, CHAT]
    records = [{"prompt": CHAT[:1], "response": turn, "reference": turn} for turn in turns]
    gold = [CHAT[1:], None, None, None, CHAT]
    for source in (
        Source(parquet=parquet(tmp_path, prompt=[CHAT[:1]] * 5, response=turns, reference=gold)),
        Source(jsonl=jsonl(tmp_path, *records)),
    ):
        answered = {"prompt": CHAT[:1], "response": "r", "reference": "r"}
        assert rows(source) == [{"row_id": 0, **answered}, {"row_id": 4, **answered}]
        assert reasons(source) == [
            (1, "response is not one assistant turn"),
            (2, "response is not one assistant turn"),
            (3, "response is null"),
        ]


def test_broken_chats_are_rejected_with_their_reason(tmp_path: Path) -> None:
    chats = [
        CHAT,
        CHAT[:1],
        [{"role": "robot", "content": "x"}],
        [],
        None,
        CHAT[1:],
        [*CHAT[:1], {"role": "assistant", "content": " "}],
        [{"role": "user", "content": None}, CHAT[1]],
        [None],
    ]
    expected = [
        (1, "no assistant turn at the end"),
        (2, "unknown role 'robot'"),
        (3, "no assistant turn at the end"),
        (4, "messages is null"),
        (5, "prompt is blank"),
        (6, "response is blank"),
        (7, "turn 1 of messages is not text but null"),
        (8, "turn 1 of messages is not a message"),
    ]
    assert reasons(Source(parquet=parquet(tmp_path, m=chats), messages="m")) == expected
    assert reasons(Source(jsonl=jsonl(tmp_path, *({"m": chat} for chat in chats)), messages="m")) == expected


def test_the_first_good_jsonl_row_decides_between_text_and_chats(tmp_path: Path) -> None:
    texts = [{"prompt": " "}, {"prompt": "a"}, {"prompt": CHAT[:1]}]
    assert reasons(Source(jsonl=jsonl(tmp_path, *texts))) == [
        (0, "prompt is blank"),
        (2, "prompt is not text but messages"),
    ]
    chats = Source(jsonl=jsonl(tmp_path, {"prompt": CHAT[:1]}, {"prompt": "a"}, {"prompt": []}), shard_rows=1)
    check_chunks(chats, 3)
    assert reasons(chats) == [(1, "prompt is not messages but string"), (2, "prompt is blank")]


# Rejections.


def test_text_that_is_missing_or_blank_is_rejected(tmp_path: Path) -> None:
    prompts = ["a", None, "", " \u3000\n", "b", "c", "d"]
    responses = ["r", "r", "r", "r", None, "\t", "r"]
    references = ["", "g", "g", "g", "g", "g", None]
    expected = [
        (1, "prompt is null"),
        (2, "prompt is blank"),
        (3, "prompt is blank"),
        (4, "response is null"),
        (5, "response is blank"),
    ]
    records = [
        {"prompt": p, "response": r, "reference": g} for p, r, g in zip(prompts, responses, references, strict=True)
    ]
    for source in (
        Source(parquet=parquet(tmp_path, prompt=prompts, response=responses, reference=references)),
        Source(jsonl=jsonl(tmp_path, *records)),
    ):
        assert reasons(source) == expected
        assert rows(source) == [
            {"row_id": 0, "prompt": "a", "response": "r", "reference": None},
            {"row_id": 6, "prompt": "d", "response": "r", "reference": None},
        ]
        unanswered = source.model_copy(update={"unanswered": True})
        assert reasons(unanswered) == expected[:3]
        assert [(row["prompt"], row["response"]) for row in rows(unanswered)] == [
            ("a", "r"),
            ("b", None),
            ("c", None),
            ("d", "r"),
        ]
        # Rows of sources that do not say so keep their fingerprint.
        assert unanswered.identity() == {**source.identity(), "unanswered": True}


def test_a_rejected_row_is_kept_as_json(tmp_path: Path) -> None:
    source = Source(parquet=parquet(tmp_path, prompt=[None, "p" * 20_000], response=["é", " "], n=[1, 2]))
    (first, second) = rejected(source)
    assert first == (0, "prompt is null", '{"prompt": null, "response": "é", "n": 1}')
    assert second[:2] == (1, "response is blank")
    assert len(second[2]) == 10_000


def test_invalid_utf8_is_rejected_where_a_step_reads_it_and_is_null_elsewhere(tmp_path: Path) -> None:
    path = parquet(
        tmp_path,
        prompt=unchecked(b"a", b"\xff", b"c", b"d"),
        response=unchecked(b"r", b"r", b"\xed\xa0\x80", b"r"),
        side=pa.StructArray.from_arrays([unchecked(b"s", b"s", b"s", b"\xfe\xff")], ["x"]),
    )
    source = Source(parquet=path)
    check_chunks(source, 4)
    assert rejected(source) == [
        (1, "invalid UTF-8 in prompt", r'{"prompt": "\\xff", "response": "r", "side": {"x": "s"}}'),
        (
            2,
            "invalid UTF-8 in response",
            r'{"prompt": "c", "response": "\\xed\\xa0\\x80", "side": {"x": "s"}}',
        ),
    ]
    assert rows(source)[-1] == {"row_id": 3, "prompt": "d", "response": "r", "side": None}
    assert [chunk.nulled for chunk in source.chunks()] == [{"side": 1}]
    lines = jsonl(
        tmp_path,
        b'{"prompt": "a\xff"}',
        b'{"prompt": "a", "s": ["\xff"]}',
        b'{"prompt": "a", "\xff": 1}',
        b'{"prompt": "a", "s": ["\\ud800"]}',
        b'{"prompt": "\\ude00\\ud83d"}',
        b'{"prompt": "\\ud83d\\ude00"}',
    )
    assert rejected(Source(jsonl=lines)) == [
        (0, "invalid UTF-8 in prompt", r'{"prompt": "a\xff"}'),
        (2, "invalid UTF-8 in a column name", r'{"prompt": "a", "\xff": 1}'),
        (4, "lone surrogate in prompt", r'{"prompt": "\ude00\ud83d"}'),
    ]
    assert [row.get("s") for row in rows(Source(jsonl=lines))] == [None, None, None]
    assert [chunk.nulled for chunk in Source(jsonl=lines).chunks()] == [{"s": 2}]
    (tmp_path / "a.csv").write_bytes("prompt,n\na,é\nb,ü\n".encode() + b"c,\xff\n")
    source = Source(csv=str(tmp_path / "a.csv"))
    assert [row["n"] for row in rows(source)] == ["é", "ü", None]
    assert [chunk.nulled for chunk in source.chunks()] == [{"n": 1}]


def test_a_bad_line_is_one_rejected_row(tmp_path: Path) -> None:
    nested = '{"prompt": "a", "x": ' + "[" * 40 + "]" * 40 + "}"
    lines = [b"{", b"[1]", b"3", b'{"prompt": 1}', b"[" * 100_000, nested.encode(), b'{"prompt": "ok"}']
    source = Source(jsonl=jsonl(tmp_path, *lines))
    assert reasons(source) == [
        (0, "line is not JSON: Expecting property name enclosed in double quotes at character 1"),
        (1, "line is not a JSON object but list"),
        (2, "line is not a JSON object but int64"),
        (3, "prompt is not text but int64"),
        (4, "nested deeper than 32 levels"),
        (5, "nested deeper than 32 levels"),
    ]
    assert rows(source) == [{"row_id": 6, "prompt": "ok"}]


def test_a_bad_csv_record_is_one_rejected_row(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_bytes(b'prompt,n\na,1\nb\nc,1,2\n"d\n1",\n,2\nx\ry,2\ne,5\n')
    source = Source(csv=str(tmp_path / "a.csv"), shard_rows=2)
    check_chunks(source, 7)
    with pytest.raises(csv.Error) as broken:
        next(csv.reader(["x\ry"]))
    assert [row["prompt"] for row in rows(source)] == ["a", "d\n1", "e"]
    assert rejected(source) == [
        (1, "row has 1 fields, header has 2", '["b"]'),
        (2, "row has 3 fields, header has 2", '["c", "1", "2"]'),
        (4, "prompt is null", '{"prompt": "", "n": "2"}'),
        (5, f"line is not CSV: {broken.value}", r'["x\ry,2\n"]'),
    ]


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        ([8, 8, 7.5, None], [8.0, 8.0, 7.5, None]),
        (["N/A", 1, 0.5, True], ["N/A", "1", "0.5", "true"]),
        ([2**80, 1], [str(2**80), "1"]),
        ([[1], "a", {"b": None}], ["[1]", '"a"', '{"b": null}']),
        ([[{"x": 1}], [{"x": "y"}], None], ['[{"x": 1}]', '[{"x": "y"}]', None]),
        ([{"x": 1}, {"x": 0.5, "z": [1]}], [{"x": 1.0, "z": None}, {"x": 0.5, "z": [1]}]),
        ([{"x": 1, "X": 2}], ['{"x": 1, "X": 2}']),
    ],
)
def test_a_side_column_of_several_types_costs_no_row(
    values: list[object], expected: list[object], tmp_path: Path
) -> None:
    path = jsonl(tmp_path, *({"prompt": "p", "side": value} for value in values))
    for size in (1, 2, 8):
        source = Source(jsonl=path, shard_rows=size)
        chunks = check_chunks(source, len(values))
        table = pa.concat_tables([chunk.rows for chunk in chunks], promote_options="default")
        assert [row.get("side") for row in table.to_pylist()] == expected
        assert not any(chunk.nulled for chunk in chunks)


def test_a_later_value_that_does_not_fit_stored_rows_is_null_and_counted(tmp_path: Path) -> None:
    first = next(Source(jsonl=jsonl(tmp_path, {"prompt": "p", "n": 1}), shard_rows=1).chunks())
    grown = Source(jsonl=jsonl(tmp_path, {"prompt": "p", "n": 1}, {"prompt": "q", "n": 1.5}), shard_rows=1)
    (second,) = grown.chunks(1, first.schema)
    assert second.rows.to_pylist() == [{"row_id": 1, "prompt": "q", "n": None}]
    assert second.nulled == {"n": 1}


@pytest.mark.parametrize(
    "options",
    [{}, {"prompt": "question"}, {"select": {"n": "length(response)"}}, {"layout": "pku_saferlhf"}],
    ids=str,
)
def test_a_mapped_column_that_is_nested_in_some_files_is_refused(options: dict[str, object], tmp_path: Path) -> None:
    """Its JSON text would be the prompt: `[{"role": …`, and a text in quotation marks."""
    name = str(options.get("prompt", "prompt"))
    rest = {"response_0": ["x"], "response_1": ["y"], "safer_response_id": [0]} if "layout" in options else {}
    parquet(tmp_path, "x1.parquet", **{name: [[{"role": "user", "content": "a"}]], "response": ["x"], **rest})
    parquet(tmp_path, "x2.parquet", **{name: ["b"], "response": ["y"], **rest})
    source = Source(parquet=str(tmp_path / "x*.parquet"), **options)
    with pytest.raises(SourceError, match=f"column '{name}' is list<.* and string in different files") as refused:
        list(source.chunks())
    assert "\n" not in str(refused.value)
    # A list of columns that no step reads may differ.
    parquet(tmp_path, "y1.parquet", prompt=["a"], side=[["x"]])
    parquet(tmp_path, "y2.parquet", prompt=["b"], side=["x"])
    check_chunks(Source(parquet=str(tmp_path / "y*.parquet")), 2)


def test_a_number_beyond_doubles_stays_the_text_that_it_is(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    path.write_text(
        '{"prompt": "a", "response": 1e400, "reference": -1E+400, "side": 1e400}\n'
        '{"prompt": "b", "response": 1e300, "reference": 0.5, "side": 1}\n'
    )
    (chunk,) = check_chunks(Source(jsonl=str(path)), 2)
    assert chunk.rows["response"].to_pylist() == ["1e400", "1e+300"]
    assert chunk.rows["reference"].to_pylist() == ["-1E+400", "0.5"]
    assert chunk.rows["side"].to_pylist() == ["1e400", "1"]


def test_a_number_is_spelled_alike_whatever_other_files_hold(tmp_path: Path) -> None:
    parquet(tmp_path, "x1.parquet", prompt=["a", "b"], reference=[4.0, 0.1])
    (alone,) = check_chunks(Source(parquet=str(tmp_path / "x1.parquet")), 2)
    parquet(tmp_path, "x2.parquet", prompt=["c"], reference=["5"])
    (beside,) = check_chunks(Source(parquet=str(tmp_path / "x*.parquet")), 3)
    assert alone.rows["reference"].to_pylist() == ["4.0", "0.1"]
    assert beside.rows["reference"].to_pylist() == ["4.0", "0.1", "5"]


def test_files_whose_numbers_have_no_type_in_common_name_the_column(tmp_path: Path) -> None:
    parquet(tmp_path, "x1.parquet", prompt=["a"], number=[2**53 + 1])
    parquet(tmp_path, "x2.parquet", prompt=["b"], number=[0.5])
    with pytest.raises(
        SourceError, match=r"column 'number' is int64 in one file and double with the others.*write it as text"
    ):
        list(Source(parquet=str(tmp_path / "x*.parquet")).chunks())


def test_parquet_files_that_differ_in_a_side_column_keep_it_as_text(tmp_path: Path) -> None:
    parquet(tmp_path, "x1.parquet", prompt=["a"], n=["1"], m=[[1]])
    parquet(tmp_path, "x2.parquet", prompt=["b"], n=[1], m=["s"])
    source = Source(parquet=str(tmp_path / "x*.parquet"))
    (chunk,) = check_chunks(source, 2)
    assert [(row["n"], row["m"]) for row in chunk.rows.to_pylist()] == [("1", "[1]"), ("1", '"s"')]
    assert (
        chunk.schema.field("n").metadata[b"meaning"] == b"text, as the files have several types of it: string and int64"
    )


def test_numbers_and_truths_are_answers(tmp_path: Path) -> None:
    lines = jsonl(tmp_path, *({"prompt": "p", "reference": value} for value in (4, 1.5, 4.0, True)))
    assert [row["reference"] for row in rows(Source(jsonl=lines))] == ["4", "1.5", "4.0", "true"]
    for values in ([4, 5], [1.5, 4.0], [True, False]):
        path = parquet(tmp_path, prompt=["p", "q"], response=values)
        expected = [json.dumps(value) for value in values]
        assert [row["response"] for row in rows(Source(parquet=path))] == expected


def test_an_id_is_taken_once_and_only_by_a_good_row(tmp_path: Path) -> None:
    records = [
        {"prompt": "", "key": "a7"},
        {"prompt": "a", "key": "a7"},
        {"prompt": "b", "key": "a7"},
        {"prompt": "c", "key": 7},
        {"prompt": "d", "key": "7"},
        {"prompt": "e", "key": None},
        {"prompt": "f", "key": " "},
        {"prompt": "g", "key": True},
    ]
    for size in (1, 2, 8):
        source = Source(jsonl=jsonl(tmp_path, *records), id="key", shard_rows=size)
        check_chunks(source, 8)
        assert rows(source) == [
            {"row_id": 1, "prompt": "a", "id": "a7"},
            {"row_id": 3, "prompt": "c", "id": "7"},
        ]
        assert reasons(source) == [
            (0, "prompt is blank"),
            (2, "duplicate id 'a7'"),
            (4, "duplicate id '7'"),
            (5, "id is null"),
            (6, "id is blank"),
            (7, "id is not text but bool"),
        ]
    numbers = parquet(tmp_path, prompt=["a", "b", "c", "d"], key=[1, 2, 1, None])
    assert reasons(Source(parquet=numbers, id="key")) == [(2, "duplicate id '1'"), (3, "id is null")]


# Properties.


@pytest.mark.slow
@settings(max_examples=150, deadline=None)
@given(
    lines=st.lists(line.filter(lambda line: b"\n" not in line and line.strip()), max_size=12),
    size=st.integers(1, 5),
)
def test_whatever_the_lines_hold_each_comes_out_once_and_resuming_changes_nothing(
    lines: list[bytes], size: int
) -> None:
    with tempfile.TemporaryDirectory() as folder:
        first = {"prompt": "p", "key": "first"}
        source = Source(jsonl=jsonl(Path(folder), first, *lines), id="key", shard_rows=size)
        for chunk in check_chunks(source, len(lines) + 1):
            pq.write_table(chunk.rows, Path(folder) / "out.parquet")
            assert pq.read_table(Path(folder) / "out.parquet").num_rows == len(chunk.rows)


@pytest.mark.slow
@settings(max_examples=50, deadline=None)
@given(cells=st.lists(st.tuples(cell, cell, cell), min_size=1, max_size=12), size=st.integers(1, 5))
def test_whatever_bytes_parquet_holds_each_row_comes_out_once(cells: list[tuple[bytes | None, ...]], size: int) -> None:
    with tempfile.TemporaryDirectory() as folder:
        prompt, response, reference = (unchecked(*column) for column in zip(*cells, strict=True))
        path = parquet(Path(folder), prompt=prompt, response=response, reference=reference)
        check_chunks(Source(parquet=path, shard_rows=size), len(cells))


# Errors.


@pytest.mark.parametrize(
    ("mapping", "message"),
    [
        ({"prompt": "q"}, "no column 'q' for prompt; it has prompt, n, Side"),
        ({"reference": "gold"}, "no column 'gold' for reference; it has prompt, n, Side"),
        (
            {"prompt": "n", "rename": {"prompt": "old"}},
            "column 'n' is int64, which cannot be the prompt; map another column",
        ),
        (
            {"messages": "prompt"},
            "column 'prompt' is string, which cannot be the messages; map another column",
        ),
        ({"rename": {"x": "y"}}, "no column 'x' to rename; it has prompt, n, Side"),
        ({"rename": {"prompt": "y"}}, "'prompt' is mapped already; take it out of rename"),
        (
            {"rename": {"n": "side"}},
            "column 'Side' clashes with another (SQL ignores case); "
            "give it another name with rename: {Side: source_Side}",
        ),
        (
            {"prompt": "Side"},
            "column 'prompt' clashes with another (SQL ignores case); "
            "give it another name with rename: {prompt: source_prompt}",
        ),
        (
            {"rename": {"n": "row_id"}},
            "column 'row_id' clashes with another (SQL ignores case); give it another name with rename: {n: source_n}",
        ),
    ],
)
def test_a_mapping_that_does_not_fit_is_refused(tmp_path: Path, mapping: dict[str, object], message: str) -> None:
    records = [{"prompt": "a", "n": 1, "Side": "s"}]
    path = parquet(tmp_path, prompt=["a"], n=[1], Side=["s"])
    places = (
        [("parquet", path)] if "cannot be" in message else [("parquet", path), ("jsonl", jsonl(tmp_path, *records))]
    )
    for kind, place in places:
        with pytest.raises(SourceError) as caught:
            rows(Source.model_validate({kind: place, **mapping}))
        assert str(caught.value) == f"{place}: {message}"


def test_a_column_of_ids_that_are_no_ids_is_refused(tmp_path: Path) -> None:
    path = parquet(tmp_path, prompt=["a"], row_id=[1])
    with pytest.raises(SourceError, match=r"column 'row_id' clashes .* rename: \{row_id: source_row_id\}"):
        rows(Source(parquet=path))
    assert rows(Source(parquet=path, rename={"row_id": "old"})) == [{"row_id": 0, "prompt": "a", "old": 1}]


def test_a_response_that_first_shows_late_is_refused(tmp_path: Path) -> None:
    path = jsonl(tmp_path, {"prompt": "a"}, {"prompt": "b", "response": "r"})
    with pytest.raises(SourceError, match="column 'response' clashes with another"):
        rows(Source(jsonl=path, shard_rows=1))


def test_files_that_cannot_be_read_are_named(tmp_path: Path) -> None:
    (tmp_path / "empty").touch()
    (tmp_path / "bad").write_bytes(b"PAR1 no Parquet PAR1")
    (tmp_path / "bad.gz").write_bytes(b"no gzip")
    (tmp_path / "head.csv").write_bytes(b"prompt\n")
    (tmp_path / "twins.csv").write_bytes(b"a,a\n1,2\n")
    (tmp_path / "latin.csv").write_bytes(b"prompt,caf\x81\n1,2\n")
    parquet(tmp_path, "none.parquet", prompt=pa.array([], pa.string()))
    cases = [
        ("parquet", "no.parquet", "no.parquet: no such file, and nothing that matches; check the path"),
        ("jsonl", "*.jsonl", "*.jsonl: no such file, and nothing that matches; check the path"),
        ("jsonl", "", " is a folder; name the files in it, say ROOT/*.jsonl"),
        ("jsonl", "empty", "empty: no rows; name a source that has some"),
        ("csv", "empty", "empty: no rows; name a source that has some"),
        ("csv", "head.csv", "head.csv: no rows; name a source that has some"),
        ("parquet", "none.parquet", "none.parquet: no rows; name a source that has some"),
        ("csv", "twins.csv", "twins.csv has two columns called 'a'; write it again with one"),
        ("csv", "latin.csv", "latin.csv has no header in UTF-8; name the columns in its first line"),
        ("jsonl", "bad.gz", "bad.gz cannot be read: BadGzipFile: Not a gzipped file (b'no'); check the file"),
        ("arrow", "", " is no save_to_disk folder; name one, or .arrow files"),
        ("store", "", ": no shards in its rows; name the folder of a store"),
    ]
    for kind, name, message in cases:
        with pytest.raises(SourceError) as caught:
            rows(Source.model_validate({kind: str(tmp_path / name)}))
        root = str(tmp_path)
        assert str(caught.value) == (f"{root}/" if name else root) + message.replace("ROOT", root)
    for kind, name in (("parquet", "bad"), ("parquet", "empty"), ("arrow", "bad"), ("arrow", "empty")):
        with pytest.raises(SourceError, match=re.escape(f"{tmp_path / name} cannot be read: ")) as caught:
            rows(Source.model_validate({kind: str(tmp_path / name)}))
        assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({}, "rows come from one of hub, parquet, jsonl, csv, arrow, store \\(or data, in Python\\), not none"),
        ({"hub": "a/b", "csv": "c"}, "rows come from one of .*, not hub and csv"),
        ({"csv": "c", "revision": "main"}, "data_dir, name and revision are for hub only"),
        ({"csv": "c", "messages": "m", "response": "r"}, "messages holds prompt and response"),
        ({"csv": "c", "shard_rows": 0}, "greater than or equal to 1"),
    ],
)
def test_a_source_that_contradicts_itself_is_refused(fields: dict[str, object], message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        Source.model_validate(fields)


# Identity and places.


def test_identity_follows_bytes_and_mapping_but_no_folder(tmp_path: Path) -> None:
    (tmp_path / "x").mkdir()
    here, there = (
        Source(jsonl=jsonl(tmp_path, {"prompt": "a"})),
        Source(jsonl=jsonl(tmp_path / "x", {"prompt": "a"})),
    )
    assert (
        here.identity()
        == there.identity()
        == {
            "jsonl": [["a.jsonl", "8a8c2da9cd6156c411e04714ce81cde2425df195083077b23550021445caf826"]],
            "data_dir": None,
            "name": None,
            "split": "train",
            "prompt": "prompt",
            "response": None,
            "reference": None,
            "messages": None,
            "id": None,
            "rename": {},
            "shard_rows": 4096,
        }
    )
    assert here.model_copy(update={"shard_rows": 1}).identity() != here.identity()
    jsonl(tmp_path, {"prompt": "b"})
    assert here.identity() != there.identity()


def test_relative_places_are_taken_from_the_recipe(tmp_path: Path) -> None:
    assert Source(parquet=["a/*.parquet", "/b"]).resolved(tmp_path).parquet == [
        f"{tmp_path}/a/*.parquet",
        "/b",
    ]
    assert Source(store="s").resolved(tmp_path) == Source(store=f"{tmp_path}/s")
    assert Source(hub="a/b").resolved(tmp_path) == Source(hub="a/b")


# The Hub, on the loopback.

READ = """
import json
from seamcurate.data.source import Source
source = Source(hub="me/rows", prompt="question", shard_rows=2)
chunks = list(source.chunks())
print(json.dumps({
    "commit": source.identity()["commit"],
    "rows": [row for chunk in chunks for row in chunk.rows.to_pylist()],
    "rejected": [row for chunk in chunks for row in chunk.rejected.to_pylist()],
    "resumed": list(source.chunks(1)) == chunks[1:],
}))
for name in ("absent", "late_column", "other_type", "null_first"):
    try:
        list(Source(hub=f"me/{name}").chunks())
    except Exception as error:
        print(repr(error))
"""


DRIFTING: dict[str, tuple[dict[str, object], dict[str, object]]] = {
    "late_column": ({}, {"extra": 1}),
    "other_type": ({"n": 1}, {"n": "N/A"}),
    "null_first": ({"n": None}, {"n": 1}),
}
"""Rows of two files of a data set that `datasets` cannot read together."""


@pytest.fixture
def hub(tmp_path: Path) -> Iterator[Hub]:
    """Serve one data set as the Hub does."""
    parquet(tmp_path, "served", question=["a", "b", " ", "d", "e"], n=[1, 2, 3, 4, 5])
    with serving() as server:
        server.add("me/rows", {"data/train-00000-of-00001.parquet": (tmp_path / "served").read_bytes()})
        for name, (first, second) in DRIFTING.items():
            contents = [json.dumps({"prompt": "p", **row}).encode() + b"\n" for row in (first, second)]
            server.add(f"me/{name}", {f"data/train-{i}.jsonl": content for i, content in enumerate(contents)})
        yield server


def test_the_hub_is_read_at_one_commit(tmp_path: Path, hub: Hub) -> None:
    pytest.importorskip("datasets")
    settings = {
        "HF_ENDPOINT": hub.address,
        "HF_HUB_DISABLE_XET": "1",
        "HF_HOME": str(tmp_path / "home"),
        "HF_HUB_DISABLE_TELEMETRY": "1",
        "HF_HUB_OFFLINE": "0",
        "HF_DATASETS_OFFLINE": "0",
    }
    environment = {name: value for name, value in os.environ.items() if "proxy" not in name.lower()}
    done = subprocess.run(
        [sys.executable, "-c", READ], env=environment | settings, capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stderr[-3000:] + "\n".join(hub.asked)
    read, absent, *drifting = done.stdout.splitlines()
    assert json.loads(read) == {
        "commit": hub.repos["me/rows"].commits[-1][0],
        "rows": [
            {"row_id": 0, "prompt": "a", "n": 1},
            {"row_id": 1, "prompt": "b", "n": 2},
            {"row_id": 3, "prompt": "d", "n": 4},
            {"row_id": 4, "prompt": "e", "n": 5},
        ],
        "rejected": [{"row_id": 2, "reason": "prompt is blank", "row": '{"question": " ", "n": 3}'}],
        "resumed": True,
    }
    assert absent == repr(
        SourceError(
            "Hub data set me/absent: no such data set, or no access to it; check the name, or log in with `hf auth login`"
        )
    )
    assert hub.count("/resolve/main/") == 0
    differences = [
        "has the column 'extra' as int64, data/train-0.jsonl has it not",
        "has the column 'n' as string, data/train-0.jsonl has it as int64",
        "has the column 'n' as int64, data/train-0.jsonl has it without a value",
    ]
    for message, name, difference in zip(drifting, DRIFTING, differences, strict=True):
        assert f"Hub data set me/{name}: its files do not fit each other: data/train-1.jsonl {difference}; " in message


# Real rows.


@pytest.mark.skipif(not REAL.exists(), reason="needs the real prompts beside the checkout")
def test_real_prompts_come_out_whole(tmp_path: Path) -> None:
    source = Source(parquet=str(REAL), prompt="instruction", id="id", shard_rows=300)
    chunks = check_chunks(source, 2000)
    table = pa.concat_tables([chunk.rows for chunk in chunks])
    assert table.column_names[:4] == ["row_id", "prompt", "response", "id"]
    original = pq.read_table(REAL).take(table["row_id"])
    assert table["prompt"].to_pylist() == original["instruction"].to_pylist()
    assert table["origin"].to_pylist() == original["origin"].to_pylist()


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["jsonl", "csv"])
def test_a_line_that_a_small_file_unpacks_to_without_end_is_one_rejected_row_and_is_never_held(
    kind, tmp_path, monkeypatch
):
    import tracemalloc

    from seamcurate.data import formats

    monkeypatch.setattr(text_lines, "LONGEST_LINE", 1 << 16)
    monkeypatch.setattr(formats, "LONGEST_CSV_FIELD", 1 << 15)
    file, bomb = tmp_path / f"bomb.{kind}.gz", b"a" * (1 << 24)
    before, after = (b'{"prompt": "p %d"}\n' % i if kind == "jsonl" else b"p %d\n" % i for i in range(2))
    with gzip.open(file, "wb") as packed:
        packed.write(b"" if kind == "jsonl" else b"prompt\n")
        packed.write(before + (b'{"prompt": "' if kind == "jsonl" else b""))
        for _ in range(4):
            packed.write(bomb)
        packed.write(b"\n" + after)
    assert file.stat().st_size < 1 << 18
    tracemalloc.start()
    source = Source(**{kind: str(file)})
    (chunk,) = source.chunks(0, None, ())
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert chunk.rows["prompt"].to_pylist() == ["p 0", "p 1"] and chunk.rejected.num_rows == 1
    assert ("longer than" if kind == "jsonl" else "larger than") in chunk.rejected["reason"][0].as_py()
    # The line is 64 MB; what is imported meanwhile is counted too.
    assert peak < 1 << 25


# What the cells of a CSV column are: a column of all of them is a number or a truth, or it is text.
CELLS = {
    "whole numbers": (["9", "10", "-7"], [9, 10, -7]),
    "fractions": (["9", "7.5", ".5", "-1e3", "1."], [9.0, 7.5, 0.5, -1000.0, 1.0]),
    "spaces around": ([" 9", "10 "], [9, 10]),
    "nan and inf beside numbers": (["0.5", "inf", "-Infinity"], [0.5, float("inf"), float("-inf")]),
    "truths": (["true", "False", "TRUE"], [True, False, True]),
    "an empty cell": (["1", "", "3"], [1, None, 3]),
    "leading zeros": (["007", "008"], ["007", "008"]),
    "one leading zero": (["1", "02"], ["1", "02"]),
    "phone numbers": (["+491234", "+495678"], ["+491234", "+495678"]),
    "hexadecimal": (["0x1f", "0x2a"], ["0x1f", "0x2a"]),
    "thousands": (["1,000", "2,000"], ["1,000", "2,000"]),
    "underscores": (["1_000", "2_000"], ["1_000", "2_000"]),
    "dates": (["2024-01-01", "2024-01-02"], ["2024-01-01", "2024-01-02"]),
    "a missing value by name": (["1", "N/A"], ["1", "N/A"]),
    "nan alone": (["nan", "inf"], ["nan", "inf"]),
    "truths beside numbers": (["true", "1"], ["true", "1"]),
    "64 bits": (["9223372036854775807", "-9223372036854775807"], [2**63 - 1, 1 - 2**63]),
    "beyond 64 bits": (["9223372036854775808", "1"], ["9223372036854775808", "1"]),
    "beyond a double's digits": (["9007199254740993", "0.5"], ["9007199254740993", "0.5"]),
    "beyond a double": (["1e400", "1"], ["1e400", "1"]),
}


@pytest.mark.parametrize(("cells", "values"), CELLS.values(), ids=CELLS)
@pytest.mark.parametrize("files", [1, 2])
@pytest.mark.parametrize("shard_rows", [1, 4096])
def test_a_csv_column_is_what_all_its_cells_are(cells, values, files, shard_rows, tmp_path: Path) -> None:
    lines = [f'p{i},"{cell}"\n' for i, cell in enumerate(cells)]
    for number in range(files):
        part = lines[:1] if files == 2 and number == 0 else lines[files - 1 :]
        (tmp_path / f"{number}.csv").write_text("prompt,x\n" + "".join(part))
    found = rows(Source(csv=str(tmp_path / "*.csv"), shard_rows=shard_rows))
    assert [row["x"] for row in found] == values
    check_chunks(Source(csv=str(tmp_path / "*.csv"), shard_rows=1), len(cells))


def test_what_is_mapped_from_csv_stays_text(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text("q,a,ref,uid,reference,n\n1,2,3,4,5,6\n7,8,9,10,11,12\n")
    source = Source(
        csv=str(tmp_path / "a.csv"), prompt="q", response="a", reference="ref", id="uid", rename={"reference": "r"}
    )
    assert rows(source) == [
        {"row_id": 0, "prompt": "1", "response": "2", "reference": "3", "id": "4", "r": 5, "n": 6},
        {"row_id": 1, "prompt": "7", "response": "8", "reference": "9", "id": "10", "r": 11, "n": 12},
    ]


def test_types_say_what_a_csv_column_is_and_a_cell_that_is_not_so_is_null(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text("prompt,score,code,seen\na,9,7,TRUE\nb,N/A,007,false\nc,7.5,8,\n")
    assert [row["score"] for row in rows(Source(csv=str(tmp_path / "a.csv")))] == ["9", "N/A", "7.5"]
    types = {"score": "number", "code": "number", "seen": "text"}
    source = Source(csv=str(tmp_path / "a.csv"), types=types, rename={"score": "points"})
    assert rows(source) == [
        {"row_id": 0, "prompt": "a", "points": 9.0, "code": 7, "seen": "TRUE"},
        {"row_id": 1, "prompt": "b", "points": None, "code": 7, "seen": "false"},
        {"row_id": 2, "prompt": "c", "points": 7.5, "code": 8, "seen": None},
    ]
    assert [chunk.nulled for chunk in source.chunks()] == [{"points": 1}]
    assert source.identity() != source.model_copy(update={"types": {**types, "seen": "boolean"}}).identity()
    for wrong, why in (
        ({"skore": "number"}, "no column 'skore' for types; it has prompt, score, code, seen"),
        ({"prompt": "number"}, "column 'prompt' is the prompt, which is text"),
    ):
        with pytest.raises(SourceError, match=why):
            rows(Source(csv=str(tmp_path / "a.csv"), types=wrong))
    with pytest.raises(ValidationError, match="types is for csv only"):
        Source(jsonl="a.jsonl", types={"x": "number"})


def test_the_types_of_csv_are_part_of_its_fingerprint_and_of_no_other(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text("prompt,x\na,1\n")
    identity = Source(csv=str(tmp_path / "a.csv")).identity()
    assert isinstance(identity, dict) and identity["csv_types"] == formats.CSV_TYPES and "types" not in identity
    others = Source(jsonl=jsonl(tmp_path, {"prompt": "a"})).identity()
    assert isinstance(others, dict) and not {"csv_types", "types", "durations"} & set(others)


@pytest.mark.parametrize(("unit", "seconds"), [("s", 1500.0), ("ms", 1.5), ("us", 0.0015), ("ns", 0.0000015)])
def test_a_duration_is_seconds_whatever_its_unit(unit, seconds, tmp_path: Path) -> None:
    place = parquet(tmp_path, prompt=["a", "b"], took=pa.array([1500, None], pa.duration(unit)))
    (chunk,) = Source(parquet=place).chunks()
    assert chunk.rows["took"].to_pylist() == [seconds, None]
    assert chunk.rows.schema.field("took").metadata == {b"meaning": b"seconds"}
    nested = parquet(tmp_path, prompt=["a"], took=pa.array([{"x": 1}], pa.struct([("x", pa.duration(unit))])))
    with pytest.raises(SourceError, match=rf"column 'took' holds a duration\[{unit}\] inside, .* number of seconds"):
        rows(Source(parquet=nested))


NESTED = [
    {"prompt": "1 + 1", "extra": {"answer": "2", "n": 1}},
    {"prompt": "1 + 2", "extra": None},
    {"prompt": "1 + 3", "extra": {"answer": "4", "n": 3}},
]


@pytest.mark.parametrize("kind", ["parquet", "jsonl"])
def test_a_field_inside_a_column_is_named_with_a_dot(tmp_path, kind):
    file = tmp_path / f"rows.{kind}"
    if kind == "parquet":
        pq.write_table(pa.Table.from_pylist(NESTED), file)
    else:
        file.write_text("".join(json.dumps(row) + "\n" for row in NESTED))
    [chunk] = Source(**{kind: str(file)}, reference="extra.answer").chunks()
    assert chunk.rows.to_pylist() == [
        {"row_id": i, "prompt": row["prompt"], "reference": answer, "extra": row["extra"]}
        for i, (row, answer) in enumerate(zip(NESTED, ("2", None, "4"), strict=True))
    ]
    [chunk] = Source(**{kind: str(file)}, response="extra.answer").chunks()
    assert chunk.rows["response"].to_pylist() == ["2", "4"]
    assert [json.loads(row) for row in chunk.rejected["row"].to_pylist()] == [NESTED[1]]
    for name in ("extra.reply", "extra.answer.text", "more.answer"):
        with pytest.raises(SourceError, match=f"no (field|column) .*{name.split('.')[-1]}"):
            list(Source(**{kind: str(file)}, reference=name).chunks())


def test_dates_that_python_does_not_have_stop_no_reading(tmp_path):
    years = {"day": pa.array([2**29, 0, 2**31 - 1], pa.date32()), "at": pa.array([2**60, 0, 1], pa.timestamp("us"))}
    file = parquet(tmp_path, prompt=["a", "b", " "], response=["x", "y", "z"], **years)
    source = Source(parquet=file, prompt="prompt", response="response")
    (chunk,) = source.chunks()
    assert chunk.rows.schema.field("day").type == pa.date32() and chunk.rows.schema.field("at").type == pa.timestamp(
        "us"
    )
    assert chunk.rows["day"].cast(pa.int32()).to_pylist() == [2**29, 0]
    ((position, reason, row),) = rejected(source)
    assert (position, reason) == (2, "prompt is blank")
    assert json.loads(row)["day"] == "infinity" and json.loads(row)["at"] == "1970-01-01 00:00:00.000001"
