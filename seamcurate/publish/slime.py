"""slime's formats: one Parquet file of prompts or conversations, and the commands that train on it.

slime's `utils/data.py` (commit 624b824 of August 2026) reads the columns that `--input-key`, `--label-key` and
`--metadata-key` name. It gives a sample's `metadata`, a struct, to the reward function, so that a row's scores are its fields.
slime is on no package index: the columns were read by its `Dataset` from that commit.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence

from seamcurate.publish import layout
from seamcurate.publish.shape import Shape, shard_names
from seamcurate.publish.snippet import POLICY, REWARD_MODEL, Configuration, Snippet, download
from seamcurate.trainers import REWARD_MODULE

METADATA = "metadata"

RESERVED = {
    "prompts": frozenset({"label", METADATA, "tools", "rm_type", "source_name"}),
    "sft": frozenset({"messages", METADATA, "tools", "source_name"}),
}
"""Fields of `metadata` that slime reads: it finds tools, a rule and a source there."""

MEANINGS = {
    "label": "the reference, or else the golden response",
    "messages": "the prompt's turns, then the answer to learn",
    f"{METADATA}.prompt": "the prompt's text, for the reward",
}

REWARD_USE = f"with its folder on PYTHONPATH `--custom-rm-path {REWARD_MODULE}.rer`"


def lay_out(shape: Shape, names: Sequence[str]) -> dict[str, str]:
    """Return the SQL of slime's columns: the prompt or conversation, the label, and all others as fields of `metadata`."""
    used = ("prompt", "completion", layout.GROUND_TRUTH, layout.REWARD_PROMPT)
    fields = layout.others(names, used)
    if layout.REWARD_PROMPT in names:
        fields["prompt"] = layout.REWARD_PROMPT
    rows = (
        {"prompt": "prompt", "label": f"coalesce({layout.GROUND_TRUTH}, '')"}
        if shape.format == "prompts"
        else {"messages": layout.conversation(shape, "completion")}
    )
    return {**rows, METADATA: layout.struct(fields)}


def reward_function(end: str) -> str:
    """Write the function that slime calls in a reward file, for one sample or for a group of them."""
    return (
        "\n\nasync def rer(args, samples, **more):\n"
        "    group = samples if isinstance(samples, list) else [samples]\n"
        "    scores = [rewards.for_verl(REWARD, s.response, s.label, s.metadata)['score'] for s in group]\n"
        "    return scores if isinstance(samples, list) else scores[0]\n"
    )


def unshuffled(form: str) -> str:
    """Say how slime keeps the rows of an export in order."""
    return "slime keeps the order unless it is given `--rollout-shuffle`"


def commands(shape: Shape, folder: str, policy: str, reward: str, result: str) -> list[list[str]]:
    """Write the command that trains by slime, in its own folder; the model's shape and the GPUs are its other options."""
    (file,) = shard_names(1, folder)
    data = ["python", "train.py", "--hf-checkpoint", policy, "--prompt-data", file, "--save", result]
    if shape.format == "sft":
        rollout = ["--rollout-function-path", "slime.rollout.sft_rollout.generate_rollout", "--loss-type", "sft_loss"]
        return [[*data, "--input-key", "messages", *rollout, "--disable-compute-advantages-and-returns"]]
    chat = ["--apply-chat-template"] if shape.chat else []
    if shape.chat and shape.arguments:
        chat += ["--apply-chat-template-kwargs", json.dumps(dict(shape.arguments))]
    rewarded = ["--custom-rm-path", f"{REWARD_MODULE}.rer"] if shape.reward else ["--rm-type", "f1"]
    python_path = [f"PYTHONPATH={folder}"] if shape.reward else []
    return [[*python_path, *data, "--input-key", "prompt", "--label-key", "label", *chat, *rewarded]]


def snippets(repo_id: str, configuration: Configuration) -> Iterator[Snippet]:
    """Yield the code that trains by slime on a data set in its own format."""
    (words,) = commands(configuration.shape, f"rows/data/{configuration.folder}", POLICY, REWARD_MODEL, "trained")
    yield Snippet("slime", "shell", download(repo_id, words))
