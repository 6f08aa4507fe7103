"""A trained density beside data: a curve, outlines of its regions, or a corner plot, by dimension."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor

from convexlift.ambient import guarded
from convexlift.checks import check_samples
from convexlift.plots.corner import MOST_COLUMNS, corner, least_normal
from convexlift.plots.drawing import DATA, MODEL, Axes, axes_of, histogram, limits, points, tell_outside, tick
from convexlift.tasks import LogConcaveDensity
from convexlift.tasks.region import region_outlines

POINTS, _CORNER_POINTS = 2000, 400
_GRID = 400


@guarded
@torch.no_grad()
def plot_density(
    density: LogConcaveDensity,
    rows: Tensor | None = None,
    *,
    names: Sequence[str] | None = None,
    ax: Axes | None = None,
) -> Axes:
    """Draw a frozen density, and rows of data beside it.

    One column: the curve p(x) over a histogram of the rows. Two: the mode and the edges of the smallest
    regions that hold 50, 90 and 99 % of the mass, over at most 2,000 of the rows. More: a corner plot of 400
    rows and as many draws, of the six columns farthest from normal, in insets of the axes.

    Args:
        density: frozen.
        rows: (N, d), finite; without them only the model is drawn.
        names: of the d columns; their numbers if omitted.
        ax: where to draw; the axes of a new figure if omitted. They are returned.

    Raises:
        ValueError: rows or names of another number of columns.
        RuntimeError: draws that have not mixed.
        ImportError: matplotlib is missing.

    Example:
        >>> import convexlift as cl
        >>> density = cl.LogConcaveDensity(cl.ICNN(2, hidden=(8,), seed=0)).freeze()
        >>> plot_density(density, torch.randn(50, 2), names=["x", "y"]).get_xlabel()
        'x'
    """
    return beside(density, rows, names, ax, partial(_regions, density))


def _regions(density: LogConcaveDensity, rows: Tensor, ax: Axes) -> Tensor:
    outlines = [outline.cpu() for outline in region_outlines(density)]
    if len(rows):
        points(ax, rows, DATA, "data")
    for place, outline in enumerate(outlines):
        label = None if place else "regions of 50, 90 and 99 % of the model"
        ax.plot(*outline.T, color=MODEL, label=label)
    ax.plot(*density.mode().cpu()[:, None], "+", color=MODEL, markersize=9, label="mode")
    return outlines[-1]


def beside(
    model: Any,
    rows: Tensor | None,
    names: Sequence[str] | None,
    ax: Axes | None,
    plane: Callable[[Tensor, Axes], Tensor],
) -> Axes:
    """A model of one column as a curve over a histogram of rows, of three or more as a corner plot.

    That of two is drawn by ``plane`` with the rows shown; it returns points that the frame should hold.
    """
    none = torch.empty(0, model.dim, dtype=torch.float32, device="cpu")
    rows = none if rows is None else check_samples(rows, model.dim, name="rows")
    names = [f"column {k}" for k in range(model.dim)] if names is None else list(names)
    if len(names) != model.dim:
        raise ValueError(f"expected {model.dim} names of columns; got {len(names)}")
    rows = rows.to(next(model.parameters()).device)
    if model.dim > 2:
        draws = model.sample(_CORNER_POINTS, seed=0).cpu()
        kept = list(least_normal(rows if len(rows) else draws, MOST_COLUMNS))
        rows, names = _thinned(rows, _CORNER_POINTS)[:, kept], [names[k] for k in kept]
        return corner(rows, draws[:, kept], names, ax=ax)
    ax, shown = axes_of(ax, 500, 500) if model.dim == 2 else axes_of(ax, 640, 380), _thinned(rows, POINTS)
    if model.dim == 2:
        if len(shown) < len(rows):
            left = f"{len(shown):,} of {len(rows):,} rows"
            ax.text(0.02, 0.03, left, transform=ax.transAxes, color=DATA)
        held = torch.cat([shown, plane(shown, ax)])
        ax.set(xlim=limits(held[:, 0]), ylim=limits(held[:, 1]), xlabel=names[0], ylabel=names[1])
        tell_outside(ax)
    else:
        within = limits((rows if len(rows) else model.sample(_CORNER_POINTS, seed=0)).cpu())
        x = torch.linspace(*within, _GRID, dtype=torch.float64, device=rows.device)
        if len(rows):
            ax.stairs(*histogram(rows.cpu(), within), fill=True, color=DATA, alpha=0.28, label="data")
        ax.plot(x.cpu(), model.log_prob(x[:, None]).exp().cpu(), color=MODEL, label="model")
        ax.set(xlim=within, ylim=(0, ax.get_ylim()[1]), xlabel=names[0], ylabel="density")
    tick(ax)
    ax.legend(loc="lower left", bbox_to_anchor=(0, 1), ncols=3, borderaxespad=0, frameon=False)
    return ax


def _thinned(rows: Tensor, most: int) -> Tensor:
    """At most so many of the rows, evenly chosen."""
    return rows[:: max(1, len(rows) // most)][:most].cpu()
