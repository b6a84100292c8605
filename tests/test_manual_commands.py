"""Every command of the manual is one: read by the real command line, the Makefile or pip's extras; what is not run has a reason.

test_manual_runs.py and test_tutorials.py run the others.
"""

from __future__ import annotations

import re
import shlex
import tomllib
from pathlib import Path

import generate
import manual
import pytest
import typer
from typer.core import TyperGroup

from seamcurate.cli import app

ROOT = Path(__file__).parents[1]
PAGES = [
    ROOT / "README.md",
    ROOT / "CONTRIBUTING.md",
    *sorted((ROOT / "docs").rglob("*.md")),
    *sorted((ROOT / "examples").rglob("*.md")),
    ROOT / "benchmarks" / "README.md",
    *sorted((ROOT / "skills").rglob("*.md")),
]
NOT_RUN = {
    ".venv-benchmarks/bin/python -m benchmarks": "races of minutes; test_benchmarks.py runs each on a few rows",
    "accelerate launch": "starts several processes; tests/train runs these commands by torch.distributed.run",
    "make": "sets up, tests and shows this repository; .ci/run runs every target",
    "pip install": "takes packages from an index; what is installed is the environment of the tests",
    "python -m openrlhf": "trains on GPUs; tests/publish/test_clients.py reads exports by its loaders",
    "python -m sglang": "needs a GPU",
    "seamcurate demo": "takes minutes; tests/demo runs it",
    "seamcurate explore": "serves until Ctrl-C; tests/explore runs it",
    "seamcurate run recipe.yaml my-store --ray": "starts a cluster; tests/run/test_cluster.py runs one",
    "seamcurate run recipe.yaml s3://bucket/my-store --ray": "needs a cluster; tests/run/test_cluster.py has one with a bucket",
    "uvx": "builds an environment of its own from a wheel, of a gigabyte for the demo",
    "vllm": "a server of others; make test-vllm runs it",
}
"""How commands begin that the tests do not run, and why; each is still read as far as it can be."""


def reason(words: list[str]) -> str | None:
    """Return why a command is not run, or None if it is."""
    return next((why for start, why in NOT_RUN.items() if " ".join(words).startswith(start)), None)


def commands() -> list[tuple[str, str]]:
    """Return each command of the manual but those that test_tutorials.py runs, with its page."""
    found = []
    for page in PAGES:
        if page.name in generate.TUTORIALS and page.parent.name == "tutorial":
            continue
        for block in manual.blocks(page):
            if block.kind in ("console", "sh"):
                found += [(page.relative_to(ROOT).as_posix(), command.line) for command in manual.commands(block)]
    return found


COMMANDS = commands()


def parts(line: str) -> list[list[str]]:
    """Split a line into its commands: at `&&`, `|` and `;`, without comments, redirections and variables set before."""
    words = shlex.split(line, comments=True)
    split: list[list[str]] = [[]]
    for word in words:
        if word in ("&&", "|", ";"):
            split.append([])
        elif re.fullmatch(r"\w+=.*", word) and not split[-1]:
            continue
        elif word == ">":
            break
        else:
            split[-1].append(word)
    return [command for command in split if command]


def read_by_the_command_line(words: list[str]) -> None:
    """Parse a command as the command line does, without running it. What is wrong is raised as the command line would."""
    command = typer.main.get_command(app)
    name, rest, context = words[0], words[1:], None
    while isinstance(command, TyperGroup):
        if rest[0] in ("--help", "--version"):
            return
        context = typer.Context(command, info_name=name, parent=context)
        name, command, rest = command.resolve_command(context, rest)
    if "--help" not in rest:
        command.make_context(name, list(rest), parent=context)


def extras(words: list[str]) -> set[str]:
    """Return the extras that a line of pip installs of seamcurate."""
    found: set[str] = set()
    for word in words:
        if match := re.match(r"(?:seamcurate|\.|dist/seamcurate[\w.-]+\.whl)\[([\w,-]+)\]", word):
            found |= set(match[1].split(","))
    return found


@pytest.mark.parametrize(("page", "line"), COMMANDS, ids=[f"{page}-{at}" for at, (page, _) in enumerate(COMMANDS)])
def test_a_command_of_the_manual_is_one(page, line):
    for words in parts(line):
        words[0] = re.sub(r"^\.venv[\w-]*/bin/", "", words[0])
        if words[0] == "seamcurate" or words[:3] == ["python", "-m", "seamcurate"]:
            read_by_the_command_line(words if words[0] == "seamcurate" else words[2:])
        elif words[0] == "make":
            targets = re.findall(r"^([\w./-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE)
            named = [word for word in words[1:] if "=" not in word and not word.startswith("-")]
            assert set(named) <= set(targets), f"the Makefile has no such target: {line}"
        elif words[:2] == ["pip", "install"]:
            known = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
            assert extras(words) <= set(known), f"no such extra: {line}"
        elif words[0] == "python" and len(words) > 1 and words[1].endswith(".py"):
            assert (ROOT / words[1]).is_file(), f"no such script: {line}"
        elif words[:2] == ["python", "-m"] and words[2].split(".")[0] in ("benchmarks", "examples"):
            module = ROOT.joinpath(*words[2].split("."))
            assert module.with_suffix(".py").is_file() or (module / "__main__.py").is_file(), f"no such module: {line}"
        else:
            assert reason(words), f"{page}: neither run nor given a reason in NOT_RUN: {line}"


def test_a_reason_is_of_a_command_that_is_there():
    lines = [" ".join(words) for _, line in COMMANDS for words in parts(line)]
    assert [start for start in NOT_RUN if not any(line.startswith(start) for line in lines)] == []


def test_a_wrong_option_is_found_out():
    read_by_the_command_line(shlex.split("seamcurate sql my-store 'SELECT 1' --format csv"))
    for wrong, said in (
        ("seamcurate sql my-store 'SELECT 1' --fromat csv", "No such option"),
        ("seamcurate serve my-store", "No such command"),
        ("seamcurate train sft", "Missing parameter"),
    ):
        with pytest.raises(Exception, match=said):
            read_by_the_command_line(shlex.split(wrong))


SKILL = ROOT / "skills" / "seamcurate" / "SKILL.md"


def test_the_skill_has_its_front_matter_and_is_short():
    text = SKILL.read_text(encoding="utf-8")
    _, matter, body = text.split("---\n", 2)
    import yaml

    front = yaml.safe_load(matter)
    assert set(front) == {"name", "description"} and front["name"] == SKILL.parent.name == "seamcurate"
    assert re.fullmatch(r"[a-z0-9-]{1,64}", front["name"]) and 0 < len(front["description"]) <= 1024
    assert len(body.splitlines()) < 100
    for path in re.findall(r"docs/[\w/.-]+\w", body):
        assert (ROOT / path).is_file(), path
