"""A bucket of an S3 server: its client, the last known state of each object, and its errors in one line.

One rule: a message for a person holds no key and no address of the server.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import datetime
from functools import cache
from typing import Any, NamedTuple, Protocol

from seamcurate import extras
from seamcurate.errors import StoreError

_SHARD = re.compile(r"(.*/)\d+\.parquet", re.DOTALL)


class ObjectState(NamedTuple):
    """The state of an object in the server's last answer about it; the names are those of `os.stat_result`."""

    version: str
    st_size: int
    st_mtime_ns: int


class Lock(Protocol):
    """What must be held while an object is changed."""

    inside: str
    """The prefix of the keys that it protects."""
    token: str
    """A random text that only its owner knows."""

    def check(self) -> None:
        """Raise BusyError if the lock is no longer held."""


class Refused(Exception):
    """The server refused a conditional request (If-Match, If-None-Match): the object has another state."""


class Bucket:
    """One bucket of the server that the environment names."""

    def __init__(self, name: str) -> None:
        try:
            import boto3
            from botocore.config import Config
        except ImportError as error:
            raise StoreError(f"a store on S3 needs boto3: {extras.install('s3')}") from error
        self.name = name
        with server_errors(f"s3://{name}"):
            self.client: Any = boto3.session.Session().client("s3", config=Config(connect_timeout=10))
        self.states: dict[str, ObjectState] = {}
        """The last known state of each object by its key: reading a listed shard needs no second request for its version."""
        self.footers: dict[str, tuple[str, bytes]] = {}
        self.locks: list[Lock] = []

    def keys(
        self, prefix: str, delimiter: str = "", limit: int | None = None, past_shards: bool = False
    ) -> Iterator[str]:
        """Iterate over the keys with a prefix, in order, and note the state of each object.

        A request lists a thousand keys. With `past_shards`, a listing that ends among a folder's shards goes on after them.
        """
        arguments: dict[str, object] = {} if limit is None else {"MaxKeys": limit}
        while True:
            with server_errors(f"s3://{self.name}/{prefix}"):
                response = self.client.list_objects_v2(
                    Bucket=self.name, Prefix=prefix, Delimiter=delimiter, **arguments
                )
            for entry in response.get("Contents", ()):
                self.states[entry["Key"]] = ObjectState(version(entry), entry["Size"], modified(entry["LastModified"]))
                yield entry["Key"]
            if limit is not None or not response.get("IsTruncated"):
                return
            among_shards = _SHARD.fullmatch(response["Contents"][-1]["Key"]) if past_shards else None
            if among_shards:
                # A colon comes after all digits.
                arguments = {"StartAfter": f"{among_shards[1]}:"}
            else:
                arguments = {"ContinuationToken": response["NextContinuationToken"]}


@cache
def open_bucket(name: str, environment: tuple[tuple[str, str], ...]) -> Bucket:
    """Return a bucket, with one client for each environment: making a client takes longer than a request."""
    return Bucket(name)


@contextmanager
def server_errors(address: str) -> Iterator[None]:
    """Turn boto3's errors into one line that holds no key and no address of the server."""
    from boto3.exceptions import Boto3Error
    from botocore.exceptions import (
        BotoCoreError,
        ClientError,
        NoCredentialsError,
        PartialCredentialsError,
        ProfileNotFound,
    )

    try:
        yield
    except ClientError as error:
        code = re.sub(r"\W", "", str(error.response.get("Error", {}).get("Code", "")))[:60]
        status = error.response.get("ResponseMetadata", {}).get("HTTPStatusCode", 0)
        # S3 answers ConditionalRequestConflict where two conditional requests for one object meet.
        if status == 412 or code in ("PreconditionFailed", "ConditionalRequestConflict"):
            raise Refused from error
        if code == "NoSuchBucket":
            raise StoreError(f"{address}: there is no such bucket; make it first, or correct the name") from error
        if status == 404:
            raise FileNotFoundError(address) from error
        if status in (401, 403):
            raise StoreError(
                f"{address}: the server refuses these keys ({code}); check AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY "
                "and what they may do in the bucket"
            ) from error
        raise StoreError(f"{address}: the server answered {status} ({code}); {_AGAIN}") from error
    except (NoCredentialsError, PartialCredentialsError, ProfileNotFound) as error:
        raise StoreError(
            f"{address}: no keys; set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or AWS_PROFILE"
        ) from error
    except (BotoCoreError, Boto3Error) as error:
        raise StoreError(
            f"{address}: the server cannot be reached ({type(error).__name__}); check AWS_ENDPOINT_URL; {_AGAIN}"
        ) from error


_AGAIN = "what was finished is kept: run the same command again to go on"


def version(response: dict[str, Any]) -> str:
    """Return an object's version (ETag) from an answer, without the characters that a folder's name cannot have."""
    return re.sub(r"\W", "", str(response["ETag"]))


def modified(time: datetime) -> int:
    """Return a time in nanoseconds since 1970, as `st_mtime_ns` has it."""
    return int(time.timestamp() * 1e9)
