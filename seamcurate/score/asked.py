"""Steps that ask a language model about each row: the query's type, how good answers are, which sentences are relevant.

The steps call the language model as `contrast.generate` does: through the same stored replies and the same limits. A
reply that cannot be read leaves NULL in the column; a second column holds the reason.
"""

from __future__ import annotations

import re
from abc import abstractmethod
from collections.abc import Callable, Iterable
from functools import partial
from pathlib import Path
from typing import Any, ClassVar

import pyarrow as pa
import pyarrow.compute as pc
from pydantic import Field, JsonValue
from typing_extensions import override

from seamcurate import prompts
from seamcurate.models import Conversation, LanguageModelConfig, Request, roles
from seamcurate.models.rating import object_schema, rating, rating_schema, scale_words
from seamcurate.models.reply import field, is_denied, read
from seamcurate.models.template import prompt_text
from seamcurate.step import Averages, Data, Step, Transform, Variant, Work, column
from seamcurate.text import counted

_DASH = r"[-\u2010-\u2015_\s]*"
_LABEL = re.compile(rf"\b(?:(open|closed?){_DASH}ended|(OE)|(CE|constrained))\b", re.IGNORECASE)
_BARE_LABEL = re.compile(r"\W*(?:(?:answer|type|label|verdict)\W+)?(?:(open)|(closed))\W*", re.IGNORECASE)
_SENTENCES = re.compile(r"(?<=[.!?;])\s+|\n+")
_UNSURE = re.compile(
    r"\b(?:whether|if|unsure|unclear|might|may|could|perhaps|possibly|hard to|not (?:\w+ly|quite|just|always|sure|clear))\b[^,;:]*\Z",
    re.IGNORECASE,
)
"""Words of doubt: the reply does not assert a label that follows one of them in the same clause."""
_SENTENCE = re.compile(
    r"^\s*[-*•\d.)]*\s*.+:\s*\**\(?\s*((?:not\s+)?(?:irrelevant|relevant))\s*\)?\**\W*$", re.IGNORECASE
)


_TYPE_SCHEMA = object_schema(query_type={"type": "string", "enum": ["OPEN-ENDED", "CLOSED-ENDED"]})
_SCALE = (1, 10)
"""SEAM's scale of ratings (App. E)."""
_RATING_SCHEMA = object_schema(explanation={"type": "string"}, rating=rating_schema(_SCALE))
_SENTENCES_SCHEMA = object_schema(
    sentences={
        "type": "array",
        "items": object_schema(
            sentence={"type": "string"}, relevancy={"type": "string", "enum": ["Relevant", "Irrelevant"]}
        ),
    }
)
"""JSON schemas of the replies, for servers that enforce them; the form the published prompts ask for is read as well."""

Values = tuple[object, ...]
"""One row's values of the added columns."""


class _Asked(Step):
    """Ask a language model about each row, or about a share of the rows that their ids decide."""

    judge: LanguageModelConfig | None = None
    template: prompts.Template = ""
    """Path of a `.txt` file that replaces the published prompt; see `seamcurate.prompts`."""
    share: float = Field(default=1.0, gt=0, le=1)
    """Share of the rows that the language model is asked about; the other rows are NULL."""

    revision: ClassVar[int] = 2
    rows_per_call: ClassVar[int] = 256

    @override
    def prepare(self, data: Data, shared: Path) -> None:
        """Send the requests of all rows together, where the endpoint answers in batches."""
        self._model().ahead(prompts.Conversations(data, self.inputs, self._starts))

    @override
    def load(self, shared: Path) -> Transform:
        model = self._model()

        def ask(rows: pa.Table) -> pa.Table:
            values = model.converse(self._starts(rows))
            # Of no rows `zip` gives no columns at all.
            columns = list(zip(*values, strict=True)) or [()] * len(self.adds)
            return pa.table([pa.array(c, f.type) for c, f in zip(columns, self.adds, strict=True)], schema=self.adds)

        return ask

    @abstractmethod
    def _conversation(self, *row: Any) -> Conversation[Values]:
        """Ask about one row, given its inputs."""

    def _starts(self, rows: pa.Table) -> list[Callable[[], Conversation[Values]]]:
        columns = [rows[name].to_pylist() for name in self.inputs]
        return [
            partial(self._conversation, *row) if _is_sampled(row_id, self.share) else self._no_conversation
            for row_id, *row in zip(rows["row_id"].to_pylist(), *columns, strict=True)
        ]

    def _no_conversation(self) -> Conversation[Values]:
        return (None,) * len(self.adds)
        # The unreachable `yield` makes this function a generator, as every conversation is.
        yield

    def _model(self) -> Any:
        return roles.load(self.judge, "judge", self.name)

    def _work(self, template: str, calls: float, characters: float, answer: float) -> Work:
        template_length = len("".join(turn["content"] for turn in prompts.render(template)))
        return Work(
            self.judge,
            self.share * calls,
            self.share * calls * (template_length + characters),
            self.share * calls * answer,
        )


class AskQueryType(_Asked):
    """Add `query_type_asked`: open or closed, as a language model answers RER's prompt (Fig. 8).

    `query_type: {asked: true}` copies the value into `query_type`. A reply that names neither type gives NULL, and
    `query_type_asked_reason` shows what came back.

    Raises:
        ModelError: No language model is named, or it cannot be asked at all.

    Example:
        >>> from pathlib import Path
        >>> import pyarrow as pa
        >>> from seamcurate import AskQueryType, FakeModel
        >>> add = AskQueryType(judge=FakeModel()).load(Path())
        >>> add(pa.table({"row_id": [0], "prompt": ["Write a poem."]}))["query_type_asked"][0].as_py() in ("open", "closed")
        True
    """

    @property
    @override
    def inputs(self) -> tuple[str, ...]:
        return ("prompt",)

    @property
    @override
    def adds(self) -> pa.Schema:
        return pa.schema(
            [
                column("query_type_asked", pa.string(), "open or closed, as a language model sees the query"),
                column("query_type_asked_reason", pa.string(), "what came back where it was neither"),
            ]
        )

    @override
    def work(self, rows: Averages) -> Work:
        """Ask once a row for an answer of one word."""
        return self._work(self._template, 1, rows.prompt, 15)

    @override
    def facts(self, columns: Iterable[pa.Table], shared: Path) -> dict[str, JsonValue]:
        return _reply_facts(columns, "query_type_asked", "query_type_asked_reason")

    @property
    def _template(self) -> str:
        return self.template or prompts.bundled("query_type")

    @override
    def _conversation(self, prompt: Any) -> Conversation[Values]:
        answer = read((yield Request(prompts.render(self._template, _conversation_text(prompt)), _TYPE_SCHEMA)))
        kind = query_type(answer.text) if answer.whole else None
        return kind, None if kind else answer.reason


class Judge(_Asked):
    """Add ratings of 1 to 10, by SEAM's judge prompt (App. E), of golden responses and some of their candidates.

    The ratings check a sample set: its answers should be worse than the golden response, and the step reports the share
    that is not. The judge rates a `share` of the rows, which their ids decide; the other rows are NULL. An answer whose
    reply holds no rating is NULL too.

    Raises:
        ModelError: No language model is named, or it cannot be asked at all.

    Example:
        >>> from pathlib import Path
        >>> import pyarrow as pa
        >>> from seamcurate import FakeModel, Judge
        >>> row = {"row_id": 0, "prompt": "What is a set?", "response": "A collection.", "worse_contrast": [{"response": "A map."}]}
        >>> rated = Judge(judge=FakeModel(), share=1.0).load(Path())(pa.Table.from_pylist([row])).to_pylist()[0]
        >>> 1 <= rated["judged_golden_contrast"] <= 10, len(rated["judged_contrast"])
        (True, 1)
    """

    variant: Variant = "contrast"
    candidates: int = Field(default=3, ge=1)
    """How many candidates of a row are rated, from the first on."""
    share: float = Field(default=0.05, gt=0, le=1)

    @property
    @override
    def name(self) -> str:
        return f"judged_{self.variant}"

    @property
    @override
    def inputs(self) -> tuple[str, ...]:
        return ("prompt", "response", f"worse_{self.variant}")

    @property
    @override
    def adds(self) -> pa.Schema:
        v = self.variant
        return pa.schema(
            [
                column(f"judged_golden_{v}", pa.float64(), "the judge's rating of the golden response, 1 to 10"),
                column(
                    f"judged_{v}", pa.list_(pa.float64()), f"its ratings of the first {self.candidates} in worse_{v}"
                ),
                column(f"judged_reason_{v}", pa.string(), "what came back where it was no rating"),
            ]
        )

    @override
    def work(self, rows: Averages) -> Work:
        """Ask once an answer for a short explanation and a rating."""
        candidates = min(self.candidates, rows.candidates)
        return self._work(self._template, 1 + candidates, rows.prompt + max(rows.response, rows.candidate), 600)

    @override
    def facts(self, columns: Iterable[pa.Table], shared: Path) -> dict[str, JsonValue]:
        """State the share of candidates rated no worse than the golden response."""
        rated = no_worse = unread = 0
        for table in columns:
            golden = table[f"judged_golden_{self.variant}"].combine_chunks()
            candidates = table[f"judged_{self.variant}"].combine_chunks()
            # One golden rating a candidate: (all candidates,), as the flattened ratings are.
            golden_by_candidate = golden.take(pc.list_parent_indices(candidates))
            is_no_worse = pc.greater_equal(candidates.flatten(), golden_by_candidate)
            # A comparison with a missing rating is null.
            rated += len(is_no_worse) - is_no_worse.null_count
            no_worse += pc.sum(is_no_worse).as_py() or 0
            unread += len(table) - table[f"judged_reason_{self.variant}"].null_count
        share = no_worse / rated if rated else None
        verdict = "no candidate was rated" if share is None else f"{share:.0%} rated no worse than the golden response"
        summary = f"worse_{self.variant}, judged: of {rated:,} candidates {verdict}"
        warnings: list[JsonValue] = []
        if unread:
            warnings.append(
                f"{counted(unread, 'row has', 'rows have')} a reply without a rating: SELECT judged_reason_{self.variant} FROM rows"
            )
        # Of fewer, one answer in five may be chance.
        if share is not None and rated >= 20 and share > 0.2:
            warnings.append(
                f"{share:.0%} of the judged candidates in worse_{self.variant} are not worse; see its prompt"
            )
        return {"rated": rated, "no_worse": no_worse, "summary": summary, "warnings": warnings}

    @property
    def _template(self) -> str:
        return self.template or prompts.bundled("judge")

    @override
    def _conversation(self, prompt: Any, golden: str | None, worse: Any) -> Conversation[Values]:
        answers = [candidate["response"] for candidate in worse or []][: self.candidates]
        if golden is None or not answers:
            return None, None, None
        ratings: list[float | None] = []
        reason = None
        for answer in [golden, *answers]:
            messages = prompts.render(self._template, prompt_text(prompt), answer, further=scale_words(_SCALE))
            reply = read((yield Request(messages, _RATING_SCHEMA)))
            ratings.append(rating(reply.text, _SCALE) if reply.whole else None)
            if ratings[-1] is None:
                reason = reply.reason
        return ratings[0], ratings[1:], reason


class RelevantSentences(_Asked):
    """Add `relevant_sentences`: the share of the golden response's sentences that a judge marks as relevant (RER, Fig. 12).

    A reply that marks no sentence gives NULL, and `relevant_sentences_reason` shows what came back.

    Raises:
        ModelError: No language model is named, or it cannot be asked at all.

    Example:
        >>> from pathlib import Path
        >>> import pyarrow as pa
        >>> from seamcurate import FakeModel, RelevantSentences
        >>> row = {"row_id": 0, "prompt": "What is a set?", "response": "A collection."}
        >>> add = RelevantSentences(judge=FakeModel()).load(Path())
        >>> 0 <= add(pa.Table.from_pylist([row]))["relevant_sentences"][0].as_py() <= 1
        True
    """

    @property
    @override
    def inputs(self) -> tuple[str, ...]:
        return ("prompt", "response")

    @property
    @override
    def adds(self) -> pa.Schema:
        return pa.schema(
            [
                column("relevant_sentences", pa.float64(), "share of the response's sentences a judge finds relevant"),
                column("relevant_sentences_reason", pa.string(), "what came back where no sentence was judged"),
            ]
        )

    @override
    def work(self, rows: Averages) -> Work:
        """Ask once a row for an answer that repeats every sentence."""
        return self._work(self._template, 1, rows.prompt + rows.response, 1.3 * rows.response)

    @override
    def facts(self, columns: Iterable[pa.Table], shared: Path) -> dict[str, JsonValue]:
        return _reply_facts(columns, "relevant_sentences", "relevant_sentences_reason")

    @property
    def _template(self) -> str:
        return self.template or prompts.bundled("relevant_sentences")

    @override
    def _conversation(self, prompt: Any, response: str | None) -> Conversation[Values]:
        if response is None or not response.strip():
            return None, None
        answer = read((yield Request(prompts.render(self._template, prompt_text(prompt), response), _SENTENCES_SCHEMA)))
        share = relevant_share(answer.text) if answer.whole else None
        return share, None if share is not None else answer.reason


def query_type(text: str) -> str | None:
    """Read a query's type from a reply: OPEN-ENDED, OPENENDED, OE, CLOSED-ENDED, CONSTRAINED or CE; None without a type.

    The last sentence that names a type decides. A denied type counts as the opposite type. A sentence that names both
    types, asks a question or expresses doubt gives None.
    """
    json_value = field(text, "query_type")
    text = json_value if isinstance(json_value, str) else text
    if (bare_label := _BARE_LABEL.fullmatch(text)) is not None:
        return "open" if bare_label[1] else "closed"
    for sentence in reversed(_SENTENCES.split(text)):
        kinds = set[str]()
        for label in _LABEL.finditer(sentence):
            kind = "open" if (label[1] or "").lower() == "open" or label[2] else "closed"
            preceding_text = sentence[: label.start()]
            if is_denied(preceding_text):
                kinds.add("closed" if kind == "open" else "open")
            else:
                kinds |= {"open", "closed"} if _UNSURE.search(preceding_text) else {kind}
        if kinds:
            is_question = sentence.rstrip(" \"'*)”’").endswith("?")
            return None if is_question or len(kinds) > 1 else kinds.pop()
    return None


def relevant_share(text: str) -> float | None:
    """Read the share of sentences marked relevant from a judge's reply; None where the reply marks no sentence."""
    json_value = field(text, "sentences")
    if isinstance(json_value, list):
        words = [entry.get("relevancy") for entry in json_value if isinstance(entry, dict)]
        marks = [word.lower() for word in words if isinstance(word, str)]
    else:
        marks = [match[1].lower() for line in text.splitlines() if (match := _SENTENCE.match(line))]
    relevant = [" ".join(mark.split()) in ("relevant", "not irrelevant") for mark in marks]
    return sum(relevant) / len(relevant) if relevant else None


def _conversation_text(prompt: Any) -> str:
    """Write a prompt as a conversation: RER's prompt asks about its last query."""
    if isinstance(prompt, str):
        return f"user: {prompt}"
    return "\n".join(f"{turn['role']}: {turn['content']}" for turn in prompt)


def _is_sampled(row_id: int, share: float) -> bool:
    # Knuth's multiplicative hash spreads the ids evenly, so that every range of ids has about the same share of sampled rows.
    # A row of the same id is always sampled, or never.
    return (row_id * 2654435761 + 0x9E3779B9) % 2**32 < share * 2**32


def _reply_facts(columns: Iterable[pa.Table], name: str, reason: str) -> dict[str, JsonValue]:
    """Count the rows with a value, and the replies that could not be read."""
    answered = unread = 0
    for table in columns:
        answered += len(table) - table[name].null_count
        unread += len(table) - table[reason].null_count
    warnings: list[JsonValue] = []
    if unread:
        warnings.append(
            f"{counted(unread, 'reply', 'replies')} could not be read: SELECT {reason} FROM rows WHERE {reason} IS NOT NULL"
        )
    return {
        "answered": answered,
        "unread": unread,
        "summary": f"{name}: {counted(answered, 'row')}",
        "warnings": warnings,
    }
