"""The table of trainer formats: how a split is written for each trainer, and how the trainer is started on it.

One rule: every difference between trainers is a value or a function in a row of this table. The command line, exports, reward files,
cards and the manual read the rows. To add a trainer, write its functions in a module beside `trl.py`, and add a row.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Literal, NamedTuple, TypeAlias

from seamcurate.publish import (
    axolotl,
    layout,
    llamafactory,
    nemo,
    open_instruct,
    openrlhf,
    skyrl,
    slime,
    swift,
    trl,
    verifiers_v1,
    verl,
)
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
    """Return the SQL of each exported column, or refuse a split format that the trainer cannot load.

    The prompt's is called `prompt` or `input`; a trainer that reads it under another name renames it in `layout`.
    """
    reward_function: Callable[[str], str] | None
    """Write the function that it calls in a reward file, given the policy's end-of-sequence token; None: it takes none."""
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
    layout: Callable[[Shape, Sequence[str]], dict[str, str]] | None = None
    """Return the SQL of each column of its rows over those of the names given, which are in the policy's form; None: as they are."""
    files: Callable[[Shape, str], dict[str, str]] | None = None
    """Write the files that it wants beside the rows, by name, given the export's folder."""
    beside: tuple[str, ...] = ()
    """The names of these files."""
    lines: bool = False
    """Whether it reads lines of JSON, and not Parquet."""
    one_file: bool = False
    """Whether it reads one file of rows alone."""
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


_TRUTH = (layout.GROUND_TRUTH, "ground truth")

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
    "nemo-rl": TrainerFormat(
        title="NeMo RL",
        reserved=nemo.RESERVED,
        columns=layout.columns,
        reward_function=None,
        reward_use="",
        commands=nemo.commands,
        snippets=nemo.snippets,
        unshuffled=nemo.unshuffled,
        meanings=nemo.MEANINGS,
        layout=nemo.lay_out,
        lines=True,
        ground_truth=_TRUTH,
        always_chats=True,
    ),
    "open-instruct": TrainerFormat(
        title="open-instruct",
        reserved=open_instruct.RESERVED,
        columns=open_instruct.columns,
        reward_function=None,
        reward_use="",
        commands=open_instruct.commands,
        snippets=open_instruct.snippets,
        unshuffled=open_instruct.unshuffled,
        meanings=open_instruct.MEANINGS,
        layout=open_instruct.lay_out,
        one_file=True,
        ground_truth=_TRUTH,
        always_chats=True,
    ),
    "skyrl": TrainerFormat(
        title="SkyRL",
        reserved=skyrl.RESERVED,
        columns=skyrl.columns,
        reward_function=skyrl.reward_function,
        reward_use=skyrl.REWARD_USE,
        commands=skyrl.commands,
        snippets=skyrl.snippets,
        unshuffled=skyrl.unshuffled,
        meanings=skyrl.MEANINGS,
        layout=skyrl.lay_out,
        pairs=None,
        ground_truth=_TRUTH,
        scores_in=skyrl.SCORES,
        always_chats=True,
    ),
    "verifiers": TrainerFormat(
        title="verifiers",
        reserved=verifiers_v1.RESERVED,
        columns=layout.columns,
        reward_function=verifiers_v1.reward_function,
        reward_use=verifiers_v1.REWARD_USE,
        commands=verifiers_v1.commands,
        snippets=verifiers_v1.snippets,
        unshuffled=verifiers_v1.unshuffled,
        meanings=verifiers_v1.MEANINGS,
        layout=verifiers_v1.lay_out,
        files=verifiers_v1.files,
        beside=(f"{verifiers_v1.TASKSET}.py",),
        pairs=None,
        ground_truth=_TRUTH,
        scores_in=verifiers_v1.INFO,
        always_chats=True,
    ),
    "llamafactory": TrainerFormat(
        title="LLaMA-Factory",
        reserved=llamafactory.RESERVED,
        columns=layout.columns,
        reward_function=None,
        reward_use="",
        commands=llamafactory.commands,
        snippets=llamafactory.snippets,
        unshuffled=llamafactory.unshuffled,
        meanings=llamafactory.MEANINGS,
        layout=llamafactory.lay_out,
        files=llamafactory.files,
        beside=(llamafactory.INFO_FILE,),
        one_file=True,
        writes_start=True,
    ),
    "ms-swift": TrainerFormat(
        title="ms-swift",
        reserved=swift.RESERVED,
        columns=layout.columns,
        reward_function=swift.reward_function,
        reward_use=swift.REWARD_USE,
        commands=swift.commands,
        snippets=swift.snippets,
        unshuffled=swift.unshuffled,
        meanings=swift.MEANINGS,
        layout=swift.lay_out,
        ground_truth=_TRUTH,
        writes_start=True,
    ),
    "axolotl": TrainerFormat(
        title="Axolotl",
        reserved=axolotl.RESERVED,
        columns=layout.columns,
        reward_function=trl.reward_function,
        reward_use=axolotl.REWARD_USE,
        commands=axolotl.commands,
        snippets=axolotl.snippets,
        unshuffled=axolotl.unshuffled,
        meanings=axolotl.MEANINGS,
        layout=axolotl.lay_out,
        files=axolotl.files,
        beside=(axolotl.CONFIG_FILE,),
        template_arguments="chat_template_kwargs",
    ),
    "slime": TrainerFormat(
        title="slime",
        reserved=slime.RESERVED,
        columns=layout.columns,
        reward_function=slime.reward_function,
        reward_use=slime.REWARD_USE,
        commands=slime.commands,
        snippets=slime.snippets,
        unshuffled=slime.unshuffled,
        meanings=slime.MEANINGS,
        layout=slime.lay_out,
        one_file=True,
        pairs=None,
        ground_truth=_TRUTH,
        scores_in=slime.METADATA,
        writes_start=True,
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
