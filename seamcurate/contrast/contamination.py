"""How near each row comes to another data set, such as an evaluation set: its nearest prompt, and the words they share.

One rule: the match is shown. A row has the other set's row and text beside the numbers, so that a person can judge them.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable
from functools import cache
from pathlib import Path
from typing import ClassVar

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
from pydantic import Field, JsonValue
from typing_extensions import override

from seamcurate.contrast import nearest as search
from seamcurate.contrast.retrieve import Embed
from seamcurate.data.source import Source
from seamcurate.errors import StepError
from seamcurate.models import EncoderModel, Prompt, roles
from seamcurate.models.template import prompt_text
from seamcurate.models.vectors import as_matrix, embedded
from seamcurate.progress import bar
from seamcurate.step import Averages, Data, Step, Transform, Work, column
from seamcurate.text import counted
from seamcurate.words import Hashes, ngrams

_BATCH = 512
"""Prompts of the other set that are embedded at once."""
_EVERY = (-2.0, 2.0)
"""A band that holds every cosine."""


class Nearest(Step):
    """Add the nearest prompt of another data set to each row, and the share of the row's word runs that the set holds.

    `nearest_{name}` is the other set's row, `nearest_{name}_similarity` the cosine of the two prompts, and
    `nearest_{name}_text` the prompt itself. The search is exact; of equally near rows the first is taken. `overlap_{name}` is
    the share of the prompt's runs of `words` words that any prompt of the other set holds, case and punctuation aside: with
    13, what decontamination usually reports (GPT-3, App. C). It is NULL for a prompt of fewer words; the others are NULL
    where the row's embedding is not finite.

    Reads `embedding`, which `nearest` adds first, of the same encoder.

    Raises:
        SourceError: The other set cannot be read.
        StepError: By `prepare`, where the other set has no row with a finite embedding.
        ModelError: Where no encoder is named or it cannot be loaded.

    Example:
        >>> import json, tempfile
        >>> from pathlib import Path
        >>> from seamcurate import FakeModel, Recipe, Source, nearest, query, run_local
        >>> scratch = tempfile.TemporaryDirectory()
        >>> folder = Path(scratch.name)
        >>> _ = (folder / "rows.jsonl").write_text(json.dumps({"prompt": "What is a set in Python?"}))
        >>> tests = [{"question": "Where is Rome?"}, {"question": "What is a set?"}]
        >>> _ = (folder / "test.jsonl").write_text("".join(json.dumps(test) + chr(10) for test in tests))
        >>> test = Source(jsonl=str(folder / "test.jsonl"), prompt="question")
        >>> steps = nearest(to=test, name="test", words=4, encoder=FakeModel())
        >>> _ = run_local(Recipe(rows=Source(jsonl=str(folder / "rows.jsonl")), steps=steps), folder / "store")
        >>> query(folder / "store", "SELECT nearest_test, nearest_test_text, overlap_test FROM rows").to_pylist()
        [{'nearest_test': 1, 'nearest_test_text': 'What is a set?', 'overlap_test': 0.3333333333333333}]
    """

    extras: ClassVar[tuple[str, ...]] = ("local",)
    to: Source
    """The other data set; only its prompts are read."""
    set_name: str = Field(pattern=r"^[a-z0-9]+(_[a-z0-9]+)*$")
    """What the columns call it: lower snake case."""
    words: int = Field(default=13, ge=1)
    """The length of a run, in words."""
    encoder: EncoderModel | None = None

    rows_per_call = 1024

    @property
    @override
    def name(self) -> str:
        return f"nearest_{self.set_name}"

    @property
    @override
    def inputs(self) -> tuple[str, ...]:
        return ("prompt", "embedding")

    @property
    @override
    def adds(self) -> pa.Schema:
        title = self.set_name
        return pa.schema(
            [
                column(f"nearest_{title}", pa.int64(), f"row of {title} whose prompt is nearest to this one's"),
                column(f"nearest_{title}_similarity", pa.float64(), "cosine of the two prompts' embeddings"),
                column(f"nearest_{title}_text", pa.string(), f"the prompt of that row of {title}; never exported"),
                column(
                    f"overlap_{title}",
                    pa.float64(),
                    f"share of the prompt's runs of {self.words} words that {title} holds; NULL for fewer words",
                ),
            ]
        )

    @override
    def identity(self) -> dict[str, JsonValue]:
        # Before any step runs: the rows are embedded first, and only then is the other set read.
        if self.to.frame is None:
            _check_readable(self.to.model_dump_json())
        else:
            next(iter(self.to.chunks()), None)
        return super().identity()

    @property
    def other_prompts(self) -> int:
        """Count the prompts of the other set."""
        return _size(self.to.model_dump_json())[0]

    @override
    def first_work(self, rows: Averages, count: int) -> list[Work]:
        """Embed the other set."""
        prompts, characters = _size(self.to.model_dump_json())
        return [Work(self.encoder, prompts, characters)]

    @override
    def prepare(self, data: Data, shared: Path) -> None:
        """Read and embed the other set, and hash its runs of words."""
        row_ids: list[int] = []
        prompts: list[Prompt] = []
        reasons: Counter[str] = Counter()
        for chunk in self.to.chunks():
            if chunk.rows.num_rows:
                row_ids += chunk.rows["row_id"].to_pylist()
                prompts += chunk.rows["prompt"].to_pylist()
            reasons.update(chunk.rejected["reason"].to_pylist())
        embedder = roles.load(self.encoder, "encoder", self.name)
        parts, finite = [], []
        with bar(f"embedding {self.set_name}", len(prompts), "prompts") as advance:
            for start in range(0, len(prompts), _BATCH):
                batch_vectors, batch_finite = embedded(embedder, prompts[start : start + _BATCH])
                parts.append(batch_vectors[batch_finite])
                finite.append(batch_finite)
                advance(len(batch_finite))
        is_finite = np.concatenate(finite) if finite else np.zeros(0, bool)
        if not is_finite.any():
            raise StepError(
                f"step {self.name}: no row of {self.set_name} has a prompt with a finite embedding; name another file, or "
                "another encoder"
            )
        texts = [prompt_text(prompt) for prompt in prompts]
        kept = np.flatnonzero(is_finite)
        search.write(shared / "vectors.npy", len(kept), parts)
        np.save(shared / "row_ids.npy", np.array(row_ids)[kept])
        shared_texts = pa.table({"text": pa.array([texts[i] for i in kept], pa.large_string())})
        with pa.OSFile(str(shared / "texts.arrow"), "wb") as sink, pa.ipc.new_file(sink, shared_texts.schema) as writer:
            writer.write_table(shared_texts)
        np.save(shared / "runs.npy", _runs(pa.array(texts, pa.large_string()), self.words))
        (shared / "set.json").write_text(
            json.dumps({"rows": len(prompts), "not_finite": len(prompts) - len(kept), "rejected": dict(reasons)})
        )

    @override
    def load(self, shared: Path) -> Transform:
        band = search.Band(shared, _EVERY)
        row_ids = np.load(shared / "row_ids.npy", allow_pickle=False)
        runs = np.load(shared / "runs.npy", mmap_mode="r", allow_pickle=False)
        texts = pa.ipc.open_file(pa.memory_map(str(shared / "texts.arrow"))).read_all()["text"].combine_chunks()

        def compare(rows: pa.Table) -> pa.Table:
            embeddings = rows["embedding"]
            is_embedded = embeddings.is_valid().to_numpy()
            vectors = as_matrix(embeddings, band.vectors.shape[1])[is_embedded]
            positions, cosines = np.zeros(len(is_embedded), np.int64), np.zeros(len(is_embedded))
            if len(vectors):
                positions[is_embedded], cosines[is_embedded] = band.nearest(vectors)
            prompts = pa.array([prompt_text(prompt) for prompt in rows["prompt"].to_pylist()], pa.large_string())
            shares = _overlap(prompts, self.words, runs)
            nearest_texts = texts.take(pa.array(positions, mask=~is_embedded)).cast(pa.string())
            values = [
                pa.array(row_ids[positions], pa.int64(), mask=~is_embedded),
                pa.array(cosines, pa.float64(), mask=~is_embedded),
                nearest_texts,
                pa.array(shares, pa.float64(), mask=np.isnan(shares)),
            ]
            return pa.table(values, names=self.adds.names)

        return compare

    @override
    def facts(self, columns: Iterable[pa.Table], shared: Path) -> dict[str, JsonValue]:
        read: dict[str, JsonValue] = json.loads((shared / "set.json").read_text())
        rows = overlapping = short = 0
        for table in columns:
            shares = table[f"overlap_{self.set_name}"]
            rows, short = rows + table.num_rows, short + shares.null_count
            overlapping += pc.sum(pc.greater(shares, 0)).as_py() or 0
        facts: dict[str, JsonValue] = {
            "rows": rows,
            "overlapping": overlapping,
            "too_short": short,
            "set": read,
            "summary": f"{overlapping:,} of {counted(rows, 'row')} share a run of {self.words} words with {self.set_name} "
            f"({counted(int(str(read['rows'])), 'row')}); {short:,} are shorter than that",
        }
        rejected = read["rejected"]
        assert isinstance(rejected, dict)
        warnings: list[JsonValue] = [
            f"{count:,} rows of {self.set_name} could not be read and are compared with nothing: {reason}"
            for reason, count in rejected.items()
        ]
        if read["not_finite"]:
            warnings.append(
                f"{read['not_finite']:,} rows of {self.set_name} have an embedding that is not finite: never the nearest"
            )
        return {**facts, "warnings": warnings} if warnings else facts


def nearest(to: Source, name: str, words: int = 13, *, encoder: EncoderModel | None = None) -> tuple[Step, ...]:
    """Return the steps that compare rows with another data set: embeddings of the prompts, then `Nearest`.

    Args:
        to: The other data set, such as an evaluation set; only its prompts are read.
        name: What the columns call it: lower snake case.
        words: The length of a run of words, whose share is the overlap.
        encoder: The model that embeds the prompts of both.

    Example:
        >>> from seamcurate import Source, nearest
        >>> [step.name for step in nearest(to=Source(jsonl="gsm8k.jsonl", prompt="question"), name="gsm8k")]
        ['embedding', 'nearest_gsm8k']
    """
    return Embed(encoder=encoder), Nearest(to=to, set_name=name, words=words, encoder=encoder)


@cache
def _check_readable(source: str) -> None:
    """Read the first rows of a source, once in each process.

    Raises:
        SourceError: It cannot be read, or lacks the column of the prompts.
    """
    next(iter(Source.model_validate_json(source).chunks()), None)


@cache
def _size(source: str) -> tuple[int, int]:
    """Count the prompts of a source, and their characters, once in each process."""
    prompts = characters = 0
    for chunk in Source.model_validate_json(source).chunks():
        prompts += chunk.rows.num_rows
        characters += sum(len(prompt_text(prompt)) for prompt in chunk.rows["prompt"].to_pylist())
    return prompts, characters


def _runs(texts: pa.LargeStringArray, words: int) -> Hashes:
    """Return the hash of each run of words of some texts, ascending, each once: (runs,)."""
    hashes = [np.unique(batch.hashes) for batch in ngrams(texts, words)]
    return np.unique(np.concatenate(hashes)) if hashes else np.zeros(0, np.uint64)


def _overlap(texts: pa.LargeStringArray, words: int, runs: Hashes) -> npt.NDArray[np.float64]:
    """Return the share of each text's runs of words that are among `runs`; NaN for a text without any: (texts,)."""
    shares = np.full(len(texts), np.nan)
    for batch in ngrams(texts, words):
        places = np.minimum(np.searchsorted(runs, batch.hashes), max(0, len(runs) - 1))
        shared = runs[places] == batch.hashes if len(runs) else np.zeros(len(batch.hashes), bool)
        starts = np.concatenate([[0], np.cumsum(batch.counts)[:-1]])
        shares[batch.rows] = np.add.reduceat(shared.astype(np.int64), starts) / batch.counts
    return shares
