"""A split in numbers: what each rule dropped, and how far simple baselines explain its score.

One rule: every number is computed from the store when the card is written; none is taken on trust.
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
from seamcurate.select import views
from seamcurate.storage import shard
from seamcurate.store.store import Store
from seamcurate.study.statistics import spearman

if TYPE_CHECKING:
    from matplotlib.axes import Axes

Floats = npt.NDArray[np.float64]

QUESTION, ANSWER = "words of the prompt", "words of the response"


class Baseline(NamedTuple):
    """Something simple that a score might measure by accident, and how far the score goes with it."""

    name: str
    correlation: float
    """Spearman's, over the scored rows; NaN where either is constant."""
    all: float
    """Mean over every row."""
    kept: float
    """Mean over the rows that the filter kept."""
    dropped: float
    """Mean over the rows that the filter dropped."""


class SplitMeasures(NamedTuple):
    """A split in numbers."""

    name: str
    form: str
    score: str
    """The card's name for the value that decided."""
    rows: int
    kept: int
    rules: list[dict[str, object]]
    """rule, kept, dropped, threshold, and the smallest, middle and largest deciding value."""
    baselines: list[Baseline]
    scores: Floats
    """A row's score, NaN where it has none."""
    keeps: npt.NDArray[np.bool_]
    lengths: Floats
    """A row's length in words."""


def measure(store: Store, name: str) -> SplitMeasures:
    """Compare a split's score with length, repetition and chance, and count what each rule did.

    The score is the numeric column that the filter's `by` names, or else the value the ledger decided by.
    """
    folder = store.path / "splits" / name
    record = store.split_record(name)
    parameters = record["parameters"]
    assert isinstance(parameters, dict)
    kinds = {column.name: column.kind for column in store.columns() if column.stale is None}
    by = str(parameters.get("by", ""))
    numeric = by in kinds and (pa.types.is_floating(kinds[by]) or pa.types.is_integer(kinds[by]))
    answered = "response" in store.stored_schema.names
    ledger = shard.read(folder / "ledger.parquet", str(record["fingerprint"]), 0)
    read = store.reader(["prompt", *(["response"] if answered else []), *([by] if numeric else [])], partial=True)
    columns: dict[str, list[Floats]] = {}
    for number in store.shards:
        rows = read(number)
        for title, values in _baseline_values(rows, answered).items():
            columns.setdefault(title, []).append(values)
        if numeric:
            columns.setdefault("score", []).append(_floats(rows[by]))
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
        by if numeric else "the deciding value",
        len(keeps),
        int(keeps.sum()),
        _rules(ledger),
        baselines,
        scores,
        keeps,
        values_by_title[ANSWER if answered else QUESTION],
    )


def _baseline_values(rows: pa.Table, answered: bool) -> dict[str, Floats]:
    """Measure a shard's rows by each baseline."""
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
    known = values[np.isfinite(values)]
    return float(known.mean()) if len(known) else float("nan")


def _rules(ledger: pa.Table) -> list[dict[str, object]]:
    """Count, for each rule, what it kept and dropped, and by which values."""
    sql = (
        "SELECT rule, count(*) FILTER (kept) AS kept, count(*) FILTER (NOT kept) AS dropped, any_value(threshold) AS threshold, "
        "min(value) AS low, median(value) AS middle, max(value) AS high FROM ledger GROUP BY rule ORDER BY dropped DESC, rule"
    )
    with views.in_memory() as connection:
        connection.register("ledger", ledger)
        counts: list[dict[str, object]] = connection.sql(sql).to_arrow_table().to_pylist()
    return counts


def draw(split: SplitMeasures, out: Path) -> bool:
    """Draw score and length of the rows kept and dropped as a small PNG, where matplotlib is installed."""
    if importlib.util.find_spec("matplotlib") is None:
        return False
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8, 2.6), dpi=90)
    FigureCanvasAgg(figure)
    left, right = figure.subplots(1, 2)
    _histogram(left, split.scores, split.keeps, split.score)
    _histogram(right, split.lengths, split.keeps, "length in words")
    left.set_ylabel("rows")
    left.legend(frameon=False, fontsize=8)
    figure.subplots_adjust(left=0.08, right=0.98, top=0.95, bottom=0.2, wspace=0.15)
    # Without a date and a version, the same store gives the same bytes, and no commit.
    figure.savefig(out, metadata={"Software": None})
    return True


def _histogram(axes: Axes, values: Floats, keeps: npt.NDArray[np.bool_], title: str) -> None:
    finite = np.isfinite(values)
    edges = np.histogram_bin_edges(values[finite], 40) if finite.any() else np.linspace(0, 1, 41)
    kept, dropped = (np.histogram(values[finite & mask], edges)[0] for mask in (keeps, ~keeps))
    axes.stairs(kept, edges, fill=True, label="kept", color="#4c78a8")
    axes.stairs(kept + dropped, edges, baseline=kept, fill=True, label="dropped", color="#e45756")
    axes.set_xlabel(title, parse_math=False)
    axes.spines[["top", "right"]].set_visible(False)
