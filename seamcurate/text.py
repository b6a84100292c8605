"""Text for a person: control characters spelled out, values cut to one line, counts with their noun, near names.

A hostile row could use control characters to rewrite a screen; what is shown to a person goes through `clean`.
"""

from __future__ import annotations

import difflib
import json
import re
from collections.abc import Iterable
from decimal import Decimal

_CONTROL = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\u2028\u2029\u202a-\u202e\u2066-\u2069\ufffe\uffff]")


def clean(text: str) -> str:
    """Return text with control characters spelled out, newline and tab apart."""
    return _CONTROL.sub(lambda m: f"\\x{ord(m[0]):02x}", text)


def one_line(text: str) -> str:
    """Return text as one line without control characters."""
    return " ".join(clean(text).split())


def brief(value: object, width: int) -> str:
    """Return a value as one line of at most `width` characters."""
    if value is None:
        return "NULL"
    if isinstance(value, float):
        return f"{value:.6g}"
    nested = isinstance(value, list | tuple | dict)
    text = json.dumps(value, ensure_ascii=False, default=spelled) if nested else spelled(value)
    line = one_line(text)
    return line if len(line) <= width else line[: width - 1] + "…"


def spelled(value: object) -> str:
    r"""Write a plain value as text: bytes by their characters, those that are not UTF-8 as hexadecimal numbers.

    Example:
        >>> spelled(True), spelled(b"caf\xc3\xa9"), spelled(Decimal("1E+2"))
        ('true', 'café', '100')
    """
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, Decimal):
        return f"{value:f}"
    return value.decode("utf-8", "backslashreplace") if isinstance(value, bytes) else str(value)


def folded(text: str) -> str:
    """Return a text in lower case with single spaces: texts are equal, case and white space aside, where these are."""
    return " ".join(text.casefold().split())


def counted(count: int, noun: str, plural: str = "") -> str:
    """Write a count with its noun: "1 shard", "1,200 shards"; give the plural where it is not the noun and an s."""
    return f"{count:,} {noun if count == 1 else plural or f'{noun}s'}"


def suggestion(name: object, names: Iterable[str]) -> str:
    """Return "; did you mean `x`?" for the most similar of some names, to end a message with; empty where none is similar.

    Example:
        >>> suggestion("retreive", ["retrieve", "generate"])
        '; did you mean `retrieve`?'
    """
    by_lower = {known.lower(): known for known in names}
    near = difflib.get_close_matches(str(name).lower(), by_lower, n=1, cutoff=0.6)
    return f"; did you mean `{by_lower[near[0]]}`?" if near else ""
