"""SEAM_Contrast's sample set: golden responses of near, but different, instructions (SEAM §4.2, App. F.3).

The `k` corpus instructions of highest cosine inside the band are found exactly, by `nearest`, or, for corpora of many
millions, by an approximate FAISS index whose recall is measured and reported. None is ever outside the band.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, ClassVar, Literal

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
from pydantic import Field, JsonValue, field_validator
from typing_extensions import override

from seamcurate.contrast import approximate, coverage, nearest
from seamcurate.contrast.coverage import Keys
from seamcurate.errors import StepError
from seamcurate.models import EncoderModel, Prompt
from seamcurate.models.template import prompt_text
from seamcurate.models.vectors import as_matrix, dimensions, embedded, not_finite
from seamcurate.score import compared, noise, precision
from seamcurate.step import Averages, Data, Step, Transform, Work, column, evenly
from seamcurate.text import folded

CONTRAST = pa.list_(pa.struct([("source_row_id", pa.int64()), ("similarity", pa.float32())]))
"""A contrast set holds numbers of corpus rows; the views join their texts."""

PROBED = 256
"""Rows in the sample by which coverage is described."""


class Embed(Step):
    """Add `embedding`: the sentence embedding of each prompt, float32, of length 1.

    `Retrieve` runs it over the corpus: once for each corpus and encoder, shared by every store that retrieves from it. A row
    whose embedding is not finite gets NULL and is never retrieved.

    Raises:
        ModelError: By `load`, where no encoder is named or it cannot be loaded.

    Example:
        >>> from pathlib import Path
        >>> import pyarrow as pa
        >>> from seamcurate import Embed, FakeModel
        >>> add = Embed(encoder=FakeModel(dimensions=4)).load(Path())
        >>> table = add(pa.table({"prompt": ["What is a set?", "What is a list?"]}))
        >>> [len(vector) for vector in table["embedding"].to_pylist()]
        [4, 4]
    """

    encoder: EncoderModel | None = None

    revision: ClassVar[int] = 2
    rows_per_call: ClassVar[int] = 512

    @property
    @override
    def name(self) -> str:
        return "embedding"

    @property
    @override
    def inputs(self) -> tuple[str, ...]:
        return ("prompt",)

    @property
    @override
    def adds(self) -> pa.Schema:
        return pa.schema([column("embedding", pa.list_(pa.float32()), "the prompt's sentence embedding, length 1")])

    @override
    def work(self, rows: Averages) -> Work:
        return Work(self.encoder, 1, rows.prompt)

    @override
    def prepare(self, data: Data, shared: Path) -> None:
        """Store the prompts that a served encoder is compared by, or one of a precision named for speed."""
        compared.sample_prompts(self.encoder, data, shared)
        precision.sample_prompts(self.encoder, data, shared)

    @override
    def load(self, shared: Path) -> Transform:
        embedder = compared.load_encoder(self.encoder, self.name, shared)
        precision.measure_embeddings(self.encoder, embedder, shared)

        def embed(rows: pa.Table) -> pa.Table:
            vectors, finite = embedded(embedder, rows["prompt"].to_pylist())
            # One flat array with offsets is Arrow's own layout of a list column: no Python list of floats is made.
            flat = pa.array(vectors.reshape(-1), pa.float32())
            offsets = pa.array(np.arange(len(vectors) + 1, dtype=np.int32) * vectors.shape[1])
            return pa.table({"embedding": pa.ListArray.from_arrays(offsets, flat, mask=pa.array(~finite))})

        return embed

    @override
    def facts(self, columns: Iterable[pa.Table], shared: Path) -> dict[str, JsonValue]:
        null = sum(table["embedding"].null_count for table in columns)
        found = precision.facts(noise.facts(shared) | compared.facts(shared), shared)
        return (
            {
                **found,
                "null": null,
                "warnings": list(not_finite(null, "row", "never retrieved, and a duplicate of none")),
            }
            if null
            else found
        )


class Retrieve(Step):
    """Add `worse_contrast`: the golden responses of the `k` nearest other instructions inside the cosine `band`.

    They make SEAM_Contrast's sample set (SEAM §4.2, App. F.3): answers that are good, but to a near, different question. A
    candidate is a corpus row and the cosine of the two instructions, nearest first. The row itself, answers equal to its own
    and instructions equal to its own (case and white space aside) are left out. A row gets fewer than `k` candidates where
    the band holds fewer, an empty list where it holds none, and NULL where its embedding is not finite.

    The search is exact: products in double precision decide at the edges of the band. `index: ivf` and `hnsw` are
    approximate, and their recall is measured and reported.

    Raises:
        StepError: By `prepare`, where the corpus has no rows or no finite embedding, or an index needs FAISS.
        ModelError: Where no encoder is named or it cannot be loaded.

    Example:
        >>> import json, tempfile
        >>> from pathlib import Path
        >>> from seamcurate import FakeModel, Recipe, Retrieve, Source, query, run_local
        >>> scratch = tempfile.TemporaryDirectory()
        >>> folder = Path(scratch.name)
        >>> topics = ["a red apple", "a green apple", "an old ship"]
        >>> rows = [{"prompt": f"write two lines about {topic}", "response": f"On {topic}."} for topic in topics]
        >>> _ = (folder / "rows.jsonl").write_text("".join(json.dumps(row) + chr(10) for row in rows))
        >>> source = Source(jsonl=str(folder / "rows.jsonl"))
        >>> step = Retrieve(k=1, band=(0.75, 0.95), encoder=FakeModel())
        >>> _ = run_local(Recipe(rows=source, corpus=source, steps=(step,)), folder / "store")
        >>> query(folder / "store", "SELECT worse_contrast[1].source_row_id AS id FROM rows")["id"].to_pylist()
        [1, 0, None]
    """

    extras: ClassVar[tuple[str, ...]] = ("local",)
    k: int = Field(default=30, ge=1)
    band: tuple[float, float] = (0.80, 0.90)
    encoder: EncoderModel | None = None
    index: Literal["exact", "ivf", "hnsw"] = "exact"
    """`ivf` and `hnsw` are FAISS's: faster on many millions of rows, and not exact; their recall is measured and reported."""
    effort: int = Field(default=64, ge=1)
    """The depth of an approximate search in each gigabyte of vectors: lists probed (`ivf`), or candidates held while searching
    (`hnsw`). `exact` ignores it."""

    revision: ClassVar[int] = 3
    rows_per_call: ClassVar[int] = 1024

    @field_validator("band")
    @classmethod
    def _ordered(cls, band: tuple[float, float]) -> tuple[float, float]:
        if not -1 <= band[0] < band[1] <= 1:
            raise ValueError(f"a band is [low, high] with -1 <= low < high <= 1, not {list(band)}")
        return band

    @property
    @override
    def name(self) -> str:
        return "worse_contrast"

    @property
    @override
    def inputs(self) -> tuple[str, ...]:
        return ("prompt", "response")

    @property
    @override
    def adds(self) -> pa.Schema:
        meaning = f"up to {self.k} answers to other instructions at cosine {self.band[0]:g} to {self.band[1]:g}, nearest first"
        return pa.schema([column("worse_contrast", CONTRAST, meaning)])

    @property
    @override
    def on_corpus(self) -> tuple[Step, ...]:
        """Require the corpus to be embedded by the same encoder first."""
        return (Embed(encoder=self.encoder),)

    @property
    @override
    def corpus_inputs(self) -> tuple[str, ...]:
        """Read the corpus's texts, to exclude equal ones, and its embeddings."""
        return ("prompt", "response", "embedding")

    @override
    def prepare(self, data: Data, shared: Path) -> None:
        """Write the corpus's vectors for the search, and measure on a sample how many rows the band serves."""
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
        # A row without an embedding is written as zeros, so that positions stay row numbers; `embedded` leaves it out.
        asked = sum(table.num_rows for table in data.rows(()))
        nearest.build(shared, count, (as_matrix(table["embedding"], width) for table in tables), self.band[0], asked)
        nearest.write(
            shared / "embedded.npy",
            count,
            (table["embedding"].is_valid().to_numpy() for table in data.corpus(("embedding",)) if table.num_rows),
        )
        if self.index != "exact":
            approximate.build(shared, self.index)
        sample = evenly((p for table in data.rows(("prompt",)) for p in table["prompt"].to_pylist()), PROBED)
        compared.sample_prompts(self.encoder, data, shared)
        vectors, finite = embedded(compared.load_encoder(self.encoder, self.name, shared), sample)
        vectors, sample_keys = vectors[finite], keys(sample)[finite]
        exact = nearest.Band(shared, self.band)
        probed = coverage.probe(vectors, sample_keys, exact.vectors, _mapped(shared, "prompt_keys"), self.band, self.k)
        # The recall of the approximate search, on the same sample: what share of the exact hits it has.
        if self.index != "exact" and len(sample_keys):
            near = approximate.Approximate(shared, exact, self.effort)
            answers = (searched.search(vectors, self.k, nothing) for searched in (near, exact))
            probed["recall"] = round(approximate.recall(*answers), 4)
        (shared / "coverage.json").write_text(json.dumps(probed))

    @override
    def work(self, rows: Averages) -> Work:
        return Work(self.encoder, 1, rows.prompt)

    @override
    def first_work(self, rows: Averages, count: int) -> list[Work]:
        """Embed the sample by which coverage is described."""
        prompts = min(PROBED, count)
        return [Work(self.encoder, prompts, prompts * rows.prompt)]

    @override
    def load(self, shared: Path) -> Transform:
        exact = nearest.Band(shared, self.band)
        search = (exact if self.index == "exact" else approximate.Approximate(shared, exact, self.effort)).search
        ids, corpus_prompts, corpus_responses, corpus_embedded = (
            _mapped(shared, name) for name in ("row_ids", "prompt_keys", "response_keys", "embedded")
        )
        embedder = compared.load_encoder(self.encoder, self.name, shared)

        def retrieve(rows: pa.Table) -> pa.Table:
            prompts = rows["prompt"].to_pylist()
            vectors, finite = embedded(embedder, prompts)
            # (queries,): only rows with an embedding are searched for, so that all arrays count those rows.
            own_prompts, own_responses = keys(prompts)[finite], keys(rows["response"].to_pylist())[finite]

            def same(queries: nearest.Positions, positions: nearest.Positions) -> npt.NDArray[np.bool_]:
                excluded: npt.NDArray[np.bool_] = corpus_prompts[positions] == own_prompts[queries]
                excluded |= corpus_responses[positions] == own_responses[queries]
                excluded |= ~corpus_embedded[positions]
                return excluded

            searched = iter(search(vectors[finite], self.k, same) if finite.any() else ())
            # One entry a row again, NULL or not.
            row_hits = [next(searched) if is_embedded else _NO_HITS for is_embedded in finite]
            offsets = np.cumsum([0, *(len(hits.positions) for hits in row_hits)])
            positions = np.concatenate([hits.positions for hits in row_hits] or [np.zeros(0, np.int64)])
            cosines = np.concatenate([hits.cosines for hits in row_hits] or [np.zeros(0)])
            candidates = pa.StructArray.from_arrays(
                [pa.array(ids[positions], pa.int64()), pa.array(cosines.astype(np.float32))],
                ["source_row_id", "similarity"],
            )
            sets = pa.ListArray.from_arrays(pa.array(offsets, pa.int32()), candidates, mask=pa.array(~finite))
            return pa.table({"worse_contrast": sets})

        return retrieve

    @override
    def facts(self, columns: Iterable[pa.Table], shared: Path) -> dict[str, JsonValue]:
        """Count candidates a row; where fewer than half of the rows have any, say what a wider band or corpus would give."""
        counts = np.concatenate(
            [pc.list_value_length(t["worse_contrast"]).to_numpy() for t in columns] or [np.zeros(0, np.int64)]
        )
        null = int(np.isnan(counts).sum())
        # The length of a NULL list is NULL, which numpy reads as NaN.
        counts = counts[~np.isnan(counts)]
        warnings: list[JsonValue] = [*not_finite(null, "row", "worse_contrast is NULL")]
        found = compared.facts(shared)
        if not len(counts):
            return {**found, "null": null, "warnings": warnings} if null else found
        probed: dict[str, JsonValue] = json.loads((shared / "coverage.json").read_text())
        served = float((counts > 0).mean())
        facts: dict[str, JsonValue] = {
            **found,
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
        if found:
            facts["summary"] = f"{facts['summary']}; {found['summary']}"
        if null:
            facts["null"] = null
        if served < 0.5 and probed["rows_probed"]:
            warnings += coverage.advice(probed, self.band)
        if warnings:
            facts["warnings"] = warnings
        return facts


_NO_HITS = nearest.Hits(np.zeros(0, np.int64), np.zeros(0))


def nothing(queries: nearest.Positions, positions: nearest.Positions) -> npt.NDArray[np.bool_]:
    """Leave no pair out."""
    return np.zeros(np.broadcast_shapes(queries.shape, positions.shape), bool)


def keys(texts: Sequence[Prompt | None]) -> Keys:
    """Return a 64-bit hash of each text: texts that are equal, case and white space aside, have equal keys."""
    spelled = (folded(prompt_text(text)) if text is not None else "\0" for text in texts)
    digests = (hashlib.blake2b(f.encode("utf-8", "surrogatepass"), digest_size=8).digest() for f in spelled)
    return np.frombuffer(b"".join(digests), np.uint64).copy()


def _mapped(shared: Path, name: str) -> npt.NDArray[Any]:
    """Map a file with one value for each corpus row; it may exceed the memory."""
    values: npt.NDArray[Any] = np.load(shared / f"{name}.npy", mmap_mode="r", allow_pickle=False)
    return values
