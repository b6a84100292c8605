"""Markdown of a card: tables, cells that nothing breaks out of, numbers and fenced code."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence

import numpy as np

from seamcurate.text import brief


def megabytes(size: int) -> str:
    """Write a number of bytes in megabytes, or kilobytes where they are few."""
    return f"{size / 1e6:,.1f} MB" if size >= 1e5 else f"{size / 1e3:.1f} kB"


def table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> Iterator[str]:
    """Yield the lines of a table."""
    yield f"| {' | '.join(header)} |"
    yield f"|{'---|' * len(header)}"
    for row in rows:
        yield f"| {' | '.join(row)} |"


def cell(value: object) -> str:
    """Return text that breaks neither out of a table's cell nor out of a code span, and is no link, image or HTML.

    What cannot be escaped alike inside and outside of code is put in other words: a grave accent becomes an apostrophe,
    `](` is parted, and backslashes before a pipe, which would undo its escape, are left out.
    """
    text = brief(value, 300).replace("`", "'").replace("<", "&lt;").replace("](", "] (")
    return re.sub(r"\\*\|", r"\\|", text)


def number(value: object) -> str:
    """Write a number with four digits; a dash for what is none."""
    return f"{value:.4g}" if isinstance(value, float | int) and np.isfinite(value) else "–"


def signed(value: float) -> str:
    """Write a correlation with its sign and two decimals; a dash where there is none."""
    return f"{round(value, 2) + 0.0:+.2f}".replace("-", "−") if np.isfinite(value) else "–"


def fenced(language: str, code: str) -> Iterator[str]:
    """Fence code longer than any fence inside it."""
    fence = "```"
    while fence in code:
        fence += "`"
    yield f"{fence}{language}"
    yield code.strip("\n")
    yield fence
