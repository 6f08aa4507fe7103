"""Small inline-SVG charts for the report page: lines, rows of dots and intervals.

Every function returns one ``<svg>`` string. Colours are CSS variables (``--series-0`` ... ``--series-7``,
``--ink``, ``--muted``, ``--grid``) that charts.css defines, so one drawing serves light and dark pages.
Values that lie outside the frame are drawn as arrow heads on its edge, never dropped in silence.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from html import escape
from importlib import resources

_KNOWN = ("lift", "softplus", "projected", "softplus-fan-in", "squared", "lift-reference")
_DASHES = ("", "7 3", "2 3", "9 3 2 3", "4 2", "12 4", "1 4", "6 2 1 2 1 2")
_MARKERS = ("circle", "square", "triangle", "diamond", "cross", "down", "ring", "bar")


def style_sheet(name: str) -> str:
    """The text of one of the style sheets beside this module: "charts" (with the colours) or "report"."""
    return resources.files(__package__).joinpath(f"{name}.css").read_text(encoding="utf-8")


@dataclass(frozen=True)
class Style:
    """How one series is drawn everywhere: colour, dash and marker."""

    colour: str
    dash: str
    marker: str


def styles(names: Iterable[str]) -> dict[str, Style]:
    """One style per name: the usual arms always look alike; other names take the free places in order."""
    names = list(dict.fromkeys(names))
    free = [slot for slot in range(len(_DASHES)) if slot >= len(_KNOWN) or _KNOWN[slot] not in names]
    others = [name for name in names if name not in _KNOWN]
    slots = {name: _KNOWN.index(name) for name in names if name in _KNOWN}
    slots |= {name: (free[::-1] or [0])[index % max(len(free), 1)] for index, name in enumerate(others)}
    return {
        name: Style(f"var(--series-{slot})", _DASHES[slot], _MARKERS[slot]) for name, slot in slots.items()
    }


@dataclass(frozen=True)
class Axis:
    """Maps values between low and high to pixels between start and stop, linearly or by logarithm."""

    low: float
    high: float
    start: float
    stop: float
    log: bool = False

    def at(self, value: float) -> float:
        low, high = (math.log(self.low), math.log(self.high)) if self.log else (self.low, self.high)
        place = (math.log(value) if self.log else value) - low
        return self.start + (self.stop - self.start) * place / ((high - low) or 1.0)

    def holds(self, value: float) -> bool:
        return self.low <= value <= self.high


def linear_ticks(low: float, high: float, count: int = 5) -> list[float]:
    """Round values (steps of 1, 2 or 5 times a power of ten) within [low, high], about ``count`` of them."""
    span = high - low
    if not span > 0:
        return [low]
    power = 10.0 ** math.floor(math.log10(span / count))
    step = next((power * m for m in (1, 2, 5) if span / (power * m) <= count), power * 10)
    first = math.ceil(low / step - 1e-9)
    return [index * step for index in range(first, math.floor(high / step + 1e-9) + 1)]


def tick_text(value: float) -> str:
    """A short axis label: 0.001, 25, 2,000, with a true minus sign."""
    size = abs(value)
    text = f"{value:,.0f}" if size >= 1000 else f"{value:.0e}" if 0 < size < 1e-4 else f"{value:.6g}"
    return text.replace("-", "−")


def robust_range(values: Sequence[float], spare: float = 0.06) -> tuple[float, float]:
    """Limits that hold the bulk of the values; outliers above (beyond thrice the middle spread) stay out."""
    ordered = sorted(values)
    if not ordered:
        return 0.0, 1.0
    low, middle = ordered[0], ordered[round(0.75 * (len(ordered) - 1))]
    limit = middle + 3.0 * (middle - low)
    high = max(value for value in ordered if value <= limit) if middle > low else ordered[-1]
    pad = spare * (high - low) or abs(high) * 0.01 or 1.0
    return low - pad, high + pad


def marker(shape: str, x: float, y: float, colour: str, size: float = 4.0, extra: str = "") -> str:
    """One plotting symbol centred at (x, y)."""
    r = size
    points = {
        "square": [(-r, -r), (r, -r), (r, r), (-r, r)],
        "triangle": [(0, -1.2 * r), (1.15 * r, r), (-1.15 * r, r)],
        "down": [(0, 1.2 * r), (1.15 * r, -r), (-1.15 * r, -r)],
        "diamond": [(0, -1.35 * r), (1.35 * r, 0), (0, 1.35 * r), (-1.35 * r, 0)],
        "right": [(1.2 * r, 0), (-r, 1.15 * r), (-r, -1.15 * r)],
        "bar": [(-0.5 * r, -1.3 * r), (0.5 * r, -1.3 * r), (0.5 * r, 1.3 * r), (-0.5 * r, 1.3 * r)],
    }
    if shape == "circle":
        return f'<circle cx="{x:.1f}" cy="{y:.1f}" r="{r:g}" fill="{colour}" {extra}/>'
    if shape == "ring":
        line = f'fill="none" stroke="{colour}" stroke-width="2"'
        return f'<circle cx="{x:.1f}" cy="{y:.1f}" r="{r:g}" {line} {extra}/>'
    if shape == "cross":
        path = f"M{x - r:.1f} {y - r:.1f}l{2 * r:g} {2 * r:g}m0 {-2 * r:g}l{-2 * r:g} {2 * r:g}"
        return f'<path d="{path}" fill="none" stroke="{colour}" stroke-width="2.2" {extra}/>'
    corners = " ".join(f"{x + dx:.1f},{y + dy:.1f}" for dx, dy in points[shape])
    return f'<polygon points="{corners}" fill="{colour}" {extra}/>'


def swatch(style: Style) -> str:
    """A short sample of a series' line and marker, for legends and tables."""
    dash = f'stroke-dasharray="{style.dash}"' if style.dash else ""
    line = f'<line x1="1" y1="7" x2="29" y2="7" stroke="{style.colour}" stroke-width="2" {dash}/>'
    symbol = marker(style.marker, 15, 7, style.colour, 3.6)
    size = 'viewBox="0 0 30 14" width="30" height="14"'
    return f'<svg class="swatch" {size} aria-hidden="true">{line}{symbol}</svg>'


def _hit(x: float, y: float, text: str, r: float = 8.0) -> str:
    return f'<circle class="hit" cx="{x:.1f}" cy="{y:.1f}" r="{r:g}"><title>{escape(text)}</title></circle>'


def label(x: float, y: float, text: str, anchor: str = "middle", kind: str = "") -> str:
    """Text at (x, y); the kind "name" is in ink instead of muted."""
    name = f' class="{kind}"' if kind else ""
    return f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}"{name}>{escape(text)}</text>'


def segment(x1: float, y1: float, x2: float, y2: float, kind: str) -> str:
    """A line of a kind that charts.css knows: "grid", "axis" or "rule"."""
    return f'<line class="{kind}" x1="{x1:.1f}" y1="{y1:.1f}" x2="{x2:.1f}" y2="{y2:.1f}"/>'


def clipped(x: float, y: float, width: float, height: float, marks: Iterable[str]) -> str:
    """The marks within a rectangle; a nested svg cuts off the rest without needing an id."""
    box = f"{x:.1f} {y:.1f} {width:.1f} {height:.1f}"
    place = f'x="{x:.1f}" y="{y:.1f}" width="{width:.1f}" height="{height:.1f}"'
    return f'<svg {place} viewBox="{box}" overflow="hidden">{"".join(marks)}</svg>'


def drawing(width: float, height: float, title: str, body: Iterable[str]) -> str:
    """The whole chart; the title is what a screen reader says."""
    inside = "\n".join(part for part in body if part)
    return (
        f'<svg class="chart" viewBox="0 0 {width:g} {height:g}" role="img" aria-label="{escape(title)}" '
        f'xmlns="http://www.w3.org/2000/svg">\n{inside}\n</svg>'
    )


@dataclass(frozen=True)
class Line:
    """One series: y is None where it diverged; low and high bound its band; the chosen point is ringed."""

    name: str
    style: Style
    x: Sequence[float]
    y: Sequence[float | None]
    low: Sequence[float | None] = ()
    high: Sequence[float | None] = ()
    chosen: int | None = None
    markers: bool = False


@dataclass(frozen=True)
class Row:
    """One labelled row: dots, a mark at ``value``, a thick and a thin (outer) interval, a text."""

    name: str
    style: Style
    value: float | None
    dots: Sequence[float] = ()
    interval: tuple[float, float] | None = None
    outer: tuple[float, float] | None = None
    text: str = ""
    titles: Sequence[str] = field(default=())


def line_chart(
    lines: Sequence[Line],
    *,
    width: float,
    height: float,
    x_label: str,
    y_label: str,
    y_range: tuple[float, float],
    rates: Sequence[float] = (),
    rule: tuple[str, float] | None = None,
    lost: str = "",
    named: bool = False,
) -> str:
    """Lines with optional bands, and their names inside the frame if ``named``.

    With ``rates`` the x-axis is logarithmic and has its ticks there.
    With ``lost``, points without y are crosses in a strip of that name on top.
    """
    strip = 22.0 if lost and any(value is None for line in lines for value in line.y) else 0.0
    xs = [value for line in lines for value in line.x] or [0.0, 1.0]
    x_low, x_high = (min(xs) / 1.15, max(xs) * 1.15) if rates else (min(xs), max(xs))
    y_ticks = linear_ticks(*y_range)
    left = 14.0 + 7.0 * max((len(tick_text(tick)) for tick in y_ticks), default=3)
    x_axis = Axis(x_low, x_high if x_high > x_low else x_low + 1.0, left, width - 14.0, bool(rates))
    y_axis = Axis(*y_range, height - 40.0, 26.0 + strip)
    parts = [label(0, 12, y_label, "start")]
    for tick in y_ticks:
        y = y_axis.at(tick)
        parts += [segment(left, y, width - 14, y, "grid"), label(left - 6, y + 4, tick_text(tick), "end")]
    every = math.ceil(len(rates) * 44.0 / (width - left - 14.0))
    for tick in rates[::every] if rates else linear_ticks(x_low, x_high, 4 if width < 420 else 6):
        x = x_axis.at(tick)
        parts += [
            segment(x, height - 40, x, height - 35, "axis"),
            label(x, height - 21, tick_text(tick)),
        ]
    parts += [
        segment(left, height - 40, width - 14, height - 40, "axis"),
        label((left + width - 14) / 2, height - 4, x_label),
    ]
    if rule is not None and y_axis.holds(rule[1]):
        y = y_axis.at(rule[1])
        parts += [segment(left, y, width - 14, y, "rule"), label(width - 16, y - 5, rule[0], "end")]
    if strip:
        parts += [
            segment(left, 24 + strip, width - 14, 24 + strip, "rule"),
            label(width - 14, 12, f"× {lost}", "end"),
        ]
    drawn = [
        _line_marks(line, index, len(lines), x_axis, y_axis, 13.0 + strip) for index, line in enumerate(lines)
    ]
    inside = [mark for kind in (0, 1) for marks in drawn for mark in marks[kind]]
    inner_height = y_axis.start - y_axis.stop + 12
    parts.append(clipped(left - 6, y_axis.stop - 6, width - left - 2, inner_height, inside))
    parts += [mark for marks in drawn for mark in marks[2]]
    if named:
        for index, line in enumerate(lines):
            y = y_axis.stop + 12 + 18 * index
            parts += [
                marker(line.style.marker, width - 24, y - 4, line.style.colour, 3.6),
                label(width - 36, y, line.name, "end", "name"),
            ]
    names = ", ".join(line.name for line in lines)
    return drawing(width, height, f"{y_label} against {x_label}: {names}", parts)


def _line_marks(
    line: Line, index: int, count: int, x_axis: Axis, y_axis: Axis, strip_y: float
) -> tuple[list[str], list[str], list[str]]:
    """(bands, lines and markers to be clipped, marks above the frame and tooltips)."""
    colour = line.style.colour
    points = [(x_axis.at(x), y) for x, y in zip(line.x, line.y, strict=True)]
    bands = []
    if line.low and line.high:
        bounds = [
            (x_axis.at(x), y_axis.at(lo), y_axis.at(hi))
            for x, lo, hi in zip(line.x, line.low, line.high, strict=True)
            if lo is not None and hi is not None
        ]
        outline = [f"{x:.1f},{hi:.1f}" for x, _, hi in bounds] + [
            f"{x:.1f},{lo:.1f}" for x, lo, _ in bounds[::-1]
        ]
        bands.append(f'<polygon points="{" ".join(outline)}" fill="{colour}" fill-opacity="0.16"/>')
    path, pen = [], "M"
    for x, y in points:
        if y is None:
            pen = "M"
            continue
        path.append(f"{pen}{x:.1f} {y_axis.at(y):.1f}")
        pen = "L"
    dash = f'stroke-dasharray="{line.style.dash}"' if line.style.dash else ""
    inside = [f'<path d="{"".join(path)}" fill="none" stroke="{colour}" stroke-width="2" {dash}/>']
    above = []
    every = 1 if line.markers else max(1, len(points) // 5)
    offset = 0 if line.markers else (index * every) // max(count, 1)
    for place, (x, y) in enumerate(points):
        x_value = tick_text(line.x[place])
        if y is None:
            if line.markers:
                shifted = x + 6.0 * (index - (count - 1) / 2)
                above += [
                    marker("cross", shifted, strip_y, colour, 3.2),
                    _hit(shifted, strip_y, f"{line.name} at {x_value}: diverged", 5),
                ]
            continue
        note = f"{line.name} at {x_value}: {y:.5g}".replace("-", "−")
        if y > y_axis.high:
            if line.markers:
                shifted = x + 6.0 * (index - (count - 1) / 2)
                above += [
                    marker("triangle", shifted, y_axis.stop, colour, 3.2, 'fill-opacity="0.55"'),
                    _hit(shifted, y_axis.stop, note + " (above the frame)", 5),
                ]
            continue
        height = y_axis.at(y)
        if line.chosen == place:
            inside.append(f'<circle cx="{x:.1f}" cy="{height:.1f}" r="8" fill="none" stroke="{colour}"/>')
        if place % every == offset % every:
            inside.append(marker(line.style.marker, x, height, colour, 3.6))
        above.append(_hit(x, height, note))
    return bands, inside, above


def row_chart(
    rows: Sequence[Row],
    *,
    width: float,
    x_label: str,
    x_range: tuple[float, float],
    rule: tuple[str, float] | None = None,
) -> str:
    """Rows under each other on one horizontal axis: dots, a mean mark, its intervals, the figures as text."""
    pitch, top = 44.0, 22.0 if rule is not None else 6.0
    floor = top + pitch * len(rows)
    x_axis = Axis(*x_range, 10.0, width - 10.0)

    def upright(x: float, kind: str) -> list[str]:
        """Only beside the marks: through the text above them it would turn a minus into a plus."""
        tops = [top + pitch * index + 18 for index in range(len(rows))]
        return [segment(x, y, x, y + pitch - 18, kind) for y in tops]

    parts = []
    for tick in linear_ticks(*x_range, 4 if width < 420 else 6):
        x = x_axis.at(tick)
        parts += [*upright(x, "grid"), label(x, floor + 18, tick_text(tick))]
    parts += [segment(10, floor, width - 10, floor, "axis"), label(width / 2, floor + 36, x_label)]
    if rule is not None and x_axis.holds(rule[1]):
        x = x_axis.at(rule[1])
        anchor = "start" if x < width * 0.3 else "end" if x > width * 0.7 else "middle"
        parts += [label(x, 12, rule[0], anchor), *upright(x, "rule")]
    for index, row in enumerate(rows):
        y = top + pitch * index
        parts += [
            marker(row.style.marker, 8, y + 10, row.style.colour, 3.6),
            label(18, y + 14, row.name, "start", "name"),
            label(width, y + 14, row.text, "end"),
            *_row_marks(row, x_axis, y + 30),
        ]
    return drawing(width, floor + 40, f"{x_label}: {', '.join(row.name for row in rows)}", parts)


def _row_marks(row: Row, axis: Axis, y: float) -> list[str]:
    colour = row.style.colour

    def inside(value: float) -> float:
        return axis.at(min(max(value, axis.low), axis.high))

    parts = []
    for bounds, stroke in ((row.outer, 1.4), (row.interval, 5.0)):
        if bounds is not None:
            x1, x2 = inside(bounds[0]), inside(bounds[1])
            shape = f'x1="{x1:.1f}" x2="{x2:.1f}" y1="{y:.1f}" y2="{y:.1f}"'
            fade = ' stroke-opacity="0.45"' if stroke > 2 else ""
            parts.append(f'<line {shape} stroke="{colour}" stroke-width="{stroke}"{fade}/>')
            for bound in (value for value in bounds if stroke < 2 and axis.holds(value)):
                parts.append(
                    f'<path d="M{axis.at(bound):.1f} {y - 4:.1f}v8" stroke="{colour}" stroke-width="1.4"/>'
                )
    for index, dot in enumerate(row.dots):
        lifted = y + (3.0, -3.0, 0.0)[index % 3]
        note = row.titles[index] if index < len(row.titles) else f"{row.name}: {dot:.5g}"
        shape = "circle" if axis.holds(dot) else "right"
        parts.append(marker(shape, inside(dot), lifted, colour, 3.6, 'fill-opacity="0.75"'))
        parts.append(_hit(inside(dot), lifted, note, 6))
    if row.value is not None:
        if not axis.holds(row.value):
            parts.append(marker("right", inside(row.value), y, colour, 4.5))
        elif row.dots:
            x = axis.at(row.value)
            parts.append(f'<path d="M{x:.1f} {y - 9:.1f}v18" stroke="var(--ink)" stroke-width="2"/>')
        else:
            parts.append(marker(row.style.marker, axis.at(row.value), y, colour, 4.5))
        parts.append(_hit(inside(row.value), y, f"{row.name}: {row.text}"))
    return parts


def standalone(chart: str, width: float, height: float) -> str:
    """The text of an ``.svg`` file of its own: with margins, the colours and a background."""
    view = f'viewBox="-14 -10 {width + 28:g} {height + 20:g}"'
    head, tail = chart.replace(f'viewBox="0 0 {width:g} {height:g}"', view, 1).split("\n", 1)
    ground = '<rect x="-14" y="-10" width="100%" height="100%" fill="var(--panel)"/>'
    return f"{head}\n<style>{style_sheet('charts')}</style>\n{ground}\n{tail}\n"
