"""New training pairs from the rows a split keeps: what policy and reward model lack where they disagree (SEAM App. G).

The paper's strategy is Contrast Instruction whichever score chose the rows: a row's neighbours I* with their answers r*
teach the policy (I*, r*) and the reward model (I: r ≻ r*). Answers a language model wrote or an attack made are worse
than the golden one and have no I*: they make preference pairs, and nothing a policy should learn.

One rule: a question of the evaluation set never comes out, be it a row's own or a neighbour's; where the set cannot be
read whole, nothing comes out.
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

from seamcurate.data.source import KINDS, SHAREGPT_ROLES, Source
from seamcurate.errors import ExportError
from seamcurate.models.protocols import Message, Prompt
from seamcurate.models.template import prompt_text
from seamcurate.select import split as splits
from seamcurate.select.split import Augment
from seamcurate.step import MESSAGES, sample_set
from seamcurate.store.store import Store
from seamcurate.text import counted

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
"""Of which row and which neighbour a pair was made, how near that is, and how: sft, golden or neighbour."""
DROPPED = pa.schema([("row_id", pa.int64()), ("data", pa.string()), ("reason", pa.string())])


class ShardPairs(NamedTuple):
    """The pairs that the kept rows of a shard gave."""

    rows: int
    pairs: pa.Table
    dropped: pa.Table
    """Rows that gave no pair, each with the reason."""
    short: int
    """Rows that gave fewer pairs than asked."""


class _Candidate(NamedTuple):
    rank: int
    response: str
    source_row_id: int | None
    similarity: float | None
    instruction: Prompt | None


def shards(store: Store, split: str, augment: Augment, kind: Kind) -> Iterator[ShardPairs]:
    """Make the pairs of one kind, a shard of the source at a time; the nearest neighbours of a row come first.

    Prompts are as the rows have them, answers are text.

    A neighbour teaches the policy once, under the first row that has it: a later row takes its next one.

    Raises:
        ExportError: The store has no such sample set, or the corpus has chat prompts where the rows have text.
    """
    name = f"worse_{augment.variant}"
    kinds = {column.name: column.kind for column in store.columns() if column.stale is None}
    if name not in kinds:
        raise ExportError(f"split {split}: augmentation needs the column {name}; run a recipe that makes it first")
    of_chat = not pa.types.is_string(kinds["prompt"])
    asked = MESSAGES if of_chat else pa.string()
    texts = {"sft": ["completion"], "preferences": ["chosen", "rejected"]}[kind]
    schema = pa.schema([("prompt", asked), *((text, pa.string()) for text in texts), *PROVENANCE])
    leaks = _leaks(augment.evaluation)
    instructions = _instructions(store)
    taken: set[int] = set()
    for table in splits.kept(store, split, ["prompt", "response", name]):
        rows = table.to_pylist()
        ids = {c["source_row_id"] for row in rows for c in row[name] or [] if "source_row_id" in c}
        own = instructions(sorted(ids)) if sample_set(augment.variant).instructions else {}
        leaked = {i for i, leak in zip(own, leaks(list(own.values())), strict=True) if leak}
        pairs: list[dict[str, object]] = []
        dropped: list[dict[str, object]] = []
        short = 0
        for row, leak in zip(rows, leaks([row["prompt"] for row in rows]), strict=True):
            candidates = _candidates(row[name] or [], row["response"], own)
            fair = [c for c in candidates if c.source_row_id not in leaked]
            fresh = [c for c in fair if kind != "sft" or c.source_row_id not in taken]
            reason = _reason(kind, leak, row["response"], candidates, fair, fresh)
            if reason:
                dropped.append({"row_id": row["row_id"], "data": kind, "reason": reason})
                continue
            chosen = fresh[: augment.samples]
            short += len(chosen) < augment.samples
            taken.update(c.source_row_id for c in chosen if c.source_row_id is not None)
            for candidate in chosen:
                pairs += _pairs(kind, row, candidate, augment, of_chat, split)
        yield ShardPairs(len(rows), pa.Table.from_pylist(pairs, schema), pa.Table.from_pylist(dropped, DROPPED), short)


def _candidates(
    listed: Sequence[dict[str, object]], golden: str | None, instructions: dict[int, Prompt]
) -> list[_Candidate]:
    """Return the candidates that say something else than the golden response, with their ranks."""
    found = []
    for rank, one in enumerate(listed, 1):
        text, source, similarity = one["response"], one.get("source_row_id"), one.get("similarity")
        if not isinstance(text, str) or not text.strip() or (golden is not None and _folded(text) == _folded(golden)):
            continue
        place = source if isinstance(source, int) else None
        near = similarity if isinstance(similarity, float) else None
        found.append(_Candidate(rank, text, place, near, None if place is None else instructions.get(place)))
    return found


def _reason(
    kind: Kind,
    leak: bool,
    golden: str | None,
    candidates: Sequence[_Candidate],
    fair: Sequence[_Candidate],
    fresh: Sequence[_Candidate],
) -> str:
    """Say why a row gives no pair; nothing when it gives some."""
    if leak:
        return "its question is an evaluation question"
    if kind == "preferences" and not golden:
        return "it has no golden response"
    if not candidates:
        return "it has no candidate"
    if not fair:
        return "all its candidates answer evaluation questions"
    return "" if fresh else "all its candidates were taken by earlier rows"


def _pairs(
    kind: Kind, row: dict[str, object], candidate: _Candidate, augment: Augment, of_chat: bool, split: str
) -> Iterator[dict[str, object]]:
    """Yield what one candidate makes: (I*, r*); or (I: r ≻ r*), and if asked (I*: r* ≻ r)."""
    made = {
        "row_id": row["row_id"],
        "source_row_id": candidate.source_row_id,
        "variant": augment.variant,
        "rank": candidate.rank,
        "similarity": candidate.similarity,
    }
    worse = candidate.response
    if kind == "sft":
        yield {**made, "prompt": _instruction(candidate, of_chat, split), "completion": worse, "kind": "sft"}
        return
    golden = str(row["response"])
    yield {**made, "prompt": row["prompt"], "chosen": golden, "rejected": worse, "kind": "golden"}
    if augment.pairs == "both":
        prompt = _instruction(candidate, of_chat, split)
        yield {**made, "prompt": prompt, "chosen": worse, "rejected": golden, "kind": "neighbour"}


def _instruction(candidate: _Candidate, of_chat: bool, split: str) -> Prompt:
    """Return I* in the form of the rows' own prompts."""
    instruction = candidate.instruction
    assert instruction is not None
    if isinstance(instruction, str):
        return [Message(role="user", content=instruction)] if of_chat else instruction
    if not of_chat:
        raise ExportError(f"split {split}: the corpus has chat prompts and the rows have text; make both one form")
    return instruction


def _folded(text: str) -> str:
    return " ".join(text.casefold().split())


def _instructions(store: Store) -> Callable[[Sequence[int]], dict[int, Prompt]]:
    """Return what finds corpus rows' prompts by their ids."""
    corpus = store.corpus_store
    if corpus is None:
        return lambda ids: {}
    size, read = int(str(corpus.about["shard_rows"])), corpus.reader(["prompt"])

    @lru_cache(maxsize=64)
    def shard(number: int) -> pa.Table:
        return read(number)

    def find(ids: Sequence[int]) -> dict[int, Prompt]:
        found: dict[int, Prompt] = {}
        wanted = np.asarray(ids, np.int64)
        for number in np.unique(wanted // size).tolist():
            table, here = shard(number), wanted[wanted // size == number]
            places = np.searchsorted(table["row_id"].to_numpy(), here)
            found |= zip(here.tolist(), table["prompt"].take(pa.array(places)).to_pylist(), strict=True)
        return found

    return find


def _leaks(evaluation: Source | None) -> Callable[[Sequence[Prompt]], list[bool]]:
    """Return what tells the prompts that ask an evaluation question; every user turn of a chat is a question.

    Raises:
        ExportError: The question of an evaluation row cannot be read.
    """
    if evaluation is None:
        return lambda prompts: [False] * len(prompts)
    asked: set[bytes] = set()
    unread: Counter[str] = Counter()
    total = 0
    for chunk in evaluation.chunks():
        # A chunk whose rows were all set aside may not even know what a prompt is.
        for prompt in chunk.rows["prompt"].to_pylist() if chunk.rows.num_rows else ():
            asked |= _questions(prompt)
        # A row without a good answer is no row of a store, and its question is an evaluation question all the same.
        for rejected in chunk.rejected.to_pylist():
            question = _set_aside(evaluation, rejected["reason"], rejected["row"])
            if question is None:
                unread[rejected["reason"]] += 1
            else:
                asked |= _questions(question)
        total += chunk.rows.num_rows + chunk.rejected.num_rows
    if unread:
        name = next(value for kind in KINDS if (value := getattr(evaluation, kind)) is not None)
        reasons = "; ".join(f"{count:,} × {reason:.80}" for reason, count in unread.most_common(3))
        raise ExportError(
            f"evaluation {name if isinstance(name, str) else ', '.join(name)}: the questions of {unread.total():,} of "
            f"{counted(total, 'row')} cannot be read ({reasons}), so that nobody knows what to keep out; repair the file"
        )

    def tell(prompts: Sequence[Prompt]) -> list[bool]:
        return [not asked.isdisjoint(_questions(prompt)) for prompt in prompts]

    return tell


def _set_aside(evaluation: Source, reason: str, shown: str) -> Prompt | None:
    """Return the question of a row that was set aside; None where it cannot be read."""
    column = evaluation.messages or evaluation.prompt
    if reason.endswith((" in prompt", " in messages")):
        return None
    try:
        row = json.loads(shown)
    except ValueError:
        try:
            # Bytes that are no UTF-8 are spelled out as \xff, which JSON does not know.
            row = json.loads(shown.replace("\\x", "\\\\x"))
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
        turns.append(Message(role=SHAREGPT_ROLES.get(role, role), content=content))
    return turns if any(turn["role"] == "user" and turn["content"].strip() for turn in turns) else None


def _questions(prompt: Prompt) -> set[bytes]:
    """Return the keys of all that a prompt asks: of the whole text, and of each user turn of a chat."""
    turns = [] if isinstance(prompt, str) else [turn["content"] for turn in prompt if turn["role"] == "user"]
    return {key for text in (prompt_text(prompt), *turns) if (key := _question_key(text))}


_CLOSING = frozenset(".,;:!?…\"'`")


def _question_key(text: str) -> bytes:
    """Hash a question, so that case, white space, forms of one character and closing punctuation make no difference."""
    folded = unicodedata.normalize("NFKC", unicodedata.normalize("NFKC", text).casefold())
    if not folded.isascii():
        # Characters without a shape of their own: zero-width spaces, soft hyphens, marks of direction.
        folded = "".join(letter for letter in folded if unicodedata.category(letter) != "Cf")
    folded = " ".join(folded.split())
    end = len(folded)
    while end and _closes(folded[end - 1]):
        end -= 1
    # A question of nothing but marks is itself.
    return hashlib.blake2b((folded[:end] or folded).encode("utf-8", "surrogatepass"), digest_size=16).digest()


def _closes(letter: str) -> bool:
    """Tell what may close a sentence, in any script; `C#` and `50 %` end in their own."""
    kind = unicodedata.category(letter)
    return letter in _CLOSING or letter.isspace() or kind in ("Pe", "Pf") or (kind == "Po" and not letter.isascii())
