"""How long sampling and searching take here, by probes: a few short answers of the policy, and products of a few vectors."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import numpy.typing as npt

from seamcurate.contrast import Duplicates, Retrieve, Rollouts, coverage, nearest
from seamcurate.contrast.duplicates import repeated
from seamcurate.contrast.retrieve import PROBED, nothing
from seamcurate.errors import ModelError
from seamcurate.models import Prompt, Sample, Sampling, roles
from seamcurate.progress import bar
from seamcurate.run.times import Duration
from seamcurate.run.times import written as duration
from seamcurate.text import counted

_PROMPTS = 2
"""Prompts of the probe."""
_TOKENS = 64
"""The most tokens of its answers."""
_DRAWS = 16
"""The most answers to each of its prompts."""
_QUERIES = 1024
"""Rows that a search takes at once."""


def sampling_time(step: Rollouts, prompts: Sequence[Prompt], rows: int, written: int) -> tuple[Duration | None, str]:
    """Estimate the tokens and hours of a step that samples the policy: its duration, and one line that says it.

    Args:
        step: The step.
        prompts: Prompts of the data set; the first two are answered.
        rows: Rows that have no samples yet.
        written: Tokens of all samples if they are as long as the golden responses; 0 where there are none.

    A policy that cannot be loaded here, or gives no answer, has no duration, and a line that says why: another machine may
    run the step.
    """
    try:
        return _timed(step, prompts, rows, written)
    except ModelError as error:
        return None, f"warning: {step.name}: how long it takes is not known: {error}"


def _timed(step: Rollouts, prompts: Sequence[Prompt], rows: int, written: int) -> tuple[Duration, str]:
    start = time.perf_counter()
    sampler = roles.load_sampler(step.policy, step.name)
    load = time.perf_counter() - start
    draws = min(step.n, _DRAWS)
    limit = min(step.max_tokens, _TOKENS)
    sampling = Sampling(draws, step.temperature, step.top_p, limit, step.seed)
    requests = [(prompt, range(draws)) for prompt in prompts[:_PROMPTS]]
    samples: list[Sample] = []
    reason = "no prompt"
    start = time.perf_counter()
    with bar("sampling a probe", len(requests) * draws, "samples") as advance:
        for _, _, sample in sampler.samples(requests, sampling):
            advance(1)
            if isinstance(sample, str):
                reason = sample
            else:
                samples.append(sample)
    seconds = time.perf_counter() - start
    if not samples:
        raise ModelError(f"the policy answers none of the first prompts: {reason}")
    drawn = sum(sample.tokens for sample in samples)
    ended = sum(sample.finish == "stop" for sample in samples)
    # Samples that were cut say how long they are at least.
    if 2 * ended >= len(samples) or limit == step.max_tokens:
        tokens, as_long = drawn / len(samples) * step.n * rows, "if samples are as long as these"
    elif written:
        tokens, as_long = (
            min(written, rows * step.n * step.max_tokens),
            "if samples are as long as the golden responses",
        )
    else:
        tokens, as_long = rows * step.n * step.max_tokens, "at most"
    sampled_s = tokens * seconds / drawn
    taking = Duration(load, sampled_s / max(1, rows))
    return taking, (
        f"{step.name}: about {duration(sampled_s)} here for {tokens:,.0f} tokens {as_long}; a probe of "
        f"{counted(len(samples), 'sample')} gave {drawn / seconds:,.0f} tokens a second"
    )


def retrieval_time(
    step: Retrieve, queries: nearest.Floats, vectors: nearest.Floats, scale: float, first: bool
) -> Duration:
    """Estimate what the search of a step takes, apart from embedding the rows.

    Args:
        step: The step.
        queries: Embeddings of some rows, float32, rows × dimensions.
        vectors: Embeddings of some corpus rows, float32, rows × dimensions.
        scale: Rows of the corpus over those of `vectors`.
        first: Whether the corpus is still to be prepared and the band to be described.
    """
    # The bound is chosen once, however large the corpus.
    choosing = _seconds(lambda: nearest.rotation(vectors, step.band[0]))
    with TemporaryDirectory() as folder:
        building = _seconds(lambda: nearest.build(Path(folder), len(vectors), [vectors], step.band[0]))
        band = nearest.Band(Path(folder), step.band)
        searching = _seconds(lambda: band.search(_resized(queries, _QUERIES), step.k, nothing))
    some, keys = _resized(queries, PROBED), np.arange(PROBED, dtype=np.uint64)
    corpus_keys = np.arange(len(vectors), dtype=np.uint64)
    describing = _seconds(lambda: coverage.probe(some, keys, vectors, corpus_keys, step.band, step.k))
    once = choosing + scale * (max(0.0, building - choosing) + describing)
    return Duration(first * once, scale * searching / _QUERIES)


def duplicates_time(step: Duplicates, vectors: nearest.Floats, rows: int) -> Duration:
    """Estimate what comparing each row with all earlier ones takes: its time grows with the square of the rows.

    Args:
        step: The step.
        vectors: Embeddings of some rows, float32, rows × dimensions.
        rows: All rows.
    """
    choosing = _seconds(lambda: nearest.rotation(vectors, step.similarity))
    with TemporaryDirectory() as folder:
        building = _seconds(lambda: nearest.build(Path(folder), len(vectors), [vectors], step.similarity))
        band = nearest.Band(Path(folder), (step.similarity, 2.0))
        block = min(_QUERIES, len(vectors))
        # The rows of a block among each other, and one block against all rows of the sample.
        inside = _seconds(lambda: repeated(band, np.ones(block, bool)))
        against = _seconds(lambda: band.search(vectors[:block], 1, nothing))
    pairs = rows * max(0, rows - block) / 2
    writing = max(0.0, building - choosing) / len(vectors)
    return Duration(choosing + (writing + inside / block) * rows + against / (block * len(vectors)) * pairs, 0.0)


def nearest_time(width: int, others: int) -> Duration:
    """Estimate what comparing a row with every row of another data set takes: one product each, whatever the vectors.

    Args:
        width: Dimensions of the embeddings.
        others: Rows of the other data set.
    """
    draw, size = np.random.default_rng(0), min(others, 8 * _QUERIES)
    with TemporaryDirectory() as folder:
        nearest.write(Path(folder) / "vectors.npy", size, [_unit(draw.standard_normal((size, width)))])
        band, queries = nearest.Band(Path(folder), (-2.0, 2.0)), _unit(draw.standard_normal((_QUERIES, width)))
        comparing = _seconds(lambda: band.nearest(queries))
    return Duration(0.0, comparing / _QUERIES * others / size)


def _seconds(run: Callable[[], object]) -> float:
    """Time the second of two calls: the first does what a library does once."""
    run()
    start = time.perf_counter()
    run()
    return time.perf_counter() - start


def _resized(vectors: nearest.Floats, count: int) -> nearest.Floats:
    """Return so many vectors, those that there are again and again."""
    return vectors[np.arange(count) % len(vectors)]


def _unit(vectors: npt.NDArray[np.float64]) -> nearest.Floats:
    unit: nearest.Floats = (vectors / np.linalg.norm(vectors, axis=1, keepdims=True)).astype(np.float32)
    return unit
