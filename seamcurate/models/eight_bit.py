"""Linear layers whose weights have 8 bits, on a CPU that multiplies such numbers: faster than single precision, and coarser.

Weights are rounded once, by the largest of each output's. Each token is rounded by its own largest number when it is read, so
that a score depends neither on the batch nor on later tokens; the sums are of whole numbers, and exact.
"""

from __future__ import annotations

from collections.abc import Iterator
from types import MethodType
from typing import TYPE_CHECKING, Any

from seamcurate.errors import ModelError

if TYPE_CHECKING:
    import torch

NAME = "int8"
"""The `dtype` that stands for it."""
_LARGEST = 127
_BLOCK = 128
"""Rows that are multiplied at once: their numbers stay in the processor's cache while they are scaled."""
_SMALLEST_SCALE = 1e-20
"""What a token of zeros is divided by."""


def check(device: str, name: str) -> None:
    """Refuse 8 bits where nothing multiplies them.

    Args:
        device: The device that the model is read on.
        name: The model's name, for the message.

    Raises:
        ModelError: It is no CPU, the CPU has no such instructions, or torch does not use them.
    """
    import torch

    if device != "cpu":
        raise ModelError(
            f"{name}: `dtype: int8` is for a CPU, and it would be read on {device}; use bfloat16, or set `device: cpu`"
        )
    has_instructions: Any = getattr(torch.cpu, "_is_vnni_supported", None)
    if has_instructions is None or not has_instructions() or not hasattr(torch, "_int_mm"):
        raise ModelError(
            f"{name}: `dtype: int8` needs a processor with VNNI, and a torch that uses it; leave it out here"
        )


def quantise(body: torch.nn.Module) -> None:
    """Round the weights of all plain linear layers to 8 bits, in place; biases, embeddings and norms stay as they are."""
    import torch

    layers = list(_layers(body))
    with torch.inference_mode():
        for layer in layers:
            weights = layer.weight.detach().float()
            scales = weights.abs().amax(1).clamp_min(_SMALLEST_SCALE) / _LARGEST  # (outputs,)
            # (inputs, outputs), as a view of outputs × inputs.
            layer.eight_bit = (weights / scales[:, None]).round_().to(torch.int8).t()
            layer.eight_bit_scales = scales
            layer.weight = torch.nn.Parameter(torch.empty(0), requires_grad=False)
            layer.forward = MethodType(_linear, layer)
    # GELU was computed with the product before it; see `product`.
    for module in body.modules():
        if not isinstance(module, torch.nn.Linear) and getattr(module, "dense", None) in layers:
            vars(module).pop("forward", None)


def _layers(body: torch.nn.Module) -> Iterator[Any]:
    import torch

    for module in body.modules():
        if type(module) is torch.nn.Linear and type(module.weight) is torch.nn.Parameter:
            yield module


def rounded(rows: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Round each row by its own largest number; return whole numbers and the scale of each row (rows × 1).

    Example:
        >>> import torch
        >>> whole, scales = rounded(torch.tensor([[1.0, -2.54], [0.0, 0.0]]))
        >>> whole.tolist(), round(float(scales[0]), 6)
        ([[50, -127], [0, 0]], 0.02)
    """
    import torch

    # `aminmax` over a dimension takes twenty times as long (torch 2.13).
    scales = rows.abs().amax(-1, keepdim=True).clamp_min_(_SMALLEST_SCALE).div_(_LARGEST)
    return (rows * scales.reciprocal()).round_().to(torch.int8), scales


def _linear(self: Any, rows: torch.Tensor) -> torch.Tensor:
    import torch

    flat = rows.reshape(-1, rows.shape[-1]).float()
    summed = flat.new_empty(len(flat), self.out_features)
    for start in range(0, len(flat), _BLOCK):
        integers, scales = rounded(flat[start : start + _BLOCK])
        block = summed[start : start + _BLOCK]
        # (rows, outputs): whole numbers of 32 bits, then the scales of their outputs, then those of their rows.
        torch.mul(torch._int_mm(integers, self.eight_bit), self.eight_bit_scales, out=block)
        if self.bias is None:
            block.mul_(scales)
        else:
            torch.addcmul(self.bias, block, scales, out=block)
    return summed.view(*rows.shape[:-1], -1).to(rows.dtype)
