"""Inverse of the gradient map and the convex conjugate: one convex problem, solved by damped Newton."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import final

import torch
from torch import Tensor

from convexlift.calculus.estimation import LinearSolution, conjugate_gradients

Field = Callable[[Tensor], Tensor]

# Newton steps that a row may take where nothing else is asked for.
MAX_ITERATIONS = 100
_HALVINGS = 30
# Relative error that a Newton direction may have, and products with the Hessian spent on one at most.
_FORCING = 0.1
_PRODUCTS = 200


@final
@dataclass(frozen=True, eq=False)
class Solution(LinearSolution):
    """What a batched solver found, row by row.

    Attributes:
        x: the points, (N, d).
        residual: relative residuals |grad f(x) - y| / (1 + |y|), (N,).
        iterations: Newton steps taken by the slowest row.
        converged: which rows reached the tolerance, (N,) bool.
        value: for a conjugate, <x, y> - f(x), a lower bound of f*(y), (N,).
        upper: for a conjugate, the upper bound value + |grad f(x) - y|^2 / (2 alpha), (N,).
    """

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
    max_iterations: int = MAX_ITERATIONS,
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

    def direction(x: Tensor, force: Tensor, forcing: Tensor) -> Tensor:
        return _newton_step(hessian(x), force)

    return _damped(gradient, direction, y, start, tolerance, max_iterations)


@torch.no_grad()
def invert_gradient_by_products(
    gradient: Field,
    operator: Callable[[Tensor], Field],
    y: Tensor,
    *,
    preconditioner: Field | None = None,
    start: Tensor | None = None,
    tolerance: float | None = None,
    max_iterations: int = MAX_ITERATIONS,
) -> Solution:
    """Solve grad f(x) = y as ``invert_gradient`` does, without forming a Hessian: inexact Newton.

    The direction comes from conjugate gradients, stopped at |H d - (y - grad f)| <= eta |y - grad f|. With
    eta_k = 0.9 (|force_k| / |force_{k-1}|)^2, at most 0.1, convergence stays quadratic and no early step is
    solved better than it deserves. The line search and the flags are the same.

    Args:
        gradient: (N, d) -> (N, d).
        operator: the Hessians at points (n, d) as a function of vectors (n, d) -> (n, d).
        y: targets, (N, d).
        preconditioner: vectors (n, d) -> an approximation of H^{-1} times them, for any of the points.
        start, tolerance, max_iterations: as in ``invert_gradient``.

    Source: Eisenstat and Walker, "Choosing the forcing terms in an inexact Newton method", SIAM J. Sci.
    Comput. 1996.

    Example:
        >>> twice = lambda v: 2 * v
        >>> solution = invert_gradient_by_products(twice, lambda x: twice, torch.ones(3, 2))
        >>> solution.x[0], bool(solution.converged.all())
        (tensor([0.5000, 0.5000]), True)
    """

    def direction(x: Tensor, force: Tensor, forcing: Tensor) -> Tensor:
        found = conjugate_gradients(
            operator(x), force, preconditioner=preconditioner, tolerance=forcing, max_iterations=_PRODUCTS
        )
        usable = torch.isfinite(found.x).all(1) & found.x.any(1)
        return torch.where(usable.unsqueeze(1), found.x, force)

    return _damped(gradient, direction, y, start, tolerance, max_iterations)


@torch.no_grad()
def gaussian_start(gradient: Field, y: Tensor) -> Tensor:
    """A first guess of x with grad f(x) = y: the affine map that is best on average for x ~ N(0, I).

    Fitted by least squares of x on grad f(x) over max(256, 2 d) fixed normal draws. Rows that it takes no
    closer than zero is start at zero.

    >>> gaussian_start(lambda x: 2 * x + 1, torch.tensor([[3.0]]))
    tensor([[1.]])
    """
    count, dim = max(256, 2 * y.shape[1]), y.shape[1]
    generator = torch.Generator(y.device).manual_seed(0)
    x = torch.randn(count, dim, generator=generator, dtype=y.dtype, device=y.device)
    mapped = gradient(x)
    mean = mapped.mean(0)
    shifted = (mapped - mean).double()
    scatter = shifted.T @ shifted
    scatter.diagonal().add_(1e-12 * scatter.diagonal().mean())
    slope, _ = torch.linalg.solve_ex(scatter, shifted.T @ (x - x.mean(0)).double())
    return closer_than_zero(gradient, y, x.mean(0) + (y - mean) @ slope.to(y.dtype))


@torch.no_grad()
def closer_than_zero(gradient: Field, y: Tensor, guess: Tensor) -> Tensor:
    """The guess (N, d) where its gradient is closer to y than that at zero is, and zero elsewhere."""
    missed = (y - gradient(guess)).norm(dim=1)
    from_zero = (y - gradient(torch.zeros_like(y))).norm(dim=1)
    return torch.where((missed < from_zero).unsqueeze(1), guess, 0)


def _damped(
    gradient: Field,
    direction: Callable[[Tensor, Tensor, Tensor], Tensor],
    y: Tensor,
    start: Tensor | None,
    tolerance: float | None,
    max_iterations: int,
) -> Solution:
    """Newton's method with `direction(x, force, relative error allowed)` for the active rows."""
    tolerance = default_tolerance(y.dtype) if tolerance is None else tolerance
    x = torch.zeros_like(y) if start is None else start.detach().clone()
    scale = 1 + y.norm(dim=1)
    force = y - gradient(x)
    residual = force.norm(dim=1) / scale
    forcing = torch.full_like(residual, _FORCING)
    active = torch.nonzero(~(residual <= tolerance)).flatten()
    iterations = 0
    while len(active) and iterations < max_iterations:
        iterations += 1
        before = residual[active]
        enough = (tolerance / 2 / before).clamp(max=_FORCING)
        step = direction(x[active], force[active], torch.maximum(forcing[active], enough))
        moved = _line_search(gradient, x, y, force, active, step)
        residual[active] = force[active].norm(dim=1) / scale[active]
        forcing[active] = (0.9 * (residual[active] / before).square()).clamp(max=_FORCING)
        active = active[moved & ~(residual[active] <= tolerance)]
    # Where the norm of a target overflows the residual says nothing.
    return Solution(x, residual, iterations, (residual <= tolerance) & scale.isfinite())


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
