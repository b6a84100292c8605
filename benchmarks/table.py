"""The table of docs/evidence/benchmarks.md, written from the files in benchmarks/results: `python -m benchmarks.table`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from benchmarks.machine import HELD, NOT_HELD

RESULTS = Path(__file__).with_name("results")
PAGE = Path(__file__).parents[1] / "docs" / "evidence" / "benchmarks.md"
START, END = "<!-- results: written by python -m benchmarks.table -->", "<!-- end of results -->"


def results() -> list[dict[str, Any]]:
    """Return the results of every machine, in the order of the files' names."""
    return [json.loads(file.read_text()) for file in sorted(RESULTS.glob("*.json"))]


def text() -> str:
    """Return what the page holds between its two marks."""
    return "\n\n".join([START, *(_machine(one) for one in results()), END])


def write() -> None:
    """Write the table into the page."""
    before, _, rest = PAGE.read_text().partition(START)
    PAGE.write_text(before + text() + rest.partition(END)[2])


def losses(lines: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Return the lines of peers that took less CPU time than seamcurate."""
    return [line for line in lines if line.get("ratio", 1.0) < 1.0]


def below_token_ratio(lines: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Return the lines whose ratio is below what reading each prompt once would give by itself."""
    return [line for line in lines if "ratio" in line and line["ratio"] < line.get("token_ratio", 0.0)]


def _machine(found: dict[str, Any]) -> str:
    machine, runs, lines = found["machine"], found["runs"], found["results"]
    raced = [line for line in lines if "ratio" in line]
    cores, threads = machine["cores"], machine["threads"]
    sizes = {"quick sizes" if run["quick"] else f"sizes times {run['scale']:g}" for run in runs}
    days, loads = sorted({run["day"] for run in runs}), [run["load"] for run in runs]
    parts = [
        f"### {machine['processor']}",
        f"{', '.join(machine['instruction_set'])}; {cores} cores, {threads} thread{'s' * (threads > 1)} used, "
        f"{machine['memory_gib']:.0f} GiB; {' and '.join(days)}, {' and '.join(sorted(sizes))}, "
        f"{sum(run['cpu_seconds'] for run in runs) / 60:.0f} minutes of processor time at a load of {' to '.join(dict.fromkeys(f'{load:g}' for load in (min(loads), max(loads))))}.",
        _rates(raced),
        f"{len(raced)} comparisons; in {len(losses(raced))} of them the peer took less CPU time (**bold**), "
        f"and {len(below_token_ratio(raced))} are below the token ratio (ᵗ).",
        "| race | setting | against | share, ours / theirs | ratio (by the clock) | token ratio | turns |\n|---|---|---|---|---|---|---|\n"
        + "\n".join(_row(line, machine["processor"].endswith(HELD)) for line in raced),
    ]
    if absent := [line for line in lines if "ratio" not in line]:
        parts.append("Not run:\n\n" + "\n".join(dict.fromkeys(_absent(line) for line in absent)))
    versions = ", ".join(f"{name} {number}" for name, number in machine["versions"].items())
    parts.append(f"Versions: {versions}.")
    return "\n\n".join(parts)


def _rates(lines: list[dict[str, Any]]) -> str:
    """Return the lowest and the highest matrix-product rate of any race, by precision and library."""
    rates: dict[str, list[float]] = {}
    for line in lines:
        for precision, libraries in line.get("product", {}).items():
            for library, rate in libraries.items():
                rates.setdefault(f"{precision} by {library}", []).append(rate)
    told = "; ".join(f"{name} {min(some):.0f} to {max(some):.0f}" for name, some in rates.items())
    return f"Matrix products, GFLOP per CPU second, the lowest and highest of the races: {told}."


def _row(line: dict[str, Any], is_held: bool) -> str:
    share, lost = line.get("share"), line["ratio"] < 1.0
    shares = f"{share['ours']:.0%} / {share['theirs']:.0%}" if share else ""
    ratio = f"{line['ratio']:.2f} ({line['wall']['ratio']:.2f})"
    low = "ᵗ" if below_token_ratio([line]) else ""
    against = line["against"]
    if line.get("reduced_precision"):
        against += f", answers differ by up to {line['difference']:g}"
    elif not line["same"]:
        against += ", **other answers**"
    if "recall" in line and line["recall"]["theirs"] < 1:
        against += f", recall {line['recall']['theirs']}"
    setting = line["setting"]
    if is_held:
        against += ", not held to AVX2" * any(name in against for name in NOT_HELD)
        setting += ", not held to AVX2" * ("backend: onnx" in setting)
    cells = [
        f"`{line['benchmark']}`",
        setting,
        against,
        shares,
        (f"**{ratio}**" if lost else ratio) + low,
        str(line.get("token_ratio", "")),
        str(line["repeats"]),
    ]
    return f"| {' | '.join(cells)} |"


def _absent(line: dict[str, Any]) -> str:
    name = f"`{line['benchmark']}`" + (f", {line['against']}" if line["against"] else "")
    if "failed" in line:
        return f"- {name}: failed: {line['failed']}"
    install = f": `{line['install']}`" if "install" in line else ""
    return f"- {name}: {line['not_run']}{install}"


if __name__ == "__main__":
    write()
