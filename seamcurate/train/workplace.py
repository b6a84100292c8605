"""What a training leaves beside its folder while it runs: a log, and checkpoints that are whole or not there.

    out.training/
      log.jsonl           a line an update
      tensorboard/        where asked for
      checkpoint-200/     weights, moments, and checkpoint.json, which is written last and knows the others' hashes

A checkpoint whose bytes are not those that were written is dropped for the one before. It is for one training: its checkpoints say of which inputs they are, and another one's are refused.
"""

from __future__ import annotations

import datetime
import json
import math
import os
import re
import shutil
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pydantic import JsonValue

from seamcurate.errors import TrainError
from seamcurate.progress import note
from seamcurate.step import digest
from seamcurate.storage import objects, shard
from seamcurate.storage.hashes import read_sha256

if TYPE_CHECKING:
    from transformers import TrainerCallback

RECORD = "training.json"
"""The file in a trained model's folder that says how it was made; it is no part of the model."""
LOG = "log.jsonl"
BOARD = "tensorboard"
RUNS = "runs"
"""Where transformers' trainers log for TensorBoard."""
STATE = "checkpoint.json"
_TOLD = {
    "loss": "loss",
    "objective/scores": "reward",
    "reward": "reward",
    "objective/kl": "KL",
    "kl": "KL a token",
    "val/response_length": "tokens",
    "completions/mean_length": "tokens",
    "frac_reward_zero_std": "groups without a better answer",
    "eval/scores": "held-out reward",
    "eval/gold": "held-out gold",
    "eval/response_length": "held-out tokens",
}
"""What a line on the terminal tells of an update, by its key in the log."""
_OURS = (LOG, BOARD, RUNS, "checkpoint-", ".", "README.md")
"""How names here begin; TRL puts a model card beside its checkpoints."""


class Workplace:
    """The folder beside `out` of a training that has not finished; of several processes, the first writes.

    Attributes:
        out: Where the finished model will be.
        folder: The folder beside it.
        first: Whether this process is the one that writes.
        processes: How many train together.
        state: What a checkpoint keeps beside weights and moments.

    Raises:
        TrainError: A folder of that name holds something else.
    """

    def __init__(self, out: Path) -> None:
        self.out = out
        self.folder = out.parent / f"{out.name}.training"
        self.first = os.environ.get("RANK", "0") == "0"
        self.processes = int(os.environ.get("WORLD_SIZE", "1"))
        self.state: dict[str, JsonValue] = {}
        self._inputs: dict[str, JsonValue] = {}
        foreign_names = [f.name for f in _entries(self.folder) if not f.name.startswith(_OURS)]
        if foreign_names:
            raise TrainError(
                f"{self.folder} is needed for checkpoints and holds {foreign_names[0]}; move it, or give another folder"
            )

    def begin(self, inputs: Mapping[str, JsonValue]) -> tuple[int, Path | None]:
        """Make the folder, forget what is half-written or came after the last checkpoint; returns that and its step.

        Raises:
            TrainError: The checkpoint belongs to a training of other inputs.
            StoreError: The folder cannot be made.
        """
        self._inputs = {**inputs, "number of processes": self.processes}
        newest, damaged = None, []
        for candidate in reversed(_checkpoints(self.folder)):
            if (state := _read_checkpoint(candidate)) is None:
                damaged.append(candidate)
                continue
            newest = candidate
            if changes := differences(state.pop("inputs"), self._inputs):
                raise TrainError(
                    f"{newest} is of a training with {', '.join(changes)}; "
                    f"give another folder, or delete {self.folder.name} to start anew"
                )
            self.state = state
            break
        step = 0 if newest is None else int(newest.name.rpartition("-")[2])
        if self.first:
            with objects.writing(self.folder):
                self.folder.mkdir(parents=True, exist_ok=True)
            for leftover in damaged:
                note(f"{leftover} is half-written or damaged; going on without it")
                shutil.rmtree(leftover)
            for leftover in self.folder.glob(".*"):
                shutil.rmtree(leftover) if leftover.is_dir() else leftover.unlink()
            self._forget(step)
        return step, newest

    def _forget(self, last_step: int) -> None:
        """Drop what was logged after a step."""
        log = self.folder / LOG
        lines: list[str] = []
        for line in log.read_text(encoding="utf-8").splitlines() if last_step and log.is_file() else []:
            try:
                if json.loads(line)["step"] <= last_step:
                    lines.append(f"{line}\n")
            except ValueError:
                # A line that a kill cut short.
                break
        shard.replace(log, "".join(lines).encode())
        for board in (BOARD, RUNS) if not last_step else ():
            shutil.rmtree(self.folder / board, ignore_errors=True)

    def write(self, step: int, values: Mapping[str, object]) -> None:
        """Add a line to the log; a number that is none is null."""
        if not self.first:
            return
        told = [
            f"{name} {value:.4g}" for key, name in _TOLD.items() if isinstance(value := values.get(key), float | int)
        ]
        if told:
            note(f"{self.out.name}: update {step}: {', '.join(told)}")
        loggable = {key: value for key, value in values.items() if isinstance(value, int | float | str | None)}
        finite = {k: None if isinstance(v, float) and not math.isfinite(v) else v for k, v in loggable.items()}
        with (self.folder / LOG).open("a", encoding="utf-8") as log:
            log.write(json.dumps({"step": step, **finite}) + "\n")

    def save(self, step: int, write: Callable[[Path], None]) -> None:
        """Have a checkpoint written beside its place, rename it into it, and keep of those before only the last."""
        name = f"checkpoint-{step}"
        earlier = _checkpoints(self.folder)
        with tempfile.TemporaryDirectory(prefix=f".{name}.", dir=self.folder) as scratch:
            new_checkpoint = Path(scratch) / name
            new_checkpoint.mkdir()
            write(new_checkpoint)
            self._write_state(new_checkpoint)
            os.replace(new_checkpoint, self.folder / name)
        for old in earlier[:-1]:
            shutil.rmtree(old)

    def callback(self) -> TrainerCallback:
        """Return what has a trainer of transformers write here; it puts its checkpoints into `folder` itself."""
        from transformers import TrainerCallback

        work = self

        class Writer(TrainerCallback):
            def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **rest: Any) -> None:
                # Times differ from run to run, and TRL counts tokens since the last start; a folder of the same inputs is the same.
                timed = ("train_", "step_time", "eval_runtime", "total_flos", "num_tokens")
                values = {key: value for key, value in logs.items() if not key.startswith(timed)}
                if values.keys() - {"epoch"}:
                    work.write(state.global_step, values)

            def on_save(self, args: Any, state: Any, control: Any, **rest: Any) -> None:
                if work.first:
                    work._write_state(work.folder / f"checkpoint-{state.global_step}")

        return Writer()

    def _write_state(self, checkpoint: Path) -> None:
        # Of several processes each writes its own state of randomness, maybe later than this.
        files = [f for f in checkpoint.iterdir() if not f.name.startswith((STATE, "rng_state_"))]
        hashes = {f.name: read_sha256(f) for f in files if f.is_file()}
        state: dict[str, Any] = {"inputs": self._inputs, "files": hashes, **self.state}
        shard.replace(checkpoint / STATE, json.dumps({**state, "digest": digest(state)}).encode())

    def lines(self) -> list[dict[str, Any]]:
        """Return the lines of the log; none where this process writes none."""
        log = self.folder / LOG
        return [json.loads(line) for line in log.read_text(encoding="utf-8").splitlines()] if log.is_file() else []

    def losses(self) -> list[float]:
        """Return the losses of the log, in order."""
        return [float(line["loss"]) for line in self.lines() if line.get("loss") is not None]

    def kept(self) -> list[Path]:
        """Return what is kept of a finished training: its log, and the folder for TensorBoard."""
        board = self.folder / BOARD
        for file in sorted(self.folder.glob(f"{RUNS}/**/events.out.tfevents.*")):
            board.mkdir(exist_ok=True)
            file.rename(board / file.name)
        return [path for path in (self.folder / LOG, board) if path.exists()]

    def remove(self) -> None:
        """Remove everything, the training being finished."""
        if self.first:
            shutil.rmtree(self.folder, ignore_errors=True)


def first_day(folder: str | Path) -> datetime.date:
    """Return the date that chat templates write in a training into `out`: the one it began with, else today's.

    A training that goes on another day then renders its prompts alike, and its reward model's.
    """
    folder = Path(folder).expanduser()
    newest = [checkpoint / STATE for checkpoint in _checkpoints(folder.parent / f"{folder.name}.training")[-1:]]
    for file in (folder / RECORD, *newest):
        try:
            record = json.loads(file.read_text(encoding="utf-8"))
            inputs = record.get("inputs", record)
            # A reward shows itself as text, its model's settings as JSON in it.
            text = json.dumps(inputs["config"]) + str(inputs.get("reward")) + str(inputs.get("gold"))
        except (OSError, ValueError, LookupError, AttributeError, TypeError):
            continue
        if match := re.search(r'"date": "(\d{4}-\d\d-\d\d)"', text):
            return datetime.date.fromisoformat(match[1])
    return datetime.date.today()


def differences(record: Mapping[str, JsonValue], inputs: Mapping[str, JsonValue]) -> list[str]:
    """Say in which inputs a record is not what is asked for; where the data lie is none of them."""
    recorded_config, config = record.get("config"), inputs["config"]
    if isinstance(recorded_config, dict) and isinstance(config, dict):
        # An option that is newer than the record has its default there.
        changed = [
            (key, recorded_config.get(key), value) for key, value in config.items() if recorded_config.get(key) != value
        ]
        if changed:
            return [f"{key} {old} instead of {new}" for key, old, new in changed]
        inputs = {key: value for key, value in inputs.items() if key != "config"}
    return [f"another {key}" for key, value in inputs.items() if key != "data" and record.get(key) != value]


def _read_checkpoint(checkpoint: Path) -> dict[str, Any] | None:
    """Return what a checkpoint keeps beside its files; None where one is missing or other than it was written."""
    try:
        state: dict[str, Any] = json.loads((checkpoint / STATE).read_text(encoding="utf-8"))
        is_whole = state.pop("digest") == digest(state)
        hashes = state.pop("files")
        is_whole = is_whole and all(read_sha256(checkpoint / name) == file_hash for name, file_hash in hashes.items())
    except (OSError, ValueError, LookupError, TypeError, AttributeError):
        return None
    return state if is_whole else None


def _checkpoints(folder: Path) -> list[Path]:
    """Return the checkpoints of a folder, the newest last."""
    checkpoints = [f for f in _entries(folder) if f.name.startswith("checkpoint-")]
    return sorted(checkpoints, key=lambda f: int(f.name.rpartition("-")[2]))


def _entries(folder: Path) -> list[Path]:
    return sorted(folder.iterdir()) if folder.is_dir() else []
