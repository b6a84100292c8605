"""SEAM: how much a reward model's misjudgements matter to a policy, per prompt (SEAM §4, Eq. 2).

Rewards come first: a candidate that the reward model ranks below the golden response has misjudgement 0 and adds
nothing, so the policy scores only the other candidates.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable
from itertools import pairwise
from pathlib import Path
from typing import Any, ClassVar, Literal, Self

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
from pydantic import Field, JsonValue, model_validator
from typing_extensions import override

from seamcurate.errors import StepError
from seamcurate.models import PolicyModel, RewardingModel
from seamcurate.score import golden_check
from seamcurate.score.discrepancy import Doubles, Weighting, weight
from seamcurate.score.likelihood import PER_TOKEN, PolicyLogprobs
from seamcurate.score.reward import Reward, Rewards
from seamcurate.step import (
    Data,
    Step,
    Transform,
    Variant,
    column,
    comparable,
    is_sampled,
    sample_set,
    without_default,
)
from seamcurate.text import counted

_ROUNDING = 0.01
"""How far rounding may take a sum of log-probabilities above 0."""


class Seam(Step):
    """Add SEAM and its parts; `seam_<variant>` is minus the discrepancy (SEAM Eq. 2), so that **low is bad**.

    A row is NULL when its set is empty or no candidate in it could be scored. A candidate whose reward is unknown, or
    whose likelihood is needed and unknown, is left out of the mean; it does not count as 0. A candidate that is the golden
    response to the letter is never misjudged.

    Raises:
        StepError: By `prepare`, where `normalise` is set and the golden rewards do not vary; or a log-probability that the
            source brings is above 0.

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
        return without_default(super().identity(), "binary")

    @property
    @override
    def inputs(self) -> tuple[str, ...]:
        v = self.variant
        if is_sampled(v):
            return ("reward", f"rewards_{v}", f"worse_{v}")
        return ("reward", f"rewards_{v}", f"logprobs_{v}", f"tokens_{v}")

    @property
    @override
    def optional_inputs(self) -> tuple[str, ...]:
        """Read the answers' texts: a candidate that is the golden response is not preferred to it.

        Of answers to other instructions there are none: retrieval leaves equal ones out.
        """
        return () if sample_set(self.variant).instructions else ("response", f"worse_{self.variant}")

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
            # The same text has two rewards that differ by the rounding of two batches, or by a judge's draws.
            misjudged[_golden_texts(rows, self.variant, lengths) & (misjudged > 0)] = 0.0
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
        # Of a source: a policy's own are at most 0, but for rounding.
        if (above := logprobs[logprobs > _ROUNDING]).size:
            raise StepError(
                f"step {self.name}: {self.inputs[2]} holds {above[0]:g}, and no log-probability is above 0; give the "
                "logarithm itself, not its negative"
            )
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


def _golden_texts(rows: pa.Table, variant: str, lengths: npt.NDArray[np.int64]) -> npt.NDArray[np.bool_]:
    """Tell which candidates are their row's golden response to the letter, (all candidates,); none without texts."""
    equal = np.zeros(int(lengths.sum()), bool)
    if {"response", f"worse_{variant}"} <= set(rows.column_names):
        answers = rows[f"worse_{variant}"].combine_chunks().flatten()
        if answers.type.get_field_index("response") >= 0:
            golden = rows["response"].combine_chunks().take(pa.array(np.repeat(np.arange(len(lengths)), lengths)))
            equal = pc.fill_null(pc.equal(pc.struct_field(answers, "response"), golden), False).to_numpy(
                zero_copy_only=False
            )
    return equal


def _drawn(sets: pa.ChunkedArray) -> Doubles:
    """Return how often each sample was drawn, (all samples,): once, where the sets of a source do not say."""
    samples = sets.combine_chunks().flatten()
    if samples.type.get_field_index("count") < 0:
        return np.ones(len(samples))
    return np.asarray(pc.fill_null(samples.field("count"), 1).to_numpy(zero_copy_only=False), np.float64)


def _left_out(name: str, candidates: int, likelihoods: bool) -> str:
    score = "reward or likelihood" if likelihoods else "reward"
    return f"{name}: {counted(candidates, 'candidate is', 'candidates are')} left out, as their {score} is NULL"


def _finite_or_nan(values: Doubles) -> Doubles:
    """Replace numbers that are not finite by NaN."""
    return np.where(np.isfinite(values), values, np.nan)


def _numbers(values: pa.Array) -> Doubles:
    """Return numbers in double precision, NaN for those that are NULL or cannot be compared."""
    return comparable(values.cast(pa.float64()).to_numpy(zero_copy_only=False))
