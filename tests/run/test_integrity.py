"""Whatever is altered, lost or swapped in a store is named by a check, and made anew or refused by the next run.

With SEAMCURATE_EVERY_DAMAGE set, every file meets every kind of damage; one kind each by default.
"""

from __future__ import annotations

import json
import os
import random
import shutil
import sqlite3
import tempfile
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from conftest import questions
from endpoint import serving

from seamcurate import (
    FakeModel,
    Generate,
    LengthIncentive,
    Models,
    OpenAIServer,
    Random,
    Recipe,
    Retrieve,
    Source,
    Split,
    check,
    query,
    run_local,
    seam,
)
from seamcurate.errors import DamagedError, StaleError, StoreError
from seamcurate.models import Reply, calls
from seamcurate.storage import shard
from seamcurate.store.folder import load_json
from seamcurate.store.store import Store

pytestmark = pytest.mark.slow

KEEP = "SELECT row_id, seam_contrast < 0 AS keep, seam_contrast AS value FROM rows"
EVERY = "SEAMCURATE_EVERY_DAMAGE" in os.environ
DAMAGES = ("bit", "cut", "empty", "lost")


def worse(asked):
    question = json.dumps(asked["messages"])
    return json.dumps({"answers": [f"wrong {len(question)} because of {i} and {hash(question)}" for i in range(2)]})


class Bench:
    """A store with every kind of file in it, and copies of it to be damaged."""

    def __init__(self, folder, at):
        self.folder, self.at = folder, at
        at.answer = worse
        lines = [json.dumps(row) for row in questions(17)]
        (folder / "rows.jsonl").write_text("\n".join([*lines[:10], '{"prompt": " "}', *lines[10:]]))
        pq.write_table(pa.Table.from_pylist(questions(70, start=1000)), folder / "corpus.parquet")
        self.original = folder / "original"
        run_local(self.recipe(), self.original)
        self.store = folder / "store"

    def recipe(self, **parts):
        fake = {"policy": FakeModel(path="policy"), "reward": FakeModel(path="reward"), "encoder": FakeModel(path="e")}
        generator = OpenAIServer(path="worse-1", base_url=self.at.url)
        whole = {
            "rows": Source(jsonl=str(self.folder / "rows.jsonl"), shard_rows=6),
            "corpus": Source(parquet=str(self.folder / "corpus.parquet"), shard_rows=32),
            "models": Models(**fake, generator=generator),
            "steps": (Retrieve(k=3, band=(0.5, 0.9)), *seam("contrast", k=3), Generate(k=2), Random()),
            "splits": {"train": Split(filter=KEEP), "all": Split(filter="SELECT row_id FROM rows")},
        }
        return Recipe(**(whole | parts))

    def copy(self):
        shutil.rmtree(self.store, ignore_errors=True)
        shutil.copytree(self.original, self.store)
        return self.store

    def found(self):
        return [str(finding) for finding in check(Store(self.store)).findings]

    def run(self, **parts):
        return run_local(self.recipe(**parts), self.store)


def contents(folder):
    files = [file for file in sorted(folder.rglob("*")) if file.is_file() and "calls" not in file.parts]
    return {str(file.relative_to(folder)): file.read_bytes() for file in files}


def times(folder):
    return {file: file.stat().st_mtime_ns for file in folder.rglob("[0-9]*.parquet")}


def damage(file, how, draw):
    content = bytearray(file.read_bytes())
    if how == "lost":
        file.unlink()
        return
    if how == "bit":
        content[draw.randrange(len(content))] ^= 1 << draw.randrange(8)
    file.write_bytes({"bit": content, "cut": content[: len(content) // 2], "empty": b""}[how])


@pytest.fixture(scope="module")
def bench():
    memory = "/dev/shm" if os.access("/dev/shm", os.W_OK) else None
    with tempfile.TemporaryDirectory(dir=memory) as folder, serving() as at:
        yield Bench(Path(folder), at)


def one_of_each(folder):
    """Choose a file of every folder and kind."""
    chosen = {}
    for file in sorted(folder.rglob("*")):
        if file.is_file() and file.name not in (".lock", "calls.sqlite"):
            where = file.relative_to(folder)
            chosen[where.parent, "shard" if where.stem.isdigit() else where.name] = where
    return sorted(chosen.values())


def test_a_whole_store_has_nothing_to_be_found(bench):
    bench.copy()
    checked = check(Store(bench.store))
    assert checked.findings == [] and checked.summary.endswith(" MB: whole")


@pytest.mark.parametrize("how", DAMAGES)
def test_damage_to_any_file_is_named_and_the_next_run_leaves_what_an_undisturbed_one_does(bench, how, capfd):
    draw, bought = random.Random(DAMAGES.index(how)), len(bench.at.requests)
    files = one_of_each(bench.original)
    assert len(files) > 30
    if not EVERY:
        files = files[DAMAGES.index(how) :: len(DAMAGES)]
    for where in files:
        bench.copy()
        # Of a folder without files there is an empty list.
        if not (bench.store / where).stat().st_size and how != "lost":
            continue
        damage(bench.store / where, how, draw)
        before = times(bench.store)
        if where.name == "store.json" and how == "lost" and where.parent == Path():
            with pytest.raises(StoreError, match=r"store\.json is missing; run the store's recipe again"):
                check(Store(bench.store))
        else:
            found = bench.found()
            # Of a folder that is prepared or split as a whole, the folder is named.
            named = where if where.parts[-2:-1] != ("_shared",) and "splits" not in where.parts else where.parent
            assert any(str(bench.store / named) in line for line in found), (where, found)
            assert all("run its recipe" in line or "calls" in line for line in found), found
        capfd.readouterr()
        bench.run()
        said = capfd.readouterr().err.splitlines()
        assert len(said) <= 1, said
        assert how == "lost" or said, where
        assert contents(bench.store) == contents(bench.original), where
        after = times(bench.store)
        assert {file for file in before if after[file] != before[file]} <= {bench.store / where}, where
    assert len(bench.at.requests) == bought


def test_any_flipped_bit_of_a_record_is_found(bench):
    bench.copy()
    for name in (
        "store.json",
        "columns/reward/_step.json",
        "columns/seam_contrast/_facts.json",
        "splits/train/_split.json",
    ):
        file = bench.store / name
        whole = file.read_bytes()
        draw = random.Random(name)
        ends = range(len(whole) - 90, len(whole))
        for place in [*draw.sample(range(len(whole)), 60), *ends]:
            flipped = bytearray(whole)
            flipped[place] ^= 1 << draw.randrange(8)
            file.write_bytes(flipped)
            with pytest.raises(DamagedError, match=file.name):
                load_json(file)
        file.write_bytes(whole)


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("rows/00000.parquet", "rows/00001.parquet"),
        ("rows/00000.parquet", "rejected/00000.parquet"),
        ("rejected/00000.parquet", "rejected/00001.parquet"),
        ("columns/reward/00000.parquet", "columns/reward/00001.parquet"),
        ("columns/reward/00000.parquet", "columns/baseline_random/00000.parquet"),
        ("columns/reward/_step.json", "columns/baseline_random/_step.json"),
        ("columns/seam_contrast/_facts.json", "columns/reward/_facts.json"),
        ("columns/reward/_shared/noise.json", "columns/rewards_contrast/_shared/noise.json"),
        ("corpus/rows/00000.parquet", "rows/00000.parquet"),
        ("corpus/columns/embedding/00000.parquet", "corpus/columns/embedding/00001.parquet"),
        ("splits/train/ledger.parquet", "splits/all/ledger.parquet"),
        ("splits/train/_split.json", "splits/all/_split.json"),
    ],
)
def test_two_files_that_were_swapped_are_both_named_and_put_right(bench, one, other):
    bench.copy()
    first, second = bench.store / one, bench.store / other
    content = first.read_bytes()
    first.write_bytes(second.read_bytes())
    second.write_bytes(content)
    found = bench.found()
    for file in (first, second):
        folder = file.parent if file.parent.name in ("_shared", "train", "all") else file
        assert any(line.startswith(str(folder)) for line in found), found
    bench.run()
    assert contents(bench.store) == contents(bench.original)


def test_rows_that_were_set_aside_are_never_read_as_rows(bench):
    """Also where no checksum of them is written down, as before the last one is read and on object storage."""
    bench.copy()
    shutil.copy(bench.store / "rejected/00001.parquet", bench.store / "rows/00001.parquet")
    with pytest.raises(DamagedError, match=r"rows/00001\.parquet belongs to another shard or another configuration"):
        query(Store(bench.store), "SELECT * FROM rows")


@pytest.mark.parametrize(
    "name", ["reward/00001.parquet", "reward/_step.json", "reward/_facts.json", "rewards_contrast/_shared"]
)
def test_what_an_older_configuration_left_is_not_taken_for_this_ones(bench, name):
    bench.copy()
    models = bench.recipe().models.model_copy(update={"reward": FakeModel(path="older")})
    older = bench.folder / "older"
    if not older.exists():
        run_local(bench.recipe(models=models), older)
    place = bench.store / "columns" / name
    if place.is_dir():
        shutil.rmtree(place)
        shutil.copytree(older / "columns" / name, place)
        # It is whole, and of the same inputs: only its numbers are other ones, which the facts hold too.
        (place / "sample.json").write_text("[]")
    else:
        shutil.copy(older / "columns" / name, place)
    assert any(str(place) in line for line in bench.found())
    bench.run()
    assert contents(bench.store) == contents(bench.original)


def test_rows_of_the_right_name_that_were_never_read_from_the_source_are_put_right(bench):
    bench.copy()
    file, store = bench.store / "rows/00001.parquet", Store(bench.store)
    table = shard.read(file, store.rows_fingerprint, 1)
    other = table.set_column(table.column_names.index("prompt"), "prompt", pa.array(["other"] * len(table)))
    shard.write(file, other, store.rows_fingerprint, 1)
    assert [line.partition("; ")[0] for line in bench.found()] == [
        f"{file} is not the one that was read from the source"
    ]
    bench.run()
    assert contents(bench.store) == contents(bench.original)


def test_records_that_were_swapped_cost_no_shard_also_where_each_has_but_one(bench):
    store = bench.folder / "single"
    one = bench.recipe(
        rows=Source(jsonl=str(bench.folder / "rows.jsonl")), corpus=None, steps=(Random(), LengthIncentive())
    )
    run_local(one.model_copy(update={"splits": {}}), store)
    files = [store / f"columns/{name}/_step.json" for name in ("baseline_random", "rer_length")]
    first, second = (file.read_bytes() for file in files)
    files[0].write_bytes(second)
    files[1].write_bytes(first)
    assert run_local(one.model_copy(update={"splits": {}}), store).computed == 0
    assert [file.read_bytes() for file in files] == [first, second]


def test_rows_that_the_source_no_longer_gives_are_refused_and_nothing_is_lost(bench, monkeypatch):
    bench.copy()
    file = bench.store / "rows/00001.parquet"
    damage(file, "bit", random.Random(0))
    before = contents(bench.store)
    real = Source.chunks

    def other(self, *arguments):
        for chunk in real(self, *arguments):
            yield chunk._replace(rows=chunk.rows.set_column(1, "prompt", pa.array(["other"] * len(chunk.rows))))

    monkeypatch.setattr(Source, "chunks", other)
    with pytest.raises(DamagedError) as refused:
        bench.run()
    assert f"{file} was altered" in str(refused.value) and "its source gives other bytes now" in str(refused.value)
    assert "put a copy of it back, or delete" in str(refused.value) and "\n" not in str(refused.value)
    assert contents(bench.store) == before
    monkeypatch.undo()
    source = bench.folder / "rows.jsonl"
    whole = source.read_text()
    source.write_text(whole.replace("sort", "SORT"))
    with pytest.raises(StaleError, match="its source changed since"):
        bench.run()
    source.write_text(whole)
    bench.run()
    assert contents(bench.store) == contents(bench.original)


def test_what_was_made_of_a_shard_that_came_out_otherwise_is_made_anew(bench):
    """Answers that were lost are bought anew, and are other ones: what was scored of the old ones is scored again."""
    recipe = bench.recipe(steps=(Generate(k=2), *seam("gpt", k=2), Random()), corpus=None, splits={})
    store = bench.folder / "sampled"
    run_local(recipe, store)
    before = times(store)
    (store / "columns/worse_gpt/00001.parquet").unlink()
    shutil.rmtree(store / "calls")
    bench.at.answer = lambda asked: worse(asked).replace("because", "since")
    try:
        assert run_local(recipe, store).computed == 4
    finally:
        bench.at.answer = worse
    changed = {file.relative_to(store) for file, when in times(store).items() if before.get(file) != when}
    of_answers = ("worse_gpt", "rewards_gpt", "logprobs_gpt", "seam_gpt")
    assert changed == {Path(f"columns/{name}/00001.parquet") for name in of_answers}
    assert check(Store(store)).findings == []
    # Seen alone, the same: an input that is another one than was read.
    shutil.copy(store / "columns/worse_gpt/00001.parquet", bench.folder / "kept.parquet")
    table = shard.read(store / "columns/worse_gpt/00001.parquet", _maker(store, "worse_gpt"), 1)
    other = table.set_column(1, "worse_gpt", table["worse_gpt"].take([0] * len(table)))
    shard.write(store / "columns/worse_gpt/00001.parquet", other, _maker(store, "worse_gpt"), 1)
    (finding, *_) = check(Store(store)).findings
    assert "was computed from another shard of worse_gpt than is there" in str(finding)


def _maker(store, folder):
    return str(Store(store).records()[folder]["fingerprint"])


def test_damage_to_columns_of_another_recipe_is_named_and_left_alone(bench, capfd):
    bench.copy()
    file = bench.store / "columns/baseline_random/00001.parquet"
    damage(file, "bit", random.Random(0))
    smaller = {"steps": (Retrieve(k=3, band=(0.5, 0.9)),), "splits": {}}
    bench.run(**smaller)
    assert file.exists() and str(file) not in capfd.readouterr().err
    with pytest.raises(DamagedError, match=r"baseline_random/00001\.parquet was altered"):
        query(Store(bench.store), "SELECT baseline_random FROM rows")
    bench.run()
    assert contents(bench.store) == contents(bench.original)


def test_columns_whose_record_is_lost_are_taken_over_only_where_they_fit(bench):
    bench.copy()
    (bench.store / "columns/reward/_step.json").unlink()
    models = bench.recipe().models.model_copy(update={"reward": FakeModel(path="older")})
    with pytest.raises(StaleError, match=r"reward was made by another configuration: its _step\.json is lost"):
        bench.run(models=models)
    before = times(bench.store / "columns/reward")
    bench.run()
    assert times(bench.store / "columns/reward") == before


def test_an_altered_answer_is_named_and_bought_anew_alone(bench):
    bench.copy()
    shutil.rmtree(bench.store / "columns/worse_gpt")
    file = bench.store / "calls/calls.sqlite"
    with sqlite3.connect(file) as db:
        (key,) = db.execute("SELECT key FROM replies ORDER BY key LIMIT 1").fetchone()
        db.execute("UPDATE replies SET text = replace(text, 'wrong', 'wromg') WHERE key = ?", (key,))
    db.close()
    assert [line for line in bench.found() if "calls" in line] == [
        f"{file} holds an answer that was altered, {key}; put a copy of it back, or move it away and buy anew what is asked for again"
    ]
    bought = len(bench.at.requests)
    bench.run()
    assert len(bench.at.requests) == bought + 1
    assert contents(bench.store) == contents(bench.original) and bench.found() == []


@pytest.mark.parametrize("how", ["cut", "head", "page"])
def test_a_damaged_file_of_answers_is_refused_in_one_line_and_nothing_is_bought(bench, how):
    bench.copy()
    shutil.rmtree(bench.store / "columns/worse_gpt")
    file = bench.store / "calls/calls.sqlite"
    content = bytearray(file.read_bytes())
    if how == "cut":
        content = content[: len(content) // 2]
    start = {"cut": 0, "head": 0, "page": 4096}[how]
    if how != "cut":
        content[start : start + 16] = b"\xff" * 16
    file.write_bytes(content)
    assert any(line.startswith(str(file)) for line in bench.found())
    bought = len(bench.at.requests)
    with pytest.raises(StoreError) as refused:
        bench.run()
    assert str(file) in str(refused.value) and "put a copy of it back" in str(refused.value)
    assert len(bench.at.requests) == bought


def test_an_answer_is_on_the_disk_when_it_is_kept_however_sqlite_was_built(tmp_path, monkeypatch):
    real = sqlite3.connect

    def built_otherwise(*arguments, **options):
        db = real(*arguments, **options)
        db.execute("PRAGMA synchronous = OFF")
        return db

    monkeypatch.setattr(sqlite3, "connect", built_otherwise)
    kept = calls.Calls(tmp_path)
    ((level,),) = kept._db.execute("PRAGMA synchronous").fetchall()
    kept.put("key", Reply("text", "stop", "m"), calls.Spent(1))
    with real(tmp_path / "calls.sqlite") as other:
        assert other.execute("SELECT key, text FROM replies").fetchall() == [("key", "text")]
    kept.close()
    # 2 is FULL: every commit is synced.
    assert level == 2


def test_lost_answers_are_named(bench):
    bench.copy()
    (bench.store / "calls/calls.sqlite").unlink()
    assert [line.partition("; ")[0] for line in bench.found()] == [
        f"{bench.store}/calls/calls.sqlite holds no answer, and worse_gpt was made of some"
    ]


def test_answers_kept_before_they_had_hashes_are_believed(bench):
    bench.copy()
    shutil.rmtree(bench.store / "columns/worse_gpt")
    with sqlite3.connect(bench.store / "calls/calls.sqlite") as db:
        db.execute("ALTER TABLE replies DROP COLUMN seal")
    db.close()
    bought = len(bench.at.requests)
    bench.run()
    assert len(bench.at.requests) == bought and bench.found() == []


def test_damage_seen_midway_stops_the_step_that_reads_it_and_the_next_run_mends_it(bench, monkeypatch):
    bench.copy()
    shutil.rmtree(bench.store / "columns/seam_contrast")
    file = bench.store / "columns/rewards_contrast/00001.parquet"
    real = Store.add

    def add(self, output, number, rows, added):
        real(self, output, number, rows, added)
        if output.step.name == "seam_contrast" and number == 0:
            damage(file, "bit", random.Random(0))

    monkeypatch.setattr(Store, "add", add)
    with pytest.raises(
        DamagedError, match=r"rewards_contrast/00001\.parquet (was altered|is no shard with a checksum)"
    ):
        bench.run()
    monkeypatch.undo()
    assert [one.name for one in (bench.store / "columns/seam_contrast").glob("0*.parquet")] == ["00000.parquet"]
    bench.run()
    assert contents(bench.store) == contents(bench.original)


def test_check_finds_whole_shards_that_do_not_belong_together(bench):
    bench.copy()
    folder, number = bench.store / "columns/baseline_random", 1
    table = shard.read(folder / "00001.parquet", _maker(bench.store, "baseline_random"), 1)
    moved = table.set_column(0, "row_id", pa.array([i + 100 for i in table["row_id"].to_pylist()]))
    shard.write(folder / "00001.parquet", moved, _maker(bench.store, "baseline_random"), number)
    line, *more = bench.found()
    assert line.startswith(f"{folder}/00001.parquet is of other rows than are there; delete it")
    splits = [f"{bench.store}/splits/{name} is out of date" for name in ("all", "train")]
    assert [one.partition(":")[0] for one in more] == splits


@pytest.mark.parametrize(
    ("column", "wrong"),
    [("row_id", "is of other rows than are there"), ("kept", "is not the ledger that its _split.json tells of")],
)
def test_check_finds_a_whole_ledger_that_tells_of_other_rows_or_counts(bench, column, wrong):
    bench.copy()
    folder = bench.store / "splits/train"
    maker = str(load_json(folder / "_split.json")["fingerprint"])
    table = shard.read(folder / "ledger.parquet", maker, 0)
    other = {"row_id": [i + 100 for i in table["row_id"].to_pylist()], "kept": [False] * len(table)}[column]
    place = table.column_names.index(column)
    shard.write(
        folder / "ledger.parquet", table.set_column(place, table.schema.field(column), pa.array(other)), maker, 0
    )
    (line,) = bench.found()
    assert line.startswith(f"{folder}/ledger.parquet {wrong}; ")


def test_a_file_is_no_store(tmp_path):
    (tmp_path / "file").write_text("x")
    with pytest.raises(StoreError, match=f"{tmp_path}/file is no store; it is a file: name the folder"):
        check(Store(tmp_path / "file"))


def test_a_store_without_its_corpus_says_so(bench):
    bench.copy()
    shutil.rmtree(bench.store / "corpus")
    assert any(
        line.startswith(f"{bench.store}/corpus/store.json is missing, and with it the store's corpus")
        for line in bench.found()
    )
    bench.run()
    assert contents(bench.store) == contents(bench.original)


def test_facts_of_fewer_shards_never_outlive_a_kill(bench, monkeypatch):
    store = bench.folder / "grown"
    run_local(bench.recipe(splits={}), store, limit=6)
    assert load_json(store / "columns/worse_contrast/_facts.json")["rows"] == 6

    def killed(*arguments):
        raise KeyboardInterrupt

    monkeypatch.setattr(Store, "add_facts", killed)
    with pytest.raises(KeyboardInterrupt):
        run_local(bench.recipe(splits={}), store)
    monkeypatch.undo()
    run_local(bench.recipe(), store)
    # What is described of a sample stays as it was when the sample was drawn.
    assert Store(store).facts("worse_contrast") | {"probe": {}} == Store(bench.original).facts("worse_contrast") | {
        "probe": {}
    }


def test_shards_of_other_numbers_are_never_laid_side_by_side(bench):
    bench.copy()
    asked = "SELECT row_id, reward, baseline_random FROM rows ORDER BY row_id"
    expected = query(Store(bench.original), asked).to_pylist()
    for number, lost in ((1, "reward"), (2, "baseline_random")):
        ids = shard.read(bench.store / f"rows/{number:05d}.parquet", Store(bench.store).rows_fingerprint, number)[
            "row_id"
        ]
        (bench.store / f"columns/{lost}/{number:05d}.parquet").unlink()
        # As in a run that is not through: without the facts of a finished column.
        (bench.store / f"columns/{lost}/_facts.json").unlink()
        expected = [{**row, lost: None} if row["row_id"] in ids.to_pylist() else row for row in expected]
    assert query(Store(bench.store), asked).to_pylist() == expected
    (bench.store / "rows/00001.parquet").unlink()
    with pytest.raises(DamagedError, match=r"rows/00001\.parquet is missing"):
        query(Store(bench.store), asked)


def test_a_store_of_the_first_format_is_read_and_goes_on(bench):
    bench.copy()
    about = {key: value for key, value in Store(bench.store).about.items() if key not in ("seals", "sha256")}
    (bench.store / "store.json").write_text(json.dumps(about | {"format": 1}))
    for file in (bench.store / "rejected").glob("0*.parquet"):
        table = shard.read(file, f"{about['rows']} rejected", int(file.stem))
        shard.write(file, table, str(about["rows"]), int(file.stem))
    for folder in (bench.store / "columns").glob("*/_shared"):
        (folder / ".sha256").unlink()
    assert query(Store(bench.store), "SELECT reason FROM rejected")["reason"].to_pylist() == ["prompt is blank"]
    assert bench.run().computed == 0
    assert check(Store(bench.store)).findings == [] and Store(bench.store).row_checksums["rejected"]
