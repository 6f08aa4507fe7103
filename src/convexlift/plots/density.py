"""The chart of a trained density beside its data: a curve, outlines, or a corner plot, by dimension."""

from __future__ import annotations

from collections.abc import Sequence
from typing import cast

import torch
from torch import Tensor

from convexlift.plots.corner import MOST_COLUMNS, corner_chart, corner_size, least_normal
from convexlift.plots.lines import standalone
from convexlift.plots.scatter import DATA, MODEL, Layer, chart, histogram, limits
from convexlift.tasks import LogConcaveDensity
from convexlift.tasks.region import region_outlines

_WIDE, _SQUARE = (640.0, 380.0), (500.0, 500.0)
_POINTS = 600
_CORNER_POINTS = 400
_GRID = 400


@torch.no_grad()
def density_chart(density: LogConcaveDensity, rows: Tensor, names: Sequence[str]) -> str:
    """The text of an ``.svg`` file that shows a frozen density beside rows (N, d).

    One column: a histogram and the density. Two: 600 rows and the regions that hold 50, 90 and 99 % of the
    mass. More: a corner plot of 400 rows and as many draws, of the six columns farthest from normal.

    Args:
        density: frozen.
        rows: finite, on the density's device.
        names: of the d columns.

    Raises:
        RuntimeError: draws that have not mixed.

    Example:
        >>> import convexlift as cl
        >>> density = cl.LogConcaveDensity(cl.ICNN(1, hidden=(8,), seed=0)).freeze()
        >>> density_chart(density, torch.randn(50, 1), ["energy"])[:4]
        '<svg'
    """
    shown = rows[:: max(1, len(rows) // _POINTS)][:_POINTS]
    if density.dim == 1:
        return standalone(_curve(density, rows, names[0]), *_WIDE)
    if density.dim == 2:
        return standalone(_regions(density, shown, names), *_SQUARE)
    columns = list(least_normal(rows, MOST_COLUMNS))
    shown, draws = shown[:_CORNER_POINTS], density.sample(_CORNER_POINTS, seed=0)
    drawing = corner_chart(
        shown[:, columns].tolist(), draws[:, columns].tolist(), [names[column] for column in columns]
    )
    return standalone(drawing, *corner_size(len(columns)))


def _curve(density: LogConcaveDensity, rows: Tensor, name: str) -> str:
    values = rows[:, 0].tolist()
    x_range = limits(values)
    x = torch.linspace(*x_range, _GRID, dtype=density.dtype, device=rows.device)
    curve = list(zip(x.tolist(), density.log_prob(x[:, None]).exp().tolist(), strict=True))
    bars = histogram(values, x_range)
    top = max(height for line in (curve, bars) for _, height in line)
    return chart(
        [Layer(DATA, area=bars), Layer(MODEL, lines=[curve])],
        x_range,
        (0.0, 1.08 * top),
        width=_WIDE[0],
        height=_WIDE[1],
        x_label=name,
        y_label="density",
        title=[("data", DATA), ("model", MODEL)],
    )


def _regions(density: LogConcaveDensity, rows: Tensor, names: Sequence[str]) -> str:
    outlines = [as_points(curve) for curve in region_outlines(density)]
    points = as_points(rows)
    around = [limits([*(p[k] for p in points), *(p[k] for p in outlines[-1])]) for k in (0, 1)]
    return chart(
        [Layer(DATA, points=points), Layer(MODEL, lines=outlines)],
        around[0],
        around[1],
        width=_SQUARE[0],
        height=_SQUARE[1],
        x_label=names[0],
        y_label=names[1],
        title=[("data", DATA), ("regions of 50, 90 and 99 % of the model", MODEL)],
    )


def as_points(rows: Tensor) -> list[tuple[float, float]]:
    """Rows (N, 2) as pairs of numbers."""
    return cast(list[tuple[float, float]], [tuple(row) for row in rows.tolist()])
