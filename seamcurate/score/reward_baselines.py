"""Baselines of later work: the scores by which other papers choose prompts, as columns to compare SEAM and RER with.

They read the rewards that SEAM's steps computed and load no model. Each formula is one pure function here. A row that
lacks an input of the formula is NULL.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Annotated, ClassVar, TypeAlias

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
from pydantic import AfterValidator, Field, JsonValue
from typing_extensions import override

from seamcurate.errors import StepError
from seamcurate.step import Data, Step, Transform, Variant, column, finite, is_sampled
from seamcurate.words import Words, split

Doubles: TypeAlias = npt.NDArray[np.float64]


def _of_single_answers(variant: str) -> str:
    if is_sampled(variant):
        raise ValueError(
            f"the samples of {variant} are counted, and this baseline weighs each answer once; `difficulty` has their mean and spread"
        )
    return variant


_Unsampled = Annotated[Variant, AfterValidator(_of_single_answers)]
"""A sample set whose answers are one each."""

_SAMPLED_POINTS = 2048
"""Least number of answers that the curve of reward over length is fitted to, where the data hold as many."""
_ROUNDING = 1e-9
"""The share of a reward below which a difference of calibrated rewards is none."""
_CURVE_POINTS = 129
"""Quantiles of length at which the curve is stored."""


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
    return math.fsum(max(reward - golden, 0.0) for reward in candidates) / len(candidates)


def determination(rewards: Doubles, truth: Doubles) -> float | None:
    """Return R² of the least-squares line of truth on rewards; None below three points or where one does not vary."""
    if len(rewards) < 3 or np.ptp(rewards) == 0 or np.ptp(truth) == 0:
        return None
    return float(np.corrcoef(rewards, truth)[0, 1]) ** 2


def lowess(x: Doubles, y: Doubles, grid: Doubles, fraction: float = 2 / 3, iterations: int = 3) -> Doubles:
    """Smooth y over x by locally weighted lines, and return the curve's values on a grid of x (Cleveland 1979).

    Each line is fitted to the nearest `fraction` of the points, with tricube weights. Each of the `iterations` lowers the
    weights of points far off the curve, by bisquare.
    """
    nearest = min(len(x), max(2, math.ceil(fraction * len(x))))
    robust = np.ones(len(x))
    for _ in range(iterations):
        # Answers of one length share one line, which is fitted once.
        distinct, index = np.unique(x, return_inverse=True)
        residuals = np.abs(y - _lines(x, y, distinct, nearest, robust)[index])
        scale = 6 * float(np.median(residuals))
        # More than half of the points lie on the curve: the median gives no scale for the residuals of the other points.
        if scale <= 1e-12 * max(1.0, float(np.abs(y).max())):
            break
        # Bisquare: a point six median residuals off, or farther, has no weight in the next round.
        robust = (1 - np.minimum(residuals / scale, 1) ** 2) ** 2
    return _lines(x, y, grid, nearest, robust)


def _lines(x: Doubles, y: Doubles, grid: Doubles, nearest: int, robust: Doubles) -> Doubles:
    """Return the value of one weighted line at each point of the grid, given each data point's robustness weight."""
    values = np.empty(len(grid))
    for i, centre in enumerate(grid):
        distances = np.abs(x - centre)
        # The distance of the farthest point that the line is fitted to.
        width = np.partition(distances, nearest - 1)[nearest - 1]
        # No width where the nearest points all lie at the centre: then they alone count, alike.
        tricube = (1 - np.minimum(distances / width, 1) ** 3) ** 3 if width > 0 else (distances == 0).astype(np.float64)
        weights = tricube * robust
        # Robustness took every neighbour's weight: the line ignores it here.
        if weights.sum() == 0:
            weights = tricube if tricube.sum() > 0 else (distances <= width).astype(np.float64)
        weights = weights / weights.sum()
        # Least squares around the weighted means; level where all weight lies on one x.
        x_mean, y_mean = weights @ x, weights @ y
        spread = weights @ (x - x_mean) ** 2
        slope = (weights * (x - x_mean)) @ (y - y_mean) / spread if spread > 1e-12 * max(1.0, x_mean**2) else 0.0
        values[i] = y_mean + slope * (centre - x_mean)
    return values


class Rip(Step):
    """Add the scores by which R.I.P. chooses prompts: the rejected answer's reward and length, and the gap (arXiv:2501.18578 §3).

    The rejected answer is the candidate of lowest reward; its length is counted in words. A row in which no candidate has
    a reward is NULL. R.I.P. keeps prompts whose rejected answer is good and long and whose gap is small.

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
    @override
    def name(self) -> str:
        return f"baseline_rip_{self.variant}"

    @property
    @override
    def inputs(self) -> tuple[str, ...]:
        return ("reward", f"worse_{self.variant}", f"rewards_{self.variant}")

    @property
    @override
    def adds(self) -> pa.Schema:
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

    @override
    def load(self, shared: Path) -> Transform:

        def add(rows: pa.Table) -> pa.Table:
            baselines: list[tuple[float | None, int | None, float | None]] = []
            for golden, worse, rewards in zip(*(rows[name].to_pylist() for name in self.inputs), strict=True):
                ranked = [(reward, i) for i, reward in enumerate(map(finite, rewards or [])) if reward is not None]
                if not ranked:
                    baselines.append((None, None, None))
                    continue
                # Of equal rewards the first candidate is the rejected one.
                lowest, position = min(ranked)
                length = len(split(worse[position]["response"], self.words))
                baselines.append((lowest, length, reward_gap(finite(golden), [reward for reward, _ in ranked])))
            return _table(baselines, self.adds)

        return add


class RewardSpread(Step):
    """Add the spread of the candidates' rewards, and the margin of the golden reward over their mean.

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

    variant: _Unsampled = "contrast"

    @property
    @override
    def name(self) -> str:
        return f"baseline_reward_spread_{self.variant}"

    @property
    @override
    def inputs(self) -> tuple[str, ...]:
        return ("reward", f"rewards_{self.variant}")

    @property
    @override
    def adds(self) -> pa.Schema:
        v = self.variant
        return pa.schema(
            [
                column(f"baseline_reward_spread_{v}", pa.float64(), "standard deviation of the candidates' rewards"),
                column(f"baseline_reward_margin_{v}", pa.float64(), "golden reward minus the candidates' mean"),
            ]
        )

    @override
    def load(self, shared: Path) -> Transform:

        def add(rows: pa.Table) -> pa.Table:
            baselines: list[tuple[float | None, float | None]] = []
            for golden, rewards in zip(*(rows[name].to_pylist() for name in self.inputs), strict=True):
                candidates = [reward for reward in map(finite, rewards or []) if reward is not None]
                margin = reward_margin(golden, candidates) if candidates and finite(golden) is not None else None
                baselines.append((reward_spread(candidates), margin))
            return _table(baselines, self.adds)

        return add


class LengthCalibrated(Step):
    """Add misjudgement by calibrated rewards: the reward expected from length alone is subtracted (arXiv:2409.17407).

    The curve of reward over length in characters is LOWESS over a sample of all golden responses and candidates.

    Raises:
        StepError: By `prepare`, where fewer than three answers have a reward, or all have one length.

    Example:
        >>> from seamcurate import LengthCalibrated
        >>> LengthCalibrated(fraction=0.5).adds.names
        ['baseline_calibrated_misjudgement_contrast', 'baseline_calibrated_misjudged_contrast']
    """

    revision: ClassVar[int] = 2
    rows_per_call: ClassVar[int] = 4096

    variant: _Unsampled = "contrast"
    fraction: float = Field(default=2 / 3, gt=0, le=1)
    """The share of the sample that each line of LOWESS is fitted to; the default is Cleveland's."""

    @property
    @override
    def name(self) -> str:
        return f"baseline_calibrated_misjudgement_{self.variant}"

    @property
    @override
    def inputs(self) -> tuple[str, ...]:
        return ("response", "reward", f"worse_{self.variant}", f"rewards_{self.variant}")

    @property
    @override
    def reads_all_rows(self) -> bool:
        """The curve is fitted to all rows."""
        return True

    @property
    @override
    def adds(self) -> pa.Schema:
        v = self.variant
        return pa.schema(
            [
                column(f"baseline_calibrated_misjudgement_{v}", pa.float64(), "mean ε of length-calibrated rewards"),
                column(
                    f"baseline_calibrated_misjudged_{v}", pa.float64(), "share of candidates with such an ε above 0"
                ),
            ]
        )

    @override
    def prepare(self, data: Data, shared: Path) -> None:
        """Fit the curve of reward over length."""
        points = np.zeros((0, 2))
        step = 1
        point_count = 0
        for table in data.rows(self.inputs):
            rows = zip(*(table[name].to_pylist() for name in self.inputs), strict=True)
            new = np.array([point for row in rows for point in _points(*row)]).reshape(-1, 2)
            # Every step-th of all points is sampled; the step doubles when the sample grows too large.
            points = np.concatenate([points, new[-point_count % step :: step]])
            point_count += len(new)
            while len(points) > 2 * _SAMPLED_POINTS:
                points, step = points[::2], step * 2
        if len(points) < 3 or np.ptp(points[:, 0]) == 0:
            raise StepError(f"step {self.name}: fewer than three rewards, or answers all of one length; leave it out")
        x, y = points.T
        # Dense where answers are many; between these points the curve is taken as straight.
        grid = np.unique(np.quantile(x, np.linspace(0, 1, _CURVE_POINTS)))
        curve = lowess(x, y, grid, self.fraction)
        (shared / "curve.json").write_text(json.dumps({"length": grid.tolist(), "reward": curve.tolist()}))

    @override
    def load(self, shared: Path) -> Transform:
        curve = json.loads((shared / "curve.json").read_text())

        def add(rows: pa.Table) -> pa.Table:
            baselines: list[tuple[float | None, float | None]] = []
            for row in zip(*(rows[name].to_pylist() for name in self.inputs), strict=True):
                # (answers, 2): length and reward
                points = np.array(_points(*row)).reshape(-1, 2)
                # np.interp holds the curve level beyond the shortest and the longest answer of the sample.
                calibrated = (points[:, 1] - np.interp(points[:, 0], curve["length"], curve["reward"])).tolist()
                if row[0] is None or finite(row[1]) is None or len(calibrated) < 2:
                    baselines.append((None, None))
                    continue
                golden, *candidates = calibrated
                # Rewards that length alone explains differ by the rounding of the curve, which is no preference.
                rounding = _ROUNDING * float(np.abs(points[:, 1]).max())
                candidates = [golden if abs(reward - golden) <= rounding else reward for reward in candidates]
                misjudged = sum(reward > golden for reward in candidates) / len(candidates)
                baselines.append((mean_misjudgement(golden, candidates), misjudged))
            return _table(baselines, self.adds)

        return add

    @override
    def facts(self, columns: Iterable[pa.Table], shared: Path) -> dict[str, JsonValue]:
        """Return the curve, and the range of rewards that length alone explains."""
        curve = json.loads((shared / "curve.json").read_text())
        return {"curve": curve, "reward_of_length": max(curve["reward"]) - min(curve["reward"])}


class RewardReliability(Step):
    """Add the reward's reliability: how well it predicts the truth among golden responses of similar reward (PF-PPO, arXiv:2409.06957).

    The rows are sorted into `bands` of equal size by their golden reward. A band's reliability is R² of the column `truth`
    on the reward; it is NULL below three rows or where one of the two does not vary.

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
    """A column of numbers that the reward should predict: votes, or a person's or a judge's rating of the golden response."""
    bands: int = Field(default=10, ge=1)

    @property
    @override
    def name(self) -> str:
        return "baseline_reward_reliability"

    @property
    @override
    def inputs(self) -> tuple[str, ...]:
        return ("reward", self.truth)

    @property
    @override
    def reads_all_rows(self) -> bool:
        """The edges of the bands are quantiles over all rows."""
        return True

    @property
    @override
    def adds(self) -> pa.Schema:
        return pa.schema(
            [
                column("baseline_reward_band", pa.int32(), f"1 (lowest golden reward) to {self.bands}"),
                column("baseline_reward_reliability", pa.float64(), f"R² of {self.truth} on reward within the band"),
            ]
        )

    @override
    def prepare(self, data: Data, shared: Path) -> None:
        """Measure the reliability of each band."""
        parts = [self._numbers(table) for table in data.rows(self.inputs)]
        rewards, truth = np.concatenate([*parts, np.zeros((2, 0))], axis=1)
        has_reward = np.isfinite(rewards)
        if not has_reward.any():
            raise StepError(f"step {self.name}: no row has a reward")
        # The inner edges alone: a reward beyond all of this data still lies in the first or the last band.
        edges = np.quantile(rewards[has_reward], np.linspace(0, 1, self.bands + 1))[1:-1]
        complete = has_reward & np.isfinite(truth)
        rewards, truth = rewards[complete], truth[complete]
        # (rows,): each row's band, from 0
        band = np.searchsorted(edges, rewards, side="right")
        reliabilities = [determination(rewards[band == i], truth[band == i]) for i in range(self.bands)]
        counts = np.bincount(band, minlength=self.bands).tolist()
        (shared / "bands.json").write_text(json.dumps({"edges": edges.tolist(), "r2": reliabilities, "rows": counts}))

    @override
    def load(self, shared: Path) -> Transform:
        measured = json.loads((shared / "bands.json").read_text())

        def add(rows: pa.Table) -> pa.Table:
            rewards = self._numbers(rows)[0]
            bands = np.searchsorted(measured["edges"], rewards, side="right").tolist()
            baselines = [
                (band + 1, measured["r2"][band]) if has_reward else (None, None)
                for band, has_reward in zip(bands, np.isfinite(rewards), strict=True)
            ]
            return _table(baselines, self.adds)

        return add

    @override
    def facts(self, columns: Iterable[pa.Table], shared: Path) -> dict[str, JsonValue]:
        """Return the edges, the reliability and the size of each band."""
        measured: dict[str, JsonValue] = json.loads((shared / "bands.json").read_text())
        return measured

    def _numbers(self, table: pa.Table) -> Doubles:
        """Return golden rewards and truth as (2, rows)."""
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
    pairs = ((text, finite(reward)) for text, reward in answers if text is not None)
    return [(len(text), reward) for text, reward in pairs if reward is not None]


def _table(rows: Sequence[Sequence[float | None]], schema: pa.Schema) -> pa.Table:
    columns = zip(*rows, strict=True) if rows else [()] * len(schema)
    return pa.table(
        [pa.array(values, field.type) for values, field in zip(columns, schema, strict=True)], schema=schema
    )
