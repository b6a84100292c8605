"""What lies in a store's folders and is none of its files is named by a check, and read by nobody."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pandas as pd
import pyarrow as pa
import pyarrow.dataset as ds
import pyarrow.parquet as pq
import pytest
from conftest import questions

from seamcurate import FakeModel, Models, Project, Random, Recipe, Reward, Source, Split, Store, check, query, run_local
from seamcurate.errors import DamagedError
from seamcurate.explore.session import Session
from seamcurate.publish.export import export
from seamcurate.store.folder import load_json, numbers, save_record, step_file

STRAYS = {
    "rows/00000 (1).parquet": "rows/00000.parquet",
    "rows/0.parquet": "rows/00000.parquet",
    "rows/000001.parquet": "rows/00001.parquet",
    "rows/00000.sync-conflict-20261128.parquet": "rows/00000.parquet",
    "rows/notes/00000.parquet": "rows/00000.parquet",
    "rejected/0.parquet": "rejected/00000.parquet",
    "rows/.DS_Store": None,
    "columns/.DS_Store": None,
    "columns/notes.txt": None,
    "columns/reward/00001 (1).parquet": "columns/reward/00001.parquet",
    "columns/reward/1.parquet": "columns/reward/00001.parquet",
    "columns/reward/00002": "columns/reward/00002.parquet",
    "columns/reward/._00000.parquet": None,
    "columns/reward/step.json": None,
    "columns/reward/_step (1).json": "columns/reward/_step.json",
    "columns/foreign/step.json": None,
    "columns/theirs/step.json": "splits/train/_split.json",
    "columns/tables/00000.parquet": None,
    "columns/reward copy/": "columns/reward",
    "splits/train copy/": "splits/train",
    "splits/train/ledger (1).parquet": "splits/train/ledger.parquet",
    "splits/notes/split.json": None,
    "splits/.DS_Store": None,
}


def recipe(folder: Path, **parts: object) -> Recipe:
    whole = {
        "rows": Source(jsonl=str(folder / "rows.jsonl"), shard_rows=5),
        "models": Models(reward=FakeModel(), encoder=FakeModel()),
        "steps": (Reward(), Random(), Project(landmarks=8)),
        "splits": {"train": Split(filter="SELECT row_id FROM rows WHERE reward > -1000 AND row_id % 2 = 0")},
    }
    return Recipe(**(whole | parts))


@pytest.fixture(scope="module")
def original(tmp_path_factory):
    folder = tmp_path_factory.mktemp("strays")
    (folder / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in questions(14)))
    run_local(recipe(folder), folder / "store")
    return folder


@pytest.fixture
def folder(original, tmp_path):
    shutil.copytree(original, tmp_path / "here")
    return tmp_path / "here"


def lay(store: Path) -> set[str]:
    """Lay every stray into a store, and return how a check names them."""
    for name, of in STRAYS.items():
        (store / name).parent.mkdir(parents=True, exist_ok=True)
        if name.endswith("/"):
            shutil.copytree(store / str(of), store / name)
        elif of is not None:
            shutil.copy(store / of, store / name)
        else:
            (store / name).write_text("{}")
    (store / "columns/reward/00007.parquet").symlink_to(store / "rows/00000.parquet")
    return {
        "rows/00000 (1).parquet",
        "rows/0.parquet",
        "rows/000001.parquet",
        "rows/00000.sync-conflict-20261128.parquet",
        "rows/notes",
        "rejected/0.parquet",
        "rows/.DS_Store",
        "columns/.DS_Store",
        "columns/notes.txt",
        "columns/reward/00001 (1).parquet",
        "columns/reward/1.parquet",
        "columns/reward/00002",
        "columns/reward/._00000.parquet",
        "columns/reward/step.json",
        "columns/reward/_step (1).json",
        "columns/foreign",
        "columns/theirs",
        "columns/tables",
        "columns/reward copy",
        "splits/train copy",
        "splits/train/ledger (1).parquet",
        "splits/notes",
        "splits/.DS_Store",
        "columns/reward/00007.parquet",
    }


@pytest.mark.slow
def test_files_that_are_no_shards_are_named_by_a_check_and_change_nothing(folder, tmp_path):
    store = Store(folder / "store")
    asked = "SELECT * FROM rows ORDER BY row_id", "SELECT * FROM ledger ORDER BY row_id", "SELECT * FROM rejected"
    before, listed = [query(store, one) for one in asked], store.columns()
    strays = lay(folder / "store")
    assert [query(store, one) for one in asked] == before
    assert store.columns() == listed and len(store) == 14
    assert Session(store).rows == 14
    assert next(Source(store=str(folder / "store")).chunks()).rows.num_rows == 14
    assert [one.rows for one in export(recipe(folder), store, "trl", tmp_path / "out")] == [7]
    assert run_local(recipe(folder), folder / "store").computed == 0
    found = check(store, recipe(folder)).findings
    assert {str(one.path.relative_to(folder / "store")) for one in found} == strays
    assert {one.wrong for one in found} == {"is no file of the store, and is not read"}
    other = recipe(folder, models=Models(reward=FakeModel(path="9"), encoder=FakeModel()))
    assert run_local(other, folder / "store", replace=True).computed == 3


def test_a_link_in_a_shard_s_place_is_not_read_and_the_shard_is_made_again(folder):
    store, file = Store(folder / "store"), folder / "store/columns/reward/00001.parquet"
    before = query(store, "SELECT row_id, reward FROM rows ORDER BY row_id")
    file.rename(folder / "elsewhere.parquet")
    file.symlink_to(folder / "elsewhere.parquet")
    assert f"{file} is no file of the store, and is not read; put the file itself in its place, or delete the link" in [
        str(one) for one in check(store).findings
    ]
    with pytest.raises(DamagedError, match="is a link and no file of the store; put the file itself in its place"):
        query(store, "SELECT count(reward) FROM rows")
    assert query(store, "SELECT count(prompt)::INT AS n FROM rows").to_pylist() == [{"n": 14}]
    assert run_local(recipe(folder), folder / "store").computed == 1
    assert query(store, "SELECT row_id, reward FROM rows ORDER BY row_id") == before
    assert not file.is_symlink() and (folder / "elsewhere.parquet").exists() and check(store).findings == []


@pytest.mark.slow
def test_a_folder_on_a_larger_disk_is_written_to_there(folder, tmp_path):
    store, disk = folder / "store", tmp_path / "disk"
    for name in ("rows", "columns/reward", "columns/projection/_shared", "splits/train"):
        (disk / name).parent.mkdir(parents=True, exist_ok=True)
        (store / name).rename(disk / name)
        (store / name).symlink_to(disk / name)
    assert check(Store(store), recipe(folder)).findings == []
    other = recipe(
        folder,
        models=Models(reward=FakeModel(path="9"), encoder=FakeModel()),
        splits={"train": Split(filter="SELECT row_id FROM rows WHERE row_id < 3")},
    )
    for made, kept in ((other, 3), (recipe(folder), 7)):
        assert run_local(made, store, replace=True).computed == 3
        assert check(Store(store), made).findings == []
        assert query(Store(store), "SELECT sum(kept::INT)::INT AS n FROM ledger").to_pylist() == [{"n": kept}]
    assert all((store / name).is_symlink() for name in ("rows", "columns/reward", "splits/train"))
    assert numbers(disk / "columns/reward") == [0, 1, 2]
    shorter = [json.dumps(row) + "\n" for row in questions(6)]
    (folder / "rows.jsonl").write_text("".join(shorter))
    assert run_local(recipe(folder), store, replace=True).rows == 6
    assert (store / "rows").is_symlink() and numbers(disk / "rows") == [0, 1]
    assert check(Store(store), recipe(folder)).findings == []


def test_readers_of_parquet_folders_take_a_column_s_folder_as_data(folder):
    store = folder / "store"
    for name, names in (("columns/reward", ["row_id", "reward"]), ("columns/projection", None), ("rows", None)):
        table = pa.concat_tables([pq.read_table(file) for file in sorted((store / name).glob("0*.parquet"))])
        assert names is None or table.column_names == names
        assert ds.dataset(store / name).to_table() == table
        assert pq.read_table(store / name) == table
        pd.testing.assert_frame_equal(pd.read_parquet(store / name), table.to_pandas())
    assert pd.read_parquet(store / "splits/train").shape == (14, 6)


def as_format_2(store: Path) -> None:
    """Rename what lies beside shards to what it was called up to format 2."""
    for folder in [*(store / "columns").iterdir(), *(store / "splits").iterdir()]:
        for name in ("step.json", "facts.json", "split.json"):
            if (folder / f"_{name}").exists():
                save_record(folder / name, load_json(folder / f"_{name}"))
                (folder / f"_{name}").unlink()
        if (folder / "_shared").exists():
            (folder / "_shared").rename(folder / "shared")
    save_record(store / "store.json", load_json(store / "store.json") | {"format": 2})


@pytest.mark.slow
def test_a_store_of_format_2_is_read_and_nothing_of_it_is_computed_again(folder, tmp_path):
    store = folder / "store"
    before = query(Store(store), "SELECT * FROM rows ORDER BY row_id")
    as_format_2(store)
    listed = sorted(str(file.relative_to(store)) for file in store.rglob("*"))
    assert check(Store(store), recipe(folder)).findings == []
    assert run_local(recipe(folder), store).computed == 0
    assert query(Store(store), "SELECT * FROM rows ORDER BY row_id") == before
    assert sorted(str(file.relative_to(store)) for file in store.rglob("*")) == listed
    assert [one.rows for one in export(recipe(folder), Store(store), "trl", tmp_path / "out")] == [7]
    # A shard that is lost, a split that is edited and a column that is replaced are made in the form of their folder, or anew.
    (store / "columns/reward/00001.parquet").unlink()
    split = {"train": Split(filter="SELECT row_id FROM rows WHERE row_id < 3")}
    other = recipe(folder, models=Models(reward=FakeModel(), encoder=FakeModel(path="9")), splits=split)
    assert run_local(other, store, replace=True).computed == 1 + 3
    assert step_file(store / "columns/reward", "facts.json").name == "facts.json"
    assert step_file(store / "columns/projection", "facts.json").name == "_facts.json"
    assert check(Store(store), other).findings == [] and Store(store).about["format"] == 2
