"""The noise floor: measured by rearranging the same texts, kept beside the column, and minded by splits."""

from __future__ import annotations

import json

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from conftest import questions

from seamcurate import CausalLM, FakeModel, Models, Recipe, SequenceClassifier, Source, Split, Store, run_local, seam
from seamcurate.cli import app
from seamcurate.score import noise
from seamcurate.select import split as splits

KEEP = (__import__("pathlib").Path(__file__).parents[2] / "recipes" / "keep_above_lowest.sql").read_text()


class Rows:
    def __init__(self, table):
        self.table = table

    def rows(self, columns):
        yield self.table.select(list(columns)).slice(0, 3)
        yield self.table.select(list(columns)).slice(3)


def test_the_largest_difference_over_batches_and_orders_is_kept_and_measured_once(tmp_path):
    sets = [[{"response": f"{i} {j}"} for j in range(6)] if i % 2 else [] for i in range(40)]
    table = pa.table({"prompt": [f"p{i}" for i in range(40)], "worse_contrast": sets})
    noise.sample(Rows(table), tmp_path, "worse_contrast")
    sampled = json.loads((tmp_path / "sample.json").read_text())
    assert [prompt for prompt, _ in sampled] == [f"p{i}" for i in range(1, 8, 2)]
    assert sampled[0][1] == ["1 0", "1 1", "1 2"]

    def by_company(prompts, answers, columns):
        # As a batch would: a score moves with how many are scored beside it.
        count = sum(map(len, answers))
        return [[None if text.endswith("2") else (len(text), count / 1000) for text in row] for row in answers]

    noise.measure(tmp_path, ["steady", "moved"], by_company)
    assert noise.facts(tmp_path) == {"noise": {"steady": 0, "moved": pytest.approx(0.011)}}
    noise.measure(tmp_path, ["moved"], lambda p, a, c: pytest.fail("measured again"))


@pytest.fixture(scope="module")
def measured(policy_folder, decoder_reward_folder, tmp_path_factory):
    """A store whose rewards and likelihoods come from real tiny models."""
    folder = tmp_path_factory.mktemp("measured")
    rows = questions(30)
    for i, row in enumerate(rows):
        row["worse_contrast"] = [{"response": rows[(i + j) % 30]["response"]} for j in range(1, 6)]
    pq.write_table(pa.Table.from_pylist(rows), folder / "rows.parquet")
    models = Models(
        policy=CausalLM(path=str(policy_folder), dtype="float32"),
        reward=SequenceClassifier(path=str(decoder_reward_folder), dtype="float32"),
    )
    recipe = Recipe(rows=Source(parquet=str(folder / "rows.parquet")), models=models, steps=seam("contrast", k=5))
    run_local(recipe, folder / "store")
    return Store(folder / "store")


@pytest.mark.slow
def test_real_models_in_single_precision_move_by_less_than_a_ten_thousandth(measured):
    for column in ("reward", "rewards_contrast", "logprobs_contrast"):
        assert 0 <= measured.noise(column)[column] <= 1e-4
    assert any(measured.noise(column)[column] > 0 for column in ("reward", "rewards_contrast", "logprobs_contrast"))
    assert 0 < measured.noise("seam_contrast")["seam_contrast"] < 1e-3
    assert measured.noise("prompt") == {}


def test_columns_prints_the_noise(measured, capsys):
    with pytest.raises(SystemExit, match="0"):
        app(["columns", str(measured.path)])
    shown = capsys.readouterr().out
    assert (
        "noise, by batch size, order and padding; of a judge by draws, order and wording; of int8, half precision and other runtimes on a CPU also against torch in float32: "
        in shown
        and "logprobs_contrast ±" in shown
    )


def test_the_noise_of_seam_is_bound_by_that_of_its_inputs(tmp_path):
    from seamcurate import Seam

    class Inputs(Rows):
        def noise(self, column):
            return {"reward": {"reward": 0.1}, "rewards_contrast": {"rewards_contrast": 0.2}}.get(
                column, {"logprobs_contrast": 3.0, "logprob_per_token": 0.5}
            )

    table = pa.table(
        {
            "reward": [1.0, 0.0],
            "rewards_contrast": pa.array([[0.5, 3.0], None], pa.list_(pa.float64())),
            "logprobs_contrast": pa.array([[None, 0.0], None], pa.list_(pa.float64())),
            "tokens_contrast": pa.array([[None, 4], None], pa.list_(pa.int32())),
        }
    )
    # One of two candidates is misjudged, by 2, with weight 1.
    bounds = {"geometric": 0.3 + 2 * 0.5, "logprob": 0.0 + 2 * 0.5, "raw": 0.3 + 2 * 3.0, "uniform": 0.3}
    for likelihood, bound in bounds.items():
        step = Seam(likelihood=likelihood, k=10)
        step.prepare(Inputs(table), tmp_path)
        facts = step.facts([step.load(tmp_path)(table)], tmp_path)
        assert facts["noise"]["seam_contrast"] == pytest.approx(bound / 2 * 10)


def test_a_threshold_inside_the_noise_is_warned_about(measured, monkeypatch):
    split = Split(filter=KEEP, by="seam_contrast", rate=0.3)
    assert not any("noise" in line for line in splits.make(measured, "clear", split).lines)
    monkeypatch.setattr(Store, "noise", lambda self, column: {column: 1e6})
    lines = splits.make(measured, "blurred", split).lines
    assert any(
        line.startswith("warning: split blurred: the threshold cuts inside the noise of seam_contrast (±1e+06)")
        for line in lines
    )


@pytest.mark.slow
def test_a_fake_model_has_no_noise(finished):
    assert finished.noise("rewards_contrast") == {"rewards_contrast": 0.0}
    assert FakeModel().rewards(["a"], [["b"]])


def test_scores_that_are_not_finite_have_no_noise(tmp_path):
    (tmp_path / "sample.json").write_text(json.dumps([["p", ["a", "b"]], ["q", ["c"]]]))
    given = {"a": float("nan"), "b": float("inf"), "c": 1.0}
    noise.measure(tmp_path, ["reward"], noise.plain(lambda prompts, rows: [[given[t] for t in row] for row in rows]))
    assert noise.facts(tmp_path) == {"noise": {"reward": 0.0}}


def test_of_workers_that_measure_at_once_the_first_is_heard(tmp_path):
    (tmp_path / "sample.json").write_text(json.dumps([["a question", ["an answer"]]]))

    def score(prompts, answers, columns):
        (tmp_path / "noise.json").write_text('{"reward": 0.5}')
        return [[(1.0,) for _ in row] for row in answers]

    noise.measure(tmp_path, ["reward"], score)
    assert json.loads((tmp_path / "noise.json").read_text()) == {"reward": 0.5}
    assert sorted(file.name for file in tmp_path.iterdir()) == ["noise.json", "sample.json"]
