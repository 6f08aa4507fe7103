"""Noise-contrastive estimation: telling the data from draws of a fitted Gaussian."""

from __future__ import annotations

from typing import final

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from convexlift.architectures import Potential
from convexlift.integration.gaussian import Gaussian, fitted
from convexlift.objectives.objective import Objective, mean, share
from convexlift.objectives.score import noise_like


@final
class NoiseContrastive(Objective):
    """The log-loss of telling rows from as many draws of a Gaussian q fitted to them.

        J = -E_t[ log s(g(t)) ] - E_q[ log s(-g(y)) ],   g = -f - c - log q,  s the logistic function

    c is learned beside f and tends to log Z. The fewer draws of q look like rows, the less is learned from
    them, so this objective fades as the dimension grows.

    Args:
        dim: d.

    Source: Gutmann and Hyvarinen, "Noise-contrastive estimation of unnormalized statistical models", JMLR
    2012.

    Example:
        >>> import convexlift as cl
        >>> f, t = cl.ICNN(2, hidden=(8,), seed=0).emit(), torch.randn(100, 2)
        >>> objective = NoiseContrastive(2)
        >>> objective.initialise(f, t)
        >>> objective(f, t).shape
        torch.Size([])
    """

    mean: Tensor
    factor: Tensor

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.log_z = nn.Parameter(torch.zeros(()))
        self.register_buffer("mean", torch.zeros(dim))
        self.register_buffer("factor", torch.eye(dim))

    @torch.no_grad()
    def initialise(self, potential: Potential, t: Tensor) -> None:
        noise = fitted(t)
        self.mean.copy_(noise.mean)
        self.factor.copy_(noise.factor)
        self.log_z.copy_(-(potential.value(t) + Gaussian(self.mean, self.factor).log_prob(t)).mean())

    def forward(self, potential: Potential, t: Tensor, weights: Tensor | None = None) -> Tensor:
        noise = Gaussian(self.mean, self.factor)
        draws = self.mean + noise_like(t, self.training) @ self.factor.T

        def odds(x: Tensor) -> Tensor:
            return -potential.value(x) - self.log_z - noise.log_prob(x)

        return mean(F.softplus(-odds(t)), weights) + share(weights) * F.softplus(odds(draws)).mean()
