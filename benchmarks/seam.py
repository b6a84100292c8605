"""SEAM_Contrast whole, rewards and then likelihoods of the misjudged: seamcurate's steps against a padded loop."""

from __future__ import annotations

import math
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from benchmarks import inputs, work
from benchmarks.likelihood import BATCH, padded_loop
from benchmarks.race import Peer, Work, race
from seamcurate import CausalLM, SequenceClassifier, seam


def padded_rewards(model: Any, tokenizer: Any, texts: list[str]) -> list[float]:
    """Score texts in batches of eight as they come, padded."""
    import torch

    scores: list[float] = []
    with torch.inference_mode():
        for start in range(0, len(texts), BATCH):
            batch = tokenizer(texts[start : start + BATCH], padding=True, return_tensors="pt")
            scores += model(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"]).logits[:, 0].tolist()
    return scores


def main(scale: float) -> None:
    from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification

    with tempfile.TemporaryDirectory() as name:
        places = {"policy": Path(name) / "policy", "reward": Path(name) / "reward"}
        inputs.decoder(places["policy"])
        inputs.decoder(places["reward"], labels=1, seed=1)
        policy = CausalLM(path=str(places["policy"]), dtype="float32", device="cpu")
        reward = SequenceClassifier(path=str(places["reward"]), dtype="float32", device="cpu")
        models = [
            AutoModelForCausalLM.from_pretrained(places["policy"]).eval(),
            AutoModelForSequenceClassification.from_pretrained(places["reward"]).eval(),
        ]
        tokenizer = inputs.tokenizer()
        loaded = reward.load()
        steps = [step.load(Path(name)) for step in seam("contrast", policy=policy, reward=reward)]
        for prompt_tokens, response_tokens, rows in ((400, 190, 3), (60, 60, 6)):
            rows = max(1, round(rows * scale))
            prompts, answers = inputs.groups(rows, 31, prompt_tokens, response_tokens)
            # The golden response is the eleventh best of 31: a third of the others are misjudged.
            for some, scores in zip(answers, loaded.rewards(prompts, answers), strict=True):
                some.insert(0, some.pop(sorted(range(31), key=lambda i: -float(scores[i] or 0))[10]))
            sets = [[{"source_row_id": i, "response": text} for i, text in enumerate(some[1:])] for some in answers]
            table = pa.table({"prompt": prompts, "response": [some[0] for some in answers], "worse_contrast": sets})

            def mine(table: pa.Table = table) -> list[float]:
                for step in steps:
                    for column, values in zip((made := step(table)).column_names, made.columns, strict=True):
                        table = table.append_column(column, values)
                return [float(value) for value in table["seam_contrast"].to_pylist()]

            def theirs(prompts: list[str] = prompts, answers: list[list[str]] = answers) -> list[float]:
                found = []
                for prompt, some in zip(prompts, answers, strict=True):
                    asked = f"Question: {prompt}\n\nAnswer:"
                    golden, *worse = padded_rewards(
                        models[1], tokenizer, [f"{asked} {answer}<|end|>" for answer in some]
                    )
                    logprobs = padded_loop(models[0], tokenizer, [(asked, f" {answer}<|end|>") for answer in some[1:]])
                    lengths = [len(tokenizer(f" {answer}<|end|>")["input_ids"]) for answer in some[1:]]
                    found.append(
                        -sum(
                            math.exp(logprob / length) * max(score - golden, 0)
                            for logprob, length, score in zip(logprobs, lengths, worse, strict=True)
                        )
                    )
                return found

            def same(a: list[float], b: list[float]) -> bool:
                return bool(np.allclose(a, b, rtol=1e-3, atol=1e-6))

            setting = f"{rows} × 30 {inputs.source()}, a third misjudged, prompts of {prompt_tokens}, responses of {response_tokens} tokens"
            race(
                "seam",
                setting,
                mine,
                {f"padded loop over both models, batch {BATCH}": Peer(theirs)},
                same,
                work=_work(models, tokenizer, prompts, answers),
            )


def _work(models: list[Any], tokenizer: Any, prompts: list[str], answers: list[list[str]]) -> Work:
    """Return the work of rewards of all and of the policy's log-probabilities of ten, as many as are misjudged."""
    counted = [
        (
            len(tokenizer(f"Question: {prompt}\n\nAnswer:")["input_ids"]),
            [len(tokenizer(f" {answer}<|end|>")["input_ids"]) for answer in some],
        )
        for prompt, some in zip(prompts, answers, strict=True)
    ]
    rewards = work.of_decoder_rewards(models[1].config, counted)
    misjudged = work.of_policy(models[0].config, [(prompt, responses[1:11]) for prompt, responses in counted])
    return Work(rewards.flops + misjudged.flops, rewards.token_ratio)
