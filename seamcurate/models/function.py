"""Reward functions: Python functions of TRL, verl, OpenRLHF or verifiers, or plain ones, that say how good an answer is.

One rule: nothing of the user's file runs in this process. What can be known before the first row, the function's parameters
among them, is read from the file's text; the function itself runs in a process of its own, see `function_process`.
"""

from __future__ import annotations

import threading
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, ClassVar, Literal, NamedTuple, Self, TypeAlias

from pydantic import Field, JsonValue, field_validator, model_validator

from seamcurate import verifiers
from seamcurate.errors import ModelError
from seamcurate.models import function_file
from seamcurate.models.backend import NamedModel, RewardConfig
from seamcurate.models.function_process import EndedError, FunctionProcess, LateError, NoAnswerError
from seamcurate.models.protocols import Columns, Prompt, Rating, Responses, RewardModel
from seamcurate.models.template import prompt_text
from seamcurate.progress import note
from seamcurate.step import digest, finite
from seamcurate.text import brief, suggestion

Signature: TypeAlias = Literal["trl", "verl", "openrlhf", "verifiers", "plain"]

BUNDLED = ("exact_match", "number_match", "choice_match", "regex_match", "schema_match")
"""The functions of `seamcurate.verifiers` that a recipe may name."""


class _Convention(NamedTuple):
    """How a library calls its reward functions."""

    library: str
    sign: str
    """The parameter that such functions have, and those of the other libraries do not."""
    given: tuple[str, ...]
    """What the library gives beside columns of the data."""
    reference: str | None
    """The parameter that the library fills with a row's reference."""
    trainers_own: tuple[str, ...] = ()
    """What only a trainer can give."""


_CONVENTIONS: dict[Signature, _Convention] = {
    "trl": _Convention(
        "TRL",
        "completions",
        ("prompts", "completions", "trainer_state", "log_extra", "log_metric"),
        None,
        ("completion_ids", "environments"),
    ),
    "verl": _Convention(
        "verl", "solution_str", ("data_source", "solution_str", "ground_truth", "extra_info"), "ground_truth"
    ),
    "openrlhf": _Convention("OpenRLHF", "queries", ("queries", "prompts", "labels"), "labels"),
    "verifiers": _Convention(
        "verifiers",
        "completion",
        ("prompt", "completion", "answer", "state", "info", "task"),
        "answer",
        ("parser",),
    ),
    "plain": _Convention("the plain kind", "response", ("prompt", "response"), None),
}
"""TRL 1.16's GRPOTrainer, verl 0.9's NaiveRewardManager, OpenRLHF 0.11's SingleTurnAgentExecutor, verifiers 0.1's Rubric."""


class RewardFunction(NamedModel, RewardConfig):
    """Name a reward function: one of your own, as you would give it to a trainer, or one that comes with seamcurate.

    The function runs in a process of its own, which gets no keys from the environment. An answer for which it raises, hangs
    or returns no number has no reward, and `reward_reason` says why. Values of other types than JSON has, such as dates, are
    given as text.

    Raises:
        ModelError: The file cannot be read or is not Python, it has no such function, or a parameter has no value. By `load`,
            where importing the file fails.

    Example:
        >>> from seamcurate import RewardFunction
        >>> reward = RewardFunction(path="number_match")
        >>> reward.columns_read(), reward.is_binary()
        (('reference',), True)
        >>> reward.load().ratings(["2 + 2?"], [["It is 4.", "5"]], {"reference": ["4"]})[0][0].reward
        1.0
    """

    key: ClassVar[str] = "function"
    path: str
    """The file and the function, `verifier.py:score`, or the name of a function that comes with seamcurate: `exact_match`,
    `number_match`, `choice_match`, `regex_match` or `schema_match`."""
    signature: Signature | None = None
    """Whose functions it is like: `trl`, `verl`, `openrlhf` or `verifiers`; or `plain`: it gets one `prompt` and one `response`, and
    returns a number. Default: found by its parameters."""
    columns: dict[str, str] = Field(default_factory=dict)
    """The column that each parameter reads, where it has another name; a list names columns that it takes by `**kwargs`, or
    finds in `extra_info` or `info`. Default: parameters without a default value read the column of their name, and verl's
    `ground_truth`, OpenRLHF's `labels` and verifiers' `answer` read `reference`."""
    arguments: dict[str, JsonValue] = Field(default_factory=dict)
    """Further arguments of every call, by name."""
    chat: bool = False
    """Give prompts and completions as lists of messages where the prompt is text, too; those of chats always are."""
    seconds: float = Field(default=10.0, gt=0)
    """Most seconds for the answers of a row together, and where that is too short, for each of them."""
    memory: int = Field(default=2048, ge=64)
    """Most MiB of memory that the function's process may hold; the limit holds on Linux."""
    binary: bool = False
    """Whether rewards are 0 or 1; a golden response with reward 0 then has `golden_fails`. Those that come with seamcurate are."""
    scale: tuple[float, float] | None = None
    """The lowest and the highest reward; another number is no reward."""

    @field_validator("path")
    @classmethod
    def _file_and_name(cls, path: str) -> str:
        file, _, name = path.rpartition(":")
        if path in BUNDLED or (file.endswith(".py") and name.isidentifier()):
            return path
        names = ", ".join(BUNDLED)
        raise ValueError(
            f"name a file and its function, `verifier.py:score`, or one of {names}{suggestion(path, BUNDLED)}"
        )

    @field_validator("columns", mode="before")
    @classmethod
    def _as_mapping(cls, columns: Any) -> Any:
        is_list = isinstance(columns, list | tuple) and all(isinstance(name, str) for name in columns)
        return {name: name for name in columns} if is_list else columns

    @model_validator(mode="after")
    def _plain_scale(self) -> Self:
        if self.scale is not None and not self.scale[0] < self.scale[1]:
            raise ValueError(f"scale is the lowest and the highest reward, not {list(self.scale)}")
        if self.binary and self.scale is not None:
            raise ValueError("binary rewards are 0 or 1; leave scale or binary out")
        return self

    @property
    def title(self) -> str:
        """Name the function by its file alone: what a run tells is published, and folders are private."""
        return f"{self.key} {Path(self.path).name}"

    @property
    def bundled(self) -> bool:
        """Tell whether the function comes with seamcurate, so that it runs no code of the user's."""
        return self.path in BUNDLED

    def identity(self) -> JsonValue:
        """Return the function's code, how it is called, and its limits: they decide which rewards are NULL.

        The code is that of its file and of the modules beside it that it imports. Packages and other files that it reads are
        no part of it.
        """
        call = self._call()
        identity: dict[str, JsonValue] = {
            "function": self._name,
            "code": verifiers.REVISION if self.bundled else {**function_file.hashes(self._file, self.title)},
            "signature": call.signature,
            "columns": {**call.columns},
            "arguments": {**self.arguments},
            "binary": self.is_binary(),
            "seconds": self.seconds,
            "memory": self.memory,
        }
        return identity | ({"chat": True} if self.chat else {}) | ({"scale": [*self.scale]} if self.scale else {})

    def load(self) -> RewardModel:
        """Start the function's process and import its file."""
        return _LoadedFunction(self)

    def check(self) -> None:
        """Import the function's file in a process, and end the process.

        Raises:
            ModelError: The file or an argument is wrong.
        """
        _LoadedFunction(self).close()

    def with_data_names(self, names: Mapping[str, str | None]) -> RewardFunction:
        """Return the function with parameters that have the names of the data's own columns, as its trainer would give them.

        Args:
            names: The data's names of columns, by the names that they have in a store; None for one that the data lack.

        Example:
            >>> import pathlib, tempfile
            >>> file = pathlib.Path(tempfile.mkdtemp(), "own.py")
            >>> _ = file.write_text("def score(completions, answer): return [float(a in c) for a, c in zip(answer, completions)]")
            >>> RewardFunction(path=f"{file}:score").with_data_names({"prompt": "question", "response": "answer"}).columns
            {'answer': 'response'}
        """
        read = self.columns_read()
        columns = {
            name: column for column, name in names.items() if name is not None and name != column and name in read
        }
        return self.model_copy(update={"columns": columns | self.columns}) if columns else self

    def columns_read(self) -> tuple[str, ...]:
        """Name the columns that the function's parameters read."""
        return tuple(dict.fromkeys(self._call().columns.values()))

    def gives_reasons(self) -> bool:
        """Return true: a function that fails says how."""
        return True

    def is_binary(self) -> bool:
        """Tell whether every reward is 0 or 1."""
        return self.binary or self.bundled

    def scale_range(self) -> tuple[float, float] | None:
        """Return the lowest and the highest reward, where the recipe names them."""
        return (0.0, 1.0) if self.is_binary() else self.scale

    @property
    def library(self) -> str:
        """Name the library as whose function it is called: TRL, verl, OpenRLHF, verifiers, or the plain kind."""
        return _CONVENTIONS[self._call().signature].library

    def summary(self) -> str | None:
        """Say how the function is called, and what it reads."""
        call = self._call()
        library = _CONVENTIONS[call.signature].library
        how = "as `signature` says" if self.signature else f"by its parameter {_CONVENTIONS[call.signature].sign}"
        read = ", ".join(self.columns_read())
        return f"{self.title} is called as a function of {library}, {how}, and reads {read or 'no further column'}"

    def count_tokens(self, texts: Sequence[str]) -> int:
        """Return 0: a function reads no tokens."""
        return 0

    @property
    def _file(self) -> Path:
        return Path(verifiers.__file__ if self.bundled else self.path.rpartition(":")[0]).expanduser().resolve()

    @property
    def _name(self) -> str:
        return self.path.rpartition(":")[2]

    def _call(self) -> _Call:
        """Return how the function is called, from its text alone.

        Raises:
            ModelError: The file does not say so, or a parameter has no value.
        """
        declared = function_file.parameters(self._file, self._name, self.title)
        signature = self.signature or self._recognised(declared)
        convention = _CONVENTIONS[signature]
        if declared is not None:
            self._check(declared, signature, convention)
        columns = dict(self.columns)
        reference = convention.reference
        reads_reference = declared is None or reference in declared.names or signature == "openrlhf"
        if reference is not None and reads_reference and reference not in self.arguments:
            columns.setdefault(reference, "reference")
        if declared is not None and signature in ("trl", "verifiers", "plain"):
            for name in declared.required:
                if name not in convention.given and name not in self.arguments:
                    columns.setdefault(name, name)
        return _Call(signature, dict(sorted(columns.items())))

    def _recognised(self, declared: function_file.Parameters | None) -> Signature:
        """Tell by its parameters whose function it is."""
        names = () if declared is None else declared.names
        matching = [signature for signature, convention in _CONVENTIONS.items() if convention.sign in names]
        if len(matching) == 1:
            return matching[0]
        shown = (
            "its file does not show its parameters" if declared is None else f"its parameters are {declared or 'none'}"
        )
        raise ModelError(f"{self.title}: {shown}; say `signature: {' | '.join(_CONVENTIONS)}`")

    def _check(self, declared: function_file.Parameters, signature: Signature, convention: _Convention) -> None:
        """Refuse a function that a call of its signature would not fit."""
        expected = f"a function of {convention.library} takes {', '.join(convention.given)}"
        missing = [name for name in declared.required if name in convention.trainers_own and name not in self.arguments]
        if missing:
            raise ModelError(f"{self.title} needs {missing[0]}, which only a trainer has; give it a default value")
        unset = [name for name in declared.required if name not in ("completions", "reference", *self.arguments)]
        if self.bundled and unset:
            raise ModelError(f"{self.title} needs `arguments: {{{unset[0]}: …}}`")
        if signature == "openrlhf":
            given = [name for name in declared.positional if name not in self.arguments]
            unfilled = [name for name in declared.required if name not in given[:3] and name not in self.arguments]
            if len(given) < 3 or unfilled:
                raise ModelError(f"{self.title}: {expected}, in this order, and this one takes {declared or 'nothing'}")
        elif (
            convention.sign not in declared.names
            and not declared.takes_any
            and not (signature == "verifiers" and "state" in declared.names)
        ):
            raise ModelError(f"{self.title}: {expected} by name, and this one takes {declared or 'nothing'}")
        if signature == "verl":
            unfilled = [
                name for name in declared.required if name not in (*convention.given, *self.arguments, *self.columns)
            ]
            if unfilled:
                raise ModelError(f"{self.title}: {expected}; give {unfilled[0]} by `arguments` or `columns`")
        if signature == "openrlhf" and (others := [name for name in self.columns if name != "labels"]):
            raise ModelError(
                f"{self.title}: columns: {others[0]}: OpenRLHF gives `labels` alone; say {{labels: COLUMN}}"
            )
        keys = [("arguments", name) for name in self.arguments]
        # verl and verifiers have a place for further columns, `extra_info` and `info`.
        keys += [("columns", name) for name in self.columns if signature in ("trl", "plain")]
        for key, name in keys:
            # What comes with seamcurate reads no further columns: another name is a slip.
            if name not in declared.names and (self.bundled or not declared.takes_any):
                hint = suggestion(name, declared.names)
                raise ModelError(f"{self.title}: {key}: it has no parameter {name!r}; it takes {declared}{hint}")


class _Call(NamedTuple):
    """How a function is called."""

    signature: Signature
    columns: dict[str, str]
    """The columns of a row that it reads, by the name under which it gets them."""


class _LoadedFunction(RewardModel):
    """A function in its process. Each row is one request; where that fails, each of its answers is one."""

    def __init__(self, config: RewardFunction) -> None:
        self._config, self._identity = config, config.identity()
        self._columns = config._call().columns
        settings: dict[str, JsonValue] = {
            "file": str(config._file),
            "name": config._name,
            "signature": config._call().signature,
            "arguments": {**config.arguments},
            "columns": [*self._columns],
            "memory": config.memory,
        }
        self._process = FunctionProcess(settings, config.seconds)
        # The reasons of answers that took too long.
        self._late: dict[str, str] = {}
        # Trainers may ask from several threads, and a process answers one request at a time.
        self._lock = threading.Lock()
        try:
            self._process.start()
            # An empty row shows what is wrong with a bundled function's arguments, such as a pattern.
            reply = self._process.ask(self._request("", [], dict.fromkeys(self._columns))) if config.bundled else {}
        except NoAnswerError as error:
            raise ModelError(f"{config.title} cannot be loaded: {error}") from error
        if "error" in reply:
            raise ModelError(f"{config.title}: arguments: {reply['error']}")

    def close(self) -> None:
        """End the function's process."""
        self._process.end()

    def rewards(self, prompts: Sequence[Prompt], responses: Responses) -> list[list[float | None]]:
        """Score responses by a function that reads no columns; see `RewardModel`."""
        if self._columns:
            raise ModelError(
                f"{self._config.title} reads {', '.join(self._columns.values())}; give it the rows' columns"
            )
        return [[rating.reward for rating in row] for row in self.ratings(prompts, responses, {})]

    def ratings(self, prompts: Sequence[Prompt], responses: Responses, columns: Columns) -> list[list[Rating]]:
        """Score responses row by row."""
        with self._lock:
            return [
                self._row(prompt, answers, {name: columns[column][i] for name, column in self._columns.items()})
                for i, (prompt, answers) in enumerate(zip(prompts, responses, strict=True))
            ]

    def _row(self, prompt: Prompt, answers: Sequence[str], values: Mapping[str, object]) -> list[Rating]:
        if not answers:
            return []
        if len(answers) == 1:
            return [self._alone(prompt, answers[0], values)]
        # An answer that took too long once would take as long again.
        if not any(self._was_late(prompt, answer, values) for answer in answers):
            with suppress(NoAnswerError):
                return self._asked(prompt, answers, values)
        # One answer may have failed all of them.
        return [self._alone(prompt, answer, values) for answer in answers]

    def _alone(self, prompt: Prompt, answer: str, values: Mapping[str, object]) -> Rating:
        """Score one answer, with the reason where there is no reward."""
        if reason := self._was_late(prompt, answer, values):
            return Rating(None, reason)
        try:
            try:
                (rating,) = self._asked(prompt, [answer], values)
            except EndedError:
                # Something else may have ended the process, such as a machine that was short of memory for a moment.
                (rating,) = self._asked(prompt, [answer], values)
        except LateError as error:
            if not self._late:
                note(f"{self._config.title}: {error} for an answer; such answers have no reward")
            self._late[_key(prompt, answer, values)] = str(error)
            rating = Rating(None, str(error))
        except NoAnswerError as error:
            rating = Rating(None, str(error))
        return rating

    def _was_late(self, prompt: Prompt, answer: str, values: Mapping[str, object]) -> str | None:
        """Return the reason of an answer that took too long before; None of any other."""
        return self._late.get(_key(prompt, answer, values)) if self._late else None

    def _asked(self, prompt: Prompt, answers: Sequence[str], values: Mapping[str, object]) -> list[Rating]:
        if not self._process.runs:
            self._restart()
        reply = self._process.ask(self._request(prompt, answers, values))
        if "error" in reply:
            raise NoAnswerError(str(reply["error"]))
        pairs = reply["values"]
        assert isinstance(pairs, list)
        return [self._rating(*pair) for pair in pairs]  # type: ignore[misc]

    def _restart(self) -> None:
        """Start the process anew; the function must be the one that answered the rows before."""
        if self._config.identity() != self._identity:
            raise ModelError(f"{self._config.title} changed while it was in use; run again")
        try:
            self._process.start()
        except NoAnswerError as error:
            raise ModelError(f"{self._config.title} cannot be loaded again: {error}") from error

    def _request(self, prompt: Prompt, answers: Sequence[str], values: Mapping[str, object]) -> dict[str, JsonValue]:
        is_chat = not isinstance(prompt, str) or self._config.chat
        turns: Prompt = (
            [{"role": "user", "content": prompt}] if self._config.chat and isinstance(prompt, str) else prompt
        )
        completions: list[JsonValue] = [
            [{"role": "assistant", "content": answer}] if is_chat else answer for answer in answers
        ]
        return {
            "prompt": _plain(turns),
            "text": prompt_text(prompt),
            "answers": [*answers],
            "completions": completions,
            "columns": {name: _plain(value) for name, value in values.items()},
        }

    def _rating(self, number: float | None, reason: str | None) -> Rating:
        if number is None:
            return Rating(None, brief(reason or "", 200))
        scale = self._config.scale
        if finite(number) is None:
            return Rating(None, f"the function returned {number:g}, which is too large")
        if self._config.is_binary() and number not in (0, 1):
            return Rating(None, f"the function returned {number:g}, and its rewards are 0 or 1")
        if scale is not None and not scale[0] <= number <= scale[1]:
            return Rating(None, f"the function returned {number:g}, outside its scale {list(scale)}")
        return Rating(number)


def _key(prompt: Prompt, answer: str, values: Mapping[str, object]) -> str:
    return digest([_plain(prompt), answer, _plain(values)])


def _plain(value: object) -> JsonValue:
    """Return a row's value as JSON has it; a value of another type, such as a date, as text."""
    if value is None or isinstance(value, bool | int | float | str):
        return value
    if isinstance(value, Mapping):
        return {str(key): _plain(entry) for key, entry in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(entry) for entry in value]
    return str(value)
