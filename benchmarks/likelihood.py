"""Log-likelihoods of 30 responses after one prompt: seamcurate against evaluation harnesses, engines and loops by hand."""

from __future__ import annotations

import logging
import tempfile
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks import inputs, vllm_process, work
from benchmarks.race import Peer, missing, quickest, race
from seamcurate import CausalLM

BATCH = 8
SIZES, TRIED = (4, 16), 8
"""Batch sizes that are tried for each peer, on so many responses of the first row; the quickest one races."""
Pairs = list[tuple[str, str]]
Ids = list[tuple[list[int], list[int]]]


def padded_loop(model: Any, tokenizer: Any, pairs: Pairs) -> list[float]:
    """Score pairs in batches of eight as they come, padded, with the softmax of every position."""
    import torch

    pad = tokenizer.pad_token_id
    scores: list[float] = []
    with torch.inference_mode():
        for start in range(0, len(pairs), BATCH):
            batch = tokenized(tokenizer, pairs[start : start + BATCH])
            longest = max(len(p) + len(r) for p, r in batch)
            ids = torch.tensor([p + r + [pad] * (longest - len(p) - len(r)) for p, r in batch])
            mask = torch.tensor([[1] * (len(p) + len(r)) + [0] * (longest - len(p) - len(r)) for p, r in batch])
            logprobs = model(input_ids=ids, attention_mask=mask).logits[:, :-1].log_softmax(-1)
            each = logprobs.gather(2, ids[:, 1:, None])[..., 0]
            scores += [float(each[i, len(p) - 1 : len(p) + len(r) - 1].sum()) for i, (p, r) in enumerate(batch)]
    return scores


def tokenized(tokenizer: Any, pairs: Pairs) -> Ids:
    return [(tokenizer(p)["input_ids"], tokenizer(r)["input_ids"]) for p, r in pairs]


def sorted_batches(model: Any, tokenizer: Any, pairs: Pairs, size: int) -> list[float]:
    """Score whole pairs in padded batches of like lengths, with the logits of the responses alone."""
    import torch

    ids = tokenized(tokenizer, pairs)
    scores = [0.0] * len(ids)
    order = sorted(range(len(ids)), key=lambda i: -len(ids[i][0]) - len(ids[i][1]))
    with torch.inference_mode():
        for start in range(0, len(order), size):
            batch = order[start : start + size]
            longest = len(ids[batch[0]][0]) + len(ids[batch[0]][1])
            rows = torch.zeros(len(batch), longest, dtype=torch.long)
            mask = torch.zeros_like(rows)
            for row, i in enumerate(batch):
                both = ids[i][0] + ids[i][1]
                rows[row, : len(both)], mask[row, : len(both)] = torch.tensor(both), 1
            hidden = model.model(input_ids=rows, attention_mask=mask, use_cache=False).last_hidden_state
            for row, i in enumerate(batch):
                prompt, response = ids[i]
                logits = model.lm_head(hidden[row, len(prompt) - 1 : len(prompt) + len(response) - 1])
                scores[i] = _sum(logits, response)
    return scores


def cached_loop(model: Any, tokenizer: Any, rows: list[Pairs], size: int) -> list[float]:
    """Read each prompt once, expand its cache over batches of its responses, of like lengths."""
    import torch

    scores: list[float] = []
    with torch.inference_mode():
        for pairs in rows:
            ids = tokenized(tokenizer, pairs)
            prompt, found = ids[0][0], [0.0] * len(ids)
            order = sorted(range(len(ids)), key=lambda i: -len(ids[i][1]))
            for start in range(0, len(order), size):
                batch = order[start : start + size]
                # Reading responses appends to a cache, which is cut back to the prompt only by copying it.
                if start == 0:
                    first = model.model(input_ids=torch.tensor([prompt]), use_cache=True)
                    last, kept = first.last_hidden_state[0, -1:], first.past_key_values
                cache = _expanded(kept, len(batch))
                longest = len(ids[batch[0]][1])
                read = torch.zeros(len(batch), longest, dtype=torch.long)
                mask = torch.zeros(len(batch), len(prompt) + longest, dtype=torch.long)
                for row, i in enumerate(batch):
                    read[row, : len(ids[i][1])] = torch.tensor(ids[i][1])
                    mask[row, : len(prompt) + len(ids[i][1])] = 1
                hidden = model.model(input_ids=read, attention_mask=mask, past_key_values=cache).last_hidden_state
                for row, i in enumerate(batch):
                    response = ids[i][1]
                    logits = model.lm_head(torch.cat([last, hidden[row, : len(response) - 1]]))
                    found[i] = _sum(logits, response)
            scores += found
    return scores


def _expanded(cache: Any, count: int) -> Any:
    """Return a copy of a prompt's cache, as often as there are responses."""
    import copy

    expanded = copy.deepcopy(cache)
    expanded.batch_repeat_interleave(count)
    return expanded


def _sum(logits: Any, response: list[int]) -> float:
    import torch

    return -float(torch.nn.functional.cross_entropy(logits, torch.tensor(response), reduction="sum"))


def main(scale: float) -> None:
    import torch
    from transformers import AutoModelForCausalLM

    with tempfile.TemporaryDirectory() as folder:
        ours: Any = CausalLM(path=str(inputs.decoder(Path(folder))), dtype="float32", device="cpu").load()
        model = AutoModelForCausalLM.from_pretrained(folder).eval()
        with vllm_process.engine(Path(folder), "generate", torch.get_num_threads()) as engine:
            for prompt_tokens, response_tokens, rows in ((400, 190, 3), (60, 190, 3), (30, 30, 16)):
                rows = max(1, round(rows * scale))
                prompts, answers = inputs.groups(rows, 30, prompt_tokens, response_tokens)
                setting = (
                    f"{rows} × 30 {inputs.source()}, prompts of {prompt_tokens}, responses of {response_tokens} tokens"
                )
                _race(ours, model, engine, prompts, answers, setting)


def _race(
    ours: Any,
    model: Any,
    engine: vllm_process.Engine | None,
    prompts: list[str],
    answers: list[list[str]],
    setting: str,
) -> None:
    tokenizer = ours.tokenizer
    rows = [
        [(f"Question: {prompt}\n\nAnswer:", f" {answer}<|end|>") for answer in some]
        for prompt, some in zip(prompts, answers, strict=True)
    ]
    pairs = [pair for row in rows for pair in row]

    def mine() -> list[float]:
        return [one.logprob for row in ours.logprobs(prompts, answers) for one in row if one is not None]

    def served() -> list[float]:
        ids = tokenized(tokenizer, pairs)
        assert engine is not None
        scores: list[float] = engine.ask("likelihoods", ids=[p + r for p, r in ids], starts=[len(p) for p, _ in ids])
        return scores

    def same(a: list[float], b: list[float]) -> bool:
        return len(a) == len(b) and np.allclose(a, b, rtol=1e-5, atol=1e-3)

    def difference(a: list[float], b: list[float]) -> float:
        return float(np.abs(np.subtract(a, b)).max())

    def by_size(name: str, run: Callable[[int, list[Pairs]], list[float]]) -> tuple[str, Peer[list[float]]]:
        """Choose the batch size that reads some responses of the first row quickest."""
        best = quickest({str(size): lambda size=size: run(size, [rows[0][:TRIED]]) for size in SIZES})  # type: ignore[misc]
        return f"{name}, batch {best}", Peer(lambda: run(int(best), rows))

    peers = [
        by_size("KV-cache loop", lambda size, some: cached_loop(model, tokenizer, some, size)),
        by_size(
            "transformers, length-sorted",
            lambda size, some: sorted_batches(model, tokenizer, [pair for row in some for pair in row], size),
        ),
    ]
    if find_spec("lm_eval") is None:
        missing("likelihood", "lm-eval", "not installed", 'pip install "lm-eval==0.4.13"')
    else:
        peers.append(by_size("lm-eval 0.4.13", _harness(model, tokenizer)))
    if engine is None:
        missing("likelihood", "vLLM on this processor", "not installed", vllm_process.INSTALL)
    else:
        served()
        peers.append(("vLLM on this processor, prompt_logprobs=0", Peer(served)))
    lengths = [
        (len(ids[0][0]), [len(response) for _, response in ids]) for ids in (tokenized(tokenizer, row) for row in rows)
    ]
    todo = work.of_policy(model.config, lengths)
    race("likelihood", setting, mine, dict(peers), same, work=todo, difference=difference)


def _harness(model: Any, tokenizer: Any) -> Callable[[int, list[Pairs]], list[float]]:
    """Return lm-eval's scoring; it sorts by length, and reads a context once where one token follows it."""
    from lm_eval.api.instance import Instance
    from lm_eval.models.huggingface import HFLM

    logging.getLogger("lm_eval").setLevel(logging.ERROR)
    made: dict[int, Any] = {}

    def run(size: int, rows: list[Pairs]) -> list[float]:
        if size not in made:
            made[size] = HFLM(
                pretrained=model,
                tokenizer=tokenizer,
                device="cpu",
                batch_size=size,
                backend="causal",
                logits_cache=True,
            )
        asked = [
            Instance(request_type="loglikelihood", doc={}, arguments=pair, idx=i)
            for i, pair in enumerate(pair for row in rows for pair in row)
        ]
        return [float(score) for score, _ in made[size].loglikelihood(asked, disable_tqdm=True)]

    return run
