"""Figures for print: intervals as dots with bars, histograms, curves with bands, a heat map; PNG at 300 dpi and SVG.

The colours are Okabe and Ito's, which colour-blind readers can tell apart, each with a marker of its own. Text in the SVG
stays text. One rule: matplotlib's global settings never change.
"""

from __future__ import annotations

import math
import re
import warnings
from collections.abc import Callable, Mapping, Sequence
from functools import wraps
from pathlib import Path
from textwrap import fill, wrap
from typing import TYPE_CHECKING, NamedTuple, ParamSpec

import numpy as np
import numpy.typing as npt

from seamcurate.study.statistics import Doubles, Interval
from seamcurate.text import brief, one_line

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
"""Characters of a label, so that a figure is no wider than its page whatever a method is called."""
_TITLES = {1: 80, 2: 36, 3: 18, 4: 17}
"""Characters of a panel's title, by how many stand side by side."""
_LEGEND = 110
"""Characters of a legend's line, its marks included."""
_MOST, _PANELS = 200, 40
"""Most dots, and most panels or curves, of a figure: a taller figure fits no page."""
_CAPTION = 600
"""Characters of a finding above its figure; the text file beside the figure has all of it."""
_BINS = 30
_STYLE = {
    # Otherwise matplotlib would read a `$` in a method's name as the start of a formula.
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
    """A row of a dot plot."""

    label: str
    value: Interval
    hollow: bool = False
    """Whether it is a baseline or a control, drawn grey and hollow."""
    tick: float | None = None
    """The value expected by chance, drawn as an orange tick."""


class Curve(NamedTuple):
    """A line with a band: `values` are intervals at `x`."""

    label: str
    x: Sequence[float]
    values: Sequence[Interval]
    dashed: bool = False
    """Whether it is a baseline or a control, drawn grey and dashed."""


class Histogram(NamedTuple):
    """A panel of one measure's distribution."""

    values: Doubles
    mean: Interval


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
        # A letter that no font here has becomes a box in the PNG; the SVG and the table keep the letter.
        warnings.filterwarnings("ignore", "Glyph", UserWarning)
        figure.savefig(png, dpi=300, bbox_inches="tight", pad_inches=0.06, metadata={"Software": None})
        figure.savefig(svg, bbox_inches="tight", pad_inches=0.06, metadata={"Date": None, "Creator": None})


@_styled
def captioned(figure: Figure, finding: str) -> Figure:
    """Write a study's finding above its figure, so that the figure says by itself what it shows."""
    # No line ends within "p < .05" or "5 %".
    text = fill(re.sub(r" (?=[<=%])|(?<=[<=]) ", "\u00a0", brief(finding, _CAPTION)), 90)
    # Above the page's upper edge: what is saved is cut to what is drawn.
    figure.text(0.01, 1.01, text, fontsize=7.8, fontweight="bold", va="bottom", ha="left", gid="finding")
    return figure


@_styled
def dots(
    panels: Mapping[str, Sequence[Dot]],
    x_label: str,
    note: str,
    line: tuple[float, str] | None = None,
    unit: str = "n",
    own_axes: bool = False,
) -> Figure:
    """Draw each panel's values as dots with their 95 % intervals, one below the other, `n` at the right.

    Args:
        panels: Dots by the panel's title.
        x_label: What is measured, with its unit; with `own_axes` each panel's title says that, below the panel.
        note: What dots and bars are.
        line: A value to compare with, and its name; with `own_axes` it belongs to the last panel.
        unit: What `n` counts.
        own_axes: Whether panels stand side by side, each with its own scale.
    """
    panels, note = _shortened(panels, note)
    columns = len(panels) if own_axes else _columns(panels)
    figure, used = _dot_grid(panels, columns, own_axes)
    last = used[-1]
    for axes, (title, panel) in zip(used, panels.items(), strict=True):
        compared = axes is last or not own_axes
        _dot_panel(axes, panel, 36 if columns < 3 else 20, line if compared else None, counted=compared)
        if own_axes:
            axes.set_xlabel(fill(_short(title), 22 if columns < 4 else 18))
            axes.locator_params(axis="x", nbins=3 if len(panels) > 2 else 5)
        else:
            axes.set_title(_panel_title(title, columns))
    _count(last if own_axes else used[min(columns, len(used)) - 1], -0.95, unit)
    _number_lowest(used, columns)
    if line is not None:
        last.annotate(
            _short(line[1]), (line[0], 0), xycoords=("data", "axes fraction"), xytext=(3, 1),
            textcoords="offset points", fontsize=7, color=GREY, va="bottom",
        )  # fmt: skip
    if columns > 1 and not own_axes:
        figure.supxlabel(_short(x_label), fontsize=8)
    elif not own_axes:
        last.set_xlabel(_short(x_label))
    return _noted(figure, note)


@_styled
def histograms(panels: Mapping[str, Histogram], unit: str, note: str) -> Figure:
    """Draw how each measure is distributed, side by side, with its mean as a line and the mean's interval as a band.

    Args:
        panels: Distributions by what they measure, with its unit.
        unit: What the bars count.
        note: What bars, line and band are.
    """
    figure = _figure(2.6)
    grid = figure.subplots(1, len(panels), squeeze=False)
    cut = False
    for axes, (label, panel) in zip(grid.flat, panels.items(), strict=True):
        values = panel.values[np.isfinite(panel.values)]
        # A few very long answers would squeeze all others into the first bar.
        limit = float(np.quantile(values, 0.99))
        if values.max() > 2 * limit > 0:
            values, cut = np.minimum(values, limit), True
        bins = min(_BINS, max(5, math.ceil(2 * len(values) ** 0.5)))
        axes.hist(values, bins=bins, color=SKY, edgecolor="white", linewidth=0.4)
        if not math.isnan(panel.mean.low):
            axes.axvspan(panel.mean.low, panel.mean.high, color=RED, alpha=0.25, linewidth=0)
        axes.axvline(panel.mean.estimate, color=RED, linewidth=1.2)
        axes.set_xlabel(fill(_short(label), 80 // len(panels)))
        axes.grid(axis="y")
        axes.locator_params(axis="x", nbins=5 if len(panels) < 4 else 4)
        axes.yaxis.get_major_locator().set_params(integer=True)
    grid[0, 0].set_ylabel(unit)
    return _noted(figure, note + (" The last bar holds all larger values too." if cut else ""))


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
        panels = {title: panel[:_PANELS] for title, panel in list(panels.items())[:_PANELS]}
        note += f" The first {_PANELS} of {total:,}; the table has them all."
    columns = min(len(panels), 4)
    rows = math.ceil(len(panels) / columns)
    titles = {title: _panel_title(title, columns) for title in panels}
    labels = [_short(curve.label) for curve in next(iter(panels.values()))]
    # As many names in a line of the legend as fit the page.
    names_in_line = min(len(labels), 4, max(1, _LEGEND // (max(map(len, labels), default=0) + 10)))
    title_height = 0.14 * max(title.count("\n") for title in titles.values())
    height = (2.0 + title_height) * rows + 1.0 if columns > 1 else 3.4 + 0.14 * (len(labels) // names_in_line)
    figure = _figure(height)
    used = _used(figure.subplots(rows, columns, sharex=True, sharey=True, squeeze=False), len(panels))
    for axes, (title, panel) in zip(used, panels.items(), strict=True):
        _curve_panel(axes, panel)
        axes.set_title(titles[title])
        axes.grid(axis="y")
        if marks:
            _name_ticks(axes, list(marks), [f"{x:,g}" for x in marks], 40, 36)
            axes.minorticks_off()
    _number_lowest(used, columns)
    figure.supxlabel(x_label, fontsize=8)
    figure.supylabel(y_label, fontsize=8)
    handles, labels = used[0].get_legend_handles_labels()
    if len(labels) > 1:
        legend = figure.legend(handles, labels, loc="outside upper center", ncols=names_in_line)
        # The legend is anchored to what is saved, which is larger than the page: it would move onto the finding above the
        # page. So the layout is made now, and the legend anchored to the page.
        figure.canvas.draw()
        figure.set_layout_engine("none")
        legend.set_bbox_to_anchor((0, 0, 1, 1), transform=figure.transFigure)
    return _noted(figure, note)


@_styled
def heat(
    values: Doubles, rows: Sequence[str], columns: Sequence[str], labels: tuple[str, str, str, str],
    sides: Mapping[str, tuple[str, Sequence[Curve]]], note: str,
) -> Figure:  # fmt: skip
    """Draw a grid of values as a heat map, and beside it curves along either axis.

    Args:
        values: rows × columns; NaN where a cell has no run.
        rows: The rows' names, from the bottom up.
        columns: The columns' names.
        labels: What columns, rows and colours are, and a short name of what colours are.
        sides: Two curve panels by title, along the columns and along the rows: the x label, and curves over 0, 1, ….
        note: What the panels show.
    """
    from matplotlib.ticker import MaxNLocator

    figure = _figure(2.9 + 0.1 * len(rows))
    mosaic: dict[str, Axes] = figure.subplot_mosaic([["grid", title] for title in sides], width_ratios=[1.25, 1])
    left = mosaic["grid"]
    image = left.imshow(values, origin="lower", aspect="auto", cmap="cividis")
    low, high = np.nanmin(values), np.nanmax(values)
    labelled = values.size <= 49
    # As many digits as fit a cell, and enough that small values are not all 0.
    form = ".2f" if 0.1 <= np.nanmax(np.abs(values)) < 1000 else ".3g"
    for (i, j), value in np.ndenumerate(values):
        if np.isfinite(value) and labelled:
            dark = (value - low) < 0.55 * (high - low)
            left.text(
                j, i, format(value, form), ha="center", va="center", fontsize=6.5, color="white" if dark else "black"
            )
    _name_ticks(left, range(len(columns)), columns, 24, 18)
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
        # matplotlib would write a common factor beside the numbers, on top of the label.
        bar.ax.xaxis.set_major_formatter("{x:.3g}")
        bar.locator = MaxNLocator(4)
        bar.update_ticks()
    upper = mosaic[next(iter(sides))]
    for (title, (label, panel)), names in zip(sides.items(), (columns, rows), strict=True):
        axes = mosaic[title]
        if axes is not upper:
            # Before anything is drawn: shared later, the axes would keep the first one's limits and cut off the rest.
            axes.sharey(upper)
        for i, curve in enumerate(panel):
            _curve(axes, curve, COLOURS[i % len(COLOURS)], _MARKERS[i % len(_MARKERS)])
        _name_ticks(axes, range(len(names)), names, 24, 15)
        axes.set_xlabel(label)
        axes.set_ylabel(labels[3])
        axes.set_title(title)
        axes.grid(axis="y")
    return _noted(figure, note)


def _figure(height: float) -> Figure:
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure as NewFigure
    from matplotlib.layout_engine import ConstrainedLayoutEngine

    layout = ConstrainedLayoutEngine(w_pad=0.08, h_pad=0.06)
    figure = NewFigure(figsize=(_WIDTH, height), layout=layout)
    FigureCanvasAgg(figure)
    return figure


def _shortened(panels: Mapping[str, Sequence[Dot]], note: str) -> tuple[Mapping[str, Sequence[Dot]], str]:
    """Return at most `_MOST` dots over all panels, and the note, which says so where there were more."""
    total, limit = max(map(len, panels.values())), max(1, _MOST // len(panels))
    if total <= limit:
        return panels, note
    note += f" The first {limit:,} of {total:,} lines; the table has them all."
    return {title: dots[:limit] for title, dots in panels.items()}, note


def _columns(panels: Mapping[str, Sequence[Dot]]) -> int:
    """Put panels of the same rows side by side where a page would not hold them all below each other."""
    same_rows = len({tuple(dot.label for dot in dots) for dots in panels.values()}) == 1
    return 3 if same_rows and sum(map(len, panels.values())) > 18 else 1


def _used(grid: npt.NDArray[np.object_], count: int) -> list[Axes]:
    """Return the first `count` axes of a grid, and hide the others."""
    for axes in grid.flat[count:]:
        axes.set_visible(False)
    return list(grid.flat[:count])


def _dot_grid(panels: Mapping[str, Sequence[Dot]], columns: int, own_axes: bool) -> tuple[Figure, list[Axes]]:
    """Make a figure with axes for each panel, as high as its rows of dots need."""
    rows = math.ceil(len(panels) / columns)
    labels = [_folded(dot.label, 36 if columns < 3 else 20) for dots in panels.values() for dot in dots]
    # Inches of a row of dots, which is taller where a label takes two lines, and of the titles' further lines.
    row_height = 0.34 if any("\n" in label for label in labels) else 0.24
    title_height = 0.14 * max(_panel_title(title, columns).count("\n") for title in panels)
    heights = [len(dots) + 0.4 for dots in panels.values()][::columns]
    figure = _figure(row_height * sum(heights) + (1.1 if own_axes else 0.9 + (0.28 + title_height) * rows))
    grid = figure.subplots(
        rows, columns, sharex=not own_axes, sharey=columns > 1, squeeze=False, gridspec_kw={"height_ratios": heights}
    )
    return figure, _used(grid, len(panels))


def _panel_title(title: str, columns: int) -> str:
    return _folded(title, _TITLES[min(columns, 4)], 3)


def _dot_panel(
    axes: Axes, dots: Sequence[Dot], label_width: int, line: tuple[float, str] | None, counted: bool
) -> None:
    if line is not None:
        axes.axvline(line[0], color=GREY, linewidth=0.8, linestyle=(0, (4, 3)), zorder=1)
    for y, dot in enumerate(dots):
        _dot(axes, y, dot)
        if counted:
            _count(axes, y, f"{dot.value.n:,}")
    axes.set_yticks(range(len(dots)), [_folded(dot.label, label_width) for dot in dots])
    axes.set_ylim(len(dots) - 0.4, -0.6)
    axes.tick_params(axis="y", length=0)
    axes.grid(axis="x")
    axes.spines["left"].set_visible(False)
    axes.margins(x=0.06)


def _count(axes: Axes, y: float, text: str) -> None:
    """Write a count, or what is counted, right of a row."""
    axes.text(1.015, y, text, transform=axes.get_yaxis_transform(), va="center", fontsize=7, color="#555555")


def _name_ticks(axes: Axes, positions: Sequence[float], names: Sequence[str], room: int, steps: int) -> None:
    """Name positions on the x axis, aslant where the names are longer together than `room` characters.

    A position keeps its tick and loses its name where it is nearer to the last named one than 1 / `most` of the axis.
    """
    step, named, labels = (max(positions) - min(positions)) / steps, -math.inf, []
    for position, name in zip(positions, names, strict=True):
        labels.append(name if position - named >= step else "")
        named = position if labels[-1] else named
    axes.set_xticks(positions, labels)
    if sum(map(len, labels)) > room:
        axes.tick_params(axis="x", labelrotation=45)
        for label in axes.get_xticklabels():
            label.set(ha="right", rotation_mode="anchor")


def _dot(axes: Axes, y: int, dot: Dot) -> None:
    colour = GREY if dot.hollow else BLUE
    if not math.isnan(dot.value.low):
        axes.plot([dot.value.low, dot.value.high], [y, y], color=colour, linewidth=1.6, solid_capstyle="butt")
    if math.isfinite(dot.value.estimate):
        axes.plot(
            [dot.value.estimate], [y], "o", markersize=4.8, color=colour,
            markerfacecolor="white" if dot.hollow else colour, markeredgewidth=1.2,
        )  # fmt: skip
    if dot.tick is not None:
        axes.plot([dot.tick], [y], marker="|", markersize=9, color=ORANGE, markeredgewidth=1.6)


def _curve_panel(axes: Axes, panel: Sequence[Curve]) -> None:
    """Draw curves, each that is no baseline in the next colour."""
    coloured = 0
    for curve in panel:
        if curve.dashed:
            _curve(axes, curve, GREY, "")
        else:
            _curve(axes, curve, COLOURS[coloured % len(COLOURS)], _MARKERS[coloured % len(_MARKERS)])
            coloured += 1


def _curve(axes: Axes, curve: Curve, colour: str, marker: str) -> None:
    low = [value.estimate if math.isnan(value.low) else value.low for value in curve.values]
    high = [value.estimate if math.isnan(value.high) else value.high for value in curve.values]
    axes.fill_between(curve.x, low, high, color=colour, alpha=0.16, linewidth=0)
    axes.plot(
        curve.x, [value.estimate for value in curve.values], color=colour, marker=marker or None, markersize=3.6,
        linestyle=(0, (4, 2)) if curve.dashed else "-", label=_short(curve.label),
    )  # fmt: skip


def _short(text: str) -> str:
    """Return a label as one line, without its middle where it is too long."""
    line = one_line(text)
    half = _LONGEST // 2
    return line if len(line) <= _LONGEST else f"{line[:half]}…{line[1 - half :]}"


def _folded(text: str, width: int, lines: int = 2) -> str:
    """Return a label on at most `lines` lines of `width` characters, without its middle where it is too long."""
    line, room = _short(text), width * lines
    if len(line) > room - lines:
        half = room // 2 - lines
        line = f"{line[:half]}…{line[1 - half :]}" if len(line) > 2 * half else line
    parts = wrap(line, width)
    if len(parts) > lines:
        parts = [line[start : start + width] for start in range(0, len(line), width)]
    return "\n".join(parts) or line


def _number_lowest(panels: Sequence[Axes], columns: int) -> None:
    """Write the x axis's numbers below the lowest panel of each column: the last row may have fewer panels."""
    for axes in panels[-columns:]:
        axes.tick_params(axis="x", labelbottom=True)


def _noted(figure: Figure, note: str) -> Figure:
    figure.text(0.01, -0.01, fill(one_line(note), 110), fontsize=6.8, color="#666666", va="top", ha="left")
    return figure
