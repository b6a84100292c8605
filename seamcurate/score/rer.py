"""RER: a white-box reward from length, repetition and relevance, branched by query type (RER §3.2).

    RER = LI · RP · QR        open-ended queries
    RER = RP · F(AR)          closed-ended queries

Each formula is one pure function here, and each feature is a step and a column of its own. One rule: `FEATURES` is the
table of features. The steps of `rer`, the score, rewards, reward files and the names that a recipe may use are read from
it. To add a feature, write its step, a subclass of `TextFeature` or `RelevanceFeature`, and add a row.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar, Literal, NamedTuple, TypeAlias

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
from pydantic import Field, JsonValue
from typing_extensions import override

from seamcurate.errors import StepError
from seamcurate.models import EncoderModel
from seamcurate.models.template import prompt_text
from seamcurate.progress import note
from seamcurate.score import compared
from seamcurate.score import query_type as classifier
from seamcurate.step import Averages, Data, Step, Transform, Work, column, digest, evenly, finite
from seamcurate.text import counted, folded
from seamcurate.words import Words, counts, distinct_trigrams, split

Combine: TypeAlias = Literal["product", "sum"]
Floats: TypeAlias = npt.NDArray[np.float32]

_LANGUAGE_MODEL = "language model"
"""The value of `query_type_by` where a language model gave the type."""
AR_RANGE = (0.0, 3.5)
"""The range of Contriever's dot products between answers, as in the RER authors' code."""
F_ZERO = {"paper": "the authors'", "quantiles": "median of other questions"}
"""Where F's zero comes from, by `fit`; stored beside the measured range."""
_REFERENCES, _SAMPLED_ROWS = 64, 1024
"""References and rows that AR by chance is measured on: enough for a median, without embedding every row again."""
_ROUNDING = 1e-5
"""Relative difference between two dot products that single precision alone may cause."""


def cut(text: str, stop: Sequence[str]) -> str:
    """Cut a response at the first of the stop strings, taken literally."""
    ends = [offset for offset in (text.find(s) for s in stop) if offset >= 0]
    return text[: min(ends)] if ends else text


def length_incentive(text: str, words: Words = "wordpunct") -> float:
    """Return LI = number of words / 100."""
    return len(split(text, words)) / 100


def repetition_penalty(text: str, words: Words = "wordpunct") -> float:
    """Return RP = unique trigrams / trigrams; 1 for fewer than three words."""
    return novelty(text, text, words)


def novelty(excerpt: str, full_text: str, words: Words = "wordpunct") -> float:
    """Return unique trigrams of an excerpt / trigrams of the full text; 1 for a full text of fewer than three words.

    This is RP where the excerpt is the full text. Where the excerpt is the text without its repeats, each repeated word
    lowers the value.
    """
    tokens, count = split(excerpt, words), len(split(full_text, words)) - 2
    return max(len(set(zip(tokens, tokens[1:], tokens[2:], strict=False))), 1) / count if count > 0 else 1.0


def rescale(
    relevance: float, max_response_tokens: int = 512, source: tuple[float, float] = AR_RANGE, clip: bool = False
) -> float:
    """Return F(AR): relevance mapped affinely from its own range to that of LI, [0, max_response_tokens / 100]."""
    low, high = source
    share = (relevance - low) / (high - low)
    return (min(max(share, 0.0), 1.0) if clip else share) * max_response_tokens / 100


def combined(features: Sequence[float], combine: Combine = "product") -> float:
    """Return the features' product, or their sum (RER Table 6)."""
    return math.prod(features) if combine == "product" else sum(features)


def rer_open(length: float, repetition: float, relevance: float, combine: Combine = "product") -> float:
    """Return RER of a response to an open-ended query: LI · RP · QR."""
    return combined((length, repetition, relevance), combine)


def rer_closed(repetition: float, rescaled: float, combine: Combine = "product") -> float:
    """Return RER of a response to a closed-ended query: RP · F(AR)."""
    return combined((repetition, rescaled), combine)


def relevance(left: Floats, right: Floats) -> list[float]:
    """Return M(a)·M(b) for each row of two sets of embeddings, each (rows, dimensions), in double precision."""
    # Row by row: a matrix product would round differently with the number of rows.
    products: list[float] = np.einsum("nd,nd->n", left.astype(np.float64), right.astype(np.float64)).tolist()
    return products


class _Feature(Step):
    """Add the column that a row of `FEATURES` describes."""

    @property
    def feature(self) -> RerFeature:
        """Return the row of `FEATURES` that describes this step."""
        return feature_of(self)

    @property
    @override
    def name(self) -> str:
        return self.feature.column

    @property
    @override
    def inputs(self) -> tuple[str, ...]:
        return self.feature.reads

    @property
    @override
    def adds(self) -> pa.Schema:
        return pa.schema([column(self.name, pa.float64(), self.feature.meaning.format(**dict(self)))])


class TextFeature(_Feature):
    """Add a feature of the response's text alone, by the formula of its row in `FEATURES`."""

    revision: ClassVar[int] = 2
    rows_per_call: ClassVar[int] = 4096

    words: Words = "wordpunct"
    stop: tuple[str, ...] = ()

    @override
    def load(self, shared: Path) -> Transform:
        feature, words = self.feature, self.words

        def of_column(texts: pa.StringArray) -> npt.NDArray[np.float64]:
            if feature.column_formula is not None:
                return feature.column_formula(texts, words)
            assert feature.formula is not None
            values = ((text or "") for text in texts.to_pylist())
            return np.array([feature.formula(text, text, words) for text in values], np.float64)

        return _per_response(self.name, self.stop if feature.cut_at_stop else (), of_column)


class RelevanceFeature(_Feature):
    """Add the dot product of two embeddings, the response's and a second text's; the row in `FEATURES` names that text."""

    encoder: EncoderModel | None = None

    rows_per_call: ClassVar[int] = 256

    @override
    def work(self, rows: Averages) -> Work:
        text: float = getattr(rows, self.feature.relevance_to)
        # Without a second text, such as a reference, there is nothing to embed a response for.
        return Work(self.encoder, 2, text + rows.response) if text else Work(self.encoder, 0, 0)

    @override
    def identity(self) -> dict[str, JsonValue]:
        """Return the configuration with an empty `stop`, a former field: columns computed with it empty are still valid."""
        return {**super().identity(), "stop": []}

    @override
    def prepare(self, data: Data, shared: Path) -> None:
        """Store the prompts that a served encoder is compared by."""
        compared.sample_prompts(self.encoder, data, shared)

    @override
    def load(self, shared: Path) -> Transform:
        return _relevance(self.name, self.encoder, self.feature.relevance_to, shared)

    @override
    def facts(self, columns: Iterable[pa.Table], shared: Path) -> dict[str, JsonValue]:
        return compared.facts(shared)


class LengthIncentive(TextFeature):
    """Add `rer_length`: LI, the number of words of the response / 100 (RER §3.2).

    NULL without a response. `stop` cuts the response at the first of these strings.

    Example:
        >>> import pyarrow as pa
        >>> step = LengthIncentive()
        >>> step.load(None)(pa.table({"response": ["It is blue.", None]})).to_pydict()
        {'rer_length': [0.04, None]}
    """


class RepetitionPenalty(TextFeature):
    """Add `rer_repetition`: RP, unique trigrams / trigrams of the response's words (RER §3.2).

    1 = no repetition, also for fewer than three words. NULL without a response.

    Example:
        >>> import pyarrow as pa
        >>> RepetitionPenalty().load(None)(pa.table({"response": ["a b c a b c"]})).to_pydict()
        {'rer_repetition': [0.75]}
    """


class QueryRelevance(RelevanceFeature):
    """Add `rer_query_relevance`: QR, the dot product of the embeddings of query and response (RER §3.2).

    It reads the whole response: stop strings cut LI and RP only, as in the authors' code.

    Raises:
        ModelError: No encoder is named, or it cannot be loaded.

    Example:
        >>> import pyarrow as pa
        >>> from seamcurate import FakeModel
        >>> step = QueryRelevance(encoder=FakeModel(path="encoder"))
        >>> rows = pa.table({"prompt": ["What is blue?"], "response": ["The sky."]})
        >>> step.load(None)(rows).column_names
        ['rer_query_relevance']
    """


class ReferenceRelevance(RelevanceFeature):
    """Add `rer_reference_relevance`: AR, the dot product of the embeddings of reference and response (RER §3.2).

    It reads the whole response: stop strings cut LI and RP only, as in the authors' code. NULL without a reference.

    Raises:
        ModelError: No encoder is named, or it cannot be loaded.

    Example:
        >>> import pyarrow as pa
        >>> from seamcurate import FakeModel
        >>> step = ReferenceRelevance(encoder=FakeModel(path="encoder"))
        >>> step.load(None)(pa.table({"reference": [None], "response": ["The sky."]})).to_pydict()
        {'rer_reference_relevance': [None]}
    """


class RerFeature(NamedTuple):
    """A feature of RER: a row of `FEATURES`."""

    column: str
    recipe_name: str
    """Its step's name in a recipe."""
    step: type[TextFeature] | type[RelevanceFeature]
    meaning: str
    """What the column means; a field of the step in braces, such as `{words}`, stands for its value."""
    formula: Callable[[str, str, Words], float] | None
    """Score one text for a reward, given the text without its immediate repeats, the full text and the way to count words;
    None for a relevance."""
    column_formula: Callable[[pa.StringArray, Words], npt.NDArray[np.float64]] | None
    """Score a column of texts at once; None: score text by text."""
    relevance_to: str
    """The text that the response is compared with, `prompt` or `reference`; empty for a feature of the response alone."""
    cut_at_stop: bool
    """Whether the feature reads the response only up to the first stop string."""
    rescaled: bool
    """Whether F maps it to the range of LI before it enters RER."""
    branches: tuple[Literal["open", "closed"], ...]
    """The query types for which the feature is a factor of RER."""
    rewards: tuple[str, ...]
    """The rewards that the feature is a factor of: `rer`, and ablations (RER Table 2)."""

    @property
    def reads(self) -> tuple[str, ...]:
        """Return the columns that the feature reads."""
        return (self.relevance_to, "response") if self.relevance_to else ("response",)


FEATURES: tuple[RerFeature, ...] = (
    RerFeature(
        column="rer_length",
        recipe_name="length_incentive",
        step=LengthIncentive,
        meaning="LI: words of the response / 100 ({words})",
        formula=lambda text, full_text, words: length_incentive(text, words),
        column_formula=lambda texts, words: counts(texts, words) / 100,
        relevance_to="",
        cut_at_stop=True,
        rescaled=False,
        branches=("open",),
        rewards=("rer", "li", "li_rp", "li_rp_qr"),
    ),
    RerFeature(
        column="rer_repetition",
        recipe_name="repetition_penalty",
        step=RepetitionPenalty,
        meaning="RP: unique trigrams / trigrams of the response ({words}); 1 = no repetition",
        formula=lambda text, full_text, words: novelty(text, full_text, words),
        column_formula=lambda texts, words: distinct_trigrams(texts, words),
        relevance_to="",
        cut_at_stop=True,
        rescaled=False,
        branches=("open", "closed"),
        rewards=("rer", "rp", "li_rp", "li_rp_qr"),
    ),
    RerFeature(
        column="rer_query_relevance",
        recipe_name="query_relevance",
        step=QueryRelevance,
        meaning="QR: dot product of query and response embeddings",
        formula=None,
        column_formula=None,
        relevance_to="prompt",
        cut_at_stop=False,
        rescaled=False,
        branches=("open",),
        rewards=("rer", "qr", "li_rp_qr"),
    ),
    RerFeature(
        column="rer_reference_relevance",
        recipe_name="reference_relevance",
        step=ReferenceRelevance,
        meaning="AR: dot product of reference and response embeddings; NULL without a reference",
        formula=None,
        column_formula=None,
        relevance_to="reference",
        cut_at_stop=False,
        rescaled=True,
        branches=("closed",),
        rewards=("rer", "ar"),
    ),
)
LENGTH, QUERY_RELEVANCE = FEATURES[0].column, FEATURES[2].column
"""Columns that the code treats apart: LI gives the number of words of a response, and QR may replace AR."""


def feature_of(step: Step) -> RerFeature:
    """Return the row of `FEATURES` that describes a step."""
    return next(feature for feature in FEATURES if feature.step is type(step))


class OtherRelevance(Step):
    """Add `rer_other_relevance`: the relevance of the response to the references of other questions.

    It is a median of dot products. Its own median over the rows is AR by chance, which `rer: {fit: quantiles}` takes as
    the zero of F. The step measures a sample of the rows; the other rows are NULL.

    Raises:
        ModelError: No encoder is named, or it cannot be loaded.

    Example:
        >>> from seamcurate import OtherRelevance
        >>> OtherRelevance().inputs
        ('prompt', 'reference', 'response')
    """

    encoder: EncoderModel | None = None

    rows_per_call: ClassVar[int] = 256
    without_references: ClassVar[str] = "`rer: {fit: quantiles}` has no range to measure without them; use `fit: paper`"

    @property
    @override
    def name(self) -> str:
        return "rer_other_relevance"

    @property
    @override
    def inputs(self) -> tuple[str, ...]:
        """Read the response, and the prompt and reference by which the row's own question is left out."""
        return ("prompt", "reference", "response")

    @property
    @override
    def reads_all_rows(self) -> bool:
        """The references are sampled from all rows."""
        return True

    @property
    @override
    def adds(self) -> pa.Schema:
        meaning = (
            f"median dot product of the response and up to {_REFERENCES} other questions' references; "
            f"measured on {_SAMPLED_ROWS:,} rows at most, NULL elsewhere"
        )
        return pa.schema([column("rer_other_relevance", pa.float64(), meaning)])

    @override
    def prepare(self, data: Data, shared: Path) -> None:
        """Sample the references evenly from the rows that have one, and the rows whose responses are compared with them."""
        questions = (
            (prompt_text(prompt), reference)
            for table in data.rows(("prompt", "reference"))
            for prompt, reference in zip(table["prompt"].to_pylist(), table["reference"].to_pylist(), strict=True)
            if reference is not None
        )
        compared.sample_prompts(self.encoder, data, shared)
        (shared / "others.json").write_text(json.dumps(evenly(questions, _REFERENCES)))
        ids = (row_id for table in data.rows(()) for row_id in table["row_id"].to_pylist())
        (shared / "measured.json").write_text(json.dumps(evenly(ids, _SAMPLED_ROWS)))

    @override
    def work(self, rows: Averages) -> Work:
        return Work(self.encoder, 1, rows.response)

    @override
    def load(self, shared: Path) -> Transform:
        embedder = compared.load_encoder(self.encoder, self.name, shared)
        questions = json.loads((shared / "others.json").read_text())
        sampled_ids = set(json.loads((shared / "measured.json").read_text()))
        vectors = None
        if questions:
            # (references, dimensions)
            embeddings = embedder.embed([reference for _, reference in questions]).astype(np.float64)
            is_finite: npt.NDArray[np.bool_] = np.all(np.isfinite(embeddings), axis=1)
            questions = [question for question, usable in zip(questions, is_finite, strict=True) if usable]
            # A reference without a finite embedding would make every median NaN.
            vectors = embeddings[is_finite]
        prompts, references = (np.array([folded(question[i]) for question in questions], object) for i in (0, 1))

        def score(rows: pa.Table) -> pa.Table:
            texts = [rows[name].to_pylist() for name in ("prompt", "reference", "response")]
            positions = [i for i, row_id in enumerate(rows["row_id"].to_pylist()) if row_id in sampled_ids]
            samples = [(i, *(column[i] for column in texts)) for i in positions if texts[-1][i] is not None]
            scores: list[float | None] = [None] * len(rows)
            if vectors is not None and samples:
                # (samples, dimensions)
                answers = embedder.embed([response for *_, response in samples]).astype(np.float64)
                if null_count := int((~np.isfinite(answers).all(axis=1)).sum()):
                    note(_relevance_unknown(self.name, null_count))
                for (i, prompt, reference, _), answer in zip(samples, answers, strict=True):
                    # (references,): without the row's own question, and those of the same text or the same reference.
                    differs = (prompts != folded(prompt_text(prompt))) & (references != folded(reference or ""))
                    if differs.any():
                        # A sum per reference: a matrix product rounds differently with the number of rows.
                        scores[i] = finite(float(np.median((vectors[differs] * answer).sum(axis=1))))
            return pa.table({self.name: pa.array(scores, pa.float64())})

        return score

    @override
    def facts(self, columns: Iterable[pa.Table], shared: Path) -> dict[str, JsonValue]:
        return compared.facts(shared)


class QueryType(Step):
    """Add `query_type`, open or closed, by a classifier of the query's embedding, fitted to labelled examples (RER §3.2).

    `query_type_open` is the classifier's probability that the query is open-ended. Its accuracy on held-out examples is
    measured and stored in the column's facts.

    Raises:
        ModelError: No encoder is named, or it cannot be loaded.

    Example:
        >>> from pathlib import Path
        >>> import pyarrow as pa
        >>> from seamcurate import FakeModel, QueryType
        >>> add = QueryType(encoder=FakeModel()).load(Path())
        >>> add(pa.table({"prompt": ["Write a poem about the sea."]}))["query_type"][0].as_py() in ("open", "closed")
        True
    """

    extras: ClassVar[tuple[str, ...]] = ("local",)
    encoder: EncoderModel | None = None
    asked: bool = False
    """Use `query_type_asked` where a language model gave a type, and measure how often the classifier agrees with it."""

    rows_per_call: ClassVar[int] = 256

    @property
    @override
    def inputs(self) -> tuple[str, ...]:
        """Read the query; with `asked` also the type that a language model gave."""
        return ("prompt", "query_type_asked") if self.asked else ("prompt",)

    @property
    @override
    def adds(self) -> pa.Schema:
        """Add the type and the classifier's probability; with `asked` also the source of the type."""
        decided_by = column("query_type_by", pa.string(), "language model or classifier: who decided query_type")
        return pa.schema(
            [
                column("query_type", pa.string(), "open or closed: may the answer be anything, or is it constrained?"),
                column("query_type_open", pa.float64(), "the classifier's probability that the query is open-ended"),
                *([decided_by] if self.asked else []),
            ]
        )

    @override
    def prepare(self, data: Data, shared: Path) -> None:
        """Measure the classifier's accuracy on held-out examples."""
        compared.sample_prompts(self.encoder, data, shared)
        share = classifier.agreement(compared.load_encoder(self.encoder, self.name, shared))
        (shared / "agreement.json").write_text(json.dumps(share))

    @override
    def work(self, rows: Averages) -> Work:
        return Work(self.encoder, 1, rows.prompt)

    @override
    def first_work(self, rows: Averages, count: int) -> list[Work]:
        """Embed the labelled examples twice: to measure the classifier on held-out ones, and to fit it to all."""
        queries = [query for query, _ in classifier.examples()]
        return [Work(self.encoder, 2 * len(queries), 2 * sum(map(len, queries)))]

    @override
    def identity(self) -> dict[str, JsonValue]:
        """Return the configuration and the labelled examples, which decide the boundary."""
        return {**super().identity(), "examples": digest([list(example) for example in classifier.examples()])}

    @override
    def load(self, shared: Path) -> Transform:
        probability = classifier.fit(compared.load_encoder(self.encoder, self.name, shared))

        def classify(rows: pa.Table) -> pa.Table:
            estimates = probability([prompt_text(p) for p in rows["prompt"].to_pylist()])
            probabilities = [finite(float(p)) for p in estimates]
            types = [None if p is None else "open" if p >= 0.5 else "closed" for p in probabilities]
            kinds = pa.array(types, pa.string())
            columns = [kinds, pa.array(probabilities, pa.float64())]
            if self.asked:
                replies = rows["query_type_asked"].combine_chunks()
                decided_by = pc.if_else(replies.is_null(), "classifier", _LANGUAGE_MODEL)
                # The language model decides where it gave a type; the classifier's probability stays beside it.
                columns = [pc.coalesce(replies, kinds), columns[1], decided_by]
            return pa.table(columns, schema=self.adds)

        return classify

    @override
    def facts(self, columns: Iterable[pa.Table], shared: Path) -> dict[str, JsonValue]:
        """Count the types, and return how often the classifier agrees with the labels and with the language model."""
        agreement = float(json.loads((shared / "agreement.json").read_text()))
        opens = closed = null = replies = agreements = 0
        for table in columns:
            is_open = pc.equal(table["query_type"], "open")
            open_count, null_count = int(pc.sum(is_open).as_py() or 0), table["query_type"].null_count
            opens, null = opens + open_count, null + null_count
            closed += table.num_rows - null_count - open_count
            if self.asked:
                by_model = pc.equal(table["query_type_by"], _LANGUAGE_MODEL)
                agrees = pc.equal(is_open, pc.greater_equal(table["query_type_open"], 0.5))
                replies += int(pc.sum(by_model).as_py() or 0)
                agreements += int(pc.sum(pc.and_(by_model, agrees)).as_py() or 0)
        accuracy = f"local classifier, right on {agreement:.0%} of held-out examples"
        if replies:
            accuracy += f"; it agrees with the language model on {agreements / replies:.0%} of {replies:,} rows, which it decided"
        compared_facts = compared.facts(shared)
        compared_summary = f"; {compared_facts['summary']}" if compared_facts else ""
        return {
            **compared_facts,
            "open": opens,
            "closed": closed,
            "agreement_on_held_out_examples": agreement,
            "agreement_with_language_model": agreements / replies if replies else None,
            "asked": replies,
            "summary": f"query types: {opens:,} open, {closed:,} closed ({accuracy}){compared_summary}",
            **({"null": null, "warnings": [_null_warning(null)]} if null else {}),
        }


def _null_warning(count: int) -> str:
    return f"{counted(count, 'row has', 'rows have')} an embedding that is not finite: query_type is NULL"


class Rer(Step):
    """Add `rer`: LI · RP · QR for open-ended queries, RP · F(AR) for closed-ended ones (RER §3.2).

    The step loads no model: it reads the four features and the query type. A closed-ended row without a reference is
    NULL, unless `fallback` puts QR in the place of AR.

    Example:
        >>> from seamcurate import Rer
        >>> Rer(fit="quantiles", fallback="query_relevance").inputs[-2:]
        ('query_type', 'rer_other_relevance')
    """

    rows_per_call: ClassVar[int] = 4096

    max_response_tokens: int = Field(default=512, ge=1)
    combine: Combine = "product"
    clip: bool = False
    fit: Literal["paper", "quantiles"] = "paper"
    """Where F's input range comes from. `paper`: the authors' [0, 3.5] for Contriever. `quantiles`: from the median of
    `rer_other_relevance`, the relevance to other questions' references, to the 99th percentile of AR."""
    fallback: Literal["query_relevance"] | None = None
    min_tokens: int = Field(default=0, ge=0)
    """Responses of fewer words get 0; with 0, an empty answer to a closed-ended query gets F(AR(""))."""

    @property
    @override
    def inputs(self) -> tuple[str, ...]:
        fitted = ("rer_other_relevance",) if self.fit == "quantiles" else ()
        return (*(feature.column for feature in FEATURES if feature.branches), "query_type", *fitted)

    @property
    @override
    def reads_all_rows(self) -> bool:
        """Fitting F by quantiles needs every AR."""
        return self.fit == "quantiles"

    @property
    @override
    def adds(self) -> pa.Schema:
        meaning = "RER: LI·RP·QR for open-ended, RP·F(AR) for closed-ended queries; NULL for closed without reference"
        return pa.schema([column("rer", pa.float64(), meaning)])

    @override
    def prepare(self, data: Data, shared: Path) -> None:
        """Find the range that F maps from, and check whether the authors' constants can fit this encoder."""
        relevances = _finite_values(data, "rer_reference_relevance")
        low, high = AR_RANGE
        if self.fit == "quantiles":
            other_relevances = _finite_values(data, "rer_other_relevance")
            reason = "" if len(relevances) else "no row has a reference"
            if not reason and not len(other_relevances):
                reason = "all rows have one question or one reference"
            if not reason:
                # The largest AR of all may be an outlier, such as a response that repeats its reference.
                low, high = float(np.median(other_relevances)), float(np.quantile(relevances, 0.99))
                if high - low <= _ROUNDING * max(abs(low), abs(high)):
                    reason = "responses are no nearer to their own references than to those of other questions"
            if reason:
                raise StepError(f"step rer: {reason}, so `fit: quantiles` has no range to measure; use `fit: paper`")
        # Unit vectors give dot products within [-1, 1]; the margin allows for rounding.
        cosines = len(relevances) > 0 and bool(np.abs(relevances).max() <= 1.001) and self.fit == "paper"
        measured = {"range": [low, high], "cosines": cosines, "zero": F_ZERO[self.fit]}
        (shared / "range.json").write_text(json.dumps(measured))

    @override
    def load(self, shared: Path) -> Transform:
        low, high = json.loads((shared / "range.json").read_text())["range"]

        def add(rows: pa.Table) -> pa.Table:
            # The source may bring these columns itself, with any values.
            kinds = rows["query_type"].to_pylist()
            unknown = next((kind for kind in kinds if kind not in ("open", "closed", None)), None)
            if unknown is not None:
                raise StepError(
                    f"step rer: query_type is open, closed or null, not {unknown!r:.40}; correct the source's column"
                )
            # Four columns as lists, then a row at a time: `score` is the formula as the paper writes it.
            names = [feature.column for feature in FEATURES if feature.branches]
            columns = [[finite(value) for value in rows[name].to_pylist()] for name in names]
            scores = [
                finite(self.score((low, high), dict(zip(names, values, strict=True)), kind))
                for *values, kind in zip(*columns, kinds, strict=True)
            ]
            return pa.table({"rer": pa.array(scores, pa.float64())})

        return add

    def score(self, source: tuple[float, float], values: Mapping[str, float | None], kind: str | None) -> float | None:
        """Return one row's RER, or None where its branch lacks a feature.

        Args:
            source: The range that F maps AR from.
            values: The row's features by column.
            kind: The query's type, open or closed.
        """
        # LI and RP are known for every response: where one is NULL there is none to score, whichever the branch.
        if kind is None or any(
            values[feature.column] is None for feature in FEATURES if feature.branches and not feature.relevance_to
        ):
            return None
        length = values[LENGTH]
        # LI is words / 100; rounding undoes the division exactly.
        if length is not None and round(length * 100) < self.min_tokens:
            return 0.0
        factors = []
        for feature in FEATURES:
            if kind not in feature.branches:
                continue
            value = values[feature.column]
            if feature.rescaled:
                value = values[QUERY_RELEVANCE] if value is None and self.fallback else value
                value = None if value is None else rescale(value, self.max_response_tokens, source, self.clip)
            if value is None:
                return None
            factors.append(value)
        return combined(factors, self.combine)

    @override
    def facts(self, columns: Iterable[pa.Table], shared: Path) -> dict[str, JsonValue]:
        """Count rows without a score, and warn where F's constants do not fit the encoder."""
        measured = json.loads((shared / "range.json").read_text())
        missing = sum(table["rer"].null_count for table in columns)
        facts: dict[str, JsonValue] = {"null": missing, "F_maps_from": measured["range"]}
        warnings: list[JsonValue] = []
        if measured["cosines"]:
            warnings.append(
                "rer: AR lies in [-1, 1], as normalised embeddings give it, but F's [0, 3.5] was fitted to Contriever's "
                "unnormalised dot products: use `rer: {fit: quantiles}`, or an encoder with `normalise: false`"
            )
        if missing:
            warnings.append(
                f"rer: {counted(missing, 'row is', 'rows are')} NULL: closed-ended without a reference (see `fallback`), "
                "or a feature is NULL"
            )
        if warnings:
            facts["warnings"] = warnings
        return facts


def rer(
    *,
    encoder: EncoderModel | None = None,
    words: Words = "wordpunct",
    stop: tuple[str, ...] = (),
    max_response_tokens: int = 512,
    combine: Combine = "product",
    clip: bool = False,
    fit: Literal["paper", "quantiles"] = "paper",
    fallback: Literal["query_relevance"] | None = None,
    min_tokens: int = 0,
    asked: bool = False,
) -> tuple[Step, ...]:
    """Return the steps of RER in order: the four features, with `fit: quantiles` the relevance by chance, the query type, RER.

    Each option goes to the steps that have it; see `Rer`, `LengthIncentive`, `QueryRelevance` and `QueryType`.

    Example:
        >>> from seamcurate import rer
        >>> [step.name for step in rer(min_tokens=1)][-2:]
        ['query_type', 'rer']
    """
    options: dict[str, Any] = {"words": words, "stop": stop, "encoder": encoder}
    return (
        *(
            feature.step(**{key: value for key, value in options.items() if key in feature.step.model_fields})
            for feature in FEATURES
        ),
        *((OtherRelevance(encoder=encoder),) if fit == "quantiles" else ()),
        QueryType(encoder=encoder, asked=asked),
        Rer(
            max_response_tokens=max_response_tokens,
            combine=combine,
            clip=clip,
            fit=fit,
            fallback=fallback,
            min_tokens=min_tokens,
        ),
    )


def _per_response(
    name: str, stop: Sequence[str], formula: Callable[[pa.StringArray], npt.NDArray[np.float64]]
) -> Transform:
    """Score every response by a formula over the whole column; NULL without a response."""

    def score(rows: pa.Table) -> pa.Table:
        texts = rows["response"].combine_chunks()
        if stop:
            texts = pa.array([None if text is None else cut(text, stop) for text in texts.to_pylist()], pa.string())
        missing = texts.is_null().to_numpy(zero_copy_only=False)
        return pa.table({name: pa.array(formula(texts), pa.float64(), mask=missing)})

    return score


def _finite_values(data: Data, name: str) -> npt.NDArray[np.float64]:
    """Return the finite values of a column."""
    parts = [table[name].to_numpy().astype(np.float64) for table in data.rows((name,))]
    values: npt.NDArray[np.float64] = np.concatenate(parts or [np.zeros(0)])
    # NULL became NaN on the way to numpy.
    values = values[np.isfinite(values)]
    return values


def _relevance_unknown(name: str, count: int) -> str:
    return f"warning: {name}: {counted(count, 'row has', 'rows have')} an embedding that is not finite: NULL"


def _relevance(name: str, encoder: EncoderModel | None, text_column: str, shared: Path) -> Transform:
    """Score M(text)·M(response), NULL where either text is NULL."""
    embedder = compared.load_encoder(encoder, name, shared)

    def score(rows: pa.Table) -> pa.Table:
        pairs = list(zip(rows[text_column].to_pylist(), rows["response"].to_pylist(), strict=True))
        complete = [i for i, (a, b) in enumerate(pairs) if a is not None and b is not None]
        scores: list[float | None] = [None] * len(pairs)
        if complete:
            # Both (complete pairs, dimensions)
            left = embedder.embed([prompt_text(pairs[i][0]) for i in complete])
            right = embedder.embed([pairs[i][1] for i in complete])
            for i, value in zip(complete, relevance(left, right), strict=True):
                scores[i] = finite(value)
            if null_count := sum(scores[i] is None for i in complete):
                note(_relevance_unknown(name, null_count))
        return pa.table({name: pa.array(scores, pa.float64())})

    return score
