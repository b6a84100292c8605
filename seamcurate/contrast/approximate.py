"""Approximate search by FAISS, for corpora of millions: what it proposes is checked exactly, what it misses is measured.

A band needs everything above its floor, and the best k of FAISS may all lie above its ceiling: a query whose results
all reach the floor is searched again, deeper; one that FAISS can search no deeper is searched exactly.
"""

from __future__ import annotations

import math
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from seamcurate.contrast.nearest import SLACK, Band, Floats, Hits, LeaveOut
from seamcurate.errors import StepError

if TYPE_CHECKING:
    from seamcurate.contrast.nearest import Places

Kind = Literal["ivf", "hnsw"]
_GPU_DEPTH = 2048
"""The most results FAISS gives on a GPU, where it has no range search either."""


class Approximate:
    """A FAISS index beside the vectors it was made from.

    Args:
        folder: Where `build` left it.
        exact: The same vectors, to check what FAISS proposes.
        effort: Lists probed (`ivf`) or candidates kept while searching (`hnsw`).
    """

    def __init__(self, folder: Path, exact: Band, effort: int) -> None:
        faiss = load_faiss()
        self.exact = exact
        self._index: Any = faiss.read_index(str(folder / "index.faiss"))
        self.deepest = int(self._index.ntotal)
        self._graph: Any = getattr(self._index, "hnsw", None)
        if self._graph is None:
            self._index.nprobe = effort
            if getattr(faiss, "get_num_gpus", lambda: 0)() > 0:
                self._index = faiss.index_cpu_to_all_gpus(self._index)
                self.deepest = min(self.deepest, _GPU_DEPTH)
        self._effort = effort

    def search(self, queries: Floats, k: int, leave_out: LeaveOut) -> list[Hits]:
        """Return about what `Band.search` returns; see `recall`."""
        found: list[Hits] = [Hits(np.zeros(0, np.int64), np.zeros(0))] * len(queries)
        left = np.arange(len(queries))
        depth = min(max(128, 4 * k), self.deepest)
        while len(left):
            if self._graph is not None:
                self._graph.efSearch = max(self._effort, depth)
            asked = queries[left]
            scores, labels = self._index.search(asked, depth)
            near = (labels >= 0) & (scores >= self.exact.low - SLACK)
            # Where everything found reaches the floor, there may be more that does.
            more = near[:, -1] & (depth < len(self.exact.vectors))
            rows, columns = np.nonzero(near & ~more[:, None])
            hits = self.exact.check(asked, rows, labels[rows, columns], k, _of(left, leave_out))
            if depth == self.deepest and more.any():
                exact = self.exact.search(asked[more], k, _of(left[more], leave_out))
                for row, one in zip(np.flatnonzero(more), exact, strict=True):
                    hits[row] = one
                more[:] = False
            for row in np.flatnonzero(~more):
                found[left[row]] = hits[row]
            left = left[more]
            depth = min(4 * depth, self.deepest)
        return found


def _of(queries: Places, leave_out: LeaveOut) -> LeaveOut:
    """Ask `leave_out` about some of its queries, counted from the first of these."""
    return lambda rows, places: leave_out(queries[rows], places)


def build(folder: Path, kind: Kind) -> None:
    """Make a FAISS index of the vectors in a folder and leave it there."""
    faiss = load_faiss()
    vectors: Floats = np.load(folder / "vectors.npy", mmap_mode="r", allow_pickle=False)
    count, width = vectors.shape
    if kind == "ivf":
        lists = min(max(1, int(4 * math.sqrt(count))), max(1, count // 39))
        index = faiss.IndexIVFFlat(faiss.IndexFlatIP(width), width, lists, faiss.METRIC_INNER_PRODUCT)
        index.train(np.ascontiguousarray(vectors[:: max(1, count // (64 * lists))]))
    else:
        index = faiss.IndexHNSWFlat(width, 32, faiss.METRIC_INNER_PRODUCT)
    for start in range(0, count, 65_536):
        index.add(np.ascontiguousarray(vectors[start : start + 65_536]))
    faiss.write_index(index, str(folder / "index.faiss"))


def recall(found: list[Hits], exact: list[Hits]) -> float:
    """Return the share of what exact search finds that another search found too; 1 where there is nothing to find."""
    wanted = sum(len(hits.places) for hits in exact)
    both = sum(len(np.intersect1d(a.places, b.places)) for a, b in zip(found, exact, strict=True))
    return both / wanted if wanted else 1.0


def load_faiss() -> Any:
    """Import FAISS, of which exactly one build must be installed.

    Raises:
        StepError: None is installed, or both are: the last one installed wins and removing one breaks the other.
    """
    from importlib.metadata import PackageNotFoundError, version

    builds = []
    for name in ("faiss-cpu", "faiss-gpu"):
        try:
            builds.append(f"{name} {version(name)}")
        except PackageNotFoundError:
            continue
    if len(builds) == 2:
        raise StepError(f"{builds[0]} and {builds[1]} overwrite each other; uninstall both, then install one")
    if not builds:
        raise StepError(
            'an approximate index needs FAISS: pip install "seamcurate[cpu]", or "seamcurate[gpu]" on a CUDA machine; '
            "`index: exact` needs none"
        )
    import faiss

    return faiss
