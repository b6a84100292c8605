"""The race itself: seamcurate and its peers by turns on the same inputs, their answers compared, one line of JSON a peer.

The machine's matrix-product rate is measured in the same turns, so that what else the machine does slows all alike.
"""

from __future__ import annotations

import json
import re
import statistics
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

from benchmarks import machine, processes

A = TypeVar("A")
B = TypeVar("B")
_FOLDERS = re.compile(r"(?<!\S)(?:/[^/\s]+)+/(?=[^/\s])")
"""The folders of an absolute path, in a message."""

lines: list[dict[str, Any]] = []
"""What was printed so far, in this process."""
limit_s: float = float("inf")
"""CPU seconds of this process after which a race begins no further turn."""


@dataclass(frozen=True)
class Peer(Generic[B]):
    """One entrant beside seamcurate.

    Attributes:
        run: Does the work and returns the answers.
        precise: Whether its answers must be those of seamcurate: those of int8 are not, and only the difference is told.
    """

    run: Callable[[], B]
    precise: bool = True


@dataclass(frozen=True)
class Work:
    """What a race has to compute, whoever does it.

    Attributes:
        flops: Floating-point operations of the model on the tokens that are needed, each counted once.
        token_ratio: Tokens of all pairs, over tokens where each prompt is read once.
    """

    flops: float
    token_ratio: float | None = None


def record(line: dict[str, Any]) -> None:
    """Print a line of JSON, and keep it for the file of results."""
    lines.append(line)
    print(json.dumps(line, ensure_ascii=False), flush=True)


def missing(benchmark: str, against: str, reason: str, install: str | None = None) -> None:
    """Record that a peer was not run, why, and what installs it; of files only the names, as their folders are this machine's."""
    reason = _FOLDERS.sub("", reason)
    record({"benchmark": benchmark, "against": against, "not_run": reason} | ({"install": install} if install else {}))


def race(
    benchmark: str,
    setting: str,
    ours: Callable[[], A],
    peers: Mapping[str, Peer[B]],
    same: Callable[[A, B], bool],
    repeats: int = 3,
    *,
    unit: str = "CPU s",
    units: Callable[[Any], float] = lambda answers: 1.0,
    work: Work | None = None,
    difference: Callable[[A, B], float] | None = None,
    more: Callable[[A, B], dict[str, object]] = lambda a, b: {},
) -> None:
    """Run all by turns and record the medians, a line for each peer.

    `ours`, `theirs` and `ratio` are CPU seconds of all processes of a side, which a busy machine does not change much;
    `wall` holds the same by the clock, `ratios` the lowest and highest ratio of one turn, and `share` the part of the
    machine's float32 matrix-product rate that each side reached.

    Args:
        benchmark: Its name.
        setting: What was asked, for the reader.
        ours: What seamcurate does.
        peers: The others, by name.
        same: Compares the answers of the last turn.
        repeats: How many turns.
        unit: What `ours` and `theirs` count.
        units: How many units of work some answers are, where sides do unlike amounts; seconds are divided by it.
        work: What has to be computed for one unit, where that is matrix products.
        difference: How far answers are apart, for the line.
        more: Further values for the line.

    Raises:
        SystemExit: A peer that computes in the same precision gave other answers.
    """
    mine_s: list[tuple[float, float]] = []
    theirs_s: dict[str, list[tuple[float, float]]] = {name: [] for name in peers}
    rates: list[dict[str, dict[str, float]]] = []
    answers: dict[str, B] = {}
    start = time.process_time()
    while not mine_s or (len(mine_s) < repeats and time.process_time() - start < limit_s):
        rates.append(machine.products())
        mine = _timed(Peer(ours), mine_s, units)
        for name, peer in peers.items():
            answers[name] = _timed(peer, theirs_s[name], units)
    product = {
        precision: {library: round(statistics.median(r[precision][library] for r in rates), 1) for library in found}
        for precision, found in rates[0].items()
    }
    cpu, wall = (statistics.median(turn[i] for turn in mine_s) for i in (0, 1))
    wrong = []
    for name, peer in peers.items():
        their_cpu, their_wall = (statistics.median(turn[i] for turn in theirs_s[name]) for i in (0, 1))
        ratios = [theirs[0] / own[0] for own, theirs in zip(mine_s, theirs_s[name], strict=True)]
        line: dict[str, Any] = {
            "benchmark": benchmark,
            "against": name,
            "setting": setting,
            "ratio": round(their_cpu / cpu, 2),
            "ratios": [round(min(ratios), 2), round(max(ratios), 2)],
            "ours": _short(cpu),
            "theirs": _short(their_cpu),
            "unit": unit,
            "repeats": len(mine_s),
            "same": bool(same(mine, answers[name])),
            "wall": {"ratio": round(their_wall / wall, 2), "ours": _short(wall), "theirs": _short(their_wall)},
        }
        if not peer.precise:
            line["reduced_precision"] = True
        if difference is not None:
            line["difference"] = _short(difference(mine, answers[name]), 2)
        if work is not None:
            best = max(product["float32"].values())
            line |= {
                "share": {
                    side: round(work.flops / seconds / best / 1e9, 3)
                    for side, seconds in (("ours", cpu), ("theirs", their_cpu))
                },
                "tflop": _short(work.flops / 1e12),
                **({} if work.token_ratio is None else {"token_ratio": round(work.token_ratio, 2)}),
                "product": product,
            }
        record(line | more(mine, answers[name]))
        if peer.precise and not line["same"]:
            wrong.append(name)
    if wrong:
        raise SystemExit(
            f"{benchmark}: the answers of seamcurate and of {' and '.join(wrong)} differ, so their times do not compare"
        )


def quickest(choices: Mapping[str, Callable[[], object]]) -> str:
    """Run each once and name the one that took the fewest CPU seconds."""
    seconds = {}
    for name, run in choices.items():
        start = time.process_time()
        run()
        seconds[name] = time.process_time() - start
    return min(seconds, key=lambda name: seconds[name])


def _short(value: float, digits: int = 4) -> float:
    return float(f"{value:.{digits}g}")


def _timed(peer: Peer[B], into: list[tuple[float, float]], units: Callable[[Any], float]) -> B:
    # Looking for processes takes time itself, which is left out.
    children = processes.children_s()
    wall, cpu = time.perf_counter(), time.process_time()
    answer = peer.run()
    cpu, wall = time.process_time() - cpu, time.perf_counter() - wall
    seconds = max(cpu + processes.children_s() - children, 1e-4), wall
    count = units(answer)
    into.append((seconds[0] / count, seconds[1] / count))
    return answer
