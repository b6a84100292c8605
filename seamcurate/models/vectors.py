"""Embeddings as matrices: one row a text, of length 1; rows that are not finite are zero and known to be so."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TypeAlias, TypeVar

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from seamcurate.models.protocols import Embedder, Prompt
from seamcurate.models.template import prompt_text
from seamcurate.text import counted

Floats: TypeAlias = npt.NDArray[np.float32]
F = TypeVar("F", np.float32, np.float64)


def embedded(embedder: Embedder, prompts: Sequence[Prompt]) -> tuple[Floats, npt.NDArray[np.bool_]]:
    """Embed prompts at length 1, float32, prompts × dimensions, and tell which embeddings are finite; others are 0."""
    vectors = embedder.embed([prompt_text(p) for p in prompts])
    finite: npt.NDArray[np.bool_] = np.all(np.isfinite(vectors), axis=1)
    return unit(vectors), finite


def not_finite(count: int, noun: str, consequence: str) -> Iterable[str]:
    """Say how many rows have an embedding that is not finite, if any have, and what became of them."""
    if count:
        yield f"{counted(count, f'{noun} has', f'{noun}s have')} an embedding that is not finite: {consequence}"


def normalised(vectors: npt.NDArray[F]) -> npt.NDArray[F]:
    """Scale each row to length 1, in the precision that it comes in; a zero stays zero, and NaN stays NaN.

    Example:
        >>> normalised(np.array([[3.0, 4.0], [0.0, 0.0]])).tolist()
        [[0.6, 0.8], [0.0, 0.0]]
    """
    # Rows that are not finite are the caller's to find: numpy need not warn of them.
    with np.errstate(invalid="ignore"):
        lengths = np.linalg.norm(vectors, axis=1, keepdims=True)  # (rows, 1)
        scaled: npt.NDArray[F] = vectors / np.maximum(lengths, 1e-12)
    return scaled


def unit(vectors: Floats) -> Floats:
    """Scale each row to length 1; a row that is not finite becomes zero, which is near nothing.

    Example:
        >>> unit(np.array([[3.0, 4.0], [np.nan, 1.0]], np.float32)).tolist()
        [[0.6000000238418579, 0.800000011920929], [0.0, 0.0]]
    """
    if not (is_finite := np.isfinite(vectors).all(axis=1, keepdims=True)).all():
        vectors = np.where(is_finite, vectors, 0)
    # The square of a large number overflows single precision.
    return np.ascontiguousarray(normalised(vectors.astype(np.float64)), np.float32)


def dimensions(columns: Iterable[pa.ChunkedArray]) -> int | None:
    """Return how many dimensions embeddings have; None where all are NULL."""
    lengths = (pc.max(pc.list_value_length(column)).as_py() for column in columns)
    return next((length for length in lengths if length), None)


def as_matrix(embeddings: pa.ChunkedArray, width: int) -> Floats:
    """Return a list column as rows × `width` dimensions; NULL is 0 throughout."""
    lists = embeddings.combine_chunks()
    matrix = np.zeros((len(lists), width), np.float32)
    flat = lists.drop_null().flatten().to_numpy(zero_copy_only=False)
    matrix[lists.is_valid().to_numpy(zero_copy_only=False)] = flat.reshape(-1, width)
    return matrix
