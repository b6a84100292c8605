"""What a column was made from, by its record, and in what two records differ.

A record holds a step's own configuration and those of all steps that it reads from, however far upstream.
"""

from __future__ import annotations

import datetime
import json
from collections.abc import Iterable, Iterator, Mapping

from pydantic import JsonValue

from seamcurate.step import Step

_GROWN = "+"
"""Stands between the fingerprint of a column and that of a source to which files were added; see `Store.grown`."""
_EXTENT = ("over_shards", "over_source")
"""Keys of an identity that say how many rows were read, and nothing else."""


def dates(record: Mapping[str, JsonValue]) -> set[str]:
    """Return the dates in the configuration of a step's models, which their chat templates write into prompts."""
    config = record["config"]
    assert isinstance(config, dict)
    return {day for value in config.values() for day in _model_days(value)}


_MODELS_OF = ("ensemble", "same_as", "judge")
"""The keys of a model's configuration that hold the models which it is made of."""


def _model_days(model: JsonValue) -> Iterator[str]:
    """Yield the dates in the configuration of a model, and in those of the models that it is made of."""
    if isinstance(model, list):
        for member in model:
            yield from _model_days(member)
    elif isinstance(model, dict):
        if model.get("date"):
            yield str(model["date"])
        for key in _MODELS_OF:
            yield from _model_days(model.get(key))


def began(step: Step, record: Mapping[str, JsonValue] | None) -> datetime.date | None:
    """Return the day on which a step's columns were begun, None where there are none: no date that its models set themselves."""
    if record is None:
        return None
    days = dates(record)
    set_days = dates({"config": step.model_dump(mode="json")})
    return datetime.date.fromisoformat(min(days - set_days or days)) if days else None


def first_day(records: Iterable[Mapping[str, JsonValue]]) -> datetime.date | None:
    """Return the earliest day in the records' configurations, None where they name none."""
    days = {day for record in records for day in dates(record)}
    return datetime.date.fromisoformat(min(days)) if days else None


def steps_of(record: Mapping[str, JsonValue]) -> dict[str, JsonValue]:
    """Return the identities of a record's own step and of those upstream, by name."""
    ancestry, identity = record["ancestry"], record["identity"]
    assert isinstance(ancestry, dict) and isinstance(identity, dict)
    return {**ancestry, str(record["name"]): identity}


def difference(stored: Mapping[str, JsonValue], planned: Mapping[str, JsonValue]) -> str:
    """Return in words what changed between two steps' records, however far upstream."""
    stored_steps, planned_steps = steps_of(stored), steps_of(planned)
    differences = []
    for step in {**stored_steps, **planned_steps}:
        stored_identity, planned_identity = stored_steps.get(step), planned_steps.get(step)
        if stored_identity == planned_identity:
            continue
        if step.endswith("rows"):
            differences.append(f"the {'corpus' if step.startswith('corpus') else 'source'} rows changed")
        elif isinstance(stored_identity, dict) and isinstance(planned_identity, dict):
            differences += _changed_keys(step, stored_identity, planned_identity)
        else:
            differences.append(f"step {step} is {'new' if stored_identity is None else 'gone'} upstream")
    return "; ".join(differences) or "its inputs were made anew"


def _changed_keys(name: str, stored: Mapping[str, JsonValue], planned: Mapping[str, JsonValue]) -> Iterator[str]:
    """Yield each key of a configuration that changed, with both values.

    Of a model only the keys that changed are shown, also within another: the hash of a file of code, a member of an ensemble.
    """
    for key in {**stored, **planned}:
        before, after = stored.get(key), planned.get(key)
        if before == after:
            continue
        lists = [value["ensemble"] for value in (before, after) if isinstance(value, dict) and "ensemble" in value]
        members = [value for value in lists if isinstance(value, list)]
        if isinstance(before, dict) and isinstance(after, dict) and len(members) == 2:
            numbered = [{f"ensemble[{i}]": member for i, member in enumerate(value)} for value in members]
            rest = [{k: v for k, v in value.items() if k != "ensemble"} for value in (before, after)]
            yield from _changed_keys(f"{name}.{key}", {**numbered[0], **rest[0]}, {**numbered[1], **rest[1]})
        elif (
            isinstance(before, dict)
            and isinstance(after, dict)
            # Two kinds of model have few keys in common.
            and len(before.keys() & after.keys()) > len(before.keys() ^ after.keys())
        ):
            yield from _changed_keys(f"{name}.{key}", before, after)
        else:
            yield f"{name}.{key}: {json.dumps(before)} → {json.dumps(after)}"


def grown_fingerprint(fingerprint: str, grown: str | None) -> str:
    """Return the fingerprint of a column over all rows: one that changes when the source grows; see `Store.grown`."""
    return fingerprint if grown is None else f"{fingerprint}{_GROWN}{grown}"


def only_grew(stored: Mapping[str, JsonValue], planned: Mapping[str, JsonValue]) -> bool:
    """Tell whether two steps' records differ only in how many rows, or how large a corpus, the step read."""
    if not stored:
        return False
    stored_steps, planned_steps = steps_of(stored), steps_of(planned)
    for step in {**stored_steps, **planned_steps}:
        stored_identity, planned_identity = stored_steps.get(step), planned_steps.get(step)
        if isinstance(stored_identity, str) and isinstance(planned_identity, str):
            if stored_identity.partition(_GROWN)[0] != planned_identity.partition(_GROWN)[0]:
                return False
        elif isinstance(stored_identity, dict) and isinstance(planned_identity, dict):
            if any(
                stored_identity.get(key) != planned_identity.get(key)
                for key in {**stored_identity, **planned_identity}
                if key not in _EXTENT
            ):
                return False
        elif stored_identity != planned_identity:
            return False
    return stored_steps != planned_steps
