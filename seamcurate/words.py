"""Words of texts, a column at a time: how many there are, and how many of their trigrams repeat.

Characters become numbers, numbers become kinds, and a word begins where the kind changes. Words are compared by
64-bit polynomial hashes, and a row's trigrams by at least 56 bits of theirs: that two different ones of a row of a
thousand words are taken for one happens once in a hundred billion rows.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from functools import cache
from typing import Literal, TypeAlias

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

Words: TypeAlias = Literal["wordpunct", "whitespace"]
Longs: TypeAlias = npt.NDArray[np.uint64]

_WORDPUNCT = re.compile(r"\w+|[^\w\s]+")
_ROWS = 256
_BYTES = 2**20
_FACTOR = 0x9E3779B97F4A7C15


def split(text: str, words: Words = "wordpunct") -> list[str]:
    """Split one text: into runs of letters and of punctuation, as the RER authors' code, or at white space."""
    return _WORDPUNCT.findall(text) if words == "wordpunct" else text.split()


def counts(texts: pa.StringArray, words: Words = "wordpunct") -> npt.NDArray[np.int64]:
    """Count the words of each text; a NULL has none."""
    return np.concatenate([_begin(part, words)[2] for part in _parts(texts)] or [np.zeros(0, np.int64)])


def distinct_trigrams(texts: pa.StringArray, words: Words = "wordpunct") -> npt.NDArray[np.float64]:
    """Return, for each text, its distinct word trigrams / its word trigrams; 1 where it has none."""
    return np.concatenate([_distinct(part, words) for part in _parts(texts)] or [np.zeros(0)])


def _parts(texts: pa.StringArray) -> Iterator[pa.StringArray]:
    """Cut a column so that a part's arrays stay in the cache: few rows, and not much more than a million bytes."""
    ends = np.cumsum(pc.fill_null(pc.binary_length(texts), 0).to_numpy(zero_copy_only=False))
    start = 0
    while start < len(texts):
        before = ends[start - 1] if start else 0
        end = min(start + _ROWS, max(start + 1, int(np.searchsorted(ends, before + _BYTES))))
        yield texts.slice(start, end - start)
        start = end


def _begin(
    texts: pa.StringArray, words: Words
) -> tuple[npt.NDArray[np.uint32], npt.NDArray[np.int64], npt.NDArray[np.int64]]:
    """Return the characters of all texts end to end, where each word begins, and how many words each text has."""
    joined = "".join(texts.drop_null().to_pylist())
    characters = np.frombuffer(joined.encode("utf-32-le", "surrogatepass"), np.uint32)
    lengths = pc.fill_null(pc.utf8_length(texts), 0).to_numpy(zero_copy_only=False)
    bounds = np.concatenate([[0], np.cumsum(lengths)])
    kinds = _kinds(words)[characters]
    begins = kinds != 0
    begins[1:] &= kinds[1:] != kinds[:-1]
    # A text's first character begins a word even where it goes on as the last text ended.
    firsts = bounds[:-1][lengths > 0]
    begins[firsts] = kinds[firsts] != 0
    starts = np.flatnonzero(begins)
    return characters, starts, np.diff(np.searchsorted(starts, bounds))


def _distinct(texts: pa.StringArray, words: Words) -> npt.NDArray[np.float64]:
    characters, starts, count = _begin(texts, words)
    trigrams = np.maximum(count - 2, 0)
    if not trigrams.any():
        return np.ones(len(texts))
    powers, inverses = _powers(1 << (len(characters) - 1).bit_length())
    terms = (characters.astype(np.uint64) + np.uint64(1)) * powers[: len(characters)]
    terms[_kinds(words)[characters] == 0] = 0
    # The same word has the same hash wherever it stands: its terms are scaled back to a start at 0.
    hashed = _mixed(np.add.reduceat(terms, starts) * inverses[starts])
    three = hashed[:-2] * np.uint64(3) + np.bitwise_xor(hashed[1:-1], hashed[2:] << np.uint64(1)) * np.uint64(_FACTOR)
    row = np.repeat(np.arange(len(texts), dtype=np.uint64), count)
    inside = row[:-2] == row[2:]
    keys = (_mixed(three[inside]) & ~np.uint64(_ROWS - 1)) | row[:-2][inside]
    keys.sort()
    repeated = keys[1:][keys[1:] == keys[:-1]] & np.uint64(_ROWS - 1)
    repeats = np.bincount(repeated.astype(np.int64), minlength=len(texts))
    return np.where(trigrams > 0, (trigrams - repeats) / np.maximum(trigrams, 1), 1.0)


def _mixed(values: Longs) -> Longs:
    """Spread every bit over all others (the finaliser of SplitMix64)."""
    values = (values ^ (values >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    values = (values ^ (values >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    mixed: Longs = values ^ (values >> np.uint64(31))
    return mixed


@cache
def _kinds(words: Words) -> npt.NDArray[np.uint8]:
    """Give every code point its kind by Python's own rules: 0 space, 1 word, 2 punctuation."""
    everything = "".join(map(chr, range(0x110000)))
    kinds = np.full(len(everything), 2 if words == "wordpunct" else 1, np.uint8)
    kinds[[found.start() for found in re.finditer(r"\s", everything)]] = 0
    if words == "wordpunct":
        for found in re.finditer(r"\w+", everything):
            kinds[found.start() : found.end()] = 1
    return kinds


@cache
def _powers(count: int) -> tuple[Longs, Longs]:
    """Return the factor's powers and their inverses modulo 2⁶⁴."""
    raised = []
    for factor in (_FACTOR, pow(_FACTOR, -1, 2**64)):
        steps = np.full(count, factor, np.uint64)
        steps[0] = 1
        raised.append(np.cumprod(steps))
    return raised[0], raised[1]
