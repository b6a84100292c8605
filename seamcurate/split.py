"""Splits: SQL chooses the rows, and a ledger says of every row what became of it and why.

A filter is one SELECT over the views. It returns `row_id` of the rows it keeps; or, with a boolean column
`keep`, rows it keeps and rows it drops, and then it may say for each the `rule`, the deciding `value` and the
`threshold`. In its text `{by}` stands for a column's name and `$rate` for a value, both given by the recipe.
"""

from __future__ import annotations

import re
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Literal, NamedTuple

import duckdb
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from pydantic import BaseModel, ConfigDict, JsonValue

from seamcurate import shard, views
from seamcurate.errors import QueryError, RecipeError
from seamcurate.step import digest
from seamcurate.store import Store, filename, load_json, save_json

Format = Literal["prompts", "sft", "preferences", "unpaired", "prompt_ids"]

_DEFAULT = re.compile(r"^--\s*default\s+(\w+)\s*=\s*(.+?)\s*$", re.MULTILINE)
_NAME = re.compile(r"\{(\w+)\}")
_VALUE = re.compile(r"\$([A-Za-z_]\w*)")
_QUOTED = re.compile(r"'(?:[^']|'')*'|--[^\n]*")


class Split(BaseModel):
    """Name rows by a filter; every further key is a parameter of the filter."""

    model_config = ConfigDict(frozen=True, extra="allow")

    filter: str
    """A `.sql` file, or the SELECT itself."""
    format: Format = "prompts"
    """What `export` writes: prompts, sft (prompt and golden response), preferences or unpaired (golden response
    against each candidate), or prompt_ids (tokens, for TRL's own PPO up to 1.12)."""

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
            )
        for name in sorted(names):
            if given[name] not in columns:
                raise RecipeError(
                    f"{name}: {given[name]!r} is no column of this store; there are: {', '.join(columns)}"
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
    if not name.strip().endswith(".sql"):
        return name
    for place in (folder / name, Path(name), *(one / Path(name).name for one in bundled())):
        if place.is_file():
            return place.read_text(encoding="utf-8")
    listed = sorted(file.name for one in bundled() for file in one.glob("*.sql"))
    raise RecipeError(f"no filter {name!r} in {folder} or here; bundled are: {', '.join(listed)}")


def bundled() -> list[Path]:
    """Return the folder of bundled recipes: inside an installed package, or beside it in a checkout."""
    package = Path(__file__).parent
    return [one for one in (package / "recipes", package.parent / "recipes") if one.is_dir()]


def make(store: Store, name: str, split: Split) -> Made:
    """Run a split's filter and keep its ledger; what is there for the same inputs is not made again.

    Raises:
        QueryError: The filter's SQL cannot be answered, or it returns no `row_id` or one twice.
    """
    columns = [column.name for column in store.columns() if column.stale is None]
    try:
        sql, values = split.bound(columns)
    except RecipeError as error:
        raise RecipeError(f"split {name}: {error}") from error
    inputs: dict[str, JsonValue] = {**store.fingerprints(), "shards": len(store.shards)}
    fingerprint = digest({"sql": sql, "values": values, "inputs": inputs})
    folder = store.path / "splits" / name
    there = load_json(folder / "split.json")
    if there.get("fingerprint") != fingerprint:
        ledger = _ledger(store, name, sql, values)
        keep, scored = ledger["kept"], pc.is_valid(ledger["value"])
        kept, valued = _count(keep), _count(scored)
        dropped = ledger.num_rows - kept
        dropped_by_value = valued - _count(pc.and_(keep, scored))
        undecided = pc.and_(ledger["returned"], pc.invert(scored))
        nulls, null_kept = _count(undecided), _count(pc.and_(undecided, keep))
        lines: list[JsonValue] = [f"split {name}: {kept:,} of {kept + dropped:,} rows kept"]
        if valued and nulls:
            lines.append(
                f"split {name}: {nulls:,} rows have no value to decide by; {null_kept:,} of them were kept, "
                f"{nulls - null_kept:,} dropped"
            )
        lines += _shortfall(name, values, dropped_by_value, valued)
        record: dict[str, JsonValue] = {
            "filter": split.filter,
            "parameters": split.parameters,
            "format": split.format,
            "fingerprint": fingerprint,
            "kept": kept,
            "dropped": dropped,
            "lines": lines,
        }
        beside = folder.with_name(f".{name}.tmp")
        shutil.rmtree(beside, ignore_errors=True)
        beside.mkdir(parents=True)
        shard.write(beside / "ledger.parquet", ledger.select(views.LEDGER.names), fingerprint, 0)
        save_json(beside / "split.json", record)
        shutil.rmtree(folder, ignore_errors=True)
        beside.rename(folder)
        there = record
    told = there["lines"]
    assert isinstance(told, list)
    return Made(name, int(str(there["kept"])), int(str(there["dropped"])), [str(line) for line in told])


def _ledger(store: Store, name: str, sql: str, values: Mapping[str, JsonValue]) -> pa.Table:
    """Run a filter; returns the ledger, a row per source row in their order, and whether the filter `returned` it."""
    files = [str(store.path / "rows" / filename(number)) for number in store.shards]
    with views.connect(store) as connection:
        try:
            described = connection.execute(f"DESCRIBE {sql}", dict(values)).fetchall()
        except duckdb.Error as error:
            raise QueryError(f"split {name}: {views.explain(connection, str(error))}") from error
        returned = {row[0] for row in described}
        if "row_id" not in returned:
            raise QueryError(f"split {name}: its filter returns no row_id, only: {', '.join(sorted(returned))}")

        def pick(column: str, otherwise: str) -> str:
            return column if column in returned else otherwise

        found = views.run(
            connection,
            f"SELECT row_id::BIGINT AS row_id, coalesce({pick('keep', 'true')}, false)::BOOLEAN AS kept, "
            f"{pick('rule', 'NULL')}::VARCHAR AS rule, {pick('value', 'NULL')}::DOUBLE AS value, "
            f"{pick('threshold', 'NULL')}::DOUBLE AS threshold FROM (\n{sql}\n) WHERE row_id IS NOT NULL",
            values,
        ).read_all()
        ids = views.run(connection, f"SELECT row_id FROM read_parquet({views.sql_list(files)}) AS a").read_all()
    every, ours = ids["row_id"].to_numpy(), found["row_id"].to_numpy()
    gapless = every[-1] - every[0] + 1 == len(every)
    place = np.clip(ours - every[0] if gapless else np.searchsorted(every, ours), 0, len(every) - 1)
    known = np.flatnonzero(every[place] == ours)
    where = np.full(len(every), -1)
    where[place[known]] = known
    if int((where >= 0).sum()) != len(known):
        raise QueryError(f"split {name}: its filter returns some row_id more than once; make it one line per row")
    at, title = pa.array(where, mask=where < 0), _title(sql)
    rule = found["rule"].combine_chunks().dictionary_encode().take(at).cast(pa.string())
    return pa.table(
        {
            "row_id": ids["row_id"],
            "split": pa.repeat(name, len(every)),
            "returned": where >= 0,
            "kept": pc.fill_null(found["kept"].take(at), False),
            "rule": pc.coalesce(rule, pc.if_else(where >= 0, title, f"not returned by {title}")),
            "value": found["value"].take(at),
            "threshold": found["threshold"].take(at),
        }
    )


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


def _count(mask: pa.ChunkedArray) -> int:
    return int(pc.sum(mask).as_py() or 0)


def _title(sql: str) -> str:
    first = next((line for line in sql.splitlines() if line.strip()), "")
    return first.removeprefix("--").strip().rstrip(".") if first.startswith("--") else "the filter"


def _literal(text: str) -> JsonValue:
    import yaml

    value: JsonValue = yaml.safe_load(text)
    return value
