"""Run the pages of the manual as a reader does: blocks in order, commands as written, in one folder.

As a script, `python tests/manual.py PAGE…` runs pages one after another in an empty folder, and writes what was printed into
blocks that show something else.
"""

from __future__ import annotations

import contextlib
import io
import json
import os
import re
import shlex
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[1]
FILE_NAMES = {"python": "#", "yaml": "#", "sql": "--"}
"""Blocks whose first line is a comment with a file's name are that file, by the sign of their comments."""
MEASURED = "<!-- Numbers differ from machine to machine. -->"
"""Stands before a block whose numbers are not compared."""


@dataclass(frozen=True)
class Block:
    """A block of code of a page.

    Attributes:
        kind: What follows the fence, such as `console`.
        text: The lines between the fences.
        at: Where these begin in the page.
        number: Its place among the page's blocks, from 0.
        measured: Whether its numbers differ from machine to machine.
    """

    kind: str
    text: str
    at: int
    number: int
    measured: bool

    @property
    def file(self) -> str | None:
        """The name of the file that the block is, if it is one."""
        sign = FILE_NAMES.get(self.kind.split(" ")[0] if self.kind else "")
        named = sign and re.match(rf"{sign} ([\w./-]+\.(?:py|yaml|sql))\n", self.text)
        return named[1] if named else None


@dataclass(frozen=True)
class Command:
    """A command of a block.

    Attributes:
        line: The command in one line.
        written: The command as it stands in the page, over one line or more.
        shown: What the page shows that it prints.
    """

    line: str
    written: str
    shown: str


@dataclass(frozen=True)
class Ran:
    """What a block printed; of a console block, with its commands."""

    page: str
    block: Block
    printed: str
    seconds: float


def blocks(page: Path) -> list[Block]:
    """Return the blocks of a page, in order."""
    text = page.read_text(encoding="utf-8")
    found = []
    for match in re.finditer(r"^(```+)(.*)\n((?:.*\n)*?)\1[ \t]*$", text, re.MULTILINE):
        before = text[: match.start()].rstrip().rpartition("\n")[2]
        found.append(Block(match[2].strip(), match[3], match.start(3), len(found), before == MEASURED))
    return found


def commands(block: Block) -> list[Command]:
    """Return the commands of a console block, each with what is shown after it; of a `sh` block, its lines."""
    if block.kind == "sh":
        lines = re.split(r"(?<!\\)\n", block.text)
        return [Command(_joined(line), line, "") for line in lines if line.strip() and not line.startswith("#")]
    found: list[Command] = []
    for part in re.split(r"^\$ ", block.text, flags=re.MULTILINE)[1:]:
        written, shown = re.match(r"((?:.*\\\n)*.*\n)([\s\S]*)", part).groups()
        found.append(Command(_joined(written), written, shown))
    return found


def _joined(command: str) -> str:
    return re.sub(r"\\\n\s*", "", command).strip()


def shows(text: str, printed: str, measured: bool = False) -> bool:
    """Tell whether a page shows what was printed: `…` stands for anything, and white space at the end of a line for none.

    Args:
        text: What the page shows.
        printed: What was printed.
        measured: Compare no numbers.
    """

    def plain(output: str) -> str:
        lines = [line.rstrip() for line in output.strip("\n").splitlines()]
        # Widths of columns follow from numbers.
        varies = r"[-+−–]?\d*\.?\d+(?:e-?\d+)?|─+| {2,}"
        return "\n".join(re.sub(varies, "#", line) if measured else line for line in lines)

    pattern = re.escape(plain(text)).replace("…", r"[\s\S]*?")
    return re.fullmatch(pattern, plain(printed)) is not None


def run(page: Path, names: dict[str, object]) -> Iterator[Ran]:
    """Run a page's blocks in the working folder, in this process; commands of other programs in a shell.

    Args:
        page: A page of the manual.
        names: The names that its Python blocks define; pages that go on from each other share them.

    Yields:
        What was printed, for each block that prints.

    Raises:
        AssertionError: A command fails and the page does not show an error.
    """
    for block in blocks(page):
        started = time.process_time()
        if block.file:
            Path(block.file).parent.mkdir(parents=True, exist_ok=True)
            Path(block.file).write_text(block.text, encoding="utf-8")
            continue
        if block.kind == "python":
            output = io.StringIO()
            with contextlib.redirect_stdout(output):
                exec(compile(block.text, f"{page.name}, a block of Python", "exec"), names)
            printed = output.getvalue()
        elif block.kind == "console":
            lines = []
            for command in commands(block):
                lines.append(f"$ {command.written}" + printed_by(command))
            printed = "".join(lines)
        else:
            continue
        yield Ran(page.name, block, printed, time.process_time() - started)


def printed_by(command: Command) -> str:
    """Run a command; return its standard output, and where it failed as the page shows, its errors."""
    output, errors = io.StringIO(), io.StringIO()
    if command.line.startswith("seamcurate "):
        from seamcurate.cli import main

        code: object = 0
        before = sys.argv
        sys.argv = shlex.split(command.line, comments=True)
        try:
            with contextlib.redirect_stdout(output), contextlib.redirect_stderr(errors):
                main()
        except SystemExit as ended:
            code = ended.code
        finally:
            sys.argv = before
        printed, said = output.getvalue(), errors.getvalue()
    else:
        path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
        done = subprocess.run(
            command.line, shell=True, capture_output=True, text=True, env={**os.environ, "PATH": path}, timeout=600
        )
        code, printed, said = done.returncode, done.stdout, done.stderr
    if code:
        assert re.search(r"^error: |^! ", command.shown, re.MULTILINE), f"{command.line} failed:\n{printed}{said}"
        printed += "".join(line for line in said.splitlines(keepends=True) if line.startswith("error: "))
    return printed


def shown(page: Path, block: Block) -> Block | None:
    """Return the block that shows what a block prints: a console block itself, the text block that follows one of Python."""
    found = blocks(page)
    if block.kind == "console":
        return found[block.number]
    following = found[block.number + 1 : block.number + 2]
    return following[0] if following and following[0].kind == "text" else None


def differences(page: Path, ran: Ran, exact: bool = False) -> str | None:
    """Return what a page shows otherwise than it was printed, or nothing; `exact` compares numbers that may differ, too."""
    where = shown(page, ran.block)
    return None if where is None or shows(where.text, ran.printed, where.measured and not exact) else ran.printed


def main(files: list[str]) -> None:
    """Run pages in an empty folder; print one JSON line a block, or write what they print into them."""
    check = files[0] == "--check"
    pages = [Path(file).absolute() for file in files[check:]]
    os.environ["COLUMNS"] = "100"
    names: dict[str, object] = {"__name__": "__main__"}
    with tempfile.TemporaryDirectory(prefix="manual-") as folder:
        os.chdir(folder)
        for page in pages:
            for ran in run(page, names):
                printed = differences(page, ran, exact=not check)
                if check:
                    line = {"page": page.name, "block": ran.block.text, "printed": printed, "seconds": ran.seconds}
                    print(json.dumps(line), flush=True)
                    continue
                print(f"{page.name}: {ran.seconds:.1f} s: {ran.block.text.splitlines()[0]}", flush=True)
                where = shown(page, ran.block)
                if printed is not None and where is not None:
                    text = page.read_text(encoding="utf-8")
                    plain = "\n".join(line.rstrip() for line in printed.splitlines()) + "\n"
                    page.write_text(text[: where.at] + plain + text[where.at + len(where.text) :], encoding="utf-8")
        os.chdir(ROOT)


if __name__ == "__main__":
    main(sys.argv[1:])
