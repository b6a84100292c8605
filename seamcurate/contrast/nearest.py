"""Exact search for the nearest vectors inside a cosine band. This module knows vectors, and neither texts nor rows.

A bound rules almost every vector out: the cosine of two unit vectors is at most the product over their first principal
components plus the product of the lengths of their remainders (Cauchy–Schwarz). With that length as one more component, the
bound is a single matrix product over a third of the components. Where it would rule out too little, or cost more to prepare
than it saves, one product over all components takes its place. Both are in single precision, whose error is bounded: pairs that
may be among the nearest are multiplied again in double precision, so that edges and ties depend neither on a batch nor on a
machine.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from functools import partial
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

_SLACK = 1e-4
"""By how much a product of short vectors in single precision may be wrong at most; see `slack`."""
_PAIRS = 2**21
"""Products in memory at once: 8 MiB of single precision; more fall out of the cache before they are compared."""
_ROWS = 2**15
"""Vectors in memory at once, however few the queries."""
_SAMPLE = 4096
"""Vectors by which the bound is chosen."""
_LOOK_UP = 100
"""What looking one vector up costs, in products of whole vectors: 0.7 µs where a core multiplies at 150 GFLOP/s."""
_CROWDED = 0.02
"""The share of a block's pairs above which they are not looked up one by one."""
_HELD = 100_000
"""Pairs in memory at once, beside two for each that is asked for."""
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
        self.slack = slack(self.vectors.shape[1])
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
        whole_queries = torch.from_numpy(queries).to(self._device)
        turned_queries = None
        if self._rotation is not None:
            turned_queries = torch.from_numpy(bounded(queries, self._rotation)).to(self._device)
        best = self._best(queries, k)
        block = min(_ROWS, max(_RUN, _PAIRS // max(1, len(queries)) // _RUN * _RUN))
        with torch.inference_mode():
            for start in range(0, end, block):
                stop = min(start + block, end)
                if turned_queries is not None:
                    bounds = product(turned_queries, self._block(start, stop))  # (queries, block)
                    rows, columns, _ = _above(bounds, self._floors(best))
                    # Where the bound lets more than 2 % through, the whole product costs less than so many look-ups.
                    if len(rows) <= _CROWDED * bounds.numel():
                        self._look_up(queries, rows, columns + start, best, leave_out)
                        continue
                self._multiply(whole_queries, start, stop, best, leave_out)
        return best.hits()

    def _multiply(self, queries: torch.Tensor, start: int, end: int, best: _Best, leave_out: LeaveOut) -> None:
        """Add the pairs of a block that may be among each query's `k` nearest, by one product over all components."""
        # (queries, block)
        cosines = product(
            queries,
            self._block(start, end) if self._rotation is None else _read(self.vectors[start:end]).to(self._device),
        )
        rows, columns, nearly = _above(cosines, self._floors(best))
        if len(rows) > _CROWDED * cosines.numel():
            rows, columns, nearly = self._crowded(cosines.cpu().numpy(), start, best, leave_out)
        best.add(rows, columns + start, nearly, leave_out)

    def _crowded(
        self, cosines: Floats, start: int, best: _Best, leave_out: LeaveOut
    ) -> tuple[Positions, Positions, Floats]:
        """Return the pairs of a block that may be among each query's `k` nearest, by rows and columns, with their products.

        Args:
            cosines: Products of all pairs, queries × block.
            start: The position of the block's first vector.
            best: What was near in earlier blocks.
            leave_out: Which pairs are no candidates.
        """
        positions = np.arange(start, start + cosines.shape[1])
        # All arrays below are (queries, block).
        left_out = leave_out(np.arange(len(cosines))[:, None], positions[None, :])
        # -2 lies below every cosine, so that these pairs reach no floor.
        cosines = np.where(left_out | (cosines > self.high + self.slack), np.float32(-2), cosines)
        # Single precision may be off at both edges: a floor may only be raised by pairs that are surely inside.
        surely_inside = np.where(cosines <= self.high - self.slack, cosines, -2)
        floors = best.floors
        if best.k < surely_inside.shape[1]:
            # (queries,): the k-th largest cosine, found without sorting the block.
            kth = -np.partition(-surely_inside, best.k - 1, axis=1)[:, best.k - 1]
            floors = np.maximum(floors, kth - 2 * self.slack)
        rows, columns = np.nonzero(cosines >= floors[:, None])
        return rows, columns, cosines[rows, columns]

    def nearest(self, queries: Floats) -> tuple[Positions, Doubles]:
        """Return the position of each query's nearest vector, the first of equally near ones, and their cosine: (queries,) each.

        Neither band nor bound counts: a query's nearest vector may lie anywhere, and one product a vector finds it.

        Args:
            queries: float32, queries × dimensions, length 1.
        """
        import torch

        rows = torch.from_numpy(queries).to(self._device)
        best = torch.full((len(queries),), -torch.inf, device=self._device)
        proposals: list[tuple[Positions, Positions, Floats]] = []
        block = min(_ROWS, max(_RUN, _PAIRS // max(1, len(queries)) // _RUN * _RUN))
        with torch.inference_mode():
            for start in range(0, len(self.vectors), block):
                cosines = product(rows, _read(self.vectors[start : start + block]).to(self._device))
                peaks = _peaks(cosines)
                best = torch.maximum(best, peaks.amax(1))
                # Both products may be off by the error of single precision.
                near_rows, positions, nearly = _above(cosines, best - 2 * self.slack, peaks)
                proposals.append((near_rows, positions + start, nearly))
        everything = _Best(len(queries), 1, (-np.inf, np.inf), self.slack, partial(self._cosines, queries))
        for proposal in proposals:
            everything.add(*proposal)
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
        rows, columns = np.nonzero(np.tril((cosines >= self.low - self.slack) & counts, -1))
        yield rows, columns + start

    def check(
        self, queries: Floats, proposals: Iterable[tuple[Positions, Positions]], k: int, leave_out: LeaveOut
    ) -> list[Hits]:
        """Return each query's `k` nearest inside the band, of pairs that are proposed in batches; see `search`."""
        best = self._best(queries, k)
        for rows, positions in proposals:
            self._look_up(queries, rows, positions, best, leave_out)
        return best.hits()

    def _look_up(
        self, queries: Floats, rows: Positions, positions: Positions, best: _Best, leave_out: LeaveOut
    ) -> None:
        """Add the pairs that may be among each query's nearest, of some whose products are not known."""
        for start in range(0, len(rows), 8192):
            part_rows, part_positions = rows[start : start + 8192], positions[start : start + 8192]
            nearly = np.einsum("nd,nd->n", queries[part_rows], self.vectors[part_positions])
            best.add(part_rows, part_positions, nearly, leave_out)

    def _best(self, queries: Floats, k: int) -> _Best:
        return _Best(len(queries), k, (self.low, self.high), self.slack, partial(self._cosines, queries))

    def _block(self, start: int, end: int) -> torch.Tensor:
        if self._resident is not None:
            return self._resident[start:end]
        return _read(self._scanned[start:end]).to(self._device)

    def _floors(self, best: _Best) -> torch.Tensor:
        import torch

        return torch.from_numpy(best.floors).to(self._device, torch.float32)


class _Best:
    """Each query's nearest vectors so far, and its floor: what a further vector's product in single precision must reach.

    Args:
        queries: How many.
        k: Vectors a query, at most.
        band: Between which cosines they lie.
        slack: By how much a product in single precision may be wrong.
        exact: Queries and positions of vectors, pairwise → their cosines in double precision.
    """

    def __init__(
        self,
        queries: int,
        k: int,
        band: tuple[float, float],
        slack: float,
        exact: Callable[[Positions, Positions], Doubles],
    ) -> None:
        self.k, self._exact, self._slack = k, exact, slack
        self.low, self.high = band
        self.floors = np.full(queries, self.low - slack)
        # Queries, positions, cosines, and whether these are in double precision.
        self._parts: list[tuple[Positions, Positions, Doubles, npt.NDArray[np.bool_]]] = []
        self._held = 0

    def add(self, rows: Positions, positions: Positions, nearly: Floats, leave_out: LeaveOut | None = None) -> None:
        """Add pairs by their products in single precision; from time to time all but each query's `k` nearest are dropped."""
        near = (nearly >= self.floors[rows]) & (nearly <= self.high + self._slack)
        if leave_out is not None:
            # Only pairs inside the band are asked for: comparing texts costs more than comparing numbers.
            near[near] = ~leave_out(rows[near], positions[near])
        count = int(near.sum())
        self._parts.append((rows[near], positions[near], nearly[near].astype(np.float64), np.zeros(count, bool)))
        self._held += count
        if self._held > 2 * self.k * len(self.floors) + _HELD:
            self._settle()

    def hits(self) -> list[Hits]:
        """Return each query's nearest vectors."""
        rows, positions, cosines = self._settle()
        # Pairs are sorted by query: query i has those from ends[i] to ends[i + 1].
        ends = np.searchsorted(rows, np.arange(len(self.floors) + 1))
        return [Hits(positions[start:end], cosines[start:end]) for start, end in pairwise(ends)]

    def _settle(self) -> tuple[Positions, Positions, Doubles]:
        """Drop all but each query's `k` nearest, in double precision, and return these by query."""
        no_pairs = (np.zeros(0, np.int64), np.zeros(0, np.int64), np.zeros(0), np.zeros(0, bool))
        rows, positions, cosines, exact = (
            np.concatenate(parts) for parts in zip(*(self._parts or [no_pairs]), strict=True)
        )
        # Of pairs that are surely inside the band, the k-th product of a query bounds what can be among its k nearest.
        surely_inside = exact | ((cosines >= self.low + self._slack) & (cosines <= self.high - self._slack))
        order = _by_query(rows[surely_inside], positions[surely_inside], cosines[surely_inside])
        kth_rows, kth = _kth(rows[surely_inside][order], cosines[surely_inside][order], self.k)
        self.floors[kth_rows] = np.maximum(self.floors[kth_rows], kth - 2 * self._slack)
        near = cosines >= self.floors[rows]
        rows, positions, cosines, exact = rows[near], positions[near], cosines[near], exact[near]
        cosines[~exact] = self._exact(rows[~exact], positions[~exact])
        inside = (cosines >= self.low) & (cosines <= self.high)
        rows, positions, cosines = rows[inside], positions[inside], cosines[inside]
        order = _by_query(rows, positions, cosines)
        rows, positions, cosines = rows[order], positions[order], cosines[order]
        kth_rows, kth = _kth(rows, cosines, self.k)
        # A query with k vectors takes only nearer ones from here on.
        self.floors[kth_rows] = kth - self._slack
        is_kept = _ranks(rows) < self.k
        nearest = rows[is_kept], positions[is_kept], cosines[is_kept]
        self._parts, self._held = [(*nearest, np.ones(len(nearest[0]), bool))], len(nearest[0])
        return nearest


def _by_query(rows: Positions, positions: Positions, cosines: Doubles) -> Positions:
    """Return the order by query, then by cosine from high to low, then by position: ties have one order on every machine."""
    # One number sorts ten times as fast as three. It sets queries apart, as cosines differ by 2 at most, and rounds cosines off:
    # queries whose pairs it leaves out of order are sorted again.
    order: Positions = np.argsort(4.0 * rows - cosines)
    rows, cosines, positions = rows[order], cosines[order], positions[order]
    descends = (cosines[1:] < cosines[:-1]) | ((cosines[1:] == cosines[:-1]) & (positions[1:] >= positions[:-1]))
    unsorted = np.zeros(int(rows[-1]) + 1 if len(rows) else 0, bool)
    unsorted[rows[1:][(rows[1:] == rows[:-1]) & ~descends]] = True
    again = unsorted[rows]
    order[again] = order[again][np.lexsort((positions[again], -cosines[again], rows[again]))]
    return order


def _ranks(rows: Positions) -> Positions:
    """Return the rank of each pair within its query, of pairs that are sorted by query."""
    ranks: Positions = np.arange(len(rows)) - np.searchsorted(rows, rows)
    return ranks


def _kth(rows: Positions, cosines: Doubles, k: int) -> tuple[Positions, Doubles]:
    """Return the queries that have `k` pairs, and the cosine of the last of these, of pairs that are sorted."""
    is_kth = _ranks(rows) == k - 1
    return rows[is_kth], cosines[is_kth]


def slack(width: int) -> float:
    """Return by how much the product of two vectors of length 1 in single precision may be wrong, at most.

    Rounding moves a sum of `width` products by no more than about `width` × 2⁻²⁴, in whatever order they are added (Higham, *Accuracy
    and Stability of Numerical Algorithms*, 3.1). Twice that leaves room for how a bound's components were computed.
    """
    return max(_SLACK, width * 2.0**-23)


def build(folder: Path, count: int, blocks: Iterable[Floats], low: float, queries: int | None = None) -> None:
    """Write vectors, and the bound over them where it pays, into a folder for `Band`.

    Args:
        folder: The folder to write to.
        count: How many vectors there are.
        blocks: float32, rows × dimensions, length 1; together `count` rows.
        low: The floor of the band, which decides how many components the bound needs.
        queries: How many vectors each one will be compared with, about; None for so many that preparing the bound costs nothing.
    """
    write(folder / "vectors.npy", count, blocks)
    vectors: Floats = np.load(folder / "vectors.npy", mmap_mode="r", allow_pickle=False)
    width = vectors.shape[1]
    # Multiplications that choosing the components takes: as many as the whole search takes, where there is little to search.
    choosing = _SAMPLE * width**2 + 20 * width**3
    if queries is not None and queries * count * width < choosing:
        return
    sample = np.ascontiguousarray(vectors[:: max(1, count // _SAMPLE)], np.float32)
    turned = rotation(sample, low, queries)
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


def rotation(sample: Floats, low: float, queries: int | None = None) -> Floats | None:
    """Return the principal components that a bound should use, dimensions × components; None where no bound would pay.

    More components let fewer vectors pass but cost more for each vector; see `_LOOK_UP`.

    Args:
        sample: float32, vectors × dimensions, length 1.
        low: The floor of the band.
        queries: See `build`.
    """
    width = sample.shape[1]
    # Not centred: the bound is one of products, not of distances from the mean.
    _, axes = np.linalg.eigh((sample.T @ sample).astype(np.float64))
    # eigh sorts from the smallest: the first principal component comes last.
    axes = np.ascontiguousarray(axes[:, ::-1], np.float32)
    rows, columns = (sample[:: max(1, len(sample) // size)] @ axes for size in (128, 2048))
    products = np.zeros((len(rows), len(columns)), np.float32)
    # Costs in multiplications for each vector and query; without a bound, one whole product.
    costs = {width: float(width)}
    for components in range(32, width, 32):
        added = slice(components - 32, components)
        products += rows[:, added] @ columns[:, added].T
        # The length that the first components leave of each unit vector.
        row_rest, column_rest = (
            np.sqrt(np.maximum(1 - (turned[:, :components] ** 2).sum(1), 0)) for turned in (rows, columns)
        )
        # Vectors of the sample meet themselves here, which a query rarely does.
        passing_share = max(
            0.0, float((products + np.outer(row_rest, column_rest) >= low - _SLACK).mean()) - 1 / len(columns)
        )
        # A vector is turned, and turned back to see what is left of it, once for all queries.
        preparing = 0.0 if queries is None else 3 * components * width / queries
        costs[components] = components + 1 + _LOOK_UP * width * passing_share + preparing
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
) -> tuple[Positions, Positions, Floats]:
    """Return rows and columns where products reach their row's floor, and these; runs that hold none are skipped at once.

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
    rows, columns = (
        torch.cat([rows[matches], tail_rows]),
        torch.cat([run[matches] * _RUN + column, even_width + tail_columns]),
    )
    return rows.cpu().numpy(), columns.cpu().numpy(), cosines[rows, columns].cpu().numpy()


def _none(like: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    import torch

    no_indices = torch.zeros(0, dtype=torch.int64, device=like.device)
    return no_indices, no_indices
