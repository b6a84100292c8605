"""The one abstraction: a step reads named columns and adds columns of its own.

A step is a frozen value. Its fields are its whole configuration, so a YAML recipe, its validation, its JSON and its
fingerprint come from one place. A step never drops, joins or reorders a row, and never opens a file of rows: a store
passes it tables and stores what it returns.
"""

from __future__ import annotations

import datetime
import hashlib
import json
import math
import re
from abc import abstractmethod
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar, Literal, NamedTuple, Protocol, Self, TypeAlias, TypeVar, runtime_checkable

import numpy as np
import numpy.typing as npt
import pyarrow as pa
from pydantic import BaseModel, ConfigDict, JsonValue

T = TypeVar("T")


@runtime_checkable
class ArrowStream(Protocol):
    """A frame that gives Arrow data by the PyCapsule interface: one of Polars or pandas, and a pyarrow Table itself."""

    def __arrow_c_stream__(self, requested_schema: object = None) -> object:
        """Return a capsule with a stream of record batches."""
        ...


Transform = Callable[[pa.Table], pa.Table]
"""A function from some of a shard's rows to the added columns: as many rows, in the same order.

A step of a user's own may return another `ArrowStream`, such as a Polars frame: a store takes each of them."""

MESSAGES = pa.list_(pa.struct([("role", pa.string()), ("content", pa.string())]))
"""The type of a chat prompt: a list of messages with role and content, as every trainer reads it."""


def column(name: str, kind: pa.DataType, meaning: str) -> pa.Field:
    """Declare a column that a step adds, for the schema that `Step.adds` returns.

    Args:
        name: The column's name in Python, Parquet and SQL; lower snake case.
        kind: Its Arrow type.
        meaning: One line, which `seamcurate columns` shows.

    Returns:
        An Arrow field, with the meaning in its metadata.

    Example:
        >>> import pyarrow as pa
        >>> field = column("n_words", pa.int32(), "words in the response")
        >>> field.name, str(field.type), field.metadata[b"meaning"].decode()
        ('n_words', 'int32', 'words in the response')
    """
    return pa.field(name, kind, metadata={"meaning": meaning})


_LARGEST = 3.5e38
"""Just above the largest 32-bit float: sums and products of larger numbers overflow."""


def finite(value: float | None) -> float | None:
    """Return a score that can be compared; None for NaN, infinities and numbers that overflow in a sum."""
    return value if value is not None and math.isfinite(value) and abs(value) <= _LARGEST else None


def comparable(values: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    """Return scores, (n,), with NaN for those that `finite` refuses."""
    return np.where(np.abs(values) <= _LARGEST, values, np.nan)


def evenly(items: Iterable[T], size: int) -> list[T]:
    """Return about `size` items, evenly spaced over a stream of unknown length; at most twice as many are held."""
    kept: list[T] = []
    step = 1
    for i, item in enumerate(items):
        if i % step == 0:
            kept.append(item)
            if len(kept) == 2 * size:
                kept, step = kept[::2], step * 2
    return kept if len(kept) <= size else [kept[i * len(kept) // size] for i in range(size)]


def digest(value: JsonValue) -> str:
    """Hash a JSON value: the same value gives the same 32 hexadecimal digits on every machine."""
    text = json.dumps(value, sort_keys=True, ensure_ascii=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()[:32]


@runtime_checkable
class Identified(Protocol):
    """A configuration value that can say which part of it decides results."""

    def identity(self) -> JsonValue:
        """Return what decides results: for example a model's weights, but not the folder they are in."""
        ...


@runtime_checkable
class Dated(Protocol):
    """A model whose prompts may contain the current date."""

    def dated(self, day: datetime.date) -> Self:
        """Return the model with `day` as the date in its prompts; the model itself where that changes nothing."""
        ...


class Data(Protocol):
    """What `Step.prepare` may read: whole columns, a shard at a time."""

    def rows(self, columns: Sequence[str]) -> Iterator[pa.Table]:
        """Iterate over the rows, a table a shard."""
        ...

    def corpus(self, columns: Sequence[str]) -> Iterator[pa.Table]:
        """Iterate over the retrieval corpus, a table a shard."""
        ...

    def noise(self, column: str) -> dict[str, float]:
        """Return the measured noise of what a column's step added, by column; see `seamcurate.score.noise`."""
        ...

    def prepared(self, column: str, file: str) -> dict[str, JsonValue]:
        """Return a JSON object that a column's step prepared for all its shards; empty where no step added the column."""
        ...


class Averages(NamedTuple):
    """Average lengths of a row's texts in characters: all that a plan needs to know about the rows."""

    prompt: float
    response: float
    reference: float
    candidates: float
    """Candidates per row."""
    candidate: float
    """Characters per candidate."""


class Work(NamedTuple):
    """The average work of a model for one row."""

    model: BaseModel | None
    sequences: float
    characters: float
    answer: float = 0.0
    """Characters that the model generates."""


class SampleSet(NamedTuple):
    """A kind of worse answers: a row of `SAMPLE_SETS`."""

    name: str
    """Its variant: the set is the column `worse_{name}`, and its scores end in `_{name}`."""
    step: str
    """The recipe's name of the step that makes it; empty where the source brings it."""
    meaning: str
    instructions: bool = False
    """Whether its answers have instructions I* of their own, and so make pairs to fine-tune on."""
    sampled: bool = False
    """Whether the policy gave the answers itself: then how often it gave one, its `count`, is its weight in SEAM."""
    undecided: bool = False
    """Whether some of its answers may be as good as the golden response: none is exported as a rejected one."""


SAMPLE_SETS: tuple[SampleSet, ...] = (
    SampleSet("contrast", "retrieve", "answers to similar questions of the corpus", instructions=True),
    SampleSet("gpt", "generate", "answers that a language model wrote to be worse"),
    SampleSet("adv", "attack", "perturbations of a worse answer that the reward model rewards best"),
    SampleSet(
        "policy", "rollouts", "what the policy itself answers, which need not be worse", sampled=True, undecided=True
    ),
    SampleSet(
        "probe", "probes", "the golden response as each probe of an audit changes it; some are no worse", undecided=True
    ),
    SampleSet("given", "", "answers that the source itself calls worse, as the layouts of preference data read them"),
)
"""SEAM's sets of worse answers (SEAM §4.1), and the policy's own. To add one, write the step that adds `worse_{name}`, and add a row."""


def sample_set(variant: str) -> SampleSet:
    """Return the table's row of a variant."""
    return next(kind for kind in SAMPLE_SETS if kind.name == variant)


def is_sampled(variant: object) -> bool:
    """Tell whether a variant's answers are the policy's own, so that each has a `count`."""
    return any(kind.sampled for kind in SAMPLE_SETS if kind.name == variant)


def is_undecided(variant: object) -> bool:
    """Tell whether answers of a variant may be as good as the golden response, so that none may be trained against."""
    return any(kind.undecided for kind in SAMPLE_SETS if kind.name == variant)


if TYPE_CHECKING:
    Variant: TypeAlias = str
else:
    # A type checker cannot read the table; pydantic can.
    Variant = Literal[tuple(kind.name for kind in SAMPLE_SETS)]


class Step(BaseModel):
    """Add columns to rows; the base class of every step.

    A subclass is a frozen pydantic model: its fields are its configuration. It declares `inputs` (the columns it reads) and
    `adds` (an Arrow schema made with `column`), and implements `load`. `prepare` and all other methods are optional.

    `load` returns a function from a table of at most `rows_per_call` rows, with the columns in `inputs`, to a table of the
    added columns: as many rows, in the same order. The function may return a Polars or pandas frame, too. The results must not depend on how the rows are divided into calls.

    Raises:
        pydantic.ValidationError: A field's value is not valid, or there is no such field.

    Example:
        >>> import pyarrow as pa
        >>> from seamcurate import Step, column
        >>> class Hedges(Step):
        ...     word: str = "perhaps"
        ...
        ...     @property
        ...     def inputs(self):
        ...         return ("response",)
        ...
        ...     @property
        ...     def adds(self):
        ...         return pa.schema([column("n_hedges", pa.int32(), "how often the response hedges")])
        ...
        ...     def load(self, shared):
        ...         def count(rows):
        ...             numbers = [text.lower().count(self.word) for text in rows["response"].to_pylist()]
        ...             return pa.table({"n_hedges": pa.array(numbers, pa.int32())})
        ...         return count
        >>> step = Hedges()
        >>> step.name
        'hedges'
        >>> step.load(None)(pa.table({"response": ["Perhaps so, perhaps not."]})).to_pylist()
        [{'n_hedges': 2}]
    """

    model_config = ConfigDict(frozen=True, extra="forbid", hide_input_in_errors=True)

    revision: ClassVar[int] = 1
    """Part of the fingerprint. Raise it when a change of the code changes the values that a configuration gives."""

    extras: ClassVar[tuple[str, ...]] = ()
    """The extras of seamcurate whose packages it imports, beyond those of its models; a run looks for them before it starts."""

    rows_per_call: ClassVar[int] = 64
    """The most rows that are passed to the transform at once; results must not depend on it."""

    without_references: ClassVar[str] = ""
    """Why a source that maps no `reference` is refused, and what to use in the step's place; empty where NULL will do."""

    @property
    def name(self) -> str:
        """Name the folder of the step's columns: by default the class's name in snake case."""
        return re.sub(r"(?<=[a-z])(?=[A-Z])", "_", type(self).__name__).lower()

    @property
    @abstractmethod
    def inputs(self) -> tuple[str, ...]:
        """Name the columns of a row that the transform, or `prepare`, reads."""

    @property
    def optional_inputs(self) -> tuple[str, ...]:
        """Name further columns that the transform reads where the source, or an earlier step of the recipe, has them."""
        return ()

    @property
    @abstractmethod
    def adds(self) -> pa.Schema:
        """Declare the added columns, made with `column`."""

    @property
    def reads_all_rows(self) -> bool:
        """Tell whether `prepare` reads every row, so that appended rows change the values of the old ones."""
        return False

    @property
    def unused_models(self) -> tuple[str, ...]:
        """Name the fields of models that this configuration does not use: a recipe's models are not put there."""
        return ()

    @property
    def on_corpus(self) -> tuple[Step, ...]:
        """Name the steps that must have run over the corpus before this one."""
        return ()

    @property
    def corpus_inputs(self) -> tuple[str, ...]:
        """Name the columns of the corpus that `prepare` reads."""
        return ()

    def prepare(self, data: Data, shared: Path) -> None:
        """Build once per store what all shards need, inside the folder `shared`. Optional."""

    @abstractmethod
    def load(self, shared: Path) -> Transform:
        """Return the transform, which owns whatever is heavy, such as a model; the step itself stays a value."""

    def facts(self, columns: Iterable[pa.Table], shared: Path) -> dict[str, JsonValue]:
        """Summarize the finished columns in numbers, which the store keeps in the step's record. Optional."""
        return {}

    def work(self, rows: Averages) -> Work | list[Work] | None:
        """Estimate the work for one row, of each model where there are several; None for a step without a model."""
        return None

    def first_work(self, rows: Averages, count: int) -> list[Work]:
        """List the work that is done once, before the first of `count` rows, such as measuring a noise floor."""
        return []

    def works(self, rows: Averages) -> list[Work]:
        """List the work for one row by model; a step without a model has none."""
        work = self.work(rows)
        return [] if work is None else [work] if isinstance(work, Work) else work

    def dated(self, day: datetime.date) -> Self:
        """Return the step with `day` as the date in its models' prompts; the step itself where that changes nothing."""
        models = {key: value for key, value in self if isinstance(value, Dated)}
        changed = {key: new for key, old in models.items() if (new := old.dated(day)) != old}
        return self.model_copy(update=changed) if changed else self

    def identity(self) -> dict[str, JsonValue]:
        """Return everything that decides the values this step adds, except its inputs."""
        fields: dict[str, JsonValue] = {}
        for key in type(self).model_fields:
            value = getattr(self, key)
            fields[key] = (
                value.identity()
                if isinstance(value, Identified)
                else json.loads(json.dumps(self.model_dump(mode="json", include={key})[key]))
            )
        return {"step": type(self).__name__, "revision": self.revision, **fields}


def without_default(identity: dict[str, JsonValue], field: str) -> dict[str, JsonValue]:
    """Leave a field that is not set out of an identity, so that columns made before there was the field stay valid."""
    return {name: value for name, value in identity.items() if name != field or value}
