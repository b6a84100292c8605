"""Does optimising a proxy reward optimise the gold one? Means of both over checkpoints (RER §3.1, Fig. 3, Table 1).

monotonicity   proxy, checkpoint, seed, proxy_mean, gold_mean; or folders that training with --gold wrote
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple, TypeAlias

import numpy as np
import pyarrow as pa

from seamcurate.errors import StudyError
from seamcurate.study import baselines, figure, sources
from seamcurate.study.results import Study, StudyResult, result, tabulate
from seamcurate.study.sources import StudySource
from seamcurate.study.statistics import BySeed, Interval, correlation, difference, mean, pearson, shown, spearman
from seamcurate.text import brief

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_LENGTH_PROXIES = ("li", "length", "rer_length")
_FEWEST = 3
_COLUMNS = {
    "proxy": "the reward that was optimised",
    "seeds": "runs averaged",
    "checkpoints": "checkpoints of the longest run",
    "spearman": "rank correlation of mean proxy and mean gold reward over checkpoints",
    "pearson": "Pearson's correlation of mean proxy and mean gold reward over checkpoints",
    "length_spearman": "rank correlation of mean length and mean gold reward over checkpoints",
}


class Checkpoint(NamedTuple):
    """Means over the held-out prompts after a number of RL steps."""

    step: float
    proxy: float
    gold: float
    length: float
    """NaN where the table has no lengths."""


Runs: TypeAlias = Mapping[str, Mapping[float, Sequence[Checkpoint]]]
"""Checkpoints in order, by proxy and seed."""


@dataclass(frozen=True)
class Proxy:
    """How the gold reward goes with one proxy."""

    ranks: BySeed
    """Spearman's correlation of each run."""
    length_ranks: BySeed
    """The same of length in place of the proxy; empty without lengths."""
    spearman: Interval
    pearson: Interval
    length_spearman: Interval | None
    checkpoints: int
    """Of the longest run."""
    rises: bool
    """Whether the gold reward is shown to rise with the proxy."""


@dataclass(frozen=True)
class Monotonicity:
    """Each proxy's correlation with the gold reward."""

    proxies: Mapping[str, Proxy]
    best: str
    by_length: bool
    """Whether the best proxy is length itself."""
    margin: baselines.Margin | None
    """How far the best proxy lies above length; None where no length is measured."""


def monotonicity(*tables: StudySource) -> StudyResult:
    """Correlate mean proxy and mean gold reward over the checkpoints of RL runs.

    Columns: `proxy` (`LI`, `LI·RP`, `LI·RP·QR`, `RER` …), `checkpoint` (RL steps), `seed`, `proxy_mean`, `gold_mean`
    over one fixed set of prompts, and optionally `length_mean`, which shows how far length alone follows the gold reward.
    Pearson's and Spearman's correlations are of one run each. With several seeds their mean has Student's interval; with
    one seed, or equal correlations, it has Fisher's, which is too narrow where checkpoints depend on each other. The
    proxy `LI` is the length baseline.
    A folder that `train ppo|grpo|rloo --gold` wrote is a run too, whose proxy is the folder's name.

    Raises:
        StudyError: The sources cannot be read, a checkpoint occurs twice, or a run has fewer than three.
    """
    runs = _read(tables)
    monotonic = measure(runs)
    return result("monotonicity", _table(monotonic), _figure(runs, monotonic), _finding(monotonic))


def _read(tables: Sequence[StudySource]) -> Runs:
    study = "monotonicity"
    measured = [_training_table(source) if _is_training(source) else source for source in tables]
    table = sources.read(study, measured, ["proxy", "checkpoint", "seed", "proxy_mean", "gold_mean"])
    sources.numbers(study, table, "checkpoint")
    keys = ["proxy", "checkpoint"]
    proxy, gold = (sources.by_seed(study, table, keys, column) for column in ("proxy_mean", "gold_mean"))
    has_lengths = "length_mean" in table.column_names
    lengths = sources.by_seed(study, table, keys, "length_mean") if has_lengths else {}
    runs: dict[str, dict[float, list[Checkpoint]]] = {}
    for key, by_seed in proxy.items():
        name, step = key
        for seed, value in by_seed.items():
            length = lengths[key][seed] if has_lengths else math.nan
            checkpoint = Checkpoint(float(step), value, gold[key][seed], length)
            runs.setdefault(name, {}).setdefault(seed, []).append(checkpoint)
    for name, seeds in runs.items():
        for seed, checkpoints in seeds.items():
            checkpoints.sort()
            if len(checkpoints) < _FEWEST:
                raise StudyError(
                    f"{study}: {name}, seed {seed:g} has {len(checkpoints)} checkpoints; three are the least"
                )
    return runs


def _is_training(source: StudySource) -> bool:
    return isinstance(source, str | Path) and (Path(source).expanduser() / "training.json").is_file()


def _training_table(source: StudySource) -> pa.Table:
    """Read what a training measured on its held-out prompts, as rows of a run."""
    assert isinstance(source, str | Path)
    folder = Path(source).expanduser()
    try:
        record = json.loads((folder / "training.json").read_text(encoding="utf-8"))
        log = (folder / "log.jsonl").read_text(encoding="utf-8") if (folder / "log.jsonl").is_file() else ""
        rows = [
            {
                "proxy": folder.resolve().name,
                "checkpoint": entry["step"],
                "seed": record["config"]["seed"],
                "proxy_mean": entry["eval/scores"],
                "gold_mean": entry["eval/gold"],
                "length_mean": entry["eval/response_length"],
            }
            for entry in map(json.loads, log.splitlines())
            if entry.get("eval/gold") is not None
        ]
        table = pa.Table.from_pylist(rows)
    except (pa.ArrowException, OSError, ValueError, LookupError, TypeError, AttributeError, OverflowError) as error:
        raise StudyError(
            f"monotonicity: {folder.name} is no training that `train` finished ({brief(str(error), 120)}); name another"
        ) from error
    if not rows:
        raise StudyError(f"monotonicity: {folder.name} measured no gold reward; train it with --gold and --eval-steps")
    return table


def measure(runs: Runs) -> Monotonicity:
    """Correlate each run's rewards, and compare the best proxy with length."""
    proxies = {name: _proxy(seeds) for name, seeds in runs.items()}
    best = max(runs, key=lambda name: proxies[name].spearman.estimate)
    length_proxy = next((name for name in runs if name.lower() in _LENGTH_PROXIES), None)
    return Monotonicity(proxies, best, length_proxy == best, _length_margin(proxies, best, length_proxy))


def _proxy(seeds: Mapping[float, Sequence[Checkpoint]]) -> Proxy:
    size = min(map(len, seeds.values()))
    ranks = _per_seed(seeds, lambda c: c.proxy, spearman)
    has_lengths = not any(math.isnan(c.length) for checkpoints in seeds.values() for c in checkpoints)
    length_ranks = _per_seed(seeds, lambda c: c.length, spearman) if has_lengths else {}
    summary = _summary(ranks, size, ranks=True)
    checkpoints = max(map(len, seeds.values()))
    return Proxy(
        ranks,
        length_ranks,
        summary,
        _summary(_per_seed(seeds, lambda c: c.proxy, pearson), size, ranks=False),
        _summary(length_ranks, size, ranks=True) if has_lengths else None,
        checkpoints,
        # A correlation of 1 in one run has no interval by Fisher. By chance, one order of `checkpoints`! has it: p is below
        # .01 from five checkpoints on.
        summary.low > 0 or (summary.estimate > 1 - 1e-12 and checkpoints > 4),
    )


def _per_seed(
    seeds: Mapping[float, Sequence[Checkpoint]],
    reward: Callable[[Checkpoint], float],
    correlate: Callable[[Sequence[float], Sequence[float]], float],
) -> dict[float, float]:
    """Correlate a reward with the gold one over each run's checkpoints; one that never changes counts as 0."""
    values = {
        seed: correlate([reward(c) for c in checkpoints], [c.gold for c in checkpoints])
        for seed, checkpoints in seeds.items()
    }
    return {seed: 0.0 if math.isnan(value) else value for seed, value in values.items()}


def _summary(correlations: BySeed, size: int, ranks: bool) -> Interval:
    """Return the mean over seeds; where all are equal, the interval of a single run of `size` checkpoints."""
    if len(set(correlations.values())) == 1:
        return correlation(next(iter(correlations.values())), size, ranks)
    average = mean(list(correlations.values()))
    return average._replace(low=max(average.low, -1.0), high=min(average.high, 1.0))


def _length_margin(proxies: Mapping[str, Proxy], best: str, length_proxy: str | None) -> baselines.Margin | None:
    """Hold the best proxy against the length proxy or, without one, against its own runs' lengths."""
    proxy = proxies[best]
    if length_proxy == best:
        return None
    if length_proxy is not None:
        length, label = proxies[length_proxy].spearman, length_proxy
        gap = difference(proxy.ranks, proxies[length_proxy].ranks).interval
    elif proxy.length_spearman is not None:
        length, label = proxy.length_spearman, "Spearman"
        gap = difference(proxy.ranks, proxy.length_ranks).interval
    else:
        return None
    reached = f"{label} {shown(length, '.2f')}"
    return baselines.Margin(reached, _separated(gap, proxy.spearman, length) if proxy.rises else gap)


def _separated(gap: Interval, proxy: Interval, length: Interval) -> Interval:
    """Give a difference without an interval the gap between the two correlations' own intervals, if they do not meet."""
    low = proxy.estimate if math.isnan(proxy.low) else proxy.low
    high = length.estimate if math.isnan(length.high) else length.high
    return gap._replace(low=low - high, high=gap.estimate) if math.isnan(gap.low) and low > high else gap


def _table(monotonic: Monotonicity) -> pa.Table:
    proxies = list(monotonic.proxies.values())
    columns: dict[str, Sequence[object]] = {
        "proxy": list(monotonic.proxies),
        "seeds": [len(proxy.ranks) for proxy in proxies],
        "checkpoints": [proxy.checkpoints for proxy in proxies],
    }
    intervals = {"spearman": [proxy.spearman for proxy in proxies], "pearson": [proxy.pearson for proxy in proxies]}
    lengths = [proxy.length_spearman for proxy in proxies if proxy.length_spearman is not None]
    if lengths:
        intervals["length_spearman"] = lengths
    return tabulate(_COLUMNS, columns, intervals)


def _figure(runs: Runs, monotonic: Monotonicity) -> Figure:
    panels = {}
    for name, seeds in runs.items():
        estimate = f"{monotonic.proxies[name].spearman.estimate:.2f}".replace("-", "−")
        panels[f"{name}  ρ = {estimate}"] = [
            _standardised("proxy", seeds, lambda c: c.proxy),
            _standardised("gold", seeds, lambda c: c.gold),
        ]
    return figure.curves(
        panels,
        "RL step",
        "mean reward, standardised within a run",
        f"Rewards standardised over a run's checkpoints, mean of {sources.seed_count(runs.values())}; bands: 95 % Student "
        "intervals. ρ: Spearman's correlation of proxy and gold reward.",
    )


def _standardised(
    label: str, seeds: Mapping[float, Sequence[Checkpoint]], reward: Callable[[Checkpoint], float]
) -> figure.Curve:
    by_step: dict[float, list[float]] = {}
    for checkpoints in seeds.values():
        values = np.array([reward(checkpoint) for checkpoint in checkpoints])
        # A reward that never changes has no spread to divide by.
        standard = (values - values.mean()) / (values.std() or 1.0)
        for checkpoint, value in zip(checkpoints, standard.tolist(), strict=True):
            by_step.setdefault(checkpoint.step, []).append(value)
    steps = sorted(by_step)
    return figure.Curve(label, steps, [mean(by_step[step]) for step in steps])


def _finding(monotonic: Monotonicity) -> str:
    proxies, best = monotonic.proxies, monotonic.best
    proxy = proxies[best]
    verdict = "is not shown to rise with the gold reward"
    if proxy.rises:
        # Checkpoints of a run depend on each other: two rewards that both merely drift look related in it.
        verdict = "rises with the gold reward" + (" in one run" if len(proxy.ranks) == 1 else "")
    line = f"{best} {verdict}: Spearman {shown(proxy.spearman, '.2f')} over {proxy.checkpoints} checkpoints"
    further = [f"{name} {shown(compared.spearman, '.2f')}" for name, compared in proxies.items() if name != best]
    line += f"; {', '.join(further)}" if further else ""
    if monotonic.by_length:
        line += "; but this proxy is length itself"
    return line + baselines.caveat({"length": monotonic.margin} if monotonic.margin else {})


MONOTONICITY = Study(
    "monotonicity",
    "whether the gold reward rises with the proxy that RL optimises",
    "proxy, checkpoint, seed, proxy_mean, gold_mean; or folders of `train ppo|grpo|rloo --gold`",
    _COLUMNS,
    monotonicity,
)
