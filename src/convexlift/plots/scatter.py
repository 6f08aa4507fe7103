"""Charts of densities beside data: a histogram with a curve, points with outlines."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from convexlift.plots.lines import (
    Axis,
    Style,
    clipped,
    drawing,
    label,
    linear_ticks,
    marker,
    segment,
    tick_text,
)

Points = Sequence[tuple[float, float]]
Limits = tuple[float, float]

DATA = Style("var(--muted)", "", "circle")
MODEL = Style("var(--series-0)", "", "square")
_BINS = 32
_TICK = 6.6  # the width of a character of a tick


@dataclass(frozen=True)
class Layer:
    """What one series shows in a frame: an area down to zero, points, and lines."""

    style: Style
    area: Points = ()
    points: Points = ()
    lines: Sequence[Points] = ()


def limits(values: Iterable[float], spare: float = 0.06) -> Limits:
    """A range that holds all values but those far outside the middle 98 %, which would squash the others.

    >>> limits([0.0, 1.0, 2.0], spare=0.0)
    (0.0, 2.0)
    """
    ordered = sorted(values)
    if not ordered:
        return 0.0, 1.0
    last = len(ordered) - 1
    low, high = ordered[round(0.01 * last)], ordered[round(0.99 * last)]
    reach = 0.5 * (high - low)
    low, high = max(ordered[0], low - reach), min(ordered[-1], high + reach)
    pad = spare * (high - low) or 0.01 * abs(high) or 1.0
    return (low - pad, high + pad) if spare else (low, high)


def histogram(values: Sequence[float], within: Limits) -> list[tuple[float, float]]:
    """The outline of a histogram of density heights, 32 bins between two limits; others are left out.

    >>> outline = histogram([0.1, 0.1, 0.9], (0.0, 1.0))
    >>> len(outline), outline[0]
    (66, (0.0, 0.0))
    """
    width = (within[1] - within[0]) / _BINS or 1.0
    counts = [0] * _BINS
    for value in values:
        if within[0] <= value <= within[1]:
            counts[min(int((value - within[0]) / width), _BINS - 1)] += 1
    edges = [within[0] + place * width for place in range(_BINS + 1)]
    heights = [count / (len(values) * width) for count in counts]
    steps = [
        (edge, height)
        for left, right, height in zip(edges, edges[1:], heights, strict=False)
        for edge in (left, right)
    ]
    return [(edges[0], 0.0), *steps, (edges[-1], 0.0)]


def chart(
    layers: Sequence[Layer],
    x_range: Limits,
    y_range: Limits,
    *,
    width: float,
    height: float,
    x_label: str,
    y_label: str = "",
    title: Sequence[tuple[str, Style]] = (),
) -> str:
    """One frame of its own, with axes, their labels, and the names of the series on top."""
    top = 22.0 if title else 8.0
    top += 16.0 if y_label else 0.0
    floor, right = height - 36.0, width - 8.0
    y_ticks = linear_ticks(*y_range, 4 if height < 300 else 6)
    left = 10.0 + _TICK * max(len(tick_text(tick)) for tick in y_ticks)
    x_axis, y_axis = Axis(*x_range, left, right), Axis(*y_range, floor, top)
    parts = []
    for tick in y_ticks:
        y = y_axis.at(tick)
        parts += [segment(left, y, right, y, "grid"), label(left - 5, y + 4, tick_text(tick), "end")]
    for tick in linear_ticks(*x_range, 4 if width < 300 else 6):
        x = x_axis.at(tick)
        parts += [segment(x, floor, x, floor + 4, "axis"), label(x, floor + 17, tick_text(tick))]
    parts += [segment(left, floor, right, floor, "axis"), label((left + right) / 2, height - 2, x_label)]
    parts += [label(2, top - 6, y_label, "start")] if y_label else []
    place = 6.0
    for name, style in title:
        parts.append(marker(style.marker, place, 8, style.colour, 3.6))
        parts.append(label(place + 9, 12, name, "start", "name"))
        place += 30.0 + 6.4 * len(name)
    parts += frame(layers, x_axis, y_axis)
    outside = sum(not (x_axis.holds(x) and y_axis.holds(y)) for layer in layers for x, y in layer.points)
    parts += [label(right - 4, floor - 6, f"{outside} outside", "end")] if outside else []
    names = ", ".join(name for name, _ in title)
    return drawing(width, height, f"{names}: {x_label}", parts)


def frame(layers: Sequence[Layer], x_axis: Axis, y_axis: Axis, small: bool = False) -> list[str]:
    """The layers over each other, cut off at the ends of the axes; small points are for small frames."""
    marks = []
    for layer in layers:
        colour = layer.style.colour
        if layer.area:
            path = _path(layer.area, x_axis, y_axis)
            marks.append(f'<path d="{path}Z" fill="{colour}" fill-opacity=".28"/>')
        if layer.points:
            dots = "".join(f"M{x_axis.at(x):.1f} {y_axis.at(y):.1f}h0" for x, y in layer.points)
            size = ' style="stroke-width:2.4"' if small else ""
            marks.append(f'<path class="dots" d="{dots}" stroke="{colour}"{size}/>')
        for line in layer.lines:
            path = _path(line, x_axis, y_axis)
            marks.append(f'<path d="{path}" fill="none" stroke="{colour}" stroke-width="1.8"/>')
    width, height = x_axis.stop - x_axis.start, y_axis.start - y_axis.stop
    return [clipped(x_axis.start, y_axis.stop, width, height, marks)]


def _path(points: Points, x_axis: Axis, y_axis: Axis) -> str:
    return "M" + "L".join(f"{x_axis.at(x):.1f} {y_axis.at(y):.1f}" for x, y in points)
