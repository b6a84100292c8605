"""Temporary folders that outlive no process for long: what a killed one left, the next one clears away.

One rule: whoever uses a folder holds a lock on a file in it, which the system lets go of however a process ends.
"""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import NamedTuple

_PREFIX = "seamcurate-"
_LOCK = ".in-use-by-seamcurate"
"""Without this file a folder is not one of these, whatever it is called."""


class Scratch(NamedTuple):
    """A folder of this process alone."""

    path: Path
    remove: Callable[[], None]


def make(inside: Path | None = None) -> Scratch:
    """Make a temporary folder for its owner's eyes alone, and clear those of processes that are gone.

    Args:
        inside: Where; by default where the system has its temporary folders.
    """
    inside = inside or Path(tempfile.gettempdir())
    for left in inside.glob(f"{_PREFIX}*/{_LOCK}"):
        with suppress(OSError):
            _remove(left.parent, _held(left))
    while True:
        folder = Path(tempfile.mkdtemp(prefix=_PREFIX, dir=inside))
        # Another process may have taken it for one that was left, before it was locked.
        with suppress(BlockingIOError, FileNotFoundError):
            (folder / _LOCK).touch(mode=0o600)
            lock = _held(folder / _LOCK)
            return Scratch(folder, partial(_remove, folder, lock))


def _held(file: Path) -> int:
    """Lock a file of this user's; it is let go of with the descriptor.

    Raises:
        BlockingIOError: A living process holds it.
        FileNotFoundError: It was removed meanwhile.
        PermissionError: It is another user's.
    """
    import fcntl

    lock = os.open(file, os.O_RDWR | os.O_NOFOLLOW)
    try:
        if os.fstat(lock).st_uid != os.getuid():
            raise PermissionError(str(file))
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        if not os.path.samestat(file.stat(), os.fstat(lock)):
            raise FileNotFoundError(str(file))
    except BaseException:
        os.close(lock)
        raise
    return lock


def _remove(folder: Path, lock: int) -> None:
    # The lock last: until then nobody else takes the folder for one that was left.
    shutil.rmtree(folder, ignore_errors=True)
    with suppress(OSError):
        os.close(lock)
