"""Chat turns: how a prompt becomes a list of them, and how a value from a file is read as one."""

from __future__ import annotations

from collections.abc import Mapping

from seamcurate.models.protocols import Message, Prompt


def as_turns(prompt: Prompt) -> list[Message]:
    """Return a prompt as chat turns: a text is the user's one turn.

    Example:
        >>> as_turns("What is a set?")
        [{'role': 'user', 'content': 'What is a set?'}]
    """
    return [Message(role="user", content=prompt)] if isinstance(prompt, str) else list(prompt)


def read_turns(value: object) -> list[Message] | None:
    """Read a value as chat turns; None where it is anything else. Keys besides role and content are dropped.

    Example:
        >>> read_turns([{"role": "user", "content": "Why?", "weight": 1}])
        [{'role': 'user', 'content': 'Why?'}]
        >>> read_turns("Why?") is None
        True
    """
    if not isinstance(value, list):
        return None
    turns: list[Message] = []
    for turn in value:
        if not isinstance(turn, Mapping):
            return None
        role, content = turn.get("role"), turn.get("content")
        if not isinstance(role, str) or not isinstance(content, str):
            return None
        turns.append(Message(role=role, content=content))
    return turns
