"""Baselines: simple columns that a score is compared with before anybody trusts it."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterable, Sequence
from functools import partial
from pathlib import Path

import pyarrow as pa
from pydantic import JsonValue
from typing_extensions import override

from seamcurate.models import Policy, PolicyModel, Prompt, roles
from seamcurate.models.protocols import Responses
from seamcurate.score import compared, noise, precision
from seamcurate.step import Averages, Data, Step, Transform, Work, column, finite


class Perplexity(Step):
    """Add `baseline_perplexity`: the golden response's perplexity under a base model, exp(−logP / tokens) (SEAM App. E.4).

    NULL without a response and where the prompt fills the model's window.

    Raises:
        ModelError: By `load`, where no base model is named or it cannot be loaded.

    Example:
        >>> from pathlib import Path
        >>> import pyarrow as pa
        >>> from seamcurate import FakeModel, Perplexity
        >>> add = Perplexity(base=FakeModel()).load(Path())
        >>> add(pa.table({"prompt": ["What is a set?"], "response": ["A collection."]}))["baseline_perplexity"][0].as_py() > 1
        True
    """

    base: PolicyModel | None = None

    @property
    @override
    def name(self) -> str:
        return "baseline_perplexity"

    @property
    @override
    def inputs(self) -> tuple[str, ...]:
        return ("prompt", "response")

    @property
    @override
    def adds(self) -> pa.Schema:
        meaning = "exp(-log P(r|I) / tokens) of the golden response under the base model; NULL when it does not fit or is not finite"
        return pa.schema([column("baseline_perplexity", pa.float64(), meaning)])

    @override
    def work(self, rows: Averages) -> Work:
        return Work(self.base, 1, rows.prompt + rows.response)

    @override
    def prepare(self, data: Data, shared: Path) -> None:
        """Store a few rows that `load` measures the noise floor on."""
        noise.sample(data, shared, "response")
        compared.sample(self.base, data, shared, "response")
        precision.sample(self.base, data, shared, "response")

    @override
    def facts(self, columns: Iterable[pa.Table], shared: Path) -> dict[str, JsonValue]:
        return precision.facts(noise.facts(shared) | compared.facts(shared), shared)

    @override
    def load(self, shared: Path) -> Transform:
        model = roles.load(self.base, "base", self.name)
        unchanged = compared.check(self.base, model, shared, compared.per_token)

        def perplexities(policy: Policy, prompts: Sequence[Prompt], answers: Responses) -> list[list[float | None]]:
            return [
                [None if answer is None else perplexity(answer.logprob, answer.tokens) for answer in row]
                for row in policy.logprobs(prompts, answers)
            ]

        precision.measure(
            self.base, model, shared, [self.name], lambda loaded: noise.plain(partial(perplexities, loaded))
        )
        noise.measure(shared, [self.name], noise.plain(partial(perplexities, model)))

        def score(rows: pa.Table) -> pa.Table:
            groups = [[response] if response is not None else [] for response in rows["response"].to_pylist()]
            values = [
                finite(row[0]) if row else None for row in perplexities(model, rows["prompt"].to_pylist(), groups)
            ]
            unchanged()
            return pa.table({"baseline_perplexity": pa.array(values, pa.float64())})

        return score


class Random(Step):
    """Add `baseline_random`: a seeded uniform number in [0, 1) for each row, the same on every machine.

    Example:
        >>> from pathlib import Path
        >>> import pyarrow as pa
        >>> from seamcurate import Random
        >>> add = Random().load(Path())
        >>> [round(number, 3) for number in add(pa.table({"row_id": [0, 1]}))["baseline_random"].to_pylist()]
        [0.135, 0.221]
    """

    seed: int = 0

    @property
    @override
    def name(self) -> str:
        return "baseline_random"

    @property
    @override
    def inputs(self) -> tuple[str, ...]:
        """Read no column but `row_id`, which every step gets."""
        return ()

    @property
    @override
    def adds(self) -> pa.Schema:
        return pa.schema(
            [column("baseline_random", pa.float64(), "a uniform number in [0, 1) drawn from seed and row_id")]
        )

    @override
    def load(self, shared: Path) -> Transform:

        def draw(rows: pa.Table) -> pa.Table:
            texts = (f"{self.seed}-{row_id}".encode() for row_id in rows["row_id"].to_pylist())
            # The first 53 of 64 bits: a double holds them exactly, so that every machine gives the same number.
            bits = (int.from_bytes(hashlib.sha256(text).digest()[:8]) >> 11 for text in texts)
            return pa.table({"baseline_random": pa.array([b / 2**53 for b in bits], pa.float64())})

        return draw


def perplexity(logprob: float, tokens: int) -> float:
    """Return exp(−logP/len), infinite where that overflows."""
    try:
        return math.exp(-logprob / max(tokens, 1))
    except OverflowError:
        return math.inf
