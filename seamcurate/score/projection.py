"""Where prompts lie on a map: their embeddings in two dimensions, with the like of a prompt beside it.

A map to find one's way by, not a measure: groups and neighbours are to be trusted, distances between groups are not.
How many neighbours stay neighbours is measured, and stands in the columns' facts.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path
from typing import ClassVar, TypeAlias

import numpy as np
import numpy.typing as npt
import pyarrow as pa
from pydantic import Field, JsonValue

from seamcurate.errors import StepError
from seamcurate.models import Embedder, EncoderModel, roles
from seamcurate.models.vectors import embedded, not_finite
from seamcurate.step import Averages, Data, Step, Transform, Work, column, evenly

Floats: TypeAlias = npt.NDArray[np.float32]
Doubles: TypeAlias = npt.NDArray[np.float64]

_COMPONENTS = 50
_PERPLEXITY = 30.0
_ITERATIONS = 500
"""Of 300 to 1,000, where the neighbours kept no longer grow by more than a hundredth."""
_NEAR = 10
_WARMTH = 0.02
"""How fast a landmark's weight falls with cosine; half or twice as much moves the neighbours kept by a hundredth."""


class Project(Step):
    """Add `projection_x` and `projection_y`: t-SNE of a sample's prompts, every row beside the landmarks it is like.

    Principal components would be cheaper and keep fewer neighbours: of the demo's corpus a sixteenth, against half. A row
    whose embedding is not finite is NULL.

    Raises:
        ModelError: No encoder is named, or it cannot be loaded.

    Example:
        >>> from seamcurate import Project
        >>> Project(landmarks=500).adds.names
        ['projection_x', 'projection_y']
    """

    encoder: EncoderModel | None = None
    landmarks: int = Field(default=1000, ge=1)
    """How many prompts, taken evenly from all, t-SNE lays out; its time grows with them, the rows' does hardly."""

    revision: ClassVar[int] = 2
    rows_per_call: ClassVar[int] = 512

    @property
    def name(self) -> str:
        """Name the folder after the columns."""
        return "projection"

    @property
    def inputs(self) -> tuple[str, ...]:
        """Read the prompt."""
        return ("prompt",)

    @property
    def adds(self) -> pa.Schema:
        """Add a place between -1 and 1."""
        meaning = "where the prompt lies on a map of all prompts, like ones together: "
        return pa.schema(
            [
                column("projection_x", pa.float64(), f"{meaning}across"),
                column("projection_y", pa.float64(), f"{meaning}up"),
            ]
        )

    @property
    def reads_all_rows(self) -> bool:
        """The landmarks come from all over the rows."""
        return True

    def prepare(self, data: Data, shared: Path) -> None:
        """Lay out the landmarks."""
        sample = evenly((p for table in data.rows(("prompt",)) for p in table["prompt"].to_pylist()), self.landmarks)
        vectors, known = embedded(self._embedder(), sample)
        vectors = vectors[known]
        if not len(vectors):
            raise StepError(
                f"step {self.name}: no prompt has an embedding that is finite; name another encoder, or `dtype: float32`"
            )
        places = layout(vectors)
        np.save(shared / "landmarks.npy", vectors)
        np.save(shared / "places.npy", places)
        kept = neighbours_kept(vectors, places)
        (shared / "map.json").write_text(json.dumps({"landmarks": len(vectors), "neighbours_kept": kept}))

    def work(self, rows: Averages) -> Work:
        """Ask for one embedding a row."""
        return Work(self.encoder, 1, rows.prompt)

    def load(self, shared: Path) -> Transform:
        """Open the map and load the encoder."""
        landmarks = np.load(shared / "landmarks.npy", allow_pickle=False)
        places = np.load(shared / "places.npy", allow_pickle=False)
        embedder = self._embedder()

        def project(rows: pa.Table) -> pa.Table:
            vectors, known = embedded(embedder, rows["prompt"].to_pylist())
            x, y = placed(vectors, landmarks, places).T
            return pa.table({"projection_x": pa.array(x, mask=~known), "projection_y": pa.array(y, mask=~known)})

        return project

    def facts(self, columns: Iterable[pa.Table], shared: Path) -> dict[str, JsonValue]:
        """State how far the map can be trusted."""
        found: dict[str, JsonValue] = json.loads((shared / "map.json").read_text())
        null = sum(table["projection_x"].null_count for table in columns)
        if null:
            found |= {"null": null, "warnings": list(not_finite(null, "row", "it is not on the map"))}
        kept = found["neighbours_kept"]
        if kept is None:
            return found
        told = f"map of prompts: of the {_NEAR} nearest of each landmark {float(str(kept)):.0%} lie nearest on the map"
        return {**found, "summary": told}

    def _embedder(self) -> Embedder:
        return roles.load(self.encoder, "encoder", self.name)


def layout(vectors: Floats) -> Doubles:
    """Return a place in [-1, 1]² for each of some unit vectors, by t-SNE (van der Maaten and Hinton 2008).

    It starts from the principal components, each turned so that its largest loading is positive, and runs on one
    thread: the same vectors give the same map on the same machine.
    """
    centred = vectors.astype(np.float64) - vectors.mean(axis=0, dtype=np.float64)
    _, _, axes = np.linalg.svd(centred, full_matrices=False)
    axes *= np.sign(axes[np.arange(len(axes)), np.abs(axes).argmax(axis=1)])[:, None]
    components = centred @ axes[:_COMPONENTS].T
    start = np.zeros((len(vectors), 2))
    start[:, : components.shape[1]] = components[:, :2]
    places = start
    # Fewer lie as the components have them: there is no neighbourhood to keep.
    if len(vectors) > 3 * _NEAR:
        from sklearn.manifold import TSNE
        from threadpoolctl import threadpool_limits

        first = start / max(1e-12, start[:, 0].std()) * 1e-4
        perplexity = min(_PERPLEXITY, (len(vectors) - 1) / 3)
        with threadpool_limits(1):
            model = TSNE(2, perplexity=perplexity, init=first, max_iter=_ITERATIONS, random_state=0)
            places = model.fit_transform(components).astype(np.float64)
    scaled: Doubles = places / max(1e-12, float(np.abs(places).max(initial=0)))
    return scaled


def placed(vectors: Floats, landmarks: Floats, places: Doubles) -> Doubles:
    """Return each unit vector's place: the mean of its nearest landmarks' places, the nearer weighing more."""
    cosines = vectors.astype(np.float64) @ landmarks.T.astype(np.float64)
    near = np.argsort(-cosines, axis=1, kind="stable")[:, :_NEAR]
    closest = np.take_along_axis(cosines, near, 1)
    weights = np.exp((closest - closest[:, :1]) / _WARMTH)
    mean: Doubles = (places[near] * (weights / weights.sum(axis=1, keepdims=True))[:, :, None]).sum(axis=1)
    # What a screen cannot show is an encoder's rounding, which differs with the texts beside.
    return np.round(mean, 4) + 0.0


def neighbours_kept(vectors: Floats, places: Doubles) -> float | None:
    """Return the share of each landmark's nearest that are its nearest on the map too; None where there are too few."""
    if len(vectors) <= 3 * _NEAR:
        return None

    def nearest(distances: Doubles) -> npt.NDArray[np.int64]:
        np.fill_diagonal(distances, np.inf)
        return np.argpartition(distances, _NEAR, axis=1)[:, :_NEAR]

    before = nearest(-(vectors.astype(np.float64) @ vectors.T.astype(np.float64)))
    after = nearest(((places[:, None] - places[None]) ** 2).sum(axis=2))
    return float(np.mean([np.isin(a, b).mean() for a, b in zip(before, after, strict=True)]))
