"""Run a published recipe again, and report for each file whether it came out the same.

One rule: a stranger's recipe is data. It runs no code and reads no file outside its own folder. It sends no request and
no key to an endpoint, unless the user was shown both and allowed them.
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
from seamcurate.errors import HubError, RecipeError, SourceError
from seamcurate.models import OpenAIServer, RewardEnsemble, RewardFunction
from seamcurate.models.backend import Backend, NamedModel, models_of
from seamcurate.models.local import LocalModel
from seamcurate.models.roles import ROLES
from seamcurate.models.served import Served
from seamcurate.models.server import OPENAI
from seamcurate.progress import note
from seamcurate.publish import hub
from seamcurate.publish.formats import TRAINERS
from seamcurate.publish.hub import Repository
from seamcurate.run import recipe as recipes
from seamcurate.run.local import Report, run_local
from seamcurate.run.recipe import Recipe
from seamcurate.select import filters
from seamcurate.step import Step
from seamcurate.storage import objects, shard
from seamcurate.store.store import Store
from seamcurate.text import brief, clean, counted

_LARGEST = 2**20
"""Most bytes of a recipe, filter or template."""
_COMMIT = re.compile(r"[0-9a-f]{40}")
_ROUNDING = 1e-5
"""The share of a column's largest value by which float32 models differ in rounding alone; some 1e-6 was seen."""
_DEEPEST = 100
"""Most levels of nesting in a recipe's YAML."""
_OPENAI_KEY = "OPENAI_API_KEY"


class Checked(NamedTuple):
    """A published file compared with the file that this run wrote."""

    path: str
    verdict: str
    """`identical`, `same rows` where only the file's bytes differ, `same up to rounding`, or `differs`."""
    note: str
    """What differs, in words."""


class Reproduced(NamedTuple):
    """How a second run of a published recipe compares with the first."""

    commit: str
    """The commit of the data set that was run again."""
    files: list[Checked]
    """Each published file, with the verdict whether it came out the same."""
    report: Report
    """What the run came to."""

    @property
    def identical(self) -> bool:
        """Return whether every file holds the published rows, with the same numbers up to rounding."""
        return bool(self.files) and all(file.verdict != "differs" for file in self.files)

    def lines(self) -> Iterator[str]:
        """Yield a line for each file, and the count of files that came out as published."""
        for file in self.files:
            yield clean(f"{file.path}: {file.verdict}{f' ({file.note})' if file.note else ''}")
        matches = sum(file.verdict != "differs" for file in self.files)
        yield f"{matches} of {counted(len(self.files), 'file')} came out as published at {self.commit}"


class Endpoint(NamedTuple):
    """A server of a model that a recipe sends requests to, and the key that they carry."""

    model: str
    url: str
    key: str
    """The name of the environment variable that holds the key; empty where none is sent."""

    def __str__(self) -> str:
        """Describe the model, its address and the key that a run would send."""
        key_note = "without a key"
        if self.key:
            key_note = (
                f"with the key in {self.key}" if os.environ.get(self.key) else f"{key_note} ({self.key} is not set)"
            )
        return clean(f"{self.model} at {self.url}{_network_note(self.url)}, {key_note}")


Ask: TypeAlias = Callable[[Sequence[Endpoint]], bool]
"""Asks the user whether a recipe may send requests to these endpoints."""


def reproduce(
    repo_id: str,
    path: str | Path,
    revision: str | None = None,
    files: str | Path | Sequence[str | Path] = (),
    endpoints: bool = False,
    max_usd: float | None = None,
    keys: Collection[str] = (),
    ask: Ask | None = None,
) -> Reproduced:
    """Download a recipe at one commit, run it with the revisions that its facts record, and compare the files.

    Args:
        repo_id: The data set's id on the Hub, `owner/name`.
        path: The folder of the store to make. The recipe is downloaded into `recipe/` inside it.
        revision: A commit, tag or branch. It is resolved to one commit before any file is read.
        files: Folders with the files that only the author has: rows, corpora or models that the recipe names by path. Where
            one of these is a link, the folder that it leads to is read only if it is named, too.
        endpoints: Allow the recipe to send requests to the language-model endpoints that it names.
        max_usd: Most US dollars that these requests may cost; see `run_local`.
        keys: Environment variables whose keys may be sent to these endpoints.
        ask: Called to ask the user if `endpoints` or `keys` do not allow what the recipe needs.

    Example:
        >>> reproduce("my-org/my-prompts", "again").identical  # doctest: +SKIP
        True

    Raises:
        HubError: The data set cannot be downloaded, or its recipe asks for something that is not allowed.
        SeamcurateError: The run itself fails; see `run_local`.
    """
    store = Store(objects.folder(path, "reproduce"))
    published = hub.repository(repo_id, revision)
    text = _text(published.fetch(hub.RECIPE, _LARGEST))
    value = check(text, repo_id)
    facts = published.facts()
    folder = store.scratch / "recipe"
    folder.mkdir(parents=True, exist_ok=True)
    _download(published, text, value, folder)
    roots = [folder.resolve()]
    for own in [files] if isinstance(files, str | Path) else files:
        _link_files(Path(own), folder)
        roots.append(Path(own).resolve())
    _confine(value, repo_id, folder, roots)
    recipe = recipes.loads(text, folder, f"{repo_id}/{hub.RECIPE}")
    _refuse_functions(recipe, repo_id)
    _confine_recipe(recipe, repo_id, roots)
    allow(endpoints_of(recipe), repo_id, endpoints, keys, ask)
    pinned_recipe = pinned(recipe, facts)
    report = run_local(pinned_recipe, path, max_usd=max_usd)
    trainer = next((name for name in TRAINERS if name == facts.get("trainer")), None)
    if trainer is None:
        raise HubError(f"{repo_id} was written for a trainer that this seamcurate does not know; upgrade it")
    reproduced = hub.prepare(folder / hub.RECIPE, store, repo_id, trainer, pinned=pinned_recipe)
    names = sorted({name for name in (*published.files, *reproduced.files) if hub.compared(name)})
    return Reproduced(published.commit, [_checked(published, reproduced.folder, name) for name in names], report)


# ── what a stranger's recipe may do ──────────────────────────────────────────────────────────────────────


def check(text: str, name: str) -> object:
    """Refuse a stranger's recipe that would do more than compute from data. Return its YAML as plain values.

    Raises:
        HubError: The recipe names a path outside its folder, asks for remote code, or cannot be read.
    """
    try:
        # A few lines with aliases can expand to more nodes than fit in memory.
        depth = 0
        for event in yaml.parse(text, Loader=yaml.SafeLoader):
            depth += isinstance(event, yaml.CollectionStartEvent) - isinstance(event, yaml.CollectionEndEvent)
            if isinstance(event, yaml.AliasEvent) or depth > _DEEPEST:
                raise HubError(f"{name}: its recipe uses YAML aliases or nests too deeply; it is not run")
        value = recipes.parsed(text, name)
    except (yaml.YAMLError, RecursionError, ValueError, RecipeError) as error:
        raise HubError(f"{name}: its recipe is not readable as YAML") from error
    for keys, leaf in _leaves(value):
        if keys[-1:] == ("trust_remote_code",) and leaf is not False:
            raise HubError(f"{name}: its recipe asks to run a model's own code (trust_remote_code); it is not run")
        if isinstance(leaf, str) and not _is_text(keys, leaf) and hub.escapes(leaf.strip()):
            raise HubError(f"{name}: its recipe names {leaf.strip()[:80]!r}, outside its own folder; it is not run")
    return value


def endpoints_of(recipe: Recipe) -> list[Endpoint]:
    """List the endpoints that a recipe names, each once."""
    endpoints = []
    for model in _models(recipe):
        if isinstance(model, OpenAIServer):
            endpoints.append(Endpoint(model.path, model.base_url, model.api_key))
        elif isinstance(model, Served) and isinstance(model, NamedModel):
            endpoints.append(Endpoint(model.model, model.path, model.api_key or ""))
    return list(dict.fromkeys(endpoints))


def allow(
    endpoints: Sequence[Endpoint], name: str, allowed: bool = False, keys: Collection[str] = (), ask: Ask | None = None
) -> None:
    """Show the endpoints that a recipe names, and refuse those endpoints and keys that nobody allowed.

    Args:
        endpoints: The endpoints that the recipe names.
        name: The data set's id, for messages.
        allowed: Whether the recipe may send requests to these endpoints.
        keys: Variables whose keys may be sent to them. OpenAI's own key may go to OpenAI without being listed here.
        ask: Called to ask the user if `allowed` or `keys` do not allow what the recipe needs.

    Raises:
        HubError: An endpoint or a key is not allowed, or the recipe asks for a key of another kind of service.
    """
    for endpoint in endpoints:
        note(f"{name} asks {endpoint}")
    for endpoint in endpoints:
        if _KEYS_OF_OTHER_SERVICES.fullmatch(endpoint.key):
            raise HubError(
                f"{name}: its recipe wants {endpoint.key} sent to {endpoint.url}; that is no language model's key, and is not sent"
            )
    refused_keys = sorted(
        {
            key
            for _, url, key in endpoints
            if os.environ.get(key) and key not in keys and (key, url) != (_OPENAI_KEY, OPENAI)
        }
    )
    if not endpoints or (allowed and not refused_keys):
        return
    if ask is not None:
        if not ask(endpoints):
            raise HubError(f"{name}: its endpoints were not allowed; nothing was sent")
        return
    options = "".join([*([] if allowed else [" --endpoints"]), *(f" --key {key}" for key in refused_keys)])
    listed = "; ".join(map(str, endpoints))
    raise HubError(
        f"{name}: its recipe asks an endpoint ({brief(listed, 400)}); look at its recipe.yaml, and give{options} to allow it"
    )


_KEYS_OF_OTHER_SERVICES = re.compile(
    r"(HF|HUGGING_?FACE|AWS|GITHUB|GH|GITLAB|SSH|GPG|NPM|NODE|PYPI|TWINE|CARGO|DOCKER|KUBE\w*|VAULT|WANDB|GCP|GCLOUD|S3|MINIO"
    r"|PG\w*|MYSQL|POSTGRES\w*|REDIS|DATABASE|SMTP|STRIPE|SLACK|CI|RAY)(_\w*)?"
    r"|GOOGLE_APPLICATION\w*|AZURE_CLIENT\w*|\w*(SECRET|PASSWORD|PASSWD|PASSPHRASE|PRIVATE|CREDENTIAL|SESSION|COOKIE)\w*"
    r"|PATH|HOME|USER|USERNAME|LOGNAME|HOSTNAME|PWD|SHELL"
)
"""Variables with credentials of other services, or with facts about the user. They are never sent to an endpoint."""


def _network_note(url: str) -> str:
    """Return a note if an address is not on the public internet, such as that of a cloud's metadata service."""
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
"""The mapping keys on the way to a value of the recipe, outermost first."""


def _leaves(value: object, keys: Keys = ()) -> Iterator[tuple[Keys, object]]:
    """Yield each value that is no mapping or list, with the keys on the way to it."""
    if isinstance(value, dict):
        for name, child in value.items():
            yield from _leaves(child, (*keys, str(name)))
    elif isinstance(value, list):
        for child in value:
            yield from _leaves(child, keys)
    else:
        yield keys, value


def _models(recipe: Recipe) -> Iterator[Backend]:
    """Yield every model of a recipe: those of its `models`, then those of its steps."""
    for configuration in (recipe.models, *recipe.steps):
        yield from models_of(configuration)


_ADDRESSES = tuple((kind.key,) for kinds in ROLES.values() for kind in kinds if issubclass(kind, Served))
"""The keys whose value is a server's address; anything else is refused there."""


def _is_text(keys: Keys, text: str) -> bool:
    """Return whether a value is never read as a path: SQL, its parameters, a text for a model, an output's name, an address."""
    if keys[:1] == ("splits",) and len(keys) > 2 and keys[2] != "augment":
        return keys[2] != "filter" or not filters.is_file_name(text)
    if "rubric" in keys and keys[-1] != "rubric":
        return True
    return (
        keys[-1:] in _ADDRESSES
        or bool({"base_url", "stop", "form", "extra", "output", "outputs"} & set(keys))
        or ("template" in keys and ("\n" in text or not text.strip().endswith(".txt")))
    )


# ── where a recipe's files are ───────────────────────────────────────────────────────────────────────────

_LEXICONS = ("wordnet", "antonyms", "vectors")
_FILES = ("filter", "template", "rubric")
"""Keys whose value may be a file beside the recipe, which is published with it."""


def _confine(value: object, name: str, folder: Path, roots: Sequence[Path]) -> None:
    """Refuse filters, templates and rubrics that are not in the recipe's folder; copy a filter of seamcurate's own into it.

    Raises:
        HubError: The file does not exist, or is a link that leads out of the folder.
    """
    for keys, text in _leaves(value):
        if not isinstance(text, str) or not keys or keys[-1] not in _FILES or _is_text(keys, text):
            continue
        key, file = keys[-1], folder / text
        if key == "filter" and not file.is_file() and Path(text).name == text:
            for bundled_file in (bundled / text for bundled in filters.bundled()):
                if bundled_file.is_file():
                    shard.replace(file, bundled_file.read_bytes())
        if not file.is_file():
            raise HubError(f"{name}: its recipe names the {key} {text[:80]!r} and does not bring it; it is not run")
        _check_inside(file, name, roots)


def _refuse_functions(recipe: Recipe, name: str) -> None:
    """Refuse reward functions that are not seamcurate's own: they are code.

    Raises:
        HubError: The recipe names one.
    """
    for model in _models(recipe):
        if isinstance(model, RewardFunction) and not model.bundled:
            function = Path(model.path).name
            raise HubError(f"{name}: its recipe asks to run the reward function {function[:80]!r}; it is not run")


def _confine_recipe(recipe: Recipe, name: str, roots: Sequence[Path]) -> None:
    """Refuse rows, lexicons and models with a file outside `roots`: in the working folder, or behind a link.

    Raises:
        HubError: A file lies outside.
        SourceError: The file of the rows does not exist.
    """
    evaluations = [split.augment.evaluation for split in recipe.splits.values() if split.augment]
    compared = [value for step in recipe.steps for _, value in step if isinstance(value, Source)]
    for source in (recipe.rows, recipe.corpus, *evaluations, *compared):
        try:
            files = source.files() if source is not None else ()
        except SourceError as error:
            raise SourceError(f"{error}; --files names the folder that has what the recipe reads by path") from None
        for file in files:
            _check_inside(file, name, roots)
    attacks = [step for step in recipe.steps if isinstance(step, Attack)]
    for path in (getattr(step, key) for step in attacks for key in _LEXICONS):
        if path is not None:
            _check_inside(Path(path), name, roots)
    models = [path for model in _models(recipe) if isinstance(model, LocalModel) for path in model.named_paths()]
    for path in models + [step.masked_model for step in attacks if step.masked_model is not None]:
        # A name that is no local path is a name on the Hub.
        if Path(path).expanduser().exists():
            _check_inside(Path(path), name, roots)
            _check_base(Path(path), name)


def _check_inside(path: Path, name: str, roots: Sequence[Path]) -> None:
    """Refuse a file, or a folder with a file in it, that really lies outside all of `roots`."""
    target = path.resolve()
    for file in (target, *(target.rglob("*") if target.is_dir() else ())):
        real = file.resolve()
        if not any(real.is_relative_to(root) for root in roots):
            # What `--files` names is linked into the recipe's folder: the user's own link may lead on from there.
            if Path(os.path.normpath(path.absolute())).is_relative_to(roots[0]):
                raise HubError(
                    f"{name}: {path.name} leads by a link to {real}, outside the recipe's folder and --files, and is not "
                    f"read; if it is meant, allow its folder by one more --files {real if real.is_dir() else real.parent}"
                )
            raise HubError(
                f"{name}: {path} lies outside the recipe's folder and is not read; give --files a folder that holds the "
                "file itself, and run this where nothing else has its name"
            )


def _check_base(folder: Path, name: str) -> None:
    """Refuse an adapter whose base model lies outside the recipe's folder on this machine."""
    try:
        base = json.loads((folder / "adapter_config.json").read_text("utf-8")).get("base_model_name_or_path")
    except (OSError, ValueError, AttributeError, RecursionError):
        return
    if isinstance(base, str) and (hub.escapes(base) or Path(base).exists()):
        raise HubError(f"{name}: {folder} is an adapter of {base[:80]!r}, outside the recipe's folder; it is not read")


def pinned(recipe: Recipe, facts: Mapping[str, JsonValue]) -> Recipe:
    """Return the recipe with the commits of its Hub data sets and models, adapters' bases too, and the dates in prompts.

    All are those that the facts record.
    """
    steps = facts.get("steps")
    commits, days = dict(_commits(steps)), _days(steps)
    bases, tokenizers = _named_after("on", steps), _named_after("with", steps)

    def pin_model(role: str, model: Backend) -> Backend:
        if isinstance(model, RewardEnsemble):
            members = [pin_model(f"{role} {i}", member) for i, member in enumerate(model.ensemble)]
            return model.model_copy(update={"ensemble": tuple(members)})
        if isinstance(model, Served) and model.same_as != "itself":
            local = model.named(model.model) if model.same_as is None else model.same_as
            pinned_local = pin_model(role, local)
            return model if pinned_local == local else model.model_copy(update={"same_as": pinned_local})
        recorded: dict[str, object] = {
            "date": days.get(role),
            "base": bases.get(role),
            "tokenizer_of": tokenizers.get(role),
        }
        if isinstance(model, NamedModel):
            recorded["revision"] = commits.get(model.path)
        # A server has no revision, and only some models put a date into their prompts.
        fields = type(model).model_fields
        update = {key: value for key, value in recorded.items() if value is not None and key in fields}
        return model.model_copy(update=update) if update else model

    def pin_source(source: Source | None, identity: JsonValue) -> Source | None:
        commit = identity.get("commit") if isinstance(identity, dict) else None
        if source is None or source.hub is None or not _COMMIT.fullmatch(str(commit)):
            return source
        return source.model_copy(update={"revision": str(commit)})

    steps = facts.get("steps")

    def pin_step(step: Step) -> Step:
        models = {role: pin_model(role, model) for role, model in step if isinstance(model, Backend)}
        record = steps.get(step.name) if isinstance(steps, dict) else None
        identity = record.get("identity") if isinstance(record, dict) else None
        identities = identity if isinstance(identity, dict) else {}
        sources = {key: pin_source(value, identities.get(key)) for key, value in step if isinstance(value, Source)}
        return step.model_copy(update={**models, **sources})

    models = recipe.models.model_copy(
        update={role: pin_model(role, model) for role, model in recipe.models if model is not None}
    )
    return recipe.model_copy(
        update={
            "rows": pin_source(recipe.rows, facts.get("source")),
            "corpus": pin_source(recipe.corpus, facts.get("corpus")),
            "models": models,
            "steps": tuple(map(pin_step, recipe.steps)),
        }
    )


def _identities(steps: JsonValue) -> Iterator[tuple[str, dict[str, JsonValue]]]:
    """Yield each role of a step's models with the identity of the model; an ensemble's members have their number in the role."""
    for record in steps.values() if isinstance(steps, dict) else ():
        identity = record.get("identity") if isinstance(record, dict) else None
        for role, model in identity.items() if isinstance(identity, dict) else ():
            if isinstance(model, dict):
                yield role, _held_against(model)
                members = model.get("ensemble")
                for i, member in enumerate(members if isinstance(members, list) else ()):
                    if isinstance(member, dict):
                        yield f"{role} {i}", _held_against(member)


def _held_against(identity: dict[str, JsonValue]) -> dict[str, JsonValue]:
    """Return the identity of the local model that a served one was held against; that of any other model itself."""
    local = identity.get("same_as")
    return local if isinstance(local, dict) else identity


def _days(steps: JsonValue) -> dict[str, datetime.date]:
    """Return, by role, the date in the prompts of the role's model; roles without a date are left out."""
    days: dict[str, datetime.date] = {}
    for role, model in _identities(steps):
        if "date" in model:
            with suppress(ValueError):
                days[role] = datetime.date.fromisoformat(str(model["date"]))
    return days


def _named_after(word: str, steps: JsonValue) -> dict[str, str]:
    """Return, by role, the Hub model and its commit that stand after a word in the role's model, as `name@commit`."""
    named: dict[str, str] = {}
    for role, model in _identities(steps):
        for text in model.values():
            _, _, second = text.partition(f" {word} ") if isinstance(text, str) else ("", "", "")
            name, _, commit = second.rpartition("@")
            if name and _COMMIT.fullmatch(commit):
                named[role] = second
    return named


def _commits(value: JsonValue) -> Iterator[tuple[str, str]]:
    """Yield the name and the commit of each Hub model in the facts; `weights.identity` writes them as `name@commit`."""
    for _, text in hub.strings(value):
        # An adapter is written as "adapter@commit on base@commit", a GGUF file as "file@commit with tokenizer@commit".
        for model in re.split(r" (?:on|with) ", text):
            path, _, commit = model.rpartition("@")
            if path and _COMMIT.fullmatch(commit):
                yield path, commit


def _text(file: Path) -> str:
    try:
        return file.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise HubError(f"{file.name} is not UTF-8 text; it is not a recipe") from error


def _download(published: Repository, text: str, value: object, folder: Path) -> None:
    """Write the recipe, and the filters, templates and rubrics that it names, into a folder."""
    for file in list(folder.rglob("*")):
        # Writing to a link that an earlier call left here would change the file behind it.
        if file.is_symlink():
            file.unlink()
    shard.replace(folder / hub.RECIPE, text.encode())
    for keys, name in _leaves(value):
        if not isinstance(name, str) or not keys or keys[-1] not in _FILES:
            continue
        if name.endswith((".sql", ".txt", ".yaml", ".yml")) and name in published.files:
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            shard.replace(folder / name, published.fetch(name, _LARGEST).read_bytes())


def _link_files(files: Path, folder: Path) -> None:
    """Link the author's own files into the recipe's folder. A published file is never replaced by a link."""
    if not files.is_dir():
        raise HubError(f"{files} is no folder; give --files the folder that holds what the recipe names")
    for file in sorted(files.iterdir()):
        if not (folder / file.name).exists():
            (folder / file.name).symlink_to(file.absolute())


def _checked(published: Repository, folder: Path, name: str) -> Checked:
    """Compare one published file with the file of this run."""
    file = folder / name
    if name not in published.files:
        return Checked(name, "differs", "it was not published")
    if not file.is_file():
        return Checked(name, "differs", "it was not made here")
    if hub.same(file, published.files[name]):
        return Checked(name, "identical", "")
    try:
        published_rows = pq.read_table(published.fetch(name), partitioning=None)
    except (OSError, pa.ArrowException):
        return Checked(name, "differs", "the published file is not readable as Parquet")
    reproduced_rows = pq.read_table(file, partitioning=None)
    note = difference(published_rows, reproduced_rows)
    if note:
        return Checked(name, "same up to rounding" if rounded(published_rows, reproduced_rows) else "differs", note)
    return Checked(name, "same rows", "written by another version of Arrow")


def rounded(published: pa.Table, reproduced: pa.Table) -> bool:
    """Tell whether two tables hold the same rows, whose numbers differ by no more than sums in another order do.

    Another processor, library or batch adds a model's products in another order. Everything but doubles is the same: a row
    that is kept in one of them alone, or another rule, is no rounding.

    Example:
        >>> one, other = pa.table({"a": [1.0, -2.0]}), pa.table({"a": [1.000001, -2.0]})
        >>> rounded(one, other), rounded(one, pa.table({"a": [1.1, -2.0]}))
        (True, False)
    """
    if not published.schema.equals(reproduced.schema) or published.num_rows != reproduced.num_rows:
        return False
    return all(_within(_ROUNDING, published[name], reproduced[name]) for name in published.column_names)


def _within(share: float, old: pa.ChunkedArray, new: pa.ChunkedArray) -> bool:
    """Tell whether two columns of one type hold the same, but for numbers that differ by at most a share of the largest.

    Numbers in lists and structs are compared as those of a column are.
    """
    if old.equals(new):
        return True
    if not old.is_null().equals(new.is_null()):
        return False
    if pa.types.is_list(old.type) or pa.types.is_large_list(old.type):
        lengths, new_lengths = pc.list_value_length(old), pc.list_value_length(new)
        return bool(lengths.equals(new_lengths)) and _within(share, pc.list_flatten(old), pc.list_flatten(new))
    if pa.types.is_struct(old.type):
        return all(_within(share, pc.struct_field(old, i), pc.struct_field(new, i)) for i in range(old.type.num_fields))
    if not pa.types.is_floating(old.type):
        return False
    # NaN equals nothing in Arrow, and infinities have no difference: both are compared as text.
    old, new = old.cast(pa.float64()), new.cast(pa.float64())
    is_finite = pc.is_finite(old)
    if not is_finite.equals(pc.is_finite(new)):
        return False
    special, new_special = (column.filter(pc.invert(is_finite)).cast(pa.string()) for column in (old, new))
    numbers, new_numbers = old.filter(is_finite), new.filter(is_finite)
    errors, most = pc.abs(pc.subtract(numbers, new_numbers)), share * (pc.max(pc.abs(numbers)).as_py() or 0.0)
    return bool(special.equals(new_special)) and pc.all(pc.less_equal(errors, most)).as_py() is not False


def difference(published: pa.Table, reproduced: pa.Table) -> str:
    """Describe in a few words how two tables differ; empty where they hold the same rows."""
    if published.column_names != reproduced.column_names:
        unmatched = sorted(set(published.column_names) ^ set(reproduced.column_names))
        return f"other columns: {', '.join(unmatched) or 'in another order'}"
    if published.num_rows != reproduced.num_rows:
        return f"{reproduced.num_rows:,} rows where {published.num_rows:,} were published"
    differing = []
    for name in published.column_names:
        old, new = published[name], reproduced[name]
        # Another version of Arrow may read the same values back as another type.
        if (old.type == new.type and _within(0.0, old, new)) or (
            old.type != new.type and pc.all(pc.equal(old.cast(new.type), new)).as_py()
        ):
            continue
        if pa.types.is_floating(old.type) and pa.types.is_floating(new.type):
            errors = pc.abs(pc.subtract(old.cast(pa.float64()), new.cast(pa.float64())))
            largest = pc.max(errors).as_py()
            differing.append(f"{name} by up to {largest:.2g}" if largest is not None else name)
        else:
            differing.append(name)
    return f"other values in {', '.join(differing)}" if differing else ""
