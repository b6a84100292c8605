"""What is measured of a text: 4-gram repetition, BLEU, Self-BLEU and ROUGE-L.

One rule: each measure takes words and returns one number; nothing here reads a file or knows a study.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Sequence
from functools import lru_cache

import numpy as np

from seamcurate import words


def repetition(text: str, n: int = 4) -> float:
    """Return `words.repetition`; 0 for fewer than n words, which repeat nothing."""
    return words.repetition(text, n) or 0.0


def bleu(candidate: Sequence[str], references: Sequence[Sequence[str]], n: int = 4) -> float:
    """Return sentence BLEU of 1- to n-grams, all of the same weight (Papineni et al. 2002).

    An order without a match counts as .1 matches (Chen and Cherry 2014, method 1); without a matching word BLEU is 0.
    """
    log_precision = 0.0
    for order in range(1, n + 1):
        candidate_grams = _grams(candidate, order)
        # Each n-gram as often as in the reference that has it most often.
        reference_grams: Counter[tuple[str, ...]] = Counter()
        for reference in references:
            reference_grams |= _grams(reference, order)
        matches = sum((candidate_grams & reference_grams).values())
        if order == 1 and not matches:
            return 0.0
        log_precision += math.log((matches or 0.1) / max(sum(candidate_grams.values()), 1)) / n
    length = len(candidate)
    nearest = min((len(reference) for reference in references), key=lambda size: (abs(size - length), size))
    return math.exp(log_precision + min(0.0, 1 - nearest / length))


def self_bleu(texts: Sequence[str]) -> float:
    """Return the mean BLEU of each text against all others (Zhu et al. 2018); high = alike."""
    samples = [words.split(text) for text in texts]
    scores = [bleu(sample, samples[:i] + samples[i + 1 :]) if sample else 0.0 for i, sample in enumerate(samples)]
    return float(np.mean(scores))


def rouge_l(candidate: Sequence[str], reference: Sequence[str]) -> float:
    """Return ROUGE-L's F measure of two texts' words (Lin 2004); 0 where either has none.

    The longest common subsequence is counted in bits, one for each word of the reference, a word of the candidate at a
    time (Hyyrö 2004): a table of all pairs of words would not fit in memory for long texts.
    """
    if not candidate or not reference:
        return 0.0
    positions: dict[str, int] = {}
    for i, word in enumerate(reference):
        positions[word] = positions.get(word, 0) | 1 << i
    all_bits = (1 << len(reference)) - 1
    # A bit is 0 where the longest common subsequence grows by a word of the reference.
    row = all_bits
    for word in candidate:
        if matched := row & positions.get(word, 0):
            row = (row + matched | row - matched) & all_bits
    common = len(reference) - row.bit_count()
    return 2 * common / (len(candidate) + len(reference))


def stemmer() -> Callable[[str], list[str]]:
    """Return a function that splits a text into stemmed words as `rouge_score` does."""
    from nltk.stem.porter import PorterStemmer
    from rouge_score.tokenize import tokenize

    stem = lru_cache(maxsize=2**16)(PorterStemmer().stem)
    return lambda text: [stem(word) if len(word) > 3 else word for word in tokenize(text, None)]


def _grams(tokens: Sequence[str], n: int) -> Counter[tuple[str, ...]]:
    return Counter(tuple(tokens[i : i + n]) for i in range(len(tokens) - n + 1))
