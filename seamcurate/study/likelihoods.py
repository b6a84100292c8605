"""How likely the policy finds each sample set (SEAM App. H.1, Table 2).

likelihood   stores, answers, or set, row_id, logprob, n_tokens
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple, TypeAlias

import numpy as np
import pyarrow as pa

from seamcurate.errors import StudyError
from seamcurate.models.protocols import Policy, Prompt
from seamcurate.models.template import prompt_text
from seamcurate.progress import bar
from seamcurate.select import views
from seamcurate.step import finite
from seamcurate.study import baselines, figure, sources
from seamcurate.study.results import Study, StudyResult, result, tabulate
from seamcurate.study.sources import StudySource
from seamcurate.study.statistics import Doubles, Interval, bootstrap_mean, percentiles, resampled, shown

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_SETS = {"contrast": "contrast", "gpt": "generated", "adv": "attacked"}
"""What a store's sample-set variants are called here."""
_BATCH = 64
"""Prompts a call of the policy."""
_COLUMNS = {
    "set": "the sample set",
    "rows": "rows measured",
    "mean_tokens": "tokens an answer, mean over rows of each row's mean",
    "perplexity": "exp(−logprob_per_token)",
    "logprob_per_token": "natural log-probability a token, mean over rows of each row's mean",
}


class SetLikelihood(NamedTuple):
    """The answers of one set to one row: means over the answers."""

    logprob: float
    """Natural log-probability a token."""
    tokens: float
    """Tokens an answer."""


RowKey: TypeAlias = tuple[int, str]
"""Which source a row belongs to, and its id there."""
Sets: TypeAlias = Mapping[str, Mapping[RowKey, SetLikelihood]]
"""Likelihoods by set and row."""


@dataclass(frozen=True)
class Contrast:
    """The likeliest set against the least likely one."""

    shown: bool
    """Whether the first is shown to be likelier than the last."""
    tops: Sequence[str]
    """The likeliest set, and those that it is not shown to exceed."""
    bottoms: Sequence[str]
    """The least likely set, and those that are not shown to exceed it."""
    rows: int
    """Rows that have both sets."""
    difference: Interval | None
    """Over those rows; None without any."""
    at_equal_length: Interval | None


@dataclass(frozen=True)
class Likelihoods:
    """How likely each set is, the likeliest first."""

    means: Mapping[str, Interval]
    tokens: Mapping[str, float]
    values: Mapping[str, Doubles]
    """Each row's mean log-probability a token, by set."""
    contrast: Contrast | None
    """None with a single set."""


def likelihood(*stores: StudySource, policy: Policy | None = None) -> StudyResult:
    """Compare how likely the policy finds golden, contrast, generated and attacked answers and its own samples.

    A store gives its candidates that have a log-probability, by default those misjudged; with a policy also the
    golden `response`. A table gives `set`, `row_id`, `logprob` (natural, summed) and `n_tokens`; or the policy's answers,
    `prompt` and `response` as `answer` writes them, whose `row_id`, if present, is that of the preceding store.
    Log-probabilities are per token, averaged within a row, then over rows; intervals are bootstraps over rows. The
    figure of a single set shows how its rows are distributed.

    Args:
        stores: Stores, or tables.
        policy: Scores golden responses of stores, and answers.

    Raises:
        StudyError: The sources cannot be read, or no set has a likelihood.
    """
    likelihoods = measure(_read(stores, policy))
    return result("likelihood", _table(likelihoods), _figure(likelihoods), _finding(likelihoods))


def _read(stores: Sequence[StudySource], policy: Policy | None) -> Sets:
    study = "likelihood"
    sets: dict[str, dict[RowKey, SetLikelihood]] = {}
    last_store = 0
    for i, source in enumerate(stores):
        row_source = i
        if sources.is_store(source):
            last_store, table = i, _store_table(study, source, policy)
        else:
            table = sources.read(study, [source], [])
            if {"prompt", "response"} <= set(table.column_names) and "logprob" not in table.column_names:
                # Row 7 of two stores is not one row; row 7 of a store and of answers to its prompts is.
                row_source = last_store if "row_id" in table.column_names else i
                table = _answers_table(study, source, table, policy)
            else:
                table = sources.read(study, [source], ["set", "row_id", "logprob", "n_tokens"])
        for name, by_row in _per_row(study, table).items():
            sets.setdefault(name, {}).update({(row_source, row): value for row, value in by_row.items()})
    if not sets:
        raise StudyError(
            f"{study}: no candidate has a log-probability; run `seam` steps with a policy, or give a table of them"
        )
    return sets


def _store_table(study: str, source: StudySource, policy: Policy | None) -> pa.Table:
    """Return set, row_id, logprob and n_tokens of a store's candidates and, with a policy, of its golden responses."""
    store = sources.open_store(source, study)
    candidates = views.query(
        store,
        "SELECT variant AS set, row_id, logprob, n_tokens FROM candidates WHERE logprob IS NOT NULL "
        "ORDER BY variant, row_id, rank",
    )
    names = [_SETS.get(variant, variant) for variant in candidates["set"].to_pylist()]
    candidates = candidates.set_column(0, "set", pa.array(names, pa.string()))
    if policy is None:
        return candidates
    rows = views.query(store, "SELECT row_id, prompt, response FROM rows WHERE response IS NOT NULL")
    prompts: list[Prompt] = rows["prompt"].to_pylist()
    responses = [[text] for text in rows["response"].to_pylist()]
    label = f"{study}: {sources.title(source)}"
    golden = _scored_table(label, policy, "golden", rows["row_id"], prompts, responses)
    return pa.concat_tables([candidates, golden.cast(candidates.schema)]) if len(golden) else candidates


def _answers_table(study: str, source: StudySource, table: pa.Table, policy: Policy | None) -> pa.Table:
    """Score a policy's answers, those to one prompt together."""
    if policy is None:
        raise StudyError(f"{study}: {sources.title(source)} holds answers; name the policy that is to score them")
    prompts, texts = sources.prompts(study, table), sources.texts(study, table, "response")
    with_ids = "row_id" in table.column_names
    keys = sources.names(study, table, "row_id") if with_ids else [prompt_text(prompt) for prompt in prompts]
    groups: dict[str, tuple[Prompt, list[str]]] = {}
    for key, prompt, text in zip(keys, prompts, texts, strict=True):
        # A policy reads a prompt once for all of its answers.
        groups.setdefault(key, (prompt, []))[1].append(text)
    ids = pa.array([key if with_ids else str(i) for i, key in enumerate(groups)])
    return _scored_table(
        f"{study}: {sources.title(source)}", policy, "policy samples", ids,
        [prompt for prompt, _ in groups.values()], [responses for _, responses in groups.values()],
    )  # fmt: skip


def _scored_table(
    label: str, policy: Policy, name: str, ids: pa.Array, prompts: Sequence[Prompt], groups: Sequence[list[str]]
) -> pa.Table:
    """Return set, row_id, logprob and n_tokens of each group's texts that the policy can score."""
    scored: list[tuple[int, float, int]] = []
    with bar(label, len(prompts)) as advance:
        for start in range(0, len(prompts), _BATCH):
            batch = slice(start, start + _BATCH)
            for i, likelihoods in enumerate(policy.logprobs(prompts[batch], groups[batch]), start):
                scored += [
                    (i, text.logprob, text.tokens)
                    for text in likelihoods
                    if text is not None and finite(text.logprob) is not None
                ]
            advance(len(prompts[batch]))
    indices, logprobs, tokens = zip(*scored, strict=True) if scored else ((), (), ())
    return pa.table(
        {
            "set": pa.array([name] * len(scored), pa.string()),
            "row_id": ids.take(pa.array(indices, pa.int64())),
            "logprob": pa.array(logprobs, pa.float64()),
            "n_tokens": pa.array(tokens, pa.int64()),
        }
    )


def _per_row(study: str, table: pa.Table) -> dict[str, dict[str, SetLikelihood]]:
    """Average each row's log-probability per token and length, by set."""
    sets, rows = sources.names(study, table, "set"), sources.names(study, table, "row_id")
    sums, lengths = sources.numbers(study, table, "logprob"), sources.numbers(study, table, "n_tokens")
    for i in np.flatnonzero((sums > 0) | (lengths < 0)).tolist():
        raise StudyError(
            f"{study}: row {i} has logprob {sums[i]:g} over {lengths[i]:g} tokens; no log-probability is above 0"
        )
    answers: dict[str, dict[str, list[tuple[float, float]]]] = {}
    for name, row, total, length in zip(sets, rows, sums.tolist(), lengths.tolist(), strict=True):
        # An empty answer has no tokens to divide by, and a log-probability of 0.
        answers.setdefault(name, {}).setdefault(row, []).append((total / max(length, 1.0), length))
    return {
        name: {
            row: SetLikelihood(*(float(np.mean(column)) for column in zip(*row_answers, strict=True)))
            for row, row_answers in rows_of_set.items()
        }
        for name, rows_of_set in answers.items()
    }


def measure(sets: Sets) -> Likelihoods:
    """Average each set over rows, and compare the likeliest with the least likely."""
    values = {name: np.array([row.logprob for row in by_row.values()]) for name, by_row in sets.items()}
    means = {name: bootstrap_mean(column) for name, column in values.items()}
    order = sorted(means, key=lambda name: -means[name].estimate)
    tokens = {name: float(np.mean([row.tokens for row in sets[name].values()])) for name in order}
    return Likelihoods(
        {name: means[name] for name in order},
        tokens,
        {name: values[name] for name in order},
        _contrast(sets, means, order) if len(order) > 1 else None,
    )


def _contrast(sets: Sets, means: Mapping[str, Interval], order: Sequence[str]) -> Contrast:
    likeliest, unlikeliest = order[0], order[-1]
    likelier = _likelier(sets, means, likeliest, unlikeliest)
    tops = [name for name in order if name == likeliest or not _likelier(sets, means, likeliest, name)]
    bottoms = [name for name in order if name == unlikeliest or not _likelier(sets, means, name, unlikeliest)]
    shared = sorted(set(sets[likeliest]) & set(sets[unlikeliest]))
    if not shared:
        return Contrast(likelier, tops, bottoms, 0, None, None)
    # (rows,): how much likelier a token of the first set is, and how many tokens longer its answers are.
    gaps, longer = np.array([np.subtract(sets[likeliest][row], sets[unlikeliest][row]) for row in shared]).T
    equal = _at_equal_length(gaps, longer)
    return Contrast(likelier, tops, bottoms, len(shared), bootstrap_mean(gaps), equal)


def _likelier(sets: Sets, means: Mapping[str, Interval], name: str, reference: str) -> bool:
    """Say whether a set is shown to be likelier than another, on the rows that have both if those are enough."""
    shared = sorted(set(sets[name]) & set(sets[reference]))
    if shared:
        gap = bootstrap_mean(np.array([sets[name][row].logprob - sets[reference][row].logprob for row in shared]))
        # NaN: too few rows have both for an interval, and the sets are compared as two samples.
        if not math.isnan(gap.low):
            return gap.above_zero
    return means[name].low > means[reference].high


def _at_equal_length(gaps: Doubles, longer: Doubles) -> Interval:
    """Return the difference where lengths are equal: the intercept of `gaps` on `longer`, by least squares."""
    moments = np.stack([gaps, longer, gaps * longer, longer**2], axis=1)  # (rows, 4)

    def intercept(means: Doubles) -> Doubles:
        """Return the intercept for the mean moments (…, 4)."""
        y, x, xy, xx = np.moveaxis(means, -1, 0)
        # Where all differences of length are one, there is no slope: the mean difference stands.
        variance = xx - x * x
        slope = np.where(variance > 1e-9, (xy - x * y) / np.maximum(variance, 1e-9), 0.0)
        at_zero: Doubles = y - x * slope
        return at_zero

    return percentiles(float(intercept(moments.mean(axis=0))), intercept(resampled(moments)), len(gaps))


def _table(likelihoods: Likelihoods) -> pa.Table:
    means = likelihoods.means
    columns: dict[str, Sequence[object]] = {
        "set": list(means),
        "rows": [interval.n for interval in means.values()],
        "mean_tokens": [likelihoods.tokens[name] for name in means],
        # e⁷⁰⁰ is about the largest double.
        "perplexity": [math.exp(min(-interval.estimate, 700.0)) for interval in means.values()],
    }
    return tabulate(_COLUMNS, columns, {"logprob_per_token": list(means.values())})


def _figure(likelihoods: Likelihoods) -> Figure:
    means, tokens = likelihoods.means, likelihoods.tokens
    label = "log-probability per token under the policy (nats)"
    if len(means) == 1:
        [name] = means
        return figure.histograms(
            {f"{name}: {label}": figure.Histogram(likelihoods.values[name], means[name])},
            "rows",
            f"Each row's mean over its answers, of {tokens[name]:.0f} tokens on average, n = {means[name].n:,}. Line: mean over "
            "rows; band: its 95 % bootstrap interval over rows.",
        )
    return figure.dots(
        {"Likelihood of the sample sets": [figure.Dot(f"{n} ({tokens[n]:.0f} tokens)", means[n]) for n in means]},
        label,
        "Mean over rows of each row's mean; bars: 95 % bootstrap intervals over rows.",
        unit="rows",
    )


def _finding(likelihoods: Likelihoods) -> str:
    line = ", ".join(f"{name} {shown(mean, '.2f')}" for name, mean in likelihoods.means.items()) + " nats a token"
    contrast = likelihoods.contrast
    if contrast is None:
        return line
    likeliest, *_, unlikeliest = likelihoods.means
    order = f"{likeliest} is not told apart from {unlikeliest}"
    if contrast.shown:
        order = f"{' and '.join(contrast.tops)} likeliest, {' and '.join(contrast.bottoms)} least likely"
    line = f"{order}: {line}"
    if contrast.difference is not None:
        line += f"; {shown(contrast.difference, '+.2f')} between {likeliest} and {unlikeliest} on {contrast.rows:,} rows with both"
    margins = {}
    if contrast.shown and contrast.at_equal_length is not None:
        equal = contrast.at_equal_length
        margins["length alone"] = baselines.Margin(f"at equal lengths {shown(equal, '+.2f')}", equal)
    return line + baselines.caveat(margins)


LIKELIHOOD = Study(
    "likelihood",
    "how likely the policy finds golden, contrast, generated and attacked answers and its own",
    "stores, a policy's answers (prompt, response), or set, row_id, logprob, n_tokens",
    _COLUMNS,
    likelihood,
)
