"""Figures of a store, each described once and written as SVG or as PNG: histograms, bars of labels, the map of its rows."""

from __future__ import annotations

import math
import warnings
from collections.abc import Sequence
from html import escape
from pathlib import Path
from typing import NamedTuple

from seamcurate.explore.session import Chart, Group
from seamcurate.text import brief, clean, one_line

BLUE, GREY, SOFT = "#1f6fb2", "#b9b4a6", "#5b636e"
_SCALE = ("#82b1dc", "#7f9bcf", "#8480b8", "#96608f", "#a8455f", "#b83a2c", "#8f2500")
"""Ever darker, so that it is read without hues too."""
_SIDE, _FOOT, _HEAD = 12, 22, 26
_LABELS, _LONGEST, _LINE = 8, 18, 20


class Shape(NamedTuple):
    """A bar, or a dot in its middle where it is round."""

    x: float
    y: float
    width: float
    height: float
    fill: str
    told: str
    round: bool = False


class Label(NamedTuple):
    """Text; `anchor` is start, middle or end."""

    x: float
    text: str
    anchor: str
    y: float | None = None
    """Of its foot; else on the line below the shapes."""


class Figure(NamedTuple):
    """Shapes above a line, and labels below it; in pixels, from the top left."""

    title: str
    width: int
    height: int
    shapes: list[Shape]
    labels: list[Label]
    ground: bool = True
    """Whether the shapes stand on a line."""


class Point(NamedTuple):
    """A row on a map, or several in one place, with the mean of their values."""

    x: float
    y: float
    value: float | None
    rows: int


def histogram(chart: Chart, counts: Sequence[int]) -> Figure:
    """Describe the rows in each bin of a chart."""
    width, height = 320, 110
    top, step = max(1, *counts, 1), (width - 2 * _SIDE) / chart.bins
    bars = [
        Shape(
            _SIDE + i * step + 0.5, height - size, max(0.5, step - 1), size, BLUE,
            f"{number(edge(chart, i))} to {number(edge(chart, i + 1))}: {n:,}",
        )
        for i, n in enumerate(counts)
        # One row among a million stays visible.
        if (size := max(1.0, n / top * (height - 6)) if n else 0.0)
    ]  # fmt: skip
    low, high = ends(chart)
    labels = [Label(_SIDE, low, "start"), Label(width - _SIDE, high, "end")]
    return Figure(chart.column.name, width, height, bars, labels)


def bars(group: Group) -> Figure:
    """Describe how many rows have each of a column's most frequent labels."""
    width, (left, right) = 320, (132, 52)
    shown = group.values[:_LABELS]
    most = max((rows for _, rows in shown), default=1)
    shapes, labels = [], []
    for i, (value, rows) in enumerate(shown):
        name = "no value" if value is None else value
        top = 4 + i * _LINE
        size = max(1.0, rows / most * (width - left - right))
        shapes.append(Shape(left, top + 3, size, _LINE - 8, BLUE, f"{brief(name, 80)}: {rows:,}"))
        labels.append(Label(_SIDE, brief(name, _LONGEST), "start", top + 13))
        labels.append(Label(width - _SIDE, f"{rows:,}", "end", top + 13))
    if (more := len(group.values) - len(shown)) > 0:
        labels.append(Label(_SIDE, f"and {more:,} more", "start"))
    return Figure(group.column.name, width, 8 + _LINE * len(shown), shapes, labels, ground=False)


def scatter(across: Chart, up: Chart, colour: Chart | None, points: Sequence[Point], dot: float) -> Figure:
    """Describe where rows lie by two columns, coloured by a third: its bad end is the dark one."""
    width, height = 960, 460

    def share(chart: Chart, value: float) -> float:
        return min(1.0, max(0.0, (value - chart.first) / (chart.step * chart.bins)))

    def tone(value: float | None) -> str:
        if colour is None:
            return BLUE
        if value is None:
            return GREY
        low, high = reach(colour)
        part = min(1.0, max(0.0, (value - low) / ((high - low) or 1.0)))
        return shade(1 - part if colour.worst == "low" else part)

    low = math.inf if colour is not None and colour.worst != "low" else -math.inf
    ordered = sorted(points, key=lambda p: low if p.value is None else p.value, reverse=low < 0)
    shapes = [
        Shape(
            _SIDE + share(across, p.x) * (width - 2 * _SIDE) - dot / 2, 6 + (1 - share(up, p.y)) * (height - 12) - dot / 2,
            dot, dot, tone(p.value), "" if p.value is None else f"{number(p.value)}, {p.rows:,}", round=dot < 8,
        )
        for p in ([p for p in ordered if p.value is None] + [p for p in ordered if p.value is not None])
    ]  # fmt: skip
    told = f"{up.column.name} by {across.column.name}"
    labels = [
        Label(_SIDE, number(across.first), "start"),
        Label(width - _SIDE, number(edge(across, across.bins)), "end"),
    ]
    if colour is not None:
        told += f", coloured by {colour.column.name}"
        bad = {"low": "dark is low, and bad", "high": "dark is high, and bad", None: "dark is high"}[colour.worst]
        span = " to ".join(ends(colour))
        labels.append(Label(width / 2, f"{colour.column.name}: {span}, {bad}; grey has no value", "middle"))
    return Figure(told, width, height, shapes, labels)


def svg(figure: Figure, sized: bool = False) -> str:
    """Write a figure as SVG; `sized` for a file of its own, where no page says how large it is."""
    shapes = "".join(
        (
            f'<circle fill="{s.fill}" cx="{s.x + s.width / 2:.2f}" cy="{s.y + s.height / 2:.2f}" r="{s.width / 2:.2f}"'
            if s.round
            else f'<rect fill="{s.fill}" x="{s.x:.2f}" y="{s.y:.2f}" width="{s.width:.2f}" height="{s.height:.2f}"'
        )
        + (f"><title>{escape(clean(s.told))}</title></{'circle' if s.round else 'rect'}>" if s.told else "/>")
        for s in figure.shapes
    )
    labels = "".join(
        f'<text x="{label.x:g}" y="{_foot(figure, label):g}" text-anchor="{label.anchor}">{escape(one_line(label.text))}</text>'
        for label in figure.labels
    )
    head = _HEAD if sized else 0
    tall = figure.height + _FOOT + head
    size = f'width="{figure.width}" height="{tall}" ' if sized else ""
    if sized:
        labels += f'<text x="{_SIDE}" y="-9" font-weight="600">{escape(one_line(figure.title))}</text>'
    ground = f'<path d="M{_SIDE} {figure.height}.5H{figure.width - _SIDE}" stroke="currentColor" opacity=".5"/>'
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" {size}viewBox="0 {-head} {figure.width} {tall}" role="img" '
        f'font-family="system-ui, DejaVu Sans, sans-serif" font-size="12" fill="currentColor"><title>{escape(one_line(figure.title))}</title>'
        f"{shapes}{ground if figure.ground else ''}{labels}</svg>\n"
    )


def _foot(figure: Figure, label: Label) -> float:
    return figure.height + 15 if label.y is None else label.y


def png(figure: Figure, file: Path) -> None:
    """Write a figure as PNG, at three pixels for one; the same figure gives the same bytes.

    Raises:
        ModuleNotFoundError: matplotlib is not installed.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.collections import PatchCollection
    from matplotlib.figure import Figure as Canvas
    from matplotlib.patches import Ellipse, Patch, Rectangle

    canvas = Canvas(figsize=(figure.width / 96, (figure.height + _FOOT + _HEAD) / 96), dpi=288, facecolor="white")
    FigureCanvasAgg(canvas)
    axes = canvas.add_axes((0, 0, 1, 1))
    axes.set(xlim=(0, figure.width), ylim=(figure.height + _FOOT, -_HEAD))
    axes.axis("off")
    patches: list[Patch] = [
        Ellipse((s.x + s.width / 2, s.y + s.height / 2), s.width, s.height)
        if s.round
        else Rectangle((s.x, s.y), s.width, s.height)
        for s in figure.shapes
    ]
    axes.add_collection(PatchCollection(patches, facecolors=[s.fill for s in figure.shapes], linewidths=0))
    axes.text(_SIDE, -9, one_line(figure.title), size=9, weight="bold", parse_math=False)
    if figure.ground:
        axes.plot([_SIDE, figure.width - _SIDE], [figure.height + 0.5] * 2, color=SOFT, linewidth=0.5)
    side = {"start": "left", "middle": "center", "end": "right"}
    for label in figure.labels:
        # A name may hold what matplotlib takes for mathematics.
        axes.text(
            label.x,
            _foot(figure, label),
            one_line(label.text),
            ha=side[label.anchor],
            size=9,
            color=SOFT,
            parse_math=False,
        )
    with warnings.catch_warnings():
        # A name in a script that no font here has is boxes here; the SVG and the report spell it.
        warnings.filterwarnings("ignore", "Glyph", UserWarning)
        canvas.savefig(file, metadata={"Software": None})


def shade(part: float) -> str:
    """Return the colour at a share of the scale."""
    place = part * (len(_SCALE) - 1)
    i = min(len(_SCALE) - 2, int(place))
    ends = [[int(tone[k : k + 2], 16) for k in (1, 3, 5)] for tone in _SCALE[i : i + 2]]
    return "#" + "".join(f"{round(a + (b - a) * (place - i)):02x}" for a, b in zip(*ends, strict=True))


def edge(chart: Chart, i: int) -> float:
    """Return where bin `i` begins."""
    return chart.first + i * chart.step


def reach(chart: Chart) -> tuple[float, float]:
    """Return the smallest and the largest value that has a place of its own; the outermost bins share theirs with all beyond."""
    return max(chart.low, chart.first), min(chart.high, edge(chart, chart.bins))


def ends(chart: Chart) -> tuple[str, str]:
    """Write where a chart's values end, or its bins where values lie beyond them."""
    low, high = reach(chart)
    return f"{'≤ ' if chart.low < low else ''}{number(low)}", f"{'≥ ' if chart.high > high else ''}{number(high)}"


def number(value: float) -> str:
    """Write a number in four digits."""
    return f"{value:.4g}" if math.isfinite(value) else "–"
