"""A reward model that costs next to nothing: a bag of words, length and overlap with the prompt, as a function of the product.

`train` writes FOLDER/reward.py, which is a copy of `score` below, and its weights beside it.
"""

from __future__ import annotations

import inspect
import json
from functools import lru_cache
from pathlib import Path

import numpy as np

from examples.real_text.data import SEED, Rows
from seamcurate import RewardFunction
from seamcurate.models import RewardModel

_PENALTIES, _FOLDS, _LEAST = (0.03, 0.1, 0.3, 1.0), 5, 3
"""A word counts where this many answers of the training pairs have it."""


def features(idf: dict[str, float], prompt: str, response: str) -> dict[str, float]:
    """Return the features of an answer: tf-idf of its words, of length 1, its length, and its overlap with the prompt."""
    import math
    import re
    from collections import Counter

    def vector(text: str) -> dict[str, float]:
        counts = Counter(word for word in re.findall(r"\w+", text.lower()) if word in idf)
        values = {word: (1 + math.log(count)) * idf[word] for word, count in counts.items()}
        norm = math.sqrt(sum(value * value for value in values.values())) or 1.0
        return {word: value / norm for word, value in values.items()}

    own, asked = vector(response), vector(prompt)
    length = math.log1p(len(response.split()))
    overlap = sum(value * asked.get(word, 0.0) for word, value in own.items())
    return own | {" length": length, " length²": (length - 3) ** 2, " overlap": 4 * overlap}


def train(pairs: Rows, folder: Path) -> None:
    """Fit the weights by logistic regression on pairs, the penalty by 5-fold cross-validation, and write the function."""
    import math
    import re
    from collections import Counter

    from sklearn.feature_extraction import DictVectorizer
    from sklearn.linear_model import LogisticRegression

    texts = {text for pair in pairs for text in (pair["chosen"], pair["rejected"])}
    texts_of = Counter(word for text in texts for word in set(re.findall(r"\w+", text.lower())))
    idf = {word: math.log(len(texts) / n) + 1 for word, n in sorted(texts_of.items()) if n >= _LEAST}
    vectors = DictVectorizer()
    both = vectors.fit_transform(
        [features(idf, p["prompt"], p[side]) for p in pairs for side in ("chosen", "rejected")]
    )
    differences = both[::2] - both[1::2]
    signs = np.where(np.random.default_rng(SEED).random(len(pairs)) < 0.5, 1, -1)
    rows = differences.multiply(signs[:, None]).tocsr()
    folds = np.random.default_rng(SEED).permutation(len(pairs)) % _FOLDS

    def model(penalty: float, chosen: np.ndarray) -> LogisticRegression:
        return LogisticRegression(C=penalty, fit_intercept=False, max_iter=300).fit(rows[chosen], signs[chosen])

    def loss(penalty: float) -> float:
        margins = [signs[folds == f] * (rows[folds == f] @ model(penalty, folds != f).coef_[0]) for f in range(_FOLDS)]
        return float(np.logaddexp(0, -np.concatenate(margins)).mean())

    weights = model(min(_PENALTIES, key=loss), np.ones(len(pairs), bool)).coef_[0]
    names = vectors.get_feature_names_out()
    folder.mkdir(parents=True, exist_ok=True)
    model = {"idf": idf, "weights": {name: float(value) for name, value in zip(names, weights, strict=True)}}
    (folder / "weights.json").write_text(json.dumps(model), encoding="utf-8")
    (folder / "reward.py").write_text(_CODE.format(features=inspect.getsource(features)), encoding="utf-8")


_CODE = '''\
"""A reward function, written by examples/real_text/words.py."""

from __future__ import annotations

import json
from pathlib import Path

_KNOWN = json.loads((Path(__file__).parent / "weights.json").read_text(encoding="utf-8"))


{features}

def score(prompt: str, response: str) -> float:
    weights = _KNOWN["weights"]
    return sum(value * weights.get(name, 0.0) for name, value in features(_KNOWN["idf"], prompt, response).items())
'''


def rewards(folder: Path, prompts: list[str], answers: list[list[str]]) -> list[list[float]]:
    """Return the rewards of each prompt's answers by the written function, as a recipe's `function` gives them."""
    rewards = _loaded(folder.resolve() / "reward.py").rewards(prompts, answers)
    return [[float("nan") if value is None else value for value in row] for row in rewards]


@lru_cache(maxsize=4)
def _loaded(file: Path) -> RewardModel:
    """Start a function's process once, however often it is asked."""
    return RewardFunction(path=f"{file}:score").load()
