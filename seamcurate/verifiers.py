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

REVISION = 2
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
    separators, decimals, fractions (`\frac34`, 3 1/2, ½), powers and exponents (`3 \times 10^{5}`) are read; units with their
    powers, indices and currency signs are not. A root, a multiple of π, and in a box or a reference a sum, a product or several
    numbers, are no number: of a reference that is one, no reward follows.

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

    return _compared(
        completions, reference, _number, lambda value: _number(str(value), _is_wordless(str(value))), equal
    )


def choice_match(
    completions: Sequence[Completion], reference: Sequence[object], choices: str = "ABCD", **columns: object
) -> Rewards:
    r"""Reward a completion that chooses the reference's letter.

    The letter of a text is that of its last `\boxed{…}`, else after its last "answer is", "answer:", "the correct option is" or
    the like, else at its start as in "B", "B." or "(B)", else the last one in parentheses. In "the answer is a guess", `a` is an
    article.

    Args:
        completions: The answers.
        reference: The right letter of each, or its place in `choices`, from 0, as a number or as text; anything else gives no
            reward.
        choices: The letters that there are.
        columns: Further columns of the rows, which are not read.

    Example:
        >>> from seamcurate.verifiers import choice_match
        >>> choice_match(["The answer is (b).", "A dog barks.", r"So \boxed{C}", "(D)"], ["B", "A", 2, "?"])
        [1.0, 0.0, 1.0, None]
    """
    letters = choices.upper()

    def right(value: object) -> str | None:
        text = str(value).strip()
        # A column of references holds text, also of a source's whole numbers.
        if text.isdecimal() and text not in letters:
            return letters[int(text)] if int(text) < len(letters) else None
        return _letter(text, letters)

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
_SIGNED = rf"[-+]?(?:{_DIGITS})"
_NUMBER = re.compile(
    rf"(?<![\w.])(?:(?P<sign>[-+]?)(?P<whole>\d+) (?P<part>\d+/\d+)(?![\w/]))|"
    rf"(?<![\w.])[-+]?(?:{_DIGITS})(?:[eE][-+]?\d{{1,3}}(?!\d))?(?:\s*/\s*[-+]?(?:{_DIGITS}))?|(?:{_DIGITS})"
)
_ARGUMENT = rf"\s*(?:\{{\s*({_SIGNED})\s*\}}|(\d))"
_FRACTION = re.compile(rf"\\[cdt]?frac{_ARGUMENT}{_ARGUMENT}")
_EXPONENT = r"\s*\^\s*(?:\{\s*([-+]?\d{1,3})\s*\}|([-+]?\d{1,3}))"
_TIMES = r"(?:\\times|\\cdot|[×·*])"
_POWER = re.compile(rf"(?:(?<![\d.,])({_DIGITS})\s*{_TIMES}\s*|(?<![\w.,]))(\d{{1,9}}){_EXPONENT}")
_OF_UNIT = re.compile(
    r"(?:(?<=[^\W\d_])|(?<=\}))\s*\^\s*(?:\{[^{}]*\}|[-+]?\w)|\^\s*(?:\\circ|\{\s*\\circ\s*\})|_\s*(?:\{[^{}]*\}|\w)"
)
"""Powers of units, degrees, and indices: none of them is the number."""
_VULGAR = re.compile("[¼-¾⅐-⅞]")
_THOUSANDS = re.compile(r"(?<=\d)(?:[\u00a0\u202f\u2009]|\\[,! ]|~|\{,\})(?=\d{3}(?!\d))")
_DASH = re.compile(r"(?<![\w)\]}])–(?=[\d.])|−")
_SYMBOL = re.compile(r"\\(?:sqrt|pi|pm|ln|log|sin|cos|tan|infty|binom)(?![a-zA-Z])|[√π∞±]")
"""What makes a term another number than the digits in it."""
_TERM = re.compile(
    r"(?<![^\W\d_]{2})(?:[^\W\d_]|\d|[)}])\s*(?:\+|(?<![eE])-)\s*(?:\d*[a-zA-Z](?![a-zA-Z])|\\?\(|\d+(?![\w-]))"
    rf"|\d\s*(?:{_TIMES}|:)\s*\d|\d!"
)
"""A sum, a difference, a product, a ratio or a factorial that is not computed."""
_LIST = re.compile(rf"\W*{_SIGNED}(?:/\d+)?(?:\s*[,;]\s*{_SIGNED}(?:/\d+)?)+\W*")
_ONE = re.compile(rf"\W*{_SIGNED}\W*")
_EQUALS = re.compile(r"=|\\approx|≈")
_LONGEST = 400
"""Characters of a number: Python refuses to read much longer ones."""


def _number(text: str, alone: bool = False) -> Fraction | None:
    r"""Return the number that a text gives as its answer; `alone` says that the text is nothing but the answer.

    Example:
        >>> [str(_number(text)) for text in ("1,234 of 5,678.9", r"-\frac{1}{2}", "5 - 3 = +2.", "no", "1/0", "2e3")]
        ['56789/10', '-1/2', '2', 'None', 'None', '2000']
        >>> [str(_number(text)) for text in (r"\frac34", r"3\frac{1}{2}", r"3 \times 10^{5}", "12 cm^2", r"2\sqrt{3}")]
        ['3/4', '7/2', '300000', '12', 'None']
        >>> [str(_number(text)) for text in (r"\boxed{x = 5\text{ cm}^2}", r"\boxed{(1, 2)}", r"\boxed{2x + 3}")]
        ['5', 'None', 'None']
    """
    boxed = _boxed(text)
    _, mark, last_part = text.rpartition("####")
    answer = _plainly(last_part if boxed is None else boxed)
    if alone or mark or boxed is not None:
        answer = re.sub(r"^(\s*[-+])\s+(?=[\d.])", r"\1", _EQUALS.split(answer)[-1])
        is_list = _LIST.fullmatch(answer) and not _ONE.fullmatch(answer)
        if is_list or _SYMBOL.search(answer) or _TERM.search(answer):
            return None
    written = list(_NUMBER.finditer(answer))
    if not written or len(written[-1].group()) > _LONGEST:
        return None
    last = written[-1]
    if _SYMBOL.search(answer, last.start()) or re.search(rf"(?:{_SYMBOL.pattern})[\s{{}}(]*$", answer[: last.start()]):
        return None
    if last["whole"] is None:
        return _fraction(last.group())
    part = _fraction(last["part"])
    value = None if part is None else int(last["whole"]) + part
    return -value if value is not None and last["sign"] == "-" else value


def _is_wordless(text: str) -> bool:
    """Tell whether a reference is an answer alone, and not a sentence or a whole solution."""
    return re.search(r"(?<![\\\w])[^\W\d_]{3,}", text) is None


def _fraction(written: str) -> Fraction | None:
    numerator, _, denominator = re.sub(r"[\s,]", "", written).partition("/")
    divisor = Fraction(denominator) if denominator else Fraction(1)
    return Fraction(numerator) / divisor if divisor else None


def _plainly(text: str) -> str:
    """Write the numbers of a text without LaTeX: thousands, minus signs, fractions, powers; powers of units are left out."""
    text = _DASH.sub("-", _THOUSANDS.sub("", text))
    text = _VULGAR.sub(lambda match: " " + unicodedata.normalize("NFKC", match[0]).replace("⁄", "/"), text)

    def fraction(match: re.Match[str]) -> str:
        numerator, denominator = match[1] or match[2], match[3] or match[4]
        return f" {numerator}/{denominator}"

    def power(match: re.Match[str]) -> str:
        base, exponent = int(match[2]), int(match[3] or match[4])
        if len(match[2]) * abs(exponent) > _LONGEST or (base == 0 and exponent < 0):
            return match.group()
        return str(Fraction((match[1] or "1").replace(",", "")) * Fraction(base) ** exponent)

    # A minus before \frac is its sign.
    text = re.sub(r"([-+])\s*(?=\\[cdt]?frac)", r"\1", text)
    text = _FRACTION.sub(fraction, text)
    text = re.sub(r"(?<![\w)}])([-+]) (?=\d+/)", r"\1", text)
    return _OF_UNIT.sub("", _POWER.sub(power, text))


_STYLED = re.compile(r"\\(?:text|math)?(?:text|bf|rm|it|sf|tt|normal)?\s*\{([^{}]*)\}")
"""LaTeX's commands for letters in a text: `\\text{C}`, `\\textbf{C}`, `\\mathrm{C}`."""


def _letter(text: str, letters: str) -> str | None:
    """Return the letter that a text chooses."""
    # `a` before a word is an article.
    kind = rf"[{re.escape(letters)}](?<!(?-i:a)(?=\s+\w))"
    boxed = _boxed(text)
    if boxed is not None:
        text = _STYLED.sub(r"\1", boxed)
    said = re.findall(
        r"\b(?:answer|(?:correct|right|best) (?:option|choice))\b(?: choice| option)?"
        rf"\W{{0,20}}(?:is|(?:would|should|must) be|:)?\W{{0,20}}(?:(?:option|choice|letter)\W{{0,20}})?({kind})(?!\w)",
        text,
        re.IGNORECASE,
    )
    start = re.match(rf"\W*(?:(?:option|choice)\s+)?({kind})(?:\s*[).:\],*]|\s*\n|\W*$)", text, re.IGNORECASE)
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
