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

Data: TypeAlias = "str | Path | Dataset"
"""A Parquet or JSONL file, a folder of Parquet files such as an exported split, or a `datasets.Dataset`."""


class Row(NamedTuple):
    """A prompt and what answers it: one completion, or a chosen and a rejected response."""

    prompt: Prompt
    answers: tuple[str, ...]


def rows(data: Data, answers: Sequence[Sequence[str]]) -> list[Row]:
    """Read `prompt` and, of each group of column names, the first that is there.

    `messages` are whole chats, and so is the first answer's column where there is no `prompt`: what stands before the
    last turn is the prompt. An export's `source_prompt` comes before its `prompt`.

    Raises:
        TrainError: The data are not there, lack a column, hold no rows, or hold one that is neither text nor chat.
    """
    name = title(data)
    read: list[Row] = []
    for (column, *columns), table in _tables(data, name, answers):
        for first, *given in table:
            where = f"{name}, row {len(read)}"
            whole = column not in ("prompt", SOURCE_PROMPT)
            prompt = _before(first, column, where) if whole else _prompt(first, where)
            if column == SOURCE_PROMPT:
                given = _unformed(dict(zip(columns, given, strict=True)))
            read.append(Row(prompt, tuple(_answer(value, prompt, where) for value in given)))
    if not read:
        raise TrainError(f"{name} holds no rows; check the filter that made it")
    return read


class Asked(NamedTuple):
    """A prompt to train on by reward, and what else its row holds, for the reward to read."""

    prompt: Prompt
    columns: dict[str, object]


def prompts(data: Data, needed: Sequence[str] = ()) -> list[Asked]:
    """Read `prompt` and every other column, as GRPO's and PPO's rewards are given them.

    Args:
        data: Where the rows are.
        needed: Columns that the reward cannot do without.

    Raises:
        TrainError: See `rows`; also a column of `needed` is missing.
    """
    name = title(data)
    read: list[Asked] = []
    for names, table in _whole(data, name):
        _columns(names, name, [("prompt",), *((column,) for column in needed)])
        for record in table:
            where = f"{name}, row {len(read)}"
            columns = {key: record.get(key) for key in names if key not in ("prompt", *_FORMED)}
            # Rewards, too, are to read what the source has.
            prompt = record.get(SOURCE_PROMPT if set(_FORMED) <= set(names) else "prompt")
            read.append(Asked(_prompt(prompt, where), columns))
    if not read:
        raise TrainError(f"{name} holds no rows; check the filter that made it")
    known = {key for row in read for key in row.columns}
    return [Asked(row.prompt, {key: row.columns.get(key) for key in sorted(known)}) for row in read]


class HasPrompt(Protocol):
    """Whatever is kept by its prompt."""

    @property
    def prompt(self) -> Prompt:
        """The prompt."""
        ...


Prompted = TypeVar("Prompted", bound=HasPrompt)


def title(data: Data) -> str:
    """Name the data in messages and records: the file or folder without its place, which decides nothing."""
    return Path(data).name if isinstance(data, (str, Path)) else "the Dataset"


def held_out(given: list[Prompted], count: int, seed: int) -> tuple[list[Prompted], list[Prompted]]:
    """Divide rows into those to train on and at least `count`, at most a tenth, to measure on.

    A prompt is on one side only: a row beside its twin would measure memory.
    """
    by_prompt: dict[str, list[int]] = {}
    for i, row in enumerate(given):
        by_prompt.setdefault(prompt_text(row.prompt), []).append(i)
    prompts = list(by_prompt)
    random.Random(seed).shuffle(prompts)
    out: set[int] = set()
    for prompt in prompts:
        if len(out) < count and len(out) + len(by_prompt[prompt]) <= len(given) // 10:
            out.update(by_prompt[prompt])
    return [r for i, r in enumerate(given) if i not in out], [given[i] for i in sorted(out)]


_FORMED = (PROMPT_FORM, SOURCE_PROMPT)
"""Columns of an export whose prompts were written out as text."""


def _unformed(given: dict[str, object]) -> list[object]:
    """Return a row's answers without what its form put before them."""
    form = Form(str(given.pop(PROMPT_FORM)))
    formed = ("completion", "chosen", "rejected")
    return [form.generated(v) if isinstance(v, str) and column in formed else v for column, v in given.items()]


def _tables(data: Data, name: str, wanted: Sequence[Sequence[str]]) -> list[tuple[list[str], list[list[object]]]]:
    """Return the rows of each file, or line: what holds the prompt, and the wanted columns; and the columns' names."""
    if not isinstance(data, (str, Path)):
        columns = _with_prompt(data.column_names, name, wanted)
        return [(columns, [[row[c] for c in columns] for row in data.select_columns(list(dict.fromkeys(columns)))])]
    found = []
    for file in _files(data):
        if file.suffix in {".jsonl", ".json"}:
            records = _jsonl(file)
            chosen = [_with_prompt(list(record), f"{file.name}, line {number}", wanted) for number, record in records]
            pairs = zip(records, chosen, strict=True)
            found += [(columns, [[record[c] for c in columns]]) for (_, record), columns in pairs]
        else:
            columns = _with_prompt(_names(file), file.name, wanted)
            found.append((columns, [[record[c] for c in columns] for record in _parquet(file, columns)]))
    return found


def _whole(data: Data, name: str) -> Iterator[tuple[list[str], Iterable[Mapping[str, object]]]]:
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
    below = sorted({file.parent.relative_to(folder).as_posix() for file in folder.glob("*/*.parquet")})
    if below:
        return f"holds folders with data, and no .parquet files itself; give one of them: {', '.join(below[:8])}"
    return "holds no .parquet files; give the folder of one split, or one file"


def _names(file: Path) -> list[str]:
    with _readable(file):
        return list(pq.read_schema(file).names)


def _parquet(file: Path, columns: Sequence[str]) -> list[dict[str, object]]:
    with _readable(file):
        found: list[dict[str, object]] = pq.read_table(
            file, columns=list(dict.fromkeys(columns)), partitioning=None
        ).to_pylist()
    return found


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
                record = json.loads(line.decode("utf-8-sig" if number == 1 else "utf-8"))
                if formats.surrogate(record):
                    raise ValueError("half of a surrogate pair")
            except (ValueError, RecursionError) as error:
                raise TrainError(f"{file.name}, line {number}: no JSON ({error}); one object a line is read") from error
            if not isinstance(record, dict):
                raise TrainError(f"{file.name}, line {number}: a {type(record).__name__}; one object a line is read")
            values.append((number, record))
    return values


def _with_prompt(there: Sequence[str], name: str, wanted: Sequence[Sequence[str]]) -> list[str]:
    columns = _columns(there, name, wanted)
    if set(_FORMED) <= set(there) and columns[0] != "messages":
        return [SOURCE_PROMPT, *columns, PROMPT_FORM]
    return ["prompt" if "prompt" in there and columns[0] != "messages" else columns[0], *columns]


def _columns(there: Sequence[str], name: str, wanted: Sequence[Sequence[str]]) -> list[str]:
    found: list[str] = []
    other = _other_format(there, wanted)
    if other is not None:
        raise TrainError(f"{name} is no data to fine-tune on: {_way_out(('completion',), other)}")
    for names in wanted:
        column = next((c for c in names if c in there), None)
        if column is None:
            asked = " or ".join(f"`{c}`" for c in names)
            raise TrainError(
                f"{name} has no column {asked}; it has {', '.join(there) or 'none'}: {_way_out(names, there)}"
            )
        found.append(column)
    return found


_FORMATS = {"chosen": "preferences", "label": "unpaired", "completion": "sft", "prompt": "prompts"}
"""The column that tells a split's format, the most telling first."""
_READ_BY = {"preferences": "reward", "sft": "sft", "prompts": "ppo, grpo or rloo"}


def _other_format(there: Sequence[str], wanted: Sequence[Sequence[str]]) -> Sequence[str] | None:
    """Return the telling columns of exported pairs where single answers are wanted: beside pairs, `response` is repeated."""
    single = any("completion" in names for names in wanted)
    if single and "completion" not in there and {"chosen", "rejected", "candidate_variant"} <= set(there):
        return ("chosen",)
    # An unpaired export says of each answer whether it is a good one; fine-tuning would learn the others too.
    if single and {"completion", "label", "candidate_variant"} <= set(there):
        return ("label",)
    return None


def _way_out(wanted: Sequence[str], there: Sequence[str]) -> str:
    """Say what to do about data without a wanted column: another format of the split, another trainer, another name."""
    near = next(filter(None, (suggestion(name, there) for name in wanted)), "")
    held = next((format for column, format in _FORMATS.items() if column in there), None)
    needed = next((format for column, format in _FORMATS.items() if column in wanted), None)
    # Any data have prompts; those of a split have the rows' ids too.
    stranger = held == "prompts" and "row_id" not in there
    if near or held is None or stranger or needed in (None, held, "prompts"):
        return f"rename one of these{near}"
    read_by = f", which `train {_READ_BY[held]}` reads" if held in _READ_BY else ""
    return f"its format is {held}{read_by}; give the split `format: {needed}` in the recipe and export it again"


def _prompt(value: object, where: str) -> Prompt:
    if isinstance(value, str):
        return value
    turns = read_turns(value)
    if not turns:
        raise TrainError(
            f"{where}: the prompt is neither text nor chat messages but {_shown(value)}; leave such rows out"
        )
    return turns


def _before(value: object, column: str, where: str) -> Prompt:
    """Return what is asked in a whole chat."""
    turns = read_turns(value)
    if not turns or len(turns) < 2:
        raise TrainError(
            f"{where}: there is no column `prompt`, and `{column}` is no chat that begins with it but {_shown(value)}; "
            "put what comes before the answer into `prompt`"
        )
    return turns[:-1]


def _answer(value: object, prompt: Prompt, where: str) -> str:
    """Return an answer's text; of messages, the one assistant turn, be it after a copy of the prompt or alone."""
    if isinstance(value, str):
        return value
    turns = read_turns(value)
    if not turns:
        raise TrainError(
            f"{where}: an answer is neither text nor chat messages but {_shown(value)}; leave such rows out"
        )
    *before, last = turns
    if last["role"] != "assistant" or (before and before != as_turns(prompt)):
        roles = ", ".join(turn["role"] for turn in turns)
        raise TrainError(
            f"{where}: an answer in messages is one assistant turn after the prompt, not ({roles}); "
            "move the turns before it into `prompt`"
        )
    return last["content"]


def _shown(value: object) -> str:
    return "null" if value is None else f"{value!r:.60}"
