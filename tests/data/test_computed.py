"""`select`, `where` and `drop`: columns of a source computed from each row, and what is left out."""

from __future__ import annotations

import json
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from seamcurate import Source
from seamcurate.errors import SourceError

ROWS = [
    {"instruction": "Past tense.", "input": "I walk", "output": "I walked", "votes": 3, "tags": {"lang": "en"}},
    {"instruction": "A sea?", "input": None, "output": "The Baltic", "votes": 1, "tags": {"lang": "de"}},
    {"instruction": "A lake?", "input": "", "output": "Ladoga", "votes": 5, "tags": None},
]
SELECT = {"prompt": "concat_ws(chr(10), instruction, nullif(input, ''))", "response": "output", "lang": "tags.lang"}


def sources(folder: Path) -> dict[str, dict[str, object]]:
    """Write the same rows in several kinds of files."""
    (folder / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in ROWS))
    table = pa.Table.from_pylist(ROWS)
    pq.write_table(table.set_column(3, "votes", table["votes"].cast(pa.int32())), folder / "rows.parquet")
    return {
        "jsonl": {"jsonl": str(folder / "rows.jsonl")},
        "parquet": {"parquet": str(folder / "rows.parquet")},
        "list": {"data": ROWS},
        "table": {"data": table},
    }


def read(source: Source) -> list[dict[str, object]]:
    return [row for chunk in source.chunks() for row in chunk.rows.to_pylist()]


@pytest.mark.parametrize("kind", ["jsonl", "parquet", "list", "table"])
def test_columns_are_computed_alike_from_every_kind_of_source(kind: str, tmp_path: Path) -> None:
    source = Source(**sources(tmp_path)[kind], select=SELECT, drop=["instruction", "input", "output", "tags"])
    expected = [
        {"row_id": 0, "prompt": "Past tense.\nI walk", "response": "I walked", "votes": 3, "lang": "en"},
        {"row_id": 1, "prompt": "A sea?", "response": "The Baltic", "votes": 1, "lang": "de"},
        {"row_id": 2, "prompt": "A lake?", "response": "Ladoga", "votes": 5, "lang": None},
    ]
    assert read(source) == expected
    small = source.model_copy(update={"shard_rows": 1})
    chunks = list(small.chunks())
    assert [later.rows for later in small.chunks(2, chunks[1].schema)] == [chunks[2].rows]
    if kind == "parquet":
        assert chunks[0].schema.field("votes").type == pa.int32()


def test_rows_that_where_leaves_out_have_no_number(tmp_path: Path) -> None:
    for fields in sources(tmp_path).values():
        source = Source(**fields, select=SELECT, where="votes > 1", shard_rows=1)
        assert [(row["row_id"], row["response"]) for row in read(source)] == [(0, "I walked"), (1, "Ladoga")]
        with pytest.raises(SourceError, match="no rows, or none that `where` keeps; change the condition"):
            read(source.model_copy(update={"where": "votes > 9"}))


def test_csv_is_computed_from_its_types(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text("question,score,code\na,1.5,007\nb,2,008\n")
    source = Source(csv=str(tmp_path / "a.csv"), select={"prompt": "question || code", "twice": "score * 2"})
    assert [(row["prompt"], row["twice"]) for row in read(source)] == [("a007", 3.0), ("b008", 4.0)]


def test_a_layout_reads_what_select_gives(tmp_path: Path) -> None:
    rows = [{"instruction": "When?", "passage": "It began in 2000.", "response": "In 2000.", "lang": "en"}]
    source = Source(data=rows * 2, layout="dolly", select={"context": "passage"}, where="lang = 'en'", drop=["passage"])
    assert [row["prompt"] for row in read(source)] == ["When?\n\nIt began in 2000."] * 2
    assert "passage" not in read(source)[0]


def test_a_row_that_cannot_be_read_stays_where_it_is(tmp_path: Path) -> None:
    lines = [b'{"q": "a", "n": 1}', b"{", b'{"q": "b\xff", "n": 2}', b'{"q": "c", "n": "x"}', b'{"q": "d"}']
    (tmp_path / "a.jsonl").write_bytes(b"\n".join(lines))
    source = Source(jsonl=str(tmp_path / "a.jsonl"), select={"prompt": "upper(q)", "m": "n || '!'"})
    (chunk,) = source.chunks()
    assert [(row["row_id"], row["prompt"], row["m"]) for row in chunk.rows.to_pylist()] == [
        (0, "A", "1!"),
        (3, "C", "x!"),
        (4, "D", None),
    ]
    assert [(row["row_id"], row["reason"][:40]) for row in chunk.rejected.to_pylist()] == [
        (1, "line is not JSON: Expecting property nam"),
        (2, "column q cannot be read by select or whe"),
    ]


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"select": {"prompt": "instructio"}}, "no column 'instructio' for select: prompt; it has instruction, input"),
        (
            {"select": {"prompt": "instruction"}, "where": "vote > 1"},
            "no column 'vote' for where; .*did you mean `votes`",
        ),
        ({"select": {"prompt": "max(instruction)"}}, "select: prompt calls max, which is no function of one row"),
        ({"prompt": "instruction", "drop": ["inptu"]}, "no column 'inptu' to drop; .*did you mean `input`"),
        ({"prompt": "instruction", "drop": ["instruction"]}, "column 'instruction' is mapped; take it out of drop"),
    ],
)
def test_what_does_not_fit_is_refused_in_one_line(fields: dict[str, object], message: str, tmp_path: Path) -> None:
    with pytest.raises(SourceError, match=message) as caught:
        read(Source(**sources(tmp_path)["parquet"], **fields))
    assert "\n" not in str(caught.value)


def test_what_is_computed_is_part_of_the_fingerprint_where_there_is_any(tmp_path: Path) -> None:
    fields = sources(tmp_path)["jsonl"]
    plain = Source(**fields, prompt="instruction").identity()
    assert not {"select", "where", "drop"} & set(plain)
    identities = [
        plain,
        *(
            Source(**fields, prompt="instruction", **more).identity()
            for more in ({"select": {"x": "1"}}, {"select": {"x": "2"}}, {"where": "votes > 1"}, {"drop": ["votes"]})
        ),
    ]
    assert len({json.dumps(identity) for identity in identities}) == 5


def test_columns_of_the_question_that_select_reads_are_not_told(tmp_path: Path) -> None:
    (chunk,) = Source(data=ROWS, select=SELECT).chunks()
    assert chunk.notes == ()
