"""Exact search for the nearest vectors inside a cosine band. This module knows vectors, and neither texts nor rows.

A bound rules almost every vector out: the cosine of two unit vectors is at most the product over their first principal
components plus the product of the lengths of their remainders (Cauchy–Schwarz). With that length as one more component, the
bound is a single matrix product over a third of the components. The pairs that it lets through are multiplied in double
precision, so that the edges of the band depend neither on a batch nor on a machine.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple, TypeAlias

import numpy as np
import numpy.typing as npt

from seamcurate.models.product import product

if TYPE_CHECKING:
    import torch

Floats: TypeAlias = npt.NDArray[np.float32]
Doubles: TypeAlias = npt.NDArray[np.float64]
Positions: TypeAlias = npt.NDArray[np.int64]
LeaveOut: TypeAlias = Callable[[Positions, Positions], npt.NDArray[np.bool_]]
"""Queries and positions of vectors, pairwise or broadcast → which of these pairs are no candidates."""

SLACK = 1e-4
"""The largest error of a product in single precision."""
_PAIRS = 2**22
"""Products in memory at once: 16 MiB of single precision."""
_ROWS = 2**15
"""Vectors in memory at once, however few the queries."""
_SAMPLE = 8192
"""Vectors by which the bound is chosen."""
_LOOK_UP = 100
"""What looking one vector up costs, in products of whole vectors: 0.7 µs where a core multiplies at 150 GFLOP/s."""
_RUN = 64
"""Products in a row that are skipped together when none reaches its floor."""


class Hits(NamedTuple):
    """One query's nearest vectors inside the band, highest cosine first."""

    positions: Positions
    """Their rows in `vectors.npy`."""
    cosines: Doubles
    """Their cosines with the query, in double precision."""


class Band:
    """Vectors on disk, prepared for one band; they are memory-mapped and read in blocks, and may exceed the memory.

    vectors.npy    float32, count × dimensions, length 1
    bound.npy      float32, count × (components + 1): principal components, and the length of the rest
    rotation.npy   float32, dimensions × components; this and bound.npy are absent where a bound would rule out too little
    """

    def __init__(self, folder: Path, band: tuple[float, float]) -> None:
        import torch

        self.low, self.high = band
        # Read-only: a writable map is refused where it exceeds the machine's memory.
        self.vectors: Floats = np.load(folder / "vectors.npy", mmap_mode="r", allow_pickle=False)
        self._rotation: Floats | None = None
        self._scanned = self.vectors
        if (folder / "bound.npy").exists():
            self._rotation = np.load(folder / "rotation.npy", allow_pickle=False)
            self._scanned = np.load(folder / "bound.npy", mmap_mode="r", allow_pickle=False)
        self.components = None if self._rotation is None else self._rotation.shape[1]
        self._device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        # On a GPU the scanned vectors stay in its memory, if they take less than half of what is free.
        self._resident: torch.Tensor | None = None
        if self._device.type == "cuda" and self._scanned.nbytes < torch.cuda.mem_get_info()[0] // 2:
            self._resident = torch.empty(self._scanned.shape, device=self._device)
            for start in range(0, len(self._scanned), _ROWS):
                self._resident[start : start + _ROWS] = _read(self._scanned[start : start + _ROWS])

    def search(self, queries: Floats, k: int, leave_out: LeaveOut, end: int | None = None) -> list[Hits]:
        """Return each query's `k` nearest vectors inside the band, fewer where there are fewer.

        Memory is bounded by a block of the corpus, however crowded the band: once a query has `k` vectors, only nearer ones are
        considered.

        Args:
            queries: float32, queries × dimensions, length 1.
            k: How many at most.
            leave_out: Which pairs are no candidates.
            end: The number of vectors, from the first, that are searched; by default all of them.
        """
        import torch

        end = len(self.vectors) if end is None else end
        turned_queries = torch.from_numpy(self._turned(queries)).to(self._device)
        best = _Best(len(queries), k, self.low)
        block = min(_ROWS, max(_RUN, _PAIRS // max(1, len(queries)) // _RUN * _RUN))
        with torch.inference_mode():
            for start in range(0, end, block):
                scanned = self._block(start, min(start + block, end))
                # A pair below its floor by more than the error of a product cannot be among the k nearest: (queries,).
                floors = torch.from_numpy(best.floors - SLACK).to(self._device, torch.float32)
                rows, positions = _above(product(turned_queries, scanned), floors)  # products: (queries, block)
                positions += start
                # Where the bound lets more than 2 % through, the whole product costs less than so many look-ups.
                if len(rows) > 0.02 * len(queries) * len(scanned):
                    rows, positions = self._crowded(queries, start, start + len(scanned), best, k, leave_out)
                self._check(queries, rows, positions, best, leave_out)
        return best.hits()

    def _crowded(
        self, queries: Floats, start: int, end: int, best: _Best, k: int, leave_out: LeaveOut
    ) -> tuple[Positions, Positions]:
        """Return the pairs of a block that may be among each query's `k` nearest, by the whole product, not the bound."""
        import torch

        cosines = product(torch.from_numpy(queries), _read(self.vectors[start:end])).numpy()
        positions = np.arange(start, end)
        # All arrays below are (queries, block).
        left_out = leave_out(np.arange(len(queries))[:, None], positions[None, :])
        # -2 lies below every cosine, so that these pairs reach no floor.
        cosines[left_out | (cosines > self.high + SLACK)] = -2
        # Single precision may be off at both edges: a floor may only be raised by pairs that are surely inside.
        surely_inside = np.where(cosines <= self.high - SLACK, cosines, -2)
        if k < surely_inside.shape[1]:
            # (queries,): the k-th largest cosine, found without sorting the block.
            kth = -np.partition(-surely_inside, k - 1, axis=1)[:, k - 1]
            floors = np.maximum(best.floors - SLACK, kth - 2 * SLACK)
        else:
            floors = best.floors - SLACK
        rows, columns = np.nonzero(cosines >= floors[:, None])
        return rows, columns + start

    def nearest(self, queries: Floats) -> tuple[Positions, Doubles]:
        """Return the position of each query's nearest vector, the first of equally near ones, and their cosine: (queries,) each.

        Neither band nor bound counts: a query's nearest vector may lie anywhere, and one product a vector finds it.

        Args:
            queries: float32, queries × dimensions, length 1.
        """
        import torch

        rows = torch.from_numpy(queries).to(self._device)
        best = torch.full((len(queries),), -torch.inf, device=self._device)
        proposals: list[tuple[Positions, Positions]] = []
        block = min(_ROWS, max(_RUN, _PAIRS // max(1, len(queries)) // _RUN * _RUN))
        with torch.inference_mode():
            for start in range(0, len(self.vectors), block):
                cosines = product(rows, _read(self.vectors[start : start + block]).to(self._device))
                peaks = _peaks(cosines)
                best = torch.maximum(best, peaks.amax(1))
                # Both products may be off by the error of single precision.
                found, positions = _above(cosines, best - 2 * SLACK, peaks)
                proposals.append((found, positions + start))
        everything = _Best(len(queries), 1, -np.inf)
        for found, positions in proposals:
            everything.add(found, positions, self._cosines(queries, found, positions))
        hits = everything.hits()
        return (np.concatenate([hit.positions for hit in hits]), np.concatenate([hit.cosines for hit in hits]))

    def _cosines(self, queries: Floats, rows: Positions, positions: Positions) -> Doubles:
        """Return the cosines of pairs in double precision: (pairs,)."""
        cosines = np.empty(len(rows))
        for start in range(0, len(rows), 8192):
            part = slice(start, start + 8192)
            batch_queries = queries[rows[part]].astype(np.float64)
            # (pairs, dimensions) twice → (pairs,)
            cosines[part] = np.einsum("nd,nd->n", batch_queries, self.vectors[positions[part]].astype(np.float64))
        return cosines

    def pairs(
        self, start: int, queries: Floats, counts: npt.NDArray[np.bool_]
    ) -> Iterator[tuple[Positions, Positions]]:
        """Propose pairs for `check`: each query, itself the vector `start` + i, with the earlier ones from `start` on.

        Args:
            start: The position of the first query.
            queries: float32, queries × dimensions: vectors from `start` on.
            counts: Which of these vectors may be the earlier one of a pair, (queries,).
        """
        import torch

        with torch.inference_mode():
            # (queries, queries); the diagonal and what is above it are a query with itself and with later ones.
            cosines = product(torch.from_numpy(queries), torch.from_numpy(queries)).numpy()
        rows, columns = np.nonzero(np.tril((cosines >= self.low - SLACK) & counts, -1))
        yield rows, columns + start

    def check(
        self, queries: Floats, proposals: Iterable[tuple[Positions, Positions]], k: int, leave_out: LeaveOut
    ) -> list[Hits]:
        """Return each query's `k` nearest inside the band, of pairs that are proposed in batches; see `search`."""
        best = _Best(len(queries), k, self.low)
        for rows, positions in proposals:
            self._check(queries, rows, positions, best, leave_out)
        return best.hits()

    def _check(self, queries: Floats, rows: Positions, positions: Positions, best: _Best, leave_out: LeaveOut) -> None:
        """Compute the cosines of pairs in double precision, and add those inside the band."""
        for start in range(0, len(rows), 8192):
            batch_rows, batch_positions = rows[start : start + 8192], positions[start : start + 8192]
            # Most pairs that a bound lets through are outside, which single precision tells in a third of the time.
            nearly = np.einsum("nd,nd->n", queries[batch_rows], self.vectors[batch_positions])
            maybe = (nearly >= best.floors[batch_rows] - SLACK) & (nearly <= self.high + SLACK)
            batch_rows, batch_positions = batch_rows[maybe], batch_positions[maybe]
            cosines = self._cosines(queries, batch_rows, batch_positions)
            inside = (cosines >= self.low) & (cosines <= self.high)
            # Only pairs inside the band are asked for: comparing texts costs more than comparing numbers.
            inside[inside] = ~leave_out(batch_rows[inside], batch_positions[inside])
            best.add(batch_rows[inside], batch_positions[inside], cosines[inside])

    def _turned(self, queries: Floats) -> Floats:
        if self._rotation is None:
            return queries
        return bounded(queries, self._rotation)

    def _block(self, start: int, end: int) -> torch.Tensor:
        if self._resident is not None:
            return self._resident[start:end]
        return _read(self._scanned[start:end]).to(self._device)


class _Best:
    """Each query's nearest vectors so far, and its floor: the cosine that a further vector must reach."""

    def __init__(self, queries: int, k: int, low: float) -> None:
        self.k = k
        self.floors = np.full(queries, low)
        self._parts: list[tuple[Positions, Positions, Doubles]] = []
        self._held = 0

    def add(self, rows: Positions, positions: Positions, cosines: Doubles) -> None:
        """Add pairs; from time to time all but each query's `k` nearest are dropped."""
        self._parts.append((rows, positions, cosines))
        self._held += len(rows)
        if self._held > 2 * self.k * len(self.floors) + 100_000:
            self._settle()

    def hits(self) -> list[Hits]:
        """Return each query's nearest vectors."""
        rows, positions, cosines = self._settle()
        # Pairs are sorted by query: query i has those from ends[i] to ends[i + 1].
        ends = np.searchsorted(rows, np.arange(len(self.floors) + 1))
        return [Hits(positions[start:end], cosines[start:end]) for start, end in pairwise(ends)]

    def _settle(self) -> tuple[Positions, Positions, Doubles]:
        no_pairs = (np.zeros(0, np.int64), np.zeros(0, np.int64), np.zeros(0))
        rows, positions, cosines = (np.concatenate(parts) for parts in zip(*(self._parts or [no_pairs]), strict=True))
        # By query, then by cosine from high to low, then by position: ties have one order on every machine.
        order = np.lexsort((positions, -cosines, rows))
        rows, positions, cosines = rows[order], positions[order], cosines[order]
        # The rank of each pair within its query.
        rank = np.arange(len(rows)) - np.searchsorted(rows, rows)
        is_kth = rank == self.k - 1
        # A query with k vectors takes only nearer ones from here on.
        self.floors[rows[is_kth]] = cosines[is_kth]
        is_kept = rank < self.k
        nearest = rows[is_kept], positions[is_kept], cosines[is_kept]
        self._parts, self._held = [nearest], len(nearest[0])
        return nearest


def build(folder: Path, count: int, blocks: Iterable[Floats], low: float) -> None:
    """Write vectors, and the bound over them, into a folder for `Band`.

    Args:
        folder: The folder to write to.
        count: How many vectors there are.
        blocks: float32, rows × dimensions, length 1; together `count` rows.
        low: The floor of the band, which decides how many components the bound needs.
    """
    write(folder / "vectors.npy", count, blocks)
    vectors: Floats = np.load(folder / "vectors.npy", mmap_mode="r", allow_pickle=False)
    sample = np.ascontiguousarray(vectors[:: max(1, count // _SAMPLE)], np.float32)
    turned = rotation(sample, low)
    if turned is None:
        return
    write(folder / "rotation.npy", len(turned), [turned])
    parts = (np.array(vectors[start : start + 8192]) for start in range(0, count, 8192))
    write(folder / "bound.npy", count, (bounded(block, turned) for block in parts))


def write(path: Path, count: int, blocks: Iterable[npt.NDArray[np.generic]]) -> None:
    """Write blocks of rows, `count` in all, as one .npy file.

    It is written without a memory map: on a full disk, a write to a map kills the process.
    """
    written = 0
    with path.open("wb") as file:
        for block in blocks:
            if written == 0:
                kind = np.lib.format.dtype_to_descr(block.dtype)
                shape = (count, *block.shape[1:])
                np.lib.format.write_array_header_1_0(file, {"descr": kind, "fortran_order": False, "shape": shape})
            file.write(np.ascontiguousarray(block).data)
            written += len(block)
    assert written == count


def rotation(sample: Floats, low: float) -> Floats | None:
    """Return the principal components that a bound should use, dimensions × components; None where no bound would pay.

    More components let fewer vectors pass but cost more for each vector; see `_LOOK_UP`.

    Args:
        sample: float32, vectors × dimensions, length 1.
        low: The floor of the band.
    """
    width = sample.shape[1]
    # Not centred: the bound is one of products, not of distances from the mean.
    _, axes = np.linalg.eigh((sample.T @ sample).astype(np.float64))
    # eigh sorts from the smallest: the first principal component comes last.
    axes = np.ascontiguousarray(axes[:, ::-1], np.float32)
    rows, columns = (sample[:: max(1, len(sample) // size)] @ axes for size in (256, 4096))
    # Costs in multiplications for each vector; without a bound, one whole product.
    costs = {width: float(width)}
    for components in range(32, width, 32):
        # The length that the first components leave of each unit vector.
        row_rest, column_rest = (
            np.sqrt(np.maximum(1 - (turned[:, :components] ** 2).sum(1), 0)) for turned in (rows, columns)
        )
        bounds = rows[:, :components] @ columns[:, :components].T + np.outer(row_rest, column_rest)
        # Vectors of the sample meet themselves here, which a query rarely does.
        passing_share = max(0.0, float((bounds >= low - SLACK).mean()) - 1 / len(columns))
        costs[components] = components + 1 + _LOOK_UP * width * passing_share
    best = min(costs, key=lambda components: costs[components])
    return None if best == width else np.ascontiguousarray(axes[:, :best])


def bounded(vectors: Floats, axes: Floats) -> Floats:
    """Return vectors × (components + 1): the components along `axes`, and the length of the remainder, rounded up."""
    import torch

    rows, turn = torch.from_numpy(np.ascontiguousarray(vectors)), torch.from_numpy(axes)
    with torch.inference_mode():
        components = product(rows, turn.T.contiguous())
        # The remainder itself, not √(1 − |components|²): that difference loses its digits where little remains.
        rest = (rows - product(components, turn)).norm(dim=1, keepdim=True) + 1e-6
        return torch.cat([components, rest], 1).numpy()


def _read(vectors: Floats) -> torch.Tensor:
    """Copy mapped vectors into a tensor: torch warns of arrays that are read-only."""
    import torch

    return torch.from_numpy(np.array(vectors))


def _peaks(cosines: torch.Tensor) -> torch.Tensor:
    """Return the highest product of each run of each query, queries × runs; the last run may be shorter."""
    import torch

    count, width = cosines.shape
    even_width = width // _RUN * _RUN
    parts = [cosines[:, :even_width].reshape(count, -1, _RUN).amax(2)] if even_width else []
    parts += [cosines[:, even_width:].amax(1, keepdim=True)] if even_width < width else []
    return torch.cat(parts, 1)


def _above(
    cosines: torch.Tensor, floors: torch.Tensor, peaks: torch.Tensor | None = None
) -> tuple[Positions, Positions]:
    """Return the rows and columns where products reach their row's floor; runs that hold none are skipped at once.

    Args:
        cosines: Upper bounds of the cosines, queries × block.
        floors: The least cosine that counts, by query.
        peaks: What `_peaks` returns of them, where it is known.
    """
    import torch

    count, width = cosines.shape
    even_width = width // _RUN * _RUN
    peaks = _peaks(cosines) if peaks is None else peaks
    run_of = cosines[:, :even_width].reshape(count, -1, _RUN)  # (queries, runs, run)
    # The runs whose highest product reaches its floor, then the products inside those runs.
    rows, run = (
        torch.nonzero(peaks[:, : even_width // _RUN] >= floors[:, None], as_tuple=True)
        if even_width
        else _none(cosines)
    )
    matches, column = (
        torch.nonzero(run_of[rows, run] >= floors[rows, None], as_tuple=True) if even_width else _none(cosines)
    )
    # What is left over at the end of the block is shorter than a run.
    tail_rows, tail_columns = torch.nonzero(cosines[:, even_width:] >= floors[:, None], as_tuple=True)
    result = torch.cat([rows[matches], tail_rows]), torch.cat([run[matches] * _RUN + column, even_width + tail_columns])
    return result[0].cpu().numpy(), result[1].cpu().numpy()


def _none(like: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    import torch

    no_indices = torch.zeros(0, dtype=torch.int64, device=like.device)
    return no_indices, no_indices
