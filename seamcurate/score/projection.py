"""A map of prompts: their embeddings in two dimensions, with similar prompts near each other.

The map is for orientation, not for measurement: trust its groups and neighbours, not the distances between groups. The
step measures which share of neighbours stay neighbours, and the columns' facts hold it.
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
from typing_extensions import override

from seamcurate.errors import StepError
from seamcurate.models import EncoderModel
from seamcurate.models.vectors import embedded, not_finite
from seamcurate.score import compared
from seamcurate.step import Averages, Data, Step, Transform, Work, column, evenly

Floats: TypeAlias = npt.NDArray[np.float32]
Doubles: TypeAlias = npt.NDArray[np.float64]

_COMPONENTS = 50
"""Principal components that t-SNE reads."""
_PERPLEXITY = 30.0
_ITERATIONS = 500
"""Chosen from 300 to 1,000: more iterations raise the share of neighbours kept by at most .01."""
_NEIGHBOURS = 10
"""Landmarks that place a row, and the neighbours that `neighbours_kept` compares."""
_TEMPERATURE = 0.02
"""Temperature of the softmax over cosines that weights the landmarks; half or twice the value changes the share kept by .01."""


class Project(Step):
    """Add `projection_x` and `projection_y`: each prompt's place on a t-SNE map of all prompts.

    t-SNE lays out a sample of prompts, the landmarks. Every row is placed at the weighted mean of the landmarks nearest
    to it. A row whose embedding is not finite is NULL. Principal components would be cheaper but keep fewer neighbours:
    on the demo's corpus a sixteenth of them, where t-SNE keeps half.

    Raises:
        ModelError: No encoder is named, or it cannot be loaded.

    Example:
        >>> from seamcurate import Project
        >>> Project(landmarks=500).adds.names
        ['projection_x', 'projection_y']
    """

    extras: ClassVar[tuple[str, ...]] = ("local",)
    encoder: EncoderModel | None = None
    landmarks: int = Field(default=1000, ge=1)
    """How many prompts, sampled evenly from all rows, t-SNE lays out. More landmarks make t-SNE slower, but hardly the rows."""

    revision: ClassVar[int] = 2
    rows_per_call: ClassVar[int] = 512

    @property
    @override
    def name(self) -> str:
        return "projection"

    @property
    @override
    def inputs(self) -> tuple[str, ...]:
        return ("prompt",)

    @property
    @override
    def adds(self) -> pa.Schema:
        meaning = "where the prompt lies on a map of all prompts, like ones together: "
        return pa.schema(
            [
                column("projection_x", pa.float64(), f"{meaning}across"),
                column("projection_y", pa.float64(), f"{meaning}up"),
            ]
        )

    @property
    @override
    def reads_all_rows(self) -> bool:
        """The landmarks are sampled from all rows."""
        return True

    @override
    def prepare(self, data: Data, shared: Path) -> None:
        """Lay out the landmarks."""
        sample = evenly((p for table in data.rows(("prompt",)) for p in table["prompt"].to_pylist()), self.landmarks)
        compared.sample_prompts(self.encoder, data, shared)
        vectors, is_finite = embedded(compared.load_encoder(self.encoder, self.name, shared), sample)
        vectors = vectors[is_finite]
        if not len(vectors):
            raise StepError(
                f"step {self.name}: no prompt has an embedding that is finite; name another encoder, or `dtype: float32`"
            )
        places = layout(vectors)
        np.save(shared / "landmarks.npy", vectors)
        np.save(shared / "places.npy", places)
        share = neighbours_kept(vectors, places)
        (shared / "map.json").write_text(json.dumps({"landmarks": len(vectors), "neighbours_kept": share}))

    @override
    def work(self, rows: Averages) -> Work:
        return Work(self.encoder, 1, rows.prompt)

    @override
    def load(self, shared: Path) -> Transform:
        landmarks = np.load(shared / "landmarks.npy", allow_pickle=False)
        places = np.load(shared / "places.npy", allow_pickle=False)
        embedder = compared.load_encoder(self.encoder, self.name, shared)

        def project(rows: pa.Table) -> pa.Table:
            vectors, is_finite = embedded(embedder, rows["prompt"].to_pylist())
            x, y = placed(vectors, landmarks, places).T
            return pa.table(
                {"projection_x": pa.array(x, mask=~is_finite), "projection_y": pa.array(y, mask=~is_finite)}
            )

        return project

    @override
    def facts(self, columns: Iterable[pa.Table], shared: Path) -> dict[str, JsonValue]:
        """Return the share of neighbours kept, and warn of rows without a place."""
        measured: dict[str, JsonValue] = {**compared.facts(shared), **json.loads((shared / "map.json").read_text())}
        null = sum(table["projection_x"].null_count for table in columns)
        if null:
            measured |= {"null": null, "warnings": list(not_finite(null, "row", "it is not on the map"))}
        share = measured["neighbours_kept"]
        if share is None:
            return measured
        summary = f"map of prompts: of the {_NEIGHBOURS} nearest of each landmark {float(str(share)):.0%} lie nearest on the map"
        return {**measured, "summary": summary}


def layout(vectors: Floats) -> Doubles:
    """Return a place in [-1, 1]² for each unit vector, by t-SNE (van der Maaten and Hinton 2008).

    The vectors are (rows, dimensions), the places (rows, 2). t-SNE starts from the principal components, each with the
    sign that makes its largest loading positive, and runs on one thread: the same vectors give the same map on the same
    machine.
    """
    centred = vectors.astype(np.float64) - vectors.mean(axis=0, dtype=np.float64)
    _, _, axes = np.linalg.svd(centred, full_matrices=False)
    axes *= np.sign(axes[np.arange(len(axes)), np.abs(axes).argmax(axis=1)])[:, None]
    # (rows, components)
    components = centred @ axes[:_COMPONENTS].T
    start = np.zeros((len(vectors), 2))
    start[:, : components.shape[1]] = components[:, :2]
    places = start
    # Fewer vectors stay on the first two components: they have no neighbourhoods to keep.
    if len(vectors) > 3 * _NEIGHBOURS:
        from sklearn.manifold import TSNE
        from threadpoolctl import threadpool_limits

        # scikit-learn's own scale of a start from principal components.
        initial = start / max(1e-12, start[:, 0].std()) * 1e-4
        perplexity = min(_PERPLEXITY, (len(vectors) - 1) / 3)
        with threadpool_limits(1):
            model = TSNE(2, perplexity=perplexity, init=initial, max_iter=_ITERATIONS, random_state=0)
            places = model.fit_transform(components).astype(np.float64)
    scaled: Doubles = places / max(1e-12, float(np.abs(places).max(initial=0)))
    return scaled


def placed(vectors: Floats, landmarks: Floats, places: Doubles) -> Doubles:
    """Return each unit vector's place, (rows, 2): the mean of its nearest landmarks' places, weighted by a softmax of cosines."""
    # (rows, landmarks)
    cosines = vectors.astype(np.float64) @ landmarks.T.astype(np.float64)
    # (rows, neighbours), the nearest landmark first
    nearest = np.argsort(-cosines, axis=1, kind="stable")[:, :_NEIGHBOURS]
    closest = np.take_along_axis(cosines, nearest, 1)
    weights = np.exp((closest - closest[:, :1]) / _TEMPERATURE)
    mean: Doubles = (places[nearest] * (weights / weights.sum(axis=1, keepdims=True))[:, :, None]).sum(axis=1)
    # An encoder's rounding differs with the other texts of the batch; digits that no screen shows are cut off.
    return np.round(mean, 4) + 0.0


def neighbours_kept(vectors: Floats, places: Doubles) -> float | None:
    """Return the share of each landmark's nearest landmarks that are its nearest on the map too; None for too few landmarks."""
    if len(vectors) <= 3 * _NEIGHBOURS:
        return None

    def nearest(distances: Doubles) -> npt.NDArray[np.int64]:
        np.fill_diagonal(distances, np.inf)
        return np.argpartition(distances, _NEIGHBOURS, axis=1)[:, :_NEIGHBOURS]

    in_space = nearest(-(vectors.astype(np.float64) @ vectors.T.astype(np.float64)))
    on_map = nearest(((places[:, None] - places[None]) ** 2).sum(axis=2))
    return float(np.mean([np.isin(a, b).mean() for a, b in zip(in_space, on_map, strict=True)]))
