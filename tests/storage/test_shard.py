"""A shard is whole or not there, and knows whose it is."""

from __future__ import annotations

import random
import shutil

import pyarrow as pa
import pytest

from seamcurate.errors import DamagedError, StoreError
from seamcurate.storage import shard

TABLE = pa.table({"row_id": [1, 2], "text": ["a", "ü"]})


@pytest.fixture
def file(tmp_path):
    path = tmp_path / "00003.parquet"
    shard.write(path, TABLE, "maker", 3)
    return path


def test_what_was_written_is_read(file):
    assert shard.read(file, "maker", 3).equals(TABLE)
    assert shard.read(file, "maker", 3, ["text"]).column_names == ["text"]


def test_the_same_table_gives_the_same_bytes(file, tmp_path):
    again = tmp_path / "again.parquet"
    shard.write(again, TABLE, "maker", 3)
    assert again.read_bytes() == file.read_bytes()


def test_any_flipped_bit_is_found(file):
    whole = file.read_bytes()
    draw = random.Random(0)
    for place in [0, len(whole) - 1, *(draw.randrange(len(whole)) for _ in range(200))]:
        damaged = bytearray(whole)
        damaged[place] ^= 1 << draw.randrange(8)
        file.write_bytes(damaged)
        with pytest.raises(DamagedError, match=r"00003\.parquet"):
            shard.verify(file, "maker", 3)


@pytest.mark.parametrize("kept", [0, 1, 50, -1])
def test_a_truncated_file_is_found(file, kept):
    file.write_bytes(file.read_bytes()[:kept])
    with pytest.raises(DamagedError, match="run the recipe again to make it anew"):
        shard.verify(file, "maker", 3)


def test_another_shards_or_another_makers_file_is_found(file, tmp_path):
    other = tmp_path / "00004.parquet"
    shutil.copy(file, other)
    with pytest.raises(DamagedError, match="belongs to another shard or another configuration"):
        shard.verify(other, "maker", 4)
    with pytest.raises(DamagedError, match="belongs to another shard or another configuration"):
        shard.verify(file, "newer", 3)


def test_a_missing_file_says_so(tmp_path):
    with pytest.raises(DamagedError, match="is missing; run the recipe again"):
        shard.read(tmp_path / "00000.parquet", "maker", 0)


def test_a_file_changed_after_it_was_verified_is_verified_again(file):
    shard.verify(file, "maker", 3)
    damaged = bytearray(file.read_bytes())
    damaged[40] ^= 1
    file.write_bytes(damaged)
    with pytest.raises(DamagedError):
        shard.verify(file, "maker", 3)


def test_a_folder_that_cannot_be_written_leaves_nothing_behind(tmp_path):
    with pytest.raises(StoreError, match="cannot be written"):
        shard.write(tmp_path / "gone" / "00000.parquet", TABLE, "maker", 0)
    assert list(tmp_path.iterdir()) == []


def test_a_renaming_that_fails_leaves_nothing_behind(tmp_path):
    (tmp_path / "00000.parquet").mkdir()
    with pytest.raises(StoreError, match=r"00000\.parquet cannot be written: Is a directory"):
        shard.write(tmp_path / "00000.parquet", TABLE, "maker", 0)
    assert [one.name for one in tmp_path.iterdir()] == ["00000.parquet"]


def test_a_link_in_a_verified_file_s_place_is_not_taken_for_it(file, tmp_path):
    shard.verify(file, "maker", 3)
    assert shard.verified(file, "maker", 3)
    file.rename(tmp_path / "elsewhere")
    file.symlink_to(tmp_path / "elsewhere")
    assert not shard.verified(file, "maker", 3)
    with pytest.raises(DamagedError, match="is a link and no file of the store"):
        shard.verify(file, "maker", 3)


def test_files_that_are_gone_are_forgotten_while_those_there_stay_verified(tmp_path, monkeypatch):
    monkeypatch.setattr(shard, "_verified", {})
    monkeypatch.setattr(shard, "_FORGET_FROM", 8)
    monkeypatch.setattr(shard, "_forget_at", 8)
    kept = tmp_path / "kept.parquet"
    shard.write(kept, TABLE, "maker", 0)
    shard.verify(kept, "maker", 0)
    for number in range(100):
        store = tmp_path / f"store-{number}.parquet"
        shard.write(store, TABLE, "maker", number)
        shard.verify(store, "maker", number)
        store.unlink()
    assert len(shard._verified) <= 9 and shard.verified(kept, "maker", 0)
