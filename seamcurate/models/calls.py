"""Every answer bought from an endpoint, kept the moment it arrives and never bought twice; and what was spent.

Answers lie in one SQLite file of a store, `calls/calls.sqlite`, by the hash of what decides them: the model's name, the
messages, the parameters. An answer is on disk before anything is made of it, so that a kill costs only the calls in
the air. Each carries its hash: one that was altered since is taken for none, and bought anew if it is asked for.
On object storage each is an object, `calls/replies/KEY.json`, and the file is a copy for one run.
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


CURE = "put a copy of it back, or move it away and buy anew what is asked for again"


class Spent(NamedTuple):
    """What calls took."""

    calls: int = 0
    """Answered by the endpoint; those that were kept from before are not counted."""
    tokens_in: int = 0
    tokens_out: int = 0
    usd: float | None = 0.0
    """None where the model has no price."""

    def plus(self, spent: Spent) -> Spent:
        """Add up."""
        usd = None if self.usd is None or spent.usd is None else self.usd + spent.usd
        return Spent(
            self.calls + spent.calls, self.tokens_in + spent.tokens_in, self.tokens_out + spent.tokens_out, usd
        )

    def minus(self, earlier: Spent) -> Spent:
        """Take what was spent before away."""
        usd = None if self.usd is None or earlier.usd is None else self.usd - earlier.usd
        return Spent(
            self.calls - earlier.calls, self.tokens_in - earlier.tokens_in, self.tokens_out - earlier.tokens_out, usd
        )

    def __str__(self) -> str:
        cost = "" if self.usd is None else f", ${self.usd:,.2f}" if self.usd >= 1 else f", ${self.usd:.4f}"
        return f"{counted(self.calls, 'call')}, {self.tokens_in:,} tokens in, {self.tokens_out:,} out{cost}"


def expected(work: Work, rows: int) -> Spent:
    """Estimate what a step's work comes to over some rows: tokens by characters, dollars by the recipe's prices."""
    model = work.model
    assert isinstance(model, Backend)
    counted = model.count_tokens(["x" * 4000]) / 4000
    tokens_in, tokens_out = work.characters * rows * counted, work.answer * rows * counted
    return Spent(round(work.sequences * rows), round(tokens_in), round(tokens_out), model.price(tokens_in, tokens_out))


class Calls:
    """The answers of one store, or of this process where there is none.

    Args:
        folder: Where the file lies; None keeps answers in memory.
        max_usd: What may be spent through this object.

    Attributes:
        spent: What was.
    """

    def __init__(self, folder: Place | None = None, max_usd: float | None = None) -> None:
        self.max_usd, self.spent, self._reserved = max_usd, Spent(), 0.0
        path = self._path = ":memory:"
        self._objects = None if folder is None or isinstance(folder, Path) else _Objects(folder)
        if self._objects is not None:
            folder = self._objects.begin()
        if isinstance(folder, Path):
            folder.mkdir(parents=True, exist_ok=True)
            path = self._path = str(folder / "calls.sqlite")
        try:
            # Each answer is committed on its own; WAL makes that one write and one sync.
            # In a notebook calls are made in another thread, while this one waits for it.
            self._db = sqlite3.connect(path, isolation_level=None, check_same_thread=False)
            self._db.execute("PRAGMA journal_mode = WAL")
            self._db.execute("PRAGMA synchronous = FULL")
            self._db.executescript(_TABLES)
            self._db.create_function("seal", -1, _seal, deterministic=True)
            if "seal" not in [column[1] for column in self._db.execute("PRAGMA table_info(replies)")]:
                # What was kept before answers had one is believed.
                self._db.executescript(f"BEGIN; ALTER TABLE replies ADD seal TEXT; {_SEAL_ALL}; COMMIT;")
        except sqlite3.Error as error:
            raise _unusable(path, error) from error

    def close(self) -> None:
        """Close the file."""
        self._db.close()

    def get(self, key: str, failed: bool = False) -> Reply | None:
        """Return a kept answer; one that failed only if asked for."""
        if self._objects is not None:
            for line in self._objects.bring(key):
                self._keep(line)
        rows = self._run("SELECT * FROM replies WHERE key = ? AND (? OR failure IS NULL)", (key, failed))
        if not rows:
            return None
        (row,) = rows
        line, seal = Line(*row[:-1]), row[-1]
        if seal != _seal(*line):
            note(f"{self._path}: answer {key} was altered after it was written: it is bought anew")
            return None
        return Reply(line.text, line.finish, line.model or "", line.failure)

    def put(self, key: str, reply: Reply, cost: Spent) -> None:
        """Keep an answer and count what it took.

        Raises:
            StoreError: The file cannot be written: going on would mean to buy what cannot be kept.
        """
        self.spent = self.spent.plus(cost)
        line = Line(key, reply.model, reply.text, reply.finish, reply.failure, cost.tokens_in, cost.tokens_out)
        if self._objects is not None:
            try:
                self._objects.keep(line)
            except StoreError as error:
                raise StoreError(f"an answer cannot be kept: {error}; nothing more is bought") from error
        self._keep(line)

    def count(self, cost: Spent) -> None:
        """Count what a reply took that nothing could be read from."""
        self.spent = self.spent.plus(cost)

    def forget_failures(self) -> None:
        """Drop the answers that failed, so that they are asked for again."""
        if self._objects is not None:
            self._objects.forget_failures()
        self._run("DELETE FROM replies WHERE failure IS NOT NULL")

    def _keep(self, line: Line) -> None:
        self._run("INSERT OR REPLACE INTO replies VALUES (?, ?, ?, ?, ?, ?, ?, ?)", (*line, _seal(*line)))

    def _run(self, sql: str, values: Sequence[object] = ()) -> list[tuple[Any, ...]]:
        try:
            return self._db.execute(sql, values).fetchall()
        except sqlite3.Error as error:
            raise _unusable(self._path, error) from error

    def must_wait(self, usd: float | None) -> bool:
        """Tell whether a call fits the limit, but not beside those in the air."""
        if self.max_usd is None or usd is None or self.spent.usd is None:
            return False
        return self.spent.usd + usd <= self.max_usd < self.spent.usd + self._reserved + usd

    @contextmanager
    def reserve(self, usd: float | None) -> Iterator[None]:
        """Hold back what calls may cost at most while they are made.

        Raises:
            BudgetError: It might be more than is left, or nobody knows what it costs.
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
        """Note a batch, so that a restart polls it and does not submit it again."""
        if self._objects is not None:
            return self._objects.submitted(batch, keys)
        self._run("INSERT OR REPLACE INTO batches VALUES (?, ?)", (batch, json.dumps(list(keys))))

    def collected(self, batch: str) -> None:
        """Take a batch off the list."""
        if self._objects is not None:
            return self._objects.collected(batch)
        self._run("DELETE FROM batches WHERE id = ?", (batch,))


_SEAL_ALL = "UPDATE replies SET seal = seal(key, model, text, finish, failure, tokens_in, tokens_out)"


def _seal(*values: object) -> str:
    """Hash a row of `replies`."""
    return hashlib.sha256(json.dumps(values).encode()).hexdigest()


def examine(file: Path) -> tuple[int, list[str]]:
    """Return how many answers a file holds and what is wrong with it, reading all of it and writing nothing.

    Args:
        file: `calls.sqlite` of a store.
    """
    # Without a log beside it nobody writes, and a disk that cannot be written is no hindrance.
    mode_suffix = "" if file.with_name(f"{file.name}-wal").exists() else "&immutable=1"
    problems: list[str] = []
    count = 0
    try:
        with closing(sqlite3.connect(f"file:{quote(str(file))}?mode=ro{mode_suffix}", uri=True)) as db:
            problems += [f"is damaged: {line}" for (line,) in db.execute("PRAGMA integrity_check(3)") if line != "ok"]
            for *row, seal in db.execute(
                "SELECT key, model, text, finish, failure, tokens_in, tokens_out, seal FROM replies"
            ):
                count += 1
                if seal != _seal(*row):
                    problems.append(f"holds an answer that was altered, {row[0]}")
    except sqlite3.Error as error:
        problems.append(f"cannot be read: {error}")
    return count, problems


def _unusable(path: str, error: sqlite3.Error) -> StoreError:
    """Tell what the disk cannot do from what is wrong with the file."""
    disk = isinstance(error, sqlite3.OperationalError)
    cure = "nothing more is bought: mend that and run the same again" if disk else CURE
    return StoreError(f"{path} cannot be used: {error}; {cure}")


class Line(NamedTuple):
    """An answer as it is kept."""

    key: str
    model: str | None
    text: str
    finish: str
    failure: str | None
    tokens_in: int
    tokens_out: int


def read_line(content: bytes, key: str) -> Line | None:
    """Read an answer that is kept as an object; None where it was altered since."""
    try:
        fields = json.loads(content)
        # What was kept before answers had a seal is believed.
        line = Line(**{name: fields[name] for name in Line._fields})
        return line if line.key == key and fields.get("seal", _seal(*line)) == _seal(*line) else None
    except (ValueError, TypeError, KeyError, AttributeError):
        return None


class _Objects:
    """A store's answers on object storage: an object each, so that none waits for others to be safe."""

    def __init__(self, folder: ObjectPath) -> None:
        self._folder = folder
        self._waiting: dict[str, ObjectPath] | None = None
        """The answers of earlier runs that this one has not asked for yet; listed when first asked."""

    def begin(self) -> Path:
        """Return an empty folder for the copy that is asked instead."""
        objects.remove_tree(self._folder.scratch)
        return self._folder.scratch

    def bring(self, key: str) -> Iterator[Line]:
        """Yield an answer the first time that it is asked for."""
        if self._waiting is None:
            # Of a failure and the answer to the same request, the answer comes later and is taken.
            files = [*self._folder.glob("failures/*.json"), *self._folder.glob("replies/*.json")]
            self._waiting = {file.stem: file for file in files}
        file = self._waiting.pop(key, None)
        if file is not None:
            line = read_line(ObjectPath(file.bucket, file.key).read_bytes(), key)
            if line is None:
                note(f"{file} was altered after it was written: it is bought anew")
            else:
                yield line

    def keep(self, line: Line) -> None:
        """Put an answer."""
        kind = "replies" if line.failure is None else "failures"
        (self._folder / kind / f"{line.key}.json").write_bytes(
            json.dumps({**line._asdict(), "seal": _seal(*line)}).encode()
        )
        if self._waiting is not None:
            self._waiting.pop(line.key, None)

    def forget_failures(self) -> None:
        """Take away the answers that failed."""
        self._waiting = None
        (self._folder / "failures").remove_tree()

    def batches(self) -> dict[str, list[str]]:
        """Return the keys of each batch, by its id."""
        records = (json.loads(file.read_bytes()) for file in self._folder.glob("batches/*.json"))
        return {record["id"]: record["keys"] for record in records}

    def submitted(self, batch: str, keys: Sequence[str]) -> None:
        """Put a batch."""
        self._batch(batch).put(json.dumps({"id": batch, "keys": list(keys)}).encode())

    def collected(self, batch: str) -> None:
        """Take a batch away."""
        self._batch(batch).unlink()

    def _batch(self, batch: str) -> ObjectPath:
        return self._folder / "batches" / f"{digest(batch)}.json"


_CURRENT: ContextVar[Calls | None] = ContextVar("calls", default=None)


@contextmanager
def kept(folder: Place, max_usd: float | None = None) -> Iterator[Calls]:
    """Have every model loaded inside keep its answers in a folder, and spend at most so much."""
    calls = Calls(folder, max_usd)
    token = _CURRENT.set(calls)
    try:
        yield calls
    finally:
        _CURRENT.reset(token)
        calls.close()


def current() -> Calls:
    """Return where answers are kept now; a new place in memory where nothing was said."""
    return _CURRENT.get() or Calls()
