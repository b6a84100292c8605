"""Figures of a store: histograms, bars of labels, the map of its rows. Each is described once, and written as SVG or PNG."""

from __future__ import annotations

import math
import warnings
from collections.abc import Sequence
from html import escape
from pathlib import Path
from typing import NamedTuple

from seamcurate.explore.session import Chart, LabelColumn
from seamcurate.text import brief, clean, one_line

BLUE, GREY, SOFT = "#1f6fb2", "#b9b4a6", "#5b636e"
_SCALE = ("#82b1dc", "#7f9bcf", "#8480b8", "#96608f", "#a8455f", "#b83a2c", "#8f2500")
"""Colours from light to dark, so that the scale can be read without its hues."""
_SIDE, _FOOT, _HEAD = 12, 22, 40
_LABELS, _LONGEST, _LINE = 8, 18, 20
_SUBTITLE = 64
"""The most characters of a subtitle, as many as stand in a figure's width."""
_HIDES = 3
"""How many times as high as the next a bar is that hides the others."""


class Bar(NamedTuple):
    """A bar; or, where it is round, a dot in the middle of that bar."""

    x: float
    y: float
    width: float
    height: float
    fill: str
    tooltip: str
    round: bool = False


class Label(NamedTuple):
    """Text; `anchor` is start, middle or end."""

    x: float
    text: str
    anchor: str
    y: float | None = None
    """The y of its baseline; by default it stands on the line below the shapes."""


class Figure(NamedTuple):
    """Shapes above a line, and labels below it; in pixels, from the top left."""

    title: str
    width: int
    height: int
    shapes: list[Bar]
    labels: list[Label]
    ground: bool = True
    """Whether the shapes stand on a line."""
    subtitle: str = ""
    """What is drawn, in a line below the title of a file."""


class Point(NamedTuple):
    """A row on a map, or several rows at the same point, with the mean of their values."""

    x: float
    y: float
    value: float | None
    rows: int


def histogram(chart: Chart, counts: Sequence[int]) -> Figure:
    """Describe the rows in each bin of a chart; the axis of rows is logarithmic where one bar would hide the others."""
    width, height, left = 320, 110, 44
    highest, step = max(1, *counts, 1), (width - left - _SIDE) / chart.bins
    # One bar that hides the others, such as that of SEAM's zeros, makes the axis logarithmic.
    second = sorted(counts)[-2] if len(counts) > 1 else highest
    logarithmic = 0 < second < highest / _HIDES
    top = height - 6

    def size(n: int) -> float:
        share = math.log1p(n) / math.log1p(highest) if logarithmic else n / highest
        # At least one pixel: one row among a million stays visible.
        return max(1.0, share * top) if n else 0.0

    bars = [
        Bar(
            left + i * step + 0.5, height - size(n), max(0.5, step - 1), size(n), BLUE,
            f"{number(edge(chart, i))} to {number(edge(chart, i + 1))}: {n:,}",
        )
        for i, n in enumerate(counts)
        if n
    ]  # fmt: skip
    low, high = ends(chart)
    ticks = [n for n in (highest, round(math.expm1(math.log1p(highest) / 2)) if logarithmic else highest // 2) if n]
    labels = [Label(left, low, "start"), Label(width - _SIDE, high, "end")]
    labels += [Label(left - 4, f"{n:,}", "end", height - size(n) + 4) for n in dict.fromkeys(ticks)]
    axis = "rows, logarithmic" if logarithmic else "rows"
    subtitle = "; ".join(filter(None, (f"y: {axis}", chart.column.meaning)))
    return Figure(chart.column.name, width, height, bars, labels, subtitle=subtitle)


def bars(group: LabelColumn) -> Figure:
    """Describe how many rows have each of a column's most frequent labels."""
    width, (left, right) = 320, (132, 52)
    shown = group.values[:_LABELS]
    longest = max((rows for _, rows in shown), default=1)
    shapes, labels = [], []
    for i, (value, rows) in enumerate(shown):
        name = "no value" if value is None else value
        line_top = 4 + i * _LINE
        size = max(1.0, rows / longest * (width - left - right))
        shapes.append(Bar(left, line_top + 3, size, _LINE - 8, BLUE, f"{brief(name, 80)}: {rows:,}"))
        labels.append(Label(_SIDE, brief(name, _LONGEST), "start", line_top + 13))
        labels.append(Label(width - _SIDE, f"{rows:,}", "end", line_top + 13))
    if (hidden := len(group.values) - len(shown)) > 0:
        labels.append(Label(_SIDE, f"and {hidden:,} more", "start"))
    return Figure(
        group.column.name, width, 8 + _LINE * len(shown), shapes, labels, ground=False, subtitle="rows with each label"
    )


def scatter(x_chart: Chart, y_chart: Chart, colour: Chart | None, points: Sequence[Point], dot: float) -> Figure:
    """Describe a scatter plot of two columns, coloured by a third: dark is that column's bad end."""
    width, height = 960, 460

    def share(chart: Chart, value: float) -> float:
        return min(1.0, max(0.0, (value - chart.first) / (chart.step * chart.bins)))

    def tone(value: float | None) -> str:
        if colour is None:
            return BLUE
        if value is None:
            return GREY
        low, high = reach(colour)
        position = min(1.0, max(0.0, (value - low) / ((high - low) or 1.0)))
        return shade(1 - position if colour.worst == "low" else position)

    low = math.inf if colour is not None and colour.worst != "low" else -math.inf
    ordered = sorted(points, key=lambda p: low if p.value is None else p.value, reverse=low < 0)
    shapes = [
        Bar(
            _SIDE + share(x_chart, p.x) * (width - 2 * _SIDE) - dot / 2, 6 + (1 - share(y_chart, p.y)) * (height - 12) - dot / 2,
            dot, dot, tone(p.value), "" if p.value is None else f"{number(p.value)}, {p.rows:,}", round=dot < 8,
        )
        for p in ([p for p in ordered if p.value is None] + [p for p in ordered if p.value is not None])
    ]  # fmt: skip
    title = f"{y_chart.column.name} by {x_chart.column.name}"
    labels = [
        Label(_SIDE, number(x_chart.first), "start"),
        Label(width - _SIDE, number(edge(x_chart, x_chart.bins)), "end"),
    ]
    if colour is not None:
        title += f", coloured by {colour.column.name}"
        bad = {"low": "dark is low, and bad", "high": "dark is high, and bad", None: "dark is high"}[colour.worst]
        span = " to ".join(ends(colour))
        labels.append(Label(width / 2, f"{colour.column.name}: {span}, {bad}; grey has no value", "middle"))
    return Figure(title, width, height, shapes, labels)


def svg(figure: Figure, sized: bool = False) -> str:
    """Write a figure as SVG; `sized` gives it a size and a title, for a file of its own."""
    shapes = "".join(
        (
            f'<circle fill="{s.fill}" cx="{s.x + s.width / 2:.2f}" cy="{s.y + s.height / 2:.2f}" r="{s.width / 2:.2f}"'
            if s.round
            else f'<rect fill="{s.fill}" x="{s.x:.2f}" y="{s.y:.2f}" width="{s.width:.2f}" height="{s.height:.2f}"'
        )
        + (f"><title>{escape(clean(s.tooltip))}</title></{'circle' if s.round else 'rect'}>" if s.tooltip else "/>")
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
        labels += f'<text x="{_SIDE}" y="-24" font-weight="600">{escape(one_line(figure.title))}</text>'
        labels += f'<text x="{_SIDE}" y="-9" font-size="10">{escape(brief(figure.subtitle, _SUBTITLE))}</text>'
    ground = f'<path d="M{_SIDE} {figure.height}.5H{figure.width - _SIDE}" stroke="currentColor" opacity=".5"/>'
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" {size}viewBox="0 {-head} {figure.width} {tall}" role="img" '
        f'font-family="system-ui, DejaVu Sans, sans-serif" font-size="12" fill="currentColor"><title>{escape(one_line(figure.title))}</title>'
        f"{shapes}{ground if figure.ground else ''}{labels}</svg>\n"
    )


def _foot(figure: Figure, label: Label) -> float:
    return figure.height + 15 if label.y is None else label.y


def png(figure: Figure, file: Path) -> None:
    """Write a figure as PNG, three times as wide and high as its SVG; the same figure gives the same bytes.

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
    axes.text(_SIDE, -24, one_line(figure.title), size=9, weight="bold", parse_math=False)
    axes.text(_SIDE, -9, brief(figure.subtitle, _SUBTITLE), size=6.5, color=SOFT, parse_math=False)
    if figure.ground:
        axes.plot([_SIDE, figure.width - _SIDE], [figure.height + 0.5] * 2, color=SOFT, linewidth=0.5)
    alignment = {"start": "left", "middle": "center", "end": "right"}
    for label in figure.labels:
        # Else matplotlib would read a $ in a name as mathematics.
        axes.text(
            label.x,
            _foot(figure, label),
            one_line(label.text),
            ha=alignment[label.anchor],
            size=9,
            color=SOFT,
            parse_math=False,
        )
    with warnings.catch_warnings():
        # Where no font has a name's script, the PNG shows boxes; the SVG and the report show the text.
        warnings.filterwarnings("ignore", "Glyph", UserWarning)
        canvas.savefig(file, metadata={"Software": None})


def shade(position: float) -> str:
    """Return the colour at a position from 0 to 1 of the scale."""
    scaled = position * (len(_SCALE) - 1)
    i = min(len(_SCALE) - 2, int(scaled))
    ends = [[int(tone[k : k + 2], 16) for k in (1, 3, 5)] for tone in _SCALE[i : i + 2]]
    return "#" + "".join(f"{round(low + (high - low) * (scaled - i)):02x}" for low, high in zip(*ends, strict=True))


def edge(chart: Chart, i: int) -> float:
    """Return where bin `i` begins."""
    return chart.first + i * chart.step


def reach(chart: Chart) -> tuple[float, float]:
    """Return the range of values that the bins resolve; values beyond it are counted in the outermost bins."""
    return max(chart.low, chart.first), min(chart.high, edge(chart, chart.bins))


def ends(chart: Chart) -> tuple[str, str]:
    """Write the ends of a chart's range, with ≤ or ≥ where values lie beyond it."""
    low, high = reach(chart)
    return f"{'≤ ' if chart.low < low else ''}{number(low)}", f"{'≥ ' if chart.high > high else ''}{number(high)}"


def number(value: float) -> str:
    """Write a number in four digits."""
    return f"{value:.4g}" if math.isfinite(value) else "–"
