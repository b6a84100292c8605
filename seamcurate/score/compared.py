"""The check that a served model is the same: before a server scores a column, some rows are scored here and there.

The difference, its likely cause and the decision are kept beside the column. Beyond the noise floor the run stops, unless the
recipe accepts the difference. Where the weights are too large for here, the server is held against itself. Afterwards one of
the texts is asked again and again: a server that was started anew with other weights is found out.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Sequence
from itertools import islice, zip_longest
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt
from pydantic import JsonValue

from seamcurate.errors import ModelError
from seamcurate.models import Embedder, EncoderModel, Policy, equivalence, roles, suspects
from seamcurate.models.backend import Backend
from seamcurate.models.ensemble import LoadedEnsemble
from seamcurate.models.equivalence import Comparison, Scores
from seamcurate.models.local import LocalModel
from seamcurate.models.served import Served
from seamcurate.models.template import prompt_text
from seamcurate.progress import note
from seamcurate.score import noise
from seamcurate.score.noise import Score, Texts
from seamcurate.step import Data

ScoreOf: TypeAlias = Callable[[Any], Score]
"""A loaded model → the function by which it scores answers."""

_ROWS, _ANSWERS = 16, 2
"""Rows that are compared, and answers of each, at most."""
_SIDES = 4
"""Fixed directions that embeddings are projected on: their numbers are compared."""
_ROUNDED = 1.5
"""How many times what a precision rounds here a server of that precision may differ."""
_TEXTS = "texts_compared.json"


def sample(model: object, data: Data, shared: Path, answers: str, columns: Sequence[str] = ()) -> None:
    """Store the first rows that have answers, which `check` compares; does nothing for a model that is not served.

    Args:
        model: The configuration of the model.
        data: The rows.
        shared: The step's folder.
        answers: The column of golden responses, or of candidates.
        columns: Further columns that the model reads.
    """
    if isinstance(model, Backend) and any(isinstance(part, Served) for part in model.parts()):
        noise.store(shared / _TEXTS, data, answers, columns, _ROWS, _ANSWERS)


def sample_prompts(model: object, data: Data, shared: Path) -> None:
    """Store the first prompts, which `load_encoder` compares; does nothing for an encoder that is not served."""
    if isinstance(model, Served):
        prompts = (prompt for table in data.rows(("prompt",)) for prompt in table["prompt"].to_pylist())
        rows: list[JsonValue] = [["", [prompt_text(prompt)]] for prompt in islice(prompts, _ROWS * _ANSWERS)]
        (shared / _TEXTS).write_text(json.dumps(rows))


def load_encoder(model: EncoderModel | None, step: str, shared: Path) -> Embedder:
    """Load the encoder that a step needs; a served one is compared first, with the prompts that `sample_prompts` stored.

    Raises:
        ModelError: There is none, it cannot be loaded, or its embeddings are not those that they should be.
    """
    embedder = roles.load(model, "encoder", step)
    unchanged = check(model, embedder, shared, embeddings) if isinstance(model, Served) else _nothing
    return embedder if unchanged is _nothing else _Watched(embedder, unchanged)


class FirstUse:
    """Compares a model on the texts that it is asked for first, where no store holds rows: in training."""

    def __init__(self, model: object, loaded: Any, score: ScoreOf) -> None:
        self._model, self._loaded, self._score = model, loaded, score
        self._served = isinstance(model, Backend) and any(isinstance(part, Served) for part in model.parts())
        self._unchanged: Callable[[], None] | None = None

    def before(self, rows: Callable[[], Iterable[noise.SampleRow]]) -> None:
        """Compare a served model, once, before it is asked for these rows.

        Raises:
            ModelError: See `check`.
        """
        if not self._served or self._unchanged is not None:
            return
        texts = [row._replace(answers=row.answers[:_ANSWERS]) for row in islice(rows(), _ROWS) if row.answers]
        with TemporaryDirectory() as folder:
            (Path(folder) / _TEXTS).write_text(json.dumps(texts, default=str))
            unchanged = check(self._model, self._loaded, Path(folder), self._score)
            if unchanged is not _nothing:
                self._unchanged = unchanged
                note(str(facts(Path(folder))["summary"]))

    def after(self) -> None:
        """Refuse a server whose scores have changed.

        Raises:
            ModelError: It was started anew with other weights or settings.
        """
        if self._unchanged is not None:
            self._unchanged()


def watched(model: EncoderModel, embedder: Embedder) -> Embedder:
    """Return an encoder that is compared before its first use, where it is served."""
    return _FirstWatched(embedder, FirstUse(model, embedder, embeddings)) if isinstance(model, Served) else embedder


class _FirstWatched:
    def __init__(self, embedder: Embedder, same: FirstUse) -> None:
        self.embedder, self.same = embedder, same

    def embed(self, texts: Sequence[str]) -> npt.NDArray[np.float32]:
        self.same.before(lambda: (noise.SampleRow("", [text], {}) for text in texts))
        vectors = self.embedder.embed(texts)
        self.same.after()
        return vectors


class _Watched:
    """A served encoder, which is asked for a known text again after each call."""

    def __init__(self, embedder: Embedder, unchanged: Callable[[], None]) -> None:
        self.embedder, self.unchanged = embedder, unchanged

    def embed(self, texts: Sequence[str]) -> npt.NDArray[np.float32]:
        vectors = self.embedder.embed(texts)
        self.unchanged()
        return vectors


def check(
    model: object, loaded: Any, shared: Path, score: ScoreOf, part: int | str | None = None
) -> Callable[[], None]:
    """Compare a served model, once for a column; return a function that refuses when the server's scores have changed.

    Args:
        model: The configuration of the model; a model that is not served is not compared. Of an ensemble, each member is.
        loaded: The model.
        shared: The step's folder, with the rows that `sample` stored.
        score: Returns how a loaded model scores.
        part: Tells the models of a step apart, and the members of an ensemble.

    Raises:
        ModelError: The scores are not the same, and the recipe accepts no such difference; or they cannot be compared.
    """
    if isinstance(loaded, LoadedEnsemble):
        checks = [check(*member, shared, score, i) for i, member in enumerate(loaded.loaded())]

        def all_unchanged() -> None:
            for check_member in checks:
                check_member()

        return all_unchanged
    texts_file, result_file = shared / _TEXTS, _result(shared, part)
    if not isinstance(model, Served) or not texts_file.exists():
        return _nothing
    texts = noise.stored(texts_file)
    if not texts:
        return _nothing
    if not result_file.exists():
        compared, title, witness = _compare(model, loaded, texts, score)
        line = equivalence.line(compared, model.title, title)
        if compared.decision in ("differs", "not compared"):
            raise ModelError(f"{line}; {_hint(compared)}")
        noise.keep(result_file, {"compared": {**compared.facts(), "line": line}, "witness": witness})
    result = json.loads(result_file.read_text())

    def unchanged() -> None:
        witness = result["witness"]
        for text, kept in zip(_one_by_one(texts), witness["scores"], strict=False):
            if kept is not None:
                (found,) = noise.scored([[text]], score(loaded))
                before = tuple(kept)
                if found is None:
                    raise ModelError(
                        f"{model.title} gives no score for a text that had {_shown(before)}: it fails, or was started anew "
                        "with other settings; see its log, and run again"
                    )
                by = equivalence.differences([before], [found])
                if any(value > floor for value, floor in zip(by, witness["floors"], strict=True)):
                    raise ModelError(
                        f"{model.title} gives other scores than before: {_shown(found)} for a text that had {_shown(before)}; "
                        "it was started anew with other weights or settings: start it as it was and run again, or with "
                        "--replace to compute the column anew"
                    )
                return

    unchanged()
    return unchanged


def facts(shared: Path) -> dict[str, JsonValue]:
    """Return what came of the comparison, as a step's facts hold it; the run's report has its line."""
    results = [json.loads(file.read_text())["compared"] for file in sorted(shared.glob("compared*.json"))]
    if not results:
        return {}
    lines = "; ".join(compared["line"] for compared in results)
    return {"compared": results[0] if len(results) == 1 else results, "summary": lines}


def _result(shared: Path, part: int | str | None) -> Path:
    """Return the file with what came of the comparison of a model, or of a member of an ensemble."""
    return shared / ("compared.json" if part is None else f"compared_{part}.json")


def per_token(model: Policy) -> Score:
    """Return a function that scores answers by their log-probability per token, in nats."""
    return lambda prompts, answers, further: [
        [None if entry is None else (entry.logprob / max(entry.tokens, 1),) for entry in row]
        for row in model.logprobs(prompts, answers)
    ]


def embeddings(embedder: Embedder) -> Score:
    """Return a function that gives each answer the length of its embedding, and its direction seen from a few sides."""

    def score(prompts: Sequence[Any], answers: Sequence[Sequence[str]], columns: Any) -> list[list[Scores | None]]:
        vectors = embedder.embed([text for row in answers for text in row]).astype(np.float64)
        lengths = np.linalg.norm(vectors, axis=1)
        # (dimensions, sides): the same on every machine. A change of the direction moves each by about as much.
        sides = np.random.default_rng(0).standard_normal((vectors.shape[1], _SIDES))
        seen = np.column_stack([lengths, vectors / np.maximum(lengths, 1e-30)[:, None] @ sides])
        flat = iter(seen.tolist())
        return [[tuple(next(flat)) for _ in row] for row in answers]

    return score


def _nothing() -> None:
    """Stand for the check of a model that needs none."""


def _compare(
    model: Served[Any], loaded: Any, texts: Texts, score: ScoreOf
) -> tuple[Comparison, str | None, dict[str, JsonValue]]:
    """Compare a served model; return the outcome, the local model's title, and what later checks hold the server against."""
    local = model.local()
    there = noise.scored([texts], score(loaded))
    ways = _ways(texts, score(loaded))
    uncached = model.load_uncached()
    if uncached is not None:
        ways["without its prefix cache"] = noise.scored([texts], score(uncached))
    by_way = equivalence.self_differences(there, ways)
    unsteady = equivalence.unsteady(there, by_way)
    noise_there = equivalence.largest(by_way.values())
    alone = ways["one by one"]
    floor = equivalence.floors(there, [noise_there])
    if local is None:
        compared = equivalence.decide(there, alone, floor, model.accept_difference)._replace(differences=noise_there)
        return _refused(compared, unsteady, model), None, _witness(alone, floor, compared)
    here, common_floor = _here(local, texts, score, noise_there)
    here, there, common_floor = _common(here, there, common_floor)
    compared = equivalence.decide(here, there, common_floor, model.accept_difference)
    if unsteady is not None:
        largest = equivalence.largest([compared.differences, noise_there[: len(common_floor)]])
        compared = _refused(compared._replace(differences=largest), unsteady, model)
    elif compared.decision in ("differs", "accepted") and compared.texts:
        compared = compared._replace(cause=_cause(local, texts, score, here, there, common_floor))
    return compared, local.title, _witness(alone, floor, compared)


def _witness(alone: Sequence[Scores | None], floor: Scores, compared: Comparison) -> dict[str, JsonValue]:
    """Return the scores that later ones are held against, and by how much these may differ.

    A server that computes in half precision rounds by more than was seen when it was asked in several ways.
    """
    scores: list[JsonValue] = [None if value is None else list(value) for value in alone]
    accepted = compared.differences if compared.decision == "accepted" else ()
    wider = [max(limits) for limits in zip_longest(compared.floors, accepted[: len(compared.floors)], fillvalue=0.0)]
    return {"scores": scores, "floors": [max(pair) for pair in zip_longest(floor, wider[: len(floor)], fillvalue=0.0)]}


def _refused(compared: Comparison, unsteady: str | None, model: Served[Any]) -> Comparison:
    """Refuse a server that differs from itself, unless such a difference is accepted."""
    if unsteady is None or not compared.texts:
        return compared
    is_accepted = equivalence.is_accepted(max(compared.differences), model.accept_difference)
    return compared._replace(decision="accepted" if is_accepted else "differs", cause=unsteady)


def _ways(texts: Texts, score: Score) -> dict[str, Sequence[Scores | None]]:
    """Score the same texts in other ways; each list is in the order of the texts."""
    backwards = [row._replace(answers=row.answers[::-1]) for row in texts[::-1]]
    return {
        "in another order": noise.scored([backwards], score)[::-1],
        "three rows at a time": noise.scored([texts[start : start + 3] for start in range(0, len(texts), 3)], score),
        "one by one": noise.scored([[row] for row in _one_by_one(texts)], score),
    }


def _one_by_one(texts: Texts) -> Texts:
    return [row._replace(answers=[answer]) for row in texts for answer in row.answers]


def _here(
    local: LocalModel, texts: Texts, score: ScoreOf, noise_there: Scores
) -> tuple[Sequence[Scores | None], Scores]:
    """Score the texts here; return the scores, and the floor of their difference from the server's."""
    loaded = local.load()
    here = noise.scored([texts], score(loaded))
    noise_here = equivalence.differences(here, noise.scored([[row] for row in _one_by_one(texts)], score(loaded)))
    del loaded
    rounding: Scores = ()
    for name, other in suspects.precisions(local):
        # Single precision rounds by next to nothing; what half precision rounds is measured against it.
        if name == "float32":
            rounding = equivalence.differences(here, noise.scored([texts], score(other.load())))
    width = min(len(noise_here), len(noise_there)) if noise_there else len(noise_here)
    floor = equivalence.floors(
        [None if value is None else value[:width] for value in here],
        [noise_here[:width], noise_there[:width]],
        rounding[:width],
    )
    return here, floor


def _common(
    here: Sequence[Scores | None], there: Sequence[Scores | None], floor: Scores
) -> tuple[list[Scores | None], list[Scores | None], Scores]:
    """Cut scores to the numbers that both sides give: one side may add outputs."""
    width = min([len(floor), *(len(value) for value in (*here, *there) if value is not None)])
    cut = ([None if value is None else value[:width] for value in side] for side in (here, there))
    return next(cut), next(cut), floor[:width]


def _cause(
    local: LocalModel,
    texts: Texts,
    score: ScoreOf,
    here: Sequence[Scores | None],
    there: Sequence[Scores | None],
    floor: Scores,
) -> str | None:
    """Return the first of the known causes that explains a difference."""
    if (cause := equivalence.activation(here, there, floor)) is not None:
        return cause
    found = equivalence.differences(here, there)
    for name, other in suspects.precisions(local):
        rounding = equivalence.differences(here, _scored_by(other.load, texts, score, len(floor)))
        if rounding and all(
            value <= max(_ROUNDED * r, limit) for value, r, limit in zip(found, rounding, floor, strict=True)
        ):
            return f"the server computes in {name}; name it by `dtype: {name}` in `same_as`, or start it in another"
    for suspect in suspects.suspects(local):
        try:
            changed = _scored_by(suspect.load, texts, score, len(floor))
        except ModelError:
            # A model that cannot be read in this way is not served in it.
            continue
        if equivalence.explains(here, there, changed, floor):
            return suspect.cause
    return None


def _scored_by(load: Callable[[], Any], texts: Texts, score: ScoreOf, width: int) -> list[Scores | None]:
    scores = noise.scored([texts], score(load()))
    return [None if value is None else value[:width] for value in scores]


def _hint(compared: Comparison) -> str:
    if compared.decision == "not compared":
        return "see the server's log; `accept_difference: true` scores without a comparison"
    largest = max(compared.differences)
    return f"repair the server, or accept the difference by `accept_difference: {1.05 * largest:.2g}`"


def _shown(scores: Scores) -> str:
    return ", ".join(f"{value:.4g}" for value in scores)
