"""vLLM's own engine, without a server, in an environment of its own: one line of JSON asks, one answers.

`python vllm_worker.py FOLDER generate|pooling` imports nothing of seamcurate. What vLLM prints goes to standard error.
"""

from __future__ import annotations

import json
import os
import sys
from typing import Any


def main(folder: str, runner: str) -> None:
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    from vllm import LLM, PoolingParams, SamplingParams

    engine = LLM(
        model=folder,
        runner=runner,
        dtype="float32",
        enforce_eager=True,
        max_model_len=4096,
        max_num_seqs=128,
        disable_log_stats=True,
        distributed_executor_backend="uni",
    )

    def likelihoods(ask: dict[str, Any]) -> list[float]:
        """Return the log-probability of what follows the first so many tokens."""
        params = SamplingParams(max_tokens=1, prompt_logprobs=0, temperature=0, detokenize=False)
        done = engine.generate([{"prompt_token_ids": ids} for ids in ask["ids"]], params, use_tqdm=False)
        return [
            sum(entry[token].logprob for entry, token in list(zip(one.prompt_logprobs, ids, strict=True))[start:])
            for one, ids, start in zip(done, ask["ids"], ask["starts"], strict=True)
        ]

    def rewards(ask: dict[str, Any]) -> list[float]:
        params = PoolingParams(use_activation=False)
        done = engine.classify([{"prompt_token_ids": ids} for ids in ask["ids"]], pooling_params=params, use_tqdm=False)
        return [one.outputs.probs[0] for one in done]

    def samples(ask: dict[str, Any]) -> list[list[tuple[str, int]]]:
        params = SamplingParams(
            max_tokens=ask["limit"],
            n=ask["draws"],
            temperature=ask["temperature"],
            ignore_eos=ask["ignore_eos"],
            top_k=-1,
            top_p=1.0,
        )
        done = engine.generate([{"prompt_token_ids": ids} for ids in ask["ids"]], params, use_tqdm=False)
        return [[(one.text, len(one.token_ids)) for one in request.outputs] for request in done]

    kinds = {"likelihoods": likelihoods, "rewards": rewards, "samples": samples}
    print(json.dumps({"ready": True}), file=answers, flush=True)
    for line in sys.stdin:
        ask = json.loads(line)
        # Each turn asks the same: what an earlier one left in the cache is no part of the work. Within a turn it counts.
        engine.reset_prefix_cache()
        value = kinds[ask["kind"]](ask)
        print(json.dumps({"value": value}), file=answers, flush=True)


if __name__ == "__main__":
    main(*sys.argv[1:])
