"""Linear maps of two samples onto one scale: by the transport map between their normal laws, or by sizes."""

from __future__ import annotations

from typing import NamedTuple, final

import torch
from torch import Tensor

from convexlift.ambient import guard_methods
from convexlift.tasks.standardise import Affine, correlated, power_of_two, watched


@guard_methods
@final
class Linear(Affine):
    """x -> M (x - mean) with M symmetric and positive definite; the identity until it is set.

    `mean` (d,), `matrix` (d, d, M), its inverse and `fitted` are buffers.

    Args:
        dim: d, the number of columns.
        name: what the rows are called in errors.

    Example:
        >>> linear = Linear(1).set(torch.ones(2, 1), torch.ones(1), torch.tensor([[2.0]]))
        >>> linear(torch.tensor([[3.0]])), linear.inverse(torch.tensor([[4.0]]))
        (tensor([[4.]]), tensor([[3.]]))
    """

    matrix: Tensor
    inverse_matrix: Tensor

    def __init__(self, dim: int, *, name: str = "samples") -> None:
        super().__init__(dim, name=name)
        self.register_buffer("matrix", torch.eye(dim, dtype=torch.float64))
        self.register_buffer("inverse_matrix", torch.eye(dim, dtype=torch.float64))

    @torch.no_grad()
    def set(self, data: Tensor, mean: Tensor, matrix: Tensor, inverse: Tensor | None = None) -> Linear:
        """Set mean (d,) and M (d, d), which were found from ``data``; returns self."""
        self.mean.copy_(mean)
        self.matrix.copy_(matrix)
        self.inverse_matrix.copy_(torch.linalg.inv(matrix) if inverse is None else inverse)
        return self._fitted_on(data)

    def forward(self, x: Tensor, dtype: torch.dtype | None = None) -> Tensor:
        """M (x - mean), (N, d)."""
        return ((watched(x).double() - self.mean) @ self.matrix).to(dtype or x.dtype)

    def inverse(self, z: Tensor, dtype: torch.dtype | None = None) -> Tensor:
        """mean + M^-1 z, (N, d)."""
        return (self.mean + z.double() @ self.inverse_matrix).to(dtype or z.dtype)


class Sides(NamedTuple):
    """Of the source and of the target: mean (d,), M (d, d) and its inverse."""

    source: tuple[Tensor, Tensor, Tensor]
    target: tuple[Tensor, Tensor, Tensor]


def onto_one_scale(xs: Tensor, xt: Tensor, names: tuple[str, str], gaussian: bool) -> Sides:
    """The maps z = M_s (x - m_s), w = M_t (y - m_t) with M_t^-1 = k M_s, for which both have mean variance 1.

    With M_s = L / c, M_t = L^-1 / c and L^2 = A, the matrix of the transport map between the normal laws of
    these means and covariances (A S_s A = S_t), z and w have one covariance. Without ``gaussian`` L is a
    multiple of the identity. Either way grad f(z) + ... pulled back is the gradient of a convex function:

        T(x) = m_t + M_t^-1 grad f(M_s (x - m_s)) = grad [k f(M_s (x - m_s)) + <m_t, x>].

    Powers of two in the units of either sample change no bit of z and w.

    Raises:
        ValueError: too few rows, a constant column, or columns of which one is a combination of the others.

    Source: Dowson and Landau, "The Frechet distance between multivariate normal distributions", 1982.

    >>> x = torch.tensor([[0.0], [2.0]])
    >>> sides = onto_one_scale(x, 3 * x + 5, ("source samples", "target samples"), True)
    >>> sides.target[2] @ sides.source[1], sides.target[0]
    (tensor([[3.]], dtype=torch.float64), tensor([8.], dtype=torch.float64))
    """
    mean_s, cov_s, unit_s = _moments(xs, names[0])
    mean_t, cov_t, unit_t = _moments(xt, names[1])
    eye = torch.eye(len(mean_s), dtype=torch.float64, device=mean_s.device)
    if gaussian:
        root = _root(_brenier(cov_s, cov_t))
        inverse = torch.linalg.inv(root)
        size = (root @ cov_s @ root).diagonal().mean().sqrt()
    else:
        size_s, size_t = cov_s.diagonal().mean().sqrt(), cov_t.diagonal().mean().sqrt()
        root = eye * (size_t / size_s).sqrt()
        inverse, size = eye * (size_s / size_t).sqrt(), (size_s * size_t).sqrt()
    return Sides(
        (mean_s, root / (size * unit_s), inverse * (size * unit_s)),
        (mean_t, inverse / (size * unit_t), root * (size * unit_t)),
    )


def _moments(rows: Tensor, name: str) -> tuple[Tensor, Tensor, Tensor]:
    """Mean, covariance in units of a power of two near the deviation, and that unit."""
    if len(rows) <= rows.shape[1]:
        raise ValueError(f"{rows.shape[1]} columns need at least {rows.shape[1] + 1} {name}; got {len(rows)}")
    try:
        columns, offset, correlation = correlated(rows, None, rows.shape[1], name)
    except ValueError as error:
        said = str(error)
        raise ValueError(f"{name}: {said}" if said.startswith("column") else said) from None
    unit = power_of_two(columns.scale.max())
    scale = columns.scale / unit
    return columns.mean + columns.scale * offset, scale[:, None] * correlation * scale, unit


def _brenier(source: Tensor, target: Tensor) -> Tensor:
    """The symmetric positive definite A with A source A = target."""
    factor = torch.linalg.cholesky(source)
    middle = _root(factor.T @ target @ factor)
    left = torch.linalg.solve_triangular(factor.T, middle, upper=True)
    return torch.linalg.solve_triangular(factor.T, left.T, upper=True)


def _root(matrix: Tensor) -> Tensor:
    """The symmetric positive definite square root."""
    values, vectors = torch.linalg.eigh((matrix + matrix.T) / 2)
    tiny = torch.finfo(values.dtype).eps * values.max()
    return (vectors * values.clamp_min(tiny).sqrt()) @ vectors.T
