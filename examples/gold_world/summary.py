"""What an experiment came to, beside the paper's figures: the protocol's intervals over the tables, nothing else.

python -m examples.gold_world.summary DIR
"""

from __future__ import annotations

import csv
import math
import statistics
import sys
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

Row = Mapping[str, str]


def read(folder: Path, study: str) -> list[dict[str, str]]:
    """Return a study's table, empty where none of it is measured."""
    file = folder / "tables" / f"{study}.csv"
    if not file.exists():
        return []
    with file.open(encoding="utf-8") as lines:
        return list(csv.DictReader(lines))


def paired(rows: Sequence[Row], method: str, against: str) -> list[float]:
    """Return a method's quality minus another's, for each seed that has both."""
    by_seed: dict[str, dict[str, float]] = defaultdict(dict)
    for row in rows:
        by_seed[row["seed"]][row["method"]] = float(row["quality"])
    return [found[method] - found[against] for found in by_seed.values() if {method, against} <= set(found)]


def interval(values: Sequence[float]) -> tuple[float, float, float]:
    """Return the mean and its 95 % interval by Student's t; NaN where there are too few values for it."""
    from scipy.stats import t

    if len(values) < 2:
        return values[0] if values else math.nan, math.nan, math.nan
    mean = statistics.fmean(values)
    half = float(t.ppf(0.975, len(values) - 1)) * statistics.stdev(values) / math.sqrt(len(values))
    return mean, mean - half, mean + half


def wilson(hits: int, of: int) -> tuple[float, float, float]:
    """Return a share and its 95 % interval (Wilson 1927)."""
    z, share = 1.959964, hits / of
    middle, half = share + z * z / (2 * of), z * math.sqrt(share * (1 - share) / of + z * z / (4 * of * of))
    return share, (middle - half) / (1 + z * z / of), (middle + half) / (1 + z * z / of)


def lines(folder: Path) -> Iterator[str]:
    """Yield a Markdown table a study."""
    judged: dict[str, list[bool]] = defaultdict(list)
    for row in read(folder, "mismatch"):
        judged[row["reward"]].append(row["human"] != row["model"])
    yield "| reward model (rank-seed) | pairs | mismatch | 95 % |\n|---|---|---|---|"
    for reward, wrong in judged.items():
        share, low, high = wilson(sum(wrong), len(wrong))
        yield f"| {reward} | {len(wrong)} | {share:.1%} | {low:.1%} to {high:.1%} |"
    yield "\n| pairs of models | seed | rows in common | overlap | 95 % |\n|---|---|---|---|---|"
    for row in read(folder, "overlap"):
        share, low, high = wilson(int(row["shared"]), int(row["lowest"]))
        shared = f"{row['shared']} of {row['lowest']}"
        yield f"| {row['first']}, {row['second']} | {row['seed']} | {shared} | {share:.0%} | {low:.0%} to {high:.0%} |"
    for study in ("selection", "augmentation"):
        rows = read(folder, study)
        methods = list(dict.fromkeys(row["method"] for row in rows))
        base = "full" if study == "selection" else "none"
        yield f"\n| {study} | seeds | quality | − {base} | 95 % | − {base}, relative |\n|---|---|---|---|---|---|"
        whole = statistics.fmean([float(row["quality"]) for row in rows if row["method"] == base] or [0]) or math.nan
        for method in methods:
            values = [float(row["quality"]) for row in rows if row["method"] == method]
            mean, low, high = interval(paired(rows, method, base))
            gain = f"{mean:+.3f} | {low:+.3f} to {high:+.3f} | {mean / whole:+.1%}" if method != base else "| |"
            yield f"| {method} | {len(values)} | {statistics.fmean(values):.3f} | {gain} |"
        ours = "augment_seam" if study == "augmentation" else "seam"
        for other in methods:
            if other not in (ours, base):
                mean, low, high = interval(paired(rows, ours, other))
                yield f"| {ours} − {other} | | | {mean:+.3f} | {low:+.3f} to {high:+.3f} | |"
    yield from _grids(folder)
    scored: dict[str, dict[str, list[float]]] = defaultdict(lambda: defaultdict(list))
    for row in read(folder, "likelihood"):
        scored[row["set"]][row["row_id"]].append(float(row["logprob"]) / int(row["n_tokens"]))
    yield "\n| set | rows | nats a token, mean of rows' means |\n|---|---|---|"
    for name, by_row in scored.items():
        means = [statistics.fmean(values) for values in by_row.values()]
        yield f"| {name} | {len(means)} | {statistics.fmean(means):.2f} |"
    rated: dict[tuple[str, str], list[float]] = defaultdict(list)
    for row in read(folder, "sanity"):
        rated[row["model"], row["data"]].append(float(row["quality"]))
    yield "\n| model | instructions drawn as those of | seeds | quality |\n|---|---|---|---|"
    for (model, data), values in sorted(rated.items()):
        yield f"| {model} | {data} | {len(values)} | {statistics.fmean(values):.3f} |"


def _grids(folder: Path) -> Iterator[str]:
    rates: dict[tuple[str, str], list[str]] = defaultdict(list)
    for row in read(folder, "filter_rate"):
        rates[row["method"], row["rate"]].append(row["quality"])
    yield "\n| filter | rate | quality by seed | mean |\n|---|---|---|---|"
    for (method, rate), found in sorted(rates.items()):
        each = ", ".join(f"{float(q):.3f}" for q in found)
        yield f"| {method} | {rate} | {each} | {statistics.fmean(map(float, found)):.3f} |"
    grid: dict[tuple[int, int], list[float]] = defaultdict(list)
    for row in read(folder, "saturation"):
        grid[int(row["policy"]), int(row["reward"])].append(float(row["quality"]))
    tops = sorted({reward for _, reward in grid})
    yield "\n| policy \\ reward model | " + " | ".join(map(str, tops)) + " |\n|---" + "|---" * len(tops) + "|"
    for policy in sorted({policy for policy, _ in grid}):
        cells = (f"{statistics.fmean(grid[policy, r]):.3f}" if grid[policy, r] else "" for r in tops)
        yield f"| {policy} | " + " | ".join(cells) + " |"


if __name__ == "__main__":
    print("\n".join(lines(Path(sys.argv[1]))))
