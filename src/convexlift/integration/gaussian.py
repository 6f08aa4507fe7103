"""Gaussians that stand in for exp(-f): where chains start and annealing begins."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import final

import torch
from torch import Tensor

from convexlift.ambient import guard_methods, guarded
from convexlift.checks import check_finite, check_samples


@guard_methods
@final
@dataclass(frozen=True, eq=False)
class Gaussian:
    """The normal distribution N(mean, L L') with a lower-triangular factor L.

    Attributes:
        mean: (d,).
        factor: L, (d, d), lower-triangular with a positive diagonal, of the mean's dtype.

    Raises:
        ValueError: the shapes do not fit, an entry is not finite, or the diagonal is not positive.

    Example:
        >>> standard = Gaussian(torch.zeros(2), torch.eye(2))
        >>> standard.log_prob(torch.zeros(1, 2))
        tensor([-1.8379])
        >>> standard.sample(3, torch.Generator().manual_seed(0)).shape
        torch.Size([3, 2])
    """

    mean: Tensor
    factor: Tensor

    def __post_init__(self) -> None:
        if self.mean.ndim != 1 or self.factor.shape != (len(self.mean), len(self.mean)):
            raise ValueError(
                f"expected mean (d,) and factor (d, d); got {tuple(self.mean.shape)} "
                f"and {tuple(self.factor.shape)}"
            )
        check_finite(self.mean, name="entries of the mean")
        check_finite(self.factor, name="entries of the factor")
        if bool((self.factor.diagonal() <= 0).any()) or bool(self.factor.triu(1).any()):
            raise ValueError("the factor must be lower-triangular with a positive diagonal")

    @property
    def dim(self) -> int:
        """d, the dimension."""
        return len(self.mean)

    @property
    def covariance(self) -> Tensor:
        """L L', (d, d)."""
        return self.factor @ self.factor.T

    def log_prob(self, x: Tensor) -> Tensor:
        """The log-density at x (N, d): shape (N,)."""
        whitened = self.whiten(x)
        constant = self.dim * math.log(2 * math.pi) / 2 + self.factor.diagonal().log().sum()
        return -whitened.square().sum(1) / 2 - constant

    def whiten(self, x: Tensor) -> Tensor:
        """L^-1 (x - mean), (N, d): standard normal when x is drawn from this Gaussian."""
        check_samples(x, self.dim, self.mean.dtype)
        return torch.linalg.solve_triangular(self.factor, (x - self.mean).T, upper=False).T

    def sample(self, n: int, generator: torch.Generator | None = None) -> Tensor:
        """n independent draws, (n, d)."""
        noise = torch.randn(n, self.dim, generator=generator, dtype=self.mean.dtype, device=self.mean.device)
        return self.mean + noise @ self.factor.T


@guarded
def laplace(mode: Tensor, hessian: Tensor) -> Gaussian:
    """The Laplace approximation of exp(-f) in float64: N(mode, H^-1), H the Hessian of f at its mode.

    It only knows the curvature at one point. A kink there makes it far too narrow, a flat spot far too wide:
    pass it through ``convexlift.integration.langevin.adapted`` before relying on it.

    Args:
        mode: (d,).
        hessian: (d, d).

    Raises:
        ValueError: the Hessian is not positive definite.

    Example:
        >>> laplace(torch.tensor([1.0]), torch.tensor([[4.0]])).factor
        tensor([[0.5000]], dtype=torch.float64)
    """
    h = hessian.double()
    h = check_finite((h + h.T) / 2, name="entries of the Hessian")
    values, vectors = torch.linalg.eigh(h)
    if float(values[0]) <= len(values) * torch.finfo(h.dtype).eps * float(values[-1]):
        raise ValueError(
            "the Laplace approximation needs a positive definite Hessian at the mode; "
            f"its eigenvalues go from {float(values[0]):.3g} to {float(values[-1]):.3g}"
        )
    return Gaussian(mode.double(), torch.linalg.cholesky(vectors / values @ vectors.T))


@guarded
def refitted(reference: Gaussian, x: Tensor, weights: Tensor | None = None, *, count: float) -> Gaussian:
    """The Gaussian of draws, as ``fitted``, steadied for draws worth only ``count`` independent ones.

    In coordinates that the reference whitens, correlations are shrunk by the factor count / (count + d). When
    the reference is right there are none, so refitting in turns settles however stretched the draws are.

    Args:
        reference: an earlier estimate, (d,).
        x: (N, d).
        weights: (N,), non-negative; equal when omitted.
        count: how many independent draws they are worth.

    Raises:
        ValueError: as ``fitted``.

    Example:
        >>> reference = Gaussian(torch.zeros(2).double(), torch.eye(2).double())
        >>> x = torch.tensor([[0.0, 0.0], [1.0, 1.0], [2.0, 2.5]]).double()
        >>> refitted(reference, x, count=2).covariance
        tensor([[1.0000, 0.6250],
                [0.6250, 1.5833]], dtype=torch.float64)
    """
    found = fitted(reference.whiten(x), weights)
    kept = count / (count + found.dim)
    covariance = kept * found.covariance + (1 - kept) * found.covariance.diagonal().diag()
    factor = torch.linalg.cholesky(covariance)
    return Gaussian(reference.mean + reference.factor @ found.mean, reference.factor @ factor)


@guarded
def fitted(x: Tensor, weights: Tensor | None = None) -> Gaussian:
    """The Gaussian with the mean and covariance of draws, in float64.

        mean = sum_i w_i x_i,    covariance = sum_i w_i (x_i - mean)(x_i - mean)' / (1 - sum_i w_i^2)

    with weights scaled to sum to one; equal weights give the usual divisor n - 1.

    Args:
        x: (N, d).
        weights: (N,), non-negative; equal when omitted.

    Raises:
        ValueError: an entry is not finite, a weight is negative, or the draws do not span d dimensions.

    Example:
        >>> x = torch.tensor([[0.0], [2.0], [100.0]])
        >>> fitted(x, weights=torch.tensor([1.0, 1.0, 0.0])).mean
        tensor([1.], dtype=torch.float64)
    """
    n, dim = x.shape
    x = check_finite(x.double(), name="draws")
    w = x.new_ones(n) if weights is None else check_finite(weights.double(), name="weights")
    if w.shape != (n,) or bool((w < 0).any()) or not float(w.sum()) > 0:
        raise ValueError(f"expected ({n},) non-negative weights, not all zero; got {tuple(w.shape)}")
    w = w / w.sum()
    mean = w @ x
    centred = x - mean
    spare = float(1 - w.square().sum())
    factor, failed = torch.linalg.cholesky_ex((centred * w[:, None]).T @ centred / max(spare, 1e-300))
    if spare <= 1e-12 or int(failed) or not bool(factor.isfinite().all()):
        raise ValueError(f"the draws do not span {dim} dimensions; {int((w > 0).sum())} have weight")
    return Gaussian(mean, factor)
