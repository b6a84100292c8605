"""OpenRLHF's formats: the columns, the commands and the checks of an export.

The reserved names come from OpenRLHF's code; a test compares them with an installed OpenRLHF.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import TYPE_CHECKING, NamedTuple

from seamcurate.errors import ExportError
from seamcurate.publish.shape import Shape
from seamcurate.publish.snippet import POLICY, REWARD_MODEL, Configuration, Snippet, download
from seamcurate.trainers import REWARD_FILE

if TYPE_CHECKING:
    from seamcurate.publish.split_view import SplitView
    from seamcurate.rewards import RerReward

RESERVED = {
    "prompts": frozenset({"images"}),
    "sft": frozenset[str](),
    "preferences": frozenset({"margin"}),
}

MEANINGS = {
    "label": "the reference, or else the golden response",
    "datasource": "the split",
    "reward_label": "what RER reads of the row, as JSON",
}

REWARD_USE = f"`--reward.remote_url {REWARD_FILE} --data.label_key reward_label`"


class Keys(NamedTuple):
    """Columns that a command names."""

    prompt: str = "input"
    answer: str = "output"
    label: str = "label"
    """Empty if the rows have no label."""


def columns(view: SplitView, reward: RerReward | None) -> dict[str, str]:
    """Return the SQL of each exported column: those of OpenRLHF's format first, then every plain column."""
    source = f"'seamcurate/{view.split}'"
    names_source = view.source_has_text("datasource")
    if names_source:
        source = f"coalesce(b.datasource, {source})"
    formats = {
        "prompts": {"input": "b.prompt", "label": view.ground_truth, "datasource": source},
        "sft": {"input": "b.prompt", "output": "b.response"},
        "preferences": {"prompt": "b.prompt", "chosen": "b.response", "rejected": "c.response"},
    }
    if view.format not in formats:
        raise ExportError(
            f"split {view.split}: OpenRLHF loads no {view.format!r} data; use format {', '.join(formats)}"
        )
    format_columns = formats[view.format]
    if reward and view.format == "prompts":
        kind = "b.query_type" if "query_type" in view.kinds else "NULL"
        form = view.sql_text(view.form.name) if view.form and not view.form.chat else "NULL"
        format_columns["reward_label"] = (
            f"to_json({{'prompt': {view.prompt_text}, 'query_type': {kind}, 'reference': b.reference, 'form': {form}}})::VARCHAR"
        )
    if view.shape.arguments:
        view.notes.append(
            "OpenRLHF gives chat templates no arguments: make these the template's own defaults: "
            + json.dumps(dict(view.shape.arguments))
        )
    taken = {"datasource"} if names_source and "datasource" in format_columns else ()
    return format_columns | view.plain_columns(format_columns, taken)


def reward_function(end: str) -> str:
    """Write the function that OpenRLHF calls in a reward file; `end` is the policy's end-of-sequence token."""
    return (
        f"END = {end!r}  # the policy's end-of-sequence token\n"
        "\n\ndef reward_func(queries, prompts, labels, **more):\n"
        "    return rewards.for_openrlhf(REWARD, END, queries, prompts, labels)\n"
    )


def unshuffled(form: str) -> str:
    """Say that OpenRLHF keeps no order."""
    return "OpenRLHF shuffles them, and has no option against that"


def commands(shape: Shape, folder: str, policy: str, reward: str, result: str, keys: Keys = Keys()) -> list[list[str]]:
    """Write the commands that train by OpenRLHF."""
    chat = ["--data.apply_chat_template"] if shape.chat else []
    output = ["--ckpt.output_dir", result]
    if shape.format == "prompts":
        if shape.reward:
            rewarded = ["--reward.remote_url", f"{folder}/{REWARD_FILE}", "--data.label_key", "reward_label"]
        else:
            label = ["--data.label_key", keys.label] if keys.label else []
            rewarded = ["--reward.model_name_or_path", reward, *label]
        data = ["--data.prompt_dataset", folder, "--data.input_key", keys.prompt]
        trainer = ["python", "-m", "openrlhf.cli.train_ppo_ray", "--actor.model_name_or_path", policy]
        return [[*trainer, *data, *rewarded, *chat, *output]]
    if shape.format == "sft":
        data = ["--data.dataset", folder, "--data.input_key", keys.prompt, "--data.output_key", keys.answer]
        # OpenRLHF's default template would put "User: " before prompts that are written out already.
        data += chat or ["--data.input_template", "{}"]
        return [["python", "-m", "openrlhf.cli.train_sft", "--model.model_name_or_path", policy, *data, *output]]
    data = ["--data.dataset", folder, "--data.prompt_key", "prompt"]
    data += ["--data.chosen_key", "chosen", "--data.rejected_key", "rejected", *chat]
    return [
        ["python", "-m", f"openrlhf.cli.train_{kind}", "--model.model_name_or_path", model, *data, *output]
        for kind, model in (("dpo", policy), ("rm", reward))
    ]


def snippets(repo_id: str, configuration: Configuration) -> Iterator[Snippet]:
    """Yield the code that trains by OpenRLHF on a data set in its own format."""
    rows = f"rows/data/{configuration.folder}"
    (*_, words) = commands(configuration.shape, rows, POLICY, REWARD_MODEL, "trained")
    yield Snippet("OpenRLHF", "shell", download(repo_id, words))
