"""The example notebook, run in a kernel; and what IPython completes."""

from __future__ import annotations

import json
import re
from pathlib import Path

import notebook
import pytest
from IPython.core.completer import provisionalcompleter
from IPython.core.interactiveshell import InteractiveShell
from traitlets.config import Config

EXAMPLE = Path(__file__).parents[1] / "examples" / "notebook.ipynb"


@pytest.fixture
def shell(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("IPYTHONDIR", str(tmp_path / "ipython"))
    InteractiveShell.clear_instance()
    yield InteractiveShell.instance(config=Config({"HistoryManager": {"enabled": False}}))
    InteractiveShell.clear_instance()


def timeless(outputs):
    """Return outputs with a mark in the place of each number of seconds, which a busy machine makes more."""
    return re.sub(r"\b[\d.]+ s\b", "# s", json.dumps(outputs))


@pytest.mark.slow
@pytest.mark.process
def test_the_example_shows_what_it_showed_when_it_was_saved(tmp_path):
    """Where this fails after a change of the code: `python tests/notebook.py examples/notebook.ipynb`."""
    cells = json.loads(EXAMPLE.read_text(encoding="utf-8"))["cells"]
    saved = [cell["outputs"] for cell in cells if cell["cell_type"] == "code"]
    assert len(saved) >= 8 and sum(map(bool, saved)) >= 8
    assert timeless(notebook.executed(EXAMPLE, tmp_path)) == timeless(saved)


def test_the_example_is_small_and_names_no_machine():
    text = EXAMPLE.read_text(encoding="utf-8")
    assert len(text) < 60_000
    assert "token=" not in text and "/tmp" not in text and str(Path.home()) not in text


@pytest.mark.slow
def test_tab_completes_names_methods_and_arguments(shell):
    shell.run_cell(
        "import seamcurate\nfrom seamcurate import Source, Store\nstore = Store('my-store')", store_history=False
    )

    def completed(typed: str) -> set[str]:
        with provisionalcompleter():
            return {match.text.rpartition(".")[2] for match in shell.Completer.completions(typed, len(typed))}

    assert {"Store", "Step", "Source", "Split"} <= completed("seamcurate.S")
    assert {"run_local", "rer", "reproduce", "run_ray"} <= completed("seamcurate.r")
    assert {"sql", "scan"} <= completed("store.s") and "explore" in completed("store.e")
    assert {"prompt=", "parquet="} <= completed("Source(p")
