"""The fuzzers' corpus, and some changes of it: what broke a promise once stays mended."""

from __future__ import annotations

import subprocess
import sys
from itertools import islice
from pathlib import Path

import pytest

FUZZ = Path(__file__).parents[1] / "fuzz"
sys.path.insert(0, str(FUZZ))

from mutation import mutations  # noqa: E402
from targets import TARGETS  # noqa: E402

CHANGES = {"sources": 60, "sql": 5, "replies": 150, "rewards": 300}
"""Changes to try, so that each target takes about a second."""


@pytest.mark.parametrize("target", TARGETS)
def test_no_known_input_breaks_a_promise(target):
    files = sorted((FUZZ / "corpus" / target).iterdir())
    assert len(files) >= 8
    for file in files:
        TARGETS[target](file.read_bytes())


@pytest.mark.slow
@pytest.mark.parametrize("target", TARGETS)
def test_no_change_of_a_known_input_breaks_a_promise(target):
    seeds = [file.read_bytes() for file in sorted((FUZZ / "corpus" / target).iterdir())]
    for data in islice(mutations(seeds, seed=7), CHANGES[target]):
        TARGETS[target](data)


def test_a_broken_promise_is_noticed(monkeypatch):
    from seamcurate.models import reply

    monkeypatch.setattr(reply, "whole_elements", lambda text: None)
    with pytest.raises(AssertionError):
        TARGETS["replies"](b"[[7]]")


def test_the_runner_fuzzes_for_as_long_as_it_is_told():
    done = subprocess.run(
        [sys.executable, str(FUZZ / "run.py"), "rewards", "--seconds", "0"], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
