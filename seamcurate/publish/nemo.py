"""NeMo RL's formats: lines of JSON, which NeMo Gym and NeMo RL read, and the commands that train on them.

A prompt is a row of NeMo Gym (0.4): `responses_create_params`, the request to the policy, and beside it what the verifier
reads. `nemo_rl`'s NemoGymDataset, ResponseDataset and BinaryPreferenceDataset (commit 7ea279a of August 2026) load the
three formats. NeMo RL is on no package index: these classes were run from that commit, and NeMo Gym's schema from its wheel.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from seamcurate.publish import layout
from seamcurate.publish.shape import LINES_FILE, Shape
from seamcurate.publish.snippet import Configuration, Snippet

AGENT = "equivalence_llm_judge_simple_agent"
"""The agent of NeMo Gym whose server asks a judge whether an answer says what `expected_answer` does."""

RESERVED = {
    "prompts": frozenset({"responses_create_params", "agent_ref", "expected_answer", "question", "response", "reward"})
    | {"ng_metadata", "template_metadata", "options", "uuid"},
    "sft": frozenset({"messages", "task_name", "tools"}),
    "preferences": frozenset({"task_name"}),
}
"""A verifier of NeMo Gym gets a row's fields, and adds `response` and `reward`."""

MEANINGS = {
    "responses_create_params": "the request to the policy; its `input` is the prompt's turns",
    "question": "the last turn's text",
    "expected_answer": "the reference, or else the golden response",
    "agent_ref": f"the agent that asks and verifies: `{AGENT}`",
    "messages": "the prompt's turns, then the answer to learn",
}


def lay_out(shape: Shape, names: Sequence[str]) -> dict[str, str]:
    """Return the SQL of the fields of a line, then of all others."""
    rest = layout.others(names, ("prompt", "completion", "chosen", "rejected", layout.GROUND_TRUTH))
    if shape.format == "prompts":
        return {
            "responses_create_params": "{'input': prompt}",
            "question": "prompt[-1].content",
            "expected_answer": f"coalesce({layout.GROUND_TRUTH}, '')",
            "agent_ref": f"{{'type': 'responses_api_agents', 'name': '{AGENT}'}}",
            **rest,
        }
    if shape.format == "sft":
        return {"messages": layout.conversation(shape, "completion", always_chats=True), **rest}
    answers = {name: layout.text(name, shape) for name in ("chosen", "rejected")}
    return {"prompt": "prompt", **answers, **rest}


def unshuffled(form: str) -> str:
    """Say how NeMo RL keeps the rows of an export in order."""
    return "NeMo RL shuffles them unless it is given `data.shuffle=false`"


def commands(shape: Shape, folder: str, policy: str, reward: str, result: str) -> list[list[str]]:
    """Write the commands that train by NeMo RL, in its own folder."""
    file = f"{folder}/{LINES_FILE}"
    order = ["data.shuffle=false"] if shape.ordered else []
    model = [f"policy.model_name={policy}", f"checkpointing.checkpoint_dir={result}", *order]
    if shape.format == "prompts":
        words = ["uv", "run", "examples/nemo_gym/run_grpo_nemo_gym.py", "--config"]
        words += ["examples/nemo_gym/grpo_workplace_assistant_nemotron_nano_v2_9b.yaml"]
        servers = "responses_api_models/vllm_model/configs/vllm_model_for_training.yaml"
        judge = "resources_servers/equivalence_llm_judge/configs/equivalence_llm_judge.yaml"
        return [
            [
                *words,
                f"data.train.data_path={file}",
                f"data.validation.data_path={file}",
                f"env.nemo_gym.config_paths=[{servers},{judge}]",
                *model,
            ]
        ]
    kind, scripts = {
        "sft": ("ResponseDataset", ("run_sft.py",)),
        "preferences": ("BinaryPreferenceDataset", ("run_dpo.py", "run_rm.py")),
    }[shape.format]
    data = [
        f"data.{subset}.{key}" for subset in ("train", "validation") for key in (f"dataset_name={kind}", "split=train")
    ]
    paths = [f"++data.{subset}.data_path={file}" for subset in ("train", "validation")]
    return [["uv", "run", f"examples/{script}", *data, *paths, *model] for script in scripts]


def snippets(repo_id: str, configuration: Configuration) -> Iterator[Snippet]:
    """Yield nothing: lines of JSON are not published."""
    yield from ()
