"""Files that come after those a store was made of add rows; what failed before its first row adds nothing at all."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from conftest import questions

from seamcurate import (
    FakeModel,
    Models,
    Project,
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
from seamcurate.errors import SourceError, StaleError, StoreError
from seamcurate.publish.export import export
from seamcurate.store.store import Store

pytestmark = pytest.mark.slow

FAKE = Models(policy=FakeModel(), reward=FakeModel(), encoder=FakeModel())
STEPS = (Retrieve(k=5, band=(0.5, 0.9)), *seam("contrast", k=5))
ALL = "SELECT row_id FROM rows"
SPLITS = {"low": Split(filter="SELECT row_id FROM rows WHERE seam_contrast < 0")}


def write(file: Path, count: int, start: int = 0) -> None:
    file.parent.mkdir(exist_ok=True)
    lines = [json.dumps(row) for row in questions(count, start)]
    # A line in four is set aside.
    file.write_text("".join(f"{line}\n" + ('{"prompt": ""}\n' if i % 3 == 2 else "") for i, line in enumerate(lines)))


def recipe(folder: Path, **parts: object) -> Recipe:
    whole = {
        "rows": Source(jsonl=str(folder / "rows/*.jsonl"), shard_rows=6),
        "corpus": Source(jsonl=str(folder / "corpus/*.jsonl"), shard_rows=64),
        "models": FAKE,
        "steps": STEPS,
        "splits": SPLITS,
    }
    return Recipe(**(whole | parts))


def answers(store: Path) -> list[list[dict[str, object]]]:
    """All that a store says of its rows, whatever fingerprints its files have."""
    asked = ("FROM rows", "FROM rejected", "FROM candidates", "FROM ledger", "FROM corpus")
    return [query(Store(store), f"SELECT * {one} ORDER BY ALL").to_pylist() for one in asked]


def shards(store: Path) -> dict[str, tuple[int, int]]:
    files = [file for file in store.rglob("0*.parquet") if "splits" not in file.parts]
    return {str(file.relative_to(store)): (file.stat().st_mtime_ns, file.stat().st_ino) for file in files}


@pytest.fixture(scope="module")
def original(tmp_path_factory):
    folder = tmp_path_factory.mktemp("append")
    write(folder / "rows/a.jsonl", 15)
    write(folder / "corpus/a.jsonl", 150, 1000)
    run_local(recipe(folder), folder / "store")
    return folder


@pytest.fixture
def folder(original, tmp_path):
    """20 lines of rows and 200 of a corpus, run into a store: three full shards, and two lines of a fourth."""
    shutil.copytree(original, tmp_path / "here")
    return tmp_path / "here"


def test_new_files_cost_their_own_shards_alone_and_give_what_reading_all_at_once_gives(folder):
    before = shards(folder / "store")
    write(folder / "rows/b.jsonl", 9, 100)
    with pytest.raises(
        StaleError, match=r"jsonl: b\.jsonl is new; run with --append to read what is new alone, with --r"
    ):
        run_local(recipe(folder), folder / "store")
    assert shards(folder / "store") == before
    report = run_local(recipe(folder), folder / "store", append=True)
    # One row of the fourth shard is read again, with the nine new ones.
    assert (report.rows, report.rejected, report.read, report.computed) == (24, 8, 10, 5 * 3)
    after = shards(folder / "store")
    assert {name: after[name] for name in before if "00003" not in name} == {
        name: state for name, state in before.items() if "00003" not in name
    }
    run_local(recipe(folder), folder / "whole")
    assert answers(folder / "store") == answers(folder / "whole")
    assert check(Store(folder / "store"), recipe(folder)).findings == []
    assert run_local(recipe(folder), folder / "store").computed == 0
    assert list(export(recipe(folder), Store(folder / "store"), "trl", folder / "out"))
    write(folder / "rows/c.jsonl", 3, 200)
    assert run_local(recipe(folder), folder / "store", append=True).rows == 27
    run_local(recipe(folder), folder / "whole", replace=True)
    assert answers(folder / "store") == answers(folder / "whole")


def test_steps_that_read_all_rows_are_computed_anew_and_say_so(folder, capfd):
    steps = (Random(), Project(landmarks=8))
    made = recipe(folder, steps=steps, corpus=None, splits={})
    run_local(made, folder / "other")
    write(folder / "rows/b.jsonl", 9, 100)
    report = run_local(made, folder / "other", append=True)
    assert report.computed == 3 + 6
    assert (
        "projection: computed anew for all rows, as it reads all of them and there are more now"
        in capfd.readouterr().err
    )
    run_local(made, folder / "whole")
    assert answers(folder / "other") == answers(folder / "whole")
    assert check(Store(folder / "other"), made).findings == []


def test_a_corpus_that_grew_changes_what_is_retrieved_for_all_rows_and_says_so(folder, capfd):
    write(folder / "corpus/b.jsonl", 60, 2000)
    with pytest.raises(StaleError, match=r"corpus holds the rows of another source.*; run with --append"):
        run_local(recipe(folder), folder / "store")
    report = run_local(recipe(folder), folder / "store", append=True)
    # Three of the corpus's four shards of 64 were full; of the rows, all but the golden rewards follow from it.
    assert report.read == 0 and report.computed == 2 + 4 * 4
    told = (
        "worse_contrast, rewards_contrast, logprobs_contrast, seam_contrast: computed anew for all rows, as the corpus"
    )
    assert told in capfd.readouterr().err
    run_local(recipe(folder), folder / "whole")
    assert answers(folder / "store") == answers(folder / "whole")
    assert check(Store(folder / "store"), recipe(folder)).findings == []


def test_a_shared_corpus_that_grew_is_told_and_taken_by_append(folder):
    source = Source(jsonl=str(folder / "corpus/*.jsonl"), shard_rows=64)
    run_local(Recipe(rows=source), folder / "shared")
    made = recipe(folder, corpus=Source(store=str(folder / "shared")))
    run_local(made, folder / "other")
    write(folder / "corpus/b.jsonl", 60, 2000)
    run_local(Recipe(rows=source), folder / "shared", append=True)
    assert [str(one) for one in check(Store(folder / "other")).findings if "is out of date" in str(one)]
    run_local(made, folder / "other", append=True)
    run_local(recipe(folder), folder / "whole")
    assert answers(folder / "other") == answers(folder / "whole")


def test_an_edited_step_is_not_replaced_by_an_append(folder):
    write(folder / "rows/b.jsonl", 9, 100)
    edited = recipe(folder, steps=(Retrieve(k=4, band=(0.5, 0.9)), *seam("contrast", k=5)))
    with pytest.raises(StaleError, match=r"worse_contrast\.k: 5 → 4"):
        run_local(edited, folder / "store", append=True)
    with pytest.raises(StoreError, match="give one of them"):
        run_local(edited, folder / "store", append=True, replace=True)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            lambda rows: write(rows / "0.jsonl", 3),
            r"0\.jsonl is new and comes before a\.jsonl, whose rows it moves; --app",
        ),
        (
            lambda rows: (write(rows / "a.jsonl", 14), write(rows / "b.jsonl", 3)),
            r"a\.jsonl changed, b\.jsonl is new; --a",
        ),
        (
            lambda rows: (rows / "a.jsonl").rename(rows / "b.jsonl"),
            r"b\.jsonl is new, a\.jsonl is gone; --append takes",
        ),
    ],
)
def test_what_would_move_or_change_the_rows_before_is_refused_with_the_reason(folder, change, message):
    before = shards(folder / "store"), (folder / "store/store.json").read_bytes()
    change(folder / "rows")
    with pytest.raises(StaleError, match=message):
        run_local(recipe(folder), folder / "store", append=True)
    assert (shards(folder / "store"), (folder / "store/store.json").read_bytes()) == before


def test_a_column_of_another_type_in_the_new_files_is_refused_and_a_new_column_is_taken(tmp_path):
    def write_table(name: str, **columns: pa.Array) -> None:
        table = pa.table({"prompt": [f"{name} {i}" for i in range(6)], **columns})
        pq.write_table(table, tmp_path / f"{name}.parquet")

    made = Recipe(rows=Source(parquet=str(tmp_path / "*.parquet"), shard_rows=3))
    write_table("a", n=pa.array(range(6), pa.int32()))
    run_local(made, tmp_path / "store")
    write_table("b", n=pa.array(range(6), pa.int64()))
    before = (tmp_path / "store/store.json").read_bytes()
    with pytest.raises(StaleError, match="column 'n' is int64 in the new files, and int32 in those before"):
        run_local(made, tmp_path / "store", append=True)
    assert (tmp_path / "store/store.json").read_bytes() == before
    write_table("b", n=pa.array(range(6), pa.int32()), more=pa.array(range(6)))
    assert run_local(made, tmp_path / "store", append=True).read == 6
    found = query(
        Store(tmp_path / "store"), "SELECT count(n)::INT AS n, count(more)::INT AS more FROM rows"
    ).to_pylist()
    assert found == [{"n": 12, "more": 6}] and check(Store(tmp_path / "store"), made).findings == []


@pytest.mark.parametrize(
    ("moment", "times"), [("update", 0), ("update", 1), ("add_rows", 1), ("claim", 0), ("add", 1), ("add", 6)]
)
def test_an_append_that_is_cut_short_is_gone_on_with_by_a_plain_run(tmp_path, monkeypatch, moment, times):
    made = recipe(tmp_path, corpus=None, steps=(Random(), Project(landmarks=8)), splits={"all": Split(filter=ALL)})
    write(tmp_path / "rows/a.jsonl", 15)
    run_local(made, tmp_path / "store")
    real, calls = getattr(Store, moment), []

    def cut_short(self, *given, **more):
        calls.append(given)
        if len(calls) > times:
            raise KeyboardInterrupt
        return real(self, *given, **more)

    write(tmp_path / "rows/b.jsonl", 9, 100)
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(Store, moment, cut_short)
        run_local(made, tmp_path / "store", append=True)
    # Before the store's own record names the new files, nothing was begun.
    begun = b"b.jsonl" in (tmp_path / "store/store.json").read_bytes()
    run_local(made, tmp_path / "store", append=not begun)
    run_local(made, tmp_path / "whole")
    assert answers(tmp_path / "store") == answers(tmp_path / "whole")
    assert check(Store(tmp_path / "store"), made).findings == []


def test_a_lost_record_and_a_lost_shard_of_a_store_that_grew_are_made_anew(folder):
    write(folder / "rows/b.jsonl", 9, 100)
    run_local(recipe(folder), folder / "store", append=True)
    before = answers(folder / "store")
    (folder / "store/store.json").unlink()
    assert run_local(recipe(folder), folder / "store").computed == 0
    (folder / "store/rows/00001.parquet").unlink()
    assert run_local(recipe(folder), folder / "store").computed == 0
    assert answers(folder / "store") == before and check(Store(folder / "store"), recipe(folder)).findings == []


# ── what failed before its first row ─────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("which", ["rows", "corpus"])
@pytest.mark.parametrize("lines", [['{"question": "one", "answer": "x"}'], ['{"question": "one", "other": " "}'] * 5])
def test_a_source_that_gave_no_row_pins_nothing(tmp_path, which, lines):
    (tmp_path / "asked.jsonl").write_text("\n".join(lines))
    wrong = "other" if len(lines) > 1 else "prompt"
    write(tmp_path / "good.jsonl", 4)
    good = Source(jsonl=str(tmp_path / "good.jsonl"))

    def made(source: Source) -> Recipe:
        return Recipe(**({"rows": good, "corpus": good} | {which: source}))

    with pytest.raises(SourceError, match=r"no column 'prompt'|every source row was set aside"):
        run_local(made(Source(jsonl=str(tmp_path / "asked.jsonl"), prompt=wrong, shard_rows=2)), tmp_path / "store")
    run_local(made(Source(jsonl=str(tmp_path / "asked.jsonl"), prompt="question")), tmp_path / "store")
    asked = query(Store(tmp_path / "store"), f"SELECT prompt FROM {which}")["prompt"].to_pylist()
    assert asked == ["one"] * len(lines) and check(Store(tmp_path / "store")).findings == []


def test_a_store_whose_first_run_failed_is_whole_and_answers_with_no_rows(tmp_path):
    write(tmp_path / "good.jsonl", 4)
    good, gone = (Source(jsonl=str(tmp_path / name)) for name in ("good.jsonl", "gone.jsonl"))
    with pytest.raises(SourceError, match="no such file"):
        run_local(Recipe(rows=gone, corpus=good), tmp_path / "store")
    store = Store(tmp_path / "store")
    assert check(store).findings == []
    for view, count in {"rows": 0, "corpus": 1, "candidates": 0, "ledger": 0, "rejected": 0}.items():
        assert query(store, f"SELECT row_id FROM {view} WHERE row_id = 2").num_rows == count
