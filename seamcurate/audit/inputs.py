"""What an audit is given: a reward by one string, and rows by a file, of which an even sample is audited."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from seamcurate import rewards
from seamcurate.data import formats
from seamcurate.data.source import Source
from seamcurate.errors import ModelError, SourceError, TrainError
from seamcurate.models import RewardFunction, RewardingModel
from seamcurate.text import counted, suggestion

ROW = "data_row"
"""The column with a row's position in the data."""
_KINDS = {
    ".parquet": "parquet",
    ".jsonl": "jsonl",
    ".jsonl.gz": "jsonl",
    ".ndjson": "jsonl",
    ".csv": "csv",
    ".arrow": "arrow",
}
USUAL: dict[str, tuple[str, ...]] = {
    "prompt": ("prompt", "question", "instruction", "query", "problem", "input"),
    "response": ("response", "chosen", "completion", "answer", "output", "solution"),
    "reference": ("reference", "ground_truth", "solution", "answer", "label", "target"),
}
"""The columns that are taken where none is named: of each row of this table the first that the data have."""


class Sample(NamedTuple):
    """Rows to audit, evenly spaced over the data."""

    rows: pa.Table
    data_rows: int
    """Rows of the data that could be read."""
    rejected: int


def reward_model(reward: str | RewardingModel) -> RewardingModel:
    """Return the reward model that one string names: `reward.py:score`, a folder, a Hub id, or a YAML file with one model.

    Raises:
        ModelError: It names none, or a server, which one string does not say enough of.
    """
    if not isinstance(reward, str):
        return reward
    if re.match(r"https?://", reward):
        raise ModelError(
            f"reward {reward} is a server: name it in a YAML file, as `{{reward_server: {reward}, api: vllm, model: NAME}}`, and "
            "give --reward that file"
        )
    if reward.endswith(".py"):
        raise ModelError(f"reward {reward} is a file: name its function, too, as {reward}:score")
    try:
        configured = rewards.configured(reward)
    except TrainError as error:
        raise ModelError(str(error)) from error
    if not isinstance(configured, rewards.ModelReward):
        raise ModelError(
            f"reward {reward} is RER, which is computed from columns; audit a reward model, a function or a judge"
        )
    return configured.reward


def source(
    data: str | Path, prompt: str | None = None, response: str | None = None, reference: str | None = None
) -> Source:
    """Return the rows of a file; a column that is not named is the first of `USUAL` that the file has.

    Where there is no column of responses, the reference is the golden response.

    Raises:
        SourceError: The file is not there, of no known kind, or lacks a column.
    """
    file = str(data)
    kind = next((kind for ending, kind in _KINDS.items() if file.lower().endswith(ending)), None)
    if kind is None:
        raise SourceError(f"{file}: rows come from a file that ends in {', '.join(_KINDS)}; write them as one of these")
    names = _columns(file, kind)
    named = {"prompt": prompt, "response": response, "reference": reference}
    for target, column in named.items():
        if column is not None and column not in names and column.split(".")[0] not in names:
            raise SourceError(
                f"{file}: no column {column!r} for {target}; it has {', '.join(names)}{suggestion(column, names)}"
            )
    if "messages" in names and prompt is None and response is None:
        chat = {"messages": "messages", "reference": reference or _usual("reference", names, ["messages"])}
        return Source.model_validate({kind: file, **{k: v for k, v in chat.items() if v is not None}})
    for target, column in named.items():
        taken = [other for other in named.values() if other is not None]
        named[target] = column or _usual(target, names, taken)
    if named["prompt"] is None:
        raise SourceError(f"{file}: no column of prompts; it has {', '.join(names)}: name one by --prompt")
    # The reference is the shortest golden answer that there is.
    named["response"] = named["response"] or named["reference"]
    if named["response"] is None:
        raise SourceError(
            f"{file}: no column of good answers; it has {', '.join(names)}: name one by --response or --reference"
        )
    return Source.model_validate({kind: file, **{key: value for key, value in named.items() if value is not None}})


def _usual(target: str, names: Sequence[str], taken: Sequence[str]) -> str | None:
    return next((name for name in USUAL[target] if name in names and name not in taken), None)


def _columns(file: str, kind: str) -> list[str]:
    """Return the columns of the first file, or of its first row that can be read."""
    first = formats.matches(file, kind)[0]
    if kind == "parquet":
        return list(pq.read_schema(first).names)
    if kind == "arrow":
        return list(formats.arrow_schema(first).names)
    for line in formats.json_lines(first) if kind == "jsonl" else formats.csv_lines(first):
        try:
            return list((formats.json_row(line) if isinstance(line, bytes) else formats.csv_row(line)).cells)
        except formats.Reject:
            continue
    raise SourceError(f"{file}: no rows; name a file that has some")


def sampled(data: Source, limit: int) -> Sample:
    """Read the data, and keep `limit` rows evenly spaced over those that can be audited.

    Raises:
        SourceError: The data cannot be read, or no row can be audited.
    """
    kept: list[pa.Table] = []
    step, seen, rejected = 1, 0, 0
    reasons: Counter[str] = Counter()
    for chunk in data.chunks():
        rejected += len(chunk.rejected)
        reasons.update(chunk.rejected["reason"].to_pylist())
        rows = chunk.rows
        missing = rows["response"].is_null() if "response" in rows.column_names else pa.array([True] * len(rows))
        if len(rows) and (absent := pc.sum(missing).as_py()):
            rejected, reasons["no golden response"] = rejected + absent, reasons["no golden response"] + absent
            rows = rows.filter(pc.invert(missing))
        # Positions among the rows that can be audited: those that `step` divides are kept.
        positions = [i for i in range(len(rows)) if (seen + i) % step == 0]
        seen += len(rows)
        kept.append(rows.take(pa.array(positions, pa.int64())))
        while sum(map(len, kept)) >= 2 * limit:
            whole = pa.concat_tables(kept, promote_options="permissive").combine_chunks()
            kept, step = [whole.take(pa.array(range(0, len(whole), 2)))], 2 * step
    if not seen:
        reason = f": {reasons.most_common(1)[0][0]}" if reasons else ""
        raise SourceError(f"none of {counted(rejected, 'row')} can be audited{reason}")
    table = pa.concat_tables(kept, promote_options="permissive").combine_chunks()
    if len(table) > limit:
        table = table.take([i * len(table) // limit for i in range(limit)])
    names = [ROW if name == "row_id" else name for name in table.column_names if name != ROW]
    return Sample(table.select([n for n in table.column_names if n != ROW]).rename_columns(names), seen, rejected)


def reads_reference(reward: RewardingModel, column: str | None) -> RewardingModel:
    """Let a function whose parameter has the name of the data's reference column read the reference."""
    if not isinstance(reward, RewardFunction) or column in (None, "reference"):
        return reward
    if column not in reward.columns_read() or column in reward.columns:
        return reward
    return reward.model_copy(update={"columns": {**reward.columns, str(column): "reference"}})
