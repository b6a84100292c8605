"""A store's columns against judged answers: planted misjudgement is found to the extent that follows from it."""

from __future__ import annotations

import itertools

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import spearmanr

from seamcurate import FakeModel, Generate, Recipe, Reward, Source, query, run_local, study
from seamcurate.errors import StudyError
from seamcurate.study import ranking
from seamcurate.study.best_of_n import expected_best
from seamcurate.study.judged_rows import suspect

ROWS = 400


def store_of(folder, **columns):
    """Make a store of rows with columns of their own."""
    rows = {"prompt": [f"p{i}" for i in range(ROWS)], "response": [f"golden {i}" for i in range(ROWS)]}
    pq.write_table(pa.table({**rows, **columns}), folder / "rows.parquet")
    run_local(Recipe(rows=Source(parquet=str(folder / "rows.parquet"), response="response")), folder / "store")
    return folder / "store"


def pairs_of(wrong, **changes):
    """Make a judged pair for each row; people prefer `a`, the reward orders it wrongly where `wrong`."""
    count = len(wrong)
    columns = {
        "prompt": [f"p{i}" for i in range(count)],
        "response_a": [f"good {i}" for i in range(count)],
        "response_b": [f"bad {i}" for i in range(count)],
        "label": ["a"] * count,
        "reward_a": np.where(wrong, 0.0, 1.0),
        "reward_b": np.where(wrong, 1.0, 0.0),
    }
    return pa.table({**columns, **changes})


@pytest.fixture(scope="module")
def planted(tmp_path_factory):
    random = np.random.default_rng(11)
    suspicion = random.random(ROWS)
    store = store_of(
        tmp_path_factory.mktemp("planted"),
        seam_planted=-suspicion,
        baseline_noise=random.random(ROWS),
        source=["x", "y"] * (ROWS // 2),
    )
    return store, suspicion, random.random(ROWS) < 0.15 + 0.5 * suspicion


def by_column(found):
    return {row["column"]: row for row in found.table.to_pylist()}


@pytest.mark.slow
def test_the_auc_is_the_one_that_follows_from_what_was_planted(planted):
    store, suspicion, wrong = planted
    found = study.validity(store, pairs_of(wrong), by="source")
    rows = by_column(found)
    of_pairs = [
        (a > b) + 0.5 * (a == b) for a, b in itertools.product(suspicion[wrong].tolist(), suspicion[~wrong].tolist())
    ]
    assert rows["seam_planted"]["auc"] == pytest.approx(np.mean(of_pairs), abs=1e-12)
    # ∫∫ over a density of wrong rows and one of right ones, both linear in the suspicion.
    grid = (np.arange(2000) + 0.5) / 2000
    of_wrong, of_right = 0.15 + 0.5 * grid, 0.85 - 0.5 * grid
    expected = (of_wrong * (np.cumsum(of_right) - of_right / 2)).sum() / (of_wrong.sum() * of_right.sum())
    assert rows["seam_planted"]["auc_low"] < expected < rows["seam_planted"]["auc_high"]
    assert rows["baseline_noise"]["auc_low"] < 0.5 < rows["baseline_noise"]["auc_high"]
    assert rows["seam_planted"]["spearman"] == pytest.approx(spearmanr(suspicion, wrong).statistic, abs=1e-12)
    worst = np.argsort(-suspicion)[: ROWS // 5]
    assert rows["seam_planted"]["caught"] == pytest.approx(wrong[worst].sum() / wrong.sum())
    assert rows["seam_planted"]["error_kept_20"] == pytest.approx(np.delete(wrong, worst).mean())
    assert rows["seam_planted"]["suspect"] == "low" and rows["baseline_noise"]["suspect"] == "high"
    assert rows["seam_planted"]["p"] < 1e-6 < rows["baseline_noise"]["p"] and rows["random"]["p"] is None
    assert found.line.startswith("seam_planted finds misjudged rows: AUC 0.")
    assert "not told apart from chance: baseline_noise" in found.line


@pytest.mark.slow
def test_a_difference_between_sources_alone_counts_for_nothing_within_them(tmp_path):
    source = np.arange(ROWS) % 2
    store = store_of(tmp_path, seam_source=-source.astype(float) - np.arange(ROWS) * 1e-6, source=source.tolist())
    wrong = np.random.default_rng(3).random(ROWS) < np.where(source, 0.7, 0.2)
    row = by_column(study.validity(store, pairs_of(wrong), by="source"))["seam_source"]
    assert row["spearman_low"] > 0.3 and row["spearman_within_low"] < 0 < row["spearman_within_high"]


@pytest.mark.slow
def test_a_reward_that_is_a_coin_and_golden_responses_that_lose_are_told(planted):
    store, _, _ = planted
    wrong = np.arange(ROWS) % 2 == 0
    judged = pairs_of(wrong)
    # Of the first hundred golden responses people prefer another answer to thirty.
    golden = pairs_of(
        np.zeros(100, bool),
        response_a=[f" Golden  {i} " for i in range(100)],
        label=["b"] * 30 + ["a"] * 70,
    )
    line = study.validity(store, judged, golden).line
    assert "orders 50.0 %" in line and "do not train with it" in line
    assert "people put 30.0 % [" in line and "of 100 golden responses below another answer" in line
    assert "left out: 100 pairs with the golden response" in line
    assert "with 400 rows an AUC above 0.58 would be seen; for .55 judge 1,050" in line


def test_the_suspected_end_of_a_column_is_the_one_its_authors_leave_out():
    low = [
        "seam_gpt",
        "reward",
        "baseline_reward_margin_contrast",
        "baseline_rejected_reward_gpt",
        "baseline_rejected_length_adv",
    ]
    high = [
        "discrepancy_gpt",
        "misjudged_adv",
        "baseline_reward_gap_contrast",
        "baseline_reward_spread_adv",
        "rollout_reward_std",
    ]
    assert {suspect(name) for name in low} == {"low"} and {suspect(name) for name in high} == {"high"}


@pytest.mark.slow
def test_one_of_many_columns_above_chance_is_not_said_to_find_anything(tmp_path):
    random = np.random.default_rng(0)
    wrong = random.random(ROWS) < 0.4
    columns = {f"baseline_{i}": random.random(ROWS) for i in range(12)}
    # A little is planted, so that one interval of the thirteen lies above .5 and its adjusted p-value does not say so.
    found = study.validity(
        store_of(tmp_path, seam_little=0.115 * ~wrong + random.random(ROWS), **columns), pairs_of(wrong)
    )
    row = by_column(found)["seam_little"]
    assert row["auc_low"] > 0.5 and row["p"] > 0.05
    assert (
        found.line.startswith("seam_little does not demonstrably find misjudged rows")
        and "random is better" not in found.line
    )


@pytest.mark.slow
def test_a_column_that_knows_how_many_pairs_a_row_has_catches_no_errors_by_it(tmp_path):
    several = np.arange(ROWS) % 2 == 0
    store = store_of(tmp_path, baseline_pairs=np.where(several, 5.0, 1.0))
    wrong = np.arange(ROWS) % 4 < 2
    pair = pairs_of(wrong)
    more = [pair.filter(pa.array(several)) for _ in range(4)]
    row = by_column(study.validity(store, pair, *more))["baseline_pairs"]
    # Of 200 rows that have all pairs wrong, 80 rows of the highest values hold some 40, whatever number of pairs they have.
    assert row["auc"] == 0.5 and row["caught"] == pytest.approx(0.2, abs=0.05)


def test_pairs_with_a_candidate_of_the_row_say_nothing_of_its_columns(tmp_path):
    rows = {"prompt": [f"p{i}" for i in range(60)], "response": [f"golden {i}" for i in range(60)]}
    pq.write_table(pa.table({**rows, "seam_own": np.arange(60.0)}), tmp_path / "rows.parquet")
    source = Source(parquet=str(tmp_path / "rows.parquet"), response="response")
    run_local(Recipe(rows=source, steps=[Generate(k=2, generator=FakeModel())]), tmp_path / "store")
    candidates = query(tmp_path / "store", "SELECT response FROM candidates WHERE rank = 1 ORDER BY row_id")
    written = [text.upper() for text in candidates["response"].to_pylist()]
    judged = pairs_of(np.arange(60) % 2 == 0, response_b=[*written[:20], *map(str, range(40))])
    line = study.validity(tmp_path / "store", judged).line
    assert "of 40 pairs of 40 rows" in line and "left out: 20 pairs with a candidate of the row" in line


@pytest.mark.slow
def test_rated_answers_give_pairs_a_gradient_and_a_ceiling(tmp_path):
    random = np.random.default_rng(1)
    flipped = random.random(ROWS) < 0.4
    store = store_of(tmp_path, seam_exact=-flipped.astype(float), baseline_noise=random.random(ROWS))
    scores = random.random((ROWS, 4))
    rewards = np.where(flipped[:, None], -scores, scores)
    rated = pa.table(
        {
            "prompt": np.repeat([f"p{i}" for i in range(ROWS)], 4),
            "response": [f"answer {i} {k}" for i in range(ROWS) for k in range(4)],
            "score": scores.ravel(),
            "reward": rewards.ravel(),
        }
    )
    measured = study.validity(store, rated)
    rows = by_column(measured)
    assert "half of a row's pairs tells the other half with AUC 1.00 [1.00, 1.00] (400 rows)" in measured.line
    assert rows["seam_exact"]["auc"] == rows["seam_exact"]["auc_gradient"] == 1.0
    assert rows["the other half of the pairs"]["auc"] == 1.0
    found = study.best_of_n(store, rated)
    table = {(row["column"], row["n"]): row for row in found.table.to_pylist()}
    gains = np.array([expected_best(s, r, 4) for s, r in zip(scores, rewards, strict=True)]) - scores.mean(1)
    assert table["all rows", 4]["quality"] == pytest.approx(scores.mean() + gains.mean())
    assert table["rows at random", 4]["quality"] == pytest.approx(scores.mean() + 0.8 * gains.mean())
    assert table["seam_exact", 4]["above_random_low"] > 0 and table["seam_exact", 4]["above_full_low"] > 0
    assert table["baseline_noise", 4]["above_random_low"] < 0.01
    assert table["all rows", 1]["quality"] == pytest.approx(scores.mean()) and table["all rows", 1]["kl"] == 0
    assert "leaving out 20% by seam_exact gains +0." in found.line


@settings(max_examples=60, deadline=None)
@given(
    st.lists(st.tuples(st.integers(0, 4), st.integers(0, 3)), min_size=1, max_size=5),
    st.integers(1, 3),
)
def test_the_expected_best_is_the_mean_over_all_draws(answers, n):
    scores, rewards = (np.array(values, float) for values in zip(*answers, strict=True))
    means = []
    for draw in itertools.product(range(len(answers)), repeat=n):
        top = max(rewards[list(draw)])
        # Which of equally rewarded answers is the best is a draw, too: over all answers with that reward.
        means.append(scores[rewards == top].mean())
    assert expected_best(scores, rewards, n) == pytest.approx(np.mean(means))


@settings(max_examples=60, deadline=None)
@given(
    st.lists(st.tuples(st.integers(0, 4), st.integers(0, 4), st.integers(0, 3)), min_size=4, max_size=12),
    st.floats(0.1, 0.9),
)
def test_weights_of_a_draw_count_as_copies_of_rows(rows, rate):
    values, outcome, copies = (np.array(column, float) for column in zip(*rows, strict=True))
    copied = np.repeat(np.arange(len(rows)), copies.astype(int))
    sources = [str(int(value) % 2) for value in outcome]
    for measure in (
        lambda chosen: ranking.auc(values[chosen], outcome[chosen] > 2),
        lambda chosen: ranking.spearman(values[chosen], outcome[chosen]),
        lambda chosen: ranking.spearman(values[chosen], outcome[chosen], [sources[i] for i in chosen]),
    ):
        with np.errstate(invalid="ignore", divide="ignore"):
            weighted = measure(np.arange(len(rows)))(copies[None])[0]
            repeated = measure(copied)(np.ones((1, len(copied))))[0] if len(copied) else np.nan
        assert weighted == pytest.approx(repeated, nan_ok=True)


def test_the_stores_own_reward_model_scores_judged_answers_and_no_other_may(tmp_path):
    rows = {"prompt": [f"p{i}" for i in range(60)], "response": [f"golden {i}" for i in range(60)]}
    pq.write_table(pa.table(rows), tmp_path / "rows.parquet")
    source = Source(parquet=str(tmp_path / "rows.parquet"), response="response")
    run_local(Recipe(rows=source, steps=[Reward(reward=FakeModel())]), tmp_path / "store")
    judged = pairs_of(np.zeros(60, bool)).drop_columns(["reward_a", "reward_b"])
    found = study.validity(tmp_path / "store", judged, rewards={"own": FakeModel().load()})
    texts = [[row["response_a"], row["response_b"]] for row in judged.to_pylist()]
    rewards = FakeModel().load().rewards(rows["prompt"], texts)
    right = np.mean([a > b for a, b in rewards])
    assert f"orders {100 * right:.1f} %" in found.line
    assert by_column(found)["reward"]["suspect"] == "low"

    class Other:
        def rewards(self, prompts, groups):
            return [[0.0 for _ in group] for group in groups]

    with pytest.raises(StudyError, match=r"row 0 has reward \S+ in store, and 0.0 by this reward model; name the one"):
        study.validity(tmp_path / "store", judged, rewards={"other": Other()})


def test_what_cannot_be_measured_is_said_in_a_line(planted):
    store, _, wrong = planted
    judged = pairs_of(wrong)
    for run, message in (
        (lambda: study.validity(store), "reads a store and then judged answers"),
        (lambda: study.validity(judged, judged), "the table is none"),
        (lambda: study.validity(store, judged.drop_columns(["label"])), "no column 'response'"),
        (lambda: study.validity(store, judged, columns=["seam_plantd"]), "seam_plantd is no numeric column"),
        (lambda: study.validity(store, judged, by="topic"), "no column 'topic' to divide by"),
        (lambda: study.validity(store, judged.drop_columns(["reward_a"])), "have no reward_a and reward_b"),
        (lambda: study.validity(store, pairs_of(np.zeros(50, bool))), "of all 50 rows alike"),
        (
            lambda: study.validity(store, judged.set_column(0, "prompt", pa.array(["other"] * ROWS))),
            "no prompt of the judged answers is a row of store",
        ),
        (lambda: study.best_of_n(store, judged), "no column 'response'"),
        (lambda: study.best_of_n(store, judged, rate=1.5), "rate is 1.5"),
    ):
        with pytest.raises(StudyError, match=message):
            run()


def test_a_pair_counts_once_however_many_rows_have_its_prompt(tmp_path):
    count = 40
    rows = {
        "prompt": [f"p{i // 2}" for i in range(2 * count)],
        "response": [f"golden {i}" for i in range(2 * count)],
        "x": np.arange(2 * count, dtype=np.float64),
    }
    pq.write_table(pa.table(rows), tmp_path / "rows.parquet")
    run_local(Recipe(rows=Source(parquet=str(tmp_path / "rows.parquet"), response="response")), tmp_path / "store")
    wrong = np.arange(count) % 4 == 0
    # The first answer of p0 is the golden response of one of its two rows, and both people and reward prefer p1's to a tie.
    answers = ["golden 0", *(f"good {i}" for i in range(1, count))]
    line = study.validity(
        tmp_path / "store", pairs_of(wrong, response_a=answers, label=["a", "tie", *["a"] * (count - 2)])
    ).line
    # 39 of 40 pairs are decided, 10 of them wrongly; rows: two of each prompt but p1, and one of p0.
    assert "the reward orders 74.4 %" in line and "of 39 pairs of 77 rows" in line
    assert line.endswith("left out: 1 pair that people call a tie")
