"""A precision that was named for speed is held against float32 on a sample of rows, and the difference stands in `columns`."""

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from seamcurate import (
    CausalLM,
    Embed,
    Models,
    Perplexity,
    Recipe,
    SentenceEncoder,
    SequenceClassifier,
    Source,
    Store,
    run_local,
    seam,
)
from seamcurate.cli.app import app
from seamcurate.models.ensemble import RewardEnsemble
from seamcurate.score import noise, precision
from tests.conftest import questions


def recipe(folder, policy_folder, decoder_reward_folder, encoder_reward_folder, dtype):
    rows = questions(30)
    for i, row in enumerate(rows):
        row["worse_contrast"] = [{"response": rows[(i + j) % 30]["response"]} for j in range(1, 6)]
    pq.write_table(pa.Table.from_pylist(rows), folder / "rows.parquet")
    options = {"dtype": dtype, "device": "cpu"}
    policy = CausalLM(path=str(policy_folder), **options)
    models = Models(
        policy=policy,
        reward=SequenceClassifier(path=str(decoder_reward_folder), **options),
        encoder=SentenceEncoder(path=str(encoder_reward_folder), pooling="mean", **options),
    )
    steps = [*seam("contrast", k=5), Perplexity(base=policy), Embed()]
    return Recipe(rows=Source(parquet=str(folder / "rows.parquet")), models=models, steps=steps)


@pytest.mark.slow
def test_the_difference_from_float32_is_the_noise_of_each_column(
    policy_folder, decoder_reward_folder, encoder_reward_folder, tmp_path, capsys
):
    folders = policy_folder, decoder_reward_folder, encoder_reward_folder
    stores = {}
    for dtype in ("float32", "bfloat16"):
        run_local(recipe(tmp_path, *folders, dtype), tmp_path / dtype)
        stores[dtype] = Store(tmp_path / dtype)
    single, half = (store.table(0, ["reward", "baseline_perplexity"]) for store in stores.values())
    for column in ("reward", "baseline_perplexity"):
        differences = np.abs(single[column].to_numpy() - half[column].to_numpy())
        # All 30 rows are in the sample.
        assert (
            stores["bfloat16"].noise(column)[column] >= differences.max() > 10 * stores["float32"].noise(column)[column]
        )
    facts = {name: stores["bfloat16"].facts(name) for name in stores["bfloat16"].records()}
    assert {"reward", "rewards_contrast", "logprobs_contrast", "baseline_perplexity", "embedding"} <= set(facts)
    for step in ("reward", "rewards_contrast", "logprobs_contrast", "baseline_perplexity", "embedding"):
        measured = facts[step]["precision"]
        assert measured["dtype"] == "bfloat16" and 0 <= measured["moved"] <= 1, step
        assert max(measured["differences"].values()) > 0, step
        assert "against float32" in facts[step]["summary"]
    assert 0 < facts["embedding"]["noise"]["embedding"] < 0.1
    assert not any("precision" in found for found in stores["float32"].all_facts())
    capsys.readouterr()
    with pytest.raises(SystemExit, match="0"):
        app(["columns", str(stores["bfloat16"].path)])
    shown = " ".join(capsys.readouterr().out.split())
    assert (
        f"bfloat16 (sequence_classifier {decoder_reward_folder}) against float32, 30 rows: largest difference" in shown
    )


def test_rows_that_change_sides_are_those_that_one_cut_drops_and_the_other_keeps():
    scores = np.arange(10.0)
    assert precision.changed_sides(scores, scores) == 0
    assert precision.changed_sides(scores, -scores) == 0.4
    assert precision.changed_sides(np.array([1.0, np.nan]), np.array([1.0, 2.0])) is None
    assert precision.changed_sides(np.array([1.0, np.nan, 3.0]), np.array([3.0, 2.0, 1.0])) == 1.0


def test_of_an_ensemble_each_member_is_held_against_float32(decoder_reward_folder, encoder_reward_folder):
    members = [
        SequenceClassifier(path=str(decoder_reward_folder), dtype="bfloat16", device="cpu"),
        SequenceClassifier(path=str(encoder_reward_folder)),
    ]
    exact = precision.exact(RewardEnsemble(ensemble=members, normalise="standardise"))
    assert [member.dtype for member in exact.ensemble] == ["float32", "auto"]
    assert precision.exact(exact) is None


def test_a_column_without_a_noise_of_its_own_has_the_differences_alone(tmp_path):
    (tmp_path / noise.PRECISION).write_text('{"differences": {"embedding": 0.5}, "line": "bfloat16"}')
    assert noise.facts(tmp_path) == {"noise": {"embedding": 0.5}}
    assert precision.facts({"summary": "coverage"}, tmp_path)["summary"] == "coverage; bfloat16"
    assert precision.facts({"null": 1}, tmp_path / "elsewhere") == {"null": 1}
