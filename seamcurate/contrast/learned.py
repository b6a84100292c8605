"""An attack that is learned: a small language model rewrites worse answers into ones that the reward model overpays.

It follows the idea of KATG (Shen 2022), the fifth attack of SEAM's App. F, whose code is not public, and reproduces nothing of
it. Words that the reward pays for are found by regression; sentences that hold many of them are shown to a generator together
with a worse answer; GRPO trains it to raise the reward. What holds it are the answer's embedding and the policy: a rewriting
that strays from the answer, or that the policy finds less likely than the answer, loses more than it gains.
"""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq
from pydantic import Field, JsonValue, model_validator

from seamcurate import words
from seamcurate.contrast.overpaid import overpaid_words
from seamcurate.contrast.searches import Ask, Attempt, Search
from seamcurate.errors import StepError
from seamcurate.models import CausalLM, Embedder, Policy, Prompt, RewardModel, Sampling
from seamcurate.models.protocols import Columns
from seamcurate.models.vectors import normalised
from seamcurate.step import digest
from seamcurate.storage import atomic
from seamcurate.storage.cache import cache_folder
from seamcurate.train import grpo
from seamcurate.train.options import GroupTraining
from seamcurate.train.training import prepare as check_training

MIN_SIMILARITY = 0.6
"""The least cosine of a rewriting to the answer, unless the step says another."""
ROWS = 2000
"""Rows whose answers are regressed on their words, at most."""
_PAID = 0.05
"""The share of false finds among the words that count as overpaid."""
_PRIORS, _NEAREST = 100, 4
"""Sentences that are kept, and how many of them, the nearest to an answer, it is rewritten by."""
_WORDS = (3, 40)
"""The shortest and the longest sentence that is shown."""
_STRAYED, _UNLIKELY = 10.0, 1.0
"""What a cosine below the bound costs, and a nat a token below the answer's own likelihood, in deviations of the reward."""
_ROUNDS = 3
"""How often as many rewritings as are wanted are drawn, where they are equal or stray too far."""
GENERATOR, OVERPAID, PRIORS, RECORD = "generator", "overpaid_words.parquet", "priors.parquet", "learned.json"
"""What the step keeps in its folder: the trained model, the words, the sentences, and how the training went."""


class GeneratorTraining(GroupTraining):
    """Options of the generator's training, named as those of `seamcurate train grpo`; a checkpoint is written every 20 updates."""

    max_steps: int = Field(200, ge=1)
    max_completion_length: int = Field(128, ge=1)
    temperature: float = Field(0.7, gt=0)
    eval_rows: int = Field(16, ge=0)
    save_steps: int = Field(20, ge=0)

    @model_validator(mode="after")
    def _own_rows(self) -> GeneratorTraining:
        if self.eval_data is not None:
            raise ValueError("the generator is measured on rows of the store; leave eval_data out")
        return self

    @property
    def decides(self) -> dict[str, JsonValue]:
        """The options that decide the trained weights."""
        return self.model_dump(
            mode="json", exclude={"save_steps", "logging_steps", "tensorboard", "eval_data", "trained_rows"}
        )

    @property
    def prompts(self) -> int:
        """Prompts that the training asks, at most."""
        return (
            self.max_steps * self.per_device_train_batch_size * self.gradient_accumulation_steps // self.num_generations
        )


class Row(NamedTuple):
    """A row to learn from."""

    prompt: Prompt
    golden: str
    start: str
    columns: dict[str, object]
    """What else the reward model reads."""


class Judges(NamedTuple):
    """What judges a rewriting."""

    reward: RewardModel
    encoder: Embedder
    policy: Policy


def rewriting(answer: str, sentence: str) -> str:
    """Return what the generator is asked: small models are trained to rewrite an input text while maintaining its main points.

    Example:
        >>> print(rewriting("A quick animal.", "Certainly, a hare is an animal."))
        Rewrite the input text with words of this example, while maintaining its main points.
        Example: Certainly, a hare is an animal.
        Input text: A quick animal.
    """
    return (
        "Rewrite the input text with words of this example, while maintaining its main points.\n"
        f"Example: {sentence}\nInput text: {answer}"
    )


def prior_sentences(texts: Iterable[str], overpaid: pa.Table, count: int = _PRIORS) -> pa.Table:
    """Return the sentences that hold the most of what the reward pays for.

    Args:
        texts: Answers.
        overpaid: Words with their `coefficient`, as `overpaid_words` returns them.
        count: How many sentences are kept.

    Returns:
        `sentence`; `paid`, the sum of the coefficients of its distinct words; highest first, each sentence once.
    """
    coefficient = dict(zip(overpaid["word"].to_pylist(), overpaid["coefficient"].to_pylist(), strict=True))
    paid: dict[str, float] = {}
    for text in texts:
        for sentence in (piece.strip() for piece in re.split(r"(?<=[.!?])\s+|\n+", text)):
            held = [piece.lower() for piece in words.split(sentence) if piece[0].isalnum()]
            if sentence not in paid and _WORDS[0] <= len(held) <= _WORDS[1]:
                paid[sentence] = sum(coefficient.get(word, 0.0) for word in set(held))
    best = sorted((item for item in paid.items() if item[1] > 0), key=lambda item: (-item[1], item[0]))[:count]
    return pa.table(
        {"sentence": pa.array([s for s, _ in best], pa.string()), "paid": pa.array([p for _, p in best], pa.float64())}
    )


def prepare(
    rows: Sequence[Row],
    judges: Judges,
    generator: CausalLM,
    training: GeneratorTraining,
    count: int,
    min_similarity: float,
    identity: JsonValue,
    shared: Path,
) -> None:
    """Find overpaid words and sentences that hold them, and train the generator; a killed training goes on where it was.

    Args:
        rows: The rows to learn from.
        judges: Reward model, encoder and policy.
        generator: The model that is trained.
        training: How.
        count: How many of the best-paid words count as overpaid, at most.
        min_similarity: The least cosine that costs nothing.
        identity: What decides the result beside the rows.
        shared: The step's folder, which becomes `overpaid_words.parquet`, `priors.parquet`, `generator/`, `learned.json`.

    Raises:
        StepError: The rewards do not vary with the words of the answers.
        TrainError: The generator cannot be trained.
    """
    # The step's folder does not survive a kill; what took time lies where this very work finds it again.
    key = digest([identity, str(shared.absolute().parent), [[json.dumps(row.prompt), *row[1:3]] for row in rows]])
    work = _workplace(key)
    # Before an answer is rewarded: without its libraries nothing can be trained.
    check_training(work / GENERATOR)
    work.mkdir(parents=True, exist_ok=True)
    if not (work / "scale.json").exists():
        _find_words(rows, judges.reward, count, work)
    scale = json.loads((work / "scale.json").read_text(encoding="utf-8"))
    sentences = pq.read_table(work / PRIORS)["sentence"].to_pylist()
    near = _Nearest(sentences, judges.encoder)
    taken = [rows[i] for i in _evenly(len(rows), training.prompts)]
    chosen = near.to([row.start for row in taken])
    prompts = [
        rewriting(row.start, sentences[places[i % len(places)]])
        for i, (row, places) in enumerate(zip(taken, chosen, strict=True))
    ]
    pq.write_table(pa.table({"prompt": prompts, "row": range(len(prompts))}), work / "prompts.parquet")
    gain = Gain(taken, judges, scale["deviation"], min_similarity, digest(identity))
    options = training.model_copy(
        update={key: value for key in ("form", "template", "date") if (value := getattr(generator, key))}
        | {"revision": generator.revision}
    )
    record = grpo(generator.path, gain, work / "prompts.parquet", work / GENERATOR, options)
    for name in (OVERPAID, PRIORS):
        shutil.copyfile(work / name, shared / name)
    shutil.copytree(work / GENERATOR, shared / GENERATOR, dirs_exist_ok=True)
    told = {name: record[name] for name in ("steps", "reward_first", "reward_last", "reward_before", "reward_after")}
    # The workplace goes when the step's folder is in its place; see `Rewriter`.
    (shared / RECORD).write_text(json.dumps({**scale, **told, "workplace": key}))


def facts(shared: Path) -> dict[str, JsonValue]:
    """Return how many words are overpaid, and how the generator's gain changed; empty for another attack."""
    file = shared / RECORD
    if not file.is_file():
        return {}
    record: dict[str, Any] = json.loads(file.read_text(encoding="utf-8"))
    del record["workplace"]
    moments = ("before", "after") if record["reward_after"] is not None else ("first", "last")
    before, after = (record[f"reward_{moment}"] for moment in moments)
    text = (
        f"the generator's gain went from {before:.2f} to {after:.2f} deviations of the reward in {record['steps']} updates"
        if None not in (before, after)
        else f"the generator learned for {record['steps']} updates"
    )
    return {**record, "summary": f"{record['overpaid']} words overpaid; {text}"}


class Gain:
    """The generator's reward, of TRL's convention: what a rewriting is paid more than the answer, less what holds it.

    (R(I∘r') − R(I∘r⁻)) / σ − 10·max(0, s − cos(r', r⁻)) − max(0, ℓ(r⁻|I) − ℓ(r'|I)), where σ is the rewards' standard deviation, s
    the least similarity, and ℓ the log-probability a token under the policy.
    """

    columns = ("row",)

    def __init__(self, rows: Sequence[Row], judges: Judges, deviation: float, min_similarity: float, same: str) -> None:
        self.rows, self.judges, self.deviation, self.min_similarity = rows, judges, deviation, min_similarity
        self.identity = f"gain {same}"
        self.__name__ = "gain"
        self._own: dict[int, tuple[float | None, float | None, npt.NDArray[np.float32]]] = {}
        self._features: dict[str, float] = {}

    def __call__(
        self, prompts: Sequence[object], completions: Sequence[Any], row: Sequence[int], **further: object
    ) -> list[float | None]:
        """Return the gain of each rewriting; None where one of its parts has no value."""
        texts = [text if isinstance(text, str) else str(text[-1]["content"]) for text in completions]
        texts = [text.strip() for text in texts]
        # A row's own answer is scored with its first rewritings, and remembered.
        new = [i for i in dict.fromkeys(row) if i not in self._own]
        numbers = [*new, *row]
        judged = self._judged(numbers, [*(self.rows[i].start for i in new), *texts])
        self._own.update(zip(new, judged, strict=False))
        gains: list[float | None] = []
        parts: list[tuple[float, float, float]] = []
        for i, text, (reward, logprob, vector) in zip(row, texts, judged[len(new) :], strict=True):
            own_reward, own_logprob, own_vector = self._own[i]
            if reward is None or own_reward is None or logprob is None or own_logprob is None:
                # Nothing is no rewriting; it must not be worth more than a bad one.
                gains.append(None if text else -_STRAYED)
                continue
            part = (reward - own_reward) / self.deviation, float(vector @ own_vector), logprob - own_logprob
            parts.append(part)
            paid, similarity, likelier = part
            gain = paid - _STRAYED * max(0.0, self.min_similarity - similarity) - _UNLIKELY * max(0.0, -likelier)
            gains.append(gain if text and np.isfinite(gain) else -_STRAYED)
        means = np.array(parts).mean(0).tolist() if parts else []
        self._features = dict(zip(("gain/reward", "gain/similarity", "gain/logprob"), means, strict=False))
        return gains

    def features(self) -> dict[str, float]:
        """Return the means of the last call: of the reward gained, the cosine, and the log-probability a token gained."""
        return self._features

    def _judged(
        self, rows: Sequence[int], texts: Sequence[str]
    ) -> list[tuple[float | None, float | None, npt.NDArray[np.float32]]]:
        if not texts:
            return []
        prompts, lists = [self.rows[i].prompt for i in rows], [[text] for text in texts]
        rewards = _rewards(self.judges.reward, [self.rows[i] for i in rows], lists)
        likelihoods = self.judges.policy.logprobs(prompts, lists)
        per_token = [None if one is None else one.logprob / one.tokens for (one,) in likelihoods]
        return list(
            zip((reward for (reward,) in rewards), per_token, normalised(self.judges.encoder.embed(texts)), strict=True)
        )


class Rewriter:
    """The trained generator as an attack: draws rewritings of a row's answer, and asks for the rewards of those that hold.

    Args:
        shared: The step's folder.
        generator: The configuration of the model that was trained.
        encoder: Measures similarity.
        sampling: How rewritings are drawn; `n` of them are wanted.
        min_similarity: The least cosine of a rewriting to the answer.
    """

    def __init__(
        self, shared: Path, generator: CausalLM, encoder: Embedder, sampling: Sampling, min_similarity: float
    ) -> None:
        if not (shared / GENERATOR).is_dir():
            raise StepError(
                "step worse_adv: method learned has no trained generator; run the recipe, which trains it once"
            )
        shutil.rmtree(
            _workplace(json.loads((shared / RECORD).read_text(encoding="utf-8"))["workplace"]), ignore_errors=True
        )
        trained = generator.model_copy(
            update={
                "path": str(shared / GENERATOR),
                "revision": None,
                "base": None,
                "form": None,
                "template": {},
                "date": None,
            }
        )
        self.sampler, self.sampling, self.min_similarity = trained.load_sampler(), sampling, min_similarity
        self.sentences = pq.read_table(shared / PRIORS)["sentence"].to_pylist()
        self.near = _Nearest(self.sentences, encoder)

    def search(self, attempt: Attempt) -> Search:
        """Rewrite one row's answer; every rewriting that is similar enough is added to `attempt.seen`."""
        text, count = attempt.text.written(attempt.original), self.sampling.n
        (start,) = yield from attempt.score([text], probes=True)
        attempt.start = float(start)
        (places,) = self.near.to([text])
        tried = {text, ""}
        for first in range(0, _ROUNDS * count, count):
            if attempt.over or len(attempt.seen) >= count:
                break
            asked = [
                rewriting(text, self.sentences[places[draw % len(places)]]) for draw in range(first, first + count)
            ]
            drawn = yield Ask("samples", asked, (first, first + count))
            new = [answer for answer in dict.fromkeys(drawn) if answer not in tried]
            tried.update(new)
            if not new:
                continue
            own, *vectors = yield Ask("embeddings", [text, *new])
            kept = [
                answer
                for answer, vector in zip(new, vectors, strict=True)
                if float(own @ vector) >= self.min_similarity
            ]
            yield from attempt.score(kept[: count - len(attempt.seen)])
        return max(attempt.seen, key=attempt.seen.__getitem__, default=text)

    def drawn(self, asks: Sequence[Ask]) -> list[list[str] | None]:
        """Draw the rewritings that several searches ask for; None where a search gets none."""
        draws: dict[str, list[int]] = {}
        for ask in asks:
            for draw, prompt in zip(range(*ask.span), ask.texts, strict=True):
                draws.setdefault(prompt, []).append(draw)
        # Several draws of one prompt are one request: it is read once. Rows may ask for the same.
        requests = [(prompt, sorted(set(numbers))) for prompt, numbers in draws.items()]
        answers: dict[tuple[str, int], str] = {}
        for position, draw, sample in self.sampler.samples(requests, self.sampling):
            if not isinstance(sample, str):
                answers[requests[position][0], draw] = sample.text.strip()
        found = [
            [answers[key] for key in zip(ask.texts, range(*ask.span), strict=True) if key in answers] for ask in asks
        ]
        return [texts or None for texts in found]


def _workplace(key: str) -> Path:
    """Return the folder in which one training goes on; it is not the step's, which a kill leaves half-made.

    Raises:
        StepError: The key is none of ours: whoever wrote it must not choose a folder that is removed.
    """
    if not re.fullmatch(r"[0-9a-f]{32}", key):
        raise StepError(
            f"{RECORD} of step worse_adv names no training; delete columns/worse_adv and run the recipe again"
        )
    return cache_folder() / "learned" / key


class _Nearest:
    """Finds the sentences nearest to an answer."""

    def __init__(self, sentences: Sequence[str], encoder: Embedder) -> None:
        self.encoder, self.vectors = encoder, normalised(encoder.embed(sentences))

    def to(self, texts: Sequence[str]) -> list[list[int]]:
        near = normalised(self.encoder.embed(texts)) @ self.vectors.T  # (texts, sentences)
        return [row[:_NEAREST].tolist() for row in (-near).argsort(1, kind="stable")]


def _find_words(rows: Sequence[Row], reward: RewardModel, count: int, work: Path) -> None:
    """Write the overpaid words, the sentences that hold them, and last the scale of the rewards."""
    rewards = _rewards(reward, rows, [[row.golden, row.start] for row in rows])
    texts = [text for row in rows for text in (row.golden, row.start)]
    values = [value for row in rewards for value in row]
    # Two answers of one prompt are compared, so that the words of a well-paid question do not count.
    table = overpaid_words(texts, values, [i // 2 for i in range(len(texts))])
    numbers = np.array([value for value in values if value is not None and np.isfinite(value)])
    paid = [row for row in table.to_pylist() if row["t"] > 0][:count]
    sentences = prior_sentences((row.start for row in rows), pa.Table.from_pylist(paid, table.schema))
    if not len(sentences):
        raise StepError(
            f"method learned: in the answers of {len(rows)} rows the reward pays for no word, so that there is nothing to learn; "
            "give more rows, or answers that differ more in their rewards"
        )
    pq.write_table(table, work / OVERPAID)
    pq.write_table(sentences, work / PRIORS)
    overpaid = sum(row["q"] <= _PAID for row in paid)
    with atomic.replacing(work / "scale.json") as file:
        file.write_text(json.dumps({"deviation": float(numbers.std()) or 1.0, "overpaid": overpaid}))


def _rewards(model: RewardModel, rows: Sequence[Row], answers: Sequence[Sequence[str]]) -> list[list[float | None]]:
    columns: Columns = {name: [row.columns[name] for row in rows] for name in (rows[0].columns if rows else ())}
    return [[rating.reward for rating in row] for row in model.ratings([row.prompt for row in rows], answers, columns)]


def _evenly(count: int, size: int) -> list[int]:
    return list(range(count)) if count <= size else [i * count // size for i in range(size)]
