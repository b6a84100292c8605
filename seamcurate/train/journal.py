"""What a training leaves while it runs: a log, and checkpoints to go on from after a stop.

It lies beside the folder to be written, and is for the same inputs or is begun anew.
"""

from __future__ import annotations

import json
import math
import os
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pydantic import JsonValue

from seamcurate.store import save_json

if TYPE_CHECKING:
    from transformers import TrainerCallback

LOG = "log.jsonl"
_WHOLE = "whole.json"
"""Written into a checkpoint last: one without it was cut short."""


class Journal:
    """The folder of a training that runs.

    Args:
        out: Where the finished model will be.
        inputs: All that decides the training; another's checkpoints are deleted.

    Attributes:
        state: Numbers that a checkpoint keeps beside what transformers keeps in it.
    """

    def __init__(self, out: Path, inputs: Mapping[str, JsonValue]) -> None:
        self.folder = out.with_name(f".{out.name}.training")
        self.first = os.environ.get("RANK", "0") == "0"
        self.state: dict[str, float] = {}
        about = self.folder / "inputs.json"
        text = json.dumps(inputs, sort_keys=True)
        if self.first and not (about.is_file() and about.read_text(encoding="utf-8") == text):
            shutil.rmtree(self.folder, ignore_errors=True)
            self.folder.mkdir(parents=True)
            about.write_text(text, encoding="utf-8")

    def checkpoint(self) -> str | None:
        """Return the last whole checkpoint; log lines after it are dropped."""
        whole = sorted(int(file.parent.name.split("-")[1]) for file in self.folder.glob(f"checkpoint-*/{_WHOLE}"))
        done = whole[-1] if whole else 0
        log = self.folder / LOG
        if self.first and log.is_file():
            # A line that a kill cut short has no end.
            lines = [line for line in log.read_text(encoding="utf-8").splitlines(keepends=True) if line.endswith("\n")]
            log.write_text("".join(line for line in lines if json.loads(line)["step"] <= done), encoding="utf-8")
        if not done:
            return None
        last = self.folder / f"checkpoint-{done}"
        self.state |= json.loads((last / _WHOLE).read_text(encoding="utf-8"))
        return str(last)

    def write(self, step: int, values: Mapping[str, object]) -> None:
        """Add a line to the log; numbers that are none are null."""
        if not self.first:
            return
        kept = {key: value for key, value in values.items() if isinstance(value, int | float | str)}
        plain = {k: None if isinstance(v, float) and not math.isfinite(v) else v for k, v in kept.items()}
        with (self.folder / LOG).open("a", encoding="utf-8") as log:
            log.write(json.dumps({"step": step, **plain}) + "\n")

    def callback(self) -> TrainerCallback:
        """Return what has a trainer of transformers write here."""
        from transformers import TrainerCallback

        journal = self

        class Writer(TrainerCallback):
            def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **rest: Any) -> None:
                # Times differ from run to run, and TRL counts tokens since the last start; a folder of the same inputs is the same.
                timed = ("train_", "step_time", "eval_runtime", "total_flos", "num_tokens")
                values = {key: value for key, value in logs.items() if not key.startswith(timed)}
                if values.keys() - {"epoch"}:
                    journal.write(state.global_step, values)

            def on_save(self, args: Any, state: Any, control: Any, **rest: Any) -> None:
                if journal.first:
                    save_json(journal.folder / f"checkpoint-{state.global_step}" / _WHOLE, journal.state)

        return Writer()

    def files(self) -> list[Path]:
        """Return what is kept of a finished training: its log, and the folder for TensorBoard."""
        kept = [self.folder / LOG] if (self.folder / LOG).is_file() else []
        board = self.folder / "tensorboard"
        for file in sorted(self.folder.glob("runs/**/events.out.tfevents.*")):
            board.mkdir(exist_ok=True)
            file.rename(board / file.name)
        return [*kept, board] if board.is_dir() else kept

    def remove(self) -> None:
        """Delete the folder of a training that is finished."""
        shutil.rmtree(self.folder, ignore_errors=True)
