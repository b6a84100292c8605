"""Agreement of a store with a recipe: rows, corpus, steps with their models, and splits, by their fingerprints.

One rule: nothing is computed or written. A run compares part by part as it goes on; exports and publications compare
everything at once.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from fnmatch import fnmatchcase
from pathlib import Path
from typing import NamedTuple

from pydantic import JsonValue

from seamcurate.data.source import KINDS, Source
from seamcurate.errors import ModelError, RecipeError, SourceError, StaleError, StoreError
from seamcurate.progress import note
from seamcurate.run.recipe import Recipe
from seamcurate.select import split as splits
from seamcurate.step import Step, digest
from seamcurate.storage import objects
from seamcurate.store.folder import numbers
from seamcurate.store.store import StepOutput, Store

_REPLACE = "run the recipe first, with --replace, or name the store that it made"


class Disagreement(NamedTuple):
    """One difference between what a recipe makes and what a store holds."""

    text: str
    """The part that differs, and how."""
    hint: str = "run the recipe first"

    def __str__(self) -> str:
        return f"{self.text}; {self.hint}"


def require(recipe: Recipe, store: Store) -> None:
    """Refuse a store that does not hold what a recipe makes.

    If a source's files are gone, only its name and mapping are compared, and a line says so.

    Raises:
        StaleError: The store holds something else, or lacks something; the message names it and what to do.
        ModelError: A model is missing, so that it cannot be compared with the one that was run.
    """
    missing = list(differences(recipe, store.open()))
    if missing:
        others = f" (and {len(missing) - 1} more)" if len(missing) > 1 else ""
        raise StaleError(
            f"{store.path} does not hold what the recipe makes: {missing[0].text}{others}; {missing[0].hint}"
        )


def differences(recipe: Recipe, store: Store) -> Iterator[Disagreement]:
    """Yield the differences between a recipe and a store, upstream first; those that only follow from others are left out.

    Raises:
        ModelError: See `require`.
    """
    sources = [*_sources(recipe, store)]
    yield from sources
    if sources:
        return
    steps, corpus = recipe.ready(), store.corpus_store
    try:
        corpus_outputs, outputs = plan_steps(steps, store, corpus)
    except ModelError as error:
        raise ModelError(f"whether {store.path} was made by this recipe cannot be told: {error}") from error
    except StoreError as error:
        yield Disagreement(str(error))
        return
    changed = [
        (corpus, output, difference)
        for output, difference in (corpus.changed(corpus_outputs) if corpus is not None else ())
    ]
    changed += [(store, output, difference) for output, difference in store.changed(outputs)]
    for changed_store, output, difference in changed:
        location = "of the corpus " if changed_store is corpus else ""
        yield Disagreement(
            f"step {output.step.name} {location}was made by another configuration: {difference}", _REPLACE
        )
    if changed:
        return
    incomplete = [
        output.step.name for output in corpus_outputs if corpus is not None and numbers(output.path) != corpus.shards
    ]
    incomplete += [output.step.name for output in outputs if numbers(output.path) != store.shards]
    for name in incomplete:
        yield Disagreement(f"it lacks columns of step {name}")
    if incomplete:
        return
    for name, split in recipe.splits.items():
        try:
            reason = splits.changed(store, name, split)
        except RecipeError as error:
            reason = str(error)
        if reason is not None:
            yield Disagreement(f"split {name}: {reason}")


def plan_steps(steps: Sequence[Step], store: Store, corpus: Store | None) -> tuple[list[StepOutput], list[StepOutput]]:
    """Return the outputs of a recipe's steps over the corpus, and over the rows; see `Store.plan`."""
    if corpus is None:
        return [], store.plan(steps)
    corpus_outputs = corpus.plan(corpus_steps(steps))
    return corpus_outputs, store.plan(
        steps, {name: output for output in corpus_outputs for name in output.step.adds.names}
    )


def corpus_steps(steps: Sequence[Step]) -> list[Step]:
    """Return the steps that must run over the corpus, each once."""
    needed_steps: list[Step] = []
    for step in steps:
        needed_steps += [needed for needed in step.on_corpus if needed not in needed_steps]
    return needed_steps


# ── sources ──────────────────────────────────────────────────────────────────────────────────────────────


def _sources(recipe: Recipe, store: Store) -> Iterator[Disagreement]:
    """Yield the differences between a recipe's rows and corpus and those of the store."""
    pairs = [("rows", recipe.rows, store)]
    corpus = store.corpus_store
    if recipe.corpus is not None:
        if corpus is None or not corpus.about:
            yield Disagreement("it has no corpus")
            return
        if recipe.corpus.store is None:
            pairs.append(("corpus", recipe.corpus, corpus))
        elif (named := objects.place(recipe.corpus.store).resolve()) and str(named) != str(corpus.path):
            named_corpus = Store(recipe.corpus.store)
            if not named_corpus.about:
                raise StoreError(
                    f"corpus {named_corpus.path} is not there; put it back, or name the store that it is now"
                )
            if named_corpus.about.get("source") != corpus.about.get("source"):
                yield Disagreement(f"corpus: {corpus.path} → {named_corpus.path}, of other rows", _REPLACE)
    for title, source, source_store in pairs:
        recorded = source_store.about.get("source")
        try:
            identity = source.identity()
        except SourceError as error:
            difference = _without_contents(source, recorded)
            if difference is None:
                note(f"{title}: {error}: its contents are not compared with the store's")
        else:
            difference = None if identity == recorded else source_change(recorded, identity)
        if difference is not None:
            yield Disagreement(f"{title}: {difference}", _REPLACE)
        elif not source_store.about.get("complete"):
            yield Disagreement(f"it does not hold all {title} yet", "run the recipe first, without --limit")


def source_change(recorded: JsonValue, current: JsonValue) -> str:
    """Return in words how a source differs from the one whose rows were read."""
    if not isinstance(recorded, dict) or not isinstance(current, dict):
        return "its description"
    keys = [key for key in {**recorded, **current} if recorded.get(key) != current.get(key)]
    changes = [
        f"commit {recorded.get(key)} → {current.get(key)}, which `revision` pins"
        if key == "commit"
        else _file_change(recorded, current, key)
        if key in KINDS
        else key
        for key in keys
    ]
    return ", ".join(changes) or "its description"


def grew(recorded: JsonValue, current: JsonValue) -> bool:
    """Tell whether a source has all its earlier files unchanged, and new ones after them."""
    if not isinstance(recorded, dict) or not isinstance(current, dict) or recorded.keys() != current.keys():
        return False
    keys = [key for key in recorded if recorded[key] != current[key]]
    old, new = (recorded[keys[0]], current[keys[0]]) if len(keys) == 1 and keys[0] in KINDS else (None, None)
    return isinstance(old, list) and isinstance(new, list) and len(new) > len(old) > 0 and new[: len(old)] == old


def first_fingerprint(identity: JsonValue, shard_fingerprints: Collection[str]) -> str:
    """Return the fingerprint of a source's rows: that of the files that were read first.

    Args:
        identity: What the source is now.
        shard_fingerprints: The fingerprints that shards of its rows name, if there are any.
    """
    kind = next((key for key in KINDS if key in identity), None) if isinstance(identity, dict) else None
    if isinstance(identity, dict) and kind is not None and isinstance(files := identity[kind], list):
        for count in range(len(files) - 1, 0, -1) if shard_fingerprints else ():
            if (earlier := digest({**identity, kind: files[:count]})) in shard_fingerprints:
                return earlier
    return digest(identity)


def _file_change(recorded: dict[str, JsonValue], current: dict[str, JsonValue], kind: str) -> str:
    old, new = _files(recorded.get(kind)), _files(current.get(kind))
    if not old or not new:
        return kind
    changed = [name for name in new if name in old and old[name] != new[name]]
    added, gone = [name for name in new if name not in old], [name for name in old if name not in new]
    moves_rows = list(new).index(added[0]) < len(new) - len(added) if added and not changed and not gone else False
    if moves_rows:
        following = list(new)[list(new).index(added[0]) + 1]
        return f"{kind}: {added[0]} is new and comes before {following}, whose rows it moves"
    changes = [
        f"{_listed(names)} {change}"
        for names, change in ((changed, "changed"), (added, "is new"), (gone, "is gone"))
        if names
    ]
    return f"{kind}: {', '.join(changes) or 'the order of the files changed'}"


def _listed(names: Sequence[str]) -> str:
    return names[0] if len(names) == 1 else f"{names[0]} (and {len(names) - 1} more)"


def _files(value: JsonValue) -> dict[str, str]:
    """Return the hashes of a source's files by name."""
    pairs = value if isinstance(value, list) else []
    return {str(pair[0]): str(pair[1]) for pair in pairs if isinstance(pair, list) and len(pair) == 2}


def _without_contents(source: Source, recorded: JsonValue) -> str | None:
    """Compare a source without the contents of its files; return the difference in words, or None."""
    recorded_fields = recorded if isinstance(recorded, dict) else {}
    fields: dict[str, JsonValue] = source.model_dump(mode="json", exclude={*KINDS, "revision"})
    if source.hub is not None:
        if recorded_fields.get("hub") != source.hub:
            return f"hub: {recorded_fields.get('hub')} → {source.hub}"
    else:
        kind = next(kind for kind in KINDS if getattr(source, kind) is not None)
        paths = getattr(source, kind)
        patterns = [Path(pattern_path).name for pattern_path in ([paths] if isinstance(paths, str) else paths)]
        names = _files(recorded_fields.get(kind))
        if not names:
            return kind
        # A name without a dot is a folder: which files it held is unknown once it is gone.
        for name in names:
            if not any(fnmatchcase(name, pattern) or "." not in pattern for pattern in patterns):
                return f"{kind}: {name} → {', '.join(patterns)}"
    changed = [key for key, value in fields.items() if recorded_fields.get(key, value) != value]
    return ", ".join(changed) or None
