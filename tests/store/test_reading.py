"""A store's records and listings are read once while they do not change, and anew as soon as they do."""

from __future__ import annotations

import json
import os
import shutil
import sys
import time

import pytest

from seamcurate import Store
from seamcurate.errors import DamagedError
from seamcurate.storage import hashes
from seamcurate.store.folder import load_json, numbers, save_record

_opened: list[str] = []
_watching = False


def _watch(event: str, values: tuple[object, ...]) -> None:
    if _watching and event in ("open", "os.scandir"):
        _opened.append(f"{event} {values[0]}")


sys.addaudithook(_watch)


@pytest.fixture
def store(finished, tmp_path, monkeypatch):
    shutil.copytree(finished.path, tmp_path / "store")
    # As if the store had been made a while ago.
    monkeypatch.setattr(hashes, "_SETTLED", -1.0)
    return Store(tmp_path / "store")


def test_what_a_store_is_is_told_without_a_look_at_its_shards(store):
    global _watching
    _opened.clear()
    _watching = True
    try:
        names = [column.name for column in store.open().columns()]
        stale, records = store.stale(), store.records()
    finally:
        _watching = False
    assert "reward" in names and not stale and records
    files = [line for line in _opened if str(store.path) in line]
    shards = {line for line in files if line.endswith(".parquet")}
    assert not shards - {f"open {store.path}/rows/00002.parquet", f"open {store.path}/corpus/rows/00003.parquet"}
    # Each record, and each folder of shards, once, however many methods ask for it.
    once = [line for line in files if line.endswith(".json") or "/columns/" in line]
    assert len({*once}) == len(once) > 20


def test_a_record_is_read_anew_when_it_changed_and_a_caller_may_change_what_it_got(tmp_path, monkeypatch):
    monkeypatch.setattr(hashes, "_SETTLED", 0.0)
    file = tmp_path / "store.json"
    save_record(file, {"a": 1})
    load_json(file)["a"] = 2
    assert load_json(file) == {"a": 1}
    time.sleep(0.02)  # More than the clock's grain.
    save_record(file, {"a": 3})
    assert load_json(file) == {"a": 3}
    time.sleep(0.02)
    state = file.stat()
    file.write_text(file.read_text().replace("3", "4", 1))
    # Also where a program sets the times back.
    os.utime(file, ns=(state.st_atime_ns, state.st_mtime_ns))
    with pytest.raises(DamagedError, match="altered"):
        load_json(file)


def test_what_changed_a_moment_ago_is_not_remembered(tmp_path):
    file = tmp_path / "a.json"
    file.write_text(json.dumps({"a": 1}))
    assert load_json(file) == {"a": 1} and numbers(tmp_path) == []
    state = file.stat()
    file.write_text(json.dumps({"a": 2}))
    (tmp_path / "00000.parquet").touch()
    assert load_json(file) == {"a": 2} and numbers(tmp_path) == [0]
    assert hashes.settled_state(file) is None and file.stat().st_size == state.st_size


def test_a_listing_is_made_anew_when_a_shard_comes_goes_or_becomes_a_link(tmp_path, monkeypatch):
    monkeypatch.setattr(hashes, "_SETTLED", 0.0)

    def listed() -> list[int]:
        time.sleep(0.02)
        return numbers(tmp_path)

    for name in (
        "00000.parquet",
        "00001.parquet",
        "100000.parquet",
        "000002.parquet",
        "3.parquet",
        "00004.parquet.tmp",
    ):
        (tmp_path / name).touch()
    assert listed() == listed() == [0, 1, 100_000]
    numbers(tmp_path).clear()
    assert listed() == [0, 1, 100_000]
    (tmp_path / "00001.parquet").unlink()
    assert listed() == [0, 100_000]
    (tmp_path / "00001.parquet").symlink_to(tmp_path / "00000.parquet")
    (tmp_path / "00005.parquet").mkdir()
    assert listed() == [0, 100_000]
