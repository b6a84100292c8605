"""Objects of an S3 server where a store expects files: whole or not there, as renamed files are.

    s3://bucket/prefix/rows/00000.parquet      an object, put whole by one request
    s3://bucket/prefix/columns/x/_shared/      a folder made elsewhere; its `.sha256`, put last, lists its files

One rule: what is read as a file is a local copy, kept by the object's version (its ETag), so that an object is
downloaded once, and what was verified is what is read. Endpoint, region and keys come from the environment as boto3
reads it, never from a name.
"""

from __future__ import annotations

import fnmatch
import hashlib
import os
import re
import shutil
import time
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from pathlib import Path, PurePosixPath
from typing import TypeAlias

from seamcurate.errors import DamagedError, StoreError
from seamcurate.progress import bar
from seamcurate.storage import atomic, hashes, scratch
from seamcurate.storage.bucket import Bucket, Refused, Seen, modified, opened, told, version
from seamcurate.storage.cache import cache_folder

LISTED = ".sha256"
"""The list of a folder's files with their hashes, as `sha256sum -c` reads it. Of objects it is put last: without it
the folder is not there."""

_FOOTER = 65_536
_AT_ONCE = 8
_TRIES = 3
_ADDRESS = re.compile(r"([a-z][a-z0-9+.-]+):/{1,2}(?=[^/])")
"""Made a path, an address has lost one of its slashes."""
_BUCKET = re.compile(r"[a-z0-9][a-z0-9.-]{1,61}[a-z0-9]")


class ObjectPath:
    """An object, or what the keys of several begin with; it has of `pathlib.Path` what stores use."""

    def __init__(self, bucket: Bucket, key: str, listed: bool = False) -> None:
        self.bucket, self.key, self._listed = bucket, key, listed

    def __truediv__(self, name: str) -> ObjectPath:
        return ObjectPath(self.bucket, f"{self.key}/{name}" if self.key else name)

    def __str__(self) -> str:
        return f"s3://{self.bucket.name}/{self.key}".rstrip("/")

    @property
    def name(self) -> str:
        """Return the last part of the key."""
        return PurePosixPath(self.key).name

    @property
    def stem(self) -> str:
        """Return the name without its suffix."""
        return PurePosixPath(self.key).stem

    @property
    def parent(self) -> ObjectPath:
        """Return what the object lies in."""
        return ObjectPath(self.bucket, self.key.rpartition("/")[0])

    def resolve(self) -> ObjectPath:
        """Return itself: there are no links."""
        return self

    def mkdir(self, parents: bool = False, exist_ok: bool = False) -> None:
        """Do nothing: a folder is there as soon as something lies in it."""

    def exists(self) -> bool:
        """Tell whether the object is there now."""
        return next(self.bucket.keys(self.key, most=1), None) == self.key

    def is_file(self) -> bool:
        """Tell whether the object is there now."""
        return self.exists()

    def stat(self) -> Seen:
        """Describe the object as it is now.

        Raises:
            FileNotFoundError: It is not there.
        """
        if not self.exists():
            raise FileNotFoundError(str(self))
        return self.bucket.seen[self.key]

    def glob(self, pattern: str) -> Iterator[ObjectPath]:
        """Iterate over the objects below this one whose names match part by part, in order."""
        parts = pattern.split("/")
        fixed = next(i for i, part in enumerate(parts) if re.search(r"[*?\[]", part))
        start = "".join(f"{part}/" for part in [self.key, *parts[:fixed]] if part)
        for key in self.bucket.keys(start, "/" if fixed + 1 == len(parts) else ""):
            names = key.removeprefix(start).split("/")
            if len(names) == len(parts) - fixed and all(map(fnmatch.fnmatchcase, names, parts[fixed:])):
                yield ObjectPath(self.bucket, key, listed=True)

    def read_bytes(self) -> bytes:
        """Return the object: as it is now, or as it was when a folder was listed to find it.

        Raises:
            FileNotFoundError: It is not there.
        """
        return self.copy().read_bytes() if self._listed else self._get()

    def read_text(self, encoding: str = "utf-8") -> str:
        """Return the object as text; see `read_bytes`."""
        return self.read_bytes().decode(encoding)

    def write_bytes(self, content: bytes) -> None:
        """Put the object whole, and keep no copy."""
        self.put(content, copy=False)

    def put(self, content: bytes | bytearray, copy: bool = True) -> None:
        """Put the object whole, and keep a copy if it is soon to be read.

        Raises:
            BusyError: Another run holds the store by now.
            StoreError: The server did not take it.
        """
        self._may_change()
        with told(str(self)):
            done = self.bucket.client.put_object(Bucket=self.bucket.name, Key=self.key, Body=bytes(content))
        self.bucket.seen[self.key] = Seen(version(done), len(content), time.time_ns())
        # What was just made is read by the next step; where there is no room for it, it is downloaded then.
        if copy:
            with suppress(OSError):
                self._keep(content)

    def unlink(self, missing_ok: bool = True) -> None:
        """Take the object away; one that is not there is no error."""
        self._may_change()
        self.bucket.seen.pop(self.key, None)
        with told(str(self)):
            self.bucket.client.delete_object(Bucket=self.bucket.name, Key=self.key)

    def remove_tree(self) -> None:
        """Take away all that lies below: first what says that a folder is whole, last what says whose it is.

        Killed in between, a step's folder is left as one that lacks shards.
        """
        keys = list(self.bucket.keys(f"{self.key}/"))
        names = {key: PurePosixPath(key).name for key in keys}
        for key in sorted(keys, key=lambda key: (names[key] in ("_step.json", "step.json"), names[key] != LISTED, key)):
            ObjectPath(self.bucket, key).unlink()

    def kept(self) -> Path | None:
        """Return the local copy, if there is one of the object's last known version."""
        seen = self.bucket.seen.get(self.key)
        file = self._home / seen.version / self.name if seen else None
        return file if file is not None and file.exists() else None

    def copy(self) -> Path:
        """Return a local copy of the object as it was last listed, put or read.

        Raises:
            FileNotFoundError: It is not there.
            StoreError: The server does not give it, or the cache's disk does not take it.
        """
        there = self.kept()
        if there is not None:
            return there
        content = self._get()
        with _writing(self):
            return self._keep(content)

    def forget(self) -> None:
        """Drop the local copy, so that the object is downloaded again."""
        shutil.rmtree(self._home, ignore_errors=True)
        self.bucket.seen.pop(self.key, None)

    def footer(self) -> bytes:
        """Return the end of a Parquet file, which says what is in it."""
        there, seen = self.kept(), self.bucket.seen.get(self.key)
        if there is not None:
            return there.read_bytes()
        version, content = self.bucket.footers.get(self.key, ("", b""))
        if seen is None or seen.version != version:
            content = self._get(Range=f"bytes=-{_FOOTER}")
            if int.from_bytes(content[-8:-4], "little") + 8 > len(content):
                content = self._get()
            self.bucket.footers[self.key] = (self.bucket.seen[self.key].version, content)
        return content

    def put_folder(self, made: Path, fingerprint: str) -> Path:
        """Put those of a folder's files that are not there yet, then the list of all; returns the local copy.

        What is there already is never put again: of several that add the same file, the first is heard.

        Args:
            made: The folder, with its list.
            fingerprint: What decides its content: what another made there is another folder.
        """
        there, here = self._list(), read_list(made)
        known = dict(there or {})
        for name in sorted(here.keys() - known.keys()):
            if there is None:
                # Left by one that was killed before its list was put: it is put anew.
                self._may_change()
                with told(str(self / name)), (made / name).open("rb") as handle:
                    self.bucket.client.upload_fileobj(handle, self.bucket.name, (self / name).key)
                known[name] = here[name]
            else:
                known[name] = (self / name)._add((made / name).read_bytes())
        if known != there:
            (self / LISTED).write_bytes(_list(known))
        place = self._home / fingerprint
        if made != place:
            with self._syncing(place):
                shutil.copytree(made, place, copy_function=_link, dirs_exist_ok=True)
            shutil.rmtree(made)
        return place

    def copy_folder(self, fingerprint: str) -> Path:
        """Return a local copy of a folder that was put; what is added to it there stays.

        Raises:
            DamagedError: A file is missing, or not the one that was put.
        """
        place = self._home / fingerprint
        with self._syncing(place):
            files, here = self._list() or {}, read_list(place)
            for name in [name for name in files if here.get(name) != files[name]]:
                (place / name).parent.mkdir(parents=True, exist_ok=True)
                with atomic.replacing(place / name) as temporary:
                    (self / name)._download(temporary)
                    if hashes.read_sha256(temporary) != files[name]:
                        raise DamagedError(f"{self / name} was altered after it was written; {_ANEW}")
            if any(here.get(name) != files[name] for name in files) or not (place / LISTED).exists():
                with atomic.replacing(place / LISTED) as temporary:
                    temporary.write_bytes(_list({**here, **files}))
        return place

    @contextmanager
    def _syncing(self, place: Path) -> Iterator[None]:
        """Let one process of this machine after the other change the local copy; those of other makers go."""
        import fcntl

        with _writing(self):
            self._home.mkdir(parents=True, exist_ok=True)
            with (self._home / ".lock").open("a") as lock:
                fcntl.flock(lock, fcntl.LOCK_EX)
                if not place.exists():
                    self._drop_versions(place)
                    place.mkdir()
                yield

    @property
    def scratch(self) -> Path:
        """Return the folder of this machine where what belongs here is built before it is put."""
        return self._home / "scratch"

    @property
    def _home(self) -> Path:
        """Return where the local copies of this object's versions lie."""
        whose = f"{self.bucket.client.meta.endpoint_url}\n{self.bucket.name}\n{self.key}"
        return cache_folder() / hashlib.sha256(whose.encode()).hexdigest()[:32]

    def _download(self, to: Path) -> None:
        try:
            with told(str(self)):
                self.bucket.client.download_file(self.bucket.name, self.key, str(to))
        except FileNotFoundError as error:
            raise DamagedError(f"{self} is missing; {_ANEW}") from error

    def _list(self) -> dict[str, str] | None:
        """Return the names of a folder's files with their hashes; None where it was not put whole."""
        try:
            found = _names((self / LISTED).read_bytes())
        except FileNotFoundError:
            return None
        if any(".." in PurePosixPath(name).parts or name.startswith("/") for name in found):
            raise DamagedError(f"{self / LISTED} names files outside its folder; {_ANEW}")
        return found

    def _add(self, content: bytes) -> str:
        """Put the object where there is none; returns the hash of the one that is there then."""
        self._may_change()
        with suppress(Refused), told(str(self)):
            self.bucket.client.put_object(Bucket=self.bucket.name, Key=self.key, Body=content, IfNoneMatch="*")
        return hashlib.sha256(self._get()).hexdigest()

    def _may_change(self) -> None:
        for lock in self.bucket.locks:
            if self.key.startswith(lock.inside):
                lock.check()

    def _get(self, **part: str) -> bytes:
        from botocore.exceptions import HTTPClientError, IncompleteReadError

        for left in reversed(range(_TRIES)):
            with told(str(self)):
                found = self.bucket.client.get_object(Bucket=self.bucket.name, Key=self.key, **part)
                try:
                    content: bytes = found["Body"].read()
                except (HTTPClientError, IncompleteReadError):
                    # boto3 repeats requests, but not what breaks off in the middle of an answer.
                    if not left:
                        raise
                    continue
            self.bucket.seen[self.key] = Seen(version(found), len(content), modified(found["LastModified"]))
            return content
        raise AssertionError

    def _drop_versions(self, but: Path) -> None:
        # What is of this version, another process may be about to read.
        for old in self._home.iterdir() if self._home.exists() else ():
            if old != but and old.is_dir():
                shutil.rmtree(old, ignore_errors=True)

    def _keep(self, content: bytes | bytearray) -> Path:
        """Write a local copy of the last known version; older ones go."""
        file = self._home / self.bucket.seen[self.key].version / self.name
        self._drop_versions(file.parent)
        file.parent.mkdir(parents=True, exist_ok=True)
        with atomic.replacing(file) as temporary:
            temporary.write_bytes(content)
        return file


Place: TypeAlias = Path | ObjectPath
"""Where something of a store lies: on this machine, or on object storage."""


def place(where: str | Place) -> Place:
    """Return where a name points: into a folder, or to object storage for `s3://bucket/prefix`.

    Raises:
        StoreError: It is another kind of address, or boto3 is not installed.
    """
    address = None if isinstance(where, ObjectPath) else _ADDRESS.match(str(where))
    if isinstance(where, ObjectPath) or address is None:
        return Path(where) if isinstance(where, str) else where
    name, _, key = str(where)[address.end() :].partition("/")
    if address[1] != "s3":
        raise StoreError(f"{address[1]}:// is not supported: a store is a folder, or s3://bucket/prefix")
    if not _BUCKET.fullmatch(name):
        raise StoreError(
            "a store on S3 is s3://bucket/prefix; a bucket's name has 3 to 63 of a-z, 0-9, - and ., "
            "and keys come from the environment, never from the address"
        )
    environment = {key: value for key, value in os.environ.items() if key.startswith("AWS_")}
    return ObjectPath(opened(name, tuple(sorted(environment.items()))), key.strip("/"))


def beside(base: Place, where: str) -> Place:
    """Return where a name points that a store at `base` keeps: an address or absolute path, or one inside it."""
    return place(where) if where.startswith(("s3://", "/")) else base / where


def find(folder: Place, pattern: str) -> Sequence[Place]:
    """List the files or objects below a folder that match, in order."""
    return sorted(folder.glob(pattern)) if isinstance(folder, Path) else list(folder.glob(pattern))


def local(path: Place) -> Path:
    """Return a file of this machine with the content: the file itself, or a copy of the object."""
    return path if isinstance(path, Path) else path.copy()


def remove_tree(folder: Place) -> None:
    """Take away a folder, or all objects below; of a folder that is a link, what lies in it, records last."""
    if isinstance(folder, Path) and folder.is_symlink():
        # It leads to another disk, where the next one is to lie too.
        for entry in sorted(folder.iterdir() if folder.is_dir() else (), key=lambda entry: entry.suffix == ".json"):
            shutil.rmtree(entry) if entry.is_dir() and not entry.is_symlink() else entry.unlink()
    elif isinstance(folder, Path):
        shutil.rmtree(folder, ignore_errors=True)
    else:
        folder.remove_tree()


def is_folder(folder: Place) -> bool:
    """Tell whether a folder that was kept whole is there."""
    return folder.exists() if isinstance(folder, Path) else (folder / LISTED).exists()


def local_folder(folder: Place, fingerprint: str) -> Path:
    """Return a folder of this machine with the files: the folder itself, or a copy of what its fingerprint put."""
    return folder if isinstance(folder, Path) else folder.copy_folder(fingerprint)


def keep_folder(made: Path, folder: Place, fingerprint: str) -> Path:
    """Keep a listed folder whole, renamed into its place or put; return where its files are to be read from."""
    if not isinstance(folder, Path):
        return folder.put_folder(made, fingerprint)
    if made != folder:
        made.rename(folder)
    return folder


def folder(where: str | Place, verb: str) -> Path:
    """Return a folder or file of this machine, for what is written to no other place.

    Raises:
        StoreError: It is an address.
    """
    if isinstance(where, ObjectPath) or _ADDRESS.match(str(where)):
        there = re.sub(r":/+", "://", str(where), count=1)
        raise StoreError(f"{verb} writes to a folder of this machine, not to {there}; write to one and copy it there")
    return Path(where)


@contextmanager
def writing(out: Path) -> Iterator[None]:
    """Say in one line that what was asked for cannot be written.

    Raises:
        StoreError: Its folder is not there, its disk is full or read-only, or it is something else.
    """
    try:
        yield
    except OSError as error:
        # What DuckDB says while its answer is read comes as an OSError without a number.
        if error.errno is None:
            raise
        reason = os.strerror(error.errno)
        raise StoreError(f"{error.filename or out} cannot be written: {reason}; fix that, or name another") from error


@contextmanager
def downloaded(folder: ObjectPath) -> Iterator[Path]:
    """Keep all that lies below in a folder of this machine for a while, past every copy; locks and the like apart.

    Raises:
        StoreError: An object is none of a store's, the server does not give it, or the disk does not take it.
    """
    keys = [key.removeprefix(f"{folder.key}/" if folder.key else "") for key in folder.bucket.keys(f"{folder.key}/")]
    names = [name for name in keys if not name.endswith(("/", ".tmp")) and PurePosixPath(name).name != ".lock"]
    for name in names:
        if {"", ".", ".."} & set(name.split("/")) or "\\" in name or "\0" in name:
            raise StoreError(f"{folder / name} is no object of a store; delete it, or move the store")
    with _writing(folder):
        cache_folder().mkdir(parents=True, exist_ok=True)
        made = scratch.make(cache_folder())
    copy = made.path / "store"
    try:
        with (
            _writing(folder),
            bar(f"downloading {folder}", len(names), "objects") as advance,
            ThreadPoolExecutor(_AT_ONCE) as pool,
        ):
            for name in names:
                (copy / name).parent.mkdir(parents=True, exist_ok=True)
            for _ in pool.map(lambda name: (folder / name)._download(copy / name), names):
                advance(1)
        yield copy
    finally:
        made.remove()


@contextmanager
def _writing(path: ObjectPath) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise StoreError(
            f"{path} cannot be copied to {cache_folder()}: {error.strerror}; SEAMCURATE_CACHE names another folder"
        ) from error


_ANEW = f"delete that folder's {LISTED} and run the recipe again to make it anew"


def _names(listed: bytes) -> dict[str, str]:
    """Read a list of files: their hashes by their names."""
    lines = listed.decode("utf-8", "replace").splitlines()
    return {name: digest for digest, _, name in (line.partition("  ") for line in lines)}


def _list(files: Mapping[str, str]) -> bytes:
    return "".join(f"{files[name]}  {name}\n" for name in sorted(files)).encode()


def read_list(folder: Path) -> dict[str, str]:
    """Read a folder's list of files: their hashes by their names; empty where there is none."""
    return _names((folder / LISTED).read_bytes()) if (folder / LISTED).exists() else {}


def _link(file: str, to: str) -> None:
    """Put a file in another place too, without a copy where that can be."""
    with atomic.replacing(Path(to)) as temporary:
        try:
            os.link(file, temporary)
        except OSError:
            shutil.copy(file, temporary)
