"""Expressions over the columns of one row, as a recipe has them: what they may be, and their values.

One rule: a value depends on its row alone, and is the same on every machine and in every run. So an expression holds no
query, no aggregate, no window and no clock; it is refused by its parse tree, before anything is read. It runs in the
process of `engine`, which reads no files, and ends when it takes too much memory or time.
"""

from __future__ import annotations

import json
import re
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import pyarrow as pa

from seamcurate.errors import QueryError
from seamcurate.sql.connection import Connection, start
from seamcurate.sql.guard import REVEALING
from seamcurate.sql.parse_tree import Node, walk
from seamcurate.text import brief, suggestion

_SECONDS = 60.0
"""How long the expressions of one batch of rows may take."""
_MEMORY = "1GB"
_NOT_OF_A_ROW = {
    "SUBQUERY": "a query",
    "WINDOW": "a window function",
    "STAR": "a star",
    "PARAMETER": "a parameter",
    "POSITIONAL_REFERENCE": "a column by its number",
    "DEFAULT": "DEFAULT",
}
"""Classes of nodes that are no value of one row, with what they are called."""
_CLOCKS = {"current_date", "current_time", "current_timestamp", "localtime", "localtimestamp", "today"}
_NAMES_OF_STATE = {"current_user", "session_user", "user", "current_role", "current_schema", "current_catalog"}
"""What SQL writes like a column, and is none."""
_MACROS = re.compile(
    r"list_\w+|array_\w+|map_contains_\w+|if|nullif|split_part|fdiv|fmod|json|days_in_month|date_add|md5_number_\w+"
)
"""DuckDB's macros that compute a value from their arguments alone."""
_ROW = "seamcurate_row"


class Expressions:
    """Compute columns and a condition for batches of rows.

    Args:
        connection: An engine without views.
        select: Expressions by the name of the column that each gives.
        where: The condition under which a row is kept; None keeps all.
        schema: The columns of the rows.

    Raises:
        QueryError: An expression is not of one row, or reads a column that is not there.
    """

    def __init__(self, connection: Connection, select: Mapping[str, str], where: str | None, schema: pa.Schema) -> None:
        self._connection, self._names = connection, list(select)
        parts = [*((f"select: {name}", text) for name, text in select.items())]
        parts += [("where", where)] if where is not None else []
        by_lower = {name.lower(): name for name in schema.names}
        allowed = _allowed_functions(connection)
        read: set[str] = set()
        for label, text in parts:
            read |= _checked(connection, label, text, by_lower, allowed)
        self.columns = [name for name in schema.names if name in read]
        """The columns that the expressions read."""
        selected = [f"({text}\n) AS c{i}" for i, text in enumerate(select.values())]
        selected += [f"coalesce(({where}\n)::BOOLEAN, false) AS kept"] if where is not None else ["true AS kept"]
        self._sql = f"SELECT {', '.join([_ROW, *selected])} FROM attached"
        self._labels = [label for label, _ in parts]
        empty = pa.schema([schema.field(name) for name in self.columns]).empty_table()
        kinds = self._answer(empty).schema
        self.fields = [pa.field(name, kinds.field(f"c{i}").type) for i, name in enumerate(self._names)]
        """The computed columns, with their types."""

    def values(self, rows: pa.Table) -> tuple[dict[str, list[object]], list[bool]]:
        """Return the computed columns of some rows, and whether each row is kept.

        Args:
            rows: The columns in `columns`.

        Raises:
            QueryError: A value cannot be computed, in time or at all.
        """
        answer = self._answer(rows)
        # An expression that gave several values for one row, or none, would shift all that follow.
        if answer[_ROW].to_pylist() != list(range(rows.num_rows)):
            raise QueryError(f"{' and '.join(self._labels)}: an expression must give one value for each row")
        return {name: answer[f"c{i}"].to_pylist() for i, name in enumerate(self._names)}, answer["kept"].to_pylist()

    def _answer(self, rows: pa.Table) -> pa.Table:
        numbered = rows.append_column(_ROW, pa.array(range(rows.num_rows), pa.int64()))
        self._connection.deadline = time.monotonic() + _SECONDS
        self._connection.late = f"{' and '.join(self._labels)}: {rows.num_rows} rows took more than {_SECONDS:.0f} s"
        try:
            return self._connection.execute(self._sql, attached=numbered).read_all()
        except QueryError as error:
            message = str(error)
            hint = "; try_cast(… AS …) gives NULL instead" if "Conversion Error" in message else ""
            named = "" if any(label in message for label in self._labels) else f"{' and '.join(self._labels)}: "
            raise QueryError(f"{named}{brief(message, 400)}{hint}") from error


@contextmanager
def opened() -> Iterator[Connection]:
    """Open an engine for expressions: no views, no files, 1 GB of memory, one thread."""
    with start(memory=_MEMORY, threads=1) as connection:
        connection.prepare([], [], statistics=False)
        yield connection


def _allowed_functions(connection: Connection) -> set[str]:
    """Return the functions of one row whose value depends on their arguments alone."""
    rows = connection.execute(
        "SELECT DISTINCT function_name, function_type, stability FROM duckdb_functions() "
        "WHERE function_type IN ('scalar', 'macro')"
    ).fetchall()
    unstable = {name for name, kind, stability in rows if kind == "scalar" and stability != "CONSISTENT"}
    pure = {name for name, kind, _ in rows if kind == "scalar" or _MACROS.fullmatch(name)}
    return pure - unstable - REVEALING


def _checked(connection: Connection, label: str, text: str, columns: Mapping[str, str], allowed: set[str]) -> set[str]:
    """Refuse what is no expression of one row; return the columns that it reads."""
    tree = _parsed(connection, label, text)
    read: set[str] = set()
    variables = {name for node, _ in walk(tree) for name in _lambda_names(node)}
    for node, _ in walk(tree):
        kind = str(node.get("class", ""))
        if kind in _NOT_OF_A_ROW:
            raise QueryError(f"{label} holds {_NOT_OF_A_ROW[kind]}; an expression computes a value from one row")
        function = str(node.get("function_name", "")).lower()
        if function and function not in allowed:
            raise QueryError(
                f"{label} calls {function}, which is no function of one row whose value is the same in every run"
            )
        if kind == "COLUMN_REF":
            names = node.get("column_names")
            name = str(names[0]) if isinstance(names, list) and names else ""
            if name.lower() in columns:
                read.add(columns[name.lower()])
            elif name.lower() in _CLOCKS | _NAMES_OF_STATE:
                raise QueryError(f"{label} reads {name}, which is not the same in every run")
            elif name.lower() not in variables:
                raise QueryError(
                    f"no column {name!r} for {label}; it has {', '.join(columns.values())}"
                    f"{suggestion(name, columns.values())}"
                )
    return read


def _lambda_names(node: Node) -> Iterator[str]:
    """Return the names of a lambda's parameters, in lower case."""
    if node.get("class") == "LAMBDA":
        for inner, _ in walk(node.get("lhs")):
            names = inner.get("column_names")
            yield from (str(name).lower() for name in (names if isinstance(names, list) else []))


def _parsed(connection: Connection, label: str, text: str) -> Node:
    """Return an expression's parse tree; refuse text that is more than one expression."""
    # The text ends in a line break, as it may end in a comment.
    sql = f"SELECT ({text}\n)"
    try:
        text.encode()
        answer = connection.execute("SELECT json_serialize_sql($sql::VARCHAR) AS tree", {"sql": sql}).read_all()
    except (QueryError, UnicodeEncodeError) as error:
        raise QueryError(f"{label} is no SQL expression: {brief(str(error), 200)}") from error
    tree = json.loads(str(answer["tree"][0].as_py()))
    if tree["error"]:
        message = brief(str(tree.get("error_message", "")), 200)
        raise QueryError(f"{label} is no SQL expression: {message or 'it cannot be parsed'}")
    statements = tree["statements"]
    node = statements[0]["node"] if len(statements) == 1 else {}
    alone = (
        node.get("type") == "SELECT_NODE"
        and len(node.get("select_list", ())) == 1
        and node["from_table"]["type"] == "EMPTY"
        and not any(
            node.get(part) for part in ("modifiers", "where_clause", "group_expressions", "having", "qualify", "sample")
        )
        and not node["cte_map"]["map"]
    )
    if not alone:
        raise QueryError(f"{label} is more than one expression")
    return {"expression": node["select_list"][0]}
