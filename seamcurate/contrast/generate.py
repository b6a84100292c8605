"""SEAM_GPT's sample set: worse answers written by a language model (SEAM §4.2, App. F.1).

What comes back is checked, never assumed: copies of the golden response and answers that all but repeat another are
left out, a second ask fills what is short, and what is short then is said.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable
from functools import partial
from pathlib import Path
from typing import ClassVar, Literal, NamedTuple

import pyarrow as pa
import pyarrow.compute as pc
from pydantic import Field, JsonValue
from typing_extensions import override

from seamcurate import prompts
from seamcurate.models import Conversation, LanguageModel, LanguageModelConfig, Message, Prompt, Request, roles
from seamcurate.models.reply import Answer, json_values, read, unfenced, whole_elements
from seamcurate.models.template import prompt_text
from seamcurate.step import Averages, Data, Step, Transform, Work, column
from seamcurate.text import counted

GENERATED = pa.list_(pa.struct([("response", pa.string())]))

_SAME = 0.9
"""The share of common word triples from which two answers count as the same."""
_NUMBERED = re.compile(r"^\s*(?:\*\*)?(?:answer\s+)?\d{1,3}\s*[.):](?:\*\*)?\s+", re.MULTILINE | re.IGNORECASE)
_WORDS = re.compile(r"\w+")
_KEY_WORDS = re.compile(r"[A-Z]?[a-z]+|[A-Z]+|\d+")
_TEXT_KEYS = (
    "answer",
    "response",
    "text",
    "content",
    "output",
    "reply",
    "completion",
    "statement",
    "sentence",
    "value",
)
"""Words in the key of an object's text, the most reliable first."""
_LABEL_KEYS = frozenset(
    [
        "id",
        "index",
        "number",
        "no",
        "num",
        "rank",
        "type",
        "kind",
        "label",
        "category",
        "class",
        "tag",
        "error",
        "mistake",
        "flaw",
        "issue",
        "characteristic",
        "quality",
        "score",
        "rating",
        "level",
        "language",
        "source",
        "title",
        "name",
        "key",
        "reason",
        "rationale",
        "explanation",
        "note",
        "comment",
        "why",
        "status",
        "role",
        "question",
        "prompt",
        "query",
        "instruction",
        "input",
        "thought",
        "thinking",
        "reasoning",
    ]
)
"""Last words of the keys whose values describe a text."""
_NOT_WORSE = ("correct", "original", "golden", "reference", "given")


class WrittenAnswers(NamedTuple):
    """One row's answers, and why there are none or fewer than `k`."""

    answers: list[str] | None
    reason: str | None


class Generate(Step):
    """Add `worse_gpt`: `k` answers that a language model writes to be worse than the golden response.

    They make SEAM_GPT's sample set (SEAM §4.2). Answers equal to the golden response or to each other, spelling aside, are
    dropped; `reason_gpt` says why a row has fewer than `k`, or NULL. Every answer that was bought is kept in the store.

    Raises:
        ModelError: By `load`, where no generator is named or its endpoint cannot be used.
        BudgetError: While it runs, where the next call might cost more than is left.

    Example:
        >>> from pathlib import Path
        >>> import pyarrow as pa
        >>> from seamcurate import FakeModel, Generate
        >>> add = Generate(k=2, generator=FakeModel()).load(Path())
        >>> table = add(pa.table({"prompt": ["What is a set?"], "response": ["A collection of distinct things."]}))
        >>> table.column_names, [len(answers) for answers in table["worse_gpt"].to_pylist()]
        (['worse_gpt', 'reason_gpt'], [2])
    """

    k: int = Field(default=30, ge=1)
    calls: Literal["one", "each"] = "one"
    """`one` call a row asks for all answers as JSON; `each` asks for one answer `k` times, and needs a temperature."""
    generator: LanguageModelConfig | None = None
    template: prompts.Template = ""
    """A file with another prompt in place of the paper's; see `seamcurate.prompts`."""

    revision: ClassVar[int] = 2
    rows_per_call: ClassVar[int] = 256

    @property
    @override
    def name(self) -> str:
        return "worse_gpt"

    @property
    @override
    def inputs(self) -> tuple[str, ...]:
        return ("prompt", "response")

    @property
    @override
    def adds(self) -> pa.Schema:
        return pa.schema(
            [
                column("worse_gpt", GENERATED, f"up to {self.k} answers a language model wrote to be worse"),
                column("reason_gpt", pa.string(), "why worse_gpt is NULL, or has fewer answers than were asked for"),
            ]
        )

    @override
    def work(self, rows: Averages) -> Work:
        """Estimate one call a row, or one an answer; a worse answer is about as long as the golden one."""
        calls = 1 if self.calls == "one" else self.k
        template_length = len("".join(turn["content"] for turn in prompts.render(self._template)))
        return Work(
            self.generator, calls, calls * (template_length + rows.prompt + rows.response), self.k * (rows.response + 5)
        )

    @override
    def prepare(self, data: Data, shared: Path) -> None:
        """Ask an endpoint that answers in batches for all rows at once."""
        self._model().ahead(prompts.Conversations(data, self.inputs, self._starts))

    @override
    def load(self, shared: Path) -> Transform:
        model = self._model()

        def generate(rows: pa.Table) -> pa.Table:
            row_sets = model.converse(self._starts(rows))
            sets = [
                None if row_set.answers is None else [{"response": text} for text in row_set.answers]
                for row_set in row_sets
            ]
            return pa.table(
                {
                    "worse_gpt": pa.array(sets, GENERATED),
                    "reason_gpt": pa.array([row_set.reason for row_set in row_sets], pa.string()),
                }
            )

        return generate

    @override
    def facts(self, columns: Iterable[pa.Table], shared: Path) -> dict[str, JsonValue]:
        """Count answers, rows without answers, and rows with fewer than `k`."""
        rows = answers = missing = short = 0
        for table in columns:
            lengths = pc.list_value_length(table["worse_gpt"])
            rows, missing = rows + table.num_rows, missing + lengths.null_count
            answers += pc.sum(lengths).as_py() or 0
            short += pc.sum(pc.less(lengths, self.k)).as_py() or 0
        summary = (
            f"worse_gpt: {answers / max(1, rows):.1f} answers a row, fewer than {self.k} for {counted(short, 'row')}"
        )
        warnings: list[JsonValue] = []
        if missing:
            warnings.append(
                f"{counted(missing, 'row has', 'rows have')} no worse_gpt: SELECT reason_gpt, count(*) FROM rows GROUP BY ALL ORDER BY 2 DESC"
            )
        return {"answers": answers, "missing": missing, "short": short, "summary": summary, "warnings": warnings}

    @property
    def _template(self) -> str:
        return self.template or prompts.bundled("worse_answers" if self.calls == "one" else "worse_answer")

    def _model(self) -> LanguageModel:
        return roles.load(self.generator, "generator", self.name)

    def _starts(self, rows: pa.Table) -> list[Callable[[], Conversation[WrittenAnswers]]]:
        pairs = zip(rows["prompt"].to_pylist(), rows["response"].to_pylist(), strict=True)
        return [partial(self._conversation, prompt, golden) for prompt, golden in pairs]

    def _conversation(self, prompt: Prompt, golden: str | None) -> Conversation[WrittenAnswers]:
        """Ask for one row's answers."""
        if golden is None or not golden.strip():
            return WrittenAnswers(None, "there is no golden response to make worse")
        messages = prompts.render(self._template, prompt_text(prompt), golden, self.k)
        distinct = _Distinct(golden)
        trouble = (
            yield from self._at_once(messages, distinct) if self.calls == "one" else self._each(messages, distinct)
        )
        answers = distinct.answers[: self.k]
        if not answers:
            return WrittenAnswers(None, trouble or f"no usable answer: {distinct}")
        if len(answers) == self.k:
            return WrittenAnswers(answers, None)
        return WrittenAnswers(answers, "; ".join(filter(None, [f"{len(answers)} of {self.k}", str(distinct), trouble])))

    def _at_once(self, messages: list[Message], distinct: _Distinct) -> Conversation[str]:
        """Ask for all answers in one call, and once more for missing ones; return the last problem in words."""
        answer = read((yield Request(messages, _schema(self.k))))
        trouble = _trouble(answer)
        # A refusal is not asked again: its text is a reason and no list.
        if answer.finish not in ("stop", "length"):
            return trouble
        texts = listed(answer.text, answer.whole)
        if not texts:
            shown = f"no list of answers came back but {answer.text[:60]!r}" if answer.text.strip() else answer.reason
            trouble = trouble or shown
        distinct.add(texts)
        missing = self.k - len(distinct.answers)
        if missing > 0:
            follow_up = prompts.render(prompts.bundled("more_answers"), count=missing)
            repeated_messages: list[Message] = (
                [{"role": "assistant", "content": answer.text}, *follow_up] if texts else []
            )
            answer = read(
                (yield Request([*messages, *repeated_messages], _schema(missing if texts else self.k), draw=1))
            )
            distinct.add(listed(answer.text, answer.whole) if answer.finish in ("stop", "length") else [])
            trouble = _trouble(answer) or trouble
        return trouble

    def _each(self, messages: list[Message], distinct: _Distinct) -> Conversation[str]:
        """Ask for one answer a call, with a fifth more calls for repeated answers; return the last problem in words."""
        trouble = ""
        # Samples of one prompt repeat each other; each call is paid for, so that their number has an end.
        for draw in range(self.k + max(1, self.k // 5)):
            answer = read((yield Request(messages, draw=draw)))
            trouble = _trouble(answer) or trouble
            if answer.whole:
                distinct.add([answer.text])
            if len(distinct.answers) == self.k or (answer.finish == "failure" and not distinct.answers):
                break
        return trouble


class _Distinct:
    """Collect answers that differ from the golden response and from each other by more than spelling."""

    def __init__(self, golden: str) -> None:
        self.golden = _gist(golden)
        self.answers: list[str] = []
        self._gists: list[tuple[str, frozenset[tuple[str, ...]]]] = []
        self.copies = self.repeated = self.empty = 0

    def add(self, answers: Iterable[str]) -> None:
        """Add the answers that are new."""
        for answer in answers:
            # A reply that was cut inside an escaped emoji has half a surrogate pair, which no file can hold.
            text = answer.encode("utf-8", "replace").decode().strip()
            gist = _gist(text)
            if not text:
                self.empty += 1
            elif _same(gist, self.golden):
                self.copies += 1
            elif any(_same(gist, earlier) for earlier in self._gists):
                self.repeated += 1
            else:
                self.answers.append(text)
                self._gists.append(gist)

    def __str__(self) -> str:
        counts = {"like the golden response": self.copies, "near-identical": self.repeated, "empty": self.empty}
        return ", ".join(f"{count} {description}" for description, count in counts.items() if count)


def listed(text: str, complete: bool = True) -> list[str]:
    """Return the answers in a model's reply: from JSON, complete or cut, else a numbered list, else paragraphs.

    Args:
        text: Without thinking.
        complete: Whether it ended by itself. Of a text that was cut, only the answers that end before the cut are taken,
            and only where it is a list from its first letter on: anything else may be thinking that bears no mark.
    """
    body = unfenced(text)
    if body.startswith("```"):
        body = body.partition("\n")[2].lstrip()
    values = list(json_values(body))
    if body.startswith(("{", "[")):
        answers = _strings(values[0][1]) if values and values[0][0] == 0 else _texts(whole_elements(body))
        if answers or not complete:
            return answers
    if not complete:
        numbered = _NUMBERED.split(body)
        return [piece.strip() for piece in numbered[1:-1] if piece.strip()] if not numbered[0].strip() else []
    inside = [_strings(value) for place, value in values if _is_set(body, place, value)]
    if any(inside):
        # A reply may repeat the requested format before the answers; the longest list is the answers.
        return max(reversed(inside), key=len)
    parts = _NUMBERED.split(body)
    if len(parts) < 3:
        parts = re.split(r"\n\s*\n", body)
        parts = parts if parts[0].rstrip().endswith(":") else ["", *parts]
    # The text before the first number introduces the list.
    return [piece.strip() for piece in parts[1:] if piece.strip()] if len(parts) > 2 else []


def _is_set(body: str, place: int, value: JsonValue) -> bool:
    """Tell whether JSON amid prose may be the answers: it begins a line, or is an object that names them."""
    begins = not body[:place].rpartition("\n")[2].strip()
    return begins or (
        isinstance(value, dict) and any(isinstance(v, list) and _is_text_key(k) for k, v in value.items())
    )


def _strings(value: JsonValue) -> list[str]:
    if isinstance(value, list):
        return _texts(value)
    if not isinstance(value, dict):
        return []
    lists = {key: inner for key, inner in value.items() if isinstance(inner, list)}
    named = [inner for key, inner in lists.items() if _is_text_key(key)]
    if named or len(lists) == 1:
        return _texts((named or list(lists.values()))[0])
    inner = [inner_value for key, inner_value in value.items() if isinstance(inner_value, dict) and _is_text_key(key)]
    if len(value) == 1 and inner:
        return _strings(inner[0])
    # Several texts under keys that are no labels are several answers; any other object is one answer.
    numbered = all(_KEY_WORDS.findall(key)[-1:] and _KEY_WORDS.findall(key)[-1].isdigit() for key in value)
    if numbered or (
        all(isinstance(inner_value, str) for inner_value in value.values()) and not any(map(_is_label_key, value))
    ):
        return _texts(list(value.values()))
    return _texts([value])


def _texts(elements: list[JsonValue]) -> list[str]:
    texts = (_text(element) if isinstance(element, dict) else element for element in elements)
    return [text for text in texts if isinstance(text, str)]


def _text(answer: dict[str, JsonValue]) -> str | None:
    """Return the text of an answer that is an object: by a key that names a text, else the only text that is no label."""
    texts = {key: value for key, value in answer.items() if isinstance(value, str) and not _is_label_key(key)}
    for word in _TEXT_KEYS:
        for key, value in texts.items():
            if word in [word_of_key.removesuffix("s") for word_of_key in _words(key)]:
                return value
    if len(texts) == 1:
        return next(iter(texts.values()))
    inner = [value for key, value in answer.items() if isinstance(value, dict) and _is_text_key(key)]
    return _text(inner[0]) if len(inner) == 1 else None


def _words(key: str) -> list[str]:
    return [word.lower() for word in _KEY_WORDS.findall(key)]


def _is_text_key(key: str) -> bool:
    return not _is_label_key(key) and any(word.removesuffix("s") in _TEXT_KEYS for word in _words(key))


def _is_label_key(key: str) -> bool:
    """Tell whether a key's value describes an answer and is none: `answer_type`, `correct_answer`, `id`."""
    words = [word for word in _words(key) if not word.isdigit()]
    if not words:
        return False
    return words[-1] in _LABEL_KEYS or words[-1].removesuffix("s") in _LABEL_KEYS or words[0] in _NOT_WORSE


def _gist(text: str) -> tuple[str, frozenset[tuple[str, ...]]]:
    words = _WORDS.findall(text.casefold()) or text.split()
    # A text of one or two words is one triple by itself, so that no text is without any.
    triples = [tuple(words[i : i + 3]) for i in range(max(1, len(words) - 2))]
    return " ".join(words), frozenset(triples)


def _same(gist: tuple[str, frozenset[tuple[str, ...]]], other_gist: tuple[str, frozenset[tuple[str, ...]]]) -> bool:
    return gist[0] == other_gist[0] or len(gist[1] & other_gist[1]) >= _SAME * len(gist[1] | other_gist[1])


def _schema(count: int) -> dict[str, JsonValue]:
    items: JsonValue = {"type": "array", "items": {"type": "string"}, "minItems": count, "maxItems": count}
    return {"type": "object", "properties": {"answers": items}, "required": ["answers"], "additionalProperties": False}


def _trouble(answer: Answer) -> str:
    """Say in a few words what is wrong with an answer; nothing where it is fine."""
    if answer.finish == "length":
        return "cut short by max_tokens"
    if answer.finish == "content_filter":
        return "refused by the content filter"
    if answer.finish == "refusal":
        return f"refused: {answer.text[:100]}"
    return "" if answer.whole else answer.reason
