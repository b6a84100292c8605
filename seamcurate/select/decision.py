"""Decide about every row by a split's filter: whether it is kept, by which rule, value and threshold.

DuckDB answers the filter in batches, and each batch is entered into arrays of one value a source row.
"""

from __future__ import annotations

import math
import shutil
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
from pydantic import JsonValue

from seamcurate.errors import QueryError, RecipeError
from seamcurate.select import filters, shaping, views
from seamcurate.sql.connection import Connection, QueryResult, TooLargeError
from seamcurate.storage.objects import local
from seamcurate.store.folder import filename
from seamcurate.store.store import Store
from seamcurate.text import counted

_PART = 32_768
"""Rows that are entered, or written, at a time."""
SECONDS = 3_600.0
"""How long a filter may take. A stranger's filter must end; the bundled ones take less than a minute on a million rows."""

_SUSPECTED_HIGH = ("discrepancy_", "misjudged_", "baseline_calibrated_")
"""How the names of columns begin that are high where the reward is wrong."""
_OF_LOWEST = {"keep_above_lowest.sql": "drops", "lowest.sql": "keeps"}
"""What bundled filters do with the lowest values."""


class Decision(NamedTuple):
    """What a filter decides: one entry a source row, in the source's order; 11 MB for a million rows, unless it has more than 255 rules."""

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
    null_ids: int
    """Rows that the filter returned with a `row_id` that is NULL."""
    null_keeps: int
    """Rows whose `keep` was NULL, which drops them."""

    def tables(self, split: str) -> Iterator[pa.Table]:
        """Yield the ledger of a split in the schema of its file, `_PART` rows at a time."""
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


def decide(store: Store, split: str, sql: str, values: Mapping[str, JsonValue], ledgers: Collection[str]) -> Decision:
    """Run a filter over the rows, first with little memory, and without that limit where its SQL needs more.

    Args:
        store: The store.
        split: The split's name, for messages.
        sql: The filter, as `filters.bound` gives it.
        values: The values that are bound to it.
        ledgers: The splits whose ledger it may read.

    Raises:
        QueryError: The SQL cannot be answered, or it returns no `row_id` or one twice.
    """
    spill = store.scratch / ".spill.tmp"
    try:
        return _decided(store, split, sql, values, ledgers, spill)
    except QueryError as error:
        if not isinstance(error, TooLargeError) and "Out of Memory" not in str(error):
            raise
        return _decided(store, split, sql, values, ledgers, None)
    finally:
        shutil.rmtree(spill, ignore_errors=True)


def shaped(decision: Decision, split: str, rule: shaping.Rule, column: pa.ChunkedArray) -> tuple[Decision, str]:
    """Return a decision after a rule has dropped rows of it, and what the rule did in a line.

    Args:
        decision: What was decided before; its arrays are written to.
        split: The split's name, for messages.
        rule: The rule.
        column: The column that the rule goes by, of all rows.

    Raises:
        RecipeError: The column has values that the rule cannot go by.
    """
    kept = np.flatnonzero(decision.kept)
    row_ids = np.asarray(decision.row_ids, np.int64)[kept]
    with named(split):
        dropped = shaping.apply(rule, row_ids, kept, column.take(pa.array(kept)))
    reasons = [*decision.reasons]
    decision = decision._replace(reason=_wide_enough(decision.reason, len(reasons) + len(dropped.drops)))
    for drop in dropped.drops:
        if len(drop.rows):
            decision.kept[drop.rows] = False
            decision.reason[drop.rows] = len(reasons)
            decision.values[drop.rows] = np.nan if drop.values is None else drop.values
            reasons.append((drop.rule, math.nan))
    return decision._replace(reasons=reasons), dropped.line


def report(decision: Decision, split: str, filter: str, parameters: Mapping[str, JsonValue], noise: float) -> list[str]:
    """Say what of a decision its maker may not expect, a line each; empty where there is nothing to say.

    Args:
        decision: What the filter decided.
        split: The split's name.
        filter: The filter's text.
        parameters: Its parameters, defaults included.
        noise: By how much the score that `by` names moves of itself; 0 where that is not known.
    """
    score = str(parameters.get("by", ""))
    return [
        *_undecided(split, decision),
        *_unmatched(split, decision),
        *_shortfall(split, parameters.get("rate"), decision),
        *_backwards(split, filter, score),
        *_within_noise(split, score, noise, decision),
    ]


def described(connection: Connection, sql: str, values: Mapping[str, JsonValue]) -> set[str]:
    """Return the names of the columns that a filter returns in lower case, as SQL ignores case; `row_id` is among them.

    Raises:
        QueryError: The SQL cannot be answered, it returns no `row_id`, or one that is no whole number.
    """
    connection.check(sql)
    described = connection.execute(f"DESCRIBE {sql}", values).fetchall()
    kinds = {str(name).lower(): str(kind) for name, kind, *_ in described}
    if "row_id" not in kinds:
        raise QueryError(
            f"its filter returns no row_id, only: {', '.join(sorted(str(name) for name, *_ in described))}"
        )
    if not kinds["row_id"].endswith("INT") and kinds["row_id"] not in ('"NULL"', "INTEGER", "UINTEGER"):
        # A cast would round 0.6 to the row_id of another row.
        raise QueryError(
            f"its filter returns row_id as {kinds['row_id']}; return the row_id of rows as it is, a BIGINT"
        )
    return set(kinds)


@contextmanager
def named(split: str) -> Iterator[None]:
    """Name the split in the message of an error."""
    try:
        yield
    except RecipeError as error:
        raise RecipeError(f"split {split}: {error}") from error
    except TooLargeError as error:
        raise TooLargeError(f"split {split}: {error}") from error
    except QueryError as error:
        raise QueryError(f"split {split}: {error}") from error


def _undecided(split: str, decision: Decision) -> Iterator[str]:
    """Report rows without a value to decide by, where others have one."""
    scored = ~np.isnan(decision.values)
    undecided = decision.returned & ~scored
    nulls, kept = int(undecided.sum()), int((undecided & decision.kept).sum())
    if nulls and scored.any():
        yield (
            f"split {split}: {counted(nulls, 'row has', 'rows have')} no value to decide by; {kept:,} of them "
            f"{'was' if kept == 1 else 'were'} kept, {nulls - kept:,} dropped"
        )


def _unmatched(split: str, decision: Decision) -> Iterator[str]:
    """Report ids that no row has, and rows that were dropped because nothing decided about them."""
    if decision.foreign:
        count, example = decision.foreign
        yield (
            f"warning: split {split}: its filter returned {counted(count, 'row_id')} that no row of the store has, such as "
            f"{example}; they count for nothing"
        )
    if decision.null_ids:
        yield (
            f"warning: split {split}: its filter returned {counted(decision.null_ids, 'row')} whose row_id is NULL; "
            f"{'it counts' if decision.null_ids == 1 else 'they count'} for nothing"
        )
    if decision.null_keeps:
        yield (
            f"split {split}: {counted(decision.null_keeps, 'row has', 'rows have')} a `keep` that is NULL, and "
            f"{'was' if decision.null_keeps == 1 else 'were'} dropped"
        )


def _shortfall(split: str, rate: JsonValue, decision: Decision) -> Iterator[str]:
    """Report a filter by rate that dropped fewer rows than the rate asks for, since the others have no discrepancy."""
    scored = ~np.isnan(decision.values)
    dropped = int((scored & ~decision.kept).sum())
    if not isinstance(rate, float | int) or not dropped:
        return
    # Rounded up, as the filters do it: 7 % of 100 rows is 7.000000000000001 in binary, and means 7.
    intended = math.ceil(round(rate * int(scored.sum()), 6))
    if dropped < intended:
        yield (
            f"split {split}: only {dropped:,} rows were dropped where rate {rate:g} asks for {intended:,}: the others have no "
            "discrepancy"
        )


def _backwards(split: str, filter: str, score: str) -> Iterator[str]:
    """Warn where a bundled filter takes the rows that are judged best for the worst."""
    if not score.startswith(_SUSPECTED_HIGH):
        return
    texts = {
        (folder / file).read_text(encoding="utf-8").strip(): verb
        for folder in filters.bundled()
        for file, verb in _OF_LOWEST.items()
    }
    verb = texts.get(filter.strip())
    if verb is not None:
        yield (
            f"warning: split {split}: {score} is high where the reward is wrong, and this filter {verb} its lowest values, the "
            f"rows that are judged best; give `by: seam_{score.rpartition('_')[2]}`, or a filter of the highest values"
        )


def _within_noise(split: str, score: str, noise: float, decision: Decision) -> Iterator[str]:
    """Warn where rows on both sides of the threshold lie within the score's noise of it."""
    if not noise:
        return
    near = decision.near(noise)
    kept, dropped = int((near & decision.kept).sum()), int((near & ~decision.kept).sum())
    if kept and dropped:
        yield (
            f"warning: split {split}: the threshold cuts inside the noise of {score} (±{noise:.2g}): {kept:,} rows kept and "
            f"{dropped:,} dropped lie so close to it that another batch size, or a judge's next draw, could swap them"
        )


def _decided(
    store: Store,
    split: str,
    sql: str,
    values: Mapping[str, JsonValue],
    ledgers: Collection[str],
    spill: Path | None,
) -> Decision:
    files = [str(local(store.path / "rows" / filename(number)).absolute()) for number in store.shards]
    instead = "the filter is too slow; join and compare less in it"
    # With one thread, sums of floats and the order of ties are the same on every machine.
    with (
        named(split),
        views.connect(store, spill, threads=1, ledgers=ledgers) as connection,
        views.limited(connection, SECONDS, instead),
    ):
        returned = described(connection, sql, values)

        def pick(column: str, default: str) -> str:
            return column if column in returned else default

        row_ids, title = _row_ids(connection, files), filters.title(sql)
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
            f"{pick('threshold', 'NULL')}::DOUBLE AS threshold FROM (\n{sql}\n)",
            values,
        )
        returned_rows = null_ids = null_keeps = 0
        foreign: list[int] = []
        for batch in _read(decided):
            if batch["row_id"].null_count:
                null_ids += batch["row_id"].null_count
                batch = batch.filter(batch["row_id"].is_valid())
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
        raise QueryError(f"split {split}: its filter returns some row_id more than once; make it one line per row")
    rules = [(rule, math.nan if threshold is None else float(threshold)) for rule, threshold in reasons]
    return Decision(row_ids, answered, kept, rules, reason, decided_by, foreign, null_ids, null_keeps)


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


def _row_ids(connection: Connection, files: list[str]) -> range | npt.NDArray[np.int64]:
    """Read the source rows' ids, ascending; a range where none was set aside."""
    source = views.parquet(files)
    ((low, high, count),) = connection.execute(f"SELECT min(row_id), max(row_id), count(*) FROM {source}").fetchall()
    # A range needs no memory, and finds a row by subtraction.
    if int(str(high)) - int(str(low)) + 1 == count:
        return range(int(str(low)), int(str(high)) + 1)
    batches = connection.execute(f"SELECT row_id FROM {source}")
    return np.concatenate([batch["row_id"].to_numpy() for batch in batches])


def _wide_enough(reason: npt.NDArray[np.integer[Any]], count: int) -> npt.NDArray[np.integer[Any]]:
    """Return indices in a type that holds `count` of them: most filters have a handful, and the rows are millions."""
    return reason if count <= np.iinfo(reason.dtype).max + 1 else reason.astype(np.int32)
