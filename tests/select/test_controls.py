"""Controls: as large as the split they control, and blind to its score."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from pydantic import ValidationError

from seamcurate import AtMost, Augment, Balance, Order, Recipe, Source, Split, Store, query, run_local
from seamcurate.errors import RecipeError
from seamcurate.publish.export import export
from seamcurate.run.recipe import loads
from seamcurate.select import split as splits

COUNT = 300


def recipe_of(folder, scores=None, shard_rows=64, **split) -> Recipe:
    scores = np.random.default_rng(0).normal(size=COUNT).tolist() if scores is None else scores
    table = pa.table(
        {
            "prompt": [f"p{i}" for i in range(COUNT)],
            "score": pa.array(scores, pa.float64()),
            "source": ["math" if i < 200 else None if i == 299 else "chat" for i in range(COUNT)],
        }
    )
    pq.write_table(table, folder / "rows.parquet")
    settings = {"filter": "keep_above_lowest.sql", "by": "score", "controls": ("random", "shuffled"), **split}
    return Recipe(
        rows=Source(parquet=str(folder / "rows.parquet"), shard_rows=shard_rows), splits={"train": Split(**settings)}
    )


def ledgers(folder, **settings) -> dict[str, list[dict]]:
    run_local(recipe_of(folder, **settings), folder / "store")
    rows = query(folder / "store", "SELECT * FROM ledger JOIN rows USING (row_id) ORDER BY split, row_id").to_pylist()
    return {name: [row for row in rows if row["split"] == name] for name in ("train", "train-random", "train-shuffled")}


def kept(ledger) -> set[int]:
    return {row["row_id"] for row in ledger if row["kept"]}


def test_controls_have_the_size_of_their_split_and_other_rows_and_every_row_has_a_line(tmp_path):
    scores = [None if i % 10 == 0 else float(np.sin(i)) for i in range(COUNT)]
    made = ledgers(tmp_path, scores=scores, rate=0.5)
    train, random, shuffled = map(kept, made.values())
    assert len(train) == len(random) == len(shuffled) == 165 and all(len(ledger) == COUNT for ledger in made.values())
    # Of 165 random rows, 165 · 165 / 300 = 91 are the split's; the rows without a score are among the shuffled ones.
    assert 70 < len(train & random) < 112 and 90 < len(train & shuffled) < 130
    unscored = {i for i in range(COUNT) if scores[i] is None}
    assert unscored <= train and unscored <= shuffled and not unscored <= random
    assert {row["rule"] for row in made["train-random"]} == {"control of train: as many rows at random"}
    assert {row["rule"] for row in made["train-shuffled"]} == {
        "control of train: decided by the score of another row",
        "control of train: without score, decided as there",
    }
    # The scores by which the shuffled rows were decided are those of the split, with the same threshold.
    assert Counter(row["value"] for row in made["train-shuffled"]) == Counter(row["value"] for row in made["train"])
    assert {row["threshold"] for row in made["train-shuffled"]} == {row["threshold"] for row in made["train"]}
    assert all(
        row["value"] > row["threshold"] for row in made["train-shuffled"] if row["kept"] and row["value"] is not None
    )


def test_controls_are_the_same_on_every_machine_and_for_shards_of_any_size(tmp_path):
    (tmp_path / "other").mkdir()
    assert ledgers(tmp_path) == ledgers(tmp_path / "other", shard_rows=7)


@pytest.mark.parametrize(
    "composition",
    [
        {"balance": Balance(by="source", shares={"math": 0.5, "chat": 0.5})},
        {"at_most": AtMost(by="source", rows=20)},
    ],
)
def test_controls_have_the_composition_of_their_split(tmp_path, composition):
    made = ledgers(tmp_path, **composition)
    counts = [Counter(row["source"] for row in ledger if row["kept"]) for ledger in made.values()]
    assert counts[0] == counts[1] == counts[2] and counts[0]["chat"] > 10
    assert len({frozenset(kept(ledger)) for ledger in made.values()}) == 3


def test_controls_are_exported_beside_their_split_in_its_format_and_order(tmp_path):
    recipe = recipe_of(tmp_path, order=Order(by="score"))
    run_local(recipe, tmp_path / "store")
    exports = list(export(recipe, Store(tmp_path / "store"), "trl", tmp_path / "out"))
    assert [(one.folder.name, one.rows) for one in exports] == [
        ("train", 240),
        ("train-random", 240),
        ("train-shuffled", 240),
    ]
    for one in exports:
        scores = pq.read_table(one.folder)["score"].to_pylist()
        assert scores == sorted(scores)


def test_a_split_that_changes_changes_its_controls(tmp_path):
    ledgers(tmp_path)
    run_local(recipe_of(tmp_path, rate=0.5), tmp_path / "store")
    store = Store(tmp_path / "store")
    assert splits.stale(store) == {}
    assert {name: record["kept"] for name, record in store.split_records().items()} == dict.fromkeys(
        ["train", "train-random", "train-shuffled"], 150
    )


def test_a_recipe_with_its_controls_in_it_is_the_same_recipe(tmp_path):
    recipe = recipe_of(tmp_path)
    assert list(recipe.splits) == ["train", "train-random", "train-shuffled"]
    assert Recipe(rows=recipe.rows, splits=recipe.splits) == recipe
    pairs = Split(filter="SELECT row_id FROM rows", controls=["random"], augment=Augment(samples=2))
    made = splits.with_controls({"a": pairs})["a-random"]
    assert made.augment == Augment(samples=2) and "format" not in made.model_fields_set


def test_what_cannot_be_a_control_is_refused_in_a_line():
    with pytest.raises(ValidationError, match="the control `shuffled` shuffles the column that `by` names; give `by`"):
        Split(filter="SELECT row_id FROM rows", controls=["shuffled"])
    text = (
        "rows: {jsonl: x}\nsplits:\n  train: {filter: SELECT row_id FROM rows, controls: [random]}\n"
        "  train-random: {filter: SELECT row_id FROM rows}\n"
    )
    with pytest.raises(RecipeError) as refused:
        loads(text)
    assert str(refused.value) == (
        "recipe:2: splits: train-random is the name of a control of train; call the other split something else"
    )
    with pytest.raises(RecipeError, match=r"recipe:3: splits.train.controls.*input should be 'random' or 'shuffled'"):
        loads(text.replace("[random]", "[permuted]"))
