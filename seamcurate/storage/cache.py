"""The folder of this machine for what can be fetched or computed again: copies of objects, and hashes of files."""

from __future__ import annotations

import os
from pathlib import Path


def cache_folder() -> Path:
    """Return the folder that `SEAMCURATE_CACHE` names, or else `seamcurate` in the user's cache folder."""
    named = os.environ.get("SEAMCURATE_CACHE")
    return Path(named) if named else Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "seamcurate"
