"""Outlines of the credible regions of densities of two columns: convex curves around the mode."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from convexlift.tasks.density import LogConcaveDensity

LEVELS = (0.5, 0.9, 0.99)
_ANGLES = 96
_HALVINGS = 30
_DRAWS = 20_000


@torch.no_grad()
def region_outlines(density: LogConcaveDensity, levels: tuple[float, ...] = LEVELS) -> list[Tensor]:
    """The edge {x : log p(x) = threshold} of the credible region of each level, as closed curves (97, 2).

    The threshold is a quantile of log p over 20,000 draws. A region is convex and holds the mode, so every
    ray from the mode leaves it once; bisection finds where.

    Raises:
        ValueError: the density is not of two dimensions.

    Example:
        >>> import convexlift as cl
        >>> density = cl.LogConcaveDensity(cl.ICNN(2, hidden=(8,), seed=0)).freeze()
        >>> [tuple(curve.shape) for curve in region_outlines(density, (0.9,))]
        [(97, 2)]
    """
    if density.dim != 2:
        raise ValueError(f"outlines are drawn in two dimensions; the density has {density.dim}")
    mode = density.mode()
    angle = torch.linspace(0, 2 * math.pi, _ANGLES + 1, dtype=torch.float64)
    t = torch.stack([angle.cos(), angle.sin()], 1).to(mode)
    # Rays that are evenly spread in whitened coordinates, where the density is round.
    rays = density.standardiser.inverse(t) - density.standardiser.inverse(torch.zeros_like(t))
    log_p = density.log_prob(density.sample(_DRAWS, seed=0))
    outlines = []
    for level in levels:
        threshold = log_p.quantile(1 - level)

        def inside(length: Tensor, threshold: Tensor = threshold) -> Tensor:
            return density.log_prob(mode + length[:, None] * rays) >= threshold

        low, high = torch.zeros_like(rays[:, 0]), torch.ones_like(rays[:, 0])
        while bool((still := inside(high)).any()):
            low, high = torch.where(still, high, low), torch.where(still, 2 * high, high)
        for _ in range(_HALVINGS):
            middle = (low + high) / 2
            within = inside(middle)
            low, high = torch.where(within, middle, low), torch.where(within, high, middle)
        outlines.append(mode + low[:, None] * rays)
    return outlines
