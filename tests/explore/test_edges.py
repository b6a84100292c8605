"""The edges of a chart's bins, as the page writes them."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from pathlib import Path

import pytest

SOURCE = Path(__file__).parents[2] / "explorer" / "src" / "selection.js"


def test_an_edge_at_zero_is_zero_and_no_rounding_of_it():
    node = shutil.which("node")
    if node is None:
        pytest.skip("node is not installed")
    # The module itself needs what npm installs; this function needs nothing.
    function = re.search(r"^export (const edge = .*?^};)$", SOURCE.read_text(), re.DOTALL | re.MULTILINE)[1]
    charts = [(-0.3, 0.1, 3, 0), (0.1, 0.1, 2, 0.3), (-4e-12, 1e-12, 3, -1e-12)]
    asked = [{"chart": {"first": first, "step": step}, "bin": number} for first, step, number, _ in charts]
    code = f"{function} console.log(JSON.stringify({json.dumps(asked)}.map((one) => edge(one.chart, one.bin))))"
    done = subprocess.run([node, "-e", code], capture_output=True, text=True, check=True, timeout=60)
    assert -0.3 + 3 * 0.1 not in (0, -0.0), "the case has no rounding"
    assert json.loads(done.stdout) == [edge for *_, edge in charts]
