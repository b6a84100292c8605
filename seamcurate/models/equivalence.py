"""Whether two models give the same scores, from the numbers alone, and what a difference looks like.

A text's score is a tuple: a reward and its further outputs, or a log-probability per token. None stands for no score.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Literal, NamedTuple, TypeAlias

import numpy as np
import numpy.typing as npt
from pydantic import JsonValue

Scores: TypeAlias = tuple[float, ...]
Decision: TypeAlias = Literal["same", "accepted", "differs", "not compared"]

_SINGLE = 1e-4
"""What single precision may change of a score of size 1, see METHOD: one batch against another moves scores by less."""
_STEADY = 0.1
"""The share of the scores' standard deviation by which a server may differ from itself."""
_EXPLAINED = 0.05
"""The share of a difference that a cause may leave over."""
_ENOUGH = 8
"""Texts from which a standard deviation, or a line through their scores, says something."""


class Comparison(NamedTuple):
    """What came of comparing a served model, with another or with itself."""

    decision: Decision
    texts: int
    """Texts that have a score on both sides."""
    only_here: int
    """Texts without a score there."""
    only_there: int
    differences: Scores
    """The largest difference of each number of a score."""
    floors: Scores
    """What rounding and the texts that are asked together change, of each number."""
    cause: str | None = None
    """The likely cause of a difference."""

    def facts(self) -> dict[str, JsonValue]:
        """Return the comparison as a column's facts keep it."""
        return {
            "decision": self.decision,
            "texts": self.texts,
            "only_here": self.only_here,
            "only_there": self.only_there,
            "differences": list(self.differences),
            "floors": list(self.floors),
            "cause": self.cause,
        }


def differences(here: Sequence[Scores | None], there: Sequence[Scores | None]) -> Scores:
    """Return the largest difference of each number over the texts that both sides score; numbers that are NaN in both agree.

    Example:
        >>> differences([(1.0, 0.5), None, (2.0, 0.0)], [(1.25, 0.5), (3.0, 0.0), (2.0, -1.0)])
        (0.25, 1.0)
    """
    pairs = [(a, b) for a, b in zip(here, there, strict=True) if a is not None and b is not None]
    if not pairs:
        return ()
    return tuple(max(_difference(a[i], b[i]) for a, b in pairs) for i in range(len(pairs[0][0])))


def self_differences(
    together: Sequence[Scores | None], otherwise: Mapping[str, Sequence[Scores | None]]
) -> dict[str, Scores]:
    """Return by how much the scores of one model differ, by the way in which they were asked for otherwise."""
    return {way: differences(together, scores) for way, scores in otherwise.items()}


def largest(several: Iterable[Scores]) -> Scores:
    """Return the largest of several differences, number by number.

    Example:
        >>> largest([(0.1, 2.0), (), (0.3, 1.0)])
        (0.3, 2.0)
    """
    return tuple(map(max, zip(*filter(None, several), strict=True)))


def floors(scores: Sequence[Scores | None], noise: Iterable[Scores], rounding: Scores = ()) -> Scores:
    """Return the noise floor of each number of a score: a difference up to it means nothing.

    It is twice what either side was seen to differ from itself, and twice the rounding: both sides round. Without a
    measured rounding it is that of single precision.

    Args:
        scores: The scores here.
        noise: What either side differs from itself.
        rounding: What the precision changes, where it was measured.
    """
    present = [score for score in scores if score is not None]
    width = len(present[0]) if present else 0
    measured = largest(noise) or (0.0,) * width
    rounds = rounding or (0.0,) * width
    return tuple(max(_single(present, i), 2 * measured[i], 2 * rounds[i]) for i in range(width))


def _single(scores: Sequence[Scores], number: int) -> float:
    """Return what single precision may change of one number of the scores."""
    return _SINGLE * max([1.0, *(abs(score[number]) for score in scores if math.isfinite(score[number]))])


def unsteady(together: Sequence[Scores | None], by_way: Mapping[str, Scores]) -> str | None:
    """Say by what a server's scores change where they change too much to be compared with anything; None where they do not.

    Example:
        >>> unsteady([(float(i),) for i in range(10)], {"order": (0.0,), "one by one": (1.5,)})
        'its scores change by up to 1.5 when the same texts are asked one by one'
    """
    present = [score for score in together if score is not None]
    for way, by in sorted(by_way.items(), key=lambda item: item[1], reverse=True):
        for i, value in enumerate(by):
            spread = float(np.std([score[i] for score in present])) if len(present) >= _ENOUGH else math.inf
            if value > max(_single(present, i), _STEADY * spread) or not math.isfinite(value):
                return f"its scores change by up to {value:.2g} when the same texts are asked {way}"
    return None


def decide(
    here: Sequence[Scores | None], there: Sequence[Scores | None], floor: Scores, accepted: float | bool
) -> Comparison:
    """Decide whether two models give the same scores.

    Args:
        here: The scores that are right.
        there: Those of the server.
        floor: See `floors`.
        accepted: The largest difference that the recipe accepts; true for any.
    """
    found = differences(here, there)
    both = sum(a is not None and b is not None for a, b in zip(here, there, strict=True))
    only_here = sum(b is None for b in there) - sum(a is b is None for a, b in zip(here, there, strict=True))
    only_there = sum(a is None for a in here) - sum(a is b is None for a, b in zip(here, there, strict=True))
    if not both:
        decision: Decision = "accepted" if accepted is True else "not compared"
    elif all(value <= limit for value, limit in zip(found, floor, strict=True)):
        decision = "same"
    else:
        decision = "accepted" if is_accepted(max(found), accepted) else "differs"
    return Comparison(decision, both, only_here, only_there, found, floor)


def is_accepted(difference: float, accepted: float | bool) -> bool:
    """Tell whether a recipe accepts a difference; `accepted` is the largest, or true for any."""
    return accepted if isinstance(accepted, bool) else difference <= accepted


# ── causes ──────────────────────────────────────────────────────────────────────────────────────────────


def _sigmoid(score: Scores) -> Scores:
    return tuple(1 / (1 + math.exp(-max(-700.0, value))) for value in score)


def _softmax(score: Scores) -> Scores:
    powers = [math.exp(value - max(score)) for value in score]
    return tuple(power / sum(powers) for power in powers)


ACTIVATIONS: tuple[tuple[str, Callable[[Scores], Scores]], ...] = (
    ("the server applies a sigmoid to the logits; ask it for raw ones", _sigmoid),
    ("the server applies a softmax over the logits; ask it for raw ones", _softmax),
    ("the server applies a tanh to the logits; ask it for raw ones", lambda score: tuple(map(math.tanh, score))),
    ("the server gives the opposite of the score", lambda score: tuple(-value for value in score)),
)
"""What servers are known to do with the logits of a classifier. To add one, add a row."""


def activation(here: Sequence[Scores | None], there: Sequence[Scores | None], floor: Scores) -> str | None:
    """Return which function of the scores here gives those of the server; None where none of the known ones does.

    Example:
        >>> logits = [(float(i),) for i in range(-2, 3)]
        >>> activation(logits, [(1 / (1 + math.exp(-x)),) for (x,) in logits], (1e-4,))
        'the server applies a sigmoid to the logits; ask it for raw ones'
    """
    for cause, function in ACTIVATIONS:
        changed = [None if score is None or not all(map(math.isfinite, score)) else function(score) for score in here]
        if explains(here, there, changed, floor):
            return cause
    return _line(here, there, floor)


def explains(
    here: Sequence[Scores | None], there: Sequence[Scores | None], changed: Sequence[Scores | None], floor: Scores
) -> bool:
    """Tell whether scores that were changed here in a known way are those of the server."""
    found, left = differences(here, there), differences(changed, there)
    if not left:
        return False
    return all(
        value <= max(limit, _EXPLAINED * whole) for value, limit, whole in zip(left, floor, found, strict=True)
    ) and any(value < whole for value, whole in zip(left, found, strict=True))


def _line(here: Sequence[Scores | None], there: Sequence[Scores | None], floor: Scores) -> str | None:
    """Say whether the server's scores are those here, scaled and shifted."""
    pairs = [(a, b) for a, b in zip(here, there, strict=True) if a is not None and b is not None]
    x, y = (np.array([pair[side][0] for pair in pairs]) for side in (0, 1))
    if len(x) < _ENOUGH or not (np.isfinite(x).all() and np.isfinite(y).all()) or min(np.ptp(x), np.ptp(y)) < 1e-6:
        return None
    scale, shift = _least_squares(x, y)
    left = float(np.abs(scale * x + shift - y).max())
    whole = float(np.abs(x - y).max())
    # A line always leaves less than the whole difference over, so that it has to leave next to nothing. Where the first
    # number is the same, as the length of an embedding may be, the others differ.
    if whole <= floor[0] or left > max(floor[0], _EXPLAINED * whole):
        return None
    return f"the server's scores are {scale:.3g} times those here plus {shift:.3g}: it normalises them"


def _least_squares(x: npt.NDArray[np.float64], y: npt.NDArray[np.float64]) -> tuple[float, float]:
    scale = float(np.cov(x, y, bias=True)[0, 1] / np.var(x))
    return scale, float(y.mean() - scale * x.mean())


def _difference(a: float, b: float) -> float:
    if a == b or (math.isnan(a) and math.isnan(b)):
        return 0.0
    return abs(a - b) if math.isfinite(a) and math.isfinite(b) else math.inf


# ── words ───────────────────────────────────────────────────────────────────────────────────────────────


def line(compared: Comparison, served: str, local: str | None) -> str:
    """Say in one line what came of a comparison.

    Args:
        compared: The comparison.
        served: The served model's title.
        local: The title of the model here; None where the server was held against itself.
    """
    other = f"{local} here" if local else "itself, asked otherwise"
    if compared.decision == "not compared":
        return f"{served} could not be compared with {other}: no text has a score on both sides"
    number = (
        max(range(len(compared.floors)), key=lambda i: compared.differences[i] / compared.floors[i], default=0)
        if compared.texts
        else 0
    )
    found, floor = (values[number] if values else 0.0 for values in (compared.differences, compared.floors))
    numbers = f"largest difference {found:.2g} over {compared.texts} texts, noise floor {floor:.2g}"
    lacking = [
        f"{count} more have a score {side} only"
        for count, side in ((compared.only_here, "here"), (compared.only_there, "there"))
        if count and local
    ]
    numbers = "; ".join([numbers, *lacking])
    if compared.decision == "same":
        return f"{served} gives the same scores as {other}: {numbers}"
    cause = f"; likely cause: {compared.cause}" if compared.cause else ""
    if compared.decision == "accepted":
        return f"{served} gives other scores than {other}, which the recipe accepts: {numbers}{cause}"
    return f"{served} gives other scores than {other}: {numbers}{cause or '; none of the known causes explains it'}"
