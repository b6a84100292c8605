"""Rows by their words: those that contain a text, and the words that tell regions of the map apart."""

from __future__ import annotations

import math
import re
from collections import Counter
from typing import NamedTuple

from pydantic import JsonValue

from seamcurate.explore.session import Session

_MOST = 5_000
"""Rows of a search: charts are filtered by their numbers."""
_SAMPLE = 4_000
"""Prompts from which regions are named."""
_GRID = (5, 4)
_FEWEST = 12
"""Prompts of a region that has a name."""
_WORDS = re.compile(r"[^\W\d_]{3,}")


class Region(NamedTuple):
    """A part of the map: where its prompts lie on average, and its words."""

    x: float
    y: float
    words: str


def search(session: Session, text: str) -> dict[str, JsonValue]:
    """Return the rows whose prompt or golden response contains a text, whatever its case: at most 5,000, and how many there are."""
    contains = "contains(lower({}::VARCHAR), lower($text))"
    found = f"{contains.format('prompt')} OR coalesce({contains.format('response')}, false)"
    answer = session.ask(
        f"SELECT row_id, count(*) OVER () AS total FROM rows WHERE {found} ORDER BY row_id LIMIT {_MOST}",
        {"text": text},
    )
    ids: list[JsonValue] = answer["row_id"].to_pylist()
    quoted = text.replace("'", "''")
    return {
        "rows": ids,
        "total": answer["total"][0].as_py() if ids else 0,
        "told": found.replace("$text", f"'{quoted}'"),
    }


def regions(session: Session) -> list[Region]:
    """Name the regions of the map: of each cell of a grid the two words that are most its own.

    A word's weight is how much more often the cell's prompts have it than all prompts, times the logarithm of how many
    of them have it. A store without a map has no regions.
    """
    if not {"projection_x", "projection_y"} <= {chart.column.name for chart in session.charts}:
        return []
    every = max(1, session.rows // _SAMPLE)
    table = session.ask(
        "SELECT prompt::VARCHAR AS prompt, projection_x AS x, projection_y AS y FROM rows "
        f"WHERE row_id % {every} = 0 AND isfinite(projection_x) AND isfinite(projection_y)"
    ).to_pylist()
    if not table:
        return []
    words = [set(_WORDS.findall(row["prompt"].lower())) for row in table]
    everywhere = Counter(word for own in words for word in own)
    ends = [(min(row[side] for row in table), max(row[side] for row in table)) for side in ("x", "y")]
    cells: dict[tuple[int, int], list[int]] = {}
    for i, row in enumerate(table):
        place = [
            min(size - 1, int(size * (row[side] - low) / ((high - low) or 1)))
            for side, size, (low, high) in zip(("x", "y"), _GRID, ends, strict=True)
        ]
        cells.setdefault((place[0], place[1]), []).append(i)
    named = []
    for inside in cells.values():
        if len(inside) < _FEWEST:
            continue
        own = Counter(word for i in inside for word in words[i])
        share = len(inside) / len(table)
        # Words of fewer than three prompts are names, and tell one prompt.
        weights = {
            word: math.log(count / (everywhere[word] * share)) * math.log1p(count)
            for word, count in own.items()
            if count >= 3
        }
        best = sorted((word for word in weights if weights[word] > 0), key=lambda word: (-weights[word], word))[:2]
        if best:
            x, y = (sum(table[i][side] for i in inside) / len(inside) for side in ("x", "y"))
            named.append(Region(x, y, " · ".join(best)))
    return named
