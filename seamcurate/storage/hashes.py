"""The SHA-256 of files, remembered from one process to the next by what the file system says of them.

Whoever hands a store's rows on compares weights and sources with those that made it: gigabytes, read at 1 GB a second a core,
which have not changed since the run.
"""

from __future__ import annotations

import hashlib
import json
import os
import time
from contextlib import suppress
from pathlib import Path
from uuid import uuid4

from seamcurate.storage.objects import cache_folder

_LARGE = 2**24
"""Bytes from which on a hash is remembered: a smaller file is read as fast as its hash is looked up."""
_SETTLED = 2.0
"""Seconds since a file's last change: one that changes twice within the clock's grain looks as if it had not."""


def sha256(file: Path) -> str:
    """Return a file's SHA-256; a large one that has not changed since is not read again.

    Raises:
        OSError: It cannot be read.
    """
    state = _state(file)
    if file.stat().st_size < _LARGE:
        return _digest(file)
    record = cache_folder() / "hashes" / f"{hashlib.sha256(str(file.resolve()).encode()).hexdigest()[:32]}.json"
    with suppress(OSError, ValueError, KeyError, TypeError):
        known = json.loads(record.read_bytes())
        if known["state"] == state:
            return str(known["sha256"])
    found = _digest(file)
    changed = max(file.stat().st_mtime, file.stat().st_ctime)
    if _state(file) == state and time.time() - changed > _SETTLED:
        # Where there is no room for it, the file is read again the next time.
        with suppress(OSError):
            record.parent.mkdir(parents=True, exist_ok=True)
            partial = record.with_name(f".{record.name}.{uuid4().hex}.tmp")
            partial.write_text(json.dumps({"state": state, "sha256": found}))
            os.replace(partial, record)
    return found


def _state(file: Path) -> list[int]:
    # Whoever sets the time of a change back changes the time of that change.
    state = file.stat()
    return [state.st_ino, state.st_size, state.st_mtime_ns, state.st_ctime_ns]


def _digest(file: Path) -> str:
    with file.open("rb") as handle:
        return hashlib.file_digest(handle, "sha256").hexdigest()
