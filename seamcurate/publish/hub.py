"""Publish splits on the Hugging Face Hub: one repository with a configuration per split, a card, recipe and ledgers.

One rule: the whole repository is first written into the store's folder. The files that differ from the repository's
newest commit are then sent in one commit on top of it. So the same push resumes a push that broke off, an identical
push makes no commit, and a push is refused if somebody else committed meanwhile. No message contains a token.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple, NoReturn, TypeVar

import pyarrow.parquet as pq
import yaml
from pydantic import JsonValue

from seamcurate import extras
from seamcurate.data.hub import commit_of
from seamcurate.data.source import Source
from seamcurate.errors import ExportError, HubError, SeamcurateError
from seamcurate.explore import finding
from seamcurate.explore.session import Session
from seamcurate.models import RewardFunction, connection
from seamcurate.progress import bar, note
from seamcurate.publish import card, facts, measures
from seamcurate.publish.export import Exported, export
from seamcurate.publish.formats import TRAINERS, Trainer
from seamcurate.publish.snippet import Configuration
from seamcurate.run import recipe as recipes
from seamcurate.run.local import store_origin
from seamcurate.run.recipe import Recipe
from seamcurate.select import filters
from seamcurate.storage import atomic
from seamcurate.storage.objects import local
from seamcurate.store.folder import save_json
from seamcurate.store.store import Store
from seamcurate.text import brief
from seamcurate.trainers import REWARD_FILE

if TYPE_CHECKING:
    from huggingface_hub import CommitOperationAdd, CommitOperationDelete, HfApi
    from huggingface_hub.hf_api import RepoFile

T = TypeVar("T")

FACTS, RECIPE = "seamcurate.json", "recipe.yaml"
_BESIDE = (REWARD_FILE, *(name for trainer in TRAINERS.values() for name in trainer.beside))
"""Files that an export writes beside its rows."""
_PUSHED_FILES = re.compile(
    r"data/[^/]+(/[^/]+)?/train-\d+-of-\d+\.parquet|ledger/[^/]+\.parquet|figures/[^/]+\.png"
    rf"|data/[^/]+(/[^/]+)?/({'|'.join(map(re.escape, _BESIDE))})"
)
"""Files that only a push writes. A push removes those that it no longer has, and no other file of a repository."""
_COMPARED = re.compile(r"(data|ledger)/.+\.parquet")
_WAITS = (1.0, 4.0, 15.0)
"""Seconds before a commit is tried again: huggingface_hub retries every other request itself."""
_LONGEST_WAIT = 60.0
"""Seconds: if the Hub asks for a longer wait, the error is raised instead."""
_FINDING_SECONDS = 600.0
"""The most time of a query for the card."""
_LARGEST_FACTS = 2**26
"""Bytes."""
_TRANSIENT = {408, 429, 500, 502, 503, 504}
_RUN_AGAIN = ("run the same command later", "run the same command again")
_TRANSPORTS = {"httpx", "httpx2", "httpcore", "requests", "urllib3"}


class Prepared(NamedTuple):
    """A repository as a push would make it, in a local folder."""

    folder: Path
    card: str
    files: dict[str, int]
    """Size in bytes, by path."""
    notes: list[str]
    """Warnings for the author, to read before publishing."""


class Pushed(NamedTuple):
    """The result of a push."""

    url: str
    """The repository's address."""
    commit: str
    """The repository's newest commit; no new one if no file had changed."""
    sent: list[str]
    """Files that travelled."""
    removed: list[str]
    """Files of an earlier push that are there no more."""
    unchanged: int
    """Number of files that were there already."""
    notes: list[str]
    """Lines for a person."""


# ── preparing ────────────────────────────────────────────────────────────────────────────────────────────


def prepare(
    path: str | Path,
    store: Store,
    repo_id: str,
    trainer: Trainer = "trl",
    licences: Sequence[str] = (),
    pinned: Recipe | None = None,
) -> Prepared:
    """Write a repository into `STORE/publish`: splits, ledgers, recipe, facts, figures and card, without the network.

    Args:
        path: The recipe's YAML file, which is published unchanged.
        store: The store that the recipe was run in.
        repo_id: The repository's id, for the card.
        trainer: The trainer in whose format the splits are written.
        licences: Licences of the source; without one, the card says `unknown`.
        pinned: The recipe with the commits and dates that it was run with, if they are not those of today.

    Raises:
        HubError: `repo_id` is not of the form `owner/name`.
        StaleError: The store does not hold what the recipe makes.
        ExportError: A split cannot be written for the trainer.
    """
    _check_name(repo_id)
    if TRAINERS[trainer].lines:
        raise ExportError(
            f"{TRAINERS[trainer].title} reads lines of JSON, and a data set on the Hub is in Parquet; push with --to trl, and export "
            "for it from the store"
        )
    recipe, text = recipes.load(path), Path(path).read_text(encoding="utf-8")
    temporary, folder = store.open().scratch / ".publish.tmp", store.scratch / "publish"
    with store.hold():
        exports = list(export(pinned or recipe, store, trainer, temporary / "data"))
        for file in (file for name in _BESIDE for file in (temporary / "data").rglob(name)):
            # The card's commands are for a copy of the repository in the folder `rows`.
            text_beside = file.read_text(encoding="utf-8").replace(str(temporary / "data"), "rows/data")
            file.write_text(_without_folders(text_beside), encoding="utf-8")
        for name in ("ledger", "figures"):
            (temporary / name).mkdir()
        configurations = [_configuration(exported, recipe, temporary / "data") for exported in exports]
        splits, figures = [], {}
        for name in recipe.splits:
            shutil.copyfile(
                local(store.path / "splits" / name / "ledger.parquet"), temporary / "ledger" / f"{name}.parquet"
            )
            splits.append(measures.measure(store, name))
            if measures.draw(splits[-1], temporary / "figures" / f"{name}.png"):
                figures[name] = f"figures/{name}.png"
        run_facts = facts.facts(store, recipe.splits, trainer, version("seamcurate"))
        (temporary / RECIPE).write_text(text, encoding="utf-8")
        for name, content in _named_files(text, Path(path).parent).items():
            (temporary / name).parent.mkdir(parents=True, exist_ok=True)
            (temporary / name).write_text(content, encoding="utf-8")
        save_json(temporary / FACTS, run_facts)
        missing, notes = _only_here(text, Path(path).parent)
        session = Session(store, seconds=_FINDING_SECONDS)
        result = finding.find(session, next(iter(recipe.splits)))
        about = card.About(
            repo_id, licences, configurations, missing, figures, result, finding.models(store), finding.made_on(store)
        )
        readme = card.readme(recipe, run_facts, splits, about)
        (temporary / "README.md").write_text(readme, encoding="utf-8")
        (temporary / card.DETAILS).write_text(card.details(recipe, run_facts, splits, about), encoding="utf-8")
        atomic.replace_folder(folder, temporary)
    if not figures:
        notes.append(f"the card has no figures: {extras.install('study')} draws them")
    if not licences:
        notes.append("the card says `license: unknown`: give --license, or take rows from a Hub data set that has one")
    return Prepared(folder, readme, _sizes(folder), notes)


def _without_folders(code: str) -> str:
    """Return a reward file with only the last part of a model's folder, as a local path is private."""
    return re.sub(r"('sentence_encoder': )'/[^']*/([^/']+)'", r"\1'\2'", code)


def _configuration(exported: Exported, recipe: Recipe, data: Path) -> Configuration:
    """Describe an export. A split that is written in several formats has a folder, and a configuration, for each."""
    path = exported.folder.relative_to(data).parts
    form = recipe.splits[path[0]].format if len(path) == 1 else path[-1]
    shards = list(exported.folder.glob("train-*.parquet"))
    size, schema = sum(file.stat().st_size for file in shards), pq.read_schema(shards[0])
    return Configuration("-".join(path), path[0], form, "/".join(path), exported.rows, size, schema, exported.shape)


def _sizes(folder: Path) -> dict[str, int]:
    files = (file for file in sorted(folder.rglob("*")) if file.is_file())
    sizes = {str(file.relative_to(folder)): file.stat().st_size for file in files}
    # Other files that an export writes beside its shards, such as dropped.parquet, stay local.
    return {name: size for name, size in sizes.items() if not name.startswith("data/") or _PUSHED_FILES.fullmatch(name)}


def _named_files(text: str, folder: Path) -> dict[str, str]:
    """Return the contents of the filter, template and rubric files that a recipe names, by the path in the recipe."""
    contents: dict[str, str] = {}
    for key, value in strings(yaml.safe_load(text)):
        if key == "filter" and filters.is_file_name(value):
            contents[value.strip()] = filters.read(value, folder)
        elif key in ("template", "rubric") and (folder / value).is_file():
            contents[value] = (folder / value).read_text(encoding="utf-8")
    for name in contents:
        if escapes(name) or name in (RECIPE, FACTS, "README.md", card.DETAILS):
            raise HubError(f"the recipe names {name!r}, which cannot be published beside it; put it into its folder")
    return contents


def strings(value: object, key: str = "") -> Iterator[tuple[str, str]]:
    """Yield each text in plain JSON or YAML values, after the key of the mapping that it is in."""
    if isinstance(value, str):
        yield key, value
    elif isinstance(value, dict):
        for name, child in value.items():
            yield from strings(child, str(name))
    elif isinstance(value, list):
        for child in value:
            yield from strings(child, key)


def escapes(name: str) -> bool:
    """Return whether a relative path leads out of its folder, as an address on object storage does too."""
    parts = name.replace("\\", "/").split("/")
    # The last test finds addresses: file:///x, s3://x, cache::x, C:/x.
    return name.startswith(("/", "\\", "~")) or ".." in parts or bool(re.match(r"[A-Za-z][\w+.-]*:[/\\:]", name))


def _only_here(text: str, folder: Path) -> tuple[list[str], list[str]]:
    """Return the local rows and models that a recipe names, and warnings for its author."""
    kinds = {"parquet", "jsonl", "csv", "arrow", "store", "wordnet", "antonyms", "vectors"}
    models = {"causal_lm", "sequence_classifier", "sentence_encoder", "masked_model", "base", "tokenizer_of"}
    local_files, notes = [], []
    if re.search(r"\btrust_remote_code['\"]?\s*:\s*(true|yes|on)\b", text, re.IGNORECASE):
        notes.append("the recipe runs a model's own code (trust_remote_code): `reproduce` will refuse it")
    for key, value in strings(yaml.safe_load(text)):
        if key == RewardFunction.key and ".py:" in value:
            notes.append(
                f"the recipe runs the reward function {value}, which is not published: `reproduce` will refuse it"
            )
        # A server's name for its model is a folder of its machine, or of this one, where it has no other name.
        if key in kinds or (key in {*models, "model", "tokenizer"} and (escapes(value) or (folder / value).exists())):
            local_files.append(value)
        if key != "filter" and escapes(value) and "://" not in value:
            notes.append(
                f"the recipe names {value}, outside its folder: nobody else can reproduce it, and the path is published"
            )
    return list(dict.fromkeys(local_files)), notes


# ── pushing ──────────────────────────────────────────────────────────────────────────────────────────────


def push(
    path: str | Path,
    store: Store,
    repo_id: str,
    trainer: Trainer = "trl",
    public: bool = False,
    licences: Sequence[str] = (),
) -> Pushed:
    """Publish a recipe's splits as a data set on the Hub; files that are there already are not sent again.

    Args:
        path: The recipe's YAML file.
        store: The store that the recipe was run in.
        repo_id: The repository, `owner/name`. If it does not exist, it is created: private, unless `public`.
        trainer: The trainer in whose format the splits are written.
        public: Let everybody see the repository.
        licences: Licences for the card, instead of those of the Hub data sets that rows and corpus come from.

    Raises:
        HubError: There is no token, no permission or no connection, or the Hub reports a conflict or a limit. The
            message says what to do.

    Example:
        >>> from seamcurate import Store, push
        >>> push("recipe.yaml", Store("my-store"), "my-org/my-prompts").url  # doctest: +SKIP
        'https://huggingface.co/datasets/my-org/my-prompts'
    """
    with asking(repo_id, sending=True):
        api = _api(repo_id, writing=True)
        newest = _newest(api, repo_id, public)
        card_licences = licences or _licences(api, recipes.load(path))
    prepared = prepare(path, store, repo_id, trainer, card_licences)
    with asking(repo_id, sending=True):
        head = newest or _retry(lambda: _create(api, repo_id, public))
        remote = {file.path: file for file in tree(api, repo_id, head)}
        changed = [name for name in prepared.files if not same(prepared.folder / name, remote.get(name))]
        removed = [name for name in remote if _PUSHED_FILES.fullmatch(name) and name not in prepared.files]
        if changed or removed:
            head = _send(api, repo_id, head, prepared, changed, removed)
    url = f"{api.endpoint}/datasets/{repo_id}"
    return Pushed(url, head, changed, removed, len(prepared.files) - len(changed), prepared.notes)


def _api(repo_id: str, writing: bool = False) -> HfApi:
    extras.require("hub", "the Hub's client", HubError)
    from huggingface_hub import HfApi, get_token

    _check_name(repo_id)
    token = get_token()
    if token is None and writing:
        raise HubError(f"no token to push to {repo_id} with; log in with `hf auth login`, or set HF_TOKEN")
    if token is not None and not re.fullmatch(r"[\x21-\x7e]+", token):
        raise HubError("the token holds characters that no token has; log in again with `hf auth login`")
    return HfApi(token=token, library_name="seamcurate", library_version=version("seamcurate"))


def _check_name(repo_id: str) -> None:
    if not re.fullmatch(r"[\w.-]+/[\w.-]+", repo_id):
        raise HubError(f"{repo_id!r} is no repository's id; write owner/name")


def _newest(api: HfApi, repo_id: str, public: bool) -> str | None:
    """Return the repository's newest commit; None if there is no such repository."""
    from huggingface_hub.errors import RepositoryNotFoundError

    try:
        info = api.dataset_info(repo_id)
    except RepositoryNotFoundError:
        return None
    if info.private is False and not public:
        raise HubError(f"{repo_id} is public already; give --public to push to it, or name another repository")
    return str(info.sha)


def _create(api: HfApi, repo_id: str, public: bool) -> str:
    api.create_repo(repo_id, repo_type="dataset", private=not public, exist_ok=True)
    return str(api.dataset_info(repo_id).sha)


def _send(
    api: HfApi, repo_id: str, head: str, prepared: Prepared, changed: Sequence[str], removed: Sequence[str]
) -> str:
    """Send files one by one, commit them, and return the commit."""
    from huggingface_hub import CommitOperationAdd, CommitOperationDelete

    additions = [CommitOperationAdd(name, prepared.folder / name) for name in changed]
    operations: list[CommitOperationAdd | CommitOperationDelete] = [*additions, *map(CommitOperationDelete, removed)]
    with _quiet(), bar(f"sending to {repo_id}", len(additions), "files") as advance:
        for addition in additions:
            # One file a request: if one fails, those before it are on the Hub and are not sent again.
            api.preupload_lfs_files(repo_id, [addition], repo_type="dataset", free_memory=False)
            advance(1)
        retry = False

        def commit() -> str:
            nonlocal retry
            if retry:
                # The first request may have made the commit, and only its answer was lost.
                newest = str(api.dataset_info(repo_id).sha)
                remote = {file.path: file for file in tree(api, repo_id, newest)} if newest != head else {}
                if remote and all(same(prepared.folder / name, remote.get(name)) for name in changed):
                    return newest
            retry = True
            return str(
                api.create_commit(
                    repo_id,
                    operations,
                    commit_message=f"Push splits by seamcurate {version('seamcurate')}",
                    repo_type="dataset",
                    parent_commit=head,
                ).oid
            )

        return _retry(commit)


def _licences(api: HfApi, recipe: Recipe) -> list[str]:
    """Return the licences of the Hub data sets whose texts a push publishes again."""
    # Pairs contain answers of the corpus; those of `augment` its questions, too.
    pairs = any(split.augment or split.format in ("preferences", "unpaired") for split in recipe.splits.values())
    licences: list[str] = []
    for source in (recipe.rows, *((recipe.corpus,) if recipe.corpus and pairs else ())):
        if hub_origin := _hub_origin(source):
            data = api.dataset_info(hub_origin[0], revision=hub_origin[1]).card_data
            licence = data.get("license") if data else None
            licences += licence if isinstance(licence, list) else [str(licence)] if licence else []
    return list(dict.fromkeys(licences))


def _hub_origin(source: Source) -> tuple[str, str] | None:
    """Return the Hub data set and the commit that a source's rows come from, by way of a store too; None for others."""
    if source.hub is not None:
        return source.hub, commit_of(source.hub, source.revision)
    origin = store_origin(source)
    return (str(origin["hub"]), str(origin["commit"])) if isinstance(origin, dict) else None


# ── reading ──────────────────────────────────────────────────────────────────────────────────────────────


class Repository(NamedTuple):
    """A published data set at one commit."""

    repo_id: str
    commit: str
    files: dict[str, RepoFile]

    def fetch(self, name: str, largest: int | None = None) -> Path:
        """Download one file of this commit, and return its local path.

        Raises:
            HubError: There is no such file, or it is larger than `largest` bytes.
        """
        if name not in self.files:
            raise HubError(f"{self.repo_id} has no {name}: it was not pushed by seamcurate, or by a newer one")
        if largest is not None and self.files[name].size > largest:
            raise HubError(f"{self.repo_id}: {name} is larger than any of seamcurate's; it is not read")
        with asking(self.repo_id), _quiet():
            api = _api(self.repo_id)
            return Path(api.hf_hub_download(self.repo_id, name, repo_type="dataset", revision=self.commit))

    def facts(self) -> dict[str, JsonValue]:
        """Read the facts of the data set; see `publish.facts`.

        Raises:
            HubError: There are no facts, or a newer seamcurate wrote them.
        """
        file = self.fetch(FACTS, _LARGEST_FACTS)
        try:
            run_facts = json.loads(file.read_text(encoding="utf-8"))
        except (ValueError, RecursionError) as error:
            raise HubError(f"{self.repo_id}: {FACTS} is not readable as JSON") from error
        if not isinstance(run_facts, dict) or run_facts.get("format") != facts.FORMAT:
            raise HubError(f"{self.repo_id}: {FACTS} was written by a newer seamcurate; upgrade yours")
        return run_facts


def repository(repo_id: str, revision: str | None = None) -> Repository:
    """Return a data set of the Hub at the commit that its revision names now.

    Raises:
        HubError: There is no such data set, or the Hub does not answer.
    """
    with asking(repo_id):
        api = _api(repo_id)
        commit = str(api.dataset_info(repo_id, revision=revision).sha)
        return Repository(repo_id, commit, {file.path: file for file in tree(api, repo_id, commit)})


def tree(api: HfApi, repo_id: str, commit: str) -> Iterator[RepoFile]:
    """Yield every file of a commit."""
    from huggingface_hub.hf_api import RepoFile

    for entry in api.list_repo_tree(repo_id, recursive=True, revision=commit, repo_type="dataset"):
        if isinstance(entry, RepoFile):
            yield entry


def same(file: Path, remote: RepoFile | None) -> bool:
    """Return whether a local file has the content of a file on the Hub, by size and hash."""
    if remote is None or file.stat().st_size != remote.size:
        return False
    # The Hub hashes large files by SHA-256, and others by SHA-1 over git's header and the content.
    digest = hashlib.sha256() if remote.lfs else hashlib.sha1(b"blob %d\0" % remote.size, usedforsecurity=False)
    with file.open("rb") as handle:
        while block := handle.read(2**20):
            digest.update(block)
    return digest.hexdigest() == (remote.lfs.sha256 if remote.lfs else remote.blob_id)


def compared(name: str) -> bool:
    """Return whether a file of a repository is one that `reproduce` compares."""
    return _COMPARED.fullmatch(name) is not None


@contextmanager
def asking(repo_id: str, sending: bool = False) -> Iterator[None]:
    """Turn any error of huggingface_hub into a HubError of one line, without a token.

    With `sending`, the line also says that files that have arrived are not sent again.
    """
    try:
        yield
    except Exception as error:
        if isinstance(error, SeamcurateError):
            raise
        _fail(repo_id, error, sending)


def _fail(repo_id: str, error: Exception, sending: bool) -> NoReturn:
    message = _error_message(error)
    if sending and message.endswith(_RUN_AGAIN):
        message += ": what has arrived is not sent again"
    # Not chained: the original error may quote the request, and the token with it.
    raise HubError(f"{repo_id}: {message}") from None


def _error_message(error: Exception) -> str:
    for cause in _causes(error):
        kind, status = type(cause).__name__, _status(cause)
        if kind in ("RepositoryNotFoundError", "GatedRepoError"):
            return "no such data set, or no access to it; check the name, and that you are logged in (`hf auth login`)"
        if kind == "RevisionNotFoundError":
            return "it has no such revision; name a commit, a tag or a branch"
        if kind == "OfflineModeIsEnabled":
            return "HF_HUB_OFFLINE forbids asking the Hub; unset it"
        if status in _ANSWERS:
            # A login has no effect while the variable is set.
            own = "set another HF_TOKEN, which stands before any login" if os.environ.get("HF_TOKEN") else ""
            return _ANSWERS[status].format(login=own or "log in again with `hf auth login`")
        if status is not None and status >= 500:
            return f"the Hub fails (status {status}); run the same command later"
        if status is not None:
            return f"the Hub refuses (status {status}): {_redacted(getattr(cause, 'server_message', None) or 'no reason given')}"
        if _is_broken_connection(cause):
            return "the connection to the Hub broke; check the network and run the same command again"
    return f"{type(error).__name__}: {_redacted(str(error))}"


_ANSWERS = {
    401: "the Hub does not accept the token; {login}",
    402: "the Hub asks for payment; see your account's billing page",
    403: "the token may not write there; take one with write access to it, and {login}",
    409: "the Hub reports a conflict; wait a little and run the same command again",
    412: "somebody else committed meanwhile; look at it, and run the same command again to push on top",
    413: "a file is larger than the Hub takes; use another format or fewer rows",
    429: "the Hub's rate limit is reached; wait some minutes and run the same command again",
}


def _redacted(text: str) -> str:
    from huggingface_hub import get_token

    token = get_token()
    return brief(text.replace(token, "…") if token else text, 200)


def _causes(error: BaseException | None) -> Iterator[BaseException]:
    while error is not None:
        yield error
        error = error.__cause__ or error.__context__


def _status(error: BaseException) -> int | None:
    status = getattr(getattr(error, "response", None), "status_code", None)
    return status if isinstance(status, int) else None


def _is_broken_connection(error: BaseException) -> bool:
    return isinstance(error, ConnectionError | TimeoutError) or type(error).__module__.split(".")[0] in _TRANSPORTS


def _retry(work: Callable[[], T]) -> T:
    """Run a request that huggingface_hub does not retry. Wait longer each time, and at least as long as the Hub asks."""
    for wait in _WAITS:
        try:
            return work()
        except Exception as error:
            statuses = (_status(cause) for cause in _causes(error))
            status = next((status for status in statuses if status is not None), None)
            transient = status in _TRANSIENT if status is not None else any(map(_is_broken_connection, _causes(error)))
            seconds = max(wait, _wait_asked_for(error))
            if not transient or seconds > _LONGEST_WAIT:
                raise
            note(f"the Hub {f'answered {status}' if status else 'hung up'}; trying again in {seconds:.0f} s")
        time.sleep(seconds)
    return work()


def _wait_asked_for(error: Exception) -> float:
    """Return the seconds that the Hub's answer asks to wait; 0 if it asks for none."""
    for cause in _causes(error):
        headers = getattr(getattr(cause, "response", None), "headers", None)
        if isinstance(headers, Mapping) and (seconds := connection.retry_after(headers)) is not None:
            return seconds
    return 0.0


@contextmanager
def _quiet() -> Iterator[None]:
    """Hide the progress bars of huggingface_hub, which would overwrite those of seamcurate."""
    from huggingface_hub.utils.tqdm import are_progress_bars_disabled, disable_progress_bars, enable_progress_bars

    if are_progress_bars_disabled():
        yield
        return
    disable_progress_bars()
    try:
        yield
    finally:
        enable_progress_bars()
