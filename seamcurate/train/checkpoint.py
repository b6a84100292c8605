"""What a training leaves beside its folder while it runs: a log, and checkpoints that are whole or not there.

    out.training/
      log.jsonl           one line an update
      tensorboard/        where asked for
      checkpoint-200/     weights.safetensors, optimizer.safetensors, checkpoint.json

Numbers and JSON alone: nothing in a checkpoint is code.
"""

from __future__ import annotations

import json
import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pydantic import JsonValue

from seamcurate import shard
from seamcurate.errors import TrainError
from seamcurate.train import training

if TYPE_CHECKING:
    import torch

STATE = "checkpoint.json"
LOG = "log.jsonl"
BOARD = "tensorboard"


class Workplace:
    """The folder beside `out` of a training that has not finished.

    Raises:
        TrainError: A folder of that name holds something else.
    """

    def __init__(self, out: Path) -> None:
        self.folder = out.parent / f"{out.name}.training"
        strange = [f.name for f in _entries(self.folder) if not f.name.startswith((LOG, BOARD, "checkpoint-", "."))]
        if strange:
            raise TrainError(
                f"{self.folder} is needed for checkpoints and holds {strange[0]}; move it, or give another folder"
            )

    def begin(self, step: int) -> None:
        """Make the folder, and forget what was logged after `step`."""
        self.folder.mkdir(parents=True, exist_ok=True)
        log = self.folder / LOG
        kept: list[str] = []
        for line in log.read_text(encoding="utf-8").splitlines() if step and log.is_file() else []:
            try:
                if json.loads(line)["step"] <= step:
                    kept.append(f"{line}\n")
            except ValueError:
                break
        shard.replace(log, "".join(kept).encode())
        if not step:
            shutil.rmtree(self.folder / BOARD, ignore_errors=True)

    def log(self, metrics: dict[str, float | None]) -> None:
        """Append one line."""
        with (self.folder / LOG).open("a", encoding="utf-8") as lines:
            lines.write(json.dumps(metrics) + "\n")

    def save(
        self, step: int, model: torch.nn.Module, optimizer: torch.optim.Optimizer, state: dict[str, JsonValue]
    ) -> None:
        """Write a checkpoint beside its place, rename it into it, and remove the one before."""
        from safetensors.torch import save

        name = f"checkpoint-{step}"
        before = [f for f in _entries(self.folder) if f.name.startswith("checkpoint-")]
        with tempfile.TemporaryDirectory(prefix=f".{name}.", dir=self.folder) as scratch:
            beside = Path(scratch) / name
            beside.mkdir()
            shard.replace(beside / "weights.safetensors", save(_trained(model)))
            shard.replace(beside / "optimizer.safetensors", save(dict(_moments(optimizer))))
            shard.replace(beside / STATE, json.dumps(state).encode())
            os.replace(beside, self.folder / name)
        for old in before:
            shutil.rmtree(old)

    def latest(self, asked: dict[str, JsonValue]) -> tuple[Path, dict[str, Any]] | None:
        """Return the newest whole checkpoint and its state, None without any.

        Raises:
            TrainError: It belongs to a training of something else.
        """
        whole = [f for f in _entries(self.folder) if f.name.startswith("checkpoint-") and (f / STATE).is_file()]
        if not whole:
            return None
        newest = max(whole, key=lambda folder: int(folder.name.rpartition("-")[2]))
        state: dict[str, Any] = json.loads((newest / STATE).read_text(encoding="utf-8"))
        if other := training.differences(state["inputs"], asked):
            raise TrainError(
                f"{newest} is of a training with {', '.join(other)}; "
                f"give another folder, or delete {self.folder.name} to start anew"
            )
        return newest, state

    def remove(self) -> None:
        """Remove everything, the training being finished."""
        shutil.rmtree(self.folder, ignore_errors=True)


def restore(checkpoint: Path, model: torch.nn.Module, optimizer: torch.optim.Optimizer) -> None:
    """Put a checkpoint's weights and moments into a model and an optimizer made as they were."""
    import torch
    from safetensors.torch import load_file

    weights = load_file(checkpoint / "weights.safetensors")
    with torch.no_grad():
        for name, parameter in _trained(model).items():
            parameter.copy_(weights[name])
    state: dict[int, dict[str, torch.Tensor]] = {}
    for name, value in load_file(checkpoint / "optimizer.safetensors").items():
        place, _, kind = name.partition(".")
        state.setdefault(int(place), {})[kind] = value
    optimizer.load_state_dict({"state": state, "param_groups": optimizer.state_dict()["param_groups"]})


def _trained(model: torch.nn.Module) -> dict[str, torch.Tensor]:
    return {name: p.detach().contiguous() for name, p in model.named_parameters() if p.requires_grad}


def _moments(optimizer: torch.optim.Optimizer) -> Iterator[tuple[str, torch.Tensor]]:
    for place, moments in optimizer.state_dict()["state"].items():
        yield from ((f"{place}.{kind}", value.contiguous()) for kind, value in moments.items())


def _entries(folder: Path) -> list[Path]:
    return sorted(folder.iterdir()) if folder.is_dir() else []
