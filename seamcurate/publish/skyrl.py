"""SkyRL's format: Parquet files of prompts, each with the environment that rewards its answers.

`skyrl.train.dataset.PromptDataset` (SkyRL 0.3 and 0.4) takes `prompt`, a chat, and `env_class`, and gives every other column
to the environment. Those of skyrl-gym read `reward_spec.ground_truth`.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

from seamcurate.publish import layout
from seamcurate.publish.shape import Shape, shard_names
from seamcurate.publish.snippet import POLICY, REWARD_MODEL, Configuration, Snippet, download
from seamcurate.trainers import REWARD_FILE

if TYPE_CHECKING:
    from seamcurate.publish.split_view import SplitView
    from seamcurate.rewards import RerReward

SCORES = "extra_info"
"""The struct column that holds the scores and the other plain columns."""

ENVIRONMENT = "seamcurate"
"""The environment of rows whose source names none; a reward file registers it."""

RESERVED = {"prompts": frozenset({"env_class", "reward_spec", SCORES, "data_source", "max_turns"})}

MEANINGS = {
    "data_source": "the split",
    "env_class": "the source's own, or `seamcurate`: the environment that rewards an answer",
    "reward_spec.method": "always `rule`",
    "reward_spec.ground_truth": "the reference, or else the golden response",
    f"{SCORES}.prompt": "the prompt's text, for the reward",
}

REWARD_USE = f"`python {REWARD_FILE}` with SkyRL's options: it registers the environment `{ENVIRONMENT}` and trains"


def columns(view: SplitView, reward: RerReward | None) -> dict[str, str]:
    """Return the SQL of each column before the layout; a source's text column `env_class` names the environments."""
    environment, named = f"'{ENVIRONMENT}'", view.source_has_text("env_class")
    selected = layout.columns(view, reward, ("env_class",) if named else ())
    if named:
        environment = f"coalesce(b.env_class, {environment})"
    elif not reward:
        view.notes.append(
            f"env_class is {ENVIRONMENT!r}, which SkyRL does not know: register an environment of this name, or give the source a "
            "column env_class such as gsm8k"
        )
    return selected | {"env_class": environment, "data_source": view.sql_text(f"seamcurate/{view.split}")}


def lay_out(shape: Shape, names: Sequence[str]) -> dict[str, str]:
    """Return the SQL of SkyRL's columns; the scores are fields of `extra_info`."""
    fields = layout.others(names, ("prompt", "env_class", "data_source", layout.GROUND_TRUTH, layout.REWARD_PROMPT))
    if layout.REWARD_PROMPT in names:
        fields["prompt"] = layout.REWARD_PROMPT
    return {
        "data_source": "data_source",
        "prompt": "prompt",
        "env_class": "env_class",
        "reward_spec": f"{{'method': 'rule', 'ground_truth': coalesce({layout.GROUND_TRUTH}, '')}}",
        SCORES: layout.struct(fields),
    }


def reward_function(end: str) -> str:
    """Write the environment of a reward file, and the start of SkyRL with it."""
    return f"""

def environment():
    from skyrl_gym.envs.base_text_env import BaseTextEnv, BaseTextEnvStepOutput

    class Rer(BaseTextEnv):
        def __init__(self, env_config=None, extras=None):
            super().__init__()
            self.extras = extras

        def step(self, action):
            reward = rewards.for_verl(REWARD, action, "", self.extras["{SCORES}"])["score"]
            return BaseTextEnvStepOutput(observations=[], reward=reward, done=True, metadata={{}})

    return Rer


def train(config):
    from skyrl.train.entrypoints.main_base import BasePPOExp
    from skyrl_gym.envs import register

    register(id="{ENVIRONMENT}", entry_point=environment())
    BasePPOExp(config).run()


if __name__ == "__main__":
    import sys

    import ray
    from skyrl.train.config import SkyRLTrainConfig
    from skyrl.train.utils import initialize_ray, validate_cfg

    config = SkyRLTrainConfig.from_cli_overrides(sys.argv[1:])
    validate_cfg(config)
    initialize_ray(config)
    ray.get(ray.remote(num_cpus=1)(train).remote(config))
"""


def unshuffled(form: str) -> str:
    """Say that SkyRL keeps no order."""
    return "SkyRL shuffles them, and has no option against that"


def commands(shape: Shape, folder: str, policy: str, reward: str, result: str) -> list[list[str]]:
    """Write the command that trains by SkyRL."""
    start = [f"{folder}/{REWARD_FILE}"] if shape.reward else ["-m", "skyrl.train.entrypoints.main_base"]
    listed = json.dumps(shard_names(shape.shards, folder))
    words = ["python", *start, f"data.train_data={listed}", f"data.val_data={listed}"]
    words += [f"trainer.policy.model.path={policy}", f"trainer.ckpt_path={result}"]
    words += [f"generator.chat_template_kwargs.{key}={json.dumps(value)}" for key, value in shape.arguments.items()]
    return [words]


def snippets(repo_id: str, configuration: Configuration) -> Iterator[Snippet]:
    """Yield the code that trains by SkyRL on a data set in its own format."""
    (words,) = commands(configuration.shape, f"rows/data/{configuration.folder}", POLICY, REWARD_MODEL, "trained")
    yield Snippet("SkyRL", "shell", download(repo_id, words))
