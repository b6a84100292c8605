"""What a language model's reply says: its answer without the thinking before it, and whether it came to an end.

Every step that asks a language model reads replies here. A reply that was cut, refused or filtered has not ended, and
what has not ended holds no verdict: a model that thinks aloud quotes labels and examples long before it decides.
Replies are kept as they came, so that a better reading needs no new purchase.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from typing import NamedTuple

from pydantic import JsonValue

from seamcurate.models.protocols import Reply

_SHOWN = 500
"""Characters of a reply that are shown as a reason."""
_TRIES = 64
"""Places at which JSON is looked for in one text: each costs a pass over what follows."""
_DECODER = json.JSONDecoder(strict=False)
"""Takes line ends inside strings, which models write often."""

_CUT = re.compile(r"length|max|limit|trunc|window|exceed|incomplete")
_FILTERED = re.compile(r"filter|safety|toxic|guardrail|block|prohibited|recitation")
_UNFINISHED = re.compile(r"refusal|error|abort|cancel|tool|function|time_?out|insufficient|malformed|load")

_THINK = r"(?:[a-z]\w*[:_])?(?:think(?:ing)?|thoughts?|reasoning|reflection|scratchpad|analysis|antthinking)"
_TAG = re.compile(
    rf"<(?P<end>/?)(?P<name>{_THINK})(?:\s[^<>]*)?>"
    r"|\[(?P<end2>/?)(?P<name2>think)\]"
    r"|◁(?P<end3>/?)(?P<name3>think)▷"
    r"|<\|(?P<side>begin|start|end)_(?:of_)?(?P<name4>thought|thinking)\|>"
    r"|(?P<open5><\|channel>thought)|(?P<close5><channel\|>)"
    r"|(?P<open6><unused94>(?:thought)?)|(?P<close6><unused95>)",
    re.IGNORECASE,
)
"""Marks around thinking: DeepSeek, Qwen and most others; Magistral; Kimi; Open-Thoughts and Command A; Gemma; MedGemma."""
_FENCE = re.compile(r"\s*```\w*\s*\n(.*?)\n?\s*```\s*", re.DOTALL)
_QUOTES = "`\"'“”‘’"
_CHANNEL = re.compile(r"(?:<\|channel\|>)?\s*\b(analysis|commentary|final)\b[^<]*<\|message\|>")
"""gpt-oss's channels, of which `final` alone is the answer."""
_CONTROL = re.compile(r"<\|(?:end|return|call|start)\|>")
_SPOKEN_THOUGHT = re.compile(r"\s*Here(?: is|'s) my thought process:(.*?)(?:Here(?: is|'s) my response:|\Z)", re.DOTALL)
"""Granite's words around its thinking."""
_WRAPPED = re.compile(
    r"\s*(?:<(answer|final_answer|final|response|output|solution)>(.*?)(?:</\1>)?"
    r"|<\|begin_of_solution\|>(.*?)(?:<\|end_of_solution\|>)?"
    r"|<\|start_response\|>(.*?)(?:<\|end_response\|>)?)\s*",
    re.DOTALL | re.IGNORECASE,
)


_DENIED = re.compile(
    r"(?:\bnot|n['’]t|\bcannot|\bnever|\bneither|\bnor|\bnon|\bhardly|\brather than|\binstead of|\bunlike|\banything but|\bfar from)"
    r"(?:[-\s]+(?:an?|the|as|at|all|to|be|been|being|is|it|it's|this|that|query|question|really|truly|strictly|think|believe|say|"
    r"call|called|consider|considered|seem|appear|look|sound|qualify|count|classify|classified|describe|described|regard|regarded))*"
    r"[-\s\"'“‘`*(\[]*\Z",
    re.IGNORECASE,
)
"""A negation that the next word falls under."""


class Answer(NamedTuple):
    """What a reply says."""

    text: str
    """The answer, without the thinking before it."""
    finish: str
    """How it ends: `stop` by itself, `length` cut, `content_filter`, `refusal`, `failure`, or the server's own word."""
    reason: str
    """What came back, to be written beside a value that could not be read from it."""

    @property
    def whole(self) -> bool:
        """Tell whether the answer ended by itself; only then may it hold a verdict."""
        return self.finish == "stop"


def read(reply: Reply) -> Answer:
    """Read a reply's answer.

    Args:
        reply: As it came from a server, or from the kept ones.

    Returns:
        The text after all thinking, however it is marked, and how it ends.

    Example:
        >>> read(Reply("<think>5 or 7?</think>[[7]]", "stop", "m")).text
        '[[7]]'
    """
    if reply.failure is not None:
        return Answer("", "failure", reply.failure)
    finish = ending(reply.finish)
    text = _without_thinking(reply.text)
    if text.strip():
        reason = f"{finish}: {text.strip()[:_SHOWN]}"
    elif reply.text.strip():
        reason = f"{finish}: nothing but thinking came back{'; raise max_tokens' if finish == 'length' else ''}"
    else:
        reason = f"{finish}: an empty reply{'; raise max_tokens' if finish == 'length' else ''}"
    return Answer(text, finish, reason)


def ending(finish: str) -> str:
    """Translate a server's word for why a reply ends into `stop`, `length`, `content_filter`, or leave it as it is."""
    word = finish.lower()
    if _CUT.search(word):
        return "length"
    if _FILTERED.search(word):
        return "content_filter"
    return finish if _UNFINISHED.search(word) else "stop"


def content(message: Mapping[str, object]) -> str:
    """Return the text of a message's `content`, which may be text, parts to join, or the JSON that was asked for.

    Parts of another kind than text, such as thinking, and fields such as `reasoning_content` are left alone.
    """
    value = message.get("content")
    if value is None or isinstance(value, str):
        return value or ""
    if isinstance(value, list) and all(_is_part(piece) for piece in value):
        return "".join(_part(piece) for piece in value)
    return _part(value) if _is_part(value) else json.dumps(value, ensure_ascii=False)


def _is_part(value: object) -> bool:
    return isinstance(value, str) or (
        isinstance(value, Mapping) and isinstance(value.get("type", value.get("text")), str)
    )


def _part(piece: object) -> str:
    if isinstance(piece, str):
        return piece
    if not isinstance(piece, Mapping) or piece.get("type", "text") not in ("text", "output_text"):
        return ""
    text = piece.get("text")
    text = text.get("value") if isinstance(text, Mapping) else text
    return text if isinstance(text, str) else ""


def unfenced(text: str) -> str:
    """Return what stands in a code fence where the fence is all of the text, and else the text, both without blanks."""
    fenced = _FENCE.fullmatch(text)
    return (fenced[1] if fenced else text).strip()


def json_values(text: str) -> Iterator[tuple[int, JsonValue]]:
    """Yield the JSON objects and arrays that stand in a text, in a code fence or in prose, and where each begins."""
    start = 0
    for _ in range(_TRIES):
        offsets = [offset for offset in (text.find("{", start), text.find("[", start)) if offset >= 0]
        if not offsets:
            return
        start = min(offsets)
        try:
            value, end = _DECODER.raw_decode(text, start)
        except (ValueError, RecursionError):
            start += 1
            continue
        yield start, value
        start = end


def field(text: str, name: str) -> JsonValue:
    """Return a field of the last JSON object in a text that has it; None where there is none."""
    values = [value[name] for _, value in json_values(text) if isinstance(value, dict) and name in value]
    return values[-1] if values else None


def is_denied(preceding: str) -> bool:
    """Tell whether a label is denied by the words right before it: `not`, `isn't a`, `rather than`."""
    return _DENIED.search(preceding[-200:]) is not None


def last_first(pattern: re.Pattern[str], text: str) -> Iterator[re.Match[str]]:
    """Yield what a pattern finds in a text, the last first, without what is denied there."""
    return (match for match in reversed(list(pattern.finditer(text))) if not is_denied(text[: match.start()]))


def whole_elements(text: str) -> list[JsonValue]:
    """Return the complete elements of the first array in JSON that was cut short."""
    elements = list[JsonValue]()
    opening = re.search(r"(?:\A|:)\s*\[", text)
    offset = opening.end() if opening else 0
    while offset:
        while text[offset : offset + 1].isspace() or text[offset : offset + 1] == ",":
            offset += 1
        try:
            value, offset = _DECODER.raw_decode(text, offset)
        except (ValueError, RecursionError):
            break
        # A number may go on beyond the cut.
        if offset < len(text) or isinstance(value, str | dict | list):
            elements.append(value)
    return elements


# ── thinking ─────────────────────────────────────────────────────────────────────────────────────────────


def _without_thinking(text: str) -> str:
    """Take thinking off: between its marks, before a closing mark alone, or to the end where it was cut."""
    if _is_json(text):
        return text
    rest = _outside_marks(_last_channel(text))
    if (spoken := _SPOKEN_THOUGHT.match(rest)) is not None:
        rest = rest[spoken.end() :]
    if (wrapped := _WRAPPED.fullmatch(rest)) is not None:
        rest = next(group for group in wrapped.groups()[1:] if group is not None)
    # A text without any thinking stays as it is, to the byte.
    return rest if rest == text else rest.strip()


def _is_json(text: str) -> bool:
    """Tell whether all of a text is one JSON value: marks inside it are quoted."""
    body = unfenced(text)
    try:
        return body[:1] in ("{", "[") and _DECODER.raw_decode(body)[1] == len(body)
    except (ValueError, RecursionError):
        return False


def _last_channel(text: str) -> str:
    channels = list(_CHANNEL.finditer(text))
    if channels:
        final = [channel for channel in channels if channel[1] == "final"]
        return _CONTROL.split(text[final[-1].end() :], maxsplit=1)[0] if final else ""
    # The same where the server leaves special tokens out.
    if re.match(r"\s*analysis(?=[A-Z\"'(]|.*assistantfinal)", text, re.DOTALL):
        return text.rpartition("assistantfinal")[2] if "assistantfinal" in text else ""
    return text


def _outside_marks(text: str) -> str:
    outside, start, inside = "", 0, ""
    for mark in _TAG.finditer(text):
        name, closes = _mark(mark)
        if inside:
            if closes and name == inside:
                inside, start = "", mark.end()
        elif closes:
            if not _is_quoted(text, mark):
                # Without its opening mark, which the prompt held, all before it was thinking.
                outside, start = "", mark.end()
        elif not text[start : mark.start()].rpartition("\n")[2].strip() and not _is_quoted(text, mark):
            outside, inside = outside + text[start : mark.start()], name
    return outside if inside else outside + text[start:]


def _mark(mark: re.Match[str]) -> tuple[str, bool]:
    """Return a mark's name and whether it closes."""
    for name, end in (("name", "end"), ("name2", "end2"), ("name3", "end3")):
        if mark[name]:
            return mark[name].lower(), bool(mark[end])
    if mark["side"]:
        return mark["name4"].lower(), mark["side"].lower() == "end"
    closes = bool(mark["close5"] or mark["close6"])
    return "channel" if mark["open5"] or mark["close5"] else "unused", closes


def _is_quoted(text: str, mark: re.Match[str]) -> bool:
    """Tell whether a sentence speaks of the mark: it stands between quotation marks, or amid words."""
    preceding, following = text[: mark.start()][-1:], text[mark.end() :][:2]
    if preceding and preceding in _QUOTES and following[:1] and following[0] in _QUOTES:
        return True
    return preceding == " " and len(following) == 2 and following[0] == " " and following[1].islower()
