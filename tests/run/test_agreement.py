"""A store is handed on only by the recipe that made it, and only while it stays as it is."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pyarrow.parquet as pq
import pytest
from conftest import questions, write_files

from seamcurate import (
    CausalLM,
    FakeModel,
    Models,
    Perplexity,
    Random,
    Recipe,
    Retrieve,
    Source,
    Split,
    Store,
    check,
    query,
    run_local,
    seam,
    to_openrlhf,
    to_trl,
    to_verl,
)
from seamcurate.errors import ModelError, RecipeError, SeamcurateError, StaleError
from seamcurate.publish.export import export
from seamcurate.run.agreement import require
from seamcurate.select import split as splits
from seamcurate.select.why import why

pytestmark = pytest.mark.slow

ALL = "SELECT row_id FROM rows"


def write(file: Path, count: int, start: int = 0) -> None:
    file.write_text("".join(json.dumps(row) + "\n" for row in questions(count, start)))


def kept(store: Path) -> dict[str, int]:
    return dict(
        tuple(row.values())
        for row in query(Store(store), "SELECT split, sum(kept::INT)::INT AS n FROM ledger GROUP BY 1").to_pylist()
    )


def found(store: Path, recipe: Recipe | None = None) -> list[str]:
    return [str(one).removeprefix(f"{store}/") for one in check(Store(store), recipe).findings]


# ── splits ───────────────────────────────────────────────────────────────────────────────────────────────


def test_a_split_over_another_splits_ledger_follows_it_whatever_their_order(tmp_path):
    write(tmp_path / "rows.jsonl", 12)
    source = Source(jsonl=str(tmp_path / "rows.jsonl"), shard_rows=5)

    def run(below: int) -> dict[str, int]:
        made = {
            "c": Split(filter="SELECT row_id FROM ledger WHERE split = 'b' AND kept AND row_id % 2 = 0"),
            "b": Split(filter="SELECT row_id FROM ledger WHERE split = $of AND kept", of="a"),
            "a": Split(filter="SELECT row_id FROM rows WHERE row_id < $below", below=below),
            "rest": Split(filter=ALL + " WHERE row_id NOT IN (SELECT row_id FROM ledger WHERE kept)"),
        }
        run_local(Recipe(rows=source, splits=made), tmp_path / "store")
        assert found(tmp_path / "store") == []
        return kept(tmp_path / "store")

    assert run(6) == {"a": 6, "b": 6, "c": 3, "rest": 6}
    assert run(3) == {"a": 3, "b": 3, "c": 2, "rest": 9}
    # Its own former ledger is none of what a filter reads.
    assert run(3) == {"a": 3, "b": 3, "c": 2, "rest": 9}


@pytest.mark.parametrize(
    ("a", "b", "message"),
    [
        (
            "FROM ledger WHERE split = 'b'",
            "FROM ledger WHERE split = 'a'",
            "split a depends on its own ledger: a → b → a",
        ),
        ("FROM ledger", "FROM ledger", "split a depends on its own ledger: a → b → a"),
        ("FROM ledger WHERE split = 'a'", "FROM rows", "split a depends on its own ledger: a → a"),
        ("FROM rows", "FROM ledger WHERE split = 'z'", "split b reads the ledger of split 'z', and there is none"),
    ],
)
def test_splits_that_read_each_other_or_none_are_refused_before_anything_is_computed(tmp_path, a, b, message):
    write(tmp_path / "rows.jsonl", 3)
    made = {name: Split(filter=f"SELECT row_id {text}") for name, text in (("a", a), ("b", b))}
    recipe = Recipe(rows=Source(jsonl=str(tmp_path / "rows.jsonl")), steps=(Random(),), splits=made)
    with pytest.raises(RecipeError, match=message):
        run_local(recipe, tmp_path / "store")
    assert not list((tmp_path / "store").rglob("columns/*/*.parquet"))


@pytest.mark.parametrize("shared", [False, True])
def test_a_split_that_reads_the_corpus_follows_it(tmp_path, shared):
    write(tmp_path / "rows.jsonl", 12)
    write(tmp_path / "corpus.jsonl", 4)
    clean = Split(filter="SELECT row_id FROM rows WHERE prompt NOT IN (SELECT prompt FROM corpus)")
    source = Source(jsonl=str(tmp_path / "corpus.jsonl"))

    def run(replace: bool) -> dict[str, int]:
        corpus = source
        if shared:
            run_local(Recipe(rows=source), tmp_path / "shared", replace=replace)
            corpus = Source(store=str(tmp_path / "shared"))
        made = Recipe(rows=Source(jsonl=str(tmp_path / "rows.jsonl")), corpus=corpus, splits={"clean": clean})
        run_local(made, tmp_path / "store", replace=replace)
        return kept(tmp_path / "store")

    assert run(False) == {"clean": 8}
    write(tmp_path / "corpus.jsonl", 12)
    assert run(True) == {"clean": 0}
    assert found(tmp_path / "store") == []


def test_a_split_whose_inputs_changed_is_named_by_check_and_why_and_not_exported(tmp_path):
    write(tmp_path / "rows.jsonl", 12)
    write(tmp_path / "corpus.jsonl", 4)
    source = Source(jsonl=str(tmp_path / "corpus.jsonl"))
    run_local(Recipe(rows=source), tmp_path / "shared")
    made = {
        "clean": Split(filter="SELECT row_id FROM rows WHERE prompt NOT IN (SELECT prompt FROM corpus)"),
        "half": Split(filter="SELECT row_id FROM ledger WHERE split = 'clean' AND kept AND row_id % 2 = 0"),
        "all": Split(filter=ALL),
    }
    rows = Source(jsonl=str(tmp_path / "rows.jsonl"), response="response")
    recipe = Recipe(rows=rows, corpus=Source(store=str(tmp_path / "shared")), splits=made)
    run_local(recipe, tmp_path / "store")
    write(tmp_path / "corpus.jsonl", 12)
    run_local(Recipe(rows=source), tmp_path / "shared", replace=True)
    assert found(tmp_path / "store") == [
        "splits/clean is out of date: column 'row_id' of the corpus was made anew; run its recipe again",
        "splits/half is out of date: split clean, whose ledger it reads, is out of date; run its recipe again",
    ]
    store = Store(tmp_path / "store")
    assert "  split half is out of date: split clean, whose ledger it reads, is out of date; run its recipe again" in [
        *why(store, 3)
    ]
    for name, write_split in (("clean", to_trl), ("half", to_openrlhf), ("clean", to_verl)):
        with pytest.raises(StaleError, match=rf"split {name} of .*/store is out of date: .*; run its recipe first"):
            write_split(store, name, tmp_path / "out")
    assert to_trl(store, "all", tmp_path / "out").rows == 12


# ── recipes ──────────────────────────────────────────────────────────────────────────────────────────────


@pytest.fixture(scope="module")
def original(tmp_path_factory):
    """A folder with a recipe's files and its finished store."""
    folder = tmp_path_factory.mktemp("agreement")
    write_files(folder)
    run_local(recipe(folder), folder / "store")
    return folder


@pytest.fixture
def folder(original, tmp_path):
    shutil.copytree(original, tmp_path / "here")
    return tmp_path / "here"


def recipe(folder: Path, **parts: object) -> Recipe:
    whole = {
        "rows": Source(parquet=str(folder / "rows.parquet"), shard_rows=15),
        "corpus": Source(parquet=str(folder / "corpus.parquet"), shard_rows=64),
        "models": Models(policy=FakeModel(), reward=FakeModel(), encoder=FakeModel()),
        "steps": (Retrieve(k=5, band=(0.5, 0.9)), *seam("contrast", k=5)),
        "splits": {"low": Split(filter="SELECT row_id FROM rows WHERE seam_contrast < $below", below=0)},
    }
    return Recipe(**(whole | parts))


EDITS = {
    "a parameter": (
        {"splits": {"low": Split(filter="SELECT row_id FROM rows WHERE seam_contrast < $below", below=-1)}},
        r"split low: below: 0 → -1; run the recipe first",
    ),
    "a filter": ({"splits": {"low": Split(filter=ALL)}}, "split low: its filter was edited; run the recipe first"),
    "a new split": ({"splits": {"more": Split(filter=ALL)}}, "split more: it was not made yet; run the recipe first"),
    "the form": (
        {
            "splits": {
                "low": Split(
                    filter="SELECT row_id FROM rows WHERE seam_contrast < $below", below=0, format="preferences"
                )
            }
        },
        "split low: format: prompts → preferences; run the recipe first",
    ),
    "a model": (
        {"models": Models(policy=FakeModel(), reward=FakeModel(path="9"), encoder=FakeModel())},
        r'step reward was made by another configuration: reward\.reward\.fake: "0" → "9" \(and \d more\); run the recipe first, with --replace',
    ),
    "the encoder": (
        {"models": Models(policy=FakeModel(), reward=FakeModel(), encoder=FakeModel(path="9"))},
        r"step embedding of the corpus was made by another configuration",
    ),
    "a setting": (
        {"steps": (Retrieve(k=5, band=(0.5, 0.9)), *seam("contrast", k=5, likelihood="uniform"))},
        r'step seam_contrast was made by another configuration: seam_contrast.likelihood: "geometric" → "uniform"',
    ),
    "a new step": (
        {
            "steps": (Retrieve(k=5, band=(0.5, 0.9)), *seam("contrast", k=5), Perplexity()),
            "models": Models(policy=FakeModel(), reward=FakeModel(), encoder=FakeModel(), base=FakeModel()),
        },
        "it lacks columns of step baseline_perplexity; run the recipe first",
    ),
}


@pytest.mark.parametrize("edit", EDITS)
def test_an_edited_recipe_is_refused_by_an_export_and_told_by_a_check(folder, tmp_path, edit):
    parts, message = EDITS[edit]
    edited, store = recipe(folder, **parts), Store(folder / "store")
    for to in ("trl", "openrlhf"):
        with pytest.raises(StaleError, match=rf"/store does not hold what the recipe makes: {message}") as refused:
            list(export(edited, store, to, tmp_path / "out"))
        assert "\n" not in str(refused.value)
    assert not (tmp_path / "out").exists()
    assert found(folder / "store") == [] == found(folder / "store", recipe(folder))
    assert found(folder / "store", edited)
    assert [one.rows for one in export(recipe(folder), store, "trl", tmp_path / "out")] == [
        kept(folder / "store")["low"]
    ]


def test_other_rows_and_another_corpus_are_refused(folder, tmp_path):
    store, out = Store(folder / "store"), tmp_path / "out"
    other = tmp_path / "other.parquet"
    shutil.copy(folder / "corpus.parquet", other)
    with pytest.raises(
        StaleError, match=r"rows: parquet: other\.parquet is new, rows\.parquet is gone; run the recipe"
    ):
        list(export(recipe(folder, rows=Source(parquet=str(other), shard_rows=15)), store, "trl", out))
    with pytest.raises(StaleError, match=r"rows: shard_rows; run the recipe first"):
        require(recipe(folder, rows=Source(parquet=str(folder / "rows.parquet"), shard_rows=16)), store)
    table = pq.read_table(folder / "corpus.parquet")
    pq.write_table(table.slice(1), folder / "corpus.parquet")
    with pytest.raises(StaleError, match=r"corpus: parquet: corpus\.parquet changed; run the recipe first"):
        list(export(recipe(folder), store, "trl", out))
    with pytest.raises(StaleError, match="it has no corpus"):
        run_local(recipe(folder, corpus=None, steps=(), splits={"all": Split(filter=ALL)}), tmp_path / "plain")
        require(recipe(folder), Store(tmp_path / "plain"))


def test_a_store_without_all_its_rows_is_refused(folder, tmp_path):
    run_local(recipe(folder), tmp_path / "part", limit=15)
    with pytest.raises(StaleError, match=r"it does not hold all rows yet; run the recipe first, without --limit"):
        list(export(recipe(folder), Store(tmp_path / "part"), "trl", tmp_path / "out"))


def test_a_half_replaced_store_is_refused_by_every_way_out(folder, tmp_path):
    other = recipe(folder, models=Models(policy=FakeModel(), reward=FakeModel(path="9"), encoder=FakeModel()))
    run_local(other, folder / "store", replace=True, limit=15)
    for made in (other, recipe(folder)):
        with pytest.raises(StaleError, match="does not hold what the recipe makes"):
            list(export(made, Store(folder / "store"), "trl", tmp_path / "out"))
    with pytest.raises(StaleError, match=r"split low of .* is out of date: column '.*' was made anew"):
        to_trl(Store(folder / "store"), "low", tmp_path / "out")
    assert any(line.startswith("splits/low is out of date") for line in found(folder / "store"))
    run_local(other, folder / "store", replace=True)
    assert list(export(other, Store(folder / "store"), "trl", tmp_path / "out"))


def test_an_export_that_a_run_overtakes_is_refused_and_leaves_no_file(folder, tmp_path, monkeypatch):
    other = recipe(folder, models=Models(policy=FakeModel(), reward=FakeModel(path="9"), encoder=FakeModel()))
    store, real = Store(folder / "store"), splits.shard.read
    overtaken = []

    def read(path, *given):
        table = real(path, *given)
        if path.name == "ledger.parquet" and not overtaken:
            overtaken.append(path)
            run_local(other, folder / "store", replace=True)
        return table

    monkeypatch.setattr(splits.shard, "read", read)
    with pytest.raises(SeamcurateError, match=r"was changed while split low was read|belongs to another"):
        to_trl(store, "low", tmp_path / "out")
    assert overtaken and not (tmp_path / "out").exists()


def test_sources_that_are_gone_are_compared_by_name_and_a_line_says_so(folder, tmp_path, capfd):
    (folder / "rows.parquet").unlink()
    (folder / "corpus.parquet").unlink()
    store = Store(folder / "store")
    assert list(export(recipe(folder), store, "trl", tmp_path / "out"))
    told = capfd.readouterr().err
    assert "rows.parquet: no such file" in told and told.count("its contents are not compared with the store's") == 2
    other = Source(parquet=str(folder / "others.parquet"), shard_rows=15)
    with pytest.raises(StaleError, match=r"rows: parquet: rows\.parquet → others\.parquet"):
        require(recipe(folder, rows=other), store)
    renamed = Source(parquet=str(folder / "rows.parquet"), shard_rows=15, rename={"reference": "truth"})
    with pytest.raises(StaleError, match="rows: rename; run the recipe first"):
        require(recipe(folder, rows=renamed), store)


def test_a_model_that_is_gone_is_told_in_one_line(tmp_path, policy_folder):
    write(tmp_path / "rows.jsonl", 4)
    shutil.copytree(policy_folder, tmp_path / "model")
    made = Recipe(
        rows=Source(jsonl=str(tmp_path / "rows.jsonl")),
        models=Models(base=CausalLM(path=str(tmp_path / "model"))),
        steps=(Perplexity(),),
        splits={"all": Split(filter=ALL)},
    )
    run_local(made, tmp_path / "store")
    assert list(export(made, Store(tmp_path / "store"), "trl", tmp_path / "out"))
    shutil.rmtree(tmp_path / "model")
    with pytest.raises(
        ModelError, match=r"whether .*/store was made by this recipe cannot be told: .*/model is not there"
    ) as refused:
        list(export(made, Store(tmp_path / "store"), "trl", tmp_path / "out"))
    assert "\n" not in str(refused.value)
    assert to_trl(Store(tmp_path / "store"), "all", tmp_path / "alone").rows == 4
