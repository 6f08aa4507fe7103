"""Boxes of the report page: a figure with its caption, and small multiples of little panels on common axes.

Panels are ``<svg>`` elements of one size that the page lays out in as many columns as fit, so that they need
no second drawing for narrow screens.
"""

from __future__ import annotations

import textwrap
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from html import escape

from convexlift.plots.lines import (
    Axis,
    Line,
    Style,
    clipped,
    drawing,
    label,
    linear_ticks,
    marker,
    segment,
    swatch,
    tick_text,
)

Points = Sequence[tuple[float, float]]

_WIDTH, _HEIGHT = 190.0, 200.0
_TOP, _FLOOR, _RIGHT = 22.0, _HEIGHT - 36.0, _WIDTH - 8.0


@dataclass(frozen=True)
class Reading:
    """A point with an upright interval, filled or hollow; the text is its tooltip."""

    x: float
    y: float
    low: float
    high: float
    filled: bool
    text: str


@dataclass(frozen=True)
class Panel:
    """One panel: a shaded area down to zero, a line, points, readings, short notes; or words instead."""

    name: str
    style: Style
    area: Points = ()
    line: Points = ()
    points: Points = ()
    readings: Sequence[Reading] = ()
    notes: Sequence[str] = ()
    words: str = ""


@dataclass(frozen=True)
class Frame:
    """What panels share; ticks are (place, text), round numbers when empty; the diagonal is y = x, and the
    level a horizontal line."""

    x_range: tuple[float, float]
    y_range: tuple[float, float]
    x_label: str
    x_ticks: Sequence[tuple[float, str]] = ()
    diagonal: bool = False
    y_ticks: Sequence[tuple[float, str]] = ()
    level: float | None = None


def figure(title: str, note: str, body: str, lines: Sequence[Line] = (), full: bool = False) -> str:
    """A ``<figure>``, with a legend for lines, over the page's whole width if ``full``."""
    items = "".join(f"<span>{swatch(line.style)}{escape(line.name)}</span>" for line in lines)
    legend = f'<p class="legend">{items}</p>' if items else ""
    caption = f"<figcaption><b>{escape(title)}</b> {escape(note)}</figcaption>"
    kind = ' class="full"' if full else ""
    return f"<figure{kind}>{caption}{legend}{body}</figure>"


def panel_grid(panels: Iterable[Panel], frame: Frame) -> str:
    """The panels beside and under each other."""
    drawn = [_panel(panel, frame) for panel in panels]
    return f'<div class="panels" style="--count:{len(drawn)}">{"".join(drawn)}</div>'


def _panel(panel: Panel, frame: Frame) -> str:
    y_ticks = frame.y_ticks or [(tick, tick_text(tick)) for tick in linear_ticks(*frame.y_range, 4)]
    left = 10.0 + 6.6 * max(len(text) for _, text in y_ticks)
    x_axis, y_axis = Axis(*frame.x_range, left, _RIGHT), Axis(*frame.y_range, _FLOOR, _TOP)
    title = marker(panel.style.marker, 6, 8, panel.style.colour, 3.6) + label(
        15, 12, panel.name, "start", "name"
    )
    if panel.words:
        lines = textwrap.wrap(panel.words, 27, max_lines=9, placeholder=" …")
        told = [label(4, 40 + 16 * row, line, "start") for row, line in enumerate(lines)]
        hover = f"<title>{escape(panel.words)}</title>"
        return drawing(_WIDTH, _HEIGHT, f"{panel.name}: {panel.words}", [hover, title, *told])
    parts = [*_axes(x_axis, y_axis, y_ticks, frame), title]
    parts.append(clipped(left, _TOP, _RIGHT - left, _FLOOR - _TOP, _marks(panel, x_axis, y_axis)))
    parts += [label(left + 9, _TOP + 13 + 15 * row, note, "start") for row, note in enumerate(panel.notes)]
    outside = sum(not (x_axis.holds(x) and y_axis.holds(y)) for x, y in panel.points)
    parts += [label(_RIGHT - 4, _FLOOR - 6, f"{outside} outside", "end")] if outside else []
    return drawing(_WIDTH, _HEIGHT, f"{panel.name}, by {frame.x_label}", parts)


def _axes(x_axis: Axis, y_axis: Axis, y_ticks: Sequence[tuple[float, str]], frame: Frame) -> list[str]:
    left = x_axis.start
    parts = []
    for place, text in y_ticks:
        y = y_axis.at(place)
        parts += [segment(left, y, _RIGHT, y, "grid"), label(left - 5, y + 4, text, "end")]
    for place, text in frame.x_ticks or [(tick, tick_text(tick)) for tick in linear_ticks(*frame.x_range, 4)]:
        x = x_axis.at(place)
        parts += [segment(x, _FLOOR, x, _FLOOR + 4, "axis"), label(x, _FLOOR + 17, text)]
    parts += [
        segment(left, _FLOOR, _RIGHT, _FLOOR, "axis"),
        label((left + _RIGHT) / 2, _HEIGHT - 2, frame.x_label),
    ]
    if frame.level is not None:
        y = y_axis.at(frame.level)
        parts.append(segment(left, y, _RIGHT, y, "rule"))
    if frame.diagonal:
        low, high = max(x_axis.low, y_axis.low), min(x_axis.high, y_axis.high)
        parts.append(segment(x_axis.at(low), y_axis.at(low), x_axis.at(high), y_axis.at(high), "rule"))
    return parts


def _marks(panel: Panel, x_axis: Axis, y_axis: Axis) -> list[str]:
    """The area, the line and the points, each kind one path; and the readings."""
    colour, marks = panel.style.colour, []
    if panel.area:
        closed = [(panel.area[0][0], 0.0), *panel.area, (panel.area[-1][0], 0.0)]
        marks.append(f'<path class="area" d="{_path(closed, x_axis, y_axis)}Z"/>')
    if panel.line:
        path = _path(panel.line, x_axis, y_axis)
        marks.append(f'<path d="{path}" fill="none" stroke="{colour}" stroke-width="2"/>')
    if panel.points:
        dots = "".join(f"M{x_axis.at(x):.1f} {y_axis.at(y):.1f}h0" for x, y in panel.points)
        marks.append(f'<path class="dots" d="{dots}" stroke="{colour}"/>')
    if panel.readings:
        spans = "".join(
            f"M{x_axis.at(r.x):.1f} {y_axis.at(r.low):.1f}V{y_axis.at(r.high):.1f}" for r in panel.readings
        )
        marks.append(f'<path d="{spans}" fill="none" stroke="{colour}" stroke-width="1.4"/>')
        marks += [_reading_mark(reading, x_axis, y_axis, colour) for reading in panel.readings]
    return marks


def _reading_mark(reading: Reading, x_axis: Axis, y_axis: Axis, colour: str) -> str:
    fill = colour if reading.filled else "var(--panel)"
    return (
        f'<circle cx="{x_axis.at(reading.x):.1f}" cy="{y_axis.at(reading.y):.1f}" r="3" fill="{fill}" '
        f'stroke="{colour}" stroke-width="1.4"><title>{escape(reading.text)}</title></circle>'
    )


def _path(points: Points, x_axis: Axis, y_axis: Axis) -> str:
    return "M" + "L".join(f"{x_axis.at(x):.1f} {y_axis.at(y):.1f}" for x, y in points)
