"""Two densities that need no training: a full-covariance Gaussian and a kernel estimate."""

from __future__ import annotations

import math
from typing import cast

import torch
from torch import Tensor

from convexlift.data import whole
from convexlift.problems.base import Problem

_KERNELS = 5_000  # training rows at most that carry a kernel
_CHOOSING = 500  # validation rows at most by which the bandwidth is chosen
_BANDWIDTHS = tuple(2.0 ** (k / 2) for k in range(-6, 5))  # in units of Scott's rule


def gaussian_baseline(problem: Problem) -> float:
    """The mean test loss of the full-covariance Gaussian fitted by maximum likelihood on the training rows.

    Simulators are fitted on 20,000 fixed draws. Raises a ValueError for a problem that is not a density.

    Example:
        >>> from convexlift.problems import gaussian_baseline, problem
        >>> round(gaussian_baseline(problem("logistic")), 2)  # excess over the exact density
        0.01
    """
    _, factor, (test,) = _whitened(problem, "Gaussian", problem.test)
    log_prob = -0.5 * test.square().sum(1) - _constant(factor)
    return _mean_loss(problem, log_prob)


def kernel_baseline(problem: Problem) -> tuple[float, float]:
    """The mean test loss of a kernel density estimate, and its bandwidth in units of Scott's rule.

        p(x) = (1/n) sum_i N(x; x_i, h^2 S),   S the covariance of the n training rows

    h is chosen on at most 500 validation rows, of eleven between 1/8 and 4 times Scott's n^(-1 / (d + 4)); at
    most 5,000 evenly spaced training rows carry a kernel. Raises a ValueError for a problem that is not a
    density.

    Source: Scott, "Multivariate density estimation", 1992 (the rule).

    Example:
        >>> from convexlift.problems import kernel_baseline, problem
        >>> loss, bandwidth = kernel_baseline(problem("logistic"))
        >>> loss < 0.02
        True
    """
    rows, factor, (validation, test) = _whitened(problem, "kernel", problem.validation, problem.test)
    centres = rows[:: -(-len(rows) // _KERNELS)]
    scott = len(centres) ** (-1 / (problem.dim + 4))

    def log_prob(x: Tensor, bandwidths: tuple[float, ...]) -> Tensor:
        """The log-density of each row for each bandwidth, (N, B)."""
        parts = []
        for chunk in x.split(256):
            distance = torch.cdist(chunk, centres).square()
            parts.append(torch.stack([torch.logsumexp(distance / (-2 * h * h), 1) for h in bandwidths], 1))
        volume = problem.dim * torch.tensor(bandwidths, dtype=x.dtype, device=x.device).log()
        return torch.cat(parts) - volume - math.log(len(centres)) - _constant(factor)

    choices = tuple(share * scott for share in _BANDWIDTHS)
    few = validation[:: -(-len(validation) // _CHOOSING)]
    best = int(log_prob(few, choices).mean(0).argmax())
    return _mean_loss(problem, log_prob(test, choices[best : best + 1])[:, 0]), _BANDWIDTHS[best]


def _whitened(problem: Problem, name: str, *splits: object) -> tuple[Tensor, Tensor, list[Tensor]]:
    """Training rows and splits in the coordinates in which the former have unit covariance L L', and L."""
    rows = whole(problem.train)
    if not problem.kind.of_density or not isinstance(rows, Tensor):
        raise ValueError(
            f"a {name} baseline needs a density problem; '{problem.name}' is a {problem.task} problem"
        )
    x = rows.double()
    mean = x.mean(0)
    factor = torch.linalg.cholesky((x - mean).T @ (x - mean) / len(x))

    def whiten(points: Tensor) -> Tensor:
        return torch.linalg.solve_triangular(factor, (points.double() - mean).T, upper=False).T

    return whiten(x), factor, [whiten(cast(Tensor, split)) for split in splits]


def _constant(factor: Tensor) -> Tensor:
    return factor.diagonal().log().sum() + len(factor) / 2 * math.log(2 * math.pi)


def _mean_loss(problem: Problem, log_prob: Tensor) -> float:
    loss = -log_prob
    if problem.log_prob is not None:
        loss = loss + problem.log_prob(cast(Tensor, problem.test)).double()
    return float(loss.mean())
