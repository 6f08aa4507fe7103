"""Convex regression with a known truth in 50 dimensions.

The networks have no strong convexity and no quadratic term, so that the answer is not built in. The test loss
is the squared distance to the noiseless truth.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from convexlift.problems.base import Problem

# Of the draws, whatever torch's defaults are.
_PLAIN: dict[str, Any] = {"dtype": torch.float32, "device": "cpu"}
DIM = 50
TRAINING_ROWS, VALIDATION_ROWS, TEST_ROWS = 5_000, 1_000, 5_000
NOISE = 1.0
ARCHITECTURE = {"hidden": (64, 64, 64, 64), "strong_convexity": 0.0, "learn_strong_convexity": False}


def square(x: Tensor) -> Tensor:
    """|x|^2, (N, d) to (N,).

    Example:
        >>> square(torch.ones(1, 50)).item()
        50.0
    """
    return x.square().sum(-1)


def log_sum_exp(x: Tensor) -> Tensor:
    """log sum_k exp(<a_k, x> + b_k) over 50 fixed affine functions with standard normal a_k and b_k, (N, 50)
    to (N,)."""
    draws = torch.Generator().manual_seed(50)
    slopes = torch.randn(50, DIM, generator=draws, dtype=torch.float64, device="cpu")
    offsets = torch.randn(50, generator=draws, dtype=torch.float64, device="cpu")
    return torch.logsumexp(x.double() @ slopes.to(x.device).T + offsets.to(x.device), dim=-1).to(x.dtype)


def regression_problem(name: str) -> Problem:
    """`regression-square` or `regression-logsumexp`: x uniform on [-1, 1]^50, y = f(x) + standard normal
    noise.

    5,000 training and 1,000 validation rows are noisy, 5,000 test rows noiseless.

    Example:
        >>> square = regression_problem("regression-square")
        >>> [tuple(part.shape) for part in square.train]
        [(5000, 50), (5000,)]
    """
    truth: Callable[[Tensor], Tensor] = {"regression-square": square, "regression-logsumexp": log_sum_exp}[
        name
    ]
    formula = "|x|^2" if truth is square else "the log-sum-exp of 50 random affine functions"

    def split(rows: int, seed: int, noise: float) -> tuple[Tensor, Tensor]:
        draws = torch.Generator().manual_seed(seed)
        x = 2 * torch.rand(rows, DIM, generator=draws, **_PLAIN) - 1
        y = truth(x)
        return x, y + noise * torch.randn(rows, generator=draws, **_PLAIN)

    train, test = split(TRAINING_ROWS, 201, NOISE), split(TEST_ROWS, 203, 0.0)
    ones = [torch.cat([x, torch.ones(len(x), 1, **_PLAIN)], dim=1).double() for x, _ in (train, test)]
    affine = torch.linalg.lstsq(ones[0], train[1].double().unsqueeze(1)).solution
    return Problem(
        name=name,
        task="regression",
        dim=DIM,
        train=train,
        validation=split(VALIDATION_ROWS, 202, NOISE),
        test=test,
        description=f"regression of {formula} on [-1, 1]^50, 5,000 points, noise 1; no quadratic in the nets",
        source="simulated",
        licence="none needed (simulated)",
        architecture=ARCHITECTURE,
        facts={
            "constant": float((test[1] - train[1].mean()).square().mean()),
            "least squares, affine": float(((ones[1] @ affine).squeeze(1) - test[1]).square().mean()),
        },
    )
