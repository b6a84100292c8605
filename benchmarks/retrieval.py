"""30 neighbours at cosine 0.8 to 0.9: seamcurate's exact search against FAISS, usearch, plain products and mine_hard_negatives."""

from __future__ import annotations

import contextlib
import io
import tempfile
from collections.abc import Callable
from importlib.util import find_spec
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from benchmarks import inputs, work
from benchmarks.race import Peer, missing, race
from seamcurate.contrast import nearest
from seamcurate.contrast.retrieve import nothing

Floats = npt.NDArray[np.float32]
LOW, HIGH, K = 0.8, 0.9, 30
FIRST = 64
"""How many neighbours a search for the nearest asks for first; queries whose last one is still too near ask for more."""
_BLOCK = 8192


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
    for start in range(0, len(queries), 64):
        some = queries[start : start + 64]
        for query, products in zip(some, some @ corpus.T, strict=True):
            close = np.flatnonzero(products >= LOW - 1e-4)
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


def kept(places: Any, cosines: Any) -> set[int]:
    """Return the nearest in the band among some neighbours of one query."""
    inside = (cosines >= LOW) & (cosines <= HIGH)
    places, cosines = np.asarray(places)[inside], np.asarray(cosines)[inside]
    return {int(place) for place in places[np.lexsort((places, -cosines))][:K]}


def deeper(search: Callable[[Floats, int], tuple[Any, Any]], queries: Floats, count: int) -> list[set[int]]:
    """Ask for the nearest, and again for more where the last one found is not below the band and the band is not full."""
    found: list[set[int]] = [set() for _ in queries]
    left, depth = np.arange(len(queries)), min(FIRST, count)
    while len(left):
        cosines, places = search(queries[left], depth)
        more = []
        for i, near, some in zip(left, cosines, places, strict=True):
            found[i] = kept(some, near)
            if len(found[i]) < K and near[-1] >= LOW and depth < count:
                more.append(i)
        left, depth = np.array(more, int), min(8 * depth, count)
    return found


def by_numpy(queries: Floats, corpus: Floats) -> list[set[int]]:
    """Multiply block by block, keep what is in the band."""
    found: list[set[int]] = []
    for start in range(0, len(queries), 256):
        some = queries[start : start + 256]
        hits: list[list[tuple[Any, Any]]] = [[] for _ in some]
        for first in range(0, len(corpus), _BLOCK):
            cosines = some @ corpus[first : first + _BLOCK].T
            rows, places = np.nonzero((cosines >= LOW) & (cosines <= HIGH))
            for row, place, cosine in zip(rows, places, cosines[rows, places], strict=True):
                hits[row].append((first + place, cosine))
        found += [
            kept([p for p, _ in hit], np.array([c for _, c in hit], np.float32)) if hit else set() for hit in hits
        ]
    return found


def by_torch(queries: Floats, corpus: Floats) -> list[set[int]]:
    """Multiply block by block, hide what is outside the band, keep the top 30 of the best so far and the block."""
    import torch

    vectors = torch.from_numpy(corpus)
    found: list[set[int]] = []
    for start in range(0, len(queries), 256):
        some = torch.from_numpy(queries[start : start + 256])
        best = torch.full((len(some), K), -1.0), torch.zeros(len(some), K, dtype=torch.long)
        for first in range(0, len(vectors), _BLOCK):
            cosines = some @ vectors[first : first + _BLOCK].T
            cosines.masked_fill_((cosines < LOW) | (cosines > HIGH), -1.0)
            top = cosines.topk(min(K, cosines.shape[1]), 1)
            merged = torch.cat([best[0], top.values], 1).topk(K, 1)
            places = torch.cat([best[1], top.indices + first], 1).gather(1, merged.indices)
            best = merged.values, places
        for cosines, places in zip(*best, strict=True):
            found.append(kept(places.numpy(), cosines.numpy()))
    return found


def by_faiss(queries: Floats, corpus: Floats, ranged: bool) -> list[set[int]]:
    """Search a flat index, by range or for the nearest; adding the vectors is counted."""
    import faiss

    index = faiss.IndexFlatIP(corpus.shape[1])
    index.add(corpus)
    if not ranged:
        return deeper(index.search, queries, len(corpus))
    limits, cosines, places = index.range_search(queries, LOW - 1e-6)
    return [kept(places[a:b], cosines[a:b]) for a, b in pairwise(limits)]


def by_usearch(queries: Floats, corpus: Floats, threads: int) -> list[set[int]]:
    """Search exactly, for the nearest."""
    from usearch.index import MetricKind, search

    def nearest_of(some: Floats, depth: int) -> tuple[Any, Any]:
        found = search(corpus, some, depth, MetricKind.IP, exact=True, threads=threads)
        return 1 - np.atleast_2d(found.distances), np.atleast_2d(found.keys).astype(np.int64)

    return deeper(nearest_of, queries, len(corpus))


def main(scale: float, large: bool = True) -> None:
    """Race on 60,000 embeddings, and where `large` on a million and on 768 dimensions too."""
    name = f"{inputs.source()} embedded by all-MiniLM-L6-v2"
    if not large:
        # To embed what is searched takes ten times as long as to search it.
        base = inputs.embedded("corpus", [prompt for prompt, _ in inputs.pairs()[:1000]])
        queries, corpus = around(base, round(1000 * scale), 1), around(base, round(60_000 * scale), 0)
        _race(queries, corpus, f"made-up vectors around {len(base):,} {name}", 3, mined=True)
        return
    queries, corpus = inputs.embeddings()
    queries = queries[: max(10, round(2000 * scale))]
    _race(queries, corpus, name, 3, mined=True)
    many = max(1000, round(1_000_000 * scale))
    _race(queries, around(corpus, many, 0), f"{many:,} made-up vectors around these", 1, mined=True)
    wide, some = widened(corpus, 768, 0), widened(queries, 768, 0)
    _race(some, wide, f"{name}, turned into 768 dimensions with some noise", 3, mined=False)


def widened(vectors: Floats, width: int, seed: int) -> Floats:
    """Return vectors of more dimensions, with cosines about those of the ones given."""
    turn = np.linalg.qr(np.random.default_rng(seed).standard_normal((width, vectors.shape[1])))[0].astype(np.float32)
    noise = np.random.default_rng(seed + len(vectors)).standard_normal((len(vectors), width)).astype(np.float32)
    wide = vectors @ turn.T + 0.2 * noise / np.sqrt(width)
    return np.ascontiguousarray(wide / np.linalg.norm(wide, axis=1, keepdims=True), np.float32)


def _race(queries: Floats, vectors: Floats, name: str, repeats: int, mined: bool) -> None:
    import torch
    from datasets import Dataset
    from sentence_transformers.util import mine_hard_negatives

    threads = torch.get_num_threads()
    exact = brute_force(queries, vectors)
    wanted = sum(map(len, exact))

    def mine() -> list[set[int]]:
        with tempfile.TemporaryDirectory() as folder:
            nearest.build(Path(folder), len(vectors), [vectors], LOW, len(queries))
            band = nearest.Band(Path(folder), (LOW, HIGH))
            hits = [h for i in range(0, len(queries), 1024) for h in band.search(queries[i : i + 1024], K, nothing)]
            return [{int(place) for place in h.positions} for h in hits]

    texts = [f"text {i}" for i in range(len(vectors))]
    asked = Dataset.from_dict({"query": [f"query {i}" for i in range(len(queries))], "positive": texts[: len(queries)]})

    def mined_by(path: str) -> list[set[int]]:
        with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
            rows = mine_hard_negatives(
                asked,
                Embedded(queries, vectors),  # type: ignore[arg-type]
                corpus=texts,
                min_score=LOW,
                max_score=HIGH,
                num_negatives=K,
                use_faiss=path == "FAISS",
                faiss_batch_size=256,
                output_format="triplet",
                verbose=False,
            )
        # A query's own "positive" is a row like any other here: it is not theirs to find.
        found = [{row} & places for row, places in enumerate(exact)]
        for query, negative in zip(rows["query"], rows["negative"], strict=True):
            found[int(query[6:])].add(int(negative[5:]))
        return found

    runs: dict[str, Callable[[], list[set[int]]]] = {
        "torch, product and masked top-k": lambda: by_torch(queries, vectors),
        "NumPy, product and mask": lambda: by_numpy(queries, vectors),
    }
    if find_spec("faiss") is None:
        missing("retrieval", "FAISS", "not installed", "pip install faiss-cpu")
    else:
        import faiss

        faiss.omp_set_num_threads(threads)
        runs["FAISS flat, range_search"] = lambda: by_faiss(queries, vectors, True)
        runs["FAISS flat, nearest, deeper where needed"] = lambda: by_faiss(queries, vectors, False)
    if find_spec("usearch") is None:
        missing("retrieval", "usearch", "not installed", "pip install usearch")
    else:
        runs["usearch exact, nearest, deeper where needed"] = lambda: by_usearch(queries, vectors, threads)
    if mined:
        runs["mine_hard_negatives, exact"] = lambda: mined_by("exact")

    def recall(found: list[set[int]]) -> float:
        return round(sum(len(a & b) for a, b in zip(found, exact, strict=True)) / wanted, 4) if wanted else 1.0

    mine()
    race(
        "retrieval",
        f"{len(queries):,} queries × {len(vectors):,} × {vectors.shape[1]}, {name}, {wanted / len(queries):.1f} found a query",
        mine,
        {against: Peer(run) for against, run in runs.items()},
        # Single precision may put a neighbour on the other side of an edge, or of the thirtieth.
        lambda a, b: a == exact and recall(b) >= 0.999,
        repeats,
        work=work.of_products(len(queries), len(vectors), vectors.shape[1]),
        more=lambda a, b: {"recall": {"ours": recall(a), "theirs": recall(b)}},
    )
