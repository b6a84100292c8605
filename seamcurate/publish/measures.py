"""Measures of a split: how many rows each rule dropped, and how its score correlates with simple baselines.

One rule: every number is computed from the store when the card is written.
"""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple, cast

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from seamcurate import words
from seamcurate.models.protocols import Prompt
from seamcurate.models.template import prompt_text
from seamcurate.score.baseline import Random
from seamcurate.select.ledger import Rule, rules
from seamcurate.storage import shard
from seamcurate.store.store import Store
from seamcurate.study.statistics import spearman

if TYPE_CHECKING:
    from matplotlib.axes import Axes

Floats = npt.NDArray[np.float64]

_ALIKE = 0.3
"""A histogram leaves out rows of the same value where they are a larger share than this."""
QUESTION, ANSWER = "words of the prompt", "words of the response"


class Baseline(NamedTuple):
    """A simple measure that a score might repeat by accident, and the score's correlation with it."""

    name: str
    correlation: float
    """Spearman's rank correlation over the rows with a score; NaN if either is constant."""
    all: float
    """Mean over every row."""
    kept: float
    """Mean over the rows that the filter kept."""
    dropped: float
    """Mean over the rows that the filter dropped."""


class SplitMeasures(NamedTuple):
    """The measures of one split."""

    name: str
    form: str
    score: str
    """The card's name for the value that the filter decides by."""
    rows: int
    kept: int
    rules: list[Rule]
    baselines: list[Baseline]
    scores: Floats
    """Each row's score, NaN if it has none: (rows,)."""
    keeps: npt.NDArray[np.bool_]
    """Whether the filter kept each row: (rows,)."""
    lengths: Floats
    """Each row's length in words: (rows,)."""


def measure(store: Store, name: str) -> SplitMeasures:
    """Compare a split's score with length, repetition and a random number, and count the rows of each rule.

    The score is the numeric column that the filter's parameter `by` names, or else the value in the ledger.
    """
    folder = store.path / "splits" / name
    record = store.split_record(name)
    parameters = record["parameters"]
    assert isinstance(parameters, dict)
    kinds = {column.name: column.kind for column in store.columns() if column.stale is None}
    score = str(parameters.get("by", ""))
    numeric = score in kinds and (pa.types.is_floating(kinds[score]) or pa.types.is_integer(kinds[score]))
    answered = "response" in store.stored_schema.names
    ledger = shard.read(folder / "ledger.parquet", str(record["fingerprint"]), 0)
    read = store.reader(["prompt", *(["response"] if answered else []), *([score] if numeric else [])], partial=True)
    columns: dict[str, list[Floats]] = {}
    for number in store.shards:
        rows = read(number)
        for title, values in _baseline_values(rows, answered).items():
            columns.setdefault(title, []).append(values)
        if numeric:
            columns.setdefault("score", []).append(_floats(rows[score]))
    values_by_title = {title: np.concatenate(shards) for title, shards in columns.items()}
    scores = values_by_title.pop("score") if numeric else _floats(ledger["value"])
    scores = np.where(np.isfinite(scores), scores, np.nan)
    keeps = ledger["kept"].to_numpy(zero_copy_only=False)
    baselines = [
        Baseline(title, spearman(scores, values), _mean(values), _mean(values[keeps]), _mean(values[~keeps]))
        for title, values in values_by_title.items()
    ]
    return SplitMeasures(
        name,
        str(record["format"]),
        score if numeric else "the deciding value",
        len(keeps),
        int(keeps.sum()),
        rules(ledger),
        baselines,
        scores,
        keeps,
        values_by_title[ANSWER if answered else QUESTION],
    )


def _baseline_values(rows: pa.Table, answered: bool) -> dict[str, Floats]:
    """Return each baseline's values for the rows of a shard, by the baseline's title."""
    prompts = [prompt_text(cast(Prompt, prompt)) for prompt in rows["prompt"].to_pylist()]
    values = {QUESTION: words.counts(pa.array(prompts, pa.string())).astype(np.float64)}
    if answered:
        texts = rows["response"].cast(pa.string()).combine_chunks()
        missing = np.asarray(texts.is_null())
        values[ANSWER] = np.where(missing, np.nan, words.counts(texts).astype(np.float64))
        values["distinct trigrams of the response"] = np.where(missing, np.nan, words.distinct_trigrams(texts))
    values["a random number"] = _floats(Random().load(Path())(rows)["baseline_random"])
    return values


def _floats(column: pa.ChunkedArray) -> Floats:
    # Whole numbers beyond 2^53 are rounded.
    return np.asarray(column.cast(pa.float64(), safe=False).to_numpy(), np.float64)


def _mean(values: Floats) -> float:
    finite = values[np.isfinite(values)]
    return float(finite.mean()) if len(finite) else float("nan")


def draw(split: SplitMeasures, file: Path) -> bool:
    """Draw histograms of score and length as a PNG file; return False if matplotlib is not installed."""
    if importlib.util.find_spec("matplotlib") is None:
        return False
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8, 2.8), dpi=90)
    FigureCanvasAgg(figure)
    left, right = figure.subplots(1, 2)
    _histogram(left, split.scores, split.keeps, split.score)
    _histogram(right, split.lengths, split.keeps, "length in words")
    left.set_ylabel("rows")
    left.legend(frameon=False, fontsize=8)
    figure.subplots_adjust(left=0.08, right=0.98, top=0.9, bottom=0.2, wspace=0.15)
    # The version of matplotlib is left out, so that the same store gives the same bytes and needs no new commit.
    figure.savefig(file, metadata={"Software": None})
    return True


def most_frequent(values: Floats) -> tuple[float, float]:
    """Return the most frequent of some finite values, and its share of them; 0 and 0 if there are none.

    Example:
        >>> most_frequent(np.array([0.0, 0.0, -1.0, 0.0]))
        (0.0, 0.75)
    """
    if not len(values):
        return 0.0, 0.0
    distinct, counts = np.unique(values, return_counts=True)
    return float(distinct[counts.argmax()]), float(counts.max() / len(values))


def _histogram(axes: Axes, values: Floats, keeps: npt.NDArray[np.bool_], title: str) -> None:
    finite = np.isfinite(values)
    # Most SEAM values are 0: their bar would hide all others, so that they are counted in words instead.
    alike, share = most_frequent(values[finite])
    if share > _ALIKE:
        at = finite & (values == alike)
        finite &= ~at
        counts = f"{int(at.sum()):,} rows are exactly {alike:g}: {int((at & keeps).sum()):,} kept, {int((at & ~keeps).sum()):,} dropped"
        axes.set_title(f"{counts}; the others:", fontsize=7, loc="left", parse_math=False)
    edges = np.histogram_bin_edges(values[finite], 40) if finite.any() else np.linspace(0, 1, 41)
    kept, dropped = (np.histogram(values[finite & mask], edges)[0] for mask in (keeps, ~keeps))
    axes.stairs(kept, edges, fill=True, label="kept", color="#4c78a8")
    axes.stairs(kept + dropped, edges, baseline=kept, fill=True, label="dropped", color="#e45756")
    axes.set_xlabel(title, parse_math=False)
    axes.spines[["top", "right"]].set_visible(False)
