"""What TRL, OpenRLHF and verl want of an export: the names they keep for themselves, and the command that starts each.

One rule: everything here was read in the trainers' own code and is held against it by tests.
"""

from __future__ import annotations

import json
import shlex
from collections.abc import Mapping, Sequence
from typing import Literal, NamedTuple

from pydantic import JsonValue

Trainer = Literal["trl", "openrlhf", "verl"]

REWARD_FILE = "seamcurate_reward.py"
"""No trainer has a module of this name: TRL's own scripts hold a `reward.py`, which a file of that name never gets past."""
REWARD_MODULE = REWARD_FILE.removesuffix(".py")

PROMPT_FORM, SOURCE_PROMPT = "prompt_form", "source_prompt"
"""Columns of an export whose prompts are written out as text: the form, and each prompt as the source has it."""

# `trl.data_utils.is_conversational` looks at any one of the first five to tell text from chats.
_TRL = {"prompt", "completion", "chosen", "rejected", "messages", "image", "images", "tools", "chat_template_kwargs"}
RESERVED: dict[Trainer, dict[str, set[str]]] = {
    "trl": {
        "prompts": _TRL
        | {"prompts", "completions", "completion_ids", "trainer_state", "log_extra", "log_metric"}
        | {"environment", "environments"},
        "sft": _TRL
        | {"text", "conversations", "input_ids", "labels", "seq_lengths", "completion_mask", "assistant_masks"},
        "preferences": _TRL
        | {"margin", "prompt_ids", "chosen_ids", "rejected_ids", "chosen_input_ids", "rejected_input_ids"}
        | {"ref_chosen_logps", "ref_rejected_logps"},
        "unpaired": _TRL | {"label", "prompt_ids", "completion_ids", "KL_completion_ids", "ref_logps", "ref_KL_logps"},
    },
    "openrlhf": {"prompts": {"images"}, "sft": set(), "preferences": {"margin"}},
    "verl": {
        "prompts": {"tools_kwargs", "need_tools_kwargs", "interaction_kwargs", "tool_selection", "experiment_name"}
        | {"num_turns", "rollout_reward_scores", "turn_scores", "tool_rewards"},
    },
}
"""Names that a trainer reads, or passes to rewards, for itself; of verl, inside `extra_info`."""

_VERBATIM = "{% for m in messages %}{{ m.content }}{% endfor %}"
"""A chat template that adds nothing: verl always applies one, and an export for it may hold prompts written out as text."""


class Shape(NamedTuple):
    """What decides how a trainer is started on an export."""

    format: str
    """prompts, sft, preferences or unpaired."""
    form: str | None = None
    """The form of the prompts: `chat`, or how they were written out as text; None: text as the source has it."""
    arguments: Mapping[str, JsonValue] = {}
    """Arguments of the policy's chat template."""
    start: str = ""
    """The policy's beginning-of-sequence token, where its tokenizer puts one before text."""
    reward: bool = False
    """Whether a reward file lies beside the rows."""
    shards: int = 1

    @property
    def chat(self) -> bool:
        """Tell whether the prompts are chats."""
        return self.form == "chat"


def verl_template(shape: Shape) -> str:
    """Return the chat template that verl needs for prompts written out as text; nothing for chats."""
    if shape.form in (None, "chat"):
        return ""
    # It holds no quotes, which would end those around it on the command line.
    return f"{{{{ bos_token }}}}{_VERBATIM}" if shape.start else _VERBATIM


def commands(trainer: Trainer, shape: Shape, folder: str, policy: str, reward: str, out: str = "trained") -> list[str]:
    """Write the shell commands that train on an export, one for each kind of training its format is for.

    Args:
        trainer: Whose commands.
        shape: What was exported.
        folder: Where it lies.
        policy: The policy's folder or Hub id.
        reward: A reward model's, for prompts without a reward file.
        out: The folder for the trained model.

    Example:
        >>> commands("trl", Shape("sft", "chat"), "splits/sft", "my-org/base", "")
        ['trl sft --model_name_or_path my-org/base --dataset_name splits/sft --output_dir trained',
         'seamcurate train sft --model my-org/base --data splits/sft --out trained']
    """
    lines = {"trl": _trl, "openrlhf": _openrlhf, "verl": _verl}[trainer](shape, folder.rstrip("/"), policy, reward)
    last = {"trl": ["--output_dir", out], "openrlhf": ["--ckpt.output_dir", out]}
    last["verl"] = [f"trainer.default_local_dir={out}"]
    told = [shlex.join([*words, *last[trainer]]).replace(*_ASSIGNED) for words in lines]
    own = _own(shape, folder.rstrip("/"), policy, reward) if trainer == "trl" else []
    return told + [shlex.join([*words, "--out", out]) for words in own]


_ASSIGNED = ("'PYTHONPATH=", "PYTHONPATH='")
"""A quoted word is no assignment to a shell."""


def _trl(shape: Shape, folder: str, policy: str, reward: str) -> list[list[str]]:
    data = ["--model_name_or_path", policy, "--dataset_name", folder]
    if shape.format == "prompts":
        # A reward file is imported by its name, from a folder that Python knows.
        before = [f"PYTHONPATH={folder}"] if shape.reward else []
        by = ["--reward_funcs", f"{REWARD_MODULE}.rer"] if shape.reward else ["--reward_model_name_or_path", reward]
        arguments = ["--chat_template_kwargs", json.dumps(dict(shape.arguments))] if shape.arguments else []
        return [[*before, "trl", "grpo", *data, *by, *arguments]]
    if shape.format == "preferences":
        return [["trl", "dpo", *data], ["trl", "reward", "--model_name_or_path", reward, "--dataset_name", folder]]
    return [["trl", {"sft": "sft", "unpaired": "kto"}[shape.format], *data]]


def _own(shape: Shape, folder: str, policy: str, reward: str) -> list[list[str]]:
    kinds = {"prompts": "grpo", "sft": "sft", "preferences": "reward"}
    if shape.format not in kinds:
        return []
    words = ["seamcurate", "train", kinds[shape.format], "--model", policy, "--data", folder]
    if shape.format == "prompts":
        words += ["--reward", f"{folder}/{REWARD_FILE}" if shape.reward else reward]
    if shape.form not in (None, "chat"):
        words += ["--form", shape.form]
    if shape.arguments:
        words += ["--template", json.dumps(dict(shape.arguments))]
    return [words]


def _openrlhf(shape: Shape, folder: str, policy: str, reward: str) -> list[list[str]]:
    chat = ["--data.apply_chat_template"] if shape.chat else []
    if shape.format == "prompts":
        by = ["--reward.remote_url", f"{folder}/{REWARD_FILE}", "--data.label_key", "reward_label"]
        by = by if shape.reward else ["--reward.model_name_or_path", reward, "--data.label_key", "label"]
        data = ["--data.prompt_dataset", folder, "--data.input_key", "input"]
        return [["python", "-m", "openrlhf.cli.train_ppo_ray", "--actor.model_name_or_path", policy, *data, *by, *chat]]
    if shape.format == "sft":
        data = ["--data.dataset", folder, "--data.input_key", "input", "--data.output_key", "output"]
        # Its own default would put "User: " before prompts that are written out already.
        data += chat or ["--data.input_template", "{}"]
        return [["python", "-m", "openrlhf.cli.train_sft", "--model.model_name_or_path", policy, *data]]
    data = ["--data.dataset", folder, "--data.prompt_key", "prompt"]
    data += ["--data.chosen_key", "chosen", "--data.rejected_key", "rejected", *chat]
    return [
        ["python", "-m", f"openrlhf.cli.train_{kind}", "--model.model_name_or_path", model, *data]
        for kind, model in (("dpo", policy), ("rm", reward))
    ]


def _verl(shape: Shape, folder: str, policy: str, reward: str) -> list[list[str]]:
    files = shard_names(shape.shards, folder)
    listed = files[0] if len(files) == 1 else f"[{','.join(files)}]"
    words = ["python", "-m", "verl.trainer.main_ppo", f"data.train_files={listed}", f"data.val_files={listed}"]
    words += [f"actor_rollout_ref.model.path={policy}"]
    if template := verl_template(shape):
        words += [f"actor_rollout_ref.model.custom_chat_template='{template}'"]
    words += [f"+data.apply_chat_template_kwargs.{key}={json.dumps(value)}" for key, value in shape.arguments.items()]
    if shape.reward:
        return [[*words, f"reward.custom_reward_function.path={folder}/{REWARD_FILE}"]]
    return [words]


def shard_names(count: int, folder: str) -> list[str]:
    """Return the paths of an export's files, as they are written."""
    return [f"{folder}/train-{number:05d}-of-{count:05d}.parquet" for number in range(count)]


def told(shape: Shape) -> str:
    """Say in which form an export's prompts are.

    Example:
        >>> told(Shape("sft", "chat"))
        'Prompts are chats, for the chat template of the policy.'
    """
    if shape.form is None:
        return "Prompts are text, as the source has them."
    if shape.chat:
        given = f" with {json.dumps(dict(shape.arguments))}" if shape.arguments else ""
        return f"Prompts are chats, for the chat template of the policy{given}."
    return (
        f"Prompts are written out as text in the form {shape.form!r}, as the policy was scored; answers follow them. "
        f"`{SOURCE_PROMPT}` is the prompt as the source has it."
    )


def free_name(name: str, taken: Sequence[str] | set[str]) -> str:
    """Return what a source's column is called where its own name is taken; SQL ignores case, and so does this."""
    found = f"source_{name}"
    while found.lower() in taken:
        found = f"source_{found}"
    return found
