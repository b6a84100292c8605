"""Splits: SQL chooses the rows, and a ledger records for every row whether it was kept, and why.

A filter is one SELECT over the views. It returns the `row_id` of the rows it keeps. With a boolean column `keep` it
returns rows that it keeps and rows that it drops; then it may also return for each the `rule`, the deciding `value` and
the `threshold`. In its text `{by}` stands for a column's name and `$rate` for a value; the recipe gives both.
"""

from __future__ import annotations

import json
from collections.abc import Collection, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Literal, NamedTuple

import pyarrow as pa
from pydantic import BaseModel, ConfigDict, Field, JsonValue, field_validator, model_validator

from seamcurate.data.source import Source
from seamcurate.errors import RecipeError, StaleError
from seamcurate.select import controls, decision, dependencies, filters, shaping, views
from seamcurate.select import order as orders
from seamcurate.select.controls import Control
from seamcurate.select.order import Order
from seamcurate.select.shaping import AtMost, Balance, Distribution
from seamcurate.step import Variant, digest, is_undecided, sample_set
from seamcurate.storage import atomic, shard
from seamcurate.storage.objects import Place
from seamcurate.store.folder import record_file, save_record
from seamcurate.store.store import Store
from seamcurate.text import counted

Format = Literal["prompts", "sft", "preferences", "unpaired", "prompt_ids"]


class Augment(BaseModel):
    """Make new pairs of the rows that a split keeps, for fine-tuning and for a reward model (SEAM App. G).

    Give it to `Split.augment`. The export then writes two data sets: `sft` with pairs of instruction I* and response r*, and
    `preferences` with golden responses r over candidates r*.

    Raises:
        pydantic.ValidationError: `pairs: both` is given for another variant than `contrast`; or a field is not valid.

    Example:
        >>> from seamcurate import Augment, Split
        >>> split = Split(filter="SELECT row_id FROM rows WHERE seam_contrast < -1", augment=Augment(samples=3))
        >>> split.augment.samples, split.augment.variant, split.augment.pairs
        (3, 'contrast', 'golden')
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    samples: int = Field(default=5, ge=1)
    """How many pairs each row adds to each of the two data sets; they are made of its nearest candidates."""
    variant: Variant = "contrast"
    """The sample set of the candidates. Only `contrast` has instructions I* of its own, and so pairs for fine-tuning."""
    pairs: Literal["golden", "both"] = "golden"
    """Preference pairs: `golden` is (I: r ≻ r*); `both` adds (I*: r* ≻ r)."""
    evaluation: Source | None = None
    """Evaluation questions, which no new pair may ask: rows that ask one are left out, and so are such neighbours."""

    @model_validator(mode="after")
    def _has_instructions(self) -> Augment:
        if self.pairs == "both" and not sample_set(self.variant).instructions:
            raise ValueError(
                f"pairs: both needs other instructions, which only variant contrast has, not {self.variant}"
            )
        return self


class Split(BaseModel):
    """Choose rows by an SQL filter, for a recipe's `splits`.

    A filter is one SELECT over the views that returns the `row_id` of the rows to keep. It may also return `keep`, `rule`,
    `value` and `threshold`, which the ledger records for each row. Every further key is a parameter of the filter: `{by}`
    in its text stands for a column's name, and `$rate` for a value.

    Raises:
        RecipeError: The filter is a `.sql` file that does not exist.
        pydantic.ValidationError: `augment` and `format` are both given; or a field is not valid.

    Example:
        >>> from seamcurate import Split
        >>> split = Split(filter="SELECT row_id FROM rows WHERE {by} >= $low", by="seam_contrast", low=-0.5)
        >>> split.parameters
        {'by': 'seam_contrast', 'low': -0.5}
        >>> split.bound(["seam_contrast", "rer"])
        ('SELECT row_id FROM rows WHERE "seam_contrast" >= $low', {'low': -0.5})
    """

    model_config = ConfigDict(frozen=True, extra="allow")

    filter: str
    """The SELECT itself, or a `.sql` file, which is read: in the working folder, or one that comes with seamcurate."""
    format: Format = "prompts"
    """What `export` writes: prompts, sft (prompt and golden response), preferences or unpaired (golden response
    against each candidate), or prompt_ids (tokens, for TRL's own PPO up to 1.12)."""
    augment: Augment | None = None
    """Export new pairs made of the rows instead, as two data sets."""
    order: Order | None = None
    """The order in which the rows are written; by default that of the source. A trainer keeps it with shuffling off."""

    at_most: AtMost | None = None
    """Keep at most so many rows of each value of a column."""
    shape: Distribution | None = None
    """Keep rows so that a column follows a normal distribution; applied after `at_most`."""
    balance: Balance | None = None
    """Keep rows so that each value of a column has its share; applied last."""

    controls: tuple[Control, ...] = ()
    """Splits of the same size beside it: `random`, and `shuffled`, by the scores of column `by` dealt out at random."""

    @field_validator("filter")
    @classmethod
    def _sql(cls, filter: str) -> str:
        return filters.read(filter, Path())

    @model_validator(mode="after")
    def _one_form(self) -> Split:
        if self.augment is not None and "format" in self.model_fields_set:
            raise ValueError("a split with `augment` is exported as sft and preferences; leave `format` out")
        return self

    @model_validator(mode="after")
    def _has_scores(self) -> Split:
        if "shuffled" in self.controls and not isinstance(self.parameters.get("by"), str):
            raise ValueError("the control `shuffled` shuffles the column that `by` names; give `by`, or leave it out")
        return self

    @property
    def parameters(self) -> dict[str, JsonValue]:
        """Return the filter's parameters as given."""
        return dict(self.model_extra or {})

    @property
    def rules(self) -> dict[str, shaping.Rule]:
        """Return what is dropped after the filter, by key, in the order in which it is applied."""
        return {key: rule for key in shaping.KEYS if (rule := getattr(self, key)) is not None}

    def bound(self, columns: list[str]) -> tuple[str, dict[str, JsonValue]]:
        """Return the SQL with column names filled in, and the values to bind.

        Raises:
            RecipeError: A parameter is missing, not used, or names no column.
        """
        return filters.bound(self.filter, self.parameters, columns, Split.model_fields)


def with_controls(splits: Mapping[str, Split]) -> dict[str, Split]:
    """Return splits with their controls after each, as splits of their own; those that are there already stay.

    Raises:
        RecipeError: Another split has the name of a control.

    Example:
        >>> list(with_controls({"train": Split(filter="SELECT row_id FROM rows", controls=["random"])}))
        ['train', 'train-random']
    """
    expanded: dict[str, Split] = {}
    for name, split in splits.items():
        expanded.setdefault(name, split)
        for control in dict.fromkeys(split.controls):
            control_name, control_split = controls.name(name, control), _control(name, split, control)
            if splits.get(control_name, control_split) != control_split:
                raise RecipeError(
                    f"{control_name} is the name of a control of {name}; call the other split something else"
                )
            expanded[control_name] = control_split
    return expanded


def _control(name: str, split: Split, control: Control) -> Split:
    # The composition that the split was given is no part of what a control is to differ in.
    composed = [rule.by for rule in (split.at_most, split.balance) if rule is not None]
    within = {f"within_{i}": column for i, column in enumerate(dict.fromkeys(composed))}
    score = {"score": split.parameters["by"]} if control == "shuffled" else {}
    export = {"augment": split.augment} if split.augment is not None else {"format": split.format}
    filter = controls.sql(control, len(within))
    return Split.model_validate({"filter": filter, "of": name, **score, **within, **export, "order": split.order})


class Made(NamedTuple):
    """A split whose ledger is written."""

    name: str
    kept: int
    dropped: int
    lines: list[str]
    """What to tell a person about it."""


def check(store: Store, splits: Mapping[str, Split]) -> None:
    """Check that these splits can be made of a store whose columns are known, computed or not.

    Raises:
        QueryError: A filter's SQL cannot be answered, or it returns no `row_id`.
        RecipeError: A parameter of a filter is missing, not used, or names no column; or see `make_all` and `check_formats`.
    """
    if not splits:
        return
    computed = {column.name for column in store.columns() if column.made_by != "source"}
    check_formats(splits, computed | set(store.stored_schema.names))
    with views.connect(store) as connection, views.limited(connection, decision.SECONDS, "ask for less in the filters"):
        for name, split in splits.items():
            bound = _bound(store, name, split)
            with decision.named(name):
                decision.described(connection, *bound)
                if split.order is not None:
                    orders.check(split.order, _kinds(store))
                for rule in split.rules.values():
                    shaping.check(rule, _kinds(store))
                if split.balance is not None and split.balance.by in store.stored_schema.names and len(store):
                    shaping.check_values(split.balance, _column(store, split.balance.by))
    ordered(store, splits)


def make_all(store: Store, splits: Mapping[str, Split]) -> list[Made]:
    """Make a recipe's splits, each after those whose ledger its filter reads; see `make`.

    Raises:
        RecipeError: Two splits read each other's ledger, or one reads the ledger of a split that does not exist.
    """
    return [make(store, name, splits[name]) for name in ordered(store, splits)]


def ordered(store: Store, splits: Mapping[str, Split]) -> list[str]:
    """Return a recipe's splits in an order in which each comes after those whose ledger its filter reads.

    Raises:
        RecipeError: See `make_all`.
    """
    needed = {name: _needed(store, name, split, splits) for name, split in splits.items()}
    order: list[str] = []

    def visit(name: str, path: list[str]) -> None:
        if name in path:
            circle = " → ".join([*path[path.index(name) :], name])
            raise RecipeError(
                f"split {name} depends on its own ledger: {circle}; let each filter name the other splits that it reads, "
                "such as WHERE split = 'a'"
            )
        if name not in order:
            for dependency in needed[name]:
                visit(dependency, [*path, name])
            order.append(name)

    for name in splits:
        visit(name, [])
    return order


def _needed(store: Store, name: str, split: Split, splits: Mapping[str, Split]) -> list[str]:
    """List the recipe's splits whose ledger a filter may read."""
    read = _reads(*_bound(store, name, split)).splits
    if read is None:
        return [split_name for split_name in splits if split_name != name]
    known = {*splits, *store.split_records()}
    for absent in sorted(read - known):
        raise RecipeError(
            f"split {name} reads the ledger of split {absent!r}, and there is none; splits are: {', '.join(sorted(known))}"
        )
    return [split_name for split_name in splits if split_name in read]


def _reads(sql: str, values: Mapping[str, JsonValue]) -> dependencies.Reads:
    return dependencies.reads(sql, values) or dependencies.Reads(frozenset(views.VIEWS), None)


class Basis(NamedTuple):
    """What decides a split: its filter, and everything that the filter reads."""

    sql: str
    values: dict[str, JsonValue]
    ledgers: list[str]
    """The other splits whose rows of the ledger the filter reads."""
    reads: dict[str, JsonValue]
    """Fingerprints of the columns, and of the corpus and the other splits where the filter reads these."""
    fingerprint: str
    made_of: str
    """A hash of the shards' checksums: it changes when a shard is computed again to other values. Empty on object storage."""


def basis(store: Store, name: str, split: Split) -> Basis:
    """Return what decides a split, as the store is now.

    Raises:
        RecipeError: A parameter of the filter is missing, not used, or names no column.
    """
    sql, values = _bound(store, name, split)
    sources = _reads(sql, values)
    reads: dict[str, JsonValue] = {"inputs": _fingerprints(store)}
    checksums = [store.columns_checksum()]
    corpus = store.corpus_store if sources.views & {"corpus", "candidates"} else None
    if corpus is not None:
        reads["corpus"] = _fingerprints(corpus)
        checksums.append(corpus.columns_checksum())
    # No splits: the filter reads no ledger. None: it reads some, but which is not known, so that all of them count.
    records = store.split_records() if sources.splits != frozenset() else {}
    ledgers = [
        split_name
        for split_name in sorted(records)
        if split_name != name and (sources.splits is None or split_name in sources.splits)
    ]
    if sources.splits != frozenset():
        reads["ledger"] = {ledger: records[ledger]["fingerprint"] for ledger in ledgers}
        checksums += [shard.footer(store.path / "splits" / ledger / "ledger.parquet").checksum for ledger in ledgers]
    # Splits without such rules have the fingerprint that they had before there were any.
    rules: dict[str, JsonValue] = {"rules": _rules(split)} if split.rules else {}
    fingerprint = digest({"sql": sql, "values": values, **reads, **rules})
    # A part without a checksum lies on object storage.
    made_of = "" if "" in checksums else checksums[0] if len(checksums) == 1 else digest([*checksums])
    return Basis(sql, values, ledgers, reads, fingerprint, made_of)


def _is_current(record: Mapping[str, JsonValue], current: Basis) -> bool:
    """Tell whether a split was made of what the store holds now; on object storage only fingerprints are compared."""
    made_of = record.get("made_of")
    same_shards = not made_of or not current.made_of or made_of == current.made_of
    return record.get("fingerprint") == current.fingerprint and same_shards


def _fingerprints(store: Store) -> dict[str, JsonValue]:
    fingerprints: dict[str, JsonValue] = {**store.fingerprints(), "shards": len(store.shards)}
    return fingerprints if (appended := store.grown) is None else {**fingerprints, "appended rows": appended}


def changed(store: Store, name: str, split: Split) -> str | None:
    """Say in a few words why a split's ledger is out of date; None where its filter would give the same ledger now.

    Raises:
        RecipeError: See `basis`.
    """
    record = store.split_record(name)
    if not record:
        return "it was not made yet"
    if record["filter"] != split.filter:
        return "its filter was edited"
    recorded = record["parameters"]
    assert isinstance(recorded, dict)
    for key in {**recorded, **split.parameters}:
        if recorded.get(key) != split.parameters.get(key):
            return f"{key}: {json.dumps(recorded.get(key))} → {json.dumps(split.parameters.get(key))}"
    if record["format"] != split.format:
        return f"format: {record['format']} → {split.format}"
    for key in shaping.KEYS:
        if record.get(key) != (given := _rules(split).get(key)):
            return f"{key}: {json.dumps(record.get(key))} → {json.dumps(given)}"
    if record.get("order") != orders.written(split.order):
        return f"order: {_order_words(record.get('order'))} → {_order_words(orders.written(split.order))}"
    current = basis(store, name, split)
    if _is_current(record, current):
        return None
    if record["fingerprint"] != current.fingerprint:
        return _difference(record.get("reads"), current.reads)
    return "a shard that its filter reads was computed anew"


def stale(store: Store) -> dict[str, str]:
    """Return the splits whose ledger is out of date, each with what changed."""
    records, changes = store.split_records(), dict[str, str]()
    for name, record in records.items():
        parameters = record["parameters"]
        assert isinstance(parameters, dict)
        written = {key: record[key] for key in ("filter", "format", "order", *shaping.KEYS) if key in record}
        split = Split.model_validate({**parameters, **written})
        try:
            change = changed(store, name, split)
        except RecipeError as error:
            change = str(error).removeprefix(f"split {name}: ")
        if change is not None:
            changes[name] = change
    # A split that reads an out-of-date ledger is out of date, too. Each round follows one more link of such a chain.
    for _ in records:
        for name, record in records.items():
            reads = record.get("reads")
            ledger = reads.get("ledger") if isinstance(reads, dict) else None
            outdated = (
                [split_name for split_name in ledger if split_name in changes] if isinstance(ledger, dict) else []
            )
            if outdated and name not in changes:
                changes[name] = f"split {outdated[0]}, whose ledger it reads, is out of date"
    return changes


def _difference(recorded: JsonValue, current: Mapping[str, JsonValue]) -> str:
    """Name the first of a filter's inputs that changed."""
    if not isinstance(recorded, dict):
        return "what its filter reads was made anew"
    for kind, noun in (("inputs", "column"), ("ledger", "split"), ("corpus", "column")):
        old, new = recorded.get(kind), current.get(kind)
        old, new = old if isinstance(old, dict) else {}, new if isinstance(new, dict) else {}
        for key in {**old, **new}:
            if old.get(key) == new.get(key):
                continue
            owner = " of the corpus" if kind == "corpus" else ""
            if key in ("shards", "appended rows"):
                return f"there are other rows{owner} than there were"
            change = "is new" if key not in old else "is gone" if key not in new else "was made anew"
            return f"{noun} {key!r}{owner} {change}"
    return "what its filter reads was made anew"


def check_formats(splits: Mapping[str, Split], columns: Collection[str]) -> None:
    """Refuse splits that no export could write, before any model runs.

    Args:
        splits: By name.
        columns: Those of the source, and those that steps add.

    Raises:
        RecipeError: A split's format needs a column that is not among them.

    Example:
        >>> check_formats({"train": Split(filter="SELECT row_id FROM rows", format="sft")}, ["prompt", "response"])
    """
    sets = sorted(name for name in columns if name.startswith("worse_"))
    # The policy's own samples, and some probes, need not be worse: nobody should learn to avoid those that are right.
    worse = [name for name in sets if not is_undecided(name.removeprefix("worse_"))]
    for name, split in splits.items():
        needed = f"worse_{split.augment.variant}" if split.augment else ""
        if needed and needed not in sets:
            available = f"it has {', '.join(sets)}" if sets else "it has none"
            raise RecipeError(
                f"split {name}: augmentation needs the sample set {needed}, and {available}; add the step that makes it"
            )
        if split.format in ("sft", "preferences", "unpaired") and "response" not in columns:
            raise RecipeError(
                f"split {name}: format {split.format} needs golden responses, and the rows map no `response`; "
                "map a column, or make it `format: prompts`"
            )
        if split.format in ("preferences", "unpaired") and not worse:
            but = f" (answers in {', '.join(sets)} need not be worse)" if sets else ""
            raise RecipeError(
                f"split {name}: format {split.format} needs worse answers, and no step makes any{but}; "
                "add retrieve, generate or attack"
            )


def make(store: Store, name: str, split: Split) -> Made:
    """Run a split's filter and write its ledger; a ledger of the same filter and inputs is not written again.

    The ledgers that the filter reads must exist: see `make_all`.

    Raises:
        QueryError: The filter's SQL cannot be answered, or it returns no `row_id` or one twice.
    """
    current = basis(store, name, split)
    folder = store.path / "splits" / name
    recorded = store.split_record(name)
    if not _is_current(recorded, current):
        decided = decision.decide(store, name, current.sql, current.values, current.ledgers)
        shard.give_back()
        score = str(split.parameters.get("by", ""))
        noise = store.noise(score).get(score, 0.0)
        lines: list[JsonValue] = [
            *decision.report(decided, name, split.filter, {**split.parameters, **current.values}, noise)
        ]
        for rule in split.rules.values():
            decided, line = decision.shaped(decided, name, rule, _column(store, rule.by))
            warning = "warning: " if line.startswith("warning: ") else ""
            lines.append(f"{warning}split {name}: {line.removeprefix(warning)}")
        kept = int(decided.kept.sum())
        dropped = len(decided.kept) - kept
        lines.insert(0, f"split {name}: {kept:,} of {counted(kept + dropped, 'row')} kept")
        record: dict[str, JsonValue] = {
            "name": name,
            "filter": split.filter,
            "parameters": split.parameters,
            "format": split.format,
            "fingerprint": current.fingerprint,
            "reads": current.reads,
            "made_of": current.made_of,
            "kept": kept,
            "dropped": dropped,
            "lines": lines,
            **_settings(split),
        }
        replaceable = isinstance(folder, Path) and not folder.is_symlink()
        target: Place = folder
        if isinstance(folder, Path) and replaceable:
            target = folder.with_name(f".{name}.tmp")
            target.mkdir(parents=True)
        elif store.split_record(name):
            # Without its record a ledger is not read, so that nobody reads one that is half written.
            record_file(folder, "split.json").unlink(missing_ok=True)
        shard.write_parts(target / "ledger.parquet", views.LEDGER, decided.tables(name), current.fingerprint, 0)
        save_record(target / "_split.json", record)
        del decided
        shard.give_back()
        if replaceable and isinstance(folder, Path) and isinstance(target, Path):
            # A removal that is interrupted must not leave a record without its ledger.
            atomic.replace_folder(folder, target)
        recorded = record
    elif recorded["format"] != split.format or recorded.get("order") != orders.written(split.order):
        # The same rows in another format or order: the ledger stays.
        recorded = {**recorded, "format": split.format, "order": None, **_settings(split)}
        recorded = {key: value for key, value in recorded.items() if key != "order" or value is not None}
        save_record(record_file(folder, "split.json"), recorded)
    report = recorded["lines"]
    assert isinstance(report, list)
    return Made(name, int(str(recorded["kept"])), int(str(recorded["dropped"])), [str(line) for line in report])


def kept(store: Store, name: str, columns: Sequence[str]) -> Iterator[pa.Table]:
    """Iterate over the rows a split keeps, in its order, `row_id` first; columns not yet computed are NULL.

    A split without an order gives one table a shard.

    Raises:
        StaleError: A run changed the store meanwhile.
        DamagedError: A shard or the ledger is not the file that was written.
    """
    record, state = store.split_record(name), _state(store, name)
    file, fingerprint = store.path / "splits" / name / "ledger.parquet", str(record["fingerprint"])
    kept_rows = shard.read(file, fingerprint, 0, ["kept"])["kept"]
    tables = _kept(store, kept_rows, columns)
    if record.get("order") is not None:
        order = Order.model_validate(record["order"])
        names = [order.column] if order.column not in (None, "row_id") else []
        rows = pa.concat_tables(_kept(store, kept_rows, names), promote_options="permissive")
        ranks = orders.ranks(order, rows["row_id"].to_numpy(), rows[order.column] if order.column else None)
        tables = orders.reordered(tables, ranks)
    yield from tables
    if _state(store, name) != state:
        raise StaleError(
            f"{store.path} was changed while split {name} was read from it; wait for the run that works on it, and do "
            "the same again"
        )


def _kept(store: Store, kept_rows: pa.ChunkedArray, columns: Sequence[str]) -> Iterator[pa.Table]:
    """Iterate over the rows that a ledger keeps, in the source's order, one table a shard."""
    read, start = store.reader(columns, partial=True), 0
    for number in store.shards:
        rows = read(number)
        # The ledger's rows are the source's, in the same order.
        yield rows.filter(kept_rows.slice(start, rows.num_rows))
        start += rows.num_rows


def _settings(split: Split) -> dict[str, JsonValue]:
    """Return what a split's record says of its order and rules; nothing without them, as records were before."""
    return {**({} if split.order is None else {"order": orders.written(split.order)}), **_rules(split)}


def _rules(split: Split) -> dict[str, JsonValue]:
    return {key: rule.model_dump(mode="json") for key, rule in split.rules.items()}


def _column(store: Store, name: str) -> pa.ChunkedArray:
    """Return a column of all rows, in the source's order."""
    read = store.reader([name], partial=True)
    return pa.chunked_array(
        [chunk for number in store.shards for chunk in read(number)[name].chunks], _kinds(store)[name]
    )


def _order_words(order: JsonValue) -> str:
    return "the source's" if order is None else Order.model_validate(order).described


def _state(store: Store, name: str) -> JsonValue:
    """Return what another run would change in a split and its columns; see `Store.columns_checksum`."""
    record = store.split_record(name)
    return [record.get("fingerprint"), record.get("made_of"), _fingerprints(store), store.columns_checksum()]


def _kinds(store: Store) -> dict[str, pa.DataType]:
    """Return the types of the columns that a split may name."""
    return {column.name: column.kind for column in store.columns() if column.stale is None}


def _bound(store: Store, name: str, split: Split) -> tuple[str, dict[str, JsonValue]]:
    with decision.named(name):
        return split.bound([*_kinds(store)])
