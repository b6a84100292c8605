"""What works without the extras, what says which extra it needs, and the lines that install them."""

from __future__ import annotations

import importlib.metadata
import json
import os
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
from packaging.requirements import Requirement

from seamcurate import extras
from seamcurate.errors import ModelError, SeamcurateError
from seamcurate.publish import card

ROOT = Path(__file__).parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
ROWS = [
    {"prompt": f"how do I {verb} a {noun}", "response": f"call {verb}() on the {noun}", "reference": noun}
    for verb in ("sort", "copy", "open")
    for noun in ("list", "file", "set", "table")
]
JSONL = "rows: {jsonl: rows.jsonl, shard_rows: 8}\n"
RECIPE = """\
rows: {jsonl: rows.jsonl, shard_rows: 8}
models: {reward: {function: reward.py:score}}
steps: [reward, length_incentive, random]
splits: {train: {filter: keep_above_lowest.sql, by: rer_length, rate: 0.2}}
"""
ONLY = """\
import sys
from importlib.machinery import PathFinder

ALLOWED = set(%r)


class Installed(PathFinder):
    @classmethod
    def find_spec(cls, name, path=None, target=None):
        spec = super().find_spec(name, path, target)
        origin = str(getattr(spec, "origin", None) or list(spec.submodule_search_locations or [""])[0]) if spec else ""
        return None if "site-packages" in origin and name.partition(".")[0] not in ALLOWED else spec


sys.meta_path = [Installed if finder is PathFinder else finder for finder in sys.meta_path]
"""
"""Python reads it first, as its `sitecustomize`, in child processes, too."""


def brought(requirements: list[str]) -> set[str]:
    """Return the packages that requirements bring, by the metadata of what is installed."""
    own = {extra: PROJECT["optional-dependencies"][extra] for extra in PROJECT["optional-dependencies"]}
    names: set[tuple[str, str]] = set()
    waiting = [(Requirement(one), "") for one in requirements]
    while waiting:
        requirement, extra = waiting.pop()
        if requirement.marker is not None and not requirement.marker.evaluate({"extra": extra}):
            continue
        name = re.sub(r"[-_.]+", "-", requirement.name).lower()
        for asked in ["", *requirement.extras]:
            if (name, asked) in names:
                continue
            names.add((name, asked))
            if name == "seamcurate":
                waiting += [(Requirement(one), "") for one in own.get(asked, [])]
                continue
            try:
                more = importlib.metadata.requires(name) or []
            except importlib.metadata.PackageNotFoundError:
                continue
            waiting += [(Requirement(one), asked) for one in more]
    return {name for name, _ in names}


def modules(packages: set[str]) -> set[str]:
    """Return the top-level modules of packages."""
    files = [file for name in packages - {"seamcurate"} for file in installed_files(name)]
    return {file.parts[0].partition(".")[0] for file in files}


def installed_files(name: str) -> list[importlib.metadata.PackagePath]:
    try:
        return importlib.metadata.files(name) or []
    except importlib.metadata.PackageNotFoundError:
        return []


WORKS = {
    "run recipe.yaml store": "",
    "audit --reward reward.py:score --data rows.jsonl --store audited": "call sort() on",
    "plan recipe.yaml store": "reward",
    "sql store SELECT|count(*)|AS|n|FROM|rows --format jsonl": "12",
    "why store 3": "split train",
    "columns store": "rer_length",
    "check store": "whole",
    "export recipe.yaml store --to trl --out splits": "splits/train",
    "report store --out report.html": "report.html",
    "diff store store": "",
    "init rows.jsonl --out new.yaml": "",
}
"""Commands that need no extra, and a part of what they print."""
NEEDS = {
    "demo folder": "demo",
    "train sft --model m --data rows.jsonl --out out": "train",
    "push recipe.yaml store org/data": "hub",
    "reproduce org/data": "hub",
    "study overlap store store": "study",
    "audit --reward org/model --data rows.jsonl --store b": "local",
    "run recipe.yaml other --ray local": "ray",
    "columns s3://bucket/prefix": "s3",
    "run hub.yaml needs": "hub",
    "run on_hub.yaml needs1": "local",
    "run folder.yaml needs2": "local",
    "run retrieves.yaml needs3": "local",
    "run served.yaml needs4": "servers",
}
"""Commands that need one, and which."""
RECIPES = {
    "recipe": RECIPE,
    "hub": "rows: {hub: org/data}\nsteps: [length_incentive]",
    "on_hub": f"{JSONL}models: {{reward: {{sequence_classifier: org/model}}}}\nsteps: [reward]",
    "folder": f"{JSONL}models: {{reward: {{sequence_classifier: .}}}}\nsteps: [reward]",
    "retrieves": f"{JSONL}corpus: {{jsonl: rows.jsonl}}\nmodels: {{encoder: {{fake: e}}}}\nsteps: [retrieve]",
    "served": f"{JSONL}models: {{generator: {{openai_server: m, base_url: 'http://127.0.0.1:9/v1'}}}}\nsteps: [generate: {{k: 2}}]",
}
DRIVER = """\
import contextlib, io, json, sys
from seamcurate import Store, cli
from seamcurate.explore import server
from seamcurate.explore.session import Session

answers = {}
for line in json.load(open("commands.json")):
    sys.argv = ["seamcurate", *(word.replace("|", " ") for word in line.split())]
    out, err, code = io.StringIO(), io.StringIO(), 0
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        try:
            cli.main()
        except SystemExit as ended:
            code = ended.code or 0
    answers[line] = [code, out.getvalue(), err.getvalue()]
assert server.start and Session(Store("store")).charts
json.dump(answers, open("answers.json", "w"))
"""


@pytest.fixture(scope="module")
def core(tmp_path_factory):
    """Run all commands where nothing but the base dependencies is installed: each one's exit code, output and errors."""
    folder = tmp_path_factory.mktemp("core")
    (folder / "only").mkdir()
    allowed = sorted(modules(brought(PROJECT["dependencies"])) | {"seamcurate"})
    (folder / "only" / "sitecustomize.py").write_text(ONLY % allowed)
    (folder / "rows.jsonl").write_text("\n".join(map(json.dumps, ROWS)))
    (folder / "reward.py").write_text(
        "def score(completions, **columns):\n    return [float(len(c)) for c in completions]\n"
    )
    (folder / "commands.json").write_text(json.dumps([*WORKS, *NEEDS]))
    for name, recipe in RECIPES.items():
        (folder / f"{name}.yaml").write_text(recipe)
    environment = os.environ | {"PYTHONPATH": os.pathsep.join([str(folder / "only"), str(ROOT)]), "HF_HUB_OFFLINE": "1"}

    def python(script: str) -> str:
        done = subprocess.run(
            [sys.executable, "-c", script], cwd=folder, env=environment, capture_output=True, text=True, check=False
        )
        return done.stderr

    assert "No module named 'torch'" in python("import torch")
    assert python(DRIVER) == ""
    return json.loads((folder / "answers.json").read_text())


@pytest.mark.slow
def test_the_core_alone_audits_plans_queries_explains_and_exports(core):
    for line, shown in WORKS.items():
        code, out, errors = core[line]
        assert code == 0 and shown in out + errors, (line, out, errors)


@pytest.mark.slow
def test_what_needs_an_extra_says_so_in_one_line(core):
    for line, extra in NEEDS.items():
        code, _, errors = core[line]
        assert code == 2, (line, errors)
        assert re.fullmatch(rf"error: .* needs? \w+\W.*{re.escape(extras.install(extra))}.*\n", errors), (line, errors)


def test_the_core_has_few_dependencies_and_none_that_runs_models():
    assert len(PROJECT["dependencies"]) == 11
    packages = brought(PROJECT["dependencies"])
    assert not packages & {
        "torch",
        "transformers",
        "sentence-transformers",
        "datasets",
        "scikit-learn",
        "scipy",
        "pandas",
    }


def test_extras_bring_the_modules_that_messages_ask_for():
    owners = importlib.metadata.packages_distributions()
    for extra, names in extras.EXTRAS.items():
        packages = brought([f"seamcurate[{extra}]"])
        for name in names:
            # What is not installed here, such as TextAttack, has a package of the module's name.
            owner = re.sub(r"[-_.]+", "-", owners.get(name, [name])[0]).lower()
            assert owner in packages, (extra, name)
    # An extra without a module of its own is for developers, or another build of one that has.
    assert set(PROJECT["optional-dependencies"]) - set(extras.EXTRAS) == {"gpu", "benchmarks", "test"}


@pytest.fixture
def origin(monkeypatch):
    """Say where the package was installed from, by PEP 610's record; None for an index."""

    def put(record, installer="pip"):
        read = {"direct_url.json": json.dumps(record) if record else None, "INSTALLER": installer}
        kept = importlib.metadata.distribution

        class Installed:
            read_text = staticmethod(read.get)

        monkeypatch.setattr(
            importlib.metadata, "distribution", lambda name: Installed() if name == "seamcurate" else kept(name)
        )
        extras._origin.cache_clear()
        extras._installer.cache_clear()

    yield put
    monkeypatch.undo()
    extras._origin.cache_clear()
    extras._installer.cache_clear()


WHEEL = "file:///home/me/dist/seamcurate-0.1.0-py3-none-any.whl"
FOLDER = "file:///home/me/my%20clone"
COMMIT = "a" * 40
GIT = {"url": "https://me:secret@git.example.org/seamcurate.git", "vcs_info": {"vcs": "git", "commit_id": COMMIT}}


@pytest.mark.parametrize(
    ("record", "installer", "line"),
    [
        (None, "pip", 'pip install "seamcurate[train]"'),
        (None, "uv", 'uv pip install "seamcurate[train]"'),
        ({"url": WHEEL, "archive_info": {}}, "pip", f'pip install "seamcurate[train] @ {WHEEL}"'),
        ({"url": FOLDER, "dir_info": {"editable": True}}, "pip", 'pip install -e "/home/me/my clone[train]"'),
        ({"url": FOLDER, "dir_info": {}}, "pip", f'pip install "seamcurate[train] @ {FOLDER}"'),
        (GIT, "pip", f'pip install "seamcurate[train] @ git+https://git.example.org/seamcurate.git@{COMMIT}"'),
    ],
)
def test_the_line_that_installs_an_extra_fits_where_the_package_came_from(origin, record, installer, line):
    origin(record, installer)
    assert extras.install("train") == line
    with pytest.raises(ModelError, match=rf"^it needs json5, which is not installed; {re.escape(line)}$"):
        patched = dict(extras.EXTRAS) | {"train": ("json5",)}
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(extras, "EXTRAS", patched)
            extras.require("train", "it", ModelError)


def test_uvx_is_told_to_be_started_with_the_extra(origin, monkeypatch):
    origin({"url": WHEEL, "archive_info": {}}, "uv")
    monkeypatch.setattr(sys, "prefix", "/home/me/.cache/uv/archive-v0/abc")
    assert extras.install("demo") == f'uvx --from "seamcurate[demo] @ {WHEEL}" seamcurate …'


@pytest.mark.parametrize(
    ("record", "text"),
    [
        (None, '`pip install "seamcurate[cpu,hub]==0.1.0"`'),
        ({"url": WHEEL, "archive_info": {}}, '`pip install ".[cpu,hub]"` in a clone of seamcurate at version 0.1.0'),
        (GIT, f'`pip install ".[cpu,hub]"` in a clone of seamcurate at commit {COMMIT}'),
    ],
)
def test_a_card_says_how_to_install_its_version_and_names_no_folder_or_host(origin, record, text):
    origin(record)
    assert extras.installed("0.1.0", "cpu", "hub") == text
    (line, *_) = card._reproduction(card.About("org/data", (), (), (), {}, None, (), None), "0.1.0")
    assert line.startswith(f"After {text}, `seamcurate reproduce org/data` ")
    assert "/home/me" not in line and "example.org" not in line


def test_a_failed_import_is_explained_only_where_an_extra_brings_the_module():
    missing = ModuleNotFoundError("No module named 'trl.trainer'", name="trl.trainer")
    assert extras.hint(missing) == f"this needs trl, which is not installed; {extras.install('train')}"
    assert extras.hint(ModuleNotFoundError("No module named 'json5'", name="json5")) is None
    assert extras.hint(ImportError("cannot import name 'x' from 'torch'", name="torch")) is None


def test_no_message_writes_its_own_line_for_an_extra():
    own = re.compile(r"pip install [^\n]*seamcurate\[")
    for file in (ROOT / "seamcurate").rglob("*.py"):
        if file.name != "extras.py":
            assert not own.search(file.read_text(encoding="utf-8")), file
    assert issubclass(ModelError, SeamcurateError)
