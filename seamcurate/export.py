"""A split as each trainer loads it: Parquet files that `datasets.load_dataset` reads without a word of code.

Every score travels along as a plain scalar column, so that the Hub's viewer shows its histogram and a trainer's
reward function can read it. Names a trainer keeps for itself are refused.
"""

from __future__ import annotations

import re
import shutil
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Literal, NamedTuple

import duckdb
import pyarrow as pa
import pyarrow.parquet as pq

from seamcurate import shard, views
from seamcurate.errors import ExportError
from seamcurate.models import CausalLM, PolicyModel
from seamcurate.progress import bar
from seamcurate.recipe import Recipe
from seamcurate.store import Store, load_json

Trainer = Literal["trl", "openrlhf", "verl"]

RESERVED = {
    "trl": [
        "prompts",
        "completions",
        "completion_ids",
        "trainer_state",
        "log_extra",
        "log_metric",
        "environment",
        "environments",
        "image",
        "images",
        "tools",
        "chat_template_kwargs",
    ],
    "openrlhf": ["queries", "labels"],
    "verl": [],
}
"""Column names each trainer passes or reads for itself."""

_ROWS_PER_FILE = 500_000
_SHARDS = 4
"""Read together: a query has a cost of its own, and so has a row group."""
_ROWS_PER_GROUP = 8_192
"""Bounded, so that no row group's text outgrows Arrow's 32-bit offsets."""


class Exported(NamedTuple):
    """What an export wrote."""

    folder: Path
    rows: int
    columns: list[str]


def to_trl(store: Store, split: str, out: str | Path, policy: PolicyModel | None = None) -> Exported:
    """Write a split for TRL: prompt-only, prompt-completion, preference, unpaired preference, or token ids.

    Args:
        store: Where the split was made.
        split: Its name.
        out: The folder to write; `load_dataset(out)` reads it.
        policy: Whose tokenizer makes the `input_ids` that TRL's own PPO (up to 1.12) reads; for format `prompt_ids`.

    Raises:
        ExportError: The split is not made, keeps no row, or has a column TRL keeps for itself.
    """
    view = _View(store, split)
    if view.form == "prompt_ids":
        return _write_ids(view, Path(out), policy)
    core = {
        "prompts": {"prompt": "b.prompt"},
        "sft": {"prompt": "b.prompt", "completion": view.answer("b.response")},
        "preferences": {
            "prompt": "b.prompt",
            "chosen": view.answer("b.response"),
            "rejected": view.answer("c.response"),
        },
        "unpaired": {"prompt": "b.prompt", "completion": view.answer("c.response"), "label": "c.label"},
    }[view.form]
    return _write(view, Path(out), core | view.extras("trl", core), f"split {split} for TRL")


def to_openrlhf(store: Store, split: str, out: str | Path) -> Exported:
    """Write a split for OpenRLHF: `input`, `label`, `datasource`; or `prompt`, `chosen`, `rejected`.

    Raises:
        ExportError: See `to_trl`; also a format OpenRLHF has no loader for.
    """
    view = _View(store, split)
    forms = {
        "prompts": {"input": "b.prompt", "label": view.truth, "datasource": f"'seamcurate/{split}'"},
        "sft": {"input": "b.prompt", "output": "b.response"},
        "preferences": {
            "prompt": "b.prompt",
            "chosen": view.answer("b.response"),
            "rejected": view.answer("c.response"),
        },
    }
    if view.form not in forms:
        raise ExportError(f"split {split}: OpenRLHF loads no {view.form!r} data; use format {', '.join(forms)}")
    core = forms[view.form]
    return _write(view, Path(out), core | view.extras("openrlhf", core), f"split {split} for OpenRLHF")


def to_verl(store: Store, split: str, out: str | Path) -> Exported:
    """Write a split of prompts for verl: data_source, prompt, ability, reward_model, extra_info.

    Raises:
        ExportError: See `to_trl`; also any format but prompts.
    """
    view = _View(store, split)
    if view.form != "prompts":
        raise ExportError(f"split {split}: verl trains from prompts, and the split's format is {view.form!r}")
    packed = {"split": "'train'", "index": "b.row_id"} | view.extras("verl", ("split", "index"))
    core = {
        "data_source": f"'seamcurate/{split}'",
        "prompt": "b.prompt" if view.chat else "[{'role': 'user', 'content': b.prompt}]",
        "ability": "coalesce(b.query_type, 'unknown')" if "query_type" in view.kinds else "'unknown'",
        "reward_model": f"{{'style': 'rule', 'ground_truth': coalesce({view.truth}, '')}}",
        "extra_info": "{" + ", ".join(f"{_key(name)}: {value}" for name, value in packed.items()) + "}",
    }
    return _write(view, Path(out), core, f"split {split} for verl")


def export(recipe: Recipe, store: Store, to: Trainer, out: str | Path) -> Iterator[Exported]:
    """Write every split of a recipe for a trainer, a folder each; yields them as they are done.

    Raises:
        ExportError: See `to_trl`; also a recipe without splits.
    """
    if not recipe.splits:
        raise ExportError("the recipe names no `splits`; there is nothing to export")
    for name in recipe.splits:
        folder = Path(out) / name
        if to == "trl":
            yield to_trl(store, name, folder, recipe.models.policy)
        else:
            yield to_openrlhf(store, name, folder) if to == "openrlhf" else to_verl(store, name, folder)


class _View:
    """A split and its store as the three trainers' SQL sees them."""

    def __init__(self, store: Store, split: str) -> None:
        record = load_json(store.open().path / "splits" / split / "split.json")
        if not record:
            made = sorted(file.parent.name for file in (store.path / "splits").glob("*/split.json"))
            raise ExportError(
                f"no split {split!r} in {store.path}; there are: {', '.join(made) or 'none; run its recipe first'}"
            )
        self.store, self.split, self.form = store, split, str(record["format"])
        self.kept, self.fingerprint = int(str(record["kept"])), str(record["fingerprint"])
        self.kinds = {column.name: column.kind for column in store.columns() if column.stale is None}
        self.chat = not pa.types.is_string(self.kinds["prompt"])
        if self.form in ("sft", "preferences", "unpaired") and "response" not in self.kinds:
            raise ExportError(
                f"split {split}: format {self.form!r} needs golden responses; the source maps no `response`"
            )
        self.truth = next((f"b.{name}" for name in ("reference", "response") if name in self.kinds), "NULL::VARCHAR")

    @property
    def pairs(self) -> bool:
        """Tell whether there is a line per candidate, not per row."""
        return self.form in ("preferences", "unpaired")

    def answer(self, text: str) -> str:
        """Write an answer as the trainer wants it beside this prompt: a chat turn beside chat turns."""
        return f"[{{'role': 'assistant', 'content': {text}}}]" if self.chat else text

    def extras(self, trainer: Trainer, core: Iterable[str]) -> dict[str, str]:
        """Name every scalar column that travels along, refusing what the trainer keeps for itself."""
        taken, found = set(core), {}
        # The prompt is a part of every format, and verl has a name of its own for the row's id.
        left_out = {"prompt", *(("row_id",) if trainer == "verl" else ())}
        for name, kind in self.kinds.items():
            if pa.types.is_nested(kind) or name in left_out:
                continue
            if name in RESERVED[trainer]:
                raise ExportError(
                    f"split {self.split}: column {name!r} is a name {trainer} keeps for itself; "
                    f"give the recipe's rows `rename: {{{name}: source_{name}}}` and run it into another store"
                )
            if name in taken:
                raise ExportError(
                    f"split {self.split}: the source's column {name!r} is also what {trainer} calls a part of this format; "
                    f"give the recipe's rows `rename: {{{name}: source_{name}}}` and run it into another store"
                )
            found[name] = f"b.{views.quoted(name)}"
        if self.pairs:
            found |= {f"candidate_{name}": f"c.{name}" for name in ("variant", "rank", "reward", "similarity")}
        return found

    def read(self, select: dict[str, str]) -> Iterator[tuple[int, pa.Table]]:
        """Yield how many rows of some shards the split keeps, and their lines, in the source's order."""
        wanted = [name for name, kind in self.kinds.items() if name == "prompt" or not pa.types.is_nested(kind)]
        if self.pairs:
            wanted += [name for name in self.kinds if name.startswith(("worse_", "rewards_"))]
        read = self.store.reader(wanted, partial=True)
        ledger = self.store.path / "splits" / self.split / "ledger.parquet"
        kept = shard.read(ledger, self.fingerprint, 0, ["kept"])["kept"]
        start, shards = 0, self.store.shards
        # Tables are all that this SQL sees: no file, and so no view of the store.
        with duckdb.connect(config={"threads": 1, "enable_external_access": "false"}) as connection:
            for first in range(0, len(shards), _SHARDS):
                tables = []
                for number in shards[first : first + _SHARDS]:
                    rows = read(number)
                    # A ledger has the source's rows in their order.
                    tables.append(rows.filter(kept.slice(start, rows.num_rows)))
                    start += rows.num_rows
                rows = pa.concat_tables(tables, promote_options="permissive")
                if rows.num_rows:
                    yield rows.num_rows, self._lines(connection, rows, select)

    def _lines(self, connection: duckdb.DuckDBPyConnection, rows: pa.Table, select: dict[str, str]) -> pa.Table:
        # A line a row: columns that travel as they are need no query.
        found: dict[str, pa.ChunkedArray] = {}
        if not self.pairs:
            spelled = {f"b.{word}": name for name in rows.column_names for word in (name, views.quoted(name))}
            found = {name: rows[spelled[value]] for name, value in select.items() if value in spelled}
        asked = {name: value for name, value in select.items() if name not in found}
        if asked:
            connection.register("kept", rows)
            answer = connection.sql(self.sql(asked, rows.schema)).to_arrow_table(_ROWS_PER_GROUP)
            found |= {name: answer[name] for name in asked}
        return pa.table({name: found[name] for name in select})

    def sql(self, select: dict[str, str], schema: pa.Schema) -> str:
        """Write the query over a shard's kept rows: for a line each, or a line per candidate."""
        named = ", ".join(f"{value} AS {views.quoted(name)}" for name, value in select.items())
        if not self.pairs:
            return f"SELECT {named} FROM kept AS b"
        columns = "row_id, variant, rank, response, reward, similarity"
        golden = "SELECT row_id, 'golden' AS variant, 0 AS rank, response, NULL, NULL, true AS label FROM kept"
        worse = f"SELECT {columns}, false AS label FROM ({views.candidates(dict(zip(schema.names, schema.types, strict=True)), 'kept')})"
        candidates = worse if self.form == "preferences" else f"{golden} UNION ALL {worse}"
        return (
            f"SELECT {named} FROM kept AS b JOIN ({candidates}) AS c({columns}, label) ON c.row_id = b.row_id "
            "ORDER BY b.row_id, c.variant, c.rank"
        )


def _write(view: _View, out: Path, select: dict[str, str], label: str) -> Exported:
    with _in_place(out) as folder, bar(label, view.kept) as advance:

        def lines() -> Iterator[pa.Table]:
            for rows, table in view.read(select):
                advance(rows)
                yield table

        written = _files(_ahead(lines()), folder)
        shard.give_back()
        if written == 0:
            raise ExportError(
                f"split {view.split} keeps no row" + (" with a candidate" if view.pairs else "") + "; nothing to export"
            )
    return Exported(out, written, list(select))


def _write_ids(view: _View, out: Path, policy: PolicyModel | None) -> Exported:
    if not isinstance(policy, CausalLM):
        raise ExportError(
            f"split {view.split}: format 'prompt_ids' needs a tokenizer; give the recipe `models: {{policy: {{causal_lm: …}}}}`"
        )
    from transformers import AutoTokenizer

    from seamcurate.models import tokens, weights

    tokenizer = AutoTokenizer.from_pretrained(weights.folder(policy.path, policy.revision))

    def lines() -> Iterator[pa.Table]:
        for _, table in view.read({"prompt": "b.prompt"}):
            texts = (tokens.pieces(tokenizer, prompt, "") for prompt in table["prompt"].to_pylist())
            ids = [tokens.prompt_ids(tokenizer, text.prompt, text.templated) for text in texts]
            yield pa.table({"input_ids": pa.array(ids, pa.list_(pa.int64()))})

    with _in_place(out) as folder:
        written = _files(lines(), folder)
        if written == 0:
            raise ExportError(f"split {view.split} keeps no row; nothing to export")
    return Exported(out, written, ["input_ids"])


def _files(tables: Iterable[pa.Table], folder: Path) -> int:
    """Write tables as `train-00000-of-00003.parquet` …, the names `load_dataset` takes for a train split."""
    files: list[Path] = []
    written = 0
    writer: pq.ParquetWriter | None = None
    try:
        for table in tables:
            while table.num_rows:
                if writer is None:
                    files.append(folder / f"{len(files)}.parquet")
                    # Texts hardly repeat, and zstd finds what does; nobody looks a row up by its text's bounds.
                    bounded = [field.name for field in table.schema if pa.types.is_primitive(field.type)]
                    writer = pq.ParquetWriter(
                        files[-1], table.schema, compression="zstd", use_dictionary=False, write_statistics=bounded
                    )
                part = table.slice(0, len(files) * _ROWS_PER_FILE - written)
                writer.write_table(part, row_group_size=4 * _ROWS_PER_GROUP)
                table, written = table.slice(part.num_rows), written + part.num_rows
                if written == len(files) * _ROWS_PER_FILE:
                    writer.close()
                    writer = None
    finally:
        if writer is not None:
            writer.close()
    for number, file in enumerate(files):
        file.rename(folder / f"train-{number:05d}-of-{len(files):05d}.parquet")
    return written


def _ahead(tables: Iterator[pa.Table]) -> Iterator[pa.Table]:
    """Fetch the next table while the last is being written."""
    with ThreadPoolExecutor(1) as thread:
        coming = thread.submit(next, tables, None)
        while (table := coming.result()) is not None:
            coming = thread.submit(next, tables, None)
            yield table


@contextmanager
def _in_place(out: Path) -> Iterator[Path]:
    """Write into a folder beside `out` and rename it into place; only an earlier export is ever replaced."""
    if out.exists() and any(not re.fullmatch(r"train-\d+-of-\d+\.parquet", file.name) for file in out.iterdir()):
        raise ExportError(f"{out} holds other files than an export; name another folder")
    beside = out.with_name(f".{out.name}.tmp")
    shutil.rmtree(beside, ignore_errors=True)
    beside.mkdir(parents=True)
    try:
        yield beside
        shutil.rmtree(out, ignore_errors=True)
        beside.rename(out)
    finally:
        shutil.rmtree(beside, ignore_errors=True)


def _key(name: str) -> str:
    return "'" + name.replace("'", "''") + "'"
