"""Who works on a store at s3://: an object `.lock` that only one run can put, renewed while it lives.

One rule: before anything is written, the lock is still there, of this run or of the one that this process works for.
"""

from __future__ import annotations

import getpass
import json
import os
import socket
import threading
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from pathlib import Path

from seamcurate.errors import BusyError, SeamcurateError, StoreError
from seamcurate.storage.bucket import Refused, told
from seamcurate.storage.objects import ObjectPath, Place

LEASE_SECONDS = 90.0
"""A lock that was not renewed for so long is nobody's."""


@contextmanager
def hold(store: ObjectPath) -> Iterator[None]:
    """Keep other runs off a store by a lock that only one can put, and that ends when it is no longer renewed.

    Raises:
        BusyError: Another run holds it; or, when something is written later, another has taken it meanwhile.
    """
    lock = _Lock(store / ".lock")
    lock.take()
    done = threading.Event()

    def keep() -> None:
        while not done.wait(LEASE_SECONDS / 4):
            # What cannot be renewed now is tried again, and looked at before anything is written.
            with suppress(SeamcurateError):
                lock.renew()

    thread = threading.Thread(target=keep, daemon=True, name="renews the store's lock")
    thread.start()
    store.bucket.locks.append(lock)
    try:
        yield
    finally:
        store.bucket.locks.remove(lock)
        done.set()
        # One that waits for a server that is gone may wait on: without the lock it changes nothing.
        thread.join(5)
        # Where the server is gone, the lock ends by itself.
        with suppress(SeamcurateError):
            lock.release()


def ticket(store: Place) -> str:
    """Return what another process needs to `join` this one in a store that it holds; nothing for a folder."""
    if isinstance(store, Path):
        return ""
    inside = (store / "").key
    return next((lock.token for lock in store.bucket.locks if lock.inside == inside), "")


def join(store: Place, ticket: str) -> None:
    """Write to a store for the process that gave a ticket, as long as that one holds it: each write looks first."""
    if not isinstance(store, Path):
        store.bucket.locks.append(_Joined(store / ".lock", ticket))


class _Lock:
    """An object that names who works on a store."""

    def __init__(self, at: ObjectPath, token: str = "") -> None:
        self.at, self.inside, self.token = at, at.key.removesuffix(".lock"), token or uuid.uuid4().hex
        self._owner = f"{getpass.getuser()} on {socket.gethostname()}, process {os.getpid()}"
        self._since = datetime.now(UTC).isoformat(timespec="seconds")
        self._etag, self._renewed, self._lost = "", 0.0, False
        self._turn = threading.Lock()

    def take(self) -> None:
        """Put the lock where there is none, or where its owner has given no sign of life for its lease."""
        try:
            self._put(IfNoneMatch="*")
        except Refused:
            there, etag, silent = self._read()
            if there.get("token") == self.token:
                # The answer to our first request was lost, and it was repeated.
                self._etag = etag
            elif silent <= float(str(there.get("lease", LEASE_SECONDS))):
                raise BusyError(self._busy(there, silent)) from None
            else:
                try:
                    self._put(IfMatch=etag)
                except (Refused, FileNotFoundError):
                    there, _, silent = self._read()
                    raise BusyError(self._busy(there, silent)) from None
        try:
            self._put(IfNoneMatch="*")
        except Refused:
            return
        self.release()
        raise StoreError(
            f"{self.at.parent}: its server takes no notice of If-None-Match, so two runs could not be kept apart; "
            "run into a folder and copy it there"
        )

    def renew(self) -> None:
        """Show that the run is alive; notes when another has taken the lock."""
        with self._turn:
            try:
                self._put(IfMatch=self._etag)
            except (Refused, FileNotFoundError):
                # Ours all the same, if the answer to a request that was repeated got lost.
                there, etag, _ = self._read()
                if there.get("token") == self.token:
                    self._etag = etag
                else:
                    self._lost = True

    def check(self) -> None:
        """Raise BusyError if the lock is no longer ours; renews one that was not renewed for long."""
        if time.time() - self._renewed > LEASE_SECONDS / 2:
            self.renew()
        if self._lost:
            raise self._gone()

    def release(self) -> None:
        """Take the lock away, if it is ours."""
        with suppress(Refused, FileNotFoundError), told(str(self.at)):
            bucket = self.at.bucket
            bucket.client.delete_object(Bucket=bucket.name, Key=self.at.key, IfMatch=self._etag)

    def _put(self, **condition: str) -> None:
        now = datetime.now(UTC).isoformat()
        record = {"owner": self._owner, "since": self._since, "token": self.token, "lease": LEASE_SECONDS, "seen": now}
        bucket, sent = self.at.bucket, time.time()
        with told(str(self.at)):
            done = bucket.client.put_object(
                Bucket=bucket.name, Key=self.at.key, Body=json.dumps(record).encode(), **condition
            )
        self._etag, self._renewed = done["ETag"], sent

    def _read(self) -> tuple[dict[str, object], str, float]:
        """Return what the lock says, its version, and for how many seconds of the server's clock it has said so."""
        bucket = self.at.bucket
        try:
            with told(str(self.at)):
                found = bucket.client.get_object(Bucket=bucket.name, Key=self.at.key)
                there = json.loads(found["Body"].read())
        except FileNotFoundError:
            return {}, "", 0.0
        except ValueError as error:
            raise BusyError(f"{self.at} is no lock that seamcurate wrote; delete it if no run is at work") from error
        said = found["ResponseMetadata"]["HTTPHeaders"].get("date")
        now = parsedate_to_datetime(said) if said else datetime.now(UTC)
        return there, found["ETag"], (now - found["LastModified"]).total_seconds()

    def _gone(self) -> BusyError:
        return BusyError(
            f"{self.at.parent}: another run took the lock after this one gave no sign for {LEASE_SECONDS:g} s; "
            "nothing more is written: run again when it is done"
        )

    def _busy(self, there: dict[str, object], silent: float) -> str:
        who = f"{there.get('owner', 'unknown')}, since {there.get('since', 'now')}"
        return (
            f"another run works on {self.at.parent} ({who}, last sign {silent:.0f} s ago); wait for it, or stop it first: "
            f"the lock of one that died ends {there.get('lease', LEASE_SECONDS)} s after its last sign"
        )


class _Joined(_Lock):
    """The lock of another process that this one works for."""

    def check(self) -> None:
        """Raise BusyError if that process holds it no more."""
        if self._read()[0].get("token") != self.token:
            raise self._gone()
