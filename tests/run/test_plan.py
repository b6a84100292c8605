"""Plans: what a run would refuse is refused before anything is embedded, and nothing is written."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from seamcurate import FakeModel, plan
from seamcurate.errors import ModelError, QueryError, RecipeError, StepError
from seamcurate.run.plan import _EMBEDDED_AT_ONCE, _Watched
from seamcurate.run.recipe import loads

TEXT = """\
rows: {jsonl: rows.jsonl, shard_rows: 4}
corpus: {jsonl: rows.jsonl}
models: {policy: {fake: p}, reward: {fake: r}, encoder: {fake: e}}
steps: [retrieve: {k: 3, band: [0.1, 0.99]}, seam: {k: 3}]
splits: {train: {filter: keep_above_lowest.sql, by: seam_contrast}}
"""


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    rows = [{"prompt": f"how do I sort {i} lists", "response": f"by sort {i}"} for i in range(12)]
    # A column that only a late line has.
    rows[-1]["topic"] = "lists"
    (tmp_path / "rows.jsonl").write_text("\n".join(map(json.dumps, rows)))
    return tmp_path


@pytest.fixture
def without_embedding(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(FakeModel, "embed", lambda *anything: pytest.fail("something was embedded"))


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        (
            ("by: seam_contrast", "by: seam_contrst"),
            RecipeError,
            r"split train: by: 'seam_contrst' is no column of this store; .*; did you mean `seam_contrast`\?",
        ),
        (("filter: keep_above_lowest.sql, by: seam_contrast", "filter: SELECT row FROM rows"), QueryError, '"row" not'),
        (("by: seam_contrast", "by: seam_contrast, rte: 0.1"), RecipeError, "did you mean `rate`"),
        (("seam: {k: 3}]", "seam: {k: 3}, rip: {variant: gpt}]"), StepError, "reads column .worse_gpt., which neither"),
        (
            ("{fake: r}", "{sequence_classifier: models/gone/it}"),
            ModelError,
            "model folder models/gone/it is not there",
        ),
        (
            ("seam: {k: 3}]", "seam: {k: 3}, attack: {method: ga, vectors: gone.txt}]"),
            StepError,
            "lexicon gone.txt is not there",
        ),
    ],
)
def test_what_a_run_would_refuse_is_refused_before_anything_is_embedded(
    change, error, message, folder, without_embedding
):
    recipe = loads(TEXT.replace(*change), folder)
    with pytest.raises(error, match=message) as refused:
        plan(recipe, str(folder / "store"))
    assert "\n" not in str(refused.value) and not (folder / "store").exists()


def test_a_model_is_looked_for_before_rows_are_counted(folder):
    (folder / "rows.jsonl").unlink()
    (folder / "weightless").mkdir()
    recipe = loads(TEXT.replace("{fake: p}", "{causal_lm: weightless}"), folder)
    with pytest.raises(ModelError, match=r"weightless holds no \.safetensors weights"):
        plan(recipe, str(folder / "store"))


def test_columns_that_come_late_or_were_made_by_another_recipe_may_be_asked_for(folder):
    from seamcurate import run_local

    asks = """by: seam_contrast}, late: {filter: "SELECT row_id FROM rows WHERE topic > ''"}"""
    late = TEXT.replace("by: seam_contrast}", asks)
    assert plan(loads(late, folder), str(folder / "store")).rows == 12
    run_local(loads("rows: {jsonl: rows.jsonl, shard_rows: 4}\nsteps: [random]\n", folder), folder / "store")
    other = TEXT.replace("by: seam_contrast", "by: baseline_random")
    assert plan(loads(other, folder), str(folder / "store")).rows == 12


def test_a_sample_is_embedded_in_parts_that_are_the_whole():
    texts = [f"question {i}" for i in range(2 * _EMBEDDED_AT_ONCE + 3)]
    assert (_Watched(FakeModel()).embed(texts) == FakeModel().embed(texts)).all()
    assert _Watched(FakeModel()).embed([]).shape[0] == 0
