"""Progress on standard error: a bar on a terminal or in a notebook's cell; elsewhere one line at the end.

One rule: nothing is written to standard output, so that `seamcurate sql … > file` holds the answer only.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from html import escape
from typing import Any


def note(message: str) -> None:
    """Print one line for a person to standard error."""
    print(message, file=sys.stderr, flush=True)


@contextmanager
def bar(label: str, total: int | None, unit: str = "rows") -> Iterator[Callable[[int], None]]:
    """Show the progress of some work; yield a function to call with each advance.

    Where standard error is neither a terminal nor a notebook's, work that took at least a second prints one line at its
    end.
    """
    start, count = time.monotonic(), 0
    if sys.stderr.isatty():
        from rich.console import Console
        from rich.progress import (
            BarColumn,
            MofNCompleteColumn,
            Progress,
            TextColumn,
            TimeElapsedColumn,
            TimeRemainingColumn,
        )

        columns = (
            TextColumn("{task.description:<24}"),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn(unit),
            TimeElapsedColumn(),
            TimeRemainingColumn(),
        )
        with Progress(*columns, console=Console(stderr=True)) as progress:
            task = progress.add_task(label, total=total)
            yield lambda n: progress.advance(task, n)
        return

    cell = _Cell(label, total, unit) if _in_notebook() else None

    def advance(n: int) -> None:
        nonlocal count
        count += n
        if cell is not None:
            cell.show(count, time.monotonic() - start)

    yield advance
    seconds = time.monotonic() - start
    if cell is not None:
        cell.end(count, seconds)
    elif seconds >= 1:
        note(f"{label}: {count:,} {unit} in {seconds:.0f} s")


def _in_notebook() -> bool:
    """Tell whether this is a notebook's kernel: IPython, and not on a terminal."""
    # A notebook has imported IPython; nothing else has to wait for it.
    ipython = sys.modules.get("IPython")
    shell = None if ipython is None else ipython.get_ipython()
    return shell is not None and type(shell).__name__ != "TerminalInteractiveShell"


class _Cell:
    """A bar in a notebook's cell, which its browser draws: no widgets are needed."""

    def __init__(self, label: str, total: int | None, unit: str) -> None:
        self._label, self._total, self._unit = label, total, unit
        self._display: Any = None
        self._shown = 0.0

    def show(self, count: int, seconds: float) -> None:
        """Draw the bar once the work has taken half a second, and again each fifth of a second."""
        if seconds >= 0.5 and seconds - self._shown >= 0.2:
            self._shown = seconds
            total, length = self._total, f' value="{count}" max="{self._total}"' if self._total else ""
            left = f", {seconds * (total - count) / count:.0f} s left" if total and count else ""
            of = f" of {total:,}" if total else ""
            self._draw(f"<progress{length}></progress> {count:,}{of} {escape(self._unit)}, {seconds:.0f} s{left}")

    def end(self, count: int, seconds: float) -> None:
        """Put one line in the place of the bar, if there was one."""
        if self._display is not None:
            self._draw(f"{count:,} {escape(self._unit)} in {seconds:.0f} s")

    def _draw(self, html: str) -> None:
        from IPython.display import HTML, display

        content = HTML(f"<div>{escape(self._label)}: {html}</div>")
        if self._display is None:
            self._display = display(content, display_id=True)
        else:
            self._display.update(content)
