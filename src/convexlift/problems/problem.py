"""What a comparison needs to know of a data set or a simulator."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, cast

import torch
from torch import Tensor, nn

from convexlift.training.batches import Rows, Sampler, whole


@dataclass(frozen=True, eq=False)
class Problem:
    """A learning problem with fixed splits, its metric, and what is known exactly about it.

    `task` is "flow", "density" (one dimension), "regression", or "own" (then `network`, `objective` and
    `losses` are given). `train` is a tensor (N, dim), a tuple of row-aligned tensors, or a `Sampler` of fresh
    rows; `validation` and `test` are fixed. `architecture` holds the keyword arguments of the `ICNN` that
    every arm trains and `blocks` the number of them. Where `log_prob`, the exact log density, is given, the
    loss of a test row is the excess log p(x) - log q(x); its mean estimates the Kullback-Leibler divergence.

    Example:
        >>> from convexlift.problems import problem
        >>> gumbel = problem("gumbel")
        >>> gumbel.dim, gumbel.task, gumbel.metric
        (1, 'density', 'excess negative log-likelihood (nats)')
    """

    name: str
    task: str
    dim: int
    train: Rows | Sampler
    validation: Rows
    test: Rows
    description: str
    source: str
    licence: str
    architecture: Mapping[str, Any] = field(default_factory=dict)
    blocks: int = 1
    log_prob: Callable[[Tensor], Tensor] | None = None
    entropy: float | None = None
    facts: Mapping[str, float] = field(default_factory=dict)
    metrics: Callable[[nn.Module], dict[str, float]] | None = None
    network: Callable[[int], nn.Module] | None = None
    objective: Callable[[list[nn.Module]], nn.Module] | None = None
    losses: Callable[[nn.Module, Rows], Tensor] | None = None

    @property
    def metric(self) -> str:
        """The name of the loss that `score` returns."""
        if self.losses is not None:
            return "loss"
        if self.task == "regression":
            return "noiseless mean squared error"
        return f"{'excess ' if self.log_prob is not None else ''}negative log-likelihood (nats)"

    def score(self, model: nn.Module, data: Rows | None = None) -> Tensor:
        """The loss of a frozen model on every row of `data` (default: the test split), an (N,) tensor; lower
        is better.

        Example:
            >>> import torch
            >>> from convexlift.problems import problem
            >>> class Exact(torch.nn.Module):
            ...     log_prob = staticmethod(problem("logistic").log_prob)
            >>> float(problem("logistic").score(Exact()).abs().max())
            0.0
        """
        rows = self.test if data is None else data
        with torch.no_grad():
            if self.losses is not None:
                return self.losses(model, rows).detach()
            network = cast(Any, model)
            if self.task == "regression":
                x, y = rows
                return (network.predict(x) - y).square()
            x = cast(Tensor, rows)
            loss = -network.log_prob(x)
            return loss if self.log_prob is None else loss + self.log_prob(x)


def gaussian_baseline(problem: Problem) -> float:
    """The mean test loss of the full-covariance Gaussian fitted by maximum likelihood on the training rows.

    Samplers are fitted on 20,000 fixed draws. Raises a ValueError for a problem that is not a density.

    Example:
        >>> from convexlift.problems import gaussian_baseline, problem
        >>> round(gaussian_baseline(problem("logistic")), 2)  # excess over the exact density
        0.01
    """
    rows = whole(problem.train)
    if problem.task not in ("flow", "density") or not isinstance(rows, Tensor):
        raise ValueError(
            f"a Gaussian baseline needs a density problem; '{problem.name}' is a {problem.task} problem"
        )
    x = rows.double()
    mean = x.mean(0)
    centred = x - mean
    factor = torch.linalg.cholesky(centred.T @ centred / len(x))
    test = cast(Tensor, problem.test)
    whitened = torch.linalg.solve_triangular(factor, (test.double() - mean).T, upper=False)
    log_prob = (
        -0.5 * whitened.square().sum(0)
        - factor.diagonal().log().sum()
        - problem.dim / 2 * math.log(2 * math.pi)
    )
    loss = -log_prob
    if problem.log_prob is not None:
        loss = loss + problem.log_prob(test).double()
    return float(loss.mean())
