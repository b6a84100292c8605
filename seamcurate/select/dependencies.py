"""Which views a filter reads, and of the ledger which splits, as DuckDB parses it.

One rule: a filter that is not understood is taken to read everything. If `reads` left out what a filter reads, the split
would keep rows by values that have changed since.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import NamedTuple

import duckdb
from pydantic import JsonValue

from seamcurate.sql.parse_tree import Node, parse, walk

LEDGER = "ledger"


class Reads(NamedTuple):
    """What a filter may read."""

    views: frozenset[str]
    """Names of views and tables, in lower case; names that WITH defines are among them too."""
    splits: frozenset[str] | None
    """The splits whose rows of the ledger it reads; None where it may read any."""


def reads(sql: str, values: Mapping[str, JsonValue]) -> Reads | None:
    """Return what one SELECT may read, given its parameters' values; None where the text is no SELECT.

    >>> reads("SELECT row_id FROM ledger WHERE split = 'a' AND kept", {}).splits
    frozenset({'a'})
    """
    try:
        with duckdb.connect() as connection:
            tree = parse(connection, sql)
    # ValueError: the text is no UTF-8. RecursionError: the statement is nested too deeply.
    except (duckdb.Error, ValueError, RecursionError):
        return None
    if tree["error"]:
        return None
    nodes = [visit.node for visit in walk(tree)]
    names = frozenset(str(node["table_name"]).lower() for node in nodes if node.get("table_name"))
    if LEDGER not in names:
        return Reads(names, frozenset())
    restricted: dict[int, frozenset[str]] = {}
    for node in nodes:
        if node.get("type") == "SELECT_NODE" and not node.get("sample"):
            source = node.get("from_table")
            if isinstance(source, dict):
                only_table = source.get("type") == "BASE_TABLE"
                conditions = list(_conditions(node.get("where_clause")))
                restricted |= dict(_restricted(source, conditions, only_table, values))
    references = [node for node in nodes if str(node.get("table_name")).lower() == LEDGER]
    if any(id(node) not in restricted for node in references):
        return Reads(names, None)
    return Reads(names, frozenset().union(*(restricted[id(node)] for node in references)))


def _restricted(
    source: Node, conditions: list[Node], only_table: bool, values: Mapping[str, JsonValue]
) -> Iterator[tuple[int, frozenset[str]]]:
    """Yield each reference to the ledger in a FROM that conditions restrict to certain splits, with these splits.

    In an outer join, ON restricts only the side that is filled up with NULL: every row of the other side stays.
    """
    if source.get("type") == "BASE_TABLE":
        plain = not source.get("sample") and not source.get("column_name_alias")
        if plain and str(source.get("table_name")).lower() == LEDGER:
            alias = str(source.get("alias") or LEDGER).lower()
            allowed = [
                splits for clause in conditions if (splits := _splits(clause, alias, only_table, values)) is not None
            ]
            if allowed:
                yield id(source), frozenset.intersection(*allowed)
    elif source.get("type") == "JOIN" and source.get("ref_type") in ("REGULAR", "CROSS"):
        kind, join_conditions = source.get("join_type"), list(_conditions(source.get("condition")))
        for branch, restricted in (("left", ("INNER", "RIGHT")), ("right", ("INNER", "LEFT"))):
            child = source.get(branch)
            if isinstance(child, dict) and kind in ("INNER", "LEFT", "RIGHT", "OUTER", "FULL"):
                yield from _restricted(
                    child, conditions + (join_conditions if kind in restricted else []), False, values
                )


def _conditions(clause: object) -> Iterator[Node]:
    """Yield the conditions that a clause joins by AND."""
    if isinstance(clause, dict):
        children = clause.get("children")
        if clause.get("type") == "CONJUNCTION_AND" and isinstance(children, list):
            for child in children:
                yield from _conditions(child)
        else:
            yield clause


def _splits(condition: Node, alias: str, only_table: bool, values: Mapping[str, JsonValue]) -> frozenset[str] | None:
    """Return the splits that a condition allows; None where it is not of the form `split = 'a'` or `split IN ('a', 'b')`."""
    if condition.get("type") == "COMPARE_EQUAL":
        terms = [condition.get("left"), condition.get("right")]
        if not _is_split(terms[0], alias, only_table):
            terms.reverse()
    elif condition.get("type") == "COMPARE_IN" and isinstance(condition.get("children"), list):
        terms = list(condition["children"])  # type: ignore[call-overload]
    else:
        return None
    if not terms or not _is_split(terms[0], alias, only_table):
        return None
    names = [_constant(term, values) for term in terms[1:]]
    return None if None in names else frozenset(name for name in names if name is not None)


def _is_split(term: object, alias: str, only_table: bool) -> bool:
    """Tell whether a term is the ledger's column `split`; unqualified, it is so only where the ledger is the only table."""
    names = term.get("column_names") if isinstance(term, dict) and term.get("type") == "COLUMN_REF" else None
    lower = [str(name).lower() for name in names] if isinstance(names, list) else []
    return lower == [alias, "split"] or (only_table and lower == ["split"])


def _constant(term: object, values: Mapping[str, JsonValue]) -> str | None:
    """Return the value of a text constant or of a text parameter; None for any other term."""
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
    # DuckDB 1 writes a constant in this form.
    kind = value.get("type") if isinstance(value, dict) else None
    if isinstance(value, dict) and isinstance(kind, dict) and kind.get("id") == "VARCHAR" and not value.get("is_null"):
        return str(value.get("value"))
    return None
