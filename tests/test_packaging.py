"""Files for releases, images, hosts and citations: they parse, pin, name the same version, and hold no secret."""

from __future__ import annotations

import contextlib
import importlib.metadata
import json
import re
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

import jsonschema
import pytest
import yaml

import seamcurate

ROOT = Path(__file__).parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
DOCKERFILES = sorted((ROOT / "packaging" / "docker").glob("Dockerfile.*"))
WORKFLOWS = sorted((ROOT / ".github" / "workflows").glob("*.yml"))
SECRET = re.compile(
    r"hf_[A-Za-z0-9]{20}|AKIA[0-9A-Z]{16}|-----BEGIN|(?i:password|secret|token)\s*[:=]\s*['\"]?[A-Za-z0-9+/]{16}"
)


def instructions(file: Path) -> list[tuple[str, str]]:
    """Return a Dockerfile's instructions and their arguments, continued lines joined."""
    text = re.sub(r"^#.*\n", "", file.read_text(), flags=re.MULTILINE).replace("\\\n", " ")
    return [(line.split(None, 1)[0], line.split(None, 1)[1]) for line in text.splitlines() if line.strip()]


@pytest.mark.parametrize("file", DOCKERFILES, ids=lambda file: file.name)
def test_images_are_pinned_run_as_nobody_special_and_copy_what_is_there(file):
    lines = instructions(file)
    known = {"FROM", "ARG", "ENV", "WORKDIR", "COPY", "RUN", "USER", "ENTRYPOINT", "CMD"}
    assert {word for word, _ in lines} <= known
    for _, image in (line for line in lines if line[0] == "FROM"):
        assert re.match(r"[\w/.-]+:\d+\.\d+\.\d+[\w.-]*( AS \w+)?$", image), image
    # The last stage ends as a user, and what it runs is in the form of a list.
    last = lines[max(i for i, line in enumerate(lines) if line[0] == "FROM") :]
    users = [user for word, user in last if word == "USER"]
    assert users and users[-1] not in ("root", "0")
    assert last.index(("USER", users[-1])) > max(i for i, line in enumerate(last) if line[0] == "RUN")
    assert json.loads(next(rest for word, rest in last if word == "ENTRYPOINT")) == ["seamcurate"]
    copied = [part for word, rest in lines if word == "COPY" and "--from" not in rest for part in rest.split()[:-1]]
    ignored = (ROOT / ".dockerignore").read_text().splitlines()
    for part in copied:
        assert (ROOT / part).exists(), part
        assert f"!{part.split('/')[0]}" in ignored, part
    # A download is pinned, by the lock or by a version; nothing is piped to a shell.
    runs = [rest for word, rest in lines if word == "RUN"]
    assert not any(re.search(r"curl|wget|\|\s*(ba)?sh|sudo|apt-get", run) for run in runs)
    assert all("lock" in run for run in runs if "pip install" in run)
    extras = {name for run in runs for names in re.findall(r'"\.\[(.*?)\]"', run) for name in names.split(",")}
    assert extras and extras <= set(PROJECT["optional-dependencies"])
    assert not SECRET.search(file.read_text())


def test_there_is_an_image_for_cpu_and_one_for_cuda():
    assert [file.name for file in DOCKERFILES] == ["Dockerfile.cpu", "Dockerfile.cuda"]


def test_condas_recipe_has_the_projects_version_and_dependencies():
    recipe = yaml.safe_load((ROOT / "packaging" / "conda" / "recipe.yaml").read_text())
    assert recipe["context"]["version"] == seamcurate.__version__
    run = [line.replace("python-duckdb", "duckdb").replace(" ", "") for line in recipe["requirements"]["run"]]
    assert run == [f"python{PROJECT['requires-python']}", *PROJECT["dependencies"]]
    assert recipe["about"]["license"] == PROJECT["license"]


@pytest.mark.parametrize("file", WORKFLOWS, ids=lambda file: file.name)
def test_workflows_parse_and_run_what_the_makefile_has(file):
    # YAML 1.1 reads the key `on` as true.
    workflow = yaml.safe_load(file.read_text())
    assert set(workflow) <= {"name", True, "permissions", "concurrency", "env", "jobs"}
    assert workflow["permissions"] == {"contents": "read"}
    targets = set(re.findall(r"^([\w-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    for job in workflow["jobs"].values():
        assert job["timeout-minutes"] <= 90 and job["runs-on"]
        for step in job["steps"]:
            assert ("uses" in step) != ("run" in step)
            if "uses" in step:
                assert re.fullmatch(r"actions/[\w-]+@v\d+", step["uses"])
            for line in re.findall(r"^make (.*)$", step.get("run", ""), re.MULTILINE):
                assert set(line.split()) <= targets, line
            for script in re.findall(r"python ((?:fuzz|packaging|tests)/[\w/]+\.py)", step.get("run", "")):
                assert (ROOT / script).is_file()
            # An expression in a script is code that whoever names a branch can write.
            assert not re.search(r"\$\{\{(?! *matrix\.)", step.get("run", ""))
    assert not SECRET.search(file.read_text())


def test_every_supported_python_is_tested_and_classified():
    workflow = yaml.safe_load((ROOT / ".github" / "workflows" / "ci.yml").read_text())
    versions = workflow["jobs"]["test"]["strategy"]["matrix"]["python"]
    assert versions == ["3.11", "3.12", "3.13"]
    classified = [line.rsplit(" ", 1)[1] for line in PROJECT["classifiers"] if "Python :: 3." in line]
    assert classified == versions


def test_forms_for_issues_parse():
    for file in (ROOT / ".github" / "ISSUE_TEMPLATE").glob("*.yml"):
        form = yaml.safe_load(file.read_text())
        if file.name == "config.yml":
            continue
        assert form["name"] and form["description"]
        ids = [part["id"] for part in form["body"]]
        assert len(set(ids)) == len(ids) and all(part["attributes"]["label"] for part in form["body"])


def test_hashes_are_of_the_same_packages_as_the_lock():
    lock = (ROOT / "requirements.lock").read_text().split()
    text = (ROOT / "requirements-hashes.lock").read_text()
    pinned = re.findall(r"^(\S+)==(\S+) \\$", text, re.MULTILINE)
    assert {(_normal(name), version) for name, version in pinned} == {
        (_normal(line.split("==")[0]), line.split("==")[1]) for line in lock
    }
    entries = re.split(r"^(?=\S)", text, flags=re.MULTILINE)[1:]
    assert len(entries) == len(lock)
    for entry in entries:
        first, *hashes = entry.replace("\\\n", "\n").split()
        assert hashes and all(re.fullmatch(r"--hash=sha256:[0-9a-f]{64}", one) for one in hashes), first


def _normal(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


def test_every_locked_package_is_listed_with_a_licence_that_fits():
    sys.path.insert(0, str(ROOT / "packaging"))
    import third_party

    rows = re.findall(r"^\| (\S+) \| (\S+) \| (.+) \|$", (ROOT / "THIRD-PARTY.md").read_text(), re.MULTILINE)[1:]
    listed = {(name, version): licence for name, version, licence in rows if name != "---"}
    assert set(listed) == set(third_party.locked())
    for (name, version), text in listed.items():
        assert third_party.refused(text) == [], name
        # The page says what the installed package says; another version may be installed where one is tried.
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            if importlib.metadata.version(name) == version:
                assert third_party.licence(name) == text
    assert third_party.refused("GPL-3.0-only") == ["GPL-3.0-only"]
    assert third_party.refused("GPL-2.0-only OR MIT") == []
    assert third_party.refused("MIT AND AGPL-3.0-only") == ["AGPL-3.0-only"]
    assert third_party.refused("unknown") == ["unknown"]


CITATION = {
    "type": "object",
    "required": ["cff-version", "message", "title", "authors"],
    "additionalProperties": False,
    "properties": {
        "cff-version": {"const": "1.2.0"},
        "message": {"type": "string", "minLength": 1},
        "title": {"type": "string"},
        "type": {"enum": ["software", "dataset"]},
        "abstract": {"type": "string"},
        "version": {"type": "string"},
        "license": {"type": "string"},
        "keywords": {"type": "array", "items": {"type": "string"}, "minItems": 1, "uniqueItems": True},
        "authors": {"$ref": "#/$defs/authors"},
        "references": {
            "type": "array",
            "items": {
                "type": "object",
                "required": ["type", "title", "authors"],
                "properties": {
                    "authors": {"$ref": "#/$defs/authors"},
                    "url": {"type": "string", "pattern": "^https://"},
                },
            },
        },
    },
    "$defs": {"authors": {"type": "array", "minItems": 1, "items": {"type": "object", "required": ["name"]}}},
}
"""The part of the Citation File Format 1.2.0 that the file uses; its validator, cffconvert, is not installed with the tests."""


def test_the_citation_is_valid_and_of_this_version():
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text())
    jsonschema.validate(citation, CITATION)
    assert (citation["version"], citation["license"]) == (seamcurate.__version__, PROJECT["license"])


@pytest.fixture
def checkout(tmp_path):
    for name in (
        "CHANGELOG.md",
        "CITATION.cff",
        "seamcurate/__init__.py",
        "packaging/conda/recipe.yaml",
        "packaging/release.py",
    ):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(ROOT / name, tmp_path / name)
    return tmp_path


def release(checkout: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "packaging/release.py", *arguments], cwd=checkout, capture_output=True, text=True, check=False
    )


def test_a_release_is_shown_before_it_is_written(checkout):
    before = {file: file.read_bytes() for file in checkout.rglob("*") if file.is_file()}
    done = release(checkout, "prepare", "9.8.7", "--date", "2030-01-02", "--dry-run")
    assert done.returncode == 0, done.stderr
    for line in ("+## [9.8.7] - 2030-01-02", '+__version__ = "9.8.7"', "+version: 9.8.7", "+  version: 9.8.7"):
        assert line in done.stdout.splitlines()
    assert done.stdout.splitlines()[-1].startswith("nothing was written; then: git commit")
    assert {file: file.read_bytes() for file in checkout.rglob("*") if file.is_file()} == before


def test_a_release_moves_the_changelogs_entries_under_its_version(checkout):
    entries = (checkout / "CHANGELOG.md").read_text().partition("## [Unreleased]\n")[2]
    assert release(checkout, "prepare", "9.8.7", "--date", "2030-01-02").returncode == 0
    text = (checkout / "CHANGELOG.md").read_text()
    assert text.partition("## [Unreleased]\n")[2] == f"\n## [9.8.7] - 2030-01-02\n{entries}"
    again = release(checkout, "prepare", "9.8.7")
    assert (again.returncode, again.stderr) == (2, "error: CHANGELOG.md has version 9.8.7 already; give the next one\n")
    empty = release(checkout, "prepare", "9.8.8")
    assert empty.returncode == 2 and "nothing to release" in empty.stderr


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["prepare", "1.0"], "'1.0' is no version"),
        (["build", "--tag", "v9.9.9"], "tag v9.9.9 is not that of the package"),
        (
            ["build", "--tag", f"v{seamcurate.__version__}"],
            f"no entries of {seamcurate.__version__}; run prepare first",
        ),
    ],
)
def test_what_cannot_be_released_is_one_line(checkout, arguments, message):
    if arguments[0] == "build" and f"## [{seamcurate.__version__}]" in (ROOT / "CHANGELOG.md").read_text():
        pytest.skip("this version is released")
    done = release(checkout, *arguments)
    assert done.returncode == 2 and message in done.stderr and done.stderr.count("\n") == 1


def test_the_bill_of_materials_is_told_the_version(monkeypatch):
    monkeypatch.syspath_prepend(str(ROOT / "packaging"))
    import release as module

    told = tomllib.loads(module.with_version((ROOT / "pyproject.toml").read_text(), "9.8.7"))["project"]
    assert told["version"] == "9.8.7" and "dynamic" not in told and told["name"] == PROJECT["name"]
    with pytest.raises(module.ReleaseError, match="does not have the line dynamic"):
        module.with_version('[project]\nname = "x"\nversion = "1"\n', "9.8.7")
