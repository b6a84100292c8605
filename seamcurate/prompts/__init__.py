"""Prompt templates for language models, as text files that a recipe can replace.

A template is text with the placeholders `{question}`, `{answer}`, `{other}` and `{count}`; a judge's also has those of its
scale, `{low}`, `{high}` and `{example}`. The text above a line `---` is the system's message, the text below it the user's.
`worse_answers` is SEAM's Prompt 2 (App. F.1) and `judge` its Prompt 1 (App. E); `query_type` and `relevant_sentences` are
RER's Figures 8 and 12; `better_answer` is MT-Bench's prompt for pairs. `judge_paraphrase` asks the same as `judge` in other
words, and `rubric_paraphrase` the same as `rubric`: they measure how much the wording decides.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Generic, TypeVar

import pyarrow as pa

from seamcurate.models import Conversation
from seamcurate.models.prompt_template import Template, bundled, render
from seamcurate.step import Data

__all__ = ["Conversations", "Template", "bundled", "render"]

T = TypeVar("T")


class Conversations(Generic[T]):
    """The conversations about every row; each iteration starts them again."""

    def __init__(
        self, data: Data, columns: Sequence[str], starts: Callable[[pa.Table], list[Callable[[], Conversation[T]]]]
    ) -> None:
        self.data, self.columns, self.starts = data, columns, starts

    def __iter__(self) -> Iterator[Callable[[], Conversation[T]]]:
        for table in self.data.rows(self.columns):
            yield from self.starts(table)
