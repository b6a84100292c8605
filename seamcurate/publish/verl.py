"""verl's format: the columns, the commands and the chat template of an export.

The reserved names come from verl's code; a test compares them with an installed verl.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import TYPE_CHECKING

from seamcurate.errors import ExportError
from seamcurate.publish.layout import VERBATIM
from seamcurate.publish.shape import Shape, shard_names
from seamcurate.publish.snippet import POLICY, REWARD_MODEL, Configuration, Snippet, download
from seamcurate.trainers import PROMPT_FORM, REWARD_FILE, free_name

if TYPE_CHECKING:
    from seamcurate.publish.split_view import SplitView
    from seamcurate.rewards import RerReward

SCORES = "extra_info"
"""The struct column that holds the scores and the other plain columns."""

RESERVED = {
    "prompts": frozenset(
        {"tools_kwargs", "need_tools_kwargs", "interaction_kwargs", "tool_selection", "experiment_name"}
        | {"num_turns", "rollout_reward_scores", "turn_scores", "tool_rewards"}
    )
}
"""Names of fields in `extra_info` that verl uses itself."""

MEANINGS = {
    "data_source": "the source's own, or the split: by it verl finds its reward function",
    "ability": "the source's own, or `query_type`, where it is known",
    "reward_model.style": "always `rule`",
    "reward_model.ground_truth": "the reference, or else the golden response",
    "extra_info.split": "always `train`",
    "extra_info.index": "the row's place in its source, from 0",
    f"extra_info.{PROMPT_FORM}": "the form in which the prompt was written out, as the policy was scored",
}

REWARD_USE = f"`reward.custom_reward_function.path={REWARD_FILE}`, whose compute_score verl takes"

_IN_ORDER = "data.shuffle=False"
CONVERSION = """
def to_verl(row):
    prompt = row["prompt"] if isinstance(row["prompt"], list) else [{{"role": "user", "content": row["prompt"]}}]
    truth = {{"style": "rule", "ground_truth": row.get("reference") or row.get("response") or ""}}
    info = {{"split": "train", "index": row["row_id"]}}
    return {{"data_source": "seamcurate/{split}", "prompt": prompt, "ability": row.get("query_type") or "unknown", "reward_model": truth, "extra_info": info}}
rows.map(to_verl, remove_columns=rows.column_names).to_parquet("rows.parquet")
"""
"""Python that turns rows in TRL's format into verl's; `{split}` is the split's name."""


def columns(view: SplitView, reward: RerReward | None) -> dict[str, str]:
    """Return the SQL of each of verl's five columns; the scores are fields of `extra_info`."""
    if view.format != "prompts":
        raise ExportError(f"split {view.split}: verl trains from prompts, and the split's format is {view.format!r}")
    for_reward = {"prompt": view.prompt_text} if reward else {}
    if reward and view.form and not view.form.chat:
        for_reward[PROMPT_FORM] = view.sql_text(view.form.name)
    source = f"'seamcurate/{view.split}'"
    ability = "coalesce(b.query_type, 'unknown')" if "query_type" in view.kinds else "'unknown'"
    if view.source_has_text("data_source"):
        source = f"coalesce(b.data_source, {source})"
    if view.source_has_text("ability"):
        ability = f"coalesce(b.ability, {ability})"
    fields = _extra_info(view, for_reward)
    return {
        "data_source": source,
        "prompt": "b.prompt",
        "ability": ability,
        "reward_model": _reward_model(view),
        SCORES: "{" + ", ".join(f"{view.sql_text(name)}: {value}" for name, value in fields.items()) + "}",
    }


def _reward_model(view: SplitView) -> str:
    """Return the SQL of `reward_model`: the source's column if it has one, else the reference or golden response."""
    by_rule = f"{{'style': 'rule', 'ground_truth': coalesce({view.ground_truth}, '')}}"
    names = view.struct_fields("reward_model")
    if "ground_truth" not in names:
        return by_rule
    texts = len(names) == 2 and view.all_text("reward_model")
    return f"coalesce(b.reward_model, {by_rule})" if texts else "b.reward_model"


def _extra_info(view: SplitView, for_reward: dict[str, str]) -> dict[str, str]:
    """Return the SQL of the fields of `extra_info`: verl's own, every plain column, and the source's `extra_info`."""
    source_fields = {name: f"b.extra_info.{view.quoted(name)}" for name in view.struct_fields("extra_info")}
    has_index = "index" in source_fields
    # Fields that verl reads keep the source's values; a column of this store is never replaced by a field of the source.
    fields = {
        name: source_fields.pop(name, value) for name, value in {"split": "'train'", "index": "b.row_id"}.items()
    } | for_reward
    if has_index:
        fields["row_id"] = "b.row_id"
    used = {name for name in ("data_source", "ability") if view.source_has_text(name)} | {"reward_model", SCORES}
    reserved = [name for name in source_fields if name in RESERVED["prompts"]]
    fields |= {name: source_fields.pop(name) for name in reserved}
    fields |= view.plain_columns(fields, used)
    taken = {name.lower() for name in (*fields, *source_fields)}
    for name, value in source_fields.items():
        free = name if name.lower() not in {key.lower() for key in fields} else free_name(name, taken)
        if free != name:
            view.notes.append(
                f"the source's extra_info.{name} is extra_info.{free}: the column {name} is of this store"
            )
        fields[free] = value
    return fields


def reward_function(end: str) -> str:
    """Write the function that verl calls in a reward file."""
    return (
        "\n\ndef compute_score(data_source, solution_str, ground_truth, extra_info=None, **more):\n"
        "    return rewards.for_verl(REWARD, solution_str, ground_truth, extra_info)\n"
    )


def unshuffled(form: str) -> str:
    """Say how verl keeps the rows of an export in order."""
    return f"verl shuffles them unless it is given `{_IN_ORDER}`"


def template(shape: Shape) -> str:
    """Return the chat template that verl needs for prompts written out as text; nothing for chats."""
    if shape.form in (None, "chat"):
        return ""
    # The template must hold no quotes, as it is quoted on the command line.
    return f"{{{{ bos_token }}}}{VERBATIM}" if shape.start else VERBATIM


def commands(shape: Shape, folder: str, policy: str, reward: str, result: str) -> list[list[str]]:
    """Write the command that trains by verl."""
    files = shard_names(shape.shards, folder)
    listed = files[0] if len(files) == 1 else f"[{','.join(files)}]"
    words = ["python", "-m", "verl.trainer.main_ppo", f"data.train_files={listed}", f"data.val_files={listed}"]
    words += [f"actor_rollout_ref.model.path={policy}"]
    if chat_template := template(shape):
        words += [f"actor_rollout_ref.model.custom_chat_template='{chat_template}'"]
    words += [f"+data.apply_chat_template_kwargs.{key}={json.dumps(value)}" for key, value in shape.arguments.items()]
    if shape.ordered:
        words += [_IN_ORDER]
    if shape.reward:
        words += [f"reward.custom_reward_function.path={folder}/{REWARD_FILE}"]
    return [[*words, f"trainer.default_local_dir={result}"]]


def command_on(file: str, shape: Shape) -> str:
    """Write the command that trains on a file of rows turned into verl's format by `CONVERSION`."""
    chat_template = template(shape)
    option = f" \\\n    \"actor_rollout_ref.model.custom_chat_template='{chat_template}'\"" if chat_template else ""
    in_order = f" {_IN_ORDER}" if shape.ordered else ""
    return (
        f"python -m verl.trainer.main_ppo data.train_files={file} data.val_files={file} actor_rollout_ref.model.path=POLICY"
        f"{in_order}{option} reward.custom_reward_function.path=yours.py  # verl has no reward for this data_source: give it yours"
    )


def snippets(repo_id: str, configuration: Configuration) -> Iterator[Snippet]:
    """Yield the code that trains by verl on a data set in its own format."""
    rows = f"rows/data/{configuration.folder}"
    (words,) = commands(configuration.shape, rows, POLICY, REWARD_MODEL, "trained")
    yield Snippet("verl", "shell", download(repo_id, words))
