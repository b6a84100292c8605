"""Recipes: the same names in YAML and Python, and errors that name the file, the line and the key."""

from __future__ import annotations

from pathlib import Path

import pytest
from pydantic import ValidationError

from seamcurate import (
    CausalLM,
    Models,
    Random,
    Recipe,
    Retrieve,
    SentenceEncoder,
    SequenceClassifier,
    Source,
    Split,
    rer,
    seam,
)
from seamcurate.errors import RecipeError
from seamcurate.run.recipe import loads

BUNDLED = Path(__file__).parents[2] / "recipes"
TEXT = """\
rows:   {parquet: rl.parquet, prompt: question, response: answer}
corpus: {jsonl: [a.jsonl, b.jsonl], prompt: question, response: answer}
models:
  policy:  {causal_lm: my-org/sft-7b, dtype: bfloat16}
  reward:  {sequence_classifier: my-org/rm-7b}
  encoder: {sentence_encoder: princeton-nlp/sup-simcse-roberta-base, pooling: pooler}
steps:
  - retrieve: {k: 20, band: [0.7, 0.9]}
  - seam: {variant: contrast, likelihood: uniform}
  - rer: {words: whitespace}
  - random
splits:
  train: {filter: keep_above_lowest.sql, rate: 0.3, by: seam_contrast}
  mine:  {filter: "SELECT row_id FROM rows WHERE reward > $least", least: 1.5, format: sft}
"""


def test_yaml_and_python_spell_the_same_recipe(tmp_path):
    keep = (BUNDLED / "keep_above_lowest.sql").read_text()
    assert loads(TEXT, tmp_path) == Recipe(
        rows=Source(parquet=str(tmp_path / "rl.parquet"), prompt="question", response="answer"),
        corpus=Source(
            jsonl=[str(tmp_path / "a.jsonl"), str(tmp_path / "b.jsonl")], prompt="question", response="answer"
        ),
        models=Models(
            policy=CausalLM(path="my-org/sft-7b", dtype="bfloat16"),
            reward=SequenceClassifier(path="my-org/rm-7b"),
            encoder=SentenceEncoder(path="princeton-nlp/sup-simcse-roberta-base", pooling="pooler"),
        ),
        steps=(
            Retrieve(k=20, band=(0.7, 0.9)),
            *seam("contrast", likelihood="uniform"),
            *rer(words="whitespace"),
            Random(),
        ),
        splits={
            "train": Split(filter=keep, rate=0.3, by="seam_contrast"),
            "mine": Split(filter="SELECT row_id FROM rows WHERE reward > $least", least=1.5, format="sft"),
        },
    )


def test_steps_take_the_recipes_models_by_role_unless_they_name_their_own(tmp_path):
    own = SentenceEncoder(path="facebook/contriever", pooling="mean", normalise=False)
    text = TEXT.replace(
        "rer: {words: whitespace}",
        "rer: {encoder: {sentence_encoder: facebook/contriever, pooling: mean, normalise: false}}",
    )
    recipe = loads(text, tmp_path)
    ready = {step.name: step for step in recipe.ready()}
    assert ready["worse_contrast"].encoder == recipe.models.encoder
    assert ready["rewards_contrast"].reward == ready["reward"].reward == recipe.models.reward
    assert ready["logprobs_contrast"].policy == recipe.models.policy
    assert ready["rer_query_relevance"].encoder == ready["query_type"].encoder == own


def test_a_step_listed_twice_runs_once(tmp_path):
    models = "models: {policy: {fake: p}, reward: {fake: r}}\n"
    recipe = loads(f"rows: {{parquet: a}}\n{models}steps: [reward, seam: {{}}, random, random]\n", tmp_path)
    names = [step.name for step in recipe.ready()]
    assert names == ["reward", "rewards_contrast", "logprobs_contrast", "seam_contrast", "baseline_random"]


def test_a_step_without_its_model_is_refused_before_anything_runs(tmp_path):
    recipe = loads("rows: {parquet: a}\nmodels: {reward: {fake: r}}\nsteps: [seam: {}]\n", tmp_path)
    with pytest.raises(
        RecipeError, match=r"step logprobs_contrast has no policy model; .*`models: {policy: {causal_lm: …}}`"
    ):
        recipe.ready()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            ("steps:", "stepz:"),
            "mine.yaml:7: stepz: unknown key; a recipe has: rows, corpus, models, steps, splits; did you mean `steps`?",
        ),
        (("k: 20", "kk: 20"), "mine.yaml:8: steps[0].retrieve.kk: unknown key; there are: k, band, encoder"),
        (
            ("variant: contrast", "varient: contrast"),
            "mine.yaml:9: steps[1].seam.varient: unknown key; there are: variant, reward, policy, likelihoods, "
            "likelihood, k, normalise",
        ),
        (
            ("variant: contrast", "variant: gtp"),
            "mine.yaml:9: steps[1].seam.variant: input should be 'contrast', 'gpt', 'adv', 'policy', 'probe' or 'given', found 'gtp'",
        ),
        (("k: 20", "k: many"), "mine.yaml:8: steps[0].retrieve.k: input should be a valid integer"),
        (("[0.7, 0.9]", "[0.9, 0.7]"), "mine.yaml:8: steps[0].retrieve.band: a band is [low, high]"),
        (
            ("- random", "- randem"),
            "mine.yaml:11: steps[3].randem: unknown step; there are: retrieve, generate, attack, rollouts, probes, seam,",
        ),
        (
            ("dtype: bfloat16", "dtyp: bfloat16"),
            "mine.yaml:4: models.policy.dtyp: unknown key; there are: causal_lm, ",
        ),
        (
            ("causal_lm: my-org", "causal_llm: my-org"),
            "mine.yaml:4: models.policy: name a model by one of: causal_lm, completion_server, fake; "
            "did you mean `causal_lm`?",
        ),
        (("policy: ", "polycy: "), "mine.yaml:4: models.polycy: unknown key; there are: policy, reward, encoder, base"),
        (
            ("{parquet: rl.parquet,", "{parquet: rl.parquet, csv: x,"),
            "mine.yaml:1: rows: rows come from one of hub, parquet, jsonl, csv, arrow, store (or data, in Python), not parquet and csv",
        ),
        (
            ("prompt: question, response: answer}\nc", "promt: q}\nc"),
            "mine.yaml:1: rows.promt: unknown key; there are: hub",
        ),
        (
            ("keep_above_lowest.sql", "keep_abov.sql"),
            "mine.yaml:13: splits.train.filter: no filter 'keep_abov.sql' in ",
        ),
        (("  mine:", "  a b:"), "mine.yaml:12: splits: a split's name is letters, digits, _ and -, not 'a b'"),
        (
            ("  mine:", "  TRAIN:"),
            "mine.yaml:12: splits: splits train and TRAIN differ in case alone; call one of them something else",
        ),
        (("corpus: ", "rows: "), "mine.yaml:2: key 'rows' is given twice"),
        (("steps:\n", "steps: {}\nx:\n"), "mine.yaml:8: x: unknown key"),
        (("models:", "models: ["), "mine.yaml:5: not readable as YAML: "),
        (("format: sft", "format: ppo"), "mine.yaml:14: splits.mine.format: input should be 'prompts', 'sft'"),
    ],
)
def test_errors_name_file_line_and_key_in_one_line(tmp_path, change, message):
    file = tmp_path / "mine.yaml"
    assert change[0] in TEXT
    file.write_text(TEXT.replace(*change, 1))
    with pytest.raises(RecipeError) as refused:
        Recipe.load(file)
    text = str(refused.value).replace(str(tmp_path) + "/", "", 1)
    assert text.startswith(message) and "\n" not in text


NINE = [", ".join([f"*{letter}"] * 9) for letter in "abcdef"]
BOMB = "a: &a [x, x]\n" + "".join(f"{name}: &{name} [{nine}]\n" for name, nine in zip("bcdefg", NINE, strict=True))


@pytest.mark.slow
@pytest.mark.parametrize(
    ("text", "message"),
    [
        (BOMB + "rows: {parquet: a}", "recipe:1: aliases .* make it too large"),
        ("rows: {parquet: a}\nsteps: &a [*a]", "recipe:2: aliases .* make it too large, or it is too deep"),
        ("rows: &a {parquet: *a}", "recipe:1: aliases .* make it too large, or it is too deep"),
        ("steps: " + "[" * 5000 + "]" * 5000, "recipe:1: maximum recursion depth exceeded"),
        (f"steps: [random: {{seed: {'9' * 5000}}}]", "recipe:1: Exceeds the limit"),
        ("steps: 2020-13-32", "recipe:1: month must be in 1..12"),
        (
            f"rows: {{parquet: a, shard_rows: {10**30}}}",
            "recipe:1: rows.shard_rows: input should be less than or equal",
        ),
    ],
)
def test_yaml_that_is_too_much_is_refused_in_one_line(text, message):
    with pytest.raises(RecipeError, match=message) as refused:
        loads(text)
    assert "\n" not in str(refused.value)


def test_a_misspelt_name_is_answered_with_the_nearest():
    from seamcurate.text import suggestion

    names = ["retrieve", "generate", "reward", "rewards"]
    assert [suggestion(name, names) for name in ("retreive", "Generate", "rewads", "zzz", "")] == [
        "; did you mean `retrieve`?",
        "; did you mean `generate`?",
        "; did you mean `rewards`?",
        "",
        "",
    ]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("rows: {jsonl: a}\nmodels: {policy: {causal_lm: m, revison: v}}", "policy.revison: .*did you mean `revision`"),
        ("rows: {jsonl: a}\nsplits: {a: {filter: lowst.sql}}", "bundled are: .*; did you mean `lowest.sql`"),
        ("rows: {jsonl: a}\nsteps: [retreive]", "unknown step; .*; did you mean `retrieve`"),
        ("rows: {jsonl: a}\nmodels: {policy: {completion_server: http://x}}", "models.policy.model: field required$"),
        (
            "rows: {jsonl: a}\nmodels: {reward: {ensemble: [{fake: a}, {functoin: f}]}}",
            r"models.reward.ensemble\[1\]: name a model by one of: .*; did you mean `function`",
        ),
        ("rows: {jsonl: a, refernce: r}", "shard_rows; did you mean `reference`"),
        ("rows:\n\tjsonl: a\n", "recipe:2: not readable as YAML: .*; indent with spaces, not tabs"),
    ],
)
def test_misspelt_keys_and_filters_and_tabs_name_the_way_out(text, message):
    with pytest.raises(RecipeError, match=message) as refused:
        loads(text)
    assert "\n" not in str(refused.value)


def test_a_recipe_in_json_is_a_recipe(tmp_path):
    (tmp_path / "r.json").write_text('{"rows": {"parquet": "a"}, "steps": ["random"]}')
    assert Recipe.load(tmp_path / "r.json").steps == (Random(),)


def test_a_bundled_filter_and_its_parameters_are_the_same_in_python(tmp_path, monkeypatch):
    text = "rows: {parquet: a}\nsplits: {s: {filter: keep_above_lowest.sql, rate: 0.3, by: reward}}\n"
    own = Split(filter="keep_above_lowest.sql", rate=0.3, by="reward")
    assert own == loads(text, tmp_path).splits["s"] and own.filter.startswith("-- Drop the lowest")
    assert own.bound(["reward"])[1] == {"rate": 0.3, "by": "reward", "nulls": "keep", "seed": 0}
    monkeypatch.chdir(tmp_path)
    Path("mine.sql").write_text("SELECT row_id FROM rows")
    assert Split(filter="mine.sql").filter == "SELECT row_id FROM rows"
    with pytest.raises(RecipeError, match=r"no filter 'keep_abve_lowest.sql' .*; did you mean `keep_above_lowest.sql`"):
        Split(filter="keep_abve_lowest.sql")
    sql = "SELECT row_id FROM rows -- as in lowest.sql"
    assert Split(filter=sql).filter == sql


def test_a_recipe_that_is_not_there_is_answered_with_one_that_is(tmp_path):
    (tmp_path / "recipe.yaml").write_text("")
    with pytest.raises(RecipeError, match=r"No such file or directory; did you mean `recipe.yaml`\?"):
        Recipe.load(tmp_path / "recipes.yaml")
    with pytest.raises(RecipeError, match=r"it is a folder; a recipe is a YAML file"):
        Recipe.load(tmp_path)


def test_an_empty_file_and_a_missing_one_are_named(tmp_path):
    with pytest.raises(RecipeError, match="1: a recipe needs `rows`"):
        loads("", tmp_path)
    with pytest.raises(RecipeError, match=r"recipe .*gone\.yaml cannot be read: No such file"):
        Recipe.load(tmp_path / "gone.yaml")


def test_yaml_that_would_run_code_is_only_text(tmp_path):
    for text in (
        'rows: !!python/object/apply:os.mkdir ["ran"]',
        "rows: !!python/name:os.system x",
        "a: !!python/tuple [1]",
    ):
        with pytest.raises(RecipeError):
            loads(text, tmp_path)
    assert not Path("ran").exists()


def test_models_in_the_recipes_folder_are_found_there(tmp_path):
    (tmp_path / "models/reward").mkdir(parents=True)
    text = (
        "rows: {parquet: a}\nmodels: {reward: {sequence_classifier: models/reward}, policy: {causal_lm: models/none}}\n"
    )
    models = loads(text, tmp_path).models
    assert models.reward.path == str(tmp_path / "models/reward") and models.policy.path == "models/none"


def test_python_values_are_checked_like_yaml():
    with pytest.raises(ValidationError, match="a split's name"):
        Recipe(rows=Source(parquet="a"), splits={"a/b": Split(filter="SELECT 1")})
    with pytest.raises(ValidationError):
        Retrieve(kk=3)


@pytest.mark.parametrize("file", sorted(BUNDLED.glob("*.yaml")), ids=lambda f: f.name)
def test_bundled_recipes_can_be_read_and_open_with_what_they_do(file):
    recipe = Recipe.load(file)
    assert recipe.steps and file.read_text().startswith("# ")


@pytest.mark.parametrize("file", sorted(BUNDLED.glob("*.sql")), ids=lambda f: f.name)
def test_bundled_filters_open_with_what_they_do(file):
    assert file.read_text().startswith("-- ") and "row_id" in file.read_text()
