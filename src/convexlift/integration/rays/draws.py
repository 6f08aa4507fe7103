"""Draws from exp(-f(.; c)) / Z(c) on the line or the plane, for many contexts c at once, by inversion.

On the line a table of the distribution function is inverted. In the plane first the angle of a ray is drawn
from a table of the rays' masses, then the place on that ray from a table along it.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor

from convexlift.ambient import guarded
from convexlift.integration.line import DROP
from convexlift.integration.rays.rule import (
    MAX_POINTS,
    NODES,
    Family,
    along,
    on_circle,
    ray_ends,
    ray_rule,
    unit_vectors,
    whitened,
)

_TABLE, _RAY_TABLE = 257, 129  # points of the line or the circle, and of a ray
_PANELS = 2  # of a ray, for its mass
_MASS_POINTS = (_TABLE - 1) * _PANELS * NODES


@guarded
@torch.no_grad()
def draw(
    family_of: Callable[[Tensor], Family],
    rows: Tensor,
    n: int,
    *,
    dim: int,
    generator: torch.Generator | None = None,
) -> Tensor:
    """n independent draws for every context in `rows` (R,), (R, n, d) in float64.

    `family_of` gives the functions of some of the rows, so that at most about 260,000 points are evaluated at
    a time. The tables have 257 points of the line; 257 of the angle, then 129 of the ray. Between them the
    density is taken as linear.

    Raises FloatingPointError when f is not a number somewhere or does not rise.

    >>> mean = torch.tensor([[0.0], [5.0]], dtype=torch.float64)
    >>> def gaussians(rows):
    ...     m = mean[rows]
    ...     return Family(
    ...         lambda x: (x - m[:, None]).square().sum(2) / 2, m, torch.ones(len(rows), 1, 1).double(), rows
    ...     )
    >>> x = draw(gaussians, torch.arange(2), 1000, dim=1, generator=torch.Generator().manual_seed(0))
    >>> x.shape, bool(((x.mean(1) - mean).abs() < 0.1).all())
    (torch.Size([2, 1000, 1]), True)
    """
    uniform = torch.rand(dim, len(rows), n, dtype=torch.float64, device=rows.device, generator=generator)
    if not uniform.numel():
        return uniform.new_zeros(len(rows), n, dim)
    one, at_once = (_on_line, _TABLE * n) if dim == 1 else (_in_plane, max(_TABLE * n, _MASS_POINTS))
    size = max(1, MAX_POINTS // at_once)
    parts = zip(rows.split(size), uniform.split(size, dim=1), strict=True)
    return torch.cat([one(family_of(some), u) for some, u in parts])


def _on_line(family: Family, uniform: Tensor) -> Tensor:
    """Draws (R, n, 1) from uniform numbers (1, R, n)."""
    centre = family.centre
    directions, _ = whitened(family, unit_vectors(1, 2, centre).expand(len(centre), -1, -1))
    ends = centre + directions[..., 0] * ray_ends(family, directions, DROP)
    points = torch.lerp(
        ends[:, :1], ends[:, 1:], torch.linspace(0, 1, _TABLE, dtype=ends.dtype, device=ends.device)
    )
    return _quantile(points, -family.value(points.unsqueeze(2)), uniform[0]).unsqueeze(2)


def _in_plane(family: Family, uniform: Tensor) -> Tensor:
    """Draws (R, n, 2) from uniform numbers (2, R, n): first the angle, then the place on its ray."""
    points, log_weights = ray_rule(family, _TABLE - 1, _PANELS, DROP)
    around = torch.logsumexp((log_weights - family.value(points)).unflatten(1, (_TABLE - 1, -1)), 2)
    around = torch.cat([around, around[:, :1]], 1)
    table = torch.linspace(0, 2 * math.pi, _TABLE, dtype=around.dtype, device=around.device)
    directions, _ = whitened(family, on_circle(_quantile(table.expand_as(around), around, uniform[0])))

    radii = ray_ends(family, directions, DROP).unsqueeze(2) * torch.linspace(
        0, 1, _RAY_TABLE, dtype=around.dtype, device=around.device
    )
    f = family.value(along(family.centre, directions, radii)).view_as(radii)
    radius = _quantile(radii.flatten(0, 1), (radii.log() - f).flatten(0, 1), uniform[1].reshape(-1, 1))
    return family.centre[:, None] + radius.view(*uniform.shape[1:], 1) * directions


def _quantile(points: Tensor, log_density: Tensor, probability: Tensor) -> Tensor:
    """Quantiles (B, m) at probabilities (B, m) of densities that are linear between points (B, J)."""
    density = (log_density - log_density.amax(1, keepdim=True)).exp()
    width = points.diff(dim=1)
    mass = width * (density[:, 1:] + density[:, :-1]) / 2
    cumulative = mass.cumsum(1)
    target = probability * cumulative[:, -1:]
    cell = torch.searchsorted(cumulative, target).clamp(max=mass.shape[1] - 1)
    rest = target - (cumulative - mass).gather(1, cell)
    left, slope = density.gather(1, cell), (density.diff(dim=1) / width).gather(1, cell)
    # left s + slope s^2 / 2 = rest, solved for s without cancellation.
    root = (left.square() + 2 * slope * rest).clamp_min(0).sqrt()
    tiny = torch.finfo(rest.dtype).tiny
    within = (2 * rest / (left + root).clamp_min(tiny)).clamp_min(0)
    return points.gather(1, cell) + torch.minimum(within, width.gather(1, cell))
