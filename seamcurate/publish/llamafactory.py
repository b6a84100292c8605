"""LLaMA-Factory's formats: one Parquet file, and the `dataset_info.json` that names its columns.

`llamafactory.data.parser` (0.9.5) reads `dataset_info.json` in the data set's folder. Text is its format `alpaca`, and chats are
its format `sharegpt`, with turns of `role` and `content`. It takes a chat whose turns alternate, after a system turn, and drops
every other with a warning. It reads no other column, so the scores stay in the file.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence

from seamcurate.publish import layout
from seamcurate.publish.shape import Shape, shard_names
from seamcurate.publish.snippet import POLICY, REWARD_MODEL, Configuration, Snippet, download

INFO_FILE, DATA_SET = "dataset_info.json", "seamcurate"

RESERVED = {
    "prompts": frozenset({"instruction", "output", "messages"}),
    "sft": frozenset({"instruction", "output", "messages"}),
    "preferences": frozenset({"instruction", "chosen", "rejected", "messages"}),
    "unpaired": frozenset({"instruction", "output", "messages", "label"}),
}

MEANINGS = {
    "instruction": "what is asked",
    "output": "the answer to learn, or the one that `label` is about; to prompts, the reference or else the golden response",
    "messages": "the prompt's turns, then the answer; of preferences the prompt's turns alone",
    "label": "whether the answer is the golden response",
}

_TAGS = {
    "role_tag": "role",
    "content_tag": "content",
    "user_tag": "user",
    "assistant_tag": "assistant",
    "system_tag": "system",
}
_STAGES = {"prompts": ("ppo",), "sft": ("sft",), "preferences": ("dpo", "rm"), "unpaired": ("kto",)}


def lay_out(shape: Shape, names: Sequence[str]) -> dict[str, str]:
    """Return the SQL of LLaMA-Factory's columns, then of all others."""
    used = ("prompt", "completion", "chosen", "rejected", "label", layout.GROUND_TRUTH)
    # Its reader of chats wants an answer to every prompt, and its PPO leaves that out.
    truth = f"coalesce({layout.GROUND_TRUTH}, '')"
    if shape.format == "preferences":
        if not shape.chat:
            rows = {"instruction": "prompt", "chosen": "chosen", "rejected": "rejected"}
        else:
            rows = {"messages": "prompt", "chosen": "chosen[1]", "rejected": "rejected[1]"}
    elif shape.chat:
        answer = f"[{{'role': 'assistant', 'content': {truth}}}]" if shape.format == "prompts" else "completion"
        rows = {"messages": f"prompt || {answer}"}
    else:
        rows = {"instruction": "prompt", "output": truth if shape.format == "prompts" else "completion"}
    if shape.format == "unpaired":
        rows["label"] = "label"
    return rows | layout.others(names, used)


def files(shape: Shape, folder: str) -> dict[str, str]:
    """Write `dataset_info.json`, which names the file and its columns."""
    ranked = {"chosen": "chosen", "rejected": "rejected"} if shape.format == "preferences" else {}
    tagged = {"kto_tag": "label"} if shape.format == "unpaired" else {}
    texts = {"prompt": "instruction", **({} if ranked else {"response": "output"})}
    entry: dict[str, object] = {"file_name": shard_names(1, "")[0].lstrip("/")}
    entry |= {"ranking": True} if ranked else {}
    entry["formatting"] = "sharegpt" if shape.chat else "alpaca"
    entry["columns"] = {**({"messages": "messages"} if shape.chat else texts), **ranked, **tagged}
    entry |= {"tags": _TAGS} if shape.chat else {}
    return {INFO_FILE: json.dumps({DATA_SET: entry}, indent=2) + "\n"}


def unshuffled(form: str) -> str:
    """Say how LLaMA-Factory keeps the rows of an export in order."""
    return "LLaMA-Factory shuffles them unless it is given `--disable_shuffling true`"


def commands(shape: Shape, folder: str, policy: str, reward: str, result: str) -> list[list[str]]:
    """Write the commands that train by LLaMA-Factory. Without `--template` it reads the tokenizer's chat template."""
    words = ["--do_train", "true", "--dataset", DATA_SET, "--dataset_dir", folder, "--output_dir", result]
    words += [] if shape.chat else ["--template", "empty"]
    words += ["--disable_shuffling", "true"] if shape.ordered else []
    rewarded = ["--reward_model", reward] if shape.format == "prompts" else []
    return [
        ["llamafactory-cli", "train", "--stage", stage, "--model_name_or_path", policy, *rewarded, *words]
        for stage in _STAGES[shape.format]
    ]


def snippets(repo_id: str, configuration: Configuration) -> Iterator[Snippet]:
    """Yield the code that trains by LLaMA-Factory on a data set in its own format."""
    (words, *_) = commands(configuration.shape, f"rows/data/{configuration.folder}", POLICY, REWARD_MODEL, "trained")
    yield Snippet("LLaMA-Factory", "shell", download(repo_id, words))
