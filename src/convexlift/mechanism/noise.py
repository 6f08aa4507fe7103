"""How much batches move the emitted weights, and how far one optimiser step moves the latents."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn

from convexlift.ambient import guarded
from convexlift.mechanism.observing import blocks, emissions
from convexlift.sources import Lift
from convexlift.tasks.task import evaluating

DETERMINISTIC_BELOW = 0.001
"""A lift whose emission noise is below this is deterministic in effect."""


@guarded
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
    count = 0
    first = total = squares = torch.zeros((), dtype=torch.float64, device="cpu")
    with evaluating(model):
        for batch in batches:
            each = [w.flatten().double() for _, ws in emissions(model, batch) for w in ws.values()]
            weights = torch.cat(each)
            first = weights if count == 0 else first
            # Deviations from the first emission: no cancellation when the noise is small.
            total, squares, count = total + (weights - first), squares + (weights - first).square(), count + 1
    if count < 2:
        raise ValueError(f"emission_noise needs at least 2 batches; got {count}")
    variance = (squares - total.square() / count).clamp_min(0) / (count - 1)
    mean = first + total / count
    return float((variance.sqrt() / mean.clamp_min(torch.finfo(torch.float64).tiny)).median())


@guarded
@torch.no_grad()
def step_amplification(model: nn.Module, batches: Iterable[Any]) -> float:
    """How many times farther one Adam step moves a latent weight than it would move a direct parameter.

    Adam moves every parameter by about the learning rate, so theta_j = g b_j + (R s)_j moves by about
    lr sum_p |d theta_j / d p| over the slack and the readout's parameters p. For a dense readout of scale c
    this is g + c |s_bar|_1. For a factored readout it is an upper bound: the signs of its terms seldom
    agree. The median over latents, at the mean summary s_bar of the batches. Without a lift it is 1.0.

    Example:
        >>> import convexlift as cl
        >>> net, batch = cl.ICNN(1, hidden=(8, 8)), torch.randn(256, 1)
        >>> step_amplification(cl.Softplus(net), [batch])
        1.0
        >>> lift = cl.Lift(net, readout="dense", readout_scale=1.0, weight_gain=1.0)
        >>> summary = lift.eval().summary(batch).detach()
        >>> abs(step_amplification(lift, [batch]) - 1 - float(summary.abs().sum())) < 1e-4
        True
    """
    summaries: dict[Lift, list[Tensor]] = {}
    with evaluating(model):
        for batch in batches:
            for block, points in blocks(model, batch):
                if isinstance(block, Lift):
                    summaries.setdefault(block, []).append(block.summary(points))
    if not summaries:
        return 1.0
    per_latent = []
    for lift, seen in summaries.items():
        reach = lift.readout.amplification(torch.stack(seen).mean(0))[: len(lift.names)]
        slack = float(lift.gain[0]) if any(b.requires_grad for b in lift.slack) else 0.0
        per_latent += [slack + r for r in reach]
    return float(torch.cat(per_latent).median())
