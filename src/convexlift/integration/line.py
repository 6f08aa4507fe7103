"""The integral of exp(-f) over the real line for convex f: exact quadrature with a bound from convexity.

Three facts about a convex f make this problem easy. The set where f is within D of its minimum is one
interval, and it is at most D times as wide as the set where f is within 1 of it, so a grid over the first
cannot miss the second. A chord lies above f and a tangent below it, so chords and tangents bound the integral
from both sides in closed form. And beyond an end of the interval the tangent there bounds what was left out.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import final

import torch
from torch import Tensor

from convexlift.ambient import guarded
from convexlift.checks import name_dtype
from convexlift.integration import rules

Function = Callable[[Tensor], Tensor]

ORDER = 13  # Gauss-Lobatto nodes in a panel, both ends included: no wall can hide beyond the last node
DROP = 40.0  # the interval ends where exp(-f) is exp(-40) of its peak
MAX_PANELS = 256
REACH = 1e12  # how far from the origin the ends are looked for
_GRID = 65  # points of one look at an interval
_TOLERANCE = 1e-7  # last Legendre coefficients of a panel, relative to the integral, when panels are made
_SLACK = 100.0  # how much more is allowed when panels made for an earlier f are used again
_TAIL_TOLERANCE = 1e-10  # mass outside the panels, relative to the integral, when they are used again
_MAX_POINTS = 60_000


@final
@dataclass(frozen=True, eq=False)
class Normaliser:
    """log Z = log of the integral of exp(-f), with bounds: lower <= log Z <= upper.

    `log_z`, `lower` and `upper` are scalars; `log_z` carries the gradient with respect to whatever f depends
    on, at fixed nodes. `nodes` (M,) and `log_weights` (M,) are the quadrature rule, so that log_z =
    logsumexp(log_weights - f(nodes)); `edges` (P + 1,) are the ends of its panels. `points` (K,) and `values`
    (K,) are f where it was bounded, fine enough that exp(-f) is log-linear between them to the accuracy of
    the bounds.
    """

    log_z: Tensor
    lower: Tensor
    upper: Tensor
    nodes: Tensor
    log_weights: Tensor
    edges: Tensor
    points: Tensor
    values: Tensor

    @property
    def error(self) -> float:
        """The largest error that log_z can have: max(log_z - lower, upper - log_z)."""
        return float(torch.maximum(self.log_z.detach() - self.lower, self.upper - self.log_z.detach()))


@guarded
def normaliser(
    value: Function,
    derivative: Function,
    *,
    tolerance: float = 1e-6,
    dtype: torch.dtype = torch.float64,
    device: torch.device | str = "cpu",
) -> Normaliser:
    """The logarithm of the integral of exp(-f) over the real line, with bounds that follow from convexity.

    `value` maps (N, 1) to f, shape (N,), and `derivative` maps (N, 1) to f', shape (N, 1). Points between the
    nodes are added until upper - lower <= `tolerance`. The bounds hold for exact values of f and f' (a few
    units in the last place are added for rounding). Raises ValueError when f is flat or falls without end on
    one side, so that the integral is infinite, and FloatingPointError when f is not a number or too steep for
    the dtype.

    >>> standard = normaliser(lambda x: x[:, 0] ** 2 / 2, lambda x: x)
    >>> round(float(standard.log_z), 10)  # log(2 pi) / 2
    0.9189385332
    >>> bool(standard.lower <= standard.log_z <= standard.upper)
    True
    """
    edges = panel_edges(value, dtype=dtype, device=device)
    nodes, log_weights = gauss_lobatto(edges)
    log_z = torch.logsumexp(log_weights - value(nodes[:, None]), dim=0)
    with torch.no_grad():
        points, values, lower, upper = _bounds(value, derivative, nodes, tolerance)
    # A kink can push the rule outside the bounds: then the value moves to them, and the gradient stays.
    bounded = torch.minimum(torch.maximum(log_z.detach(), lower), upper)
    return Normaliser(
        bounded + (log_z - log_z.detach()), lower, upper, nodes, log_weights, edges, points, values
    )


@guarded
def log_integral(
    value: Function,
    edges: Tensor | None = None,
    *,
    dtype: torch.dtype = torch.float64,
    device: torch.device | str = "cpu",
) -> tuple[Tensor, Tensor]:
    """log of the integral of exp(-f), without bounds, and the panel edges it used, for one training step.

    Pass the edges of the last step: as long as they still hold the mass of exp(-f) and still resolve it,
    which the same values tell, the step costs one evaluation of `value` at a few hundred nodes. Otherwise new
    edges are found, without gradient. Raises as `normaliser` does.

    >>> log_z, edges = log_integral(lambda x: x[:, 0] ** 2 / 2)
    >>> again, same = log_integral(lambda x: (x[:, 0] - 0.1) ** 2 / 2, edges)
    >>> same is edges, round(float(again), 8)
    (True, 0.91893853)
    """
    if edges is not None:
        nodes, log_weights = gauss_lobatto(edges)
        f = value(nodes[:, None])
        if _still_fits(f.detach(), edges):
            return torch.logsumexp(log_weights - f, dim=0), edges
    edges = panel_edges(value, guess=edges, dtype=dtype, device=device)
    nodes, log_weights = gauss_lobatto(edges)
    return torch.logsumexp(log_weights - value(nodes[:, None]), dim=0), edges


@guarded
def quantile(normaliser: Normaliser, probability: Tensor) -> Tensor:
    """The quantiles of the density exp(-f) / Z: x with P(X <= x) = probability, both of shape (N,).

    Between neighbouring points f is replaced by its chord, whose distribution function inverts in closed
    form; the error in probability is that of the bounds.

    >>> standard = normaliser(lambda x: x[:, 0] ** 2 / 2, lambda x: x)
    >>> [round(q, 4) for q in quantile(standard, torch.tensor([0.5, 0.975], dtype=torch.float64)).tolist()]
    [0.0, 1.96]
    """
    points, values = normaliser.points, normaliser.values
    mass = (_log_exponential(points.diff(), values[:-1], values[1:]) - normaliser.upper).exp()
    cumulative = mass.cumsum(0)
    target = probability.to(mass.dtype) * cumulative[-1]
    cell = torch.searchsorted(cumulative, target).clamp(max=len(mass) - 1)
    inside = target - (cumulative[cell] - mass[cell])
    share = (inside / mass[cell].clamp_min(torch.finfo(mass.dtype).tiny)).clamp(0, 1)
    rise = values.diff()[cell]
    # Within the cell the density is exp(-rise s), s in [0, 1]; from its higher end nothing overflows.
    size = rise.abs()
    from_high = torch.where(rise >= 0, share, 1 - share)
    straight = size < 1e-6
    safe = torch.where(straight, torch.ones_like(size), size)
    s = torch.where(straight, from_high, -torch.log1p(from_high * torch.expm1(-safe)) / safe).clamp(0, 1)
    s = torch.where(rise >= 0, s, 1 - s)
    return points[cell] + s * points.diff()[cell]


@guarded
@torch.no_grad()
def panel_edges(
    value: Function,
    *,
    guess: Tensor | None = None,
    dtype: torch.dtype = torch.float64,
    device: torch.device | str = "cpu",
) -> Tensor:
    """Ends of at most 256 panels over the mass of exp(-f), halved until the quadrature resolves each.

    `guess` is a tensor whose first and last entries are where to look first. Raises as `normaliser` does.

    >>> edges = panel_edges(lambda x: x[:, 0] ** 2 / 2)
    >>> bool(edges[0] < -8.9) and bool(edges[-1] > 8.9)
    True
    """
    low, high = (-8.0, 8.0) if guess is None else (float(guess[0]), float(guess[-1]))
    low, high = _support(value, low, high, dtype, device)
    edges = torch.linspace(low, high, 17, dtype=dtype, device=device)
    while True:
        nodes, _ = gauss_lobatto(edges)
        f = value(nodes[:, None])
        mass, error = _panel_masses(f, edges)
        width = edges.diff()
        middle = edges[:-1] + width / 2
        too_wide = (error > _tolerance(f) * mass.sum()) & (middle > edges[:-1]) & (middle < edges[1:])
        count = int(too_wide.sum())
        if count == 0 or len(edges) + count > MAX_PANELS:
            return edges
        edges = torch.cat([edges, middle[too_wide]]).sort().values


@guarded
def gauss_lobatto(edges: Tensor) -> tuple[Tensor, Tensor]:
    """Nodes and log weights, each (12 P + 1,), of composite Gauss-Lobatto quadrature between edges (P + 1,).

    Neighbouring panels share a node. Exact on each panel for polynomials up to degree 23.

    >>> nodes, log_weights = gauss_lobatto(torch.tensor([0.0, 1.0, 2.0], dtype=torch.float64))
    >>> round(float((log_weights.exp() * nodes**3).sum()), 12)
    4.0
    """
    rule, weights, _ = rules.lobatto(ORDER, edges.dtype, edges.device)
    half = edges.diff()[:, None] / 2
    nodes = (edges[:-1, None] + half) + half * rule[:-1]
    panel = half * weights
    shared = panel[:, 0] + torch.cat([panel.new_zeros(1), panel[:-1, -1]])
    weights = torch.cat([shared[:, None], panel[:, 1:-1]], dim=1)
    return torch.cat([nodes.reshape(-1), edges[-1:]]), torch.cat([weights.reshape(-1), panel[-1:, -1]]).log()


def _panel_masses(f: Tensor, edges: Tensor) -> tuple[Tensor, Tensor]:
    """Integral of exp(min f - f) over each panel (P,), and the size of its last two coefficients (P,)."""
    _, weights, coefficients = rules.lobatto(ORDER, edges.dtype, edges.device)
    density = (f.min() - f).exp().unfold(0, ORDER, ORDER - 1)
    width = edges.diff()
    return width / 2 * (density @ weights), width * (density @ coefficients).abs().sum(1)


def _still_fits(f: Tensor, edges: Tensor) -> bool:
    """Whether panels made for another function hold and resolve exp(-f), from f at their nodes (M,).

    Beyond an end f rises at least as fast as between the last two nodes, which bounds the mass left out.
    """
    if not bool(f.isfinite().all()):
        return False
    mass, error = _panel_masses(f, edges)
    first = rules.lobatto(ORDER, edges.dtype, edges.device)[0][:2].diff() / 2 * edges.diff()[[0, -1]]
    slope = torch.stack([f[0] - f[1], f[-1] - f[-2]]) / first
    outside = (f.min() - f[[0, -1]]).exp() / slope
    total = mass.sum()
    resolved = (error <= _SLACK * _tolerance(f) * total).all()
    return bool(((slope > 0) & (outside <= _TAIL_TOLERANCE * total)).all() & resolved)


def _tolerance(f: Tensor) -> float:
    """What is asked of the last Legendre coefficients: not less than the rounding of f leaves in them."""
    return max(_TOLERANCE, 100 * torch.finfo(f.dtype).eps * (1 + float(f.min().abs())))


def _support(
    value: Function, low: float, high: float, dtype: torch.dtype, device: torch.device | str
) -> tuple[float, float]:
    """The interval outside which f is at least DROP above its minimum, to a thousandth of its width."""

    def look(left: float, right: float, count: int = _GRID) -> tuple[Tensor, Tensor]:
        x = torch.linspace(left, right, count, dtype=dtype, device=device)
        f = value(x[:, None])
        undefined = f.isnan() | (f == -torch.inf)
        if bool(undefined.any()):
            where = float(x[undefined][0])
            raise FloatingPointError(f"cannot integrate exp(-f): f is not a number at x = {where:.6g}")
        return x, f

    if not high - low > 1e-6 * max(abs(low), abs(high)):
        low, high = low - 1.0, high + 1.0
    while True:
        x, f = look(low, high)
        lowest = f.min()
        rises = [(f[0] - lowest), (f[-1] - lowest)]
        if bool((rises[0] >= DROP) & (rises[1] >= DROP)):
            break
        for rise, end, side in ((rises[0], low, "left"), (rises[1], high, "right")):
            if float(rise) < DROP and abs(end) > REACH:
                raise ValueError(
                    f"exp(-f) has no finite integral: on the {side}, f is still only {float(rise):.3g} "
                    f"above its lowest value at x = {end:.3g}"
                )
        reach = 4 * (high - low)
        low = low if float(rises[0]) >= DROP else low - reach
        high = high if float(rises[1]) >= DROP else high + reach

    while True:  # each round keeps the cells between the two nearest points that are DROP above the lowest
        best = int(f.argmin())
        # The lowest value on any grid so far: a finer grid may miss the lowest point of a coarser one.
        lowest = torch.minimum(lowest, f[best])
        above = f - lowest >= DROP
        above[0] = above[-1] = True  # chosen so before; rounding may have moved them since
        if not 0 < best < len(f) - 1:
            raise FloatingPointError(
                f"cannot integrate exp(-f): f is not convex near x = {float(x[best]):.6g}"
            )
        left = int(above[:best].nonzero().max())
        right = best + int(above[best:].nonzero().min())
        narrowed = right - left <= 0.75 * (_GRID - 1)
        if not narrowed:
            break
        x, f = look(float(x[left]), float(x[right]))
        if not bool((x.diff() > 0).all()):
            too_narrow = f"it is too narrow for {name_dtype(dtype)} at x = {float(x[0]):.6g}"
            raise FloatingPointError(f"cannot integrate exp(-f): {too_narrow}")
    low, low_inside = float(x[left]), float(x[left + 1])
    high_inside, high = float(x[right - 1]), float(x[right])
    for _ in range(2):  # a steep wall rises far above DROP within a cell: trim both ends
        x, f = look(low, low_inside, 33)
        last = int((f - lowest >= DROP).nonzero().max()) if bool(f[0] - lowest >= DROP) else 0
        low, low_inside = float(x[last]), float(x[min(last + 1, 32)])
        x, f = look(high_inside, high, 33)
        first = int((f - lowest >= DROP).nonzero().min()) if bool(f[-1] - lowest >= DROP) else 32
        high_inside, high = float(x[max(first - 1, 0)]), float(x[first])
    return low, high


def _log_exponential(width: Tensor, start: Tensor, end: Tensor) -> Tensor:
    """log of the integral over an interval of exp(-l), l the straight line from `start` to `end`."""
    rise = (end - start).abs()
    small = rise < 1e-5
    safe = torch.where(small, torch.ones_like(rise), rise)
    # Relative to the lower end.
    log_mean = torch.where(small, rise * (rise / 24 - 0.5), (-torch.expm1(-safe) / safe).log())
    return width.log() - torch.minimum(start, end) + log_mean


def _bounds(
    value: Function, derivative: Function, points: Tensor, tolerance: float
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Points (K,), f there (K,), and bounds of log Z: from chords below, from tangents above."""
    f, slope = value(points[:, None]), derivative(points[:, None])[:, 0]
    usable = f.isfinite() & slope.isfinite()
    usable[1:] &= points.diff() > 0
    points, f, slope = points[usable], f[usable], slope[usable]
    if not bool(((slope[:1] < 0) & (slope[-1:] > 0)).any()):
        raise ValueError(
            "cannot bound the integral of exp(-f): f' must be negative on the left, positive on the right"
        )
    rounding = 16 * torch.finfo(f.dtype).eps * (1 + f.min().abs())
    tolerance = max(tolerance, 4 * float(rounding))
    while True:
        width = points.diff()
        below = _log_exponential(width, f[:-1], f[1:])
        # The tangents at both ends meet at `crossing`; any crossing inside the interval gives a valid bound.
        crossing = (f.diff() - slope[1:] * width) / (slope[:-1] - slope[1:])
        crossing = torch.where(crossing.isfinite(), crossing, width / 2)
        crossing = torch.minimum(crossing.clamp_min(0), width)
        above = torch.logaddexp(
            _log_exponential(crossing, f[:-1], f[:-1] + slope[:-1] * crossing),
            _log_exponential(width - crossing, f[1:] - slope[1:] * (width - crossing), f[1:]),
        )
        lower, upper = torch.logsumexp(below, 0), torch.logsumexp(above, 0)
        gap = (above - upper).exp() - (below - upper).exp()
        middle = points[:-1] + width / 2
        split = (gap > tolerance / len(gap)) & (middle > points[:-1]) & (middle < points[1:])
        if float(upper - lower) <= tolerance or not 0 < int(split.sum()) <= _MAX_POINTS - len(points):
            break
        new = middle[split]
        points, order = torch.cat([points, new]).sort()
        f = torch.cat([f, value(new[:, None])])[order]
        slope = torch.cat([slope, derivative(new[:, None])[:, 0]])[order]
    tails = torch.stack([-f[0] - (-slope[0]).log(), -f[-1] - slope[-1].log()])
    upper = torch.logsumexp(torch.cat([upper[None], tails]), 0)
    return points, f, lower - rounding, upper + rounding
