"""The card of a published data set, in Markdown: what was kept and how to reproduce it; beside it, how to load it.

One rule: a card is read in a minute, so that what only some readers look up stands in a file of its own.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple, cast

import yaml
from pydantic import JsonValue

from seamcurate import extras
from seamcurate.data.source import Source
from seamcurate.explore.finding import Finding
from seamcurate.publish import measures
from seamcurate.publish.formats import TRAINERS
from seamcurate.publish.markdown import cell, fenced, megabytes, number, prose, signed, table
from seamcurate.publish.measures import SplitMeasures
from seamcurate.publish.shape import described
from seamcurate.publish.snippet import Configuration, Snippet, load_dataset
from seamcurate.run.recipe import Recipe
from seamcurate.score import golden_check, measured
from seamcurate.select import controls, shaping
from seamcurate.text import counted
from seamcurate.trainers import PROMPT_FORM, SOURCE_PROMPT

_POWERS = ("1K", "10K", "100K", "1M", "10M", "100M", "1B", "10B", "100B", "1T")
"""Upper bounds of the Hub's size categories: a thousand rows, then ten times as many each."""
_SHOWN_RULES, _SHOWN_LINES, _SHOWN_SPLITS = 20, 8, 2
DETAILS = "DETAILS.md"
"""The file beside the card that `details` writes."""


def _folded(title: str, lines: Iterable[str]) -> Iterator[str]:
    """Yield lines that are shown once the title is clicked."""
    yield from (f"<details><summary>{title}</summary>", "", *lines, "", "</details>")


class About(NamedTuple):
    """What a card needs besides the recipe, the facts and the measures."""

    repo_id: str
    licences: Sequence[str]
    """Licences of the source and, if its texts are published too, of the corpus; empty if unknown."""
    configurations: Sequence[Configuration]
    missing: Sequence[str]
    """Local files and models that the recipe names, and only its author has."""
    figures: Mapping[str, str]
    """The path of each split's figure, by the split's name."""
    finding: Finding | None = None
    """What the store shows of its reward, with pairs of the first split's dropped rows."""
    models: Mapping[str, str] = {}
    """The name of each model, by its role."""
    day: str = ""
    """The day on which the store was made."""


def readme(recipe: Recipe, facts: Mapping[str, JsonValue], splits: Sequence[SplitMeasures], details: About) -> str:
    """Write the card: YAML metadata for the Hub, then the text."""
    rows = sum(configuration.rows for configuration in details.configurations)
    metadata = {
        "license": details.licences[0] if len(details.licences) == 1 else list(details.licences) or "unknown",
        "task_categories": ["text-generation"],
        "tags": ["seamcurate", "rlhf", "reward-model", "data-curation", str(facts["trainer"])],
        "size_categories": [size_category(rows)],
        "configs": [
            {
                "config_name": configuration.name,
                **({"default": True} if i == 0 else {}),
                "data_files": [{"split": "train", "path": f"data/{configuration.folder}/train-*.parquet"}],
            }
            for i, configuration in enumerate(details.configurations)
        ],
    }
    lines = [
        "---",
        yaml.safe_dump(metadata, sort_keys=False, allow_unicode=True, default_flow_style=None, width=1000).rstrip(),
        "---",
        "",
        f"# {details.repo_id.split('/')[-1]}",
        *_finding(splits, details),
        *_summary(recipe, facts, splits, details),
        "",
        "## What was dropped, and why",
        "A score that only repeats something simple is no better than it. So baselines stand beside each score: how far the rows' "
        "scores go with them (Spearman's rank correlation, from −1 to 1), and what the filter did to their means.",
    ]
    for split in splits[:_SHOWN_SPLITS]:
        lines += ["", *_split(recipe, facts, split, details.figures.get(split.name))]
    if rest := splits[_SHOWN_SPLITS:]:
        told = ", ".join(f"`{cell(split.name)}` ({split.kept:,} of {split.rows:,} rows kept)" for split in rest)
        lines += ["", f"The same of {told}: [{DETAILS}]({DETAILS})."]
    example = next(iter(TRAINERS[str(facts["trainer"])].snippets(details.repo_id, details.configurations[0])))
    lines += ["", "## How to load it", *fenced(example.language, example.code)]
    lines += [
        "",
        f"Code for each trainer and format, and the type and meaning of every column: [{DETAILS}]({DETAILS}).",
    ]
    lines += ["", "## Where it comes from", *_origin(recipe, facts, details)]
    lines += ["", "## How to reproduce it", *_reproduction(details, str(facts["seamcurate"]))]
    return "\n".join(lines) + "\n"


def details(recipe: Recipe, facts: Mapping[str, JsonValue], splits: Sequence[SplitMeasures], about: About) -> str:
    """Write what the card has no room for: code for each trainer, every column, and the splits after the first two."""
    lines = [f"# {about.repo_id.split('/')[-1]}: how to load it, and what its columns are", ""]
    lines += ["The rest is in the [card](README.md).", "", "## Code for each trainer and format"]
    lines += loading(about.repo_id, about.configurations, str(facts["trainer"]))
    lines += ["", "## Columns", *_columns(facts, about.configurations)]
    for split in splits[_SHOWN_SPLITS:]:
        lines += ["", *_split(recipe, facts, split, about.figures.get(split.name))]
    return "\n".join(lines) + "\n"


def _finding(splits: Sequence[SplitMeasures], details: About) -> Iterator[str]:
    """Open with what was found: a headline, what was kept, and dropped prompts with the answer that the reward preferred."""
    finding, leading = details.finding, splits[0]
    dropped = leading.rows - leading.kept
    if finding is not None:
        yield f"**{finding.headline}.** {finding.counted}"
        yield ""
    kept = f"`{cell(leading.name)}` keeps {leading.kept:,} of {leading.rows:,} prompts and leaves out {dropped:,}"
    rules = ", ".join(f"{rule.dropped:,} by *{cell(rule.rule)}*" for rule in leading.rules[:3] if rule.dropped)
    made = [f"{role} `{cell(name)}`" for role, name in details.models.items()]
    yield f"{kept}{f' ({rules})' if rules else ''}. Scored{f' on {details.day}' if details.day else ''} with {', '.join(made) or 'no model'}."
    yield ""
    if finding is None or not finding.pairs:
        return
    yield f"{counted(len(finding.pairs), 'prompt')} that were left out, and what the reward makes of them:"
    yield ""
    rows = [
        [
            prose(pair.prompt),
            f"{prose(pair.golden)} ({number(pair.reward)})",
            f"{prose(pair.preferred)} (**{number(pair.preferred_reward)}**)",
        ]
        for pair in finding.pairs
    ]
    yield from table(["prompt", "golden response (reward)", "the answer that the reward prefers (reward)"], rows)
    yield ""


def _summary(
    recipe: Recipe, facts: Mapping[str, JsonValue], splits: Sequence[SplitMeasures], details: About
) -> Iterator[str]:
    columns, trainer = cast(dict[str, dict[str, str]], facts["columns"]), TRAINERS[str(facts["trainer"])]
    nested = ("list", "struct", "map")
    # What a reader can sort by: lists of candidates and structs are columns, too, but no scores.
    scores = {
        name
        for name, column in columns.items()
        if column["made_by"] != "source" and not column["type"].startswith(nested)
    }
    scored = [
        configuration.name
        for configuration in details.configurations
        if scores <= {_store_column(field, facts) for field in configuration.fields}
    ]
    score = f"Every score is a field of `{trainer.scores_in}`" if trainer.scores_in else "Every score is a column"
    configurations = (
        "here" if len(scored) == len(details.configurations) else f"in {', '.join(f'`{name}`' for name in scored)}"
    )
    yield (
        f"{splits[0].rows:,} rows of {source_name(recipe.rows)} were scored, and SQL chose among them by the scores. "
        f"{f'{score} {configurations}, and a' if scored else 'A'} ledger says of every row of the source why it stayed or went. "
        f"Written for {trainer.title}. {described(details.configurations[0].shape)}"
    )
    families = [
        meaning
        for family, meaning in _FAMILIES.items()
        if any(name == family or name.startswith(f"{family}_") for name in columns)
    ]
    # Two spaces before a line's end are a line break in Markdown.
    yield from ("", *(f"{meaning}  " for meaning in families), *([""] if families else []))
    kept = {split.name: f"{split.kept:,} of {split.rows:,}" for split in splits}
    lines = [[f"`{c.name}`", c.form, kept[c.split], f"{c.rows:,}", megabytes(c.bytes)] for c in details.configurations]
    yield from table(["configuration", "format", "source rows kept", "lines", "size"], lines)


_FAMILIES = {
    "seam": (
        "**SEAM** (columns `seam_…`): how far a reward model can be trusted with a policy, prompt by prompt. Answers known to "
        "be worse than the golden response are shown to the reward model; each that it prefers counts by how much it is "
        "preferred and how likely the policy is to write it. 0 means that none is preferred; the further below, the more "
        "training on this prompt would reward what is wrong. Paper: *It Takes Two: On the Seamlessness between Reward and "
        "Policy Model in RLHF*."
    ),
    "rer": (
        "**RER** (columns `rer…`): a reward that can be looked into, of the golden response's length, repetition and relevance. "
        "Paper: *Rethinking the Role of Proxy Rewards in Language Model Alignment* (arXiv:2402.03469)."
    ),
}
_SOURCE_MEANINGS = {
    "row_id": "the row's place in its source, from 0",
    "prompt": "what is asked",
    "response": "the golden response: the answer that worse ones are held against",
    "reference": "an answer that the response is compared with",
}
_EXPORTED_MEANINGS = {
    "input": "what is asked",
    "output": "the answer to learn",
    "chosen": "the better answer",
    "rejected": "the worse answer",
    "candidate_variant": "the sample set that the candidate is of; `golden` is the golden response itself",
    "candidate_rank": "its place in that set, from 1",
    "candidate_reward": "the reward model's score of it",
    "candidate_similarity": "cosine of its question to the row's, or of its text to the one it was made of",
    "source_row_id": "the similar question's row in the corpus",
    "variant": "the sample set",
    "rank": "place in the sample set, from 1",
    "similarity": "cosine of the two questions",
    "kind": "how the pair was made: sft, golden or neighbour",
    PROMPT_FORM: "the form in which the prompt was written out, as the policy was scored",
    SOURCE_PROMPT: "what is asked, as the source has it",
}


def _split(recipe: Recipe, facts: Mapping[str, JsonValue], split: SplitMeasures, figure: str | None) -> Iterator[str]:
    yield f"### `{split.name}`: {split.kept:,} of {split.rows:,} rows kept"
    columns = facts["columns"]
    assert isinstance(columns, dict)
    column = columns.get(split.score)
    if isinstance(column, dict):
        said = measured.sentence(split.score, str(column["made_by"]))
        yield f"Decided by `{cell(split.score)}`: {cell(column['meaning'] or 'a column of the source')}.{f' {said}' if said else ''}"
    doubt = golden_check.warning(golden_check.found([facts]))
    if doubt and split.score.startswith("seam_"):
        yield ""
        yield f"**Golden check**: {cell(doubt)}."
    yield from _controls(recipe, split.name)
    if shaped := recipe.splits[split.name].rules:
        yield ""
        yield f"Of what the filter keeps, rows were dropped at random for: {cell('; '.join(map(shaping.described, shaped.values())))}."
    if order := recipe.splits[split.name].order:
        form = recipe.splits[split.name].format
        yield ""
        yield (
            f"The rows are in order {cell(order.described)}; rows without a value come last. A curriculum is an order, so turn shuffling "
            f"off in the trainer: {TRAINERS[str(facts['trainer'])].unshuffled(form)}."
        )
    parameters = ", ".join(
        f"{cell(key)} = {cell(value)}" for key, value in recipe.splits[split.name].parameters.items()
    )
    code = _query(recipe.splits[split.name].filter)
    title = f"The filter, one SQL query{f' with {parameters}' if parameters else ''}"
    if len(code) <= _SHOWN_LINES:
        yield ""
        yield from _folded(title, fenced("sql", "\n".join(code)))
    else:
        yield f"{title}: `splits.{cell(split.name)}.filter` in `seamcurate.json`."
    yield ""
    # A filter may make a rule a row, and a card is read by people.
    rules = [
        [
            cell(rule.rule),
            f"{rule.kept:,}",
            f"{rule.dropped:,}",
            number(rule.threshold),
            " / ".join(map(number, (rule.low, rule.middle, rule.high))),
        ]
        for rule in split.rules[:_SHOWN_RULES]
    ]
    yield from table(["rule", "kept", "dropped", "threshold", "value: least / median / most"], rules)
    if len(split.rules) > _SHOWN_RULES:
        yield f"\n… and {len(split.rules) - _SHOWN_RULES:,} rules more; see `ledger/{split.name}.parquet`."
    if figure:
        yield ""
        yield f"![{cell(split.score)} and length of the rows kept and dropped in {split.name}]({figure})"
    yield ""
    baselines = [
        [baseline.name, signed(baseline.correlation), *map(number, (baseline.all, baseline.kept, baseline.dropped))]
        for baseline in split.baselines
    ]
    yield from table(
        ["baseline", f"goes with {cell(split.score)}", "mean of all rows", "of the kept", "of the dropped"], baselines
    )
    yield ""
    # Length first: it is what reward models are known to prefer, and a source without answers has none.
    length = next((b for b in split.baselines if b.name == measures.ANSWER), split.baselines[0])
    yield f"The filter moved the mean of *{length.name}* from {number(length.all)} to {number(length.kept)}."


def _query(sql: str) -> list[str]:
    """Return the lines of a query without those that are comments or empty."""
    return [line for line in sql.splitlines() if line.strip() and not line.strip().startswith("--")]


def _controls(recipe: Recipe, name: str) -> Iterator[str]:
    """Say which splits a split is held against, or which one it is a control of."""
    kinds = recipe.splits[name].controls
    if kinds:
        yield ""
        listed = "; ".join(f"`{controls.name(name, control)}`, {controls.MEANINGS[control]}" for control in kinds)
        yield f"Controls of the same size, to hold it against: {listed}. A filter is worth its cost where training on it beats them."
    for parent, split in recipe.splits.items():
        for control in split.controls:
            if controls.name(parent, control) == name:
                note = f" {controls.NO_MEASURE}" if control == "shuffled" else ""
                yield ""
                yield f"A control of `{parent}`: {controls.MEANINGS[control]}.{note}"


def _columns(facts: Mapping[str, JsonValue], configurations: Sequence[Configuration]) -> Iterator[str]:
    columns, trainer = cast(dict[str, dict[str, str]], facts["columns"]), TRAINERS[str(facts["trainer"])]
    names_by_field: dict[tuple[str, str], list[str]] = {}
    for configuration in configurations:
        for field in configuration.fields.items():
            names_by_field.setdefault(field, []).append(configuration.name)
    meanings = {**_EXPORTED_MEANINGS, **trainer.meanings}
    # A single configuration needs no column that says which configurations have the field.
    show_configurations = len(configurations) > 1
    lines = []
    for (name, kind), names in names_by_field.items():
        stored = _store_column(name, facts)
        column = columns.get(stored, {"made_by": "export", "meaning": meanings.get(name, "")})
        holders = "all" if len(names) == len(configurations) else ", ".join(f"`{name}`" for name in names)
        meaning = cell(column["meaning"] or _SOURCE_MEANINGS.get(stored, ""))
        lines.append(
            [
                f"`{cell(name)}`",
                cell(kind),
                *([holders] if show_configurations else []),
                cell(column["made_by"]),
                meaning,
            ]
        )
    yield from table(["column", "type", *(["in"] if show_configurations else []), "made by", "meaning"], lines)
    # Every format holds the prompt, whatever it calls that column.
    exported = {_store_column(name, facts) for name, _ in names_by_field} | {"prompt"} | trainer.omits
    if absent := [f"`{cell(name)}`" for name in columns if name not in exported]:
        yield ""
        yield f"Not in the files, but in the store they were made in: {', '.join(absent)}."


def _store_column(field: str, facts: Mapping[str, JsonValue]) -> str:
    """Return the store's column that a field of a published file holds; empty for a field of the trainer's format alone."""
    columns, scores_in = facts["columns"], TRAINERS[str(facts["trainer"])].scores_in
    assert isinstance(columns, dict)
    if scores_in and field != "prompt" and not field.startswith(f"{scores_in}."):
        return ""
    name = field.removeprefix(f"{scores_in}.")
    while name not in columns and name.startswith("source_") and name != SOURCE_PROMPT:
        # The export renamed the column, as the trainer reserves its name.
        name = name.removeprefix("source_")
    return name


def _origin(recipe: Recipe, facts: Mapping[str, JsonValue], details: About) -> Iterator[str]:
    licence = ", ".join(details.licences) or "unknown: ask the source's authors before you use it"
    yield f"- Rows: {source_name(recipe.rows)}{_revision(facts['source'])}"
    if facts["corpus"] is not None:
        corpus = source_name(recipe.corpus) if recipe.corpus else "a store's corpus"
        yield f"- Answers to similar questions: {corpus}{_revision(facts['corpus'])}"
    yield f"- Licence, carried from the source: {licence}"
    models = facts["models"]
    assert isinstance(models, dict)
    for role, identity in models.items():
        yield f"- Model, {role}: `{cell(_identity(identity))}`"
    yield "- Every setting, revision and fingerprint: `seamcurate.json`; each row's verdict: `ledger/`"


def _reproduction(details: About, version: str) -> Iterator[str]:
    yield (
        f"After {extras.installed(version, 'cpu', 'hub')}, `seamcurate reproduce {details.repo_id}` "
        "downloads `recipe.yaml` at one commit, runs it with the revisions written down in `seamcurate.json`, and says of every file "
        "whether it came out the same. A recipe is data: reading it runs no code."
    )
    if details.missing:
        yield ""
        yield (
            "The recipe names what only its author has; put it into a folder and give `--files FOLDER`: "
            + ", ".join(f"`{cell(name)}`" for name in details.missing)
            + "."
        )


def loading(repo_id: str, configurations: Sequence[Configuration], trainer: str) -> Iterator[str]:
    """Yield the code that loads a configuration of each format, as lines of Markdown."""
    examples: dict[str, Configuration] = {}
    for configuration in configurations:
        examples.setdefault(configuration.form, configuration)
    for form, configuration in examples.items():
        if len(examples) > 1:
            yield ""
            yield f"Format *{form}*, as in `{configuration.name}`:"
            yield ""
        for snippet in _snippets(repo_id, configuration, trainer):
            yield f"**{snippet.title}**"
            yield from fenced(snippet.language, snippet.code)


def _snippets(repo_id: str, configuration: Configuration, trainer: str) -> Iterator[Snippet]:
    snippets = list(TRAINERS[trainer].snippets(repo_id, configuration))
    if not any("load_dataset(" in snippet.code for snippet in snippets):
        yield Snippet("datasets", "python", load_dataset(repo_id, configuration))
    files = f"'hf://datasets/{repo_id}/data/{configuration.folder}/train-*.parquet'"
    scores = TRAINERS[trainer].scores_in
    query = f"SELECT unnest({scores}) FROM {files};" if scores else f"FROM {files};"
    yield Snippet("DuckDB", "sql", _DUCKDB + query)
    yield from snippets


_DUCKDB = """\
-- What each score comes to. A private data set wants first: CREATE SECRET (TYPE huggingface, TOKEN '…');
SUMMARIZE """


def source_name(source: Source) -> str:
    """Return a source's public name: a link to a Hub data set, or the files' names without their folder."""
    if source.hub is not None:
        path = "/".join(piece for piece in (source.name, source.data_dir, source.split) if piece)
        return f"[{source.hub}](https://huggingface.co/datasets/{source.hub}) ({path})"
    files = source.parquet or source.jsonl or source.csv or source.arrow or source.store or ""
    names = [files] if isinstance(files, str) else files
    return ", ".join(f"`{cell(Path(name).name)}`" for name in names)


def size_category(rows: int) -> str:
    """Return the Hub's category for a data set of so many rows.

    Example:
        >>> size_category(2_500_000)
        '1M<n<10M'
    """
    index = next((i for i in range(len(_POWERS)) if rows < 10 ** (i + 3)), len(_POWERS))
    if index == 0:
        return f"n<{_POWERS[0]}"
    return f"n>{_POWERS[-1]}" if index == len(_POWERS) else f"{_POWERS[index - 1]}<n<{_POWERS[index]}"


def _revision(identity: JsonValue) -> str:
    if not isinstance(identity, dict):
        return ""
    if "commit" in identity:
        return f", commit `{identity['commit']}`"
    files = next((value for value in identity.values() if isinstance(value, list)), [])
    hashes = [str(file[1])[:12] for file in files if isinstance(file, list)]
    return f", SHA-256 {', '.join(hashes[:3])}…" if hashes else ""


def _identity(identity: JsonValue) -> str:
    if isinstance(identity, dict):
        return ", ".join(f"{key}: {_identity(value)}" for key, value in identity.items() if value not in (None, {}))
    if isinstance(identity, list):
        return f"[{'; '.join(map(_identity, identity))}]"
    return str(identity)
