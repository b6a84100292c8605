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
import hashlib
import json
import os
import shutil
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from functools import cached_property, lru_cache
from pathlib import Path
from typing import NamedTuple, Self, TypeVar

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from pydantic import JsonValue

from seamcurate.errors import BusyError, DamagedError, StaleError, StepError, StoreError
from seamcurate.progress import note
from seamcurate.step import Step, digest
from seamcurate.storage import atomic, hashes, lock, objects, shard
from seamcurate.storage.objects import Place
from seamcurate.text import suggestion

FORMAT = 3
"""In format 1, shards of rejected rows have the fingerprint of the rows. Up to format 2, files beside shards have no `_`."""
_STEP_KEYS = {"step", "name", "config", "identity", "inputs", "corpus", "ancestry", "schema", "fingerprint"}
_SPLIT_KEYS = {"filter", "parameters", "format", "fingerprint", "kept", "dropped", "lines"}
_GROWN = "+"
"""Stands between the fingerprint of a column and that of a source to which files were added; see `Store.grown`."""
_EXTENT = ("over_shards", "over_source")
"""Keys of an identity that say how many rows were read, and nothing else."""
_CHECKSUM = "sha256"
_CHECKSUM_LINE = b'\n "sha256": "'


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
        return _records(self.path / "columns", "step.json")

    def split_records(self) -> dict[str, dict[str, JsonValue]]:
        """Return each split's record by the split's name; see `records`."""
        return _records(self.path / "splits", "split.json")

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
        fingerprint = facts.pop("fingerprint", None)
        if fingerprint is not None and fingerprint != step_record(path).get("fingerprint"):
            raise DamagedError(f"{file} belongs to another configuration; {shard.hint(path)}")
        return facts

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
        save_record(step_file(output.path, "facts.json"), {**facts, "fingerprint": output.fingerprint})

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
            days = "".join(f"; prompts dated {day}" for day in sorted(_days(record)))
            for field in record_schema(record):
                meaning = _meaning(field) + days
                columns.append(Column(field.name, field.type, folder, shards_done, shards, meaning, stale.get(folder)))
        return columns

    @property
    def day(self) -> datetime.date:
        """Return the date for chat templates that write today's date: that of the store's first columns, or else today."""
        return _first_day(self.records().values()) or datetime.date.today()

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
            {name: _grown_fingerprint(recorded, extent) for name, recorded in corpus.fingerprints().items()}
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
                lineage |= {field.name: _lineage(record) for field in record_schema(record)}
        source = dict.fromkeys(self.schema.names, self.rows_fingerprint)
        # SQL ignores case: two names that differ in case alone would be one column in a view.
        source_names = {name.lower(): name for name in source}
        fingerprints |= source
        corpus_columns = self._corpus_columns(corpus or {})
        outputs: list[StepOutput] = []
        for step_before_date in steps:
            self._check_inputs(step_before_date, source)
            earlier_record = records.get(step_before_date.name)
            step = step_before_date.dated(_began(step_before_date, earlier_record) or day)
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
                lineage[field.name] = _lineage(record)
            outputs.append(output)
        return outputs

    def changed(self, outputs: Sequence[StepOutput]) -> list[tuple[StepOutput, str]]:
        """Return the outputs whose folder holds columns of another configuration, each with the difference in words."""
        changed = []
        for output in outputs:
            stored = step_record(output.path)
            if stored and stored["fingerprint"] != output.fingerprint:
                changed.append((output, _difference(stored, output.record)))
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
        grew = [output for output, _ in refused if _only_grew(step_record(output.path), output.record)]
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
                    f"there are: {', '.join(sorted(fingerprints))}"
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
        rows = _grown_fingerprint(corpus.rows_fingerprint, grown)
        columns: dict[str, tuple[str, dict[str, JsonValue]]] = {
            name: (rows, {"rows": rows}) for name in corpus.schema.names
        }
        stale = corpus.stale()
        for folder, record in corpus.records().items():
            if folder not in stale:
                entry = (_grown_fingerprint(str(record["fingerprint"]), grown), {**_lineage(record), "rows": rows})
                columns |= {field.name: entry for field in record_schema(record)}
        return columns | {
            name: (_grown_fingerprint(output.fingerprint, grown), {**_lineage(output.record), "rows": rows})
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

        def read(number: int) -> pa.Table:
            rows = shard.read(self.path / "rows" / filename(number), fingerprint, number, ["row_id", *source])
            values = {name: rows[name] for name in rows.column_names}
            for folder, names in added.items():
                file = self.path / "columns" / folder / filename(number)
                if file.exists():
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


def filename(number: int) -> str:
    """Return the file name of a shard."""
    return f"{number:05d}.parquet"


def numbers(folder: Place) -> list[int]:
    """List the numbers of a folder's shards in order: files with a name that `filename` returns, without links."""
    if not isinstance(folder, Path):
        return _shard_numbers(file.name for file in folder.glob("[0-9]*.parquet"))
    try:
        # Before the listing: what changes meanwhile makes it another state.
        state = hashes.settled_state(folder)
        if state is not None and (known := _listed.get(folder)) is not None and known[0] == state:
            return [*known[1]]
        with os.scandir(folder) as entries:
            shard_numbers = _shard_numbers(entry.name for entry in entries if entry.is_file(follow_symlinks=False))
    except (FileNotFoundError, NotADirectoryError):
        return []
    if state is not None:
        _remember(_listed, folder, (state, shard_numbers))
    return [*shard_numbers]


def _shard_numbers(names: Iterable[str]) -> list[int]:
    # 000001.parquet has the number 1, too; the shard is 00001.parquet.
    stems = (name[:-8] for name in names if name.endswith(".parquet") and name.isascii())
    return sorted(
        int(stem) for stem in stems if stem.isdecimal() and (len(stem) == 5 or (len(stem) > 5 and stem[0] > "0"))
    )


_listed: dict[Path, tuple[hashes.State, list[int]]] = {}
"""The shards of folders that have not changed since they were listed."""
_parsed: dict[Path, tuple[hashes.State, str | None, dict[str, JsonValue]]] = {}
"""The records that have not changed since they were read, each with the folder that it was written for."""
_REMEMBERED = 256
_T = TypeVar("_T")


def _remember(known: dict[Path, _T], path: Path, value: _T) -> None:
    """Remember a folder's listing or a record; of many, forget the one that was read first."""
    known.pop(path, None)
    while len(known) >= _REMEMBERED:
        known.pop(next(iter(known)), None)
    known[path] = value


def shard_files(folder: Place) -> list[Place]:
    """List the shards of a folder, in order; see `numbers`."""
    return [folder / filename(number) for number in numbers(folder)]


def record_file(folder: Place, name: str) -> Place:
    """Return the path of a folder's record: `_step.json` or `_split.json`, or the name without `_` up to format 2."""
    new, old = folder / f"_{name}", folder / name
    return old if not new.exists() and old.exists() else new


def step_file(folder: Place, name: str) -> Place:
    """Return the path of another file beside a step's shards (`facts.json`, `shared`), named as its record is."""
    new = record_file(folder, "step.json").name.startswith("_")
    return folder / (f"_{name}" if new else name)


def step_record(folder: Place) -> dict[str, JsonValue]:
    """Return a column folder's record; see `own_record`."""
    return own_record(record_file(folder, "step.json"))


def own_record(file: Place) -> dict[str, JsonValue]:
    """Read a folder's record; empty where there is none, or where it was written for another folder.

    Raises:
        DamagedError: It was written for this folder, and altered afterwards.
    """
    keys = _STEP_KEYS if file.name.endswith("step.json") else _SPLIT_KEYS
    try:
        record = load_json(file)
    except DamagedError:
        if _is_foreign(file):
            return {}
        raise
    return record if keys <= record.keys() else {}


def _is_foreign(file: Place) -> bool:
    """Tell whether an unreadable record is not a store's, or lies in a copy of another folder."""
    if not numbers(file.parent) and not (file.parent / "ledger.parquet").exists():
        return True
    siblings = {record_path.parent.name for record_path in objects.find(file.parent.parent, f"*/{file.name}")}
    with suppress(ValueError):
        if isinstance(value := json.loads(file.read_bytes()), dict):
            siblings.add(str(value.get("name")))
    for name in siblings - {file.parent.name}:
        with suppress(DamagedError):
            record = load_json(file, name)
            # In a copied folder the shards belong to the record; a record that was moved here alone has other shards.
            fingerprints = shard_fingerprints(file.parent) or {shard.footer(file.parent / "ledger.parquet").fingerprint}
            return record.get("fingerprint") in fingerprints
    return False


def _records(folder: Place, name: str) -> dict[str, dict[str, JsonValue]]:
    if isinstance(folder, Path):
        # Without a look at the shards beside each record: there may be very many.
        try:
            folders = sorted(entry.name for entry in os.scandir(folder) if entry.is_dir())
        except (FileNotFoundError, NotADirectoryError):
            folders = []
        files: dict[str, Place] = {one: record_file(folder / one, name) for one in folders if not one.startswith(".")}
    else:
        files = {}
        for file in folder.glob(f"*/*{name}", past_shards=True):
            # They are sorted: `_step.json` comes before `step.json` and wins.
            if file.name in (f"_{name}", name) and not file.parent.name.startswith("."):
                files.setdefault(file.parent.name, file)
    records = {name: own_record(file) for name, file in files.items()}
    return {name: record for name, record in records.items() if record}


def shard_fingerprints(folder: Place) -> set[str]:
    """Return the fingerprints that a folder's readable shards name."""
    fingerprints = set()
    for number in numbers(folder):
        with suppress(DamagedError):
            fingerprints.add(shard.footer(folder / filename(number)).fingerprint)
    return fingerprints


def load_json(path: Place, folder: str | None = None) -> dict[str, JsonValue]:
    """Read a JSON object without the checksum that `save_record` added; empty where there is no file.

    Args:
        path: The file.
        folder: The name of the folder that it was written for; by default that of the folder it lies in.

    Raises:
        DamagedError: It is no JSON object, or was altered after it was written.
    """
    try:
        # Of a store of many shards, store.json is megabytes, and a command asks for it a dozen times.
        state = hashes.settled_state(path) if isinstance(path, Path) else None
        known = _parsed.get(path) if state is not None and isinstance(path, Path) else None
        if known is not None and known[:2] == (state, folder):
            return {**known[2]}
        content = path.read_bytes()
        value = json.loads(content)
    except (FileNotFoundError, NotADirectoryError):
        return {}
    except ValueError as error:
        raise DamagedError(f"{path} is not readable as JSON; {shard.hint(path)}") from error
    if not isinstance(value, dict):
        raise DamagedError(f"{path} holds no JSON object; {shard.hint(path)}")
    checksum, (body, marker, end) = value.pop(_CHECKSUM, None), content.rpartition(_CHECKSUM_LINE)
    # If a flipped bit renamed the key "sha256", the record must not pass for one of a version that wrote no checksum.
    last_item = next(reversed(value.items()), ("", None))
    renamed = (
        checksum is None
        and len(last_item[0]) == len(_CHECKSUM)
        and isinstance(last_item[1], str)
        and len(last_item[1]) == 64
    )
    if renamed or (checksum is not None and marker + end != _record_end(path, body, folder)):
        raise DamagedError(f"{path} was altered after it was written: its hash does not match; {shard.hint(path)}")
    if state is not None and isinstance(path, Path):
        _remember(_parsed, path, (state, folder, value))
    return {**value}


def save_record(path: Place, value: Mapping[str, JsonValue]) -> None:
    """Write a JSON object whole; its last key is a checksum over its content and its path in the store."""
    body = _json_text(value).encode().removesuffix(b"\n}\n") + b","
    shard.replace(path, body + _record_end(path, body))


def _record_end(path: Place, body: bytes, folder: str | None = None) -> bytes:
    """Return the last line of a record: the checksum over the names of its folder and file, and its content.

    The folder of store.json is the store itself, which the user may rename: its name is left out.
    """
    # A folder is built under a temporary name, and its records hold the name that it will have.
    folder = folder or path.parent.name.removeprefix(".").removesuffix(".tmp")
    path_in_store = path.name if path.name == "store.json" else f"{folder}/{path.name}"
    return b'%s%s"\n}\n' % (_CHECKSUM_LINE, hashlib.sha256(path_in_store.encode() + b"\n" + body).hexdigest().encode())


def save_json(path: Place, value: Mapping[str, JsonValue]) -> None:
    """Write a JSON object whole."""
    shard.replace(path, _json_text(value).encode())


def _json_text(value: Mapping[str, JsonValue]) -> str:
    return json.dumps(value, indent=1, ensure_ascii=False, sort_keys=False) + "\n"


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


def record_schema(record: Mapping[str, JsonValue]) -> pa.Schema:
    """Return the Arrow schema a step's record declares, meanings included."""
    return pa.ipc.read_schema(pa.py_buffer(base64.b64decode(str(record["schema"]))))


def _meaning(field: pa.Field) -> str:
    return str((field.metadata or {}).get(b"meaning", b"").decode())


def _days(record: Mapping[str, JsonValue]) -> set[str]:
    """Return the dates in the configuration of a step's models, which their chat templates write into prompts."""
    config = record["config"]
    assert isinstance(config, dict)
    return {day for value in config.values() for day in _model_days(value)}


_MODELS_OF = ("ensemble", "same_as", "judge")
"""The keys of a model's configuration that hold the models which it is made of."""


def _model_days(model: JsonValue) -> Iterator[str]:
    """Yield the dates in the configuration of a model, and in those of the models that it is made of."""
    if isinstance(model, list):
        for member in model:
            yield from _model_days(member)
    elif isinstance(model, dict):
        if model.get("date"):
            yield str(model["date"])
        for key in _MODELS_OF:
            yield from _model_days(model.get(key))


def _began(step: Step, record: Mapping[str, JsonValue] | None) -> datetime.date | None:
    """Return the day on which a step's columns were begun, None where there are none: no date that its models set themselves."""
    if record is None:
        return None
    days = _days(record)
    set_days = _days({"config": step.model_dump(mode="json")})
    return datetime.date.fromisoformat(min(days - set_days or days)) if days else None


def _first_day(records: Iterable[Mapping[str, JsonValue]]) -> datetime.date | None:
    days = {day for record in records for day in _days(record)}
    return datetime.date.fromisoformat(min(days)) if days else None


def _lineage(record: Mapping[str, JsonValue]) -> dict[str, JsonValue]:
    ancestry, identity = record["ancestry"], record["identity"]
    assert isinstance(ancestry, dict) and isinstance(identity, dict)
    return {**ancestry, str(record["name"]): identity}


def _difference(stored: Mapping[str, JsonValue], planned: Mapping[str, JsonValue]) -> str:
    """Return in words what changed between two steps' records, however far upstream."""
    stored_steps, planned_steps = _lineage(stored), _lineage(planned)
    differences = []
    for step in {**stored_steps, **planned_steps}:
        stored_identity, planned_identity = stored_steps.get(step), planned_steps.get(step)
        if stored_identity == planned_identity:
            continue
        if step.endswith("rows"):
            differences.append(f"the {'corpus' if step.startswith('corpus') else 'source'} rows changed")
        elif isinstance(stored_identity, dict) and isinstance(planned_identity, dict):
            differences += _changed_keys(step, stored_identity, planned_identity)
        else:
            differences.append(f"step {step} is {'new' if stored_identity is None else 'gone'} upstream")
    return "; ".join(differences) or "its inputs were made anew"


def _changed_keys(name: str, stored: Mapping[str, JsonValue], planned: Mapping[str, JsonValue]) -> Iterator[str]:
    """Yield each key of a configuration that changed, with both values.

    Of a model only the keys that changed are shown, also within another: the hash of a file of code, a member of an ensemble.
    """
    for key in {**stored, **planned}:
        before, after = stored.get(key), planned.get(key)
        if before == after:
            continue
        lists = [value["ensemble"] for value in (before, after) if isinstance(value, dict) and "ensemble" in value]
        members = [value for value in lists if isinstance(value, list)]
        if isinstance(before, dict) and isinstance(after, dict) and len(members) == 2:
            numbered = [{f"ensemble[{i}]": member for i, member in enumerate(value)} for value in members]
            rest = [{k: v for k, v in value.items() if k != "ensemble"} for value in (before, after)]
            yield from _changed_keys(f"{name}.{key}", {**numbered[0], **rest[0]}, {**numbered[1], **rest[1]})
        elif (
            isinstance(before, dict)
            and isinstance(after, dict)
            # Two kinds of model have few keys in common.
            and len(before.keys() & after.keys()) > len(before.keys() ^ after.keys())
        ):
            yield from _changed_keys(f"{name}.{key}", before, after)
        else:
            yield f"{name}.{key}: {json.dumps(before)} → {json.dumps(after)}"


def _grown_fingerprint(fingerprint: str, grown: str | None) -> str:
    """Return the fingerprint of a column over all rows: one that changes when the source grows; see `Store.grown`."""
    return fingerprint if grown is None else f"{fingerprint}{_GROWN}{grown}"


def _only_grew(stored: Mapping[str, JsonValue], planned: Mapping[str, JsonValue]) -> bool:
    """Tell whether two steps' records differ only in how many rows, or how large a corpus, the step read."""
    if not stored:
        return False
    stored_steps, planned_steps = _lineage(stored), _lineage(planned)
    for step in {**stored_steps, **planned_steps}:
        stored_identity, planned_identity = stored_steps.get(step), planned_steps.get(step)
        if isinstance(stored_identity, str) and isinstance(planned_identity, str):
            if stored_identity.partition(_GROWN)[0] != planned_identity.partition(_GROWN)[0]:
                return False
        elif isinstance(stored_identity, dict) and isinstance(planned_identity, dict):
            if any(
                stored_identity.get(key) != planned_identity.get(key)
                for key in {**stored_identity, **planned_identity}
                if key not in _EXTENT
            ):
                return False
        elif stored_identity != planned_identity:
            return False
    return stored_steps != planned_steps


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
