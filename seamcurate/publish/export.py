"""Export a split for a trainer, as Parquet files that `datasets.load_dataset` reads without code.

Prompts are written in the form that the recipe's policy was scored in: as chats if it has a chat template, else as text.
Each score is a plain scalar column, so that the Hub's viewer shows its histogram and a trainer's reward function can read
it. A column is renamed if the trainer reserves its name. If the recipe computes RER, `seamcurate_reward.py` is written
beside the prompts: RER's configuration and a call of `seamcurate.rewards`, which the trainer loads as its reward.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import NamedTuple

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from seamcurate.errors import ExportError
from seamcurate.models import (
    CausalLM,
    CompletionServer,
    RewardFunction,
    RewardingModel,
    RewardServer,
    SequenceClassifier,
)
from seamcurate.models.backend import models_of
from seamcurate.progress import bar
from seamcurate.publish import augment as augmentation
from seamcurate.publish.files import in_place, read_ahead, shard_count, write_rows
from seamcurate.publish.formats import TRAINERS, Trainer
from seamcurate.publish.reward_file import rer_reward, reward_file
from seamcurate.publish.shape import Shape
from seamcurate.publish.split_view import FormModel, SplitView
from seamcurate.rewards import RerReward
from seamcurate.run import agreement
from seamcurate.run.recipe import Recipe
from seamcurate.select.split import Augment, Split
from seamcurate.step import sample_set
from seamcurate.storage import objects, shard
from seamcurate.store.store import Store
from seamcurate.text import counted
from seamcurate.trainers import REWARD_FILE


class Exported(NamedTuple):
    """The result of an export."""

    folder: Path
    """Where the files are."""
    rows: int
    """Rows written."""
    columns: list[str]
    """The columns of the files, in their order."""
    note: str = ""
    """Remarks for the user, one a line: the prompts' form, columns renamed or left out, the reward file."""
    commands: tuple[str, ...] = ()
    """Shell commands that train on the export."""
    shape: Shape = Shape("prompts")
    """The split's format, and the form that its prompts are written in."""


def to_trl(
    store: Store, split: str, out: str | Path, policy: FormModel = None, reward: RerReward | None = None
) -> Exported:
    """Write a split for TRL: prompt-only, prompt-completion, preference, unpaired preference, or token ids.

    Args:
        store: The store that has the split.
        split: The split's name.
        out: The folder to write; `load_dataset(out)` reads it.
        policy: The model in whose form the prompts are written. Its tokenizer makes the `input_ids` of format `prompt_ids`,
            which TRL's PPO (up to 1.12) reads. None: prompts stay as the source has them.
        reward: The reward that a `seamcurate_reward.py` computes; for format `prompts`. None: no such file is written.

    Raises:
        ExportError: There is no such split, or it keeps no row.
        StaleError: The inputs of the split have changed since it was made, or change during the export.
        ModelError: The policy's tokenizer cannot be loaded.

    Example:
        >>> to_trl(Store("my-store"), "train", "splits/train").columns[0]  # doctest: +SKIP
        'prompt'
    """
    return write_split("trl", store, split, Path(out), policy, reward)


def to_openrlhf(
    store: Store, split: str, out: str | Path, policy: FormModel = None, reward: RerReward | None = None
) -> Exported:
    """Write a split for OpenRLHF: `input`, `label`, `datasource`; or `prompt`, `chosen`, `rejected`.

    With a `reward`, prompts also have the column `reward_label`, and a `seamcurate_reward.py` beside them reads it: OpenRLHF
    passes one label of a row to a reward function, and no other column. The file holds the policy's end-of-sequence token,
    as OpenRLHF leaves it in responses. Text begins with the policy's beginning-of-sequence token if its tokenizer adds one,
    as OpenRLHF adds none.

    Raises:
        ExportError: See `to_trl`; also if OpenRLHF cannot load the split's format.
        ModelError: The policy's tokenizer cannot be loaded.

    Example:
        >>> to_openrlhf(Store("my-store"), "train", "splits/train").columns[:2]  # doctest: +SKIP
        ['input', 'label']
    """
    return write_split("openrlhf", store, split, Path(out), policy, reward)


def to_verl(
    store: Store, split: str, out: str | Path, policy: FormModel = None, reward: RerReward | None = None
) -> Exported:
    """Write a split of prompts for verl: data_source, prompt, ability, reward_model, extra_info.

    If the source has verl's columns, their values are kept, and the scores are added to `extra_info`. verl always applies a
    chat template: for a policy without one, each prompt is written as one user turn, and the command sets a template that
    adds nothing. With a `reward`, `extra_info` also has the prompt's text, and a `seamcurate_reward.py` beside the rows reads
    it.

    Raises:
        ExportError: See `to_trl`; also if the split's format is not `prompts`.
        ModelError: The policy's tokenizer cannot be loaded.

    Example:
        >>> to_verl(Store("my-store"), "train", "splits/train").columns  # doctest: +SKIP
        ['data_source', 'prompt', 'ability', 'reward_model', 'extra_info']
    """
    return write_split("verl", store, split, Path(out), policy, reward)


def write_split(
    trainer: Trainer,
    store: Store,
    split: str,
    out: str | Path,
    policy: FormModel = None,
    reward: RerReward | None = None,
    rewarding: RewardingModel | None = None,
) -> Exported:
    """Write a split as a trainer of the table `TRAINERS` loads it.

    Args:
        trainer: A key of `TRAINERS`.
        store: The store that has the split.
        split: The split's name.
        out: The folder to write.
        policy: The model in whose form the prompts are written; None: as the source has them.
        reward: The reward that a `seamcurate_reward.py` computes; None: no such file is written.
        rewarding: The reward that the printed commands name, where there is no such file.

    Raises:
        ExportError: See `to_trl`; also if the trainer cannot load the split's format.
        ModelError: The policy's tokenizer cannot be loaded.

    Example:
        >>> write_split("slime", Store("my-store"), "train", "splits/train").columns  # doctest: +SKIP
        ['prompt', 'label', 'metadata']
    """
    view, folder = SplitView(store, split, trainer, policy, rewarding), Path(out)
    if view.trainer.token_ids and view.format == "prompt_ids":
        return _write_ids(view, folder, policy)
    select = view.trainer.columns(view, reward)
    rewarded = reward is not None and view.format == "prompts" and view.trainer.reward_function is not None
    code = reward_file(trainer, view.require(reward), view.end) if reward and rewarded else ""
    return _write(view, folder, select, code)


def to_augmented(
    store: Store,
    split: str,
    out: str | Path,
    augment: Augment = Augment(),
    to: Trainer = "trl",
    policy: FormModel = None,
) -> list[Exported]:
    """Make new pairs from a split's rows, and write them into the folders `sft` and `preferences`.

    Each pair has `row_id`, `source_row_id`, `variant`, `rank`, `similarity` and `kind`. `dropped.parquet` lists, for each
    of the two folders, the rows without a pair and the reasons.

    Raises:
        ExportError: No row gives a pair, the store has no such sample set, or the trainer is verl, which loads prompts only.

    Example:
        >>> [exported.folder.name for exported in to_augmented(Store("my-store"), "lowest", "pairs")]  # doctest: +SKIP
        ['sft', 'preferences']
    """
    view, out = SplitView(store, split, to, policy), Path(out)
    pair_names = _pair_names(view)
    kinds: list[augmentation.Kind] = (
        ["sft", "preferences"] if sample_set(augment.variant).instructions else ["preferences"]
    )
    exports: list[Exported] = []
    dropped: list[pa.Table] = []
    with in_place(out) as folder:
        for kind in kinds:
            names = pair_names if kind == "sft" else {}
            (folder / kind).mkdir()
            tally = _Tally()
            columns: list[str] = []
            with bar(f"split {split}: {kind}", view.rows_kept) as advance:
                pairs = _pairs(augmentation.shards(store, split, augment, kind), tally, advance)
                tables = _laid_out(view, pairs, view.shape._replace(format=kind), names, columns)
                rows = write_rows(tables, folder / kind, view.trainer.lines, view.trainer.one_file)
            if not rows:
                # `load_dataset` fails on an empty folder, and its error names neither split nor reason.
                (folder / kind).rmdir()
            dropped.append(tally.dropped)
            shape = view.shape._replace(format=kind, shards=shard_count(folder / kind))
            if rows:
                _write_beside(view, shape, folder / kind, out / kind)
            note = "\n".join([tally.note(augment), *view.notes, *view.order_notes(kind)])
            exports.append(Exported(out / kind, rows, columns, note, view.commands(shape, out / kind), shape))
        pq.write_table(pa.concat_tables(dropped), folder / "dropped.parquet")
        shard.give_back()
        if not any(exported.rows for exported in exports):
            raise ExportError(
                f"split {split}: no row gives a pair ({exports[-1].note.splitlines()[0]}); nothing to export"
            )
    return exports


class _Tally:
    """Counts of an augmentation's rows, added up while its pairs are written."""

    def __init__(self) -> None:
        self.rows, self.short, self.dropped = 0, 0, augmentation.DROPPED.empty_table()

    def add(self, pairs: augmentation.ShardPairs) -> None:
        self.rows, self.short = self.rows + pairs.rows, self.short + pairs.short
        self.dropped = pa.concat_tables([self.dropped, pairs.dropped])

    def note(self, augment: Augment) -> str:
        reasons = self.dropped["reason"].value_counts().to_pylist()
        counts = "".join(f"; {reason['counts']:,} give none: {reason['values']}" for reason in reasons)
        return f"of {self.rows:,} rows {self.short:,} give fewer than {augment.samples} pairs{counts}"


def _pairs(
    shards: Iterable[augmentation.ShardPairs], tally: _Tally, advance: Callable[[int], None]
) -> Iterator[pa.Table]:
    """Yield the pairs of each shard, and count its rows."""
    for pairs in shards:
        tally.add(pairs)
        advance(pairs.rows)
        if pairs.pairs.num_rows:
            yield pairs.pairs


def export(recipe: Recipe, store: Store, to: Trainer, out: str | Path) -> Iterator[Exported]:
    """Write each split of a recipe into a folder of its own, and yield each result as soon as it is written.

    If the recipe computes RER, a reward file is written beside the prompts. Prompts are in the form of `form_model`.

    Raises:
        ExportError: See `to_trl`; also a recipe without splits.
        StaleError: The store does not hold what the recipe makes.
        ModelError: The tokenizer that decides the form cannot be loaded.
        StoreError: `out` is on object storage.

    Example:
        >>> [exported.folder.name for exported in export(recipe, Store("my-store"), "trl", "splits")]  # doctest: +SKIP
        ['train', 'augment']
    """
    out = objects.folder(out, "export")
    if to not in TRAINERS:
        raise ExportError(f"no trainer {to!r}; there are: {', '.join(TRAINERS)}")
    if not recipe.splits:
        raise ExportError("the recipe names no `splits`; there is nothing to export")
    # Before the first split: a store of another recipe must not overwrite half of an export.
    agreement.require(recipe, store)
    reward, reason = rer_reward(recipe, store)
    for name, split in recipe.splits.items():
        _check(SplitView(store, name, to, None), split, reward)
    policy = form_model(recipe)
    holders = (recipe.models, *recipe.steps)
    models = [model for holder in holders for model in models_of(holder)]
    functions = dict.fromkeys(model.title for model in models if isinstance(model, RewardFunction))
    for name, split in recipe.splits.items():
        folder = out / name
        if split.augment is not None:
            yield from to_augmented(store, name, folder, split.augment, to, policy)
            continue
        exported = write_split(to, store, name, folder, policy, reward, recipe.models.reward)
        if split.format == "prompts":
            note = f"no {REWARD_FILE}: {reason or f'{TRAINERS[to].title} takes no reward function from a file'}"
            if exported.shape.reward:
                note = f"{folder / REWARD_FILE} gives RER as the reward"
            elif functions:
                note += f"; give the trainer the recipe's own reward itself: {', '.join(functions)}"
            exported = exported._replace(note="\n".join([exported.note, note]))
        yield exported


def _check(view: SplitView, split: Split, reward: RerReward | None) -> None:
    """Refuse a split that cannot be exported, before others are.

    Raises:
        ExportError: It keeps no row, or the trainer cannot load its format.
    """
    if not view.rows_kept:
        raise _no_row(view)
    if split.augment is not None:
        _pair_names(view)
    elif not (view.trainer.token_ids and view.format == "prompt_ids"):
        view.trainer.columns(view, reward)


def _no_row(view: SplitView) -> ExportError:
    with_candidate = " with a candidate" if view.pairs and view.rows_kept else ""
    return ExportError(
        f"split {view.split} keeps no row{with_candidate}, so that there is nothing to export; change its filter, or leave it out"
    )


def _pair_names(view: SplitView) -> Mapping[str, str]:
    if view.trainer.pairs is None:
        loaders = " or ".join(name for name, trainer in TRAINERS.items() if trainer.pairs is not None)
        raise ExportError(
            f"split {view.split}: {view.trainer.title} trains from prompts, and `augment` makes pairs; export to {loaders}"
        )
    return view.trainer.pairs


def form_model(recipe: Recipe) -> FormModel:
    """Return the model in whose form a recipe's prompts are exported: the policy, else the reward model, else the base.

    The models of the recipe come before those of its steps. Only local models count, and servers that read a local model's
    texts, as others have no known form.
    """
    steps = recipe.ready()
    for role in ("policy", "reward", "base"):
        for holder in (recipe.models, *steps):
            model = getattr(holder, role, None)
            if isinstance(model, CompletionServer | RewardServer):
                model = model.texts()
            if isinstance(model, CausalLM) or (isinstance(model, SequenceClassifier) and not model.pair):
                return model
    return None


def _write(view: SplitView, location: Path, select: dict[str, str], reward_code: str = "") -> Exported:
    """Write a split's lines to a folder, and the reward file beside them."""
    trainer = view.trainer
    column, noun = trainer.ground_truth if trainer.ground_truth and view.format == "prompts" else ("", "")
    unanswered = pictures = 0
    columns: list[str] = []
    with in_place(location) as folder, bar(f"split {view.split} for {trainer.title}", view.rows_kept) as advance:

        def lines() -> Iterator[pa.Table]:
            nonlocal unanswered, pictures
            for rows, table in view.read(select):
                advance(rows)
                if column:
                    unanswered += _without_truth(table[column])
                table = view.laid_out(view.in_form(table), view.shape)
                columns[:] = table.column_names
                if trainer.picture and view.format == "prompts":
                    pictures += _turns_with(trainer.picture, table.column(0))
                yield table

        # The next table is read while this one is compressed and written.
        written = write_rows(read_ahead(lines()), folder, trainer.lines, trainer.one_file)
        if reward_code:
            (folder / REWARD_FILE).write_text(reward_code, encoding="utf-8")
        shape = view.shape._replace(reward=bool(reward_code), shards=shard_count(folder))
        _write_beside(view, shape, folder, location)
        shard.give_back()
        if written == 0:
            raise _no_row(view)
    if unanswered:
        view.notes.append(
            f"{counted(unanswered, 'row has', 'rows have')} neither a reference nor a golden response, so no {noun}"
        )
    if view.unanswered:
        view.notes.append(f"{counted(view.unanswered, 'row has', 'rows have')} no golden response, and no line here")
    if view.equal_answers:
        view.notes.append(
            f"{counted(view.equal_answers, 'candidate equals', 'candidates equal')} the golden response, case and white space "
            "aside, and none is a rejected answer"
        )
    if pictures:
        view.notes.append(
            f"{counted(pictures, 'turn holds', 'turns hold')} {trainer.picture}, which {trainer.title} takes for the place of "
            "a picture; leave such rows out by the filter"
        )
    notes = [*view.notes, *view.order_notes(view.format)]
    return Exported(location, written, columns, "\n".join(notes), view.commands(shape, location), shape)


def _laid_out(
    view: SplitView, tables: Iterable[pa.Table], shape: Shape, names: Mapping[str, str], columns: list[str]
) -> Iterator[pa.Table]:
    """Write pairs in the policy's form and as the trainer reads them; `columns` becomes the names of their columns."""
    for table in tables:
        formed = view.in_form(table)
        table = view.laid_out(formed.rename_columns([names.get(name, name) for name in formed.column_names]), shape)
        columns[:] = table.column_names
        yield table


def _write_beside(view: SplitView, shape: Shape, folder: Path, location: Path) -> None:
    """Write the files that the trainer wants beside the rows, for the folder where these will lie."""
    if view.trainer.files is not None:
        for name, text in view.trainer.files(shape, str(location)).items():
            (folder / name).write_text(text, encoding="utf-8")


def _without_truth(column: pa.ChunkedArray) -> int:
    """Count the rows without an answer, in verl's `reward_model` or in OpenRLHF's `label`."""
    if pa.types.is_struct(column.type):
        column = pc.struct_field(column, "ground_truth")
    missing = column.null_count
    if pa.types.is_string(column.type):
        missing += pc.sum(pc.equal(column, "")).as_py() or 0
    return int(missing)


def _turns_with(text: str, prompts: pa.ChunkedArray) -> int:
    """Count the chat turns whose content contains a text."""
    if not pa.types.is_list(prompts.type):
        return 0
    contents = pc.struct_field(pc.list_flatten(prompts), "content")
    return int(pc.sum(pc.match_substring(contents, text)).as_py() or 0)


def _write_ids(view: SplitView, location: Path, policy: FormModel) -> Exported:
    """Write a split's prompts as token ids of the policy's tokenizer."""
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

    with in_place(location) as folder:
        written = write_rows(lines(), folder)
        if written == 0:
            raise _no_row(view)
    return Exported(location, written, ["input_ids"], shape=view.shape)
