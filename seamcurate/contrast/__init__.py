"""Sample sets of worse answers, a module each, which add `worse_<variant>`; duplicates, and how near other data sets come."""

from __future__ import annotations

from seamcurate.contrast.attack import Attack
from seamcurate.contrast.contamination import Nearest
from seamcurate.contrast.duplicates import Duplicates
from seamcurate.contrast.generate import Generate
from seamcurate.contrast.retrieve import Embed, Retrieve

__all__ = ["Attack", "Duplicates", "Embed", "Generate", "Nearest", "Retrieve"]
