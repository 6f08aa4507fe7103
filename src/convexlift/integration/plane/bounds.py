"""Bounds of the integral of exp(-f) in the plane that follow from the convexity of f.

On a cell a tangent plane lies below f and the bilinear interpolation of f at the corners above it, and both
bound the integral of exp(-f) in closed form. Beyond a box f rises at least linearly along every ray from the
lowest point, which bounds what was left out.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from convexlift.integration.line import Function
from convexlift.integration.plane.exponential import central_moments, langevin_function, log_mean
from convexlift.integration.plane.parallelograms import border, halves, log_area, outline, turned
from convexlift.integration.plane.support import format_point

_MAX_CELLS = 50_000
_SHARE = 2e-4  # the most mass in one cell, for the levels
_NOT_CONVEX = "cannot bound the integral of exp(-f): f is not convex, or its gradient is not that of f"


def bound_cells(
    value: Function, gradient: Function, start: Tensor, tolerance: float
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Halves (C, 6) of the first cells, their tangents (C, 3), bounds of log Z from chords and tangents."""

    def lattice(cells: Tensor, rows: Tensor) -> tuple[Tensor, Tensor]:
        """f at centre + s u + t v, s in rows, t in (-1, 0, 1), and the tangent at the centre."""
        centre, u, v = (side[:, None, None] for side in cells.view(-1, 3, 2).unbind(1))
        columns = torch.tensor([-1.0, 0.0, 1.0], dtype=cells.dtype, device=cells.device)
        x = centre + rows[:, None, None] * u + columns[:, None] * v
        f = value(x.reshape(-1, 2)).view(x.shape[:-1])
        middle = len(rows) // 2
        slope = gradient(cells[:, :2])
        finite = f.flatten(1).isfinite().all(1) & slope.isfinite().all(1)
        if not bool(finite.all()):
            raise FloatingPointError(
                f"cannot bound the integral of exp(-f): f or its gradient is not finite near "
                f"x = {format_point(cells[~finite][0])}"
            )
        slopes = (slope[:, None] * cells[:, 2:].view(-1, 2, 2)).sum(2)
        return f, torch.cat([f[:, middle, 1:2], slopes], dim=1)

    cells = start
    all_rows = torch.tensor([-1.0, 0.0, 1.0], dtype=cells.dtype, device=cells.device)
    f, tangents = lattice(cells, all_rows)
    tail = _tail(value, gradient, outline(cells), f.min())
    while True:
        below, above = log_chord_integral(cells, f), log_tangent_integral(cells, tangents)
        lower, upper = torch.logsumexp(below, 0), torch.logsumexp(above, 0)
        rounding = 16 * torch.finfo(f.dtype).eps * (1 + f.min().abs())
        asked = max(tolerance, 8 * float(rounding))
        share = (above - lower).exp()
        gap = share - (below - lower).exp()
        # A steep tangent plane that dives far below f would hide all other gaps: such cells are cut first.
        split = (share > _SHARE) | ((above > log_area(cells) - f.min()) & (share > asked / len(gap)))
        heavy = split
        if float(upper - lower) > asked:  # halving takes about half of a gap away: as many as that needs
            gap = gap.masked_fill(split, 0.0)
            sorted_gap, order = gap.sort(descending=True)
            enough = sorted_gap.cumsum(0) - sorted_gap > 2 * (gap.sum() - asked)
            split = split.index_put((order,), split[order] | ((sorted_gap > gap.max() / 16) & ~enough))
        room = _MAX_CELLS - len(cells)
        chosen = split.nonzero()[: max(room, 0), 0]
        if len(chosen) == 0:
            break
        keep = torch.ones_like(split)
        keep[chosen] = False
        old, parents = f[chosen], cells[chosen]
        bend = torch.stack([old.diff(n=2, dim=1).sum((1, 2)), old.diff(n=2, dim=2).sum((1, 2))], dim=1)
        rise = bend + tangents[chosen, 1:].abs() * heavy[chosen, None]
        swap = rise[:, 1] > rise[:, 0]
        old = torch.where(swap[:, None, None], old.transpose(1, 2), old)
        children = halves(turned(parents, swap))
        new, tangent = lattice(children, all_rows[1:2])
        first = torch.stack([old[:, 0], new[: len(old), 0], old[:, 1]], dim=1)
        second = torch.stack([old[:, 1], new[len(old) :, 0], old[:, 2]], dim=1)
        cells = torch.cat([cells[keep], children])
        f = torch.cat([f[keep], first, second])
        tangents = torch.cat([tangents[keep], tangent])
    steepness = (tangents[:, 1:].abs() / cells[:, 2:].view(-1, 2, 2).norm(dim=2)).sum(1)
    size = 1 + tangents.abs().sum(1) + cells[:, :2].abs().sum(1) * steepness
    noise = 1e3 * torch.finfo(f.dtype).eps * size  # from rounding f and rounding x
    if bool((below > above + noise).any()):
        raise ValueError(_NOT_CONVEX)
    upper = torch.logaddexp(upper, tail)
    return cells, tangents, lower - rounding, upper + rounding


def log_tangent_integral(cells: Tensor, tangents: Tensor) -> Tensor:
    """log of the integral of exp(-tangent plane) over each cell, (C,)."""
    return log_area(cells) - tangents[:, 0] + log_mean(tangents[:, 1:]).sum(1)


def log_chord_integral(cells: Tensor, f: Tensor) -> Tensor:
    """log of a lower bound of the integral of exp(-f) over each cell, from f at 3 x 3 points of it; (C,).

    On each quarter f lies below the bilinear b = m + p s + q t + r s t through its corners. By Jensen's
    inequality under the density proportional to exp(-p s - q t), the mean of exp(-b) is at least
    exp(-m - r E[s] E[t]) times that of exp(-p s - q t).
    """
    a, b, c, d = f[:, :-1, :-1], f[:, :-1, 1:], f[:, 1:, :-1], f[:, 1:, 1:]
    mean, p, q, r = (a + b + c + d) / 4, (c + d - a - b) / 4, (b + d - a - c) / 4, (a + d - b - c) / 4
    quarters = log_mean(p) + log_mean(q) - mean - r * langevin_function(p) * langevin_function(q)
    return log_area(cells) + torch.logsumexp(quarters.flatten(1), 1) - math.log(4)


def tangent_rule(cells: Tensor, tangents: Tensor) -> tuple[Tensor, Tensor]:
    """Nodes (4 C, 2) and log weights (4 C,) of the 2 x 2 Gauss rule for exp(-tangent plane) on each cell.

    On a cell exp(-f) is a product of exponentials, exp(-g s) along each side, and a factor close to 1. The
    two nodes and weights along a side follow from the mean, the variance and the third central moment of the
    density proportional to exp(-g s) on [-1, 1], so that the rule is exact for that times a cubic.
    """
    slope = tangents[:, 1:]
    mean, variance, third = -langevin_function(slope), *central_moments(slope)
    skew = third / variance / 2
    root = (skew.square() + variance).sqrt()
    place = torch.stack([skew - root, skew + root], dim=2)
    share = torch.stack([root + skew, root - skew], dim=2) / (2 * root[..., None])
    s, t = (mean[..., None] + place).unbind(1)
    s, t = s[:, [0, 0, 1, 1]], t[:, [0, 1, 0, 1]]
    centre, u, v = (side[:, None] for side in cells.view(-1, 3, 2).unbind(1))
    nodes = centre + s[..., None] * u + t[..., None] * v
    below = tangents[:, :1] + s * slope[:, :1] + t * slope[:, 1:]
    log_share = share[:, 0][:, [0, 0, 1, 1]].log() + share[:, 1][:, [0, 1, 0, 1]].log()
    log_weights = log_tangent_integral(cells, tangents)[:, None] + below + log_share
    return nodes.reshape(-1, 2), log_weights.reshape(-1)


def _tail(value: Function, gradient: Function, box: Tensor, bottom: Tensor) -> Tensor:
    """log of a bound of the integral of exp(-f) outside the box; `bottom` is f at some point inside.

    Tangents along the sides bound f on the border from below.
    """
    count = 65
    x = border(box, count)
    along = box[2:].view(2, 2)[[1, 1, 0, 0]]
    f, slope = value(x).view(4, count), (gradient(x).view(4, count, 2) * along[:, None]).sum(2)
    step = 2 / (count - 1)
    crossing = (f.diff(dim=1) - slope[:, 1:] * step) / (slope[:, :-1] - slope[:, 1:])
    crossing = torch.where(crossing.isfinite(), crossing, torch.zeros_like(crossing)).clamp(0, step)
    least = torch.minimum(f.min(), (f[:, :-1] + slope[:, :-1] * crossing).min())
    rise = least - bottom
    if not bool(rise > 0):
        raise ValueError(_NOT_CONVEX)
    return log_tail(log_area(box[None])[0], rise) - bottom


def log_tail(log_area: Tensor, rise: Tensor) -> Tensor:
    """log of a bound of the integral of exp(lowest - f) outside a box on whose border f is `rise` higher.

    With x = x_0 + s (b - x_0), b on the border and s > 1, convexity gives f(x) >= f(x_0) + s rise; the box
    scaled by s has the area s^2 A, and A times the integral of 2 s exp(-s rise) over s > 1 is the bound.
    """
    return log_area + math.log(2) - rise + (1 / rise + 1 / rise**2).log()
