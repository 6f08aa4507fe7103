"""The charts of the report page: rows under each other, lines, and small panels on common axes.

What lies outside a frame is an arrow head on its edge or is counted in its corner, never dropped in silence.
"""

from __future__ import annotations

import math
import textwrap
from collections.abc import Callable, Iterable, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from markupsafe import Markup
from matplotlib.figure import Figure
from matplotlib.transforms import ScaledTranslation
from numpy.typing import ArrayLike

from convexlift.plots.drawing import COLOURS, DATA, Limits, tick, tick_text
from convexlift.plots.svg import as_svg

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_KNOWN = ("lift", "softplus", "projected", "softplus-fan-in", "squared", "lift-reference")
_LINES = ("-", "--", ":", "-.", (0, (4, 2)), (0, (6, 2)), (0, (1, 3)), (0, (4, 1, 1, 1, 1, 1)))
_MARKERS, _GLYPHS = "os^DXvPh", "●■▲◆✖▼✚⬢"
_WIDTHS = {"wide": 560, "narrow": 352}
_PANEL = 190, 200


class Style(NamedTuple):
    """How one series is drawn everywhere: colour, dash and marker, and the marker as a character."""

    colour: str
    line: Any
    marker: str
    glyph: str


def styles(names: Iterable[str]) -> dict[str, Style]:
    """One style per name: the usual arms always look alike; other names take the free places in order."""
    names = list(dict.fromkeys(names))
    free = [slot for slot in range(len(_LINES)) if slot >= len(_KNOWN) or _KNOWN[slot] not in names]
    others = [name for name in names if name not in _KNOWN]
    slots = {name: _KNOWN.index(name) for name in names if name in _KNOWN}
    slots |= {name: (free[::-1] or [0])[index % max(len(free), 1)] for index, name in enumerate(others)}
    return {
        name: Style(COLOURS[f"series-{slot}"], _LINES[slot], _MARKERS[slot], _GLYPHS[slot])
        for name, slot in slots.items()
    }


class Line(NamedTuple):
    """One series: y is None where it diverged; low and high bound its band; the chosen point is ringed."""

    name: str
    style: Style
    x: Sequence[float]
    y: Sequence[float | None]
    low: Sequence[float | None] = ()
    high: Sequence[float | None] = ()
    chosen: int | None = None


class Row(NamedTuple):
    """One labelled row: dots, a mark at ``value``, a thick and a thin (outer) interval, a text."""

    name: str
    style: Style
    value: float
    dots: Sequence[float] = ()
    interval: Limits | None = None
    outer: Limits | None = None
    text: str = ""
    titles: Sequence[str] = ()


def twice(draw: Callable[[int], Axes], title: str) -> Markup:
    """The chart for a wide and for a narrow screen, one of which is shown."""
    drawn = {kind: as_svg(partial(draw, width), title) for kind, width in _WIDTHS.items()}
    return Markup("".join(f'<div class="{kind}">{text}</div>' for kind, text in drawn.items()))


def panel(name: str, style: Style, told: str, *draw: Callable[[Axes], object]) -> Markup:
    """A little chart under its name; ``told`` is what a screen reader adds to the name."""

    def drawn() -> Axes:
        ax = _axes(*_PANEL, left=44, bottom=38, right=6, top=28)
        for step in draw:
            step(ax)
        _head(ax, name, style, 1.08, ax.transAxes)
        return ax

    return Markup(as_svg(drawn, f"{name}{told}"))


def words(text: str, ax: Axes) -> None:
    """A text in place of a chart."""
    ax.set_axis_off()
    lines = textwrap.fill(text, 27, max_lines=9, placeholder=" …")
    ax.text(0, 0.92, lines, va="top", color=DATA, transform=ax.transAxes)


def tips(ax: Axes, x: ArrayLike, y: ArrayLike, texts: Iterable[str], transform: Any = None) -> None:
    """Unseen spots that tell what lies under the pointer."""
    if texts := list(texts):
        spots = ax.scatter(x, y, s=200, alpha=0, transform=transform or ax.transData)
        spots.set(urls=texts, clip_on=False, in_layout=False, zorder=9)


def row_chart(
    rows: Sequence[Row], x_label: str, x_range: Limits, rule: tuple[str, float] | None, width: int
) -> Axes:
    """Rows on one horizontal axis: dots, a mean mark, its intervals, the figures as text."""
    top, bottom = 22 if rule else 4, 40
    ax = _axes(width, 44 * len(rows) + top + bottom, left=8, bottom=bottom, right=8, top=top)
    ax.set(xlim=x_range, ylim=(len(rows), 0), xlabel=x_label)
    ax.yaxis.set_visible(False)
    tick(ax, across=4 if width < 420 else 6)
    edges = ax.get_yaxis_transform()
    uprights = [(x, COLOURS["grid"], "-") for x in ax.get_xticks() if x_range[0] <= x <= x_range[1]]
    if rule:
        uprights.append((rule[1], DATA, ":"))
        ax.text(rule[1], -0.05, rule[0], color=DATA, ha="center")
    for top, row in enumerate(rows):
        colour, y = row.style.colour, top + 0.7
        for x, shade, line in uprights:  # through the text above they would turn a minus into a plus
            ax.plot([x, x], [top + 0.42, top + 1], line, color=shade, linewidth=0.8, zorder=0)
        _head(ax, row.name, row.style, top + 0.3, edges)
        ax.text(1, top + 0.3, row.text, color=DATA, ha="right", transform=edges)
        if row.outer:
            ax.plot(np.clip(row.outer, *x_range), [y, y], color=colour, linewidth=1.4)
            ax.plot(row.outer, [y, y], "|", color=colour, markersize=8)
        if row.interval:
            thick: dict[str, Any] = {"linewidth": 5, "alpha": 0.45, "solid_capstyle": "butt"}
            ax.plot(np.clip(row.interval, *x_range), [y, y], color=colour, **thick)
        lifted = [y + (0.07, -0.07, 0.0)[k % 3] for k in range(len(row.dots))]
        _held(ax, row.dots, lifted, "o", colour, alpha=0.75)
        mean = {"markersize": 18, "markeredgewidth": 2} if row.dots else {}
        shape, shade = ("|", COLOURS["ink"]) if row.dots else (row.style.marker, colour)
        _held(ax, [row.value], [y], shape, shade, **mean)
        titles = row.titles or [f"{row.name}: {tick_text(dot)}" for dot in row.dots]
        told = [f"{row.name}: {row.text}", *titles]
        tips(ax, np.clip([row.value, *row.dots], *x_range), [y, *lifted], told)
    return ax


def line_chart(
    lines: Sequence[Line],
    x_label: str,
    y_label: str,
    y_range: Limits,
    rates: Sequence[float],
    width: int,
) -> Axes:
    """Lines with bands. With ``rates`` the horizontal axis is logarithmic, and crosses above it diverged."""
    ax = Figure(figsize=(width / 72, 330 / 72), layout="constrained").add_subplot()
    ax.set(ylim=y_range, xlabel=x_label)
    tick(ax, across=4 if width < 420 else 6)
    if rates:
        shown = rates[:: math.ceil(len(rates) * 44 / (width - 60))]
        ax.set(xscale="log", xlim=(rates[0] / 1.15, rates[-1] * 1.15))
        ax.set_xticks(shown, [tick_text(rate) for rate in shown])
        ax.minorticks_off()
    else:
        ax.set_xlim(min(x for line in lines for x in line.x), max(x for line in lines for x in line.x))
    beyond: dict[str, Any] = {"clip_on": False, "in_layout": False}
    lost = bool(rates) and any(value is None for line in lines for value in line.y)
    ax.set_title(y_label, loc="left", color=DATA, pad=16 if lost else 6)
    ax.set_title("× diverged" if lost else "", loc="right", color=DATA, pad=16)
    for k, (name, style, *series, chosen) in enumerate(lines):
        x, y, low, high = (np.array(values, float) for values in series)
        every = 1 if rates else max(1, len(x) // 5)
        look = {"linestyle": style.line, "marker": style.marker, "color": style.colour}
        ax.plot(x, y, markevery=(k * every // len(lines), every), **look)
        if len(low):
            ax.fill_between(x, low, high, color=style.colour, alpha=0.16, linewidth=0)
        if chosen is not None:
            ax.plot(x[chosen], y[chosen], "o", markersize=16, fillstyle="none", color=style.colour)
        told = np.array(
            [f"{name} at {tick_text(a)}: {_loss(b, y_range[1])}" for a, b in zip(x, y, strict=True)]
        )
        inside = y <= y_range[1]
        tips(ax, x[inside], y[inside], told[inside])
        if rates:
            shift = 6 * (k - (len(lines) - 1) / 2) / 72
            edge = ax.get_xaxis_transform() + ScaledTranslation(shift, 0, ax.figure.dpi_scale_trans)
            for shape, there, height in (("^", y > y_range[1], 1.0), ("x", np.isnan(y), 1.04)):
                heights = np.full(int(there.sum()), height)
                ax.plot(x[there], heights, shape, color=style.colour, transform=edge, **beyond)
                tips(ax, x[there], heights, told[there], edge)
    return ax


def _axes(width: float, height: float, left: float, bottom: float, right: float, top: float) -> Axes:
    """The axes of a new figure, with margins, all in points."""
    figure = Figure(figsize=(width / 72, height / 72))
    inside = (width - left - right) / width, (height - bottom - top) / height
    return figure.add_axes((left / width, bottom / height, *inside))


def _loss(value: float, top: float) -> str:
    beyond = " (above the frame)" if value > top else ""
    return "diverged" if math.isnan(value) else f"{tick_text(float(f'{value:.5g}'))}{beyond}"


def _head(ax: Axes, name: str, style: Style, y: float, transform: Any) -> None:
    """A name with its marker before it."""
    ax.text(0, y, style.glyph, color=style.colour, transform=transform)
    ax.annotate(name, (0, y), (15, 0), xycoords=transform, textcoords="offset points")


def _held(ax: Axes, x: Sequence[float], y: Sequence[float], marker: str, colour: str, **look: Any) -> None:
    """Markers, and on the edges of the frame arrow heads for those beyond it."""
    low, high = ax.get_xlim()
    for value, height in zip(x, y, strict=True):
        shape = "<" if value < low else ">" if value > high else marker
        kept = look if shape == marker else {}
        ax.plot(min(max(value, low), high), height, shape, color=colour, clip_on=False, **kept)
