"""The machine that a race runs on: its processor, its packages, and how fast it multiplies matrices."""

from __future__ import annotations

import os
import platform
import time
from collections.abc import Callable
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

SIDE = 1024
"""Rows and columns of the matrices whose product is measured: 2 · 1024³ = 2.1 GFLOP."""
PACKAGES = (
    *("torch", "transformers", "sentence-transformers", "lm-eval", "onnxruntime", "openvino", "nncf", "faiss-cpu"),
    *("usearch", "numpy", "datasets", "polars", "pandas", "duckdb", "pyarrow", "nltk"),
)
_SETS = {
    "avx2": "AVX2",
    "avx512f": "AVX-512",
    "avx_vnni": "AVX-VNNI",
    "avx512_vnni": "AVX-512 VNNI",
    "avx512_bf16": "AVX-512 BF16",
    "amx_bf16": "AMX BF16",
    "amx_int8": "AMX INT8",
    "asimd": "NEON",
    "sve": "SVE",
    "i8mm": "I8MM",
    "bf16": "BF16",
}
"""The flags of /proc/cpuinfo that decide how fast matrices are multiplied, and their names."""
_HELD_TO_AVX2 = {
    "MKL_ENABLE_INSTRUCTIONS": "AVX2",
    "ONEDNN_MAX_CPU_ISA": "AVX2",
    "ATEN_CPU_CAPABILITY": "avx2",
    "OPENBLAS_CORETYPE": "Haswell",
    "FAISS_OPT_LEVEL": "AVX2",
}
HELD = ", held to AVX2"
"""What a processor's name ends with then."""
NOT_HELD = ("ONNX Runtime", "Polars", "usearch")
"""Libraries that go on with all instructions of the processor."""
_BFLOAT16 = {"avx512_bf16", "amx_bf16", "bf16"}
_INT8 = {"avx_vnni", "avx512_vnni", "amx_int8", "i8mm"}


def flags() -> set[str]:
    """Return the processor's flags, as far as they may be used; none where the system does not list them."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return set()
    own = {flag for line in lines if line.startswith(("flags", "Features")) for flag in line.split(":")[1].split()}
    return own & {"avx2"} if is_held_to_avx2() else own


def processor() -> str:
    """Return the processor's name, with its family and model where its name does not tell them apart."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor() or platform.machine()
    fields = {key.strip(): value.strip() for key, _, value in (line.partition(":") for line in lines)}
    name = fields.get("model name", platform.machine())
    name = f"{name} (family {fields['cpu family']}, model {fields['model']})" if "cpu family" in fields else name
    return f"{name}{HELD}" if is_held_to_avx2() else name


def hold_to_avx2() -> None:
    """Have libraries use AVX2 at most, as on a processor that has no more; they read this when they are imported.

    torch, with MKL and oneDNN, NumPy and FAISS follow, and so do OpenVINO and vLLM, by their oneDNN; `NOT_HELD` does not.
    """
    os.environ |= _HELD_TO_AVX2


def is_held_to_avx2() -> bool:
    """Tell whether `hold_to_avx2` was called."""
    return os.environ.items() >= _HELD_TO_AVX2.items()


def describe() -> dict[str, object]:
    """Return what a reader needs to know of the machine and its packages to compare another one's numbers."""
    import torch

    versions = {"python": platform.python_version()}
    for package in PACKAGES:
        try:
            versions[package] = version(package)
        except PackageNotFoundError:
            continue
    return {
        "processor": processor(),
        "instruction_set": [name for flag, name in _SETS.items() if flag in flags()],
        "cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        "threads": torch.get_num_threads(),
        "memory_gib": round(_memory() / 2**30, 1),
        "system": platform.system(),
        "versions": versions,
    }


def products() -> dict[str, dict[str, float]]:
    """Measure the matrix product once by each library: precision → library → GFLOP per CPU second, all threads together.

    bfloat16 and int8 are measured where the processor has instructions for them.
    """
    import torch

    torch.manual_seed(0)
    a, b = torch.randn(SIDE, SIDE), torch.randn(SIDE, SIDE)
    rates = {"float32": {"MKL": _rate(lambda: a @ b)}}
    if hasattr(torch.ops.mkldnn, "_linear_pointwise"):
        rates["float32"]["oneDNN"] = _rate(lambda: torch.ops.mkldnn._linear_pointwise(a, b, None, "none", [], ""))
    own = flags()
    if own & _BFLOAT16:
        short_a, short_b = a.bfloat16(), b.bfloat16()
        rates["bfloat16"] = {"oneDNN": _rate(lambda: short_a @ short_b)}
    if own & _INT8:
        whole_a, whole_b = (10 * a).char(), (10 * b).char()
        rates["int8"] = {"oneDNN": _rate(lambda: torch._int_mm(whole_a, whole_b))}
    return rates


def _rate(multiply: Callable[[], object]) -> float:
    """Return GFLOP per CPU second: the better of two runs, after one that is not counted."""
    multiply()
    seconds = []
    for _ in range(2):
        start = time.process_time()
        multiply()
        seconds.append(time.process_time() - start)
    return 2 * SIDE**3 / max(min(seconds), 1e-9) / 1e9


def _memory() -> int:
    try:
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (AttributeError, ValueError):
        return 0
