"""A split as each trainer loads it: Parquet files that `datasets.load_dataset` reads without a word of code.

Every score travels along as a plain scalar column, so that the Hub's viewer shows its histogram and a trainer's
reward function can read it. Names a trainer keeps for itself are refused. Beside prompts of a recipe with RER lies
`reward.py`, which the trainer loads as its reward: RER's configuration, and a call of `seamcurate.rewards`.
"""

from __future__ import annotations

import os
import pprint
import re
import shutil
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Literal, NamedTuple

import pyarrow as pa
import pyarrow.parquet as pq

from seamcurate import agreement, objects, shard, views
from seamcurate import augment as augmentation
from seamcurate import split as splits
from seamcurate.errors import ExportError, StaleError
from seamcurate.models import CausalLM, PolicyModel
from seamcurate.progress import bar
from seamcurate.recipe import Recipe
from seamcurate.rewards import RerReward
from seamcurate.split import Augment
from seamcurate.store import Store, beside, load_json
from seamcurate.white_box import F_ZERO, LengthIncentive, QueryRelevance, ReferenceRelevance, RepetitionPenalty, Rer

if TYPE_CHECKING:
    from duckdb import DuckDBPyConnection

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

_OF_CANDIDATES = ("variant", "rank", "reward", "similarity")
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
    note: str = ""
    """What else a person should know: how the reward file is used, or why there is none."""


def to_trl(
    store: Store, split: str, out: str | Path, policy: PolicyModel | None = None, reward: RerReward | None = None
) -> Exported:
    """Write a split for TRL: prompt-only, prompt-completion, preference, unpaired preference, or token ids.

    Args:
        store: Where the split was made.
        split: Its name.
        out: The folder to write; `load_dataset(out)` reads it.
        policy: Whose tokenizer makes the `input_ids` that TRL's own PPO (up to 1.12) reads; for format `prompt_ids`.
        reward: Write a `reward.py` that gives it; for format `prompts`.

    Raises:
        ExportError: The split is not made, keeps no row, or has a column TRL keeps for itself.
        StaleError: What the split was made of has changed since, or changes meanwhile.
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
    file = _trl_file(view.able(reward)) if reward and view.form == "prompts" else ""
    return _write(view, Path(out), core | view.extras("trl", core), f"split {split} for TRL", file)


def to_openrlhf(
    store: Store, split: str, out: str | Path, policy: PolicyModel | None = None, reward: RerReward | None = None
) -> Exported:
    """Write a split for OpenRLHF: `input`, `label`, `datasource`; or `prompt`, `chosen`, `rejected`.

    With a `reward`, prompts have a `reward_label` too, and a `reward.py` beside them reads it: OpenRLHF passes a reward
    nothing of a row but one label. The policy's end-of-sequence token, which OpenRLHF leaves in a response, is in it.

    Raises:
        ExportError: See `to_trl`; also a format OpenRLHF has no loader for.
        ModelError: The policy's tokenizer cannot be loaded.
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
    core, file = forms[view.form], ""
    if reward and view.form == "prompts":
        kind = "b.query_type" if "query_type" in view.kinds else "NULL"
        core["reward_label"] = (
            f"to_json({{'prompt': {view.prompt_text}, 'query_type': {kind}, 'reference': b.reference}})::VARCHAR"
        )
        file = _openrlhf_file(view.able(reward), _end(policy))
    return _write(view, Path(out), core | view.extras("openrlhf", core), f"split {split} for OpenRLHF", file)


def to_verl(store: Store, split: str, out: str | Path, reward: RerReward | None = None) -> Exported:
    """Write a split of prompts for verl: data_source, prompt, ability, reward_model, extra_info.

    With a `reward`, `extra_info` has the prompt's text too, and a `reward.py` beside the rows reads it.

    Raises:
        ExportError: See `to_trl`; also any format but prompts.
    """
    view = _View(store, split)
    if view.form != "prompts":
        raise ExportError(f"split {split}: verl trains from prompts, and the split's format is {view.form!r}")
    packed = {"split": "'train'", "index": "b.row_id"} | ({"prompt": view.prompt_text} if reward else {})
    packed |= view.extras("verl", packed)
    core = {
        "data_source": f"'seamcurate/{split}'",
        "prompt": "b.prompt" if view.chat else "[{'role': 'user', 'content': b.prompt}]",
        "ability": "coalesce(b.query_type, 'unknown')" if "query_type" in view.kinds else "'unknown'",
        "reward_model": f"{{'style': 'rule', 'ground_truth': coalesce({view.truth}, '')}}",
        "extra_info": "{" + ", ".join(f"{_key(name)}: {value}" for name, value in packed.items()) + "}",
    }
    return _write(view, Path(out), core, f"split {split} for verl", _verl_file(view.able(reward)) if reward else "")


def to_augmented(
    store: Store, split: str, out: str | Path, augment: Augment = Augment(), to: Trainer = "trl"
) -> list[Exported]:
    """Write new pairs made of a split's rows: a folder `sft`, a folder `preferences`, and who gave none.

    Each pair has `row_id`, `source_row_id`, `variant`, `rank`, `similarity` and `kind`. `dropped.parquet` has, for each
    of the two, the rows that gave no pair and why.

    Raises:
        ExportError: No row gives a pair, the sample set is not there, or verl is asked for: it loads prompts only.
    """
    view, place = _View(store, split), Path(out)
    if to == "verl":
        raise ExportError(
            f"split {split}: verl trains from prompts, and `augment` makes pairs; export to trl or openrlhf"
        )
    kinds: list[augmentation.Kind] = ["sft", "preferences"] if augment.variant == "contrast" else ["preferences"]
    done: list[Exported] = []
    dropped: list[pa.Table] = []
    with _in_place(place) as folder:
        for kind in kinds:
            names = {"prompt": "input", "completion": "output"} if (to, kind) == ("openrlhf", "sft") else {}
            (folder / kind).mkdir()
            told = _Told()
            with bar(f"split {split}: {kind}", view.kept) as advance:
                pairs = _pairs(augmentation.parts(store, split, augment, kind), told, advance)
                written = _files((table.rename_columns(_named(table, names)) for table in pairs), folder / kind)
            if not written:
                (folder / kind).rmdir()
            dropped.append(told.dropped)
            columns = pq.read_schema(next((folder / kind).iterdir())).names if written else []
            done.append(Exported(place / kind, written, columns, told.line(augment)))
        pq.write_table(pa.concat_tables(dropped), folder / "dropped.parquet")
        shard.give_back()
        if not any(one.rows for one in done):
            raise ExportError(f"split {split}: no row gives a pair ({done[-1].note}); nothing to export")
    return done


class _Told:
    """What a person should know of an augmentation, gathered while it is written."""

    def __init__(self) -> None:
        self.rows, self.short, self.dropped = 0, 0, augmentation.DROPPED.empty_table()

    def add(self, part: augmentation.Part) -> None:
        self.rows, self.short = self.rows + part.rows, self.short + part.short
        self.dropped = pa.concat_tables([self.dropped, part.dropped])

    def line(self, augment: Augment) -> str:
        reasons = self.dropped["reason"].value_counts().to_pylist()
        why = "".join(f"; {one['counts']:,} give none: {one['values']}" for one in reasons)
        return f"of {self.rows:,} rows {self.short:,} give fewer than {augment.samples} pairs{why}"


def _pairs(parts: Iterable[augmentation.Part], told: _Told, advance: Callable[[int], None]) -> Iterator[pa.Table]:
    for part in parts:
        told.add(part)
        advance(part.rows)
        if part.pairs.num_rows:
            yield part.pairs


def _named(table: pa.Table, names: dict[str, str]) -> list[str]:
    return [names.get(name, name) for name in table.column_names]


def export(recipe: Recipe, store: Store, to: Trainer, out: str | Path) -> Iterator[Exported]:
    """Write every split of a recipe for a trainer, a folder each; yields them as they are done.

    Where the recipe computes RER, prompts come with it as a reward.

    Raises:
        ExportError: See `to_trl`; also a recipe without splits.
        StaleError: The store does not hold what the recipe makes.
        StoreError: `out` is on object storage.
    """
    out = objects.folder(out, "export")
    if not recipe.splits:
        raise ExportError("the recipe names no `splits`; there is nothing to export")
    agreement.require(recipe, store)
    reward, why = rer_reward(recipe, store)
    policy = recipe.models.policy
    for name, split in recipe.splits.items():
        folder = out / name
        if split.augment is not None:
            yield from to_augmented(store, name, folder, split.augment, to)
            continue
        if to == "trl":
            done = to_trl(store, name, folder, policy, reward)
        elif to == "openrlhf":
            done = to_openrlhf(store, name, folder, policy, reward)
        else:
            done = to_verl(store, name, folder, reward)
        if split.format != "prompts":
            yield done
        elif reward is None:
            yield done._replace(note=f"no reward.py: {why}")
        else:
            yield done._replace(note=f"{folder / _REWARD} gives RER as the reward: {_USE[to]}")


def rer_reward(recipe: Recipe, store: Store) -> tuple[RerReward | None, str]:
    """Return RER as the recipe's steps compute it, as a reward; or None and why there is none."""
    steps = recipe.ready()
    whole = next((step for step in steps if isinstance(step, Rer)), None)
    if whole is None:
        return None, "the recipe computes no rer"
    shared = beside(store.path / "columns" / whole.name, "shared")
    if isinstance(shared, Path) and shared.exists():
        shard.verify_folder(shared)
    record = load_json(shared / "range.json")
    measured = record.get("range")
    if not isinstance(measured, list):
        return None, "the store has no rer yet; run the recipe first"
    if whole.fit == "quantiles" and record.get("zero") != F_ZERO[whole.fit]:
        return None, "F was fitted by an earlier version, whose zero paid for repetition; run the recipe with --replace"
    # A column may come from the source instead of a step; then nothing tells how it was made.
    parts = {type(step): step for step in steps}
    length, repetition = parts.get(LengthIncentive), parts.get(RepetitionPenalty)
    query, reference = parts.get(QueryRelevance), parts.get(ReferenceRelevance)
    if not (
        isinstance(length, LengthIncentive)
        and isinstance(repetition, RepetitionPenalty)
        and isinstance(query, QueryRelevance)
        and isinstance(reference, ReferenceRelevance)
    ):
        return None, "the recipe does not compute all four features of rer"
    if length.stop != repetition.stop or length.words != repetition.words:
        return None, "its features are not made of the same text: give them the same `words` and `stop`"
    if query.encoder != reference.encoder:
        return None, "its two relevances have not the same encoder"
    encoder = query.encoder
    if encoder is not None and Path(encoder.path).is_dir():
        encoder = encoder.model_copy(update={"path": str(Path(encoder.path).resolve())})
    low, high = (float(str(end)) for end in measured)
    reward = RerReward(
        encoder=encoder,
        max_response_tokens=whole.max_response_tokens,
        combine=whole.combine,
        clip=whole.clip,
        source=(low, high),
        fallback=whole.fallback,
        min_tokens=whole.min_tokens,
        words=length.words,
        stop=length.stop,
    )
    return reward, ""


_REWARD = "reward.py"
_HEAD = '"""RER as a reward, written by `seamcurate export`'
"""Only files that open so are ever replaced."""
_USE = {
    "trl": "`seamcurate train ppo --reward reward.py`; or put its folder on PYTHONPATH, then `from reward import rer` or "
    "`trl grpo --reward_funcs reward.rer`",
    "openrlhf": "`--reward.remote_url reward.py --data.label_key reward_label`",
    "verl": "`reward.custom_reward_function.path=reward.py`, whose compute_score verl takes",
}
"""How each trainer is told of its reward file."""


def _trl_file(reward: RerReward) -> str:
    return _reward_file("trl", reward) + (
        "\n\ndef rer(prompts, completions, **columns):\n"
        "    return rewards.for_trl(REWARD, prompts, completions, columns)\n"
    )


def _openrlhf_file(reward: RerReward, end: str) -> str:
    return _reward_file("openrlhf", reward) + (
        f"END = {end!r}  # the policy's end-of-sequence token\n"
        "\n\ndef reward_func(queries, prompts, labels, **more):\n"
        "    return rewards.for_openrlhf(REWARD, END, queries, prompts, labels)\n"
    )


def _verl_file(reward: RerReward) -> str:
    return _reward_file("verl", reward) + (
        "\n\ndef compute_score(data_source, solution_str, ground_truth, extra_info=None, **more):\n"
        "    return rewards.for_verl(REWARD, solution_str, ground_truth, extra_info)\n"
    )


def _reward_file(trainer: Trainer, reward: RerReward) -> str:
    config = pprint.pformat(reward.model_dump(mode="json"), width=100, sort_dicts=False)
    head = f'{_HEAD}: {_USE[trainer]}."""\n\n'
    return f"{head}from seamcurate import rewards\n\nREWARD = rewards.RerReward.model_validate(\n{config}\n)\n"


def _end(policy: PolicyModel | None) -> str:
    """Return the end-of-sequence token as text; none for a policy that has no tokenizer."""
    if not isinstance(policy, CausalLM):
        return ""
    return str(policy.tokenizer().eos_token or "")


class _View:
    """A split and its store as the three trainers' SQL sees them."""

    def __init__(self, store: Store, split: str) -> None:
        record = store.open().split_record(split)
        if not record:
            made = sorted(store.split_records())
            raise ExportError(
                f"no split {split!r} in {store.path}; there are: {', '.join(made) or 'none; run its recipe first'}"
            )
        if why := splits.stale(store).get(split):
            raise StaleError(f"split {split} of {store.path} is out of date: {why}; run its recipe first")
        self.store, self.split, self.form = store, split, str(record["format"])
        self.kept = int(str(record["kept"]))
        self.kinds = {column.name: column.kind for column in store.columns() if column.stale is None}
        self.chat = not pa.types.is_string(self.kinds["prompt"])
        if self.form in ("sft", "preferences", "unpaired") and "response" not in self.kinds:
            raise ExportError(
                f"split {split}: format {self.form!r} needs golden responses; the source maps no `response`"
            )
        self.truth = next((f"b.{name}" for name in ("reference", "response") if name in self.kinds), "NULL::VARCHAR")

    @property
    def prompt_text(self) -> str:
        """Write the prompt as the text an encoder reads; see `models.template.prompt_text`."""
        return "array_to_string([turn.content FOR turn IN b.prompt], chr(10))" if self.chat else "b.prompt"

    @property
    def pairs(self) -> bool:
        """Tell whether there is a line per candidate, not per row."""
        return self.form in ("preferences", "unpaired")

    def able(self, reward: RerReward) -> RerReward:
        """Return the reward if the rows have what it reads."""
        missing = [name for name in reward.columns if name not in self.kinds]
        if missing:
            raise ExportError(
                f"split {self.split}: reward {reward.reward} needs the column {missing[0]}; run a recipe with `rer` first"
            )
        return reward

    def answer(self, text: str) -> str:
        """Write an answer as the trainer wants it beside this prompt: a chat turn beside chat turns."""
        return f"[{{'role': 'assistant', 'content': {text}}}]" if self.chat else text

    def extras(self, trainer: Trainer, core: Iterable[str]) -> dict[str, str]:
        """Name every scalar column that travels along, refusing what the trainer keeps for itself."""
        taken, found = {name.lower() for name in core}, {}
        if self.pairs:
            taken |= {f"candidate_{name}" for name in _OF_CANDIDATES}
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
            # SQL ignores case.
            if name.lower() in taken:
                raise ExportError(
                    f"split {self.split}: the source's column {name!r} is also what {trainer} calls a part of this format; "
                    f"give the recipe's rows `rename: {{{name}: source_{name}}}` and run it into another store"
                )
            found[name] = f"b.{views.quoted(name)}"
        if self.pairs:
            found |= {f"candidate_{name}": f"c.{name}" for name in _OF_CANDIDATES}
        return found

    def read(self, select: dict[str, str]) -> Iterator[tuple[int, pa.Table]]:
        """Yield how many rows of some shards the split keeps, and their lines, in the source's order."""
        wanted = [name for name, kind in self.kinds.items() if name == "prompt" or not pa.types.is_nested(kind)]
        if self.pairs:
            wanted += [name for name in self.kinds if name.startswith(("worse_", "rewards_"))]
        kept = splits.kept(self.store, self.split, wanted)
        # Tables are all that this SQL sees: no file, and so no view of the store.
        with views.in_memory(threads=1) as connection:
            while tables := list(islice(kept, _SHARDS)):
                rows = pa.concat_tables(tables, promote_options="permissive")
                if rows.num_rows:
                    yield rows.num_rows, self._lines(connection, rows, select)

    def _lines(self, connection: DuckDBPyConnection, rows: pa.Table, select: dict[str, str]) -> pa.Table:
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


def _write(view: _View, out: Path, select: dict[str, str], label: str, reward_file: str = "") -> Exported:
    with _in_place(out) as folder, bar(label, view.kept) as advance:

        def lines() -> Iterator[pa.Table]:
            for rows, table in view.read(select):
                advance(rows)
                yield table

        written = _files(_ahead(lines()), folder)
        if reward_file:
            (folder / _REWARD).write_text(reward_file, encoding="utf-8")
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
    from seamcurate.models import tokens

    tokenizer = policy.tokenizer()
    form = policy.dated(view.store.day).prompt_form(tokenizer)

    def lines() -> Iterator[pa.Table]:
        for _, table in view.read({"prompt": "b.prompt"}):
            ids = [tokens.prompt_ids(tokenizer, prompt, form) for prompt in table["prompt"].to_pylist()]
            yield pa.table({"input_ids": pa.array(ids, pa.list_(pa.int64()))})

    with _in_place(out) as folder:
        written = _files(lines(), folder)
        if written == 0:
            raise ExportError(f"split {view.split} keeps no row; nothing to export")
    return Exported(out, written, ["input_ids"])


def _bounded(kind: pa.DataType) -> bool:
    # Of fractions, NaN would be left out: see `shard.with_statistics`.
    return bool(pa.types.is_primitive(kind)) and not pa.types.is_floating(kind)


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
                    bounded = [field.name for field in table.schema if _bounded(field.type)]
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
    out = objects.folder(out, "export")
    if out.exists() and not all(map(_ours, out.iterdir())):
        raise ExportError(f"{out} holds other files than an export; name another folder")
    beside, doomed = (out.with_name(f".{out.name}.{what}tmp") for what in ("", "old."))
    try:
        for left in (beside, doomed):
            shutil.rmtree(left, ignore_errors=True)
        beside.mkdir(parents=True)
        yield beside
        for file in beside.rglob("*"):
            with suppress(IsADirectoryError), file.open("rb") as handle:
                os.fsync(handle.fileno())
        # Renamed away whole first: a kill leaves one export or none, never a part of one.
        if out.exists():
            out.rename(doomed)
        beside.rename(out)
    except OSError as error:
        raise ExportError(f"{out} cannot be written: {error.strerror or error}; mend that and export again") from error
    finally:
        for left in (beside, doomed):
            shutil.rmtree(left, ignore_errors=True)


def _ours(file: Path) -> bool:
    if file.is_dir() and file.name in ("sft", "preferences"):
        return all(map(_ours, file.iterdir()))
    if file.name == _REWARD:
        return file.read_bytes().startswith(_HEAD.encode())
    # Python keeps what it compiled of the reward file beside it.
    return (
        file.name in ("__pycache__", "dropped.parquet")
        or re.fullmatch(r"train-\d+-of-\d+\.parquet", file.name) is not None
    )


def _key(name: str) -> str:
    return "'" + name.replace("'", "''") + "'"
