"""Write THIRD-PARTY.md: the licence of every package of the locks, by what each package says of itself.

    python packaging/third_party.py [--check]

A licence that is not in `COMPATIBLE` is refused: nobody has looked whether a project under Apache-2.0 may depend on it.
"""

from __future__ import annotations

import importlib.metadata
import re
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
LOCKS = ("requirements.lock", "requirements-demo.lock")
PAGE = ROOT / "THIRD-PARTY.md"
COMPATIBLE = {
    *(
        "0BSD",
        "Apache-2.0",
        "BSD-2-Clause",
        "BSD-3-Clause",
        "BSD",
        "ISC",
        "MIT",
        "MIT-0",
        "MIT-CMU",
        "PSF-2.0",
        "Unlicense",
        "Zlib",
    ),
    *("CC0-1.0", "CNRI-Python", "HPND", "BSL-1.0"),
    # Weak copyleft: it concerns changes of the package's own files, which are not changed, nor shipped, here.
    *("MPL-2.0",),
}
"""Licences under which a project under Apache-2.0 may use a package that its users install themselves."""
_WORDS = {
    "Apache Software License": "Apache-2.0",
    "BSD License": "BSD",
    "ISC License (ISCL)": "ISC",
    "MIT License": "MIT",
    "Mozilla Public License 2.0 (MPL 2.0)": "MPL-2.0",
    "Python Software Foundation License": "PSF-2.0",
    "Apache 2.0 License": "Apache-2.0",
    "Apache License 2.0": "Apache-2.0",
    "Apache License, Version 2.0": "Apache-2.0",
    "Apache License Version 2.0": "Apache-2.0",
    "Apache 2.0": "Apache-2.0",
    "Apache": "Apache-2.0",
    "Apache2": "Apache-2.0",
    "Apache-2": "Apache-2.0",
    "BSD 3-Clause License": "BSD-3-Clause",
    "BSD 3-Clause": "BSD-3-Clause",
    "3-Clause BSD License": "BSD-3-Clause",
    "Modified BSD License": "BSD-3-Clause",
    "The Unlicense (Unlicense)": "Unlicense",
    "License :: CC0": "CC0-1.0",
    "LicenseRef-Simplified-BSD": "BSD-2-Clause",
}
"""What packages write in place of an identifier of SPDX."""
_NOT_EVERYWHERE = {"tzdata": "Apache-2.0"}
"""Packages that some systems do without."""
_PARTS = {"LLVM-exception", "GCC-exception-3.1"}
"""Exceptions that an expression names beside a licence."""
_BUNDLED = {
    "GPL-3.0-or-later WITH GCC-exception-3.1": "libgfortran in the wheel, whose exception lets any program use it",
}


def locked() -> list[tuple[str, str]]:
    """Return name and version of every locked package."""
    lines = [line for lock in LOCKS for line in (ROOT / lock).read_text(encoding="utf-8").splitlines()]
    return [
        (line.split("==")[0], line.split("==")[1].split()[0]) for line in lines if "==" in line and line[0] not in "# "
    ]


def licence(name: str) -> str:
    """Return a package's licence, as an expression of SPDX where it says one or what it says is known."""
    try:
        metadata = importlib.metadata.metadata(name)
    except importlib.metadata.PackageNotFoundError:
        return _NOT_EVERYWHERE[name]
    if expression := metadata.get("License-Expression"):
        return str(_WORDS.get(expression, expression))
    text = str(metadata.get("License") or "").strip()
    classified = [
        line.rsplit(" :: ", 1)[1] for line in metadata.get_all("Classifier") or () if line.startswith("License ::")
    ]
    said = [word for word in classified if word != "OSI Approved"] or [text.splitlines()[0] if text else "unknown"]
    short = text if text and len(text) < 40 and "\n" not in text else None
    # A package's own words are more precise than a classifier, such as which BSD.
    if short is not None and (short in COMPATIBLE or short in _WORDS):
        said = [short]
    return " AND ".join(_WORDS.get(word, word) for word in said)


def refused(expression: str) -> list[str]:
    """Return the licences of an expression that are not compatible; of alternatives one has to be."""
    for bundled in _BUNDLED:
        expression = expression.replace(bundled, "MIT")
    alternatives = re.split(r" OR ", expression.replace("(", "").replace(")", ""))
    of_each = [
        [part for part in re.split(r" AND | WITH |;|, ", one) if part.strip() not in COMPATIBLE | _PARTS]
        for one in alternatives
    ]
    return min(of_each, key=len)


def page() -> str:
    """Return the text of the page."""
    rows = sorted(((name, version, licence(name)) for name, version in locked()), key=lambda row: row[0].lower())
    lines = [
        "# Third parties' packages",
        "",
        "Every package that `requirements.lock` and `requirements-demo.lock` pin, with the licence that it states. None is part of",
        "seamcurate's distributions, which are under Apache-2.0: pip installs each from its own. The explorer's page holds",
        "JavaScript of others, whose licences are beside it in the wheel (`seamcurate/explore/static/THIRD_PARTY.txt`).",
        "`make third-party` writes this page.",
        "",
        "| package | version | licence |",
        "| --- | --- | --- |",
        *(f"| {name} | {version} | {text} |" for name, version, text in rows),
    ]
    return "\n".join(lines) + "\n"


def main() -> int:
    """Write the page; return 2 where a licence is not known to be compatible."""
    text = page()
    bad = {name: refused(licence(name)) for name, _ in locked() if refused(licence(name))}
    for name, licences in bad.items():
        print(f"error: {name} is under {', '.join(licences)}, which is not known to be compatible", file=sys.stderr)
    PAGE.write_text(text, encoding="utf-8")
    return 2 if bad else 0


if __name__ == "__main__":
    sys.exit(main())
