"""The decision rules: what the results of a preset show, refute or leave open. Fixed before any result.

One rule: a claim is decided when all repetitions of its settings are measured, never earlier. Intervals are Student's over
repetitions at 95 %; those of tier V also hold the prompts' own sampling error.

    python -m examples.gold_world.verdicts RESULTS.jsonl
"""

from __future__ import annotations

import argparse
import itertools
import json
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from examples.gold_world.columns import CONTROLS, MISJUDGEMENT
from examples.gold_world.reward import Dials
from seamcurate.study import statistics
from seamcurate.study.statistics import Doubles, Interval, shown

PRIMARY, SOUND = Dials(4000, 2), Dials(4000, 0)
PAIRS = (Dials(500, 2), Dials(1000, 2), PRIMARY)
CONTRAST, GPT = "seam_contrast_geometric", "seam_gpt_geometric"
SIZES = (2, 4, 8, 16)
RANDOM = ("random", "random2")
PLANNED = {"V": 10, "B": 40, "H": 20}
"""Repetitions of a setting that a claim needs."""
RATES = (0.05, 0.1, 0.2, 0.3, 0.4, 0.6, 0.8)
"""Shares of prompts that the rate curve leaves out."""
GOLDEN_SHARES = (0.0, 0.2, 0.5)
"""Shares of rows whose golden response is a worse answer."""
_BY_WEIGHT = ("raw", "geometric", "uniform", "logprob")
COMPARED = (
    (GPT, CONTRAST),
    *(
        (f"seam_{variant}_{a}", f"seam_{variant}_{b}")
        for variant in ("contrast", "gpt")
        for a, b in itertools.pairwise(_BY_WEIGHT)
    ),
)
"""Columns whose AUCs are compared: the first is claimed to be the higher."""
SHOWN, REFUTED, OPEN = "shown", "refuted", "undecided"


class Verdict(NamedTuple):
    """What the results say of one claim."""

    claim: str
    says: str
    verdict: str
    numbers: dict[str, Interval]
    """By setting: the estimate and its interval; `n` counts repetitions."""
    planned: tuple[int, ...]
    """Repetitions that each number needs."""


@dataclass(frozen=True)
class Results:
    """Gates and cells of one run."""

    gates: dict[str, dict[str, Any]]
    cells: dict[str, dict[str, Any]]

    @classmethod
    def read(cls, file: Path) -> Results:
        """Read a file that `experiment --results` wrote."""
        return cls.of_pieces(json.loads(line) for line in file.read_text(encoding="utf-8").splitlines())

    @classmethod
    def of_pieces(cls, pieces: Iterable[dict[str, Any]]) -> Results:
        """Take gates and cells apart, each by its name."""
        by_folder: dict[str, dict[str, dict[str, Any]]] = {"gates": {}, "cells": {}}
        for piece in pieces:
            by_folder[piece["folder"]][piece["name"]] = piece
        return cls(by_folder["gates"], by_folder["cells"])

    def of(self, kind: str, dials: Dials, needs: str, most: int = 10**6) -> list[dict[str, Any]]:
        """Return a setting's cells that have a measure, by repetition."""
        found = [
            cell
            for name, cell in self.cells.items()
            if name.startswith(f"{kind}-")
            and (cell["pairs"], cell["blind"]) == dials
            and needs in cell
            and cell["seed"] < most
        ]
        return sorted(found, key=lambda cell: int(cell["seed"]))

    @cached_property
    def claims(self) -> list[Verdict]:
        """Return every claim's verdict; P4 is tier R's."""
        primary = [_p1(self), _p2(self), _p3(self)]
        return [*_holm(primary), *_s1(self), _s2(self), *_s3(self), _s4(self), _s5(self), _s6(self)]


# ── measures ────────────────────────────────────────────────────────────────────────────────────────────


def auc(cells: Sequence[dict[str, Any]], column: str) -> Interval:
    """Return a column's AUC over repetitions, with the sampling error of the prompts that they share."""
    return _with_error([c["validity"][column][0] for c in cells], [c["auc_error"][column] for c in cells])


def auc_difference(cells: Sequence[dict[str, Any]], high: str, low: str) -> Interval:
    """Return how far one column's AUC lies above another's."""
    gaps = [c["validity"][high][0] - c["validity"][low][0] for c in cells]
    return _with_error(gaps, [c["auc_error"][f"{high} − {low}"] for c in cells])


def _with_error(values: Sequence[float], errors: Sequence[float]) -> Interval:
    """Return the mean with an interval of two sources: repetitions, and prompts that are the same in all of them."""
    from scipy import stats

    n = len(values)
    if n < 2:
        return Interval(float(np.mean(values)) if n else math.nan, math.nan, math.nan, n)
    # Not divided by n: more repetitions do not make the prompts more.
    error = math.sqrt(np.var(values, ddof=1) / n + np.mean(np.square(errors)))
    half = float(stats.t.ppf(0.975, n - 1)) * error
    centre = float(np.mean(values))
    return Interval(centre, centre - half, centre + half, n)


def gains(cells: Sequence[dict[str, Any]], arm: str, other: str, n: int = 4) -> list[float]:
    """Return by how much an arm of tier B lies above another in each repetition, % of the mean quality with all prompts."""
    every = full(cells, n)
    return [100 * (quality(cell, arm, n) - quality(cell, other, n)) / every for cell in cells]


def full(cells: Sequence[dict[str, Any]], n: int) -> float:
    return float(np.mean([cell["full"][SIZES.index(n)] for cell in cells])) if cells else math.nan


def quality(cell: dict[str, Any], arm: str, n: int) -> float:
    if arm == "expected random":
        # Rows left out at random lose the same share of the gain, on average over draws.
        return float(cell["sft"] + 0.8 * (cell["full"][SIZES.index(n)] - cell["sft"]))
    values = cell["full"] if arm == "full" else cell["arms"][arm]
    return float(values[SIZES.index(n)])


def network_gains(cells: Sequence[dict[str, Any]], arm: str, other: str, where: int = 0) -> list[float]:
    """Return the same of tier H, on unseen prompts; on the RL prompts where `where` is 1."""
    full = float(np.mean([cell["arms"]["full"][where] for cell in cells])) if cells else math.nan
    return [100 * (cell["arms"][arm][where] - cell["arms"][other][where]) / full for cell in cells]


def mean(values: Sequence[float], level: float = 0.95) -> Interval:
    """Return the mean with Student's interval; none of no value."""
    return statistics.mean(values, level) if len(values) else Interval(math.nan, math.nan, math.nan, 0)


# ── primary claims ──────────────────────────────────────────────────────────────────────────────────────


def _decide(
    claim: str,
    says: str,
    numbers: dict[str, Interval],
    planned: int | tuple[int, ...],
    is_shown: bool,
    is_refuted: bool,
) -> Verdict:
    """Give the verdict of a rule, where every number rests on all its repetitions."""
    needed = planned if isinstance(planned, tuple) else (planned,) * len(numbers)
    if any(number.n < n for number, n in zip(numbers.values(), needed, strict=True)):
        verdict = f"{OPEN}: not all repetitions are measured"
    else:
        verdict = SHOWN if is_shown else REFUTED if is_refuted else OPEN
    return Verdict(claim, says, verdict, numbers, needed)


def stopped(results: Results, tier: str, settings: Sequence[Dials]) -> str | None:
    """Name the settings of a tier that a gate stopped."""
    failed = []
    for dials in settings:
        gate = results.gates.get(f"gates-{tier}-{dials.pairs}-{dials.blind}")
        if gate is not None and not gate["passed"]:
            names = [name for name, value in gate.items() if isinstance(value, dict) and not value["passed"]]
            failed.append(f"({label(dials)}) by {', '.join(names)}")
    return f"stopped: gates failed in {'; '.join(failed)}" if failed else None


def label(dials: Dials) -> str:
    return f"{dials.pairs:,}; b {dials.blind}"


def _p1(results: Results) -> Verdict:
    numbers = {label(dials): auc(results.of("prompts", dials, "auc_error", PLANNED["V"]), CONTRAST) for dials in PAIRS}
    found = list(numbers.values())
    return _decide(
        "P1",
        "SEAM_Contrast finds misjudged prompts: AUC above .60 in all three pair counts",
        numbers,
        PLANNED["V"],
        all(i.low > 0.60 for i in found),
        any(i.high < 0.55 for i in found),
    )


_NULL = {"P1": 0.60, "P2": 0.5, "P3": 0.0}
"""What the interval of each primary claim must exclude."""


def _p2(results: Results) -> Verdict:
    settings = (SOUND, PRIMARY)
    values = {label(d): gains(results.of("prompts", d, "arms"), "seam_contrast_geometric", "random") for d in settings}
    says = "leaving out its worst 20 % beats random by more than .5 % where each prompt is optimised alone (n = 4)"
    verdict = _beats_random("P2", says, values, PLANNED["B"], 0.5)
    return verdict._replace(verdict=stopped(results, "B", settings) or verdict.verdict)


def _p3(results: Results) -> Verdict:
    settings = (PRIMARY, SOUND)
    values = {label(d): network_gains(results.of("network", d, "arms"), "seam_contrast", "random") for d in settings}
    says = "it beats random on unseen prompts with a network that all prompts share"
    verdict = _beats_random("P3", says, values, PLANNED["H"], 0.3)
    return verdict._replace(verdict=stopped(results, "H", settings) or verdict.verdict)


def _beats_random(
    claim: str, says: str, values: Mapping[str, Sequence[float]], planned: int, nothing: float
) -> Verdict:
    """Decide whether gains over random lie above the claim's bound in every setting, or within ± `nothing` by 90 % intervals."""
    numbers = {name: mean(v) for name, v in values.items()}
    is_shown = all(interval.low > _NULL[claim] for interval in numbers.values())
    narrow = [mean(v, 0.90) for v in values.values()]
    is_refuted = all(interval.low > -nothing and interval.high < nothing for interval in narrow)
    return _decide(claim, says, numbers, planned, is_shown, is_refuted)


def _holm(verdicts: Sequence[Verdict]) -> list[Verdict]:
    """Hold the primary claims to p < .05 after Holm's adjustment for four, P4 counting whether it was run or not."""
    from scipy import stats

    probabilities = []
    for verdict in verdicts:
        worst = 0.0
        for number in verdict.numbers.values():
            if number.n < 2 or math.isnan(number.low):
                worst = math.nan
                break
            error = (number.high - number.low) / 2 / float(stats.t.ppf(0.975, number.n - 1))
            statistic = abs(number.estimate - _NULL[verdict.claim]) / error if error > 0 else math.inf
            worst = max(worst, float(2 * stats.t.sf(statistic, number.n - 1)))
        probabilities.append(worst)
    ascending = sorted((p, i) for i, p in enumerate(probabilities) if not math.isnan(p))
    adjusted, largest = dict.fromkeys(range(len(verdicts)), math.nan), 0.0
    for rank, (p, i) in enumerate(ascending):
        largest = max(largest, min(1.0, p * (4 - rank)))
        adjusted[i] = largest
    decided = []
    for i, verdict in enumerate(verdicts):
        says = f"{verdict.says}; p = {adjusted[i]:.2g} (Holm)" if not math.isnan(adjusted[i]) else verdict.says
        too_likely = verdict.verdict == SHOWN and not adjusted[i] < 0.05
        decided.append(verdict._replace(says=says, verdict=OPEN if too_likely else verdict.verdict))
    return decided


# ── secondary claims ────────────────────────────────────────────────────────────────────────────────────


def _above(claim: str, says: str, numbers: dict[str, Interval], planned: int | tuple[int, ...]) -> Verdict:
    """Give a claim that all numbers lie above 0; it is refuted where one lies below."""
    found = list(numbers.values())
    return _decide(claim, says, numbers, planned, all(i.above_zero for i in found), any(i.below_zero for i in found))


def _s1(results: Results) -> list[Verdict]:
    valid = results.of("prompts", PRIMARY, "auc_error", PLANNED["V"])
    benefit = results.of("prompts", PRIMARY, "arms")
    numbers = {
        "AUC": auc_difference(valid, GPT, CONTRAST),
        "gain, n = 4, %": mean(gains(benefit, GPT, CONTRAST)),
    }
    by_seed = {cell["seed"]: cell for cell in results.of("attack", PRIMARY, "validity")}
    both = [cell for cell in benefit if cell["seed"] in by_seed]
    level = full(both, 4)
    adv = {
        "AUC": mean(
            [c["validity"][CONTRAST][0] - by_seed[c["seed"]]["validity"]["seam_adv_geometric"][0] for c in both]
        ),
        "gain, n = 4, %": mean(
            [
                100 * (quality(c, CONTRAST, 4) - by_seed[c["seed"]]["arms"]["seam_adv_geometric"][1]) / level
                for c in both
                if "arms" in by_seed[c["seed"]]
            ]
        ),
    }
    return [
        _above("S1a", "SEAM_GPT above SEAM_Contrast, in V and in B", numbers, (PLANNED["V"], PLANNED["B"])),
        _above("S1b", "SEAM_Contrast above SEAM_Adv, in V and in B", adv, PLANNED["V"]),
    ]


def _s2(results: Results) -> Verdict:
    cells = results.of("prompts", PRIMARY, "auc_error", PLANNED["V"])
    numbers = {f"{high} − {low}": auc_difference(cells, high, low) for high, low in COMPARED[1:]}
    return _above(
        "S2", "weights by AUC: P above geometric above uniform above the paper's −logP/len", numbers, PLANNED["V"]
    )


def _s3(results: Results) -> list[Verdict]:
    """Tell whether a column's AUC in V ranks its gain in B; intervals by bootstrap over repetitions."""
    cells = [c for c in results.of("prompts", PRIMARY, "arms") if "validity" in c]
    every = [name for name in (cells[0]["validity"] if cells else ()) if name not in CONTROLS]
    groups = {"all columns": every, "columns that use misjudgement": [name for name in every if name in MISJUDGEMENT]}
    numbers = {group: _explains(cells, names) for group, names in groups.items()}
    found = list(numbers.values())
    verdict = _decide(
        "S3",
        "validity explains benefit: Spearman of AUC and gain at least .7 (interval above .3), over all columns and within those "
        "that use misjudgement",
        numbers,
        PLANNED["B"],
        all(i.estimate >= 0.7 and i.low > 0.3 for i in found),
        bool(found) and found[0].high < 0.3,
    )
    first = bool(found) and found[0].estimate >= 0.7 and found[0].low > 0.3
    if verdict.verdict == OPEN and first:
        verdict = verdict._replace(
            verdict=f"{OPEN}: over all columns only; V screens columns and does not rank SEAM's variants"
        )
    return [verdict]


def _explains(cells: Sequence[dict[str, Any]], names: Sequence[str]) -> Interval:
    """Return Spearman's correlation of columns' mean AUC and mean gain, with its bootstrap over repetitions."""
    from scipy import stats

    if len(cells) < 2 or len(names) < 3:
        return Interval(math.nan, math.nan, math.nan, len(cells))
    valid = np.array([[cell["validity"][name][0] for name in names] for cell in cells], np.float64)
    gain = np.array([[quality(c, name, 4) - quality(c, "expected random", 4) for name in names] for c in cells])

    draws = np.random.default_rng(0).integers(0, len(cells), (500, len(cells)))
    # The cells as they are, and bootstrap draws of them: (draws + 1, names).
    chosen = np.concatenate([np.arange(len(cells))[None], draws])
    means = np.nanmean(valid[chosen], axis=1), gain[chosen].mean(axis=1)
    x, y = (ranks - ranks.mean(axis=1, keepdims=True) for ranks in (stats.rankdata(m, axis=1) for m in means))
    values: Doubles = (x * y).sum(axis=1) / np.sqrt((x * x).sum(axis=1) * (y * y).sum(axis=1))
    return statistics.percentiles(float(values[0]), values[1:], len(cells))


def rate_curve(cells: Sequence[dict[str, Any]], column: str) -> dict[float, list[float]]:
    """Return quality above `full` by the share of prompts left out, in each repetition: % of full's mean."""
    level = full(cells, 4)
    curve = {0.0: [0.0] * len(cells)}
    for i, rate in enumerate(RATES):
        curve[rate] = [100 * (cell["rates"][column][i] - cell["full"][1]) / level for cell in cells]
    return curve


def _s4(results: Results) -> Verdict:
    cells = results.of("prompts", PRIMARY, "rates")
    curve = rate_curve(cells, CONTRAST)
    peak = max(curve, key=lambda rate: float(np.mean(curve[rate]))) if cells else 0.0
    ends = {
        f"{peak:.0%} − {end:.0%}": mean([a - b for a, b in zip(curve[peak], curve[end], strict=True)])
        for end in (0.0, 0.8)
    }
    inside = 0.1 <= peak <= 0.6
    verdict = _above(
        "S4", f"the best rate lies between 10 and 60 %, both ends below it; here {peak:.0%}", ends, PLANNED["B"]
    )
    refuted = verdict.verdict in (SHOWN, REFUTED, OPEN) and not inside
    return verdict._replace(verdict=REFUTED if refuted else verdict.verdict)


def _s5(results: Results) -> Verdict:
    cells = results.of("prompts", PRIMARY, "golden")
    shares = np.array(GOLDEN_SHARES)
    level = full(cells, 4)
    numbers = {}
    for name in ("seam_contrast", "seam_gpt", "seam_policy"):
        slopes = [np.polyfit(shares, [100 * q / level for _, q in cell["golden"][name]], 1)[0] for cell in cells]
        # The falling slope is the claim: turned, so that above 0 shows it.
        numbers[f"{name}, % of quality lost with all golden responses wrong"] = mean([-float(s) for s in slopes])
    return _above("S5", "the benefit falls with the share of wrong golden responses", numbers, PLANNED["B"])


def _s6(results: Results) -> Verdict:
    cells = results.of("prompts", PRIMARY, "arms")
    number = mean(gains(cells, CONTRAST, "full", 16))
    return _decide(
        "S6",
        "the paper's size: at least +4.5 % over all prompts, at n = 16",
        {label(PRIMARY): number},
        PLANNED["B"],
        number.low <= 4.5 <= number.high or number.low > 4.5,
        number.high < 4.5,
    )


def permutation(cells: Sequence[dict[str, Any]], arm: str = "seam_contrast") -> tuple[float, float]:
    """Return the mean rank of an arm among it and the random drops (1 is best), and its one-sided p over repetitions.

    Without an effect each rank is as likely, so that the sum of ranks has an exact distribution.
    """
    ranks = [1 + sum(other >= cell["arms"][arm][0] for other in cell["permutations"]) for cell in cells]
    if not ranks:
        return math.nan, math.nan
    size = len(cells[0]["permutations"]) + 1
    chance = np.ones(1)
    for _ in ranks:
        chance = np.convolve(chance, np.full(size, 1 / size))
    # The least sum is one rank 1 a repetition.
    return float(np.mean(ranks)), float(chance[: sum(ranks) - len(ranks) + 1].sum())


def lines(results: Results) -> list[str]:
    """Return the claims as a Markdown table."""
    told = ["| | claim | measured | verdict |", "|---|---|---|---|"]
    for verdict in results.claims:
        numbers = "; ".join(
            f"{name}: {shown(number, '+.2f') if number.n else 'none'} (n = {number.n} of {planned})"
            for (name, number), planned in zip(verdict.numbers.items(), verdict.planned, strict=True)
        )
        told.append(f"| {verdict.claim} | {verdict.says} | {numbers} | **{verdict.verdict}** |")
    return told


def main() -> None:
    """Print the verdicts of a file of results."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("results", type=Path)
    print("\n".join(lines(Results.read(parser.parse_args().results))))


if __name__ == "__main__":
    main()
