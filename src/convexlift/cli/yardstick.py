"""What the simplest models do on the same rows: a Gaussian beside a density, a plane beside a regression."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch import Tensor

# Draws of a density among which the place of a row is sought.
_DRAWS = 10_000


def gaussian_losses(train: Tensor, rows: Tensor) -> Tensor | None:
    """-log N(x; m, S) of each row, (N,), m and S the mean and covariance of the training rows.

    None where S is singular, as it is for fewer rows than columns.
    """
    import torch

    train, rows = train.double().cpu(), rows.double().cpu()
    if len(train) <= train.shape[1]:
        return None
    scale = train.std(0)
    if not bool((scale > 0).all()):
        return None
    factor, failed = torch.linalg.cholesky_ex(torch.corrcoef((train / scale).T).reshape(len(scale), -1))
    if int(failed) or float(factor.diagonal().min()) < 1e-6:
        return None
    z = torch.linalg.solve_triangular(factor, ((rows - train.mean(0)) / scale).T, upper=False)
    volume = factor.diagonal().log().sum() + scale.log().sum() + len(scale) / 2 * math.log(2 * math.pi)
    return 0.5 * z.square().sum(0) + volume


def polynomial_predictions(degree: int, x: Tensor, y: Tensor, rows: Tensor) -> Tensor | None:
    """The least-squares polynomial of degree 1 or 2 through points x (N, d) and values y (N,), at rows, (M,).

    None where there are fewer than two values for each of its coefficients; a plane there is always.
    """
    import torch

    x, y, rows = x.double().cpu(), y.double().cpu(), rows.double().cpu()
    mean, scale = x.mean(0), x.std(0, correction=0)
    scale = torch.where(scale > 0, scale, 1.0)

    def terms(points: Tensor) -> Tensor:
        z = (points - mean) / scale
        first, second = torch.triu_indices(z.shape[1], z.shape[1])
        products = z[:, first] * z[:, second] if degree == 2 else z[:, :0]
        return torch.cat([torch.ones_like(z[:, :1]), z, products], 1)

    if degree > 1 and len(x) < (x.shape[1] + 1) * (x.shape[1] + 2):
        return None
    return terms(rows) @ torch.linalg.lstsq(terms(x), y[:, None], driver="gelsd").solution[:, 0]


def interval(differences: Tensor) -> tuple[float, float, float] | None:
    """Mean and 95 % t-interval of differences of rows, (N,); None for fewer than two.

    >>> import torch
    >>> [round(bound, 2) for bound in interval(torch.tensor([1.0, 2.0, 3.0]))]
    [2.0, -0.48, 4.48]
    """
    from convexlift.study.statistics import paired_difference

    if len(differences) < 2:
        return None
    found = paired_difference(differences.tolist(), [0.0] * len(differences))
    return None if found["ci95"] is None else (found["mean"], *found["ci95"])


def compared(nats: float, low: float, high: float) -> str:
    """What it means that a density's loss less a Gaussian's is that, with that 95 % interval.

    >>> compared(-0.5, -0.7, -0.3)
    'better than a Gaussian fitted to the training rows by 0.500 nats (95 % interval 0.300 to 0.700)'
    >>> compared(0.1, -0.2, 0.4)
    'not clearly better or worse ...: 0.100 nats worse (95 % interval 0.200 better to 0.400 worse)'
    """
    yard = "than a Gaussian fitted to the training rows"
    if low > 0:
        return f"worse {yard} by {nats:.3f} nats (95 % interval {low:.3f} to {high:.3f})"
    if high < 0:
        return f"better {yard} by {-nats:.3f} nats (95 % interval {-high:.3f} to {-low:.3f})"
    by = f"{abs(nats):.3f} nats {'worse' if nats > 0 else 'better'}"
    return f"not clearly better or worse {yard}: {by} (95 % interval {-low:.3f} better to {high:.3f} worse)"


def beside_gaussian(losses: Tensor, train: Tensor, rows: Tensor) -> dict[str, float] | None:
    """Losses of rows less those of the Gaussian of training rows, if it has any: mean, 95 % interval."""
    usual = gaussian_losses(train, rows)
    found = None if usual is None else interval(losses.double().cpu() - usual)
    return found and dict(zip(("nats", "low", "high"), found, strict=True))


def share_below(model: Any, log_densities: Tensor) -> Tensor:
    """The share of a density's own draws whose log-density is lower than each of these, (N,).

    A region of probability q holds a row where it is at least 1 - q. Not a number where no draws are had.
    """
    import torch

    from convexlift.tasks.task import map_rows

    try:
        drawn = map_rows(model.log_prob, model.sample(_DRAWS, seed=0)).double().sort().values
    except RuntimeError:  # chains that have not mixed
        return torch.full_like(log_densities, torch.nan)
    return torch.searchsorted(drawn, log_densities.contiguous()).double() / len(drawn)
