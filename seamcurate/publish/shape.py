"""The shape of an export: the properties that decide the command of a trainer."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import TYPE_CHECKING, NamedTuple

from seamcurate.trainers import SOURCE_PROMPT

if TYPE_CHECKING:
    from pydantic import JsonValue


class Function(NamedTuple):
    """A reward function of the recipe's that needs no settings."""

    path: str
    """As `seamcurate train --reward` takes it: `verifier.py:score`, or the name of one that comes with seamcurate."""
    import_path: str | None
    """The dotted path by which TRL imports it; None for a function that TRL cannot call."""
    folder: str | None
    """The folder that Python must be told of to import it; None for a function of an installed package."""


LINES_FILE = "train.jsonl"
"""The file of an export to a trainer that reads lines of JSON."""


class Shape(NamedTuple):
    """The properties of an export that decide the command of a trainer."""

    format: str
    """prompts, sft, preferences or unpaired."""
    form: str | None = None
    """The form of the prompts: `chat`, or the name of a text form; None: text as in the source."""
    arguments: Mapping[str, JsonValue] = {}
    """Arguments of the policy's chat template."""
    start: str = ""
    """The policy's beginning-of-sequence token, if its tokenizer puts one before text."""
    reward: bool = False
    """Whether a reward file lies beside the rows."""
    function: Function | None = None
    """The recipe's own reward, where it is a function that a command can name."""
    shards: int = 1
    """How many Parquet files hold the rows."""
    ordered: bool = False
    """Whether the rows are in an order that the trainer is to keep."""

    @property
    def chat(self) -> bool:
        """Whether the prompts are chats."""
        return self.form == "chat"


def described(shape: Shape) -> str:
    """Describe the form of an export's prompts in a sentence.

    Example:
        >>> described(Shape("sft", "chat"))
        'Prompts are chats, for the chat template of the policy.'
    """
    if shape.form is None:
        return "Prompts are text, as the source has them."
    if shape.chat:
        arguments = f" with {json.dumps(dict(shape.arguments))}" if shape.arguments else ""
        return f"Prompts are chats, for the chat template of the policy{arguments}."
    return (
        f"Prompts are written out as text in the form {shape.form!r}, as the policy was scored; answers follow them. "
        f"`{SOURCE_PROMPT}` is the prompt as the source has it."
    )


def shard_names(count: int, folder: str) -> list[str]:
    """Return the paths of an export's Parquet files."""
    return [f"{folder}/train-{number:05d}-of-{count:05d}.parquet" for number in range(count)]
