"""Words that a reward pays for: each word's share in the rewards of texts that hold it, with length taken off.

A word's coefficient is what texts with it are paid more than texts of the same length without it. Words that come together
share it: the table names suspects, and proves none of them.
"""

from __future__ import annotations

import math
from collections.abc import Hashable, Sequence

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from seamcurate import words

SCHEMA = pa.schema(
    [
        ("word", pa.string()),
        ("texts", pa.int32()),
        ("coefficient", pa.float64()),
        ("t", pa.float64()),
        ("q", pa.float64()),
    ]
)


def overpaid_words(
    texts: Sequence[str | None],
    rewards: Sequence[float | None],
    groups: Sequence[Hashable] | None = None,
    min_texts: int = 5,
) -> pa.Table:
    """Regress rewards on each word, on length, and on the text's group; the best-paid words come first.

    Each word has a regression of its own (a partial t statistic): reward ~ group + words + log(1 + words) + holds the word.
    Case does not count, and a word counts once in a text. The result is the same whatever the order of the texts.

    Args:
        texts: Answers; None is left out.
        rewards: Their rewards, one a text; None and NaN are left out.
        groups: What each text belongs to, such as its prompt. Only texts of the same group are compared then, so that the
            words of a prompt that is well paid as a whole do not count. Without it, all texts are compared.
        min_texts: Words in fewer texts are not tested, nor are words that fewer texts lack.

    Returns:
        A row a word, sorted by t, highest first: `word` in lower case; `texts`, how many hold it; `coefficient`, by how much
        the reward of a text with it is higher at the same length and in the same group; `t`, that over its standard error; `q`,
        the share of false finds among the words up to this one (Benjamini and Hochberg 1995, one-sided, normal
        approximation). A reward pays for a word where t is above 0 and q small, say at most .05. No rows where the rewards do
        not vary, or there are fewer than four texts.

    Raises:
        ValueError: There are not as many rewards, or groups, as texts.

    Example:
        >>> texts = ["a lake indeed", "a lake again", "a hill indeed", "a hill once again", "the sea indeed", "the sea"]
        >>> table = overpaid_words(texts, [2.1, 1.0, 2.2, 1.3, 2.0, 0.9], min_texts=2)
        >>> table["word"].to_pylist()[0], round(table["coefficient"][0].as_py(), 2)
        ('indeed', 1.1)
    """
    if len(rewards) != len(texts) or (groups is not None and len(groups) != len(texts)):
        raise ValueError(f"{len(texts)} texts have {len(rewards)} rewards; give one a text")
    kept = [
        (text, float(reward), i if groups is None else groups[i])
        for i, (text, reward) in enumerate(zip(texts, rewards, strict=True))
        if text is not None and reward is not None and math.isfinite(reward)
    ]
    text_words = [[piece.lower() for piece in words.split(text) if piece[0].isalnum()] for text, _, _ in kept]
    group_numbers: dict[Hashable, int] = {}
    group = np.array(
        [0 if groups is None else group_numbers.setdefault(key, len(group_numbers)) for _, _, key in kept], np.int64
    )
    group_sizes = np.bincount(group)
    lengths = np.array([len(pieces) for pieces in text_words], np.float64)

    def within(values: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
        """Subtract each group's mean, (texts,)."""
        return values - (np.bincount(group, values) / group_sizes)[group]

    freedom = len(kept) - len(group_sizes) - 3
    if freedom < 1:
        return SCHEMA.empty_table()
    paid = within(np.array([reward for _, reward, _ in kept]))
    # Orthonormal columns that span length within groups: (texts, at most 2).
    basis, sizes, _ = np.linalg.svd(np.column_stack([within(lengths), within(np.log1p(lengths))]), full_matrices=False)
    basis = basis[:, sizes > 1e-9 * max(1.0, sizes[0])]
    paid = paid - basis @ (basis.T @ paid)
    vocabulary = sorted({word for pieces in text_words for word in pieces})
    numbers = {word: i for i, word in enumerate(vocabulary)}
    # One entry a text and distinct word.
    holder = np.repeat(np.arange(len(kept)), [len(set(pieces)) for pieces in text_words])
    word = np.array([numbers[piece] for pieces in text_words for piece in sorted(set(pieces))], np.int64)
    count = len(vocabulary)
    texts_with = np.bincount(word, minlength=count)
    pairs, pair_counts = np.unique(word * len(group_sizes) + group[holder], return_counts=True)
    spread = texts_with - np.bincount(
        pairs // len(group_sizes), pair_counts**2 / group_sizes[pairs % len(group_sizes)], minlength=count
    )
    for direction in basis.T:
        spread = spread - np.bincount(word, direction[holder], minlength=count) ** 2
    together = np.bincount(word, paid[holder], minlength=count)
    total = float(paid @ paid)
    tested = (texts_with >= min_texts) & (len(kept) - texts_with >= min_texts) & (spread > 1e-9)
    if total <= 1e-18 * len(kept) or not tested.any():
        return SCHEMA.empty_table()
    coefficients = together[tested] / spread[tested]
    unexplained = np.maximum(total - coefficients * together[tested], 1e-12 * total)
    t = coefficients / np.sqrt(unexplained / freedom / spread[tested])
    tested_words = np.array(vocabulary, object)[tested]
    order = np.lexsort((tested_words, -t))
    p = np.array([0.5 * math.erfc(value / math.sqrt(2)) for value in t[order]])
    q = np.minimum.accumulate((p * len(p) / np.arange(1, len(p) + 1))[::-1])[::-1]
    columns = (
        tested_words[order].tolist(),
        texts_with[tested][order],
        coefficients[order],
        t[order],
        np.minimum(q, 1.0),
    )
    return pa.table(
        [pa.array(values, field.type) for values, field in zip(columns, SCHEMA, strict=True)], schema=SCHEMA
    )
