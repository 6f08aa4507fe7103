"""The affine map onto zero mean and unit deviation, fitted on training data."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from convexlift.checks import check_finite, check_samples


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
    def fit(self, data: Tensor) -> Standardiser:
        """Set mean and scale to the mean and deviation of `data` (N, d); returns self.

        Raises ValueError when there are fewer than two rows, an entry is NaN or infinite, a column is
        constant to the precision of the buffers, or a column is too large or too small for their dtype.
        """
        check_finite(check_samples(data, self.dim, name=self.name), name=self.name)
        if len(data) < 2:
            raise ValueError(f"need at least 2 rows to standardise {self.name}; got {len(data)}")
        dtype = self.mean.dtype
        limits, called = torch.finfo(dtype), str(dtype).removeprefix("torch.")
        x = data.double()
        largest = x.abs().amax(0)
        # Relative to the largest entry nothing overflows on the way, however large the entries are.
        relative = x / largest.clamp_min(torch.finfo(torch.float64).tiny)
        deviation = relative.std(0, correction=0)
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
        self.mean.copy_(largest * relative.mean(0))
        self.scale.copy_(scale)
        self.fitted.fill_(True)
        return self

    def forward(self, x: Tensor) -> Tensor:
        """(x - mean) / scale, (N, d)."""
        return (x - self.mean) / self.scale

    def inverse(self, z: Tensor) -> Tensor:
        """mean + scale z, (N, d)."""
        return self.mean + self.scale * z

    @property
    def log_scale_jacobian(self) -> Tensor:
        """log of the determinant of the map's Jacobian, -sum_j log scale_j, a scalar."""
        return -self.scale.log().sum()
