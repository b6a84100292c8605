"""The script for a GPU runs end to end on a CPU at toy sizes, with few packages, and a section's failure is its own."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from benchmarks.gpu import __main__ as gpu

pytestmark = pytest.mark.slow

BLOCKED = (
    "duckdb", "polars", "faiss", "datasets", "trl", "peft", "accelerate", "sentence_transformers", "openai", "typer", "rich",
    "scipy", "sklearn", "pandas", "matplotlib", "starlette", "uvicorn", "ray", "lm_eval",
)  # fmt: skip
"""Packages that a machine with torch, transformers and NumPy may lack."""


def test_every_section_runs_at_toy_sizes_and_agrees() -> None:
    found = {name: gpu.rounded(section(True)) for name, (section, _) in gpu.SECTIONS.items() if name != "correctness"}
    assert json.loads(json.dumps(found)) == found
    assert found["machine"]["fp32_tflops"] > 0
    attention = found["attention"]
    assert max(attention["flex_padded_worst_nats"], attention["spans_padded_worst_nats"]) < 1e-4 * attention["nats"]
    assert found["memory"]["passed"] and found["memory"]["worst_nats"] < 1e-4 * found["memory"]["nats"]
    for size in gpu.SHAPES:
        line = found[f"speed-{size}"]["likelihood_12_6"]
        assert line["padded_worst_nats"] < 1e-3 and line["kv_cache_worst_nats"] < 1e-3 and line["token_ratio"] > 1
        assert found[f"speed-{size}"]["rewards_400_190"]["scored_tokens_s"] > 0
    assert found["band"]["found"] > 100 and found["band"]["same_share"] > 0.99
    assert found["sampling"]["tokens"] == 4 * 3 * 6 and found["sampling"]["generate_tokens_s"] > 0
    assert "skipped" in found["vllm"] or "over_vllm" in found["vllm"]


def test_correctness_is_held_for_each_architecture(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gpu, "ARCHITECTURES", {name: gpu.ARCHITECTURES[name] for name in ("llama", "gemma2", "gpt2")})
    found = gpu.correctness(True)
    assert found["passed"] == found["of"] == 3
    assert all(line["nats_deviation"] > 10 for line in found["architectures"].values())
    # A device that computes something else is noticed: every second score is off by 1 %.
    right, calls = gpu.scores, iter(range(1000))
    monkeypatch.setattr(gpu, "scores", lambda *given: right(*given) * (1 + 0.01 * (next(calls) % 3 == 1)))
    assert gpu.correctness(True)["passed"] == 0


def test_the_script_needs_few_packages(tmp_path: Path) -> None:
    program = (
        "import sys\n"
        "from importlib.machinery import PathFinder\n"
        f"blocked = {set(BLOCKED)!r}\n"
        "class Present:\n"
        "    def find_spec(self, name, path=None, target=None):\n"
        "        return None if name.partition('.')[0] in blocked else PathFinder.find_spec(name, path, target)\n"
        "    def find_distributions(self, *context):\n"
        "        return PathFinder.find_distributions(*context)\n"
        "sys.meta_path[:] = [Present() if finder is PathFinder else finder for finder in sys.meta_path]\n"
        "from benchmarks.gpu import __main__ as gpu\n"
        "gpu.attention(True), gpu.rewards(True, '0.5B'), gpu.sampling(True), gpu.memory(True)\n"
        "from seamcurate.contrast import nearest\n"
        "import seamcurate.models\n"
        "print('done', [name for name in blocked if name in sys.modules])\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, cwd=Path(__file__).parents[1], check=False
    )
    assert done.stdout.splitlines()[-1:] == ["done []"], done.stderr[-2000:]


def test_a_section_that_fails_or_takes_too_long_loses_no_others_result(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "gpu.json"
    asked: list[list[str]] = []

    def answered(command: list[str], **options: object) -> subprocess.CompletedProcess[str]:
        asked.append(command)
        name = command[command.index("--section") + 1]
        if name == "attention":
            raise subprocess.TimeoutExpired(command, 60)
        if name == "machine":
            return subprocess.CompletedProcess(command, 1, "", "Traceback\nRuntimeError: no device")
        # Only what is written counts, so that the file of a section that died later still does.
        Path(command[command.index("--out") + 1]).write_text(json.dumps({"passed": True}))
        return subprocess.CompletedProcess(command, 0, "", "")

    monkeypatch.setattr("subprocess.run", answered)
    found = gpu.run(["machine", "attention", "memory"], False, out)
    assert found == json.loads(out.read_text())
    assert found["machine"]["error"] == "RuntimeError: no device"
    assert found["attention"]["error"] == "stopped after 45 seconds"
    assert found["memory"]["passed"] and len(asked) == 3
    monkeypatch.setattr(gpu, "TOTAL", 0)
    assert gpu.run(["band"], False, out)["band"]["error"].startswith("not begun") and len(asked) == 3


def test_the_limits_of_what_always_runs_fit_into_the_time() -> None:
    needed = sum(limit for name, (_, limit) in gpu.SECTIONS.items() if name != "vllm")
    assert needed <= gpu.TOTAL + 10 and gpu.TOTAL < 480
    assert gpu.rounded({"a": float("nan"), "b": 0.123456}) == {"a": None, "b": 0.1235}
    readme = (Path(gpu.__file__).parent / "README.md").read_text()
    assert all(f"`{name}`" in readme or f"`-{name.partition('-')[2]}`" in readme for name in gpu.SECTIONS)
    assert np.isfinite(gpu.waited())
