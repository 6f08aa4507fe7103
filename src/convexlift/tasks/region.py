"""Credible regions of log-concave densities: convex sets that hold a given share of the mass."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, final

import torch
from torch import Tensor

from convexlift.ambient import guard_methods, guarded
from convexlift.arrays import tensor_of
from convexlift.integration.chain_diagnostics import effective_sample_size
from convexlift.integration.langevin import Draws

if TYPE_CHECKING:
    from convexlift.tasks.density import LogConcaveDensity

LEVELS = (0.5, 0.9, 0.99)
_ANGLES = 96
_HALVINGS = 30


@guard_methods
@final
@dataclass(frozen=True, eq=False)
class CredibleRegion:
    """The smallest set of a given probability: {x : log p(x) >= threshold}, convex where p is log-concave.

    Attributes:
        level: the probability it holds.
        threshold: the log-density on its edge.
        error: the standard error of the probability it holds; 0 by quadrature, to its accuracy.

    Example:
        >>> import torch, convexlift as cl
        >>> density = cl.LogConcaveDensity(cl.ICNN(1, hidden=(8,), seed=0)).freeze()
        >>> region = density.credible_region(0.9)
        >>> bool(region.contains(density.mode()[None]).all())
        True
        >>> region.contains([[0.0], [90.0]]).tolist()
        [True, False]
    """

    level: float
    threshold: float
    error: float
    log_prob: Callable[[Tensor], Tensor] = field(repr=False)

    def contains(self, x: Any) -> Tensor:
        """Which rows of x (N, d), a tensor, an array or lists of numbers, lie in the region, (N,) bool."""
        return self.log_prob(tensor_of(x, name="samples")) >= self.threshold


def region_of_draws(level: float, log_prob: Callable[[Tensor], Tensor], draws: Draws) -> CredibleRegion:
    """The region whose threshold is a quantile of log p over draws, with the standard error that this has."""
    values = log_prob(draws.x).double()
    threshold = float(values.quantile(1 - level))
    inside = (values >= threshold).double().unflatten(0, (-1, draws.chains)).T[:, :, None]
    worth = min(float(effective_sample_size(inside)), len(values))
    return CredibleRegion(level, threshold, math.sqrt(level * (1 - level) / worth), log_prob)


@guarded
@torch.no_grad()
def region_outlines(density: LogConcaveDensity, levels: Sequence[float] = LEVELS) -> list[Tensor]:
    """The edge {x : log p(x) = threshold} of the credible region of each level, as closed curves (97, 2).

    The regions are those of ``LogConcaveDensity.credible_region``. A region is convex and holds the mode, so
    every ray from the mode leaves it once; bisection finds where.

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
    found = density.mode()
    mode = found.double()
    angle = torch.linspace(0, 2 * math.pi, _ANGLES + 1, dtype=torch.float64, device="cpu")
    t = torch.stack([angle.cos(), angle.sin()], 1).to(mode)
    # Rays that are evenly spread in whitened coordinates, where the density is round.
    rays = density.standardiser.inverse(t) - density.standardiser.inverse(torch.zeros_like(t))
    outlines = []
    for region in density._regions(levels):

        def inside(length: Tensor, region: CredibleRegion = region) -> Tensor:
            return region.contains(mode + length[:, None] * rays)

        low, high = torch.zeros_like(rays[:, 0]), torch.ones_like(rays[:, 0])
        while bool((still := inside(high)).any()):
            low, high = torch.where(still, high, low), torch.where(still, 2 * high, high)
        for _ in range(_HALVINGS):
            middle = (low + high) / 2
            within = inside(middle)
            low, high = torch.where(within, middle, low), torch.where(within, high, middle)
        outlines.append((mode + low[:, None] * rays).to(found))
    return outlines
