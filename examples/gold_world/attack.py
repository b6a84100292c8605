"""SEAM_Adv in the gold world: the product's own attack, against a head on the frozen policy's features."""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa
from pydantic import JsonValue, PrivateAttr

from examples.gold_world import columns, policy, world
from examples.gold_world.frozen import Frozen
from examples.gold_world.policy import Reader
from examples.gold_world.reward import Doubles, Head
from seamcurate import Attack, FakeModel
from seamcurate.models import Prompt
from seamcurate.models.protocols import Responses

NEAR = 7
"""Words that a number may be replaced by; other words have as many of their kind."""


class HeadReward(FakeModel):
    """A head on a frozen policy as a reward model of the product's steps, given by value."""

    _reader: Reader = PrivateAttr()
    _head: Head = PrivateAttr()

    def bind(self, reader: Reader, head: Head) -> HeadReward:
        """Say what answers."""
        self._reader, self._head = reader, head
        return self

    def rewards(self, prompts: Sequence[Prompt], responses: Responses) -> list[list[float | None]]:
        """Reward answers by their features."""
        items = [(str(prompt), answer) for prompt, row in zip(prompts, responses, strict=True) for answer in row]
        given = iter(self._head.rewards(self._reader.read(items).hidden).tolist())
        return [[next(given) for _ in row] for row in responses]

    def identity(self) -> JsonValue:
        """Name it."""
        return {"gold_world": "head"}


def attacked(frozen: Frozen, head: Head, rewards: Doubles) -> dict[str, Doubles]:
    """Attack the first written answer of every RL row by PWWS, and return SEAM over what was found, (rows,) each.

    Rows are attacked as the product's step does it; a word may stand for any other of its kind, a number for those near it.
    """
    reader = Reader(frozen.policy)
    written = frozen.candidates("gpt")
    starts = np.cumsum(written.lengths) - written.lengths
    items = frozen.items
    first = [
        items[written.places[start]][1] if length else None
        for start, length in zip(starts.tolist(), written.lengths.tolist(), strict=True)
    ]
    records = frozen.parts.rl
    with tempfile.TemporaryDirectory() as scratch:
        words = policy.write(world.synonyms(NEAR), Path(scratch) / "synonyms.parquet")
        reward = HeadReward().bind(reader, head)
        step = Attack(
            method="pwws",
            start="start",
            wordnet=str(words),
            reward=reward,
            encoder=FakeModel(),
            k=frozen.world.candidates,
        )
        add = step.load(Path(scratch))
        rows = pa.table(
            {
                "prompt": [record["prompt"] for record in records],
                "response": [record["response"] for record in records],
                "start": pa.array(first, pa.string()),
            }
        )
        size = 4 * step.rows_per_call
        sets = [
            [candidate["response"] for candidate in row or []]
            for at in range(0, len(records), size)
            for row in add(rows.slice(at, size))["worse_adv"].to_pylist()
        ]
    pairs = [(record["prompt"], answer) for record, row in zip(records, sets, strict=True) for answer in row]
    read = reader.read(pairs)
    lengths = np.array([len(row) for row in sets])
    table = columns.table(
        "adv", rewards[frozen.golden], head.rewards(read.hidden), read.logprob.astype(np.float64), read.tokens, lengths
    )
    return columns.of_table(table, "adv")
