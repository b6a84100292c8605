"""Splits on the Hugging Face Hub: one repository with a configuration per split, a card, the recipe and the ledger.

One rule: what is to be published is first written whole beside the store, and what differs from the repository's
newest commit then travels in one commit on top of it. So a push that died is resumed by the same push, an identical
one makes no commit, and one that somebody else's commit came between is refused. A token is in no message of ours.
"""

from __future__ import annotations

import hashlib
import json
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

from seamcurate.data.formats import hub_commit
from seamcurate.data.source import Source
from seamcurate.errors import HubError, SeamcurateError
from seamcurate.progress import bar, note
from seamcurate.publish import card, facts, measures
from seamcurate.publish.export import Exported, export
from seamcurate.publish.formats import Trainer
from seamcurate.publish.snippet import Configuration
from seamcurate.run import recipe
from seamcurate.run.recipe import Recipe
from seamcurate.select import split
from seamcurate.storage import atomic
from seamcurate.storage.objects import local
from seamcurate.store.store import Store, save_json
from seamcurate.text import brief
from seamcurate.trainers import REWARD_FILE

if TYPE_CHECKING:
    from huggingface_hub import CommitOperationAdd, CommitOperationDelete, HfApi
    from huggingface_hub.hf_api import RepoFile

T = TypeVar("T")

FACTS, RECIPE = "seamcurate.json", "recipe.yaml"
_OURS = re.compile(
    r"data/[^/]+(/[^/]+)?/train-\d+-of-\d+\.parquet|ledger/[^/]+\.parquet|figures/[^/]+\.png"
    rf"|data/[^/]+/{re.escape(REWARD_FILE)}"
)
"""Files that only a push makes, and so may remove; anything else in a repository is left alone."""
_COMPARED = re.compile(r"(data|ledger)/.+\.parquet")
_WAITS = (1.0, 4.0, 15.0)
"""Seconds before a commit is tried again: huggingface_hub repeats every request but that one."""
_LONGEST_WAIT = 60.0
_LARGEST_FACTS = 2**26
_TRANSIENT = {408, 429, 500, 502, 503, 504}
_RUN_AGAIN = ("run the same command later", "run the same command again")
_TRANSPORTS = {"httpx", "httpx2", "httpcore", "requests", "urllib3"}


class Prepared(NamedTuple):
    """A repository as a push would make it, on this machine."""

    folder: Path
    card: str
    files: dict[str, int]
    """Bytes by path."""
    notes: list[str]
    """What the author should know before anybody else does."""


class Pushed(NamedTuple):
    """What a push did."""

    url: str
    commit: str
    """The newest one; the one before, where nothing had changed."""
    sent: list[str]
    removed: list[str]
    unchanged: int
    notes: list[str]


# ── preparing ────────────────────────────────────────────────────────────────────────────────────────────


def prepare(
    path: str | Path,
    store: Store,
    repo_id: str,
    trainer: Trainer = "trl",
    licences: Sequence[str] = (),
    pinned: Recipe | None = None,
) -> Prepared:
    """Write a repository into `STORE/publish`: splits, ledger, recipe, facts, figures and card. Asks no network.

    Args:
        path: The recipe's YAML file, which is published as it stands.
        store: Where it was run.
        repo_id: What the card calls it.
        trainer: Whose format the splits are written in.
        licences: The source's; the card says `unknown` without one.
        pinned: The recipe as it was run, where its sources and models stood at other commits than they do now.

    Raises:
        HubError: The repository's name is none.
        StaleError: The store does not hold what the recipe makes.
        ExportError: A split cannot be written for the trainer.
    """
    _check_name(repo_id)
    loaded, text = recipe.load(path), Path(path).read_text(encoding="utf-8")
    temporary, folder = store.open().scratch / ".publish.tmp", store.scratch / "publish"
    with store.hold():
        exports = list(export(pinned or loaded, store, trainer, temporary / "data"))
        for file in (temporary / "data").glob(f"*/{REWARD_FILE}"):
            file.write_text(_without_folders(file.read_text(encoding="utf-8")), encoding="utf-8")
        for name in ("ledger", "figures"):
            (temporary / name).mkdir()
        configurations = [_configuration(exported, loaded, temporary / "data") for exported in exports]
        splits, figures = [], {}
        for name in loaded.splits:
            shutil.copyfile(
                local(store.path / "splits" / name / "ledger.parquet"), temporary / "ledger" / f"{name}.parquet"
            )
            splits.append(measures.measure(store, name))
            if measures.draw(splits[-1], temporary / "figures" / f"{name}.png"):
                figures[name] = f"figures/{name}.png"
        known = facts.facts(store, loaded.splits, trainer, version("seamcurate"))
        (temporary / RECIPE).write_text(text, encoding="utf-8")
        for name, content in _named_files(text, Path(path).parent).items():
            (temporary / name).parent.mkdir(parents=True, exist_ok=True)
            (temporary / name).write_text(content, encoding="utf-8")
        save_json(temporary / FACTS, known)
        missing, notes = _only_here(text, Path(path).parent)
        readme = card.readme(loaded, known, splits, card.About(repo_id, licences, configurations, missing, figures))
        (temporary / "README.md").write_text(readme, encoding="utf-8")
        atomic.replace_folder(folder, temporary)
    if not figures:
        notes.append('the card has no figures: pip install "seamcurate[study]" draws them')
    if not licences:
        notes.append("the card says `license: unknown`: give --license, or take rows from a Hub data set that has one")
    return Prepared(folder, readme, _sizes(folder), notes)


def _without_folders(code: str) -> str:
    """Return a reward file that names a model's folder by its last part: where it lies on this machine is nobody's business."""
    return re.sub(r"('sentence_encoder': )'/[^']*/([^/']+)'", r"\1'\2'", code)


def _configuration(exported: Exported, loaded: Recipe, data: Path) -> Configuration:
    """Describe what an export wrote; a split that is written in several formats has a folder for each."""
    path = exported.folder.relative_to(data).parts
    form = loaded.splits[path[0]].format if len(path) == 1 else path[-1]
    shards = list(exported.folder.glob("train-*.parquet"))
    size, schema = sum(file.stat().st_size for file in shards), pq.read_schema(shards[0])
    return Configuration("-".join(path), path[0], form, "/".join(path), exported.rows, size, schema, exported.shape)


def _sizes(folder: Path) -> dict[str, int]:
    files = (file for file in sorted(folder.rglob("*")) if file.is_file())
    sizes = {str(file.relative_to(folder)): file.stat().st_size for file in files}
    # Whatever else an export lays beside its shards is for this machine.
    return {name: size for name, size in sizes.items() if not name.startswith("data/") or _OURS.fullmatch(name)}


def _named_files(text: str, folder: Path) -> dict[str, str]:
    """Read the filters and prompt templates that a recipe names, by their paths in it."""
    contents: dict[str, str] = {}
    for key, value in strings(yaml.safe_load(text)):
        if key == "filter" and split.is_file_name(value):
            contents[value.strip()] = split.read_filter(value, folder)
        elif key == "template" and (folder / value).is_file():
            contents[value] = (folder / value).read_text(encoding="utf-8")
    for name in contents:
        if escapes(name) or name in (RECIPE, FACTS, "README.md"):
            raise HubError(f"the recipe names {name!r}, which cannot be published beside it; put it into its folder")
    return contents


def strings(value: object, key: str = "") -> Iterator[tuple[str, str]]:
    """Yield every text in plain data with the key it stands under."""
    if isinstance(value, str):
        yield key, value
    elif isinstance(value, dict):
        for name, inner in value.items():
            yield from strings(inner, str(name))
    elif isinstance(value, list):
        for inner in value:
            yield from strings(inner, key)


def escapes(name: str) -> bool:
    """Tell whether a path leads out of the folder it is taken from, as an address on object storage does."""
    parts = name.replace("\\", "/").split("/")
    # Elsewhere by address too: file:///x, s3://x, cache::x, C:/x.
    return name.startswith(("/", "\\", "~")) or ".." in parts or bool(re.match(r"[A-Za-z][\w+.-]*:[/\\:]", name))


def _only_here(text: str, folder: Path) -> tuple[list[str], list[str]]:
    """Name the local rows and models of a recipe, and what its author should know of them."""
    kinds = {"parquet", "jsonl", "csv", "arrow", "store", "wordnet", "antonyms", "vectors"}
    models = {"causal_lm", "sequence_classifier", "sentence_encoder", "masked_model"}
    lacking, notes = [], []
    if re.search(r"\btrust_remote_code['\"]?\s*:\s*(true|yes|on)\b", text, re.IGNORECASE):
        notes.append("the recipe runs a model's own code (trust_remote_code): `reproduce` will refuse it")
    for key, value in strings(yaml.safe_load(text)):
        if key in kinds or (key in models and (escapes(value) or (folder / value).is_dir())):
            lacking.append(value)
        if key != "filter" and escapes(value) and "://" not in value:
            notes.append(
                f"the recipe names {value}, outside its folder: nobody else can reproduce it, and the path is published"
            )
    return list(dict.fromkeys(lacking)), notes


# ── pushing ──────────────────────────────────────────────────────────────────────────────────────────────


def push(
    path: str | Path,
    store: Store,
    repo_id: str,
    trainer: Trainer = "trl",
    public: bool = False,
    licences: Sequence[str] = (),
) -> Pushed:
    """Publish a recipe's splits as a data set on the Hub; what is there already does not travel again.

    Args:
        path: The recipe's YAML file.
        store: Where it was run.
        repo_id: `owner/name`; made, private unless `public`, where it does not exist.
        trainer: Whose format the splits are written in.
        public: Allow everybody to see it.
        licences: Instead of those of the Hub data sets that rows and corpus come from.

    Raises:
        HubError: No token, no right, no connection, a conflict, a limit; the message says what to do.

    Example:
        >>> from seamcurate import Store, push
        >>> push("recipe.yaml", Store("my-store"), "my-org/my-prompts").url  # doctest: +SKIP
        'https://huggingface.co/datasets/my-org/my-prompts'
    """
    with asking(repo_id, sending=True):
        api = _api(repo_id, writing=True)
        newest = _newest(api, repo_id, public)
        carried = licences or _licences(api, recipe.load(path))
    prepared = prepare(path, store, repo_id, trainer, carried)
    with asking(repo_id, sending=True):
        head = newest or _retry(lambda: _create(api, repo_id, public))
        remote = {file.path: file for file in tree(api, repo_id, head)}
        changed = [name for name in prepared.files if not same(prepared.folder / name, remote.get(name))]
        removed = [name for name in remote if _OURS.fullmatch(name) and name not in prepared.files]
        if changed or removed:
            head = _send(api, repo_id, head, prepared, changed, removed)
    url = f"{api.endpoint}/datasets/{repo_id}"
    return Pushed(url, head, changed, removed, len(prepared.files) - len(changed), prepared.notes)


def _api(repo_id: str, writing: bool = False) -> HfApi:
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
    """Return the repository's newest commit; None where there is no repository."""
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
    """Send files one by one, then commit them; returns the commit."""
    from huggingface_hub import CommitOperationAdd, CommitOperationDelete

    additions = [CommitOperationAdd(name, prepared.folder / name) for name in changed]
    operations: list[CommitOperationAdd | CommitOperationDelete] = [*additions, *map(CommitOperationDelete, removed)]
    with _quiet(), bar(f"sending to {repo_id}", len(additions), "files") as advance:
        for addition in additions:
            # One at a time, so that what has arrived stays so whatever becomes of the next.
            api.preupload_lfs_files(repo_id, [addition], repo_type="dataset", free_memory=False)
            advance(1)
        tried = False

        def commit() -> str:
            nonlocal tried
            if tried:
                # The commit may have been made, and only its answer lost.
                newest = str(api.dataset_info(repo_id).sha)
                remote = {file.path: file for file in tree(api, repo_id, newest)} if newest != head else {}
                if remote and all(same(prepared.folder / name, remote.get(name)) for name in changed):
                    return newest
            tried = True
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


def _licences(api: HfApi, loaded: Recipe) -> list[str]:
    """Return the licences of the Hub data sets whose texts a push carries on."""
    pairs = any(chosen.format in ("preferences", "unpaired") for chosen in loaded.splits.values())
    licences: list[str] = []
    for source in (loaded.rows, *((loaded.corpus,) if loaded.corpus and pairs else ())):
        if isinstance(source, Source) and source.hub is not None:
            data = api.dataset_info(source.hub, revision=hub_commit(source.hub, source.revision)).card_data
            licence = data.get("license") if data else None
            licences += licence if isinstance(licence, list) else [str(licence)] if licence else []
    return list(dict.fromkeys(licences))


# ── asking ───────────────────────────────────────────────────────────────────────────────────────────────


class Repository(NamedTuple):
    """A published data set at one commit."""

    repo_id: str
    commit: str
    files: dict[str, RepoFile]

    def fetch(self, name: str, largest: int | None = None) -> Path:
        """Download one file, at this commit.

        Raises:
            HubError: It is not there, or larger than `largest` bytes.
        """
        if name not in self.files:
            raise HubError(f"{self.repo_id} has no {name}: it was not pushed by seamcurate, or by a newer one")
        if largest is not None and self.files[name].size > largest:
            raise HubError(f"{self.repo_id}: {name} is larger than any of seamcurate's; it is not read")
        with asking(self.repo_id), _quiet():
            api = _api(self.repo_id)
            return Path(api.hf_hub_download(self.repo_id, name, repo_type="dataset", revision=self.commit))

    def facts(self) -> dict[str, JsonValue]:
        """Read what decided the data set; see `publish.facts`.

        Raises:
            HubError: There are none, or only a newer seamcurate can read them.
        """
        file = self.fetch(FACTS, _LARGEST_FACTS)
        try:
            known = json.loads(file.read_text(encoding="utf-8"))
        except (ValueError, RecursionError) as error:
            raise HubError(f"{self.repo_id}: {FACTS} is not readable as JSON") from error
        if not isinstance(known, dict) or known.get("format") != facts.FORMAT:
            raise HubError(f"{self.repo_id}: {FACTS} was written by a newer seamcurate; upgrade yours")
        return known


def repository(repo_id: str, revision: str | None = None) -> Repository:
    """Find a data set on the Hub and pin it to the commit that its revision stands for now.

    Raises:
        HubError: It is not there, or the Hub does not answer.
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
    """Tell whether a file here has the content that the Hub names by its hash."""
    if remote is None or file.stat().st_size != remote.size:
        return False
    # The Hub hashes large files by SHA-256, and others as git does.
    content = hashlib.sha256() if remote.lfs else hashlib.sha1(b"blob %d\0" % remote.size, usedforsecurity=False)
    with file.open("rb") as handle:
        while block := handle.read(2**20):
            content.update(block)
    return content.hexdigest() == (remote.lfs.sha256 if remote.lfs else remote.blob_id)


def compared(name: str) -> bool:
    """Tell whether a file of a repository is what a second run must make again."""
    return _COMPARED.fullmatch(name) is not None


@contextmanager
def asking(repo_id: str, sending: bool = False) -> Iterator[None]:
    """Turn whatever the client raises into one line without a token in it.

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
    # Not chained: a client's own message may quote the request, and so the token.
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
            return _ANSWERS[status]
        if status is not None and status >= 500:
            return f"the Hub fails (status {status}); run the same command later"
        if status is not None:
            return f"the Hub refuses (status {status}): {_redacted(getattr(cause, 'server_message', None) or 'no reason given')}"
        if _is_broken_connection(cause):
            return "the connection to the Hub broke; check the network and run the same command again"
    return f"{type(error).__name__}: {_redacted(str(error))}"


_ANSWERS = {
    401: "the Hub does not accept the token; log in again with `hf auth login`",
    402: "the Hub asks for payment; see your account's billing page",
    403: "the token may not write there; take one with write access to it, by `hf auth login`",
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
    """Do what huggingface_hub does not repeat; wait as long as the Hub says, or longer each time."""
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
    """Return the seconds that the Hub's answer asks to wait; 0 where it asks for none."""
    for cause in _causes(error):
        headers = getattr(getattr(cause, "response", None), "headers", None)
        seconds = str(headers.get("retry-after", "")) if isinstance(headers, Mapping) else ""
        if seconds.isdigit():
            return float(seconds)
    return 0.0


@contextmanager
def _quiet() -> Iterator[None]:
    """Keep the client's own bars away from ours."""
    from huggingface_hub.utils.tqdm import are_progress_bars_disabled, disable_progress_bars, enable_progress_bars

    if are_progress_bars_disabled():
        yield
        return
    disable_progress_bars()
    try:
        yield
    finally:
        enable_progress_bars()
