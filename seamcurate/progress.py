"""Progress on standard error: a bar on a terminal; elsewhere one line at the end.

One rule: nothing is written to standard output, so that `seamcurate sql … > file` holds the answer only.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager


def note(message: str) -> None:
    """Print one line for a person to standard error."""
    print(message, file=sys.stderr, flush=True)


@contextmanager
def bar(label: str, total: int | None, unit: str = "rows") -> Iterator[Callable[[int], None]]:
    """Show the progress of some work; yield a function to call with each advance.

    Where standard error is no terminal, work that took at least a second prints one line at its end.
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

    def advance(n: int) -> None:
        nonlocal count
        count += n

    yield advance
    seconds = time.monotonic() - start
    if seconds >= 1:
        note(f"{label}: {count:,} {unit} in {seconds:.0f} s")
