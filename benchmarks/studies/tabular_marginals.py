"""A fixed map that makes every column of a table nearly normal, from quantiles of the training rows."""

from __future__ import annotations

from typing import Self

import torch
from torch import Tensor, nn

KNOTS = 20
# Quantiles nearer than this share of the column's deviation are one knot.
CLOSEST = 1e-4


class Marginals(nn.Module):
    """x_j -> t_j(x_j), each t_j increasing: a rational-quadratic spline from quantiles onto normal quantiles.

    Knot k of K lies at the (k + 1/2) / K quantile of the training rows and is mapped onto that of the normal
    law. Slopes at the knots are harmonic means of those of the two secants; beyond the outer knots the map is
    the outer secant's line. Every t_j is strictly increasing, so that log |dt/dx| is exact.

    Source: the splines of Gregory and Delbourgo 1982, as in Durkan et al. 2019; fixed here, not learned.
    """

    knots: Tensor
    values: Tensor
    slopes: Tensor
    fitted: Tensor

    def __init__(self, dim: int) -> None:
        super().__init__()
        line = torch.linspace(-1, 1, KNOTS).expand(dim, KNOTS)
        self.register_buffer("knots", line.clone())
        self.register_buffer("values", line.clone())
        self.register_buffer("slopes", torch.ones(dim, KNOTS))
        self.register_buffer("fitted", torch.tensor(False))

    @torch.no_grad()
    def fit(self, rows: Tensor) -> Self:
        """Set the knots from training rows (N, d)."""
        levels = (torch.arange(KNOTS, dtype=torch.float64) + 0.5) / KNOTS
        normal = torch.special.ndtri(levels)
        for j, column in enumerate(rows.double().T):
            x, y = _distinct(column.quantile(levels), normal, CLOSEST * float(column.std()))
            secants = (y[1:] - y[:-1]) / (x[1:] - x[:-1])
            slopes = torch.cat([secants[:1], 2 / (1 / secants[1:] + 1 / secants[:-1]), secants[-1:]])
            # Fewer knots than K: further ones on the last line change nothing.
            missing = torch.arange(1, KNOTS - len(x) + 1, dtype=torch.float64)
            self.knots[j] = torch.cat([x, x[-1] + missing * (x[-1] - x[0])])
            self.values[j] = torch.cat([y, y[-1] + missing * (x[-1] - x[0]) * slopes[-1]])
            self.slopes[j] = torch.cat([slopes, slopes[-1].expand(len(missing))])
        self.fitted.fill_(True)
        return self

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """t(x), (N, d), and log |det dt/dx|, (N,)."""
        columns = x.T.contiguous()
        k = (torch.searchsorted(self.knots, columns) - 1).clamp(0, KNOTS - 2)
        left, right = self.knots.gather(1, k), self.knots.gather(1, k + 1)
        low, high = self.values.gather(1, k), self.values.gather(1, k + 1)
        start, end = self.slopes.gather(1, k), self.slopes.gather(1, k + 1)
        inside = columns.clamp(self.knots[:, :1], self.knots[:, -1:])
        secant, share = (high - low) / (right - left), (inside - left) / (right - left)
        both = share * (1 - share)
        below = secant + (start + end - 2 * secant) * both
        value = low + (high - low) * (secant * share.square() + start * both) / below
        rise = end * share.square() + 2 * secant * both + start * (1 - share).square()
        slope = (secant / below).square() * rise
        # Outside, the share is 0 or 1 and the slope that of the outer knot.
        return (value + (columns - inside) * slope).T, slope.log().sum(0)


def _distinct(x: Tensor, y: Tensor, gap: float) -> tuple[Tensor, Tensor]:
    """The knots without those that come less than a gap after the one kept before them."""
    kept = [0]
    for k in range(1, len(x)):
        if float(x[k] - x[kept[-1]]) > gap:
            kept.append(k)
    if len(kept) < 2:
        raise ValueError("a column is constant in most of the training rows")
    return x[kept], y[kept]
