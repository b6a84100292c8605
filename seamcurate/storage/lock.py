"""The lock of a store at s3://: an object `.lock` that only one run can create, renewed while the run is alive.

One rule: before each write, a process checks that the lock still belongs to its run.
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
from seamcurate.storage.bucket import Refused, server_errors
from seamcurate.storage.objects import ObjectPath, Place

LEASE_SECONDS = 90.0
"""Seconds after its last renewal at which a lock ends, so that the lock of a run that died does not stay for ever."""


@contextmanager
def hold(store: ObjectPath) -> Iterator[None]:
    """Hold a store's lock, and renew it in a thread, until the block ends.

    Raises:
        BusyError: Another run holds it; or, raised by a later write, another run has taken it meanwhile.
    """
    lock = _Lock(store / ".lock")
    lock.take()
    ended = threading.Event()

    def renew_until_ended() -> None:
        while not ended.wait(LEASE_SECONDS / 4):
            # A failed renewal is tried again; before each write, `check` renews the lock or raises.
            with suppress(SeamcurateError):
                lock.renew()

    thread = threading.Thread(target=renew_until_ended, daemon=True, name="renews the store's lock")
    thread.start()
    store.bucket.locks.append(lock)
    try:
        yield
    finally:
        store.bucket.locks.remove(lock)
        ended.set()
        # The thread may still wait for a server that does not answer; it can only renew a lock that has ended.
        thread.join(5)
        # If the server does not answer, the lock ends after LEASE_SECONDS.
        with suppress(SeamcurateError):
            lock.release()


def ticket(store: Place) -> str:
    """Return the token with which another process can `join` this run; empty for a store in a folder."""
    if isinstance(store, Path):
        return ""
    inside = (store / "").key
    return next((lock.token for lock in store.bucket.locks if lock.inside == inside), "")


def join(store: Place, ticket: str) -> None:
    """Let this process write to a store for the run that gave the ticket, for as long as that run holds the lock."""
    if not isinstance(store, Path):
        store.bucket.locks.append(_Joined(store / ".lock", ticket))


class _Lock:
    """A lock object: it names its owner, and is changed by conditional requests alone."""

    def __init__(self, path: ObjectPath, token: str = "") -> None:
        self.path, self.inside, self.token = path, path.key.removesuffix(".lock"), token or uuid.uuid4().hex
        self._owner = f"{getpass.getuser()} on {socket.gethostname()}, process {os.getpid()}"
        self._since = datetime.now(UTC).isoformat(timespec="seconds")
        self._etag, self._renewed, self._lost = "", 0.0, False
        self._mutex = threading.Lock()

    def take(self) -> None:
        """Create the lock, or take over one that was not renewed within its lease."""
        try:
            self._put(IfNoneMatch="*")
        except Refused:
            record, etag, silent = self._read()
            if record.get("token") == self.token:
                # boto3 repeats a request whose answer was lost: the first one created the lock, the second was refused.
                self._etag = etag
            elif silent <= float(str(record.get("lease", LEASE_SECONDS))):
                raise BusyError(self._busy(record, silent)) from None
            else:
                try:
                    # If two runs take over the same ended lock, the server lets one of them through.
                    self._put(IfMatch=etag)
                except (Refused, FileNotFoundError):
                    record, _, silent = self._read()
                    raise BusyError(self._busy(record, silent)) from None
        try:
            # The lock exists now, so that a server that honours If-None-Match must refuse this.
            self._put(IfNoneMatch="*")
        except Refused:
            return
        self.release()
        raise StoreError(
            f"{self.path.parent}: its server takes no notice of If-None-Match, so two runs could not be kept apart; "
            "run into a folder and copy it there"
        )

    def renew(self) -> None:
        """Renew the lock; note whether another run has taken it."""
        with self._mutex:
            try:
                self._put(IfMatch=self._etag)
            except (Refused, FileNotFoundError):
                # The lock is still ours if boto3 repeated a renewal whose answer was lost.
                record, etag, _ = self._read()
                if record.get("token") == self.token:
                    self._etag = etag
                else:
                    self._lost = True

    def check(self) -> None:
        """Renew the lock if half its lease has passed; raise BusyError if it is no longer ours."""
        if time.time() - self._renewed > LEASE_SECONDS / 2:
            self.renew()
        if self._lost:
            raise self._gone()

    def release(self) -> None:
        """Delete the lock, if it is ours."""
        with suppress(Refused, FileNotFoundError), server_errors(str(self.path)):
            bucket = self.path.bucket
            bucket.client.delete_object(Bucket=bucket.name, Key=self.path.key, IfMatch=self._etag)

    def _put(self, **condition: str) -> None:
        time_sent = datetime.now(UTC).isoformat()
        record = {
            "owner": self._owner,
            "since": self._since,
            "token": self.token,
            "lease": LEASE_SECONDS,
            "seen": time_sent,
        }
        bucket, started = self.path.bucket, time.time()
        with server_errors(str(self.path)):
            response = bucket.client.put_object(
                Bucket=bucket.name, Key=self.path.key, Body=json.dumps(record).encode(), **condition
            )
        # The time before the request: the server's lease began no earlier.
        self._etag, self._renewed = response["ETag"], started

    def _read(self) -> tuple[dict[str, object], str, float]:
        """Return the lock's record, its version (ETag), and its age in seconds by the server's clock."""
        bucket = self.path.bucket
        try:
            with server_errors(str(self.path)):
                response = bucket.client.get_object(Bucket=bucket.name, Key=self.path.key)
                record = json.loads(response["Body"].read())
        except FileNotFoundError:
            return {}, "", 0.0
        except ValueError as error:
            raise BusyError(f"{self.path} is no lock that seamcurate wrote; delete it if no run is at work") from error
        server_date = response["ResponseMetadata"]["HTTPHeaders"].get("date")
        server_time = parsedate_to_datetime(server_date) if server_date else datetime.now(UTC)
        return record, response["ETag"], (server_time - response["LastModified"]).total_seconds()

    def _gone(self) -> BusyError:
        return BusyError(
            f"{self.path.parent}: another run took the lock after this one gave no sign for {LEASE_SECONDS:g} s; "
            "nothing more is written: run again when it is done"
        )

    def _busy(self, record: dict[str, object], silent: float) -> str:
        owner = f"{record.get('owner', 'unknown')}, since {record.get('since', 'now')}"
        return (
            f"another run works on {self.path.parent} ({owner}, last sign {silent:.0f} s ago); wait for it, or stop it first: "
            f"the lock of one that died ends {record.get('lease', LEASE_SECONDS)} s after its last sign"
        )


class _Joined(_Lock):
    """The lock of the run that this process works for; only that run renews it."""

    def check(self) -> None:
        """Raise BusyError if that run no longer holds it."""
        if self._read()[0].get("token") != self.token:
            raise self._gone()
