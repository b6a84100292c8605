"""The tables of docs/evidence/real-text.md, from the pieces' files: `python -m examples.real_text.page [PIECES]`.

With a folder of pieces, they are first copied into docs/evidence/results/real-text. The text between two marks of the page is
replaced; a test holds page and files equal.
"""

from __future__ import annotations

import json
import math
import re
import sys
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from seamcurate.study.statistics import holm

ROOT = Path(__file__).parents[2]
RESULTS = ROOT / "docs/evidence/results/real-text"
PAGE = ROOT / "docs/evidence/real-text.md"
PRIMARY, SECOND = "smol-800", "words-3900"
_SETS = {"stackexchange": "Stack Exchange", "human": "QA-Feedback and PandaLM"}
_PARTS = {
    f"{name}-{part}": f"{where}, {label}"
    for name, where in _SETS.items()
    for part, label in (("fresh", "fresh rows"), ("all", "all rows"))
}
_FAMILIES = ("smol", "words", "minilm", "lora-500", "lora-2000", "lora-3900", "gemma")
_COLUMNS = (
    *("seam_contrast", "misjudged_contrast", "reward", "baseline_reward_margin_contrast"),
    *("baseline_reward_spread_contrast", "baseline_rejected_reward_contrast", "baseline_reward_gap_contrast"),
    *("prompt_words", "response_words", "random", "the other half of the pairs"),
)


def main(pieces: Path | None) -> None:
    if pieces is not None:
        RESULTS.mkdir(parents=True, exist_ok=True)
        for file in sorted(pieces.glob("*.json")):
            (RESULTS / file.name).write_text(file.read_text(encoding="utf-8"), encoding="utf-8")
    PAGE.write_text(filled(PAGE.read_text(encoding="utf-8"), read(RESULTS)), encoding="utf-8")


def read(folder: Path) -> dict[str, dict[str, Any]]:
    """Return each piece by its name."""
    files = sorted(folder.glob("*.json"))
    return {file.stem: json.loads(file.read_text(encoding="utf-8")) for file in files}


def filled(page: str, pieces: dict[str, dict[str, Any]]) -> str:
    """Return the page with every marked place filled from the pieces."""
    tables: dict[str, Callable[[dict[str, dict[str, Any]]], str]] = {
        "accuracy": accuracy,
        "mismatch": mismatch,
        "seconds": seconds,
        "decisions": decisions,
    }
    for name in _SETS:
        tables[f"validity {name}"] = partial(validity, name=name)
        tables[f"weights {name}"] = partial(weights, name=name)
    tables |= {
        "fresh": fresh,
        "best of n": best_of_n,
        "own answers": own_answers,
        "written": written,
        "preferred": preferred,
        "proxies": proxies,
        "optimised": optimised,
        "moved": moved,
    }

    def fill(match: re.Match[str]) -> str:
        return f"<!-- {match[1]} -->\n\n{tables[match[1]](pieces)}\n\n<!-- end -->"

    return re.sub(r"<!-- ((?!end)[\w ]+?) -->\n.*?<!-- end -->", fill, page, flags=re.S)


def accuracy(pieces: dict[str, dict[str, Any]]) -> str:
    """Show how often each reward model is right on held-out pairs."""
    measured = [pieces[key] for family in _FAMILIES if (key := f"heads-{family}") in pieces]
    lines = []
    for piece in measured:
        rows = {(row["reward"], row["subset"]): row for row in piece["accuracy"]["table"]}
        for reward in dict.fromkeys(row["reward"] for row in piece["accuracy"]["table"] if row["kind"] == "model"):
            subsets = [subset for subset in ("all", "stackexchange", "hh-rlhf") if (reward, subset) in rows]
            lines.append([reward, *(_percent(rows[reward, subset], "accuracy") for subset in subsets)])
    return _commands(measured) + _table(["reward model", "all held-out pairs", "Stack Exchange", "HH-RLHF"], lines)


def validity(pieces: dict[str, dict[str, Any]], name: str) -> str:
    """Show the AUC of each column by reward model; SEAM with uniform weights, which need no policy."""
    studies: dict[str, dict[str, dict[str, Any]]] = {}
    measured = [pieces[key] for family in _FAMILIES if (key := f"{name}-{family}") in pieces]
    for piece in measured:
        for key, study in piece["validity"].items():
            reward, weight = key.split(" ")
            if weight == "uniform":
                studies[reward] = {row["column"]: row for row in study["table"]}
    lines = [
        [f"`{column}`" if "_" in column or column == "reward" else column]
        + [_plain(rows[column], "auc") if column in rows else "" for rows in studies.values()]
        for column in _COLUMNS
    ]
    return _commands(measured) + _table([f"AUC, {_SETS[name]}", *studies], [line for line in lines if any(line[1:])])


def fresh(pieces: dict[str, dict[str, Any]]) -> str:
    """Show what SEAM's column finds on rows that were not looked at before, and on all rows of a set together."""
    keys = [f"{part}-{family}" for part in _PARTS for family in ("smol", "gemma")]
    measured = [pieces[key] for key in keys if key in pieces]
    lines = []
    for piece in measured:
        for key, study in piece["validity"].items():
            rows = {row["column"]: row for row in study["table"]}
            ceiling = rows.get("the other half of the pairs")
            lines.append(
                [
                    _PARTS[piece["piece"].rpartition("-")[0]],
                    key.split(" ")[0],
                    str(rows["seam_contrast"]["rows"]),
                    *(_plain(rows[column], "auc") for column in ("seam_contrast", "misjudged_contrast", "reward")),
                    f"{_p_value(rows['seam_contrast']):.2g}",
                    "–" if ceiling is None else _plain(ceiling, "auc"),
                ]
            )
    heading = [
        "AUC",
        "reward model",
        "rows",
        "`seam_contrast`",
        "`misjudged_contrast`",
        "`reward`",
        "p alone",
        "the other half",
    ]
    return _commands(measured) + _table(heading, lines)


def weights(pieces: dict[str, dict[str, Any]], name: str) -> str:
    """Show SEAM's column by reward model and weight: AUC, Spearman, the share of wrong pairs in its worst 20 %."""
    lines: dict[str, list[str]] = {}
    # A reward model's uniform weights are those of its family's piece, beside whose columns its p is adjusted.
    measured = [pieces[key] for kind in ("likelihoods", *_FAMILIES) if (key := f"{name}-{kind}") in pieces]
    for piece in measured:
        for key, study in piece["validity"].items():
            row = {row["column"]: row for row in study["table"]}.get("seam_contrast")
            if row is not None:
                p = "–" if row["p"] is None else f"{row['p']:.2g}"
                lines[key] = [
                    *key.split(" "),
                    str(row["rows"]),
                    _plain(row, "auc"),
                    p,
                    _plain(row, "spearman"),
                    _percent(row, "caught"),
                ]
    heading = ["reward model", "weight", "rows", "AUC", "p (Holm)", "Spearman", "errors in the worst 20 %"]
    return _commands(measured) + _table(heading, list(lines.values()))


def own_answers(pieces: dict[str, dict[str, Any]]) -> str:
    """Show what SEAM over the policy's own answers finds, by set and reward model."""
    measured = [pieces[key] for name in _SETS if (key := f"{name}-policy") in pieces]
    lines = []
    for piece in measured:
        for reward, study in piece["validity"].items():
            rows = {row["column"]: row for row in study["table"]}
            # A column of one value ranks nothing, and has no row.
            aucs = [_plain(rows[c], "auc") if c in rows else "–" for c in ("seam_policy", "misjudged_policy", "reward")]
            where = _SETS[piece["piece"].removesuffix("-policy")]
            lines.append([where, reward, str(rows["random"]["rows"]), *aucs])
    return _commands(measured) + _table(
        ["AUC", "reward model", "rows", "`seam_policy`", "`misjudged_policy`", "`reward`"], lines
    )


def written(pieces: dict[str, dict[str, Any]]) -> str:
    """Show what SEAM finds by answers that were written to be worse, or attacked, beside SEAM_Contrast on the same rows."""
    kinds = {"gpt": "written by the policy", "adv": "attacked by PWWS"}
    keys = [f"{name}-{kind}" for name in _SETS for kind in ("gpt", "more-gpt", "adv")]
    measured = [pieces[key] for key in keys if key in pieces]
    lines = []
    for piece in measured:
        for key, study in piece["validity"].items():
            reward, variant = key.split(" ")
            rows = {row["column"]: row for row in study["table"]}
            columns = f"seam_{variant}", f"misjudged_{variant}", "seam_contrast"
            aucs = [_plain(rows[column], "auc") if column in rows else "–" for column in columns]
            where = _SETS[piece["piece"].split("-")[0]]
            lines.append([where, kinds[variant], reward, str(piece["rows"]), f"{piece['candidates']:.1f}", *aucs])
    heading = [
        "AUC",
        "worse answers",
        "reward model",
        "rows",
        "a row",
        "SEAM over them",
        "share misjudged",
        "`seam_contrast`",
    ]
    return _commands(measured) + _table(heading, lines)


def _trainings(pieces: dict[str, dict[str, Any]]) -> list[tuple[dict[str, Any], str]]:
    """Return each piece of trainings by PPO, with its updates and the most tokens of an answer."""
    measured = []
    for duration, kind in (("", "ppo"), ("longer-", "longer")):
        piece = pieces.get(f"human-{duration}ppo")
        if piece is not None:
            measured.append((piece, f"{piece['sizes'][f'{kind}_updates']} × {piece['sizes'][f'{kind}_tokens']}"))
    return measured


def optimised(pieces: dict[str, dict[str, Any]]) -> str:
    """Show how each gold went with each of RER's proxies while that was optimised by PPO."""
    measured = _trainings(pieces)
    lines = [
        [
            gold,
            row["proxy"].upper().replace("_", "·"),
            length,
            str(row["seeds"]),
            *(_plain(row, name) for name in ("spearman", "pearson", "length_spearman")),
        ]
        for piece, length in measured
        for gold, study in piece["monotonicity"].items()
        for row in study["table"]
    ]
    heading = ["gold", "optimised", "updates × tokens", "seeds", "Spearman", "Pearson", "Spearman of length and gold"]
    return _commands([piece for piece, _ in measured]) + _table(heading, lines)


def moved(pieces: dict[str, dict[str, Any]]) -> str:
    """Show how far proxy, golds and length went, from before training to its end, in means over seeds."""
    lines = [
        [row["proxy"].upper().replace("_", "·"), length, row["gold"]]
        + [
            f"{row[f'{measure}_first']:.{digits}f} → {row[f'{measure}_last']:.{digits}f}"
            for measure, digits in (("proxy_mean", 3), ("gold_mean", 3), ("length_mean", 1))
        ]
        for piece, length in _trainings(pieces)
        for row in piece["moved"]
    ]
    return _table(["optimised", "updates × tokens", "gold", "proxy", "gold's mean", "tokens of an answer"], lines)


def preferred(pieces: dict[str, dict[str, Any]]) -> str:
    """Show how often a reward model prefers people's best answer to one of the policy's own."""
    keys = [f"{name}-{kind}" for name in _SETS for kind in ("policy", "preferred")]
    measured = [pieces[key] for key in keys if key in pieces]
    lines = []
    for piece in measured:
        rows = {(row["reward"], row["golden"]): row for row in piece["preferred"]}
        for reward in dict.fromkeys(reward for reward, _ in rows):
            shares = [_percent(rows[reward, golden], "right") for golden in ("whole", "as long as the sample")]
            prompts = str(rows[reward, "whole"]["prompts"])
            lines.append([_SETS[piece["piece"].split("-")[0]], reward, prompts, *shares])
    heading = ["golden above the policy's answer", "reward model", "prompts", "whole", "cut to the answer's words"]
    return _commands(measured) + _table(heading, lines)


def proxies(pieces: dict[str, dict[str, Any]]) -> str:
    """Show what choosing the best of the policy's answers by RER and its parts adds to each gold, at the largest n."""
    measured = [pieces[key] for name in _SETS if (key := f"{name}-proxies") in pieces]
    lines = []
    for piece in measured:
        most = max(row["n"] for row in piece["gains"])
        for row in piece["gains"]:
            if row["n"] == most:
                label = row["proxy"].upper().replace("_", "·")
                above = "–" if row["proxy"] == "li" else _signed(row, "above_length")
                where = _SETS[piece["piece"].removesuffix("-proxies")]
                lines.append([where, row["gold"], label, str(row["prompts"]), _signed(row, "gain"), above])
    heading = ["best of 4", "gold", "chosen by", "prompts", "gold gains, sd", "above LI"]
    return _commands(measured) + _table(heading, lines)


def mismatch(pieces: dict[str, dict[str, Any]]) -> str:
    """Show how often each reward model, and each simple rule, disagrees with people, by source."""
    measured = [pieces[key] for family in _FAMILIES if (key := f"mismatch-{family}") in pieces]
    rows = [row for piece in measured for row in piece["mismatch"]["table"]]
    shares: dict[tuple[str, str], dict[str, Any]] = {}
    for row in rows:
        # Simple rules stand in every piece: those of most pairs are shown.
        key = row["reward"], row["subset"]
        if key not in shares or row["pairs"] > shares[key]["pairs"]:
            shares[key] = row
    subsets = list(dict.fromkeys(subset for _, subset in shares))
    pairs = {subset: max(row["pairs"] for (_, name), row in shares.items() if name == subset) for subset in subsets}

    def shown(reward: str, subset: str) -> str:
        # Where a family was not asked of a set, all of its pairs are others than everybody's.
        asked = subsets if subset == "all" else [subset]
        return _percent(shares[reward, subset], "mismatch") if all((reward, one) in shares for one in asked) else ""

    lines = [
        [reward, *(shown(reward, subset) for subset in subsets)]
        for reward in dict.fromkeys(reward for reward, _ in shares)
    ]
    if not lines:
        return "Not measured."
    sizes = ["pairs", *(f"{pairs[subset]:,}" for subset in subsets)]
    return _commands(measured) + _table(["disagrees with people", *subsets], [*lines, sizes])


def best_of_n(pieces: dict[str, dict[str, Any]]) -> str:
    """Show what leaving out 20 % by SEAM's column gains over as many rows at random, among people's answers."""
    lines = []
    measured = [piece for piece in pieces.values() if piece.get("best_of_n")]
    for piece in measured:
        for reward, study in piece["best_of_n"].items():
            rows = {(row["column"], row["n"]): row for row in study["table"]}
            for n in sorted({n for _, n in rows} - {1}):
                full, own = rows["all rows", n], rows.get(("seam_contrast", n))
                start = rows["all rows", 1]["quality"]
                if own is not None:
                    gain = f"{full['quality'] - start:+.3f}"
                    lines.append(
                        [
                            *reward.split(" "),
                            str(piece["rows"]),
                            str(n),
                            f"{start:.3f}",
                            gain,
                            _signed(own, "above_random"),
                            _signed(own, "above_full"),
                        ]
                    )
    heading = [
        "reward model",
        "weight",
        "questions",
        "n",
        "mean votes",
        "best of n adds",
        "SEAM's 20 % left out, over random",
        "over all rows",
    ]
    return _commands(measured) + _table(heading, lines)


def decisions(pieces: dict[str, dict[str, Any]]) -> str:
    """Say what the protocol's rules come to, for the primary reward model and for the one that cannot decide in its place."""
    lines = []
    for reward in (PRIMARY, SECOND):
        lines += [[line[0], f"`{reward}`", *line[1:]] for line in _decided(pieces, reward)]
    lines += [_decided_by_golds(pieces, "R6 the best of 4 by RER raises gold", "gain")]
    lines += [_decided_by_golds(pieces, "R7 … more than by length", "above_length")]
    lines += [_decided_by_training(pieces, "R8 gold rises with RER under PPO", "human-ppo")]
    lines += [_decided_by_fresh_rows(pieces)]
    lines += [_decided_by_training(pieces, "R10 gold rises with RER under longer PPO", "human-longer-ppo")]
    return _table(["claim", "reward model", "verdict", "measured"], lines)


def _decided_by_fresh_rows(pieces: dict[str, dict[str, Any]]) -> list[str]:
    """Apply the rule on rows that were not looked at before: one test."""
    studies = pieces.get("human-fresh-smol", {}).get("validity", {})
    verdict, figures = "open", "not measured"
    if f"{PRIMARY} uniform" in studies:
        row = next(row for row in studies[f"{PRIMARY} uniform"]["table"] if row["column"] == "seam_contrast")
        p = _p_value(row)
        verdict = "not shown" if p >= 0.05 else "shown" if row["auc"] > 0.5 else "refuted"
        figures = f"{_SETS['human']} {_plain(row, 'auc')}, p = {p:.2g}"
    return ["R9 it finds misjudged rows, on fresh rows", f"`{PRIMARY}`", verdict, figures]


def _decided_by_training(pieces: dict[str, dict[str, Any]], claim: str, piece: str) -> list[str]:
    """Apply the rule on PPO: over seeds, each gold rises with RER, or falls, or neither."""
    studies = pieces.get(piece, {}).get("monotonicity", {})
    rows = {gold: row for gold, study in studies.items() for row in study["table"] if row["proxy"] == "rer"}
    if not rows:
        verdict = "open"
    elif all(row["spearman_low"] > 0 for row in rows.values()):
        verdict = "shown"
    else:
        verdict = "refuted" if all(row["spearman_high"] < 0 for row in rows.values()) else "not shown"
    told = "; ".join(f"{gold} {_plain(row, 'spearman')}" for gold, row in rows.items())
    return [claim, "both golds", verdict, told or "not measured"]


def _decided_by_golds(pieces: dict[str, dict[str, Any]], claim: str, measure: str) -> list[str]:
    """Apply a rule on RER to every set and gold: all shown, or all against, or neither."""
    rows = [
        (f"{_SETS[name]}, {row['gold']}", row)
        for name in _SETS
        for row in pieces.get(f"{name}-proxies", {}).get("gains", [])
        if row["proxy"] == "rer" and row["n"] == 4
    ]
    if len(rows) < 2 * len(_SETS):
        verdict = "open"
    elif all(row[f"{measure}_low"] > 0 for _, row in rows):
        verdict = "shown"
    else:
        verdict = "refuted" if all(row[f"{measure}_high"] < 0 for _, row in rows) else "not shown"
    told = "; ".join(f"{where} {_signed(row, measure)}" for where, row in rows)
    return [claim, "both golds", verdict, told or "not measured"]


def _decided(pieces: dict[str, dict[str, Any]], reward: str) -> list[list[str]]:
    """Apply the rules to one reward model: claim, verdict, figures. A claim whose pieces did not run is open."""
    family, key = reward.split("-")[0], f"{reward} uniform"
    lines = []
    aucs = {}
    for name in _SETS:
        studies = pieces.get(f"{name}-{family}", {}).get("validity", {})
        if key in studies:
            aucs[name] = next(row for row in studies[key]["table"] if row["column"] == "seam_contrast")
    claims = "R1 it finds misjudged rows", "R2 it is of use: AUC above .60"
    if len(aucs) == len(_SETS):
        rows = list(aucs.values())
        p_values = holm([_p_value(row) for row in rows])
        measured = "; ".join(
            f"{_SETS[name]} {_plain(row, 'auc')}, p = {p:.2g}"
            for (name, row), p in zip(aucs.items(), p_values, strict=True)
        )
        finds = all(p < 0.05 and row["auc"] > 0.5 for row, p in zip(rows, p_values, strict=True))
        lines.append([claims[0], "shown" if finds else "not shown", measured])
        of_use = all(row["auc_low"] > 0.6 for row in rows)
        no_use = all(row["auc_high"] < 0.6 for row in rows)
        lines.append([claims[1], "shown" if of_use else "refuted" if no_use else "not shown", "the same"])
    else:
        figures = "; ".join(f"{_SETS[name]} {_plain(row, 'auc')}" for name, row in aucs.items())
        lines += [[claim, "open", figures or "not measured"] for claim in claims]
    table = pieces.get(f"mismatch-{family}", {}).get("mismatch", {}).get("table", [])
    wrong = [row for row in table if row["kind"] == "model" and row["subset"] == "all"]
    claims = "R3 more pairs, fewer mismatches", "R4 mismatch as published, 35 to 40 %"
    if wrong:
        wrong.sort(key=lambda row: int(row["reward"].split("-")[1]))
        values = [row["mismatch"] for row in wrong]
        falls = values == sorted(values, reverse=True) and wrong[-1]["mismatch_high"] < wrong[0]["mismatch_low"]
        measured = "; ".join(f"{row['reward']} {_percent(row, 'mismatch')}" for row in wrong)
        lines.append([claims[0], "shown" if falls else "not shown", measured])
        last = wrong[-1]
        meets = last["mismatch_low"] <= 0.4 and last["mismatch_high"] >= 0.35
        lines.append([claims[1], "shown" if meets else "refuted", _percent(last, "mismatch")])
    else:
        lines += [[claim, "open", "not measured"] for claim in claims]
    gains = pieces.get(f"stackexchange-{family}", {}).get("best_of_n", {}).get(key)
    claim = "R5 leaving out its 20 % gains over random"
    if gains:
        entries = {(row["column"], row["n"]): row for row in gains["table"]}
        best = max(
            (n for name, n in entries if name == "all rows" and n > 1), key=lambda n: entries["all rows", n]["quality"]
        )
        own = entries["seam_contrast", best]
        verdict = "shown" if own["above_random_low"] > 0 else "not shown"
        lines.append([claim, verdict, f"{_signed(own, 'above_random')} votes at n = {best}"])
    else:
        lines.append([claim, "open", "not measured"])
    return lines


def _p_value(row: dict[str, Any]) -> float:
    """Return the two-sided p of an AUC of .5, by the width of the bootstrap's interval."""
    error = (row["auc_high"] - row["auc_low"]) / (2 * 1.96)
    return math.erfc(abs(row["auc"] - 0.5) / error / math.sqrt(2))


def seconds(pieces: dict[str, dict[str, Any]]) -> str:
    """Show what each piece took."""
    lines = [[f"`{name}`", f"{piece['cpu_seconds']:,.0f}"] for name, piece in pieces.items()]
    total = sum(piece["cpu_seconds"] for piece in pieces.values())
    return _table(["piece", "CPU seconds"], [*lines, ["all", f"{total:,.0f}"]])


def _commands(pieces: Sequence[dict[str, Any]]) -> str:
    """Say which command gave a table; nothing where none did."""
    if not pieces:
        return ""
    names = " ".join(piece["piece"] for piece in pieces)
    return f"`python -m examples.real_text.experiment DATA OUT {names}`\n\n"


def _table(heading: Sequence[str], lines: Sequence[Sequence[str]]) -> str:
    if not lines:
        return "Not measured."
    rows = [heading, ["---"] * len(heading), *lines]
    return "\n".join(f"| {' | '.join(row)} |" for row in rows)


def _plain(row: dict[str, Any], name: str) -> str:
    if row[name] is None or row[f"{name}_low"] is None:
        return "–"
    return f"{row[name]:.2f} ({row[f'{name}_low']:.2f} to {row[f'{name}_high']:.2f})"


def _signed(row: dict[str, Any], name: str) -> str:
    if row[name] is None or row[f"{name}_low"] is None:
        return "–"
    return f"{row[name]:+.3f} ({row[f'{name}_low']:+.3f} to {row[f'{name}_high']:+.3f})"


def _percent(row: dict[str, Any], name: str) -> str:
    if row[name] is None or row[f"{name}_low"] is None:
        return "–"
    return f"{100 * row[name]:.1f} % ({100 * row[f'{name}_low']:.1f} to {100 * row[f'{name}_high']:.1f})"


if __name__ == "__main__":
    main(Path(sys.argv[1]) if len(sys.argv) > 1 else None)
