"""PPO's weights and moments as safetensors, beside each other in a checkpoint's folder; nothing in it is code."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import torch
from safetensors.torch import load_file, save

from seamcurate.storage import shard


def write(checkpoint: Path, model: torch.nn.Module, optimizer: torch.optim.Optimizer) -> None:
    """Write the weights that are trained, and the optimizer's moments, into a folder."""
    shard.replace(checkpoint / "weights.safetensors", save(_trained(model)))
    shard.replace(checkpoint / "optimizer.safetensors", save(dict(_moments(optimizer))))


def restore(checkpoint: Path, model: torch.nn.Module, optimizer: torch.optim.Optimizer) -> None:
    """Put a checkpoint's weights and moments into a model and an optimizer made as they were."""
    weights = load_file(checkpoint / "weights.safetensors")
    with torch.no_grad():
        for name, parameter in _trained(model).items():
            parameter.copy_(weights[name])
    state: dict[int, dict[str, torch.Tensor]] = {}
    for name, value in load_file(checkpoint / "optimizer.safetensors").items():
        number, _, kind = name.partition(".")
        state.setdefault(int(number), {})[kind] = value
    optimizer.load_state_dict({"state": state, "param_groups": optimizer.state_dict()["param_groups"]})


def _trained(model: torch.nn.Module) -> dict[str, torch.Tensor]:
    return {name: p.detach().contiguous() for name, p in model.named_parameters() if p.requires_grad}


def _moments(optimizer: torch.optim.Optimizer) -> Iterator[tuple[str, torch.Tensor]]:
    for number, moments in optimizer.state_dict()["state"].items():
        yield from ((f"{number}.{kind}", value.contiguous()) for kind, value in moments.items())
