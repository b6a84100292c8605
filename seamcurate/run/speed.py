"""How long sampling will take, by a probe: a few short answers of the policy, timed. And how long a step took."""

from __future__ import annotations

import time
from collections.abc import Sequence

from seamcurate.contrast import Rollouts
from seamcurate.errors import ModelError
from seamcurate.models import Prompt, Sample, Sampling, roles
from seamcurate.progress import bar
from seamcurate.run import probe
from seamcurate.text import counted

_PROMPTS = 2
"""Prompts of the probe."""
_TOKENS = 64
"""The most tokens of its answers."""
_FORETOLD_AFTER = 10.0
"""Seconds of a step by which its whole time is foretold."""
_DRAWS = 16
"""The most answers to each of its prompts."""


def sampling_time(step: Rollouts, prompts: Sequence[Prompt], rows: int, written: int) -> str:
    """Estimate the tokens and hours of a step that samples the policy, in one line.

    Args:
        step: The step.
        prompts: Prompts of the data set; the first two are answered.
        rows: Rows that have no samples yet.
        written: Tokens of all samples if they are as long as the golden responses; 0 where there are none.

    A policy that cannot be loaded here, or gives no answer, gives a line that says so: another machine may run the step.
    """
    try:
        return _timed(step, prompts, rows, written)
    except ModelError as error:
        return f"warning: {step.name}: how long it takes is not known: {error}"


def _timed(step: Rollouts, prompts: Sequence[Prompt], rows: int, written: int) -> str:
    sampler = roles.load_sampler(step.policy, step.name)
    draws = min(step.n, _DRAWS)
    limit = min(step.max_tokens, _TOKENS)
    sampling = Sampling(draws, step.temperature, step.top_p, limit, step.seed)
    requests = [(prompt, range(draws)) for prompt in prompts[:_PROMPTS]]
    samples: list[Sample] = []
    reason = "no prompt"
    start = time.perf_counter()
    with bar("sampling a probe", len(requests) * draws, "samples") as advance:
        for _, _, sample in sampler.samples(requests, sampling):
            advance(1)
            if isinstance(sample, str):
                reason = sample
            else:
                samples.append(sample)
    seconds = time.perf_counter() - start
    if not samples:
        raise ModelError(f"the policy answers none of the first prompts: {reason}")
    drawn = sum(sample.tokens for sample in samples)
    ended = sum(sample.finish == "stop" for sample in samples)
    # Samples that were cut say how long they are at least.
    if 2 * ended >= len(samples) or limit == step.max_tokens:
        tokens, as_long = drawn / len(samples) * step.n * rows, "if samples are as long as these"
    elif written:
        tokens, as_long = (
            min(written, rows * step.n * step.max_tokens),
            "if samples are as long as the golden responses",
        )
    else:
        tokens, as_long = rows * step.n * step.max_tokens, "at most"
    hours = tokens * seconds / drawn / 3600
    duration = f"about {hours:,.1f} hours" if hours >= 0.95 else f"about {60 * hours:,.0f} minutes"
    if 60 * hours < 1:
        duration = "less than a minute"
    return (
        f"{step.name}: {duration} here for {tokens:,.0f} tokens {as_long}; a probe of "
        f"{counted(len(samples), 'sample')} gave {drawn / seconds:,.0f} tokens a second"
    )


class Watch:
    """Time a step, and foretell its time once it has run for ten seconds."""

    def __init__(self, name: str, rows: int) -> None:
        self.name, self.rows, self._done, self._first, self._foretold = name, rows, 0, 0, 0.0
        self._start = self._begun = time.monotonic()

    def done(self, rows: int) -> None:
        """Count rows that are done."""
        now = time.monotonic()
        if not self._done:
            # What comes before the first rows, such as loading a model, is done once.
            self._begun, self._first = now, rows
        self._done += rows
        if not self._foretold and now - self._begun > _FORETOLD_AFTER and self._done > self._first:
            each = (now - self._begun) / (self._done - self._first)
            self._foretold = self._begun - self._start + each * (self.rows - self._first)

    def told(self) -> list[str]:
        """Return one line, or none of a step that took less than the ten seconds."""
        taken = time.monotonic() - self._start
        if not self._foretold:
            return []
        return [
            f"{self.name}: took {probe.duration(taken)}; its first seconds foretold {probe.duration(self._foretold)}"
        ]
