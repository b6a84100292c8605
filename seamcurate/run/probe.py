"""How long a step will take on this machine, by a probe: its model's own work on a few rows of the data, timed.

One rule: the rows are drawn over the lengths that there are, in groups as the step makes them, one prompt with all its
answers. What a probe cannot time, such as an endpoint that asks for money, is not guessed.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Sequence
from itertools import cycle, islice
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from seamcurate.errors import ModelError
from seamcurate.models import FakeModel, Prompt
from seamcurate.models.backend import Backend
from seamcurate.models.local import LocalModel
from seamcurate.models.served import Served
from seamcurate.models.template import prompt_text
from seamcurate.models.vectors import embedded
from seamcurate.progress import note
from seamcurate.run.times import Duration
from seamcurate.step import Averages, Step

_ROWS = 128
"""Rows of a probe, at most: a quick model needs as many to fill its batches."""
_SECONDS = 1.5
"""What one timed call should take: from there on no larger one is made."""


class Texts(NamedTuple):
    """Rows of the data to time models on."""

    prompts: list[Prompt]
    responses: list[str]
    candidates: list[str]
    """Answers of other rows, such as those of a corpus."""


class Rate(NamedTuple):
    """How fast a model works."""

    load: float
    """Seconds to load it."""
    seconds: float
    """Seconds a character, prompts counted with each answer as `Work` counts them."""


def _embed(model: Any, prompts: Sequence[Prompt], answers: Sequence[Sequence[str]]) -> object:
    return embedded(model, [*prompts, *(answer for row in answers for answer in row)])


def _reward(model: Any, prompts: Sequence[Prompt], answers: Sequence[Sequence[str]]) -> object:
    return model.rewards(prompts, answers)


def _logprobs(model: Any, prompts: Sequence[Prompt], answers: Sequence[Sequence[str]]) -> object:
    return model.logprobs(prompts, answers)


_ROLES: dict[str, Callable[[Any, Sequence[Prompt], Sequence[Sequence[str]]], Any]] = {
    "encoder": _embed,
    "reward": _reward,
    "truth": _reward,
    "policy": _logprobs,
    "base": _logprobs,
}
"""What a step's model is asked for, by the field that names it."""


class Probe:
    """Time models on rows; each model once for each role and number of answers a row."""

    def __init__(self, texts: Texts) -> None:
        self.texts = _spread(texts)
        self._rates: dict[tuple[str, str, int], Rate] = {}
        self._misjudged: float | None = None
        """The share of other rows' answers that the last reward model prefers to the golden ones."""

    def duration(self, step: Step, rows: int, averages: Averages, first: bool) -> Duration | None:
        """Estimate what a step's models take; None where it has none, or one that cannot be timed here.

        Args:
            step: The step.
            rows: Rows to do.
            averages: Lengths of the rows.
            first: Whether the work that is done once is still to be done.
        """
        if not rows:
            return None
        roles = {value.title: name for name, value in step if isinstance(value, Backend) and name in _ROLES}
        once = each = 0.0
        loaded: set[str] = set()
        works = [(work, False) for work in step.works(averages)]
        works += [(work, True) for work in step.first_work(averages, rows)] if first else []
        for work, is_first in works:
            model = work.model
            # A server of one's own takes time alone; where somebody asks for money, a plan asks nothing.
            if not isinstance(model, LocalModel | FakeModel | Served) or model.title not in roles or work.answer:
                return None
            role = roles[model.title]
            # Likelihoods are asked for what the reward model misjudges alone, in smaller groups.
            only_misjudged = getattr(step, "likelihoods", "") == "misjudged" and not is_first
            share = 1.0 if self._misjudged is None or not only_misjudged else self._misjudged
            several = 2 if role == "encoder" else max(1, round(averages.candidates * share))
            try:
                rate = self._rate(model, role, 1 if work.sequences <= 1 else several)
            except ModelError as error:
                note(f"warning: {step.name}: how long it takes is not known: {error}")
                return None
            seconds = rate.seconds * work.characters * share
            once, each = (once + seconds, each) if is_first else (once, each + seconds)
            if model.title not in loaded:
                once += rate.load
                loaded.add(model.title)
        return Duration(once, each) if loaded else None

    def _rate(self, model: Any, role: str, answers: int) -> Rate:
        key = (role, model.title, answers)
        if key not in self._rates:
            self._rates[key] = self._timed(model, role, answers)
        return self._rates[key]

    def _timed(self, model: Any, role: str, answers: int) -> Rate:
        prompts, responses, candidates = self.texts
        candidates = candidates or responses
        groups = [
            (
                prompts[i],
                [responses[i]] if answers == 1 else list(islice(cycle(candidates[i:] + candidates[:i]), answers)),
            )
            for i in range(len(prompts))
        ]
        if role == "encoder":
            groups = [(prompt, given[: answers - 1]) for prompt, given in groups]
        _check_room(model)
        start = time.perf_counter()
        loaded = model.load()
        load = time.perf_counter() - start
        ask = _ROLES[role]
        # Not timed: what a library does once, at its first call.
        ask(loaded, *_columns(groups[:1]))
        begin, count = 1, 2
        while True:
            # Each call has rows of its own: a server may still know the prompts of the one before.
            part = slice(begin, begin + count) if begin < len(groups) else slice(0, None)
            taken = groups[part]
            start = time.perf_counter()
            scores = ask(loaded, *_columns(taken))
            seconds = time.perf_counter() - start
            begin, count = begin + count, 2 * count
            # A call of few rows fills no batch: the largest says most.
            if seconds >= _SECONDS / 2 or begin + count > len(groups):
                if role == "reward" and answers > 1:
                    golden = loaded.rewards(prompts[part], [[response] for response in responses[part]])
                    self._misjudged = _misjudged(scores, golden)
                return Rate(load, seconds / max(1, sum(_characters(role, *group) for group in taken)))


def _check_room(model: Any) -> None:
    """Refuse a folder of weights that this machine's free memory would hold but barely: a plan must not end its process.

    Raises:
        ModelError: The weights take more than half of it.
    """
    if isinstance(model, Served):
        return
    size = sum(file.stat().st_size for file in Path(model.path).glob("*.safetensors"))
    if "SC_AVPHYS_PAGES" in os.sysconf_names and size > os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") // 2:
        raise ModelError(f"{model.title} has {size / 1e9:,.1f} GB of weights, too much for this machine to try")


def _misjudged(rewards: Sequence[Sequence[float | None]], golden: Sequence[Sequence[float | None]]) -> float:
    """Return the share of answers whose reward is above that of their prompt's golden response."""
    pairs = [
        reward > best
        for row, (best,) in zip(rewards, golden, strict=True)
        for reward in row
        if reward is not None and best is not None
    ]
    return float(np.mean(pairs)) if pairs else 0.0


def _columns(groups: Sequence[tuple[Prompt, list[str]]]) -> tuple[list[Prompt], list[list[str]]]:
    return [prompt for prompt, _ in groups], [answers for _, answers in groups]


def _characters(role: str, prompt: Prompt, answers: Sequence[str]) -> int:
    size, given = len(prompt_text(prompt)), sum(map(len, answers))
    return size + given if role == "encoder" else size * len(answers) + given


def _spread(texts: Texts) -> Texts:
    """Return rows of all lengths: of those sorted by length, evenly spaced ones, in an order whose every beginning is spread."""
    pairs = [
        (prompt, response)
        for prompt, response in zip(texts.prompts, texts.responses, strict=True)
        if prompt_text(prompt)
    ]
    pairs.sort(key=lambda pair: len(prompt_text(pair[0])) + len(pair[1]))
    size = min(_ROWS, len(pairs))
    # The middle of each of `size` equal parts.
    chosen = [pairs[(2 * i + 1) * len(pairs) // (2 * size)] for i in range(size)]
    # By the golden section, which spreads every beginning of the list over all lengths.
    turned = [chosen[i] for i in sorted(range(size), key=lambda i: (0.5 + i * 0.618034) % 1)]
    step = max(1, len(texts.candidates) // 512)
    return Texts([p for p, _ in turned], [r for _, r in turned], [t for t in texts.candidates[::step] if t])
