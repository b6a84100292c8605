"""One sentence that says whether a training learned, learned nothing, overfitted, or hacked its reward.

One rule: a difference counts where it is larger than twice its standard error over the held-out rows. The rows and the seed of
the sampling are the same at each measurement, so that the standard error of two independent means is an upper bound.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import NamedTuple


class Measure(NamedTuple):
    """What was measured on the held-out prompts after an update; 0 is before the first."""

    step: int
    reward: float
    """Mean reward of the answers, the one that is learned from."""
    reward_deviation: float
    """Standard deviation of that reward over the prompts."""
    gold: float | None = None
    """Mean of the reward that is not learned from."""
    gold_deviation: float = 0.0


def of_rewards(
    measures: Sequence[Measure],
    rows: int,
    first_mean: float | None = None,
    last_mean: float | None = None,
    trained: Sequence[Measure] = (),
    trained_rows: int = 0,
) -> str:
    """Say what a training by rewards came to.

    The reward is hacked where it rose on the held-out prompts while the gold reward fell from where it was best. The policy
    overfitted where its reward rose on the training prompts alone.

    Args:
        measures: The measurements in order, the one before the first update among them.
        rows: Held-out prompts of each measurement.
        first_mean: Mean reward of the first update's answers to training prompts.
        last_mean: The same of the last update.
        trained: The measurements on a fixed set of training prompts. With them, the means of the updates, which are of
            other prompts each time, are not needed.
        trained_rows: Training prompts of each measurement.

    Example:
        >>> of_rewards([Measure(0, 0.12, 0.1, 0.44, 0.1), Measure(120, 0.4, 0.1, 0.5, 0.1), Measure(200, 0.61, 0.1, 0.39, 0.1)], 64)
        'hacked: reward rose 0.12 to 0.61 while gold fell 0.5 to 0.39: stop at update 120'
    """
    if len(measures) < 2 or not rows:
        return "not measured: no prompts were held out; give --eval-rows or --eval-data"
    start, end = measures[0], measures[-1]
    rose = _change(start.reward, start.reward_deviation, end.reward, end.reward_deviation, rows)
    reward = _told("reward", rose, start.reward, end.reward)
    golds = [measure for measure in measures if measure.gold is not None]
    gold = ""
    if len(golds) > 1 and end.gold is not None:
        best = max(golds, key=lambda measure: measure.gold or 0.0)
        assert best.gold is not None and golds[0].gold is not None
        since = _change(best.gold, best.gold_deviation, end.gold, end.gold_deviation, rows)
        if since < 0 and rose > 0:
            stop = f"stop at update {best.step}" if best.step else _where_to_stop(measures)
            return f"hacked: {reward} while gold fell {_number(best.gold)} to {_number(end.gold)}: {stop}"
        moved = _change(golds[0].gold, golds[0].gold_deviation, end.gold, end.gold_deviation, rows)
        gold = f", and {_told('gold', moved, golds[0].gold, end.gold)}"
    on = f" on {rows:,} held-out prompts"
    if rose > 0:
        return f"learned: {reward}{gold}{on}"
    if rose < 0:
        return f"worse: {reward}{gold}{on}; lower learning_rate, or train longer"
    noise = 2 * _standard_error(start.reward_deviation, end.reward_deviation, rows)
    if len(trained) > 1 and trained_rows:
        first, last = trained[0], trained[-1]
        if _change(first.reward, first.reward_deviation, last.reward, last.reward_deviation, trained_rows) > 0:
            rise = f"{_number(first.reward)} to {_number(last.reward)} on {trained_rows:,} trained prompts"
            return f"overfitted: reward rose {rise}, and {reward}{on}"
    elif first_mean is not None and last_mean is not None and last_mean - first_mean > noise:
        return f"overfitted: reward rose {_number(first_mean)} to {_number(last_mean)} in training, and {reward}{on}"
    return f"learned nothing that shows: {reward}{gold}{on}, where ± {_number(noise)} is chance"


def of_losses(loss_before: float | None, loss_after: float | None, rows: int, losses: Sequence[float]) -> str:
    """Say what a training by examples came to, by its loss on held-out rows before and after, and by its training losses.

    Example:
        >>> of_losses(2.1, 2.6, 200, [2.3, 1.0, 0.4])
        'overfitted: training loss fell 2.3 to 0.4 while held-out loss rose 2.1 to 2.6 on 200 rows; take fewer steps or more rows'
    """
    fell = len(losses) > 1 and losses[-1] < losses[0]
    training = (
        f"training loss {'fell' if fell else 'rose'} {_number(losses[0])} to {_number(losses[-1])}" if losses else ""
    )
    if loss_before is None or loss_after is None:
        return "not measured: no rows were held out; give --eval-rows or --eval-data" + (
            f"; {training}" if training else ""
        )
    on = f"{_number(loss_before)} to {_number(loss_after)} on {rows:,} rows"
    if loss_after < loss_before:
        return f"learned: held-out loss fell {on}"
    if fell:
        return f"overfitted: {training} while held-out loss rose {on}; take fewer steps or more rows"
    return f"learned nothing that shows: held-out loss rose {on}; raise learning_rate, or take more steps"


def measures(lines: Iterable[Mapping[str, object]], name_of_set: str = "eval") -> list[Measure]:
    """Return the measurements on a set of prompts among the lines of a training's log: `eval`, held out, or `trained`."""
    series = []
    for line in lines:
        values = {
            name: line.get(f"{name_of_set}/{name}") for name in ("scores", "scores_deviation", "gold", "gold_deviation")
        }
        numbers = {name: float(value) for name, value in values.items() if isinstance(value, int | float)}
        if "scores" in numbers:
            series.append(
                Measure(
                    int(str(line["step"])),
                    numbers["scores"],
                    numbers.get("scores_deviation", 0.0),
                    numbers.get("gold"),
                    numbers.get("gold_deviation", 0.0),
                )
            )
    return series


def _where_to_stop(measures: Sequence[Measure]) -> str:
    if len(measures) > 2:
        return "gold was best before the first update"
    return "measure between by --eval-steps to see where to stop"


def _standard_error(deviation: float, later_deviation: float, rows: int) -> float:
    return math.sqrt((deviation**2 + later_deviation**2) / rows)


def _change(value: float, deviation: float, later: float, later_deviation: float, rows: int) -> int:
    """Return 1 for a rise that is larger than twice its standard error, -1 for such a fall, and 0 otherwise."""
    if abs(later - value) <= 2 * _standard_error(deviation, later_deviation, rows):
        return 0
    return 1 if later > value else -1


def _told(name: str, change: int, value: float, later: float) -> str:
    return f"{name} {('went', 'rose', 'fell')[change]} {_number(value)} to {_number(later)}"


def _number(value: float) -> str:
    return f"{value:.3g}"
