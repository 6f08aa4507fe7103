"""The charts of the report page: rows under each other, lines, and small panels on common axes.

What lies outside a frame is an arrow head on its edge or is counted in its corner, never dropped in silence.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from itertools import cycle
from typing import Any, NamedTuple

import numpy as np
from markupsafe import Markup
from matplotlib.axes import Axes
from matplotlib.transforms import ScaledTranslation
from numpy.typing import ArrayLike

from convexlift.plots.drawing import COLOURS, DATA, Limits, axes_of, tick, tick_text
from convexlift.plots.svg import as_svg

_KNOWN = ("lift", "softplus", "projected", "softplus-fan-in", "squared", "lift-reference")
_LINES = ("-", "--", ":", "-.", (0, (4, 2)), (0, (6, 2)), (0, (1, 3)), (0, (4, 1, 1, 1, 1, 1)))
_MARKERS, _GLYPHS = "os^DXvPh", "●■▲◆✖▼✚⬢"
_WIDTH = 500
_BEYOND: dict[str, Any] = {"clip_on": False, "in_layout": False}


class Style(NamedTuple):
    """How one series is drawn everywhere: colour, dash and marker, and the marker as a character."""

    colour: str
    line: Any
    marker: str
    glyph: str


def styles(names: Iterable[str]) -> dict[str, Style]:
    """One style per name: the usual arms always look alike; other names take the free places in order."""
    names = list(dict.fromkeys(names))
    slots = {name: _KNOWN.index(name) for name in names if name in _KNOWN}
    free = [slot for slot in reversed(range(len(_LINES))) if slot not in slots.values()]
    slots |= dict(zip([name for name in names if name not in _KNOWN], cycle(free or [0]), strict=False))
    return {
        name: Style(COLOURS[f"series-{slot}"], _LINES[slot], _MARKERS[slot], _GLYPHS[slot])
        for name, slot in slots.items()
    }


class Line(NamedTuple):
    """One series: y is NaN where it diverged; low and high bound its band; the chosen point is ringed."""

    name: str
    style: Style
    x: Any
    y: Any
    low: Any = ()
    high: Any = ()
    chosen: int | None = None


class Row(NamedTuple):
    """One labelled row: dots, a mark at ``value``, a thick and a thin (outer) interval, a text."""

    name: str
    style: Style
    value: float
    dots: Sequence[float] = ()
    interval: Sequence[float] = ()
    outer: Sequence[float] = ()
    text: str = ""
    titles: Sequence[str] = ()


def chart(draw: Callable[[], Axes], title: str) -> Markup:
    """What a function draws, as HTML; the title is what a screen reader says."""
    return Markup(as_svg(draw, title))


def panel(name: str, style: Style, told: str, draw: Callable[[Axes], object]) -> Markup:
    """A little chart under its name; ``told`` is what a screen reader adds to the name."""

    def drawn() -> Axes:
        ax = axes_of(None, 190, 200)
        draw(ax)
        _head(ax, name, style, 1.08, ax.transAxes)
        return ax

    return chart(drawn, f"{name}, {told}")


def tips(ax: Axes, x: ArrayLike, y: ArrayLike, texts: Iterable[str], transform: Any = None) -> None:
    """Unseen spots that tell what lies under the pointer."""
    if texts := list(texts):
        spots = ax.scatter(x, y, s=200, alpha=0, transform=transform or ax.transData)
        spots.set(urls=texts, zorder=9, **_BEYOND)


def row_chart(
    rows: Sequence[Row], x_label: str, x_range: Limits, rule: tuple[str, float] | None = None
) -> Axes:
    """Rows on one horizontal axis: dots, a mean mark, its intervals, the figures as text."""
    ax = axes_of(None, _WIDTH, 44 * len(rows) + 54)
    ax.set(xlim=x_range, ylim=(len(rows), 0), xlabel=x_label)
    ax.yaxis.set_visible(False)
    ax.grid(axis="x")
    tick(ax)
    edges = ax.get_yaxis_transform()
    if rule and x_range[0] <= rule[1] <= x_range[1]:
        ax.axvline(rule[1], color=DATA, linestyle=":", linewidth=1)
        ax.text(rule[1], -0.05, rule[0], color=DATA, ha="center")
    for top, row in enumerate(rows):
        colour, y = row.style.colour, top + 0.7
        _head(ax, row.name, row.style, top + 0.3, edges)
        ax.text(1, top + 0.3, row.text, color=DATA, ha="right", transform=edges)
        ax.plot(row.outer, [y] * len(row.outer), "|-", color=colour, linewidth=1.4, markersize=8)
        thick: dict[str, Any] = {"linewidth": 5, "alpha": 0.45, "solid_capstyle": "butt"}
        ax.plot(row.interval, [y] * len(row.interval), color=colour, **thick)
        heights = [y, *(y + (0.07, -0.07, 0.0)[k % 3] for k in range(len(row.dots)))]
        mean = {"marker": "|", "color": COLOURS["ink"], "markersize": 18, "markeredgewidth": 2}
        looks: list[dict[str, Any]] = [mean if row.dots else {"marker": row.style.marker, "color": colour}]
        looks += [{"marker": "o", "color": colour, "alpha": 0.75}] * len(row.dots)
        for value, height, look in zip((row.value, *row.dots), heights, looks, strict=True):
            if not x_range[0] <= value <= x_range[1]:
                look = {"marker": "<" if value < x_range[0] else ">", "color": colour}
            ax.plot(np.clip(value, *x_range), height, clip_on=False, **look)
        told = row.titles or [f"{row.name}: {tick_text(dot)}" for dot in row.dots]
        tips(ax, np.clip([row.value, *row.dots], *x_range), heights, [f"{row.name}: {row.text}", *told])
    return ax


def line_chart(
    lines: Sequence[Line],
    x_label: str,
    y_label: str,
    y_range: Limits,
    rates: Sequence[float] = (),
    rules: Sequence[float] = (),
) -> Axes:
    """Lines with bands. With ``rates`` the horizontal axis is logarithmic, and crosses above it diverged.
    Rules are known levels."""
    ax = axes_of(None, _WIDTH, 330)
    tick(ax)
    if rates:
        ax.set(xscale="log", xlim=(rates[0] / 1.15, rates[-1] * 1.15))
        shown = rates[:: math.ceil(len(rates) / 10)]
        ax.set_xticks(shown, [tick_text(rate) for rate in shown])
        ax.minorticks_off()
    else:
        every_x = np.hstack([line.x for line in lines])
        ax.set_xlim(every_x.min(), every_x.max())
    ax.set(ylim=y_range, xlabel=x_label)
    for level in rules:
        ax.axhline(level, color=DATA, linestyle=":", linewidth=1)
    lost = bool(rates) and any(np.isnan(np.array(line.y, float)).any() for line in lines)
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
            shift = ScaledTranslation((k - (len(lines) - 1) / 2) / 12, 0, ax.figure.dpi_scale_trans)
            edge = ax.get_xaxis_transform() + shift
            for shape, there, height in (("^", y > y_range[1], 1.0), ("x", np.isnan(y), 1.04)):
                heights = np.full(int(there.sum()), height)
                ax.plot(x[there], heights, shape, color=style.colour, transform=edge, **_BEYOND)
                tips(ax, x[there], heights, told[there], edge)
    return ax


def _loss(value: float, top: float) -> str:
    beyond = " (above the frame)" if value > top else ""
    return "diverged" if math.isnan(value) else f"{tick_text(float(f'{value:.5g}'))}{beyond}"


def _head(ax: Axes, name: str, style: Style, y: float, transform: Any) -> None:
    """A name with its marker before it."""
    ax.text(0, y, style.glyph, color=style.colour, transform=transform)
    ax.annotate(name, (0, y), (15, 0), xycoords=transform, textcoords="offset points")
