"""Two columns held against each other, of one store or of two: which rows both call bad, and which moved most."""

from __future__ import annotations

import math
from typing import cast

from pydantic import JsonValue

from seamcurate.errors import QueryError
from seamcurate.explore import row
from seamcurate.explore.session import Chart, Session
from seamcurate.select import views

_MOVED = 50


def compare(session: Session, first: str, second: str, rate: float) -> dict[str, JsonValue]:
    """Compare the rows that two columns put lowest, or highest where high is bad, among rows that have both.

    A column's set is its worst ⌈rate · n⌉ rows, of a `seam_*` column those below 0 alone; ties are broken by lot.
    Overlap is 2|A∩B| / (|A| + |B|). A row's place is its mean rank among its equals as a share of the rows, worst first.

    Args:
        session: The store.
        first: A numeric column; of the other store, `other.` before its name.
        second: Another.
        rate: The share of rows that is lowest, above 0 and below 1.

    Raises:
        QueryError: A column is not one that has a chart.
    """
    charts = {chart.column.name: chart for chart in (*session.charts, *session.others)}
    for name in (first, second):
        if name not in charts:
            raise QueryError(f"{name!r} is no numeric column to compare")
    a, b = (_Side(charts[name]) for name in (first, second))
    both = f"SELECT row_id, {a.value} AS a, {b.value} AS b FROM scores WHERE {a.value} IS NOT NULL AND {b.value} IS NOT NULL"
    ((n,),) = (tuple(one.values()) for one in session.ask(f"SELECT count(*) AS n FROM ({both})").to_pylist())
    size = math.ceil(rate * n)
    ranked = (
        f"SELECT *, row_number() OVER (ORDER BY a {a.order}, hash(row_id, 1)) AS i, "
        f"row_number() OVER (ORDER BY b {b.order}, hash(row_id, 2)) AS j FROM ({both})"
    )
    placed = f"SELECT *, avg(i) OVER (PARTITION BY a) AS p, avg(j) OVER (PARTITION BY b) AS q FROM ({ranked})"
    sets = f"i <= {size}{a.below('a')}", f"j <= {size}{b.below('b')}"
    (found,) = session.ask(
        f"SELECT count(*) FILTER ({sets[0]}) AS worst_a, count(*) FILTER ({sets[1]}) AS worst_b, "
        f"count(*) FILTER ({sets[0]} AND {sets[1]}) AS shared, corr(p, q) AS correlation, "
        f"{a.edge('a', sets[0])} AS cut_a, {b.edge('b', sets[1])} AS cut_b FROM ({placed})"
    ).to_pylist()
    moved: list[dict[str, JsonValue]] = session.ask(
        f"SELECT row_id, a::DOUBLE AS a, b::DOUBLE AS b, p / {max(1, n)} AS place_a, q / {max(1, n)} AS place_b "
        f"FROM ({placed}) WHERE p <> q ORDER BY abs(p - q) DESC, row_id LIMIT {_MOVED}"
    ).to_pylist()
    texts = row.prompts(session, [cast(int, one["row_id"]) for one in moved], 200)
    total = found["worst_a"] + found["worst_b"]
    correlation = found["correlation"]
    return {
        **found,
        "rows": n,
        "overlap": 2 * found["shared"] / total if total else None,
        "chance": 2 * found["worst_a"] * found["worst_b"] / n / total if total else None,
        "correlation": correlation if correlation is not None and math.isfinite(correlation) else None,
        "moved": [{**one, "prompt": texts.get(cast(int, one["row_id"]))} for one in moved],
    }


class _Side:
    """One column: its SQL, and which end of it is bad."""

    def __init__(self, chart: Chart) -> None:
        self.value = views.quoted(chart.column.name)
        self.high = chart.worst == "high"
        self.order = "DESC" if self.high else "ASC"
        self._hinge = chart.column.name.removeprefix("other.").startswith("seam_")

    def below(self, name: str) -> str:
        """Leave out rows that were not misjudged at all."""
        return f" AND {name} < 0" if self._hinge else ""

    def edge(self, name: str, members: str) -> str:
        """Write where the worst rows end."""
        return f"({'min' if self.high else 'max'}({name}) FILTER ({members}))::DOUBLE"
