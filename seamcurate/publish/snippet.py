"""The code on a card that loads a published data set, and the configuration that it loads."""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from typing import TYPE_CHECKING, NamedTuple

from seamcurate.publish.shape import Shape

if TYPE_CHECKING:
    import pyarrow as pa

POLICY, REWARD_MODEL = "POLICY", "REWARD_MODEL"
"""Placeholders in a command, for the models that the reader chooses."""


class Configuration(NamedTuple):
    """One configuration of a published data set: a split in one format."""

    name: str
    split: str
    form: str
    folder: str
    """The folder of its shards, inside `data/`."""
    rows: int
    bytes: int
    schema: pa.Schema
    """The schema of its files."""
    shape: Shape = Shape("prompts")

    @property
    def fields(self) -> dict[str, str]:
        """Return the type of each column by name. A struct is listed by its fields, as `column.field`."""
        import pyarrow as pa

        return {
            ".".join(path): str(kind)
            for field in self.schema
            for path, kind in (
                [((field.name, child.name), child.type) for child in field.type]
                if pa.types.is_struct(field.type)
                else [((field.name,), field.type)]
            )
        }


class Snippet(NamedTuple):
    """A piece of code on a card."""

    title: str
    language: str
    """The language of its Markdown fence: python, shell or sql."""
    code: str


def load_dataset(repo_id: str, configuration: Configuration) -> str:
    """Write the Python that loads a configuration as `rows`."""
    return (
        f'from datasets import load_dataset\nrows = load_dataset("{repo_id}", "{configuration.name}", split="train")\n'
    )


def download(repo_id: str, words: Sequence[str]) -> str:
    """Write the shell lines that download a data set into the folder `rows` and run a command on it."""
    return f"hf download {repo_id} --repo-type dataset --local-dir rows\n" + shell_line(words)


def shell_line(words: Sequence[str]) -> str:
    """Join a command's words for a shell."""
    # A shell reads a fully quoted word as a command, not as an assignment.
    return shlex.join(words).replace("'PYTHONPATH=", "PYTHONPATH='")
