"""Does optimising a proxy reward optimise the gold one? Means of both over checkpoints (RER §3.1, Fig. 3, Table 1)."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TypeAlias

import numpy as np
import pyarrow as pa

from seamcurate.errors import StudyError
from seamcurate.study import figure, results, ruler
from seamcurate.study.results import Data, Finding
from seamcurate.study.statistics import Interval, correlation, difference, mean, pearson, shown, spearman
from seamcurate.text import brief

_LENGTH = ("li", "length", "rer_length")
_Points: TypeAlias = list[tuple[float, float, float]]


def monotonicity(*sources: Data) -> Finding:
    """Correlate mean proxy and mean gold reward over the checkpoints of RL runs.

    Columns: `proxy` (`LI`, `LI·RP`, `LI·RP·QR`, `RER` …), `checkpoint` (RL steps), `seed`, `proxy_mean`, `gold_mean`
    over one fixed set of prompts; where `length_mean` is there too, what length alone would have said of the same runs.
    Pearson's and Spearman's correlations are of one run each; with several seeds their mean has Student's interval, with
    one, or several that are alike, Fisher's, which is too narrow where checkpoints follow on each other. The proxy `LI` is
    the length ruler.
    A folder that `train ppo|grpo|rloo --gold` wrote is a run too, whose proxy is the folder's name.

    Raises:
        StudyError: The sources cannot be read, a checkpoint comes twice, or a run has fewer than three.
    """
    study = "monotonicity"
    tables = [_trained(source) if _is_training(source) else source for source in sources]
    table = results.read(study, tables, ["proxy", "checkpoint", "seed", "proxy_mean", "gold_mean"])
    results.numbers(study, table, "checkpoint")
    keys = ["proxy", "checkpoint"]
    proxy, gold = (results.by_seed(study, table, keys, value) for value in ("proxy_mean", "gold_mean"))
    lengths = results.by_seed(study, table, keys, "length_mean") if "length_mean" in table.column_names else None
    runs: dict[str, dict[float, _Points]] = {}
    by_length: dict[str, dict[float, _Points]] = {}
    for (name, checkpoint), by in proxy.items():
        for seed, value in by.items():
            point = (float(checkpoint), value, gold[name, checkpoint][seed])
            runs.setdefault(name, {}).setdefault(seed, []).append(point)
            if lengths is not None:
                longer = (float(checkpoint), lengths[name, checkpoint][seed], point[2])
                by_length.setdefault(name, {}).setdefault(seed, []).append(longer)
    for name, seeds in runs.items():
        for seed, points in seeds.items():
            points.sort()
            if len(points) < 3:
                raise StudyError(f"{study}: {name}, seed {seed:g} has {len(points)} checkpoints; three are the least")
    ranks = {name: _per_seed(seeds, spearman) for name, seeds in runs.items()}
    found = {name: _summary(runs[name], ranks[name], True) for name in runs}
    linear = {name: _summary(runs[name], _per_seed(runs[name], pearson), False) for name in runs}
    columns: dict[str, Sequence[object]] = {
        "proxy": list(runs),
        "seeds": [len(seeds) for seeds in runs.values()],
        "checkpoints": [max(map(len, seeds.values())) for seeds in runs.values()],
    }
    intervals = {"spearman": list(found.values()), "pearson": list(linear.values())}
    length_ranks = {name: _per_seed(seeds, spearman) for name, seeds in by_length.items()}
    if by_length:
        intervals["length_spearman"] = [_summary(by_length[n], length_ranks[n], True) for n in runs]
    drawn = figure.curves(
        {
            f"{name}  ρ = {f'{found[name].estimate:.2f}'.replace('-', '−')}": _normalised(seeds)
            for name, seeds in runs.items()
        },
        "RL step",
        "mean reward, standardised within a run",
        f"Rewards standardised over a run's checkpoints, mean of {results.seeds(runs.values())}; bands: 95 % Student intervals. "
        "ρ: Spearman's correlation of proxy and gold reward.",
    )
    best = max(runs, key=lambda name: -2.0 if math.isnan(found[name].estimate) else found[name].estimate)
    others = [f"{name} {shown(found[name], '.2f')}" for name in runs if name != best]
    checkpoints = max(map(len, runs[best].values()))
    # One run's correlation of 1 has no interval of Fisher's: among orders by chance it is one of checkpoints!, below .01 from five on.
    rises = found[best].low > 0 or (found[best].estimate > 1 - 1e-12 and checkpoints > 4)
    verdict = "rises with the gold reward" if rises else "is not shown to rise with the gold reward"
    # Checkpoints of a run follow on each other: two rewards that merely drift look related in it.
    verdict += " in one run" if rises and len(runs[best]) == 1 else ""
    line = f"{best} {verdict}: Spearman {shown(found[best], '.2f')} over {checkpoints} checkpoints"
    line += f"; {', '.join(others)}" if others else ""
    gaps = {}
    own = next((name for name in runs if name.lower() in _LENGTH), None)
    if own is not None and own != best:
        above = difference(ranks[best], ranks[own]).interval
        gaps["length"] = ruler.Gap(
            f"{own} {shown(found[own], '.2f')}", _apart(above, found[best], found[own]) if rises else above
        )
    elif by_length and own != best:
        told = _summary(by_length[best], length_ranks[best], True)
        above = difference(ranks[best], length_ranks[best]).interval
        gaps["length"] = ruler.Gap(
            f"Spearman {shown(told, '.2f')}", _apart(above, found[best], told) if rises else above
        )
    if own == best:
        line += "; but this proxy is length itself"
    return Finding(study, results.tabulate(columns, intervals), drawn, line + ruler.caveat(gaps))


def _is_training(source: Data) -> bool:
    return isinstance(source, str | Path) and (Path(source).expanduser() / "training.json").is_file()


def _trained(source: Data) -> pa.Table:
    """Read what a training measured on its held-out prompts, as rows of a run."""
    assert isinstance(source, str | Path)
    folder = Path(source).expanduser()
    try:
        record = json.loads((folder / "training.json").read_text(encoding="utf-8"))
        log = (folder / "log.jsonl").read_text(encoding="utf-8") if (folder / "log.jsonl").is_file() else ""
        rows = [
            {
                "proxy": folder.resolve().name,
                "checkpoint": line["step"],
                "seed": record["config"]["seed"],
                "proxy_mean": line["eval/scores"],
                "gold_mean": line["eval/gold"],
                "length_mean": line["eval/response_length"],
            }
            for line in map(json.loads, log.splitlines())
            if line.get("eval/gold") is not None
        ]
        table = pa.Table.from_pylist(rows)
    except (pa.ArrowException, OSError, ValueError, LookupError, TypeError, AttributeError, OverflowError) as error:
        raise StudyError(
            f"monotonicity: {folder.name} is no training that `train` finished ({brief(str(error), 120)}); name another"
        ) from error
    if not rows:
        raise StudyError(f"monotonicity: {folder.name} measured no gold reward; train it with --gold and --eval-steps")
    return table


def _per_seed(
    seeds: dict[float, _Points], measure: Callable[[Sequence[float], Sequence[float]], float]
) -> dict[float, float]:
    """Correlate each run's checkpoints; a reward that never moves is related to nothing: 0."""
    found = {seed: measure([p for _, p, _ in points], [g for _, _, g in points]) for seed, points in seeds.items()}
    return {seed: 0.0 if math.isnan(value) else value for seed, value in found.items()}


def _apart(gap: Interval, one: Interval, other: Interval) -> Interval:
    """Return how far a correlation that rises lies above another: where seeds do not tell, by intervals that do not meet."""
    low = one.estimate if math.isnan(one.low) else one.low
    high = other.estimate if math.isnan(other.high) else other.high
    return gap._replace(low=low - high, high=gap.estimate) if math.isnan(gap.low) and low > high else gap


def _summary(seeds: dict[float, _Points], values: dict[float, float], ranks: bool) -> Interval:
    if len(set(values.values())) == 1:
        return correlation(next(iter(values.values())), min(map(len, seeds.values())), ranks)
    whole = mean(list(values.values()))
    return whole._replace(low=max(whole.low, -1.0), high=min(whole.high, 1.0))


def _normalised(seeds: dict[float, _Points]) -> list[figure.Curve]:
    curves = []
    for label, place in (("proxy", 1), ("gold", 2)):
        by_step: dict[float, list[float]] = {}
        for points in seeds.values():
            values = np.array([point[place] for point in points])
            spread = values.std() or 1.0
            for point, value in zip(points, (values - values.mean()) / spread, strict=True):
                by_step.setdefault(point[0], []).append(float(value))
        steps = sorted(by_step)
        curves.append(figure.Curve(label, steps, [mean(by_step[step]) for step in steps]))
    return curves
