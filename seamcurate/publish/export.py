"""A split as each trainer loads it: Parquet files that `datasets.load_dataset` reads without a word of code.

Prompts are written in the form that the recipe's policy was scored in: chats where it has a chat template, else text. Every
score travels along as a plain scalar column, so that the Hub's viewer shows its histogram and a trainer's reward function
can read it; a column whose name a trainer keeps for itself is renamed. Beside prompts of a recipe with RER lies
`seamcurate_reward.py`, which the trainer loads as its reward: RER's configuration, and a call of `seamcurate.rewards`.
"""

from __future__ import annotations

import json
import os
import pprint
import re
import shutil
from collections.abc import Callable, Collection, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from seamcurate.errors import ExportError, StaleError
from seamcurate.models import CausalLM, PolicyModel, Prompt, RewardingModel, SequenceClassifier
from seamcurate.models.template import Form
from seamcurate.progress import bar
from seamcurate.publish import augment as augmentation
from seamcurate.rewards import RerReward
from seamcurate.run import agreement
from seamcurate.run.recipe import Recipe
from seamcurate.score.rer import F_ZERO, LengthIncentive, QueryRelevance, ReferenceRelevance, RepetitionPenalty, Rer
from seamcurate.select import split as splits
from seamcurate.select import views
from seamcurate.select.split import Augment
from seamcurate.step import MESSAGES
from seamcurate.storage import atomic, objects, shard
from seamcurate.store.store import Store, load_json, step_file
from seamcurate.text import counted
from seamcurate.trainers import (
    PROMPT_FORM,
    RESERVED,
    REWARD_FILE,
    REWARD_MODULE,
    SOURCE_PROMPT,
    Shape,
    Trainer,
    commands,
    free_name,
)

if TYPE_CHECKING:
    from duckdb import DuckDBPyConnection
    from transformers import PreTrainedTokenizerBase

FormModel = PolicyModel | RewardingModel | None
"""The model in whose form prompts are exported."""

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
    """What else a person should know, a line each: the prompts' form, columns renamed or left out, the reward file."""
    commands: tuple[str, ...] = ()
    """Shell commands that train on it."""
    shape: Shape = Shape("prompts")


def to_trl(
    store: Store, split: str, out: str | Path, policy: FormModel = None, reward: RerReward | None = None
) -> Exported:
    """Write a split for TRL: prompt-only, prompt-completion, preference, unpaired preference, or token ids.

    Args:
        store: Where the split was made.
        split: Its name.
        out: The folder to write; `load_dataset(out)` reads it.
        policy: The model whose form the prompts are written in. Its tokenizer makes the `input_ids` of format `prompt_ids`,
            which TRL's own PPO (up to 1.12) reads. None: prompts stay as the source has them.
        reward: Write a `seamcurate_reward.py` that gives it; for format `prompts`.

    Raises:
        ExportError: The split is not made, or keeps no row.
        StaleError: What the split was made of has changed since, or changes meanwhile.
        ModelError: The policy's tokenizer cannot be loaded.

    Example:
        >>> to_trl(Store("my-store"), "train", "splits/train").columns[0]  # doctest: +SKIP
        'prompt'
    """
    view = _View(store, split, policy)
    if view.format == "prompt_ids":
        return _write_ids(view, Path(out), policy)
    core = {
        "prompts": {"prompt": "b.prompt"},
        "sft": {"prompt": "b.prompt", "completion": "b.response"},
        "preferences": {"prompt": "b.prompt", "chosen": "b.response", "rejected": "c.response"},
        "unpaired": {"prompt": "b.prompt", "completion": "c.response", "label": "c.label"},
    }[view.format]
    file = _trl_file(view.able(reward)) if reward and view.format == "prompts" else ""
    return _write("trl", view, Path(out), core | view.extras("trl", core), file)


def to_openrlhf(
    store: Store, split: str, out: str | Path, policy: FormModel = None, reward: RerReward | None = None
) -> Exported:
    """Write a split for OpenRLHF: `input`, `label`, `datasource`; or `prompt`, `chosen`, `rejected`.

    With a `reward`, prompts have a `reward_label` too, and a `seamcurate_reward.py` beside them reads it: OpenRLHF passes a
    reward nothing of a row but one label. The token that ends the policy's answers, which OpenRLHF leaves in a response, is
    in it. Text begins with the policy's beginning-of-sequence token where its tokenizer would add one: OpenRLHF does not.

    Raises:
        ExportError: See `to_trl`; also a format OpenRLHF has no loader for.
        ModelError: The policy's tokenizer cannot be loaded.

    Example:
        >>> to_openrlhf(Store("my-store"), "train", "splits/train").columns[:2]  # doctest: +SKIP
        ['input', 'label']
    """
    view = _View(store, split, policy)
    source = f"'seamcurate/{split}'"
    if view.holds_text("datasource"):
        source = f"coalesce(b.datasource, {source})"
    forms = {
        "prompts": {"input": "b.prompt", "label": view.truth, "datasource": source},
        "sft": {"input": "b.prompt", "output": "b.response"},
        "preferences": {"prompt": "b.prompt", "chosen": "b.response", "rejected": "c.response"},
    }
    if view.format not in forms:
        raise ExportError(f"split {split}: OpenRLHF loads no {view.format!r} data; use format {', '.join(forms)}")
    core, file = forms[view.format], ""
    if reward and view.format == "prompts":
        kind = "b.query_type" if "query_type" in view.kinds else "NULL"
        form = _text(view.form.name) if view.form and not view.form.chat else "NULL"
        core["reward_label"] = (
            f"to_json({{'prompt': {view.prompt_text}, 'query_type': {kind}, 'reference': b.reference, 'form': {form}}})::VARCHAR"
        )
        file = _openrlhf_file(view.able(reward), view.end)
    if view.shape.arguments:
        view.notes.append(
            "OpenRLHF gives chat templates no arguments: make these the template's own defaults: "
            + json.dumps(dict(view.shape.arguments))
        )
    used = {"datasource"} if view.holds_text("datasource") and "datasource" in core else set()
    return _write("openrlhf", view, Path(out), core | view.extras("openrlhf", core, used), file)


def to_verl(
    store: Store, split: str, out: str | Path, policy: FormModel = None, reward: RerReward | None = None
) -> Exported:
    """Write a split of prompts for verl: data_source, prompt, ability, reward_model, extra_info.

    A source that has verl's columns keeps what they hold; `extra_info` then has the scores too. verl always applies a chat
    template: for a policy without one, prompts are written out as one user turn, and the command sets a template that adds
    nothing. With a `reward`, `extra_info` has the prompt's text too, and a `seamcurate_reward.py` beside the rows reads it.

    Raises:
        ExportError: See `to_trl`; also any format but prompts.
        ModelError: The policy's tokenizer cannot be loaded.

    Example:
        >>> to_verl(Store("my-store"), "train", "splits/train").columns  # doctest: +SKIP
        ['data_source', 'prompt', 'ability', 'reward_model', 'extra_info']
    """
    view = _View(store, split, policy)
    if view.format != "prompts":
        raise ExportError(f"split {split}: verl trains from prompts, and the split's format is {view.format!r}")
    own = {"prompt": view.prompt_text} if reward else {}
    if reward and view.form and not view.form.chat:
        own[PROMPT_FORM] = _text(view.form.name)
    source, ability = (
        f"'seamcurate/{split}'",
        "coalesce(b.query_type, 'unknown')" if "query_type" in view.kinds else "'unknown'",
    )
    if view.holds_text("data_source"):
        source = f"coalesce(b.data_source, {source})"
    if view.holds_text("ability"):
        ability = f"coalesce(b.ability, {ability})"
    core = {
        "data_source": source,
        "prompt": "b.prompt",
        "ability": ability,
        "reward_model": view.reward_model,
        "extra_info": _struct(view.extra_info(own)),
    }
    return _write("verl", view, Path(out), core, _verl_file(view.able(reward)) if reward else "")


def to_augmented(
    store: Store,
    split: str,
    out: str | Path,
    augment: Augment = Augment(),
    to: Trainer = "trl",
    policy: FormModel = None,
) -> list[Exported]:
    """Write new pairs made of a split's rows: a folder `sft`, a folder `preferences`, and who gave none.

    Each pair has `row_id`, `source_row_id`, `variant`, `rank`, `similarity` and `kind`. `dropped.parquet` has, for each
    of the two, the rows that gave no pair and why.

    Raises:
        ExportError: No row gives a pair, the sample set is not there, or verl is asked for: it loads prompts only.

    Example:
        >>> [one.folder.name for one in to_augmented(Store("my-store"), "lowest", "pairs")]  # doctest: +SKIP
        ['sft', 'preferences']
    """
    view, place = _View(store, split, policy), Path(out)
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
                formed = (view.formed(to, table) for table in pairs)
                written = _files((table.rename_columns(_named(table, names)) for table in formed), folder / kind)
            if not written:
                (folder / kind).rmdir()
            dropped.append(told.dropped)
            columns = pq.read_schema(next((folder / kind).iterdir())).names if written else []
            shape = view.shape._replace(format=kind, shards=_shards(folder / kind))
            note = "\n".join([told.line(augment), *view.notes])
            done.append(Exported(place / kind, written, columns, note, view.commands(to, shape, place / kind), shape))
        pq.write_table(pa.concat_tables(dropped), folder / "dropped.parquet")
        shard.give_back()
        if not any(one.rows for one in done):
            raise ExportError(
                f"split {split}: no row gives a pair ({done[-1].note.splitlines()[0]}); nothing to export"
            )
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

    Where the recipe computes RER, prompts come with it as a reward. Prompts are in the form of `form_model`.

    Raises:
        ExportError: See `to_trl`; also a recipe without splits.
        StaleError: The store does not hold what the recipe makes.
        ModelError: The tokenizer that decides the form cannot be loaded.
        StoreError: `out` is on object storage.

    Example:
        >>> [done.folder.name for done in export(recipe, Store("my-store"), "trl", "splits")]  # doctest: +SKIP
        ['train', 'augment']
    """
    out = objects.folder(out, "export")
    if not recipe.splits:
        raise ExportError("the recipe names no `splits`; there is nothing to export")
    agreement.require(recipe, store)
    reward, why = rer_reward(recipe, store)
    policy = form_model(recipe)
    for name, split in recipe.splits.items():
        folder = out / name
        if split.augment is not None:
            yield from to_augmented(store, name, folder, split.augment, to, policy)
            continue
        done = _TO[to](store, name, folder, policy, reward)
        if split.format == "prompts":
            said = f"no {REWARD_FILE}: {why}"
            if reward is not None:
                said = f"{folder / REWARD_FILE} gives RER as the reward"
            done = done._replace(note="\n".join([done.note, said]))
        yield done


_TO = {"trl": to_trl, "openrlhf": to_openrlhf, "verl": to_verl}


def form_model(recipe: Recipe) -> FormModel:
    """Return the model in whose form a recipe's prompts are exported: the policy, else the reward model, else the base.

    The recipe's own come before those of its steps. Models that are no local ones read prompts as the source has them.
    """
    steps = recipe.ready()
    for role in ("policy", "reward", "base"):
        for named in (recipe.models, *steps):
            model = getattr(named, role, None)
            if isinstance(model, CausalLM) or (isinstance(model, SequenceClassifier) and not model.pair):
                return model
    return None


def rer_reward(recipe: Recipe, store: Store) -> tuple[RerReward | None, str]:
    """Return RER as the recipe's steps compute it, as a reward; or None and why there is none."""
    steps = recipe.ready()
    whole = next((step for step in steps if isinstance(step, Rer)), None)
    if whole is None:
        return None, "the recipe computes no rer"
    shared = step_file(store.path / "columns" / whole.name, "shared")
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


_EARLIER_REWARD = "reward.py"
"""What the reward file was called before; an export still replaces one."""
_HEAD = '"""RER as a reward, written by `seamcurate export`'
"""Only files that open so are ever replaced."""
_USE = {
    "trl": f"`seamcurate train ppo --reward {REWARD_FILE}`; or with its folder on PYTHONPATH `from {REWARD_MODULE} import rer`, "
    f"or `trl grpo --reward_funcs {REWARD_MODULE}.rer`",
    "openrlhf": f"`--reward.remote_url {REWARD_FILE} --data.label_key reward_label`",
    "verl": f"`reward.custom_reward_function.path={REWARD_FILE}`, whose compute_score verl takes",
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


class _View:
    """A split and its store as the three trainers' SQL sees them, and the form its prompts are written in."""

    def __init__(self, store: Store, split: str, policy: FormModel) -> None:
        record = store.open().split_record(split)
        if not record:
            made = sorted(store.split_records())
            raise ExportError(
                f"no split {split!r} in {store.path}; there are: {', '.join(made) or 'none; run its recipe first'}"
            )
        if why := splits.stale(store).get(split):
            raise StaleError(f"split {split} of {store.path} is out of date: {why}; run its recipe first")
        self.store, self.split, self.format = store, split, str(record["format"])
        self.kept = int(str(record["kept"]))
        self.notes: list[str] = []
        listed = [column for column in store.columns() if column.stale is None]
        self.kinds = {column.name: column.kind for column in listed}
        self.of_source = {column.name for column in listed if column.made_by == "source"}
        self.chat = not pa.types.is_string(self.kinds["prompt"])
        if self.format in ("sft", "preferences", "unpaired") and "response" not in store.stored_schema.names:
            raise ExportError(
                f"split {split}: format {self.format!r} needs golden responses; the source maps no `response`"
            )
        self.form, self.end, start, self.model = None, "", "", None
        if isinstance(policy, CausalLM | SequenceClassifier):
            tokenizer = policy.tokenizer()
            self.form, self.model = policy.prompt_form(tokenizer), policy
            start = _start(tokenizer, self.form)
            if isinstance(policy, CausalLM) and self.form.end is not None:
                self.end = str(tokenizer.convert_ids_to_tokens(self.form.end))
        name = self.form.name if self.form else "chat" if self.chat else None
        arguments = self.form.arguments if self.form else {}
        self.shape = Shape(self.format, name, arguments, start)
        self.notes.append(_told_form(self.form, self.model, self.chat))

    @property
    def truth(self) -> str:
        """Write the answer that a reward by rule looks for: a row's reference, or else its golden response."""
        there = [f"nullif(b.{name}, '')" for name in ("reference", "response") if name in self.kinds]
        return f"coalesce({', '.join(there)})" if there else "NULL::VARCHAR"

    @property
    def reward_model(self) -> str:
        """Write verl's `reward_model`: the source's own where it has one, else the golden answer."""
        kind = self.kinds.get("reward_model")
        ours = f"{{'style': 'rule', 'ground_truth': coalesce({self.truth}, '')}}"
        if kind is None or not pa.types.is_struct(kind) or kind.get_field_index("ground_truth") < 0:
            return ours
        texts = all(pa.types.is_string(field.type) for field in kind)
        return f"coalesce(b.reward_model, {ours})" if texts and kind.num_fields == 2 else "b.reward_model"

    def extra_info(self, own: dict[str, str]) -> dict[str, str]:
        """Name the fields of verl's `extra_info`: those of the source's own, every scalar column, and `own`."""
        kind = self.kinds.get("extra_info")
        theirs = [field.name for field in kind] if kind is not None and pa.types.is_struct(kind) else []
        # What verl reads of the source's is verl's; a score of ours is never theirs.
        keeps = {name: f"b.extra_info.{views.quoted(name)}" for name in theirs}
        index = {"split": "'train'", "index": "b.row_id"}
        head = {name: keeps.pop(name, value) for name, value in index.items()} | own
        if "index" in theirs:
            head["row_id"] = "b.row_id"
        used = {name for name in ("data_source", "ability") if self.holds_text(name)} | {"reward_model", "extra_info"}
        reserved = {name for name in theirs if name in RESERVED["verl"]["prompts"]}
        head |= {name: keeps.pop(name) for name in reserved}
        found = head | self.extras("verl", head, used)
        taken = {name.lower() for name in (*found, *keeps)}
        for name, value in keeps.items():
            free = name if name.lower() not in {key.lower() for key in found} else free_name(name, taken)
            if free != name:
                self.notes.append(
                    f"the source's extra_info.{name} is extra_info.{free}: the column {name} is of this store"
                )
            found[free] = value
        return found

    def holds_text(self, name: str) -> bool:
        """Tell whether the source has a text column of this name."""
        return name in self.of_source and pa.types.is_string(self.kinds[name])

    def formed(self, to: Trainer, table: pa.Table) -> pa.Table:
        """Write a table's prompts and answers in the form that was scored; `to` decides what else belongs to it."""
        at = next(i for i, name in enumerate(table.column_names) if name in ("prompt", "input"))
        prompts = table.column(at)
        answers = [name for name in ("completion", "chosen", "rejected", "output") if name in table.column_names]
        chat = pa.types.is_list(prompts.type)
        form = self.form
        if form.chat if form else chat:
            table = _with_column(table, at, prompts if chat else _as_turns(prompts, "user"))
            for name in answers:
                place = table.column_names.index(name)
                table = _with_column(table, place, _as_turns(table.column(place), "assistant"))
            if to == "trl" and self.shape.arguments and answers:
                table = table.append_column("chat_template_kwargs", _constant(dict(self.shape.arguments), len(table)))
            return table
        if form is not None:
            # TRL's tokenizers add the beginning of a sequence by themselves.
            start = self.shape.start if to == "openrlhf" else ""
            written = _written_out(prompts, form, start)
            table = _with_column(table, at, written)
            for name in answers:
                place = table.column_names.index(name)
                table = _with_column(table, place, _joined(table.column(place), form.response("{prompt}")))
            if to != "verl" and (form.name != "bare" or chat or start):
                table = table.append_column(PROMPT_FORM, pa.repeat(pa.scalar(form.name), len(table)))
                table = table.append_column(SOURCE_PROMPT, prompts)
        if to == "verl":
            table = _with_column(table, at, _as_turns(table.column(at), "user"))
        return table

    def commands(self, to: Trainer, shape: Shape, folder: Path) -> tuple[str, ...]:
        """Write the commands that train on an export, with the recipe's own policy where it names one."""
        policy = self.model.path if isinstance(self.model, CausalLM) else "POLICY"
        model = policy if shape.format == "preferences" else "REWARD_MODEL"
        return tuple(commands(to, shape, str(folder), policy, model))

    @property
    def prompt_text(self) -> str:
        """Write the prompt as the text an encoder reads; see `models.template.prompt_text`."""
        return "array_to_string([turn.content FOR turn IN b.prompt], chr(10))" if self.chat else "b.prompt"

    @property
    def pairs(self) -> bool:
        """Tell whether there is a line per candidate, not per row."""
        return self.format in ("preferences", "unpaired")

    def able(self, reward: RerReward) -> RerReward:
        """Return the reward if the rows have what it reads."""
        missing = [name for name in reward.columns if name not in self.kinds]
        if missing:
            raise ExportError(
                f"split {self.split}: reward {reward.reward} needs the column {missing[0]}; run a recipe with `rer` first"
            )
        return reward

    def extras(self, trainer: Trainer, core: Iterable[str], used: Collection[str] = ()) -> dict[str, str]:
        """Name every scalar column that travels along; what the trainer keeps for itself is renamed, and that is said.

        Args:
            trainer: Whose names are kept free.
            core: The names of the format itself.
            used: Columns that the format holds already, by another name.
        """
        kept = {name.lower() for name in core} | {name.lower() for name in RESERVED[trainer][self.format]}
        kept |= {PROMPT_FORM, SOURCE_PROMPT}
        if self.pairs:
            kept |= {f"candidate_{name}" for name in _OF_CANDIDATES}
        # The prompt is a part of every format, and verl has a name of its own for the row's id.
        left_out = {"prompt", *used, *(("row_id",) if trainer == "verl" else ())}
        taken = kept | {name.lower() for name in self.kinds}
        found: dict[str, str] = {}
        renamed: list[str] = []
        nested: list[str] = []
        for name, kind in self.kinds.items():
            if name in left_out:
                continue
            if pa.types.is_nested(kind):
                nested += [name] if name in self.of_source else []
                continue
            free = name
            if name.lower() in kept:
                free = free_name(name, taken)
                taken.add(free.lower())
                renamed.append(f"{name} as {free}")
            found[free] = f"b.{views.quoted(name)}"
        if renamed:
            self.notes.append(
                f"{_TITLES[trainer]} keeps names of columns for itself; exported are {', '.join(renamed)}"
            )
        if nested:
            self.notes.append(f"left out, for only plain columns are exported: {', '.join(nested)}")
        if self.pairs:
            found |= {f"candidate_{name}": f"c.{name}" for name in _OF_CANDIDATES}
        return found

    def read(self, select: dict[str, str]) -> Iterator[tuple[int, pa.Table]]:
        """Yield how many rows of some shards the split keeps, and their lines, in the source's order."""
        whole = ("prompt", "reward_model", "extra_info")
        wanted = [name for name, kind in self.kinds.items() if name in whole or not pa.types.is_nested(kind)]
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
        candidates = worse if self.format == "preferences" else f"{golden} UNION ALL {worse}"
        return (
            f"SELECT {named} FROM kept AS b JOIN ({candidates}) AS c({columns}, label) ON c.row_id = b.row_id "
            "ORDER BY b.row_id, c.variant, c.rank"
        )


_TITLES: dict[Trainer, str] = {"trl": "TRL", "openrlhf": "OpenRLHF", "verl": "verl"}


def _write(to: Trainer, view: _View, out: Path, select: dict[str, str], reward_file: str = "") -> Exported:
    untrue = pictures = 0
    columns: list[str] = []
    truth = {"openrlhf": "label", "verl": "reward_model"}.get(to, "") if view.format == "prompts" else ""
    with _in_place(out) as folder, bar(f"split {view.split} for {_TITLES[to]}", view.kept) as advance:

        def lines() -> Iterator[pa.Table]:
            nonlocal untrue, pictures
            for rows, table in view.read(select):
                advance(rows)
                if truth:
                    untrue += _without_truth(table[truth])
                table = view.formed(to, table)
                columns[:] = table.column_names
                if to == "openrlhf" and view.format == "prompts":
                    pictures += _pictures(table["input"])
                yield table

        written = _files(_ahead(lines()), folder)
        if reward_file:
            (folder / REWARD_FILE).write_text(reward_file, encoding="utf-8")
        shape = view.shape._replace(reward=bool(reward_file), shards=_shards(folder))
        shard.give_back()
        if written == 0:
            raise ExportError(
                f"split {view.split} keeps no row" + (" with a candidate" if view.pairs else "") + "; nothing to export"
            )
    if untrue:
        view.notes.append(
            f"{counted(untrue, 'row has', 'rows have')} neither a reference nor a golden response, so no {_TRUTH[to]}"
        )
    if pictures:
        view.notes.append(
            f"{counted(pictures, 'turn holds', 'turns hold')} <image>, which OpenRLHF takes for the place of a picture; "
            "leave such rows out by the filter"
        )
    return Exported(out, written, columns, "\n".join(view.notes), view.commands(to, shape, out), shape)


_TRUTH = {"openrlhf": "label", "verl": "ground truth"}


def _without_truth(column: pa.ChunkedArray) -> int:
    """Count the rows whose answer is not known."""
    if pa.types.is_struct(column.type):
        column = pc.struct_field(column, "ground_truth")
    missing = column.null_count
    if pa.types.is_string(column.type):
        missing += pc.sum(pc.equal(column, "")).as_py() or 0
    return int(missing)


def _pictures(prompts: pa.ChunkedArray) -> int:
    """Count the turns of chats that hold `<image>`."""
    if not pa.types.is_list(prompts.type):
        return 0
    contents = pc.struct_field(pc.list_flatten(prompts), "content")
    return int(pc.sum(pc.match_substring(contents, "<image>")).as_py() or 0)


def _shards(folder: Path) -> int:
    return len(list(folder.glob("train-*.parquet")))


def _told_form(form: Form | None, model: CausalLM | SequenceClassifier | None, chat: bool) -> str:
    """Say in which form prompts are."""
    if form is None or model is None:
        return f"prompts are {'chats' if chat else 'text'}, as the source has them: the recipe names no model of this machine or the Hub"
    if form.chat:
        given = f" with {json.dumps(dict(form.arguments))}" if form.arguments else ""
        return f"prompts are chats, for the chat template of {model.path}{given}"
    return f"prompts are text in the form {form.name!r:.60}, as {model.path} was scored: {form.prompt('…')!r:.100}"


def _start(tokenizer: PreTrainedTokenizerBase, form: Form) -> str:
    """Return the token that the tokenizer puts before text, none before what a chat template renders."""
    from seamcurate.models import tokens

    start = tokenizer.bos_token_id
    if form.chat or start is None or tokens.prompt_ids(tokenizer, "a", form)[:1] != [start]:
        return ""
    return str(tokenizer.bos_token)


# ── prompts and answers in a form ────────────────────────────────────────────────────────────────────────────


def _with_column(table: pa.Table, place: int, column: pa.ChunkedArray) -> pa.Table:
    return table.set_column(place, table.column_names[place], column)


def _as_turns(texts: pa.ChunkedArray, role: str) -> pa.ChunkedArray:
    """Make each text a chat of one turn."""
    chats = []
    for chunk in texts.cast(pa.string()).chunks:
        turns = pa.StructArray.from_arrays([pa.repeat(pa.scalar(role), len(chunk)), chunk], ["role", "content"])
        chats.append(pa.ListArray.from_arrays(np.arange(len(chunk) + 1, dtype=np.int32), turns).cast(MESSAGES))
    return pa.chunked_array(chats, MESSAGES)


def _written_out(prompts: pa.ChunkedArray, form: Form, start: str) -> pa.ChunkedArray:
    """Write prompts out as text."""
    if not pa.types.is_list(prompts.type):
        return _joined(prompts, start + form.prompt("{prompt}"))
    texts: list[str] = []
    before: Prompt | None = None
    for prompt in prompts.to_pylist():
        # A row's candidates share its prompt.
        texts.append(texts[-1] if texts and prompt == before else start + form.prompt(prompt))
        before = prompt
    return pa.chunked_array([texts], pa.string())


def _joined(texts: pa.ChunkedArray, pattern: str) -> pa.ChunkedArray:
    """Put each text where a pattern has `{prompt}`."""
    parts = pattern.split("{prompt}")
    if parts == ["", ""]:
        return texts
    texts = texts.cast(pa.string())
    joined = [parts[0]]
    for part in parts[1:]:
        joined += [texts, part]
    return pc.binary_join_element_wise(*joined, "")


def _constant(value: object, count: int) -> pa.Array:
    return pa.array([value]).take(pa.array(np.zeros(count, np.int64)))


def _struct(fields: dict[str, str]) -> str:
    return "{" + ", ".join(f"{_text(name)}: {value}" for name, value in fields.items()) + "}"


def _write_ids(view: _View, out: Path, policy: FormModel) -> Exported:
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
    return Exported(out, written, ["input_ids"], shape=view.shape)


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
    if out.name == REWARD_MODULE:
        # `datasets` and OpenRLHF take a file that is called as its folder for a script that loads it.
        raise ExportError(f"{out} is called as the reward file in it; name another folder, or another split")
    if out.exists() and not all(map(_ours, out.iterdir())):
        raise ExportError(f"{out} holds other files than an export; name another folder")
    beside = out.with_name(f".{out.name}.tmp")
    try:
        shutil.rmtree(beside, ignore_errors=True)
        beside.mkdir(parents=True)
        yield beside
        for file in beside.rglob("*"):
            with suppress(IsADirectoryError), file.open("rb") as handle:
                os.fsync(handle.fileno())
        atomic.replace_folder(out, beside)
    except OSError as error:
        raise ExportError(f"{out} cannot be written: {error.strerror or error}; mend that and export again") from error
    finally:
        shutil.rmtree(beside, ignore_errors=True)


def _ours(file: Path) -> bool:
    if file.is_dir() and file.name in ("sft", "preferences"):
        return all(map(_ours, file.iterdir()))
    if file.name in (REWARD_FILE, _EARLIER_REWARD):
        return file.read_bytes().startswith(_HEAD.encode())
    # Python keeps what it compiled of the reward file beside it.
    return (
        file.name in ("__pycache__", "dropped.parquet")
        or re.fullmatch(r"train-\d+-of-\d+\.parquet", file.name) is not None
    )


def _text(value: str) -> str:
    """Write a text as SQL."""
    return "'" + value.replace("'", "''") + "'"
