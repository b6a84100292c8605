"""The cost of a run before it starts: rows, model calls, tokens, and the share of rows that the band serves.

One rule: nothing that a run makes is computed. Rows are counted exactly; calls and tokens are estimated from a sample, and how
fast models work and searches go is measured on a few rows. A missing model or a filter that SQL cannot answer is refused before
anything is embedded. What is written in the store is `plan.json`: the times, by which a run's report tells what was planned.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import pyarrow as pa
from pydantic import JsonValue
from typing_extensions import override

from seamcurate import markup, tables
from seamcurate.contrast import (
    PROBES,
    Attack,
    Duplicates,
    Embed,
    Generate,
    Nearest,
    Probes,
    Retrieve,
    Rollouts,
    coverage,
    lexicon,
    retrieve,
)
from seamcurate.data.source import REJECTED, Chunk, Source
from seamcurate.errors import ModelError
from seamcurate.models import FakeModel, Prompt, weights
from seamcurate.models.backend import Backend, RewardConfig, models_of
from seamcurate.models.local import LocalModel
from seamcurate.models.served import Served
from seamcurate.models.template import prompt_text
from seamcurate.models.vectors import as_matrix, dimensions
from seamcurate.models.vectors import embedded as embed
from seamcurate.progress import bar, note
from seamcurate.run import agreement, probe, speed, times
from seamcurate.run.recipe import Recipe
from seamcurate.run.sample_encoder import SampleEncoder
from seamcurate.select import split
from seamcurate.select.split import check_formats
from seamcurate.step import SAMPLE_SETS, Averages, Step, digest, evenly
from seamcurate.storage.objects import Place
from seamcurate.store.folder import numbers
from seamcurate.store.store import Store
from seamcurate.text import counted

_SAMPLE_ROWS = 128
_SAMPLE_CORPUS = 2_000


class StepEstimate(NamedTuple):
    """One step of a plan."""

    step: str
    rows: int
    """Rows still to be computed; all rows where there is no store yet."""
    model: str
    calls: int
    """Sequences or texts that the model reads."""
    tokens: int
    written: int
    """Tokens a language model writes."""
    usd: float | None
    """US dollars; None for a local model, or where the recipe has no prices."""
    duration: times.Duration | None = None
    """Seconds on this machine, by a probe; None for a step that is not timed here, or has no rows to do."""

    @property
    def seconds(self) -> float | None:
        """Seconds for the rows still to be computed; None where `duration` is."""
        return None if self.duration is None else self.duration.of(self.rows)


class Plan(NamedTuple):
    """The estimated cost of a run."""

    rows: int
    """Rows that the store will have."""
    rejected: int
    """Rows of the source that will be set aside."""
    corpus: int
    """Rows of the corpus; 0 without one."""
    lines: list[StepEstimate]
    """What each step asks of a model: rows, calls, tokens, dollars, seconds."""
    notes: list[str]
    """Lines for a person: coverage, dollars, time, and what could not be estimated."""

    def __repr__(self) -> str:
        table = tables.shown(HEADER, self.cells(), right=range(1, len(HEADER) - 1), width=160)
        return "\n".join([self.counts(), *table.splitlines(), "", *self.notes])

    def _repr_html_(self) -> str:
        return markup.block(
            self.counts(), markup.table(HEADER, self.cells(), right=range(1, len(HEADER) - 1)), markup.lines(self.notes)
        )

    def counts(self) -> str:
        """Return how many rows there are, as a line."""
        return f"{counted(self.rows, 'row')} ({self.rejected:,} set aside), corpus of {self.corpus:,}"

    def cells(self) -> list[list[str]]:
        """Return the steps' lines as text, in the order of HEADER."""
        return [
            [
                line.step,
                f"{line.rows:,}",
                f"{line.calls:,}" if line.model else "",
                f"{line.tokens:,}" if line.model else "",
                f"{line.written:,}" if line.written else "",
                "" if line.usd is None else f"{line.usd:,.2f}",
                "" if line.seconds is None else times.written(line.seconds),
                line.model,
            ]
            for line in self.lines
        ]


HEADER = ("step", "rows to do", "calls", "tokens in", "out", "$", "time", "model")
"""What a plan's table shows of each step."""


class _Sample(NamedTuple):
    rows: int
    rejected: int
    prompts: list[Prompt]
    responses: list[str]
    references: list[str]
    sets: list[dict[str, list[str]]]
    """The candidates of each row in the source's own sample sets, by column."""
    schema: pa.Schema
    """The columns of the source."""


def plan(recipe: Recipe, path: str | Place) -> Plan:
    """Count a recipe's rows and estimate the model calls, tokens and hours of its steps; nothing that a run makes is computed.

    In the store only `plan.json` is written: the times of steps, by which the report of a run tells what was planned. The
    embeddings of the sample stay in the cache folder, so that neither `init` nor `plan` embeds a text anew.

    Args:
        recipe: The recipe.
        path: The store that it would be run into. Steps that are finished there count no rows.

    Returns:
        The plan: `rows` and `rejected` (counted), `corpus` (rows of the corpus), `lines` (one for each step: rows, calls,
        tokens read and written, US dollars where the recipe has prices, seconds where nobody asks for money) and `notes`.

    Raises:
        SeamcurateError: The errors about sources, models and filters that a run would raise first.

    Example:
        >>> import tempfile
        >>> import pyarrow as pa, pyarrow.parquet as pq
        >>> from seamcurate import FakeModel, Models, Recipe, Reward, Source, plan
        >>> folder = tempfile.mkdtemp()
        >>> rows = pa.table({"prompt": ["2 + 2?", "3 + 3?"], "response": ["4", "6"]})
        >>> pq.write_table(rows, f"{folder}/rows.parquet")
        >>> source = Source(parquet=f"{folder}/rows.parquet", response="response")
        >>> estimate = plan(Recipe(rows=source, steps=[Reward(reward=FakeModel())]), f"{folder}/store")
        >>> estimate.rows, [(line.step, line.rows, line.calls) for line in estimate.lines]
        (2, [('reward', 2, 2)])
    """
    store, steps = Store(path), recipe.ready()
    sample, corpus = _looked_at(recipe, store, steps)
    notes: list[str] = []
    searches: dict[str, times.Duration] = {}
    candidates: dict[str, float] = {}
    lengths: dict[str, float] = {}
    for name in sorted({name for sets in sample.sets for name in sets}):
        variant = name.removeprefix("worse_")
        listed = [sets.get(name, []) for sets in sample.sets]
        candidates[variant] = sum(map(len, listed)) / len(listed)
        lengths[variant] = _mean([text for texts in listed for text in texts])
    for step in steps:
        sample_set = next((kind.name for kind in SAMPLE_SETS if f"worse_{kind.name}" in step.adds.names), None)
        if sample_set and isinstance(step, Generate | Attack):
            candidates[sample_set] = step.k
        if sample_set and isinstance(step, Rollouts):
            # At most: equal samples are scored once.
            candidates[sample_set] = step.n
        if isinstance(step, Probes):
            candidates["probe"] = len(PROBES)
        if sample_set and isinstance(step, Retrieve) and corpus is not None:
            measured = _coverage(step, sample, corpus, _embedded(store, step))
            is_first = not _done(store if store.about else None, step)
            searches[step.name] = speed.retrieval_time(
                step, measured.queries, measured.vectors, measured.scale, is_first
            )
            candidates[sample_set] = measured.mean
            told, *advice = _told(step, measured)
            notes += [told, *(f"warning: {line}" for line in advice)]
    averages = Averages(
        prompt=_mean([prompt_text(p) for p in sample.prompts]),
        response=_mean(sample.responses),
        reference=_mean(sample.references),
        candidates=0.0,
        candidate=_mean(corpus.responses) if corpus else 0.0,
    )
    texts = [prompt_text(p) for p in sample.prompts] + sample.responses
    ratios: dict[str, float] = {}
    searches |= _comparisons(steps, sample)
    timed = probe.Probe(
        probe.Texts(
            sample.prompts,
            sample.responses,
            corpus.responses if corpus else [text for sets in sample.sets for some in sets.values() for text in some],
        )
    )
    lines = []
    from_corpus = {kind.name for kind in SAMPLE_SETS if kind.instructions}
    corpus_steps = agreement.corpus_steps(steps) if corpus is not None else []
    if corpus is not None:
        corpus_averages = averages._replace(prompt=_mean([prompt_text(p) for p in corpus.prompts]))
        for step in corpus_steps:
            corpus_store = store.corpus_store if store.about else None
            lines.append(
                _line(step, corpus.rows, _done(corpus_store, step), corpus_averages, texts, ratios, timed, times.CORPUS)
            )
    for step in steps:
        variant = str(getattr(step, "variant", SAMPLE_SETS[0].name))
        of_these = averages._replace(candidates=candidates.get(variant, 0.0))
        if variant in lengths:
            of_these = of_these._replace(candidate=lengths[variant])
        elif variant not in from_corpus:
            of_these = of_these._replace(candidate=averages.response)
        lines.append(
            _line(step, sample.rows, _done(store if store.about else None, step), of_these, texts, ratios, timed)
        )
    for i, (step, line) in enumerate(zip(steps, lines[-len(steps) :], strict=True), len(lines) - len(steps)):
        extra = searches.get(step.name)
        if isinstance(step, Rollouts) and line.rows:
            extra, said = speed.sampling_time(step, sample.prompts, line.rows, line.written)
            notes.append(said)
        if extra is not None and line.rows:
            lines[i] = line._replace(duration=extra.plus(line.duration or times.Duration(0.0, 0.0)))
    timed_seconds = [line.seconds for line in lines if line.seconds is not None]
    if timed_seconds:
        untimed = [line.step for line in lines if line.model and line.rows and line.seconds is None]
        notes.append(
            f"about {times.written(sum(timed_seconds))} for what has a time above, here and as busy as this machine is now: "
            "a probe timed models and searches on rows of all lengths"
            + (f"; {', '.join(untimed)} not in it" if untimed else "")
        )
    total = [line.usd for line in lines if line.usd is not None]
    if total:
        notes.append(f"about ${sum(total):,.2f} by the recipe's prices; `run --max-usd` stops before a limit")
    unpriced = {line.model for line in lines if line.written and line.usd is None and line.model.startswith("openai")}
    notes += [f"no dollars for {model}: give it usd_per_million_input and _output" for model in sorted(unpriced)]
    named = {step.name: step for step in steps} | {times.CORPUS + step.name: step for step in corpus_steps}
    times.keep(
        store.path, {line.step: (named[line.step], line.duration) for line in lines if line.duration is not None}
    )
    return Plan(sample.rows, sample.rejected, corpus.rows if corpus else 0, lines, notes)


def measure_band(recipe: Recipe) -> list[str]:
    """Measure on samples of rows and corpus how many rows the band of `retrieve` serves; return it in lines.

    Where it serves fewer than half of them, the lines say what a wider band or a larger corpus would serve.

    Raises:
        SeamcurateError: See `plan`.
    """
    steps = recipe.ready()
    with TemporaryDirectory() as folder:
        sample, corpus = _looked_at(recipe, Store(Path(folder) / "store"), steps)
    if corpus is None:
        return []
    searches = [step for step in steps if isinstance(step, Retrieve)]
    return [line for step in searches for line in _told(step, _coverage(step, sample, corpus, None))]


def _looked_at(recipe: Recipe, store: Store, steps: Sequence[Step]) -> tuple[_Sample, _Sample | None]:
    """Refuse what a run would refuse, before anything is embedded; return samples of the rows and of the corpus."""
    _check_models(steps)
    compares_all = any(isinstance(step, Duplicates) for step in steps)
    sample = _look(recipe.rows, "counting rows", _SAMPLE_CORPUS if compares_all else _SAMPLE_ROWS)
    corpus = _look(recipe.corpus, "counting corpus", _SAMPLE_CORPUS) if recipe.corpus else None
    if sample.rows and recipe.rows.store is None:
        check_formats(recipe.splits, {*sample.schema.names, *(name for step in steps for name in step.adds.names)})
    _check_filters(recipe, store, steps, sample.schema, corpus.schema if corpus else None)
    return sample, corpus


def _told(step: Retrieve, measured: _Coverage) -> Iterator[str]:
    """Say how many candidates a band gives, and what would give more where it serves few rows."""
    yield (
        f"band {list(step.band)}: about {measured.mean:.1f} candidates a row, none for about "
        f"{measured.share_without:.0%} of rows"
    )
    if measured.share_without > 0.5:
        yield from coverage.advice(measured.probed, step.band)


def _check_models(steps: Sequence[Step]) -> None:
    """Refuse models, servers and lexicons that are not there; no weights are read."""
    for step in steps:
        for model in models_of(step):
            if isinstance(model, LocalModel):
                weights.check(model.origin)
            if isinstance(model, Served):
                model.local()
                model.check_server()
        if isinstance(step, Attack):
            if step.masked_model is not None:
                weights.check(weights.Origin(step.masked_model))
            for path in (step.wordnet, step.antonyms, step.vectors):
                if path is not None and not Path(path).exists():
                    lexicon.identity(path)


def _check_filters(
    recipe: Recipe, store: Store, steps: Sequence[Step], rows: pa.Schema, corpus: pa.Schema | None
) -> None:
    """Check the steps and filters against a temporary store that has their columns and no rows.

    Raises:
        QueryError: A filter cannot be answered.
        RecipeError: A filter names a column that no step adds, or lacks a parameter.
        StepError: A step reads a column that neither the source nor an earlier step has.
    """
    if store.about:
        added = {name for step in steps for name in step.adds.names} | set(rows.names)
        # A filter may read what an earlier recipe made: a step of this one that adds the same column comes first.
        stored_columns = [pa.field(c.name, c.kind) for c in store.columns() if c.stale is None and c.name not in added]
        rows = pa.schema([*rows, *stored_columns])
    planned = [_without_weights(step) for step in steps]
    with TemporaryDirectory() as folder:
        planned_store, corpus_store = _empty(Path(folder) / "store", rows), None
        if corpus is not None:
            corpus_store = _empty(Path(folder) / "store" / "corpus", corpus)
            planned_store.update(corpus="corpus")
        # What a run does before its first step, so that both refuse the same recipes by the same messages.
        corpus_outputs, outputs = agreement.plan_steps(planned, planned_store, corpus_store)
        if corpus_store is not None:
            corpus_store.claim(corpus_outputs)
        planned_store.claim(outputs)
        split.check(planned_store, recipe.splits)


def _empty(path: Path, schema: pa.Schema) -> Store:
    """Make a store with columns and no rows."""
    store = Store(path)
    source: dict[str, JsonValue] = {"planned": True}
    store.update(rows=digest(source), source=source, shard_rows=1, complete=True, shards=1, seals={})
    store.add_rows(0, schema.empty_table(), REJECTED.empty_table())
    return store


def _without_weights(step: Step) -> Step:
    """Return a step with fake models: its configuration does not depend on files of weights."""
    files = ("wordnet", "antonyms", "vectors", "masked_model") if isinstance(step, Attack) else ()
    models = {
        key: _Weightless(model=value) if isinstance(value, RewardConfig) else FakeModel()
        for key, value in step
        if isinstance(value, Backend)
    }
    return step.model_copy(update={**models, **dict.fromkeys(files)})


class _Weightless(FakeModel):
    """Stand in for a reward model of which no weights are read: the columns that it reads and adds are the model's."""

    model: RewardConfig

    @override
    def columns_read(self) -> tuple[str, ...]:
        return self.model.columns_read()

    @override
    def output_names(self) -> tuple[str, ...]:
        return self.model.output_names()

    @override
    def member_names(self) -> tuple[str, ...]:
        return self.model.member_names()

    @override
    def gives_reasons(self) -> bool:
        return self.model.gives_reasons()

    @override
    def is_binary(self) -> bool:
        return self.model.is_binary()


def _line(
    step: Step,
    rows: int,
    done: int,
    averages: Averages,
    texts: Sequence[str],
    ratios: dict[str, float],
    timed: probe.Probe,
    prefix: str = "",
) -> StepEstimate:
    """Estimate a step's work for the rows that are not done."""
    calls = tokens = written = 0
    prices: list[float] = []
    titles: list[str] = []
    missing = rows - done
    # What is done once was done before the first row.
    first_work = [] if done or not missing else step.first_work(averages, rows)
    for work, often in [*((work, missing) for work in step.works(averages)), *((work, 1) for work in first_work)]:
        model = work.model
        if not isinstance(model, Backend):
            continue
        if model.title not in ratios:
            # Tokens a character, counted once a model: tokenizers differ by half, and by more between languages.
            ratios[model.title] = model.count_tokens(texts) / max(1, sum(map(len, texts)))
        read_here, written_here = (
            round(characters * ratios[model.title] * often) for characters in (work.characters, work.answer)
        )
        calls, tokens, written = calls + round(work.sequences * often), tokens + read_here, written + written_here
        titles.append(model.title)
        if (usd := model.price(read_here, written_here)) is not None:
            prices.append(usd)
    title = ", ".join(dict.fromkeys(titles))
    usd, duration = sum(prices) if prices else None, timed.duration(step, missing, averages, not done)
    return StepEstimate(prefix + step.name, missing, title, calls, tokens, written, usd, duration)


def _done(store: Store | None, step: Step) -> int:
    """Count the rows that a store has computed for this configuration."""
    if store is None:
        return 0
    record = store.records().get(step.name)
    # A run would make these anew, or refuse: as far as the plan goes, nothing of them is done.
    if record is None or record["identity"] != store.identity(step) or step.name in store.stale():
        return 0
    return sum(map(store.count, numbers(store.path / "columns" / step.name)))


def _look(source: Source, label: str, size: int) -> _Sample:
    """Count a source's rows, and take an evenly spaced sample of at most `size` rows."""
    if source.store is not None and Store(source.store).about:
        tables = Store(source.store).rows(["prompt", "response"])
        counted_tables = ((table, 0) for table in tables)
    else:
        counted_tables = ((chunk.rows, chunk.rejected.num_rows) for chunk in _noted(source))
    rows = rejected = 0
    schema = pa.schema([])

    def texts() -> Iterator[tuple[Prompt, str, str, dict[str, list[str]]]]:
        nonlocal rows, rejected, schema
        with bar(label, None) as advance:
            for table, set_aside in counted_tables:
                blank = [""] * table.num_rows
                columns = [
                    [text or "" for text in table[name].to_pylist()] if name in table.schema.names else blank
                    for name in ("response", "reference")
                ]
                yield from zip(table["prompt"].to_pylist(), *columns, _sets(table), strict=True)
                # Of line by line sources the last chunk's schema alone has every column that was met.
                rows, rejected, schema = rows + table.num_rows, rejected + set_aside, table.schema
                advance(table.num_rows + set_aside)

    sample = evenly(texts(), size)
    return _Sample(
        rows,
        rejected,
        [prompt for prompt, *_ in sample],
        [response for _, response, *_ in sample],
        [reference for _, _, reference, _ in sample],
        [sets for *_, sets in sample],
        schema,
    )


def _noted(source: Source) -> Iterator[Chunk]:
    """Read a source, and pass on what there is to say about it."""
    for chunk in source.chunks():
        for line in chunk.notes:
            note(line)
        yield chunk


def _sets(table: pa.Table) -> list[dict[str, list[str]]]:
    """Return the candidates in the sample sets that a table has of its own, by row and column."""
    names = [name for name in table.column_names if name.startswith("worse_")]
    rows: list[dict[str, list[str]]] = [{} for _ in range(len(table))]
    for name in names:
        for row, candidates in zip(rows, table[name].to_pylist(), strict=True):
            if isinstance(candidates, list):
                texts = (candidate.get("response") for candidate in candidates if isinstance(candidate, dict))
                row[name] = [text for text in texts if isinstance(text, str)]
    return rows


class _Coverage(NamedTuple):
    queries: npt.NDArray[np.float32]
    """Embeddings of some rows, rows × dimensions."""
    vectors: npt.NDArray[np.float32]
    """Embeddings of the corpus, or of a sample of it, rows × dimensions."""
    scale: float
    """Rows of the corpus over those of `vectors`."""
    probed: dict[str, JsonValue]
    mean: float
    """Candidates a row."""
    share_without: float
    """The share of rows without a candidate."""


def _comparisons(steps: Sequence[Step], sample: _Sample) -> dict[str, times.Duration]:
    """Time the steps that compare rows with each other, or with another data set, on embeddings of a sample."""
    durations: dict[str, times.Duration] = {}
    encoders = [step.encoder for step in steps if isinstance(step, Embed) and step.encoder is not None]
    compared = [step for step in steps if isinstance(step, Duplicates | Nearest)]
    if not compared or not encoders or not sample.prompts:
        return durations
    vectors, finite = embed(SampleEncoder(encoders[0]), sample.prompts)
    if not finite.any():
        return durations
    for step in compared:
        if isinstance(step, Duplicates):
            durations[step.name] = speed.duplicates_time(step, vectors[finite], sample.rows)
        else:
            durations[step.name] = speed.nearest_time(vectors.shape[1], step.other_prompts)
    return durations


def _coverage(step: Retrieve, sample: _Sample, corpus: _Sample, embedded: Store | None) -> _Coverage:
    """Probe the band with a sample of the rows.

    The rows are compared with the corpus's embeddings if a run has made them, else with a sample of the corpus. From a
    sample, the mean number of candidates scales with the size of the corpus, and the share of rows without a candidate
    is assumed to shrink with each doubling of the corpus as it did with the last doubling within the sample.
    """
    assert step.encoder is not None
    embedder = SampleEncoder(step.encoder)
    prompts = evenly(sample.prompts, _SAMPLE_ROWS)
    queries, finite = embed(embedder, prompts)
    if not finite.any():
        raise ModelError(
            f"none of {len(finite)} prompts has an embedding that is finite; name another encoder, or `dtype: float32`"
        )
    # Retrieval leaves prompts without a finite embedding without candidates, too; here they would be cosines of NaN.
    queries, query_keys, scale = queries[finite], retrieve.keys(prompts)[finite], 1.0
    if embedded is not None:
        tables = list(embedded.rows(["prompt", "embedding"]))
        width = dimensions(table["embedding"] for table in tables) or queries.shape[1]
        vectors = np.concatenate([as_matrix(table["embedding"], width) for table in tables if table.num_rows])
        corpus_keys = np.concatenate([retrieve.keys(table["prompt"].to_pylist()) for table in tables])
    else:
        vectors, _ = embed(embedder, corpus.prompts)
        # Neighbours in a corpus n times as large are n times as many: the sample is drawn evenly.
        corpus_keys, scale = retrieve.keys(corpus.prompts), corpus.rows / max(1, len(corpus.prompts))
    probed = coverage.probe(queries, query_keys, vectors, corpus_keys, step.band, step.k, scale)
    mean, share_none, doubled = (
        probed[key] for key in ("candidates_mean", "share_none", "share_none_twice_the_corpus")
    )
    assert isinstance(mean, float) and isinstance(share_none, float) and isinstance(doubled, float)
    # log2(scale): how many doublings lie between the sample and the corpus.
    share_none *= (doubled / share_none) ** np.log2(scale) if share_none else 0.0
    return _Coverage(queries, vectors, scale, probed, mean, share_none)


def _embedded(store: Store, step: Retrieve) -> Store | None:
    """Return the corpus if it is fully embedded with this step's encoder; else None."""
    corpus = store.corpus_store
    if corpus is None or not corpus.about.get("complete"):
        return None
    (embed,) = step.on_corpus
    return corpus if _done(corpus, embed) == len(corpus) else None


def _mean(texts: Sequence[str]) -> float:
    return float(np.mean([len(text) for text in texts])) if texts else 0.0
