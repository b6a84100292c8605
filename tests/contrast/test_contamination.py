"""Nearness to another data set: the nearest row of brute force, the shared runs of words, and the match that is shown."""

from __future__ import annotations

import json
import re
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from seamcurate import Duplicates, FakeModel, Nearest, Recipe, Source, Split, Store, nearest, query, run_local, to_trl
from seamcurate.contrast import contamination
from seamcurate.errors import RecipeError, SourceError, StepError
from seamcurate.models.vectors import embedded
from seamcurate.run.plan import plan
from seamcurate.run.recipe import loads
from seamcurate.select.why import why
from seamcurate.words import ngrams

LONG = "Natalia sold clips to 48 of her friends in April, and then she sold half as many clips in May."
TESTS = [
    LONG,
    "Where is Rome?",
    "Weng earns $12 an hour for babysitting.",
    "Où est la bibliothèque de la ville où elle a vendu ses livres hier soir?",
]
ROWS = [
    f"Question 7. {LONG.upper()} How many did she sell?",
    "Rome? Where is",
    "A row about nothing that any other set would ask, with as many words as it takes to have a run",
    "Dis-moi: où est la bibliothèque de la ville où elle a vendu ses livres hier soir?",
]


def runs(text: str, size: int) -> list[tuple[str, ...]]:
    words = re.findall(r"[^\W]+", text.lower())
    return [tuple(words[i : i + size]) for i in range(len(words) - size + 1)]


@settings(max_examples=80, deadline=None)
@given(
    st.lists(st.text(alphabet="ab é語 .,-A", max_size=60), min_size=1, max_size=8),
    st.lists(st.text(alphabet="ab é語 .,-A", max_size=60), max_size=8),
    st.integers(1, 4),
)
def test_the_overlap_is_that_of_sets_of_tuples(texts, other, size):
    held = {run for text in other for run in runs(text, size)}
    hashed = contamination._runs(pa.array(other, pa.large_string()), size)
    shares = contamination._overlap(pa.array(texts, pa.large_string()), size, hashed)
    for text, share in zip(texts, shares, strict=True):
        own = runs(text, size)
        expected = np.mean([run in held for run in own]) if own else np.nan
        assert share == pytest.approx(expected, nan_ok=True), text


def test_a_word_has_one_hash_beside_other_scripts_and_alone():
    (plain,) = ngrams(pa.array(["sets are sets", "sets"]), 1)
    (mixed,) = ngrams(pa.array(["語 sets are, naïvement, sets"]), 1)
    assert plain.counts.tolist() == [3, 1] and set(plain.hashes) < set(mixed.hashes)


def recipe_of(folder: Path, **more) -> Recipe:
    for name, key, texts in (("rows", "prompt", ROWS), ("test", "question", TESTS)):
        (folder / f"{name}.jsonl").write_text("".join(json.dumps({key: text}) + "\n" for text in texts))
    steps = nearest(Source(jsonl=str(folder / "test.jsonl"), prompt="question"), "test_set", encoder=FakeModel())
    return Recipe(rows=Source(jsonl=str(folder / "rows.jsonl"), shard_rows=3), steps=steps, **more)


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    folder = tmp_path_factory.mktemp("nearest")
    columns = {
        "overlap": "overlap_test_set",
        "similarity": "nearest_test_set_similarity",
        "nearest": "nearest_test_set",
    }
    split = Split(filter="decontaminated.sql", most_similarity=0.8, **columns)
    report = run_local(recipe_of(folder, splits={"train": split}), folder / "store")
    return report, Store(folder / "store")


def test_each_row_has_its_nearest_row_its_text_and_the_share_of_its_runs(made):
    report, store = made
    rows = query(store, "SELECT * FROM rows ORDER BY row_id").to_pylist()
    model = FakeModel().load()
    own, other = (embedded(model, texts)[0].astype(np.float64) for texts in (ROWS, TESTS))
    cosines = own @ other.T
    assert [row["nearest_test_set"] for row in rows] == cosines.argmax(1).tolist()
    assert [row["nearest_test_set_similarity"] for row in rows] == pytest.approx(cosines.max(1).tolist(), abs=1e-12)
    assert [row["nearest_test_set_text"] for row in rows] == [TESTS[i] for i in cosines.argmax(1)]
    held = {run for text in TESTS for run in runs(text, 13)}
    shares = [np.mean([run in held for run in runs(text, 13)]) if runs(text, 13) else None for text in ROWS]
    assert [row["overlap_test_set"] for row in rows] == shares
    assert 0 < shares[0] < 1 and shares[1] is None and shares[2] == 0 and 0 < shares[3] < 1
    assert "2 of 4 rows share a run of 13 words with test_set (4 rows); 1 are shorter than that" in "\n".join(
        report.lines
    )


def test_the_ledger_and_why_show_the_match(made):
    _, store = made
    ledger = query(store, "SELECT * FROM ledger ORDER BY row_id").to_pylist()
    assert [row["kept"] for row in ledger] == [False, False, True, False]
    assert ledger[0]["rule"] == "shares words by overlap_test_set; nearest is row 0" and ledger[0]["threshold"] == 0
    assert ledger[1]["rule"] == "too near to row 1 by nearest_test_set"
    assert ledger[2]["rule"] == "keep rows apart from the other set"
    assert 0.8 == ledger[1]["threshold"] < ledger[1]["value"]
    (line,) = [line for line in why(store, 0) if "nearest of test_set" in line]
    assert line.startswith("  nearest of test_set is its row 0 (cosine 0.") and line.endswith(LONG)
    (line,) = [line for line in why(store, 1) if "nearest of test_set" in line]
    assert "too short for a shared run of words): Where is Rome?" in line


def test_the_other_sets_texts_are_never_exported(made, tmp_path):
    done = to_trl(made[1], "train", tmp_path / "out")
    assert "nearest_test_set_text" not in done.columns and "nearest_test_set" in done.columns
    assert "left out, for they hold texts of other data sets: nearest_test_set_text" in done.note
    assert not any(text in str(pq.read_table(tmp_path / "out").to_pylist()) for text in TESTS)


def test_the_same_columns_for_shards_and_calls_of_any_size(made, tmp_path, monkeypatch):
    monkeypatch.setattr(Nearest, "rows_per_call", 1)
    run_local(recipe_of(tmp_path), tmp_path / "store")
    columns = "SELECT row_id, nearest_test_set, nearest_test_set_similarity, overlap_test_set FROM rows ORDER BY row_id"
    assert query(tmp_path / "store", columns) == query(made[1], columns)


def test_rows_of_the_other_set_that_cannot_be_read_are_told(tmp_path):
    recipe = recipe_of(tmp_path)
    (tmp_path / "test.jsonl").write_text('{"question": "Where is Rome?"}\n{"question": 7}\n')
    lines = run_local(recipe, tmp_path / "store").lines
    assert any("1 rows of test_set could not be read and are compared with nothing: " in line for line in lines)


def test_another_file_or_name_of_the_same_contents_is_told_by_the_fingerprint(tmp_path):
    step = recipe_of(tmp_path).steps[1]
    before = step.identity()
    (tmp_path / "moved").mkdir()
    (tmp_path / "test.jsonl").rename(tmp_path / "moved" / "test.jsonl")
    moved = step.model_copy(update={"to": Source(jsonl=str(tmp_path / "moved" / "test.jsonl"), prompt="question")})
    assert moved.identity() == before
    (tmp_path / "moved" / "test.jsonl").write_text('{"question": "Another?"}\n')
    assert moved.identity() != before


def test_what_cannot_be_compared_is_refused_before_time_is_spent(tmp_path):
    recipe = recipe_of(tmp_path)
    (tmp_path / "test.jsonl").unlink()
    for go in (lambda: plan(recipe, tmp_path / "planned"), lambda: run_local(recipe, tmp_path / "store")):
        with pytest.raises(SourceError, match=r"test\.jsonl"):
            go()
    assert not list((tmp_path / "store").glob("columns/*/0*.parquet"))
    (tmp_path / "test.jsonl").write_text('{"answer": "In Italy."}\n')
    for go in (lambda: plan(recipe, tmp_path / "planned"), lambda: run_local(recipe, tmp_path / "store")):
        with pytest.raises(SourceError, match="no column 'question' for prompt; it has answer"):
            go()
    assert not list((tmp_path / "store").glob("columns/*/0*.parquet"))
    (tmp_path / "test.jsonl").write_text('{"question": 7}\n')
    with pytest.raises(
        StepError, match="step nearest_test_set: no row of test_set has a prompt with a finite embedding"
    ):
        run_local(recipe, tmp_path / "store")


def test_a_recipe_reads_the_other_set_from_its_folder_and_names_what_is_wrong(tmp_path):
    text = "rows: {{jsonl: rows.jsonl}}\nmodels: {{encoder: {{fake: e}}}}\nsteps:\n  - nearest: {{to: {}, name: {}}}\n"
    recipe = loads(text.format("{jsonl: test.jsonl, prompt: question}", "gsm8k"), tmp_path)
    step = recipe.ready()[1]
    assert isinstance(step, Nearest) and step.to.jsonl == str(tmp_path / "test.jsonl") and step.encoder is not None
    with pytest.raises(RecipeError, match=r"recipe:4: steps\[0\]\.nearest\.to\.prompts: unknown key; there are: hub, "):
        loads(text.format("{jsonl: test.jsonl, prompts: question}", "gsm8k"), tmp_path)
    with pytest.raises(RecipeError, match=r"recipe:4: steps\[0\]\.nearest.*tring should match pattern"):
        loads(text.format("{jsonl: test.jsonl}", "GSM-8K"), tmp_path)


def test_a_row_without_an_embedding_has_no_nearest_row_and_repeats_none_but_its_words_are_compared(tmp_path):
    recipe = recipe_of(tmp_path)
    vectors = embedded(FakeModel().load(), ROWS)[0].tolist()
    rows = {"prompt": [*ROWS, ROWS[0]], "embedding": pa.array([*vectors, None], pa.list_(pa.float32()))}
    pq.write_table(pa.table(rows), tmp_path / "embedded.parquet")
    source = Source(parquet=str(tmp_path / "embedded.parquet"))
    # The embeddings are the source's own: only the steps that read them are run.
    recipe = recipe.model_copy(update={"rows": source, "steps": (recipe.steps[1], Duplicates())})
    run_local(recipe, tmp_path / "store")
    made = query(tmp_path / "store", "SELECT * FROM rows ORDER BY row_id").to_pylist()
    assert made[4]["overlap_test_set"] == made[0]["overlap_test_set"] > 0
    nearest_columns = [made[4][f"nearest_test_set{ending}"] for ending in ("", "_similarity", "_text")]
    assert nearest_columns == [None] * 3 and made[4]["duplicate_of"] is None and made[0]["nearest_test_set"] == 0


def test_a_plan_counts_the_embeddings_of_the_other_set(tmp_path):
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps({"prompt": row}) + "\n" for row in ROWS))
    (tmp_path / "tests.jsonl").write_text("".join(json.dumps({"prompt": test}) + "\n" for test in TESTS * 3))
    steps = nearest(to=Source(jsonl=str(tmp_path / "tests.jsonl")), name="quiz", encoder=FakeModel())
    recipe = Recipe(rows=Source(jsonl=str(tmp_path / "rows.jsonl")), steps=steps)
    by_step = {line.step: line.calls for line in plan(recipe, tmp_path / "store").lines}
    assert by_step == {"embedding": len(ROWS), "nearest_quiz": 3 * len(TESTS)}
    run_local(recipe, tmp_path / "store")
    assert [line.calls for line in plan(recipe, tmp_path / "store").lines] == [0, 0]
