"""SEAM_Contrast's sample set: golden responses of near, but different, instructions (SEAM §4.2, App. F.3).

The k corpus instructions of highest cosine inside the band, never one from outside it: exactly, by `nearest`, or for
corpora of many millions through an approximate FAISS index whose recall is measured and reported.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, ClassVar, Literal, TypeAlias

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
from pydantic import Field, JsonValue, field_validator

from seamcurate.contrast import approximate, nearest
from seamcurate.errors import StepError
from seamcurate.models import EncoderModel, Prompt, roles
from seamcurate.models.template import prompt_text
from seamcurate.models.vectors import Floats, as_matrix, dimensions, embedded, not_finite
from seamcurate.step import Averages, Data, Step, Transform, Work, column, evenly

Keys: TypeAlias = npt.NDArray[np.uint64]

CONTRAST = pa.list_(pa.struct([("source_row_id", pa.int64()), ("similarity", pa.float32())]))
"""A contrast set names corpus rows; their texts are joined when it is read."""

_PROBED = 256
"""Rows whose whole neighbourhood is looked at to describe coverage."""
_BINS = 1000


class Embed(Step):
    """Embed each prompt: made once per corpus, shared by every store that retrieves from it."""

    encoder: EncoderModel | None = None

    revision: ClassVar[int] = 2
    rows_per_call: ClassVar[int] = 512

    @property
    def name(self) -> str:
        """Name the folder after the column."""
        return "embedding"

    @property
    def inputs(self) -> tuple[str, ...]:
        """Read the prompt."""
        return ("prompt",)

    @property
    def adds(self) -> pa.Schema:
        """Add one vector."""
        return pa.schema([column("embedding", pa.list_(pa.float32()), "the prompt's sentence embedding, length 1")])

    def work(self, rows: Averages) -> Work:
        """Ask for one embedding a row."""
        return Work(self.encoder, 1, rows.prompt)

    def load(self, shared: Path) -> Transform:
        """Load the encoder."""
        embedder = roles.load(self.encoder, "encoder", self.name)

        def embed(rows: pa.Table) -> pa.Table:
            vectors, known = embedded(embedder, rows["prompt"].to_pylist())
            flat = pa.array(vectors.reshape(-1), pa.float32())
            offsets = pa.array(np.arange(len(vectors) + 1, dtype=np.int32) * vectors.shape[1])
            return pa.table({"embedding": pa.ListArray.from_arrays(offsets, flat, mask=pa.array(~known))})

        return embed

    def facts(self, columns: Iterable[pa.Table], shared: Path) -> dict[str, JsonValue]:
        """Count rows without an embedding."""
        null = sum(table["embedding"].null_count for table in columns)
        return {"null": null, "warnings": list(not_finite(null, "corpus row", "never retrieved"))} if null else {}


class Retrieve(Step):
    """Add `worse_contrast`: the `k` corpus rows whose instruction lies nearest inside the cosine `band`.

    The row itself, answers equal to its own and instructions equal to its own (case and white space aside) are
    left out. Fewer than `k` in the band means fewer candidates; an empty list means none.
    """

    k: int = Field(default=30, ge=1)
    band: tuple[float, float] = (0.80, 0.90)
    encoder: EncoderModel | None = None
    index: Literal["exact", "ivf", "hnsw"] = "exact"
    """`ivf` and `hnsw` are FAISS's: faster on many millions, and they miss some; how many is measured and reported."""
    effort: int = Field(default=64, ge=1)
    """How far they look in each gigabyte of vectors: lists probed, or candidates kept while searching. `exact` has no
    use for it."""

    revision: ClassVar[int] = 3
    rows_per_call: ClassVar[int] = 1024

    @field_validator("band")
    @classmethod
    def _ordered(cls, band: tuple[float, float]) -> tuple[float, float]:
        if not -1 <= band[0] < band[1] <= 1:
            raise ValueError(f"a band is [low, high] with -1 <= low < high <= 1, not {list(band)}")
        return band

    @property
    def name(self) -> str:
        """Name the folder after the column."""
        return "worse_contrast"

    @property
    def inputs(self) -> tuple[str, ...]:
        """Read the instruction and its golden response."""
        return ("prompt", "response")

    @property
    def adds(self) -> pa.Schema:
        """Add the contrast set."""
        meaning = f"up to {self.k} answers to other instructions at cosine {self.band[0]:g} to {self.band[1]:g}, nearest first"
        return pa.schema([column("worse_contrast", CONTRAST, meaning)])

    @property
    def on_corpus(self) -> tuple[Step, ...]:
        """Have the corpus embedded by the same encoder first."""
        return (Embed(encoder=self.encoder),)

    @property
    def corpus_inputs(self) -> tuple[str, ...]:
        """Read the corpus's texts, to leave equal ones out, and its embeddings."""
        return ("prompt", "response", "embedding")

    def prepare(self, data: Data, shared: Path) -> None:
        """Lay the corpus's vectors out for the search and describe how many rows the band will serve."""
        count = sum(table.num_rows for table in data.corpus(()))
        if count == 0:
            raise StepError("step worse_contrast: the corpus has no rows to retrieve from")
        nearest.write(shared / "row_ids.npy", count, (table["row_id"].to_numpy() for table in data.corpus(())))
        for name in ("prompt", "response"):
            hashed = (keys(table[name].to_pylist()) for table in data.corpus((name,)))
            nearest.write(shared / f"{name}_keys.npy", count, hashed)
        width = dimensions(table["embedding"] for table in data.corpus(("embedding",)))
        if width is None:
            raise StepError(
                "step worse_contrast: no row of the corpus has an embedding that is finite; name another encoder, or "
                "`dtype: float32`"
            )
        tables = (table for table in data.corpus(("embedding",)) if table.num_rows)
        nearest.build(shared, count, (as_matrix(table["embedding"], width) for table in tables), self.band[0])
        nearest.write(
            shared / "embedded.npy",
            count,
            (table["embedding"].is_valid().to_numpy() for table in data.corpus(("embedding",)) if table.num_rows),
        )
        if self.index != "exact":
            approximate.build(shared, self.index)
        sample = evenly((p for table in data.rows(("prompt",)) for p in table["prompt"].to_pylist()), _PROBED)
        vectors, known = embedded(roles.load(self.encoder, "encoder", self.name), sample)
        vectors, own = vectors[known], keys(sample)[known]
        exact = nearest.Band(shared, self.band)
        found = probe(vectors, own, exact.vectors, _mapped(shared, "prompt_keys"), self.band, self.k)
        if self.index != "exact" and len(own):
            near = approximate.Approximate(shared, exact, self.effort)
            answers = (searched.search(vectors, self.k, nothing) for searched in (near, exact))
            found["recall"] = round(approximate.recall(*answers), 4)
        (shared / "coverage.json").write_text(json.dumps(found))

    def work(self, rows: Averages) -> Work:
        """Ask for one embedding a row."""
        return Work(self.encoder, 1, rows.prompt)

    def load(self, shared: Path) -> Transform:
        """Open the vectors and load the encoder."""
        exact = nearest.Band(shared, self.band)
        search = (exact if self.index == "exact" else approximate.Approximate(shared, exact, self.effort)).search
        ids, corpus_prompts, corpus_responses, corpus_embedded = (
            _mapped(shared, name) for name in ("row_ids", "prompt_keys", "response_keys", "embedded")
        )
        embedder = roles.load(self.encoder, "encoder", self.name)

        def retrieve(rows: pa.Table) -> pa.Table:
            prompts = rows["prompt"].to_pylist()
            vectors, known = embedded(embedder, prompts)
            own_prompts, own_responses = keys(prompts)[known], keys(rows["response"].to_pylist())[known]

            def same(queries: nearest.Positions, positions: nearest.Positions) -> npt.NDArray[np.bool_]:
                out: npt.NDArray[np.bool_] = corpus_prompts[positions] == own_prompts[queries]
                out |= corpus_responses[positions] == own_responses[queries]
                out |= ~corpus_embedded[positions]
                return out

            hits = iter(search(vectors[known], self.k, same) if known.any() else ())
            found = [next(hits) if one else _NO_HITS for one in known]
            offsets = np.cumsum([0, *(len(hits.positions) for hits in found)])
            positions = np.concatenate([hits.positions for hits in found] or [np.zeros(0, np.int64)])
            cosines = np.concatenate([hits.cosines for hits in found] or [np.zeros(0)])
            candidates = pa.StructArray.from_arrays(
                [pa.array(ids[positions], pa.int64()), pa.array(cosines.astype(np.float32))],
                ["source_row_id", "similarity"],
            )
            sets = pa.ListArray.from_arrays(pa.array(offsets, pa.int32()), candidates, mask=pa.array(~known))
            return pa.table({"worse_contrast": sets})

        return retrieve

    def facts(self, columns: Iterable[pa.Table], shared: Path) -> dict[str, JsonValue]:
        """Count candidates per row; below one half served, say what a wider band or larger corpus would give."""
        counts = np.concatenate(
            [pc.list_value_length(t["worse_contrast"]).to_numpy() for t in columns] or [np.zeros(0, np.int64)]
        )
        null = int(np.isnan(counts).sum())
        counts = counts[~np.isnan(counts)]
        warnings: list[JsonValue] = [*not_finite(null, "row", "worse_contrast is NULL")]
        if not len(counts):
            return {"null": null, "warnings": warnings} if null else {}
        probed: dict[str, JsonValue] = json.loads((shared / "coverage.json").read_text())
        served = float((counts > 0).mean())
        facts: dict[str, JsonValue] = {
            "rows": len(counts),
            "candidates_mean": round(float(counts.mean()), 3),
            "candidates_median": float(np.median(counts)),
            "share_none": round(1 - served, 4),
            "share_full": round(float((counts >= self.k).mean()), 4),
            "probe": probed,
            "summary": f"coverage: {counts.mean():.1f} candidates a row on average, median {np.median(counts):.0f}; "
            f"none for {1 - served:.0%} of rows, all {self.k} for {(counts >= self.k).mean():.0%}",
        }
        if "recall" in probed:
            facts["recall"] = probed["recall"]
            facts["summary"] = (
                f"{facts['summary']}; `index: {self.index}` found {probed['recall']:.1%} of what exact search finds "
                f"({probed['rows_probed']} rows sampled)"
            )
        if null:
            facts["null"] = null
        if served < 0.5 and probed["rows_probed"]:
            warnings += advice(probed, self.band)
        if warnings:
            facts["warnings"] = warnings
        return facts


_NO_HITS = nearest.Hits(np.zeros(0, np.int64), np.zeros(0))


def nothing(queries: nearest.Positions, positions: nearest.Positions) -> npt.NDArray[np.bool_]:
    """Leave no pair out."""
    return np.zeros(np.broadcast_shapes(queries.shape, positions.shape), bool)


def probe(
    queries: Floats,
    query_keys: Keys,
    vectors: Floats,
    vector_keys: Keys,
    band: tuple[float, float],
    k: int,
    stands_for: float = 1,
) -> dict[str, JsonValue]:
    """Describe the neighbourhood of sampled queries: who is served by this band, a wider one, a larger corpus.

    Without a query there is nothing to describe but that.

    Args:
        queries: float32, queries × dimensions, length 1.
        query_keys: `keys` of the queries' texts: an equal instruction is no neighbour.
        vectors: float32, corpus × dimensions, length 1.
        vector_keys: `keys` of the corpus's instructions.
        band: Lowest and highest cosine.
        k: How many candidates a row takes at most.
        stands_for: How many corpus rows each vector given stands for, when they are a sample.
    """
    if not len(queries):
        return {"rows_probed": 0}
    edges = np.linspace(0, 1, _BINS + 1)
    histogram = np.zeros((2, len(queries), _BINS))
    nearest = np.full(len(queries), -1.0)
    for start in range(0, len(vectors), 65_536):
        block = vectors[start : start + 65_536]
        cosines = queries @ block.T
        cosines[query_keys[:, None] == vector_keys[None, start : start + 65_536]] = -1
        # What has no embedding is near nothing.
        cosines[:, ~block.any(axis=1)] = -1
        nearest = np.maximum(nearest, cosines.max(axis=1, initial=-1))
        bins = np.clip(np.floor(cosines * _BINS), -1, _BINS - 1).astype(np.int64) + 1
        bins += np.arange(len(queries))[:, None] * (_BINS + 1)
        for part in (0, 1):
            counted = np.bincount(bins[:, part::2].reshape(-1), minlength=len(queries) * (_BINS + 1))
            histogram[part] += counted.reshape(len(queries), _BINS + 1)[:, 1:]

    def counts(low: float, high: float, halves: Sequence[int] = (0, 1)) -> npt.NDArray[np.float64]:
        inside = (edges[:-1] >= low - 1e-9) & (edges[1:] <= high + 1e-9)
        summed: npt.NDArray[np.float64] = histogram[list(halves)][:, :, inside].sum(axis=(0, 2)) * stands_for
        return np.minimum(summed, k)

    whole, half = counts(*band), counts(*band, (0,))
    none, none_half = float(np.mean(whole == 0)), float(np.mean(half == 0))
    lows = [low for low in (band[0] - 0.05, band[0] - 0.1, band[0] - 0.2) if low > 0]
    return {
        "rows_probed": len(queries),
        "candidates_mean": round(float(whole.mean()), 3),
        "share_none": round(none, 4),
        "nearest_quantiles": {
            q: round(float(np.quantile(nearest, float(q))), 4) for q in ("0.1", "0.25", "0.5", "0.75", "0.9")
        },
        "wider": {
            f"{low:.2f}": {
                "candidates_mean": round(float(counts(low, band[1]).mean()), 2),
                "share_none": round(float(np.mean(counts(low, band[1]) == 0)), 4),
            }
            for low in lows
        },
        # Each doubling is taken to serve the share of unserved rows that the last one, half to whole, served.
        "share_none_twice_the_corpus": round(none * none / none_half, 4) if none_half else 0.0,
    }


def advice(probed: dict[str, JsonValue], band: tuple[float, float]) -> Iterable[str]:
    """Say why a band serves few rows, and what would serve more."""
    nearest, wider = probed["nearest_quantiles"], probed["wider"]
    assert isinstance(nearest, dict) and isinstance(wider, dict)
    yield (
        f"fewer than half of the rows have a candidate in [{band[0]:g}, {band[1]:g}]; cosine of the nearest other "
        "instruction: " + ", ".join(f"{float(q):.0%} of rows below {value}" for q, value in nearest.items())
    )
    for low, gives in wider.items():
        assert isinstance(gives, dict)
        share, mean = gives["share_none"], gives["candidates_mean"]
        assert isinstance(share, float)
        yield f"a band of [{low}, {band[1]:g}] would serve {1 - share:.0%} of rows, {mean} candidates each on average"
    more = probed["share_none_twice_the_corpus"]
    assert isinstance(more, float)
    yield f"a corpus twice as large would serve about {1 - more:.0%} (from what half of this one serves)"


def keys(texts: Sequence[Prompt | None]) -> Keys:
    """Hash texts, case and white space aside, to 64 bits: equal texts have equal keys."""
    folded = (" ".join(prompt_text(text).casefold().split()) if text is not None else "\0" for text in texts)
    digests = (hashlib.blake2b(f.encode("utf-8", "surrogatepass"), digest_size=8).digest() for f in folded)
    return np.frombuffer(b"".join(digests), np.uint64).copy()


def _mapped(shared: Path, name: str) -> npt.NDArray[Any]:
    """Open one number a corpus row, of which there may be more than memory holds."""
    found: npt.NDArray[Any] = np.load(shared / f"{name}.npy", mmap_mode="r", allow_pickle=False)
    return found
