"""30 neighbours at cosine 0.8 to 0.9: seamcurate's exact search against mine_hard_negatives of sentence-transformers."""

from __future__ import annotations

import contextlib
import io
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from benchmarks import inputs
from benchmarks.race import race
from seamcurate.contrast import nearest
from seamcurate.contrast.retrieve import nothing

Floats = npt.NDArray[np.float32]
LOW, HIGH, K = 0.8, 0.9, 30


class Embedded:
    """What mine_hard_negatives asks of a model, answered with embeddings that are there already."""

    device = "cpu"

    def __init__(self, queries: Floats, corpus: Floats) -> None:
        self.queries, self.corpus = queries, corpus

    def encode_query(self, texts: list[str], **_: Any) -> Floats:
        return self.queries

    def encode_document(self, texts: list[str], **_: Any) -> Floats:
        return self.corpus

    def get_embedding_dimension(self) -> int:
        return self.corpus.shape[1]

    def similarity(self, a: Any, b: Any) -> Any:
        import torch

        return torch.as_tensor(a) @ torch.as_tensor(b).T

    def similarity_pairwise(self, a: Any, b: Any) -> Any:
        import torch

        return (torch.as_tensor(a) * torch.as_tensor(b)).sum(1)


def brute_force(queries: Floats, corpus: Floats) -> list[set[int]]:
    """Return each query's nearest in the band, from every product in double precision."""
    found = []
    for query in queries:
        close = np.flatnonzero(corpus @ query >= LOW - 1e-4)
        cosines = corpus[close].astype(np.float64) @ query.astype(np.float64)
        inside = (cosines >= LOW) & (cosines <= HIGH)
        close, cosines = close[inside], cosines[inside]
        found.append({int(i) for i in close[np.lexsort((close, -cosines))][:K]})
    return found


def around(base: Floats, count: int, seed: int) -> Floats:
    """Return made-up vectors that lie about the real ones as these lie about each other, some nearer, some farther."""
    draw = np.random.default_rng(seed)
    found = np.empty((count, base.shape[1]), np.float32)
    for start in range(0, count, 65_536):
        part = found[start : start + 65_536]
        noise = draw.standard_normal(part.shape, np.float32)
        noise *= draw.uniform(0.3, 1.5, (len(part), 1)).astype(np.float32) / np.linalg.norm(
            noise, axis=1, keepdims=True
        )
        part[:] = base[draw.integers(0, len(base), len(part))] + noise
        part /= np.linalg.norm(part, axis=1, keepdims=True)
    return found


def main(scale: float) -> None:
    from datasets import Dataset
    from sentence_transformers.util import mine_hard_negatives

    queries, corpus = inputs.embeddings()
    queries = queries[: max(10, round(2000 * scale))]
    many = max(1000, round(1_000_000 * scale))
    cases = [
        (f"{inputs.source()} embedded by all-MiniLM-L6-v2", corpus, 3),
        (f"{many:,} made-up vectors around these", around(corpus, many, 0), 1),
    ]
    for name, vectors, repeats in cases:
        texts = [f"text {i}" for i in range(len(vectors))]
        asked = Dataset.from_dict(
            {"query": [f"query {i}" for i in range(len(queries))], "positive": texts[: len(queries)]}
        )
        exact = brute_force(queries, vectors)
        wanted = sum(map(len, exact))

        def mine(vectors: Floats = vectors) -> list[set[int]]:
            with tempfile.TemporaryDirectory() as folder:
                nearest.build(Path(folder), len(vectors), [vectors], LOW)
                band = nearest.Band(Path(folder), (LOW, HIGH))
                hits = [h for i in range(0, len(queries), 1024) for h in band.search(queries[i : i + 1024], K, nothing)]
                return [{int(place) for place in h.positions} for h in hits]

        mine()
        for path in ("exact", "faiss"):
            found: list[float] = []

            def theirs(
                path: str = path, vectors: Floats = vectors, texts: list[str] = texts, asked: Any = asked
            ) -> Any:
                with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
                    return mine_hard_negatives(
                        asked,
                        Embedded(queries, vectors),  # type: ignore[arg-type]
                        corpus=texts,
                        min_score=LOW,
                        max_score=HIGH,
                        num_negatives=K,
                        use_faiss=path == "faiss",
                        faiss_batch_size=256,
                        output_format="triplet",
                        verbose=False,
                    )

            def same(
                ours: list[set[int]],
                rows: Any,
                exact: list[set[int]] = exact,
                found: list[float] = found,
                wanted: int = wanted,
            ) -> bool:
                pairs = {(int(q[6:]), int(n[5:])) for q, n in zip(rows["query"], rows["negative"], strict=True)}
                # A query's own "positive" is a row like any other here: it is not theirs to find.
                both = sum(
                    (row, place) in pairs or place == row for row, places in enumerate(exact) for place in places
                )
                mine_too = sum(len(a & b) for a, b in zip(ours, exact, strict=True))
                found[:] = [mine_too / max(1, wanted), both / max(1, wanted)]
                return ours == exact

            race(
                "retrieval",
                f"mine_hard_negatives {path}",
                mine,
                theirs,
                same,
                f"{len(queries):,} queries × {len(vectors):,} × {vectors.shape[1]}, {name}, {wanted / len(queries):.1f} found a query",
                repeats,
                lambda found=found: {"recall": {"ours": round(found[0], 4), "theirs": round(found[1], 4)}},  # type: ignore[misc]
            )
