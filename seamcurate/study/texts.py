"""What responses look like: their length, repetition, relevance and variety, and their likeness to references.

responses    response, and model, prompt, query_type, relevant_sentences where there are     RER Table 3, Fig. 5
tax          references, response, and model, task, input where there are                    RER §4.3, Table 4
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from seamcurate import words
from seamcurate.errors import StudyError
from seamcurate.models.template import prompt_text
from seamcurate.study import figure, results, ruler
from seamcurate.study.results import Data, Finding
from seamcurate.study.statistics import Doubles, Interval, bootstrap_mean, shown

_NOTHING = Interval(math.nan, math.nan, math.nan, 0)
_MEASURES = {
    "words": "words a response",
    "repetition": "4-gram repetition",
    "relevant": "relevant sentences (share)",
    "self_bleu": "Self-BLEU",
}


def repetition(text: str, n: int = 4) -> float:
    """Return `words.repetition`; 0 for fewer than n words, which repeat nothing."""
    return words.repetition(text, n) or 0.0


def bleu(candidate: Sequence[str], references: Sequence[Sequence[str]], n: int = 4) -> float:
    """Return sentence BLEU of 1- to n-grams, weighted alike (Papineni et al. 2002).

    An order without a match counts as .1 matches (Chen and Cherry 2014, method 1); one unigram has to match.
    """
    total = 0.0
    for order in range(1, n + 1):
        grams = _grams(candidate, order)
        known: Counter[tuple[str, ...]] = Counter()
        for reference in references:
            known |= _grams(reference, order)
        matches = sum((grams & known).values())
        if order == 1 and not matches:
            return 0.0
        total += math.log((matches or 0.1) / max(sum(grams.values()), 1)) / n
    length = len(candidate)
    nearest = min((len(reference) for reference in references), key=lambda other: (abs(other - length), other))
    return math.exp(total + min(0.0, 1 - nearest / length))


def self_bleu(texts: Sequence[str]) -> float:
    """Return the mean BLEU of each text against all the others (Zhu et al. 2018); high = alike."""
    split = [words.split(text) for text in texts]
    scored = [bleu(one, split[:i] + split[i + 1 :]) if one else 0.0 for i, one in enumerate(split)]
    return float(np.mean(scored))


def responses(*sources: Data) -> Finding:
    """Describe responses by model and query type: words, 4-gram repetition, share of relevant sentences, Self-BLEU.

    Columns: `response`; where they are there, `model` (else each of several sources is one), `query_type`, `relevant_sentences` (a share, as the step of that
    name adds), and `prompt`: several responses of one model to a prompt are its samples, whose Self-BLEU is taken.
    The rows of a store are read as they are. Words are runs of letters or of punctuation. Intervals are bootstraps
    over prompts.

    Raises:
        StudyError: The sources cannot be read, or no row has a response.
    """
    study = "responses"
    table = results.read(study, sources, ["response"], named="model")
    table = table.filter(pc.is_valid(table["response"]))
    if not len(table):
        raise StudyError(f"{study}: no row has a response; name a table that holds some")
    texts = results.texts(study, table, "response")
    keys = [_optional(study, table, name) for name in ("model", "query_type")]
    asked = [prompt_text(p) for p in table["prompt"].to_pylist()] if "prompt" in table.column_names else None
    values = {
        "words": words.counts(pa.array(texts, pa.large_string())).astype(np.float64),
        "repetition": np.array([repetition(text) for text in texts]),
    }
    if "relevant_sentences" in table.column_names:
        shares = table["relevant_sentences"].to_pylist()
        values["relevant"] = np.array([math.nan if value is None else value for value in shares], np.float64)
    groups: dict[tuple[str, str], list[int]] = {}
    for i, key in enumerate(zip(*keys, strict=True)):
        groups.setdefault(key, []).append(i)
    kinds = {kind for _, kind in groups}
    if len(kinds) > 1:
        for i, (model, _) in enumerate(zip(*keys, strict=True)):
            groups.setdefault((model, "all"), []).append(i)
    found: dict[tuple[str, str], dict[str, Interval]] = {}
    for key in sorted(groups, key=lambda k: (keys[0].index(k[0]), k[1] != "all", k[1])):
        own = groups[key]
        found[key] = {
            name: _mean(column[own], [asked[i] for i in own] if asked else None) for name, column in values.items()
        }
        found[key]["self_bleu"] = _variety([texts[i] for i in own], [asked[i] for i in own]) if asked else _NOTHING
    measures = [m for m in _MEASURES if any(not math.isnan(f.get(m, _NOTHING).estimate) for f in found.values())]
    out = results.tabulate(
        {
            "model": [model for model, _ in found],
            "query_type": [kind for _, kind in found],
            "responses": [len(groups[key]) for key in found],
        },
        {measure: [f[measure] for f in found.values()] for measure in measures},
    )
    labels = {key: ", ".join(part for part in (key[0], key[1]) if part != "all") or "all" for key in found}
    drawn = figure.dots(
        {
            _MEASURES[measure]: [
                figure.Dot(labels[key], f[measure]._replace(n=len(groups[key]))) for key, f in found.items()
            ]
            for measure in measures
        },
        "",
        "Means; bars: 95 % bootstrap intervals over prompts.",
        unit="responses",
        own_axes=True,
    )
    return Finding(study, out, drawn, _described(found))


def tax(*sources: Data, baseline: str | None = None) -> Finding:
    """Measure zero-shot tasks by ROUGE-L against references, and what alignment cost: the tax against a baseline.

    Columns: `references` (a text or a list of texts) and `response`; where they are there `model` (else each of several sources is one), `task`,
    `instance_id` and `input`. ROUGE-L is the F measure of stemmed words, the best over references, × 100, as
    Super-NaturalInstructions' own evaluation has it. Rulers: as many words of the input as the response has, and the
    response to another instance of the task.

    Args:
        sources: Tables of responses.
        baseline: The model before alignment, among `model`.

    Raises:
        StudyError: The sources cannot be read, or there is no such baseline.
    """
    from rouge_score.rouge_scorer import RougeScorer

    study = "tax"
    table = results.read(study, sources, ["references", "response"], named="model")
    answers = ["" if text is None else text for text in table["response"].to_pylist()]
    models, tasks = _optional(study, table, "model"), _optional(study, table, "task")
    wanted = [[r] if isinstance(r, str) else list(r or []) for r in table["references"].to_pylist()]
    for i, some in enumerate(wanted):
        if not some:
            raise StudyError(f"{study}: row {i} has no reference; leave it out")
    ids = _optional(study, table, "instance_id") if "instance_id" in table.column_names else None
    if baseline is not None and baseline not in models:
        raise StudyError(
            f"{study}: no row is of the baseline {baseline!r}; there are {', '.join(dict.fromkeys(models))}"
        )
    scorer = RougeScorer(["rougeL"], use_stemmer=True)

    def rouge(texts: Sequence[str]) -> Doubles:
        best = [max(scorer.score(r, t)["rougeL"].fmeasure for r in some) for t, some in zip(texts, wanted, strict=True)]
        return 100 * np.array(best)

    scored = {"response": rouge(answers)}
    if "input" in table.column_names:
        given = [text or "" for text in table["input"].to_pylist()]
        scored["echo"] = rouge([" ".join(g.split()[: len(a.split())]) for g, a in zip(given, answers, strict=True)])
    scored["other"] = rouge(_swapped(answers, models, tasks))
    own = {model: [i for i, other in enumerate(models) if other == model] for model in dict.fromkeys(models)}
    rows = [(m, kind, bootstrap_mean(values[places])) for m, places in own.items() for kind, values in scored.items()]
    cost = dict.fromkeys(own, _NOTHING)
    if baseline is not None:
        for model in own:
            cost[model] = _cost(study, scored["response"], own[baseline], own[model], ids)
    out = results.tabulate(
        {
            "model": [m for m, _, _ in rows],
            "kind": [kind for _, kind, _ in rows],
            "instances": [interval.n for _, _, interval in rows],
            "tasks": [len({tasks[i] for i in own[m]}) for m, _, _ in rows],
        },
        {
            "rouge_l": [interval for _, _, interval in rows],
            "tax": [cost[m] if kind == "response" else _NOTHING for m, kind, _ in rows],
        },
    )
    dots = [
        figure.Dot(m if kind == "response" else f"{m}: {_TOLD[kind]}", interval, kind != "response")
        for m, kind, interval in rows
    ]
    line = (bootstrap_mean(scored["response"][own[baseline]]).estimate, baseline) if baseline is not None else None
    drawn = figure.dots(
        {"Following instructions on other tasks": dots},
        "ROUGE-L (0 to 100)",
        "Bars: 95 % bootstrap intervals over instances. Hollow: rulers.",
        line,
        "instances",
    )
    reached = {m: interval for m, kind, interval in rows if kind == "response"}
    told = ", ".join(f"{m} {shown(reached[m], '.1f')}" for m in own if m != baseline)
    text = f"ROUGE-L {told}"
    named = [m for m in own if m != baseline] or list(own)
    if baseline is not None:
        paid = [f"{m} {shown(cost[m], '+.1f')}" for m in own if m != baseline]
        verdict = [f"{m} pays" for m in own if cost[m].above_zero] + [f"{m} gains" for m in own if cost[m].below_zero]
        text = f"against {baseline} at {shown(reached[baseline], '.1f')} ROUGE-L the tax is {', '.join(paid)}"
        text += f": {', '.join(verdict)}" if verdict else ": not told apart from none"
    best = max(named, key=lambda m: reached[m].estimate)
    gaps = {
        _TOLD[kind]: ruler.Gap(
            shown(bootstrap_mean(values[own[best]]), ".1f"), bootstrap_mean((scored["response"] - values)[own[best]])
        )
        for kind, values in scored.items()
        if kind != "response"
    }
    return Finding(study, out, drawn, text + ruler.caveat(gaps))


_TOLD = {"echo": "echoing the input", "other": "the answer to another instance"}


def _grams(some: Sequence[str], n: int) -> Counter[tuple[str, ...]]:
    return Counter(tuple(some[i : i + n]) for i in range(len(some) - n + 1))


def _optional(study: str, table: pa.Table, name: str) -> list[str]:
    return results.texts(study, table, name) if name in table.column_names else ["all"] * len(table)


def _mean(values: Doubles, asked: list[str] | None) -> Interval:
    known = np.isfinite(values)
    if not known.any():
        return _NOTHING
    groups = None if asked is None else [prompt for prompt, one in zip(asked, known, strict=True) if one]
    return bootstrap_mean(values[known], groups)


def _variety(texts: list[str], asked: list[str]) -> Interval:
    samples: dict[str, list[str]] = {}
    for text, prompt in zip(texts, asked, strict=True):
        samples.setdefault(prompt, []).append(text)
    several = [some for some in samples.values() if len(some) > 1]
    return bootstrap_mean(np.array([self_bleu(some) for some in several])) if several else _NOTHING


def _described(found: dict[tuple[str, str], dict[str, Interval]]) -> str:
    parts = []
    for model in dict.fromkeys(model for model, _ in found):
        own = {kind: f for (m, kind), f in found.items() if m == model}
        whole = own.get("all") or next(iter(own.values()))
        part = f"{'responses' if model == 'all' else model}: {shown(whole['words'], '.0f')} words, 4-gram repetition {shown(whole['repetition'], '.3f')}"
        if not math.isnan(whole.get("relevant", _NOTHING).estimate):
            part += f", {shown(whole['relevant'], '.1f', 100, ' %')} of sentences relevant"
        if {"open", "closed"} <= set(own) and not math.isnan(own["open"]["self_bleu"].estimate):
            one, other = own["closed"]["self_bleu"], own["open"]["self_bleu"]
            verb = "above" if one.low > other.high else "below" if one.high < other.low else "not told apart from"
            part += f", Self-BLEU of closed queries {shown(one, '.2f')} {verb} that of open ones {shown(other, '.2f')}"
        elif not math.isnan(whole["self_bleu"].estimate):
            part += f", Self-BLEU {shown(whole['self_bleu'], '.2f')}"
        parts.append(part)
    return "; ".join(parts)


def _swapped(answers: list[str], models: list[str], tasks: list[str]) -> list[str]:
    """Give each instance the answer to the next one of its task, under the same model."""
    places: dict[tuple[str, str], list[int]] = {}
    for i, key in enumerate(zip(models, tasks, strict=True)):
        places.setdefault(key, []).append(i)
    swapped = list(answers)
    for own in places.values():
        for i, following in zip(own, own[1:] + own[:1], strict=True):
            swapped[i] = answers[following]
    return swapped


def _cost(study: str, scores: Doubles, before: list[int], after: list[int], ids: list[str] | None) -> Interval:
    """Return baseline minus model, paired by instance where instances have ids, else in their order."""
    if ids is None:
        if len(before) != len(after):
            raise StudyError(f"{study}: models answered {len(before)} and {len(after)} instances; add `instance_id`")
        return bootstrap_mean(scores[before] - scores[after])
    own = {ids[i]: i for i in after}
    pairs = [(i, own[ids[i]]) for i in before if ids[i] in own]
    if not pairs:
        raise StudyError(f"{study}: the models share no instance_id; let them answer the same instances")
    return bootstrap_mean(np.array([scores[i] - scores[j] for i, j in pairs]))
