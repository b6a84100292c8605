"""A bucket of an S3 server: its client, what it last said of each object, and its errors in one line.

One rule: what is said to a person holds no key and no address of the server.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import datetime
from functools import cache
from typing import Any, NamedTuple, Protocol

from seamcurate.errors import StoreError


class Seen(NamedTuple):
    """What the server last said of an object; sizes and times are named as a file's are."""

    version: str
    st_size: int
    st_mtime_ns: int


class Lock(Protocol):
    """What is asked before an object is changed."""

    inside: str
    """What the keys begin with that it is for."""
    token: str
    """What shows whose it is."""

    def check(self) -> None:
        """Raise BusyError if nothing may be written there any more."""


class Refused(Exception):
    """The object is not as the request's condition says."""


class Bucket:
    """One bucket of the server that the environment names."""

    def __init__(self, name: str) -> None:
        try:
            import boto3
            from botocore.config import Config
        except ImportError as error:
            raise StoreError('a store on S3 needs boto3: pip install "seamcurate[s3]"') from error
        self.name = name
        with told(f"s3://{name}"):
            self.client: Any = boto3.session.Session().client("s3", config=Config(connect_timeout=10))
        self.seen: dict[str, Seen] = {}
        """What was last heard of each object: a shard that is read after it was listed asks nothing more."""
        self.footers: dict[str, tuple[str, bytes]] = {}
        self.locks: list[Lock] = []

    def keys(self, prefix: str, delimiter: str = "", most: int | None = None) -> Iterator[str]:
        """Iterate over the keys that begin so, in order, and note what the server says of them."""
        more: dict[str, object] = {} if most is None else {"MaxKeys": most}
        while True:
            with told(f"s3://{self.name}/{prefix}"):
                found = self.client.list_objects_v2(Bucket=self.name, Prefix=prefix, Delimiter=delimiter, **more)
            for one in found.get("Contents", ()):
                self.seen[one["Key"]] = Seen(version(one), one["Size"], modified(one["LastModified"]))
                yield one["Key"]
            if most is not None or not found.get("IsTruncated"):
                return
            more = {"ContinuationToken": found["NextContinuationToken"]}


@cache
def opened(name: str, environment: tuple[tuple[str, str], ...]) -> Bucket:
    """Make a bucket's client once for each environment: it takes longer than a request."""
    return Bucket(name)


@contextmanager
def told(where: str) -> Iterator[None]:
    """Turn what boto3 raises into one line that holds no key and no address of the server."""
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
        # The second is said where two such requests meet.
        if status == 412 or code in ("PreconditionFailed", "ConditionalRequestConflict"):
            raise Refused from error
        if code == "NoSuchBucket":
            raise StoreError(f"{where}: there is no such bucket; make it first, or correct the name") from error
        if status == 404:
            raise FileNotFoundError(where) from error
        if status in (401, 403):
            raise StoreError(
                f"{where}: the server refuses these keys ({code}); check AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY "
                "and what they may do in the bucket"
            ) from error
        raise StoreError(f"{where}: the server answered {status} ({code}); {_AGAIN}") from error
    except (NoCredentialsError, PartialCredentialsError, ProfileNotFound) as error:
        raise StoreError(
            f"{where}: no keys; set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or AWS_PROFILE"
        ) from error
    except (BotoCoreError, Boto3Error) as error:
        raise StoreError(
            f"{where}: the server cannot be reached ({type(error).__name__}); check AWS_ENDPOINT_URL; {_AGAIN}"
        ) from error


_AGAIN = "what was finished is kept: run the same command again to go on"


def version(said: dict[str, Any]) -> str:
    """Return an object's version, as it may be a folder's name, of an answer that tells of it."""
    return re.sub(r"\W", "", str(said["ETag"]))


def modified(when: datetime) -> int:
    """Return a time in nanoseconds, as files have it."""
    return int(when.timestamp() * 1e9)
