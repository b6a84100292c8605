"""Values of a row as text and chats: the many spellings of a turn, and a reason for each value that is neither.

One rule: nothing of a turn is lost in silence. Its role and its text become the chat; other keys are kept as `turn_details`,
and a turn that holds more than text, such as an image or a call of a tool, is a reason to set its row aside.
"""

from __future__ import annotations

import json
import re
from typing import TypeAlias

import pyarrow as pa

from seamcurate.data.formats import Reject, word
from seamcurate.step import MESSAGES

Turns: TypeAlias = list[dict[str, str]]
"""A chat's turns, each with the keys `role` and `content`, as trainers expect them."""

ROLES = {
    **dict.fromkeys(("system", "developer"), "system"),
    **dict.fromkeys(("user", "human", "prompter", "Human"), "user"),
    **dict.fromkeys(
        ("assistant", "gpt", "chatgpt", "bing", "bard", "model", "ai", "bot", "Assistant", "function_call"), "assistant"
    ),
    **dict.fromkeys(("tool", "observation", "function", "function_response", "tool_response", "ipython"), "tool"),
}
"""The role that each spelling stands for: OpenAI's, ShareGPT's, OpenAssistant's and Gemma's names."""

DETAILS = "turn_details"
"""The column with what turns hold beside role and text, as JSON text: a list with an object or null for each turn."""

_ROLE_KEYS, _TEXT_KEYS = ("role", "from"), ("content", "value", "text")
_CALLS = ("tool_calls", "function_call")
_TEXT_PARTS = (None, "text", "input_text", "output_text")
_WRITTEN = re.compile(r"""\s*\[\s*\{\s*(["'])(role|content|from|value)\1\s*:""")
"""The start of a chat that stands in a text: as JSON, or as Python shows it."""
_TURN = re.compile(r"(?:^|\n\n)(Human|Assistant): ?")
"""The start of a turn in a transcript of Anthropic's form."""


def turns(value: object, name: str) -> Turns:
    """Return the turns of a chat, or raise Reject.

    A text in parts, as OpenAI's `[{"type": "text", "text": …}]`, is joined.

    Args:
        value: The chat: a list of turns, with `role` and `content`, ShareGPT's `from` and `value`, or `role` and `text`.
        name: What the chat is called in a reason.
    """
    if value is None:
        raise Reject(f"{name} is null")
    if not isinstance(value, list):
        raise Reject(f"{name} is not messages but {word(value)}")
    if not value and name == "messages":
        raise Reject("no assistant turn at the end")
    read: Turns = []
    for number, turn in enumerate(value, 1):
        if not isinstance(turn, dict):
            raise Reject(f"turn {number} of {name} is not a message")
        role_name = next((turn[key] for key in _ROLE_KEYS if turn.get(key) is not None), None)
        role = ROLES.get(role_name) if isinstance(role_name, str) else None
        if role is None:
            raise Reject(f"unknown role {role_name!r:.40}")
        if any(turn.get(key) for key in _CALLS):
            raise Reject(f"turn {number} of {name} calls a tool, which a chat of texts cannot hold")
        content = next((turn[key] for key in _TEXT_KEYS if turn.get(key) is not None), None)
        if isinstance(content, list):
            content = _joined_parts(content, f"turn {number} of {name}")
        if not isinstance(content, str):
            raise Reject(f"turn {number} of {name} is not text but {word(content)}")
        read.append({"role": role, "content": content})
    return read


def written(value: object, column: str) -> str | None:
    """Return what a person should know of a text that is a chat written down, as JSON or as Python shows it; else None.

    Args:
        value: A value of the column.
        column: The name of the column.
    """
    start = _WRITTEN.match(value) if isinstance(value, str) else None
    if start is None:
        return None
    if start[1] == "'":
        return "is messages as Python shows them, and read as plain text; write a list of messages, or JSON"
    keys = "role VARCHAR, content VARCHAR" if start[2] in ("role", "content") else '"from" VARCHAR, value VARCHAR'
    return (
        "is messages written as JSON, and read as plain text; "
        f"`select: {{prompt: '{column}::JSON::STRUCT({keys})[]'}}` reads messages"
    )


def _joined_parts(parts: list[object], place: str) -> str:
    """Join the texts of a turn's parts; a part that is no text is a reason to set the row aside."""
    texts = []
    for part in parts:
        text = part.get("text") if isinstance(part, dict) else part
        kind = part.get("type") if isinstance(part, dict) else None
        # An image may stand beside an empty text.
        more = kind is None and isinstance(part, dict) and any(part[key] for key in part if key != "text")
        if not isinstance(text, str) or kind not in _TEXT_PARTS or more:
            raise Reject(f"{place} has a part that is no text: {kind or word(part)!s:.40}")
        texts.append(text)
    return "".join(texts)


def details(value: object) -> list[dict[str, object] | None]:
    """Return what each turn of a chat holds beside its role and text; None for a turn without more."""
    if not isinstance(value, list):
        return [None]
    known = {*_ROLE_KEYS, *_TEXT_KEYS}
    more = []
    for turn in value:
        other = {key: cell for key, cell in turn.items() if key not in known and cell not in (None, [], {}, "")}
        more.append(other or None)
    return more


def details_text(*chats: object) -> str | None:
    """Return the JSON text of `details` of chats, one after the other; None where no turn holds more than role and text."""
    more = [entry for chat in chats for entry in details(chat)]
    return json.dumps(more, ensure_ascii=False, default=str) if any(more) else None


def has_details(kind: pa.DataType) -> bool:
    """Tell whether the turns of a column of this type have other fields than their role and text."""
    item = kind.value_type if pa.types.is_list(kind) else None
    names = {field.name for field in item} if item is not None and pa.types.is_struct(item) else set()
    return bool(names - {*_ROLE_KEYS, *_TEXT_KEYS, *_CALLS})


def text(value: object, name: str, prompt: object = None) -> str:
    """Return an answer as text, or raise Reject: a number or truth as it is written, and a chat as its last turn.

    Args:
        value: Text, a number, or a chat: the answer's turn alone, or all turns of `prompt` and then the answer.
        name: What the value is called in a reason.
        prompt: The prompt that the answer belongs to, as text or turns.
    """
    if isinstance(value, list):
        chat = turns(value, name)
        before = [{"role": "user", "content": prompt}] if isinstance(prompt, str) else prompt
        if not chat or chat[-1]["role"] != "assistant" or (chat[:-1] and chat[:-1] != before):
            raise Reject(f"{name} is not one assistant turn")
        value = chat[-1]["content"]
    if value is None:
        raise Reject(f"{name} is null")
    if isinstance(value, int | float):
        # In Python True is a number, too; as text it is JSON's.
        return json.dumps(value) if isinstance(value, bool) else str(value)
    if not isinstance(value, str):
        raise Reject(f"{name} is not text but {word(value)}")
    if not value.strip():
        raise Reject(f"{name} is blank")
    return value


def prompt(value: object, kind: pa.DataType | None) -> str | Turns:
    """Return a prompt as text or turns, or raise Reject; `kind` is what the source's prompts are, None if still open."""
    if value is not None and (kind == MESSAGES or (kind is None and isinstance(value, list))):
        chat = turns(value, "prompt")
        if not any(turn["content"].strip() for turn in chat):
            raise Reject("prompt is blank")
        return chat
    if isinstance(value, list):
        raise Reject("prompt is not text but messages")
    if isinstance(value, int | float):
        raise Reject(f"prompt is not text but {word(value)}")
    return text(value, "prompt")


def transcript(value: object, name: str) -> Turns:
    r"""Split a transcript of Anthropic's form into turns, or raise Reject: "\n\nHuman: … \n\nAssistant: …".

    Example:
        >>> transcript("\n\nHuman: Is ice cold?\n\nAssistant: Yes.", "chosen")
        [{'role': 'user', 'content': 'Is ice cold?'}, {'role': 'assistant', 'content': 'Yes.'}]
    """
    if not isinstance(value, str):
        raise Reject(f"{name} is not text but {word(value)}")
    first, *rest = _TURN.split(value)
    if first.strip() or not rest:
        raise Reject(f"{name} is no transcript: it does not start with 'Human:' or 'Assistant:'")
    return [
        {"role": ROLES[role], "content": content.strip()} for role, content in zip(rest[::2], rest[1::2], strict=True)
    ]
