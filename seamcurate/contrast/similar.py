r"""Questions compared by the words they share: the cosine of TF-IDF, in numpy alone, so that an audit needs no other library.

The weights are those of scikit-learn's `TfidfVectorizer(sublinear_tf=True, stop_words="english", token_pattern=r"\w+")`; a
test holds the two equal. A question never depends on another one that it is compared with, only on the fitted questions.
"""

from __future__ import annotations

import importlib.resources
import re
from collections import Counter
from collections.abc import Iterable, Sequence
from functools import cache
from itertools import islice

import numpy as np
import numpy.typing as npt

_WORD = re.compile(r"\w+")
_MOST_WORDS = 2**18
"""Distinct words that are kept, the most frequent ones."""


@cache
def stop_words() -> frozenset[str]:
    """Return 318 frequent English words that tell no questions apart: the list of Glasgow's group for information retrieval."""
    text = importlib.resources.files("seamcurate.contrast").joinpath("stop_words.txt").read_text(encoding="utf-8")
    return frozenset(text.split())


class Questions:
    """Questions that others are compared with.

    Args:
        texts: The questions.

    Raises:
        ValueError: No question has a word.
    """

    def __init__(self, texts: Sequence[str]) -> None:
        counted = [_words(text) for text in texts]
        totals = Counter[str]()
        for own in counted:
            totals.update(own)
        if not totals:
            raise ValueError("no question has a word")
        kept = sorted(totals.items(), key=lambda entry: (-entry[1], entry[0]))
        self._ids = {word: i for i, (word, _) in enumerate(islice(kept, _MOST_WORDS))}
        self.count = len(texts)
        # One entry per question and distinct word.
        questions, words, counts = _entries(counted, self._ids)
        document_frequency = np.bincount(words, minlength=len(self._ids))
        self._rarity = np.log((1 + self.count) / (1 + document_frequency)) + 1
        weights = (np.log(counts) + 1) * self._rarity[words]
        lengths = np.sqrt(np.bincount(questions, weights**2, minlength=self.count))
        order = np.argsort(words, kind="stable")
        self._questions = questions[order]
        self._weights = (weights / lengths[questions])[order]
        self._starts = np.concatenate([[0], np.cumsum(document_frequency)])

    def cosines(self, texts: Sequence[str]) -> npt.NDArray[np.float32]:
        """Return the cosine of each text with each question, (texts, questions); 0 where they share no word."""
        cosines = np.zeros((len(texts), self.count))
        for row, text in zip(cosines, texts, strict=True):
            _, words, counts = _entries([_words(text)], self._ids)
            weights = (np.log(counts) + 1) * self._rarity[words]
            length = np.sqrt((weights**2).sum())
            for word, weight in zip(words, weights, strict=True):
                # A word stands once in the list of a question, so that no place is repeated.
                entries = slice(self._starts[word], self._starts[word + 1])
                row[self._questions[entries]] += weight / length * self._weights[entries]
        return cosines.astype(np.float32)


def _words(text: str) -> Counter[str]:
    return Counter(word for word in _WORD.findall(text.lower()) if word not in stop_words())


def _entries(
    counted: Iterable[Counter[str]], ids: dict[str, int]
) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64], npt.NDArray[np.int64]]:
    """Return the known words as three arrays of one length: the question's number, the word's, and how often it is there."""
    entries = [
        (number, ids[word], count)
        for number, words in enumerate(counted)
        for word, count in sorted(words.items())
        if word in ids
    ]
    questions, words, counts = np.array(entries, np.int64).reshape(-1, 3).T
    return questions, words, counts
