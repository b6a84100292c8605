"""How many rows a cosine band serves, measured on a sample, and what a wider band or a larger corpus would serve."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TypeAlias

import numpy as np
import numpy.typing as npt
from pydantic import JsonValue

from seamcurate.models.vectors import Floats

Keys: TypeAlias = npt.NDArray[np.uint64]
"""Hashes of texts: equal texts have equal keys."""

_BINS = 1000
"""Bins of the histogram of cosines, from 0 to 1."""
_BLOCK = 65_536
"""Corpus vectors multiplied at once."""


def probe(
    queries: Floats,
    query_keys: Keys,
    vectors: Floats,
    vector_keys: Keys,
    band: tuple[float, float],
    k: int,
    rows_per_vector: float = 1,
) -> dict[str, JsonValue]:
    """Describe the neighbourhood of sampled queries: how many this band serves, a wider one, and a larger corpus.

    Without queries only `rows_probed` is returned.

    Args:
        queries: float32, queries × dimensions, length 1.
        query_keys: `retrieve.keys` of the queries' texts: an equal instruction is no neighbour.
        vectors: float32, corpus × dimensions, length 1.
        vector_keys: `retrieve.keys` of the corpus's instructions.
        band: Lowest and highest cosine.
        k: How many candidates a row takes at most.
        rows_per_vector: How many corpus rows each vector stands for, where the vectors are a sample of the corpus.
    """
    if not len(queries):
        return {"rows_probed": 0}
    edges = np.linspace(0, 1, _BINS + 1)
    # Even and odd corpus rows apart, so that half a corpus can be compared with the whole: (halves, queries, bins).
    histogram = np.zeros((2, len(queries), _BINS))
    highest = np.full(len(queries), -1.0)
    for start in range(0, len(vectors), _BLOCK):
        block = vectors[start : start + _BLOCK]
        cosines = queries @ block.T  # (queries, block)
        cosines[query_keys[:, None] == vector_keys[None, start : start + _BLOCK]] = -1
        # A row without an embedding is zero throughout, and near nothing.
        cosines[:, ~block.any(axis=1)] = -1
        highest = np.maximum(highest, cosines.max(axis=1, initial=-1))
        # Bin 0 is for negative cosines; each query has its own run of bins, so that one bincount serves all.
        bins = np.clip(np.floor(cosines * _BINS), -1, _BINS - 1).astype(np.int64) + 1
        bins += np.arange(len(queries))[:, None] * (_BINS + 1)
        for half in (0, 1):
            counted = np.bincount(bins[:, half::2].reshape(-1), minlength=len(queries) * (_BINS + 1))
            histogram[half] += counted.reshape(len(queries), _BINS + 1)[:, 1:]

    def counts(low: float, high: float, halves: Sequence[int] = (0, 1)) -> npt.NDArray[np.float64]:
        """Return how many candidates each query has in a band, at most `k`."""
        inside = (edges[:-1] >= low - 1e-9) & (edges[1:] <= high + 1e-9)
        sums: npt.NDArray[np.float64] = histogram[list(halves)][:, :, inside].sum(axis=(0, 2)) * rows_per_vector
        return np.minimum(sums, k)

    corpus_counts, half_counts = counts(*band), counts(*band, (0,))
    unserved, unserved_by_half = float(np.mean(corpus_counts == 0)), float(np.mean(half_counts == 0))
    lows = [low for low in (band[0] - 0.05, band[0] - 0.1, band[0] - 0.2) if low > 0]
    return {
        "rows_probed": len(queries),
        "candidates_mean": round(float(corpus_counts.mean()), 3),
        "share_none": round(unserved, 4),
        "nearest_quantiles": {
            q: round(float(np.quantile(highest, float(q))), 4) for q in ("0.1", "0.25", "0.5", "0.75", "0.9")
        },
        "wider": {
            f"{low:.2f}": {
                "candidates_mean": round(float(counts(low, band[1]).mean()), 2),
                "share_none": round(float(np.mean(counts(low, band[1]) == 0)), 4),
            }
            for low in lows
        },
        # Assumes that a doubling serves the same share of the unserved rows as the last doubling did, half to whole.
        "share_none_twice_the_corpus": round(unserved * unserved / unserved_by_half, 4) if unserved_by_half else 0.0,
    }


def advice(probed: dict[str, JsonValue], band: tuple[float, float]) -> Iterable[str]:
    """Say why a band serves few rows, and what would serve more.

    Args:
        probed: What `probe` returned.
        band: Lowest and highest cosine.
    """
    quantiles, wider = probed["nearest_quantiles"], probed["wider"]
    assert isinstance(quantiles, dict) and isinstance(wider, dict)
    yield (
        f"fewer than half of the rows have a candidate in [{band[0]:g}, {band[1]:g}]; cosine of the nearest other "
        "instruction: " + ", ".join(f"{float(q):.0%} of rows below {value}" for q, value in quantiles.items())
    )
    for low, served in wider.items():
        assert isinstance(served, dict)
        share_none, mean = served["share_none"], served["candidates_mean"]
        assert isinstance(share_none, float)
        yield (
            f"a band of [{low}, {band[1]:g}] would serve {1 - share_none:.0%} of rows, {mean} candidates each on average"
        )
    share_none = probed["share_none_twice_the_corpus"]
    assert isinstance(share_none, float)
    yield f"a corpus twice as large would serve about {1 - share_none:.0%} (from what half of this one serves)"
