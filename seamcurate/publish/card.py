"""What a published data set says of itself: a card that a stranger understands, its figures, and its facts as JSON.

One rule: every number on a card is computed from the store when the card is written; none is taken on trust.
"""

from __future__ import annotations

import importlib.util
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple, cast

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import yaml
from pydantic import JsonValue

from seamcurate import words
from seamcurate.data.source import Source
from seamcurate.models.protocols import Prompt
from seamcurate.models.template import prompt_text
from seamcurate.run.recipe import Models, Recipe
from seamcurate.score.baseline import Random
from seamcurate.select import views
from seamcurate.storage import shard
from seamcurate.store.store import Store
from seamcurate.study.statistics import spearman
from seamcurate.text import brief
from seamcurate.trainers import (
    PROMPT_FORM,
    REWARD_FILE,
    SOURCE_PROMPT,
    Shape,
    commands,
    told,
    verl_template,
)

if TYPE_CHECKING:
    from matplotlib.axes import Axes

FORMAT = 1
"""Of the facts; raised when an older reader would misread them."""

Floats = npt.NDArray[np.float64]

_POWERS = ("1K", "10K", "100K", "1M", "10M", "100M", "1B", "10B", "100B", "1T")
"""The bounds of the Hub's size categories: a thousand, and ten times as much each."""
_SHOWN_RULES = 20
_QUESTION, _ANSWER = "words of the prompt", "words of the response"


class Ruler(NamedTuple):
    """Something simple that a score might be measuring without anybody's wish, and how far it does."""

    name: str
    correlation: float
    """Spearman's, over the scored rows; NaN where either is constant."""
    all: float
    """Mean over every row."""
    kept: float
    dropped: float


class Verdicts(NamedTuple):
    """A split in numbers."""

    name: str
    form: str
    score: str
    """What decided, by the name the card gives it."""
    rows: int
    kept: int
    rules: list[dict[str, object]]
    """rule, kept, dropped, threshold, and the smallest, middle and largest deciding value."""
    rulers: list[Ruler]
    scores: Floats
    """A row's score, NaN where it has none."""
    keeps: npt.NDArray[np.bool_]
    lengths: Floats
    """A row's length in words."""


def measure(store: Store, name: str) -> Verdicts:
    """Hold a split's score against length, repetition and chance, and count what each rule did.

    The score is the numeric column that the filter's `by` names, or else the value the ledger decided by.
    """
    folder = store.path / "splits" / name
    record = store.split_record(name)
    parameters = record["parameters"]
    assert isinstance(parameters, dict)
    kinds = {column.name: column.kind for column in store.columns() if column.stale is None}
    by = str(parameters.get("by", ""))
    numeric = by in kinds and (pa.types.is_floating(kinds[by]) or pa.types.is_integer(kinds[by]))
    answered = "response" in store.stored_schema.names
    ledger = shard.read(folder / "ledger.parquet", str(record["fingerprint"]), 0)
    read = store.reader(["prompt", *(["response"] if answered else []), *([by] if numeric else [])], partial=True)
    columns: dict[str, list[Floats]] = {}
    for number in store.shards:
        rows = read(number)
        for title, values in _measured(rows, answered).items():
            columns.setdefault(title, []).append(values)
        if numeric:
            columns.setdefault("score", []).append(_floats(rows[by]))
    whole = {title: np.concatenate(parts) for title, parts in columns.items()}
    scores = whole.pop("score") if numeric else _floats(ledger["value"])
    scores = np.where(np.isfinite(scores), scores, np.nan)
    keeps = ledger["kept"].to_numpy(zero_copy_only=False)
    rulers = [
        Ruler(title, spearman(scores, values), _mean(values), _mean(values[keeps]), _mean(values[~keeps]))
        for title, values in whole.items()
    ]
    return Verdicts(
        name,
        str(record["format"]),
        by if numeric else "the deciding value",
        len(keeps),
        int(keeps.sum()),
        _rules(ledger),
        rulers,
        scores,
        keeps,
        whole[_ANSWER if answered else _QUESTION],
    )


def _measured(rows: pa.Table, answered: bool) -> dict[str, Floats]:
    """Measure a shard's rows by the rulers."""
    prompts = [prompt_text(cast(Prompt, prompt)) for prompt in rows["prompt"].to_pylist()]
    found = {_QUESTION: words.counts(pa.array(prompts, pa.string())).astype(np.float64)}
    if answered:
        texts = rows["response"].cast(pa.string()).combine_chunks()
        missing = np.asarray(texts.is_null())
        found[_ANSWER] = np.where(missing, np.nan, words.counts(texts).astype(np.float64))
        found["distinct trigrams of the response"] = np.where(missing, np.nan, words.distinct_trigrams(texts))
    found["a random number"] = _floats(Random().load(Path())(rows)["baseline_random"])
    return found


def _floats(column: pa.ChunkedArray) -> Floats:
    # Whole numbers beyond 2^53 are rounded.
    return np.asarray(column.cast(pa.float64(), safe=False).to_numpy(), np.float64)


def _mean(values: Floats) -> float:
    there = values[np.isfinite(values)]
    return float(there.mean()) if len(there) else float("nan")


def _rules(ledger: pa.Table) -> list[dict[str, object]]:
    """Count, for each rule, what it kept and dropped, and by which values."""
    sql = (
        "SELECT rule, count(*) FILTER (kept) AS kept, count(*) FILTER (NOT kept) AS dropped, any_value(threshold) AS threshold, "
        "min(value) AS low, median(value) AS middle, max(value) AS high FROM ledger GROUP BY rule ORDER BY dropped DESC, rule"
    )
    with views.in_memory() as connection:
        connection.register("ledger", ledger)
        found: list[dict[str, object]] = connection.sql(sql).to_arrow_table().to_pylist()
    return found


# ── facts ────────────────────────────────────────────────────────────────────────────────────────────────


def facts(store: Store, splits: Iterable[str], trainer: str, version: str) -> dict[str, JsonValue]:
    """Return all that decided a data set: source, corpus, models, steps, columns and splits with their fingerprints.

    Nothing in it names a folder of this machine: models and files are told by their contents.
    """
    records = {name: store.split_record(name) for name in splits}
    shown = ("filter", "parameters", "format", "fingerprint", "kept", "dropped")
    corpus, fingerprints = store.corpus_store, store.fingerprints()
    made = steps(store)
    return {
        "format": FORMAT,
        "seamcurate": version,
        "trainer": trainer,
        "rows": len(store),
        "source": store.about["source"],
        "corpus": corpus.about["source"] if corpus else None,
        "models": models(made),
        "steps": made,
        "columns": {
            one.name: {
                "type": str(one.kind),
                "meaning": one.meaning,
                "made_by": one.made_by,
                "fingerprint": fingerprints[one.name],
            }
            for one in store.columns()
            if one.stale is None and one.name in fingerprints
        },
        "splits": {name: {key: record[key] for key in shown} for name, record in records.items()},
    }


def steps(store: Store) -> dict[str, JsonValue]:
    """Return each step's fingerprint, identity and inputs, the corpus' steps included."""
    found: dict[str, JsonValue] = {}
    corpus = store.corpus_store
    for where, one in (("", store), *((("corpus ", corpus),) if corpus else ())):
        stale = one.stale()
        for name, record in one.records().items():
            if name not in stale:
                found[f"{where}{name}"] = {key: record[key] for key in ("fingerprint", "identity", "inputs", "corpus")}
    return found


def models(steps: Mapping[str, JsonValue]) -> dict[str, JsonValue]:
    """Return the identity of each model that a step took, by the role the recipe gives it."""
    found: dict[str, JsonValue] = {}
    for record in steps.values():
        identity = record["identity"] if isinstance(record, dict) else None
        for role in Models.model_fields:
            if isinstance(identity, dict) and identity.get(role) is not None:
                found.setdefault(role, identity[role])
    return found


# ── the card ─────────────────────────────────────────────────────────────────────────────────────────────


class Part(NamedTuple):
    """One configuration of a data set."""

    name: str
    split: str
    form: str
    folder: str
    """Of its shards, inside `data/`."""
    rows: int
    bytes: int
    schema: pa.Schema
    """Of its files."""
    shape: Shape = Shape("prompts")
    """What decides how a trainer is started on it."""

    @property
    def fields(self) -> dict[str, str]:
        """Return its columns' types by name; a struct's fields stand for it."""
        return {
            ".".join(path): str(kind)
            for field in self.schema
            for path, kind in (
                [((field.name, child.name), child.type) for child in field.type]
                if pa.types.is_struct(field.type)
                else [((field.name,), field.type)]
            )
        }


class About(NamedTuple):
    """What a card needs beside the store."""

    repo_id: str
    licences: Sequence[str]
    """Of the source and, where its texts travel along, of the corpus; empty where unknown."""
    parts: Sequence[Part]
    missing: Sequence[str]
    """What the recipe names and only its author has."""
    figures: Mapping[str, str]
    """A figure's path by split."""


def readme(recipe: Recipe, known: Mapping[str, JsonValue], splits: Sequence[Verdicts], about: About) -> str:
    """Write the card: YAML for the Hub, then what a stranger wants to know, in that order."""
    rows = sum(part.rows for part in about.parts)
    front = {
        "license": about.licences[0] if len(about.licences) == 1 else list(about.licences) or "unknown",
        "task_categories": ["text-generation"],
        "tags": ["seamcurate", "rlhf", "reward-model", "data-curation", str(known["trainer"])],
        "size_categories": [size_category(rows)],
        "configs": [
            {
                "config_name": part.name,
                **({"default": True} if part is about.parts[0] else {}),
                "data_files": [{"split": "train", "path": f"data/{part.folder}/train-*.parquet"}],
            }
            for part in about.parts
        ],
    }
    parts = [
        "---",
        yaml.safe_dump(front, sort_keys=False, allow_unicode=True).rstrip(),
        "---",
        "",
        f"# {about.repo_id.split('/')[-1]}",
        "",
        *_summary(recipe, known, splits, about),
        "",
        "## What was dropped, and why",
        "",
        "A score that only repeats something simple is no better than it. So rulers stand beside each score: how far the rows' "
        "scores go with them (Spearman's rank correlation, from −1 to 1), and what the filter did to their means.",
    ]
    for split in splits:
        parts += ["", *_verdicts(recipe, known, split, about.figures.get(split.name))]
    parts += ["", "## How to load it", "", *loading(about.repo_id, about.parts, str(known["trainer"]))]
    parts += ["", "## Columns", "", *_columns(known, about.parts)]
    parts += ["", "## Where it comes from", "", *_origin(recipe, known, about)]
    parts += ["", "## How to reproduce it", "", *_again(about, str(known["seamcurate"]))]
    return "\n".join(parts) + "\n"


def _summary(recipe: Recipe, known: Mapping[str, JsonValue], splits: Sequence[Verdicts], about: About) -> Iterator[str]:
    columns = cast(dict[str, dict[str, str]], known["columns"])
    nested = ("list", "struct", "map")
    scores = {
        name for name, one in columns.items() if one["made_by"] != "source" and not one["type"].startswith(nested)
    }
    having = [one.name for one in about.parts if scores <= {_column(field, known) for field in one.fields}]
    # verl hands a reward function one column of whatever else a row has.
    score = "Every score is a field of `extra_info`" if known["trainer"] == "verl" else "Every score is a column"
    where = "here" if len(having) == len(about.parts) else f"in {', '.join(f'`{name}`' for name in having)}"
    yield (
        f"{splits[0].rows:,} rows of {place(recipe.rows)} were scored, and SQL chose among them by the scores. "
        f"{f'{score} {where}, and a' if having else 'A'} ledger says of every row of the source why it stayed or went."
    )
    for family, meaning in _FAMILIES.items():
        if any(name == family or name.startswith(f"{family}_") for name in columns):
            yield from ("", meaning)
    yield ""
    kept = {one.name: f"{one.kept:,} of {one.rows:,}" for one in splits}
    lines = [[f"`{one.name}`", one.form, kept[one.split], f"{one.rows:,}", megabytes(one.bytes)] for one in about.parts]
    yield from _table(["configuration", "format", "source rows kept", "lines", "size"], lines)
    yield ""
    yield f"Written for {_TITLES[str(known['trainer'])]}. {told(about.parts[0].shape)}"


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
_SOURCE = {
    "row_id": "the row's place in its source, from 0",
    "prompt": "what is asked",
    "response": "the golden response: the answer that worse ones are held against",
    "reference": "an answer that the response is compared with",
}
_FIELDS = {
    "trl": {
        "completion": "the answer to learn, or the one that `label` is about",
        "label": "whether the completion is the golden response",
        "input_ids": "the prompt, in tokens of the policy's tokenizer",
    },
    "openrlhf": {
        "label": "the reference, or else the golden response",
        "datasource": "the split",
        "reward_label": "what RER reads of the row, as JSON",
    },
    "verl": {
        "data_source": "the source's own, or the split: by it verl finds its reward function",
        "ability": "the source's own, or `query_type`, where it is known",
        "reward_model.style": "always `rule`",
        "reward_model.ground_truth": "the reference, or else the golden response",
        "extra_info.split": "always `train`",
        "extra_info.index": _SOURCE["row_id"],
        f"extra_info.{PROMPT_FORM}": "the form in which the prompt was written out, as the policy was scored",
    },
}
"""What each trainer's formats have that the store has not, or by another name."""
_PAIRS = {
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
    "chat_template_kwargs": "arguments of the policy's chat template, as it was scored",
}
_TITLES = {"trl": "TRL", "openrlhf": "OpenRLHF", "verl": "verl"}


def _verdicts(recipe: Recipe, known: Mapping[str, JsonValue], split: Verdicts, figure: str | None) -> Iterator[str]:
    yield f"### `{split.name}`: {split.kept:,} of {split.rows:,} rows kept"
    yield ""
    columns = known["columns"]
    assert isinstance(columns, dict)
    about = columns.get(split.score)
    if isinstance(about, dict):
        yield f"Decided by `{_cell(split.score)}`: {_cell(about['meaning'] or 'a column of the source')}."
    given = ", ".join(f"{_cell(key)} = {_cell(value)}" for key, value in recipe.splits[split.name].parameters.items())
    yield ""
    yield f"<details><summary>The filter, one SQL query{f' with {given}' if given else ''}</summary>"
    yield ""
    yield from _fenced("sql", recipe.splits[split.name].filter)
    yield ""
    yield "</details>"
    yield ""
    rules = [
        [
            _cell(rule["rule"]),
            f"{rule['kept']:,}",
            f"{rule['dropped']:,}",
            _number(rule["threshold"]),
            " / ".join(_number(rule[key]) for key in ("low", "middle", "high")),
        ]
        for rule in split.rules[:_SHOWN_RULES]
    ]
    yield from _table(["rule", "kept", "dropped", "threshold", "value: least / median / most"], rules)
    if len(split.rules) > _SHOWN_RULES:
        yield f"\n… and {len(split.rules) - _SHOWN_RULES:,} rules more; see `ledger/{split.name}.parquet`."
    if figure:
        yield ""
        yield f"![{_cell(split.score)} and length of the rows kept and dropped in {split.name}]({figure})"
    yield ""
    rulers = [
        [one.name, _signed(one.correlation), _number(one.all), _number(one.kept), _number(one.dropped)]
        for one in split.rulers
    ]
    yield from _table(
        ["ruler", f"goes with {_cell(split.score)}", "mean of all rows", "of the kept", "of the dropped"], rulers
    )
    yield ""
    length = next((one for one in split.rulers if one.name == _ANSWER), split.rulers[0])
    yield f"The filter moved the mean of *{length.name}* from {_number(length.all)} to {_number(length.kept)}."


def _columns(known: Mapping[str, JsonValue], parts: Sequence[Part]) -> Iterator[str]:
    columns = cast(dict[str, dict[str, str]], known["columns"])
    having: dict[tuple[str, str], list[str]] = {}
    for part in parts:
        for field in part.fields.items():
            having.setdefault(field, []).append(part.name)
    meanings = _PAIRS | _FIELDS[str(known["trainer"])]
    lines = []
    for (name, kind), inside in having.items():
        column = _column(name, known)
        one = columns.get(column, {"made_by": "export", "meaning": meanings.get(name, "")})
        where = "all" if len(inside) == len(parts) else ", ".join(f"`{part}`" for part in inside)
        meaning = _cell(one["meaning"] or _SOURCE.get(column, ""))
        lines.append(
            [f"`{_cell(name)}`", _cell(kind), *([where] if len(parts) > 1 else []), _cell(one["made_by"]), meaning]
        )
    yield from _table(["column", "type", *(["in"] if len(parts) > 1 else []), "made by", "meaning"], lines)
    # Every format has the prompt, and verl the row's id, by some name.
    there = (
        {_column(name, known) for name, _ in having}
        | {"prompt"}
        | ({"row_id"} if known["trainer"] == "verl" else set())
    )
    if left := [f"`{_cell(name)}`" for name in columns if name not in there]:
        yield ""
        yield f"Not in the files, but in the store they were made in: {', '.join(left)}."


def _column(field: str, known: Mapping[str, JsonValue]) -> str:
    """Name the store's column that a field of a pushed file would hold; none for what verl alone has."""
    inside, columns = field.removeprefix("extra_info."), known["columns"]
    assert isinstance(columns, dict)
    while inside not in columns and inside.startswith("source_") and inside != SOURCE_PROMPT:
        # Renamed, since the trainer keeps its own name for itself.
        inside = inside.removeprefix("source_")
    return inside if known["trainer"] != "verl" or field == "prompt" or field.startswith("extra_info.") else ""


def _origin(recipe: Recipe, known: Mapping[str, JsonValue], about: About) -> Iterator[str]:
    licence = ", ".join(about.licences) or "unknown: ask the source's authors before you use it"
    yield f"- Rows: {place(recipe.rows)}{_revision(known['source'])}"
    if known["corpus"] is not None:
        corpus = place(recipe.corpus) if recipe.corpus else "a store's corpus"
        yield f"- Answers to similar questions: {corpus}{_revision(known['corpus'])}"
    yield f"- Licence, carried from the source: {licence}"
    found = known["models"]
    assert isinstance(found, dict)
    for role, identity in found.items():
        yield f"- Model, {role}: `{_cell(_identity(identity))}`"
    yield "- Every setting, revision and fingerprint: `seamcurate.json`; each row's verdict: `ledger/`"


def _again(about: About, version: str) -> Iterator[str]:
    yield from _fenced("console", f'$ pip install "seamcurate[cpu]=={version}"\n$ seamcurate reproduce {about.repo_id}')
    yield ""
    yield (
        "downloads `recipe.yaml` at one commit, runs it with the revisions written down in `seamcurate.json`, and says of every file "
        "whether it came out the same. A recipe is data: reading it runs no code."
    )
    if about.missing:
        yield ""
        yield (
            "The recipe names what only its author has; put it into a folder and give `--files FOLDER`: "
            + ", ".join(f"`{_cell(one)}`" for one in about.missing)
            + "."
        )


def loading(repo_id: str, parts: Sequence[Part], trainer: str) -> Iterator[str]:
    """Yield how each trainer loads a configuration of each format, as Markdown."""
    first: dict[str, Part] = {}
    for part in parts:
        first.setdefault(part.form, part)
    for form, part in first.items():
        if len(first) > 1:
            yield f"Format *{form}*, as in `{part.name}`:"
            yield ""
        for title, language, code in _snippets(repo_id, part, trainer):
            yield f"**{title}**"
            yield ""
            yield from _fenced(language, code)
            yield ""


def _snippets(repo_id: str, part: Part, trainer: str) -> Iterator[tuple[str, str, str]]:
    load = f'from datasets import load_dataset\n\nrows = load_dataset("{repo_id}", "{part.name}", split="train")\n'
    folder = f"hf download {repo_id} --repo-type dataset --local-dir rows\n"
    yield "datasets", "python", load
    files = f"'hf://datasets/{repo_id}/data/{part.folder}/train-*.parquet'"
    yield (
        "DuckDB",
        "sql",
        _DUCKDB + (f"SELECT unnest(extra_info) FROM {files};" if trainer == "verl" else f"FROM {files};"),
    )
    shape, place = part.shape, f"rows/data/{part.folder}"
    if trainer == "trl":
        yield "TRL", "python", load + _trl(shape)
        if shape.reward:
            yield f"TRL, rewarded by RER (`{REWARD_FILE}`)", "shell", folder + commands("trl", shape, place, *_NAMES)[0]
    keys = {"prompts": "input", "sft": "input", "preferences": "prompt"}
    if trainer != "verl" and shape.format in keys:
        lines = commands("openrlhf", shape._replace(reward=shape.reward and trainer == "openrlhf"), place, *_NAMES)
        line = lines[-1]
        if trainer == "trl":
            line = line.replace("_key input", "_key prompt").replace("_key output", "_key completion")
            line = line.replace(" --data.label_key label", "")
        yield "OpenRLHF", "shell", folder + line
    if trainer == "verl" and shape.format == "prompts":
        yield "verl", "shell", folder + commands("verl", shape, place, *_NAMES)[0]
    elif trainer == "trl" and shape.format == "prompts":
        yield "verl", "python", load + _TO_VERL.format(split=part.split)
        yield "verl, on that file", "shell", _verl_on("rows.parquet", shape)


_NAMES = ("POLICY", "REWARD_MODEL")


def _trl(shape: Shape) -> str:
    """Write the Python that trains on an export for TRL."""
    code = _TRL[shape.format]
    if not shape.arguments:
        return code
    given = repr(dict(shape.arguments))
    return code.replace('GRPOConfig("trained")', f'GRPOConfig("trained", chat_template_kwargs={given})').replace(
        '"])', '", "chat_template_kwargs"])'
    )


def _verl_on(files: str, shape: Shape) -> str:
    template = verl_template(shape)
    given = f" \\\n    \"actor_rollout_ref.model.custom_chat_template='{template}'\"" if template else ""
    return (
        f"python -m verl.trainer.main_ppo data.train_files={files} data.val_files={files} actor_rollout_ref.model.path=POLICY"
        f"{given} \\\n    reward.custom_reward_function.path=yours.py  # verl has no reward for this data_source: give it yours"
    )


_TRL = {
    "prompts": """
from trl import GRPOConfig, GRPOTrainer  # RLOOConfig and RLOOTrainer read the same

args = GRPOConfig("trained")  # without a GPU: bf16=False, use_cpu=True
# A reward model's name, or a function of prompts, completions and every other column.
GRPOTrainer(model="…", reward_funcs="…", args=args, train_dataset=rows).train()
""",
    "sft": """
from trl import SFTConfig, SFTTrainer

args = SFTConfig("trained")  # without a GPU: bf16=False, use_cpu=True
SFTTrainer(model="…", args=args, train_dataset=rows.select_columns(["prompt", "completion"])).train()
""",
    "preferences": """
from trl import DPOConfig, DPOTrainer  # RewardConfig and RewardTrainer read the same

args = DPOConfig("trained")  # without a GPU: bf16=False, use_cpu=True
DPOTrainer(model="…", args=args, train_dataset=rows.select_columns(["prompt", "chosen", "rejected"])).train()
""",
    "unpaired": """
from trl.experimental.kto import KTOTrainer

KTOTrainer(model="…", train_dataset=rows.select_columns(["prompt", "completion", "label"])).train()
""",
    "prompt_ids": """
from trl.experimental.ppo import PPOTrainer  # TRL 1.12 and before; the models must share this tokenizer

PPOTrainer(args=…, processing_class=…, model=…, ref_model=…, reward_model=…, value_model=…, train_dataset=rows).train()
""",
}

_DUCKDB = """\
-- What each score comes to. A private data set wants first: CREATE SECRET (TYPE huggingface, TOKEN '…');
SUMMARIZE """
_TO_VERL = """

def to_verl(row):
    prompt = row["prompt"]
    return {{
        "data_source": "seamcurate/{split}",
        "prompt": prompt if isinstance(prompt, list) else [{{"role": "user", "content": prompt}}],
        "ability": row.get("query_type") or "unknown",
        "reward_model": {{"style": "rule", "ground_truth": row.get("reference") or row.get("response") or ""}},
        "extra_info": {{"split": "train", "index": row["row_id"]}},
    }}


rows.map(to_verl, remove_columns=rows.column_names).to_parquet("rows.parquet")
"""


def place(source: Source) -> str:
    """Name a source as a stranger may know it: a Hub data set, or the files' names without their folder."""
    if source.hub is not None:
        inside = "/".join(part for part in (source.name, source.data_dir, source.split) if part)
        return f"[{source.hub}](https://huggingface.co/datasets/{source.hub}) ({inside})"
    given = source.parquet or source.jsonl or source.csv or source.arrow or source.store or ""
    names = [given] if isinstance(given, str) else given
    return ", ".join(f"`{_cell(Path(name).name)}`" for name in names)


def size_category(rows: int) -> str:
    """Return the Hub's category for a data set of so many rows.

    Example:
        >>> size_category(2_500_000)
        '1M<n<10M'
    """
    place = next((i for i in range(len(_POWERS)) if rows < 10 ** (i + 3)), len(_POWERS))
    if place == 0:
        return f"n<{_POWERS[0]}"
    return f"n>{_POWERS[-1]}" if place == len(_POWERS) else f"{_POWERS[place - 1]}<n<{_POWERS[place]}"


def megabytes(size: int) -> str:
    """Write a number of bytes in megabytes, or kilobytes where they are few."""
    return f"{size / 1e6:,.1f} MB" if size >= 1e5 else f"{size / 1e3:.1f} kB"


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
    return str(identity)


def _table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> Iterator[str]:
    yield f"| {' | '.join(header)} |"
    yield f"|{'---|' * len(header)}"
    for row in rows:
        yield f"| {' | '.join(row)} |"


def _cell(value: object) -> str:
    """Return text that breaks neither out of a table's cell nor out of a code span, and is no link, image or HTML.

    What cannot be escaped alike inside and outside of code is put in other words: a grave accent becomes an apostrophe,
    `](` is parted, and backslashes before a pipe, which would undo its escape, are left out.
    """
    text = brief(value, 300).replace("`", "'").replace("<", "&lt;").replace("](", "] (")
    return re.sub(r"\\*\|", r"\\|", text)


def _number(value: object) -> str:
    return f"{value:.4g}" if isinstance(value, float | int) and np.isfinite(value) else "–"


def _signed(value: float) -> str:
    return f"{round(value, 2) + 0.0:+.2f}".replace("-", "−") if np.isfinite(value) else "–"


def _fenced(language: str, code: str) -> Iterator[str]:
    """Fence code longer than any fence inside it."""
    fence = "```"
    while fence in code:
        fence += "`"
    yield f"{fence}{language}"
    yield code.strip("\n")
    yield fence


# ── figures ──────────────────────────────────────────────────────────────────────────────────────────────


def draw(split: Verdicts, out: Path) -> bool:
    """Draw score and length of the rows kept and dropped as a small PNG, where matplotlib is installed."""
    if importlib.util.find_spec("matplotlib") is None:
        return False
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8, 2.6), dpi=90)
    FigureCanvasAgg(figure)
    left, right = figure.subplots(1, 2)
    _histogram(left, split.scores, split.keeps, split.score)
    _histogram(right, split.lengths, split.keeps, "length in words")
    left.set_ylabel("rows")
    left.legend(frameon=False, fontsize=8)
    figure.subplots_adjust(left=0.08, right=0.98, top=0.95, bottom=0.2, wspace=0.15)
    # Without a date and a version, the same store gives the same bytes, and no commit.
    figure.savefig(out, metadata={"Software": None})
    return True


def _histogram(axes: Axes, values: Floats, keeps: npt.NDArray[np.bool_], title: str) -> None:
    there = np.isfinite(values)
    edges = np.histogram_bin_edges(values[there], 40) if there.any() else np.linspace(0, 1, 41)
    kept, dropped = (np.histogram(values[there & some], edges)[0] for some in (keeps, ~keeps))
    axes.stairs(kept, edges, fill=True, label="kept", color="#4c78a8")
    axes.stairs(kept + dropped, edges, baseline=kept, fill=True, label="dropped", color="#e45756")
    axes.set_xlabel(title, parse_math=False)
    axes.spines[["top", "right"]].set_visible(False)
