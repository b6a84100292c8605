"""Objects of an S3 server in the place of a store's files: an object is whole or absent, as a renamed file is.

    s3://bucket/prefix/rows/00000.parquet      an object, put whole by one request
    s3://bucket/prefix/columns/x/_shared/      a folder made elsewhere; its `.sha256`, put last, lists its files

One rule: an object is read from a local copy, which is stored under the object's version (its ETag). So an object is
downloaded once, and the bytes that were verified are the bytes that are read. Endpoint, region and keys come from the
environment, as boto3 reads it, never from an address.
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
from seamcurate.storage.bucket import Bucket, ObjectState, Refused, modified, open_bucket, server_errors, version
from seamcurate.storage.cache import cache_folder

LISTED = ".sha256"
"""The name of the list of a folder's files with their hashes, as `sha256sum -c` reads it. On S3 it is put last: a folder
without it counts as absent."""

_FOOTER = 65_536
"""Bytes from the end of a Parquet object that are fetched first: nearly every footer is shorter."""
_AT_ONCE = 8
"""Downloads at the same time."""
_TRIES = 3
_ADDRESS = re.compile(r"([a-z][a-z0-9+.-]+):/{1,2}(?=[^/])")
"""An address such as `s3://bucket`. One that went through `Path` has lost one of its two slashes."""
_BUCKET = re.compile(r"[a-z0-9][a-z0-9.-]{1,61}[a-z0-9]")


class ObjectPath:
    """The path of an object, or a prefix of several; it has the methods of `pathlib.Path` that a store uses."""

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
        """Return the prefix that the object lies under."""
        return ObjectPath(self.bucket, self.key.rpartition("/")[0])

    def resolve(self) -> ObjectPath:
        """Return the same path: objects have no links."""
        return self

    def mkdir(self, parents: bool = False, exist_ok: bool = False) -> None:
        """Do nothing: S3 has no folders, only keys with a common prefix."""

    def exists(self) -> bool:
        """Tell whether the object is there now."""
        return next(self.bucket.keys(self.key, limit=1), None) == self.key

    def is_file(self) -> bool:
        """Tell whether the object is there now."""
        return self.exists()

    def stat(self) -> ObjectState:
        """Return the object's current size, time and version.

        Raises:
            FileNotFoundError: It is not there.
        """
        if not self.exists():
            raise FileNotFoundError(str(self))
        return self.bucket.states[self.key]

    def glob(self, pattern: str, past_shards: bool = False) -> Iterator[ObjectPath]:
        """Iterate over the objects below this one whose names match part by part, in order; see `Bucket.keys`."""
        patterns = pattern.split("/")
        fixed_parts = next(i for i, pattern_part in enumerate(patterns) if re.search(r"[*?\[]", pattern_part))
        start = "".join(f"{pattern_part}/" for pattern_part in [self.key, *patterns[:fixed_parts]] if pattern_part)
        for key in self.bucket.keys(start, "/" if fixed_parts + 1 == len(patterns) else "", past_shards=past_shards):
            names = key.removeprefix(start).split("/")
            if len(names) == len(patterns) - fixed_parts and all(
                map(fnmatch.fnmatchcase, names, patterns[fixed_parts:])
            ):
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
        """Put the object, without a local copy."""
        self.put(content, copy=False)

    def put(self, content: bytes | bytearray, copy: bool = True) -> None:
        """Put the object, and with `copy` a local copy of it for the step that reads it next.

        Raises:
            BusyError: Another run holds the store's lock by now.
            StoreError: The server did not take it.
        """
        self._may_change()
        with server_errors(str(self)):
            response = self.bucket.client.put_object(Bucket=self.bucket.name, Key=self.key, Body=bytes(content))
        self.bucket.states[self.key] = ObjectState(version(response), len(content), time.time_ns())
        # If the cache has no room for the copy, the object is downloaded when it is read.
        if copy:
            with suppress(OSError):
                self._keep(content)

    def unlink(self, missing_ok: bool = True) -> None:
        """Delete the object; an absent object is no error."""
        self._may_change()
        self.bucket.states.pop(self.key, None)
        with server_errors(str(self)):
            self.bucket.client.delete_object(Bucket=self.bucket.name, Key=self.key)

    def remove_tree(self) -> None:
        """Delete all objects below: lists of checksums first, records of steps last.

        If the process is killed in between, what is left looks like a step's folder that lacks shards.
        """
        keys = list(self.bucket.keys(f"{self.key}/"))
        names = {key: PurePosixPath(key).name for key in keys}
        for key in sorted(keys, key=lambda key: (names[key] in ("_step.json", "step.json"), names[key] != LISTED, key)):
            ObjectPath(self.bucket, key).unlink()

    def kept(self) -> Path | None:
        """Return the local copy of the object's last known version; None where there is none."""
        state = self.bucket.states.get(self.key)
        local_copy = self._home / state.version / self.name if state else None
        return local_copy if local_copy is not None and local_copy.exists() else None

    def copy(self) -> Path:
        """Return a local copy of the object in its last known version, downloaded if need be.

        Raises:
            FileNotFoundError: It is not there.
            StoreError: The server refuses it, or the cache's disk is full or read-only.
        """
        local_copy = self.kept()
        if local_copy is not None:
            return local_copy
        content = self._get()
        with _writing(self):
            return self._keep(content)

    def forget(self) -> None:
        """Delete the local copies, so that the object is downloaded again."""
        shutil.rmtree(self._home, ignore_errors=True)
        self.bucket.states.pop(self.key, None)

    def footer(self) -> bytes:
        """Return the last bytes of a Parquet object, which hold its footer: its schema and metadata."""
        local_copy, state = self.kept(), self.bucket.states.get(self.key)
        if local_copy is not None:
            return local_copy.read_bytes()
        version, content = self.bucket.footers.get(self.key, ("", b""))
        if state is None or state.version != version:
            content = self._get(Range=f"bytes=-{_FOOTER}")
            # A Parquet file ends with the footer's length (4 bytes, little endian) and the magic bytes PAR1.
            if int.from_bytes(content[-8:-4], "little") + 8 > len(content):
                content = self._get()
            self.bucket.footers[self.key] = (self.bucket.states[self.key].version, content)
        return content

    def put_folder(self, folder: Path, fingerprint: str) -> Path:
        """Put a folder's files that the server does not have yet, then the list of all files; return the local copy.

        A file that the server has is never put again: if two workers write the same file, the first write wins.

        Args:
            folder: The folder, with its list of checksums.
            fingerprint: The fingerprint of its content; local copies under other fingerprints are removed.
        """
        stored, local_files = self._list(), read_list(folder)
        listed = dict(stored or {})
        for name in sorted(local_files.keys() - listed.keys()):
            if stored is None:
                # Without a list, the server's files were left by a process that was killed: they are overwritten.
                self._may_change()
                with server_errors(str(self / name)), (folder / name).open("rb") as handle:
                    self.bucket.client.upload_fileobj(handle, self.bucket.name, (self / name).key)
                listed[name] = local_files[name]
            else:
                listed[name] = (self / name)._add((folder / name).read_bytes())
        if listed != stored:
            (self / LISTED).write_bytes(_list(listed))
        copy = self._home / fingerprint
        if folder != copy:
            with self._syncing(copy):
                shutil.copytree(folder, copy, copy_function=_link, dirs_exist_ok=True)
            shutil.rmtree(folder)
        return copy

    def copy_folder(self, fingerprint: str) -> Path:
        """Return a local copy of a folder that was put; files that exist only in the copy stay.

        Raises:
            DamagedError: A file is missing, or not the one that was put.
        """
        copy = self._home / fingerprint
        with self._syncing(copy):
            stored, local_files = self._list() or {}, read_list(copy)
            for name in [name for name in stored if local_files.get(name) != stored[name]]:
                (copy / name).parent.mkdir(parents=True, exist_ok=True)
                with atomic.replacing(copy / name) as temporary:
                    (self / name)._download(temporary)
                    if hashes.read_sha256(temporary) != stored[name]:
                        raise DamagedError(f"{self / name} was altered after it was written; {_ANEW}")
            if any(local_files.get(name) != stored[name] for name in stored) or not (copy / LISTED).exists():
                with atomic.replacing(copy / LISTED) as temporary:
                    temporary.write_bytes(_list({**local_files, **stored}))
        return copy

    @contextmanager
    def _syncing(self, copy: Path) -> Iterator[None]:
        """Lock the local copies of a folder against other processes of this machine; remove those of other fingerprints."""
        import fcntl

        with _writing(self):
            self._home.mkdir(parents=True, exist_ok=True)
            with (self._home / ".lock").open("a") as lock:
                fcntl.flock(lock, fcntl.LOCK_EX)
                if not copy.exists():
                    self._drop_versions(copy)
                    copy.mkdir()
                yield

    @property
    def scratch(self) -> Path:
        """Return the folder of this machine in which files are built before they are put here."""
        return self._home / "scratch"

    @property
    def _home(self) -> Path:
        """Return the folder with the local copies of this object's versions."""
        identity = f"{self.bucket.client.meta.endpoint_url}\n{self.bucket.name}\n{self.key}"
        return cache_folder() / hashlib.sha256(identity.encode()).hexdigest()[:32]

    def _download(self, target: Path) -> None:
        try:
            with server_errors(str(self)):
                self.bucket.client.download_file(self.bucket.name, self.key, str(target))
        except FileNotFoundError as error:
            raise DamagedError(f"{self} is missing; {_ANEW}") from error

    def _list(self) -> dict[str, str] | None:
        """Return the hashes of a folder's files by name; None where the folder has no list, and so counts as absent."""
        try:
            files = _names((self / LISTED).read_bytes())
        except FileNotFoundError:
            return None
        if any(".." in PurePosixPath(name).parts or name.startswith("/") for name in files):
            raise DamagedError(f"{self / LISTED} names files outside its folder; {_ANEW}")
        return files

    def _add(self, content: bytes) -> str:
        """Put the object unless it exists; return the hash of the object that the server has then."""
        self._may_change()
        # The server refuses all but the first of several workers, without a moment in which two could both see no object.
        with suppress(Refused), server_errors(str(self)):
            self.bucket.client.put_object(Bucket=self.bucket.name, Key=self.key, Body=content, IfNoneMatch="*")
        return hashlib.sha256(self._get()).hexdigest()

    def _may_change(self) -> None:
        for lock in self.bucket.locks:
            if self.key.startswith(lock.inside):
                lock.check()

    def _get(self, **byte_range: str) -> bytes:
        from botocore.exceptions import HTTPClientError, IncompleteReadError

        for tries_left in reversed(range(_TRIES)):
            with server_errors(str(self)):
                response = self.bucket.client.get_object(Bucket=self.bucket.name, Key=self.key, **byte_range)
                try:
                    content: bytes = response["Body"].read()
                except (HTTPClientError, IncompleteReadError):
                    # boto3 repeats a failed request, but not one whose answer breaks off in the middle.
                    if not tries_left:
                        raise
                    continue
            self.bucket.states[self.key] = ObjectState(
                version(response), len(content), modified(response["LastModified"])
            )
            return content
        raise AssertionError

    def _drop_versions(self, current: Path) -> None:
        # The current version stays: another process may be about to read it.
        for version_folder in self._home.iterdir() if self._home.exists() else ():
            if version_folder != current and version_folder.is_dir():
                shutil.rmtree(version_folder, ignore_errors=True)

    def _keep(self, content: bytes | bytearray) -> Path:
        """Write a local copy of the last known version, and remove older versions."""
        file = self._home / self.bucket.states[self.key].version / self.name
        self._drop_versions(file.parent)
        file.parent.mkdir(parents=True, exist_ok=True)
        with atomic.replacing(file) as temporary:
            temporary.write_bytes(content)
        return file


Place: TypeAlias = Path | ObjectPath
"""The path of a store's file or folder: on this machine, or on object storage."""


def place(location: str | Place) -> Place:
    """Return the path that a text names: an object's for `s3://bucket/prefix`, a file's for anything else.

    Raises:
        StoreError: It is another kind of address, or boto3 is not installed.
    """
    address = None if isinstance(location, ObjectPath) else _ADDRESS.match(str(location))
    if isinstance(location, ObjectPath) or address is None:
        return Path(location) if isinstance(location, str) else location
    name, _, key = str(location)[address.end() :].partition("/")
    if address[1] != "s3":
        raise StoreError(f"{address[1]}:// is not supported: a store is a folder, or s3://bucket/prefix")
    if not _BUCKET.fullmatch(name):
        raise StoreError(
            "a store on S3 is s3://bucket/prefix; a bucket's name has 3 to 63 of a-z, 0-9, - and ., "
            "and keys come from the environment, never from the address"
        )
    environment = {key: value for key, value in os.environ.items() if key.startswith("AWS_")}
    return ObjectPath(open_bucket(name, tuple(sorted(environment.items()))), key.strip("/"))


def beside(base: Place, address: str) -> Place:
    """Return the path that a record of the store at `base` names: an address, an absolute path, or one inside the store."""
    return place(address) if address.startswith(("s3://", "/")) else base / address


def find(folder: Place, pattern: str) -> Sequence[Place]:
    """List the files or objects below a folder that match, in order."""
    return sorted(folder.glob(pattern)) if isinstance(folder, Path) else list(folder.glob(pattern))


def local(path: Place) -> Path:
    """Return a path on this machine: that of the file itself, or of a local copy of the object."""
    return path if isinstance(path, Path) else path.copy()


def remove_tree(folder: Place) -> None:
    """Delete a folder, or all objects below a prefix; of a link to a folder, only the contents, records last."""
    if isinstance(folder, Path) and folder.is_symlink():
        # A user links a folder to another disk: the link stays, so that the next columns are written there too.
        for entry in sorted(folder.iterdir() if folder.is_dir() else (), key=lambda entry: entry.suffix == ".json"):
            shutil.rmtree(entry) if entry.is_dir() and not entry.is_symlink() else entry.unlink()
    elif isinstance(folder, Path):
        shutil.rmtree(folder, ignore_errors=True)
    else:
        folder.remove_tree()


def is_folder(folder: Place) -> bool:
    """Tell whether a folder that `keep_folder` stored is there."""
    return folder.exists() if isinstance(folder, Path) else (folder / LISTED).exists()


def local_folder(folder: Place, fingerprint: str) -> Path:
    """Return a folder on this machine: the folder itself, or a local copy of what was put under its fingerprint."""
    return folder if isinstance(folder, Path) else folder.copy_folder(fingerprint)


def keep_folder(new_folder: Path, folder: Place, fingerprint: str) -> Path:
    """Store a folder that has a list of checksums, by a rename or by `put_folder`; return the path to read it from."""
    if not isinstance(folder, Path):
        return folder.put_folder(new_folder, fingerprint)
    if new_folder != folder:
        new_folder.rename(folder)
    return folder


def folder(address: str | Place, verb: str) -> Path:
    """Return a path on this machine for output that can be written to files alone.

    Raises:
        StoreError: It is an address.
    """
    if isinstance(address, ObjectPath) or _ADDRESS.match(str(address)):
        url = re.sub(r":/+", "://", str(address), count=1)
        raise StoreError(f"{verb} writes to a folder of this machine, not to {url}; write to one and copy it there")
    return Path(address)


@contextmanager
def writing(target: Path) -> Iterator[None]:
    """Turn an error of the operating system while writing `target` into one line.

    Raises:
        StoreError: Its folder is missing, its disk is full or read-only, or a folder has its name.
    """
    try:
        yield
    except OSError as error:
        # DuckDB reports its own errors as an OSError without a number; they are no problem of this file.
        if error.errno is None:
            raise
        reason = os.strerror(error.errno)
        # The file is written under a temporary name, which tells nobody anything.
        named = error.filename if error.filename and not str(error.filename).endswith(".tmp") else target
        raise StoreError(f"{named} cannot be written: {reason}; fix that, or name another") from error


@contextmanager
def downloaded(folder: ObjectPath) -> Iterator[Path]:
    """Yield a temporary folder with all objects below a prefix, downloaded past the cache; locks are left out.

    Raises:
        StoreError: An object is not part of a store, the server refuses it, or the disk is full.
    """
    keys = [key.removeprefix(f"{folder.key}/" if folder.key else "") for key in folder.bucket.keys(f"{folder.key}/")]
    names = [name for name in keys if not name.endswith(("/", ".tmp")) and PurePosixPath(name).name != ".lock"]
    # A key may hold what would lead a path out of the temporary folder.
    for name in names:
        if {"", ".", ".."} & set(name.split("/")) or "\\" in name or "\0" in name:
            raise StoreError(f"{folder / name} is no object of a store; delete it, or move the store")
    with _writing(folder):
        cache_folder().mkdir(parents=True, exist_ok=True)
        temporary = scratch.make(cache_folder())
    copy = temporary.path / "store"
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
        temporary.remove()


@contextmanager
def _writing(path: ObjectPath) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise StoreError(
            f"{path} cannot be copied to {cache_folder()}: {error.strerror}; SEAMCURATE_CACHE names another folder"
        ) from error


_ANEW = f"delete that folder's {LISTED} and run the recipe again to make it anew"


def _names(content: bytes) -> dict[str, str]:
    """Parse a list of files: hashes by file name."""
    lines = content.decode("utf-8", "replace").splitlines()
    return {name: digest for digest, _, name in (line.partition("  ") for line in lines)}


def _list(files: Mapping[str, str]) -> bytes:
    return "".join(f"{files[name]}  {name}\n" for name in sorted(files)).encode()


def read_list(folder: Path) -> dict[str, str]:
    """Read a folder's list of files: hashes by file name; empty where it has no list."""
    return _names((folder / LISTED).read_bytes()) if (folder / LISTED).exists() else {}


def _link(file: str, target: str) -> None:
    """Give a file a second path: by a hard link, or by a copy where the file system has no links."""
    with atomic.replacing(Path(target)) as temporary:
        try:
            os.link(file, temporary)
        except OSError:
            shutil.copy(file, temporary)
