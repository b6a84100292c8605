"""What a configuration says about any server: its address, the name of the key, and how many requests it gets at once.

None of it decides an answer, so that none of it is part of a fingerprint. A key is never part of a configuration: only the
name of the environment variable that holds it is.
"""

from __future__ import annotations

from typing import Annotated, TypeAlias

from pydantic import AfterValidator, BaseModel, Field, ValidationInfo


def _without_secret(url: str, info: ValidationInfo) -> str:
    name = "the server's address" if info.field_name in (None, "path") else info.field_name
    if not url.startswith(("http://", "https://")) or "@" in url or "?" in url:
        raise ValueError(f"{name} is http(s)://host/path; a key belongs into the environment, see `api_key`")
    return url.rstrip("/")


def _name_of_key(name: str) -> str:
    # The message does not repeat the value: it may be the key itself.
    if not name.replace("_", "a").isalnum() or len(name) > 64 or name != name.upper():
        raise ValueError("api_key is the NAME of an environment variable in capitals, never the key")
    return name


Address: TypeAlias = Annotated[str, AfterValidator(_without_secret)]
"""A server's address, without a key in it and without a slash at its end."""
KeyName: TypeAlias = Annotated[str, AfterValidator(_name_of_key)]
"""The name of the environment variable that holds a key."""


class ServerSettings(BaseModel):
    """Hold the settings that all servers share: the key's name, the requests under way, and how long to wait."""

    api_key: KeyName | None = None
    """The *name* of the environment variable that holds the key; by default no key is sent."""
    concurrency: int = Field(default=16, ge=1)
    """Requests that are under way at once."""
    timeout: float = Field(default=120, gt=0)
    """Seconds for a whole reply. A request without a byte until then is repeated; a reply that began is given up."""
    retries: int = Field(default=8, ge=0)
    """How often a request that failed is sent again, with growing pauses."""
