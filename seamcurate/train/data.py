"""Rows to train on: prompts and answers out of Parquet, JSONL or a `datasets.Dataset`.

A row is read or the training does not start: the error names the row. Nothing is dropped here. An export whose prompts
were written out in a form says so in its rows: they are read as the source had them, and no form is put around them twice.
"""

from __future__ import annotations

import json
import random
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple, Protocol, TypeAlias, TypeVar

import pyarrow as pa
import pyarrow.parquet as pq

from seamcurate.data import formats
from seamcurate.errors import TrainError
from seamcurate.models.chat import as_turns, read_turns
from seamcurate.models.protocols import Prompt
from seamcurate.models.template import Form, prompt_text
from seamcurate.text import brief, suggestion
from seamcurate.trainers import PROMPT_FORM, SOURCE_PROMPT

if TYPE_CHECKING:
    from datasets import Dataset

TrainingData: TypeAlias = "str | Path | Dataset"
"""A Parquet or JSONL file, a folder of Parquet files such as an exported split, or a `datasets.Dataset`."""


class TrainingRow(NamedTuple):
    """A prompt and what answers it: one completion, or a chosen and a rejected response."""

    prompt: Prompt
    answers: tuple[str, ...]


def rows(data: TrainingData, answers: Sequence[Sequence[str]]) -> list[TrainingRow]:
    """Read `prompt` and, of each group of column names, the first that is there.

    `messages` are whole chats, and so is the first answer's column where there is no `prompt`: what stands before the
    last turn is the prompt. An export's `source_prompt` comes before its `prompt`.

    Raises:
        TrainError: The data are not there, lack a column, hold no rows, or hold one that is neither text nor chat.
    """
    name = title(data)
    rows_read: list[TrainingRow] = []
    for (column, *columns), table in _tables(data, name, answers):
        for prompt_value, *answer_values in table:
            position = f"{name}, row {len(rows_read)}"
            is_chat = column not in ("prompt", SOURCE_PROMPT)
            prompt = _chat_prompt(prompt_value, column, position) if is_chat else _prompt(prompt_value, position)
            if column == SOURCE_PROMPT:
                answer_values = _raw_answers(dict(zip(columns, answer_values, strict=True)))
            rows_read.append(TrainingRow(prompt, tuple(_answer(value, prompt, position) for value in answer_values)))
    if not rows_read:
        raise TrainError(f"{name} holds no rows; check the filter that made it")
    return rows_read


class PromptRow(NamedTuple):
    """A prompt to train on by reward, and what else its row holds, for the reward to read."""

    prompt: Prompt
    columns: dict[str, object]


def prompts(data: TrainingData, needed: Sequence[str] = ()) -> list[PromptRow]:
    """Read `prompt` and every other column, as GRPO's and PPO's rewards are given them.

    Args:
        data: Where the rows are.
        needed: Columns that the reward cannot do without.

    Raises:
        TrainError: See `rows`; also a column of `needed` is missing.
    """
    name = title(data)
    rows_read: list[PromptRow] = []
    for names, table in _records(data, name):
        _columns(names, name, [("prompt",), *((column,) for column in needed)])
        for record in table:
            position = f"{name}, row {len(rows_read)}"
            columns = {key: record.get(key) for key in names if key not in ("prompt", *_FORMED)}
            # Rewards, too, are to read what the source has.
            prompt = record.get(SOURCE_PROMPT if set(_FORMED) <= set(names) else "prompt")
            rows_read.append(PromptRow(_prompt(prompt, position), columns))
    if not rows_read:
        raise TrainError(f"{name} holds no rows; check the filter that made it")
    # A data set has one list of columns; in JSONL each line has its own.
    names_of_all = {key for row in rows_read for key in row.columns}
    return [PromptRow(row.prompt, {key: row.columns.get(key) for key in sorted(names_of_all)}) for row in rows_read]


class HasPrompt(Protocol):
    """Whatever is kept by its prompt."""

    @property
    def prompt(self) -> Prompt:
        """The prompt."""
        ...


Prompted = TypeVar("Prompted", bound=HasPrompt)


def title(data: TrainingData) -> str:
    """Name the data in messages and records: the file or folder without its place, which decides nothing."""
    return Path(data).name if isinstance(data, (str, Path)) else "the Dataset"


def held_out(rows: list[Prompted], count: int, seed: int) -> tuple[list[Prompted], list[Prompted]]:
    """Divide rows into those to train on and at least `count`, at most a tenth, to measure on.

    A prompt is on one side only: a row beside its twin would measure memory.
    """
    by_prompt: dict[str, list[int]] = {}
    for i, row in enumerate(rows):
        by_prompt.setdefault(prompt_text(row.prompt), []).append(i)
    prompts = list(by_prompt)
    random.Random(seed).shuffle(prompts)
    held_out_rows: set[int] = set()
    for prompt in prompts:
        # A prompt with many rows is passed over where it would take more than the tenth; the next may fit.
        if len(held_out_rows) < count and len(held_out_rows) + len(by_prompt[prompt]) <= len(rows) // 10:
            held_out_rows.update(by_prompt[prompt])
    return [r for i, r in enumerate(rows) if i not in held_out_rows], [rows[i] for i in sorted(held_out_rows)]


_FORMED = (PROMPT_FORM, SOURCE_PROMPT)
"""Columns of an export whose prompts were written out as text."""


def _raw_answers(row: dict[str, object]) -> list[object]:
    """Return a row's answers without what its form put before them."""
    form = Form(str(row.pop(PROMPT_FORM)))
    formed = ("completion", "chosen", "rejected")
    return [form.generated(v) if isinstance(v, str) and column in formed else v for column, v in row.items()]


def _tables(
    data: TrainingData, name: str, needed: Sequence[Sequence[str]]
) -> list[tuple[list[str], list[list[object]]]]:
    """Return the rows of each file, or line: what holds the prompt, and the wanted columns; and the columns' names."""
    if not isinstance(data, (str, Path)):
        columns = _with_prompt(data.column_names, name, needed)
        return [(columns, [[row[c] for c in columns] for row in data.select_columns(list(dict.fromkeys(columns)))])]
    tables = []
    for file in _files(data):
        if file.suffix in {".jsonl", ".json"}:
            records = _jsonl(file)
            columns_of_records = [
                _with_prompt(list(record), f"{file.name}, line {number}", needed) for number, record in records
            ]
            pairs = zip(records, columns_of_records, strict=True)
            tables += [(columns, [[record[c] for c in columns]]) for (_, record), columns in pairs]
        else:
            columns = _with_prompt(_names(file), file.name, needed)
            tables.append((columns, [[record[c] for c in columns] for record in _parquet(file, columns)]))
    return tables


def _records(data: TrainingData, name: str) -> Iterator[tuple[list[str], Iterable[Mapping[str, object]]]]:
    """Yield each file's column names and its rows."""
    if not isinstance(data, (str, Path)):
        yield data.column_names, data
        return
    for file in _files(data):
        if file.suffix in {".jsonl", ".json"}:
            records = [record for _, record in _jsonl(file)]
            if records:
                yield list(dict.fromkeys(key for record in records for key in record)), records
        else:
            yield _names(file), _parquet(file, _names(file))


def _files(data: str | Path) -> list[Path]:
    path = Path(data).expanduser()
    if path.is_dir():
        # Dot files are what a writer has not finished.
        files = sorted(f for f in path.glob("*.parquet") if not f.name.startswith("."))
        if not files:
            raise TrainError(f"{data} {_without_files(path)}")
        return files
    if not path.is_file():
        raise TrainError(f"{data} is not there; give a Parquet or JSONL file, or a folder of Parquet files")
    return [path]


def _without_files(folder: Path) -> str:
    """Say what a folder without Parquet files is, and what to give instead."""
    if (folder / "store.json").is_file():
        return (
            "is a store; export its splits (seamcurate export RECIPE STORE --to trl --out splits), and give splits/NAME"
        )
    folders = sorted({file.parent.relative_to(folder).as_posix() for file in folder.glob("*/*.parquet")})
    if folders:
        return f"holds folders with data, and no .parquet files itself; give one of them: {', '.join(folders[:8])}"
    return "holds no .parquet files; give the folder of one split, or one file"


def _names(file: Path) -> list[str]:
    with _readable(file):
        return list(pq.read_schema(file).names)


def _parquet(file: Path, columns: Sequence[str]) -> list[dict[str, object]]:
    with _readable(file):
        records: list[dict[str, object]] = pq.read_table(
            file, columns=list(dict.fromkeys(columns)), partitioning=None
        ).to_pylist()
    return records


@contextmanager
def _readable(file: Path) -> Iterator[None]:
    try:
        yield
    except (pa.ArrowException, OSError, ValueError) as error:
        raise TrainError(f"{file} is no readable Parquet file ({brief(str(error), 120)}); write it anew") from error


def _jsonl(file: Path) -> list[tuple[int, dict[str, object]]]:
    """Read the objects of a file, each with its line's number."""
    values: list[tuple[int, dict[str, object]]] = []
    with file.open("rb") as lines:
        for number, line in enumerate(lines, 1):
            if not line.strip():
                continue
            try:
                # Windows' editors begin a file with a byte order mark, which is no part of the first key.
                record = json.loads(line.decode("utf-8-sig" if number == 1 else "utf-8"))
                # JSON may hold it as an escape; tokenizers cannot encode it.
                if formats.surrogate(record):
                    raise ValueError("half of a surrogate pair")
            except (ValueError, RecursionError) as error:
                raise TrainError(f"{file.name}, line {number}: no JSON ({error}); one object a line is read") from error
            if not isinstance(record, dict):
                raise TrainError(f"{file.name}, line {number}: a {type(record).__name__}; one object a line is read")
            values.append((number, record))
    return values


def _with_prompt(names: Sequence[str], name: str, needed: Sequence[Sequence[str]]) -> list[str]:
    columns = _columns(names, name, needed)
    if set(_FORMED) <= set(names) and columns[0] != "messages":
        return [SOURCE_PROMPT, *columns, PROMPT_FORM]
    return ["prompt" if "prompt" in names and columns[0] != "messages" else columns[0], *columns]


def _columns(present: Sequence[str], name: str, needed: Sequence[Sequence[str]]) -> list[str]:
    columns: list[str] = []
    export_columns = _other_format(present, needed)
    if export_columns is not None:
        raise TrainError(f"{name} is no data to fine-tune on: {_hint(('completion',), export_columns)}")
    for names in needed:
        column = next((c for c in names if c in present), None)
        if column is None:
            alternatives = " or ".join(f"`{c}`" for c in names)
            raise TrainError(
                f"{name} has no column {alternatives}; it has {', '.join(present) or 'none'}: {_hint(names, present)}"
            )
        columns.append(column)
    return columns


_FORMATS = {"chosen": "preferences", "label": "unpaired", "completion": "sft", "prompt": "prompts"}
"""The column that tells a split's format, the most telling first."""
_READ_BY = {"preferences": "reward", "sft": "sft", "prompts": "ppo, grpo or rloo"}


def _other_format(present: Sequence[str], needed: Sequence[Sequence[str]]) -> Sequence[str] | None:
    """Return the telling columns of exported pairs where single answers are wanted: beside pairs, `response` is repeated."""
    single = any("completion" in names for names in needed)
    if single and "completion" not in present and {"chosen", "rejected", "candidate_variant"} <= set(present):
        return ("chosen",)
    # An unpaired export says of each answer whether it is a good one; fine-tuning would learn the others too.
    if single and {"completion", "label", "candidate_variant"} <= set(present):
        return ("label",)
    return None


def _hint(needed: Sequence[str], present: Sequence[str]) -> str:
    """Say what to do about data without a wanted column: another format of the split, another trainer, another name."""
    hint = next(filter(None, (suggestion(name, present) for name in needed)), "")
    export_format = next((format for column, format in _FORMATS.items() if column in present), None)
    needed_format = next((format for column, format in _FORMATS.items() if column in needed), None)
    # Any data have prompts; those of a split have the rows' ids too.
    is_no_split = export_format == "prompts" and "row_id" not in present
    if hint or export_format is None or is_no_split or needed_format in (None, export_format, "prompts"):
        return f"rename one of these{hint}"
    read_by = f", which `train {_READ_BY[export_format]}` reads" if export_format in _READ_BY else ""
    return f"its format is {export_format}{read_by}; give the split `format: {needed_format}` in the recipe and export it again"


def _prompt(value: object, position: str) -> Prompt:
    if isinstance(value, str):
        return value
    turns = read_turns(value)
    if not turns:
        raise TrainError(
            f"{position}: the prompt is neither text nor chat messages but {_brief_value(value)}; leave such rows out"
        )
    return turns


def _chat_prompt(value: object, column: str, position: str) -> Prompt:
    """Return what is asked in a whole chat."""
    turns = read_turns(value)
    if not turns or len(turns) < 2:
        raise TrainError(
            f"{position}: there is no column `prompt`, and `{column}` is no chat that begins with it but {_brief_value(value)}; "
            "put what comes before the answer into `prompt`"
        )
    return turns[:-1]


def _answer(value: object, prompt: Prompt, position: str) -> str:
    """Return an answer's text; of messages, the one assistant turn, be it after a copy of the prompt or alone."""
    if isinstance(value, str):
        return value
    turns = read_turns(value)
    if not turns:
        raise TrainError(
            f"{position}: an answer is neither text nor chat messages but {_brief_value(value)}; leave such rows out"
        )
    *earlier_turns, answer_turn = turns
    if answer_turn["role"] != "assistant" or (earlier_turns and earlier_turns != as_turns(prompt)):
        roles = ", ".join(turn["role"] for turn in turns)
        raise TrainError(
            f"{position}: an answer in messages is one assistant turn after the prompt, not ({roles}); "
            "move the turns before it into `prompt`"
        )
    return answer_turn["content"]


def _brief_value(value: object) -> str:
    return "null" if value is None else f"{value!r:.60}"
