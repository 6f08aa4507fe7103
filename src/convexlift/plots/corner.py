"""Corner plots: every pair of columns of data and of a model's draws, and every column by itself."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import combinations_with_replacement

import numpy as np
import torch
from numpy.typing import ArrayLike
from torch import Tensor

from convexlift.ambient import guarded
from convexlift.plots.drawing import DATA, MODEL, Axes, axes_of, histogram, limits, points, tick

MOST_COLUMNS = 6  # of a corner plot
_PITCH, _SHARE = 128, 0.92  # points from frame to frame, and the share of it that a frame takes


@guarded
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
        data: rows of the k named columns; their range sets the frames, but for far outliers. Without rows,
            the draws' does.
        draws: rows of the same columns.
        names: of the columns.
        model: what the draws are called in the legend.
        colour: of the draws.
        ax: where to draw; those of a new figure if omitted.

    Example:
        >>> len(corner([[0.0, 1.0], [1.0, 2.0]], [[0.5, 1.5], [0.6, 1.4]], ["a", "b"]).child_axes)
        3
    """
    count = len(names)
    ax = axes_of(ax, 60 + count * _PITCH, 50 + count * _PITCH)
    ax.set_axis_off()
    rows = {DATA: np.reshape(np.asarray(data, float), (-1, count)), colour: np.asarray(draws, float)}
    frames = [limits(column) for column in (rows[DATA] if len(rows[DATA]) else rows[colour]).T]
    side = _SHARE / count
    for across, down in combinations_with_replacement(range(count), 2):
        cell = ax.inset_axes((across / count, 1 - down / count - side, side, side))
        cell.set(xlim=frames[across], xlabel=_cut(names[across]) if down == count - 1 else "")
        if across == down:
            for shade, values in rows.items():
                bars, filled = histogram(values[:, down], frames[down]), shade == DATA
                cell.stairs(*bars, color=shade, fill=filled, alpha=0.28 if filled else 1)
            cell.set_ylim(0)
            cell.grid(False)
        else:
            cell.set(ylim=frames[down], ylabel="" if across else _cut(names[down]))
            for start in (0, 1):  # every second row in turn, so that neither hides the other
                for shade, values in rows.items():
                    points(cell, values[start::2, [across, down]], shade, size=2.4)
        tick(cell, 3, 3)
        cell.tick_params(labelbottom=down == count - 1, left=across < down, labelleft=0 == across < down)
    for shade, label in ((DATA, "data"), (colour, model)):
        ax.plot([], [], "o", color=shade, label=label)
    low, high = np.transpose(frames)
    beyond = sum(int(((values < low) | (values > high)).any(1).sum()) for values in rows.values())
    if count > 1:
        ax.legend(loc="upper right", frameon=False, title=f"{beyond} beyond the frames" if beyond else None)
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
    places = (torch.arange(len(rows), dtype=torch.float64, device="cpu")[:, None] + 0.5) / len(rows)
    gaps = (torch.special.ndtr(ordered) - places).abs().amax(0)
    return tuple(sorted(gaps.topk(min(most, len(gaps))).indices.tolist()))
