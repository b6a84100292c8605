"""The facts of a published data set, as JSON: source, models, steps, columns and splits, with their fingerprints.

One rule: the facts name no local folder. Models and files are identified by their contents.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from pydantic import JsonValue

from seamcurate.run.recipe import Models
from seamcurate.score import golden_check
from seamcurate.select import shaping
from seamcurate.store.store import Store

FORMAT = 1
"""The version of the facts. It rises when an older reader would misread them."""


def facts(store: Store, splits: Iterable[str], trainer: str, version: str) -> dict[str, JsonValue]:
    """Return the facts of some splits of a store; `version` is that of seamcurate."""
    records = {name: store.split_record(name) for name in splits}
    split_keys = ("filter", "parameters", "format", "order", *shaping.KEYS, "fingerprint", "kept", "dropped")
    corpus, fingerprints = store.corpus_store, store.fingerprints()
    step_records = steps(store)
    check = golden_check.found(store.all_facts())
    return {
        "format": FORMAT,
        "seamcurate": version,
        "trainer": trainer,
        "rows": len(store),
        "source": store.about["source"],
        "corpus": corpus.about["source"] if corpus else None,
        "models": models(step_records),
        "steps": step_records,
        "columns": {
            column.name: {
                "type": str(column.kind),
                "meaning": column.meaning,
                "made_by": column.made_by,
                "fingerprint": fingerprints[column.name],
            }
            for column in store.columns()
            if column.stale is None and column.name in fingerprints
        },
        **({golden_check.FACT: check._asdict()} if check is not None else {}),
        "splits": {name: {key: record[key] for key in split_keys if key in record} for name, record in records.items()},
    }


def steps(store: Store) -> dict[str, JsonValue]:
    """Return each step's fingerprint, identity and inputs, by name; steps of the corpus as `corpus NAME`."""
    identities: dict[str, JsonValue] = {}
    corpus = store.corpus_store
    for prefix, holder in (("", store), *((("corpus ", corpus),) if corpus else ())):
        stale = holder.stale()
        for name, record in holder.records().items():
            if name not in stale:
                keys = ("fingerprint", "identity", "inputs", "corpus")
                identities[f"{prefix}{name}"] = {key: record[key] for key in keys}
    return identities


def models(steps: Mapping[str, JsonValue]) -> dict[str, JsonValue]:
    """Return the identity of each model that a step uses, by its role in the recipe."""
    identities: dict[str, JsonValue] = {}
    for record in steps.values():
        identity = record["identity"] if isinstance(record, dict) else None
        for role in Models.model_fields:
            if isinstance(identity, dict) and identity.get(role) is not None:
                identities.setdefault(role, identity[role])
    return identities
