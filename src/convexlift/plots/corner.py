"""Corner plots: every pair of columns of data and of a model's draws, and every column by itself."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from convexlift.plots.lines import Axis, Style, drawing, label, linear_ticks, marker, segment, tick_text
from convexlift.plots.scatter import DATA, MODEL, Layer, frame, histogram, limits

MOST_COLUMNS = 6  # of a corner plot

_CELL, _GAP = 118.0, 10.0
_LEFT, _TOP, _FOOT = 46.0, 18.0, 40.0

Rows = Sequence[Sequence[float]]


def corner_size(columns: int) -> tuple[float, float]:
    """Width and height of the plot of that many columns.

    >>> corner_size(2)
    (292.0, 304.0)
    """
    side = columns * (_CELL + _GAP) - _GAP
    return _LEFT + side, _TOP + side + _FOOT


def corner_chart(
    data: Rows,
    draws: Rows,
    columns: Sequence[str],
    model: str = "draws of the model",
    look: Style = MODEL,
) -> str:
    """A corner plot as an ``<svg>``: histograms on the diagonal, points below it; data grey, draws coloured.

    Args:
        data: rows of the shown columns; their range sets the frame, but for far outliers.
        draws: rows of the same columns.
        columns: the names of the columns.
        model: the name of the draws in the legend.
        look: their colour and marker.

    Example:
        >>> corner_chart([[0.0, 1.0], [1.0, 2.0]], [[0.5, 1.5]] * 2, ["a", "b"]).count('class="dots"')
        4
    """
    count = len(columns)
    width, height = corner_size(count)
    ranges = [limits([row[k] for row in data]) for k in range(count)]
    parts: list[str] = []
    for down in range(count):
        for across in range(down + 1):
            parts += _cell(data, draws, down, across, ranges, look)
    for k, name in enumerate(columns):
        parts.append(label(_place(k) + _CELL / 2, height - 6, _cut(name)))
        if k:
            parts.append(_upright(12, _row(k) + _CELL / 2, _cut(name)))
    right = width
    for row, (text, style) in enumerate((("data", DATA), (model, look))):
        y = _TOP + 12 + 18 * row
        if count > 1:
            parts += [marker(style.marker, right - 6, y - 4, style.colour, 3.6)]
            parts += [label(right - 16, y, text, "end", "name")]
    outside = sum(
        any(not low <= value <= high for value, (low, high) in zip(row, ranges, strict=True))
        for row in (*data, *draws)
    )
    parts += [label(right, _TOP + 48, f"{outside} beyond the frames", "end")] if outside and count > 1 else []
    return drawing(width, height, f"Corner plot of {', '.join(columns)}: data and {model}", parts)


def _cell(
    data: Rows, draws: Rows, down: int, across: int, ranges: Sequence[tuple[float, float]], look: Style
) -> list[str]:
    """One frame, with ticks where it is in the lowest row or in the first column."""
    left, top = _place(across), _row(down)
    x_axis = Axis(*ranges[across], left, left + _CELL)
    parts = [segment(left, top + _CELL, left + _CELL, top + _CELL, "axis")]
    for tick in linear_ticks(*ranges[across], 4):
        x = x_axis.at(tick)
        parts.append(segment(x, top, x, top + _CELL, "grid"))
        if down == len(ranges) - 1:
            parts.append(label(x, top + _CELL + 14, tick_text(tick)))
    if across == down:
        seen, drawn = (histogram([row[down] for row in rows], ranges[down]) for rows in (data, draws))
        top_height = max(height for outline in (seen, drawn) for _, height in outline) or 1.0
        y_axis = Axis(0.0, 1.08 * top_height, top + _CELL, top)
        return parts + frame([Layer(DATA, area=seen), Layer(look, lines=[drawn])], x_axis, y_axis)
    y_axis = Axis(*ranges[down], top + _CELL, top)
    for tick in linear_ticks(*ranges[down], 4):
        y = y_axis.at(tick)
        parts.append(segment(left, y, left + _CELL, y, "grid"))
        if across == 0:
            parts.append(label(left - 5, y + 4, tick_text(tick), "end"))
    half = len(data) // 2, len(draws) // 2
    layers = [  # in turn, so that neither hides the other
        Layer(style, points=[(row[across], row[down]) for row in rows])
        for style, rows in (
            (DATA, data[: half[0]]),
            (look, draws[: half[1]]),
            (DATA, data[half[0] :]),
            (look, draws[half[1] :]),
        )
    ]
    return parts + frame(layers, x_axis, y_axis, small=True)


def _place(column: int) -> float:
    return _LEFT + column * (_CELL + _GAP)


def _row(row: int) -> float:
    return _TOP + row * (_CELL + _GAP)


def _cut(name: str) -> str:
    return name if len(name) <= 17 else f"{name[:16]}…"


def _upright(x: float, y: float, text: str) -> str:
    turned = label(0, 0, text)
    return f'<g transform="translate({x:.1f} {y:.1f}) rotate(-90)">{turned}</g>'


def least_normal(rows: Tensor, most: int) -> tuple[int, ...]:
    """At most that many columns of rows (N, d), those farthest from normal, in their order.

    Example:
        >>> skewed = torch.randn(200, 1, generator=torch.Generator().manual_seed(0)).exp()
        >>> least_normal(torch.cat([skewed.log(), skewed], 1), 1)
        (1,)
    """
    rows = rows.double().cpu()
    ordered = ((rows - rows.mean(0)) / rows.std(0)).sort(0).values
    places = (torch.arange(len(rows), dtype=torch.float64)[:, None] + 0.5) / len(rows)
    gaps = (torch.special.ndtr(ordered) - places).abs().amax(0)
    return tuple(sorted(gaps.topk(min(most, len(gaps))).indices.tolist()))
