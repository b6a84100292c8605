"""Markdown of a card: tables, escaped cells, numbers and fenced code."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence

import numpy as np

from seamcurate.text import brief


def megabytes(size: int) -> str:
    """Write a number of bytes in megabytes, or in kilobytes below 0.1 MB."""
    return f"{size / 1e6:,.1f} MB" if size >= 1e5 else f"{size / 1e3:.1f} kB"


def table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> Iterator[str]:
    """Yield the lines of a table."""
    yield f"| {' | '.join(header)} |"
    yield f"|{'---|' * len(header)}"
    for row in rows:
        yield f"| {' | '.join(row)} |"


def cell(value: object) -> str:
    """Escape text for a table's cell or a code span, so that it ends neither and makes no link, image or HTML.

    No escape works both inside and outside of code. So a grave accent becomes an apostrophe, `](` gets a space, and
    backslashes before a pipe are removed, as they would undo its escape.
    """
    text = brief(value, 300).replace("`", "'").replace("<", "&lt;").replace("](", "] (")
    return re.sub(r"\\*\|", r"\\|", text)


def prose(value: object, most: int = 160) -> str:
    r"""Escape text so that Markdown shows it as it is, on one line: no emphasis, link, picture, mention, formula or HTML.

    Example:
        >>> print(prose("see *this* at a_b"))
        see \*this\* at a\_b
    """
    text = re.sub(r"([\\`*_\[\]>|~#!$@:])", r"\\\1", brief(value, most).replace("&", "&amp;"))
    return text.replace("<", "&lt;")


def number(value: object) -> str:
    """Write a number with four digits; a dash for NaN, infinity or a value that is no number."""
    return f"{value:.4g}" if isinstance(value, float | int) and np.isfinite(value) else "–"


def signed(value: float) -> str:
    """Write a correlation with its sign and two decimals; a dash for NaN."""
    return f"{round(value, 2) + 0.0:+.2f}".replace("-", "−") if np.isfinite(value) else "–"


def fenced(language: str, code: str) -> Iterator[str]:
    """Yield the lines of a code block, with a fence that is longer than any in the code."""
    fence = "```"
    while fence in code:
        fence += "`"
    yield f"{fence}{language}"
    yield code.strip("\n")
    yield fence
