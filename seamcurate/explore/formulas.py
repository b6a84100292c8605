"""The formula of each family of columns, for the page's help. Sources: SEAM §4, RER §3, and `docs/reference/columns.md`."""

from __future__ import annotations

_FORMULAS = {
    "seam_policy": "−(k / n) · Σ count · max(R(I∘r*) − R(I∘r), 0) over the policy's own n samples r*",
    "discrepancy_policy": "(k / n) · Σ count · max(R(I∘r*) − R(I∘r), 0) over the policy's own n samples r*",
    "seam_": "−(k / n) · Σ w · max(R(I∘r*) − R(I∘r), 0) over the n worse answers r*; by default w = exp(log P(r*|I) / tokens)",
    "discrepancy_": "(k / n) · Σ w · max(R(I∘r*) − R(I∘r), 0) over the n worse answers r*; by default w = exp(log P(r*|I) / tokens)",
    "misjudged_": "answers r* with R(I∘r*) > R(I∘r) / answers that have a reward",
    "candidates_": "how many answers of the set have a reward, and a likelihood where one is needed",
    "rer_length": "LI = words of the response / 100",
    "rer_repetition": "RP = distinct trigrams / trigrams of the response",
    "rer_query_relevance": "QR = M(query) · M(response), M the encoder",
    "rer_reference_relevance": "AR = M(reference) · M(response), M the encoder",
    "rer": "LI · RP · QR for an open-ended query, RP · F(AR) for a closed-ended one; F is linear",
    "reward": "R(I∘r): the reward model's score of the golden response",
    "baseline_perplexity": "exp(−log P(r|I) / tokens) of the golden response under the base model",
    "rollout_pass_rate": "samples with reward ≥ threshold / samples that have a reward",
    "rollout_zero_advantage": "whether all samples have the same reward: GRPO then has no gradient",
    "rollout_above_golden": "samples with R(I∘r*) > R(I∘r) / samples that have a reward",
    "hacked_policy": "samples that the reward passes and the truth does not / samples that have both",
    "duplicate_similarity": "cosine of the prompt's embedding with that of the row it repeats",
    "disagreement": "standard deviation of the members' rewards of the golden response",
    "projection_": "a layout that keeps near prompts near; distances between groups mean nothing",
}
"""Formulas by the beginning of a column's name; the longest beginning that fits is taken."""


def formula(name: str, made_by: str) -> str:
    """Return a column's formula; empty where it has none of its own, or where the source has the column."""
    if made_by == "source":
        return ""
    fitting = [start for start in _FORMULAS if name == start or (name.startswith(start) and start.endswith("_"))]
    return _FORMULAS[max(fitting, key=len)] if fitting else ""
