"""What a chat completion says, as a server sent it: its text, its end, the tokens it names. Nothing of it is believed.

Servers leave fields out, answer with an error under HTTP 200, and count what cannot be. This module knows no endpoint and
no price: it takes JSON apart.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable, Mapping
from typing import NamedTuple

from seamcurate.models.reply import content

_LONGEST_TEXT = 1_000_000
"""Characters of an answer that are kept; no model was asked for as many."""
_TRANSIENT = re.compile(
    r"408|409|429|5\d\d|rate.?limit|overload|time.?out|unavailable|server.?error|internal", re.IGNORECASE
)
"""Codes of errors that another request may not meet."""
_BROKEN_OFF = re.compile(r"error|abort|cancel|time_?out|insufficient", re.IGNORECASE)
"""Reasons for an answer's end that are the server's fault."""


class NoCompletionError(Exception):
    """What came back is no completion; `asks_again` where another request may bring one."""

    def __init__(self, reason: str, asks_again: bool = True) -> None:
        super().__init__(reason)
        self.asks_again = asks_again


class Completion(NamedTuple):
    """What a server answered."""

    text: str
    finish: str
    """Why the text ends, in the server's own word; `stop` where it gives none."""
    model: str | None
    """The model's name by the server's own word, where it gives one."""


def text_of(body: object) -> str | None:
    """Return the text of a completion's first choice; None where it has no message."""
    message = _message(_choice(body))
    return None if message is None else content(message)


def completion(body: object, hide: Callable[[str], str] = str) -> Completion:
    """Take a completion apart.

    Args:
        body: The response's JSON.
        hide: Takes secrets out of a server's words.

    Raises:
        NoCompletionError: It is none, or an error stands in the place of one.

    Example:
        >>> message = {"role": "assistant", "content": "7"}
        >>> completion({"model": "m", "choices": [{"message": message, "finish_reason": "stop"}]})
        Completion(text='7', finish='stop', model='m')
    """
    choice = _choice(body)
    message = _message(choice)
    if (error := _error_inside(body, choice)) is not None:
        words, code = error
        raise NoCompletionError(f"an error: {hide(words)}", bool(_TRANSIENT.search(code)))
    if not isinstance(body, Mapping) or not isinstance(choice, Mapping) or message is None:
        raise NoCompletionError("no completion: it has no choices[0].message")
    text, finish = content(message), str(choice.get("finish_reason") or "stop")
    if _BROKEN_OFF.search(finish):
        raise NoCompletionError(f"the finish_reason {hide(finish)!r}")
    if isinstance(refusal := message.get("refusal"), str) and refusal:
        text, finish = refusal, "refusal"
    if len(text) > _LONGEST_TEXT:
        text, finish = text[:_LONGEST_TEXT], "length"
    # A lone half of a surrogate pair is no text, and no file would take it.
    text = text.encode("utf-8", "replace").decode()
    name = body.get("model")
    return Completion(text, finish, name if isinstance(name, str) and name else None)


def token_counts(body: object, limit_in: int, limit_out: int) -> tuple[int | None, int | None]:
    """Return the tokens read and written that a server names, each within a limit; None where it names none.

    Example:
        >>> token_counts({"usage": {"prompt_tokens": 12, "completion_tokens": "900"}}, 100, 100)
        (12, 100)
    """
    usage = body.get("usage") if isinstance(body, Mapping) else None
    counts = usage if isinstance(usage, Mapping) else {}
    return _count(counts.get("prompt_tokens"), limit_in), _count(counts.get("completion_tokens"), limit_out)


def _choice(body: object) -> object:
    choices = body.get("choices") if isinstance(body, Mapping) else None
    return choices[0] if isinstance(choices, list) and choices else None


def _message(choice: object) -> Mapping[str, object] | None:
    message = choice.get("message") if isinstance(choice, Mapping) else None
    return message if isinstance(message, Mapping) else None


def _error_inside(body: object, choice: object) -> tuple[str, str] | None:
    """Return the words and the code of an error that came with HTTP 200, in the place of an answer or beside it."""
    if not isinstance(body, Mapping):
        return None
    error = choice.get("error") if isinstance(choice, Mapping) else body.get("error")
    if not error and choice is None:
        # As vLLM and FastAPI write them.
        error = body if body.get("object") == "error" else body.get("detail") or body.get("message")
    if not error:
        return None
    if not isinstance(error, Mapping):
        return str(error), ""
    words = error.get("message") or error.get("detail") or json.dumps(error, default=str)
    return str(words), f"{error.get('code')} {error.get('status')} {error.get('type')}"


def _count(value: object, limit: int) -> int | None:
    """Read a count of tokens, at most `limit`; None where the value is no count."""
    try:
        count = float(value) if isinstance(value, int | float | str) and not isinstance(value, bool) else math.nan
    except (ValueError, OverflowError):
        # A whole number too large for a double is more than any limit.
        return limit if isinstance(value, int) and value > 0 else None
    return min(math.ceil(count), limit) if 0 <= count < math.inf else None
