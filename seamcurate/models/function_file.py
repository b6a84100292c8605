"""What the file of a reward function says about it, read without running it: its parameters, and the code it rests on."""

from __future__ import annotations

import ast
import hashlib
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from seamcurate.errors import ModelError
from seamcurate.text import suggestion


class Parameters(NamedTuple):
    """The parameters of a function."""

    positional: tuple[str, ...]
    """Those that can be given by their place, in order."""
    keyword_only: tuple[str, ...]
    optional: frozenset[str]
    """Those with a default."""
    takes_any: bool
    """Whether it takes further arguments by name (`**kwargs`)."""

    @property
    def names(self) -> tuple[str, ...]:
        """Return all names, in order."""
        return self.positional + self.keyword_only

    @property
    def required(self) -> tuple[str, ...]:
        """Return the names without a default."""
        return tuple(name for name in self.names if name not in self.optional)

    def __str__(self) -> str:
        """Show the parameters as they are written."""
        return ", ".join([*self.names, *(["**"] if self.takes_any else [])])


def parameters(file: Path, name: str, title: str) -> Parameters | None:
    """Return the parameters of a function in a file; None where the file imports or assigns it, so that it does not show them.

    Args:
        file: The Python file.
        name: The function's name.
        title: What errors call the model.

    Raises:
        ModelError: There is no such file, it is not Python, or it has no such function.
    """
    tree = _parsed(file, title)
    functions: dict[str, Parameters | None] = {}
    classes, star = set(), False
    for statement in _statements(tree.body):
        if isinstance(statement, ast.FunctionDef | ast.AsyncFunctionDef):
            functions[statement.name] = _of(statement.args)
        elif isinstance(statement, ast.ClassDef):
            classes.add(statement.name)
        elif isinstance(statement, ast.Import | ast.ImportFrom):
            star |= any(alias.name == "*" for alias in statement.names)
            functions |= dict.fromkeys(alias.asname or alias.name.partition(".")[0] for alias in statement.names)
        elif isinstance(statement, ast.Assign | ast.AnnAssign):
            targets = statement.targets if isinstance(statement, ast.Assign) else [statement.target]
            value = _of(statement.value.args) if isinstance(statement.value, ast.Lambda) else None
            functions |= {
                node.id: value for target in targets for node in ast.walk(target) if isinstance(node, ast.Name)
            }
    if name in classes:
        raise ModelError(f"{title}: {name} is a class; name a function, or an object of it that can be called")
    if name not in functions and not star:
        defined = [key for key, value in functions.items() if value is not None]
        listed = f"it defines {', '.join(defined)}" if defined else "it defines none"
        raise ModelError(f"{title}: the file has no function {name!r}; {listed}{suggestion(name, defined)}")
    return functions.get(name)


def hashes(file: Path, title: str) -> dict[str, str]:
    """Return the SHA-256 of a file and of the modules beside it that it imports, by their paths from its folder.

    Modules are found by their import statements, those inside functions included.
    """
    folder, hash_by_path = file.parent, dict[str, str]()
    pending = [file]
    while pending:
        path = pending.pop()
        key = path.relative_to(folder).as_posix()
        if key not in hash_by_path:
            hash_by_path[key] = hashlib.sha256(_bytes(path, title)).hexdigest()
            pending += _imported(_parsed(path, title), folder, path.parent)
    # The file is known by its content: to rename it changes nothing.
    return {"file": hash_by_path.pop(file.name), **dict(sorted(hash_by_path.items()))}


def _imported(tree: ast.Module, folder: Path, package: Path) -> Iterator[Path]:
    """Yield the files in a folder that a module imports."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            modules = [(folder, alias.name) for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            origin = folder if not node.level else package.joinpath(*[".."] * (node.level - 1)).resolve()
            base = f"{node.module}." if node.module else ""
            modules = [(origin, base.rstrip(".")), *((origin, base + alias.name) for alias in node.names)]
        else:
            continue
        for origin, module in modules:
            parts = [part for part in module.split(".") if part]
            for i in range(len(parts)):
                path = origin.joinpath(*parts[: i + 1])
                for file in (path.with_suffix(".py"), path / "__init__.py"):
                    if file.is_file() and file.is_relative_to(folder):
                        yield file


def _parsed(file: Path, title: str) -> ast.Module:
    content = _bytes(file, title)
    try:
        return ast.parse(content, filename=str(file))
    except SyntaxError as error:
        raise ModelError(f"{title}: {file.name}:{error.lineno or 1}: {error.msg}; correct the file") from error
    except (ValueError, RecursionError, MemoryError) as error:
        raise ModelError(f"{title}: {file.name} is no Python file") from error


def _bytes(file: Path, title: str) -> bytes:
    try:
        return file.read_bytes()
    except OSError as error:
        similar = [path.name for path in file.parent.glob("*.py")]
        hint = suggestion(file.name, similar)
        raise ModelError(f"{title}: {file} cannot be read: {error.strerror}{hint}") from error


def _statements(body: list[ast.stmt]) -> Iterator[ast.stmt]:
    """Yield the statements of a module, those under `if`, `try` and `with` included."""
    for statement in body:
        yield statement
        if isinstance(statement, ast.If | ast.Try | ast.With):
            for field in ("body", "orelse", "finalbody"):
                yield from _statements(getattr(statement, field, []))
            for handler in getattr(statement, "handlers", []):
                yield from _statements(handler.body)


def _of(arguments: ast.arguments) -> Parameters:
    positional = tuple(argument.arg for argument in (*arguments.posonlyargs, *arguments.args))
    keyword_only = tuple(argument.arg for argument in arguments.kwonlyargs)
    with_default = positional[len(positional) - len(arguments.defaults) :]
    keywords = [name for name, value in zip(keyword_only, arguments.kw_defaults, strict=True) if value is not None]
    return Parameters(positional, keyword_only, frozenset((*with_default, *keywords)), arguments.kwarg is not None)
