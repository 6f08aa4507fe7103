"""Instruments that show what a weight source does during training: pure observers, they change no state."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from convexlift.sources import Lift, WeightSource
from convexlift.sources.positivity import PositiveMap

SHOULDER_SLOPE = 0.05
"""A latent is on the shoulder of psi where psi' is at most this."""

HISTOGRAM_EDGES = tuple(-6 + k / 4 for k in range(33))
"""Edges of the bins of ``weight_histogram``, in log10(fan_in W)."""

DETERMINISTIC_BELOW = 0.001
"""A lift whose emission noise is below this is deterministic in effect."""


@torch.no_grad()
def emission_noise(model: nn.Module, batches: Iterable[Any]) -> float:
    """Median over constrained weights of sd_batch(W) / mean(W), how much batches move the emitted weights.

    Args:
        model: a weight source, or a task that holds some.
        batches: at least two batches, as the model's ``loss`` (or ``emit``) takes them.

    Returns:
        The noise, dimensionless; 0.0 for a source that does not read the batch.

    Raises:
        ValueError: fewer than two batches.

    Example:
        >>> import convexlift as cl
        >>> lift = cl.Lift(cl.ICNN(2, hidden=(16, 16), seed=0), seed=0)
        >>> batches = torch.randn(20, 256, 2, generator=torch.Generator().manual_seed(0))
        >>> emission_noise(lift, batches) > DETERMINISTIC_BELOW
        True
        >>> emission_noise(cl.Softplus(lift.freeze(batches[0])), batches)
        0.0
    """
    count, total, squares = 0, torch.zeros(()), torch.zeros(())
    first = torch.zeros(())
    with _evaluating(model):
        for batch in batches:
            weights = torch.cat(
                [w.flatten().double() for _, ws in _emissions(model, batch) for w in ws.values()]
            )
            first = weights if count == 0 else first
            # Deviations from the first emission: no cancellation when the noise is small.
            total, squares, count = total + (weights - first), squares + (weights - first).square(), count + 1
    if count < 2:
        raise ValueError(f"emission_noise needs at least 2 batches; got {count}")
    variance = (squares - total.square() / count).clamp_min(0) / (count - 1)
    mean = first + total / count
    return float((variance.sqrt() / mean.clamp_min(torch.finfo(torch.float64).tiny)).median())


@torch.no_grad()
def step_amplification(model: nn.Module, batches: Iterable[Any]) -> float:
    """How many times farther one Adam step moves a latent weight than it would move a direct parameter.

    Adam moves every parameter by about the learning rate, so theta_j = b_j + (R s)_j moves by about
    lr sum_p |d theta_j / d p| over the slack and the readout's parameters p. For a dense readout of scale c
    this is 1 + c |s_bar|_1. The median over latents, at the mean summary s_bar of the batches. Without a
    lift it is 1.0.

    Example:
        >>> import convexlift as cl
        >>> net, batch = cl.ICNN(1, hidden=(8, 8)), torch.randn(256, 1)
        >>> step_amplification(cl.Softplus(net), [batch])
        1.0
        >>> lift = cl.Lift(net, readout="dense", readout_scale=1.0)
        >>> summary = lift.eval().summary(batch).detach()
        >>> abs(step_amplification(lift, [batch]) - 1 - float(summary.abs().sum())) < 1e-4
        True
    """
    summaries: dict[Lift, list[Tensor]] = {}
    with _evaluating(model):
        for batch in batches:
            for block, points in _blocks(model, batch):
                if isinstance(block, Lift):
                    summaries.setdefault(block, []).append(block.summary(points))
    if not summaries:
        return 1.0
    per_latent = []
    for lift, seen in summaries.items():
        reach = lift.readout.amplification(torch.stack(seen).mean(0))[: len(lift.names)]
        per_latent += [float(any(b.requires_grad for b in lift.slack)) + r for r in reach]
    return float(torch.cat(per_latent).median())


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
    with _evaluating(model):
        for source, emitted in _emissions(model, batch):
            for name, weight in emitted.items():
                slope, relative = _speed(source, name, weight)
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
    with _evaluating(model):
        sizes = [
            (weight * weight.shape[-1]).flatten().double()
            for _, emitted in _emissions(model, batch)
            for weight in emitted.values()
        ]
    if not sizes:
        raise ValueError("weight_histogram needs a model with a weight source")
    low, high, bins = HISTOGRAM_EDGES[0], HISTOGRAM_EDGES[-1], len(HISTOGRAM_EDGES) - 1
    logarithms = torch.cat(sizes).log10().clamp(low, high)
    return (torch.histc(logarithms, bins, low, high) / len(logarithms)).tolist()


def _speed(source: WeightSource, name: str, weight: Tensor) -> tuple[Tensor, Tensor]:
    """psi'(v) and psi'(v) / psi(v) at these weights."""
    psi: PositiveMap | None = source.psi
    if psi is None:
        return torch.ones_like(weight), 1 / weight
    value = weight / source.scale(name)
    slope = psi.slope(psi.inverse(value))
    return slope, slope / value


def _blocks(model: nn.Module, batch: Any) -> Iterator[tuple[WeightSource, Tensor | None]]:
    """Each weight source of a model, with the points it sees when the model is given this batch."""
    if isinstance(model, WeightSource):
        yield model, batch
        return
    inputs: Callable[[Any], list[Tensor]] | None = getattr(model, "block_inputs", None)
    if inputs is None:
        raise TypeError(f"expected a weight source or a task of weight sources; got {type(model).__name__}")
    blocks: list[nn.Module] = list(getattr(model, "blocks", ()) or [model.block])
    seen = [None] * len(blocks) if batch is None else inputs(batch)
    for block, points in zip(blocks, seen, strict=True):
        if isinstance(block, WeightSource):
            yield block, points


def _emissions(model: nn.Module, batch: Any) -> Iterator[tuple[WeightSource, dict[str, Tensor]]]:
    for source, points in _blocks(model, batch):
        emitted = source.weights(points)
        yield source, {name: emitted[name] for name in source.names}


@contextmanager
def _evaluating(model: nn.Module) -> Iterator[None]:
    training = [part for part in model.modules() if part.training]
    model.eval()
    try:
        yield
    finally:
        for part in training:
            part.training = True
