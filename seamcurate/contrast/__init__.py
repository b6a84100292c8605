"""SEAM's three sample sets of worse answers, a module each; every one adds `worse_<variant>`."""

from __future__ import annotations

from seamcurate.contrast.attack import Attack
from seamcurate.contrast.generate import Generate
from seamcurate.contrast.retrieve import Embed, Retrieve

__all__ = ["Attack", "Embed", "Generate", "Retrieve"]
