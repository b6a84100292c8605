"""The gold world's experiment: what is measured, in which order, in pieces that can be stopped and gone on with.

    python -m examples.gold_world.experiment --preset quick --out DIR [--workers 2] [--minutes 9] [--resume RESULTS.jsonl]

One rule: a gate's result is written before any arm of its setting is computed, and a setting that fails a gate has no arms.
A piece is one file, written whole; what is there is never computed again. Several processes share a folder.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from functools import cached_property, partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from examples.gold_world import arms, columns, gates, prompts, verdicts, world
from examples.gold_world.frozen import Frozen, Sets, World
from examples.gold_world.network import Shared
from examples.gold_world.reward import Dials
from seamcurate.storage.shard import replace
from seamcurate.study.statistics import Doubles

VALIDITY_SEEDS = verdicts.PLANNED["V"]
RATE_COLUMNS = ("seam_contrast_geometric", "seam_gpt_geometric", "seam_gpt_raw", "seam_policy")
PERMUTATIONS = 19
FIRST_GATE_SEED = 9000
"""Gates look at repetitions of their own."""


class Preset(NamedTuple):
    """Sizes of a world and of what is measured in it."""

    world: World
    prompts: tuple[tuple[Dials, int], ...]
    """Settings of tiers V and B, and how many repetitions each has."""
    network: tuple[tuple[Dials, int], ...]
    """Those of tier H."""
    attack: tuple[tuple[Dials, int], ...]
    """Those in which SEAM_Adv is measured."""
    golden: Dials
    """The one in which golden responses are made wrong."""
    gate_seeds: int


def _same(pairs: int, seeds: int) -> tuple[tuple[Dials, int], ...]:
    return tuple((Dials(pairs, blind), seeds) for blind in (2, 0))


_TINY = world.Sizes(40, 60, 60, 10, 500, 500)
_WHOLE = world.Sizes(4000, 6000, 4000, 1000, 60_000, 10_000)
PRESETS = {
    "tiny": Preset(
        World(_TINY, _TINY, 16, 4, 6, 4, 4),
        ((Dials(60, 2), 2),),
        ((Dials(60, 2), 2),),
        ((Dials(60, 2), 1),),
        Dials(60, 2),
        3,
    ),
    "quick": Preset(
        World(_WHOLE, _WHOLE._replace(test=100, rl=500, preference=1000, corpus=3000), 96, 1600, 15, 1, 6),
        (*_same(4000, 8), (Dials(500, 2), 8)),
        (),
        (),
        verdicts.PRIMARY,
        64,
    ),
    "decisive": Preset(
        World(_WHOLE, _WHOLE, 96, 1600, 15, 8, 6),
        (*_same(4000, 40), (Dials(1000, 2), 40), (Dials(500, 2), 40), (Dials(4000, 4), 40)),
        _same(4000, 20),
        ((verdicts.PRIMARY, 10),),
        verdicts.PRIMARY,
        6,
    ),
}
"""`tiny` is for tests: nothing learns. `quick` is the beginning of `decisive`: the folder `policy` of one serves the other."""


class Cell(NamedTuple):
    """One thing to measure: a tier, a setting and a repetition."""

    kind: str
    """`prompts` (tiers V and B), `network` (tier H) or `attack` (SEAM_Adv in V and B)."""
    dials: Dials
    seed: int

    @property
    def name(self) -> str:
        """Name its file."""
        return f"{self.kind}-{self.dials.pairs}-{self.dials.blind}-{self.seed}"


class Task(NamedTuple):
    """A piece of work, and the pieces that it needs."""

    name: str
    needs: tuple[str, ...]
    make: Callable[[], object]


def plan(preset: Preset) -> list[Cell]:
    """Return all cells, what decides the primary claims first."""
    made = {
        kind: [(dials, seed) for dials, seeds in getattr(preset, kind) for seed in range(seeds)]
        for kind in ("prompts", "network", "attack")
    }
    first = [
        Cell("prompts", d, s) for d, s in made["prompts"] if s < VALIDITY_SEEDS and d.blind == verdicts.PRIMARY.blind
    ]
    second = [Cell("prompts", d, s) for d, s in made["prompts"] if d in (verdicts.PRIMARY, verdicts.SOUND)]
    # Repetition by repetition, so that a run that is stopped has as many of each setting.
    second.sort(key=lambda cell: cell.seed)
    third = [Cell("network", d, s) for d, s in made["network"]]
    rest = [Cell(kind, d, s) for kind in ("attack", "prompts") for d, s in made[kind]]
    return list(dict.fromkeys([*first, *second, *third, *rest]))


class Experiment:
    """A preset's results in one folder.

    Raises:
        SystemExit: The folder holds another preset's results.
    """

    def __init__(self, out: Path, preset: Preset) -> None:
        self.out, self.preset = out, preset
        self.frozen = Frozen(out, preset.world)
        for folder in ("cells", "done", "gates"):
            (out / folder).mkdir(parents=True, exist_ok=True)
        sizes = json.dumps(preset)
        file = out / "preset.json"
        if not file.exists():
            replace(file, sizes.encode())
        elif file.read_text() != sizes:
            raise SystemExit(f"{out} holds results of other sizes; name another folder")

    # ── the order of work ───────────────────────────────────────────────────────────────────────────────

    def tasks(self) -> Iterator[Task]:
        """Yield all pieces that are known so far, in the order in which they are begun."""
        made: list[str] = []
        for name, make in self.frozen.tasks():
            stage = name.partition("-")[0]
            needs = {"policy": (), "retrieved": ()}.get(
                stage, tuple(made) if stage != "features" else ("items", "policy")
            )
            if stage in ("rl", "preference", "test"):
                needs = ("policy",)
            made.append(name)
            yield Task(name, needs, partial(self._timed, name, make))
        known: set[str] = set()
        for cell in plan(self.preset):
            tier = "H" if cell.kind == "network" else "B"
            gate = gates.name(tier, cell.dials)
            # Truth as reward is asked once for all settings.
            if tier == "H" and "gates-H" not in known:
                yield Task("gates-H", ("joined",), self._truth_gate)
            if gate not in known:
                needs = ("joined", "gates-H") if tier == "H" else ("joined",)
                yield Task(gate, needs, partial(self._gate, tier, cell.dials))
            known |= {gate, *(("gates-H",) if tier == "H" else ())}
            yield Task(cell.name, (gate,), partial(self.measure, cell))

    def run(self, until: float = float("inf")) -> int:
        """Do what no other process has begun, until nothing is left or the time is over; return how many pieces are left.

        Args:
            until: Begin nothing after this time of the monotonic clock.
        """
        while True:
            # Where committed results hold every cell, the world is not made again.
            if all(self.done(cell.name) for cell in plan(self.preset)):
                return 0
            left = [task for task in self.tasks() if not self.done(task.name)]
            if time.monotonic() >= until:
                return len(left)
            if not any(self._try(task) for task in left):
                time.sleep(0.5)

    def _try(self, task: Task) -> bool:
        """Do a piece unless it waits for another or another process does it; tell whether it was done here."""
        if not all(map(self.done, task.needs)):
            return False
        with self.frozen.alone(task.name) as free:
            if not free or self.done(task.name):
                return False
            task.make()
            return True

    def done(self, name: str) -> bool:
        """Tell whether a piece is there."""
        return any((self.out / folder / f"{name}.json").exists() for folder in ("done", "gates", "cells"))

    def _timed(self, name: str, make: Callable[[], object]) -> None:
        start = time.process_time()
        make()
        self._write("done", name, {"cpu": round(time.process_time() - start, 2)})

    def _write(self, folder: str, name: str, values: Mapping[str, object]) -> None:
        replace(self.out / folder / f"{name}.json", json.dumps(values).encode())

    def read(self, folder: str, name: str) -> dict[str, Any]:
        """Return what a piece came to."""
        found: dict[str, Any] = json.loads((self.out / folder / f"{name}.json").read_text())
        return found

    # ── gates ───────────────────────────────────────────────────────────────────────────────────────────

    @cached_property
    def shared(self) -> Shared:
        """What the trainings of tier H share."""
        return Shared(self.frozen)

    def _truth_gate(self) -> None:
        """Look at G2: whether truth as the reward lifts unseen prompts at all."""
        start = time.process_time()
        none = np.zeros(len(self.frozen.golden), bool)
        found = [
            self.shared.train(self.frozen.quality, none, FIRST_GATE_SEED + i).test - self.shared.before.test
            for i in range(2)
        ]
        gate = {"G2": gates.truth_lifts(found), "cpu": round(time.process_time() - start, 2)}
        self._write("gates", "gates-H", gate)

    def _gate(self, tier: str, dials: Dials) -> None:
        """Look at the gates of a setting, on repetitions of their own."""
        start = time.process_time()
        looks = []
        for seed in range(FIRST_GATE_SEED, FIRST_GATE_SEED + self.preset.gate_seeds):
            prepared = arms.prepare(self.frozen, dials, seed)
            seen = gates.Look.of(prepared.found)
            if tier == "B":
                quality = {
                    name: prompts.arm(prepared.found, arms.drop(prepared, name, seed))[gates.N]
                    for name in ("random", "random2", "oracle", "anti")
                }
                base, full = (
                    float(prepared.found.start.mean()),
                    prompts.arm(prepared.found, prepared.found.start < 0)[gates.N],
                )
            else:
                chosen = arms.drops(prepared, seed)
                quality = {
                    name: self.shared.train(prepared.rewards, chosen[name], seed).test
                    for name in ("full", "random", "random2", "oracle", "anti")
                }
                base, full = self.shared.before.test, quality["full"]
            looks.append(seen._replace(base=base, full=full, quality=quality))
        result = gates.of_setting(tier, looks)
        if tier == "H":
            result["G2"] = self.read("gates", "gates-H")["G2"]
        result["passed"] = all(gate["passed"] for gate in result.values())
        self._write("gates", gates.name(tier, dials), {**result, "cpu": round(time.process_time() - start, 2)})

    # ── cells ───────────────────────────────────────────────────────────────────────────────────────────

    def measure(self, cell: Cell) -> None:
        """Measure a cell and write it down.

        Raises:
            RuntimeError: Its gate has not been looked at.
        """
        gate = gates.name("H" if cell.kind == "network" else "B", cell.dials)
        if not (self.out / "gates" / f"{gate}.json").exists():
            raise RuntimeError(f"{gate} has not been looked at; gates come before arms")
        passed = bool(self.read("gates", gate)["passed"])
        start = time.monotonic(), time.process_time()
        result = getattr(self, f"_{cell.kind}")(cell, passed)
        seconds, cpu = (
            round(now - then, 2) for now, then in zip((time.monotonic(), time.process_time()), start, strict=True)
        )
        self._write(
            "cells", cell.name, {**cell.dials._asdict(), "seed": cell.seed, **result, "seconds": seconds, "cpu": cpu}
        )

    def _prompts(self, cell: Cell, passed: bool) -> dict[str, Any]:
        """Measure tier V, and tier B where its gates are passed."""
        prepared = arms.prepare(self.frozen, cell.dials, cell.seed)
        found, families = prepared.found, self.frozen.families
        result: dict[str, Any] = {
            "accuracy": _short(1 - np.nanmean(found.held.error)),
            "wrong_way": _short(np.mean(found.held.covariance[np.isfinite(found.held.error)] < 0)),
        }
        # The claims ask for no more; the file of results stays small.
        if cell.seed < VALIDITY_SEEDS or cell.dials == verdicts.PRIMARY:
            result["validity"] = {
                name: _shorts(prompts.validity(values, found.held, families))
                for name, values in prepared.columns.items()
            }
        if cell.seed < VALIDITY_SEEDS:
            result |= _spread(prepared.columns, found.held)
        if not passed:
            return {**result, "stopped": "a gate of tier B failed"}

        def quality(values: prompts.Flags) -> list[float]:
            return _shorts(prompts.arm(found, values)[n] for n in prompts.SIZES[1:])

        result["sft"] = _short(found.start.mean())
        result["full"] = quality(np.zeros(len(found.start), bool))
        result["arms"] = {name: quality(arms.drop(prepared, name, cell.seed)) for name in prepared.columns}
        result["rates"] = {
            name: [quality(arms.drop(prepared, name, cell.seed, rate))[1] for rate in verdicts.RATES]
            for name in RATE_COLUMNS
        }
        if cell.dials == self.preset.golden:
            result["golden"] = self._golden(prepared, cell.seed)
        return result

    def _golden(self, prepared: arms.Prepared, seed: int) -> dict[str, list[list[float]]]:
        """Measure AUC and quality at n = 4 where a share of golden responses is wrong: by column, by share."""
        frozen, rewards = self.frozen, prepared.rewards
        written = frozen.candidates("gpt")
        starts = np.cumsum(written.lengths) - written.lengths
        some = written.lengths > 0
        wrong = frozen.golden.copy()
        wrong[some] = written.places[starts[some]]
        # An answer that stands in for the golden response is no candidate of any row.
        keep = np.ones(len(written.places), bool)
        keep[starts[some]] = False
        sets = {
            "contrast": frozen.candidates("contrast"),
            "gpt": Sets(written.places[keep], written.lengths - some),
        }
        lot = np.random.default_rng([seed, 17]).random(len(wrong))
        result: dict[str, list[list[float]]] = {}
        for share in verdicts.GOLDEN_SHARES:
            golden = np.where(lot < share, rewards[wrong], rewards[frozen.golden])
            said: dict[str, Doubles] = {}
            for variant, chosen in sets.items():
                found = columns.of_set(frozen, rewards, variant, golden, chosen, simple=True)
                said[f"seam_{variant}"] = found[f"seam_{variant}_{columns.WEIGHTS[0]}"]
            own = rewards[frozen.samples("rl")[:, : prompts.HALF]]
            said["seam_policy"] = columns.K * np.maximum(own - golden[:, None], 0).mean(1)
            for name, values in said.items():
                out = prompts.dropped(values, arms.RATE, np.random.default_rng([seed, 11]), True)
                auc = prompts.validity(values, prepared.found.held, frozen.families).auc
                result.setdefault(name, []).append(_shorts([auc, prompts.arm(prepared.found, out)[4]]))
        return result

    def _network(self, cell: Cell, passed: bool) -> dict[str, Any]:
        """Measure tier H."""
        if not passed:
            return {"stopped": "a gate of tier H failed"}
        prepared = arms.prepare(self.frozen, cell.dials, cell.seed)
        train = partial(self.shared.train, prepared.rewards, seed=cell.seed)
        found = {name: _shorts(train(drop=out)) for name, out in arms.drops(prepared, cell.seed).items()}
        further = [_short(train(drop=out).test) for out in arms.random_drops(prepared, cell.seed, PERMUTATIONS)]
        return {"before": _shorts(self.shared.before), "arms": found, "permutations": further}

    def _attack(self, cell: Cell, passed: bool) -> dict[str, Any]:
        """Measure SEAM_Adv: its answers are made anew against this repetition's reward model."""
        from examples.gold_world.attack import attacked

        prepared = arms.prepare(self.frozen, cell.dials, cell.seed)
        said = attacked(self.frozen, self.frozen.head(cell.dials, cell.seed), prepared.rewards)
        held, families = prepared.found.held, self.frozen.families
        result: dict[str, Any] = {
            "validity": {name: _shorts(prompts.validity(v, held, families)) for name, v in said.items()},
        }
        if passed:
            every = prepared._replace(columns=said)
            result["arms"] = {
                name: _shorts(
                    prompts.arm(prepared.found, arms.drop(every, name, cell.seed))[n] for n in prompts.SIZES[1:]
                )
                for name in said
            }
        return result


def _spread(said: Mapping[str, Doubles], held: prompts.Truth) -> dict[str, Any]:
    """Return the standard errors over prompts of AUCs, and of the differences that S1 and S2 ask for."""
    names = [f"seam_{variant}_{weight}" for variant in ("contrast", "gpt") for weight in columns.WEIGHTS]
    draws = prompts.auc_draws(said, names, held)
    errors = {name: float(np.nanstd(values, ddof=1)) for name, values in draws.items()}
    for high, low in verdicts.COMPARED:
        errors[f"{high} − {low}"] = float(np.nanstd(draws[high] - draws[low], ddof=1))
    return {"auc_error": {name: _short(value) for name, value in errors.items()}}


def _short(value: float | np.floating[Any]) -> float | None:
    """Round a number; None where there is none, as JSON has no other."""
    return round(float(value), 5) if np.isfinite(value) else None


def _shorts(values: Iterable[float | np.floating[Any]]) -> list[float | None]:
    return [_short(value) for value in values]


def unpack(results: Path, out: Path) -> None:
    """Put the gates and cells of a file of results where a run goes on from them; what is there stays."""
    for line in results.read_text(encoding="utf-8").splitlines():
        piece = json.loads(line)
        folder, name = piece.pop("folder"), piece.pop("name")
        if folder in ("gates", "cells") and not (out / folder / f"{name}.json").exists():
            (out / folder).mkdir(parents=True, exist_ok=True)
            replace(out / folder / f"{name}.json", json.dumps(piece).encode())


def pack(out: Path, results: Path) -> None:
    """Write all gates and cells as one file, a line a piece."""
    lines = []
    for folder in ("gates", "cells"):
        for file in sorted((out / folder).glob("*.json")):
            piece = {"folder": folder, "name": file.stem, **json.loads(file.read_text())}
            lines.append(json.dumps(piece, separators=(",", ":")))
    replace(results, "".join(f"{line}\n" for line in lines).encode())


def main() -> None:
    """Run a preset, for so many minutes at most, and say what is left."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--preset", choices=PRESETS, default="quick")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--minutes", type=float, default=float("inf"), help="begin no piece after so long")
    parser.add_argument("--workers", type=int, default=1, help="processes, a core each")
    parser.add_argument("--resume", type=Path, help="a file of results to go on from")
    parser.add_argument("--results", type=Path, help="write gates and cells to this file in the end")
    given = parser.parse_args()
    until = time.monotonic() + 60 * given.minutes
    preset = PRESETS[given.preset]
    if given.resume:
        unpack(given.resume, given.out)
    Experiment(given.out, preset)
    # Read by the libraries of a new process when they are imported.
    os.environ["OMP_NUM_THREADS"] = "1"
    fresh = multiprocessing.get_context("spawn")
    workers = [fresh.Process(target=_work, args=(given.out, preset, until)) for _ in range(given.workers)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    if any(worker.exitcode for worker in workers):
        raise SystemExit("a process failed, see above; run the same command again to go on")
    cells = plan(preset)
    left = sum(not (given.out / "cells" / f"{cell.name}.json").exists() for cell in cells)
    if given.results:
        pack(given.out, given.results)
    print(
        f"{len(cells) - left} of {len(cells)} cells measured"
        + ("; run the same command again to go on" if left else "")
    )


def _work(out: Path, preset: Preset, until: float) -> None:
    Experiment(out, preset).run(until)


if __name__ == "__main__":
    main()
