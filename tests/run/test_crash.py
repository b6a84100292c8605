"""A whole run killed, starved and interrupted at any moment: the rerun ends where an undisturbed one does.

SEAMCURATE_KILLS says how many kills at random moments there are; a few by default.
"""

from __future__ import annotations

import itertools
import json
import os
import random
import shutil
import signal
import sqlite3
import subprocess
import tempfile
import threading
import time
from collections import Counter
from contextlib import suppress
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from conftest import questions
from endpoint import serving
from forked import forker
from lexicons import wordnet_table

from seamcurate import Retrieve, Store, check, run_local, seam, to_trl

pytestmark = pytest.mark.slow

KILLS = int(os.environ.get("SEAMCURATE_KILLS", "10"))
RECIPE = """
rows: {{jsonl: rows.jsonl, shard_rows: 6}}
corpus: {{parquet: corpus.parquet, shard_rows: 32}}
models:
  policy: {{fake: policy}}
  reward: {{fake: reward}}
  encoder: {{fake: encoder}}
  generator: {{openai_server: worse-1, base_url: "{url}", timeout: 20}}
steps:
  - retrieve: {{k: 3, band: [0.5, 0.9]}}
  - seam: {{k: 3}}
  - generate: {{k: 2}}
  - seam: {{variant: gpt, k: 2}}
  - attack: {{k: 3, query_budget: 12, wordnet: synonyms.parquet}}
  - seam: {{variant: adv, k: 3}}
  - random
splits:
  train: {{filter: keep_above_lowest.sql, by: seam_contrast}}
  worst: {{filter: lowest.sql, by: seam_gpt, rate: 0.5}}
"""


class Bench:
    """A recipe with everything in it, the endpoint it buys from, and what an undisturbed run of it makes."""

    def __init__(self, folder, at, children):
        self.folder, self.at, self.children = folder, at, children
        self.said: dict[str, str] = {}
        self.kept: set[str] = set()
        self.again: list[str] = []
        at.answer = self.answer
        (folder / "recipe.yaml").write_text(RECIPE.format(url=at.url))
        lines = [json.dumps(row) for row in questions(17)]
        (folder / "rows.jsonl").write_text("\n".join([*lines[:10], '{"prompt": " "}', *lines[10:]]))
        pq.write_table(pa.Table.from_pylist(questions(70, start=1000)), folder / "corpus.parquet")
        wordnet_table(folder)
        self.store, self.out = folder / "made" / "store", folder / "made" / "out"
        self.commands = [
            ["run", folder / "recipe.yaml", self.store],
            ["export", folder / "recipe.yaml", self.store, "--to", "trl", "--out", self.out],
        ]
        for _ in range(2):
            self.fresh()
            start = time.monotonic()
            assert children.run(*self.commands) == 0, children.said.read_text()
            self.seconds = time.monotonic() - start
        self.renamings = children.renamings
        self.whole, self.answers = self.contents(), self.bought()
        assert not check(Store(self.store)).findings

    def answer(self, asked):
        question = json.dumps(asked["messages"])
        if question in self.kept:
            self.again.append(question)
        text = json.dumps({"answers": [f"wrong {len(question)} because of {i} and {hash(question)}" for i in range(2)]})
        self.said[text] = question
        return text

    def fresh(self):
        """Begin without a store, and without having bought anything."""
        shutil.rmtree(self.folder / "made", ignore_errors=True)
        self.kept.clear()
        (self.folder / "made").mkdir()

    def bought(self):
        """Read the answers that are kept, from a copy: reading must not tidy up after a kill."""
        if not (self.store / "calls" / "calls.sqlite").exists():
            return []
        with tempfile.TemporaryDirectory() as copy:
            shutil.copytree(self.store / "calls", copy, dirs_exist_ok=True)
            with sqlite3.connect(Path(copy) / "calls.sqlite") as db:
                try:
                    return db.execute("SELECT * FROM replies ORDER BY key").fetchall()
                except sqlite3.OperationalError:
                    return []

    def contents(self):
        """Read every file but the answers, and the lock."""
        made = self.folder / "made"
        files = [file for file in sorted(made.rglob("*")) if file.is_file() and "calls" not in file.parts]
        return {str(file.relative_to(made)): file.read_bytes() for file in files}

    def finished(self):
        """Note which files the finished shards are."""
        files = [*self.store.rglob("[0-9]*.parquet"), *self.store.rglob("ledger.parquet")]
        # The rows of a number are written after those set aside from them, and until then neither is finished.
        files = [file for file in files if file.parent.name != "rejected" or _rows_of(file).exists()]
        files = [file for file in files if not any(part.startswith(".") for part in file.relative_to(self.store).parts)]
        return {file: (file.stat().st_ino, file.stat().st_mtime_ns) for file in files}

    def interrupted(self):
        """Note what is finished and paid for at the moment of a kill."""
        self.kept |= {self.said[row[2]] for row in self.bought()}
        return self.finished()

    def phase(self):
        """Name what a kill interrupted, by what there is."""
        if any(self.out.parent.glob(".*")) or self.out.exists():
            return "export"
        if (self.store / "splits").exists():
            return "split"
        folders = {file.parent.name for file in self.store.glob("columns/*/[0-9]*.parquet")}
        order = ("baseline_random", "seam_adv", "worse_adv", "seam_gpt", "worse_gpt", "seam_contrast", "worse_contrast")
        return next((name for name in order if name in folders), "rows" if self.store.exists() else "start")

    def ends_the_same(self, done):
        """Run to the end and hold all there is against an undisturbed run."""
        assert self.children.run(*self.commands) == 0, self.children.said.read_text()
        now = self.finished()
        assert {file: now.get(file) for file in done} == done
        assert self.contents() == self.whole
        assert self.bought() == self.answers
        assert self.again == []
        assert not list((self.folder / "made").rglob("*.tmp"))


@pytest.fixture(scope="module")
def bench():
    # What fsync waits for is no part of these tests, and in memory it waits for nothing.
    memory = "/dev/shm" if os.access("/dev/shm", os.W_OK) else None
    with tempfile.TemporaryDirectory(dir=memory) as folder, serving() as at, forker(Path(folder)) as children:
        yield Bench(Path(folder), at, children)


def test_a_kill_at_any_moment_costs_nothing_that_was_finished_or_paid_for(bench):
    draw, phases, missed = random.Random(KILLS), Counter(), 0
    kills = 0
    while kills < KILLS:
        bench.fresh()
        done = {}
        for _ in range(draw.choice((1, 2))):
            pid, moment = bench.children.start(*bench.commands), draw.random() * bench.seconds
            time.sleep(moment)
            # One that had ended before is no kill.
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
            landed = bench.children.wait() == -signal.SIGKILL
            kills, missed = kills + landed, missed + (not landed)
            if not landed and not done:
                # A run from nothing takes no longer than this, now that less else goes on.
                bench.seconds = moment
            phases[bench.phase()] += 1
            now = bench.interrupted()
            assert {file: now.get(file) for file in done} == done
            done = now
        bench.ends_the_same(done)
    print(f"{kills} kills over {bench.seconds:.2f} s, {missed} too late; last finished: {dict(phases)}")


@pytest.mark.parametrize("fault", ["kill", "killed"])
def test_a_kill_before_or_after_a_renaming_leaves_nothing_behind(bench, fault):
    draw = random.Random(1)
    for at in sorted(draw.sample(range(1, bench.renamings + 1), min(bench.renamings, max(3, KILLS // 3)))):
        bench.fresh()
        assert bench.children.run(*bench.commands, at=at, fault=fault) == -signal.SIGKILL
        # What had not reached the disk when the machine died is torn.
        for left in (bench.folder / "made").rglob("*.tmp"):
            for file in [left] if left.is_file() else [one for one in left.rglob("*") if one.is_file()]:
                os.truncate(file, file.stat().st_size // 2)
        bench.ends_the_same(bench.interrupted())


def test_of_two_runs_at_once_one_is_refused_and_the_other_ends_the_same(bench):
    bench.fresh()
    with forker(bench.folder / "made") as others:
        gate = threading.Event()
        bench.at.chance = lambda: lambda handler, asked: not gate.wait(60)
        bench.children.start(*bench.commands)
        while not bench.at.busy:
            time.sleep(0.01)
        assert others.run(*bench.commands) == 2
        said = others.said.read_text()
        assert "another run works on" in said and len(said.splitlines()) == 1
        gate.set()
        assert bench.children.wait() == 0, bench.children.said.read_text()
        bench.at.chance = lambda: None
    (bench.folder / "made" / "said.txt").unlink()
    bench.ends_the_same(bench.finished())


def test_a_store_that_vanishes_is_said_in_one_line_and_made_again(bench):
    for at in (3, bench.renamings // 3, bench.renamings // 2):
        bench.fresh()
        assert bench.children.run(*bench.commands, at=at, fault="vanish", folder=bench.store) == 2
        _said(bench, "No such file or directory")
        bench.ends_the_same(bench.interrupted())


def _rows_of(rejected):
    return rejected.parents[1] / "rows" / rejected.name


def _said(bench, what):
    lines = [line for line in bench.children.said.read_text().splitlines() if line.startswith(("error", "internal"))]
    assert len(lines) == 1 and lines[0].startswith("error: ") and what in lines[0], bench.children.said.read_text()


@pytest.fixture
def small_disk(bench):
    """Have the store on a disk of its own, and yield what leaves it so many bytes."""
    bench.fresh()
    made = bench.folder / "made"
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=8m", "tmpfs", made], capture_output=True, check=False)
    if mounted.returncode:
        pytest.skip("mounting a small disk needs root")

    def leave(size):
        (made / "ballast").unlink(missing_ok=True)
        if size is not None:
            free = shutil.disk_usage(made).free
            (made / "ballast").write_bytes(bytes(max(0, free - size)))

    try:
        yield leave
    finally:
        subprocess.run(["umount", "-l", made], check=True)


@pytest.mark.parametrize("kilobytes", [8, 60, 200, 330, 450])
def test_a_full_disk_is_said_in_one_line_and_the_rerun_completes(bench, small_disk, kilobytes):
    small_disk(kilobytes * 1024)
    assert bench.children.run(*bench.commands) == 2, bench.children.said.read_text()
    _said(bench, "fix that and")
    done = bench.interrupted()
    if (bench.store / "store.json").exists():
        assert {finding.wrong for finding in check(Store(bench.store)).findings} <= {"is missing"}
    small_disk(None)
    bench.ends_the_same(done)


def test_a_disk_that_fills_while_answers_come_in_stops_the_buying(bench, small_disk):
    requests = itertools.count(1)

    def fill(handler, body):
        """Fill the disk before the fifth answer is sent, once one of the first four is kept."""
        deadline, bought = time.monotonic() + 60, []
        while not bought and time.monotonic() < deadline:
            time.sleep(0.05)
            # A copy made while an answer is written may be no database.
            with suppress(OSError, sqlite3.DatabaseError):
                bought = bench.bought()
        small_disk(0)
        return False

    bench.at.chance = lambda: fill if next(requests) == 5 else None
    before = len(bench.at.requests)
    try:
        assert bench.children.run(*bench.commands) == 2, bench.children.said.read_text()
    finally:
        bench.at.chance = lambda: None
    _said(bench, "calls.sqlite cannot be used: database or disk is full; nothing more is bought")
    done, asked = bench.interrupted(), len(bench.at.requests) - before
    assert 0 < len(bench.kept) < asked < len(bench.answers) + 4
    small_disk(None)
    bench.ends_the_same(done)


def test_a_folder_that_cannot_be_written_is_said_in_one_line(bench, small_disk):
    made = bench.folder / "made"
    remount = ["mount", "-o"]
    subprocess.run([*remount, "remount,ro", made], check=True)
    assert bench.children.run(*bench.commands) == 2
    _said(bench, "Read-only file system")
    subprocess.run([*remount, "remount,rw", made], check=True)
    assert bench.children.run(*bench.commands, at=30, fault="kill") == -signal.SIGKILL
    done = bench.interrupted()
    subprocess.run([*remount, "remount,ro", made], check=True)
    assert bench.children.run(*bench.commands) == 2
    _said(bench, "Read-only file system")
    subprocess.run([*remount, "remount,rw", made], check=True)
    bench.ends_the_same(done)
    subprocess.run([*remount, "remount,ro", made], check=True)
    assert bench.children.run(["check", bench.store]) == 0, bench.children.said.read_text()
    assert bench.children.run(bench.commands[1]) == 2
    _said(bench, "out/train cannot be written: Read-only file system")
    subprocess.run([*remount, "remount,rw", made], check=True)


def test_what_is_renamed_into_place_has_reached_the_disk_first(recipe, tmp_path, monkeypatch):
    synced, early, seen = {}, [], 0

    def state(file):
        found = file.stat()
        return found.st_size, found.st_mtime_ns

    def sync(real):
        def fsync(handle):
            synced[os.fstat(handle).st_ino] = os.fstat(handle).st_size, os.fstat(handle).st_mtime_ns
            real(handle)

        return fsync

    def watched(real):
        def rename(source, target):
            nonlocal seen
            place = Path(source)
            # What is renamed away is removed; what measured noise is listed, and so counts, when it was synced.
            if place.suffix == ".tmp" and Path(target).suffix != ".tmp" and not place.name.startswith(".noise"):
                files = [place] if place.is_file() else [one for one in place.rglob("*") if one.is_file()]
                early.extend(str(file) for file in files if synced.get(file.stat().st_ino) != state(file))
                seen += len(files)
            real(source, target)

        return rename

    monkeypatch.setattr(os, "fsync", sync(os.fsync))
    for name in ("replace", "rename"):
        monkeypatch.setattr(os, name, watched(getattr(os, name)))
    steps = (Retrieve(k=5, band=(0.5, 0.9)), *seam("contrast", k=5))
    run_local(recipe(steps=steps), tmp_path / "store")
    to_trl(Store(tmp_path / "store"), "train", tmp_path / "out")
    assert early == [] and seen > 40


def test_what_is_renamed_into_place_stays_there_before_anything_else_is_done(recipe, tmp_path, monkeypatch):
    """A folder's list of files reaches the disk by itself: else a later file could outlive one that it rests on."""
    told, sync, rename = [], os.fsync, os.replace

    def fsync(handle):
        told.append(("synced", os.fstat(handle).st_ino))
        sync(handle)

    def replace(source, target):
        rename(source, target)
        told.append(("renamed", Path(target).parent.stat().st_ino))

    monkeypatch.setattr(os, "fsync", fsync)
    monkeypatch.setattr(os, "replace", replace)
    run_local(recipe(steps=(Retrieve(k=5, band=(0.5, 0.9)), *seam("contrast", k=5))), tmp_path / "store")
    renamed = [i for i, (what, _) in enumerate(told) if what == "renamed"]
    assert len(renamed) > 30 and [told[i + 1 : i + 2] for i in renamed] == [[("synced", told[i][1])] for i in renamed]
