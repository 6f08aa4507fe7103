"""A trained flow beside data: what it generates, and how it bends a regular grid of its latent space."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

import torch
from torch import Tensor

from convexlift.ambient import guarded
from convexlift.plots.density import POINTS, beside
from convexlift.plots.drawing import COLOURS, DATA, MODEL, Axes, points
from convexlift.tasks import ConvexPotentialFlow


@guarded
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
        ax: where to draw; the axes of a new figure if omitted. They are returned.

    Raises:
        ValueError: rows or names of another number of columns.
        RuntimeError: samples that do not converge.
        ImportError: matplotlib is missing.

    Example:
        >>> import convexlift as cl
        >>> flow = cl.ConvexPotentialFlow([cl.ICNN(2, hidden=(8,), seed=0)]).freeze()
        >>> plot_flow(flow, torch.randn(50, 2)).get_legend_handles_labels()[1]
        ['grid of its latent space', 'data', 'samples of the model']
    """
    return beside(flow, rows, names, ax, partial(_samples, flow))


def _samples(flow: ConvexPotentialFlow, rows: Tensor, ax: Axes) -> Tensor:
    samples = flow.sample(POINTS, seed=0)
    few, many = (torch.linspace(-3, 3, n, dtype=samples.dtype, device=samples.device) for n in (13, 121))
    z = torch.stack(torch.meshgrid(few, many, indexing="ij"), -1)
    lines = torch.cat([z, z.flip(-1)])  # upright ones, then level ones
    images = flow.inverse(lines.reshape(-1, 2)).x.reshape(lines.shape).cpu()
    for place, image in enumerate(images):
        label = None if place else "grid of its latent space"
        ax.plot(*image.T, color=COLOURS["edge"], linewidth=0.8, label=label)
    if len(rows):
        points(ax, rows, DATA, "data")
    points(ax, samples.cpu(), MODEL, "samples of the model")
    return samples.cpu()
