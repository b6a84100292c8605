"""Local names say what the value is: few of them are English stop words such as `found`, `one`, `other`."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

from sklearn.feature_extraction.text import ENGLISH_STOP_WORDS

PACKAGE = Path(__file__).parents[1] / "seamcurate"
ALLOWED = {"name", "i"}
LIMIT = 0.025


def local_names(source: str) -> Iterator[tuple[str, int]]:
    """Yield each local name of each function once, with the line where it is first bound."""
    for function in ast.walk(ast.parse(source)):
        if isinstance(function, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda):
            lines: dict[str, int] = {}
            for name, line in sorted(_bound(function), key=lambda pair: pair[1]):
                lines.setdefault(name, line)
            yield from lines.items()


def _bound(function: ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda) -> Iterator[tuple[str, int]]:
    """Yield parameters and targets of a function's own body, not those of functions and classes inside it."""
    a = function.args
    for parameter in (*a.posonlyargs, *a.args, *a.kwonlyargs, *filter(None, (a.vararg, a.kwarg))):
        yield parameter.arg, parameter.lineno
    nodes: list[ast.AST] = list(function.body) if isinstance(function.body, list) else [function.body]
    while nodes:
        node = nodes.pop()
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda | ast.ClassDef):
            continue
        if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
            yield node.id, node.lineno
        if isinstance(node, ast.ExceptHandler) and node.name:
            yield node.name, node.lineno
        nodes += ast.iter_child_nodes(node)


def is_stop_word(name: str) -> bool:
    return name not in ALLOWED and name.strip("_") in ENGLISH_STOP_WORDS


def test_names_are_read_from_parameters_targets_and_handlers():
    source = """
def outer(a, *args, key=None):
    first = [one for one in a]
    for i, (left, right) in args:
        first = left
    with open(a) as handle:
        pass
    try:
        (walrus := 1)
    except ValueError as error:
        pass
    def inner(b):
        return lambda c: c
"""
    assert dict(local_names(source)) == {
        **{"a": 2, "args": 2, "key": 2, "first": 3, "one": 3, "i": 4, "left": 4, "right": 4, "handle": 6},
        **{"walrus": 9, "error": 10, "b": 12, "c": 13},
    }
    assert sorted(name for name, _ in local_names(source) if is_stop_word(name)) == ["a", "first", "one"]


def test_few_local_names_are_english_stop_words():
    names = [
        (name, f"{file.relative_to(PACKAGE.parent)}:{line}")
        for file in sorted(PACKAGE.rglob("*.py"))
        for name, line in local_names(file.read_text(encoding="utf-8"))
    ]
    vague: dict[str, list[str]] = {}
    for name, position in names:
        if is_stop_word(name):
            vague.setdefault(name, []).append(position)
    count = sum(map(len, vague.values()))
    worst = sorted(vague.items(), key=lambda entry: len(entry[1]), reverse=True)[:20]
    assert count / len(names) <= LIMIT, (
        f"{count} of {len(names)} local names ({count / len(names):.1%}) are English stop words; at most {LIMIT:.1%} may be. "
        "Say what the value is (scores, candidate, shard_path):\n"
        + "\n".join(f"  {name} ×{len(positions)}: {', '.join(positions)}" for name, positions in worst)
    )
