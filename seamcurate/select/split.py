"""Splits: SQL chooses the rows, and a ledger says of every row what became of it and why.

A filter is one SELECT over the views. It returns `row_id` of the rows it keeps; or, with a boolean column
`keep`, rows it keeps and rows it drops, and then it may say for each the `rule`, the deciding `value` and the
`threshold`. In its text `{by}` stands for a column's name and `$rate` for a value, both given by the recipe.
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
from typing import Literal, NamedTuple

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
from pydantic import BaseModel, ConfigDict, Field, JsonValue, field_validator, model_validator

from seamcurate.data.source import Source
from seamcurate.errors import QueryError, RecipeError, StaleError
from seamcurate.select import dependencies, views
from seamcurate.select.connection import Answer, Connection, TooLargeError
from seamcurate.step import digest
from seamcurate.storage import objects, shard
from seamcurate.storage.objects import Place, local
from seamcurate.store.store import Store, filename, record_file, save_record
from seamcurate.text import brief, counted, suggestion

Format = Literal["prompts", "sft", "preferences", "unpaired", "prompt_ids"]

_PART = 32_768
_SECONDS = 3_600.0
"""How long a filter may take: a stranger's must end, and no one's on a million rows takes a minute."""
_DEFAULT = re.compile(r"^--\s*default\s+(\w+)\s*=\s*(.+?)\s*$", re.MULTILINE)
_NAME = re.compile(r"\{(\w+)\}")
_VALUE = re.compile(r"\$([A-Za-z_]\w*)")
_QUOTED = re.compile(r"'(?:[^']|'')*'|--[^\n]*")


class Augment(BaseModel):
    """Make new pairs of the rows a split keeps, for fine-tuning and for a reward model (SEAM App. G)."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    samples: int = Field(default=5, ge=1)
    """Pairs a row gives to each of the two data sets, of its nearest candidates."""
    variant: Literal["contrast", "gpt", "adv"] = "contrast"
    """The sample set they are made of. Only `contrast` has instructions I* of its own, and so pairs to fine-tune on."""
    pairs: Literal["golden", "both"] = "golden"
    """Preference pairs: `golden` is (I: r ≻ r*); `both` adds (I*: r* ≻ r)."""
    evaluation: Source | None = None
    """Questions that must not come out: neither a row that asks one, nor a neighbour."""

    @model_validator(mode="after")
    def _has_instructions(self) -> Augment:
        if self.pairs == "both" and self.variant != "contrast":
            raise ValueError(
                f"pairs: both needs other instructions, which only variant contrast has, not {self.variant}"
            )
        return self


class Split(BaseModel):
    """Name rows by a filter; every further key is a parameter of the filter."""

    model_config = ConfigDict(frozen=True, extra="allow")

    filter: str
    """The SELECT itself, or a `.sql` file, which is read: in the working folder, or one that comes with seamcurate."""
    format: Format = "prompts"
    """What `export` writes: prompts, sft (prompt and golden response), preferences or unpaired (golden response
    against each candidate), or prompt_ids (tokens, for TRL's own PPO up to 1.12)."""
    augment: Augment | None = None
    """Export new pairs made of the rows instead, as two data sets."""

    @field_validator("filter")
    @classmethod
    def _sql(cls, given: str) -> str:
        return read_filter(given, Path())

    @model_validator(mode="after")
    def _one_form(self) -> Split:
        if self.augment is not None and "format" in self.model_fields_set:
            raise ValueError("a split with `augment` is exported as sft and preferences; leave `format` out")
        return self

    @property
    def parameters(self) -> dict[str, JsonValue]:
        """Return the filter's parameters as given."""
        return dict(self.model_extra or {})

    def bound(self, columns: list[str]) -> tuple[str, dict[str, JsonValue]]:
        """Return the SQL with column names filled in, and the values to bind.

        Raises:
            RecipeError: A parameter is missing, not used, or names no column.
        """
        given: dict[str, JsonValue] = {key: _literal(value) for key, value in _DEFAULT.findall(self.filter)}
        given |= self.parameters
        code = _QUOTED.sub("", self.filter)
        names, values = set(_NAME.findall(code)), set(_VALUE.findall(code))
        missing = sorted((names | values) - set(given))
        unused = sorted(set(self.parameters) - names - values)
        if missing:
            raise RecipeError(f"the filter needs {', '.join(missing)}; give it as a key beside `filter`")
        if unused:
            raise RecipeError(
                f"the filter has no parameter {unused[0]!r}; it takes: {', '.join(sorted(names | values))}"
                f"{suggestion(unused[0], {*names, *values, *Split.model_fields})}"
            )
        for name in sorted(names):
            if given[name] not in columns:
                raise RecipeError(
                    f"{name}: {given[name]!r} is no column of this store; there are: {', '.join(columns)}"
                    f"{suggestion(given[name], columns)}"
                )
        sql = _NAME.sub(lambda m: views.quoted(str(given[m[1]])) if m[1] in names else m[0], self.filter)
        return sql.strip().rstrip(";"), {value: given[value] for value in values}


class Made(NamedTuple):
    """A split as it was made."""

    name: str
    kept: int
    dropped: int
    lines: list[str]
    """What a person should know of it."""


def read_filter(name: str, folder: Path) -> str:
    """Return a filter's SQL: of a file in `folder` or the working folder, of a bundled one, or the text itself.

    Raises:
        RecipeError: The file is not there.
    """
    if not is_file_name(name):
        return name
    for place in (folder / name, Path(name), *(one / Path(name).name for one in bundled())):
        if place.is_file():
            return place.read_text(encoding="utf-8")
    listed = sorted(file.name for one in bundled() for file in one.glob("*.sql"))
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
    return [one for one in (package / "recipes", package.parent / "recipes") if one.is_dir()]


def check(store: Store, splits: Mapping[str, Split]) -> None:
    """Ask a store whose columns are named, computed or not, whether these splits can be made of it.

    Raises:
        QueryError: A filter's SQL cannot be answered, or it returns no `row_id`.
        RecipeError: A parameter of a filter is missing, not used, or names no column; or see `make_all` and `check_formats`.
    """
    if not splits:
        return
    there = {column.name for column in store.columns() if column.made_by != "source"}
    check_formats(splits, there | set(store.stored_schema.names))
    with views.connect(store) as connection, views.limited(connection, _SECONDS, "ask for less in the filters"):
        for name, split in splits.items():
            bound = _bound(store, name, split)
            with _named(name):
                _described(connection, *bound)
    ordered(store, splits)


def make_all(store: Store, splits: Mapping[str, Split]) -> list[Made]:
    """Make a recipe's splits, each after those whose ledger its filter reads; see `make`.

    Raises:
        RecipeError: Two splits read each other's ledger, or one reads the ledger of a split that there is none of.
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
            for other in needed[name]:
                visit(other, [*path, name])
            order.append(name)

    for name in splits:
        visit(name, [])
    return order


def _needed(store: Store, name: str, split: Split, splits: Mapping[str, Split]) -> list[str]:
    """List the recipe's splits whose ledger a filter may read."""
    read = _reads(*_bound(store, name, split)).splits
    if read is None:
        return [other for other in splits if other != name]
    known = {*splits, *store.split_records()}
    for other in sorted(read - known):
        raise RecipeError(
            f"split {name} reads the ledger of split {other!r}, and there is none; splits are: {', '.join(sorted(known))}"
        )
    return [other for other in splits if other in read]


def _reads(sql: str, values: Mapping[str, JsonValue]) -> dependencies.Reads:
    return dependencies.reads(sql, values) or dependencies.Reads(frozenset(views.VIEWS), None)


class Basis(NamedTuple):
    """What decides a split: its filter, and everything that the filter reads."""

    sql: str
    values: dict[str, JsonValue]
    ledgers: list[str]
    """The other splits whose lines of the ledger the filter sees."""
    reads: dict[str, JsonValue]
    """Fingerprints of the columns, and of the corpus and the other splits where the filter reads these."""
    fingerprint: str
    made_of: str
    """A hash of the shards' checksums, which tell a shard that was computed anew to other values; empty on object storage."""


def basis(store: Store, name: str, split: Split) -> Basis:
    """Return what decides a split, as the store is now.

    Raises:
        RecipeError: A parameter of the filter is missing, not used, or names no column.
    """
    sql, values = _bound(store, name, split)
    found = _reads(sql, values)
    reads: dict[str, JsonValue] = {"inputs": _fingerprints(store)}
    seals = [store.seals()]
    corpus = store.corpus_store if found.views & {"corpus", "candidates"} else None
    if corpus is not None:
        reads["corpus"] = _fingerprints(corpus)
        seals.append(corpus.seals())
    records = store.split_records() if found.splits != frozenset() else {}
    ledgers = [other for other in sorted(records) if other != name and (found.splits is None or other in found.splits)]
    if found.splits != frozenset():
        reads["ledger"] = {other: records[other]["fingerprint"] for other in ledgers}
        seals += [shard.marks(store.path / "splits" / other / "ledger.parquet").seal for other in ledgers]
    fingerprint = digest({"sql": sql, "values": values, **reads})
    made_of = "" if "" in seals else seals[0] if len(seals) == 1 else digest([*seals])
    return Basis(sql, values, ledgers, reads, fingerprint, made_of)


def _is_of(record: Mapping[str, JsonValue], now: Basis) -> bool:
    """Tell whether a split was made of what is there now; on object storage by fingerprints alone."""
    made_of = record.get("made_of")
    return record.get("fingerprint") == now.fingerprint and (not made_of or not now.made_of or made_of == now.made_of)


def _fingerprints(store: Store) -> dict[str, JsonValue]:
    whole: dict[str, JsonValue] = {**store.fingerprints(), "shards": len(store.shards)}
    return whole if (grown := store.grown) is None else {**whole, "appended rows": grown}


def changed(store: Store, name: str, split: Split) -> str | None:
    """Say in a few words why a split's ledger is not what its filter gives now; None where it is.

    Raises:
        RecipeError: See `basis`.
    """
    record = store.split_record(name)
    if not record:
        return "it was not made yet"
    if record["filter"] != split.filter:
        return "its filter was edited"
    before = record["parameters"]
    assert isinstance(before, dict)
    for key in {**before, **split.parameters}:
        if before.get(key) != split.parameters.get(key):
            return f"{key}: {json.dumps(before.get(key))} → {json.dumps(split.parameters.get(key))}"
    if record["format"] != split.format:
        return f"format: {record['format']} → {split.format}"
    now = basis(store, name, split)
    if _is_of(record, now):
        return None
    if record["fingerprint"] != now.fingerprint:
        return _difference(record.get("reads"), now.reads)
    return "a shard that its filter reads was computed anew"


def stale(store: Store) -> dict[str, str]:
    """Return the splits whose ledger is not what their own filter gives now, each with what changed."""
    records, found = store.split_records(), dict[str, str]()
    for name, record in records.items():
        parameters = record["parameters"]
        assert isinstance(parameters, dict)
        split = Split.model_validate({**parameters, "filter": record["filter"], "format": record["format"]})
        try:
            why = changed(store, name, split)
        except RecipeError as error:
            why = str(error).removeprefix(f"split {name}: ")
        if why is not None:
            found[name] = why
    # Out of date is also what reads a ledger that is, however many splits lie between.
    for _ in records:
        for name, record in records.items():
            reads = record.get("reads")
            ledger = reads.get("ledger") if isinstance(reads, dict) else None
            spoiled = [other for other in ledger if other in found] if isinstance(ledger, dict) else []
            if spoiled and name not in found:
                found[name] = f"split {spoiled[0]}, whose ledger it reads, is out of date"
    return found


def _difference(before: JsonValue, after: Mapping[str, JsonValue]) -> str:
    """Say which of the things that a filter reads changed first."""
    if not isinstance(before, dict):
        return "what its filter reads was made anew"
    for kind, noun in (("inputs", "column"), ("ledger", "split"), ("corpus", "column")):
        old, new = before.get(kind), after.get(kind)
        old, new = old if isinstance(old, dict) else {}, new if isinstance(new, dict) else {}
        for key in {**old, **new}:
            if old.get(key) == new.get(key):
                continue
            of = " of the corpus" if kind == "corpus" else ""
            if key in ("shards", "appended rows"):
                return f"there are other rows{of} than there were"
            what = "is new" if key not in old else "is gone" if key not in new else "was made anew"
            return f"{noun} {key!r}{of} {what}"
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
    for name, split in splits.items():
        wanted = f"worse_{split.augment.variant}" if split.augment else ""
        if wanted and wanted not in sets:
            has = f"it has {', '.join(sets)}" if sets else "it has none"
            raise RecipeError(
                f"split {name}: augmentation needs the sample set {wanted}, and {has}; add the step that makes it"
            )
        if split.format in ("sft", "preferences", "unpaired") and "response" not in columns:
            raise RecipeError(
                f"split {name}: format {split.format} needs golden responses, and the rows map no `response`; "
                "map a column, or make it `format: prompts`"
            )
        if split.format in ("preferences", "unpaired") and not sets:
            raise RecipeError(
                f"split {name}: format {split.format} needs worse answers, and no step makes any; "
                "add retrieve, generate or attack"
            )


def make(store: Store, name: str, split: Split) -> Made:
    """Run a split's filter and keep its ledger; what is there for the same inputs is not made again.

    Other splits whose ledger the filter reads must be there: see `make_all`.

    Raises:
        QueryError: The filter's SQL cannot be answered, or it returns no `row_id` or one twice.
    """
    now = basis(store, name, split)
    folder = store.path / "splits" / name
    there = store.split_record(name)
    if not _is_of(there, now):
        ledger = _decide(store, name, now)
        shard.give_back()
        scored = ~np.isnan(ledger.values)
        undecided = ledger.returned & ~scored
        kept, valued, nulls = int(ledger.kept.sum()), int(scored.sum()), int(undecided.sum())
        dropped, null_kept = len(ledger.kept) - kept, int((undecided & ledger.kept).sum())
        dropped_by_value = int((scored & ~ledger.kept).sum())
        lines: list[JsonValue] = [f"split {name}: {kept:,} of {counted(kept + dropped, 'row')} kept"]
        if valued and nulls:
            lines.append(
                f"split {name}: {counted(nulls, 'row has', 'rows have')} no value to decide by; {null_kept:,} of them were kept, "
                f"{nulls - null_kept:,} dropped"
            )
        lines += _shortfall(name, now.values, dropped_by_value, valued)
        by = str(split.parameters.get("by", ""))
        lines += _by_chance(name, by, store.noise(by).get(by, 0.0), ledger)
        record: dict[str, JsonValue] = {
            "name": name,
            "filter": split.filter,
            "parameters": split.parameters,
            "format": split.format,
            "fingerprint": now.fingerprint,
            "reads": now.reads,
            "made_of": now.made_of,
            "kept": kept,
            "dropped": dropped,
            "lines": lines,
        }
        whole = isinstance(folder, Path) and not folder.is_symlink()
        beside: Place = folder
        if isinstance(folder, Path) and whole:
            beside = folder.with_name(f".{name}.tmp")
            beside.mkdir(parents=True)
        elif store.split_record(name):
            # Nobody looks for a ledger where no record is.
            record_file(folder, "split.json").unlink(missing_ok=True)
        shard.write_parts(beside / "ledger.parquet", views.LEDGER, ledger.tables(name), now.fingerprint, 0)
        save_record(beside / "_split.json", record)
        del ledger, scored, undecided
        shard.give_back()
        if whole and isinstance(folder, Path) and isinstance(beside, Path):
            # Renamed away whole first: a removal that is cut short must not leave a record without its ledger.
            doomed = folder.with_name(f".{name}.old.tmp")
            if folder.exists():
                folder.rename(doomed)
            beside.rename(folder)
            objects.remove_tree(doomed)
        there = record
    elif there["format"] != split.format:
        # The same rows in another form: the ledger stays.
        there = {**there, "format": split.format}
        save_record(record_file(folder, "split.json"), there)
    told = there["lines"]
    assert isinstance(told, list)
    return Made(name, int(str(there["kept"])), int(str(there["dropped"])), [str(line) for line in told])


def kept(store: Store, name: str, columns: Sequence[str]) -> Iterator[pa.Table]:
    """Iterate over the rows a split keeps, a table a shard, `row_id` first; what is not yet computed is NULL.

    Raises:
        StaleError: A run changed the store meanwhile.
        DamagedError: A shard or the ledger is not the file that was written.
    """
    folder = store.path / "splits" / name
    fingerprint, before = str(store.split_record(name)["fingerprint"]), _state(store, name)
    said = shard.read(folder / "ledger.parquet", fingerprint, 0, ["kept"])["kept"]
    read, start = store.reader(columns, partial=True), 0
    for number in store.shards:
        rows = read(number)
        # A ledger has the source's rows in their order.
        yield rows.filter(said.slice(start, rows.num_rows))
        start += rows.num_rows
    if _state(store, name) != before:
        raise StaleError(
            f"{store.path} was changed while split {name} was read from it; wait for the run that works on it, and do "
            "the same again"
        )


def _state(store: Store, name: str) -> JsonValue:
    """Return what another run would change of a split and its columns; see `Store.seals`."""
    record = store.split_record(name)
    return [record.get("fingerprint"), record.get("made_of"), _fingerprints(store), store.seals()]


class _Ledger(NamedTuple):
    """What became of each source row, in their order; a million rows in 14 MB."""

    row_ids: range | npt.NDArray[np.int64]
    returned: npt.NDArray[np.bool_]
    """Whether the filter said anything of the row."""
    kept: npt.NDArray[np.bool_]
    reasons: list[tuple[str, float]]
    """Rules with their thresholds, NaN where there is none."""
    reason: npt.NDArray[np.int32]
    """Which of them decided."""
    values: npt.NDArray[np.float64]
    """What it decided by, NaN where there is none."""

    def tables(self, split: str) -> Iterator[pa.Table]:
        """Yield the ledger as it is written, a part at a time."""
        rules = pa.array([rule for rule, _ in self.reasons])
        thresholds = np.array([threshold for _, threshold in self.reasons])
        for start in range(0, len(self.row_ids), _PART):
            part = slice(start, start + _PART)
            reason, values = self.reason[part], self.values[part]
            columns = [
                pa.array(np.asarray(self.row_ids[part], np.int64)),
                pa.repeat(split, len(reason)),
                pa.array(self.kept[part]),
                rules.take(pa.array(reason)),
                pa.array(values, mask=np.isnan(values)),
                pa.array(thresholds[reason], mask=np.isnan(thresholds[reason])),
            ]
            yield pa.table(columns, schema=views.LEDGER)

    def near(self, noise: float) -> npt.NDArray[np.bool_]:
        """Tell which rows' values lie within `noise` of their threshold."""
        thresholds = np.array([threshold for _, threshold in self.reasons])
        close: npt.NDArray[np.bool_] = np.abs(self.values - thresholds[self.reason]) <= noise
        return close


def _bound(store: Store, name: str, split: Split) -> tuple[str, dict[str, JsonValue]]:
    try:
        return split.bound([column.name for column in store.columns() if column.stale is None])
    except RecipeError as error:
        raise RecipeError(f"split {name}: {error}") from error


def _described(connection: Connection, sql: str, values: Mapping[str, JsonValue]) -> set[str]:
    """Return the names of the columns that a filter returns, `row_id` among them."""
    connection.check(sql)
    described = connection.execute(f"DESCRIBE {sql}", values).fetchall()
    returned = {str(row[0]) for row in described}
    if "row_id" not in returned:
        raise QueryError(f"its filter returns no row_id, only: {', '.join(sorted(returned))}")
    return returned


def _decide(store: Store, name: str, now: Basis) -> _Ledger:
    """Run a filter over the rows, in little memory if that is enough for its SQL."""
    spill = store.scratch / ".spill.tmp"
    try:
        return _decided(store, name, now, spill)
    except QueryError as error:
        if not isinstance(error, TooLargeError) and "Out of Memory" not in str(error):
            raise
        return _decided(store, name, now, None)
    finally:
        shutil.rmtree(spill, ignore_errors=True)


def _decided(store: Store, name: str, now: Basis, spill: Path | None) -> _Ledger:
    sql, values = now.sql, now.values
    files = [str(local(store.path / "rows" / filename(number))) for number in store.shards]
    instead = "the filter is too slow; join and compare less in it"
    # One thread, so that sums of fractions, and what is first of several, come out the same on every machine.
    with (
        _named(name),
        views.connect(store, spill, threads=1, ledgers=now.ledgers) as connection,
        views.limited(connection, _SECONDS, instead),
    ):
        returned = _described(connection, sql, values)

        def pick(column: str, otherwise: str) -> str:
            return column if column in returned else otherwise

        every, title = _row_ids(connection, files), _title(sql)
        first, count = int(every[0]), len(every)
        reasons: dict[tuple[str, float | None], int] = {(f"not returned by {title}", None): 0}
        said, kept = np.zeros(count, bool), np.zeros(count, bool)
        reason, decided_by = np.zeros(count, np.int32), np.full(count, np.nan)
        decided = views.run(
            connection,
            f"SELECT row_id::BIGINT AS row_id, coalesce({pick('keep', 'true')}, false)::BOOLEAN AS kept, "
            f"{pick('rule', 'NULL')}::VARCHAR AS rule, {pick('value', 'NULL')}::DOUBLE AS value, "
            f"{pick('threshold', 'NULL')}::DOUBLE AS threshold FROM (\n{sql}\n) WHERE row_id IS NOT NULL",
            values,
        )
        seen = 0
        for batch in _read(decided):
            ours = batch["row_id"].to_numpy()
            if isinstance(every, range):
                place, known = ours - first, (ours >= first) & (ours < first + count)
            else:
                place = np.clip(np.searchsorted(every, ours), 0, count - 1)
                known = every[place] == ours
            place, batch = place[known], batch.filter(pa.array(known))
            seen += len(place)
            said[place] = True
            kept[place] = batch["kept"].to_numpy(zero_copy_only=False)
            decided_by[place] = batch["value"].to_numpy(zero_copy_only=False)
            rule = pc.fill_null(batch["rule"], title).dictionary_encode()
            threshold, of = np.unique(batch["threshold"].to_numpy(zero_copy_only=False), return_inverse=True)
            pairs, which = np.unique(rule.indices.to_numpy() * len(threshold) + of, return_inverse=True)
            codes = [
                reasons.setdefault(
                    (rule.dictionary[r].as_py(), None if np.isnan(threshold[t]) else threshold[t]), len(reasons)
                )
                for r, t in (divmod(int(pair), len(threshold)) for pair in pairs)
            ]
            reason[place] = np.array(codes, np.int32)[which]
    if int(said.sum()) != seen:
        raise QueryError(f"split {name}: its filter returns some row_id more than once; make it one line per row")
    named = [(rule, math.nan if threshold is None else float(threshold)) for rule, threshold in reasons]
    return _Ledger(every, said, kept, named, reason, decided_by)


def _row_ids(connection: Connection, files: list[str]) -> range | npt.NDArray[np.int64]:
    """Read the source rows' ids, ascending; a range where none was set aside."""
    source = views.parquet(files)
    ((low, high, count),) = connection.execute(f"SELECT min(row_id), max(row_id), count(*) FROM {source}").fetchall()
    if int(str(high)) - int(str(low)) + 1 == count:
        return range(int(str(low)), int(str(high)) + 1)
    batches = connection.execute(f"SELECT row_id FROM {source}")
    return np.concatenate([batch["row_id"].to_numpy() for batch in batches])


@contextmanager
def _named(split: str) -> Iterator[None]:
    """Say of which split's filter an error is."""
    try:
        yield
    except TooLargeError as error:
        raise TooLargeError(f"split {split}: {error}") from error
    except QueryError as error:
        raise QueryError(f"split {split}: {error}") from error


def _read(answer: Answer) -> Iterator[pa.RecordBatch]:
    """Iterate over an answer in parts: DuckDB's own are so small that handling each costs more than the query."""
    held: list[pa.RecordBatch] = []
    for batch in answer:
        held.append(batch)
        if sum(part.num_rows for part in held) >= _PART:
            yield pa.concat_batches(held)
            held = []
    if held:
        yield pa.concat_batches(held)


def _shortfall(name: str, values: Mapping[str, JsonValue], dropped: int, valued: int) -> list[JsonValue]:
    """Warn when a filter by rate could not drop as many rows as asked, since the rest have nothing wrong."""
    rate = values.get("rate")
    if not isinstance(rate, float | int) or not dropped:
        return []
    asked = -int(-(rate * valued) // 1)
    if dropped >= asked:
        return []
    return [
        f"split {name}: only {dropped:,} rows were dropped where rate {rate:g} asks for {asked:,}: the others have no discrepancy"
    ]


def _by_chance(name: str, by: str, noise: float, ledger: _Ledger) -> list[JsonValue]:
    """Warn of a threshold that cuts inside the noise of the score."""
    if not noise:
        return []
    near = ledger.near(noise)
    kept, dropped = int((near & ledger.kept).sum()), int((near & ~ledger.kept).sum())
    if not kept or not dropped:
        return []
    return [
        f"warning: split {name}: the threshold cuts inside the noise of {by} (±{noise:.2g}): {kept:,} rows kept and "
        f"{dropped:,} dropped lie so close to it that another batch size could swap them"
    ]


def _title(sql: str) -> str:
    first = next((line for line in sql.splitlines() if line.strip()), "")
    return first.removeprefix("--").strip().rstrip(".") if first.startswith("--") else "the filter"


def _literal(text: str) -> JsonValue:
    """Read a default as recipes write values: a plain one, or a list of such; a date is its text.

    Raises:
        RecipeError: It is neither.
    """
    import yaml

    try:
        value = yaml.safe_load(text)
    # A number of too many digits, a day that is in no month; lists in lists in lists.
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        raise RecipeError(f"the filter's default {brief(text, 80)!r} cannot be read; write a value as YAML") from error
    each = [str(one) if isinstance(one, date) else one for one in (value if isinstance(value, list) else [value])]
    if not all(one is None or isinstance(one, str | int | float) for one in each):
        raise RecipeError(f"the filter's default {brief(text, 80)!r} is neither a plain value nor a list of them")
    return each if isinstance(value, list) else each[0]
