"""A query's parse tree, as DuckDB serializes it to JSON, and the one walk over it.

One rule: the walk visits every node. What it does not understand, it visits like any other part of the tree.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any, NamedTuple, TypeAlias, cast

if TYPE_CHECKING:
    import duckdb

Node: TypeAlias = dict[str, object]


class Visit(NamedTuple):
    """A node of the tree, and what its position means for names in it."""

    node: Node
    shadowing: frozenset[str]
    """The names that WITH defines at this position, in lower case. Here they hide tables and views of the same name."""


def parse(connection: duckdb.DuckDBPyConnection, sql: str) -> Node:
    """Return the tree of a SELECT; its key `error` is true where the text is another statement. Nothing is run.

    Raises:
        duckdb.Error: DuckDB cannot parse the text.
        ValueError: The text is no UTF-8, or the tree no JSON.
        RecursionError: The statement is nested too deeply.
    """
    ((serialized,),) = connection.execute("SELECT json_serialize_sql($sql::VARCHAR)", {"sql": sql}).fetchall()
    return cast(Node, json.loads(cast(Any, serialized)))


def walk(tree: object) -> Iterator[Visit]:
    """Visit every node, each with the names that WITH defines at its position.

    A name is visible in the later entries of its own WITH and in the query behind it. Within its own body it is visible
    only in the repeated part of a recursive query.
    """
    remaining: list[tuple[object, frozenset[str]]] = [(tree, frozenset())]
    while remaining:
        subtree, names = remaining.pop()
        if isinstance(subtree, list):
            remaining += [(element, names) for element in subtree]
        if not isinstance(subtree, dict):
            continue
        entries, visible = _with_entries(subtree), names
        for entry in entries or ():
            remaining.append((entry.get("value"), visible))
            visible |= {str(entry["key"]).lower()}
        yield Visit(subtree, visible)
        for key, value in subtree.items():
            if key == "cte_map" and entries is not None:
                continue
            scope = visible
            if subtree.get("type") == "RECURSIVE_CTE_NODE" and key == "right":
                scope |= {str(subtree.get("cte_name", "")).lower()}
            # DuckDB 1 writes a materialized WITH as a node of its own: its name, its query, and the query that reads it.
            if subtree.get("type") == "CTE_NODE" and key == "child":
                scope |= {str(subtree.get("cte_name") or subtree.get("ctename") or "").lower()}
            remaining.append((value, scope))


def _with_entries(node: Node) -> list[Node] | None:
    """Return the entries of a node's WITH; None where it has none, or has it in a form that is not known."""
    cte_map = node.get("cte_map")
    entries = cte_map.get("map") if isinstance(cte_map, dict) else None
    if not isinstance(entries, list) or not all(isinstance(entry, dict) and "key" in entry for entry in entries):
        return None
    return cast(list[Node], entries)
