"""What language models are asked, as files to read and to replace.

A template is text with `{question}`, `{answer}`, `{other}` and `{count}` in it; what stands above a line `---` is the system's
message, what stands below the user's. `worse_answers` is SEAM's Prompt 2 (App. F.1) and `judge` its Prompt 1 (App. E);
`query_type` and `relevant_sentences` are RER's Figures 8 and 12; `better_answer` is MT-Bench's for pairs.
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

_BLANK = re.compile(r"\{(question|answer|other|count)\}")


def bundled(name: str) -> str:
    """Return a template that comes with the package."""
    return importlib.resources.files("seamcurate.prompts").joinpath(f"{name}.txt").read_text(encoding="utf-8")


def render(template: str, question: str = "", answer: str = "", count: int = 0, other: str = "") -> list[Message]:
    """Fill a template in; text that is filled in is never looked at for blanks again."""
    values = {"question": question, "answer": answer, "other": other, "count": str(count)}
    parts = re.split(r"^---\n", template.strip(), maxsplit=1, flags=re.MULTILINE)
    roles = ("system", "user") if len(parts) == 2 else ("user",)
    return [
        Message(role=role, content=_BLANK.sub(lambda found: values[found[1]], part).strip())
        for role, part in zip(roles, parts, strict=True)
    ]


class Conversations(Generic[T]):
    """The conversations about every row, started anew as often as anybody iterates."""

    def __init__(
        self, data: Data, columns: Sequence[str], starts: Callable[[pa.Table], list[Callable[[], Conversation[T]]]]
    ) -> None:
        self.data, self.columns, self.starts = data, columns, starts

    def __iter__(self) -> Iterator[Callable[[], Conversation[T]]]:
        for table in self.data.rows(self.columns):
            yield from self.starts(table)


def _read(template: str) -> str:
    if "\n" in template or not template.endswith(".txt"):
        return template
    try:
        return Path(template).read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise ValueError(f"template {template} cannot be read: {error}") from error


Template = Annotated[str, AfterValidator(_read)]
"""A `.txt` file, or the text itself; kept as the text, so that changing the file is changing the step."""
