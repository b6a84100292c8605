"""The policy's own answers: `n` samples a prompt, equal ones counted, each kept in the store the moment it is drawn.

One rule: a draw depends on the policy, the sampling, the prompt and the draw's number alone. So a run that was killed asks
only for the draws that are missing, and more samples of the same prompts begin with those that are there.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import NamedTuple, Self

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from pydantic import Field, JsonValue, model_validator
from typing_extensions import override

from seamcurate.models import PolicyModel, Prompt, Reply, Sample, Sampler, Sampling, calls, roles
from seamcurate.models.calls import Calls, Spent
from seamcurate.step import Averages, Data, Step, Transform, Work, column, digest, finite
from seamcurate.text import counted

SAMPLED = pa.list_(
    pa.struct([("response", pa.string()), ("count", pa.int32()), ("tokens", pa.int32()), ("finish", pa.string())])
)
"""A row's samples: each distinct text with how often it was drawn, its length in tokens, and how it ended."""
_CUT_OFTEN = 0.2
"""The share of samples cut at `max_tokens` above which rewards say more about the cut than about the policy."""


class Drawn(NamedTuple):
    """The samples of one prompt, by draw, and why there is none for the others."""

    samples: list[Sample | None]
    reasons: list[str]


class Rollouts(Step):
    """Add `worse_policy`: `n` answers that the policy itself gives to the prompt, which need not be worse.

    Samples that are equal in text, number of tokens and ending are one element with their `count`; elements are in the order
    of their first draw. Their log-probabilities are those of the tokens that were drawn: `logprobs_policy` at temperature 1,
    `sampled_logprobs_policy` at the sampling temperature, before `top_p` cuts anything. They are NULL where a server does not
    say. `reason_policy` says why a row has fewer than `n` samples, or no set at all. An empty answer is a sample, too.

    Every sample is kept under the store's `calls/samples/` when it is drawn. Another `n` uses those that are there.

    Raises:
        ModelError: By `load`, where no policy is named or it cannot be loaded.

    Example:
        >>> from pathlib import Path
        >>> import pyarrow as pa
        >>> from seamcurate import FakeModel, Rollouts
        >>> add = Rollouts(n=4, policy=FakeModel()).load(Path())
        >>> samples = add(pa.table({"prompt": ["What is a set?"]}))["worse_policy"].to_pylist()[0]
        >>> sum(sample["count"] for sample in samples), samples[0]["finish"]
        (4, 'stop')
    """

    n: int = Field(default=16, ge=1)
    """Samples of each prompt. One tells no spread: what needs two samples is NULL then."""
    temperature: float = Field(default=1.0, ge=0)
    """What logits are divided by. 0 gives the likeliest answer, and `n` must be 1."""
    top_p: float = Field(default=1.0, gt=0, le=1)
    """Tokens are drawn from the smallest set of the likeliest ones that together have at least this probability."""
    max_tokens: int = Field(default=512, ge=1)
    """The most tokens of an answer; a longer one is cut, and its `finish` is `length`."""
    seed: int = 0
    """Another seed gives other samples; the same gives the same on one machine, whatever the batches."""
    policy: PolicyModel | None = None

    @model_validator(mode="after")
    def _greedy_once(self) -> Self:
        if self.temperature == 0 and self.n > 1:
            raise ValueError(f"temperature 0 gives one answer {self.n} times; set n: 1, or a temperature above 0")
        return self

    @property
    @override
    def name(self) -> str:
        return "worse_policy"

    @property
    @override
    def inputs(self) -> tuple[str, ...]:
        return ("prompt",)

    @property
    @override
    def adds(self) -> pa.Schema:
        same = "same order; NULL where the policy does not say"
        return pa.schema(
            [
                column(
                    "worse_policy", SAMPLED, f"{self.n} samples of the policy, equal ones counted; NULL without any"
                ),
                column(
                    "logprobs_policy",
                    pa.list_(pa.float64()),
                    f"log-probability of each answer in worse_policy at temperature 1, natural, summed over tokens, {same}",
                ),
                column(
                    "sampled_logprobs_policy",
                    pa.list_(pa.float64()),
                    f"the same at temperature {self.temperature:g}, at which they were drawn, {same}",
                ),
                column("reason_policy", pa.string(), f"why worse_policy is NULL, or has fewer than {self.n} samples"),
            ]
        )

    @override
    def work(self, rows: Averages) -> Work:
        """Estimate `n` answers as long as the golden response, after a prompt that is read once."""
        return Work(self.policy, self.n, rows.prompt, self.n * rows.response)

    @override
    def prepare(self, data: Data, shared: Path) -> None:
        """Refuse chats for a policy without a chat template, before anything is sampled."""
        first = next(iter(data.rows(("prompt",))), None)
        if first is not None and pa.types.is_list(first.schema.field("prompt").type):
            roles.check_chats(self.policy, self.name)

    @override
    def load(self, shared: Path) -> Transform:
        sampler = roles.load_sampler(self.policy, self.name)
        assert self.policy is not None
        sampling = Sampling(self.n, self.temperature, self.top_p, self.max_tokens, self.seed)
        same: JsonValue = {"policy": self.policy.identity(), **sampling._asdict()}
        assert isinstance(same, dict)
        # Whatever n is, the first draws are the same.
        del same["n"]
        journal = Journal(digest(same), self.policy.title)

        def sample(rows: pa.Table) -> pa.Table:
            drawn = journal.drawn(sampler, rows["prompt"].to_pylist(), sampling)
            return pa.table(dict(zip(self.adds.names, zip(*map(_columns, drawn), strict=True), strict=True)), self.adds)

        return sample

    @override
    def facts(self, columns: Iterable[pa.Table], shared: Path) -> dict[str, JsonValue]:
        """Count samples, distinct ones, those that were cut, and rows that lack some."""
        rows = missing = short = samples = distinct = cut = 0
        reasons: Counter[str] = Counter()
        for table in columns:
            sets = table["worse_policy"].combine_chunks()
            counts, finish = (sets.flatten().field(name) for name in ("count", "finish"))
            rows, missing = rows + len(table), missing + sets.null_count
            short += len(table) - table["reason_policy"].null_count
            samples, distinct = samples + (pc.sum(counts).as_py() or 0), distinct + len(counts)
            cut += pc.sum(counts.filter(pc.equal(finish, "length"))).as_py() or 0
            reasons.update(reason for reason in table["reason_policy"].to_pylist() if reason is not None)
        warnings: list[JsonValue] = []
        if short:
            reason, count = reasons.most_common(1)[0]
            warnings.append(
                f"worse_policy: {counted(short, 'row has', 'rows have')} fewer than {self.n} samples, "
                f"{missing:,} of them none; {count:,} for this reason: {reason}"
            )
        if cut > _CUT_OFTEN * samples:
            warnings.append(
                f"worse_policy: {cut / samples:.0%} of the samples were cut at {self.max_tokens} tokens, and are scored "
                "as they are; raise max_tokens"
            )
        summary = (
            f"worse_policy: {samples / max(1, rows):.1f} samples a row, {distinct / max(1, samples):.0%} of them distinct, "
            f"{cut / max(1, samples):.1%} cut at {self.max_tokens} tokens"
        )
        return {
            "samples": samples,
            "distinct": distinct,
            "cut": cut,
            "missing": missing,
            "short": short,
            "summary": summary,
            "warnings": warnings,
        }


class Journal:
    """Draw samples, and keep each at once where `calls.current` keeps answers.

    Args:
        same: Hash of what decides a draw beside the prompt and its number.
        model: What the policy is called in the file.
    """

    def __init__(self, same: str, model: str) -> None:
        self.same, self.model = same, model

    def drawn(self, sampler: Sampler, prompts: Sequence[Prompt], sampling: Sampling) -> list[Drawn]:
        """Return the samples of each prompt; only draws that are not kept are asked for, equal prompts once."""
        kept = calls.current()
        keys = [digest({"same": self.same, "prompt": json.loads(json.dumps(prompt))}) for prompt in prompts]
        by_key: dict[str, Drawn] = {}
        for key in dict.fromkeys(keys):
            by_key[key] = Drawn([self._stored(kept, key, draw) for draw in range(sampling.n)], [])
        first = {key: position for position, key in reversed(list(enumerate(keys)))}
        missing = {key: [draw for draw, sample in enumerate(by_key[key].samples) if sample is None] for key in by_key}
        requested = [key for key, draws in missing.items() if draws]
        requests = [(prompts[first[key]], missing[key]) for key in requested]
        for request, draw, sample in sampler.samples(requests, sampling) if requests else ():
            drawn = by_key[requested[request]]
            if isinstance(sample, str):
                drawn.reasons.append(sample)
                continue
            self._keep(kept, requested[request], draw, sample)
            drawn.samples[draw] = sample
        return [by_key[key] for key in keys]

    def _stored(self, kept: Calls, key: str, draw: int) -> Sample | None:
        reply = kept.get(_draw_key(key, draw))
        return None if reply is None else Sample(**json.loads(reply.text))

    def _keep(self, kept: Calls, key: str, draw: int, sample: Sample) -> None:
        text = json.dumps(sample._asdict())
        kept.put(_draw_key(key, draw), Reply(text, sample.finish, self.model), Spent(1, 0, sample.tokens))


def _draw_key(key: str, draw: int) -> str:
    return f"{key}-{draw}"


def _columns(drawn: Drawn) -> tuple[object, object, object, str | None]:
    """Return a row's values in the order of `Rollouts.adds`."""
    samples = [sample for sample in drawn.samples if sample is not None]
    # Samples of one text may differ in their tokens, or in being cut: they are told apart.
    counts = Counter((sample.text, sample.tokens, sample.finish) for sample in samples)
    first: dict[tuple[str, int, str], Sample] = {}
    for sample in samples:
        first.setdefault((sample.text, sample.tokens, sample.finish), sample)
    reason = None
    if len(samples) < len(drawn.samples):
        why = "; ".join(dict.fromkeys(drawn.reasons)) or "the policy gave none"
        reason = f"{len(samples)} of {len(drawn.samples)}: {why}" if samples else why
    if not samples:
        return None, None, None, reason
    worse = [
        {"response": text, "count": counts[text, tokens, finish], "tokens": tokens, "finish": finish}
        for text, tokens, finish in first
    ]
    logprobs = [_known(sample.logprob_1) for sample in first.values()]
    sampled_logprobs = [_known(sample.logprob) for sample in first.values()]
    return worse, logprobs, sampled_logprobs, reason


def _known(logprob: float | None) -> float | None:
    return None if logprob is None or not np.isfinite(logprob) else finite(logprob)
