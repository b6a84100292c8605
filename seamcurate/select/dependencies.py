"""Which views a filter reads, and of the ledger which splits, as DuckDB parses it.

One rule: what is not understood is taken to read everything. A filter that is said to read less than it does would keep
rows by values that have changed since.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from typing import NamedTuple, TypeAlias

import duckdb
from pydantic import JsonValue

LEDGER = "ledger"
_Node: TypeAlias = Mapping[str, object]


class Reads(NamedTuple):
    """What a filter may read."""

    views: frozenset[str]
    """Names of views and tables, in lower case; a name that WITH gives is among them too."""
    splits: frozenset[str] | None
    """The splits whose lines of the ledger it reads; None where that may be any."""


def reads(sql: str, values: Mapping[str, JsonValue]) -> Reads | None:
    """Return what one SELECT may read, given its parameters' values; None where it is no such thing.

    >>> reads("SELECT row_id FROM ledger WHERE split = 'a' AND kept", {}).splits
    frozenset({'a'})
    """
    try:
        with duckdb.connect() as connection:
            ((parsed,),) = connection.execute("SELECT json_serialize_sql($sql::VARCHAR)", {"sql": sql}).fetchall()
        tree = json.loads(parsed)
    # Text that is no UTF-8, and statements that are nested too deeply.
    except (duckdb.Error, ValueError, RecursionError):
        return None
    if tree["error"]:
        return None
    nodes = list(_nodes(tree))
    names = frozenset(str(node["table_name"]).lower() for node in nodes if node.get("table_name"))
    if LEDGER not in names:
        return Reads(names, frozenset())
    restricted: dict[int, frozenset[str]] = {}
    for node in nodes:
        if node.get("type") == "SELECT_NODE" and not node.get("sample"):
            source = node.get("from_table")
            if isinstance(source, dict):
                alone = source.get("type") == "BASE_TABLE"
                restricted |= dict(_restricted(source, list(_conditions(node.get("where_clause"))), alone, values))
    references = [node for node in nodes if str(node.get("table_name")).lower() == LEDGER]
    if any(id(node) not in restricted for node in references):
        return Reads(names, None)
    return Reads(names, frozenset().union(*(restricted[id(node)] for node in references)))


def _nodes(tree: object) -> Iterator[dict[str, object]]:
    remaining = [tree]
    while remaining:
        node = remaining.pop()
        if isinstance(node, dict):
            yield node
            remaining += node.values()
        elif isinstance(node, list):
            remaining += node


def _restricted(
    source: _Node, conditions: list[_Node], alone: bool, values: Mapping[str, JsonValue]
) -> Iterator[tuple[int, frozenset[str]]]:
    """Yield each reference to the ledger below FROM that conditions restrict to certain splits, with these.

    Of an outer join, ON restricts only the side that is filled up with NULL: every row of the other side stays.
    """
    if source.get("type") == "BASE_TABLE":
        plain = not source.get("sample") and not source.get("column_name_alias")
        if plain and str(source.get("table_name")).lower() == LEDGER:
            alias = str(source.get("alias") or LEDGER).lower()
            found = [splits for one in conditions if (splits := _splits(one, alias, alone, values)) is not None]
            if found:
                yield id(source), frozenset.intersection(*found)
    elif source.get("type") == "JOIN" and source.get("ref_type") in ("REGULAR", "CROSS"):
        kind, on = source.get("join_type"), list(_conditions(source.get("condition")))
        for side, restricted in (("left", ("INNER", "RIGHT")), ("right", ("INNER", "LEFT"))):
            child = source.get(side)
            if isinstance(child, dict) and kind in ("INNER", "LEFT", "RIGHT", "OUTER", "FULL"):
                yield from _restricted(child, conditions + (on if kind in restricted else []), False, values)


def _conditions(clause: object) -> Iterator[_Node]:
    """Yield the parts of a condition that must all hold."""
    if isinstance(clause, dict):
        children = clause.get("children")
        if clause.get("type") == "CONJUNCTION_AND" and isinstance(children, list):
            for child in children:
                yield from _conditions(child)
        else:
            yield clause


def _splits(condition: _Node, alias: str, alone: bool, values: Mapping[str, JsonValue]) -> frozenset[str] | None:
    """Return the splits that a condition allows; None where it is not of the form `split = 'a'` or `split IN ('a', 'b')`."""
    if condition.get("type") == "COMPARE_EQUAL":
        terms = [condition.get("left"), condition.get("right")]
        if not _is_split(terms[0], alias, alone):
            terms.reverse()
    elif condition.get("type") == "COMPARE_IN" and isinstance(condition.get("children"), list):
        terms = list(condition["children"])  # type: ignore[call-overload]
    else:
        return None
    if not terms or not _is_split(terms[0], alias, alone):
        return None
    names = [_constant(term, values) for term in terms[1:]]
    return None if None in names else frozenset(name for name in names if name is not None)


def _is_split(term: object, alias: str, alone: bool) -> bool:
    """Tell whether a term is the ledger's column; by its bare name alone it may be another table's too."""
    names = term.get("column_names") if isinstance(term, dict) and term.get("type") == "COLUMN_REF" else None
    lower = [str(name).lower() for name in names] if isinstance(names, list) else []
    return lower == [alias, "split"] or (alone and lower == ["split"])


def _constant(term: object, values: Mapping[str, JsonValue]) -> str | None:
    """Return a text that the SQL, or a parameter, gives as it stands."""
    if not isinstance(term, dict):
        return None
    if term.get("type") == "VALUE_PARAMETER":
        value = values.get(str(term.get("identifier")))
        return value if isinstance(value, str) else None
    if term.get("type") != "VALUE_CONSTANT":
        return None
    literal, value = term.get("literal"), term.get("value")
    if isinstance(literal, dict):
        return str(literal.get("text")) if literal.get("kind") == "STRING" else None
    # As DuckDB 1 writes it.
    kind = value.get("type") if isinstance(value, dict) else None
    if isinstance(value, dict) and isinstance(kind, dict) and kind.get("id") == "VARCHAR" and not value.get("is_null"):
        return str(value.get("value"))
    return None
