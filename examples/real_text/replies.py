"""What the policy itself answers: how often rewards prefer it to people's best answer, and what RER's choice of it is worth.

One rule: an answer is rewarded once, by every reward model; what is said of it follows from those numbers.
"""

from __future__ import annotations

import socket
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from examples.real_text import data
from examples.real_text.data import Rows
from seamcurate import RerReward
from seamcurate.models import SentenceEncoder
from seamcurate.study import statistics
from seamcurate.study.best_of_n import Doubles, expected_best

PROXIES = ("li", "li_rp", "li_rp_qr", "rer")
Numbers = Sequence[Sequence[float]]


class Answered(NamedTuple):
    """One prompt with its golden response and the policy's answers, each as often as it was drawn."""

    prompt: str
    golden: str
    query_type: str
    samples: list[str]


def answered(stored: Rows) -> list[Answered]:
    """Read a store's rows; those without a sample are left out."""
    return [
        Answered(
            row["prompt"],
            row["response"],
            row["query_type"],
            [s["response"] for s in row["worse_policy"] for _ in range(s["count"])],
        )
        for row in stored
        if row["worse_policy"]
    ]


def shortened(row: Answered) -> list[str]:
    """Return the golden response cut to the words of each sample, one at least."""
    return [data.cut(row.golden, max(1, len(sample.split()))) for sample in row.samples]


def preferred(golden: Numbers, samples: Numbers) -> dict[str, Any]:
    """Return how often golden responses have the higher reward, with its interval over prompts; equal rewards count half.

    Args:
        golden: The reward of what each sample is compared with, a list a prompt.
        samples: That of each sample.
    """
    shares = []
    for own, drawn in zip(golden, samples, strict=True):
        gaps = np.array(own, float) - np.array(drawn, float)
        gaps = gaps[np.isfinite(gaps)]
        if len(gaps):
            shares.append(float((np.sign(gaps) + 1).mean() / 2))
    share = statistics.bootstrap_share(np.array(shares))
    return {"prompts": len(shares)} | interval("right", share)


def proxy_rewards(rows: Sequence[Answered], encoder: SentenceEncoder) -> dict[str, Numbers]:
    """Return each proxy's reward of every sample, as trainers would get it; golden responses are the references."""
    rewards: dict[str, Numbers] = {}
    asked = [row.prompt for row in rows for _ in row.samples]
    samples = [sample for row in rows for sample in row.samples]
    columns = {
        "reference": [row.golden for row in rows for _ in row.samples],
        "query_type": [row.query_type for row in rows for _ in row.samples],
    }
    for proxy in PROXIES:
        reward = RerReward.model_validate({"reward": proxy, "encoder": encoder})
        values = reward.load()(asked, samples, **{name: columns[name] for name in reward.columns})
        rewards[proxy] = nested([np.nan if value is None else value for value in values], rows)
    return rewards


def nested(values: Sequence[float], rows: Sequence[Answered]) -> Numbers:
    """Return a value a sample as a list a prompt."""
    ends = np.cumsum([len(row.samples) for row in rows])[:-1]
    return [part.tolist() for part in np.split(np.array(values, float), ends)]


def known(*rewards: Numbers) -> list[int]:
    """Return the places of the prompts whose every reward is known."""
    return [i for i, own in enumerate(zip(*rewards, strict=True)) if all(np.isfinite(values).all() for values in own)]


def chosen(proxy: Numbers, gold: Numbers, n: int) -> Doubles:
    """Return what the best of n by a proxy adds to each prompt's mean gold reward, in gold's spread within prompts: (prompts,)."""
    spread = float(np.sqrt(np.mean([np.var(rewards) for rewards in gold])))
    return np.array(
        [(expected_best(np.array(g), np.array(p), n) - np.mean(g)) / spread for p, g in zip(proxy, gold, strict=True)]
    )


def gains(proxies: Mapping[str, Numbers], golds: Mapping[str, Numbers], sizes: Sequence[int]) -> Rows:
    """Return by proxy, gold and n what choosing by the proxy adds to gold, with its interval over prompts, and above LI."""
    rows: Rows = []
    places = known(*proxies.values(), *golds.values())
    for gold, rewards in golds.items():
        kept = [rewards[i] for i in places]
        for n in sizes:
            by_proxy = {name: chosen([values[i] for i in places], kept, n) for name, values in proxies.items()}
            for proxy, own in by_proxy.items():
                row = {"proxy": proxy, "gold": gold, "n": n, "prompts": len(own)}
                row |= interval("gain", statistics.bootstrap_mean(own))
                row |= interval("above_length", statistics.bootstrap_mean(own - by_proxy[PROXIES[0]]))
                rows.append(row)
    return rows


def agreement(golds: Mapping[str, Numbers]) -> dict[str, Any]:
    """Return how far two golds order each prompt's samples alike: the mean of Spearman's correlations."""
    (first, left), (second, right) = golds.items()
    values = [
        statistics.spearman(a, b) for a, b in zip(left, right, strict=True) if len(set(a)) > 1 and len(set(b)) > 1
    ]
    return {"first": first, "second": second, "prompts": len(values)} | interval(
        "spearman", statistics.bootstrap_mean(np.array(values))
    )


@contextmanager
def served(gguf: Path) -> Iterator[str]:
    """Serve a model by llama.cpp on loopback, on one thread, and yield the address."""
    import xllamacpp

    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    options = xllamacpp.CommonParams()
    options.model.path = str(gguf)
    options.n_ctx, options.n_parallel, options.cpuparams.n_threads = 4096, 2, 1
    options.hostnames, options.port, options.use_jinja = ["127.0.0.1"], port, True
    options.model_alias = {"policy"}
    server = xllamacpp.Server(options)
    try:
        yield f"http://127.0.0.1:{port}/v1"
    finally:
        # The server stops with its object.
        del server


def interval(name: str, measured: statistics.Interval) -> dict[str, float]:
    """Return an interval as the columns of a table."""
    return {
        name: round(measured.estimate, 5),
        f"{name}_low": round(measured.low, 5),
        f"{name}_high": round(measured.high, 5),
    }
