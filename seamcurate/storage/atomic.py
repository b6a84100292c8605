"""Files and folders that are written whole: a reader sees the old one or the new one, never half of it.

One rule: new content is built under a temporary name in the same folder, then renamed. Temporary names begin with a dot
and end in `.tmp`, so that readers pass over what a killed process left, and the next run of a store removes it.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from uuid import uuid4


@contextmanager
def replacing(file: Path) -> Iterator[Path]:
    """Yield a temporary path to write to, and rename it to `file` when the block ends without an error.

    The new content is not synced to the disk; use `write` where it must outlive a power cut.
    """
    # A random name, not the process number: two machines that share the folder may have the same number.
    temporary = file.with_name(f".{file.name}.{uuid4().hex}.tmp")
    try:
        yield temporary
        os.replace(temporary, file)
    finally:
        temporary.unlink(missing_ok=True)


def write(file: Path, content: bytes | bytearray) -> None:
    """Write a file whole, and return once it is on the disk.

    Raises:
        OSError: It cannot be written; the file that was there before is unchanged.
    """
    with replacing(file) as temporary, temporary.open("wb") as handle:
        handle.write(content)
        handle.flush()
        # Before the rename: a file system may write the new name to the disk before the content.
        os.fsync(handle.fileno())
    # After it: the folder's entry is what names the new content.
    folder = os.open(file.parent, os.O_RDONLY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)


def replace_folder(folder: Path, new: Path) -> None:
    """Rename the folder `new` to `folder`; a folder that was there is renamed away first, then removed.

    A process that is killed in between leaves the old folder, none, or the new one, never a mix of both.
    """
    old = folder.with_name(f".{folder.name}.old.tmp")
    shutil.rmtree(old, ignore_errors=True)
    if folder.exists():
        folder.rename(old)
    new.rename(folder)
    shutil.rmtree(old, ignore_errors=True)


def remove_folder(folder: Path) -> None:
    """Remove a folder: under its own name it is there whole or not at all, also when the process is killed."""
    old = folder.with_name(f".{folder.name}.{os.getpid()}.tmp")
    folder.rename(old)
    shutil.rmtree(old)
