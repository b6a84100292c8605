"""Two runs side by side: which inputs differ, and which rows therefore moved between kept and dropped.

A side is a store, or a data set pushed to the Hub; of the latter the facts and the ledger alone are read.
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

_SHOWN = 5
_LONGEST = 300
"""Characters of a reason: a rule may be any text of a row."""


class Input(NamedTuple):
    """Something that decides scores or splits, and is not the same on both sides."""

    what: str
    before: str
    after: str
    steps: tuple[str, ...]
    """The steps it entered by; none for rows, corpus and filters."""

    def line(self) -> str:
        """Say it in one line."""
        by = f" (steps {', '.join(self.steps)})" if self.steps else ""
        return f"{self.what}: {self.before} → {self.after}{by}"


class Moves(NamedTuple):
    """What became of one split's rows."""

    split: str
    before: str
    """How many of how many rows were kept; empty where there is no such split."""
    after: str
    rows: pa.Table
    """A row per moved source row: row_id, then kept, rule, value and threshold before and after, and why."""

    def lines(self) -> Iterator[str]:
        """Yield the moved rows by direction and reason, most first."""
        if not self.before or not self.after:
            yield f"split {self.split}: only on the {'second' if self.after else 'first'} side"
            return
        yield f"split {self.split}: {self.before} rows kept, then {self.after}; {self.rows.num_rows:,} rows moved"
        sql = (
            "SELECT kept_before, kept_after, why, count(*) AS n, list(row_id ORDER BY row_id)[:$shown] AS some FROM moved "
            "GROUP BY ALL ORDER BY n DESC, why"
        )
        with views.in_memory() as connection:
            connection.register("moved", self.rows)
            found = connection.execute(sql, {"shown": _SHOWN}).fetchall()
        for before, after, why, n, some in found:
            more = ", …" if n > len(some) else ""
            yield f"  {_state(before)} → {_state(after)}: {n:,}, {brief(why, _LONGEST)}; rows {', '.join(map(str, some))}{more}"


class Difference(NamedTuple):
    """Two runs side by side."""

    inputs: list[Input]
    splits: list[Moves]
    notes: list[str]

    def lines(self) -> Iterator[str]:
        """Yield what a person should know."""
        yield from self.notes
        yield "inputs that differ:" if self.inputs else "no input differs"
        yield from (f"  {clean(one.line())}" for one in self.inputs)
        for split in self.splits:
            yield from split.lines()


class _Side(NamedTuple):
    known: Mapping[str, JsonValue]
    ledgers: dict[str, pa.Table]
    notes: list[str]


def diff(before: str | Path, after: str | Path) -> Difference:
    """Explain by rule and by model which rows two runs keep differently.

    Args:
        before: A store's folder, or a data set's id on the Hub.
        after: The other.

    Raises:
        HubError: A data set cannot be read, or was not pushed by seamcurate.
        StoreError: A folder is no store.

    Example:
        >>> from seamcurate import diff
        >>> print(*diff("store-of-monday", "store-of-friday").lines(), sep=chr(10))  # doctest: +SKIP
    """
    one, two = _side(before), _side(after)
    inputs = changed_inputs(one.known, two.known)
    notes = [*one.notes, *two.notes]
    if one.known.get("source") != two.known.get("source"):
        notes.append("the rows come from different sources: a row's id is its place, so rows are compared by place")
    upstream = _upstream(two.known)
    names = dict.fromkeys([*one.ledgers, *two.ledgers])
    return Difference(inputs, [_moves(name, one, two, inputs, upstream) for name in names], notes)


def _side(place: str | Path) -> _Side:
    if Path(place).is_dir() or not isinstance(place, str) or place.count("/") != 1:
        store = Store(place).open()
        records = store.split_records()
        names = sorted(records)
        known = facts.facts(store, names, "", version("seamcurate"))
        ledgers = {name: store.path / "splits" / name / "ledger.parquet" for name in names}
        prints = {name: str(record["fingerprint"]) for name, record in records.items()}
        outdated = [f"{place}: split {name} is out of date: {why}" for name, why in stale(store).items()]
        return _Side(known, {name: shard.read(file, prints[name], 0) for name, file in ledgers.items()}, outdated)
    published = hub.repository(place)
    known = published.facts()
    tables = {}
    splits = known.get("splits")
    for name in splits if isinstance(splits, dict) else ():
        try:
            tables[name] = pq.read_table(published.fetch(f"ledger/{name}.parquet"), partitioning=None)
        except (OSError, pa.ArrowException) as error:
            raise HubError(f"{place}: ledger/{name}.parquet is not readable as Parquet") from error
        if not tables[name].schema.equals(views.LEDGER):
            raise HubError(f"{place}: ledger/{name}.parquet has other columns than a ledger")
    return _Side(known, tables, [])


def changed_inputs(before: Mapping[str, JsonValue], after: Mapping[str, JsonValue]) -> list[Input]:
    """List what differs between two sides' facts; a model that several steps take is told once."""
    found = []
    for key, title in (("source", "rows"), ("corpus", "corpus")):
        found += [Input(f"{title}{at}", old, new, ()) for at, old, new in _unequal(before.get(key), after.get(key))]
    steps: dict[tuple[str, str, str], list[str]] = {}
    ours, theirs = _mapping(before.get("steps")), _mapping(after.get("steps"))
    for name in dict.fromkeys([*ours, *theirs]):
        if name not in ours or name not in theirs:
            found.append(Input(f"step {name}", *(("there", "gone") if name in ours else ("absent", "there")), ()))
            continue
        old, new = _mapping(ours[name]).get("identity"), _mapping(theirs[name]).get("identity")
        for at, was, now in _unequal(old, new):
            steps.setdefault((at.lstrip("."), was, now), []).append(name)
    found += [Input(at, was, now, tuple(names)) for (at, was, now), names in steps.items()]
    mine, others = _mapping(before.get("splits")), _mapping(after.get("splits"))
    for name in mine:
        if name in others:
            for key in ("filter", "parameters", "format"):
                pairs = _unequal(_mapping(mine[name]).get(key), _mapping(others[name]).get(key))
                found += [Input(f"split {name}, {key}{at}", old, new, ()) for at, old, new in pairs]
    return found


def _unequal(before: JsonValue, after: JsonValue, at: str = "") -> Iterator[tuple[str, str, str]]:
    if before == after:
        return
    if isinstance(before, dict) and isinstance(after, dict):
        for key in dict.fromkeys([*before, *after]):
            yield from _unequal(before.get(key), after.get(key), f"{at}.{key}")
    else:
        yield at, _told(before), _told(after)


def _told(value: JsonValue) -> str:
    return "nothing" if value is None else brief(value if isinstance(value, str) else json.dumps(value), 80)


def _mapping(value: JsonValue) -> dict[str, JsonValue]:
    return value if isinstance(value, dict) else {}


def _upstream(known: Mapping[str, JsonValue]) -> dict[str, set[str]]:
    """Return, for each column, the steps that it follows from."""
    columns, steps = _mapping(known.get("columns")), _mapping(known.get("steps"))
    made = {name: str(_mapping(one).get("made_by")) for name, one in columns.items()}

    def back(step: str, seen: set[str]) -> set[str]:
        if step in steps and step not in seen:
            seen.add(step)
            record = _mapping(steps[step])
            for name in _mapping(record.get("inputs")):
                back(made.get(name, ""), seen)
            # What a corpus' step made is only told by its fingerprint.
            prints = set(map(str, _mapping(record.get("corpus")).values()))
            for name, one in steps.items():
                if name.startswith("corpus ") and _mapping(one).get("fingerprint") in prints:
                    seen.add(name)
        return seen

    return {name: back(step, set()) for name, step in made.items()}


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


def _moves(name: str, one: _Side, two: _Side, inputs: list[Input], upstream: Mapping[str, set[str]]) -> Moves:
    before, after = one.ledgers.get(name), two.ledgers.get(name)
    told = ["" if ledger is None else _counted(ledger) for ledger in (before, after)]
    if before is None or after is None:
        return Moves(name, told[0], told[1], pa.table({}))
    record = _mapping(_mapping(two.known.get("splits")).get(name))
    score = str(_mapping(record.get("parameters")).get("by", "value"))
    behind = upstream.get(score, set())
    causes = [one for one in inputs if behind & set(one.steps)] or [one for one in inputs if not one.steps]
    because = f" ({'; '.join(f'{c.what}: {c.before} → {c.after}' for c in causes)})" if causes else ""
    with views.in_memory() as connection:
        connection.register("before", before)
        connection.register("after", after)
        rows = connection.sql(_JOINED, params={"score": score, "because": because}).to_arrow_table()
    return Moves(name, told[0], told[1], rows)


def _counted(ledger: pa.Table) -> str:
    kept = int(ledger["kept"].to_numpy(zero_copy_only=False).sum())
    return f"{kept:,} of {ledger.num_rows:,}"


def _state(kept: bool | None) -> str:
    return "absent" if kept is None else "kept" if kept else "dropped"
