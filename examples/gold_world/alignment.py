"""Tier R's training: RLOO of the whole policy, with noise that the arms of a repetition share.

One rule: a prompt's noise follows from the seed, the update and the prompt's place in it, and nothing else. Arms that keep a prompt
draw its answers by the same noise. TRL's trainer cannot do that: it fills up batches of one size, and draws all answers from one
stream of random numbers. A test holds an update here to the bundled `rloo`'s from the same answers.
"""

from __future__ import annotations

import copy
import math
import statistics
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from examples.gold_world import world
from examples.gold_world.policy import ANSWER_TOKENS
from examples.gold_world.prompts import Flags
from seamcurate.models.template import plain_prompt

if TYPE_CHECKING:
    import torch

PROMPTS, ANSWERS, STEPS = 32, 8, 2
"""Prompts of an update, answers to each, optimizer steps from them."""
RATE, WARMUP, BETA, CLIP, NORM = 3e-4, 5, 0.05, 0.2, 1.0
"""AdamW's learning rate and the updates over which it rises, weight of KL, PPO's clipping, largest norm of a gradient."""
CHECKPOINTS, APART = 3, 10
"""Quality is the mean over so many last checkpoints, so many updates apart."""
_CHUNK = 500
"""Prompts that are measured at once."""
Reward = Callable[[Sequence[str], Sequence[str]], Sequence[float]]


class Outcome(NamedTuple):
    """What a policy is worth: mean true quality."""

    test: float
    """Of answers sampled to unseen prompts."""
    greedy: float
    """Of the likeliest answers to unseen prompts."""
    trained: float
    """Of answers sampled to all RL prompts, dropped ones too."""


class Drawn(NamedTuple):
    """Answers; tensors are (answers, tokens), prompts padded on the left, answers on the right."""

    ids: torch.Tensor
    mask: torch.Tensor
    written: torch.Tensor
    """1 on the answers' tokens, end of sequence included: (answers, longest answer)."""
    texts: list[str]


class Aligner:
    """A policy that is trained, beside the one it began as.

    Args:
        folder: The policy's folder.
        reward: Called as `reward(prompts, answers)`.
    """

    def __init__(self, folder: Path, reward: Reward) -> None:
        import torch
        from transformers import AutoModelForCausalLM, AutoTokenizer

        from seamcurate.train.training import quiet

        with quiet():
            self.tokenizer = AutoTokenizer.from_pretrained(folder)
            self.model: Any = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
        self.reference = copy.deepcopy(self.model).requires_grad_(False)
        self.reward = reward
        self.end, self.pad = self.tokenizer.eos_token_id, self.tokenizer.pad_token_id
        self.vocabulary = int(self.model.config.vocab_size)
        self.optimizer = torch.optim.AdamW(self.model.parameters(), lr=RATE, weight_decay=0.0)

    def train(self, prompts: Sequence[str], drop: Flags, seed: int, scale: float) -> Iterator[tuple[int, float]]:
        """Train on the prompts that are not dropped, each once; yield each update's number and its KL in nats an answer.

        All arms take as many updates, in one order: an arm leaves out of each batch what it drops.

        Args:
            prompts: All prompts.
            drop: Those left out: (prompts,).
            seed: Of the order and of the noise.
            scale: The unit of rewards.
        """
        order = np.random.default_rng([seed, 19]).permutation(len(prompts))
        size = min(PROMPTS, len(prompts))
        for update in range(1, len(prompts) // size + 1):
            batch = order[(update - 1) * size : update * size]
            places = [place for place, i in enumerate(batch) if not drop[i]]
            if not places:
                yield update, 0.0
                continue
            noise = np.stack([self._noise(ANSWERS, seed, update, place) for place in places])
            asked = [prompts[batch[place]] for place in places]
            drawn = self.draw(asked, noise)
            repeated = [prompt for prompt in asked for _ in range(ANSWERS)]
            rewards = [value / scale for value in self.reward(repeated, drawn.texts)]
            yield update, self.learn(drawn, rewards, ANSWERS, [RATE * min(1.0, update / WARMUP)] * STEPS)

    def learn(self, drawn: Drawn, rewards: Sequence[float], answers: int, rates: Sequence[float]) -> float:
        """Take RLOO's steps from answers (Ahmadian 2024, as TRL 1.16 computes it); return their KL in nats an answer.

        Args:
            drawn: As many answers to each prompt, one prompt after the other.
            rewards: One an answer.
            answers: To each prompt.
            rates: The learning rate of each step.
        """
        import torch

        with torch.no_grad():
            old, start = (self._logprobs(model, drawn) for model in (self.model, self.reference))
        kl = old - start
        penalised = (torch.tensor(rewards) - BETA * kl).view(-1, answers)
        others = (penalised.sum(1, keepdim=True) - penalised) / (answers - 1)
        advantage = (penalised - others).view(-1)
        for rate in rates:
            for group in self.optimizer.param_groups:
                group["lr"] = rate
            ratio = (self._logprobs(self.model, drawn) - old).exp()
            loss = -torch.min(ratio * advantage, ratio.clamp(1 - CLIP, 1 + CLIP) * advantage).mean()
            self.optimizer.zero_grad()
            loss.backward()
            torch.nn.utils.clip_grad_norm_(self.model.parameters(), NORM)
            self.optimizer.step()
        return float(kl.mean())

    def measure(self, test: Sequence[world.Record], trained: Sequence[world.Record]) -> Outcome:
        """Return the policy's quality; the noise is the same for every arm and repetition."""
        return Outcome(self._quality(test, 23), self._quality(test, None), self._quality(trained, 29))

    def _quality(self, records: Sequence[world.Record], stream: int | None) -> float:
        values: list[float] = []
        for start in range(0, len(records), _CHUNK):
            some = records[start : start + _CHUNK]
            noise = None
            if stream is not None:
                noise = np.stack([self._noise(1, stream, start, place) for place in range(len(some))])
            drawn = self.draw([record["prompt"] for record in some], noise)
            values += [world.quality(record, text) for record, text in zip(some, drawn.texts, strict=True)]
        return statistics.fmean(values)

    def _noise(self, answers: int, *key: int) -> np.ndarray[Any, Any]:
        """Return Gumbel noise of one prompt: (answers, tokens, vocabulary)."""
        size = (answers, ANSWER_TOKENS, self.vocabulary)
        exponential = np.random.default_rng(key).standard_exponential(size, np.float32)
        return -np.log(np.maximum(exponential, 1e-30))

    def draw(self, prompts: Sequence[str], noise: np.ndarray[Any, Any] | None) -> Drawn:
        """Sample answers by noise, (prompts, answers, tokens, vocabulary), or take the likeliest one without any."""
        import torch

        asked = [self.tokenizer(plain_prompt(prompt))["input_ids"] for prompt in prompts]
        answers = 1 if noise is None else noise.shape[1]
        added = None if noise is None else torch.from_numpy(noise).flatten(0, 1)
        context = max(map(len, asked))
        ids = torch.tensor([[self.pad] * (context - len(one)) + one for one in asked])
        mask = torch.tensor([[0] * (context - len(one)) + [1] * len(one) for one in asked])
        positions = (mask.cumsum(1) - 1).clamp(min=0)
        with torch.no_grad():
            # A prompt is read once for its answers.
            read = self.model(
                input_ids=ids, attention_mask=mask, position_ids=positions, use_cache=True, logits_to_keep=1
            )
            cache, logits = read.past_key_values, read.logits[:, -1].repeat_interleave(answers, 0)
            cache.batch_repeat_interleave(answers)
            ids, mask = ids.repeat_interleave(answers, 0), mask.repeat_interleave(answers, 0)
            position = positions[:, -1:].repeat_interleave(answers, 0)
            alive = torch.ones(len(ids), dtype=torch.bool)
            chosen, written = [], []
            for t in range(ANSWER_TOKENS):
                scores = logits.log_softmax(-1)
                token = (scores if added is None else scores + added[:, t]).argmax(-1)
                token = torch.where(alive, token, torch.full_like(token, self.pad))
                chosen.append(token)
                written.append(alive.float())
                mask = torch.cat([mask, alive.long()[:, None]], 1)
                alive = alive & (token != self.end)
                position = position + 1
                if t == ANSWER_TOKENS - 1 or not alive.any():
                    break
                read = self.model(
                    input_ids=token[:, None], attention_mask=mask, position_ids=position, past_key_values=cache
                )
                cache, logits = read.past_key_values, read.logits[:, -1]
        tokens = torch.stack(chosen, 1)
        texts = self.tokenizer.batch_decode(tokens, skip_special_tokens=True)
        return Drawn(torch.cat([ids, tokens], 1), mask, torch.stack(written, 1), texts)

    @staticmethod
    def _logprobs(model: Any, drawn: Drawn) -> torch.Tensor:
        """Return the log-probability of each answer: (answers,)."""
        positions = (drawn.mask.cumsum(1) - 1).clamp(min=0)
        count = drawn.written.shape[1]
        read = model(
            input_ids=drawn.ids,
            attention_mask=drawn.mask,
            position_ids=positions,
            use_cache=False,
            logits_to_keep=count + 1,
        )
        scores = read.logits[:, :-1].log_softmax(-1).gather(2, drawn.ids[:, -count:, None])[:, :, 0]
        total: torch.Tensor = (scores * drawn.written).sum(1)
        return total


def checkpoints(updates: int) -> list[int]:
    """Return the numbers of the updates after which quality is measured, the last ones."""
    return [update for update in (updates - APART * i for i in range(CHECKPOINTS - 1, -1, -1)) if update > 0]


def spread(values: np.ndarray[Any, Any]) -> float:
    """Return the standard deviation within prompts of rewards, (prompts, answers): how prompts differ teaches nothing."""
    return math.sqrt(float(values.var(1).mean()))
