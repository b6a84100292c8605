"""Samples of a policy: ours, `generate` in a loop and with `num_return_sequences` in batches of 8 prompts, and vLLM.

The policy lies in `.benchmarks/policy`, such as SmolLM2-135M-Instruct; without one, its shape with made-up weights is used, whose
answers never end by themselves.
"""

from __future__ import annotations

import json
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from benchmarks import inputs, vllm_process, work
from benchmarks.race import Peer, missing, race
from seamcurate import CausalLM
from seamcurate.models import Sampling

BATCH, DRAWS = 8, 16
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

    with tempfile.TemporaryDirectory() as scratch:
        folder = policy(Path(scratch))
        sampler: Any = CausalLM(path=str(folder), dtype="float32", device="cpu").load_sampler()
        model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
        asked = prompts(max(2, round(2 * BATCH * scale)), sampler)
        ids = [sampler._prompt_ids(prompt) for prompt in asked]
        likeliest = _likeliest(sampler, asked[:3])
        same = {"generate": _generated(sampler, model, ids[:3]) == likeliest}
        own_ends = sampler.ends
        with vllm_process.engine(folder, "generate", torch.get_num_threads()) as engine:
            if engine is None:
                missing("rollouts", "vLLM on this processor", "not installed", vllm_process.INSTALL)
            else:
                greedy = engine.ask("samples", ids=ids[:3], draws=1, limit=12, temperature=0.0, ignore_eos=False)
                same["vLLM"] = [sampler.form.generated(drawn[0][0]) for drawn in greedy] == likeliest
            # Answers of one length, and answers that end by themselves, where the weights are real.
            for ends, limit in ((frozenset(), 96), (own_ends, 256)) if folder == POLICY else ((frozenset(), 96),):
                sampler.ends = ends
                _race(sampler, model, engine, asked, ids, ends, max(8, round(limit * min(1.0, scale))), folder, same)
        line = {"benchmark": "rollouts", "drawn": sampler.drawn, "settled": sampler.settled}
        print(json.dumps(line), flush=True)


def _race(
    sampler: Any,
    model: Any,
    engine: vllm_process.Engine | None,
    asked: list[str],
    ids: list[list[int]],
    ends: frozenset[int],
    limit: int,
    folder: Path,
    same: dict[str, bool],
) -> None:
    def ours() -> int:
        requests = [(prompt, range(DRAWS)) for prompt in asked]
        return sum(sample.tokens for _, _, sample in sampler.samples(requests, Sampling(max_tokens=limit)))

    def loop() -> int:
        return generated(model, sampler, [[prompt] for prompt in ids[:SMALL]], 1, limit, sorted(ends))

    def batched() -> int:
        batches = [ids[start : start + BATCH] for start in range(0, len(ids), BATCH)]
        return generated(model, sampler, batches, DRAWS, limit, sorted(ends))

    def served() -> int:
        assert engine is not None
        drawn = engine.ask("samples", ids=ids, draws=DRAWS, limit=limit, temperature=1.0, ignore_eos=not ends)
        return sum(tokens for request in drawn for _, tokens in request)

    peers = {"generate, a call a draw": Peer(loop), f"generate, batches of {BATCH} prompts": Peer(batched)}
    if engine is not None:
        peers["vLLM on this processor, n=16"] = Peer(served)
    setting = (
        f"{len(asked)} × {DRAWS} {inputs.source()}, prompts of {min(map(len, ids))} to {max(map(len, ids))} tokens, "
        + (f"answers of up to {limit} tokens" if ends else f"answers of {limit} tokens")
        + (", SmolLM2-135M's weights" if folder == POLICY else ", made-up weights")
    )
    # Draws of different random numbers cannot be compared: the likeliest answers were.
    for against, peer in peers.items():
        agree = same["vLLM" if against.startswith("vLLM") else "generate"]
        race(
            "rollouts",
            setting,
            ours,
            {against: peer},
            lambda a, b, agree=agree: agree,  # type: ignore[misc]
            units=lambda tokens: tokens / 1000,
            unit="CPU s for 1,000 tokens",
            work=None if ends else work.of_samples(model.config, list(map(len, ids)), DRAWS, limit),
        )


def _likeliest(sampler: Any, asked: list[str]) -> list[str]:
    greedy = Sampling(temperature=0.0, max_tokens=12)
    drawn = {request: sample for request, _, sample in sampler.samples([(prompt, [0]) for prompt in asked], greedy)}
    return [drawn[request].text for request in range(len(asked))]


def _generated(sampler: Any, model: Any, ids: list[list[int]]) -> list[str]:
    import torch

    found = []
    for prompt in ids:
        tokens = torch.tensor([prompt])
        with torch.inference_mode():
            whole = model.generate(
                input_ids=tokens, attention_mask=torch.ones_like(tokens), do_sample=False, max_new_tokens=12
            )
        text = sampler.tokenizer.decode(whole[0, len(prompt) :], skip_special_tokens=True)
        found.append(sampler.form.generated(text))
    return found
