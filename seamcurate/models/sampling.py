"""Sample a local policy's answers: many at a time, and each as if it were sampled alone.

One rule: each token is the one that the answer's text alone, read without a cache, would give. Logits of a batch differ from
those by rounding; where that could decide the token, the text is read alone and that decides. In 16 bit the batch itself is the
same whatever is asked. Thus the same seed gives the same answers, whatever else is asked and however batches are cut.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Collection, Iterator, Sequence
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import numpy.typing as npt

from seamcurate.models import decoding, draws, probe, tokens
from seamcurate.models.batching import freed
from seamcurate.models.decoding import Decoder
from seamcurate.models.protocols import Prompt, Sample, SampleRequest, Sampling
from seamcurate.models.template import Form

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

_EXACT_MARGIN = 1e-5
"""By how much rounding may move what is computed from a logit, as a share of the logits' standard deviation."""


class _Job(NamedTuple):
    """A prompt, and the draws that are wanted of it."""

    request: int
    prompt: list[int]
    draws: list[int]
    limit: int
    """The most tokens of an answer."""


class _Row:
    """An answer that is being written."""

    def __init__(self, job: _Job, draw: int, seed: int) -> None:
        self.job, self.draw = job, draw
        self.key: npt.NDArray[np.uint64] = draws.key(seed, job.prompt, draw)
        self.ids: list[int] = []
        self.logprob = self.logprob_1 = 0.0


class LocalSampler:
    """Samples from a causal language model; see `Sampler`.

    Args:
        model: With its weights.
        tokenizer: Its own.
        form: How prompts become text.
        ends: The ids that end an answer.
        window: Tokens that the model reads at once.
        budget: Tokens whose keys and values are held at most; None chooses by the device.

    Attributes:
        drawn: Tokens drawn so far.
        settled: How many of them rounding could have decided, so that the text was read alone.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase,
        form: Form,
        ends: Collection[int],
        window: int,
        budget: int | None,
    ) -> None:
        self.model, self.tokenizer, self.form, self.window = model, tokenizer, form, window
        self.ends = frozenset(ends)
        self.decoders = decoding.Decoders(model, budget)
        self.drawn = self.settled = 0

    def samples(self, requests: Sequence[SampleRequest], sampling: Sampling) -> Iterator[tuple[int, int, Sample | str]]:
        """Draw answers, and yield each when it is finished; see `Sampler`."""
        import torch

        jobs: list[_Job] = []
        for position, (prompt, numbers) in enumerate(requests):
            ids = self._prompt_ids(prompt)
            if isinstance(ids, str):
                yield from ((position, draw, ids) for draw in numbers)
            elif numbers:
                limit = min(sampling.max_tokens, self.window - len(ids))
                jobs.append(_Job(position, ids, list(numbers), limit))
        # Prompts of like lengths share batches.
        jobs.sort(key=lambda job: -len(job.prompt) - job.limit)
        for decoder, some in self.decoders.shares([len(job.prompt) + job.limit for job in jobs]):
            sampled = self._run(decoder, deque(jobs[i] for i in some), sampling)
            while True:
                # Not around the loop: who consumes the samples may train, or have another generator in between.
                with torch.inference_mode():
                    item = next(sampled, None)
                if item is None:
                    break
                yield item

    def _prompt_ids(self, prompt: Prompt) -> list[int] | str:
        """Return the ids that the model continues, exactly those that scoring reads; or why there are none."""
        try:
            ids = tokens.prompt_ids(self.tokenizer, prompt, self.form)
        except tokens.refusals() as error:
            return f"the chat template cannot render the prompt: {error}".splitlines()[0]
        if not ids:
            return "the prompt has no tokens"
        if not probe.is_readable(self.model, ids):
            return "the prompt has a token that the model has no embedding for"
        if len(ids) >= self.window:
            return f"the prompt has {len(ids):,} tokens and fills the window of {self.window:,}"
        return ids

    def _run(self, decoder: Decoder, jobs: deque[_Job], sampling: Sampling) -> Iterator[tuple[int, int, Sample | str]]:
        """Sample jobs with one decoder; where memory runs out, begin the unfinished answers again in smaller batches."""
        import torch

        rows: list[_Row] = []
        try:
            while jobs or rows:
                try:
                    finished = self._admit(decoder, jobs, rows, sampling) if jobs else []
                    if not finished and rows:
                        finished = self._advance(decoder, rows, sampling)
                except torch.OutOfMemoryError:
                    alone = len(rows) <= 1
                else:
                    for row, sample in finished:
                        yield row.job.request, row.draw, sample
                    continue
                # Outside the handler: the exception keeps the tensors alive that were too much.
                if not alone:
                    decoder.halve()
                decoder.clear()
                freed(self.model.device)
                if alone:
                    job = rows[0].job if rows else jobs.popleft()
                    draws_left = [rows[0].draw] if rows else job.draws
                    reason = f"prompt and answer of up to {len(job.prompt) + job.limit:,} tokens do not fit in memory"
                    yield from ((job.request, draw, reason) for draw in draws_left)
                else:
                    jobs.extendleft(row.job._replace(draws=[row.draw]) for row in reversed(rows))
                rows.clear()
        finally:
            decoder.clear()

    def _admit(
        self, decoder: Decoder, jobs: deque[_Job], rows: list[_Row], sampling: Sampling
    ) -> list[tuple[_Row, Sample | str]]:
        """Begin answers while there is room for them; return those that their first token ends."""
        finished: list[tuple[_Row, Sample | str]] = []
        while jobs and (admitted := decoder.admit(jobs[0].draws, len(jobs[0].prompt) + jobs[0].limit)):
            job = jobs.popleft()
            if later := [draw for draw in job.draws if draw not in admitted]:
                jobs.appendleft(job._replace(draws=later))
            first = len(rows)
            rows += [_Row(job, draw, sampling.seed) for draw in admitted]
            logits = decoder.add(job.prompt, admitted, len(job.prompt) + job.limit)
            finished += self._append(decoder, rows, first, logits.expand(len(admitted), -1), sampling, exact=True)
        return finished

    def _advance(self, decoder: Decoder, rows: list[_Row], sampling: Sampling) -> list[tuple[_Row, Sample | str]]:
        """Draw one more token of each answer; return those that it ends."""
        logits = decoder.step([row.ids[-1] for row in rows])
        return self._append(decoder, rows, 0, logits, sampling, decoder.exact)

    def _append(
        self,
        decoder: Decoder,
        rows: list[_Row],
        first: int,
        logits: torch.Tensor,
        sampling: Sampling,
        exact: bool,
    ) -> list[tuple[_Row, Sample | str]]:
        """Draw a token for each row from number `first` on; take out of the batch, and return, the answers that end.

        Args:
            decoder: Holds the batch.
            rows: All answers of the batch.
            first: The row that the first of the logits is of.
            logits: Of each row from there on.
            sampling: How to draw.
            exact: Whether the logits are the same whatever the batch. What is drawn from them may differ by rounding even then.
        """
        new = rows[first:]
        positions = [len(row.ids) for row in new]
        deviations = deviation(logits)
        margins = deviations * (_EXACT_MARGIN if exact else self.decoders.margin)
        choice = draws.choose(logits, [row.key for row in new], positions, sampling, margins)
        self.drawn += len(new)
        finished: list[tuple[_Row, Sample | str]] = []
        for i, row in reversed(list(enumerate(new))):
            token, logprob, logprob_1 = choice.tokens[i], choice.logprobs[i], choice.logprobs_1[i]
            if not choice.sure[i] and math.isfinite(logprob_1):
                alone = logits[i : i + 1]
                if not exact:
                    self.settled += 1
                    alone = decoder.alone(row.job.prompt + row.ids)
                    self.decoders.saw(float((alone - logits[i]).abs().max() / deviations[i]))
                settled = draws.choose(alone, [row.key], [positions[i]], sampling, None)
                (token,), _, (logprob,), (logprob_1,) = settled
            row.ids.append(token)
            row.logprob, row.logprob_1 = row.logprob + logprob, row.logprob_1 + logprob_1
            if (end := self._end(row)) is not None:
                finished.append((row, end))
                decoder.remove(first + i)
                rows[first + i] = rows[-1]
                rows.pop()
        return finished

    def _end(self, row: _Row) -> Sample | str | None:
        """Return the finished answer, or why there is none; None where it goes on."""
        if not math.isfinite(row.logprob_1):
            return "the model gives numbers that are not finite; try dtype: float32"
        ended = row.ids[-1] in self.ends
        if not ended and len(row.ids) < row.job.limit:
            return None
        written = row.ids[:-1] if ended else row.ids
        text = self.tokenizer.decode(written, skip_special_tokens=True, clean_up_tokenization_spaces=False)
        finish = "stop" if ended else "length"
        return Sample(self.form.generated(str(text)), len(row.ids), finish, row.logprob, row.logprob_1)


def deviation(logits: torch.Tensor) -> torch.Tensor:
    """Return the standard deviation of each row of logits, rows × 1; torch's own takes five times as long on a CPU."""
    import torch

    centred = logits - logits.mean(-1, keepdim=True)
    lengths: torch.Tensor = torch.linalg.vector_norm(centred, dim=-1, keepdim=True)
    return lengths / math.sqrt(max(1, logits.shape[-1] - 1))
