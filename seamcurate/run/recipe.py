"""A recipe: rows, corpus, models, steps and splits as one value, the same names in YAML and in Python.

A recipe is data: reading one, even a stranger's, runs no code. Errors name the file, the line and the key.
"""

from __future__ import annotations

import inspect
import re
import unicodedata
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, TypeAlias

import yaml
from pydantic import BaseModel, ConfigDict, Field, SerializeAsAny, ValidationError, field_validator, validate_call

from seamcurate.contrast import Attack, Generate, Probes, Retrieve, Rollouts
from seamcurate.contrast.contamination import nearest
from seamcurate.contrast.duplicates import duplicates
from seamcurate.contrast.learned import GeneratorTraining
from seamcurate.data.source import Source
from seamcurate.errors import RecipeError, first_line
from seamcurate.models import (
    CausalLM,
    EncoderModel,
    LanguageModelConfig,
    OpenAIServer,
    PolicyModel,
    RewardEnsemble,
    RewardFunction,
    RewardingModel,
)
from seamcurate.models.backend import Backend, RewardConfig, models_of
from seamcurate.models.gguf_file import is_gguf
from seamcurate.models.local import LocalModel
from seamcurate.models.roles import ROLES, SINGLE_REWARDS, no_model
from seamcurate.score.asked import AskQueryType, Judge, RelevantSentences
from seamcurate.score.baseline import Perplexity, Random
from seamcurate.score.difficulty import Difficulty, Hacked, Truth, difficulty, no_threshold
from seamcurate.score.likelihood import PolicyLogprobs
from seamcurate.score.projection import Project
from seamcurate.score.rer import FEATURES, OtherRelevance, QueryType, Rer, rer
from seamcurate.score.reward import Reward, Rewards
from seamcurate.score.reward_baselines import LengthCalibrated, RewardReliability, RewardSpread, Rip
from seamcurate.score.seam import Seam, seam
from seamcurate.select import filters
from seamcurate.select.order import Order
from seamcurate.select.shaping import AtMost, Balance, Distribution
from seamcurate.select.split import Augment, Split, with_controls
from seamcurate.step import Step
from seamcurate.text import suggestion
from seamcurate.trainers import REWARD_MODULE

STEPS: dict[str, Callable[..., Step | tuple[Step, ...]]] = {
    "retrieve": Retrieve,
    "generate": Generate,
    "attack": Attack,
    "rollouts": Rollouts,
    "probes": Probes,
    "seam": seam,
    "reward": Reward,
    "rewards": Rewards,
    "policy_logprobs": PolicyLogprobs,
    "seam_score": Seam,
    "difficulty": difficulty,
    "rer": rer,
    **{feature.recipe_name: feature.step for feature in FEATURES},
    "other_relevance": OtherRelevance,
    "query_type": QueryType,
    "rer_score": Rer,
    "project": Project,
    "ask_query_type": AskQueryType,
    "judge": Judge,
    "relevant_sentences": RelevantSentences,
    "perplexity": Perplexity,
    "random": Random,
    "rip": Rip,
    "reward_spread": RewardSpread,
    "length_calibrated": LengthCalibrated,
    "reward_reliability": RewardReliability,
    "duplicates": duplicates,
    "nearest": nearest,
}
"""What a recipe may list under `steps`. `seam`, `difficulty` and `rer` stand for all the steps they need."""

Path_: TypeAlias = tuple[str | int, ...]


class Models(BaseModel):
    """Name the models that steps use by role, where a step names none of its own.

    Args:
        policy: The policy, which gives log-probabilities of responses.
        reward: The reward model, which gives a score of each response.
        encoder: The sentence encoder, which embeds prompts and responses.
        base: The base model of `perplexity`.
        generator: The language model that writes worse answers in `generate`.
        judge: The language model that judges in `judge`, `ask_query_type` and `relevant_sentences`.

    Raises:
        ValueError: A model cannot take the role (as pydantic's ValidationError).

    Example:
        >>> from seamcurate import FakeModel, Models, Recipe, Reward, Source
        >>> recipe = Recipe(rows=Source(jsonl="rows.jsonl"), models=Models(reward=FakeModel()), steps=[Reward()])
        >>> recipe.ready()[0].reward.key
        'fake'
    """

    model_config = ConfigDict(frozen=True, extra="forbid", hide_input_in_errors=True)

    policy: PolicyModel | None = None
    reward: RewardingModel | None = None
    encoder: EncoderModel | None = None
    base: PolicyModel | None = None
    generator: LanguageModelConfig | None = None
    judge: LanguageModelConfig | None = None


class Recipe(BaseModel):
    """Describe a computation as one value: rows, corpus, models, steps and splits.

    `run_local` and `run_ray` run it, `plan` estimates its cost, `check` compares a store with it. YAML files have the same
    keys; see `load`.

    Args:
        rows: Where the rows come from.
        corpus: Where the retrieval corpus comes from; needed by `retrieve` and `augment`.
        models: The models by role, for steps that name none of their own.
        steps: What is computed, in this order; in YAML a list of names with their settings.
        splits: Names of splits, each with its filter.

    Raises:
        ValueError: A key is unknown or a value cannot be taken (as pydantic's ValidationError).

    Example:
        >>> from seamcurate import FakeModel, Models, Random, Recipe, Reward, Source, Split
        >>> recipe = Recipe(
        ...     rows=Source(parquet="rows.parquet", response="answer"),
        ...     models=Models(reward=FakeModel()),
        ...     steps=[Reward(), Random()],
        ...     splits={"train": Split(filter="SELECT row_id FROM rows WHERE reward > 0")},
        ... )
        >>> [step.name for step in recipe.ready()]
        ['reward', 'baseline_random']
    """

    model_config = ConfigDict(frozen=True, extra="forbid", hide_input_in_errors=True)

    rows: Source
    corpus: Source | None = None
    models: Models = Models()
    steps: tuple[SerializeAsAny[Step], ...] = ()
    splits: dict[str, Split] = Field(default_factory=dict)

    @field_validator("splits")
    @classmethod
    def _plain_names(cls, splits: dict[str, Split]) -> dict[str, Split]:
        for name in splits:
            if not re.fullmatch(r"\w[\w-]*", name):
                raise ValueError(f"a split's name is letters, digits, _ and -, not {name!r}")
            if name == REWARD_MODULE:
                raise ValueError(f"{name} is the name of the reward file in an export; call the split something else")
        try:
            expanded = with_controls(splits)
        except RecipeError as error:
            raise ValueError(str(error)) from error
        names: dict[str, str] = {}
        for name in expanded:
            # File systems of macOS and Windows have one folder for both, so that the second would replace the first.
            if (same := names.setdefault(unicodedata.normalize("NFC", name).casefold(), name)) != name:
                raise ValueError(f"splits {same} and {name} differ in case alone; call one of them something else")
        return expanded

    @classmethod
    def load(cls, path: str | Path) -> Recipe:
        """Read a recipe from a YAML file; see `load`."""
        return load(path)

    def ready(self) -> list[Step]:
        """Return the steps, each once, with the recipe's models where a step names none.

        Raises:
            RecipeError: A step needs a model that neither it nor the recipe names, or cannot use the one that it has.
        """
        filled = []
        for step in self.steps:
            fields = type(step).model_fields.keys() - set(step.unused_models)
            roles = {role: getattr(self.models, role) for role in Models.model_fields if role in fields}
            model_by_role = {
                role: model for role, model in roles.items() if model is not None and getattr(step, role) is None
            }
            filled_step = step.model_copy(update=model_by_role)
            missing_role = next((role for role in roles if getattr(filled_step, role) is None), None)
            if missing_role is not None:
                raise RecipeError(no_model(missing_role, step.name))
            if isinstance(filled_step, Attack):
                _check_attacked(filled_step)
            _check_rounds(filled_step)
            if filled_step not in filled:
                filled.append(filled_step)
        return [_with_thresholds(_told_binary(step, filled, self.models), filled, self.models) for step in filled]


def _check_attacked(step: Attack) -> None:
    """Refuse to attack a reward that depends on the golden response: the attack compares with it itself."""
    if isinstance(step.reward, RewardEnsemble) and step.reward.combine == "worst-case":
        raise RecipeError(f"step {step.name}: an ensemble's worst-case is for SEAM alone; attack its `combine: min`")


def _check_rounds(step: Step) -> None:
    """Refuse an attack whose reward model is asked in batches: it asks after each answer what the answer decides."""
    batched = [model for model in models_of(step) if isinstance(model, OpenAIServer) and model.batch]
    if isinstance(step, Attack) and batched:
        raise RecipeError(
            f"step {step.name} asks its reward model in rounds, and each batch of {batched[0].title} may take a day; "
            "leave `batch` out of that model"
        )


def _told_binary(step: Step, steps: Sequence[Step], models: Models) -> Step:
    """Tell a step that compares rewards whether they are 0 or 1, where it does not say so itself."""
    if not isinstance(step, PolicyLogprobs | Seam) or step.binary is not None:
        return step
    rewards = (s.reward for s in steps if isinstance(s, Rewards) and s.variant == step.variant)
    model = next(rewards, models.reward)
    return step.model_copy(update={"binary": True}) if model is not None and model.is_binary() else step


def _with_thresholds(step: Step, steps: Sequence[Step], models: Models) -> Step:
    """Give a step the thresholds that its rewards have of their own, and refuse those by which all pass, or none.

    Raises:
        RecipeError: A threshold is missing, or lies outside the rewards' range.
    """
    if not isinstance(step, Difficulty | Hacked):
        return step
    reward = next((s.reward for s in steps if isinstance(s, Rewards) and s.variant == "policy"), models.reward)
    judges: dict[str, RewardConfig | None] = {"threshold": reward}
    if isinstance(step, Hacked):
        judges["truth_threshold"] = next((s.truth for s in steps if isinstance(s, Truth)), None)
    for name, model in judges.items():
        threshold = getattr(step, name)
        if threshold is None and model is not None and model.is_binary():
            step = step.model_copy(update={name: 1.0})
        elif threshold is None:
            raise RecipeError(no_threshold(step.name, name))
        elif model is not None and (ends := model.scale_range()) and not ends[0] < threshold <= ends[1]:
            outcome = "no answer would pass" if threshold > ends[1] else "every answer would pass"
            raise RecipeError(
                f"step {step.name}: {name} {threshold:g} lies outside the range of {model.title}, {ends[0]:g} to {ends[1]:g}: {outcome}"
            )
    return step


def load(path: str | Path) -> Recipe:
    """Read a recipe from a YAML file; paths in it are relative to its folder.

    Raises:
        RecipeError: The file says something that cannot be done; the message names the line and the key.
    """
    file = Path(path)
    try:
        text = file.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise RecipeError(f"recipe {file} cannot be read: {_reason(file, error)}") from error
    return loads(text, file.parent, str(file))


def _reason(file: Path, error: OSError | UnicodeDecodeError) -> str:
    """Say why a recipe cannot be read, and what to do."""
    if isinstance(error, UnicodeDecodeError):
        return "it is not UTF-8 text"
    if file.is_dir():
        kind = "a store" if (file / "store.json").is_file() else "a folder"
        return f"it is {kind}; a recipe is a YAML file, and is named before the store"
    similar = [path.name for path in file.parent.glob("*.y*ml") if suggestion(file.stem, [path.stem])]
    return f"{error.strerror}{suggestion(file.name, similar)}"


def loads(text: str, folder: Path = Path(), name: str = "recipe") -> Recipe:
    """Read a recipe from YAML text; see `load`."""
    lines: dict[Path_, int] = {}
    value = parsed(text, name, lines)
    try:
        return _recipe(value, folder)
    except _Refused as refused:
        location = refused.at
        while location and location not in lines:
            location = location[:-1]
        key = "".join(
            f"[{key_part}]" if isinstance(key_part, int) else f".{key_part}" for key_part in refused.at
        ).lstrip(".")
        raise RecipeError(f"{name}:{lines.get(location, 1)}: {key + ': ' if key else ''}{refused}") from refused


def parsed(text: str, name: str = "recipe", lines: dict[Path_, int] | None = None) -> object:
    """Return the plain values that `loads` checks: whoever judges a recipe must read the same ones.

    Args:
        text: YAML.
        name: What errors call it.
        lines: Filled with the line of each key, where given.

    Raises:
        RecipeError: It is not readable as YAML, or is too large.
    """
    try:
        return _plain(yaml.compose(text, Loader=yaml.SafeLoader), (), {} if lines is None else lines)
    except yaml.MarkedYAMLError as error:
        line = error.problem_mark.line + 1 if error.problem_mark else 1
        raise RecipeError(f"{name}:{line}: not readable as YAML: {error.problem}{_hint(text, line)}") from error
    # A number of too many digits, a day that is in no month; lists in lists in lists.
    except (yaml.YAMLError, _Refused, ValueError, RecursionError) as error:
        raise RecipeError(f"{name}:{getattr(error, 'line', 1)}: {first_line(error)}") from error


def _hint(text: str, number: int) -> str:
    """Say what to do about a line that YAML does not take."""
    line = (text.splitlines() or [""])[min(number, len(text.splitlines())) - 1 : number]
    return "; indent with spaces, not tabs" if any("\t" in character for character in line) else ""


class _Refused(Exception):
    """A value at a path of the recipe cannot be taken."""

    def __init__(self, location: Path_, message: str, line: int = 1) -> None:
        super().__init__(message)
        self.at, self.line = location, line


def _recipe(value: object, folder: Path) -> Recipe:
    if not isinstance(value, dict):
        raise _Refused((), "a recipe is a mapping with the keys " + ", ".join(Recipe.model_fields))
    for key in value:
        if key not in Recipe.model_fields:
            raise _Refused(
                (key,),
                f"unknown key; a recipe has: {', '.join(Recipe.model_fields)}{suggestion(key, Recipe.model_fields)}",
            )
    if "rows" not in value:
        raise _Refused((), "a recipe needs `rows`, such as `rows: {jsonl: FILE}`")
    sources = {
        key: _checked(Source, value[key], (key,)).resolved(folder)
        for key in ("rows", "corpus")
        if value.get(key) is not None
    }
    models = _checked(Models, _with_folders(value.get("models") or {}, folder), ("models",))
    steps = _steps(value.get("steps") or [], folder)
    splits = {}
    split_texts = value.get("splits") or {}
    if not isinstance(split_texts, dict):
        raise _Refused(("splits",), "splits is a mapping of names to {filter: …}")
    for name, split in split_texts.items():
        try:
            if isinstance(split, dict) and isinstance(split.get("filter"), str):
                split = {**split, "filter": filters.read(split["filter"], folder)}
        except RecipeError as error:
            raise _Refused(("splits", name, "filter"), str(error)) from error
        splits[name] = _placed(_checked(Split, split, ("splits", name)), folder)
    recipe = _checked(Recipe, {**sources, "models": models, "steps": steps, "splits": splits}, ())
    assert isinstance(recipe, Recipe)
    return recipe


def _placed(split: Split, folder: Path) -> Split:
    """Take the path of a split's evaluation set from the recipe's folder."""
    if split.augment is None or split.augment.evaluation is None:
        return split
    evaluation = split.augment.evaluation.resolved(folder)
    return split.model_copy(update={"augment": split.augment.model_copy(update={"evaluation": evaluation})})


def _steps(items: object, folder: Path) -> list[Step]:
    if not isinstance(items, list):
        raise _Refused(("steps",), "steps is a list, such as `- retrieve: {k: 30}`")
    steps: list[Step] = []
    for i, item in enumerate(items):
        if isinstance(item, str):
            item = {item: {}}
        if not isinstance(item, dict) or len(item) != 1:
            raise _Refused(("steps", i), "a step is one name with its settings, such as `retrieve: {k: 30}`")
        ((name, config),) = item.items()
        maker = STEPS.get(name)
        if maker is None:
            raise _Refused(("steps", i, name), f"unknown step; there are: {', '.join(STEPS)}{suggestion(name, STEPS)}")
        created = _checked(maker, _with_folders(config or {}, folder), ("steps", i, name))
        steps += [_resolved(step, folder) for step in (created if isinstance(created, tuple) else (created,))]
    return steps


def _resolved(step: Step, folder: Path) -> Step:
    """Take the paths of another data set that a step reads from the recipe's folder."""
    sources = {key: value.resolved(folder) for key, value in step if isinstance(value, Source)}
    return step.model_copy(update=sources) if sources else step


def _checked(kind: Any, value: object, location: Path_) -> Any:
    """Validate a value as a model class or as the arguments of a function, naming the key that is wrong."""
    if not isinstance(value, dict):
        raise _Refused(location, f"expected a mapping, found {type(value).__name__}")
    try:
        if isinstance(kind, type) and issubclass(kind, BaseModel):
            return kind.model_validate(value)
        return validate_call(config=ConfigDict(hide_input_in_errors=True))(kind)(**value)
    except ValidationError as error:
        problem = error.errors(include_url=False)[0]
        loc, model = _without_tags(problem["loc"])
        message = problem["msg"].removeprefix("Value error, ")
        if problem["type"] in {"extra_forbidden", "unexpected_keyword_argument"}:
            keys = _keys(model or kind, loc[:-1])
            message = f"unknown key; there are: {', '.join(keys)}{suggestion(loc[-1], keys)}"
        elif problem["type"] in {"missing", "missing_argument"}:
            message = "field required"
            # A learned attack trains its generator; elsewhere, one is asked.
            trained = kind is Attack and loc[:-1] == ("generator",)
            kinds = {CausalLM.key: CausalLM} if trained else _kinds_at(loc[:-1])
            if problem["loc"][-1] == "path" and kinds:
                # The value has the key of no kind, so that it was checked as the first.
                slip = next((hint for key in problem["input"] if (hint := suggestion(str(key), kinds))), "")
                loc, message = loc[:-1], f"name a model by one of: {', '.join(kinds)}{slip}"
        elif problem["type"] != "value_error" and loc:
            message = f"{message[0].lower()}{message[1:]}, found {str(problem['input'])[:60]!r}"
        raise _Refused((*location, *loc), message) from error
    # Of a function that makes steps, about settings that do not go together.
    except ValueError as error:
        raise _Refused(location, str(error)) from error


_KINDS: dict[str, dict[str, type[Backend]]] = {
    role: {kind.key: kind for kind in kinds} for role, kinds in {**ROLES, "truth": SINGLE_REWARDS}.items()
}
"""The kinds of model by role and by their keys, which pydantic puts into the path of an error as tags."""


def _without_tags(path: Path_) -> tuple[Path_, type[Backend] | None]:
    """Return the path of an error as the recipe has it, and the kind of model that its last key belongs to."""
    keys: list[str | int] = []
    kinds: dict[str, type[Backend]] = {}
    model = None
    for key in path:
        if key in kinds:
            model, kinds = kinds[str(key)], {}
            continue
        # A model is named by the key of its kind.
        keys.append(model.key if key == "path" and model is not None else key)
        kinds = _kinds_at(keys)
        model = None if kinds else model
    return tuple(keys), model


def _kinds_at(path: Sequence[str | int]) -> dict[str, type[Backend]]:
    """Return the kinds of model, by their keys, that may stand at a path of the recipe; none where no model may."""
    if not path:
        return {}
    if isinstance(path[-1], int):
        return _KINDS["reward"] if "ensemble" in path else {}
    return _KINDS.get(path[-1], {})


def _keys(kind: Any, loc: Sequence[str | int]) -> list[str]:
    """List the keys a model class or a function takes, one level down for a model's own."""
    if isinstance(kind, type) and issubclass(kind, Backend):
        return [kind.key, *(field for field in kind.model_fields if field not in ("path", kind.key))]
    if loc and loc[-1] in _NESTED:
        return _keys(_NESTED[str(loc[-1])], ())
    return list(kind.model_fields if hasattr(kind, "model_fields") else inspect.signature(kind).parameters)


_NESTED: dict[str, type[BaseModel]] = {
    "augment": Augment,
    "evaluation": Source,
    "to": Source,
    "against": Source,
    "order": Order,
    "at_most": AtMost,
    "balance": Balance,
    "shape": Distribution,
    "training": GeneratorTraining,
    "generator": CausalLM,
}


def _with_folders(value: object, folder: Path) -> object:
    """Point what lies in the recipe's folder there: models, templates, lexicons; any other path is as it was given."""
    if isinstance(value, dict):
        return {
            key: str(folder / Path(inner).expanduser())
            # Of a function, always: a file in the working folder is not the one that the recipe names.
            if isinstance(inner, str)
            and (_lies_in(folder, key, inner) or (key == RewardFunction.key and ".py:" in inner))
            else _with_folders(inner, folder)
            for key, inner in value.items()
        }
    if isinstance(value, list):
        return [_with_folders(inner, folder) for inner in value]
    return value


_LOCAL = {kind.key for kinds in ROLES.values() for kind in kinds if issubclass(kind, LocalModel)}
"""The keys of models that may be folders beside the recipe."""


def _lies_in(folder: Path, key: str, name: str) -> bool:
    if key == "template":
        return name.endswith(".txt") and (folder / name).is_file()
    if key == "rubric":
        return name.endswith((".yaml", ".yml")) and (folder / name).is_file()
    if key in {"wordnet", "antonyms", "vectors", "masked_model"}:
        return (folder / name).exists()
    return key in {*_LOCAL, "base", "tokenizer_of"} and (
        (folder / name).is_dir() or (is_gguf(name) and (folder / name).is_file())
    )


_LARGEST, _DEEPEST = 100_000, 50
"""Keys and values of a recipe, and how deep they lie: ten lines of aliases of aliases make more than memory holds."""


def _plain(node: yaml.Node | None, location: Path_, lines: dict[Path_, int]) -> Any:
    """Turn YAML nodes into plain values, noting each key's line; a key given twice is refused."""
    if node is None:
        return {}
    if len(lines) > _LARGEST or len(location) > _DEEPEST:
        raise _Refused(location, "aliases (*) make it too large, or it is too deep", node.start_mark.line + 1)
    lines.setdefault(location, node.start_mark.line + 1)
    if isinstance(node, yaml.MappingNode):
        values: dict[str, Any] = {}
        for key_node, value_node in node.value:
            key = str(key_node.value)
            if key in values:
                raise _Refused((*location, key), f"key {key!r} is given twice", key_node.start_mark.line + 1)
            lines[(*location, key)] = key_node.start_mark.line + 1
            values[key] = _plain(value_node, (*location, key), lines)
        return values
    if isinstance(node, yaml.SequenceNode):
        return [_plain(child, (*location, i), lines) for i, child in enumerate(node.value)]
    return yaml.SafeLoader("").construct_object(node)
