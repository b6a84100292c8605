"""Run a notebook's cells in IPython, without a kernel; as a script, write their outputs into the notebook."""

from __future__ import annotations

import io
import json
import os
import sys
import tempfile
from contextlib import chdir, redirect_stderr
from pathlib import Path
from typing import Any

from IPython.core.interactiveshell import InteractiveShell
from IPython.utils.capture import capture_output
from traitlets.config import Config

TYPES = ("text/html", "text/plain")


class ZMQInteractiveShell(InteractiveShell):
    """A shell with the name of a kernel's, by which libraries such as rich know a notebook."""


def shell(folder: Path) -> InteractiveShell:
    """Return a new shell of IPython that leaves nothing in the home folder; `end` ends it."""
    os.environ["IPYTHONDIR"] = str(folder / "ipython")
    end()
    return ZMQInteractiveShell.instance(config=Config({"HistoryManager": {"enabled": False}}))


def end() -> None:
    """End the shell."""
    ZMQInteractiveShell.clear_instance()


def executed(cells: list[dict[str, Any]], shell: InteractiveShell) -> list[list[dict[str, Any]]]:
    """Run the code cells in order; return the outputs of each as a notebook holds them. An error of a cell is raised."""
    outputs = []
    for number, cell in enumerate((cell for cell in cells if cell["cell_type"] == "code"), 1):
        # What a run says on standard error is its progress, and when it was.
        with capture_output(stderr=False) as captured, redirect_stderr(io.StringIO()):
            result = shell.run_cell("".join(cell["source"]), store_history=False)
        result.raise_error()
        displayed = [output.data for output in captured.outputs]
        # Progress is displayed where it took long.
        shown: list[dict[str, Any]] = [
            {"output_type": "display_data", "data": data, "metadata": {}}
            for data in displayed
            if not data.get("text/html", "").startswith("<div>")
        ]
        if captured.stdout and result.result is None:
            shown.append({"output_type": "stream", "name": "stdout", "text": captured.stdout})
        if result.result is not None:
            data, _ = shell.display_formatter.format(result.result)
            data = {kind: data[kind] for kind in TYPES if kind in data}
            shown.append({"output_type": "execute_result", "execution_count": number, "data": data, "metadata": {}})
        outputs.append(shown)
    return outputs


def main(file: str) -> None:
    """Run a notebook in an empty folder, and write its outputs into it."""
    path = Path(file).absolute()
    notebook = json.loads(path.read_text(encoding="utf-8"))
    with tempfile.TemporaryDirectory() as folder, chdir(folder):
        outputs = executed(notebook["cells"], shell(Path(folder)))
        end()
    codes = (cell for cell in notebook["cells"] if cell["cell_type"] == "code")
    for number, (cell, shown) in enumerate(zip(codes, outputs, strict=True), 1):
        cell["outputs"], cell["execution_count"] = shown, number
    path.write_text(json.dumps(notebook, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main(sys.argv[1])
