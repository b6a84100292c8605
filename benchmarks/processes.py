"""What this process and those that it started take, such as the one that runs seamcurate's queries; read from /proc."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

_PROC = Path("/proc")


def children_s() -> float:
    """Return the CPU seconds of all processes that this one started, those that ended included."""
    ended = os.times()
    ticks = sum(sum(map(int, fields[11:15])) for _, fields in _children())
    return ended.children_user + ended.children_system + ticks / os.sysconf("SC_CLK_TCK")


def forget_peaks() -> None:
    """Have `peak_mb` count from here on."""
    for folder in _all():
        with suppress(OSError):
            (folder / "clear_refs").write_text("5")


def peak_mb() -> int:
    """Return the sum of the most memory that each process has held, in MB; they may have held it at different times.

    Not getrusage: its peak is inherited from the process that started this one.
    """
    peaks = [int(_values(folder / "status").get("VmHWM", "0 kB").split()[0]) for folder in _all()]
    return sum(peaks) >> 10


def read_bytes() -> int:
    """Return the bytes that all processes have read of files and sockets."""
    return sum(int(_values(folder / "io").get("rchar", "0")) for folder in _all())


def _all() -> list[Path]:
    return [_PROC / "self", *(folder for folder, _ in _children())]


def _children() -> Iterator[tuple[Path, list[str]]]:
    """Yield the living processes that this one started, and those that they started: its folder and the fields of its `stat`."""
    processes: dict[int, list[str]] = {}
    for file in _PROC.glob("[0-9]*/stat"):
        with suppress(OSError):
            # A process's name may contain spaces and brackets.
            processes[int(file.parent.name)] = file.read_text().rpartition(")")[2].split()
    own = os.getpid()
    for number, fields in processes.items():
        above = int(fields[1])
        while above not in (0, own) and above in processes:
            above = int(processes[above][1])
        if above == own:
            yield _PROC / str(number), fields


def _values(file: Path) -> dict[str, str]:
    """Return the lines of a file in /proc by name; none where the process has ended."""
    with suppress(OSError):
        return {
            name: value.strip() for name, _, value in (line.partition(":") for line in file.read_text().splitlines())
        }
    return {}
