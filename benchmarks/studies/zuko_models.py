"""What stands beside the convex-potential flow on tables: a Gaussian, and zuko's spline and affine flows.

zuko's neural spline flow (Durkan et al. 2019) and masked autoregressive flow (Papamakarios et al. 2017)
become modules that `convexlift.fit` trains exactly as it trains a `ConvexPotentialFlow`.
"""

from __future__ import annotations

import copy
from typing import Any, Self

import torch
from torch import Tensor, nn


class Gaussian(nn.Module):
    """The Gaussian of the training rows' mean and full covariance, its maximum-likelihood fit."""

    def __init__(self, rows: Tensor) -> None:
        super().__init__()
        rows = rows.double()
        covariance = rows.T.cov(correction=0)
        self.law = torch.distributions.MultivariateNormal(rows.mean(0), covariance)
        self.size = rows.shape[1] * (rows.shape[1] + 3) // 2

    def log_prob(self, x: Tensor) -> Tensor:
        """log p(x), (N,), float64."""
        return self.law.log_prob(x.double())


class Autoregressive(nn.Module):
    """A zuko flow with the methods that `fit` asks for. Its rows are standardised by whoever calls it.

    ``kind`` is "nsf" (rational-quadratic splines with 8 bins on [-5, 5], linear outside) or "maf" (affine).
    """

    def __init__(self, kind: str, dim: int, *, transforms: int, hidden: tuple[int, ...], seed: int) -> None:
        super().__init__()
        import zuko

        make = {"nsf": zuko.flows.NSF, "maf": zuko.flows.MAF}[kind]
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            self.flow: Any = make(dim, transforms=transforms, hidden_features=hidden)

    def initialise(self, rows: Tensor) -> None:
        """Nothing of these flows starts from data."""

    def log_prob(self, x: Tensor) -> Tensor:
        """log p(x), (N,)."""
        found: Tensor = self.flow().log_prob(x)
        return found

    def loss(self, batch: Tensor) -> Tensor:
        """The mean of -log p over the batch, in nats."""
        return -self.log_prob(batch).mean()

    def freeze(self, rows: Tensor | None = None) -> Self:
        """A copy in eval mode that asks for no gradient."""
        return copy.deepcopy(self).requires_grad_(False).eval()
