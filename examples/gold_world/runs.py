"""Tier R: does leaving prompts out help under reinforcement learning of the whole policy? One file a run, to be gone on with.

    python -m examples.gold_world.runs --out gold-decisive [--minutes 9] [--results rl.jsonl]

`--out` is the folder of a finished `experiment --preset decisive`, whose policy, samples and candidates it takes. One rule: gates
come before arms, on repetitions of their own; where one fails there are no arms, and that is the result.
"""

from __future__ import annotations

import argparse
import json
import math
import statistics as python_statistics
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from examples.gold_world import alignment, arms, gates, world
from examples.gold_world.alignment import Aligner
from examples.gold_world.experiment import FIRST_GATE_SEED, PRESETS
from examples.gold_world.frozen import Frozen
from examples.gold_world.policy import ANSWER_TOKENS, write
from examples.gold_world.prompts import Flags
from examples.gold_world.reward import Dials, TextReward
from examples.gold_world.verdicts import OPEN, PRIMARY, REFUTED, SHOWN, Results, Verdict, stopped
from seamcurate.storage.shard import replace
from seamcurate.study import statistics
from seamcurate.study.statistics import Interval
from seamcurate.train import PPOTraining, ppo

ARMS = ("full", "random", "seam_contrast", "seam_gpt", "oracle")
PPO_ARMS = ("ppo_full", "ppo_random", "ppo_seam_contrast")
"""The paper's trainer, by the bundled `ppo`; described, and no part of P4."""
LOOKS = {16: 0.001, 32: 0.009, 64: 0.04}
"""Repetitions at which P4 is looked at, each with its share of the error of .05."""
PPO_BATCH = 64
"""Prompts of an update of PPO, one answer each."""
GATE_SEEDS = 3
GATE = gates.name("R", PRIMARY)


class Run(NamedTuple):
    """One training: an arm in a repetition, by RLOO or, as `ppo_…`, by PPO; `truth` has true quality as the reward."""

    arm: str
    seed: int

    @property
    def name(self) -> str:
        """Name its file."""
        return f"rl-{self.arm}-{self.seed}"


def plan() -> tuple[list[Run], list[Run]]:
    """Return the gates' runs, and the arms' repetition by repetition: all of P4's before PPO's, which decide nothing."""
    looked = [Run("truth", FIRST_GATE_SEED), *(Run("full", FIRST_GATE_SEED + i) for i in range(GATE_SEEDS))]
    return looked, [Run(arm, seed) for some in (ARMS, PPO_ARMS) for seed in range(max(LOOKS)) for arm in some]


class Runs:
    """Tier R in the folder of a world.

    Args:
        out: The folder.
        frozen: What is shared.
        dials: What reward models are made from.
    """

    def __init__(self, out: Path, frozen: Frozen, dials: Dials = PRIMARY) -> None:
        self.out, self.frozen, self.dials = out, frozen, dials

    def measure(self, run: Run) -> dict[str, Any]:
        """Train one arm and measure it before and after."""
        start = time.process_time()
        records = self.frozen.parts.rl
        prepared = arms.prepare(self.frozen, self.dials, run.seed)
        arm = run.arm.removeprefix("ppo_")
        drop: Flags = np.zeros(len(records), bool)
        if arm not in ("full", "truth"):
            drop = arms.drops(prepared, run.seed)[arm]
        places = self.frozen.samples("rl")
        if run.arm == "truth":
            scale = alignment.spread(self.frozen.quality[places])
            aligner = Aligner(self.frozen.policy, truth_of(records))
        else:
            scale = alignment.spread(prepared.rewards[places])
            reward = TextReward(self.frozen.policy, self.frozen.head(self.dials, run.seed))
            if arm != run.arm:
                return self._ppo(run, drop, reward, start)
            aligner = Aligner(self.frozen.policy, reward)
        test = self.frozen.parts.test
        before = aligner.measure(test, records)
        updates = len(records) // min(alignment.PROMPTS, len(records))
        after, kl = [], []
        for update, divergence in aligner.train([record["prompt"] for record in records], drop, run.seed, scale):
            kl.append(divergence)
            if update in alignment.checkpoints(updates):
                after.append(aligner.measure(test, records))
        return {
            "arm": run.arm,
            "seed": run.seed,
            "pairs": self.dials.pairs,
            "blind": self.dials.blind,
            "updates": updates,
            "dropped": int(drop.sum()),
            "accuracy": round(gates.Look.of(prepared.found).accuracy, 5),
            "before": [round(value, 5) for value in before],
            "checkpoints": [[round(value, 5) for value in found] for found in after],
            "kl": [round(value, 4) for value in kl[-10:]],
            "cpu": round(time.process_time() - start, 1),
        }

    def _ppo(self, run: Run, drop: Flags, reward: TextReward, start: float) -> dict[str, Any]:
        """Train one arm by the bundled PPO, as many updates for every arm, and measure the policy it leaves."""
        records = self.frozen.parts.rl
        size = min(PPO_BATCH, len(records))
        config = PPOTraining(
            learning_rate=1e-4,
            warmup_steps=alignment.WARMUP,
            max_steps=len(records) // size,
            per_device_train_batch_size=size,
            max_length=64,
            response_length=ANSWER_TOKENS,
            kl_coef=alignment.BETA,
            kl_target=None,
            vf_coef=0.1,
            eval_rows=0,
            save_steps=0,
            lora=False,
            seed=run.seed,
        )
        kept = [record for record, out in zip(records, drop, strict=True) if not out]
        with tempfile.TemporaryDirectory() as scratch:
            out = Path(scratch) / "aligned"
            result = ppo(self.frozen.policy, reward, write(kept, Path(scratch) / "rl.parquet"), out, config)
            after = Aligner(out, reward).measure(self.frozen.parts.test, records)
        return {
            "arm": run.arm,
            "seed": run.seed,
            "pairs": self.dials.pairs,
            "blind": self.dials.blind,
            "updates": result["updates"],
            "dropped": int(drop.sum()),
            "checkpoints": [[round(value, 5) for value in after]],
            "kl": [result["kl"]],
            "cpu": round(time.process_time() - start, 1),
        }

    def run(self, until: float = math.inf) -> str:
        """Measure what is not there until the time is over; return how far it has come."""
        looked, planned = plan()
        if not self._do(looked, until):
            return f"{self._count(looked)} of {len(looked)} runs of the gates measured; run the same command again to go on"
        file = self.out / "gates" / f"{GATE}.json"
        if not file.exists():
            replace(file, json.dumps(gate([self.read(run) for run in looked])).encode())
        if not json.loads(file.read_text())["passed"]:
            return f"a gate failed, so that no arm is run: {file}"
        self._do(planned, until)
        return f"{self._count(planned)} of {len(planned)} runs measured"

    def _do(self, some: Sequence[Run], until: float) -> bool:
        for run in some:
            with self.frozen.alone(run.name) as free:
                if not free or self._file(run).exists():
                    continue
                if time.monotonic() >= until:
                    return False
                replace(self._file(run), json.dumps(self.measure(run)).encode())
        return self._count(some) == len(some)

    def _count(self, some: Sequence[Run]) -> int:
        return sum(self._file(run).exists() for run in some)

    def _file(self, run: Run) -> Path:
        return self.out / "cells" / f"{run.name}.json"

    def read(self, run: Run) -> dict[str, Any]:
        """Return what a run came to."""
        found: dict[str, Any] = json.loads(self._file(run).read_text())
        return found


def truth_of(records: Sequence[world.Record]) -> alignment.Reward:
    """Return true quality as a reward."""
    by_prompt = {record["prompt"]: record for record in records}

    def truth(asked: Sequence[str], answers: Sequence[str]) -> list[float]:
        return [world.quality(by_prompt[prompt], answer) for prompt, answer in zip(asked, answers, strict=True)]

    return truth


def quality(cell: dict[str, Any], measure: int = 0) -> float:
    """Return a run's quality: the mean over its checkpoints, by default of sampled answers to unseen prompts."""
    return python_statistics.fmean(found[measure] for found in cell["checkpoints"])


def gate(cells: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Return G2, G3 and G4 of tier R. G5 and G6 are looked at in tier H, for what they would cost here."""
    truth = [quality(cell) - cell["before"][0] for cell in cells if cell["arm"] == "truth"]
    full = [cell for cell in cells if cell["arm"] == "full"]
    accuracy = statistics.mean([cell["accuracy"] for cell in full])
    level = python_statistics.fmean(quality(cell) for cell in full)
    gain = statistics.mean([100 * (quality(cell) - cell["before"][0]) / level for cell in full])
    result: dict[str, Any] = {
        "G2": gates.truth_lifts(truth),
        "G3": {
            "says": "right on 58 to 80 % of the policy's pairs",
            "accuracy": _told(accuracy),
            "passed": gates.RIGHT[0] <= accuracy.estimate <= gates.RIGHT[1],
        },
        "G4": {"says": "full above SFT, unseen prompts, %", "full": _told(gain), "passed": gain.above_zero},
    }
    return result | {"passed": all(found["passed"] for found in result.values())}


def _told(interval: Interval) -> list[float]:
    return [round(value, 4) for value in interval[:3]]


def p4(cells: Sequence[dict[str, Any]]) -> Verdict:
    """Decide P4: under RL, SEAM_Contrast's prompts left out beat random ones, at the last look that is complete.

    At each of the looks the interval has the level that its share of .05 leaves; the shares add up to .05.
    """
    by_arm: dict[str, dict[int, float]] = {}
    for cell in cells:
        by_arm.setdefault(cell["arm"], {})[cell["seed"]] = quality(cell)
    seeds = sorted(set(by_arm.get("full", {})) & set(by_arm.get("random", {})) & set(by_arm.get("seam_contrast", {})))
    says = "under RL it beats random; looks at " + ", ".join(f"{n} (α {alpha})" for n, alpha in LOOKS.items())
    number = Interval(math.nan, math.nan, math.nan, len(seeds))
    for n, alpha in LOOKS.items():
        # Whole looks alone: the first n repetitions.
        if seeds[:n] != list(range(n)):
            break
        level = python_statistics.fmean(by_arm["full"][seed] for seed in range(n))
        gains = [100 * (by_arm["seam_contrast"][seed] - by_arm["random"][seed]) / level for seed in range(n)]
        number = statistics.mean(gains, 1 - alpha)
        if number.above_zero:
            return Verdict("P4", says, SHOWN, {f"look at {n}": number}, (n,))
        narrow = statistics.mean(gains, 0.90)
        if n == max(LOOKS) and narrow.low > -1 and narrow.high < 1:
            return Verdict("P4", says, REFUTED, {f"look at {n}": number}, (n,))
    return Verdict("P4", says, f"{OPEN}: {len(seeds)} repetitions", {"last look": number}, (min(LOOKS),))


def verdict(results: Results) -> Verdict:
    """Decide P4 from a file of results; where a gate failed there are no arms, and that is the result."""
    decided = p4([cell for cell in results.cells.values() if cell["seed"] < FIRST_GATE_SEED])
    return decided._replace(verdict=stopped(results, "R", (PRIMARY,)) or decided.verdict)


def tables(results: Results) -> list[str]:
    """Return tier R's tables: gates, P4 and every training, in Markdown."""
    looked, decided = results.gates[GATE], verdict(results)
    measured = {
        "G2": ", ".join(f"{value:+.3f}" for value in looked["G2"]["values"]),
        "G3": "{:.3f} ({:.3f} to {:.3f})".format(*looked["G3"]["accuracy"]),
        "G4": "{:+.2f} ({:+.2f} to {:+.2f})".format(*looked["G4"]["full"]),
    }
    lines = ["| gate | says | measured | passed |", "|---|---|---|---|"]
    for gate, told in measured.items():
        lines.append(f"| {gate} | {looked[gate]['says']} | {told} | {'yes' if looked[gate]['passed'] else '**no**'} |")
    lines += ["", f"{decided.claim}, {decided.says}: **{decided.verdict}**.", ""]
    lines += [
        "| training | repetition | unseen, sampled | unseen, likeliest | RL prompts, sampled | KL, nats | CPU seconds |"
    ]
    lines += ["|---|---|---|---|---|---|---|"]
    for cell in sorted(results.cells.values(), key=lambda cell: (cell["seed"], cell["arm"] != "truth", cell["arm"])):
        after = [quality(cell, measure) for measure in range(3)]
        ends = " | ".join(
            f"{value:.3f}" if "before" not in cell else f"{start:.3f} → {value:.3f}"
            for start, value in zip(cell.get("before", after), after, strict=True)
        )
        kl = python_statistics.fmean(cell["kl"])
        lines.append(f"| `{cell['arm']}` | {cell['seed']} | {ends} | {kl:.2f} | {cell['cpu']:.0f} |")
    return lines


def gain(cells: Sequence[dict[str, Any]], arm: str, other: str, full: str = "full") -> Interval:
    """Return by how much one arm lies above another over repetitions, in % of all prompts' mean quality; described only."""
    by_arm: dict[str, dict[int, float]] = {name: {} for name in (arm, other, full)}
    for cell in cells:
        if cell["arm"] in by_arm:
            by_arm[cell["arm"]][cell["seed"]] = quality(cell)
    seeds = sorted(set.intersection(*(set(values) for values in by_arm.values())))
    if len(seeds) < 2:
        return Interval(math.nan, math.nan, math.nan, len(seeds))
    level = python_statistics.fmean(by_arm[full][seed] for seed in seeds)
    return statistics.mean([100 * (by_arm[arm][seed] - by_arm[other][seed]) / level for seed in seeds])


def main() -> None:
    """Run what is left, for so many minutes at most, and say how far it has come."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--minutes", type=float, default=math.inf, help="begin no run after so long")
    parser.add_argument("--results", type=Path, help="write gates and runs to this file in the end")
    given = parser.parse_args()
    frozen = Frozen(given.out, PRESETS["decisive"].world)
    if not (given.out / "done" / "joined.json").exists():
        raise SystemExit(f"{given.out} holds no finished world; run experiment --preset decisive --out {given.out}")
    print(Runs(given.out, frozen).run(time.monotonic() + 60 * given.minutes))
    folder = given.out / "gates"
    pieces = [
        {"folder": file.parent.name, "name": file.stem, **json.loads(file.read_text())}
        for file in (*folder.glob(f"{GATE}.json"), *sorted((given.out / "cells").glob("rl-*.json")))
    ]
    found = Results.of_pieces(pieces)
    print(f"P4: {verdict(found).verdict}")
    measured = [cell for cell in found.cells.values() if cell["seed"] < FIRST_GATE_SEED]
    by_ppo = gain(measured, "ppo_seam_contrast", "ppo_random", "ppo_full")
    if by_ppo.n > 1:
        print(
            f"by PPO, no part of P4: SEAM_Contrast above random by {statistics.shown(by_ppo, '+.2f')} %, n = {by_ppo.n}"
        )
    if given.results:
        replace(given.results, "".join(f"{json.dumps(piece)}\n" for piece in pieces).encode())


if __name__ == "__main__":
    main()
