"""The gold world's policy: trained on golden responses, then frozen; what it answers, and what it makes of an answer.

One rule: features of an answer follow from the policy, the prompt and the answer alone, so that reward models and aligned
policies that are small networks over them cost seconds.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq

from examples.gold_world import world
from seamcurate import CausalLM
from seamcurate.models import Sampling
from seamcurate.models.template import plain_prompt
from seamcurate.train import SFTTraining, sft

ANSWER_TOKENS = 12
Floats = npt.NDArray[np.float32]
_BATCH = 1024
"""Answers that are read at once."""


class Features(NamedTuple):
    """What the frozen policy makes of answers."""

    hidden: Floats
    """Last layer at the answer's last token and its mean over the answer, mean log-probability, words: (answers, 2·width + 2)."""
    logprob: Floats
    """Log-probability in nats, summed over tokens, end of sequence included: (answers,)."""
    tokens: npt.NDArray[np.int32]
    """(answers,)."""


def train(start: Path, corpus: Path, out: Path, steps: int, seed: int = 0) -> None:
    """Train a policy by so many steps of 64 golden responses."""
    config = SFTTraining(
        learning_rate=3e-3,
        warmup_steps=min(50, steps // 4),
        max_steps=steps,
        per_device_train_batch_size=64,
        max_length=64,
        eval_rows=0,
        lora=False,
        seed=seed,
    )
    sft(start, corpus, out, config)


def samples(policy: Path, prompts: Sequence[str], n: int, seed: int = 0) -> list[list[str]]:
    """Return n answers to each prompt, drawn at temperature 1."""
    sampler = CausalLM(path=str(policy)).load_sampler()
    drawn: list[list[str]] = [[""] * n for _ in prompts]
    requests = [(prompt, range(n)) for prompt in prompts]
    for position, draw, sample in sampler.samples(requests, Sampling(n, max_tokens=ANSWER_TOKENS, seed=seed)):
        drawn[position][draw] = sample if isinstance(sample, str) else sample.text
    return drawn


def greedy(policy: Path, prompts: Sequence[str]) -> list[str]:
    """Return the likeliest answer to each prompt."""
    sampler = CausalLM(path=str(policy)).load_sampler()
    sampling = Sampling(1, temperature=0.0, max_tokens=ANSWER_TOKENS)
    answers = [""] * len(prompts)
    for position, _, sample in sampler.samples([(prompt, [0]) for prompt in prompts], sampling):
        answers[position] = sample if isinstance(sample, str) else sample.text
    return answers


class Reader:
    """Reads answers by a frozen policy."""

    def __init__(self, policy: Path) -> None:
        import torch
        from transformers import AutoModelForCausalLM, AutoTokenizer

        from seamcurate.train.training import quiet

        with quiet():
            self.tokenizer = AutoTokenizer.from_pretrained(policy)
            self.model = AutoModelForCausalLM.from_pretrained(policy, dtype=torch.float32).eval()
        self.width = 2 * self.model.config.hidden_size + 2

    def read(self, items: Iterable[tuple[str, str]]) -> Features:
        """Return the features of answers, each with its prompt."""
        import torch

        prompts: dict[str, list[int]] = {}
        words: dict[str, int] = self.tokenizer.get_vocab()
        end, unknown = self.tokenizer.eos_token_id, self.tokenizer.unk_token_id
        ids: list[list[int]] = []
        starts: list[int] = []
        for prompt, answer in items:
            if prompt not in prompts:
                prompts[prompt] = self.tokenizer(plain_prompt(prompt))["input_ids"]
            ids.append([*prompts[prompt], *(words.get(word, unknown) for word in answer.split()), end])
            starts.append(len(prompts[prompt]))
        count, size = len(ids), self.model.config.hidden_size
        hidden = np.zeros((count, self.width), np.float32)
        logprob, lengths = np.zeros(count, np.float32), np.array([len(one) for one in ids])
        tokens = (lengths - starts).astype(np.int32)
        # Answers of like lengths share a batch.
        order = np.argsort(lengths, kind="stable")
        for first in range(0, count, _BATCH):
            chosen = order[first : first + _BATCH]
            longest = int(lengths[chosen].max())
            padded = torch.tensor([ids[i] + [0] * (longest - len(ids[i])) for i in chosen])
            place = torch.arange(longest)[None]
            end_of = torch.tensor(lengths[chosen])[:, None]
            start_of = torch.tensor([starts[i] for i in chosen])[:, None]
            answer = ((place >= start_of) & (place < end_of)).float()
            with torch.inference_mode():
                read = self.model(
                    input_ids=padded, attention_mask=(place < end_of).long(), use_cache=False, output_hidden_states=True
                )
                last = read.hidden_states[-1]
                scores = read.logits[:, :-1].log_softmax(-1).gather(2, padded[:, 1:, None])[:, :, 0]
                logprob[chosen] = (scores * answer[:, 1:]).sum(1).numpy()
                hidden[chosen, :size] = last[torch.arange(len(chosen)), end_of[:, 0] - 1].numpy()
                hidden[chosen, size : 2 * size] = (
                    (last * answer[:, :, None]).sum(1) / answer.sum(1, keepdim=True)
                ).numpy()
        hidden[:, -2] = logprob / tokens
        # The end of the sequence is no word.
        hidden[:, -1] = tokens - 1
        return Features(hidden, logprob, tokens)


def make(out: Path, records: Sequence[world.Record], steps: int, hidden: int) -> Path:
    """Train a policy from random weights on records, unless it is there; return its folder."""
    folder, start = out / "policy", out / "start"
    if not (folder / "training.json").exists():
        if not (start / "tokenizer_config.json").exists():
            world.untrained(start, hidden, 2)
        train(start, write(records, out / "sft.parquet"), folder, steps)
    return folder


def write(rows: Sequence[object], file: Path) -> Path:
    """Write rows as a Parquet file, whole or not at all; what is there stays."""
    if not file.exists():
        file.parent.mkdir(parents=True, exist_ok=True)
        beside = file.with_suffix(f".{os.getpid()}.tmp")
        pq.write_table(pa.Table.from_pylist(list(rows)), beside)
        beside.replace(file)
    return file
