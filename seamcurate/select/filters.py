"""A filter's text: where it comes from, its parameters, and the values that they take.

One rule: a value is bound, never written into SQL. Only names of columns are, and only of columns that the store has.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping, Sequence
from datetime import date
from pathlib import Path

from pydantic import JsonValue

from seamcurate.errors import RecipeError
from seamcurate.select import views
from seamcurate.sql.guard import unterminated
from seamcurate.text import brief, suggestion

_DEFAULT = re.compile(
    r"^--\s*default\s+(\w+)\s*=\s*(.+?)(?:\s+\((?:from (-?[\d.]+) to (-?[\d.]+)|or (\w+))\))?\s*$", re.MULTILINE
)
"""A parameter's default, and the values that it takes: a number in a range, or one of two words."""
_NAME = re.compile(r"\{(\w+)\}")
_VALUE = re.compile(r"\$([A-Za-z_]\w*)")
_QUOTED = re.compile(r"'(?:[^']|'')*'|--[^\n]*")


def read(name: str, folder: Path) -> str:
    """Return a filter's SQL: of a file in `folder` or the working folder, of a bundled one, or the text itself.

    Raises:
        RecipeError: The file is not there.
    """
    if not is_file_name(name):
        return name
    for file in (folder / name, Path(name), *(recipes / Path(name).name for recipes in bundled())):
        if file.is_file():
            return file.read_text(encoding="utf-8")
    listed = sorted(file.name for recipes in bundled() for file in recipes.glob("*.sql"))
    raise RecipeError(
        f"no filter {name!r} in {folder} or here; bundled are: {', '.join(listed)}{suggestion(Path(name).name, listed)}"
    )


def is_file_name(filter: str) -> bool:
    """Tell whether a filter is a `.sql` file's name, and not SQL that ends in one."""
    text = filter.strip()
    return (
        text.endswith(".sql")
        and "\n" not in text
        and not re.match(r"(select|with|from)\s|--|/\*|\(", text, re.IGNORECASE)
    )


def bundled() -> list[Path]:
    """Return the folder of bundled recipes: inside an installed package, or beside it in a checkout."""
    package = Path(__file__).parents[1]
    return [folder for folder in (package / "recipes", package.parent / "recipes") if folder.is_dir()]


def bound(
    text: str, given: Mapping[str, JsonValue], columns: Sequence[str], keys: Collection[str]
) -> tuple[str, dict[str, JsonValue]]:
    """Return a filter's SQL with column names filled in, and the values to bind.

    Args:
        text: The filter.
        given: Its parameters, beside its defaults.
        columns: The columns that a parameter may name.
        keys: The keys of a split that are no parameters, to find what a misspelt one may mean.

    Raises:
        RecipeError: A parameter is missing, not used, or names no column.
    """
    defaults = _DEFAULT.findall(text)
    parameters: dict[str, JsonValue] = {key: _literal(value) for key, value, *_ in defaults} | dict(given)
    code = _QUOTED.sub("", text)
    names, values = set(_NAME.findall(code)), set(_VALUE.findall(code))
    missing = sorted((names | values) - set(parameters))
    unused = sorted(set(given) - names - values)
    if missing:
        raise RecipeError(f"the filter needs {', '.join(missing)}; give it as a key beside `filter`")
    if unused:
        raise RecipeError(
            f"the filter has no parameter {unused[0]!r}; it takes: {', '.join(sorted(names | values))}"
            f"{suggestion(unused[0], {*names, *values, *keys})}"
        )
    for key, default, low, high, word in defaults:
        _check_value(key, parameters[key], (low, high), (default, word))
    for name in sorted(names):
        if parameters[name] not in columns:
            raise RecipeError(
                f"{name}: {parameters[name]!r} is no column of this store; there are: {', '.join(columns)}"
                f"{suggestion(parameters[name], columns)}"
            )
    sql = _NAME.sub(lambda m: views.quoted(str(parameters[m[1]])) if m[1] in names else m[0], text)
    return unterminated(sql.strip()), {value: parameters[value] for value in values}


def title(sql: str) -> str:
    """Return the comment in a filter's first line: what rows that the filter does not return were dropped by."""
    line = next((line for line in sql.splitlines() if line.strip()), "")
    return line.removeprefix("--").strip().rstrip(".") if line.startswith("--") else "the filter"


def _check_value(name: str, value: JsonValue, limits: tuple[str, str], words: tuple[str, str]) -> None:
    """Refuse a parameter's value that its filter does not take; limits and words are empty where it takes any.

    Raises:
        RecipeError: The value is outside the limits, or none of the two words.
    """
    low, high = limits
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    if low and not (is_number and float(low) <= float(str(value)) <= float(high)):
        raise RecipeError(f"{name}: {value!r} is no number from {low} to {high}")
    if words[1] and value not in words:
        raise RecipeError(f"{name}: {value!r} is neither {words[0]} nor {words[1]}")


def _literal(text: str) -> JsonValue:
    """Read a default as YAML: a plain value, or a list of plain values; a date is read as text.

    Raises:
        RecipeError: It is neither.
    """
    import yaml

    try:
        value = yaml.safe_load(text)
    # ValueError: a number of too many digits, or no day of the calendar. RecursionError: lists nested too deeply.
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        raise RecipeError(f"the filter's default {brief(text, 80)!r} cannot be read; write a value as YAML") from error
    values = value if isinstance(value, list) else [value]
    plain = [str(element) if isinstance(element, date) else element for element in values]
    if not all(element is None or isinstance(element, str | int | float) for element in plain):
        raise RecipeError(f"the filter's default {brief(text, 80)!r} is neither a plain value nor a list of them")
    return plain if isinstance(value, list) else plain[0]
