"""What a study reads: stores, or tables of results in Parquet, JSONL and CSV, and what it hands back.

Each study documents its columns by name; several sources are one table end to end. A row that cannot be read stops
the study with its place: a measurement over whatever was readable would look like one over everything.
"""

from __future__ import annotations

import importlib.util
import math
from collections.abc import Iterable, Mapping, Sequence
from decimal import Decimal
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, TypeAlias

import numpy as np
import pyarrow as pa
import pyarrow.csv as csv
import pyarrow.parquet as pq

from seamcurate.data import formats
from seamcurate.errors import StudyError
from seamcurate.models import Prompt
from seamcurate.models.chat import read_turns
from seamcurate.select import views
from seamcurate.step import column, finite
from seamcurate.storage.objects import place
from seamcurate.store.store import Store
from seamcurate.study.statistics import Doubles, Interval
from seamcurate.text import brief, one_line

if TYPE_CHECKING:
    from matplotlib.figure import Figure

Data: TypeAlias = str | Path | pa.Table | Store
"""A store or its folder, a Parquet, JSONL or CSV file, a folder of Parquet files, or a table in memory."""

_TEXTS = (
    *("prompt", "response", "context", "input", "references", "chosen", "rejected"),
    *("response_a", "response_b", "baseline_response"),
)
"""Columns of a CSV file that are text whatever they look like: the answer 007 is not the answer 7."""
_MEANINGS = {
    "above_baseline": "mean quality minus the baseline's, over the seeds compared",
    "above_full": "mean quality minus the full data's",
    "accuracy": "share of pairs whose chosen response scores higher, ties one half",
    "chance": "overlap of sets of these sizes drawn at random",
    "checkpoints": "checkpoints of the longest run",
    "data": "the data the model was measured on",
    "first": "one model of the pair",
    "gain_of_first_position": "win rate with the response first minus that with it second",
    "instances": "instances answered",
    "kind": "what is measured, or which ruler or control",
    "length_spearman": "rank correlation of mean length and mean gold reward over checkpoints",
    "logprob_per_token": "natural log-probability a token, mean over rows of each row's mean",
    "lowest_first": "rows of the first model's lowest set",
    "lowest_second": "rows of the second model's lowest set",
    "mean_tokens": "tokens an answer, mean over rows of each row's mean",
    "method": "how the data were chosen",
    "mismatch": "share of decided pairs judged against people, ties one half",
    "model": "the model measured",
    "of_home": "quality as a multiple of that on the model's own data, within a seed",
    "overlap": "2 |A∩B| / (|A| + |B|) of the two lowest sets",
    "p_beyond_chance": "probability of sharing as many by chance (hypergeometric, not adjusted)",
    "p_holm": "two-sided p of the difference to the baseline, adjusted for all methods (Holm)",
    "pairs": "pairs with a verdict",
    "pearson": "Pearson's correlation of mean proxy and mean gold reward over checkpoints",
    "perplexity": "exp(−logprob_per_token)",
    "policy": "SFT steps of the policy",
    "prompts": "different prompts",
    "proxy": "the reward that was optimised",
    "quality": "mean over seeds",
    "query_type": "kind of the queries; all for all",
    "rate": "share of the RL data filtered out",
    "relevant": "share of sentences relevant to the query",
    "repetition": "1 − distinct 4-grams / 4-grams of words",
    "responses": "responses measured",
    "reward": "the reward model: its name, or the pairs it was trained on",
    "rouge_l": "ROUGE-L's F measure, 0 to 100, the best over references",
    "rows": "rows measured",
    "same_in_both_positions": "share of prompts with one verdict in both positions",
    "second": "the other model of the pair",
    "seed": "the run's seed",
    "seeds": "runs averaged",
    "seeds_compared": "seeds the difference to the baseline rests on",
    "self_bleu": "mean BLEU of a prompt's responses against each other; high = alike",
    "set": "the sample set",
    "spearman": "rank correlation of mean proxy and mean gold reward over checkpoints",
    "subset": "part of the pairs; all for all",
    "tasks": "different tasks",
    "tax": "the baseline's ROUGE-L minus the model's, on the same instances",
    "test": "what the p-value is by",
    "win_rate": "(wins + ½ ties) / all, over both positions",
    "words": "words and punctuation marks a response",
}
"""What each column of a study's table means, as the Parquet file says it."""
_UNREADABLE = (pa.ArrowException, OSError, ValueError, TypeError, OverflowError)


class Finding(NamedTuple):
    """What a study found."""

    name: str
    """The study's, which names its files."""
    table: pa.Table
    figure: Figure
    line: str
    """One sentence with the interval, and with what a simple ruler finds too."""

    def save(self, out: Path) -> list[Path]:
        """Write NAME.parquet, NAME.png, NAME.svg and NAME.txt, the line, into a folder; return their paths."""
        from seamcurate.study import figure

        out.mkdir(parents=True, exist_ok=True)
        paths = [out / f"{self.name}.{end}" for end in ("parquet", "png", "svg", "txt")]
        pq.write_table(self.table, paths[0])
        figure.save(self.figure, paths[1], paths[2])
        paths[3].write_text(one_line(self.line) + "\n", encoding="utf-8")
        return paths


def is_store(source: Data) -> bool:
    """Tell a store from a table of results."""
    return isinstance(source, Store) or (isinstance(source, str | Path) and (place(source) / "store.json").is_file())


def store(source: Data, study: str) -> Store:
    """Open a store.

    Raises:
        StudyError: The source is no store, or a library is not installed.
    """
    _check_libraries()
    if isinstance(source, Store):
        return source.open()
    if isinstance(source, pa.Table) or not is_store(source):
        raise StudyError(f"{study} reads stores, but {title(source)} is none; name the folder `seamcurate run` made")
    return Store(source).open()


def title(source: Data) -> str:
    """Name a source in messages and figures."""
    if isinstance(source, pa.Table):
        return "the table"
    path = source.path if isinstance(source, Store) else Path(source)
    return path.resolve().name


def read(study: str, sources: Sequence[Data], needed: Sequence[str], named: str | None = None) -> pa.Table:
    """Read sources end to end as one table; of a store, its rows.

    Args:
        study: The study's name, for messages.
        sources: What to read.
        needed: Columns that each source must have.
        named: A column that, of several sources, those which lack it get, holding their own names.

    Raises:
        StudyError: There is no source, one is not there or unreadable, lacks a needed column, there are no rows, or a
            library is not installed.
    """
    _check_libraries()
    if not sources:
        raise StudyError(f"{study} got nothing to read; name a store or a Parquet, JSONL or CSV file")
    tables = []
    for source in sources:
        table = _table(source, study)
        twice = [name for name in table.column_names if table.column_names.count(name) > 1]
        if twice:
            raise StudyError(f"{study}: {title(source)} has two columns called {brief(twice[0], 60)!r}; rename one")
        missing = [name for name in needed if name not in table.column_names]
        if missing and table.num_rows:
            raise StudyError(
                f"{study}: {title(source)} has no column {missing[0]!r}; it has {brief(', '.join(table.column_names), 200)}: "
                f"{study} reads {', '.join(needed)}"
            )
        if named is not None and named not in table.column_names and len(sources) > 1:
            table = table.append_column(named, pa.array([title(source)] * len(table), pa.string()))
        tables.append(_plain(study, table))
    try:
        whole = pa.concat_tables([t for t in tables if t.num_rows] or tables, promote_options="permissive")
    except _UNREADABLE as error:
        raise StudyError(
            f"{study}: a column is of one type in one source and of another in the next ({_said(error)}); convert it"
        ) from error
    if not whole.num_rows:
        raise StudyError(f"{study}: {', '.join(map(title, sources))} holds no rows; check what wrote it")
    return whole


def names(study: str, table: pa.Table, name: str) -> list[str]:
    """Return a column that tells rows apart as text; numbers and truth values as they are written.

    Raises:
        StudyError: A value is missing, blank or NaN, or has no one way to be written.
    """
    found = []
    for i, value in enumerate(_values(study, table, name)):
        if value is None or value != value or (isinstance(value, str) and not value.strip()):
            raise StudyError(f"{study}: row {i} has no {name!r}; fill it in or leave the row out")
        if isinstance(value, list | dict | bytes):
            raise StudyError(
                f"{study}: row {i} has {name} = {brief(repr(value), 60)}, which is no name; write it as text"
            )
        found.append(str(int(value) if isinstance(value, float) and value.is_integer() else value))
    return found


def texts(study: str, table: pa.Table, name: str, missing: str | None = None) -> list[str]:
    """Return a column of responses or references; of messages, the one assistant turn. Blank text is text.

    Args:
        study: The study's name, for messages.
        table: What was read.
        name: The column.
        missing: What stands for a missing value; without it, one is an error.

    Raises:
        StudyError: A value is missing, or neither.
    """
    found = []
    for i, value in enumerate(_values(study, table, name)):
        value = missing if value is None else value
        turns = read_turns(value)
        if value is None:
            raise StudyError(f"{study}: row {i} has no {name!r}; fill it in or leave the row out")
        if isinstance(value, str):
            found.append(value)
        elif turns is not None and [turn["role"] for turn in turns] == ["assistant"]:
            found.append(turns[0]["content"])
        else:
            raise StudyError(
                f"{study}: row {i} has {name} = {brief(repr(value), 60)}, which is neither text nor one assistant turn; "
                "leave the row out"
            )
    return found


def prompts(study: str, table: pa.Table) -> list[Prompt]:
    """Return the column `prompt`.

    Raises:
        StudyError: A value is neither text nor chat messages.
    """
    values = _values(study, table, "prompt")
    for i, value in enumerate(values):
        if not isinstance(value, str) and not read_turns(value):
            raise StudyError(
                f"{study}: row {i} has prompt = {brief(repr(value), 60)}, which is neither text nor chat messages; "
                "leave the row out"
            )
    return values


def numbers(study: str, table: pa.Table, name: str) -> Doubles:
    """Return a column as doubles.

    Raises:
        StudyError: A value is missing, no number, not finite, so large that sums overflow, or a whole number that no
            double holds.
    """
    values = _values(study, table, name)
    for i, value in enumerate(values):
        number = isinstance(value, int | float | Decimal) and not isinstance(value, bool)
        if not number or not math.isfinite(value):
            raise StudyError(
                f"{study}: row {i} has {name} = {brief(repr(value), 60)}, which is no finite number; leave the row out"
            )
        if finite(float(value)) is None or (isinstance(value, int) and float(value) != value):
            raise StudyError(
                f"{study}: row {i} has {name} = {value!r:.60}, too large to reckon with; leave the row out"
            )
    return np.array([float(value) for value in values], np.float64)


def chosen(study: str, name: str, values: Iterable[str], allowed: Sequence[str]) -> list[str]:
    """Return values that are all among the allowed, in lower case.

    Raises:
        StudyError: One is not.
    """
    found = [value.lower() for value in values]
    for i, value in enumerate(found):
        if value not in allowed:
            raise StudyError(
                f"{study}: row {i} has {name} = {brief(repr(value), 60)}; it is one of {', '.join(allowed)}"
            )
    return found


def by_seed(
    study: str, table: pa.Table, keys: Sequence[str], value: str = "quality"
) -> dict[tuple[str, ...], dict[float, float]]:
    """Return each combination of keys' value by seed, combinations in the order they first come.

    Raises:
        StudyError: A seed comes twice, or a value cannot be read.
    """
    found: dict[tuple[str, ...], dict[float, float]] = {}
    columns = [names(study, table, key) for key in keys]
    seeds, values = numbers(study, table, "seed"), numbers(study, table, value)
    for key, seed, each in zip(zip(*columns, strict=True), seeds.tolist(), values.tolist(), strict=True):
        runs = found.setdefault(key, {})
        if seed in runs:
            where = ", ".join(f"{name} {brief(part, 60)}" for name, part in zip(keys, key, strict=True))
            raise StudyError(f"{study}: two rows for {where}, seed {seed:g}; keep one, or give each run its own seed")
        runs[seed] = each
    return found


def seeds(runs: Iterable[Mapping[float, object]]) -> str:
    """Say how many seeds runs have."""
    counts = sorted({len(each) for each in runs})
    some = f"{counts[0]}" if len(counts) == 1 else f"{counts[0]} to {counts[-1]}"
    return f"{some} seeds" if counts != [1] else "1 seed, which has no interval"


def tabulate(
    columns: Mapping[str, Sequence[object]], intervals: Mapping[str, Sequence[Interval]] | None = None
) -> pa.Table:
    """Make a table whose columns say what they mean; each of intervals becomes NAME, NAME_low and NAME_high, NULL where there is none."""
    parts: dict[str, pa.Array] = {name: pa.array(values) for name, values in columns.items()}
    # A column is of one type whatever this table has for it.
    parts |= {name: part.cast(pa.float64()) for name, part in parts.items() if pa.types.is_null(part.type)}
    for name, some in (intervals or {}).items():
        for end, values in zip(("", "_low", "_high"), zip(*(i[:3] for i in some), strict=True), strict=True):
            parts[name + end] = pa.array([None if math.isnan(v) else v for v in values], pa.float64())
    fields = []
    for name, part in parts.items():
        of, end = name, ""
        for bound in ("low", "high"):
            if name.endswith(f"_{bound}") and name not in columns:
                of, end = name.removesuffix(f"_{bound}"), f", the 95 % interval's {bound} end"
        fields.append(column(name, part.type, _MEANINGS[of] + end))
    return pa.table(list(parts.values()), schema=pa.schema(fields))


def _check_libraries() -> None:
    for library in ("matplotlib", "scipy", "rouge_score"):
        if importlib.util.find_spec(library) is None:
            raise StudyError(f'studies need {library}, which is not installed; pip install "seamcurate[study]"')


def _table(source: Data, study: str) -> pa.Table:
    if isinstance(source, pa.Table):
        return source
    if is_store(source):
        return views.query(store(source, study), "SELECT * FROM rows")
    assert not isinstance(source, Store)
    path = Path(source).expanduser()
    files = sorted(f for f in path.glob("*.parquet") if not f.name.startswith(".")) if path.is_dir() else [path]
    if not files or not all(file.is_file() for file in files):
        raise StudyError(f"{study}: {source} is no store, no file and no folder of Parquet files; check the path")
    try:
        if path.suffix in {".jsonl", ".json"}:
            whole = _json(path)
        elif path.suffix == ".csv":
            whole = csv.read_csv(
                path,
                read_options=csv.ReadOptions(block_size=formats.LONGEST_CSV_FIELD),
                parse_options=csv.ParseOptions(newlines_in_values=True),
                convert_options=csv.ConvertOptions(
                    column_types=dict.fromkeys(_TEXTS, pa.string()),
                    null_values=[""],
                    strings_can_be_null=True,
                    quoted_strings_can_be_null=False,
                ),
            )
        else:
            whole = pa.concat_tables(
                [pq.read_table(file, partitioning=None) for file in files], promote_options="permissive"
            )
        for name, column in zip(whole.column_names, whole.columns, strict=True):
            if wrong := formats.not_utf8(column, path.name):
                raise ValueError(f"row {wrong[0]}: invalid UTF-8 in {name}")
    except (*_UNREADABLE, formats.Reject) as error:
        raise StudyError(
            f"{study}: {path.name} is no readable Parquet, JSONL or CSV file ({_said(error)}); write it anew"
        ) from error
    return whole


def _json(path: Path) -> pa.Table:
    """Read the objects of a file, whichever of them a column first comes in."""
    rows: list[dict[str, object]] = []
    for line in formats.json_lines(path):
        assert isinstance(line, bytes)
        try:
            cells, doubt = formats.json_row(line)
        except formats.Reject as reject:
            raise formats.Reject(f"row {len(rows)}: {reject}") from None
        if doubt and formats.surrogate(cells):
            raise formats.Reject(f"row {len(rows)}: {doubt}")
        rows.append(cells)
    columns = {}
    for name in dict.fromkeys(name for row in rows for name in row):
        try:
            columns[name] = pa.array([row.get(name) for row in rows])
        except _UNREADABLE as error:
            raise formats.Reject(f"column {name!r:.60}: {error}") from error
    return pa.table(columns)


def _plain(study: str, table: pa.Table) -> pa.Table:
    """Return a table of types that Arrow can filter and join: it cannot do so with each of those it has."""
    schema = pa.schema([(field.name, formats.plain(field.type, pa.string())) for field in table.schema])
    try:
        return formats.conform(table, schema)
    except _UNREADABLE as error:
        raise StudyError(f"{study}: a column cannot be read ({_said(error)}); convert it, or leave it out") from error


def _values(study: str, table: pa.Table, name: str) -> list[Any]:
    try:
        values: list[Any] = table[name].to_pylist()
    except _UNREADABLE as error:
        raise StudyError(f"{study}: column {name!r} cannot be read ({_said(error)}); convert it") from error
    return values


def _said(error: Exception) -> str:
    return brief(str(error), 120)
