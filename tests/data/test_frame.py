"""Rows in memory as a source: the same rows are the same source, whichever library holds them."""

from __future__ import annotations

import datetime
import decimal

import datasets
import numpy as np
import pandas as pd
import polars as pl
import pyarrow as pa
import pytest

from seamcurate import FakeModel, Recipe, Reward, Source, nearest, query, run_local
from seamcurate.data.frame import Frame
from seamcurate.errors import SourceError
from seamcurate.run.recipe import loads
from seamcurate.store.store import Store

ROWS = [
    {"prompt": "2 + 2?", "response": "4", "score": 0.5, "tags": ["sum", "easy"]},
    {"prompt": "", "response": "6", "score": None, "tags": []},
    {"prompt": "naïve\u2028 🙂", "response": "ok", "score": -1.0, "tags": None},
]
ARROW = pa.Table.from_pylist(ROWS)


@pytest.mark.parametrize(
    "rows",
    [
        ROWS,
        ARROW,
        pa.concat_tables([ARROW.slice(0, 1), ARROW.slice(1)]),
        pl.DataFrame(ROWS),
        pd.DataFrame(ROWS),
        datasets.Dataset.from_list(ROWS),
    ],
    ids=["dicts", "arrow", "chunks", "polars", "pandas", "datasets"],
)
def test_every_kind_of_rows_is_read_as_the_same_rows(rows):
    (chunk,) = Source(data=rows, response="response").chunks()
    assert chunk.rows.to_pylist() == [{"row_id": i, **ROWS[i]} for i in (0, 2)]
    assert chunk.rejected["reason"].to_pylist() == ["prompt is blank"]
    if not isinstance(rows, list):
        assert Frame(rows) == Frame(ARROW) and hash(Frame(rows)) == hash(Frame(ARROW))


def test_a_dataset_is_the_rows_that_it_selects():
    selected = datasets.Dataset.from_list(ROWS).select([2, 0])
    (chunk,) = Source(data=selected, response="response").chunks()
    assert chunk.rows["prompt"].to_pylist() == [ROWS[2]["prompt"], ROWS[0]["prompt"]]


HASHED = {
    "text": pa.array(["a", "", None, "bc"]),
    "bytes": pa.array([b"a", None, b"\xff", b""]),
    "truth": pa.array([True, None, False, True]),
    "lists": pa.array([[1, None], [], None, [2]]),
    "structs": pa.array([{"x": 1, "y": "p"}, None, {"x": None, "y": "q"}, {"x": 3, "y": None}]),
    "pairs": pa.array([[0.5, 1.5], None, [2.0, 3.0], [4.0, 5.0]], pa.list_(pa.float32(), 2)),
    "maps": pa.array([[("k", 1)], [], None, [("l", None)]], pa.map_(pa.string(), pa.int64())),
    "days": pa.array([datetime.date(2026, 1, 1), None, datetime.date(2025, 1, 1), datetime.date(1969, 1, 1)]),
    "sums": pa.array([decimal.Decimal("1.5"), None, decimal.Decimal("-2.25"), decimal.Decimal(0)]),
    "none": pa.nulls(4),
    "words": pa.array(["a", "b", None, "a"]).dictionary_encode(),
}


def test_the_identity_is_of_the_values_not_of_their_place_in_memory():
    table = pa.table(HASHED)
    padded = pa.concat_tables([table, table]).combine_chunks()
    cuts = [pa.concat_tables([table.slice(0, cut), table.slice(cut)]) for cut in range(5)]
    masked = pa.array([7, 8, 9, 10], mask=np.array([False, True, False, False]))
    zeroed = pa.array([7, None, 9, 10])
    identities = {Frame(t).sha256 for t in (table, *cuts, padded.slice(0, 4), padded.slice(4, 4))}
    assert len(identities) == 1
    assert Frame(pa.table({"x": masked})) == Frame(pa.table({"x": zeroed}))


@pytest.mark.parametrize("name", [name for name in HASHED if name != "none"])
def test_each_value_and_each_null_is_part_of_the_identity(name):
    column = HASHED[name].dictionary_decode() if name == "words" else HASHED[name]
    values = column.to_pylist()
    identities = [Frame(pa.table({name: column})).sha256]
    for i in range(len(values)):
        changed = [*values[:i], values[(i + 1) % len(values)], *values[i + 1 :]]
        if changed == values:
            continue
        identities.append(Frame(pa.table({name: pa.array(changed, column.type)})).sha256)
    identities.append(Frame(pa.table({"other": column})).sha256)
    assert len(set(identities)) == len(identities)


def test_a_frame_that_changes_afterwards_leaves_the_source_as_it_was():
    numbers = np.array([1.0, 2.0])
    frame = pd.DataFrame({"prompt": ["a", "b"], "score": numbers}, copy=False)
    source = Source(data=frame)
    before = source.identity()
    numbers[0] = frame.loc[1, "score"] = 9.0
    assert source.identity() == before
    assert next(source.chunks()).rows["score"].to_pylist() == [1.0, 2.0]


def test_a_named_index_is_a_column_and_another_is_left_out():
    frame = pd.DataFrame(ROWS).set_index("response")
    assert "response" in next(Source(data=frame).chunks()).rows.column_names
    filtered = pd.DataFrame(ROWS)[lambda rows: rows.score > 0]
    assert next(Source(data=filtered).chunks()).rows.column_names == ["row_id", "prompt", "response", "score", "tags"]


def test_dicts_may_each_have_other_keys_and_each_its_own_mistake():
    rows = [{"prompt": "a"}, {"prompt": "b", "late": 1}, {"prompt": None}, {"prompt": {}, "late": 2}]
    (chunk,) = Source(data=rows).chunks()
    assert chunk.rows.to_pylist() == [
        {"row_id": 0, "prompt": "a", "late": None},
        {"row_id": 1, "prompt": "b", "late": 1},
    ]
    assert chunk.rejected["reason"].to_pylist() == ["prompt is null", "prompt is not text but struct"]


def test_a_run_resumes_from_the_same_rows_and_refuses_others(tmp_path):
    recipe = Recipe(rows=Source(data=pl.DataFrame(ROWS), response="response"), steps=[Reward(reward=FakeModel())])
    assert run_local(recipe, tmp_path / "store").computed == 1
    same = recipe.model_copy(update={"rows": Source(data=ARROW, response="response")})
    assert run_local(same, tmp_path / "store").computed == 0
    other = recipe.model_copy(update={"rows": Source(data=ROWS[:1], response="response")})
    with pytest.raises(Exception, match="data: rows in memory changed"):
        run_local(other, tmp_path / "store")
    assert len(query(tmp_path / "store", "SELECT reward FROM rows WHERE reward IS NOT NULL")) == 2


def test_a_lost_shard_is_restored_from_the_rows_in_memory(tmp_path):
    recipe = Recipe(rows=Source(data=pl.DataFrame(ROWS), response="response"))
    run_local(recipe, tmp_path / "store")
    (tmp_path / "store" / "rows" / "00000.parquet").unlink()
    run_local(recipe, tmp_path / "store")
    assert len(Store(tmp_path / "store")) == 2


def test_other_data_in_memory_is_compared_with_and_its_record_names_the_hash(tmp_path):
    other = Source(data=[{"prompt": "2 + 2?"}])
    steps = nearest(to=other, name="test", encoder=FakeModel())
    recipe = Recipe(rows=Source(data=ROWS), steps=steps)
    run_local(recipe, tmp_path / "store")
    records = Store(tmp_path / "store").records().values()
    (config,) = (record["config"] for record in records if record["step"] == "Nearest")
    assert config["to"]["data"] == {
        "in_memory": "a list of dicts",
        "rows": 1,
        "sha256": Frame([{"prompt": "2 + 2?"}]).sha256,
    }
    with pytest.raises(SourceError, match="data was a list of dicts in memory, which no record holds"):
        Source.model_validate(config["to"])


def test_a_recipe_file_cannot_hold_rows():
    with pytest.raises(SourceError, match="rows in memory are for Python; a recipe file names them by `parquet`"):
        loads("rows: {data: [{prompt: a}]}")


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        (3, "data is a int; give a pandas or Polars frame"),
        ({"prompt": ["a"]}, "data is a dict; give"),
        (pl.DataFrame(ROWS).lazy(), r"data is a LazyFrame; .*; call its .collect\(\)"),
        (datasets.DatasetDict(train=datasets.Dataset.from_list(ROWS)), "DatasetDict; .*; name a split"),
        (["a"], "item 0 of the list is a str"),
        ([{"prompt": "a", "at": datetime.date.today()}], "item 0 of the list cannot be JSON"),
        (pd.DataFrame({"prompt": ["a", 1]}), "a DataFrame that Arrow cannot hold: .*; convert that column"),
        (pa.table([["a"], ["b"]], ["prompt", "prompt"]), "two columns called 'prompt'"),
    ],
    ids=["number", "dict", "lazy", "splits", "texts", "dates", "mixed", "twins"],
)
def test_what_is_no_table_is_refused_in_a_line(rows, message):
    with pytest.raises(SourceError, match=message) as caught:
        Source(data=rows)
    assert "\n" not in str(caught.value)
