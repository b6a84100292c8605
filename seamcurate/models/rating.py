"""Ratings in a judge's replies: the JSON schema that asks for one, and how it is read.

A reply that follows the schema and a reply in the form of SEAM's judge prompt, `[[7]]`, are read alike.
"""

from __future__ import annotations

import re
from functools import lru_cache

from pydantic import JsonValue

from seamcurate.models.reply import field, last_first

Scale = tuple[float, float]
"""The lowest and the highest rating."""

_LISTED = 101
"""Ratings that a schema lists one by one, at most: some servers enforce a list and ignore a range."""


def object_schema(**properties: JsonValue) -> dict[str, JsonValue]:
    """Return the JSON schema of an object that has all of these properties and no other."""
    return {
        "type": "object",
        "properties": properties,
        "required": list(properties),
        "additionalProperties": False,
    }


def rating_schema(scale: Scale) -> dict[str, JsonValue]:
    """Return the JSON schema of a rating: a whole number where both ends of the scale are whole, else any number.

    Example:
        >>> rating_schema((1, 3))
        {'type': 'integer', 'enum': [1, 2, 3]}
        >>> rating_schema((0, 0.5))
        {'type': 'number', 'minimum': 0, 'maximum': 0.5}
    """
    low, high = scale
    if not (float(low).is_integer() and float(high).is_integer()):
        return {"type": "number", "minimum": low, "maximum": high}
    if high - low < _LISTED:
        return {"type": "integer", "enum": list(range(int(low), int(high) + 1))}
    return {"type": "integer", "minimum": int(low), "maximum": int(high)}


def scale_words(scale: Scale) -> dict[str, str]:
    """Return the placeholders of a template that a scale fills in: `low`, `high`, and a rating as an `example`.

    Example:
        >>> scale_words((1, 10))
        {'low': '1', 'high': '10', 'example': '5'}
    """
    low, high = scale
    middle = (low + high) / 2
    whole = float(low).is_integer() and float(high).is_integer()
    return {"low": f"{low:g}", "high": f"{high:g}", "example": f"{middle // 1 if whole else middle:g}"}


def rating(text: str, scale: Scale = (1, 10)) -> float | None:
    """Read a judge's rating from its reply: the JSON field `rating`, else the last `[[rating]]`; None outside the scale.

    Example:
        >>> rating("It is short. Rating: [[7]]"), rating('{"rating": 70}')
        (7.0, None)
    """
    low, high = scale
    json_value = field(text, "rating")
    value: float | None = None
    if isinstance(json_value, int | float) and not isinstance(json_value, bool):
        value = float(json_value)
        # JSON in front of a rating may be the judge's quotation of the answer.
        text = text[text.rindex("}") :]
    value = next((float(match[1]) for match in last_first(_bracketed(scale), text)), value)
    return value if value is not None and low <= value <= high else None


@lru_cache
def _bracketed(scale: Scale) -> re.Pattern[str]:
    """Match a rating in double brackets, alone or before a slash and the highest rating."""
    low, high = scale
    sign = "-?" if low < 0 else ""
    return re.compile(rf"\[\[\s*({sign}\d+(?:\.\d+)?)\s*(?:/\s*{re.escape(f'{high:g}')})?\s*\]\]")
