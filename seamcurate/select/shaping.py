"""What a split drops of the rows that its filter keeps, so that the rest has a composition: caps, shares, a distribution.

One rule: which rows stay is decided by the seed and their ids alone, the same on every machine, and each row that is
dropped has a rule of its own in the ledger.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import NamedTuple, TypeAlias

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
from pydantic import BaseModel, ConfigDict, Field, field_validator

from seamcurate.errors import RecipeError
from seamcurate.select.order import draws
from seamcurate.text import brief, counted, suggestion

Mask: TypeAlias = npt.NDArray[np.bool_]
Indices: TypeAlias = npt.NDArray[np.int64]

_DISTINCT, _BINS = 64, 32
"""A column of at most 64 distinct values is shaped by value, another by 32 bins of equal width."""
_MISSING = 0.05
"""The share of the distribution for which rows may be missing; without it the scarcest bin would decide how many stay."""
_TAILS = 3.0
"""Standard deviations beyond which a normal distribution has no rows."""
_FAR = 0.25
"""How far the mean may be off, in standard deviations, and the standard deviation as a share, before a warning."""


class AtMost(BaseModel):
    """Keep at most so many rows of each value of a column, for `Split.at_most`.

    Rows without a value count as one value.

    Example:
        >>> from seamcurate import AtMost, Split
        >>> Split(filter="SELECT row_id FROM rows", at_most=AtMost(by="source", rows=500)).at_most.rows
        500
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    by: str
    """A column of text, whole numbers or true and false."""
    rows: int = Field(ge=1)
    """How many rows of each value are kept; which ones, is random."""
    seed: int = 0
    """The seed by which rows are drawn."""


class Balance(BaseModel):
    """Keep rows so that each value of a column has its share, for `Split.balance`.

    As many rows are kept as the value with the fewest rows for its share allows. Rows of other values, and rows without
    one, are dropped.

    Raises:
        pydantic.ValidationError: The shares do not sum to 1, or one is not above 0.

    Example:
        >>> from seamcurate import Balance, Split
        >>> balance = Balance(by="source", shares={"math": 0.4, "code": 0.4, "chat": 0.2})
        >>> sum(Split(filter="SELECT row_id FROM rows", balance=balance).balance.shares.values())
        1.0
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    by: str
    """A column of text, whole numbers or true and false."""
    shares: dict[str, float]
    """The share of each value among the kept rows."""
    seed: int = 0
    """The seed by which rows are drawn."""

    @field_validator("shares")
    @classmethod
    def _whole(cls, shares: dict[str, float]) -> dict[str, float]:
        for value, share in shares.items():
            if not 0 < share <= 1:
                raise ValueError(f"the share of {value} is above 0 and at most 1, not {share:g}")
        # Shares such as a third are written with a few digits.
        if abs(sum(shares.values()) - 1) > 1e-4:
            raise ValueError(f"shares sum to 1, not to {sum(shares.values()):.6g}")
        return shares


class Distribution(BaseModel):
    """Keep rows so that a column's values follow a normal distribution, for `Split.shape`.

    Rows are dropped where the column has more than the distribution asks for. As many are kept as leave at most 5 % of the
    distribution short of rows. Rows beyond three standard deviations are dropped, and so are rows without a value.

    Raises:
        pydantic.ValidationError: The standard deviation is not above 0.

    Example:
        >>> from seamcurate import Distribution, Split
        >>> split = Split(filter="SELECT row_id FROM rows", shape=Distribution(by="reward", normal=(0.5, 0.2)))
        >>> split.shape.normal
        (0.5, 0.2)
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    by: str
    """A column of numbers."""
    normal: tuple[float, float]
    """Mean and standard deviation, in the column's unit."""
    seed: int = 0
    """The seed by which rows are drawn."""

    @field_validator("normal")
    @classmethod
    def _positive(cls, normal: tuple[float, float]) -> tuple[float, float]:
        if not all(map(math.isfinite, normal)) or normal[1] <= 0:
            raise ValueError(f"normal is [mean, standard deviation], the second above 0, not {list(normal)}")
        return normal


Rule: TypeAlias = AtMost | Balance | Distribution


class Drop(NamedTuple):
    """Rows that one rule drops."""

    rows: Indices
    """Their positions in the ledger."""
    rule: str
    values: npt.NDArray[np.float64] | None = None
    """The value of each that decided, if it is a number."""


class Shaped(NamedTuple):
    """What a rule does to a split."""

    drops: list[Drop]
    line: str
    """What to tell a person about it."""


def check(rule: Rule, kinds: Mapping[str, pa.DataType]) -> None:
    """Refuse a rule whose column is not there, or is of another type than it takes.

    Raises:
        RecipeError: See above.
    """
    key = _KEYS[type(rule)]
    if rule.by not in kinds:
        raise RecipeError(
            f"{key} by: {rule.by!r} is no column of this store; there are: {', '.join(kinds)}{suggestion(rule.by, kinds)}"
        )
    kind = kinds[rule.by]
    number = pa.types.is_integer(kind) or pa.types.is_floating(kind)
    group = pa.types.is_string(kind) or pa.types.is_integer(kind) or pa.types.is_boolean(kind)
    if not (number if isinstance(rule, Distribution) else group):
        wanted = "numbers" if isinstance(rule, Distribution) else "text, whole numbers or true and false"
        raise RecipeError(f"{key} by: {rule.by} is {kind!s:.60}; name a column of {wanted}")


_KEYS: dict[type[BaseModel], str] = {AtMost: "at_most", Distribution: "shape", Balance: "balance"}
KEYS = tuple(_KEYS.values())
"""The rules by their keys in a recipe, in the order in which they are applied."""


def described(rule: Rule) -> str:
    """Return a rule in words."""
    if isinstance(rule, AtMost):
        return f"at most {rule.rows:,} rows of each `{rule.by}`"
    if isinstance(rule, Distribution):
        return f"`{rule.by}` as normal with mean {rule.normal[0]:g} and standard deviation {rule.normal[1]:g}"
    return f"`{rule.by}` in shares: " + ", ".join(f"{value} {share:g}" for value, share in rule.shares.items())


def apply(rule: Rule, row_ids: Indices, kept: Indices, column: pa.ChunkedArray) -> Shaped:
    """Decide which of the kept rows a rule drops.

    Args:
        rule: The rule.
        row_ids: The rows' ids, (kept rows,).
        kept: Their positions in the ledger, (kept rows,).
        column: The column that the rule names, (kept rows,).

    Raises:
        RecipeError: The rule names a value that no kept row has, or no row can stay.
    """
    drawn = draws(row_ids, rule.seed, _KEYS[type(rule)])
    if isinstance(rule, Distribution):
        return _distributed(rule, drawn, kept, column)
    codes, names = _groups(column)
    if isinstance(rule, AtMost):
        over = _places(codes, drawn) >= rule.rows
        line = f"at most {rule.rows:,} rows of each {rule.by}: {counted(int(over.sum()), 'row')} dropped"
        return Shaped([Drop(kept[over], f"at most {rule.rows:,} rows of each {rule.by}")], line)
    return _balanced(rule, drawn, kept, codes, names)


def check_values(balance: Balance, column: pa.ChunkedArray) -> None:
    """Refuse shares of values that no row has.

    Raises:
        RecipeError: See above.
    """
    _, names = _groups(column)
    for value in balance.shares:
        if value not in names:
            raise RecipeError(
                f"balance: no row has {balance.by} {value!r}; its values are: {brief(', '.join(names), 200)}{suggestion(value, names)}"
            )


def _groups(column: pa.ChunkedArray) -> tuple[Indices, list[str]]:
    """Return the number of each row's value and the values as text; rows without a value have the number after the last."""
    encoded = column.cast(pa.string()).combine_chunks().dictionary_encode()
    names: list[str] = encoded.dictionary.to_pylist()
    return pc.fill_null(encoded.indices, len(names)).to_numpy().astype(np.int64), names


def _places(groups: Indices, drawn: npt.NDArray[np.uint64]) -> Indices:
    """Return the place of each row in the random order of its group, from 0: (rows,)."""
    order = np.lexsort((drawn, groups))
    sorted_groups = groups[order]
    places = np.empty(len(groups), np.int64)
    places[order] = np.arange(len(groups)) - np.searchsorted(sorted_groups, sorted_groups)
    return places


def _balanced(rule: Balance, drawn: npt.NDArray[np.uint64], kept: Indices, codes: Indices, names: list[str]) -> Shaped:
    sizes = np.bincount(codes, minlength=len(names) + 1)
    for value, share in rule.shares.items():
        if value not in names or not sizes[names.index(value)]:
            raise RecipeError(
                f"balance: the filter keeps no row with {rule.by} {value!r}, which is to have a share of {share:g}; "
                "leave that value out, or keep some of its rows"
            )
    available = {value: int(sizes[names.index(value)]) for value in rule.shares}
    scarcest = min(rule.shares, key=lambda value: available[value] / rule.shares[value])
    total = math.floor(available[scarcest] / rule.shares[scarcest] + 1e-6)
    quotas = _quotas(rule.shares, total, available)
    places, drops = _places(codes, drawn), []
    for value, quota in quotas.items():
        over = (codes == names.index(value)) & (places >= quota)
        drops.append(Drop(kept[over], f"balance: {rule.by} {value} has a share of {rule.shares[value]:g}"))
    shared = np.isin(codes, [names.index(value) for value in rule.shares])
    drops.append(Drop(kept[~shared & (codes < len(names))], f"balance: this {rule.by} has no share"))
    drops.append(Drop(kept[codes == len(names)], f"balance: no {rule.by}"))
    parts = ", ".join(f"{quota:,} of {available[value]:,} {value}" for value, quota in quotas.items())
    line = f"balance by {rule.by} keeps {parts}; {scarcest} has the fewest rows for its share"
    others = len(drops[-2].rows) + len(drops[-1].rows)
    return Shaped(drops, line + (f"; {counted(others, 'row')} of no share dropped" if others else ""))


def _quotas(shares: Mapping[str, float], total: int, available: Mapping[str, int]) -> dict[str, int]:
    """Divide a number of rows by shares: each gets the whole part, and the largest remainders one more."""
    exact = {value: share * total for value, share in shares.items()}
    quotas = {value: min(math.floor(rows + 1e-6), available[value]) for value, rows in exact.items()}
    for value in sorted(shares, key=lambda value: quotas[value] - exact[value]):
        if sum(quotas.values()) < total and quotas[value] < available[value] and exact[value] - quotas[value] > 1e-6:
            quotas[value] += 1
    return quotas


def _distributed(rule: Distribution, drawn: npt.NDArray[np.uint64], kept: Indices, column: pa.ChunkedArray) -> Shaped:
    mean, deviation = rule.normal
    values = np.asarray(column.cast(pa.float64(), safe=False).to_numpy(), np.float64)
    valued = np.isfinite(values)
    near = valued & (np.abs(values - mean) <= _TAILS * deviation)
    if not near.any():
        raise RecipeError(
            f"shape: no kept row has {rule.by} within three standard deviations of {mean:g}; give another `normal`"
        )
    bins, weights = _bins(values[near], mean, deviation)
    sizes = np.bincount(bins, minlength=len(weights))
    # A bin without rows cannot be filled, whatever is dropped elsewhere.
    weights = np.where(sizes > 0, weights, 0)
    quotas = _rows_of(weights / weights.sum(), sizes)
    over = np.zeros(len(values), bool)
    over[near] = _places(bins, drawn[near]) >= quotas[bins]
    far, stay = valued & ~near, near & ~over
    target = f"normal with mean {mean:g} and standard deviation {deviation:g}"
    drops = [
        Drop(kept[over], f"shape: more rows of this {rule.by} than {target} asks for", values[over]),
        Drop(kept[far], f"shape: {rule.by} beyond three standard deviations of {target}", values[far]),
        Drop(kept[~valued], f"shape: no {rule.by}"),
    ]
    got, spread = float(values[stay].mean()), float(values[stay].std())
    line = f"shape: {rule.by} of the kept rows has mean {got:.3g} and standard deviation {spread:.3g}; asked for were {mean:g} and {deviation:g}"
    if abs(got - mean) > _FAR * deviation or abs(spread / deviation - 1) > _FAR:
        line = f"warning: {line}: there are too few rows elsewhere"
    return Shaped(drops, line)


def _bins(values: npt.NDArray[np.float64], mean: float, deviation: float) -> tuple[Indices, npt.NDArray[np.float64]]:
    """Return each value's bin, (values,), and how much of the distribution lies in each bin, (bins,)."""
    distinct, bins = np.unique(values, return_inverse=True)
    if len(distinct) <= _DISTINCT:
        # Such as pass rates of a few samples: each value is weighted by the density there.
        return bins, np.exp(-0.5 * ((distinct - mean) / deviation) ** 2)
    edges = np.linspace(distinct[0], distinct[-1], _BINS + 1)
    below = np.array([0.5 * (1 + math.erf((edge - mean) / deviation / math.sqrt(2))) for edge in edges])
    return np.clip(np.searchsorted(edges, values, side="right") - 1, 0, _BINS - 1), np.diff(below)


def _rows_of(weights: npt.NDArray[np.float64], sizes: Indices) -> Indices:
    """Return how many rows stay in each bin: as many in all as leave at most `_MISSING` of them short of rows."""
    low, high = 1, int(sizes.sum())
    while low < high:
        total = (low + high + 1) // 2
        if np.maximum(weights * total - sizes, 0).sum() <= _MISSING * total:
            low = total
        else:
            high = total - 1
    return np.minimum(sizes, np.floor(weights * low + 0.5).astype(np.int64))
