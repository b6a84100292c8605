"""The SHA-256 of files: read from the disk, or remembered for files that have not changed.

One rule: whoever looks for damage reads the file (`read_sha256`); whoever asks which weights or rows a file holds takes
a remembered hash (`sha256`). These are gigabytes, read at about 1 GB a second a core.
"""

from __future__ import annotations

import hashlib
import json
import time
from contextlib import suppress
from functools import lru_cache
from pathlib import Path
from typing import TypeAlias

from seamcurate.storage import atomic
from seamcurate.storage.cache import cache_folder

_LARGE = 2**24
"""Bytes from which on a hash is remembered: a smaller file is read as fast as its hash is looked up."""
_SETTLED = 2.0
"""Seconds since a file's last change: one that changes twice within the clock's grain looks as if it had not."""

State: TypeAlias = tuple[int, int, int, int]
"""Inode, size, and times of the last modification and change: a file, or a folder's listing, with the same is the same."""


def sha256(file: Path) -> str:
    """Return a file's SHA-256; a large file that has not changed since any process read it is not read again.

    Raises:
        OSError: It cannot be read.
    """
    state = _state(file)
    if state[1] < _LARGE:
        return read_sha256(file)
    record = cache_folder() / "hashes" / f"{hashlib.sha256(str(file.resolve()).encode()).hexdigest()[:32]}.json"
    with suppress(OSError, ValueError, KeyError, TypeError):
        remembered = json.loads(record.read_bytes())
        if remembered["state"] == [*state]:
            return str(remembered["sha256"])
    digest = read_sha256(file)
    if settled_state(file) == state:
        # Without room for the record, the file is read again the next time.
        with suppress(OSError):
            record.parent.mkdir(parents=True, exist_ok=True)
            with atomic.replacing(record) as temporary:
                temporary.write_text(json.dumps({"state": state, "sha256": digest}))
    return digest


def read_sha256(file: Path) -> str:
    """Return the SHA-256 of a file's bytes as this process reads them, once for each state of the file.

    Raises:
        OSError: It cannot be read.
    """
    return _digest(file, _state(file))


def settled_state(path: Path) -> State | None:
    """Return a file's or folder's state; None where it changed so lately that another change might not show in it."""
    state = _state(path)
    return state if time.time_ns() - max(state[2:]) > _SETTLED * 1e9 else None


def _state(file: Path) -> State:
    # The time of a change (ctime) is among them: a program can set the modification time back, but not this one.
    state = file.stat()
    return state.st_ino, state.st_size, state.st_mtime_ns, state.st_ctime_ns


@lru_cache(maxsize=4096)
def _digest(file: Path, state: State) -> str:
    with file.open("rb") as handle:
        return hashlib.file_digest(handle, "sha256").hexdigest()
