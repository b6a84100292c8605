"""A store: a folder of row shards, with the columns that steps add in folders of their own.

    my-store/
      store.json                         where the rows come from, their fingerprint, where the corpus is
      rows/00000.parquet                 row_id, prompt, response, reference, every other source column
      rejected/00000.parquet             rejected rows, each with its reason
      columns/<name>/_step.json          configuration, fingerprints of inputs, columns, own fingerprint
      columns/<name>/00000.parquet       row_id and the added columns
      columns/<name>/_shared/            what the step prepared once for all shards, with a list of hashes
      columns/<name>/_facts.json         summary numbers of the finished columns
      splits/<name>/_split.json          the filter, its parameters, fingerprints of what it reads, own fingerprint
      splits/<name>/ledger.parquet       one row per source row: kept or dropped, and what decided it
      calls/calls.sqlite                 every reply of an endpoint, kept before anything is made of it
      calls/samples/                     every sample of the policy, kept when it is drawn
      corpus/                            the retrieval corpus, a store like any other
      plan.json                          what the last plan foretold of each step, for the report of a run; may be deleted
      .lock                              held by the run that writes

One rule: a file that exists is complete. A fingerprint is the hash of a configuration, of its models' weights and
of the fingerprints of its inputs; columns of different fingerprints are never mixed.

A shard is a file with a name that `filename` returns; a store ignores all other files. The files beside shards have names
that begin with `_`, which readers of Parquet folders ignore. Stores up to format 2 have these names without `_`, and keep
them.
"""

from __future__ import annotations

import base64
import datetime
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from functools import cached_property, lru_cache
from pathlib import Path
from typing import NamedTuple, Self

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from pydantic import JsonValue

from seamcurate.errors import BusyError, DamagedError, StaleError, StepError, StoreError
from seamcurate.progress import note
from seamcurate.step import Step, digest
from seamcurate.storage import atomic, lock, objects, shard
from seamcurate.storage.objects import Place
from seamcurate.store.folder import (
    filename,
    load_json,
    numbers,
    own_record,
    record_file,
    record_schema,
    records_in,
    save_record,
    shard_fingerprints,
    step_file,
    step_record,
)
from seamcurate.store.lineage import began, dates, difference, first_day, grown_fingerprint, only_grew, steps_of
from seamcurate.text import suggestion

FORMAT = 3
"""In format 1, shards of rejected rows have the fingerprint of the rows. Up to format 2, files beside shards have no `_`."""
_FINISHED = "finished_shards"
"""The key of facts that says how many shards the columns had when they were finished."""


class StepOutput(NamedTuple):
    """The columns that one step adds to a store: their folder and their fingerprint."""

    step: Step
    path: Place
    fingerprint: str
    record: dict[str, JsonValue]
    """The content of _step.json."""


class Column(NamedTuple):
    """One column of a store, as `seamcurate columns` lists it."""

    name: str
    kind: pa.DataType
    made_by: str
    done: int
    shards: int
    meaning: str
    stale: str | None
    """The reason why the column is out of date; None where it is up to date."""


class Store:
    """Open a store, or name the folder in which one is to be made.

    A store is what `run_local` writes: the rows of a source, and the columns that steps add to them. Nothing is read until
    a method asks for it, and nothing is written by reading.

    Args:
        path: A folder, or `s3://bucket/prefix` (needs `seamcurate[s3]`; endpoint and keys come from the environment).

    Raises:
        StoreError: The path is another kind of address. Methods that read raise it where there is no store.
        DamagedError: A method reads a file that was altered after it was written.

    Example:
        >>> import tempfile
        >>> import pyarrow as pa, pyarrow.parquet as pq
        >>> from seamcurate import FakeModel, Models, Recipe, Reward, Source, Store, run_local
        >>> folder = tempfile.mkdtemp()
        >>> rows = pa.table({"prompt": ["2 + 2?", "3 + 3?"], "response": ["4", "6"]})
        >>> pq.write_table(rows, f"{folder}/rows.parquet")
        >>> source = Source(parquet=f"{folder}/rows.parquet", response="response")
        >>> report = run_local(Recipe(rows=source, steps=[Reward(reward=FakeModel())]), f"{folder}/store")
        >>> store = Store(f"{folder}/store")
        >>> len(store)
        2
        >>> [column.name for column in store.columns()]
        ['row_id', 'prompt', 'response', 'reference', 'reward']
        >>> store.table(0, ["prompt", "reward"]).column_names  # one shard; the row's id comes first
        ['row_id', 'prompt', 'reward']
    """

    def __init__(self, path: str | Place) -> None:
        self.path = objects.place(path)
        self._fetch = lru_cache(maxsize=64)(lambda number: self._corpus_responses(number))

    # ── rows and records ────────────────────────────────────────────────────────────────────────────────────

    def open(self) -> Self:
        """Return the store itself, once it is known to be one.

        Raises:
            StoreError: There is none, it was written by a newer seamcurate, or its store.json is lost.
        """
        if not (self.path / "store.json").is_file():
            if self.shards:
                raise StoreError(
                    f"{self.path}/store.json is missing; run the store's recipe again to have it made anew"
                )
            raise StoreError(f"{self.path} is no store; {self._instead}")
        if (stored_format := self.about.get("format")) not in range(1, FORMAT + 1):
            raise StoreError(f"{self.path} has format {stored_format}; this seamcurate reads 1 to {FORMAT}")
        return self

    @property
    def _instead(self) -> str:
        """Return a hint for a path that is no store."""
        if self.path.is_file():
            return "it is a file: name the folder that `seamcurate run` made, and the recipe, where there is one, before it"
        if isinstance(self.path, Path):
            for parent in list(self.path.absolute().parents)[:2]:
                if (parent / "store.json").is_file():
                    return f"it is a folder of the store {parent}: name that"
        return f"make one with `seamcurate run RECIPE {self.path}`"

    @property
    def about(self) -> dict[str, JsonValue]:
        """Return store.json, or nothing when there is no store yet."""
        return load_json(self.path / "store.json")

    def update(self, **values: JsonValue) -> None:
        """Set keys of store.json."""
        self.path.mkdir(parents=True, exist_ok=True)
        recorded = self.about
        updated = {"format": FORMAT, **recorded, **values}
        if updated != recorded:
            save_record(self.path / "store.json", updated)

    @property
    def corpus_store(self) -> Self | None:
        """Return the retrieval corpus, if the store has one."""
        address = self.about.get("corpus")
        return type(self)(objects.beside(self.path, address)) if isinstance(address, str) else None

    @property
    def shards(self) -> list[int]:
        """List the numbers of the row shards that are there."""
        return numbers(self.path / "rows")

    @property
    def stored_schema(self) -> pa.Schema:
        """Return the schema of the last row shard, which has every source column so far; without shards, `row_id` and `prompt`."""
        about = self.about
        count = about.get("shards") if about.get("complete") else None
        if isinstance(count, int) and count:
            # A complete store knows its last shard; to list them takes long where they are many.
            with suppress(DamagedError):
                return shard.metadata(self.path / "rows" / filename(count - 1)).schema.to_arrow_schema()
        last_shard = self.shards[-1:]
        if not last_shard:
            return pa.schema([("row_id", pa.int64()), ("prompt", pa.string())])
        return shard.metadata(self.path / "rows" / filename(last_shard[0])).schema.to_arrow_schema()

    @property
    def schema(self) -> pa.Schema:
        """Return the rows' schema. It has `response` and `reference` also where the source has none: they are NULL then."""
        schema = self.stored_schema
        for name in ("response", "reference"):
            if name not in schema.names:
                schema = schema.append(pa.field(name, pa.string()))
        return schema

    @property
    def rows_fingerprint(self) -> str:
        """Return the fingerprint of the rows' source."""
        return str(self.about.get("rows", ""))

    @property
    def grown(self) -> str | None:
        """Return the source's present fingerprint if files were added after its first rows were read; else None.

        The fingerprint of the rows stays that of the first files, so that columns computed from them stay valid.
        """
        record = self.about
        source_fingerprint = digest(record["source"]) if record.get("source") is not None else None
        return None if source_fingerprint == record.get("rows") else source_fingerprint

    @property
    def row_fingerprints(self) -> dict[str, str]:
        """Return the fingerprints of the shards of `rows` and of `rejected`: they differ, as their shards have the same numbers."""
        record = self.about
        rows = str(record.get("rows", ""))
        return {"rows": rows, "rejected": rows if record.get("format") == 1 else f"{rows} rejected"}

    @property
    def row_checksums(self) -> dict[str, list[str]]:
        """Return the checksums of the shards of `rows` and `rejected` as they were read from the source."""
        recorded = self.about.get("seals") or {}
        assert isinstance(recorded, dict)
        return {
            kind: [str(checksum) for checksum in checksums]
            for kind, checksums in recorded.items()
            if isinstance(checksums, list)
        }

    def __len__(self) -> int:
        return sum(map(self.count, self.shards))

    def count(self, number: int) -> int:
        """Return how many rows a shard has."""
        return int(shard.metadata(self.path / "rows" / filename(number)).num_rows)

    def records(self) -> dict[str, dict[str, JsonValue]]:
        """Return the record of each step's folder by the folder's name; other folders are left out.

        Raises:
            DamagedError: A record was altered after it was written.
        """
        return records_in(self.path / "columns", "step.json")

    def split_records(self) -> dict[str, dict[str, JsonValue]]:
        """Return each split's record by the split's name; see `records`."""
        return records_in(self.path / "splits", "split.json")

    def split_record(self, name: str) -> dict[str, JsonValue]:
        """Return a split's record; empty where there is no such split."""
        return own_record(record_file(self.path / "splits" / name, "split.json"))

    def facts(self, name: str) -> dict[str, JsonValue]:
        """Return the summary numbers of a folder's finished columns; empty while they are not finished.

        Raises:
            DamagedError: They were altered, or belong to other columns.
        """
        path = self.path / "columns" / name
        file = step_file(path, "facts.json")
        facts = load_json(file)
        facts.pop(_FINISHED, None)
        fingerprint = facts.pop("fingerprint", None)
        if fingerprint is not None and fingerprint != step_record(path).get("fingerprint"):
            raise DamagedError(f"{file} belongs to another configuration; {shard.hint(path)}")
        return facts

    def finished(self, name: str) -> int:
        """Return how many shards a folder's columns had when they were finished; 0 while they are not, or where it was not kept."""
        count = load_json(step_file(self.path / "columns" / name, "facts.json")).get(_FINISHED)
        return count if isinstance(count, int) else 0

    def shards_of(self, name: str) -> list[int]:
        """List the numbers of a folder's shards: those that are there, and those that a finished column had, which one may lack."""
        listed, count = numbers(self.path / "columns" / name), self.finished(name)
        return listed if len(listed) >= count else sorted({*listed, *range(count)})

    def findings(self, name: str) -> Iterator[str]:
        """Yield the lines of a folder's summary numbers that a person should read: coverage, misjudgement, warnings."""
        facts = self.facts(name)
        if "summary" in facts:
            yield str(facts["summary"])
        warnings = facts.get("warnings", [])
        assert isinstance(warnings, list)
        for warning in warnings:
            yield f"warning: {warning}"

    def all_facts(self) -> list[dict[str, JsonValue]]:
        """Return the summary numbers of every folder whose columns are finished and not out of date; see `facts`."""
        stale = self.stale()
        return [facts for name in self.records() if name not in stale and (facts := self.facts(name))]

    def add_facts(self, output: StepOutput, facts: Mapping[str, JsonValue]) -> None:
        """Write the summary numbers of an output's finished columns."""
        finished: dict[str, JsonValue] = {_FINISHED: len(self.shards), "fingerprint": output.fingerprint}
        save_record(step_file(output.path, "facts.json"), {**facts, **finished})

    def noise(self, column: str) -> dict[str, float]:
        """Return the measured noise of a column and of those its step adds with it; empty where none was measured."""
        for folder, record in self.records().items():
            if column in record_schema(record).names:
                path = self.path / "columns" / folder
                # The facts are written once the column is finished; until then the step's own file has the noise.
                noise = self.facts(folder).get("noise") or load_json(step_file(path, "shared") / "noise.json")
                assert isinstance(noise, dict)
                return {name: float(str(value)) for name, value in noise.items()}
        return {}

    def prepared(self, column: str, file: str) -> dict[str, JsonValue]:
        """Return a JSON object that a column's step prepared for all its shards; empty where no step added the column."""
        for folder, record in self.records().items():
            if column in record_schema(record).names:
                return load_json(step_file(self.path / "columns" / folder, "shared") / file)
        return {}

    def columns(self) -> list[Column]:
        """List every column: the source's, then each step's."""
        shards = len(self.shards)
        columns = [
            Column(field.name, field.type, "source", shards, shards, _meaning(field), None) for field in self.schema
        ]
        stale = self.stale()
        for folder, record in self.records().items():
            shards_done = len(numbers(self.path / "columns" / folder))
            days = "".join(f"; prompts dated {day}" for day in sorted(dates(record)))
            for field in record_schema(record):
                meaning = _meaning(field) + days
                columns.append(Column(field.name, field.type, folder, shards_done, shards, meaning, stale.get(folder)))
        return columns

    @property
    def day(self) -> datetime.date:
        """Return the date for chat templates that write today's date: that of the store's first columns, or else today."""
        return first_day(self.records().values()) or datetime.date.today()

    def fingerprints(self) -> dict[str, str]:
        """Return the fingerprint of each column."""
        fingerprints = dict.fromkeys(self.schema.names, self.rows_fingerprint)
        for record in self.records().values():
            fingerprints |= {field.name: str(record["fingerprint"]) for field in record_schema(record)}
        return fingerprints

    def stale(self) -> dict[str, str]:
        """Return the folders that are out of date, each with the input that changed since."""
        records, reasons = self.records(), {}
        corpus = self.corpus_store
        row_columns = self.fingerprints()
        extent = corpus.grown if corpus is not None else None
        corpus_columns = (
            {name: grown_fingerprint(recorded, extent) for name, recorded in corpus.fingerprints().items()}
            if corpus is not None
            else {}
        )
        grown = self.grown
        for folder, record in records.items():
            identity = record["identity"]
            if isinstance(identity, dict) and "over_shards" in identity and identity.get("over_source") != grown:
                reasons[folder] = "it reads all rows, and there are more now"
            for recorded, current in ((record["inputs"], row_columns), (record["corpus"], corpus_columns)):
                assert isinstance(recorded, dict)
                for name, fingerprint in recorded.items():
                    if current.get(name) != fingerprint:
                        reasons[folder] = f"its input {name!r} was made anew"
        # A stale input makes its step's columns stale: one pass for each step reaches the end of the longest chain.
        owner = {field.name: folder for folder, record in records.items() for field in record_schema(record)}
        for _ in records:
            for folder, record in records.items():
                inputs = record["inputs"]
                assert isinstance(inputs, dict)
                spoiled = next((name for name in inputs if owner.get(name) in reasons), None)
                if folder not in reasons and spoiled is not None:
                    reasons[folder] = f"its input {spoiled!r} is out of date"
        return reasons

    # ── planning steps ─────────────────────────────────────────────────────────────────────────────────

    def plan(self, steps: Sequence[Step], corpus: Mapping[str, StepOutput] | None = None) -> list[StepOutput]:
        """Return the output of each step, with its fingerprint, before anything is computed.

        If a model's chat template writes today's date, the date is the one that the step's columns were begun with, or
        else that of the store's first such columns: rewards under different dates could not be compared.

        Args:
            steps: The steps in the order in which they run.
            corpus: The outputs over the corpus, by each column that they add.

        Raises:
            StepError: A step reads a column that neither the source nor an earlier step has, or adds one that exists.
        """
        fingerprints: dict[str, str] = {}
        lineage: dict[str, dict[str, JsonValue]] = {}
        stale, records, day = self.stale(), self.records(), self.day
        for folder, record in records.items():
            if folder not in stale:
                fingerprints |= {field.name: str(record["fingerprint"]) for field in record_schema(record)}
                lineage |= {field.name: steps_of(record) for field in record_schema(record)}
        source = dict.fromkeys(self.schema.names, self.rows_fingerprint)
        # SQL ignores case: two names that differ in case alone would be one column in a view.
        source_names = {name.lower(): name for name in source}
        fingerprints |= source
        corpus_columns = self._corpus_columns(corpus or {})
        outputs: list[StepOutput] = []
        for step_before_date in steps:
            self._check_inputs(step_before_date, source)
            earlier_record = records.get(step_before_date.name)
            step = step_before_date.dated(began(step_before_date, earlier_record) or day)
            # What an earlier recipe left in the store is no optional input: a new store would not have it.
            known = {*source, *(name for done in outputs for name in done.step.adds.names)}
            inputs = (*step.inputs, *(name for name in step.optional_inputs if name in known))
            record = self._record(step, inputs, fingerprints, lineage, corpus_columns)
            output = StepOutput(step, self.path / "columns" / step.name, str(record["fingerprint"]), record)
            for field in step.adds:
                other_steps = [done.step.name for done in outputs if field.name in done.step.adds.names]
                if source_column := source_names.get(field.name.lower()):
                    raise StepError(
                        f"step {step.name} adds {field.name!r}, which the source has too; "
                        f"give `rows` a `rename: {{{source_column}: source_{source_column}}}`"
                    )
                if other_steps:
                    raise StepError(f"steps {other_steps[0]} and {step.name} both add {field.name!r}; leave one out")
                fingerprints[field.name] = output.fingerprint
                lineage[field.name] = steps_of(record)
            outputs.append(output)
        return outputs

    def changed(self, outputs: Sequence[StepOutput]) -> list[tuple[StepOutput, str]]:
        """Return the outputs whose folder holds columns of another configuration, each with the difference in words."""
        changed = []
        for output in outputs:
            stored = step_record(output.path)
            if stored and stored["fingerprint"] != output.fingerprint:
                changed.append((output, difference(stored, output.record)))
            # Shards without a record: another configuration's unless their own fingerprint is this one's.
            elif not stored and any(
                fingerprint != output.fingerprint for fingerprint in shard_fingerprints(output.path)
            ):
                changed.append((output, "its _step.json is lost"))
        return changed

    def claim(self, outputs: Sequence[StepOutput], replace: bool = False, append: bool = False) -> None:
        """Make the outputs' folders and write their records; refuse columns of another configuration.

        With `append`, columns that differ only in reading fewer rows, or a smaller corpus, are replaced.

        Raises:
            StaleError: A folder holds other columns; the message names what changed and the two ways out.
        """
        changed = self.changed(outputs)
        # A folder without a finished shard holds no work that could be lost.
        refused = [(output, difference) for output, difference in changed if numbers(output.path)]
        grew = [output for output, _ in refused if only_grew(step_record(output.path), output.record)]
        corpus = self.corpus_store
        if not replace and grew and (append or self.grown or (corpus and corpus.grown)):
            refused = [(output, difference) for output, difference in refused if output not in grew]
            if not refused:
                note(
                    f"{', '.join(output.step.name for output in grew)}: computed anew for all rows, as "
                    f"{'the corpus grew' if corpus and corpus.grown else 'it reads all of them and there are more now'}"
                )
        if refused and not replace:
            output, difference = refused[0]
            more_steps = f" (and {len(refused) - 1} more that follow from it)" if len(refused) > 1 else ""
            options = "--append or --replace" if output in grew else "--replace"
            raise StaleError(
                f"{output.path} was made by another configuration: {difference}{more_steps}; "
                f"run with {options} to compute it anew, or keep it and name another store"
            )
        for output, _ in changed:
            # Whole: a removal that is interrupted must not leave old shards under a new record.
            if isinstance(output.path, Path) and not output.path.is_symlink():
                atomic.remove_folder(output.path)
            else:
                objects.remove_tree(output.path)
        for output in outputs:
            output.path.mkdir(parents=True, exist_ok=True)
            if not step_record(output.path):
                save_record(output.path / "_step.json", output.record)

    def identity(self, step: Step) -> dict[str, JsonValue]:
        """Return what decides a step's values in this store, except its inputs: they have fingerprints of their own."""
        identity = step.identity()
        if step.reads_all_rows:
            # Quantiles or a curve over all rows change with the rows: the values of a smaller store are other values.
            identity["over_shards"] = len(self.shards)
            if (grown := self.grown) is not None:
                identity["over_source"] = grown
        return identity

    def _check_inputs(self, step: Step, source: Mapping[str, str]) -> None:
        """Refuse a source's column that has the name of a step's column but not its type, and one that must be there and is not."""
        if step.without_references and "reference" not in self.stored_schema.names:
            raise StepError(
                f"step {step.name}: the source has no references, and {step.without_references}, or name the column of the "
                "references: `rows: {reference: …}`"
            )
        name = f"worse_{getattr(step, 'variant', '')}"
        kind = self.schema.field(name).type if name in source and name in step.inputs else None
        if kind is not None and not sample_sets({name: kind}):
            raise StepError(
                f"step {step.name} reads the sets of worse answers in {name!r}, and the source's column is {kind!s:.80}, "
                f"not list<struct<response: string>>; give `rows` a `rename: {{{name}: source_{name}}}`, or convert it"
            )
        for name in step.inputs:
            expected = _expected_type(name, self.schema.field(name).type) if name in source else ""
            if expected:
                raise StepError(
                    f"step {step.name} reads {name!r} as {expected}, and the source's column is "
                    f"{self.schema.field(name).type!s:.80}; give `rows` a `rename: {{{name}: source_{name}}}`, or convert it"
                )

    def _renamed(self, name: str) -> str:
        """Say what a column of the source is called in the store, where it is one that has another name there."""
        source = self.about.get("source")
        mapped = source if isinstance(source, dict) else {}
        target = next((key for key in ("prompt", "response", "reference") if mapped.get(key) == name), None)
        if target is None:
            return ""
        return f"; the source's {name!r} is {target!r} here: a function reads it by `columns: {{{name}: {target}}}`"

    def _record(
        self,
        step: Step,
        inputs_read: Sequence[str],
        fingerprints: Mapping[str, str],
        lineage: Mapping[str, dict[str, JsonValue]],
        corpus_columns: Mapping[str, tuple[str, dict[str, JsonValue]]],
    ) -> dict[str, JsonValue]:
        for name in inputs_read:
            if name not in fingerprints:
                raise StepError(
                    f"step {step.name} reads column {name!r}, which neither the source nor an earlier step has; "
                    f"there are: {', '.join(sorted(fingerprints))}{self._renamed(name)}"
                )
        for name in step.corpus_inputs:
            if name not in corpus_columns:
                raise StepError(
                    f"step {step.name} reads column {name!r} of a corpus; give the recipe a `corpus` with it"
                )
        identity = self.identity(step)
        inputs: dict[str, JsonValue] = {name: fingerprints[name] for name in inputs_read}
        corpus: dict[str, JsonValue] = {name: corpus_columns[name][0] for name in step.corpus_inputs}
        ancestry: dict[str, JsonValue] = {}
        for name in inputs_read:
            ancestry |= lineage.get(name, {"rows": self.rows_fingerprint})
        for name in step.corpus_inputs:
            ancestry |= {f"corpus {key}": value for key, value in corpus_columns[name][1].items()}
        schema = base64.b64encode(step.adds.serialize().to_pybytes()).decode()
        return {
            "step": type(step).__name__,
            "name": step.name,
            "config": step.model_dump(mode="json"),
            "identity": identity,
            "inputs": inputs,
            "corpus": corpus,
            "ancestry": ancestry,
            "columns": {field.name: {"type": str(field.type), "meaning": _meaning(field)} for field in step.adds},
            "schema": schema,
            "fingerprint": digest({"identity": identity, "inputs": inputs, "corpus": corpus}),
        }

    def _corpus_columns(self, added: Mapping[str, StepOutput]) -> dict[str, tuple[str, dict[str, JsonValue]]]:
        corpus = self.corpus_store
        if corpus is None:
            return {}
        grown = corpus.grown
        rows = grown_fingerprint(corpus.rows_fingerprint, grown)
        columns: dict[str, tuple[str, dict[str, JsonValue]]] = {
            name: (rows, {"rows": rows}) for name in corpus.schema.names
        }
        stale = corpus.stale()
        for folder, record in corpus.records().items():
            if folder not in stale:
                entry = (grown_fingerprint(str(record["fingerprint"]), grown), {**steps_of(record), "rows": rows})
                columns |= {field.name: entry for field in record_schema(record)}
        return columns | {
            name: (grown_fingerprint(output.fingerprint, grown), {**steps_of(output.record), "rows": rows})
            for name, output in added.items()
        }

    # ── shards ───────────────────────────────────────────────────────────────────────────────────────────

    def add_rows(self, number: int, rows: pa.Table, rejected: pa.Table) -> None:
        """Write one shard of rows and the shard of its rejected rows."""
        fingerprints = self.row_fingerprints
        # The rejected first: a shard of rows says that both are there.
        for kind, table in (("rejected", rejected), ("rows", rows)):
            # Without parents: if the store's folder was deleted meanwhile, this must fail, not begin a new store midway.
            (self.path / kind).mkdir(exist_ok=True)
            shard.write(self.path / kind / filename(number), table, fingerprints[kind], number)

    def input_checksums(self, inputs: Sequence[str], number: int) -> dict[str, str]:
        """Return the checksums of the shards that hold these inputs, by column folder; the source's rows are left out."""
        owner = {f.name: folder for folder, record in self.records().items() for f in record_schema(record)}
        folders = sorted({owner[name] for name in inputs if name in owner})
        return {folder: shard.footer(self.path / "columns" / folder / filename(number)).checksum for folder in folders}

    def missing(self, output: StepOutput) -> list[int]:
        """List the shards that an output lacks, or that were computed from other input shards than the present ones."""
        numbers_done = set(numbers(output.path))
        if isinstance(self.path, Path):
            # On object storage, each footer would cost a request.
            numbers_done = {
                number for number in numbers_done if not self.changed_inputs(output.path / filename(number))
            }
        return [number for number in self.shards if number not in numbers_done]

    def changed_inputs(self, file: Place) -> list[str]:
        """Name the column folders whose present shard is another one than `file` was computed from."""
        recorded = shard.footer(file).input_checksums
        inputs = {folder: self.path / "columns" / folder / file.name for folder in recorded}
        return [
            name for name, path in inputs.items() if path.exists() and shard.footer(path).checksum != recorded[name]
        ]

    def add(self, output: StepOutput, number: int, rows: pa.Table, added: pa.Table) -> None:
        """Write one shard of an output: the rows' ids and what the step returned.

        Raises:
            StepError: The step returned other columns, or another number of rows, than it declared.
        """
        if added.num_rows != rows.num_rows or added.schema.names != output.step.adds.names:
            raise StepError(
                f"step {output.step.name}, shard {number}: returned {added.num_rows} rows of "
                f"{added.schema.names} for {rows.num_rows} rows of {output.step.adds.names}"
            )
        # `cast` refuses values that the declared type cannot hold, such as text in a column of numbers.
        columns = [rows["row_id"].combine_chunks(), *added.cast(output.step.adds).columns]
        schema = pa.schema([pa.field("row_id", pa.int64()), *output.step.adds])
        inputs = [name for name in rows.column_names if name != "row_id"]
        table, checksums = pa.table(columns, schema=schema), self.input_checksums(inputs, number)
        shard.write(output.path / filename(number), table, output.fingerprint, number, checksums)

    def columns_checksum(self) -> str:
        """Return one hash of all columns' shards, which changes when any of them gets other values.

        It is empty on object storage, where each footer would cost a request.
        """
        if not isinstance(self.path, Path):
            return ""
        folders = [self.path / "columns" / name for name in sorted(self.records())]
        files = [folder / filename(number) for folder in folders for number in numbers(folder)]
        return digest([[f"{file.parent.name}/{file.name}", shard.footer(file).checksum] for file in files])

    def reader(self, columns: Sequence[str], partial: bool = False) -> Callable[[int], pa.Table]:
        """Return a function that reads columns of one shard; `row_id` comes first, candidates come with their texts.

        Args:
            columns: Their names.
            partial: Read a column that is not yet computed for a shard as NULL.

        Raises:
            StoreError: There is no such column, or it is out of date; or, raised by the function, it is not yet computed.
            DamagedError: Raised by the function: a shard was altered, or is lost.
        """
        requested = [name for name in columns if name != "row_id"]
        records, stale, schema, stored = self.records(), self.stale(), self.schema, self.stored_schema.names
        kinds = {f.name: (folder, f.type) for folder, record in records.items() for f in record_schema(record)}
        added: dict[str, list[str]] = {}
        for name in requested:
            folder, _ = kinds.get(name, (None, None))
            if folder is None and name not in schema.names:
                raise StoreError(f"{self.path} has no column {name!r}{suggestion(name, [*kinds, *schema.names])}")
            if folder in stale:
                raise StaleError(f"column {name!r} is out of date: {stale[folder]}; run its recipe with --replace")
            if folder is not None:
                added.setdefault(folder, []).append(name)
        # A column that a step added hides one of the source with the same name.
        source = [name for name in stored if name in requested and name not in kinds]
        fingerprint = self.rows_fingerprint
        finished = {folder: self.finished(folder) for folder in added}

        def read(number: int) -> pa.Table:
            rows = shard.read(self.path / "rows" / filename(number), fingerprint, number, ["row_id", *source])
            values = {name: rows[name] for name in rows.column_names}
            for folder, names in added.items():
                file = self.path / "columns" / folder / filename(number)
                # A shard of a finished column that is not there is lost.
                if number < finished[folder] or file.exists():
                    shard_columns = shard.read(file, str(records[folder]["fingerprint"]), number, names)
                    values |= {name: shard_columns[name] for name in names}
                elif not partial:
                    raise StoreError(
                        f"column {names[0]!r} is not yet computed for shard {number}; run its recipe first"
                    )
            for name in requested:
                if name not in values:
                    kind = kinds[name][1] if name in kinds else schema.field(name).type
                    values[name] = pa.chunked_array([pa.nulls(rows.num_rows, kind)])
                elif sample_sets({name: values[name].type}):
                    values[name] = self._with_texts(values[name].combine_chunks())
            return pa.table({name: values[name] for name in ("row_id", *requested)})

        return read

    def table(self, number: int, columns: Sequence[str]) -> pa.Table:
        """Read columns of one shard; see `reader`."""
        return self.reader(columns)(number)

    def rows(self, columns: Sequence[str]) -> Iterator[pa.Table]:
        """Iterate over the rows, a table a shard; see `Data`."""
        yield from map(self.reader(columns), self.shards)

    def corpus(self, columns: Sequence[str]) -> Iterator[pa.Table]:
        """Iterate over the retrieval corpus, a table a shard; see `Data`."""
        store = self.corpus_store
        if store is not None:
            yield from store.rows(columns)

    def _with_texts(self, sets: pa.ListArray) -> pa.ListArray:
        """Add the response of the corpus row to each candidate that only has the row's id."""
        if "response" in [sets.type.value_type.field(i).name for i in range(sets.type.value_type.num_fields)]:
            return sets
        items = sets.flatten()
        texts = self._corpus_texts(items.field("source_row_id"))
        fields = [items.type.field(i).name for i in range(items.type.num_fields)]
        joined = pa.StructArray.from_arrays([*(items.field(f) for f in fields), texts], [*fields, "response"])
        # (rows,): `flatten` drops what lies under a missing list, so that its offsets are counted anew.
        lengths = pc.fill_null(pc.list_value_length(sets), 0).to_numpy()
        offsets = pa.array([0, *lengths.cumsum().tolist()], pa.int32())
        return pa.ListArray.from_arrays(offsets, joined, mask=sets.is_null())

    def _corpus_texts(self, ids: pa.Array) -> pa.Array:
        corpus = self.corpus_store
        if corpus is None:
            raise StoreError(f"{self.path} names corpus rows but has no corpus")
        if len(ids) == 0:
            return pa.array([], pa.string())
        size = int(str(corpus.about["shard_rows"]))
        shard_numbers = pc.divide(ids, size).to_numpy()
        # Ids are sorted by shard, looked up shard by shard, and put back in order at the end. To touch all texts once for
        # each shard would cost the square of the corpus.
        order = np.argsort(shard_numbers, kind="stable")
        numbers_found, starts = np.unique(shard_numbers[order], return_index=True)
        texts = []
        for number, positions in zip(numbers_found.tolist(), np.split(order, starts[1:]), strict=True):
            stored = self._fetch(number)
            indices = pc.index_in(ids.take(pa.array(positions)), value_set=stored["row_id"].combine_chunks())
            if indices.null_count:
                raise StoreError(f"corpus {corpus.path}, shard {number}: a row a contrast set names is not there")
            texts.append(stored["response"].combine_chunks().take(indices))
        # (candidates,): for each candidate its place among the sorted ids.
        inverse = np.empty(len(order), np.int64)
        inverse[order] = np.arange(len(order))
        return pa.concat_arrays(texts).take(pa.array(inverse))

    @cached_property
    def _corpus_responses(self) -> Callable[[int], pa.Table]:
        corpus = self.corpus_store
        assert corpus is not None
        return corpus.reader(["response"])

    # ── one run at a time ────────────────────────────────────────────────────────────────────────────────

    @contextmanager
    def hold(self) -> Iterator[None]:
        """Lock this store against other runs until the block ends, and remove what a killed run left half-written.

        Raises:
            BusyError: Another run holds it.
            StoreError: Its disk is full, cannot be written, or is gone.
        """
        if not isinstance(self.path, Path):
            with lock.hold(self.path):
                shutil.rmtree(self.scratch, ignore_errors=True)
                yield
            return
        import fcntl

        with _disk_errors(self.path):
            self.path.mkdir(parents=True, exist_ok=True)
            with (self.path / ".lock").open("a") as lock_file:
                try:
                    fcntl.flock(lock_file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                except BlockingIOError as error:
                    raise BusyError(f"another run works on {self.path}; wait for it, or stop it first") from error
                # Only names that `atomic` gives: a user's own file in the store is not touched.
                patterns = (".*.tmp", "*/.*.tmp", "*/*/.*.tmp", "*/*/shared/.*.tmp", "*/*/_shared/.*.tmp")
                for leftover in [leftover for pattern in patterns for leftover in self.path.glob(pattern)]:
                    shutil.rmtree(leftover) if leftover.is_dir() and not leftover.is_symlink() else leftover.unlink()
                yield

    @property
    def scratch(self) -> Path:
        """Return the folder on this machine in which files are built: the store's own, or the cache's for s3://."""
        if not isinstance(self.path, Path):
            self.path.scratch.mkdir(parents=True, exist_ok=True)
            return self.path.scratch
        return self.path


def sample_sets(kinds: Mapping[str, pa.DataType]) -> list[str]:
    """Name the variants of the `worse_…` columns that hold sets of worse answers; the type tells them from a source's own."""
    return [
        name.removeprefix("worse_")
        for name, kind in kinds.items()
        if name.startswith("worse_")
        and pa.types.is_list(kind)
        and pa.types.is_struct(kind.value_type)
        and any(
            (field.name == "response" and pa.types.is_string(field.type))
            or (field.name == "source_row_id" and pa.types.is_integer(field.type))
            for field in kind.value_type
        )
    ]


@contextmanager
def _disk_errors(path: Path) -> Iterator[None]:
    """Turn an error of the disk into one line."""
    try:
        yield
    except OSError as error:
        # An OSError without a number is not from the operating system.
        if error.errno is None:
            raise
        raise StoreError(
            f"{error.filename or path} cannot be used: {error.strerror}; what was finished is kept: fix that and run the same again"
        ) from error


def _meaning(field: pa.Field) -> str:
    return str((field.metadata or {}).get(b"meaning", b"").decode())


def _expected_type(name: str, kind: pa.DataType) -> str:
    """Return in words the type that a step's column of this name has; empty where `kind` is of that type."""
    types = pa.types

    def number(type_: pa.DataType) -> bool:
        return bool(types.is_integer(type_) or types.is_floating(type_) or types.is_boolean(type_))

    if name == "reward" or name.startswith("rer_"):
        return "" if number(kind) else "a number"
    if name.startswith(("rewards_", "logprobs_", "tokens_")):
        return "" if types.is_list(kind) and number(kind.value_type) else "a list of numbers"
    if name.startswith("query_type"):
        return "" if types.is_string(kind) else "text"
    return ""
