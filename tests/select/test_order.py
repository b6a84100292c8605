"""Orders: what comes first, what comes last, and that nothing else decides."""

from __future__ import annotations

import hashlib
import math
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from pydantic import ValidationError

from seamcurate import FakeModel, Models, Order, Recipe, Reward, Source, Split, Store, plan, run_local
from seamcurate.errors import RecipeError
from seamcurate.run.recipe import loads
from seamcurate.select import order as orders
from seamcurate.select import split as splits

EVERY = "SELECT row_id FROM rows"


def ranked(order: Order, values: list) -> list[int]:
    """Return the rows in order."""
    return np.argsort(orders.ranks(order, np.arange(len(values)), pa.chunked_array([values]))).tolist()


def test_the_lowest_come_first_rows_without_a_value_last_and_ties_by_row_id():
    values = [2.0, None, 1.0, math.nan, 2.0, -math.inf, 1.0]
    assert ranked(Order(by="x"), values) == [5, 2, 6, 0, 4, 1, 3]
    assert ranked(Order(by="x", descending=True), values) == [0, 4, 2, 6, 5, 1, 3]


@pytest.mark.parametrize("values", [["b", "a", None, "B"], [True, False, None, True], [3, -1, None, 3]])
def test_texts_truths_and_whole_numbers_have_an_order(values):
    assert ranked(Order(by="x"), values)[:2] in ([3, 1], [1, 0]) and ranked(Order(by="x"), values)[-1] == 2


def test_a_random_order_is_decided_by_seed_and_row_alone():
    ids = np.arange(1000)
    first = orders.ranks(Order(by="random"), ids, None)
    assert sorted(first.tolist()) == ids.tolist() and abs(np.corrcoef(first, ids)[0, 1]) < 0.1
    assert (orders.ranks(Order(by="random", seed=1), ids, None) != first).any()
    # The rows that are there already keep their order among themselves when more are added.
    more = orders.ranks(Order(by="random"), np.arange(2000), None)[:1000]
    assert (np.argsort(more) == np.argsort(first)).all()


def test_draws_are_the_same_on_every_machine():
    def mixed(x: int) -> int:
        x = (x + 0x9E3779B97F4A7C15) % 2**64
        x = (x ^ (x >> 30)) * 0xBF58476D1CE4E5B9 % 2**64
        x = (x ^ (x >> 27)) * 0x94D049BB133111EB % 2**64
        return x ^ (x >> 31)

    # The first number of splitmix64 from seed 0, as its authors publish it.
    assert mixed(0) == 0xE220A8397B1DCDAF
    ids = [0, 1, 2**40]
    for seed in (0, 7, -1):
        start = mixed((seed ^ int.from_bytes(hashlib.blake2b(b"order", digest_size=8).digest())) % 2**64)
        by_hand = [mixed(i * 0x9E3779B97F4A7C15 % 2**64 ^ start) for i in ids]
        assert orders.draws(np.array(ids), seed).tolist() == by_hand


def test_rows_that_do_not_fit_at_once_come_out_in_order(monkeypatch):
    ids = np.arange(500)
    ranks = orders.ranks(Order(by="random", seed=3), ids, None)
    whole = pa.table({"row_id": ids, "text": [f"t{i}" for i in ids], "turns": [[{"role": "user"}]] * 500})
    tables = [whole.slice(start, 37) for start in range(0, 500, 37)]
    (at_once,) = orders.reordered(tables, ranks)
    monkeypatch.setattr(orders, "_ROWS", 16)
    parts = list(orders.reordered(tables, ranks))
    assert len(parts) == 32 and pa.concat_tables(parts).equals(at_once)
    assert at_once["row_id"].to_pylist() == np.argsort(ranks).tolist()


def test_nothing_is_ordered_where_nothing_is_kept():
    assert list(orders.reordered([], np.zeros(0, np.int64))) == []


@pytest.mark.parametrize(
    ("order", "said"),
    [
        ({"by": "random", "descending": True}, "a random order has no `descending`"),
        ({"by": "x", "seed": 1}, "the order by x has no `seed`"),
        ({"by": "x", "asc": True}, "Extra inputs are not permitted"),
    ],
)
def test_settings_of_the_other_kind_are_refused(order, said):
    with pytest.raises(ValidationError, match=said):
        Order(**order)


def recipe_of(folder: Path, **split) -> Recipe:
    lines = (f'{{"prompt": "p{i}", "response": "r{i}", "tags": ["a"]}}\n' for i in range(9))
    (folder / "rows.jsonl").write_text("".join(lines))
    return Recipe(
        rows=Source(jsonl=str(folder / "rows.jsonl"), response="response", shard_rows=4),
        models=Models(reward=FakeModel()),
        steps=(Reward(),),
        splits={"train": Split(filter=EVERY, **split)},
    )


@pytest.mark.parametrize(
    ("by", "said"),
    [
        ("rewrad", "split train: order by: 'rewrad' is no column of this store; there are: row_id, .*; did you mean"),
        ("tags", "split train: order by: tags holds list.*, which has no order; name a column of plain values"),
    ],
)
def test_an_order_that_cannot_be_had_is_refused_before_any_model_runs(tmp_path, by, said):
    recipe = recipe_of(tmp_path, order=Order(by=by))
    for go in (lambda: plan(recipe, tmp_path / "planned"), lambda: run_local(recipe, tmp_path / "store")):
        with pytest.raises(RecipeError, match=said):
            go()
    assert not list((tmp_path / "store").glob("columns/*/0*.parquet"))


def test_a_recipe_names_what_is_wrong_with_an_order(tmp_path):
    text = f"rows: {{jsonl: x}}\nsplits:\n  train: {{filter: {EVERY}, order: {{by: reward, desc: true}}}}\n"
    with pytest.raises(RecipeError) as refused:
        loads(text)
    assert str(refused.value).startswith(
        "recipe:3: splits.train.order.desc: unknown key; there are: by, descending, seed"
    )


def test_another_order_of_the_same_rows_leaves_the_ledger_and_is_told(tmp_path):
    plain, up = recipe_of(tmp_path), recipe_of(tmp_path, order=Order(by="reward"))
    run_local(plain, tmp_path / "store")
    store = Store(tmp_path / "store")
    ledger = store.path / "splits/train/ledger.parquet"
    before, record = ledger.read_bytes(), store.split_record("train")
    assert "order" not in record
    assert splits.changed(store, "train", up.splits["train"]) == "order: the source's → by `reward`, the lowest first"
    run_local(up, tmp_path / "store")
    assert ledger.read_bytes() == before and splits.changed(store, "train", up.splits["train"]) is None
    assert splits.stale(store) == {}
    rows = pa.concat_tables(splits.kept(store, "train", ["reward"]))
    assert rows["reward"].to_pylist() == sorted(rows["reward"].to_pylist())
    run_local(plain, tmp_path / "store")
    assert {k: v for k, v in store.split_record("train").items() if k != "checksum"} == {
        k: v for k, v in record.items() if k != "checksum"
    }
    assert pa.concat_tables(splits.kept(store, "train", []))["row_id"].to_pylist() == list(range(9))


def test_an_order_by_row_id_runs_backwards(tmp_path):
    run_local(recipe_of(tmp_path, order=Order(by="row_id", descending=True)), tmp_path / "store")
    rows = pa.concat_tables(splits.kept(Store(tmp_path / "store"), "train", ["prompt"]))
    assert rows["prompt"].to_pylist() == [f"p{i}" for i in range(8, -1, -1)]
