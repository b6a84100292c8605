"""What every repetition in the gold world shares: answers that the frozen policy gave, candidates, features, true quality.

One rule: a piece is a file that is written whole; several processes share a folder, and what is there is never made again.
"""

from __future__ import annotations

import fcntl
import io
import json
import random
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import cached_property, partial
from pathlib import Path
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from examples.gold_world import policy, world
from examples.gold_world.policy import Floats
from examples.gold_world.reward import Dials, Doubles, Head, Judged, judged_pairs
from seamcurate import Models, Recipe, Retrieve, SentenceEncoder, Source, query, run_local
from seamcurate.storage.shard import replace

Places = npt.NDArray[np.int64]
HALF = 16
"""Samples of a prompt that columns see; as many others tell the truth of it."""
_PROMPTS, _ANSWERS = 500, 20_000
"""Prompts, and answers, of one piece of work."""


class World(NamedTuple):
    """The sizes of a world."""

    sizes: world.Sizes
    """What is cut from one shuffle: worlds of the same sizes have the same policy."""
    used: world.Sizes
    """How much of the beginning of each part is used."""
    hidden: int
    sft_steps: int
    candidates: int
    """Of each row's sets, at most."""
    test_samples: int
    preference_samples: int


class Sets(NamedTuple):
    """A sample set of every row, flat."""

    places: Places
    """Of all candidates among the features, row after row."""
    lengths: Places
    """Candidates of each row: (rows,)."""


class Frozen:
    """The shared part of a world in a folder; `tasks` makes it.

    Attributes:
        out: The folder.
        world: Its sizes.
    """

    def __init__(self, out: Path, sizes: World) -> None:
        self.out, self.world = out, sizes

    @cached_property
    def parts(self) -> world.Parts:
        """The instructions that are used."""
        whole = world.parts(self.world.sizes)
        return world.Parts(*(part[:size] for part, size in zip(whole, self.world.used, strict=True)))

    @property
    def policy(self) -> Path:
        """The policy's folder."""
        return self.out / "policy"

    # ── what is made ────────────────────────────────────────────────────────────────────────────────────

    def tasks(self) -> Iterator[tuple[str, Callable[[], object]]]:
        """Yield the pieces of work in an order in which each finds what it needs, once its names before it are done."""
        yield "policy", partial(policy.make, self.out, self.parts.sft, self.world.sft_steps, self.world.hidden)
        yield "retrieved", self._retrieve
        for part, n, seed in self._sampled():
            count = len(getattr(self.parts, part))
            for start in range(0, count, _PROMPTS):
                yield f"{part}-{start}", partial(self._sample, part, start, n, seed)
        yield "items", self._items
        for start in range(0, self._count(), _ANSWERS):
            yield f"features-{start}", partial(self._features, start)
        yield "joined", self._join

    @contextmanager
    def alone(self, name: str) -> Iterator[bool]:
        """Hold the lock of a piece, and say whether it was free; a kill releases it."""
        (self.out / "locks").mkdir(parents=True, exist_ok=True)
        with (self.out / "locks" / name).open("w") as lock:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                yield False
            else:
                yield True

    def _sampled(self) -> list[tuple[str, int, int]]:
        """Return the parts that the policy answers, how often, and by which seed."""
        w = self.world
        return [("rl", 2 * HALF, 1), ("preference", w.preference_samples, 2), ("test", w.test_samples, 3)]

    def _sample(self, part: str, start: int, n: int, seed: int) -> None:
        records = getattr(self.parts, part)[start : start + _PROMPTS]
        drawn = policy.samples(self.policy, [record["prompt"] for record in records], n, seed)
        self._write(f"{part}-{start}.json", json.dumps(drawn).encode())

    def _retrieve(self) -> None:
        """Write the contrast set of every RL row, as the product's step finds it."""
        from seamcurate.demo.corpus import encoder_folder

        rows, corpus = (
            policy.write(getattr(self.parts, part), self.out / f"{part}.parquet") for part in ("rl", "corpus")
        )
        recipe = Recipe(
            rows=Source(parquet=str(rows), response="response"),
            corpus=Source(parquet=str(corpus), response="response"),
            models=Models(encoder=SentenceEncoder(path=str(encoder_folder()))),
            steps=(Retrieve(k=self.world.candidates),),
        )
        run_local(recipe, self.out / "store")
        found: list[list[str]] = [[] for _ in self.parts.rl]
        sql = "SELECT row_id, response FROM candidates WHERE variant = 'contrast' ORDER BY row_id, rank"
        for candidate in query(self.out / "store", sql).to_pylist():
            found[candidate["row_id"]].append(candidate["response"])
        self._write("contrast.json", json.dumps(found).encode())

    def _answers(self, part: str) -> list[list[str]]:
        found: list[list[str]] = []
        for start in range(0, len(getattr(self.parts, part)), _PROMPTS):
            found += json.loads((self.out / f"{part}-{start}.json").read_text())
        return found

    def _items(self) -> None:
        """Write all answers, each with its prompt, and which prompt has which: items.json and places.npz."""
        numbers: dict[tuple[str, str], int] = {}
        quality: list[float] = []

        def number(record: world.Record, answers: Sequence[str]) -> list[int]:
            for answer in answers:
                if numbers.setdefault((record["prompt"], answer), len(numbers)) == len(quality):
                    quality.append(world.quality(record, answer))
            return [numbers[record["prompt"], answer] for answer in answers]

        parts, places = self.parts, {}
        for part, _, _ in self._sampled():
            places[part] = [
                number(record, given) for record, given in zip(getattr(parts, part), self._answers(part), strict=True)
            ]
        spoiled = [
            [world.spoil(record, draw.randint(0, 4), draw) for _ in range(3)]
            for record in parts.preference
            for draw in [random.Random(f"spoiled {record['prompt']}")]
        ]
        places["spoiled"] = [number(r, some) for r, some in zip(parts.preference, spoiled, strict=True)]
        places["golden"] = [number(record, [record["response"]]) for record in parts.rl]
        contrast = json.loads((self.out / "contrast.json").read_text())
        written = [world.worse(r, self.world.candidates, random.Random(r["prompt"])) for r in parts.rl]
        for name, sets in (("contrast", contrast), ("gpt", written)):
            rows = [number(record, some) for record, some in zip(parts.rl, sets, strict=True)]
            places[name] = [[place for row in rows for place in row]]
            places[f"{name}_lengths"] = [[len(row) for row in rows]]
        arrays = {name: np.array(rows, np.int64) for name, rows in places.items()}
        buffer = io.BytesIO()
        np.savez_compressed(buffer, quality=np.array(quality), **arrays)  # type: ignore[arg-type]
        self._write("places.npz", buffer.getvalue())
        self._write("items.json", json.dumps(list(numbers)).encode())

    def _count(self) -> int:
        """Return how many answers there are, 0 where they are not numbered yet."""
        file = self.out / "places.npz"
        return len(np.load(file)["quality"]) if file.exists() else 0

    def _features(self, start: int) -> None:
        items = json.loads((self.out / "items.json").read_text())[start : start + _ANSWERS]
        found = policy.Reader(self.policy).read([(prompt, answer) for prompt, answer in items])
        buffer = io.BytesIO()
        np.savez(buffer, hidden=found.hidden, logprob=found.logprob, tokens=found.tokens)
        self._write(f"features-{start}.npz", buffer.getvalue())

    def _join(self) -> None:
        """Put the features into one file that processes share in memory, and drop the pieces."""
        files = [self.out / f"features-{start}.npz" for start in range(0, self._count(), _ANSWERS)]
        pieces = [np.load(file) for file in files]
        for name in ("hidden", "logprob", "tokens"):
            buffer = io.BytesIO()
            np.save(buffer, np.concatenate([piece[name] for piece in pieces]))
            self._write(f"{name}.npy", buffer.getvalue())
        for file in files:
            file.unlink()

    def _write(self, name: str, content: bytes) -> None:
        replace(self.out / name, content)

    # ── what is there ───────────────────────────────────────────────────────────────────────────────────

    @cached_property
    def _places(self) -> dict[str, npt.NDArray[np.float64]]:
        with np.load(self.out / "places.npz") as found:
            return {name: found[name] for name in found.files}

    @cached_property
    def hidden(self) -> Floats:
        """Features of all answers, (answers, features), read from the file as they are needed."""
        found: Floats = np.load(self.out / "hidden.npy", mmap_mode="r")
        return found

    @cached_property
    def logprob(self) -> Doubles:
        """Log-probability of all answers under the policy: (answers,)."""
        return np.load(self.out / "logprob.npy").astype(np.float64)

    @cached_property
    def tokens(self) -> npt.NDArray[np.int32]:
        """Their tokens, end of sequence included: (answers,)."""
        found: npt.NDArray[np.int32] = np.load(self.out / "tokens.npy")
        return found

    @property
    def quality(self) -> Doubles:
        """Their true quality: (answers,)."""
        return self._places["quality"]

    def samples(self, part: str) -> Places:
        """Return the places of a part's own answers: (prompts, samples)."""
        return self._places[part].astype(np.int64)

    @property
    def golden(self) -> Places:
        """The places of the RL rows' golden responses: (rows,)."""
        return self._places["golden"][:, 0].astype(np.int64)

    def candidates(self, variant: str) -> Sets:
        """Return the sample sets `contrast` or `gpt` of the RL rows."""
        return Sets(self._places[variant][0].astype(np.int64), self._places[f"{variant}_lengths"][0].astype(np.int64))

    @cached_property
    def items(self) -> list[tuple[str, str]]:
        """Every answer, with its prompt before it, by place."""
        return [(prompt, answer) for prompt, answer in json.loads((self.out / "items.json").read_text())]

    @cached_property
    def families(self) -> npt.NDArray[np.str_]:
        """The family of each RL row."""
        return np.array([record["family"] for record in self.parts.rl])

    @cached_property
    def judged(self) -> list[Judged]:
        """What pairs are drawn from."""
        sampled, spoiled = self.samples("preference").tolist(), self.samples("spoiled").tolist()
        return [
            Judged(record["family"], own, other)
            for record, own, other in zip(self.parts.preference, sampled, spoiled, strict=True)
        ]

    def head(self, dials: Dials, seed: int) -> Head:
        """Train the reward model of one repetition."""
        pairs = judged_pairs(self.judged, self.quality, self.tokens - 1, dials, seed)
        return Head(self.hidden, pairs, seed)
