"""Run a published recipe again, and say of every file whether it came out the same.

One rule: a stranger's recipe is data. It runs no code, reads nothing outside its own folder, and sends nothing to an
endpoint, and no key, unless the person at the keyboard was shown both and allows them.
"""

from __future__ import annotations

import datetime
import ipaddress
import json
import os
import re
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple, TypeAlias
from urllib.parse import urlsplit

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import yaml
from pydantic import JsonValue

from seamcurate.contrast import Attack
from seamcurate.data.source import Source
from seamcurate.errors import HubError, RecipeError
from seamcurate.models import OpenAIServer
from seamcurate.models.backend import Backend
from seamcurate.models.local import LocalModel
from seamcurate.models.server import OPENAI
from seamcurate.progress import note
from seamcurate.publish import hub
from seamcurate.publish.formats import TRAINERS
from seamcurate.publish.hub import Repository
from seamcurate.run import recipe
from seamcurate.run.local import Report, run_local
from seamcurate.run.recipe import Recipe
from seamcurate.select.split import bundled as bundled_folders
from seamcurate.select.split import is_file_name
from seamcurate.step import Step
from seamcurate.storage import objects, shard
from seamcurate.store.store import Store
from seamcurate.text import brief, clean, counted

_LARGEST = 2**20
_COMMIT = re.compile(r"[0-9a-f]{40}")
_DEEPEST = 100
_OPENAI_KEY = "OPENAI_API_KEY"


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


class Endpoint(NamedTuple):
    """A language model that a recipe asks, and what its requests carry."""

    model: str
    url: str
    key: str
    """The name of the environment variable that holds the key."""

    def __str__(self) -> str:
        """Say in words what a run would send, and where to."""
        sent = f"with the key in {self.key}" if os.environ.get(self.key) else f"without a key ({self.key} is not set)"
        return clean(f"{self.model} at {self.url}{_near(self.url)}, {sent}")


Ask: TypeAlias = Callable[[Sequence[Endpoint]], bool]
"""How a person is asked whether a recipe may ask these endpoints."""


def reproduce(
    repo_id: str,
    path: str | Path,
    revision: str | None = None,
    files: str | Path | None = None,
    endpoints: bool = False,
    max_usd: float | None = None,
    keys: Collection[str] = (),
    ask: Ask | None = None,
) -> Reproduced:
    """Download a recipe at one commit, run it with the revisions written down beside it, and compare what comes out.

    Args:
        repo_id: The data set.
        path: The store to make; its `recipe/` gets what is downloaded.
        revision: A commit, tag or branch; pinned to a commit before anything is read.
        files: A folder with what only the author had: rows, corpora or models that the recipe names by path.
        endpoints: Allow the recipe to ask the language-model endpoints it names.
        max_usd: What they may cost; see `run_local`.
        keys: Environment variables whose keys may be sent to these endpoints.
        ask: Asks for both instead, where they are not given.

    Example:
        >>> reproduce("my-org/my-prompts", "again").identical  # doctest: +SKIP
        True

    Raises:
        HubError: It cannot be downloaded, or asks for what no stranger's recipe may.
        SeamcurateError: The run itself fails; see `run_local`.
    """
    store = Store(objects.folder(path, "reproduce"))
    published = hub.repository(repo_id, revision)
    text = _text(published.fetch(hub.RECIPE, _LARGEST))
    value = check(text, repo_id)
    known = published.facts()
    folder = store.scratch / "recipe"
    folder.mkdir(parents=True, exist_ok=True)
    _download(published, text, value, folder)
    roots = [folder.resolve()]
    if files is not None:
        _lay_beside(Path(files), folder)
        roots.append(Path(files).resolve())
    _confine(value, repo_id, folder, roots)
    loaded = recipe.loads(text, folder, f"{repo_id}/{hub.RECIPE}")
    _confine_loaded(loaded, repo_id, roots)
    allow(asked(loaded), repo_id, endpoints, keys, ask)
    at_commits = pinned(loaded, known)
    report = run_local(at_commits, path, max_usd=max_usd)
    trainer = next((name for name in TRAINERS if name == known.get("trainer")), None)
    if trainer is None:
        raise HubError(f"{repo_id} was written for a trainer that this seamcurate does not know; upgrade it")
    made = hub.prepare(folder / hub.RECIPE, store, repo_id, trainer, pinned=at_commits)
    names = sorted({name for name in (*published.files, *made.files) if hub.compared(name)})
    return Reproduced(published.commit, [_checked(published, made.folder, name) for name in names], report)


# ── what a stranger's recipe may ask for ─────────────────────────────────────────────────────────────────


def check(text: str, name: str) -> object:
    """Refuse a stranger's recipe that would do more than compute from data; returns its plain values.

    Raises:
        HubError: It names a path outside its folder, asks for remote code, or cannot be read.
    """
    try:
        # Aliases let a few lines stand for more nodes than fit in memory.
        depth = 0
        for event in yaml.parse(text, Loader=yaml.SafeLoader):
            depth += isinstance(event, yaml.CollectionStartEvent) - isinstance(event, yaml.CollectionEndEvent)
            if isinstance(event, yaml.AliasEvent) or depth > _DEEPEST:
                raise HubError(f"{name}: its recipe uses YAML aliases or nests too deeply; it is not run")
        value = recipe.parsed(text, name)
    except (yaml.YAMLError, RecursionError, ValueError, RecipeError) as error:
        raise HubError(f"{name}: its recipe is not readable as YAML") from error
    for keys, one in _leaves(value):
        if keys[-1:] == ("trust_remote_code",) and one is not False:
            raise HubError(f"{name}: its recipe asks to run a model's own code (trust_remote_code); it is not run")
        if isinstance(one, str) and not _is_text(keys, one) and hub.escapes(one.strip()):
            raise HubError(f"{name}: its recipe names {one.strip()[:80]!r}, outside its own folder; it is not run")
    return value


def asked(loaded: Recipe) -> list[Endpoint]:
    """List the endpoints that a recipe names, each once."""
    servers = (model for model in _models(loaded) if isinstance(model, OpenAIServer))
    return list(dict.fromkeys(Endpoint(one.path, one.base_url, one.api_key) for one in servers))


def allow(
    endpoints: Sequence[Endpoint], name: str, allowed: bool = False, keys: Collection[str] = (), ask: Ask | None = None
) -> None:
    """Refuse endpoints and keys that nobody allowed; whatever is asked for is shown first.

    Args:
        endpoints: What the recipe asks.
        name: Whose recipe it is.
        allowed: The endpoints may be asked.
        keys: Variables whose keys may be sent to them. OpenAI's own may go to OpenAI without being named.
        ask: Asks for both instead, where they are not given.

    Raises:
        HubError: They may not, or a key is asked for that belongs to something else than a language model.
    """
    for one in endpoints:
        note(f"{name} asks {one}")
    for one in endpoints:
        if _NOT_A_MODELS.fullmatch(one.key):
            raise HubError(
                f"{name}: its recipe wants {one.key} sent to {one.url}; that is no language model's key, and is not sent"
            )
    lacking = sorted(
        {
            one.key
            for one in endpoints
            if os.environ.get(one.key) and one.key not in keys and (one.key, one.url) != (_OPENAI_KEY, OPENAI)
        }
    )
    if not endpoints or (allowed and not lacking):
        return
    if ask is not None:
        if not ask(endpoints):
            raise HubError(f"{name}: its endpoints were not allowed; nothing was sent")
        return
    options = "".join([*([] if allowed else [" --endpoints"]), *(f" --key {key}" for key in lacking)])
    listed = "; ".join(map(str, endpoints))
    raise HubError(
        f"{name}: its recipe asks an endpoint ({brief(listed, 400)}); look at its recipe.yaml, and give{options} to allow it"
    )


_NOT_A_MODELS = re.compile(
    r"(HF|HUGGING_?FACE|AWS|GITHUB|GH|GITLAB|SSH|GPG|NPM|NODE|PYPI|TWINE|CARGO|DOCKER|KUBE\w*|VAULT|WANDB|GCP|GCLOUD|S3|MINIO"
    r"|PG\w*|MYSQL|POSTGRES\w*|REDIS|DATABASE|SMTP|STRIPE|SLACK|CI|RAY)(_\w*)?"
    r"|GOOGLE_APPLICATION\w*|AZURE_CLIENT\w*|\w*(SECRET|PASSWORD|PASSWD|PASSPHRASE|PRIVATE|CREDENTIAL|SESSION|COOKIE)\w*"
    r"|PATH|HOME|USER|USERNAME|LOGNAME|HOSTNAME|PWD|SHELL"
)
"""Variables that hold what other services trust, or tell of the person: no endpoint of a stranger's is given one."""


def _near(url: str) -> str:
    """Say of an address that it is not on the public internet, as a cloud's metadata service is not."""
    host = urlsplit(url).hostname or ""
    try:
        address = ipaddress.ip_address(host)
    except ValueError:
        return " (this machine)" if host == "localhost" or host.endswith(".localhost") else ""
    return (
        ""
        if address.is_global
        else f" ({'this machine' if address.is_loopback else 'a private or link-local address'})"
    )


Keys: TypeAlias = tuple[str, ...]


def _leaves(value: object, keys: Keys = ()) -> Iterator[tuple[Keys, object]]:
    """Yield every value that holds no others, with the keys on the way to it."""
    if isinstance(value, dict):
        for name, one in value.items():
            yield from _leaves(one, (*keys, str(name)))
    elif isinstance(value, list):
        for one in value:
            yield from _leaves(one, keys)
    else:
        yield keys, value


def _models(loaded: Recipe) -> Iterator[Backend]:
    """Yield every model of a recipe: by role, and steps' own."""
    for part in (loaded.models, *loaded.steps):
        yield from (value for _, value in part if isinstance(value, Backend))


def _is_text(keys: Keys, text: str) -> bool:
    """Tell a value that is never a path: SQL, its parameters, what is sent to a model, an address that is shown."""
    if keys[:1] == ("splits",) and len(keys) > 2 and keys[2] != "augment":
        return keys[2] != "filter" or not is_file_name(text)
    return bool({"base_url", "stop", "form", "extra"} & set(keys)) or (
        "template" in keys and ("\n" in text or not text.strip().endswith(".txt"))
    )


# ── where its files are ──────────────────────────────────────────────────────────────────────────────────

_LEXICONS = ("wordnet", "antonyms", "vectors")


def _confine(value: object, name: str, folder: Path, roots: Sequence[Path]) -> None:
    """Refuse filters and templates that would be read from elsewhere than the recipe's folder.

    Raises:
        HubError: The file is not there, or is a link that leads out.
    """
    for keys, text in _leaves(value):
        if not isinstance(text, str) or keys[-1:] not in (("filter",), ("template",)) or _is_text(keys, text):
            continue
        key, place = keys[-1], folder / text
        if key == "filter" and not place.is_file() and Path(text).name == text:
            for bundled in (one / text for one in bundled_folders()):
                if bundled.is_file():
                    shard.replace(place, bundled.read_bytes())
        if not place.is_file():
            raise HubError(f"{name}: its recipe names the {key} {text[:80]!r} and does not bring it; it is not run")
        _check_inside(place, name, roots)


def _confine_loaded(loaded: Recipe, name: str, roots: Sequence[Path]) -> None:
    """Refuse rows, lexicons and models of which a file lies elsewhere: in the working folder, or through a link.

    Raises:
        HubError: One does.
        SourceError: Rows are not there.
    """
    evaluations = [one.augment.evaluation for one in loaded.splits.values() if one.augment]
    for source in (loaded.rows, loaded.corpus, *evaluations):
        for file in source.files() if source is not None else ():
            _check_inside(file, name, roots)
    attacks = [step for step in loaded.steps if isinstance(step, Attack)]
    for path in (getattr(step, key) for step in attacks for key in _LEXICONS):
        if path is not None:
            _check_inside(Path(path), name, roots)
    for path in [model.path for model in _models(loaded) if isinstance(model, LocalModel)] + [
        step.masked_model for step in attacks if step.masked_model is not None
    ]:
        # What is no folder here is a name on the Hub.
        if Path(path).expanduser().exists():
            _check_inside(Path(path), name, roots)
            _check_base(Path(path), name)


def _check_inside(place: Path, name: str, roots: Sequence[Path]) -> None:
    whole = place.resolve()
    for one in (whole, *(whole.rglob("*") if whole.is_dir() else ())):
        if not any(one.resolve().is_relative_to(root) for root in roots):
            raise HubError(
                f"{name}: {place} lies outside the recipe's folder and is not read; give --files a folder that holds the "
                "file itself, and run this where nothing else has its name"
            )


def _check_base(place: Path, name: str) -> None:
    """Refuse an adapter whose base would be taken from elsewhere on this machine."""
    try:
        base = json.loads((place / "adapter_config.json").read_text("utf-8")).get("base_model_name_or_path")
    except (OSError, ValueError, AttributeError, RecursionError):
        return
    if isinstance(base, str) and (hub.escapes(base) or Path(base).exists()):
        raise HubError(f"{name}: {place} is an adapter of {base[:80]!r}, outside the recipe's folder; it is not read")


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
        # An adapter is named with its base.
        for one in text.split(" on "):
            path, _, commit = one.rpartition("@")
            if path and _COMMIT.fullmatch(commit):
                yield path, commit


def _text(file: Path) -> str:
    try:
        return file.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise HubError(f"{file.name} is not UTF-8 text; it is not a recipe") from error


def _download(published: Repository, text: str, value: object, folder: Path) -> None:
    """Write the recipe, and the filters and templates it names, into a folder."""
    for left in list(folder.rglob("*")):
        # An earlier call's link would be written through.
        if left.is_symlink():
            left.unlink()
    shard.replace(folder / hub.RECIPE, text.encode())
    for keys, name in _leaves(value):
        if not isinstance(name, str) or keys[-1:] not in (("filter",), ("template",)):
            continue
        if name.endswith((".sql", ".txt")) and name in published.files:
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
