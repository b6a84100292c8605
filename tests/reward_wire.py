"""Servers of rewards on loopback, as vLLM, SGLang and OpenRLHF document them, which score by real weights.

They know what real ones know: token ids, or texts that their own tokenizer reads. Faults are scripted by `endpoint`.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from endpoint import Endpoint, serving


class Weights:
    """A classifier as a server has it: it scores token ids, and nothing of it is seamcurate's."""

    def __init__(self, folder: Path) -> None:
        from transformers import AutoModelForSequenceClassification, AutoTokenizer

        self.model = AutoModelForSequenceClassification.from_pretrained(folder).eval()
        self.tokenizer = AutoTokenizer.from_pretrained(folder)

    def logits(self, ids: list[int]) -> list[float]:
        import torch

        with torch.inference_mode():
            return self.model(torch.tensor([ids])).logits[0].tolist()


@contextmanager
def reward_serving(api: str, folder: Path, name: str = "rm", window: int = 4096) -> Iterator[Endpoint]:
    """Serve a classifier by one API; `endpoint.url` is its address, `endpoint.probs` changes what is answered."""
    weights = Weights(folder)

    def changed(logits: list[float]) -> list[float]:
        return [at.change(value) for value in logits]

    def vllm(asked: dict[str, Any]) -> dict[str, Any]:
        assert asked["use_activation"] is False
        rows = [changed(weights.logits(ids)) for ids in asked["input"]]
        data = [{"index": i, "label": None, "probs": row, "num_classes": len(row)} for i, row in enumerate(rows)]
        return {"object": "list", "model": asked["model"], "data": data[::-1], "usage": {}}

    def sglang(asked: dict[str, Any]) -> dict[str, Any]:
        rows = [changed(weights.logits(ids)) for ids in asked["input"]]
        data = [{"object": "embedding", "index": i, "embedding": row} for i, row in enumerate(rows)]
        return {"object": "list", "model": str(folder), "data": data, "usage": {}}

    def openrlhf(asked: dict[str, Any]) -> dict[str, Any]:
        read = [weights.tokenizer(text, add_special_tokens=False)["input_ids"] for text in asked["query"]]
        rewards = [changed(weights.logits(ids))[0] for ids in read]
        return {"rewards": rewards, "scores": rewards, "extra_logs": {"dummy_scores": rewards}}

    with serving() as at:
        at.url = at.url.removesuffix("/v1")
        at.change = lambda value: value
        if api != "openrlhf":
            at.pages["/v1/models"] = {"object": "list", "data": [{"id": name, "max_model_len": window}]}
        at.path, at.complete = {
            "vllm": ("/classify", vllm),
            "sglang": ("/v1/embeddings", sglang),
            "openrlhf": ("/get_reward", openrlhf),
        }[api]
        yield at
