"""The tutorials: their commands run in order, as written, and print what the pages show; notebooks are made of them."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import generate
import manual
import notebook
import pytest

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "docs" / "tutorial" / name for name in generate.TUTORIALS]


@pytest.mark.slow
@pytest.mark.process
def test_the_tutorials_print_what_they_show(tmp_path):
    """All six in one folder, as a reader goes on. To write what is printed into the pages: `python tests/manual.py PAGE…`."""
    done = subprocess.run(
        [sys.executable, ROOT / "tests" / "manual.py", "--check", *PAGES],
        env={**os.environ, "TMPDIR": str(tmp_path), "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    # Libraries that the commands use print empty lines of their own.
    blocks = [json.loads(line) for line in done.stdout.splitlines() if line.strip()]
    assert {block["page"] for block in blocks} == {page.name for page in PAGES} and len(blocks) > 25
    for block in blocks:
        assert block["printed"] is None, (
            f"{block['page']} shows\n{block['block']}\nand this was printed:\n{block['printed']}"
        )


@pytest.mark.slow
@pytest.mark.process
def test_a_tutorials_notebook_runs(tmp_path, monkeypatch):
    """One of the six: the others are made by the same function, and their pages are run above."""
    monkeypatch.setenv("PATH", f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}")
    outputs = notebook.executed(generate.NOTEBOOKS / "audit-a-reward.ipynb", tmp_path)
    printed = "".join(output["text"] for cell in outputs for output in cell if output["output_type"] == "stream")
    # The kernel's terminal wraps lines by its own width.
    words = " ".join(printed.split())
    assert "7 exploits pay on more than half of the rows" in words and "no exploit found" in words


def test_a_page_shows_what_was_printed_or_is_found_out():
    assert manual.shows("one\n…\nfour\n", "one\ntwo\nthree  \nfour\n")
    assert not manual.shows("one\n…\nfour\n", "one\ntwo\nfive\n")
    assert manual.shows(" loss 0.12 ──  a\n", " loss 1e-5 ───    a\n", measured=True)
    assert not manual.shows(" loss 0.12\n", " loss 0.13\n")
    assert not manual.shows(" loss 0.12\n", " gain 0.12\n", measured=True)


def test_blocks_and_commands_are_read_as_they_stand(tmp_path):
    page = tmp_path / "page.md"
    page.write_text(
        "Save it:\n\n```yaml\n# a.yaml\nrows: {}\n```\n\n"
        "<!-- Numbers differ from machine to machine. -->\n\n```console\n$ seamcurate run a.yaml \\\n    my-store\nmade\n"
        "  $ not a command\n$ ls\n```\n"
    )
    saved, ran = manual.blocks(page)
    assert (saved.file, saved.measured, ran.file, ran.measured) == ("a.yaml", False, None, True)
    first, second = manual.commands(ran)
    assert (first.line, first.shown) == ("seamcurate run a.yaml my-store", "made\n  $ not a command\n")
    assert first.written == "seamcurate run a.yaml \\\n    my-store\n" and (second.line, second.shown) == ("ls", "")


def test_a_command_that_fails_is_found_out(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    page = tmp_path / "page.md"
    page.write_text("```console\n$ seamcurate check no-such-store\n```\n")
    with pytest.raises(AssertionError, match="seamcurate check no-such-store failed"):
        list(manual.run(page, {}))
    page.write_text("```console\n$ seamcurate check no-such-store\nerror: …\n```\n")
    (ran,) = manual.run(page, {})
    assert manual.differences(page, ran) is None and "no-such-store" in ran.printed
