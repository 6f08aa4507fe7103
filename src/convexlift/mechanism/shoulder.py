"""Where the constrained weights stand on psi: the shoulder, on which gradients vanish, and their sizes."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, final

import torch
from torch import Tensor, nn

from convexlift.ambient import guarded
from convexlift.mechanism.observing import emissions
from convexlift.sources import WeightSource
from convexlift.sources.positivity import PositiveMap
from convexlift.tasks.task import evaluating

SHOULDER_SLOPE = 0.05
"""A latent is on the shoulder of psi where psi' is at most this."""

HISTOGRAM_EDGES = tuple(-6 + k / 4 for k in range(33))
"""Edges of the bins of ``weight_histogram``, in log10(fan_in W)."""


@final
@dataclass(frozen=True)
class Shoulder:
    """Where the constrained weights of a model stand.

    Attributes:
        share: share of latents with psi' <= 0.05 (0 for projection, whose slope is one).
        at_zero: share of weights at exactly zero.
        fan_in_weight: median of fan_in * W, which does not depend on the width as the bare weight does.
        relative_speed: median of psi'(v) / psi(v), a weight's relative change for a unit step of its latent.
    """

    share: float
    at_zero: float
    fan_in_weight: float
    relative_speed: float


@guarded
@torch.no_grad()
def shoulder(model: nn.Module, batch: Any = None) -> Shoulder:
    """Where the constrained weights stand on psi; see ``Shoulder``.

    Args:
        model: a weight source, or a task that holds some.
        batch: what a lift emits from; needed unless it has settled.

    Raises:
        ValueError: the model holds no weight source.

    Example:
        >>> import convexlift as cl
        >>> net = cl.ICNN(2, hidden=(64, 64), init="fan_in", seed=0)
        >>> shoulder(cl.Softplus(net)).share > 0.9, shoulder(cl.Softplus(net, fan_in=True)).share < 0.1
        (True, True)
    """
    slopes, scaled, weights = [], [], []
    with evaluating(model):
        for source, emitted in emissions(model, batch):
            for name, weight in emitted.items():
                slope, relative = speed(source, name, weight)
                slopes.append(slope.flatten())
                scaled.append(torch.stack([(weight * weight.shape[-1]).flatten(), relative.flatten()]))
                weights.append(weight.flatten())
    if not weights:
        raise ValueError("shoulder needs a model with a weight source")
    fan_in_weight, relative_speed = torch.cat(scaled, 1).median(1).values.tolist()
    return Shoulder(
        share=float((torch.cat(slopes) <= SHOULDER_SLOPE).double().mean()),
        at_zero=float((torch.cat(weights) == 0).double().mean()),
        fan_in_weight=fan_in_weight,
        relative_speed=relative_speed,
    )


@guarded
@torch.no_grad()
def weight_histogram(model: nn.Module, batch: Any = None) -> list[float]:
    """Shares of the constrained weights by size: in bins of log10(fan_in W) between ``HISTOGRAM_EDGES``.

    Weights beyond the ends are in the first and the last bin; zeros are in the first.

    Args:
        model: a weight source, or a task that holds some.
        batch: what a lift emits from; needed unless it has settled.

    Raises:
        ValueError: the model holds no weight source.

    Example:
        >>> import convexlift as cl
        >>> shares = weight_histogram(cl.Softplus(cl.ICNN(2, hidden=(8, 8), seed=0)))
        >>> len(shares), round(sum(shares), 6)
        (32, 1.0)
    """
    with evaluating(model):
        sizes = [
            (weight * weight.shape[-1]).flatten().double()
            for _, emitted in emissions(model, batch)
            for weight in emitted.values()
        ]
    if not sizes:
        raise ValueError("weight_histogram needs a model with a weight source")
    low, high, bins = HISTOGRAM_EDGES[0], HISTOGRAM_EDGES[-1], len(HISTOGRAM_EDGES) - 1
    logarithms = torch.cat(sizes).log10().clamp(low, high)
    return (torch.histc(logarithms, bins, low, high) / len(logarithms)).tolist()


def speed(source: WeightSource, name: str, weight: Tensor) -> tuple[Tensor, Tensor]:
    """psi'(v) and psi'(v) / psi(v) at these weights."""
    psi: PositiveMap | None = source.psi
    if psi is None:
        return torch.ones_like(weight), 1 / weight
    value = weight / source.scale(name)
    slope = psi.slope(psi.inverse(value))
    return slope, slope / value
