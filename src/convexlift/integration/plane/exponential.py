"""The density proportional to exp(-slope s) on [-1, 1]: its log mean, moments and draws.

On a cell a linear function leaves one such density along each side.
"""

from __future__ import annotations

import torch
from torch import Tensor


def log_mean(slope: Tensor) -> Tensor:
    """log of the mean of exp(-slope s) over s in [-1, 1]: log(sinh(slope) / slope)."""
    size = slope.abs()
    small = size < 1e-2
    safe = torch.where(small, torch.ones_like(size), size)
    series = size.square() * (1 / 6 - size.square() / 180)
    return torch.where(small, series, safe + (-torch.expm1(-2 * safe) / (2 * safe)).log())


def langevin_function(slope: Tensor) -> Tensor:
    """Minus the mean of s under the density proportional to exp(-slope s) on [-1, 1]: coth - 1 / slope."""
    small = slope.abs() < 1e-2
    safe = torch.where(small, torch.ones_like(slope), slope)
    return torch.where(small, slope / 3 * (1 - slope.square() / 15), 1 / safe.tanh() - 1 / safe)


def central_moments(slope: Tensor) -> tuple[Tensor, Tensor]:
    """Variance and third central moment of s under the density proportional to exp(-slope s) on [-1, 1]."""
    small = slope.abs() < 0.5
    g = torch.where(small, slope, torch.zeros_like(slope))
    q = g.square()
    variance = 1 / 3 - q * (1 / 15 - q * (2 / 189 - q * (1 / 675 - q * 2 / 10395)))
    third = g * (2 / 15 - q * (8 / 189 - q * (2 / 225 - q * 16 / 10395)))
    g = torch.where(small, torch.ones_like(slope), slope)
    size = g.abs()
    inverse_sinh = 2 * (-size).exp() / -torch.expm1(-2 * size)
    closed = 1 / size.square() - inverse_sinh.square()
    closed_third = g.sign() * (2 / size**3 - 2 * inverse_sinh.square() / size.tanh())
    return torch.where(small, variance, closed), torch.where(small, third, closed_third)


def from_exponential(uniform: Tensor, slope: Tensor) -> Tensor:
    """s in [-1, 1] with the density proportional to exp(-slope s), from uniform numbers of the same shape."""
    size = slope.abs()
    straight = size < 1e-6
    safe = torch.where(straight, torch.ones_like(size), size)
    from_high = torch.where(straight, 2 * uniform, -torch.log1p(uniform * torch.expm1(-2 * safe)) / safe)
    return torch.where(slope >= 0, from_high - 1, 1 - from_high).clamp(-1, 1)
