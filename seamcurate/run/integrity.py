"""Integrity of a store: every file is checked against its checksum, and the files against each other.

One rule: each problem names a file and what to do about it. A run looks for problems first, removes the files that it can
make anew, and makes them as it makes any missing file. Nothing was computed from them, since every read is verified.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Collection, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pyarrow as pa

from seamcurate import threads as limits
from seamcurate.errors import DamagedError
from seamcurate.models import calls
from seamcurate.progress import note
from seamcurate.run import agreement
from seamcurate.run.recipe import Recipe
from seamcurate.select import split
from seamcurate.storage import objects, shard
from seamcurate.storage.objects import ObjectPath, Place
from seamcurate.store.folder import (
    filename,
    load_json,
    numbers,
    own_record,
    record_file,
    shard_fingerprints,
    step_file,
    step_record,
)
from seamcurate.store.store import Store
from seamcurate.text import counted

_STRAY = "is no file of the store, and is not read"
_LINK = "put the file itself in its place, or delete the link"
_AGAIN = "run its recipe again to make it anew"
_SOURCE = "run its recipe again: it is restored if the source still gives the same bytes; else put a copy of it back"
_THERE = "delete it there and run its recipe again"
_SOURCE_THERE = "put a copy of it back, or delete it and store.json there and run its recipe again"


class Problem(NamedTuple):
    """One thing that is wrong with a store."""

    path: Place
    wrong: str
    hint: str
    doomed: bool = False
    """Whether a run may remove the file to make it anew."""

    def __str__(self) -> str:
        return f"{self.path} {self.wrong}; {self.hint}"


class CheckResult(NamedTuple):
    """The result of a check: problems, and a summary in one line."""

    findings: list[Problem]
    """What is wrong: a file, in what way, and what to do; empty where nothing is."""
    summary: str
    """Files, megabytes and the verdict, in one line."""


def check(store: Store, recipe: Recipe | None = None) -> CheckResult:
    """Verify a store, its corpus and its bought answers from end to end, reading every file once.

    These are checked:

    Every shard against its checksum and its columns' fingerprint; rows and rejected rows against the ranges they were read
    from; columns and ledgers against the rows; what steps prepared, and JSON files, against their hashes; answers
    against theirs; which columns and splits are out of date; and, given a recipe, whether the store holds what it makes.

    A store on object storage is downloaded, past the local copies, and checked as a folder.

    Args:
        store: The store.
        recipe: The recipe that the store is compared with, if any.

    Returns:
        The problems (`findings`, empty for a whole store), each with a file, what is wrong and what to do, and a summary.

    Raises:
        StoreError: There is no store, or it cannot be read, or the disk has no room to download it.

    Example:
        >>> import pathlib, tempfile
        >>> import pyarrow as pa, pyarrow.parquet as pq
        >>> from seamcurate import FakeModel, Recipe, Reward, Source, Store, check, run_local
        >>> folder = pathlib.Path(tempfile.mkdtemp())
        >>> pq.write_table(pa.table({"prompt": ["2 + 2?"], "response": ["4"]}), folder / "rows.parquet")
        >>> source = Source(parquet=str(folder / "rows.parquet"), response="response")
        >>> report = run_local(Recipe(rows=source, steps=[Reward(reward=FakeModel())]), folder / "store")
        >>> check(Store(folder / "store")).findings
        []
        >>> shard = folder / "store" / "columns" / "reward" / "00000.parquet"
        >>> _ = shard.write_bytes(shard.read_bytes()[:-1])
        >>> [problem.path.name for problem in check(Store(folder / "store")).findings]
        ['00000.parquet']
    """
    if not isinstance(store.path, Path):
        if not (store.path / "store.json").is_file():
            store.open()
        with objects.downloaded(store.path) as copy:
            _drop_unlisted(copy)
            return _of_objects(check(Store(copy), recipe), copy, store.path)
    findings = [*_record(store)]
    if not findings:
        findings = _corpus(store.open())
        findings += _whole(store, findings)
        # Only readable records say which steps bought answers.
        if not _unknown(findings):
            findings += _answers(store)
            if recipe is not None:
                findings += _against_recipe(store, recipe)
    files = [file for file in _at(store).rglob("*") if file.is_file() and file.name != ".lock"]
    size = sum(file.stat().st_size for file in files)
    verdict = counted(len(findings), "finding") if findings else "whole"
    return CheckResult(findings, f"{store.path}: {counted(len(files), 'file')}, {size / 1e6:,.1f} MB: {verdict}")


def _against_recipe(store: Store, recipe: Recipe) -> Iterator[Problem]:
    for text, hint in agreement.differences(recipe, store):
        yield Problem(store.path, f"does not hold what the recipe makes: {text}", hint)


def _corpus(store: Store) -> list[Problem]:
    corpus = store.corpus_store
    if corpus is None:
        return []
    if not (corpus.path / "store.json").is_file():
        return [Problem(corpus.path / "store.json", "is missing, and with it the store's corpus", _AGAIN)]
    if not isinstance(corpus.path, Path):
        return check(corpus).findings
    return [*_record(corpus)] or [*_whole(corpus, [])]


def _drop_unlisted(copy: Path) -> None:
    """Remove files of prepared folders that no list names: a killed run put them, and the next run puts them again."""
    for folder in [path for path in copy.rglob("*shared") if path.parent.parent.name == "columns"]:
        if not (folder / objects.LISTED).exists():
            shutil.rmtree(folder)
            continue
        listed_names = objects.read_list(folder)
        for file in [path for path in folder.rglob("*") if path.is_file() and path.name != objects.LISTED]:
            if str(file.relative_to(folder)) not in listed_names:
                file.unlink()


def _of_objects(result: CheckResult, copy: Path, store_path: ObjectPath) -> CheckResult:
    """Return a downloaded copy's problems as those of the objects, which a run neither checks nor restores."""
    findings = []
    for path, wrong, hint, _ in result.findings:
        location, inside = path, isinstance(path, Path) and path.is_relative_to(copy)
        if inside and isinstance(path, Path):
            location = store_path / str(path.relative_to(copy))
        if inside and hint == _SOURCE:
            hint = _SOURCE_THERE
        elif inside and hint == _AGAIN and path.exists():
            hint = _THERE
        findings.append(
            Problem(location, wrong.replace(str(copy), str(store_path)), hint.replace(str(copy), str(store_path)))
        )
    return CheckResult(findings, result.summary.replace(str(copy), str(store_path)))


def repair(store: Store, steps: Collection[str], splits: Collection[str] = ()) -> None:
    """Remove damaged files of these steps' columns and splits, and print a line for each, so that a run makes them anew.

    A store on object storage is left alone: all of it would have to be downloaded, and each read verifies its shard.

    Raises:
        DamagedError: A shard of the rows is damaged, which only the source can restore.
    """
    if not isinstance(store.path, Path):
        return
    for finding in _rows(store):
        raise DamagedError(str(finding))
    problems = [problem for name in sorted(steps) for problem in _columns(store, _at(store) / "columns" / name)]
    problems += [problem for name in sorted(splits) for problem in _split(store, _at(store) / "splits" / name)]
    for damage in problems:
        if damage.doomed and isinstance(damage.path, Path):
            _remove(damage.path)
            note(f"{damage.path} {damage.wrong}: it is made anew")


def repair_record(store: Store) -> None:
    """Remove a damaged store.json: the run compares the rows with their source and writes it anew."""
    for problem in _record(store) if isinstance(store.path, Path) else ():
        _remove(_at(store) / "store.json")
        note(f"{problem.path} {problem.wrong}: it is made anew")


def damaged_rows(store: Store) -> dict[Path, str]:
    """Return the damaged or missing shards of rows and rejected rows, each with what is wrong."""
    if not isinstance(store.path, Path):
        return {}
    return {
        finding.path: f"{finding.path} {finding.wrong}" for finding in _rows(store) if isinstance(finding.path, Path)
    }


def _at(store: Store) -> Path:
    assert isinstance(store.path, Path)
    return store.path


# ── files against their hashes ───────────────────────────────────────────────────────────────────────────


def _record(store: Store) -> Iterator[Problem]:
    try:
        load_json(_at(store) / "store.json")
    except DamagedError as error:
        yield _problem(_at(store) / "store.json", error)


def _rows(store: Store) -> Iterator[Problem]:
    """Find shards of rows and rejected rows that are not what was read from the source."""
    recorded = store.row_checksums
    for kind in ("rows", "rejected"):
        seals, stored = recorded.get(kind, []), numbers(_at(store) / kind)
        expected = range(max(len(seals), max([*store.shards, *stored], default=-1) + 1))
        files = [_at(store) / kind / filename(number) for number in expected]
        wrong = _verified([(file, store.row_fingerprints[kind], number) for number, file in enumerate(files)])
        for number, (file, error) in enumerate(zip(files, wrong, strict=True)):
            if error is not None:
                yield _problem(file, error, _SOURCE, doomed=False)
            elif number < len(seals) and shard.footer(file).checksum != seals[number]:
                yield Problem(file, "is not the one that was read from the source", _SOURCE)


def _columns(store: Store, folder: Path) -> Iterator[Problem]:
    """Find damaged and missing files of a step's columns."""
    stored, rows, file = numbers(folder), store.shards, folder / record_file(folder, "step.json").name
    try:
        record = own_record(file)
    except DamagedError as error:
        yield _problem(file, error)
        return
    if not record:
        if shard_fingerprints(folder) and not file.exists():
            yield Problem(file, "is missing", "run its recipe again: its shards are taken over where they fit")
        return
    fingerprint = str(record["fingerprint"])
    if (
        len(stored) > 1
        and (fingerprints := shard_fingerprints(folder))
        and fingerprint not in fingerprints
        and len(fingerprints) == 1
    ):
        yield Problem(file, "belongs to other columns than the shards beside it", _AGAIN, doomed=True)
        return
    files = [folder / filename(number) for number in stored]
    for number, path, wrong in zip(
        stored, files, _verified([*zip(files, [fingerprint] * len(files), stored, strict=True)]), strict=True
    ):
        if wrong is not None:
            yield _problem(path, wrong)
        elif number not in rows:
            yield Problem(path, "belongs to no shard of the rows", _AGAIN, doomed=True)
    shared, facts = folder / step_file(folder, "shared").name, folder / step_file(folder, "facts.json").name
    if shared.exists():
        try:
            shard.verify_folder(shared)
        except DamagedError as error:
            yield _problem(shared, error)
    elif stored:
        yield Problem(shared, "is missing", _AGAIN)
    try:
        store.facts(folder.name)
    except DamagedError as error:
        yield _problem(facts, error)
        return
    missing, has_facts = sorted({*rows} - {*stored}), facts.exists()
    # Facts are of finished columns alone.
    if has_facts and missing:
        yield Problem(folder / filename(missing[0]), "is missing", _AGAIN)
    if stored and not missing and not has_facts:
        yield Problem(facts, "is missing", _AGAIN)


def _split(store: Store, folder: Path) -> Iterator[Problem]:
    if not folder.exists():
        return
    try:
        record = store.split_record(folder.name)
        if not record:
            raise DamagedError(f"{folder}/_split.json is missing")
        shard.verify(folder / "ledger.parquet", str(record["fingerprint"]), 0)
    except DamagedError as error:
        yield _problem(folder, error)


def _verified(jobs: list[tuple[Path, str, int]]) -> list[DamagedError | None]:
    """Verify shards in parallel; return the error of each, or None."""

    def wrong(job: tuple[Path, str, int]) -> DamagedError | None:
        try:
            shard.verify(*job)
        except DamagedError as error:
            return error
        return None

    with ThreadPoolExecutor(limits.available()) as pool:
        return list(pool.map(wrong, jobs))


def _problem(path: Path, error: DamagedError, hint: str = _AGAIN, doomed: bool = True) -> Problem:
    # An error is a sentence of its own: what is damaged, how, and what to do.
    wrong = str(error).partition("; ")[0].removeprefix(str(path)).strip(" /")
    return Problem(path, wrong, hint, doomed)


def _remove(path: Path) -> None:
    # Not atomic: if the process is killed midway, the rest of the folder is found damaged the next time.
    shutil.rmtree(path) if path.is_dir() and not path.is_symlink() else path.unlink()


# ── files against each other ─────────────────────────────────────────────────────────────────────────────


def _unknown(findings: list[Problem]) -> bool:
    """Tell whether a problem is with the rows or a record, so that other files cannot be compared with them."""
    return any(
        problem.path.name in ("store.json", "_step.json", "step.json") or problem.path.parent.name == "rows"
        for problem in findings
        if problem.wrong != _STRAY
    )


def _whole(store: Store, corpus: list[Problem]) -> Iterator[Problem]:
    """Find all problems of one store, given those of its corpus."""
    rows = [*_rows(store)]
    yield from rows
    yield from _strays(store)
    folders = sorted(path for path in (_at(store) / "columns").glob("[!.]*") if path.is_dir())
    damaged = [finding for folder in folders for finding in _columns(store, folder)]
    yield from damaged
    splits = sorted(path for path in (_at(store) / "splits").glob("[!.]*") if _is_split(path))
    broken = [finding for folder in splits for finding in _split(store, folder)]
    yield from broken
    bad = {finding.path for finding in (*rows, *damaged, *broken)}
    if rows or _unknown([*corpus, *damaged]):
        return
    if store.about.get("complete") and len(store.shards) != store.about.get("shards"):
        yield Problem(_at(store) / "rows", f"has {len(store.shards)} shards of {store.about.get('shards')}", _SOURCE)
    yield from _ranges(store)
    yield from _against_rows(store, bad)
    for name, reason in store.stale().items():
        yield Problem(_at(store) / "columns" / name, f"is out of date: {reason}", "run its recipe with --replace")
    if not broken and not damaged:
        for name, reason in split.stale(store).items():
            yield Problem(_at(store) / "splits" / name, f"is out of date: {reason}", "run its recipe again")
    for folder in splits:
        if folder not in bad:
            yield from _ledger(store, folder)


def _strays(store: Store) -> Iterator[Problem]:
    """Find files in a store's folders that are not the store's: copies of a sync client, a desktop's files, links."""
    root = _at(store)
    strays = [file for kind in ("rows", "rejected") for file in _others(root / kind, set())]
    for folder in _filled(root / "columns"):
        written = {
            record_file(folder, "step.json").name,
            *(step_file(folder, n).name for n in ("shared", "facts.json")),
        }
        with suppress(DamagedError):
            if not folder.is_dir() or (
                not step_record(folder) and not (shard_fingerprints(folder) and not _recorded(folder))
            ):
                strays.append(folder)
                continue
        strays += _others(folder, written)
    for folder in _filled(root / "splits"):
        if not _is_split(folder):
            strays.append(folder)
        else:
            strays += _others(folder, {record_file(folder, "split.json").name, "ledger.parquet"})
    for stray in strays:
        link = stray.is_symlink() and not stray.is_dir()
        yield Problem(stray, _STRAY, _LINK if link else "move it elsewhere, or delete it")


def _entries(folder: Path) -> list[Path]:
    """List a folder's files and folders, without temporary ones of a running or killed run."""
    entries = sorted(folder.iterdir()) if folder.is_dir() else []
    return [path for path in entries if not (path.name.startswith(".") and path.suffix == ".tmp")]


def _filled(folder: Path) -> list[Path]:
    """List a folder's files and folders, without the empty folders that a killed run leaves."""
    return [path for path in _entries(folder) if not path.is_dir() or _entries(path)]


def _others(folder: Path, written: Collection[str]) -> list[Path]:
    """List files in a folder of shards that are neither shards nor `written` beside them."""
    shard_names = {filename(number) for number in numbers(folder)}
    return [path for path in _entries(folder) if path.name not in shard_names and path.name not in written]


def _recorded(folder: Path) -> bool:
    return record_file(folder, "step.json").exists()


def _is_split(folder: Path) -> bool:
    """Tell whether a folder is a split's, damaged or not."""
    if not folder.is_dir():
        return False
    record = record_file(folder, "split.json")
    try:
        return bool(own_record(record)) or (not record.exists() and (folder / "ledger.parquet").exists())
    except DamagedError:
        return True


def _ranges(store: Store) -> Iterator[Problem]:
    """Find shards whose rows and rejected rows are not one range of the source."""
    # A run that failed before its first row recorded no shard size, and wrote no shard.
    size = int(str(store.about.get("shard_rows", 0)))
    for number in store.shards:
        file = _at(store) / "rows" / filename(number)
        ids = _ids(store, "rows", number)
        all_ids = np.sort(np.concatenate([ids, _ids(store, "rejected", number)]))
        if (np.diff(ids) <= 0).any() or not np.array_equal(all_ids, np.arange(len(all_ids)) + number * size):
            yield Problem(file, "and the rejected rows of that number are not one range of the source", _SOURCE)


def _ids(store: Store, kind: str, number: int) -> np.ndarray[tuple[int], np.dtype[np.int64]]:
    table = shard.read(_at(store) / kind / filename(number), store.row_fingerprints[kind], number, ["row_id"])
    ids: np.ndarray[tuple[int], np.dtype[np.int64]] = table["row_id"].to_numpy()
    return ids


def _against_rows(store: Store, bad: Collection[Place]) -> Iterator[Problem]:
    """Find column shards that belong to other rows, or were computed from other inputs, than the present ones."""
    records = store.records()
    for number in store.shards:
        ids = store.table(number, ["row_id"])["row_id"]
        for folder, record in records.items():
            file = _at(store) / "columns" / folder / filename(number)
            if file in bad or not file.exists():
                continue
            fingerprint = str(record["fingerprint"])
            if not shard.read(file, fingerprint, number, ["row_id"])["row_id"].equals(ids):
                yield Problem(file, "is of other rows than are there", "delete it and run its recipe again")
            sources: list[str] = []
            # A damaged shard is reported already.
            with suppress(DamagedError):
                sources = store.changed_inputs(file)
            for source in sources:
                yield Problem(file, f"was computed from another shard of {source} than is there", _AGAIN)


def _ledger(store: Store, folder: Path) -> Iterator[Problem]:
    record, file = store.split_record(folder.name), folder / "ledger.parquet"
    ledger = shard.read(file, str(record["fingerprint"]), 0)
    ids = pa.chunked_array([chunk for n in store.shards for chunk in store.table(n, ["row_id"])["row_id"].chunks])
    if not ledger["row_id"].equals(ids):
        yield Problem(file, "is of other rows than are there", _AGAIN)
    counts = (ledger["kept"].to_numpy().sum(), ledger["split"].unique().to_pylist())
    if counts != (record["kept"], [folder.name]):
        yield Problem(
            file, "is not the ledger that its _split.json tells of", f"delete {folder} and run its recipe again"
        )


def _answers(store: Store) -> Iterator[Problem]:
    """Find problems of the bought answers."""
    file = _at(store) / "calls" / "calls.sqlite"
    count = 0
    # Beside the bought answers, a policy's own: a folder a shard.
    for folder in (file.parent, *sorted(file.parent.glob("samples/*"))):
        before = count
        if (kept := folder / file.name).exists():
            count, wrong = calls.examine(kept)
            for line in wrong:
                yield Problem(kept, line, calls.HINT)
        # On object storage, each answer is a file.
        for reply in sorted((folder / "replies").glob("*.json")):
            count += 1
            if calls.read_object(reply.read_bytes(), reply.stem) is None:
                yield Problem(reply, "is an answer that was altered", calls.HINT)
        count = count if folder == file.parent else before
    folders = [
        folder
        for folder, record in store.records().items()
        if "openai_server" in json.dumps(record["identity"]) and numbers(_at(store) / "columns" / folder)
    ]
    if folders and not count:
        yield Problem(file, f"holds no answer, and {folders[0]} was made of some", "put a copy of it back, or buy anew")
