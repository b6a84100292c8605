"""The manual: reference pages are what the code says, links resolve, examples run, the index lists every page."""

from __future__ import annotations

import importlib
import inspect
import re
import subprocess
import sys
from pathlib import Path
from urllib.parse import unquote

import generate
import manual
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import website
import yaml

ROOT = Path(__file__).parents[1]
DOCS = ROOT / "docs"
PAGES = sorted(DOCS.rglob("*.md"))
SITE = (ROOT / "mkdocs.yml").read_text(encoding="utf-8")
LINKED = [
    ROOT / "README.md",
    ROOT / "CONTRIBUTING.md",
    ROOT / "benchmarks" / "README.md",
    *sorted((ROOT / "examples").rglob("*.md")),
    *PAGES,
]


@pytest.mark.parametrize("path", generate.FILES, ids=lambda path: path.name)
def test_a_generated_file_is_what_it_is_generated_from(path, monkeypatch):
    monkeypatch.setenv("COLUMNS", "31")
    assert path.read_text(encoding="utf-8") == generate.FILES[path](), "run `python docs/generate.py`"


def test_the_reference_folder_holds_generated_pages_alone():
    assert {file.name for file in (DOCS / "reference").iterdir()} == set(generate.PAGES)


def test_every_step_of_a_recipe_has_its_columns_and_keys_in_the_reference():
    from seamcurate.run.recipe import STEPS

    columns = (DOCS / "reference" / "columns.md").read_text()
    recipe = (DOCS / "reference" / "recipe.md").read_text()
    for key in STEPS:
        assert f"\n### {key}\n" in recipe and f"(recipe.md#{key})" in columns, key


def test_every_public_name_is_in_the_reference():
    import seamcurate

    python = (DOCS / "reference" / "python.md").read_text()
    assert all(f"\n## {name}\n" in python for name in seamcurate.__all__ if name != "__version__")


def test_what_a_public_function_or_a_store_returns_is_in_the_reference():
    import seamcurate

    python = (DOCS / "reference" / "python.md").read_text()
    values = [getattr(seamcurate, name) for name in seamcurate.__all__ if name != "__version__"]
    functions = [value for value in values if inspect.isfunction(value)]
    functions += [getattr(seamcurate.Store, name) for name in generate.STORE_METHODS]
    returned = {str(getattr(function, "__annotations__", {}).get("return")) for function in functions}
    classes = {name for name in returned if re.fullmatch(r"[A-Z]\w+", name)} - {"None", "Self"}
    assert len(classes) >= 10
    assert [name for name in sorted(classes) if not re.search(rf"^##+ {name}$", python, re.MULTILINE)] == []


def anchors(page: Path) -> set[str]:
    """Return the anchors GitHub gives a page's headings."""
    text = re.sub(r"^(```+|~~~+).*?^\1", "", page.read_text(encoding="utf-8"), flags=re.DOTALL | re.MULTILINE)
    seen: dict[str, int] = {}
    for heading in re.findall(r"^#+ +(.*)$", text, re.MULTILINE):
        slug = website.slug(heading)
        seen[slug] = seen.get(slug, -1) + 1
        if seen[slug]:
            seen[f"{slug}-{seen[slug]}"] = 0
    return set(seen)


def links(page: Path) -> list[str]:
    """Return what a page links to, images included; code is no link."""
    text = re.sub(r"^(```+|~~~+).*?^\1", "", page.read_text(encoding="utf-8"), flags=re.DOTALL | re.MULTILINE)
    return re.findall(r"(?<!\\)\]\(([^)\s]+)\)", re.sub(r"`[^`\n]*`", "`", text))


@pytest.mark.parametrize("page", LINKED, ids=lambda page: page.relative_to(ROOT).as_posix())
def test_every_relative_link_leads_somewhere(page):
    for link in links(page):
        if re.match(r"[a-z]+:", link):
            continue
        file, _, anchor = unquote(link).partition("#")
        target = (page.parent / file).resolve() if file else page
        assert target.exists() and target.is_relative_to(ROOT), f"{link} leads nowhere"
        assert not anchor or anchor in anchors(target), f"{link}: there is no such heading"


def test_the_index_lists_every_page_with_a_line():
    index = (DOCS / "index.md").read_text(encoding="utf-8")
    listed = re.findall(r"^- \[[^\]]+\]\(([^)#]+)\): \S.*\.$", index, re.MULTILINE)
    assert sorted(listed) == sorted(page.relative_to(DOCS).as_posix() for page in PAGES if page != DOCS / "index.md")


def test_the_site_has_every_page_once():
    (folder,) = [line.split()[1] for line in SITE.splitlines() if line.startswith("docs_dir: ")]
    assert folder == "build/pages", "what `make docs` copies the pages to"
    nav = yaml.safe_load("nav:\n" + SITE.partition("nav:\n")[2])["nav"]
    files = [file for part in nav for pages in part.values() for file in ([pages] if isinstance(pages, str) else pages)]
    listed = [file if isinstance(file, str) else next(iter(file.values())) for file in files]
    assert len(listed) == len(set(listed))
    assert sorted(listed) == sorted(page.relative_to(DOCS).as_posix() for page in PAGES)


def test_the_copies_for_a_site_keep_every_link(tmp_path):
    """Without a builder, which has an environment of its own: `make docs` builds the site and follows its links."""
    website.pages(tmp_path)
    copies = sorted(tmp_path.rglob("*.md"))
    assert {copy.relative_to(tmp_path) for copy in copies} >= {page.relative_to(DOCS) for page in PAGES}
    for copy in copies:
        for link in links(copy):
            file, _, anchor = unquote(link).partition("#")
            if re.match(r"[a-z]+:", link) or not file:
                continue
            target = (copy.parent / file).resolve()
            assert target.is_file() and target.is_relative_to(tmp_path), f"{copy}: {link}"
            if anchor:
                given = re.findall(r"\{ #([\w-]+) \}$", target.read_text(encoding="utf-8"), re.MULTILINE)
                assert anchor in anchors(target) | {*given}, f"{copy}: {link}"
    assert not any(re.search(r"^```\w+ ", copy.read_text(encoding="utf-8"), re.MULTILINE) for copy in copies)


def test_a_site_whose_links_lead_nowhere_is_found_out(tmp_path):
    (tmp_path / "other.html").write_text('<h1 id="here">Here</h1>')
    page = (
        '<a href="other.html#here">a</a><a href="other.html#gone">b</a><img src="no.png"><a href="https://x.org">c</a>'
    )
    (tmp_path / "index.html").write_text(page)
    assert website.check(tmp_path) == [
        "index.html: other.html#gone: there is no such heading",
        "index.html: no.png leads nowhere",
    ]
    assert website.check(tmp_path / "empty") != []


def test_pages_are_plain_markdown_that_every_builder_reads():
    """What GitHub and the builders read otherwise is not written."""
    for page in PAGES:
        text = re.sub(r"^(```+).*?^\1", "", page.read_text(encoding="utf-8"), flags=re.DOTALL | re.MULTILINE)
        assert not re.search(r"^(!!!|\?\?\?|:::|===|--8<--)|\{[:#.][^}]*\}\s*$", text, re.MULTILINE), (
            f"{page}: a builder's syntax"
        )
        for before, line in zip(text.splitlines(), text.splitlines()[1:], strict=False):
            starts = re.match(r"([-*]|\d+\.) ", line) and not re.match(r"([-*]|\d+\.) | {2,}", before)
            assert not (starts and before.strip()), f"{page}: an empty line before the list {line!r}"
            assert not re.match(r" {2,3}[-*] ", line), f"{page}: a list inside a list takes four spaces: {line!r}"


@pytest.mark.parametrize("page", LINKED, ids=lambda page: page.relative_to(ROOT).as_posix())
def test_no_page_installs_the_package_from_an_index_that_has_it_not(page):
    """An index would find no such package, or a stranger's; `NAME @ ADDRESS` asks none. Cards of others are no pages."""
    named = re.findall(r'pip install "?seamcurate(?:\[[^\]]*\])?(?! @)["`\s]', page.read_text(encoding="utf-8"))
    assert not named


def test_a_page_begins_with_what_it_is_for():
    for page in PAGES:
        if page.parent.name in ("reference", "results"):
            continue
        title, first = page.read_text(encoding="utf-8").split("\n\n", 2)[:2]
        assert re.match(r"# \S.*$", title), page
        assert re.match(r"[A-Za-z`\[*]", first) and len(first) >= 60, f"{page} begins with {first[:60]!r}"


def test_the_readme_stays_short():
    lines = (ROOT / "README.md").read_text(encoding="utf-8").splitlines()
    assert len(lines) <= 200 and max(map(len, lines)) <= 120
    assert len({link for link in links(ROOT / "README.md") if link.startswith("docs/")}) >= 5


def test_the_readmes_example_prints_what_it_shows(tmp_path):
    """In a folder with the reader's Parquet."""
    pairs = [(verb, thing) for verb in ("sort", "copy") for thing in ("list", "file", "set")]
    questions = [f"how do I {verb} a {thing}" for verb, thing in pairs]
    answers = [f"{verb} the {thing} with {verb}()" for verb, thing in pairs]
    pq.write_table(pa.table({"question": questions, "answer": answers}), tmp_path / "questions.parquet")
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    block, output = re.search(r"```python\n(.*?)```\n+```text\n(.*?)```", readme, re.DOTALL).groups()
    assert readme.count("```python\n") == 1
    done = subprocess.run(
        [sys.executable, "-c", block], cwd=tmp_path, capture_output=True, text=True, check=True, timeout=300
    )
    assert done.stdout == output


RUNNABLE = [
    page
    for page in PAGES
    if not (page.parent.name == "tutorial" and page.name in generate.TUTORIALS)  # which test_tutorials.py runs whole
    if any(block.kind == "python" for block in manual.blocks(page))
]


@pytest.mark.parametrize("page", RUNNABLE, ids=lambda page: page.relative_to(ROOT).as_posix())
def test_the_manuals_python_runs_and_prints_what_it_shows(page, tmp_path):
    """Blocks run one after another in one folder, each in a process; one that begins with a file's name is that file.

    `python no-run` is for what needs a GPU or a server. A block of text after one of Python is what it prints.
    """
    for block in manual.blocks(page):
        if block.file:
            (tmp_path / block.file).parent.mkdir(parents=True, exist_ok=True)
            (tmp_path / block.file).write_text(block.text, encoding="utf-8")
        elif block.kind == "python":
            command = [sys.executable, "-c", block.text]
            done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=300)
            assert done.returncode == 0, done.stderr
            shown = manual.shown(page, block)
            assert shown is None or manual.shows(shown.text, done.stdout), done.stdout


def test_python_in_the_manual_is_marked():
    known = {"", "python", "python no-run", "pycon", "console", "sh", "yaml", "sql", "text", "json", "mermaid"}
    for page in LINKED:
        fences = re.findall(r"^```(.*)$", page.read_text(encoding="utf-8"), re.MULTILINE)
        assert set(fences[::2]) <= known, page


def test_every_recipe_in_the_manual_reads(tmp_path):
    """A YAML block with `rows:` is a whole recipe; one that names its file in the first line may be what a recipe reads."""
    from seamcurate.run import recipe

    read = 0
    for page in [ROOT / "README.md", *PAGES]:
        for block in re.findall(r"^```yaml\n(.*?)^```", page.read_text(encoding="utf-8"), re.DOTALL | re.MULTILINE):
            if named := re.match(r"# ([\w-]+\.yaml)\n", block):
                (tmp_path / named[1]).write_text(block, encoding="utf-8")
            if re.search(r"^rows:", block, re.MULTILINE):
                recipe.loads(block, tmp_path, page.name)
                read += 1
    assert read


def test_the_places_that_contributing_names_are_there():
    text = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
    paths = re.findall(r"`((?:seamcurate|recipes|docs|examples|tests)/[\w./-]*)`", text)
    assert paths and all((ROOT / path).exists() for path in paths)
    tables = re.findall(r"`([A-Z]{4,})` (?:in|of) `([\w./]+)\.py`", text)
    for name, module in tables:
        assert hasattr(importlib.import_module(module.replace("/", ".")), name), f"{module} has no {name}"
