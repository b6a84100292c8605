"""TRL's formats: the columns, the commands and the Python that train on an export.

The reserved names come from TRL's code; a test compares them with an installed TRL.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import TYPE_CHECKING

from seamcurate.publish import openrlhf, verl
from seamcurate.publish.shape import Shape
from seamcurate.publish.snippet import POLICY, REWARD_MODEL, Snippet, download, load_dataset
from seamcurate.trainers import REWARD_FILE, REWARD_MODULE

if TYPE_CHECKING:
    from seamcurate.publish.snippet import Configuration
    from seamcurate.publish.split_view import SplitView
    from seamcurate.rewards import RerReward

# `trl.data_utils.is_conversational` looks at any one of the first five to tell text from chats.
_EVERY_FORMAT = frozenset(
    {"prompt", "completion", "chosen", "rejected", "messages", "image", "images", "tools", "chat_template_kwargs"}
)
RESERVED = {
    "prompts": _EVERY_FORMAT
    | {"prompts", "completions", "completion_ids", "trainer_state", "log_extra", "log_metric"}
    | {"environment", "environments"},
    "sft": _EVERY_FORMAT
    | {"text", "conversations", "input_ids", "labels", "seq_lengths", "completion_mask", "assistant_masks"},
    "preferences": _EVERY_FORMAT
    | {"margin", "prompt_ids", "chosen_ids", "rejected_ids", "chosen_input_ids", "rejected_input_ids"}
    | {"ref_chosen_logps", "ref_rejected_logps"},
    "unpaired": _EVERY_FORMAT
    | {"label", "prompt_ids", "completion_ids", "KL_completion_ids", "ref_logps", "ref_KL_logps"},
}

MEANINGS = {
    "completion": "the answer to learn, or the one that `label` is about",
    "label": "whether the completion is the golden response",
    "input_ids": "the prompt, in tokens of the policy's tokenizer",
    "chat_template_kwargs": "arguments of the policy's chat template, as it was scored",
}

REWARD_USE = (
    f"`seamcurate train ppo --reward {REWARD_FILE}`; or with its folder on PYTHONPATH `from {REWARD_MODULE} import rer`, "
    f"or `trl grpo --reward_funcs {REWARD_MODULE}.rer`"
)

_PYTHON = {
    "prompts": """from trl import GRPOConfig, GRPOTrainer  # RLOOConfig and RLOOTrainer read the same
args = GRPOConfig("trained")  # without a GPU: bf16=False, use_cpu=True
# A reward model's name, or a function of prompts, completions and every other column.
GRPOTrainer(model="…", reward_funcs="…", args=args, train_dataset=rows).train()
""",
    "sft": """from trl import SFTConfig, SFTTrainer
args = SFTConfig("trained")  # without a GPU: bf16=False, use_cpu=True
SFTTrainer(model="…", args=args, train_dataset=rows.select_columns(["prompt", "completion"])).train()
""",
    "preferences": """from trl import DPOConfig, DPOTrainer  # RewardConfig and RewardTrainer read the same
args = DPOConfig("trained")  # without a GPU: bf16=False, use_cpu=True
DPOTrainer(model="…", args=args, train_dataset=rows.select_columns(["prompt", "chosen", "rejected"])).train()
""",
    "unpaired": """from trl.experimental.kto import KTOTrainer
KTOTrainer(model="…", train_dataset=rows.select_columns(["prompt", "completion", "label"])).train()
""",
    "prompt_ids": """from trl.experimental.ppo import PPOTrainer  # TRL 1.12 and before; the models must share this tokenizer
PPOTrainer(args=…, processing_class=…, model=…, ref_model=…, reward_model=…, value_model=…, train_dataset=rows).train()
""",
}


def columns(view: SplitView, reward: RerReward | None) -> dict[str, str]:
    """Return the SQL of each exported column: TRL's own, every plain column, and what a reward function reads by other names."""
    format_columns = {
        "prompts": {"prompt": "b.prompt"},
        "sft": {"prompt": "b.prompt", "completion": "b.response"},
        "preferences": {"prompt": "b.prompt", "chosen": "b.response", "rejected": "c.response"},
        "unpaired": {"prompt": "b.prompt", "completion": "c.response", "label": "c.label"},
    }[view.format]
    columns = format_columns | view.plain_columns(format_columns)
    return columns | view.parameter_columns(columns)


def reward_function(end: str) -> str:
    """Write the function that TRL calls in a reward file."""
    return (
        "\n\ndef rer(prompts, completions, **columns):\n"
        "    return rewards.for_trl(REWARD, prompts, completions, columns)\n"
    )


_IN_ORDER = {"prompts": ("shuffle_dataset", False)}
"""TRL's option that keeps the rows in order, by split format; for the others, that of transformers 5."""
_SEQUENTIAL = ("train_sampling_strategy", "sequential")


def unshuffled(form: str) -> str:
    """Say how TRL keeps the rows of an export in order."""
    name, value = _IN_ORDER.get(form, _SEQUENTIAL)
    return f"TRL shuffles them unless its configuration has `{name}={value!r}`"


def commands(shape: Shape, folder: str, policy: str, reward: str, result: str) -> list[list[str]]:
    """Write the commands that train by TRL, and those that train by seamcurate's own trainers."""
    return [
        *([*words, "--output_dir", result] for words in _own_commands(shape, folder, policy, reward)),
        *([*words, "--out", result] for words in _seamcurate_commands(shape, folder, policy, reward)),
    ]


def _own_commands(shape: Shape, folder: str, policy: str, reward: str) -> list[list[str]]:
    data = ["--model_name_or_path", policy, "--dataset_name", folder]
    if shape.ordered:
        name, value = _IN_ORDER.get(shape.format, _SEQUENTIAL)
        data += [f"--{name}", str(value)]
    if shape.format == "prompts":
        # TRL imports a reward file by its module name, so its folder must be on PYTHONPATH.
        on_path: str | None = None
        rewarded = ["--reward_model_name_or_path", reward]
        if shape.reward:
            on_path, rewarded = folder, ["--reward_funcs", f"{REWARD_MODULE}.rer"]
        elif shape.function and shape.function.import_path:
            on_path, rewarded = shape.function.folder, ["--reward_funcs", shape.function.import_path]
        python_path = [] if on_path is None else [f"PYTHONPATH={on_path}"]
        arguments = ["--chat_template_kwargs", json.dumps(dict(shape.arguments))] if shape.arguments else []
        return [[*python_path, "trl", "grpo", *data, *rewarded, *arguments]]
    if shape.format == "preferences":
        return [["trl", "dpo", *data], ["trl", "reward", "--model_name_or_path", reward, *data[2:]]]
    return [["trl", {"sft": "sft", "unpaired": "kto"}[shape.format], *data]]


def _seamcurate_commands(shape: Shape, folder: str, policy: str, reward: str) -> list[list[str]]:
    kinds = {"prompts": "grpo", "sft": "sft", "preferences": "reward"}
    # seamcurate's SFT and reward trainers shuffle rows in any case.
    if shape.format not in kinds or (shape.ordered and shape.format != "prompts"):
        return []
    words = ["seamcurate", "train", kinds[shape.format], "--model", policy, "--data", folder]
    if shape.format == "prompts":
        own = shape.function.path if shape.function else reward
        words += ["--reward", f"{folder}/{REWARD_FILE}" if shape.reward else own]
    if shape.ordered:
        words += ["--no-shuffle-dataset"]
    if shape.form not in (None, "chat"):
        words += ["--form", shape.form]
    if shape.arguments:
        words += ["--template", json.dumps(dict(shape.arguments))]
    return [words]


def snippets(repo_id: str, configuration: Configuration) -> Iterator[Snippet]:
    """Yield the code that loads a data set in TRL's format by TRL, and by OpenRLHF and verl under their column names."""
    shape, rows = configuration.shape, f"rows/data/{configuration.folder}"
    yield Snippet("TRL", "python", load_dataset(repo_id, configuration) + _python(shape))
    if shape.reward:
        (words, *_) = commands(shape, rows, POLICY, REWARD_MODEL, "trained")
        yield Snippet(f"TRL, rewarded by RER (`{REWARD_FILE}`)", "shell", download(repo_id, words))
    if shape.format in openrlhf.RESERVED:
        keys = openrlhf.Keys(prompt="prompt", answer="completion", label="")
        (*_, words) = openrlhf.commands(shape._replace(reward=False), rows, POLICY, REWARD_MODEL, "trained", keys)
        yield Snippet("OpenRLHF", "shell", download(repo_id, words))
    if shape.format == "prompts":
        conversion = verl.CONVERSION.format(split=configuration.split)
        yield Snippet("verl", "python", load_dataset(repo_id, configuration) + conversion)
        yield Snippet("verl, on that file", "shell", verl.command_on("rows.parquet", shape))


def _python(shape: Shape) -> str:
    """Write the Python that trains on an export by TRL."""
    code = _PYTHON[shape.format]
    if shape.ordered:
        name, value = _IN_ORDER.get(shape.format, _SEQUENTIAL)
        code = code.replace('Config("trained"', f'Config("trained", {name}={value!r}')
    if not shape.arguments:
        return code
    arguments = repr(dict(shape.arguments))
    return code.replace('GRPOConfig("trained"', f'GRPOConfig("trained", chat_template_kwargs={arguments}').replace(
        '"])', '", "chat_template_kwargs"])'
    )
