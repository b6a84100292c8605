"""What responses look like: their length, repetition, relevance and variety, and their likeness to references.

responses    response, and model, prompt, query_type, relevant_sentences where there are     RER Table 3, Fig. 5
tax          references, response, and model, task, input where there are                    RER §4.3, Table 4
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Sequence
from functools import lru_cache
from itertools import islice

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from seamcurate import words
from seamcurate.errors import StudyError
from seamcurate.models.template import prompt_text
from seamcurate.study import figure, results, ruler
from seamcurate.study.results import Data, Finding
from seamcurate.study.statistics import NOTHING, Doubles, Interval, bootstrap_mean, shown
from seamcurate.text import brief

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


def rouge_l(candidate: Sequence[str], reference: Sequence[str]) -> float:
    """Return ROUGE-L's F measure of two texts' words (Lin 2004); 0 where either has none.

    The longest common subsequence is counted a word of the candidate at a time, a bit for each word of the reference
    (Hyyrö 2004): a table would take the memory of their product.
    """
    if not candidate or not reference:
        return 0.0
    places: dict[str, int] = {}
    for i, word in enumerate(reference):
        places[word] = places.get(word, 0) | 1 << i
    every = (1 << len(reference)) - 1
    row = every
    for word in candidate:
        if matched := row & places.get(word, 0):
            row = (row + matched | row - matched) & every
    common = len(reference) - row.bit_count()
    return 2 * common / (len(candidate) + len(reference))


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
    asked = [prompt_text(p) for p in results.prompts(study, table)] if "prompt" in table.column_names else None
    values = {
        "words": words.counts(pa.array(texts, pa.large_string())).astype(np.float64),
        "repetition": np.array([repetition(text) for text in texts]),
    }
    if "relevant_sentences" in table.column_names:
        values["relevant"] = _shares(study, table, "relevant_sentences")
    groups: dict[tuple[str, str], list[int]] = {}
    for i, key in enumerate(zip(*keys, strict=True)):
        groups.setdefault(key, []).append(i)
    kinds = {kind for _, kind in groups}
    if len(kinds) > 1 and "all" in kinds:
        raise StudyError(
            f"{study}: a row has the query_type 'all', which stands for all of them; call it something else"
        )
    if len(kinds) > 1:
        for i, (model, _) in enumerate(zip(*keys, strict=True)):
            groups.setdefault((model, "all"), []).append(i)
    found: dict[tuple[str, str], dict[str, Interval]] = {}
    for key in sorted(groups, key=lambda k: (keys[0].index(k[0]), k[1] != "all", k[1])):
        own = groups[key]
        found[key] = {
            name: _mean(column[own], [asked[i] for i in own] if asked else None) for name, column in values.items()
        }
        found[key]["self_bleu"] = _variety([texts[i] for i in own], [asked[i] for i in own]) if asked else NOTHING
    measures = [m for m in _MEASURES if any(not math.isnan(f.get(m, NOTHING).estimate) for f in found.values())]
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
    study = "tax"
    table = results.read(study, sources, ["references", "response"], named="model")
    answers = results.texts(study, table, "response", missing="")
    models, tasks = _optional(study, table, "model"), _optional(study, table, "task")
    wanted = _references(study, table)
    ids = _instances(study, table, models, tasks) if "instance_id" in table.column_names else None
    if baseline is not None and baseline not in models:
        raise StudyError(
            f"{study}: no row is of the baseline {baseline!r}; there are {', '.join(dict.fromkeys(models))}"
        )
    if set(models) == {baseline}:
        raise StudyError(f"{study}: all rows are of the baseline {baseline!r}; add the model that is held against it")
    split = _words()
    golden = [[split(text) for text in some] for some in wanted]

    def rouge(texts: Sequence[str]) -> Doubles:
        return 100 * np.array(
            [max(rouge_l(split(text), one) for one in some) for text, some in zip(texts, golden, strict=True)]
        )

    scored = {"response": rouge(answers)}
    if "input" in table.column_names:
        given = results.texts(study, table, "input", missing="")
        scored["echo"] = rouge([" ".join(g.split()[: len(a.split())]) for g, a in zip(given, answers, strict=True)])
    others = _swapped(answers, models, tasks)
    scored["other"] = np.where([other is None for other in others], math.nan, rouge([other or "" for other in others]))
    own = {model: [i for i, other in enumerate(models) if other == model] for model in dict.fromkeys(models)}
    rows = [
        (m, kind, _mean(values[places], None))
        for m, places in own.items()
        for kind, values in scored.items()
        if np.isfinite(values[places]).any()
    ]
    cost = dict.fromkeys(own, NOTHING)
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
            "tax": [cost[m] if kind == "response" else NOTHING for m, kind, _ in rows],
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
            shown(_mean(values[own[best]], None), ".1f"), _mean((scored["response"] - values)[own[best]], None)
        )
        for kind, values in scored.items()
        if kind != "response" and np.isfinite(values[own[best]]).any()
    }
    return Finding(study, out, drawn, text + ruler.caveat(gaps))


_TOLD = {"echo": "echoing the input", "other": "the answer to another instance"}


def _grams(some: Sequence[str], n: int) -> Counter[tuple[str, ...]]:
    return Counter(tuple(some[i : i + n]) for i in range(len(some) - n + 1))


def _optional(study: str, table: pa.Table, name: str) -> list[str]:
    return results.names(study, table, name) if name in table.column_names else ["all"] * len(table)


def _shares(study: str, table: pa.Table, name: str) -> Doubles:
    """Return a column of shares, NaN where there is none."""
    there = pc.is_valid(table[name]).to_numpy()
    if pa.types.is_floating(table[name].type):
        there &= ~pc.is_nan(pc.fill_null(table[name], math.nan)).to_numpy()
    values = np.full(len(table), math.nan)
    values[there] = results.numbers(study, table.filter(pa.array(there)), name)
    if (np.abs(values[there] - 0.5) > 0.5).any():
        raise StudyError(f"{study}: {name} is a share, from 0 to 1; divide per cent by 100")
    return values


def _references(study: str, table: pa.Table) -> list[list[str]]:
    """Return the references of each row, of which it has at least one."""
    column = table["references"]
    if not pa.types.is_list(column.type) and not pa.types.is_large_list(column.type):
        return [[text] for text in results.texts(study, table, "references")]
    counts = pc.fill_null(pc.list_value_length(column), 0).to_numpy()
    for i in np.flatnonzero(counts == 0).tolist():
        raise StudyError(f"{study}: row {i} has no reference; leave it out")
    rows = pa.array(np.repeat(np.arange(len(table)), counts))
    flat = iter(results.texts(study, pa.table({"row": rows, "references": pc.list_flatten(column)}), "references"))
    return [list(islice(flat, int(count))) for count in counts]


def _instances(study: str, table: pa.Table, models: list[str], tasks: list[str]) -> list[tuple[str, str]]:
    """Return what each row is the answer to: an instance of a task, once for each model."""
    found = list(zip(tasks, results.names(study, table, "instance_id"), strict=True))
    (most, times), *_ = Counter(zip(models, found, strict=True)).most_common(1)
    if times > 1:
        raise StudyError(
            f"{study}: {brief(most[0], 60)} answered instance {brief(most[1][1], 60)} {times} times; keep one answer"
        )
    return found


def _words() -> Callable[[str], list[str]]:
    """Return what splits a text into stemmed words as `rouge_score` does."""
    from nltk.stem.porter import PorterStemmer
    from rouge_score.tokenize import tokenize

    stem = lru_cache(maxsize=2**16)(PorterStemmer().stem)
    return lambda text: [stem(word) if len(word) > 3 else word for word in tokenize(text, None)]


def _mean(values: Doubles, asked: list[str] | None) -> Interval:
    known = np.isfinite(values)
    if not known.any():
        return NOTHING
    groups = None if asked is None else [prompt for prompt, one in zip(asked, known, strict=True) if one]
    return bootstrap_mean(values[known], groups)


def _variety(texts: list[str], asked: list[str]) -> Interval:
    samples: dict[str, list[str]] = {}
    for text, prompt in zip(texts, asked, strict=True):
        samples.setdefault(prompt, []).append(text)
    several = [some for some in samples.values() if len(some) > 1]
    return bootstrap_mean(np.array([self_bleu(some) for some in several])) if several else NOTHING


def _described(found: dict[tuple[str, str], dict[str, Interval]]) -> str:
    parts = []
    for model in dict.fromkeys(model for model, _ in found):
        own = {kind: f for (m, kind), f in found.items() if m == model}
        whole = own.get("all") or next(iter(own.values()))
        part = f"{'responses' if model == 'all' else model}: {shown(whole['words'], '.0f')} words, 4-gram repetition {shown(whole['repetition'], '.3f')}"
        if not math.isnan(whole.get("relevant", NOTHING).estimate):
            part += f", {shown(whole['relevant'], '.1f', 100, ' %')} of sentences relevant"
        kinds = [own[kind]["self_bleu"].estimate for kind in ("open", "closed") if kind in own]
        if len(kinds) == 2 and not any(map(math.isnan, kinds)):
            one, other = own["closed"]["self_bleu"], own["open"]["self_bleu"]
            verb = "above" if one.low > other.high else "below" if one.high < other.low else "not told apart from"
            part += f", Self-BLEU of closed queries {shown(one, '.2f')} {verb} that of open ones {shown(other, '.2f')}"
        elif not math.isnan(whole["self_bleu"].estimate):
            part += f", Self-BLEU {shown(whole['self_bleu'], '.2f')}"
        parts.append(part)
    return "; ".join(parts)


def _swapped(answers: list[str], models: list[str], tasks: list[str]) -> list[str | None]:
    """Give each instance the answer to the next one of its task, under the same model; None where it is the only one."""
    places: dict[tuple[str, str], list[int]] = {}
    for i, key in enumerate(zip(models, tasks, strict=True)):
        places.setdefault(key, []).append(i)
    swapped: list[str | None] = [None] * len(answers)
    for own in places.values():
        for i, following in zip(own, own[1:] + own[:1], strict=True):
            swapped[i] = answers[following] if following != i else None
    return swapped


def _cost(
    study: str, scores: Doubles, before: list[int], after: list[int], ids: list[tuple[str, str]] | None
) -> Interval:
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
