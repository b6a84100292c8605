"""Read lexicons for word-level attacks from the user's files: synonyms, antonyms, neighbours, stop words.

Nothing is downloaded. Where a file is missing, the error says which attack needs it and where to get it.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from functools import lru_cache
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pyarrow.parquet as pq

from seamcurate.errors import StepError, first_line
from seamcurate.models.vectors import normalised
from seamcurate.storage.hashes import sha256

_FILES = {"noun": "n", "verb": "v", "adj": "a", "adv": "r"}
_ENDINGS = {
    "noun": ("s:", "ses:s", "ves:f", "xes:x", "zes:z", "ches:ch", "shes:sh", "men:man", "ies:y"),
    "verb": ("s:", "ies:y", "es:e", "es:", "ed:e", "ed:", "ing:e", "ing:"),
    "adj": ("er:", "est:", "er:e", "est:e"),
    "adv": (),
}
"""WordNet's rules of detachment (morphy)."""
_ANTONYM = "!"


class WordNet:
    """Synonyms and parts of speech from WordNet 3.0's own files, or from Parquet with `word`, `synonym` and `pos`.

    The Parquet form has no antonyms: a table with `word`, `other`, `relation` adds those whose relation is `antonym`.
    """

    def __init__(self, path: str, antonyms: str | None = None) -> None:
        self._synonyms: dict[str, dict[str, list[str]]] = {}
        self._antonyms: dict[str, set[str]] = {}
        self._folder: _Files | None = None
        try:
            if Path(path).is_dir():
                self._folder = _Files(Path(path))
            else:
                table = pq.read_table(path, columns=["word", "pos", "synonym"])
                for word, pos, synonym in zip(*(column.to_pylist() for column in table.columns), strict=True):
                    self._synonyms.setdefault(word.lower(), {}).setdefault(pos, []).append(synonym)
            if antonyms is not None:
                table = pq.read_table(antonyms, columns=["word", "other", "relation"])
                for word, opposite, relation in zip(*(column.to_pylist() for column in table.columns), strict=True):
                    if relation.startswith("antonym"):
                        self._antonyms.setdefault(word.lower(), set()).add(opposite.lower())
                        self._antonyms.setdefault(opposite.lower(), set()).add(word.lower())
        except (OSError, ValueError, KeyError) as error:
            raise StepError(f"lexicon {path}: {first_line(error)}; {WHERE_WORDNET}") from error

    def synonyms(self, word: str) -> list[str]:
        """Return the single words that share a meaning with this one, sorted; never an antonym."""
        lower = word.lower()
        candidates = self._folder.synonyms(lower) if self._folder else self._listed(lower)
        return sorted(
            candidate for candidate in candidates if candidate != word and candidate.lower() not in self.antonyms(lower)
        )

    def antonyms(self, word: str) -> set[str]:
        """Return the words of opposite meaning."""
        lower = word.lower()
        return self._antonyms.get(lower, set()) | (self._folder.antonyms(lower) if self._folder else set())

    def parts_of_speech(self, word: str) -> set[str]:
        """Return which of n, v, a, r a word can be; empty if it is unknown."""
        lower = word.lower()
        return self._folder.parts_of_speech(lower) if self._folder else set(self._synonyms.get(lower, {}))

    def _listed(self, word: str) -> set[str]:
        return {
            synonym for synonyms in self._synonyms.get(word, {}).values() for synonym in synonyms if synonym.isalnum()
        }


class _Files:
    """Read WordNet's own files: `index.*`, `data.*` and `*.exc`."""

    def __init__(self, folder: Path) -> None:
        self.index: dict[str, dict[str, list[int]]] = {}
        self.exceptions: dict[str, dict[str, list[str]]] = {}
        self.data: dict[str, bytes] = {}
        for pos in _FILES:
            lines = (folder / f"index.{pos}").read_text(encoding="utf-8").splitlines()
            entries = (line.split() for line in lines if not line.startswith(" "))
            self.index[pos] = {parts[0]: [int(offset) for offset in parts[-int(parts[2]) :]] for parts in entries}
            exceptions = folder / f"{pos}.exc"
            texts = exceptions.read_text(encoding="utf-8").splitlines() if exceptions.exists() else []
            self.exceptions[pos] = {line.split()[0]: line.split()[1:] for line in texts if line.strip()}
            self.data[pos] = (folder / f"data.{pos}").read_bytes()

    def parts_of_speech(self, word: str) -> set[str]:
        return {mark for pos, mark in _FILES.items() if self._bases(word, pos)}

    def synonyms(self, word: str) -> set[str]:
        return {
            lemma
            for pos, offset in self._meanings(word)
            for lemma in self._entry(pos, offset)[0]
            if "_" not in lemma and lemma.lower() != word
        }

    def antonyms(self, word: str) -> set[str]:
        words: set[str] = set()
        for pos, offset in self._meanings(word):
            for other_pos, other_offset in self._entry(pos, offset)[1]:
                words |= {lemma.lower() for lemma in self._entry(other_pos, other_offset)[0]}
        return words

    def _meanings(self, word: str) -> Iterator[tuple[str, int]]:
        for pos in _FILES:
            for base in self._bases(word, pos):
                yield from ((pos, offset) for offset in self.index[pos][base])

    def _bases(self, word: str, pos: str) -> list[str]:
        """Return the dictionary forms of a word: from the exceptions, else by the rules of detachment."""
        index, exceptions = self.index[pos], self.exceptions[pos].get(word)
        bases = [form for form in [word, *(exceptions or [])] if form in index]
        if exceptions is None:
            for rule in _ENDINGS[pos]:
                ending, _, instead = rule.partition(":")
                base = word[: -len(ending)] + instead
                if word.endswith(ending) and base in index:
                    bases.append(base)
        return list(dict.fromkeys(bases))

    @lru_cache(maxsize=100_000)  # noqa: B019 - lives as long as the lexicon
    def _entry(self, pos: str, offset: int) -> tuple[tuple[str, ...], tuple[tuple[str, int], ...]]:
        """Return a synset's words and the synsets of its antonyms."""
        end = self.data[pos].index(b"\n", offset)
        parts = self.data[pos][offset:end].split(b"|")[0].decode().split()
        count = int(parts[3], 16)
        # An adjective's marker of position, as in galore(ip), does not belong to the word.
        lemmas = tuple(parts[4 + 2 * i].split("(")[0] for i in range(count))
        start = 4 + 2 * count
        names = {mark: name for name, mark in _FILES.items()} | {"s": "adj"}
        pointers = [parts[start + 1 + 4 * i : start + 5 + 4 * i] for i in range(int(parts[start]))]
        return lemmas, tuple((names[p[2]], int(p[1])) for p in pointers if p[0] == _ANTONYM)


class Vectors:
    """Read word vectors in the text form of GloVe and counter-fitted PARAGRAM: a word and its numbers on each line."""

    def __init__(self, path: str) -> None:
        words: list[str] = []
        rows: list[npt.NDArray[np.float32]] = []
        try:
            with Path(path).open(encoding="utf-8") as file:
                for line in file:
                    word, _, numbers = line.rstrip().partition(" ")
                    row = np.array(numbers.split(" "), np.float32)
                    # word2vec's text form starts with a line of its size.
                    if len(row) > 1:
                        words.append(word)
                        rows.append(row)
            matrix = np.stack(rows)  # (words, dimensions)
        except (OSError, ValueError) as error:
            raise StepError(f"word vectors {path}: {first_line(error)}; {WHERE_VECTORS}") from error
        # The rows go first: published vectors take gigabytes.
        rows.clear()
        self._matrix = normalised(matrix)
        self._words, self._place = words, {word: i for i, word in enumerate(words)}
        self.nearest = lru_cache(maxsize=50_000)(self._nearest)

    def cosine(self, word: str, other_word: str) -> float | None:
        """Return the cosine of two words, None where one is unknown."""
        row, other_row = self._place.get(word), self._place.get(other_word)
        return None if row is None or other_row is None else float(self._matrix[row] @ self._matrix[other_row])

    def _nearest(self, word: str, count: int) -> list[str]:
        """Return the words nearest to a word, nearest first; none if the word is unknown."""
        row = self._place.get(word)
        if row is None:
            return []
        near = self._matrix @ self._matrix[row]
        near[row] = -np.inf
        candidates = np.argpartition(-near, min(count, len(near) - 1))[:count]
        return [self._words[i] for i in candidates[np.argsort(-near[candidates], kind="stable")]]


def identity(path: str) -> str:
    """Return the hash of a lexicon's file, or of a folder's files."""
    lexicon = Path(path)
    if not lexicon.exists():
        raise StepError(f"lexicon {path} is not there; check the path")
    try:
        if lexicon.is_file():
            return sha256(lexicon)
        names = sorted(file.name for pos in _FILES for file in lexicon.glob(f"*{pos}*") if file.is_file())
        return hashlib.sha256("".join(name + sha256(lexicon / name) for name in names).encode()).hexdigest()
    except OSError as error:
        raise StepError(f"lexicon {path} cannot be read: {error.strerror}; check the file") from error


WHERE_WORDNET = (
    "give a folder with WordNet 3.0's files, such as /usr/share/wordnet of Debian's package wordnet-base, "
    "or a Parquet file of word, pos, synonym"
)
WHERE_VECTORS = (
    "give a text file with a word and its numbers a line, such as GloVe or the counter-fitted PARAGRAM vectors "
    "(github.com/nmrksic/counter-fitting)"
)
