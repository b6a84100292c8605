"""What made a store's columns, in a few words: its models, band, samples and date."""

from __future__ import annotations

import datetime
from pathlib import PurePosixPath
from typing import NamedTuple

from pydantic import JsonValue

from seamcurate.store.store import Store, record_file

_ROLES = ("policy", "base", "reward", "truth", "encoder", "generator", "judge")
"""Fields of steps that name a model, in the order in which they are told."""
_SETTINGS = {"band": "band", "n": "samples", "method": "attack"}
"""Settings of steps that a reader asks for, and what they are called."""


class Fact(NamedTuple):
    """A word of what was used, and what it was."""

    name: str
    value: str


def about(store: Store) -> list[Fact]:
    """Return the models that the store's steps used by their role, settings such as the band, and the date of the last step.

    Models are named by the end of their path: folders of this machine are nobody else's business.
    """
    facts: dict[str, list[str]] = {}
    days = []
    corpus = store.corpus_store
    for holder in (store, *([corpus] if corpus else ())):
        for name, record in holder.records().items():
            config = record["config"]
            assert isinstance(config, dict)
            for role in _ROLES:
                if title := _title(config.get(role)):
                    facts.setdefault(role, []).append(title)
            for key, word in _SETTINGS.items():
                value = config.get(key)
                if value is not None:
                    facts.setdefault(word, []).append(
                        " to ".join(map(str, value)) if isinstance(value, list) else str(value)
                    )
            written = record_file(holder.path / "columns" / name, "step.json").stat().st_mtime_ns / 1e9
            days.append(datetime.datetime.fromtimestamp(written, datetime.UTC).date().isoformat())
    found = [Fact(name, ", ".join(dict.fromkeys(values))) for name, values in facts.items()]
    return [*found, *([Fact("date", max(days))] if days else [])]


def _title(model: JsonValue) -> str | None:
    """Return the name of a model in a step's configuration: the end of its path, or the name that a server has it by."""
    if not isinstance(model, dict):
        return None
    if isinstance(members := model.get("ensemble"), list):
        return " and ".join(filter(None, map(_title, members)))
    kind, value = next(iter(model.items()), ("", None))
    named = model.get("model")
    text = named if isinstance(named, str) else value
    if not isinstance(text, str):
        return kind or None
    path = PurePosixPath(text)
    # Of a folder `…/policy/model` the last name alone says little.
    return path.name if text.count("/") == 1 or path.name not in ("model", "final") else "/".join(path.parts[-2:])
