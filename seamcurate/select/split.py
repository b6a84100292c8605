"""Splits: SQL chooses the rows, and a ledger records for every row whether it was kept, and why.

A filter is one SELECT over the views. It returns the `row_id` of the rows it keeps. With a boolean column `keep` it
returns rows that it keeps and rows that it drops; then it may also return for each the `rule`, the deciding `value` and
the `threshold`. In its text `{by}` stands for a column's name and `$rate` for a value; the recipe gives both.
"""

from __future__ import annotations

import json
import math
import re
import shutil
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import date
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
from pydantic import BaseModel, ConfigDict, Field, JsonValue, field_validator, model_validator

from seamcurate.data.source import Source
from seamcurate.errors import QueryError, RecipeError, StaleError
from seamcurate.select import controls, dependencies, shaping, views
from seamcurate.select import order as orders
from seamcurate.select.controls import Control
from seamcurate.select.order import Order
from seamcurate.select.shaping import AtMost, Balance, Distribution
from seamcurate.sql.connection import Connection, QueryResult, TooLargeError
from seamcurate.step import Variant, digest, is_undecided, sample_set
from seamcurate.storage import atomic, shard
from seamcurate.storage.objects import Place, local
from seamcurate.store.folder import filename, record_file, save_record
from seamcurate.store.store import Store
from seamcurate.text import brief, counted, suggestion

Format = Literal["prompts", "sft", "preferences", "unpaired", "prompt_ids"]

_PART = 32_768
_SECONDS = 3_600.0
"""How long a filter may take. A stranger's filter must end; the bundled ones take less than a minute on a million rows."""
_DEFAULT = re.compile(
    r"^--\s*default\s+(\w+)\s*=\s*(.+?)(?:\s+\((?:from (-?[\d.]+) to (-?[\d.]+)|or (\w+))\))?\s*$", re.MULTILINE
)
"""A parameter's default, and the values that it takes: a number in a range, or one of two words."""
_NAME = re.compile(r"\{(\w+)\}")
_VALUE = re.compile(r"\$([A-Za-z_]\w*)")
_QUOTED = re.compile(r"'(?:[^']|'')*'|--[^\n]*")


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
        return read_filter(filter, Path())

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
        defaults = _DEFAULT.findall(self.filter)
        parameters: dict[str, JsonValue] = {key: _literal(value) for key, value, *_ in defaults} | self.parameters
        code = _QUOTED.sub("", self.filter)
        names, values = set(_NAME.findall(code)), set(_VALUE.findall(code))
        missing = sorted((names | values) - set(parameters))
        unused = sorted(set(self.parameters) - names - values)
        if missing:
            raise RecipeError(f"the filter needs {', '.join(missing)}; give it as a key beside `filter`")
        if unused:
            raise RecipeError(
                f"the filter has no parameter {unused[0]!r}; it takes: {', '.join(sorted(names | values))}"
                f"{suggestion(unused[0], {*names, *values, *Split.model_fields})}"
            )
        for key, default, low, high, word in defaults:
            _check_value(key, parameters[key], (low, high), (default, word))
        for name in sorted(names):
            if parameters[name] not in columns:
                raise RecipeError(
                    f"{name}: {parameters[name]!r} is no column of this store; there are: {', '.join(columns)}"
                    f"{suggestion(parameters[name], columns)}"
                )
        sql = _NAME.sub(lambda m: views.quoted(str(parameters[m[1]])) if m[1] in names else m[0], self.filter)
        return sql.strip().rstrip(";"), {value: parameters[value] for value in values}


def _check_value(name: str, value: JsonValue, limits: tuple[str, str], words: tuple[str, str]) -> None:
    """Refuse a parameter's value that its filter does not take; limits and words are empty where it takes any.

    Raises:
        RecipeError: The value is outside the limits, or none of the two words.
    """
    low, high = limits
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    if low and not (is_number and float(low) <= float(str(value)) <= float(high)):
        raise RecipeError(f"{name}: {value!r} is no number from {low} to {high}")
    if words[1] and value not in words:
        raise RecipeError(f"{name}: {value!r} is neither {words[0]} nor {words[1]}")


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


def read_filter(name: str, folder: Path) -> str:
    """Return a filter's SQL: of a file in `folder` or the working folder, of a bundled one, or the text itself.

    Raises:
        RecipeError: The file is not there.
    """
    if not is_file_name(name):
        return name
    for file in (folder / name, Path(name), *(recipes / Path(name).name for recipes in bundled())):
        if file.is_file():
            return file.read_text(encoding="utf-8")
    listed = sorted(file.name for recipes in bundled() for file in recipes.glob("*.sql"))
    raise RecipeError(
        f"no filter {name!r} in {folder} or here; bundled are: {', '.join(listed)}{suggestion(Path(name).name, listed)}"
    )


def is_file_name(filter: str) -> bool:
    """Tell whether a filter is a `.sql` file's name, and not SQL that ends in one."""
    text = filter.strip()
    return (
        text.endswith(".sql")
        and "\n" not in text
        and not re.match(r"(select|with|from)\s|--|/\*|\(", text, re.IGNORECASE)
    )


def bundled() -> list[Path]:
    """Return the folder of bundled recipes: inside an installed package, or beside it in a checkout."""
    package = Path(__file__).parents[1]
    return [folder for folder in (package / "recipes", package.parent / "recipes") if folder.is_dir()]


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
    with views.connect(store) as connection, views.limited(connection, _SECONDS, "ask for less in the filters"):
        for name, split in splits.items():
            bound = _bound(store, name, split)
            with _named(name):
                _described(connection, *bound)
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
        ledger = _decide(store, name, current)
        shard.give_back()
        scored = ~np.isnan(ledger.values)
        undecided = ledger.returned & ~scored
        valued, nulls = int(scored.sum()), int(undecided.sum())
        null_kept = int((undecided & ledger.kept).sum())
        dropped_by_value = int((scored & ~ledger.kept).sum())
        lines: list[JsonValue] = []
        if valued and nulls:
            lines.append(
                f"split {name}: {counted(nulls, 'row has', 'rows have')} no value to decide by; {null_kept:,} of them {'was' if null_kept == 1 else 'were'} kept, "
                f"{nulls - null_kept:,} dropped"
            )
        lines += _unmatched(name, ledger)
        lines += _shortfall(name, current.values, dropped_by_value, valued)
        score = str(split.parameters.get("by", ""))
        lines += _backwards(name, split, score)
        lines += _within_noise(name, score, store.noise(score).get(score, 0.0), ledger)
        for rule in split.rules.values():
            ledger, line = _shaped(store, name, rule, ledger)
            warning = "warning: " if line.startswith("warning: ") else ""
            lines.append(f"{warning}split {name}: {line.removeprefix(warning)}")
        kept = int(ledger.kept.sum())
        dropped = len(ledger.kept) - kept
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
        shard.write_parts(target / "ledger.parquet", views.LEDGER, ledger.tables(name), current.fingerprint, 0)
        save_record(target / "_split.json", record)
        del ledger, scored, undecided
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


class _Ledger(NamedTuple):
    """One entry a source row, in the source's order: 11 MB for a million rows, unless it has more than 255 rules."""

    row_ids: range | npt.NDArray[np.int64]
    returned: npt.NDArray[np.bool_]
    """Whether the filter returned the row."""
    kept: npt.NDArray[np.bool_]
    reasons: list[tuple[str, float]]
    """Rules with their thresholds; NaN for a rule without one."""
    reason: npt.NDArray[np.integer[Any]]
    """The index in `reasons` of the rule that decided; see `_wide_enough`."""
    values: npt.NDArray[np.float64]
    """The value that decided; NaN where there is none."""
    foreign: list[int]
    """Ids that the filter returned and no row has: how many, and, where there are any, one of them."""
    null_keeps: int
    """Rows whose `keep` was NULL, which drops them."""

    def tables(self, split: str) -> Iterator[pa.Table]:
        """Yield the ledger's tables in the schema of its file, `_PART` rows at a time."""
        # Rules are few: a row holds the index of its rule, and the texts are taken only for the part that is written.
        rules = pa.array([rule for rule, _ in self.reasons])
        thresholds = np.array([threshold for _, threshold in self.reasons])
        for start in range(0, len(self.row_ids), _PART):
            span = slice(start, start + _PART)
            reason, values = self.reason[span], self.values[span]
            columns = [
                pa.array(np.asarray(self.row_ids[span], np.int64)),
                pa.repeat(split, len(reason)),
                pa.array(self.kept[span]),
                rules.take(pa.array(reason)),
                pa.array(values, mask=np.isnan(values)),
                pa.array(thresholds[reason], mask=np.isnan(thresholds[reason])),
            ]
            yield pa.table(columns, schema=views.LEDGER)

    def near(self, noise: float) -> npt.NDArray[np.bool_]:
        """Return a mask of the rows whose value lies within `noise` of their threshold."""
        thresholds = np.array([threshold for _, threshold in self.reasons])
        close: npt.NDArray[np.bool_] = np.abs(self.values - thresholds[self.reason]) <= noise
        return close


def _kinds(store: Store) -> dict[str, pa.DataType]:
    """Return the types of the columns that a split may name."""
    return {column.name: column.kind for column in store.columns() if column.stale is None}


def _bound(store: Store, name: str, split: Split) -> tuple[str, dict[str, JsonValue]]:
    with _named(name):
        return split.bound([*_kinds(store)])


def _shaped(store: Store, name: str, rule: shaping.Rule, ledger: _Ledger) -> tuple[_Ledger, str]:
    """Return a ledger after a rule has dropped rows of it, and what the rule did in a line."""
    kept = np.flatnonzero(ledger.kept)
    row_ids = np.asarray(ledger.row_ids, np.int64)[kept]
    with _named(name):
        shaped = shaping.apply(rule, row_ids, kept, _column(store, rule.by).take(pa.array(kept)))
    reasons = [*ledger.reasons]
    ledger = ledger._replace(reason=_wide_enough(ledger.reason, len(reasons) + len(shaped.drops)))
    for drop in shaped.drops:
        if len(drop.rows):
            ledger.kept[drop.rows] = False
            ledger.reason[drop.rows] = len(reasons)
            ledger.values[drop.rows] = np.nan if drop.values is None else drop.values
            reasons.append((drop.rule, math.nan))
    return ledger._replace(reasons=reasons), shaped.line


def _described(connection: Connection, sql: str, values: Mapping[str, JsonValue]) -> set[str]:
    """Return the names of the columns that a filter returns, `row_id` among them."""
    connection.check(sql)
    described = connection.execute(f"DESCRIBE {sql}", values).fetchall()
    returned = {str(row[0]) for row in described}
    if "row_id" not in returned:
        raise QueryError(f"its filter returns no row_id, only: {', '.join(sorted(returned))}")
    return returned


def _decide(store: Store, name: str, current: Basis) -> _Ledger:
    """Run a filter over the rows, first with little memory, and without that limit where its SQL needs more."""
    spill = store.scratch / ".spill.tmp"
    try:
        return _decided(store, name, current, spill)
    except QueryError as error:
        if not isinstance(error, TooLargeError) and "Out of Memory" not in str(error):
            raise
        return _decided(store, name, current, None)
    finally:
        shutil.rmtree(spill, ignore_errors=True)


def _decided(store: Store, name: str, current: Basis, spill: Path | None) -> _Ledger:
    sql, values = current.sql, current.values
    files = [str(local(store.path / "rows" / filename(number)).absolute()) for number in store.shards]
    instead = "the filter is too slow; join and compare less in it"
    # With one thread, sums of floats and the order of ties are the same on every machine.
    with (
        _named(name),
        views.connect(store, spill, threads=1, ledgers=current.ledgers) as connection,
        views.limited(connection, _SECONDS, instead),
    ):
        returned = _described(connection, sql, values)

        def pick(column: str, default: str) -> str:
            return column if column in returned else default

        row_ids, title = _row_ids(connection, files), _title(sql)
        lowest, count = int(row_ids[0]), len(row_ids)
        # Reason 0 is that of every row which the filter does not return. None, not NaN, which equals no other NaN.
        reasons: dict[tuple[str, float | None], int] = {(f"not returned by {title}", None): 0}
        answered, kept = np.zeros(count, bool), np.zeros(count, bool)  # (source rows,), as all the arrays of the ledger
        reason: npt.NDArray[np.integer[Any]] = np.zeros(count, np.uint8)
        decided_by = np.full(count, np.nan)
        decided = views.run(
            connection,
            f"SELECT row_id::BIGINT AS row_id, coalesce({pick('keep', 'true')}, false)::BOOLEAN AS kept, "
            f"{pick('keep', 'true')} IS NULL AS null_keep, "
            f"{pick('rule', 'NULL')}::VARCHAR AS rule, {pick('value', 'NULL')}::DOUBLE AS value, "
            f"{pick('threshold', 'NULL')}::DOUBLE AS threshold FROM (\n{sql}\n) WHERE row_id IS NOT NULL",
            values,
        )
        returned_rows = null_keeps = 0
        foreign: list[int] = []
        for batch in _read(decided):
            batch_ids = batch["row_id"].to_numpy()
            # Where each row of the batch lies in the ledger; ids that are not the source's are left out, and counted.
            if isinstance(row_ids, range):
                index, valid = batch_ids - lowest, (batch_ids >= lowest) & (batch_ids < lowest + count)
            else:
                index = np.clip(np.searchsorted(row_ids, batch_ids), 0, count - 1)
                valid = row_ids[index] == batch_ids
            if not valid.all():
                foreign = [int((~valid).sum()) + sum(foreign[:1]), int(batch_ids[~valid][0])]
            index, batch = index[valid], batch.filter(pa.array(valid))
            returned_rows += len(index)
            null_keeps += pc.sum(batch["null_keep"]).as_py() or 0
            answered[index] = True
            kept[index] = batch["kept"].to_numpy(zero_copy_only=False)
            decided_by[index] = batch["value"].to_numpy(zero_copy_only=False)
            # Rules and thresholds as whole numbers, each with the list of its distinct values.
            rule = pc.fill_null(batch["rule"], title).dictionary_encode()
            threshold, threshold_index = np.unique(
                batch["threshold"].to_numpy(zero_copy_only=False), return_inverse=True
            )
            # A pair of rule and threshold as one number, so that each distinct pair is looked up once a batch.
            pairs, pair_index = np.unique(
                rule.indices.to_numpy() * len(threshold) + threshold_index, return_inverse=True
            )
            codes = [
                reasons.setdefault(
                    (rule.dictionary[r].as_py(), None if np.isnan(threshold[t]) else threshold[t]), len(reasons)
                )
                for r, t in (divmod(int(pair), len(threshold)) for pair in pairs)
            ]
            reason = _wide_enough(reason, len(reasons))
            # From the batch's own pairs to the ledger's reasons.
            reason[index] = np.array(codes, np.int32)[pair_index]
    # A row that is returned twice was counted twice, and marked once.
    if int(answered.sum()) != returned_rows:
        raise QueryError(f"split {name}: its filter returns some row_id more than once; make it one line per row")
    named = [(rule, math.nan if threshold is None else float(threshold)) for rule, threshold in reasons]
    return _Ledger(row_ids, answered, kept, named, reason, decided_by, foreign, null_keeps)


def _wide_enough(reason: npt.NDArray[np.integer[Any]], count: int) -> npt.NDArray[np.integer[Any]]:
    """Return indices in a type that holds `count` of them: most filters have a handful, and the rows are millions."""
    return reason if count <= np.iinfo(reason.dtype).max + 1 else reason.astype(np.int32)


def _row_ids(connection: Connection, files: list[str]) -> range | npt.NDArray[np.int64]:
    """Read the source rows' ids, ascending; a range where none was set aside."""
    source = views.parquet(files)
    ((low, high, count),) = connection.execute(f"SELECT min(row_id), max(row_id), count(*) FROM {source}").fetchall()
    # A range needs no memory, and finds a row by subtraction.
    if int(str(high)) - int(str(low)) + 1 == count:
        return range(int(str(low)), int(str(high)) + 1)
    batches = connection.execute(f"SELECT row_id FROM {source}")
    return np.concatenate([batch["row_id"].to_numpy() for batch in batches])


@contextmanager
def _named(split: str) -> Iterator[None]:
    """Name the split in the message of an error."""
    try:
        yield
    except RecipeError as error:
        raise RecipeError(f"split {split}: {error}") from error
    except TooLargeError as error:
        raise TooLargeError(f"split {split}: {error}") from error
    except QueryError as error:
        raise QueryError(f"split {split}: {error}") from error


def _read(answer: QueryResult) -> Iterator[pa.RecordBatch]:
    """Iterate over an answer in larger batches: DuckDB's are so small that handling each costs more than the query."""
    held: list[pa.RecordBatch] = []
    for batch in answer:
        held.append(batch)
        if sum(batch.num_rows for batch in held) >= _PART:
            yield pa.concat_batches(held)
            held = []
    if held:
        yield pa.concat_batches(held)


def _unmatched(name: str, ledger: _Ledger) -> list[JsonValue]:
    """Report ids that no row has, and rows that were dropped because nothing decided about them."""
    lines: list[JsonValue] = []
    if ledger.foreign:
        count, example = ledger.foreign
        lines.append(
            f"warning: split {name}: its filter returned {counted(count, 'row_id')} that no row of the store has, such as "
            f"{example}; they count for nothing"
        )
    if ledger.null_keeps:
        lines.append(
            f"split {name}: {counted(ledger.null_keeps, 'row has', 'rows have')} a `keep` that is NULL, and "
            f"{'was' if ledger.null_keeps == 1 else 'were'} dropped"
        )
    return lines


def _shortfall(name: str, values: Mapping[str, JsonValue], dropped: int, valued: int) -> list[JsonValue]:
    """Report a filter by rate that dropped fewer rows than the rate asks for, since the others have no discrepancy."""
    rate = values.get("rate")
    if not isinstance(rate, float | int) or not dropped:
        return []
    # Rounded up, as the filters do it: 7 % of 100 rows is 7.000000000000001 in binary, and means 7.
    intended = math.ceil(round(rate * valued, 6))
    if dropped >= intended:
        return []
    return [
        f"split {name}: only {dropped:,} rows were dropped where rate {rate:g} asks for {intended:,}: the others have no discrepancy"
    ]


_SUSPECTED_HIGH = ("discrepancy_", "misjudged_", "baseline_calibrated_")
"""How the names of columns begin that are high where the reward is wrong."""
_OF_LOWEST = {"keep_above_lowest.sql": "drops", "lowest.sql": "keeps"}
"""What bundled filters do with the lowest values."""


def _backwards(name: str, split: Split, score: str) -> list[JsonValue]:
    """Warn where a bundled filter takes the rows that are judged best for the worst."""
    if not score.startswith(_SUSPECTED_HIGH):
        return []
    texts = {
        (folder / file).read_text(encoding="utf-8").strip(): verb
        for folder in bundled()
        for file, verb in _OF_LOWEST.items()
    }
    verb = texts.get(split.filter.strip())
    if verb is None:
        return []
    variant = score.rpartition("_")[2]
    return [
        f"warning: split {name}: {score} is high where the reward is wrong, and this filter {verb} its lowest values, the rows "
        f"that are judged best; give `by: seam_{variant}`, or a filter of the highest values"
    ]


def _within_noise(name: str, score: str, noise: float, ledger: _Ledger) -> list[JsonValue]:
    """Warn where rows on both sides of the threshold lie within the score's noise of it."""
    if not noise:
        return []
    near = ledger.near(noise)
    kept, dropped = int((near & ledger.kept).sum()), int((near & ~ledger.kept).sum())
    if not kept or not dropped:
        return []
    return [
        f"warning: split {name}: the threshold cuts inside the noise of {score} (±{noise:.2g}): {kept:,} rows kept and "
        f"{dropped:,} dropped lie so close to it that another batch size, or a judge's next draw, could swap them"
    ]


def _title(sql: str) -> str:
    """Return the comment in a filter's first line: what rows that the filter does not return were dropped by."""
    line = next((line for line in sql.splitlines() if line.strip()), "")
    return line.removeprefix("--").strip().rstrip(".") if line.startswith("--") else "the filter"


def _literal(text: str) -> JsonValue:
    """Read a default as YAML: a plain value, or a list of plain values; a date is read as text.

    Raises:
        RecipeError: It is neither.
    """
    import yaml

    try:
        value = yaml.safe_load(text)
    # ValueError: a number of too many digits, or no day of the calendar. RecursionError: lists nested too deeply.
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        raise RecipeError(f"the filter's default {brief(text, 80)!r} cannot be read; write a value as YAML") from error
    values = value if isinstance(value, list) else [value]
    plain = [str(element) if isinstance(element, date) else element for element in values]
    if not all(element is None or isinstance(element, str | int | float) for element in plain):
        raise RecipeError(f"the filter's default {brief(text, 80)!r} is neither a plain value nor a list of them")
    return plain if isinstance(value, list) else plain[0]
