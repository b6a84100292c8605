"""Float32 matrix products on an AMD processor by the faster of oneDNN and MKL, as measured on this machine.

torch leaves them to MKL, which runs at half oneDNN's speed on AMD processors with AVX-512; on others the two are alike, or
MKL leads. The answers differ in rounding alone. One rule: where the two are alike, nothing is measured, as a busy moment would
choose, and a run that is killed and goes on would round otherwise than one that is not. So torch's own product is used on other
processors, everywhere but on a CPU, and in other precisions.
"""

from __future__ import annotations

import math
import platform
import time
from collections.abc import Callable
from functools import cache
from pathlib import Path
from types import MethodType
from typing import TYPE_CHECKING, NamedTuple, TypeGuard

if TYPE_CHECKING:
    import torch

_ROWS, _LARGEST = 256, 2048
"""Rows of a trial, and how many outer and inner dimensions it has at most: a millisecond to twenty."""
_ROUNDS = 3
_LEAD = 0.9
"""The share of oneDNN's time below which MKL is chosen: where the two are alike, all runs choose the same one."""


class Trial(NamedTuple):
    """How long 256 rows took by each library, the fastest of three, by weights of outer × inner."""

    outer: int
    inner: int
    onednn: float
    """Seconds."""
    mkl: float
    """Seconds."""

    @property
    def by_onednn(self) -> bool:
        """Whether oneDNN is taken for such weights."""
        return self.mkl > _LEAD * self.onednn


trials: list[Trial] = []
"""What this process measured so far."""


def told() -> list[str]:
    """Return one line that names the library of float32 products and what was measured; none where nothing was."""
    if not trials:
        return []
    largest = max(trials, key=lambda trial: trial.outer * trial.inner)
    by_onednn = sum(trial.by_onednn for trial in trials)
    return [
        f"float32 products: oneDNN for {by_onednn} and MKL for {len(trials) - by_onednn} of {len(trials)} shapes of weights, as "
        f"measured when they were loaded; {_ROWS} rows by {largest.outer:,} × {largest.inner:,} took {1e3 * largest.onednn:.2g} ms "
        f"by oneDNN and {1e3 * largest.mkl:.2g} ms by MKL"
    ]


def product(rows: torch.Tensor, weights: torch.Tensor, bias: torch.Tensor | None = None) -> torch.Tensor:
    """Return rows · weightsᵀ + bias; … × inner by outer × inner gives … × outer. For inference only."""
    import torch

    if rows.device.type == "cpu" and rows.dtype == weights.dtype == torch.float32 and by_onednn(*weights.shape):
        return _onednn(rows, weights, bias)
    return torch.nn.functional.linear(rows, weights, bias)


def by_onednn(outer: int, inner: int) -> bool:
    """Tell whether oneDNN multiplies by float32 weights of outer × inner here; measured once in a process."""
    import torch

    return _onednn_leads(min(outer, _LARGEST), min(inner, _LARGEST), torch.get_num_threads())


@cache
def _onednn_leads(outer: int, inner: int, threads: int) -> bool:
    import torch

    if not (_on_amd() and torch._C._has_mkldnn and hasattr(torch.ops.mkldnn, "_linear_pointwise")):
        return False
    with torch.inference_mode():
        rows, weights = torch.ones(_ROWS, inner), torch.ones(outer, inner)
        onednn = mkl = math.inf
        # By turns, and the fastest of several: another process may hold the processor for a while.
        for _ in range(_ROUNDS):
            onednn = min(onednn, _seconds(lambda: _onednn(rows, weights)))
            mkl = min(mkl, _seconds(lambda: torch.nn.functional.linear(rows, weights)))
    trial = Trial(outer, inner, onednn, mkl)
    trials.append(trial)
    return trial.by_onednn


def _on_amd() -> bool:
    """Tell whether the processor is one of AMD's, by what it calls itself."""
    try:
        return "AuthenticAMD" in Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace")
    except OSError:
        return "AuthenticAMD" in platform.processor()


def _seconds(work: Callable[[], object]) -> float:
    start = time.perf_counter()
    work()
    return time.perf_counter() - start


def _onednn(
    rows: torch.Tensor, weights: torch.Tensor, bias: torch.Tensor | None = None, activation: str = "none"
) -> torch.Tensor:
    """Return the product by oneDNN, and `activation` of each number while it is in the processor's cache."""
    import torch

    products: torch.Tensor = torch.ops.mkldnn._linear_pointwise(rows, weights, bias, activation, [], "none")
    return products


def quicken(model: torch.nn.Module) -> None:
    """Have a model's linear layers multiply by `product`, in place; it can then no longer be trained.

    Layers with quantised weights keep their own product: theirs is no float32 matrix, or their `forward` was replaced. BERT
    and its kind compute GELU in the same pass as the product before it.
    """
    import torch

    for module in model.modules():
        if _is_plain(module):
            module.forward = MethodType(_linear, module)
    with torch.inference_mode():
        for module in model.modules():
            if _is_gelu_layer(module):
                module.forward = MethodType(_gelu_layer, module)


def _is_plain(module: torch.nn.Module) -> bool:
    """Tell whether a module is a linear layer, and no other that is derived from it."""
    import torch

    return (
        type(module) is torch.nn.Linear and type(module.weight) is torch.nn.Parameter and "forward" not in vars(module)
    )


def is_product(module: object) -> TypeGuard[torch.nn.Linear]:
    """Tell whether a module gives `product` of its rows, weights and bias, and nothing else."""
    import torch

    if type(module) is not torch.nn.Linear or type(module.weight) is not torch.nn.Parameter:
        return False
    replaced = vars(module).get("forward")
    return replaced is None or (isinstance(replaced, MethodType) and replaced.__func__ is _linear)


def _linear(self: torch.nn.Linear, rows: torch.Tensor) -> torch.Tensor:
    return product(rows, self.weight, self.bias)


def _is_gelu_layer(module: torch.nn.Module) -> bool:
    """Tell whether a module is `GELU(dense(rows))` and nothing else, measured on a few rows."""
    import torch

    dense = getattr(module, "dense", None)
    if not (
        isinstance(dense, torch.nn.Linear)
        and isinstance(vars(dense).get("forward"), MethodType)
        and hasattr(module, "intermediate_act_fn")
        and "forward" not in vars(module)
        and dense.weight.device.type == "cpu"
        and dense.weight.dtype == torch.float32
        and by_onednn(*dense.weight.shape)
    ):
        return False
    rows = torch.linspace(-2, 2, 4 * dense.in_features).view(4, -1)
    return torch.allclose(module(rows), _onednn(rows, dense.weight, dense.bias, "gelu"), atol=1e-5)


def _gelu_layer(self: torch.nn.Module, rows: torch.Tensor) -> torch.Tensor:
    import torch

    dense = self.dense
    assert isinstance(dense, torch.nn.Linear)
    return _onednn(rows, dense.weight, dense.bias, "gelu")
