"""Prepare a release, and build it.

    python packaging/release.py prepare 0.1.0 [--date 2026-12-01] [--dry-run]
    python packaging/release.py build --tag v0.1.0 --out dist

`prepare` writes the version and moves the changelog's entries under it; then commit and tag as it says. `build` makes wheel
and sdist, a bill of materials of the locked dependencies (CycloneDX), checksums and notes. It uploads nothing: the workflow
`release.yml` runs it on a tag, attests where the files were built, and drafts a release.
"""

from __future__ import annotations

import argparse
import datetime
import difflib
import hashlib
import re
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
_VERSION = re.compile(r"\d+\.\d+\.\d+(?:(?:a|b|rc)\d+)?")


class ReleaseError(Exception):
    """The release cannot be made; the message says why."""


def prepared(root: Path, version: str, day: str) -> dict[str, str]:
    """Return the new text of each file that names the version.

    Raises:
        ReleaseError: The version is none, or was released, or nothing is to be released.
    """
    if not _VERSION.fullmatch(version):
        raise ReleaseError(f"{version!r} is no version; write it as 0.1.0 or 0.1.0rc1")
    changelog = (root / "CHANGELOG.md").read_text(encoding="utf-8")
    if f"## [{version}]" in changelog:
        raise ReleaseError(f"CHANGELOG.md has version {version} already; give the next one")
    head, unreleased, rest = changelog.partition("## [Unreleased]\n")
    entries, before, older = rest.partition("\n## [")
    if not unreleased or not entries.strip():
        raise ReleaseError("CHANGELOG.md has nothing under [Unreleased]; there is nothing to release")
    return {
        "CHANGELOG.md": f"{head}{unreleased}\n## [{version}] - {day}\n{entries}{before}{older}",
        "seamcurate/__init__.py": _put(root / "seamcurate/__init__.py", r'^__version__ = "(.*)"$', version),
        "CITATION.cff": _put(root / "CITATION.cff", r"^version: (.*)$", version),
        "packaging/conda/recipe.yaml": _put(root / "packaging/conda/recipe.yaml", r"^  version: (\d.*)$", version),
    }


def notes(root: Path, version: str) -> str:
    """Return a version's entries of the changelog.

    Raises:
        ReleaseError: It has none.
    """
    changelog = (root / "CHANGELOG.md").read_text(encoding="utf-8")
    section = re.search(rf"^## \[{re.escape(version)}\].*?\n(.*?)(?=^## \[|\Z)", changelog, re.DOTALL | re.MULTILINE)
    if section is None or not section[1].strip():
        raise ReleaseError(f"CHANGELOG.md has no entries of {version}; run prepare first")
    return section[1].strip() + "\n"


def check_tag(root: Path, tag: str) -> str:
    """Return the version of a tag.

    Raises:
        ReleaseError: The package has another one.
    """
    text = (root / "seamcurate/__init__.py").read_text(encoding="utf-8")
    version = re.search(r'^__version__ = "(.*)"$', text, re.MULTILINE)
    if version is None or tag != f"v{version[1]}":
        raise ReleaseError(
            f"tag {tag} is not that of the package, v{version[1] if version else '?'}; tag the commit of prepare"
        )
    return version[1]


def with_version(pyproject: str, version: str) -> str:
    """Return the text of pyproject.toml with the version in the place of where it is read from.

    Raises:
        ReleaseError: It names the version in another way.
    """
    dynamic = 'dynamic = ["version"]'
    if pyproject.count(dynamic) != 1:
        raise ReleaseError(
            f"pyproject.toml does not have the line {dynamic}, by which the bill of materials gets its version"
        )
    return pyproject.replace(dynamic, f'version = "{version}"')


def build(root: Path, tag: str, out: Path) -> list[Path]:
    """Build what is released; needs the packages `build` and `cyclonedx-bom`. Return its files."""
    version = check_tag(root, tag)
    text = notes(root, version)
    out.mkdir(parents=True, exist_ok=True)
    if any(out.iterdir()):
        raise ReleaseError(f"{out} is not empty; what lies there would be released, too")
    _run(root, sys.executable, "-m", "build", "--outdir", str(out))
    bill = out / f"seamcurate-{version}.cdx.json"
    with tempfile.TemporaryDirectory() as folder:
        # The tool reads the version where it stands, and takes it from no build backend.
        project = Path(folder) / "pyproject.toml"
        project.write_text(
            with_version((root / "pyproject.toml").read_text(encoding="utf-8"), version), encoding="utf-8"
        )
        command = [sys.executable, "-m", "cyclonedx_py", "requirements", "requirements-hashes.lock"]
        command += ["--pyproject", str(project), "--output-reproducible", "--output-format", "JSON"]
        _run(root, *command, "--output-file", str(bill))
    files = sorted(out.iterdir())
    sums = "".join(f"{hashlib.sha256(file.read_bytes()).hexdigest()}  {file.name}\n" for file in files)
    (out / "SHA256SUMS").write_text(sums, encoding="utf-8")
    (out / "NOTES.md").write_text(text, encoding="utf-8")
    return sorted(out.iterdir())


def _put(file: Path, pattern: str, version: str) -> str:
    text = file.read_text(encoding="utf-8")
    match = re.search(pattern, text, re.MULTILINE)
    if match is None:
        raise ReleaseError(f"{file} does not name the version where it should")
    return text[: match.start(1)] + version + text[match.end(1) :]


def _run(root: Path, *command: str) -> None:
    if subprocess.run(command, cwd=root, check=False).returncode:
        raise ReleaseError(f"failed: {' '.join(command)}")


def main(arguments: list[str] | None = None) -> int:
    """Run the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    verbs = parser.add_subparsers(dest="verb", required=True)
    preparing = verbs.add_parser("prepare")
    preparing.add_argument("version")
    preparing.add_argument("--date", default=datetime.datetime.now(datetime.UTC).date().isoformat())
    preparing.add_argument("--dry-run", action="store_true", help="show the changes, and write nothing")
    building = verbs.add_parser("build")
    building.add_argument("--tag", required=True)
    building.add_argument("--out", type=Path, default=Path("dist"))
    for verb in (preparing, building):
        verb.add_argument("--root", type=Path, default=ROOT, help=argparse.SUPPRESS)
    asked = parser.parse_args(arguments)
    try:
        if asked.verb == "build":
            for file in build(asked.root, asked.tag, asked.out.resolve()):
                print(file)
            return 0
        for name, text in prepared(asked.root, asked.version, asked.date).items():
            before = (asked.root / name).read_text(encoding="utf-8")
            sys.stdout.writelines(difflib.unified_diff(before.splitlines(True), text.splitlines(True), name, name, n=1))
            if not asked.dry_run:
                (asked.root / name).write_text(text, encoding="utf-8")
    except ReleaseError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    command = f"git commit -am 'Release {asked.version}' && git tag -a v{asked.version} -m 'seamcurate {asked.version}'"
    print(f"\nnothing was written; then: {command}" if asked.dry_run else f"\nnow: {command}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
