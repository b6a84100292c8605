"""The steps that ask a reward: for golden responses, and for sets of worse answers.

A score that is not finite is NULL, with its reason where the reward gives one.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from functools import partial
from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc
from pydantic import JsonValue
from typing_extensions import override

from seamcurate.models import Prompt, RewardingModel, roles, scales
from seamcurate.models.backend import RewardConfig
from seamcurate.models.ensemble import DISAGREEMENT, MEMBERS, RewardEnsemble, differs
from seamcurate.models.protocols import Rating
from seamcurate.score import compared, noise, precision
from seamcurate.step import Averages, Data, Step, Transform, Variant, Work, column, finite
from seamcurate.text import counted


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


def _reward_facts(columns: Iterable[pa.Table], name: str, reward: RewardingModel | None) -> dict[str, JsonValue]:
    """Count a column of rewards: its NULLs, and golden responses that fail; warn of 0/1 rewards that nobody called so."""
    failing = zero_or_one = missing = total = 0
    reasons: Counter[str] = Counter()
    reason_column = "reward_reason" if name == "reward" else f"rewards_reason_{name.removeprefix('rewards_')}"
    for table in columns:
        if reason_column in table.column_names:
            given = table[reason_column].combine_chunks()
            given = given.flatten() if pa.types.is_list(given.type) else given
            reasons.update(reason for reason in given.to_pylist() if reason is not None)
        values = table[name].combine_chunks()
        values = values.flatten() if pa.types.is_list(values.type) else values
        missing, total = missing + values.null_count, total + len(values)
        zero_or_one += pc.sum(pc.or_(pc.equal(values, 0), pc.equal(values, 1))).as_py() or 0
        if "golden_fails" in table.column_names:
            failing += pc.sum(table["golden_fails"]).as_py() or 0
    facts = _nulls(name, missing, total, reasons)
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


def _nulls(name: str, missing: int, total: int, reasons: Counter[str]) -> dict[str, JsonValue]:
    """Tell of a column's scores and its NULLs, and warn of them with the most frequent of the model's own reasons."""
    facts: dict[str, JsonValue] = {"scored": total - missing, "null": missing}
    if missing:
        why = "no room in the window or in memory, not finite, or a prompt that the model or its chat template cannot read"
        why = f"no golden response, {why}" if name == "reward" else why
        for reason, count in reasons.most_common(1):
            why = f"{count:,} for this reason: {reason}"
        facts["warnings"] = [f"{name}: {missing:,} of {total:,} scores are NULL: {why}"]
    return facts
