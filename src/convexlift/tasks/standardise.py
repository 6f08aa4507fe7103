"""Affine maps of columns: onto zero mean and unit deviation, onto unit covariance, or learned from there."""

from __future__ import annotations

from typing import final

import torch
from torch import Tensor, nn

from convexlift.ambient import guard_methods
from convexlift.checks import check_finite, check_samples, name_dtype


@guard_methods
@final
class Standardiser(nn.Module):
    """x -> (x - mean) / scale, column by column; the identity until it is fitted.

    `mean` (d,), `scale` (d,) and `fitted` are buffers: a state_dict holds them, no optimiser moves them.

    Args:
        dim: d, the number of columns.
        name: what the rows are called in errors.

    Example:
        >>> standardiser = Standardiser(1).fit(torch.tensor([[1.0], [3.0]]))
        >>> standardiser(torch.tensor([[5.0]])), standardiser.inverse(torch.tensor([[0.0]]))
        (tensor([[3.]]), tensor([[2.]]))
    """

    mean: Tensor
    scale: Tensor
    fitted: Tensor

    def __init__(self, dim: int, *, name: str = "samples") -> None:
        super().__init__()
        self.dim = dim
        self.name = name
        self.register_buffer("mean", torch.zeros(dim))
        self.register_buffer("scale", torch.ones(dim))
        self.register_buffer("fitted", torch.tensor(False))

    @torch.no_grad()
    def fit(self, data: Tensor, weights: Tensor | None = None) -> Standardiser:
        """Set mean and scale to the mean and deviation of `data` (N, d), weighted by `weights` (N,); self.

        Raises ValueError when there are fewer than two rows, an entry is NaN or infinite, a column is
        constant to the precision of the buffers, or a column is too large or too small for their dtype.
        """
        check_finite(check_samples(data, self.dim, name=self.name), name=self.name)
        if len(data) < 2:
            raise ValueError(f"need at least 2 rows to standardise {self.name}; got {len(data)}")
        share = _shares(data, weights)
        dtype = self.mean.dtype
        limits, called = torch.finfo(dtype), name_dtype(dtype)
        x = data.double()
        largest = x.abs().amax(0)
        # Relative to the largest entry nothing overflows on the way, however large the entries are.
        relative = x / largest.clamp_min(torch.finfo(torch.float64).tiny)
        centre = share @ relative
        deviation = (share @ (relative - centre).square()).sqrt()
        scale = largest * deviation
        for column in range(self.dim):
            size, spread = float(largest[column]), float(scale[column])
            if deviation[column] <= 2 * limits.eps:
                value = float(x[0, column])
                raise ValueError(f"column {column} is constant (every value is {value:.6g}): remove it")
            if size > limits.max / 4:
                raise ValueError(f"column {column} is too large for {called} (up to {size:.3g})")
            if spread < limits.tiny:
                raise ValueError(f"column {column} is too small for {called} (deviation {spread:.3g})")
        self.mean.copy_(largest * centre)
        self.scale.copy_(scale)
        self.fitted.fill_(True)
        return self

    def forward(self, x: Tensor) -> Tensor:
        """(x - mean) / scale, (N, d)."""
        return (x - self.mean) / self.scale

    def inverse(self, z: Tensor) -> Tensor:
        """mean + scale z, (N, d)."""
        return self.mean + self.scale * z

    def pull_back(self, gradient: Tensor) -> Tensor:
        """The gradient in x, (N, d), of a function of the standardised point, from its gradient there."""
        return gradient / self.scale

    @property
    def log_scale_jacobian(self) -> Tensor:
        """log of the determinant of the map's Jacobian, -sum_j log scale_j, a scalar."""
        return -self.scale.log().sum()


@guard_methods
class Whitener(nn.Module):
    """x -> L^-1 (x - mean), L L' the covariance of training data; the identity until it is fitted.

    The columns of what comes out are uncorrelated, with zero mean and unit deviation. `mean` (d,), `factor`
    (d, d, the lower triangular L), its inverse and `fitted` are buffers. A base class of other such maps.

    Args:
        dim: d, the number of columns.
        name: what the rows are called in errors.

    Example:
        >>> rows = torch.randn(100, 2) @ torch.tensor([[2.0, 1.0], [0.0, 0.1]])
        >>> white = Whitener(2).fit(rows)
        >>> torch.allclose(white(rows).T.cov(correction=0), torch.eye(2), atol=1e-4)
        True
        >>> torch.allclose(white.inverse(white(rows)), rows, atol=1e-4)
        True
    """

    mean: Tensor
    factor: Tensor
    inverse_factor: Tensor
    fitted: Tensor

    def __init__(self, dim: int, *, name: str = "samples") -> None:
        super().__init__()
        self.dim = dim
        self.name = name
        self.register_buffer("mean", torch.zeros(dim))
        self.register_buffer("factor", torch.eye(dim))
        self.register_buffer("inverse_factor", torch.eye(dim))
        self.register_buffer("fitted", torch.tensor(False))

    @torch.no_grad()
    def fit(self, data: Tensor, weights: Tensor | None = None) -> Whitener:
        """Set mean and factor from `data` (N, d), weighted by `weights` (N,); returns self.

        Raises ValueError as ``Standardiser.fit`` does, and when there are no more rows than columns or a
        column is a combination of the others to the precision of the buffers.
        """
        check_samples(data, self.dim, name=self.name)
        if len(data) <= self.dim:
            raise ValueError(
                f"need at least {self.dim + 1} rows to whiten {self.dim} columns; got {len(data)}"
            )
        columns = Standardiser(self.dim, name=self.name).to(self.mean).fit(data, weights)
        mean, scale = columns.mean.double(), columns.scale.double()
        x = (data.double() - mean) / scale
        share = _shares(data, weights)
        # The rounding of the mean is put right here, so that the covariance is that about the true mean.
        offset = share @ x
        correlation = ((x - offset) * share[:, None]).T @ (x - offset)
        smallest, direction = torch.linalg.eigh(correlation)
        if float(smallest[0]) <= 4 * torch.finfo(self.mean.dtype).eps:
            column = int(direction[:, 0].abs().argmax())
            raise ValueError(f"column {column} is a linear combination of the others: remove it")
        factor = scale[:, None] * torch.linalg.cholesky(correlation)
        self.mean.copy_(mean + scale * offset)
        self.factor.copy_(factor)
        identity = torch.eye(self.dim, dtype=factor.dtype, device=factor.device)
        self.inverse_factor.copy_(torch.linalg.solve_triangular(factor, identity, upper=False))
        self.fitted.fill_(True)
        return self

    def forward(self, x: Tensor) -> Tensor:
        """L^-1 (x - mean), (N, d)."""
        return (x - self.mean) @ self.inverse_factor.T

    def inverse(self, z: Tensor) -> Tensor:
        """mean + L z, (N, d)."""
        return self.mean + z @ self.factor.T

    def pull_back(self, gradient: Tensor) -> Tensor:
        """The gradient in x, (N, d), of a function of the whitened point, from its gradient there."""
        return gradient @ self.inverse_factor

    @property
    def log_scale_jacobian(self) -> Tensor:
        """log of the determinant of the map's Jacobian, -log det L, a scalar."""
        return -self.factor.diagonal().log().sum()


@guard_methods
@final
class ActNorm(nn.Module):
    """z = exp(log_scale) x + shift, column by column, learned from a start with zero mean and unit deviation.

    `initialised` is a persistent buffer: the start is taken from data once, and a state_dict remembers that.

    Source: Kingma and Dhariwal, "Glow", NeurIPS 2018.

    >>> norm = ActNorm(1)
    >>> norm.initialise(torch.tensor([[1.0], [3.0]]))
    >>> norm(torch.tensor([[1.0], [3.0]])).flatten()
    tensor([-1.,  1.], grad_fn=<...>)
    """

    initialised: Tensor

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.log_scale = nn.Parameter(torch.zeros(dim))
        self.shift = nn.Parameter(torch.zeros(dim))
        self.register_buffer("initialised", torch.tensor(False))

    @torch.no_grad()
    def initialise(self, x: Tensor) -> None:
        """Start so that x (N, d) is mapped onto zero mean and unit deviation; a no-op the second time."""
        if self.initialised:
            return
        scale = 1 / x.std(0, correction=0).clamp_min(1e-6)
        self.log_scale.copy_(scale.log())
        self.shift.copy_(-x.mean(0) * scale)
        self.initialised.fill_(True)

    def forward(self, x: Tensor) -> Tensor:
        """z, (N, d)."""
        return torch.addcmul(self.shift, x, self.log_scale.to(x.dtype).exp())

    def inverse(self, z: Tensor) -> Tensor:
        """x, (N, d)."""
        return (z - self.shift) * (-self.log_scale).to(z.dtype).exp()

    @property
    def logdet(self) -> Tensor:
        """log of the Jacobian's determinant, a scalar."""
        return self.log_scale.sum()


def _shares(data: Tensor, weights: Tensor | None) -> Tensor:
    """The weights of the rows, or equal ones, as float64 that sums to one."""
    if weights is None:
        return data.new_full((len(data),), 1 / len(data), dtype=torch.float64)
    return weights.double() / weights.double().sum()
