"""verifiers' format: Parquet files of tasks, and the taskset, a Python module, that loads them.

verifiers 0.4 takes a taskset by its module's name: a `Taskset` whose `load` yields tasks, each with a `TaskData`. The module
reads the files beside it. A task's `answer` is where verifiers' judge `reference` looks for the reference answer.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from seamcurate.publish import layout
from seamcurate.publish.shape import Shape
from seamcurate.publish.snippet import POLICY, REWARD_MODEL, Configuration, Snippet, download
from seamcurate.trainers import REWARD_MODULE

INFO = "info"
TASKSET = "seamcurate_taskset"

RESERVED = {"prompts": frozenset({"id", "answer", INFO})}

MEANINGS = {
    "id": "the row's place in its source, from 0, as text",
    "answer": "the reference, or else the golden response",
    f"{INFO}.prompt": "the prompt's text, for the reward",
}

REWARD_USE = f"`{TASKSET}.py` beside it takes it"


def lay_out(shape: Shape, names: Sequence[str]) -> dict[str, str]:
    """Return the SQL of a task's fields; the scores are fields of `info`."""
    fields = layout.others(names, ("prompt", layout.GROUND_TRUTH, layout.REWARD_PROMPT))
    if layout.REWARD_PROMPT in names:
        fields["prompt"] = layout.REWARD_PROMPT
    return {
        "id": "row_id::VARCHAR",
        "prompt": "prompt",
        "answer": layout.GROUND_TRUTH,
        INFO: layout.struct(fields),
    }


def files(shape: Shape, folder: str) -> dict[str, str]:
    """Write the taskset."""
    imported = f"import {REWARD_MODULE}\n" if shape.reward else ""
    rewarded = (
        f"""
    @vf.reward
    async def rer(self, trace: vf.Trace) -> float:
        return {REWARD_MODULE}.rer(trace.last_reply, self.data.answer, self.data.info)
"""
        if shape.reward
        else """
    # It has no reward of its own: give `--env.taskset.task.judges` or `--env.taskset.task.rewards`.
"""
    )
    return {
        f"{TASKSET}.py": f'''"""A taskset for verifiers, written by `seamcurate export`: the tasks in the Parquet files beside it."""

from pathlib import Path

import pyarrow.parquet as pq
import verifiers.v1 as vf
{imported}
__all__ = ["SeamcurateTaskset"]


class SeamcurateData(vf.TaskData):
    answer: str | None = None
    info: dict = {{}}


class SeamcurateTask(vf.Task[SeamcurateData]):
    """One prompt; `info` holds the scores of its row."""
{rewarded}

class SeamcurateTaskset(vf.Taskset[SeamcurateTask, vf.TasksetConfig]):
    def load(self):
        for file in sorted(Path(__file__).parent.glob("train-*.parquet")):
            for batch in pq.ParquetFile(file).iter_batches():
                for row in batch.to_pylist():
                    yield SeamcurateTask(SeamcurateData(**row), self.config.task)
'''
    }


def reward_function(end: str) -> str:
    """Write the function that the taskset calls in a reward file."""
    return (
        '\n\ndef rer(reply, answer, info):\n    return rewards.for_verl(REWARD, reply, answer or "", info)["score"]\n'
    )


def unshuffled(form: str) -> str:
    """Say how verifiers keeps the rows of an export in order."""
    return "verifiers keeps the order unless it is given `--select.shuffle`"


def commands(shape: Shape, folder: str, policy: str, reward: str, result: str) -> list[list[str]]:
    """Write the command that samples and rewards answers to an export; trainers such as prime-rl take the taskset by its name."""
    return [[f"PYTHONPATH={folder}", "vf-eval", TASKSET, "--model", policy]]


def snippets(repo_id: str, configuration: Configuration) -> Iterator[Snippet]:
    """Yield the code that loads a data set in verifiers' format."""
    (words,) = commands(configuration.shape, f"rows/data/{configuration.folder}", POLICY, REWARD_MODEL, "trained")
    yield Snippet("verifiers", "shell", download(repo_id, words))
