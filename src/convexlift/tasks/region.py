"""Credible regions of log-concave densities: convex sets that hold a given share of the mass."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import final

from torch import Tensor


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
    """

    level: float
    threshold: float
    error: float
    log_prob: Callable[[Tensor], Tensor]

    def contains(self, x: Tensor) -> Tensor:
        """Which rows of x (N, d) lie in the region, (N,) bool."""
        return self.log_prob(x) >= self.threshold
