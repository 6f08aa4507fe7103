"""Quadrature rules on [-1, 1] as tensors, each computed once."""

from __future__ import annotations

from functools import lru_cache

import numpy as np
import torch
from torch import Tensor

from convexlift.ambient import guarded


@lru_cache(maxsize=32)
@guarded
def legendre(order: int, dtype: torch.dtype, device: torch.device) -> tuple[Tensor, Tensor]:
    """Nodes and weights, each (order,): exact for polynomials up to degree 2 order - 1.

    >>> nodes, weights = legendre(2, torch.float64, torch.device("cpu"))
    >>> round(float(weights @ nodes**2), 12)  # 2 / 3
    0.666666666667
    """
    nodes, weights = (torch.from_numpy(a).to(device, dtype) for a in np.polynomial.legendre.leggauss(order))
    return nodes, weights


@lru_cache(maxsize=32)
@guarded
def lobatto(order: int, dtype: torch.dtype, device: torch.device) -> tuple[Tensor, Tensor, Tensor]:
    """Nodes with both ends, weights, and the (order, 2) map from values to the last Legendre coefficients.

    Exact for polynomials up to degree 2 order - 3. The inner nodes are the zeros of P', P the Legendre
    polynomial of degree order - 1; the weights are 2 / (order (order - 1) P^2). The last two coefficients of
    the values' Legendre series say how well the rule resolves a function.

    >>> nodes, weights, coefficients = lobatto(3, torch.float64, torch.device("cpu"))
    >>> nodes.tolist(), [round(weight, 12) for weight in weights.tolist()]
    ([-1.0, 0.0, 1.0], [0.333333333333, 1.333333333333, 0.333333333333])
    """
    last = np.polynomial.Legendre.basis(order - 1)
    nodes = np.concatenate([[-1.0], np.sort(last.deriv().roots().real), [1.0]])
    nodes = (nodes - nodes[::-1]) / 2  # rounded to the symmetry that they have
    weights = 2 / (order * (order - 1) * last(nodes) ** 2)
    coefficients = np.linalg.inv(np.polynomial.legendre.legvander(nodes, order - 1))[-2:].T
    first, second, third = (torch.from_numpy(a).to(device, dtype) for a in (nodes, weights, coefficients))
    return first, second, third
