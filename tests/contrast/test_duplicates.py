"""Duplicates: the first of a group stays, every duplicate shows a row that stays, and blocks change nothing."""

from __future__ import annotations

import json

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from seamcurate import FakeModel, Recipe, Source, Split, Store, duplicates, query, run_local
from seamcurate.contrast import duplicates as module
from seamcurate.contrast import nearest
from seamcurate.models.vectors import unit
from seamcurate.publish import measures
from seamcurate.select.why import why


def band(folder, vectors, similarity):
    nearest.build(folder, len(vectors), [vectors], similarity)
    return nearest.Band(folder, (similarity, 2.0))


def by_hand(vectors, similarity):
    """Compare every vector with every earlier one that stays, in double precision."""
    doubles = vectors.astype(np.float64)
    stays, found = [], {}
    for i, vector in enumerate(doubles):
        cosines = [(float(np.einsum("d,d->", vector, doubles[j])), -j) for j in stays]
        near = [pair for pair in cosines if pair[0] >= similarity]
        if near:
            found[i] = (-max(near)[1], max(near)[0])
        else:
            stays.append(i)
    return found


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 10**6), st.integers(1, 60), st.sampled_from([1, 3, 16, 1024]), st.sampled_from([0.6, 0.9, 0.99]))
def test_every_duplicate_is_that_of_brute_force_in_blocks_of_any_size(tmp_path_factory, seed, count, block, similarity):
    random = np.random.default_rng(seed)
    # Few centres, some vectors exactly equal: chains, groups and ties.
    centres = random.normal(size=(6, 40))[random.integers(0, 6, count)]
    vectors = unit((centres + random.choice([0, 0.2, 0.5], (count, 1)) * random.normal(size=(count, 40))).astype("f4"))
    before, module._BLOCK = module._BLOCK, block
    try:
        made = module.repeated(band(tmp_path_factory.mktemp("v"), vectors, similarity), np.ones(count, bool))
    finally:
        module._BLOCK = before
    found = {int(i): (int(made.positions[i]), made.cosines[i]) for i in np.flatnonzero(made.positions >= 0)}
    expected = by_hand(vectors, similarity)
    assert {i: position for i, (position, _) in found.items()} == {i: position for i, (position, _) in expected.items()}
    assert all(abs(found[i][1] - expected[i][1]) < 1e-12 for i in found)


def test_a_row_repeats_only_rows_that_stay(tmp_path):
    # Three directions a few degrees apart: the second repeats the first, and the third the second alone, which goes.
    angles = np.radians([0, 10, 20])
    vectors = np.stack([np.cos(angles), np.sin(angles)], 1).astype("f4")
    made = module.repeated(band(tmp_path, vectors, 0.98), np.ones(3, bool))
    assert made.positions.tolist() == [-1, 0, -1]
    assert module.repeated(band(tmp_path, vectors, 0.98), np.array([True, False, True])).positions.tolist() == [-1] * 3


def test_many_equal_rows_are_one_group(tmp_path, monkeypatch):
    monkeypatch.setattr(module, "_BLOCK", 256)
    vectors = np.tile(unit(np.ones((1, 8), "f4")), (3000, 1))
    made = module.repeated(band(tmp_path, vectors, 0.95), np.ones(3000, bool))
    assert made.positions.tolist() == [-1] + [0] * 2999


PROMPTS = [f"how do I sort the list number {i}" for i in range(5)] + [
    "who wrote the odyssey and why",
    "who wrote the odyssey",
]
PROMPTS += ["number 3 sort the list how do I", "and why who wrote odyssey the"]


def made(folder, similarity=0.9, shard_rows=4, **more):
    lines = (json.dumps({"prompt": prompt, "response": "so"}) + "\n" for prompt in PROMPTS)
    (folder / "rows.jsonl").write_text("".join(lines))
    recipe = Recipe(
        rows=Source(jsonl=str(folder / "rows.jsonl"), response="response", shard_rows=shard_rows),
        steps=duplicates(similarity, encoder=FakeModel()),
        **more,
    )
    report = run_local(recipe, folder / "store")
    return report, Store(folder / "store")


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    splits = {"train": Split(filter="without_duplicates.sql")}
    return made(tmp_path_factory.mktemp("duplicates"), splits=splits)


def test_the_columns_and_the_ledger_name_the_row_that_is_repeated(store):
    report, store = store
    rows = query(store, "SELECT * FROM rows ORDER BY row_id").to_pylist()
    repeats = {row["row_id"]: row["duplicate_of"] for row in rows if row["duplicate_of"] is not None}
    # By this encoder row 3 repeats row 1; row 7 has the words of row 3, and so repeats row 1, which stays.
    assert repeats == {3: 1, 7: 1, 8: 5}
    assert all(rows[original]["duplicate_of"] is None for original in repeats.values())
    assert f"{len(repeats)} of 9 rows repeat an earlier one at a cosine of 0.9 or more" in "\n".join(report.lines)
    ledger = query(store, "SELECT * FROM ledger ORDER BY row_id").to_pylist()
    assert [row["row_id"] for row in ledger if not row["kept"]] == sorted(repeats)
    assert (ledger[8]["rule"], ledger[8]["value"]) == ("repeats row 5", rows[8]["duplicate_similarity"])
    assert {row["rule"] for row in ledger if row["kept"]} == {"keep rows that repeat no earlier one"}
    # A card counts such rules as one.
    assert {rule.rule for rule in measures.measure(store, "train").rules} == {
        "keep rows that repeat no earlier one",
        "repeats row …",
    }


def test_why_shows_the_text_that_is_repeated(store):
    lines = list(why(store[1], 8))
    assert "  split train: dropped by rule “repeats row 5”" in "\n".join(lines)
    (line,) = [line for line in lines if "it repeats row 5" in line]
    assert line.endswith(": who wrote the odyssey and why") and "(cosine 1)" in line
    assert not any("repeats row" in line for line in why(store[1], 0))


def test_shards_of_any_size_give_the_same_columns(store, tmp_path):
    _, other = made(tmp_path, shard_rows=100)
    columns = "SELECT row_id, duplicate_of, duplicate_similarity FROM rows ORDER BY row_id"
    assert query(other, columns) == query(store[1], columns)


def test_appended_rows_are_compared_with_all_rows_before(tmp_path):
    rows = Source(jsonl=[str(tmp_path / "a.jsonl")], shard_rows=4)
    (tmp_path / "a.jsonl").write_text("".join(json.dumps({"prompt": prompt}) + "\n" for prompt in PROMPTS[:7]))
    steps = duplicates(0.9, encoder=FakeModel())
    run_local(Recipe(rows=rows, steps=steps), tmp_path / "store")
    first = query(tmp_path / "store", "SELECT duplicate_of FROM rows ORDER BY row_id")["duplicate_of"].to_pylist()
    (tmp_path / "b.jsonl").write_text("".join(json.dumps({"prompt": prompt}) + "\n" for prompt in PROMPTS[7:]))
    grown = rows.model_copy(update={"jsonl": [str(tmp_path / name) for name in ("a.jsonl", "b.jsonl")]})
    run_local(Recipe(rows=grown, steps=steps), tmp_path / "store", append=True)
    both = query(tmp_path / "store", "SELECT duplicate_of FROM rows ORDER BY row_id")["duplicate_of"].to_pylist()
    assert both[:7] == first and both[8] == 5
