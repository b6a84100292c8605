"""The map of prompts: like ones together, one place a prompt, and a measure of how far to trust it."""

from __future__ import annotations

import numpy as np
import pyarrow as pa
import pytest

from seamcurate import FakeModel, Models, Project, Recipe, Source, Store, query, run_local
from seamcurate.errors import RecipeError
from seamcurate.models.vectors import unit
from seamcurate.run import recipe
from seamcurate.score.projection import layout, neighbours_kept, placed


def clusters(count: int, each: int, seed: int) -> np.ndarray:
    """Unit vectors around `count` directions, one cluster after the other."""
    centres = np.random.default_rng(0).normal(size=(count, 64))
    noise = np.random.default_rng(seed).normal(size=(count, each, 64))
    return unit((centres[:, None] + 0.5 * noise).reshape(-1, 64).astype(np.float32))


@pytest.mark.slow
def test_like_prompts_lie_together_and_new_ones_beside_them():
    landmarks, new = clusters(6, 25, 1), clusters(6, 10, 2)
    places = layout(landmarks)
    assert np.abs(places).max() == 1
    where = placed(new, landmarks, places)
    nearest = ((where[:, None] - places[None]) ** 2).sum(axis=2).argmin(axis=1)
    assert (nearest // 25 == np.arange(60) // 10).all()
    flat = np.linalg.svd(landmarks - landmarks.mean(axis=0))[0][:, :2]
    assert neighbours_kept(landmarks, places) > neighbours_kept(landmarks, flat) > 10 / 150


def test_the_same_vectors_give_the_same_map():
    vectors = clusters(4, 20, 3)
    assert np.array_equal(layout(vectors), layout(vectors.copy()))


@pytest.mark.parametrize("count", [1, 2, 5])
def test_a_few_prompts_and_equal_ones_have_places_too(count):
    vectors = unit(np.random.default_rng(4).normal(size=(count, 8)).astype(np.float32))
    for some in (vectors, np.repeat(vectors[:1], 40, axis=0)):
        places = layout(some)
        assert places.shape == (len(some), 2) and np.isfinite(places).all()
        assert np.isfinite(placed(vectors, some, places)).all()
    assert neighbours_kept(vectors, layout(vectors)) is None


def test_a_recipe_adds_two_columns_and_says_how_far_the_map_is_to_be_trusted(files, tmp_path):
    made = Recipe(
        rows=Source(parquet=str(files[0]), shard_rows=15),
        models=Models(encoder=FakeModel(path="encoder")),
        steps=(Project(landmarks=35),),
    )
    report = run_local(made, tmp_path / "store")
    (line,) = report.lines
    assert line.startswith("map of prompts: of the 10 nearest of each landmark ")
    found = query(Store(tmp_path / "store"), "SELECT * FROM rows ORDER BY row_id")
    places = np.column_stack([found["projection_x"], found["projection_y"]])
    assert len(np.unique(places, axis=0)) > 30 and np.abs(places).max() <= 1
    run_local(made, tmp_path / "again")
    again = query(Store(tmp_path / "again"), "SELECT * FROM rows ORDER BY row_id")
    assert again.equals(found)


def test_a_row_lies_where_it_does_whatever_rows_are_beside_it():

    vectors = clusters(5, 20, 5)
    places = layout(vectors)
    whole = placed(vectors, vectors, places)
    assert np.array_equal(whole, np.concatenate([placed(one[None], vectors, places) for one in vectors]))


def test_the_recipe_needs_an_encoder(files):
    text = f"rows: {{parquet: {files[0]}}}\nsteps:\n  - project: {{landmarks: 50}}\n"
    with pytest.raises(RecipeError, match="step projection has no encoder model"):
        recipe.loads(text).ready()


def test_a_prompt_whose_embedding_is_not_finite_is_on_no_map_and_told(tmp_path):
    class Damaged(FakeModel):
        def embed(self, texts):
            vectors = super().embed(texts)
            vectors[["copy" in text for text in texts]] *= np.nan
            return vectors

    rows = pa.table({"prompt": [f"{verb} a file {i}" for i in range(20) for verb in ("sort", "copy")]})

    class Rows:
        def rows(self, columns):
            yield rows.select(list(columns))

    step = Project(encoder=Damaged(path="encoder"), landmarks=10)
    step.prepare(Rows(), tmp_path)
    found = step.load(tmp_path)(rows)
    for name in ("projection_x", "projection_y"):
        assert [value is None for value in found[name].to_pylist()] == [False, True] * 20
    assert step.facts([found], tmp_path)["warnings"] == [
        "20 rows have an embedding that is not finite: it is not on the map"
    ]
