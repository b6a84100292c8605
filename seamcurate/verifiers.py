r"""Reward functions that check answers: exact match, number match, choice letter, regular expression, JSON schema.

One rule: they are plain functions of TRL's signature, which a recipe names (`reward: {function: number_match}`) and a TRL
trainer takes as they are. A completion is text, or the messages of a chat, of which the last is read. A reward is 1.0 or
0.0; it is None where the row's reference gives nothing to compare with.
"""

from __future__ import annotations

# A process that holds reward functions loads this file alone, so that it imports nothing of the package.
import json
import re
import unicodedata
from collections.abc import Callable, Mapping, Sequence
from fractions import Fraction
from typing import Any, TypeAlias

Completion: TypeAlias = str | Sequence[Mapping[str, Any]]
"""An answer: text, or the messages that a trainer of chats gives."""
Rewards: TypeAlias = list[float | None]

REVISION = 1
"""Part of the fingerprint of columns that these functions computed. Raise it when one of them would answer otherwise."""


def exact_match(
    completions: Sequence[Completion], reference: Sequence[object], ignore_case: bool = False, **columns: object
) -> Rewards:
    """Reward a completion that is the reference, white space at the ends and its amount between words apart.

    Args:
        completions: The answers.
        reference: The right answer to each, or a list of right answers; None gives no reward.
        ignore_case: Compare without regard to upper and lower case.
        columns: Further columns of the rows, which are not read.

    Example:
        >>> from seamcurate.verifiers import exact_match
        >>> exact_match([" Paris ", "paris", "Rome"], ["Paris", "Paris", None])
        [1.0, 0.0, None]
        >>> exact_match([[{"role": "assistant", "content": "PARIS"}]], [["Paris", "Paname"]], ignore_case=True)
        [1.0]
    """

    def normal(text: str) -> str:
        words = " ".join(unicodedata.normalize("NFC", text).split())
        return words.casefold() if ignore_case else words

    return _compared(completions, reference, lambda text: normal(text), lambda value: normal(str(value)))


def number_match(
    completions: Sequence[Completion], reference: Sequence[object], tolerance: float = 0.0, **columns: object
) -> Rewards:
    r"""Reward a completion whose number is the reference's, however it is written.

    The number of a text is the last one inside its last `\boxed{…}`, else after its last `####`, else in the text. Thousands
    separators, decimals, fractions, `\frac{a}{b}` and exponents are read; units and currency signs are not.

    Args:
        completions: The answers.
        reference: The right number of each, or a text with it; one without a number gives no reward.
        tolerance: The largest difference at which two numbers are equal, in the number's own unit.
        columns: Further columns of the rows, which are not read.

    Example:
        >>> from seamcurate.verifiers import number_match
        >>> number_match([r"3 and 4 give \boxed{1{,}234.5}", "It is 3/4.", "About 0.33"], ["1234.50", r"\frac{3}{4}", 0.34])
        [1.0, 1.0, 0.0]
        >>> number_match(["About 0.33", "7"], ["#### 0.34", "none"], tolerance=0.01)
        [1.0, None]
    """
    limit = Fraction(tolerance)

    def equal(left: Fraction, right: Fraction) -> bool:
        return abs(left - right) <= limit

    return _compared(completions, reference, _number, lambda value: _number(str(value)), equal)


def choice_match(
    completions: Sequence[Completion], reference: Sequence[object], choices: str = "ABCD", **columns: object
) -> Rewards:
    r"""Reward a completion that chooses the reference's letter.

    The letter of a text is that of its last `\boxed{…}`, else after its last "answer is" or "answer:", else at its start as in
    "B", "B." or "(B)", else the last one in parentheses.

    Args:
        completions: The answers.
        reference: The right letter of each, or its place in `choices`, from 0; anything else gives no reward.
        choices: The letters that there are.
        columns: Further columns of the rows, which are not read.

    Example:
        >>> from seamcurate.verifiers import choice_match
        >>> choice_match(["The answer is (b).", "A dog barks.", r"So \boxed{C}", "(D)"], ["B", "A", 2, "?"])
        [1.0, 0.0, 1.0, None]
    """
    letters = choices.upper()

    def right(value: object) -> str | None:
        if isinstance(value, int) and not isinstance(value, bool):
            return letters[value] if 0 <= value < len(letters) else None
        return _letter(str(value), letters)

    return _compared(completions, reference, lambda text: _letter(text, letters), right)


def regex_match(completions: Sequence[Completion], pattern: str, full: bool = False, **columns: object) -> Rewards:
    r"""Reward a completion in which a regular expression is found.

    Args:
        completions: The answers.
        pattern: The expression, in the syntax of Python's `re`; `(?s)`, `(?i)` and `(?m)` at its start are its flags.
        full: The expression must match the whole completion, white space at its ends apart.
        columns: Further columns of the rows, which are not read.

    Example:
        >>> from seamcurate.verifiers import regex_match
        >>> regex_match(["<think>2 + 2</think> 4", "4"], pattern=r"(?s)^<think>.*</think>")
        [1.0, 0.0]
        >>> regex_match(["42 ", "It is 42"], pattern=r"\d+", full=True)
        [1.0, 0.0]
    """
    expression = re.compile(pattern)
    texts = map(_text, completions)
    return [float(bool(expression.fullmatch(text.strip()) if full else expression.search(text))) for text in texts]


def schema_match(completions: Sequence[Completion], schema: Mapping[str, Any], **columns: object) -> Rewards:
    r"""Reward a completion that is JSON and valid under a JSON schema. It needs the package `jsonschema`.

    A completion may stand between the lines of a Markdown fence, such as three backticks and `json`. References in the schema
    to other addresses are not followed.

    Args:
        completions: The answers.
        schema: The JSON schema.
        columns: Further columns of the rows, which are not read.

    Example:
        >>> from seamcurate.verifiers import schema_match
        >>> schema = {"type": "object", "properties": {"year": {"type": "integer"}}, "required": ["year"]}
        >>> schema_match(['{"year": 1905}', '```json\n{"year": 1905}\n```', '{"year": "1905"}', "1905?"], schema=schema)
        [1.0, 1.0, 0.0, 0.0]
    """
    try:
        import jsonschema
        from referencing import Registry
    except ImportError as error:
        raise ImportError("schema_match needs the package jsonschema: pip install jsonschema") from error
    kind = jsonschema.validators.validator_for(schema)
    kind.check_schema(schema)
    # A registry of its own, so that nothing is fetched.
    validator = kind(schema, registry=Registry())

    def valid(text: str) -> bool:
        fenced = re.fullmatch(r"```\w*\n(.*?)\n?```", text.strip(), re.DOTALL)
        try:
            value = json.loads(fenced[1] if fenced else text, parse_constant=_no_constant)
        except (ValueError, RecursionError):
            return False
        return bool(validator.is_valid(value))

    return [float(valid(_text(completion))) for completion in completions]


def _no_constant(name: str) -> None:
    raise ValueError(f"{name} is no JSON")


def _compared(
    completions: Sequence[Completion],
    reference: Sequence[object],
    read: Callable[[str], Any],
    right: Callable[[object], Any],
    equal: Callable[[Any, Any], bool] = lambda left, right: bool(left == right),
) -> Rewards:
    """Compare what is read from each completion with what is read from its reference, or from any of several."""
    rewards: Rewards = []
    for completion, value in zip(completions, reference, strict=True):
        references = value if isinstance(value, list | tuple) else [value]
        right_answers = [right(entry) for entry in references if entry is not None]
        accepted = [entry for entry in right_answers if entry is not None]
        answer = read(_text(completion))
        is_right = answer is not None and any(equal(answer, entry) for entry in accepted)
        rewards.append(float(is_right) if accepted else None)
    return rewards


def _text(completion: Completion) -> str:
    """Return the text of a completion; of a chat, that of its last message."""
    if isinstance(completion, str):
        return completion
    content = completion[-1].get("content") if completion else ""
    return content if isinstance(content, str) else ""


_DIGITS = r"(?:\d{1,3}(?:,\d{3})+(?!\d)|\d+)(?:\.\d+)?|\.\d+"
_NUMBER = re.compile(
    rf"(?<![\w.])[-+]?(?:{_DIGITS})(?:[eE][-+]?\d{{1,3}}(?!\d))?(?:\s*/\s*(?:{_DIGITS}))?|(?:{_DIGITS})"
)
_FRACTION = re.compile(r"([-+]?)\\[dt]?frac\s*\{\s*([-+]?[\d.,]+)\s*\}\s*\{\s*([\d.,]+)\s*\}")
_LONGEST = 400
"""Characters of a number: Python refuses to read much longer ones."""


def _number(text: str) -> Fraction | None:
    r"""Return the number that a text gives as its answer.

    Example:
        >>> [str(_number(text)) for text in ("1,234 of 5,678.9", r"-\frac{1}{2}", "5 - 3 = +2.", "no", "1/0", "2e3")]
        ['56789/10', '-1/2', '2', 'None', 'None', '2000']
    """
    answer = _boxed(text)
    if answer is None:
        answer = text.rpartition("####")[2]
    # LaTeX writes thousands as 1{,}234 or 1\,234; a minus sign may be the typographic one.
    answer = answer.replace("{,}", ",").replace("\\,", "").replace("\\!", "").replace("−", "-")
    answer = _FRACTION.sub(r" \1\2/\3", answer)
    written = [match.group().replace(",", "") for match in _NUMBER.finditer(answer)]
    if not written or len(written[-1]) > _LONGEST:
        return None
    numerator, _, denominator = written[-1].replace(" ", "").partition("/")
    divisor = Fraction(denominator) if denominator else Fraction(1)
    return Fraction(numerator) / divisor if divisor else None


def _letter(text: str, letters: str) -> str | None:
    """Return the letter that a text chooses."""
    kind = f"[{re.escape(letters)}]"
    boxed = _boxed(text)
    if boxed is not None:
        text = re.sub(r"\\text\s*\{([^}]*)\}", r"\1", boxed)
    said = re.findall(rf"\banswer\b\W*(?:is|:)?\W*({kind})(?!\w)", text, re.IGNORECASE)
    start = re.match(rf"\W*({kind})(?:\s*[).:\],*]|\W*$)", text, re.IGNORECASE)
    enclosed = re.findall(rf"[(\[]({kind})[)\]]", text, re.IGNORECASE)
    chosen = said[-1] if said else start[1] if start else enclosed[-1] if enclosed else None
    return None if chosen is None else str(chosen).upper()


def _boxed(text: str) -> str | None:
    r"""Return what the last `\boxed{…}` of a text holds, braces balanced; None without one."""
    start = text.rfind("\\boxed{")
    if start < 0:
        return None
    depth, begin = 0, start + len("\\boxed{")
    for i in range(begin - 1, len(text)):
        depth += {"{": 1, "}": -1}.get(text[i], 0)
        if depth == 0:
            return text[begin:i]
    return text[begin:]
