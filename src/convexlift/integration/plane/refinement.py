"""Cells that resolve exp(-f) in the plane: cut where the quadrature has not settled, turned along kinks."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from convexlift.integration import rules
from convexlift.integration.line import Function
from convexlift.integration.plane.bounds import log_tail
from convexlift.integration.plane.parallelograms import (
    ORDER,
    cell_masses,
    divide,
    gauss_lobatto,
    halves,
    log_area,
    outline,
    turned,
)
from convexlift.integration.plane.support import box_around, evaluate, find_support

MAX_CELLS = 240
_USUAL_CELLS = 160  # more only where halving the cells again shows that they missed mass
_MISSED = 5e-4  # how much of the mass that may be
_TOLERANCE = 1e-2  # last Legendre coefficients of a cell, relative to the integral, when cells are made
_SLACK = 4.0  # how much more is allowed when cells made for an earlier f are used again
_ROUGH = 0.15  # the same once there are _USUAL_CELLS, for an f with kinks
_TAIL_TOLERANCE = 1e-8  # mass outside the cells, relative to the integral, when they are used again


@torch.no_grad()
def quadrature_cells(
    value: Function,
    *,
    guess: Tensor | None = None,
    dtype: torch.dtype = torch.float64,
    device: torch.device | str = "cpu",
) -> Tensor:
    """At most 240 cells (C, 6) over the mass of exp(-f), halved until the quadrature resolves each.

    A cell is its centre and two half-axes, along the principal axes of the level set of f, or along its kinks
    where that resolves more. `guess` are the cells of an earlier f, where to look first. Raises as
    `plane.normaliser` does.

    >>> cells = quadrature_cells(lambda x: x.square().sum(1) / 2)
    >>> nodes, log_weights = gauss_lobatto(cells, ORDER)
    >>> bool((nodes.abs().amax(0) > 8).all()), len(nodes) <= 4000
    (True, True)
    """
    found = find_support(value, None if guess is None else outline(guess), dtype, device)
    cells, f, error = _resolve(value, box_around(value, found, found.directions, dtype))
    while error > _tolerance(f):  # kinks: along them the same number of cells does better
        aligned, new, less = _resolve(value, box_around(value, found, _directions(cells, f).double(), dtype))
        if less > 0.7 * error:
            break
        cells, f, error = aligned, new, less
    return cells


def still_fits(f: Tensor, outside: Tensor, cells: Tensor) -> bool:
    """Whether cells made for another function hold and resolve exp(-f), from f at nodes and on the border."""
    if not bool(f.isfinite().all()) or bool(outside.isnan().any()):
        return False
    mass, error = cell_masses(f.view(-1, ORDER, ORDER), cells)
    total = mass.sum()
    rise = outside.min() - f.min()
    tail = log_tail(log_area(outline(cells)[None])[0], rise).exp()
    allowed = _ROUGH if len(cells) >= _USUAL_CELLS else _SLACK * _tolerance(f)
    return bool((rise > 0) & (tail <= _TAIL_TOLERANCE * total) & (error.amax(1).sum() <= allowed * total))


def _tolerance(f: Tensor) -> float:
    """What is asked of the last Legendre coefficients: not less than the rounding of f leaves in them."""
    return max(_TOLERANCE, 100 * torch.finfo(f.dtype).eps * (1 + float(f.min().abs())))


def _resolve(value: Function, box: Tensor) -> tuple[Tensor, Tensor, float]:
    """Cells (C, 6) of a box, f at their nodes (C, ORDER, ORDER), and what is left of the error estimate.

    A narrow peak between the nodes of a cell leaves no trace in its coefficients. So the cells are quartered
    for a look, and those in which that changes the mass are replaced by their quarters and refined on.
    """
    cells, most = divide(box, 4), _USUAL_CELLS
    while True:
        cells, f, left = _refine(value, cells, most)
        quarters = turned(halves(cells), torch.ones(2 * len(cells), dtype=torch.bool, device=cells.device))
        quarters = halves(quarters)
        fine = evaluate(value, gauss_lobatto(quarters, ORDER)[0], cells.dtype).view(-1, ORDER, ORDER)
        masses, _ = cell_masses(torch.cat([f, fine]), torch.cat([cells, quarters]))
        mass, parts = masses[: len(cells)], masses[len(cells) :].view(4, -1)
        missed = (parts.sum(0) - mass).abs() / parts.sum()
        room = (MAX_CELLS - len(cells)) // 3
        if float(missed.sum()) <= _MISSED or room <= 0:
            return cells, f, left + float(missed.sum())
        chosen = missed.topk(min(room, len(missed))).indices
        chosen = chosen[missed[chosen] > missed.max() / 4]
        keep = torch.ones_like(missed, dtype=torch.bool)
        keep[chosen] = False
        cells = torch.cat([cells[keep], quarters.view(4, -1, 6)[:, chosen].reshape(-1, 6)])
        most = max(most, min(MAX_CELLS, len(cells)))


def _refine(value: Function, cells: Tensor, most: int) -> tuple[Tensor, Tensor, float]:
    """At most `most` cells halved where f is not resolved, f at their nodes, and the error estimate left."""
    f = evaluate(value, gauss_lobatto(cells, ORDER)[0], cells.dtype).view(-1, ORDER, ORDER)
    while True:
        mass, error = cell_masses(f, cells)
        error = error / mass.sum()
        worst = error.amax(1)
        left, room = float(worst.sum()), most - len(cells)
        if room <= 0 or left <= _tolerance(f):
            return cells, f, left
        chosen = worst.topk(min(room, len(worst))).indices
        chosen = chosen[worst[chosen] >= worst.max() / 4]
        keep = torch.ones_like(worst, dtype=torch.bool)
        keep[chosen] = False
        children = halves(turned(cells[chosen], error[chosen, 1] > error[chosen, 0]))
        new = evaluate(value, gauss_lobatto(children, ORDER)[0], cells.dtype).view(-1, ORDER, ORDER)
        cells, f = torch.cat([cells[keep], children]), torch.cat([f[keep], new])


def _directions(cells: Tensor, f: Tensor) -> Tensor:
    """Directions (2, 2), one a row, in which the Hessians on the cells are as near to diagonal as can be.

    If f(x) = g(a . x) + h(b . x), every Hessian is a mixture of aa' and bb'. The symmetric matrix N that is
    orthogonal to them all then has a'Na = b'Nb = 0, and a kink of g or h lies along the direction that a or b
    is perpendicular to. The Hessians come from f at the nodes (C, ORDER, ORDER), each weighted by the mass of
    its cell over its size, so that a kink counts the same however finely it is cut.
    """
    rule, weights, _ = rules.lobatto(ORDER, cells.dtype, cells.device)
    weights = weights / 2
    bend = weights * (45 * rule.square() - 15) / 2
    lift = 3 * weights * rule
    mass, _ = cell_masses(f, cells)
    f = torch.where(f.isfinite(), f, f[f.isfinite()].max())
    along_u, along_v, mixed = f @ weights @ bend, f @ bend @ weights, f @ lift @ lift
    inner = torch.stack([torch.stack([along_u, mixed], 1), torch.stack([mixed, along_v], 1)], 1)
    frame = outline(cells)[2:].view(2, 2)
    back = frame @ torch.linalg.inv(cells[:, 2:].view(-1, 2, 2))
    hessian = back @ inner @ back.transpose(1, 2)
    h = torch.stack([hessian[:, 0, 0], math.sqrt(2) * hessian[:, 0, 1], hessian[:, 1, 1]], dim=1)
    size = h.norm(dim=1, keepdim=True).clamp_min(torch.finfo(h.dtype).tiny)
    normal = torch.linalg.eigh((mass[:, None] * h / size).T @ h).eigenvectors[:, 0]
    off = normal[1] / math.sqrt(2)
    sizes, vectors = torch.linalg.eigh(torch.stack([normal[0], off, off, normal[2]]).view(2, 2))
    if not bool((sizes[0] < -0.05) & (sizes[1] > 0.05)):  # no two directions stand out
        return frame
    first, second = sizes[1].sqrt() * vectors[:, 0], (-sizes[0]).sqrt() * vectors[:, 1]
    a, b = first + second, first - second
    return torch.stack([torch.stack([-a[1], a[0]]), torch.stack([-b[1], b[0]])]) @ frame
