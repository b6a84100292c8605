"""Which rows, which pairs and which texts are measured; everything follows from one seed."""

from __future__ import annotations

import random
import re
from collections import defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import pyarrow as pa
import pyarrow.parquet as pq

SEED = 20_241_129
PROMPT_WORDS, ANSWER_WORDS = 48, 400
MOST_RATED = 5
"""Rated answers of a question, beside the golden one."""
Rows = list[dict[str, Any]]


class Sizes(NamedTuple):
    """How many of everything; the tests take fewer."""

    questions: int = 400
    prompts: int = 250
    """Of QA-Feedback and PandaLM."""
    words: tuple[int, ...] = (100, 400, 1600, 3900)
    minilm: tuple[int, ...] = (100, 400, 1600)
    """Preference pairs that reward models of a family are trained on."""
    smol: tuple[int, ...] = (100, 400, 800)
    held_out: int = 300
    corpus: int = 2000
    verdicts: int = 400
    """Judged pairs of other sources in the mismatch table."""
    candidates: int = 6
    sampled: int = 150
    """Rows of each set whose prompts the policy answers."""
    samples: int = 4
    sample_tokens: int = 64
    """Answers to each, and their most tokens."""
    written: int = 60
    """Rows for which the policy writes worse answers."""
    written_more: int = 250
    """Rows for which it writes them where more were asked for, those of the first among them."""
    worse: int = 3
    worse_tokens: int = 160
    """Such answers to each, and their most tokens; a longer one is left out."""
    attacked: int = 60
    """Rows whose golden response is attacked."""
    queries: int = 150
    """The most rewards that an attack asks for a row."""
    lora: tuple[int, ...] = (500, 2000, 3900)
    """Pairs after which a reward model by adapters is measured; each goes on from the one before."""
    gemma: tuple[int, ...] = (100, 400, 800)
    gemma_layers: int = 9
    ppo_updates: int = 8
    ppo_batch: int = 8
    """Answers of an update."""
    ppo_tokens: int = 32
    ppo_held_out: int = 32
    ppo_seeds: tuple[int, ...] = (0, 1, 2)
    longer_updates: int = 24
    longer_tokens: int = 64
    """Of the longer trainings on RER alone; all else is as in the short ones."""
    layers: int = 12
    """Of the policy, under a reward model's head."""


class Judged(NamedTuple):
    """One measured set: rows of a store, what they are compared with, and people's verdicts on other answers."""

    rows: Rows
    """prompt, response (golden), source."""
    corpus: Rows
    judged: Rows
    """prompt, response, score; or prompt, response_a, response_b, label, source."""


def cut(text: str, words: int) -> str:
    """Return a text up to the end of its n-th word, white space as it is.

    >>> cut("one  two three", 2)
    'one  two'
    """
    ends = [match.end() for match in re.finditer(r"\S+", text)][:words]
    return text[: ends[-1]].lstrip() if ends else ""


def read(folder: Path, name: str) -> Rows:
    rows: Rows = pq.read_table(folder / f"{name}.parquet").to_pylist()
    return rows


def votes(folder: Path) -> dict[str, dict[str, float]]:
    """Return the votes of each Stack Exchange question's answers, as cut: {prompt: {answer: votes}}."""
    answers: dict[str, dict[str, float]] = defaultdict(dict)
    for row in read(folder, "preferences") + read(folder, "preferences_test"):
        if row["dataset"] == "stackexchange":
            for side in ("chosen", "rejected"):
                text = cut(row[side], ANSWER_WORDS)
                if text:
                    answers[cut(row["prompt"], PROMPT_WORDS)][text] = float(row[f"score_{side}"])
    return answers


def measurable(answers: Mapping[str, float]) -> bool:
    """Whether one answer is alone at the top, and the others differ in votes."""
    first, *others = sorted(answers.values(), reverse=True)
    return len(others) > 1 and first > others[0] and len(set(others)) > 1


def stackexchange(folder: Path, sizes: Sizes) -> Judged:
    """Return the judged questions with rated answers, and the top answers of all questions."""
    answers = votes(folder)
    return _voted(folder, answers, _questions(answers)[: sizes.questions])


def fresh_stackexchange(folder: Path, sizes: Sizes) -> Judged:
    """Return the other questions, without those of which a pair may train a head."""
    answers = votes(folder)
    trained = {pair["prompt"] for pair in preferences(folder, sizes)[0][: sizes.smol[-1]]}
    return _voted(folder, answers, [q for q in _questions(answers)[sizes.questions :] if q not in trained])


def _questions(answers: Mapping[str, Mapping[str, float]]) -> list[str]:
    """Return the questions that can be measured, in the order they are taken."""
    questions = sorted(question for question, own in answers.items() if measurable(own))
    random.Random(f"{SEED} questions").shuffle(questions)
    return questions


def _voted(folder: Path, answers: Mapping[str, Mapping[str, float]], questions: Sequence[str]) -> Judged:
    rows, judged = [], []
    for question in questions:
        votes_of = answers[question]
        golden, *others = sorted(votes_of, key=lambda text: -votes_of[text])
        rows.append({"prompt": question, "response": golden, "source": "stackexchange"})
        drawn = random.Random(f"{SEED} {question}").sample(others, min(MOST_RATED, len(others)))
        judged += [{"prompt": question, "response": text, "score": votes_of[text]} for text in drawn]
    corpus = [{"prompt": question, "response": max(own, key=own.__getitem__)} for question, own in answers.items()]
    corpus += _corpus(row for row in read(folder, "sft_corpus") if row["source"] == "stackexchange")
    return Judged(rows, corpus, judged)


def human(folder: Path, sizes: Sizes) -> Judged:
    """Return QA-Feedback's and PandaLM's prompts with judged pairs that do not hold the answer people like most."""
    return _liked(folder, sizes, slice(sizes.prompts))


def fresh_human(folder: Path, sizes: Sizes) -> Judged:
    """Return the other prompts of QA-Feedback and PandaLM."""
    return _liked(folder, sizes, slice(sizes.prompts, None))


def _liked(folder: Path, sizes: Sizes, part: slice) -> Judged:
    pairs: dict[str, Rows] = defaultdict(list)
    liked: dict[str, dict[str, float]] = defaultdict(lambda: defaultdict(float))
    for row in read(folder, "human_pairs"):
        if row["source"] not in ("qa-feedback", "pandalm-test"):
            continue
        a, b = (cut(row[name], ANSWER_WORDS) for name in ("response_a", "response_b"))
        prompt = cut(row["prompt"], PROMPT_WORDS)
        won = {"a": 1.0, "b": 0.0, "tie": 0.5}[row["label"]]
        liked[prompt][a] += won
        liked[prompt][b] += 1 - won
        pairs[prompt].append(
            {"prompt": prompt, "response_a": a, "response_b": b, "label": row["label"], "source": row["source"]}
        )
    rows, judged, corpus = [], [], []
    for prompt, own in sorted(liked.items()):
        best, *others = sorted(own, key=lambda text: -own[text])
        corpus.append({"prompt": prompt, "response": best})
        left = [p for p in pairs[prompt] if best not in (p["response_a"], p["response_b"]) and p["label"] != "tie"]
        if len(others) > 1 and own[best] > own[others[0]] and left:
            rows.append({"prompt": prompt, "response": best, "source": left[0]["source"]})
            judged += left
    random.Random(f"{SEED} human").shuffle(rows)
    rows = rows[part]
    prompts = {row["prompt"] for row in rows}
    drawn = random.Random(f"{SEED} corpus").sample(read(folder, "sft_corpus"), sizes.corpus)
    return Judged(rows, corpus + _corpus(drawn), [pair for pair in judged if pair["prompt"] in prompts])


def preferences(folder: Path, sizes: Sizes) -> tuple[Rows, Rows]:
    """Return the pairs reward models are trained on, in the order they take them, and held-out ones; no judged question."""
    judged = {row["prompt"] for row in stackexchange(folder, sizes).rows}
    parts = []
    for name, most in (
        ("preferences", max(*sizes.words, *sizes.minilm, *sizes.smol, *sizes.lora, *sizes.gemma)),
        ("preferences_test", sizes.held_out),
    ):
        pairs = [
            {
                "prompt": cut(row["prompt"], PROMPT_WORDS),
                **{side: cut(row[side], ANSWER_WORDS) for side in ("chosen", "rejected")},
                "dataset": row["dataset"],
            }
            for row in read(folder, name)
            if row["dataset"] == "stackexchange" or row["n_human_turns"] == 1
        ]
        pairs = [p for p in pairs if p["prompt"] not in judged and p["chosen"] != p["rejected"]]
        pairs = [p for p in pairs if p["chosen"] and p["rejected"]]
        random.Random(f"{SEED} {name}").shuffle(pairs)
        parts.append(pairs[:most])
    return parts[0], parts[1]


def other_pairs(folder: Path, sizes: Sizes) -> Rows:
    """Return a sample of the judged pairs of all sources but QA-Feedback and PandaLM; ties left out."""
    pairs = [
        {
            "prompt": cut(row["prompt"], PROMPT_WORDS),
            **{name: cut(row[name], ANSWER_WORDS) for name in ("response_a", "response_b")},
            "label": row["label"],
            "source": row["source"].split("/")[0],
        }
        for row in read(folder, "human_pairs")
        if row["label"] != "tie" and row["source"] not in ("qa-feedback", "pandalm-test")
    ]
    random.Random(f"{SEED} other").shuffle(pairs)
    return pairs[: sizes.verdicts]


def write(rows: Sequence[Mapping[str, Any]], file: Path) -> Path:
    file.parent.mkdir(parents=True, exist_ok=True)
    table = pa.Table.from_pylist([dict(row) for row in rows])
    # Lists of unknown likelihoods alone have no type of their own.
    unknown = {field.name for field in table.schema if field.type == pa.list_(pa.null())}
    fields = [f.with_type(pa.list_(pa.float64())) if f.name in unknown else f for f in table.schema]
    pq.write_table(table.cast(pa.schema(fields)), file)
    return file


def _corpus(rows: Any) -> Rows:
    texts = [(cut(row["instruction"], PROMPT_WORDS), cut(row["response"], ANSWER_WORDS)) for row in rows]
    return [{"prompt": prompt, "response": response} for prompt, response in texts if prompt and response]
