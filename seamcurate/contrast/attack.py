"""SEAM_Adv's sample set: answers perturbed word by word until the reward model prefers them (SEAM §4.2, App. F.2).

The attacks of many rows run side by side: what they ask of the reward model, the sentence encoder and the masked
model is put together, so that thousands of short questions become a few large batches.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal, NamedTuple, TypeAlias

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from pydantic import Field, JsonValue, model_validator
from typing_extensions import override

from seamcurate.contrast import learned, lexicon, similar, textattack
from seamcurate.contrast.learned import GeneratorTraining
from seamcurate.contrast.searches import Ask, Attempt, Lexicons, Search, Text, WordMethod, search
from seamcurate.errors import StepError
from seamcurate.models import (
    CausalLM,
    EncoderModel,
    PolicyModel,
    Prompt,
    RewardEnsemble,
    RewardingModel,
    Sampling,
    roles,
    scales,
    weights,
)
from seamcurate.models.ensemble import MEMBERS
from seamcurate.models.protocols import Columns
from seamcurate.models.vectors import normalised
from seamcurate.score import compared, noise
from seamcurate.step import Averages, Data, Step, Transform, Work, column, evenly, finite
from seamcurate.text import counted

if TYPE_CHECKING:
    from seamcurate.contrast.learned import Rewriter
    from seamcurate.models import Embedder, RewardModel
    from seamcurate.models.masked import MaskedModel

ATTACKED = pa.list_(pa.struct([("response", pa.string()), ("similarity", pa.float32())]))

Method: TypeAlias = WordMethod | Literal["textattack", "learned"]

_NEIGHBOURS: dict[Method, int] = {"pwws": 0, "textfooler": 50, "ga": 50, "bert_attack": 48}
_SIMILARITY: dict[Method, float] = {"pwws": -1.0, "textfooler": 0.7, "ga": -1.0, "bert_attack": 0.2}
_LEARNED = ("generator", "policy", "words", "training")
"""Fields of `learned` alone."""
_USUAL_QUERIES: dict[Method, float] = {
    "pwws": 8.0,
    "textfooler": 5.0,
    "ga": 60.0,
    "bert_attack": 3.0,
    "textattack": 6.0,
}
"""Queries for each word of the attacked answer, on average, for estimates."""


class Attack(Step):
    """Add `worse_adv`: the `k` best-rewarded perturbations of an answer, and whether each fooled the reward model.

    They make SEAM_Adv's sample set (SEAM §4.2). Words are replaced by PWWS, TextFooler, BERT-Attack or the genetic algorithm,
    in TextAttack 0.3.11's order and under its constraints; with `method: textattack`, by any of its recipes. With `method: learned`, a
    small language model that is trained once rewrites whole answers. A search ends when R(I∘r') exceeds R(I∘r⁺), the golden response's
    reward, or when `query_budget` is spent. Every perturbation that was tried counts, so that a row also has candidates where
    no attack succeeded. `reason_adv` says why a row has fewer than `k`, or NULL.

    Raises:
        StepError: By `load`, where a lexicon is missing or cannot be read, or TextAttack is asked for and not installed.
        ModelError: By `load`, where no reward model or encoder is named or it cannot be loaded.

    Example:
        >>> import tempfile
        >>> from pathlib import Path
        >>> import pyarrow as pa, pyarrow.parquet as pq
        >>> from seamcurate import Attack, FakeModel
        >>> scratch = tempfile.TemporaryDirectory()
        >>> wordnet = scratch.name + "/synonyms.parquet"
        >>> pq.write_table(pa.table({"word": ["quick"], "pos": ["a"], "synonym": ["fast"]}), wordnet)
        >>> add = Attack(method="pwws", wordnet=wordnet, reward=FakeModel(), encoder=FakeModel()).load(Path())
        >>> table = add(pa.table({"prompt": ["What is a hare?"], "response": ["A quick animal."]}))
        >>> [candidate["response"] for candidate in table["worse_adv"][0].as_py()], table["edits_adv"][0].as_py()
        (['A fast animal.'], [1])
    """

    method: Method = "pwws"
    recipe: str | None = None
    """The recipe of `method: textattack`, by TextAttack's own name, such as deepwordbug."""
    k: int = Field(default=30, ge=1)
    start: str = "response"
    """The column of answers to perturb: texts, or a sample set such as `worse_contrast`, whose first answer is taken."""
    query_budget: int = Field(default=2000, ge=1)
    """The most texts that the reward model scores for a row."""
    seed: int = 0
    reward: RewardingModel | None = None
    encoder: EncoderModel | None = None
    """Measures the similarity of each perturbation; TextFooler and BERT-Attack also select by it, as recipes of TextAttack do."""
    wordnet: str | None = None
    """WordNet's files, or Parquet with word, pos, synonym: PWWS's synonyms, TextFooler's parts of speech, antonyms."""
    antonyms: str | None = None
    """Parquet with word, other, relation: words whose relation is `antonym` never replace each other."""
    vectors: str | None = None
    """Word vectors as text: the neighbours of TextFooler and GA."""
    masked_model: str | None = None
    """A masked language model's folder or Hub id: the words of BERT-Attack."""
    min_similarity: float | None = Field(default=None, ge=-1, le=1)
    """Least cosine of sentence embeddings; by default TextFooler's .7 of 15 words around, BERT-Attack's .2 of the whole, or
    what the recipe of TextAttack says, or .6 for `learned`."""
    generator: CausalLM | None = None
    """Of `learned`: the small language model that is trained to rewrite answers, once a store."""
    policy: PolicyModel | None = None
    """Of `learned`: finds each rewriting likely or not, in the generator's training."""
    words: int = Field(default=50, ge=1)
    """Of `learned`: how many of the words that the reward pays for choose the sentences which the generator is shown."""
    training: GeneratorTraining = GeneratorTraining()
    """Of `learned`: options of `seamcurate train grpo`, such as `{max_steps: 200, learning_rate: 1e-5, lora: true}`."""

    rows_per_call: ClassVar[int] = 64

    @model_validator(mode="after")
    def _has_what_it_needs(self) -> Attack:
        for name in self._needs():
            if getattr(self, name) is None:
                what = self.method if self.recipe is None else f"{self.method}, recipe {self.recipe},"
                raise ValueError(f"method {what} needs `{name}`: {_WHERE[name]}")
        if self.recipe is not None and self.method != "textattack":
            raise ValueError(
                f"`recipe` is one of TextAttack's; give it with method textattack, or leave it out of {self.method}"
            )
        others = [name for name in _LEARNED if self.method != "learned" and name in self.model_fields_set]
        if others and getattr(self, others[0]) is not None:
            raise ValueError(f"`{others[0]}` is for method learned; leave it out of {self.method}")
        return self

    def _needs(self) -> tuple[str, ...]:
        """Name the fields that the method cannot do without."""
        if self.method == "textattack":
            return textattack.check(self.recipe).needs
        return ("generator",) if self.method == "learned" else _NEEDS[self.method]

    @property
    @override
    def unused_models(self) -> tuple[str, ...]:
        """A recipe's `generator` writes worse answers when it is asked; the one that is trained is the step's own."""
        return ("generator",) if self.method == "learned" else ("generator", "policy")

    @property
    @override
    def reads_all_rows(self) -> bool:
        return self.method == "learned"

    @property
    @override
    def name(self) -> str:
        return "worse_adv"

    @property
    def title(self) -> str:
        """The method, and the recipe where it has one."""
        return self.method if self.recipe is None else f"{self.method} {self.recipe}"

    @property
    @override
    def inputs(self) -> tuple[str, ...]:
        scaled = isinstance(self.reward, RewardEnsemble) and self.reward.needs_scales()
        further = (*(self.reward.columns_read() if self.reward else ()), *([MEMBERS] if scaled else []))
        return tuple(dict.fromkeys(("prompt", "response", self.start, *further)))

    @property
    @override
    def adds(self) -> pa.Schema:
        binary = self.reward is not None and self.reward.is_binary()
        hacked = "whether its reward is 1, as R(I∘r⁺)" if binary else "whether R(I∘r') exceeded R(I∘r⁺) in the attack"
        return pa.schema(
            [
                column("worse_adv", ATTACKED, f"up to {self.k} perturbations by {self.title}, best reward first"),
                column("hacked_adv", pa.list_(pa.bool_()), hacked),
                column("already_adv", pa.bool_(), "whether it preferred the answer before any word was changed"),
                column("edits_adv", pa.list_(pa.int32()), "words in which it differs from what was perturbed"),
                column("queries_adv", pa.int32(), "texts the reward model was asked about"),
                column("reason_adv", pa.string(), "why worse_adv is NULL, or has fewer than were asked for"),
            ]
        )

    @override
    def work(self, rows: Averages) -> list[Work]:
        """Estimate one reward a query."""
        if self.reward is None:
            return []
        queries = min(
            self.query_budget, self.k if self.method == "learned" else _USUAL_QUERIES[self.method] * rows.response / 6
        )
        work = self.reward.work(queries, queries * (rows.prompt + rows.response))
        if self.method == "learned":
            work.append(Work(self.generator, self.k, self.k * (rows.prompt + rows.response), self.k * rows.response))
        return work

    @override
    def first_work(self, rows: Averages, count: int) -> list[Work]:
        """Estimate the generator's training: both answers of its rows are rewarded, and then each rewriting."""
        if self.method != "learned" or self.reward is None:
            return []
        answers, characters = 2.0 * min(learned.ROWS, count), rows.prompt + rows.response
        rewritings = float(self.training.prompts * self.training.num_generations)
        return [
            *self.reward.work(answers + rewritings, (answers + rewritings) * characters),
            Work(self.policy, rewritings, rewritings * characters),
            Work(self.generator, rewritings, rewritings * characters, rewritings * rows.response),
        ]

    @override
    def identity(self) -> dict[str, JsonValue]:
        """Return the configuration with the content of every lexicon in place of its path."""
        contents = {
            name: None if path is None else lexicon.identity(path)
            for name, path in (("wordnet", self.wordnet), ("antonyms", self.antonyms), ("vectors", self.vectors))
        }
        masked = None if self.masked_model is None else weights.identity(weights.Origin(self.masked_model))
        fields = {**super().identity(), **contents, "masked_model": masked, "training": self.training.decides}
        if self.method == "textattack":
            fields["textattack"] = textattack.version()
        # Columns of before there were recipes and generators stay what they are.
        others = (
            *(() if self.method == "textattack" else ("recipe",)),
            *(() if self.method == "learned" else _LEARNED),
        )
        return {name: value for name, value in fields.items() if name not in others}

    def prepare(self, data: Data, shared: Path) -> None:
        """Take the scales of an ensemble's members from the step `reward`; store what `load` compares served models on."""
        for model in (self.reward, self.encoder):
            compared.sample(model, data, shared, "response", self.reward.columns_read() if self.reward else ())
        if MEMBERS in self.inputs:
            scales.take(self.reward, data, shared, self.name)
        if self.method == "learned":
            self._learn(data, shared)

    def _learn(self, data: Data, shared: Path) -> None:
        """Train the generator on some of the rows that can be attacked."""
        assert self.generator is not None
        further = self.reward.columns_read() if self.reward else ()
        names = tuple(dict.fromkeys(("prompt", "response", self.start, *further)))
        records = (row for table in data.rows(names) for row in table.select(list(names)).to_pylist())
        rows = (
            learned.Row(row["prompt"], row["response"], start, {name: row[name] for name in further})
            for row in records
            if (start := _first(row[self.start])) and start.strip() and row["response"] and start != row["response"]
        )
        taken = evenly(rows, learned.ROWS)
        if not taken:
            raise StepError(
                f"step {self.name}: no row has an answer in {self.start} that is not its golden response; name another column"
            )
        reward = roles.load(scales.applied(self.reward, shared), "reward", self.name)
        encoder = roles.load(self.encoder, "encoder", self.name)
        judges = learned.Judges(reward, encoder, roles.load(self.policy, "policy", self.name))
        compared.check(self.reward, reward, shared, noise.rewards)
        compared.check(self.encoder, encoder, shared, compared.embeddings, "encoder")
        least = learned.MIN_SIMILARITY if self.min_similarity is None else self.min_similarity
        learned.prepare(taken, judges, self.generator, self.training, self.words, least, self.identity(), shared)

    @override
    def load(self, shared: Path) -> Transform:
        # A missing model is told before lexicons of hundreds of megabytes are read.
        reward = roles.load(scales.applied(self.reward, shared), "reward", self.name)
        encoder = roles.load(self.encoder, "encoder", self.name)
        checks = (
            compared.check(self.reward, reward, shared, noise.rewards),
            compared.check(self.encoder, encoder, shared, compared.embeddings, "encoder"),
        )
        lexicons, masked = self._lexicons()
        rewriter = self._rewriter(shared, encoder) if self.method == "learned" else None
        search_of = self._search_of(lexicons, masked, rewriter)
        models = _Models(reward, encoder, masked, rewriter)

        def attack(rows: pa.Table) -> pa.Table:
            prompts = rows["prompt"].to_pylist()
            starts = [_first(value) for value in rows[self.start].to_pylist()]
            golden = rows["response"].to_pylist()
            further = {name: rows[name].to_pylist() for name in self.reward.columns_read()} if self.reward else {}
            rated = models.reward.ratings(prompts, [[text] if text is not None else [] for text in golden], further)
            goals = [[rating.reward for rating in row] for row in rated]
            # Of rewards of 0 and 1 none exceeds that of a golden response that passes: to pass is enough.
            binary = self.reward is not None and self.reward.is_binary()
            questions = _Questions(prompts, further)
            reasons: list[str | None] = []
            running: dict[int, Search] = {}
            attempts: dict[int, Attempt] = {}
            for i, (start, goal) in enumerate(zip(starts, goals, strict=True)):
                words_kept = frozenset[str]() if rewriter else lexicons.stop_words
                reason = _refusal(start, goal, words_kept, self.start, binary)
                reasons.append(reason)
                if reason is None and start is not None and goal[0] is not None:
                    attempts[i] = Attempt(start, goal[0] - 0.5 if binary else goal[0], self.query_budget)
                    # Each row has its own seed, so that its result does not depend on other rows.
                    running[i] = search_of(attempts[i], _seed(self.seed, start))
            reasons = _run(running, questions, models, reasons)
            for unchanged in checks:
                unchanged()
            for i, attempt in attempts.items():
                # Crossing two changed texts can restore the original, and a change can arrive at the golden response.
                for text in (starts[i], golden[i]):
                    attempt.seen.pop(text or "", None)
            return self._table(attempts, reasons, models.encoder)

        return attack

    @override
    def facts(self, columns: Iterable[pa.Table], shared: Path) -> dict[str, JsonValue]:
        """Count the rows whose attack succeeded, and the queries."""
        rows = attacked = fooled_before = hacked = queries = 0
        for table in columns:
            rows += table.num_rows
            sets = table["hacked_adv"].combine_chunks()
            attacked += len(sets) - sets.null_count
            already_column = table["already_adv"].to_pylist()
            fooled_before += sum(bool(fooled) for fooled in already_column)
            hacked += sum(
                any(row) for row, fooled in zip(sets.to_pylist(), already_column, strict=True) if row and not fooled
            )
            queries += pc.sum(table["queries_adv"]).as_py() or 0
        summary = (
            f"worse_adv: {self.title} fooled the reward model on {hacked:,} of the {attacked - fooled_before:,} rows it had right "
            f"({fooled_before:,} it had wrong before), {queries / max(1, attacked):,.0f} queries a row"
        )
        served, trained = compared.facts(shared), learned.facts(shared) if self.method == "learned" else {}
        warnings: list[JsonValue] = []
        if attacked < rows:
            warnings.append(
                f"{counted(rows - attacked, 'row has', 'rows have')} no worse_adv: SELECT reason_adv, count(*) FROM rows GROUP BY ALL"
            )
        return {
            **served,
            **({"learned": trained} if trained else {}),
            "attacked": attacked,
            "already": fooled_before,
            "hacked": hacked,
            "queries": queries,
            "summary": "; ".join([summary, *(str(told["summary"]) for told in (trained, served) if "summary" in told)]),
            "warnings": warnings,
        }

    def _lexicons(self) -> tuple[Lexicons, MaskedModel | None]:
        needs = self._needs()
        wordnet = lexicon.WordNet(self.wordnet, self.antonyms) if self.wordnet else None
        vectors = lexicon.Vectors(self.vectors) if self.vectors and "vectors" in needs else None
        neighbours = _NEIGHBOURS.get(self.method, 0)
        masked = None
        if self.masked_model is not None and "masked_model" in needs:
            from seamcurate.models.masked import MaskedModel

            masked = MaskedModel(self.masked_model, neighbours)
        usual = _SIMILARITY.get(self.method, -1.0)
        min_similarity = usual if self.min_similarity is None else self.min_similarity
        return Lexicons(wordnet, vectors, similar.stop_words(), neighbours, min_similarity), masked

    def _rewriter(self, shared: Path, encoder: Embedder) -> Rewriter:
        """Load the trained generator."""
        assert self.generator is not None
        least = learned.MIN_SIMILARITY if self.min_similarity is None else self.min_similarity
        sampling = Sampling(
            self.k, self.training.temperature, max_tokens=self.training.max_completion_length, seed=self.seed
        )
        return learned.Rewriter(shared, self.generator, encoder, sampling, least)

    def _search_of(
        self, lexicons: Lexicons, masked: MaskedModel | None, rewriter: Rewriter | None
    ) -> Callable[[Attempt, int], Search]:
        """Return the function that starts a row's search, from its attempt and its seed."""
        method = self.method
        if rewriter is not None:
            return lambda attempt, seed: rewriter.search(attempt)
        if method == "textattack":
            assert self.recipe is not None
            return textattack.Peer(self.recipe, lexicons, masked, self.min_similarity).search
        assert method != "learned"
        return lambda attempt, seed: search(method, attempt, lexicons, seed)

    def _table(self, attempts: dict[int, Attempt], reasons: Sequence[str | None], encoder: Embedder) -> pa.Table:
        records: list[_Row] = []
        for i, reason in enumerate(reasons):
            attempt = attempts.get(i)
            if attempt is None or reason is not None:
                records.append(_Row(None, None, None, None, attempt.queries if attempt else None, reason))
                continue
            best = sorted(attempt.seen.items(), key=lambda pair: (-pair[1], pair[0]))[: self.k]
            if not best:
                records.append(
                    _Row(
                        None,
                        None,
                        attempt.start > 0,
                        None,
                        attempt.queries,
                        "no rewriting is near enough to the answer"
                        if self.method == "learned"
                        else "no word could be changed within the constraints",
                    )
                )
                continue
            texts = [text for text, _ in best]
            vectors = normalised(encoder.embed([attempt.text.written(attempt.original), *texts]))
            near = [finite(value) for value in (vectors[1:] @ vectors[0]).tolist()]
            sets = [{"response": text, "similarity": value} for text, value in zip(texts, near, strict=True)]
            edits = [_edits(attempt.original, Text(text).words, self.method) for text in texts]
            short = None if len(best) == self.k else f"{len(best)} of {self.k}: no more were tried"
            hacked = [value > attempt.threshold for _, value in best]
            records.append(_Row(sets, hacked, attempt.start > 0, edits, attempt.queries, short))
        columns = zip(*records, strict=True) if records else [()] * len(self.adds)
        return pa.table(
            [pa.array(values, field.type) for values, field in zip(columns, self.adds, strict=True)], schema=self.adds
        )


_NEEDS: dict[WordMethod, tuple[str, ...]] = {
    "pwws": ("wordnet",),
    "textfooler": ("vectors", "wordnet"),
    "ga": ("vectors",),
    "bert_attack": ("masked_model",),
}
_WHERE = {
    "wordnet": lexicon.WHERE_WORDNET,
    "vectors": lexicon.WHERE_VECTORS,
    "masked_model": "give a masked language model's folder or Hub id, say bert-base-uncased",
    "generator": "give the small language model to train, such as {causal_lm: HuggingFaceTB/SmolLM2-135M-Instruct}",
}


class _Questions(NamedTuple):
    """The rows' prompts, and the further columns that the reward model reads."""

    prompts: Sequence[Prompt]
    columns: Columns


class _Models(NamedTuple):
    reward: RewardModel
    encoder: Embedder
    masked: MaskedModel | None
    rewriter: Rewriter | None


class _Row(NamedTuple):
    worse: list[dict[str, Any]] | None
    hacked: list[bool] | None
    already: bool | None
    edits: list[int] | None
    queries: int | None
    reason: str | None


def _run(
    running: dict[int, Search], questions: _Questions, models: _Models, reasons: Sequence[str | None]
) -> list[str | None]:
    """Run all searches to their end; each model answers the questions of all searches in one batch."""
    outcomes = list(reasons)
    waiting: dict[int, Ask] = {}

    def go_on(row: int, answer: object) -> None:
        try:
            waiting[row] = running[row].send(answer)
        except StopIteration:
            waiting.pop(row, None)

    for row in running:
        go_on(row, None)
    while waiting:
        kinds = {
            kind: [row for row, ask in waiting.items() if ask.kind == kind]
            for kind in ("rewards", "embeddings", "words", "samples")
        }
        # The smallest model first: texts that pass it then share one batch of the reward model.
        for kind in ("words", "samples", "embeddings", "rewards"):
            if rows := kinds[kind]:
                answers = _answers(kind, rows, waiting, questions, models)
                for row, answer in zip(rows, answers, strict=True):
                    if answer is None:
                        outcomes[row] = _UNANSWERED[kind]
                        waiting.pop(row)
                        running[row].close()
                    else:
                        go_on(row, answer)
                break
    return outcomes


def _answers(
    kind: str, rows: Sequence[int], waiting: dict[int, Ask], questions: _Questions, models: _Models
) -> list[Any]:
    texts = [waiting[row].texts for row in rows]
    if kind == "rewards":
        further = {name: [values[row] for row in rows] for name, values in questions.columns.items()}
        rated = models.reward.ratings([questions.prompts[row] for row in rows], texts, further)
        scored = [[rating.reward for rating in group] for group in rated]
        return [None if any(reward is None for reward in group) else group for group in scored]
    if kind == "samples":
        assert models.rewriter is not None
        return models.rewriter.drawn([waiting[row] for row in rows])
    if kind == "words":
        assert models.masked is not None
        return [
            [words] for words in models.masked.likely([text for (text,) in texts], [waiting[row].span for row in rows])
        ]
    vectors = normalised(models.encoder.embed([text for group in texts for text in group]))
    ends = np.cumsum([len(group) for group in texts])[:-1]
    # Candidates are compared with the first text: without its embedding none can be.
    return [group if np.isfinite(group[0]).all() else None for group in np.split(vectors, ends)]


_UNANSWERED = {
    "rewards": "a perturbed answer has no reward, or does not fit the reward model's window",
    "embeddings": "the answer has an embedding that is not finite",
    "samples": "prompt and answer leave the generator no room for a rewriting",
}


def _refusal(
    start: str | None, goal: list[float | None], stop_words: frozenset[str], column: str, binary: bool
) -> str | None:
    """Return why a row cannot be attacked, or None."""
    if start is None or not start.strip():
        return f"there is no answer in {column} to perturb"
    if not goal or goal[0] is None:
        return "the golden response has no reward"
    if binary and goal[0] == 0:
        return "the golden response fails the reward"
    if not any(word not in stop_words for word in Text(start).words):
        return "the answer has no word that may be changed"
    return None


def _edits(words: Sequence[str], changed: Sequence[str], method: Method) -> int:
    """Count the words in which a text differs from another: replaced, or also put in and left out."""
    if method not in ("textattack", "learned") or (method == "textattack" and len(words) == len(changed)):
        return sum(word != other for word, other in zip(words, changed, strict=False))
    offsets = np.arange(len(changed) + 1)
    # Levenshtein's distance, a row of its table at a time: (words of the changed text + 1,).
    row = offsets
    for word in words:
        replaced = row[:-1] + np.array([word != other for other in changed], np.int64)
        best = np.concatenate([row[:1] + 1, np.minimum(replaced, row[1:] + 1)])
        row = np.minimum.accumulate(best - offsets) + offsets
    return int(row[-1])


def _first(value: Any) -> str | None:
    if isinstance(value, list):
        return value[0]["response"] if value else None
    return None if value is None else str(value)


def _seed(seed: int, text: str) -> int:
    return int.from_bytes(hashlib.sha256(f"{seed}\0{text}".encode()).digest()[:8])
