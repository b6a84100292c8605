"""Words of texts, a column at a time: how many there are, and how many of their trigrams repeat.

A word begins where the kind of character changes, and is compared by a 64-bit hash; a row's trigrams are compared by
56 bits of theirs. That two different ones in a row of a thousand words are taken for one happens once in a hundred
billion rows.
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
"""NLTK's `wordpunct_tokenize` as its releases from 3.10 on compile it: `regex` counts vowel signs and other combining marks
among the letters of a word, where Python's `re` cuts Hindi, Thai, Tamil or vocalised Arabic at each of them."""
_ROWS = 2048
_BYTES = 2**20
_LONG = 256
_MASKS = np.array([2 ** (8 * n) - 1 for n in range(9)], np.uint64)


def split(text: str, words: Words = "wordpunct") -> list[str]:
    """Split one text: into runs of letters and of punctuation, as the RER authors' code, or at white space."""
    return [match.group() for match in WORDPUNCT.finditer(text)] if words == "wordpunct" else text.split()


def counts(texts: pa.StringArray, words: Words = "wordpunct") -> Indices:
    """Count the words of each text; a NULL has none."""
    found = np.zeros(len(texts), np.int64)
    for rows, part in _parts(texts):
        found[rows] = _cut(part, words).counts
    return found


def distinct_trigrams(texts: pa.StringArray, words: Words = "wordpunct") -> npt.NDArray[np.float64]:
    """Return, for each text, its distinct word trigrams / its word trigrams; 1 where it has none."""
    found = np.ones(len(texts))
    for rows, part in _parts(texts):
        cut = _cut(part, words)
        trigrams = np.maximum(cut.counts - 2, 0)
        some = trigrams > 0
        found[rows[some]] = ((trigrams - _repeats(cut)) / np.maximum(trigrams, 1))[some]
    return found


class _Cut(NamedTuple):
    """Where the words of several texts lie."""

    raw: bytes
    """The texts end to end."""
    size: int
    """Bytes a character."""
    starts: Indices
    """Each word's first character."""
    lasts: npt.NDArray[np.bool_]
    """Whether a character is its word's last."""
    counts: Indices
    """How many words each text has."""


def _parts(texts: pa.StringArray) -> Iterator[tuple[Indices, pa.LargeStringArray]]:
    """Cut a column into parts whose arrays stay in the cache, texts of one-byte characters apart from the others."""
    whole = pc.fill_null(texts, "").cast(pa.large_string())
    plain = pc.string_is_ascii(whole).to_numpy(zero_copy_only=False)
    for rows in (np.flatnonzero(plain), np.flatnonzero(~plain)):
        some = whole.take(pa.array(rows))
        ends = np.cumsum(pc.binary_length(some).to_numpy(zero_copy_only=False))
        start = 0
        while start < len(rows):
            before = ends[start - 1] if start else 0
            end = min(start + _ROWS, max(start + 1, int(np.searchsorted(ends, before + _BYTES))))
            yield rows[start:end], some.slice(start, end - start)
            start = end


def _cut(texts: pa.LargeStringArray, words: Words) -> _Cut:
    offsets = np.frombuffer(texts.buffers()[1], np.int64)[texts.offset : texts.offset + len(texts) + 1]
    raw, size = texts.buffers()[2][int(offsets[0]) : int(offsets[-1])].to_pybytes(), 1
    bounds = offsets - offsets[0]
    if raw.isascii():
        kinds = np.frombuffer(raw.translate(_plain_kinds(words)), np.uint8)
    else:
        raw, size = raw.decode().encode("utf-32-le"), 4
        bounds = np.concatenate([[0], np.cumsum(pc.utf8_length(texts).to_numpy(zero_copy_only=False))])
        kinds = _kinds(words)[np.frombuffer(raw, np.uint32)]
    changes = np.ones(len(kinds) + 1, bool)
    np.not_equal(kinds[1:], kinds[:-1], out=changes[1:-1])
    # A text begins anew even where it goes on as the last one ended.
    changes[bounds] = True
    inside = kinds != 0
    starts = np.flatnonzero(changes[:-1] & inside)
    return _Cut(raw, size, starts, changes[1:] & inside, np.diff(np.searchsorted(starts, bounds)))


def _repeats(cut: _Cut) -> Indices:
    """Count, for each text, the trigrams that occurred in it before."""
    if len(cut.starts) < 3:
        return np.zeros(len(cut.counts), np.int64)
    hashed = _hashed(cut)
    three = hashed[:-2] * np.uint64(0x9E3779B97F4A7C15) + hashed[1:-1]
    three *= np.uint64(0xBF58476D1CE4E5B9)
    three ^= three >> np.uint64(32)
    three += hashed[2:]
    three *= np.uint64(0x94D049BB133111EB)
    three ^= three >> np.uint64(31)
    row = np.repeat(np.arange(len(cut.counts), dtype=np.uint64), cut.counts)
    three &= ~np.uint64(_ROWS - 1)
    three |= row[:-2]
    keys = three[row[:-2] == row[2:]]
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
    longer, done = np.flatnonzero((lengths > 8) & (lengths <= _LONG)), 8
    while len(longer):
        more = eights[starts[longer] + done] & _MASKS[np.minimum(lengths[longer] - done, 8)]
        mixed = (hashed[longer] + more) * np.uint64(0xD6E8FEB86659FD93)
        hashed[longer] = mixed ^ (mixed >> np.uint64(32))
        done += 8
        longer = longer[lengths[longer] > done]
    for i in np.flatnonzero(lengths > _LONG):
        word = cut.raw[starts[i] : starts[i] + lengths[i]]
        hashed[i] = int.from_bytes(hashlib.blake2b(word, digest_size=8).digest())
    return hashed


@cache
def _kinds(words: Words) -> npt.NDArray[np.uint8]:
    """Give every code point its kind, as `split` sees it: 0 space, 1 word, 2 punctuation."""
    everything = "".join(map(chr, range(0x110000)))
    if words == "whitespace":
        spaces = [match.start() for match in re.finditer(r"\s", everything)]
        kinds = np.ones(len(everything), np.uint8)
        kinds[spaces] = 0
        return kinds
    kinds = np.zeros(len(everything), np.uint8)
    for match in WORDPUNCT.finditer(everything):
        is_word = regex.match(r"\w", match.group()) is not None
        kinds[match.start() : match.end()] = 1 if is_word else 2
    return kinds


@cache
def _plain_kinds(words: Words) -> bytes:
    return bytes(_kinds(words)[:256])


def drop_repeats(text: str) -> str:
    """Leave out what a text says again right after it said it: `a a b c b c` becomes `a b c`.

    Words are those of `wordpunct`, compared as they stand. Copies of the whole text come down to one, and so do copies of
    any word, phrase or passage that follow each other. At the end of the text, three words or more of another copy are
    left out too, and so is the text's own beginning where three words or more of it are said again. A text without such
    copies is returned as it is, outer white space apart.

    >>> drop_repeats("Call sort on it. Call sort on it. Call sort on")
    'Call sort on it.'
    """
    matches = list(WORDPUNCT.finditer(text))
    kept = _unrepeated([match.group() for match in matches])
    if len(kept) == len(matches):
        return text.strip()
    pieces = [matches[kept[0]].group()]
    for place in kept[1:]:
        # What was dropped ends in the word that was kept before, so this gap is that word's own.
        pieces += text[matches[place - 1].end() : matches[place].start()], matches[place].group()
    return "".join(pieces)


_BEGUN = 3
"""So many words of a copy at a text's end are a copy cut short; fewer are chance."""


def _unrepeated(words: list[str]) -> list[int]:
    """Return the places of the words that `drop_repeats` keeps."""
    count = len(words)
    # Whole copies first: of n copies of any text, whatever is in it, the same is left as of the text itself.
    while count and 2 * (period := count - _overlap(words[:count])) <= count and _cut_short(count % period):
        count = period
    kept: list[int] = []
    places: dict[str, list[int]] = {}
    run = begun = 0
    for i, word in enumerate(words[:count]):
        before = places.setdefault(word, [])
        size = len(kept) + 1
        kept.append(i)
        periods = (size - 1 - place for place in reversed(before))
        before.append(size - 1)
        copied = next((p for p in periods if 2 * p <= size and _ends_in_copies(words, kept, p)), 0)
        if copied:
            for place in kept[-copied:]:
                places[words[place]].pop()
            del kept[-copied:]
            run, begun = copied, 0
        elif run and words[kept[-1 - run]] == word:
            begun += 1
        else:
            run = begun = 0
    if _cut_short(begun):
        kept = kept[: len(kept) - begun]
    again = _overlap([words[place] for place in kept])
    return kept[: len(kept) - again] if _cut_short(again) else kept


def _cut_short(words: int) -> bool:
    return words == 0 or words >= _BEGUN


def _ends_in_copies(words: list[str], kept: list[int], period: int) -> bool:
    return all(words[kept[-j]] == words[kept[-j - period]] for j in range(1, period + 1))


def _overlap(words: list[str]) -> int:
    """Return how many of the last words are the first ones too, all of them apart (Knuth, Morris and Pratt 1977)."""
    borders = [0] * len(words)
    for i in range(1, len(words)):
        size = borders[i - 1]
        while size and words[i] != words[size]:
            size = borders[size - 1]
        borders[i] = size + (words[i] == words[size])
    return borders[-1] if borders else 0


def repetition(text: str, n: int = 4) -> float | None:
    """Return 1 − distinct n-grams / n-grams of words (RER Table 3); None for fewer than n words."""
    some = split(text)
    grams = [tuple(some[i : i + n]) for i in range(len(some) - n + 1)]
    return 1 - len(set(grams)) / len(grams) if grams else None
