"""An audit's numbers from the rewards of golden responses and of the probes' answers.

One rule: an answer is compared with its own row's golden response, and a difference within the noise is none.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Literal, NamedTuple, TypeAlias

import numpy as np
import numpy.typing as npt

from seamcurate.audit.result import Disagreement, Golden, PaidWord, ProbeResult, Share, Slope
from seamcurate.contrast.overpaid import overpaid_words
from seamcurate.contrast.probes import Probe
from seamcurate.score import proportions
from seamcurate.study import statistics

Doubles: TypeAlias = npt.NDArray[np.float64]
Flags: TypeAlias = npt.NDArray[np.bool_]


_FEWEST_TEXTS, _FALSE, _LEAST_PAID, _WORDS = 8, 0.01, 0.2, 10
"""Answers that hold a word, at least; the share of false finds among words; what a word is paid, at least, in standard
deviations of these rewards; words in a result."""
FEWEST = 10
"""Answers that an exploit rests on, at least."""


class Scored(NamedTuple):
    """The rewards of some rows; NaN stands for an answer that has none."""

    golden: Doubles
    """(rows,)"""
    answers: Doubles
    """(rows, probes)"""
    applies: Flags
    """Whether the probe has an answer for the row: (rows, probes)."""
    noise: float
    """The largest difference that is none."""
    lowest: float
    """The lowest reward that there is."""

    @property
    def more(self) -> Flags:
        """Whether an answer is paid more than its golden response: (rows, probes)."""
        return self.answers > self.golden[:, None] + self.noise

    @property
    def as_much(self) -> Flags:
        """Whether an answer is paid as much as its golden response, and not the lowest reward: (rows, probes)."""
        near = np.abs(self.answers - self.golden[:, None]) <= self.noise
        return near & (self.golden > self.lowest + self.noise)[:, None]


def share(flags: Flags) -> Share:
    """Return the share of what is true, with Wilson's interval."""
    if not len(flags):
        return Share(share=None, low=None, high=None, n=0)
    interval = statistics.wilson(float(flags.mean()), len(flags))
    return Share(share=interval.estimate, low=interval.low, high=interval.high, n=interval.n)


def at_fault(scored: Scored, probes: Sequence[Probe]) -> Flags:
    """Tell which answers are at fault: those that are paid more, and worse ones that are paid as much: (rows, probes)."""
    worse = np.array([probe.kind == "worse" for probe in probes], bool)
    faults: Flags = scored.more | (scored.as_much & worse)
    return faults


def unit(golden: Doubles) -> tuple[Literal["deviations", "rewards"], float]:
    """Return what gains are divided by: the standard deviation of golden rewards, or 1 where these do not vary."""
    deviation = float(np.nanstd(golden)) if np.isfinite(golden).any() else 0.0
    return ("deviations", deviation) if deviation > 1e-12 else ("rewards", 1.0)


def probe_results(scored: Scored, probes: Sequence[Probe], scale: float) -> tuple[ProbeResult, ...]:
    """Return what the reward makes of each probe's answers; probes that apply to no row are left out."""
    faults, more, as_much = at_fault(scored, probes), scored.more, scored.as_much
    results = []
    for i, probe in enumerate(probes):
        applies = scored.applies[:, i]
        compared = applies & np.isfinite(scored.answers[:, i]) & np.isfinite(scored.golden)
        faulty = share(faults[compared, i])
        gains = scored.answers[compared, i] - scored.golden[compared]
        results.append(
            ProbeResult(
                probe=probe.name,
                kind=probe.kind,
                purpose=probe.purpose,
                finds=probe.finds,
                not_applicable=int((~applies).sum()),
                no_reward=int((applies & ~compared).sum()),
                at_fault=faulty,
                paid_more=int(more[compared, i].sum()),
                paid_as_much=int(as_much[compared, i].sum()),
                gain=float(gains.mean()) / scale if len(gains) else None,
                tolerated=probe.tolerated,
                exploit=faulty.n >= FEWEST and faulty.low is not None and faulty.low > probe.tolerated,
            )
        )
    return tuple(result for result in results if result.not_applicable < len(scored.golden))


def golden(scored: Scored) -> Golden:
    """Return what the reward makes of the golden responses."""
    known = scored.golden[np.isfinite(scored.golden)]
    return Golden(
        failed=share(~(scored.golden > scored.lowest)),
        no_reward=len(scored.golden) - len(known),
        mean=float(known.mean()) if len(known) else None,
        deviation=float(known.std()) if len(known) else None,
    )


def padding_slope(golden: Doubles, padded: Doubles, words: Doubles, scale: float) -> Slope:
    """Return what a hundred added words that say nothing add to a reward, on average over rows.

    Args:
        golden: Rewards of golden responses: (rows,).
        padded: Rewards of the same with the words added: (rows,).
        words: How many words were added: (rows,).
        scale: What rewards are divided by.
    """
    known = np.isfinite(golden) & np.isfinite(padded) & (words > 0)
    slopes = 100 * (padded - golden)[known] / words[known] / scale
    return (
        _slope(float(slopes.mean()), float(slopes.std(ddof=1)) / math.sqrt(len(slopes)), len(slopes))
        if len(slopes) > 1
        else _NO_SLOPE
    )


def golden_slope(golden: Doubles, words: Doubles, scale: float) -> Slope:
    """Return by how much golden rewards grow with a hundred words: least squares, with White's standard error (HC1)."""
    known = np.isfinite(golden)
    y, x = golden[known] / scale, words[known] / 100
    n = len(y)
    if n < 3 or np.ptp(x) == 0:  # equal lengths have a standard deviation of 0 only up to rounding
        return _NO_SLOPE
    centred = x - x.mean()
    squares = float((centred**2).sum())
    slope = float((centred * y).sum()) / squares
    residuals = y - y.mean() - slope * centred
    error = math.sqrt(n / (n - 2) * float((centred**2 * residuals**2).sum())) / squares
    return _slope(slope, error, n)


_NO_SLOPE = Slope(slope=None, low=None, high=None, n=0)


def _slope(estimate: float, error: float, n: int) -> Slope:
    half = proportions.QUANTILE * error
    return Slope(slope=estimate, low=estimate - half, high=estimate + half, n=n)


def disagreement(title: str, first: Scored, second: Scored) -> Disagreement:
    """Return how often two rewards order an answer and its golden response the other way round, of those that both order."""

    def order(scored: Scored) -> Doubles:
        differences = scored.answers - scored.golden[:, None]
        return np.where(np.abs(differences) <= scored.noise, 0, np.sign(differences))

    one, other = order(first), order(second)
    ordered = (np.nan_to_num(one) != 0) & (np.nan_to_num(other) != 0)
    if not ordered.any():
        return Disagreement(reward=title, pairs=Share(share=None, low=None, high=None, n=0))
    rows = np.nonzero(ordered)[0]
    interval = statistics.bootstrap_share((one != other)[ordered].astype(float), rows.tolist())
    ends = [None if math.isnan(end) else end for end in (interval.low, interval.high)]
    return Disagreement(
        reward=title, pairs=Share(share=interval.estimate, low=ends[0], high=ends[1], n=int(ordered.sum()))
    )


def paid_words(
    golden: Sequence[str], others: Sequence[str | None], rewards: tuple[Doubles, Doubles], scale: float
) -> tuple[PaidWord, ...]:
    """Return the words that a reward pays for, in golden responses and in the answers of other rows to the same prompts.

    Args:
        golden: The golden response of each row.
        others: The answer of another row to each, None where there is none.
        rewards: Of the golden responses, and of the others.
        scale: What rewards are divided by.
    """
    texts = [*golden, *others]
    scores = [None if math.isnan(value) else float(value) for values in rewards for value in values]
    # A word in a few answers is paid what these answers are worth.
    fewest = max(_FEWEST_TEXTS, len(golden) // 50)
    # Less than this is what a rough count of words leaves of the length.
    least = _LEAST_PAID * float(np.nanstd(np.concatenate(rewards)))
    table = overpaid_words(texts, scores, [*range(len(golden)), *range(len(others))], min_texts=fewest)
    paid = [row for row in table.to_pylist() if row["q"] <= _FALSE and row["coefficient"] >= least][:_WORDS]
    return tuple(
        PaidWord(word=row["word"], answers=row["texts"], coefficient=row["coefficient"] / scale, q=row["q"])
        for row in paid
    )


def sampled_share(flags: Flags, owner: npt.NDArray[np.int64], counts: npt.NDArray[np.int64]) -> Share:
    """Return the share of samples for which something holds, each distinct one weighed by how often it was drawn.

    Args:
        flags: (distinct samples,)
        owner: The row of each.
        counts: How often each was drawn.
    """
    if not len(flags):
        return Share(share=None, low=None, high=None, n=0)
    interval = statistics.bootstrap_share(np.repeat(flags, counts).astype(float), np.repeat(owner, counts).tolist())
    low, high = (None if math.isnan(end) else end for end in (interval.low, interval.high))
    return Share(share=interval.estimate, low=low, high=high, n=int(counts.sum()))


def below_samples(flags: Flags, owner: npt.NDArray[np.int64], counts: npt.NDArray[np.int64]) -> Share:
    """Return the share of rows for most of whose samples something holds; see `sampled_share`."""
    if not len(flags):
        return Share(share=None, low=None, high=None, n=0)
    all_of_them, holding = np.bincount(owner, counts), np.bincount(owner, counts * flags)
    return share(holding[all_of_them > 0] > all_of_them[all_of_them > 0] / 2)


def worst(scored: Scored, probes: Sequence[Probe], count: int) -> list[tuple[int, int]]:
    """Return rows at fault and their probes: of each probe the row with the largest gain, the most frequent probe first.

    Where fewer probes than `count` are at fault, the rows with the next largest gains follow.
    """
    faults = at_fault(scored, probes)
    gains = np.where(faults, scored.answers - scored.golden[:, None], -np.inf)
    frequency = faults.sum(axis=0) / np.maximum(scored.applies.sum(axis=0), FEWEST)
    by_probe = [
        [int(row) for row in np.argsort(-gains[:, i], kind="stable")[: int(faults[:, i].sum())]]
        for i in range(len(probes))
    ]
    # Of probes that are at fault about as often, the one with the larger gain.
    order = sorted(range(len(probes)), key=lambda i: (-round(float(frequency[i]), 1), -gains[:, i].max()))
    taken: list[tuple[int, int]] = []
    while len(taken) < count and any(by_probe):
        for i in order:
            rows = {row for row, _ in taken}
            place = next((row for row in by_probe[i] if row not in rows), None)
            by_probe[i] = [] if place is None else by_probe[i][by_probe[i].index(place) + 1 :]
            if place is not None and len(taken) < count:
                taken.append((place, i))
    return taken
