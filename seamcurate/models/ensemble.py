"""Ensembles: one reward from several reward models, and how far they disagree.

Rewards are combined on one scale: members of different scales are standardised by the mean and the standard deviation of
their golden rewards. Where a member has no reward, the ensemble has none.
"""

from __future__ import annotations

import datetime
import math
import statistics
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Annotated, ClassVar, Literal, NamedTuple, Self, TypeAlias

from pydantic import BeforeValidator, Field, JsonValue, model_validator

from seamcurate.errors import ModelError
from seamcurate.models import labels
from seamcurate.models.backend import Backend, RewardConfig
from seamcurate.models.labels import Outputs
from seamcurate.models.protocols import Columns, Prompt, Rating, Responses, RewardModel
from seamcurate.models.reward_server import RewardServer
from seamcurate.models.sequence_classifier import SequenceClassifier
from seamcurate.step import Work, finite

if TYPE_CHECKING:
    from seamcurate.models.roles import SingleReward

MEMBERS = "reward_members"
"""The column with the members' rewards of the golden response: what those of a worse answer are compared with."""
DISAGREEMENT = "disagreement"
"""The output that every ensemble has: the standard deviation over its members."""

Combine: TypeAlias = Literal["mean", "min", "worst-case"]
Numbers: TypeAlias = Sequence[float]


class Scale(NamedTuple):
    """What a member's rewards are standardised by: (reward − mean) / deviation."""

    mean: float
    deviation: float


def combined(rewards: Numbers, combine: Combine, golden: Numbers | None = None) -> float:
    """Return an ensemble's reward of one answer.

    `worst-case` is for a worse answer the ensemble's reward of the golden response plus the largest margin of any member over
    it, so that SEAM's ε is the largest of the members'. Of the golden response itself it is the mean.

    Args:
        rewards: The members' rewards on one scale.
        combine: How they are combined.
        golden: The members' rewards of the golden response; None for the golden response itself.

    Example:
        >>> combined([1.0, 3.0], "mean"), combined([1.0, 3.0], "min")
        (2.0, 1.0)
        >>> combined([1.0, 3.0], "worst-case", golden=[2.0, 2.0])
        3.0
    """
    if combine == "min":
        return min(rewards)
    if combine == "worst-case" and golden is not None:
        return statistics.fmean(golden) + max(r - g for r, g in zip(rewards, golden, strict=True))
    return statistics.fmean(rewards)


def spread(rewards: Numbers) -> float:
    """Return the standard deviation over the members, of the population: they are all there are.

    Example:
        >>> spread([1.0, 3.0])
        1.0
    """
    mean = math.fsum(rewards) / len(rewards)
    return math.sqrt(math.fsum((reward - mean) ** 2 for reward in rewards) / len(rewards))


def differs(golden: Sequence[float | None], worse: Sequence[float | None]) -> bool | None:
    """Tell whether some members prefer a worse answer to the golden response and some do not; None without all rewards.

    Example:
        >>> differs([0.0, 0.0], [1.0, -1.0]), differs([0.0, 0.0], [1.0, 2.0]), differs([0.0, None], [1.0, 2.0])
        (True, False, None)
    """
    margins = [w - g for w, g in zip(worse, golden, strict=True) if w is not None and g is not None]
    if len(margins) < len(golden):
        return None
    return any(margin > 0 for margin in margins) and any(margin <= 0 for margin in margins)


def _as_list(value: object) -> object:
    if not isinstance(value, list | tuple):
        raise ValueError(f"ensemble is a list of reward models, not {str(value)[:40]}")
    if any(
        isinstance(member, RewardEnsemble) or (isinstance(member, dict) and "ensemble" in member) for member in value
    ):
        raise ValueError("an ensemble has no ensembles as members; list their members")
    return value


class RewardEnsemble(RewardConfig):
    """Name several reward models that give one reward together; members are of any kind but this one.

    Each answer gets the members' mean, or their lowest reward (`min`). `worst-case` is for SEAM alone: there the misjudgement
    of a worse answer is the largest of any member. An answer without a reward of some member has none, with the member's reason.
    Members of different scales are refused unless `normalise` or `scales` brings them to one.

    Steps add the members' spread, `reward_disagreement`, and the share of worse answers that some members prefer to the golden
    response and others do not, `disagreement_{variant}`.

    Raises:
        ValueError: The members are fewer than two, equal, or of different scales (as pydantic's ValidationError).
        ModelError: By `load`, where `normalise` is set and no scales were measured.

    Example:
        >>> from seamcurate import FakeModel, RewardEnsemble
        >>> ensemble = RewardEnsemble(ensemble=[FakeModel(path="a"), FakeModel(path="b")], combine="min")
        >>> ((reward,),) = ensemble.load().rewards(["What is a set?"], [["A collection."]])
        >>> reward == min(model.load().rewards(["What is a set?"], [["A collection."]])[0][0] for model in ensemble.ensemble)
        True
    """

    key: ClassVar[str] = "ensemble"

    ensemble: Annotated[tuple[SingleReward, ...], BeforeValidator(_as_list)]
    """The members: a list of reward models, two or more."""
    combine: Combine = "mean"
    """How the members' rewards become one: their `mean`, their `min`, or for SEAM alone the `worst-case`."""
    normalise: Literal["standardise"] | None = None
    """`standardise` divides each member's rewards, less their mean, by their standard deviation. Both are measured on at most
    512 golden responses, once a store."""
    scales: (
        tuple[
            tuple[Annotated[float, Field(allow_inf_nan=False)], Annotated[float, Field(gt=0, allow_inf_nan=False)]], ...
        ]
        | None
    ) = None
    """The mean and the standard deviation of each member's rewards, in place of measured ones: `[[0.1, 1.3], [5.2, 2.0]]`."""
    outputs: Outputs = ()
    """Members whose rewards, in their own unit, become columns: a list of names or numbers, or `all`."""

    @model_validator(mode="after")
    def _combinable(self) -> Self:
        if len(self.ensemble) < 2:
            raise ValueError("an ensemble has two members or more; name a single model as the reward itself")
        for number, member in enumerate(self.ensemble):
            if member in self.ensemble[:number]:
                raise ValueError(f"{member.title} is a member twice; list each member once")
        if self.scales is not None and self.normalise is not None:
            raise ValueError("scales are what normalise measures; leave one of the two out")
        if self.scales is not None and len(self.scales) != len(self.ensemble):
            raise ValueError(
                f"scales has {len(self.scales)} pairs for {len(self.ensemble)} members; give each one a pair"
            )
        scales = {_scale(member): member for member in self.ensemble}
        if self.scales is None and self.normalise is None and len(scales) > 1:
            first, second, *_ = scales.values()
            raise ValueError(
                f"{first.title} and {second.title} may have different scales; say `normalise: standardise`, or give "
                "`scales: [[mean, standard deviation], …]`, a pair for each member"
            )
        return self

    @property
    def title(self) -> str:
        """Name the members."""
        return f"ensemble of {', '.join(dict.fromkeys(member.title for member in self.ensemble))}"

    def identity(self) -> JsonValue:
        """Return everything that decides a reward: the members, and how they are combined.

        Raises:
            ModelError: Two members are the same model, or `outputs` names no member.
        """
        members = [member.identity() for member in self.ensemble]
        for number, identity in enumerate(members):
            if identity in members[:number]:
                first = self.ensemble[members.index(identity)]
                raise ModelError(
                    f"{first.title} is a member of the ensemble twice, as {self.ensemble[number].title}; list each member once"
                )
        moves: dict[str, JsonValue] = {self.key: members, "combine": self.combine}
        moves |= {"normalise": self.normalise} if self.normalise else {}
        moves |= {"scales": [list(scale) for scale in self.scales]} if self.scales is not None else {}
        return moves | ({"outputs": list(self.asked())} if self.outputs else {})

    def parts(self) -> Iterator[Backend]:
        """Yield the ensemble, its members, and the models that they are made of."""
        yield self
        for member in self.ensemble:
            yield from member.parts()

    def dated(self, day: datetime.date) -> Self:
        """Return the ensemble with `day` as the date in its members' prompts; itself where they hold none."""
        members = tuple(member.dated(day) for member in self.ensemble)
        return self if members == self.ensemble else self.model_copy(update={"ensemble": members})

    def count_tokens(self, texts: Sequence[str]) -> int:
        """Count the tokens of texts by the tokenizers of all members."""
        return sum(source.model.count_tokens(texts) for source in self.sources())

    def work(self, answers: float, characters: float) -> list[Work]:
        """Estimate the work of all members; heads of one model are read together."""
        return [work for source in self.sources() for work in source.model.work(answers, characters)]

    def noise_work(self, answers: float, characters: float) -> list[Work]:
        """Estimate what the members' noise costs beyond the rewards themselves."""
        return [work for source in self.sources() for work in source.model.noise_work(answers, characters)]

    def summary(self) -> str | None:
        """Say what the members say of themselves."""
        lines = (member.summary() for member in self.ensemble)
        return "; ".join(line for line in lines if line is not None) or None

    def columns_read(self) -> tuple[str, ...]:
        """Name the columns that the members read."""
        return tuple(dict.fromkeys(name for member in self.ensemble for name in member.columns_read()))

    def member_names(self) -> tuple[str, ...]:
        """Name the members as columns do: by their model, and a head by its output."""
        return labels.column_names([_name(member) for member in self.ensemble])

    def output_names(self) -> tuple[str, ...]:
        """Name the outputs: the disagreement, the members that `outputs` lists, and the members' own outputs."""
        names = self.member_names()
        own = [f"{names[i]}_{name}" for i, member in enumerate(self.ensemble) for name in member.output_names()]
        return labels.column_names([DISAGREEMENT, *(names[i] for i in self.asked()), *own])

    def gives_reasons(self) -> bool:
        """Tell that it names the member without a reward."""
        return True

    def is_binary(self) -> bool:
        """Tell whether every reward is 0 or 1: the lowest of such rewards is, the mean is not."""
        as_they_are = self.normalise is None and self.scales is None
        return self.combine == "min" and as_they_are and all(member.is_binary() for member in self.ensemble)

    def scale_range(self) -> tuple[float, float] | None:
        """Return the members' range where they are combined as they are."""
        ranges = {member.scale_range() for member in self.ensemble}
        as_they_are = self.normalise is None and self.scales is None and self.combine != "worst-case"
        return ranges.pop() if as_they_are and len(ranges) == 1 else None

    def needs_scales(self) -> bool:
        """Tell whether scales have to be measured before it can be loaded."""
        return self.normalise is not None and self.scales is None

    def scaled(self, scales: Sequence[Sequence[float]]) -> Self:
        """Return the ensemble with measured scales, which can be loaded."""
        return self.model_copy(update={"scales": tuple(map(tuple, scales))})

    def measured(self, prompts: Sequence[Prompt], responses: Sequence[str], columns: Columns) -> list[Scale]:
        """Measure each member's scale on golden responses.

        Raises:
            ModelError: A member's rewards do not vary.
        """
        plain = self.scaled([(0.0, 1.0)] * len(self.ensemble))
        rated = plain.load().ratings(prompts, [[response] for response in responses], columns)
        scales = []
        for number, member in enumerate(self.ensemble):
            values = [value for (rating,) in rated if (value := finite(rating.members[number])) is not None]
            deviation = spread(values) if values else 0.0
            if not deviation > 0:
                raise ModelError(
                    f"{member.title} has no two different rewards on {len(values):,} golden responses, so that it cannot be "
                    "standardised; leave it out of the ensemble, or give `scales`"
                )
            scales.append(Scale(statistics.fmean(values), deviation))
        return scales

    def load(self) -> RewardModel:
        """Load all members; heads of one model share its weights."""
        if self.needs_scales():
            raise ModelError(
                f"{self.title}: its scales are not measured here; give `scales: [[mean, standard deviation], …]` in place of "
                "`normalise`, with the numbers that a run of the step `reward` prints"
            )
        return LoadedEnsemble(self)

    def asked(self) -> tuple[int, ...]:
        """Return the numbers of the members whose rewards become columns."""
        return labels.indices_of(self.outputs, self.member_names(), self.title)

    def sources(self) -> list[Source]:
        """Return the models to load: one for all heads of a checkpoint, else one a member."""
        sources: list[Source] = []
        for number, member in enumerate(self.ensemble):
            body = _body(member)
            shared = next(
                (i for i, source in enumerate(sources) if body is not None and _body(source.model) == body), None
            )
            if shared is None:
                sources.append(Source(member, (number,)))
            else:
                sources[shared] = sources[shared]._replace(members=(*sources[shared].members, number))
        return sources


class Source(NamedTuple):
    """A model to load, and the numbers of the members that it answers for."""

    model: RewardConfig
    members: tuple[int, ...]


def _body(member: RewardConfig) -> RewardConfig | None:
    """Return a classifier, here or behind a server, without its outputs: heads of one model have the same."""
    if not isinstance(member, SequenceClassifier | RewardServer):
        return None
    return member.model_copy(update={"output": None, "outputs": ()})


def _outputs_read(head: SequenceClassifier | RewardServer) -> list[int]:
    """Return the numbers of the outputs that a head reads: the reward, then those that become columns."""
    texts = head.texts() if isinstance(head, RewardServer) else head
    return texts.positions(texts.labels())


def _scale(member: RewardConfig) -> object:
    """Return what two members have in common if their scales agree: a known range, else the model that they are heads of."""
    return (0.0, 1.0) if member.is_binary() else member.scale_range() or member.title


def _name(member: RewardConfig) -> str:
    # The title ends in a path, or in the name of the model that is asked.
    name = member.title.rpartition(" ")[2].rstrip("/").rpartition("/")[2]
    output = member.output if isinstance(member, SequenceClassifier | RewardServer) else None
    return name if output is None else f"{name} {output}"


class _Pick(NamedTuple):
    """What of a loaded model's ratings is one member's."""

    member: int
    reward: int | None = None
    """The output that is the member's reward; None where it is the model's own reward."""
    outputs: tuple[int, ...] = ()
    """The outputs that are the member's own, where it is a head."""

    def of(self, values: Rating) -> Rating:
        """Return the member's rating."""
        if self.reward is None:
            return values
        return Rating(values.outputs[self.reward], values.reason, tuple(values.outputs[i] for i in self.outputs))

    def noise(self, values: Numbers) -> Numbers:
        """Return the noise of the member's reward and outputs, from that of the model's."""
        return values if self.reward is None else [values[1 + i] for i in (self.reward, *self.outputs)]


class _Reader(NamedTuple):
    """A loaded model, and the members that it answers for."""

    model: RewardModel
    picks: tuple[_Pick, ...]


def _reader(source: Source, members: Sequence[RewardConfig]) -> _Reader:
    """Load a model for its members; heads of one model are outputs of one forward pass."""
    heads = [member for i in source.members if isinstance(member := members[i], SequenceClassifier | RewardServer)]
    if len(source.members) == 1:
        return _Reader(source.model.load(), (_Pick(source.members[0]),))
    read = [_outputs_read(head) for head in heads]
    outputs = sorted({output for numbers in read for output in numbers})
    model = heads[0].model_copy(update={"outputs": tuple(outputs)}).load()
    positions = [[outputs.index(output) for output in numbers] for numbers in read]
    picks = zip(source.members, positions, strict=True)
    return _Reader(model, tuple(_Pick(member, first, tuple(others)) for member, (first, *others) in picks))


_NO_REWARD = "no room in its window, or a prompt or an answer that it cannot read"
"""Why a member has no reward that gives no reasons itself."""


class LoadedEnsemble(RewardModel):
    """An ensemble with its members loaded."""

    def __init__(self, config: RewardEnsemble) -> None:
        self.config, self.names, self.asked = config, config.member_names(), config.asked()
        self.scales = [Scale(*scale) for scale in config.scales or ((0.0, 1.0),) * len(config.ensemble)]
        self.readers = [_reader(source, config.ensemble) for source in config.sources()]

    def loaded(self) -> Iterator[tuple[RewardConfig, RewardModel]]:
        """Yield the models that give the members' rewards, each with its configuration."""
        for source, reader in zip(self.config.sources(), self.readers, strict=True):
            yield source.model, reader.model

    def rewards(self, prompts: Sequence[Prompt], responses: Responses) -> list[list[float | None]]:
        """Combine the members' rewards; see `RewardModel`."""
        return [[rating.reward for rating in row] for row in self.ratings(prompts, responses, {})]

    def ratings(self, prompts: Sequence[Prompt], responses: Responses, columns: Columns) -> list[list[Rating]]:
        """Combine the members' ratings, of worse answers with the golden response's in the column `reward_members`."""
        by_member: dict[int, list[list[Rating]]] = {}
        for model, picks in self.readers:
            rows = model.ratings(prompts, responses, columns)
            for pick in picks:
                by_member[pick.member] = [[pick.of(rating) for rating in row] for row in rows]
        combined_rows = []
        for i, answers in enumerate(responses):
            row = ([by_member[m][i][j] for m in range(len(self.names))] for j in range(len(answers)))
            golden = columns[MEMBERS][i] if MEMBERS in columns else ()
            combined_rows.append([self._combined(ratings, golden) for ratings in row])
        return combined_rows

    def _combined(self, ratings: Sequence[Rating], golden: object) -> Rating:
        """Combine one answer's ratings; `golden` is empty for the golden response itself, None where it has no reward."""
        known = [finite(rating.reward) for rating in ratings]
        values = [
            None if reward is None else finite((reward - scale.mean) / scale.deviation)
            for reward, scale in zip(known, self.scales, strict=True)
        ]
        rewards = [value for value in values if value is not None]
        whole = len(rewards) == len(values)
        outputs = (
            spread(rewards) if whole else None,
            *(known[i] for i in self.asked),
            *(output for rating in ratings for output in rating.outputs),
        )
        if not whole:
            number = values.index(None)
            reason = f"{self.names[number]} gives none: {ratings[number].reason or _NO_REWARD}"
            return Rating(None, reason, outputs, tuple(values))
        if self.config.combine != "worst-case" or golden == ():
            return Rating(combined(rewards, self.config.combine), None, outputs, tuple(values))
        reference = [value for value in golden if value is not None] if isinstance(golden, list | tuple) else []
        if len(reference) < len(rewards):
            return Rating(None, "the golden response has no reward to compare with", outputs, tuple(values))
        return Rating(combined(rewards, "worst-case", reference), None, outputs, tuple(values))

    def noise(self, prompts: Sequence[Prompt], responses: Responses, columns: Columns) -> Sequence[float] | None:
        """Bound the noise by that of the members, where one of them measures its own; None where batches tell all of it."""
        measured = [model.noise(prompts, responses, columns) for model, _ in self.readers]
        if all(noise is None for noise in measured):
            return None
        by_member: dict[int, Numbers] = {}
        for (model, picks), own in zip(self.readers, measured, strict=True):
            noise = _by_batch(model, prompts, responses, columns) if own is None else own
            by_member |= {pick.member: pick.noise(noise) for pick in picks}
        members = [by_member[m] for m in range(len(self.names))]
        scaled = [noise[0] / scale.deviation for noise, scale in zip(members, self.scales, strict=True)]
        largest = max(scaled)
        lowest_or_worst = self.config.combine == "min" or (self.config.combine == "worst-case" and MEMBERS in columns)
        total = largest if lowest_or_worst else statistics.fmean(scaled)
        return [
            total,
            largest,
            *(members[i][0] for i in self.asked),
            *(value for noise in members for value in noise[1:]),
        ]


def _by_batch(model: RewardModel, prompts: Sequence[Prompt], responses: Responses, columns: Columns) -> list[float]:
    """Return the largest difference between ratings of all rows together and of each row alone, an output each."""
    together = model.ratings(prompts, responses, columns)
    largest: list[float] = []
    for i, row in enumerate(together):
        (alone,) = model.ratings([prompts[i]], [responses[i]], {name: [values[i]] for name, values in columns.items()})
        for first, second in zip(row, alone, strict=True):
            pairs = zip((first.reward, *first.outputs), (second.reward, *second.outputs), strict=True)
            changes = [0.0 if a is None or b is None else abs(a - b) for a, b in pairs]
            largest = [max(pair) for pair in zip(largest or changes, changes, strict=True)]
    return largest
