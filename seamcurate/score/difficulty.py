"""A prompt's profile from the policy's own samples: how often they pass, how far their rewards spread, where a reward is hacked.

Every number is weighed by how often a sample was drawn, and each formula is one pure function here. The rewards are those of
`rewards_policy`: nothing is scored twice.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from pathlib import Path
from typing import ClassVar, NamedTuple, TypeAlias

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
from pydantic import JsonValue
from typing_extensions import override

from seamcurate.errors import StepError
from seamcurate.models import RewardingModel
from seamcurate.models.roles import SingleReward
from seamcurate.score import compared, golden_check, noise, precision, proportions
from seamcurate.score.reward import Rewards, ask_ahead
from seamcurate.step import Averages, Data, Step, Transform, Work, column, comparable, finite
from seamcurate.text import counted

Doubles: TypeAlias = npt.NDArray[np.float64]
Positions: TypeAlias = npt.NDArray[np.int64]

_ENOUGH = 20
"""Samples from which one takes what all of them have in common for a property of the reward."""


class Samples(NamedTuple):
    """The samples of some rows as flat arrays: one element a distinct sample."""

    rows: int
    owner: Positions
    """(samples,): the row that each is of."""
    counts: Doubles
    """(samples,): how often each was drawn."""

    def total(self, values: Doubles) -> Doubles:
        """Return the sum of each row's values, weighed by counts: (rows,)."""
        sums = np.bincount(self.owner, weights=values * self.counts, minlength=self.rows)
        return np.asarray(sums, np.float64)

    def share(self, holds: npt.NDArray[np.bool_], known: npt.NDArray[np.bool_]) -> Doubles:
        """Return the share of each row's known samples for which something holds, (rows,); NaN for a row without any."""
        return ratio(self.total((holds & known).astype(np.float64)), self.total(known.astype(np.float64)))

    def extreme(self, values: Doubles, which: np.ufunc) -> Doubles:
        """Return the largest (`np.fmax`) or smallest (`np.fmin`) of each row's values, (rows,); NaN for a row without any."""
        extremes = np.full(self.rows, np.nan)
        which.at(extremes, self.owner, values)
        return extremes


def ratio(part: Doubles, whole: Doubles) -> Doubles:
    """Return part / whole, NaN where whole is 0."""
    return np.where(whole > 0, part / np.where(whole > 0, whole, 1.0), np.nan)


def spread(samples: Samples, rewards: Doubles) -> Doubles:
    """Return the standard deviation of each row's rewards, (rows,), with n − 1 as in GRPO; NaN below two samples.

    Args:
        samples: The samples.
        rewards: (samples,), NaN for those that are unknown.
    """
    known = ~np.isnan(rewards)
    values, count = np.where(known, rewards, 0.0), samples.total(known.astype(np.float64))
    mean = ratio(samples.total(values), count)
    squares = samples.total(np.where(known, (values - mean[samples.owner]) ** 2, 0.0))
    deviation = np.sqrt(ratio(squares, np.where(count > 1, count - 1, 0)))
    # Equal rewards do not spread, whatever their mean is rounded to.
    equal = samples.extreme(rewards, np.fmax) == samples.extreme(rewards, np.fmin)
    return np.where(equal & (count > 1), 0.0, deviation)


class Difficulty(Step):
    """Add the profile of a prompt from the policy's samples and their rewards: `rollout_pass_rate` and what follows from it.

    A sample passes whose reward is at least `threshold`. Of rewards that are 0 or 1 the threshold is 1; for any other reward
    it must be given. All numbers weigh a sample by how often it was drawn, and leave out samples without a reward. Two
    samples are needed for a spread: `rollout_reward_std` and `rollout_zero_advantage` are NULL for a single one. All
    are NULL without a sample. `rollout_above_golden` is NULL without a golden response, and where no step `reward` comes before.

    Raises:
        StepError: By `load`, where there is no threshold.

    Example:
        >>> from pathlib import Path
        >>> import pyarrow as pa
        >>> from seamcurate import Difficulty
        >>> worse = [{"response": "4", "count": 3}, {"response": "5", "count": 1}]
        >>> row = {"worse_policy": worse, "rewards_policy": [1.0, 0.0], "reward": 1.0}
        >>> profile = Difficulty(threshold=1).load(Path())(pa.Table.from_pylist([row])).to_pylist()[0]
        >>> profile["rollout_pass_rate"], profile["rollout_reward_std"], profile["rollout_zero_advantage"]
        (0.75, 0.5, False)
    """

    threshold: float | None = None
    """The least reward of a sample that passes; 1 where rewards are 0 or 1."""

    variant: ClassVar[str] = "policy"
    rows_per_call: ClassVar[int] = 4096

    @property
    @override
    def inputs(self) -> tuple[str, ...]:
        return ("worse_policy", "rewards_policy")

    @property
    @override
    def optional_inputs(self) -> tuple[str, ...]:
        return ("reward",)

    @property
    @override
    def adds(self) -> pa.Schema:
        passes = f"share of samples with a reward of at least {_number(self.threshold)}"
        return pa.schema(
            [
                column("rollout_pass_rate", pa.float64(), passes),
                column("rollout_pass_low", pa.float64(), "lower end of the pass rate's 95 % interval (Wilson)"),
                column("rollout_pass_high", pa.float64(), "upper end of the pass rate's 95 % interval (Wilson)"),
                column("rollout_reward_mean", pa.float64(), "mean reward of the samples"),
                column("rollout_reward_std", pa.float64(), "standard deviation of their rewards (n − 1); NULL for one"),
                column("rollout_reward_best", pa.float64(), "highest reward of a sample"),
                column(
                    "rollout_zero_advantage",
                    pa.bool_(),
                    "whether all samples have one reward, which gives no gradient under GRPO; NULL for one sample",
                ),
                column("rollout_above_golden", pa.float64(), "share of samples with a higher reward than golden's"),
                column("rollout_samples", pa.int32(), "samples with a reward"),
                column("rollout_distinct", pa.int32(), "distinct texts among the samples"),
                column("rollout_truncated", pa.float64(), "share of samples that were cut at max_tokens"),
                column("rollout_tokens", pa.float64(), "mean length of a sample in the policy's tokens"),
            ]
        )

    @override
    def load(self, shared: Path) -> Transform:
        if self.threshold is None:
            raise StepError(no_threshold(self.name, "threshold"))
        threshold = self.threshold

        def profile(rows: pa.Table) -> pa.Table:
            samples, fields = _samples(rows)
            rewards = _flat(rows["rewards_policy"])
            known = ~np.isnan(rewards)
            count = samples.total(known.astype(np.float64))
            pass_rate = samples.share(rewards >= threshold, known)
            low, high = proportions.wilson(pass_rate, count)
            best = samples.extreme(rewards, np.fmax)
            golden_reward = (
                comparable(_doubles(rows["reward"])) if "reward" in rows.column_names else np.full(len(rows), np.nan)
            )
            against = golden_reward[samples.owner]
            has_samples = samples.total(np.ones(len(rewards))) > 0
            tokens, finish = (fields.get(name) for name in ("tokens", "finish"))
            values: dict[str, npt.NDArray[np.generic]] = {
                "rollout_pass_rate": pass_rate,
                "rollout_pass_low": low,
                "rollout_pass_high": high,
                "rollout_reward_mean": ratio(samples.total(np.where(known, rewards, 0.0)), count),
                "rollout_reward_std": spread(samples, rewards),
                "rollout_reward_best": best,
                "rollout_zero_advantage": best == samples.extreme(rewards, np.fmin),
                "rollout_above_golden": samples.share(rewards > against, known & ~np.isnan(against)),
                "rollout_samples": count,
                "rollout_distinct": _distinct(samples, fields["response"]),
                "rollout_truncated": np.full(len(rows), np.nan)
                if finish is None
                else samples.share(_equal(finish, "length"), finish.is_valid().to_numpy(zero_copy_only=False)),
                "rollout_tokens": np.full(len(rows), np.nan) if tokens is None else _mean(samples, _doubles(tokens)),
            }
            masks = {
                "rollout_zero_advantage": count < 2,
                "rollout_samples": ~has_samples,
                "rollout_distinct": ~has_samples,
            }
            return _table(values, masks, self.adds)

        return profile

    @override
    def facts(self, columns: Iterable[pa.Table], shared: Path) -> dict[str, JsonValue]:
        """Sum the profile up, and warn of a reward or a threshold that tells no samples apart."""
        names = ("pass_rate", "reward_best", "reward_mean", "above_golden", "samples", "zero_advantage")
        parts = [{name: _doubles(table[f"rollout_{name}"]) for name in names} for table in columns]
        whole = {name: np.concatenate([part[name] for part in parts] or [np.zeros(0)]) for name in names}
        rates = whole["pass_rate"][~np.isnan(whole["pass_rate"])]
        if not len(rates):
            return {"summary": f"{self.name}: no row has a sample with a reward"}
        samples = int(np.nansum(whole["samples"]))
        alike = whole["zero_advantage"][~np.isnan(whole["zero_advantage"])]
        always, never = float((rates == 1).mean()), float((rates == 0).mean())
        summary = (
            f"{self.name}: pass rate {rates.mean():.2f} at a threshold of {_number(self.threshold)}; of {counted(len(rates), 'row')}, "
            f"{always:.0%} always pass and {never:.0%} never"
            + (f", {alike.mean():.0%} have zero advantage" if len(alike) else "")
        )
        warnings: list[JsonValue] = []
        best = whole["reward_best"][~np.isnan(whole["reward_best"])]
        constant = (not len(alike) or bool(alike.all())) and bool((best == best[0]).all())
        if samples >= _ENOUGH and constant:
            warnings.append(
                f"{self.name}: all {samples:,} rewards are {_number(float(best[0]))}: such a reward tells no answers apart"
            )
        elif samples >= _ENOUGH and always == 1:
            warnings.append(
                f"{self.name}: every sample passes: the threshold, {_number(self.threshold)}, is below all rewards"
            )
        elif samples >= _ENOUGH and never == 1:
            warnings.append(
                f"{self.name}: no sample passes: the threshold, {_number(self.threshold)}, is above all rewards, "
                f"which end at {_number(float(best.max()))}"
            )
        checked = golden_check.facts("reward", "rollout_above_golden", (part["above_golden"] for part in parts))
        return {
            "rows_scored": len(rates),
            "samples": samples,
            "pass_rate": float(rates.mean()),
            "always": always,
            "never": never,
            **checked,
            "summary": summary,
            "warnings": warnings,
        }


class Truth(Step):
    """Add `truth_policy`: a second opinion's score of each of the policy's samples, and `truth_golden`: of the golden response.

    The second opinion is any reward model: another classifier, a verifier, a judge. `truth_above_golden` is the share of
    samples that it scores above the golden response; it and `truth_golden` are NULL without a golden response.

    Raises:
        StepError: By `load`, where there is no second opinion.
        ModelError: By `load`, where it cannot be loaded.

    Example:
        >>> from pathlib import Path
        >>> import pyarrow as pa
        >>> from seamcurate import FakeModel, Truth
        >>> rows = pa.table({"prompt": ["2 + 2?"], "worse_policy": [[{"response": "4"}, {"response": "5"}]], "response": ["4"]})
        >>> scored = Truth(truth=FakeModel()).load(Path())(rows).to_pylist()[0]
        >>> scored["truth_policy"][0] == scored["truth_golden"], len(scored["truth_policy"])
        (True, 2)
    """

    truth: SingleReward | None = None
    """A second opinion: another reward model, a verifier, a judge."""
    variant: ClassVar[str] = "policy"

    @property
    @override
    def name(self) -> str:
        return "truth_policy"

    @property
    @override
    def inputs(self) -> tuple[str, ...]:
        read = () if self.truth is None else self.truth.columns_read()
        return tuple(dict.fromkeys(("prompt", "worse_policy", *read)))

    @property
    @override
    def optional_inputs(self) -> tuple[str, ...]:
        return () if "response" in self.inputs else ("response",)

    @property
    @override
    def adds(self) -> pa.Schema:
        fields = [
            column("truth_golden", pa.float64(), "the second opinion's score of the golden response"),
            column("truth_policy", pa.list_(pa.float64()), "the second opinion's score of each sample in worse_policy"),
            column("truth_above_golden", pa.float64(), "share of samples that it scores above the golden response"),
        ]
        if self.truth is not None and self.truth.gives_reasons():
            meaning = "why the second opinion gives a sample no score; NULL where it does"
            fields.append(column("truth_reason_policy", pa.list_(pa.string()), meaning))
        return pa.schema(fields)

    @override
    def work(self, rows: Averages) -> list[Work]:
        if self.truth is None:
            return []
        return self.truth.work(
            rows.candidates + 1, rows.candidates * (rows.prompt + rows.candidate) + rows.prompt + rows.response
        )

    @override
    def first_work(self, rows: Averages, count: int) -> list[Work]:
        """Measure the noise floor."""
        if self.truth is None:
            return []
        answers = min(self.truth.noise_rows, count) * min(self.truth.noise_answers, rows.candidates)
        return self.truth.noise_work(answers, answers * (rows.prompt + rows.candidate))

    @override
    def prepare(self, data: Data, shared: Path) -> None:
        """Store a few rows for the noise floor, and ask for all scores that come in batches."""
        if self.truth is None:
            return
        read = self.truth.columns_read()
        noise.sample(data, shared, "worse_policy", read, self.truth.noise_rows)
        compared.sample(self.truth, data, shared, "worse_policy", read)
        precision.sample(self.truth, data, shared, "worse_policy", read)
        ask_ahead(self.truth, data, "worse_policy")

    @override
    def load(self, shared: Path) -> Transform:
        if self.truth is None:
            raise StepError(f"step {self.name} has no second opinion; say `difficulty: {{truth: {{function: …}}}}`")
        model, read = self.truth.load(), self.truth.columns_read()
        unchanged = compared.check(self.truth, model, shared, noise.rewards)
        names = [self.name, *(f"truth_{name}" for name in self.truth.output_names())]
        precision.measure(self.truth, model, shared, names, noise.rewards)
        noise.measure_rewards(shared, names, model)

        def score(rows: pa.Table) -> pa.Table:
            sets, goldens = rows["worse_policy"].to_pylist(), _goldens(rows)
            groups = [
                [sample["response"] for sample in samples or []] + ([] if response is None else [response])
                for samples, response in zip(sets, goldens, strict=True)
            ]
            further = {name: rows[name].to_pylist() for name in read}
            ratings = model.ratings(rows["prompt"].to_pylist(), groups, further)
            unchanged()
            scores = [[finite(rating.reward) for rating in row] for row in ratings]
            of_samples = [
                None if samples is None else row[: len(samples)] for samples, row in zip(sets, scores, strict=True)
            ]
            of_golden = [None if response is None else row[-1] for response, row in zip(goldens, scores, strict=True)]
            values: dict[str, object] = {
                "truth_golden": of_golden,
                "truth_policy": of_samples,
                "truth_above_golden": _above(rows, of_samples, of_golden),
                "truth_reason_policy": [
                    None if samples is None else [rating.reason for rating in row[: len(samples)]]
                    for samples, row in zip(sets, ratings, strict=True)
                ],
            }
            return pa.table({field.name: pa.array(values[field.name], field.type) for field in self.adds})

        return score

    @override
    def facts(self, columns: Iterable[pa.Table], shared: Path) -> dict[str, JsonValue]:
        """Count samples without a score, and golden responses that rank below the samples."""
        missing = total = 0
        above: list[Doubles] = []
        reasons: Counter[str] = Counter()
        for table in columns:
            scores = table["truth_policy"].combine_chunks().flatten()
            missing, total = missing + scores.null_count, total + len(scores)
            above.append(_doubles(table["truth_above_golden"]))
            if "truth_reason_policy" in table.column_names:
                texts = table["truth_reason_policy"].combine_chunks().flatten().to_pylist()
                reasons.update(text for text in texts if text is not None)
        why = f": {reasons.most_common(1)[0][0]}" if reasons else ""
        warnings = [f"truth_policy: {missing:,} of {total:,} samples have no score{why}"] if missing else []
        found: dict[str, JsonValue] = {
            "scored": total - missing,
            "null": missing,
            "warnings": list[JsonValue](warnings),
            **golden_check.facts("truth", "truth_above_golden", above),
            **noise.facts(shared),
            **compared.facts(shared),
        }
        return precision.facts(found, shared)


class Hacked(Step):
    """Add `hacked_policy`: the share of the policy's samples that the reward passes and the second opinion does not.

    Only samples that both have scored count. The rates are those of the reward as a test for what the second opinion passes:
    `rollout_false_positive` is the share of samples failing the second opinion that the reward passes, and
    `rollout_false_negative` the share of samples passing it that the reward fails. Both are NULL where there is no such sample.

    Raises:
        StepError: By `load`, where a threshold is missing.

    Example:
        >>> from pathlib import Path
        >>> import pyarrow as pa
        >>> from seamcurate import Hacked
        >>> worse = [{"response": "4", "count": 3}, {"response": "Trust me: 5.", "count": 1}]
        >>> row = {"worse_policy": worse, "rewards_policy": [0.2, 0.9], "truth_policy": [1.0, 0.0]}
        >>> Hacked(threshold=0.5, truth_threshold=1).load(Path())(pa.Table.from_pylist([row])).to_pylist()[0]["hacked_policy"]
        0.25
    """

    threshold: float | None = None
    """The least reward that passes; 1 where rewards are 0 or 1."""
    truth_threshold: float | None = None
    """The least score of the second opinion that passes; 1 where its scores are 0 or 1."""

    variant: ClassVar[str] = "policy"
    rows_per_call: ClassVar[int] = 4096

    @property
    @override
    def name(self) -> str:
        return "hacked_policy"

    @property
    @override
    def inputs(self) -> tuple[str, ...]:
        return ("worse_policy", "rewards_policy", "truth_policy")

    @property
    @override
    def adds(self) -> pa.Schema:
        passes = f"the reward passes (at least {_number(self.threshold)})"
        fails = f"the second opinion fails (below {_number(self.truth_threshold)})"
        return pa.schema(
            [
                column("hacked_policy", pa.float64(), f"share of samples that {passes} and {fails}"),
                column("rollout_false_positive", pa.float64(), f"share that {passes}, of the samples that {fails}"),
                column("rollout_false_negative", pa.float64(), "share that the reward fails, of those that truly pass"),
                column("rollout_true_pass_rate", pa.float64(), "share of samples that the second opinion passes"),
            ]
        )

    @override
    def load(self, shared: Path) -> Transform:
        for name in ("threshold", "truth_threshold"):
            if getattr(self, name) is None:
                raise StepError(no_threshold(self.name, name))
        threshold, truth_threshold = self.threshold, self.truth_threshold
        assert threshold is not None and truth_threshold is not None

        def score(rows: pa.Table) -> pa.Table:
            samples, _ = _samples(rows)
            rewards, truths = _flat(rows["rewards_policy"]), _flat(rows["truth_policy"])
            known = ~np.isnan(rewards) & ~np.isnan(truths)
            passes, truly = rewards >= threshold, truths >= truth_threshold
            values: dict[str, npt.NDArray[np.generic]] = {
                "hacked_policy": samples.share(passes & ~truly, known),
                "rollout_false_positive": samples.share(passes, known & ~truly),
                "rollout_false_negative": samples.share(~passes, known & truly),
                "rollout_true_pass_rate": samples.share(truly, known),
            }
            return _table(values, {}, self.adds)

        return score

    @override
    def facts(self, columns: Iterable[pa.Table], shared: Path) -> dict[str, JsonValue]:
        shares = np.concatenate([_doubles(table[self.name]) for table in columns] or [np.zeros(0)])
        shares = shares[~np.isnan(shares)]
        if not len(shares):
            return {"summary": f"{self.name}: no sample has both scores"}
        return {
            "rows_scored": len(shares),
            "hacked": float(shares.mean()),
            "summary": f"{self.name}: {shares.mean():.1%} of the samples pass the reward and fail the second opinion; "
            f"{(shares > 0).mean():.0%} of {counted(len(shares), 'row has', 'rows have')} such samples",
        }


def difficulty(
    threshold: float | None = None,
    *,
    truth: SingleReward | None = None,
    truth_threshold: float | None = None,
    reward: RewardingModel | None = None,
) -> tuple[Step, ...]:
    """Return the steps of a prompt's profile in order: rewards of the policy's samples, `Difficulty`, and with a truth `Hacked`.

    Args:
        threshold: The least reward of a sample that passes; 1 where rewards are 0 or 1, else it must be given.
        truth: A second opinion: another reward model, a verifier, a judge; see `Truth`.
        truth_threshold: Its own threshold, as `threshold`.
        reward: The reward model; None is the recipe's.

    Raises:
        ValueError: `truth_threshold` is given without `truth`.

    Example:
        >>> from seamcurate import FakeModel, difficulty
        >>> [step.name for step in difficulty(0.5, truth=FakeModel(), truth_threshold=0)]
        ['rewards_policy', 'difficulty', 'truth_policy', 'hacked_policy']
    """
    profile = Rewards(variant="policy", reward=reward), Difficulty(threshold=threshold)
    if truth is None:
        if truth_threshold is not None:
            raise ValueError("truth_threshold is of a second opinion; name one as truth, or leave it out")
        return profile
    return *profile, Truth(truth=truth), Hacked(threshold=threshold, truth_threshold=truth_threshold)


def no_threshold(step: str, name: str) -> str:
    """Say that a step lacks a threshold."""
    whose = "rewards" if name == "threshold" else "scores of the truth"
    return f"step {step} needs a {name}: only {whose} of 0 and 1 say what passes; give difficulty a {name}, such as `{name}: 0.5`"


def _samples(rows: pa.Table) -> tuple[Samples, dict[str, pa.Array]]:
    """Return the samples of rows, and the flat fields of `worse_policy` by name."""
    sets = rows["worse_policy"].combine_chunks()
    lengths = pc.fill_null(pc.list_value_length(sets), 0).to_numpy(zero_copy_only=False)
    flat = sets.flatten()
    fields = {field.name: flat.field(field.name) for field in flat.type}
    # A set that a source brings may not say how often a sample was drawn: once.
    counts = _doubles(pc.fill_null(fields["count"], 1)) if "count" in fields else np.ones(len(flat))
    return Samples(len(rows), np.repeat(np.arange(len(rows)), lengths), counts), fields


def _flat(lists: pa.ChunkedArray) -> Doubles:
    return comparable(_doubles(lists.combine_chunks().flatten()))


def _doubles(values: pa.Array | pa.ChunkedArray) -> Doubles:
    """Return numbers, or truth values as 0 and 1, in double precision; NaN for NULL."""
    values = values.combine_chunks() if isinstance(values, pa.ChunkedArray) else values
    return np.asarray(pc.cast(values, pa.float64()).to_numpy(zero_copy_only=False), np.float64)


def _distinct(samples: Samples, texts: pa.Array) -> Doubles:
    """Return the number of distinct texts of each row, (rows,): elements of one text may end in different ways."""
    codes = texts.dictionary_encode().indices.to_numpy(zero_copy_only=False)
    pairs = np.unique(np.stack([samples.owner, codes.astype(np.int64)]), axis=1)
    return np.bincount(pairs[0], minlength=samples.rows).astype(np.float64)


def _equal(texts: pa.Array, text: str) -> npt.NDArray[np.bool_]:
    return np.asarray(pc.fill_null(pc.equal(texts, text), False).to_numpy(zero_copy_only=False), bool)


def _mean(samples: Samples, values: Doubles) -> Doubles:
    known = ~np.isnan(values)
    return ratio(samples.total(np.where(known, values, 0.0)), samples.total(known.astype(np.float64)))


def _goldens(rows: pa.Table) -> list[str | None]:
    return rows["response"].to_pylist() if "response" in rows.column_names else [None] * len(rows)


def _above(rows: pa.Table, of_samples: list[list[float | None] | None], of_golden: list[float | None]) -> pa.Array:
    """Return the share of each row's samples that score above its golden response; NULL where there is none to compare."""
    samples, _ = _samples(rows)
    scores = _doubles(pa.array([score for row in of_samples for score in row or []], pa.float64()))
    against = _doubles(pa.array(of_golden, pa.float64()))[samples.owner]
    shares = samples.share(scores > against, ~np.isnan(scores) & ~np.isnan(against))
    return pa.array(shares, mask=np.isnan(shares))


def _table(
    values: dict[str, npt.NDArray[np.generic]], masks: dict[str, npt.NDArray[np.bool_]], schema: pa.Schema
) -> pa.Table:
    """Return columns with NULL where a mask, or NaN, says so."""
    arrays = []
    for field in schema:
        column_values = values[field.name]
        mask = masks.get(field.name, np.isnan(column_values))
        known = np.where(mask, 0, column_values)
        array = known.astype(bool) if pa.types.is_boolean(field.type) else known
        arrays.append(pa.array(array, mask=mask).cast(field.type))
    return pa.table(arrays, schema=schema)


def _number(value: float | None) -> str:
    return "the threshold" if value is None else f"{value:g}"
