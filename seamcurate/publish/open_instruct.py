"""open-instruct's formats: one Parquet file for RLVR, fine-tuning or preferences, and the commands that train on it.

The columns are those that `dataset_transformation.py` (commit e6c3044 of August 2026) names: `rlvr_tokenize_v3` takes
`messages`, `ground_truth` and `dataset`; the tokenizers of Tülu take `messages`, and `chosen` and `rejected` as whole
conversations. `dataset` names the verifier that rewards an answer, and an unknown name gives no reward at all. open-instruct
is on no package index: these functions were run from that commit.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

from seamcurate.publish import layout
from seamcurate.publish.shape import Shape, shard_names
from seamcurate.publish.snippet import POLICY, REWARD_MODEL, Configuration, Snippet, download

if TYPE_CHECKING:
    from seamcurate.publish.split_view import SplitView
    from seamcurate.rewards import RerReward

VERIFIER = "string_f1"
"""The verifier of rows whose source names none: the F1 of the words of answer and ground truth."""

_MADE = frozenset({"input_ids", "attention_mask", "labels", "input_ids_prompt", "dataset_source", "tools", "index"})
RESERVED = {
    "prompts": _MADE | {"messages", "ground_truth", "dataset", "prompt", "env_config"},
    "sft": _MADE | {"messages"},
    "preferences": _MADE | {"chosen", "rejected", "attention_mask_prompt"},
}

MEANINGS = {
    "messages": "the prompt's turns; for fine-tuning, then the answer to learn",
    "ground_truth": "the reference, or else the golden response",
    "dataset": f"the verifier that rewards an answer: the source's own, or `{VERIFIER}`",
    "chosen": "the prompt's turns, then the better answer",
    "rejected": "the prompt's turns, then the worse answer",
}


def columns(view: SplitView, reward: RerReward | None) -> dict[str, str]:
    """Return the SQL of each column before the layout; a source's text column `dataset` names the verifiers."""
    named = view.format == "prompts" and view.source_has_text("dataset")
    selected = layout.columns(view, reward, ("dataset",) if named else ())
    if view.format != "prompts":
        return selected
    if named:
        return selected | {"dataset": f"coalesce(b.dataset, '{VERIFIER}')"}
    view.notes.append(
        f"dataset is {VERIFIER!r}, open-instruct's verifier by the F1 of words; `--remap_verifier {VERIFIER}=NAME` takes another"
    )
    return selected | {"dataset": f"'{VERIFIER}'"}


def lay_out(shape: Shape, names: Sequence[str]) -> dict[str, str]:
    """Return the SQL of open-instruct's columns, then of all others."""
    rest = layout.others(names, ("prompt", "completion", "chosen", "rejected", layout.GROUND_TRUTH, "dataset"))
    if shape.format == "prompts":
        truth = f"coalesce({layout.GROUND_TRUTH}, '')"
        return {"messages": "prompt", "ground_truth": truth, "dataset": "dataset", **rest}
    answers = {"sft": {"messages": "completion"}, "preferences": {"chosen": "chosen", "rejected": "rejected"}}
    conversations = {
        name: layout.conversation(shape, answer, always_chats=True) for name, answer in answers[shape.format].items()
    }
    return {**conversations, **rest}


def unshuffled(form: str) -> str:
    """Say that open-instruct keeps no order."""
    return "open-instruct shuffles them, and has no option against that"


def commands(shape: Shape, folder: str, policy: str, reward: str, result: str) -> list[list[str]]:
    """Write the commands that train by open-instruct, in its own folder."""
    (file,) = shard_names(1, folder)
    model = ["--model_name_or_path", policy, "--output_dir", result]
    if shape.format == "prompts":
        data = ["--dataset_mixer_list", file, "1.0", "--dataset_mixer_list_splits", "train"]
        return [["python", "open_instruct/grpo_fast.py", *model, *data]]
    if shape.format == "sft":
        data = ["--dataset_mixer_list", file, "1.0", "--dataset_mixer_list_splits", "train"]
        return [["accelerate", "launch", "open_instruct/finetune.py", *model, *data]]
    data = ["--mixer_list", file, "1.0", "--mixer_list_splits", "train"]
    return [["accelerate", "launch", "open_instruct/dpo_tune_cache.py", *model, *data]]


def snippets(repo_id: str, configuration: Configuration) -> Iterator[Snippet]:
    """Yield the code that trains by open-instruct on a data set in its own format."""
    (words,) = commands(configuration.shape, f"rows/data/{configuration.folder}", POLICY, REWARD_MODEL, "trained")
    yield Snippet("open-instruct", "shell", download(repo_id, words))
