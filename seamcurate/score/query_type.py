"""The offline classifier of queries, open-ended or closed-ended: logistic regression on embeddings of labelled examples.

Its one rule: a text's type depends on the text, the encoder and the examples, never on the other texts of its batch.
"""

from __future__ import annotations

import csv
import importlib.resources
import io
from collections.abc import Callable, Sequence

import numpy as np
import numpy.typing as npt

from seamcurate.errors import ModelError
from seamcurate.models import Embedder
from seamcurate.models.vectors import normalised

Vectors = npt.NDArray[np.float64]

_INVERSE_REGULARISATION = 10.0
"""Chosen from .1 to 300: its ten-fold log loss is within .01 of the least, for MiniLM and for its raw CLS vectors alike."""


def examples() -> list[tuple[str, str]]:
    """Read the labelled queries as (query, `open` or `closed`); each half begins with those of RER's Figure 9."""
    text = importlib.resources.files("seamcurate.score").joinpath("query_types.csv").read_text(encoding="utf-8")
    return [(row["query"], row["query_type"]) for row in csv.DictReader(io.StringIO(text))]


def fit(embedder: Embedder) -> Callable[[Sequence[str]], Vectors]:
    """Fit the boundary to the examples; return a function that gives P(open-ended) of each text (RER §3.2)."""
    vectors, is_open = _embedded(embedder)
    probability = _boundary(vectors, is_open)

    def open_ended(texts: Sequence[str]) -> Vectors:
        return probability(_directions(embedder, texts))

    return open_ended


def agreement(embedder: Embedder) -> float:
    """Return the share of examples that ten-fold cross-validation labels as a person did."""
    from sklearn.model_selection import StratifiedKFold

    vectors, is_open = _embedded(embedder)
    right = np.zeros(len(is_open), bool)
    for train, test in StratifiedKFold(10, shuffle=True, random_state=0).split(vectors, is_open):
        probability = _boundary(vectors[train], is_open[train])
        right[test] = (probability(vectors[test]) > 0.5) == is_open[test]
    return float(right.mean())


def _embedded(embedder: Embedder) -> tuple[Vectors, npt.NDArray[np.bool_]]:
    queries, kinds = zip(*examples(), strict=True)
    vectors = _directions(embedder, queries)
    if not np.isfinite(vectors).all() or not vectors.var(axis=0).sum() > 0:
        raise ModelError(
            "the encoder gives the labelled examples of query types no finite, or all the same embedding, so that no "
            "classifier can be fitted to them; name another encoder, or `dtype: float32`"
        )
    return vectors, np.array(kinds) == "open"


def _directions(embedder: Embedder, texts: Sequence[str]) -> Vectors:
    """Embed texts as unit vectors, so that an encoder gives the same types whether it normalises or not."""
    return normalised(embedder.embed(texts).astype(np.float64))


def _boundary(vectors: Vectors, is_open: npt.NDArray[np.bool_]) -> Callable[[Vectors], Vectors]:
    """Fit P(open | vector) by logistic regression on vectors centred and scaled to a total variance of 1."""
    from sklearn.linear_model import LogisticRegression

    # Some encoders fill only a narrow cone: without the scaling, the penalty would weigh more for them.
    centre, spread = vectors.mean(axis=0), np.sqrt(vectors.var(axis=0).sum())
    scaled = (vectors - centre) / spread
    model = LogisticRegression(C=_INVERSE_REGULARISATION, max_iter=1000).fit(scaled, is_open)
    weights, bias = model.coef_[0] / spread, model.intercept_[0]

    def probability(embeddings: Vectors) -> Vectors:
        # A sum per row: a matrix product rounds differently with the number of rows.
        p: Vectors = 1 / (1 + np.exp(-(((embeddings - centre) * weights).sum(axis=1) + bias)))
        return p

    return probability
