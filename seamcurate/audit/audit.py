"""An audit: a store of sampled rows, probes and rewards, and what follows from its columns.

One rule: an audit is a run of a recipe, which lies beside its rows. A second one computes what is missing, and a recipe with more
steps goes on from there.
"""

from __future__ import annotations

import re
import tempfile
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import yaml
from pydantic import BaseModel

from seamcurate import words
from seamcurate.audit import inputs, measures
from seamcurate.audit.measures import Scored
from seamcurate.audit.result import Audit, Disagreement, Policy, Reason, Worst, headline
from seamcurate.contrast import PROBES, Probe, Probes, Retrieve, Rollouts
from seamcurate.data.source import Source
from seamcurate.errors import ModelError, StoreError
from seamcurate.models import EncoderModel, PolicyModel, RewardingModel, SentenceEncoder
from seamcurate.models.backend import Backend, NamedModel
from seamcurate.models.template import prompt_text
from seamcurate.progress import note
from seamcurate.run.local import run_local
from seamcurate.run.recipe import Models, Recipe
from seamcurate.score.reward import Reward, Rewards
from seamcurate.select import views
from seamcurate.step import Step
from seamcurate.storage import atomic, objects
from seamcurate.store.store import Store

FOLDER = "audit"
"""The folder in the store with the sampled rows, the recipe and the second reward's store."""
_ROWS, _RECIPE, _SECOND = "rows.parquet", "recipe.yaml", "second"
_SHARD = 256
"""Rows of a shard: an audit that is stopped goes on from the last whole one."""
_WORST, _OVERPAID = 5, 3
_LONGEST = 20_000
"""Characters of a text in a result."""
EXTRA: dict[str, Probe] = {
    "contrast": Probe(
        "nearest_answer", "worse", "the answer to the nearest question, by the encoder",
        "takes the subject for the answer", lambda row, seed: None, tolerated=0.5,
    ),
    "given": Probe(
        "rejected_answer", "worse", "the best answer that the data put below", "prefers what people reject",
        lambda row, seed: None, tolerated=0.5,
    ),
}  # fmt: skip
"""Probes whose answers are the first of another sample set: by an encoder, and of data that hold preferences."""
_SAMPLES, _TOKENS = 8, 256
"""Answers of the policy to each prompt, and their most tokens."""
_BAND = (0.3, 0.95)
"""Cosines of questions whose answer is another one; below, they are not similar, above, they may be the same."""


def audit(
    reward: RewardingModel | str,
    data: Source | str | Path,
    *,
    store: str | Path | None = None,
    against: Source | str | Path | None = None,
    encoder: EncoderModel | str | None = None,
    policy: PolicyModel | str | None = None,
    second: RewardingModel | str | None = None,
    limit: int = 1000,
) -> Audit:
    """Find what a reward pays for that it should not, on rows with golden responses.

    Args:
        reward: The reward, or what names one: `reward.py:score`, a folder, a Hub id, or a YAML file with one model of a recipe.
        data: The rows, or a Parquet, JSONL, CSV or Arrow file whose columns have usual names, see `seamcurate.audit.inputs`.
        store: The folder of the store. Default: `audit-NAME` in the working folder, after the file's name.
        against: Rows whose questions and answers the answers to similar questions are taken from. Default: the audited rows.
        encoder: Finds in addition the nearest question by its embedding: an encoder, or its folder or Hub id.
        policy: What gives answers of its own, eight to each prompt: a policy, its folder or Hub id, or a YAML file with one.
        second: A second reward to compare with, named as `reward` is.
        limit: The most rows to audit, evenly spaced over the data.

    Returns:
        What was found, a frozen value.

    Raises:
        SourceError: The data cannot be read, or no row can be audited.
        ModelError: The reward cannot be used, gives no golden response a reward, or gives every answer the same.
        StoreError: The folder holds a store that is not of an audit of these rows.
    """
    rows = data if isinstance(data, Source) else inputs.source(data)
    corpus = against if against is None or isinstance(against, Source) else inputs.source(against)
    corpus = corpus and corpus.resolved(Path())
    model = inputs.reads_data(inputs.reward_model(reward), rows)
    second_model = None if second is None else inputs.reads_data(inputs.reward_model(second), rows)
    embedder = SentenceEncoder(path=encoder) if isinstance(encoder, str) else encoder
    title = _title(data)
    name = re.sub(r"[^\w.-]", "-", Path(title).stem)
    named = objects.folder(Path(store or f"audit-{name}"), "audit")
    # A process that answers SQL may have begun in another working folder.
    folder = named.absolute()
    sampled_by = None if policy is None else inputs.policy_model(policy)
    sample = inputs.sampled(rows, limit)
    for rewarding in (model, second_model):
        if rewarding is not None and inputs.lacks_reference(rewarding, sample):
            note(
                f"warning: {_shown(rewarding)} reads the reference, and {title} has none: it is given none; name its column by "
                "--reference, which may be that of the good answers"
            )
    source = _stored_rows(folder, sample.rows)
    variants = (
        *(["contrast"] if embedder is not None else []),
        *(["given"] if _GIVEN in sample.rows.column_names else []),
    )
    _run(_recipe(source, model, variants, corpus, embedder, None), folder)
    columns = _scored(folder, model, variants)
    _check(columns, model)
    if sampled_by is not None:
        # After the reward was found to tell answers apart: sampling takes longest.
        _run(_recipe(source, model, variants, corpus, embedder, sampled_by), folder)
    disagreement = None
    if second_model is not None:
        aside = folder / FOLDER / _SECOND
        _run(_recipe(source, second_model, variants, corpus, embedder, None), aside)
        compared = _scored(aside, second_model, variants)
        disagreement = measures.disagreement(_shown(second_model), columns.rewards, compared.rewards)
    answered = None if sampled_by is None else _policy(folder, sampled_by, columns)
    return _result(columns, model, sample, title, named, disagreement, answered)


_GIVEN = "worse_given"
_REWARDS = tuple(f"rewards_{variant}" for variant in ("probe", "policy", *EXTRA))


class _Columns(NamedTuple):
    """What the store's columns hold of each row."""

    rewards: Scored
    probes: tuple[Probe, ...]
    texts: list[list[str | None]]
    """The answer of each probe: rows × probes."""
    table: pa.Table
    """data_row, prompt, response, reward."""
    reasons: Counter[str]


def _shown(model: Backend) -> str:
    """Name a model; one in a folder of this machine by the folder's name alone, as a result is shown to others."""
    if isinstance(model, NamedModel) and Path(model.path).expanduser().exists():
        return f"{model.key} {Path(model.path).name}"
    return model.title


def _title(data: Source | str | Path) -> str:
    """Name the data in one word or two: a file by its name alone, since a result is shown to others."""
    if isinstance(data, Source):
        files = [] if data.data is not None else data.files()
        return files[0].name if files else data.hub or "rows"
    return Path(data).name


def _stored_rows(folder: Path, rows: pa.Table) -> Source:
    """Write the sampled rows where the store finds them, and return them as a source.

    Raises:
        StoreError: The folder holds a store of something else.
    """
    file = folder / FOLDER / _ROWS
    if (folder / "store.json").exists() and not file.is_file():
        raise StoreError(f"{folder} is a store that no audit made; name another folder by --store")
    if folder.is_file():
        raise StoreError(f"{folder} is a file, and a store is a folder: name another by --store")
    with tempfile.TemporaryDirectory() as scratch:
        pq.write_table(rows, f"{scratch}/{_ROWS}")
        fresh = _source(Path(scratch, _ROWS), rows)
        same = file.is_file() and fresh.identity() == _source(file, rows).identity()
        if not same:
            steps = set(Store(folder).records()) if (folder / "store.json").exists() else set()
            if more := steps - {
                "worse_probe",
                "embedding",
                "worse_contrast",
                "reward",
                "rewards_probe",
                "rewards_contrast",
            }:
                raise StoreError(
                    f"{folder} is of other rows, and has the column {min(more)!r}, which no audit made; name another folder by "
                    "--store"
                )
            with objects.writing(file):
                file.parent.mkdir(parents=True, exist_ok=True)
                atomic.write(file, Path(scratch, _ROWS).read_bytes())
    return _source(file, rows)


def _source(file: Path, rows: pa.Table) -> Source:
    reference = "reference" if "reference" in rows.column_names else None
    return Source(parquet=str(file), response="response", reference=reference, shard_rows=_SHARD)


def _recipe(
    rows: Source,
    reward: RewardingModel,
    variants: Sequence[str],
    against: Source | None,
    encoder: EncoderModel | None,
    policy: PolicyModel | None,
) -> Recipe:
    """Return the recipe of an audit's store."""
    steps: list[Step] = [Probes(against=against)]
    if encoder is not None:
        steps.append(Retrieve(k=1, band=_BAND))
    if policy is not None:
        steps.append(Rollouts(n=_SAMPLES, max_tokens=_TOKENS))
    scored = ["probe", *variants, *(["policy"] if policy is not None else [])]
    steps += [Reward(), *(Rewards(variant=variant) for variant in scored)]
    models = Models(reward=reward, encoder=encoder, policy=policy)
    corpus = None if encoder is None else against or rows
    return Recipe(rows=rows, corpus=corpus, models=models, steps=tuple(steps))


def _run(recipe: Recipe, folder: Path) -> None:
    """Compute what the store lacks, and write the recipe beside its rows."""
    # Columns of another reward are computed anew; answers that were paid for stay in the store.
    run_local(recipe, folder, replace=True)
    place = folder / FOLDER
    place.mkdir(exist_ok=True)
    atomic.write(place / _RECIPE, written(recipe).encode())


def written(recipe: Recipe) -> str:
    """Write an audit's recipe as YAML; paths are absolute, so that the file can be moved."""
    names = {Probes: "probes", Retrieve: "retrieve", Rollouts: "rollouts", Reward: "reward", Rewards: "rewards"}
    sources = {"rows": recipe.rows, "corpus": recipe.corpus}
    value = {
        **{key: _plain(source) for key, source in sources.items() if source is not None},
        "models": {role: _plain(model) for role, model in recipe.models if model is not None},
        "steps": [
            {name: _plain(step)} for step in recipe.steps for kind, name in names.items() if isinstance(step, kind)
        ],
    }
    return yaml.safe_dump(_absolute(value), sort_keys=False, allow_unicode=True, width=120)


def _plain(configuration: BaseModel) -> object:
    return configuration.model_dump(mode="json", exclude_defaults=True, exclude_none=True)


def _absolute(value: object) -> object:
    """Return a configuration with the files and folders that it names by their absolute paths."""
    if isinstance(value, dict):
        return {key: _absolute(entry) for key, entry in value.items()}
    if isinstance(value, list):
        return [_absolute(entry) for entry in value]
    if isinstance(value, str) and value and "\n" not in value and len(value) < 4096:
        file, colon, function = value.rpartition(":") if ".py:" in value else (value, "", "")
        return f"{Path(file).expanduser().absolute()}{colon}{function}" if Path(file).expanduser().exists() else value
    return value


def _scored(folder: Path, reward: RewardingModel, variants: Sequence[str]) -> _Columns:
    """Read the rewards of golden responses and of the probes' answers."""
    store = Store(folder).open()
    reasons = reward.gives_reasons()
    selected = [inputs.ROW, "prompt", "response", "reward", "worse_probe", "rewards_probe"]
    selected += ["reward_reason", "rewards_reason_probe"] if reasons else []
    table = views.query(store, f"SELECT {', '.join(selected)} FROM rows ORDER BY row_id")
    probes = (*PROBES, *(EXTRA[variant] for variant in variants))
    columns = {probe.name: i for i, probe in enumerate(probes)}
    answers = np.full((len(table), len(probes)), np.nan)
    texts: list[list[str | None]] = [[None] * len(probes) for _ in range(len(table))]
    sets, rewards = table["worse_probe"].to_pylist(), table["rewards_probe"].to_pylist()
    for row, (candidates, scores) in enumerate(zip(sets, rewards, strict=True)):
        for candidate, score in zip(candidates, scores, strict=True):
            place = columns[candidate["probe"]]
            texts[row][place] = candidate["response"]
            answers[row, place] = np.nan if score is None else score
    for place, variant in enumerate(variants, len(PROBES)):
        found = views.query(
            store,
            "SELECT c.response, c.reward FROM rows AS r LEFT JOIN candidates AS c "
            f"ON c.row_id = r.row_id AND c.variant = '{variant}' AND c.rank = 1 ORDER BY r.row_id",
        )
        for row, (text, score) in enumerate(
            zip(*(found[name].to_pylist() for name in ("response", "reward")), strict=True)
        ):
            texts[row][place], answers[row, place] = text, np.nan if score is None else score
    golden = table["reward"].cast(pa.float64()).to_numpy()
    noise = max([0.0, *store.noise("reward").values(), *store.noise("rewards_probe").values()])
    scale = reward.scale_range()
    known = np.concatenate([golden, answers.ravel()])
    lowest = scale[0] if scale else float(np.nanmin(known)) if np.isfinite(known).any() else 0.0
    applies = np.array([[text is not None for text in row] for row in texts], bool).reshape(answers.shape)
    why = Counter[str]()
    if reasons:
        why.update(reason for reason in table["reward_reason"].to_pylist() if reason is not None)
        why.update(
            reason for row in table["rewards_reason_probe"].to_pylist() for reason in row or () if reason is not None
        )
    rewards_of = Scored(golden, answers, applies, noise, lowest)
    return _Columns(rewards_of, probes, texts, table.select([inputs.ROW, "prompt", "response"]), why)


def _policy(folder: Path, policy: PolicyModel, columns: _Columns) -> Policy:
    """Return what the policy says, and is paid for it."""
    table = views.query(
        Store(folder).open(), "SELECT worse_policy, rewards_policy, reason_policy FROM rows ORDER BY row_id"
    )
    golden, scored = columns.rewards.golden, columns.rewards
    samples = [
        (row, candidate["response"], candidate["count"], np.nan if score is None else score)
        for row, (candidates, scores) in enumerate(
            zip(table["worse_policy"].to_pylist(), table["rewards_policy"].to_pylist(), strict=True)
        )
        for candidate, score in zip(candidates or (), scores or (), strict=True)
    ]
    owner = np.array([row for row, *_ in samples], np.int64)
    counts = np.array([count for *_, count, _ in samples], np.int64)
    gains = np.array([score for *_, score in samples], np.float64) - golden[owner]
    known = np.isfinite(gains)
    more = gains > scored.noise
    _, scale = measures.unit(golden)
    # The largest gain of each row, the largest of all first.
    order = [i for i in np.argsort(-np.where(known, gains, -np.inf), kind="stable") if known[i] and more[i]]
    firsts = list({int(owner[i]): int(i) for i in reversed(order)}.values())
    overpaid = sorted(firsts, key=lambda i: -gains[i])[:_OVERPAID]
    return Policy(
        policy=_shown(policy),
        samples=int(counts.sum()),
        distinct=len(samples),
        paid_more=measures.sampled_share(more[known], owner[known], counts[known]),
        golden_below=measures.below_samples(more[known], owner[known], counts[known]),
        gain=float(np.average(gains[known], weights=counts[known])) / scale if known.any() else None,
        without=table["worse_policy"].null_count,
        overpaid=tuple(
            _worst_of(columns, int(owner[i]), "policy", samples[i][1], float(samples[i][3])) for i in overpaid
        ),
    )


def _worst_of(columns: _Columns, row: int, probe: str, answer: str, reward: float) -> Worst:
    values = columns.table.slice(row, 1).to_pylist()[0]
    return Worst(
        row=values[inputs.ROW],
        probe=probe,
        prompt=prompt_text(values["prompt"])[:_LONGEST],
        golden=values["response"][:_LONGEST],
        golden_reward=float(columns.rewards.golden[row]),
        preferred=answer[:_LONGEST],
        preferred_reward=reward,
    )


def _check(columns: _Columns, reward: RewardingModel) -> None:
    """Refuse a reward that tells nothing apart.

    Raises:
        ModelError: No golden response has a reward, or all answers have the same.
    """
    scored = columns.rewards
    if not np.isfinite(scored.golden).any():
        why = columns.reasons.most_common(1)
        raise ModelError(
            f"{reward.title} gives none of {len(scored.golden):,} golden responses a reward"
            + (f": {why[0][0]}" if why else "; none fits the model's window")
        )
    values = np.concatenate([scored.golden, scored.answers.ravel()])
    values = values[np.isfinite(values)]
    if values.max() == values.min():
        answers = f"{reward.title} gives {values[0]:g} to all {len(values):,} answers"
        if not (missing := int(np.isnan(scored.golden).sum() + (scored.applies & np.isnan(scored.answers)).sum())):
            raise ModelError(f"{answers}, also to empty ones and to those of other questions: it tells nothing apart")
        why = columns.reasons.most_common(1)
        raise ModelError(
            f"{answers} that have a reward, and {missing:,} have none"
            + (f", mostly for this reason: {why[0][0]}" if why else "; the others fit no window")
        )


def _result(
    columns: _Columns,
    reward: RewardingModel,
    sample: inputs.Sample,
    title: str,
    folder: Path,
    second: Disagreement | None,
    policy: Policy | None,
) -> Audit:
    scored, probes = columns.rewards, columns.probes
    unit, scale = measures.unit(scored.golden)
    results = measures.probe_results(scored, probes, scale)
    worse = np.array([probe.kind == "worse" for probe in probes])
    more, paid = scored.more & worse, measures.at_fault(scored, probes) & worse
    compared = np.isfinite(scored.golden)
    prefers_worse, pays_worse = (measures.share(flags.any(axis=1)[compared]) for flags in (more, paid))
    padded = next(i for i, probe in enumerate(probes) if probe.name == "padded")
    golden_words = _words(columns.table["response"].to_pylist())
    added_words = _words([row[padded] for row in columns.texts]) - golden_words
    length = measures.padding_slope(scored.golden, scored.answers[:, padded], added_words, scale)
    golden_length = measures.golden_slope(scored.golden, golden_words, scale)
    other = next(i for i, probe in enumerate(probes) if probe.name == "other_answer")
    paid_words = measures.paid_words(
        columns.table["response"].to_pylist(),
        [row[other] for row in columns.texts],
        (scored.golden, scored.answers[:, other]),
        scale,
    )
    missing = int((scored.applies & ~np.isfinite(scored.answers)).sum() + (~compared).sum())
    return Audit(
        headline=headline(prefers_worse, pays_worse, length, golden_length, unit, results),
        reward=_shown(reward),
        data=title,
        rows=len(columns.table),
        data_rows=sample.data_rows,
        rejected=sample.rejected,
        unit=unit,
        golden=measures.golden(scored),
        prefers_worse=prefers_worse,
        pays_worse=pays_worse,
        probes=results,
        length=length,
        golden_length=golden_length,
        words=paid_words,
        noise=scored.noise,
        no_reward=missing,
        reasons=tuple(Reason(reason=reason, answers=count) for reason, count in columns.reasons.most_common(_WORST)),
        policy=policy,
        second=second,
        worst=tuple(
            _worst_of(columns, row, probes[i].name, columns.texts[row][i] or "", float(scored.answers[row, i]))
            for row, i in measures.worst(scored, probes, _WORST)
        ),
        store=str(folder),
        recipe=str(folder / FOLDER / _RECIPE),
    )


def _words(texts: list[str | None]) -> measures.Doubles:
    return words.counts(pa.array(texts, pa.string())).astype(np.float64)
