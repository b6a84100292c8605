"""Make new training pairs from the rows that a split keeps, where policy and reward model disagree (SEAM, App. G).

The paper uses Contrast Instruction, whichever score selected the rows: a row with instruction I and golden response r
has neighbours, each with an instruction I* and an answer r*. They teach the policy (I*, r*) and the reward model
(I: r ≻ r*). Answers that a language model wrote or that an attack changed have no I*, and are worse than the golden
response: they make preference pairs only, as a policy should not learn them.

One rule: no pair contains a question of the evaluation set, neither the row's own question nor a neighbour's. If the
evaluation set cannot be read completely, no pairs are made.
"""

from __future__ import annotations

import hashlib
import json
import unicodedata
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from functools import lru_cache
from typing import Literal, NamedTuple, TypeAlias

import numpy as np
import pyarrow as pa

from seamcurate.data.chats import ROLES
from seamcurate.data.source import KINDS, Source
from seamcurate.errors import ExportError
from seamcurate.models.protocols import Message, Prompt
from seamcurate.models.template import prompt_text
from seamcurate.select import split as splits
from seamcurate.select.split import Augment
from seamcurate.step import MESSAGES, sample_set
from seamcurate.store.store import Store
from seamcurate.text import counted, folded

Kind: TypeAlias = Literal["sft", "preferences"]

PROVENANCE = pa.schema(
    [
        ("row_id", pa.int64()),
        ("source_row_id", pa.int64()),
        ("variant", pa.string()),
        ("rank", pa.int64()),
        ("similarity", pa.float32()),
        ("kind", pa.string()),
    ]
)
"""Columns of a pair that name its row, its neighbour, their similarity, and its kind: sft, golden or neighbour."""
DROPPED = pa.schema([("row_id", pa.int64()), ("data", pa.string()), ("reason", pa.string())])


class ShardPairs(NamedTuple):
    """The pairs made from the kept rows of one shard."""

    rows: int
    pairs: pa.Table
    dropped: pa.Table
    """Rows without a pair, each with the reason."""
    short: int
    """Number of rows with at least one pair but fewer than `Augment.samples`."""


class _Candidate(NamedTuple):
    rank: int
    response: str
    source_row_id: int | None
    similarity: float | None
    instruction: Prompt | None


def shards(store: Store, split: str, augment: Augment, kind: Kind) -> Iterator[ShardPairs]:
    """Make the pairs of one kind, one shard of the source at a time; the nearest neighbours of a row come first.

    Prompts have the type that they have in the store, text or chat. Answers are text.

    For `sft`, each neighbour is used once, by the first row that has it. A later row uses its next neighbour.

    Raises:
        ExportError: The store has no such sample set, or the corpus has chat prompts where the rows have text.
    """
    name = f"worse_{augment.variant}"
    kinds = {column.name: column.kind for column in store.columns() if column.stale is None}
    if name not in kinds:
        raise ExportError(f"split {split}: augmentation needs the column {name}; run a recipe that makes it first")
    of_chat = not pa.types.is_string(kinds["prompt"])
    prompt_type = MESSAGES if of_chat else pa.string()
    texts = {"sft": ["completion"], "preferences": ["chosen", "rejected"]}[kind]
    schema = pa.schema([("prompt", prompt_type), *((text, pa.string()) for text in texts), *PROVENANCE])
    leaks = _leak_test(augment.evaluation)
    instructions = _instructions(store)
    used_ids: set[int] = set()
    for table in splits.kept(store, split, ["prompt", "response", name]):
        rows = table.to_pylist()
        ids = {c["source_row_id"] for row in rows for c in row[name] or [] if "source_row_id" in c}
        neighbours = instructions(sorted(ids)) if sample_set(augment.variant).instructions else {}
        leaked = {i for i, leak in zip(neighbours, leaks(list(neighbours.values())), strict=True) if leak}
        pairs: list[dict[str, object]] = []
        dropped: list[dict[str, object]] = []
        short = 0
        for row, leak in zip(rows, leaks([row["prompt"] for row in rows]), strict=True):
            candidates = _candidates(row[name] or [], row["response"], neighbours)
            without_leaks = [c for c in candidates if c.source_row_id not in leaked]
            unused = [c for c in without_leaks if kind != "sft" or c.source_row_id not in used_ids]
            reason = _reason(kind, leak, row["response"], candidates, without_leaks, unused)
            if reason:
                dropped.append({"row_id": row["row_id"], "data": kind, "reason": reason})
                continue
            sample = unused[: augment.samples]
            short += len(sample) < augment.samples
            used_ids.update(c.source_row_id for c in sample if c.source_row_id is not None)
            for candidate in sample:
                pairs += _pairs(kind, row, candidate, augment, of_chat, split)
        yield ShardPairs(len(rows), pa.Table.from_pylist(pairs, schema), pa.Table.from_pylist(dropped, DROPPED), short)


def _candidates(
    samples: Sequence[dict[str, object]], golden: str | None, instructions: dict[int, Prompt]
) -> list[_Candidate]:
    """Return the samples that differ from the golden response, with their ranks from 1."""
    candidates = []
    for rank, sample in enumerate(samples, 1):
        text, source, score = sample["response"], sample.get("source_row_id"), sample.get("similarity")
        if not isinstance(text, str) or not text.strip() or (golden is not None and folded(text) == folded(golden)):
            continue
        source_row_id = source if isinstance(source, int) else None
        similarity = score if isinstance(score, float) else None
        instruction = None if source_row_id is None else instructions.get(source_row_id)
        candidates.append(_Candidate(rank, text, source_row_id, similarity, instruction))
    return candidates


def _reason(
    kind: Kind,
    leak: bool,
    golden: str | None,
    candidates: Sequence[_Candidate],
    without_leaks: Sequence[_Candidate],
    unused: Sequence[_Candidate],
) -> str:
    """Return the reason why a row gives no pair; empty if it gives any."""
    if leak:
        return "its question is an evaluation question"
    if kind == "preferences" and not golden:
        return "it has no golden response"
    if not candidates:
        return "it has no candidate"
    if not without_leaks:
        return "all its candidates answer evaluation questions"
    return "" if unused else "all its candidates were taken by earlier rows"


def _pairs(
    kind: Kind, row: dict[str, object], candidate: _Candidate, augment: Augment, of_chat: bool, split: str
) -> Iterator[dict[str, object]]:
    """Yield the pairs of one candidate: (I*, r*); or (I: r ≻ r*), and with `pairs: both` also (I*: r* ≻ r)."""
    provenance = {
        "row_id": row["row_id"],
        "source_row_id": candidate.source_row_id,
        "variant": augment.variant,
        "rank": candidate.rank,
        "similarity": candidate.similarity,
    }
    worse = candidate.response
    if kind == "sft":
        yield {**provenance, "prompt": _instruction(candidate, of_chat, split), "completion": worse, "kind": "sft"}
        return
    golden = str(row["response"])
    yield {**provenance, "prompt": row["prompt"], "chosen": golden, "rejected": worse, "kind": "golden"}
    if augment.pairs == "both":
        prompt = _instruction(candidate, of_chat, split)
        yield {**provenance, "prompt": prompt, "chosen": worse, "rejected": golden, "kind": "neighbour"}


def _instruction(candidate: _Candidate, of_chat: bool, split: str) -> Prompt:
    """Return I* as a chat or as text, whichever the rows' own prompts are."""
    instruction = candidate.instruction
    assert instruction is not None
    if isinstance(instruction, str):
        return [Message(role="user", content=instruction)] if of_chat else instruction
    if not of_chat:
        raise ExportError(f"split {split}: the corpus has chat prompts and the rows have text; make both one form")
    return instruction


def _instructions(store: Store) -> Callable[[Sequence[int]], dict[int, Prompt]]:
    """Return a function from ids of corpus rows to their prompts."""
    corpus = store.corpus_store
    if corpus is None:
        return lambda ids: {}
    size, read = int(str(corpus.about["shard_rows"])), corpus.reader(["prompt"])

    @lru_cache(maxsize=64)
    def shard(number: int) -> pa.Table:
        return read(number)

    def find(ids: Sequence[int]) -> dict[int, Prompt]:
        prompts: dict[int, Prompt] = {}
        row_ids = np.asarray(ids, np.int64)
        for number in np.unique(row_ids // size).tolist():
            table, shard_ids = shard(number), row_ids[row_ids // size == number]
            # Rejected rows leave gaps in a shard's ascending ids, so an id is no offset.
            offsets = np.searchsorted(table["row_id"].to_numpy(), shard_ids)
            prompts |= zip(shard_ids.tolist(), table["prompt"].take(pa.array(offsets)).to_pylist(), strict=True)
        return prompts

    return find


def _leak_test(evaluation: Source | None) -> Callable[[Sequence[Prompt]], list[bool]]:
    """Return a function that marks the prompts with an evaluation question; each user turn of a chat is a question.

    Raises:
        ExportError: The question of an evaluation row cannot be read.
    """
    if evaluation is None:
        return lambda prompts: [False] * len(prompts)
    question_keys: set[bytes] = set()
    unreadable: Counter[str] = Counter()
    total = 0
    for chunk in evaluation.chunks():
        # A chunk whose rows were all rejected may have no column `prompt`.
        for prompt in chunk.rows["prompt"].to_pylist() if chunk.rows.num_rows else ():
            question_keys |= _question_keys(prompt)
        # A row that is rejected for its answer still holds an evaluation question.
        for rejected in chunk.rejected.to_pylist():
            question = _rejected_question(evaluation, rejected["reason"], rejected["row"])
            if question is None:
                unreadable[rejected["reason"]] += 1
            else:
                question_keys |= _question_keys(question)
        total += chunk.rows.num_rows + chunk.rejected.num_rows
    if unreadable:
        name = next(value for kind in KINDS if (value := getattr(evaluation, kind)) is not None)
        reasons = "; ".join(f"{count:,} × {reason:.80}" for reason, count in unreadable.most_common(3))
        raise ExportError(
            f"evaluation {', '.join(name) if isinstance(name, list) else name}: the questions of {unreadable.total():,} of "
            f"{counted(total, 'row')} cannot be read ({reasons}), so that nobody knows what to keep out; repair the file"
        )

    def leaks(prompts: Sequence[Prompt]) -> list[bool]:
        return [not question_keys.isdisjoint(_question_keys(prompt)) for prompt in prompts]

    return leaks


def _rejected_question(evaluation: Source, reason: str, row_json: str) -> Prompt | None:
    """Return the question of a row that the source rejected; None if it cannot be read."""
    column = evaluation.messages or evaluation.prompt
    if reason.endswith((" in prompt", " in messages")):
        return None
    try:
        row = json.loads(row_json)
    except ValueError:
        try:
            # Bytes that are not UTF-8 are written as \xff, an escape that JSON does not have.
            row = json.loads(row_json.replace("\\x", "\\\\x"))
        except ValueError:
            return None
    value = row.get(column) if isinstance(row, dict) else None
    if isinstance(value, str):
        return value if value.strip() else None
    if not isinstance(value, list) or not all(isinstance(turn, dict) for turn in value):
        return None
    turns = []
    for turn in value:
        role, content = turn.get("role") or turn.get("from"), turn.get("content") or turn.get("value")
        if not isinstance(role, str) or not isinstance(content, str):
            return None
        turns.append(Message(role=ROLES.get(role, role), content=content))
    return turns if any(turn["role"] == "user" and turn["content"].strip() for turn in turns) else None


def _question_keys(prompt: Prompt) -> set[bytes]:
    """Return the keys of a prompt's questions: the whole text, and each user turn of a chat."""
    turns = [] if isinstance(prompt, str) else [turn["content"] for turn in prompt if turn["role"] == "user"]
    return {key for text in (prompt_text(prompt), *turns) if (key := _question_key(text))}


_CLOSING = frozenset(".,;:!?…\"'`")


def _question_key(text: str) -> bytes:
    """Hash a question after normalisation: case, white space, Unicode forms and closing punctuation do not count."""
    plain = unicodedata.normalize("NFKC", unicodedata.normalize("NFKC", text).casefold())
    if not plain.isascii():
        # Category Cf is invisible: zero-width spaces, soft hyphens, marks of direction.
        plain = "".join(letter for letter in plain if unicodedata.category(letter) != "Cf")
    plain = " ".join(plain.split())
    end = len(plain)
    while end and _closes(plain[end - 1]):
        end -= 1
    # A question that is only punctuation keeps it, as the empty text would match every such question.
    return hashlib.blake2b((plain[:end] or plain).encode("utf-8", "surrogatepass"), digest_size=16).digest()


def _closes(letter: str) -> bool:
    """Return whether a character may close a sentence in any script; `#` and `%` belong to the text, as in `C#`."""
    kind = unicodedata.category(letter)
    return letter in _CLOSING or letter.isspace() or kind in ("Pe", "Pf") or (kind == "Po" and not letter.isascii())
