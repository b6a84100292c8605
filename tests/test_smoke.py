"""The smoke test that lowest versions and other Pythons pass by hand also passes here, so that it cannot rot."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from lowest import constraints

HERE = Path(__file__).parent


def test_a_little_of_everything_works_with_what_is_installed():
    left_out = ["explorer", "study", "retrieval", "training", "cluster"]
    done = subprocess.run(
        [sys.executable, str(HERE / "smoke.py"), *left_out], capture_output=True, text=True, timeout=300, check=False
    )
    assert done.returncode == 0, done.stderr
    # What is exported is listed between them.
    tried = [line for line in done.stdout.splitlines() if line.endswith(": ok")]
    assert tried == ["modules: ok", "core: ok", "curation: ok", "likelihoods: ok"]


def test_every_dependency_has_a_lower_bound():
    lowest = constraints(["local", "servers", "hub", "cpu", "train", "study", "ray", "s3"])
    assert "duckdb==1.5" in lowest and "ray==2.60" in lowest and not any(one.startswith("torch==") for one in lowest)
    assert len(lowest) == 28
