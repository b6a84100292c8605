"""Rows of a store beside what people said of other answers to their prompts, and what the reward model said of them.

One rule: an answer that a column was computed from says nothing about that column. Judged answers that are the row's
golden response or one of its candidates are left out, and counted.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import NamedTuple, TypeAlias

import numpy as np
import pyarrow as pa

from seamcurate.errors import StudyError
from seamcurate.models import RewardModel
from seamcurate.models.protocols import Prompt
from seamcurate.models.template import prompt_text
from seamcurate.progress import bar
from seamcurate.select import views
from seamcurate.step import comparable, finite
from seamcurate.store.store import Store
from seamcurate.study import judged_pairs, sources
from seamcurate.study.sources import StudySource
from seamcurate.study.statistics import Doubles
from seamcurate.text import counted, folded
from seamcurate.words import counts

ALL = "all"
"""The group of every row of tables without a column that divides them."""
SIMPLE = ("random", "prompt_words", "response_words")
"""Columns that every study of a store's columns has beside them."""
_LOW = (
    *("seam_", "reward", "rer", "rollout_pass", "rollout_reward", "rollout_distinct"),
    # A golden response that is rewarded little above worse ones; and what R.I.P. leaves out.
    *("baseline_reward_margin", "baseline_rejected_reward", "baseline_rejected_length"),
)
"""How the names of columns begin whose low values are suspected; of any other column it is the high ones."""
_SEED = 20_240_607
"""Of the column of random numbers: no seed that rows are likely to be made with."""
_BATCH = 64
"""Prompts a call of the reward model."""
_GOLDEN_ROWS = 16
"""Golden responses by which a reward model is compared with the store's."""


LeftOut: TypeAlias = Counter[tuple[str, str]]


class Judged(NamedTuple):
    """An answer with people's score; `reward` is the reward model's, NaN where it gave none."""

    text: str
    score: float
    reward: float


@dataclass(frozen=True)
class JudgedRow:
    """A row of the store and the answers to its prompt that people judged, without those its columns know."""

    row_id: int
    prompt: str
    group: str
    """The value of the column that divides rows."""
    wrong: Doubles
    """Pairs: 1 where the reward orders it against people, ½ where it gives both the same reward, else 0; (pairs,)."""
    answers: Sequence[Judged]
    """Rated answers; none where people judged pairs."""
    pairs: Sequence[tuple[int, ...]]
    """The entry of each pair in the table, or the two entries of its rated answers; rows of one prompt share them."""


@dataclass(frozen=True)
class JudgedRows:
    """Rows with judged answers, and the store's columns for them."""

    rows: Sequence[JudgedRow]
    columns: Mapping[str, Doubles]
    """Each numeric column, (rows,), turned so that high is suspected; NaN where it is NULL."""
    golden: int
    """Rows whose golden response people judged beside another answer."""
    golden_below: int
    """Those of them whose golden response people put below one."""
    left_out: LeftOut
    """How many pairs or answers were left out for every row of their prompt, by what they are and why."""

    @property
    def left_out_lines(self) -> list[str]:
        """What was left out, in words."""
        return [f"{counted(number, noun)} {reason}" for (noun, reason), number in self.left_out.items() if number]


def suspect(name: str) -> str:
    """Say which values of a column are suspected: `low` or `high`."""
    return "low" if name.startswith(_LOW) and not name.endswith("_std") else "high"


def read(
    study: str,
    tables: Sequence[StudySource],
    rewards: Mapping[str, RewardModel],
    columns: Sequence[str],
    by: str | None,
    rated: bool = False,
) -> JudgedRows:
    """Join judged pairs, or rated answers, with the rows of a store that have their prompts.

    Args:
        study: The study's name, for messages.
        tables: The store first, then tables of pairs or of rated answers.
        rewards: The store's reward model, where the tables have no rewards.
        columns: The columns of the store to read; all numeric ones where there are none named.
        by: A column of the store or of the tables that divides rows.
        rated: Whether pairs will not do.

    Raises:
        StudyError: The first source is no store, the tables lack a column, no prompt of them is one of the store's, or
            the reward model is not the store's.
    """
    if len(tables) < 2:
        raise StudyError(f"{study} reads a store and then judged answers; name both")
    store = sources.open_store(tables[0], study)
    table = sources.read(study, tables[1:], ["prompt"])
    if len(rewards) > 1:
        raise StudyError(f"{study}: {len(rewards)} reward models; name the store's alone")
    model = next(iter(rewards.values()), None)
    in_pairs = not rated and {"response_a", "response_b", "label"} <= set(table.column_names)
    if not in_pairs:
        table = sources.read(study, tables[1:], ["prompt", "response", "score"])
    rows, numbers = _stored(study, store, columns, by if by is not None and by not in table.column_names else None)
    prompts = _prompts(study, table)
    groups = sources.names(study, table, by) if by is not None and by in table.column_names else None
    left_out: LeftOut = Counter()
    known = [prompt_text(prompt).strip() in rows for prompt in prompts]
    left_out["judgement", "whose prompt is no row of the store"] = known.count(False)
    if not any(known):
        raise StudyError(
            f"{study}: no prompt of the judged answers is a row of {store.path.name}; make the store from the same prompts"
        )
    if model is not None:
        _check_model(study, store, model)
    table = table.filter(pa.array(known))
    prompts = [prompt for prompt, is_known in zip(prompts, known, strict=True) if is_known]
    groups = groups and [group for group, is_known in zip(groups, known, strict=True) if is_known]
    keep = _pairs(study, table, prompts, model) if in_pairs else _rated(study, table, prompts, model)
    by_prompt: dict[str, list[int]] = {}
    for i, prompt in enumerate(prompts):
        by_prompt.setdefault(prompt_text(prompt).strip(), []).append(i)
    candidates = _candidates(store, sorted(row.row_id for text in by_prompt for row in rows[text]))
    judged: list[JudgedRow] = []
    beaten: list[bool] = []
    for text, entries in by_prompt.items():
        # Why each entry is left out of a row; one that any row of the prompt keeps is not left out.
        causes: dict[int, tuple[str, str]] = {}
        used: set[int] = set()
        for row in rows[text]:
            kept = keep(entries, None if row.golden is None else folded(row.golden), candidates[row.row_id])
            beaten += [] if kept.beaten is None else [kept.beaten]
            causes |= kept.left_out
            used |= set(entries) - kept.left_out.keys()
            if len(kept.wrong) or kept.answers:
                group = groups[entries[0]] if groups else row.group
                judged.append(JudgedRow(row.row_id, text, group, kept.wrong, kept.answers, kept.pairs))
        left_out.update(cause for entry, cause in causes.items() if entry not in used)
    if not judged:
        reasons = ", ".join(
            f"{counted(number, noun)} {reason}" for (noun, reason), number in left_out.items() if number
        )
        raise StudyError(f"{study}: no judged answer is left ({reasons}); judge other answers")
    values = {name: np.array([column[row.row_id] for row in judged]) for name, column in numbers.items()}
    return JudgedRows(judged, values, len(beaten), sum(beaten), left_out)


# ── the store ───────────────────────────────────────────────────────────────────────────────────────────


class _Row(NamedTuple):
    row_id: int
    golden: str | None
    group: str


def _stored(
    study: str, store: Store, columns: Sequence[str], by: str | None
) -> tuple[dict[str, list[_Row]], dict[str, dict[int, float]]]:
    """Return rows by prompt, and each numeric column by row_id, high = suspected."""
    schema = views.query(store, "SELECT * FROM rows LIMIT 0").schema
    numeric = [f.name for f in schema if _is_number(f.type) and f.name != "row_id"]
    for name in columns:
        if name not in numeric:
            raise StudyError(
                f"{study}: {name} is no numeric column of {store.path.name}; there are {', '.join(numeric)}"
            )
    if by is not None and by not in schema.names:
        raise StudyError(f"{study}: no column {by!r} to divide by, neither in the store nor beside the judged answers")
    names = list(columns) or numeric
    listed = ", ".join(
        f'"{name.replace(chr(34), chr(34) * 2)}"' for name in dict.fromkeys(["row_id", "prompt", *names])
    )
    # Views of a source without responses have no such column.
    response = "response" if "response" in schema.names else "NULL::VARCHAR AS response"
    group_column = f'CAST("{by}" AS VARCHAR) AS "group of rows"' if by is not None else f"'{ALL}' AS \"group of rows\""
    table = views.query(store, f"SELECT {listed}, {response}, {group_column} FROM rows ORDER BY row_id")
    ids: list[int] = table["row_id"].to_pylist()
    prompts = [prompt_text(prompt).strip() for prompt in table["prompt"].to_pylist()]
    responses: list[str | None] = table["response"].to_pylist()
    rows: dict[str, list[_Row]] = {}
    for text, i, golden, group in zip(prompts, ids, responses, table["group of rows"].to_pylist(), strict=True):
        rows.setdefault(text, []).append(_Row(i, golden, str(group)))
    values: dict[str, Doubles] = {}
    for name in names:
        column = comparable(
            table[name].cast(pa.float64(), safe=False).to_numpy(zero_copy_only=False).astype(np.float64)
        )
        values[name] = -column if suspect(name) == "low" else column
    values["random"] = np.random.default_rng(_SEED).random(len(ids))
    values["prompt_words"] = counts(pa.array(prompts, pa.large_string())).astype(np.float64)
    lengths = counts(pa.array([text or "" for text in responses], pa.large_string())).astype(np.float64)
    values["response_words"] = np.where([text is None for text in responses], math.nan, lengths)
    return rows, {name: dict(zip(ids, column.tolist(), strict=True)) for name, column in values.items()}


def _is_number(kind: pa.DataType) -> bool:
    return bool(pa.types.is_floating(kind) or pa.types.is_integer(kind) or pa.types.is_boolean(kind))


def _candidates(store: Store, ids: Sequence[int]) -> dict[int, set[str]]:
    """Return the candidates of rows, in plain form, whatever sample set they are in."""
    wanted = ", ".join(map(str, ids))
    table = views.query(
        store, f"SELECT row_id, response FROM candidates WHERE row_id IN ({wanted}) AND response IS NOT NULL"
    )
    texts: dict[int, set[str]] = {i: set() for i in ids}
    for row_id, response in zip(table["row_id"].to_pylist(), table["response"].to_pylist(), strict=True):
        texts[row_id].add(folded(response))
    return texts


def _check_model(study: str, store: Store, model: RewardModel) -> None:
    """Refuse a reward model that scores golden responses otherwise than the store's column `reward`."""
    if "reward" not in views.query(store, "SELECT * FROM rows LIMIT 0").schema.names:
        return
    sample = views.query(
        store,
        "SELECT row_id, prompt, response, reward FROM rows WHERE reward IS NOT NULL AND response IS NOT NULL "
        f"ORDER BY row_id LIMIT {_GOLDEN_ROWS}",
    ).to_pylist()
    given = model.rewards([row["prompt"] for row in sample], [[row["response"]] for row in sample])
    for row, (reward,) in zip(sample, given, strict=True):
        if reward is None or not math.isclose(reward, row["reward"], rel_tol=1e-2, abs_tol=1e-2):
            raise StudyError(
                f"{study}: row {row['row_id']} has reward {row['reward']:.4g} in {store.path.name}, and {reward} by this "
                "reward model; name the one that the store was scored by"
            )


# ── the judged answers ──────────────────────────────────────────────────────────────────────────────────


class _Pair(NamedTuple):
    """Two answers in one entry of a table of pairs, the first better by `human`: 1, 0 or −1."""

    first: str
    second: str
    human: float
    gap: float
    """The first answer's reward minus the second's."""


def _prompts(study: str, table: pa.Table) -> list[Prompt]:
    prompts = sources.prompts(study, table)
    if "context" not in table.column_names:
        return prompts
    contexts = sources.texts(study, table, "context", missing="")
    return [f"{c}\n\n{p}" if c and isinstance(p, str) else p for c, p in zip(contexts, prompts, strict=True)]


class _Kept(NamedTuple):
    """What a row's columns do not know of the answers that people judged."""

    wrong: Doubles
    answers: list[Judged]
    pairs: list[tuple[int, ...]]
    """The entries of each of `wrong`."""
    beaten: bool | None
    """Whether people put the golden response below another answer; None where they did not judge it."""
    left_out: dict[int, tuple[str, str]]
    """What each entry that is left out is, and why it is."""


_Keep: TypeAlias = Callable[[Sequence[int], str | None, set[str]], _Kept]
"""(entries of the table, golden response, candidates) → what is kept."""


def _pairs(study: str, table: pa.Table, prompts: Sequence[Prompt], model: RewardModel | None) -> _Keep:
    """Read judged pairs, and return the function that keeps a row's."""
    firsts, seconds = (sources.texts(study, table, name) for name in ("response_a", "response_b"))
    human = judged_pairs.verdicts(study, table, "label")
    if {"reward_a", "reward_b"} <= set(table.column_names):
        gaps = sources.numbers(study, table, "reward_a") - sources.numbers(study, table, "reward_b")
    else:
        both = _rewards(study, model, prompts, list(zip(firsts, seconds, strict=True)), "reward_a and reward_b")
        gaps = both[:, 0] - both[:, 1]
    pairs = [_Pair(*entry) for entry in zip(firsts, seconds, human.tolist(), gaps.tolist(), strict=True)]
    return lambda entries, *texts: _of_pairs({i: pairs[i] for i in entries}, *texts)


def _rated(study: str, table: pa.Table, prompts: Sequence[Prompt], model: RewardModel | None) -> _Keep:
    """Read rated answers, and return the function that keeps a row's."""
    texts, scores = sources.texts(study, table, "response"), sources.numbers(study, table, "score")
    if "reward" in table.column_names:
        rewards = sources.numbers(study, table, "reward")
    else:
        rewards = _rewards(study, model, prompts, [(text,) for text in texts], "reward")[:, 0]
    answers = [Judged(*entry) for entry in zip(texts, scores.tolist(), rewards.tolist(), strict=True)]
    return lambda entries, *texts: _of_rated({i: answers[i] for i in entries}, *texts)


def _rewards(
    study: str, model: RewardModel | None, prompts: Sequence[Prompt], groups: Sequence[Sequence[str]], names: str
) -> Doubles:
    """Return the rewards of each prompt's answers, NaN where there is none: (prompts, answers)."""
    if model is None:
        raise StudyError(f"{study}: the judged answers have no {names}; name the store's reward model with --reward")
    values = np.full((len(prompts), len(groups[0]) if groups else 1), math.nan)
    with bar(f"{study}: rewards", len(prompts), "prompts") as advance:
        for start in range(0, len(prompts), _BATCH):
            batch = slice(start, start + _BATCH)
            scored = model.rewards(prompts[batch], [list(group) for group in groups[batch]])
            for i, row in enumerate(scored, start):
                values[i] = [math.nan if (value := finite(reward)) is None else value for reward in row]
            advance(len(scored))
    return values


def _of_pairs(judged: Mapping[int, _Pair], golden: str | None, candidates: set[str]) -> _Kept:
    """Keep the pairs of which a row's columns know no answer."""
    wrong: dict[tuple[int, ...], float] = {}
    left_out: dict[int, tuple[str, str]] = {}
    beaten: bool | None = None
    for entry, pair in judged.items():
        texts = (folded(pair.first), folded(pair.second))
        if golden in texts and texts[0] != texts[1]:
            beaten = bool(beaten) or pair.human * (1 if texts[0] == golden else -1) < 0
        if reason := _reason(texts, golden, candidates):
            left_out[entry] = "pair", reason
        elif pair.human == 0:
            left_out[entry] = "pair", "that people call a tie"
        elif math.isnan(pair.gap):
            left_out[entry] = "pair", "without a reward"
        else:
            wrong[entry,] = (1 - np.sign(pair.gap) * np.sign(pair.human)) / 2
    return _Kept(np.array([*wrong.values()], np.float64), [], [*wrong], beaten, left_out)


def _of_rated(judged: Mapping[int, Judged], golden: str | None, candidates: set[str]) -> _Kept:
    """Keep the rated answers that a row's columns do not know, and their pairs of different scores."""
    answers: dict[int, Judged] = {}
    left_out: dict[int, tuple[str, str]] = {}
    own: list[float] = []
    others: list[float] = []
    for entry, answer in judged.items():
        text = folded(answer.text)
        (own if text == golden else others).append(answer.score)
        if reason := _reason((text,), golden, candidates):
            left_out[entry] = "answer", reason
        elif math.isnan(answer.reward):
            left_out[entry] = "answer", "without a reward"
        else:
            answers[entry] = answer
    wrong: dict[tuple[int, ...], float] = {
        (i, j): (1 - np.sign(a.reward - b.reward) * np.sign(a.score - b.score)) / 2
        for (i, a), (j, b) in combinations(answers.items(), 2)
        if a.score != b.score
    }
    beaten = max(others) > max(own) if own and others else None
    return _Kept(np.array([*wrong.values()], np.float64), [*answers.values()], [*wrong], beaten, left_out)


def _reason(texts: Sequence[str], golden: str | None, candidates: set[str]) -> str:
    """Say why answers may not be asked about a row's columns; nothing where they may."""
    if golden in texts:
        return "with the golden response"
    return "with a candidate of the row" if candidates.intersection(texts) else ""
