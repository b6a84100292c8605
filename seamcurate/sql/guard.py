"""What a query may be: one SELECT over the views, as DuckDB itself parses it. Nothing is run here.

One rule: a query is refused by its parse tree, before it runs. DuckDB's own locks are not enough: they keep other files
from being read, but a query may write to the files it may read, and DuckDB's tables show every path and setting.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from difflib import get_close_matches
from typing import TYPE_CHECKING

from seamcurate.errors import QueryError
from seamcurate.sql.frames import VIEW_NAMES
from seamcurate.sql.parse_tree import Node, parse, walk
from seamcurate.text import brief

if TYPE_CHECKING:
    import duckdb

_ONE_SELECT = "the SQL must be exactly one SELECT statement: a store is only read"
_TABLE_FUNCTIONS = {"generate_series", "json_each", "json_tree", "range", "repeat", "repeat_row", "unnest"}
"""Table functions that a query may call: they read neither files nor DuckDB's own state."""
REVEALING = {"current_setting", "getenv", "json_serialize_plan", "pg_get_viewdef", "write_log"}
"""Functions that show paths, settings or the environment, or write to a log."""
_READING_NODES = {"SELECT_NODE", "SET_OPERATION_NODE", "RECURSIVE_CTE_NODE", "CTE_NODE"}
"""Types of query nodes that only read. DuckDB 2 also accepts DELETE, INSERT, UPDATE and COPY … TO as the body of a WITH."""
_LISTINGS = {"tables", "databases", "__show_tables_expanded"}
"""What SHOW may list."""
_SYSTEM_PREFIXES = ("duckdb_", "pg_", "pragma_", "sqlite_")
_CATALOGS = ("", "memory")
"""How a query may name the catalog of the views: not at all, or as DuckDB's in-memory database."""

_TOKEN = re.compile(
    r"""(?<!\w)[eE]'(?:\\.|''|[^'\\])*' | '(?:''|[^'])*' | "(?:""|[^"])*" | (\$\w*\$).*?\1 | --[^\n]* | /\*.*?\*/ | ; | \w+ | \s+ | .""",
    re.DOTALL | re.VERBOSE,
)
"""A text, name, comment, semicolon, word, white space, or any other character."""
_LONGEST_MESSAGE = 500
_ABSENT = re.compile(r'(?:Referenced (?:column|table)|column named|Column) "(.*?)"(?: not found| does not exist|$)')
"""DuckDB's messages about a name that does not exist."""


def check(connection: duckdb.DuckDBPyConnection, sql: str) -> list[str]:
    """Refuse SQL that is not one SELECT over the views; return the views it reads. Nothing is run.

    Raises:
        QueryError: It is another statement, several, or reads something else.
    """
    import duckdb

    try:
        # DuckDB takes no lone surrogates, which a terminal of another encoding gives.
        sql.encode()
        statements = duckdb.extract_statements(sql)
        if len(statements) != 1 or statements[0].type != duckdb.StatementType.SELECT:
            raise QueryError(_ONE_SELECT)
        tree = parse(connection, sql)
        listed = connection.execute(
            "SELECT schema_name, view_name FROM duckdb_views() WHERE NOT internal "
            "UNION ALL SELECT schema_name, table_name FROM duckdb_tables() WHERE NOT internal"
        ).fetchall()
    except duckdb.Error as error:
        raise QueryError(explain(connection, str(error))) from error
    except UnicodeEncodeError as error:
        raise QueryError("the SQL is no UTF-8 text") from error
    # ValueError: DuckDB's Python does not know this kind of statement. RecursionError: it is nested too deeply.
    except (ValueError, RecursionError) as error:
        raise QueryError(_ONE_SELECT) from error
    if tree["error"]:
        raise QueryError(_ONE_SELECT)
    known = {(str(schema), str(name).lower()) for schema, name in listed}
    full_names = sorted(_full(str(schema), str(name)) for schema, name in listed)
    readable = [*VIEW_NAMES, *(name for name in full_names if name not in VIEW_NAMES)]
    read = set()
    for node, shadowing in walk(tree):
        kind = str(node.get("type"))
        if kind.endswith("_NODE") and kind not in _READING_NODES:
            raise QueryError(_ONE_SELECT)
        if (foreign := _foreign(node, known, shadowing)) is not None:
            near = get_close_matches(foreign.lower(), readable, 1)
            meant = f"did you mean {near[0]}? " if near and kind == "BASE_TABLE" else ""
            raise QueryError(
                f"a query reads the views alone, not {foreign[:80]!r}; {meant}views: {', '.join(readable)}"
            )
        if kind == "BASE_TABLE" and not _is_shadowed(node, shadowing):
            read.add(_full(str(node.get("schema_name") or "main"), str(node["table_name"])).lower())
    return [name for name in readable if name.lower() in read]


def unterminated(sql: str) -> str:
    """Return a statement without the semicolon that ends it and what follows it, so that it can be part of another.

    Example:
        >>> unterminated("SELECT ';' AS a ; -- the end"), unterminated("SELECT 1; SELECT 2")
        ("SELECT ';' AS a ", 'SELECT 1; SELECT 2')
    """
    end = None
    for token in _TOKEN.finditer(sql):
        if token[0] == ";":
            end = token.start() if end is None else end
        elif not (token[0].isspace() or token[0].startswith(("--", "/*"))):
            end = None
    return sql[:end]


def _full(schema: str, name: str) -> str:
    return name if schema == "main" else f"{schema}.{name}"


def _is_shadowed(node: Node, names: frozenset[str]) -> bool:
    """Tell whether WITH defines a table's name: only an unqualified name can be, and no name of DuckDB's own tables."""
    name = str(node["table_name"]).lower()
    qualified = node.get("schema_name") or node.get("catalog_name")
    return not qualified and name in names and not name.startswith(_SYSTEM_PREFIXES)


def _foreign(node: Node, known: set[tuple[str, str]], names: frozenset[str]) -> str | None:
    """Return what a node reads that is no view; None where it reads views only."""
    kind = node.get("type")
    if kind == "BASE_TABLE":
        name, schema = str(node["table_name"]), str(node.get("schema_name") or "main")
        is_view = (schema.lower(), name.lower()) in known and str(node.get("catalog_name") or "").lower() in _CATALOGS
        if not is_view and not _is_shadowed(node, names):
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
    elif str(node.get("function_name", "")).lower() in REVEALING:
        return str(node["function_name"])
    return None


def explain(connection: duckdb.DuckDBPyConnection, message: str, read: Sequence[str] = ()) -> str:
    """Cut DuckDB's message to what is wrong; where a name does not exist, list the columns of the views that are read."""
    import duckdb

    lines = [line.strip() for line in message.splitlines() if line.strip() and not line.startswith("LINE")]
    # DuckDB quotes a value that it could not convert as a whole, however long it is.
    short = brief(lines[0] if lines else message, _LONGEST_MESSAGE)
    hints = [brief(line, _LONGEST_MESSAGE) for line in lines[1:] if "Did you mean" in line or "Candidate" in line]
    if "for the destination type INT128" in short:
        hints.append("cast it to text: name::VARCHAR")
    elif "Out of Memory Error" in short:
        hints.append("sort fewer or shorter columns, row_id and the key alone, or take the first of them by LIMIT")
    elif "Catalog Error" in short:
        hints.append(f"views: {', '.join(VIEW_NAMES)}")
    elif "Binder Error" in short and (absent := _ABSENT.search(short)):
        columns: dict[str, list[str]] = {}
        for view in read or ("rows",):
            try:
                described = connection.execute(f"SELECT column_name FROM (DESCRIBE {view})").fetchall()
            except duckdb.Error:
                # An engine for expressions has no views.
                continue
            columns[view] = [brief(name, 80) for (name,) in described]
        # DuckDB suggests no name for a column that is qualified by its table.
        near = get_close_matches(str(absent[1]).lower(), [column for names in columns.values() for column in names], 1)
        hints += [f"did you mean {near[0]}?"] if near and not hints else []
        hints += [f"columns of {view}: {', '.join(names)}" for view, names in columns.items()]
    return "; ".join([short, *hints])
