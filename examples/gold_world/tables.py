"""The tables of docs/evidence/gold-world.md, from files of results alone.

    python -m examples.gold_world.tables [--write]

One rule: a figure in the docs comes from docs/evidence/results, by this command; a test holds the two equal.
"""

from __future__ import annotations

import argparse
import csv
import io
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from examples.gold_world import runs, verdicts
from examples.gold_world.columns import CONTROLS, MISJUDGEMENT
from examples.gold_world.reward import Dials
from examples.gold_world.verdicts import CONTRAST, GPT, PLANNED, PRIMARY, RATES, Results
from seamcurate.study.statistics import Interval

ROOT = Path(__file__).resolve().parents[2]
PAGE, FOLDER = ROOT / "docs/evidence/gold-world.md", ROOT / "docs/evidence/results"
TRAININGS = FOLDER / "gold-world-rl.jsonl"
"""Tier R's results, which have tables of their own."""
BEGIN, END = "<!-- {}: written by examples.gold_world.tables -->", "<!-- end -->"
SETTINGS = (PRIMARY, verdicts.SOUND, Dials(4000, 4), Dials(1000, 2), Dials(500, 2))
NETWORK_ARMS = (
    "seam_contrast", "seam_gpt", "seam_policy", "misjudged_contrast", "rip", "spread", "perplexity", "seam_shuffled",
    "random2", "oracle", "anti",
)  # fmt: skip
ARMS = {
    "SEAM_Contrast": CONTRAST,
    "SEAM_GPT": GPT,
    "SEAM over the policy's samples": "seam_policy",
    "misjudged share, contrast": "misjudged_contrast",
    "R.I.P., rejected reward": "rip_reward_contrast",
    "reward spread": "spread_contrast",
    "perplexity of golden": "perplexity",
    "SEAM with shuffled rewards": "seam_shuffled",
    "a second random draw": "random2",
    "oracle": "oracle",
    "anti-oracle": "anti",
}


def told(interval: Interval, form: str = "+.2f") -> str:
    """Write an interval as `estimate (low to high)`."""
    if not interval.n:
        return "–"
    if math.isnan(interval.low):
        return format(interval.estimate, form)
    return f"{interval.estimate:{form}} ({interval.low:{form}} to {interval.high:{form}})"


def column_rows(results: Results) -> list[dict[str, object]]:
    """Return what each column finds, and what it gains: a row a column of (4,000; b 2), the highest AUC first."""
    valid = results.of("prompts", PRIMARY, "auc_error", PLANNED["V"])
    benefit = results.of("prompts", PRIMARY, "arms")
    attacks = results.of("attack", PRIMARY, "validity")
    rows: list[dict[str, object]] = []
    for cells, names in ((valid, list(valid[0]["validity"]) if valid else []), (attacks, _adv(attacks))):
        for name in names:
            measured = [_mean(cells, "validity", name, i) for i in range(4)]
            if cells is valid:
                values = [verdicts.quality(c, name, 4) - verdicts.quality(c, "expected random", 4) for c in benefit]
            else:
                by_seed = {cell["seed"]: cell for cell in benefit}
                both = [cell for cell in attacks if "arms" in cell and cell["seed"] in by_seed]
                values = [
                    cell["arms"][name][1] - verdicts.quality(by_seed[cell["seed"]], "expected random", 4)
                    for cell in both
                ]
            full = verdicts.full(benefit, 4)
            gain = verdicts.mean([100 * value / full for value in values])
            kind = (
                "control" if name in CONTROLS else "misjudgement" if name in MISJUDGEMENT or "adv" in name else "other"
            )
            row: dict[str, object] = {"column": name, "kind": kind}
            for measure, interval in zip(
                ("auc", "spearman", "within_family", "harm_in_worst_20"), measured, strict=True
            ):
                row |= _cells(measure, interval)
            rows.append(
                {**row, **_cells("gain_percent", gain), "repetitions_v": measured[0].n, "repetitions_b": gain.n}
            )
    return sorted(rows, key=lambda row: -float(str(row["auc"] or 0)))


def _adv(attacks: Sequence[dict[str, Any]]) -> list[str]:
    return [name for name in (attacks[0]["validity"] if attacks else ()) if name.startswith(("seam_", "misjudged_"))]


def _cells(name: str, interval: Interval) -> dict[str, object]:
    values = {name: interval.estimate, f"{name}_low": interval.low, f"{name}_high": interval.high}
    return {key: "" if math.isnan(value) else round(value, 4) for key, value in values.items()}


def _mean(cells: Sequence[dict[str, Any]], part: str, name: str, place: int) -> Interval:
    return verdicts.mean([cell[part][name][place] for cell in cells if cell[part][name][place] is not None])


def columns_csv(results: Results) -> str:
    """Return what each column finds as CSV."""
    rows = column_rows(results)
    lines = io.StringIO()
    writer = csv.DictWriter(lines, list(rows[0]) if rows else ["column"], lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return lines.getvalue()


def tables(results: Results) -> list[str]:
    """Return all tables of one file of results."""
    parts = (
        ("Gates", _gates(results)),
        ("Claims", verdicts.lines(results)),
        ("What each column finds, (4,000; b 2)", _columns(results)),
        ("Tier B: 20 % left out, % of all prompts' quality", _benefit(results)),
        ("Tier B: rates, (4,000; b 2), n = 4, above all prompts, %", _rates(results)),
        ("Tier B: wrong golden responses, (4,000; b 2)", _golden(results)),
        ("Tier H: unseen prompts, 20 % left out", _network(results)),
        ("Cost", _cost(results)),
    )
    found: list[str] = []
    for title, lines in parts:
        if lines:
            found += [f"**{title}**", "", *lines, ""]
    return found[:-1]


def _gates(results: Results) -> list[str]:
    lines = [
        "| setting | tier | G3 right · gain | G4 full, % | G5 oracle · anti, % | G6 null, % | passed |",
        "|---|---|---|---|---|---|---|",
    ]
    for tier in "BH":
        for dials in SETTINGS:
            gate = results.gates.get(f"gates-{tier}-{dials.pairs}-{dials.blind}")
            if gate:
                cells = [
                    f"{_span(gate['G3']['accuracy'], '.3f')} · {_span(gate['G3']['gain'], '+.3f')}",
                    _span(gate["G4"]["full"]),
                    f"{_span(gate['G5']['oracle'])} · {_span(gate['G5']['anti'])}",
                    _span(gate["G6"]["null"]),
                    "yes"
                    if gate["passed"]
                    else "**no**: " + ", ".join(n for n in gate if n[0] == "G" and not gate[n]["passed"]),
                ]
                lines.append(f"| {verdicts.label(dials)} | {tier} | {' | '.join(cells)} |")
    truth = results.gates.get("gates-H")
    if truth:
        values = ", ".join(f"{value:+.3f}" for value in truth["G2"]["values"])
        lines += [
            "",
            f"G2, truth as reward on unseen prompts: {values} ({'passed' if truth['G2']['passed'] else '**failed**'}).",
        ]
    return lines if len(lines) > 2 else []


def _span(values: Sequence[float], form: str = "+.2f") -> str:
    return told(Interval(*values, n=1), form)


def _columns(results: Results) -> list[str]:
    rows = column_rows(results)
    if not rows:
        return []
    lines = [
        "| column, high is suspected | AUC | Spearman with error | within family | harm in worst 20 % | gain over random, n = 4, % |",
        "|---|---|---|---|---|---|",
    ]
    for row in rows:
        name = f"*{row['column']}*" if row["kind"] == "control" else f"`{row['column']}`"
        cells = [
            _range(row, "auc", ".2f"), _range(row, "spearman", "+.2f"), _range(row, "within_family", "+.2f"),
            _range(row, "harm_in_worst_20", ".0%"), _range(row, "gain_percent", "+.2f"),
        ]  # fmt: skip
        lines.append(f"| {name} | {' | '.join(cells)} |")
    return [
        *lines,
        "",
        f"n = {rows[0]['repetitions_v']} repetitions for the first four, {rows[0]['repetitions_b']} for the gain (`adv`: {_adv_n(rows)}).",
    ]


def _adv_n(rows: Sequence[dict[str, object]]) -> object:
    return next((row["repetitions_b"] for row in rows if "adv" in str(row["column"])), "not measured yet")


def _range(row: dict[str, object], name: str, form: str) -> str:
    estimate, low, high = (row[key] for key in (name, f"{name}_low", f"{name}_high"))
    return (
        "–"
        if estimate == ""
        else told(Interval(estimate, math.nan if low == "" else low, math.nan if high == "" else high, 1), form)
    )  # type: ignore[arg-type]


def _benefit(results: Results) -> list[str]:
    lines: list[str] = []
    for dials in SETTINGS:
        cells = results.of("prompts", dials, "arms")
        if not cells:
            continue
        every = results.of("prompts", dials, "accuracy")
        accuracy = np.mean([cell["accuracy"] for cell in every])
        full = ", ".join(f"{np.mean([c['full'][i] for c in cells]):.3f}" for i in range(4))
        base = np.mean([cell["sft"] for cell in cells])
        lines += [
            f"({verdicts.label(dials)}), n = {len(cells)}: reward right on {accuracy:.1%} of pairs; quality {base:.3f}, all prompts "
            f"at n = 2, 4, 8, 16: {full}",
            "",
            "| left out by | − random, n = 4 | − random, n = 16 | − all prompts, n = 4 | − all prompts, n = 16 | share of the oracle's gain, n = 4 |",
            "|---|---|---|---|---|---|",
        ]
        oracle = float(np.mean(verdicts.gains(cells, "oracle", "random")))
        for label, name in {"random": "random", **ARMS}.items():
            measured = [
                "–" if name == other else told(verdicts.mean(verdicts.gains(cells, name, other, n)))
                for other in ("random", "full")
                for n in (4, 16)
            ]
            share = np.mean(verdicts.gains(cells, name, "random")) / oracle if oracle > 0 else math.nan
            lines.append(
                f"| {label} | {' | '.join(measured)} | {'–' if name in ('random', 'random2') else f'{share:.0%}'} |"
            )
        lines.append("")
    return lines[:-1]


def _rates(results: Results) -> list[str]:
    cells = results.of("prompts", PRIMARY, "rates")
    if not cells:
        return []
    lines = ["| left out by | " + " | ".join(f"{rate:.0%}" for rate in RATES) + " |", "|---|" + "---|" * len(RATES)]
    for name in cells[0]["rates"]:
        curve = verdicts.rate_curve(cells, name)
        lines.append(f"| `{name}` | " + " | ".join(told(verdicts.mean(curve[rate])) for rate in RATES) + " |")
    return lines


def _golden(results: Results) -> list[str]:
    cells = results.of("prompts", PRIMARY, "golden")
    if not cells:
        return []
    full = verdicts.full(cells, 4)
    shares = verdicts.GOLDEN_SHARES
    lines = [
        "| column | "
        + " | ".join(f"AUC, {share:.0%} wrong" for share in shares)
        + " | "
        + " | ".join(f"gain, {share:.0%} wrong, %" for share in shares)
        + " |",
        "|---|" + "---|" * (2 * len(shares)),
    ]
    for name in cells[0]["golden"]:
        aucs = [told(verdicts.mean([c["golden"][name][i][0] for c in cells]), ".2f") for i in range(len(shares))]
        gains = [
            told(
                verdicts.mean(
                    [100 * (c["golden"][name][i][1] - verdicts.quality(c, "expected random", 4)) / full for c in cells]
                )
            )
            for i in range(len(shares))
        ]
        lines.append(f"| {name} | {' | '.join(aucs + gains)} |")
    return lines


def _network(results: Results) -> list[str]:
    lines: list[str] = []
    for dials in SETTINGS[:2]:
        cells = results.of("network", dials, "arms")
        if not cells:
            continue
        before, full = (
            float(np.mean([cell["before"][0] for cell in cells])),
            float(np.mean([cell["arms"]["full"][0] for cell in cells])),
        )
        rank, p = verdicts.permutation(cells)
        lines += [
            f"({verdicts.label(dials)}), n = {len(cells)}: quality on unseen prompts {before:.4f} before, {full:.4f} with all prompts; mean rank of "
            f"SEAM_Contrast among it and {len(cells[0]['permutations'])} random drops {rank:.1f} (p = {p:.2g}, one-sided, exact)",
            "",
            "| left out by | − random, unseen, % | − all prompts, unseen, % | − random, RL prompts, % |",
            "|---|---|---|---|",
        ]
        for name in ("random", *NETWORK_ARMS):
            measured = [
                "–" if name == other else told(verdicts.mean(verdicts.network_gains(cells, name, other, where)))
                for other, where in (("random", 0), ("full", 0), ("random", 1))
            ]
            lines.append(f"| `{name}` | {' | '.join(measured)} |")
        lines.append("")
    return lines[:-1]


def _cost(results: Results) -> list[str]:
    lines = ["| pieces | n | CPU seconds each | in all |", "|---|---|---|---|"]
    kinds = sorted({name.partition("-")[0] for name in results.cells})
    groups = {
        "gates": list(results.gates.values()),
        **{k: [c for n, c in results.cells.items() if n.startswith(f"{k}-")] for k in kinds},
    }
    for name, pieces in groups.items():
        if pieces:
            total = sum(float(piece["cpu"]) for piece in pieces)
            lines.append(f"| {name} | {len(pieces)} | {total / len(pieces):.1f} | {total:,.0f} |")
    return lines if len(lines) > 2 else []


def written(page: str, name: str, lines: Sequence[str]) -> str:
    """Return a page with a file's tables in their place.

    Raises:
        SystemExit: The page has no place for them.
    """
    begin = BEGIN.format(name)
    before, found, rest = page.partition(begin)
    _, end, after = rest.partition(END)
    if not found or not end:
        raise SystemExit(f"{PAGE} has no lines {begin} and {END}; add them where the tables belong")
    return f"{before}{begin}\n\n" + "\n".join(lines) + f"\n\n{END}{after}"


def made() -> dict[Path, str]:
    """Return every file that follows from the results, with its text."""
    page, files = PAGE.read_text(encoding="utf-8"), {}
    for file in sorted(FOLDER.glob("gold-world-*.jsonl")):
        results = Results.read(file)
        if file == TRAININGS:
            page = written(page, file.name, runs.tables(results))
            continue
        page = written(page, file.name, tables(results))
        files[file.with_name(f"{file.stem}-columns.csv")] = columns_csv(results)
    return {**files, PAGE: page}


def main() -> None:
    """Say whether the docs hold what the results say, or write it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--write", action="store_true", help="write page and tables")
    given = parser.parse_args()
    for file, text in made().items():
        if given.write:
            file.write_text(text, encoding="utf-8")
        elif not file.exists() or file.read_text(encoding="utf-8") != text:
            raise SystemExit(f"{file} is not what the results say; run with --write")


if __name__ == "__main__":
    main()
