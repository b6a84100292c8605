"""The one abstraction: a step reads named columns and adds its own beside them.

A step is a frozen value. Its fields are its whole configuration, so a YAML recipe, its validation, its JSON
and its fingerprint come from one place. It never drops, joins or reorders a row, and knows nothing of files:
a store hands it tables and keeps what it returns.
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
from typing import ClassVar, NamedTuple, Protocol, Self, TypeVar, runtime_checkable

import numpy as np
import numpy.typing as npt
import pyarrow as pa
from pydantic import BaseModel, ConfigDict, JsonValue

T = TypeVar("T")

Transform = Callable[[pa.Table], pa.Table]
"""A shard's rows in, the added columns out: as many rows, in the same order."""

MESSAGES = pa.list_(pa.struct([("role", pa.string()), ("content", pa.string())]))
"""A chat prompt, as every trainer spells it."""


def column(name: str, kind: pa.DataType, meaning: str) -> pa.Field:
    """Declare one added column; `meaning` is the line `seamcurate columns` shows."""
    return pa.field(name, kind, metadata={"meaning": meaning})


_LARGEST = 3.5e38
"""Just above what a model's single precision holds: sums and products of larger numbers overflow."""


def finite(value: float | None) -> float | None:
    """Keep a score that can be compared; NaN, infinities and what overflows in a sum become NULL."""
    return value if value is not None and math.isfinite(value) and abs(value) <= _LARGEST else None


def comparable(values: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    """Keep scores as `finite` does, with NaN for the others."""
    return np.where(np.abs(values) <= _LARGEST, values, np.nan)


def evenly(items: Iterable[T], size: int) -> list[T]:
    """Take about `size` items from all over a stream of unknown length, never holding more than twice as many."""
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
    """A configuration value that knows which part of itself decides results."""

    def identity(self) -> JsonValue:
        """Return what decides results: a model's weights, say, but not the folder they lie in."""
        ...


@runtime_checkable
class Dated(Protocol):
    """A model whose prompts may hold a date."""

    def dated(self, day: datetime.date) -> Self:
        """Return the model with `day` as the date in its prompts; itself where it has one or they hold none."""
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


class Averages(NamedTuple):
    """What rows are like on average, in characters: all that a plan needs to know of them."""

    prompt: float
    response: float
    reference: float
    candidates: float
    """How many candidates a row has."""
    candidate: float
    """How long one candidate is."""


class Work(NamedTuple):
    """What a step asks of a model for one row, on average."""

    model: BaseModel | None
    sequences: float
    characters: float
    answer: float = 0.0
    """Characters the model writes."""


class Step(BaseModel):
    """Add columns to rows.

    Subclasses declare `inputs` and `adds` and implement `load`; the rest has a default.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", hide_input_in_errors=True)

    revision: ClassVar[int] = 1
    """Raised whenever the same configuration would give other values: it is part of the fingerprint."""

    rows_per_call: ClassVar[int] = 64
    """How many rows the transform is handed at once; results must not depend on it."""

    @property
    def name(self) -> str:
        """Name the folder its columns lie in: the class in snake case unless a step says otherwise."""
        return re.sub(r"(?<=[a-z])(?=[A-Z])", "_", type(self).__name__).lower()

    @property
    @abstractmethod
    def inputs(self) -> tuple[str, ...]:
        """Name the columns of a row that the transform, or `prepare`, reads."""

    @property
    @abstractmethod
    def adds(self) -> pa.Schema:
        """Declare the added columns, made with `column`."""

    @property
    def reads_all_rows(self) -> bool:
        """Tell whether `prepare` measures every row, so that more rows make another column."""
        return False

    @property
    def on_corpus(self) -> tuple[Step, ...]:
        """Name the steps that must have run over the corpus before this one."""
        return ()

    @property
    def corpus_inputs(self) -> tuple[str, ...]:
        """Name the columns of the corpus that `prepare` reads."""
        return ()

    def prepare(self, data: Data, shared: Path) -> None:
        """Build once per store what all shards share, inside the folder `shared`. Optional."""

    @abstractmethod
    def load(self, shared: Path) -> Transform:
        """Return a function that owns whatever is heavy; the step itself stays a value."""

    def facts(self, columns: Iterable[pa.Table], shared: Path) -> dict[str, JsonValue]:
        """Sum up the finished columns in numbers that are kept beside them. Optional."""
        return {}

    def work(self, rows: Averages) -> Work | None:
        """Estimate what one row asks of a model; None for a step without one."""
        return None

    def dated(self, day: datetime.date) -> Self:
        """Return the step with `day` as the date in its models' prompts; itself where they hold none."""
        models = {key: value for key, value in self if isinstance(value, Dated)}
        changed = {key: new for key, old in models.items() if (new := old.dated(day)) != old}
        return self.model_copy(update=changed) if changed else self

    def identity(self) -> dict[str, JsonValue]:
        """Return all that decides the values this step adds, its inputs apart."""
        fields: dict[str, JsonValue] = {}
        for key in type(self).model_fields:
            value = getattr(self, key)
            fields[key] = (
                value.identity()
                if isinstance(value, Identified)
                else json.loads(json.dumps(self.model_dump(mode="json", include={key})[key]))
            )
        return {"step": type(self).__name__, "revision": self.revision, **fields}
