"""Score matching, exact and denoising: no normaliser is needed."""

from __future__ import annotations

import math
from typing import final

import torch
from torch import Tensor

from convexlift.architectures import Potential
from convexlift.objectives.objective import EVALUATION_SEED, Objective, mean
from convexlift.seeds import generator_on


@final
class ScoreMatching(Objective):
    """Half the mean squared distance of the scores, up to a constant of the data: exact, in closed form.

        J = E[ |grad f(t)|^2 / 2 - laplacian f(t) ]

    The data's density must vanish smoothly at the edge of its support: with a jump there, as of a uniform
    density, the minimiser is another density.

    Source: Hyvarinen, "Estimation of non-normalized statistical models by score matching", JMLR 2005.

    Example:
        >>> import convexlift as cl
        >>> f = cl.ICNN(2, hidden=(8,), seed=0).emit()
        >>> ScoreMatching()(f, torch.zeros(3, 2)).shape
        torch.Size([])
    """

    def forward(self, potential: Potential, t: Tensor, weights: Tensor | None = None) -> Tensor:
        score = potential.gradient(t)
        return mean(score.square().sum(1) / 2 - potential.laplacian(t), weights)


@final
class Denoising(Objective):
    """Score matching of the data blurred by Gaussian noise, from gradients alone.

        J = E[ |sigma grad f(t + sigma e) - e|^2 ] / 2,   e ~ N(0, I)

    It fits the density of t + sigma e, which is smooth even where that of t is not, and is wider.

    Args:
        noise: sigma, in standard deviations of the data, positive.

    Raises:
        ValueError: the noise is not positive.

    Source: Vincent, "A connection between score matching and denoising autoencoders", 2011.

    Example:
        >>> import convexlift as cl
        >>> f = cl.ICNN(2, hidden=(8,), seed=0).emit()
        >>> Denoising(0.1).eval()(f, torch.zeros(3, 2)).shape
        torch.Size([])
    """

    def __init__(self, noise: float = 0.1) -> None:
        super().__init__()
        if not (noise > 0 and math.isfinite(noise)):
            raise ValueError(f"the noise must be positive; got {noise}")
        self.noise = noise

    def forward(self, potential: Potential, t: Tensor, weights: Tensor | None = None) -> Tensor:
        e = noise_like(t, self.training)
        residual = self.noise * potential.gradient(t + self.noise * e) - e
        return mean(residual.square().sum(1) / 2, weights)

    def extra_repr(self) -> str:
        return f"noise={self.noise}"


def noise_like(t: Tensor, training: bool) -> Tensor:
    """Standard normal noise in the shape of t: new in training, the same at every call in evaluation."""
    if training:
        generator = generator_on(t.device)
    else:
        generator = generator_on(t.device, EVALUATION_SEED)
    return torch.randn(t.shape, generator=generator, dtype=t.dtype, device=t.device)
