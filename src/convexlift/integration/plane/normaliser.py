"""The integral of exp(-f) over the plane for convex f: exact quadrature with bounds from convexity.

The mass of exp(-f) is found along rays (``support``) and cut into cells until the quadrature settles
(``refinement``). Tangent planes and chords on finer cells bound the integral on both sides (``bounds``).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import final

import torch
from torch import Tensor

from convexlift.ambient import guarded
from convexlift.integration.line import Function
from convexlift.integration.plane.bounds import bound_cells, log_tangent_integral, tangent_rule
from convexlift.integration.plane.exponential import from_exponential
from convexlift.integration.plane.parallelograms import ORDER, border, gauss_lobatto, outline
from convexlift.integration.plane.refinement import MAX_CELLS, quadrature_cells, still_fits
from convexlift.integration.plane.support import evaluate

__all__ = ["MAX_CELLS", "PlaneNormaliser", "draw", "level", "log_integral", "normaliser"]


@final
@dataclass(frozen=True, eq=False)
class PlaneNormaliser:
    """log Z = log of the integral of exp(-f) over the plane, with bounds: lower <= log Z <= upper.

    `log_z`, `lower` and `upper` are scalars; `log_z` carries the gradient with respect to whatever f depends
    on, at fixed nodes. `nodes` (M, 2) and `log_weights` (M,) are the quadrature rule, so that log_z =
    logsumexp(log_weights - f(nodes)), and `values` (M,) are f there. `cells` (C, 6) are parallelograms, each
    its centre and two half-axes u and v; `tangents` (C, 3) are f at the centre and its slopes along u and v,
    so that f >= tangents[:, 0] + tangents[:, 1] s + tangents[:, 2] t at centre + s u + t v.
    """

    log_z: Tensor
    lower: Tensor
    upper: Tensor
    nodes: Tensor
    log_weights: Tensor
    values: Tensor
    cells: Tensor
    tangents: Tensor

    @property
    def error(self) -> float:
        """The largest error that log_z can have: max(log_z - lower, upper - log_z)."""
        return float(torch.maximum(self.log_z.detach() - self.lower, self.upper - self.log_z.detach()))


@guarded
def normaliser(
    value: Function,
    gradient: Function,
    *,
    tolerance: float = 1e-3,
    dtype: torch.dtype = torch.float64,
    device: torch.device | str = "cpu",
) -> PlaneNormaliser:
    """The logarithm of the integral of exp(-f) over the plane, with bounds that follow from convexity.

    `value` maps (N, 2) to f, shape (N,), and `gradient` maps (N, 2) to grad f, shape (N, 2). Cells are halved
    until upper - lower <= `tolerance`, or until there are 50,000 of them; their number goes as 1 / tolerance.
    The bounds hold for exact values of f and its gradient (a few units in the last place are added for
    rounding). On a smooth f the value is several digits closer than the bounds. A smooth f takes about 7,000
    cells at the default tolerance and 40,000 at 1e-4.

    Raises ValueError when f is flat or falls without end in some direction, so that the integral is infinite,
    or is not convex; FloatingPointError when f is not finite or too steep for the dtype.

    >>> standard = normaliser(lambda x: x.square().sum(1) / 2, lambda x: x)
    >>> round(float(standard.log_z), 6)  # log(2 pi)
    1.837877
    >>> bool(standard.lower <= standard.log_z <= standard.upper), standard.error < 1e-3
    (True, True)
    """
    with torch.no_grad():
        start = quadrature_cells(value, dtype=dtype, device=device)
        cells, tangents, lower, upper = bound_cells(value, gradient, start, tolerance)
        nodes, log_weights = tangent_rule(cells, tangents)
    values = value(nodes)
    log_z = torch.logsumexp(log_weights - values, dim=0)
    # A kink can push the rule outside the bounds: then the value moves to them, and the gradient stays.
    bounded = torch.minimum(torch.maximum(log_z.detach(), lower), upper)
    return PlaneNormaliser(
        bounded + (log_z - log_z.detach()), lower, upper, nodes, log_weights, values.detach(), cells, tangents
    )


@guarded
def log_integral(
    value: Function,
    cells: Tensor | None = None,
    *,
    dtype: torch.dtype = torch.float64,
    device: torch.device | str = "cpu",
) -> tuple[Tensor, Tensor]:
    """log of the integral of exp(-f), without bounds, and the cells it used, for one training step.

    Pass the cells of the last step, at most 240 rows of six numbers: as long as they still hold the mass of
    exp(-f) and still resolve it, which the same values tell, the step costs one evaluation of `value` at
    2,000 to 4,000 nodes, for sharp walls up to 6,000. Otherwise new cells are found, without gradient. Raises
    as `normaliser` does.

    >>> log_z, cells = log_integral(lambda x: x.square().sum(1) / 2)
    >>> again, same = log_integral(lambda x: (x - 0.1).square().sum(1) / 2, cells)
    >>> same is cells, round(float(again), 4)
    (True, 1.8379)
    """
    if cells is not None:
        nodes, log_weights = gauss_lobatto(cells, ORDER)
        f = value(torch.cat([nodes, border(outline(cells))]))
        f, outside = f[: len(nodes)], f[len(nodes) :].detach()
        if still_fits(f.detach(), outside, cells):
            return torch.logsumexp(log_weights - f, dim=0), cells
    cells = quadrature_cells(value, guess=cells, dtype=dtype, device=device)
    nodes, log_weights = gauss_lobatto(cells, ORDER)
    return torch.logsumexp(log_weights - value(nodes), dim=0), cells


@guarded
def level(normaliser: PlaneNormaliser, probability: Tensor) -> Tensor:
    """The c with P(f(X) <= c) = probability under exp(-f) / Z, both of shape (N,).

    {f <= c} is the highest-density region of that probability, a convex set. No cell has more than 2e-4 of
    the mass, which keeps the error in probability below 1e-3. Raises ValueError for a probability outside
    [0, 1].

    >>> standard = normaliser(lambda x: x.square().sum(1) / 2, lambda x: x)
    >>> c = level(standard, torch.tensor([0.5, 0.95], dtype=torch.float64))  # exactly -log(1 - probability)
    >>> [round(x, 2) for x in c.tolist()]
    [0.69, 3.0]
    """
    outside = ~((probability >= 0) & (probability <= 1))
    if bool(outside.any()):
        raise ValueError(f"expected probabilities between 0 and 1; got {float(probability[outside][0]):g}")
    f, order = normaliser.values.sort()
    mass = (normaliser.log_weights[order] - f).softmax(0)
    middle = mass.cumsum(0) - mass / 2
    target = probability.to(mass.dtype)
    right = torch.searchsorted(middle, target).clamp(1, len(f) - 1)
    gap = (middle[right] - middle[right - 1]).clamp_min(torch.finfo(f.dtype).tiny)
    share = ((target - middle[right - 1]) / gap).clamp(0, 1)
    return torch.lerp(f[right - 1], f[right], share)


@guarded
@torch.no_grad()
def draw(
    normaliser: PlaneNormaliser, value: Function, n: int, generator: torch.Generator | None = None
) -> Tensor:
    """n independent draws (n, 2) from exp(-f) / Z; `value` is the f that `normaliser` was made for.

    A cell is drawn by the integral of its tangent plane's exponential, a point from that exponential by
    inversion, and the point is kept with probability exp(tangent - f): rejection that is exact but for the
    mass outside the cells, about exp(-40), and that turns down about upper - log Z of the points. Raises
    ValueError for a negative n, FloatingPointError where `value` is not a number.

    >>> standard = normaliser(lambda x: x.square().sum(1) / 2, lambda x: x)
    >>> generator = torch.Generator().manual_seed(0)
    >>> x = draw(standard, lambda x: x.square().sum(1) / 2, 1000, generator)
    >>> x.shape, bool((x.mean(0).abs() < 0.1).all())
    (torch.Size([1000, 2]), True)
    """
    if n < 0:
        raise ValueError(f"cannot draw {n} samples")
    cells, tangents = normaliser.cells, normaliser.tangents
    ends = log_tangent_integral(cells, tangents).softmax(0).cumsum(0)
    found: list[Tensor] = []
    missing = n
    while missing > 0:
        count = missing + missing // 50 + 10
        uniform = torch.rand(4, count, dtype=cells.dtype, device=cells.device, generator=generator)
        chosen = torch.searchsorted(ends, uniform[0] * ends[-1]).clamp(max=len(ends) - 1)
        cell, tangent = cells[chosen], tangents[chosen]
        place = from_exponential(uniform[1:3].T, tangent[:, 1:])
        x = cell[:, :2] + place[:, :1] * cell[:, 2:4] + place[:, 1:] * cell[:, 4:]
        below = tangent[:, 0] + (place * tangent[:, 1:]).sum(1)
        found.append(x[uniform[3].log() <= below - evaluate(value, x, x.dtype)][:missing])
        missing -= len(found[-1])
    return torch.cat([cells.new_empty(0, 2), *found])
