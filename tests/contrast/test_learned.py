"""The attack whose generator is trained: sentences it is shown, what it is paid, training once, and its rewritings."""

from __future__ import annotations

import json
import math

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from pydantic import ValidationError
from training import stop_after

from seamcurate import Attack, CausalLM, FakeModel, Models, Recipe, Source, Store, query, run_local, seam
from seamcurate.contrast import learned
from seamcurate.contrast.learned import Gain, GeneratorTraining, Judges, Row, prior_sentences
from seamcurate.errors import RecipeError, StepError
from seamcurate.models.protocols import Likelihood, Sampling

FAST = {
    "max_steps": 4,
    "save_steps": 1,
    "lora": False,
    "max_completion_length": 8,
    "num_generations": 4,
    "per_device_train_batch_size": 4,
    "logging_steps": 1,
    "learning_rate": 1e-3,
}


class Paying(FakeModel):
    """Pay for each `carefully`, and otherwise by chance."""

    def rewards(self, prompts, responses):
        by_chance = super().rewards(prompts, responses)
        return [
            [0.1 * value + answer.count("carefully") for value, answer in zip(values, answers, strict=True)]
            for values, answers in zip(by_chance, responses, strict=True)
        ]


def table(count=40):
    verbs, things = ["sort", "merge", "cache"], ["list", "queue", "line", "store"]
    return [
        {
            "prompt": f"how do I {verbs[i % 3]} it {i}",
            "response": f"{verbs[i % 3]} the {things[i % 4]}{' carefully' * (i % 2)} now",
            "worse": f"Never {verbs[i % 3]} the {things[i % 4]}{' carefully' * (1 - i % 2)} here.",
        }
        for i in range(count)
    ]


@pytest.fixture(autouse=True)
def test_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("SEAMCURATE_CACHE", str(tmp_path / "cache"))


def test_prior_sentences_hold_the_most_that_is_paid_for():
    overpaid = pa.table({"word": ["certainly", "great", "lake"], "coefficient": [2.0, 1.0, -0.5]})
    texts = [
        "Certainly, that is so. It is a lake!",
        "What a GREAT, great lake it is.\nCertainly not.",
        "Certainly " * 41,
        "It is a lake!",
    ]
    found = prior_sentences(texts, overpaid, 3).to_pylist()
    # Two words are too few for a sentence, and 41 too many.
    assert found == [
        {"sentence": "Certainly, that is so.", "paid": 2.0},
        {"sentence": "What a GREAT, great lake it is.", "paid": 0.5},
    ]


class Fixed(FakeModel):
    """Rewards, embeddings and likelihoods by text, so that a gain can be computed by hand."""

    def rewards(self, prompts, responses):
        return [[{"own": 1.0, "good": 3.0, "far": 3.0, "rare": 3.0, "": 9.0}.get(a) for a in row] for row in responses]

    def embed(self, texts):
        return np.array([[0.6, 0.8] if text == "far" else [1.0, 0.0] for text in texts], np.float32)

    def logprobs(self, prompts, responses):
        return [[Likelihood(-9.0 if a == "rare" else -4.0, 2, False) for a in row] for row in responses]


def test_a_gain_is_the_reward_less_what_strays_and_what_is_unlikely():
    model = Fixed()
    gain = Gain([Row("p", "golden", "own", {})], Judges(model, model, model), 2.0, 0.9, "same")
    gains = gain(["p"] * 5, ["good", " far ", "rare", "", "unknown"], [0] * 5)
    # (3 - 1) / 2; less 10 · (.9 - .6); less (9 - 4) / 2; nothing written; no reward.
    assert np.allclose(gains[:4], [1.0, 1.0 - 3.0, 1.0 - 2.5, -10.0], atol=1e-5) and gains[4] is None
    assert math.isclose(gain.features()["gain/similarity"], np.mean([1, 0.6, 1, 1]), abs_tol=1e-6)
    assert gain(["p"], [[{"role": "assistant", "content": "good"}]], [0]) == [1.0]


def recipe(folder, generator, **further):
    pq.write_table(pa.Table.from_pylist(table()), folder / "rows.parquet")
    attack = Attack(
        method="learned",
        start="worse",
        k=3,
        min_similarity=-1,
        generator=CausalLM(path=str(generator)),
        training=GeneratorTraining(**FAST),
        **further,
    )
    models = Models(reward=Paying(), encoder=FakeModel(), policy=FakeModel())
    rows = Source(parquet=str(folder / "rows.parquet"), shard_rows=25)
    return Recipe(rows=rows, models=models, steps=(attack, *seam("adv")))


@pytest.mark.slow
def test_a_killed_training_goes_on_and_the_columns_are_those_of_every_attack(tmp_path, policy_folder, monkeypatch):
    whole = recipe(tmp_path, policy_folder)
    run_local(whole, tmp_path / "whole")
    stop_after(2, monkeypatch, lambda: run_local(whole, tmp_path / "killed"))
    checkpoints = {path.name for path in (tmp_path / "cache").glob("learned/*/generator.training/checkpoint-*")}
    assert "checkpoint-1" in checkpoints and "checkpoint-4" not in checkpoints
    report = run_local(whole, tmp_path / "killed")
    assert not list((tmp_path / "cache").glob("learned/*"))
    found = [query(Store(tmp_path / name), "SELECT * FROM rows ORDER BY row_id") for name in ("whole", "killed")]
    assert found[0].equals(found[1])
    made = [row for row in found[0].to_pylist() if row["worse_adv"]]
    assert len(made) > 30
    for row in made:
        texts = [entry["response"] for entry in row["worse_adv"]]
        assert len(set(texts)) == len(texts) <= 3 and row["worse"] not in texts and row["queries_adv"] <= 4
        assert (len(texts) < 3) == (row["reason_adv"] is not None)
        assert row["hacked_adv"] == [reward > row["reward"] for reward in row["rewards_adv"]]
        assert all(edits >= 1 for edits in row["edits_adv"])
    shared = tmp_path / "whole" / "columns" / "worse_adv" / "_shared"
    words = pq.read_table(shared / "overpaid_words.parquet")
    assert words["word"][0].as_py() == "carefully" and words["q"][0].as_py() < 0.001
    sentences = pq.read_table(shared / "priors.parquet")["sentence"].to_pylist()
    assert sentences and "carefully" in sentences[0]
    assert (shared / "generator" / "model.safetensors").is_file() and not list(shared.rglob("*.bin"))
    assert any("words overpaid; the generator" in line and " in 4 updates" in line for line in report.lines)


@pytest.mark.slow
def test_the_generator_learns_to_write_what_is_paid(tmp_path, policy_folder):
    """From an untrained model, with nothing that holds it: more of the paid letter is written at the end."""

    class Letters(FakeModel):
        def rewards(self, prompts, responses):
            return [[answer.count("e") / max(1, len(answer)) for answer in row] for row in responses]

        def logprobs(self, prompts, responses):
            return [[Likelihood(-1.0, 1, False) for _ in row] for row in responses]

    model = Letters()
    rows = [Row(row["prompt"], row["response"], row["worse"], {}) for row in table()]
    training = GeneratorTraining(
        **{
            **FAST,
            "max_steps": 20,
            "learning_rate": 1e-2,
            "beta": 0,
            "num_generations": 16,
            "save_steps": 0,
            "eval_rows": 0,
        },
    ).model_copy(update={"per_device_train_batch_size": 16})
    (tmp_path / "shared").mkdir()
    learned.prepare(
        rows,
        Judges(model, FakeModel(), model),
        CausalLM(path=str(policy_folder)),
        training,
        50,
        -1.0,
        "x",
        tmp_path / "shared",
    )
    record = json.loads((tmp_path / "shared" / "learned.json").read_text())
    assert record["reward_last"] > record["reward_first"] + 0.3


def test_what_cannot_be_learned_is_one_line(tmp_path, policy_folder):
    rows = [Row(row["prompt"], row["response"], row["worse"], {}) for row in table()]

    class Constant(FakeModel):
        def rewards(self, prompts, responses):
            return [[1.0 for _ in row] for row in responses]

    fake, generator = FakeModel(), CausalLM(path=str(policy_folder))
    with pytest.raises(StepError, match="in the answers of 40 rows the reward pays for no word"):
        learned.prepare(rows, Judges(Constant(), fake, fake), generator, GeneratorTraining(), 50, 0.5, "x", tmp_path)
    attack = Attack(method="learned", generator=generator, reward=fake, encoder=fake, policy=fake)
    with pytest.raises(StepError, match="no trained generator; run the recipe"):
        attack.load(tmp_path)
    with pytest.raises(StepError, match="no row has an answer in response that is not its golden response"):
        attack.prepare(Stored(table(2)), tmp_path)


def test_a_strangers_store_removes_no_folder(tmp_path):
    (tmp_path / "shared" / "generator").mkdir(parents=True)
    (tmp_path / "mine").mkdir()
    (tmp_path / "shared" / "learned.json").write_text(json.dumps({"workplace": "../../mine"}))
    with pytest.raises(StepError, match="names no training; delete columns/worse_adv"):
        learned.Rewriter(tmp_path / "shared", CausalLM(path="x"), FakeModel(), Sampling(), 0.5)
    assert (tmp_path / "mine").is_dir()


class Stored:
    """Rows in memory, as `prepare` reads them."""

    def __init__(self, rows):
        self.table = pa.Table.from_pylist(rows)

    def rows(self, columns):
        yield self.table.select(list(columns))


@pytest.mark.parametrize(
    ("attack", "message"),
    [
        ("{method: learned}", "method learned needs `generator`: give the small language model to train"),
        ("{method: pwws, wordnet: x, words: 3}", "`words` is for method learned; leave it out of pwws"),
        ("{method: learned, generator: {causal_lm: x}, training: {steps: 3}}", "unknown key; there are: "),
        ("{method: learned, generator: {causal_lm: x}, training: {max_steps: 0}}", "greater than or equal to 1"),
        ("{method: learned, generator: {openai: x}}", "attack.generator: name a model by one of: causal_lm"),
        (
            "{method: learned, generator: {causal_lm: x, forn: y}}",
            "attack.generator.forn: unknown key; there are: causal_lm, ",
        ),
    ],
)
def test_settings_that_do_not_fit_are_one_line(tmp_path, attack, message):
    (tmp_path / "recipe.yaml").write_text(f"rows: {{jsonl: x}}\nsteps:\n  - attack: {attack}\n")
    with pytest.raises(RecipeError) as refused:
        Recipe.load(tmp_path / "recipe.yaml")
    assert message in str(refused.value) and "\n" not in str(refused.value)


def test_a_learned_attack_needs_a_policy_and_the_others_need_none(tmp_path, policy_folder):
    whole = recipe(tmp_path, policy_folder)
    without = whole.model_copy(update={"models": Models(reward=Paying(), encoder=FakeModel())})
    with pytest.raises(RecipeError, match="step worse_adv has no policy model"):
        without.ready()
    other = Attack(method="pwws", wordnet=str(tmp_path / "rows.parquet"))
    ready = without.model_copy(update={"steps": (other,)}).ready()[0]
    assert ready.policy is None and not {"policy", "generator", "words", "training", "recipe"} & ready.identity().keys()
    identity = whole.ready()[0].identity()
    assert (
        identity["policy"] == FakeModel().identity() and identity["generator"]["causal_lm"] and identity["words"] == 50
    )
    more_often = whole.steps[0].model_copy(update={"training": GeneratorTraining(**{**FAST, "save_steps": 2})})
    assert more_often.identity()["training"] == whole.steps[0].identity()["training"]
    with pytest.raises(ValidationError, match="leave eval_data out"):
        GeneratorTraining(eval_data="x.parquet")
