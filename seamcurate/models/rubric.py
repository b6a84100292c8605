"""Rubrics as rewards: a language model decides weighted criteria, all of them in one reply.

The reward is the weighted mean of the criteria, each between 0 and 1. A criterion that a reply does not decide leaves the
answer without a reward: a mean over the others would be that of another rubric.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, ClassVar, Literal, Self

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    JsonValue,
    ValidationError,
    field_validator,
    model_validator,
)
from typing_extensions import override

from seamcurate.errors import first_line
from seamcurate.models.judge import AskedReward, Ways, check_scale
from seamcurate.models.prompt_template import bundled, render, swapped
from seamcurate.models.protocols import Rating, Request
from seamcurate.models.rating import Scale, object_schema, rating_schema
from seamcurate.models.reply import Answer, field
from seamcurate.step import digest
from seamcurate.text import suggestion

if TYPE_CHECKING:
    import yaml

_NAME = re.compile(r"[a-z][a-z0-9_]*")
_RESERVED = ("reason",)
"""Names whose column the steps use already."""
_DECISIONS = {"yes": 1.0, "no": 0.0, "true": 1.0, "false": 0.0}
_LARGEST = 1_000_000
"""Most bytes of a rubric's file."""


class Criterion(BaseModel):
    """One thing that a rubric asks of an answer.

    Example:
        >>> from seamcurate import Criterion
        >>> Criterion(name="clear", text="The answer is easy to read.", weight=2, scale=(1, 5)).name
        'clear'
    """

    model_config = ConfigDict(frozen=True, extra="forbid", hide_input_in_errors=True)

    name: str
    """A short name: lower-case letters, digits and _. Its column is `reward_{name}`."""
    text: str = Field(min_length=1)
    """What the language model reads."""
    weight: float = Field(default=1.0, gt=0, allow_inf_nan=False)
    """Its weight in the reward."""
    scale: Annotated[Scale, AfterValidator(check_scale)] | None = None
    """The lowest and the highest grade; without a scale the criterion is met or not."""

    @field_validator("name")
    @classmethod
    def _names_a_column(cls, name: str) -> str:
        if not _NAME.fullmatch(name) or name in _RESERVED:
            raise ValueError(f"a name is lower-case letters, digits and _, and not `reason`; not {name[:40]!r}")
        return name

    @property
    def decision_schema(self) -> dict[str, JsonValue]:
        """The JSON schema of a decision."""
        return {"type": "string", "enum": ["yes", "no"]} if self.scale is None else rating_schema(self.scale)

    @property
    def choice(self) -> str:
        """What a decision may be, in words."""
        return "yes or no" if self.scale is None else f"{self.scale[0]:g} to {self.scale[1]:g}"

    def met(self, decision: JsonValue) -> float | None:
        """Return how far a decision meets the criterion, from 0 to 1; None where it is no decision."""
        if self.scale is None:
            return _DECISIONS.get(str(decision).strip().lower())
        if isinstance(decision, bool) or not isinstance(decision, int | float | str):
            return None
        try:
            grade = float(decision)
        except ValueError:
            return None
        low, high = self.scale
        return (grade - low) / (high - low) if low <= grade <= high else None


def _criteria(value: object) -> tuple[Criterion, ...]:
    """Read criteria from the path of a YAML file, or from plain values.

    Raises:
        ValueError: They are no rubric; the message is one line, and names the criterion and its key.
    """
    title = "rubric"
    if isinstance(value, str):
        title = f"rubric {value}"
        value = _parsed(value, title)
    if not isinstance(value, list | tuple) or not value:
        raise ValueError(f"{title} is a list of criteria, such as `- {{name: correct, text: The answer is correct.}}`")
    criteria = [_criterion(item, f"{title}, criterion {i}") for i, item in enumerate(value, 1)]
    names = [criterion.name for criterion in criteria]
    repeated = next((name for i, name in enumerate(names) if name in names[:i]), None)
    if repeated is not None:
        raise ValueError(f"{title} has two criteria of the name {repeated}; give each a name of its own")
    return tuple(criteria)


def _criterion(item: object, title: str) -> Criterion:
    if isinstance(item, Criterion):
        return item
    if not isinstance(item, Mapping):
        raise ValueError(f"{title} is a mapping with {', '.join(Criterion.model_fields)}, not {type(item).__name__}")
    try:
        return Criterion.model_validate(item)
    except ValidationError as error:
        problem = error.errors(include_url=False)[0]
        key = str(problem["loc"][0]) if problem["loc"] else ""
        if problem["type"] == "extra_forbidden":
            keys = list(Criterion.model_fields)
            raise ValueError(f"{title}: unknown key {key!r}; it has {', '.join(keys)}{suggestion(key, keys)}") from None
        raise ValueError(f"{title}: {key}: {problem['msg'].removeprefix('Value error, ')}") from None


def _parsed(path: str, title: str) -> object:
    import yaml

    if not path.endswith((".yaml", ".yml")):
        raise ValueError(f"{title[:80]}: a rubric is the path of a .yaml file, or a list of criteria")
    try:
        content = Path(path).read_bytes()
        if len(content) > _LARGEST:
            raise ValueError(f"{title} is larger than {_LARGEST:,} bytes")
        _refuse_repeated_keys(yaml.compose(content, Loader=yaml.SafeLoader))
        return yaml.safe_load(content)
    except yaml.MarkedYAMLError as error:
        line = error.problem_mark.line + 1 if error.problem_mark else 1
        raise ValueError(f"{title}:{line}: not readable as YAML: {error.problem}") from error
    except (OSError, yaml.YAMLError, RecursionError) as error:
        raise ValueError(f"{title} cannot be read: {first_line(error)}") from error


def _refuse_repeated_keys(criteria: yaml.Node | None) -> None:
    """Refuse a key that a criterion has twice: YAML would take the second value without a word."""
    import yaml

    for criterion in criteria.value if isinstance(criteria, yaml.SequenceNode) else ():
        if isinstance(criterion, yaml.MappingNode):
            keys = [key.value for key, _ in criterion.value]
            for i, (key, _) in enumerate(criterion.value):
                if key.value in keys[:i]:
                    raise yaml.MarkedYAMLError(
                        problem=f"the key {key.value} is given twice", problem_mark=key.start_mark
                    )


class RubricModel(AskedReward):
    """Name a reward model whose rewards are the weighted means of a rubric's criteria, as a language model decides them.

    A reward is between 0 and 1. One reply decides all criteria of an answer. A rubric of one criterion without a scale has
    rewards of 0 and 1, and SEAM's ε is that of such rewards.

    Raises:
        ModelError: By `load`, where the language model's key is not in the environment.

    Example:
        >>> from seamcurate import Criterion, FakeModel, RubricModel
        >>> criteria = [Criterion(name="correct", text="It is correct."), Criterion(name="clear", text="It is clear.", scale=(1, 5))]
        >>> rubric = RubricModel(rubric=criteria, judge=FakeModel(), outputs="all")
        >>> ((reward,),) = rubric.load().rewards(["What is a set?"], [["A collection."]])
        >>> 0 <= reward <= 1, rubric.output_names()
        (True, ('correct', 'clear'))
    """

    key: ClassVar[str] = "rubric"

    rubric: Annotated[tuple[Criterion, ...], BeforeValidator(_criteria)]
    """Path of a YAML file with a list of criteria, or the list itself. The criteria are part of the fingerprint."""
    outputs: tuple[str, ...] | Literal["all"] = ()
    """Criteria that become columns beside the reward, `reward_{name}`, from 0 to 1: a list of names, or `all`."""

    @field_validator("outputs", mode="before")
    @classmethod
    def _list_of_names(cls, value: object) -> object:
        if value != "all" and not (isinstance(value, list | tuple) and all(isinstance(name, str) for name in value)):
            raise ValueError(f"outputs is a list of criteria's names, or all, not {str(value)[:40]}")
        return value if value == "all" else tuple(dict.fromkeys(value))

    @model_validator(mode="after")
    def _shows_all(self) -> Self:
        lacking = [word for word in ("{answer}", "{criteria}") if self.template and word not in self.template]
        if lacking:
            raise ValueError(f"template has no {lacking[0]}: the judge would decide without it")
        names = [criterion.name for criterion in self.rubric]
        absent = next((name for name in self.output_names() if name not in names), None)
        if absent is not None:
            raise ValueError(
                f"outputs names {absent!r}, which is no criterion; there are: {', '.join(names)}{suggestion(absent, names)}"
            )
        return self

    def identity(self) -> JsonValue:
        """Return the language model's identity, the criteria, the number of draws, and the hash of the prompt."""
        return {
            self.key: [criterion.model_dump(mode="json") for criterion in self.rubric],
            "judge": self.judge.identity(),
            "draws": self.draws,
            # A hash: records, cards and messages show identities.
            "template": digest(self.template or bundled("rubric")),
            **({"outputs": list(self.output_names())} if self.outputs else {}),
        }

    @override
    def output_names(self) -> tuple[str, ...]:
        return tuple(criterion.name for criterion in self.rubric) if self.outputs == "all" else self.outputs

    @override
    def is_binary(self) -> bool:
        return len(self.rubric) == self.draws == 1 and self.rubric[0].scale is None

    @override
    def scale_range(self) -> tuple[float, float]:
        return 0.0, 1.0

    def ways(self) -> Ways:
        """Return the prompt, the prompt in another order, and the paraphrase of the bundled prompt."""
        template = self.template or bundled("rubric")
        others = {}
        if len(self.rubric) > 1:
            others["with the criteria in reverse"] = partial(self._request, template, self.rubric[::-1])
        elif (turned := swapped(template)) is not None:
            others["with the answer before the question"] = partial(self._request, turned, self.rubric)
        if not self.template:
            others["in other words"] = partial(self._request, bundled("rubric_paraphrase"), self.rubric)
        return Ways(partial(self._request, template, self.rubric), others)

    def _request(self, template: str, criteria: Sequence[Criterion], question: str, answer: str) -> Request:
        form = ", ".join(f'"{criterion.name}": {criterion.choice}' for criterion in criteria)
        further = {
            "criteria": "\n".join(f"- {one.name} ({one.choice}): {one.text.strip()}" for one in criteria),
            "format": f'{{"explanation": "…", "criteria": {{{form}}}}}',
        }
        schema = object_schema(
            explanation={"type": "string"},
            criteria=object_schema(**{criterion.name: criterion.decision_schema for criterion in criteria}),
        )
        return Request(render(template, question, answer, further=further), schema)

    def read(self, answer: Answer) -> Rating:
        """Read the decisions; a criterion without one is named in the reason."""
        no_outputs = (None,) * len(self.output_names())
        if not answer.whole:
            return Rating(None, answer.reason, no_outputs)
        decisions = field(answer.text, "criteria")
        if not isinstance(decisions, dict):
            # Without the schema, some models leave the inner object out.
            decisions = {criterion.name: field(answer.text, criterion.name) for criterion in self.rubric}
        values = {criterion.name: criterion.met(decisions.get(criterion.name)) for criterion in self.rubric}
        outputs = tuple(values[name] for name in self.output_names())
        if undecided := [name for name, value in values.items() if value is None]:
            return Rating(None, f"no decision on {', '.join(undecided)}: {answer.reason}", outputs)
        weights = [criterion.weight for criterion in self.rubric]
        return Rating(weighted_mean(weights, [value for value in values.values() if value is not None]), None, outputs)

    def reply_characters(self) -> int:
        """Estimate a short explanation and a decision on each criterion."""
        return 400 + 25 * len(self.rubric)


def weighted_mean(weights: Sequence[float], values: Sequence[float]) -> float:
    """Return Σ w·v / Σ w.

    Example:
        >>> weighted_mean([3, 1], [1.0, 0.5])
        0.875
    """
    return sum(w * v for w, v in zip(weights, values, strict=True)) / sum(weights)
