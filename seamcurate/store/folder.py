"""A folder of a store: which shards it has, and the JSON records beside them.

A record is written whole, with a checksum over its content and the folder that it is for. Listings and records that have
not changed since they were read are not read again.
"""

from __future__ import annotations

import base64
import hashlib
import json
import os
from collections.abc import Iterable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import TypeVar

import pyarrow as pa
from pydantic import JsonValue

from seamcurate.errors import DamagedError
from seamcurate.storage import hashes, objects, shard
from seamcurate.storage.objects import Place

_STEP_KEYS = {"step", "name", "config", "identity", "inputs", "corpus", "ancestry", "schema", "fingerprint"}
_SPLIT_KEYS = {"filter", "parameters", "format", "fingerprint", "kept", "dropped", "lines"}
_CHECKSUM = "sha256"
_CHECKSUM_LINE = b'\n "sha256": "'


def filename(number: int) -> str:
    """Return the file name of a shard."""
    return f"{number:05d}.parquet"


def numbers(folder: Place) -> list[int]:
    """List the numbers of a folder's shards in order: files with a name that `filename` returns, without links."""
    if not isinstance(folder, Path):
        return _shard_numbers(file.name for file in folder.glob("[0-9]*.parquet"))
    try:
        # Before the listing: what changes meanwhile makes it another state.
        state = hashes.settled_state(folder)
        if state is not None and (known := _listed.get(folder)) is not None and known[0] == state:
            return [*known[1]]
        with os.scandir(folder) as entries:
            shard_numbers = _shard_numbers(entry.name for entry in entries if entry.is_file(follow_symlinks=False))
    except (FileNotFoundError, NotADirectoryError):
        return []
    if state is not None:
        _remember(_listed, folder, (state, shard_numbers))
    return [*shard_numbers]


def _shard_numbers(names: Iterable[str]) -> list[int]:
    # 000001.parquet has the number 1, too; the shard is 00001.parquet.
    stems = (name[:-8] for name in names if name.endswith(".parquet") and name.isascii())
    return sorted(
        int(stem) for stem in stems if stem.isdecimal() and (len(stem) == 5 or (len(stem) > 5 and stem[0] > "0"))
    )


_listed: dict[Path, tuple[hashes.State, list[int]]] = {}
"""The shards of folders that have not changed since they were listed."""
_parsed: dict[Path, tuple[hashes.State, str | None, dict[str, JsonValue]]] = {}
"""The records that have not changed since they were read, each with the folder that it was written for."""
_REMEMBERED = 256
_T = TypeVar("_T")


def _remember(known: dict[Path, _T], path: Path, value: _T) -> None:
    """Remember a folder's listing or a record; of many, forget the one that was read first."""
    known.pop(path, None)
    while len(known) >= _REMEMBERED:
        known.pop(next(iter(known)), None)
    known[path] = value


def shard_files(folder: Place) -> list[Place]:
    """List the shards of a folder, in order; see `numbers`."""
    return [folder / filename(number) for number in numbers(folder)]


def record_file(folder: Place, name: str) -> Place:
    """Return the path of a folder's record: `_step.json` or `_split.json`, or the name without `_` up to format 2."""
    new, old = folder / f"_{name}", folder / name
    return old if not new.exists() and old.exists() else new


def step_file(folder: Place, name: str) -> Place:
    """Return the path of another file beside a step's shards (`facts.json`, `shared`), named as its record is."""
    new = record_file(folder, "step.json").name.startswith("_")
    return folder / (f"_{name}" if new else name)


def step_record(folder: Place) -> dict[str, JsonValue]:
    """Return a column folder's record; see `own_record`."""
    return own_record(record_file(folder, "step.json"))


def own_record(file: Place) -> dict[str, JsonValue]:
    """Read a folder's record; empty where there is none, or where it was written for another folder.

    Raises:
        DamagedError: It was written for this folder, and altered afterwards.
    """
    keys = _STEP_KEYS if file.name.endswith("step.json") else _SPLIT_KEYS
    try:
        record = load_json(file)
    except DamagedError:
        if _is_foreign(file):
            return {}
        raise
    return record if keys <= record.keys() else {}


def _is_foreign(file: Place) -> bool:
    """Tell whether an unreadable record is not a store's, or lies in a copy of another folder."""
    if not numbers(file.parent) and not (file.parent / "ledger.parquet").exists():
        return True
    siblings = {record_path.parent.name for record_path in objects.find(file.parent.parent, f"*/{file.name}")}
    with suppress(ValueError):
        if isinstance(value := json.loads(file.read_bytes()), dict):
            siblings.add(str(value.get("name")))
    for name in siblings - {file.parent.name}:
        with suppress(DamagedError):
            record = load_json(file, name)
            # In a copied folder the shards belong to the record; a record that was moved here alone has other shards.
            fingerprints = shard_fingerprints(file.parent) or {shard.footer(file.parent / "ledger.parquet").fingerprint}
            return record.get("fingerprint") in fingerprints
    return False


def records_in(folder: Place, name: str) -> dict[str, dict[str, JsonValue]]:
    """Read the record of each folder in a folder, those without one left out; `name` is `step.json` or `split.json`."""
    if isinstance(folder, Path):
        # Without a look at the shards beside each record: there may be very many.
        try:
            folders = sorted(entry.name for entry in os.scandir(folder) if entry.is_dir())
        except (FileNotFoundError, NotADirectoryError):
            folders = []
        files: dict[str, Place] = {one: record_file(folder / one, name) for one in folders if not one.startswith(".")}
    else:
        files = {}
        for file in folder.glob(f"*/*{name}", past_shards=True):
            # They are sorted: `_step.json` comes before `step.json` and wins.
            if file.name in (f"_{name}", name) and not file.parent.name.startswith("."):
                files.setdefault(file.parent.name, file)
    records = {name: own_record(file) for name, file in files.items()}
    return {name: record for name, record in records.items() if record}


def shard_fingerprints(folder: Place) -> set[str]:
    """Return the fingerprints that a folder's readable shards name."""
    fingerprints = set()
    for number in numbers(folder):
        with suppress(DamagedError):
            fingerprints.add(shard.footer(folder / filename(number)).fingerprint)
    return fingerprints


def load_json(path: Place, folder: str | None = None) -> dict[str, JsonValue]:
    """Read a JSON object without the checksum that `save_record` added; empty where there is no file.

    Args:
        path: The file.
        folder: The name of the folder that it was written for; by default that of the folder it lies in.

    Raises:
        DamagedError: It is no JSON object, or was altered after it was written.
    """
    try:
        # Of a store of many shards, store.json is megabytes, and a command asks for it a dozen times.
        state = hashes.settled_state(path) if isinstance(path, Path) else None
        known = _parsed.get(path) if state is not None and isinstance(path, Path) else None
        if known is not None and known[:2] == (state, folder):
            return {**known[2]}
        content = path.read_bytes()
        value = json.loads(content)
    except (FileNotFoundError, NotADirectoryError):
        return {}
    except ValueError as error:
        raise DamagedError(f"{path} is not readable as JSON; {shard.hint(path)}") from error
    if not isinstance(value, dict):
        raise DamagedError(f"{path} holds no JSON object; {shard.hint(path)}")
    checksum, (body, marker, end) = value.pop(_CHECKSUM, None), content.rpartition(_CHECKSUM_LINE)
    # If a flipped bit renamed the key "sha256", the record must not pass for one of a version that wrote no checksum.
    last_item = next(reversed(value.items()), ("", None))
    renamed = (
        checksum is None
        and len(last_item[0]) == len(_CHECKSUM)
        and isinstance(last_item[1], str)
        and len(last_item[1]) == 64
    )
    if renamed or (checksum is not None and marker + end != _record_end(path, body, folder)):
        raise DamagedError(f"{path} was altered after it was written: its hash does not match; {shard.hint(path)}")
    if state is not None and isinstance(path, Path):
        _remember(_parsed, path, (state, folder, value))
    return {**value}


def save_record(path: Place, value: Mapping[str, JsonValue]) -> None:
    """Write a JSON object whole; its last key is a checksum over its content and its path in the store."""
    body = _json_text(value).encode().removesuffix(b"\n}\n") + b","
    shard.replace(path, body + _record_end(path, body))


def _record_end(path: Place, body: bytes, folder: str | None = None) -> bytes:
    """Return the last line of a record: the checksum over the names of its folder and file, and its content.

    The folder of store.json is the store itself, which the user may rename: its name is left out.
    """
    # A folder is built under a temporary name, and its records hold the name that it will have.
    folder = folder or path.parent.name.removeprefix(".").removesuffix(".tmp")
    path_in_store = path.name if path.name == "store.json" else f"{folder}/{path.name}"
    return b'%s%s"\n}\n' % (_CHECKSUM_LINE, hashlib.sha256(path_in_store.encode() + b"\n" + body).hexdigest().encode())


def save_json(path: Place, value: Mapping[str, JsonValue]) -> None:
    """Write a JSON object whole."""
    shard.replace(path, _json_text(value).encode())


def _json_text(value: Mapping[str, JsonValue]) -> str:
    return json.dumps(value, indent=1, ensure_ascii=False, sort_keys=False) + "\n"


def record_schema(record: Mapping[str, JsonValue]) -> pa.Schema:
    """Return the Arrow schema a step's record declares, meanings included."""
    return pa.ipc.read_schema(pa.py_buffer(base64.b64decode(str(record["schema"]))))
