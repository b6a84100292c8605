"""Store every answer that is bought from an endpoint, so that none is bought twice, and count what was spent.

A store has its answers in one SQLite file, `calls/calls.sqlite`, by the hash of what decides an answer: the model's name, the
messages, the parameters. An answer is on disk before anything is computed from it, so that a kill loses only the calls that
are under way. Each has a checksum: an answer that was altered is ignored, and bought again when it is asked for. On object
storage each answer is an object, `calls/replies/KEY.json`, and the SQLite file is a copy for one run.
"""

from __future__ import annotations

import hashlib
import json
import sqlite3
from collections.abc import Iterator, Sequence
from contextlib import closing, contextmanager
from contextvars import ContextVar
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import quote

from seamcurate.errors import BudgetError, StoreError
from seamcurate.models.backend import Backend
from seamcurate.models.protocols import Reply
from seamcurate.progress import note
from seamcurate.step import Work, digest
from seamcurate.storage import objects
from seamcurate.storage.objects import ObjectPath, Place
from seamcurate.text import counted

_TABLES = """
CREATE TABLE IF NOT EXISTS replies(
    key TEXT PRIMARY KEY, model TEXT, text TEXT, finish TEXT, failure TEXT, tokens_in INTEGER, tokens_out INTEGER,
    seal TEXT
) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS batches(id TEXT PRIMARY KEY, keys TEXT);
"""


HINT = "put a copy of it back, or move it away and buy anew what is asked for again"
"""What to do about a damaged file of answers."""


class Spent(NamedTuple):
    """What calls cost."""

    calls: int = 0
    """Calls that the endpoint answered; answers from earlier runs are not counted."""
    tokens_in: int = 0
    tokens_out: int = 0
    usd: float | None = 0.0
    """US dollars; None where the model has no price."""

    def plus(self, spent: Spent) -> Spent:
        """Return the sum of both."""
        usd = None if self.usd is None or spent.usd is None else self.usd + spent.usd
        return Spent(
            self.calls + spent.calls, self.tokens_in + spent.tokens_in, self.tokens_out + spent.tokens_out, usd
        )

    def minus(self, earlier: Spent) -> Spent:
        """Return what was spent since `earlier`."""
        usd = None if self.usd is None or earlier.usd is None else self.usd - earlier.usd
        return Spent(
            self.calls - earlier.calls, self.tokens_in - earlier.tokens_in, self.tokens_out - earlier.tokens_out, usd
        )

    def __str__(self) -> str:
        cost = "" if self.usd is None else f", ${self.usd:,.2f}" if self.usd >= 1 else f", ${self.usd:.4f}"
        return f"{counted(self.calls, 'call')}, {self.tokens_in:,} tokens in, {self.tokens_out:,} out{cost}"


def expected(work: Work, rows: int) -> Spent:
    """Estimate what a step's work costs over some rows: tokens from characters, dollars from the recipe's prices."""
    model = work.model
    assert isinstance(model, Backend)
    counted = model.count_tokens(["x" * 4000]) / 4000
    tokens_in, tokens_out = work.characters * rows * counted, work.answer * rows * counted
    return Spent(round(work.sequences * rows), round(tokens_in), round(tokens_out), model.price(tokens_in, tokens_out))


class Calls:
    """The answers of one store, or of this process where there is none.

    Args:
        folder: The folder with the file; None holds answers in memory.
        max_usd: The most that may be spent through this object, in US dollars.
        paid: Whether an answer must outlive a cut of power. One that costs nothing outlives the end of the process only:
            a sync of the disk an answer takes longer than a fast policy takes for it, and what is lost is drawn again.

    Attributes:
        spent: What has been spent through this object.
    """

    def __init__(self, folder: Place | None = None, max_usd: float | None = None, paid: bool = True) -> None:
        self.max_usd, self.spent, self._reserved = max_usd, Spent(), 0.0
        path = self._path = ":memory:"
        self._objects = None if folder is None or isinstance(folder, Path) else _Objects(folder)
        if self._objects is not None:
            folder = self._objects.begin()
        if isinstance(folder, Path):
            folder.mkdir(parents=True, exist_ok=True)
            path = self._path = str(folder / "calls.sqlite")
        try:
            # Each answer is committed on its own; a write-ahead log (WAL) makes that one write and, if it was paid for,
            # one sync.
            # In a notebook another thread makes the calls, while this one waits.
            self._db = sqlite3.connect(path, isolation_level=None, check_same_thread=False)
            self._db.execute("PRAGMA journal_mode = WAL")
            self._db.execute(f"PRAGMA synchronous = {'FULL' if paid else 'NORMAL'}")
            self._db.executescript(_TABLES)
            self._db.create_function("checksum", -1, _checksum, deterministic=True)
            if "seal" not in [column[1] for column in self._db.execute("PRAGMA table_info(replies)")]:
                # A file from before answers had checksums is trusted.
                self._db.executescript(f"BEGIN; ALTER TABLE replies ADD seal TEXT; {_ADD_CHECKSUMS}; COMMIT;")
        except sqlite3.Error as error:
            raise _unusable(path, error) from error

    def is_empty(self) -> bool:
        """Tell whether no answer is kept; object storage is not asked, and counts as if it had some."""
        return self._objects is None and not self._run("SELECT 1 FROM replies LIMIT 1")

    def close(self) -> None:
        """Close the file."""
        self._db.close()

    def get(self, key: str, failed: bool = False) -> Reply | None:
        """Return a stored answer, or None; failures only where `failed` says so."""
        if self._objects is not None:
            for stored in self._objects.bring(key):
                self._keep(stored)
        rows = self._run("SELECT * FROM replies WHERE key = ? AND (? OR failure IS NULL)", (key, failed))
        if not rows:
            return None
        (row,) = rows
        stored, checksum = StoredReply(*row[:-1]), row[-1]
        if checksum != _checksum(*stored):
            note(f"{self._path}: answer {key} was altered after it was written: it is bought anew")
            return None
        return Reply(stored.text, stored.finish, stored.model or "", stored.failure)

    def put(self, key: str, reply: Reply, cost: Spent) -> None:
        """Store an answer and count its cost.

        Raises:
            StoreError: The file cannot be written: going on would buy answers that cannot be stored.
        """
        self.spent = self.spent.plus(cost)
        stored = StoredReply(key, reply.model, reply.text, reply.finish, reply.failure, cost.tokens_in, cost.tokens_out)
        if self._objects is not None:
            try:
                self._objects.keep(stored)
            except StoreError as error:
                raise StoreError(f"an answer cannot be kept: {error}; nothing more is bought") from error
        self._keep(stored)

    def count(self, cost: Spent) -> None:
        """Count the cost of a reply that could not be read."""
        self.spent = self.spent.plus(cost)

    def forget_failures(self) -> None:
        """Drop the answers that failed, so that they are asked for again."""
        if self._objects is not None:
            self._objects.forget_failures()
        self._run("DELETE FROM replies WHERE failure IS NOT NULL")

    def _keep(self, stored: StoredReply) -> None:
        self._run("INSERT OR REPLACE INTO replies VALUES (?, ?, ?, ?, ?, ?, ?, ?)", (*stored, _checksum(*stored)))

    def _run(self, sql: str, values: Sequence[object] = ()) -> list[tuple[Any, ...]]:
        try:
            return self._db.execute(sql, values).fetchall()
        except sqlite3.Error as error:
            raise _unusable(self._path, error) from error

    def must_wait(self, usd: float | None) -> bool:
        """Tell whether a call fits the limit, though not beside those that are under way."""
        if self.max_usd is None or usd is None or self.spent.usd is None:
            return False
        return self.spent.usd + usd <= self.max_usd < self.spent.usd + self._reserved + usd

    @contextmanager
    def reserve(self, usd: float | None) -> Iterator[None]:
        """Reserve the most that calls may cost while they are under way.

        Raises:
            BudgetError: They might cost more than is left, or their price is unknown.
        """
        if self.max_usd is None:
            yield
            return
        if usd is None or self.spent.usd is None:
            raise BudgetError(
                "a limit in dollars needs prices: give the model usd_per_million_input and usd_per_million_output"
            )
        if self.spent.usd + self._reserved + usd > self.max_usd:
            raise BudgetError(
                f"stopped before the limit of ${self.max_usd:g}: {self.spent}; what comes next may cost up to "
                f"${usd:,.4g}; every answer is kept, run again with a higher --max-usd to go on"
            )
        self._reserved += usd
        try:
            yield
        finally:
            self._reserved -= usd

    def batches(self) -> dict[str, list[str]]:
        """Return the keys in each batch that was submitted and not yet collected, by its id."""
        if self._objects is not None:
            return self._objects.batches()
        return {batch: json.loads(keys) for batch, keys in self._run("SELECT id, keys FROM batches")}

    def submitted(self, batch: str, keys: Sequence[str]) -> None:
        """Record a batch, so that a restart polls it and does not submit it again."""
        if self._objects is not None:
            return self._objects.submitted(batch, keys)
        self._run("INSERT OR REPLACE INTO batches VALUES (?, ?)", (batch, json.dumps(list(keys))))

    def collected(self, batch: str) -> None:
        """Remove a batch whose answers are stored."""
        if self._objects is not None:
            return self._objects.collected(batch)
        self._run("DELETE FROM batches WHERE id = ?", (batch,))


_ADD_CHECKSUMS = "UPDATE replies SET seal = checksum(key, model, text, finish, failure, tokens_in, tokens_out)"


def _checksum(*values: object) -> str:
    """Return the hash of a row of `replies`; the file format calls it `seal`."""
    return hashlib.sha256(json.dumps(values).encode()).hexdigest()


def examine(file: Path) -> tuple[int, list[str]]:
    """Return how many answers a file holds and what is wrong with it; all of it is read, and nothing written.

    Args:
        file: `calls.sqlite` of a store.
    """
    # Without a log beside the file nobody writes to it, and it can be read from a read-only disk.
    mode_suffix = "" if file.with_name(f"{file.name}-wal").exists() else "&immutable=1"
    problems: list[str] = []
    count = 0
    try:
        with closing(sqlite3.connect(f"file:{quote(str(file))}?mode=ro{mode_suffix}", uri=True)) as db:
            problems += [f"is damaged: {line}" for (line,) in db.execute("PRAGMA integrity_check(3)") if line != "ok"]
            for *row, checksum in db.execute(
                "SELECT key, model, text, finish, failure, tokens_in, tokens_out, seal FROM replies"
            ):
                count += 1
                if checksum != _checksum(*row):
                    problems.append(f"holds an answer that was altered, {row[0]}")
    except sqlite3.Error as error:
        problems.append(f"cannot be read: {error}")
    return count, problems


def _unusable(path: str, error: sqlite3.Error) -> StoreError:
    """Return an error whose hint tells a disk that fails from a file that is damaged."""
    disk = isinstance(error, sqlite3.OperationalError)
    hint = "nothing more is bought: fix that and run the same again" if disk else HINT
    return StoreError(f"{path} cannot be used: {error}; {hint}")


class StoredReply(NamedTuple):
    """An answer as it is stored: a row of `replies` without its checksum."""

    key: str
    model: str | None
    text: str
    finish: str
    failure: str | None
    tokens_in: int
    tokens_out: int


def read_object(content: bytes, key: str) -> StoredReply | None:
    """Read an answer that is stored as an object; None where it was altered."""
    try:
        fields = json.loads(content)
        # An object from before answers had checksums is trusted.
        stored = StoredReply(**{name: fields[name] for name in StoredReply._fields})
        return stored if stored.key == key and fields.get("seal", _checksum(*stored)) == _checksum(*stored) else None
    except (ValueError, TypeError, KeyError, AttributeError):
        return None


class _Objects:
    """A store's answers on object storage: one object each, so that an answer is safe without waiting for others."""

    def __init__(self, folder: ObjectPath) -> None:
        self._folder = folder
        self._waiting: dict[str, ObjectPath] | None = None
        """The answers of earlier runs that this run has not asked for yet; listed at the first question."""

    def begin(self) -> Path:
        """Return an empty folder for the run's copy."""
        objects.remove_tree(self._folder.scratch)
        return self._folder.scratch

    def bring(self, key: str) -> Iterator[StoredReply]:
        """Yield an answer the first time that it is asked for, so that the copy then has it."""
        if self._waiting is None:
            # A failure and an answer to the same request have one key: the later entry, the answer, wins.
            files = [*self._folder.glob("failures/*.json"), *self._folder.glob("replies/*.json")]
            self._waiting = {file.stem: file for file in files}
        file = self._waiting.pop(key, None)
        if file is not None:
            stored = read_object(ObjectPath(file.bucket, file.key).read_bytes(), key)
            if stored is None:
                note(f"{file} was altered after it was written: it is bought anew")
            else:
                yield stored

    def keep(self, stored: StoredReply) -> None:
        """Write an answer."""
        kind = "replies" if stored.failure is None else "failures"
        (self._folder / kind / f"{stored.key}.json").write_bytes(
            json.dumps({**stored._asdict(), "seal": _checksum(*stored)}).encode()
        )
        if self._waiting is not None:
            self._waiting.pop(stored.key, None)

    def forget_failures(self) -> None:
        """Remove the answers that failed."""
        self._waiting = None
        (self._folder / "failures").remove_tree()

    def batches(self) -> dict[str, list[str]]:
        """Return the keys of each batch, by its id."""
        records = (json.loads(file.read_bytes()) for file in self._folder.glob("batches/*.json"))
        return {record["id"]: record["keys"] for record in records}

    def submitted(self, batch: str, keys: Sequence[str]) -> None:
        """Record a batch."""
        self._batch(batch).put(json.dumps({"id": batch, "keys": list(keys)}).encode())

    def collected(self, batch: str) -> None:
        """Remove a batch."""
        self._batch(batch).unlink()

    def _batch(self, batch: str) -> ObjectPath:
        return self._folder / "batches" / f"{digest(batch)}.json"


_CURRENT: ContextVar[Calls | None] = ContextVar("calls", default=None)


@contextmanager
def kept(folder: Place, max_usd: float | None = None, paid: bool = True) -> Iterator[Calls]:
    """Let every model that is loaded inside store its answers in a folder, and spend at most `max_usd` dollars; see `Calls`."""
    calls = Calls(folder, max_usd, paid)
    token = _CURRENT.set(calls)
    try:
        yield calls
    finally:
        _CURRENT.reset(token)
        calls.close()


def current() -> Calls:
    """Return where answers are stored at present: what `kept` set, else memory."""
    return _CURRENT.get() or Calls()
