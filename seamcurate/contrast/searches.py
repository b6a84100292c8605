"""The searches of word-level attacks. Each is a coroutine that yields questions to a model, so that many share one batch.

PWWS (Ren 2019), TextFooler (Jin 2020), BERT-Attack (Li 2020) and the genetic algorithm of Wang 2019 are composed as in
TextAttack 0.3.11: the same words, the same order, the same constraints. The user provides word lists, sentence encoder and
masked model.
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

WordMethod: TypeAlias = Literal["pwws", "textfooler", "bert_attack", "ga"]


class Ask(NamedTuple):
    """A question of a search: rewards or embeddings of texts, a masked model's words, or a generator's answers to prompts."""

    kind: Literal["rewards", "embeddings", "words", "samples"]
    texts: list[str]
    span: tuple[int, int] = (0, 0)
    """For `words`: the start and end of the word in the text, in characters. For `samples`: the first draw, and the one after
    the last; each prompt has one."""


Search: TypeAlias = Generator[Ask, Any, str]
"""A coroutine that yields questions, is sent the answers, and returns the text that it ended with."""

_OUTER = "'-_*@"
_WORD = re.compile(rf"[\w{re.escape(_OUTER)}˗`×]+")
"""TextAttack's words: these marks belong to a word when they are inside it, not when they surround it."""
_UNKNOWN = "[UNK]"


class Text:
    """A text's words, and the gaps around them: one gap more than words."""

    def __init__(self, text: str) -> None:
        self.words: list[str] = []
        self.gaps: list[str] = []
        end = 0
        for piece in text.split():
            for match in _WORD.findall(piece.strip(_OUTER)):
                if word := match.strip(_OUTER):
                    start = text.index(word, end)
                    self.gaps.append(text[end:start])
                    self.words.append(word)
                    end = start + len(word)
        self.gaps.append(text[end:])

    def written(self, words: Sequence[str]) -> str:
        """Return the text with other words in the same positions."""
        return "".join(gap + word for gap, word in zip(self.gaps, words, strict=False)) + self.gaps[-1]

    def without(self, words: Sequence[str], position: int) -> str:
        """Return the text without one word, and without one of the spaces beside it unless the word is the last."""
        gaps = list(self.gaps)
        if position == 0:
            gaps[1] = gaps[1].removeprefix(" ")
        elif position < len(words) - 1 or gaps[-1]:
            gaps[position] = gaps[position].removesuffix(" ")
        shown = [*words[:position], "", *words[position + 1 :]]
        return "".join(gap + word for gap, word in zip(gaps, shown, strict=False)) + gaps[-1]

    def span(self, words: Sequence[str], position: int) -> tuple[int, int]:
        """Return where a word starts and ends, in characters."""
        start = sum(map(len, self.gaps[: position + 1])) + sum(map(len, words[:position]))
        return start, start + len(words[position])

    def window(self, words: Sequence[str], position: int, size: int) -> str:
        """Return the text of `size` words around one."""
        start = max(0, min(position - (size - 1) // 2, len(words) - size))
        end = min(len(words), start + size)
        return "".join(
            word + (gap if i < end - 1 else "")
            for i, (word, gap) in enumerate(zip(words[start:end], self.gaps[start + 1 : end + 1], strict=True), start)
        )


class Lexicons(NamedTuple):
    """Hold the sources of replacement words, and their limits."""

    wordnet: WordNet | None
    vectors: Vectors | None
    stop_words: frozenset[str]
    neighbours: int
    """How many of the nearest words, or of a masked model's words, are tried."""
    min_similarity: float
    """The least cosine between the sentence embeddings of a text and its change."""


class Attempt:
    """One row's attack: the queries, the rewards, and the budget.

    Attributes:
        seen: The reward of every queried text that the constraints allow, in the order of the queries.
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
        """Return the positions of words that may be changed."""
        return [i for i, word in enumerate(self.original) if word not in stop_words]


def search(method: WordMethod, attempt: Attempt, lexicons: Lexicons, seed: int) -> Search:
    """Search for a text whose reward exceeds the threshold; every candidate is added to `attempt.seen`."""
    if method == "ga":
        return (yield from _genetic(attempt, _nearest_words(lexicons, "ga"), lexicons, random.Random(seed)))
    if method == "pwws":
        return (yield from _greedy(attempt, _synonyms(lexicons), lexicons, "saliency"))
    if method == "textfooler":
        return (yield from _greedy(attempt, _nearest_words(lexicons, "textfooler"), lexicons, "delete"))
    return (yield from _greedy(attempt, _masked_words(lexicons), lexicons, "unknown"))


# Which words may replace a word: a coroutine from (attempt, words, position) to the changed lists of words.

Swaps: TypeAlias = Callable[[Attempt, list[str], int], Generator[Ask, Any, list[list[str]]]]


def _synonyms(lexicons: Lexicons) -> Swaps:
    """Replace a word by WordNet's synonyms, without further constraint (PWWS)."""
    wordnet = lexicons.wordnet
    assert wordnet is not None

    def swaps(attempt: Attempt, words: list[str], position: int) -> Generator[Ask, Any, list[list[str]]]:
        return _changed(attempt, words, position, wordnet.synonyms(words[position]))
        yield

    return swaps


def _nearest_words(lexicons: Lexicons, method: Literal["textfooler", "ga"]) -> Swaps:
    """Replace a word by near word vectors; TextFooler also demands the same part of speech and a similar sentence."""
    vectors, wordnet = lexicons.vectors, lexicons.wordnet
    assert vectors is not None

    def swaps(attempt: Attempt, words: list[str], position: int) -> Generator[Ask, Any, list[list[str]]]:
        word = words[position].lower()
        opposite = wordnet.antonyms(word) if wordnet else set()
        candidates = []
        for neighbour in vectors.nearest(word, lexicons.neighbours):
            cosine = vectors.cosine(word, neighbour) or 0.0
            # Wang 2019 bounds the squared distance of normalised vectors by .5, TextFooler the cosine.
            near = 2 - 2 * cosine <= 0.5 if method == "ga" else cosine >= 0.5
            if near and neighbour not in opposite and (method == "ga" or same_part(wordnet, word, neighbour)):
                candidates.append(_in_case(neighbour, words[position]))
        changed = _changed(attempt, words, position, candidates)
        if method == "ga":
            return _few_changes(attempt, changed, 0.2)
        if not changed or len(words) < _WINDOW:
            return changed
        windows = [attempt.text.window(text_words, position, _WINDOW) for text_words in [words, *changed]]
        return (yield from _alike(windows, changed, lexicons.min_similarity))

    return swaps


_WINDOW = 15
"""TextFooler compares this many words around a change, and does not compare shorter texts."""


def _masked_words(lexicons: Lexicons) -> Swaps:
    """Replace a word by what a masked language model would write; at most two fifths of the words change (BERT-Attack)."""

    def swaps(attempt: Attempt, words: list[str], position: int) -> Generator[Ask, Any, list[list[str]]]:
        (likely_words,) = yield Ask("words", [attempt.text.written(words)], attempt.text.span(words, position))
        opposite = lexicons.wordnet.antonyms(words[position]) if lexicons.wordnet else set()
        # Uncased models write in lower case: a replacement takes the word's case before the sentence encoder compares texts.
        allowed = [
            _in_case(candidate, words[position]) for candidate in likely_words if candidate.lower() not in opposite
        ]
        changed = _few_changes(attempt, _changed(attempt, words, position, allowed), 0.4)
        if not changed:
            return changed
        texts = [attempt.text.written(candidate) for candidate in [attempt.original, *changed]]
        return (yield from _alike(texts, changed, lexicons.min_similarity))

    return swaps


def _changed(attempt: Attempt, words: list[str], position: int, words_to_try: Sequence[str]) -> list[list[str]]:
    """Return the words with each replacement in the position, sorted by their texts, as TextAttack tries them."""
    candidates = [
        [*words[:position], word, *words[position + 1 :]]
        for word in dict.fromkeys(words_to_try)
        if word != words[position]
    ]
    return sorted(candidates, key=attempt.text.written)


def _few_changes(attempt: Attempt, changed: list[list[str]], share: float) -> list[list[str]]:
    limit = math.ceil(share * len(attempt.original))
    return [
        candidate
        for candidate in changed
        if sum(word != original for word, original in zip(candidate, attempt.original, strict=True)) <= limit
    ]


def _alike(texts: list[str], changed: list[list[str]], min_similarity: float) -> Generator[Ask, Any, list[list[str]]]:
    """Return the changes whose sentence embedding is near that of the first text."""
    reference, *vectors = yield Ask("embeddings", texts)
    return [
        candidate
        for candidate, vector in zip(changed, vectors, strict=True)
        if float(reference @ vector) >= min_similarity
    ]


def same_part(wordnet: WordNet | None, word: str, other_word: str) -> bool:
    """Tell whether two words share a part of speech; nouns may replace verbs and verbs nouns, unknown words any word."""
    if wordnet is None:
        return True
    parts, other_parts = wordnet.parts_of_speech(word), wordnet.parts_of_speech(other_word)
    return not parts or not other_parts or bool(parts & other_parts) or {"n", "v"} <= parts | other_parts


def _in_case(word: str, like: str) -> str:
    if like.islower():
        return word.lower()
    if like.isupper() and len(like) > 1:
        return word.upper()
    return word.capitalize() if like[:1].isupper() and like[1:].islower() else word


# In which order words are replaced.


def _greedy(
    attempt: Attempt, swaps: Swaps, lexicons: Lexicons, ranking: Literal["saliency", "delete", "unknown"]
) -> Search:
    """Change one word after another, the most important first, each to the word that raises the reward most."""
    text, current = attempt.text, list(attempt.original)
    positions = attempt.changeable(lexicons.stop_words)
    (best,) = yield from attempt.score([text.written(current)], probes=True)
    attempt.start = float(best)
    # Only as many probes as the budget allows: a long answer has one probe text for each of its words.
    probed = positions[: attempt.budget - attempt.queries]
    if ranking == "delete":
        probes = [text.without(current, position) for position in probed]
    else:
        probes = [text.written([*current[:position], _UNKNOWN, *current[position + 1 :]]) for position in probed]
    weights = yield from attempt.score(probes, probes=True)
    if ranking == "saliency":
        gains = np.zeros(len(positions))
        for i, position in enumerate(positions):
            if attempt.over:
                break
            if changed := (yield from swaps(attempt, current, position)):
                gains[i] = (yield from attempt.score([text.written(candidate) for candidate in changed])).max()
        # In single precision, as TextAttack computes it with torch.
        salient = np.exp((weights - weights.max(initial=-np.inf)).astype(np.float32))
        weights = salient / salient.sum() * gains[: len(salient)]
    for position in [positions[i] for i in (-weights).argsort()]:
        if attempt.over:
            break
        changed = yield from swaps(attempt, current, position)
        if not changed:
            continue
        scores = yield from attempt.score([text.written(candidate) for candidate in changed])
        if len(scores) and scores.max() > best:
            best, current = scores.max(), changed[int(scores.argmax())]
            if best > 0:
                break
    return text.written(current)


class _Member(NamedTuple):
    words: list[str]
    score: float
    left: list[int]
    """How often each word may still be replaced, by position."""


_POPULATION, _GENERATIONS, _TEMPERATURE, _REPLACEMENTS = 60, 20, 0.3, 5
"""TextAttack's settings of Wang 2019."""


def _genetic(attempt: Attempt, swaps: Swaps, lexicons: Lexicons, draw: random.Random) -> Search:
    """Let changed texts cross and mutate, fitter ones more often, until one exceeds the goal (Wang 2019)."""
    text, positions = attempt.text, attempt.changeable(lexicons.stop_words)
    (start,) = yield from attempt.score([text.written(attempt.original)], probes=True)
    attempt.start = float(start)

    def mutated(member: _Member, fixed_position: int | None = None) -> Generator[Ask, Any, _Member]:
        """Replace the word that raises the reward most: at `fixed_position`, or at random, weighted by replacements left."""
        weights = [member.left[position] if position in allowed else 0 for position in range(len(member.words))]
        while any(weights) and not attempt.over:
            position = fixed_position if fixed_position is not None else draw.choices(range(len(weights)), weights)[0]
            changed = yield from swaps(attempt, member.words, position)
            scores = (
                (yield from attempt.score([text.written(candidate) for candidate in changed]))
                if changed
                else np.zeros(0)
            )
            if len(scores) and scores.max() > member.score:
                replacements_left = [*member.left[:position], member.left[position] - 1, *member.left[position + 1 :]]
                return _Member(changed[int(scores.argmax())], float(scores.max()), replacements_left)
            if fixed_position is not None:
                break
            weights[position] = 0
        return member

    allowed = set(positions)
    unchanged = _Member(list(attempt.original), float(start), [_REPLACEMENTS] * len(attempt.original))
    population = []
    for position in positions[:_POPULATION]:
        population.append((yield from mutated(unchanged, position)))
    for _ in range(_GENERATIONS):
        population.sort(key=lambda member: -member.score)
        if attempt.over or not population or population[0].score > 0:
            break
        scores = np.array([member.score for member in population])
        fitness = np.exp((scores - scores.max()) / _TEMPERATURE).tolist()
        children = []
        for _ in range(len(population) - 1):
            parent, mate = draw.choices(population, fitness, k=2)
            cut = draw.randrange(len(parent.words))
            words, replacements_left = parent.words[:cut] + mate.words[cut:], parent.left[:cut] + mate.left[cut:]
            if not _few_changes(attempt, [words], 0.2):
                words, replacements_left = parent.words, parent.left
            score = yield from attempt.score([text.written(words)])
            if not len(score):
                break
            children.append((yield from mutated(_Member(words, float(score[0]), replacements_left))))
        population = [population[0], *children]
    best = max(population, key=lambda member: member.score, default=unchanged)
    return text.written(best.words)
