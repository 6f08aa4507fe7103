"""Three ways to train an exact log-determinant by automatic differentiation, as people write them today.

Each takes a potential and points (N, d) and returns log det of the Hessian, (N,), ready for a backward
through it (a double backward).
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
