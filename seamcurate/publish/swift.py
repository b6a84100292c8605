"""ms-swift's formats: Parquet files of `messages`, with an answer to learn, a rejected one or a label.

`swift.dataset` (ms-swift 4.6) reads `messages`, `rejected_response` and `label`, and drops other columns except for GRPO, whose
reward functions get them. A column `system` would become a system turn, and `images` pictures, so these are renamed.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from seamcurate.publish import layout
from seamcurate.publish.shape import Shape, shard_names
from seamcurate.publish.snippet import POLICY, REWARD_MODEL, Configuration, Snippet, download
from seamcurate.trainers import REWARD_FILE

# `RowPreprocessor.standard_keys` and the names that `MessagesPreprocessor` maps to them.
_EVERY_FORMAT = frozenset(
    {
        "messages",
        "images",
        "videos",
        "audios",
        "tools",
        "objects",
        "image",
        "video",
        "audio",
        "label",
        "channel",
        "margin",
    }
    | {"rejected_response", "rejected_messages", "system", "system_prompt", "conversation", "conversations"}
    | {"chat_template_kwargs", "teacher_prompt", "positive_messages", "negative_messages"}
)
RESERVED = {
    # What a reward function is given besides the columns.
    "prompts": _EVERY_FORMAT | {"completions", "trainer_state", "prompt_id", "request_id"},
    "sft": _EVERY_FORMAT,
    "preferences": _EVERY_FORMAT,
    "unpaired": _EVERY_FORMAT,
}

MEANINGS = {
    "messages": "the prompt's turns, then the answer to learn or the better one",
    "rejected_response": "the worse answer",
    "label": "whether the answer is the golden response",
    "ground_truth": "the reference, or else the golden response",
    layout.REWARD_PROMPT: "the prompt's text, for the reward",
}

REWARD_USE = f"`--external_plugins {REWARD_FILE} --reward_funcs rer`"


def lay_out(shape: Shape, names: Sequence[str]) -> dict[str, str]:
    """Return the SQL of ms-swift's columns, then of all others."""
    rest = layout.others(names, ("prompt", "completion", "chosen", "rejected", "label"))
    if shape.format == "prompts":
        return {"messages": layout.turns("prompt", "user", shape.chat), **rest}
    if shape.format == "preferences":
        pair = {"messages": layout.conversation(shape, "chosen"), "rejected_response": layout.text("rejected", shape)}
        return {**pair, **rest}
    label = {"label": "label"} if shape.format == "unpaired" else {}
    return {"messages": layout.conversation(shape, "completion"), **label, **rest}


def reward_function(end: str) -> str:
    """Write the reward function of a reward file, under the name `rer`."""
    return f"""

from swift.rewards import ORM, orms  # noqa: E402


class Rer(ORM):
    def __call__(self, completions, **columns):
        return rewards.for_trl(REWARD, columns["{layout.REWARD_PROMPT}"], completions, columns)


orms["rer"] = Rer
"""


def unshuffled(form: str) -> str:
    """Say how ms-swift keeps the rows of an export in order."""
    return "ms-swift shuffles them unless it is given `--dataset_shuffle false --train_dataloader_shuffle false`"


def commands(shape: Shape, folder: str, policy: str, reward: str, result: str) -> list[list[str]]:
    """Write the commands that train by ms-swift; its template `dummy` leaves prompts that are written out as they are."""
    words = ["--model", policy, "--dataset", *shard_names(shape.shards, folder), "--output_dir", result]
    words += [] if shape.chat else ["--template", "dummy"]
    words += ["--dataset_shuffle", "false", "--train_dataloader_shuffle", "false"] if shape.ordered else []
    if shape.format == "sft":
        return [["swift", "sft", *words]]
    if shape.format == "prompts":
        plugin = ["--external_plugins", f"{folder}/{REWARD_FILE}", "--reward_funcs", "rer"]
        rewarded = plugin if shape.reward else ["--reward_model", reward]
        return [["swift", "rlhf", "--rlhf_type", "grpo", *words, *rewarded]]
    kinds = {"preferences": ("dpo", "rm"), "unpaired": ("kto",)}[shape.format]
    return [["swift", "rlhf", "--rlhf_type", kind, *words] for kind in kinds]


def snippets(repo_id: str, configuration: Configuration) -> Iterator[Snippet]:
    """Yield the code that trains by ms-swift on a data set in its own format."""
    (words, *_) = commands(configuration.shape, f"rows/data/{configuration.folder}", POLICY, REWARD_MODEL, "trained")
    yield Snippet("ms-swift", "shell", download(repo_id, words))
