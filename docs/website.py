"""Make a site of the manual: `make docs`. The pages are plain Markdown, read on GitHub as they are; a builder gets copies.

One rule: the text is not written for a builder. What a builder would show otherwise is changed in the copies, and the links
of what it built are followed, whichever builder it was.

    python docs/website.py pages FOLDER    copy the pages, and the files outside of docs/ that they lead to
    python docs/website.py check FOLDER    follow every link of the site in FOLDER
"""

from __future__ import annotations

import os
import re
import shutil
import sys
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote, urlsplit

DOCS = Path(__file__).resolve().parent
ROOT = DOCS.parent
ELSEWHERE = "elsewhere"
"""The folder of the site for what lies outside of docs/."""

_HEADING = re.compile(r"^#+ +(.*)$", re.MULTILINE)
_LINK = re.compile(r"(`[^`\n]*`)|(\]\()([^)\s]+)(\))")


def pages(folder: Path) -> None:
    """Copy the manual into a folder, for a builder of sites.

    Args:
        folder: Where the copies go; what lies there is removed.
    """
    shutil.rmtree(folder, ignore_errors=True)
    waiting, done = [path for path in sorted(DOCS.rglob("*")) if path.suffix != ".py" and path.is_file()], set[Path]()
    while waiting:
        path = waiting.pop()
        if path in done:
            continue
        done.add(path)
        copy = folder / _place(path)
        copy.parent.mkdir(parents=True, exist_ok=True)
        if path.suffix != ".md":
            shutil.copyfile(path, copy)
            continue
        text, linked = _page(path)
        copy.write_text(text, encoding="utf-8")
        waiting += linked


def _place(path: Path) -> Path:
    return path.relative_to(DOCS) if path.is_relative_to(DOCS) else ELSEWHERE / path.relative_to(ROOT)


def _page(path: Path) -> tuple[str, list[Path]]:
    """Return a page for a builder, and the files that it leads to."""
    linked: list[Path] = []

    def follow(match: re.Match[str]) -> str:
        target = match[3]
        if match[1] or re.match(r"[a-z]+:|#", target):
            return match[0]
        file, hash_sign, anchor = target.partition("#")
        lies = (path.parent / unquote(file)).resolve()
        if lies.is_dir():  # a site has no listing of a folder: its README stands for it
            lies = lies / "README.md"
        linked.append(lies)
        relative = os.path.relpath(_place(lies), _place(path).parent)
        return f"{match[2]}{Path(relative).as_posix()}{hash_sign}{anchor}{match[4]}"

    seen: dict[str, int] = {}

    def anchored(match: re.Match[str]) -> str:
        anchor = slug(match[1])
        seen[anchor] = seen.get(anchor, -1) + 1
        # GitHub counts equal headings by `-1`, Python-Markdown by `_1`.
        return f"{match[0]} {{ #{anchor}-{seen[anchor]} }}" if seen[anchor] else match[0]

    # The parts of the text between code blocks, and the blocks; of a block's first line builders read one word.
    parts = re.split(r"^(```+.*\n(?:.*\n)*?```+)$", path.read_text(encoding="utf-8"), flags=re.MULTILINE)
    for index, part in enumerate(parts):
        if index % 2:
            parts[index] = re.sub(r"\A(```+\w*)[^\n]*", r"\1", part)
        else:
            parts[index] = _HEADING.sub(anchored, _LINK.sub(follow, part))
    return "".join(parts), linked


def slug(heading: str) -> str:
    """Return the anchor that GitHub gives a heading."""
    plain = re.sub(r"\[([^\]]*)\]\([^)]*\)", r"\1", heading).strip().lower()
    return re.sub(r"[^\w\- ]", "", plain).replace(" ", "-")


class _Links(HTMLParser):
    """What a page leads to, and the anchors that it has."""

    def __init__(self) -> None:
        super().__init__()
        self.links: list[str] = []
        self.anchors: set[str] = set()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        for name, value in attrs:
            if name in ("href", "src") and value:
                self.links.append(value)
            elif name == "id" and value:
                self.anchors.add(value)


def check(site: Path) -> list[str]:
    """Follow the links of a built site.

    Args:
        site: The folder that a builder wrote.

    Returns:
        One line for each link that leads nowhere inside the site.
    """
    found: dict[Path, _Links] = {}
    for file in sorted(site.rglob("*.html")):
        found[file.resolve()] = parsed = _Links()
        parsed.feed(file.read_text(encoding="utf-8"))
    faults = [] if found else [f"{site}: there is no page"]
    for file, parsed in found.items():
        if file.name == "404.html":  # its links begin at the address that the site is served at
            continue
        for link in parsed.links:
            address = urlsplit(link)
            if address.scheme or address.netloc:
                continue
            target = (file.parent / unquote(address.path)).resolve() if address.path else file
            target = target / "index.html" if target.is_dir() else target
            anchor = unquote(address.fragment)
            if not target.exists():
                faults.append(f"{file.relative_to(site.resolve())}: {link} leads nowhere")
            elif anchor and target in found and anchor not in found[target].anchors:
                faults.append(f"{file.relative_to(site.resolve())}: {link}: there is no such heading")
    return faults


if __name__ == "__main__":
    match sys.argv[1:]:
        case ["pages", folder]:
            pages(Path(folder))
        case ["check", folder]:
            faults = check(Path(folder))
            print(*faults or [f"{folder}: every link leads somewhere"], sep="\n")
            sys.exit(1 if faults else 0)
        case _:
            sys.exit(__doc__)
