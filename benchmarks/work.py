"""How many floating-point operations a model needs for some texts, from its shape alone.

A multiplication and an addition count as two. Counted are linear layers and attention, each token that is needed once; not
counted are norms, activations and softmax, which are no matrix products. Attention is counted over the tokens that a token
sees, so that work on masked positions is no work done.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

from benchmarks.race import Work

Lengths = Sequence[tuple[int, Sequence[int]]]
"""The tokens of each prompt, and of each of its responses."""


def of_policy(config: Any, lengths: Lengths) -> Work:
    """Return the work of log-probabilities: a response's last token is predicted, never read."""
    read = [(prompt, [response - 1 for response in responses]) for prompt, responses in lengths]
    predicted = sum(sum(responses) for _, responses in lengths)
    return Work(_decoder(config, read) + 2 * config.hidden_size * config.vocab_size * predicted, token_ratio(lengths))


def of_decoder_rewards(config: Any, lengths: Lengths) -> Work:
    """Return the work of rewards by a decoder: all tokens are read, and the head reads one of each response."""
    heads = 2 * config.hidden_size * sum(len(responses) for _, responses in lengths)
    return Work(_decoder(config, lengths) + heads, token_ratio(lengths))


def of_encoder(config: Any, lengths: Iterable[int], pooler: bool) -> Work:
    """Return the work of a BERT on texts of so many tokens; `pooler` says whether it has the layer before its head."""
    width, inner = config.hidden_size, config.intermediate_size
    lengths = list(lengths)
    layer = sum(length * (8 * width**2 + 4 * width * inner) + 4 * width * length**2 for length in lengths)
    return Work(config.num_hidden_layers * layer + pooler * len(lengths) * 2 * width**2)


def of_samples(config: Any, prompts: Sequence[int], draws: int, tokens: int) -> Work:
    """Return the work of a thousand sampled tokens; each prompt is read once, and each sampled token but the last."""
    sampled = len(prompts) * draws * tokens
    flops = _decoder(config, [(prompt, [tokens - 1] * draws) for prompt in prompts])
    return Work((flops + 2 * config.hidden_size * config.vocab_size * sampled) / sampled * 1000)


def of_products(queries: int, vectors: int, width: int) -> Work:
    """Return the work of every inner product of two sets of vectors."""
    return Work(2.0 * queries * vectors * width)


def token_ratio(lengths: Lengths) -> float:
    """Return tokens of all pairs over tokens where each prompt is read once: what sharing prompts alone can give."""
    apart = sum(prompt * len(responses) + sum(responses) for prompt, responses in lengths)
    return apart / sum(prompt + sum(responses) for prompt, responses in lengths)


def _decoder(config: Any, lengths: Lengths) -> float:
    width, heads = config.hidden_size, config.num_attention_heads
    head = getattr(config, "head_dim", None) or width // heads
    linear = 2 * heads * head * width + 2 * config.num_key_value_heads * head * width
    linear += 3 * width * config.intermediate_size
    flops = 0.0
    for prompt, responses in lengths:
        # Tokens that each token sees, itself included.
        seen = prompt * (prompt + 1) / 2 + sum(n * prompt + n * (n + 1) / 2 for n in responses)
        flops += 2 * linear * (prompt + sum(responses)) + 4 * heads * head * seen
    return config.num_hidden_layers * flops
