"""Build the explorer's page into the wheel, where npm is there; without it the wheel is whole but for that page."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path
from typing import Any

from hatchling.builders.hooks.plugin.interface import BuildHookInterface


class ExplorerHook(BuildHookInterface):
    """Run the explorer's npm build before files are gathered."""

    PLUGIN_NAME = "custom"

    def initialize(self, version: str, build_data: dict[str, Any]) -> None:
        """Build the page unless it is there, npm is not, or SEAMCURATE_NO_EXPLORER is set."""
        root = Path(self.root)
        page = root / "seamcurate" / "explore" / "static"
        # An editable install takes the page from the checkout, where `make explorer` puts it.
        if version == "editable" or os.environ.get("SEAMCURATE_NO_EXPLORER"):
            return
        npm = shutil.which("npm")
        if npm is None:
            if not (page / "index.html").is_file():
                self.app.display_warning("npm is not installed: the wheel will lack the explorer's page")
        else:
            for command in ("ci", "run build"):
                subprocess.run([npm, *command.split(), "--silent"], cwd=root / "explorer", check=True)
        # What git ignores is left out unless it is named.
        build_data["artifacts"].append("seamcurate/explore/static/**")
