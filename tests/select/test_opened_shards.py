"""A query opens the shards that hold the columns it reads, verifies these, and reads no others."""

from __future__ import annotations

import shutil

import pytest

from seamcurate import Store, query
from seamcurate.errors import DamagedError, QueryError
from seamcurate.select import views
from seamcurate.sql import engine
from seamcurate.storage import shard

_ENDS = {
    f"{folder}/{number:05d}.parquet"
    for folder, number in (("rows", 0), ("rows", 2), ("corpus/rows", 0), ("corpus/rows", 3))
}
"""What gives the views' columns their types: the first and the last shard of the rows, and of the corpus."""


@pytest.fixture
def store(finished, tmp_path):
    # A copy: no process has verified its files.
    shutil.copytree(finished.path, tmp_path / "store")
    return Store(tmp_path / "store")


def _verified(store, monkeypatch) -> list[str]:
    verify, seen = shard.verify, []

    def noted(file, *job):
        seen.append(str(file.relative_to(store.path)))
        return verify(file, *job)

    monkeypatch.setattr(shard, "verify", noted)
    return seen


@pytest.mark.parametrize(
    ("sql", "folders"),
    [
        ("SELECT max(reward) FROM rows", {"columns/reward"}),
        ("SELECT r.reward FROM rows AS r WHERE rer > 0 ORDER BY row_id LIMIT 2", {"columns/reward", "columns/rer"}),
        ("SELECT prompt, reward FROM rows", {"rows", "columns/reward"}),
        ("SELECT count(*) FROM rows", {"rows"}),
        ("SELECT COLUMNS('^rewar.$') FROM rows", {"columns/reward"}),
        ("WITH a AS MATERIALIZED (SELECT * FROM rows) SELECT reward FROM a", {"columns/reward"}),
        ("SELECT row_id FROM ledger", {"splits/train"}),
        ("SELECT count(*) FROM rejected", {"rejected"}),
        ("SELECT response FROM corpus", {"corpus/rows"}),
        (
            "SELECT rows.reward FROM rows JOIN ledger USING (row_id) WHERE kept ORDER BY 1",
            {"columns/reward", "splits/train"},
        ),
        ("DESCRIBE rows", {"rows"}),
        ("SELECT 1", set()),
    ],
)
def test_a_query_verifies_the_shards_of_its_columns_alone(sql, folders, store, monkeypatch):
    whole = query(store, sql)
    seen = _verified(store, monkeypatch)
    shard._verified.clear()
    with views.connect(store) as connection:
        opened = set(seen)
        assert opened == _ENDS
        assert views.run(connection, sql).read_all() == whole
    read = {file.rpartition("/")[0] for file in set(seen) - opened}
    assert read | {folder for folder in folders if folder in ("rows", "corpus/rows")} == folders
    if folders:
        assert len(set(seen) - opened) < len(list(store.path.rglob("*.parquet"))) / 3


def test_answers_are_those_of_a_query_that_opens_everything(finished):
    with views.connect(finished, threads=1) as narrow, views.connect(finished, threads=1) as whole:
        # A statement that makes a table opens everything.
        whole.execute("CREATE TABLE kept AS SELECT 1 AS one")
        for sql in (
            "SELECT row_id, reward, seam_contrast FROM rows ORDER BY row_id",
            "SUMMARIZE SELECT row_id, query_type FROM rows",
            "SELECT split, kept, prompt FROM ledger JOIN rows USING (row_id) ORDER BY ALL",
            "SELECT variant, max(misjudgement), count(response) FROM candidates GROUP BY ALL ORDER BY ALL",
            "SELECT * FROM candidates ORDER BY ALL",
            "SELECT * FROM rows ORDER BY row_id",
        ):
            assert views.run(narrow, sql).read_all() == views.run(whole, sql).read_all()
        assert whole.execute("SELECT one FROM kept").fetchall() == [(1,)]


def test_a_connection_opens_more_as_its_queries_read_more_and_nothing_twice(store, monkeypatch):
    shard._verified.clear()
    seen = _verified(store, monkeypatch)
    with views.connect(store) as connection:
        first = connection.ask("SELECT max(reward) AS s FROM rows").read_all()
        second = connection.cursor().ask("SELECT count(prompt) FROM rows").fetchall()
        before = len(seen)
        assert connection.ask("SELECT max(reward) AS s FROM rows WHERE prompt <> ''").read_all() == first
        assert second == [(40,)] and len(seen) == before
    assert len(seen) == len(set(seen))


@pytest.mark.parametrize("harm", ["altered", "cut short", "missing"])
def test_a_harmed_shard_is_found_when_it_is_read_and_not_in_the_way_before(store, harm):
    file = store.path / "columns" / "reward" / "00001.parquet"
    content = bytearray(file.read_bytes())
    content[40] ^= 1
    if harm == "missing":
        file = store.path / "rows" / "00001.parquet"
        file.unlink()
    else:
        file.write_bytes(content if harm == "altered" else content[:-9])
    reads, spares = ("prompt", "reward") if harm == "missing" else ("reward", "prompt")
    assert query(store, f"SELECT count({spares}) AS n FROM rows")["n"].to_pylist() == [40]
    with pytest.raises(DamagedError) as caught:
        query(store, f"SELECT count({reads}) FROM rows")
    assert str(file) in str(caught.value) and "\n" not in str(caught.value)


@pytest.mark.parametrize("number", [1, -1])
def test_a_lost_shard_of_a_finished_column_is_an_error_and_not_null(store, number):
    folder = store.path / "columns" / "reward"
    file = sorted(folder.glob("[0-9]*.parquet"))[number]
    content = file.read_bytes()
    file.unlink()
    assert query(store, "SELECT count(prompt) AS n FROM rows")["n"].to_pylist() == [40]
    with pytest.raises(DamagedError, match=f"{file.name} is missing"):
        query(store, "SELECT count(reward) FROM rows")
    # While a run computes it, what is not there yet is NULL.
    (folder / "_facts.json").unlink()
    assert query(store, "SELECT count(reward) AS n FROM rows")["n"].to_pylist()[0] < 40
    file.write_bytes(content)
    assert query(store, "SELECT count(reward) AS n FROM rows")["n"].to_pylist() == [40]


def test_a_column_that_was_taken_for_unread_is_an_error_and_never_null(store, monkeypatch):
    with views.connect(store) as connection:
        source = connection._engine.source
        connection._engine.source = lambda read, columns: source(read, {"rows": ["rer"]})
        with pytest.raises(QueryError, match="not opened"):
            connection.ask("SELECT reward FROM rows").fetchall()
        assert connection.ask("SELECT count(rer) FROM rows").fetchall() == [(40,)]


def test_a_plan_names_the_columns_of_each_table():
    scan = {"name": "SEQ_SCAN", "children": [], "extra_info": {"Table": 'memory.main."rows"', "Projections": "a"}}
    other = {
        "name": "SEQ_SCAN",
        "children": [],
        "extra_info": {"Table": "memory.other.corpus", "Projections": ["b", "c"]},
    }
    counted = {"name": "SEQ_SCAN", "children": [], "extra_info": {"Table": "memory.main.ledger", "Projections": ""}}
    join = {"name": "HASH_JOIN", "children": [scan, other, counted], "extra_info": {}}
    assert engine.scanned([join]) == {"rows": ["a"], "other.corpus": ["b", "c"], "ledger": []}
