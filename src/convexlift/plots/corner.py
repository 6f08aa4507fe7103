"""Corner plots: every pair of columns of data and of a model's draws, and every column by itself."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
import torch
from numpy.typing import ArrayLike
from torch import Tensor

from convexlift.plots.drawing import DATA, MODEL, axes_of, histogram, limits, points, tick

if TYPE_CHECKING:
    from matplotlib.axes import Axes

MOST_COLUMNS = 6  # of a corner plot
_CELL, _GAP = 118, 10  # points


def corner(
    data: ArrayLike,
    draws: ArrayLike,
    names: Sequence[str],
    *,
    model: str = "draws of the model",
    colour: str = MODEL,
    ax: Axes | None = None,
) -> Axes:
    """Histograms on the diagonal, points below it; data grey, draws coloured; in insets of the axes.

    Args:
        data: rows (N, k); their range sets the frames, but for far outliers. Without rows, the draws' does.
        draws: rows (M, k).
        names: of the k columns.
        model: what the draws are called in the legend.
        colour: of the draws.
        ax: where to draw; those of a new figure if omitted.

    Raises:
        ImportError: matplotlib is missing.

    Example:
        >>> len(corner([[0.0, 1.0], [1.0, 2.0]], [[0.5, 1.5], [0.6, 1.4]], ["a", "b"]).child_axes)
        3
    """
    count = len(names)
    ax = axes_of(ax, 60 + count * (_CELL + _GAP), 50 + count * (_CELL + _GAP))
    ax.set_axis_off()
    rows = {DATA: np.reshape(np.asarray(data, float), (-1, count)), colour: np.asarray(draws, float)}
    ranges = [limits(column) for column in (rows[DATA] if len(rows[DATA]) else rows[colour]).T]
    pitch, side = 1 / count, _CELL / (_CELL + _GAP) / count
    for down in range(count):
        for across in range(down + 1):
            cell = ax.inset_axes((across * pitch, 1 - down * pitch - side, side, side))
            cell.set_xlim(ranges[across])
            if across == down:
                for shade, values in rows.items():
                    heights, edges = histogram(values[:, down], ranges[down])
                    cell.stairs(
                        heights, edges, color=shade, fill=shade == DATA, alpha=0.28 if shade == DATA else 1
                    )
                cell.set_ylim(0)
            else:
                cell.set_ylim(ranges[down])
                for half in (
                    slice(0, None, 2),
                    slice(1, None, 2),
                ):  # in turn, so that neither hides the other
                    for shade, values in rows.items():
                        points(cell, values[half][:, [across, down]], shade, 2.4)
            tick(cell, 3)
            cell.tick_params(labelbottom=down == count - 1, left=across < down, labelleft=0 == across < down)
            cell.grid(across < down)
            if down == count - 1:
                cell.set_xlabel(_cut(names[across]))
            if 0 == across < down:
                cell.set_ylabel(_cut(names[down]))
    for label, shade in (("data", DATA), (model, colour)):
        ax.plot([], [], "o", color=shade, label=label)
    beyond = sum(
        int(((v < low) | (v > high)).any(1).sum())
        for v in rows.values()
        for low, high in [np.transpose(ranges)]
    )
    title = f"{beyond} beyond the frames" if beyond else None
    if count > 1:
        ax.legend(loc="upper right", title=title)
    return ax


def _cut(name: str) -> str:
    return name if len(name) <= 17 else f"{name[:16]}…"


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
