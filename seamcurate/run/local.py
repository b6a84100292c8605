"""Run a recipe in this process: read the rows, compute each step's missing shards, make the splits.

One rule: the unit of work is (step, shard) → one file. A finished file is never computed again, so to run again is to
resume.
"""

from __future__ import annotations

import math
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from pathlib import Path
from types import MappingProxyType
from typing import NamedTuple, TypeAlias

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from pydantic import JsonValue

from seamcurate import extras, markup
from seamcurate.contrast import Rollouts
from seamcurate.data.source import Chunk, Source
from seamcurate.errors import DamagedError, ModelError, SourceError, StaleError, StepError, StoreError
from seamcurate.models import OpenAIServer, RewardFunction, calls
from seamcurate.models.backend import models_of
from seamcurate.models.calls import Spent, expected
from seamcurate.models.endpoint import ServerSettings
from seamcurate.models.local import LocalModel
from seamcurate.models.served import Served
from seamcurate.models.template import prompt_text
from seamcurate.progress import bar, note
from seamcurate.run import agreement, integrity, times
from seamcurate.run.recipe import Recipe
from seamcurate.run.times import StepTime
from seamcurate.score import golden_check
from seamcurate.score.seam import Seam
from seamcurate.select import split as splits
from seamcurate.step import ArrowStream, Averages, Step
from seamcurate.storage import objects, shard
from seamcurate.storage.objects import Place
from seamcurate.store.folder import filename, record_file, shard_files, shard_fingerprints, step_file, step_record
from seamcurate.store.store import StepOutput, Store
from seamcurate.text import brief, counted

Executor: TypeAlias = Callable[[StepOutput, Store, Path, Sequence[int]], Iterator[int]]
"""A function that computes shards of an output, given its prepared folder, writes each to the store, and yields the
numbers of rows done as it goes: `in_process`, or the workers of a cluster."""

_LOOKED_AT = 128
"""Rows whose mean length estimates the price of a step."""


class Report(NamedTuple):
    """The result of a run."""

    rows: int
    """Rows in the store."""
    rejected: int
    """Rows of the source that were set aside, each with its reason in the view `rejected`."""
    read: int
    """Rows that this run read from the source; earlier runs read the others."""
    computed: int
    """Shards that this run computed; earlier runs computed the others."""
    lines: list[str]
    """Lines for a person: coverage, misjudgement, splits, warnings."""
    times: Sequence[StepTime] = ()
    """What each step took that this run computed, in its order."""

    def __repr__(self) -> str:
        return "\n".join([self._counts(), *(f"  {line}" for line in self.lines)])

    def _repr_html_(self) -> str:
        return markup.block(self._counts(), markup.lines(self.lines))

    def _counts(self) -> str:
        parts = [f"{self.read:,} read"] if self.read else []
        parts += [f"{counted(self.computed, 'shard')} computed"] if self.computed else []
        return f"{counted(self.rows, 'row')}, {', '.join(parts) or 'everything was there'}"


def run_local(
    recipe: Recipe,
    path: str | Place,
    limit: int | None = None,
    replace: bool = False,
    max_usd: float | None = None,
    append: bool = False,
) -> Report:
    """Run a recipe in this process; shards that an earlier run finished are not computed again.

    Args:
        recipe: The rows, steps and splits to make.
        path: The store, a folder or `s3://bucket/prefix`; it is made if it does not exist.
        limit: Stop at the shard that holds this many rows; a later run goes on from there.
        replace: Replace columns that another configuration made, instead of refusing. Bought answers stay.
        max_usd: The most US dollars that this run may spend on endpoints. It stops before; a later run goes on from there.
        append: Read files that were added to the source after those that were read. Columns of the earlier rows stay,
            except those of steps that read all rows or a corpus that grew: these are computed anew, with all that follow.

    Returns:
        A report: `rows` in the store, `rejected` rows, rows `read` and shards `computed` by this run, and `lines` for a
        person.

    Raises:
        SeamcurateError: A source, model, step or filter cannot be used, or the store belongs to another recipe; see
            `seamcurate.errors`. What was finished before stays.

    Example:
        >>> import tempfile
        >>> import pyarrow as pa, pyarrow.parquet as pq
        >>> from seamcurate import FakeModel, Recipe, Reward, Source, run_local
        >>> folder = tempfile.mkdtemp()
        >>> rows = pa.table({"prompt": ["2 + 2?", "3 + 3?"], "response": ["4", "6"]})
        >>> pq.write_table(rows, f"{folder}/rows.parquet")
        >>> source = Source(parquet=f"{folder}/rows.parquet", response="response")
        >>> recipe = Recipe(rows=source, steps=[Reward(reward=FakeModel())])
        >>> report = run_local(recipe, f"{folder}/store")
        >>> report.rows, report.rejected, report.read, report.computed
        (2, 0, 2, 1)
        >>> run_local(recipe, f"{folder}/store").computed  # all is there already
        0
    """
    return run(recipe, path, limit, replace, max_usd, in_process, append)


def run(
    recipe: Recipe,
    path: str | Place,
    limit: int | None,
    replace: bool,
    max_usd: float | None,
    executor: Executor,
    append: bool = False,
) -> Report:
    """Run a recipe with an executor that computes its shards; see `run_local` for the other arguments."""
    if append and replace:
        raise StoreError("--append keeps the rows before and --replace reads them anew; give one of them")
    steps, store = recipe.ready(), Store(path)
    buys = any(map(_buys, steps))
    with store.hold(), calls.kept(store.path / "calls", max_usd) if buys else nullcontext() as bought:
        integrity.repair_record(store)
        corpus = _corpus(recipe, store, replace, append)
        corpus_steps = agreement.corpus_steps(steps) if corpus is not None else []
        planned_s = times.foretold(
            store.path,
            {step.name: step for step in steps} | {times.CORPUS + step.name: step for step in corpus_steps},
        )
        taken: list[StepTime] = []
        read = ingest(recipe.rows, store, limit, replace, "reading rows", append)
        # After the rows are whole: a damaged column is removed here, and computed anew below.
        integrity.repair(store, [step.name for step in steps], recipe.splits)
        if corpus is None:
            _, outputs = agreement.plan_steps(steps, store, None)
            store.claim(outputs, replace, append)
            splits.check(store, recipe.splits)
            _check_models([(output, store) for output in outputs], executor, bought)
            computed = 0
        else:
            with corpus.hold():
                integrity.repair(corpus, [step.name for step in corpus_steps])
                corpus_outputs, outputs = agreement.plan_steps(steps, store, corpus)
                corpus.claim(corpus_outputs, replace, append)
                store.claim(outputs, replace, append)
                splits.check(store, recipe.splits)
                _check_models([(output, corpus) for output in corpus_outputs], executor, bought)
                _check_models([(output, store) for output in outputs], executor, bought)
                computed = sum(
                    compute(output, corpus, corpus.shards, times.CORPUS, executor, planned_s, taken)
                    for output in corpus_outputs
                )
        shards = store.shards if limit is None else store.shards[: _shard_count(limit, recipe.rows.shard_rows)]
        spent: list[str] = []
        for output in outputs:
            planned = _planned(output, store, shards)
            spent_before = bought.spent if bought else Spent()
            computed += compute(output, store, shards, "", executor, planned_s, taken)
            if bought and planned is not None and (difference := bought.spent.minus(spent_before)).calls:
                spent.append(f"{output.step.name}: {difference}; planned were {planned}")
        lines = [line for output in outputs for line in _findings(store, output.step)] + spent
        # A filter by rate over a part of the rows would drop other rows than over all of them.
        if len(shards) == len(store.shards):
            lines += [line for split in splits.make_all(store, recipe.splits) for line in split.lines]
        elif recipe.splits:
            lines.append("splits are made once every shard is there: run again without --limit")
        rejected = _rejected(store)
        if rejected:
            lines.insert(0, f"{rejected:,} source rows were set aside: SELECT * FROM rejected")
        return Report(len(store), rejected, read, computed, lines, taken)


def ingest(source: Source, store: Store, limit: int | None, replace: bool, label: str, append: bool = False) -> int:
    """Read a source into row shards from where an earlier run stopped; return how many rows were read.

    Files that are added after those that were read leave the earlier rows unchanged: of the old shards, only the last one
    is read again, if it was not full.

    Raises:
        StaleError: The store holds the rows of another source, or the source changed since.
        DamagedError: A shard is damaged, and the source no longer gives the same bytes.
    """
    identity = source.identity()
    record = store.about
    fingerprint = agreement.first_fingerprint(identity, shard_fingerprints(store.path / "rows"))
    same_source = (
        record.get("source") == identity
        if "rows" in record
        else not shard_fingerprints(store.path / "rows") - {fingerprint}
    )
    if not same_source:
        grown = agreement.grew(record.get("source"), identity)
        if append and grown:
            _grow(source, store, identity)
        # A store without rows holds no work that could be lost.
        elif replace or not _has_rows(store):
            for folder in ("rows", "rejected"):
                objects.remove_tree(store.path / folder)
            store.update(rows=None)
        else:
            raise StaleError(_other_source(store, record.get("source"), identity, append, grown))
    if store.about.get("rows") is None:
        store.update(rows=fingerprint, source=identity, shard_rows=source.shard_rows, complete=False, seals={})
        if (origin := store_origin(source)) or "origin" in record:
            store.update(origin=origin)
    _restore(source, store)
    stored = store.shards
    if store.about.get("complete"):
        if stored != list(range(len(stored))) or len(stored) != store.about.get("shards"):
            raise StoreError(f"{store.path}/rows lacks a shard; {_LOST.format(store.path)}")
        _record_checksums(store)
        return 0
    stop = None if limit is None else _shard_count(limit, source.shard_rows)
    if limit is not None and limit % source.shard_rows:
        note(
            f"--limit {limit:,} takes up to {_shard_count(limit, source.shard_rows) * source.shard_rows:,} rows: they are computed "
            f"by whole shards of {source.shard_rows:,}; for smaller ones, give `rows` a `shard_rows`"
        )
    first_missing = next((i for i, number in enumerate(stored) if number != i), len(stored))
    if first_missing and not _full(store, first_missing - 1):
        # The last shard was not full when the source ended; the source may have more rows by now.
        first_missing -= 1
    if stop is not None and first_missing >= stop:
        _record_checksums(store)
        return 0
    read: int = 0
    nulled: Counter[str] = Counter()
    with bar(label, None) as advance:
        for chunk in _chunks(source, store, first_missing):
            nulled.update(chunk.nulled)
            for line in chunk.notes:
                note(line)
            if not _holds(store, chunk):
                _drop_columns(store, chunk.number)
                store.add_rows(chunk.number, chunk.rows, chunk.rejected)
                read += chunk.rows.num_rows
            advance(chunk.rows.num_rows + chunk.rejected.num_rows)
            if stop is not None and chunk.number + 1 >= stop:
                _record_checksums(store)
                _tell_nulled(nulled)
                return read
    _tell_nulled(nulled)
    if len(store) == 0:
        raise SourceError(
            f"every source row was set aside; see {store.path}/rejected, the first reason: {_first_reason(store)}"
        )
    _record_checksums(store, complete=True, shards=len(store.shards))
    return read


def store_origin(source: Source) -> JsonValue:
    """Return the Hub data set and the commit that the rows of another store come from, through any number of stores; else None."""
    about = Store(source.store).about if source.store is not None else {}
    recorded = about.get("source")
    if isinstance(recorded, dict) and "hub" in recorded:
        return {"hub": recorded["hub"], "commit": recorded["commit"]}
    return about.get("origin")


def _tell_nulled(nulled: Mapping[str, int]) -> None:
    for column, count in nulled.items():
        note(f"column {column}: {counted(count, 'value')} of the source did not fit its type, and became NULL")


def _other_source(store: Store, recorded: JsonValue, current: JsonValue, append: bool, grown: bool) -> str:
    changed = agreement.source_change(recorded, current)
    hint = "run with --replace to read it anew, or name another store"
    if grown:
        hint = f"run with --append to read what is new alone, {hint.removeprefix('run ')}"
    elif append:
        hint = f"--append takes new files that come after those that were read, which must be as they were; {hint}"
    return f"{store.path} holds the rows of another source, or its source changed since: {changed}; {hint}"


def _has_rows(store: Store) -> bool:
    try:
        return len(store) > 0
    except DamagedError:
        return True


def _full(store: Store, number: int) -> bool:
    """Tell whether a shard is full: its rows and rejected rows together are `shard_rows`."""
    try:
        rejected = shard.metadata(store.path / "rejected" / filename(number)).num_rows
        return bool(store.count(number) + rejected >= int(str(store.about["shard_rows"])))
    except DamagedError:
        return False


def _grow(source: Source, store: Store, identity: JsonValue) -> None:
    """Record a source with added files as the source of the store's rows.

    Raises:
        StaleError: A column has another type in the new files.
    """
    # The last shard, where it is not full, gets more rows and so is another one.
    full_shards = next((i for i, n in enumerate(store.shards) if n != i or not _full(store, n)), len(store.shards))
    for chunk in _chunks(source, store, full_shards) if full_shards else ():
        old_schema, new_schema = store.stored_schema, chunk.rows.schema
        for field in old_schema:
            if field.name in new_schema.names and new_schema.field(field.name).type != field.type:
                raise StaleError(
                    f"{store.path}: column {field.name!r} is {new_schema.field(field.name).type} in the new files, and "
                    f"{field.type} in those before; convert it, or run with --replace to read all of them anew"
                )
        break
    note(
        f"{agreement.source_change(store.about.get('source'), identity)}: what is there of {counted(full_shards, 'full shard')} stays"
    )
    seals: dict[str, JsonValue] = {kind: [*seals[:full_shards]] for kind, seals in store.row_checksums.items()}
    store.update(source=identity, complete=False, seals=seals)


def _holds(store: Store, chunk: Chunk) -> bool:
    """Tell whether the store has exactly this chunk of the source."""
    for kind, table in (("rejected", chunk.rejected), ("rows", chunk.rows)):
        file = store.path / kind / filename(chunk.number)
        if not file.exists():
            return False
        content = shard.encode(file, table.schema, [table], store.row_fingerprints[kind], chunk.number)
        if shard.checksum(content, file) != shard.footer(file).checksum:
            return False
    return True


def _drop_columns(store: Store, number: int) -> None:
    """Remove the columns and facts that were computed from a shard which now has more rows."""
    for file in objects.find(store.path / "columns", f"*/{filename(number)}"):
        lost = not record_file(file.parent, "step.json").exists()
        if lost or step_record(file.parent):
            step_file(file.parent, "facts.json").unlink(missing_ok=True)
            file.unlink(missing_ok=True)


_LOST = "put a copy of it back, or delete {}/store.json to read the source again"


def _chunks(source: Source, store: Store, first: int) -> Iterator[Chunk]:
    """Read a source from a shard on, given the shards before it."""
    schema = shard.metadata(store.path / "rows" / filename(first - 1)).schema.to_arrow_schema() if first else None
    return source.chunks(first, schema, _ids(store, range(first)) if source.id else ())


def _record_checksums(store: Store, **values: JsonValue) -> None:
    """Record the checksums of the rows' shards in store.json, before columns are computed from them."""
    if isinstance(store.path, Path):
        shards = store.shards
        # Not on object storage, where each footer would cost a request.
        values["seals"] = {
            kind: [shard.footer(store.path / kind / filename(number)).checksum for number in shards]
            for kind in ("rows", "rejected")
        }
    store.update(**values)


def _restore(source: Source, store: Store) -> None:
    """Restore damaged or lost shards of rows from the source, if it still gives the same bytes.

    Raises:
        DamagedError: The source gives other bytes, or no such rows.
    """
    damaged, seals = integrity.damaged_rows(store), store.row_checksums
    # Shards without a recorded checksum were read last: a run ended before it recorded them.
    recorded = len(seals.get("rows", []))
    lost = {int(file.stem): wrong for file, wrong in damaged.items() if int(file.stem) < recorded}
    for damaged_file, wrong in damaged.items():
        if int(damaged_file.stem) >= recorded:
            if store.about.get("complete"):
                raise DamagedError(f"{wrong}; {_LOST.format(store.path)}")
            # No column was computed from it yet: it can be read anew.
            for kind in ("rows", "rejected"):
                (store.path / kind / damaged_file.name).unlink(missing_ok=True)
            note(f"{wrong}: it is read anew")
    for chunk in _chunks(source, store, min(lost)) if lost else ():
        if chunk.number in lost:
            for kind, table in (("rejected", chunk.rejected), ("rows", chunk.rows)):
                file = store.path / kind / filename(chunk.number)
                content = shard.encode(file, table.schema, [table], store.row_fingerprints[kind], chunk.number)
                if shard.checksum(content, file) != seals[kind][chunk.number]:
                    wrong = lost[chunk.number]
                    raise DamagedError(f"{wrong}, and its source gives other bytes now; {_LOST.format(store.path)}")
                if file in damaged:
                    file.parent.mkdir(exist_ok=True)
                    shard.replace(file, content)
                    note(f"{damaged[file]}: it was restored from its source")
            del lost[chunk.number]
        if not lost:
            return
    for wrong in lost.values():
        raise DamagedError(f"{wrong}, and its source has no such rows now; {_LOST.format(store.path)}")


def compute(
    output: StepOutput,
    store: Store,
    shards: Sequence[int],
    label_prefix: str,
    executor: Executor,
    planned: Mapping[str, times.Duration] = MappingProxyType({}),
    taken: list[StepTime] | None = None,
) -> int:
    """Compute an output's missing shards and, once it has all, its facts; return how many shards were computed.

    `taken` gets what that took, beside what was planned.
    """
    start = time.monotonic()
    requested = set(shards)
    missing = [number for number in store.missing(output) if number in requested]
    step, facts = output.step, step_file(output.path, "facts.json")
    if missing or not objects.is_folder(step_file(output.path, "shared")):
        # The facts sum up the earlier shards: if the run is killed midway, they must not stand beside new ones.
        facts.unlink(missing_ok=True)
        with _making(output):
            shared = _prepared(output, store)
        total = sum(map(store.count, missing))
        with bar(f"{label_prefix}{step.name}", total) as advance:
            # A step that asks an endpoint stays in this process, which keeps the bought answers and the limit in dollars.
            for rows in (executor if missing and not _buys(step) else in_process)(output, store, shared, missing):
                advance(rows)
    # Arrow keeps freed memory for its next table; the next step may need it elsewhere.
    shard.give_back()
    if not facts.exists() and not store.missing(output):
        shared = objects.local_folder(step_file(output.path, "shared"), output.fingerprint)
        store.add_facts(output, step.facts(_own_columns(store, output), shared))
    if missing and taken is not None:
        name, rows = f"{label_prefix}{step.name}", sum(map(store.count, missing))
        foretold = planned[name].of(rows) if name in planned else None
        taken.append(StepTime(name, rows, time.monotonic() - start, foretold))
    return len(missing)


def _prepared(output: StepOutput, store: Store) -> Path:
    """Return the folder that a step prepares once for all shards; prepare it if it does not exist."""
    stored = step_file(output.path, "shared")
    if objects.is_folder(stored):
        return objects.local_folder(stored, output.fingerprint)
    temporary = (output.path if isinstance(output.path, Path) else store.scratch / output.step.name) / ".shared.tmp"
    # What a killed run left here, `Store.hold` removed: a folder that exists would be another run's.
    temporary.mkdir(parents=True)
    output.step.prepare(store, temporary)
    shard.write_checksums(temporary)
    return objects.keep_folder(temporary, stored, output.fingerprint)


@contextmanager
def _making(output: StepOutput) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        # Most often the disk is full.
        raise StoreError(
            f"{step_file(output.path, 'shared')} cannot be made: {error.strerror or error}; fix that and run the same again"
        ) from error


def in_process(output: StepOutput, store: Store, shared: Path, shards: Sequence[int]) -> Iterator[int]:
    """Compute shards in this process, one after another; see `Executor`."""
    compute_shard = worker(output, store, shared)
    for number in shards:
        yield from compute_shard(number)


def worker(output: StepOutput, store: Store, shared: Path) -> Callable[[int], Iterator[int]]:
    """Load an output's step; return a function that computes one shard, writes it and yields the numbers of rows done."""
    step = output.step
    with _making(output):
        transform = step.load(shared)
        # A step may measure its model's noise when it is first loaded, and leave the result in the folder.
        shard.write_checksums(shared)
    # All later workers must use the same measurement.
    objects.keep_folder(shared, step_file(output.path, "shared"), output.fingerprint)
    # After `load`: a model that cannot be loaded is told before any shard is read.
    inputs = store.records()[step.name]["inputs"]
    assert isinstance(inputs, dict)
    read = store.reader(list(inputs))

    def compute_shard(number: int) -> Iterator[int]:
        rows = read(number)
        _check_lists(step, rows)
        added = []
        with _samples_kept(step, store, number):
            for start in range(0, rows.num_rows, step.rows_per_call):
                batch = rows.slice(start, step.rows_per_call)
                added.append(_columns(step, number, batch, transform(batch)))
                yield batch.num_rows
        store.add(output, number, rows, pa.concat_tables(added) if added else step.adds.empty_table())

    return compute_shard


@contextmanager
def _samples_kept(step: Step, store: Store, number: int) -> Iterator[None]:
    """Keep what a policy answers, the moment it does, in a file of the shard's own: no two workers write to it."""
    if not isinstance(step, Rollouts):
        yield
        return
    # What a server answers may have been paid for; what is drawn here is drawn again after a cut of power, and is the same.
    paid = any(isinstance(model, Served) for model in models_of(step))
    with calls.kept(store.path / "calls" / "samples" / f"{number:05d}", paid=paid):
        yield


def _columns(step: Step, number: int, rows: pa.Table, returned: object) -> pa.Table:
    """Check the table or frame that a step's transform returned for rows, and cast it to the columns that the step declares.

    Raises:
        StepError: It is no table, or has other columns, another number of rows, or values of other types.
    """
    location = f"step {step.name}, shard {number}"
    if not isinstance(returned, ArrowStream):
        raise StepError(
            f"{location}: returned a {type(returned).__name__}, not a pyarrow Table or a Polars or pandas frame"
        )
    added = pa.table(returned)
    if added.num_rows != rows.num_rows or added.column_names != step.adds.names:
        raise StepError(
            f"{location}: returned {added.num_rows} rows of {added.column_names} for {rows.num_rows} rows of "
            f"{step.adds.names}; return these columns, a value for each row"
        )
    for name, kind, declared in zip(step.adds.names, added.schema.types, step.adds.types, strict=True):
        # Arrow would read numbers out of texts, and write texts of numbers.
        if _is_text(kind) != _is_text(declared) and not pa.types.is_null(kind):
            raise StepError(f"{location}: returned {name!r} as {kind!s:.80}, and declares {declared!s:.80}")
    try:
        return added.cast(step.adds)
    except pa.ArrowException as error:
        raise StepError(
            f"{location}: returned values of other types than it declares: {brief(str(error), 200)}"
        ) from error


def _is_text(kind: pa.DataType) -> bool:
    types = pa.types
    return bool(types.is_string(kind) or types.is_large_string(kind) or types.is_string_view(kind))


def _check_lists(step: Step, rows: pa.Table) -> None:
    """Refuse rows whose lists have different lengths: each list has one value for each candidate of the row."""
    read = [*step.inputs, *(name for name in step.optional_inputs if name in rows.column_names)]
    lists = [name for name in read if name.startswith(("worse_", "rewards_", "logprobs_", "tokens_"))]
    counts = [pc.fill_null(pc.list_value_length(rows[name]), 0).to_numpy() for name in lists]
    for name, count in zip(lists[1:], counts[1:], strict=True):
        for i in np.flatnonzero(count != counts[0]).tolist():
            raise StepError(
                f"step {step.name}: row {rows['row_id'][i]} has {counts[0][i]} values in {lists[0]!r} and {count[i]} in "
                f"{name!r}; give both one for each candidate"
            )


def _check_models(outputs: Sequence[tuple[StepOutput, Store]], executor: Executor, bought: calls.Calls | None) -> None:
    """Refuse a device or server that is not there, and a function that cannot be imported, for outputs with missing shards.

    A language model's server is not looked for where answers are kept: these may be all that the run needs.
    """
    # With kept answers a run may need no call at all; it must not fail for a server that it never asks.
    asks = bought is not None and bought.is_empty()
    incomplete = [output for output, store in outputs if store.missing(output)]
    for output in incomplete:
        for extra in output.step.extras:
            extras.require(extra, f"step {output.step.name}", StepError)
    models = [model for output in incomplete for model in models_of(output.step)]
    checked: list[RewardFunction] = []
    for model in models:
        if isinstance(model, ServerSettings):
            extras.require("servers", "a model behind a server", ModelError)
        if isinstance(model, LocalModel) and executor is in_process:
            model.check_here()
        if isinstance(model, Served) and executor is in_process:
            model.local()
            model.check_server()
        # Language models are asked by this process, whoever computes the other steps.
        if isinstance(model, OpenAIServer) and asks:
            model.check_server()
        if isinstance(model, RewardFunction) and model not in checked:
            model.check()
            checked.append(model)


def _buys(step: Step) -> bool:
    return any(isinstance(model, OpenAIServer) for model in models_of(step))


def _planned(output: StepOutput, store: Store, shards: Sequence[int]) -> Spent | None:
    """Estimate the calls to an endpoint for an output's missing shards; None for a step that asks none."""
    requested = sorted(shards)
    missing = sorted(set(store.missing(output)).intersection(requested))
    if not missing or not _buys(output.step):
        return None
    worse = [name for name in output.step.inputs if name.startswith("worse_")][:1]
    rows = store.table(missing[0], ("prompt", "response", *worse)).slice(0, _LOOKED_AT)
    response = _mean_length(rows["response"].to_pylist())
    sets = [[candidate["response"] for candidate in row or []] for name in worse for row in rows[name].to_pylist()]
    averages = Averages(
        _mean_length([prompt_text(p) for p in rows["prompt"].to_pylist()]),
        response,
        response,
        candidates=sum(map(len, sets)) / max(1, len(sets)),
        candidate=_mean_length([text for texts in sets for text in texts]),
    )
    count = sum(map(store.count, missing))
    estimates = [(work, count) for work in output.step.works(averages)]
    if missing == requested:
        # What is done once is done before the first shard.
        estimates += [(work, 1) for work in output.step.first_work(averages, len(store))]
    spent = Spent()
    for work, often in estimates:
        if isinstance(work.model, OpenAIServer):
            spent = spent.plus(expected(work, often))
    return spent


def _mean_length(texts: Sequence[str | None]) -> float:
    return sum(len(text or "") for text in texts) / max(1, len(texts))


def _findings(store: Store, step: Step) -> Iterator[str]:
    """Yield what a person should read of a step's columns; of SEAM also whether golden responses are doubtful."""
    yield from store.findings(step.name)
    # A step that comes later may have found it.
    if isinstance(step, Seam) and (doubt := golden_check.warning(golden_check.found(store.all_facts()))):
        yield f"warning: {step.name}: {doubt}"


def _own_columns(store: Store, output: StepOutput) -> Iterator[pa.Table]:
    for number in store.shards:
        yield shard.read(output.path / filename(number), output.fingerprint, number)


def _corpus(recipe: Recipe, store: Store, replace: bool, append: bool) -> Store | None:
    if recipe.corpus is None:
        return store.corpus_store
    if recipe.corpus.store is not None:
        settings = recipe.corpus.model_fields_set - {"store", "split", "shard_rows"}
        unused = [name for name in sorted(settings) if getattr(recipe.corpus, name) not in (name, None, {})]
        if unused:
            raise SourceError(
                f"corpus: {unused[0]} has no effect on a store, which is taken as it is; leave it out, or name the "
                "store's files by `parquet`"
            )
        shared = Store(recipe.corpus.store).open()
        if isinstance(shared.path, Path) and not isinstance(store.path, Path):
            raise StoreError(
                f"{store.path} cannot name a corpus on this machine, {shared.path}: give it one at s3:// too"
            )
        # Absolute: it lies elsewhere. The store's own corpus is named relative to it, so that both may be moved.
        store.update(corpus=str(shared.path.resolve()))
        return shared
    store.update(corpus="corpus")
    corpus = Store(store.path / "corpus")
    with corpus.hold():
        integrity.repair_record(corpus)
        ingest(recipe.corpus, corpus, None, replace, "reading corpus", append)
    return corpus


def _shard_count(limit: int, size: int) -> int:
    return max(1, math.ceil(limit / size))


def _ids(store: Store, shards: Sequence[int]) -> set[str]:
    """Return the ids of stored rows; a shard of which every row was rejected may have no such column."""
    folder, maker = store.path / "rows", store.rows_fingerprint
    tables = (shard.read(folder / filename(number), maker, number, ["id"]) for number in shards)
    return {str(value) for table in tables for column in table.columns for value in column.to_pylist()}


def _rejected(store: Store) -> int:
    return sum(shard.metadata(file).num_rows for file in shard_files(store.path / "rejected"))


def _first_reason(store: Store) -> str:
    for file in shard_files(store.path / "rejected"):
        reasons = shard.read(file, store.row_fingerprints["rejected"], int(file.stem), ["reason"])["reason"].to_pylist()
        if reasons:
            return str(reasons[0])
    return "none"
