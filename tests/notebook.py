"""Run a notebook in a kernel, as Jupyter does; as a script, write the outputs into the notebook."""

from __future__ import annotations

import json
import os
import sys
import tempfile
from pathlib import Path
from typing import Any

import nbformat
from nbclient import NotebookClient

TYPES = ("text/html", "text/plain")
_PROGRESS = "<div>"
"""How the display of a progress bar begins, which is there only where something took long."""


def executed(path: Path, folder: Path) -> list[list[dict[str, Any]]]:
    """Run a notebook in an empty folder; return the outputs of each of its code cells. An error of a cell is raised."""
    kernel = folder / "jupyter" / "kernels" / "python3"
    kernel.mkdir(parents=True)
    command = [sys.executable, "-m", "ipykernel_launcher", "-f", "{connection_file}"]
    (kernel / "kernel.json").write_text(json.dumps({"argv": command, "display_name": "Python 3", "language": "python"}))
    # Nothing is read from, or left in, the home folder.
    own = {
        "IPYTHONDIR": folder / "ipython",
        "JUPYTER_PATH": folder / "jupyter",
        "JUPYTER_CONFIG_DIR": folder / "config",
    }
    before = {name: os.environ.get(name) for name in own}
    os.environ.update({name: str(value) for name, value in own.items()})
    work = folder / "work"
    work.mkdir()
    notebook = nbformat.read(path, as_version=4)
    try:
        NotebookClient(
            notebook, kernel_name="python3", timeout=120, resources={"metadata": {"path": str(work)}}
        ).execute()
    finally:
        for name, value in before.items():
            os.environ.pop(name) if value is None else os.environ.update({name: value})
    return [_shown(cell["outputs"]) for cell in notebook["cells"] if cell["cell_type"] == "code"]


def _shown(outputs: list[Any]) -> list[dict[str, Any]]:
    """Return outputs as a notebook holds them, without progress and what is said on standard error."""
    shown: list[dict[str, Any]] = []
    for output in outputs:
        if output["output_type"] == "stream":
            if output["name"] == "stdout":
                shown.append({"output_type": "stream", "name": "stdout", "text": output["text"]})
            continue
        data = {kind: output["data"][kind] for kind in TYPES if kind in output["data"]}
        if output["output_type"] == "display_data" and data.get("text/html", "").startswith(_PROGRESS):
            continue
        plain = {"output_type": output["output_type"], "data": data, "metadata": {}}
        if output["output_type"] == "execute_result":
            plain["execution_count"] = output["execution_count"]
        shown.append(plain)
    return shown


def main(file: str) -> None:
    """Run a notebook, and write its outputs into it."""
    path = Path(file).absolute()
    notebook = json.loads(path.read_text(encoding="utf-8"))
    with tempfile.TemporaryDirectory() as folder:
        outputs = executed(path, Path(folder))
    codes = (cell for cell in notebook["cells"] if cell["cell_type"] == "code")
    for number, (cell, shown) in enumerate(zip(codes, outputs, strict=True), 1):
        cell["outputs"], cell["execution_count"] = shown, number
    path.write_text(json.dumps(notebook, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main(sys.argv[1])
