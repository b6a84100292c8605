"""The outputs of a classifier: their names, the one that a setting names, and what they are called as columns."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Annotated, Literal, TypeAlias

from pydantic import BeforeValidator

from seamcurate.errors import ModelError
from seamcurate.text import suggestion


def checked(value: object) -> object:
    """Refuse what names no output. A check of a union would name each of its types in the path of its errors.

    Raises:
        ValueError: The value is neither a name nor a number from 0.
    """
    if isinstance(value, bool) or not isinstance(value, int | str) or (isinstance(value, int) and value < 0):
        raise ValueError(f"an output is a name, or a number from 0, not {str(value)[:40]}")
    return value


Output: TypeAlias = Annotated[int | str, BeforeValidator(checked)]
"""An output by its number, from 0, or by its name."""


def checked_list(value: object) -> object:
    """Refuse what is neither a list of outputs nor `all`.

    Raises:
        ValueError: It is neither, or one of the list names no output.
    """
    if value == "all":
        return value
    if not isinstance(value, list | tuple):
        raise ValueError(f"outputs is a list of names or numbers, or all, not {str(value)[:40]}")
    return tuple(map(checked, value))


Outputs: TypeAlias = Annotated[tuple[Output, ...] | Literal["all"], BeforeValidator(checked_list)]
"""Several outputs by their numbers or names, or all of them."""

_UNNAMED = re.compile(r"LABEL_(\d+)")
"""What transformers calls an output that nobody named."""
_SHOWN = 12
"""Names that an error lists, at most."""
_TAKEN = ("reason", "members")
"""What follows `reward_` in a column that is no output."""


def numbered(count: int) -> tuple[str, ...]:
    """Name outputs by their numbers.

    Example:
        >>> numbered(3)
        ('0', '1', '2')
    """
    return tuple(str(number) for number in range(count))


def names_of(configuration: Mapping[str, object]) -> tuple[str, ...]:
    """Return the outputs' names from a classifier's `config.json`, in the order of the outputs; an unnamed one is its number.

    A configuration without labels has as many outputs as `num_labels` says, and two without that, as in transformers.

    Example:
        >>> names_of({"id2label": {"0": "helpfulness", "1": "LABEL_1"}})
        ('helpfulness', '1')
        >>> names_of({"label2id": {"correct": 1, "helpful": 0}})
        ('helpful', 'correct')
    """
    by_number, by_name, count = (configuration.get(key) for key in ("id2label", "label2id", "num_labels"))
    pairs = [*by_number.items()] if isinstance(by_number, Mapping) else []
    if not pairs and isinstance(by_name, Mapping):
        pairs = [(number, name) for name, number in by_name.items()]
    names = {int(number): str(name) for number, name in pairs if str(number).isdecimal()}
    if not pairs or sorted(names) != list(range(len(pairs))):
        return numbered(len(pairs) or (count if isinstance(count, int) else 2))
    return tuple(_UNNAMED.sub(r"\1", names[number]) for number in range(len(names)))


def are_told(configuration: Mapping[str, object]) -> bool:
    """Tell whether a configuration says how many outputs there are: transformers writes no labels where there are two."""
    return any(configuration.get(key) for key in ("id2label", "label2id", "num_labels"))


def index_of(named: int | str, names: Sequence[str], model: str) -> int:
    """Return the number of the output that a setting names; a text is a name first, then a number.

    Args:
        named: A name or a number, from 0.
        names: All names in order, as `names_of` returns them.
        model: The model's name, for the message.

    Raises:
        ModelError: There is no such output.

    Example:
        >>> index_of("correctness", ("helpfulness", "correctness"), "org/rm"), index_of(1, ("0", "1"), "org/rm")
        (1, 1)
    """
    text = _UNNAMED.sub(r"\1", named) if isinstance(named, str) else ""
    if text in names:
        return names.index(text)
    if text.isdecimal():
        named = int(text)
    if isinstance(named, int) and 0 <= named < len(names):
        return named
    raise ModelError(f"{model} has no output {named}; it has: {listed(names)}{suggestion(named, names)}")


def indices_of(named: Sequence[int | str] | str, names: Sequence[str], model: str) -> tuple[int, ...]:
    """Return the numbers of the outputs that a setting names: a list, or `all`.

    Raises:
        ModelError: One does not exist, or is named twice.
    """
    if isinstance(named, str):
        return tuple(range(len(names)))
    indices = tuple(index_of(name, names, model) for name in named)
    repeated = next((i for i in indices if indices.count(i) > 1), None)
    if repeated is not None:
        raise ModelError(f"{model}: outputs names {names[repeated]} twice; name each output once")
    return indices


def column_names(names: Sequence[str]) -> tuple[str, ...]:
    """Return the names of outputs as parts of columns' names: lower snake case, unique, and no part of another column.

    Example:
        >>> column_names(["Helpfulness", "helpful-ness", "helpful ness", "有用", "reason"])
        ('helpfulness', 'helpful_ness', 'helpful_ness_2', '3', 'reason_4')
    """
    taken, columns = set(_TAKEN), []
    for number, name in enumerate(names):
        column = re.sub(r"[^a-z0-9]+", "_", name.lower()).strip("_") or str(number)
        while column in taken:
            column = f"{column}_{number}"
        taken.add(column)
        columns.append(column)
    return tuple(columns)


def listed(names: Sequence[str]) -> str:
    """List names for a message, the first of many.

    Example:
        >>> listed(["helpfulness", "correctness"])
        'helpfulness, correctness'
    """
    rest = len(names) - _SHOWN
    return ", ".join([*names[:_SHOWN], *([f"… ({rest:,} more)"] if rest > 0 else [])])
