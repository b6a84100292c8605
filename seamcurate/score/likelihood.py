"""The step that asks a policy how likely the worse answers are.

A likelihood that was not computed is NULL, never 0.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Literal

import pyarrow as pa
from pydantic import JsonValue
from typing_extensions import override

from seamcurate.models import Policy, PolicyModel, roles
from seamcurate.score import compared, noise, precision
from seamcurate.score.discrepancy import misjudgement
from seamcurate.step import (
    Averages,
    Data,
    Step,
    Transform,
    Variant,
    Work,
    column,
    finite,
    without_default,
)

PER_TOKEN = "logprob_per_token"
"""The key of the noise of a mean log-probability: it is no column, but SEAM's weight is computed from it."""


class PolicyLogprobs(Step):
    """Add each candidate's log-probability under the policy, by default of misjudged candidates only.

    `logprobs_<variant>` is log P(r*|I) in nats, summed over `tokens_<variant>` tokens. A candidate that the reward model
    ranks below the golden response adds 0 to SEAM whatever its likelihood: the policy does not score it, and it is NULL.

    Raises:
        ModelError: By `load`, where no policy is named or it cannot be loaded.

    Example:
        >>> from pathlib import Path
        >>> import pyarrow as pa
        >>> from seamcurate import FakeModel, PolicyLogprobs
        >>> worse = [{"response": "A list."}, {"response": "A map."}]
        >>> row = {"prompt": "What is a set?", "worse_contrast": worse, "reward": 0.5, "rewards_contrast": [0.9, 0.1]}
        >>> PolicyLogprobs(policy=FakeModel()).load(Path())(pa.Table.from_pylist([row]))["tokens_contrast"].to_pylist()
        [[3, None]]
    """

    variant: Variant = "contrast"
    policy: PolicyModel | None = None
    likelihoods: Literal["misjudged", "all"] = "misjudged"
    """Candidates that are scored. `all` is for diagnosis: one that is not misjudged adds 0 to SEAM whatever its likelihood."""
    binary: bool | None = None
    """Whether rewards are 0 or 1, see `Seam`."""

    @property
    @override
    def name(self) -> str:
        return f"logprobs_{self.variant}"

    @override
    def identity(self) -> dict[str, JsonValue]:
        return without_default(super().identity(), "binary")

    @property
    @override
    def inputs(self) -> tuple[str, ...]:
        return ("prompt", f"worse_{self.variant}", "reward", f"rewards_{self.variant}")

    @property
    @override
    def adds(self) -> pa.Schema:
        scope = "misjudged candidates only" if self.likelihoods == "misjudged" else "all candidates"
        return pa.schema(
            [
                column(
                    f"logprobs_{self.variant}",
                    pa.list_(pa.float64()),
                    f"log P(r*|I), natural, summed over tokens; {scope}, NULL elsewhere and where the prompt does not fit",
                ),
                column(
                    f"tokens_{self.variant}",
                    pa.list_(pa.int32()),
                    "tokens that sum runs over, end of sequence included unless the answer was cut",
                ),
                column(
                    f"boundary_{self.variant}",
                    pa.list_(pa.bool_()),
                    "whether tokenizing prompt and answer together would give other tokens than were scored",
                ),
            ]
        )

    def work(self, rows: Averages) -> Work:
        """Ask for at most one likelihood a candidate: only the rewards will tell how many are misjudged."""
        return Work(self.policy, rows.candidates, rows.candidates * (rows.prompt + rows.candidate))

    def prepare(self, data: Data, shared: Path) -> None:
        """Store a few rows that `load` measures the noise floor on."""
        noise.sample(data, shared, f"worse_{self.variant}")
        compared.sample(self.policy, data, shared, f"worse_{self.variant}")
        precision.sample(self.policy, data, shared, f"worse_{self.variant}")

    @override
    def facts(self, columns: Iterable[pa.Table], shared: Path) -> dict[str, JsonValue]:
        return precision.facts(noise.facts(shared) | compared.facts(shared), shared)

    @override
    def load(self, shared: Path) -> Transform:
        model = roles.load(self.policy, "policy", self.name)
        unchanged = compared.check(self.policy, model, shared, compared.per_token)
        # Rows are cut by the number a token: sums follow the length.
        precision.measure(self.policy, model, shared, [self.name, PER_TOKEN], _sums, cut=1)
        noise.measure(shared, [self.name, PER_TOKEN], _sums(model))

        def score(rows: pa.Table) -> pa.Table:
            sets = rows[f"worse_{self.variant}"].to_pylist()
            golden = rows["reward"].to_pylist()
            rewards = rows[f"rewards_{self.variant}"].to_pylist()
            # Positions of the candidates that the policy scores, by row.
            positions = [self._positions(g, r, w) for g, r, w in zip(golden, rewards, sets, strict=True)]
            groups = [[worse[i]["response"] for i in row] for worse, row in zip(sets, positions, strict=True)]
            likelihoods = model.logprobs(rows["prompt"].to_pylist(), groups)
            unchanged()
            columns: dict[str, list[list[float | int | bool | None] | None]] = {name: [] for name in self.adds.names}
            for worse, row_positions, row in zip(sets, positions, likelihoods, strict=True):
                by_position = {
                    i: entry
                    for i, entry in zip(row_positions, row, strict=True)
                    if entry and finite(entry.logprob) is not None
                }
                # The fields of a likelihood are in the order of the columns.
                for field, name in enumerate(self.adds.names):
                    if worse is None:
                        columns[name].append(None)
                        continue
                    entries = [by_position.get(i) for i in range(len(worse))]
                    columns[name].append([entry[field] if entry is not None else None for entry in entries])
            return pa.table({f.name: pa.array(columns[f.name], f.type) for f in self.adds})

        return score

    def _positions(
        self, golden: float | None, rewards: list[float | None] | None, worse: list[dict[str, object]] | None
    ) -> list[int]:
        """Return the positions of the candidates of one row that the policy scores."""
        if worse is None:
            return []
        if self.likelihoods == "all":
            return list(range(len(worse)))
        if golden is None or rewards is None:
            return []
        return [i for i, r in enumerate(rewards) if r is not None and misjudgement(golden, r, bool(self.binary)) > 0]


def _sums(model: Policy) -> noise.Score:
    """Return a function that scores answers by their log-probability, summed and per token."""
    return lambda prompts, answers, further: [
        [None if entry is None else (entry.logprob, entry.logprob / max(entry.tokens, 1)) for entry in row]
        for row in model.logprobs(prompts, answers)
    ]
