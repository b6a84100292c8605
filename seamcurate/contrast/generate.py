"""SEAM_GPT's sample set: worse answers written by a language model (SEAM §4.2, App. F.1).

What comes back is checked, never assumed: copies of the golden response and answers that all but repeat another are
left out, a second ask fills what is short, and what is short then is said.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterable
from functools import partial
from pathlib import Path
from typing import ClassVar, Literal, NamedTuple

import pyarrow as pa
import pyarrow.compute as pc
from pydantic import Field, JsonValue

from seamcurate import prompts
from seamcurate.errors import ModelError
from seamcurate.models import Conversation, LanguageModel, LanguageModelConfig, Message, Prompt, Reply, Request
from seamcurate.models.template import prompt_text
from seamcurate.step import Averages, Data, Step, Transform, Work, column
from seamcurate.tables import counted

GENERATED = pa.list_(pa.struct([("response", pa.string())]))

_SAME = 0.9
"""Share of common word triples from which two answers are taken for one."""
_NUMBERED = re.compile(r"^\s*(?:\*\*)?(?:answer\s+)?\d{1,3}\s*[.):](?:\*\*)?\s+", re.MULTILINE | re.IGNORECASE)
_FENCE = re.compile(r"^\s*```\w*\s*\n(.*?)\n?\s*```\s*$", re.DOTALL)
_WORDS = re.compile(r"\w+")


class Made(NamedTuple):
    """One row's set, and why it is missing or smaller than asked for."""

    answers: list[str] | None
    reason: str | None


class Generate(Step):
    """Add `worse_gpt`: `k` answers worse than the golden response, and `reason_gpt` where there are fewer or none."""

    k: int = Field(default=30, ge=1)
    calls: Literal["one", "each"] = "one"
    """`one` call a row asks for all answers as JSON; `each` asks for one answer `k` times, and needs a temperature."""
    generator: LanguageModelConfig | None = None
    template: prompts.Template = ""
    """A file of your own in place of the paper's prompt; see `seamcurate.prompts`."""

    rows_per_call: ClassVar[int] = 256

    @property
    def name(self) -> str:
        """Name the folder after the column."""
        return "worse_gpt"

    @property
    def inputs(self) -> tuple[str, ...]:
        """Read the instruction and its golden response."""
        return ("prompt", "response")

    @property
    def adds(self) -> pa.Schema:
        """Add the set, and what is to be said of it."""
        return pa.schema(
            [
                column("worse_gpt", GENERATED, f"up to {self.k} answers a language model wrote to be worse"),
                column("reason_gpt", pa.string(), "why worse_gpt is NULL, or has fewer answers than were asked for"),
            ]
        )

    def work(self, rows: Averages) -> Work:
        """Ask once a row, or once an answer; a worse answer is about as long as the golden one."""
        calls = 1 if self.calls == "one" else self.k
        asked = len("".join(turn["content"] for turn in prompts.render(self._template)))
        return Work(self.generator, calls, calls * (asked + rows.prompt + rows.response), self.k * (rows.response + 5))

    def prepare(self, data: Data, shared: Path) -> None:
        """Have an endpoint that answers in batches asked for all rows at once."""
        self._model().ahead(prompts.Conversations(data, self.inputs, self._starts))

    def load(self, shared: Path) -> Transform:
        """Get ready to ask."""
        model = self._model()

        def generate(rows: pa.Table) -> pa.Table:
            made = model.converse(self._starts(rows))
            sets = [None if one.answers is None else [{"response": text} for text in one.answers] for one in made]
            return pa.table(
                {
                    "worse_gpt": pa.array(sets, GENERATED),
                    "reason_gpt": pa.array([one.reason for one in made], pa.string()),
                }
            )

        return generate

    def facts(self, columns: Iterable[pa.Table], shared: Path) -> dict[str, JsonValue]:
        """Count answers, rows without, and rows with fewer than asked for."""
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
        if self.generator is None:
            raise ModelError("step worse_gpt has no generator; give it one, such as {openai_server: NAME}")
        return self.generator.load()

    def _starts(self, rows: pa.Table) -> list[Callable[[], Conversation[Made]]]:
        pairs = zip(rows["prompt"].to_pylist(), rows["response"].to_pylist(), strict=True)
        return [partial(self._conversation, prompt, golden) for prompt, golden in pairs]

    def _conversation(self, prompt: Prompt, golden: str | None) -> Conversation[Made]:
        """Ask for one row's set."""
        if golden is None or not golden.strip():
            return Made(None, "there is no golden response to make worse")
        messages = prompts.render(self._template, prompt_text(prompt), golden, self.k)
        kept = _Distinct(golden)
        said = yield from self._at_once(messages, kept) if self.calls == "one" else self._each(messages, kept)
        answers = kept.answers[: self.k]
        if not answers:
            return Made(None, said or f"no usable answer: {kept}")
        if len(answers) == self.k:
            return Made(answers, None)
        return Made(answers, "; ".join(filter(None, [f"{len(answers)} of {self.k}", str(kept), said])))

    def _at_once(self, messages: list[Message], kept: _Distinct) -> Conversation[str]:
        """Ask for all, and once more for what is missing; returns what went wrong last."""
        reply = yield Request(messages, _schema(self.k))
        said = _trouble(reply)
        if reply.failure is not None or reply.finish not in ("stop", "length"):
            return said
        found = listed(reply.text)
        if not found:
            said = said or f"no list of answers came back but {reply.text[:60]!r}"
        kept.add(found)
        missing = self.k - len(kept.answers)
        if missing > 0:
            more = prompts.render(prompts.bundled("more_answers"), count=missing)
            before: list[Message] = [{"role": "assistant", "content": reply.text}, *more] if found else []
            reply = yield Request([*messages, *before], _schema(missing if found else self.k), draw=1)
            usable = reply.failure is None and reply.finish in ("stop", "length")
            kept.add(listed(reply.text) if usable else [])
            said = _trouble(reply) or said
        return said

    def _each(self, messages: list[Message], kept: _Distinct) -> Conversation[str]:
        """Ask for one answer at a time; a few more times where answers repeat each other."""
        said = ""
        for draw in range(self.k + max(1, self.k // 5)):
            reply = yield Request(messages, draw=draw)
            said = _trouble(reply) or said
            if reply.failure is None and reply.finish in ("stop", "length"):
                kept.add([reply.text])
            if len(kept.answers) == self.k or (reply.failure is not None and not kept.answers):
                break
        return said


class _Distinct:
    """Answers that differ from the golden response and from each other by more than spelling."""

    def __init__(self, golden: str) -> None:
        self.golden = _gist(golden)
        self.answers: list[str] = []
        self._gists: list[tuple[str, frozenset[tuple[str, ...]]]] = []
        self.copies = self.repeated = self.empty = 0

    def add(self, answers: Iterable[str]) -> None:
        """Take what is new."""
        for answer in answers:
            # A reply that was cut inside an escaped emoji holds half of it, which no file can.
            text = answer.encode("utf-8", "replace").decode().strip()
            gist = _gist(text)
            if not text:
                self.empty += 1
            elif _same(gist, self.golden):
                self.copies += 1
            elif any(_same(gist, other) for other in self._gists):
                self.repeated += 1
            else:
                self.answers.append(text)
                self._gists.append(gist)

    def __str__(self) -> str:
        counts = {"like the golden response": self.copies, "near-identical": self.repeated, "empty": self.empty}
        return ", ".join(f"{count} {what}" for what, count in counts.items() if count)


def listed(text: str) -> list[str]:
    """Find the answers in what a model wrote: JSON, whole or cut short, else a numbered list, else paragraphs."""
    fenced = _FENCE.match(text)
    body = (fenced[1] if fenced else text).strip()
    for start in (body.find("{"), body.find("[")):
        if start >= 0:
            try:
                return _strings(json.JSONDecoder().raw_decode(body, start)[0])
            except (ValueError, RecursionError):
                pass
    if body.startswith(("{", "[")):
        return _whole_strings(body)
    parts = _NUMBERED.split(body)
    if len(parts) < 3:
        parts = ["", *re.split(r"\n\s*\n", body)]
    # Before the first number stands what introduces the list.
    return [part.strip() for part in parts[1:] if part.strip()] if len(parts) > 2 else []


def _strings(value: object) -> list[str]:
    if isinstance(value, dict):
        inner = next((one for one in value.values() if isinstance(one, list)), list(value.values()))
        return _strings(inner)
    if not isinstance(value, list):
        return []
    texts = (
        next((v for v in one.values() if isinstance(v, str)), None) if isinstance(one, dict) else one for one in value
    )
    return [text for text in texts if isinstance(text, str)]


def _whole_strings(body: str) -> list[str]:
    """Take the complete strings of an array that was cut short."""
    found, place = list[str](), body.find("[")
    while place >= 0 and (place := body.find('"', place)) >= 0:
        try:
            text, place = json.JSONDecoder().raw_decode(body, place)
        except ValueError:
            break
        if not body[place:].lstrip().startswith(":"):
            found.append(text)
    return found


def _gist(text: str) -> tuple[str, frozenset[tuple[str, ...]]]:
    words = _WORDS.findall(text.casefold()) or text.split()
    triples = [tuple(words[i : i + 3]) for i in range(max(1, len(words) - 2))]
    return " ".join(words), frozenset(triples)


def _same(a: tuple[str, frozenset[tuple[str, ...]]], b: tuple[str, frozenset[tuple[str, ...]]]) -> bool:
    return a[0] == b[0] or len(a[1] & b[1]) >= _SAME * len(a[1] | b[1])


def _schema(count: int) -> dict[str, JsonValue]:
    items: JsonValue = {"type": "array", "items": {"type": "string"}, "minItems": count, "maxItems": count}
    return {"type": "object", "properties": {"answers": items}, "required": ["answers"], "additionalProperties": False}


def _trouble(reply: Reply) -> str:
    """Say in a few words what a reply lacks; nothing if it is fine."""
    if reply.failure is not None:
        return reply.failure
    if reply.finish in ("refusal", "content_filter"):
        return "refused by the content filter" if reply.finish == "content_filter" else f"refused: {reply.text[:100]}"
    return "cut short by max_tokens" if reply.finish == "length" else ""
