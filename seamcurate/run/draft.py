"""The first recipe for data that nobody has described yet: look at the first rows, guess, measure, and write what runs.

One rule: a guess is said. What was taken for what, and what was measured, stands in the recipe as a comment, and no file
that exists is overwritten.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from seamcurate.data import formats, layouts
from seamcurate.data.source import Chunk, Source
from seamcurate.errors import RecipeError, SourceError
from seamcurate.models.function import BUNDLED, RewardFunction
from seamcurate.models.roles import ROLES
from seamcurate.run import agreement
from seamcurate.run import recipe as recipes
from seamcurate.run.plan import measure_band
from seamcurate.text import brief, counted, one_line
from seamcurate.trainers import free_name

_LOOKED_AT = 64
"""Rows that are looked at."""
_USUAL = {
    "prompt": ("prompt", "question", "instruction", "query", "problem", "input", "text"),
    "response": ("response", "answer", "chosen", "output", "completion", "solution", "response_j", "target"),
    "reference": ("reference", "ground_truth", "reference_answer", "final_answer", "gold"),
}
"""Names that columns usually have, the likeliest first."""
_PLAIN = re.compile(r"[A-Za-z0-9_./][A-Za-z0-9_./-]*")
_NOT_PLAIN = {"true", "false", "null", "yes", "no", "on", "off", "y", "n", "none"}


class Draft(NamedTuple):
    """A recipe that `init` wrote."""

    path: Path
    """The file that was written."""
    text: str
    """What it says: YAML with comments."""
    lines: list[str]
    """Lines for a person: what the data look like, what was measured, what to do next."""


def init(
    data: str | Path,
    out: str | Path = "recipe.yaml",
    corpus: str | Path | None = None,
    policy: str | None = None,
    reward: str | None = None,
    encoder: str | None = None,
) -> Draft:
    """Look at data and write a commented recipe that runs; nothing is overwritten.

    The first rows decide the layout, or which columns are prompt, response and reference. The steps are those for which
    the models are there: with a policy, a reward model and a sample set of worse answers, SEAM and a split by it. Where a
    corpus and an encoder are given, it is measured how many rows have neighbours in the band of cosines.

    Args:
        data: A file or folder, a pattern of files, a store, or the id of a data set on the Hugging Face Hub.
        out: The recipe to write. Paths in it are relative to its folder.
        corpus: Where the answers to other questions come from, named as `data` is.
        policy: The policy: a folder or Hub id, or `KIND:NAME` with another kind of model, such as `fake:policy`.
        reward: The reward model, named as `policy` is; or a reward function, `verifier.py:score` or `number_match`.
        encoder: The sentence encoder, named as `policy` is.

    Returns:
        The recipe's path, its text, and lines for a person.

    Raises:
        RecipeError: The recipe is there already, or a model is of no kind that its role takes.
        SourceError: The data cannot be read, or no column looks like the prompt.

    Example:
        >>> import json, pathlib, tempfile
        >>> from seamcurate import Recipe, init
        >>> folder = pathlib.Path(tempfile.mkdtemp())
        >>> _ = (folder / "math.jsonl").write_text(json.dumps({"question": "2 + 2?", "answer": "4"}))
        >>> draft = init(folder / "math.jsonl", folder / "recipe.yaml", policy="fake:policy", reward="fake:reward")
        >>> draft.lines[0]
        'prompt is `question`, response is `answer`'
        >>> [step.name for step in Recipe.load(draft.path).steps][-3:]
        ['seam_probe', 'rer_length', 'rer_repetition']
    """
    path = Path(out)
    if path.exists():
        raise RecipeError(f"{path} is there already, and nothing is overwritten; name another --out, or move it away")
    rows = _looked_at(data, "data")
    others = None if corpus is None else _looked_at(corpus, "corpus")
    named = {"policy": policy, "reward": reward, "encoder": encoder}
    models = {role: _model(role, name, path.parent, rows) for role, name in named.items() if name is not None}
    text = _written(path, rows, others, models, [])
    # Refused before the band is measured.
    recipe = recipes.loads(text, path.parent, f"the recipe for {path}")
    steps = recipe.ready()
    rows = rows.renamed(name for step in steps for name in step.adds.names)
    others = others and others.renamed(name for step in agreement.corpus_steps(steps) for name in step.adds.names)
    text = _written(path, rows, others, models, [])
    recipe = recipes.loads(text, path.parent, f"the recipe for {path}")
    lines = [*rows.lines, *(f"corpus: {line}" for line in (others.lines if others else ()))]
    if _measures(rows, others, models):
        # Quantiles of cosines are left to `plan`: a recipe says what can be chosen.
        measured = [line for line in measure_band(recipe) if "band" in line or "corpus" in line]
        text = _written(path, rows, others, models, measured)
        lines += measured
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("x", encoding="utf-8") as file:
        file.write(text)
    return Draft(path, text, [*lines, *_missing(rows, others, models)])


class _Looked(NamedTuple):
    """What the first rows of a source look like."""

    kind: str
    location: str
    fields: dict[str, str]
    """The source's fields that say which column is what, or its layout."""
    names: list[str]
    """Its columns."""
    columns: list[str]
    """Each column with the type of its first value."""
    renames: dict[str, str]
    """New names of the columns whose own names seamcurate has a use for."""
    answered: bool
    """Whether rows have a golden response."""
    worse_given: bool
    lines: list[str]

    def source(self, folder: Path) -> str:
        """Write the source as a value of a recipe that lies in `folder`."""
        fields = {self.kind: self.location if self.kind == "hub" else _relative(self.location, folder), **self.fields}
        written = [f"{key}: {_scalar(value)}" for key, value in fields.items()]
        renames = ", ".join(f"{_scalar(name)}: {_scalar(new_name)}" for name, new_name in self.renames.items())
        return "{" + ", ".join([*written, *([f"rename: {{{renames}}}"] if renames else [])]) + "}"

    def renamed(self, added: Iterable[str]) -> _Looked:
        """Return the source with new names for columns that are called like one that a step adds; SQL ignores case."""
        taken = {name.lower() for name in added}
        names = [name for name in self.names if name.lower() in taken - {"prompt", "response", "reference"}]
        free = {*taken, *(name.lower() for name in self.names)}
        renames = self.renames | {name: free_name(name, free) for name in names}
        said = ", ".join(f"`{brief(name, 60)}` is `{brief(new_name, 60)}`" for name, new_name in renames.items())
        return self._replace(
            renames=renames, lines=[*self.lines, *([f"columns whose names are taken: {said}"] if said else [])]
        )


def _looked_at(data: str | Path, title: str) -> _Looked:
    """Look at the first rows of data: their layout, or the columns that have usual names."""
    kind, location = _kind(str(data))
    source = Source.model_validate({kind: location, "shard_rows": _LOOKED_AT})
    head = source.head(_LOOKED_AT)
    if not head:
        raise SourceError(f"{title} {location}: none of its first rows can be read; check the file")
    names = list(dict.fromkeys(name for row in head for name in row))
    layout = next((name for row in head if (name := layouts.looks_like(row))), None)
    fields = {"layout": layout} if layout else _guessed(names, kind)
    if "prompt" not in fields and layout is None and kind != "store":
        raise SourceError(
            f"{title} {location}: no column looks like the prompt; it has {', '.join(brief(name, 40) for name in names)}. "
            f"Write `rows: {{{kind}: …, prompt: COLUMN}}` into a recipe by hand"
        )
    # A column that has the name of its role needs no mapping.
    fields = {key: value for key, value in fields.items() if key != value}
    renames = {name: free_name(name, {other.lower() for other in names}) for name in names if name.lower() == "row_id"}
    chunk: Chunk = next(iter(source.model_copy(update={**fields, "rename": renames}).chunks()))
    said = (
        f"layout {layout}"
        if layout
        else ", ".join(
            f"{role} is `{brief(name, 60)}`" for role, name in (_guessed(names, kind) or {"prompt": "prompt"}).items()
        )
    )
    lines = [said, *chunk.notes]
    if chunk.rejected.num_rows:
        reason = one_line(chunk.rejected["reason"][0].as_py())
        lines.append(
            f"{chunk.rejected.num_rows} of the first {counted(len(head), 'row')} are set aside, such as: {reason}"
        )
    if not chunk.rows.num_rows:
        raise SourceError(f"{title} {location}: each of its first rows is set aside: {chunk.rejected['reason'][0]}")
    answered = "response" in chunk.rows.column_names and chunk.rows["response"].null_count < chunk.rows.num_rows
    columns = [f"{brief(name, 60)} ({_word(name, head)})" for name in names]
    worse = "worse_given" in chunk.rows.column_names
    return _Looked(kind, location, fields, names, columns, renames, answered, worse, lines)


def _kind(data: str) -> tuple[str, str]:
    """Tell which kind of source data are, by name and by what is there."""
    path = Path(data).expanduser()
    names = [name.lower() for name in (path.name, path.stem, Path(path.stem).stem)]
    if data.startswith("s3://") or (path / "store.json").is_file():
        return "store", data
    if any((path / name).is_file() for name in ("state.json", "dataset_dict.json")):
        return "arrow", data
    if path.is_dir():
        return "parquet", data
    for kind, suffixes in _SUFFIXES.items():
        if any(name.endswith(suffix) for name in names for suffix in suffixes):
            return kind, data
    if not path.exists() and re.fullmatch(r"[\w.-]+/[\w.-]+", data):
        return "hub", data
    known = ", ".join(suffix for suffixes in _SUFFIXES.values() for suffix in suffixes)
    raise SourceError(
        f"{data}: it is no file or folder of a kind that is read ({known}, a store, a Hub id); check the path"
    )


_SUFFIXES = {
    "jsonl": (".jsonl", ".json", ".ndjson"),
    "csv": (".csv", ".tsv"),
    "parquet": (".parquet",),
    "arrow": (".arrow",),
}


def _guessed(names: Sequence[str], kind: str) -> dict[str, str]:
    """Map roles to the columns that have usual names."""
    if kind == "store":
        return {}
    by_lower = {name.lower(): name for name in reversed(names)}
    found: dict[str, str] = {}
    for role, usual in _USUAL.items():
        free = (by_lower[name] for name in usual if name in by_lower and by_lower[name] not in found.values())
        if (name := next(free, None)) is not None:
            found[role] = name
    return found


def _word(name: str, head: Sequence[Mapping[str, object]]) -> str:
    value = next((row[name] for row in head if row.get(name) is not None), None)
    return formats.word(value)


def _model(role: str, named: str, folder: Path, rows: _Looked) -> str:
    """Write the model that a name is of as a value of a recipe that lies in `folder`."""
    kinds = [kind.key for kind in ROLES[role]]
    prefix, _, rest = named.partition(":")
    if rest and prefix in kinds:
        kind, name = prefix, rest
    elif role == "reward" and (".py:" in named or named in BUNDLED):
        kind, name = RewardFunction.key, named
    elif re.match(r"[a-z_]+:(?!//)", named) and not Path(named).exists():
        raise RecipeError(f"--{role} {named}: {prefix} is no kind of {role}; there are: {', '.join(kinds)}")
    else:
        kind, name = kinds[0], named
    names = {role: rows.fields.get(role) for role in _USUAL}
    columns = RewardFunction(path=name).with_data_names(names).columns if kind == RewardFunction.key else {}
    file = Path(name.rpartition(".py:")[0] + ".py" if ".py:" in name else name)
    placed = name.replace(str(file), _relative(str(file), folder), 1) if file.exists() else name
    read = ", ".join(f"{_scalar(parameter)}: {column}" for parameter, column in columns.items())
    return f"{{{kind}: {_scalar(placed)}{f', columns: {{{read}}}' if read else ''}}}"


def _measures(rows: _Looked, corpus: _Looked | None, models: Mapping[str, str]) -> bool:
    """Tell whether the recipe retrieves: a corpus with answers, and an encoder."""
    return rows.answered and corpus is not None and corpus.answered and "encoder" in models


def _written(
    path: Path,
    rows: _Looked,
    corpus: _Looked | None,
    models: Mapping[str, str],
    measured: Sequence[str],
) -> str:
    """Write the recipe."""
    steps, splits = _steps(rows, corpus, models, measured)
    lines = [
        f"# Written by `seamcurate init` from the first rows of {one_line(rows.location)}. Change it as you like.",
        f"#   seamcurate plan {path.name} my-store    # what a run would take; computes nothing",
        f"#   seamcurate run {path.name} my-store     # run it; run it again to resume",
        "",
        *(f"# {one_line(line)}" for line in rows.lines),
        *(f"#   {one_line(column)}" for column in rows.columns),
        f"rows: {rows.source(path.parent)}",
        "",
        "# Other questions with their answers: answers to similar questions are usually wrong for yours.",
        f"corpus: {corpus.source(path.parent)}"
        if corpus
        else "# corpus: {jsonl: corpus.jsonl, prompt: question, response: answer}",
        "",
        *(["models:"] if models else ["# models:"]),
        *(
            f"  {role}: {models[role]}" if role in models else f"  # {role}: {{{kind}: …}}"
            for role, kind in (
                ("policy", "causal_lm"),
                ("reward", "sequence_classifier"),
                ("encoder", "sentence_encoder"),
            )
        ),
        "",
        "steps:",
        *(f"  {line}" for line in steps),
        "",
        "splits:",
        *(f"  {line}" for line in splits),
    ]
    return "\n".join(lines) + "\n"


def _steps(
    rows: _Looked, corpus: _Looked | None, models: Mapping[str, str], measured: Sequence[str]
) -> tuple[list[str], list[str]]:
    """Write the steps for which models and columns are there, and a split by the first score among them."""
    steps, scores = list[str](), list[str]()
    scored = rows.answered and {"policy", "reward"} <= models.keys()
    if _measures(rows, corpus, models):
        steps += ["# The answers to the 30 most similar questions of the corpus whose cosine lies in the band."]
        steps += [f"# Measured: {one_line(line)}" for line in measured]
        steps += ["- retrieve: {k: 30, band: [0.80, 0.90]}"]
        scores += ["contrast"] if scored else []
    if rows.worse_given and scored:
        scores += ["given"]
    if scored and not scores:
        steps += ["# Golden responses made worse: a sample set that needs no corpus.", "- probes: {}"]
        scores += ["probe"]
    for variant in scores:
        steps += [
            f"# Which answers of the set `{variant}` does the reward model prefer, and would the policy write them?",
            f"- seam: {{variant: {variant}}}",
        ]
    if rows.answered and "reward" in models and not scores:
        steps += ["# The reward of each golden response.", "- reward: {}"]
    if rows.answered:
        steps += ["# Length and repetition of the golden response; no model is needed.", "- length_incentive: {}"]
        steps += ["- repetition_penalty: {}"]
    else:
        steps += [
            "# Your rows have no golden response; a random number a row is a baseline to choose by.",
            "- random: {}",
        ]
    if scores:
        return steps, [
            f"# Drops the 20 % of rows with the lowest SEAM of {scores[0]}; a row of which nothing is misjudged stays.",
            f"train: {{filter: keep_above_lowest.sql, rate: 0.2, by: seam_{scores[0]}, format: prompts}}",
        ]
    if rows.answered:
        return steps, [
            "# Keeps the rows whose golden response repeats itself little.",
            "train: {filter: keep_between.sql, by: rer_repetition, low: 0.5, format: prompts}",
        ]
    return steps, [
        "# Keeps every row, until a score says which to drop.",
        "train: {filter: SELECT row_id FROM rows, format: prompts}",
    ]


def _missing(rows: _Looked, corpus: _Looked | None, models: Mapping[str, str]) -> Iterator[str]:
    """Yield what else could be given, and what it would add."""
    if not rows.answered:
        yield "no column looks like the golden response; SEAM compares with it: name one by `response`"
    lacking = [f"--{role}" for role in ("policy", "reward") if role not in models]
    if lacking and rows.answered:
        yield f"give {' and '.join(lacking)} too, and the recipe says which prompts the reward model gets wrong"
    if rows.answered and not _measures(rows, corpus, models):
        yield "give --corpus and --encoder for worse answers out of similar questions, and the band is measured"


def _relative(location: str, folder: Path) -> str:
    """Return a path as it is named from a recipe's folder: relative where it lies under it, else absolute."""
    if location.startswith("s3://"):
        return location
    full, base = Path(location).expanduser().absolute(), folder.absolute()
    return str(full.relative_to(base) if full.is_relative_to(base) else full)


def _scalar(text: str) -> str:
    """Write a text as a value in YAML's braces: plain where that is safe, else quoted as JSON, which YAML reads."""
    plain = _PLAIN.fullmatch(text) and text.lower() not in _NOT_PLAIN and not re.fullmatch(r"[\d._e+-]+", text)
    return text if plain else json.dumps(text)
