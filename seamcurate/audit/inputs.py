"""What an audit is given: a reward by one string, and rows by a file, of which an even sample is audited."""

from __future__ import annotations

import re
from collections import Counter
from pathlib import Path
from typing import NamedTuple

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import yaml
from pydantic import TypeAdapter, ValidationError

from seamcurate import rewards
from seamcurate.data import formats, layouts
from seamcurate.data.source import Source
from seamcurate.errors import ModelError, SourceError, TrainError, first_line
from seamcurate.models import CausalLM, PolicyModel, RewardFunction, RewardingModel, completion_server
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


def policy_model(policy: str | PolicyModel) -> PolicyModel:
    """Return the policy that one string names: a folder, a Hub id, a server's address, or a YAML file with one policy of a recipe.

    Raises:
        ModelError: It names none, or a server whose address does not say enough.
    """
    if not isinstance(policy, str):
        return policy
    if re.match(r"https?://", policy):
        return completion_server.served_at(policy)
    if not policy.endswith((".yaml", ".yml")):
        return CausalLM(path=policy)
    try:
        fields = yaml.safe_load(Path(policy).read_text(encoding="utf-8"))
        named: PolicyModel = TypeAdapter(PolicyModel).validate_python(fields)
    except ValidationError as error:
        raise ModelError(f"policy {policy}: {error.errors(include_url=False)[0]['msg']}") from error
    except (OSError, ValueError, RecursionError, yaml.YAMLError) as error:
        raise ModelError(f"policy {policy} cannot be read: {first_line(error)}") from error
    return named


def source(
    data: str | Path, prompt: str | None = None, response: str | None = None, reference: str | None = None
) -> Source:
    """Return the rows of a file: by the columns that are named, else in the public layout that it looks like, else by `USUAL`.

    Where there is no column of responses, the reference is the golden response.

    Raises:
        SourceError: The file is not there, of no known kind, or lacks a column.
    """
    file = str(data)
    kind = next((kind for ending, kind in _KINDS.items() if file.lower().endswith(ending)), None)
    if kind is None:
        raise SourceError(f"{file}: rows come from a file that ends in {', '.join(_KINDS)}; write them as one of these")
    row = _first_row(file, kind)
    named = {"prompt": prompt, "response": response, "reference": reference}
    if prompt is None and response is None and (layout := layouts.looks_like(dict(row))) is not None:
        if reference is None:
            return Source.model_validate({kind: file, "layout": layout})
        raise SourceError(f"{file} has the layout {layout}: name --prompt and --response, too, or no column")
    for target, column in named.items():
        if column is not None and column not in row and column.split(".")[0] not in row:
            available = f"it has {', '.join(row)}{suggestion(column, row)}"
            raise SourceError(f"{file}: no column {column!r} for {target}; {available}")
    for target, column in named.items():
        taken = [other for other in named.values() if other is not None]
        named[target] = column or next((name for name in USUAL[target] if name in row and name not in taken), None)
    if named["prompt"] is None:
        raise SourceError(f"{file}: no column of prompts; it has {', '.join(row)}: name one by --prompt")
    if named["response"] is None and named["reference"] is None:
        raise SourceError(
            f"{file}: no column of good answers; it has {', '.join(row)}: name one by --response or --reference"
        )
    return Source.model_validate({kind: file, **{key: value for key, value in named.items() if value is not None}})


def _first_row(file: str, kind: str) -> dict[str, object]:
    """Return the first row of a file that can be read; of one without rows, its columns."""
    first = formats.matches(file, kind)[0]
    if kind in ("parquet", "arrow"):
        schema = pq.read_schema(first) if kind == "parquet" else formats.arrow_schema(first)
        read = formats.parquet_tables if kind == "parquet" else formats.arrow_tables
        rows: list[dict[str, object]] = next(
            (table.slice(0, 1).to_pylist() for table in read(first, 0, 1) if len(table)), []
        )
        return rows[0] if rows else dict.fromkeys(schema.names)
    for line in formats.json_lines(first) if kind == "jsonl" else formats.csv_lines(first):
        try:
            return dict((formats.json_row(line) if isinstance(line, bytes) else formats.csv_row(line)).cells)
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
        if "response" not in rows.column_names and "reference" in rows.column_names:
            # The shortest golden answer that there is.
            rows = rows.append_column("response", rows["reference"])
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


def reads_data(reward: RewardingModel, data: Source) -> RewardingModel:
    """Let a function whose parameters have the names of the data's own columns read these."""
    if not isinstance(reward, RewardFunction):
        return reward
    return reward.with_data_names({"prompt": data.prompt, "response": data.response, "reference": data.reference})


def lacks_reference(reward: RewardingModel, sample: Sample) -> bool:
    """Tell whether a reward reads the reference, and no row has one."""
    rows = sample.rows
    absent = "reference" not in rows.column_names or rows["reference"].null_count == len(rows)
    return absent and "reference" in reward.columns_read()
