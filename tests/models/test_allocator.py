"""Freed memory stays with the process once a model is loaded, unless the user decided otherwise."""

from __future__ import annotations

import ctypes
import os
import subprocess
import sys

import pytest

# 200 MiB in tensors that are freed together: more than glibc keeps by itself, 64 MiB at most.
SCRIPT = """
import resource, sys
import torch
from seamcurate.models import allocator
if sys.argv[1] == "kept":
    allocator.keep_freed()
def tensors():
    return [torch.ones(2**19) for _ in range(100)]
tensors()
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range(3):
    tensors()
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


def faults(kind, more=()):
    environment = {key: value for key, value in os.environ.items() if not key.startswith("MALLOC_")} | dict(more)
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT, kind], env=environment, capture_output=True, text=True, check=True, timeout=120
    )
    return int(done.stdout)


@pytest.mark.skipif(
    os.name != "posix" or not hasattr(ctypes.CDLL(None), "mallopt"), reason="glibc alone takes these settings"
)
def test_memory_is_not_cleared_anew_for_each_pass_unless_the_user_set_a_threshold():
    kept, plain = faults("kept"), faults("plain")
    users = faults("kept", {"MALLOC_TRIM_THRESHOLD_": "131072"})
    assert 5 * kept < plain
    assert 5 * kept < users


@pytest.mark.parametrize(("device", "calls"), [("cpu", 1), ("meta", 0)])
def test_loading_a_model_on_a_cpu_keeps_freed_memory(policy_folder, monkeypatch, device, calls):
    from transformers import AutoModelForCausalLM

    from seamcurate import CausalLM
    from seamcurate.models import allocator, checkpoint, weights

    kept = []
    monkeypatch.setattr(allocator, "keep_freed", lambda: kept.append(device))
    if device != "cpu":
        monkeypatch.setattr(weights, "device", lambda name: device)
        monkeypatch.setattr(checkpoint, "open_model", lambda *args, own=checkpoint.open_model: own(*args[:-1], "cpu"))
    CausalLM(path=str(policy_folder), dtype="float32", device="cpu").open_weights(AutoModelForCausalLM)
    assert len(kept) == calls
