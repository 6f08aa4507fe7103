"""Ways to train a log-determinant by automatic differentiation, as people write them today.

Each takes a potential and points (N, d) and returns log det of the Hessian, (N,), ready for a backward
through it (a double backward). Three are exact. The fourth has the right gradient on average only.
"""

from __future__ import annotations

import torch
from torch import Tensor

from convexlift import Potential


def vmap_hessian(potential: Potential, x: Tensor) -> Tensor:
    """``vmap(hessian(f))``: forward over reverse, then double backward."""
    hessian = torch.func.vmap(torch.func.hessian(lambda row: potential.value(row[None])[0]))(x)
    return torch.logdet(hessian)


def vmap_jacfwd_grad(potential: Potential, x: Tensor) -> Tensor:
    """``vmap(jacfwd(grad f))`` with the gradient in closed form, so that only one level is automatic."""
    hessian = torch.func.vmap(torch.func.jacfwd(lambda row: potential.gradient(row[None])[0]))(x)
    return torch.logdet(hessian)


def rowwise_autograd(potential: Potential, x: Tensor) -> Tensor:
    """One ``autograd.grad(create_graph=True)`` for each row of the Hessian."""
    x = x.detach().requires_grad_(True)
    (gradient,) = torch.autograd.grad(potential.value(x).sum(), x, create_graph=True)
    rows = [torch.autograd.grad(gradient[:, i].sum(), x, create_graph=True)[0] for i in range(x.shape[1])]
    return torch.logdet(torch.stack(rows, 1))


def stochastic(potential: Potential, x: Tensor, products: int = 21) -> Tensor:
    """A number (N,) whose gradient estimates that of log det without bias, from Hessian-vector products.

    As convex potential flows are usually trained: w = H^{-1} v for one Rademacher probe v by conjugate
    gradients, held fixed, then w' H v, whose gradient has mean tr(H^{-1} dH). All but one of the products
    are iterations (without bias once these have converged); each is one backward through the gradient.
    """
    x = x.detach().requires_grad_(True)
    (gradient,) = torch.autograd.grad(potential.value(x).sum(), x, create_graph=True)
    probe = torch.randint_like(x, 2) * 2 - 1
    solution, residual = torch.zeros_like(x), probe
    direction, square = residual, residual.square().sum(1, keepdim=True)
    for _ in range(products - 1):
        (product,) = torch.autograd.grad(gradient, x, direction, retain_graph=True)
        # Where a row has converged its square is zero, and it must not divide zero by zero.
        step = square / (direction * product).sum(1, keepdim=True).clamp_min(1e-30)
        solution = solution + step * direction
        residual = residual - step * product
        before, square = square, residual.square().sum(1, keepdim=True)
        direction = residual + square / before.clamp_min(1e-30) * direction
    (product,) = torch.autograd.grad(gradient, x, probe, create_graph=True)
    return (solution.detach() * product).sum(1)
