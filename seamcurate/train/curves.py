"""A training's figure, `training.png`: what its log says of reward, KL divergence, length and gold, or of the loss, by update."""

from __future__ import annotations

import importlib.util
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

FILE = "training.png"


class _Panel(NamedTuple):
    title: str
    unit: str
    keys: tuple[tuple[str, str], ...]
    """Keys of the log and their names in the legend; several trainers name one thing differently."""


_PANELS = (
    _Panel(
        "Reward",
        "mean",
        (
            ("objective/scores", "training"),
            ("reward", "training"),
            ("trained/scores", "trained prompts"),
            ("eval/scores", "held out"),
        ),
    ),
    _Panel("Gold reward, not learned from", "mean", (("trained/gold", "trained prompts"), ("eval/gold", "held out"))),
    _Panel("KL from the start", "nats", (("objective/kl", "per answer"), ("kl", "per token"))),
    _Panel(
        "Length of answers",
        "tokens",
        (
            ("val/response_length", "training"),
            ("completions/mean_length", "training"),
            ("trained/response_length", "trained prompts"),
            ("eval/response_length", "held out"),
        ),
    ),
    _Panel("Groups without a better answer", "share", (("frac_reward_zero_std", "all rewards equal"),)),
    _Panel("Loss", "nats", (("loss", "training"), ("eval/loss", "held out"))),
)
_COLOURS = {"held out": "#e45756", "trained prompts": "#54a24b"}


def draw(lines: Sequence[Mapping[str, object]], file: Path, sentence: str) -> bool:
    """Draw the curves of a training's log as a PNG file; return False where there is nothing to draw, or no matplotlib."""
    drawn = [(panel, curves) for panel in _PANELS if (curves := _curves(panel, lines))]
    # A loss of rewarded answers is no measure of anything.
    if any(panel.title == "Reward" for panel, _ in drawn):
        drawn = [(panel, curves) for panel, curves in drawn if panel.title != "Loss"]
    if not drawn or importlib.util.find_spec("matplotlib") is None:
        return False
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    columns = min(2, len(drawn))
    rows = -(-len(drawn) // columns)
    figure = Figure(figsize=(5 * columns, 2.6 * rows + 0.6), dpi=100, layout="constrained")
    FigureCanvasAgg(figure)
    figure.suptitle(sentence, fontsize=9, wrap=True, parse_math=False)
    axes = figure.subplots(rows, columns, squeeze=False).ravel()
    for place, (panel, curves) in zip(axes, drawn, strict=False):
        for name, points in curves.items():
            steps, values = zip(*points, strict=True)
            marker = "o" if name in _COLOURS or len(points) == 1 else ""
            place.plot(steps, values, marker=marker, markersize=4, label=name, color=_COLOURS.get(name, "#4c78a8"))
        place.set_title(panel.title, fontsize=9)
        place.set_xlabel("update", fontsize=8)
        place.set_ylabel(panel.unit, fontsize=8)
        place.tick_params(labelsize=8)
        place.spines[["top", "right"]].set_visible(False)
        place.legend(frameon=False, fontsize=8)
    for place in axes[len(drawn) :]:
        place.set_axis_off()
    # The version of matplotlib is left out, so that the same training gives the same bytes.
    figure.savefig(file, metadata={"Software": None})
    return True


def _curves(panel: _Panel, lines: Sequence[Mapping[str, object]]) -> dict[str, list[tuple[int, float]]]:
    """Return the points of each curve of a panel, by the curve's name."""
    curves: dict[str, list[tuple[int, float]]] = {}
    for key, name in panel.keys:
        points = [
            (int(str(line["step"])), float(value))
            for line in lines
            if isinstance(value := line.get(key), int | float) and not isinstance(value, bool)
        ]
        if points:
            curves.setdefault(name, points)
    return curves
