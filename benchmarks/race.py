"""The race itself: two functions by turns on the same inputs, their answers compared, one line of JSON."""

from __future__ import annotations

import json
import statistics
import time
from collections.abc import Callable
from typing import TypeVar

A = TypeVar("A")
B = TypeVar("B")


def race(
    benchmark: str,
    against: str,
    ours: Callable[[], A],
    theirs: Callable[[], B],
    same: Callable[[A, B], bool],
    setting: str,
    repeats: int = 3,
    more: Callable[[], dict[str, object]] = dict,
) -> None:
    """Run both by turns and print the medians; `same` compares their last answers.

    `ours`, `theirs` and `ratio` are CPU seconds of the whole process, which a busy machine does not change much;
    `wall` holds the same by the clock.
    """
    seconds: dict[str, list[tuple[float, float]]] = {"ours": [], "theirs": []}
    for _ in range(repeats):
        mine = _timed(ours, seconds["ours"])
        other = _timed(theirs, seconds["theirs"])
    cpu, wall = ({side: statistics.median(t[i] for t in times) for side, times in seconds.items()} for i in (0, 1))
    line = {
        "benchmark": benchmark,
        "against": against,
        "ratio": round(cpu["theirs"] / cpu["ours"], 2),
        "ours": round(cpu["ours"], 3),
        "theirs": round(cpu["theirs"], 3),
        "unit": "CPU s",
        "same": bool(same(mine, other)),
        "wall": {"ratio": round(wall["theirs"] / wall["ours"], 2), **{k: round(v, 3) for k, v in wall.items()}},
        "setting": setting,
    } | more()
    print(json.dumps(line, ensure_ascii=False), flush=True)
    if not line["same"]:
        raise SystemExit(
            f"{benchmark}: the answers of seamcurate and of {against} differ, so their times do not compare"
        )


def _timed(work: Callable[[], A], into: list[tuple[float, float]]) -> A:
    wall, cpu = time.perf_counter(), time.process_time()
    answer = work()
    into.append((time.process_time() - cpu, time.perf_counter() - wall))
    return answer
