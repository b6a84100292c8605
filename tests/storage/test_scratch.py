"""Temporary folders: what a killed process leaves is cleared by the next, and nothing else is."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

from seamcurate.storage import scratch

WAITING = """
import sys
from seamcurate import Store
from seamcurate.select import views
connection = views.connect(Store(sys.argv[1]))
print(connection.execute("SELECT current_setting('temp_directory')").fetchall()[0][0], flush=True)
sys.stdin.read()
"""


@pytest.fixture
def temporary(tmp_path, monkeypatch):
    folder = tmp_path / "temporary"
    folder.mkdir()
    monkeypatch.setenv("TMPDIR", str(folder))
    monkeypatch.setattr(tempfile, "tempdir", None)
    return folder


def test_what_a_killed_process_spilled_is_cleared_by_the_next_and_a_living_ones_is_kept(finished, temporary):
    command = [sys.executable, "-c", WAITING, str(finished.path)]
    pipe = subprocess.PIPE
    with (
        subprocess.Popen(command, stdin=pipe, stdout=pipe, text=True) as killed,
        subprocess.Popen(command, stdin=pipe, stdout=pipe, text=True) as living,
    ):
        left, kept = (Path(child.stdout.readline().strip()).name for child in (killed, living))
        (temporary / left / "duckdb_temp_storage.tmp").write_bytes(b"spilled")
        killed.send_signal(signal.SIGKILL)
        killed.wait()
        assert {left, kept} == {one.name for one in temporary.iterdir()}
        made = scratch.make()
        assert {kept, made.path.name} == {one.name for one in temporary.iterdir()}
        made.remove()
        living.communicate("")
        assert living.returncode == 0
    assert not list(temporary.iterdir())


def test_folders_of_other_users_and_of_no_process_are_not_touched(temporary, monkeypatch):
    (temporary / "seamcurate-results").mkdir()
    (temporary / "seamcurate-results" / "mine.txt").write_text("x")
    with monkeypatch.context() as other:
        made = scratch.make()
        other.setattr(scratch.shutil, "rmtree", lambda *_, **__: None)
        made.remove()
    with monkeypatch.context() as other:
        other.setattr(os, "getuid", lambda: made.path.stat().st_uid + 1)
        with pytest.raises(PermissionError):
            scratch.make()
    assert made.path.is_dir() and (temporary / "seamcurate-results" / "mine.txt").is_file()
    scratch.make().remove()
    assert not made.path.exists() and (temporary / "seamcurate-results" / "mine.txt").is_file()
