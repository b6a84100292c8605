"""Print the lowest versions that pyproject.toml allows, as constraints for pip: `python tests/lowest.py EXTRA…`.

torch is left out: its lower wheels bring CUDA.
"""

from __future__ import annotations

import re
import sys
import tomllib
from pathlib import Path


def constraints(extras: list[str]) -> list[str]:
    """Return `name==version` for every dependency that has a lower bound."""
    project = tomllib.loads((Path(__file__).parents[1] / "pyproject.toml").read_text())["project"]
    wanted = [*project["dependencies"], *(one for extra in extras for one in project["optional-dependencies"][extra])]
    bounds = (re.match(r"([\w.-]+)(?:\[.*?\])?>=([\d.]+)", one) for one in wanted)
    return [f"{bound[1]}=={bound[2]}" for bound in bounds if bound and bound[1] != "torch"]


if __name__ == "__main__":
    print("\n".join(constraints(sys.argv[1:])))
