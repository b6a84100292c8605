"""SEAM_Contrast's sample set: golden responses of near, but different, instructions (SEAM §4.2, App. F.3).

Exact band retrieval: the k corpus instructions of highest cosine inside the band, never one from outside it.
FAISS proposes everything above the band's floor, so a row crowded above the ceiling keeps its band; each
proposal's cosine is then computed again in double precision, so that an edge does not depend on a batch.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, NamedTuple, TypeAlias, TypeVar

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
from pydantic import Field, JsonValue, field_validator

from seamcurate.errors import ModelError, StepError
from seamcurate.models import EncoderModel, Prompt
from seamcurate.models.template import prompt_text
from seamcurate.step import Averages, Data, Step, Transform, Work, column

if TYPE_CHECKING:
    from seamcurate.models import Embedder

Floats: TypeAlias = npt.NDArray[np.float32]
Keys: TypeAlias = npt.NDArray[np.uint64]
T = TypeVar("T")

CONTRAST = pa.list_(pa.struct([("source_row_id", pa.int64()), ("similarity", pa.float32())]))
"""A contrast set names corpus rows; their texts are joined when it is read."""

_SLACK = 1e-4
"""How far FAISS's single-precision cosine may be off at the floor of the band."""
_PROBED = 256
"""Rows whose whole neighbourhood is looked at to describe coverage."""
_BINS = 1000


class Embed(Step):
    """Embed each prompt: made once per corpus, shared by every store that retrieves from it."""

    encoder: EncoderModel | None = None

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
        embedder = _loaded(self.encoder, self.name)

        def embed(rows: pa.Table) -> pa.Table:
            vectors = unit(embedder.embed([prompt_text(p) for p in rows["prompt"].to_pylist()]))
            flat = pa.array(vectors.reshape(-1), pa.float32())
            offsets = pa.array(np.arange(len(vectors) + 1, dtype=np.int32) * vectors.shape[1])
            return pa.table({"embedding": pa.ListArray.from_arrays(offsets, flat)})

        return embed


class Retrieve(Step):
    """Add `worse_contrast`: the `k` corpus rows whose instruction lies nearest inside the cosine `band`.

    The row itself, answers equal to its own and instructions equal to its own (case and white space aside) are
    left out. Fewer than `k` in the band means fewer candidates; an empty list means none.
    """

    k: int = Field(default=30, ge=1)
    band: tuple[float, float] = (0.80, 0.90)
    encoder: EncoderModel | None = None

    rows_per_call: ClassVar[int] = 256

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
        """Build the FAISS index and describe how many rows the band will serve."""
        faiss = load_faiss()
        index: Any = None
        ids: list[npt.NDArray[np.int64]] = []
        prompts: list[Keys] = []
        responses: list[Keys] = []
        for table in data.corpus(self.corpus_inputs):
            if table.num_rows == 0:
                continue
            vectors = as_matrix(table["embedding"])
            if index is None:
                index = faiss.IndexFlatIP(vectors.shape[1])
            index.add(vectors)
            ids.append(table["row_id"].to_numpy())
            prompts.append(keys(table["prompt"].to_pylist()))
            responses.append(keys(table["response"].to_pylist()))
        if index is None:
            raise StepError("step worse_contrast: the corpus has no rows to retrieve from")
        faiss.write_index(index, str(shared / "index.faiss"))
        np.save(shared / "row_ids.npy", np.concatenate(ids))
        np.save(shared / "prompt_keys.npy", np.concatenate(prompts))
        np.save(shared / "response_keys.npy", np.concatenate(responses))
        sample = evenly((p for table in data.rows(("prompt",)) for p in table["prompt"].to_pylist()), _PROBED)
        vectors = unit(_loaded(self.encoder, self.name).embed([prompt_text(p) for p in sample]))
        found = probe(vectors, keys(sample), stored_vectors(index), np.concatenate(prompts), self.band, self.k)
        (shared / "coverage.json").write_text(json.dumps(found))

    def work(self, rows: Averages) -> Work:
        """Ask for one embedding a row."""
        return Work(self.encoder, 1, rows.prompt)

    def load(self, shared: Path) -> Transform:
        """Read the index and load the encoder."""
        faiss = load_faiss()
        index = faiss.read_index(str(shared / "index.faiss"))
        ids = np.load(shared / "row_ids.npy", allow_pickle=False)
        corpus_prompts = np.load(shared / "prompt_keys.npy", allow_pickle=False)
        corpus_responses = np.load(shared / "response_keys.npy", allow_pickle=False)
        embedder = _loaded(self.encoder, self.name)

        def retrieve(rows: pa.Table) -> pa.Table:
            prompts = rows["prompt"].to_pylist()
            vectors = unit(embedder.embed([prompt_text(p) for p in prompts]))
            own_prompts, own_responses = keys(prompts), keys(rows["response"].to_pylist())
            sets: list[list[dict[str, object]]] = []
            for row, hits in enumerate(in_band(index, vectors, self.band)):
                same = (corpus_prompts[hits.places] == own_prompts[row]) | (
                    corpus_responses[hits.places] == own_responses[row]
                )
                places, cosines = hits.places[~same][: self.k], hits.cosines[~same][: self.k]
                sets.append(
                    [
                        {"source_row_id": int(ids[place]), "similarity": float(cosine)}
                        for place, cosine in zip(places, cosines, strict=True)
                    ]
                )
            return pa.table({"worse_contrast": pa.array(sets, CONTRAST)})

        return retrieve

    def facts(self, columns: Iterable[pa.Table], shared: Path) -> dict[str, JsonValue]:
        """Count candidates per row; below one half served, say what a wider band or larger corpus would give."""
        counts = np.concatenate(
            [pc.list_value_length(t["worse_contrast"]).to_numpy() for t in columns] or [np.zeros(0, np.int64)]
        )
        if not len(counts):
            return {}
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
        if served < 0.5:
            facts["warnings"] = list(advice(probed, self.band))
        return facts


class Hits(NamedTuple):
    """What lies in a band of one query, highest cosine first."""

    places: npt.NDArray[np.int64]
    cosines: npt.NDArray[np.float64]


def in_band(index: Any, queries: Floats, band: tuple[float, float]) -> list[Hits]:
    """Find, for each query, every indexed vector whose cosine lies in the band.

    Args:
        index: A FAISS inner-product index over vectors of length 1.
        queries: float32, queries × dimensions, length 1.
        band: Lowest and highest cosine, both included.
    """
    vectors = stored_vectors(index)
    limits, _, labels = index.range_search(queries, band[0] - _SLACK)
    found = []
    for row, query in enumerate(queries.astype(np.float64)):
        places = np.sort(labels[limits[row] : limits[row + 1]])
        cosines = vectors[places].astype(np.float64) @ query
        inside = (cosines >= band[0]) & (cosines <= band[1])
        places, cosines = places[inside], cosines[inside]
        order = np.lexsort((places, -cosines))
        found.append(Hits(places[order], cosines[order]))
    return found


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

    Args:
        queries: float32, queries × dimensions, length 1.
        query_keys: `keys` of the queries' texts: an equal instruction is no neighbour.
        vectors: float32, corpus × dimensions, length 1.
        vector_keys: `keys` of the corpus's instructions.
        band: Lowest and highest cosine.
        k: How many candidates a row takes at most.
        stands_for: How many corpus rows each vector given stands for, when they are a sample.
    """
    edges = np.linspace(0, 1, _BINS + 1)
    histogram = np.zeros((2, len(queries), _BINS))
    nearest = np.full(len(queries), -1.0)
    for start in range(0, len(vectors), 65_536):
        block = vectors[start : start + 65_536]
        cosines = queries @ block.T
        cosines[query_keys[:, None] == vector_keys[None, start : start + 65_536]] = -1
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


def evenly(items: Iterable[T], size: int) -> list[T]:
    """Take about `size` items from all over a stream of unknown length, never holding more than twice as many."""
    kept: list[T] = []
    step = 1
    for i, item in enumerate(items):
        if i % step == 0:
            kept.append(item)
            if len(kept) == 2 * size:
                kept, step = kept[::2], step * 2
    return kept if len(kept) <= size else [kept[i * len(kept) // size] for i in range(size)]


def keys(texts: Sequence[Prompt | None]) -> Keys:
    """Hash texts, case and white space aside, to 64 bits: equal texts have equal keys."""
    folded = (" ".join(prompt_text(text).casefold().split()) if text is not None else "\0" for text in texts)
    digests = (hashlib.blake2b(f.encode("utf-8", "surrogatepass"), digest_size=8).digest() for f in folded)
    return np.frombuffer(b"".join(digests), np.uint64).copy()


def unit(vectors: Floats) -> Floats:
    """Scale vectors to length 1."""
    scaled: Floats = vectors / np.maximum(np.linalg.norm(vectors, axis=1, keepdims=True), 1e-12)
    return np.ascontiguousarray(scaled, np.float32)


def as_matrix(embeddings: pa.ChunkedArray) -> Floats:
    """Return a list column of equal lengths as rows × dimensions."""
    flat = embeddings.combine_chunks().flatten().to_numpy(zero_copy_only=False)
    matrix: Floats = flat.reshape(len(embeddings), -1)
    return np.ascontiguousarray(matrix, np.float32)


def stored_vectors(index: Any) -> Floats:
    """View a flat index's own vectors, count × dimensions, without a copy."""
    faiss = load_faiss()
    flat: Floats = faiss.rev_swig_ptr(index.get_xb(), index.ntotal * index.d)
    matrix: Floats = flat.reshape(index.ntotal, index.d)
    return matrix


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
        raise StepError('retrieval needs FAISS: pip install "seamcurate[cpu]", or "seamcurate[gpu]" on a CUDA machine')
    import faiss

    return faiss


def _loaded(encoder: EncoderModel | None, step: str) -> Embedder:
    if encoder is None:
        raise ModelError(f"step {step} has no encoder; give the recipe `models: {{encoder: {{sentence_encoder: …}}}}`")
    return encoder.load()
