"""SEAM on numbers: misjudgement ε, weight w, and their sum over worse answers (SEAM §4, Eq. 2)."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Literal, TypeAlias

import numpy as np
import numpy.typing as npt

Doubles: TypeAlias = npt.NDArray[np.float64]
Weighting: TypeAlias = Literal["geometric", "logprob", "raw", "uniform"]


def misjudgement(golden: float, worse: float, binary: bool = False) -> float:
    """Return ε = max(R(I∘r*) − R(I∘r), 0) (SEAM Eq. 2).

    Of `binary` rewards, 0 and 1, that difference is never above 0 where the golden response passes: there ε is 1 for a
    false positive, a worse answer with reward 1. Where the golden response fails, there is nothing to compare with: NaN.
    """
    if binary:
        return 1.0 if (golden, worse) == (1, 1) else 0.0 if (golden, worse) == (1, 0) else math.nan
    return max(worse - golden, 0.0)


def weight(logprob: Doubles, tokens: Doubles, likelihood: Weighting) -> Doubles:
    """Return candidates' weights from their log-probabilities; a candidate of unknown log-probability, NaN, has weight NaN.

    `geometric` is the per-token geometric mean, exp(logP/len). `logprob` is −logP/len, the length penalty of
    SEAM §4.2 taken literally: it gives *unlikely* answers more weight. `raw` is P and underflows; `uniform` is 1.
    """
    length = np.maximum(tokens, 1)
    if likelihood == "geometric":
        return np.exp(logprob / length)
    if likelihood == "logprob":
        return -logprob / length
    return np.exp(logprob) if likelihood == "raw" else np.ones_like(logprob)


def discrepancy(weights: Sequence[float], misjudgements: Sequence[float], k: int | None = None) -> float:
    """Return Σ w·ε over the candidates (SEAM Eq. 2), at least 0; high is bad.

    With `k` the sum is scaled to mean·k, so that rows with fewer candidates than `k` compare.

    Args:
        weights: The likelihood weight of each candidate, in [0, 1].
        misjudgements: ε of each candidate in the same order: its reward minus the golden one's, at least 0.
        k: How many candidates to scale to.

    Example:
        >>> from seamcurate import discrepancy
        >>> discrepancy([0.5, 0.25], [2.0, 0.0]), discrepancy([0.5, 0.25], [2.0, 0.0], k=30)
        (1.0, 15.0)
    """
    total = math.fsum(w * e for w, e in zip(weights, misjudgements, strict=True))
    return total if k is None else total / len(weights) * k
