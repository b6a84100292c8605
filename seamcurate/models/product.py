"""Float32 matrix products on a CPU by oneDNN.

torch leaves them to MKL, which runs at half oneDNN's speed on AMD processors and is no faster on others. The answers
differ in rounding alone. Everywhere but on a CPU, and in other precisions, torch's own product is used.
"""

from __future__ import annotations

from types import MethodType
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch


def product(rows: torch.Tensor, weights: torch.Tensor, bias: torch.Tensor | None = None) -> torch.Tensor:
    """Return rows · weightsᵀ + bias; … × inner by outer × inner gives … × outer. For inference only."""
    import torch

    quick = rows.device.type == "cpu" and rows.dtype == weights.dtype == torch.float32
    if quick and hasattr(torch.ops.mkldnn, "_linear_pointwise"):
        products: torch.Tensor = torch.ops.mkldnn._linear_pointwise(rows, weights, bias, "none", [], "")
        return products
    return torch.nn.functional.linear(rows, weights, bias)


def quicken(model: torch.nn.Module) -> None:
    """Have a model's linear layers multiply by `product`, in place; it can then no longer be trained.

    Layers with quantised weights keep their own product: theirs is no float32 matrix, or their `forward` was replaced.
    """
    import torch

    for module in model.modules():
        if (
            type(module) is torch.nn.Linear
            and type(module.weight) is torch.nn.Parameter
            and "forward" not in vars(module)
        ):
            module.forward = MethodType(_linear, module)  # type: ignore[method-assign]


def _linear(self: torch.nn.Linear, rows: torch.Tensor) -> torch.Tensor:
    return product(rows, self.weight, self.bias)
