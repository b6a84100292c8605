"""Rows that repeat an earlier row, by the cosine of their prompts' embeddings.

One rule: of rows that repeat each other, the first stays, and a row repeats only rows that stay. So every row that is a
duplicate shows a row that is none, at a similarity that both texts can be looked up for.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import ClassVar, NamedTuple

import numpy as np
import numpy.typing as npt
import pyarrow as pa
from pydantic import Field, JsonValue
from typing_extensions import override

from seamcurate.contrast import nearest
from seamcurate.contrast.retrieve import Embed
from seamcurate.models import EncoderModel
from seamcurate.models.vectors import as_matrix, dimensions
from seamcurate.progress import bar
from seamcurate.step import Data, Step, Transform, column
from seamcurate.text import counted

_BLOCK = 1024
"""Rows that are searched at once; the result does not depend on it."""
_ABOVE_ALL = 2.0
"""A ceiling that no cosine reaches: equal texts may have one just above 1."""


class Duplicates(Step):
    """Add `duplicate_of` and `duplicate_similarity`: the earlier row that a row repeats, and their prompts' cosine.

    Rows are taken in their order. A row whose prompt has a cosine of at least `similarity` with that of an earlier row
    which is no duplicate itself is a duplicate of it; of several, of the nearest. So rows that are no duplicates are less
    similar than that to each other. The search is exact: products in double precision decide at the edge.

    Both columns are NULL for a row that repeats none, and for one whose embedding is not finite. Reads `embedding`, which
    `duplicates` adds first.

    Example:
        >>> import json, tempfile
        >>> from pathlib import Path
        >>> from seamcurate import FakeModel, Recipe, Source, duplicates, query, run_local
        >>> scratch = tempfile.TemporaryDirectory()
        >>> rows = Path(scratch.name, "rows.jsonl")
        >>> prompts = ["what is a set", "where is Rome", "is a set what"]
        >>> _ = rows.write_text("".join(json.dumps({"prompt": prompt}) + chr(10) for prompt in prompts))
        >>> steps = duplicates(0.9, encoder=FakeModel())
        >>> _ = run_local(Recipe(rows=Source(jsonl=str(rows)), steps=steps), Path(scratch.name, "store"))
        >>> query(Path(scratch.name, "store"), "SELECT duplicate_of FROM rows ORDER BY row_id")["duplicate_of"].to_pylist()
        [None, None, 0]
    """

    extras: ClassVar[tuple[str, ...]] = ("local",)
    similarity: float = Field(default=0.95, gt=0, le=1)
    """The least cosine of two prompts that repeat each other; it belongs to an encoder."""

    rows_per_call = 8192

    @property
    @override
    def inputs(self) -> tuple[str, ...]:
        return ("embedding",)

    @property
    @override
    def adds(self) -> pa.Schema:
        return pa.schema(
            [
                column(
                    "duplicate_of",
                    pa.int64(),
                    "row_id of the earlier row that this one repeats; NULL if it repeats none",
                ),
                column("duplicate_similarity", pa.float64(), "cosine of the two prompts' embeddings"),
            ]
        )

    @property
    @override
    def reads_all_rows(self) -> bool:
        """Compare each row with all earlier ones."""
        return True

    @override
    def prepare(self, data: Data, shared: Path) -> None:
        """Find every row's duplicate: rows are no duplicates of each other apart from the rows before them."""
        tables = (table for table in data.rows(("embedding",)) if table.num_rows)
        row_ids, valid = [], []
        for table in tables:
            row_ids.append(table["row_id"].to_numpy())
            valid.append(table["embedding"].is_valid().to_numpy())
        ids, embedded = np.concatenate(row_ids), np.concatenate(valid)
        width = dimensions(table["embedding"] for table in data.rows(("embedding",)))
        matches = Matches(np.full(len(ids), -1), np.zeros(len(ids)))
        if width is not None:
            tables = (table for table in data.rows(("embedding",)) if table.num_rows)
            vectors = (as_matrix(table["embedding"], width) for table in tables)
            # Each is compared with those before it.
            nearest.build(shared, len(ids), vectors, self.similarity, len(ids) // 2)
            matches = repeated(nearest.Band(shared, (self.similarity, _ABOVE_ALL)), embedded)
        np.save(shared / "row_ids.npy", ids)
        np.save(shared / "duplicate_of.npy", np.where(matches.positions >= 0, ids[matches.positions], -1))
        np.save(shared / "similarity.npy", matches.cosines)
        for name in ("vectors", "bound", "rotation"):
            (shared / f"{name}.npy").unlink(missing_ok=True)

    @override
    def load(self, shared: Path) -> Transform:
        row_ids, duplicate_of, similarity = (
            np.load(shared / f"{name}.npy", mmap_mode="r", allow_pickle=False)
            for name in ("row_ids", "duplicate_of", "similarity")
        )

        def look_up(rows: pa.Table) -> pa.Table:
            places = np.searchsorted(row_ids, rows["row_id"].to_numpy())
            matched = np.array(duplicate_of[places])
            unique = matched < 0
            return pa.table(
                {
                    "duplicate_of": pa.array(matched, pa.int64(), mask=unique),
                    "duplicate_similarity": pa.array(np.array(similarity[places]), pa.float64(), mask=unique),
                }
            )

        return look_up

    @override
    def facts(self, columns: Iterable[pa.Table], shared: Path) -> dict[str, JsonValue]:
        rows = repeats = 0
        for table in columns:
            rows, repeats = rows + table.num_rows, repeats + table.num_rows - table["duplicate_of"].null_count
        summary = (
            f"{repeats:,} of {counted(rows, 'row')} repeat an earlier one at a cosine of {self.similarity:g} or more"
        )
        return {"rows": rows, "duplicates": repeats, "summary": summary}


def duplicates(similarity: float = 0.95, *, encoder: EncoderModel | None = None) -> tuple[Step, ...]:
    """Return the steps that find rows which repeat an earlier one: embeddings of the prompts, then `Duplicates`.

    Example:
        >>> from seamcurate import duplicates
        >>> [step.name for step in duplicates(0.9)]
        ['embedding', 'duplicates']
    """
    return Embed(encoder=encoder), Duplicates(similarity=similarity)


class Matches(NamedTuple):
    """The earlier vector that each one repeats."""

    positions: nearest.Positions
    """Its position, −1 for a vector that repeats none: (vectors,)."""
    cosines: nearest.Doubles
    """Their cosine, 0 for a vector that repeats none: (vectors,)."""


def repeated(band: nearest.Band, embedded: npt.NDArray[np.bool_]) -> Matches:
    """Return for each vector the nearest earlier one inside the band that repeats none itself.

    Args:
        band: The vectors, in order.
        embedded: Which of them count, (vectors,).
    """
    count = len(embedded)
    stays = embedded.copy()
    matches = Matches(np.full(count, -1), np.zeros(count))

    def gone(queries: nearest.Positions, positions: nearest.Positions) -> npt.NDArray[np.bool_]:
        return np.broadcast_to(~stays[positions], np.broadcast_shapes(queries.shape, positions.shape))

    with bar("searching for duplicates", count) as advance:
        for start in range(0, count, _BLOCK):
            vectors = np.array(band.vectors[start : start + _BLOCK])
            earlier = band.search(vectors, 1, gone, end=start)
            block = slice(start, start + len(vectors))
            stays[block] &= np.array([not len(hits.positions) for hits in earlier])
            inside = band.check(vectors, band.pairs(start, vectors, stays[block]), len(vectors), gone)
            for i in np.flatnonzero(embedded[block]):
                # What stays of this block is known for the rows before i, which come first.
                same_block = stays[inside[i].positions]
                positions = np.concatenate([earlier[i].positions, inside[i].positions[same_block]])
                if not len(positions):
                    continue
                cosines = np.concatenate([earlier[i].cosines, inside[i].cosines[same_block]])
                # The nearest; of equally near ones the first.
                best = np.lexsort((positions, -cosines))[0]
                stays[start + i] = False
                matches.positions[start + i], matches.cosines[start + i] = positions[best], cosines[best]
            advance(len(vectors))
    return matches
