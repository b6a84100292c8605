"""SEAM: how much a reward model's misjudgements matter to a policy, per prompt (SEAM §4, Eq. 2).

Rewards come first: a candidate that the reward model ranks below the golden response has misjudgement 0 and adds
nothing, so the policy scores only the other candidates. A likelihood that was not computed is NULL, never 0.
"""

from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import Any, ClassVar, Literal, Self, TypeAlias

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
from pydantic import Field, JsonValue, model_validator
from typing_extensions import override

from seamcurate.errors import StepError
from seamcurate.models import Policy, PolicyModel, Prompt, RewardingModel, roles, scales
from seamcurate.models.backend import RewardConfig
from seamcurate.models.ensemble import DISAGREEMENT, MEMBERS, RewardEnsemble, differs
from seamcurate.models.protocols import Rating
from seamcurate.score import compared, golden_check, noise, precision
from seamcurate.step import Averages, Data, Step, Transform, Variant, Work, column, comparable, finite, is_sampled
from seamcurate.text import counted

PER_TOKEN = "logprob_per_token"
"""The key of the noise of a mean log-probability: it is no column, but SEAM's weight is computed from it."""
Doubles: TypeAlias = npt.NDArray[np.float64]
Weighting: TypeAlias = Literal["geometric", "logprob", "raw", "uniform"]


def misjudgement(golden: float, worse: float, binary: bool = False) -> float:
    """Return ε = max(R(I∘r*) − R(I∘r), 0) (SEAM Eq. 2).

    Of `binary` rewards, 0 and 1, that difference is never above 0 where the golden response passes: there ε is 1 for a
    false positive, a worse answer with reward 1. Where the golden response fails, there is nothing to compare with: NaN.
    """
    if binary:
        return 1.0 if (golden, worse) == (1, 1) else 0.0 if (golden, worse) == (1, 0) else math.nan
    return max(worse - golden, 0.0)


def weight(logprob: Doubles, tokens: Doubles, likelihood: Weighting) -> Doubles:
    """Return candidates' weights from their log-probabilities; a candidate of unknown log-probability, NaN, has weight NaN.

    `geometric` is the per-token geometric mean, exp(logP/len). `logprob` is −logP/len, the length penalty of
    SEAM §4.2 taken literally: it gives *unlikely* answers more weight. `raw` is P and underflows; `uniform` is 1.
    """
    length = np.maximum(tokens, 1)
    if likelihood == "geometric":
        return np.exp(logprob / length)
    if likelihood == "logprob":
        return -logprob / length
    return np.exp(logprob) if likelihood == "raw" else np.ones_like(logprob)


def discrepancy(weights: Sequence[float], misjudgements: Sequence[float], k: int | None = None) -> float:
    """Return Σ w·ε over the candidates (SEAM Eq. 2), at least 0; high is bad.

    With `k` the sum is scaled to mean·k, so that rows with fewer candidates than `k` compare.

    Args:
        weights: The likelihood weight of each candidate, in [0, 1].
        misjudgements: ε of each candidate in the same order: its reward minus the golden one's, at least 0.
        k: How many candidates to scale to.

    Example:
        >>> from seamcurate import discrepancy
        >>> discrepancy([0.5, 0.25], [2.0, 0.0]), discrepancy([0.5, 0.25], [2.0, 0.0], k=30)
        (1.0, 15.0)
    """
    total = math.fsum(w * e for w, e in zip(weights, misjudgements, strict=True))
    return total if k is None else total / len(weights) * k


class Reward(Step):
    """Add `reward`: the reward model's score of the golden response, R(I∘r) of SEAM Eq. 2.

    The score has the model's own unit. It is NULL without a response, where the prompt fills the model's window, and where
    the score is not finite.

    Raises:
        ModelError: By `load`, where no reward model is named or it cannot be loaded.

    Example:
        >>> from pathlib import Path
        >>> import pyarrow as pa
        >>> from seamcurate import FakeModel, Reward
        >>> add = Reward(reward=FakeModel()).load(Path())
        >>> rewards = add(pa.table({"prompt": ["What is a set?"] * 2, "response": ["A collection.", None]}))["reward"]
        >>> [reward is None for reward in rewards.to_pylist()]
        [False, True]
    """

    reward: RewardingModel | None = None

    @property
    @override
    def inputs(self) -> tuple[str, ...]:
        return tuple(dict.fromkeys(("prompt", "response", *_columns_read(self.reward))))

    @property
    @override
    def reads_all_rows(self) -> bool:
        return isinstance(self.reward, RewardEnsemble) and self.reward.needs_scales()

    @property
    @override
    def adds(self) -> pa.Schema:
        why = (
            "where there is none, see reward_reason"
            if _gives_reasons(self.reward)
            else "when the prompt fills the model's window"
        )
        meaning = f"R(I∘r): the golden response's reward; NULL {why}"
        fields = [column("reward", pa.float64(), meaning)]
        for name in _output_names(self.reward):
            meaning = f"{_output_meaning(self.reward, name)} for the golden response"
            fields.append(column(f"reward_{name}", pa.float64(), meaning))
        if self.reward is not None and self.reward.is_binary():
            meaning = "whether the golden response fails the reward: R(I∘r) is 0; such a row has no SEAM"
            fields.append(column("golden_fails", pa.bool_(), meaning))
        if _gives_reasons(self.reward):
            fields.append(column("reward_reason", pa.string(), "why the golden response has no reward"))
        if self.reward is not None and (members := self.reward.member_names()):
            meaning = (
                f"the golden response's reward by each member, on the scale they are combined on: {', '.join(members)}"
            )
            fields.append(column(MEMBERS, pa.list_(pa.float64()), meaning))
        return pa.schema(fields)

    @override
    def work(self, rows: Averages) -> list[Work]:
        return [] if self.reward is None else self.reward.work(1, rows.prompt + rows.response)

    @override
    def first_work(self, rows: Averages, count: int) -> list[Work]:
        """Measure the noise floor, and an ensemble's scales."""
        if self.reward is None:
            return []
        answers, characters = min(_noise_rows(self.reward), count), rows.prompt + rows.response
        noise_work = self.reward.noise_work(answers, answers * characters)
        return [*noise_work, *scales.work(self.reward, count, characters)]

    def prepare(self, data: Data, shared: Path) -> None:
        """Store rows for the noise floor, measure an ensemble's scales, and ask for all rewards that come in batches."""
        _sample(self.reward, data, shared, "response", _columns_read(self.reward))
        compared.sample(self.reward, data, shared, "response", _columns_read(self.reward))
        precision.sample(self.reward, data, shared, "response", _columns_read(self.reward))
        ask_ahead(self.reward, data, "response")
        # After a batch was asked, whose answers cost less than single ones.
        scales.measure(self.reward, data, shared)

    @override
    def load(self, shared: Path) -> Transform:
        reward = scales.applied(self.reward, shared)
        model = roles.load(reward, "reward", self.name)
        names = _output_names(self.reward)
        unchanged = compared.check(self.reward, model, shared, noise.rewards)
        columns = [self.name, *(f"reward_{name}" for name in names)]
        precision.measure(reward, model, shared, columns, noise.rewards)
        noise.measure_rewards(shared, columns, model)
        no_rating = Rating(None, None, (None,) * len(names))

        def score(rows: pa.Table) -> pa.Table:
            groups = [[response] if response is not None else [] for response in rows["response"].to_pylist()]
            rated = model.ratings(rows["prompt"].to_pylist(), groups, _further(rows, self.reward))
            unchanged()
            ratings = [row[0] if row else no_rating for row in rated]
            rewards = [finite(rating.reward) for rating in ratings]
            values: dict[str, Sequence[object]] = {
                "reward": rewards,
                "golden_fails": [None if reward is None else reward == 0 for reward in rewards],
                "reward_reason": [rating.reason for rating in ratings],
                MEMBERS: [rating.members or None for rating in ratings],
            }
            for i, name in enumerate(names):
                values[f"reward_{name}"] = [finite(rating.outputs[i]) for rating in ratings]
            return pa.table({field.name: pa.array(values[field.name], field.type) for field in self.adds})

        return score

    def facts(self, columns: Iterable[pa.Table], shared: Path) -> dict[str, JsonValue]:
        """Count the rows without a reward, and those whose golden response fails it."""
        parts = (
            _reward_facts(columns, "reward", self.reward) | noise.facts(shared),
            scales.facts(self.reward, shared),
            compared.facts(shared),
            precision.facts({}, shared),
        )
        summary = "; ".join(str(part["summary"]) for part in parts if "summary" in part)
        return parts[0] | parts[1] | parts[2] | parts[3] | ({"summary": summary} if summary else {})


class Rewards(Step):
    """Add `rewards_<variant>`: the reward model's score of each candidate, R(I∘r*) of SEAM Eq. 2.

    A row gets a list in the order of `worse_<variant>`. A score is NULL where the candidate does not fit the model's window
    or the score is not finite.

    Raises:
        ModelError: By `load`, where no reward model is named or it cannot be loaded.

    Example:
        >>> from pathlib import Path
        >>> import pyarrow as pa
        >>> from seamcurate import FakeModel, Rewards
        >>> rows = pa.table({"prompt": ["What is a set?"], "worse_contrast": [[{"response": "A list."}, {"response": "A map."}]]})
        >>> [len(rewards) for rewards in Rewards(reward=FakeModel()).load(Path())(rows)["rewards_contrast"].to_pylist()]
        [2]
    """

    variant: Variant = "contrast"
    reward: RewardingModel | None = None

    @property
    @override
    def name(self) -> str:
        return f"rewards_{self.variant}"

    @property
    @override
    def inputs(self) -> tuple[str, ...]:
        return tuple(dict.fromkeys(("prompt", f"worse_{self.variant}", *_compared_columns(self.reward))))

    @property
    @override
    def adds(self) -> pa.Schema:
        v = self.variant
        why = (
            f"where there is none, see rewards_reason_{v}"
            if _gives_reasons(self.reward)
            else "when it does not fit the window"
        )
        meaning = f"R(I∘r*) of each candidate in worse_{v}, same order; NULL {why}"
        fields = [column(self.name, pa.list_(pa.float64()), meaning)]
        for name in _output_names(self.reward):
            meaning = f"{_output_meaning(self.reward, name)} for each candidate in worse_{v}"
            fields.append(column(f"rewards_{name}_{v}", pa.list_(pa.float64()), meaning))
        if _gives_reasons(self.reward):
            meaning = f"why a candidate in worse_{v} has no reward; NULL where it has one"
            fields.append(column(f"rewards_reason_{v}", pa.list_(pa.string()), meaning))
        if self.reward is not None and self.reward.member_names():
            meaning = f"share of worse_{v} that some members prefer to the golden response and some do not"
            fields.append(column(f"disagreement_{v}", pa.float64(), meaning))
        return pa.schema(fields)

    @override
    def work(self, rows: Averages) -> list[Work]:
        characters = rows.candidates * (rows.prompt + rows.candidate)
        return [] if self.reward is None else self.reward.work(rows.candidates, characters)

    @override
    def first_work(self, rows: Averages, count: int) -> list[Work]:
        """Measure the noise floor."""
        if self.reward is None:
            return []
        answers = min(_noise_rows(self.reward), count) * min(self.reward.noise_answers, rows.candidates)
        return self.reward.noise_work(answers, answers * (rows.prompt + rows.candidate))

    def prepare(self, data: Data, shared: Path) -> None:
        """Store a few rows that `load` measures the noise floor on, and ask for all rewards that come in batches."""
        answers = f"worse_{self.variant}"
        scales.take(self.reward, data, shared, self.name)
        _sample(self.reward, data, shared, answers, _compared_columns(self.reward))
        compared.sample(self.reward, data, shared, answers, _columns_read(self.reward))
        precision.sample(self.reward, data, shared, answers, _compared_columns(self.reward))
        ask_ahead(self.reward, data, answers)

    @override
    def load(self, shared: Path) -> Transform:
        reward = scales.applied(self.reward, shared)
        model = roles.load(reward, "reward", self.name)
        v, names = self.variant, _output_names(self.reward)
        unchanged = compared.check(self.reward, model, shared, noise.rewards)
        columns = [self.name, *(f"rewards_{name}_{v}" for name in names)]
        precision.measure(reward, model, shared, columns, noise.rewards)
        noise.measure_rewards(shared, columns, model)

        def score(rows: pa.Table) -> pa.Table:
            sets = rows[f"worse_{v}"].to_pylist()
            groups = [[candidate["response"] for candidate in worse or []] for worse in sets]
            further = {name: rows[name].to_pylist() for name in _compared_columns(self.reward)}
            rated = model.ratings(rows["prompt"].to_pylist(), groups, further)
            unchanged()
            # A row without a sample set has no list.
            ratings = [None if worse is None else row for worse, row in zip(sets, rated, strict=True)]
            values: dict[str, Sequence[object]] = {
                self.name: [None if row is None else [finite(rating.reward) for rating in row] for row in ratings],
                f"rewards_reason_{v}": [None if row is None else [rating.reason for rating in row] for row in ratings],
            }
            for i, name in enumerate(names):
                values[f"rewards_{name}_{v}"] = [
                    None if row is None else [finite(rating.outputs[i]) for rating in row] for row in ratings
                ]
            if MEMBERS in further:
                values[f"disagreement_{v}"] = list(map(_disagreement, further[MEMBERS], ratings))
            return pa.table({field.name: pa.array(values[field.name], field.type) for field in self.adds})

        return score

    def facts(self, columns: Iterable[pa.Table], shared: Path) -> dict[str, JsonValue]:
        """Count the candidates without a reward."""
        found = _reward_facts(columns, self.name, self.reward) | noise.facts(shared) | compared.facts(shared)
        return precision.facts(found, shared)


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
        return _without_default(super().identity(), "binary")

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


class Seam(Step):
    """Add SEAM and its parts; `seam_<variant>` is minus the discrepancy (SEAM Eq. 2), so that **low is bad**.

    A row is NULL when its set is empty or no candidate in it could be scored. A candidate whose reward is unknown, or
    whose likelihood is needed and unknown, is left out of the mean; it does not count as 0.

    Raises:
        StepError: By `prepare`, where `normalise` is set and the golden rewards do not vary.

    Example:
        A candidate of two tokens with log-probability −2 has the weight exp(−2 / 2) = .37; its reward is .4 above the
        golden response's.

        >>> from pathlib import Path
        >>> import pyarrow as pa
        >>> from seamcurate import Seam
        >>> row = {"reward": 0.5, "rewards_contrast": [0.9, 0.1], "logprobs_contrast": [-2.0, None], "tokens_contrast": [2, None]}
        >>> scored = Seam(k=2).load(Path())(pa.Table.from_pylist([row])).to_pylist()[0]
        >>> round(scored["seam_contrast"], 3), scored["misjudged_contrast"]
        (-0.147, 0.5)
    """

    variant: Variant = "contrast"
    likelihood: Weighting = "geometric"
    """The weight of a candidate. Of the policy's own samples it is `uniform`: how often one was drawn is its weight."""
    k: int = Field(default=30, ge=1)
    """The number of candidates that each row's discrepancy is scaled to: mean·k."""
    rows_per_call: ClassVar[int] = 4096

    normalise: bool = False
    """Divide ε by the standard deviation of the golden rewards, so that reward models compare."""
    binary: bool | None = None
    """Whether rewards are 0 or 1: ε is then 1 for a false positive, a worse answer with reward 1, and a row whose golden
    response has reward 0 is NULL. Default: what the recipe's reward model is."""

    @model_validator(mode="before")
    @classmethod
    def _frequency_is_the_weight(cls, value: Any) -> Any:
        if isinstance(value, dict) and is_sampled(value.get("variant")):
            if value.get("likelihood", "uniform") != "uniform":
                raise ValueError(
                    "the policy's own samples come as often as it gives them, and a likelihood would weigh them twice; "
                    "leave likelihood out, or say uniform"
                )
            return {**value, "likelihood": "uniform"}
        return value

    @model_validator(mode="after")
    def _binary_as_it_is(self) -> Self:
        if self.binary and self.normalise:
            raise ValueError("rewards of 0 and 1 compare as they are; leave normalise or binary out")
        return self

    @property
    @override
    def name(self) -> str:
        return f"seam_{self.variant}"

    @override
    def identity(self) -> dict[str, JsonValue]:
        return _without_default(super().identity(), "binary")

    @property
    @override
    def inputs(self) -> tuple[str, ...]:
        v = self.variant
        if is_sampled(v):
            return ("reward", f"rewards_{v}", f"worse_{v}")
        return ("reward", f"rewards_{v}", f"logprobs_{v}", f"tokens_{v}")

    @property
    def reads_all_rows(self) -> bool:
        """Normalising needs every golden reward."""
        return self.normalise

    @property
    @override
    def adds(self) -> pa.Schema:
        v = self.variant
        wrong = (
            "that pass as the golden response does"
            if self.binary
            else "the reward model prefers to the golden response"
        )
        epsilon = (
            "1 for a false positive, a candidate with reward 1, else 0"
            if self.binary
            else "its reward minus the golden one's, at least 0"
        )
        number = "samples, equal ones counted each," if is_sampled(v) else "candidates"
        weight = (
            "w of each distinct sample: how often it was drawn"
            if is_sampled(v)
            else f"w of each candidate ({self.likelihood}); NULL where its likelihood was not needed"
        )
        reason = column(f"seam_reason_{v}", pa.string(), f"why seam_{v} is NULL")
        return pa.schema(
            [
                column(
                    f"seam_{v}",
                    pa.float64(),
                    "minus the discrepancy, at most 0; low = bad; NULL when there is no candidate",
                ),
                column(
                    f"discrepancy_{v}",
                    pa.float64(),
                    f"Σ w·ε scaled to {self.k} candidates, at least 0; high = bad (Eq. 2)",
                ),
                column(
                    f"misjudged_{v}",
                    pa.float64(),
                    f"share of candidates {wrong}",
                ),
                column(f"candidates_{v}", pa.int32(), f"{number} the score rests on"),
                column(
                    f"misjudgements_{v}",
                    pa.list_(pa.float64()),
                    f"ε of each candidate: {epsilon}",
                ),
                column(f"weights_{v}", pa.list_(pa.float64()), weight),
                *([reason] if is_sampled(v) else []),
            ]
        )

    def prepare(self, data: Data, shared: Path) -> None:
        """Store the noise of the inputs, and with `normalise` the standard deviation of the golden rewards."""
        names = ("reward", f"rewards_{self.variant}", f"logprobs_{self.variant}")
        # No likelihood weighs the policy's own samples.
        floors = {
            k: v for name in (names[:2] if is_sampled(self.variant) else names) for k, v in data.noise(name).items()
        }
        (shared / "inputs_noise.json").write_text(json.dumps(floors))
        if not self.normalise:
            return
        golden = np.concatenate([t["reward"].to_numpy() for t in data.rows(("reward",))] or [np.zeros(0)])
        spread = float(np.nanstd(golden)) if len(golden) else 0.0
        if not spread > 0:
            raise StepError(
                f"step {self.name}: the golden rewards do not vary, so `normalise` has nothing to divide by"
            )
        (shared / "spread.json").write_text(json.dumps(spread))

    def load(self, shared: Path) -> Transform:
        """Return a function that computes SEAM; it loads no model."""
        spread = float(json.loads((shared / "spread.json").read_text())) if self.normalise else 1.0

        def score(rows: pa.Table) -> pa.Table:
            return self._scored(rows, spread)

        return score

    def _scored(self, rows: pa.Table, spread: float) -> pa.Table:
        sets = rows[f"rewards_{self.variant}"].combine_chunks()
        lengths = pc.fill_null(pc.list_value_length(sets), 0).to_numpy(zero_copy_only=False)
        golden = _numbers(rows["reward"].combine_chunks())
        rewards = _numbers(rows[self.inputs[1]].combine_chunks().flatten())
        # How often each candidate was drawn: a worse answer that was made or found is one.
        drawn = _drawn(rows[f"worse_{self.variant}"]) if is_sampled(self.variant) else np.ones_like(rewards)
        # The source may bring its own rewards, with any values: those that cannot be compared are unknown, NaN.
        # All arrays are flat, (all candidates,); `ends` holds each row's end in them.
        if self.binary:
            # Where the golden response fails, its worse answers have nothing to compare with.
            golden = np.where(golden == 1, golden, np.nan)
            rewards = np.where((rewards == 0) | (rewards == 1), rewards, np.nan)
        with np.errstate(over="ignore", invalid="ignore"):
            by_golden = np.repeat(golden, lengths)
            differences = rewards + 0 * by_golden if self.binary else np.maximum(rewards - by_golden, 0.0) / spread
            misjudged = _finite_or_nan(differences)
            weights = drawn if is_sampled(self.variant) else self._likelihood_weights(rows)
        # ε = 0 makes the term 0 whatever w is; ε > 0 without w is an unknown term.
        is_known = (misjudged == 0) | ((misjudged > 0) & ~np.isnan(weights))
        terms = np.where(is_known & (misjudged > 0), weights * misjudged, 0.0).tolist()
        ends = np.concatenate([[0], np.cumsum(lengths)])
        # Candidates of each row that have a term, and those of them that are misjudged: (rows,)
        scored, wrong = (
            np.diff(np.concatenate([[0], np.cumsum(mask * drawn)])[ends]).astype(np.int64)
            for mask in (is_known, is_known & (misjudged > 0))
        )
        has_score = scored > 0
        sums = [math.fsum(terms[start:end]) for start, end in pairwise(ends)]
        total = np.where(has_score, np.array(sums) / np.maximum(scored, 1) * self.k, np.nan)
        # A set without a golden reward to compare with has no ε and no w.
        is_missing = pa.array(np.isnan(golden) | (lengths == 0))
        offsets = pa.array(ends, pa.int32())
        arrays = [
            pa.array(0.0 - total, mask=~has_score),
            pa.array(total, mask=~has_score),
            pa.array(wrong / np.maximum(scored, 1), mask=~has_score),
            pa.array(scored, pa.int32(), mask=sets.is_null().to_numpy(zero_copy_only=False)),
            *(
                pa.ListArray.from_arrays(offsets, pa.array(values, mask=np.isnan(values)), mask=is_missing)
                for values in (misjudged, weights)
            ),
        ]
        if is_sampled(self.variant):
            arrays.append(pa.array(self._reasons(rows, lengths, has_score), pa.string()))
        return pa.table(arrays, schema=self.adds)

    def _likelihood_weights(self, rows: pa.Table) -> Doubles:
        """Return the weight of each candidate, (all candidates,), NaN where its likelihood is unknown."""
        logprobs, counts = (_numbers(rows[name].combine_chunks().flatten()) for name in self.inputs[2:])
        return _finite_or_nan(weight(logprobs, counts, self.likelihood))

    def _reasons(
        self, rows: pa.Table, lengths: npt.NDArray[np.int64], has_score: npt.NDArray[np.bool_]
    ) -> list[str | None]:
        """Say why rows have no score; None for those that have one."""
        reasons: list[str | None] = []
        for golden, length, scored in zip(_numbers(rows["reward"].combine_chunks()), lengths, has_score, strict=True):
            if scored:
                reasons.append(None)
            elif not length:
                reasons.append(f"no sample, see reason_{self.variant}")
            elif math.isnan(golden):
                reasons.append("no golden response, or it has no reward")
            elif self.binary and golden != 1:
                reasons.append("the golden response fails the reward")
            else:
                reasons.append("no sample has a reward")
        return reasons

    def _noise(self, table: pa.Table, floors: dict[str, float]) -> float:
        """Bound the change of a row's score when every reward and likelihood changes by its own noise."""
        epsilon, w = (
            _numbers(table[f"{name}_{self.variant}"].combine_chunks().flatten())
            for name in ("misjudgements", "weights")
        )
        reward_noise = floors.get("reward", 0.0) + floors.get(f"rewards_{self.variant}", 0.0)
        per_token, per_sequence = floors.get(PER_TOKEN, 0.0), floors.get(f"logprobs_{self.variant}", 0.0)
        weight_noise: dict[Weighting, Doubles] = {
            "geometric": w * per_token,
            "logprob": np.full_like(w, per_token),
            "raw": w * per_sequence,
            "uniform": np.zeros_like(w),
        }
        # The first-order change of each term w·ε: w·Δε + ε·Δw.
        changes = np.nan_to_num((epsilon > 0) * (w * reward_noise + epsilon * weight_noise[self.likelihood]))
        lengths = pc.fill_null(pc.list_value_length(table[f"weights_{self.variant}"]), 0).to_numpy()
        ends = np.concatenate([[0], np.cumsum(changes)])[np.concatenate([[0], np.cumsum(lengths)])]
        counts = np.maximum(_numbers(table[f"candidates_{self.variant}"].combine_chunks()), 1)
        return float(np.nanmax(np.diff(ends) / counts * self.k, initial=0.0))

    def facts(self, columns: Iterable[pa.Table], shared: Path) -> dict[str, JsonValue]:
        """Count misjudged candidates over all rows, and bound the score's noise by that of its inputs."""
        noise_file = shared / "inputs_noise.json"
        floors = json.loads(noise_file.read_text()) if noise_file.exists() else {}
        largest = 0.0
        total = wrong = rows = scored = unknown = 0
        preferred: list[Doubles] = []
        for table in columns:
            epsilon, w = (
                _numbers(table[f"{name}_{self.variant}"].combine_chunks().flatten())
                for name in ("misjudgements", "weights")
            )
            unknown += int((np.isnan(epsilon) | ((epsilon > 0) & np.isnan(w))).sum())
            shares = _numbers(table[f"misjudged_{self.variant}"].combine_chunks())
            counts = _numbers(table[f"candidates_{self.variant}"].combine_chunks())
            largest = max(largest, self._noise(table, floors))
            has_score = ~np.isnan(shares)
            rows, scored = rows + table.num_rows, scored + int(has_score.sum())
            preferred.append(shares)
            total += int(counts[has_score].sum())
            wrong += int(np.rint(shares[has_score] * counts[has_score]).sum())
        rate = wrong / total if total else None
        checked = (
            golden_check.facts("reward", f"misjudged_{self.variant}", preferred) if is_sampled(self.variant) else {}
        )
        return {
            "rows": rows,
            "rows_scored": scored,
            "candidates": total,
            "misjudged": wrong,
            **({"warnings": [_left_out(self.name, unknown, not is_sampled(self.variant))]} if unknown else {}),
            **checked,
            **({"noise": {self.name: largest, f"discrepancy_{self.variant}": largest}} if floors else {}),
            "summary": f"{self.name}: {scored:,} of {counted(rows, 'row')} scored; "
            + (
                f"{wrong:,} of {counted(total, 'candidate')} misjudged ({rate:.1%})"
                if rate is not None
                else f"see seam_reason_{self.variant}"
                if is_sampled(self.variant)
                else "no candidates"
            ),
        }


def seam(
    variant: Variant = "contrast",
    *,
    reward: RewardingModel | None = None,
    policy: PolicyModel | None = None,
    likelihoods: Literal["misjudged", "all"] = "misjudged",
    likelihood: Weighting | None = None,
    k: int = 30,
    normalise: bool = False,
    binary: bool | None = None,
) -> tuple[Step, ...]:
    """Return the steps of one SEAM variant in order: rewards, likelihoods, score.

    Each option goes to the steps that have it; see `Reward`, `Rewards`, `PolicyLogprobs` and `Seam`. For a model that is
    None, the steps use the one that the recipe names.

    Variant `policy` needs no likelihoods: `Rollouts` draws the samples, and how often one was drawn is its weight.

    Raises:
        ValueError: `policy`, `likelihoods` or another `likelihood` than `uniform` is given for variant `policy`.

    Example:
        >>> from seamcurate import seam
        >>> [step.name for step in seam("adv")]
        ['reward', 'rewards_adv', 'logprobs_adv', 'seam_adv']
    """
    settings = {"k": k, "normalise": normalise, "binary": binary}
    score = Seam.model_validate(
        {"variant": variant, **settings, **({} if likelihood is None else {"likelihood": likelihood})}
    )
    rewards = Reward(reward=reward), Rewards(variant=variant, reward=reward)
    if not is_sampled(variant):
        return *rewards, PolicyLogprobs(variant=variant, policy=policy, likelihoods=likelihoods, binary=binary), score
    if policy is not None or likelihoods != "misjudged":
        raise ValueError(
            f"SEAM over the policy's own samples scores no likelihood; leave {'likelihoods' if policy is None else 'policy'} out"
        )
    return *rewards, score


def _drawn(sets: pa.ChunkedArray) -> Doubles:
    """Return how often each sample was drawn, (all samples,): once, where the sets of a source do not say."""
    samples = sets.combine_chunks().flatten()
    if samples.type.get_field_index("count") < 0:
        return np.ones(len(samples))
    return np.asarray(pc.fill_null(samples.field("count"), 1).to_numpy(zero_copy_only=False), np.float64)


def _sums(model: Policy) -> noise.Score:
    """Return a function that scores answers by their log-probability, summed and per token."""
    return lambda prompts, answers, further: [
        [None if entry is None else (entry.logprob, entry.logprob / max(entry.tokens, 1)) for entry in row]
        for row in model.logprobs(prompts, answers)
    ]


def _left_out(name: str, candidates: int, likelihoods: bool) -> str:
    score = "reward or likelihood" if likelihoods else "reward"
    return f"{name}: {counted(candidates, 'candidate is', 'candidates are')} left out, as their {score} is NULL"


def _finite_or_nan(values: Doubles) -> Doubles:
    """Replace numbers that are not finite by NaN."""
    return np.where(np.isfinite(values), values, np.nan)


def _numbers(values: pa.Array) -> Doubles:
    """Return numbers in double precision, NaN for those that are NULL or cannot be compared."""
    return comparable(values.cast(pa.float64()).to_numpy(zero_copy_only=False))


def _columns_read(reward: RewardingModel | None) -> tuple[str, ...]:
    return () if reward is None else reward.columns_read()


def _gives_reasons(reward: RewardingModel | None) -> bool:
    return reward is not None and reward.gives_reasons()


def _output_names(reward: RewardingModel | None) -> tuple[str, ...]:
    return () if reward is None else reward.output_names()


def _output_meaning(reward: RewardingModel | None, name: str) -> str:
    """Say what one of a reward model's outputs is."""
    if name == DISAGREEMENT and reward is not None and reward.member_names():
        return "the standard deviation over the members' rewards"
    return f"the reward model's output {name}"


def _compared_columns(reward: RewardingModel | None) -> tuple[str, ...]:
    """Name the columns that a reward model reads to score worse answers: an ensemble compares them with the golden response."""
    return (*_columns_read(reward), *([MEMBERS] if reward is not None and reward.member_names() else []))


def _disagreement(golden: object, ratings: Sequence[Rating] | None) -> float | None:
    """Return the share of a row's worse answers whose order an ensemble's members disagree on; None where none has rewards."""
    if not isinstance(golden, list) or not ratings:
        return None
    disputed = [value for rating in ratings if (value := differs(golden, rating.members)) is not None]
    return sum(disputed) / len(disputed) if disputed else None


def _further(rows: pa.Table, reward: RewardingModel | None) -> dict[str, list[object]]:
    """Return the columns that a reward model reads beside prompt and response, one value a row."""
    return {name: rows[name].to_pylist() for name in _columns_read(reward)}


def _sample(reward: RewardingModel | None, data: Data, shared: Path, answers: str, columns: Sequence[str]) -> None:
    """Store the rows that the reward model's noise is measured on."""
    if reward is not None:
        noise.sample(data, shared, answers, columns, _noise_rows(reward))


def _noise_rows(reward: RewardingModel) -> int:
    """Return how many rows the noise is measured on: for an ensemble, the most that a member asks for."""
    return max(model.noise_rows for model in reward.parts() if isinstance(model, RewardConfig))


def ask_ahead(reward: RewardingModel | None, data: Data, answers: str) -> None:
    """Ask for the rewards of all rows where they come in batches."""
    for model in reward.parts() if reward is not None else ():
        if isinstance(model, RewardConfig) and model.asks_ahead():
            model.load().ask_ahead(partial(_prompts_and_answers, data, answers))


def _prompts_and_answers(data: Data, answers: str) -> Iterator[tuple[Prompt, list[str]]]:
    """Iterate over all prompts with their answers: golden responses, or a sample set."""
    for table in data.rows(("prompt", answers)):
        for prompt, value in zip(table["prompt"].to_pylist(), table[answers].to_pylist(), strict=True):
            yield prompt, [value] if isinstance(value, str) else [candidate["response"] for candidate in value or []]


def _without_default(identity: dict[str, JsonValue], field: str) -> dict[str, JsonValue]:
    """Leave a field that is not set out of an identity, so that columns made before there was the field stay valid."""
    return {name: value for name, value in identity.items() if name != field or value}


def _reward_facts(columns: Iterable[pa.Table], name: str, reward: RewardingModel | None) -> dict[str, JsonValue]:
    """Count a column of rewards: its NULLs, and golden responses that fail; warn of 0/1 rewards that nobody called so."""
    failing = zero_or_one = 0
    tables: list[pa.Table] = []
    reasons: Counter[str] = Counter()
    reason_column = "reward_reason" if name == "reward" else f"rewards_reason_{name.removeprefix('rewards_')}"
    for table in columns:
        tables.append(table.select([name]))
        if reason_column in table.column_names:
            given = table[reason_column].combine_chunks()
            given = given.flatten() if pa.types.is_list(given.type) else given
            reasons.update(reason for reason in given.to_pylist() if reason is not None)
        values = table[name].combine_chunks()
        values = values.flatten() if pa.types.is_list(values.type) else values
        zero_or_one += pc.sum(pc.or_(pc.equal(values, 0), pc.equal(values, 1))).as_py() or 0
        if "golden_fails" in table.column_names:
            failing += pc.sum(table["golden_fails"]).as_py() or 0
    facts = _nulls(tables, name, reasons)
    if name == "reward" and reward is not None and (summary := reward.summary()):
        facts["summary"] = f"{name}: {summary}"
    warnings = facts.get("warnings", [])
    assert isinstance(warnings, list)
    if failing:
        facts["golden_fails"] = failing
        warnings.append(
            f"{counted(failing, 'golden response fails', 'golden responses fail')} the reward; such a row has no SEAM: "
            "SELECT row_id, reward FROM rows WHERE golden_fails"
        )
    binary = reward is not None and reward.is_binary()
    if not binary and zero_or_one == facts["scored"] and zero_or_one >= _ENOUGH:
        warnings.append(
            f"{name}: all {zero_or_one:,} rewards are 0 or 1, which SEAM's ε cannot tell apart; say `binary: true`"
        )
    return {**facts, "warnings": warnings} if warnings else facts


_ENOUGH = 20
"""Rewards from which one takes them to be 0 or 1 by nature."""


def _nulls(columns: Iterable[pa.Table], name: str, reasons: Counter[str]) -> dict[str, JsonValue]:
    """Count the scores of a column and its NULLs, and warn of them with the most frequent of the model's own reasons."""
    missing = total = 0
    for table in columns:
        values = table[name].combine_chunks()
        if pa.types.is_list(values.type):
            values = values.flatten()
        missing, total = missing + values.null_count, total + len(values)
    facts: dict[str, JsonValue] = {"scored": total - missing, "null": missing}
    if missing:
        why = "no room in the window or in memory, not finite, or a prompt that the model or its chat template cannot read"
        why = f"no golden response, {why}" if name == "reward" else why
        for reason, count in reasons.most_common(1):
            why = f"{count:,} for this reason: {reason}"
        facts["warnings"] = [f"{name}: {missing:,} of {total:,} scores are NULL: {why}"]
    return facts
