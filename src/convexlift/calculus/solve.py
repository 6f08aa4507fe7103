"""Inverse of the gradient map and the convex conjugate: one convex problem, solved by damped Newton."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

Field = Callable[[Tensor], Tensor]

_HALVINGS = 30


@dataclass(frozen=True, eq=False)
class Solution:
    """What a batched solver found, row by row.

    Attributes:
        x: the points, (N, d).
        residual: relative residuals |grad f(x) - y| / (1 + |y|), (N,).
        iterations: Newton steps taken by the slowest row.
        converged: which rows reached the tolerance, (N,) bool.
        value: for a conjugate, <x, y> - f(x), a lower bound of f*(y), (N,).
        upper: for a conjugate, the upper bound value + |grad f(x) - y|^2 / (2 alpha), (N,).
    """

    x: Tensor
    residual: Tensor
    iterations: int
    converged: Tensor
    value: Tensor | None = None
    upper: Tensor | None = None


def default_tolerance(dtype: torch.dtype) -> float:
    """Relative residual asked for: 1e-8 in float64, 1e-4 in float32."""
    return 1e-8 if dtype == torch.float64 else 1e-4


@torch.no_grad()
def invert_gradient(
    gradient: Field,
    hessian: Field,
    y: Tensor,
    *,
    start: Tensor | None = None,
    tolerance: float | None = None,
    max_iterations: int = 100,
) -> Solution:
    """Solve grad f(x) = y for strongly convex f, all rows at once.

    Newton's direction d = H^{-1} (y - grad f) shortens |grad f - y| at rate |grad f - y|, so the step is
    halved until |grad f(x + t d) - y| <= (1 - t/4) |grad f(x) - y|. Only rows still active are evaluated; a
    row stops when it reaches the tolerance, or when no step shortens the residual any more (then it is not
    flagged as converged, unless it is within the tolerance).

    Args:
        gradient: (N, d) -> (N, d).
        hessian: (N, d) -> (N, d, d), positive definite.
        y: targets, (N, d).
        start: first guess, (N, d); zero when omitted.
        tolerance: relative residual to reach; see ``default_tolerance``.
        max_iterations: Newton steps at most.

    Example:
        >>> hessian = lambda x: 2 * torch.eye(2).expand(len(x), 2, 2)
        >>> solution = invert_gradient(lambda x: 2 * x, hessian, torch.ones(3, 2))
        >>> solution.x[0], bool(solution.converged.all())
        (tensor([0.5000, 0.5000]), True)
    """
    tolerance = default_tolerance(y.dtype) if tolerance is None else tolerance
    x = torch.zeros_like(y) if start is None else start.detach().clone()
    scale = 1 + y.norm(dim=1)
    force = y - gradient(x)
    residual = force.norm(dim=1) / scale
    active = torch.nonzero(~(residual <= tolerance)).flatten()
    iterations = 0
    while len(active) and iterations < max_iterations:
        iterations += 1
        step = _newton_step(hessian(x[active]), force[active])
        moved = _line_search(gradient, x, y, force, active, step)
        residual[active] = force[active].norm(dim=1) / scale[active]
        active = active[moved & ~(residual[active] <= tolerance)]
    return Solution(x, residual, iterations, residual <= tolerance)


def _newton_step(hessian: Tensor, force: Tensor) -> Tensor:
    """H^{-1} force; rows without a Cholesky factor fall back to the force itself."""
    factor, info = torch.linalg.cholesky_ex(hessian)
    step = torch.cholesky_solve(force.unsqueeze(2), factor).squeeze(2)
    usable = (info == 0) & torch.isfinite(step).all(1)
    return torch.where(usable.unsqueeze(1), step, force)


def _line_search(
    gradient: Field, x: Tensor, y: Tensor, force: Tensor, active: Tensor, step: Tensor
) -> Tensor:
    """Move the active rows of x and force in place along their steps; returns which of them moved."""
    before = force[active].norm(dim=1)
    moved = torch.zeros_like(before, dtype=torch.bool)
    waiting = torch.arange(len(active), device=x.device)
    length = 1.0
    for _ in range(_HALVINGS):
        rows = active[waiting]
        trial = x[rows] + length * step[waiting]
        trial_force = y[rows] - gradient(trial)
        good = trial_force.norm(dim=1) <= (1 - length / 4) * before[waiting]
        x[rows[good]] = trial[good]
        force[rows[good]] = trial_force[good]
        moved[waiting[good]] = True
        waiting = waiting[~good]
        if not len(waiting):
            break
        length /= 2
    return moved
