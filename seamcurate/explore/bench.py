"""The threshold bench: what a cut on one score would keep, and the recipe line that makes the same cut."""

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


def bench(session: Session, by: str, cut: float, keep: Literal["above", "below"], nulls: bool) -> dict[str, JsonValue]:
    """Compare the rows a cut keeps, the cut itself included, with all rows.

    Args:
        session: The store.
        by: The numeric column to cut.
        cut: Where.
        keep: Which side stays.
        nulls: Whether rows without a value stay too.

    Raises:
        QueryError: The column is not one that has a chart.
    """
    if by not in [chart.column.name for chart in session.charts]:
        raise QueryError(f"{by!r} is no numeric column of this store")
    q, sign = views.quoted(by), ">=" if keep == "above" else "<="
    kept = f"coalesce({q} {sign} $cut::DOUBLE, {'true' if nulls else 'false'})"
    at: dict[str, JsonValue] = {"cut": cut}
    (total,) = session.ask(
        f"SELECT count(*) AS rows, count(*) FILTER ({kept}) AS kept, count(*) FILTER ({q} IS NULL) AS without, "
        f"median(_length) AS length, median(_length) FILTER ({kept}) AS length_kept, sum(_candidates)::BIGINT AS candidates, "
        f"(sum(_candidates) FILTER ({kept}))::BIGINT AS candidates_kept, sum(_misjudged) AS misjudged, "
        f"sum(_misjudged) FILTER ({kept}) AS misjudged_kept FROM scores",
        at,
    ).to_pylist()
    return {
        **total,
        "lengths": _lengths(session, kept, at),
        "mixes": [_mix(session, group.column.name, kept, at) for group in session.groups],
        "near": _near(session, by, cut, keep),
        "recipe": recipe_line(by, cut, keep, nulls),
    }


def recipe_line(by: str, cut: float, keep: Literal["above", "below"], nulls: bool) -> str:
    """Write the split that makes a cut, as a line under `splits:` of a recipe."""
    end = "low" if keep == "above" else "high"
    name = by if by.isidentifier() else json.dumps(by)
    return f"train: {{filter: keep_between.sql, by: {name}, {end}: {cut!r}{', nulls: keep' if nulls else ''}, format: prompts}}"


def _lengths(session: Session, kept: str, at: dict[str, JsonValue]) -> JsonValue:
    """Count response lengths in characters, all and kept, in bins up to the 99th percentile."""
    ((top,),) = [
        tuple(one.values()) for one in session.ask("SELECT approx_quantile(_length, .99) AS q FROM scores").to_pylist()
    ]
    step = int(nice((top or 1) / _LENGTH_BINS, whole=True))
    found = session.ask(
        f"SELECT least(_length // {step}, {_LENGTH_BINS - 1})::INTEGER AS bin, count(*) AS rows, "
        f"count(*) FILTER ({kept}) AS kept FROM scores WHERE _length IS NOT NULL GROUP BY 1 ORDER BY 1",
        at,
    )
    counted = {one["bin"]: one for one in found.to_pylist()}
    # A length that no response has is a bar too, of no height.
    bins = [counted.get(i, {"bin": i, "rows": 0, "kept": 0}) for i in range(max(counted, default=-1) + 1)]
    return {"step": step, "bins": cast(JsonValue, bins)}


def _mix(session: Session, name: str, kept: str, at: dict[str, JsonValue]) -> JsonValue:
    q = views.quoted(name)
    found = session.ask(
        f"SELECT {q} AS value, count(*) AS rows, count(*) FILTER ({kept}) AS kept FROM scores "
        "GROUP BY 1 ORDER BY 2 DESC, 1 LIMIT 8",
        at,
    )
    return {"name": name, "values": cast(JsonValue, found.to_pylist())}


def _near(session: Session, by: str, cut: float, keep: Literal["above", "below"]) -> JsonValue:
    """Return the rows next to the cut: those it drops nearest first, and those it keeps."""
    q, at = views.quoted(by), cast(dict[str, JsonValue], {"cut": cut})
    sides = {"below": ("<" if keep == "above" else "<=", "DESC"), "above": (">=" if keep == "above" else ">", "ASC")}
    found: dict[str, list[dict[str, JsonValue]]] = {
        side: session.ask(
            f"SELECT row_id, {q}::DOUBLE AS value FROM scores WHERE {q} {sign} $cut::DOUBLE "
            f"ORDER BY {q} {order}, row_id LIMIT {_NEAR}",
            at,
        ).to_pylist()
        for side, (sign, order) in sides.items()
    }
    texts = row.prompts(session, [cast(int, one["row_id"]) for side in found.values() for one in side], 160)
    return {
        side: [{**one, "prompt": texts.get(cast(int, one["row_id"]))} for one in ones] for side, ones in found.items()
    }
