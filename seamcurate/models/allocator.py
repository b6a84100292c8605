"""Memory that a forward pass frees stays with the process for the next one, where the C library is glibc.

By itself, glibc returns large tensors to the system as soon as they are freed, and the next ones are cleared page by page when they
are written: up to a tenth of a forward pass on a CPU. What was freed is given back after each step and split
(`storage.shard.give_back`).
"""

from __future__ import annotations

import ctypes
import os
from functools import cache

_TRIM_THRESHOLD, _MMAP_THRESHOLD = -1, -3
"""The numbers that `mallopt` knows its settings by."""
_KEPT, _LARGEST = 2**28, 2**25
"""Bytes of freed memory that are kept, and bytes from which on a tensor has memory of its own: the most that glibc documents."""
_OWN = ("MALLOC_TRIM_THRESHOLD_", "MALLOC_MMAP_THRESHOLD_")
"""What a user sets to decide this."""


@cache
def keep_freed() -> None:
    """Keep up to 256 MiB of freed memory from now on; does nothing under another C library, or where the user decided."""
    set_option = getattr(ctypes.CDLL(None), "mallopt", None) if os.name == "posix" else None
    if set_option is not None and not any(name in os.environ for name in _OWN):
        set_option(_MMAP_THRESHOLD, _LARGEST)
        set_option(_TRIM_THRESHOLD, _KEPT)
