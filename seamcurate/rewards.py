"""Rewards as trainers call them: TRL, the project's PPO, OpenRLHF and verl. One configuration gives one number everywhere.

The formulas are those of `seamcurate.score.rer`. A completion gets the reward that its row would have in the column
`rer`, with two differences, which keep an answer from gaining by repetition. First, immediate repeats count once: LI and
the relevances are those of the answer without its repeats, while RP divides the distinct trigrams of that text by the
number of all trigrams. Second, a relevance below F's zero counts as that zero, and a negative QR as 0: RP would shrink a
negative value towards 0, so that repetition would pay. The ablations (`li`, `li_rp`, …) are the paper's formulas without
these guards: they show what a feature alone rewards.

Under GRPO with rewards scaled by group, F's constants cancel. Under PPO with normalised scores they change only the ratio
between open-ended and closed-ended rewards.
"""

from __future__ import annotations

import ast
import datetime
import hashlib
import json
import threading
from collections.abc import Mapping, Sequence
from functools import cache
from itertools import groupby
from pathlib import Path
from typing import TYPE_CHECKING, Literal, NamedTuple, Protocol, TypeAlias

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator

from seamcurate.errors import ModelError, TrainError, first_line
from seamcurate.models import (
    EncoderModel,
    OpenAIServer,
    Prompt,
    RewardEnsemble,
    RewardFunction,
    RewardingModel,
    SequenceClassifier,
)
from seamcurate.models.backend import Backend, kind_of
from seamcurate.models.function import BUNDLED
from seamcurate.models.roles import ROLES
from seamcurate.models.template import Form, prompt_text
from seamcurate.score import compared, noise
from seamcurate.score.rer import (
    AR_RANGE,
    FEATURES,
    LENGTH,
    Combine,
    Rer,
    RerFeature,
    combined,
    cut,
    relevance,
)
from seamcurate.step import finite
from seamcurate.trainers import PROMPT_FORM, REWARD_FILE, SOURCE_PROMPT
from seamcurate.words import Words, drop_repeats

if TYPE_CHECKING:
    from seamcurate.models import Embedder

Numbers: TypeAlias = list[float | None]

_NAMES = dict.fromkeys(name for feature in FEATURES for name in feature.rewards)
_REWARDS: dict[str, tuple[RerFeature, ...]] = dict(
    sorted(
        ((name, tuple(feature for feature in FEATURES if name in feature.rewards)) for name in _NAMES),
        # RER first, then the ablations by their number of features.
        key=lambda reward: (reward[0] != "rer", len(reward[1])),
    )
)
"""The features of each reward: of RER, or of an ablation (RER Table 2)."""

if TYPE_CHECKING:
    Rewarded: TypeAlias = str
else:
    # A type checker cannot read the table of features; pydantic reads it at run time.
    Rewarded = Literal[tuple(_REWARDS)]

REVISION = 2
"""Increase it with every change of the rewards of one configuration; the record of a training holds it."""


class TrainerReward(Protocol):
    """A reward function with the signature that TRL's GRPO and RLOO, and the project's PPO, call."""

    __name__: str
    columns: tuple[str, ...]
    """Columns of the data that the reward needs."""

    def __call__(self, prompts: Sequence[Prompt], completions: Sequence[Prompt], **columns: object) -> Numbers:
        """Return a reward for each completion, None where it does not apply; each column is a list of the same length."""
        ...

    def features(self) -> dict[str, float]:
        """Return the mean of each feature over the completions of the last call."""
        ...


class RerReward(BaseModel):
    """Configure RER, or one of its ablations, as a reward of trainers; the fields mean what those of `rer` do.

    RER never rewards repetition: see the module. An answer that has no word before the first stop string gets 0, the
    lowest reward. A row whose branch lacks a feature gets no reward: without `fallback`, a closed-ended row without a
    reference.

    Example:
        Seven words and a full stop earn a length incentive of .08.

        >>> from seamcurate import RerReward
        >>> RerReward(reward="li").load()(["What is a set?"], ["A set is a collection of things."])
        [0.08]
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    encoder: EncoderModel | None = None
    """The encoder of the relevances; every reward with a relevance needs it."""
    reward: Rewarded = "rer"
    query_type: Literal["column", "random"] = "column"
    """Read T(x) from the column `query_type`, or choose it at random, seeded by the prompt: RER's ablation (Table 4)."""
    max_response_tokens: int = Field(default=512, ge=1)
    combine: Combine = "product"
    clip: bool = False
    source: tuple[float, float] = AR_RANGE
    """The range that F maps AR from: the authors' for Contriever, or the one that `rer: {fit: quantiles}` measured."""
    fallback: Literal["query_relevance"] | None = None
    min_tokens: int = Field(default=0, ge=0)
    """Completions of fewer words get 0."""
    words: Words = "wordpunct"
    stop: tuple[str, ...] = ()

    @field_validator("source")
    @classmethod
    def _ascending(cls, source: tuple[float, float]) -> tuple[float, float]:
        if not source[0] < source[1]:
            raise ValueError(f"source is a range (low, high) with low < high, not {source}")
        return source

    @property
    def columns(self) -> tuple[str, ...]:
        """Return the columns of the data that the reward needs."""
        if self.reward == "rer":
            type_column = ("query_type",) if self.query_type == "column" else ()
            return type_column if self.fallback else (*type_column, "reference")
        return ("reference",) if any(feature.relevance_to == "reference" for feature in _REWARDS[self.reward]) else ()

    def load(self) -> TrainerReward:
        """Load the encoder, if the reward has a relevance.

        Raises:
            ModelError: The reward has a relevance, and no encoder is named or it cannot be loaded.
        """
        return self._loaded()

    def _loaded(self) -> _Rer:
        if not any(feature.relevance_to for feature in _REWARDS[self.reward]):
            return _Rer(self, None)
        if self.encoder is None:
            raise ModelError(f"reward {self.reward} has no encoder; give it `encoder: {{sentence_encoder: …}}`")
        return _Rer(self, compared.watched(self.encoder, self.encoder.load()))


class ModelReward(BaseModel):
    """Configure a reward model as a reward of trainers; `load` returns the function they call.

    Example:
        >>> from seamcurate import FakeModel, ModelReward
        >>> reward = ModelReward(reward=FakeModel()).load()
        >>> len(reward(["What is a set?"], ["A collection."]))
        1
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    reward: RewardingModel

    @field_validator("reward")
    @classmethod
    def _of_an_answer_alone(cls, reward: RewardingModel) -> RewardingModel:
        if isinstance(reward, RewardEnsemble) and reward.combine == "worst-case":
            raise ValueError(
                "an ensemble's worst-case is for SEAM alone, as it needs golden responses; take `combine: min`"
            )
        return reward

    def load(self) -> TrainerReward:
        """Load the reward model; its chat template writes today's date, which is part of the function's `repr`."""
        return _Model(self.reward.dated(datetime.date.today()))


def read(named: str, day: datetime.date | None = None) -> TrainerReward:
    """Load the reward that an option of a command names; see `configured`."""
    return configured(named, day).load()


def asks_endpoint(reward: RerReward | ModelReward) -> bool:
    """Tell whether each answer's reward is asked of a language model at an endpoint."""
    return isinstance(reward, ModelReward) and any(isinstance(part, OpenAIServer) for part in reward.reward.parts())


def configured(named: str, day: datetime.date | None = None) -> RerReward | ModelReward:
    """Read the reward that an option of a command names; nothing is loaded.

    Args:
        named: A YAML file of `RerReward`'s fields, or of a reward model, `{sequence_classifier: …, form: …}`,
            `{function: …}`, `{judge: {…}}` or `{rubric: …, judge: {…}}`, whose files are named from the YAML file's folder;
            a reward function, `verifier.py:score` or `number_match`; a
            `seamcurate_reward.py` that `export` wrote, whose code is read and not run; an ablation that needs no encoder
            (`li`, `rp`, `li_rp`); or the folder or Hub id of a reward model.
        day: The date that a reward model's chat template writes as today's; None for today.

    Raises:
        TrainError: The file cannot be read, or describes no reward.
    """
    day = day or datetime.date.today()
    kind: type[BaseModel] = RerReward
    if ".py:" in named or named in BUNDLED:
        return _function(named)
    if named in _REWARDS:
        return RerReward.model_validate({"reward": named})
    if not named.endswith((".yaml", ".yml", ".py")):
        return ModelReward(reward=SequenceClassifier(path=named).dated(day))
    newer = Path(named).with_name(REWARD_FILE)
    if not Path(named).exists() and newer.is_file():
        raise TrainError(f"reward {named} is not there: an export's reward file is called {REWARD_FILE}; give {newer}")
    try:
        text = Path(named).read_text(encoding="utf-8")
        fields = _configuration_in(text) if named.endswith(".py") else yaml.safe_load(text)
        kinds = {config.key: config for config in ROLES["reward"]}
        # An exported file may be a stranger's, and a model may be a function to run.
        if isinstance(fields, dict) and kinds.keys() & fields.keys() and not named.endswith(".py"):
            kind = kinds[kind_of(*ROLES["reward"])(fields)]
            reward = ModelReward.model_validate({"reward": _with_files(fields, Path(named).parent)}).reward
            return ModelReward(reward=reward.dated(day))
        return RerReward.model_validate(fields)
    except ValidationError as error:
        raise TrainError(f"reward {named}: {_refusal(error, kind)}") from error
    except (OSError, ValueError, RecursionError, yaml.YAMLError) as error:
        raise TrainError(f"reward {named} cannot be read: {first_line(error)}") from error


def _with_files(value: object, folder: Path) -> object:
    """Point the files that a judge reads to the folder of the YAML file, where they lie there, and a function always."""
    if isinstance(value, list):
        return [_with_files(item, folder) for item in value]
    if not isinstance(value, dict):
        return value
    fields: dict[str, object] = {}
    for key, content in value.items():
        if key == RewardFunction.key and isinstance(content, str) and ".py:" in content:
            fields[key] = str(folder / Path(content).expanduser())
        elif key in ("rubric", "template") and isinstance(content, str) and "\n" not in content:
            fields[key] = str(folder / content) if (folder / content).is_file() else content
        else:
            fields[key] = _with_files(content, folder)
    return fields


def _function(named: str) -> ModelReward:
    """Name a reward function of the user's."""
    try:
        return ModelReward(reward=RewardFunction(path=named))
    except ValidationError as error:
        raise TrainError(f"reward {named}: {error.errors(include_url=False)[0]['msg']}") from error


def _refusal(error: ValidationError, kind: type[BaseModel]) -> str:
    """Say which field of a reward's file cannot be taken, and why; `kind` is what the file describes."""
    details = error.errors(include_url=False)[0]
    path, known = list(details["loc"]), [kind]
    if issubclass(kind, Backend):
        # pydantic puts the kinds of models into the path.
        path = path[2:] if path[:1] == ["reward"] else path
        if path[:1] == ["ensemble"] and len(path) > 2:
            member = path.pop(2)
            known = [config for config in ROLES["reward"] if config.key == member]
    where = "".join(f"[{key}]" if isinstance(key, int) else f".{key}" for key in path).lstrip(".")
    message = details["msg"].removeprefix("Value error, ")
    fields = [field for config in known for field in config.model_fields if field != "path"]
    hint = f"; it has {', '.join(fields)}" if details["type"] in ("extra_forbidden", "missing") and fields else ""
    return f"{where or 'the file'}: {message}{hint}"


def _configuration_in(code: str) -> object:
    """Return the configuration in an exported reward file; its code is not run."""
    try:
        assignments = {
            str(getattr(statement.targets[0], "id", "")): statement.value
            for statement in ast.parse(code).body
            if isinstance(statement, ast.Assign)
        }
        # REWARD = rewards.RerReward.model_validate({…})
        expression = assignments["REWARD"]
        assert isinstance(expression, ast.Call) and isinstance(expression.args[0], ast.Dict)
        return ast.literal_eval(expression.args[0])
    # MemoryError and RecursionError: it is nested too deeply for Python's parser.
    except (KeyError, AssertionError, IndexError, SyntaxError, ValueError, MemoryError, RecursionError) as error:
        raise OSError("it is no reward file that `seamcurate export` wrote") from error


class _Scored(NamedTuple):
    """The rewards of a call, and the features that they were computed from."""

    rewards: Numbers
    features: dict[str, Numbers]


class _Rer:
    """RER, or an ablation of it, with its encoder loaded."""

    def __init__(self, config: RerReward, embedder: Embedder | None) -> None:
        self.__name__: str = config.reward
        self.columns = config.columns
        self._config, self._embedder = config, embedder
        self._rer = Rer(
            max_response_tokens=config.max_response_tokens,
            combine=config.combine,
            clip=config.clip,
            fallback=config.fallback,
            min_tokens=config.min_tokens,
        )
        self._last: dict[str, Numbers] = {}

    def __repr__(self) -> str:
        encoder = json.dumps(None if self._config.encoder is None else self._config.encoder.identity(), sort_keys=True)
        return f"{self._config.model_copy(update={'encoder': None})!r} of {encoder}, revision {REVISION}"

    def __call__(self, prompts: Sequence[Prompt], completions: Sequence[Prompt], **columns: object) -> Numbers:
        count = len(completions)
        prompts, completions = _as_scored(prompts, completions, columns)
        kinds = _texts(columns, "query_type", count)
        if "query_type" in self.columns and "query_type" not in columns:
            raise TrainError("reward rer needs the column `query_type` (open or closed); train on a split that has it")
        references = _texts(columns, "reference", count)
        scored = self.scored(
            [prompt_text(p) for p in prompts], [prompt_text(c) for c in completions], kinds, references
        )
        log = columns.get("log_metric")
        if callable(log):
            # TRL passes its own logger as this column.
            for name, mean in self.features().items():
                log(name, mean)
        return scored.rewards

    def features(self) -> dict[str, float]:
        """Return the mean of each feature over the rows of the last call that have it."""
        numbers = {name: [v for v in values if v is not None] for name, values in self._last.items()}
        return {name: sum(values) / len(values) for name, values in numbers.items() if values}

    def scored(
        self,
        prompts: Sequence[str],
        completions: Sequence[str],
        kinds: Sequence[str | None],
        references: Sequence[str | None],
    ) -> _Scored:
        """Score completions; None stands for a type or a reference that a row lacks."""
        config = self._config
        if config.query_type == "random":
            kinds = [_random_type(prompt) for prompt in prompts]
        for kind in kinds:
            if kind not in ("open", "closed", None):
                raise TrainError(f"query_type is open, closed or null, not {kind!r:.40}; see the column `query_type`")
        repeat_free = drop_repeats if config.reward == "rer" else str
        answers, answers_cut = list(completions), [cut(text, config.stop) for text in completions]
        texts, texts_cut = [repeat_free(text) for text in answers], [repeat_free(text) for text in answers_cut]
        factors = _REWARDS[config.reward]
        columns: dict[str, Numbers] = {}
        for feature in FEATURES:
            if feature.formula is None or not (feature in factors or (feature.column == LENGTH and config.min_tokens)):
                continue
            pairs = (
                zip(texts_cut, answers_cut, strict=True) if feature.cut_at_stop else zip(texts, answers, strict=True)
            )
            columns[feature.column] = [feature.formula(text, answer, config.words) for text, answer in pairs]
        sources = {"prompt": prompts, "reference": references}
        compared_texts = {feature.column: sources[feature.relevance_to] for feature in factors if feature.relevance_to}
        columns |= self._relevances(compared_texts, texts)
        self._last = {feature.column: columns[feature.column] for feature in factors}
        rows = (dict(zip(columns, values, strict=True)) for values in zip(*columns.values(), strict=True))
        rewards = [self._reward(row, kind) for row, kind in zip(rows, kinds, strict=True)]
        return _Scored(rewards, self._last)

    def _reward(self, values: Mapping[str, float | None], kind: str | None) -> float | None:
        """Return one completion's reward from its features by column."""
        config, length = self._config, values.get(LENGTH)
        features = _REWARDS[config.reward]
        if config.reward == "rer":
            # RP would shrink a negative value towards 0, so that repetition would pay: the lowest relevance is F's zero, or
            # 0 for QR.
            zero = 0.0 if kind == "open" else config.source[0]
            guarded = {
                feature.column: max(value, zero) if feature.relevance_to and value is not None else value
                for feature in features
                for value in (values[feature.column],)
            }
            score = self._rer.score(config.source, guarded, kind)
            return score if score is None or length else 0.0
        if length is not None and round(length * 100) < config.min_tokens:
            return 0.0
        factors = [value for feature in features if (value := values[feature.column]) is not None]
        return combined(factors, config.combine) if len(factors) == len(features) else None

    def _relevances(
        self, compared_texts: Mapping[str, Sequence[str | None]], texts: Sequence[str]
    ) -> dict[str, Numbers]:
        """Return M(compared text)·M(text) by feature; every distinct text is embedded once."""
        if self._embedder is None or not compared_texts:
            return {}
        present = [text for column in compared_texts.values() for text in column if text is not None]
        index = {text: i for i, text in enumerate(dict.fromkeys([*present, *texts]))}
        if not index:
            return {name: [] for name in compared_texts}
        # (distinct texts, dimensions)
        vectors = self._embedder.embed(list(index))
        relevances: dict[str, Numbers] = {}
        for name, column in compared_texts.items():
            pairs = [(i, index[text], index[texts[i]]) for i, text in enumerate(column) if text is not None]
            values: Numbers = [None] * len(texts)
            if pairs:
                rows, left, right = (list(indices) for indices in zip(*pairs, strict=True))
                for i, value in zip(rows, relevance(vectors[left], vectors[right]), strict=True):
                    values[i] = finite(value)
            relevances[name] = values
        return relevances


class _Model:
    """A reward model, loaded."""

    def __init__(self, config: RewardingModel) -> None:
        self.__name__: str = "reward_model"
        self.columns: tuple[str, ...] = config.columns_read()
        self._config, self._model = config, config.load()
        self._same = compared.FirstUse(config, self._model, noise.rewards)

    def __repr__(self) -> str:
        return f"reward model {json.dumps(self._config.identity(), sort_keys=True)}"

    def __call__(self, prompts: Sequence[Prompt], completions: Sequence[Prompt], **columns: object) -> Numbers:
        prompts, completions = _as_scored(prompts, completions, columns)
        further = [_values(columns, name, len(completions)) for name in self.columns]
        rows = list(zip(prompts, completions, *further, strict=True))
        # The completions of a group follow each other, so that they share the forward pass of their prompt.
        groups = [list(group) for _, group in groupby(rows, key=lambda row: (row[0], *row[2:]))]
        sampled = [
            noise.SampleRow(
                group[0][0],
                [prompt_text(completion) for _, completion, *_ in group],
                {name: group[0][2 + i] for i, name in enumerate(self.columns)},
            )
            for group in groups
        ]
        self._same.before(lambda: sampled)
        by_group = self._model.ratings(
            [row.prompt for row in sampled],
            [row.answers for row in sampled],
            {name: [row.columns[name] for row in sampled] for name in self.columns},
        )
        self._same.after()
        return [rating.reward for ratings in by_group for rating in ratings]

    def features(self) -> dict[str, float]:
        """Return an empty mapping: a reward model has no features."""
        return {}


def _as_scored(
    prompts: Sequence[Prompt], completions: Sequence[Prompt], columns: Mapping[str, object]
) -> tuple[Sequence[Prompt], Sequence[Prompt]]:
    """Return prompts and completions as steps score them; an export may have written them in a trainer's form."""
    forms, sources = columns.get(PROMPT_FORM), columns.get(SOURCE_PROMPT)
    if not isinstance(forms, Sequence) or not isinstance(sources, Sequence):
        return prompts, completions
    return list(sources), [
        Form(str(form)).generated(text) if isinstance(text, str) and form else text
        for form, text in zip(forms, completions, strict=True)
    ]


# ── what an exported reward file calls ───────────────────────────────────────────────────────────────────────

_CALL_LOCK = threading.Lock()
"""verl and OpenRLHF call from many threads, but tokenizers and `features` are not thread-safe."""


def for_trl(
    reward: RerReward, prompts: Sequence[Prompt], completions: Sequence[Prompt], columns: Mapping[str, object]
) -> Numbers:
    """Answer TRL's `reward(prompts, completions, **columns)`; the first call loads the encoder."""
    with _CALL_LOCK:
        return _loaded_reward(reward)(prompts, completions, **columns)


def for_openrlhf(
    reward: RerReward, end: str, queries: Sequence[str], prompts: Sequence[str], labels: Sequence[str]
) -> dict[str, object]:
    """Answer OpenRLHF's `reward_func(queries, prompts, labels)` with float32 tensors, one value per query.

    A row without a reward gets 0, as TRL gives it, and the log `rer_not_applicable` counts it.

    Args:
        reward: The configuration of the reward; the first call loads its encoder.
        end: The policy's end-of-sequence token, which OpenRLHF leaves at the query's end; it is cut off once.
        queries: Prompt and response as one text.
        prompts: The prompts as the policy read them, chat template included.
        labels: JSON of the row's own prompt, query_type, reference and the prompt's form: the exported column `reward_label`.

    Raises:
        TrainError: A label is not such JSON, or a query does not begin with its prompt or with the end of its prompt.
    """
    import torch

    rows = [_label(label) for label in labels]
    answers = [_answer(query, prompt, end) for query, prompt in zip(queries, prompts, strict=True)]
    source_prompts, kinds, references, forms = zip(*rows, strict=True) if rows else ((), (), (), ())
    answers = [Form(form).generated(text) if form else text for form, text in zip(forms, answers, strict=True)]
    with _CALL_LOCK:
        scored = _loaded_reward(reward).scored([text or "" for text in source_prompts], answers, kinds, references)
    rewards = torch.tensor([value or 0.0 for value in scored.rewards], dtype=torch.float32)
    logs = {
        name: torch.tensor([value or 0.0 for value in values], dtype=torch.float32)
        for name, values in _logged(scored).items()
    }
    return {"rewards": rewards, "scores": rewards, "extra_logs": logs}


def for_verl(
    reward: RerReward, solution: str, ground_truth: str, extra_info: Mapping[str, object] | None
) -> dict[str, float]:
    """Answer verl's `compute_score`; `extra_info` carries the row's prompt, query_type and reference.

    A row without a reward gets 0, as TRL gives it, and the metric `rer_not_applicable` counts it.

    Raises:
        TrainError: `extra_info` lacks one of them: the data were not exported for this reward.
    """
    info = extra_info or {}
    missing = [name for name in ("prompt", *reward.columns) if name not in info]
    if missing:
        raise TrainError(f"extra_info has no {missing[0]!r}; train on the folder that this reward file lies in")
    if isinstance(form := info.get(PROMPT_FORM), str):
        solution = Form(form).generated(solution)
    row = {name: [info.get(name)] for name in ("prompt", "query_type", "reference")}
    prompt, kind, reference = (_texts(row, name, 1)[0] for name in row)
    with _CALL_LOCK:
        scored = _loaded_reward(reward).scored([prompt or ""], [solution], [kind], [reference])
    logs = {name: values[0] or 0.0 for name, values in _logged(scored).items()}
    return {"score": scored.rewards[0] or 0.0, **logs}


@cache
def _loaded_reward(reward: RerReward) -> _Rer:
    return reward._loaded()


def _logged(scored: _Scored) -> dict[str, Numbers]:
    """Return the features that every row has, and a flag of rows without a reward: both trainers need equal keys in each row."""
    optional = {feature.column for feature in FEATURES if feature.relevance_to == "reference"}
    logs = {name: values for name, values in scored.features.items() if name not in optional}
    return {**logs, "rer_not_applicable": [float(value is None) for value in scored.rewards]}


def _random_type(prompt: str) -> str:
    """Return a query's type at random, seeded by the prompt: every process gives a prompt the same type."""
    return ("open", "closed")[hashlib.sha256(prompt.encode(errors="surrogatepass")).digest()[0] & 1]


def _values(columns: Mapping[str, object], name: str, count: int) -> Sequence[object]:
    """Return a column that a reward reads, one value a completion."""
    if name not in columns:
        raise TrainError(
            f"the reward reads the column {name!r}, which the data do not have; train on a split that has it"
        )
    values = columns[name]
    if not isinstance(values, Sequence) or len(values) != count:
        raise TrainError(f"column {name!r} has not one value for each of {count} completions")
    return values


def _texts(columns: Mapping[str, object], name: str, count: int) -> list[str | None]:
    if columns.get(name) is None:
        return [None] * count
    texts: list[str | None] = []
    for value in _values(columns, name, count):
        if value is not None and not isinstance(value, str):
            raise TrainError(f"column {name!r} holds text or null, not {type(value).__name__}; convert it first")
        texts.append(value)
    return texts


def _label(label: str) -> tuple[str | None, str | None, str | None, str | None]:
    try:
        row = json.loads(label)
        prompt, kind, reference = row["prompt"], row["query_type"], row["reference"]
        form = row.get("form")
    except (TypeError, KeyError, ValueError) as error:
        raise TrainError(
            f"the label {label!r:.40} is not what this reward reads; start OpenRLHF with --data.label_key reward_label"
        ) from error
    return prompt, kind, reference, form


def _answer(query: str, prompt: str, end: str) -> str:
    """Cut the prompt off a query; OpenRLHF keeps only the end of a prompt that is too long for the model."""
    start = next((i for i in range(len(prompt)) if query.startswith(prompt[i:])), None)
    stop = len(prompt) - start if start is not None else _prompt_end(query, prompt)
    if stop is None:
        raise TrainError(
            f"a query does not begin with its prompt {prompt!r:.40}; its tokenizer does not give text back"
        )
    answer = query[stop:]
    return answer.removesuffix(end) if end else answer


def _prompt_end(query: str, prompt: str) -> int | None:
    """Return the offset of a prompt's end in a query whose white space differs: some tokenizers put a space after special tokens."""
    offset = 0
    for letter in prompt.rstrip():
        if letter.isspace():
            continue
        while offset < len(query) and query[offset].isspace():
            offset += 1
        if query[offset : offset + 1] != letter:
            return None
        offset += 1
    tail = prompt[len(prompt.rstrip()) :]
    return offset + len(tail) if query.startswith(tail, offset) else offset
