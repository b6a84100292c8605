"""Approximate search by FAISS, for corpora of millions: its proposals are checked exactly, its misses are measured.

FAISS returns the nearest vectors, and all of them may lie above the band's ceiling. A query whose results all reach the
floor is therefore searched again, deeper; where FAISS can search no deeper, it is searched exactly. The index has parts of a
gigabyte of vectors, whose proposals are merged, so that neither building nor searching holds all vectors in memory.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import numpy.typing as npt

from seamcurate import extras, threads
from seamcurate.contrast.nearest import Band, Floats, Hits, LeaveOut
from seamcurate.errors import StepError

if TYPE_CHECKING:
    from seamcurate.contrast.nearest import Positions

IndexKind = Literal["ivf", "hnsw"]
_PART = 2**30
"""Bytes of vectors in one part of the index."""
_FOUND = 2**21
"""Results in memory at once, however deep the search: 24 MiB."""
_GPU_DEPTH = 2048
"""The most results that FAISS returns on a GPU, where it has no range search either."""


class Approximate:
    """Search vectors by the FAISS indices that were built from them.

    Args:
        folder: The folder that `build` wrote the indices to.
        exact: The same vectors, by which proposals are checked.
        effort: Lists probed (`ivf`) or candidates held while searching (`hnsw`), in each part.
    """

    def __init__(self, folder: Path, exact: Band, effort: int) -> None:
        faiss = load_faiss()
        self.exact = exact
        on_gpu = getattr(faiss, "get_num_gpus", lambda: 0)() > 0
        self._parts: list[Any] = []
        for file in sorted(folder.glob("*.faiss")):
            # A mapped index stays on disk: a search reads the lists or nodes that it visits.
            mapped = faiss.IO_FLAG_MMAP_IFC if file.name.startswith("hnsw") else faiss.IO_FLAG_MMAP
            index = faiss.read_index(str(file), 0 if on_gpu else mapped)
            if hasattr(index, "nprobe"):
                index.nprobe = effort
                if on_gpu:
                    index = faiss.index_cpu_to_all_gpus(index)
                else:
                    # FAISS starts 32 threads a search to read lists ahead, whatever number it computes with.
                    faiss.downcast_InvertedLists(index.invlists).prefetch_nthread = threads.available()
            self._parts.append(index)
        self.deepest = max(int(index.ntotal) for index in self._parts)
        if on_gpu and not hasattr(self._parts[0], "hnsw"):
            self.deepest = min(self.deepest, _GPU_DEPTH)
        self._effort = effort

    def search(self, queries: Floats, k: int, leave_out: LeaveOut) -> list[Hits]:
        """Return most of what `Band.search` returns; `recall` measures how much."""
        results: list[Hits] = [Hits(np.zeros(0, np.int64), np.zeros(0))] * len(queries)
        # Queries that are not settled yet, by their rows in `queries`; each round searches them four times as deep.
        open_rows = np.arange(len(queries))
        depth = min(max(128, 4 * k), self.deepest)
        while len(open_rows):
            open_queries = queries[open_rows]
            deeper = np.zeros(len(open_rows), bool)
            hits = self.exact.check(
                open_queries, self._proposed(open_queries, depth, deeper), k, _of(open_rows, leave_out)
            )
            # FAISS returns no more than that: these are searched exactly.
            if depth == self.deepest and deeper.any():
                exact = self.exact.search(open_queries[deeper], k, _of(open_rows[deeper], leave_out))
                for row, row_hits in zip(np.flatnonzero(deeper), exact, strict=True):
                    hits[row] = row_hits
                deeper[:] = False
            for row in np.flatnonzero(~deeper):
                results[open_rows[row]] = hits[row]
            open_rows = open_rows[deeper]
            depth = min(4 * depth, self.deepest)
        return results

    def _proposed(
        self, queries: Floats, depth: int, deeper: npt.NDArray[np.bool_]
    ) -> Iterator[tuple[Positions, Positions]]:
        """Yield the proposals of each part of the index, and mark in `deeper` the queries that may have more in it."""
        start = 0
        for index in self._parts:
            # A search of a graph finds no more than the candidates it holds.
            if hasattr(index, "hnsw"):
                index.hnsw.efSearch = max(self._effort, depth)
            size = int(index.ntotal)
            batch_size = max(1, _FOUND // depth)
            for offset in range(0, len(queries), batch_size):
                # Both (queries of the batch, depth), best first; FAISS fills what it does not find with label −1.
                scores, labels = index.search(queries[offset : offset + batch_size], min(depth, size))
                near = (labels >= 0) & (scores >= self.exact.low - self.exact.slack)
                # Where the last result still reaches the floor, further ones may.
                batch_deeper = deeper[offset : offset + batch_size]
                batch_deeper |= near[:, -1] & (depth < size)
                # A query that is searched again gets its proposals then, all at once.
                rows, columns = np.nonzero(near & ~batch_deeper[:, None])
                yield rows + offset, labels[rows, columns] + start
            start += size


def _of(queries: Positions, leave_out: LeaveOut) -> LeaveOut:
    """Return `leave_out` for a part of the queries, which are numbered from 0 in it."""
    return lambda rows, positions: leave_out(queries[rows], positions)


def build(folder: Path, kind: IndexKind) -> None:
    """Write FAISS indices of the vectors in a folder into it, one for each gigabyte of vectors.

    Raises:
        OSError: An index cannot be written.
    """
    faiss = load_faiss()
    vectors: Floats = np.load(folder / "vectors.npy", mmap_mode="r", allow_pickle=False)
    width = vectors.shape[1]
    size = max(1, _PART // (4 * width))
    for number, start in enumerate(range(0, len(vectors), size)):
        section = vectors[start : start + size]
        count = len(section)
        if kind == "ivf":
            # FAISS's advice: about 4√n lists, and at least 39 vectors to train each on.
            lists = min(max(1, int(4 * math.sqrt(count))), max(1, count // 39))
            index = faiss.IndexIVFFlat(faiss.IndexFlatIP(width), width, lists, faiss.METRIC_INNER_PRODUCT)
            # k-means needs no more than a few dozen vectors a list.
            index.train(np.ascontiguousarray(section[:: max(1, count // (64 * lists))]))
        else:
            index = faiss.IndexHNSWFlat(width, 32, faiss.METRIC_INNER_PRODUCT)
        for block in range(0, count, 65_536):
            index.add(np.ascontiguousarray(section[block : block + 65_536]))
        try:
            faiss.write_index(index, str(folder / f"{kind}-{number:05d}.faiss"))
        except RuntimeError as error:
            raise OSError(f"FAISS cannot write its index: {error}") from error


def recall(results: list[Hits], exact: list[Hits]) -> float:
    """Return the share of exact search's hits that another search also has; 1 where exact search has none."""
    exact_count = sum(len(row.positions) for row in exact)
    shared_count = sum(
        len(np.intersect1d(hits.positions, exact_hits.positions))
        for hits, exact_hits in zip(results, exact, strict=True)
    )
    return shared_count / exact_count if exact_count else 1.0


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
            f"an approximate index needs FAISS, which is not installed; {extras.install('cpu')}, or with gpu for cpu on a "
            "CUDA machine; `index: exact` needs none"
        )
    import faiss

    return faiss
