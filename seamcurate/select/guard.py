"""What a query may be: one SELECT over the views, as DuckDB itself parses it. Nothing is run here.

One rule: DuckDB's locks keep other files from being read, but it writes to files it may read, and its own tables tell of
every path and setting; so a query is refused by its tree before it runs.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Sequence
from difflib import get_close_matches
from typing import cast

import duckdb

from seamcurate.errors import QueryError
from seamcurate.select.frames import VIEW_NAMES
from seamcurate.text import brief

_ONE = "the SQL must be exactly one SELECT statement: a store is only read"
_TABLE_FUNCTIONS = {"generate_series", "json_each", "json_tree", "range", "repeat", "repeat_row", "unnest"}
"""What may stand behind FROM beside the views: what reads neither files nor DuckDB's own state."""
_TELLING = {"current_setting", "getenv", "json_serialize_plan", "pg_get_viewdef", "write_log"}
"""Functions that tell of paths, settings or the environment, or write to a log."""
_READING = {"SELECT_NODE", "SET_OPERATION_NODE", "RECURSIVE_CTE_NODE", "CTE_NODE"}
"""Kinds of queries that read. DuckDB 2 takes DELETE, INSERT, UPDATE and COPY … TO as the body of a WITH too."""
_LISTINGS = {"tables", "databases", "__show_tables_expanded"}
_SYSTEM = ("duckdb_", "pg_", "pragma_", "sqlite_")
_CATALOGS = ("", "memory")

_LONGEST_MESSAGE = 500
_ABSENT = re.compile(r'(?:Referenced (?:column|table)|column named|Column) "(.*?)"(?: not found| does not exist|$)')
"""DuckDB's words for a name that is not there."""

_Node = dict[str, object]


def check(connection: duckdb.DuckDBPyConnection, sql: str) -> list[str]:
    """Refuse what is not one SELECT over the views, as DuckDB itself parses it; return the views it reads. Nothing is run.

    Raises:
        QueryError: It is another statement, several, or reads something else.
    """
    try:
        # A half letter, as a terminal of another encoding gives it, DuckDB takes for no text.
        sql.encode()
        statements = duckdb.extract_statements(sql)
        if len(statements) != 1 or statements[0].type != duckdb.StatementType.SELECT:
            raise QueryError(_ONE)
        ((parsed,),) = connection.execute("SELECT json_serialize_sql($sql::VARCHAR)", {"sql": sql}).fetchall()
        tree = json.loads(parsed)
        listed = connection.execute(
            "SELECT schema_name, view_name FROM duckdb_views() WHERE NOT internal "
            "UNION ALL SELECT schema_name, table_name FROM duckdb_tables() WHERE NOT internal"
        ).fetchall()
    except duckdb.Error as error:
        raise QueryError(explain(connection, str(error))) from error
    except UnicodeEncodeError as error:
        raise QueryError("the SQL is no UTF-8 text") from error
    # A statement of a kind that DuckDB's Python does not know, and one nested too deeply.
    except (ValueError, RecursionError) as error:
        raise QueryError(_ONE) from error
    if tree["error"]:
        raise QueryError(_ONE)
    known = {(str(schema), str(name).lower()) for schema, name in listed}
    more = sorted(_full(str(schema), str(name)) for schema, name in listed)
    readable = [*VIEW_NAMES, *(name for name in more if name not in VIEW_NAMES)]
    read = set()
    for node, shadowed in _nodes(tree):
        kind = str(node.get("type"))
        if kind.endswith("_NODE") and kind not in _READING:
            raise QueryError(_ONE)
        if (foreign := _foreign(node, known, shadowed)) is not None:
            near = get_close_matches(foreign.lower(), readable, 1)
            meant = f"did you mean {near[0]}? " if near and kind == "BASE_TABLE" else ""
            raise QueryError(
                f"a query reads the views alone, not {foreign[:80]!r}; {meant}views: {', '.join(readable)}"
            )
        if kind == "BASE_TABLE" and not _is_shadowed(node, shadowed):
            read.add(_full(str(node.get("schema_name") or "main"), str(node["table_name"])).lower())
    return [name for name in readable if name.lower() in read]


def _full(schema: str, name: str) -> str:
    return name if schema == "main" else f"{schema}.{name}"


def _nodes(tree: object) -> Iterator[tuple[_Node, frozenset[str]]]:
    """Yield every node with the names that WITH gives where it stands, lower case: these shadow tables there alone.

    A name holds in the rest of its own WITH and in the query behind it. Within its own body it holds only in the part
    of a recursive one that is repeated.
    """
    left: list[tuple[object, frozenset[str]]] = [(tree, frozenset())]
    while left:
        part, names = left.pop()
        if isinstance(part, list):
            left += [(each, names) for each in part]
        if not isinstance(part, dict):
            continue
        behind = names
        for entry in _with(part):
            left.append((entry.get("value"), behind))
            behind |= {str(entry["key"]).lower()}
        yield part, behind
        for key, value in part.items():
            if key == "cte_map":
                continue
            scope = behind
            if part.get("type") == "RECURSIVE_CTE_NODE" and key == "right":
                scope |= {str(part.get("cte_name", "")).lower()}
            # As DuckDB 1 wrote a WITH that is kept: the name, its query, and what reads it.
            if part.get("type") == "CTE_NODE" and key == "child":
                scope |= {str(part.get("cte_name") or part.get("ctename") or "").lower()}
            left.append((value, scope))


def _with(node: _Node) -> list[_Node]:
    given = node.get("cte_map")
    entries = given.get("map") if isinstance(given, dict) else None
    return cast(list[_Node], entries) if isinstance(entries, list) else []


def _is_shadowed(node: _Node, names: frozenset[str]) -> bool:
    """Tell whether a table's name is one that WITH gives: only a bare name can be, and none that DuckDB's tables have."""
    name = str(node["table_name"]).lower()
    qualified = node.get("schema_name") or node.get("catalog_name")
    return not qualified and name in names and not name.startswith(_SYSTEM)


def _foreign(node: _Node, known: set[tuple[str, str]], names: frozenset[str]) -> str | None:
    """Return what a part of a query reads beside the views, if so."""
    kind = node.get("type")
    if kind == "BASE_TABLE":
        name, schema = str(node["table_name"]), str(node.get("schema_name") or "main")
        ours = (schema.lower(), name.lower()) in known and str(node.get("catalog_name") or "").lower() in _CATALOGS
        if not ours and not _is_shadowed(node, names):
            return _full(schema, name)
    elif kind == "SHOW_REF":
        listing = str(node.get("table_name") or "").strip('"')
        if node.get("query") is None and listing not in _LISTINGS:
            return listing or "SHOW"
    elif kind == "TABLE_FUNCTION":
        function = node.get("function")
        name = str(function.get("function_name")) if isinstance(function, dict) else ""
        if name.lower() not in _TABLE_FUNCTIONS:
            return name
    elif str(node.get("function_name", "")).lower() in _TELLING:
        return str(node["function_name"])
    return None


def explain(connection: duckdb.DuckDBPyConnection, message: str, read: Sequence[str] = ()) -> str:
    """Cut DuckDB's message to what is wrong, and list what the views that are read have when a name is not there."""
    lines = [line.strip() for line in message.splitlines() if line.strip() and not line.startswith("LINE")]
    # A value that could not be converted is quoted whole, whatever is in it.
    short = brief(lines[0] if lines else message, _LONGEST_MESSAGE)
    hints = [brief(line, _LONGEST_MESSAGE) for line in lines[1:] if "Did you mean" in line or "Candidate" in line]
    if "Out of Memory Error" in short:
        hints.append("sort fewer or shorter columns, row_id and the key alone, or take the first of them by LIMIT")
    elif "Catalog Error" in short:
        hints.append(f"views: {', '.join(VIEW_NAMES)}")
    elif "Binder Error" in short and (absent := _ABSENT.search(short)):
        there: dict[str, list[str]] = {}
        for view in read or ("rows",):
            columns = connection.execute(f"SELECT column_name FROM (DESCRIBE {view})").fetchall()
            there[view] = [brief(name, 80) for (name,) in columns]
        # Of a column that is asked for by its table's name, DuckDB names no other.
        near = get_close_matches(str(absent[1]).lower(), [one for names in there.values() for one in names], 1)
        hints += [f"did you mean {near[0]}?"] if near and not hints else []
        hints += [f"columns of {view}: {', '.join(names)}" for view, names in there.items()]
    return "; ".join([short, *hints])
