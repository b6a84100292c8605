"""Temporary folders; those that killed processes left are removed by the next process.

One rule: the process that uses a folder holds a lock on a file in it. The system releases the lock however the process
ends.
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
"""The name of the locked file. A folder without it is never removed, whatever the folder's name is."""


class Scratch(NamedTuple):
    """A temporary folder of this process."""

    path: Path
    remove: Callable[[], None]


def make(inside: Path | None = None) -> Scratch:
    """Make a temporary folder that only its owner may read, and remove those of processes that have ended.

    Args:
        inside: The folder to make it in; by default the system's folder for temporary files.
    """
    inside = inside or Path(tempfile.gettempdir())
    for lock_file in inside.glob(f"{_PREFIX}*/{_LOCK}"):
        with suppress(OSError):
            _remove(lock_file.parent, _held(lock_file))
    while True:
        folder = Path(tempfile.mkdtemp(prefix=_PREFIX, dir=inside))
        # Between mkdtemp and the lock, another process may take the folder for an abandoned one and remove it: try again.
        with suppress(BlockingIOError, FileNotFoundError):
            (folder / _LOCK).touch(mode=0o600)
            lock = _held(folder / _LOCK)
            return Scratch(folder, partial(_remove, folder, lock))


def _held(file: Path) -> int:
    """Lock a file of this user and return its descriptor; closing the descriptor releases the lock.

    Raises:
        BlockingIOError: A living process holds it.
        FileNotFoundError: It was removed, or replaced, before it was locked.
        PermissionError: It is another user's.
    """
    import fcntl

    lock = os.open(file, os.O_RDWR | os.O_NOFOLLOW)
    try:
        if os.fstat(lock).st_uid != os.getuid():
            raise PermissionError(str(file))
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        # The path may name another file by now than the one that was opened and locked.
        if not os.path.samestat(file.stat(), os.fstat(lock)):
            raise FileNotFoundError(str(file))
    except BaseException:
        os.close(lock)
        raise
    return lock


def _remove(folder: Path, lock: int) -> None:
    # The lock is released last: until then no other process takes the folder for an abandoned one.
    shutil.rmtree(folder, ignore_errors=True)
    with suppress(OSError):
        os.close(lock)
