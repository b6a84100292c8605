"""Trainers on TRL, each one function of a model, data and a folder to write; heavy libraries load when one is called."""

from __future__ import annotations

from seamcurate.train.answering import answer
from seamcurate.train.grouped import grpo, rloo
from seamcurate.train.options import Answering, GroupTraining, PPOTraining, RewardTraining, SFTTraining
from seamcurate.train.ppo import ppo
from seamcurate.train.reward import reward
from seamcurate.train.sft import sft

__all__ = [
    "Answering",
    "GroupTraining",
    "PPOTraining",
    "RewardTraining",
    "SFTTraining",
    "answer",
    "grpo",
    "ppo",
    "reward",
    "rloo",
    "sft",
]
