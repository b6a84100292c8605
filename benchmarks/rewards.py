"""Rewards of 31 responses to one prompt: seamcurate against transformers' text-classification pipeline."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks import inputs
from benchmarks.race import race
from seamcurate import SequenceClassifier

BATCH = 8


def main(scale: float) -> None:
    from transformers import pipeline

    with tempfile.TemporaryDirectory() as folder:
        for kind in ("decoder", "encoder"):
            place = Path(folder) / kind
            made = inputs.decoder(place, labels=1) if kind == "decoder" else inputs.encoder(place)
            ours = SequenceClassifier(path=str(made), dtype="float32", device="cpu").load()
            for prompt_tokens, response_tokens, rows in ((300, 120, 3), (40, 60, 8)):
                rows = max(1, round(rows * scale))
                prompts, answers = inputs.groups(rows, 31, prompt_tokens, response_tokens)
                end = "<|end|>" if kind == "decoder" else ""
                texts = [
                    f"Question: {p}\n\nAnswer: {a}{end}" for p, some in zip(prompts, answers, strict=True) for a in some
                ]
                setting = f"{kind}, {rows} × 31 {inputs.source()}, prompts of {prompt_tokens}, responses of {response_tokens} tokens"

                def mine(
                    prompts: list[str] = prompts, answers: list[list[str]] = answers, ours: Any = ours
                ) -> list[Any]:
                    return [one for row in ours.rewards(prompts, answers) for one in row]

                def same(a: list[float], b: list[float]) -> bool:
                    return len(a) == len(b) and np.allclose(a, b, atol=1e-4)

                for size in (BATCH, 1):
                    peer = pipeline(
                        "text-classification",
                        model=str(made),
                        device="cpu",
                        batch_size=size,
                        function_to_apply="none",
                    )

                    def theirs(texts: list[str] = texts, peer: Any = peer) -> list[float]:
                        return [float(one["score"]) for one in peer(texts, truncation=True)]

                    race("rewards", f"pipeline, batch {size}", mine, theirs, same, setting)
