"""Whoever looks at a file or folder sees the old one or the new one."""

from __future__ import annotations

import pytest

from seamcurate.storage import atomic


def test_a_file_is_replaced_when_the_block_ends(tmp_path):
    file = tmp_path / "rows.parquet"
    file.write_text("old")
    with atomic.replacing(file) as temporary:
        temporary.write_text("new")
        assert file.read_text() == "old"
        assert temporary.name.startswith(".rows.parquet.") and temporary.name.endswith(".tmp")
    assert [path.name for path in tmp_path.iterdir()] == ["rows.parquet"] and file.read_text() == "new"


def test_an_error_leaves_the_old_file_and_nothing_beside_it(tmp_path):
    file = tmp_path / "rows.parquet"
    file.write_text("old")
    with pytest.raises(ZeroDivisionError), atomic.replacing(file) as temporary:
        temporary.write_text("half")
        raise ZeroDivisionError
    with pytest.raises(OSError):
        atomic.write(tmp_path / "absent" / "rows.parquet", b"new")
    assert [path.name for path in tmp_path.iterdir()] == ["rows.parquet"] and file.read_text() == "old"


def test_content_is_written_whole(tmp_path):
    atomic.write(tmp_path / "record.json", b"{}")
    assert [path.name for path in tmp_path.iterdir()] == ["record.json"]
    assert (tmp_path / "record.json").read_bytes() == b"{}"


@pytest.mark.parametrize("before", ["nothing", "a folder", "a folder and what a killed process left"])
def test_a_folder_is_replaced_whole(tmp_path, before):
    folder, new = tmp_path / "split", tmp_path / ".split.tmp"
    for old in {"nothing": [], "a folder": [folder]}.get(before, [folder, tmp_path / ".split.old.tmp"]):
        old.mkdir()
        (old / "ledger.parquet").write_text("old")
        (old / "more.parquet").write_text("old")
    new.mkdir()
    (new / "ledger.parquet").write_text("new")
    atomic.replace_folder(folder, new)
    assert [path.name for path in tmp_path.iterdir()] == ["split"]
    assert [(file.name, file.read_text()) for file in folder.iterdir()] == [("ledger.parquet", "new")]


def test_a_folder_is_removed_whole(tmp_path):
    (tmp_path / "columns").mkdir()
    (tmp_path / "columns" / "00000.parquet").write_text("rows")
    atomic.remove_folder(tmp_path / "columns")
    assert not list(tmp_path.iterdir())
