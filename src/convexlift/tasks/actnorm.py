"""Activation normalisation: an affine map between the potentials of a flow, column by column."""

from __future__ import annotations

from typing import final

import torch
from torch import Tensor, nn


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
