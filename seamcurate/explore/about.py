"""What made a store's columns, in a few words: its models, band, samples and date."""

from __future__ import annotations

from typing import NamedTuple

from seamcurate.explore import finding
from seamcurate.store.store import Store

_SETTINGS = {"band": "band", "n": "samples", "method": "attack"}
"""Settings of steps that a reader asks for, and what they are called."""


class Fact(NamedTuple):
    """A word of what was used, and what it was."""

    name: str
    value: str


def about(store: Store) -> list[Fact]:
    """Return the models that the store's steps used by their role, settings such as the band, and the date of the last step."""
    settings: dict[str, list[str]] = {}
    for record in store.records().values():
        config = record["config"]
        assert isinstance(config, dict)
        for key, word in _SETTINGS.items():
            if (value := config.get(key)) is not None:
                text = " to ".join(map(str, value)) if isinstance(value, list) else str(value)
                settings.setdefault(word, []).append(text)
    day = finding.made_on(store)
    return [
        *(Fact(role, name) for role, name in finding.models(store).items()),
        *(Fact(word, ", ".join(dict.fromkeys(values))) for word, values in settings.items()),
        *([Fact("date", day)] if day else []),
    ]
