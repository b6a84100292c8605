"""Rulers of later work: what other papers choose prompts by, as columns to hold SEAM and RER against.

They read the rewards that SEAM's steps computed and ask no model. Each formula is one pure function here; what a row
has nothing for is NULL.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import ClassVar, TypeAlias

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
from pydantic import Field, JsonValue

from seamcurate.errors import StepError
from seamcurate.step import Data, Step, Transform, Variant, column, finite
from seamcurate.words import Words, split

Doubles: TypeAlias = npt.NDArray[np.float64]

_SAMPLED = 2048
_CURVE = 129


def reward_gap(golden: float | None, candidates: Sequence[float]) -> float:
    """Return the highest reward of golden response and candidates minus the lowest candidate's (R.I.P. 2501.18578 §3)."""
    return max(candidates if golden is None else (golden, *candidates)) - min(candidates)


def reward_spread(candidates: Sequence[float]) -> float | None:
    """Return the population standard deviation of rewards (2503.15477: low variance, little to learn); None below two."""
    return float(np.std(candidates)) if len(candidates) > 1 else None


def reward_margin(golden: float, candidates: Sequence[float]) -> float:
    """Return the golden reward minus the candidates' mean: a contrastive reward (2403.07708)."""
    return golden - math.fsum(candidates) / len(candidates)


def mean_misjudgement(golden: float, candidates: Sequence[float]) -> float:
    """Return the mean of max(R(r*) − R(r), 0): SEAM's ε without a likelihood."""
    return math.fsum(max(one - golden, 0.0) for one in candidates) / len(candidates)


def determination(rewards: Doubles, truth: Doubles) -> float | None:
    """Return R² of the least-squares line of truth on rewards; None below three points or where one does not vary."""
    if len(rewards) < 3 or np.ptp(rewards) == 0 or np.ptp(truth) == 0:
        return None
    return float(np.corrcoef(rewards, truth)[0, 1]) ** 2


def lowess(x: Doubles, y: Doubles, at: Doubles, fraction: float = 2 / 3, iterations: int = 3) -> Doubles:
    """Smooth y over x by locally weighted lines, and return the curve's values `at` (Cleveland 1979).

    Each line is fitted to the nearest `fraction` of the points, weighted by tricube; after each of `iterations` points
    far off the curve lose weight by bisquare.
    """
    nearest = min(len(x), max(2, math.ceil(fraction * len(x))))
    robust = np.ones(len(x))
    for _ in range(iterations):
        places, back = np.unique(x, return_inverse=True)
        off = np.abs(y - _lines(x, y, places, nearest, robust)[back])
        scale = 6 * float(np.median(off))
        # More than half of the points lie on the curve: there is no scale to tell the others' distance by.
        if scale <= 1e-12 * max(1.0, float(np.abs(y).max())):
            break
        robust = (1 - np.minimum(off / scale, 1) ** 2) ** 2
    return _lines(x, y, at, nearest, robust)


def _lines(x: Doubles, y: Doubles, at: Doubles, nearest: int, robust: Doubles) -> Doubles:
    values = np.empty(len(at))
    for i, place in enumerate(at):
        far = np.abs(x - place)
        width = np.partition(far, nearest - 1)[nearest - 1]
        near = (1 - np.minimum(far / width, 1) ** 3) ** 3 if width > 0 else (far == 0).astype(np.float64)
        weights = near * robust
        if weights.sum() == 0:
            weights = near if near.sum() > 0 else (far <= width).astype(np.float64)
        weights = weights / weights.sum()
        x_mean, y_mean = weights @ x, weights @ y
        spread = weights @ (x - x_mean) ** 2
        slope = (weights * (x - x_mean)) @ (y - y_mean) / spread if spread > 1e-12 * max(1.0, x_mean**2) else 0.0
        values[i] = y_mean + slope * (place - x_mean)
    return values


class Rip(Step):
    """Add what R.I.P. chooses prompts by: the rejected answer's reward and length, and the gap (arXiv:2501.18578 §3).

    The rejected answer is the candidate of lowest reward. Its length is counted in words. NULL where nothing was rewarded.
    It keeps prompts whose rejected answer is good and long and whose gap is small.

    Example:
        >>> from pathlib import Path
        >>> import pyarrow as pa
        >>> from seamcurate import Rip
        >>> worse = [{"response": "A list of things."}, {"response": "A map."}]
        >>> row = {"reward": 0.5, "worse_contrast": worse, "rewards_contrast": [0.9, 0.1]}
        >>> Rip().load(Path())(pa.Table.from_pylist([row])).to_pylist()[0]
        {'baseline_rejected_reward_contrast': 0.1, 'baseline_rejected_length_contrast': 3, 'baseline_reward_gap_contrast': 0.8}
    """

    revision: ClassVar[int] = 2
    rows_per_call: ClassVar[int] = 4096

    variant: Variant = "contrast"
    words: Words = "wordpunct"

    @property
    def name(self) -> str:
        """Name the folder after method and variant."""
        return f"baseline_rip_{self.variant}"

    @property
    def inputs(self) -> tuple[str, ...]:
        """Read the candidates and all rewards."""
        return ("reward", f"worse_{self.variant}", f"rewards_{self.variant}")

    @property
    def adds(self) -> pa.Schema:
        """Add reward and length of the rejected answer, and the gap."""
        v = self.variant
        return pa.schema(
            [
                column(f"baseline_rejected_reward_{v}", pa.float64(), "reward of the lowest-rewarded candidate"),
                column(f"baseline_rejected_length_{v}", pa.int32(), f"its length in words ({self.words})"),
                column(
                    f"baseline_reward_gap_{v}", pa.float64(), "highest reward, golden included, minus that; low = kept"
                ),
            ]
        )

    def load(self, shared: Path) -> Transform:
        """Return the arithmetic."""

        def add(rows: pa.Table) -> pa.Table:
            found: list[tuple[float | None, int | None, float | None]] = []
            for golden, worse, rewards in zip(*(rows[name].to_pylist() for name in self.inputs), strict=True):
                known = [(reward, i) for i, reward in enumerate(map(finite, rewards or [])) if reward is not None]
                if not known:
                    found.append((None, None, None))
                    continue
                lowest, place = min(known)
                length = len(split(worse[place]["response"], self.words))
                found.append((lowest, length, reward_gap(finite(golden), [reward for reward, _ in known])))
            return _table(found, self.adds)

        return add


class RewardSpread(Step):
    """Add how far the candidates' rewards spread, and how far above their mean the golden one lies.

    The spread is the population standard deviation (arXiv:2503.15477: where rewards vary little, there is little to learn);
    the margin is the golden reward minus the candidates' mean (arXiv:2403.07708). NULL below two candidates with a reward.

    Example:
        >>> from pathlib import Path
        >>> import pyarrow as pa
        >>> from seamcurate import RewardSpread
        >>> row = {"reward": 0.75, "rewards_contrast": [1.0, 0.0]}
        >>> RewardSpread().load(Path())(pa.Table.from_pylist([row])).to_pylist()[0]
        {'baseline_reward_spread_contrast': 0.5, 'baseline_reward_margin_contrast': 0.25}
    """

    rows_per_call: ClassVar[int] = 4096

    variant: Variant = "contrast"

    @property
    def name(self) -> str:
        """Name the folder after its first column."""
        return f"baseline_reward_spread_{self.variant}"

    @property
    def inputs(self) -> tuple[str, ...]:
        """Read all rewards."""
        return ("reward", f"rewards_{self.variant}")

    @property
    def adds(self) -> pa.Schema:
        """Add spread and margin."""
        v = self.variant
        return pa.schema(
            [
                column(f"baseline_reward_spread_{v}", pa.float64(), "standard deviation of the candidates' rewards"),
                column(f"baseline_reward_margin_{v}", pa.float64(), "golden reward minus the candidates' mean"),
            ]
        )

    def load(self, shared: Path) -> Transform:
        """Return the arithmetic."""

        def add(rows: pa.Table) -> pa.Table:
            found: list[tuple[float | None, float | None]] = []
            for golden, rewards in zip(*(rows[name].to_pylist() for name in self.inputs), strict=True):
                known = [reward for reward in map(finite, rewards or []) if reward is not None]
                margin = reward_margin(golden, known) if known and finite(golden) is not None else None
                found.append((reward_spread(known), margin))
            return _table(found, self.adds)

        return add


class LengthCalibrated(Step):
    """Add misjudgement by rewards from which what length alone earns is subtracted (arXiv:2409.17407).

    The curve of reward over length in characters is LOWESS over a sample of all golden responses and candidates.

    Raises:
        StepError: By `prepare`, where fewer than three answers have a reward, or all have one length.

    Example:
        >>> from seamcurate import LengthCalibrated
        >>> LengthCalibrated(fraction=0.5).adds.names
        ['baseline_calibrated_misjudgement_contrast', 'baseline_calibrated_misjudged_contrast']
    """

    rows_per_call: ClassVar[int] = 4096

    variant: Variant = "contrast"
    fraction: float = Field(default=2 / 3, gt=0, le=1)
    """The share of the sample each line is fitted to; Cleveland's default."""

    @property
    def name(self) -> str:
        """Name the folder after its first column."""
        return f"baseline_calibrated_misjudgement_{self.variant}"

    @property
    def inputs(self) -> tuple[str, ...]:
        """Read all answers and all rewards."""
        return ("response", "reward", f"worse_{self.variant}", f"rewards_{self.variant}")

    @property
    def reads_all_rows(self) -> bool:
        """The curve is fitted to all rows."""
        return True

    @property
    def adds(self) -> pa.Schema:
        """Add the mean misjudgement and the share misjudged, both after calibration."""
        v = self.variant
        return pa.schema(
            [
                column(f"baseline_calibrated_misjudgement_{v}", pa.float64(), "mean ε of length-calibrated rewards"),
                column(
                    f"baseline_calibrated_misjudged_{v}", pa.float64(), "share of candidates with such an ε above 0"
                ),
            ]
        )

    def prepare(self, data: Data, shared: Path) -> None:
        """Fit the curve of reward over length."""
        points = np.zeros((0, 2))
        step = 1
        seen = 0
        for table in data.rows(self.inputs):
            rows = zip(*(table[name].to_pylist() for name in self.inputs), strict=True)
            new = np.array([point for row in rows for point in _points(*row)]).reshape(-1, 2)
            # Every step-th of all points; the step doubles when there are too many.
            points, seen = np.concatenate([points, new[-seen % step :: step]]), seen + len(new)
            while len(points) > 2 * _SAMPLED:
                points, step = points[::2], step * 2
        if len(points) < 3 or np.ptp(points[:, 0]) == 0:
            raise StepError(f"step {self.name}: fewer than three rewards, or answers all of one length; leave it out")
        x, y = points.T
        at = np.unique(np.quantile(x, np.linspace(0, 1, _CURVE)))
        curve = lowess(x, y, at, self.fraction)
        (shared / "curve.json").write_text(json.dumps({"length": at.tolist(), "reward": curve.tolist()}))

    def load(self, shared: Path) -> Transform:
        """Return the arithmetic."""
        curve = json.loads((shared / "curve.json").read_text())

        def add(rows: pa.Table) -> pa.Table:
            found: list[tuple[float | None, float | None]] = []
            for row in zip(*(rows[name].to_pylist() for name in self.inputs), strict=True):
                points = np.array(_points(*row)).reshape(-1, 2)
                # Beyond the longest and shortest answer sampled, the curve stays level.
                calibrated = (points[:, 1] - np.interp(points[:, 0], curve["length"], curve["reward"])).tolist()
                if row[0] is None or finite(row[1]) is None or len(calibrated) < 2:
                    found.append((None, None))
                    continue
                golden, *candidates = calibrated
                above = sum(one > golden for one in candidates) / len(candidates)
                found.append((mean_misjudgement(golden, candidates), above))
            return _table(found, self.adds)

        return add

    def facts(self, columns: Iterable[pa.Table], shared: Path) -> dict[str, JsonValue]:
        """Say how much length alone earns."""
        curve = json.loads((shared / "curve.json").read_text())
        return {"curve": curve, "reward_of_length": max(curve["reward"]) - min(curve["reward"])}


class RewardReliability(Step):
    """Add how well the reward tells the truth among golden responses rewarded alike (PF-PPO, arXiv:2409.06957).

    Rows are put into `bands` of equally many by their golden reward. A band's reliability is R² of the column `truth` on the
    reward, NULL below three rows or where one of the two does not vary.

    Raises:
        StepError: By `prepare`, where no row has a reward.

    Example:
        >>> from seamcurate import RewardReliability
        >>> step = RewardReliability(truth="votes", bands=5)
        >>> step.inputs, step.adds.names
        (('reward', 'votes'), ['baseline_reward_band', 'baseline_reward_reliability'])
    """

    rows_per_call: ClassVar[int] = 4096

    truth: str
    """A column of numbers that the reward should tell: votes, a person's or a judge's rating of the golden response."""
    bands: int = Field(default=10, ge=1)

    @property
    def name(self) -> str:
        """Name the folder after its main column."""
        return "baseline_reward_reliability"

    @property
    def inputs(self) -> tuple[str, ...]:
        """Read the golden reward and the truth."""
        return ("reward", self.truth)

    @property
    def reads_all_rows(self) -> bool:
        """Bands are made of all rows."""
        return True

    @property
    def adds(self) -> pa.Schema:
        """Add the band and its reliability."""
        return pa.schema(
            [
                column("baseline_reward_band", pa.int32(), f"1 (lowest golden reward) to {self.bands}"),
                column("baseline_reward_reliability", pa.float64(), f"R² of {self.truth} on reward within the band"),
            ]
        )

    def prepare(self, data: Data, shared: Path) -> None:
        """Measure each band."""
        parts = [self._numbers(table) for table in data.rows(self.inputs)]
        rewards, truth = np.concatenate([*parts, np.zeros((2, 0))], axis=1)
        known = np.isfinite(rewards)
        if not known.any():
            raise StepError(f"step {self.name}: no row has a reward")
        edges = np.quantile(rewards[known], np.linspace(0, 1, self.bands + 1))[1:-1]
        both = known & np.isfinite(truth)
        band = np.searchsorted(edges, rewards[both], side="right")
        found = [determination(rewards[both][band == i], truth[both][band == i]) for i in range(self.bands)]
        counts = np.bincount(band, minlength=self.bands).tolist()
        (shared / "bands.json").write_text(json.dumps({"edges": edges.tolist(), "r2": found, "rows": counts}))

    def load(self, shared: Path) -> Transform:
        """Return the look-up."""
        measured = json.loads((shared / "bands.json").read_text())

        def add(rows: pa.Table) -> pa.Table:
            rewards = self._numbers(rows)[0]
            bands = np.searchsorted(measured["edges"], rewards, side="right").tolist()
            found = [
                (band + 1, measured["r2"][band]) if known else (None, None)
                for band, known in zip(bands, np.isfinite(rewards), strict=True)
            ]
            return _table(found, self.adds)

        return add

    def facts(self, columns: Iterable[pa.Table], shared: Path) -> dict[str, JsonValue]:
        """State every band's reliability."""
        measured: dict[str, JsonValue] = json.loads((shared / "bands.json").read_text())
        return measured

    def _numbers(self, table: pa.Table) -> Doubles:
        kind = table[self.truth].type
        if not (pa.types.is_integer(kind) or pa.types.is_floating(kind) or pa.types.is_boolean(kind)):
            raise StepError(f"step {self.name}: column {self.truth!r} holds {kind}, not numbers; name another `truth`")
        # Whole numbers beyond 2^53 are rounded.
        return np.stack([pc.cast(table[name], pa.float64(), safe=False).to_numpy() for name in self.inputs])


def _points(
    response: str | None, golden: float | None, worse: list[dict[str, str]] | None, rewards: list[float | None] | None
) -> list[tuple[int, float]]:
    """Return (characters, reward) of the golden response and each candidate, where both are known."""
    answers = [(response, golden), *((c["response"], r) for c, r in zip(worse or [], rewards or [], strict=True))]
    known = ((text, finite(reward)) for text, reward in answers if text is not None)
    return [(len(text), reward) for text, reward in known if reward is not None]


def _table(rows: Sequence[Sequence[float | None]], schema: pa.Schema) -> pa.Table:
    lists = zip(*rows, strict=True) if rows else [()] * len(schema)
    return pa.table([pa.array(values, field.type) for values, field in zip(lists, schema, strict=True)], schema=schema)
