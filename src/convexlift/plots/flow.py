"""A trained flow beside data: what it generates, and how it bends a regular grid of its latent space."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from convexlift.plots.density import POINTS, curve, draws_beside, finished, prepared, thinned
from convexlift.plots.drawing import COLOURS, DATA, MODEL, axes_of, limits, points, tell_outside
from convexlift.tasks import ConvexPotentialFlow

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_LINES = torch.linspace(-3, 3, 13)  # of the latent grid, in standard deviations


@torch.no_grad()
def plot_flow(
    flow: ConvexPotentialFlow,
    rows: Tensor | None = None,
    *,
    names: Sequence[str] | None = None,
    ax: Axes | None = None,
) -> Axes:
    """Draw what a frozen flow generates, and rows of data beside it.

    Two columns: samples over 600 of the rows, and the images x = T^-1(z) of the lines of a regular grid over
    the latent z, |z_k| <= 3: where they lie close the density is high. One column: the density over a
    histogram. More: a corner plot of 400 rows and as many samples, in insets of the axes.

    Args:
        flow: frozen.
        rows: (N, d), finite; without them only the model is drawn.
        names: of the d columns; their numbers if omitted.
        ax: where to draw; the axes of a new figure if omitted.

    Returns:
        The axes.

    Raises:
        ValueError: rows or names of another number of columns.
        RuntimeError: samples that do not converge.
        ImportError: matplotlib is missing.

    Example:
        >>> import convexlift as cl
        >>> flow = cl.ConvexPotentialFlow([cl.ICNN(2, hidden=(8,), seed=0)]).freeze()
        >>> plot_flow(flow, torch.randn(50, 2)).get_legend_handles_labels()[1]
        ['data', 'samples of the model', 'grid of its latent space']
    """
    rows, names = prepared(flow, rows, names)
    if flow.dim == 1:
        return curve(flow, rows, names[0], ax)
    if flow.dim > 2:
        return draws_beside(flow, rows, names, ax)
    ax = axes_of(ax, 500, 500)
    shown, samples = thinned(rows, POINTS).cpu(), flow.sample(POINTS, seed=0).cpu()
    fine = torch.linspace(-3, 3, 121)
    z = torch.stack(torch.meshgrid(_LINES, fine, indexing="ij"), -1).to(rows)
    for place, latent in enumerate((z, z.flip(-1))):  # upright lines, then level ones
        lines = flow.inverse(latent.reshape(-1, 2)).x.reshape(latent.shape).cpu()
        for line, each in enumerate(lines):
            label = None if place or line else "grid of its latent space"
            ax.plot(*each.T, color=COLOURS["edge"], linewidth=0.8, zorder=1, label=label)
    if len(rows):
        points(ax, shown, DATA, label="data")
    points(ax, samples, MODEL, label="samples of the model")
    across, up = (limits(torch.cat([shown[:, k], samples[:, k]])) for k in (0, 1))
    ax.set(xlim=across, ylim=up, xlabel=names[0], ylabel=names[1])
    tell_outside(ax, torch.cat([shown, samples]))
    return finished(ax)
