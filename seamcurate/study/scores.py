"""What stores say of SEAM itself: whether other models find the same rows, and how likely the sample sets are.

overlap      two or more stores of the same rows, or first, second,
             seed, rows, lowest_first, lowest_second, shared          SEAM App. H.2, Table 3
likelihood   stores, answers, or set, row_id, logprob, n_tokens       SEAM App. H.1, Table 2
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from itertools import combinations

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from seamcurate.errors import StudyError
from seamcurate.models.protocols import Policy, Prompt
from seamcurate.models.template import prompt_text
from seamcurate.progress import bar
from seamcurate.select import views
from seamcurate.step import finite
from seamcurate.study import figure, results, ruler
from seamcurate.study.results import Data, Finding
from seamcurate.study.statistics import (
    Doubles,
    Interval,
    beyond_chance,
    bootstrap_mean,
    in_percent,
    mean,
    percent,
    percentiles,
    resampled,
    shown,
    wilson,
)

_SETS = {"contrast": "contrast", "gpt": "generated", "adv": "attacked"}
_CALLS = 64
Members = npt.NDArray[np.bool_]


def overlap(*sources: Data, by: str = "seam_contrast", rate: float = 0.2) -> Finding:
    """Compare the rows that stores of different models score lowest, pair by pair, with chance and with rulers.

    Rows that every store scores are compared. A store's lowest set is its lowest ⌈rate · n⌉ rows, of a `seam_*` column
    those below 0 alone; ties are broken by lot. Overlap is 2|A∩B| / (|A| + |B|), which is |A∩B| / |A| for sets of one
    size; its interval is a bootstrap over rows, its p-value hypergeometric and not adjusted for how many pairs there are.
    A table of counts, as the gold world writes, is read too: its intervals are Wilson's, and it has no rulers.

    Args:
        sources: Stores of the same rows; or tables with a pair of models a row: `first`, `second`, `seed`, `rows`
            scored by both, `lowest_first` and `lowest_second` of them low, `shared` in both.
        by: The column to rank rows by.
        rate: The share of rows that is low.

    Raises:
        StudyError: There are fewer than two stores, they lack the column or hold other rows, or nothing is scored.
    """
    study = "overlap"
    if sources and not any(map(results.is_store, sources)):
        return _counted(study, sources)
    if len(sources) < 2:
        raise StudyError(f"{study} compares two or more stores; it got {len(sources)}")
    if not 0 < rate < 1:
        raise StudyError(f"{study}: the rate is {rate:g}; it lies between 0 and 1")
    names = _names(sources)
    tables = [_scored(study, source, by) for source in sources]
    for name, table in zip(names, tables, strict=True):
        if not table.select(["row_id", "prompt"]).equals(tables[0].select(["row_id", "prompt"])):
            raise StudyError(f"{study}: {name} holds other rows than {names[0]}; compare stores made from one source")
    values = np.array([[math.nan if v is None else v for v in t["value"].to_pylist()] for t in tables], np.float64)
    scored = np.isfinite(values).all(axis=0)
    n = int(scored.sum())
    if n < 2:
        raise StudyError(f"{study}: fewer than two rows have {by} in every store; run the recipes to their end")
    values, size = values[:, scored], math.ceil(rate * n)
    below = by.startswith("seam_")
    low = {name: _lowest(v, size, below, i) for i, (name, v) in enumerate(zip(names, values, strict=True))}
    empty = next((name for name, members in low.items() if not members.any()), None)
    if empty is not None:
        raise StudyError(f"{study}: no row of {empty} has {by} below 0: nothing was misjudged there")
    told = _extremes(tables[0].filter(pa.array(scored)), size)
    pairs = list(combinations(names, 2))
    shared = _Shared(low | told, pairs + [(name, kind) for kind in told for name in names])
    kinds = ["models"] * len(pairs) + ["ruler"] * (len(shared.pairs) - len(pairs))
    out = results.tabulate(
        {
            "first": [a for a, _ in shared.pairs],
            "second": [b for _, b in shared.pairs],
            "kind": kinds,
            "rows": [n] * len(kinds),
            "lowest_first": [int(shared.sets[a].sum()) for a, _ in shared.pairs],
            "lowest_second": [int(shared.sets[b].sum()) for _, b in shared.pairs],
            "chance": shared.chances,
            "p_beyond_chance": [shared.p(pair) for pair in shared.pairs],
        },
        {"overlap": [shared.mean([i]) for i in range(len(shared.pairs))]},
    )
    panels: dict[str, list[figure.Dot]] = {"Between models": [], "With rulers": []}
    for i, (a, b) in enumerate(shared.pairs):
        title, label = ("With rulers", f"{a} – {_RULED[b]}") if b in told else ("Between models", f"{a} – {b}")
        panels[title].append(figure.Dot(label, in_percent(shared.mean([i])), b in told, 100 * shared.chances[i]))
    drawn = figure.dots(
        panels,
        f"overlap of the lowest {100 * rate:g} % by {by} (%)",
        f"{n:,} rows scored by all. Bars: 95 % bootstrap intervals over rows; orange ticks: overlap by chance.",
        unit="rows",
    )
    between = list(range(len(pairs)))
    whole, chance = shared.mean(between), float(np.mean(shared.chances[: len(pairs)]))
    verb = "share" if whole.low > chance else "are not shown to share more than chance:"
    who = " and ".join(names) if len(pairs) == 1 else f"{len(names)} stores"
    line = f"{who} {verb} {percent(whole)} of their lowest {100 * rate:g} % by {by}"
    line += f" on average of {len(pairs)} pairs" if len(pairs) > 1 else ""
    line += f", {100 * chance:.1f} % by chance ({n:,} rows)"
    gaps = {}
    for kind in told:
        own = [i for i, (_, second) in enumerate(shared.pairs) if second == kind]
        gaps[_RULED[kind]] = ruler.Gap(percent(shared.mean(own)), shared.above(between, own))
    return Finding(study, out, drawn, line + ruler.caveat(gaps))


def _counted(study: str, sources: Sequence[Data]) -> Finding:
    """Read overlaps that somebody counted."""
    names = ["first", "second", "seed", "rows", "lowest_first", "lowest_second", "shared"]
    table = results.read(study, sources, names)
    first, second, seeds = (results.names(study, table, name) for name in names[:3])
    rows, low, other, both = counts = [results.numbers(study, table, name) for name in names[3:]]
    if any((some % 1 != 0).any() or (some > 2**53).any() for some in counts):
        raise StudyError(f"{study}: {', '.join(names[3:])} are counts of rows; check the table")
    size = (low + other) / 2
    if not ((both <= np.minimum(low, other)) & (np.maximum(low, other) <= rows) & (size > 0) & (both >= 0)).all():
        raise StudyError(f"{study}: a pair shares more rows than are low, or none are low; check the table")
    chances = 2 * low * other / rows / (low + other)
    # A set of one beside an empty one are half a row.
    found = [wilson(float(b / n), max(1, round(float(n)))) for b, n in zip(both, size, strict=True)]
    columns: dict[str, Sequence[object]] = {
        **{"first": first, "second": second, "seed": seeds, "kind": ["models"] * len(table)},
        **{name: table[name].to_pylist() for name in ("rows", "lowest_first", "lowest_second")},
        "chance": chances.tolist(),
        "p_beyond_chance": [beyond_chance(*map(int, counts)) for counts in zip(both, low, other, rows, strict=True)],
    }
    labels = [
        f"{a} – {b}" + (f", seed {s}" if len(set(seeds)) > 1 else "")
        for a, b, s in zip(first, second, seeds, strict=True)
    ]
    dots = [
        figure.Dot(label, in_percent(one), False, 100 * chance)
        for label, one, chance in zip(labels, found, chances.tolist(), strict=True)
    ]
    drawn = figure.dots(
        {"Between models": dots},
        "overlap of the lowest rows (%)",
        "Bars: 95 % Wilson intervals; orange ticks: overlap by chance.",
        unit="rows",
    )
    chance = float(chances.mean())
    by_seed = [
        float(np.mean([one.estimate for one, s in zip(found, seeds, strict=True) if s == seed])) for seed in set(seeds)
    ]
    whole = found[0] if len(found) == 1 else mean(sorted(by_seed))._replace(estimate=float((both / size).mean()))
    above = sum(one.low > c for one, c in zip(found, chances, strict=True))
    line = f"models share {percent(whole)} of their lowest rows on average of {len(found)} pairs, {100 * chance:.1f} % "
    line += f"by chance; {above} of {len(found)} pairs share more than chance"
    return Finding(study, results.tabulate(columns, {"overlap": found}), drawn, line)


class _Shared:
    """What pairs of sets of rows share, 2|A∩B| / (|A| + |B|), resampled over the rows for all pairs at once."""

    def __init__(self, sets: dict[str, Members], pairs: list[tuple[str, str]]) -> None:
        self.sets, self.pairs = sets, pairs
        self._n = len(next(iter(sets.values())))
        both = np.stack([sets[a] & sets[b] for a, b in pairs], axis=1).astype(np.float64)
        size = np.stack([(sets[a].astype(np.float64) + sets[b]) / 2 for a, b in pairs], axis=1)
        draws = resampled(np.concatenate([both, size], axis=1))
        with np.errstate(invalid="ignore"):
            self._draws = draws[:, : len(pairs)] / draws[:, len(pairs) :]
        self._shares = both.sum(axis=0) / size.sum(axis=0)
        counts = {name: float(members.sum()) for name, members in sets.items()}
        self.chances = [2 * counts[a] * counts[b] / self._n / (counts[a] + counts[b]) for a, b in pairs]

    def mean(self, places: list[int]) -> Interval:
        """Return the mean overlap of some of the pairs."""
        return percentiles(float(self._shares[places].mean()), self._draws[:, places].mean(axis=1), self._n)

    def above(self, places: list[int], others: list[int]) -> Interval:
        """Return how far the mean overlap of some pairs lies above that of others."""
        gap = self._draws[:, places].mean(axis=1) - self._draws[:, others].mean(axis=1)
        return percentiles(float(self._shares[places].mean() - self._shares[others].mean()), gap, self._n)

    def p(self, pair: tuple[str, str]) -> float:
        """Return how probable it is that sets of these sizes share so much by chance."""
        a, b = (self.sets[name] for name in pair)
        return beyond_chance(int((a & b).sum()), int(a.sum()), int(b.sum()), self._n)


def likelihood(*sources: Data, policy: Policy | None = None) -> Finding:
    """Compare how likely the policy finds golden, contrast, generated and attacked answers and its own samples.

    Of a store, the candidates whose log-probability is there, by default those misjudged; with a policy also the
    golden `response`. Of a table: `set`, `row_id`, `logprob` (natural, summed) and `n_tokens`; or the policy's answers,
    `prompt` and `response` as `answer` writes them, whose `row_id`, where there is one, is that of the store before.
    Log-probabilities are per token, averaged within a row, then over rows; intervals are bootstraps over rows.

    Args:
        sources: Stores, or tables.
        policy: Scores golden responses of stores, and answers.

    Raises:
        StudyError: The sources cannot be read, or fewer than one set has a likelihood.
    """
    study = "likelihood"
    found: dict[str, dict[tuple[int, str], tuple[float, float]]] = {}
    last_store = 0
    for i, source in enumerate(sources):
        place = i
        if results.is_store(source):
            last_store, parts = i, _of_store(study, source, policy)
        else:
            parts = results.read(study, [source], [])
            if {"prompt", "response"} <= set(parts.column_names) and "logprob" not in parts.column_names:
                place = last_store if "row_id" in parts.column_names else i
                parts = _of_answers(study, source, parts, policy)
            else:
                parts = results.read(study, [source], ["set", "row_id", "logprob", "n_tokens"])
        for name, by_row in _per_row(study, parts).items():
            found.setdefault(name, {}).update({(place, row): value for row, value in by_row.items()})
    if not found:
        raise StudyError(
            f"{study}: no candidate has a log-probability; run `seam` steps with a policy, or give a table of them"
        )
    whole = {name: bootstrap_mean(np.array([value for value, _ in by.values()])) for name, by in found.items()}
    order = sorted(whole, key=lambda name: -whole[name].estimate)
    tokens = {name: float(np.mean([length for _, length in by.values()])) for name, by in found.items()}
    out = results.tabulate(
        {
            "set": order,
            "rows": [whole[name].n for name in order],
            "mean_tokens": [tokens[name] for name in order],
            "perplexity": [math.exp(min(-whole[name].estimate, 700.0)) for name in order],
        },
        {"logprob_per_token": [whole[name] for name in order]},
    )
    drawn = figure.dots(
        {"Likelihood of the sample sets": [figure.Dot(f"{n} ({tokens[n]:.0f} tokens)", whole[n]) for n in order]},
        "log-probability per token under the policy (nats)",
        "Mean over rows of each row's mean; bars: 95 % bootstrap intervals over rows.",
        unit="rows",
    )
    line = ", ".join(f"{name} {shown(whole[name], '.2f')}" for name in order) + " nats a token"
    gaps = {}
    if len(order) > 1:
        first, last = order[0], order[-1]
        told = _likelier(whole, found, first, last)
        if shared := sorted(set(found[first]) & set(found[last])):
            above, longer = np.array([np.subtract(found[first][row], found[last][row]) for row in shared]).T
            line += (
                f"; {shown(bootstrap_mean(above), '+.2f')} between {first} and {last} on {len(shared):,} rows with both"
            )
            equal = _at_equal_length(above, longer)
            if told:
                gaps["length alone"] = ruler.Gap(f"at equal lengths {shown(equal, '+.2f')}", equal)
        tops = [name for name in order if name == first or not _likelier(whole, found, first, name)]
        ends = [name for name in order if name == last or not _likelier(whole, found, name, last)]
        line = (
            f"{' and '.join(tops)} likeliest, {' and '.join(ends)} least likely: "
            if told
            else f"{first} is not told apart from {last}: "
        ) + line
    return Finding(study, out, drawn, line + ruler.caveat(gaps))


_RULED = {
    "longest": "picking the longest",
    "shortest": "picking the shortest",
    "repetitive": "picking the most repetitive",
}


def _names(sources: Sequence[Data]) -> list[str]:
    short = [results.title(source) for source in sources]
    return [name if short.count(name) == 1 else f"{name} ({i})" for i, name in enumerate(short, 1)]


def _scored(study: str, source: Data, by: str) -> pa.Table:
    opened = results.store(source, study)
    if by not in {column.name for column in opened.columns() if column.stale is None}:
        scores = [c.name for c in opened.columns() if c.name.startswith(("seam_", "baseline_")) or c.name == "rer"]
        raise StudyError(
            f"{study}: {results.title(source)} has no column {by!r}; it has {', '.join(scores) or 'no scores'}"
        )
    return views.query(
        opened, f"SELECT row_id, prompt, response, {views.quoted(by)}::DOUBLE AS value FROM rows ORDER BY row_id"
    )


def _lowest(values: Doubles, size: int, below_zero: bool, seed: int) -> Members:
    """Mark the `size` lowest values; ties fall by lot, another for each store, lest the lot itself overlaps."""
    lot = np.random.default_rng(seed).random(len(values))
    members = np.zeros(len(values), bool)
    members[np.lexsort((lot, values))[:size]] = True
    marked: Members = members & (values < 0) if below_zero else members
    return marked


def _extremes(table: pa.Table, size: int) -> dict[str, Members]:
    told = ruler.scores([text or "" for text in table["response"].to_pylist()])
    return {
        "longest": _lowest(-told["length"], size, False, 101),
        "shortest": _lowest(told["length"], size, False, 102),
        "repetitive": _lowest(told["repetition"], size, False, 103),
    }


def _of_store(study: str, source: Data, policy: Policy | None) -> pa.Table:
    opened = results.store(source, study)
    known = views.query(
        opened, "SELECT variant AS set, row_id, logprob, n_tokens FROM candidates WHERE logprob IS NOT NULL"
    )
    known = known.set_column(0, "set", pa.array([_SETS.get(v, v) for v in known["set"].to_pylist()], pa.string()))
    if policy is None:
        return known
    rows = views.query(opened, "SELECT row_id, prompt, response FROM rows WHERE response IS NOT NULL")
    prompts: list[Prompt] = rows["prompt"].to_pylist()
    groups = [[text] for text in rows["response"].to_pylist()]
    scored = _by_policy(f"{study}: {results.title(source)}", policy, "golden", rows["row_id"], prompts, groups)
    return pa.concat_tables([known, scored.cast(known.schema)]) if len(scored) else known


def _of_answers(study: str, source: Data, table: pa.Table, policy: Policy | None) -> pa.Table:
    """Score a policy's answers, those to one prompt together."""
    if policy is None:
        raise StudyError(f"{study}: {results.title(source)} holds answers; name the policy that is to score them")
    prompts, texts = results.prompts(study, table), results.texts(study, table, "response")
    asked = (
        results.names(study, table, "row_id") if "row_id" in table.column_names else [prompt_text(p) for p in prompts]
    )
    groups: dict[str, tuple[Prompt, list[str]]] = {}
    for name, prompt, text in zip(asked, prompts, texts, strict=True):
        groups.setdefault(name, (prompt, []))[1].append(text)
    ids = pa.array([name if "row_id" in table.column_names else str(i) for i, name in enumerate(groups)])
    return _by_policy(
        f"{study}: {results.title(source)}", policy, "policy samples", ids,
        [prompt for prompt, _ in groups.values()], [some for _, some in groups.values()],
    )  # fmt: skip


def _by_policy(
    label: str, policy: Policy, name: str, ids: pa.Array, prompts: Sequence[Prompt], groups: Sequence[list[str]]
) -> pa.Table:
    """Return set, row_id, logprob and n_tokens of each group's texts that the policy can score."""
    scored: list[tuple[int, float, int]] = []
    with bar(label, len(prompts)) as advance:
        for start in range(0, len(prompts), _CALLS):
            some = slice(start, start + _CALLS)
            for i, likelihoods in enumerate(policy.logprobs(prompts[some], groups[some]), start):
                scored += [
                    (i, one.logprob, one.tokens)
                    for one in likelihoods
                    if one is not None and finite(one.logprob) is not None
                ]
            advance(len(prompts[some]))
    places, logprobs, tokens = zip(*scored, strict=True) if scored else ((), (), ())
    return pa.table(
        {
            "set": pa.array([name] * len(scored), pa.string()),
            "row_id": ids.take(pa.array(places, pa.int64())),
            "logprob": pa.array(logprobs, pa.float64()),
            "n_tokens": pa.array(tokens, pa.int64()),
        }
    )


def _per_row(study: str, table: pa.Table) -> dict[str, dict[str, tuple[float, float]]]:
    """Average each row's log-probability per token and length, by set."""
    sets, rows = results.names(study, table, "set"), results.names(study, table, "row_id")
    sums, lengths = results.numbers(study, table, "logprob"), results.numbers(study, table, "n_tokens")
    for i in np.flatnonzero((sums > 0) | (lengths < 0)).tolist():
        raise StudyError(
            f"{study}: row {i} has logprob {sums[i]:g} over {lengths[i]:g} tokens; no log-probability is above 0"
        )
    grouped: dict[str, dict[str, list[tuple[float, float]]]] = {}
    for name, row, total, length in zip(sets, rows, sums.tolist(), lengths.tolist(), strict=True):
        grouped.setdefault(name, {}).setdefault(row, []).append((total / max(length, 1.0), length))
    return {
        name: {
            row: (float(np.mean([v for v, _ in some])), float(np.mean([n for _, n in some])))
            for row, some in by.items()
        }
        for name, by in grouped.items()
    }


def _likelier(
    whole: Mapping[str, Interval],
    found: Mapping[str, Mapping[tuple[int, str], tuple[float, float]]],
    one: str,
    other: str,
) -> bool:
    """Tell whether a set is shown to be likelier than another, on the rows that have both where they are enough."""
    shared = sorted(set(found[one]) & set(found[other]))
    if shared:
        between = bootstrap_mean(np.array([found[one][row][0] - found[other][row][0] for row in shared]))
        if not math.isnan(between.low):
            return between.above_zero
    return whole[one].low > whole[other].high


def _at_equal_length(above: Doubles, longer: Doubles) -> Interval:
    """Return the difference where lengths are equal: the intercept of `above` on `longer`, by least squares."""
    moments = np.stack([above, longer, above * longer, longer**2], axis=1)

    def intercept(of: Doubles) -> Doubles:
        y, x, xy, xx = np.moveaxis(of, -1, 0)
        spread = xx - x * x
        found: Doubles = y - x * np.where(spread > 1e-9, (xy - x * y) / np.maximum(spread, 1e-9), 0.0)
        return found

    return percentiles(float(intercept(moments.mean(axis=0))), intercept(resampled(moments)), len(above))
