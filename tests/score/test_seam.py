"""SEAM's arithmetic against hand-worked numbers, and its steps against what they promise."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest
from pydantic import ValidationError

from seamcurate import FakeModel, PolicyLogprobs, Recipe, Reward, Rewards, Seam, Source, run_local, seam
from seamcurate.errors import ModelError, RecipeError, StepError
from seamcurate.run.recipe import loads
from seamcurate.score.discrepancy import discrepancy, misjudgement, weight
from seamcurate.step import finite

GOLDEN, REWARDS = 1.0, [0.2, 1.5, 2.0, 0.9]
LOGPROBS, TOKENS = [-20.0, -30.0, -60.0, -10.0], [10, 20, 20, 5]


def test_misjudgement_is_how_far_a_worse_answer_is_preferred():
    assert [misjudgement(GOLDEN, r) for r in REWARDS] == [0, 0.5, 1.0, 0]


@pytest.mark.parametrize(
    ("likelihood", "expected"),
    [("geometric", 0.161352), ("logprob", 3.75), ("raw", 4.6788e-14), ("uniform", 1.5)],
)
def test_discrepancy_matches_the_worked_example(likelihood, expected):
    weights = weight(np.array(LOGPROBS), np.array(TOKENS, float), likelihood).tolist()
    errors = [misjudgement(GOLDEN, r) for r in REWARDS]
    assert discrepancy(weights, errors) == pytest.approx(expected, rel=1e-4)


def test_fewer_candidates_are_scaled_to_k():
    assert discrepancy([1.0, 1.0], [0.5, 0.0], k=30) == 0.5 / 2 * 30


def rows(**columns):
    kinds = {
        "reward": pa.float64(),
        "rewards_contrast": pa.list_(pa.float64()),
        "logprobs_contrast": pa.list_(pa.float64()),
        "tokens_contrast": pa.list_(pa.int32()),
    }
    return pa.table({name: pa.array(columns[name], kind) for name, kind in kinds.items()})


def scored(step, **columns):
    return step.load(Path())(rows(**columns)).to_pylist()


def test_the_step_gives_the_worked_example_with_skipped_likelihoods_as_null():
    (row,) = scored(
        Seam(k=4),
        reward=[GOLDEN],
        rewards_contrast=[REWARDS],
        logprobs_contrast=[[None, -30.0, -60.0, None]],
        tokens_contrast=[[None, 20, 20, None]],
    )
    assert row == {
        "seam_contrast": pytest.approx(-0.161352, rel=1e-5),
        "discrepancy_contrast": pytest.approx(0.161352, rel=1e-5),
        "misjudged_contrast": 0.5,
        "candidates_contrast": 4,
        "misjudgements_contrast": [0, 0.5, 1.0, 0],
        "weights_contrast": [None, pytest.approx(0.2231302), pytest.approx(0.0497871), None],
    }


def test_rows_without_a_score_are_null_and_say_how_many_candidates_they_had():
    nothing = {"seam_contrast": None, "discrepancy_contrast": None, "misjudged_contrast": None}
    lists = {"misjudgements_contrast": None, "weights_contrast": None}
    made = scored(
        Seam(),
        reward=[1.0, 1.0, None, 1.0],
        rewards_contrast=[None, [], [2.0], [2.0]],
        logprobs_contrast=[None, [], [None], [None]],
        tokens_contrast=[None, [], [None], [None]],
    )
    assert made == [
        {**nothing, **lists, "candidates_contrast": None},
        {**nothing, **lists, "candidates_contrast": 0},
        {**nothing, **lists, "candidates_contrast": 0},
        # Misjudged, but its likelihood is unknown: an unknown term is no 0.
        {**nothing, "candidates_contrast": 0, "misjudgements_contrast": [1.0], "weights_contrast": [None]},
    ]


def test_a_row_without_misjudgement_scores_exactly_zero():
    (row,) = scored(
        Seam(), reward=[1.0], rewards_contrast=[[0.0]], logprobs_contrast=[[None]], tokens_contrast=[[None]]
    )
    assert (row["seam_contrast"], str(row["seam_contrast"]), row["misjudged_contrast"]) == (0.0, "0.0", 0.0)


def test_a_candidate_without_a_reward_is_left_out_of_the_mean():
    (row,) = scored(
        Seam(k=1, likelihood="uniform"),
        reward=[1.0],
        rewards_contrast=[[None, 3.0, 0.0]],
        logprobs_contrast=[[None, None, None]],
        tokens_contrast=[[None, None, None]],
    )
    assert (row["discrepancy_contrast"], row["candidates_contrast"], row["misjudged_contrast"]) == (1.0, 2, 0.5)


class Rows:
    def __init__(self, **columns):
        self.table = pa.table(columns)

    def rows(self, columns):
        yield self.table.select(list(columns))

    def corpus(self, columns):
        yield from ()

    def noise(self, column):
        return {}


def test_normalising_divides_by_the_spread_of_the_golden_rewards(tmp_path):
    step = Seam(k=1, likelihood="uniform", normalise=True)
    step.prepare(Rows(reward=[0.0, 4.0, None]), tmp_path)
    made = step.load(tmp_path)(
        rows(reward=[0.0], rewards_contrast=[[3.0]], logprobs_contrast=[[None]], tokens_contrast=[[None]])
    )
    assert made["discrepancy_contrast"].to_pylist() == [1.5]
    assert step.reads_all_rows and not Seam().reads_all_rows


def test_normalising_rewards_that_do_not_vary_is_refused(tmp_path):
    with pytest.raises(StepError, match="the golden rewards do not vary"):
        Seam(normalise=True).prepare(Rows(reward=[1.0, 1.0]), tmp_path)


def candidates(*sets):
    kind = pa.list_(pa.struct([("source_row_id", pa.int64()), ("similarity", pa.float32()), ("response", pa.string())]))
    return pa.array(
        [None if s is None else [{"source_row_id": 0, "similarity": 0.8, "response": r} for r in s] for s in sets], kind
    )


def test_only_misjudged_candidates_are_read_by_the_policy_and_the_score_is_the_same():
    prompts, answers = ["p", "q", "r"], ["a b", "c", "d"]
    table = pa.table(
        {
            "prompt": prompts,
            "response": answers,
            "worse_contrast": candidates(["x", "y y", "z z z"], [], None),
        }
    )
    model = FakeModel(path="3")
    table = table.append_column("reward", Reward(reward=model).load(Path())(table)["reward"])
    table = table.append_column("rewards_contrast", Rewards(reward=model).load(Path())(table)["rewards_contrast"])
    scores = {}
    for which in ("misjudged", "all"):
        made = PolicyLogprobs(policy=model, likelihoods=which).load(Path())(table)
        joined = table
        for name in made.schema.names:
            joined = joined.append_column(name, made[name])
        scores[which] = (made, Seam(k=3).load(Path())(joined))
    few, every = scores["misjudged"], scores["all"]
    wanted = [r > table["reward"][0].as_py() for r in table["rewards_contrast"][0].as_py()]
    assert [p is not None for p in few[0]["logprobs_contrast"][0].as_py()] == wanted
    assert any(wanted) and not all(wanted)
    assert None not in every[0]["logprobs_contrast"][0].as_py()
    assert few[0]["logprobs_contrast"].to_pylist()[1:] == [[], None]
    assert few[1]["seam_contrast"].to_pylist() == every[1]["seam_contrast"].to_pylist()


def test_scores_that_cannot_be_compared_become_null():
    assert [finite(v) for v in (1.0, float("nan"), float("inf"), None)] == [1.0, None, None, None]


def test_a_step_without_its_model_names_the_recipe_key():
    for step, role in zip(seam("contrast")[:3], ("reward", "reward", "policy"), strict=True):
        with pytest.raises(ModelError, match=f"no {role} model; give the recipe"):
            step.load(Path())


def test_of_rewards_of_0_and_1_a_false_positive_is_misjudged_and_ties_at_0_are_not():
    assert [misjudgement(1, 1, True), misjudgement(1, 0, True)] == [1, 0]
    assert np.isnan([misjudgement(0, 1, True), misjudgement(0, 0, True), misjudgement(1, 0.5, True)]).all()
    rows = pa.table(
        {
            "reward": pa.array([1.0, 1.0, 0.0, None]),
            "rewards_contrast": [[1.0, 0.0, 0.5], [0.0, 0.0], [1.0, 0.0], [1.0]],
            "logprobs_contrast": pa.array([[-2.0, None, None], [None, None], [-1.0, None], [-1.0]]),
            "tokens_contrast": pa.array([[2, None, None], [None, None], [1, None], [1]], pa.list_(pa.int32())),
        }
    )
    scored = Seam(k=10, binary=True).load(Path())(rows)
    # exp(−2/2) over the two candidates that have a reward of 0 or 1, scaled to 10.
    assert scored["seam_contrast"].to_pylist() == [pytest.approx(-np.exp(-1) / 2 * 10), 0, None, None]
    assert scored["misjudged_contrast"].to_pylist() == [0.5, 0, None, None]
    assert scored["candidates_contrast"].to_pylist() == [2, 2, 0, 0]
    assert scored["misjudgements_contrast"].to_pylist() == [[1, 0, None], [0, 0], None, None]


def test_the_policy_reads_the_false_positives_of_rewards_of_0_and_1():
    worse = [[{"response": "a"}, {"response": "b"}]] * 2
    rows = pa.table(
        {
            "prompt": ["p", "q"],
            "worse_contrast": worse,
            "reward": [1.0, 0.0],
            "rewards_contrast": [[1.0, 0.0], [1.0, 1.0]],
        }
    )
    tokens = PolicyLogprobs(policy=FakeModel(), binary=True).load(Path())(rows)["tokens_contrast"].to_pylist()
    assert tokens == [[2, None], [None, None]]


def test_whether_rewards_are_0_or_1_is_no_part_of_an_identity_that_does_not_say_so():
    assert "binary" not in Seam().identity() and "binary" not in PolicyLogprobs(policy=FakeModel()).identity()
    assert Seam(binary=True).identity()["binary"] is True
    with pytest.raises(ValueError, match="leave normalise or binary out"):
        Seam(binary=True, normalise=True)


def of_policy(**settings):
    return Seam(variant="policy", **settings)


def policy_rows(*rows):
    """Rows of (golden reward, [(reward, count)])."""
    listed = [
        {
            "reward": golden,
            "rewards_policy": None if samples is None else [reward for reward, _ in samples],
            "worse_policy": None
            if samples is None
            else [{"response": f"{i}", "count": count} for i, (_, count) in enumerate(samples)],
        }
        for golden, samples in rows
    ]
    kinds = [("reward", pa.float64()), ("rewards_policy", pa.list_(pa.float64()))]
    sample = pa.struct([("response", pa.string()), ("count", pa.int32())])
    return pa.Table.from_pylist(listed, pa.schema([*kinds, ("worse_policy", pa.list_(sample))]))


def test_seam_over_the_policy_s_samples_weighs_each_by_how_often_it_was_drawn():
    # ε = .5 three times, 0 four times, and one sample whose reward is unknown: 30/7 · 1.5 over 7 samples.
    rows = policy_rows((1.0, [(1.5, 3), (0.2, 4), (None, 1)]))
    (row,) = of_policy().load(Path())(rows).to_pylist()
    assert row["discrepancy_policy"] == pytest.approx(30 / 7 * 1.5)
    assert row["seam_policy"] == -row["discrepancy_policy"]
    assert (row["misjudged_policy"], row["candidates_policy"]) == (3 / 7, 7)
    assert (row["misjudgements_policy"], row["weights_policy"]) == ([0.5, 0.0, None], [3.0, 4.0, 1.0])
    assert row["seam_reason_policy"] is None
    # The same set, each sample by itself.
    single = policy_rows((1.0, [(1.5, 1)] * 3 + [(0.2, 1)] * 4 + [(None, 1)]))
    (alone,) = of_policy().load(Path())(single).to_pylist()
    assert alone["seam_policy"] == pytest.approx(row["seam_policy"]) and alone["candidates_policy"] == 7


def test_samples_that_a_source_brings_count_once_each():
    rows = pa.table(
        {"reward": [1.0], "rewards_policy": [[2.0, 0.0]], "worse_policy": [[{"response": "a"}, {"response": "b"}]]}
    )
    (row,) = of_policy(k=2).load(Path())(rows).to_pylist()
    assert (row["seam_policy"], row["misjudged_policy"], row["candidates_policy"]) == (-1.0, 0.5, 2)


def test_seam_over_samples_says_why_it_is_null():
    rows = policy_rows((None, [(1.0, 2)]), (1.0, None), (1.0, []), (1.0, [(None, 2)]))
    scored = of_policy().load(Path())(rows)
    assert scored["seam_policy"].null_count == 4
    assert scored["seam_reason_policy"].to_pylist() == [
        "no golden response, or it has no reward",
        "no sample, see reason_policy",
        "no sample, see reason_policy",
        "no sample has a reward",
    ]


def test_of_rewards_of_0_and_1_samples_that_pass_are_false_positives():
    rows = policy_rows((1.0, [(1.0, 2), (0.0, 6)]), (0.0, [(1.0, 8)]))
    passed, failed = of_policy(binary=True, k=8).load(Path())(rows).to_pylist()
    assert (passed["seam_policy"], passed["misjudged_policy"]) == (-2.0, 0.25)
    assert failed["seam_policy"] is None and failed["seam_reason_policy"] == "the golden response fails the reward"


def test_no_likelihood_weighs_the_policy_s_samples():
    assert of_policy().likelihood == "uniform" and of_policy(likelihood="uniform").likelihood == "uniform"
    with pytest.raises(ValidationError, match="a likelihood would weigh them twice; leave likelihood out"):
        of_policy(likelihood="geometric")
    assert [step.name for step in seam("policy")] == ["reward", "rewards_policy", "seam_policy"]
    with pytest.raises(ValueError, match="scores no likelihood; leave likelihoods out"):
        seam("policy", likelihoods="all")
    text = "rows: {jsonl: r.jsonl}\nsteps:\n  - seam: {variant: policy, policy: {fake: p}}"
    with pytest.raises(RecipeError, match=r"recipe:3: steps\[0\].seam: .* leave policy out"):
        loads(text)


def test_a_negative_log_likelihood_is_no_log_probability():
    row = {
        "reward": 0.5,
        "rewards_contrast": [0.9, 0.1],
        "logprobs_contrast": [12.5, None],
        "tokens_contrast": [2, None],
    }
    message = "step seam_contrast: logprobs_contrast holds 12.5, and no log-probability is above 0"
    with pytest.raises(StepError, match=message):
        Seam(k=2).load(Path())(pa.Table.from_pylist([row]))
    rounded = row | {"logprobs_contrast": [1e-6, None]}
    (scored,) = Seam(k=2).load(Path())(pa.Table.from_pylist([rounded])).to_pylist()
    assert scored["seam_contrast"] == pytest.approx(-0.4)


@pytest.mark.parametrize(("variant", "misjudged"), [("gpt", 1 / 2), ("policy", 1 / 4)])
def test_the_golden_response_is_not_preferred_to_itself_by_rounding(variant, misjudged):
    row = {
        "response": "A collection.",
        f"worse_{variant}": [{"response": "A collection.", "count": 3}, {"response": "a collection.", "count": 1}],
        "reward": 0.5,
        f"rewards_{variant}": [0.5 + 1e-7, 0.9],
        f"logprobs_{variant}": [-1.0, 0.0],
        f"tokens_{variant}": [1, 1],
    }
    (values,) = Seam(k=2, variant=variant).load(Path())(pa.Table.from_pylist([row])).to_pylist()
    assert values[f"misjudgements_{variant}"] == [0.0, pytest.approx(0.4)]
    assert values[f"misjudged_{variant}"] == misjudged
    assert values[f"seam_{variant}"] == pytest.approx(-0.4 * 2 / (2 if variant == "gpt" else 4))
    # Without texts, as a source may bring its scores, the rewards decide.
    (bare,) = (
        Seam(k=2, variant="gpt")
        .load(Path())(
            pa.Table.from_pylist([{name.replace(variant, "gpt"): row[name] for name in row if "worse" not in name}])
        )
        .to_pylist()
    )
    assert bare["misjudged_gpt"] == 1.0


def test_texts_of_another_number_than_rewards_are_refused(tmp_path):
    row = {
        "prompt": "q",
        "response": "a",
        "reward": 0.0,
        "rewards_gpt": [1.0],
        "logprobs_gpt": [-1.0],
        "tokens_gpt": [1],
    }
    table = pa.Table.from_pylist([row | {"worse_gpt": [{"response": "a"}, {"response": "b"}]}])
    pq.write_table(table, tmp_path / "rows.parquet")
    recipe = Recipe(rows=Source(parquet=str(tmp_path / "rows.parquet")), steps=(Seam(variant="gpt"),))
    with pytest.raises(StepError, match=r"row 0 has 1 values in 'rewards_gpt' and 2 in 'worse_gpt'"):
        run_local(recipe, tmp_path / "store")


@pytest.mark.parametrize("step", [Reward(reward=FakeModel()), Rewards(reward=FakeModel())], ids=lambda step: step.name)
def test_facts_hold_one_table_at_a_time(step, tmp_path):
    draw = np.random.default_rng(0)
    before, most = pa.total_allocated_bytes(), 0

    def tables():
        nonlocal most
        for _ in range(20):
            # Added to 0, they are Arrow's memory and not NumPy's.
            values = pc.add(pa.array(draw.standard_normal(8192 * 30)), 0.0)
            if step.name != "reward":
                values = pa.ListArray.from_arrays(pa.array(np.arange(0, 8192 * 30 + 1, 30, dtype=np.int32)), values)
            yield pa.table({step.name: values})
            del values
            most = max(most, pa.total_allocated_bytes() - before)

    facts = step.facts(tables(), tmp_path)
    assert facts["scored"] == 20 * 8192 * 30 and facts["null"] == 0
    assert most < 4 * 8192 * 30 * 8
