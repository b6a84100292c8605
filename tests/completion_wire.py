"""Servers of log-probabilities on loopback, as vLLM and SGLang document them, which score by real weights.

They know what real ones know: token ids. Faults are scripted by `endpoint`; `change` alters the values of the answer.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from endpoint import Endpoint, serving


class Weights:
    """A language model as a server has it: it scores token ids, and nothing of it is seamcurate's."""

    def __init__(self, folder: Path) -> None:
        from transformers import AutoModelForCausalLM

        self.model = AutoModelForCausalLM.from_pretrained(folder).eval()

    def logprobs(self, ids: list[int]) -> list[float]:
        """Return the log-probability of each token but the first."""
        import torch

        with torch.inference_mode():
            logits = self.model(torch.tensor([ids])).logits[0, :-1].log_softmax(-1)
        return logits[range(len(ids) - 1), ids[1:]].tolist()


@contextmanager
def completion_serving(api: str, folder: Path, name: str = "sft", window: int = 4096) -> Iterator[Endpoint]:
    """Serve a policy by one API; `endpoint.change` maps the values of a sequence to those that are answered."""
    weights = Weights(folder)

    def vllm(asked: dict[str, Any]) -> dict[str, Any]:
        assert asked["prompt_logprobs"] == 0 and asked["max_tokens"] == 1
        ids = asked["prompt"]
        values = at.change(weights.logprobs(ids))
        positions = [
            {str(token): {"logprob": value, "rank": 1, "decoded_token": "x"}}
            for token, value in zip(ids[1:], values, strict=False)
        ]
        choice = {"index": 0, "text": "x", "finish_reason": "length", "prompt_logprobs": [None, *positions]}
        return {"id": "cmpl-1", "object": "text_completion", "model": asked["model"], "choices": [choice], "usage": {}}

    def sglang(asked: dict[str, Any]) -> dict[str, Any]:
        assert asked["return_logprob"] is True and asked["top_logprobs_num"] == 0
        ids, start = asked["input_ids"], asked["logprob_start_len"]
        values = [None, *at.change(weights.logprobs(ids))[start:]]
        entries = [[value, token, None] for value, token in zip(values, ids[start:], strict=False)]
        meta = {"prompt_tokens": len(ids), "weight_version": at.version, "input_token_logprobs": entries}
        return {"text": "x", "output_ids": [1], "meta_info": meta}

    with serving() as at:
        at.url = at.url.removesuffix("/v1")
        at.change, at.version = (lambda values: values), "default"
        entry = {"id": name, "object": "model", "owned_by": api, "max_model_len": window}
        at.pages["/v1/models"] = {"object": "list", "data": [entry]}
        at.path, at.complete = {"vllm": ("/v1/completions", vllm), "sglang": ("/generate", sglang)}[api]
        yield at
