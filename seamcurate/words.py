"""Words of texts, a column at a time: how many there are, and how many of their trigrams repeat.

A word begins where the kind of character changes. Words are compared by a 64-bit hash, and the trigrams of a row by 56
bits of theirs: in rows of a thousand words, two different trigrams collide once in a hundred billion rows.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterator
from functools import cache
from typing import Literal, NamedTuple, TypeAlias

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
import regex

Words: TypeAlias = Literal["wordpunct", "whitespace"]
Indices: TypeAlias = npt.NDArray[np.int64]
Hashes: TypeAlias = npt.NDArray[np.uint64]

WORDPUNCT = regex.compile(r"\w+|[^\w\s]+")
"""NLTK's `wordpunct_tokenize` as its releases from 3.10 on compile it. `regex` counts vowel signs and other combining marks
as letters of a word; Python's `re` would cut Hindi, Thai, Tamil or vocalised Arabic at each of them."""
_ROWS = 2048
"""The most texts of a batch: a power of two, since a trigram's hash holds its row in the lowest bits."""
_BYTES = 2**20
"""About how many bytes a batch has."""
_LONG = 256
"""Words of more bytes are hashed one by one."""
_UTF8 = np.array([0x80, 0x800, 0x10000], np.uint32)
_WORD = 1
"""The kind of a word's characters; see `_kinds`."""
_MASKS = np.array([2 ** (8 * n) - 1 for n in range(9)], np.uint64)


def split(text: str, words: Words = "wordpunct") -> list[str]:
    """Split one text: into runs of letters and runs of punctuation, as the RER authors' code does, or at white space."""
    return [match.group() for match in WORDPUNCT.finditer(text)] if words == "wordpunct" else text.split()


def counts(texts: pa.StringArray, words: Words = "wordpunct") -> Indices:
    """Count the words of each text; a NULL has none."""
    word_counts = np.zeros(len(texts), np.int64)
    for rows, batch in _batches(texts):
        word_counts[rows] = _cut(batch, words).counts
    return word_counts


def distinct_trigrams(texts: pa.StringArray, words: Words = "wordpunct") -> npt.NDArray[np.float64]:
    """Return, for each text, its distinct word trigrams / its word trigrams; 1 where it has none."""
    shares = np.ones(len(texts))
    for rows, batch in _batches(texts):
        cut = _cut(batch, words)
        trigrams = np.maximum(cut.counts - 2, 0)  # (rows of the batch,)
        long_enough = trigrams > 0
        shares[rows[long_enough]] = ((trigrams - _repeats(cut)) / np.maximum(trigrams, 1))[long_enough]
    return shares


class Ngrams(NamedTuple):
    """Hashes of the runs of so many words of several texts."""

    rows: Indices
    """The row of each text that has any, ascending: (texts,)."""
    counts: Indices
    """How many each of these texts has: (texts,)."""
    hashes: Hashes
    """One text's after the other's: (n-grams,)."""


def ngrams(texts: pa.StringArray, size: int) -> Iterator[Ngrams]:
    """Hash every run of `size` words of each text, in batches; case and punctuation do not count.

    The hash of a run has 64 bits and is the same in every text and on every machine. A text of fewer words has none.

    >>> [batch.counts.tolist() for batch in ngrams(pa.array(["Of all words, three: none.", "Two words"]), 3)]
    [[3]]
    """
    for rows, batch in _batches(pc.utf8_lower(texts)):
        cut = _cut(batch, "wordpunct", in_bytes=True)
        hashed, row = _hashed(cut), np.repeat(np.arange(len(rows)), cut.counts)
        is_word = cut.kinds[cut.starts] == _WORD
        hashed, row = hashed[is_word], row[is_word]
        if len(hashed) < size:
            continue
        count = len(hashed) - size + 1
        runs = hashed[:count].copy()
        for offset in range(1, size):
            # The multipliers of `_repeats`; each word is mixed in in its place.
            runs *= np.uint64(0x9E3779B97F4A7C15)
            runs ^= runs >> np.uint64(32)
            runs += hashed[offset : offset + count]
        runs *= np.uint64(0x94D049BB133111EB)
        runs ^= runs >> np.uint64(31)
        inside = row[:count] == row[size - 1 :]  # without those that reach into the next text
        counts = np.bincount(row[:count][inside], minlength=len(rows))
        if inside.any():
            yield Ngrams(rows[counts > 0], counts[counts > 0], runs[inside])


class _Cut(NamedTuple):
    """The positions of the words in several texts."""

    raw: bytes
    """The texts, concatenated."""
    size: int
    """Bytes per character: 1, or 4."""
    starts: Indices
    """The index of each word's first character, (words,)."""
    lasts: npt.NDArray[np.bool_]
    """Whether a character is the last of its word, (characters,)."""
    counts: Indices
    """How many words each text has, (texts,)."""
    kinds: npt.NDArray[np.uint8]
    """The kind of each character, (characters,)."""


def _batches(texts: pa.StringArray) -> Iterator[tuple[Indices, pa.LargeStringArray]]:
    """Yield row numbers and their texts, in batches that fit the CPU's cache; ASCII texts are apart from the others."""
    column = pc.fill_null(texts, "").cast(pa.large_string())
    plain = pc.string_is_ascii(column).to_numpy(zero_copy_only=False)
    for rows in (np.flatnonzero(plain), np.flatnonzero(~plain)):
        selected = column.take(pa.array(rows))
        ends = np.cumsum(pc.binary_length(selected).to_numpy(zero_copy_only=False))
        start = 0
        while start < len(rows):
            offset = ends[start - 1] if start else 0
            end = min(start + _ROWS, max(start + 1, int(np.searchsorted(ends, offset + _BYTES))))
            yield rows[start:end], selected.slice(start, end - start)
            start = end


def _cut(texts: pa.LargeStringArray, words: Words, in_bytes: bool = False) -> _Cut:
    """Find the words of texts; with `in_bytes`, characters are the bytes of UTF-8 in all texts, not in ASCII ones alone."""
    offsets = np.frombuffer(texts.buffers()[1], np.int64)[texts.offset : texts.offset + len(texts) + 1]
    raw, size = texts.buffers()[2][int(offsets[0]) : int(offsets[-1])].to_pybytes(), 1
    bounds = offsets - offsets[0]
    if raw.isascii():
        kinds = np.frombuffer(raw.translate(_plain_kinds(words)), np.uint8)
    else:
        points = raw.decode().encode("utf-32-le")
        kinds = _kinds(words)[np.frombuffer(points, np.uint32)]
        if in_bytes:
            # One byte for a code point below 0x80, two below 0x800, three below 0x10000, else four.
            kinds = np.repeat(kinds, 1 + np.searchsorted(_UTF8, np.frombuffer(points, np.uint32), side="right"))
        else:
            raw, size = points, 4
            bounds = np.concatenate([[0], np.cumsum(pc.utf8_length(texts).to_numpy(zero_copy_only=False))])
    changes = np.ones(len(kinds) + 1, bool)
    np.not_equal(kinds[1:], kinds[:-1], out=changes[1:-1])
    # A text's first character begins a word, even where the text before ended in the same kind of character.
    changes[bounds] = True
    inside = kinds != 0
    starts = np.flatnonzero(changes[:-1] & inside)
    return _Cut(raw, size, starts, changes[1:] & inside, np.diff(np.searchsorted(starts, bounds)), kinds)


def _repeats(cut: _Cut) -> Indices:
    """Count, for each text, its repeated trigrams: those that are equal to an earlier one of the same text."""
    if len(cut.starts) < 3:
        return np.zeros(len(cut.counts), np.int64)
    hashed = _hashed(cut)  # (words,)
    # Mix three neighbouring words' hashes, in order, into one hash a trigram, (words - 2,).
    trigrams = hashed[:-2] * np.uint64(0x9E3779B97F4A7C15) + hashed[1:-1]
    trigrams *= np.uint64(0xBF58476D1CE4E5B9)
    trigrams ^= trigrams >> np.uint64(32)
    trigrams += hashed[2:]
    trigrams *= np.uint64(0x94D049BB133111EB)
    trigrams ^= trigrams >> np.uint64(31)
    row = np.repeat(np.arange(len(cut.counts), dtype=np.uint64), cut.counts)
    # The lowest bits become the row, so that one sort groups equal trigrams of the same row.
    trigrams &= ~np.uint64(_ROWS - 1)
    trigrams |= row[:-2]
    keys = trigrams[row[:-2] == row[2:]]  # without those that reach into the next text
    keys.sort()
    repeated = keys[1:][keys[1:] == keys[:-1]] & np.uint64(_ROWS - 1)
    return np.bincount(repeated.astype(np.int64), minlength=len(cut.counts))


def _hashed(cut: _Cut) -> Hashes:
    """Hash each word, eight bytes at a time."""
    raw = cut.raw + bytes(8)
    eights = np.ndarray((len(cut.raw) + 1,), "<u8", raw, strides=(1,))
    starts = cut.starts * cut.size
    lengths = (np.flatnonzero(cut.lasts) + 1) * cut.size - starts
    hashed: Hashes = (eights[starts] & _MASKS[np.minimum(lengths, 8)]) + lengths.astype(np.uint64)
    hashed *= np.uint64(0xD6E8FEB86659FD93)
    hashed ^= hashed >> np.uint64(32)
    longer, offset = np.flatnonzero((lengths > 8) & (lengths <= _LONG)), 8
    while len(longer):
        eight_bytes = eights[starts[longer] + offset] & _MASKS[np.minimum(lengths[longer] - offset, 8)]
        mixed = (hashed[longer] + eight_bytes) * np.uint64(0xD6E8FEB86659FD93)
        hashed[longer] = mixed ^ (mixed >> np.uint64(32))
        offset += 8
        longer = longer[lengths[longer] > offset]
    for i in np.flatnonzero(lengths > _LONG):
        word = cut.raw[starts[i] : starts[i] + lengths[i]]
        hashed[i] = int.from_bytes(hashlib.blake2b(word, digest_size=8).digest())
    return hashed


@cache
def _kinds(words: Words) -> npt.NDArray[np.uint8]:
    """Return the kind of every code point for `split`: 0 space, 1 word, 2 punctuation."""
    code_points = "".join(map(chr, range(0x110000)))
    if words == "whitespace":
        spaces = [match.start() for match in re.finditer(r"\s", code_points)]
        kinds = np.ones(len(code_points), np.uint8)
        kinds[spaces] = 0
        return kinds
    kinds = np.zeros(len(code_points), np.uint8)
    for match in WORDPUNCT.finditer(code_points):
        is_word = regex.match(r"\w", match.group()) is not None
        kinds[match.start() : match.end()] = 1 if is_word else 2
    return kinds


@cache
def _plain_kinds(words: Words) -> bytes:
    return bytes(_kinds(words)[:256])


def drop_repeats(text: str) -> str:
    """Remove immediate repetitions from a text: `a a b c b c` becomes `a b c`.

    Words are those of `wordpunct`, compared exactly. Of consecutive copies of the whole text, or of a word, phrase or
    passage, one is kept. At the end of the text, an unfinished copy of three words or more is removed, too; and so is a
    repetition of the text's own beginning of three words or more. A text without such copies is returned as it is, without
    its outer white space.

    >>> drop_repeats("Call sort on it. Call sort on it. Call sort on")
    'Call sort on it.'
    """
    matches = list(WORDPUNCT.finditer(text))
    kept = _unrepeated([match.group() for match in matches])
    if len(kept) == len(matches):
        return text.strip()
    pieces = [matches[kept[0]].group()]
    for index in kept[1:]:
        # What was dropped before a word ends in the word that was kept, so the white space before it is kept as well.
        pieces += text[matches[index - 1].end() : matches[index].start()], matches[index].group()
    return "".join(pieces)


_BEGUN = 3
"""How many words of a copy at a text's end count as an unfinished copy; fewer may be chance."""


def _unrepeated(words: list[str]) -> list[int]:
    """Return the indices of the words that `drop_repeats` keeps."""
    count = len(words)
    # Copies of the whole text first: n copies of a text must give the same as the text itself.
    while count and 2 * (period := count - _overlap(words[:count])) <= count and _cut_short(count % period):
        count = period
    kept: list[int] = []
    positions: dict[str, list[int]] = {}  # for each word, its positions in `kept`
    run = begun = 0  # words of the last copy that was dropped; words of another copy that may have begun
    for i, word in enumerate(words[:count]):
        earlier = positions.setdefault(word, [])
        size = len(kept) + 1
        kept.append(i)
        periods = (size - 1 - position for position in reversed(earlier))
        earlier.append(size - 1)
        copied = next((p for p in periods if 2 * p <= size and _ends_in_copies(words, kept, p)), 0)
        if copied:
            for index in kept[-copied:]:
                positions[words[index]].pop()
            del kept[-copied:]
            run, begun = copied, 0
        elif run and words[kept[-1 - run]] == word:
            begun += 1
        else:
            run = begun = 0
    if _cut_short(begun):
        kept = kept[: len(kept) - begun]
    repeated = _overlap([words[index] for index in kept])
    return kept[: len(kept) - repeated] if _cut_short(repeated) else kept


def _cut_short(words: int) -> bool:
    return words == 0 or words >= _BEGUN


def _ends_in_copies(words: list[str], kept: list[int], period: int) -> bool:
    return all(words[kept[-j]] == words[kept[-j - period]] for j in range(1, period + 1))


def _overlap(words: list[str]) -> int:
    """Return the length of the longest proper suffix that is also a prefix (Knuth, Morris and Pratt 1977)."""
    borders = [0] * len(words)
    for i in range(1, len(words)):
        size = borders[i - 1]
        while size and words[i] != words[size]:
            size = borders[size - 1]
        borders[i] = size + (words[i] == words[size])
    return borders[-1] if borders else 0


def repetition(text: str, n: int = 4) -> float | None:
    """Return 1 − distinct n-grams / n-grams of words (RER Table 3); None for fewer than n words."""
    words = split(text)
    grams = [tuple(words[i : i + n]) for i in range(len(words) - n + 1)]
    return 1 - len(set(grams)) / len(grams) if grams else None
