"""Studies of stores: whose lowest rows are the same, and how likely the policy finds each sample set."""

from __future__ import annotations

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from conftest import questions

from seamcurate import FakeModel, Random, Recipe, Source, Store, query, run_local, study
from seamcurate.errors import StudyError


def made(folder, name, scores, **columns):
    """A store whose rows carry scores of their own; `columns` replaces texts."""
    rows = [
        {"prompt": f"p{i}", "response": "word " * (1 + i % 7), "seam_x": score} | {k: v[i] for k, v in columns.items()}
        for i, score in enumerate(scores)
    ]
    pq.write_table(pa.Table.from_pylist(rows), folder / f"{name}.parquet")
    run_local(
        Recipe(rows=Source(parquet=str(folder / f"{name}.parquet"), response="response"), steps=(Random(),)),
        folder / name,
    )
    return folder / name


@pytest.mark.slow
def test_overlap_is_the_share_of_lowest_rows_that_two_stores_have_in_common(tmp_path):
    first = [-float(i) for i in range(40)]
    # Its lowest eight are rows 32 to 39; the other's 34 to 39 and 0, 1.
    second = [-100.0, -99.0, *first[2:]]
    one, two = made(tmp_path, "one", first), made(tmp_path, "two", second)
    outcome = study.overlap(one, two, by="seam_x")
    row = outcome.table.to_pylist()[0]
    assert (row["first"], row["second"], row["rows"], row["lowest_first"], row["lowest_second"]) == (
        "one",
        "two",
        40,
        8,
        8,
    )
    assert row["overlap"] == pytest.approx(0.75) and row["chance"] == pytest.approx(0.2)
    assert row["overlap_low"] > 0.2 and row["p_beyond_chance"] < 0.001
    assert outcome.line.startswith("one and two share 75.0 % [") and "20.0 % by chance (40 rows)" in outcome.line
    assert "; but" not in outcome.line


def test_stores_that_share_nothing_are_not_said_to(tmp_path):
    one = made(tmp_path, "one", [-float(i) for i in range(40)])
    two = made(tmp_path, "two", [float(i) - 50 for i in range(40)])
    line = study.overlap(one, two, by="seam_x").line
    assert line.startswith("one and two are not shown to share more than chance: 0.0 %")


def test_low_rows_that_are_merely_the_longest_are_said_to_be(tmp_path):
    answers = ["word " * (1 + i) for i in range(40)]
    scores = [-float(i) for i in range(40)]
    one = made(tmp_path, "one", scores, response=answers)
    two = made(tmp_path, "two", [s - 0.1 for s in scores], response=answers)
    line = study.overlap(one, two, by="seam_x").line
    assert (
        "share 100.0 %" in line and "; but picking the longest does as well (100.0 %" in line and "shortest" not in line
    )


def test_rows_that_nothing_misjudges_are_never_low(tmp_path):
    one = made(tmp_path, "one", [-1.0, -2.0] + [0.0] * 38)
    two = made(tmp_path, "two", [-1.0, 0.0, -3.0] + [0.0] * 36 + [None])
    row = study.overlap(one, two, by="seam_x").table.to_pylist()[0]
    # {0, 1} and {0, 2}: 2·1 / (2 + 2); a row without a score is in neither count
    assert (row["lowest_first"], row["lowest_second"], row["rows"]) == (2, 2, 39)
    assert row["overlap"] == pytest.approx(0.5)
    with pytest.raises(StudyError, match="no row of three has seam_x below 0"):
        study.overlap(one, made(tmp_path, "three", [0.0] * 40), by="seam_x")


@pytest.mark.slow
def test_three_stores_are_three_pairs_and_other_rows_are_refused(tmp_path, finished):
    scores = [-float(i) for i in range(20)]
    stores = [made(tmp_path, name, scores) for name in ("one", "two", "three")]
    outcome = study.overlap(*stores, by="seam_x", rate=0.5)
    assert outcome.table["kind"].to_pylist().count("models") == 3
    assert outcome.line.startswith("3 stores share 100.0 %") and "on average of 3 pairs" in outcome.line
    with pytest.raises(StudyError, match="store holds other rows than one"):
        study.overlap(stores[0], made(tmp_path, "store", scores, prompt=[f"q{i}" for i in range(20)]), by="seam_x")
    with pytest.raises(StudyError, match=r"has no column 'seam_gpt'; it has .*seam_contrast"):
        study.overlap(finished, finished, by="seam_gpt")
    with pytest.raises(StudyError, match="two or more stores; it got 1"):
        study.overlap(finished)
    with pytest.raises(StudyError, match=r"reads stores, but rows\.parquet is none"):
        study.overlap(tmp_path / "rows.parquet", finished)


def test_the_same_store_finds_the_same_rows(finished):
    outcome = study.overlap(finished.path, Store(finished.path))
    row = outcome.table.to_pylist()[0]
    assert (row["first"], row["second"]) == ("store (1)", "store (2)") and row["overlap"] == 1.0


def test_likelihood_of_a_stores_candidates_is_averaged_within_a_row_first(finished):
    outcome = study.likelihood(finished)
    expected = query(
        finished,
        "SELECT avg(x) AS mean, count(*) AS rows FROM (SELECT avg(logprob / n_tokens) AS x FROM candidates "
        "WHERE logprob IS NOT NULL GROUP BY row_id)",
    ).to_pylist()[0]
    row = outcome.table.to_pylist()[0]
    assert (row["set"], row["rows"]) == ("contrast", expected["rows"])
    assert row["logprob_per_token"] == pytest.approx(expected["mean"])


def test_a_policy_adds_the_golden_answers(finished):
    policy = FakeModel(path="policy")
    outcome = study.likelihood(finished, policy=policy)
    rows = {row["set"]: row for row in outcome.table.to_pylist()}
    assert set(rows) == {"golden", "contrast"} and rows["golden"]["rows"] == 40
    asked = query(finished, "SELECT prompt, response FROM rows").to_pylist()
    scored = policy.logprobs([r["prompt"] for r in asked], [[r["response"]] for r in asked])
    assert rows["golden"]["logprob_per_token"] == pytest.approx(sum(s[0].logprob / s[0].tokens for s in scored) / 40)


def test_answers_of_the_policy_are_a_set_beside_the_stores_of_the_same_rows(finished, tmp_path):
    policy = FakeModel(path="policy")
    asked = query(finished, "SELECT row_id, prompt FROM rows ORDER BY row_id LIMIT 20").to_pylist()
    # As `answer` writes them: each row's own columns, and which sample it is.
    answers = [{**row, "model": "policy", "sample": i, "response": f"use {i} of it"} for row in asked for i in range(2)]
    pq.write_table(pa.Table.from_pylist(answers), tmp_path / "answers.parquet")
    outcome = study.likelihood(finished, tmp_path / "answers.parquet", policy=policy)
    rows = {row["set"]: row for row in outcome.table.to_pylist()}
    assert set(rows) == {"golden", "contrast", "policy samples"} and rows["policy samples"]["rows"] == 20
    scored = policy.logprobs([row["prompt"] for row in asked], [["use 0 of it", "use 1 of it"]] * 20)
    expected = sum(one.logprob / one.tokens for group in scored for one in group) / 40
    assert rows["policy samples"]["logprob_per_token"] == pytest.approx(expected)
    order = outcome.table["set"].to_pylist()
    both = 20 if "policy samples" in (order[0], order[-1]) else 40
    assert both == 20 and f"between {order[0]} and {order[-1]} on 20 rows with both" in outcome.line
    with pytest.raises(StudyError, match=r"answers\.parquet holds answers; name the policy"):
        study.likelihood(tmp_path / "answers.parquet")


@pytest.mark.slow
def test_a_store_made_of_answers_is_scored_as_any_other(recipe, tmp_path):
    rows = [{**row, "sample": i} for i, row in enumerate(questions(15))]
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "answers.parquet")
    run_local(recipe(rows=Source(parquet=str(tmp_path / "answers.parquet"))), tmp_path / "store")
    outcome = study.likelihood(tmp_path / "store", policy=FakeModel(path="policy"))
    assert set(outcome.table["set"].to_pylist()) == {"golden", "contrast"}


def test_sets_that_are_as_likely_are_not_put_in_order():
    def sets(apart):
        random = np.random.default_rng(0)
        one, other = random.normal(-2, 0.5, 30), random.normal(-2 - apart, 0.5, 30)
        return likelihoods(
            {"golden": (lambda i: min(one[i], -0.1), lambda i: 10), "contrast": (lambda i: other[i], lambda i: 10)}
        )

    assert study.likelihood(sets(1.0)).line.startswith("golden likeliest, contrast least likely")
    assert "not told apart from" in study.likelihood(sets(0.0)).line.split(":")[0]


def likelihoods(sets):
    """Rows of a set: (nats a token, tokens in row i)."""
    return pa.Table.from_pylist(
        [
            {"set": name, "row_id": i, "logprob": each(i) * length(i), "n_tokens": length(i)}
            for name, (each, length) in sets.items()
            for i in range(30)
        ]
    )


def test_likelihoods_are_ordered_and_the_finding_flips_with_them():
    steady = lambda i: 10 + i % 5  # noqa: E731
    sets = {"generated": (lambda i: -1.8 - 0.01 * (i % 3), steady), "attacked": (lambda i: -9.0, steady)}
    outcome = study.likelihood(likelihoods(sets))
    assert outcome.table["set"].to_pylist() == ["generated", "attacked"]
    assert outcome.table["logprob_per_token"].to_pylist() == pytest.approx([-1.81, -9.0])
    assert outcome.line.startswith("generated likeliest, attacked least likely: generated -1.81 [")
    assert "+7.19 [" in outcome.line and "; but" not in outcome.line
    flipped = {"attacked": sets["generated"], "generated": sets["attacked"]}
    assert study.likelihood(likelihoods(flipped)).line.startswith("attacked likeliest")


def test_a_difference_that_length_makes_is_said_to_be_one():
    # Every token over 10 costs .1: the same answers at the same length.
    sets = {
        "short": (lambda i: -1.0 - 0.1 * (i % 4), lambda i: 10 + i % 4),
        "long": (lambda i: -1.0 - 0.1 * (i % 7), lambda i: 10 + i % 7),
    }
    line = study.likelihood(likelihoods(sets)).line
    assert line.startswith("short likeliest") and "length alone does" in line and "at equal lengths" in line


def test_a_store_without_likelihoods_has_none_to_show(tmp_path):
    with pytest.raises(StudyError, match="no candidate has a log-probability"):
        study.likelihood(made(tmp_path, "one", [-1.0, -2.0]))


def test_overlaps_that_were_counted_elsewhere_are_read_from_a_table():
    counts = {"first": [0, 0], "second": [1, 2], "seed": [0, 0], "rows": [100, 100]}
    table = pa.table({**counts, "lowest_first": [20, 20], "lowest_second": [20, 30], "shared": [15, 5]})
    outcome = study.overlap(table)
    rows = outcome.table.to_pylist()
    assert [row["overlap"] for row in rows] == [0.75, 0.2]
    # 2 · 20 · 30 / 100 / 50
    assert [row["chance"] for row in rows] == pytest.approx([0.2, 0.24])
    assert rows[0]["p_beyond_chance"] < 1e-8 and rows[0]["overlap_low"] == pytest.approx(0.531, abs=1e-3)
    assert outcome.line.endswith(
        "47.5 % of their lowest rows on average of 2 pairs, 22.0 % by chance; 1 of 2 pairs share more than chance"
    )
    with pytest.raises(StudyError, match="a pair shares more rows than are low"):
        study.overlap(table.set_column(6, "shared", pa.array([21, 5])))


def test_a_set_that_is_as_likely_as_the_likeliest_is_named_beside_it():
    random = np.random.default_rng(0)
    one = random.normal(-1, 0.2, 30)
    sets = {"golden": one, "samples": one - 0.01 * (-1) ** np.arange(30), "attacked": one - 5}
    line = study.likelihood(likelihoods({k: (lambda i, v=v: v[i], lambda i: 10) for k, v in sets.items()})).line
    assert line.startswith("golden and samples likeliest, attacked least likely: ")


def test_two_rows_do_not_put_sets_in_order():
    rows = [
        {"set": s, "row_id": i, "logprob": -10.0 * k - i, "n_tokens": 10}
        for k, s in enumerate(("golden", "attacked"), 1)
        for i in range(2)
    ]
    assert study.likelihood(pa.Table.from_pylist(rows)).line.startswith("golden is not told apart from attacked")


def test_counted_overlaps_have_an_interval_over_seeds_and_half_a_row_is_read():
    rows = [
        {"first": 0, "second": 1, "seed": s, "rows": 100, "lowest_first": 20, "lowest_second": 20, "shared": x}
        for s, x in enumerate((10, 12, 11))
    ]
    # 50, 60 and 55 %: 4.3027 · 5 / sqrt(3)
    assert study.overlap(pa.Table.from_pylist(rows)).line.startswith("models share 55.0 % [42.6, 67.4] of their")
    assert study.overlap(pa.Table.from_pylist(rows[:1])).line.startswith("models share 50.0 % [29.9, 70.1] of their")
    half = rows[0] | {"lowest_first": 1, "lowest_second": 0, "shared": 0}
    assert study.overlap(pa.Table.from_pylist([half])).table["overlap"].to_pylist() == [0.0]
