"""Open-ended or closed-ended: the offline classifier of queries, labelled examples and a linear boundary.

Its one rule: a text's answer depends on the text, the encoder and the examples, never on the texts beside it.
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
"""Of .1 to 300, within .01 of the least ten-fold log loss for MiniLM and for its raw CLS vectors alike."""


def examples() -> list[tuple[str, str]]:
    """Read the labelled queries: (query, `open` or `closed`), those of RER's Figure 9 first in each half."""
    text = importlib.resources.files("seamcurate.score").joinpath("query_types.csv").read_text(encoding="utf-8")
    return [(row["query"], row["query_type"]) for row in csv.DictReader(io.StringIO(text))]


def fit(embedder: Embedder) -> Callable[[Sequence[str]], Vectors]:
    """Fit the boundary to the examples; what is returned gives P(open-ended) per text (RER, 3.2)."""
    vectors, is_open = _embedded(embedder)
    probability = _boundary(vectors, is_open)

    def open_ended(texts: Sequence[str]) -> Vectors:
        return probability(_directions(embedder, texts))

    return open_ended


def agreement(embedder: Embedder) -> float:
    """Return the share of examples that ten-fold cross-validation labels as the person did."""
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
    """Embed at length 1, so that one encoder gives one answer, whether it normalises or not."""
    return normalised(embedder.embed(texts).astype(np.float64))


def _boundary(vectors: Vectors, is_open: npt.NDArray[np.bool_]) -> Callable[[Vectors], Vectors]:
    """Fit P(open | vector) by logistic regression on vectors centred and scaled to a total variance of 1."""
    from sklearn.linear_model import LogisticRegression

    # Some encoders fill only a narrow cone: unscaled, the penalty would weigh more there.
    centre, spread = vectors.mean(axis=0), np.sqrt(vectors.var(axis=0).sum())
    scaled = (vectors - centre) / spread
    model = LogisticRegression(C=_INVERSE_REGULARISATION, max_iter=1000).fit(scaled, is_open)
    weights, bias = model.coef_[0] / spread, model.intercept_[0]

    def probability(others: Vectors) -> Vectors:
        # A sum per row: a matrix product rounds differently with the number of rows.
        p: Vectors = 1 / (1 + np.exp(-(((others - centre) * weights).sum(axis=1) + bias)))
        return p

    return probability
