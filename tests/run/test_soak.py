"""The soak: a short one runs as a whole, and what it judges by sees what it is there to see."""

from __future__ import annotations

import json
import os

import pytest

from benchmarks import soak

pytestmark = pytest.mark.slow

SECONDS = float(os.environ.get("SEAMCURATE_SOAK_SECONDS", "6"))


def samples(count=100, **measures):
    """Steady samples over 100 seconds, except for the measures given as functions of the sample's number."""
    steady = {
        "native_threads": 9,
        "error": "",
        "left": [],
        "fault": "none",
        "pss_kb": 500_000,
        "fds": 3,
        "threads": 2,
        "children": 0,
    }
    return [
        steady | {"run": i, "at": float(i)} | {name: measure(i) for name, measure in measures.items()}
        for i in range(count)
    ]


def test_steady_samples_are_not_found_faulty():
    assert soak.faulty(samples(pss_kb=lambda i: 500_000 + 9_000 * (i % 3)), 100) == []
    assert soak.growth(samples(pss_kb=lambda i: 1000 + i)) == pytest.approx(0.099)


@pytest.mark.parametrize(
    ("measures", "told"),
    [
        ({"pss_kb": lambda i: 500_000 + 400 * i}, "6.1% more memory at the end than after the warm-up"),
        ({"fds": lambda i: 3 + i // 50}, "4 fds at the end, at most 3 were expected"),
        ({"threads": lambda i: 2 + i // 50}, "3 threads at the end, at most 2 were expected"),
        ({"native_threads": lambda i: 9 + i // 8}, "21 native_threads at the end, at most 19 were expected"),
        ({"children": lambda i: i // 50}, "1 children at the end, at most 0 were expected"),
        ({"left": lambda i: ["a.tmp"] if i == 7 else []}, "run 7, fault none left a.tmp"),
        ({"error": lambda i: "Trace\nOSError: full" if i == 7 else ""}, "run 7, fault none: OSError: full"),
    ],
)
def test_what_grows_or_is_left_behind_is_told(measures, told):
    assert soak.faulty(samples(**measures), 100) == [told]


def test_a_short_soak_goes_through_faults_and_leaves_nothing_behind(capfd, monkeypatch):
    monkeypatch.setattr(soak, "WORKERS", 1)
    # What a process holds settles in minutes, and so it is judged only after as many.
    monkeypatch.setattr(soak, "WARM_UP", 0.0 if SECONDS < 60 else soak.WARM_UP)
    soak.main(SECONDS / 3600)
    *runs, last = [json.loads(line) for line in capfd.readouterr().out.splitlines()]
    assert last["wrong"] == [] and last["runs"] == len(runs) >= 2
    assert not any(run["error"] or run["left"] for run in runs) and last["endpoint"]["answered"] > 0
