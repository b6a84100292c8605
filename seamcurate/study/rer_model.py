"""RER as a reward model of pairs, so that it is judged as the others are (RER Table 5).

Pairs come without a reference, so the relevance of a response to a closed-ended query is QR in place of AR. The scale of
F does not matter within one prompt, because F maps 0 to 0.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from seamcurate.models import Embedder, Prompt, RewardModel
from seamcurate.models.protocols import Responses
from seamcurate.models.template import prompt_text
from seamcurate.score import query_type
from seamcurate.score.rer import length_incentive, repetition_penalty, rer_closed, rer_open, rescale
from seamcurate.step import finite


class RerModel(RewardModel):
    """Score responses by RER, query types from the offline classifier."""

    def __init__(self, embedder: Embedder) -> None:
        self._embedder = embedder
        self._open_probabilities = query_type.fit(embedder)

    def rewards(self, prompts: Sequence[Prompt], responses: Responses) -> list[list[float | None]]:
        """Score each response to its prompt."""
        texts = [prompt_text(prompt) for prompt in prompts]
        queries = self._embedder.embed(texts).astype(np.float64)  # (prompts, dimensions)
        answers = iter(self._embedder.embed([text for group in responses for text in group]).astype(np.float64))
        return [
            [_rer(text, float(query @ next(answers)), probability >= 0.5) for text in group]
            for query, probability, group in zip(queries, self._open_probabilities(texts), responses, strict=True)
        ]


def _rer(text: str, relevance: float, open_ended: bool) -> float | None:
    repetition = repetition_penalty(text)
    if open_ended:
        return finite(rer_open(length_incentive(text), repetition, relevance))
    return finite(rer_closed(repetition, rescale(relevance)))
