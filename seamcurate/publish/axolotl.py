"""Axolotl's formats: Parquet files, and the `axolotl.yaml` that says how they are read.

`axolotl.utils.data` (0.19) reads conversations by its type `chat_template`, text by a type of the user's own, and hands rows
without a type to TRL as they are, as for GRPO and KTO. So these have TRL's columns and take TRL's reward function.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import yaml

from seamcurate.publish import layout, trl
from seamcurate.publish.shape import Shape
from seamcurate.publish.snippet import POLICY, REWARD_MODEL, Configuration, Snippet, download
from seamcurate.trainers import REWARD_MODULE

CONFIG_FILE = "axolotl.yaml"

RESERVED = {
    **trl.RESERVED,
    "sft": frozenset({"messages", "prompt", "completion", "system", "tools", "input_ids", "labels"}),
}

MEANINGS = {**trl.MEANINGS, "messages": "the prompt's turns, then the answer to learn"}

REWARD_USE = f"in its folder, `trl: {{reward_funcs: [{REWARD_MODULE}.rer]}}`, as `{CONFIG_FILE}` has it"

_RL = {"prompts": "grpo", "preferences": "dpo", "unpaired": "kto"}


def lay_out(shape: Shape, names: Sequence[str]) -> dict[str, str]:
    """Return the SQL of Axolotl's columns: conversations to learn from in chats, and TRL's columns elsewhere."""
    if shape.format == "sft" and shape.chat:
        rest = layout.others(names, ("prompt", "completion"))
        return {"messages": layout.conversation(shape, "completion"), **rest}
    return layout.others(names, (layout.GROUND_TRUTH, layout.REWARD_PROMPT))


def files(shape: Shape, folder: str) -> dict[str, str]:
    """Write `axolotl.yaml`: the data, and the least that Axolotl wants of a training."""
    rows: dict[str, object] = {"path": folder, "split": "train"}
    if shape.format == "sft":
        text = {"field_instruction": "prompt", "field_output": "completion", "format": "{instruction}"}
        rows["type"] = "chat_template" if shape.chat else {**text, "no_input_format": "{instruction}"}
    elif shape.format == "preferences":
        rows["type"] = "chat_template.default" if shape.chat else {"field_prompt": "prompt"}
        rows |= {"field_messages": "prompt"} if shape.chat else {}
    config: dict[str, object] = {"base_model": POLICY, "datasets": [rows]}
    if rl := _RL.get(shape.format):
        config["rl"] = rl
    if shape.format in ("prompts", "unpaired"):
        config["skip_prepare_dataset"] = True
    if shape.format == "prompts":
        arguments = {"chat_template_kwargs": dict(shape.arguments)} if shape.arguments else {}
        rewarded = {"reward_funcs": [f"{REWARD_MODULE}.rer"]} if shape.reward else {}
        config["trl"] = {"num_generations": 8, **rewarded, **arguments}
    if shape.ordered:
        config |= {"shuffle_merged_datasets": False, "curriculum_sampling": True}
    config |= {"sequence_len": 2048, "micro_batch_size": 8, "gradient_accumulation_steps": 1, "num_epochs": 1}
    config |= {"learning_rate": 1e-5, "optimizer": "adamw_torch", "lr_scheduler": "constant", "output_dir": "trained"}
    return {CONFIG_FILE: "# Written by `seamcurate export`.\n" + yaml.safe_dump(config, sort_keys=False)}


def unshuffled(form: str) -> str:
    """Say how Axolotl keeps the rows of an export in order."""
    return f"`{CONFIG_FILE}` has Axolotl keep them in order by `shuffle_merged_datasets: false` and `curriculum_sampling: true`"


def commands(shape: Shape, folder: str, policy: str, reward: str, result: str) -> list[list[str]]:
    """Write the command that trains by Axolotl; a reward file is imported by its module's name."""
    python_path = [f"PYTHONPATH={folder}"] if shape.reward else []
    words = ["axolotl", "train", f"{folder}/{CONFIG_FILE}", "--base-model", policy, "--output-dir", result]
    return [[*python_path, *words]]


def snippets(repo_id: str, configuration: Configuration) -> Iterator[Snippet]:
    """Yield the code that trains by Axolotl on a data set in its own format."""
    (words,) = commands(configuration.shape, f"rows/data/{configuration.folder}", POLICY, REWARD_MODEL, "trained")
    yield Snippet("Axolotl", "shell", download(repo_id, words))
