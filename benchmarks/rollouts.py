"""Samples of a policy: ours, a loop over transformers' `generate`, and `generate(num_return_sequences=n)` in batches of 8 prompts.

The policy lies in `.benchmarks/policy`, such as SmolLM2-135M-Instruct; without one, its shape with made-up weights is used, whose
answers never end by themselves.
"""

from __future__ import annotations

import json
import os
import statistics
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from benchmarks import inputs
from seamcurate import CausalLM
from seamcurate.models import Sampling

BATCH, DRAWS, REPEATS = 8, 16, 3
POLICY = Path(__file__).parents[1] / ".benchmarks" / "policy"
SMALL = 4
"""Prompts that the loop answers, one draw each: it takes as long for each draw as ours for ten."""


def policy(scratch: Path) -> Path:
    """Return the folder of the policy."""
    if (POLICY / "config.json").exists():
        return POLICY
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    shape: dict[str, int] = {"hidden_size": 576, "intermediate_size": 1536, "num_hidden_layers": 30, "head_dim": 64}
    heads = {"num_attention_heads": 9, "num_key_value_heads": 3}
    tokenizer = inputs.tokenizer()
    config = LlamaConfig(
        vocab_size=49_152, max_position_embeddings=8192, eos_token_id=1, tie_word_embeddings=True, **shape, **heads
    )
    LlamaForCausalLM(config).save_pretrained(scratch)
    tokenizer.save_pretrained(scratch)
    return scratch


def prompts(count: int, sampler: Any) -> list[str]:
    """Return real prompts of 10 to 400 tokens, as they come."""
    found: list[str] = []
    for instruction, _ in inputs.pairs():
        if 10 <= len(sampler.tokenizer(instruction)["input_ids"]) <= 400:
            found.append(instruction.strip())
        if len(found) == count:
            break
    return found


def generated(
    model: Any, sampler: Any, batches: Sequence[Sequence[list[int]]], draws: int, limit: int, ends: list[int]
) -> int:
    """Sample by `generate`, batch by batch, and return how many tokens the answers have."""
    import torch
    from transformers import GenerationConfig

    pad = sampler.tokenizer.eos_token_id
    config = GenerationConfig(
        max_new_tokens=limit,
        do_sample=True,
        temperature=1.0,
        top_k=0,
        top_p=1.0,
        num_return_sequences=draws,
        eos_token_id=ends or None,
        pad_token_id=pad,
    )
    count = 0
    for batch in batches:
        longest = max(map(len, batch))
        ids = torch.tensor([[pad] * (longest - len(prompt)) + prompt for prompt in batch])
        mask = torch.tensor([[0] * (longest - len(prompt)) + [1] * len(prompt) for prompt in batch])
        with torch.inference_mode():
            answers = model.generate(input_ids=ids, attention_mask=mask, generation_config=config)[:, longest:]
        for answer in answers.tolist():
            ended = next((place + 1 for place, token in enumerate(answer) if token in ends), len(answer))
            # Text, which every user of it needs.
            sampler.tokenizer.decode(answer[:ended], skip_special_tokens=True)
            count += ended
    return count


def main(scale: float) -> None:
    import torch
    from transformers import AutoModelForCausalLM

    torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS", "1")))
    with tempfile.TemporaryDirectory() as scratch:
        folder = policy(Path(scratch))
        sampler: Any = CausalLM(path=str(folder), dtype="float32", device="cpu").load_sampler()
        model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
        asked = prompts(max(2, round(2 * BATCH * scale)), sampler)
        ids = [sampler._prompt_ids(prompt) for prompt in asked]
        same = _same(sampler, model, asked[:3], ids)
        own_ends = sampler.ends
        # Answers of one length, and answers that end by themselves.
        for ends, limit in ((frozenset(), 96), (own_ends, 256)):
            sampler.ends = ends
            limit = max(8, round(limit * min(1.0, scale)))

            def ours(limit: int = limit) -> int:
                requests = [(prompt, range(DRAWS)) for prompt in asked]
                return sum(sample.tokens for _, _, sample in sampler.samples(requests, Sampling(max_tokens=limit)))

            def loop(limit: int = limit, ends: frozenset[int] = ends) -> int:
                return generated(model, sampler, [[prompt] for prompt in ids[:SMALL]], 1, limit, sorted(ends))

            def batched(limit: int = limit, ends: frozenset[int] = ends) -> int:
                batches = [ids[start : start + BATCH] for start in range(0, len(ids), BATCH)]
                return generated(model, sampler, batches, DRAWS, limit, sorted(ends))

            setting = (
                f"{len(asked)} × {DRAWS} {inputs.source()}, prompts of {min(map(len, ids))} to {max(map(len, ids))} tokens, "
                + (f"answers of up to {limit} tokens" if ends else f"answers of {limit} tokens")
                + (", SmolLM2-135M's weights" if folder == POLICY else ", made-up weights")
            )
            _compare(
                {"ours": ours, "a generate call a draw": loop, f"generate, batches of {BATCH}": batched}, setting, same
            )
        print(json.dumps({"benchmark": "rollouts", "drawn": sampler.drawn, "settled": sampler.settled}), flush=True)


def _same(sampler: Any, model: Any, asked: list[str], ids: list[list[int]]) -> bool:
    """Tell whether both give the same likeliest answers: draws of different random numbers cannot be compared."""
    import torch

    greedy = Sampling(temperature=0.0, max_tokens=12)
    ours = {request: sample for request, _, sample in sampler.samples([(prompt, [0]) for prompt in asked], greedy)}
    for request in range(len(asked)):
        prompt = torch.tensor([ids[request]])
        with torch.inference_mode():
            whole = model.generate(
                input_ids=prompt, attention_mask=torch.ones_like(prompt), do_sample=False, max_new_tokens=12
            )
        text = sampler.tokenizer.decode(whole[0, prompt.shape[1] :], skip_special_tokens=True)
        if sampler.form.generated(text) != ours[request].text:
            return False
    return True


def _compare(sides: dict[str, Callable[[], int]], setting: str, same: bool) -> None:
    """Run all by turns and print a line for each but ours; seconds are those for a thousand tokens."""
    cost: dict[str, list[tuple[float, float]]] = {side: [] for side in sides}
    for _ in range(REPEATS):
        for side, work in sides.items():
            wall, cpu = time.perf_counter(), time.process_time()
            tokens = work()
            cost[side].append(((time.process_time() - cpu) / tokens, (time.perf_counter() - wall) / tokens))
    cpu, wall = (
        {side: 1000 * statistics.median(run[i] for run in runs) for side, runs in cost.items()} for i in (0, 1)
    )
    for side in list(sides)[1:]:
        line = {
            "benchmark": "rollouts",
            "against": side,
            "ratio": round(cpu[side] / cpu["ours"], 2),
            "ours": round(cpu["ours"], 3),
            "theirs": round(cpu[side], 3),
            "unit": "CPU s for 1,000 tokens",
            "same": same,
            "wall": {"ratio": round(wall[side] / wall["ours"], 2), "tokens_per_second": round(1000 / wall["ours"])},
            "setting": setting,
        }
        print(json.dumps(line, ensure_ascii=False), flush=True)
    if not same:
        raise SystemExit(
            "rollouts: the likeliest answers of seamcurate and of generate differ, so their times do not compare"
        )
