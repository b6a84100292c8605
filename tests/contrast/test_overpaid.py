"""Words that a reward pays for, against plain least squares and against what was planted."""

from __future__ import annotations

import random

import numpy as np
import pytest

from seamcurate.contrast.overpaid import overpaid_words

WORDS = [
    "sort",
    "order",
    "list",
    "array",
    "queue",
    "line",
    "fast",
    "quick",
    "merge",
    "join",
    "cache",
    "store",
    "the",
    "of",
    "it",
    "and",
    "to",
    "by",
    "from",
    "with",
]


def written(count, seed=0, extra=("certainly", "absolutely")):
    """Write texts of 5 to 40 words; each of the extra words stands in a third of them."""
    draw = random.Random(seed)
    texts = []
    for _ in range(count):
        pieces = draw.choices(WORDS, k=draw.randint(5, 40))
        pieces += [word for word in extra if draw.random() < 1 / 3]
        draw.shuffle(pieces)
        texts.append(" ".join(pieces).capitalize() + ".")
    return texts


def test_a_word_that_is_paid_for_is_first_and_length_is_not_a_word():
    texts = written(300)
    draw = random.Random(1)
    rewards = [0.2 * len(text.split()) + 0.8 * ("certainly" in text.lower()) + draw.gauss(0, 0.3) for text in texts]
    table = overpaid_words(texts, rewards)
    assert table["word"][0].as_py() == "certainly" and abs(table["coefficient"][0].as_py() - 0.8) < 0.1
    paid = [row["word"] for row in table.to_pylist() if row["q"] <= 0.001]
    # Without length, every word would be paid for: longer texts hold more of them.
    assert paid == ["certainly"]
    assert table["t"].to_pylist() == sorted(table["t"].to_pylist(), reverse=True)


@pytest.mark.parametrize("grouped", [False, True])
def test_it_is_the_least_squares_of_all_columns_together(grouped):
    texts = written(80, seed=2)
    draw = np.random.default_rng(0)
    groups = [i % 20 for i in range(80)] if grouped else None
    rewards = draw.normal(size=80) + (np.array(groups) if grouped else 0)
    table = overpaid_words(texts, rewards.tolist(), groups)
    lengths = np.array([len(text.split()) for text in texts], float)
    levels = np.eye(20)[groups] if grouped else np.ones((80, 1))
    for row in table.to_pylist():
        holds = np.array([row["word"] in text.lower().strip(".").split() for text in texts], float)
        design = np.column_stack([levels, lengths, np.log1p(lengths), holds])
        values, *_ = np.linalg.lstsq(design, rewards, rcond=None)
        rest = rewards - design @ values
        inverse = np.linalg.inv(design.T @ design)
        error = np.sqrt(rest @ rest / (80 - design.shape[1]) * inverse[-1, -1])
        assert row["texts"] == holds.sum()
        assert np.isclose(row["coefficient"], values[-1]) and np.isclose(row["t"], values[-1] / error)
    assert table.num_rows == len(WORDS) + 2


def test_within_a_prompt_the_words_of_well_paid_prompts_do_not_count():
    draw = random.Random(3)
    texts, rewards, prompts = [], [], []
    for prompt in range(60):
        topic = "sea" if prompt % 2 else "hill"
        for _ in range(4):
            polite = draw.random() < 0.5
            texts.append(f"{topic} " + " ".join(draw.choices(WORDS, k=8)) + (" please" if polite else " again"))
            rewards.append(5.0 * (topic == "sea") + 0.5 * polite + draw.gauss(0, 0.1))
            prompts.append(f"prompt {prompt}")
    everywhere = overpaid_words(texts, rewards)["word"].to_pylist()
    within = overpaid_words(texts, rewards, prompts)["word"].to_pylist()
    assert everywhere[0] == "sea" and within[0] == "please" and "sea" not in within


def test_order_and_missing_rewards_change_nothing():
    texts = written(60, seed=4)
    rewards = [float(len(text) % 7) for text in texts]
    groups = [i // 3 for i in range(60)]
    order = list(range(60))
    random.Random(5).shuffle(order)
    expected = overpaid_words(texts, rewards, groups).to_pylist()
    mixed = overpaid_words(
        [*(texts[i] for i in order), None, "no reward", "not a number"],
        [*(rewards[i] for i in order), 1.0, None, float("nan")],
        [*(groups[i] for i in order), 0, 1, 2],
    ).to_pylist()
    assert [row["word"] for row in mixed] == [row["word"] for row in expected]
    for row, other in zip(mixed, expected, strict=True):
        assert np.allclose(
            [row[k] for k in ("texts", "coefficient", "t", "q")], [other[k] for k in ("texts", "coefficient", "t", "q")]
        )


def test_rewards_that_do_not_vary_pay_for_no_word():
    texts = written(30)
    assert overpaid_words(texts, [1.0] * 30).num_rows == 0
    assert overpaid_words(texts[:3], [1.0, 2.0, 3.0]).num_rows == 0
    assert overpaid_words([], []).num_rows == 0
    # As many groups as texts: nothing can be compared.
    assert overpaid_words(texts, [float(i) for i in range(30)], list(range(30))).num_rows == 0
    with pytest.raises(ValueError, match="30 texts have 1 rewards"):
        overpaid_words(texts, [1.0])
