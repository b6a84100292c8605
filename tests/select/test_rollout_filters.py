"""The filters over a profile of rollouts: which rows each drops, and by which rule."""

from __future__ import annotations

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from seamcurate import Recipe, Source, Split, Store, query, run_local

PROFILES = [
    # pass rate, zero advantage, best reward, spread, hacked
    (0.0, True, -1.0, 0.0, 0.0),
    (0.1, False, 2.0, 0.5, 0.05),
    (0.5, False, 2.0, 1.0, 0.5),
    (0.8, False, 2.0, 0.9, None),
    (1.0, True, 3.0, 0.0, 0.0),
    (None, None, None, None, None),
]
NAMES = ["rollout_pass_rate", "rollout_zero_advantage", "rollout_reward_best", "rollout_reward_std", "hacked_policy"]


def ledger(tmp_path, filter, **parameters):
    columns = {name: list(values) for name, values in zip(NAMES, zip(*PROFILES, strict=True), strict=True)}
    prompts = [f"question {i}" for i in range(len(PROFILES))]
    pq.write_table(pa.table({"prompt": prompts, **columns}), tmp_path / "rows.parquet")
    recipe = Recipe(
        rows=Source(parquet=str(tmp_path / "rows.parquet")), splits={"train": Split(filter=filter, **parameters)}
    )
    run_local(recipe, tmp_path / "store")
    return query(
        Store(tmp_path / "store"), "SELECT kept, rule, value, threshold FROM ledger ORDER BY row_id"
    ).to_pylist()


def test_pass_rate_between_keeps_what_is_solved_sometimes(tmp_path):
    verdicts = ledger(tmp_path, "pass_rate_between.sql")
    assert [verdict["kept"] for verdict in verdicts] == [False, False, True, True, False, False]
    assert [verdict["rule"].partition(":")[0] for verdict in verdicts] == [
        "too hard",
        "too hard",
        "keep prompts that pass sometimes",
        "keep prompts that pass sometimes",
        "too easy",
        "drop rows without a pass rate",
    ]
    assert [(v["value"], v["threshold"]) for v in verdicts[:3]] == [(0.0, 0.2), (0.1, 0.2), (0.5, None)]


def test_pass_rate_between_takes_its_ends_and_keeps_the_unknown_when_asked(tmp_path):
    verdicts = ledger(tmp_path, "pass_rate_between.sql", low=0, high=0.5, nulls="keep")
    assert [verdict["kept"] for verdict in verdicts] == [True, True, True, False, False, True]


@pytest.mark.parametrize("nulls", ["keep", "drop"])
def test_no_zero_advantage_drops_rows_that_give_no_gradient(tmp_path, nulls):
    verdicts = ledger(tmp_path, "no_zero_advantage.sql", nulls=nulls)
    assert [verdict["kept"] for verdict in verdicts] == [False, True, True, True, False, nulls == "keep"]
    assert verdicts[0]["rule"] == "all samples have the reward -1.0"
    assert verdicts[5]["rule"] == f"{nulls} rows with fewer than two samples"


def test_hacked_drops_rows_on_which_the_reward_pays_for_what_is_wrong(tmp_path):
    verdicts = ledger(tmp_path, "hacked.sql")
    assert [verdict["kept"] for verdict in verdicts] == [True, False, False, True, True, True]
    assert verdicts[3]["rule"] == "keep rows without a second opinion"
    (tmp_path / "more").mkdir()
    lenient = ledger(tmp_path / "more", "hacked.sql", most=0.1, nulls="drop")
    assert [verdict["kept"] for verdict in lenient] == [True, True, False, False, True, False]
