"""Everything that only a GPU can show, in under eight minutes: correctness, speed, memory, as one JSON file.

    python -m benchmarks.gpu --out gpu.json [--toy] [--only SECTION …]

It needs torch, transformers and NumPy, and what seamcurate's model layer imports (pydantic, pyarrow). All weights are random and
made on the device: no download, no disk. One rule: each section is a process of its own with a limit of time; what fails or takes
too long loses no other's result.
"""

from __future__ import annotations

import argparse
import gc
import importlib.util
import json
import math
import os
import platform
import random
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

Result = dict[str, Any]
CANDIDATES = 30
"""Responses that share a prompt."""
WORDS = 10_000
"""Words of the tokenizer, a token each, so that lengths in tokens are exact."""
SHAPES: dict[str, dict[str, int]] = {
    "0.5B": {"hidden_size": 896, "intermediate_size": 4864, "num_hidden_layers": 24, "num_attention_heads": 14, "num_key_value_heads": 2},
    "1.5B": {"hidden_size": 1536, "intermediate_size": 8960, "num_hidden_layers": 28, "num_attention_heads": 12, "num_key_value_heads": 2},
    "7B": {"hidden_size": 3584, "intermediate_size": 18944, "num_hidden_layers": 28, "num_attention_heads": 28, "num_key_value_heads": 4},
}  # fmt: skip
"""Qwen2.5's."""
TOY = {"hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2}  # fmt: skip
SMALL = {"hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2, "num_attention_heads": 4, "vocab_size": WORDS + 2, "max_position_embeddings": 512, "initializer_range": 0.2}  # fmt: skip
ARCHITECTURES: dict[str, dict[str, Any]] = {
    "llama": {"num_key_value_heads": 2},
    "qwen2": {"num_key_value_heads": 2},
    "qwen3": {"num_key_value_heads": 2, "head_dim": 16},
    "mistral": {"num_key_value_heads": 2, "sliding_window": 24},
    "gemma2": {"num_key_value_heads": 2, "head_dim": 16, "sliding_window": 24},
    "olmo2": {"num_key_value_heads": 2},
    "phi": {"num_key_value_heads": 2},
    "gpt_neox": {},
    "gpt2": {"n_embd": 64, "n_layer": 2, "n_head": 4, "n_positions": 512},
    "mixtral": {"num_key_value_heads": 2, "num_local_experts": 4, "num_experts_per_tok": 2},
}
"""Ten families: grouped heads, sliding windows, capped logits, partial and learned positions, parallel blocks, experts."""


# ── what sections share ─────────────────────────────────────────────────────────────────────────────────


def device() -> torch.device:
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def waited() -> float:
    """Return the time once the device has done what it was asked."""
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return time.perf_counter()


def seconds(work: Callable[[], object], least: int = 2) -> float:
    """Return the shortest time of a few calls, after one that warms up."""
    work()
    times = []
    for _ in range(least):
        start = waited()
        work()
        times.append(waited() - start)
    return min(times)


def tokenizer() -> Any:
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    words = {word: i for i, word in enumerate(["<pad>", "<end>", *(f"w{i}" for i in range(WORDS))])}
    level = Tokenizer(models.WordLevel(words, unk_token="<pad>"))
    level.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return PreTrainedTokenizerFast(
        tokenizer_object=level, pad_token="<pad>", eos_token="<end>", unk_token="<pad>", model_max_length=4096
    )


def text(tokens: int, draw: random.Random) -> str:
    return " ".join(f"w{draw.randrange(WORDS)}" for _ in range(tokens))


def groups(rows: int, prompt: int, response: int, count: int = CANDIDATES) -> tuple[list[str], list[list[str]]]:
    """Return prompts of so many tokens, and responses whose lengths spread around a mean."""
    draw = random.Random(0)
    prompts = [text(prompt, draw) for _ in range(rows)]
    return prompts, [
        [text(max(1, round(response * draw.uniform(0.4, 1.6))), draw) for _ in range(count)] for _ in prompts
    ]


def configuration(family: str, **sizes: Any) -> Any:
    from transformers import AutoConfig

    return AutoConfig.for_model(family, **{"pad_token_id": 0, "eos_token_id": 1, "bos_token_id": None, **sizes})


def decoder(config: Any, dtype: torch.dtype, where: torch.device, labels: int = 0) -> Any:
    """Make a model of random weights on a device."""
    from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification

    torch.manual_seed(0)
    if labels:
        config.num_labels = labels
    kind = AutoModelForSequenceClassification if labels else AutoModelForCausalLM
    with where:
        return kind.from_config(config, dtype=dtype).eval()


def policy(model: Any, budget: int | None = None) -> Any:
    """Return seamcurate's policy over a model in memory, as `CausalLM(…).load()` returns one of a folder."""
    from seamcurate.models import causal_lm

    named = causal_lm.CausalLM(path="random", form="bare", max_response_tokens=1024, batch_tokens=budget)
    return causal_lm._LoadedCausalLM(named, tokenizer(), model)


def rewarder(model: Any, budget: int | None = None) -> Any:
    from seamcurate.models import sequence_classifier

    named = sequence_classifier.SequenceClassifier(path="random", form="bare", batch_tokens=budget)
    return sequence_classifier._LoadedClassifier(named, tokenizer(), model, [0])


def scores(scorer: Any, asked: tuple[list[str], list[list[str]]]) -> np.ndarray[Any, Any]:
    return np.array([one.logprob for row in scorer.logprobs(*asked) for one in row])


def ids_of(scorer: Any, asked: tuple[list[str], list[list[str]]]) -> list[tuple[list[int], list[list[int]]]]:
    """Return the token ids that scoring reads: of each prompt, and of its responses."""
    from seamcurate.models import tokens

    return [
        tokens.policy_group(scorer.tokenizer, prompt, answers, 1024, scorer.form)[:2]
        for prompt, answers in zip(*asked, strict=True)
    ]


def padded(model: Any, ids: Sequence[tuple[list[int], list[list[int]]]], size: int) -> np.ndarray[Any, Any]:
    """Score every pair in padded batches, sorted by length: the loop people write."""
    pairs = [(prompt, answer) for prompt, answers in ids for answer in answers]
    order = sorted(range(len(pairs)), key=lambda i: -sum(map(len, pairs[i])))
    found = np.zeros(len(pairs))
    with torch.inference_mode():
        for start in range(0, len(order), size):
            some = [pairs[i] for i in order[start : start + size]]
            longest = max(len(p) + len(a) for p, a in some)
            rows = torch.tensor([p + a + [0] * (longest - len(p) - len(a)) for p, a in some], device=model.device)
            mask = torch.tensor(
                [[1] * (len(p) + len(a)) + [0] * (longest - len(p) - len(a)) for p, a in some], device=model.device
            )
            logits = model(input_ids=rows, attention_mask=mask, use_cache=False).logits
            for i, row, logit, (p, a) in zip(order[start : start + size], rows, logits, some, strict=True):
                logprobs = logit[len(p) - 1 : len(p) + len(a) - 1].float().log_softmax(-1)
                found[i] = logprobs.gather(1, row[len(p) : len(p) + len(a), None]).double().sum().item()
    return found


def cached(model: Any, ids: Sequence[tuple[list[int], list[list[int]]]]) -> np.ndarray[Any, Any]:
    """Read each prompt once and expand its cache over the padded responses: the better loop people write."""
    found: list[float] = []
    with torch.inference_mode():
        for prompt, answers in ids:
            read = model(input_ids=torch.tensor([prompt], device=model.device), use_cache=True)
            cache, last = read.past_key_values, read.logits[:, -1:]
            cache.batch_repeat_interleave(len(answers))
            longest = max(map(len, answers))
            rows = torch.tensor([a + [0] * (longest - len(a)) for a in answers], device=model.device)
            mask = torch.tensor(
                [[1] * (len(prompt) + len(a)) + [0] * (longest - len(a)) for a in answers], device=model.device
            )
            logits = model(input_ids=rows, attention_mask=mask, past_key_values=cache).logits
            for row, logit, a in zip(rows, logits, answers, strict=True):
                logprobs = torch.cat([last[0], logit[: len(a) - 1]]).float().log_softmax(-1)
                found.append(logprobs.gather(1, row[: len(a), None]).double().sum().item())
    return np.array(found)


def fitting(call: Callable[[int], object], size: int) -> int:
    """Return the largest power of two of pairs, at most `size`, that fits in memory."""
    while True:
        try:
            call(size)
            return size
        except torch.OutOfMemoryError:
            size //= 2
            if not size:
                raise
        gc.collect()
        torch.cuda.empty_cache()


def worst(a: np.ndarray[Any, Any], b: np.ndarray[Any, Any]) -> float:
    return float(np.abs(a - b).max())


# ── sections ────────────────────────────────────────────────────────────────────────────────────────────


def machine(toy: bool) -> Result:
    """Measure the product rate that shares are of, in TFLOP/s, and the bandwidth in TB/s."""
    import transformers

    found: Result = {
        "torch": torch.__version__,
        "transformers": transformers.__version__,
        "python": platform.python_version(),
        "device": torch.cuda.get_device_name()
        if torch.cuda.is_available()
        else platform.processor() or platform.machine(),
    }
    size = 256 if toy else 8192
    for name, dtype in (("bf16", torch.bfloat16), ("fp32", torch.float32)):
        a, b = (torch.randn(size, size, device=device(), dtype=dtype) for _ in range(2))
        found[f"{name}_tflops"] = 2 * size**3 / seconds(lambda a=a, b=b: a @ b, 10) / 1e12
    source = torch.empty(2**20 if toy else 2**31, dtype=torch.uint8, device=device())
    found["copy_tb_s"] = 2 * len(source) / seconds(source.clone, 5) / 1e12
    return found


def correctness(toy: bool) -> Result:
    """Score ten architectures on the device in float32 and bfloat16, against the CPU in float32."""
    asked = groups(3, 9, 12, 5)
    found: Result = {}
    begun = time.monotonic()
    for family, more in ARCHITECTURES.items():
        line: Result = {}
        if not toy and time.monotonic() - begun > 0.8 * SECTIONS["correctness"][1]:
            found[family] = {"error": "not begun: the section's time is nearly over", "passed": False}
            continue
        # Else the compiler gives up after a number of variants, and attention runs uncompiled.
        torch.compiler.reset()
        try:
            config = configuration(family, **{**SMALL, **more})
            reference = decoder(config, torch.float32, torch.device("cpu"))
            expected = scores(policy(reference), asked)
            rewarding = decoder(configuration(family, **{**SMALL, **more}), torch.float32, torch.device("cpu"), 1)
            right = np.array(rewarder(rewarding).rewards(*asked)).ravel()
            for name, dtype in (("fp32", torch.float32), ("bf16", torch.bfloat16)):
                # The CPU's own weights, moved: random numbers of devices differ.
                scorer = policy(reference.to(device(), dtype))
                line[f"{name}_worst_nats"] = worst(scores(scorer, asked), expected)
                line[f"{name}_shared"], line[f"{name}_flex"] = scorer.reader.shared, scorer.reader._attention.flex
                given = np.array(rewarder(rewarding.to(device(), dtype)).rewards(*asked)).ravel()
                line[f"{name}_worst_reward"] = worst(given, right)
            # Scores that lie far apart: with weights near 0 all tokens would be as likely, and nothing could differ.
            line["nats"], line["nats_deviation"] = float(np.abs(expected).mean()), float(expected.std())
            line["passed"] = bool(
                line["fp32_worst_nats"] < 1e-3 * line["nats"]
                and line["bf16_worst_nats"] < 0.05 * line["nats"]
                and line["fp32_worst_reward"] < 1e-2 * right.std()
            )
        except Exception as error:
            line["error"], line["passed"] = f"{type(error).__name__}: {error}"[:300], False
        found[family] = line
    return {"passed": sum(line["passed"] for line in found.values()), "of": len(found), "architectures": found}


def attention(toy: bool) -> Result:
    """Hold FlexAttention over packs to attention span by span, and to padded batches: same numbers, time of each."""
    shape = TOY if toy else SHAPES["0.5B"]
    dtype = torch.float32 if toy else torch.bfloat16
    model = decoder(
        configuration("qwen2", **shape, vocab_size=WORDS + 2, max_position_embeddings=4096), dtype, device()
    )
    asked = groups(1 if toy else 8, 30 if toy else 400, 8 if toy else 190, 4 if toy else CANDIDATES)
    found: Result = {"flex_chosen": policy(model).reader._attention.flex}
    sums: dict[str, np.ndarray[Any, Any]] = {}
    for name, flex, shared in (("flex", True, True), ("spans", False, True), ("padded", False, False)):
        scorer = policy(model)
        scorer.reader.shared, scorer.reader._attention.flex = shared, flex
        found[f"{name}_s"] = seconds(lambda scorer=scorer: scores(scorer, asked))
        sums[name] = scores(scorer, asked)
    found["flex_padded_worst_nats"] = worst(sums["flex"], sums["padded"])
    found["spans_padded_worst_nats"] = worst(sums["spans"], sums["padded"])
    found["nats"] = float(np.abs(sums["padded"]).mean())
    return found


def likelihoods(toy: bool, size: str) -> Result:
    """Measure likelihoods of one size of model: tokens a second, share of the product rate, against loops."""
    sizes, dtype = qwen(toy, size), torch.float32 if toy else torch.bfloat16
    model = decoder(configuration("qwen2", **sizes), dtype, device())
    rate, body = machine_rate(toy), products(model)
    head = sizes["hidden_size"] * sizes["vocab_size"]
    scorer = policy(model)
    found: Result = {"parameters": sum(p.numel() for p in model.parameters()), "budget": scorer.reader.budget}
    lengths = ((12, 6, 2),) if toy else ((400, 190, 24), (60, 190, 24), (30, 30, 96))
    for prompt, response, rows in lengths:
        # Larger models read fewer rows, so that all take about as long.
        rows = max(2, rows // {"0.5B": 1, "1.5B": 2, "7B": 6}[size])
        asked = groups(rows, prompt, response, 4 if toy else CANDIDATES)
        ids = ids_of(scorer, asked)
        answered = sum(len(a) for _, answers in ids for a in answers)
        read = answered + sum(len(p) for p, _ in ids)
        whole = answered + sum(len(p) * len(answers) for p, answers in ids)
        ours = seconds(lambda asked=asked: scores(scorer, asked))
        pairs = fitting(lambda n, ids=ids: padded(model, ids[:1], n), 4 if toy else CANDIDATES)
        loop = seconds(lambda ids=ids, pairs=pairs: padded(model, ids, pairs), 1)
        line: Result = {
            "rows": rows,
            "scored_tokens_s": answered / ours,
            "read_tokens_s": read / ours,
            # Of the body's products for what is read once, and of the head's for what is scored; attention is not counted.
            "product_share": 2 * (body * read + head * answered) / ours / 1e12 / rate,
            "token_ratio": whole / read,
            "over_padded": loop / ours,
            "padded_batch": pairs,
            "padded_worst_nats": worst(scores(scorer, asked), padded(model, ids, pairs)),
        }
        try:
            line["over_kv_cache"] = seconds(lambda ids=ids: cached(model, ids), 1) / ours
            line["kv_cache_worst_nats"] = worst(scores(scorer, asked), cached(model, ids))
        except torch.OutOfMemoryError:
            line["over_kv_cache"] = "out of memory"
        found[f"likelihood_{prompt}_{response}"] = line
    return found


def rewards(toy: bool, size: str) -> Result:
    """Measure rewards of one size of model: tokens a second, share of the product rate."""
    sizes, dtype = qwen(toy, size), torch.float32 if toy else torch.bfloat16
    rate = machine_rate(toy)
    classifier = rewarder(decoder(configuration("qwen2", **sizes), dtype, device(), 1))
    body = products(classifier.model)
    asked = groups(*((2, 12, 6, 4) if toy else (max(2, 24 // {"0.5B": 1, "1.5B": 2, "7B": 6}[size]), 400, 190)))
    counted = [(len(p.split()), [len(a.split()) for a in some]) for p, some in zip(*asked, strict=True)]
    taken = seconds(lambda: classifier.rewards(*asked))
    return {
        "scored_tokens_s": sum(sum(some) for _, some in counted) / taken,
        "product_share": 2 * body * sum(p + sum(some) for p, some in counted) / taken / 1e12 / rate,
        "token_ratio": sum(p * len(s) + sum(s) for p, s in counted) / sum(p + sum(s) for p, s in counted),
    }


def speed(toy: bool, size: str) -> Result:
    """Measure one size of model; the likelihoods' model is gone before the rewards' one is made."""
    found = likelihoods(toy, size)
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
    return {**found, "rewards_400_190": rewards(toy, size)}


def qwen(toy: bool, size: str) -> dict[str, int]:
    shape = TOY if toy else SHAPES[size]
    return {**shape, "vocab_size": WORDS + 2 if toy else 151_936, "max_position_embeddings": 4096}


def products(model: Any) -> int:
    """Count the weights that each token is multiplied by, the output head's apart."""
    return sum(p.numel() for name, p in model.named_parameters() if "embed" not in name and "lm_head" not in name)


def machine_rate(toy: bool) -> float:
    """Return the product rate of the precision that is raced, in TFLOP/s, measured in this process."""
    size, dtype = (256, torch.float32) if toy else (8192, torch.bfloat16)
    a, b = (torch.randn(size, size, device=device(), dtype=dtype) for _ in range(2))
    return 2 * size**3 / seconds(lambda: a @ b, 10) / 1e12


def memory(toy: bool) -> Result:
    """Have memory run out: packs shrink, every pair is scored, and the scores are those of small packs."""
    shape, dtype = (TOY, torch.float32) if toy else (SHAPES["0.5B"], torch.bfloat16)
    model = decoder(
        configuration("qwen2", **shape, vocab_size=WORDS + 2, max_position_embeddings=4096), dtype, device()
    )
    asked = groups(4 if toy else 64, 20 if toy else 400, 10 if toy else 190, 4 if toy else CANDIDATES)
    expected = scores(policy(model, 64 if toy else 8192), asked)
    scorer = policy(model, 10**7)
    if torch.cuda.is_available():
        total = torch.cuda.get_device_properties(0).total_memory
        held = torch.cuda.memory_allocated()
        torch.cuda.empty_cache()
        torch.cuda.set_per_process_memory_fraction((held + 3 * 2**30) / total)
    else:
        # A CPU has no such limit: the error is raised in its place, where a pack is large.
        read = scorer.reader._outputs

        def limited(pack: Any) -> Any:
            if sum(map(len, pack.ids)) > 100:
                raise torch.OutOfMemoryError
            return read(pack)

        scorer.reader._outputs = limited
    found = scores(scorer, asked)
    return {
        "budget_before": 10**7,
        "budget_after": scorer.reader.budget,
        "scored": int(np.isfinite(found).sum()),
        "of": len(found),
        "worst_nats": worst(found, expected),
        "nats": float(np.abs(expected).mean()),
        "passed": scorer.reader.budget < 10**7 and bool(np.isfinite(found).all()),
    }


def band(toy: bool) -> Result:
    """Search 30 neighbours inside a band of cosines, against torch.topk and, where it is installed, faiss."""
    from seamcurate.contrast import nearest

    count, queries, width = (2_000, 20, 32) if toy else (1_000_000, 2_000, 384)
    draw = np.random.default_rng(0)
    # Topics, as texts have: without them, no pair would lie inside the band.
    topics = draw.standard_normal((max(10, count // 500), width), np.float32)

    def near(number: int) -> np.ndarray[Any, Any]:
        made = topics[draw.integers(0, len(topics), number)] + 0.45 * draw.standard_normal((number, width), np.float32)
        return (made / np.linalg.norm(made, axis=1, keepdims=True)).astype(np.float32)

    found: Result = {"vectors": count, "queries": queries, "dimensions": width}
    with tempfile.TemporaryDirectory() as scratch:
        corpus, asked = near(count), near(queries)
        start = time.perf_counter()
        nearest.build(Path(scratch), count, [corpus], 0.8)
        found["build_s"] = time.perf_counter() - start
        search = nearest.Band(Path(scratch), (0.8, 0.9))

        def none(rows: Any, positions: Any) -> Any:
            return np.zeros(np.broadcast(rows, positions).shape, bool)

        hits = search.search(asked, CANDIDATES, none)
        found["ours_s"] = seconds(lambda: search.search(asked, CANDIDATES, none), 1)
        stored, sought = (torch.from_numpy(values).to(device()) for values in (corpus, asked))

        def topk() -> list[list[int]]:
            rows = []
            for part in sought.split(256):
                cosines = part @ stored.T
                cosines[(cosines < 0.8) | (cosines > 0.9)] = -2
                values, places = cosines.topk(CANDIDATES)
                rows += [p[v > -2].tolist() for v, p in zip(values, places, strict=True)]
            return rows

        theirs = topk()
        found["topk_s"] = seconds(topk, 1)
        # Single precision decides otherwise at the edges of the band and between equal cosines.
        same = [
            len(set(h.positions.tolist()) & set(t)) / max(1, len(h.positions), len(t))
            for h, t in zip(hits, theirs, strict=True)
        ]
        found["same_share"], found["found"] = float(np.mean(same)), int(sum(len(h.positions) for h in hits))
        if importlib.util.find_spec("faiss"):
            import faiss

            index: Any = faiss.IndexFlatIP(width)
            on_gpu = getattr(faiss, "get_num_gpus", lambda: 0)()
            if on_gpu:
                index = faiss.index_cpu_to_all_gpus(index)
            index.add(corpus)
            # No range on a GPU: as many neighbours as a band may hide above it.
            found["faiss_knn_s"] = seconds(lambda: index.search(asked, min(2048, count)), 1)
            found["faiss_on_gpu"] = bool(on_gpu)
    return found


def sampling(toy: bool) -> Result:
    """Sample 16 answers to each prompt, against transformers' `generate` in batches of 8 prompts."""
    from transformers import GenerationConfig

    from seamcurate.models.protocols import Sampling
    from seamcurate.models.sampling import LocalSampler
    from seamcurate.models.template import Form

    shape, dtype = (TOY, torch.float32) if toy else (SHAPES["0.5B"], torch.bfloat16)
    model = decoder(
        configuration("qwen2", **shape, vocab_size=WORDS + 2, max_position_embeddings=4096), dtype, device()
    )
    limit, draws = (6, 3) if toy else (128, 16)
    asked, _ = groups(4 if toy else 32, 10 if toy else 100, 1, 1)
    # No token ends an answer, so that both sides draw as many.
    sampler = LocalSampler(model, tokenizer(), Form("bare"), (), 4096, None)

    def ours() -> int:
        wanted = Sampling(draws, max_tokens=limit)
        return sum(s.tokens for _, _, s in sampler.samples([(p, range(draws)) for p in asked], wanted))

    def theirs() -> int:
        count = 0
        for start in range(0, len(asked), 8):
            ids = [sampler._prompt_ids(prompt) for prompt in asked[start : start + 8]]
            longest = max(map(len, ids))
            rows = torch.tensor([[0] * (longest - len(one)) + one for one in ids], device=model.device)
            mask = torch.tensor([[0] * (longest - len(one)) + [1] * len(one) for one in ids], device=model.device)
            config = GenerationConfig(
                max_new_tokens=limit,
                do_sample=True,
                top_k=0,
                num_return_sequences=draws,
                pad_token_id=0,
                eos_token_id=None,
            )
            with torch.inference_mode():
                out = model.generate(input_ids=rows, attention_mask=mask, generation_config=config)
            count += out[:, longest:].numel()
        return count

    tokens = ours(), theirs()
    taken = seconds(ours, 1), seconds(theirs, 1)
    return {
        "tokens": tokens[0],
        "tokens_s": tokens[0] / taken[0],
        "generate_tokens_s": tokens[1] / taken[1],
        "over_generate": (tokens[0] / taken[0]) / (tokens[1] / taken[1]),
    }


def vllm(toy: bool) -> Result:
    """Race likelihoods against vLLM's `prompt_logprobs`, where it is installed."""
    if not importlib.util.find_spec("vllm"):
        return {"skipped": "vllm is not installed"}
    from vllm import LLM, SamplingParams

    sizes = {**(TOY if toy else SHAPES["0.5B"]), "vocab_size": WORDS + 2, "max_position_embeddings": 4096}
    asked = groups(*((1, 12, 6, 2) if toy else (24, 400, 190)))
    with tempfile.TemporaryDirectory() as scratch:
        model = decoder(configuration("qwen2", **sizes), torch.bfloat16, device())
        scorer = policy(model)
        ids = ids_of(scorer, asked)
        ours, found = seconds(lambda: scores(scorer, asked)), scores(scorer, asked)
        model.save_pretrained(scratch)
        tokenizer().save_pretrained(scratch)
        engine = LLM(scratch, dtype="bfloat16", gpu_memory_utilization=0.5, enable_prefix_caching=True)
        wanted = SamplingParams(max_tokens=1, prompt_logprobs=0)
        inputs: Any = [{"prompt_token_ids": p + a} for p, answers in ids for a in answers]
        starts = [len(p) for p, answers in ids for _ in answers]

        def theirs() -> list[float]:
            results = engine.generate(inputs, wanted, use_tqdm=False)
            return [
                sum(next(iter(at.values())).logprob for at in result.prompt_logprobs[start:])
                for result, start in zip(results, starts, strict=True)
            ]

        taken = seconds(theirs, 1)
        return {"over_vllm": taken / ours, "worst_nats": worst(np.array(theirs()), found)}


SECTIONS: dict[str, tuple[Callable[[bool], Result], int]] = {
    "machine": (machine, 25),
    "correctness": (correctness, 150),
    "attention": (attention, 45),
    "memory": (memory, 30),
    "speed-0.5B": (lambda toy: speed(toy, "0.5B"), 50),
    "speed-1.5B": (lambda toy: speed(toy, "1.5B"), 45),
    "speed-7B": (lambda toy: speed(toy, "7B"), 60),
    "band": (band, 40),
    "sampling": (sampling, 25),
    "vllm": (vllm, 90),
}
"""Each section, and the seconds after which it is stopped; what matters most comes first."""
TOTAL = 470
"""Seconds after which no section goes on, whatever its own limit."""


def run(names: Sequence[str], toy: bool, out: Path) -> Result:
    """Run sections one after the other, each in a process of its own; the file holds what there is after each."""
    begun, results = time.monotonic(), dict[str, Any]()
    for name in names:
        left = TOTAL - (time.monotonic() - begun)
        limit = min(SECTIONS[name][1], left)
        if not toy and limit < 5:
            results[name] = {"error": f"not begun: {TOTAL} seconds are over"}
            continue
        start = time.monotonic()
        with tempfile.TemporaryDirectory() as scratch:
            file = Path(scratch) / "result.json"
            command = [sys.executable, "-m", "benchmarks.gpu", "--section", name, "--out", str(file)]
            try:
                # A toy's time says nothing, so that a busy machine may take as long as it needs.
                done = subprocess.run(
                    command + ["--toy"] * toy,
                    capture_output=True,
                    text=True,
                    timeout=None if toy else limit,
                    check=False,
                )
                last = done.stderr.strip().splitlines()[-1:] or [f"exit status {done.returncode}"]
                results[name] = json.loads(file.read_text()) if file.exists() else {"error": last[0][:500]}
            except subprocess.TimeoutExpired:
                results[name] = {"error": f"stopped after {limit:.0f} seconds"}
        results[name]["seconds"] = round(time.monotonic() - start, 1)
        out.write_text(json.dumps(results, indent=1) + "\n")
        print(json.dumps({name: results[name]}), flush=True)
    return results


def rounded(value: Any) -> Any:
    """Round numbers to four digits; JSON has no NaN."""
    if isinstance(value, dict):
        return {key: rounded(inner) for key, inner in value.items()}
    if isinstance(value, float):
        return float(f"{value:.4g}") if math.isfinite(value) else None
    return value


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True, help="the JSON file to write")
    parser.add_argument("--toy", action="store_true", help="sizes for any CPU: shows that it runs, measures nothing")
    parser.add_argument("--only", nargs="+", choices=SECTIONS, help="some of the sections")
    parser.add_argument("--section", choices=SECTIONS, help=argparse.SUPPRESS)
    given = parser.parse_args()
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    if given.section:
        given.out.write_text(json.dumps(rounded(SECTIONS[given.section][0](given.toy))))
        return
    if not given.toy and not torch.cuda.is_available():
        raise SystemExit("torch sees no GPU; --toy runs everything at toy sizes on a CPU")
    run(given.only or list(SECTIONS), given.toy, given.out)


if __name__ == "__main__":
    main()
