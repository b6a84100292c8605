"""Two columns compared, of one store or of two: which rows are among the worst by both, and which moved most."""

from __future__ import annotations

import math
from typing import cast

from pydantic import JsonValue

from seamcurate.errors import QueryError
from seamcurate.explore import row
from seamcurate.explore.session import Chart, Session
from seamcurate.select import views

_MOVED = 50


def compare(session: Session, left: str, right: str, rate: float, within: str = "true") -> dict[str, JsonValue]:
    """Compare the worst rows by two columns, among the n rows that have both.

    The worst values are the lowest, or the highest where high is bad. A column's set is its worst ⌈rate · n⌉ rows; of a
    `seam_*` column only rows below 0. Ties are broken at random (seeded). Overlap is 2|A∩B| / (|A| + |B|). A row's place
    is its rank as a share of the rows, worst first; rows of equal value share their mean rank.

    Args:
        session: The store.
        left: A numeric column; a column of the other store has `other.` before its name.
        right: Another.
        rate: The share of rows in each set, above 0 and below 1.
        within: A predicate over `scores`: only these rows are compared.

    Raises:
        QueryError: A column is not one that has a chart, or the predicate cannot be answered.
    """
    charts = {chart.column.name: chart for chart in (*session.charts, *session.others)}
    for name in (left, right):
        if name not in charts:
            raise QueryError(f"{name!r} is no numeric column to compare")
    column_a, column_b = (_Side(charts[name]) for name in (left, right))
    pairs = (
        f"SELECT row_id, {column_a.value} AS a, {column_b.value} AS b FROM scores "
        f"WHERE ({within}\n) AND {column_a.value} IS NOT NULL AND {column_b.value} IS NOT NULL"
    )
    (n,) = session.ask(f"SELECT count(*) AS n FROM ({pairs})")["n"].to_pylist()
    size = math.ceil(rate * n)
    ranked = (
        f"SELECT *, row_number() OVER (ORDER BY a {column_a.order}, hash(row_id, 1)) AS i, "
        f"row_number() OVER (ORDER BY b {column_b.order}, hash(row_id, 2)) AS j FROM ({pairs})"
    )
    placed = f"SELECT *, avg(i) OVER (PARTITION BY a) AS p, avg(j) OVER (PARTITION BY b) AS q FROM ({ranked})"
    sets = f"i <= {size}{column_a.below('a')}", f"j <= {size}{column_b.below('b')}"
    (totals,) = session.ask(
        f"SELECT count(*) FILTER ({sets[0]}) AS worst_a, count(*) FILTER ({sets[1]}) AS worst_b, "
        f"count(*) FILTER ({sets[0]} AND {sets[1]}) AS shared, corr(p, q) AS correlation, "
        f"{column_a.edge('a', sets[0])} AS cut_a, {column_b.edge('b', sets[1])} AS cut_b FROM ({placed})"
    ).to_pylist()
    moved: list[dict[str, JsonValue]] = session.ask(
        f"SELECT row_id, a::DOUBLE AS a, b::DOUBLE AS b, p / {max(1, n)} AS place_a, q / {max(1, n)} AS place_b "
        f"FROM ({placed}) WHERE p <> q ORDER BY abs(p - q) DESC, row_id LIMIT {_MOVED}"
    ).to_pylist()
    texts = row.prompts(session, [cast(int, line["row_id"]) for line in moved], 200)
    total = totals["worst_a"] + totals["worst_b"]
    correlation = totals["correlation"]
    return {
        **totals,
        "rows": n,
        "overlap": 2 * totals["shared"] / total if total else None,
        "chance": 2 * totals["worst_a"] * totals["worst_b"] / n / total if total else None,
        "correlation": correlation if correlation is not None and math.isfinite(correlation) else None,
        "moved": [{**line, "prompt": texts.get(cast(int, line["row_id"]))} for line in moved],
    }


class _Side:
    """One column: its SQL, and which end of it is bad."""

    def __init__(self, chart: Chart) -> None:
        self.value = views.quoted(chart.column.name)
        self.high = chart.worst == "high"
        self.order = "DESC" if self.high else "ASC"
        self._hinge = chart.column.name.removeprefix("other.").startswith("seam_")

    def below(self, name: str) -> str:
        """Write the condition that leaves out rows without any misjudgement, whose `seam_*` is 0."""
        return f" AND {name} < 0" if self._hinge else ""

    def edge(self, name: str, members: str) -> str:
        """Write the value at which the set of worst rows ends."""
        return f"({'min' if self.high else 'max'}({name}) FILTER ({members}))::DOUBLE"
