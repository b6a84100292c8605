"""The searches of word-level attacks, each a coroutine: it asks, is told, and goes on, so that many share one model.

PWWS (Ren 2019), TextFooler (Jin 2020), BERT-Attack (Li 2020) and the genetic algorithm of Wang 2019, as TextAttack
0.3.11 puts them together: the same words, the same order of trying, the same constraints. Word lists, sentence
encoder and masked model are the user's.
"""

from __future__ import annotations

import math
import random
import re
from collections.abc import Callable, Generator, Sequence
from typing import Any, Literal, NamedTuple, TypeAlias

import numpy as np
import numpy.typing as npt

from seamcurate.contrast.lexicon import Vectors, WordNet

Method: TypeAlias = Literal["pwws", "textfooler", "bert_attack", "ga"]


class Ask(NamedTuple):
    """What a search needs to know next: rewards or embeddings of texts, or what a masked model would write."""

    kind: Literal["rewards", "embeddings", "words"]
    texts: list[str]
    span: tuple[int, int] = (0, 0)
    """For `words`: where in the text the word stands, in characters."""


Search: TypeAlias = Generator[Ask, Any, str]
"""Returns the text it ended with."""

_OUTER = "'-_*@"
_WORD = re.compile(rf"[\w{re.escape(_OUTER)}˗`×]+")
"""TextAttack's words: these marks belong to a word inside it, not around it."""
_UNKNOWN = "[UNK]"


class Text:
    """A text's words, and what stands between them."""

    def __init__(self, text: str) -> None:
        self.words: list[str] = []
        self.gaps: list[str] = []
        end = 0
        for piece in text.split():
            for found in _WORD.findall(piece.strip(_OUTER)):
                if word := found.strip(_OUTER):
                    start = text.index(word, end)
                    self.gaps.append(text[end:start])
                    self.words.append(word)
                    end = start + len(word)
        self.gaps.append(text[end:])

    def written(self, words: Sequence[str]) -> str:
        """Put other words into the same places."""
        return "".join(gap + word for gap, word in zip(self.gaps, words, strict=False)) + self.gaps[-1]

    def without(self, words: Sequence[str], at: int) -> str:
        """Leave one word out, and one of the spaces beside it unless nothing follows."""
        gaps = list(self.gaps)
        if at == 0:
            gaps[1] = gaps[1].removeprefix(" ")
        elif at < len(words) - 1 or gaps[-1]:
            gaps[at] = gaps[at].removesuffix(" ")
        shown = [*words[:at], "", *words[at + 1 :]]
        return "".join(gap + word for gap, word in zip(gaps, shown, strict=False)) + gaps[-1]

    def span(self, words: Sequence[str], at: int) -> tuple[int, int]:
        """Return where a word stands, in characters."""
        start = sum(map(len, self.gaps[: at + 1])) + sum(map(len, words[:at]))
        return start, start + len(words[at])

    def window(self, words: Sequence[str], at: int, size: int) -> str:
        """Return the text of `size` words around one."""
        first = max(0, min(at - (size - 1) // 2, len(words) - size))
        last = min(len(words), first + size)
        return "".join(
            word + (gap if i < last - 1 else "")
            for i, (word, gap) in enumerate(zip(words[first:last], self.gaps[first + 1 : last + 1], strict=True), first)
        )


class Lexicons(NamedTuple):
    """What words may stand for each other."""

    wordnet: WordNet | None
    vectors: Vectors | None
    stop_words: frozenset[str]
    neighbours: int
    """How many of the nearest words, or of a masked model's, are tried."""
    min_similarity: float


class Attempt:
    """One row's attack: what was asked, what it found, and when to stop.

    Attributes:
        seen: Reward of every text that the constraints allow, as it was queried.
        start: R(I∘text) − R(I∘r⁺) before any change.
        queries: Texts the reward model was asked about, probes and repetitions included, as TextAttack counts them.
    """

    def __init__(self, text: str, threshold: float, budget: int) -> None:
        self.text, self.threshold, self.budget = Text(text), threshold, budget
        self.original = list(self.text.words)
        self.seen: dict[str, float] = {}
        self.start = math.nan
        self.queries = 0
        self._known: dict[str, float] = {}

    @property
    def over(self) -> bool:
        """Tell whether the budget is spent."""
        return self.queries >= self.budget

    def score(self, texts: list[str], probes: bool = False) -> Generator[Ask, Any, npt.NDArray[np.float64]]:
        """Return R(I∘text) − R(I∘r⁺) of each, or of as many as the budget allows; probes are no candidates."""
        texts = texts[: self.budget - self.queries]
        self.queries += len(texts)
        new = [text for text in dict.fromkeys(texts) if text not in self._known]
        if new:
            rewards = yield Ask("rewards", new)
            self._known |= dict(zip(new, rewards, strict=True))
        if not probes:
            self.seen |= {text: self._known[text] for text in texts}
        return np.array([self._known[text] for text in texts]) - self.threshold

    def changeable(self, stop_words: frozenset[str]) -> list[int]:
        """Return the places of words that may be changed."""
        return [i for i, word in enumerate(self.original) if word not in stop_words]


def search(method: Method, attempt: Attempt, lexicons: Lexicons, seed: int) -> Search:
    """Look for a text whose reward exceeds the threshold; what is found stands in `attempt.seen`."""
    if method == "ga":
        return (yield from _genetic(attempt, _nearest_words(lexicons, "ga"), lexicons, random.Random(seed)))
    if method == "pwws":
        return (yield from _greedy(attempt, _synonyms(lexicons), lexicons, "saliency"))
    if method == "textfooler":
        return (yield from _greedy(attempt, _nearest_words(lexicons, "textfooler"), lexicons, "delete"))
    return (yield from _greedy(attempt, _masked_words(lexicons), lexicons, "unknown"))


# Which words may stand in a place: a coroutine from (attempt, words, place) to the changed word lists.

Swaps: TypeAlias = Callable[[Attempt, list[str], int], Generator[Ask, Any, list[list[str]]]]


def _synonyms(lexicons: Lexicons) -> Swaps:
    """WordNet's synonyms, without further constraint (PWWS)."""
    wordnet = lexicons.wordnet
    assert wordnet is not None

    def swaps(attempt: Attempt, words: list[str], at: int) -> Generator[Ask, Any, list[list[str]]]:
        return _changed(attempt, words, at, wordnet.synonyms(words[at]))
        yield

    return swaps


def _nearest_words(lexicons: Lexicons, method: Literal["textfooler", "ga"]) -> Swaps:
    """Neighbours among word vectors: near enough, and for TextFooler of the same part of speech and in a like sentence."""
    vectors, wordnet = lexicons.vectors, lexicons.wordnet
    assert vectors is not None

    def swaps(attempt: Attempt, words: list[str], at: int) -> Generator[Ask, Any, list[list[str]]]:
        word = words[at].lower()
        opposite = wordnet.antonyms(word) if wordnet else set()
        found = []
        for other in vectors.nearest(word, lexicons.neighbours):
            cosine = vectors.cosine(word, other) or 0.0
            # Wang 2019 bounds the squared distance of normalised vectors by .5, TextFooler the cosine.
            near = 2 - 2 * cosine <= 0.5 if method == "ga" else cosine >= 0.5
            if near and other not in opposite and (method == "ga" or _same_part(wordnet, word, other)):
                found.append(_in_case(other, words[at]))
        changed = _changed(attempt, words, at, found)
        if method == "ga":
            return _few_changes(attempt, changed, 0.2)
        if not changed or len(words) < _WINDOW:
            return changed
        windows = [attempt.text.window(one, at, _WINDOW) for one in [words, *changed]]
        return (yield from _alike(windows, changed, lexicons.min_similarity))

    return swaps


_WINDOW = 15
"""TextFooler compares so many words around a change, and no text that has fewer."""


def _masked_words(lexicons: Lexicons) -> Swaps:
    """Ask a masked language model what it would write in a word's place; two fifths of the words at most (BERT-Attack)."""

    def swaps(attempt: Attempt, words: list[str], at: int) -> Generator[Ask, Any, list[list[str]]]:
        (found,) = yield Ask("words", [attempt.text.written(words)], attempt.text.span(words, at))
        opposite = lexicons.wordnet.antonyms(words[at]) if lexicons.wordnet else set()
        # In capitals where the word was, for uncased models; the sentence encoder then decides.
        allowed = [_in_case(one, words[at]) for one in found if one.lower() not in opposite]
        changed = _few_changes(attempt, _changed(attempt, words, at, allowed), 0.4)
        if not changed:
            return changed
        texts = [attempt.text.written(one) for one in [attempt.original, *changed]]
        return (yield from _alike(texts, changed, lexicons.min_similarity))

    return swaps


def _changed(attempt: Attempt, words: list[str], at: int, others: Sequence[str]) -> list[list[str]]:
    """Put each other word in the place, in the order of the texts that come of it, as TextAttack tries them."""
    found = [[*words[:at], other, *words[at + 1 :]] for other in dict.fromkeys(others) if other != words[at]]
    return sorted(found, key=attempt.text.written)


def _few_changes(attempt: Attempt, changed: list[list[str]], share: float) -> list[list[str]]:
    most = math.ceil(share * len(attempt.original))
    return [one for one in changed if sum(a != b for a, b in zip(one, attempt.original, strict=True)) <= most]


def _alike(texts: list[str], changed: list[list[str]], least: float) -> Generator[Ask, Any, list[list[str]]]:
    """Keep what the sentence encoder finds near the first text."""
    first, *others = yield Ask("embeddings", texts)
    return [one for one, vector in zip(changed, others, strict=True) if float(first @ vector) >= least]


def _same_part(wordnet: WordNet | None, a: str, b: str) -> bool:
    """Tell whether two words share a part of speech; nouns and verbs may stand for each other, unknown words for all."""
    if wordnet is None:
        return True
    left, right = wordnet.parts_of_speech(a), wordnet.parts_of_speech(b)
    return not left or not right or bool(left & right) or {"n", "v"} <= left | right


def _in_case(word: str, like: str) -> str:
    if like.islower():
        return word.lower()
    if like.isupper() and len(like) > 1:
        return word.upper()
    return word.capitalize() if like[:1].isupper() and like[1:].islower() else word


# How they are tried.


def _greedy(
    attempt: Attempt, swaps: Swaps, lexicons: Lexicons, ranking: Literal["saliency", "delete", "unknown"]
) -> Search:
    """Change word after word, the weightiest first, each to what raises the reward most, until it exceeds the goal."""
    text, current = attempt.text, list(attempt.original)
    places = attempt.changeable(lexicons.stop_words)
    (best,) = yield from attempt.score([text.written(current)], probes=True)
    attempt.start = float(best)
    # No more than will be asked about: a long answer would be written out once for each of its words.
    probed = places[: attempt.budget - attempt.queries]
    if ranking == "delete":
        probes = [text.without(current, at) for at in probed]
    else:
        probes = [text.written([*current[:at], _UNKNOWN, *current[at + 1 :]]) for at in probed]
    weights = yield from attempt.score(probes, probes=True)
    if ranking == "saliency":
        gains = np.zeros(len(places))
        for i, at in enumerate(places):
            if attempt.over:
                break
            if changed := (yield from swaps(attempt, current, at)):
                gains[i] = (yield from attempt.score([text.written(one) for one in changed])).max()
        # In single precision, as torch's.
        salient = np.exp((weights - weights.max(initial=-np.inf)).astype(np.float32))
        weights = salient / salient.sum() * gains[: len(salient)]
    for at in [places[i] for i in (-weights).argsort()]:
        if attempt.over:
            break
        changed = yield from swaps(attempt, current, at)
        if not changed:
            continue
        scores = yield from attempt.score([text.written(one) for one in changed])
        if len(scores) and scores.max() > best:
            best, current = scores.max(), changed[int(scores.argmax())]
            if best > 0:
                break
    return text.written(current)


class _Member(NamedTuple):
    words: list[str]
    score: float
    left: list[int]
    """How often each word may still be replaced."""


_POPULATION, _GENERATIONS, _TEMPERATURE, _REPLACEMENTS = 60, 20, 0.3, 5
"""TextAttack's settings of Wang 2019."""


def _genetic(attempt: Attempt, swaps: Swaps, lexicons: Lexicons, draw: random.Random) -> Search:
    """Let a population of changed texts cross and mutate, the fitter the likelier, until one exceeds the goal."""
    text, places = attempt.text, attempt.changeable(lexicons.stop_words)
    (start,) = yield from attempt.score([text.written(attempt.original)], probes=True)
    attempt.start = float(start)

    def mutated(member: _Member, only: int | None = None) -> Generator[Ask, Any, _Member]:
        """Replace one word by what raises the reward most: the given one, or one drawn by how often it may be."""
        weights = [member.left[at] if at in allowed else 0 for at in range(len(member.words))]
        while any(weights) and not attempt.over:
            at = only if only is not None else draw.choices(range(len(weights)), weights)[0]
            changed = yield from swaps(attempt, member.words, at)
            scores = (yield from attempt.score([text.written(one) for one in changed])) if changed else np.zeros(0)
            if len(scores) and scores.max() > member.score:
                left = [*member.left[:at], member.left[at] - 1, *member.left[at + 1 :]]
                return _Member(changed[int(scores.argmax())], float(scores.max()), left)
            if only is not None:
                break
            weights[at] = 0
        return member

    allowed = set(places)
    first = _Member(list(attempt.original), float(start), [_REPLACEMENTS] * len(attempt.original))
    population = []
    for at in places[:_POPULATION]:
        population.append((yield from mutated(first, at)))
    for _ in range(_GENERATIONS):
        population.sort(key=lambda member: -member.score)
        if attempt.over or not population or population[0].score > 0:
            break
        scores = np.array([member.score for member in population])
        fitness = np.exp((scores - scores.max()) / _TEMPERATURE).tolist()
        children = []
        for _ in range(len(population) - 1):
            one, other = draw.choices(population, fitness, k=2)
            cut = draw.randrange(len(one.words))
            words, left = one.words[:cut] + other.words[cut:], one.left[:cut] + other.left[cut:]
            if not _few_changes(attempt, [words], 0.2):
                words, left = one.words, one.left
            score = yield from attempt.score([text.written(words)])
            if not len(score):
                break
            children.append((yield from mutated(_Member(words, float(score[0]), left))))
        population = [population[0], *children]
    best = max(population, key=lambda member: member.score, default=first)
    return text.written(best.words)
