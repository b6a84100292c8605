"""Cosines of words, held against scikit-learn's."""

from __future__ import annotations

import random

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.feature_extraction.text import ENGLISH_STOP_WORDS, TfidfVectorizer

from seamcurate.contrast.similar import Questions, stop_words

WORDS = [
    "the",
    "of",
    "sort",
    "list",
    "copy",
    "file",
    "set",
    "table",
    "socket",
    "Ünïcode",
    "ΑΣ",
    "中文",
    "x1",
    "_",
    "call()",
    "over-head",
    "open",
    "close",
    "how",
    "do",
    "I",
    "a",
]


def theirs(questions: list[str], texts: list[str]) -> np.ndarray:
    vectorizer = TfidfVectorizer(sublinear_tf=True, dtype=np.float64, stop_words="english", token_pattern=r"\w+")
    known = vectorizer.fit_transform(questions)
    return (vectorizer.transform(texts) @ known.T).toarray()


@settings(max_examples=50, deadline=None)
@given(st.lists(st.lists(st.sampled_from(WORDS), max_size=12).map(" ".join), min_size=2, max_size=20))
def test_cosines_are_those_of_scikit_learn(texts):
    questions = [*texts, "at least one word"]
    assert np.allclose(Questions(questions).cosines(texts), theirs(questions, texts), atol=1e-6)


def test_a_cosine_does_not_depend_on_the_other_texts():
    draw = random.Random(0)
    texts = [" ".join(draw.choices(WORDS, k=8)) for _ in range(40)]
    known = Questions(texts)
    alone = np.concatenate([known.cosines([text]) for text in texts])
    assert np.array_equal(known.cosines(texts), alone)
    assert np.allclose(np.diag(alone), 1)


def test_questions_without_a_word_are_refused():
    with pytest.raises(ValueError, match="no question has a word"):
        Questions(["the", "?!", ""])


def test_words_that_no_question_has_are_nothing():
    assert Questions(["sort a list"]).cosines(["copy", "", "list"]).tolist() == [[0], [0], [pytest.approx(2**-0.5)]]


def test_stop_words_are_scikit_learns():
    assert stop_words() == ENGLISH_STOP_WORDS
