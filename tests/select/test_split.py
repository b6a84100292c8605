"""Splits: what a filter keeps, what the ledger says of every row, and what it cannot be asked."""

from __future__ import annotations

import math
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from seamcurate import Recipe, Source, Split, Store, query, run_local
from seamcurate.errors import QueryError, RecipeError
from seamcurate.select import decision, filters
from seamcurate.select import split as splits

BUNDLED = Path(__file__).parents[2] / "recipes"
LOWEST = (BUNDLED / "keep_above_lowest.sql").read_text()
SCORES = [-5.0, -1.0, None, 0.0, -3.0, 0.0, -2.0, -1.0, -4.0, 0.0]


def stored(folder, scores, name="seam_x"):
    table = pa.table({"prompt": [f"p{i}" for i in range(len(scores))], name: pa.array(scores, pa.float64())})
    pq.write_table(table, folder / "rows.parquet")
    run_local(Recipe(rows=Source(parquet=str(folder / "rows.parquet"), shard_rows=4)), folder / "store")
    return Store(folder / "store")


def ledger(store, name="s"):
    return query(store, f"SELECT * FROM ledger WHERE split = '{name}' ORDER BY row_id").to_pylist()


def dropped(store, name="s"):
    return [row["row_id"] for row in ledger(store, name) if not row["kept"]]


def test_the_lowest_share_of_the_scored_rows_is_dropped_and_the_ledger_says_why(tmp_path):
    store = stored(tmp_path, SCORES)
    made = splits.make(store, "s", Split(filter=LOWEST, by="seam_x", rate=0.2))
    assert (made.kept, made.dropped) == (8, 2)
    assert made.lines == [
        "split s: 8 of 10 rows kept",
        "split s: 1 row has no value to decide by; 1 of them was kept, 0 dropped",
    ]
    assert ledger(store)[:3] == [
        {
            "row_id": 0,
            "split": "s",
            "kept": False,
            "rule": "drop the lowest 20 % by seam_x",
            "value": -5.0,
            "threshold": -4.0,
        },
        {
            "row_id": 1,
            "split": "s",
            "kept": True,
            "rule": "drop the lowest 20 % by seam_x",
            "value": -1.0,
            "threshold": -4.0,
        },
        {"row_id": 2, "split": "s", "kept": True, "rule": "keep rows without seam_x", "value": None, "threshold": -4.0},
    ]
    assert dropped(store) == [0, 8]


def test_a_ledger_has_as_many_rules_as_a_filter_gives(tmp_path, monkeypatch):
    store = stored(tmp_path, [float(i) for i in range(300)])
    # Several batches: the indices of rules outgrow one byte midway.
    monkeypatch.setattr(decision, "_PART", 100)
    filter = "SELECT row_id, row_id % 2 = 0 AS keep, 'rule ' || row_id AS rule, seam_x AS value FROM rows"
    assert splits.make(store, "s", Split(filter=filter)).kept == 150
    assert [(row["rule"], row["value"], row["kept"]) for row in ledger(store)] == [
        (f"rule {i}", float(i), i % 2 == 0) for i in range(300)
    ]


def test_rows_without_a_score_are_dropped_when_the_recipe_says_so(tmp_path):
    store = stored(tmp_path, SCORES)
    made = splits.make(store, "s", Split(filter=LOWEST, by="seam_x", rate=0.2, nulls="drop"))
    assert dropped(store) == [0, 2, 8] and "0 of them were kept, 1 dropped" in made.lines[1]


def test_a_row_without_discrepancy_is_never_dropped_and_a_short_cut_is_said(tmp_path):
    store = stored(tmp_path, SCORES)
    made = splits.make(store, "s", Split(filter=LOWEST, by="seam_x", rate=0.9))
    assert dropped(store) == [0, 1, 4, 6, 7, 8]
    assert made.lines[-1] == (
        "split s: only 6 rows were dropped where rate 0.9 asks for 9: the others have no discrepancy"
    )


@pytest.mark.parametrize(
    ("rate", "count", "shown"),
    [(0.07, 7, "7"), (0.55, 55, "55"), (0.125, 13, "12.5"), (0.005, 1, "0.5"), (1, 100, "100"), (0, 0, "0")],
)
def test_a_rate_is_rounded_up_as_it_is_written(tmp_path, rate, count, shown):
    store = stored(tmp_path, [-float(i) for i in range(1, 101)])
    made = splits.make(store, "s", Split(filter=LOWEST, by="seam_x", rate=rate))
    assert (made.dropped, len(made.lines)) == (count, 1)
    assert {row["rule"] for row in ledger(store)} == {f"drop the lowest {shown} % by seam_x"}


@pytest.mark.parametrize(
    ("parameters", "message"),
    [
        ({"rate": 20}, "rate: 20 is no number from 0 to 1"),
        ({"rate": -0.1}, "rate: -0.1 is no number from 0 to 1"),
        ({"rate": None}, "rate: None is no number from 0 to 1"),
        ({"rate": "0.2"}, "rate: '0.2' is no number from 0 to 1"),
        ({"rate": True}, "rate: True is no number from 0 to 1"),
        ({"rate": math.nan}, "rate: nan is no number from 0 to 1"),
        ({"nulls": "Drop"}, "nulls: 'Drop' is neither keep nor drop"),
        ({"nulls": None}, "nulls: None is neither keep nor drop"),
    ],
)
def test_a_parameter_that_would_drop_other_rows_than_meant_is_refused(tmp_path, parameters, message):
    store = stored(tmp_path, SCORES)
    with pytest.raises(RecipeError, match=f"^split s: {message}$"):
        splits.check(store, {"s": Split(filter=LOWEST, by="seam_x", **parameters)})


def test_every_bundled_rate_and_choice_about_nulls_says_what_it_takes():
    lines = [line for file in BUNDLED.glob("*.sql") for line in file.read_text().splitlines() if "default" in line]
    assert {line for line in lines if " rate " in line} == {"-- default rate = 0.2 (from 0 to 1)"}
    assert all(line.endswith(("keep (or drop)", "drop (or keep)")) for line in lines if " nulls " in line)


def test_the_columns_of_a_filter_are_known_in_any_case(tmp_path):
    store = stored(tmp_path, SCORES)
    splits.make(
        store, "s", Split(filter="SELECT row_id AS Row_ID, row_id > 7 AS KEEP, 'r' AS Rule, 3 AS VALUE FROM rows")
    )
    ledger = query(store, "SELECT * FROM ledger ORDER BY row_id").to_pylist()
    assert [line["row_id"] for line in ledger if line["kept"]] == [8, 9]
    assert {(line["rule"], line["value"]) for line in ledger} == {("r", 3.0)}


@pytest.mark.parametrize("ids", ["row_id + 0.6", "row_id::DOUBLE", "row_id::VARCHAR", "[row_id]"])
def test_a_row_id_that_a_cast_might_turn_into_another_is_refused(tmp_path, ids):
    store = stored(tmp_path, SCORES)
    split = Split(filter=f"SELECT {ids} AS row_id FROM rows")
    for refuse in (lambda: splits.check(store, {"s": split}), lambda: splits.make(store, "s", split)):
        with pytest.raises(
            QueryError, match=r"^split s: its filter returns row_id as .*; return the row_id of rows as it"
        ):
            refuse()
    # Sums and small types are whole numbers, too.
    sums = "SELECT sum(row_id) AS row_id FROM rows GROUP BY prompt UNION SELECT 3::UTINYINT"
    assert splits.make(store, "s", Split(filter=sums)).kept == 10


def test_a_semicolon_may_end_a_filter_before_a_comment(tmp_path):
    store = stored(tmp_path, SCORES)
    texts = ("; -- the best", " ;\n/* the\nbest */ ;", ";;", " -- the best\n;")
    for text in texts:
        split = Split(filter=f"SELECT row_id FROM rows WHERE row_id > $low AND ';' <> e'\\'; --'{text}", low=6)
        splits.check(store, {"s": split})
        assert splits.make(store, "s", split).kept == 3
    for sql in ("SELECT 1 AS row_id; SELECT 2 AS row_id", "SELECT 1 AS row_id; DROP TABLE rows; --"):
        with pytest.raises(QueryError, match="exactly one SELECT"):
            splits.make(store, "s", Split(filter=sql))


def test_ids_of_no_row_and_keeps_that_are_null_are_said(tmp_path):
    store = stored(tmp_path, SCORES)
    made = splits.make(store, "s", Split(filter="SELECT row_id + 8 AS row_id FROM rows"))
    assert made.lines == [
        "split s: 2 of 10 rows kept",
        "warning: split s: its filter returned 8 row_ids that no row of the store has, such as 10; they count for nothing",
    ]
    made = splits.make(store, "s", Split(filter="SELECT nullif(row_id, 1) AS row_id FROM rows"))
    assert made.lines == [
        "split s: 9 of 10 rows kept",
        "warning: split s: its filter returned 1 row whose row_id is NULL; it counts for nothing",
    ]
    made = splits.make(store, "t", Split(filter="SELECT row_id, seam_x < -1 AS keep FROM rows"))
    assert made.lines == [
        "split t: 4 of 10 rows kept",
        "split t: 1 row has a `keep` that is NULL, and was dropped",
    ]


def test_other_columns_may_be_dropped_at_zero(tmp_path):
    store = stored(tmp_path, SCORES, "length")
    splits.make(store, "s", Split(filter=LOWEST, by="length", rate=0.9))
    assert len(dropped(store)) == 9


@pytest.mark.parametrize(("file", "verb"), [("keep_above_lowest.sql", "drops"), ("lowest.sql", "keeps")])
@pytest.mark.parametrize(
    "column", ["discrepancy_contrast", "misjudged_contrast", "baseline_calibrated_misjudged_contrast"]
)
def test_a_filter_of_the_lowest_warns_of_a_score_that_is_high_where_the_reward_is_wrong(tmp_path, column, file, verb):
    store = stored(tmp_path, [0.1 * i for i in range(10)], column)
    text = filters.read(file, tmp_path)
    made = splits.make(store, "s", Split(filter=text, by=column, rate=0.2))
    assert made.lines[1:] == [
        f"warning: split s: {column} is high where the reward is wrong, and this filter {verb} its lowest values, the rows that "
        "are judged best; give `by: seam_contrast`, or a filter of the highest values"
    ]
    own = splits.make(store, "t", Split(filter=f"SELECT row_id, {column} < 0.5 AS keep FROM rows"))
    assert len(own.lines) == 1


def test_ties_are_broken_by_a_seed_the_same_way_every_time(tmp_path):
    store = stored(tmp_path, [-1.0] * 10)
    cuts = {}
    for seed in (0, 1, 2):
        splits.make(store, f"s{seed}", Split(filter=LOWEST, by="seam_x", rate=0.5, seed=seed))
        cuts[seed] = tuple(dropped(store, f"s{seed}"))
        assert len(cuts[seed]) == 5
    assert len(set(cuts.values())) > 1
    splits.make(store, "again", Split(filter=LOWEST, by="seam_x", rate=0.5, seed=1))
    assert tuple(dropped(store, "again")) == cuts[1]


def test_nan_and_infinite_scores_do_not_move_the_cut(tmp_path):
    store = stored(tmp_path, [math.nan, -1.0, -2.0, math.inf, -math.inf, -3.0, -4.0, -5.0])
    splits.make(store, "s", Split(filter=LOWEST, by="seam_x", rate=0.4))
    assert dropped(store) == [6, 7]


def test_lowest_is_the_complement_of_keep_above_lowest(tmp_path):
    store = stored(tmp_path, SCORES)
    lowest = (BUNDLED / "lowest.sql").read_text()
    splits.make(store, "kept", Split(filter=LOWEST, by="seam_x", rate=0.4, nulls="drop"))
    splits.make(store, "lowest", Split(filter=lowest, by="seam_x", rate=0.4))
    kept = {r["row_id"] for r in ledger(store, "kept") if r["kept"]}
    low = {r["row_id"] for r in ledger(store, "lowest") if r["kept"]}
    assert kept | low == set(range(10)) - {2} and not kept & low


def test_keep_between_keeps_a_band_and_names_the_end_that_decided(tmp_path):
    store = stored(tmp_path, SCORES)
    between = (BUNDLED / "keep_between.sql").read_text()
    splits.make(store, "s", Split(filter=between, by="seam_x", low=-3, high=-1))
    found = ledger(store)
    assert [r["row_id"] for r in found if r["kept"]] == [1, 4, 6, 7]
    assert (found[0]["rule"], found[0]["value"], found[0]["threshold"]) == ("seam_x below -3.0", -5.0, -3.0)
    assert (found[3]["rule"], found[3]["threshold"]) == ("seam_x above -1.0", -1.0)
    splits.make(store, "open", Split(filter=between, by="seam_x", low=-1))
    assert [r["row_id"] for r in ledger(store, "open") if r["kept"]] == [1, 3, 5, 7, 9]


def test_a_plain_select_keeps_what_it_returns(tmp_path):
    store = stored(tmp_path, SCORES)
    sql = "-- Only the good ones.\nSELECT row_id, seam_x AS value FROM rows WHERE seam_x > $least;"
    splits.make(store, "s", Split(filter=sql, least=-1.5))
    found = ledger(store)
    assert [r["row_id"] for r in found if r["kept"]] == [1, 3, 5, 7, 9]
    assert {r["rule"] for r in found} == {"Only the good ones", "not returned by Only the good ones"}


@pytest.mark.slow
@settings(max_examples=15, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    scores=st.lists(st.one_of(st.none(), st.floats(-5, 0), st.sampled_from([math.nan, 0.0])), min_size=1, max_size=30),
    rate=st.floats(0.01, 1),
)
def test_every_row_has_one_line_and_the_dropped_are_the_lowest(tmp_path_factory, scores, rate):
    store = stored(tmp_path_factory.mktemp("s"), scores)
    splits.make(store, "s", Split(filter=LOWEST, by="seam_x", rate=rate))
    found = ledger(store)
    assert [r["row_id"] for r in found] == list(range(len(scores)))
    valued = sorted(s for s in scores if s is not None and math.isfinite(s))
    lowest = [s for s in valued[: math.ceil(rate * len(valued))] if s < 0]
    assert sorted(r["value"] for r in found if not r["kept"]) == lowest


def test_a_filter_that_names_rows_that_are_not_there_or_does_not_decide_keeps_none_by_it(tmp_path):
    store = stored(tmp_path, SCORES)
    sql = (
        "SELECT unnest([-7, 0, 1, 2, 99]) AS row_id, unnest([true, true, NULL, false, true]) AS keep UNION ALL "
        "SELECT row_id, true FROM rows WHERE row_id > 7"
    )
    made = splits.make(store, "s", Split(filter=sql))
    found = ledger(store)
    assert [r["row_id"] for r in found] == list(range(10)) and (made.kept, made.dropped) == (3, 7)
    assert [r["row_id"] for r in found if r["kept"]] == [0, 8, 9]
    assert len(dropped(store)) == made.dropped


def test_the_same_inputs_are_not_cut_again_and_other_inputs_are(tmp_path):
    store = stored(tmp_path, SCORES)
    split = Split(filter=LOWEST, by="seam_x", rate=0.2)
    splits.make(store, "s", split)
    file = store.path / "splits/s/ledger.parquet"
    before = file.stat().st_mtime_ns
    splits.make(store, "s", split)
    assert file.stat().st_mtime_ns == before
    splits.make(store, "s", Split(filter=LOWEST, by="seam_x", rate=0.4))
    assert len(dropped(store)) == 4


@pytest.mark.parametrize(
    ("split", "message"),
    [
        (Split(filter=LOWEST), "split s: the filter needs by; give it as a key beside `filter`"),
        (
            Split(filter=LOWEST, by="seam_x", rat=0.2),
            "the filter has no parameter 'rat'; it takes: by, nulls, rate, seed",
        ),
        (
            Split(filter=LOWEST, by="seem_x"),
            "by: 'seem_x' is no column of this store; there are: row_id, prompt, seam_x",
        ),
    ],
)
def test_parameters_that_do_not_fit_are_named(tmp_path, split, message):
    with pytest.raises(RecipeError) as refused:
        splits.make(stored(tmp_path, SCORES), "s", split)
    assert message in str(refused.value)


@pytest.mark.parametrize(
    ("sql", "message"),
    [
        ("SELECT prompt FROM rows", "split s: its filter returns no row_id, only: prompt"),
        ("SELECT row_id FROM rows, (SELECT unnest([1, 2]))", "returns some row_id more than once"),
        ("SELECT row_id FROM rowz", "split s: .*views: rows"),
        ("DROP VIEW rows", "split s: "),
        ("SELECT row_id FROM read_csv('/etc/passwd')", "split s: "),
        ("SELECT row_id FROM rows) f; DROP VIEW rows; --", "split s: "),
    ],
)
def test_filters_that_are_none_are_refused(tmp_path, sql, message):
    with pytest.raises(QueryError, match=message):
        splits.make(stored(tmp_path, SCORES), "s", Split(filter=sql))


def test_a_column_name_is_quoted_not_pasted(tmp_path):
    store = stored(tmp_path, SCORES, 'seam "x')
    splits.make(store, "s", Split(filter=LOWEST, by='seam "x', rate=0.2))
    assert len(dropped(store)) == 2


def test_a_filter_that_outgrows_its_memory_is_run_again_without_a_limit(tmp_path, monkeypatch):
    store = stored(tmp_path, SCORES)
    asked = []
    decided = decision._decided

    def full(*given):
        *_, spill = given
        asked.append(spill)
        if spill is not None:
            raise QueryError("Out of Memory Error: failed to pin block")
        return decided(*given)

    monkeypatch.setattr(decision, "_decided", full)
    made = splits.make(store, "s", Split(filter=LOWEST, by="seam_x", rate=0.2))
    assert (made.kept, made.dropped) == (8, 2) and asked == [store.path / ".spill.tmp", None]
    assert not (store.path / ".spill.tmp").exists()


def test_thresholds_of_several_rules_stay_with_their_rows(tmp_path):
    store = stored(tmp_path, SCORES)
    sql = (
        "SELECT row_id, row_id % 2 = 0 AS keep, CASE WHEN row_id < 5 THEN 'low' END AS rule, row_id / 10 AS value, "
        "CASE WHEN row_id % 3 = 0 THEN row_id / 7 END AS threshold FROM rows WHERE row_id <> 4"
    )
    splits.make(store, "s", Split(filter=sql))
    for row in ledger(store):
        i = row["row_id"]
        if i == 4:
            assert row["rule"] == "not returned by the filter" and row["value"] is None and not row["kept"]
            continue
        assert row["kept"] == (i % 2 == 0) and row["rule"] == ("low" if i < 5 else "the filter")
        assert row["value"] == i / 10 and row["threshold"] == (i / 7 if i % 3 == 0 else None)


@pytest.mark.parametrize(
    "text", ["[1,", "*x", "{a: 1}", "[&a [x, x], &b [*a, *a]]", "9" * 5000, "2024-13-01", "[" * 5000], ids=range(7)
)
def test_a_default_that_is_no_value_is_refused_in_one_line(tmp_path, text):
    filter_ = f"-- default rate = {text}\nSELECT row_id FROM rows WHERE row_id < $rate"
    with pytest.raises(RecipeError, match=r"split s: the filter's default '.*' (cannot be read|is neither)") as said:
        splits.make(stored(tmp_path, SCORES), "s", Split(filter=filter_))
    assert len(str(said.value)) < 200 and "\n" not in str(said.value)


@pytest.mark.parametrize(("text", "kept"), [("2024-01-05", 5), ("'2024-01-05'", 5)])
def test_a_date_is_a_default_as_it_is_written(tmp_path, text, kept):
    filter_ = (
        f"-- default day = {text}\nSELECT row_id FROM rows WHERE DATE '2024-01-01' + row_id::INTEGER <= $day::DATE"
    )
    assert splits.make(stored(tmp_path, SCORES), "s", Split(filter=filter_)).kept == kept


def test_a_list_is_a_default(tmp_path):
    filter_ = "-- default which = [1, 3]\nSELECT row_id FROM rows WHERE list_contains($which, row_id)"
    assert splits.make(stored(tmp_path, SCORES), "s", Split(filter=filter_)).kept == 2
