"""HTML that values show in a notebook.

One rule: every text is escaped here, and control characters are spelled out: prompts and answers come from strangers.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from html import escape

from seamcurate.text import brief, clean

_LONGEST = 300
"""Characters of a cell that are shown."""
_HEAD = "text-align:{};vertical-align:top;white-space:nowrap"
_CELL = "text-align:{};vertical-align:top;min-width:4em;max-width:36em;white-space:pre-wrap;overflow-wrap:anywhere"


def block(title: str, *parts: str) -> str:
    """Put parts, which are HTML, under a title, which is text."""
    return f'<div style="overflow-x:auto"><p><strong>{_text(title)}</strong></p>{"".join(parts)}</div>'


def lines(texts: Iterable[str]) -> str:
    """Write texts as a list; warnings are set in bold."""
    items = [
        f"<li>{f'<strong>{_text(line)}</strong>' if line.startswith('warning') else _text(line)}</li>" for line in texts
    ]
    return f"<ul>{''.join(items)}</ul>" if items else ""


def table(header: Sequence[str], rows: Sequence[Sequence[object]], caption: str = "", right: Sequence[int] = ()) -> str:
    """Write a table; columns in `right`, and those whose values are all numbers, are aligned to the right."""
    columns = list(zip(*rows, strict=True)) or [()] * len(header)
    sides = [
        "right" if i in right or all(isinstance(cell, int | float | None) for cell in column) else "left"
        for i, column in enumerate(columns)
    ]

    def line(cells: Sequence[object], tag: str, style: str) -> str:
        styled = (
            f'<{tag} style="{style.format(side)}">{_cell(cell)}</{tag}>'
            for cell, side in zip(cells, sides, strict=True)
        )
        return f"<tr>{''.join(styled)}</tr>"

    titled = f'<caption style="text-align:left;caption-side:top">{_text(caption)}</caption>' if caption else ""
    head = line([brief(name, 60) for name in header], "th", _HEAD)
    body = "".join(line(row, "td", _CELL) for row in rows)
    return f"<table>{titled}<thead>{head}</thead><tbody>{body}</tbody></table>"


def details(summary: str, content: str) -> str:
    """Fold content, which is HTML, under a summary, which is text."""
    return f"<details><summary>{_text(summary)}</summary>{content}</details>"


def _cell(value: object) -> str:
    if isinstance(value, bool) or not isinstance(value, str):
        return _text(brief(value, _LONGEST))
    # <bdi>: text that runs from right to left must not turn its neighbours around.
    shown = value if len(value) <= _LONGEST else value[: _LONGEST - 1] + "…"
    return f"<bdi>{_text(shown)}</bdi>"


def _text(text: str) -> str:
    return escape(clean(text))
