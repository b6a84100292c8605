"""Sample sets, a module each, which add `worse_<variant>`: worse answers, and the policy's own; duplicates, and how near other data sets come."""

from __future__ import annotations

from seamcurate.contrast.attack import Attack
from seamcurate.contrast.contamination import Nearest
from seamcurate.contrast.duplicates import Duplicates
from seamcurate.contrast.generate import Generate
from seamcurate.contrast.probes import PROBES, Probe
from seamcurate.contrast.probing import Probes
from seamcurate.contrast.retrieve import Embed, Retrieve
from seamcurate.contrast.rollouts import Rollouts

__all__ = ["PROBES", "Attack", "Duplicates", "Embed", "Generate", "Nearest", "Probe", "Probes", "Retrieve", "Rollouts"]
