"""Text files are read as what their bytes say: packed, in any common encoding and delimiter, lines or one array."""

from __future__ import annotations

import bz2
import gzip
import json
import lzma
from collections.abc import Callable
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from seamcurate import Source
from seamcurate.data import lines
from seamcurate.errors import SourceError

ROWS = [{"prompt": "a", "n": 1}, {"prompt": "é", "n": 2}, {"prompt": "“c”", "n": 3}]
JSONL = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in ROWS).encode()
CSV = "prompt,n\na,1\né,2\n“c”,3\n".encode()


def zstd(content: bytes) -> bytes:
    return bytes(pa.Codec("zstd").compress(content, asbytes=True))


PACKERS: dict[str, Callable[[bytes], bytes]] = {
    "gz": gzip.compress,
    "GZ": gzip.compress,
    "bz2": bz2.compress,
    "xz": lzma.compress,
    "zst": lambda content: zstd(content[:20]) + zstd(content[20:]),
    "without_suffix": gzip.compress,
}


def read(source: Source) -> list[dict[str, object]]:
    rows = [row for chunk in source.chunks() for row in chunk.rows.to_pylist()]
    return [{name: value for name, value in row.items() if name != "row_id"} for row in rows]


def notes(source: Source) -> list[str]:
    return [line for chunk in source.chunks() for line in chunk.notes]


@pytest.mark.parametrize("suffix", PACKERS)
def test_packed_files_are_unpacked_by_what_they_are(suffix: str, tmp_path: Path) -> None:
    for kind, content in (("jsonl", JSONL), ("csv", CSV)):
        path = tmp_path / f"rows.{kind}.{suffix}"
        path.write_bytes(PACKERS[suffix](content))
        assert read(Source(**{kind: str(path)})) == ROWS
        path.write_bytes(PACKERS[suffix](content)[:-6])
        with pytest.raises(SourceError, match=f"{path} cannot be read: .*; check the file"):
            read(Source(**{kind: str(path)}))


def test_frames_of_zstandard_that_are_skipped_may_come_first_and_lz4_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl.zst"
    for mark in (0x50, 0x5F):
        # As pzstd writes it: a frame of four bytes that readers skip.
        path.write_bytes(bytes([mark]) + b"\x2a\x4d\x18\x04\0\0\0size" + PACKERS["zst"](JSONL))
        assert read(Source(jsonl=str(path))) == ROWS
    path.write_bytes(pa.compress(JSONL, codec="lz4", asbytes=True))
    with pytest.raises(SourceError, match=r"rows\.jsonl\.zst is packed by lz4; unpack it"):
        read(Source(jsonl=str(path)))


@pytest.mark.parametrize("block", [1, 7, 1 << 20])
@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16"])
def test_one_array_is_read_as_its_items(
    block: int, encoding: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(lines, "_BLOCK", block)
    items: list[object] = [
        {"prompt": "a"},
        {"prompt": "b", "x": [1, [2]], "s": '] , \\ " é'},
        7,
        {"prompt": "d", "n": 12345},
    ]
    expected = [
        {"prompt": "a"},
        {"prompt": "b", "x": [1, [2]], "s": '] , \\ " é'},
        {"prompt": "d", "n": 12345},
    ]
    for indent in (None, 2):
        (tmp_path / "a.json").write_text(json.dumps(items, indent=indent, ensure_ascii=False) + "\n", encoding)
        source = Source(jsonl=str(tmp_path / "a.json"))
        assert [{k: v for k, v in row.items() if v is not None} for row in read(source) if row["prompt"] != "b"] == [
            expected[0],
            expected[2],
        ]
        (chunk,) = source.chunks()
        assert chunk.rejected["reason"].to_pylist()[0] == "line is not a JSON object but int64"
        assert chunk.rows["row_id"].to_pylist()[-1] == 3


@settings(max_examples=40, deadline=None)
@given(
    items=st.lists(st.dictionaries(st.text(max_size=3), st.integers() | st.text(max_size=5) | st.lists(st.none()))),
    block=st.integers(1, 40),
)
def test_items_come_out_whole_wherever_blocks_end(
    items: list[object], block: int, tmp_path_factory: pytest.TempPathFactory
) -> None:
    path = tmp_path_factory.mktemp("arrays") / "a.json"
    path.write_text(json.dumps(items))
    before, lines._BLOCK = lines._BLOCK, block
    try:
        assert [json.loads(item) for item in lines.json_values(path, "utf-8")] == items
    finally:
        lines._BLOCK = before


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        ('[{"prompt": "a"}, {"prompt": ]', "broken after 1 items: Expecting value"),
        ('[{"prompt": "a"}, {"prompt": "b"}', "broken after 2 items: it has no end"),
        ('[{"prompt": "a"} {"prompt": "b"}]', "broken after 1 items: there is '{' where a comma should be"),
        ('[{"prompt": "a"},]', "broken after 1 items: Expecting value"),
        ('[{"prompt": "a"}]\n[{"prompt": "b"}]', "broken after 1 items: there is text after its end"),
        ("[\n", "broken after 0 items: it has no end"),
    ],
)
def test_a_broken_array_is_refused_where_it_breaks(content: str, reason: str, tmp_path: Path) -> None:
    (tmp_path / "a.json").write_text(content)
    with pytest.raises(SourceError) as caught:
        read(Source(jsonl=str(tmp_path / "a.json")))
    assert f"a.json is one JSON array, {reason}" in str(caught.value)


def test_lines_that_are_lists_stay_lines(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_text('[1, 2]\n{"prompt": "a"}\n')
    assert read(Source(jsonl=str(tmp_path / "a.jsonl"))) == [{"prompt": "a"}]


@pytest.mark.parametrize("delimiter", [";", "\t", "|"])
@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "cp1252"])
def test_tables_of_spreadsheets_are_read(delimiter: str, encoding: str, tmp_path: Path) -> None:
    path = tmp_path / "a.csv"
    path.write_bytes(CSV.decode().replace(",", delimiter).replace("\n", "\r\n").encode(encoding))
    source = Source(csv=str(path))
    assert read(source) == ROWS
    told = [f"{path}: its fields are divided by {delimiter!r}; `delimiter` overrules that"]
    if encoding in ("utf-16", "cp1252"):
        told.append(f"{path} is read as {encoding}; `encoding` overrules that")
    assert notes(source) == told
    # What the source says itself is not told again.
    named = Source(csv=str(path), delimiter=delimiter, encoding=encoding)
    assert (read(named), notes(named)) == (ROWS, [])
    identity = source.identity()
    assert isinstance(identity, dict)
    assert identity["csv_dialects"] == [["utf-8" if encoding == "utf-8-sig" else encoding, delimiter]]


def test_options_overrule_what_is_found(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_bytes("prompt;x,n;y\né;1,2;3\n".encode("cp1250"))
    path = str(tmp_path / "a.csv")
    assert read(Source(csv=path, prompt="prompt;x", encoding="latin-1")) == [{"prompt": "é;1", "n;y": "2;3"}]
    assert read(Source(csv=path, delimiter=";")) == [{"prompt": "é", "x,n": "1,2", "y": 3}]
    (tmp_path / "b.csv").write_text("sep=|\nprompt|n\na,b|1\n")
    assert read(Source(csv=str(tmp_path / "b.csv"))) == [{"prompt": "a,b", "n": 1}]
    (tmp_path / "c.jsonl").write_bytes('{"prompt": "é"}\n'.encode("cp1252"))
    assert read(Source(jsonl=str(tmp_path / "c.jsonl"), encoding="cp1252")) == [{"prompt": "é"}]


def test_a_file_with_some_utf8_is_utf8_and_a_plain_one_keeps_its_fingerprint(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_bytes("prompt\né\n".encode() + b"b\xe9\n")
    source = Source(csv=str(tmp_path / "a.csv"))
    (chunk,) = source.chunks()
    assert chunk.rejected["reason"].to_pylist() == ["invalid UTF-8 in prompt"]
    assert not {"csv_dialects", "in_folders", "encoding", "delimiter"} & set(source.identity())


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"PK\x03\x04rest", "is a zip archive; unpack it"),
        (b"PAR1....PAR1", "is a Parquet file; name it by `parquet`"),
        (b"\x80\x04\x95", "is a pickle, which could run code; write the rows as JSON lines"),
    ],
)
def test_files_that_are_no_text_are_refused(content: bytes, message: str, tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_bytes(content)
    for kind in ("jsonl", "csv"):
        with pytest.raises(SourceError, match=message):
            read(Source(**{kind: str(tmp_path / "a.jsonl")}))


def test_options_of_other_files_are_refused() -> None:
    for fields, message in (
        ({"jsonl": "a", "delimiter": ";"}, "delimiter is for csv only"),
        ({"parquet": "a", "encoding": "cp1252"}, "encoding is for jsonl and csv only"),
        ({"csv": "a", "encoding": "klingon"}, "there is no encoding 'klingon'; name one"),
        ({"csv": "a", "delimiter": ";;"}, "at most 1 character"),
    ):
        with pytest.raises(ValidationError, match=message):
            Source(**fields)


# Columns in the names of folders.


def hive(folder: Path, kind: str) -> Path:
    for lang, year in (("en", "2023"), ("fr", "2024"), ("__HIVE_DEFAULT_PARTITION__", "2024"), ("a%2Fb", "2024")):
        place = folder / "d" / f"lang={lang}" / f"year={year}"
        place.mkdir(parents=True)
        if kind == "parquet":
            pq.write_table(pa.table({"prompt": [lang]}), place / "p.parquet")
        else:
            (place / f"p.{kind}").write_text(json.dumps({"prompt": lang}) if kind == "jsonl" else f"prompt\n{lang}\n")
    return folder / "d"


@pytest.mark.parametrize("kind", ["parquet", "jsonl", "csv"])
def test_folders_that_name_a_column_give_it(kind: str, tmp_path: Path) -> None:
    folder = hive(tmp_path / "run=7", kind)
    expected = {
        "en": ("en", 2023),
        "fr": ("fr", 2024),
        "__HIVE_DEFAULT_PARTITION__": (None, 2024),
        "a%2Fb": ("a/b", 2024),
    }
    patterns = [f"{folder}/**/*.{kind}", f"{folder}/*/*/p.{kind}", *([str(folder)] if kind == "parquet" else [])]
    for pattern in patterns:
        source = Source(**{kind: pattern}, shard_rows=3)
        rows = read(source)
        assert {row["prompt"]: (row["lang"], row["year"]) for row in rows} == expected
        # A folder above the pattern's fixed part is no column.
        assert set(rows[0]) == {"prompt", "lang", "year"}
        identity = source.identity()
        assert isinstance(identity, dict)
        assert {"lang": "en", "year": 2023} in identity["in_folders"]
    one = Source(**{kind: f"{folder}/lang=en/year=2023/p.{kind}"})
    assert read(one) == [{"prompt": "en"}]
    assert "in_folders" not in one.identity()


def test_columns_of_folders_can_be_computed_with_and_mapped(tmp_path: Path) -> None:
    folder = hive(tmp_path, "jsonl")
    source = Source(jsonl=f"{folder}/**/*.jsonl", where="year = 2024 AND lang IS NOT NULL", reference="lang")
    assert sorted(str(row["reference"]) for row in read(source)) == ["a/b", "fr"]
