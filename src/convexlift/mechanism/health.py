"""What slows the training of each layer: attenuated gradients, one dominant direction, units that agree."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, final

import torch
from torch import Tensor, nn

from convexlift.ambient import guarded
from convexlift.calculus.derivatives import preactivations
from convexlift.mechanism.observing import Loss, binding, blocks, emitters, gradients, observing
from convexlift.mechanism.shoulder import speed
from convexlift.sources import Centred, WeightSource


@final
@dataclass(frozen=True)
class LayerHealth:
    """How well one constrained tensor W can be trained; see ``gradient_health``.

    Attributes:
        gradient: |d loss / d W|, Frobenius.
        attenuation: |d loss / d theta| / |d loss / d W|, what psi leaves of it; 1 for projection, nan where
            the gradient is zero.
        perron_ratio: largest over second singular value of W; None for a vector, infinite for rank one.
        correlation: mean correlation, over the batch, of the units that W reads (their pre-activations, two
            and two, constant ones left out); None where the architecture is no ICNN or fewer than two units
            are left.
    """

    gradient: float
    attenuation: float
    perron_ratio: float | None
    correlation: float | None


@guarded(training=True)
def gradient_health(model: nn.Module, loss: Loss, batch: Any) -> dict[str, LayerHealth]:
    """Gradient norm, attenuation, Perron ratio and unit correlation of every constrained tensor.

        attenuation = |c psi'(theta) * G| / |G|,  G = d loss / d W,  W = c psi(theta),

        Perron ratio = sigma_1(W) / sigma_2(W).

    A positive matrix has one large singular value, that of its Perron vector; the larger the ratio, the more
    alike are the units it feeds, and the worse conditioned is their training. Weights are those the model
    emits from the batch in eval mode; the model is left as it was, to the bit.

    Args:
        model: a weight source, or a task that holds some.
        loss: a scalar function of a batch that evaluates the model, such as ``task.loss``.
        batch: what loss and emission read.

    Returns:
        By "block.name", block the number of the weight source and name that of the tensor.

    Raises:
        TypeError: the model is neither.
        ValueError: no weight source; a loss that does not read it, or is not a finite scalar.

    Source: Hoedt and Klambauer, "Principled weight initialisation for input-convex neural networks", NeurIPS
        2023.

    Example:
        >>> import convexlift as cl
        >>> source = cl.Softplus(cl.ICNN(2, hidden=(16, 16), seed=0))
        >>> found = gradient_health(source, lambda x: source(x).square().mean(), torch.randn(64, 2))
        >>> list(found), found["0.inner.0"].perron_ratio > 1, found["0.outer"].attenuation < 1
        (['0.inner.0', '0.outer'], True, True)
    """
    with observing(model):
        model.eval()
        with torch.no_grad():
            seen = list(blocks(model, batch))
            bound = {source: dict(source.weights(points)) for source, points in seen}
            correlations = [_correlations(block, points) for block, points in emitters(model, batch)]
        if not seen:
            raise ValueError("gradient_health needs a model with a weight source")
        for source, weights in bound.items():
            weights.update({name: weights[name].detach().clone().requires_grad_() for name in source.names})
        leaves = [weights[name] for source, weights in bound.items() for name in source.names]
        with binding(bound):
            found = iter(gradients(loss, batch, leaves))
    return {
        f"{k}.{name}": _layer(source, name, weights[name].detach(), next(found), correlations[k].get(name))
        for k, (source, weights) in enumerate(bound.items())
        for name in source.names
    }


def _layer(
    source: WeightSource, name: str, weight: Tensor, gradient: Tensor, correlation: float | None
) -> LayerHealth:
    slope, _ = speed(source, name, weight)
    size = float(gradient.norm())
    reduced = float((source.scale(name) * slope * gradient).norm())
    attenuation = reduced / size if size else float("nan")
    return LayerHealth(size, attenuation, _perron_ratio(weight), correlation)


def _perron_ratio(weight: Tensor) -> float | None:
    if weight.ndim != 2 or min(weight.shape) < 2:
        return None
    first, second = torch.linalg.svdvals(weight.double())[:2].tolist()
    return first / second if second else float("inf")


def _correlations(block: WeightSource | Centred, points: Tensor | None) -> dict[str, float | None]:
    """Mean correlation of the units that each constrained tensor of an ICNN reads, at these points."""
    net: Any = block.architecture
    if not getattr(net, "dense", False) or points is None:
        return {}
    units = preactivations(points, net.layers(block.emit(points).tensors), net.activation)
    return dict(zip(net.nonnegative, map(_mean_correlation, units), strict=True))


def _mean_correlation(units: Tensor) -> float | None:
    """The mean correlation of different columns of (N, h), constant ones left out."""
    centred = units.double() - units.double().mean(0)
    size = centred.norm(dim=0)
    # A constant column differs from its mean by rounding, in the units' precision, or not at all.
    rounding = torch.finfo(units.dtype).eps * units.double().norm(dim=0)
    varies = size > 4 * rounding
    unit = centred[:, varies] / size[varies]
    count = unit.shape[1]
    if count < 2:
        return None
    return (float(unit.sum(1).square().sum()) - count) / (count * (count - 1))
