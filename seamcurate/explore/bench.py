"""The threshold bench: which rows a cut on one score would keep, and the recipe line that makes the same cut."""

from __future__ import annotations

import json
from typing import Literal, cast

from pydantic import JsonValue

from seamcurate.errors import QueryError
from seamcurate.explore import row
from seamcurate.explore.session import Session, nice
from seamcurate.select import views

_NEAR = 10
_LENGTH_BINS = 24


def bench(
    session: Session,
    column: str,
    cut: float,
    kept_side: Literal["above", "below"],
    nulls: bool,
    within: str = "true",
) -> dict[str, JsonValue]:
    """Compare the rows that a cut keeps with all rows; a row whose value is the cut itself is kept.

    Args:
        session: The store.
        column: The numeric column to cut.
        cut: The value to cut at.
        kept_side: Whether rows above or below the cut are kept.
        nulls: Whether rows without a value are kept, too.
        within: A predicate over `scores`: only these rows are looked at.

    Raises:
        QueryError: The column is not one that has a chart, or the predicate cannot be answered.
    """
    if column not in [chart.column.name for chart in session.charts]:
        raise QueryError(f"{column!r} is no numeric column of this store")
    q, sign = views.quoted(column), ">=" if kept_side == "above" else "<="
    kept = f"coalesce({q} {sign} $cut::DOUBLE, {'true' if nulls else 'false'})"
    parameters: dict[str, JsonValue] = {"cut": cut}
    # The newline and the parenthesis end a comment that the predicate may open.
    scores = f"(SELECT * FROM scores WHERE ({within}\n))"
    (total,) = session.ask(
        f"SELECT count(*) AS rows, count(*) FILTER ({kept}) AS kept, count(*) FILTER ({q} IS NULL) AS without, "
        f"count(*) FILTER ({q} < $cut::DOUBLE) AS lower, "
        f"median(_length) AS length, median(_length) FILTER ({kept}) AS length_kept, sum(_candidates)::BIGINT AS candidates, "
        f"(sum(_candidates) FILTER ({kept}))::BIGINT AS candidates_kept, sum(_misjudged) AS misjudged, "
        f"sum(_misjudged) FILTER ({kept}) AS misjudged_kept FROM {scores}",
        parameters,
    ).to_pylist()
    return {
        **total,
        "lengths": _lengths(session, scores, kept, parameters),
        "mixes": [_mix(session, scores, group.column.name, kept, parameters) for group in session.groups],
        "near": _near(session, scores, column, cut, kept_side),
        "recipe": recipe_line(column, cut, kept_side, nulls),
    }


def recipe_line(column: str, cut: float, kept_side: Literal["above", "below"], nulls: bool) -> str:
    """Write the split that makes a cut, as a line under `splits:` of a recipe."""
    end = "low" if kept_side == "above" else "high"
    name = column if column.isidentifier() else json.dumps(column)
    return f"train: {{filter: keep_between.sql, by: {name}, {end}: {cut!r}{', nulls: keep' if nulls else ''}, format: prompts}}"


def _lengths(session: Session, scores: str, kept: str, parameters: dict[str, JsonValue]) -> JsonValue:
    """Count response lengths in characters, all and kept, in bins up to the 99th percentile."""
    (longest,) = session.ask(f"SELECT approx_quantile(_length, .99) AS q FROM {scores}")["q"].to_pylist()
    step = int(nice((longest or 1) / _LENGTH_BINS, integer=True))
    answer = session.ask(
        f"SELECT least(_length // {step}, {_LENGTH_BINS - 1})::INTEGER AS bin, count(*) AS rows, "
        f"count(*) FILTER ({kept}) AS kept FROM {scores} WHERE _length IS NOT NULL GROUP BY 1 ORDER BY 1",
        parameters,
    )
    counted = {line["bin"]: line for line in answer.to_pylist()}
    # An empty bin is a bar of height 0.
    bins = [counted.get(i, {"bin": i, "rows": 0, "kept": 0}) for i in range(max(counted, default=-1) + 1)]
    return {"step": step, "bins": cast(JsonValue, bins)}


def _mix(session: Session, scores: str, name: str, kept: str, parameters: dict[str, JsonValue]) -> JsonValue:
    q = views.quoted(name)
    counts = session.ask(
        f"SELECT {q} AS value, count(*) AS rows, count(*) FILTER ({kept}) AS kept FROM {scores} "
        "GROUP BY 1 ORDER BY 2 DESC, 1 LIMIT 8",
        parameters,
    )
    return {"name": name, "values": cast(JsonValue, counts.to_pylist())}


def _near(session: Session, scores: str, column: str, cut: float, kept_side: Literal["above", "below"]) -> JsonValue:
    """Return the rows next to the cut, on each side the nearest first."""
    q, parameters = views.quoted(column), cast(dict[str, JsonValue], {"cut": cut})
    conditions = {
        "below": ("<" if kept_side == "above" else "<=", "DESC"),
        "above": (">=" if kept_side == "above" else ">", "ASC"),
    }
    nearest: dict[str, list[dict[str, JsonValue]]] = {
        direction: session.ask(
            f"SELECT row_id, {q}::DOUBLE AS value FROM {scores} WHERE {q} {sign} $cut::DOUBLE "
            f"ORDER BY {q} {order}, row_id LIMIT {_NEAR}",
            parameters,
        ).to_pylist()
        for direction, (sign, order) in conditions.items()
    }
    row_ids = [cast(int, line["row_id"]) for lines in nearest.values() for line in lines]
    texts = row.prompts(session, row_ids, 160)
    return {
        direction: [{**line, "prompt": texts.get(cast(int, line["row_id"]))} for line in lines]
        for direction, lines in nearest.items()
    }
