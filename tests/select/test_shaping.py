"""Caps, shares and distributions: what stays, what the ledger says of the rest, and what is refused."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from seamcurate import AtMost, Balance, Distribution, Random, Recipe, Source, Split, Store, plan, query, run_local
from seamcurate.errors import RecipeError
from seamcurate.run.recipe import loads
from seamcurate.select import shaping
from seamcurate.select import split as splits

EVERY = "SELECT row_id FROM rows"
SOURCES = ["math"] * 50 + ["code"] * 30 + ["chat"] * 15 + ["law"] * 4 + [None]
HALVES = {"math": 0.4, "code": 0.4, "chat": 0.2}


def recipe_of(folder, shard_rows=7, filter=EVERY, **split) -> Recipe:
    count = len(SOURCES)
    rate = np.linspace(0, 1, count)
    table = pa.table(
        {
            "prompt": [f"p{i}" for i in range(count)],
            "source": SOURCES,
            "rate": pa.array([None if i == 3 else float(rate[i]) for i in range(count)]),
            "few": [i % 5 / 4 for i in range(count)],
            "known": [i % 2 == 0 for i in range(count)],
            "tags": [["a"]] * count,
        }
    )
    pq.write_table(table, folder / "rows.parquet")
    return Recipe(
        rows=Source(parquet=str(folder / "rows.parquet"), shard_rows=shard_rows),
        steps=(Random(),),
        splits={"train": Split(filter=filter, **split)},
    )


def made(folder, store="store", **settings):
    report = run_local(recipe_of(folder, **settings), folder / store)
    ledger = query(folder / store, "SELECT * FROM ledger JOIN rows USING (row_id) ORDER BY row_id").to_pylist()
    return report.lines, ledger


def kept(ledger, column="source"):
    return Counter(row[column] for row in ledger if row["kept"])


def test_each_value_has_its_share_and_the_scarcest_decides_how_many_stay(tmp_path):
    lines, ledger = made(tmp_path, balance=Balance(by="source", shares=HALVES))
    assert kept(ledger) == {"math": 30, "code": 30, "chat": 15}
    assert lines == [
        "split train: 75 of 100 rows kept",
        "split train: balance by source keeps 30 of 50 math, 30 of 30 code, 15 of 15 chat; code has the fewest rows for its "
        "share; 5 rows of no share dropped",
    ]
    assert Counter(row["rule"] for row in ledger) == {
        "the filter": 75,
        "balance: source math has a share of 0.4": 20,
        "balance: this source has no share": 4,
        "balance: no source": 1,
    }
    # The rows that stay are no run of the first ones.
    assert [row["row_id"] for row in ledger if row["kept"]][:30] != list(range(30))


def test_at_most_so_many_rows_of_each_value_stay_and_none_is_a_value(tmp_path):
    lines, ledger = made(tmp_path, at_most=AtMost(by="source", rows=10))
    assert kept(ledger) == {"math": 10, "code": 10, "chat": 10, "law": 4, None: 1}
    assert lines[1] == "split train: at most 10 rows of each source: 65 rows dropped"
    assert {row["rule"] for row in ledger if not row["kept"]} == {"at most 10 rows of each source"}
    assert kept(made(tmp_path, "known", at_most=AtMost(by="known", rows=3))[1], "known") == {True: 3, False: 3}


@pytest.mark.parametrize("column", ["rate", "few"])
def test_a_column_follows_a_normal_distribution(tmp_path, column):
    lines, ledger = made(tmp_path, shape=Distribution(by=column, normal=(0.5, 0.2)))
    values = np.array([row[column] for row in ledger if row["kept"]])
    assert 30 < len(values) < 90 and abs(values.mean() - 0.5) < 0.05 and abs(values.std() - 0.2) < 0.05
    said = "more rows of this {} than normal with mean 0.5 and standard deviation 0.2 asks for"
    rules = {row["rule"] for row in ledger if not row["kept"]}
    assert rules == {f"shape: {said.format(column)}"} | ({"shape: no rate"} if column == "rate" else set())
    assert all(row["value"] == row[column] for row in ledger if not row["kept"])
    assert lines[-1].startswith(f"split train: shape: {column} of the kept rows has mean 0.5")


def test_a_shape_that_cannot_be_had_is_a_warning_and_one_without_rows_is_refused(tmp_path):
    narrow = "SELECT row_id FROM rows WHERE rate < 0.3"
    lines, _ = made(tmp_path, filter=narrow, shape=Distribution(by="rate", normal=(0.5, 0.2)))
    assert lines[-1].startswith("warning: split train: shape: rate of the kept rows has mean 0.2")
    assert lines[-1].endswith("asked for were 0.5 and 0.2: there are too few rows elsewhere")
    with pytest.raises(
        RecipeError, match="split train: shape: no kept row has rate within three standard deviations of 9"
    ):
        made(tmp_path, "far", shape=Distribution(by="rate", normal=(9, 0.2)))


def test_rows_beyond_three_standard_deviations_are_dropped_by_that_rule(tmp_path):
    _, ledger = made(tmp_path, shape=Distribution(by="rate", normal=(0.5, 0.1)))
    far = [row for row in ledger if "beyond three standard deviations" in row["rule"]]
    assert [row["row_id"] for row in far] == [i for i in range(100) if abs(i / 99 - 0.5) > 0.3 and i != 3]


def test_caps_come_first_then_the_shape_then_the_shares(tmp_path):
    lines, ledger = made(
        tmp_path,
        balance=Balance(by="source", shares={"math": 0.5, "code": 0.5}),
        shape=Distribution(by="few", normal=(0.5, 0.3)),
        at_most=AtMost(by="source", rows=20),
    )
    assert kept(ledger)["math"] == kept(ledger)["code"] > 5 and set(kept(ledger)) == {"math", "code"}
    assert [line.split(": ")[1].split(" ")[0] for line in lines[1:]] == ["at", "shape", "balance"]
    assert {rule.split(":")[0] for rule in {row["rule"] for row in ledger}} == {
        "the filter",
        "at most 20 rows of each source",
        "shape",
        "balance",
    }


def test_the_same_rows_stay_however_they_are_divided_and_others_by_another_seed(tmp_path):
    settings = {"at_most": AtMost(by="source", rows=20), "balance": Balance(by="source", shares=HALVES)}
    first, second = (made(tmp_path, f"store-{rows}", shard_rows=rows, **settings)[1] for rows in (7, 100))
    assert first == second
    other = made(tmp_path, "other", at_most=AtMost(by="source", rows=20, seed=1))[1]
    same = made(tmp_path, "same", at_most=AtMost(by="source", rows=20))[1]
    assert [row["kept"] for row in other] != [row["kept"] for row in same] and kept(other) == kept(same)


@settings(max_examples=60, deadline=None)
@given(
    st.lists(st.sampled_from("abc"), min_size=3, max_size=60).filter(lambda values: len(set(values)) == 3),
    st.lists(st.integers(1, 9), min_size=3, max_size=3),
)
def test_shares_are_right_to_a_row_and_no_row_that_could_stay_is_dropped(values, parts):
    shares = {name: part / sum(parts) for name, part in zip("abc", parts, strict=True)}
    rows, column = np.arange(len(values)), pa.chunked_array([values])
    shaped = shaping.apply(Balance(by="x", shares=shares), rows, rows, column)
    gone = {int(row) for drop in shaped.drops for row in drop.rows}
    sizes, stayed = Counter(values), Counter(value for i, value in enumerate(values) if i not in gone)
    total = sum(stayed.values())
    assert all(abs(stayed[name] - share * total) <= 1 for name, share in shares.items())
    # One row more in all would ask for more of some value than there are.
    assert any(share * (total + 1) > sizes[name] + 1e-9 for name, share in shares.items())


@pytest.mark.parametrize(
    ("made", "said"),
    [
        (lambda: Balance(by="s", shares={"a": 0.5, "b": 0.4}), "shares sum to 1, not to 0.9"),
        (lambda: Balance(by="s", shares={"a": 1.0, "b": 0.0}), "the share of b is above 0 and at most 1, not 0"),
        (lambda: Distribution(by="s", normal=(0.5, 0)), "the second above 0, not"),
        (lambda: AtMost(by="s", rows=0), "greater than or equal to 1"),
    ],
)
def test_settings_that_make_no_sense_are_refused(made, said):
    with pytest.raises(ValidationError, match=said):
        made()


def test_a_recipe_says_where_shares_are_wrong():
    text = f"rows: {{jsonl: x}}\nsplits:\n  train:\n    filter: {EVERY}\n    balance: {{by: s, shares: {{a: .5, b: .4}}}}\n"
    with pytest.raises(RecipeError) as refused:
        loads(text)
    assert str(refused.value) == "recipe:5: splits.train.balance.shares: shares sum to 1, not to 0.9"


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        (
            {"at_most": AtMost(by="sauce", rows=1)},
            "at_most by: 'sauce' is no column of this store; there are: .*`source`",
        ),
        ({"balance": Balance(by="rate", shares={"1": 1})}, "balance by: rate is double; name a column of text"),
        ({"shape": Distribution(by="source", normal=(0, 1))}, "shape by: source is string; name a column of numbers"),
        ({"at_most": AtMost(by="tags", rows=1)}, "at_most by: tags is list<.*; name a column of text"),
    ],
)
def test_a_column_that_cannot_be_used_is_refused_before_any_step_runs(tmp_path, settings, said):
    recipe = recipe_of(tmp_path, **settings)
    for go in (lambda: plan(recipe, tmp_path / "planned"), lambda: run_local(recipe, tmp_path / "store")):
        with pytest.raises(RecipeError, match=f"split train: {said}"):
            go()
    assert not list((tmp_path / "store").glob("columns/*/0*.parquet"))


def test_a_value_that_no_row_has_is_refused_before_any_step_runs_and_one_without_kept_rows_after(tmp_path):
    unknown = Balance(by="source", shares={"math": 0.5, "chatt": 0.5})
    with pytest.raises(RecipeError) as refused:
        run_local(recipe_of(tmp_path, balance=unknown), tmp_path / "store")
    assert str(refused.value) == (
        "split train: balance: no row has source 'chatt'; its values are: math, code, chat, law; did you mean `chat`?"
    )
    assert not list((tmp_path / "store").glob("columns/*/0*.parquet"))
    no_law = "SELECT row_id FROM rows WHERE source <> 'law'"
    with pytest.raises(
        RecipeError, match="split train: balance: the filter keeps no row with source 'law', which is to"
    ):
        made(tmp_path, filter=no_law, balance=Balance(by="source", shares={"math": 0.5, "law": 0.5}))


def test_a_rule_that_changes_makes_the_split_anew_and_one_that_goes_restores_the_old_fingerprint(tmp_path):
    made(tmp_path)
    store = Store(tmp_path / "store")
    plain = store.split_record("train")
    assert not set(shaping.KEYS) & set(plain)
    capped = recipe_of(tmp_path, at_most=AtMost(by="source", rows=9)).splits["train"]
    assert splits.changed(store, "train", capped) == ('at_most: null → {"by": "source", "rows": 9, "seed": 0}')
    assert len(made(tmp_path, at_most=AtMost(by="source", rows=9))[1]) == 100
    assert store.split_record("train")["fingerprint"] != plain["fingerprint"]
    assert splits.changed(store, "train", capped) is None and splits.stale(store) == {}
    made(tmp_path)
    assert store.split_record("train") == plain
