"""A store: a folder of row shards, with the columns that steps added beside them.

    my-store/
      store.json                         where the rows come from, their fingerprint, where the corpus is
      rows/00000.parquet                 row_id, prompt, response, reference, every other source column
      rejected/00000.parquet             rows set aside, each with its reason
      columns/<name>/_step.json          configuration, fingerprints of inputs, columns, own fingerprint
      columns/<name>/00000.parquet       row_id and the added columns
      columns/<name>/_shared/            what the step prepared once for all shards, with a list of hashes
      columns/<name>/_facts.json         the finished columns in numbers
      splits/<name>/_split.json          the filter, its parameters, fingerprints of what it reads, own fingerprint
      splits/<name>/ledger.parquet       one row per source row: kept or dropped, and what decided it
      corpus/                            the retrieval corpus, a store like any other

One rule: a file that exists is complete. A fingerprint is the hash of a configuration, of its models' weights and
of the fingerprints of its inputs; columns under another fingerprint than the one asked for are never mixed.

A shard is a file that is named as `filename` names it; any other file is none of a store's. What lies beside shards begins
with `_`, which readers of Parquet folders pass over. Stores up to format 2 have the same names without it, and keep them.
"""

from __future__ import annotations

import base64
import datetime
import hashlib
import json
import os
import re
import shutil
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from functools import cached_property, lru_cache
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from pydantic import JsonValue

from seamcurate.errors import BusyError, DamagedError, StaleError, StepError, StoreError
from seamcurate.progress import note
from seamcurate.step import Step, digest
from seamcurate.storage import atomic, lock, objects, shard
from seamcurate.storage.objects import Place
from seamcurate.text import suggestion

FORMAT = 3
"""In format 1, rejected rows have the fingerprint of the rows; up to 2, what lies beside shards has no `_` before its name."""
_SHARD = re.compile(r"\d{5,}\.parquet")
_STEP_KEYS = {"step", "name", "config", "identity", "inputs", "corpus", "ancestry", "schema", "fingerprint"}
_SPLIT_KEYS = {"filter", "parameters", "format", "fingerprint", "kept", "dropped", "lines"}
_GROWN = "+"
"""Stands between the fingerprint of a column and that of the source that grew since."""
_EXTENT = ("over_shards", "over_source")
_HASH = "sha256"
_SAID = b'\n "sha256": "'


class StepOutput(NamedTuple):
    """One step's columns in a store: where they lie and under which fingerprint."""

    step: Step
    path: Place
    fingerprint: str
    record: dict[str, JsonValue]
    """What _step.json says, or will say."""


class Column(NamedTuple):
    """One column of a store, as `seamcurate columns` lists it."""

    name: str
    kind: pa.DataType
    made_by: str
    done: int
    shards: int
    meaning: str
    stale: str | None
    """Why the column must not be used, if so."""


class Store:
    """Open a store, or the folder one is to be made in; `s3://bucket/prefix` is one too."""

    def __init__(self, path: str | Place) -> None:
        self.path = objects.place(path)
        self._fetch = lru_cache(maxsize=64)(lambda number: self._corpus_responses(number))

    # ── what is there ────────────────────────────────────────────────────────────────────────────────────

    def open(self) -> Store:
        """Return itself when a store is there.

        Raises:
            StoreError: There is none, it was written by a newer seamcurate, or its store.json is lost.
        """
        if not (self.path / "store.json").is_file():
            if self.shards:
                raise StoreError(
                    f"{self.path}/store.json is missing; run the store's recipe again to have it made anew"
                )
            raise StoreError(f"{self.path} is no store; {self._instead}")
        if (there := self.about.get("format")) not in range(1, FORMAT + 1):
            raise StoreError(f"{self.path} has format {there}; this seamcurate reads 1 to {FORMAT}")
        return self

    @property
    def _instead(self) -> str:
        """Say what to name in place of a folder that is no store."""
        if self.path.is_file():
            return "it is a file: name the folder that `seamcurate run` made, and the recipe, where there is one, before it"
        if isinstance(self.path, Path):
            for around in list(self.path.absolute().parents)[:2]:
                if (around / "store.json").is_file():
                    return f"it is a folder of the store {around}: name that"
        return f"make one with `seamcurate run RECIPE {self.path}`"

    @property
    def about(self) -> dict[str, JsonValue]:
        """Return store.json, or nothing when there is no store yet."""
        return load_json(self.path / "store.json")

    def update(self, **values: JsonValue) -> None:
        """Set keys of store.json."""
        self.path.mkdir(parents=True, exist_ok=True)
        before = self.about
        after = {"format": FORMAT, **before, **values}
        if after != before:
            save_record(self.path / "store.json", after)

    @property
    def corpus_store(self) -> Store | None:
        """Return the retrieval corpus, if the store has one."""
        where = self.about.get("corpus")
        return Store(objects.beside(self.path, where)) if isinstance(where, str) else None

    @property
    def shards(self) -> list[int]:
        """List the numbers of the row shards that are there."""
        return numbers(self.path / "rows")

    @property
    def stored_schema(self) -> pa.Schema:
        """Return the schema of the last row shard, which knows every source column so far; what all rows have, of none."""
        last = self.shards[-1:]
        if not last:
            return pa.schema([("row_id", pa.int64()), ("prompt", pa.string())])
        return shard.metadata(self.path / "rows" / filename(last[0])).schema.to_arrow_schema()

    @property
    def schema(self) -> pa.Schema:
        """Return the rows' schema; `response` and `reference` are in it, NULL, where the source has none."""
        schema = self.stored_schema
        for name in ("response", "reference"):
            if name not in schema.names:
                schema = schema.append(pa.field(name, pa.string()))
        return schema

    @property
    def rows_fingerprint(self) -> str:
        """Return what identifies the rows' source."""
        return str(self.about.get("rows", ""))

    @property
    def grown(self) -> str | None:
        """Return what identifies the source now, where files were added to it after its rows were read; None else.

        The fingerprint of the rows stays that of the first files, so that what was computed of their rows stays too.
        """
        about = self.about
        now = digest(about["source"]) if about.get("source") is not None else None
        return None if now == about.get("rows") else now

    @property
    def row_fingerprints(self) -> dict[str, str]:
        """Return the fingerprints in the shards of `rows` and of `rejected`, which have the same numbers."""
        about = self.about
        rows = str(about.get("rows", ""))
        return {"rows": rows, "rejected": rows if about.get("format") == 1 else f"{rows} rejected"}

    @property
    def row_checksums(self) -> dict[str, list[str]]:
        """Return the checksums of the shards of `rows` and `rejected` as they were read from the source."""
        found = self.about.get("seals") or {}
        assert isinstance(found, dict)
        return {kind: [str(one) for one in seals] for kind, seals in found.items() if isinstance(seals, list)}

    def __len__(self) -> int:
        return sum(map(self.count, self.shards))

    def count(self, number: int) -> int:
        """Return how many rows a shard has."""
        return int(shard.metadata(self.path / "rows" / filename(number)).num_rows)

    def records(self) -> dict[str, dict[str, JsonValue]]:
        """Return each column folder's record by folder name; folders that are none of a step's are left out.

        Raises:
            DamagedError: A record is not what was written.
        """
        return _records(self.path / "columns", "step.json")

    def split_records(self) -> dict[str, dict[str, JsonValue]]:
        """Return each split's record by the split's name; see `records`."""
        return _records(self.path / "splits", "split.json")

    def split_record(self, name: str) -> dict[str, JsonValue]:
        """Return a split's record; empty where the split was not made."""
        return own_record(record_file(self.path / "splits" / name, "split.json"))

    def facts(self, name: str) -> dict[str, JsonValue]:
        """Return the finished columns of a folder in numbers.

        Raises:
            DamagedError: They are not what was written, or of other columns.
        """
        path = self.path / "columns" / name
        file = beside(path, "facts.json")
        facts = load_json(file)
        made = facts.pop("fingerprint", None)
        if made is not None and made != step_record(path).get("fingerprint"):
            raise DamagedError(f"{file} belongs to another configuration; {shard.hint(path)}")
        return facts

    def add_facts(self, output: StepOutput, facts: Mapping[str, JsonValue]) -> None:
        """Keep an output's finished columns in numbers."""
        save_record(beside(output.path, "facts.json"), {**facts, "fingerprint": output.fingerprint})

    def noise(self, column: str) -> dict[str, float]:
        """Return the measured noise of what a column's step added, by column; empty where none was measured."""
        for folder, record in self.records().items():
            if column in record_schema(record).names:
                path = self.path / "columns" / folder
                # Until the column is finished, the step's own file is all there is.
                found = self.facts(folder).get("noise") or load_json(beside(path, "shared") / "noise.json")
                assert isinstance(found, dict)
                return {name: float(str(value)) for name, value in found.items()}
        return {}

    def columns(self) -> list[Column]:
        """List every column: the source's, then each step's."""
        shards = len(self.shards)
        listed = [
            Column(field.name, field.type, "source", shards, shards, _meaning(field), None) for field in self.schema
        ]
        stale = self.stale()
        for folder, record in self.records().items():
            done = len(numbers(self.path / "columns" / folder))
            days = "".join(f"; prompts dated {day}" for day in sorted(_days(record)))
            for field in record_schema(record):
                meaning = _meaning(field) + days
                listed.append(Column(field.name, field.type, folder, done, shards, meaning, stale.get(folder)))
        return listed

    @property
    def day(self) -> datetime.date:
        """Return the date that prompts hold where a chat template writes today's: that of the first columns, else today."""
        return _first_day(self.records().values()) or datetime.date.today()

    def fingerprints(self) -> dict[str, str]:
        """Return, for each column, the fingerprint of what made it."""
        made = dict.fromkeys(self.schema.names, self.rows_fingerprint)
        for record in self.records().values():
            made |= {field.name: str(record["fingerprint"]) for field in record_schema(record)}
        return made

    def stale(self) -> dict[str, str]:
        """Return the folders whose inputs have since been made anew, each with what changed."""
        records, found = self.records(), {}
        corpus = self.corpus_store
        here = self.fingerprints()
        extent = corpus.grown if corpus is not None else None
        there = (
            {name: _whole(made, extent) for name, made in corpus.fingerprints().items()} if corpus is not None else {}
        )
        grown = self.grown
        for folder, record in records.items():
            identity = record["identity"]
            if isinstance(identity, dict) and "over_shards" in identity and identity.get("over_source") != grown:
                found[folder] = "it reads all rows, and there are more now"
            for made, now in ((record["inputs"], here), (record["corpus"], there)):
                assert isinstance(made, dict)
                for name, fingerprint in made.items():
                    if now.get(name) != fingerprint:
                        found[folder] = f"its input {name!r} was made anew"
        # Stale inputs make stale outputs, however many steps lie between.
        owner = {field.name: folder for folder, record in records.items() for field in record_schema(record)}
        for _ in records:
            for folder, record in records.items():
                inputs = record["inputs"]
                assert isinstance(inputs, dict)
                spoiled = next((name for name in inputs if owner.get(name) in found), None)
                if folder not in found and spoiled is not None:
                    found[folder] = f"its input {spoiled!r} is out of date"
        return found

    # ── planning steps ─────────────────────────────────────────────────────────────────────────────────

    def plan(self, steps: Sequence[Step], corpus: Mapping[str, StepOutput] | None = None) -> list[StepOutput]:
        """Work out every step's fingerprint before anything is computed.

        `corpus` maps the columns that steps add to the corpus to their outputs there. Where a model's prompts hold today's
        date, it is the date that the step's columns were begun with, else that of the store's first such columns: rewards
        are compared with each other.

        Raises:
            StepError: A step reads a column that nothing before it adds, or adds one that is there already.
        """
        known: dict[str, str] = {}
        lineage: dict[str, dict[str, JsonValue]] = {}
        stale, records, day = self.stale(), self.records(), self.day
        for folder, record in records.items():
            if folder not in stale:
                known |= {field.name: str(record["fingerprint"]) for field in record_schema(record)}
                lineage |= {field.name: _lineage(record) for field in record_schema(record)}
        source = dict.fromkeys(self.schema.names, self.rows_fingerprint)
        # SQL ignores case, and so must what it will see beside each other.
        taken = {name.lower(): name for name in source}
        known |= source
        there = self._corpus_columns(corpus or {})
        outputs: list[StepOutput] = []
        for undated in steps:
            self._check_inputs(undated, source)
            before = [records[undated.name]] if undated.name in records else []
            step = undated.dated(_first_day(before) or day)
            record = self._record(step, known, lineage, there)
            output = StepOutput(step, self.path / "columns" / step.name, str(record["fingerprint"]), record)
            for field in step.adds:
                other = [done.step.name for done in outputs if field.name in done.step.adds.names]
                if own := taken.get(field.name.lower()):
                    raise StepError(
                        f"step {step.name} adds {field.name!r}, which the source has too; "
                        f"give `rows` a `rename: {{{own}: source_{own}}}`"
                    )
                if other:
                    raise StepError(f"steps {other[0]} and {step.name} both add {field.name!r}; leave one out")
                known[field.name] = output.fingerprint
                lineage[field.name] = _lineage(record)
            outputs.append(output)
        return outputs

    def changed(self, outputs: Sequence[StepOutput]) -> list[tuple[StepOutput, str]]:
        """Return the outputs whose folder holds columns of another configuration, each with what differs."""
        changed = []
        for output in outputs:
            there = step_record(output.path)
            if there and there["fingerprint"] != output.fingerprint:
                changed.append((output, _difference(there, output.record)))
            elif not there and any(made != output.fingerprint for made in shard_fingerprints(output.path)):
                changed.append((output, "its _step.json is lost"))
        return changed

    def claim(self, outputs: Sequence[StepOutput], replace: bool = False, append: bool = False) -> None:
        """Make the outputs' folders, refusing columns of another configuration.

        Columns that only read fewer rows, or a smaller corpus, go for the new ones once a source has grown by `append`.

        Raises:
            StaleError: Other columns are there; the message names what changed and the two ways out.
        """
        changed = self.changed(outputs)
        # A folder without a finished shard holds nothing that anybody would miss.
        kept = [(output, what) for output, what in changed if numbers(output.path)]
        grew = [output for output, _ in kept if _only_grew(step_record(output.path), output.record)]
        corpus = self.corpus_store
        if not replace and grew and (append or self.grown or (corpus and corpus.grown)):
            kept = [(output, what) for output, what in kept if output not in grew]
            if not kept:
                note(
                    f"{', '.join(output.step.name for output in grew)}: computed anew for all rows, as "
                    f"{'the corpus grew' if corpus and corpus.grown else 'it reads all of them and there are more now'}"
                )
        if kept and not replace:
            output, what = kept[0]
            others = f" (and {len(kept) - 1} more that follow from it)" if len(kept) > 1 else ""
            way = "--append or --replace" if output in grew else "--replace"
            raise StaleError(
                f"{output.path} was made by another configuration: {what}{others}; "
                f"run with {way} to compute it anew, or keep it and name another store"
            )
        for output, _ in changed:
            # Renamed away whole first: a removal that is cut short must not leave shards under a new record.
            if isinstance(output.path, Path) and not output.path.is_symlink():
                atomic.remove_folder(output.path)
            else:
                objects.remove_tree(output.path)
        for output in outputs:
            output.path.mkdir(parents=True, exist_ok=True)
            if not step_record(output.path):
                save_record(output.path / "_step.json", output.record)

    def identity(self, step: Step) -> dict[str, JsonValue]:
        """Return all that decides a step's values here, its inputs apart."""
        identity = step.identity()
        if step.reads_all_rows:
            identity["over_shards"] = len(self.shards)
            if (grown := self.grown) is not None:
                identity["over_source"] = grown
        return identity

    def _check_inputs(self, step: Step, source: Mapping[str, str]) -> None:
        """Refuse a source's column in place of one that a step makes, unless it could be one."""
        name = f"worse_{getattr(step, 'variant', '')}"
        kind = self.schema.field(name).type if name in source and name in step.inputs else None
        if kind is not None and not sample_sets({name: kind}):
            raise StepError(
                f"step {step.name} reads the sets of worse answers in {name!r}, and the source's column is {kind!s:.80}, "
                f"not list<struct<response: string>>; give `rows` a `rename: {{{name}: source_{name}}}`, or convert it"
            )
        for name in step.inputs:
            wanted = _wanted(name, self.schema.field(name).type) if name in source else ""
            if wanted:
                raise StepError(
                    f"step {step.name} reads {name!r} as {wanted}, and the source's column is "
                    f"{self.schema.field(name).type!s:.80}; give `rows` a `rename: {{{name}: source_{name}}}`, or convert it"
                )

    def _record(
        self,
        step: Step,
        known: Mapping[str, str],
        lineage: Mapping[str, dict[str, JsonValue]],
        there: Mapping[str, tuple[str, dict[str, JsonValue]]],
    ) -> dict[str, JsonValue]:
        for name in step.inputs:
            if name not in known:
                raise StepError(
                    f"step {step.name} reads column {name!r}, which neither the source nor an earlier step has; "
                    f"there are: {', '.join(sorted(known))}"
                )
        for name in step.corpus_inputs:
            if name not in there:
                raise StepError(
                    f"step {step.name} reads column {name!r} of a corpus; give the recipe a `corpus` with it"
                )
        identity = self.identity(step)
        inputs: dict[str, JsonValue] = {name: known[name] for name in step.inputs}
        corpus: dict[str, JsonValue] = {name: there[name][0] for name in step.corpus_inputs}
        ancestry: dict[str, JsonValue] = {}
        for name in step.inputs:
            ancestry |= lineage.get(name, {"rows": self.rows_fingerprint})
        for name in step.corpus_inputs:
            ancestry |= {f"corpus {key}": value for key, value in there[name][1].items()}
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
        rows = _whole(corpus.rows_fingerprint, grown)
        found: dict[str, tuple[str, dict[str, JsonValue]]] = {
            name: (rows, {"rows": rows}) for name in corpus.schema.names
        }
        stale = corpus.stale()
        for folder, record in corpus.records().items():
            if folder not in stale:
                entry = (_whole(str(record["fingerprint"]), grown), {**_lineage(record), "rows": rows})
                found |= {field.name: entry for field in record_schema(record)}
        return found | {
            name: (_whole(output.fingerprint, grown), {**_lineage(output.record), "rows": rows})
            for name, output in added.items()
        }

    # ── shards ───────────────────────────────────────────────────────────────────────────────────────────

    def add_rows(self, number: int, rows: pa.Table, rejected: pa.Table) -> None:
        """Write one shard of rows, and the rows set aside from it."""
        made = self.row_fingerprints
        for kind, table in (("rejected", rejected), ("rows", rows)):
            # Not its parents: a store that vanished meanwhile is not begun anew in the middle.
            (self.path / kind).mkdir(exist_ok=True)
            shard.write(self.path / kind / filename(number), table, made[kind], number)

    def input_checksums(self, inputs: Sequence[str], number: int) -> dict[str, str]:
        """Return the checksums of the columns' shards that hold some inputs, by folder; the source's own are not among them."""
        owner = {f.name: folder for folder, record in self.records().items() for f in record_schema(record)}
        folders = sorted({owner[name] for name in inputs if name in owner})
        return {folder: shard.footer(self.path / "columns" / folder / filename(number)).checksum for folder in folders}

    def missing(self, output: StepOutput) -> list[int]:
        """List the shards an output still lacks, or has of other inputs than are there now."""
        done = set(numbers(output.path))
        if isinstance(self.path, Path):
            # On object storage each footer would be a request.
            done = {number for number in done if not self.changed_inputs(output.path / filename(number))}
        return [number for number in self.shards if number not in done]

    def changed_inputs(self, file: Place) -> list[str]:
        """Name the columns' folders whose shard of that number is another one than a shard was computed from."""
        made_of = shard.footer(file).input_checksums
        inputs = {folder: self.path / "columns" / folder / file.name for folder in made_of}
        return [name for name, path in inputs.items() if path.exists() and shard.footer(path).checksum != made_of[name]]

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
        columns = [rows["row_id"].combine_chunks(), *added.cast(output.step.adds).columns]
        schema = pa.schema([pa.field("row_id", pa.int64()), *output.step.adds])
        table, made_of = pa.table(columns, schema=schema), self.input_checksums(output.step.inputs, number)
        shard.write(output.path / filename(number), table, output.fingerprint, number, made_of)

    def columns_checksum(self) -> str:
        """Return one hash of all columns' shards: another one when any was computed anew to other values.

        On object storage, where each footer would be a request, it is empty.
        """
        if not isinstance(self.path, Path):
            return ""
        folders = [self.path / "columns" / name for name in sorted(self.records())]
        files = [folder / filename(number) for folder in folders for number in numbers(folder)]
        return digest([[f"{file.parent.name}/{file.name}", shard.footer(file).checksum] for file in files])

    def reader(self, columns: Sequence[str], partial: bool = False) -> Callable[[int], pa.Table]:
        """Return what reads columns of one shard, `row_id` first; candidates of a contrast set come with their texts.

        Args:
            columns: Their names.
            partial: Take a column that is not yet computed for a shard as NULL.

        Raises:
            StoreError: A column is not there or stale; or, when a shard is read, not yet computed for it.
        """
        wanted = [name for name in columns if name != "row_id"]
        records, stale, schema, stored = self.records(), self.stale(), self.schema, self.stored_schema.names
        kinds = {f.name: (folder, f.type) for folder, record in records.items() for f in record_schema(record)}
        added: dict[str, list[str]] = {}
        for name in wanted:
            folder, _ = kinds.get(name, (None, None))
            if folder is None and name not in schema.names:
                raise StoreError(f"{self.path} has no column {name!r}{suggestion(name, [*kinds, *schema.names])}")
            if folder in stale:
                raise StaleError(f"column {name!r} is out of date: {stale[folder]}; run its recipe with --replace")
            if folder is not None:
                added.setdefault(folder, []).append(name)
        source = [name for name in stored if name in wanted and name not in kinds]
        maker = self.rows_fingerprint

        def read(number: int) -> pa.Table:
            rows = shard.read(self.path / "rows" / filename(number), maker, number, ["row_id", *source])
            found = {name: rows[name] for name in rows.column_names}
            for folder, names in added.items():
                file = self.path / "columns" / folder / filename(number)
                if file.exists():
                    part = shard.read(file, str(records[folder]["fingerprint"]), number, names)
                    found |= {name: part[name] for name in names}
                elif not partial:
                    raise StoreError(
                        f"column {names[0]!r} is not yet computed for shard {number}; run its recipe first"
                    )
            for name in wanted:
                if name not in found:
                    kind = kinds[name][1] if name in kinds else schema.field(name).type
                    found[name] = pa.chunked_array([pa.nulls(rows.num_rows, kind)])
                elif sample_sets({name: found[name].type}):
                    found[name] = self._with_texts(found[name].combine_chunks())
            return pa.table({name: found[name] for name in ("row_id", *wanted)})

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
        """Add to each candidate that only names a corpus row that row's response."""
        if "response" in [sets.type.value_type.field(i).name for i in range(sets.type.value_type.num_fields)]:
            return sets
        items = sets.flatten()
        texts = self._corpus_texts(items.field("source_row_id"))
        fields = [items.type.field(i).name for i in range(items.type.num_fields)]
        joined = pa.StructArray.from_arrays([*(items.field(f) for f in fields), texts], [*fields, "response"])
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
        wanted = pc.divide(ids, size).to_numpy()
        # Shard by shard, then back into place: whatever is done to all texts once a shard costs the square of the corpus.
        order = np.argsort(wanted, kind="stable")
        found, starts = np.unique(wanted[order], return_index=True)
        parts = []
        for number, here in zip(found.tolist(), np.split(order, starts[1:]), strict=True):
            stored = self._fetch(number)
            places = pc.index_in(ids.take(pa.array(here)), value_set=stored["row_id"].combine_chunks())
            if places.null_count:
                raise StoreError(f"corpus {corpus.path}, shard {number}: a row a contrast set names is not there")
            parts.append(stored["response"].combine_chunks().take(places))
        back = np.empty(len(order), np.int64)
        back[order] = np.arange(len(order))
        return pa.concat_arrays(parts).take(pa.array(back))

    @cached_property
    def _corpus_responses(self) -> Callable[[int], pa.Table]:
        corpus = self.corpus_store
        assert corpus is not None
        return corpus.reader(["response"])

    # ── one run at a time ────────────────────────────────────────────────────────────────────────────────

    @contextmanager
    def hold(self) -> Iterator[None]:
        """Keep other runs off this store, and clear away what a killed one left half-written.

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

        with _told(self.path):
            self.path.mkdir(parents=True, exist_ok=True)
            with (self.path / ".lock").open("a") as held:
                try:
                    fcntl.flock(held, fcntl.LOCK_EX | fcntl.LOCK_NB)
                except BlockingIOError as error:
                    raise BusyError(f"another run works on {self.path}; wait for it, or stop it first") from error
                patterns = (".*.tmp", "*/.*.tmp", "*/*/.*.tmp", "*/*/shared/.*.tmp", "*/*/_shared/.*.tmp")
                for left in [left for pattern in patterns for left in self.path.glob(pattern)]:
                    shutil.rmtree(left) if left.is_dir() and not left.is_symlink() else left.unlink()
                yield

    @property
    def scratch(self) -> Path:
        """Return the folder of this machine for what is built before it is kept: the store's own where it has one."""
        if not isinstance(self.path, Path):
            self.path.scratch.mkdir(parents=True, exist_ok=True)
            return self.path.scratch
        return self.path


def sample_sets(kinds: Mapping[str, pa.DataType]) -> list[str]:
    """Name the variants of the columns that hold sets of worse answers; a source may call its own columns alike."""
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
    """Name the file of a shard."""
    return f"{number:05d}.parquet"


def numbers(folder: Place) -> list[int]:
    """List the shard numbers in a folder, in order: of its files that `filename` could have named, links apart."""
    if isinstance(folder, Path):
        try:
            with os.scandir(folder) as entries:
                names = [entry.name for entry in entries if entry.is_file(follow_symlinks=False)]
        except (FileNotFoundError, NotADirectoryError):
            return []
    else:
        names = [file.name for file in folder.glob("[0-9]*.parquet")]
    found = {name: int(name.partition(".")[0]) for name in names if _SHARD.fullmatch(name)}
    return sorted(number for name, number in found.items() if filename(number) == name)


def shard_files(folder: Place) -> list[Place]:
    """List the shards of a folder, in order; see `numbers`."""
    return [folder / filename(number) for number in numbers(folder)]


def record_file(folder: Place, name: str) -> Place:
    """Return where a folder's record lies: `_step.json` or `_split.json`, or the same without `_` up to format 2."""
    new, old = folder / f"_{name}", folder / name
    return old if not new.exists() and old.exists() else new


def beside(folder: Place, name: str) -> Place:
    """Return where something else than the record lies beside a folder's column shards; see `record_file`."""
    new = record_file(folder, "step.json").name.startswith("_")
    return folder / (f"_{name}" if new else name)


def step_record(folder: Place) -> dict[str, JsonValue]:
    """Return a column folder's record; see `own_record`."""
    return own_record(record_file(folder, "step.json"))


def own_record(file: Place) -> dict[str, JsonValue]:
    """Read a folder's record; empty where there is none, or one that was not written for this folder.

    Raises:
        DamagedError: It was written for this folder, and is not what was written.
    """
    wanted = _STEP_KEYS if file.name.endswith("step.json") else _SPLIT_KEYS
    try:
        record = load_json(file)
    except DamagedError:
        if _is_foreign(file):
            return {}
        raise
    return record if wanted <= record.keys() else {}


def _is_foreign(file: Place) -> bool:
    """Tell whether an unreadable record is none of a store's, or lies in a copy of another folder."""
    if not numbers(file.parent) and not (file.parent / "ledger.parquet").exists():
        return True
    siblings = {one.parent.name for one in objects.find(file.parent.parent, f"*/{file.name}")}
    with suppress(ValueError):
        if isinstance(value := json.loads(file.read_bytes()), dict):
            siblings.add(str(value.get("name")))
    for name in siblings - {file.parent.name}:
        with suppress(DamagedError):
            record = load_json(file, name)
            # A record that was put in another's place has other shards beside it.
            made = shard_fingerprints(file.parent) or {shard.footer(file.parent / "ledger.parquet").fingerprint}
            return record.get("fingerprint") in made
    return False


def _records(folder: Place, name: str) -> dict[str, dict[str, JsonValue]]:
    files: dict[str, Place] = {}
    for file in objects.find(folder, f"*/*{name}"):
        # In order, `_step.json` comes before `step.json`.
        if file.name in (f"_{name}", name) and not file.parent.name.startswith("."):
            files.setdefault(file.parent.name, file)
    records = {name: own_record(file) for name, file in files.items()}
    return {name: record for name, record in records.items() if record}


def shard_fingerprints(folder: Place) -> set[str]:
    """Return the fingerprints that a folder's shards name, those apart that cannot be read."""
    found = set()
    for number in numbers(folder):
        with suppress(DamagedError):
            found.add(shard.footer(folder / filename(number)).fingerprint)
    return found


def load_json(path: Place, folder: str | None = None) -> dict[str, JsonValue]:
    """Read a JSON object, or an empty one where there is no file; the hash that `save_record` wrote is left out.

    Args:
        path: The file.
        folder: The name of the folder that it was written for; by default that of its own.

    Raises:
        DamagedError: It is no JSON object, or not what was written.
    """
    try:
        content = path.read_bytes()
        value = json.loads(content)
    except (FileNotFoundError, NotADirectoryError):
        return {}
    except ValueError as error:
        raise DamagedError(f"{path} is not readable as JSON; {shard.hint(path)}") from error
    if not isinstance(value, dict):
        raise DamagedError(f"{path} holds no JSON object; {shard.hint(path)}")
    said, (whole, mark, end) = value.pop(_HASH, None), content.rpartition(_SAID)
    # A hash whose own name was altered is no lack of one.
    last = next(reversed(value.items()), ("", None))
    unnamed = said is None and len(last[0]) == len(_HASH) and isinstance(last[1], str) and len(last[1]) == 64
    if unnamed or (said is not None and mark + end != _said(path, whole, folder)):
        raise DamagedError(f"{path} was altered after it was written: its hash does not match; {shard.hint(path)}")
    return value


def save_record(path: Place, value: Mapping[str, JsonValue]) -> None:
    """Write a JSON object of a store whole, with the hash of its content and its place as the last key."""
    whole = _text(value).encode().removesuffix(b"\n}\n") + b","
    shard.replace(path, whole + _said(path, whole))


def _said(path: Place, whole: bytes, folder: str | None = None) -> bytes:
    """Write the end of a record: its hash, with its folder's and its own name; a store's own name may change."""
    folder = folder or path.parent.name.removeprefix(".").removesuffix(".tmp")
    place = path.name if path.name == "store.json" else f"{folder}/{path.name}"
    return b'%s%s"\n}\n' % (_SAID, hashlib.sha256(place.encode() + b"\n" + whole).hexdigest().encode())


def save_json(path: Place, value: Mapping[str, JsonValue]) -> None:
    """Write a JSON object whole."""
    shard.replace(path, _text(value).encode())


def _text(value: Mapping[str, JsonValue]) -> str:
    return json.dumps(value, indent=1, ensure_ascii=False, sort_keys=False) + "\n"


@contextmanager
def _told(path: Path) -> Iterator[None]:
    """Say in one line what a disk cannot do."""
    try:
        yield
    except OSError as error:
        # Without a number it is no answer of the system's.
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
    """Return the dates that the prompts of a step's models hold."""
    config = record["config"]
    assert isinstance(config, dict)
    return {str(value["date"]) for value in config.values() if isinstance(value, dict) and value.get("date")}


def _first_day(records: Iterable[Mapping[str, JsonValue]]) -> datetime.date | None:
    days = {day for record in records for day in _days(record)}
    return datetime.date.fromisoformat(min(days)) if days else None


def _lineage(record: Mapping[str, JsonValue]) -> dict[str, JsonValue]:
    ancestry, identity = record["ancestry"], record["identity"]
    assert isinstance(ancestry, dict) and isinstance(identity, dict)
    return {**ancestry, str(record["name"]): identity}


def _difference(there: Mapping[str, JsonValue], asked: Mapping[str, JsonValue]) -> str:
    """Say in a few words what changed between two steps' records, however far upstream."""
    before, after = _lineage(there), _lineage(asked)
    found = []
    for step in {**before, **after}:
        old, new = before.get(step), after.get(step)
        if old == new:
            continue
        if step.endswith("rows"):
            found.append(f"the {'corpus' if step.startswith('corpus') else 'source'} rows changed")
        elif isinstance(old, dict) and isinstance(new, dict):
            found += [
                f"{step}.{key}: {json.dumps(old.get(key))} → {json.dumps(new.get(key))}"
                for key in {**old, **new}
                if old.get(key) != new.get(key)
            ]
        else:
            found.append(f"step {step} is {'new' if old is None else 'gone'} upstream")
    return "; ".join(found) or "its inputs were made anew"


def _whole(fingerprint: str, grown: str | None) -> str:
    """Return the fingerprint of a whole column, which a source that grew changes; see `Store.grown`."""
    return fingerprint if grown is None else f"{fingerprint}{_GROWN}{grown}"


def _only_grew(there: Mapping[str, JsonValue], asked: Mapping[str, JsonValue]) -> bool:
    """Tell whether all that differs between two steps' records is how many rows, or how large a corpus, was read."""
    if not there:
        return False
    before, after = _lineage(there), _lineage(asked)
    for step in {**before, **after}:
        old, new = before.get(step), after.get(step)
        if isinstance(old, str) and isinstance(new, str):
            if old.partition(_GROWN)[0] != new.partition(_GROWN)[0]:
                return False
        elif isinstance(old, dict) and isinstance(new, dict):
            if any(old.get(key) != new.get(key) for key in {**old, **new} if key not in _EXTENT):
                return False
        elif old != new:
            return False
    return before != after


def _wanted(name: str, kind: pa.DataType) -> str:
    """Say what a column of this name holds where a step makes it; nothing where the type is such a one."""
    is_ = pa.types

    def number(one: pa.DataType) -> bool:
        return bool(is_.is_integer(one) or is_.is_floating(one) or is_.is_boolean(one))

    if name == "reward" or name.startswith("rer_"):
        return "" if number(kind) else "a number"
    if name.startswith(("rewards_", "logprobs_", "tokens_")):
        return "" if is_.is_list(kind) and number(kind.value_type) else "a list of numbers"
    if name.startswith("query_type"):
        return "" if is_.is_string(kind) else "text"
    return ""
