"""Templates of what is asked of language models: text files that come with the package, or that a recipe names.

A template is text with placeholders such as `{question}` and `{answer}`. The text above a line `---` is the system's
message, the text below it the user's. An inserted text cannot close the place that it stands in: the template's own
delimiters, lines such as `[The End of Assistant's Answer]` and tags such as `</answer>`, lose their brackets there.
"""

from __future__ import annotations

import importlib.resources
import re
from collections.abc import Mapping
from functools import lru_cache
from pathlib import Path
from typing import Annotated

from pydantic import AfterValidator

from seamcurate.models.protocols import Message

_PLACEHOLDER = re.compile(r"\{(\w+)\}")
_DELIMITER = re.compile(r"^\[[^\[\]{}\n]+\]$|</?[A-Za-z][\w-]*>", re.MULTILINE)
_WITHOUT_BRACKETS = str.maketrans("[]<>", "()()")


def bundled(name: str) -> str:
    """Return a template that comes with the package."""
    folder = importlib.resources.files("seamcurate") / "prompts"
    return folder.joinpath(f"{name}.txt").read_text(encoding="utf-8")


def render(
    template: str,
    question: str = "",
    answer: str = "",
    count: int = 0,
    other: str = "",
    further: Mapping[str, str] | None = None,
) -> list[Message]:
    r"""Fill a template in; a placeholder inside the inserted text stays as it is, a delimiter of the template does not.

    Args:
        template: The template.
        question: In place of `{question}`.
        answer: In place of `{answer}`.
        count: In place of `{count}`.
        other: In place of `{other}`.
        further: What stands in place of further placeholders, by their names.

    Example:
        >>> render("Be fair.\n---\n{question} On {low} to {high}?", "Is it so?", further={"low": "1", "high": "5"})
        [{'role': 'system', 'content': 'Be fair.'}, {'role': 'user', 'content': 'Is it so? On 1 to 5?'}]
    """
    texts = {"question": question, "answer": answer, "other": other}
    delimiters = _delimiters(template)
    if delimiters is not None:
        texts = {
            name: delimiters.sub(lambda match: match[0].translate(_WITHOUT_BRACKETS), text)
            for name, text in texts.items()
        }
    values = {**texts, "count": str(count), **(further or {})}
    parts = re.split(r"^---\n", template.strip(), maxsplit=1, flags=re.MULTILINE)
    roles = ("system", "user") if len(parts) == 2 else ("user",)
    return [
        # Braces around any other word belong to the text.
        Message(role=role, content=_PLACEHOLDER.sub(lambda match: values.get(match[1], match[0]), text).strip())
        for role, text in zip(roles, parts, strict=True)
    ]


@lru_cache
def _delimiters(template: str) -> re.Pattern[str] | None:
    """Match a template's delimiters in other texts, in any case and spacing; None for a template without any."""
    words = {" ".join(delimiter[1:-1].split()) for delimiter in _DELIMITER.findall(template)}
    patterns = [r"\s+".join(map(re.escape, text.split())).replace("'", "['’]") for text in sorted(words)]
    return re.compile(rf"[\[<]\s*(?:{'|'.join(patterns)})\s*[\]>]", re.IGNORECASE) if patterns else None


def swapped(template: str) -> str | None:
    r"""Exchange the paragraph with the question and the paragraph with the answer; None where one paragraph has both.

    Example:
        >>> swapped("Rate it.\n\nQuestion: {question}\n\nAnswer: {answer}")
        'Rate it.\n\nAnswer: {answer}\n\nQuestion: {question}'
    """
    # The separators are kept, at the odd positions.
    parts = re.split(r"(\n(?:[ \t]*\n)+|\n---\n)", template.strip())
    questions, answers = ([i for i, part in enumerate(parts) if word in part] for word in ("{question}", "{answer}"))
    if len(questions) != 1 or len(answers) != 1 or questions == answers:
        return None
    (question,), (answer,) = questions, answers
    parts[question], parts[answer] = parts[answer], parts[question]
    return "".join(parts)


def _read(template: str) -> str:
    """Return the text of a `.txt` file, or the template itself where it is no path."""
    if "\n" in template or not template.endswith(".txt"):
        return template
    try:
        return Path(template).read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise ValueError(f"template {template} cannot be read: {error}") from error


Template = Annotated[str, AfterValidator(_read)]
"""The path of a `.txt` file, or the text itself. The field holds the text, so that a changed file changes the fingerprint."""
