"""Run a published recipe again, and say of every file whether it came out the same.

One rule: a stranger's recipe is data. It runs no code, reads nothing outside its own folder, and sends nothing to an
endpoint unless the person at the keyboard allows it.
"""

from __future__ import annotations

import datetime
import re
from collections.abc import Iterator, Mapping
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple, get_args

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import yaml
from pydantic import JsonValue

from seamcurate import hub, objects, recipe, shard
from seamcurate.errors import HubError
from seamcurate.export import Trainer
from seamcurate.hub import Repository
from seamcurate.models.backend import Backend
from seamcurate.recipe import Recipe
from seamcurate.run import Report, run_local
from seamcurate.source import Source
from seamcurate.step import Step
from seamcurate.store import Store
from seamcurate.tables import clean, counted

_LARGEST = 2**20
_COMMIT = re.compile(r"[0-9a-f]{40}")
_DEEPEST = 100


class Checked(NamedTuple):
    """One published file against the one made here."""

    path: str
    verdict: str
    """`identical`, `same rows` where only the file's bytes differ, or `differs`."""
    note: str
    """What differs, in words."""


class Reproduced(NamedTuple):
    """How a second run of a published recipe compares with the first."""

    commit: str
    files: list[Checked]
    report: Report

    @property
    def identical(self) -> bool:
        """Tell whether every file holds the published rows."""
        return bool(self.files) and all(one.verdict != "differs" for one in self.files)

    def lines(self) -> Iterator[str]:
        """Yield what a person should know."""
        for one in self.files:
            yield clean(f"{one.path}: {one.verdict}{f' ({one.note})' if one.note else ''}")
        good = sum(one.verdict != "differs" for one in self.files)
        yield f"{good} of {counted(len(self.files), 'file')} came out as published at {self.commit}"


def reproduce(
    repo_id: str,
    path: str | Path,
    revision: str | None = None,
    files: str | Path | None = None,
    endpoints: bool = False,
    max_usd: float | None = None,
) -> Reproduced:
    """Download a recipe at one commit, run it with the revisions written down beside it, and compare what comes out.

    Args:
        repo_id: The data set.
        path: The store to make; its `recipe/` gets what is downloaded.
        revision: A commit, tag or branch; pinned to a commit before anything is read.
        files: A folder with what only the author had: rows, corpora or models that the recipe names by path.
        endpoints: Allow the recipe to ask the language-model endpoints it names, with the keys it names.
        max_usd: What they may cost; see `run_local`.

    Raises:
        HubError: It cannot be downloaded, or asks for what no stranger's recipe may.
        SeamcurateError: The run itself fails; see `run_local`.
    """
    store = Store(objects.folder(path, "reproduce"))
    published = hub.repository(repo_id, revision)
    text = _text(published.fetch(hub.RECIPE, _LARGEST))
    check(text, repo_id, endpoints)
    known = published.facts()
    folder = store.scratch / "recipe"
    folder.mkdir(parents=True, exist_ok=True)
    _download(published, text, folder)
    if files is not None:
        _lay_beside(Path(files), folder)
    loaded = recipe.loads(text, folder, f"{repo_id}/{hub.RECIPE}")
    at_commits = pinned(loaded, known)
    report = run_local(at_commits, path, max_usd=max_usd)
    trainer = next((one for one in get_args(Trainer) if one == known.get("trainer")), None)
    if trainer is None:
        raise HubError(f"{repo_id} was written for a trainer that this seamcurate does not know; upgrade it")
    made = hub.prepare(folder / hub.RECIPE, store, repo_id, trainer, pinned=at_commits)
    names = sorted({name for name in (*published.files, *made.files) if hub.compared(name)})
    return Reproduced(published.commit, [_checked(published, made.folder, name) for name in names], report)


def check(text: str, name: str, endpoints: bool = False) -> None:
    """Refuse a stranger's recipe that would do more than compute from data.

    Raises:
        HubError: It names a path outside its folder, asks for remote code or an endpoint, or cannot be read.
    """
    try:
        # Aliases let a few lines stand for more nodes than fit in memory.
        depth = 0
        for event in yaml.parse(text, Loader=yaml.SafeLoader):
            depth += isinstance(event, yaml.CollectionStartEvent) - isinstance(event, yaml.CollectionEndEvent)
            if isinstance(event, yaml.AliasEvent) or depth > _DEEPEST:
                raise HubError(f"{name}: its recipe uses YAML aliases or nests too deeply; it is not run")
        value = yaml.safe_load(text)
    except (yaml.YAMLError, RecursionError, ValueError) as error:
        raise HubError(f"{name}: its recipe is not readable as YAML") from error
    for key, one in _values(value):
        if key == "trust_remote_code" and one is not False:
            raise HubError(f"{name}: its recipe asks to run a model's own code (trust_remote_code); it is not run")
        if key in ("openai_server", "base_url") and not endpoints:
            raise HubError(
                f"{name}: its recipe asks an endpoint ({key}: {str(one)[:80]!r}) with a key from your environment; "
                "read recipe.yaml, and give --endpoints to allow it"
            )
        inline = key == "filter" and isinstance(one, str) and not one.strip().endswith(".sql")
        if isinstance(one, str) and not inline and key != "base_url" and hub.escapes(one.strip()):
            raise HubError(f"{name}: its recipe names {one.strip()[:80]!r}, outside its own folder; it is not run")


def _values(value: object, key: str = "") -> Iterator[tuple[str, object]]:
    if isinstance(value, dict):
        for name, one in value.items():
            yield from _values(one, str(name))
    elif isinstance(value, list):
        for one in value:
            yield from _values(one, key)
    else:
        yield key, value


def pinned(loaded: Recipe, known: Mapping[str, JsonValue]) -> Recipe:
    """Return a recipe whose Hub data sets and models stand at the commits, and the dates in prompts, that the facts name."""
    commits, days = dict(_commits(known.get("steps"))), _days(known.get("steps"))

    def at(role: str, model: Backend) -> Backend:
        found = {"revision": commits.get(model.path), "date": days.get(role)}
        given = {key: value for key, value in found.items() if value is not None and key in type(model).model_fields}
        return model.model_copy(update=given) if given else model

    def source(given: Source | None, identity: JsonValue) -> Source | None:
        commit = identity.get("commit") if isinstance(identity, dict) else None
        if given is None or given.hub is None or not _COMMIT.fullmatch(str(commit)):
            return given
        return given.model_copy(update={"revision": str(commit)})

    def step(one: Step) -> Step:
        return one.model_copy(update={key: at(key, value) for key, value in one if isinstance(value, Backend)})

    models = loaded.models.model_copy(
        update={role: at(role, model) for role, model in loaded.models if model is not None}
    )
    return loaded.model_copy(
        update={
            "rows": source(loaded.rows, known.get("source")),
            "corpus": source(loaded.corpus, known.get("corpus")),
            "models": models,
            "steps": tuple(map(step, loaded.steps)),
        }
    )


def _days(steps: JsonValue) -> dict[str, datetime.date]:
    """Return the date that the prompts of each role's model hold, where they hold one."""
    days: dict[str, datetime.date] = {}
    for record in steps.values() if isinstance(steps, dict) else ():
        identity = record.get("identity") if isinstance(record, dict) else None
        for role, model in identity.items() if isinstance(identity, dict) else ():
            if isinstance(model, dict) and "date" in model:
                with suppress(ValueError):
                    days[role] = datetime.date.fromisoformat(str(model["date"]))
    return days


def _commits(value: JsonValue) -> Iterator[tuple[str, str]]:
    """Yield each Hub model in the facts with its commit, as `weights.identity` writes them."""
    for _, text in hub.strings(value):
        path, _, commit = text.rpartition("@")
        if path and _COMMIT.fullmatch(commit):
            yield path, commit


def _text(file: Path) -> str:
    try:
        return file.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise HubError(f"{file.name} is not UTF-8 text; it is not a recipe") from error


def _download(published: Repository, text: str, folder: Path) -> None:
    """Write the recipe, and the filters and templates it names, into a folder."""
    for left in folder.iterdir():
        # An earlier call's link would be written through.
        if left.is_symlink():
            left.unlink()
    shard.replace(folder / hub.RECIPE, text.encode())
    for key, value in hub.strings(yaml.safe_load(text)):
        name = value.strip()
        if key in ("filter", "template") and name.endswith((".sql", ".txt")) and name in published.files:
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            shard.replace(folder / name, published.fetch(name, _LARGEST).read_bytes())


def _lay_beside(files: Path, folder: Path) -> None:
    """Link what the author had into the recipe's folder; what was published stays as it was published."""
    if not files.is_dir():
        raise HubError(f"{files} is no folder; give --files the folder that holds what the recipe names")
    for one in sorted(files.iterdir()):
        if not (folder / one.name).exists():
            (folder / one.name).symlink_to(one.absolute())


def _checked(published: Repository, folder: Path, name: str) -> Checked:
    here = folder / name
    if name not in published.files:
        return Checked(name, "differs", "it was not published")
    if not here.is_file():
        return Checked(name, "differs", "it was not made here")
    if hub.same(here, published.files[name]):
        return Checked(name, "identical", "")
    try:
        theirs = pq.read_table(published.fetch(name), partitioning=None)
    except (OSError, pa.ArrowException):
        return Checked(name, "differs", "the published file is not readable as Parquet")
    note = difference(theirs, pq.read_table(here, partitioning=None))
    return Checked(name, "differs", note) if note else Checked(name, "same rows", "written by another version of Arrow")


def difference(theirs: pa.Table, ours: pa.Table) -> str:
    """Say in a few words how two tables differ; empty where they hold the same rows."""
    if theirs.column_names != ours.column_names:
        odd = sorted(set(theirs.column_names) ^ set(ours.column_names))
        return f"other columns: {', '.join(odd) or 'in another order'}"
    if theirs.num_rows != ours.num_rows:
        return f"{ours.num_rows:,} rows where {theirs.num_rows:,} were published"
    found = []
    for name in theirs.column_names:
        a, b = theirs[name], ours[name]
        if a.equals(b) or (a.type != b.type and pc.all(pc.equal(a.cast(b.type), b)).as_py()):
            continue
        if pa.types.is_floating(a.type) and pa.types.is_floating(b.type):
            most = pc.max(pc.abs(pc.subtract(a.cast(pa.float64()), b.cast(pa.float64())))).as_py()
            found.append(f"{name} by up to {most:.2g}" if most is not None else name)
        else:
            found.append(name)
    return f"other values in {', '.join(found)}" if found else ""
