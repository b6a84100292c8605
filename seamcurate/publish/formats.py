"""The table of trainer formats: how a split is written for each trainer, and how the trainer is started on it.

One rule: every difference between trainers is a value or a function in a row of this table. The command line, exports, reward files,
cards and the manual read the rows. To add a trainer, write its functions in a module beside `trl.py`, and add a row.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import TYPE_CHECKING, Literal, NamedTuple, TypeAlias

from seamcurate.publish import openrlhf, trl, verl
from seamcurate.publish.shape import Shape
from seamcurate.publish.snippet import Configuration, Snippet, shell_line

if TYPE_CHECKING:
    from seamcurate.publish.split_view import SplitView
    from seamcurate.rewards import RerReward


class TrainerFormat(NamedTuple):
    """How a trainer wants an export."""

    title: str
    """Its name in messages and on cards."""
    reserved: Mapping[str, frozenset[str]]
    """Column names that the trainer uses itself, by the split formats that it loads."""
    columns: Callable[[SplitView, RerReward | None], dict[str, str]]
    """Return the SQL of each exported column, or refuse a split format that the trainer cannot load."""
    reward_function: Callable[[str], str]
    """Write the function that it calls in a reward file, given the policy's end-of-sequence token."""
    reward_use: str
    """How the trainer is started with a reward file; the file's first line says it."""
    commands: Callable[[Shape, str, str, str, str], list[list[str]]]
    """Write the commands that train on an export, given its folder, a policy, a reward model and a folder for the result."""
    snippets: Callable[[str, Configuration], Iterator[Snippet]]
    """Write the loading lines of a card, given the repository's id."""
    unshuffled: Callable[[str], str]
    """Say how the trainer keeps the rows in order, for an export of a split format."""
    meanings: Mapping[str, str]
    """Meanings of the columns that only its formats have, or that they rename."""
    pairs: Mapping[str, str] | None = {}
    """Its names for `prompt` and `completion` in pairs for fine-tuning; None: it loads no pairs."""
    token_ids: bool = False
    """Whether it loads prompts as token ids."""
    ground_truth: tuple[str, str] | None = None
    """The column with the answer that a rule-based reward looks for, and the noun for it in messages."""
    scores_in: str = ""
    """The struct column whose fields are the scores; empty: each score is a column of its own."""
    omits: frozenset[str] = frozenset()
    """Columns of the store that its format holds under another name."""
    template_arguments: str = ""
    """The column with the arguments of the policy's chat template, if the trainer reads one."""
    writes_start: bool = False
    """Whether the export writes the policy's beginning-of-sequence token, as the trainer adds none."""
    always_chats: bool = False
    """Whether it applies a chat template to every prompt, so that text is written as one user turn."""
    picture: str = ""
    """Text in a chat that the trainer replaces by a picture."""


TRAINERS: dict[str, TrainerFormat] = {
    "trl": TrainerFormat(
        title="TRL",
        reserved=trl.RESERVED,
        columns=trl.columns,
        reward_function=trl.reward_function,
        reward_use=trl.REWARD_USE,
        commands=trl.commands,
        snippets=trl.snippets,
        unshuffled=trl.unshuffled,
        meanings=trl.MEANINGS,
        token_ids=True,
        template_arguments="chat_template_kwargs",
    ),
    "openrlhf": TrainerFormat(
        title="OpenRLHF",
        reserved=openrlhf.RESERVED,
        columns=openrlhf.columns,
        reward_function=openrlhf.reward_function,
        reward_use=openrlhf.REWARD_USE,
        commands=openrlhf.commands,
        snippets=openrlhf.snippets,
        unshuffled=openrlhf.unshuffled,
        meanings=openrlhf.MEANINGS,
        pairs={"prompt": "input", "completion": "output"},
        ground_truth=("label", "label"),
        writes_start=True,
        picture="<image>",
    ),
    "verl": TrainerFormat(
        title="verl",
        reserved=verl.RESERVED,
        columns=verl.columns,
        reward_function=verl.reward_function,
        reward_use=verl.REWARD_USE,
        commands=verl.commands,
        snippets=verl.snippets,
        unshuffled=verl.unshuffled,
        meanings=verl.MEANINGS,
        pairs=None,
        ground_truth=("reward_model", "ground truth"),
        scores_in=verl.SCORES,
        omits=frozenset({"row_id"}),
        always_chats=True,
    ),
}
"""Each trainer's format, by the name that `export --to` and `push --to` take."""

if TYPE_CHECKING:
    Trainer: TypeAlias = str
else:
    # A type checker cannot read the table; pydantic and the command line can.
    Trainer = Literal[tuple(TRAINERS)]


def commands(
    trainer: Trainer, shape: Shape, folder: str, policy: str, reward: str, result: str = "trained"
) -> list[str]:
    """Write the shell commands that train on an export, one for each kind of training that its format is for.

    Args:
        trainer: The trainer to start.
        shape: The shape of the export.
        folder: The export's folder.
        policy: The policy's folder or Hub id.
        reward: The reward model's folder or Hub id, for prompts without a reward file.
        result: The folder for the trained model.

    Example:
        >>> commands("trl", Shape("unpaired"), "splits/kto", "my-org/base", "")
        ['trl kto --model_name_or_path my-org/base --dataset_name splits/kto --output_dir trained']
    """
    return [
        shell_line(words) for words in TRAINERS[trainer].commands(shape, folder.rstrip("/"), policy, reward, result)
    ]
