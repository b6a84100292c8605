"""Whether a store holds what a recipe makes: rows, corpus, steps with their models, and splits, by their fingerprints.

One rule: nothing is computed, and nothing of a store is written. A run asks the same questions part by part before it
goes on; whatever hands a store's rows on to others asks them all at once.
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
from seamcurate.store.store import StepOutput, Store, numbers

_REPLACE = "run the recipe first, with --replace, or name the store that it made"


class Difference(NamedTuple):
    """One thing that a recipe makes and a store does not hold."""

    text: str
    """What it is, and how it differs."""
    hint: str = "run the recipe first"

    def __str__(self) -> str:
        return f"{self.text}; {self.hint}"


def require(recipe: Recipe, store: Store) -> None:
    """Refuse a store that does not hold what a recipe makes.

    Where a source is no longer here, its name and mapping are compared, and a line says so.

    Raises:
        StaleError: It holds something else, or lacks something; the message names it and the way out.
        ModelError: A model is not there, so nobody can tell whether it is the one that was run.
    """
    found = list(differences(recipe, store.open()))
    if found:
        more = f" (and {len(found) - 1} more)" if len(found) > 1 else ""
        raise StaleError(f"{store.path} does not hold what the recipe makes: {found[0].text}{more}; {found[0].hint}")


def differences(recipe: Recipe, store: Store) -> Iterator[Difference]:
    """Yield what a recipe makes and a store does not hold, upstream first; what only follows from it is left out.

    Raises:
        ModelError: See `require`.
    """
    sources = [*_sources(recipe, store)]
    yield from sources
    if sources:
        return
    steps, corpus = recipe.ready(), store.corpus_store
    try:
        there, outputs = plan_steps(steps, store, corpus)
    except ModelError as error:
        raise ModelError(f"whether {store.path} was made by this recipe cannot be told: {error}") from error
    except StoreError as error:
        yield Difference(str(error))
        return
    changed = [(corpus, output, what) for output, what in (corpus.changed(there) if corpus is not None else ())]
    changed += [(store, output, what) for output, what in store.changed(outputs)]
    for of, output, what in changed:
        where = "of the corpus " if of is corpus else ""
        yield Difference(f"step {output.step.name} {where}was made by another configuration: {what}", _REPLACE)
    if changed:
        return
    lacking = [output.step.name for output in there if corpus is not None and numbers(output.path) != corpus.shards]
    lacking += [output.step.name for output in outputs if numbers(output.path) != store.shards]
    for name in lacking:
        yield Difference(f"it lacks columns of step {name}")
    if lacking:
        return
    for name, split in recipe.splits.items():
        try:
            why = splits.changed(store, name, split)
        except RecipeError as error:
            why = str(error)
        if why is not None:
            yield Difference(f"split {name}: {why}")


def plan_steps(steps: Sequence[Step], store: Store, corpus: Store | None) -> tuple[list[StepOutput], list[StepOutput]]:
    """Work out the fingerprints of a recipe's steps over the corpus and over the rows; see `Store.plan`."""
    if corpus is None:
        return [], store.plan(steps)
    there = corpus.plan(corpus_steps(steps))
    return there, store.plan(steps, {name: output for output in there for name in output.step.adds.names})


def corpus_steps(steps: Sequence[Step]) -> list[Step]:
    """Return the steps that must run over the corpus, each once."""
    found: list[Step] = []
    for step in steps:
        found += [needed for needed in step.on_corpus if needed not in found]
    return found


# ── sources ──────────────────────────────────────────────────────────────────────────────────────────────


def _sources(recipe: Recipe, store: Store) -> Iterator[Difference]:
    """Yield how the rows and the corpus that a recipe names differ from those of the store."""
    pairs = [("rows", recipe.rows, store)]
    corpus = store.corpus_store
    if recipe.corpus is not None:
        if corpus is None or not corpus.about:
            yield Difference("it has no corpus")
            return
        if recipe.corpus.store is None:
            pairs.append(("corpus", recipe.corpus, corpus))
        elif (named := objects.place(recipe.corpus.store).resolve()) and str(named) != str(corpus.path):
            other = Store(recipe.corpus.store)
            if not other.about:
                raise StoreError(f"corpus {other.path} is not there; put it back, or name the store that it is now")
            if other.about.get("source") != corpus.about.get("source"):
                yield Difference(f"corpus: {corpus.path} → {other.path}, of other rows", _REPLACE)
    for title, source, of in pairs:
        recorded = of.about.get("source")
        try:
            identity = source.identity()
        except SourceError as error:
            what = _without_contents(source, recorded)
            if what is None:
                note(f"{title}: {error}: its contents are not compared with the store's")
        else:
            what = None if identity == recorded else source_change(recorded, identity)
        if what is not None:
            yield Difference(f"{title}: {what}", _REPLACE)
        elif not of.about.get("complete"):
            yield Difference(f"it does not hold all {title} yet", "run the recipe first, without --limit")


def source_change(before: JsonValue, after: JsonValue) -> str:
    """Say in a few words how a source differs from the one whose rows were read."""
    if not isinstance(before, dict) or not isinstance(after, dict):
        return "its description"
    keys = [key for key in {**before, **after} if before.get(key) != after.get(key)]
    told = [
        f"commit {before.get(key)} → {after.get(key)}, which `revision` pins"
        if key == "commit"
        else _file_change(before, after, key)
        if key in KINDS
        else key
        for key in keys
    ]
    return ", ".join(told) or "its description"


def grew(before: JsonValue, after: JsonValue) -> bool:
    """Tell whether a source has all the files it had, as they were, and new ones after them alone."""
    if not isinstance(before, dict) or not isinstance(after, dict) or before.keys() != after.keys():
        return False
    keys = [key for key in before if before[key] != after[key]]
    old, new = (before[keys[0]], after[keys[0]]) if len(keys) == 1 and keys[0] in KINDS else (None, None)
    return isinstance(old, list) and isinstance(new, list) and len(new) > len(old) > 0 and new[: len(old)] == old


def first_fingerprint(identity: JsonValue, made: Collection[str]) -> str:
    """Return the fingerprint that a source's rows have: that of the files which were read first.

    Args:
        identity: What the source is now.
        made: The fingerprints that shards of its rows name, if there are any.
    """
    kind = next((key for key in KINDS if key in identity), None) if isinstance(identity, dict) else None
    if isinstance(identity, dict) and kind is not None and isinstance(files := identity[kind], list):
        for count in range(len(files) - 1, 0, -1) if made else ():
            if (earlier := digest({**identity, kind: files[:count]})) in made:
                return earlier
    return digest(identity)


def _file_change(before: dict[str, JsonValue], after: dict[str, JsonValue], kind: str) -> str:
    old, new = _files(before.get(kind)), _files(after.get(kind))
    if not old or not new:
        return kind
    changed = [name for name in new if name in old and old[name] != new[name]]
    added, gone = [name for name in new if name not in old], [name for name in old if name not in new]
    late = list(new).index(added[0]) < len(new) - len(added) if added and not changed and not gone else False
    if late:
        following = list(new)[list(new).index(added[0]) + 1]
        return f"{kind}: {added[0]} is new and comes before {following}, whose rows it moves"
    told = [
        f"{_listed(names)} {what}"
        for names, what in ((changed, "changed"), (added, "is new"), (gone, "is gone"))
        if names
    ]
    return f"{kind}: {', '.join(told) or 'the order of the files changed'}"


def _listed(names: Sequence[str]) -> str:
    return names[0] if len(names) == 1 else f"{names[0]} (and {len(names) - 1} more)"


def _files(value: JsonValue) -> dict[str, str]:
    """Return the hashes of a source's files by name."""
    pairs = value if isinstance(value, list) else []
    return {str(pair[0]): str(pair[1]) for pair in pairs if isinstance(pair, list) and len(pair) == 2}


def _without_contents(source: Source, recorded: JsonValue) -> str | None:
    """Compare all of a source but what its files hold; returns what differs."""
    known = recorded if isinstance(recorded, dict) else {}
    fields: dict[str, JsonValue] = source.model_dump(mode="json", exclude={*KINDS, "revision"})
    if source.hub is not None:
        if known.get("hub") != source.hub:
            return f"hub: {known.get('hub')} → {source.hub}"
    else:
        kind = next(kind for kind in KINDS if getattr(source, kind) is not None)
        place = getattr(source, kind)
        patterns = [Path(one).name for one in ([place] if isinstance(place, str) else place)]
        names = _files(known.get(kind))
        if not names:
            return kind
        # What a folder held is not known once it is gone.
        for name in names:
            if not any(fnmatchcase(name, pattern) or "." not in pattern for pattern in patterns):
                return f"{kind}: {name} → {', '.join(patterns)}"
    changed = [key for key, value in fields.items() if known.get(key, value) != value]
    return ", ".join(changed) or None
