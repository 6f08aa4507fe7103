"""Affine maps of columns: onto zero mean and unit deviation, onto unit covariance, or learned from there."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Self, final

import torch
from torch import Tensor, nn

from convexlift.ambient import guard_methods
from convexlift.checks import check_finite, check_samples, may_branch, name_dtype, name_rows


class Affine(nn.Module):
    """Base class of the maps from the user's units to units in which every column is of order one.

    Its buffers are float64 and stay so when a model around it is cast. It computes in float64 and casts what
    comes out, to ``dtype`` or to the dtype of what it is given: a large offset costs no digits, and a power
    of two in the units of a column changes no bit of what it is mapped onto.

    Attributes:
        fitted: whether it has been fitted.
        wide: an empty buffer, there if it was fitted on rows of float64, so that points which come back are
            as fine as those rows; None otherwise.
    """

    mean: Tensor
    fitted: Tensor
    wide: Tensor | None

    def __init__(self, dim: int, *, name: str = "samples") -> None:
        super().__init__()
        self.dim = dim
        self.name = name
        self.register_buffer("mean", torch.zeros(dim, dtype=torch.float64))
        self.register_buffer("fitted", torch.tensor(False))
        self.register_buffer("wide", None)

    def _fitted_on(self, data: Tensor) -> Self:
        wide = data.dtype == torch.float64
        self.wide = torch.empty(0, dtype=data.dtype, device=data.device) if wide else None
        self.fitted.fill_(True)
        return self

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Self:
        # Follows the model to its device, not to its dtype.
        return super()._apply(lambda buffer: buffer.to(fn(buffer).device), recurse)

    def _load_from_state_dict(self, state_dict: Any, prefix: str, *rest: Any) -> None:
        wide = state_dict.get(prefix + "wide")
        self.wide = None if wide is None else wide.to(self.mean.device)
        super()._load_from_state_dict(state_dict, prefix, *rest)


@guard_methods
@final
class Standardiser(Affine):
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

    scale: Tensor

    def __init__(self, dim: int, *, name: str = "samples") -> None:
        super().__init__(dim, name=name)
        self.register_buffer("scale", torch.ones(dim, dtype=torch.float64))

    @torch.no_grad()
    def fit(self, data: Tensor, weights: Tensor | None = None) -> Standardiser:
        """Set mean and scale to the mean and deviation of `data` (N, d), weighted by `weights` (N,); self.

        Raises ValueError when there are fewer than two rows, an entry is NaN or infinite, a column is
        constant to the precision of its dtype, or too large or too small for it.
        """
        check_finite(check_samples(data, self.dim, name=self.name), name=self.name)
        if len(data) < 2:
            raise ValueError(f"need at least 2 rows to standardise {self.name}; got {len(data)}")
        share = _shares(data, weights)
        dtype = torch.promote_types(data.dtype, torch.float32)
        limits, called = torch.finfo(dtype), name_dtype(dtype)
        x = data.double()
        largest = x.abs().amax(0)
        # In units of a power of two, which costs no digit, nothing overflows on the way; seen from the first
        # row a large offset costs none either.
        unit = power_of_two(largest)
        first = x[0] / unit
        apart = x / unit - first
        centre = share @ apart
        deviation = (share @ (apart - centre).square()).sqrt()
        scale = unit * deviation
        for column in range(self.dim):
            size, spread = float(largest[column]), float(scale[column])
            if size > limits.max / 4:
                raise ValueError(f"column {column} is too large for {called} (up to {size:.3g})")
            if deviation[column] <= 2 * limits.eps * largest[column] / unit[column]:
                value = float(x[0, column])
                raise ValueError(f"column {column} is constant (every value is {value:z.6g}): remove it")
            if spread < limits.tiny:
                raise ValueError(f"column {column} is too small for {called} (deviation {spread:.3g})")
        self.mean.copy_(unit * (first + centre))
        self.scale.copy_(scale)
        return self._fitted_on(data)

    def forward(self, x: Tensor, dtype: torch.dtype | None = None) -> Tensor:
        """(x - mean) / scale, (N, d)."""
        return ((watched(x).double() - self.mean) / self.scale).to(dtype or x.dtype)

    def inverse(self, z: Tensor, dtype: torch.dtype | None = None) -> Tensor:
        """mean + scale z, (N, d)."""
        return (self.mean + self.scale * z.double()).to(dtype or z.dtype)

    def pull_back(self, gradient: Tensor, dtype: torch.dtype | None = None) -> Tensor:
        """The gradient in x, (N, d), of a function of the standardised point, from its gradient there.

        Raises:
            FloatingPointError: it overflows.
        """
        return checked((gradient.double() / self.scale).to(dtype or gradient.dtype))

    @property
    def log_scale_jacobian(self) -> Tensor:
        """log of the determinant of the map's Jacobian, -sum_j log scale_j, a scalar in float64."""
        return -self.scale.log().sum()


@guard_methods
class Whitener(Affine):
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

    factor: Tensor
    inverse_factor: Tensor

    def __init__(self, dim: int, *, name: str = "samples") -> None:
        super().__init__(dim, name=name)
        self.register_buffer("factor", torch.eye(dim, dtype=torch.float64))
        self.register_buffer("inverse_factor", torch.eye(dim, dtype=torch.float64))

    @torch.no_grad()
    def fit(self, data: Tensor, weights: Tensor | None = None) -> Whitener:
        """Set mean and factor from `data` (N, d), weighted by `weights` (N,); returns self.

        Raises ValueError as ``Standardiser.fit`` does, and when there are no more rows than columns or a
        column is a combination of the others to the precision of the rows.
        """
        columns, offset, correlation = correlated(data, weights, self.dim, self.name)
        factor = columns.scale[:, None] * torch.linalg.cholesky(correlation)
        self.mean.copy_(columns.mean + columns.scale * offset)
        self.factor.copy_(factor)
        identity = torch.eye(self.dim, dtype=factor.dtype, device=factor.device)
        self.inverse_factor.copy_(torch.linalg.solve_triangular(factor, identity, upper=False))
        return self._fitted_on(data)

    def forward(self, x: Tensor, dtype: torch.dtype | None = None) -> Tensor:
        """L^-1 (x - mean), (N, d)."""
        return ((watched(x).double() - self.mean) @ self.inverse_factor.T).to(dtype or x.dtype)

    def inverse(self, z: Tensor, dtype: torch.dtype | None = None) -> Tensor:
        """mean + L z, (N, d)."""
        return (self.mean + z.double() @ self.factor.T).to(dtype or z.dtype)

    def pull_back(self, gradient: Tensor, dtype: torch.dtype | None = None) -> Tensor:
        """The gradient in x, (N, d), of a function of the whitened point, from its gradient there.

        Raises:
            FloatingPointError: it overflows.
        """
        return checked((gradient.double() @ self.inverse_factor).to(dtype or gradient.dtype))

    @property
    def log_scale_jacobian(self) -> Tensor:
        """log of the determinant of the map's Jacobian, -log det L, a scalar in float64."""
        return -self.factor.diagonal().log().sum()


@guard_methods
@final
class Principal(Affine):
    """x -> V' ((x - mean) / scale) / spread, the principal components of training data at unit deviation.

    V spread^2 V' is the correlation of the columns, V orthogonal: what comes out is uncorrelated, as that of
    a ``Whitener`` is, along axes that do not depend on the order of the columns. The identity until it is
    fitted. `mean`, `scale` and `spread` (d,), `axes` (d, d, V) and `fitted` are buffers.

    Args:
        dim: d, the number of columns.
        name: what the rows are called in errors.

    Source: Jolliffe, "Principal component analysis", 2002.

    Example:
        >>> rows = torch.randn(100, 2) @ torch.tensor([[2.0, 1.0], [0.0, 0.1]])
        >>> components = Principal(2).fit(rows)
        >>> torch.allclose(components(rows).T.cov(correction=0), torch.eye(2), atol=1e-4)
        True
        >>> torch.allclose(components.inverse(components(rows)), rows, atol=1e-4)
        True
    """

    scale: Tensor
    axes: Tensor
    spread: Tensor

    def __init__(self, dim: int, *, name: str = "samples") -> None:
        super().__init__(dim, name=name)
        self.register_buffer("scale", torch.ones(dim, dtype=torch.float64))
        self.register_buffer("axes", torch.eye(dim, dtype=torch.float64))
        self.register_buffer("spread", torch.ones(dim, dtype=torch.float64))

    @torch.no_grad()
    def fit(self, data: Tensor, weights: Tensor | None = None) -> Principal:
        """Set mean, scales and axes from `data` (N, d), weighted by `weights` (N,); returns self.

        Raises ValueError as ``Whitener.fit`` does.
        """
        columns, offset, correlation = correlated(data, weights, self.dim, self.name)
        variance, axes = torch.linalg.eigh(correlation)
        # An eigenvector has no sign of its own: the largest entry of each is taken to be positive.
        largest = axes.gather(0, axes.abs().argmax(0, keepdim=True))
        self.mean.copy_(columns.mean + columns.scale * offset)
        self.scale.copy_(columns.scale)
        self.axes.copy_(axes * largest.sign())
        self.spread.copy_(variance.sqrt())
        return self._fitted_on(data)

    def forward(self, x: Tensor, dtype: torch.dtype | None = None) -> Tensor:
        """V' ((x - mean) / scale) / spread, (N, d)."""
        columns = (watched(x).double() - self.mean) / self.scale
        return (columns @ self.axes / self.spread).to(dtype or x.dtype)

    def inverse(self, z: Tensor, dtype: torch.dtype | None = None) -> Tensor:
        """mean + scale (V (spread z)), (N, d)."""
        return (self.mean + self.scale * ((self.spread * z.double()) @ self.axes.T)).to(dtype or z.dtype)

    def pull_back(self, gradient: Tensor, dtype: torch.dtype | None = None) -> Tensor:
        """The gradient in x, (N, d), of a function of the components, from its gradient there.

        Raises:
            FloatingPointError: it overflows.
        """
        columns = (gradient.double() / self.spread) @ self.axes.T
        return checked((columns / self.scale).to(dtype or gradient.dtype))

    @property
    def log_scale_jacobian(self) -> Tensor:
        """log of the determinant of the map's Jacobian, -sum_j log(scale_j spread_j), a scalar in float64.

        Up to the sign of the determinant, which is that of V.
        """
        return -self.scale.log().sum() - self.spread.log().sum()


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


def correlated(
    data: Tensor, weights: Tensor | None, dim: int, name: str
) -> tuple[Standardiser, Tensor, Tensor]:
    """The standardiser of the columns, the mean (d,) of what it makes of them and their correlation (d, d).

    Raises:
        ValueError: what ``Whitener.fit`` says.
    """
    check_samples(data, dim, name=name)
    if len(data) <= dim:
        raise ValueError(f"need at least {dim + 1} rows to whiten {dim} columns; got {len(data)}")
    columns = Standardiser(dim, name=name).to(data.device).fit(data, weights)
    x = columns(data.double())
    share = _shares(data, weights)
    # The rounding of the mean is put right here, so that the covariance is that about the true mean.
    offset = share @ x
    correlation = ((x - offset) * share[:, None]).T @ (x - offset)
    smallest, direction = torch.linalg.eigh(correlation)
    if float(smallest[0]) <= 4 * torch.finfo(torch.promote_types(data.dtype, torch.float32)).eps:
        column = int(direction[:, 0].abs().argmax())
        raise ValueError(f"column {column} is a linear combination of the others: remove it")
    return columns, offset, correlation


def _shares(data: Tensor, weights: Tensor | None) -> Tensor:
    """The weights of the rows, or equal ones, as float64 that sums to one."""
    if weights is None:
        return data.new_full((len(data),), 1 / len(data), dtype=torch.float64)
    return weights.double() / weights.double().sum()


def power_of_two(size: Tensor) -> Tensor:
    """The power of two next above each size, 1 for 0."""
    fraction, _ = torch.frexp(size)
    return torch.where(size > 0, size / fraction, 1.0)


def watched(x: Tensor) -> Tensor:
    """x, whose gradient is refused where it overflows: by the chain rule it is divided by a scale."""
    if not (torch.is_grad_enabled() and x.requires_grad and may_branch(x)):
        return x
    x = x.view_as(x)
    x.register_hook(lambda gradient: gradient if gradient is None else checked(gradient))
    return x


def checked(gradient: Tensor) -> Tensor:
    """A gradient in the user's units (N, ...), if none of it overflows.

    >>> checked(torch.tensor([[1.0], [torch.inf]]))
    Traceback (most recent call last):
    ...
    FloatingPointError: the gradient overflows float32 at 1 of 2 rows (1): take larger units or float64 rows
    """
    if may_branch(gradient) and bool((over := gradient.isinf()).any()):
        raise FloatingPointError(
            f"the gradient overflows {name_dtype(gradient.dtype)} at {name_rows(over.flatten(1).any(1))}: "
            "take larger units or float64 rows"
        )
    return gradient
