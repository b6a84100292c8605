"""Which columns of a store find the rows that its reward model misjudges, by what people said of other answers.

validity   a store, and prompt, response_a, response_b, label; or prompt, response, score
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple, TypeAlias

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from seamcurate.errors import StudyError
from seamcurate.models import RewardModel
from seamcurate.study import figure, judged_rows, ranking
from seamcurate.study.judged_rows import SIMPLE, JudgedRows
from seamcurate.study.ranking import Estimate
from seamcurate.study.results import Study, StudyResult, result, tabulate
from seamcurate.study.sources import StudySource
from seamcurate.study.statistics import NOTHING, Doubles, Interval, holm, in_percent, percent, share, shown

if TYPE_CHECKING:
    from matplotlib.figure import Figure

Flags: TypeAlias = npt.NDArray[np.bool_]
CEILING = "the other half of the pairs"
_RATES = (0.1, 0.2, 0.4, 0.6)
"""Shares of rows that are left out, of which the rest's errors are told."""
_FEWEST = 20
"""Rows with a value that a column needs."""
_GOLDEN_LIMIT = 0.2
"""The share of golden responses below another answer from which SEAM finds clearly less: see `_golden`."""
_ALPHA = 0.05
"""The adjusted p-value below which a column is said to find something."""
_POWER = 2.8
"""Standard errors that an effect must have to be seen with a probability of 80 % at 5 %: 1.96 + .84."""
_SHOWN = 24
"""Columns in the figure."""
_COLUMNS = {
    "column": "a numeric column of the store, or a simple one beside them",
    "suspect": "which of its values are suspected: low or high",
    "rows": "rows that have a value and a judged pair",
    "p": "two-sided probability of such an AUC by chance, adjusted for the number of columns (Holm)",
    **{
        f"error_kept_{100 * rate:.0f}": f"share of pairs ordered wrongly in the rows that remain without the most suspected {rate:.0%}"
        for rate in _RATES
    },
    "auc": "probability that a row most of whose pairs the reward orders wrongly is the more suspected of two; .5 is chance",
    "spearman": "rank correlation of suspicion with the share of pairs ordered wrongly",
    "spearman_within": "the same within each value of `by`",
    "caught": "share of all errors that the most suspected 20 % of rows hold; a row's errors are its share of pairs ordered wrongly",
    "auc_gradient": "of rated answers: AUC for a row where the reward falls as the score rises",
}


class Column(NamedTuple):
    """How well one column finds misjudged rows."""

    name: str
    rows: int
    auc: Estimate
    spearman: Estimate
    within: Estimate | None
    caught: Estimate
    gradient: Estimate | None
    """None for judged pairs."""
    kept: Sequence[float]
    """The share of wrong pairs that remains at each of the rates."""
    p: float
    """Of the AUC, not adjusted."""


@dataclass(frozen=True)
class Validity:
    """What the columns of a store find, the best first."""

    columns: Sequence[Column]
    adjusted: Mapping[str, float]
    """p-values by column, adjusted for their number (Holm)."""
    ceiling: Column | None
    """What half of a row's pairs tells of the other half; None where too few rows have two pairs."""
    accuracy: Interval
    """The share of pairs that the reward orders as people do."""
    pairs: int
    rows: int
    misordered: float
    """The share of rows, apart from undecided ones, of which most pairs are ordered wrongly."""
    golden: Interval
    """The share of golden responses that people put below another answer."""
    left_out: Sequence[str]


def validity(
    *tables: StudySource,
    rewards: Mapping[str, RewardModel] | None = None,
    by: str | None = None,
    columns: Sequence[str] = (),
) -> StudyResult:
    """Measure which columns of a store find the rows that its reward model misjudges, on your own judged answers.

    Reads a scored store, and judged pairs (`prompt`, `response_a`, `response_b`, `label`: `a`, `b` or `tie`; optionally
    `reward_a`, `reward_b`, `context`) or rated answers (`prompt`, `response`, `score`; optionally `reward`). Rows are joined
    by their prompt. A row's truth is the share of its pairs that the reward orders against people; equal rewards count one
    half. Pairs that hold the row's golden response or one of its candidates are left out, as its columns know them: what is
    measured is whether a column says something of *other* answers. Whether the reward model was trained on these pairs cannot
    be told from here; on such pairs it looks better than it is.

    Every numeric column is measured, the simple ones beside them: a random number, and the words of the prompt and of the
    golden response. Intervals are bootstraps over prompts, on the same draws for all columns.

    Args:
        tables: The store, then tables of judged answers.
        rewards: The store's reward model, where the tables have no rewards.
        by: A column of the store or of the tables, such as the source: correlations are also taken within its values.
        columns: The store's columns to measure; all numeric ones where none is named.

    Raises:
        StudyError: The sources cannot be read or share no prompt, the reward model is not the store's, or all rows are judged
            alike.
    """
    judged = judged_rows.read("validity", tables, rewards or {}, columns, by)
    validity = measure(judged, within=by is not None)
    return result("validity", _table(validity), _figure(validity), _finding(validity))


def measure(judged: JudgedRows, within: bool = False) -> Validity:
    """Measure each column against the errors of the reward model.

    Raises:
        StudyError: No row, or every row, is misjudged; or no column has enough values.
    """
    rows = [i for i, row in enumerate(judged.rows) if len(row.wrong)]
    truth = _Truth.of(judged, rows)
    if not 0 < truth.wrong_way[truth.decided].sum() < truth.decided.sum():
        raise StudyError(
            f"validity: the reward model orders the pairs of all {len(rows)} rows alike; a column cannot tell them apart"
        )
    columns = []
    for name, values in judged.columns.items():
        has_value = np.isfinite(values[rows])
        # A column of one value ranks nothing.
        if has_value.sum() >= _FEWEST and np.ptp(values[rows][has_value]) > 0:
            column = _column(name, values[rows][has_value], truth.taken(has_value), within)
            if math.isfinite(column.auc.value):
                columns.append(column)
    measured = [column for column in columns if column.name not in SIMPLE]
    if not measured:
        raise StudyError(
            f"validity: no numeric column has {_FEWEST} values on rows with a judged pair ({len(rows)} rows); judge more, "
            "or score the store first"
        )
    adjusted = dict(zip([c.name for c in measured], holm([c.p for c in measured]), strict=True))
    # A pair is counted once, however many rows have its prompt.
    outcomes = {
        pair: (judged.rows[i].prompt, outcome)
        for i in rows
        for pair, outcome in zip(judged.rows[i].pairs, judged.rows[i].wrong.tolist(), strict=True)
    }
    right = np.array([1 - outcome for _, outcome in outcomes.values()])
    golden = np.arange(judged.golden) < judged.golden_below
    return Validity(
        sorted(columns, key=lambda column: -column.auc.value),
        adjusted,
        _ceiling(judged, rows, within),
        share(right, [prompt for prompt, _ in outcomes.values()]),
        len(outcomes),
        len(rows),
        float(truth.wrong_way[truth.decided].mean()),
        share(golden.astype(np.float64), range(judged.golden)) if judged.golden else NOTHING,
        judged.left_out_lines,
    )


class _Truth(NamedTuple):
    """What people's pairs say of the reward on each row."""

    errors: Doubles
    """Pairs ordered wrongly, (rows,)."""
    pairs: Doubles
    wrong_way: Flags
    """Whether most pairs are ordered wrongly; read only where `decided`."""
    decided: Flags
    """Whether more or fewer than half of the pairs are."""
    gradient: Doubles
    """Of rated answers, the covariance of reward and score; NaN for judged pairs."""
    prompts: Sequence[str]
    groups: Sequence[str]

    @classmethod
    def of(cls, judged: JudgedRows, rows: Sequence[int]) -> _Truth:
        chosen = [judged.rows[i] for i in rows]
        errors = np.array([row.wrong.sum() for row in chosen])
        pairs = np.array([len(row.wrong) for row in chosen], np.float64)
        gradient = [
            float(np.cov([a.reward for a in row.answers], [a.score for a in row.answers])[0, 1])
            if len(row.answers) > 1
            else math.nan
            for row in chosen
        ]
        return cls(
            errors, pairs, errors > pairs / 2, errors != pairs / 2, np.array(gradient),
            [row.prompt for row in chosen], [row.group for row in chosen],
        )  # fmt: skip

    def taken(self, chosen: Flags) -> _Truth:
        """Return some of the rows."""
        places = np.flatnonzero(chosen).tolist()
        return _Truth(
            self.errors[chosen], self.pairs[chosen], self.wrong_way[chosen], self.decided[chosen], self.gradient[chosen],
            [self.prompts[i] for i in places], [self.groups[i] for i in places],
        )  # fmt: skip


def _column(name: str, values: Doubles, truth: _Truth, within: bool) -> Column:
    """Measure one column on the rows where it has a value; high is suspected."""
    errors = truth.errors / truth.pairs
    decided = truth.taken(truth.decided)
    auc = ranking.estimate(ranking.auc(values[truth.decided], decided.wrong_way), decided.prompts)
    gradient = None
    known = np.isfinite(truth.gradient) & (truth.gradient != 0)
    if known.any():
        falls = ranking.auc(values[known], truth.gradient[known] < 0)
        gradient = ranking.estimate(falls, truth.taken(known).prompts)
    return Column(
        name,
        len(values),
        auc,
        ranking.estimate(ranking.spearman(values, errors), truth.prompts),
        ranking.estimate(ranking.spearman(values, errors, truth.groups), truth.prompts) if within else None,
        # By share: else a column that knows how many pairs a row has, such as a length, would seem to find errors.
        ranking.estimate(ranking.top_share(values, errors, 0.2), truth.prompts),
        gradient,
        [
            float(ranking.kept_mean(values, truth.errors, truth.pairs, rate)(np.ones((1, len(values))))[0])
            for rate in _RATES
        ],
        auc.p_value(0.5),
    )


def _ceiling(judged: JudgedRows, rows: Sequence[int], within: bool) -> Column | None:
    """Measure what one half of a row's pairs, drawn at random, tells of the other half."""
    random = np.random.default_rng(0)
    several = [i for i in rows if len(judged.rows[i].wrong) > 1]
    if len(several) < _FEWEST:
        return None
    halves = []
    for i in several:
        shuffled = random.permutation(judged.rows[i].wrong)
        middle = (len(shuffled) + 1) // 2
        halves.append((shuffled[:middle], shuffled[middle:]))
    truth = _Truth.of(judged, several)
    errors = np.array([half.sum() for half, _ in halves])
    pairs = np.array([len(half) for half, _ in halves], np.float64)
    truth = truth._replace(
        errors=errors,
        pairs=pairs,
        wrong_way=errors > pairs / 2,
        decided=errors != pairs / 2,
        gradient=np.full(len(several), math.nan),
    )
    values = np.array([half.mean() for _, half in halves])
    if np.ptp(values) == 0 or not 0 < truth.wrong_way[truth.decided].sum() < truth.decided.sum():
        return None
    return _column(CEILING, values, truth, within)


# ── what is told ────────────────────────────────────────────────────────────────────────────────────────


def _table(validity: Validity) -> pa.Table:
    columns = [*validity.columns, *([validity.ceiling] if validity.ceiling else [])]
    plain: dict[str, Sequence[object]] = {
        "column": [column.name for column in columns],
        "suspect": ["high" if column.name == CEILING else judged_rows.suspect(column.name) for column in columns],
        "rows": [column.rows for column in columns],
        "p": [_or_none(validity.adjusted.get(column.name)) for column in columns],
    }
    for i, rate in enumerate(_RATES):
        plain[f"error_kept_{100 * rate:.0f}"] = [_or_none(column.kept[i]) for column in columns]
    intervals = {
        "auc": [column.auc.interval for column in columns],
        "spearman": [column.spearman.interval for column in columns],
        "caught": [column.caught.interval for column in columns],
    }
    for name, estimates in (
        ("spearman_within", [column.within for column in columns]),
        ("auc_gradient", [column.gradient for column in columns]),
    ):
        if any(estimates):
            intervals[name] = [NOTHING if value is None else value.interval for value in estimates]
    return tabulate(_COLUMNS, plain, intervals)


def _or_none(value: float | None) -> float | None:
    return None if value is None or math.isnan(value) else value


def _figure(validity: Validity) -> Figure:
    shown_columns = _most_telling(validity)
    panels = {
        "AUC for a misjudged row": [
            figure.Dot(c.name, c.auc.interval._replace(n=c.rows), c.name in (*SIMPLE, CEILING), tick=0.5)
            for c in shown_columns
        ],
        "Errors in the most suspected 20 % of rows (%)": [
            figure.Dot(
                c.name, in_percent(c.caught.interval)._replace(n=c.rows), c.name in (*SIMPLE, CEILING), tick=20.0
            )
            for c in shown_columns
        ],
    }
    note = "Bars: 95 % bootstrap intervals over prompts. Orange: chance. Hollow: simple columns, and the ceiling."
    if len(shown_columns) < len(validity.columns):
        note += f" The {_SHOWN} columns furthest from chance of {len(validity.columns)}; the table has them all."
    return figure.dots(panels, "", note, unit="rows", own_axes=True)


def _most_telling(validity: Validity) -> list[Column]:
    """Return the columns that are furthest from chance, the simple ones and the ceiling, the best first."""
    furthest = sorted(validity.columns, key=lambda column: -abs(column.auc.value - 0.5))[:_SHOWN]
    chosen = [column for column in validity.columns if column in furthest or column.name in SIMPLE]
    return [*([validity.ceiling] if validity.ceiling else []), *chosen]


def _finding(validity: Validity) -> str:
    parts = [_best(validity), _most(validity), _gate(validity), _golden(validity), _power(validity)]
    if validity.left_out:
        parts.append("left out: " + ", ".join(validity.left_out))
    return "; ".join(filter(None, parts))


def _best(validity: Validity) -> str:
    """Say what the first of SEAM's columns finds, else the first column, and which others find more or nothing."""
    measured = [column for column in validity.columns if column.name not in SIMPLE]
    seams = [column for column in measured if column.name.startswith("seam_")]
    first = (seams or measured)[0]
    p = validity.adjusted[first.name]
    # One of many columns is above chance by chance: the p-value is adjusted for their number, the interval is not.
    shown_apart = p < _ALPHA
    verb = (
        "finds misjudged rows" if shown_apart and first.auc.value > 0.5 else "does not demonstrably find misjudged rows"
    )
    if shown_apart and first.auc.value < 0.5:
        verb = "suspects rows that are judged rightly"
    line = (
        f"{first.name} {verb}: AUC {shown(first.auc.interval, '.2f')} (p = {p:.2g} of {len(measured)} columns), "
        f"{percent(first.caught.interval)} of the errors in its most suspected 20 % of rows"
    )
    better = [
        c
        for c in validity.columns
        # A random number above it is chance, and so is a column that does not stand above chance itself.
        if c is not first and c.name != "random" and c.rows == first.rows
        and c.auc.interval.low > 0.5 and c.auc.minus(first.auc).above_zero
    ]  # fmt: skip
    if better:
        line += "; " + ", ".join(f"{c.name} is better ({c.auc.value:.2f})" for c in better[:3])
    nothing = [c for c in measured if validity.adjusted[c.name] >= _ALPHA]
    if nothing and shown_apart:
        line += "; not told apart from chance: " + ", ".join(f"{c.name} ({c.auc.value:.2f})" for c in nothing[:4])
    return line


def _most(validity: Validity) -> str:
    """Say what people's own verdicts tell of each other: where that is little, no column can find much."""
    if validity.ceiling is None:
        return ""
    return (
        f"half of a row's pairs tells the other half with AUC {shown(validity.ceiling.auc.interval, '.2f')} "
        f"({validity.ceiling.rows:,} rows), which a column is to be held against"
    )


def _gate(validity: Validity) -> str:
    """Say how often the reward is right, and that a coin is no reward."""
    line = f"the reward orders {percent(validity.accuracy)} of {validity.pairs:,} pairs of {validity.rows:,} rows as people do"
    if not validity.accuracy.low > 0.5:
        line += ", which a coin does too: do not train with it, selection will not mend it"
    return line


def _golden(validity: Validity) -> str:
    """Warn where golden responses are not the best answers.

    Measured where the truth is known: with 20 % wrong golden responses the AUC of `seam_contrast` fell from .73 to .68, with
    half of them wrong to .61.
    """
    if not validity.golden.n or not validity.golden.estimate > _GOLDEN_LIMIT:
        return ""
    return (
        f"people put {percent(validity.golden)} of {validity.golden.n} golden responses below another answer: SEAM compares with "
        "them, and finds less the more of them are wrong"
    )


def _power(validity: Validity) -> str:
    """Say which AUC these rows would have shown, and how many rows a smaller one needs."""
    wrong = validity.misordered * (1 - validity.misordered)
    # Of n rows, a share p of them misjudged, the standard error of an AUC of .5 is 1 / √(12 p (1 − p) n) (Hanley, McNeil 1982).
    visible = 0.5 + _POWER / math.sqrt(12 * wrong * validity.rows)
    needed = math.ceil(_POWER**2 / (12 * wrong * 0.05**2) / 10) * 10
    line = f"with {validity.rows:,} rows an AUC above {min(visible, 1.0):.2f} would be seen"
    return line if visible <= 0.55 else f"{line}; for .55 judge {needed:,}"


VALIDITY = Study(
    "validity",
    "which columns of a store find the rows that its reward model misjudges",
    "a store, and prompt, response_a, response_b, label; or prompt, response, score",
    _COLUMNS,
    validity,
)
