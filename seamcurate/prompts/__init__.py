"""Prompt templates for language models, as text files that a recipe can replace.

A template is text with the placeholders `{question}`, `{answer}`, `{other}` and `{count}`. The text above a line `---` is
the system's message, the text below it the user's. `worse_answers` is SEAM's Prompt 2 (App. F.1) and `judge` its Prompt 1
(App. E); `query_type` and `relevant_sentences` are RER's Figures 8 and 12; `better_answer` is MT-Bench's prompt for pairs.
"""

from __future__ import annotations

import importlib.resources
import re
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Annotated, Generic, TypeVar

import pyarrow as pa
from pydantic import AfterValidator

from seamcurate.models import Conversation, Message
from seamcurate.step import Data

T = TypeVar("T")

_PLACEHOLDER = re.compile(r"\{(question|answer|other|count)\}")


def bundled(name: str) -> str:
    """Return a template that comes with the package."""
    return importlib.resources.files("seamcurate.prompts").joinpath(f"{name}.txt").read_text(encoding="utf-8")


def render(template: str, question: str = "", answer: str = "", count: int = 0, other: str = "") -> list[Message]:
    """Fill a template in; a placeholder inside the inserted text stays as it is."""
    values = {"question": question, "answer": answer, "other": other, "count": str(count)}
    parts = re.split(r"^---\n", template.strip(), maxsplit=1, flags=re.MULTILINE)
    roles = ("system", "user") if len(parts) == 2 else ("user",)
    return [
        Message(role=role, content=_PLACEHOLDER.sub(lambda match: values[match[1]], text).strip())
        for role, text in zip(roles, parts, strict=True)
    ]


class Conversations(Generic[T]):
    """The conversations about every row; each iteration starts them again."""

    def __init__(
        self, data: Data, columns: Sequence[str], starts: Callable[[pa.Table], list[Callable[[], Conversation[T]]]]
    ) -> None:
        self.data, self.columns, self.starts = data, columns, starts

    def __iter__(self) -> Iterator[Callable[[], Conversation[T]]]:
        for table in self.data.rows(self.columns):
            yield from self.starts(table)


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
