"""Log-likelihoods of 30 responses after one prompt: seamcurate, lm-evaluation-harness, and the loop people write."""

from __future__ import annotations

import logging
import tempfile
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks import inputs
from benchmarks.race import race
from seamcurate import CausalLM

BATCH = 8


def padded_loop(model: Any, tokenizer: Any, pairs: list[tuple[str, str]]) -> list[float]:
    """Score pairs in batches of eight as they come, padded, with the softmax of every position."""
    import torch

    pad = tokenizer.pad_token_id
    scores: list[float] = []
    with torch.inference_mode():
        for start in range(0, len(pairs), BATCH):
            batch = [(tokenizer(p)["input_ids"], tokenizer(r)["input_ids"]) for p, r in pairs[start : start + BATCH]]
            longest = max(len(p) + len(r) for p, r in batch)
            ids = torch.tensor([p + r + [pad] * (longest - len(p) - len(r)) for p, r in batch])
            mask = torch.tensor([[1] * (len(p) + len(r)) + [0] * (longest - len(p) - len(r)) for p, r in batch])
            logprobs = model(input_ids=ids, attention_mask=mask).logits[:, :-1].log_softmax(-1)
            each = logprobs.gather(2, ids[:, 1:, None])[..., 0]
            scores += [float(each[i, len(p) - 1 : len(p) + len(r) - 1].sum()) for i, (p, r) in enumerate(batch)]
    return scores


def main(scale: float) -> None:
    from lm_eval.api.instance import Instance
    from lm_eval.models.huggingface import HFLM
    from transformers import AutoModelForCausalLM

    logging.getLogger("lm_eval").setLevel(logging.ERROR)
    with tempfile.TemporaryDirectory() as folder:
        ours = CausalLM(path=str(inputs.decoder(Path(folder))), dtype="float32", device="cpu").load()
        model = AutoModelForCausalLM.from_pretrained(folder).eval()
        peer: Any = HFLM(pretrained=model, tokenizer=ours.tokenizer, device="cpu", batch_size=BATCH, backend="causal")  # type: ignore[attr-defined]
        for prompt_tokens, response_tokens, rows in ((400, 190, 3), (60, 190, 3), (30, 30, 16)):
            rows = max(1, round(rows * scale))
            prompts, answers = inputs.groups(rows, 30, prompt_tokens, response_tokens)
            pairs = [
                (f"Question: {p}\n\nAnswer:", f" {a}<|end|>")
                for p, some in zip(prompts, answers, strict=True)
                for a in some
            ]
            asked = [
                Instance(request_type="loglikelihood", doc={}, arguments=pair, idx=i) for i, pair in enumerate(pairs)
            ]
            setting = (
                f"{rows} × 30 {inputs.source()}, prompts of {prompt_tokens}, responses of {response_tokens} tokens"
            )

            def mine(prompts: list[str] = prompts, answers: list[list[str]] = answers) -> list[float]:
                return [one.logprob for row in ours.logprobs(prompts, answers) for one in row if one is not None]

            def harness(asked: list[Any] = asked) -> list[float]:
                return [float(score) for score, _ in peer.loglikelihood(asked, disable_tqdm=True)]

            def loop(pairs: list[tuple[str, str]] = pairs) -> list[float]:
                return padded_loop(model, ours.tokenizer, pairs)

            def same(a: list[float], b: list[float]) -> bool:
                return len(a) == len(b) and np.allclose(a, b, rtol=1e-5, atol=1e-3)

            race("likelihood", f"lm-eval 0.4.13, batch {BATCH}", mine, harness, same, setting)
            race("likelihood", f"padded loop, batch {BATCH}", mine, loop, same, setting)
