"""The first recipe for data: what is guessed is said, what is written runs, and nothing is overwritten."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from conftest import questions as questions_of
from typer.testing import CliRunner

from seamcurate import Recipe, init, plan, query, run_local
from seamcurate.cli import app
from seamcurate.errors import RecipeError, SourceError

FAKES = {"policy": "fake:policy", "reward": "fake:reward"}


def lines(path: Path, *rows: object) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


@pytest.fixture
def questions(tmp_path) -> tuple[Path, Path]:
    rows = [
        {"question": f"How do I {verb} a {thing}?", "answer": f"To {verb} a {thing}, call {verb}()."}
        for verb in ("sort", "merge", "reverse", "filter", "copy")
        for thing in ("list", "tuple", "queue", "file")
    ]
    return lines(tmp_path / "rows.jsonl", *rows[::2]), lines(tmp_path / "corpus.jsonl", *rows[1::2])


def runs(path: Path, store: Path) -> list[str]:
    """Plan and run a recipe; return the names of its steps."""
    recipe = Recipe.load(path)
    assert plan(recipe, store).rows == run_local(recipe, store).rows > 0
    return [step.name for step in recipe.ready()]


def test_with_a_corpus_and_models_the_band_is_measured_and_the_recipe_runs(tmp_path, questions):
    rows, corpus = questions
    draft = init(rows, tmp_path / "recipe.yaml", corpus, **FAKES, encoder="fake:encoder")
    assert draft.text == draft.path.read_text(encoding="utf-8")
    assert draft.lines[:2] == [
        "prompt is `question`, response is `answer`",
        "corpus: prompt is `question`, response is `answer`",
    ]
    (measured,) = [line for line in draft.lines if line.startswith("band [0.8, 0.9]: about ")]
    assert f"  # Measured: {measured}\n" in draft.text
    assert "rows: {jsonl: rows.jsonl, prompt: question, response: answer}\n" in draft.text
    names = runs(draft.path, tmp_path / "store")
    assert names[0] == "worse_contrast" and {"seam_contrast", "rer_length", "rer_repetition"} <= set(names)


def test_columns_whose_names_are_taken_are_renamed_and_the_recipe_runs(tmp_path, questions):
    taken = {"row_id": 7, "Reward": 0.5, "seam_contrast": -1.0, "source_seam_contrast": 1, "embedding": [1.0]}
    rows, corpus = (
        lines(tmp_path / f"taken-{path.name}", *(json.loads(line) | taken for line in path.read_text().splitlines()))
        for path in questions
    )
    draft = init(rows, tmp_path / "recipe.yaml", corpus, **FAKES, encoder="fake:encoder")
    assert draft.lines[1] == (
        "columns whose names are taken: `row_id` is `source_row_id`, `Reward` is `source_Reward`, "
        "`seam_contrast` is `source_source_seam_contrast`"
    )
    assert (
        draft.lines[3]
        == "corpus: columns whose names are taken: `row_id` is `source_row_id`, `embedding` is `source_embedding`"
    )
    runs(draft.path, tmp_path / "store")
    row = query(tmp_path / "store", "SELECT * FROM rows LIMIT 1").to_pylist()[0]
    assert (row["source_row_id"], row["source_Reward"], row["source_source_seam_contrast"]) == (7, 0.5, -1.0)
    assert row["embedding"] == [1.0] and row["reward"] != 0.5


def test_where_few_rows_are_served_the_recipe_says_what_would_serve_more_and_plan_says_why(tmp_path, questions):
    rows, _ = questions
    corpus = lines(tmp_path / "others.jsonl", {"question": "Who wrote Emma?", "answer": "Jane Austen did."})
    draft = init(rows, tmp_path / "recipe.yaml", corpus, **FAKES, encoder="fake:encoder")
    measured = [line for line in draft.lines if "candidate" in line or "cosine" in line or "twice" in line]
    starts = ["band [0.8, 0.9]", *[f"a band of [{low}, 0.9]" for low in ("0.75", "0.70", "0.60")], "a corpus twice"]
    assert [line.startswith(start) for line, start in zip(measured, starts, strict=True)] == [True] * 5
    assert all(f"# Measured: {line}\n" in draft.text for line in measured)
    warnings = [note for note in plan(Recipe.load(draft.path), tmp_path / "store").notes if note.startswith("warning")]
    assert warnings[0].startswith("warning: fewer than half of the rows") and len(warnings) == 5


@pytest.mark.slow
def test_tiny_real_models_run_by_the_recipe_as_it_is(
    tmp_path, policy_folder, decoder_reward_folder, encoder_reward_folder
):
    shutil.copytree(encoder_reward_folder, tmp_path / "encoder")
    rows = lines(tmp_path / "rows.jsonl", *questions_of(24)[::2])
    corpus = lines(tmp_path / "corpus.jsonl", *questions_of(24)[1::2])
    draft = init(
        rows,
        tmp_path / "recipe.yaml",
        corpus,
        policy=str(policy_folder),
        reward=str(decoder_reward_folder),
        encoder=str(tmp_path / "encoder"),
    )
    assert "encoder: {sentence_encoder: encoder}" in draft.text and "# Measured: band [0.8, 0.9]: " in draft.text
    assert f"policy: {{causal_lm: {policy_folder}}}" in draft.text
    assert "seam_contrast" in runs(draft.path, tmp_path / "store")


@pytest.mark.parametrize(
    ("models", "names"),
    [
        ({}, ["rer_length", "rer_repetition"]),
        ({"reward": "number_match"}, ["reward", "rer_length", "rer_repetition"]),
        (FAKES, ["worse_probe", "reward", "rewards_probe", "logprobs_probe", "seam_probe"]),
    ],
)
def test_each_set_of_models_gives_the_steps_that_it_can_run(tmp_path, questions, models, names):
    draft = init(questions[0], tmp_path / "recipe.yaml", **models)
    ready = runs(draft.path, tmp_path / "store")
    assert ready[: len(names)] == names and len(ready) <= len(names) + 2


@pytest.mark.parametrize(
    ("row", "said", "source"),
    [
        ({"instruction": "Past tense.", "input": "I walk", "output": "I walked"}, "layout alpaca", "layout: alpaca"),
        (
            {"messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]},
            "layout messages",
            "layout: messages",
        ),
        ({"prompt": "a", "response": "b"}, "prompt is `prompt`, response is `response`", "{jsonl: rows.jsonl}"),
        (
            {"Question": "2 + 2?", "solution": "2 + 2 is 4", "final_answer": "4"},
            "prompt is `Question`, response is `solution`, reference is `final_answer`",
            "prompt: Question, response: solution, reference: final_answer",
        ),
    ],
)
def test_the_layout_or_the_usual_names_say_which_column_is_what(tmp_path, row, said, source):
    draft = init(lines(tmp_path / "rows.jsonl", row, row), tmp_path / "recipe.yaml")
    assert draft.lines[0] == said and source in draft.text
    runs(draft.path, tmp_path / "store")


def test_a_layout_with_worse_answers_is_scored_by_them(tmp_path):
    turns = "\n\nHuman: Sort a list?\n\nAssistant: "
    row = {"chosen": f"{turns}Call sorted().", "rejected": f"{turns}No idea."}
    draft = init(lines(tmp_path / "hh.jsonl", row), tmp_path / "recipe.yaml", **FAKES)
    assert "seam_given" in runs(draft.path, tmp_path / "store")


def test_rows_without_an_answer_get_a_baseline_and_a_word(tmp_path):
    draft = init(lines(tmp_path / "prompts.jsonl", {"prompt": "a"}), tmp_path / "recipe.yaml", **FAKES)
    assert runs(draft.path, tmp_path / "store") == ["baseline_random"]
    assert "no column looks like the golden response; SEAM compares with it: name one by `response`" in draft.lines


def test_names_of_strangers_write_no_recipe_of_their_own(tmp_path):
    hostile = "answer: x}\nmodels: {policy: {fake: evil}}\n# \u2028"
    folder = tmp_path / "it's, a {folder}: #1"
    folder.mkdir()
    pq.write_table(pa.table({"question": ["a"], "answer": ["b"], hostile: ["c"]}), folder / "rows, 1.parquet")
    draft = init(folder / "rows, 1.parquet", tmp_path / "recipe.yaml")
    recipe = Recipe.load(draft.path)
    assert recipe.models.policy is None and recipe.rows.parquet == str(folder / "rows, 1.parquet")
    assert all(line.startswith("#") for line in draft.text.splitlines() if "evil" in line)


def test_files_are_named_from_the_recipes_folder(tmp_path, questions, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "recipes").mkdir()
    (tmp_path / "recipes" / "verify.py").write_text("def score(completions): return [1.0] * len(completions)\n")
    draft = init("rows.jsonl", "recipes/recipe.yaml", reward="recipes/verify.py:score")
    assert 'reward: {function: "verify.py:score"}' in draft.text or "reward: {function: verify.py:score}" in draft.text
    assert Recipe.load(draft.path).rows.jsonl == str(tmp_path / "rows.jsonl")
    shutil.copy("rows.jsonl", "recipes/here.jsonl")
    assert "rows: {jsonl: here.jsonl," in init("recipes/here.jsonl", "recipes/second.yaml").text


def test_a_recipe_that_exists_is_never_overwritten(tmp_path, questions):
    (tmp_path / "recipe.yaml").write_text("mine", encoding="utf-8")
    with pytest.raises(RecipeError, match="is there already, and nothing is overwritten"):
        init(questions[0], tmp_path / "recipe.yaml")
    assert (tmp_path / "recipe.yaml").read_text(encoding="utf-8") == "mine"


@pytest.mark.parametrize(
    ("rows", "options", "message"),
    [
        ([{"sentence": "a", "mood": 1}], {}, "no column looks like the prompt; it has sentence, mood"),
        ([{"prompt": None}], {}, "each of its first rows is set aside: prompt is null"),
        ([3], {}, "none of its first rows can be read"),
        (
            [{"prompt": "a"}],
            {"policy": "mystery:x"},
            "--policy mystery:x: mystery is no kind of policy; there are: causal_lm",
        ),
    ],
)
def test_what_cannot_be_guessed_is_refused_in_a_line_and_nothing_is_written(tmp_path, rows, options, message):
    with pytest.raises((SourceError, RecipeError), match=message) as refused:
        init(lines(tmp_path / "rows.jsonl", *rows), tmp_path / "recipe.yaml", **options)
    assert "\n" not in str(refused.value) and not (tmp_path / "recipe.yaml").exists()


def test_data_of_no_known_kind_are_refused(tmp_path):
    (tmp_path / "notes.txt").write_text("hello")
    for data in (tmp_path / "notes.txt", tmp_path / "nothing"):
        with pytest.raises(SourceError, match="it is no file or folder of a kind that is read"):
            init(data, tmp_path / "recipe.yaml")


def test_the_command_says_what_it_guessed_and_what_to_do_next(tmp_path, questions):
    out = tmp_path / "recipe.yaml"
    printed = CliRunner().invoke(app, ["init", str(questions[0]), "--out", str(out)]).stdout.splitlines()
    assert printed[0] == "prompt is `question`, response is `answer`"
    assert printed[-1] == f"{out} is written; see what it would take: seamcurate plan {out} my-store"


def test_a_functions_parameters_read_the_columns_that_have_their_names(tmp_path):
    (tmp_path / "own.py").write_text(
        "def score(completions, answer, question): return [float(a in c) for c, a in zip(completions, answer)]\n"
    )
    rows = [{"question": f"What is {n} and {n}?", "answer": f"It is {2 * n}."} for n in range(30)]
    (tmp_path / "sums.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    written = init(tmp_path / "sums.jsonl", tmp_path / "r.yaml", policy="fake:p", reward=f"{tmp_path}/own.py:score")
    assert '  reward: {function: "own.py:score", columns: {question: prompt, answer: response}}\n' in written.text
    run_local(Recipe.load(written.path), tmp_path / "store")
    assert query(tmp_path / "store", "SELECT DISTINCT reward FROM rows")["reward"].to_pylist() == [1.0]
