"""A large file is hashed once, for every process, until it changes."""

from __future__ import annotations

import hashlib
import os

import pytest

from seamcurate.storage import hashes


@pytest.fixture
def digested(tmp_path, monkeypatch):
    """The names of the files that were read, with hashes kept in a folder of this test's own."""
    read, real = [], hashes._digest
    monkeypatch.setenv("SEAMCURATE_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(hashes, "_LARGE", 4)
    monkeypatch.setattr(hashes, "_SETTLED", -1.0)
    monkeypatch.setattr(hashes, "_digest", lambda file, state: read.append(file.name) or real(file, state))
    return read


def test_a_file_is_read_again_only_when_it_changed(tmp_path, digested):
    file = tmp_path / "weights"
    file.write_bytes(b"one two")
    assert {hashes.sha256(file) for _ in range(3)} == {hashlib.sha256(b"one two").hexdigest()}
    assert digested == ["weights"]
    before = file.stat()
    file.write_bytes(b"two one")
    # Another content of the same size, with its old time put back.
    os.utime(file, ns=(before.st_atime_ns, before.st_mtime_ns))
    assert hashes.sha256(file) == hashlib.sha256(b"two one").hexdigest()
    assert digested == ["weights"] * 2


def test_small_files_and_files_that_just_changed_are_not_remembered(tmp_path, digested, monkeypatch):
    (tmp_path / "small").write_bytes(b"abc")
    (tmp_path / "new").write_bytes(b"one two")
    monkeypatch.setattr(hashes, "_SETTLED", 60.0)
    for name in ("small", "small", "new", "new"):
        hashes.sha256(tmp_path / name)
    assert digested == ["small", "small", "new", "new"] and not (tmp_path / "cache").exists()


@pytest.mark.parametrize("content", ["", "{}", "[]", '{"state": 1, "sha256": "x"}'])
def test_a_record_that_says_nothing_is_written_anew_and_no_room_for_it_is_no_error(tmp_path, digested, content):
    file = tmp_path / "weights"
    file.write_bytes(b"one two")
    hashes.sha256(file)
    (record,) = (tmp_path / "cache/hashes").iterdir()
    record.write_text(content)
    assert {hashes.sha256(file), hashes.sha256(file)} == {hashlib.sha256(b"one two").hexdigest()}
    assert digested == ["weights"] * 2
    record.unlink()
    (tmp_path / "cache/hashes").rmdir()
    (tmp_path / "cache/hashes").write_text("no folder")
    assert hashes.sha256(file) == hashlib.sha256(b"one two").hexdigest()
