"""seamcurate: which prompts will a reward model get wrong, and what to do about it.

Everything a user types in Python is here; each name is imported when it is first used, so that importing the
package, and `seamcurate --help`, stay instant. No function here shares its name with a module: importing the
module would hide it.
"""

from __future__ import annotations

import os
import sys
from importlib import import_module
from typing import TYPE_CHECKING

if sys.platform == "linux":
    # Read when Arrow first allocates. Its own choice, mimalloc, keeps a third more memory, ever more with the rows.
    os.environ.setdefault("ARROW_DEFAULT_MEMORY_POOL", "jemalloc")
# OpenMP reads this when torch is first imported. Without it, a thread that waits for the others spins, and keeps them
# from the core when another process is busy. GOMP_SPINCOUNT and KMP_BLOCKTIME, where the user sets them, still win.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
# The same for OpenBLAS, NumPy's: its threads wait 2^4 cycles before they sleep, in place of 2^26.
os.environ.setdefault("OPENBLAS_THREAD_TIMEOUT", "4")
if "SEAMCURATE_THREADS" in os.environ:
    import_module("seamcurate.threads").follow_environment()

if TYPE_CHECKING:
    from seamcurate.contrast import Attack, Embed, Generate, Probes, Retrieve, Rollouts
    from seamcurate.contrast.contamination import Nearest, nearest
    from seamcurate.contrast.duplicates import Duplicates, duplicates
    from seamcurate.data.source import Source
    from seamcurate.errors import SeamcurateError
    from seamcurate.explore.notebook import Store
    from seamcurate.models import (
        CausalLM,
        CompletionServer,
        Criterion,
        EmbeddingServer,
        FakeModel,
        JudgeModel,
        OpenAIServer,
        RewardEnsemble,
        RewardFunction,
        RewardServer,
        RubricModel,
        SentenceEncoder,
        SequenceClassifier,
    )
    from seamcurate.publish.diff import diff
    from seamcurate.publish.export import to_openrlhf, to_trl, to_verl
    from seamcurate.publish.hub import push
    from seamcurate.publish.reproduce import reproduce
    from seamcurate.rewards import ModelReward, RerReward
    from seamcurate.run.cluster import run_ray
    from seamcurate.run.draft import init
    from seamcurate.run.integrity import check
    from seamcurate.run.local import run_local
    from seamcurate.run.plan import plan
    from seamcurate.run.recipe import Models, Recipe
    from seamcurate.score.asked import AskQueryType, Judge, RelevantSentences
    from seamcurate.score.baseline import Perplexity, Random
    from seamcurate.score.difficulty import Difficulty, Hacked, Truth, difficulty
    from seamcurate.score.discrepancy import discrepancy
    from seamcurate.score.likelihood import PolicyLogprobs
    from seamcurate.score.projection import Project
    from seamcurate.score.rer import (
        LengthIncentive,
        OtherRelevance,
        QueryRelevance,
        QueryType,
        ReferenceRelevance,
        RepetitionPenalty,
        Rer,
        rer,
    )
    from seamcurate.score.reward import Reward, Rewards
    from seamcurate.score.reward_baselines import LengthCalibrated, RewardReliability, RewardSpread, Rip
    from seamcurate.score.seam import Seam, seam
    from seamcurate.select.order import Order
    from seamcurate.select.shaping import AtMost, Balance, Distribution
    from seamcurate.select.split import Augment, Split
    from seamcurate.select.views import query
    from seamcurate.step import Step, column

_WHERE = {
    "score.asked": ("AskQueryType", "Judge", "RelevantSentences"),
    "score.baseline": ("Perplexity", "Random"),
    "run.cluster": ("run_ray",),
    "publish.diff": ("diff",),
    "contrast": ("Attack", "Embed", "Generate", "Probes", "Retrieve", "Rollouts"),
    "contrast.contamination": ("Nearest", "nearest"),
    "contrast.duplicates": ("Duplicates", "duplicates"),
    "errors": ("SeamcurateError",),
    "explore.notebook": ("Store",),
    "publish.export": ("to_openrlhf", "to_trl", "to_verl"),
    "publish.hub": ("push",),
    "run.draft": ("init",),
    "run.integrity": ("check",),
    "models": (
        "CausalLM",
        "CompletionServer",
        "Criterion",
        "Criterion",
        "EmbeddingServer",
        "FakeModel",
        "JudgeModel",
        "OpenAIServer",
        "RewardEnsemble",
        "RewardFunction",
        "RewardServer",
        "RubricModel",
        "SentenceEncoder",
        "SequenceClassifier",
    ),
    "run.plan": ("plan",),
    "run.recipe": ("Models", "Recipe"),
    "score.rer": (
        "LengthIncentive",
        "OtherRelevance",
        "QueryRelevance",
        "QueryType",
        "ReferenceRelevance",
        "RepetitionPenalty",
        "Rer",
        "rer",
    ),
    "publish.reproduce": ("reproduce",),
    "rewards": ("ModelReward", "RerReward"),
    "score.difficulty": ("Difficulty", "Hacked", "Truth", "difficulty"),
    "score.projection": ("Project",),
    "score.reward_baselines": ("LengthCalibrated", "RewardReliability", "RewardSpread", "Rip"),
    "run.local": ("run_local",),
    "score.discrepancy": ("discrepancy",),
    "score.likelihood": ("PolicyLogprobs",),
    "score.reward": ("Reward", "Rewards"),
    "score.seam": ("Seam", "seam"),
    "data.source": ("Source",),
    "select.order": ("Order",),
    "select.shaping": ("AtMost", "Balance", "Distribution"),
    "select.split": ("Augment", "Split"),
    "step": ("Step", "column"),
    "select.views": ("query",),
}
_MODULES = {name: module for module, names in _WHERE.items() for name in names}

__version__ = "0.1.0"
__all__ = [
    "AskQueryType",
    "AtMost",
    "Attack",
    "Augment",
    "Balance",
    "CausalLM",
    "CompletionServer",
    "Criterion",
    "Difficulty",
    "Distribution",
    "Duplicates",
    "Embed",
    "EmbeddingServer",
    "FakeModel",
    "Generate",
    "Hacked",
    "Judge",
    "JudgeModel",
    "LengthCalibrated",
    "LengthIncentive",
    "ModelReward",
    "Models",
    "Nearest",
    "OpenAIServer",
    "Order",
    "OtherRelevance",
    "Perplexity",
    "PolicyLogprobs",
    "Probes",
    "Project",
    "QueryRelevance",
    "QueryType",
    "Random",
    "Recipe",
    "ReferenceRelevance",
    "RelevantSentences",
    "RepetitionPenalty",
    "Rer",
    "RerReward",
    "Retrieve",
    "Reward",
    "RewardEnsemble",
    "RewardFunction",
    "RewardReliability",
    "RewardServer",
    "RewardSpread",
    "Rewards",
    "Rip",
    "Rollouts",
    "RubricModel",
    "Seam",
    "SeamcurateError",
    "SentenceEncoder",
    "SequenceClassifier",
    "Source",
    "Split",
    "Step",
    "Store",
    "Truth",
    "__version__",
    "check",
    "column",
    "diff",
    "difficulty",
    "discrepancy",
    "duplicates",
    "init",
    "nearest",
    "plan",
    "push",
    "query",
    "reproduce",
    "rer",
    "run_local",
    "run_ray",
    "seam",
    "to_openrlhf",
    "to_trl",
    "to_verl",
]


def __getattr__(name: str) -> object:
    if name not in _MODULES:
        raise AttributeError(f"module 'seamcurate' has no attribute {name!r}")
    return getattr(import_module(f"seamcurate.{_MODULES[name]}"), name)


def __dir__() -> list[str]:
    """List the public names, imported yet or not."""
    return sorted(__all__)
