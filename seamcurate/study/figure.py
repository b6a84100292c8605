"""Figures for print: intervals as dots with bars, curves with bands, a heat map; PNG at 300 dpi and SVG with real text.

Colours are Okabe and Ito's, told apart by the colour-blind, each with a marker of its own. Nothing here is global:
matplotlib's own settings stay as they are.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Mapping, Sequence
from functools import wraps
from pathlib import Path
from textwrap import fill, wrap
from typing import TYPE_CHECKING, NamedTuple, ParamSpec

import numpy as np

from seamcurate.study.statistics import Doubles, Interval
from seamcurate.text import one_line

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

BLUE, ORANGE, GREEN, RED, SKY, PINK = "#0072B2", "#E69F00", "#009E73", "#D55E00", "#56B4E9", "#CC79A7"
GREY, INK = "#7F7F7F", "#222222"
COLOURS = (BLUE, RED, GREEN, PINK, ORANGE, SKY)
_MARKERS = ("o", "s", "^", "D", "v", "P")
_WIDTH = 6.3
"""Inches: a page's text width."""
_LONGEST = 60
"""Characters of a label: a figure is no wider than its page, whatever a method is called."""
_TITLES = {1: 80, 2: 36, 3: 18, 4: 17}
"""Characters of a panel's title, by how many stand side by side."""
_LEGEND = 110
"""Characters of a legend's line, its marks included."""
_MOST, _PANELS = 200, 40
"""Dots, and panels or curves, of a figure: taller ones fit no page, and beyond some hundreds no file."""
_STYLE = {
    # A name may hold what matplotlib takes for mathematics.
    "text.parse_math": False,
    "font.family": "sans-serif",
    "font.sans-serif": ["DejaVu Sans", "Helvetica", "Arial", "sans-serif"],
    "font.size": 8,
    "axes.titlesize": 8.5,
    "axes.titleweight": "bold",
    "axes.titlelocation": "left",
    "axes.labelsize": 8,
    "axes.labelcolor": INK,
    "axes.edgecolor": "#999999",
    "axes.linewidth": 0.6,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.axisbelow": True,
    "text.color": INK,
    "xtick.color": "#444444",
    "ytick.color": "#444444",
    "xtick.major.width": 0.6,
    "ytick.major.width": 0.6,
    "xtick.major.size": 3,
    "ytick.major.size": 3,
    "grid.color": "#E4E4E4",
    "grid.linewidth": 0.6,
    "legend.frameon": False,
    "legend.fontsize": 7.5,
    "lines.linewidth": 1.4,
    "figure.facecolor": "white",
    "savefig.facecolor": "white",
    "svg.fonttype": "none",
    "svg.hashsalt": "seamcurate",
}

P = ParamSpec("P")


class Dot(NamedTuple):
    """A line of a dot plot."""

    label: str
    value: Interval
    ruler: bool = False
    """Rulers and controls are grey and hollow."""
    tick: float | None = None
    """Where chance would put it."""


class Curve(NamedTuple):
    """A line with a band: `values` are intervals at `x`."""

    label: str
    x: Sequence[float]
    values: Sequence[Interval]
    ruler: bool = False


def _styled(draw: Callable[P, Figure]) -> Callable[P, Figure]:
    @wraps(draw)
    def styled(*args: P.args, **kwargs: P.kwargs) -> Figure:
        import matplotlib

        with matplotlib.rc_context(_STYLE):
            return draw(*args, **kwargs)

    return styled


def save(figure: Figure, png: Path, svg: Path) -> None:
    """Write a figure twice; the same figure gives the same bytes."""
    import matplotlib

    with matplotlib.rc_context(_STYLE), warnings.catch_warnings():
        # A name in a script that no font here has is boxes in the PNG; the SVG and the table spell it.
        warnings.filterwarnings("ignore", "Glyph", UserWarning)
        figure.savefig(png, dpi=300, bbox_inches="tight", pad_inches=0.06, metadata={"Software": None})
        figure.savefig(svg, bbox_inches="tight", pad_inches=0.06, metadata={"Date": None, "Creator": None})


@_styled
def dots(
    panels: Mapping[str, Sequence[Dot]],
    x_label: str,
    note: str,
    line: tuple[float, str] | None = None,
    unit: str = "n",
    own_axes: bool = False,
) -> Figure:
    """Draw each panel's values as dots with their 95 % intervals, one under the other, `n` at the right.

    Args:
        panels: Dots by the panel's title.
        x_label: What is measured, with its unit; with `own_axes` each panel's title says that, below it.
        note: What dots and bars are.
        line: A place to compare with, and its name; with `own_axes` it is the last panel's.
        unit: What `n` counts.
        own_axes: Whether each panel has its own scale, side by side.
    """
    total, most = max(map(len, panels.values())), max(1, _MOST // len(panels))
    if total > most:
        panels = {title: some[:most] for title, some in panels.items()}
        note += f" The first {most:,} of {total:,} lines; the table has them all."
    across = len(panels) if own_axes else _columns(panels)
    down = math.ceil(len(panels) / across)
    sizes = [len(some) + 0.4 for some in panels.values()][::across]
    room = 36 if across < 3 else 20
    names = {title: [_folded(dot.label, room) for dot in some] for title, some in panels.items()}
    titles = {title: _folded(title, _TITLES[min(across, 4)], 3) for title in panels}
    high = 0.34 if any("\n" in name for some in names.values() for name in some) else 0.24
    over = 0.14 * max(title.count("\n") for title in titles.values())
    figure = _figure(high * sum(sizes) + (1.1 if own_axes else 0.9 + (0.28 + over) * down))
    grid = figure.subplots(
        down,
        across,
        sharex=not own_axes,
        sharey=across > 1,
        squeeze=False,
        gridspec_kw={"height_ratios": sizes},
    )
    for axes in grid.flat[len(panels) :]:
        axes.set_visible(False)
    last = grid.flat[len(panels) - 1]
    for axes, (title, some) in zip(grid.flat, panels.items(), strict=False):
        lined = line is not None and (axes is last or not own_axes)
        if line is not None and lined:
            axes.axvline(line[0], color=GREY, linewidth=0.8, linestyle=(0, (4, 3)), zorder=1)
        for place, dot in enumerate(some):
            _dot(axes, place, dot)
            if axes is last or not own_axes:
                _beside(axes, place, f"{dot.value.n:,}")
        if axes is (last if own_axes else grid[0, -1]):
            _beside(axes, -0.95, unit)
        axes.set_yticks(range(len(some)), names[title])
        axes.set_ylim(len(some) - 0.4, -0.6)
        axes.tick_params(axis="y", length=0)
        axes.grid(axis="x")
        axes.spines["left"].set_visible(False)
        axes.margins(x=0.06)
        if own_axes:
            axes.set_xlabel(fill(_short(title), 22 if across < 4 else 18))
            axes.locator_params(axis="x", nbins=3 if len(panels) > 2 else 5)
        else:
            axes.set_title(titles[title])
    _name_below(list(grid.flat[: len(panels)]), across)
    if line is not None:
        last.annotate(
            _short(line[1]), (line[0], 0), xycoords=("data", "axes fraction"), xytext=(3, 1), textcoords="offset points",
            fontsize=7, color=GREY, va="bottom",
        )  # fmt: skip
    if across > 1 and not own_axes:
        figure.supxlabel(_short(x_label), fontsize=8)
    elif not own_axes:
        last.set_xlabel(_short(x_label))
    return _noted(figure, note)


@_styled
def curves(
    panels: Mapping[str, Sequence[Curve]],
    x_label: str,
    y_label: str,
    note: str,
    marks: Sequence[float] = (),
) -> Figure:
    """Draw curves with bands of 95 %, a panel each side by side, at most four in a row.

    Args:
        panels: Curves by the panel's title.
        x_label: With its unit.
        y_label: With its unit.
        note: What lines and bands are.
        marks: Where x has ticks; labelled where there is room.
    """
    total = max(len(panels), *map(len, panels.values()))
    if total > _PANELS:
        panels = {title: some[:_PANELS] for title, some in list(panels.items())[:_PANELS]}
        note += f" The first {_PANELS} of {total:,}; the table has them all."
    columns = min(len(panels), 4)
    rows = math.ceil(len(panels) / columns)
    titles = {title: _folded(title, _TITLES[columns], 3) for title in panels}
    labels = [_short(curve.label) for curve in next(iter(panels.values()))]
    beside = min(len(labels), 4, max(1, _LEGEND // (max(map(len, labels), default=0) + 10)))
    over = 0.14 * max(title.count("\n") for title in titles.values())
    figure = _figure((2.0 + over) * rows + 1.0 if columns > 1 else 3.4 + 0.14 * (len(labels) // beside))
    grid = figure.subplots(rows, columns, sharex=True, sharey=True, squeeze=False)
    for axes in grid.flat[len(panels) :]:
        axes.set_visible(False)
    for axes, (title, some) in zip(grid.flat, panels.items(), strict=False):
        earnest = 0
        for curve in some:
            colour = GREY if curve.ruler else COLOURS[earnest % len(COLOURS)]
            marker = "" if curve.ruler else _MARKERS[earnest % len(_MARKERS)]
            earnest += not curve.ruler
            _curve(axes, curve, colour, marker)
        axes.set_title(titles[title])
        axes.grid(axis="y")
        if marks:
            _name(axes, list(marks), [f"{x:,g}" for x in marks], 40, 36)
            axes.minorticks_off()
    _name_below(list(grid.flat[: len(panels)]), columns)
    figure.supxlabel(x_label, fontsize=8)
    figure.supylabel(y_label, fontsize=8)
    handles, labels = grid.flat[0].get_legend_handles_labels()
    if len(labels) > 1:
        figure.legend(handles, labels, loc="outside upper center", ncols=beside)
    return _noted(figure, note)


@_styled
def heat(
    values: Doubles, rows: Sequence[str], columns: Sequence[str], labels: tuple[str, str, str, str],
    sides: Mapping[str, tuple[str, Sequence[Curve]]], note: str,
) -> Figure:  # fmt: skip
    """Draw a grid of values as a heat map, and beside it curves along either axis.

    Args:
        values: rows × columns; NaN where there is none.
        rows: The rows' names, from the bottom up.
        columns: The columns' names.
        labels: What columns, rows and colours are, and the last in short.
        sides: Two curve panels by title, along the columns and along the rows: the x label, and curves over 0, 1, ….
        note: What the panels show.
    """
    from matplotlib.ticker import MaxNLocator

    figure = _figure(2.9 + 0.1 * len(rows))
    mosaic: dict[str, Axes] = figure.subplot_mosaic([["grid", title] for title in sides], width_ratios=[1.25, 1])
    left = mosaic["grid"]
    image = left.imshow(values, origin="lower", aspect="auto", cmap="cividis")
    low, high = np.nanmin(values), np.nanmax(values)
    small = values.size <= 49
    # As many digits as a cell is wide, and enough that small values are not all 0.
    form = ".2f" if 0.1 <= np.nanmax(np.abs(values)) < 1000 else ".3g"
    for (i, j), value in np.ndenumerate(values):
        if np.isfinite(value) and small:
            dark = (value - low) < 0.55 * (high - low)
            left.text(
                j, i, format(value, form), ha="center", va="center", fontsize=6.5, color="white" if dark else "black"
            )
    _name(left, range(len(columns)), columns, 24, 18)
    left.set_yticks(range(len(rows)), rows)
    left.set_xlabel(labels[0])
    left.set_ylabel(labels[1])
    left.spines[:].set_visible(False)
    left.tick_params(length=0)
    bar = figure.colorbar(image, ax=left, location="top", fraction=0.05, pad=0.02, shrink=0.7)
    bar.outline.set_visible(False)
    bar.set_label(labels[2])
    bar.ax.tick_params(length=2)
    if form != ".2f":
        # What matplotlib would write beside the numbers lies on the label.
        bar.ax.xaxis.set_major_formatter("{x:.3g}")
        bar.locator = MaxNLocator(4)
        bar.update_ticks()
    first = mosaic[next(iter(sides))]
    for (title, (label, some)), names in zip(sides.items(), (columns, rows), strict=True):
        axes = mosaic[title]
        if axes is not first:
            # Before it is drawn on: afterwards it would keep the first one's limits, and lose what lies beyond.
            axes.sharey(first)
        for i, curve in enumerate(some):
            _curve(axes, curve, COLOURS[i % len(COLOURS)], _MARKERS[i % len(_MARKERS)])
        _name(axes, range(len(names)), names, 24, 15)
        axes.set_xlabel(label)
        axes.set_ylabel(labels[3])
        axes.set_title(title)
        axes.grid(axis="y")
    return _noted(figure, note)


def _figure(height: float) -> Figure:
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure as Drawn
    from matplotlib.layout_engine import ConstrainedLayoutEngine

    layout = ConstrainedLayoutEngine(w_pad=0.08, h_pad=0.06)
    figure = Drawn(figsize=(_WIDTH, height), layout=layout)
    FigureCanvasAgg(figure)
    return figure


def _columns(panels: Mapping[str, Sequence[Dot]]) -> int:
    """Put panels of the same lines side by side where a page would not hold them all below each other."""
    alike = len({tuple(dot.label for dot in some) for some in panels.values()}) == 1
    return 3 if alike and sum(map(len, panels.values())) > 18 else 1


def _beside(axes: Axes, place: float, text: str) -> None:
    across = axes.get_yaxis_transform()
    axes.text(1.015, place, text, transform=across, va="center", fontsize=7, color="#555555")


def _name(axes: Axes, places: Sequence[float], names: Sequence[str], room: int, most: int) -> None:
    """Name places on the x axis, aslant where the names are longer together than `room` characters.

    One that lies nearer to the last named than `most` equal steps over all places would is marked without a name.
    """
    step, last, shown = (max(places) - min(places)) / most, -math.inf, []
    for place, name in zip(places, names, strict=True):
        shown.append(name if place - last >= step else "")
        last = place if shown[-1] else last
    names = shown
    axes.set_xticks(places, names)
    if sum(map(len, names)) > room:
        axes.tick_params(axis="x", labelrotation=45)
        for label in axes.get_xticklabels():
            label.set(ha="right", rotation_mode="anchor")


def _dot(axes: Axes, place: int, dot: Dot) -> None:
    colour = GREY if dot.ruler else BLUE
    if not math.isnan(dot.value.low):
        axes.plot([dot.value.low, dot.value.high], [place, place], color=colour, linewidth=1.6, solid_capstyle="butt")
    if math.isfinite(dot.value.estimate):
        axes.plot(
            [dot.value.estimate], [place], "o", markersize=4.8, color=colour,
            markerfacecolor="white" if dot.ruler else colour, markeredgewidth=1.2,
        )  # fmt: skip
    if dot.tick is not None:
        axes.plot([dot.tick], [place], marker="|", markersize=9, color=ORANGE, markeredgewidth=1.6)


def _curve(axes: Axes, curve: Curve, colour: str, marker: str) -> None:
    low = [value.estimate if math.isnan(value.low) else value.low for value in curve.values]
    high = [value.estimate if math.isnan(value.high) else value.high for value in curve.values]
    axes.fill_between(curve.x, low, high, color=colour, alpha=0.16, linewidth=0)
    axes.plot(
        curve.x, [value.estimate for value in curve.values], color=colour, marker=marker or None, markersize=3.6,
        linestyle=(0, (4, 2)) if curve.ruler else "-", label=_short(curve.label),
    )  # fmt: skip


def _short(text: str) -> str:
    """Return a label as one line, its middle left out where it is too long."""
    line = one_line(text)
    half = _LONGEST // 2
    return line if len(line) <= _LONGEST else f"{line[:half]}…{line[1 - half :]}"


def _folded(text: str, width: int, lines: int = 2) -> str:
    """Return a label on lines of `width` characters, its middle left out where they do not hold it."""
    line, most = _short(text), width * lines
    if len(line) > most - lines:
        half = most // 2 - lines
        line = f"{line[:half]}…{line[1 - half :]}" if len(line) > 2 * half else line
    parts = wrap(line, width)
    if len(parts) > lines:
        parts = [line[start : start + width] for start in range(0, len(line), width)]
    return "\n".join(parts) or line


def _name_below(panels: Sequence[Axes], columns: int) -> None:
    """Write numbers below the lowest panel of each column: the last row may not fill."""
    for axes in panels[-columns:]:
        axes.tick_params(axis="x", labelbottom=True)


def _noted(figure: Figure, note: str) -> Figure:
    figure.text(0.01, -0.01, fill(one_line(note), 110), fontsize=6.8, color="#666666", va="top", ha="left")
    return figure
