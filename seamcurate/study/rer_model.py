"""RER as a reward model of pairs, so that it is judged as the others are (RER Table 5).

Pairs come without a reference, so a closed-ended query's relevance is QR in place of AR; within one prompt F's scale
decides nothing, since it maps 0 to 0.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from seamcurate.models import Embedder, Prompt
from seamcurate.models.protocols import Responses
from seamcurate.models.template import prompt_text
from seamcurate.score import query_type
from seamcurate.score.rer import length_incentive, repetition_penalty, rer_closed, rer_open, rescale
from seamcurate.step import finite


class RerModel:
    """Score responses by RER, query types from the offline classifier."""

    def __init__(self, embedder: Embedder) -> None:
        self._embedder = embedder
        self._open = query_type.fit(embedder)

    def rewards(self, prompts: Sequence[Prompt], responses: Responses) -> list[list[float | None]]:
        """Score each response to its prompt."""
        asked = [prompt_text(prompt) for prompt in prompts]
        queries = self._embedder.embed(asked).astype(np.float64)
        answers = self._embedder.embed([text for group in responses for text in group]).astype(np.float64)
        scored, place = [], 0
        for query, probability, group in zip(queries, self._open(asked), responses, strict=True):
            row: list[float | None] = []
            for text in group:
                relevance, place = float(query @ answers[place]), place + 1
                repetition = repetition_penalty(text)
                if probability >= 0.5:
                    row.append(finite(rer_open(length_incentive(text), repetition, relevance)))
                else:
                    row.append(finite(rer_closed(repetition, rescale(relevance))))
            scored.append(row)
        return scored
