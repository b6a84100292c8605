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

    def sample(
        self, ids: list[int], limit: int, temperature: float, top_p: float, seed: int, ends: list[int], processed: bool
    ) -> tuple[list[int], list[float], str]:
        """Return an answer's tokens with their log-probabilities, at temperature 1 unless `processed`, and why it ends."""
        import torch

        assert top_p == 1
        generator = torch.Generator().manual_seed(seed)
        drawn: list[int] = []
        values: list[float] = []
        while len(drawn) < limit:
            with torch.inference_mode():
                logits = self.model(torch.tensor([ids + drawn])).logits[0, -1]
            cooled = (logits / temperature).log_softmax(-1) if temperature else logits.log_softmax(-1)
            token = (
                int(torch.multinomial(cooled.exp(), 1, generator=generator)) if temperature else int(logits.argmax())
            )
            drawn.append(token)
            values.append(float((cooled if processed else logits.log_softmax(-1))[token]))
            if token in ends:
                return drawn, values, "stop"
        return drawn, values, "length"


@contextmanager
def completion_serving(api: str, folder: Path, name: str = "sft", window: int = 4096) -> Iterator[Endpoint]:
    """Serve a policy by one API; `endpoint.change` maps the values of a sequence to those that are answered.

    With `endpoint.processed` the log-probabilities of sampled tokens are those at the sampling temperature, and with
    `endpoint.trimmed` the token that ended an answer is left out.
    """
    weights = Weights(folder)

    def sampled(prompt: list[int], limit: int, asked: dict[str, Any]) -> tuple[list[int], list[float], str]:
        plain = {
            "top_k": -1,
            "min_p": 0.0,
            "repetition_penalty": 1.0,
            "presence_penalty": 0.0,
            "frequency_penalty": 0.0,
        }
        assert plain.items() <= asked.items() and asked["n"] == 1 and asked["ignore_eos"] is False
        seed = asked.get("seed", asked.get("sampling_seed"))
        settings = (asked["temperature"], asked["top_p"], seed, asked["stop_token_ids"], at.processed)
        ids, values, finish = weights.sample(prompt, limit, *settings)
        cut = -1 if at.trimmed and finish == "stop" else None
        return ids[:cut], at.change(values)[:cut], finish

    def vllm_answer(asked: dict[str, Any]) -> dict[str, Any]:
        assert asked["logprobs"] == 0 and asked["return_tokens_as_token_ids"] is True
        ids, values, finish = sampled(asked["prompt"], asked["max_tokens"], asked)
        logprobs = {"tokens": [f"token_id:{token}" for token in ids], "token_logprobs": values, "top_logprobs": []}
        choice = {"index": 0, "text": "x", "finish_reason": finish, "logprobs": logprobs}
        return {"id": "cmpl-1", "object": "text_completion", "model": asked["model"], "choices": [choice], "usage": {}}

    def sglang_answer(asked: dict[str, Any]) -> dict[str, Any]:
        assert asked["return_logprob"] is True and asked["top_logprobs_num"] == 0
        params = asked["sampling_params"]
        ids, values, finish = sampled(asked["input_ids"], params["max_new_tokens"], params)
        entries = [[value, token, None] for value, token in zip(values, ids, strict=True)]
        meta = {"finish_reason": {"type": finish}, "weight_version": at.version, "output_token_logprobs": entries}
        return {"text": "x", "output_ids": ids, "meta_info": meta}

    def vllm(asked: dict[str, Any]) -> dict[str, Any]:
        if "prompt_logprobs" not in asked:
            return vllm_answer(asked)
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
        if "logprob_start_len" not in asked:
            return sglang_answer(asked)
        assert asked["return_logprob"] is True and asked["top_logprobs_num"] == 0
        ids, start = asked["input_ids"], asked["logprob_start_len"]
        values = [None, *at.change(weights.logprobs(ids))[start:]]
        entries = [[value, token, None] for value, token in zip(values, ids[start:], strict=False)]
        meta = {"prompt_tokens": len(ids), "weight_version": at.version, "input_token_logprobs": entries}
        return {"text": "x", "output_ids": [1], "meta_info": meta}

    with serving() as at:
        at.url = at.url.removesuffix("/v1")
        at.change, at.version = (lambda values: values), "default"
        at.processed = at.trimmed = False
        entry = {"id": name, "object": "model", "owned_by": api, "max_model_len": window}
        at.pages["/v1/models"] = {"object": "list", "data": [entry]}
        at.path, at.complete = {"vllm": ("/v1/completions", vllm), "sglang": ("/generate", sglang)}[api]
        yield at
