"""A store as a lazy Polars frame: the same values as SQL gives, and no file opened that the query does not need."""

from __future__ import annotations

import sys

import polars as pl
import pytest
from polars.testing import assert_frame_equal

from seamcurate import FakeModel, Random, Recipe, Reward, Source, Store, run_local
from seamcurate.errors import DamagedError, StoreError
from seamcurate.storage import shard

ROWS = [{"prompt": f"question {i}?", "response": f"answer {i}", "n": i} for i in range(50)]


def recipe(**parts) -> Recipe:
    source = Source(data=ROWS, response="response", shard_rows=8)
    return Recipe(rows=source, steps=[Reward(reward=FakeModel()), Random()]).model_copy(update=parts)


@pytest.fixture
def store(tmp_path) -> Store:
    run_local(recipe(), tmp_path / "store")
    return Store(tmp_path / "store")


@pytest.fixture
def opened(store, monkeypatch):
    """List the shards that are read, by folder and number."""
    read, listed = shard.read, list[str]()

    def spy(path, *arguments):
        listed.append(f"{path.parent.name}/{int(path.stem)}")
        return read(path, *arguments)

    monkeypatch.setattr(shard, "read", spy)
    return listed


def test_a_scan_has_the_values_that_sql_has(finished):
    scanned = finished.scan().collect()
    asked = finished.sql("SELECT * FROM rows").pl()
    assert scanned.columns[:2] == ["row_id", "prompt"] and set(scanned.columns) == set(asked.columns)
    plain = [name for name, kind in scanned.schema.items() if not name.startswith("worse_")]
    assert len(plain) > 15
    assert_frame_equal(scanned.select(plain), asked.select(plain))
    candidates = scanned.select("row_id", pl.col("worse_contrast")).explode("worse_contrast").unnest("worse_contrast")
    joined = finished.sql("SELECT row_id, response, source_row_id FROM candidates ORDER BY row_id, rank").pl()
    assert candidates.drop_nulls("source_row_id").select(joined.columns).equals(joined)


def test_the_schema_is_known_before_anything_is_read(store, opened):
    schema = store.scan().collect_schema()
    assert schema["reward"] == pl.Float64 and schema["prompt"] == pl.String and schema["n"] == pl.Int64
    assert opened == []


def test_no_file_is_opened_of_a_column_that_a_query_does_not_name(store, opened):
    folder = store.path / "columns" / "baseline_random"
    for file in folder.glob("0*.parquet"):
        file.write_bytes(b"damaged")
    plan = store.scan().select("n", "reward")
    assert "PROJECT 2/7 COLUMNS" in plan.explain()
    assert plan.collect().height == 50
    assert {name.split("/")[0] for name in opened} == {"rows", "reward"}
    with pytest.raises(DamagedError, match="baseline_random"):
        store.scan().select("baseline_random").collect()


def test_a_filter_opens_other_columns_only_where_a_row_passes(store, opened):
    query = store.scan().filter(pl.col("n") > 45).select("n", "reward")
    assert 'SELECTION: col("n") > 45' in query.explain()
    assert query.collect()["n"].to_list() == [46, 47, 48, 49]
    assert [name for name in opened if name.startswith("reward")] == ["reward/5", "reward/6"]
    opened.clear()
    assert store.scan().filter(pl.col("reward") > 1e9).collect().is_empty()
    assert [name for name in opened if name.startswith("baseline_random")] == []


def test_a_limit_stops_reading(store, opened):
    assert store.scan().head(3).collect()["n"].to_list() == [0, 1, 2]
    assert {name.split("/")[1] for name in opened} == {"0"}


@pytest.mark.parametrize("engine", ["in-memory", "streaming"])
def test_filters_limits_and_groups_give_what_an_eager_frame_gives(store, engine):
    eager = store.scan().collect()
    queries = [
        lambda rows: rows.filter(pl.col("n") % 2 == 0).head(3),
        lambda rows: rows.head(11).filter(pl.col("n") % 2 == 0),
        lambda rows: rows.slice(10, 3).select("prompt"),
        lambda rows: rows.tail(2),
        lambda rows: rows.filter(pl.col("reward").is_null()),
        lambda rows: rows.filter((pl.col("n") > 3) & pl.col("prompt").str.contains("1")).select("reward", "row_id"),
        lambda rows: rows.with_columns(half=pl.col("n") // 2).filter(pl.col("half") > 20).select("half"),
        lambda rows: rows.select(pl.len()),
        lambda rows: rows.group_by(pl.col("n") % 3).agg(pl.col("reward").mean()).sort("n"),
        lambda rows: rows.filter(pl.lit(True)).select("n"),
        lambda rows: rows.filter(pl.lit(False)),
    ]
    for query in queries:
        assert_frame_equal(query(store.scan()).collect(engine=engine), query(eager.lazy()).collect())


def test_what_is_not_computed_is_null_and_what_is_out_of_date_is_not_there(store):
    (store.path / "columns" / "reward" / "00001.parquet").unlink()
    with pytest.raises(DamagedError, match=r"reward/00001\.parquet is missing"):
        store.scan().select("reward").collect()
    assert store.scan().select("n").collect().height == len(store)
    # The facts of a column are written when it is finished.
    (store.path / "columns" / "reward" / "_facts.json").unlink()
    assert store.scan().select("reward").collect()["reward"].is_null().sum() == 8
    before = store.scan()
    run_local(recipe(steps=[Reward(reward=FakeModel(path="other"))]), store.path, replace=True)
    assert store.scan().select("reward").collect()["reward"].null_count() == 0
    assert before.collect()["reward"].null_count() == 0


def test_a_lost_shard_of_a_complete_store_is_an_error(store):
    (store.path / "rows" / "00006.parquet").unlink()
    with pytest.raises(DamagedError, match=r"rows/00006\.parquet"):
        store.scan().select("n").collect()


def test_a_scan_needs_a_store_and_polars(tmp_path, store, monkeypatch):
    with pytest.raises(StoreError, match="is no store"):
        Store(tmp_path / "nothing").scan()
    monkeypatch.setitem(sys.modules, "polars", None)
    with pytest.raises(StoreError, match=r"pip install .*\[polars\]"):
        store.scan()
