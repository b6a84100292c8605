"""Compare two runs: which inputs differ, and which rows moved between kept and dropped because of it.

Each side is a store, or a data set that was pushed to the Hub. Of a data set, only the facts and the ledgers are read.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from importlib.metadata import version
from pathlib import Path
from typing import NamedTuple

import pyarrow as pa
import pyarrow.parquet as pq
from pydantic import JsonValue

from seamcurate.errors import HubError
from seamcurate.publish import facts, hub
from seamcurate.select import views
from seamcurate.select.split import stale
from seamcurate.storage import shard
from seamcurate.store.store import Store
from seamcurate.text import brief, clean

_SHOWN_ROWS = 5
_REASON_WIDTH = 300
"""Most characters of a reason: a filter may name a rule by any text of a row."""


class Input(NamedTuple):
    """An input of scores or splits that differs between the two sides."""

    what: str
    before: str
    after: str
    steps: tuple[str, ...]
    """The steps that use it; empty for rows, corpus and filters."""

    def line(self) -> str:
        """Describe the change in one line."""
        step_note = f" (steps {', '.join(self.steps)})" if self.steps else ""
        return f"{self.what}: {self.before} → {self.after}{step_note}"


class Moves(NamedTuple):
    """The rows of one split that are kept, dropped or absent on one side and not on the other."""

    split: str
    before: str
    """How many rows the first side kept, such as "32 of 40"; empty where it has no such split."""
    after: str
    """The same for the second side."""
    rows: pa.Table
    """One row for each source row that moved: row_id; kept, rule, value and threshold of both sides; why."""

    def lines(self) -> Iterator[str]:
        """Yield a line for each direction and reason of the moves, the most frequent first."""
        if not self.before or not self.after:
            yield f"split {self.split}: only on the {'second' if self.after else 'first'} side"
            return
        yield f"split {self.split}: {self.before} rows kept, then {self.after}; {self.rows.num_rows:,} rows moved"
        sql = (
            "SELECT kept_before, kept_after, why, count(*) AS n, list(row_id ORDER BY row_id)[:$shown] AS row_ids FROM moved "
            "GROUP BY ALL ORDER BY n DESC, why"
        )
        with views.in_memory() as connection:
            connection.register("moved", self.rows)
            groups = connection.execute(sql, {"shown": _SHOWN_ROWS}).fetchall()
        for kept_before, kept_after, reason, count, row_ids in groups:
            direction = f"{_state(kept_before)} → {_state(kept_after)}"
            listed_ids = ", ".join(map(str, row_ids)) + (", …" if count > len(row_ids) else "")
            yield f"  {direction}: {count:,}, {brief(reason, _REASON_WIDTH)}; rows {listed_ids}"


class Difference(NamedTuple):
    """How two runs differ."""

    inputs: list[Input]
    """What decides the splits and is not the same in both: sources, models, steps, filters."""
    splits: list[Moves]
    """For each split, the rows that one run keeps and the other does not, by rule."""
    notes: list[str]
    """Lines for a person: what is out of date or cannot be compared."""

    def lines(self) -> Iterator[str]:
        """Yield the notes, the inputs that differ, and the moves of each split, as lines of text."""
        yield from self.notes
        yield "inputs that differ:" if self.inputs else "no input differs"
        yield from (f"  {clean(entry.line())}" for entry in self.inputs)
        for split in self.splits:
            yield from split.lines()


class _Side(NamedTuple):
    """One of the two runs."""

    run_facts: Mapping[str, JsonValue]
    ledgers: dict[str, pa.Table]
    notes: list[str]


def diff(before: str | Path, after: str | Path) -> Difference:
    """Explain which rows two runs keep differently, by rule and by model.

    Args:
        before: The first run: a store's folder, or a data set's id on the Hub.
        after: The second run, named the same way.

    Raises:
        HubError: A data set cannot be read, or was not pushed by seamcurate.
        StoreError: A folder holds no store.

    Example:
        >>> from seamcurate import diff
        >>> print(*diff("store-of-monday", "store-of-friday").lines(), sep=chr(10))  # doctest: +SKIP
    """
    first_side, second_side = _side(before), _side(after)
    inputs = changed_inputs(first_side.run_facts, second_side.run_facts)
    notes = [*first_side.notes, *second_side.notes]
    if first_side.run_facts.get("source") != second_side.run_facts.get("source"):
        notes.append("the rows come from different sources: a row's id is its place, so rows are compared by place")
    upstream = _upstream(second_side.run_facts)
    names = dict.fromkeys([*first_side.ledgers, *second_side.ledgers])
    return Difference(inputs, [_moves(name, first_side, second_side, inputs, upstream) for name in names], notes)


def _side(location: str | Path) -> _Side:
    """Read the facts and the ledgers of a store, or of a data set on the Hub."""
    if Path(location).is_dir() or not isinstance(location, str) or location.count("/") != 1:
        return _store_side(Store(location).open(), location)
    return _hub_side(location)


def _store_side(store: Store, location: str | Path) -> _Side:
    records = store.split_records()
    names = sorted(records)
    run_facts = facts.facts(store, names, "", version("seamcurate"))
    notes = [f"{location}: split {name} is out of date: {reason}" for name, reason in stale(store).items()]
    ledgers = {
        name: shard.read(store.path / "splits" / name / "ledger.parquet", str(records[name]["fingerprint"]), 0)
        for name in names
    }
    return _Side(run_facts, ledgers, notes)


def _hub_side(repo_id: str) -> _Side:
    repository = hub.repository(repo_id)
    run_facts = repository.facts()
    ledgers = {}
    for name in _mapping(run_facts.get("splits")):
        try:
            ledgers[name] = pq.read_table(repository.fetch(f"ledger/{name}.parquet"), partitioning=None)
        except (OSError, pa.ArrowException) as error:
            raise HubError(f"{repo_id}: ledger/{name}.parquet is not readable as Parquet") from error
        if not ledgers[name].schema.equals(views.LEDGER):
            raise HubError(f"{repo_id}: ledger/{name}.parquet has other columns than a ledger")
    return _Side(run_facts, ledgers, [])


def changed_inputs(first_facts: Mapping[str, JsonValue], second_facts: Mapping[str, JsonValue]) -> list[Input]:
    """List the inputs that differ between two sides' facts.

    A model that several steps use is listed once, with these steps.
    """
    inputs = []
    for key, title in (("source", "rows"), ("corpus", "corpus")):
        changes = _changes(first_facts.get(key), second_facts.get(key))
        inputs += [Input(f"{title}{key_path}", old, new, ()) for key_path, old, new in changes]
    inputs += _changed_steps(_mapping(first_facts.get("steps")), _mapping(second_facts.get("steps")))
    first_splits, second_splits = _mapping(first_facts.get("splits")), _mapping(second_facts.get("splits"))
    for name in first_splits:
        if name in second_splits:
            first_record, second_record = _mapping(first_splits[name]), _mapping(second_splits[name])
            for key in ("filter", "parameters", "format"):
                changes = _changes(first_record.get(key), second_record.get(key))
                inputs += [Input(f"split {name}, {key}{key_path}", old, new, ()) for key_path, old, new in changes]
    return inputs


def _changed_steps(first_steps: Mapping[str, JsonValue], second_steps: Mapping[str, JsonValue]) -> Iterator[Input]:
    """Yield the steps of only one side, then each changed setting of the steps of both sides."""
    step_names: dict[tuple[str, str, str], list[str]] = {}
    for name in dict.fromkeys([*first_steps, *second_steps]):
        if name not in second_steps:
            yield Input(f"step {name}", "there", "gone", ())
        elif name not in first_steps:
            yield Input(f"step {name}", "absent", "there", ())
        else:
            first_identity, second_identity = (
                _mapping(steps[name]).get("identity") for steps in (first_steps, second_steps)
            )
            for key_path, old, new in _changes(first_identity, second_identity):
                step_names.setdefault((key_path.lstrip("."), old, new), []).append(name)
    for (key_path, old, new), names in step_names.items():
        yield Input(key_path, old, new, tuple(names))


def _changes(old: JsonValue, new: JsonValue, key_path: str = "") -> Iterator[tuple[str, str, str]]:
    """Yield each leaf that differs between two JSON values, as its key path, old value and new value."""
    if old == new:
        return
    if isinstance(old, dict) and isinstance(new, dict):
        for key in dict.fromkeys([*old, *new]):
            yield from _changes(old.get(key), new.get(key), f"{key_path}.{key}")
    else:
        yield key_path, _value_text(old), _value_text(new)


def _value_text(value: JsonValue) -> str:
    return "nothing" if value is None else brief(value if isinstance(value, str) else json.dumps(value), 80)


def _mapping(value: JsonValue) -> dict[str, JsonValue]:
    """Return a JSON object, or an empty one in place of any other value: facts from the Hub are not trusted."""
    return value if isinstance(value, dict) else {}


def _upstream(run_facts: Mapping[str, JsonValue]) -> dict[str, set[str]]:
    """Return, for each column, the names of all steps that its values depend on."""
    columns, steps = _mapping(run_facts.get("columns")), _mapping(run_facts.get("steps"))
    step_of_column = {name: str(_mapping(column).get("made_by")) for name, column in columns.items()}

    def collect(step: str, visited: set[str]) -> set[str]:
        if step in steps and step not in visited:
            visited.add(step)
            record = _mapping(steps[step])
            for name in _mapping(record.get("inputs")):
                collect(step_of_column.get(name, ""), visited)
            # A step refers to the columns of its corpus by fingerprint, not by name.
            fingerprints = set(map(str, _mapping(record.get("corpus")).values()))
            for name, corpus_record in steps.items():
                if name.startswith("corpus ") and _mapping(corpus_record).get("fingerprint") in fingerprints:
                    visited.add(name)
        return visited

    return {name: collect(step, set()) for name, step in step_of_column.items()}


_JOINED = """
SELECT row_id, a.kept AS kept_before, b.kept AS kept_after, a.rule AS rule_before, b.rule AS rule_after,
       a.value AS value_before, b.value AS value_after, a.threshold AS threshold_before, b.threshold AS threshold_after,
       CASE WHEN a.kept IS NULL THEN 'the row is only on the second side'
            WHEN b.kept IS NULL THEN 'the row is only on the first side'
            WHEN a.rule IS DISTINCT FROM b.rule THEN 'by rule “' || b.rule || '” instead of “' || a.rule || '”'
            WHEN a.value IS DISTINCT FROM b.value THEN 'by rule “' || b.rule || '”: its own ' || $score || ' changed' || $because
            WHEN a.threshold IS DISTINCT FROM b.threshold
                 THEN 'by rule “' || b.rule || '”: the threshold moved from '
                      || coalesce(format('{:.4g}', a.threshold), 'none') || ' to '
                      || coalesce(format('{:.4g}', b.threshold), 'none') || ', its own value stayed' || $because
            ELSE 'by rule “' || b.rule || '”, its value and threshold the same: the filter changed' END AS why
FROM (SELECT * FROM before) AS a FULL JOIN (SELECT * FROM after) AS b USING (row_id)
WHERE a.kept IS DISTINCT FROM b.kept
ORDER BY row_id
"""


def _moves(
    name: str, first_side: _Side, second_side: _Side, inputs: list[Input], upstream: Mapping[str, set[str]]
) -> Moves:
    """Join a split's two ledgers by row id, and name the changed inputs that explain the rows that moved."""
    ledgers = first_side.ledgers.get(name), second_side.ledgers.get(name)
    first_count, second_count = ("" if ledger is None else _counted(ledger) for ledger in ledgers)
    if any(ledger is None for ledger in ledgers):
        return Moves(name, first_count, second_count, pa.table({}))
    record = _mapping(_mapping(second_side.run_facts.get("splits")).get(name))
    score = str(_mapping(record.get("parameters")).get("by", "value"))
    score_steps = upstream.get(score, set())
    causes = [entry for entry in inputs if score_steps & set(entry.steps)]
    # No input of the score's own steps changed: the change came with the rows, the corpus or the filter.
    causes = causes or [entry for entry in inputs if not entry.steps]
    cause_text = f" ({'; '.join(f'{c.what}: {c.before} → {c.after}' for c in causes)})" if causes else ""
    with views.in_memory() as connection:
        for title, ledger in zip(("before", "after"), ledgers, strict=True):
            connection.register(title, ledger)
        rows = connection.sql(_JOINED, params={"score": score, "because": cause_text}).to_arrow_table()
    return Moves(name, first_count, second_count, rows)


def _counted(ledger: pa.Table) -> str:
    # Arrow packs booleans into bits, so NumPy needs a copy.
    kept = int(ledger["kept"].to_numpy(zero_copy_only=False).sum())
    return f"{kept:,} of {ledger.num_rows:,}"


def _state(kept: bool | None) -> str:
    return "absent" if kept is None else "kept" if kept else "dropped"
